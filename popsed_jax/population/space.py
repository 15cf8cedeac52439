"""The space in which simulated and observed photometry are compared."""

from __future__ import annotations

from typing import Literal, get_args

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from popsed_jax.observe.magnitudes import asinh_mag
from popsed_jax.observe.missing import band_patterns

SpaceName = Literal["balanced", "photometry", "color", "magnitude", "whitened"]
TAIL = 2.0
_NORMAL_MAD = 1.4826  # standard deviation of a normal over its median absolute deviation
_NUM_SWEEPS = 15  # of the expectation-maximisation behind `fill`


@flax.struct.dataclass
class ComparisonSpace:
    """A linear map of asinh magnitudes: finite and smooth for negative fluxes, of unit robust width for the data.

    A magnitude that a galaxy lacks is written as a fixed linear function of those that it has, one function for each pattern
    of missing bands, the same for simulated and observed galaxies. It is a coordinate, not a guess: whatever the function,
    two populations that agree in what was measured agree here, and their patterns agree by `MissingBands`. So the minimum of
    a distance is where it would be with any other function; a sensible one keeps the galaxy near its like.

    Attributes:
        softening: of the asinh magnitudes [maggies].
        matrix: features from magnitudes.
        center: the data's median features.
        mean: of the data's magnitudes.
        patterns: of missing bands: which there are.
        fill: for each pattern, from magnitudes less their mean to those with the missing ones filled in.
    """

    softening: Float[Array, " band"]
    matrix: Float[Array, "feature band"]
    center: Float[Array, " feature"]
    mean: Float[Array, " band"]
    patterns: Bool[Array, "pattern band"]
    fill: Float[Array, "pattern band band"]

    def mags(
        self, flux: Float[Array, "num band"], pattern: Int[Array, " num"] | None = None
    ) -> Float[Array, "num band"]:
        """Asinh magnitudes, those filled in that a pattern says are missing.

        Args:
            flux: [maggies]; what stands in a missing band does not matter.
            pattern: of missing bands; None: none is.
        """
        mags = asinh_mag(flux, self.softening)
        if pattern is None:
            return mags
        there = jnp.where(self.patterns[pattern], mags - self.mean, 0.0)
        return self.mean + jnp.einsum("nij,nj->ni", self.fill[pattern], there)

    def features(self, mags: Float[Array, "*batch band"]) -> Float[Array, "*batch feature"]:
        """Standardised features of asinh magnitudes; beyond `TAIL` widths from the median they grow as a logarithm.

        A quadratic cost would otherwise be ruled by a handful of galaxies with broken photometry.
        """
        return self.tame(mags @ self.matrix.T - self.center)

    @staticmethod
    def tame(standardised: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Standardised values whose tails grow as a logarithm."""
        return TAIL * jnp.arcsinh(standardised / TAIL)


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
        flux, error: of the catalogue [maggies]; NaN where a galaxy lacks the band.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in get_args(SpaceName):
        raise ValueError(f"fit: space = {kind!r} must be one of {', '.join(get_args(SpaceName))}")
    mags = np.asarray(asinh_mag(jnp.asarray(flux), jnp.asarray(softening)), float)
    noise = np.nanmedian(
        2.5 / np.log(10.0) * error / np.hypot(flux, 2.0 * softening), axis=0
    )  # d mag / d flux of Lupton+99
    num = mags.shape[1]
    patterns, pattern = band_patterns(mags)
    mean, fill, mags = _fill_missing(mags, patterns, pattern)
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
    return ComparisonSpace(*(jnp.asarray(part) for part in (softening, matrix, center, mean, patterns, fill)))


def _fill_missing(
    mags: np.ndarray, patterns: np.ndarray, pattern: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean magnitudes, a map for each pattern, and the magnitudes without gaps.

    The maps are the regressions of a normal distribution whose moments are those of the data, found with the gaps in it by
    expectation-maximisation (Little & Rubin 2002, sec. 11.2); magnitudes far outside are drawn in.
    """
    present, num = patterns[pattern], mags.shape[1]
    mean = np.nanmedian(mags, axis=0)
    if present.all():
        return mean, np.eye(num)[None], mags

    def filled(mags: np.ndarray, fill: np.ndarray) -> np.ndarray:
        return np.einsum("nij,nj->ni", fill[pattern], np.where(present, mags - mean, 0.0))

    spread = _NORMAL_MAD * np.nanmedian(np.abs(mags - mean), axis=0)
    tame = np.clip(mags, mean - 5.0 * spread, mean + 5.0 * spread)
    cov = np.diag(spread**2)
    for _ in range(_NUM_SWEEPS):
        fill = _regressions(cov, patterns)
        moved = filled(tame, fill)
        # What the regression leaves open, added to the scatter of the filled values.
        open_ = np.stack([(cov - f @ cov) * np.outer(~p, ~p) for f, p in zip(fill, patterns, strict=True)])
        extra = np.tensordot(np.bincount(pattern, minlength=len(patterns)) / len(mags), open_, axes=1)
        cov = np.cov(moved, rowvar=False, bias=True) + 0.5 * (extra + extra.T) + 1e-6 * np.eye(num)
        mean = mean + moved.mean(axis=0)
    fill = _regressions(cov, patterns)
    return mean, fill, mean + filled(mags, fill)


def _regressions(cov: np.ndarray, patterns: np.ndarray) -> np.ndarray:
    """Maps that keep what is there and predict what is not."""
    fill = np.zeros((len(patterns), *cov.shape))
    for row, there in zip(fill, patterns, strict=True):
        row[there, there] = 1.0
        if there.any() and not there.all():
            row[np.ix_(~there, there)] = np.linalg.solve(cov[np.ix_(there, there)], cov[np.ix_(there, ~there)]).T
    return fill


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
