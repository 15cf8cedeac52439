"""From a table's columns to fluxes: picking, checking, converting, and noting what is wrong with which row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from astropy.table import Column, Table
from jaxtyping import Bool, Float, Int

from popsed_jax.catalog_config import FLUX_UNITS, BandConfig, CatalogConfig
from popsed_jax.catalog_scale import MAGGIES_PER_UNIT, POGSON, RawBand, scale_problems
from popsed_jax.settings import nearest

__all__ = ["BandColumns", "integer_column", "is_sentinel", "number_column", "read_bands", "repeated_rows"]

# A magnitude outside is a defect of its row.
_MAG_RANGE = (-5.0, 40.0)
_MAX_EXTINCTION = 20.0
_MIN_TELLING_COLUMNS = 6
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


@dataclass(frozen=True, eq=False)
class BandColumns:
    """One band of the table, before rows are dropped.

    Attributes:
        flux: [maggies], NaN where there is none.
        flux_error: [maggies], likewise.
        faults: reason -> the rows that have it; a row has at most one in each band.
    """

    flux: Float[np.ndarray, " galaxy"]
    flux_error: Float[np.ndarray, " galaxy"]
    faults: dict[str, Bool[np.ndarray, " galaxy"]]


def read_bands(table: Table, config: CatalogConfig, problems: list[str]) -> tuple[BandColumns, ...]:
    """Every band in maggies; appends to problems, and returns nothing if there are any."""
    raws = [_pick(table, band, config, problems) for band in config.bands]
    if problems:
        return ()
    problems += scale_problems(config, raws)
    return tuple(_convert(config, raw) for raw in raws)


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


def integer_column(table: Table, name: str, problems: list[str]) -> Int[np.ndarray, " galaxy"]:
    """A column of row numbers; appends to problems if it is none."""
    before = len(problems)
    values = number_column(table, name, "row", problems)
    whole = np.isfinite(values) & (values == np.floor(values))
    if len(problems) == before and not whole.all():
        problems.append(f"row: column {name!r} does not hold whole numbers (row {np.argmin(whole)} does not)")
    if len(problems) > before:
        return np.arange(len(table))
    # Straight from the column: identifiers beyond 2^53 do not fit a float.
    return np.asarray(table[name] if name in table.colnames else values).astype(np.int64)


def is_sentinel(values: Float[np.ndarray, " galaxy"], sentinels: Sequence[float]) -> Bool[np.ndarray, " galaxy"]:
    """Which values stand for "not measured"; -99.9 is recognised in single precision too."""
    close = [np.isclose(values, sentinel, rtol=1e-6, atol=0.0) for sentinel in sentinels]
    return np.any(close, axis=0) if close else np.zeros(len(values), dtype=bool)


def repeated_rows(table: Table) -> Bool[np.ndarray, " galaxy"]:
    """Which rows equal an earlier one in every column.

    Notes:
        A running index (0, 1, 2, ...) tells copies apart that are none, so it is ignored; but not beside a few rounded
        columns, in which two galaxies may agree by chance. Rows are compared by a 64-bit hash: among a million, two
        different ones collide once in 4e7 tables.
    """
    columns = [column for name in table.colnames for column in _flat_columns(table[name])]
    telling = [column for column in columns if column.dtype.kind != "i" or not np.all(np.diff(column) == 1)]
    columns = telling if len(telling) >= _MIN_TELLING_COLUMNS else columns
    key = np.zeros(len(table), dtype=np.uint64)
    for column in columns:
        # The finaliser of splitmix64 (Steele, Lea & Flood 2014), once a column.
        key = (key ^ column.view(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        key ^= key >> np.uint64(31)
    repeated = np.ones(len(table), dtype=bool)
    repeated[np.unique(key, return_index=True)[1]] = False
    return repeated


def _flat_columns(column: Column) -> list[np.ndarray]:
    """A column as 64-bit scalars columns: its components, its words by their rank, and its mask if it has one."""
    values = np.ma.asarray(column)
    mask = np.ma.getmaskarray(values).reshape(len(values), -1)
    data = np.asarray(values.filled(values.dtype.type())).reshape(len(values), -1)
    if data.dtype.kind not in "fiub":
        data = np.unique(data.astype(str), return_inverse=True)[1].reshape(data.shape)
    wide = data.astype(np.float64 if data.dtype.kind == "f" else np.int64)
    flat = [np.ascontiguousarray(part) for part in wide.T]
    return [*flat, *mask.T.astype(np.float64).copy()] if mask.any() else flat


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
        given = spread[~np.isnan(spread)]  # missing errors are counted later, row by row
        if given.size and not given.any():
            problems.append(f"{role}: the error column {spread_name!r} is zero in every row; what are the errors?")
    faults = _faults(band, config, values, spread, extinction)
    return RawBand(band, values, spread, extinction, faults)


def _faults(
    band: BandConfig,
    config: CatalogConfig,
    values: Float[np.ndarray, " galaxy"],
    spread: Float[np.ndarray, " galaxy"],
    extinction: Float[np.ndarray, " galaxy"],
) -> dict[str, Bool[np.ndarray, " galaxy"]]:
    """Reason -> the rows that have it; each row under the first that applies."""
    what = "magnitude" if config.is_magnitude else "flux"
    error = "error" if band.error else "inverse variance"
    low, high = _MAG_RANGE
    # An inverse variance has no sentinel but its sign.
    flagged = is_sentinel(spread, config.missing_values if band.error else ())
    limited = _is_limit(band, spread) & ((values > 0.0) | config.is_magnitude)
    found = [
        (f"{what} is {_sentinel_words(values, config)}, not measured", is_sentinel(values, config.missing_values)),
        (f"{what} is missing or not finite", ~np.isfinite(values)),
        (f"{error} is {_sentinel_words(spread, config)}, not measured", flagged & ~limited),
        (f"{error} is missing or not finite", ~np.isfinite(spread)),
        (f"{error} is zero or negative", ~(spread > 0) & ~limited),
        ("extinction is missing or impossible", ~((extinction >= 0) & (extinction < _MAX_EXTINCTION))),
        (f"magnitude is outside {low:g} to {high:g}", config.is_magnitude & ~((values >= low) & (values <= high))),
    ]
    seen = np.zeros(len(values), dtype=bool)
    faults = {}
    for reason, mask in found:
        faults[f"band {band.name}: {reason}"] = mask & ~seen
        seen |= mask
    return faults


def _is_limit(band: BandConfig, spread: Float[np.ndarray, " galaxy"]) -> Bool[np.ndarray, " galaxy"]:
    """Which fluxes are upper limits."""
    return (band.upper_limit > 0.0) & (spread < 0.0)


def _sentinel_words(values: Float[np.ndarray, " galaxy"], config: CatalogConfig) -> str:
    """The sentinels that occur."""
    return " or ".join(f"{s:g}" for s in config.missing_values if is_sentinel(values, (s,)).any()) or "a sentinel"


def _convert(config: CatalogConfig, raw: RawBand) -> BandColumns:
    """Values to AB maggies outside the Galaxy."""
    good = ~np.any(list(raw.faults.values()), axis=0)
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
    return BandColumns(flux * factor, flux_error * factor, raw.faults)


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
