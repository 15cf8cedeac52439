"""What a network sees of a galaxy: fluxes, errors and which bands there are, on scales of order one."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.observe.noise import NoiseModel
from popsed_jax.population.space import TAIL, ComparisonSpace, build_space
from popsed_jax.posteriors.survey import Photometry

_ERROR_SCALE = 0.1  # of log10 of an error over the median exposure's [dex]


@flax.struct.dataclass
class Features:
    """From photometry to a network's inputs, for any pattern of missing bands.

    Missing magnitudes are filled in with their expectation, given the others, under the normal distribution of the simulated
    magnitudes. Like `ComparisonSpace`'s, that is a coordinate and not a guess: the network is told which bands there are.

    Attributes:
        space: magnitudes to standardised magnitudes and principal axes of colours.
        mean, covariance: of the simulated asinh magnitudes.
        noise: the survey's, without its galaxies' conditions: for the error that it usually quotes for a flux.
    """

    space: ComparisonSpace
    mean: Float[Array, " band"]
    covariance: Float[Array, "band band"]
    noise: NoiseModel

    @property
    def num(self) -> int:
        """How many inputs."""
        return self.space.matrix.shape[0] + 2 * len(self.mean)

    def colors(self, photometry: Photometry) -> Float[Array, "galaxy axis"]:
        """Standardised magnitudes and colours, missing bands filled in."""
        flux = jnp.where(photometry.there, photometry.flux, 0.0)
        known = jnp.where(photometry.there, self.space.mags(flux) - self.mean, 0.0)
        pair = photometry.there[:, :, None] & photometry.there[:, None, :]
        # Missing bands stand on a diagonal of their own, so that all patterns are one linear system.
        system = jnp.where(pair, self.covariance, 0.0) + jnp.eye(len(self.mean)) * ~photometry.there[:, None, :]
        weights = jnp.linalg.solve(system, known[..., None])[..., 0]
        filled = weights @ self.covariance
        return self.space.features(self.mean + jnp.where(photometry.there, known, filled))

    def __call__(self, photometry: Photometry) -> Float[Array, "galaxy feature"]:
        """Inputs of a network."""
        flux = jnp.where(photometry.there, photometry.flux, 0.0)
        error = jnp.where(photometry.there, photometry.error, 1.0)
        usual = self.noise.sigma(flux, jnp.zeros_like(flux))
        unusual = TAIL * jnp.arcsinh(jnp.log10(error / usual) / (_ERROR_SCALE * TAIL))
        errors = jnp.where(photometry.there, unusual, 0.0)
        return jnp.concatenate([self.colors(photometry), errors, photometry.there - 0.5], axis=1)


def build_features(photometry: Photometry, noise: NoiseModel) -> Features:
    """The map whose scales are those of simulated galaxies in all their bands."""
    flux, error = np.asarray(photometry.flux, float), np.asarray(photometry.error, float)
    space = build_space("balanced", flux, error, np.asarray(noise.softening, float))
    mags = np.asarray(space.mags(jnp.asarray(flux)), float)
    center, spread = np.median(mags, axis=0), np.percentile(mags, 84, axis=0) - np.percentile(mags, 16, axis=0)
    tame = np.clip(mags, center - 3.0 * spread, center + 3.0 * spread)
    covariance = np.cov(tame, rowvar=False) + 1e-4 * np.eye(mags.shape[1])
    space = dataclasses.replace(space, patterns=jnp.ones((1, mags.shape[1]), bool))
    usual = dataclasses.replace(noise, depths=jnp.zeros((1, mags.shape[1])))
    return Features(space, jnp.asarray(tame.mean(axis=0)), jnp.asarray(covariance), usual)
