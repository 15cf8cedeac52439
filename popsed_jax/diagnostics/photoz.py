"""Redshifts and their densities against spectroscopic ones: the metrics that photometric redshifts are compared by.

Every table is a dictionary: `value` and bootstrap `error` by the metric's name.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from popsed_jax.diagnostics._common import bootstrap, checked_samples, checked_truth, effective_size, refuse
from popsed_jax.diagnostics.calibration import ks_statistic
from popsed_jax.diagnostics.gridded import (
    cdf_at,
    cumulative,
    density_at,
    normalised,
    squared_area,
)
from popsed_jax.diagnostics.kernel import density_on_grid

OUTLIERS = {"outliers_15": 0.15, "outliers_05": 0.05}
# Gauss-Legendre points of [0, 1]: exact for squares of a cell's distribution function, which is quadratic.
_NODES, _NODE_WEIGHTS = 0.5 + np.sqrt(0.15) * np.array([-1.0, 0.0, 1.0]), np.array([5.0, 8.0, 5.0]) / 18.0


def scaled_error(
    redshift: Float[np.ndarray, " galaxy"], truth: Float[np.ndarray, " galaxy"]
) -> Float[np.ndarray, " galaxy"]:
    """(z - z_true) / (1 + z_true).

    Raises:
        ValueError: shapes that do not fit, values that are not numbers, or true redshifts of -1 or less.
    """
    redshift = np.asarray(redshift, float)
    truth = checked_truth(truth, redshift.shape)
    refuse(~np.isfinite(redshift), "have a redshift that is not a number")
    refuse(truth <= -1.0, "have a true redshift of -1 or less")
    return (redshift - truth) / (1.0 + truth)


def point_metrics(
    redshift: Float[np.ndarray, " galaxy"],
    truth: Float[np.ndarray, " galaxy"],
    rng: np.random.Generator,
    num_bootstrap: int = 200,
) -> dict[str, dict[str, float]]:
    """Bias, scatter and outliers of point estimates, in dz = (z - z_true) / (1 + z_true).

    Returns: `bias`, the median of dz; `sigma_nmad`, 1.4826 times the median of |dz - bias| (Brammer+08); `outliers_15` and
        `outliers_05`, the shares of |dz| > 0.15 and > 0.05.

    Raises:
        ValueError: as `scaled_error`.

    References: arXiv:0807.1533.
    """

    def statistics(error: np.ndarray) -> dict[str, float]:
        bias = np.median(error)
        table = {"bias": bias, "sigma_nmad": 1.4826 * np.median(np.abs(error - bias))}
        return table | {name: np.mean(np.abs(error) > limit) for name, limit in OUTLIERS.items()}

    return bootstrap(statistics, scaled_error(redshift, truth), rng, num_bootstrap)


def density_metrics(
    grid: Float[np.ndarray, " grid"],
    density: Float[np.ndarray, "galaxy grid"],
    truth: Float[np.ndarray, " galaxy"],
    rng: np.random.Generator,
    num_bootstrap: int = 200,
) -> dict[str, dict[str, float]]:
    """Scores of densities on a grid.

    Returns: `crps`, the mean of `crps_from_grid`; `cde_loss`, the mean of `cde_loss`; `pit_ks`, the statistic of Kolmogorov and
        Smirnov of the PIT. Lower is better.

    Raises:
        ValueError: as `gridded.normalised`, or true values that are not numbers.

    Notes: `pit_ks` alone can be gamed: n(z), given for every galaxy, has a perfect one (see `trainz`; Schmidt+20).

    References: arXiv:2001.03621.
    """
    grid, density = normalised(grid, density)
    truth = checked_truth(truth, (len(density),))
    columns = (crps_from_grid(grid, density, truth), cde_loss(grid, density, truth), cdf_at(grid, density, truth))

    def statistics(rows: np.ndarray) -> dict[str, float]:
        crps, loss = np.mean(rows[:, :2], axis=0)
        return {"crps": crps, "cde_loss": loss, "pit_ks": ks_statistic(rows[:, 2])}

    return bootstrap(statistics, np.stack(columns, axis=1), rng, num_bootstrap)


def photoz_metrics(
    redshift: Float[np.ndarray, " galaxy"],
    grid: Float[np.ndarray, " grid"],
    density: Float[np.ndarray, "galaxy grid"],
    truth: Float[np.ndarray, " galaxy"],
    rng: np.random.Generator,
    num_bootstrap: int = 200,
) -> dict[str, dict[str, float]]:
    """`point_metrics` of the redshifts and `density_metrics` of the densities, in one table."""
    points = point_metrics(redshift, truth, rng, num_bootstrap)
    return points | density_metrics(grid, density, truth, rng, num_bootstrap)


def crps_from_samples(
    samples: Float[np.ndarray, "galaxy sample"],
    truth: Float[np.ndarray, " galaxy"],
    weights: Float[np.ndarray, "galaxy sample"] | None = None,
) -> Float[np.ndarray, " galaxy"]:
    """Continuous ranked probability score: E|X - truth| - E|X - X'| / 2, in the parameter's unit; lower is better.

    Args:
        weights: of the samples; any scale.

    Raises:
        ValueError: shapes that do not fit, or galaxies with values that are not numbers.

    Notes: the mean of |X - X'| is over different samples: few samples score like many, on average. (Ferro 2014)

    References: Gneiting & Raftery 2007, eq. 21; doi:10.1002/qj.2270.
    """
    samples, shares = checked_samples(samples, weights)
    if samples.ndim != 2:
        raise ValueError(f"samples of shape {samples.shape}: (galaxy, sample) wanted, of one parameter")
    truth = checked_truth(truth, (len(samples),))
    miss = np.sum(shares * np.abs(samples - truth[:, None]), axis=1)
    order = np.argsort(samples, axis=1)
    ordered = np.take_along_axis(samples, order, axis=1)
    below = np.cumsum(np.take_along_axis(shares, order, axis=1), axis=1)[:, :-1]
    # E|X - X'| is twice the integral of F (1 - F); pairs of a sample with itself are 1 / ESS of all.
    spread = np.sum(2.0 * below * np.maximum(1.0 - below, 0.0) * np.diff(ordered, axis=1), axis=1)
    different = 1.0 - 1.0 / effective_size(shares)
    # A galaxy whose weight lies on one sample has no other to differ from.
    return miss - 0.5 * np.divide(spread, different, out=np.zeros_like(spread), where=different > 1e-12)


def crps_from_grid(
    grid: Float[np.ndarray, " grid"], density: Float[np.ndarray, "galaxy grid"], truth: Float[np.ndarray, " galaxy"]
) -> Float[np.ndarray, " galaxy"]:
    """Continuous ranked probability score of densities on a grid: integral of (F(z) - [z > truth])^2, exactly.

    Raises:
        ValueError: as `gridded.normalised`, or true values that are not numbers.

    References: Gneiting & Raftery 2007, eq. 20.
    """
    grid, density = normalised(grid, density)
    truth = checked_truth(truth, (len(density),))
    below = cumulative(grid, density)
    width, left, right = np.diff(grid), density[:, :-1], density[:, 1:]
    score = np.maximum(grid[0] - truth, 0.0) + np.maximum(truth - grid[-1], 0.0)
    cell = np.clip(np.searchsorted(grid, truth, side="right") - 1, 0, len(grid) - 2)
    before = np.arange(len(grid) - 1) < cell[:, None]
    for place, weight in zip(_NODES, _NODE_WEIGHTS, strict=True):
        distribution = below[:, :-1] + width * place * (left + 0.5 * place * (right - left))
        square = np.where(before, distribution, 1.0 - distribution) ** 2
        score += square @ (weight * width)
    return score + _partial_cell(grid, density, below, truth, cell)


def _partial_cell(
    grid: np.ndarray, density: np.ndarray, below: np.ndarray, truth: np.ndarray, cell: np.ndarray
) -> np.ndarray:
    """What a truth inside its cell changes: up to it F^2 counts, not (1 - F)^2; their difference is 2 F - 1."""
    width = np.diff(grid)[cell]
    part = np.clip((truth - grid[cell]) / width, 0.0, 1.0)
    row = np.arange(len(truth))
    start, left, right = below[row, cell], density[row, cell], density[row, cell + 1]
    integral = start * part + width * (0.5 * left * part**2 + (right - left) * part**3 / 6.0)
    return width * (2.0 * integral - part)


def cde_loss(
    grid: Float[np.ndarray, " grid"], density: Float[np.ndarray, "galaxy grid"], truth: Float[np.ndarray, " galaxy"]
) -> Float[np.ndarray, " galaxy"]:
    """Integral of p(z)^2 - 2 p(truth): its mean is the squared distance to the true conditional density, less a constant.

    Lower is better; the densities that made the truth have the lowest. (Izbicki & Lee 2017, eq. 7)

    Raises:
        ValueError: as `gridded.normalised`, or true values that are not numbers.

    References: arXiv:1704.08095; arXiv:1908.11523.
    """
    grid, density = normalised(grid, density)
    truth = checked_truth(truth, (len(density),))
    return squared_area(grid, density) - 2.0 * density_at(grid, density, truth)


def trainz(
    redshifts: Float[np.ndarray, " train"], grid: Float[np.ndarray, " grid"], num: int
) -> Float[np.ndarray, "galaxy grid"]:
    """The control: the redshift distribution of a training set as the density of every galaxy, whatever its photometry.

    Its PIT is uniform, its CDE loss useless: what does not beat it has learned nothing of single galaxies. (Schmidt+20)

    Args:
        redshifts: of the training set; smoothed as `density_on_grid` does.
        grid: equally spaced.
        num: galaxies.

    Raises:
        ValueError: redshifts that are not numbers or outside the grid, or a grid that is not equally spaced.

    References: arXiv:2001.03621.
    """
    redshifts = np.asarray(redshifts, float)
    refuse(~np.isfinite(redshifts), "have a redshift that is not a number")
    return np.broadcast_to(density_on_grid(redshifts[None], grid), (num, len(grid)))
