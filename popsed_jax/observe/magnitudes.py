"""Magnitudes: AB, and the asinh magnitudes that stay finite and smooth for faint and negative fluxes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

POGSON = 2.5 / np.log(10.0)


@jax.jit
def ab_mag(flux: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """AB magnitude of a flux [maggies]; NaN for negative fluxes. (Oke & Gunn 1983)"""
    return -POGSON * jnp.log(flux)


@jax.jit
def asinh_mag(flux: Float[Array, "*batch band"], softening: Float[Array, " band"]) -> Float[Array, "*batch band"]:
    """Asinh magnitude of a flux [maggies], the AB magnitude far above the softening. (Lupton+99, eq. 3)

    Args:
        softening: flux at which the scale turns from logarithmic to linear [maggies].
    """
    return -POGSON * (jnp.arcsinh(0.5 * flux / softening) + jnp.log(softening))


@jax.jit
def asinh_mag_inverse(
    mag: Float[Array, "*batch band"], softening: Float[Array, " band"]
) -> Float[Array, "*batch band"]:
    """Flux [maggies] of an asinh magnitude."""
    return 2.0 * softening * jnp.sinh(-mag / POGSON - jnp.log(softening))
