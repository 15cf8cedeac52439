"""The survey's noise: sigma as a continuous function of flux in each band, with scatter, learned from quoted errors."""

from __future__ import annotations

import dataclasses
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax._random import evenly_spaced, normal

NUM_KNOTS = 12
_MIN_GALAXIES = 20
_MAX_CONDITIONS = 4096  # real galaxies whose exposures simulated ones may have
_MAX_DEPTH = 5.0  # standard deviations; beyond, a quoted error is a defect rather than a depth


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
    """The survey's noise beyond what the catalogue's errors say.

    Args:
        floor: fractional scatter of every flux that the quoted errors leave out (calibration, template scatter).
        correlation: of the noise in any two bands of a galaxy (shared apertures and sky), at least 0 and below 1.
        degrees_of_freedom: of a Student t distribution of the noise over its width; infinite: Gaussian.
        outlier_fraction, outlier_scale: this share of all fluxes has noise that many times as wide (blends, bad pixels).
    """

    floor: float = 0.01
    correlation: float = 0.0
    degrees_of_freedom: float = math.inf
    outlier_fraction: float = 0.0
    outlier_scale: float = 10.0

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not 0.0 <= self.floor < 1.0:
            raise ValueError(f"noise: floor = {self.floor} is a fraction of the flux, between 0 and 1")
        if not 0.0 <= self.correlation < 1.0:
            raise ValueError(f"noise: correlation = {self.correlation} must be at least 0 and below 1")
        if not self.degrees_of_freedom > 2.0:
            raise ValueError(
                f"noise: degrees_of_freedom = {self.degrees_of_freedom} must be above 2, where the variance is finite"
            )
        if not 0.0 <= self.outlier_fraction < 0.5:
            raise ValueError(f"noise: outlier_fraction = {self.outlier_fraction} must be at least 0 and below 0.5")
        if not self.outlier_scale >= 1.0:
            raise ValueError(f"noise: outlier_scale = {self.outlier_scale} must be at least 1")


@flax.struct.dataclass
class NoiseModel:
    """log10 sigma as a piecewise-linear function of asinh flux in each band, with scatter between exposures.

    Attributes:
        softening: flux scale of the asinh, about the noise of the faintest galaxies [maggies].
        knots: asinh(flux / 2 softening).
        floor: scatter that the quoted errors leave out, as a fraction of the flux (calibration, template scatter); it
            is in the noise but not in the quoted error.
        log_sigma: median log10 of the error [maggies] at the knots.
        scatter: standard deviation of log10 sigma at the knots [dex].
        depths: how deep real galaxies were observed, band by band, in standard deviations of the scatter. A simulated
            galaxy takes the row of one of them, so that deep and shallow fields stay so in all bands.
        limits: significance in each band below which the survey quotes this many sigma as an upper limit in place of the
            flux; 0: it never does.
        shape: tails and correlation.
    """

    softening: Float[Array, " band"]
    floor: Float[Array, "*member band"]
    knots: Float[Array, "band knot"]
    log_sigma: Float[Array, "band knot"]
    scatter: Float[Array, "band knot"]
    depths: Float[Array, "galaxy band"]
    limits: Float[Array, " band"]
    shape: NoiseConfig = flax.struct.field(pytree_node=False, default=NoiseConfig())

    @jax.jit
    def sigma(
        self, flux: Float[Array, "*batch band"], depth: Float[Array, "*batch band"]
    ) -> Float[Array, "*batch band"]:
        """Error of a flux [maggies].

        Args:
            flux: [maggies].
            depth: how deep this galaxy's exposure is, in standard deviations of the scatter (0: the median).
        """
        x = jnp.arcsinh(0.5 * flux / self.softening)
        interp = jnp.vectorize(jnp.interp, signature="(),(k),(k)->()")
        return 10.0 ** (interp(x, self.knots, self.log_sigma) + depth * interp(x, self.knots, self.scatter))

    def conditions(
        self, flux: Float[Array, "*batch band"], error: Float[Array, "*batch band"]
    ) -> tuple[Float[Array, "*batch band"], Float[Array, "*batch band"]]:
        """Depth of the exposure that quotes this error for this observed flux, and what that leaves of log10 of the error [dex].

        With both, `sigma(flux, depth) * 10**excess` is the error at any other flux.
        """
        x = jnp.arcsinh(0.5 * flux / self.softening)
        interp = jnp.vectorize(jnp.interp, signature="(),(k),(k)->()")
        scatter = interp(x, self.knots, self.scatter)
        residual = jnp.log10(error) - interp(x, self.knots, self.log_sigma)
        depth = jnp.clip(residual / jnp.maximum(scatter, 1e-6), -_MAX_DEPTH, _MAX_DEPTH)
        return depth, residual - depth * scatter

    def width(
        self,
        flux: Float[Array, "*batch band"],
        depth: Float[Array, "*batch band"],
        excess: Float[Array, ...] | float = 0.0,
    ) -> Float[Array, "*batch band"]:
        """Standard deviation of the noise [maggies]: the quoted error, and what the survey does not quote.

        Args:
            excess: of log10 of the quoted error over this depth's [dex].
        """
        return jnp.hypot(self.sigma(flux, depth) * 10.0**excess, self.floor * flux)

    @jax.jit
    def observe(
        self,
        key: Array,
        flux: Float[Array, "num band"],
        noise_divisor: Float[Array, ""] | float = 1.0,
        excess: Float[Array, ...] | float = 0.0,
    ) -> tuple[Float[Array, "num band"], Float[Array, "num band"]]:
        """Noisy fluxes, each under the conditions of some real galaxy, and the errors that the survey would quote [maggies].

        The quoted error comes from the *observed* flux, as a survey's does; one from the true flux would tell the truth
        to whatever is trained on it.

        Args:
            noise_divisor: the injected noise is divided by this (noise anti-annealing); the quoted error is not.
            excess: of log10 of the error over that of the real galaxy's conditions [dex].
        """
        key_depth, key_noise = jax.random.split(key)
        depth = self.depths[jax.random.randint(key_depth, flux.shape[:1], 0, self.depths.shape[0])]
        noise = self._deviates(key_noise, flux.shape) * self.width(flux, depth, excess)
        observed = flux + noise / noise_divisor
        error = self.sigma(observed, depth) * 10.0**excess
        return self.quoted(observed, error), error

    def quoted(
        self, flux: Float[Array, "*batch band"], error: Float[Array, "*batch band"]
    ) -> Float[Array, "*batch band"]:
        """What the survey writes down: the flux, or an upper limit where that is all it gives. [maggies]"""
        return jnp.where(self.limits > 0.0, jnp.maximum(flux, self.limits * error), flux)

    def _deviates(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Noise over its width."""
        deviates, each = normal(key, shape), self.shape
        if each.correlation > 0.0:
            shared = normal(jax.random.fold_in(key, 1), (*shape[:-1], 1))
            deviates = math.sqrt(1.0 - each.correlation) * deviates + math.sqrt(each.correlation) * shared
        if math.isfinite(each.degrees_of_freedom):
            half = 0.5 * each.degrees_of_freedom
            deviates = deviates / jnp.sqrt(jax.random.gamma(jax.random.fold_in(key, 2), half, shape) / half)
        if each.outlier_fraction > 0.0:
            outlier = jax.random.uniform(jax.random.fold_in(key, 3), shape) < each.outlier_fraction
            deviates = jnp.where(outlier, each.outlier_scale, 1.0) * deviates
        return deviates


def fit_noise_model(
    flux: Float[Array | np.ndarray, "galaxy band"],
    error: Float[Array | np.ndarray, "galaxy band"],
    config: NoiseConfig = NoiseConfig(floor=0.0),
    limits: Float[np.ndarray, " band"] | None = None,
) -> NoiseModel:
    """Learn the errors' run with flux, and their scatter, by kernel-weighted medians.

    Args:
        flux, error: of the catalogue [maggies]; NaN where a galaxy lacks the band.
        config: what the quoted errors leave out.
        limits: see `NoiseModel.limits`.

    Raises:
        ValueError: a band with fewer than 20 galaxies, or errors that are not positive.
    """
    flux, error = np.asarray(flux, dtype=float), np.asarray(error, dtype=float)
    there = np.isfinite(flux) & np.isfinite(error)
    if there.sum(axis=0).min() < _MIN_GALAXIES:
        fewest = int(there.sum(axis=0).min())
        raise ValueError(f"a noise model needs at least {_MIN_GALAXIES} galaxies in every band, and one has {fewest}")
    if not np.all(error[there] > 0):
        raise ValueError("a noise model needs positive errors in every band")
    num = flux.shape[1]
    softening = fit_softening(flux, error)
    x, log_error = np.arcsinh(0.5 * flux / softening), np.log10(error)
    bands = [_fit_band(x[there[:, b], b], log_error[there[:, b], b]) for b in range(num)]
    depths = np.zeros(flux.shape)
    for b, (knots, median, scatter) in enumerate(bands):
        residual = log_error[:, b] - np.interp(x[:, b], knots, median)
        depths[:, b] = residual / np.maximum(np.interp(x[:, b], knots, scatter), 1e-6)
    # A galaxy without a band has no depth there: the median's.
    depths = np.clip(np.where(there, depths, 0.0), -_MAX_DEPTH, _MAX_DEPTH)
    at_knots = [jnp.asarray(np.stack(part)) for part in zip(*bands, strict=True)]
    return NoiseModel(
        softening=jnp.asarray(softening),
        floor=jnp.full(num, config.floor),
        knots=at_knots[0],
        log_sigma=at_knots[1],
        scatter=at_knots[2],
        depths=jnp.asarray(depths[evenly_spaced(len(depths), _MAX_CONDITIONS)]),
        limits=jnp.zeros(num) if limits is None else jnp.asarray(limits, float),
        shape=config,
    )


def fit_softening(
    flux: Float[Array | np.ndarray, "galaxy band"], error: Float[Array | np.ndarray, "galaxy band"]
) -> Float[np.ndarray, " band"]:
    """Median error of the faintest tenth in each band [maggies]; near the optimum of Lupton+99, sec. 3."""
    flux, error = np.asarray(flux, dtype=float), np.asarray(error, dtype=float)
    faint = flux <= np.nanquantile(flux, 0.1, axis=0)
    return np.array([np.nanmedian(error[faint[:, b], b]) for b in range(flux.shape[1])])


def _fit_band(x: np.ndarray, log_error: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kernel-weighted median and scatter of log error on knots at quantiles of x."""
    knots = np.quantile(x, np.linspace(0.005, 0.995, NUM_KNOTS))
    knots = np.maximum.accumulate(knots + np.arange(NUM_KNOTS) * 1e-6)  # strictly increasing, also for tied fluxes
    width = np.maximum(np.gradient(knots), 1e-3)
    weight = np.exp(-0.5 * ((x - knots[:, None]) / width[:, None]) ** 2)
    median, scatter = np.zeros(NUM_KNOTS), np.zeros(NUM_KNOTS)
    # From the second pass on, the medians are those of the residuals: the run of the error with flux within a kernel would
    # otherwise bias the medians and count as scatter.
    for _ in range(4):
        residual = log_error - np.interp(x, knots, median)
        order = np.argsort(residual)
        cumulative = np.cumsum(weight[:, order], axis=1)
        cumulative /= cumulative[:, -1:]
        low, middle, high = np.stack([np.interp([0.1587, 0.5, 0.8413], row, residual[order]) for row in cumulative]).T
        median, scatter = median + middle, 0.5 * (high - low)
    return knots, median, scatter
