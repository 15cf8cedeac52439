"""Parquet: a file or a folder of files, whole or piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from astropy.table import Column, MaskedColumn, Table

from popsed_jax.tables.common import TableError, apply_label, column_labels, reading

__all__ = [
    "ParquetParts",
    "arrow_table",
    "open_parquet",
    "parquet_bytes",
    "read_parquet",
    "table_from_arrow",
    "write_parquet",
]

_SUFFIXES = (".parquet", ".pq")
# Values of one piece, all columns together: larger ones are not read faster.
_PIECE_VALUES = 1_000_000
_FEWEST_ROWS = 1_000
# A column of a row group is read through a buffer of this size [bytes], not whole: a file may be one row group.
_BUFFER = 1 << 20


@dataclass(frozen=True)
class ParquetParts:
    """One table in one Parquet file or several.

    Attributes:
        paths: the files, in the order of their rows.
        num_rows: of all together.
        schema: the columns in the order of the first file, each wide enough for all.
    """

    paths: tuple[Path, ...]
    num_rows: int
    schema: pa.Schema

    def pieces(self, names: Sequence[str]) -> Iterator[Table]:
        """These columns of all rows in order, a bounded number of rows at a time; small files come together.

        Raises:
            TableError: a damaged file, or a vector column whose length changes.
        """
        size = max(_FEWEST_ROWS, _PIECE_VALUES // max(len(names), 1))
        target = pa.schema([self.schema.field(name) for name in names], self.schema.metadata)
        held: list[pa.Table] = []
        shapes: dict[str, tuple[int, ...]] = {}
        for path in self.paths:
            with reading(path, "Parquet"), pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
                for batch in file.iter_batches(batch_size=size, columns=list(names)):
                    if batch.num_rows:
                        held.append(pa.Table.from_batches([batch]).select(list(names)).cast(target))
                    if sum(part.num_rows for part in held) >= size:
                        yield _checked_piece(path, held, shapes)
                        held = []
        if held:
            yield _checked_piece(self.paths[-1], held, shapes)


def open_parquet(path: Path) -> ParquetParts:
    """A Parquet file, or the Parquet files in a folder and its subfolders in the order of their paths.

    Hidden files, and those whose name begins with an underscore, are left aside, as other readers do.

    Raises:
        TableError: no such files, a damaged one, or one whose columns differ from the first's.
    """
    paths = _part_paths(path) if path.is_dir() else (path,)
    if not paths:
        raise TableError(
            f"{path} is a folder, not a table, and no Parquet file lies in it; "
            "give a table, or a folder with the parts of one, NAME.parquet or NAME.pq"
        )
    num_rows = 0
    schema: pa.Schema | None = None
    for part in paths:
        with reading(part, "Parquet"), pq.ParquetFile(part) as file:
            own = file.schema_arrow
            difference = "" if schema is None else _difference(own, schema)
            if difference:
                raise TableError(
                    f"{part} does not continue {paths[0].name}: {difference}; "
                    "give the parts the same columns, or take this file out of the folder"
                )
            num_rows += file.metadata.num_rows
            schema = own if schema is None else pa.unify_schemas([schema, own], promote_options="permissive")
    return ParquetParts(paths, num_rows, schema)


def _part_paths(folder: Path) -> tuple[Path, ...]:
    """The Parquet files in a folder and its subfolders."""
    found = [item for item in folder.rglob("*") if item.suffix.lower() in _SUFFIXES and item.is_file()]
    inner = sorted(item.relative_to(folder) for item in found)
    return tuple(folder / item for item in inner if not any(word[0] in "._" for word in item.parts))


def _kind(field: pa.Field) -> str:
    """What a column holds, whatever its precision, and in what unit."""
    kind = field.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    vector = ""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, vector = kind.value_type, "vectors of "
    if pa.types.is_integer(kind):
        word = "integers"
    elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        word = "numbers"
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        word = "text"
    else:
        word = str(kind)
    unit = (field.metadata or {}).get(b"unit", b"").decode()
    return f"{vector}{word}{f' in {unit}' if unit else ''}"


def _difference(own: pa.Schema, first: pa.Schema) -> str:
    """The first column that differs, in words; a column without any value goes with all."""
    for name in first.names:
        if name not in own.names:
            return f"it lacks the column {name!r}"
        here, there = own.field(name), first.field(name)
        if _kind(here) != _kind(there) and not pa.types.is_null(here.type) and not pa.types.is_null(there.type):
            return f"column {name!r} holds {_kind(here)}, there {_kind(there)}"
    extra = [name for name in own.names if name not in first.names]
    return f"it has a column {extra[0]!r} more" if extra else ""


def read_parquet(path: Path, hdu: str) -> Table:
    """The whole file, or all files in a folder as one table."""
    del hdu
    parts = open_parquet(path)
    contents = []
    for part in parts.paths:
        with reading(part, "Parquet"), pq.ParquetFile(part) as file:
            contents.append(file.read().select(parts.schema.names).cast(parts.schema))
    return table_from_arrow(path, pa.concat_tables(contents))


def _checked_piece(path: Path, held: list[pa.Table], shapes: dict[str, tuple[int, ...]]) -> Table:
    """Batches as one table, whose vector columns have the lengths of the earlier pieces."""
    table = table_from_arrow(path, pa.concat_tables(held))
    for name in table.colnames:
        if shapes.setdefault(name, table[name].shape[1:]) != table[name].shape[1:]:
            raise TableError(f"{path}: the lists in column {name!r} differ in length")
    return table


def table_from_arrow(path: Path | str, content: pa.Table) -> Table:
    """Columns with their labels; lists of one length become vector columns.

    Args:
        path: where the content comes from, for messages.

    Raises:
        TableError: lists that differ in length.
    """
    table = Table()
    for field, chunks in zip(content.schema, content.columns, strict=True):
        table[field.name] = _from_arrow(path, field.name, chunks.combine_chunks())
        notes = {key.decode(): word.decode() for key, word in (field.metadata or {}).items()}
        apply_label(table, field.name, notes.get("unit", ""), notes.get("description", ""))
    meta = (content.schema.metadata or {}).get(b"table_meta")
    table.meta = {} if meta is None else json.loads(meta)
    return table


def _from_arrow(path: Path | str, name: str, values: pa.Array) -> np.ndarray | MaskedColumn:
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


def write_parquet(table: Table, path: Path) -> None:
    """One file; units and descriptions as metadata of the columns."""
    pq.write_table(arrow_table(table), path)


def parquet_bytes(table: Table) -> bytes:
    """What `write_parquet` writes, for whoever writes it in another way.

    Raises:
        TableError: a column that Parquet cannot hold.
    """
    buffer = pa.BufferOutputStream()
    pq.write_table(arrow_table(table), buffer)
    return buffer.getvalue().to_pybytes()


def arrow_table(table: Table) -> pa.Table:
    """The same columns for Arrow, vector columns as lists of fixed size."""
    arrays, fields = [], []
    for label in column_labels(table):
        array = _to_arrow(label["name"], table[label["name"]])
        arrays.append(array)
        fields.append(
            pa.field(label["name"], array.type, metadata={k: label[k] for k in ("unit", "description") if label[k]})
        )
    meta = {"table_meta": json.dumps(dict(table.meta))} if table.meta else None
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=meta))


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
