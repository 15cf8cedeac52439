"""Every row of a catalogue comes back, in order, with what is wrong with it, however the file is cut."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import MaskedColumn, Table
from galaxy_rows import BANDS, FAULTS, config_for, good_table, spoiled_table
from hypothesis import given, settings
from hypothesis import strategies as st

from popsed_jax.catalog import BandConfig, CatalogConfig, CatalogError, embedded_catalog_config, read_catalog
from popsed_jax.catalog_rows import RowPiece, open_catalog_rows, rows_of_table, with_bands
from popsed_jax.flags import DESCRIPTION, ESTIMATOR_FLAGS, UNUSABLE, Flag, count_flags
from popsed_jax.tables import parquet, write_table

KINDS = list(FAULTS)
SUFFIXES = [".csv", ".fits", ".parquet", ".h5", ".ecsv"]


def read_all(config: CatalogConfig, folder: object = None, piece_rows: int = 5) -> list[RowPiece]:
    return list(open_catalog_rows(config, folder).pieces(piece_rows))


def joined(pieces: list[RowPiece]) -> RowPiece:
    return RowPiece(0, *(np.concatenate(columns) for columns in zip(*(piece[1:] for piece in pieces), strict=True)))


def same(one: RowPiece, other: RowPiece) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one[1:], other[1:], strict=True))


def cut_parquet(table: Table, folder, bounds: tuple[int, ...]):
    """Parts that end at the bounds, in row groups of three."""
    folder.mkdir()
    for i, (start, end) in enumerate(zip((0, *bounds), (*bounds, len(table)), strict=True)):
        write_table(table[start:end], folder / "whole.parquet")
        pq.write_table(pq.read_table(folder / "whole.parquet"), folder / f"p{i:02d}.parquet", row_group_size=3)
    (folder / "whole.parquet").unlink()
    return folder


@pytest.fixture
def tiny_batches(monkeypatch):
    """A Parquet file comes a few rows at a time."""
    monkeypatch.setattr(parquet, "_FEWEST_ROWS", 4)
    monkeypatch.setattr(parquet, "_PIECE_VALUES", 1)


# --- every fault, every format


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bad_rows_of_every_kind_come_back_flagged_in_order(tmp_path, suffix):
    kinds = [*KINDS, *KINDS[::-1], "good"]
    table = spoiled_table(kinds)
    write_table(table, tmp_path / f"c{suffix}")
    pieces = read_all(config_for(f"c{suffix}", row="id", min_bands=2), tmp_path)
    assert [len(piece.row) for piece in pieces] == [5] * (len(kinds) // 5) + [len(kinds) % 5] * (len(kinds) % 5 > 0)
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    rows = joined(pieces)
    assert np.array_equal(rows.row, table["id"])
    assert [Flag(flags) for flags in rows.flags] == [FAULTS[kind][1] for kind in kinds]
    assert np.array_equal(np.isnan(rows.flux), np.isnan(rows.error))
    assert np.array_equal(rows.usable, np.sum(~np.isnan(rows.flux), axis=1) >= 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_faulty_band_is_missing_and_the_others_are_as_ever(kind):
    changes, _ = FAULTS[kind]
    good = rows_of_table(spoiled_table(["good"]), config_for("c"))
    rows = rows_of_table(spoiled_table([kind]), config_for("c"))
    for i, band in enumerate(BANDS):
        touched = {f"f_{band}", f"e_{band}"} & set(changes)
        if kind == "negative flux" and touched:
            assert rows.flux[0, i] == pytest.approx(-0.3e-9)
        elif touched:
            assert np.isnan(rows.flux[0, i])
        else:
            assert rows.flux[0, i] == good.flux[0, i]
            assert rows.error[0, i] == good.error[0, i]
    assert np.isnan(rows.redshift[0]) == ("z" in changes)


def test_rows_agree_with_read_catalog_where_it_keeps_them():
    """The embedded galaxies, all of whose usable rows it keeps."""
    config = embedded_catalog_config()
    catalog = read_catalog(config)
    rows = joined(read_all(config, piece_rows=999))
    assert len(rows.row) == catalog.num_rows_read
    assert np.array_equal(rows.flux[catalog.row], catalog.flux)
    assert np.array_equal(rows.error[catalog.row], catalog.flux_error)
    good = catalog.redshift >= 0.0
    assert np.array_equal(rows.redshift[catalog.row[good]], catalog.redshift[good])


def test_magnitudes_out_of_range_and_extinctions():
    table = Table(
        {"m": [20.0, 60.0, 99.0, 20.0, 20.0], "e": [0.1, 0.1, 0.1, 0.0, 0.1], "a": [0.1, 0.1, 0.1, 0.1, -5.0]}
    )
    band = BandConfig(filter="sdss_r0", flux="m", error="e", extinction="a", name="r")
    rows = rows_of_table(table, CatalogConfig(path="c", flux_unit="ABmag", bands=(band,)))
    missing, bad, error = Flag.MISSING_BAND, Flag.BAD_FLUX, Flag.BAD_ERROR
    expected = [Flag(0), *(flag | Flag.NO_BAND for flag in (bad, missing, error, bad))]
    assert [Flag(flags) for flags in rows.flags] == expected


def test_masked_values_are_missing():
    table = good_table(3)
    table["f_g"] = MaskedColumn(table["f_g"], mask=[False, True, False])
    table["z"] = MaskedColumn(table["z"], mask=[True, False, False])
    rows = rows_of_table(table, config_for("c"))
    assert [Flag(flags) for flags in rows.flags] == [Flag(0), Flag.MISSING_BAND, Flag(0)]
    assert np.array_equal(np.isnan(rows.redshift), [True, False, False])


def test_upper_limits_are_measurements():
    table = good_table(2)
    table["e_g"][0] = -1.0
    bands = tuple(dataclasses.replace(band, upper_limit=3.0) for band in config_for("c").bands)
    rows = rows_of_table(table, config_for("c", bands=bands))
    assert rows.flags.tolist() == [0, 0]
    assert rows.error[0, 0] == pytest.approx(rows.flux[0, 0] / 3.0)


# --- any cut


@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=30),
    piece_rows=st.integers(1, 12),
    min_bands=st.integers(0, 3),
    cuts=st.sets(st.integers(1, 29), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_any_pattern_of_bad_rows_comes_back_in_order(kinds, piece_rows, min_bands, cuts, tmp_path_factory):
    table = spoiled_table(kinds)
    bounds = tuple(sorted(cut for cut in cuts if cut < len(kinds)))
    folder = cut_parquet(table, tmp_path_factory.mktemp("cut") / "parts", bounds)
    config = config_for(folder, min_bands=min_bands)
    pieces = read_all(config, piece_rows=piece_rows)
    assert [len(piece.row) for piece in pieces[:-1]] == [piece_rows] * (len(pieces) - 1)
    rows = joined(pieces)
    assert rows.row.tolist() == list(range(len(kinds)))
    assert same(rows, rows_of_table(table, config))
    expected = [FAULTS[kind][1] for kind in kinds]
    kept = [int(flag) & ~int(UNUSABLE) for flag in expected]
    assert [int(flags) & ~int(UNUSABLE) for flags in rows.flags] == kept
    num_bands = np.sum(~np.isnan(rows.flux), axis=1)
    assert np.array_equal((rows.flags & Flag.NO_BAND) > 0, num_bands == 0)
    assert np.array_equal((rows.flags & Flag.FEW_BANDS) > 0, (num_bands > 0) & (num_bands < min_bands))


def test_a_catalogue_that_comes_in_small_batches(tmp_path, tiny_batches):
    table = spoiled_table(KINDS * 3)
    config = config_for(cut_parquet(table, tmp_path / "parts", (1, 2, 30)))
    for piece_rows in (1, 4, 7, 1000):
        assert same(joined(read_all(config, piece_rows=piece_rows)), rows_of_table(table, config))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_pieces_that_are_done_are_passed_over(tmp_path, suffix, tiny_batches):
    table = spoiled_table(KINDS)
    write_table(table, tmp_path / f"c{suffix}")
    rows = open_catalog_rows(config_for(f"c{suffix}"), tmp_path)
    every = list(rows.pieces(5))
    some = list(rows.pieces(5, done={0, 2, len(every) - 1}))
    assert [piece.number for piece in some] == [i for i in range(len(every) - 1) if i not in (0, 2)]
    assert all(same(piece, every[piece.number]) for piece in some)


# --- what is refused


def refused(config, folder) -> str:
    with pytest.raises(CatalogError) as caught:
        open_catalog_rows(config, folder).check()
    return str(caught.value)


def test_the_checks_of_read_catalog_fire(tmp_path):
    write_table(good_table(60), tmp_path / "c.fits")
    said = refused(config_for("c.fits", flux_unit="ABmag"), tmp_path)
    assert said.startswith(f"{tmp_path / 'c.fits'}: band 'g': flux_unit is 'ABmag'")
    assert "which are no magnitudes" in said
    said = refused(config_for("c.fits", redshift="zz"), tmp_path)
    assert "redshift: there is no column 'zz'; did you mean 'z'? Columns: id, f_g" in said
    with pytest.raises(CatalogError) as caught:
        read_catalog(config_for("c.fits", redshift="zz"), tmp_path)
    assert str(caught.value) == said
    assert "file not found" in refused(config_for("d.fits"), tmp_path)


def test_an_odd_unit_is_seen_wherever_it_begins(tmp_path, tiny_batches):
    """The unit is judged by rows of the whole file, here in its last part, before anything is computed."""
    table = good_table(200)
    for b in BANDS:
        table[f"f_{b}"][:90] = np.nan
        table[f"f_{b}"][90:] = table[f"f_{b}"][90:] * 1e-9
    write_table(table, tmp_path / "c.parquet")
    assert "write flux_unit = " in refused(config_for("c.parquet"), tmp_path)


def test_a_bad_catalogue_is_no_reason_to_refuse(tmp_path):
    """Nothing to use in any row: `read_catalog` gives up, a product with a line for each galaxy does not."""
    write_table(spoiled_table(["no bands"] * 3), tmp_path / "c.fits")
    rows = open_catalog_rows(config_for("c.fits"), tmp_path)
    rows.check()
    assert not joined(list(rows.pieces(2))).usable.any()


def test_a_file_cut_short_is_named(tmp_path):
    write_table(good_table(60), tmp_path / "c.parquet")
    content = (tmp_path / "c.parquet").read_bytes()
    (tmp_path / "c.parquet").write_bytes(content[: len(content) // 2])
    assert "is it complete" in refused(config_for("c.parquet"), tmp_path)


def test_the_rows_read_are_told(tmp_path, tiny_batches):
    write_table(good_table(10), tmp_path / "c.parquet")
    told = []
    open_catalog_rows(config_for("c.parquet"), tmp_path).check(lambda done, total: told.append((done, total)))
    assert told == [(4, 10), (8, 10), (10, 10)]


# --- bands, identity, flags


def test_bands_are_matched_by_name():
    config = with_bands(config_for("c", min_bands=3), ("i", "g"))
    assert [band.name for band in config.bands] == ["i", "g"]
    assert config.min_bands == 2
    with pytest.raises(CatalogError, match=r"for the bands u, g, but .* describe g, r, i: u must be there by name"):
        with_bands(config_for("c"), ("u", "g"))


@pytest.mark.parametrize("change", ["other bytes", "a row more", "another place"])
def test_another_file_has_another_identity(tmp_path, change):
    table = good_table(20)
    write_table(table, tmp_path / "c.parquet")
    first = open_catalog_rows(config_for("c.parquet"), tmp_path).identity()
    assert first == open_catalog_rows(config_for("c.parquet"), tmp_path).identity()
    name = "c.parquet"
    if change == "other bytes":
        table["f_g"][3] *= 1.001
    elif change == "a row more":
        table = good_table(21)
    else:
        name = "d.parquet"
    write_table(table, tmp_path / name)
    other = open_catalog_rows(config_for(name), tmp_path).identity()
    differs = {key for key in first if first[key] != other[key]}
    assert ({"other bytes": "ends_sha256", "a row more": "num_rows", "another place": "path"}[change]) in differs


def test_flags_are_told_apart_and_described():
    values = [flag.value for flag in Flag]
    assert sum(values) == int(np.bitwise_or.reduce(values))
    assert all(f"{value}, " in DESCRIPTION for value in values)
    assert not UNUSABLE & ESTIMATOR_FLAGS
    assert count_flags(np.array([0, 4, 5, 512])) == {
        "no usable band": 1,
        "a band is not measured": 2,
        "the effective sample size is low": 1,
    }
