"""Densities on a grid, one for each galaxy: linear between the grid's points, nothing beyond its ends."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from popsed_jax.diagnostics._common import refuse

Grid = Float[np.ndarray, " grid"]
Density = Float[np.ndarray, "galaxy grid"]
PerGalaxy = Float[np.ndarray, " galaxy"]


def normalised(grid: Grid, density: Density) -> tuple[Grid, Density]:
    """The grid, and the densities with unit area each.

    Raises:
        ValueError: a grid that does not increase, a shape that does not fit, or a density that is not a number, negative
            or nowhere positive.
    """
    grid, density = np.asarray(grid, float), np.asarray(density, float)
    if grid.ndim != 1 or len(grid) < 2 or not np.all(np.diff(grid) > 0.0):
        raise ValueError(f"a grid of shape {grid.shape}: at least two increasing numbers wanted")
    if density.ndim != 2 or density.shape[1] != len(grid):
        raise ValueError(f"densities of shape {density.shape}: (galaxy, {len(grid)}) wanted, as the grid has points")
    refuse(~np.isfinite(density).all(axis=1), "have a density that is not a number")
    refuse(np.any(density < 0.0, axis=1), "have a negative density")
    area: PerGalaxy = density @ moment_weights(grid)
    refuse(area <= 0.0, "have a density that is zero everywhere")
    return grid, density / area[:, None]


def moment_weights(grid: Grid, power: int = 0) -> Grid:
    """Weight of each point of a density in the integral of z^power p(z), exact up to z^2.

    Simpson's rule in each cell, whose ends' hat functions are 1/2 in its middle.
    """
    low, high = grid[:-1], grid[1:]
    middle = 2.0 * (0.5 * (low + high)) ** power
    sixth = (high - low) / 6.0
    return np.append(sixth * (low**power + middle), 0.0) + np.append(0.0, sixth * (high**power + middle))


def moments(grid: Grid, density: Density) -> tuple[PerGalaxy, PerGalaxy]:
    """Mean and standard deviation; densities of unit area."""
    mean = density @ moment_weights(grid, 1)
    return mean, np.sqrt(np.maximum(density @ moment_weights(grid, 2) - mean**2, 0.0))


def cumulative(grid: Grid, density: Density) -> Density:
    """Probability below each point of the grid; densities of unit area."""
    steps = 0.5 * np.diff(grid) * (density[:, 1:] + density[:, :-1])
    return np.concatenate([np.zeros((len(density), 1)), np.cumsum(steps, axis=1)], axis=1)


def density_at(grid: Grid, density: Density, points: PerGalaxy) -> PerGalaxy:
    """Each galaxy's density at a point of its own."""
    cell, place = _locate(grid, points)
    left, right = _ends(density, cell)
    return np.where((points >= grid[0]) & (points <= grid[-1]), left + place * (right - left), 0.0)


def cdf_at(grid: Grid, density: Density, points: PerGalaxy, below: Density | None = None) -> PerGalaxy:
    """Each galaxy's probability below a point of its own.

    Args:
        below: the `cumulative` of the densities, where it is known already.
    """
    below = cumulative(grid, density) if below is None else below
    cell, place = _locate(grid, points)
    left, right = _ends(density, cell)
    rise = np.diff(grid)[cell] * place * (left + 0.5 * place * (right - left))
    return np.minimum(_take(below, cell) + rise, 1.0)


def quantiles(
    grid: Grid, density: Density, levels: Float[np.ndarray, " level"], below: Density | None = None
) -> Float[np.ndarray, "galaxy level"]:
    """Where each galaxy's probability below reaches given levels.

    Args:
        levels: between 0 and 1.
        below: the `cumulative` of the densities, where it is known already.
    """
    below = cumulative(grid, density) if below is None else below
    found = np.empty((len(density), len(levels)))
    for column, level in enumerate(levels):
        cell = np.clip(np.sum(below < level, axis=1) - 1, 0, len(grid) - 2)
        width = np.diff(grid)[cell]
        missing = np.maximum(level - _take(below, cell), 0.0) / width
        left, right = _ends(density, cell)
        # The root of left t + (right - left) t^2 / 2 = missing in the form that does not cancel; an empty cell has none.
        root = left + np.sqrt(np.maximum(left**2 + 2.0 * (right - left) * missing, 0.0))
        place = np.divide(2.0 * missing, root, out=np.zeros_like(root), where=root > 0.0)
        found[:, column] = grid[cell] + width * np.minimum(place, 1.0)
    return found


def squared_area(grid: Grid, density: Density) -> PerGalaxy:
    """Integral of each density's square."""
    left, right = density[:, :-1], density[:, 1:]
    return (left**2 + left * right + right**2) @ (np.diff(grid) / 3.0)


def binned(
    grid: Grid, samples: Float[np.ndarray, "galaxy sample"], shares: Float[np.ndarray, "galaxy sample"]
) -> Density:
    """Mass at each point of an equally spaced grid: each sample's is shared by its two neighbours, linearly.

    Raises:
        ValueError: a grid that is not equally spaced, or samples beyond its ends.
    """
    grid, num = np.asarray(grid, float), len(samples)
    step = (grid[-1] - grid[0]) / (len(grid) - 1)
    if not np.allclose(np.diff(grid), step, rtol=1e-4, atol=0.0) or step <= 0.0:
        raise ValueError("the grid must be equally spaced and increasing")
    outside = (samples < grid[0]) | (samples > grid[-1])
    if np.any(outside):
        raise ValueError(
            f"{np.sum(outside)} samples of {np.sum(outside.any(axis=1))} of {num} galaxies lie outside the grid, "
            f"{grid[0]:g} to {grid[-1]:g}: widen it"
        )
    position = (samples - grid[0]) / step
    cell = np.minimum(position.astype(np.int64), len(grid) - 2)
    upper = shares * (position - cell)
    place = (cell + np.arange(num)[:, None] * len(grid)).ravel()
    size = num * len(grid)
    mass = np.bincount(place, (shares - upper).ravel(), size)
    mass += np.bincount(place + 1, upper.ravel(), size)
    return mass.reshape(num, len(grid))


def _locate(grid: Grid, points: PerGalaxy) -> tuple[Int[np.ndarray, " galaxy"], PerGalaxy]:
    """Each point's cell and its place within, 0 to 1; points beyond the ends are at the ends."""
    cell = np.clip(np.searchsorted(grid, points, side="right") - 1, 0, len(grid) - 2)
    return cell, np.clip((points - grid[cell]) / np.diff(grid)[cell], 0.0, 1.0)


def _ends(density: Density, cell: Int[np.ndarray, " galaxy"]) -> tuple[PerGalaxy, PerGalaxy]:
    return _take(density, cell), _take(density, cell + 1)


def _take(table: Density, column: Int[np.ndarray, " galaxy"]) -> PerGalaxy:
    return table[np.arange(len(table)), column]
