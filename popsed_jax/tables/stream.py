"""A table as a stream of pieces: Parquet a bounded number of rows at a time, other formats as one piece."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from astropy.table import Table

from popsed_jax.tables.files import checked_format, is_folder, read_table
from popsed_jax.tables.parquet import open_parquet

__all__ = ["TableStream", "open_table"]


@dataclass(frozen=True)
class TableStream:
    """A table on disk that is read piece by piece.

    Attributes:
        num_rows: rows of all pieces together.
        names: all columns, in the file's order.
        pieces: of the names of the columns wanted, gives tables with these (and perhaps others) of successive rows;
            each call begins anew. Raises `TableError` where a file is damaged.
    """

    num_rows: int
    names: tuple[str, ...]
    pieces: Callable[[Sequence[str]], Iterator[Table]]


def open_table(path: str | os.PathLike[str], hdu: str = "") -> TableStream:
    """Open a table of any format, or a folder of Parquet files that are the parts of one.

    Args:
        hdu: as for `read_table`.

    Raises:
        TableError: as for `read_table`; also a folder without Parquet files, or with parts that do not fit together.
    """
    path = Path(path)
    if is_folder(path, hdu) or checked_format(path, hdu) == "Parquet":
        parts = open_parquet(path)
        return TableStream(parts.num_rows, tuple(parts.schema.names), parts.pieces)
    table = read_table(path, hdu)
    return TableStream(len(table), tuple(table.colnames), lambda names: iter((table,)))
