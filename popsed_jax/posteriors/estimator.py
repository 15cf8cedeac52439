"""What turns galaxies into posteriors, seen from outside: any method that gives columns for rows."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from astropy.table import Column, Table
from jaxtyping import Float, Int

from popsed_jax.catalog_rows import RowPiece
from popsed_jax.flags import DESCRIPTION, ESTIMATOR_FLAGS

__all__ = ["Columns", "Estimator", "Rows", "blank_columns", "estimate_piece", "labels", "part_table", "piece_seed"]

# One entry for each column; first axis: galaxy; a second one: a grid or samples.
Columns = dict[str, np.ndarray]
# Unit and description of the columns that are not an estimator's to give.
_OWN = {"row": ("", "number of the galaxy in the file it came from"), "flags": ("", DESCRIPTION)}


class Rows(NamedTuple):
    """Galaxies with one usable band at least.

    Attributes:
        flux: AB flux outside the Galaxy [maggies]; NaN where the band is missing.
        error: its one-sigma error [maggies]; NaN likewise.
        redshift: spectroscopic; NaN where unknown.
        row: numbers of the galaxies in the catalogue.
    """

    flux: Float[np.ndarray, "galaxy band"]
    error: Float[np.ndarray, "galaxy band"]
    redshift: Float[np.ndarray, " galaxy"]
    row: Int[np.ndarray, " galaxy"]


class Estimator(Protocol):
    """Posteriors of galaxies in certain bands.

    Attributes:
        bands: their names, in the order of the fluxes.
    """

    bands: tuple[str, ...]

    def describe(self) -> dict[str, tuple[str, str]]:
        """Unit and description of every column, in order."""
        ...

    def __call__(self, seed: int, rows: Rows) -> Columns:
        """One entry a galaxy in every column: single or double precision, a vector (grid or samples) of fixed length or none.

        A further entry `flags` may hold, as integers, those of `popsed_jax.flags.ESTIMATOR_FLAGS` that apply. No galaxy's entry
        may depend on what comes before or after this call. Without any galaxy the columns are empty, of the same kinds and
        lengths as ever; that is asked before anything else and should take no time.
        """
        ...


def piece_seed(seed: int, *numbers: int) -> int:
    """A seed for one piece of a run, below 2^32.

    Args:
        seed: of the run, not negative.
        numbers: by which the piece is known.
    """
    return int(np.random.SeedSequence(seed, spawn_key=numbers).generate_state(1)[0])


def blank_columns(estimator: Estimator) -> Columns:
    """The estimator's columns without any galaxy: their order, kinds and lengths.

    Raises:
        ValueError: they are not as `Estimator` says.
    """
    num = len(estimator.bands)
    rows = Rows(np.empty((0, num)), np.empty((0, num)), np.empty(0), np.empty(0, dtype=np.int64))
    names = tuple(estimator.describe())
    if taken := sorted(set(names) & set(_OWN)):
        raise ValueError(f"the estimator describes the column {taken[0]!r}, a name that is not its own to give")
    columns = {name: np.asarray(column) for name, column in estimator(0, rows).items() if name != "flags"}
    if set(columns) != set(names):
        odd = ", ".join(sorted(set(columns) ^ set(names)))
        raise ValueError(f"the estimator's columns are not those that it describes: {odd}")
    for name, column in columns.items():
        if column.dtype not in (np.float32, np.float64) or column.ndim not in (1, 2) or len(column):
            raise ValueError(
                f"the estimator's column {name!r} must hold single or double precision, one number or one vector a galaxy; "
                f"for no galaxy it is {column.dtype} of shape {column.shape}"
            )
    return {name: columns[name] for name in names}


def estimate_piece(estimator: Estimator, seed: int, piece: RowPiece, blank: Columns) -> tuple[Columns, np.ndarray]:
    """Columns and flags of every row of a piece; NaN for rows that cannot be used.

    Args:
        blank: what `blank_columns` gives.

    Raises:
        ValueError: the estimator's columns change.
    """
    columns = {
        name: np.full((len(piece.row), *empty.shape[1:]), np.nan, dtype=empty.dtype) for name, empty in blank.items()
    }
    flags = piece.flags.copy()
    index = np.flatnonzero(piece.usable)
    if not len(index):
        return columns, flags
    rows = Rows(piece.flux[index], piece.error[index], piece.redshift[index], piece.row[index])
    found = {name: np.asarray(column) for name, column in estimator(seed, rows).items()}
    own = found.pop("flags", np.zeros(len(index), dtype=np.int32))
    if own.dtype.kind not in "iu" or own.shape != (len(index),) or np.any(own & ~int(ESTIMATOR_FLAGS)):
        raise ValueError(
            "the estimator's flags must be integers, one a galaxy, with no other bits than ESTIMATOR_FLAGS"
        )
    if set(found) != set(blank):
        raise ValueError(f"the estimator's columns change: {', '.join(sorted(set(found) ^ set(blank)))}")
    flags[index] |= own.astype(np.int32)
    for name, column in found.items():
        wanted = (len(index), *blank[name].shape[1:])
        if column.shape != wanted or column.dtype != blank[name].dtype:
            raise ValueError(
                f"the estimator's column {name!r} is {column.dtype} of shape {column.shape} for {len(index)} galaxies; "
                f"{blank[name].dtype} of shape {wanted} was promised"
            )
        columns[name][index] = column
    return columns, flags


def labels(estimator: Estimator) -> dict[str, tuple[str, str]]:
    """Unit and description of every column of `part_table`, in order."""
    return _OWN | estimator.describe()


def part_table(
    estimator: Estimator, row: Int[np.ndarray, " galaxy"], flags: Int[np.ndarray, " galaxy"], columns: Columns
) -> Table:
    """What `estimate_piece` gives as a table with units and descriptions."""
    content = {"row": row, "flags": flags, **columns}
    return Table(
        [
            Column(content[name], name=name, unit=unit or None, description=description)
            for name, (unit, description) in labels(estimator).items()
        ]
    )
