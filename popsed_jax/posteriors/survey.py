"""A learned population as one survey sees it: what posteriors of that survey's galaxies are computed from."""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from popsed_jax.observe.calibration import Calibration, CalibrationModel
from popsed_jax.observe.forward import ForwardModel
from popsed_jax.observe.noise import NoiseModel
from popsed_jax.parameters import ParameterSpace
from popsed_jax.population.model import Population

# Below this probability of being kept, a survey's galaxies are as good as none: its logarithm stays finite.
LEAST_KEPT = 1e-12


class Photometry(NamedTuple):
    """Galaxies as a survey quotes them.

    Attributes:
        flux, error: [maggies]; where a band is missing, what stands there does not matter.
        there: which bands there are.
    """

    flux: Float[Array, "*galaxy band"]
    error: Float[Array, "*galaxy band"]
    there: Bool[Array, "*galaxy band"]


@flax.struct.dataclass
class LearnedSurvey:
    """A population, and how one survey records galaxies.

    Attributes:
        population: p(theta) of the galaxies that the survey keeps, to the power `tilt` of the probability that it does.
        forward: theta to fluxes, noise, missing bands.
        calibration_model: what a calibration means.
        calibration: learned with each member of the population.
        tilt: see `FitConfig`.
    """

    population: Population
    forward: ForwardModel
    calibration_model: CalibrationModel
    calibration: Calibration
    tilt: float = flax.struct.field(pytree_node=False, default=1.0)

    @property
    def space(self) -> ParameterSpace:
        """The galaxies' parameters."""
        return self.population.space

    @property
    def num_bands(self) -> int:
        """How many bands the catalogue has."""
        return self.forward.num_bands

    @property
    def selection_power(self) -> float:
        """The galaxies to be found in the catalogue with given photometry are p(theta) times p(kept | theta) to this power.

        Cuts on what the survey measured do not depend on theta once that is given; cuts on true fluxes do.
        """
        selection = self.forward.selection
        return (0.0 if selection.observed or not selection.cuts else 1.0) - (self.tilt if selection.cuts else 0.0)

    def calibrated(
        self, theta: Float[Array, "num dim"], flux: Float[Array, "num filter"], member: Int[Array, "*num"]
    ) -> Float[Array, "num band"]:
        """A model's noise-free fluxes in all filters [maggies], as the survey would calibrate its bands.

        Args:
            member: whose calibration it is, of all galaxies or of each.
        """
        calibration = jax.tree.map(lambda leaf: leaf[member], self.calibration)
        redshift = theta[:, self.space.index("redshift")]
        return flux[:, : self.num_bands] * self.calibration_model.factors(calibration, redshift)

    def noise(self, member: Int[Array, "*num"]) -> NoiseModel:
        """The noise with a member's floors."""
        calibration = jax.tree.map(lambda leaf: leaf[member], self.calibration)
        return self.calibration_model.noise(calibration, self.forward.noise)

    def observe(
        self,
        key: Array,
        theta: Float[Array, "num dim"],
        member: Int[Array, "*num"],
        excess: Float[Array, ...] | float = 0.0,
        flux: Float[Array, "num filter"] | None = None,
    ) -> Photometry:
        """Galaxies as the survey would quote them, under the conditions of real ones; the bands that those lack are missing.

        Args:
            excess: of log10 of the errors over those conditions' [dex].
            flux: of `forward.flux`, where it is known.
        """
        key_noise, key_missing = jax.random.split(key)
        flux = self.forward.flux(theta) if flux is None else flux
        observed, error = self.noise(member).observe(key_noise, self.calibrated(theta, flux, member), excess=excess)
        there = jnp.ones(observed.shape, bool)
        if self.forward.missing is not None:
            there = self.forward.missing.patterns[self.forward.missing.draw(key_missing, observed)]
        return Photometry(observed, error, there)


def counted_members(population: Population) -> tuple[list[int], list[float]]:
    """The members over which posteriors are averaged, those whose weight is above one in a hundred, and their shares."""
    weights = np.asarray(population.weights, float)
    chosen = np.flatnonzero(weights > 0.01)
    return chosen.tolist(), (weights[chosen] / weights[chosen].sum()).tolist()


def check_likelihood(noise: NoiseModel) -> None:
    """Refuse noise whose likelihood has no closed form; outside traced code.

    Raises:
        ValueError: correlated noise with tails, outliers or upper limits.
    """
    shape = noise.shape
    tails = math.isfinite(shape.degrees_of_freedom) or shape.outlier_fraction > 0.0
    if shape.correlation > 0.0 and (tails or bool(jnp.any(noise.limits > 0.0))):
        raise ValueError(
            "noise: a correlation together with degrees_of_freedom, outliers or upper limits has no likelihood in closed form; "
            "set correlation = 0, or use the amortised posterior (--method npe), which needs none"
        )


def log_likelihood(
    photometry: Photometry, model: Float[Array, "*batch band"], noise: NoiseModel
) -> Float[Array, "*batch"]:
    """log p(fluxes | noise-free fluxes), of the galaxies' own exposures.

    An exposure's depth follows from the flux that was observed and the error that was quoted for it, so that the width of the
    noise at any other flux is known: exact for galaxies that `NoiseModel.observe` makes, but for the depth of upper limits.
    Bands that are missing say nothing. Where a survey quotes upper limits, the noise is integrated below the limit.

    Args:
        photometry: one galaxy, or as many as in `model`.
        model: [maggies].
        noise: of a kind that `check_likelihood` lets pass.
    """
    shape = noise.shape
    # What stands in a missing band must neither count nor spoil a gradient.
    flux = jnp.where(photometry.there, photometry.flux, model)
    error = jnp.where(photometry.there, photometry.error, noise.softening)
    depth, excess = noise.conditions(flux, error)
    width = noise.width(model, jax.lax.stop_gradient(depth), jax.lax.stop_gradient(excess))
    deviate = (flux - model) / width
    if shape.correlation > 0.0:
        return _correlated(deviate, width, photometry.there, shape.correlation)
    each = _log_density(deviate, shape.degrees_of_freedom) - jnp.log(width)
    if shape.outlier_fraction > 0.0:
        scale = shape.outlier_scale
        wide = _log_density(deviate / scale, shape.degrees_of_freedom) - jnp.log(width * scale)
        each = jnp.logaddexp(jnp.log1p(-shape.outlier_fraction) + each, jnp.log(shape.outlier_fraction) + wide)
    limited = (noise.limits > 0.0) & (flux <= noise.limits * error * (1.0 + 1e-6))
    each = jnp.where(limited, jax.scipy.stats.norm.logcdf(deviate), each)
    return jnp.sum(jnp.where(photometry.there, each, 0.0), axis=-1)


def _log_density(deviate: Array, degrees_of_freedom: float) -> Array:
    """Of the noise over its width: normal, or Student t."""
    if math.isfinite(degrees_of_freedom):
        return jax.scipy.stats.t.logpdf(deviate, degrees_of_freedom)
    return jax.scipy.stats.norm.logpdf(deviate)


def _correlated(deviate: Array, width: Array, there: Array, correlation: float) -> Array:
    """Normal noise whose deviates in any two bands have the same correlation: (1 - r) I + r 1 1^T, of the bands there are."""
    deviate = jnp.where(there, deviate, 0.0)
    num = jnp.sum(there, axis=-1)
    along = 1.0 - correlation + num * correlation  # the eigenvalue along (1, ..., 1); the others are 1 - r
    shared = correlation * jnp.sum(deviate, axis=-1) ** 2 / along
    chi2 = (jnp.sum(deviate**2, axis=-1) - shared) / (1.0 - correlation)
    log_det = jnp.where(num > 0, (num - 1) * jnp.log1p(-correlation) + jnp.log(along), 0.0)
    norms = jnp.sum(jnp.where(there, jnp.log(width) + 0.5 * jnp.log(2.0 * jnp.pi), 0.0), axis=-1)
    return -0.5 * (chi2 + log_det) - norms
