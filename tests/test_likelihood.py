"""The likelihood of a galaxy's fluxes, against independent formulas and against the noise that it is the density of."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from popsed_jax.observe.noise import NoiseConfig, NoiseModel, fit_noise_model
from popsed_jax.posteriors.survey import Photometry, check_likelihood, log_likelihood

MODEL = np.array([2e-9, 5e-9, 9e-9], np.float32)


@pytest.fixture(scope="module")
def noise() -> NoiseModel:
    """Three bands whose errors grow with the flux and scatter from galaxy to galaxy."""
    rng = np.random.default_rng(0)
    flux = 10.0 ** rng.uniform(-9.5, -7.5, (3000, 3))
    error = (1e-10 + 0.01 * flux) * 10.0 ** (0.05 * rng.standard_normal((3000, 3)))
    return fit_noise_model(flux, error)


def shaped(noise: NoiseModel, **changes: float) -> NoiseModel:
    config = NoiseConfig(**{"floor": 0.02, **changes})
    return dataclasses.replace(noise, floor=jnp.full(3, config.floor), shape=config)


def photometry(flux: np.ndarray, error: np.ndarray, there: object = (True, True, True)) -> Photometry:
    return Photometry(jnp.asarray(flux, jnp.float32), jnp.asarray(error, jnp.float32), jnp.asarray(there))


def widths(noise: NoiseModel, flux: np.ndarray, error: np.ndarray) -> np.ndarray:
    depth, excess = noise.conditions(jnp.asarray(flux), jnp.asarray(error))
    return np.asarray(noise.width(jnp.asarray(MODEL), depth, excess), float)


def seen(noise: NoiseModel) -> tuple[np.ndarray, np.ndarray]:
    flux = (MODEL * np.array([1.1, 0.97, 1.02])).astype(np.float32)
    return flux, np.asarray(noise.sigma(jnp.asarray(flux), jnp.array([0.5, -1.0, 2.0])))


def test_conditions_are_those_of_the_exposure(noise):
    flux = jnp.asarray(10.0 ** np.random.default_rng(1).uniform(-9.3, -7.7, (200, 3)))
    depth = jnp.asarray(np.random.default_rng(2).uniform(-4.0, 4.0, (200, 3)))
    found, excess = noise.conditions(flux, noise.sigma(flux, depth))
    np.testing.assert_allclose(found, depth, atol=2e-3)
    np.testing.assert_allclose(excess, 0.0, atol=1e-4)


def test_an_error_beyond_all_depths_is_kept_as_excess(noise):
    flux = jnp.asarray(MODEL)
    error = noise.sigma(flux, jnp.zeros(3)) * 30.0
    depth, excess = noise.conditions(flux, error)
    np.testing.assert_allclose(noise.sigma(flux, depth) * 10.0**excess, error, rtol=1e-5)


def test_it_is_the_density_of_simulated_noise(noise):
    """Fluxes that the noise model makes, over the widths that the likelihood takes, are standard normal deviates."""
    noise = shaped(noise)
    model = jnp.broadcast_to(jnp.asarray(MODEL), (20_000, 3))
    observed, error = noise.observe(jax.random.key(3), model)
    depth, excess = noise.conditions(observed, error)
    deviate = np.asarray((observed - model) / noise.width(model, depth, excess))
    for band in range(3):
        assert stats.kstest(deviate[:, band], "norm").pvalue > 1e-3


@pytest.mark.parametrize("there", [(True, True, True), (True, False, True), (False, False, True)])
@pytest.mark.parametrize("correlation", [0.0, 0.3])
def test_normal_noise(noise, correlation, there):
    noise = shaped(noise, correlation=correlation)
    flux, error = seen(noise)
    width, index = widths(noise, flux, error), np.flatnonzero(there)
    covariance = np.outer(width, width) * (correlation + (1.0 - correlation) * np.eye(3))
    wanted = stats.multivariate_normal.logpdf(
        flux[index].astype(float), MODEL[index].astype(float), covariance[np.ix_(index, index)]
    )
    found = log_likelihood(photometry(flux, error, there), jnp.asarray(MODEL), noise)
    assert float(found) == pytest.approx(float(wanted), abs=2e-3)


@pytest.mark.parametrize(("freedom", "fraction"), [(4.0, 0.0), (math.inf, 0.05), (4.0, 0.05)])
def test_tails_and_outliers(noise, freedom, fraction):
    noise = shaped(noise, degrees_of_freedom=freedom, outlier_fraction=fraction)
    flux, error = seen(noise)
    width = widths(noise, flux, error)
    t = stats.norm if math.isinf(freedom) else stats.t(freedom)
    deviate = (flux - MODEL) / width
    density = (1.0 - fraction) * t.pdf(deviate) / width + fraction * t.pdf(deviate / 10.0) / (10.0 * width)
    found = log_likelihood(photometry(flux, error), jnp.asarray(MODEL), noise)
    assert float(found) == pytest.approx(float(np.sum(np.log(density))), abs=2e-3)


def test_an_upper_limit_is_an_integral(noise):
    noise = dataclasses.replace(shaped(noise), limits=jnp.array([3.0, 0.0, 0.0]))
    flux, error = seen(noise)
    flux[0] = 3.0 * error[0]
    width = widths(noise, flux, error)
    deviate = (flux - MODEL) / width
    wanted = stats.norm.logcdf(deviate[0]) + np.sum(stats.norm.logpdf(deviate[1:]) - np.log(width[1:]))
    found = log_likelihood(photometry(flux, error), jnp.asarray(MODEL), noise)
    assert float(found) == pytest.approx(float(wanted), abs=2e-3)


@pytest.mark.parametrize("nothing", [0.0, np.nan])
def test_what_stands_in_a_missing_band_does_not_matter(noise, nothing):
    noise, (flux, error) = shaped(noise), seen(shaped(noise))
    there = (True, False, True)
    whole = jax.value_and_grad(lambda model: log_likelihood(photometry(flux, error, there), model, noise))
    flux_lost, error_lost = flux.copy(), error.copy()
    flux_lost[1] = error_lost[1] = nothing
    lost = jax.value_and_grad(lambda model: log_likelihood(photometry(flux_lost, error_lost, there), model, noise))
    for one, other in zip(whole(jnp.asarray(MODEL)), lost(jnp.asarray(MODEL)), strict=True):
        assert np.isfinite(other).all()
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_gradients_are_those_of_differences(noise):
    with jax.enable_x64(True):
        noise = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), shaped(noise, correlation=0.2))
        flux, error = (np.asarray(part, float) for part in seen(noise))
        one = Photometry(jnp.asarray(flux), jnp.asarray(error), jnp.array([True, True, True]))
        scale = MODEL.astype(float)

        def value(relative):
            return log_likelihood(one, jnp.asarray(scale) * relative, noise)

        slope, step = jax.grad(value)(jnp.ones(3)), 1e-6
        for band in range(3):
            move = jnp.zeros(3).at[band].set(step)
            by_difference = (value(1.0 + move) - value(1.0 - move)) / (2.0 * step)
            assert float(slope[band]) == pytest.approx(float(by_difference), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("what", ["tails", "outliers", "limits"])
def test_what_has_no_closed_form_is_refused(noise, what):
    changes = {"tails": {"degrees_of_freedom": 4.0}, "outliers": {"outlier_fraction": 0.05}, "limits": {}}[what]
    limits = jnp.array([3.0, 0.0, 0.0]) if what == "limits" else noise.limits
    check_likelihood(dataclasses.replace(shaped(noise, **changes), limits=limits))
    with pytest.raises(ValueError, match="no likelihood in closed form; set correlation = 0"):
        check_likelihood(dataclasses.replace(shaped(noise, correlation=0.2, **changes), limits=limits))
