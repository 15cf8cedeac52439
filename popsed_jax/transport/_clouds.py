"""Checks and normalisation shared by the distances between weighted clouds."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def check_power(power: int) -> None:
    """Refuse a ground cost other than |x - y| and |x - y|^2 / 2.

    Raises:
        ValueError: power is neither 1 nor 2.
    """
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, got {power!r}")


def check_blur(blur: Float[Array, ""] | float) -> None:
    """Refuse a blur that is not one positive finite number; a traced value passes unseen.

    Raises:
        ValueError: blur is not a scalar, or (outside traced code) not positive and finite.
    """
    if np.ndim(blur) != 0:
        raise ValueError(f"blur must be a scalar, got shape {np.shape(blur)}")
    if not isinstance(blur, jax.core.Tracer) and not (np.isfinite(blur) and blur > 0):
        raise ValueError(f"blur must be positive and finite, got {blur}")


def as_clouds(
    x: Float[Array, "sample_x dim"], y: Float[Array, "sample_y dim"]
) -> tuple[Float[Array, "sample_x dim"], Float[Array, "sample_y dim"]]:
    """Both clouds as arrays of one floating type, after a check of their shapes.

    Raises:
        ValueError: a cloud is not two-dimensional, is empty, or their dimensions differ.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    for name, cloud in (("x", x), ("y", y)):
        if cloud.ndim != 2 or 0 in cloud.shape:
            raise ValueError(f"{name} must be a non-empty (sample, dim) array, got shape {cloud.shape}")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"clouds differ in dimension: x has {x.shape[1]}, y has {y.shape[1]}")
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
    return x.astype(dtype), y.astype(dtype)


def normalise_weights(
    weights: Float[Array, " sample"] | None, cloud: Float[Array, "sample dim"], name: str
) -> Float[Array, " sample"]:
    """Weights of a cloud's points, scaled to sum to one; uniform when None.

    Raises:
        ValueError: one weight per point is not given, or (outside traced code) a weight is negative or not finite, or
            all are zero.
    """
    num = cloud.shape[0]
    if weights is None:
        return jnp.full((num,), 1.0 / num, cloud.dtype)
    weights = jnp.asarray(weights, cloud.dtype)
    if weights.shape != (num,):
        raise ValueError(f"{name} must have shape ({num},), one per point, got {weights.shape}")
    if not isinstance(weights, jax.core.Tracer):
        values = np.asarray(weights)
        if not (np.all(np.isfinite(values)) and np.all(values >= 0) and values.sum() > 0):
            raise ValueError(f"{name} must be finite and not negative, with a positive sum")
    return weights / jnp.sum(weights)
