"""Reading a catalogue larger than is kept: python benchmarks/stream.py [--num 20000000] [--max-galaxies 1000000].

A Parquet file of five bands in row groups of a million is written piece by piece into a temporary folder: the embedded
galaxies, drawn anew with their own errors as jitter. A fresh process reads it; its peak is of resident memory, above what it
held when everything was imported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import finish

import popsed_jax as pj

ROW_GROUP = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=20_000_000, help="rows of the file")
    parser.add_argument("--max-galaxies", type=int, default=1_000_000, help="rows to keep; 0: all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/stream.json"))
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)  # in the fresh process: the file
    args = parser.parse_args()
    if args.read is not None:
        print(json.dumps(read(args.read, args.max_galaxies)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "galaxies.parquet"
        write_mock(path, args.num)
        command = [sys.executable, __file__, "--read", str(path), "--max-galaxies", str(args.max_galaxies)]
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        on_disk = path.stat().st_size / 1e9
        in_memory = sum(field.type.bit_width // 8 for field in pq.read_schema(path)) * args.num / 1e9
    result = json.loads(told.splitlines()[-1])
    row = [args.num, result["kept"], result["seconds"], args.num / result["seconds"] / 1e6]
    columns = ["rows", "kept", "seconds", "million rows/s", "peak growth [GB]", "on disk [GB]", "in memory [GB]"]
    title = f"Streaming {args.num:,} rows of {len(pj.default_config().catalog.resolved().bands)} bands"
    finish(
        title, columns, [[*row, result["peak_growth_gb"], on_disk, in_memory]], args.out, {"summary": result["summary"]}
    )


def described(path: Path, max_galaxies: int) -> pj.CatalogConfig:
    """The columns of the mock."""
    bands = tuple(
        pj.BandConfig(filter=band.filter, flux=f"flux_{band.name}", name=band.name, error=f"error_{band.name}")
        for band in pj.default_config().catalog.resolved().bands
    )
    return pj.CatalogConfig(
        path=str(path), flux_unit="nanomaggies", redshift="redshift", bands=bands, max_galaxies=max_galaxies
    )


def write_mock(path: Path, num: int) -> None:
    """Fluxes and errors in nanomaggies, single precision; object numbers, which the settings do not name."""
    catalog, rng, writer = pj.read_catalog(pj.default_config().catalog), np.random.default_rng(0), None
    for start in range(0, num, ROW_GROUP):
        index = rng.integers(0, len(catalog), min(ROW_GROUP, num - start))
        error = catalog.flux_error[index]
        flux = catalog.flux[index] + error * rng.standard_normal(error.shape)
        columns = {
            "object": np.arange(start, start + len(index)),
            "redshift": catalog.redshift[index].astype(np.float32),
        }
        for i, band in enumerate(catalog.bands):
            columns[f"flux_{band}"] = (1e9 * flux[:, i]).astype(np.float32)
            columns[f"error_{band}"] = (1e9 * error[:, i]).astype(np.float32)
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=ROW_GROUP)
    writer.close()


def read(path: Path, max_galaxies: int) -> dict[str, object]:
    """Time and memory of one reading."""
    pj.read_catalog(pj.default_config().catalog)  # imports what is imported late
    before = peak_gb()
    started = time.perf_counter()
    catalog = pj.read_catalog(described(path, max_galaxies))
    seconds = time.perf_counter() - started
    return {
        "kept": len(catalog),
        "seconds": seconds,
        "peak_growth_gb": peak_gb() - before,
        "summary": catalog.summary(),
    }


def peak_gb() -> float:
    """This process's peak of resident memory; `ru_maxrss` would begin with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9


if __name__ == "__main__":
    main()
