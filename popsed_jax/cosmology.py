"""Distances and ages in a flat LCDM universe.

DSPS integrates its distances with 256 trapezoid steps for every galaxy and filter. In flat LCDM the age has a closed
form and a 16-point Gauss-Legendre rule gives the distance to float32 precision, so these are used in traced code; they
are tested against `dsps.cosmology.flat_wcdm` and astropy.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

HUBBLE_DISTANCE = 2997.92458  # c / (100 km/s/Mpc) [Mpc/h]
HUBBLE_TIME = 9.777922216807891  # 1 / (100 km/s/Mpc) [Gyr/h]
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


@dataclasses.dataclass(frozen=True)
class Cosmology:
    """Flat LCDM. The default, H0 = 70 and Omega_m = 0.3, is the convention of the mass functions used as references.

    Args:
        hubble: H0 [km/s/Mpc].
        omega_matter: matter density today, in (0, 1).
    """

    hubble: float = 70.0
    omega_matter: float = 0.3

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not 20.0 < self.hubble < 200.0:
            raise ValueError(f"cosmology: hubble = {self.hubble} km/s/Mpc is not between 20 and 200")
        if not 0.0 < self.omega_matter < 1.0:
            raise ValueError(f"cosmology: omega_matter = {self.omega_matter} is not between 0 and 1")

    @partial(jax.jit, static_argnames="self")
    def age(self, redshift: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Age of the Universe at a redshift [Gyr]. (closed form of flat LCDM, e.g. Peebles 1993, eq. 13.20)"""
        omega_lambda = 1.0 - self.omega_matter
        x = jnp.sqrt(omega_lambda / self.omega_matter) * (1.0 + redshift) ** -1.5
        return 2.0 / (3.0 * np.sqrt(omega_lambda)) * jnp.arcsinh(x) * HUBBLE_TIME / (self.hubble / 100.0)

    @partial(jax.jit, static_argnames="self")
    def comoving_distance(self, redshift: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Line-of-sight comoving distance [Mpc]. (Hogg 1999, eq. 15)"""
        redshift = jnp.asarray(redshift)
        z = 0.5 * redshift[..., None] * (1.0 + jnp.asarray(_NODES, redshift.dtype))
        integrand = 1.0 / jnp.sqrt(self.omega_matter * (1.0 + z) ** 3 + 1.0 - self.omega_matter)
        integral = 0.5 * redshift * (integrand @ jnp.asarray(_WEIGHTS, redshift.dtype))
        return integral * HUBBLE_DISTANCE / (self.hubble / 100.0)

    @partial(jax.jit, static_argnames="self")
    def luminosity_distance(self, redshift: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Luminosity distance [Mpc]. (Hogg 1999, eq. 21)"""
        return self.comoving_distance(redshift) * (1.0 + redshift)

    @partial(jax.jit, static_argnames="self")
    def differential_volume(self, redshift: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Comoving volume of the whole sky per unit redshift [Mpc^3]. (Hogg 1999, eq. 28)"""
        distance = self.comoving_distance(redshift)
        expansion = jnp.sqrt(self.omega_matter * (1.0 + redshift) ** 3 + 1.0 - self.omega_matter)
        return 4.0 * np.pi * distance**2 * HUBBLE_DISTANCE / (self.hubble / 100.0) / expansion
