"""What every prior offers, whether of all parameters or of some."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.priors.coordinates import Coordinates


class Density(abc.ABC):
    """A normalised density over named, bounded parameters; subclasses are immutable pytrees.

    Attributes:
        coordinates: names, units and bounds of the columns.
    """

    coordinates: Coordinates

    @property
    @abc.abstractmethod
    def meta(self) -> Mapping[str, Any]:
        """What the population means: cosmology, IMF, whether mass is formed or surviving, selection, templates."""

    @abc.abstractmethod
    def sample(self, key: Array, num: int) -> Float[Array, "num dim"]:
        """Draws, in the order of `names`."""

    @abc.abstractmethod
    def _log_prob(self, theta: Float[Array, "num dim"]) -> Float[Array, " num"]:
        """Log density of many."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of theta's last axis."""
        return self.coordinates.names

    @property
    def units(self) -> dict[str, str]:
        """Units by name, readable by astropy; empty when dimensionless."""
        return dict(zip(self.names, self.coordinates.units, strict=True))

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """Lower and upper bound by name."""
        return dict(zip(self.names, self.coordinates.bounds, strict=True))

    @property
    def descriptions(self) -> dict[str, str]:
        """One line on each parameter, by name."""
        return {name: p.description for name, p in zip(self.names, self.coordinates.parameters, strict=True)}

    @property
    def low(self) -> Float[np.ndarray, " dim"]:
        """Lower bounds."""
        return np.array([low for low, _ in self.coordinates.bounds])

    @property
    def high(self) -> Float[np.ndarray, " dim"]:
        """Upper bounds."""
        return np.array([high for _, high in self.coordinates.bounds])

    @property
    def dim(self) -> int:
        """Number of parameters."""
        return len(self.names)

    @jax.jit
    def log_prob(self, theta: Float[Array, "*batch dim"] | Mapping[str, Array]) -> Float[Array, "*batch"]:
        """Log density, -inf outside the bounds.

        Args:
            theta: galaxies as an array whose last axis is in the order of `names`, or as named arrays.

        Raises:
            ValueError: the last axis is not one entry a parameter.
            KeyError: a parameter is missing.
        """
        many, shape = self._flat(self.pack(theta) if isinstance(theta, Mapping) else jnp.asarray(theta, float))
        return self._log_prob(many).reshape(shape)

    @jax.jit
    def grad_log_prob(self, theta: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """Gradient of the log density; zero outside the bounds."""
        return jax.grad(lambda theta: jnp.sum(self.log_prob(theta)))(jnp.asarray(theta, float))

    def pack(self, values: Mapping[str, Array]) -> Float[Array, "*batch dim"]:
        """Named arrays stacked along a last axis. Raises KeyError when one is missing."""
        if missing := [name for name in self.names if name not in values]:
            raise KeyError(f"missing parameters: {', '.join(missing)}")
        return jnp.stack(jnp.broadcast_arrays(*(jnp.asarray(values[name], float) for name in self.names)), axis=-1)

    def unpack(self, theta: Float[Array, "*batch dim"]) -> dict[str, Float[Array, "*batch"]]:
        """Columns by name."""
        return {name: theta[..., i] for i, name in enumerate(self.names)}

    def _flat(self, values: Array) -> tuple[Array, tuple[int, ...]]:
        """Many rows, and the shape that results take."""
        if values.shape[-1:] != (self.dim,):
            raise ValueError(f"the last axis of {values.shape} must be the {self.dim} parameters {self.names}")
        return values.reshape(-1, self.dim), values.shape[:-1]
