"""Images of one galaxy: a bulge and a disc in each band, blurred by the PSF, integrated over pixels, with noise; differentiable.

Both profiles, the PSF and the pixel have Fourier transforms that are known in closed form or are functions of one number, so
that an image is a product of transforms, folded onto the frequencies of the pixel grid and transformed back. Pixels are thereby
integrated exactly, a galaxy far smaller than a pixel is no special case, light is conserved, and every parameter has a gradient.
(GalSim's way to draw: Rowe+15, arXiv:1407.7676, sec. 6)
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.fft import fht
from scipy.special import gamma, gammaincinv, kv

from popsed_jax._random import normal

COMPONENTS = ("bulge", "disc")
_DISC_SCALE = 1.6783469900166612  # half-light radius of an exponential disc over its scale length
_LOG_LOW, _LOG_HIGH, _LOG_STEP = math.log(1e-4), math.log(2e3), 0.05  # of the bulge's tabulated transform, in k r
_LEAST_K2 = 1e-12  # of (k r)^2: the square root has no slope at zero


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """How a survey takes images. The defaults are coadds of the Dark Energy Survey in g, r, z, pixels binned 2 x 2.

    Args:
        size: pixels along each side; the galaxy is at the middle.
        pixel_scale: [arcsec].
        fwhm: of the PSF in each band [arcsec] (Abbott+21, arXiv:2101.05765, table 1).
        beta: Moffat exponent of the PSF, above 1; None: a Gaussian.
        sigma: noise of a pixel in each band [maggies], that of the sky alone: `pixel_noise` of the same table's depths (24.7,
            24.4, 23.1 at 10 sigma in 1.95 arcsec).
        bulge_index: Sersic index of the bulge.
        padding: the image is periodic on a field so many times as wide; what leaves that field comes back at its other side.
        fold: frequencies are followed to so many times the pixels' Nyquist frequency.
    """

    size: int = 32
    pixel_scale: float = 0.526
    fwhm: tuple[float, ...] = (1.11, 0.95, 0.83)
    beta: float | None = 3.0
    sigma: tuple[float, ...] = (4.0e-12, 5.3e-12, 1.75e-11)
    bulge_index: float = 4.0
    padding: int = 2
    fold: int = 2

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for name, least in (("size", 4), ("padding", 1), ("fold", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"images: {name} = {getattr(self, name)} must be at least {least}")
        if not self.pixel_scale > 0.0:
            raise ValueError(f"images: pixel_scale = {self.pixel_scale} arcsec must be positive")
        if not self.fwhm or len(self.sigma) != len(self.fwhm):
            raise ValueError(
                f"images: {len(self.fwhm)} bands have a PSF (fwhm), {len(self.sigma)} have a noise (sigma)"
            )
        if min(self.fwhm) < self.pixel_scale:
            raise ValueError(
                f"images: fwhm = {min(self.fwhm)} arcsec is below a pixel ({self.pixel_scale} arcsec): take smaller pixels"
            )
        if min(self.sigma) < 0.0:
            raise ValueError(f"images: sigma = {min(self.sigma)} maggies must not be negative")
        if self.beta is not None and not 1.0 < self.beta <= 50.0:
            raise ValueError(f"images: beta = {self.beta} must lie between 1 and 50; a Gaussian is beta = None")
        if not 0.5 <= self.bulge_index <= 6.0:
            raise ValueError(f"images: bulge_index = {self.bulge_index} must lie between 0.5 and 6")

    @property
    def num_bands(self) -> int:
        """How many bands."""
        return len(self.fwhm)


class Shape(NamedTuple):
    """One galaxy's shape; components in the order of `COMPONENTS`.

    Attributes:
        radius: half-light radius of each component along its major axis [arcsec].
        axis_ratio: minor over major axis of each component, above 0 and up to 1.
        orientation: angle of the major axis from the direction of rising columns towards that of rising rows [rad].
        centre: row and column of the centre from the image's middle [arcsec].
    """

    radius: Float[Array | np.ndarray, "*batch component"]
    axis_ratio: Float[Array | np.ndarray, "*batch component"]
    orientation: Float[Array | np.ndarray, "*batch"]
    centre: Float[Array | np.ndarray, "*batch 2"]


@flax.struct.dataclass
class ImageSimulator:
    """Draws galaxies as a survey would. Immutable pytree.

    Attributes:
        k_row, k_column: frequencies [rad/arcsec].
        psf: transform of each band's PSF times that of the pixel.
        bulge: transform of a bulge of half-light radius 1 at equal steps of ln(k r), and its slope there.
    """

    k_row: Float[Array, " k"]
    k_column: Float[Array, " k"]
    psf: Float[Array, "band k k"]
    bulge: Float[Array, "node 2"]
    config: ImageConfig = flax.struct.field(pytree_node=False)

    def image(self, flux: Float[Array, "component band"], shape: Shape) -> Float[Array, "row column band"]:
        """Noise-free image of one galaxy.

        Args:
            flux: of each component in each band, in any unit.

        Returns:
            Flux in each pixel, in that unit.

        Notes:
            Differentiable in everything. Against GalSim: `tests/test_images.py`.
        """
        size = self.config.size
        return self.field(flux, shape)[:size, :size]

    def field(self, flux: Float[Array, "component band"], shape: Shape) -> Float[Array, "row column band"]:
        """The whole periodic field that the image is cut from; its pixels sum up to the galaxy's flux in each band."""
        config, transforms = self.config, self.profiles(shape)
        total = jnp.einsum("cb,cyx,byx->byx", flux, transforms, self.psf)
        middle = 0.5 * (config.size - 1) * config.pixel_scale + shape.centre
        shift_row, shift_column = jnp.exp(-1j * self.k_row * middle[0]), jnp.exp(-1j * self.k_column * middle[1])
        moved = total * shift_row[:, None] * shift_column
        # Sampling at the pixels' centres cannot tell frequencies apart that differ by a whole number of cycles per pixel.
        num, fold = config.size * config.padding, config.fold
        folded = moved.reshape(-1, fold, num, fold, num).sum(axis=(1, 3))
        return jnp.moveaxis(jnp.fft.ifft2(folded).real, 0, -1)

    def profiles(self, shape: Shape) -> Float[Array, "component k k"]:
        """Transforms of both components' profiles; 1 at frequency zero."""
        cos, sin = jnp.cos(shape.orientation), jnp.sin(shape.orientation)
        row, column = self.k_row[:, None], self.k_column[None, :]
        major, minor = (cos * column + sin * row) ** 2, (cos * row - sin * column) ** 2
        scaled = shape.radius**2, (shape.radius * shape.axis_ratio) ** 2
        bulge, disc = (major * scaled[0][i] + minor * scaled[1][i] for i in range(2))
        return jnp.stack([self._bulge(bulge), (1.0 + disc / _DISC_SCALE**2) ** -1.5])

    def _bulge(self, squared: Float[Array, "k k"]) -> Float[Array, "k k"]:
        """Cubic interpolation of the bulge's transform at (k r)^2."""
        place = (0.5 * jnp.log(squared + _LEAST_K2) - _LOG_LOW) / _LOG_STEP
        place = jnp.clip(place, 0.0, len(self.bulge) - 1.001)
        node = jnp.floor(place).astype(jnp.int32)
        t = place - node
        low, high = jnp.moveaxis(self.bulge[node], -1, 0), jnp.moveaxis(self.bulge[node + 1], -1, 0)
        step = high[0] - low[0]
        bend = (1.0 - t) * (low[1] - step) + t * (step - high[1])
        return jnp.where(squared == 0.0, 1.0, low[0] + t * step + t * (1.0 - t) * bend)

    def observe(self, key: Array, image: Float[Array, "row column band"]) -> Float[Array, "row column band"]:
        """An image with the survey's noise [maggies]."""
        return image + jnp.asarray(self.config.sigma) * normal(key, image.shape)


def build_image_simulator(config: ImageConfig | None = None) -> ImageSimulator:
    """Tabulate what does not depend on the galaxy."""
    config = config or ImageConfig()
    num = config.size * config.padding * config.fold
    k = 2.0 * np.pi * np.fft.fftfreq(num, config.pixel_scale / config.fold)
    # In the order of frequencies modulo those of the pixel grid: (fold, grid).
    pixel = np.sinc(k * config.pixel_scale / (2.0 * np.pi))
    radius = np.hypot(k[:, None], k[None, :])
    psf = np.stack([psf_transform(radius, fwhm, config.beta) for fwhm in config.fwhm])
    value, slope = sersic_transform(config.bulge_index)
    return ImageSimulator(
        k_row=jnp.asarray(k),
        k_column=jnp.asarray(k),
        psf=jnp.asarray(psf * pixel[:, None] * pixel[None, :]),
        bulge=jnp.asarray(np.stack([value, slope], axis=1)),
        config=config,
    )


def psf_transform(k: Float[np.ndarray, "*k"], fwhm: float, beta: float | None) -> Float[np.ndarray, "*k"]:
    """Fourier transform of a PSF of unit flux: a Gaussian, or a Moffat profile (Trujillo+01, eq. 8).

    Args:
        k: [rad/arcsec].
        fwhm: [arcsec].
        beta: Moffat's exponent; None: a Gaussian.
    """
    if beta is None:
        return np.exp(-0.5 * (k * fwhm / math.sqrt(8.0 * math.log(2.0))) ** 2)
    scale = 0.5 * fwhm / math.sqrt(2.0 ** (1.0 / beta) - 1.0)
    x = np.maximum(k * scale, 1e-6)  # the limit at zero is 1
    return 2.0 * (0.5 * x) ** (beta - 1.0) * kv(beta - 1.0, x) / gamma(beta - 1.0)


def sersic_transform(index: float) -> tuple[Float[np.ndarray, " node"], Float[np.ndarray, " node"]]:
    """Fourier transform of a circular Sersic profile of unit flux and half-light radius, as the bulge's table has it.

    Returns:
        Its values at equal steps of ln(k r), and its slopes over one step.
    """
    # A fast Hankel transform on a logarithmic grid (Hamilton 2000), finer and wider than what is kept.
    every, extra = 8, 10.0
    step = _LOG_STEP / every
    num_kept = round((_LOG_HIGH - _LOG_LOW) / step) + 1
    num_extra = every * round(extra / _LOG_STEP)
    log_k = _LOG_LOW + step * (np.arange(num_kept + 2 * num_extra) - num_extra)
    radius = np.exp(-log_k[::-1])
    b = gammaincinv(2.0 * index, 0.5)
    total = 2.0 * np.pi * index * b ** (-2.0 * index) * gamma(2.0 * index)
    profile = np.exp(-b * radius ** (1.0 / index)) / total
    # fht returns the integral of a(r) J0(k r) k dr; its offset is ln(k r) of the middle of both grids, which is zero here.
    transform = 2.0 * np.pi / np.exp(log_k) * fht(radius * profile, step, mu=0.0)
    kept = slice(num_extra, num_extra + num_kept, every)
    return transform[kept], (np.gradient(transform, edge_order=2) * every)[kept]


def pixel_noise(
    depth: Float[np.ndarray, " band"], diameter: float, pixel_scale: float, significance: float = 10.0
) -> Float[np.ndarray, " band"]:
    """Noise of a pixel [maggies] in a survey whose depth is quoted in apertures of the sky.

    Args:
        depth: AB magnitude detected at the `significance` in an aperture.
        diameter: of the aperture [arcsec].
        pixel_scale: [arcsec].
    """
    in_aperture = 10.0 ** (-0.4 * np.asarray(depth, float)) / significance
    return in_aperture / math.sqrt(0.25 * np.pi * (diameter / pixel_scale) ** 2)


def split_flux(
    total: Float[Array, " band"], old: Float[Array, " band"], fraction: Float[Array, ""], reference: int
) -> Float[Array, "component band"]:
    """A galaxy's flux in bulge and disc, the bulge of an old population's colours.

    Args:
        total: of the galaxy, by the forward model.
        old: of an old population at the same redshift, in any unit: only its colours count.
        fraction: of the galaxy's light in the bulge in the band `reference`.

    Returns:
        Bulge and disc, which sum up to `total` in every band.

    Notes:
        With s the old population's flux over the galaxy's, 1 in the reference band, the bulge has F s / (1 - F + F s) of the
        light: for a small bulge exactly the old colours, and all the galaxy's light, whatever its colours, for F = 1.
    """
    ratio = old / total
    odds = fraction * ratio / ratio[reference]
    bulge = total * odds / (1.0 - fraction + odds)
    return jnp.stack([bulge, total - bulge])
