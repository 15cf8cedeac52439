"""The photometric-redshift product: p(z) of every galaxy on a grid, its summary in columns, and which galaxies to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from astropy.table import Column, Table
from jaxtyping import Bool, Float, Int
from scipy.special import xlogy

from popsed_jax.diagnostics.gridded import cdf_at, cumulative, moment_weights, moments, normalised, quantiles
from popsed_jax.diagnostics.kernel import BLOCK, density_on_grid
from popsed_jax.diagnostics.photoz import point_metrics

__all__ = [
    "COLUMNS",
    "SCREENS",
    "density_on_grid",
    "pz_table",
    "screen",
    "screening_curve",
    "summarise_pz",
]

_LEVELS = {"2_5": 0.025, "16": 0.16, "50": 0.5, "84": 0.84, "97_5": 0.975}
_CONFIDENT = 0.03  # half-width of the interval of z_conf, over 1 + mode
# What each column of a summary holds; redshifts have no unit.
COLUMNS = {
    "redshift_mean": "mean of p(z)",
    "redshift_std": "standard deviation of p(z)",
    "redshift_mode": "highest point of p(z)",
    **{
        f"redshift_q{name}": f"quantile of p(z): the probability of less is {level:g}"
        for name, level in _LEVELS.items()
    },
    "z_conf": f"probability within {_CONFIDENT:g} (1 + redshift_mode) of redshift_mode",
    "pz_peaks": "number of peaks of p(z)",
    "pz_entropy": "differential entropy of p(z) [nat]",
    "pz_width": "half of the central 68 % interval of p(z) over 1 + redshift_q50",
}
# Columns that a screening can go by: whether a larger value is worse or better.
SCREENS = {"pz_peaks": 1.0, "pz_width": 1.0, "pz_entropy": 1.0, "z_conf": -1.0}
_FRACTIONS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)


def summarise_pz(
    grid: Float[np.ndarray, " grid"], density: Float[np.ndarray, "galaxy grid"], prominence: float = 0.05
) -> dict[str, np.ndarray]:
    """Columns that say what each p(z) is like; `COLUMNS` describes them.

    Args:
        density: any positive multiple.
        prominence: a peak counts when it is this part of the highest one above the valley on the way to higher ground.

    Raises:
        ValueError: as `gridded.normalised`.

    Notes: `z_conf` is the zConf of Carrasco Kind & Brunner 2013 about the mode, with a half-width of 0.03 (1 + z). Between
        the grid's points the mode is the top of a parabola through three of them.

    References: arXiv:1303.7269.
    """
    grid, density = normalised(grid, density)
    blocks = [_summary(grid, density[i : i + BLOCK], prominence) for i in range(0, len(density), BLOCK)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in COLUMNS}


def _summary(
    grid: Float[np.ndarray, " grid"], density: Float[np.ndarray, "galaxy grid"], prominence: float
) -> dict[str, np.ndarray]:
    below = cumulative(grid, density)
    reach = quantiles(grid, density, np.array(list(_LEVELS.values())), below)
    columns = {f"redshift_q{name}": reach[:, i] for i, name in enumerate(_LEVELS)}
    mean, std = moments(grid, density)
    mode = _mode(grid, density)
    sides = [cdf_at(grid, density, mode + sign * _CONFIDENT * (1.0 + mode), below) for sign in (1.0, -1.0)]
    width = 0.5 * (columns["redshift_q84"] - columns["redshift_q16"]) / (1.0 + columns["redshift_q50"])
    return columns | {
        "redshift_mean": mean,
        "redshift_std": std,
        "redshift_mode": mode,
        "z_conf": sides[0] - sides[1],
        "pz_peaks": _count_peaks(density, prominence),
        "pz_entropy": _entropy(grid, density),
        "pz_width": width,
    }


def _mode(grid: Float[np.ndarray, " grid"], density: Float[np.ndarray, "galaxy grid"]) -> Float[np.ndarray, " galaxy"]:
    """Highest point: the top of the parabola through the highest of the grid's and its neighbours."""
    row, top = np.arange(len(density)), np.argmax(density, axis=1)
    if len(grid) < 3:
        return grid[top]
    inner = np.clip(top, 1, len(grid) - 2)
    before, after = grid[inner] - grid[inner - 1], grid[inner + 1] - grid[inner]
    fall_before = density[row, inner] - density[row, inner - 1]
    fall_after = density[row, inner] - density[row, inner + 1]
    curvature = before * fall_after + after * fall_before
    shift = 0.5 * (after**2 * fall_before - before**2 * fall_after)
    # At an end of the grid, and on a plateau, there is no parabola to go by.
    usable = (top == inner) & (curvature > 0.0)
    return grid[top] + np.divide(shift, curvature, out=np.zeros(len(row)), where=usable)


def _entropy(
    grid: Float[np.ndarray, " grid"], density: Float[np.ndarray, "galaxy grid"]
) -> Float[np.ndarray, " galaxy"]:
    """Integral of -p ln p, by Simpson's rule."""
    middle = 0.5 * (density[:, 1:] + density[:, :-1])
    return -xlogy(density, density) @ (moment_weights(grid) / 3.0) - xlogy(middle, middle) @ (np.diff(grid) / 1.5)


def _count_peaks(density: Float[np.ndarray, "galaxy grid"], prominence: float) -> Int[np.ndarray, " galaxy"]:
    """Peaks of at least some prominence, over the highest: the density is zero beyond the grid's ends.

    One walk along the grid for all galaxies: a peak is passed when the density has fallen by the prominence from the highest
    point since the last valley, which is left when it has risen by as much from the lowest point since the last peak.
    """
    least = prominence * density.max(axis=1)
    climbing = np.zeros(len(density), bool)
    extreme = np.zeros(len(density))
    peaks = np.zeros(len(density), int)
    for value in [*np.ascontiguousarray(density.T), np.zeros(len(density))]:
        passed = climbing & (value < extreme - least)
        left = ~climbing & (value > extreme + least)
        peaks += passed
        climbing ^= passed | left
        further = np.where(climbing, np.maximum(extreme, value), np.minimum(extreme, value))
        extreme = np.where(passed | left, value, further)
    return peaks


def pz_table(summary: Mapping[str, np.ndarray]) -> Table:
    """The columns of a summary with their descriptions, to be written as Parquet or to be joined to a catalogue."""
    return Table([Column(summary[name], name, description=text) for name, text in COLUMNS.items()])


def screen(summary: Mapping[str, np.ndarray], by: str, fraction: float) -> Bool[np.ndarray, " galaxy"]:
    """Galaxies to keep when a fraction of all is set aside: those whose p(z) is worst by one column.

    Args:
        by: one of `SCREENS`: most peaks, largest width or entropy, or lowest z_conf first. Galaxies that are alike go by
            their width, then by their place.
        fraction: to set aside, from 0 to below 1.

    Raises:
        ValueError: no such screening, a fraction out of range, or none would be kept.
    """
    if by not in SCREENS:
        raise ValueError(f"no screening by {by!r}: one of {', '.join(SCREENS)} wanted")
    num = len(summary[by])
    aside = round(fraction * num) if 0.0 <= fraction < 1.0 else num
    if aside >= num:
        raise ValueError(f"to set aside {fraction:g} of {num} galaxies keeps none: a fraction from 0 to below 1 wanted")
    badness = SCREENS[by] * np.asarray(summary[by], float)
    keep = np.zeros(num, bool)
    keep[np.lexsort((summary["pz_width"], badness))[: num - aside]] = True
    return keep


def screening_curve(
    summary: Mapping[str, np.ndarray],
    truth: Float[np.ndarray, " galaxy"],
    by: str,
    rng: np.random.Generator,
    fractions: Sequence[float] = _FRACTIONS,
    point: str = "redshift_mode",
    num_bootstrap: int = 200,
) -> dict[str, np.ndarray]:
    """Accuracy of the galaxies that are kept against the fraction set aside, as columns.

    Args:
        truth: spectroscopic redshifts.
        by: as in `screen`.
        point: column with the redshift to be compared with the truth.

    Returns: `fraction`, `num_kept`, and the `point_metrics` with their errors, as `sigma_nmad` and `sigma_nmad_error`.

    Raises:
        ValueError: as `screen` and `point_metrics`.
    """
    rows = []
    for fraction in fractions:
        keep = screen(summary, by, fraction)
        metrics = point_metrics(summary[point][keep], np.asarray(truth)[keep], rng, num_bootstrap)
        row = {"fraction": fraction, "num_kept": np.sum(keep)}
        row |= {name: entry["value"] for name, entry in metrics.items()}
        rows.append(row | {f"{name}_error": entry["error"] for name, entry in metrics.items()})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}
