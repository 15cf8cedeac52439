"""Named, bounded galaxy parameters and the map between theta and the unconstrained u."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr, ndtr, ndtri
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from popsed_jax._random import normal


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
        student_t: scale of a Student-t prior with two degrees of freedom about zero, truncated to the bounds [unit]; 0 is
            none. It takes the place of ``power``.
    """

    name: str
    low: float
    high: float
    unit: str = ""
    label: str = ""
    description: str = ""
    power: float = 1.0
    student_t: float = 0.0

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"parameter {self.name!r}: low = {self.low} must be finite and below high = {self.high}")
        if self.power <= 0:
            raise ValueError(f"parameter {self.name!r}: power must be positive, got {self.power}")
        if not (math.isfinite(self.student_t) and self.student_t >= 0):
            raise ValueError(
                f"parameter {self.name!r}: student_t must be finite and not negative, got {self.student_t}"
            )
        if self.student_t > 0 and self.power != 1.0:
            raise ValueError(f"parameter {self.name!r}: student_t and power = {self.power} exclude each other")


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

    @partial(jax.jit, static_argnames="self")
    def to_theta(self, u: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """theta = low + (high - low) Phi(u)^(1/power), or the Student-t quantile at Phi(u); a standard normal u is the
        prior. (Li+24, sec. 3)
        """
        low, width, power = self._constants()
        theta = low + width * jnp.exp(log_ndtr(u) / power)
        heavy = self._student_t
        if heavy is None:
            return theta
        # Rounding must not carry a draw over its bound.
        return jnp.where(heavy.used, jnp.clip(heavy.quantile(u), low, low + width), theta)

    @partial(jax.jit, static_argnames="self")
    def to_u(self, theta: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """Inverse of `to_theta`. Values on a bound go to the largest u that the precision can tell from it."""
        low, width, power = self._constants()
        tiny = float(jnp.finfo(jnp.result_type(theta, float)).eps)
        fraction = jnp.clip((theta - low) / width, 0.0, 1.0) ** power
        # The quantile is infinite at 0 and 1, which a draw rounded to a bound reaches.
        u = ndtri(jnp.clip(fraction, tiny, 1.0 - tiny))
        heavy = self._student_t
        return u if heavy is None else jnp.where(heavy.used, heavy.to_u(jnp.clip(theta, low, low + width), tiny), u)

    @partial(jax.jit, static_argnames="self")
    def log_det(self, u: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
        """log |d theta / d u|, summed over parameters."""
        _, width, power = self._constants()
        each = jnp.log(width / power) + norm.logpdf(u) + (1.0 / power - 1.0) * log_ndtr(u)
        heavy = self._student_t
        return jnp.sum(each if heavy is None else jnp.where(heavy.used, heavy.log_det(u), each), axis=-1)

    @property
    def _student_t(self) -> _StudentT | None:
        """The Student-t priors; None, which costs the compiled functions nothing, when no parameter has one."""
        used = np.array([p.student_t > 0 for p in self.parameters])
        return _StudentT(self.parameters, used) if used.any() else None

    @partial(jax.jit, static_argnames="self")
    def inside(self, theta: Float[Array, "*batch dim"]) -> Array:
        """Whether every parameter is within its bounds."""
        low, width, _ = self._constants()
        return jnp.all((theta >= low) & (theta <= low + width), axis=-1)

    @partial(jax.jit, static_argnames=("self", "num"))
    def sample_flat(self, key: Array, num: int) -> Float[Array, "num dim"]:
        """Draws of the prior: flat in the bounds, flat Dirichlet over the history's weights, Student-t where one is set."""
        return self.to_theta(normal(key, (num, len(self))))


class _StudentT:
    """Student-t with two degrees of freedom about zero, truncated to the bounds; columns without it are placeholders.

    Its distribution and quantile are algebraic: with s = sqrt(2 + t^2), the upper tail is 1 / (s (s + t)), and
    t = (p - q) / sqrt(2 p q) for a lower tail p and an upper tail q. Both tails are carried, so that neither is the rounded
    difference of the other from one.
    """

    def __init__(self, parameters: tuple[Parameter, ...], used: np.ndarray) -> None:
        """Tails outside the bounds, in double precision; placeholders are finite, as `jnp.where` differentiates both."""
        self.used = used
        scale = np.array([p.student_t or 1.0 for p in parameters])
        below = _tail(-np.where(used, [p.low for p in parameters], 0.0) / scale)
        above = _tail(np.where(used, [p.high for p in parameters], 0.0) / scale)
        inside = np.where(used, 1.0 - below - above, 1.0)
        self.scale, self.below, self.above, self.inside = (jnp.asarray(a) for a in (scale, below, above, inside))

    def _tails(self, u: Array) -> tuple[Array, Array]:
        return self.below + self.inside * ndtr(u), self.above + self.inside * ndtr(-u)

    def quantile(self, u: Array) -> Array:
        """theta at a standard normal u."""
        lower, upper = self._tails(u)
        return self.scale * (lower - upper) / jnp.sqrt(2.0 * lower * upper)

    def to_u(self, theta: Array, tiny: float) -> Array:
        """The normal quantile of theta's place in the truncated distribution, from the nearer end."""
        t = jnp.where(self.used, theta, 0.0) / self.scale
        side = jnp.where(t < 0.0, -1.0, 1.0)  # not |t| and sign(t), whose slopes vanish at zero
        distance = jnp.sqrt(2.0 + t**2)
        beyond = 1.0 / (distance * (distance + side * t))
        fraction = (beyond - jnp.where(t < 0.0, self.below, self.above)) / self.inside
        return -side * ndtri(jnp.clip(fraction, tiny, 1.0 - tiny))

    def log_det(self, u: Array) -> Array:
        """log |d theta / d u|: the quantile's slope is scale (2 p q)^(-3/2)."""
        lower, upper = self._tails(u)
        return jnp.log(self.scale * self.inside) + norm.logpdf(u) - 1.5 * jnp.log(2.0 * lower * upper)


def _tail(t: np.ndarray) -> np.ndarray:
    """Probability beyond t of a Student-t with two degrees of freedom."""
    distance = np.sqrt(2.0 + t**2)
    beyond = 1.0 / (distance * (distance + np.abs(t)))
    return np.where(t < 0.0, 1.0 - beyond, beyond)


__all__ = ["Parameter", "ParameterSpace"]
