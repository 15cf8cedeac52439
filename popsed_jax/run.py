"""One run from a catalogue to a run directory: the fit with its progress, checkpoints and files."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from astropy.table import Table
from jaxtyping import Array

from popsed_jax.catalog import Catalog
from popsed_jax.config import RunConfig
from popsed_jax.flows.spline import SplineFlow
from popsed_jax.observe.calibration import Calibration
from popsed_jax.population import summaries
from popsed_jax.population.checkpoint import Checkpoint, CheckpointError
from popsed_jax.population.devices import device_mesh
from popsed_jax.population.fit import build_members, compile_epoch, empty_members, train, train_settings
from popsed_jax.population.galaxies import TrainingGalaxies
from popsed_jax.population.model import Population
from popsed_jax.population.objective import Problem
from popsed_jax.population.schedules import build_schedule
from popsed_jax.population.storage import save_tree, write_atomically
from popsed_jax.population.train import EpochInfo, TrainState, init_state
from popsed_jax.progress import Progress
from popsed_jax.run_metrics import Fitted, run_metrics
from popsed_jax.run_tables import galaxy_table, history_table, photometry_table
from popsed_jax.settings import dump_toml, to_mapping
from popsed_jax.surveys import prepare_problem
from popsed_jax.tables import write_table

NUM_SAMPLES = 20_000
CALIBRATION = "calibration.safetensors"
PACKAGES = ("popsed_jax", "jax", "flax", "optax", "distrax", "ott-jax", "dsps", "numpy", "astropy", "astro-sedpy")


@dataclasses.dataclass(frozen=True, eq=False)
class FitResult:
    """A finished (or stopped) fit.

    Attributes:
        population: what was learned: sample it, evaluate it, save it.
        converged: whether the photometry is matched and the training ran to its end.
        reason: why, in a sentence.
        metrics: everything measured (the content of metrics.json).
        history: one record an epoch.
        tables: samples and photometry by file name, as written into the run directory.
        calibration: of each survey, learned with each member of the population.
    """

    population: Population
    converged: bool
    reason: str
    metrics: dict[str, Any]
    history: list[EpochInfo]
    tables: dict[str, Table]
    calibration: tuple[Calibration, ...]


def fit(
    catalog: Catalog | Sequence[Catalog],
    config: RunConfig,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    show_progress: bool = True,
) -> FitResult:
    """Learn the population of a catalogue, or of several surveys of the same galaxies' population.

    Args:
        catalog: the galaxies; of several surveys, in the order of `config.all_surveys`. Redshifts are compared with at the end
            and never reach the fit, except those that `[spectroscopy]` gives it.
        config: all settings.
        out: run directory to write (figures and report are `popsed_jax.report.build_report`'s); None writes nothing.
        resume: continue from the checkpoint in `out`.
        show_progress: a progress bar on the terminal.

    Of the processes of a distributed fit (`popsed_jax.distributed`), all call this with the same arguments; the first writes.

    Returns:
        The result; also when interrupted with Ctrl-C, then with `converged` false and the best state so far.

    Raises:
        CheckpointError: `resume` without a checkpoint, with a damaged one, or with other settings.
        ValueError: settings that cannot work with this catalogue.
    """
    started = time.perf_counter()
    folder = None if out is None else Path(out)
    catalogs = (catalog,) if isinstance(catalog, Catalog) else tuple(catalog)
    lead = jax.process_index() == 0
    with Progress(show_progress and lead, log=folder / "log.txt" if folder is not None and lead else None) as progress:
        for line in (line for each in catalogs for line in each.summary()):
            progress.say(line)
        fitted = _learn(catalogs, config, folder, resume, progress)
        progress.say("Sampling the learned population and measuring it")
        result = _summarise(catalogs, config, fitted, started)
        if folder is not None and lead:
            write_run(folder, result, config)
        if "visibility" in result.metrics:
            progress.say(result.metrics["visibility"]["warning"])
        progress.say(result.reason)
    return result


def _learn(
    catalogs: tuple[Catalog, ...], config: RunConfig, folder: Path | None, resume: bool, progress: Progress
) -> Fitted:
    key = jax.random.key(config.fit.seed)
    key_problem, key_members, key_train = jax.random.split(key, 3)
    data = {"data": {catalog.name: catalog.checksum() for catalog in catalogs}}
    checkpoint = None if folder is None else Checkpoint(folder / "checkpoint", to_mapping(config) | data)
    if resume and checkpoint is None:
        raise CheckpointError("resuming needs the run directory of the earlier run")
    if resume and checkpoint is not None:
        checkpoint.check()  # before the minutes of work that loading needs
    if config.emulator is None:
        progress.say("Tabulating templates through the filters")
    else:
        progress.say(f"Photometry by the emulator in {config.emulator}")
    prepared = prepare_problem(key_problem, catalogs, config)
    problem = prepared.problem
    num_members = config.fit.num_members + int(config.fit.flat_control)
    galaxies = TrainingGalaxies(key_members, prepared.galaxies, num_members)
    mesh = device_mesh(num_members)
    schedule = build_schedule(config.anneal, config.fit.num_epochs, config.fit.learning_rate)
    settings = train_settings(config.fit, config.transport, mesh, schedule)
    lead = jax.process_index() == 0
    if mesh is not None:
        progress.say(
            f"{mesh.shape['member']} x {mesh.shape['draw']} devices (members x draws), {jax.process_count()} processes"
        )
    if resume and checkpoint is not None:
        shapes = empty_members(problem, config.flow, config.fit)
        members, reference, state, history = checkpoint.load(shapes, lambda m: init_state(m, problem, settings))
        progress.say(f"Resuming after epoch {len(history)} of {config.fit.num_epochs}")
        if (sentence := checkpoint.other_devices()) is not None:
            progress.say(sentence)
    else:
        progress.say("Drawing the reference population through the survey, and fitting flows to it")
        with ThreadPoolExecutor(1) as ahead:
            compiled = ahead.submit(compile_epoch, problem, galaxies, schedule, settings, config.flow, config.fit)
            members, reference = build_members(key_members, problem, config.reference, config.flow, config.fit)
        if (error := compiled.exception()) is not None:
            # No reason to stop: what is wrong with the program itself is raised where it is called.
            progress.say(f"Compiling ahead failed ({type(error).__name__}); the first epoch compiles instead")
        state, history = init_state(members, problem, settings), []
        if checkpoint is not None and lead:
            checkpoint.start(members, reference)

    latest, interrupted_at = state, None

    def after_epoch(epoch: int, state: TrainState, info: EpochInfo) -> None:
        nonlocal latest
        latest = state
        history.append(info)
        if checkpoint is not None and lead:
            checkpoint.save(state, history)
        shown = np.asarray(members.controlled) > 0
        progress.epoch(epoch + 1, float(np.mean(info.loss[shown])), float(np.mean(info.ratio[shown])))

    progress.start_epochs(config.fit.num_epochs, done=len(history))
    try:
        train(key_train, problem, galaxies, members, schedule, settings, after_epoch, state, start=len(history))
    except KeyboardInterrupt:
        interrupted_at = len(history)
        progress.say(f"Interrupted: keeping the best state of {interrupted_at} epochs")
    return Fitted(prepared, members, reference, latest, schedule, history, interrupted_at)


def _summarise(catalogs: tuple[Catalog, ...], config: RunConfig, fitted: Fitted, started: float) -> FitResult:
    problem, state, members = fitted.prepared.problem, fitted.state, fitted.members
    space, seed = problem.parameters, config.fit.seed
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 10**6), 8)
    rng = np.random.default_rng(seed)
    controlled = np.asarray(members.controlled)
    floor = fitted.prepared.floors[0]
    weights = summaries.member_weights(np.asarray(state.best_objective), controlled, floor.std / floor.mean)
    ensemble = np.flatnonzero(controlled > 0)
    best = dataclasses.replace(members.reference, layers=state.best.layers)
    flows = _members_of(best, ensemble)
    population = Population(flows, jnp.asarray(weights[ensemble]), space, _meaning(config, problem))

    theta, member = population.sample_members(keys[0], NUM_SAMPLES)
    calibration = state.best.calibration
    drawn = {"model": summaries.observe_galaxies(keys[1], problem, theta, member, calibration)}
    num_draws = fitted.reference.shape[1]
    reference_theta = np.asarray(fitted.reference).reshape(-1, len(space))
    reference_member = np.repeat(np.arange(len(ensemble)), num_draws)
    order = np.random.default_rng([seed, 2]).permutation(len(reference_theta))[:NUM_SAMPLES]
    as_quoted = jax.tree.map(np.zeros_like, calibration)
    drawn["reference"] = summaries.observe_galaxies(
        keys[3], problem, reference_theta[order], reference_member[order], as_quoted
    )
    if len(ensemble) < len(controlled):
        control = _members_of(best, np.array(-1))
        flat_theta = space.to_theta(control.sample(keys[4], NUM_SAMPLES))
        flat_member = np.full(NUM_SAMPLES, len(controlled) - 1)
        drawn["flat"] = summaries.observe_galaxies(keys[5], problem, flat_theta, flat_member, calibration)

    kept = [{name: galaxies.kept(rng, i) for name, galaxies in drawn.items()} for i in range(len(catalogs))]
    metrics = run_metrics(catalogs, config.fit, fitted, drawn, kept, weights, rng)
    converged, reason = summaries.verdict(metrics["validation"]["ratio"], fitted.interrupted_at, config.fit.num_epochs)
    metrics |= {
        "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "converged": converged,
        "reason": reason,
        "wall_seconds": time.perf_counter() - started,
        "peak_memory_gb": _peak_memory_gb(),
    }
    tables = {
        name: galaxy_table(drawn[group], space)
        for name, group in (("samples", "model"), ("reference", "reference"), ("flat", "flat"))
        if group in drawn
    }
    for number, (catalog, survey) in enumerate(zip(catalogs, problem.surveys, strict=True)):
        name = "photometry" if number == 0 else f"photometry_{catalog.name}"
        tables[name] = photometry_table(catalog, survey, space, kept[number], number)
    tables["history"] = history_table(fitted.history, fitted.schedule, len(controlled))
    kept_calibration = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[ensemble]), calibration)
    return FitResult(population, converged, reason, metrics, fitted.history, tables, kept_calibration)


@jax.jit
def _members_of(flows: SplineFlow, index: Array) -> SplineFlow:
    return jax.tree.map(lambda leaf: leaf[index], flows)


def versions() -> dict[str, str]:
    """Versions of this package and of what its numbers depend on."""
    return {"python": sys.version.split()[0]} | {name: version(name) for name in PACKAGES}


def write_run(folder: Path, result: FitResult, config: RunConfig) -> None:
    """Write everything of a run but its figures and report."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.toml", dump_toml(to_mapping(config)).encode())
    result.population.save(folder / "population")
    save_tree(folder / CALIBRATION, result.calibration)
    for name, table in result.tables.items():
        write_table(table, folder / f"{name}.parquet")
    write_atomically(folder / "metrics.json", (json.dumps(result.metrics, indent=2) + "\n").encode())


def _meaning(config: RunConfig, problem: Problem) -> dict[str, Any]:
    """What another code must know to use the population."""
    forward = problem.forwards[0]
    selected = any(survey.selection.cuts for survey in config.all_surveys)
    return {
        "selection": ("as-detected" if config.fit.tilt == 1.0 else "tilted") if selected else "intrinsic",
        "tilt": config.fit.tilt,
        "selection_cuts": [to_mapping(survey.selection) for survey in config.all_surveys],
        "cosmology": {"model": "flat LCDM", **dataclasses.asdict(config.model.cosmology)},
        "imf": "Kroupa (2001), of the shipped templates",
        "mass_definition": "log_mass is log10 of the stellar mass formed [Msun]",
        "sfh": config.model.sfh,
        "ssp": {"name": forward.galaxy.ssp.name, "sha256": forward.galaxy.ssp.sha256},
        "versions": versions(),
    }


def _peak_memory_gb() -> float:
    """Largest resident memory of this process [GB]; the kernel counts KiB on Linux and bytes on macOS."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
