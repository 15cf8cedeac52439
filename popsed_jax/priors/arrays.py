"""A prior for code that works on NumPy arrays of any number of rows."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.priors.density import Density
from popsed_jax.priors.partial import PartialPrior
from popsed_jax.priors.prior import Prior

LogLikelihood = Callable[[Float[np.ndarray, "num dim"]], Float[np.ndarray, " num"]]
# Rows are computed in blocks of a power of two, so that few sizes are compiled, and of no more than fit in a processor's cache.
_LARGEST_BLOCK = {"cpu": 256}
_LARGEST_BLOCK_ELSEWHERE = 65_536


class ArrayPrior:
    """The functions of a prior on NumPy arrays, in double precision at both ends.

    Args:
        prior: joint, conditional or marginal.
    """

    def __init__(self, prior: Density) -> None:
        self.prior = prior
        self.dim, self.names = prior.dim, prior.names
        self.low, self.high = prior.low, prior.high
        # The arrays alone are arguments of what is compiled: a nested sampler asks for one point at a time, and to compare all
        # that a prior says of itself takes longer than to compute its density.
        self._leaves, self._structure = jax.tree.flatten(prior)
        self._compiled: dict[str, Callable[..., Array]] = {}

    def log_prob(self, theta: Float[np.ndarray, "*batch dim"]) -> Float[np.ndarray, "*batch"]:
        """Log density, -inf outside the bounds and where theta is not a number."""
        return self._by_blocks("log_prob", theta)

    def grad_log_prob(self, theta: Float[np.ndarray, "*batch dim"]) -> Float[np.ndarray, "*batch dim"]:
        """Gradient of the log density."""
        return self._by_blocks("grad_log_prob", theta)

    def transform(self, cube: Float[np.ndarray, "*batch dim"]) -> Float[np.ndarray, "*batch dim"]:
        """theta of points of the unit cube, within the bounds in double precision too."""
        joint(self.prior)
        return np.clip(self._by_blocks("transform", cube), self.low, self.high)

    def inverse_transform(self, theta: Float[np.ndarray, "*batch dim"]) -> Float[np.ndarray, "*batch dim"]:
        """A point of the unit cube for each theta."""
        joint(self.prior)
        return self._by_blocks("inverse_transform", theta)

    def sample(self, key: Array | int, num: int) -> Float[np.ndarray, "num dim"]:
        """Draws.

        Args:
            key: or a seed.
        """
        key = jax.random.key(key) if isinstance(key, int) else key
        return np.clip(np.asarray(self.prior.sample(key, num), float), self.low, self.high)

    def log_posterior(self, log_likelihood: LogLikelihood, theta: np.ndarray) -> np.ndarray:
        """Sum of both; the likelihood is asked for rows within the bounds only."""
        total = np.atleast_1d(self.log_prob(theta))
        rows = np.atleast_2d(theta)
        inside = np.isfinite(total)
        if inside.any():
            total[inside] += log_likelihood(rows[inside])
        return total.reshape(theta.shape[:-1])

    def _by_blocks(self, name: str, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values, float)
        if values.shape[-1:] != (self.dim,):
            raise ValueError(f"the last axis of {values.shape} must be the {self.dim} parameters {self.names}")
        rows = values.reshape(-1, self.dim)
        function = self._function(name)
        largest = _LARGEST_BLOCK.get(jax.default_backend(), _LARGEST_BLOCK_ELSEWHERE)
        size = min(largest, 1 << max(len(rows) - 1, 0).bit_length())
        started = []
        for start in range(0, len(rows), size):
            block = rows[start : start + size]
            padded = np.resize(block, (size, self.dim))
            started.append((function(self._leaves, padded), len(block)))
        parts = [np.asarray(values, float)[:num] for values, num in started]
        result = np.concatenate(parts) if parts else np.empty(0)
        return result.reshape(values.shape[:-1] + result.shape[1:])

    def _function(self, name: str) -> Callable[..., Array]:
        """A method of the prior as a function of its arrays."""
        if name not in self._compiled:

            def function(leaves: list[Array], values: Array) -> Array:
                prior = jax.tree.unflatten(self._structure, leaves)
                return getattr(prior, name)(values)

            self._compiled[name] = jax.jit(function)
        return self._compiled[name]


def joint(prior: Density) -> Prior:
    """The prior, when it has a map from the unit cube.

    Raises:
        TypeError: it is conditional or marginal.
    """
    if isinstance(prior, Prior):
        return prior
    assert isinstance(prior, PartialPrior)
    raise TypeError(
        "a conditional or marginal prior has no map from the unit cube: give the joint prior and put what is given into the "
        "likelihood, or use a sampler that works with log_prob"
    )
