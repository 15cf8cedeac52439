"""Densities on a grid from samples: a Gaussian kernel whose width follows each galaxy's."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.fft import dct
from scipy.stats import norm

from popsed_jax.diagnostics._common import checked_samples, effective_size
from popsed_jax.diagnostics.gridded import binned, moment_weights, moments, quantiles

# Galaxies at a time: the arrays of a block stay in the processor's cache, and memory does not grow with the catalogue.
BLOCK = 2048
# Share of the samples in the shortest interval that tells how wide a peak is, and how many places it is tried at.
_QUARTER, _PLACES = 0.25, 20


def density_on_grid(
    samples: Float[np.ndarray, "galaxy sample"],
    grid: Float[np.ndarray, " grid"],
    weights: Float[np.ndarray, "galaxy sample"] | None = None,
) -> Float[np.ndarray, "galaxy grid"]:
    """p(z) from samples of redshift: a Gaussian kernel estimate, of unit area on the grid.

    Each galaxy has a bandwidth of its own, by the two-stage direct plug-in rule (Sheather & Jones 1991) from its effective
    number of samples and its width. The width is that of a peak, from the shortest interval with a quarter of the samples (or
    the standard deviation, where that is less), so that distant peaks are not blurred into each other.

    Args:
        samples: between the ends of the grid. What would be smoothed over an end is reflected there.
        grid: equally spaced.
        weights: of the samples; any scale.

    Raises:
        ValueError: shapes that do not fit, galaxies with values that are not numbers, samples outside the grid, or a grid
            that is not equally spaced.

    Notes: a p(z) is not narrower than the grid's step.

    References: Wand & Jones 1995, "Kernel Smoothing", section 3.6.1; doi:10.1111/j.2517-6161.1991.tb01857.x.
    """
    samples, shares = checked_samples(samples, weights)
    if samples.ndim != 2:
        raise ValueError(f"samples of shape {samples.shape}: (galaxy, sample) wanted, of redshift alone")
    grid = np.asarray(grid, float)
    density = np.empty((len(samples), len(grid)))
    for start in range(0, len(samples), BLOCK):
        block = slice(start, start + BLOCK)
        density[block] = _smooth(grid, binned(grid, samples[block], shares[block]), effective_size(shares[block]))
    return density


def _smooth(
    grid: Float[np.ndarray, " grid"], mass: Float[np.ndarray, "galaxy grid"], size: Float[np.ndarray, " galaxy"]
) -> Float[np.ndarray, "galaxy grid"]:
    """Density of binned samples, smoothed as much as befits each galaxy's width and number of samples."""
    step = (grid[-1] - grid[0]) / (len(grid) - 1)
    density = mass / moment_weights(grid)
    # A cosine series continues the density evenly beyond both ends: reflection.
    series = dct(density, type=1, axis=1)
    bandwidth = _bandwidth(0.5 * step * series, grid[-1] - grid[0], _peak_width(grid, density), size)
    # Sharing a sample between two points and drawing lines between points blur by step^2 / 6 each, on average.
    steps = np.maximum((bandwidth / step) ** 2 - 1.0 / 3.0, 0.0)
    # The damping is that of a Gaussian on the lattice (Lindeberg 1990): of exactly this variance and never negative, as a
    # sampled or truncated one is.
    series *= np.exp(-steps[:, None] * (1.0 - np.cos(np.linspace(0.0, np.pi, len(grid)))))
    smooth = dct(series, type=1, axis=1) / (2.0 * (len(grid) - 1))
    return np.maximum(smooth, 0.0)  # rounding


def _bandwidth(
    series: Float[np.ndarray, "galaxy grid"],
    length: float,
    width: Float[np.ndarray, " galaxy"],
    size: Float[np.ndarray, " galaxy"],
) -> Float[np.ndarray, " galaxy"]:
    """Standard deviation of the kernel, from the roughness of the density itself. (Wand & Jones 1995, section 3.6.1)

    Args:
        series: the density's cosine coefficients; the first is its area, 1.
        length: of the grid.
        width: of a Gaussian with which the first stage begins.
        size: number of samples.
    """
    frequency = np.pi * np.arange(series.shape[1]) / length
    power = series**2 * (2.0 / length)

    def roughness(order: int, pilot: np.ndarray) -> np.ndarray:
        """Integral of the squared derivative of some order, as a kernel of width `pilot` sees it (Parseval)."""
        return np.sum(power * frequency ** (2 * order) * np.exp(-0.5 * (pilot[:, None] * frequency) ** 2), axis=1)

    fourth = 105.0 / (32.0 * np.sqrt(np.pi) * width**9)  # of a Gaussian
    third = roughness(3, (30.0 / (np.sqrt(2.0 * np.pi) * fourth * size)) ** (1.0 / 9.0))
    second = roughness(2, (6.0 / (np.sqrt(2.0 * np.pi) * third * size)) ** (1.0 / 7.0))
    return (0.5 / (np.sqrt(np.pi) * second * size)) ** 0.2


def _peak_width(
    grid: Float[np.ndarray, " grid"], density: Float[np.ndarray, "galaxy grid"]
) -> Float[np.ndarray, " galaxy"]:
    """Standard deviation of a Gaussian whose shortest interval with a quarter of the mass is as long as the density's."""
    reach = quantiles(grid, density, np.linspace(0.0, 1.0, _PLACES + 1))
    across = round(_QUARTER * _PLACES)
    shortest = np.min(reach[:, across:] - reach[:, :-across], axis=1)
    return np.minimum(shortest / (2.0 * norm.ppf(0.5 + 0.5 * _QUARTER)), moments(grid, density)[1])
