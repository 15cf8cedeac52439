"""ECSV and CSV, gzipped or not."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

from astropy.table import Table

from popsed_jax.tables.common import GZIP_MAGIC, TableError, apply_label, column_labels

__all__ = ["read_csv", "read_ecsv", "write_csv", "write_ecsv"]

_NULL_WORDS = ("", "null", "NULL", "None", "--", "N/A")


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith(GZIP_MAGIC):
        content = gzip.decompress(content)
    return content.decode("utf-8-sig") + "\n"


def _write_text(text: str, path: Path) -> None:
    content = text.encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.name.endswith(".gz") else content)


def read_ecsv(path: Path, hdu: str) -> Table:
    """ECSV as astropy reads it."""
    del hdu
    return Table.read(_read_text(path), format="ascii.ecsv")


def write_ecsv(table: Table, path: Path) -> None:
    """ECSV as astropy writes it."""
    buffer = io.StringIO()
    table.write(buffer, format="ascii.ecsv")
    _write_text(buffer.getvalue(), path)


def read_csv(path: Path, hdu: str) -> Table:
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
            apply_label(table, label["name"], label["unit"], label["description"])
    return table


def write_csv(table: Table, path: Path) -> None:
    """CSV, with labels and metadata in leading comment lines."""
    for name in table.colnames:
        if table[name].ndim > 1:
            raise TableError(f"CSV cannot hold the vector column {name!r}; use .ecsv, .fits, .hdf5 or .parquet")
    labels: list[dict[str, Any]] = [label for label in column_labels(table) if label["unit"] or label["description"]]
    labels += [{"meta": dict(table.meta)}] if table.meta else []
    buffer = io.StringIO()
    bare = table.copy()
    bare.meta = {}
    bare.write(buffer, format="ascii.csv")
    _write_text("".join(f"# {json.dumps(label)}\n" for label in labels) + buffer.getvalue(), path)
