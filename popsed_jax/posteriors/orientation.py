"""Orientations as latents are guided to them, and how they turn with their images. Their period is pi."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

ANGLES = ("orientation", "angle")
ANGLE_SCALE = np.pi / np.sqrt(12.0)  # scatter of angles between -pi/2 and pi/2
_VECTOR_SCALE = np.sqrt(0.5)  # of their (cos 2 phi, sin 2 phi)


def guided_targets(
    guided: tuple[str, ...], orientation: Float[Array, " galaxy"], others: Float[Array, "galaxy other"]
) -> Float[Array, "galaxy guided"]:
    """(p - mean) / sigma_p of everything that latents are guided to, in the latents' order.

    Args:
        guided: names, as in `popsed_jax.posteriors.guided.GuidedConfig`.
        orientation: [rad].
        others: what is no angle, standardised, in the order of the names.
    """
    columns, other = [], 0
    for name in guided:
        if name == "orientation":
            columns += [jnp.cos(2.0 * orientation) / _VECTOR_SCALE, jnp.sin(2.0 * orientation) / _VECTOR_SCALE]
        elif name == "angle":
            columns.append(wrapped(orientation) / ANGLE_SCALE)
        else:
            columns.append(others[:, other])
            other += 1
    return jnp.stack(columns, axis=1) if columns else jnp.zeros((len(others), 0))


def without_angle(
    guided: tuple[str, ...], latent: Float[np.ndarray, "galaxy latent"]
) -> Float[np.ndarray, "galaxy fewer"]:
    """Latents without what says how a galaxy lies, which is no part of what it is.

    (cos 2 phi, sin 2 phi) become their length: near one for elongated galaxies, zero for round ones. A plain angle is left out.

    Args:
        guided: as in `guided_targets`.
    """
    columns, at = [], 0
    for name in guided:
        if name == "orientation":
            columns.append(np.hypot(latent[:, at], latent[:, at + 1])[:, None] * _VECTOR_SCALE)
        elif name != "angle":
            columns.append(latent[:, at : at + 1])
        at += 1 + (name == "orientation")
    return np.concatenate([*columns, latent[:, at:]], axis=1)


def wrapped(angle: Float[Array, "*galaxy"]) -> Float[Array, "*galaxy"]:
    """An angle of period pi, between -pi/2 and pi/2."""
    return angle - np.pi * jnp.floor(angle / np.pi + 0.5)


def turned(
    which: Array, image: Float[Array, "galaxy row column band"], orientation: Float[Array, " galaxy"]
) -> tuple[Float[Array, "galaxy row column band"], Float[Array, " galaxy"]]:
    """One of the eight flips and transpositions of square images, and the orientations [rad] that go with it.

    Args:
        which: 0 to 7; 0 leaves all as it is.
    """
    rows, columns, transposed = which % 2 == 1, (which // 2) % 2 == 1, which // 4 == 1
    image = jnp.where(rows, image[:, ::-1], image)
    image = jnp.where(columns, image[:, :, ::-1], image)
    angle = jnp.where(rows != columns, -orientation, orientation)
    image = jnp.where(transposed, jnp.swapaxes(image, 1, 2), image)
    return image, jnp.where(transposed, 0.5 * np.pi - angle, angle)
