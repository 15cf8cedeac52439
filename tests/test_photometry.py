"""The photometry tables against the full integral, another library and known colours."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM
from sedpy.observate import Filter as SedpyFilter
from tiny import first_bands

from popsed_jax.observe.filters import filter_names, load_filter
from popsed_jax.observe.forward import ForwardModel, build_forward_model
from popsed_jax.observe.operators import integrate_spectrum
from popsed_jax.observe.photometry import build_photometry_table, dimming, few_rows
from popsed_jax.observe.photometry import flux as flux_of
from popsed_jax.observe.selection import MagnitudeLimit, SelectionConfig
from popsed_jax.sps.config import ModelConfig
from popsed_jax.sps.galaxy import build_galaxy_model
from popsed_jax.sps.ssp import load_ssp

BANDS = ("sdss_u0", "sdss_g0", "sdss_r0", "sdss_i0", "sdss_z0")
LIGHT = 2.99792458e18  # [Angstrom/s]


def distance_factor(redshift):
    """(1 + z) / (d_L / 10 pc)^2, from astropy."""
    distance = FlatLambdaCDM(H0=70.0, Om0=0.3, Tcmb0=0.0).luminosity_distance(redshift).value * 1e5
    return (1.0 + redshift) / distance**2


@pytest.fixture(scope="module")
def curves():
    return [load_filter(name) for name in BANDS]


@pytest.fixture(scope="module")
def old_population():
    """Wavelengths and luminosity of a 10 Gyr, solar population per solar mass formed."""
    ssp = load_ssp("stellar")
    met, age = np.argmin(np.abs(ssp.log_met - np.log10(0.02))), np.argmin(np.abs(ssp.log_age - 1.0))
    assert abs(ssp.log_age[age] - 1.0) < 0.03
    return ssp.wave, ssp.lum_nu[met, age]


class TestTable:
    def test_against_the_full_integral(self, galaxy_x64, theta, flux, curves):
        """400 draws of the flat prior, everything but the table's own route in double precision."""
        with jax.enable_x64(True):
            spectra = np.asarray(jax.jit(jax.vmap(galaxy_x64.spectrum))(jnp.asarray(theta, jnp.float64)))
        redshift = theta[:, galaxy_x64.space.index("redshift")].astype(float)
        wave = np.asarray(galaxy_x64.ssp.wave)
        expected = np.stack(
            [integrate_spectrum(wave, s, z, curves, 5000) for s, z in zip(spectra, redshift, strict=True)]
        )
        expected *= distance_factor(redshift)[:, None]
        error = np.abs(2.5 * np.log10(flux / expected))
        # Measured: median 3e-5, 99.9th percentile at most 0.0043 mag; the dust's polynomial is the limit.
        assert np.quantile(error, 0.999, axis=0).max() <= 0.006
        assert np.quantile(error, 0.5, axis=0).max() <= 2e-4

    @pytest.mark.slow
    def test_precisions_agree(self, galaxy_x64, table_x64, theta, flux):
        with jax.enable_x64(True):
            double = jax.jit(jax.vmap(lambda one: flux_of(table_x64, galaxy_x64, one)))(jnp.asarray(theta, jnp.float64))
        # Sums of up to 630 float32 terms, and a distance in an exponent: 4e-6 measured.
        np.testing.assert_allclose(flux, double, rtol=3e-5)

    def test_proportional_to_mass(self, galaxy, table, theta):
        index = galaxy.space.index("log_mass")
        one = jnp.asarray(theta[0]).at[index].set(9.0)
        ratio = flux_of(table, galaxy, one.at[index].set(12.0)) / flux_of(table, galaxy, one)
        np.testing.assert_allclose(ratio, 1000.0, rtol=1e-5)

    def test_continuous_across_redshift_nodes(self, galaxy, table, theta):
        node = float(galaxy.grid.redshift[100])
        index = galaxy.space.index("redshift")
        sides = [
            flux_of(table, galaxy, jnp.asarray(theta[1]).at[index].set(node + shift)) for shift in (-1e-6, 0.0, 1e-6)
        ]
        np.testing.assert_allclose(sides[0], sides[1], rtol=1e-4)
        np.testing.assert_allclose(sides[2], sides[1], rtol=1e-4)

    @pytest.mark.parametrize("history", ["delayed_tau", "burst"])
    def test_other_histories(self, history):
        """A coarse table is exact on its nodes but for the dust."""
        model = build_galaxy_model(ModelConfig(sfh=history), {"redshift": (0.05, 0.15)}, redshift_step=0.02)
        table = build_photometry_table(model, BANDS[1:3])
        redshift = float(model.grid.redshift[2])
        draws = model.space.sample_flat(jax.random.key(2), 8).at[:, 0].set(redshift)
        assert model.space.names[0] == "redshift"
        found = jax.jit(jax.vmap(lambda one: flux_of(table, model, one)))(draws)
        spectra = np.asarray(jax.jit(jax.vmap(model.spectrum))(draws), float)
        filters = [load_filter(name) for name in BANDS[1:3]]
        wave = np.asarray(model.ssp.wave, float)
        expected = np.stack([integrate_spectrum(wave, s, redshift, filters, 5000) for s in spectra])
        expected *= distance_factor(redshift)
        assert np.abs(2.5 * np.log10(np.asarray(found) / expected)).max() < 0.006

    def test_few_rows(self):
        """Value and both directions of differentiation, in weights and redshift, against one sum over the whole table."""
        rng = np.random.default_rng(0)
        with jax.enable_x64(True):
            table, weights = jnp.asarray(rng.normal(size=(5, 9, 4))), jnp.asarray(rng.normal(size=(2, 3)))
            node, start = jnp.asarray(3), jnp.asarray(5)

            def plain(weights, up):
                block = table[3:5, 5:8]
                return weights @ (block[0] * (1.0 - up) + block[1] * up)

            def rows(weights, up):
                return few_rows(weights, up, table, node, start)

            for derivative in (lambda f: f, partial(jax.jacfwd, argnums=(0, 1)), partial(jax.jacrev, argnums=(0, 1))):
                found, expected = (jax.jit(derivative(f))(weights, jnp.asarray(0.3)) for f in (rows, plain))
                for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                    np.testing.assert_allclose(one, other, rtol=1e-12)

    def test_tolerance_buys_nodes(self, table):
        model = build_galaxy_model(bounds={"redshift": (0.05, 0.15)}, redshift_step=0.05)
        crude, fine = (build_photometry_table(model, ["sdss_r0"], tolerance).num_nodes[0] for tolerance in (0.1, 1e-4))
        assert crude < table.num_nodes[2] < fine

    def test_dimming(self, galaxy):
        params = {"redshift": jnp.asarray(0.3), "log_mass": jnp.asarray(11.0)}
        assert float(dimming(galaxy, params)) == pytest.approx(1e11 * distance_factor(0.3), rel=5e-6)

    def test_filter_beyond_the_templates(self):
        model = build_galaxy_model(bounds={"redshift": (0.01, 0.05)}, redshift_step=0.02)
        with pytest.raises(
            ValueError, match=r"filter wise_w4 \(.* Angstrom\) leaves the templates' range \(.*within redshift"
        ):
            build_photometry_table(model, ["wise_w4"])


class TestGradients:
    def test_on_the_bounds_and_before_the_big_bang(self, galaxy, table):
        low = jnp.array([p.low for p in galaxy.space.parameters])
        high = jnp.array([p.high for p in galaxy.space.parameters])
        before = 0.5 * (low + high)
        for name, value in (("redshift", 0.6), ("t_burst", 12.0)):
            before = before.at[galaxy.space.index(name)].set(value)
        gradient = jax.jit(jax.vmap(jax.jacrev(lambda one: jnp.log(flux_of(table, galaxy, one)))))
        slope = gradient(jnp.stack([low, high, before]))
        assert bool(jnp.all(jnp.isfinite(slope)))
        # A burst cannot be older than the Universe: beyond its age the parameter does nothing.
        np.testing.assert_array_equal(slope[2, :, galaxy.space.index("t_burst")], 0.0)


class TestAgainstOthers:
    @pytest.mark.parametrize("redshift", [0.0, 0.1, 0.37, 0.8])
    @pytest.mark.parametrize("log_age", [-2.0, 1.0])
    def test_sedpy(self, redshift, log_age):
        """Synthetic AB magnitudes of sedpy, which integrates on the spectrum's wavelengths, for young and old stars.

        Measured: 3e-5 mag in all filters, of which 2.7e-5 is sedpy's speed of light, 2.998e18 Angstrom/s; our cutting of the
        filters' wings at 1e-4 of their peaks, where sedpy cuts at 1e-5, is below that.
        """
        ssp = load_ssp("stellar")
        met, age = np.argmin(np.abs(ssp.log_met - np.log10(0.02))), np.argmin(np.abs(ssp.log_age - log_age))
        names = (*BANDS, "galex_FUV", "galex_NUV", "twomass_J", "twomass_Ks", "wise_w1", "hsc_z")
        lum_nu = ssp.lum_nu[met, age]
        ours = integrate_spectrum(ssp.wave, lum_nu, redshift, [load_filter(name) for name in names])
        fine = np.geomspace(1000.0, 5e4, 400_000)
        flux_nu = np.interp(fine / (1.0 + redshift), ssp.wave, lum_nu) * 3.828e33
        flux_lambda = flux_nu / (4.0 * np.pi * 3.0856775814913674e19**2) * LIGHT / fine**2
        theirs = np.array([SedpyFilter(name).ab_mag(fine, flux_lambda) for name in names])
        np.testing.assert_allclose(-2.5 * np.log10(ours), theirs, atol=1e-4)

    def test_flat_spectrum_has_zero_colour(self, curves):
        flux = integrate_spectrum(np.array([500.0, 3e4]), np.array([2.0, 2.0]), 0.2, curves)
        np.testing.assert_allclose(flux / flux[0], 1.0, rtol=1e-12)


class TestKnownColours:
    """Figures for the shipped templates that were found independently of this code."""

    def mags(self, old_population, curves, redshift):
        return -2.5 * np.log10(integrate_spectrum(*old_population, redshift, curves))

    def test_rest_frame(self, old_population, curves):
        _, g, r, *_ = self.mags(old_population, curves, 0.0)
        assert g - r == pytest.approx(0.80, abs=0.02)
        assert r == pytest.approx(6.63, abs=0.02)

    def test_redshift_one_tenth(self, old_population, curves):
        u, g, r, i, z = self.mags(old_population, curves, 0.1)
        assert g - r == pytest.approx(1.04, abs=0.02)
        assert r - i == pytest.approx(0.40, abs=0.02)
        assert i - z == pytest.approx(0.35, abs=0.02)
        # 1.82 is quoted elsewhere, with the curve of Doi+10 at 1.3 airmasses (speclite's sdss2010-u gives 1.820).
        assert u - g == pytest.approx(1.90, abs=0.02)


class TestFilters:
    def test_effective_wavelengths(self, curves):
        # Fukugita+96, table 2a, and Doi+10: ugriz near 3550, 4690, 6170, 7490, 8930 Angstrom.
        np.testing.assert_allclose([c.effective_wave for c in curves], [3550, 4690, 6170, 7490, 8930], rtol=0.015)

    def test_unknown_name_suggests(self):
        with pytest.raises(ValueError, match=r"no filter 'sdss_q0' in the filter library.*the nearest are sdss_"):
            load_filter("sdss_q0")

    def test_a_file_is_a_filter(self, tmp_path, curves):
        path = tmp_path / "mine.dat"
        np.savetxt(path, np.column_stack([curves[2].wave, 7.0 * curves[2].trans]))
        mine = load_filter(str(path))
        assert mine.name == "mine"
        wave, lum_nu = np.linspace(3000.0, 10000.0, 500), np.linspace(1.0, 3.0, 500)
        both = [integrate_spectrum(wave, lum_nu, 0.1, [curve])[0] for curve in (mine, curves[2])]
        assert both[0] == pytest.approx(both[1], rel=1e-9)  # the scale of a transmission does not matter

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ("a b\nc d\ne f", "not two columns of numbers"),
            ("1\n2\n3", "not two columns of numbers"),
            ("5000 0.1\n4000 0.2\n6000 0.1", "wavelengths must be positive and increase"),
            ("4000 0\n5000 0\n6000 0", "transmission must be finite and positive somewhere"),
        ],
    )
    def test_files_that_are_not(self, tmp_path, rows, message):
        path = tmp_path / "bad.dat"
        path.write_text(rows)
        with pytest.raises(ValueError, match=message):
            load_filter(str(path))

    def test_library(self):
        assert set(BANDS) <= set(filter_names())


class TestForward:
    def test_batch_equals_one_by_one(self, forward, theta, flux):
        for row in (0, 17):
            single = flux_of(forward.table, forward.galaxy, jnp.asarray(theta[row]))
            np.testing.assert_allclose(flux[row], single, rtol=1e-5)

    def test_detection_is_the_selection_of_the_fluxes(self, forward, theta, flux):
        probability = np.asarray(jax.jit(ForwardModel.detection)(forward, jnp.asarray(theta)))
        mag = -2.5 * np.log10(flux[:, 2])
        assert np.all(probability[mag < 17.4] > 0.999)
        assert np.all(probability[mag > 18.1] < 0.001)

    def test_build_adds_the_filters_of_the_selection(self, noise):
        two = first_bands(noise, 1)
        selection = SelectionConfig((MagnitudeLimit("sdss_r0", 18.0), MagnitudeLimit("sdss_g0", 20.0)))
        forward = build_forward_model(["sdss_g0"], two, selection=selection, bounds={"redshift": (0.05, 0.1)})
        assert forward.table.filters == ("sdss_g0", "sdss_r0")
        assert forward.num_bands == 1
        assert forward.space["redshift"].high == 0.1
