"""Distances and ages against astropy and against DSPS."""

import astropy.units
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM

from popsed_jax._dsps import flat_wcdm
from popsed_jax.cosmology import Cosmology

REDSHIFT = np.concatenate([[0.001, 0.003], np.linspace(0.01, 3.0, 60)])
COSMOLOGIES = [Cosmology(), Cosmology(67.7, 0.31), Cosmology(73.0, 0.15)]
# Float32: 6e-8 a rounding, some ten of them; the quadrature itself is exact to 1e-9 up to redshift 3.
RTOL = 2e-6
each_cosmology = pytest.mark.parametrize("cosmology", COSMOLOGIES, ids=lambda c: f"{c.hubble}-{c.omega_matter}")


@each_cosmology
class TestAgainstAstropy:
    def reference(self, cosmology):
        return FlatLambdaCDM(H0=cosmology.hubble, Om0=cosmology.omega_matter, Tcmb0=0.0)

    def test_age(self, cosmology):
        expected = self.reference(cosmology).age(REDSHIFT).to_value(astropy.units.Gyr)
        np.testing.assert_allclose(cosmology.age(jnp.asarray(REDSHIFT)), expected, rtol=RTOL)

    def test_comoving_distance(self, cosmology):
        expected = self.reference(cosmology).comoving_distance(REDSHIFT).to_value(astropy.units.Mpc)
        np.testing.assert_allclose(cosmology.comoving_distance(jnp.asarray(REDSHIFT)), expected, rtol=RTOL)

    def test_luminosity_distance(self, cosmology):
        expected = self.reference(cosmology).luminosity_distance(REDSHIFT).to_value(astropy.units.Mpc)
        np.testing.assert_allclose(cosmology.luminosity_distance(jnp.asarray(REDSHIFT)), expected, rtol=RTOL)

    def test_volume(self, cosmology):
        reference = self.reference(cosmology).differential_comoving_volume(REDSHIFT)
        expected = 4.0 * np.pi * reference.to_value(astropy.units.Mpc**3 / astropy.units.sr)
        np.testing.assert_allclose(cosmology.differential_volume(jnp.asarray(REDSHIFT)), expected, rtol=RTOL)


@each_cosmology
def test_against_dsps(cosmology):
    with jax.enable_x64(True):
        z = jnp.asarray(REDSHIFT)
        params = flat_wcdm.CosmoParams(Om0=cosmology.omega_matter, w0=-1.0, wa=0.0, h=cosmology.hubble / 100.0)
        distance = jax.vmap(lambda one: flat_wcdm.luminosity_distance_to_z(one, *params))(z)
        np.testing.assert_allclose(cosmology.luminosity_distance(z), distance, rtol=1e-5)
        # DSPS's age is 0.7-0.9 Myr too large at every redshift; the closed form agrees with astropy to 2e-6.
        np.testing.assert_allclose(cosmology.age(z), flat_wcdm.age_at_z(z, *params), rtol=0.0, atol=1.1e-3)


def test_double_precision_uses_it():
    with jax.enable_x64(True):
        expected = FlatLambdaCDM(H0=70.0, Om0=0.3, Tcmb0=0.0).comoving_distance(REDSHIFT).to_value(astropy.units.Mpc)
        np.testing.assert_allclose(Cosmology().comoving_distance(jnp.asarray(REDSHIFT)), expected, rtol=3e-9)


def test_gradient_of_distance_is_the_integrand():
    cosmology = Cosmology()
    z = jnp.linspace(0.01, 2.0, 9)
    slope = jax.vmap(jax.grad(cosmology.comoving_distance))(z)
    expected = 299792.458 / (70.0 * np.sqrt(0.3 * (1.0 + np.asarray(z, float)) ** 3 + 0.7))  # c / H(z)
    np.testing.assert_allclose(slope, expected, rtol=RTOL)


def test_errors():
    with pytest.raises(ValueError, match=r"cosmology: hubble = 0.7 km/s/Mpc is not between 20 and 200"):
        Cosmology(hubble=0.7)
    with pytest.raises(ValueError, match=r"cosmology: omega_matter = 1.0 is not between 0 and 1"):
        Cosmology(omega_matter=1.0)
