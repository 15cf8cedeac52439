"""Train the autoencoder of a survey's galaxies on mocks, with progress, checkpoints and files."""

from __future__ import annotations

import dataclasses
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from popsed_jax.catalog import Catalog, read_catalog
from popsed_jax.config import RunConfig, load_config
from popsed_jax.observe.filters import load_filter
from popsed_jax.observe.forward import ForwardModel, build_forward_model
from popsed_jax.population.checkpoint import CheckpointError, checked_metadata, read_or_explain, settings_text
from popsed_jax.population.storage import described_weights, load_tree, save_tree, write_atomically
from popsed_jax.posteriors.columns import Summary
from popsed_jax.posteriors.mocks import Mocks, MocksConfig, build_mocks, mocks_from
from popsed_jax.posteriors.pixels import build_grid
from popsed_jax.posteriors.stages import Parts, StageState, run_stage, start_stage
from popsed_jax.posteriors.vae import MultiModalVAE, VAEConfig, init_vae, with_new_head
from popsed_jax.posteriors.vae_columns import VAEEstimator
from popsed_jax.posteriors.vae_losses import LOSSES, STAGED, StagesConfig, VAEData
from popsed_jax.posteriors.vae_storage import DESCRIPTION, load_vae, save_vae
from popsed_jax.progress import Progress
from popsed_jax.run import versions
from popsed_jax.settings import dump_toml, to_mapping
from popsed_jax.surveys import build_survey

__all__ = ["TrainedVAE", "VAETraining", "build_vae_estimator", "train_vae"]

_MOCKS, _STATE = "mocks.safetensors", "state.safetensors"
_HELD_OUT = 0.05  # of the mocks, that training does not see
History = dict[str, list[dict[str, float]]]  # mean terms of each chunk, by stage


@dataclasses.dataclass(frozen=True)
class VAETraining:
    """All settings of a training.

    Args:
        seed: of everything random.
        mocks: the galaxies to learn from.
        model: sizes and losses.
        stages: lengths.
    """

    seed: int = 0
    mocks: MocksConfig = dataclasses.field(default_factory=MocksConfig)
    model: VAEConfig = dataclasses.field(default_factory=VAEConfig)
    stages: StagesConfig = dataclasses.field(default_factory=StagesConfig)


class TrainedVAE(NamedTuple):
    """A training's result.

    Attributes:
        vae: the model.
        mocks: all of them; the last twentieth was not trained on.
        history: mean loss and terms of each chunk, by stage.
        finished: whether all stages ended; not where Ctrl-C stopped them, which keeps what was learned.
    """

    vae: MultiModalVAE
    mocks: Mocks
    history: History
    finished: bool

    @property
    def held_out(self) -> Mocks:
        """Mocks that training did not see."""
        return self.mocks.subset(slice(num_trained(self.mocks), None))


def num_trained(mocks: Mocks) -> int:
    """How many of the mocks training sees: the first ones."""
    return len(mocks) - max(1, round(_HELD_OUT * len(mocks)))


def train_vae(
    settings: RunConfig,
    out: Path | str,
    training: VAETraining = VAETraining(),
    *,
    catalog: Catalog | None = None,
    stage: str | None = None,
    resume: bool = False,
    show_progress: bool = True,
) -> TrainedVAE:
    """Train a model for a survey's galaxies, and write it into a folder.

    Of the catalogue only its errors, its missing bands and its selection count; its redshifts and colours are not seen.

    Args:
        settings: of a run: catalogue, selection, noise, galaxy model, reference population.
        out: folder to write; an earlier model is replaced.
        training: everything else.
        catalog: in place of the one that the settings name.
        stage: train this one alone: "spectrum", "photometry" or "parameters" goes on from the folder's model; "joint" trains
            all parts at once. None: the three stages.
        resume: continue from the folder's checkpoint.

    Raises:
        CheckpointError: `resume` without a checkpoint, with a damaged one, or with other settings.
        StorageError: `stage` without a model that it could go on from.
        ValueError: no such stage, another model's sizes, or a survey that cannot be simulated.
    """
    folder, names = Path(out), STAGED if stage is None else (stage,)
    each = [training.stages.stage(name) for name in names]
    catalog = read_catalog(settings.catalog) if catalog is None else catalog
    data = {"run": to_mapping(settings), "catalog": catalog.checksum(), "mocks": to_mapping(training.mocks)}
    known = settings_text(data | {"seed": training.seed})
    whole = settings_text({"training": to_mapping(training), "stages": list(names), "data": data})
    if resume:
        checked_metadata(folder / "checkpoint" / _STATE, whole)  # before the minutes of work that mocks need
    key_mocks, key_start, key_train = jax.random.split(jax.random.key(training.seed), 3)
    with Progress(show_progress, log=folder / "log.txt") as progress:
        progress.say("Tabulating templates through the filters")
        forward = build_survey(catalog, settings)
        mocks = _load_mocks(folder, known, forward, catalog, training.mocks)
        if mocks is None:
            progress.say(f"Simulating {training.mocks.num_galaxies:,} galaxies of the reference population")
            mocks = build_mocks(key_mocks, forward, catalog.bands, settings.reference, training.mocks)
            save_tree(folder / "checkpoint" / _MOCKS, mocks.arrays(), {"settings": known})
        learned = mocks.subset(slice(0, num_trained(mocks)))
        history: History = {}
        if stage in STAGED[1:] or (stage == STAGED[0] and (folder / DESCRIPTION).is_file()):
            vae, history = _earlier(folder, training.model)
            if stage == "parameters":
                vae = with_new_head(key_start, vae, learned, training.model)
        else:
            vae = init_vae(key_start, learned, forward.space, training.model)
        write_atomically(folder / "config.toml", dump_toml(to_mapping(settings)).encode())
        started = time.perf_counter()
        others = {name: chunks for name, chunks in history.items() if name not in names}
        session = _Session(folder / "checkpoint" / _STATE, whole, progress, others)
        parts, finished = session.run(key_train, each, VAEData(vae.with_parts({}), learned), vae.parts, resume)
        vae = vae.with_parts(parts)
        meta = {
            "finished": finished,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "training": to_mapping(training),
            "stages": list(names),
            "seconds": session.seconds,
            "history": session.history,
            "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
            "versions": versions(),
        }
        save_vae(folder, vae, catalog.bands, meta)
        progress.say(f"{'Trained' if finished else 'Stopped'} after {time.perf_counter() - started:.0f} s: {folder}")
    return TrainedVAE(vae, mocks, session.history, finished)


class _Session:
    """Stages one after the other, with a checkpoint after each chunk.

    Args:
        path: of the checkpoint.
        settings: by which it is known.
        history: of stages before.
    """

    def __init__(self, path: Path, settings: str, progress: Progress, history: History) -> None:
        self.history = dict(history)
        self.seconds = 0.0
        self._path, self._settings, self._progress = path, settings, progress

    def run(self, key: Any, stages: list[Any], data: VAEData, parts: Parts, resume: bool) -> tuple[Parts, bool]:
        """The weights in the end, and whether all stages ended."""
        first, state = self._load(stages, parts) if resume else (0, None)
        num_chunks = sum(stage.num_chunks for stage in stages)
        done = sum(stage.num_chunks for stage in stages[:first])
        at = done + (0 if state is None else int(state.step) // stages[first].steps_per_chunk)
        self._progress.start("training", num_chunks, at)
        latest = parts if state is None else state.average
        for number in range(first, len(stages)):
            stage = stages[number]
            chunks = self.history.setdefault(stage.name, [])
            began = time.perf_counter()

            def after_chunk(now: StageState, terms: dict[str, float], stage: Any = stage, number: int = number) -> None:
                nonlocal began, at, latest
                self.seconds += time.perf_counter() - began
                self.history[stage.name].append(terms)
                at, latest = at + 1, now.average
                head = {"settings": self._settings, "stage": str(number), "history": json.dumps(self.history)}
                save_tree(self._path, now, head | {"seconds": repr(self.seconds)})
                self._progress.advance(at, f"{stage.name}: loss {terms['loss']:.3f}")
                began = time.perf_counter()

            try:
                parts = run_stage(
                    jax.random.fold_in(key, number), stage, LOSSES[stage.name], data, parts, state, after_chunk
                )
            except KeyboardInterrupt:
                self._progress.say(
                    f"Interrupted in stage {stage.name}, after {len(chunks)} chunks: what was learned is kept"
                )
                return latest, False
            state = None
        return parts, True

    def _load(self, stages: list[Any], parts: Parts) -> tuple[int, StageState]:
        """Number of the stage that was begun last, and its state. Raises CheckpointError."""
        metadata = checked_metadata(self._path, self._settings)
        try:
            number, self.seconds = int(metadata["stage"]), float(metadata["seconds"])
            self.history = json.loads(metadata["history"])
            stage = stages[number]
        except (KeyError, ValueError, IndexError):
            raise CheckpointError(f"{self._path} is damaged. Start anew without --resume.") from None
        state = read_or_explain(load_tree, self._path, start_stage(stage, parts))
        self._progress.say(f"Resuming in stage {stage.name}, after {len(self.history[stage.name])} chunks")
        return number, state


def _earlier(folder: Path, model: VAEConfig) -> tuple[MultiModalVAE, History]:
    """The folder's model, to go on from, with its head, and its training. Raises StorageError, or ValueError for other sizes."""
    vae, _, meta = load_vae(folder)
    if any(getattr(vae.config, name) != getattr(model, name) for name in ("latent", "hidden", "rank")):
        raise ValueError(
            f"{folder} holds a model with a latent of {vae.config.latent}, not {model.latent}, or of other widths: give its "
            "sizes, or train all stages"
        )
    config = dataclasses.replace(model, head=vae.config.head, condition=vae.config.condition)
    return dataclasses.replace(vae, config=config), meta["history"]


def _load_mocks(folder: Path, known: str, forward: ForwardModel, catalog: Catalog, config: MocksConfig) -> Mocks | None:
    """The mocks of the folder's checkpoint, if they are the ones that are wanted."""
    path = folder / "checkpoint" / _MOCKS
    if not path.is_file():
        return None
    try:
        checked_metadata(path, known)
        num, dim = config.num_galaxies, len(forward.space)
        shapes = (num, dim), (num, forward.num_bands), (num, config.num_pixels), (num,)
        arrays = read_or_explain(load_tree, path, tuple(jnp.zeros(shape) for shape in shapes))
    except CheckpointError:
        return None
    filters = [load_filter(name) for name in forward.table.filters[: forward.num_bands]]
    return mocks_from(forward, catalog.bands, arrays, build_grid(filters, config.num_pixels), config)


def build_vae_estimator(
    folder: Path | str, num_draws: int = 100, num_samples: int = 0, num_grid: int = 0
) -> tuple[VAEEstimator, dict[str, Any]]:
    """What gives latents and posteriors of a model's survey, and by what it is known.

    Args:
        folder: of a trained model.
        num_draws: posterior samples behind the summaries.
        num_samples: of them to keep as columns; 0: summaries only.
        num_grid: points of p(redshift) that become a column; 0: its summaries only.

    Raises:
        StorageError: no finished model there, or damaged files.
    """
    folder = Path(folder)
    vae, bands, meta = load_vae(folder)
    if not meta.get("finished", False):
        raise ValueError(f"{folder}: the training was stopped; finish it with popsed-jax train-vae ... --resume")
    settings = load_config(folder / "config.toml")
    filters = [band.filter for band in settings.catalog.resolved().bands]
    forward = build_forward_model(filters, vae.features.noise, model=settings.model, bounds=settings.parameters)
    summary = Summary(vae, forward, num_samples, num_grid)
    identity = {"method": "vae", "draws": num_draws, "samples": num_samples, "grid": num_grid}
    identity |= {"model": described_weights(folder / DESCRIPTION)}  # type: ignore[dict-item]
    return VAEEstimator(bands, vae, summary, num_draws), identity
