"""What an estimator promises is held against what it gives."""

from __future__ import annotations

import numpy as np
import pytest
from galaxy_rows import FakeEstimator, config_for, spoiled_table

from popsed_jax.catalog_rows import rows_of_table
from popsed_jax.flags import Flag
from popsed_jax.posteriors.estimator import Columns, Rows, blank_columns, estimate_piece


class Altered(FakeEstimator):
    """An estimator whose columns are changed on the way."""

    def __init__(self, change, only_filled: bool = False) -> None:
        super().__init__()
        self._change, self._only_filled = change, only_filled

    def __call__(self, seed: int, rows: Rows) -> Columns:
        columns = super().__call__(seed, rows)
        return columns if self._only_filled and not len(rows.row) else self._change(columns)


def test_blank_columns_are_in_the_order_of_the_description() -> None:
    blank = blank_columns(FakeEstimator())
    assert [(name, column.shape, column.dtype) for name, column in blank.items()] == [
        ("mean_flux", (0,), np.float64),
        ("noise", (0,), np.float64),
        ("pz", (0, 4), np.float32),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda columns: columns | {"extra": np.empty(0)}, "are not those that it describes: extra"),
        (lambda columns: {"pz": columns["pz"]}, "are not those that it describes: mean_flux, noise"),
        (lambda columns: columns | {"noise": np.empty(0, dtype=int)}, "'noise' must hold single or double precision"),
        (lambda columns: columns | {"noise": np.empty((0, 2, 2))}, r"one number or one vector a galaxy; .*\(0, 2, 2\)"),
        (lambda columns: columns | {"noise": np.empty(1)}, r"for no galaxy it is float64 of shape \(1,\)"),
    ],
)
def test_columns_that_are_not_as_described(change, words) -> None:
    with pytest.raises(ValueError, match=words):
        blank_columns(Altered(change))


def test_names_that_are_taken() -> None:
    class Taken(FakeEstimator):
        def describe(self) -> dict[str, tuple[str, str]]:
            return super().describe() | {"row": ("", "mine")}

    with pytest.raises(ValueError, match="describes the column 'row', a name that is not its own to give"):
        blank_columns(Taken())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda columns: columns | {"extra": columns["noise"]}, "the estimator's columns change: extra"),
        (
            lambda columns: columns | {"noise": columns["noise"][:-1]},
            r"'noise' is float64 of shape \(2,\) for 3 galaxies",
        ),
        (
            lambda columns: columns | {"pz": columns["pz"][:, :3]},
            r"shape \(3, 3\) .* float32 of shape \(3, 4\) was promised",
        ),
        (lambda columns: columns | {"noise": columns["noise"].astype("f4")}, "'noise' is float32 .* float64 of shape"),
        (lambda columns: columns | {"flags": np.full(3, int(Flag.NO_BAND))}, "no other bits than ESTIMATOR_FLAGS"),
        (lambda columns: columns | {"flags": np.zeros(2, dtype=int)}, "flags must be integers, one a galaxy"),
        (lambda columns: columns | {"flags": np.zeros(3)}, "flags must be integers, one a galaxy"),
    ],
)
def test_columns_that_change(change, words) -> None:
    estimator = Altered(change, only_filled=True)
    piece = rows_of_table(spoiled_table(["good", "nan flux", "no bands", "good"]), config_for("c"))
    with pytest.raises(ValueError, match=words):
        estimate_piece(estimator, 0, piece, blank_columns(estimator))


def test_flags_of_both_sides_are_added() -> None:
    estimator = Altered(lambda columns: columns | {"flags": np.array([0, 256, 1024])}, only_filled=True)
    piece = rows_of_table(spoiled_table(["good", "nan flux", "no bands", "good"]), config_for("c"))
    columns, flags = estimate_piece(estimator, 0, piece, blank_columns(estimator))
    both = int(Flag.MISSING_BAND | Flag.NOT_CONVERGED)
    assert flags.tolist() == [0, both, int(Flag.MISSING_BAND | Flag.NO_BAND), int(Flag.OUT_OF_DISTRIBUTION)]
    assert np.array_equal(np.isnan(columns["noise"]), [False, False, True, False])
    assert piece.flags.tolist()[1] == int(Flag.MISSING_BAND)


def test_an_estimator_without_flags_of_its_own() -> None:
    estimator = Altered(lambda columns: {name: column for name, column in columns.items() if name != "flags"})
    piece = rows_of_table(spoiled_table(["good"]), config_for("c"))
    assert estimate_piece(estimator, 0, piece, blank_columns(estimator))[1].tolist() == [0]
