"""Posteriors of catalogues beyond one machine: one `map_partitions` of an LSDB catalogue (HATS files, Dask).

    import lsdb
    from popsed_jax.estimators import build_estimator
    recipe = EstimatorRecipe(build_estimator, ("runs/survey", "npe"))
    posteriors = map_posterior(lsdb.open_catalog("survey_hats"), recipe, config)
    posteriors.write_catalog("posteriors_hats")      # on the workers of the Dask client, if there is one

Nothing but the recipe travels to the workers: each process builds the estimator from its folder, which it must be able to
read, when it meets its first partition, and keeps it. LSDB comes with `pip install popsed_jax[lsdb]`; the module itself imports
only pandas of it, as the catalogue brings its own methods.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from astropy.table import Table

from popsed_jax.catalog_config import CatalogConfig, CatalogError
from popsed_jax.catalog_rows import rows_of_table, with_bands
from popsed_jax.catalog_stream import UnitJudge, read_piece
from popsed_jax.posteriors.estimator import Columns, Estimator, blank_columns, estimate_piece, part_table, piece_seed
from popsed_jax.tables import arrow_table, table_from_arrow

__all__ = ["EstimatorRecipe", "map_posterior"]

_building = threading.Lock()


@dataclass(frozen=True)
class EstimatorRecipe:
    """How a worker comes by its estimator.

    Attributes:
        build: a function that can be imported, such as `popsed_jax.estimators.build_estimator`, and gives the estimator first.
        arguments: of it; folders as seen by the workers.
    """

    build: Callable[..., tuple[Estimator, Any]]
    arguments: tuple[Hashable, ...]

    def load(self) -> tuple[Estimator, Columns]:
        """The estimator and its columns without a galaxy; built once in each process."""
        with _building:  # two threads of a worker would both build it
            return _load(self)


@dataclass(frozen=True)
class _Job:
    """What a partition needs besides its rows."""

    recipe: EstimatorRecipe
    config: CatalogConfig
    kept: tuple[str, ...]
    seed: int
    piece_rows: int


def map_posterior(
    catalog: Any,
    recipe: EstimatorRecipe,
    config: CatalogConfig,
    *,
    keep: Sequence[str] = (),
    seed: int = 0,
    piece_rows: int = 10_000,
    num_checked: int = 3,
) -> Any:
    """Posteriors of every galaxy of an LSDB catalogue, as another: nothing is computed before it is asked for.

    Every row of every partition has its line, in order: its place on the sky, what `keep` names, and the columns that
    `popsed_jax.posterior_run.run_posterior` writes. An estimator's random numbers follow from `seed`, the partition's pixel and
    the number of the piece in it: the same for every computation of the catalogue, on any number of workers; others than those
    of `run_posterior`, as the pieces are others.

    Args:
        catalog: `lsdb.Catalog`.
        recipe: of the estimator.
        config: what the columns mean; `path` does not matter, and `row` must name the column that numbers the galaxies.
        keep: further columns of the catalogue.
        seed: of everything random, not negative.
        piece_rows: rows that the estimator gets at once, at most.
        num_checked: partitions, spread over the catalogue, that are read now to see that the numbers are of the unit given.

    Returns:
        `lsdb.Catalog`, to be computed or written (`write_catalog`).

    Raises:
        CatalogError: no `row`; a band that the estimator needs and the settings do not describe; columns that are missing, are
            no numbers, or cannot be of the unit.
    """
    estimator, blank = recipe.load()
    config = with_bands(config, estimator.bands)
    if not config.row:
        raise CatalogError(
            "partitions do not number their galaxies: name the column that does as `row` in the settings"
        )
    info = catalog.hc_structure.catalog_info
    kept = tuple(dict.fromkeys((info.ra_column, info.dec_column, *keep)))
    own = ("row", "flags", *blank)
    if taken := [name for name in kept if name in own]:
        raise CatalogError(f"the posteriors have a column {taken[0]!r} of their own: rename the catalogue's to keep it")
    needed = catalog[list(dict.fromkeys((*kept, *_columns_of(config, list(catalog.columns)))))]
    _check_unit(needed, config, num_checked)
    job = _Job(recipe, config, kept, seed, piece_rows)
    meta = _posteriors(needed.meta, job, ())
    return needed.map_partitions(_map_partition, job, include_pixel=True, meta=meta)


def _map_partition(frame: pd.DataFrame, pixel: Any, job: _Job) -> pd.DataFrame:
    """One partition on a worker."""
    return _posteriors(frame, job, (pixel.order, pixel.pixel))


def _posteriors(frame: pd.DataFrame, job: _Job, place: tuple[int, ...]) -> pd.DataFrame:
    """The lines of a partition.

    Args:
        place: by which the partition is known.
    """
    estimator, blank = job.recipe.load()
    table = _table(frame, job.config)
    parts = [part_table(estimator, np.empty(0, np.int64), np.empty(0, np.int32), blank)]
    for number, start in enumerate(range(0, len(table), job.piece_rows)):
        piece = rows_of_table(table[start : start + job.piece_rows], job.config, start, number)
        columns, flags = estimate_piece(estimator, piece_seed(job.seed, *place, number), piece, blank)
        parts.append(part_table(estimator, piece.row, flags, columns))
    content = pa.concat_tables([arrow_table(part) for part in parts]).to_pandas(types_mapper=pd.ArrowDtype)
    content.index = frame.index
    return type(frame)(pd.concat([frame[list(job.kept)], content], axis=1))


@functools.lru_cache(maxsize=2)
def _load(recipe: EstimatorRecipe) -> tuple[Estimator, Columns]:
    estimator, _ = recipe.build(*recipe.arguments)
    return estimator, blank_columns(estimator)


def _columns_of(config: CatalogConfig, there: Sequence[str]) -> list[str]:
    """The columns that the settings name, of vectors the whole; all where one is not there, for the message that will say so."""
    named = [config.row, config.redshift, *(name for band in config.bands for name in band.columns)]
    bare = [name if name in there else name.rpartition("[")[0] for name in named if name]
    return list(dict.fromkeys(bare)) if set(bare) <= set(there) else list(there)


def _table(frame: pd.DataFrame, config: CatalogConfig) -> Table:
    """The columns that the settings name, for the reader."""
    names = _columns_of(config, list(frame.columns))
    if not len(frame):
        # Vectors without a row have no length; there is nothing to read.
        return Table({name: np.empty(0) for name in names})
    content = pa.Table.from_pandas(pd.DataFrame(frame[names]), preserve_index=False)
    return table_from_arrow("a partition of the catalogue", content)


def _check_unit(catalog: Any, config: CatalogConfig, num_checked: int) -> None:
    """Read some partitions and judge their numbers."""
    if not num_checked:
        return
    chosen = np.unique(np.linspace(0, catalog.npartitions - 1, num_checked).astype(int))
    frames = [frame for frame in (catalog.partitions[int(i)].compute() for i in chosen) if len(frame)]
    judge = UnitJudge(config, sum(len(frame) for frame in frames))
    start = 0
    for frame in frames:
        judge.add(read_piece(_table(frame, config), config, start))
        start += len(frame)
    if frames and (problems := judge.problems()):
        raise CatalogError(*problems)
