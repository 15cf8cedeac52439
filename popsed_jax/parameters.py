"""Named, bounded galaxy parameters and the map between theta and the unconstrained u."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr, ndtri
from jax.scipy.stats import norm
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One property of a galaxy.

    Args:
        name: the word used everywhere (configuration, columns, priors).
        low, high: bounds [unit].
        unit: astropy-readable unit, empty when dimensionless.
        label: LaTeX for figures.
        description: one line for the files' headers.
        power: a standard normal u becomes ``low + (high - low) * Phi(u)**(1/power)``, i.e. a Beta(power, 1) variate
            between the bounds. 1 is uniform; the stick-breaking variables of a flat Dirichlet over four weights have
            3, 2 and 1.
    """

    name: str
    low: float
    high: float
    unit: str = ""
    label: str = ""
    description: str = ""
    power: float = 1.0

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"parameter {self.name!r}: low = {self.low} must be finite and below high = {self.high}")
        if self.power <= 0:
            raise ValueError(f"parameter {self.name!r}: power must be positive, got {self.power}")


@dataclasses.dataclass(frozen=True)
class ParameterSpace:
    """An ordered set of parameters. Hashable, so that it may be a static argument of a compiled function."""

    parameters: tuple[Parameter, ...]

    def __post_init__(self) -> None:
        """Refuse repeated names."""
        repeated = {p.name for p in self.parameters if self.names.count(p.name) > 1}
        if repeated:
            raise ValueError(f"parameters given twice: {', '.join(sorted(repeated))}")

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names, in order."""
        return tuple(p.name for p in self.parameters)

    def __len__(self) -> int:
        """Number of parameters."""
        return len(self.parameters)

    def __getitem__(self, name: str) -> Parameter:
        """The parameter of that name."""
        return self.parameters[self.index(name)]

    def index(self, name: str) -> int:
        """Position of a parameter. Raises KeyError that names the nearest one."""
        try:
            return self.names.index(name)
        except ValueError:
            near = difflib.get_close_matches(name, self.names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise KeyError(f"no parameter {name!r} among {', '.join(self.names)}{hint}") from None

    def replace_bounds(self, bounds: Mapping[str, tuple[float, float]]) -> ParameterSpace:
        """The same space with other bounds for some parameters."""
        for name in bounds:
            self.index(name)

        def bounded(parameter: Parameter) -> Parameter:
            low, high = bounds.get(parameter.name, (parameter.low, parameter.high))
            return dataclasses.replace(parameter, low=float(low), high=float(high))

        return ParameterSpace(tuple(bounded(parameter) for parameter in self.parameters))

    def unpack(self, theta: Float[Array, " dim"]) -> dict[str, Float[Array, ""]]:
        """Split one galaxy's vector into scalars by name."""
        return {name: theta[i] for i, name in enumerate(self.names)}

    def pack(self, values: Mapping[str, Array]) -> Float[Array, "*batch dim"]:
        """Stack named arrays along a last axis. Raises KeyError when one is missing."""
        missing = [name for name in self.names if name not in values]
        if missing:
            raise KeyError(f"missing parameters: {', '.join(missing)}")
        return jnp.stack([jnp.asarray(values[name]) for name in self.names], axis=-1)

    def _constants(self) -> tuple[Array, Array, Array]:
        low = jnp.array([p.low for p in self.parameters])
        width = jnp.array([p.high - p.low for p in self.parameters])
        return low, width, jnp.array([p.power for p in self.parameters])

    def to_theta(self, u: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """theta = low + (high - low) Phi(u)^(1/power); a standard normal u is the flat prior (Li+24, sec. 3)."""
        low, width, power = self._constants()
        return low + width * jnp.exp(log_ndtr(u) / power)

    def to_u(self, theta: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """Inverse of `to_theta`. Values on a bound go to the largest u that the precision can tell from it."""
        low, width, power = self._constants()
        tiny = jnp.finfo(jnp.result_type(theta, float)).eps
        fraction = jnp.clip((theta - low) / width, 0.0, 1.0) ** power
        # The quantile is infinite at 0 and 1, which a draw rounded to a bound reaches.
        return ndtri(jnp.clip(fraction, tiny, 1.0 - tiny))

    def log_det(self, u: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
        """log |d theta / d u|, summed over parameters."""
        _, width, power = self._constants()
        return jnp.sum(jnp.log(width / power) + norm.logpdf(u) + (1.0 / power - 1.0) * log_ndtr(u), axis=-1)

    def inside(self, theta: Float[Array, "*batch dim"]) -> Array:
        """Whether every parameter is within its bounds."""
        low, width, _ = self._constants()
        return jnp.all((theta >= low) & (theta <= low + width), axis=-1)

    def sample_flat(self, key: Array, num: int) -> Float[Array, "num dim"]:
        """Draws of the flat prior (flat in the bounds; flat Dirichlet over the history's weights)."""
        return self.to_theta(jax.random.normal(key, (num, len(self))))


__all__ = ["Parameter", "ParameterSpace"]
