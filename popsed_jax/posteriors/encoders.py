"""Encoders of photometry and spectra: from what was observed of a galaxy to a normal distribution of its latent."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from popsed_jax._random import normal
from popsed_jax.flows.networks import residual
from popsed_jax.posteriors.mocks import SpectrumData

# Standard deviations between e^-5 and e^2: a latent known better than that, against a prior of one, is a training gone astray.
_LOG_VAR = (-10.0, 4.0)
_CONVOLUTIONS = ((24, 4), (32, 4), (48, 4))  # features and stride; each is twice as wide as its stride
_TAIL = 3.0
_BLOCK = 8  # pixels


class Moments(NamedTuple):
    """A normal distribution of the latent with independent components.

    Attributes:
        mean, log_var: mean, and log of the variance, of each component.
    """

    mean: Float[Array, "*galaxy latent"]
    log_var: Float[Array, "*galaxy latent"]

    def sample(self, key: Array, num: int) -> Float[Array, "galaxy sample latent"]:
        """Draws for each galaxy, differentiable in the moments. (Kingma & Welling 2014, sec. 2.4)"""
        shape = (*self.mean.shape[:-1], num, self.mean.shape[-1])
        return self.mean[..., None, :] + jnp.exp(0.5 * self.log_var)[..., None, :] * normal(key, shape)

    def log_prob(self, latent: Float[Array, "*galaxy latent"]) -> Float[Array, "*galaxy"]:
        """Log density at one latent of each galaxy."""
        squares = (latent - self.mean) ** 2 * jnp.exp(-self.log_var)
        return -0.5 * jnp.sum(squares + self.log_var + jnp.log(2.0 * jnp.pi), axis=-1)

    def kl_to_prior(self) -> Float[Array, "*galaxy"]:
        """Divergence from the standard normal [nat]. (Kingma & Welling 2014, app. B)"""
        return 0.5 * jnp.sum(self.mean**2 + jnp.exp(self.log_var) - 1.0 - self.log_var, axis=-1)


class MomentsLayer(nn.Module):
    """Last layer of an encoder; starts near the prior."""

    latent: int

    @nn.compact
    def __call__(self, x: Float[Array, "galaxy hidden"]) -> Moments:
        """One distribution a galaxy."""
        raw = nn.Dense(2 * self.latent, kernel_init=nn.initializers.normal(1e-2))(x)
        mean, log_var = jnp.split(raw, 2, axis=-1)
        low, high = _LOG_VAR
        # Smooth bounds that are the identity near zero.
        bounded = jnp.where(log_var < 0.0, low * jnp.tanh(log_var / low), high * jnp.tanh(log_var / high))
        return Moments(mean, bounded)


class PhotometryEncoder(nn.Module):
    """Residual network over `popsed_jax.posteriors.features.Features`, which any pattern of missing bands has.

    Attributes:
        latent: size of the latent.
        hidden, num_blocks: width and residual blocks.
    """

    latent: int
    hidden: int = 128
    num_blocks: int = 3

    @nn.compact
    def __call__(self, features: Float[Array, "galaxy feature"]) -> Moments:
        """One distribution a galaxy.

        Args:
            features: of flux, error and mask.
        """
        return MomentsLayer(self.latent)(nn.gelu(residual(features, self.hidden, self.num_blocks)))


class SpectrumEncoder(nn.Module):
    """One-dimensional convolutions over flux, inverse variance and mask, then a dense layer that knows where they were.

    Attributes:
        latent: size of the latent.
        hidden: width of the dense layer.
    """

    latent: int
    hidden: int = 128

    @nn.compact
    def __call__(self, spectrum: SpectrumData, level_mean: Float[Array, ""], level_std: Float[Array, ""]) -> Moments:
        """One distribution a galaxy.

        Args:
            level_mean, level_std: of log10 of the mocks' mean fluxes [maggies], to standardise brightness by.
        """
        channels, log_scale = spectrum_channels(spectrum)
        x = channels
        for features, stride in _CONVOLUTIONS:
            x = nn.gelu(nn.Dense(features)(_windows(x, stride)))
        level = (log_scale - level_mean) / level_std
        x = jnp.concatenate([x.reshape(len(x), -1), level[:, None]], axis=1)
        return MomentsLayer(self.latent)(nn.gelu(residual(x, self.hidden, 1)))


def _windows(x: Float[Array, "galaxy pixel channel"], stride: int) -> Float[Array, "galaxy window input"]:
    """What a convolution of stride `stride` and twice that width sees at each of its places, for a product with a matrix.

    XLA runs matrix products in a compiled loop on a processor many times as fast as its own convolutions.
    """
    num, pixels, channels = x.shape
    blocks = jnp.pad(x, ((0, 0), (0, -pixels % stride), (0, 0))).reshape(num, -1, stride * channels)
    return jnp.concatenate([blocks, jnp.pad(blocks[:, 1:], ((0, 0), (0, 1), (0, 0)))], axis=2)


def spectrum_channels(
    spectrum: SpectrumData,
) -> tuple[Float[Array, "galaxy pixel channel"], Float[Array, " galaxy"]]:
    """Flux over its scale, signal-to-noise of that, and mask; and log10 of the scale [maggies].

    Robust: the scale is the median of means over blocks of neighbouring pixels, at least the (harmonic) mean error of a pixel,
    and flux and signal-to-noise grow as a logarithm where they are large. What stands in missing pixels does not matter.
    """
    there = spectrum.there & (spectrum.ivar > 0.0)
    flux = jnp.where(there, spectrum.flux, 0.0)
    inverse = jnp.sqrt(jnp.where(there, spectrum.ivar, 0.0))
    counts = _blocks(there.astype(flux.dtype))
    means = jnp.where(counts > 0.0, _blocks(flux) / jnp.maximum(counts, 1.0), jnp.nan)
    noise = counts.sum(axis=1) / jnp.maximum(inverse.sum(axis=1), jnp.finfo(flux.dtype).tiny)
    scale = jnp.maximum(jnp.nanmedian(means, axis=1), noise)
    # A spectrum without any pixel says nothing, and must not spoil its batch.
    scale = jax.lax.stop_gradient(jnp.where(jnp.isfinite(scale) & (scale > 0.0), scale, 1.0))[:, None]
    height = _TAIL * jnp.arcsinh(flux / scale / _TAIL)
    ratio = jnp.log10(jnp.where(there, scale * inverse, 1.0))
    channels = jnp.stack([height, ratio, there.astype(flux.dtype)], axis=-1)
    return channels, jnp.log10(scale[:, 0])


def _blocks(values: Float[Array, "galaxy pixel"]) -> Float[Array, "galaxy block"]:
    """Sums over blocks of neighbouring pixels, the last one shorter."""
    short = -values.shape[1] % _BLOCK
    return jnp.pad(values, ((0, 0), (0, short))).reshape(len(values), -1, _BLOCK).sum(axis=2)
