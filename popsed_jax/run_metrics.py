"""Everything that a run measures: the content of metrics.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.catalog import Catalog
from popsed_jax.population import summaries
from popsed_jax.population.fit_config import FitConfig
from popsed_jax.population.intrinsic import detected_fraction, intrinsic_weights, visibility, visibility_warning
from popsed_jax.population.objective import Member
from popsed_jax.population.schedules import Schedule
from popsed_jax.population.train import EpochInfo, TrainState
from popsed_jax.run_tables import named_columns
from popsed_jax.sps.config import DERIVED_META
from popsed_jax.surveys import Prepared


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """Between training and its summary."""

    prepared: Prepared
    members: Member
    reference: Float[Array, "member draw dim"]
    state: TrainState
    schedule: Schedule
    history: list[EpochInfo]
    interrupted_at: int | None


Groups = Mapping[str, summaries.Galaxies]


def run_metrics(
    catalogs: tuple[Catalog, ...],
    config: FitConfig,
    fitted: Fitted,
    drawn: Groups,
    kept: Sequence[Groups],
    weights: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Distances, redshifts, members, parameters, what was learned of calibration and selection.

    Args:
        drawn: simulated galaxies of each population: `model`, `reference` and perhaps `flat`.
        kept: for each survey, those of them that it keeps.
        weights: of the members.
    """
    problem = fitted.prepared.problem
    space = problem.parameters
    each = [
        _survey_metrics(number, catalog, config, fitted, drawn, kept[number], weights, rng)
        for number, catalog in enumerate(catalogs)
    ]
    labels = {p.name: (p.unit, p.label, p.description) for p in space.parameters} | DERIVED_META
    columns = {name: named_columns(galaxies, space.names) for name, galaxies in drawn.items()}
    metrics = {
        # The report's main survey is the first; of several, the others follow under their names.
        **each[0],
        "surveys": {catalog.name: entry for catalog, entry in list(zip(catalogs, each, strict=True))[1:]},
        "members": _member_metrics(catalogs, fitted, weights),
        "parameters": summaries.parameter_metrics(labels, columns["model"], columns["reference"]),
    }
    if any(forward.selection.cuts for forward in problem.forwards):
        detection = drawn["model"].detection
        table = visibility(problem.forwards, drawn["model"].theta, intrinsic_weights(detection, problem.tilt), rng)
        metrics["visibility"] = {
            "detected": detected_fraction(detection, problem.tilt),
            "limits": table,
            "warning": visibility_warning(table),
        }
    return metrics


def _survey_metrics(
    number: int,
    catalog: Catalog,
    config: FitConfig,
    fitted: Fitted,
    drawn: Groups,
    kept: Groups,
    weights: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, Any]:
    survey, floor = fitted.prepared.problem.surveys[number], fitted.prepared.floors[number]
    blur = config.validation_blur
    distance = {
        name: summaries.distance_to_data(survey, galaxies.mags[number], galaxies.weights[number], blur)
        for name, galaxies in drawn.items()
    }
    data = summaries.mags_of(survey.space, catalog.flux)
    by_band, by_color = summaries.marginal_distances(kept["model"].quoted(number), data, catalog.bands, rng)
    used = fitted.prepared.used[number]
    part = jax.tree.map(np.asarray, fitted.state.best.calibration[number])
    return {
        "validation": {
            "model_to_data": distance["model"],
            "noise_floor": floor.mean,
            "noise_floor_std": floor.std,
            "ratio": distance["model"] / floor.mean,
            "reference_ratio": distance["reference"] / floor.mean,
            "flat_ratio": distance["flat"] / floor.mean if "flat" in distance else None,
            "blur": blur,
            "num_galaxies": int(survey.held_out.shape[0]),
        },
        "bands": by_band,
        "colors": by_color,
        "redshift": _redshift_metrics(catalog, used, kept, fitted, rng),
        "calibration": summaries.calibration_metrics(survey, part, catalog.bands, weights),
        "catalog": {
            "name": catalog.name,
            "bands": list(catalog.bands),
            "filters": list(catalog.filters),
            "checksum": catalog.checksum(),
            "num_rows_read": catalog.num_rows_read,
            "num_galaxies": len(catalog),
            "num_not_drawn": catalog.num_not_drawn,
            "num_redshifts_used": int(used.sum()),
            "missing": {band: int(np.isnan(catalog.flux[:, i]).sum()) for i, band in enumerate(catalog.bands)},
            "drops": [{"reason": drop.reason, "count": drop.count} for drop in catalog.drops],
        },
    }


def _redshift_metrics(
    catalog: Catalog, used: np.ndarray, kept: Groups, fitted: Fitted, rng: np.random.Generator
) -> dict[str, Any] | None:
    """Against the redshifts that the fit did not see."""
    if catalog.redshift is None:
        return None
    hidden = catalog.redshift[np.isfinite(catalog.redshift) & ~used]
    if len(hidden) < 2:
        return None
    index = fitted.prepared.problem.parameters.index("redshift")
    each = {name: summaries.redshift_metrics(galaxies.theta[:, index], hidden, rng) for name, galaxies in kept.items()}
    return each["model"] | {
        "reference_wasserstein": each["reference"]["wasserstein"],
        "flat_wasserstein": each["flat"]["wasserstein"] if "flat" in each else None,
    }


def _member_metrics(catalogs: tuple[Catalog, ...], fitted: Fitted, weights: np.ndarray) -> list[dict[str, Any]]:
    problem, state = fitted.prepared.problem, fitted.state
    controlled = np.asarray(fitted.members.controlled)
    offsets: dict[str, np.ndarray] = {}
    for number, (catalog, survey) in enumerate(zip(catalogs, problem.surveys, strict=True)):
        prefix = "" if number == 0 else f"{catalog.name} "
        values = np.asarray(survey.calibration.offsets(state.best.calibration[number]))
        offsets |= {f"{prefix}{band}": values[:, i] for i, band in enumerate(catalog.bands)}
    return [
        {
            "member": i,
            "control": bool(controlled[i] == 0),
            "weight": float(weights[i]),
            "ratio": float(state.best_ratio[i]),
            "kl": float(state.best_kl[i]),
            "offsets": {name: float(values[i]) for name, values in offsets.items()},
            "shifts": {name: float(state.best.shift[i, j]) for j, name in enumerate(problem.parameters.names)},
        }
        for i in range(len(controlled))
    ]
