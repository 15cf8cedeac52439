"""Tables on disk: FITS, HDF5, Parquet, ECSV and CSV, chosen by the file's suffix.

Whatever the format, a table written here comes back with its columns, units, descriptions and metadata. Files are
written beside their final name and moved there when complete, so that a reader never sees half a table. A failure of a
format's own library becomes a `TableError` with one sentence.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import secrets
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from astropy.io import fits
from astropy.table import Column, MaskedColumn, Table
from astropy.units import UnitsWarning

__all__ = ["TABLE_SUFFIXES", "TableError", "read_table", "table_format", "write_table"]

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
_GZIP_MAGIC = b"\x1f\x8b"
_HDF5_NAME = "table"
_META_CARD = "TABMETA"
_NULL_WORDS = ("", "null", "NULL", "None", "--", "N/A")

# What the five libraries are known to raise on a damaged or foreign file.
_LIBRARY_ERRORS = (
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


def read_table(path: str | os.PathLike[str], hdu: str = "") -> Table:
    """Read a table; columns keep their units, descriptions and masks.

    Args:
        path: the file; its suffix names the format.
        hdu: which table of a file with several: FITS extension name or number, or HDF5 dataset or group.

    Raises:
        TableError: the file is missing, unreadable, incomplete, of an unknown suffix, or holds no table or several.
    """
    path = Path(path)
    form = table_format(path)
    if path.is_dir():
        raise TableError(f"{path} is a folder, not a table")
    if not path.is_file():
        raise TableError(f"file not found: {path}{_similar_file(path)}")
    if hdu and form not in ("FITS", "HDF5"):
        raise TableError(f"{path}: a {form} file holds one table; leave hdu empty")
    try:
        with warnings.catch_warnings():
            # Units outside a standard are kept as text; a file cut short is no table.
            warnings.simplefilter("ignore", UnitsWarning)
            warnings.filterwarnings("error", message=".*truncated|Found ECSV table meta", category=UserWarning)
            table = _READERS[form](path, hdu)
            table.convert_bytestring_to_unicode()
    except TableError:
        raise
    except _LIBRARY_ERRORS as error:
        raise TableError(
            f"cannot read {path} as {form}; is it complete, and of that format? ({_first_line(error)})"
        ) from error
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
        _WRITERS[form](_native(table), part)
        os.replace(part, path)
    except TableError:
        raise
    except _LIBRARY_ERRORS as error:
        raise TableError(f"cannot write {path} as {form}: {_first_line(error)}") from error
    finally:
        part.unlink(missing_ok=True)


def _first_line(error: BaseException) -> str:
    """The gist of a library's message."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _similar_file(path: Path) -> str:
    """Names the tables that lie where the file was sought."""
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent})"
    tables = sorted(item.name for item in path.parent.iterdir() if item.name.lower().endswith((*_FORMATS, ".gz")))
    return f" (tables in that folder: {', '.join(tables[:8])})" if tables else ""


def _native(table: Table) -> Table:
    """A copy in the machine's byte order, which pyarrow and HDF5 readers elsewhere expect."""
    copy = table.copy()
    for name in copy.colnames:
        column = copy[name]
        if isinstance(column, Column) and not column.dtype.isnative:
            fresh = type(column)(column.astype(column.dtype.newbyteorder("=")))
            fresh.unit, fresh.description = column.unit, column.description
            copy.replace_column(name, fresh)
    return copy


def _labels(table: Table) -> list[dict[str, str]]:
    """Name, unit and description of each column, as text."""
    columns = [table[name] for name in table.colnames]
    return [
        {"name": c.name, "unit": "" if c.unit is None else str(c.unit), "description": c.description or ""}
        for c in columns
    ]


def _apply_label(table: Table, name: str, unit: str, description: str) -> None:
    """The inverse of `_labels` for one column."""
    if name in table.colnames:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnitsWarning)
            table[name].unit = unit or None
        table[name].description = description or None


# --- FITS


def _read_fits(path: Path, hdu: str) -> Table:
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
        _apply_label(table, name, unit, description)
    table.meta = {} if meta is None else json.loads(meta)
    return _native(table)


def _unzipped(raw: io.BufferedIOBase) -> io.BufferedIOBase:
    """The file itself, or the contents of a gzipped one, complete or not at all."""
    if raw.read(2) == _GZIP_MAGIC:
        raw.seek(0)
        return io.BytesIO(gzip.decompress(raw.read()))
    raw.seek(0)
    return raw


def _write_fits(table: Table, path: Path) -> None:
    labels = _labels(table)
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


def _read_hdf5(path: Path, hdu: str) -> Table:
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
            _apply_label(table, name, *attributes)
    return table


def _write_hdf5(table: Table, path: Path) -> None:
    table.write(path, format="hdf5", path=_HDF5_NAME, serialize_meta=True)


# --- Parquet


def _read_parquet(path: Path, hdu: str) -> Table:
    del hdu
    content = pq.read_table(path)
    table = Table()
    for field, chunks in zip(content.schema, content.columns, strict=True):
        table[field.name] = _from_arrow(path, field.name, chunks.combine_chunks())
        notes = {key.decode(): word.decode() for key, word in (field.metadata or {}).items()}
        _apply_label(table, field.name, notes.get("unit", ""), notes.get("description", ""))
    meta = (content.schema.metadata or {}).get(b"table_meta")
    table.meta = {} if meta is None else json.loads(meta)
    return table


def _from_arrow(path: Path, name: str, values: pa.Array) -> np.ndarray | MaskedColumn:
    """One Parquet column; lists of one length become a vector column."""
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(lengths) != 1 or lengths[0] is None:
            raise TableError(f"{path}: the lists in column {name!r} differ in length")
        return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), lengths[0])
    if pa.types.is_dictionary(kind):
        values = values.dictionary_decode()
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    mask = values.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type):
        filled = values.fill_null(pa.scalar(0).cast(values.type)).to_numpy(zero_copy_only=False)
    else:
        filled = np.array(["" if item is None else str(item) for item in values.to_pylist()], dtype=str)
    return MaskedColumn(filled, mask=mask) if mask.any() else filled


def _write_parquet(table: Table, path: Path) -> None:
    arrays, fields = [], []
    for label in _labels(table):
        array = _to_arrow(label["name"], table[label["name"]])
        arrays.append(array)
        fields.append(
            pa.field(label["name"], array.type, metadata={k: label[k] for k in ("unit", "description") if label[k]})
        )
    meta = {"table_meta": json.dumps(dict(table.meta))} if table.meta else None
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=meta)), path)


def _to_arrow(name: str, column: Column | MaskedColumn) -> pa.Array:
    """One column for Parquet; masked values become nulls, or NaN inside a vector."""
    mask = np.ma.getmaskarray(column) if isinstance(column, MaskedColumn) else None
    values = np.asarray(column.data.data if isinstance(column, MaskedColumn) else column.data)
    if values.ndim == 1:
        return pa.array(values.tolist() if values.dtype.kind == "U" else values, mask=mask)
    if values.ndim != 2:
        raise TableError(f"Parquet cannot hold column {name!r} of shape {values.shape[1:]} in each row")
    if mask is not None and mask.any():
        values = np.where(mask, np.nan, values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


# --- ECSV and CSV


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith(_GZIP_MAGIC):
        content = gzip.decompress(content)
    return content.decode("utf-8-sig") + "\n"


def _write_text(text: str, path: Path) -> None:
    content = text.encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.name.endswith(".gz") else content)


def _read_ecsv(path: Path, hdu: str) -> Table:
    del hdu
    return Table.read(_read_text(path), format="ascii.ecsv")


def _write_ecsv(table: Table, path: Path) -> None:
    buffer = io.StringIO()
    table.write(buffer, format="ascii.ecsv")
    _write_text(buffer.getvalue(), path)


def _read_csv(path: Path, hdu: str) -> Table:
    """CSV, after leading comment lines: ours hold a column's label in JSON, other people's may hold the header."""
    del hdu
    text = _read_text(path)
    comments = []
    while text.startswith("#"):
        line, _, text = text.partition("\n")
        comments.append(line[1:].strip())
    if not text.strip() and not comments:
        raise TableError(f"{path} is empty")
    labels = [json.loads(line) for line in comments if line.startswith("{")]
    if comments and not labels:
        text = f"{comments[-1]}\n{text}"
    fill = [(word, "0") for word in _NULL_WORDS]
    table = Table.read(text, format="ascii.csv", guess=False, fill_values=fill)
    table.meta = {}
    for label in labels:
        if "meta" in label:
            table.meta = label["meta"]
        else:
            _apply_label(table, label["name"], label["unit"], label["description"])
    return table


def _write_csv(table: Table, path: Path) -> None:
    for name in table.colnames:
        if table[name].ndim > 1:
            raise TableError(f"CSV cannot hold the vector column {name!r}; use .ecsv, .fits, .hdf5 or .parquet")
    labels: list[dict[str, Any]] = [label for label in _labels(table) if label["unit"] or label["description"]]
    labels += [{"meta": dict(table.meta)}] if table.meta else []
    buffer = io.StringIO()
    bare = table.copy()
    bare.meta = {}
    bare.write(buffer, format="ascii.csv")
    _write_text("".join(f"# {json.dumps(label)}\n" for label in labels) + buffer.getvalue(), path)


_READERS = {"FITS": _read_fits, "HDF5": _read_hdf5, "Parquet": _read_parquet, "ECSV": _read_ecsv, "CSV": _read_csv}
_WRITERS = {"FITS": _write_fits, "HDF5": _write_hdf5, "Parquet": _write_parquet, "ECSV": _write_ecsv, "CSV": _write_csv}
