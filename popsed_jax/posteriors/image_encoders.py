"""Encoder and decoder of images: small convolutional networks, sized for a processor.

Convolutions are written as matrix products over patches: in a compiled loop on a processor, XLA takes many times as long for
its own convolutions and their gradients. As matrices the kernels also suit SOAP (`popsed_jax.posteriors.stages`).
"""

from __future__ import annotations

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from popsed_jax.flows.networks import residual
from popsed_jax.posteriors.encoders import Moments, MomentsLayer


@dataclasses.dataclass(frozen=True)
class ImageNetworkConfig:
    """Size of the networks.

    Args:
        size: pixels along each side of the images.
        num_bands: of the images.
        channels: features after each halving of the resolution; the decoder has the same in reverse.
        bottleneck: features of each place at the lowest resolution, where convolutions hand over to dense layers.
        hidden: width of the dense layers.
        num_blocks: residual blocks of the encoder's dense layers.
    """

    size: int = 32
    num_bands: int = 3
    channels: tuple[int, ...] = (12, 24, 48)
    bottleneck: int = 16
    hidden: int = 96
    num_blocks: int = 2

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"image network: channels = {self.channels} must be one or more positive numbers")
        for name in ("num_bands", "bottleneck", "hidden", "num_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"image network: {name} = {getattr(self, name)} must be at least 1")
        halvings = 2 ** len(self.channels)
        if self.size < halvings or self.size % halvings:
            raise ValueError(
                f"image network: size = {self.size} cannot be halved {len(self.channels)} times: take a multiple of {halvings}, "
                "or fewer channels"
            )

    @property
    def coarse(self) -> int:
        """Pixels along each side at the lowest resolution."""
        return self.size >> len(self.channels)


class ImageEncoder(nn.Module):
    """Strided convolutions down to a few places, then dense layers: an image to normal distributions of its latents.

    What convolutions see badly, fluxes within apertures say, can be given to the dense layers besides.
    """

    latent: int
    config: ImageNetworkConfig

    @nn.compact
    def __call__(
        self, image: Float[Array, "galaxy row column channel"], features: Float[Array, "galaxy feature"]
    ) -> Moments:
        """One distribution a galaxy.

        Args:
            image: any number of channels.
            features: any number, standardised; may be none.
        """
        x = image
        for i, num in enumerate(self.config.channels):
            x = nn.Dense(num)(patches(x, 4, 2))
            # The first layer sees the pixels' values: a norm there would hide how bright the galaxy is.
            x = nn.gelu(x if i == 0 else nn.LayerNorm()(x))
        x = nn.gelu(nn.Dense(self.config.bottleneck)(x)).reshape(len(image), -1)
        x = residual(jnp.concatenate([x, features], axis=1), self.config.hidden, self.config.num_blocks)
        return MomentsLayer(self.latent)(nn.gelu(x))


class ImageDecoder(nn.Module):
    """Latents to an image: dense layers, then convolutions that double the resolution."""

    config: ImageNetworkConfig

    @nn.compact
    def __call__(self, latent: Float[Array, "galaxy latent"]) -> Float[Array, "galaxy row column band"]:
        """One image a galaxy."""
        config, num = self.config, len(latent)
        x = nn.gelu(nn.Dense(config.hidden)(latent))
        x = x + nn.Dense(config.hidden)(nn.gelu(nn.LayerNorm()(x)))
        x = nn.Dense(config.coarse**2 * config.bottleneck)(nn.gelu(x))
        x = x.reshape(num, config.coarse, config.coarse, config.bottleneck)
        for features in (*config.channels[-2::-1], None):
            # Four pixels from each: a convolution at the low resolution, its features laid out at the high one. (Shi+16)
            x = nn.Dense(4 * (features or config.num_bands))(patches(nn.gelu(x), 3, 1))
            x = double_resolution(x)
        return x


def patches(x: Float[Array, "galaxy row column features"], width: int, stride: int) -> Float[Array, "galaxy _ _ patch"]:
    """Square patches of an image, zero beyond its edges, as rows of numbers: a dense layer on these is a convolution.

    Args:
        width: of the patches [pixel].
        stride: from one to the next.
    """
    before = (width - stride) // 2
    x = jnp.pad(x, ((0, 0), (before, width - stride - before), (before, width - stride - before), (0, 0)))
    rows, columns = ((num - width) // stride * stride + 1 for num in x.shape[1:3])
    shifted = [x[:, i : i + rows : stride, j : j + columns : stride] for i in range(width) for j in range(width)]
    return jnp.concatenate(shifted, axis=-1)


def double_resolution(x: Float[Array, "galaxy row column features"]) -> Float[Array, "galaxy rows columns quarter"]:
    """Features in groups of four as the pixels of an image of twice the resolution. (Shi+16, arXiv:1609.05158, eq. 4)"""
    num, rows, columns, features = x.shape
    x = x.reshape(num, rows, columns, 2, 2, features // 4)
    return jnp.transpose(x, (0, 1, 3, 2, 4, 5)).reshape(num, 2 * rows, 2 * columns, features // 4)


@partial(jax.jit, static_argnames=("latent", "config", "channels", "features"))
def init_image_networks(
    key: Array, latent: int, config: ImageNetworkConfig, channels: int, features: int
) -> dict[str, object]:
    """Weights of both networks by name: "encoder", "decoder".

    Args:
        channels: of the images that the encoder sees.
        features: that it sees besides.
    """
    keys = jax.random.split(key)
    image = jnp.zeros((1, config.size, config.size, channels))
    return {
        "encoder": ImageEncoder(latent, config).init(keys[0], image, jnp.zeros((1, features))),
        "decoder": ImageDecoder(config).init(keys[1], jnp.zeros((1, latent))),
    }
