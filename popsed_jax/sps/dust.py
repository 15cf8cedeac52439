"""Dust attenuation: a birth cloud around young stars and a diffuse screen for all."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax._dsps import RV_C00, noll09_k_lambda

WAVE_V = 5500.0  # [Angstrom]
AGE_BIRTH_CLOUD = 0.01  # [Gyr]: stars younger than this see the birth cloud (Charlot & Fall 2000)


def diffuse_optical_depth(
    wave: Float[Array | np.ndarray, " wave"], tau_v: Float[Array, ""], dust_index: Float[Array, ""]
) -> Float[Array, " wave"]:
    """Optical depth of the diffuse dust: Calzetti with free slope and a bump tied to it. (Kriek & Conroy 2013, eq. 1-3)

    Args:
        wave: rest wavelength [Angstrom].
        tau_v: optical depth at 5500 Angstrom.
        dust_index: slope offset delta; 0 is Calzetti's slope, negative is steeper.
    """
    bump = 0.85 - 1.9 * dust_index  # Kriek & Conroy 2013, eq. 3
    return tau_v * noll09_k_lambda(wave * 1e-4, bump, dust_index) / RV_C00


def birth_cloud_optical_depth(
    wave: Float[Array | np.ndarray, " wave"], tau_birth: Float[Array, ""]
) -> Float[Array, " wave"]:
    """Optical depth of the birth cloud, ``tau_birth * (wave / 5500)**-1``. (Conroy+09 and the FSPS manual, dust1)"""
    return tau_birth * (WAVE_V / wave)


def transmission(
    wave: Float[Array | np.ndarray, " wave"],
    tau_v: Float[Array, ""],
    tau_birth: Float[Array, ""],
    dust_index: Float[Array, ""],
) -> tuple[Float[Array, " wave"], Float[Array, " wave"]]:
    """Transmitted fractions for stars older and younger than 10 Myr; both see the diffuse dust."""
    old = jnp.exp(-diffuse_optical_depth(wave, tau_v, dust_index))
    return old, old * jnp.exp(-birth_cloud_optical_depth(wave, tau_birth))
