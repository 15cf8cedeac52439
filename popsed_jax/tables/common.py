"""What every format needs: its failures as one sentence, byte order, and the labels of columns."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import yaml
from astropy.io import fits
from astropy.table import Column, Table
from astropy.units import UnitsWarning

__all__ = [
    "GZIP_MAGIC",
    "LIBRARY_ERRORS",
    "TableError",
    "apply_label",
    "column_labels",
    "first_line",
    "native_copy",
    "reading",
]

GZIP_MAGIC = b"\x1f\x8b"

# What the five libraries are known to raise on a damaged or foreign file.
LIBRARY_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    RuntimeError,
    zlib.error,
    struct.error,
    yaml.YAMLError,
    fits.VerifyError,
    pa.ArrowException,
    UserWarning,
)


class TableError(ValueError):
    """A table file that cannot be read or written; the message is for the user."""


@contextmanager
def reading(path: Path, form: str) -> Iterator[None]:
    """Turns what a library raises on a damaged or foreign file into a `TableError`."""
    try:
        yield
    except TableError:
        raise
    except LIBRARY_ERRORS as error:
        raise TableError(
            f"cannot read {path} as {form}; is it complete, and of that format? ({first_line(error)})"
        ) from error


def first_line(error: BaseException) -> str:
    """The gist of a library's message."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def native_copy(table: Table) -> Table:
    """A copy in the machine's byte order, which pyarrow and HDF5 readers elsewhere expect."""
    copy = table.copy()
    for name in copy.colnames:
        column = copy[name]
        if isinstance(column, Column) and not column.dtype.isnative:
            fresh = type(column)(column.astype(column.dtype.newbyteorder("=")))
            fresh.unit, fresh.description = column.unit, column.description
            copy.replace_column(name, fresh)
    return copy


def column_labels(table: Table) -> list[dict[str, str]]:
    """Name, unit and description of each column, as text."""
    columns = [table[name] for name in table.colnames]
    return [
        {"name": c.name, "unit": "" if c.unit is None else str(c.unit), "description": c.description or ""}
        for c in columns
    ]


def apply_label(table: Table, name: str, unit: str, description: str) -> None:
    """The inverse of `column_labels` for one column."""
    if name in table.colnames:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnitsWarning)
            table[name].unit = unit or None
        table[name].description = description or None
