"""What all parts of a spectrum need: pixels, power, and linear interpolation between templates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LIGHT = 2.99792458e18  # speed of light [Angstrom/s]


def locate(x: Float[Array, ""], nodes: Float[Array | np.ndarray, " node"]) -> tuple[Array, Array]:
    """Index of the increasing node below x and the fraction of the way to the next; 0 or 1 beyond the ends."""
    nodes = jnp.asarray(nodes)
    index = jnp.clip(jnp.searchsorted(nodes, x, side="right") - 1, 0, len(nodes) - 2)
    return index, jnp.clip((x - nodes[index]) / (nodes[index + 1] - nodes[index]), 0.0, 1.0)


@jax.jit
def interpolation_weights(x: Float[Array, ""], nodes: Float[Array | np.ndarray, " node"]) -> Float[Array, " node"]:
    """Weights on increasing nodes that interpolate linearly at x; beyond the ends all is on the last node.

    The gradient is constant between nodes and zero beyond the ends.
    """
    index, part = locate(x, nodes)
    return jnp.zeros(len(nodes), part.dtype).at[index].set(1.0 - part).at[index + 1].set(part)


def pixel_edges(wave: Float[Array, " pixel"]) -> Float[Array, " edge"]:
    """Edges of the pixels with these centres: midway between neighbours, the outer pixels symmetric."""
    middle = 0.5 * (wave[1:] + wave[:-1])
    return jnp.concatenate([2.0 * wave[:1] - middle[:1], middle, 2.0 * wave[-1:] - middle[-1:]])


@jax.jit
def luminosity(wave: Float[Array | np.ndarray, " wave"], lum_nu: Float[Array, " wave"]) -> Float[Array, ""]:
    """Power of a spectrum [Lsun], by the trapezoidal rule in wavelength.

    Exact for spectra that were averaged over pixels whose edges lie midway between the wavelengths, as the shipped ones
    were, but for the outer halves of the end pixels.

    Args:
        wave: rest wavelength [Angstrom], increasing.
        lum_nu: [Lsun/Hz].
    """
    return jnp.trapezoid(lum_nu * (LIGHT / wave**2), wave)
