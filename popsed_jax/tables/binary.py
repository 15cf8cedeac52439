"""FITS and HDF5."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import h5py
from astropy.io import fits
from astropy.table import Table

from popsed_jax.tables.common import GZIP_MAGIC, TableError, apply_label, column_labels, native_copy

__all__ = ["read_fits", "read_hdf5", "write_fits", "write_hdf5"]

_HDF5_NAME = "table"
_META_CARD = "TABMETA"

# --- FITS


def read_fits(path: Path, hdu: str) -> Table:
    """The binary or text table that `hdu` names; the only one unless given."""
    # Opened here, because astropy leaves the file open when it finds it cut short.
    with open(path, "rb") as raw, fits.open(_unzipped(raw), memmap=False) as file:
        found = {i: item for i, item in enumerate(file) if isinstance(item, fits.BinTableHDU | fits.TableHDU)}
        names = ", ".join(f"{i} ({item.name or 'unnamed'})" for i, item in found.items())
        if not found:
            raise TableError(f"{path} holds no table, only images")
        chosen = [item for i, item in found.items() if hdu in ("", str(i)) or hdu.lower() == item.name.lower()]
        if len(chosen) != 1:
            problem = f"no table {hdu!r}" if hdu else "several tables"
            raise TableError(f"{path} holds {problem}; set hdu to one of: {names}")
        header = chosen[0].header
        table = Table.read(chosen[0])
        labels = [
            (header.get(f"TUNIT{i + 1}", ""), header.get(f"TCOMM{i + 1}", "")) for i in range(len(table.colnames))
        ]
        meta = header.get(_META_CARD)
    for name, (unit, description) in zip(table.colnames, labels, strict=True):
        apply_label(table, name, unit, description)
    table.meta = {} if meta is None else json.loads(meta)
    return native_copy(table)


def _unzipped(raw: io.BufferedIOBase) -> io.BufferedIOBase:
    """The file itself, or the contents of a gzipped one, complete or not at all."""
    if raw.read(2) == GZIP_MAGIC:
        raw.seek(0)
        return io.BytesIO(gzip.decompress(raw.read()))
    raw.seek(0)
    return raw


def write_fits(table: Table, path: Path) -> None:
    """One binary table; units as text, metadata as JSON in one card."""
    labels = column_labels(table)
    bare = table.copy()
    bare.meta = {}
    for name in bare.colnames:
        # astropy refuses units outside the FITS standard (maggies): they are written below, as text.
        bare[name].unit = bare[name].description = None
    hdu = fits.table_to_hdu(bare)
    for i, label in enumerate(labels, start=1):
        for key, word in ((f"TUNIT{i}", label["unit"]), (f"TCOMM{i}", label["description"])):
            if word:
                hdu.header[key] = word.encode("ascii", "backslashreplace").decode()
    if table.meta:
        hdu.header[_META_CARD] = json.dumps(dict(table.meta))
    hdu.writeto(path)


# --- HDF5


def read_hdf5(path: Path, hdu: str) -> Table:
    """The dataset of records, or group of columns, that `hdu` names; the only one unless given."""
    with h5py.File(path, "r") as file:
        if hdu and hdu not in file:
            raise TableError(
                f"{path} holds no table {hdu!r}; set hdu to one of: {', '.join(_hdf5_tables(file)) or 'none'}"
            )
        names = [hdu] if hdu else _hdf5_tables(file)
        if len(names) != 1:
            problem = f"several tables; set hdu to one of: {', '.join(names)}" if names else "no table"
            raise TableError(f"{path} holds {problem}")
        item = file[names[0]]
        if isinstance(item, h5py.Group):
            return _columns_of_group(item)
        if not item.dtype.names:
            raise TableError(f"{path}: {names[0]} is one array, not a table of named columns")
    return Table.read(path, format="hdf5", path=names[0], character_as_bytes=False)


def _hdf5_tables(file: h5py.File) -> list[str]:
    """Datasets of records; without any, groups whose datasets are columns of one length."""
    records: list[str] = []
    groups: list[str] = ["/"] if _is_column_group(file) else []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.names:
            records.append(name)
        elif isinstance(item, h5py.Group) and _is_column_group(item):
            groups.append(name)

    file.visititems(visit)
    return records or groups


def _is_column_group(group: h5py.Group) -> bool:
    """Whether a group's datasets could stand side by side."""
    shapes = [item.shape for item in group.values() if isinstance(item, h5py.Dataset)]
    return bool(shapes) and all(shapes) and len({shape[0] for shape in shapes}) == 1


def _columns_of_group(group: h5py.Group) -> Table:
    """A table from a group with one dataset a column."""
    if not _is_column_group(group):
        raise TableError(f"{group.file.filename}: {group.name} does not hold columns of one length")
    table = Table()
    for name, item in group.items():
        if isinstance(item, h5py.Dataset):
            table[name] = item.asstr()[()] if h5py.check_string_dtype(item.dtype) else item[()]
            attributes = (str(item.attrs.get(key, "")) for key in ("unit", "description"))
            apply_label(table, name, *attributes)
    return table


def write_hdf5(table: Table, path: Path) -> None:
    """One dataset of records, with its metadata beside it."""
    table.write(path, format="hdf5", path=_HDF5_NAME, serialize_meta=True)
