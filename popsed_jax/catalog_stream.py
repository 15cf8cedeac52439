"""From the pieces of a table to the galaxies of a catalogue: rows left out are counted, a sample of the others is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from astropy.table import Table
from jaxtyping import Bool, Float, Int

from popsed_jax.catalog_columns import integer_column, is_sentinel, number_column, read_bands, to_maggies
from popsed_jax.catalog_config import CatalogConfig, CatalogError
from popsed_jax.catalog_keys import columns_to_read, position_keys, row_keys, running_columns
from popsed_jax.catalog_sample import NUM_EXAMPLES, UniformSample
from popsed_jax.catalog_scale import SENTINEL, RawBand, join_raw_bands, scale_problems
from popsed_jax.tables import TableStream

__all__ = ["Drop", "Piece", "StreamedGalaxies", "UnitJudge", "read_galaxies", "read_piece"]

# Rows, drawn over the whole file, by which the unit is judged.
_NUM_JUDGED = 100_000


@dataclass(frozen=True)
class Drop:
    """Rows left out for one reason; a row with several faults counts under each.

    Attributes:
        reason: what was wrong, with the band where one is concerned.
        count: how many rows.
        rows: the numbers of the first few.
    """

    reason: str
    count: int
    rows: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class StreamedGalaxies:
    """What a table holds, and the account of the rest.

    Attributes:
        flux: AB flux outside the Galaxy [maggies], NaN where the band is missing.
        flux_error: likewise.
        row: number of each galaxy in the file.
        redshift: NaN where unknown.
        drops: rows left out, by reason.
        num_dropped: rows left out.
        num_not_drawn: usable rows that the draw passed over.
    """

    flux: Float[np.ndarray, "galaxy band"]
    flux_error: Float[np.ndarray, "galaxy band"]
    row: Int[np.ndarray, " galaxy"]
    redshift: Float[np.ndarray, " galaxy"]
    drops: tuple[Drop, ...]
    num_dropped: int
    num_not_drawn: int


class Piece(NamedTuple):
    """Successive rows of a table, as the file has them.

    Attributes:
        raws: a band each.
        position: of each row in the file.
        row: the number by which the settings know it.
        redshift: whatever the file says.
    """

    raws: tuple[RawBand, ...]
    position: Int[np.ndarray, " galaxy"]
    row: Int[np.ndarray, " galaxy"]
    redshift: Float[np.ndarray, " galaxy"]


def read_piece(table: Table, config: CatalogConfig, start: int = 0, problems: Sequence[str] = ()) -> Piece:
    """What the settings say of a table's columns.

    Args:
        start: position of the first row in the file.
        problems: what is known to be wrong with the settings already; reported with what the columns show.

    Raises:
        CatalogError: any problem.
    """
    found = list(problems)
    position = np.arange(start, start + len(table))
    raws = read_bands(table, config, found)
    row = integer_column(table, config.row, position, found) if config.row else position
    redshift = np.full(len(table), np.nan)
    if config.redshift:
        redshift = number_column(table, config.redshift, "redshift", found)
    if found:
        raise CatalogError(*found)
    return Piece(raws, position, row, redshift)


class UnitJudge:
    """Are the numbers of the unit given? Judged by a random tenth of a million rows, the same in whatever pieces they come."""

    def __init__(self, config: CatalogConfig, num_rows: int) -> None:
        self._config, self._num_rows = config, num_rows
        self._parts: list[tuple[RawBand, ...]] = []

    def add(self, piece: Piece) -> None:
        """Keep what is drawn of a piece."""
        chosen = np.arange(len(piece.position))
        if self._num_rows > _NUM_JUDGED:
            chosen = np.flatnonzero(position_keys(piece.position) < np.uint64(2**64 * _NUM_JUDGED // self._num_rows))
        self._parts.append(tuple(raw.at(chosen) for raw in piece.raws))

    def problems(self) -> list[str]:
        """A sentence for what cannot be of the unit."""
        return scale_problems(self._config, [join_raw_bands(parts) for parts in zip(*self._parts, strict=True)])


class _Account:
    """Rows with faults, counted over the pieces."""

    def __init__(self, config: CatalogConfig) -> None:
        self._config = config
        self._counts: dict[str, int] = {}
        self._rows: dict[str, list[int]] = {}
        self._sentinels: dict[str, set[float]] = {}
        self.num_faulty = 0

    def add(self, raws: Sequence[RawBand], row: Int[np.ndarray, " galaxy"]) -> Bool[np.ndarray, " galaxy"]:
        """Count a piece's; returns which rows are usable."""
        num_there = np.sum([raw.good for raw in raws], axis=0)
        if self._config.min_bands:
            usable = num_there >= self._config.min_bands
            faults = {f"fewer than {self._config.min_bands} bands": ~usable}
        else:
            usable = num_there == len(raws)
            faults = {reason: mask for raw in raws for reason, mask in raw.faults.items()}
        for reason, mask in faults.items():
            rows = self._rows.setdefault(reason, [])
            self._counts[reason] = self._counts.get(reason, 0) + int(np.count_nonzero(mask))
            rows += row[mask][: NUM_EXAMPLES - len(rows)].tolist()
        for reason, sentinels in ((reason, found) for raw in raws for reason, found in raw.sentinels.items()):
            self._sentinels.setdefault(reason, set()).update(sentinels)
        self.num_faulty += int(np.count_nonzero(~usable))
        return usable

    def drops(self) -> tuple[Drop, ...]:
        """One for every reason that occurred."""
        drops = []
        for reason, count in self._counts.items():
            found = self._sentinels.get(reason, ())
            words = " or ".join(f"{s:g}" for s in self._config.missing_values if s in found)
            if count:
                drops.append(Drop(reason.replace(SENTINEL, words), count, tuple(self._rows[reason])))
        return tuple(drops)


def read_galaxies(
    stream: TableStream,
    config: CatalogConfig,
    problems: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> StreamedGalaxies:
    """Read all pieces of a table that has rows, and keep `max_galaxies` of the usable ones.

    Args:
        problems: what is known to be wrong with the settings; reported with what the first piece shows.
        progress: is told the rows read and all rows after each piece.

    Raises:
        CatalogError: as for `read_catalog`, after the first piece that shows it; of the unit, at the end.
        TableError: a damaged file.
    """
    names = columns_to_read(stream, config)
    running = running_columns(stream, names)
    account, sample, judge = _Account(config), UniformSample(config.max_galaxies), UnitJudge(config, stream.num_rows)
    start = 0
    for table in stream.pieces(names):
        piece = read_piece(table, config, start, problems)
        start += len(table)
        judge.add(piece)
        usable = np.flatnonzero(account.add(piece.raws, piece.row))
        keys = row_keys(table, names, running)[usable]
        wanted = sample.wanted(keys)
        index = usable[wanted]
        flux, flux_error = zip(*(to_maggies(config, raw.at(index)) for raw in piece.raws), strict=True)
        sample.add(
            key=keys[wanted],
            position=piece.position[index],
            row=piece.row[index],
            flux=np.stack(flux, axis=1),
            flux_error=np.stack(flux_error, axis=1),
            redshift=_known_redshift(piece.redshift[index], config.missing_values),
        )
        if progress is not None:
            progress(start, stream.num_rows)
    if found := judge.problems():
        raise CatalogError(*found)
    drawn = sample.finish()
    num_usable = start - account.num_faulty - drawn.num_copies
    num_not_drawn = num_usable - len(drawn.columns["row"])
    drops = account.drops()
    if drawn.num_copies:
        where = " that the settings name" if len(names) < len(stream.names) else ""
        known = " (counted for the galaxies kept; others' copies pass as usable)" if num_not_drawn else ""
        drops += (Drop(f"repeats an earlier row in every column{where}{known}", drawn.num_copies, drawn.copies),)
    if not num_usable:
        reasons = "; ".join(f"{drop.count:,}: {drop.reason}" for drop in drops)
        raise CatalogError(f"none of the {start:,} rows can be used ({reasons})")
    return StreamedGalaxies(
        flux=drawn.columns["flux"],
        flux_error=drawn.columns["flux_error"],
        row=drawn.columns["row"],
        redshift=drawn.columns["redshift"],
        drops=drops,
        num_dropped=account.num_faulty + drawn.num_copies,
        num_not_drawn=num_not_drawn,
    )


def _known_redshift(redshift: Float[np.ndarray, " galaxy"], sentinels: Sequence[float]) -> Float[np.ndarray, " galaxy"]:
    """NaN for a sentinel or an impossible value (a recession faster than light towards us)."""
    known = np.isfinite(redshift) & (redshift > -1.0) & ~is_sentinel(redshift, sentinels)
    return np.where(known, redshift, np.nan)
