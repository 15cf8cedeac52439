"""Whole tables: the format by the file's suffix, and what can be wrong with a file before its format matters."""

from __future__ import annotations

import os
import secrets
import warnings
from pathlib import Path

from astropy.table import Table
from astropy.units import UnitsWarning

from popsed_jax.tables.binary import read_fits, read_hdf5, write_fits, write_hdf5
from popsed_jax.tables.common import LIBRARY_ERRORS, TableError, first_line, native_copy, reading
from popsed_jax.tables.parquet import read_parquet, write_parquet
from popsed_jax.tables.text import read_csv, read_ecsv, write_csv, write_ecsv

__all__ = ["TABLE_SUFFIXES", "checked_format", "is_folder", "read_table", "table_format", "write_table"]

_FORMATS = {
    ".fits": "FITS",
    ".fit": "FITS",
    ".hdf5": "HDF5",
    ".h5": "HDF5",
    ".hdf": "HDF5",
    ".parquet": "Parquet",
    ".pq": "Parquet",
    ".ecsv": "ECSV",
    ".csv": "CSV",
}
TABLE_SUFFIXES = tuple(_FORMATS)
_GZIP_FORMATS = ("FITS", "ECSV", "CSV")
_READERS = {"FITS": read_fits, "HDF5": read_hdf5, "Parquet": read_parquet, "ECSV": read_ecsv, "CSV": read_csv}
_WRITERS = {"FITS": write_fits, "HDF5": write_hdf5, "Parquet": write_parquet, "ECSV": write_ecsv, "CSV": write_csv}


def table_format(path: str | os.PathLike[str]) -> str:
    """FITS, HDF5, Parquet, ECSV or CSV, from the suffix; `.gz` may follow FITS, ECSV and CSV.

    Raises:
        TableError: any other suffix.
    """
    name = Path(path).name.lower()
    gzipped = name.endswith(".gz")
    suffix = Path(name.removesuffix(".gz")).suffix
    form = _FORMATS.get(suffix)
    if form is None or (gzipped and form not in _GZIP_FORMATS):
        known = ", ".join(TABLE_SUFFIXES)
        raise TableError(
            f"{path}: the suffix does not name a table format; use one of {known} (.gz after FITS, ECSV, CSV)"
        )
    return form


def checked_format(path: Path, hdu: str) -> str:
    """The format of a file that is there.

    Raises:
        TableError: the file is missing or of an unknown suffix, or its format knows no `hdu`.
    """
    form = table_format(path)
    if not path.is_file():
        raise TableError(f"file not found: {path}{_similar_file(path)}")
    if hdu and form not in ("FITS", "HDF5"):
        raise TableError(f"{path}: a {form} file holds one table; leave hdu empty")
    return form


def is_folder(path: Path, hdu: str) -> bool:
    """Whether a path is a folder, which can hold one table.

    Raises:
        TableError: a folder with an `hdu`.
    """
    if path.is_dir() and hdu:
        raise TableError(f"{path}: a folder of Parquet files holds one table; leave hdu empty")
    return path.is_dir()


def read_table(path: str | os.PathLike[str], hdu: str = "") -> Table:
    """Read a table; columns keep their units, descriptions and masks.

    Args:
        path: the file, whose suffix names the format, or a folder of Parquet files that are the parts of one table.
        hdu: which table of a file with several: FITS extension name or number, or HDF5 dataset or group.

    Raises:
        TableError: the file is missing, unreadable, incomplete, of an unknown suffix, or holds no table or several; a folder
            without Parquet files, or with parts that do not fit together.
    """
    path = Path(path)
    form = "Parquet" if is_folder(path, hdu) else checked_format(path, hdu)
    with reading(path, form), warnings.catch_warnings():
        # Units outside a standard are kept as text; a file cut short is no table.
        warnings.simplefilter("ignore", UnitsWarning)
        warnings.filterwarnings("error", message=".*truncated|Found ECSV table meta", category=UserWarning)
        table = _READERS[form](path, hdu)
        table.convert_bytestring_to_unicode()
    return table


def write_table(table: Table, path: str | os.PathLike[str]) -> None:
    """Write a table in the format of the suffix, replacing the file if there is one.

    Raises:
        TableError: an unknown suffix, no such folder, a failing disk, or a column that the format cannot hold.
    """
    path = Path(path)
    form = table_format(path)
    if not path.parent.is_dir():
        raise TableError(f"cannot write {path}: there is no folder {path.parent}")
    part = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        _WRITERS[form](native_copy(table), part)
        os.replace(part, path)
    except TableError:
        raise
    except LIBRARY_ERRORS as error:
        raise TableError(f"cannot write {path} as {form}: {first_line(error)}") from error
    finally:
        part.unlink(missing_ok=True)


def _similar_file(path: Path) -> str:
    """Names the tables that lie where the file was sought."""
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent})"
    tables = sorted(item.name for item in path.parent.iterdir() if item.name.lower().endswith((*_FORMATS, ".gz")))
    return f" (tables in that folder: {', '.join(tables[:8])})" if tables else ""
