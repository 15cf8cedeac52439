"""Decoder of spectra: from a latent to the observed-frame spectrum, and through the survey's filters to photometry."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float

from popsed_jax.posteriors.mocks import Mocks
from popsed_jax.posteriors.pixels import SpectrumGrid

_RANGE = 6.0  # dex by which a pixel may differ from the mocks' mean: nothing overflows, whatever the latent


@flax.struct.dataclass
class SpectrumScales:
    """What decoded spectra are measured by: the mocks' own.

    Attributes:
        shape_mean: mean of log10 of the spectra over their means, in each pixel.
        shape_std: standard deviation of that, over all pixels.
        level_mean, level_std: of log10 of the mean fluxes [maggies].
    """

    shape_mean: Float[Array, " pixel"]
    shape_std: Float[Array, ""]
    level_mean: Float[Array, ""]
    level_std: Float[Array, ""]


def build_scales(mocks: Mocks) -> SpectrumScales:
    """Those of mock galaxies."""
    mean = mocks.log_shape.mean(axis=0)
    spread = jnp.sqrt(jnp.mean((mocks.log_shape - mean) ** 2))
    return SpectrumScales(mean, spread, mocks.log_level.mean(), jnp.maximum(mocks.log_level.std(), 1e-3))


class Decoded(NamedTuple):
    """A noise-free spectrum, shape and amplitude apart.

    Attributes:
        log_shape: log10 of the spectrum over its level.
        log_level: log10 of the level [maggies].
    """

    log_shape: Float[Array, "*galaxy pixel"]
    log_level: Float[Array, "*galaxy"]

    @property
    def flux(self) -> Float[Array, "*galaxy pixel"]:
        """Mean of f_nu in each pixel [maggies]."""
        return 10.0 ** (self.log_level[..., None] + self.log_shape)

    def through(self, grid: SpectrumGrid) -> Float[Array, "*galaxy band"]:
        """AB fluxes through filters [maggies]: photon-counting means of f_nu. (Hogg+02, eq. 5)"""
        # The level apart: products of 1e-9 maggies with small weights stay well within single precision.
        return 10.0 ** self.log_level[..., None] * (10.0**self.log_shape @ grid.filters)


class SpectrumDecoder(nn.Module):
    """Dense network to the level and to log10 of the spectrum in each pixel; starts at the mocks' mean.

    Attributes:
        num_pixels: of the grid.
        hidden: width of the dense layers.
        rank: width of the last, so that log spectra are combinations of as many.
    """

    num_pixels: int
    hidden: int = 128
    rank: int = 64

    @nn.compact
    def __call__(self, latent: Float[Array, "*galaxy latent"], scales: SpectrumScales) -> Decoded:
        """One spectrum a latent."""
        x = nn.Dense(self.hidden)(latent)
        for _ in range(2):
            x = x + nn.Dense(self.hidden)(nn.gelu(x))
        x = nn.gelu(x)
        level = nn.Dense(1, kernel_init=nn.initializers.normal(1e-2))(x)[..., 0]
        y = nn.Dense(self.num_pixels, kernel_init=nn.initializers.normal(1e-2))(nn.Dense(self.rank)(x))
        shape = scales.shape_mean + _bounded(scales.shape_std * y)
        return Decoded(shape, scales.level_mean + _bounded(scales.level_std * level))


def _bounded(dex: Array) -> Array:
    """Near zero the identity."""
    return _RANGE * jnp.tanh(dex / _RANGE)
