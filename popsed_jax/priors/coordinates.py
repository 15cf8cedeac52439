"""Other names and units of a population's parameters, with the Jacobian."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from popsed_jax.parameters import Parameter, ParameterSpace

_LN10 = math.log(10.0)


@dataclasses.dataclass(frozen=True)
class Change:
    """An increasing map from a parameter as it was learned to another unit.

    Args:
        kind: "linear" is factor * x, "power" is factor * 10^x (from dex), "log" is log10(factor * x) (to dex).
        factor: positive.
    """

    kind: Literal["linear", "power", "log"] = "linear"
    factor: float = 1.0

    def outward(self, x: Array) -> Array:
        """To the other unit."""
        if self.kind == "linear":
            return x if self.factor == 1.0 else self.factor * x
        return self.factor * 10.0**x if self.kind == "power" else jnp.log10(self.factor * x)

    def inward(self, y: Array) -> Array:
        """Back to the unit that was learned."""
        if self.kind == "linear":
            return y if self.factor == 1.0 else y / self.factor
        return jnp.log10(y / self.factor) if self.kind == "power" else 10.0**y / self.factor

    def log_slope(self, x: Array) -> Array:
        """log dy/dx."""
        if self.kind == "linear":
            return jnp.full_like(x, math.log(self.factor))
        if self.kind == "power":
            return math.log(self.factor * _LN10) + _LN10 * x
        return -jnp.log(_LN10 * x)


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Which parameters of a population stand in which column, under which name and in which unit.

    Args:
        space: the parameters as they were learned.
        columns: for each column its place in `space`.
        names, units: of the columns.
        changes: from the learned unit to the column's.
    """

    space: ParameterSpace
    columns: tuple[int, ...]
    names: tuple[str, ...]
    units: tuple[str, ...]
    changes: tuple[Change, ...]

    @staticmethod
    def of(space: ParameterSpace) -> Coordinates:
        """Names and units as learned."""
        num = len(space)
        units = tuple(p.unit for p in space.parameters)
        return Coordinates(space, tuple(range(num)), space.names, units, (Change(),) * num)

    def __len__(self) -> int:
        """Number of columns."""
        return len(self.columns)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The learned parameter of each column."""
        return tuple(self.space.parameters[column] for column in self.columns)

    @property
    def bounds(self) -> tuple[tuple[float, float], ...]:
        """Lower and upper bound of each column."""
        pairs = zip(self.parameters, self.changes, strict=True)
        return tuple((_outward(change, p.low), _outward(change, p.high)) for p, change in pairs)

    def find(self, name: str) -> int:
        """Column of a name. Raises KeyError that names the nearest one."""
        return ParameterSpace(tuple(Parameter(n, 0.0, 1.0) for n in self.names)).index(name)

    def select(self, names: tuple[str, ...]) -> Coordinates:
        """Some of the columns, in the order given. Raises KeyError for an unknown name, ValueError for a repeated one."""
        if len(set(names)) != len(names):
            raise ValueError(f"names given twice: {', '.join(names)}")
        index = [self.find(name) for name in names]
        return Coordinates(
            self.space,
            tuple(self.columns[i] for i in index),
            tuple(names),
            tuple(self.units[i] for i in index),
            tuple(self.changes[i] for i in index),
        )

    def rename(self, names: Mapping[str, str], units: Mapping[str, str] | None = None) -> Coordinates:
        """Other names, and other units by new name.

        Raises:
            KeyError: an unknown name.
            ValueError: two columns of one name, units that do not convert, or a logarithm of what may be zero.
        """
        for name in names:
            self.find(name)
        new_names = tuple(names.get(name, name) for name in self.names)
        if repeated := sorted({name for name in new_names if new_names.count(name) > 1}):
            raise ValueError(f"two parameters would be called {', '.join(repeated)}")
        renamed = dataclasses.replace(self, names=new_names)
        new_units, changes = list(self.units), list(self.changes)
        for name, unit in (units or {}).items():
            column = renamed.find(name)
            parameter = self.parameters[column]
            new_units[column], changes[column] = unit, unit_change(parameter, unit)
        return dataclasses.replace(renamed, units=tuple(new_units), changes=tuple(changes))

    def outward(self, theta: Float[Array, "*batch dim"]) -> Float[Array, "*batch column"]:
        """From all learned parameters to the columns, kept within the bounds against rounding."""
        pairs = zip(self.columns, self.changes, self.bounds, strict=True)
        return jnp.stack([jnp.clip(change.outward(theta[..., i]), *ends) for i, change, ends in pairs], axis=-1)

    def inward(self, values: Float[Array, "*batch column"]) -> tuple[Float[Array, "*batch column"], Array]:
        """The columns' parameters in the units that were learned, and whether all are within their bounds.

        Outsiders are moved to the nearest bound, so that what is computed from them is finite.
        """
        low, high = (jnp.array(ends) for ends in zip(*self.bounds, strict=True))
        inside = jnp.all((values >= low) & (values <= high), axis=-1)
        safe = jnp.clip(values, low, high)
        columns = [
            jnp.clip(change.inward(safe[..., i]), p.low, p.high)
            for i, (change, p) in enumerate(zip(self.changes, self.parameters, strict=True))
        ]
        return jnp.stack(columns, axis=-1), inside

    def log_slope(self, theta: Float[Array, "*batch column"]) -> Float[Array, "*batch"]:
        """log |d column / d theta| of the columns' parameters, summed."""
        return sum((c.log_slope(theta[..., i]) for i, c in enumerate(self.changes)), start=jnp.zeros(theta.shape[:-1]))


def unit_change(parameter: Parameter, unit: str) -> Change:
    """The map from a parameter's unit to another; `dex(X)` is the decimal logarithm of a number of X.

    Raises:
        ValueError: astropy does not know a unit, the two do not convert, or a logarithm of what may be zero or negative.
    """
    # Slow to import, and needed here alone; a prior must load at once.
    from astropy import units

    try:
        old, new = units.Unit(parameter.unit), units.Unit(unit)
        old_dex, new_dex = (isinstance(one, units.DexUnit) or one == units.dex for one in (old, new))
        physical = [
            getattr(one, "physical_unit", units.one) if one_dex else one
            for one, one_dex in ((old, old_dex), (new, new_dex))
        ]
        factor = float(physical[0].to(physical[1]))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{parameter.name}: {parameter.unit!r} does not convert to {unit!r}: {error}") from None
    if old_dex == new_dex:
        if not old_dex:
            return Change("linear", factor)
        if factor != 1.0:
            raise ValueError(f"{parameter.name}: convert from {parameter.unit!r} to a unit that is no logarithm")
        return Change()
    if new_dex and parameter.low <= 0.0:
        raise ValueError(f"{parameter.name} may be {parameter.low}, which has no logarithm: {unit!r} is impossible")
    return Change("power" if old_dex else "log", factor)


def _outward(change: Change, value: float) -> float:
    """As `Change.outward`, in double precision."""
    if change.kind == "linear":
        return change.factor * value
    return change.factor * 10.0**value if change.kind == "power" else math.log10(change.factor * value)
