"""Are posteriors calibrated? Ranks of the truth (SBC), expected coverage (TARP) and probability integral transforms (PIT).

All take samples that may be weighted: posteriors that were reweighted to another prior are judged like any others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import binom, kstest

from popsed_jax.diagnostics._common import bootstrap, checked_samples, checked_truth, effective_size
from popsed_jax.diagnostics.gridded import cdf_at, normalised


class Uniformity(NamedTuple):
    """How far numbers between 0 and 1 are from uniform.

    Attributes:
        statistic: of Kolmogorov and Smirnov: the largest difference of the distributions.
        p_value: chance of a larger one when they are uniform.
        error: of the statistic, by the bootstrap.
    """

    statistic: float
    p_value: float
    error: float


class Tarp(NamedTuple):
    """Expected coverage of credible regions about random reference points.

    Attributes:
        levels: credibility of the regions.
        coverage: share of the galaxies whose truth lies within its region; equals the level when posteriors are right.
        error: of the coverage, by the bootstrap over galaxies.
    """

    levels: Float[np.ndarray, " level"]
    coverage: Float[np.ndarray, " level"]
    error: Float[np.ndarray, " level"]

    @property
    def largest_gap(self) -> float:
        """The largest difference of coverage and level, of either sign."""
        return float(np.max(np.abs(self.coverage - self.levels)))


def sbc_ranks(
    samples: Float[np.ndarray, "galaxy sample dim"],
    truth: Float[np.ndarray, "galaxy dim"],
    rng: np.random.Generator,
    weights: Float[np.ndarray, "galaxy sample"] | None = None,
) -> Float[np.ndarray, "galaxy dim"]:
    """Rank of the truth among the samples, as a fraction; uniform between 0 and 1 when posteriors are right. (Talts+18)

    Args:
        samples: independent ones: a Markov chain must be thinned, or its ranks pile up at the ends.
        truth: drawn from the prior under which the posteriors were made.
        rng: places the truth among samples that it equals, and within the share of one sample: ranks are continuous.
        weights: of the samples; any scale.

    Raises:
        ValueError: shapes that do not fit, or galaxies with values that are not numbers.

    Notes: uniform ranks do not make posteriors informative: the prior, given for every galaxy, has them too.

    References: arXiv:1804.06788.
    """
    samples, shares = checked_samples(samples, weights)
    if samples.ndim != 3:
        raise ValueError(f"samples of shape {samples.shape}: (galaxy, sample, parameter) wanted")
    truth = checked_truth(truth, (len(samples), samples.shape[2]))
    return np.stack([_ranks(samples[:, :, i], truth[:, i], shares, rng) for i in range(samples.shape[2])], axis=1)


def pit(
    samples: Float[np.ndarray, "galaxy sample"],
    truth: Float[np.ndarray, " galaxy"],
    rng: np.random.Generator,
    weights: Float[np.ndarray, "galaxy sample"] | None = None,
) -> Float[np.ndarray, " galaxy"]:
    """Posterior probability below the truth, of one parameter: its rank among the samples.

    Args, Raises: as `sbc_ranks`, with one parameter.
    """
    samples, shares = checked_samples(samples, weights)
    if samples.ndim != 2:
        raise ValueError(f"samples of shape {samples.shape}: (galaxy, sample) wanted, of one parameter")
    return _ranks(samples, checked_truth(truth, (len(samples),)), shares, rng)


def pit_from_grid(
    grid: Float[np.ndarray, " grid"], density: Float[np.ndarray, "galaxy grid"], truth: Float[np.ndarray, " galaxy"]
) -> Float[np.ndarray, " galaxy"]:
    """Probability below the truth of densities on a grid; 0 or 1 where the truth lies beyond its ends.

    Args:
        density: any positive multiple; linear between the grid's points.

    Raises:
        ValueError: as `gridded.normalised`, or true values that are not numbers.
    """
    grid, density = normalised(grid, density)
    return cdf_at(grid, density, checked_truth(truth, (len(density),)))


def _ranks(
    values: Float[np.ndarray, "galaxy sample"],
    truth: Float[np.ndarray, " galaxy"],
    shares: Float[np.ndarray, "galaxy sample"],
    rng: np.random.Generator,
) -> Float[np.ndarray, " galaxy"]:
    """Fractional rank of the truth: exactly uniform for equal weights when the truth is one more draw.

    The truth has the share of one effective sample, within which its place is random. Without that the ranks of few samples
    would have steps, and an estimate from n samples scatters by as much as a place within 1 / n smooths.
    """
    below = np.sum(shares, axis=1, where=values < truth[:, None])
    ties = np.sum(shares, axis=1, where=values == truth[:, None])
    size = effective_size(shares)
    return np.clip((size * below + rng.random(len(truth)) * (size * ties + 1.0)) / (size + 1.0), 0.0, 1.0)


def tarp(
    samples: Float[np.ndarray, "galaxy sample dim"],
    truth: Float[np.ndarray, "galaxy dim"],
    rng: np.random.Generator,
    weights: Float[np.ndarray, "galaxy sample"] | None = None,
    levels: Float[np.ndarray, " level"] | None = None,
    num_references: int = 20,
    num_bootstrap: int = 200,
) -> Tarp:
    """Expected coverage of all parameters together: of regions about random points, bounded by the truth. (Lemos+23)

    The share of the samples that are closer to a reference point than the truth is uniform when posteriors are right.

    Args:
        samples: independent ones.
        truth: drawn from the prior under which the posteriors were made.
        weights: of the samples; any scale.
        levels: credibilities, 0 to 1; None: 21 of them.
        num_references: for each galaxy. They are samples of other galaxies: they lie where parameters do and know nothing
            of the truth. More of them make the coverage less noisy, not more exact.

    Raises:
        ValueError: shapes that do not fit, galaxies with values that are not numbers, a single galaxy, or parameters that
            are all fixed.

    Notes: distances are of parameters over the geometric mean of their spread over all galaxies and their typical posterior
        width: by the spread alone the vaguest parameter would decide, by the width alone the best known. Too narrow
        posteriors cover too little, above all at high levels, too wide ones too much. The test sees wrong widths and
        correlations, but hardly a shift that all galaxies have in common, which is towards one reference point and away from
        the next: look at `sbc_ranks` too. Neither can tell the prior from a posterior.

    References: arXiv:2302.03026.
    """
    samples, shares = checked_samples(samples, weights)
    if samples.ndim != 3:
        raise ValueError(f"samples of shape {samples.shape}: (galaxy, sample, parameter) wanted")
    num = len(samples)
    truth = checked_truth(truth, (num, samples.shape[2]))
    if num < 2:
        raise ValueError("coverage needs at least two galaxies: reference points are samples of the others")
    levels = np.linspace(0.0, 1.0, 21) if levels is None else np.asarray(levels, float)
    scale = _scales(samples, shares)
    samples, truth = samples[:, :, scale > 0.0] / scale[scale > 0.0], truth[:, scale > 0.0] / scale[scale > 0.0]
    below = np.cumsum(shares, axis=1)
    covered = np.zeros((num, len(levels)))
    for _ in range(num_references):
        other = (np.arange(num) + rng.integers(1, num, num)) % num
        # Rounding may leave the last sum below one.
        pick = np.sum(below[other] < rng.random(num)[:, None] * below[other, -1:], axis=1)
        reference = samples[other, pick]
        distance = np.sum((samples - reference[:, None]) ** 2, axis=2)
        share = _ranks(distance, np.sum((truth - reference) ** 2, axis=1), shares, rng)
        covered += share[:, None] <= levels
    covered /= num_references
    drawn = [np.bincount(rng.integers(num, size=num), minlength=num) @ covered / num for _ in range(num_bootstrap)]
    return Tarp(levels, covered.mean(axis=0), np.std(drawn, axis=0))


def _scales(
    samples: Float[np.ndarray, "galaxy sample dim"], shares: Float[np.ndarray, "galaxy sample"]
) -> Float[np.ndarray, " dim"]:
    """Unit of each parameter in distances; zero for those that are fixed."""
    mean = np.einsum("gs,gsd->gd", shares, samples)
    variance = np.einsum("gs,gsd->gd", shares, (samples - mean[:, None]) ** 2)
    width = np.sqrt(np.median(variance, axis=0))
    spread = np.sqrt(np.mean(variance, axis=0) + np.var(mean, axis=0))
    # The mean of equal numbers may differ from them by rounding.
    scale = np.where(width > 1e-9 * spread, np.sqrt(width * spread), 0.0)
    if not np.any(scale > 0.0):
        raise ValueError("all parameters are fixed: most galaxies' samples do not differ in any")
    return scale


def uniformity(values: Float[np.ndarray, " galaxy"], rng: np.random.Generator, num_bootstrap: int = 200) -> Uniformity:
    """Test of ranks or PITs by Kolmogorov and Smirnov.

    Raises:
        ValueError: values that are not numbers, or not between 0 and 1.
    """
    values = np.asarray(values, float)
    values = checked_truth(values, (values.size,))
    if values.size == 0 or values.min() < 0.0 or values.max() > 1.0:
        raise ValueError("ranks between 0 and 1 wanted, at least one")
    found = bootstrap(lambda rows: {"ks": ks_statistic(rows)}, values, rng, num_bootstrap)["ks"]
    return Uniformity(found["value"], float(kstest(values, "uniform").pvalue), found["error"])


def ks_statistic(values: Float[np.ndarray, " galaxy"]) -> float:
    """Largest difference between the distribution of values and the uniform one."""
    ordered, steps = np.sort(values), np.arange(len(values) + 1) / len(values)
    return float(max(np.max(steps[1:] - ordered), np.max(ordered - steps[:-1])))


def uniform_band(num: int, num_bins: int, level: float = 0.95) -> tuple[float, float]:
    """Counts between which each of `num_bins` equal bins of `num` uniform numbers lies with a given probability."""
    low, high = binom.ppf([0.5 * (1.0 - level), 0.5 * (1.0 + level)], num, 1.0 / num_bins)
    return float(low), float(high)
