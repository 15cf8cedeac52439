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
    colors = np.eye(num)[:-1] - np.eye(num)[1:]
    matrix = {
        "photometry": np.concatenate([np.eye(num), colors]),
        "magnitude": np.eye(num),
    }.get(kind, np.concatenate([np.eye(num)[[np.argmin(noise)]], colors]))
    features = mags @ matrix.T
    width = _NORMAL_MAD * np.median(np.abs(features - np.median(features, axis=0)), axis=0)
    matrix = matrix / np.maximum(width, 1e-6)[:, None]
    if kind in ("whitened", "balanced"):
        features = mags @ matrix.T
        inside = np.all(np.abs(features - np.median(features, axis=0)) < 5.0, axis=1)
        variance, axes = np.linalg.eigh(np.cov(features[inside], rowvar=False))
        floor = np.array([4.0 * np.sum((axis @ matrix) ** 2 * noise**2) for axis in axes.T])
        matrix = (axes / np.sqrt(np.maximum(variance, floor))).T @ matrix
    if kind == "balanced":
        spread = _NORMAL_MAD * np.median(np.abs(mags - np.median(mags, axis=0)), axis=0)
        matrix = np.concatenate([matrix, np.eye(num) / np.maximum(spread, 1e-6)[:, None]])
    center = np.median(mags @ matrix.T, axis=0)
    return ComparisonSpace(jnp.asarray(softening), jnp.asarray(matrix), jnp.asarray(center))
