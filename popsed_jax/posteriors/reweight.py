"""From the prior that posteriors were drawn under to another one, without drawing or training again.

Samples of p(theta | data) under a proposal become samples under another prior with weights prior / proposal, because the
likelihood is the same (importance sampling: Robert & Casella 2004, sec. 3.3). The effective sample size says what is left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.population.batching import map_batches
from popsed_jax.population.model import Population

# Below this effective sample size a weighted posterior is a handful of samples.
LOW_ESS = 30.0
_BLOCK = 512  # galaxies whose samples are sorted at once: copies of all would be several times the samples' memory


class Weighted(NamedTuple):
    """Samples with weights.

    Attributes:
        theta: samples.
        weights: each galaxy's sum to one.
        ess: effective sample size (Kish 1965), of each galaxy.
    """

    theta: Float[np.ndarray, "galaxy sample dim"]
    weights: Float[np.ndarray, "galaxy sample"]
    ess: Float[np.ndarray, " galaxy"]

    @property
    def low(self) -> np.ndarray:
        """Galaxies of which next to no samples are left."""
        return self.ess < min(LOW_ESS, 0.5 * self.weights.shape[1])

    def mean(self) -> Float[np.ndarray, "galaxy dim"]:
        """Posterior means."""
        return np.einsum("gs,gsd->gd", self.weights, self.theta)

    def quantiles(self, levels: Float[np.ndarray, " level"]) -> Float[np.ndarray, "galaxy level dim"]:
        """Quantiles of each parameter: where the weights of the samples below, half of its own counted, reach the level."""
        starts = range(0, len(self.theta), _BLOCK)
        blocks = [_quantiles(self.theta[i : i + _BLOCK], self.weights[i : i + _BLOCK], levels) for i in starts]
        return np.concatenate(blocks) if blocks else np.empty((0, len(levels), self.theta.shape[2]))

    def resample(self, rng: np.random.Generator, num: int) -> Float[np.ndarray, "galaxy draw dim"]:
        """Samples without weights, drawn with replacement: systematically, which adds the least scatter."""
        start = rng.random((len(self.theta), 1))
        at = (start + np.arange(num)) / num
        cumulative = np.cumsum(self.weights, axis=1)
        rows = [np.searchsorted(row, place * row[-1]) for row, place in zip(cumulative, at, strict=True)]
        index = np.minimum(np.stack(rows), self.theta.shape[1] - 1)
        return np.take_along_axis(self.theta, index[..., None], axis=1)


def _quantiles(
    theta: Float[np.ndarray, "galaxy sample dim"],
    weights: Float[np.ndarray, "galaxy sample"],
    levels: Float[np.ndarray, " level"],
) -> Float[np.ndarray, "galaxy level dim"]:
    order = np.argsort(theta, axis=1)
    values = np.take_along_axis(theta, order, axis=1)
    weights = np.take_along_axis(np.broadcast_to(weights[..., None], values.shape), order, axis=1)
    below = np.cumsum(weights, axis=1) - 0.5 * weights
    last = values.shape[1] - 1
    found = np.empty((len(values), len(levels), values.shape[2]))
    for i, level in enumerate(levels):
        rank = np.sum(below < level, axis=1, keepdims=True)
        ends = [np.clip(rank - 1, 0, last), np.clip(rank, 0, last)]
        (x_0, x_1), (y_0, y_1) = ([np.take_along_axis(part, end, axis=1) for end in ends] for part in (below, values))
        # Beyond the first and the last sample there is nothing between the two.
        part = np.divide(level - x_0, x_1 - x_0, out=np.zeros_like(x_0), where=x_1 > x_0)
        found[:, i] = (y_0 + np.clip(part, 0.0, 1.0) * (y_1 - y_0))[:, 0]
    return found


def reweight(
    theta: Float[np.ndarray, "galaxy sample dim"],
    log_from: Float[np.ndarray, "galaxy sample"],
    log_to: Float[np.ndarray, "*member galaxy sample"],
    shares: Float[np.ndarray, " member"] | None = None,
) -> Weighted:
    """Weights that take samples from one prior to another, or to the average of the posteriors under several.

    Args:
        theta: samples of posteriors.
        log_from: log of the prior that they were drawn under, up to a constant.
        log_to: log of the wanted prior; with a leading axis, of several.
        shares: of these several in the average; each counts by it alone, and not by how well it suits the galaxy, because
            they were learned from galaxies among which this one was.

    Returns:
        Weights; all alike where the wanted prior excludes every sample, with an effective sample size of zero.
    """
    each = np.asarray(log_to, float)
    each = each[None] if each.ndim == 2 else each
    part = np.ones(len(each)) / len(each) if shares is None else np.asarray(shares, float) / np.sum(shares)
    weights = np.zeros(theta.shape[:2])
    for target, share in zip(each, part, strict=True):
        # A sample that either prior excludes has no weight.
        usable = np.isfinite(target) & np.isfinite(log_from)
        log_weights = np.subtract(target, log_from, where=usable, out=np.full(target.shape, -np.inf))
        weights += share * _normalised(log_weights)
    total = weights.sum(axis=1, keepdims=True)
    lost = total[:, 0] <= 0.0
    weights = np.where(lost[:, None], 1.0 / theta.shape[1], weights / np.where(lost[:, None], 1.0, total))
    ess = np.where(lost, 0.0, 1.0 / np.sum(weights**2, axis=1))
    return Weighted(theta, weights, ess)


def average(parts: Sequence[Weighted], shares: Iterable[float]) -> Weighted:
    """The average of several posteriors of the same galaxies by shares.

    A part of which no sample is left does not count; where none is left of any, the effective sample size is zero.
    """
    counted = np.stack([share * (part.ess > 0.0) for part, share in zip(parts, shares, strict=True)], axis=1)
    total = counted.sum(axis=1, keepdims=True)
    counted = np.where(total > 0.0, counted / np.where(total > 0.0, total, 1.0), 1.0 / len(parts))
    weights = np.concatenate([part.weights * counted[:, i : i + 1] for i, part in enumerate(parts)], axis=1)
    ess = np.where(total[:, 0] > 0.0, 1.0 / np.sum(weights**2, axis=1), 0.0)
    return Weighted(np.concatenate([part.theta for part in parts], axis=1), weights, ess)


def _normalised(log_weights: np.ndarray) -> np.ndarray:
    """Weights of each galaxy that sum to one; none where all are excluded."""
    top = log_weights.max(axis=1, keepdims=True)
    weights = np.exp(log_weights - np.where(np.isfinite(top), top, 0.0))
    total = weights.sum(axis=1, keepdims=True)
    return weights / np.where(total > 0.0, total, 1.0)


def member_log_probs(
    population: Population, theta: Float[np.ndarray, "galaxy sample dim"]
) -> Float[np.ndarray, "member galaxy sample"]:
    """Log density of each member of a population at samples."""
    flat = map_batches(_member_log_probs, population, theta.reshape(-1, theta.shape[-1]))
    return np.moveaxis(flat.reshape(*theta.shape[:2], -1), -1, 0)


def _member_log_probs(population: Population, theta: Float[Array, "num dim"]) -> Float[Array, "num member"]:
    return population.member_log_probs(theta).T


def log_prob_of(prior: object, theta: Float[np.ndarray, "galaxy sample dim"]) -> Float[np.ndarray, "galaxy sample"]:
    """Log density of any prior with a `log_prob`, at samples.

    Raises:
        TypeError: it has none.
    """
    if not hasattr(prior, "log_prob"):
        raise TypeError(f"a prior needs a method log_prob(theta); {type(prior).__name__} has none")
    flat = theta.reshape(-1, theta.shape[-1])
    pieces = [
        np.asarray(prior.log_prob(jnp.asarray(piece))) for piece in np.array_split(flat, max(1, len(flat) // 65536))
    ]
    return np.concatenate(pieces).reshape(theta.shape[:2])


def as_prior(population: Population, number: int) -> Population:
    """One member of a population, alone."""
    alone = jax.tree.map(lambda leaf: leaf[number : number + 1], population.flows)
    return dataclasses.replace(population, flows=alone, weights=jnp.ones(1, population.weights.dtype))


def log_flat(
    population: Population, theta: Float[np.ndarray, "galaxy sample dim"]
) -> Float[np.ndarray, "galaxy sample"]:
    """Log density of the analytic prior: flat between the bounds, a flat Dirichlet over the history's weights."""
    flat = map_batches(_log_flat, population, theta.reshape(-1, theta.shape[-1]))
    return flat.reshape(theta.shape[:2])


def _log_flat(population: Population, theta: Array) -> Array:
    u = population.space.to_u(theta)
    log_prob = jax.scipy.stats.norm.logpdf(u).sum(axis=-1) - population.space.log_det(u)
    return jnp.where(population.space.inside(theta), log_prob, -jnp.inf)
