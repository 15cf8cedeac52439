"""Every way in which a catalogue is wrong has its own sentence, or its own line in the account of dropped rows."""

from __future__ import annotations

import re

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

from popsed_jax.catalog import BandConfig, CatalogConfig, CatalogError, read_catalog
from popsed_jax.settings import SettingsError, from_mapping
from popsed_jax.tables import write_table

NUM = 60
UNITS = {"maggies": 1.0, "nanomaggies": 1e-9, "uJy": 1 / 3.631e9, "mJy": 1 / 3.631e6}


def good_table(unit="nanomaggies", seed=0):
    """Galaxies of AB 17 to 21 in g and r, in any unit."""
    rng = np.random.default_rng(seed)
    table = Table({"id": np.arange(100, 100 + NUM)})
    for band, shift in (("g", 0.7), ("r", 0.0)):
        mag = 17.0 + 4.0 * rng.random(NUM) ** 0.5 + shift
        if unit == "ABmag":
            table[f"f_{band}"], table[f"e_{band}"] = mag, 0.02 + 0.05 * rng.random(NUM)
        else:
            table[f"f_{band}"] = 10 ** (-0.4 * mag) / UNITS[unit]
            table[f"e_{band}"] = 2e-10 / UNITS[unit] * (1 + rng.random(NUM))
    table["redshift"] = 0.3 * rng.random(NUM)
    return table


def band(name="g", **changes):
    settings = {"filter": f"sdss_{name}0", "flux": f"f_{name}", "error": f"e_{name}", "name": name}
    return BandConfig(**{**settings, **changes})


def config_for(path="c.fits", **changes):
    settings = {"path": path, "flux_unit": "nanomaggies", "bands": (band("g"), band("r")), "redshift": "redshift"}
    return CatalogConfig(**{**settings, **changes})


def read(folder, table, **changes):
    config = config_for(**changes)
    write_table(table, folder / config.path)
    return read_catalog(config, folder)


def refused(folder, table, **changes):
    with pytest.raises(CatalogError) as caught:
        read(folder, table, **changes)
    return str(caught.value)


def drops_of(catalog):
    return {drop.reason: (drop.count, drop.rows) for drop in catalog.drops}


def test_the_good_one_is_good(tmp_path):
    catalog = read(tmp_path, good_table())
    assert (len(catalog), catalog.drops) == (NUM, ())


# --- files


def test_file_not_found_names_the_tables_beside_it(tmp_path):
    write_table(good_table(), tmp_path / "galaxies.fits")
    with pytest.raises(CatalogError, match=r"file not found: .*c\.fits \(tables in that folder: galaxies\.fits\)"):
        read_catalog(config_for(), tmp_path)
    with pytest.raises(CatalogError, match=r"there is no folder .*nowhere"):
        read_catalog(config_for(path="nowhere/c.fits"), tmp_path)
    (tmp_path / "d.fits").mkdir()
    with pytest.raises(CatalogError, match="is a folder, not a table"):
        read_catalog(config_for(path="d.fits"), tmp_path)


@pytest.mark.parametrize("suffix", [".fits", ".fits.gz", ".h5", ".parquet", ".csv.gz", ".ecsv.gz"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.97])
def test_truncated_file(tmp_path, suffix, share):
    path = tmp_path / f"c{suffix}"
    write_table(good_table(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CatalogError, match=r"cannot read .* is it complete, and of that format"):
        read_catalog(config_for(path=path.name), tmp_path)


@pytest.mark.parametrize(
    ("suffix", "form"), [(".fits", "FITS"), (".h5", "HDF5"), (".parquet", "Parquet"), (".ecsv", "ECSV")]
)
@pytest.mark.parametrize("content", [b"", b"id,f_g\n1,2\n", b"\x00\xff\xfe\x80" * 50])
def test_file_of_another_format(tmp_path, suffix, form, content):
    (tmp_path / f"c{suffix}").write_bytes(content)
    with pytest.raises(CatalogError, match=f"cannot read .* as {form}; is it complete"):
        read_catalog(config_for(path=f"c{suffix}"), tmp_path)


def test_csv_that_is_none(tmp_path):
    (tmp_path / "c.csv").write_bytes(b"\x00\xff\xfe\x80")
    with pytest.raises(CatalogError, match=r"cannot read .* as CSV"):
        read_catalog(config_for(path="c.csv"), tmp_path)
    (tmp_path / "c.csv").write_bytes(b"")
    with pytest.raises(CatalogError, match="is empty"):
        read_catalog(config_for(path="c.csv"), tmp_path)


def test_last_line_of_a_csv_cut_short_is_a_counted_drop(tmp_path):
    write_table(good_table()["f_g", "e_g", "f_r", "e_r"], tmp_path / "c.csv")
    text = (tmp_path / "c.csv").read_text().rstrip()
    (tmp_path / "c.csv").write_text(text[: text.rindex(",")])
    catalog = read_catalog(config_for(path="c.csv", redshift=""), tmp_path)
    assert drops_of(catalog) == {"band r: error is missing or not finite": (1, (NUM - 1,))}


def test_unsupported_suffix(tmp_path):
    with pytest.raises(CatalogError, match=r"suffix does not name a table format; use one of \.fits, .*\.csv"):
        read_catalog(config_for(path="c.xlsx"), tmp_path)


def test_hdu_for_a_format_without_any(tmp_path):
    assert "a CSV file holds one table; leave hdu empty" in refused(tmp_path, good_table(), path="c.csv", hdu="1")


def test_empty_table(tmp_path):
    for name in ("c.fits", "c.csv", "c.parquet", "c.h5", "c.ecsv"):
        assert "the table has no rows" in refused(tmp_path, good_table()[:0], path=name)


# --- columns


def test_missing_columns_are_all_reported_with_the_nearest(tmp_path):
    bands = (band("g", flux="F_G", error="err_zz"), band("r", extinction="ebv"))
    message = refused(tmp_path, good_table(), bands=bands, redshift="redshif", row="ids")
    assert "band 'g': flux: there is no column 'F_G'; did you mean 'f_g'? Columns: id, f_g, e_g" in message
    assert "band 'g': error: there is no column 'err_zz'" in message
    assert "band 'r': extinction: there is no column 'ebv'" in message
    assert "redshift: there is no column 'redshif'; did you mean 'redshift'?" in message
    assert "row: there is no column 'ids'; did you mean 'id'?" in message
    assert len(message.splitlines()) == 5


def test_long_lists_of_columns_are_cut(tmp_path):
    table = good_table()
    for i in range(60):
        table[f"x{i}"] = np.arange(NUM)
    assert "(66 in all)" in refused(tmp_path, table, redshift="nothing")


@pytest.mark.parametrize("suffix", [".fits", ".csv", ".parquet", ".h5"])
def test_column_of_words(tmp_path, suffix):
    table = good_table()
    words = [str(value) for value in table["f_g"]]
    words[3] = "bright"
    table["f_g"] = words
    message = refused(tmp_path, table, path=f"c{suffix}")
    assert "band 'g': flux: column 'f_g' does not hold numbers; row 3 holds 'bright'" in message


def test_vector_columns_picked_wrongly(tmp_path):
    table = good_table()
    table["both"] = np.stack([table["f_g"], table["f_r"]], axis=1)
    message = refused(tmp_path, table, bands=(band("g", flux="both[2]"), band("r", flux="both")))
    assert "both[2] is out of range; 'both' has 2 components, 0 to 1" in message
    assert "column 'both' has 2 components; pick one, as in both[0]" in message
    message = refused(tmp_path, table, bands=(band("g", flux="f_g[0]"),))
    assert "column 'f_g' is no vector column; write 'f_g' without [0]" in message


def test_row_numbers_that_are_none(tmp_path):
    assert "row: column 'redshift' does not hold whole numbers (row 0 does not)" in refused(
        tmp_path, good_table(), row="redshift"
    )
    np.testing.assert_array_equal(read(tmp_path, good_table(), row="id").row, np.arange(100, 100 + NUM))


def test_the_files_own_unit_contradicts(tmp_path):
    table = good_table("uJy")
    table["f_g"].unit = "uJy"
    table["f_r"].unit = "nJy"
    message = refused(tmp_path, table)
    assert "'f_g' is in uJy, but flux_unit is 'nanomaggies'; write flux_unit = 'uJy'" in message
    assert "'f_r' is in nJy, but flux_unit is 'nanomaggies'; convert it to one of maggies, nanomaggies" in message


# --- settings


def problems_of(**changes):
    with pytest.raises(CatalogError) as caught:
        config_for(**changes)
    return str(caught.value)


def test_wrong_unit_name():
    assert problems_of(flux_unit="nanomagies").endswith("got 'nanomagies'; did you mean 'nanomaggies'?")
    assert problems_of(flux_unit=None).startswith("flux_unit is required: one of maggies, nanomaggies")
    with pytest.raises(SettingsError, match=r"catalog\.flux_unit must be one of .* did you mean 'ABmag'\?"):
        from_mapping(CatalogConfig, {"flux_unit": "AB mag"}, where="catalog")


def test_contradicting_bands():
    assert (
        problems_of(bands=(band("g"), BandConfig(filter="sdss_r0", flux="f_r", error="e_r", name="g")))
        == "two bands have the name 'g'"
    )
    assert problems_of(bands=(band("g"), band("r", flux="f_g"))) == "two bands read the column 'f_g'"
    assert problems_of(bands=()).startswith("the catalogue has no bands")
    assert "softening belongs to flux_unit = 'asinhmag' only" in problems_of(bands=(band(softening=1e-10),))
    assert "an asinh magnitude needs its softening" in problems_of(flux_unit="asinhmag")
    with pytest.raises(CatalogError, match="give its path and bands too"):
        CatalogConfig(redshift="Z")


def test_contradictions_in_one_band_are_reported_together():
    with pytest.raises(CatalogError, match="give error or inverse_variance, not both"):
        band(inverse_variance="iv_g")
    with pytest.raises(CatalogError) as caught:
        BandConfig(filter="", flux="", zero_point=np.nan, softening=-1.0)
    assert len(caught.value.problems) == 5
    with pytest.raises(SettingsError) as caught:
        from_mapping(CatalogConfig, {"bands": [{"filter": "sdss_g0", "flux": "f"}, {"flux": "f"}]}, where="catalog")
    assert caught.value.problems == (
        "[catalog.bands[0]] band 'sdss_g0': give the column of its error or of its inverse_variance",
        "catalog.bands[1].filter is required",
    )


def test_unknown_filter_names_the_nearest(tmp_path):
    message = refused(tmp_path, good_table(), bands=(band("g", filter="sdss_g"), band("r", filter="no/such.dat")))
    assert re.search(r"band 'g': .*'sdss_g'.*sdss_g0", message)
    assert re.search(r"band 'r': .*'no/such\.dat'", message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4000 0 \n4100 high\n4200 0\n", "curve"),
        ("4000\n4100\n4200\n", "curve"),
        ("", "curve"),
        ("# nothing\n", "curve"),
        ("4200 0\n4100 1\n4000 0\n", "increase"),
        ("4000 0\n4100 0\n4200 0\n", "positive"),
        ("0.40 0\n0.41 1\n0.42 1\n0.43 0\n", "mean wavelength of 0.4.* Write them in Angstrom"),
        ("400 0\n410 1\n420 1\n430 0\n", "mean wavelength of 41.* Write them in Angstrom"),
    ],
)
def test_malformed_filter_curve(tmp_path, text, message):
    (tmp_path / "curve.txt").write_text(text)
    said = refused(tmp_path, good_table(), bands=(band("g", filter="curve.txt"),))
    assert re.search(f"band 'g': .*{message}", said)


# --- rows


def test_missing_and_infinite_values_are_dropped_and_counted_by_band(tmp_path):
    table = good_table()
    table["f_g"][[1, 2]] = np.nan, np.inf
    table["e_g"][3] = np.nan
    table["f_r"][[2, 4]] = -np.inf
    table["f_r"] = MaskedColumn(table["f_r"], mask=np.arange(NUM) == 7)
    catalog = read(tmp_path, table)
    assert drops_of(catalog) == {
        "band g: flux is missing or not finite": (2, (1, 2)),
        "band g: error is missing or not finite": (1, (3,)),
        "band r: flux is missing or not finite": (3, (2, 4, 7)),
    }
    assert catalog.num_rows_dropped == 5
    assert len(catalog) == NUM - 5
    assert "  2 rows: band g: flux is missing or not finite (rows 1, 2)" in catalog.summary()
    assert "  (a row with several faults counts under each)" in catalog.summary()


def test_sentinels_are_dropped_and_counted(tmp_path):
    table = good_table()
    table["f_g"][:10] = -99.0
    table["e_r"][[20, 21]] = -9999.0
    table["redshift"][30] = -99.0
    catalog = read(tmp_path, table)
    assert drops_of(catalog) == {
        "band g: flux is -99, not measured": (10, (0, 1, 2, 3, 4)),
        "band r: error is -9999, not measured": (2, (20, 21)),
    }
    assert np.isnan(catalog.redshift).sum() == 1
    kept = read(tmp_path, table, sentinels=())
    assert drops_of(kept) == {"band r: error is zero or negative": (2, (20, 21))}
    table = good_table("ABmag")
    table["f_g"] = table["f_g"].astype("f4")
    table["f_g"][[0, 1, 2]] = 99.0, -99.9, 99.9
    catalog = read(tmp_path, table, flux_unit="ABmag")
    assert drops_of(catalog) == {"band g: magnitude is -99.9 or 99 or 99.9, not measured": (3, (0, 1, 2))}


def test_bad_errors_are_dropped_and_counted(tmp_path):
    table = good_table()
    table["e_g"][[4, 5]] = 0.0, -1.0
    assert drops_of(read(tmp_path, table)) == {"band g: error is zero or negative": (2, (4, 5))}
    table["iv_g"] = 1 / good_table()["e_g"] ** 2
    table["iv_g"][8] = 0.0
    bands = (band("g", error="", inverse_variance="iv_g"), band("r"))
    assert drops_of(read(tmp_path, table, bands=bands)) == {"band g: inverse variance is zero or negative": (1, (8,))}


def test_bad_extinction_is_dropped_and_counted(tmp_path):
    table = good_table()
    table["a"] = 0.1
    table["a"][[0, 1, 2]] = np.nan, -99.0, 99.0
    catalog = read(tmp_path, table, bands=(band("g", extinction="a"), band("r")))
    assert drops_of(catalog) == {"band g: extinction is missing or impossible": (3, (0, 1, 2))}


def test_impossible_magnitudes_are_dropped_and_counted(tmp_path):
    table = good_table("ABmag")
    table["f_r"][[6, 7]] = 55.0, -30.0
    catalog = read(tmp_path, table, flux_unit="ABmag")
    assert drops_of(catalog) == {"band r: magnitude is outside -5 to 40": (2, (6, 7))}


def test_negative_fluxes_stay(tmp_path):
    table = good_table()
    table["f_g"][:5] *= -0.01
    catalog = read(tmp_path, table)
    assert (len(catalog), np.sum(catalog.flux < 0)) == (NUM, 5)


@pytest.mark.parametrize("suffix", [".fits", ".csv", ".parquet"])
def test_repeated_rows_are_dropped_and_counted(tmp_path, suffix):
    order = [*range(NUM), 3, 3, 17]
    catalog = read(tmp_path, good_table()[order], path=f"c{suffix}")
    assert drops_of(catalog) == {"repeats an earlier row in every column": (3, (NUM, NUM + 1, NUM + 2))}
    indexed = good_table()[order]
    indexed["index"] = np.arange(len(indexed))
    assert len(read(tmp_path, indexed, path=f"i{suffix}")) == NUM


def test_chance_agreement_of_rounded_values_is_no_repetition(tmp_path):
    table = Table({"id": np.arange(NUM), "f_g": np.round(good_table("ABmag")["f_g"], 0), "e_g": np.full(NUM, 0.1)})
    assert len(read(tmp_path, table, flux_unit="ABmag", bands=(band("g"),), redshift="")) == NUM


def test_nothing_left_says_what_was_dropped(tmp_path):
    table = good_table()
    table["f_g"][:50] = np.nan
    table["e_r"][50:] = -1.0
    message = refused(tmp_path, table)
    assert "none of the 60 rows can be used (50: band g: flux is missing or not finite; " in message
    assert "10: band r: error is zero or negative)" in message


def test_errors_that_are_zero_everywhere(tmp_path):
    table = good_table()
    table["e_r"] = 0.0
    assert "band 'r': the error column 'e_r' is zero in every row" in refused(tmp_path, table)


def test_fluxes_that_are_zero_everywhere(tmp_path):
    table = good_table()
    table["f_r"] = 0.0
    assert "band 'r': the flux column 'f_r' is zero in every row" in refused(tmp_path, table)


# --- the wrong unit


@pytest.mark.parametrize("unit", ["maggies", "nanomaggies", "uJy", "mJy"])
def test_magnitudes_taken_for_fluxes(tmp_path, unit):
    message = refused(tmp_path, good_table("ABmag"), flux_unit=unit)
    assert message.splitlines()[0].endswith("write flux_unit = 'ABmag'")


@pytest.mark.parametrize("unit", ["maggies", "nanomaggies", "uJy", "mJy"])
def test_fluxes_taken_for_magnitudes(tmp_path, unit):
    table = good_table(unit)
    if unit == "mJy":
        # Between 0.01 and 0.6: no range of magnitudes either.
        assert table["f_r"].max() < 1
    message = refused(tmp_path, table, flux_unit="ABmag")
    assert "which are no magnitudes; if they are fluxes, write flux_unit = " in message
    assert repr(unit) in message


def test_fluxes_in_another_unit(tmp_path):
    message = refused(tmp_path, good_table("maggies"), flux_unit="nanomaggies")
    assert re.search(r"'f_g', would be AB 4\d\.\d; write flux_unit = 'maggies'", message)
    message = refused(tmp_path, good_table("nanomaggies"), flux_unit="maggies")
    assert re.search(r"'f_g', would be AB -\d\.\d; write flux_unit = 'nanomaggies' or 'uJy'", message)


def test_absolute_magnitudes(tmp_path):
    table = good_table("ABmag")
    table["f_r"] -= 40.0
    assert "these look like absolute ones" in refused(tmp_path, table, flux_unit="ABmag")


def test_plausible_catalogues_are_let_through(tmp_path):
    for unit in ("maggies", "nanomaggies", "uJy", "mJy", "ABmag"):
        assert len(read(tmp_path, good_table(unit), flux_unit=unit)) == NUM
    # Fluxes of a narrow slice, in the range of magnitudes but with a survey's errors.
    rng = np.random.default_rng(1)
    narrow = Table({f"f_{b}": rng.uniform(14.0, 30.0, NUM) for b in "gr"})
    narrow["e_g"] = narrow["e_r"] = np.full(NUM, 2.0)
    assert len(read(tmp_path, narrow, redshift="")) == NUM
