"""Train an emulator into a folder: progress, checkpoints, its weights and a measurement of its errors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from astropy.table import Table
from jaxtyping import Array

from popsed_jax.config import RunConfig
from popsed_jax.emulators import save_emulator
from popsed_jax.observe.emulated import PhotometryEmulator, draw_photometry, emulated_flux, init_photometry_emulator
from popsed_jax.observe.forward import Emulator
from popsed_jax.observe.photometry import build_photometry_table, flux
from popsed_jax.population.checkpoint import checked_metadata, read_or_explain, settings_text
from popsed_jax.population.storage import load_tree, save_tree, write_atomically
from popsed_jax.progress import Progress
from popsed_jax.run import versions
from popsed_jax.settings import dump_toml, to_mapping
from popsed_jax.sps.emulator import (
    Draw,
    EmulatorConfig,
    TrainState,
    init_training,
    train_chunk,
    trained_networks,
)
from popsed_jax.sps.galaxy import build_galaxy_model
from popsed_jax.sps.spectra import (
    SpectrumEmulator,
    SpectrumSet,
    draw_spectra,
    init_spectrum_emulator,
    load_spectra,
    make_spectra,
)
from popsed_jax.tables import write_table

Kind = Literal["photometry", "spectrum"]
NUM_TEST, NUM_TEST_SPECTRA = 20_000, 4_000
PERCENTILES = {"50": 0.5, "95": 0.95, "99": 0.99, "99.9": 0.999, "max": 1.0}
NUM_WORST = 10
_MAG = 2.5 / np.log(10.0)  # magnitudes per unit of the natural logarithm
_BATCH = 1000  # galaxies whose errors are measured at once


class Lesson(NamedTuple):
    """What is to be learned.

    Attributes:
        truth, draw: examples, for `train_chunk`.
        blank: the untrained emulator.
        measure: absolute errors [mag] of a trained one: parameters (num, dim), errors (num, band), names of the bands.
    """

    truth: Any
    draw: Draw
    blank: Emulator
    measure: Callable[[Emulator], tuple[np.ndarray, np.ndarray, tuple[str, ...]]]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainResult:
    """A trained emulator.

    Attributes:
        emulator: use it with `build_forward_model`, or name its folder in the settings.
        finished: whether the training ran to its end.
        errors: percentiles of the absolute error [mag] by band.
    """

    emulator: Emulator
    finished: bool
    errors: dict[str, dict[str, float]]


def quick_training(config: EmulatorConfig) -> EmulatorConfig:
    """The same training in less than a hundredth of the steps: to see that it works."""
    return dataclasses.replace(
        config, num_chunks=5, steps_per_chunk=20, chunk_size=2048, batch_size=512, num_spectra=2000
    )


def train_emulator(
    config: RunConfig,
    out: Path | str,
    *,
    filters: Sequence[str] = (),
    kind: Kind = "photometry",
    spectra: Path | str | None = None,
    resume: bool = False,
    show_progress: bool = True,
) -> TrainResult:
    """Train an emulator of the settings' galaxy model and write its folder.

    Args:
        config: `model`, `parameters` and `train_emulator` are used.
        out: folder for `emulator.json`, `weights.safetensors`, `errors.parquet`, `config.toml`, a log and a checkpoint.
        filters: of a photometric emulator.
        kind: fluxes through filters, or rest-frame spectra.
        spectra: a file of spectra to learn in place of the model's (`popsed_jax.sps.spectra.load_spectra`).
        resume: continue from the checkpoint in `out`, to the same end.
        show_progress: a progress bar on the terminal.

    Returns:
        The result; also when interrupted with Ctrl-C, then with `finished` false and what had been learned.

    Raises:
        CheckpointError: `resume` without a checkpoint, with a damaged one, or with other settings.
        ValueError: settings, filters or a file of spectra that cannot be used.
    """
    if kind == "photometry" and not filters:
        raise ValueError("an emulator of photometry needs filters")
    folder, settings = Path(out), config.train_emulator
    identity = {
        "model": to_mapping(config.model),
        "parameters": {name: list(bounds) for name, bounds in config.parameters.items()},
        "train_emulator": to_mapping(settings),
        "filters": list(filters) if kind == "photometry" else [],
        "kind": kind,
        "spectra": "" if spectra is None else hashlib.sha256(Path(spectra).read_bytes()).hexdigest(),
    }
    checkpoint = EmulatorCheckpoint(folder / "checkpoint", identity)
    if resume:
        checkpoint.check()
    with Progress(show_progress, log=folder / "log.txt") as progress:
        progress.say("Preparing what is to be emulated")
        key_lesson, key_train = jax.random.split(jax.random.key(settings.seed))
        lesson = build_lesson(key_lesson, config, tuple(filters), kind, spectra)
        write_atomically(folder / "config.toml", dump_toml(to_mapping(config)).encode())
        state = init_training(lesson.blank.networks, settings)
        history, seconds = np.zeros(0), 0.0
        if resume:
            state, history, seconds = checkpoint.load(state)
            progress.say(f"Resuming after chunk {len(history)} of {settings.num_chunks}")
        state, history, seconds = _learn(key_train, lesson, state, history, seconds, settings, checkpoint, progress)
        emulator = dataclasses.replace(lesson.blank, networks=trained_networks(lesson.blank.networks, state))
        progress.say("Measuring the errors on fresh draws of the prior")
        table, summary = summarise_errors(*lesson.measure(emulator), emulator.space.names)
        finished = len(history) == settings.num_chunks
        meta = {
            "finished": finished,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "training": {**to_mapping(settings), "chunks_done": len(history), "seconds": seconds},
            "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
            "rms_history": [float(value) for value in history],
            **summary,
            "versions": versions(),
        }
        save_emulator(folder, emulator, meta)
        write_table(table, folder / "errors.parquet")
        progress.say(describe_errors(summary["errors"]))
    return TrainResult(emulator, finished, summary["errors"])


def _learn(
    key: Array,
    lesson: Lesson,
    state: TrainState,
    history: np.ndarray,
    seconds: float,
    settings: EmulatorConfig,
    checkpoint: EmulatorCheckpoint,
    progress: Progress,
) -> tuple[TrainState, np.ndarray, float]:
    """All chunks that are left, or as many as there were before an interrupt."""
    progress.start("training", settings.num_chunks, done=len(history))
    try:
        for chunk in range(len(history), settings.num_chunks):
            started = time.perf_counter()
            fresh, rms = train_chunk(
                jax.random.fold_in(key, chunk),
                lesson.truth,
                lesson.blank.networks,
                state,
                draw=lesson.draw,
                config=settings,
            )
            last = float(rms[-max(1, len(rms) // 10) :].mean())
            if not np.isfinite(last):
                raise ValueError(
                    f"the training broke down in chunk {chunk + 1} (not a number): lower train_emulator.learning_rate"
                )
            state, seconds = fresh, seconds + time.perf_counter() - started
            history = np.append(history, last)
            checkpoint.save(state, history, seconds)
            progress.advance(chunk + 1, f"rms error {_MAG * last:.4f} mag")
    except KeyboardInterrupt:
        progress.say(f"Interrupted: keeping what was learned in {len(history)} chunks")
    return state, history, seconds


def build_lesson(
    key: Array, config: RunConfig, filters: tuple[str, ...], kind: Kind, spectra: Path | str | None
) -> Lesson:
    """Examples, an untrained emulator, and how to measure a trained one."""
    settings = config.train_emulator
    key_truth, key_init, key_test = jax.random.split(key, 3)
    if spectra is not None:
        stored = load_spectra(spectra)
        order = np.asarray(jax.random.permutation(key_test, len(stored.theta)))
        held_out, rest = order[: max(1, len(order) // 10)], order[max(1, len(order) // 10) :]
        learned, test = _rows(stored, rest), _rows(stored, held_out)
        blank, examples = init_spectrum_emulator(key_init, learned, settings, None)
        return Lesson(examples, draw_spectra, blank, lambda emulator: _spectrum_errors(emulator, test))
    model = build_galaxy_model(config.model, config.parameters)
    if kind == "spectrum":
        learned = make_spectra(key_truth, model, settings.num_spectra, settings.prior_share)
        test = make_spectra(key_test, model, NUM_TEST_SPECTRA, 1.0)
        blank, examples = init_spectrum_emulator(key_init, learned, settings, model)
        return Lesson(examples, draw_spectra, blank, lambda emulator: _spectrum_errors(emulator, test))
    table = build_photometry_table(model, filters)
    truth = (table, model, jnp.asarray(settings.prior_share))

    def measure(emulator: Emulator) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        assert isinstance(emulator, PhotometryEmulator)
        theta = model.space.sample_flat(key_test, NUM_TEST)

        @jax.jit
        def errors(part: Array) -> Array:
            exact = jax.vmap(lambda one: jnp.log(flux(table, model, one)))(part)
            return jax.vmap(lambda one: jnp.log(emulated_flux(emulator, model, one)))(part) - exact

        parts = [np.asarray(errors(theta[i : i + _BATCH])) for i in range(0, NUM_TEST, _BATCH)]
        return np.asarray(theta), _MAG * np.concatenate(parts), filters

    return Lesson(truth, draw_photometry, init_photometry_emulator(key_init, table, model, settings), measure)


def _rows(spectra: SpectrumSet, rows: np.ndarray) -> SpectrumSet:
    return spectra._replace(theta=spectra.theta[rows], log_lum=spectra.log_lum[rows])


def _spectrum_errors(emulator: Emulator, test: SpectrumSet) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Errors of ln L_nu [mag]: in each range of wavelength, the largest of each spectrum."""
    assert isinstance(emulator, SpectrumEmulator)
    compute = jax.jit(lambda part: jax.vmap(emulator.log_spectrum)(part))
    parts = [np.asarray(compute(jnp.asarray(test.theta[i : i + _BATCH]))) for i in range(0, len(test.theta), _BATCH)]
    error = _MAG * (np.concatenate(parts) - test.log_lum)
    edges = np.cumsum([0, *(len(part) for part in emulator.mean)])
    names = tuple(f"{test.wave[low]:.0f}-{test.wave[high - 1]:.0f} A" for low, high in pairwise(edges))
    ranges = np.split(error, edges[1:-1], axis=1)
    largest = [np.take_along_axis(part, np.abs(part).argmax(axis=1)[:, None], axis=1)[:, 0] for part in ranges]
    return test.theta, np.stack(largest, axis=1), names


def summarise_errors(
    theta: np.ndarray, error: np.ndarray, bands: Sequence[str], names: Sequence[str]
) -> tuple[Table, dict[str, Any]]:
    """Table of the test galaxies and their errors, percentiles by band, and the worst galaxies."""
    table = Table({name: theta[:, i].astype(np.float32) for i, name in enumerate(names)})
    for i, band in enumerate(bands):
        table[f"error_{band}"] = error[:, i].astype(np.float32)
        table[f"error_{band}"].unit = "mag"
    size = np.abs(error)
    percentiles = {
        band: {label: float(np.quantile(size[:, i], q)) for label, q in PERCENTILES.items()}
        for i, band in enumerate(bands)
    }
    worst = np.argsort(-size.max(axis=1))[:NUM_WORST]
    cases = [
        {
            "error_mag": {band: float(error[row, i]) for i, band in enumerate(bands)},
            "parameters": {name: float(theta[row, i]) for i, name in enumerate(names)},
        }
        for row in worst
    ]
    return table, {"num_test": len(theta), "errors": percentiles, "worst": cases}


def describe_errors(errors: Mapping[str, Mapping[str, float]]) -> str:
    """The errors in a sentence."""
    median = max(entry["50"] for entry in errors.values())
    band, entry = max(errors.items(), key=lambda pair: pair[1]["99.9"])
    return (
        f"Errors: median at most {median:.4f} mag, 99.9 % within {entry['99.9']:.4f} mag (worst band {band}), "
        f"largest {max(entry['max'] for entry in errors.values()):.3f} mag"
    )


class EmulatorCheckpoint:
    """The checkpoint of a training: one file, replaced after every chunk.

    Args:
        folder: holds `state.safetensors`.
        settings: of the training; resuming under others is refused.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path = folder / "state.safetensors"
        self._settings = settings_text(settings)

    def save(self, state: TrainState, history: np.ndarray, seconds: float) -> None:
        """Keep the state after a chunk."""
        # The history is kept in double precision, which `jnp.asarray` would not: as text.
        metadata = {"settings": self._settings, "history": json.dumps(list(history)), "seconds": repr(seconds)}
        save_tree(self.path, state, metadata)

    def load(self, like: TrainState) -> tuple[TrainState, np.ndarray, float]:
        """State, history and the seconds spent.

        Raises:
            CheckpointError: nothing to resume, a damaged file, or other settings; says what to do.
        """
        metadata = self.check()
        state = read_or_explain(load_tree, self.path, like)
        return state, np.array(json.loads(metadata["history"])), float(metadata["seconds"])

    def check(self) -> dict[str, str]:
        """What the checkpoint says of itself. Raises CheckpointError as `load`, before any work is done."""
        return checked_metadata(self.path, self._settings)
