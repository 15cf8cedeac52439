"""Encoders: what stands in missing bands and pixels does not matter, and the laws of the normal distributions they give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from popsed_jax.posteriors.encoders import Moments, PhotometryEncoder, SpectrumEncoder, spectrum_channels
from popsed_jax.posteriors.mocks import SpectrumData

PIXELS = 100  # no multiple of the blocks and strides


def spectrum(scale: float = 1e-8, num: int = 5) -> SpectrumData:
    rng = np.random.default_rng(0)
    flux = scale * (1.0 + 0.3 * np.sin(np.arange(PIXELS) / 9.0)) * np.ones((num, 1))
    sigma = 0.1 * scale * np.ones_like(flux)
    there = rng.random(flux.shape) > 0.2
    return SpectrumData(*map(jnp.asarray, (flux + sigma * rng.normal(size=flux.shape), sigma**-2.0, there)))


@pytest.fixture(scope="module")
def network():
    module = SpectrumEncoder(latent=3, hidden=16)
    zero, one = jnp.asarray(-8.0), jnp.asarray(1.0)
    weights = jax.jit(module.init)(jax.random.key(0), spectrum(), zero, one)
    weights = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(1), leaf.shape), weights)
    return jax.jit(lambda seen: module.apply(weights, seen, zero, one))


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30, 1e30])
def test_what_stands_in_missing_pixels_does_not_matter(network, garbage):
    seen = spectrum()
    spoiled = seen._replace(
        flux=jnp.where(seen.there, seen.flux, garbage), ivar=jnp.where(seen.there, seen.ivar, garbage)
    )
    for one, other in zip(network(seen), network(spoiled), strict=True):
        assert np.array_equal(one, other)


def test_a_pixel_without_weight_is_missing(network):
    seen = spectrum()
    told = seen._replace(there=seen.there.at[:, 40:60].set(False))
    silent = seen._replace(ivar=seen.ivar.at[:, 40:60].set(0.0))
    for one, other in zip(network(told), network(silent), strict=True):
        assert np.allclose(one, other, atol=1e-6)


def test_a_spectrum_without_any_pixel_says_nothing_and_spoils_nothing(network):
    seen = spectrum()
    some = seen._replace(there=seen.there.at[0].set(False))
    found = network(some)
    assert np.isfinite(found.mean).all()
    assert np.isfinite(found.log_var).all()
    assert np.allclose(found.mean[1:], network(seen).mean[1:], atol=1e-6)


def test_channels_do_not_depend_on_the_unit():
    (one, level), (other, brighter) = spectrum_channels(spectrum(1e-8)), spectrum_channels(spectrum(1e-3))
    assert np.allclose(one, other, atol=1e-4)
    assert np.allclose(brighter - level, 5.0, atol=1e-4)


def test_the_scale_is_robust():
    seen = spectrum()
    wild = seen._replace(flux=seen.flux.at[:, ::31].set(1e-4), there=jnp.ones_like(seen.there))
    level = spectrum_channels(wild)[1]
    assert np.abs(np.asarray(level) + 8.0).max() < 0.15  # a mean would be off by 2.5
    assert np.abs(np.asarray(spectrum_channels(wild)[0])).max() < 40.0


@pytest.mark.parametrize("blocks", [1, 2])
def test_photometry_encoders_start_near_the_prior(blocks):
    features = jax.random.normal(jax.random.key(2), (50, 9))
    module = PhotometryEncoder(latent=4, hidden=16, num_blocks=blocks)
    moments = jax.jit(module.init_with_output)(jax.random.key(0), features)[0]
    assert moments.mean.shape == moments.log_var.shape == (50, 4)
    assert np.asarray(moments.kl_to_prior()).max() < 0.5


def test_moments_agree_with_scipy_and_with_their_samples():
    rng = np.random.default_rng(1)
    mean, log_var = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
    moments, latent = Moments(jnp.asarray(mean), jnp.asarray(log_var)), rng.normal(size=(2, 3))
    expected = [multivariate_normal(mean[i], np.diag(np.exp(log_var[i]))).logpdf(latent[i]) for i in range(2)]
    assert np.allclose(moments.log_prob(jnp.asarray(latent)), expected, rtol=1e-4)
    drawn = moments.sample(jax.random.key(0), 20_000)
    assert np.allclose(drawn.mean(axis=1), mean, atol=0.06)
    assert np.allclose(jnp.log(drawn.var(axis=1)), log_var, atol=0.06)
    # The divergence is the mean log ratio of the densities.
    prior = Moments(jnp.zeros((2, 1, 3)), jnp.zeros((2, 1, 3)))
    each = Moments(moments.mean[:, None], moments.log_var[:, None])
    ratio = jnp.mean(each.log_prob(drawn) - prior.log_prob(drawn), axis=1)
    assert np.allclose(moments.kl_to_prior(), ratio, atol=0.05)
