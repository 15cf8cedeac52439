"""What the scores of anomalies share: rows of a latent space, checked and standardised."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from popsed_jax.diagnostics._common import refuse

NEEDS = 'needs scikit-learn and imbalanced-learn: pip install "popsed_jax[anomaly]"'
_MAD = 1.4826  # a normal distribution's standard deviation over its median absolute deviation


class Scaling(NamedTuple):
    """Robust standardisation: median to zero, 1.4826 times the median absolute deviation to one.

    Attributes:
        center: median of each dimension.
        scale: of each dimension: the standard deviation where half of the values or more are the same, and one where all are.
    """

    center: Float[np.ndarray, " dim"]
    scale: Float[np.ndarray, " dim"]

    def __call__(self, latents: Float[np.ndarray, "row dim"]) -> Float[np.ndarray, "row dim"]:
        """Standardised rows."""
        return (latents - self.center) / self.scale


def fit_scaling(train: Float[np.ndarray, "row dim"]) -> Scaling:
    """The standardisation of these rows."""
    center = np.median(train, axis=0)
    scale, spread = _MAD * np.median(np.abs(train - center), axis=0), np.std(train, axis=0)
    # Of equal numbers, rounding leaves a standard deviation that is not quite zero.
    constant = np.ptp(train, axis=0) == 0.0
    return Scaling(center, np.where(constant, 1.0, np.where(scale > 0.0, scale, spread)))


def checked_rows(rows: Any, what: str, dim: int | None = None) -> Float[np.ndarray, "row dim"]:
    """Rows as floats.

    Raises:
        ValueError: no rows, another shape, or values that are not numbers.
    """
    rows = np.asarray(rows, float)
    if rows.ndim != 2 or 0 in rows.shape or rows.shape[1] != (dim or rows.shape[1]):
        raise ValueError(f"{what} of shape {rows.shape}: (row, {dim or 'dimension'}) wanted")
    refuse(~np.isfinite(rows).all(axis=1), f"among the {what} have values that are not numbers")
    return rows
