"""Posteriors of all galaxies of a catalogue, of any size: a folder of Parquet parts, in the catalogue's order."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.table import Table
from jaxtyping import Int

from popsed_jax.catalog_config import CatalogConfig
from popsed_jax.catalog_rows import CatalogRows, open_catalog_rows, with_bands
from popsed_jax.flags import UNUSABLE, count_flags
from popsed_jax.population.checkpoint import CheckpointError, named_differences, settings_text
from popsed_jax.population.storage import StorageError, read_description, write_atomically
from popsed_jax.posteriors.estimator import (
    Columns,
    Estimator,
    blank_columns,
    estimate_piece,
    labels,
    part_table,
    piece_seed,
)
from popsed_jax.progress import Progress
from popsed_jax.run import versions
from popsed_jax.settings import to_mapping
from popsed_jax.tables import parquet_bytes, read_table

__all__ = ["PosteriorResult", "read_posterior", "run_posterior"]

FORMAT_VERSION = 1
DESCRIPTION = "posterior.json"
_WHAT, _HINT = "posterior", "give the folder that `popsed-jax posterior` wrote"
_PART = re.compile(r"part-\d{5,}\.parquet")


@dataclass(frozen=True)
class PosteriorResult:
    """A finished (or stopped) pass over a catalogue.

    Attributes:
        folder: where the parts are.
        num_rows: rows of the catalogue.
        num_done: those that are in the parts.
        num_estimated: those that have a posterior.
        flagged: how many rows have each fault, in words.
        seconds: of this call.
        finished: whether all rows are there.
        reason: all that in a sentence.
    """

    folder: Path
    num_rows: int
    num_done: int
    num_estimated: int
    flagged: dict[str, int]
    seconds: float
    finished: bool
    reason: str


def run_posterior(
    estimator: Estimator,
    catalog: CatalogConfig,
    base: Path | str | None = None,
    *,
    out: Path | str,
    identity: Mapping[str, Any],
    seed: int = 0,
    piece_rows: int = 10_000,
    resume: bool = False,
    show_progress: bool = True,
) -> PosteriorResult:
    """Give every row of a catalogue to an estimator, so many at a time, and write a Parquet file for each piece.

    The folder then holds `part-00000.parquet` and so on, which `popsed_jax.read_table` reads as one table: `row`, `flags`
    (`popsed_jax.flags.Flag`), and the estimator's columns. Every row of the catalogue has its line, in order; where it cannot
    be used the columns are NaN and `flags` says why. `posterior.json` says of what and by what the columns are. Parts are
    written whole or not at all: after a kill, `resume` makes those that are missing.

    A piece is so many rows of the file, and its seed follows from `seed` and its number. Results are therefore the same for
    every run with the same `piece_rows`, resumed or not; with another, they differ by the estimator's Monte Carlo error.

    Args:
        catalog: what the catalogue's columns mean. Bands are matched to the estimator's by name.
        base: folder to which relative paths in `catalog` refer; the working folder unless given.
        out: folder to write; posteriors that it holds are replaced unless resumed.
        identity: by which the estimator is known, in JSON's types: method, settings, checksums.
        seed: of everything random, not negative.
        piece_rows: rows of a piece: what a kill can lose, and what the estimator computes at once.
        resume: continue in `out`.
        show_progress: a progress bar on the terminal.

    Returns:
        The account; also when interrupted with Ctrl-C, then with `finished` false.

    Raises:
        CatalogError: as `read_catalog`; a catalogue without one of the estimator's bands.
        CheckpointError: `resume` without anything to resume, or of another catalogue, estimator or settings.
        ValueError: a folder that holds something else; an estimator that breaks its promises.
    """
    started = time.perf_counter()
    if piece_rows < 1 or seed < 0:
        raise ValueError(f"piece_rows must be positive and seed not negative, got {piece_rows} and {seed}")
    rows = open_catalog_rows(with_bands(catalog, estimator.bands), base)
    folder = _Folder(Path(out), rows, piece_rows)
    blank = blank_columns(estimator)
    asked = {"estimator": dict(identity), "seed": seed, "piece_rows": piece_rows}
    description = _description(estimator, blank, rows, folder.num_parts, asked)
    if resume:
        description = folder.check(description)
    else:
        with Progress(show_progress) as reading:
            rows.check(reading.rows)
        folder.start(description)
    counts = _Counts()
    done = folder.done(counts)
    with Progress(show_progress, log=folder.path / "log.txt") as progress:
        if resume:
            progress.say(f"Resuming: {len(done)} of {folder.num_parts} parts are there")
            if description["versions"] != versions():
                progress.say("The parts so far are by other versions of the software (posterior.json says which)")
        before = counts.num
        progress.start("galaxies", rows.num_rows, before)
        computing = time.perf_counter()
        try:
            for piece in rows.pieces(piece_rows, done) if len(done) < folder.num_parts else ():
                columns, flags = estimate_piece(estimator, piece_seed(seed, piece.number), piece, blank)
                folder.write(piece.number, part_table(estimator, piece.row, flags, columns))
                counts.add(flags)
                progress.advance(counts.num, _rate(counts.num - before, time.perf_counter() - computing), "row")
        except KeyboardInterrupt:
            progress.say("Interrupted: the parts so far are kept")
        result = counts.result(folder.path, rows.num_rows, time.perf_counter() - started)
        if result.finished:
            folder.finish(description, result)
        progress.say(result.reason)
    return result


def read_posterior(folder: Path | str) -> Table:
    """All parts of a finished folder as one table, with what `posterior.json` says as its metadata.

    Raises:
        StorageError: no such folder, or one that is not finished.
        TableError: a damaged part.
    """
    path = Path(folder) / DESCRIPTION
    description = read_description(path, _WHAT, FORMAT_VERSION, _HINT)
    if "num_rows" not in description:
        raise StorageError(
            f"{path.parent} is not finished: go on with --resume (read_table reads the parts that are there)"
        )
    table = read_table(path.parent)
    if len(table) != description["num_rows"]:
        raise StorageError(
            f"{path.parent} holds {len(table):,} of {description['num_rows']:,} rows: parts are missing; --resume makes them"
        )
    table.meta = description
    return table


class _Folder:
    """The parts that are there and those that are not."""

    def __init__(self, path: Path, rows: CatalogRows, piece_rows: int) -> None:
        if rows.path.is_dir() and path.resolve().is_relative_to(rows.path.resolve()):
            raise ValueError(f"{path} lies in the catalogue's folder {rows.path}, and would become a part of it")
        self.path = path
        self._num_rows, self._piece_rows = rows.num_rows, piece_rows
        self.num_parts = -(-rows.num_rows // piece_rows)

    def check(self, description: Mapping[str, Any]) -> dict[str, Any]:
        """What the folder says of itself, if these posteriors are the ones that it holds.

        Raises:
            CheckpointError: it holds none, or others; says what to do.
        """
        path = self.path / DESCRIPTION
        if not path.is_file():
            raise CheckpointError(f"nothing to resume: {path} does not exist. Start without --resume.")
        try:
            found = read_description(path, _WHAT, FORMAT_VERSION, _HINT)
        except StorageError as error:
            raise CheckpointError(f"{error}. Start anew without --resume.") from None
        for what, key in (
            ("another catalogue, estimator or settings", "asked"),
            ("an estimator of other columns", "columns"),
        ):
            there, here = settings_text(found.get(key, {})), settings_text(description[key])
            if there != here:
                raise CheckpointError(
                    f"the posteriors in {self.path} are of {what}{named_differences(there, here)}. Resume with what they were "
                    "begun with, or start anew without --resume"
                )
        return found

    def start(self, description: Mapping[str, Any]) -> None:
        """Make room for other posteriors.

        Raises:
            ValueError: there are files of others.
        """
        parts = self._parts()
        if (self.path / DESCRIPTION).is_file():
            read_description(self.path / DESCRIPTION, _WHAT, FORMAT_VERSION, _HINT)
        elif parts:
            raise ValueError(
                f"{self.path} holds Parquet files, such as {parts[0].name}, and no {DESCRIPTION}: give a new or empty folder"
            )
        if foreign := [part.name for part in parts if not _PART.fullmatch(part.name)]:
            raise ValueError(
                f"{self.path} holds {foreign[0]}, which is no part of posteriors: give a new or empty folder"
            )
        for part in parts:
            part.unlink()
        self._describe(description)

    def done(self, counts: _Counts) -> set[int]:
        """Numbers of the parts that are there and whole; their faults are counted."""
        numbers = set()
        for number in range(self.num_parts):
            flags = _flags_of(self._part(number))
            if len(flags) == self._size(number):
                counts.add(flags)
                numbers.add(number)
        return numbers

    def write(self, number: int, table: Table) -> None:
        """One part, whole or not at all."""
        write_atomically(self._part(number), parquet_bytes(table))

    def finish(self, description: Mapping[str, Any], result: PosteriorResult) -> None:
        """Say that all parts are there, and how many galaxies have which fault."""
        counts = {"num_rows": result.num_rows, "num_estimated": result.num_estimated, "flagged": result.flagged}
        self._describe({**description, **counts})

    def _describe(self, description: Mapping[str, Any]) -> None:
        write_atomically(self.path / DESCRIPTION, (json.dumps(description, indent=2) + "\n").encode())

    def _parts(self) -> Sequence[Path]:
        return sorted(item for item in self.path.rglob("*") if item.suffix.lower() in (".parquet", ".pq"))

    def _part(self, number: int) -> Path:
        digits = max(5, len(str(self.num_parts - 1)))  # so that names sort as numbers do
        return self.path / f"part-{number:0{digits}d}.parquet"

    def _size(self, number: int) -> int:
        return min(self._piece_rows, self._num_rows - number * self._piece_rows)


class _Counts:
    """Rows and their faults, added up."""

    def __init__(self) -> None:
        self.num = 0
        self._num_estimated = 0
        self._flagged: Counter[str] = Counter()

    def add(self, flags: Int[np.ndarray, " galaxy"]) -> None:
        """Those of a part."""
        self.num += len(flags)
        self._num_estimated += int(np.count_nonzero((flags & UNUSABLE) == 0))
        self._flagged.update(count_flags(flags))

    def result(self, folder: Path, num_rows: int, seconds: float) -> PosteriorResult:
        """The account."""
        finished = self.num == num_rows
        what = f"{num_rows:,} galaxies" if finished else f"{self.num:,} of {num_rows:,} galaxies (--resume goes on)"
        flagged = dict(sorted(self._flagged.items()))
        faults = "; ".join(f"{count:,}: {words}" for words, count in flagged.items())
        reason = (
            f"{what} in {seconds:.1f} s, {self._num_estimated:,} with a posterior; "
            f"{f'flagged: {faults}' if faults else 'none flagged'}. Parts: {folder}"
        )
        return PosteriorResult(folder, num_rows, self.num, self._num_estimated, flagged, seconds, finished, reason)


def _rate(num: int, seconds: float) -> str:
    """How fast it goes, in words."""
    rate = num / seconds
    return f"{rate:,.0f} galaxies/s" if rate >= 10.0 else f"{rate:.2g} galaxies/s"


def _description(
    estimator: Estimator, blank: Columns, rows: CatalogRows, num_parts: int, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """What `posterior.json` says before there are counts."""
    return {
        "format": f"popsed_jax {_WHAT}",
        "format_version": FORMAT_VERSION,
        "num_parts": num_parts,
        "asked": {"catalog": rows.identity(), "columns": _meaning(rows.config), **asked},
        "columns": _described(estimator, blank),
        "versions": versions(),
    }


def _meaning(config: CatalogConfig) -> dict[str, Any]:
    """What the columns are taken for. Where they are is the catalogue's identity."""
    return {name: value for name, value in to_mapping(config).items() if name not in ("path", "name", "max_galaxies")}


def _flags_of(path: Path) -> Int[np.ndarray, " galaxy"]:
    """The flags in a part; none of one that is not there or cannot be read, which is then made again."""
    try:
        return pq.read_table(path, columns=["flags"])["flags"].to_numpy()
    except (OSError, KeyError, pa.ArrowException):
        return np.empty(0, dtype=np.int32)


def _described(estimator: Estimator, blank: Columns) -> list[dict[str, Any]]:
    """Every column in JSON's types."""
    empty: Columns = {"row": np.empty(0, dtype=np.int64), "flags": np.empty(0, dtype=np.int32), **blank}
    return [
        {
            "name": name,
            "unit": unit,
            "description": description,
            "kind": empty[name].dtype.name,
            "length": list(empty[name].shape[1:]),
        }
        for name, (unit, description) in labels(estimator).items()
    ]
