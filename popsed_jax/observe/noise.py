"""The survey's noise: sigma as a continuous function of flux in each band, with scatter, learned from quoted errors."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax._random import normal

NUM_KNOTS = 12
_MIN_GALAXIES = 20


@flax.struct.dataclass
class NoiseModel:
    """log10 sigma as a piecewise-linear function of asinh flux in each band, with Gaussian scatter in log10 sigma.

    Attributes:
        softening: flux scale of the asinh, about the noise of the faintest galaxies [maggies].
        knots: asinh(flux / 2 softening).
        floor: scatter that the quoted errors leave out, as a fraction of the flux (calibration, template scatter); it
            is in the noise but not in the quoted error.
        log_sigma: median log10 of the error [maggies] at the knots.
        scatter: standard deviation of log10 sigma at the knots [dex].
    """

    softening: Float[Array, " band"]
    floor: Float[Array, " band"]
    knots: Float[Array, "band knot"]
    log_sigma: Float[Array, "band knot"]
    scatter: Float[Array, "band knot"]

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

    @jax.jit
    def observe(
        self, key: Array, flux: Float[Array, "*batch band"], noise_divisor: Float[Array, ""] | float = 1.0
    ) -> tuple[Float[Array, "*batch band"], Float[Array, "*batch band"]]:
        """Noisy fluxes and the errors that the survey would quote [maggies].

        The quoted error comes from the *observed* flux, as a survey's does; one from the true flux would tell the truth
        to whatever is trained on it.

        Args:
            noise_divisor: the injected noise is divided by this (noise anti-annealing); the quoted error is not.
        """
        key_depth, key_noise = jax.random.split(key)
        depth = normal(key_depth, flux.shape)
        width = jnp.hypot(self.sigma(flux, depth), self.floor * flux)
        noise = normal(key_noise, flux.shape) * width
        observed = flux + noise / noise_divisor
        return observed, self.sigma(observed, depth)


def fit_noise_model(
    flux: Float[Array | np.ndarray, "galaxy band"], error: Float[Array | np.ndarray, "galaxy band"], floor: float = 0.0
) -> NoiseModel:
    """Learn the errors' run with flux, and their scatter, by kernel-weighted medians.

    Args:
        flux, error: of the catalogue [maggies].
        floor: fractional scatter that the quoted errors leave out.

    Raises:
        ValueError: fewer than 20 galaxies, or errors that are not positive.
    """
    flux, error = np.asarray(flux, dtype=float), np.asarray(error, dtype=float)
    if len(flux) < _MIN_GALAXIES:
        raise ValueError(f"a noise model needs at least {_MIN_GALAXIES} galaxies, got {len(flux)}")
    if not np.all(error > 0):
        raise ValueError("a noise model needs positive errors in every band")
    softening = fit_softening(flux, error)
    x, log_error = np.arcsinh(0.5 * flux / softening), np.log10(error)
    bands = [_fit_band(x[:, band], log_error[:, band]) for band in range(flux.shape[1])]
    knots, log_sigma, scatter = (jnp.asarray(np.stack(part)) for part in zip(*bands, strict=True))
    return NoiseModel(jnp.asarray(softening), jnp.full(flux.shape[1], floor), knots, log_sigma, scatter)


def fit_softening(
    flux: Float[Array | np.ndarray, "galaxy band"], error: Float[Array | np.ndarray, "galaxy band"]
) -> Float[np.ndarray, " band"]:
    """Median error of the faintest tenth in each band [maggies]; near the optimum of Lupton+99, sec. 3."""
    flux, error = np.asarray(flux, dtype=float), np.asarray(error, dtype=float)
    faint = flux <= np.quantile(flux, 0.1, axis=0)
    return np.array([np.median(error[faint[:, b], b]) for b in range(flux.shape[1])])


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
