"""The active nucleus against the published numbers, Wien's law, median quasar colours and finite differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.observe.filters import load_filter
from popsed_jax.observe.operators import integrate_spectrum
from popsed_jax.parameters import ParameterSpace
from popsed_jax.sps import agn
from popsed_jax.sps.agn import AGN_PARAMETERS, AGNConfig, agn_components, agn_lum_nu, agn_spectrum, agn_transmission
from popsed_jax.sps.ssp import load_ssp

LIGHT = 2.99792458e18  # [Angstrom/s]
CONFIG = AGNConfig()
WAVE = np.geomspace(91.0, 1e7, 20_000)  # 91 Angstrom to 1 mm
BANDS = ("sdss_u0", "sdss_g0", "sdss_r0", "sdss_i0", "sdss_z0")
# Richards+01, table 3 (astro-ph/0012449): median u-g, g-r, r-i, i-z; 2.5 is the mean of its 2.4 and 2.6.
MEDIAN_COLOURS = {
    0.5: (0.278, -0.059, 0.214, 0.097),
    1.0: (0.157, 0.239, -0.039, 0.032),
    1.5: (0.169, 0.150, 0.182, -0.028),
    2.0: (0.036, 0.064, 0.174, 0.177),
    2.5: (0.683, 0.117, 0.080, 0.251),
}


def double(function, *args):
    with jax.enable_x64(True):
        return np.asarray(function(*args))


def slope(lum_nu, low, high):
    """d ln L_nu / d ln nu between two wavelengths."""
    inside = (low < WAVE) & (high > WAVE)
    return np.polyfit(-np.log(WAVE[inside]), np.log(lum_nu[inside]), 1)[0]


class TestContinuum:
    @pytest.mark.parametrize(
        ("low", "high", "expected"),
        [(5000, 1e6, 0.593), (1500, 3000, -0.349), (1000, 1100, -1.349), (100, 800, -1.70)],
    )
    def test_slopes(self, low, high, expected):
        """plslp2, plslp1 and plslp1 + plstep of Temple+21; Lusso+15 below 912 Angstrom."""
        np.testing.assert_allclose(slope(double(agn.disc, WAVE, CONFIG), low, high), expected, atol=2e-3)

    @pytest.mark.parametrize("place", [CONFIG.wave_break, CONFIG.wave_uv, 912.0, 5500.0])
    def test_continuous_at_breaks(self, place):
        near = place * np.array([1 - 1e-6, 1.0, 1 + 1e-6])
        lum_nu = double(agn.disc, near, CONFIG)
        np.testing.assert_allclose(lum_nu, lum_nu[1], rtol=1e-5)
        steps = np.diff(np.log(double(agn.disc, place * np.exp(np.linspace(-0.2, 0.2, 401)), CONFIG)))
        assert np.abs(np.diff(steps)).max() < 2e-5  # the slope itself changes over 2 %, not at a point

    def test_close_to_the_sharp_form(self):
        x = np.log(WAVE / 5500.0)
        knots = np.log(np.array([912.0, CONFIG.wave_uv, CONFIG.wave_break]) / 5500.0)
        sharp = -0.593 * np.maximum(x, knots[2]) + 0.349 * (np.clip(x, knots[1], knots[2]) - knots[2])
        sharp += 1.349 * (np.clip(x, knots[0], knots[1]) - knots[1]) + 1.70 * np.minimum(x - knots[0], 0.0)
        np.testing.assert_allclose(double(agn.disc, WAVE, CONFIG), np.exp(sharp), rtol=0.015)

    def test_hot_dust(self):
        dust = double(agn.hot_dust, WAVE, CONFIG)
        np.testing.assert_allclose(WAVE[np.argmax(dust)], 5.0994e7 / 1243.6, rtol=1e-3)  # Wien's law for L_nu
        np.testing.assert_allclose(double(agn.hot_dust, np.array([2e4]), CONFIG), 3.961, rtol=1e-6)
        np.testing.assert_allclose(slope(dust, 5e6, 1e7), 2.0, atol=0.02)  # Rayleigh and Jeans

    def test_balmer_continuum(self):
        balmer, disc = (double(part, WAVE, CONFIG) for part in (agn.balmer_continuum, agn.disc))
        np.testing.assert_allclose(np.interp(3000.0, WAVE, balmer / disc), CONFIG.balmer_ratio, rtol=1e-3)
        assert balmer[WAVE > 3900.0].max() < 1e-6
        assert 3400.0 < WAVE[np.argmax(balmer)] < 3646.0


class TestLines:
    @pytest.mark.parametrize("line", agn.LINES, ids=lambda line: f"{line.name} {line.wave:.0f}")
    def test_equivalent_widths(self, monkeypatch, line):
        monkeypatch.setattr(agn, "LINES", (line,))
        near = line.wave * np.exp(np.linspace(-0.1, 0.1, 4001))
        with_line, without = (
            double(agn_components, near, dataclasses.replace(CONFIG, line_scale=scale)) for scale in (1.0, 0.0)
        )
        excess = with_line.sum(axis=0) - without.sum(axis=0)
        width = np.trapezoid(excess / with_line[0], near)
        np.testing.assert_allclose(width, line.broad + line.narrow, rtol=0.02)

    def test_widths(self, monkeypatch):
        for one, fwhm in ((agn.Line("narrow", 5000.0, 0.0, 1.0), 500.0), (agn.Line("broad", 5000.0, 1.0), 6000.0)):
            monkeypatch.setattr(agn, "LINES", (one,))
            near = 5000.0 * np.exp(np.linspace(-0.05, 0.05, 20_001))
            profile = double(agn.lines, near, CONFIG)
            half = near[profile > 0.5 * profile.max()]
            np.testing.assert_allclose(np.log(half[-1] / half[0]) * 299_792.458, fwhm, rtol=5e-3)

    def test_scales(self):
        double_lines = dataclasses.replace(CONFIG, line_scale=2.0, blend_scale=0.0)
        np.testing.assert_allclose(
            double(agn.lines, WAVE, double_lines), 2.0 * double(agn.lines, WAVE, CONFIG), rtol=1e-12
        )
        assert double(agn.blends, WAVE, double_lines).max() == 0.0


class TestSpectrum:
    def test_unit_normalisation(self):
        at = np.array([5100.0])
        assert double(agn_spectrum, at, CONFIG)[0] * LIGHT / 5100.0 == pytest.approx(1.0, rel=1e-8)
        with jax.enable_x64(True):
            assert float(agn.nu_lum_nu(WAVE, agn_spectrum(WAVE, CONFIG))) == pytest.approx(1.0, rel=1e-4)

    def test_components_add_up(self):
        parts = double(agn_components, WAVE, CONFIG)
        shape = double(agn_spectrum, WAVE, CONFIG)
        ratio = parts.sum(axis=0) / shape
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-10)

    def test_precisions_agree(self):
        single = np.asarray(agn_spectrum(jnp.asarray(WAVE, jnp.float32), CONFIG))
        assert single.dtype == np.float32
        assert np.all(np.isfinite(single))
        assert single.min() > 0.0
        np.testing.assert_allclose(single, double(agn_spectrum, WAVE.astype(np.float32), CONFIG), rtol=3e-4)

    def test_nothing_at_zero(self):
        nothing = agn_lum_nu(WAVE, jnp.asarray(0.0), jnp.asarray(0.3), jnp.asarray(1e10), CONFIG)
        assert np.all(np.asarray(nothing) == 0.0)

    def test_ratio_to_the_stars(self):
        with jax.enable_x64(True):
            added = agn_lum_nu(WAVE, jnp.asarray(0.7), jnp.asarray(0.0), jnp.asarray(3e9), CONFIG)
            assert float(agn.nu_lum_nu(WAVE, added)) == pytest.approx(0.7 * 3e9, rel=1e-4)


class TestReddening:
    def test_published_curve(self):
        """A few points of the curve distributed with Temple+21, which is E(lambda - V) / E(B - V)."""
        table = {
            500: 26.0623,
            1000: 13.6103,
            1500: 9.21437,
            2000: 6.82189,
            3000: 3.12428,
            4400: 0.906897,
            6000: -0.295181,
        }
        wave = np.array(list(table), float)
        with jax.enable_x64(True):
            extinction = -2.5 * np.log10(np.asarray(agn_transmission(wave, jnp.asarray(0.1)))) / 0.1
        np.testing.assert_allclose(extinction - 3.1, list(table.values()), atol=2e-4)

    def test_continuous_and_falling(self):
        with jax.enable_x64(True):
            trans = np.asarray(agn_transmission(WAVE, jnp.asarray(0.2)))
            edge = np.asarray(agn_transmission(1950.0 * np.array([1 - 1e-9, 1 + 1e-9]), jnp.asarray(1.0)))
        assert np.all(np.diff(trans) >= 0.0)
        assert edge[0] == pytest.approx(edge[1], rel=1e-4)


class TestGradients:
    @pytest.mark.parametrize(("f_agn", "ebv"), [(0.0, 0.0), (0.0, 0.5), (1.0, 0.0), (3.0, 1.0)])
    def test_finite_differences(self, f_agn, ebv):
        wave = np.geomspace(91.0, 1e6, 50)

        def model(theta):
            return agn_lum_nu(wave, theta[0], theta[1], jnp.asarray(1e10), CONFIG) * 1e5

        with jax.enable_x64(True):
            theta, step = jnp.array([f_agn, ebv]), 1e-5
            model = jax.jit(model)
            found = np.asarray(jax.jit(jax.jacfwd(model))(theta))
            assert np.all(np.isfinite(found))
            for i in range(2):
                shift = jnp.zeros(2).at[i].set(step)
                expected = np.asarray(model(theta + shift) - model(theta - shift)) / (2 * step)
                np.testing.assert_allclose(found[:, i], expected, rtol=1e-6, atol=1e-9 * np.abs(found).max())

    def test_finite_in_single_precision(self):
        space = ParameterSpace(AGN_PARAMETERS)
        wave = jnp.asarray(np.geomspace(91.0, 1e7, 300), jnp.float32)

        def model(theta):
            params = space.unpack(theta)
            return agn_lum_nu(wave, params["f_agn"], params["agn_ebv"], jnp.float32(1e10), CONFIG)

        forward, reverse = (jax.jit(jax.vmap(jacobian(model))) for jacobian in (jax.jacfwd, jax.jacrev))
        corners = jnp.array([(f_agn, ebv) for f_agn in (0.0, 3.0) for ebv in (0.0, 1.0)], jnp.float32)
        assert np.all(np.isfinite(forward(corners)))
        assert np.all(np.isfinite(reverse(corners)))
        np.testing.assert_array_less(0.0, np.asarray(forward(corners))[0, :, 0])


def forest(wave, redshift):
    """Mean transmission of the intergalactic gas. (Becker+13, eq. 5; Lyman beta and gamma as in Temple+21)"""
    depth = np.zeros_like(wave)
    for line, strength in ((1215.67, 1.0), (1025.72, 0.16), (972.54, 0.056)):
        place = (1.0 + redshift) * wave / line
        depth += np.where(wave < line, strength * np.maximum(0.751 * (place / 4.5) ** 2.9 - 0.132, 0.0), 0.0)
    return np.where(wave < 912.0, 0.0, np.exp(-depth))


@pytest.mark.parametrize("redshift", MEDIAN_COLOURS)
def test_quasar_colours(redshift):
    """Within 0.15 mag of the median SDSS quasar, its host added as Temple+21 do.

    The host has 0.244 of the light at 4000-5000 Angstrom at M_i = -23 and grows as the 0.684th power of the nucleus; M_i is
    the paper's median at that redshift. An old population of solar metallicity stands for their S0 galaxy.
    """
    ssp = load_ssp("stellar")
    wave = np.geomspace(600.0, 30_000.0, 8000)
    met, age = np.abs(ssp.log_met - np.log10(0.02)).argmin(), np.abs(ssp.log_age - np.log10(7.0)).argmin()
    stars = np.interp(wave, ssp.wave, ssp.lum_nu[met, age])
    band = (wave > 4000.0) & (wave < 5000.0)

    def light(lum_nu):
        return np.trapezoid((lum_nu / wave**2)[band], wave[band])

    mag_i = np.interp(redshift, [0.34, 0.6, 1.0, 1.4, 1.8, 2.2, 2.6], [-22.9, -24.1, -25.4, -26.0, -26.6, -27.1, -27.6])
    host = 0.244 / 0.756 * 10.0 ** (-0.4 * (mag_i + 23.0) * (0.684 - 1.0))
    with jax.enable_x64(True):
        anchor = agn.nu_lum_nu(wave, jnp.asarray(stars))
        unit = np.asarray(agn_lum_nu(wave, jnp.asarray(1.0), jnp.asarray(0.0), anchor, CONFIG))
    f_agn = light(stars) / (host * light(unit))
    total = (stars + f_agn * unit) * forest(wave, redshift)
    mag = -2.5 * np.log10(integrate_spectrum(wave, total, redshift, [load_filter(name) for name in BANDS]))
    np.testing.assert_allclose(mag[:-1] - mag[1:], MEDIAN_COLOURS[redshift], atol=0.15)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"slope_red": float("nan")}, "slope_red = nan must be finite"),
        ({"slope_uv": -9.0}, "slope_uv = -9.0 is not between -5 and 5"),
        ({"dust_ratio": -1.0}, "dust_ratio = -1.0 is negative"),
        ({"line_scale": -0.1}, "line_scale = -0.1 is negative"),
        ({"wave_uv": 800.0}, "wave_uv = 800.0 Angstrom must lie between 912 and wave_break = 3880.0"),
        ({"wave_break": 1100.0}, "wave_uv = 1200.0 Angstrom must lie between 912 and wave_break = 1100.0"),
        ({"dust_temperature": 20.0}, "dust_temperature = 20.0 K is not between 100 and 3000"),
        ({"narrow_width": 7000.0}, "narrow_width = 7000.0 must be at least 10 km/s and below broad_width = 6000.0"),
    ],
)
def test_bad_configuration(values, message):
    with pytest.raises(ValueError, match=f"agn: {message}"):
        AGNConfig(**values)
