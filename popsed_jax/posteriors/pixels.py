"""The observed-frame spectra of autoencoders: pixels evenly spaced in ln(wavelength), and a survey's filters on them.

A pixel holds the mean of f_nu over its width in ln(wavelength), which is how a photon-counting filter weighs f_nu: the flux
through a filter is then a product with one fixed matrix, wrong only by what spectrum and filter share within a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.observe.filters import Filter
from popsed_jax.observe.operators import LSUN_PER_HZ_AT_10PC
from popsed_jax.observe.photometry import dimming
from popsed_jax.sps.galaxy import GalaxyModel
from popsed_jax.sps.igm import igm_transmission

_MARGIN = 0.01  # of ln(wavelength), beyond the filters
_NUM_FINE = 20_000


@flax.struct.dataclass
class SpectrumGrid:
    """Pixels, and filters on them.

    Attributes:
        edges: ln of the pixels' edges [Angstrom, observed].
        filters: from a spectrum [maggies] to AB fluxes [maggies]; every column sums to one.
    """

    edges: Float[Array, " edge"]
    filters: Float[Array, "pixel band"]

    @property
    def wave(self) -> Float[Array, " pixel"]:
        """Wavelengths of the pixels' centres [Angstrom, observed]."""
        return jnp.exp(0.5 * (self.edges[1:] + self.edges[:-1]))

    @property
    def num_pixels(self) -> int:
        """How many pixels."""
        return self.filters.shape[0]


def build_grid(filters: Sequence[Filter], num_pixels: int) -> SpectrumGrid:
    """A grid that covers all filters.

    Raises:
        ValueError: no filter; a filter narrower than three pixels, whose flux the grid could not tell.
    """
    if not filters:
        raise ValueError("a grid of spectra needs at least one filter to cover")
    low = np.log(min(curve.wave[0] for curve in filters)) - _MARGIN
    high = np.log(max(curve.wave[-1] for curve in filters)) + _MARGIN
    edges = np.linspace(low, high, num_pixels + 1)
    columns = []
    for curve in filters:
        if np.log(curve.wave[-1] / curve.wave[0]) < 3.0 * (edges[1] - edges[0]):
            raise ValueError(
                f"filter {curve.name} is narrower than three of {num_pixels} pixels: give [mocks] more num_pixels"
            )
        fine = np.linspace(np.log(curve.wave[0]), np.log(curve.wave[-1]), _NUM_FINE + 1)
        middle = 0.5 * (fine[1:] + fine[:-1])
        trans = np.interp(np.exp(middle), curve.wave, curve.trans)
        # A fine cell on an edge counts in both pixels, by its parts.
        shares = _overlap(fine, edges, trans)
        columns.append(shares / shares.sum())
    return SpectrumGrid(jnp.asarray(edges, float), jnp.asarray(np.stack(columns, axis=1), float))


def _overlap(
    fine: Float[np.ndarray, " edge"], edges: Float[np.ndarray, " pixel_edge"], values: Float[np.ndarray, " cell"]
) -> Float[np.ndarray, " pixel"]:
    """Integral over each pixel of what is constant in fine cells."""
    cumulative = np.concatenate([[0.0], np.cumsum(values * np.diff(fine))])
    return np.diff(np.interp(edges, fine, cumulative))


def observed_flux(galaxy: GalaxyModel, grid: SpectrumGrid, theta: Float[Array, " dim"]) -> Float[Array, " pixel"]:
    """Noise-free observed-frame spectrum of one galaxy, its mean in each pixel [maggies].

    The spectrum is linear between the templates' wavelengths; the means are exact but for the intergalactic medium, which is
    taken at the pixels' centres. (Hogg+02, eq. 5 and 22)
    """
    params = galaxy.space.unpack(theta)
    rest = jnp.exp(grid.edges - jnp.log1p(params["redshift"]))
    mean = pixel_means(jnp.asarray(galaxy.ssp.wave), galaxy.spectrum(theta) / 10.0 ** params["log_mass"], rest)
    igm = igm_transmission(grid.wave, params["redshift"], galaxy.config.igm)
    return mean * igm * dimming(galaxy, params) * LSUN_PER_HZ_AT_10PC


def pixel_means(
    wave: Float[Array, " wave"], values: Float[Array, " wave"], edges: Float[Array, " edge"]
) -> Float[Array, " pixel"]:
    """Mean in ln(wavelength) over each pixel of what is linear between wavelengths.

    Pixels wider than the templates' steps hold many of these, narrower ones a part of one; both are integrals between an edge or
    a wavelength and the next of all of them, summed over each pixel.

    Args:
        wave: increasing [Angstrom].
        edges: of the pixels [Angstrom], within the wavelengths.
    """
    every = jnp.sort(jnp.concatenate([jnp.log(wave), jnp.log(edges)]))
    height = jnp.interp(jnp.exp(every), wave, values)
    piece = 0.5 * (height[1:] + height[:-1]) * jnp.diff(every)
    pixel = jnp.searchsorted(jnp.log(edges), 0.5 * (every[1:] + every[:-1])) - 1
    num = len(edges) - 1
    inside = (pixel >= 0) & (pixel < num)
    total = jnp.zeros(num, piece.dtype).at[jnp.clip(pixel, 0, num - 1)].add(jnp.where(inside, piece, 0.0))
    return total / jnp.diff(jnp.log(edges))
