"""From a table's columns to fluxes: picking, checking, converting, and noting what is wrong with which row."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from astropy.table import Column, Table
from jaxtyping import Bool, Float, Int

from popsed_jax.catalog_config import FLUX_UNITS, BandConfig, CatalogConfig
from popsed_jax.catalog_scale import MAGGIES_PER_UNIT, POGSON, SENTINEL, RawBand
from popsed_jax.settings import nearest

__all__ = ["integer_column", "is_sentinel", "number_column", "read_bands", "to_maggies"]

# A magnitude outside is a defect of its row.
_MAG_RANGE = (-5.0, 40.0)
_MAX_EXTINCTION = 20.0
_MAX_NAMES = 40

# How files spell units, and the unit settings that agree with each. Anything else says nothing.
_UNIT_WORDS = {
    "maggies": ("mgy", "maggy", "maggies"),
    "nanomaggies": ("nmgy", "nanomaggy", "nanomaggies"),
    "uJy": ("uJy", "µJy", "μJy", "microJy", "microjansky"),
    "mJy": ("mJy", "millijansky"),
    "Jy": ("Jy", "jansky"),
    "nJy": ("nJy", "nanojansky"),
    "ABmag": ("mag", "mag(AB)", "ABmag", "magnitude", "magnitudes"),
}


def read_bands(table: Table, config: CatalogConfig, problems: list[str]) -> tuple[RawBand, ...]:
    """Every band as the file has it; appends to problems."""
    return tuple(_pick(table, band, config, problems) for band in config.bands)


def number_column(table: Table, name: str, role: str, problems: list[str]) -> Float[np.ndarray, " galaxy"]:
    """A column, or a component of a vector column, as numbers; NaN where masked. Appends to problems if there is none.

    Args:
        name: column, or `NAME[2]`.
        role: what the column is for, in messages.
    """
    blank = np.full(len(table), np.nan)
    match = re.fullmatch(r"(.+)\[(\d+)\]", name)
    component = None
    if name not in table.colnames and match:
        name, component = match[1], int(match[2])
    if name not in table.colnames:
        near = nearest(name, table.colnames)
        hint = f"; did you mean {near!r}?" if near else "."
        problems.append(f"{role}: there is no column {name!r}{hint} Columns: {_name_list(table.colnames)}")
        return blank
    column = table[name]
    if column.dtype.kind not in "fiub":
        problems.append(f"{role}: column {name!r} does not hold numbers; {_first_word(column)}")
        return blank
    if component is None and column.ndim > 1:
        problems.append(f"{role}: column {name!r} has {column.shape[1]} components; pick one, as in {name}[0]")
        return blank
    if component is not None and column.ndim != 2:
        problems.append(f"{role}: column {name!r} is no vector column; write {name!r} without [{component}]")
        return blank
    if component is not None and component >= column.shape[1]:
        size = column.shape[1]
        problems.append(f"{role}: {name}[{component}] is out of range; {name!r} has {size} components, 0 to {size - 1}")
        return blank
    values = column if component is None else column[:, component]
    return np.array(np.ma.filled(np.ma.asarray(values).astype(float), np.nan))


def integer_column(
    table: Table, name: str, position: Int[np.ndarray, " galaxy"], problems: list[str]
) -> Int[np.ndarray, " galaxy"]:
    """A column of row numbers; appends to problems if it is none.

    Args:
        position: of each row in the file, for messages.
    """
    before = len(problems)
    values = number_column(table, name, "row", problems)
    whole = np.isfinite(values) & (values == np.floor(values))
    if len(problems) == before and not whole.all():
        where = position[np.argmin(whole)]
        problems.append(f"row: column {name!r} does not hold whole numbers (row {where} does not)")
    if len(problems) > before:
        return position
    # Straight from the column: identifiers beyond 2^53 do not fit a float.
    return np.asarray(table[name] if name in table.colnames else values).astype(np.int64)


def is_sentinel(values: Float[np.ndarray, " galaxy"], sentinels: Sequence[float]) -> Bool[np.ndarray, " galaxy"]:
    """Which values stand for "not measured"; -99.9 is recognised in single precision too."""
    found = np.zeros(len(values), dtype=bool)
    for sentinel in filter(np.isfinite, sentinels):  # whatever is not finite is a fault by itself
        found |= np.abs(values - sentinel) <= 1e-6 * abs(sentinel)
    return found


def _pick(table: Table, band: BandConfig, config: CatalogConfig, problems: list[str]) -> RawBand:
    """The columns of one band as numbers, with the faults of its rows."""
    role, before = f"band {band.name!r}", len(problems)
    values = number_column(table, band.flux, f"{role}: {'magnitude' if config.is_magnitude else 'flux'}", problems)
    spread_name = band.error or band.inverse_variance
    spread = number_column(table, spread_name, f"{role}: error", problems)
    extinction = np.zeros(len(table))
    if band.extinction:
        extinction = number_column(table, band.extinction, f"{role}: extinction", problems)
    if len(problems) == before:
        problems += [
            line for name in (band.flux, band.error) if name for line in _unit_conflict(table, name, role, config)
        ]
    return _raw_band(band, config, values, spread, extinction)


def _raw_band(
    band: BandConfig,
    config: CatalogConfig,
    values: Float[np.ndarray, " galaxy"],
    spread: Float[np.ndarray, " galaxy"],
    extinction: Float[np.ndarray, " galaxy"],
) -> RawBand:
    """The numbers with the faults of their rows, each row under the first that applies."""
    what = "magnitude" if config.is_magnitude else "flux"
    error = "error" if band.error else "inverse variance"
    low, high = _MAG_RANGE
    # An inverse variance has no sentinel but its sign.
    flagged = is_sentinel(spread, config.missing_values if band.error else ())
    limited = _is_limit(band, spread) & ((values > 0.0) | config.is_magnitude)
    found = [
        (f"{what} is {SENTINEL}, not measured", is_sentinel(values, config.missing_values)),
        (f"{what} is missing or not finite", ~np.isfinite(values)),
        (f"{error} is {SENTINEL}, not measured", flagged & ~limited),
        (f"{error} is missing or not finite", ~np.isfinite(spread)),
        (f"{error} is zero or negative", ~(spread > 0) & ~limited),
        ("extinction is missing or impossible", ~((extinction >= 0) & (extinction < _MAX_EXTINCTION))),
        (f"magnitude is outside {low:g} to {high:g}", config.is_magnitude & ~((values >= low) & (values <= high))),
    ]
    seen = np.zeros(len(values), dtype=bool)
    faults, sentinels = {}, {}
    for words, mask in found:
        reason = f"band {band.name}: {words}"
        faults[reason] = mask & ~seen
        seen |= mask
        if SENTINEL in words and faults[reason].any():
            flags = (values if words.startswith(what) else spread)[faults[reason]]
            sentinels[reason] = tuple(s for s in config.missing_values if is_sentinel(flags, (s,)).any())
    return RawBand(band, values, spread, extinction, faults, sentinels)


def _is_limit(band: BandConfig, spread: Float[np.ndarray, " galaxy"]) -> Bool[np.ndarray, " galaxy"]:
    """Which fluxes are upper limits."""
    return (band.upper_limit > 0.0) & (spread < 0.0)


def to_maggies(
    config: CatalogConfig, raw: RawBand
) -> tuple[Float[np.ndarray, " galaxy"], Float[np.ndarray, " galaxy"]]:
    """Flux and error in AB maggies outside the Galaxy; NaN where the row has a fault."""
    good = raw.good
    values, spread = np.where(good, raw.values, np.nan), np.where(good, raw.spread, np.nan)
    limit = _is_limit(raw.band, spread)
    spread = np.where(limit, 1.0, spread)  # a limit's error follows from its flux, below
    error = spread if raw.band.error else 1.0 / np.sqrt(spread)
    if config.flux_unit == "ABmag":
        flux = np.exp(-values / POGSON)
        flux_error = flux * error / POGSON
    elif config.flux_unit == "asinhmag":
        softening = raw.band.softening or np.nan
        argument = -values / POGSON - np.log(softening)
        flux = 2.0 * softening * np.sinh(argument)  # Lupton+99, eq. 3, inverted
        flux_error = 2.0 * softening * np.cosh(argument) * error / POGSON
    else:
        scale = MAGGIES_PER_UNIT[str(config.flux_unit)]
        flux, flux_error = values * scale, error * scale
    if raw.band.upper_limit > 0.0:
        flux_error = np.where(limit, flux / raw.band.upper_limit, flux_error)
        flux = np.maximum(flux, raw.band.upper_limit * flux_error)
    factor = 10.0 ** (0.4 * (np.where(good, raw.extinction, np.nan) - raw.band.zero_point))
    return flux * factor, flux_error * factor


def _unit_conflict(table: Table, name: str, role: str, config: CatalogConfig) -> list[str]:
    """The sentence for a column whose own unit contradicts the settings."""
    column = table[name if name in table.colnames else name.rpartition("[")[0]]
    said = str(column.unit or "")
    family = next((unit for unit, words in _UNIT_WORDS.items() if said in words), None)
    expected = "ABmag" if config.is_magnitude else config.flux_unit
    if family in (None, expected):
        return []
    advice = (
        f"write flux_unit = {family!r}" if family in FLUX_UNITS else f"convert it to one of {', '.join(FLUX_UNITS)}"
    )
    return [f"{role}: the file says that column {name!r} is in {said}, but flux_unit is {config.flux_unit!r}; {advice}"]


def _first_word(column: Column) -> str:
    """The first entry that is no number, and where it stands."""
    for i, item in enumerate(column.ravel()):
        try:
            float(item)
        except (TypeError, ValueError):
            if item is not np.ma.masked:
                return f"row {i} holds {str(item)!r}"
    return f"it holds {column.dtype.name}"


def _name_list(names: Sequence[str]) -> str:
    """Column names, not too many."""
    more = f", ... ({len(names)} in all)" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
