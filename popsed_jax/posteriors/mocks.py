"""Mock galaxies for autoencoders: the reference population as a survey detects it, with spectra and photometry of both.

Nothing of the real catalogue is in them but its noise, its selection and the bands that its galaxies lack. Spectra and noise-free
fluxes are computed once; noise, missing bands and the templates' errors are drawn anew for every batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from popsed_jax._random import normal
from popsed_jax.observe.calibration import CalibrationConfig, CalibrationModel, build_calibration
from popsed_jax.observe.filters import load_filter
from popsed_jax.observe.forward import ForwardModel
from popsed_jax.observe.missing import MissingBands
from popsed_jax.observe.noise import NoiseModel
from popsed_jax.population.batching import map_batches
from popsed_jax.population.reference import ReferenceConfig, sample_uncertain
from popsed_jax.posteriors.pixels import SpectrumGrid, build_grid, observed_flux
from popsed_jax.posteriors.simulate import fewer_bands, noisier_bands
from popsed_jax.posteriors.survey import Photometry

_DARKEST = -5.0  # log10 of a flux over the galaxy's mean below which a spectrum is not followed
_SPECTRA_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class MocksConfig:
    """The galaxies that an autoencoder learns from.

    Args:
        num_galaxies: with a spectrum of their own.
        num_hyper: sets of the reference's hyper-parameters that they are drawn with, as many galaxies each.
        num_pixels: of the spectra, evenly spaced in ln(wavelength) over the survey's filters.
        template_sigma: standard deviation of a galaxy's template error at each knot of a smooth function of rest-frame
            wavelength [mag]: every galaxy's spectrum differs from the templates in its own way (Brammer+08, sec. 2.3).
        offset_sigma: of an error of its own in every flux [mag]: apertures that differ from band to band, and what is not known
            of the zero points, which are the same for all galaxies, but which the network cannot know.
        missing: share of the galaxies that lose random bands beyond those that the survey lacks.
        noisy: share of the galaxies of which random bands are up to ten times as noisy as the survey's.
        signal_to_noise: range of the signal-to-noise of a spectrum's pixel at its mean flux, uniform in the logarithm.
        least_coverage: least part of the grid that a spectrum covers; the part is uniform from there to all of it.
    """

    num_galaxies: int = 40_000
    num_hyper: int = 8
    num_pixels: int = 512
    template_sigma: float = 0.03
    offset_sigma: float = 0.02
    missing: float = 0.2
    noisy: float = 0.1
    signal_to_noise: tuple[float, float] = (2.0, 30.0)
    least_coverage: float = 0.5

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for name, least in (("num_galaxies", 100), ("num_hyper", 1), ("num_pixels", 16)):
            if getattr(self, name) < least:
                raise ValueError(f"mocks: {name} = {getattr(self, name)} must be at least {least}")
        for name in ("template_sigma", "offset_sigma"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"mocks: {name} = {getattr(self, name)} must be at least 0 and below 1 mag")
        for name in ("missing", "noisy"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"mocks: {name} = {getattr(self, name)} must be at least 0 and below 1")
        if not 0.0 < self.signal_to_noise[0] <= self.signal_to_noise[1]:
            raise ValueError(f"mocks: signal_to_noise = {self.signal_to_noise} must be positive and increase")
        if not 0.0 < self.least_coverage <= 1.0:
            raise ValueError(f"mocks: least_coverage = {self.least_coverage} must be above 0 and at most 1")


class SpectrumData(NamedTuple):
    """Observed-frame spectra on a grid.

    Attributes:
        flux: f_nu, as the mean in each pixel [maggies].
        ivar: inverse variance [maggies^-2].
        there: which pixels there are; what stands in the others does not matter.
    """

    flux: Float[Array, "*galaxy pixel"]
    ivar: Float[Array, "*galaxy pixel"]
    there: Bool[Array, "*galaxy pixel"]


@flax.struct.dataclass
class Mocks:
    """Galaxies of known truth, and how they are observed.

    Attributes:
        theta, u: parameters.
        flux: noise-free, in the catalogue's bands [maggies].
        log_shape: log10 of the noise-free spectrum over its mean.
        log_level: log10 of that mean [maggies].
        noise: the survey's.
        missing: which bands the survey's galaxies lack; None: none.
        calibration: how a template error, of unit deviation at its knots, becomes one of the bands.
        grid: the spectra's pixels and the filters on them.
    """

    theta: Float[Array, "galaxy dim"]
    u: Float[Array, "galaxy dim"]
    flux: Float[Array, "galaxy band"]
    log_shape: Float[Array, "galaxy pixel"]
    log_level: Float[Array, " galaxy"]
    noise: NoiseModel
    missing: MissingBands | None
    calibration: CalibrationModel
    grid: SpectrumGrid
    redshift_at: int = flax.struct.field(pytree_node=False)
    config: MocksConfig = flax.struct.field(pytree_node=False)

    def __len__(self) -> int:
        """Number of galaxies."""
        return len(self.u)

    def arrays(self) -> tuple[Array, Array, Array, Array]:
        """What took time to compute: parameters, fluxes, shapes and levels of the spectra."""
        return self.theta, self.flux, self.log_shape, self.log_level

    def subset(self, rows: slice | Int[np.ndarray, " some"]) -> Mocks:
        """Some of the galaxies."""
        names = ("theta", "u", "flux", "log_shape", "log_level")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in names})

    def observe(self, key: Array, rows: Int[Array, " some"]) -> Photometry:
        """Photometry of galaxies as the survey would quote it, with errors of templates and apertures."""
        keys = jax.random.split(key, 6)
        flux, shape = self.flux[rows], (len(rows), self.flux.shape[1])
        wave = self.calibration.wave / (1.0 + self.theta[rows, self.redshift_at, None])
        template = normal(keys[0], (len(rows), len(self.calibration.knots)))
        mags = self.config.template_sigma * self.calibration.template_error(template, wave)
        mags = mags + self.config.offset_sigma * normal(keys[1], shape)
        excess = noisier_bands(keys[2], shape, self.config.noisy)
        observed, error = self.noise.observe(keys[3], flux * 10.0 ** (-0.4 * mags), excess=excess)
        there = jnp.ones(shape, bool)
        if self.missing is not None:
            there = self.missing.patterns[self.missing.draw(keys[4], observed)]
        fewer = there & fewer_bands(keys[5], shape, self.config.missing)
        return Photometry(observed, error, jnp.where(fewer.any(axis=1, keepdims=True), fewer, there))

    def observe_spectrum(self, key: Array, rows: Int[Array, " some"], *, clean: bool = False) -> SpectrumData:
        """Spectra of galaxies: part of the grid, with white noise on a tilt, and without some pixels.

        Args:
            clean: the whole grid at the highest signal-to-noise.
        """
        keys = jax.random.split(key, 6)
        truth = 10.0 ** (self.log_level[rows, None] + self.log_shape[rows])
        num, pixels = truth.shape
        low, high = np.log(self.config.signal_to_noise)
        place = (jnp.arange(pixels) + 0.5) / pixels
        uniform = jax.random.uniform(keys[0], (3, num, 1))
        ratio = jnp.exp(high if clean else low + (high - low) * uniform[0])
        tilt = 0.0 if clean else 0.5 * normal(keys[1], (num, 1))
        sigma = 10.0 ** self.log_level[rows, None] / ratio * jnp.exp(tilt * (place - 0.5))
        there = jnp.ones(truth.shape, bool)
        if not clean:
            part = 1.0 - (1.0 - self.config.least_coverage) * uniform[1]
            start = (1.0 - part) * uniform[2]
            there = (place >= start) & (place <= start + part) & (jax.random.uniform(keys[2], truth.shape) > 0.03)
        return SpectrumData(
            truth + sigma * normal(keys[3], truth.shape), jnp.broadcast_to(sigma, truth.shape) ** -2.0, there
        )

    def relative_floor(self) -> Float[Array, " band"]:
        """Scatter of every flux that errors do not quote, as a fraction: noise floor, templates, apertures."""
        mags = float(np.hypot(self.config.template_sigma, self.config.offset_sigma))
        return jnp.hypot(self.noise.floor, 0.4 * np.log(10.0) * mags)


def build_mocks(
    key: Array, forward: ForwardModel, bands: Sequence[str], reference: ReferenceConfig, config: MocksConfig
) -> Mocks:
    """Draw galaxies of the reference population as the survey detects them, and compute their spectra.

    Args:
        forward: the survey, with its noise, selection and missing bands.
        bands: names of the catalogue's bands.

    Raises:
        ValueError: the selection keeps next to nothing of the reference.
    """
    theta = sample_uncertain(key, (forward,), reference, config.num_galaxies, config.num_hyper)
    grid = build_grid([load_filter(name) for name in forward.table.filters[: forward.num_bands]], config.num_pixels)
    return mocks_of(forward, bands, theta, grid, config)


def mocks_of(
    forward: ForwardModel,
    bands: Sequence[str],
    theta: Float[Array, "galaxy dim"],
    grid: SpectrumGrid,
    config: MocksConfig,
) -> Mocks:
    """Mocks of given parameters."""
    spectra = map_batches(_spectra, (forward, grid), np.asarray(theta), _SPECTRA_AT_ONCE)
    level = spectra.mean(axis=1)
    shape = np.log10(np.maximum(spectra / level[:, None], 10.0**_DARKEST))
    flux = map_batches(ForwardModel.flux, forward, np.asarray(theta))[:, : forward.num_bands]
    arrays = tuple(jnp.asarray(part, jnp.float32) for part in (theta, flux, shape, np.log10(level)))
    return mocks_from(forward, bands, arrays, grid, config)


def mocks_from(
    forward: ForwardModel,
    bands: Sequence[str],
    arrays: tuple[Array, ...],
    grid: SpectrumGrid,
    config: MocksConfig,
) -> Mocks:
    """Mocks that were computed before.

    Args:
        arrays: of `Mocks.arrays`.
    """
    theta, flux, log_shape, log_level = arrays
    unit = CalibrationConfig(template_sigma=1.0)
    filters = forward.table.filters[: forward.num_bands]
    return Mocks(
        theta=theta,
        u=forward.space.to_u(theta),
        flux=flux,
        log_shape=log_shape,
        log_level=log_level,
        noise=forward.noise,
        missing=forward.missing,
        calibration=build_calibration(unit, tuple(bands), filters, bands[0]),
        grid=grid,
        redshift_at=forward.space.index("redshift"),
        config=config,
    )


def _spectra(model: tuple[ForwardModel, SpectrumGrid], theta: Float[Array, "num dim"]) -> Float[Array, "num pixel"]:
    forward, grid = model
    return jax.vmap(lambda one: observed_flux(forward.galaxy, grid, one))(theta)
