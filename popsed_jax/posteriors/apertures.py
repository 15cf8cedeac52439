"""Light within circles about an image's middle, as numbers that a network learns from easily.

Fluxes within growing circles say how bright a galaxy is, its colours, and how they and the light are spread; but all of them rise
and fall together. Whitened, what little sets them apart counts as much as what they have in common.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_LEAST = 1e-6  # of the largest variance: a direction with less is noise of single precision


def aperture_fluxes(
    image: Float[Array, "*galaxy row column band"], radii: tuple[float, ...]
) -> Float[Array, "*galaxy aperture band"]:
    """Sums of the pixels whose centres lie within circles about the image's middle.

    Args:
        radii: [pixel].
    """
    rows, columns = (np.arange(num) - 0.5 * (num - 1) for num in image.shape[-3:-1])
    inside = np.hypot(rows[:, None], columns) <= np.asarray(radii)[:, None, None]
    return jnp.einsum("...yxb,ayx->...ab", image, jnp.asarray(inside, image.dtype))


class Whitening(NamedTuple):
    """Linear map of the apertures' fluxes to numbers of unit variance without correlations.

    Attributes:
        center, matrix: what is subtracted, and what that is then multiplied with from the right.
    """

    center: Float[Array, " feature"]
    matrix: Float[Array, "feature feature"]

    def __call__(self, fluxes: Float[Array, "galaxy feature"]) -> Float[Array, "galaxy feature"]:
        """The numbers."""
        return (fluxes - self.center) @ self.matrix


def fit_whitening(fluxes: Float[np.ndarray, "galaxy feature"]) -> Whitening:
    """By the principal components of the training's galaxies."""
    center = fluxes.mean(axis=0, dtype=float)
    variance, axes = np.linalg.eigh(np.cov(fluxes - center, rowvar=False))
    matrix = axes / np.sqrt(np.maximum(variance, _LEAST * variance[-1]))
    return Whitening(jnp.asarray(center, jnp.float32), jnp.asarray(matrix, jnp.float32))
