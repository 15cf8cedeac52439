"""Tables on disk: FITS, HDF5, Parquet, ECSV and CSV, chosen by the file's suffix; Parquet also piece by piece.

Whatever the format, a table written here comes back with its columns, units, descriptions and metadata. Files are
written beside their final name and moved there when complete, so that a reader never sees half a table. A failure of a
format's own library becomes a `TableError` with one sentence.
"""

from popsed_jax.tables.common import TableError
from popsed_jax.tables.files import TABLE_SUFFIXES, read_table, table_format, write_table
from popsed_jax.tables.parquet import arrow_table, parquet_bytes, table_from_arrow
from popsed_jax.tables.stream import TableStream, open_table

__all__ = [
    "TABLE_SUFFIXES",
    "TableError",
    "TableStream",
    "arrow_table",
    "open_table",
    "parquet_bytes",
    "read_table",
    "table_format",
    "table_from_arrow",
    "write_table",
]
