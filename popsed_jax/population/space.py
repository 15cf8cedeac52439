"""The space in which simulated and observed photometry are compared."""

from __future__ import annotations

from typing import Literal, get_args

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.observe.magnitudes import asinh_mag

SpaceName = Literal["balanced", "photometry", "color", "magnitude", "whitened"]
TAIL = 2.0
_NORMAL_MAD = 1.4826  # standard deviation of a normal over its median absolute deviation


@flax.struct.dataclass
class ComparisonSpace:
    """A linear map of asinh magnitudes: finite and smooth for negative fluxes, of unit robust width for the data.

    Attributes:
        softening: of the asinh magnitudes [maggies].
        matrix: features from magnitudes.
        center: the data's median features.
    """

    softening: Float[Array, " band"]
    matrix: Float[Array, "feature band"]
    center: Float[Array, " feature"]

    def mags(self, flux: Float[Array, "*batch band"]) -> Float[Array, "*batch band"]:
        """Asinh magnitudes."""
        return asinh_mag(flux, self.softening)

    def features(self, mags: Float[Array, "*batch band"]) -> Float[Array, "*batch feature"]:
        """Standardised features of asinh magnitudes; beyond `TAIL` widths from the median they grow as a logarithm.

        A quadratic cost would otherwise be ruled by a handful of galaxies with broken photometry.
        """
        return TAIL * jnp.arcsinh((mags @ self.matrix.T - self.center) / TAIL)


def build_space(
    kind: SpaceName,
    flux: Float[np.ndarray, "galaxy band"],
    error: Float[np.ndarray, "galaxy band"],
    softening: Float[np.ndarray, " band"],
) -> ComparisonSpace:
    """Build the map from the data.

    Args:
        kind: "photometry" takes each band's magnitude and the colours of neighbouring bands; "color" the magnitude of the
            best-measured band and those colours; "magnitude" the magnitudes alone (PopSED's choice); each over its robust
            width. "whitened" takes the principal axes of "color", each to unit variance but no finer than twice the noise:
            thin directions, where metallicity and dust differ, count as much as brightness. "balanced" takes those axes and
            each band's magnitude, so that the bands themselves are held too.
        flux, error: of the catalogue [maggies].

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in get_args(SpaceName):
        raise ValueError(f"fit: space = {kind!r} must be one of {', '.join(get_args(SpaceName))}")
    mags = np.asarray(asinh_mag(jnp.asarray(flux), jnp.asarray(softening)), float)
    noise = np.median(
        2.5 / np.log(10.0) * error / np.hypot(flux, 2.0 * softening), axis=0
    )  # d mag / d flux of Lupton+99
    num = mags.shape[1]
    bands = _over_width(mags, np.eye(num))
    colors = _over_width(mags, np.eye(num)[:-1] - np.eye(num)[1:])
    color = np.concatenate([bands[[np.argmin(noise)]], colors])
    matrix = {
        "magnitude": lambda: bands,
        "photometry": lambda: np.concatenate([bands, colors]),
        "color": lambda: color,
        "whitened": lambda: _whiten(mags, color, noise),
        "balanced": lambda: np.concatenate([_whiten(mags, color, noise), bands]),
    }[kind]()
    center = np.median(mags @ matrix.T, axis=0)
    return ComparisonSpace(jnp.asarray(softening), jnp.asarray(matrix), jnp.asarray(center))


def _over_width(mags: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Rows of a map of magnitudes, each over the robust width of what it gives."""
    features = mags @ matrix.T
    width = _NORMAL_MAD * np.median(np.abs(features - np.median(features, axis=0)), axis=0)
    return matrix / np.maximum(width, 1e-6)[:, None]  # a band of one value has no width


def _whiten(mags: np.ndarray, matrix: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Principal axes of a map's features, each to unit variance but no finer than twice the noise."""
    features = mags @ matrix.T
    inside = np.all(np.abs(features - np.median(features, axis=0)) < 5.0, axis=1)
    variance, axes = np.linalg.eigh(np.cov(features[inside], rowvar=False))
    floor = np.array([4.0 * np.sum((axis @ matrix) ** 2 * noise**2) for axis in axes.T])
    return (axes / np.sqrt(np.maximum(variance, floor))).T @ matrix
