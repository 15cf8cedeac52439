"""One run from a catalogue to a run directory: the fit with its progress, checkpoints and files."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from astropy.table import Table
from jaxtyping import Array, Float

from popsed_jax.catalog import Catalog
from popsed_jax.config import RunConfig
from popsed_jax.emulators import load_emulator
from popsed_jax.observe.forward import ForwardModel, build_forward_model
from popsed_jax.observe.noise import fit_noise_model
from popsed_jax.population import summaries
from popsed_jax.population.checkpoint import Checkpoint, CheckpointError
from popsed_jax.population.fit import Floor, build_members, build_problem, empty_members, train, train_settings
from popsed_jax.population.model import Population
from popsed_jax.population.objective import Member, Problem
from popsed_jax.population.schedules import Schedule, build_schedule
from popsed_jax.population.storage import write_atomically
from popsed_jax.population.train import EpochInfo, TrainState, init_state
from popsed_jax.progress import Progress
from popsed_jax.settings import dump_toml, to_mapping
from popsed_jax.sps.config import DERIVED_META
from popsed_jax.tables import write_table

NUM_SAMPLES = 20_000
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
    """

    population: Population
    converged: bool
    reason: str
    metrics: dict[str, Any]
    history: list[EpochInfo]
    tables: dict[str, Table]


@dataclasses.dataclass(frozen=True, eq=False)
class _Fitted:
    """Between training and its summary."""

    problem: Problem
    floor: Floor
    members: Member
    reference: Float[Array, "member draw dim"]
    state: TrainState
    schedule: Schedule
    history: list[EpochInfo]
    interrupted_at: int | None


def build_survey(catalog: Catalog, config: RunConfig) -> ForwardModel:
    """The forward model of a catalogue: its filters, its noise learned from its errors, its selection.

    Raises:
        StorageError: the settings name an emulator that cannot be read.
        ValueError: one that does not cover this run.
    """
    noise = fit_noise_model(catalog.flux, catalog.flux_error, config.noise.floor)
    emulator = None if config.emulator is None else load_emulator(config.emulator)
    return build_forward_model(
        catalog.filters,
        noise,
        selection=config.selection,
        model=config.model,
        bounds=config.parameters,
        emulator=emulator,
    )


def fit(
    catalog: Catalog,
    config: RunConfig,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    show_progress: bool = True,
) -> FitResult:
    """Learn the population of a catalogue.

    Args:
        catalog: the galaxies. Their redshifts, if any, are compared with at the end and never reach the fit.
        config: all settings.
        out: run directory to write (figures and report are `popsed_jax.report.build_report`'s); None writes nothing.
        resume: continue from the checkpoint in `out`.
        show_progress: a progress bar on the terminal.

    Returns:
        The result; also when interrupted with Ctrl-C, then with `converged` false and the best state so far.

    Raises:
        CheckpointError: `resume` without a checkpoint, with a damaged one, or with other settings.
        ValueError: settings that cannot work with this catalogue.
    """
    started = time.perf_counter()
    folder = None if out is None else Path(out)
    with Progress(show_progress, log=None if folder is None else folder / "log.txt") as progress:
        for line in catalog.summary():
            progress.say(line)
        fitted = _learn(catalog, config, folder, resume, progress)
        progress.say("Sampling the learned population and measuring it")
        result = _summarise(catalog, config, fitted, started)
        if folder is not None:
            write_run(folder, result, config)
        progress.say(result.reason)
    return result


def _learn(catalog: Catalog, config: RunConfig, folder: Path | None, resume: bool, progress: Progress) -> _Fitted:
    key = jax.random.key(config.fit.seed)
    key_problem, key_members, key_train = jax.random.split(key, 3)
    checkpoint = None if folder is None else Checkpoint(folder / "checkpoint", to_mapping(config))
    if resume and checkpoint is None:
        raise CheckpointError("resuming needs the run directory of the earlier run")
    if resume and checkpoint is not None:
        checkpoint.check()  # before the minutes of work that loading needs
    if config.emulator is None:
        progress.say("Tabulating templates through the filters")
    else:
        progress.say(f"Photometry by the emulator in {config.emulator}")
    forward = build_survey(catalog, config)
    problem, floor = build_problem(key_problem, catalog.flux, catalog.flux_error, forward, config.fit)
    settings = train_settings(config.fit, config.transport, len(catalog.bands))
    schedule = build_schedule(config.anneal, config.fit.num_epochs, config.fit.learning_rate)
    if resume and checkpoint is not None:
        shapes = empty_members(problem, config.flow, config.fit)
        members, reference, state, history = checkpoint.load(shapes, lambda m: init_state(m, settings))
        progress.say(f"Resuming after epoch {len(history)} of {config.fit.num_epochs}")
    else:
        progress.say("Drawing the reference population through the survey, and fitting flows to it")
        members, reference = build_members(key_members, problem, config.reference, config.flow, config.fit)
        state, history = init_state(members, settings), []
        if checkpoint is not None:
            checkpoint.start(members, reference)

    latest, interrupted_at = state, None

    def after_epoch(epoch: int, state: TrainState, info: EpochInfo) -> None:
        nonlocal latest
        latest = state
        history.append(info)
        if checkpoint is not None:
            checkpoint.save(state, history)
        shown = np.asarray(members.controlled) > 0
        progress.epoch(epoch + 1, float(np.mean(info.loss[shown])), float(np.mean(info.ratio[shown])))

    progress.start_epochs(config.fit.num_epochs, done=len(history))
    try:
        train(key_train, problem, members, schedule, settings, after_epoch, state, start=len(history))
    except KeyboardInterrupt:
        interrupted_at = len(history)
        progress.say(f"Interrupted: keeping the best state of {interrupted_at} epochs")
    return _Fitted(problem, floor, members, reference, latest, schedule, history, interrupted_at)


def _summarise(catalog: Catalog, config: RunConfig, fitted: _Fitted, started: float) -> FitResult:
    problem, state, members = fitted.problem, fitted.state, fitted.members
    space, seed = problem.forward.space, config.fit.seed
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 10**6), 8)
    rng = np.random.default_rng(seed)
    controlled = np.asarray(members.controlled)
    scatter = fitted.floor.std / fitted.floor.mean
    weights = summaries.member_weights(np.asarray(state.best_objective), controlled, scatter)
    ensemble = np.flatnonzero(controlled > 0)
    best = dataclasses.replace(members.reference, layers=state.best.layers)
    flows = jax.tree.map(lambda leaf: leaf[ensemble], best)
    population = Population(flows, jnp.asarray(weights[ensemble]), space, _meaning(config, problem.forward))

    theta, member = population.sample_members(keys[0], NUM_SAMPLES)
    model = summaries.observe_galaxies(keys[1], problem, theta, member, state.best.offset)
    num_draws = fitted.reference.shape[1]
    reference_theta = fitted.reference.reshape(-1, len(space))
    reference_member = jnp.repeat(jnp.arange(len(ensemble)), num_draws)
    order = jax.random.permutation(keys[2], len(reference_theta))[:NUM_SAMPLES]
    no_offset = jnp.zeros_like(state.best.offset)
    reference = summaries.observe_galaxies(keys[3], problem, reference_theta[order], reference_member[order], no_offset)
    groups = {"model": model, "reference": reference}
    if len(ensemble) < len(controlled):
        control = jax.tree.map(lambda leaf: leaf[-1], best)
        flat_theta = space.to_theta(control.sample(keys[4], NUM_SAMPLES))
        flat_member = jnp.full(NUM_SAMPLES, len(controlled) - 1)
        groups["flat"] = summaries.observe_galaxies(keys[5], problem, flat_theta, flat_member, state.best.offset)

    metrics = _metrics(catalog, config, fitted, groups, weights, rng)
    converged, reason = summaries.verdict(metrics["validation"]["ratio"], fitted.interrupted_at, config.fit.num_epochs)
    metrics |= {
        "converged": converged,
        "reason": reason,
        "wall_seconds": time.perf_counter() - started,
        "peak_memory_gb": _peak_memory_gb(),
    }
    tables = {
        name: _galaxy_table(groups[group], population)
        for name, group in (("samples", "model"), ("reference", "reference"), ("flat", "flat"))
        if group in groups
    }
    tables["photometry"] = _photometry_table(catalog, problem, groups)
    tables["history"] = _history_table(fitted)
    return FitResult(population, converged, reason, metrics, fitted.history, tables)


def _metrics(
    catalog: Catalog,
    config: RunConfig,
    fitted: _Fitted,
    groups: dict[str, summaries.Galaxies],
    weights: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, Any]:
    problem, floor, state = fitted.problem, fitted.floor, fitted.state
    space = problem.forward.space
    blur = config.fit.validation_blur
    distance = {name: summaries.distance_to_data(problem, group.mags, blur) for name, group in groups.items()}
    data = summaries.mags_of(problem.space, catalog.flux)
    by_band, by_color = summaries.marginal_distances(groups["model"].mags, data, catalog.bands, rng)
    labels = {p.name: (p.unit, p.label, p.description) for p in space.parameters} | DERIVED_META
    columns = {name: _columns(group, space.names) for name, group in groups.items()}
    redshift = None
    if catalog.redshift is not None and np.isfinite(catalog.redshift).sum() >= 2:
        each = {
            name: summaries.redshift_metrics(column["redshift"], catalog.redshift, rng)
            for name, column in columns.items()
        }
        redshift = each["model"] | {
            "reference_wasserstein": each["reference"]["wasserstein"],
            "flat_wasserstein": each["flat"]["wasserstein"] if "flat" in each else None,
        }
    controlled = np.asarray(fitted.members.controlled)
    return {
        "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "validation": {
            "model_to_data": distance["model"],
            "noise_floor": floor.mean,
            "noise_floor_std": floor.std,
            "ratio": distance["model"] / floor.mean,
            "reference_ratio": distance["reference"] / floor.mean,
            "flat_ratio": distance["flat"] / floor.mean if "flat" in distance else None,
            "blur": blur,
            "num_galaxies": int(problem.held_out.shape[0]),
        },
        "bands": by_band,
        "colors": by_color,
        "redshift": redshift,
        "members": [
            {
                "member": i,
                "control": bool(controlled[i] == 0),
                "weight": float(weights[i]),
                "ratio": float(state.best_ratio[i]),
                "kl": float(state.best_kl[i]),
                "offsets": {b: float(state.best.offset[i, j]) for j, b in enumerate(catalog.bands)},
                "shifts": {n: float(state.best.shift[i, j]) for j, n in enumerate(space.names)},
            }
            for i in range(len(controlled))
        ],
        "parameters": summaries.parameter_metrics(labels, columns["model"], columns["reference"]),
        "catalog": {
            "name": catalog.name,
            "bands": list(catalog.bands),
            "filters": list(catalog.filters),
            "num_rows_read": catalog.num_rows_read,
            "num_galaxies": len(catalog),
            "drops": [{"reason": drop.reason, "count": drop.count} for drop in catalog.drops],
        },
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of this package and of what its numbers depend on."""
    return {"python": sys.version.split()[0]} | {name: version(name) for name in PACKAGES}


def write_run(folder: Path, result: FitResult, config: RunConfig) -> None:
    """Write everything of a run but its figures and report."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.toml", dump_toml(to_mapping(config)).encode())
    result.population.save(folder / "population")
    for name, table in result.tables.items():
        write_table(table, folder / f"{name}.parquet")
    write_atomically(folder / "metrics.json", (json.dumps(result.metrics, indent=2) + "\n").encode())


def _meaning(config: RunConfig, forward: ForwardModel) -> dict[str, Any]:
    """What another code must know to use the population."""
    return {
        "selection": "as-detected",
        "selection_limits": [dataclasses.asdict(limit) for limit in forward.selection.limits],
        "cosmology": {"model": "flat LCDM", **dataclasses.asdict(config.model.cosmology)},
        "imf": "Kroupa (2001), of the shipped templates",
        "mass_definition": "log_mass is log10 of the stellar mass formed [Msun]",
        "sfh": config.model.sfh,
        "ssp": {"name": forward.galaxy.ssp.name, "sha256": forward.galaxy.ssp.sha256},
        "versions": versions(),
    }


def _columns(galaxies: summaries.Galaxies, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {name: galaxies.theta[:, i] for i, name in enumerate(names)} | dict(galaxies.derived)


def _galaxy_table(galaxies: summaries.Galaxies, population: Population) -> Table:
    table = Table(_columns(galaxies, population.names))
    labels = {p.name: (p.unit, p.label, p.description) for p in population.space.parameters} | DERIVED_META
    for name, (unit, _, description) in labels.items():
        table[name].unit, table[name].description = unit or None, description
    table["member"] = galaxies.member
    table["member"].description = "flow of the ensemble that the galaxy was drawn from"
    return table


def _photometry_table(catalog: Catalog, problem: Problem, groups: dict[str, summaries.Galaxies]) -> Table:
    data = summaries.mags_of(problem.space, catalog.flux)
    spec = np.full(len(catalog), np.nan) if catalog.redshift is None else catalog.redshift
    index = problem.forward.space.index("redshift")
    sets = [("data", data, spec, np.full(len(catalog), -1))]
    sets += [(name, group.mags, group.theta[:, index], group.member) for name, group in groups.items()]
    table = Table({"set": np.concatenate([np.full(len(mags), name, dtype="U9") for name, mags, _, _ in sets])})
    for i, band in enumerate(catalog.bands):
        table[f"mag_{band}"] = np.concatenate([mags[:, i] for _, mags, _, _ in sets])
        table[f"mag_{band}"].unit = "mag"
        table[f"mag_{band}"].description = f"asinh AB magnitude, {catalog.filters[i]}"
    table["redshift"] = np.concatenate([z for _, _, z, _ in sets])
    table["member"] = np.concatenate([member for _, _, _, member in sets])
    return table


def _history_table(fitted: _Fitted) -> Table:
    num_members = len(fitted.members.controlled)
    rows: dict[str, list[float]] = {"epoch": [], "member": []}
    for epoch, info in enumerate(fitted.history):
        row = fitted.schedule.row(epoch)
        for member in range(num_members):
            rows["epoch"].append(epoch)
            rows["member"].append(member)
            for name, value in info._asdict().items():
                rows.setdefault(name, []).append(float(value[member]))
            for name in ("blur", "noise_divisor", "learning_rate", "sliced", "sinkhorn"):
                rows.setdefault(name, []).append(float(getattr(row, name)))
    return Table(rows)


def _peak_memory_gb() -> float:
    """Largest resident memory of this process [GB]; the kernel counts KiB on Linux and bytes on macOS."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
