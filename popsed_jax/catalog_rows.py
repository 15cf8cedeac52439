"""Every row of a catalogue in the order of its file, faults and all: what a product with a line for each galaxy needs."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.table import Table
from jaxtyping import Bool, Float, Int

from popsed_jax.catalog import catalog_path, naming, open_rows
from popsed_jax.catalog_columns import is_sentinel, to_maggies
from popsed_jax.catalog_config import CatalogConfig, CatalogError
from popsed_jax.catalog_keys import named_columns
from popsed_jax.catalog_stream import UnitJudge, read_piece
from popsed_jax.flags import UNUSABLE, Flag
from popsed_jax.tables import TableStream

__all__ = ["CatalogRows", "RowPiece", "open_catalog_rows", "rows_of_table", "with_bands"]

# Brighter than AB -5, the limit of the magnitudes that the reader takes [maggies]; an error as large measures nothing.
_MAX_FLUX = 100.0
# AB 50: less is no survey's error, and nothing in single precision.
_MIN_ERROR = 1e-20
# Before the first stars.
_MAX_REDSHIFT = 30.0
# Of each end of a file [bytes]: the header of a table and, in Parquet, the extremes of its columns.
_END = 1 << 16

# By the words of the reader's reasons, the first that fits.
_FLAG_OF_WORDS = (
    ("not measured", Flag.MISSING_BAND),
    ("not finite", Flag.MISSING_BAND),
    ("zero or negative", Flag.BAD_ERROR),
    ("impossible", Flag.BAD_FLUX),
    ("outside", Flag.BAD_FLUX),
)


class RowPiece(NamedTuple):
    """Successive rows of a file, all of them.

    Attributes:
        number: of the piece, from 0.
        row: the number by which the settings know each galaxy: its place in the file, or what their `row` column says.
        flux: AB flux outside the Galaxy [maggies]; NaN where the band is missing or has a fault.
        error: its one-sigma error [maggies]; NaN likewise.
        redshift: spectroscopic; NaN where unknown, negative or impossible.
        flags: bits of `popsed_jax.flags.Flag`.
    """

    number: int
    row: Int[np.ndarray, " galaxy"]
    flux: Float[np.ndarray, "galaxy band"]
    error: Float[np.ndarray, "galaxy band"]
    redshift: Float[np.ndarray, " galaxy"]
    flags: Int[np.ndarray, " galaxy"]

    @property
    def usable(self) -> Bool[np.ndarray, " galaxy"]:
        """Rows with as many bands as the settings ask for, and one at least."""
        return (self.flags & UNUSABLE) == 0


@dataclass(frozen=True, eq=False)
class CatalogRows:
    """The rows of a catalogue on disk, read piece by piece.

    Attributes:
        path: the file, or the folder of the parts of a table.
        config: what its columns mean.
        stream: the table.
    """

    path: Path
    config: CatalogConfig
    stream: TableStream

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return self.stream.num_rows

    def check(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Read everything once, before hours of work depend on it.

        Args:
            progress: is told the rows read and all rows after each piece.

        Raises:
            CatalogError: what `read_catalog` would say of the columns, at the first piece that shows it, and of the unit, by
                rows drawn over the whole file; a damaged file.
        """
        judge, start = UnitJudge(self.config, self.num_rows), 0
        with naming(self.path):
            for table in self.stream.pieces(named_columns(self.stream, self.config)):
                judge.add(read_piece(table, self.config, start))
                start += len(table)
                if progress is not None:
                    progress(start, self.num_rows)
            if problems := judge.problems():
                raise CatalogError(*problems)

    def pieces(self, piece_rows: int, done: Container[int] = ()) -> Iterator[RowPiece]:
        """All rows, so many at a time; the last piece is shorter.

        Args:
            done: numbers of pieces to pass over.

        Raises:
            CatalogError: a damaged file, or columns that are none.
        """
        held: list[RowPiece] = []
        start = 0
        with naming(self.path):
            for table in self.stream.pieces(named_columns(self.stream, self.config)):
                for part in _cut(table, start, piece_rows):
                    number = start // piece_rows
                    if number not in done:
                        held.append(rows_of_table(part, self.config, start, number))
                    start += len(part)
                    if held and (start % piece_rows == 0 or start == self.num_rows):
                        yield _joined(held)
                        held = []

    def identity(self) -> dict[str, Any]:
        """By what another file is recognised: its place, its size, its rows, and the bytes at both ends."""
        files = [self.path]
        if self.path.is_dir():
            files = sorted(item for item in self.path.rglob("*") if item.is_file())
        ends = hashlib.sha256()
        for file in files:
            ends.update(_ends(file))
        size = sum(file.stat().st_size for file in files)
        return {
            "path": str(self.path.resolve()),
            "num_rows": self.num_rows,
            "num_bytes": size,
            "ends_sha256": ends.hexdigest(),
        }


def open_catalog_rows(config: CatalogConfig, base: str | os.PathLike[str] | None = None) -> CatalogRows:
    """Open a catalogue of any format and size; nothing but Parquet's headers is read of Parquet, other formats whole.

    Args:
        config: what the columns mean; an empty one means the embedded galaxies. `max_galaxies` does not matter here.
        base: folder to which relative paths in `config` refer; the working folder unless given.

    Raises:
        CatalogError: a file that cannot be read, has no rows, or has parts that do not fit together.
    """
    config = config.resolved()
    path = catalog_path(config, Path.cwd() if base is None else Path(base))
    with naming(path):
        return CatalogRows(path, config, open_rows(path, config))


def with_bands(config: CatalogConfig, bands: Sequence[str]) -> CatalogConfig:
    """The settings with these bands in this order; others are not read.

    Raises:
        CatalogError: a band that the settings do not describe.
    """
    config = config.resolved()
    known = {band.name: band for band in config.bands}
    if absent := [name for name in bands if name not in known]:
        raise CatalogError(
            f"the posteriors are for the bands {', '.join(bands)}, but the catalogue's settings describe "
            f"{', '.join(known)}: {', '.join(absent)} must be there by name; a galaxy may lack it, the settings may not"
        )
    fewest = min(config.min_bands, len(bands))
    return dataclasses.replace(config, bands=tuple(known[name] for name in bands), min_bands=fewest)


def rows_of_table(table: Table, config: CatalogConfig, start: int = 0, number: int = 0) -> RowPiece:
    """The rows of a table as fluxes, with what is wrong with each.

    A band with a fault is missing; a redshift with a fault is unknown. Sentinels mean that there is no measurement: of a
    band this is flagged, of a redshift it is the ordinary case and is not.

    Args:
        start: position of the first row in the file.
        number: of the piece.

    Raises:
        CatalogError: columns that are missing or are no numbers.
    """
    piece = read_piece(table, config, start)
    flags = np.zeros(len(table), dtype=np.int32)
    with np.errstate(over="ignore"):  # an infinite flux is flagged below
        fluxes, errors = zip(*(to_maggies(config, raw) for raw in piece.raws), strict=True)
    flux, error = np.stack(fluxes, axis=1), np.stack(errors, axis=1)
    for raw in piece.raws:
        for reason, mask in raw.faults.items():
            flags[mask] |= next(flag for words, flag in _FLAG_OF_WORDS if words in reason)
    possible = (np.abs(flux) < _MAX_FLUX) & (error > _MIN_ERROR) & (error < _MAX_FLUX)
    flags[np.any(~np.isnan(flux) & ~possible, axis=1)] |= Flag.BAD_FLUX
    num_bands = np.sum(possible, axis=1)
    flags[num_bands == 0] |= Flag.NO_BAND
    flags[(num_bands > 0) & (num_bands < config.min_bands)] |= Flag.FEW_BANDS
    told = ~np.isnan(piece.redshift) & ~is_sentinel(piece.redshift, config.missing_values)
    known = told & (piece.redshift >= 0.0) & (piece.redshift < _MAX_REDSHIFT)
    flags[told & ~known] |= Flag.BAD_REDSHIFT
    return RowPiece(
        number=number,
        row=np.asarray(piece.row, dtype=np.int64),
        flux=np.where(possible, flux, np.nan),
        error=np.where(possible, error, np.nan),
        redshift=np.where(known, piece.redshift, np.nan),
        flags=flags,
    )


def _cut(table: Table, start: int, piece_rows: int) -> Iterator[Table]:
    """A table in parts that end where pieces end."""
    first = 0
    while first < len(table):
        last = min(first + piece_rows - (start + first) % piece_rows, len(table))
        yield table[first:last]
        first = last


def _joined(parts: Sequence[RowPiece]) -> RowPiece:
    """The parts of one piece."""
    columns = zip(*(part[1:] for part in parts), strict=True)
    return RowPiece(parts[0].number, *(np.concatenate(column) for column in columns))


def _ends(path: Path) -> bytes:
    """The first and the last bytes of a file."""
    with path.open("rb") as file:
        first = file.read(_END)
        file.seek(max(path.stat().st_size - _END, 0))
        return first + file.read(_END)
