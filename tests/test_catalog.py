from __future__ import annotations

import os

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Column, MaskedColumn, Table

from popsed_jax.catalog import (
    BandConfig,
    CatalogConfig,
    CatalogError,
    build_catalog,
    embedded_catalog_config,
    read_catalog,
)
from popsed_jax.data import data_path
from popsed_jax.settings import from_mapping, to_mapping
from popsed_jax.tables import TABLE_SUFFIXES, TableError, read_table, write_table

FLUX = np.array([[1e-8, 3e-8], [2e-9, -1e-10], [5e-7, 8e-7], [4e-8, 9e-8]])
ERROR = np.array([[1e-10, 2e-10], [1e-10, 2e-10], [2e-10, 3e-10], [1.5e-10, 2.5e-10]])
SUFFIXES = (".fits", ".fit", ".fits.gz", ".hdf5", ".parquet", ".ecsv", ".ecsv.gz", ".csv", ".csv.gz")


def two_bands(**changes):
    return tuple(BandConfig(filter=f"sdss_{b}0", flux=f"f_{b}", name=b, error=f"e_{b}", **changes) for b in "gr")


def write_bands(path, values, errors, **more):
    table = Table({"f_g": values[:, 0], "f_r": values[:, 1], "e_g": errors[:, 0], "e_r": errors[:, 1], **more})
    write_table(table, path)
    return path


@pytest.fixture(scope="module")
def embedded():
    return read_catalog(CatalogConfig())


# --- the embedded galaxies


def test_embedded_catalog_is_corrected_to_ab(embedded):
    assert len(embedded) == embedded.num_rows_read == 10_000
    assert embedded.bands == ("u", "g", "r", "i", "z")
    assert embedded.filters == tuple(f"sdss_{b}0" for b in "ugriz")
    table = read_table(data_path("sdss_galaxies"))
    corrected = 22.5 - 2.5 * np.log10(table["MODELFLUX"][:, 2]) - table["EXTINCTION"][:, 2] + 0.010
    np.testing.assert_allclose(-2.5 * np.log10(embedded.flux[:, 2]), corrected, atol=2e-5)
    ratio = table["MODELFLUX"] * np.sqrt(table["MODELFLUX_IVAR"])
    np.testing.assert_allclose(embedded.flux / embedded.flux_error, ratio, rtol=1e-5)
    # The sample's limit, r < 17.77, is on the Petrosian magnitude: most model magnitudes obey it.
    assert np.mean(-2.5 * np.log10(embedded.flux[:, 2]) < 17.77) > 0.97
    np.testing.assert_allclose(embedded.redshift, table["Z"])
    assert np.sum(embedded.flux < 0) > 0


def test_embedded_catalog_by_its_settings(embedded):
    config = embedded_catalog_config()
    assert from_mapping(CatalogConfig, to_mapping(config)) == config
    assert CatalogConfig().resolved() == config
    assert CatalogConfig(name="mine").resolved().name == "mine"
    np.testing.assert_array_equal(read_catalog(config).flux, embedded.flux)


def test_summary_says_what_there_is(embedded):
    text = "\n".join(embedded.summary())
    assert "sdss_galaxies: 10,000 galaxies in 5 bands (u g r i z)" in text
    assert "10,000 rows read, 0 left out" in text
    assert "band r (sdss_r0): AB 16.7" in text
    assert "fluxes not positive" in text
    assert "fits see those that [spectroscopy] lets them" in text


# --- units


@pytest.mark.parametrize(
    ("unit", "maggies"), [("maggies", 1.0), ("nanomaggies", 1e-9), ("uJy", 1 / 3.631e9), ("mJy", 1 / 3.631e6)]
)
def test_linear_units(tmp_path, unit, maggies):
    write_bands(tmp_path / "c.ecsv", FLUX / maggies, ERROR / maggies)
    catalog = read_catalog(CatalogConfig(path="c.ecsv", flux_unit=unit, bands=two_bands()), tmp_path)
    np.testing.assert_allclose(catalog.flux, FLUX, rtol=1e-12)
    np.testing.assert_allclose(catalog.flux_error, ERROR, rtol=1e-12)
    assert not catalog.drops
    assert catalog.redshift is None


def test_ab_magnitudes(tmp_path):
    flux = np.abs(FLUX)
    mag_error = 2.5 / np.log(10) * ERROR / flux
    write_bands(tmp_path / "c.parquet", -2.5 * np.log10(flux), mag_error)
    catalog = read_catalog(CatalogConfig(path="c.parquet", flux_unit="ABmag", bands=two_bands()), tmp_path)
    np.testing.assert_allclose(catalog.flux, flux, rtol=1e-12)
    np.testing.assert_allclose(catalog.flux_error, ERROR, rtol=1e-12)


def test_asinh_magnitudes_are_inverted_exactly_with_their_errors(tmp_path):
    softening = 1.2e-10

    def mag(flux):
        return -2.5 / np.log(10) * (np.arcsinh(flux / (2 * softening)) + np.log(softening))

    step = 1e-4 * ERROR
    slope = np.abs(mag(FLUX + step) - mag(FLUX - step)) / (2 * step)
    write_bands(tmp_path / "c.h5", mag(FLUX), slope * ERROR)
    config = CatalogConfig(path="c.h5", flux_unit="asinhmag", bands=two_bands(softening=softening))
    catalog = read_catalog(config, tmp_path)
    np.testing.assert_allclose(catalog.flux, FLUX, rtol=1e-9)
    np.testing.assert_allclose(catalog.flux_error, ERROR, rtol=1e-5)


def test_extinction_zero_point_and_inverse_variance(tmp_path):
    extinction = np.array([0.0, 0.1, 0.2, 0.3])
    table = Table({"f": FLUX[:, 0] * 1e9, "iv": 1 / (ERROR[:, 0] * 1e9) ** 2, "a": extinction})
    write_table(table, tmp_path / "c.fits")
    band = BandConfig(filter="sdss_g0", flux="f", inverse_variance="iv", extinction="a", zero_point=-0.05)
    catalog = read_catalog(CatalogConfig(path="c.fits", flux_unit="nanomaggies", bands=(band,)), tmp_path)
    factor = 10 ** (0.4 * (extinction + 0.05))
    np.testing.assert_allclose(catalog.flux[:, 0], FLUX[:, 0] * factor, rtol=1e-12)
    np.testing.assert_allclose(catalog.flux_error[:, 0], ERROR[:, 0] * factor, rtol=1e-12)
    assert catalog.bands == ("sdss_g0",)


# --- columns and rows


@pytest.mark.parametrize("suffix", [".fits", ".h5", ".parquet", ".ecsv"])
def test_vector_columns(tmp_path, suffix):
    write_table(Table({"flux": FLUX * 1e9, "sigma": ERROR * 1e9}), tmp_path / f"c{suffix}")
    bands = tuple(BandConfig(filter=f"sdss_{b}0", flux=f"flux[{i}]", error=f"sigma[{i}]") for i, b in enumerate("gr"))
    catalog = read_catalog(CatalogConfig(path=f"c{suffix}", flux_unit="nanomaggies", bands=bands), tmp_path)
    np.testing.assert_allclose(catalog.flux, FLUX, rtol=1e-12)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_masked_values_drop_their_rows_and_no_others(tmp_path, suffix):
    table = Table({"f_g": FLUX[:, 0], "e_g": ERROR[:, 0], "e_r": ERROR[:, 1], "z": [0.1, -99.0, np.nan, -3.0]})
    table["f_r"] = MaskedColumn(FLUX[:, 1], mask=[True, False, False, False])
    write_table(table, tmp_path / f"c{suffix}")
    config = CatalogConfig(path=f"c{suffix}", flux_unit="maggies", bands=two_bands(), redshift="z")
    catalog = read_catalog(config, tmp_path)
    np.testing.assert_array_equal(catalog.row, [1, 2, 3])
    np.testing.assert_array_equal(catalog.flux, FLUX[1:])
    assert [drop.reason for drop in catalog.drops] == ["band r: flux is missing or not finite"]
    assert np.isnan(catalog.redshift).all()
    assert "redshift known for 0" in catalog.summary()[-1]


def test_subset_keeps_the_account(embedded):
    some = embedded.subset([5, 3])
    np.testing.assert_array_equal(some.row, [5, 3])
    np.testing.assert_array_equal(some.flux, embedded.flux[[5, 3]])
    assert some.num_rows_read == 10_000
    assert len(embedded.subset(embedded.redshift > 0.1)) == np.sum(embedded.redshift > 0.1)
    assert len(embedded.subset(slice(7))) == 7
    assert len(embedded.subset([])) == 0
    assert embedded.subset([]).summary()[0].startswith("sdss_galaxies: 0 galaxies")


def test_arrays_are_read_only_and_checked():
    catalog = build_catalog("mock", ["g", "r"], ["sdss_g0", "sdss_r0"], FLUX, ERROR, np.zeros(4))
    with pytest.raises(ValueError, match="read-only"):
        catalog.flux[0, 0] = 1.0
    np.testing.assert_array_equal(catalog.row, np.arange(4))
    names = ("mock", ["g", "r"], ["sdss_g0", "sdss_r0"])
    with pytest.raises(CatalogError, match="flux_error must be finite and positive"):
        build_catalog(*names, FLUX, -ERROR)
    with pytest.raises(CatalogError, match="flux must be finite, or NaN"):
        build_catalog(*names, FLUX * np.inf, ERROR)
    with pytest.raises(CatalogError, match="and NaN where there is none"):
        build_catalog(*names, np.where(FLUX < 0, np.nan, FLUX), ERROR)
    with pytest.raises(CatalogError, match="galaxy 1 has no flux in any band"):
        build_catalog(*names, np.where([[False], [True], [False], [False]], np.nan, FLUX), ERROR)
    with pytest.raises(CatalogError, match="2 bands but 1 upper_limits"):
        build_catalog(*names, FLUX, ERROR, upper_limits=[3.0])
    with pytest.raises(CatalogError, match=r"flux_error must have the shape .* \(4, 2\)"):
        build_catalog(*names, FLUX, ERROR[:2])
    with pytest.raises(CatalogError, match="one value a galaxy"):
        build_catalog(*names, FLUX, ERROR, np.zeros(3))
    with pytest.raises(CatalogError, match="2 bands but 1 filters"):
        build_catalog("mock", ["g", "r"], ["sdss_g0"], FLUX, ERROR)


def test_a_filter_curve_beside_the_catalogue(tmp_path):
    (tmp_path / "curve.dat").write_text("# wave trans\n4000 0\n4100 0.5\n5000 0.5\n5100 0\n")
    write_bands(tmp_path / "c.csv", FLUX, ERROR)
    band = BandConfig(filter="./curve.dat", flux="f_g", error="e_g")
    catalog = read_catalog(CatalogConfig(path="c.csv", flux_unit="maggies", bands=(band,)), tmp_path)
    assert catalog.bands == ("curve",)
    assert catalog.filters == (str((tmp_path / "curve.dat").resolve()),)


# --- missing bands and upper limits


def test_a_galaxy_that_lacks_a_band_stays_when_asked(tmp_path):
    errors = ERROR.copy()
    errors[1, 0], errors[2] = -99.0, np.nan
    write_bands(tmp_path / "c.csv", FLUX, errors)
    config = CatalogConfig(path=str(tmp_path / "c.csv"), flux_unit="maggies", bands=two_bands())
    assert read_catalog(config).row.tolist() == [0, 3]
    lenient = CatalogConfig(path=str(tmp_path / "c.csv"), flux_unit="maggies", bands=two_bands(), min_bands=1)
    catalog = read_catalog(lenient)
    assert catalog.row.tolist() == [0, 1, 3]
    np.testing.assert_array_equal(np.isnan(catalog.flux), [[False, False], [True, False], [False, False]])
    assert [(drop.reason, drop.count) for drop in catalog.drops] == [("fewer than 1 bands", 1)]
    assert "missing for 1" in catalog.summary()[3]
    # Written and read again, the gap is still there.
    back = read_catalog(catalog.write(tmp_path / "copy.parquet"))
    np.testing.assert_array_equal(back.flux, catalog.flux)
    with pytest.raises(CatalogError, match="min_bands = 3 must be between 0 and the number of bands, 2"):
        CatalogConfig(path="c.csv", flux_unit="maggies", bands=two_bands(), min_bands=3)


@pytest.mark.parametrize("unit", ["maggies", "ABmag"])
def test_upper_limits_become_fluxes_at_the_limit(tmp_path, unit):
    """A negative error marks a 3-sigma limit; a measured flux below 3 sigma is quoted alike."""
    flux, error = FLUX.copy(), ERROR.copy()
    flux[1] = [6e-10, 1e-10]
    if unit == "ABmag":
        values, spread = -2.5 * np.log10(flux), 2.5 / np.log(10.0) * error / flux
    else:
        values, spread = flux, error.copy()
    spread[1, 0] = -1.0
    write_bands(tmp_path / "c.csv", values, spread)
    config = CatalogConfig(path=str(tmp_path / "c.csv"), flux_unit=unit, bands=two_bands(upper_limit=3.0))
    catalog = read_catalog(config)
    np.testing.assert_allclose(catalog.flux[1], [6e-10, 6e-10], rtol=1e-6)
    np.testing.assert_allclose(catalog.flux_error[1], [2e-10, 2e-10], rtol=1e-6)
    assert catalog.upper_limits == (3.0, 3.0)
    assert "upper limits (3 sigma) for 1" in catalog.summary()[2]
    plain = CatalogConfig(path=str(tmp_path / "c.csv"), flux_unit=unit, bands=two_bands())
    assert read_catalog(plain).row.tolist() == [0, 2, 3]
    with pytest.raises(CatalogError, match="upper_limit is a significance"):
        two_bands(upper_limit=-3.0)


# --- writing


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read_back_exactly(tmp_path, suffix, embedded):
    # Bands that differ in capitals only, as DECam z and VISTA Z do.
    catalog = embedded.subset(np.arange(0, 300, 3))
    catalog = type(catalog)(**{**vars(catalog), "bands": ("u", "g", "Z", "i", "z")})
    config = catalog.write(tmp_path / f"copy{suffix}")
    back = read_catalog(config)
    assert (back.name, back.bands, back.filters) == (catalog.name, catalog.bands, catalog.filters)
    for word in ("flux", "flux_error", "row", "redshift"):
        np.testing.assert_array_equal(getattr(back, word), getattr(catalog, word))
    table = read_table(tmp_path / f"copy{suffix}")
    assert str(table["flux_u"].unit) == "mgy"
    assert table["flux_u"].description == "AB flux through sdss_u0, outside the Galaxy"
    assert table.meta["bands"] == list(catalog.bands)
    assert sorted(os.listdir(tmp_path)) == [f"copy{suffix}"]


def test_write_says_why_it_cannot(tmp_path, embedded):
    with pytest.raises(CatalogError, match="there is no folder"):
        embedded.write(tmp_path / "none" / "c.fits")
    with pytest.raises(CatalogError, match="suffix does not name a table format"):
        embedded.write(tmp_path / "c.xlsx")


# --- tables of any kind


def any_table():
    table = Table(meta={"made_by": "a test", "list": ["a", "b"]})
    table["number"] = Column(np.array([1.5, -2.25, 1 / 3]), unit="solLum / Hz", description='with "quotes", and commas')
    table["big"] = Column(np.array([1, 2, 3], dtype=">i4"), unit="furlongs")
    table["gap"] = MaskedColumn([4.0, 5.0, 6.0], mask=[False, True, False], unit="dex(solMass)")
    table["hole"] = MaskedColumn([4, 5, 6], mask=[False, False, True])
    table["word"] = ["a,b", "c", "d e"]
    return table


@pytest.mark.filterwarnings("ignore:.*did not parse as unit")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tables_come_back_with_units_descriptions_masks_and_metadata(tmp_path, suffix):
    table = any_table()
    table["big"].unit = "mgy"
    write_table(table, tmp_path / f"t{suffix}")
    back = read_table(tmp_path / f"t{suffix}")
    assert back.meta == table.meta
    assert back.colnames == table.colnames
    for name in table.colnames:
        assert np.ma.asarray(back[name]).tolist() == np.ma.asarray(table[name]).tolist()
        assert back[name].unit == table[name].unit
        assert back[name].description == table[name].description
        assert back[name].dtype.isnative


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.csv"
    write_table(Table({"a": [1]}), path)
    with pytest.raises(TableError, match="cannot hold the vector column 'v'"):
        write_table(Table({"v": np.ones((2, 2))}), path)
    with pytest.raises(TableError, match="Parquet cannot hold column 'v' of shape"):
        write_table(Table({"v": np.ones((2, 2, 2))}), tmp_path / "t.parquet")
    with pytest.raises(TableError, match=r"cannot write .* as FITS: "):
        write_table(Table({"o": [object(), None]}), tmp_path / "t.fits")
    assert os.listdir(tmp_path) == ["t.csv"]
    assert list(read_table(path)["a"]) == [1]


def test_tables_that_others_write(tmp_path):
    (tmp_path / "hash.csv").write_text("# id,mag\n1,20.5\n2,null\n")
    hashed = read_table(tmp_path / "hash.csv")
    assert hashed.colnames == ["id", "mag"]
    assert hashed["mag"].mask.tolist() == [False, True]
    with h5py.File(tmp_path / "columns.h5", "w") as file:
        file["phot/mag"] = np.array([20.0, 21.0])
        file["phot/mag"].attrs["unit"] = "mag"
        file["phot/name"] = ["a", "b"]
        file["note"] = "scalar"
    columns = read_table(tmp_path / "columns.h5")
    assert columns.colnames == ["mag", "name"]
    assert str(columns["mag"].unit) == "mag"
    assert list(columns["name"]) == ["a", "b"]
    arrow = pa.table(
        {
            "list": [[1.0, 2.0], [3.0, 4.0]],
            "null": pa.array([1, None]),
            "kind": pa.array(["a", "b"]).dictionary_encode(),
            "dec": pa.array([1, 2]).cast(pa.decimal128(21, 1)),
        }
    )
    pq.write_table(arrow, tmp_path / "lists.parquet")
    lists = read_table(tmp_path / "lists.parquet")
    assert lists["list"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert lists["null"].tolist() == [1, None]
    assert lists["kind"].tolist() == ["a", "b"]
    assert lists["dec"].tolist() == [1.0, 2.0]


def test_one_of_several_tables(tmp_path):
    tables = [fits.BinTableHDU(Table({name: [1.0]}), name=name.upper()) for name in ("one", "two")]
    fits.HDUList([fits.PrimaryHDU(), *tables]).writeto(tmp_path / "t.fits")
    assert read_table(tmp_path / "t.fits", "two").colnames == ["two"]
    assert read_table(tmp_path / "t.fits", "1").colnames == ["one"]
    with pytest.raises(TableError, match=r"holds several tables; set hdu to one of: 1 \(ONE\), 2 \(TWO\)"):
        read_table(tmp_path / "t.fits")
    with pytest.raises(TableError, match=r"holds no table 'three'; set hdu to one of"):
        read_table(tmp_path / "t.fits", "three")
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["a/x"], file["b/x"], file["c"] = [1.0], [2.0], 3.0
    assert read_table(tmp_path / "t.h5", "b")["x"].tolist() == [2.0]
    with pytest.raises(TableError, match="holds several tables; set hdu to one of: a, b"):
        read_table(tmp_path / "t.h5")
    with pytest.raises(TableError, match="holds no table 'd'; set hdu to one of: a, b"):
        read_table(tmp_path / "t.h5", "d")
    with pytest.raises(TableError, match="c is one array, not a table of named columns"):
        read_table(tmp_path / "t.h5", "c")
    with pytest.raises(TableError, match="does not hold columns of one length"):
        read_table(tmp_path / "t.h5", "/")


def test_every_suffix_is_known():
    assert set(TABLE_SUFFIXES) >= {".fits", ".hdf5", ".h5", ".parquet", ".ecsv", ".csv"}
