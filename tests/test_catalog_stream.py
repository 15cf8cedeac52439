"""Catalogues larger than memory: what is read does not depend on the pieces, and a sample of the galaxies is a fair one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import MaskedColumn, Table, vstack
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from popsed_jax import catalog_stream
from popsed_jax.catalog import BandConfig, Catalog, CatalogConfig, CatalogError, read_catalog
from popsed_jax.catalog_sample import UniformSample
from popsed_jax.progress import Progress
from popsed_jax.tables import open_table, parquet, write_table

NUM = 300
BANDS = tuple(BandConfig(filter=f"sdss_{b}0", flux=f"f_{b}", error=f"e_{b}", name=b) for b in "gri")


def faulty_table(seed=0):
    """Galaxies in three bands with every kind of fault, copies, masked values, texts and a running index."""
    rng = np.random.default_rng(seed)
    table = Table({"index": np.arange(NUM), "id": rng.permutation(10 * NUM)[:NUM]})
    table["name"] = [f"J{number:04d}" for number in rng.integers(0, 400, NUM)]
    for b in "gri":
        mag = rng.uniform(17.0, 21.0, NUM)
        table[f"f_{b}"] = np.float32(10 ** (-0.4 * (mag - 22.5)))
        table[f"e_{b}"] = rng.uniform(0.1, 0.2, NUM)
        table[f"f_{b}"][rng.integers(0, NUM, 6)] = np.nan
        table[f"f_{b}"][rng.integers(0, NUM, 6)] = -99.0
        table[f"e_{b}"][rng.integers(0, NUM, 6)] = [0.0, 0.0, -999.0, -999.0, -9999.0, -9999.0]
        table[f"f_{b}"] = MaskedColumn(table[f"f_{b}"], mask=rng.random(NUM) < 0.02)
    table["z"] = np.where(rng.random(NUM) < 0.1, -99.0, rng.uniform(0.0, 0.4, NUM))
    table = vstack([table, table[5:15], table[[7, 7, 100]]], join_type="exact")
    table["index"] = np.arange(len(table))
    return table


def write_parts(table, folder, bounds, row_group):
    """The table in parts that end at the bounds, in small row groups."""
    folder.mkdir(exist_ok=True)
    for i, (start, end) in enumerate(zip((0, *bounds), (*bounds, len(table)), strict=True)):
        whole = folder / f"whole{i}.parquet"
        write_table(table[start:end], whole)
        pq.write_table(pq.read_table(whole), folder / f"part{i:02d}.parquet", row_group_size=row_group)
        whole.unlink()
    return folder


def config_for(path, **changes):
    given = {"path": str(path), "flux_unit": "nanomaggies", "bands": BANDS, "redshift": "z"}
    return CatalogConfig(**{**given, **changes})


def same(one: Catalog, other: Catalog) -> bool:
    """Whether all is the same but the name."""
    arrays = all(
        np.array_equal(getattr(one, word), getattr(other, word), equal_nan=True)
        for word in ("flux", "flux_error", "row", "redshift")
    )
    numbers = ("num_rows_read", "num_rows_dropped", "num_not_drawn", "drops")
    return arrays and all(getattr(one, word) == getattr(other, word) for word in numbers)


@pytest.fixture
def small_pieces(monkeypatch):
    """Sets how many rows of a Parquet file come at a time, at least."""

    def set_rows(rows):
        monkeypatch.setattr(parquet, "_FEWEST_ROWS", rows)
        monkeypatch.setattr(parquet, "_PIECE_VALUES", 1)

    return set_rows


# --- the law: pieces do not matter

SPLITS = [((), 1), ((), 7), ((), 100), ((50,), 30), ((1, 2, 150, 150, 290, 313), 11), (tuple(range(13, 313, 13)), 1000)]
SETTINGS = [
    {},
    {"bands": BANDS[:2]},
    {"min_bands": 2},
    {"min_bands": 3, "row": "id"},
    {"bands": BANDS[:2], "row": "index"},
]


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    """A folder with one table whole and divided in every way."""
    folder, table = tmp_path_factory.mktemp("divided"), faulty_table()
    for name in ("whole.fits", "whole.parquet"):
        write_table(table, folder / name)
    for i, (bounds, row_group) in enumerate(SPLITS):
        write_parts(table, folder / f"split{i}", bounds, row_group)
    return folder


@pytest.mark.parametrize("changes", SETTINGS, ids=range(len(SETTINGS)))
@pytest.mark.parametrize("max_galaxies", [0, NUM + 13, 100])
def test_any_division_gives_the_same_catalogue(divided, small_pieces, changes, max_galaxies):
    changes = {"max_galaxies": max_galaxies, **changes}
    whole = read_catalog(config_for(divided / "whole.fits", **changes))
    assert whole.drops
    assert (len(whole) == 100) == (whole.num_not_drawn > 0) == (max_galaxies == 100)
    assert same(whole, read_catalog(config_for(divided / "whole.parquet", **changes)))
    for i, (_, row_group) in enumerate(SPLITS):
        small_pieces(5 if row_group == 7 else 40)
        assert same(whole, read_catalog(config_for(divided / f"split{i}", **changes)))


def test_faults_are_counted_as_by_hand(tmp_path, small_pieces):
    """Independent of the reader: counts, sentinels that no one piece has all of, first rows."""
    table = faulty_table()
    small_pieces(5)
    catalog = read_catalog(config_for(write_parts(table, tmp_path / "parts", (40, 200), 9)))
    drops = {drop.reason: drop for drop in catalog.drops}
    missing = np.ma.filled(np.ma.asarray(table["f_g"]), np.nan)
    where = np.flatnonzero(np.isnan(missing))
    found = drops["band g: flux is missing or not finite"]
    assert (found.count, found.rows) == (len(where), tuple(where[:5]))
    error = np.asarray(table["e_r"])
    flagged = np.isin(error, [-999.0, -9999.0])
    assert len(set(error[flagged])) == 2
    assert "band r: error is -999 or -9999, not measured" in drops
    good = np.ones(len(table), dtype=bool)
    for b in "gri":
        flux = np.ma.filled(np.ma.asarray(table[f"f_{b}"]), np.nan)
        good &= np.isfinite(flux) & (flux != -99.0) & (np.asarray(table[f"e_{b}"]) > 0.0)
    copies = good & (np.arange(len(table)) >= NUM)
    repeated = drops["repeats an earlier row in every column that the settings name"]
    assert (repeated.count, repeated.rows) == (copies.sum(), tuple(np.flatnonzero(copies)[:5]))
    np.testing.assert_array_equal(catalog.row, np.flatnonzero(good & ~copies))
    assert catalog.num_rows_dropped == len(table) - len(catalog)


def test_an_index_that_starts_anew_in_each_part_tells_rows_apart(tmp_path, small_pieces):
    """Beside seven other columns: one that runs through all parts is ignored, one that does not is not."""
    small_pieces(10)
    table = faulty_table()["index", "name", "f_g", "e_g", "f_r", "e_r", "z", "f_i"]
    through = read_catalog(config_for(write_parts(table, tmp_path / "through", (100,), 20), bands=BANDS[:2]))
    assert through.drops[-1].reason == "repeats an earlier row in every column"
    table["index"] = np.arange(len(table)) % 300
    anew = read_catalog(config_for(write_parts(table, tmp_path / "anew", (300,), 20), bands=BANDS[:2]))
    assert not any("repeats" in drop.reason for drop in anew.drops)


def test_three_complete_bands_are_told_by_the_columns_that_the_settings_name(tmp_path):
    """Fewer, or rows that may have fewer, are told by all columns: with another name, a row is no copy."""
    table = faulty_table()
    table["name"][NUM:] = [f"K{i}" for i in range(len(table) - NUM)]
    write_table(table, tmp_path / "c.parquet")
    copies = {}
    for name, changes in (("three", {}), ("two", {"bands": BANDS[:2]}), ("lenient", {"min_bands": 2})):
        drops = read_catalog(config_for(tmp_path / "c.parquet", **changes)).drops
        copies[name] = sum(drop.count for drop in drops if "repeats" in drop.reason)
    assert copies["three"] > 0
    assert copies["two"] == copies["lenient"] == 0


# --- the sample


def plain_table(num, seed=1):
    rng = np.random.default_rng(seed)
    columns = {f"f_{b}": 10 ** (-0.4 * (np.sort(rng.uniform(17.0, 21.0, num)) - 22.5)) for b in "gri"}
    return Table({**columns, **{f"e_{b}": rng.uniform(0.1, 0.2, num) for b in "gri"}, "z": rng.uniform(0, 1, num)})


def test_the_sample_is_uniform_and_in_the_order_of_the_file(tmp_path, small_pieces):
    """Of a catalogue sorted by brightness: row numbers, halves of the file and fluxes as a fair draw gives them."""
    num, size = 20_000, 4_000
    folder = write_parts(plain_table(num), tmp_path / "parts", (3_000, 11_000), 900)
    small_pieces(700)
    catalog = read_catalog(config_for(folder, max_galaxies=size))
    assert len(catalog) == size
    assert np.all(np.diff(catalog.row) > 0)
    assert kstest(catalog.row / num, "uniform").pvalue > 0.01
    assert kstest(catalog.redshift, "uniform").pvalue > 0.01
    mags = 22.5 - 2.5 * np.log10(catalog.flux[:, 1] * 1e9)
    assert kstest((mags - 17.0) / 4.0, "uniform").pvalue > 0.01
    gaps = np.diff(catalog.row)
    assert gaps.var() == pytest.approx((1 - size / num) / (size / num) ** 2, rel=0.1)  # geometric: rows are independent
    assert (catalog.num_rows_read, catalog.num_rows_dropped, catalog.num_not_drawn) == (num, 0, num - size)
    assert "kept 4,000 of 20,000 usable galaxies, drawn at random (max_galaxies)" in catalog.summary()
    assert "20,000 rows read, 0 left out" in catalog.summary()
    assert catalog.subset(slice(10)).summary()[2] == catalog.summary()[2]


@settings(max_examples=60, deadline=None)
@given(
    keys=st.lists(st.integers(0, 30), min_size=1, max_size=80),
    size=st.integers(0, 20),
    cuts=st.sets(st.integers(1, 79), max_size=8),
)
def test_the_sample_is_the_smallest_keys_with_all_their_copies(keys, size, cuts):
    keys = np.array(keys, dtype=np.uint64)
    sample = UniformSample(size)
    for part in np.split(np.arange(len(keys)), sorted(cut for cut in cuts if cut < len(keys))):
        part = part[sample.wanted(keys[part])]
        sample.add(key=keys[part], position=part, row=part + 7, value=np.stack([part, -part], axis=1))
    drawn = sample.finish()
    smallest = np.unique(keys)[: size or None]
    firsts = np.sort([np.argmax(keys == key) for key in smallest])
    np.testing.assert_array_equal(drawn.columns["position"], firsts)
    np.testing.assert_array_equal(drawn.columns["value"], np.stack([firsts, -firsts], axis=1))
    copies = np.setdiff1d(np.flatnonzero(np.isin(keys, smallest)), firsts)
    assert drawn.num_copies == len(copies)
    assert drawn.copies == tuple(int(copy) + 7 for copy in copies[:5])


def test_copies_of_galaxies_that_are_not_kept_are_said_to_be_unknown(tmp_path, small_pieces):
    table = vstack([plain_table(1000)] * 2)
    folder = write_parts(table, tmp_path / "parts", (500, 1000), 77)
    small_pieces(100)
    catalog = read_catalog(config_for(folder, max_galaxies=400))
    assert len(catalog) == 400
    assert catalog.row.max() < 1000
    (drop,) = catalog.drops
    assert "(counted for the galaxies kept; others' copies pass as usable)" in drop.reason
    assert (drop.count, drop.rows) == (400, tuple(catalog.row[:5] + 1000))
    assert (catalog.num_rows_dropped, catalog.num_not_drawn) == (400, 1200)


def test_whole_formats_and_the_embedded_galaxies_are_sampled_too(tmp_path):
    table = plain_table(1000)
    catalogs = []
    for name in ("c.fits", "c.h5", "c.csv", "c.ecsv", "c.parquet"):
        write_table(table, tmp_path / name)
        catalogs.append(read_catalog(config_for(tmp_path / name, max_galaxies=50)))
    assert all(same(catalogs[0], other) for other in catalogs)
    assert len(read_catalog(CatalogConfig(max_galaxies=123))) == 123
    with pytest.raises(CatalogError, match="max_galaxies is how many to draw at random, or 0 for all, got -1"):
        CatalogConfig(max_galaxies=-1)


def test_a_sample_is_written_and_read_back(tmp_path):
    write_table(plain_table(1000), tmp_path / "c.parquet")
    catalog = read_catalog(config_for(tmp_path / "c.parquet", max_galaxies=200))
    back = read_catalog(catalog.write(tmp_path / "copy.parquet"))
    for word in ("flux", "flux_error", "row", "redshift"):
        np.testing.assert_array_equal(getattr(back, word), getattr(catalog, word))
    assert (back.num_rows_read, back.num_not_drawn) == (200, 0)


def test_the_unit_is_judged_by_rows_of_the_whole_file(tmp_path, small_pieces, monkeypatch):
    """Sorted by brightness, with an end that alone looks like another unit; and errors that are zero in one part only."""
    monkeypatch.setattr(catalog_stream, "_NUM_JUDGED", 500)
    small_pieces(100)
    table = plain_table(3000)
    for b in "gri":
        table[f"f_{b}"][-100:] = 20.0 + 1e-3 * np.arange(100)
        table[f"e_{b}"][-100:] = 0.01
        table[f"e_{b}"][:100] = 0.0
    folder = write_parts(table, tmp_path / "parts", (100, 2900), 50)
    catalog = read_catalog(config_for(folder))
    assert len(catalog) == 2900
    with pytest.raises(CatalogError, match="which are no magnitudes; if they are fluxes, write flux_unit = "):
        read_catalog(config_for(folder, flux_unit="ABmag"))
    table["e_r"] = 0.0
    with pytest.raises(CatalogError, match="the error column 'e_r' is zero in every row"):
        read_catalog(config_for(write_parts(table, tmp_path / "zero", (100, 2900), 50)))


# --- folders that are wrong


def refused(path, **changes):
    with pytest.raises(CatalogError) as caught:
        read_catalog(config_for(path, **changes))
    return str(caught.value)


def test_a_folder_without_parts(tmp_path):
    (tmp_path / "_metadata.parquet").write_bytes(b"left aside")
    (tmp_path / "notes.txt").write_text("")
    said = refused(tmp_path)
    assert f"{tmp_path} is a folder, not a table, and no Parquet file lies in it; give a table" in said
    assert "holds one table; leave hdu empty" in refused(tmp_path, hdu="1")
    folder = write_parts(faulty_table()[:0], tmp_path / "empty", (), 10)
    assert "the table has no rows" in refused(folder)


def test_parts_in_subfolders_are_read_in_the_order_of_their_paths(tmp_path):
    table = plain_table(300)
    for name, start in (("b/x.pq", 200), ("a/2.parquet", 100), ("a/1.parquet", 0)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_table(table[start : start + 100], tmp_path / name)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.parquet").write_bytes(b"left aside")
    np.testing.assert_array_equal(read_catalog(config_for(tmp_path)).redshift, table["z"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.remove_column("e_g"), "it lacks the column 'e_g'; give the parts the same columns"),
        (lambda t: t.add_column(1.0, name="more"), "it has a column 'more' more; give the parts the same columns"),
        (lambda t: t.replace_column("z", ["high"] * len(t)), "column 'z' holds text, there numbers; give"),
        (lambda t: setattr(t["f_g"], "unit", "uJy"), "column 'f_g' holds numbers in uJy, there numbers; give"),
    ],
)
def test_parts_with_different_columns(tmp_path, change, words):
    folder = write_parts(plain_table(100), tmp_path / "parts", (50,), 10)
    table = plain_table(20)
    change(table)
    write_table(table, folder / "part07.parquet")
    assert f"{folder / 'part07.parquet'} does not continue part00.parquet: {words}" in refused(folder)


def test_parts_of_other_precision_and_order_are_joined(tmp_path):
    table = plain_table(100)
    write_parts(table, tmp_path / "parts", (50,), 10)
    path = tmp_path / "parts" / "part01.parquet"
    part = pq.read_table(path).select(["z", *(name for name in table.colnames if name != "z")])
    single = pa.table(
        {name: part[name].cast(pa.float32()) if name[0] == "e" else part[name] for name in part.schema.names}
    )
    pq.write_table(single, path)
    catalog = read_catalog(config_for(tmp_path / "parts"))
    np.testing.assert_array_equal(catalog.redshift, table["z"])
    np.testing.assert_allclose(catalog.flux_error[:, 2], table["e_i"] * 1e-9, rtol=1e-6)


@pytest.mark.parametrize("damage", ["cut", "spoilt"])
def test_a_damaged_part_is_named(tmp_path, damage):
    """Cut short it is found before anything is read; with its end intact, when its turn comes."""
    folder = write_parts(plain_table(3000), tmp_path / "parts", (1000, 2000), 100)
    path = folder / "part01.parquet"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[4 : len(content) // 2] = b"\xff" * (len(content) // 2 - 4)
        path.write_bytes(content)
    assert f"cannot read {path} as Parquet; is it complete, and of that format?" in refused(folder)


def test_a_fault_in_a_later_piece_is_placed_in_the_whole_file(tmp_path, small_pieces):
    small_pieces(50)
    table = plain_table(300)
    table["number"] = np.arange(300.0)
    table["number"][260] = 0.5
    folder = write_parts(table, tmp_path / "parts", (100,), 30)
    assert "row: column 'number' does not hold whole numbers (row 260 does not)" in refused(folder, row="number")


def test_vectors_of_changing_length_are_refused(tmp_path, small_pieces):
    small_pieces(2)
    path = tmp_path / "lists.parquet"
    pq.write_table(pa.table({"v": [[1.0, 2.0]] * 4 + [[1.0]] * 4}), path, row_group_size=2)
    with pytest.raises(ValueError, match="the lists in column 'v' differ in length"):
        list(open_table(path).pieces(["v"]))


# --- progress and memory


def test_progress_is_told_after_every_piece(tmp_path, small_pieces, capsys):
    small_pieces(100)
    folder = write_parts(plain_table(950), tmp_path / "parts", (500,), 50)
    told = []
    read_catalog(config_for(folder), progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (950, 950)
    assert len(told) >= 9
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    with Progress() as progress:
        progress.rows(10, 1000)
    assert capsys.readouterr().err == ""
    with Progress() as progress:
        progress.rows(2_000_000, 6_000_000)
    assert "2000000/6000000" in capsys.readouterr().err


READER = """
import sys
from popsed_jax.catalog import BandConfig, CatalogConfig, read_catalog
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
bands = tuple(BandConfig(filter=f"sdss_{b}0", flux=f"f_{b}", error=f"e_{b}", name=b) for b in "gri")
settings = {"flux_unit": "nanomaggies", "redshift": "z", "bands": bands}
read_catalog(CatalogConfig(path=sys.argv[1], **settings))
before = peak()
catalog = read_catalog(CatalogConfig(path=sys.argv[2], max_galaxies=20_000, **settings))
print(len(catalog), catalog.num_rows_read, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of one process is read from /proc")
def test_memory_is_bounded_by_the_sample_and_a_piece(tmp_path):
    """9 million rows of 7 doubles, a third of them in one row group: 480 MiB, read in less than 200."""
    folder, num = tmp_path / "parts", 3_000_000
    folder.mkdir()
    table = plain_table(1_000_000)
    write_table(table[:1000], tmp_path / "small.parquet")
    rng = np.random.default_rng(2)
    content = pa.table({name: np.asarray(table[name]) for name in table.colnames})
    for i, groups in enumerate((30, 1, 3)):
        rows = num // groups
        with pq.ParquetWriter(
            folder / f"{i}.parquet", content.schema, use_dictionary=False, compression="none"
        ) as writer:
            for _ in range(groups):
                index = np.arange(rows) % 1_000_000
                group = content.take(pa.array(index)).set_column(0, "f_g", pa.array(rng.uniform(1.0, 100.0, rows)))
                writer.write_table(group, row_group_size=rows)
    assert sum(path.stat().st_size for path in folder.iterdir()) > 480 * 2**20
    command = [sys.executable, "-c", READER, str(tmp_path / "small.parquet"), str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert said[:2] == ["20000", "9000000"]
    assert float(said[2]) < 200
