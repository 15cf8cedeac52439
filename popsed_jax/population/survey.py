"""One survey's part in a fit: what it recorded, how it records, and the space in which the two are compared."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from popsed_jax._random import evenly_spaced
from popsed_jax.observe.calibration import Calibration, CalibrationModel
from popsed_jax.observe.forward import ForwardModel
from popsed_jax.observe.missing import band_patterns
from popsed_jax.observe.selection import SelectionConfig
from popsed_jax.population.fit_config import FitConfig
from popsed_jax.population.galaxies import SurveyGalaxies
from popsed_jax.population.space import ComparisonSpace, build_space
from popsed_jax.transport import sinkhorn_divergence

# A galaxy that the survey keeps though next to none of its kind are kept counts as this many at most: the tail of an
# importance weight, whose variance has no bound.
MAX_WEIGHT = 10.0
_MIN_SPECTRA = 40
# Where redshifts are compared, photometry is the backdrop: on this scale, against 1 for the redshift that it does not predict.
# At full scale its twenty axes would drown that one, and a few hundred galaxies would pull the photometry to their own sample.
_BACKDROP = 0.3


@dataclasses.dataclass(frozen=True)
class SpectroscopyConfig:
    """Whether the fit may see redshifts.

    Args:
        fraction: of the galaxies with a spectroscopic redshift that the fit may use, drawn at random; 0: photometry alone. The
            others remain for the report.
        success: the chance that a galaxy of the catalogue has a redshift, as cuts on its photometry; none: the same for all.
    """

    fraction: float = 0.0
    success: SelectionConfig = dataclasses.field(default_factory=SelectionConfig)

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not 0.0 <= self.fraction <= 1.0:
            raise ValueError(f"spectroscopy: fraction = {self.fraction} must be between 0 and 1")


class Observations(NamedTuple):
    """A catalogue's arrays.

    Attributes:
        flux, error: [maggies]; NaN where a galaxy lacks the band.
        redshift: NaN where the fit may not know it; None: nowhere.
    """

    flux: Float[np.ndarray, "galaxy band"]
    error: Float[np.ndarray, "galaxy band"]
    redshift: Float[np.ndarray, " galaxy"] | None = None


@flax.struct.dataclass
class Spectroscopy:
    """How redshifts are compared, where the fit may see some.

    Attributes:
        mags: asinh magnitudes of the galaxies that the validation compares: all of them, or as many as of photometry.
        redshift: their redshifts.
        center, scale: a redshift enters the distance as (redshift - center) * scale,
        coefficients, tightness: and as (redshift - what photometry predicts) * tightness. Redshift and photometry together lie
            close to a surface, and what they say beyond photometry is how close; a distance that takes the redshift for one more
            axis among twenty hardly sees it.
        floor: the noise floor of photometry and redshift together, for these against as many draws as the validation's.
        share: of the catalogue's galaxies; by its square root their distance counts against that of all.
        success: the chance that a galaxy of the catalogue has a redshift, as cuts on its photometry.
    """

    mags: Float[Array, "galaxy band"]
    redshift: Float[Array, " galaxy"]
    center: Float[Array, ""]
    scale: Float[Array, ""]
    coefficients: Float[Array, " term"]
    tightness: Float[Array, ""]
    floor: Float[Array, ""]
    share: Float[Array, ""]
    success: SelectionConfig = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Survey:
    """What is fixed in a fit, for one survey.

    Attributes:
        calibration: what may be wrong with zero points, templates and quoted errors.
        held_out: asinh magnitudes of the part of the catalogue that only the validation sees.
        floor: noise floor, the distance of the data's split halves at the validation's sizes.
        spectroscopy: how redshifts are compared too; None: photometry alone.
    """

    forward: ForwardModel
    space: ComparisonSpace
    calibration: CalibrationModel
    held_out: Float[Array, "held band"]
    floor: Float[Array, ""]
    spectroscopy: Spectroscopy | None = None


class Recorded(NamedTuple):
    """Simulated galaxies as the survey records them.

    Attributes:
        mags: asinh magnitudes, missing ones filled in (see `ComparisonSpace`).
        pattern: of missing bands; None: none is.
        kept: probability that the survey keeps a galaxy that looks like this.
        redshift_known: probability that it has its redshift; None: that of all others.
    """

    mags: Float[Array, "num band"]
    pattern: Int[Array, " num"] | None
    kept: Float[Array, " num"]
    redshift_known: Float[Array, " num"] | None


def observe(
    key: Array,
    survey: Survey,
    flux: Float[Array, "num filter"],
    redshift: Float[Array, " num"],
    calibration: Calibration,
    noise_divisor: Array | float = 1.0,
) -> Recorded:
    """Record galaxies of known noise-free fluxes [maggies, all filters].

    Args:
        calibration: of all galaxies, or of each.
    """
    forward, spectroscopy = survey.forward, survey.spectroscopy
    bands = flux[:, : forward.num_bands] * survey.calibration.factors(calibration, redshift)
    noise = survey.calibration.noise(calibration, forward.noise)
    observed, error = noise.observe(key, bands, noise_divisor)
    pattern = None
    if forward.missing is not None:
        pattern = forward.missing.draw(jax.random.fold_in(key, 1), observed)
    known = None
    if spectroscopy is not None and spectroscopy.success.cuts:
        known = dataclasses.replace(forward, selection=spectroscopy.success).kept(flux, observed, error)
    return Recorded(survey.space.mags(observed, pattern), pattern, forward.kept(flux, observed, error), known)


def with_redshift(
    survey: Survey, mags: Float[Array, "num band"], redshift: Float[Array, " num"]
) -> Float[Array, "num feature"]:
    """Photometric features, the redshift, and the redshift against its prediction, on the scales that the distance sees."""
    spectroscopy = survey.spectroscopy
    assert spectroscopy is not None
    features = survey.space.features(mags)
    scaled = (redshift - spectroscopy.center) * spectroscopy.scale
    against = (redshift - _terms(features) @ spectroscopy.coefficients) * spectroscopy.tightness
    backdrop = _BACKDROP * jnp.concatenate([features, survey.space.tame(scaled)[:, None]], axis=1)
    return jnp.concatenate([backdrop, survey.space.tame(against)[:, None]], axis=1)


def _terms(features: Float[Array, "num feature"]) -> Float[Array, "num term"]:
    """What a redshift is predicted from: photometric features, and their squares."""
    return jnp.concatenate([jnp.ones_like(features[:, :1]), features, features**2], axis=1)


def _predict_redshift(
    features: Float[Array, "num feature"], redshift: Float[np.ndarray, " num"]
) -> tuple[np.ndarray, float]:
    """Coefficients of a ridge regression (a weak one: there may be fewer galaxies than terms), and the residuals' width."""
    terms = np.asarray(_terms(features), float)
    ridge = 1e-2 * len(terms) * np.eye(terms.shape[1])
    ridge[0, 0] = 0.0
    coefficients = np.linalg.solve(terms.T @ terms + ridge, terms.T @ redshift)
    residual = redshift - terms @ coefficients
    return coefficients, max(float(np.subtract(*np.percentile(residual, [84, 16]))) / 2.0, 1e-3)


def validation_distance(
    x: Float[Array, "num feature"],
    y: Float[Array, "other feature"],
    blur: float,
    weights: Float[Array, " num"] | None = None,
) -> Array:
    """Square root of the Sinkhorn divergence with a quadratic cost: a distance in units of the data's robust width."""
    # Debiased divergences of finite samples can fall below zero by rounding when the clouds agree.
    return jnp.sqrt(jnp.maximum(sinkhorn_divergence(x, y, blur, weights_x=weights), 1e-12))


class Floor(NamedTuple):
    """The data's own split-half distance at the validation's sizes: mean and standard deviation over splits."""

    mean: float
    std: float


def noise_floor(key: Array, features: Float[Array, "galaxy feature"], num: int, blur: float, repeats: int = 8) -> Floor:
    """Distance between disjoint random parts of the data, as many galaxies each as the validation compares."""
    values = _split_distances(key, features, min(num, features.shape[0] // 2), blur, repeats)
    return Floor(float(np.mean(values)), float(np.std(values)))


@partial(jax.jit, static_argnames=("num", "repeats"))
def _split_distances(key: Array, features: Array, num: int, blur: float, repeats: int) -> Float[Array, " repeat"]:
    def split(key: Array) -> Array:
        order = jax.random.permutation(key, features.shape[0])
        return validation_distance(features[order[:num]], features[order[num : 2 * num]], blur)

    return jax.lax.map(split, jax.random.split(key, repeats))


def prepare_survey(
    key: Array,
    data: Observations,
    forward: ForwardModel,
    calibration: CalibrationModel,
    config: FitConfig,
    success: SelectionConfig,
) -> tuple[Survey, SurveyGalaxies, Floor]:
    """Split the catalogue, build the comparison space and measure the noise floors.

    Args:
        success: see `Spectroscopy`.

    Returns:
        The survey, the galaxies to learn from, the noise floor of its photometry.

    Raises:
        ValueError: a handful of redshifts, from which no distance can be measured.
    """
    key_split, key_floor, key_spectra = jax.random.split(key, 3)
    blur = config.validation_blur
    built = build_space(config.space, data.flux, data.error, np.asarray(forward.noise.softening, float))
    pattern = None if forward.missing is None else jnp.asarray(band_patterns(data.flux)[1])
    mags = built.mags(jnp.asarray(data.flux), pattern)
    order = np.asarray(jax.random.permutation(key_split, len(mags)))
    num_held = int(min(config.max_validation, config.held_out * len(mags)))
    floor = noise_floor(key_floor, built.features(mags), num_held, blur)
    host = np.asarray(mags)
    galaxies = SurveyGalaxies(host[order[num_held:]])
    survey = Survey(
        forward=forward,
        space=built,
        calibration=calibration,
        held_out=jnp.asarray(host[order[:num_held]]),
        floor=jnp.asarray(floor.mean),
    )
    if data.redshift is None:
        return survey, galaxies, floor
    known = np.flatnonzero(np.isfinite(data.redshift))
    if len(known) < _MIN_SPECTRA:
        raise ValueError(
            f"spectroscopy: {len(known)} redshifts are too few to compare populations; give at least {_MIN_SPECTRA}"
        )
    z = data.redshift[known]
    width = max(float(np.subtract(*np.percentile(z, [84, 16]))) / 2.0, 1e-3)
    coefficients, residual = _predict_redshift(built.features(mags[known]), z)
    compared = evenly_spaced(len(known), config.max_validation)
    spectroscopy = Spectroscopy(
        mags=jnp.asarray(host[known][compared]),
        redshift=jnp.asarray(z[compared]),
        center=jnp.asarray(np.median(z)),
        scale=jnp.asarray(1.0 / width),
        coefficients=jnp.asarray(coefficients),
        tightness=jnp.asarray(1.0 / residual),
        floor=jnp.ones(()),
        share=jnp.asarray(len(known) / len(mags)),
        success=success,
    )
    survey = dataclasses.replace(survey, spectroscopy=spectroscopy)
    num = len(compared)
    halves = noise_floor(key_spectra, with_redshift(survey, spectroscopy.mags, spectroscopy.redshift), num, blur)
    # The square of a distance between samples of one population goes as 1 / n + 1 / m.
    scaled = halves.mean * np.sqrt((1.0 / num_held + 1.0 / num) / (2.0 / (num // 2)))
    spectroscopy = dataclasses.replace(spectroscopy, floor=jnp.asarray(scaled))
    galaxies = galaxies._replace(spectra=(host[known], np.asarray(z, host.dtype)))
    return dataclasses.replace(survey, spectroscopy=spectroscopy), galaxies, floor
