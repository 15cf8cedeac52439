"""Attenuation laws: quoted points of each curve, and laws of all of them."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax._dsps import RV_C00, noll09_k_lambda
from popsed_jax.sps.dust import AttenuationName, diffuse_optical_depth, transmission

LAWS = get_args(AttenuationName)
INDICES = (-1.0, -0.3, 0.0, 0.4)

# k of Calzetti+00 as the literature quotes it: ultraviolet, [O II], H beta, H alpha (Dominguez+13 and others).
CALZETTI = ((1500.0, 10.33), (1600.0, 9.97), (3727.0, 5.86), (4861.0, 4.60), (6563.0, 3.33))
# A(lambda) / A(V) measured in the SMC bar, by wavelength in 1 / micron. (Gordon+03, table 4)
SMC_BAR = (
    *((0.606, 0.169), (0.800, 0.250), (1.235, 0.567), (1.538, 0.801), (2.273, 1.374), (2.703, 1.672)),
    *((3.375, 2.000), (4.125, 2.661), (4.625, 3.161), (5.125, 3.489), (6.125, 4.243), (7.125, 5.272), (8.125, 6.297)),
)


compiled = jax.jit(diffuse_optical_depth, static_argnames="law")


def depth(wave, tau_v, dust_index, law):
    return compiled(jnp.asarray(wave), jnp.asarray(tau_v), jnp.asarray(dust_index), law=law)


class TestCurves:
    @pytest.mark.parametrize("dust_index", INDICES)
    def test_kriek_conroy_is_the_default_and_noll09(self, dust_index):
        wave = np.geomspace(912.0, 22_000.0, 500)
        with jax.enable_x64(True):
            found = diffuse_optical_depth(wave, jnp.asarray(1.7), jnp.asarray(dust_index))
            expected = 1.7 * noll09_k_lambda(wave * 1e-4, 0.85 - 1.9 * dust_index, dust_index) / RV_C00
            np.testing.assert_allclose(found, expected, rtol=1e-14)
            named = diffuse_optical_depth(wave, jnp.asarray(1.7), jnp.asarray(dust_index), "kriek_conroy")
            np.testing.assert_array_equal(found, named)

    def test_calzetti_points(self):
        for wave, k in CALZETTI:
            found = depth([wave], 1.0, 0.0, "calzetti")
            assert float(found[0]) == pytest.approx(k / RV_C00, rel=2e-3)

    def test_calzetti_is_kriek_conroy_without_a_bump(self):
        """At delta = 0.85 / 1.9 the bump of Kriek & Conroy vanishes."""
        wave = np.geomspace(912.0, 22_000.0, 100)
        ratio = depth(wave, 1.0, 0.85 / 1.9, "kriek_conroy") / depth(wave, 1.0, 0.85 / 1.9, "calzetti")
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
        assert float(ratio[0]) == pytest.approx(1.0, abs=1e-3)  # k(5500) / 4.05

    def test_power_law(self):
        # Charlot & Fall 2000: halving the wavelength is 2^0.7 times the depth.
        np.testing.assert_allclose(depth([2750.0, 11_000.0], 1.0, 0.0, "power_law"), [2**0.7, 2**-0.7], rtol=1e-6)
        np.testing.assert_allclose(depth([2750.0], 1.0, -0.3, "power_law"), [2.0], rtol=1e-6)

    def test_smc_points(self):
        for inverse, expected in SMC_BAR:
            # Pei's fit is to older data: 7 % in the ultraviolet and near infrared.
            assert float(depth([1e4 / inverse], 1.0, 0.0, "smc")[0]) == pytest.approx(expected, rel=0.07)

    def test_smc_ratio_of_bands(self):
        # R_V = 2.93 (Pei 1992): A(B) / A(V) = 1 + 1 / R_V.
        assert float(depth([4400.0], 1.0, 0.0, "smc")[0]) == pytest.approx(1.0 + 1.0 / 2.93, rel=0.02)

    def test_in_the_far_ultraviolet_the_smc_is_steeper(self):
        steep, grey = (float(depth([1500.0], 1.0, 0.0, law)[0]) for law in ("smc", "calzetti"))
        assert 1.7 < steep / grey < 2.0

    def test_only_kriek_conroy_has_a_bump(self):
        wave = np.array([1900.0, 2175.0, 2600.0])
        for law in LAWS:
            blue, middle, red = np.log(np.asarray(depth(wave, 1.0, 0.0, law)))
            assert (middle > 0.5 * (blue + red) + 0.05) is np.bool_(law == "kriek_conroy")


@pytest.mark.parametrize("law", LAWS)
class TestEveryLaw:
    WAVE = np.geomspace(1.0, 1e7, 1500)

    @pytest.mark.parametrize("dust_index", INDICES)
    def test_tau_v_is_the_depth_at_5500(self, law, dust_index):
        tolerance = 4e-3 if law == "kriek_conroy" else 1e-6
        assert float(depth([5500.0], 1.3, dust_index, law)[0]) == pytest.approx(1.3, rel=tolerance)

    @pytest.mark.parametrize("dust_index", INDICES)
    def test_the_slope_tilts_the_law(self, law, dust_index):
        wave = np.array([1500.0, 3000.0, 9000.0, 18_000.0])
        ratio = np.asarray(depth(wave, 1.0, dust_index, law) / depth(wave, 1.0, 0.0, law))
        # The bump of Kriek & Conroy changes too; its wings are 8 % of the curve at 3000 Angstrom.
        np.testing.assert_allclose(ratio, (wave / 5500.0) ** dust_index, rtol=0.08 if law == "kriek_conroy" else 1e-5)

    @pytest.mark.parametrize("x64", [False, True])
    def test_finite_from_x_rays_to_the_millimetre(self, law, x64):
        def through(wave, tau_v, dust_index):
            return transmission(wave, tau_v, jnp.asarray(0.5), dust_index, law)[0].sum()

        with jax.enable_x64(x64):
            slopes = jax.jit(jax.grad(through, argnums=(0, 1, 2)))
            for dust_index in (-3.0, *INDICES, 1.0):
                found = np.asarray(depth(self.WAVE, 1.0, dust_index, law))
                assert np.all(np.isfinite(found))
                assert found.min() >= 0.0
                assert found[(self.WAVE > 91.0) & (self.WAVE < 3e4)].min() > 0.0
                for tau_v in (0.0, 3.0):
                    args = jnp.asarray(self.WAVE), jnp.asarray(tau_v), jnp.asarray(dust_index)
                    assert all(np.all(np.isfinite(slope)) for slope in slopes(*args))

    @pytest.mark.parametrize("dust_index", INDICES)
    def test_no_polynomial_runs_away(self, law, dust_index):
        """Below 912 Angstrom it rises by no more than 4 % and is gone in X-rays; beyond 2.2 micron it is small."""
        found = np.asarray(depth(self.WAVE, 1.0, dust_index, law))
        limit = float(depth([912.0], 1.0, dust_index, law)[0])
        blue = self.WAVE < 912.0
        assert found[blue].max() < 1.04 * limit
        assert np.diff(found[self.WAVE < 500.0]).min() > 0.0
        assert found[0] < 1e-3 * limit
        assert found[self.WAVE > 22_000.0].max() < 1.0  # the SMC's silicates, tilted up, are 0.94
        # Continuous where the law is handed over.
        np.testing.assert_allclose(depth([911.99, 912.01], 1.0, dust_index, law), limit, rtol=1e-3)

    def test_falls_with_wavelength(self, law):
        """From 912 Angstrom to 4 micron, but for the bump, and 1 % where two formulas of Calzetti's meet."""
        wave = np.geomspace(912.0, 4e4, 600)
        found = np.asarray(depth(wave, 1.0, 0.0, law))
        away = (wave < 1800.0) | (wave > 2200.0) if law == "kriek_conroy" else np.ones(len(wave), bool)
        assert np.all((np.diff(found) <= 0.01 * found[:-1])[away[:-1]])

    def test_precisions_agree(self, law):
        single = np.asarray(depth(self.WAVE, 1.0, -0.4, law), float)
        with jax.enable_x64(True):
            double = np.asarray(depth(self.WAVE, 1.0, -0.4, law))
        np.testing.assert_allclose(single, double, rtol=2e-5, atol=1e-6)

    def test_gradient(self, law):
        wave = np.geomspace(95.0, 9e4, 200)
        with jax.enable_x64(True):
            function = jax.jit(lambda q: transmission(jnp.asarray(wave), q[0], q[1], q[2], law)[1])
            point = jnp.array([0.7, 0.4, -0.35])
            slope = jax.jacfwd(function)(point)
            for i, unit in enumerate(1e-6 * np.eye(3)):
                expected = (function(point + unit) - function(point - unit)) / 2e-6
                np.testing.assert_allclose(slope[:, i], expected, atol=1e-8)

    def test_transmission_uses_the_law(self, law):
        wave = np.geomspace(1000.0, 2e4, 40)
        old, young = transmission(wave, jnp.asarray(0.8), jnp.asarray(0.6), jnp.asarray(0.1), law)
        np.testing.assert_allclose(old, np.exp(-depth(wave, 0.8, 0.1, law)), rtol=1e-5)
        np.testing.assert_allclose(young, old * np.exp(-0.6 * 5500.0 / wave), rtol=1e-5)


def test_unknown_law():
    with pytest.raises(
        ValueError, match="no attenuation law 'lmc'; choose one of kriek_conroy, calzetti, power_law, smc"
    ):
        depth([5500.0], 1.0, 0.0, "lmc")
