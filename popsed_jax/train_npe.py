"""Train the network of a run's galaxies, with progress, checkpoints and files."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from popsed_jax.learned import NPE_FOLDER, load_survey, population_checksum
from popsed_jax.population.checkpoint import checked_metadata, read_or_explain, settings_text
from popsed_jax.population.storage import load_tree, save_tree
from popsed_jax.posteriors.npe import NPE, NPEConfig, network_loss, start_npe
from popsed_jax.posteriors.stages import StageState, finish_stage, run_stage, start_stage
from popsed_jax.posteriors.storage import save_npe
from popsed_jax.posteriors.survey import LearnedSurvey
from popsed_jax.progress import Progress
from popsed_jax.run import versions
from popsed_jax.settings import to_mapping

_STATE = "state.safetensors"


def train_run(
    run: Path | str, config: NPEConfig | None = None, *, resume: bool = False, show_progress: bool = True
) -> tuple[NPE, bool]:
    """Train a network for a run's survey and write it into the run's folder `npe`.

    Args:
        run: run directory.
        config: size and training of the network.
        resume: continue from the folder's checkpoint.

    Returns:
        The network, and whether its training ended; not where Ctrl-C stopped it, which keeps what was learned.

    Raises:
        StorageError: no learned population there.
        CheckpointError: `resume` without a checkpoint, with a damaged one, or with other settings.
    """
    run, config = Path(run), config or NPEConfig()
    survey, bands = load_survey(run)
    folder = run / NPE_FOLDER
    with Progress(show_progress, log=folder / "log.txt") as progress:
        population = population_checksum(run)
        identity = {"training": to_mapping(config), "population": population}
        npe, losses, seconds = _learn(
            survey, config, folder / "checkpoint" / _STATE, settings_text(identity), resume, progress
        )
        meta = {
            "finished": len(losses) == config.stage.num_chunks,
            "population": population,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "training": {**to_mapping(config), "chunks_done": len(losses), "seconds": seconds},
            "loss_history": [float(loss) for loss in losses],
            "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
            "versions": versions(),
        }
        save_npe(folder, npe, bands, meta)
        progress.say(f"Trained in {seconds:.0f} s: {folder}")
    return npe, len(losses) == config.stage.num_chunks


def _learn(
    survey: LearnedSurvey, config: NPEConfig, path: Path, settings: str, resume: bool, progress: Progress
) -> tuple[NPE, np.ndarray, float]:
    """All chunks that are left, or as many as there were before an interrupt."""
    key_start, key_train = jax.random.split(jax.random.key(config.seed))
    progress.say("Preparing what to learn from: learned galaxies, and flat ones as the survey keeps them")
    simulator, npe = start_npe(key_start, survey, config)
    stage = config.stage
    latest, losses, seconds = start_stage(stage, npe.parts), np.zeros(0), 0.0
    if resume:
        latest, losses, seconds = _load(path, settings, latest)
        progress.say(f"Resuming after chunk {len(losses)} of {stage.num_chunks}")
    progress.start("training", stage.num_chunks, done=len(losses))
    began = time.perf_counter()

    def after_chunk(state: StageState, terms: dict[str, float]) -> None:
        nonlocal latest, losses, seconds, began
        latest, losses, seconds = state, np.append(losses, terms["loss"]), seconds + time.perf_counter() - began
        metadata = {"settings": settings, "chunks": str(len(losses))}
        save_tree(path, (state, losses, np.array(seconds)), metadata)
        progress.advance(len(losses), f"loss {losses[-1]:.3f}")
        began = time.perf_counter()

    try:
        run_stage(key_train, stage, network_loss, (simulator, npe), npe.parts, latest, after_chunk)
    except KeyboardInterrupt:
        progress.say(f"Interrupted: keeping what was learned in {len(losses)} of {stage.num_chunks} chunks")
    return npe.with_parts(finish_stage(stage, latest)), losses, seconds


def _load(path: Path, settings: str, like: StageState) -> tuple[StageState, np.ndarray, float]:
    """State, losses and seconds of a checkpoint. Raises CheckpointError."""
    num = int(checked_metadata(path, settings)["chunks"])
    state, losses, seconds = read_or_explain(load_tree, path, (like, jnp.zeros(num), jnp.zeros(())))
    return state, np.asarray(losses), float(seconds)
