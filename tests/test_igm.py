"""Intergalactic transmission: another code's numbers, direct integrals over the absorbers, and laws of every model."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.sps import igm
from popsed_jax.sps.igm import IGMName, igm_transmission

MODELS = ("inoue14", "madau95")

compiled = jax.jit(igm_transmission, static_argnames="model")

# (redshift, rest wavelength, transmission), computed by bagpipes 1.3.6, bagpipes/models/making/igm_inoue2014.py.
BAGPIPES = np.array(
    [
        (0.5, 800.0, 0.872887),
        (0.5, 940.0, 0.966739),
        (0.5, 1000.0, 0.97071),
        (0.5, 1200.0, 0.972951),
        (2.5, 400.0, 0.213856),
        (2.5, 700.0, 0.278305),
        (2.5, 900.0, 0.685068),
        (2.5, 925.5, 0.804073),
        (2.5, 960.0, 0.827192),
        (2.5, 1100.0, 0.844272),
        (4.0, 500.0, 0.011471),
        (4.0, 850.0, 0.0943177),
        (4.0, 918.5, 0.429057),
        (4.0, 990.0, 0.519363),
        (4.0, 1200.0, 0.418222),
        (6.0, 880.0, 0.00105067),
        (6.0, 913.0, 0.020628),
        (6.0, 935.0, 0.0464633),
        (6.0, 1000.0, 0.0680942),
        (6.0, 1210.0, 0.0115076),
    ]
)


def at(rest, redshift, model):
    """Transmission at one rest wavelength."""
    return float(compiled(np.array([rest * (1.0 + redshift)]), redshift, model=model)[0])


def at_rest(rest, model):
    """Transmission as a function of redshift, of light of these rest wavelengths."""
    return lambda redshift: igm_transmission(rest * (1.0 + redshift), redshift, model)


class Absorbers:
    """Lyman continuum from its definition: the integral of f(z) g(N) (1 - exp(-N sigma)), sigma of hydrogen ~ wave^3."""

    def __init__(self, rate, density, low, high):
        self.rate = rate
        log_column = np.linspace(low, high, 1200)
        self.column = 10.0**log_column
        self.weight = np.gradient(log_column) * np.log(10.0) * self.column * density(self.column)

    def depth(self, x, zp1):
        """Optical depth for light observed at x times the Lyman limit."""
        absorber = np.linspace(max(x, 1.0), zp1, 600)
        opacity = 6.3e-18 * (x / absorber[:, None]) ** 3 * self.column
        return np.trapezoid(self.rate(absorber) * (-np.expm1(-opacity) @ self.weight), absorber)


def normalised(beta):
    """N^-beta exp(-N / 10^21), of which 10^12 to 10^23 integrate to one. (Inoue+14)"""
    log_column = np.linspace(12.0, 23.0, 20_000)
    column = 10.0**log_column
    total = np.trapezoid(column ** (1.0 - beta) * np.exp(-column / 1e21) * np.log(10.0), log_column)
    return lambda n: n**-beta * np.exp(-n / 1e21) / total


def forest_rate(y):
    # Absorbers per unit redshift. (Inoue+14, table 1)
    high = (5.7 / 2.2) ** 2.7 * (y / 5.7) ** 4.5
    return 500.0 * np.where(y < 2.2, (y / 2.2) ** 0.2, np.where(y < 5.7, (y / 2.2) ** 2.7, high))


FOREST = Absorbers(forest_rate, normalised(1.7), 12.0, 23.0)
DAMPED = Absorbers(lambda y: 1.1 * np.where(y < 3.0, y / 3.0, (y / 3.0) ** 2), normalised(0.9), 12.0, 23.0)
# Madau 1995: thin clouds, and systems of 1.59e17 to 1e20 / cm^2.
CLOUDS = Absorbers(lambda y: 2.4e7 * y**2.46, lambda n: n**-1.5, np.log10(2e12), np.log10(1.59e17))
SYSTEMS = Absorbers(lambda y: 1.9e8 * y**0.68, lambda n: n**-1.5, np.log10(1.59e17), 20.0)


class TestInoue14:
    def test_against_bagpipes(self):
        for redshift, rest, expected in BAGPIPES:
            # The series has the same coefficients; of the continuum bagpipes has three digits, we four.
            tolerance = 1e-6 if rest > 912.4 else 1.5e-3
            assert at(rest, redshift, "inoue14") == pytest.approx(expected, abs=tolerance)

    def test_series_by_hand(self):
        # z = 4, rest 1100: the second range of the forest, the second of damped systems. (eq. 21, 22)
        x = 1100.0 * 5.0 / 1215.67
        assert at(1100.0, 4.0, "inoue14") == pytest.approx(np.exp(-2.354e-3 * x**3.7 - 5.39e-5 * x**3), rel=1e-5)

    @pytest.mark.parametrize("redshift", [0.7, 1.5, 2.5, 4.0, 5.5, 7.0])
    def test_published_continuum(self, redshift):
        """Eq. 25-29 as printed, one formula for each range of redshift and wavelength; three digits."""
        y = 1.0 + redshift
        x = np.linspace(1.0, y, 200)
        if redshift < 1.2:
            forest = 0.325 * (x**1.2 - y**-0.9 * x**2.1)
        elif redshift < 4.7:
            low = 2.55e-2 * y**1.6 * x**2.1 + 0.325 * x**1.2 - 0.250 * x**2.1
            forest = np.where(x < 2.2, low, 2.55e-2 * (y**1.6 * x**2.1 - x**3.7))
        else:
            low = 5.22e-4 * y**3.4 * x**2.1 + 0.325 * x**1.2 - 3.14e-2 * x**2.1
            middle = 5.22e-4 * y**3.4 * x**2.1 + 0.218 * x**2.1 - 2.55e-2 * x**3.7
            forest = np.select([x < 2.2, x < 5.7], [low, middle], 5.22e-4 * (y**3.4 * x**2.1 - x**5.5))
        if redshift < 2.0:
            damped = 0.211 * y**2 - 7.66e-2 * y**2.3 * x**-0.3 - 0.135 * x**2
        else:
            shared = 4.70e-2 * y**3 - 1.78e-2 * y**3.3 * x**-0.3
            damped = shared + np.where(x < 3.0, 0.634 - 0.135 * x**2 - 0.291 * x**-0.3, -2.92e-2 * x**3)
        with jax.enable_x64(True):
            ours = [
                np.asarray(f(jnp.asarray(x), jnp.asarray(y))) for f in (igm._forest_continuum, igm._damped_continuum)
            ]
        np.testing.assert_allclose(ours[0], forest, rtol=1e-2, atol=0.02)
        np.testing.assert_allclose(ours[1], damped, rtol=3e-3, atol=0.01)

    @pytest.mark.parametrize("redshift", [1.0, 3.0, 6.0])
    def test_against_the_absorbers(self, redshift):
        y = 1.0 + redshift
        for x, forest, damped in ((0.6, 0.12, 0.05), (1.001, 0.06, 0.006), (1 + 0.4 * redshift, 0.03, 0.003)):
            with jax.enable_x64(True):
                args = jnp.array([x]), jnp.asarray(y)
                ours = float(igm._forest_continuum(*args)[0]), float(igm._damped_continuum(*args)[0])
            assert ours[0] == pytest.approx(FOREST.depth(x, y), rel=forest)
            assert ours[1] == pytest.approx(DAMPED.depth(x, y), rel=damped)


class TestMadau95:
    def test_a_magnitude_at_redshift_4(self):
        """Lyman alpha alone takes a magnitude shortward of 6000 Angstrom from z = 4 on. (Madau 1995)"""
        assert -2.5 * np.log10(at(6000.0 / 5.0, 4.0, "madau95")) == pytest.approx(1.0, abs=0.03)

    def test_series(self):
        """Eq. 15 with the coefficients and wavelengths that the paper prints, between Lyman epsilon and alpha."""
        for rest, num in ((1100.0, 1), (1000.0, 2), (960.0, 3), (945.0, 4)):
            obs = 4.0 * rest
            lines = zip((3.6e-3, 1.7e-3, 1.2e-3, 9.3e-4), (1216.0, 1026.0, 973.0, 950.0), strict=True)
            depth = sum(a * (obs / wave) ** 3.46 for a, wave in list(lines)[:num])
            assert -np.log(at(rest, 3.0, "madau95")) == pytest.approx(depth, rel=4e-3)

    @pytest.mark.parametrize("redshift", [1.0, 3.0, 6.0])
    def test_footnote_against_the_absorbers(self, redshift):
        """The approximation is meant to be good to 5 %."""
        y = 1.0 + redshift
        for x in (0.6, 1.001, 1 + 0.3 * redshift, 1 + 0.9 * redshift):
            with jax.enable_x64(True):
                obs, zp1 = jnp.array([912.0 * x]), jnp.asarray(y)
                series = igm._line_depth(obs, zp1, igm._SERIES[:17, 0], igm._MADAU_SERIES, 3.46, 1.0, np.inf)
                ours = float((igm._madau95(obs, zp1) - series)[0])
            assert ours == pytest.approx(CLOUDS.depth(x, y) + SYSTEMS.depth(x, y), rel=0.06)

    def test_more_opaque_than_inoue14(self):
        """At z = 3 to 4 the older model takes more, of the continuum most. (Inoue+14, abstract)"""
        for redshift in (3.0, 4.0):
            assert at(1100.0, redshift, "madau95") < at(1100.0, redshift, "inoue14")
            # half a magnitude and more
            assert at(890.0, redshift, "madau95") < 10.0**-0.2 * at(890.0, redshift, "inoue14")


@pytest.mark.parametrize("model", MODELS)
class TestEveryModel:
    REST = np.concatenate([np.geomspace(1.0, 900.0, 150), np.linspace(900.3, 1300.3, 400), [5e3, 1e5, 1e7]])

    def curves(self, model, x64=True):
        with jax.enable_x64(x64):
            grid = jnp.asarray(np.linspace(0.0, 7.0, 141))
            return np.asarray(jax.jit(jax.vmap(at_rest(jnp.asarray(self.REST), model)))(grid), float)

    def test_a_fraction(self, model):
        found = self.curves(model)
        assert found.min() >= 0.0
        assert found.max() <= 1.0

    def test_nothing_redward_of_lyman_alpha(self, model):
        np.testing.assert_array_equal(self.curves(model)[:, self.REST > igm.LYMAN_ALPHA], 1.0)

    def test_farther_is_fainter(self, model):
        found = self.curves(model)
        assert np.diff(found, axis=0).max() <= 0.0
        blue = (self.REST > 300.0) & (self.REST < igm.LYMAN_ALPHA)
        assert np.diff(found[20:101], axis=0)[:, blue].max() < 0.0  # z = 1 to 5

    def test_local_universe_is_clear(self, model):
        np.testing.assert_array_equal(self.curves(model)[0], 1.0)

    def test_precisions_agree(self, model):
        with jax.enable_x64(False):
            single = self.curves(model, x64=False)
        double = self.curves(model)
        # A line's own step falls on either side of a wavelength rounded: these are not near one.
        np.testing.assert_allclose(single, double, atol=5e-6)

    def test_gradient(self, model):
        """In redshift, of light of a fixed rest wavelength, against central differences."""
        with jax.enable_x64(True):
            function = jax.jit(at_rest(jnp.asarray(self.REST[self.REST < 1215.0]), model))
            for redshift in (0.31, 1.37, 2.43, 3.9, 5.1, 6.7):
                slope = jax.jacfwd(function)(redshift)
                step = 1e-6
                expected = (function(redshift + step) - function(redshift - step)) / (2.0 * step)
                np.testing.assert_allclose(slope, expected, atol=1e-7)

    @pytest.mark.parametrize("x64", [False, True])
    def test_gradient_is_finite_where_formulas_change(self, model, x64):
        edges = np.outer([1.0, 2.2, 3.0, 5.7, 8.0], [911.8, 912.0, 1215.67, 1025.72]).ravel()
        wave = np.concatenate([edges, np.geomspace(1.0, 1e7, 60)])
        with jax.enable_x64(x64):
            both = jax.jit(jax.jacrev(lambda w, z: igm_transmission(w, z, model).sum(), argnums=(0, 1)))
            for redshift in (0.0, 1.2, 2.0, 4.7, 7.0):
                for slope in both(jnp.asarray(wave), jnp.asarray(redshift)):
                    assert np.all(np.isfinite(slope))


class TestInterface:
    @pytest.mark.parametrize("model", get_args(IGMName))
    def test_numpy_and_traced_agree(self, model):
        wave = np.linspace(3000.0, 7000.0, 300)
        found = igm_transmission(wave, np.float64(3.2), model)
        assert found.shape == wave.shape
        traced = jax.jit(lambda w, z: igm_transmission(w, z, model))(jnp.asarray(wave), jnp.asarray(3.2))
        np.testing.assert_allclose(traced, found, atol=1e-6)
        np.testing.assert_allclose(igm_transmission(wave, np.asarray(3.2), model), found, atol=1e-6)

    def test_none_is_one(self):
        np.testing.assert_array_equal(igm_transmission(np.array([500.0, 5000.0]), 4.0, "none"), 1.0)

    def test_unknown_name(self):
        with pytest.raises(ValueError, match="no IGM model 'inoue15'; choose one of inoue14, madau95, none"):
            igm_transmission(np.array([500.0]), 1.0, "inoue15")
