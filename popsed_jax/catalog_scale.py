"""Are the numbers of the unit that the settings say? Magnitudes taken for fluxes, and fluxes for magnitudes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from popsed_jax.catalog_config import BandConfig, CatalogConfig

__all__ = ["MAGGIES_PER_UNIT", "POGSON", "SENTINEL", "RawBand", "join_raw_bands", "scale_problems"]

MAGGIES_PER_UNIT = {"maggies": 1.0, "nanomaggies": 1e-9, "uJy": 1e-6 / 3631.0, "mJy": 1e-3 / 3631.0}
POGSON = 2.5 / np.log(10.0)
SENTINEL = "{sentinel}"

# The median of a band's |flux| lies here for any survey of galaxies [AB mag]; the faint end is noise beyond JWST's.
_MEDIAN_MAG_RANGE = (2.0, 35.0)
_MAG_RANGE = (-5.0, 40.0)
_TYPICAL_MAG = 20.0

# Magnitudes of a survey span less than a factor 2.2 and have errors far below 5 % of their value; fluxes of a whole
# catalogue that do so in every band would all lie within 0.9 mag of one another.
_MIN_ROWS = 5
_LOOKALIKE_RANGE = (5.0, 40.0)
_LOOKALIKE_SPAN = 2.2
_LOOKALIKE_ERROR = 0.05

# A few odd values are defects of rows or unknown sentinels; this share of different ones is another unit.
_ODD_SHARE = 0.02
_ODD_KINDS = 3


@dataclass(frozen=True, eq=False)
class RawBand:
    """One band as the file has it.

    Attributes:
        band: its settings.
        values: flux or magnitude, in the file's unit; NaN where masked.
        spread: error or inverse variance, likewise.
        extinction: [mag].
        faults: reason -> the rows that have it; a row has at most one. A reason may hold the word `SENTINEL`.
        sentinels: reason -> the sentinels that occur in its rows, for that word.
    """

    band: BandConfig
    values: Float[np.ndarray, " galaxy"]
    spread: Float[np.ndarray, " galaxy"]
    extinction: Float[np.ndarray, " galaxy"]
    faults: dict[str, Bool[np.ndarray, " galaxy"]]
    sentinels: dict[str, tuple[float, ...]]

    @cached_property
    def good(self) -> Bool[np.ndarray, " galaxy"]:
        """Rows without a fault."""
        return ~np.any(list(self.faults.values()), axis=0)

    @property
    def measured(self) -> Bool[np.ndarray, " galaxy"]:
        """Rows whose flux or magnitude is a number and no sentinel."""
        lost = [mask for reason, mask in self.faults.items() if "not measured" in reason or "not finite" in reason]
        return ~np.any(lost, axis=0)

    def at(self, index: Int[np.ndarray, " chosen"]) -> RawBand:
        """Some of the rows."""
        faults = {reason: mask[index] for reason, mask in self.faults.items()}
        return RawBand(
            self.band, self.values[index], self.spread[index], self.extinction[index], faults, self.sentinels
        )


def join_raw_bands(parts: Sequence[RawBand]) -> RawBand:
    """The rows of several pieces of one band."""
    values, spread, extinction = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("values", "spread", "extinction")
    )
    faults = {reason: np.concatenate([part.faults[reason] for part in parts]) for reason in parts[0].faults}
    return RawBand(parts[0].band, values, spread, extinction, faults, {})


def scale_problems(config: CatalogConfig, raws: Sequence[RawBand]) -> list[str]:
    """A sentence for each band, or one for all, whose values cannot be of the unit given; and what to write instead."""
    empty = [_zero_error_problem(raw) for raw in raws]
    if any(empty):
        return [problem for problem in empty if problem]
    if config.is_magnitude:
        found = [_magnitude_problem(str(config.flux_unit), raw) for raw in raws]
    else:
        found = [_flux_problem(str(config.flux_unit), raw) for raw in raws]
    problems = [problem for problem in found if problem]
    if problems or config.is_magnitude or not all(_look_like_magnitudes(raw) for raw in raws):
        return problems
    low = min(float(np.min(raw.values[raw.measured])) for raw in raws)
    high = max(float(np.max(raw.values[raw.measured])) for raw in raws)
    return [
        f"flux_unit is {config.flux_unit!r}, but in every band the values look like magnitudes "
        f"({low:.4g} to {high:.4g}, with small errors); write flux_unit = 'ABmag'"
    ]


def _zero_error_problem(raw: RawBand) -> str:
    """The sentence for a band that quotes no errors, or an empty string."""
    given = raw.spread[~np.isnan(raw.spread)]  # missing errors are counted row by row
    if not given.size or given.any():
        return ""
    name = raw.band.error or raw.band.inverse_variance
    return f"band {raw.band.name!r}: the error column {name!r} is zero in every row; what are the errors?"


def _magnitude_problem(unit: str, raw: RawBand) -> str:
    """The sentence for a band whose magnitudes are none, or an empty string."""
    values = raw.values[raw.measured]
    if not len(values):
        return ""
    median = float(np.median(values))
    odd = values[(values < _MAG_RANGE[0]) | (values > _MAG_RANGE[1])]
    many = len(odd) > _ODD_SHARE * len(values) and len(np.unique(odd)) > min(_ODD_KINDS, len(values) // 2)
    if not many and _MEDIAN_MAG_RANGE[0] < median < _MEDIAN_MAG_RANGE[1]:
        return ""
    low, high = np.percentile(values, [2, 98])
    said = (
        f"band {raw.band.name!r}: flux_unit is {unit!r}, but column {raw.band.flux!r} runs from {low:.4g} to {high:.4g}"
    )
    if high < 0 and median > -_MEDIAN_MAG_RANGE[1]:
        return f"{said}; apparent magnitudes are needed, and these look like absolute ones"
    units = _plausible_units(float(np.median(np.abs(values))))
    return f"{said}, which are no magnitudes; if they are fluxes, write flux_unit = {units}"


def _flux_problem(unit: str, raw: RawBand) -> str:
    """The sentence for a band whose fluxes cannot be of the unit, or an empty string."""
    values = np.abs(raw.values[raw.measured])
    if not len(values):
        return ""
    if not values.any():
        return f"band {raw.band.name!r}: the flux column {raw.band.flux!r} is zero in every row"
    median = float(np.median(values[values > 0]))
    mag = -POGSON * np.log(median * MAGGIES_PER_UNIT[unit])
    if _MEDIAN_MAG_RANGE[0] < mag < _MEDIAN_MAG_RANGE[1]:
        return ""
    units = "'ABmag'" if _look_like_magnitudes(raw) else _plausible_units(median)
    said = f"band {raw.band.name!r}: flux_unit is {unit!r}, but {median:.4g}"
    return f"{said}, the typical value of column {raw.band.flux!r}, would be AB {mag:.1f}; write flux_unit = {units}"


def _look_like_magnitudes(raw: RawBand) -> bool:
    """Whether fluxes have the range and the errors of magnitudes."""
    values, spread = raw.values[raw.good], raw.spread[raw.good]
    if len(values) < _MIN_ROWS:
        return False
    error = spread if raw.band.error else 1.0 / np.sqrt(spread)
    low, high = np.percentile(values, [2, 98])
    in_range = _LOOKALIKE_RANGE[0] <= low and high <= _LOOKALIKE_RANGE[1]
    return bool(in_range and high < _LOOKALIKE_SPAN * low and np.median(error / values) < _LOOKALIKE_ERROR)


def _plausible_units(typical: float) -> str:
    """Units in which a typical flux is a galaxy's, the likeliest first, as one would write them."""
    if typical <= 0:
        return " or ".join(map(repr, MAGGIES_PER_UNIT))
    mags = {unit: -POGSON * np.log(typical * scale) for unit, scale in MAGGIES_PER_UNIT.items()}
    likely = sorted(mags, key=lambda unit: abs(mags[unit] - _TYPICAL_MAG))
    near = [unit for unit in likely if _MEDIAN_MAG_RANGE[0] < mags[unit] < _MEDIAN_MAG_RANGE[1]]
    if not near:
        return "the unit that they are in, after scaling them to maggies, nanomaggies, uJy or mJy"
    return " or ".join(map(repr, near))
