"""A 64-bit key for every row of a table, by which copies are recognised and a sample is drawn, over all pieces alike."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from astropy.table import Table
from jaxtyping import Int, Shaped, UInt64

from popsed_jax.catalog_config import CatalogConfig
from popsed_jax.tables import TableStream

__all__ = ["FEWEST_TELLING", "columns_to_read", "named_columns", "position_keys", "row_keys", "running_columns"]

# Rows are compared by at least so many measured values: in fewer, two galaxies may agree by chance.
FEWEST_TELLING = 6
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MASKED = np.uint64(0xD1B54A32D192ED03)


def named_columns(stream: TableStream, config: CatalogConfig) -> tuple[str, ...]:
    """The columns that the settings name; all where one of them is not there, for the message that will say so."""
    named = {config.redshift, config.row} - {""}
    named |= {name for band in config.bands for name in band.columns}
    bare = {name if name in stream.names else name.rpartition("[")[0] for name in named}
    return tuple(name for name in stream.names if name in bare) if bare <= set(stream.names) else stream.names


def columns_to_read(stream: TableStream, config: CatalogConfig) -> tuple[str, ...]:
    """The columns that the settings name, where these tell copies from chance in every usable row; else all.

    A band counts for two, its flux and its error: extinctions of several bands are one number, and redshifts may be missing.
    """
    telling = 2 * (config.min_bands or len(config.bands)) >= FEWEST_TELLING
    return named_columns(stream, config) if telling else stream.names


def running_columns(stream: TableStream, names: Sequence[str]) -> frozenset[tuple[str, int]]:
    """Columns and components that number the rows (0, 1, 2, ...): they tell copies apart that are none.

    None, where fewer than `FEWEST_TELLING` would be left.
    """
    table = next(iter(stream.pieces(names)))
    everything = [(name, i) for name in names for i in range(_num_components(table, name))]
    running = [(name, i) for name, i in everything if table[name].dtype.kind in "iu"]
    if not running:
        return frozenset()
    last: dict[tuple[str, int], int] = {}
    for piece in stream.pieces(sorted({name for name, _ in running})):
        for name, i in tuple(running):
            values = _integers(piece, name, i)
            steps = np.diff(values, prepend=last.get((name, i), values[0] - 1))
            if np.all(steps == 1):
                last[name, i] = int(values[-1])
            else:
                running.remove((name, i))
        if not running:
            break
    return frozenset(running) if len(everything) - len(running) >= FEWEST_TELLING else frozenset()


def row_keys(table: Table, names: Sequence[str], ignored: Collection[tuple[str, int]]) -> UInt64[np.ndarray, " galaxy"]:
    """A hash of what each row holds in these columns.

    Rows that are equal have equal keys in whatever piece, file and precision they come; two of a million that differ have
    equal ones in one of 4e7 tables. To whoever does not make the data to fit them, the keys are random numbers.
    """
    keys = np.full(len(table), _GAMMA)
    for name in names:
        for i in range(_num_components(table, name)):
            if (name, i) not in ignored:
                keys ^= _words(table, name, i)
                _mix(keys)
    return keys


def position_keys(positions: Int[np.ndarray, " galaxy"]) -> UInt64[np.ndarray, " galaxy"]:
    """A random key for each place in a file, whatever is there."""
    keys = (positions.astype(np.uint64) + np.uint64(1)) * _GAMMA
    _mix(keys)
    return keys


def _mix(keys: UInt64[np.ndarray, " galaxy"]) -> None:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014), in place."""
    keys ^= keys >> np.uint64(30)
    keys *= np.uint64(0xBF58476D1CE4E5B9)
    keys ^= keys >> np.uint64(27)
    keys *= np.uint64(0x94D049BB133111EB)
    keys ^= keys >> np.uint64(31)


def _num_components(table: Table, name: str) -> int:
    """One, or the length of a vector column."""
    return int(np.prod(table[name].shape[1:]))


def _component(table: Table, name: str, i: int) -> Shaped[np.ma.MaskedArray, " galaxy"]:
    """One column of scalars, perhaps masked."""
    return np.ma.asarray(table[name]).reshape(len(table), -1)[:, i]


def _integers(table: Table, name: str, i: int) -> Int[np.ndarray, " galaxy"]:
    return np.asarray(_component(table, name, i).filled(0)).astype(np.int64)


def _words(table: Table, name: str, i: int) -> UInt64[np.ndarray, " galaxy"]:
    """Every value as a 64-bit word: a number's bits in double precision or as an integer, a hash of a text."""
    values = _component(table, name, i)
    if values.dtype.kind == "f":
        # One of NaN's many bit patterns, for a masked value too.
        wide = np.ma.filled(values.astype(np.float64), np.nan)
        wide[np.isnan(wide)] = np.nan
        return wide.view(np.uint64)
    if values.dtype.kind in "iub":
        words = np.asarray(values.filled(0)).astype(np.int64).view(np.uint64)
    else:
        words = _text_words(np.asarray(values.filled("")).astype(str))
    mask = np.ma.getmaskarray(values)
    return np.where(mask, words ^ _MASKED, words) if mask.any() else words


def _text_words(texts: Shaped[np.ndarray, " galaxy"]) -> UInt64[np.ndarray, " galaxy"]:
    """A hash of each text's characters, however wide its array."""
    codes = np.ascontiguousarray(texts).view(np.uint32).reshape(len(texts), -1)
    words = np.zeros(len(texts), dtype=np.uint64)
    for code in codes.T:
        there = code != 0  # arrays are filled up with zeros
        longer = words[there] ^ code[there]
        longer += _GAMMA
        _mix(longer)
        words[there] = longer
    return words
