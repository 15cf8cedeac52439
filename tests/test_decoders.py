"""Spectra on a grid of pixels, and photometry through the filters of what a latent decodes to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vae import MOCKS, tiny_mocks, tiny_theta

from popsed_jax.observe.filters import Filter, load_filter
from popsed_jax.posteriors.decoders import Decoded, SpectrumDecoder, build_scales
from popsed_jax.posteriors.pixels import SpectrumGrid, build_grid, observed_flux, pixel_means


@pytest.fixture(scope="module")
def grid(bands) -> SpectrumGrid:
    return build_grid([load_filter(name) for name in bands], 512)


def test_a_flat_spectrum_has_its_flux_in_every_band(grid):
    assert np.allclose(jnp.full(512, 3.0e-8) @ grid.filters, 3.0e-8, rtol=1e-5)


def test_the_grid_covers_the_filters(grid, bands):
    edges = np.exp(np.asarray(grid.edges))
    for name in bands:
        curve = load_filter(name)
        assert edges[0] < curve.wave[0]
        assert edges[-1] > curve.wave[-1]
    assert np.all(np.diff(np.asarray(grid.wave)) > 0)


def test_photometry_of_the_grid_is_the_forward_models(grid, forward, theta, flux):
    """An independent route: the tables integrate templates, the grid integrates the galaxy's own spectrum."""
    spectra = jax.jit(jax.vmap(lambda one: observed_flux(forward.galaxy, grid, one)))(jnp.asarray(theta[:64]))
    ratio = np.asarray(spectra @ grid.filters) / flux[:64, :5]
    bright = flux[:64, :5] > 1e-6 * flux[:64, :5].max(axis=1, keepdims=True)  # behind 20 mag of dust nobody looks
    assert np.abs(ratio[bright] - 1.0).max() < 0.005
    assert np.abs(np.median(ratio, axis=0) - 1.0).max() < 3e-4


@pytest.mark.parametrize("num", [7, 40, 300])
def test_pixels_wider_and_narrower_than_the_templates_steps(num):
    wave = np.geomspace(1000.0, 9000.0, 60)
    values = 1.0 + np.sin(wave / 700.0) ** 2
    edges = np.geomspace(1500.0, 8000.0, num + 1)
    fine = np.linspace(np.log(edges[:-1]), np.log(edges[1:]), 2001)
    expected = np.trapezoid(np.interp(np.exp(fine), wave, values), fine, axis=0) / np.diff(np.log(edges))
    found = pixel_means(jnp.asarray(wave), jnp.asarray(values), jnp.asarray(edges))
    assert np.allclose(found, expected, rtol=2e-3)
    assert np.isclose(np.sum(found * np.diff(np.log(edges))), np.sum(expected * np.diff(np.log(edges))), rtol=1e-4)


def test_a_filter_that_the_grid_cannot_tell():
    narrow = Filter("narrow", np.array([5000.0, 5001.0, 5002.0]), np.array([0.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match="filter narrow is narrower than three of 64 pixels: give \\[mocks\\] more"):
        build_grid([load_filter("sdss_r0"), narrow], 64)
    with pytest.raises(ValueError, match="at least one filter"):
        build_grid([], 64)


@pytest.fixture(scope="module")
def mocks(forward):
    return tiny_mocks(forward)


def test_an_untrained_decoder_is_near_the_mocks_mean(mocks):
    scales, decoder = build_scales(mocks), SpectrumDecoder(MOCKS.num_pixels, 16, 8)
    weights = jax.jit(decoder.init)(jax.random.key(0), jnp.zeros((1, 4)), scales)
    decoded = decoder.apply(weights, 0.1 * jnp.ones((3, 2, 4)), scales)
    assert decoded.flux.shape == (3, 2, MOCKS.num_pixels)
    assert np.abs(np.asarray(decoded.log_shape - scales.shape_mean)).max() < 0.1
    assert np.abs(np.asarray(decoded.log_level - scales.level_mean)).max() < 0.1 * scales.level_std + 0.1


def test_no_latent_decodes_to_what_is_no_number(mocks):
    scales, decoder = build_scales(mocks), SpectrumDecoder(MOCKS.num_pixels, 16, 8)
    weights = jax.jit(decoder.init)(jax.random.key(0), jnp.zeros((1, 4)), scales)
    for size in (1e3, -1e6):
        decoded = decoder.apply(jax.tree.map(lambda leaf: 30.0 * leaf, weights), jnp.full((1, 4), size), scales)
        assert np.isfinite(decoded.flux).all()


def test_the_level_scales_the_bands(mocks):
    shape = mocks.log_shape[:8]
    one = Decoded(shape, mocks.log_level[:8]).through(mocks.grid)
    ten = Decoded(shape, mocks.log_level[:8] + 1.0).through(mocks.grid)
    assert np.allclose(ten, 10.0 * one, rtol=1e-4)
    # 64 pixels are coarse; the mocks' photometry is the tables'.
    assert np.abs(np.asarray(one / mocks.flux[:8]) - 1.0).max() < 0.05


def test_spectra_are_those_of_the_theta(mocks, forward):
    theta = tiny_theta(forward, MOCKS.num_galaxies)
    assert np.allclose(mocks.theta, theta, rtol=1e-6)
    first = np.asarray(observed_flux(forward.galaxy, mocks.grid, jnp.asarray(theta[0])))
    assert np.allclose(10.0 ** (mocks.log_shape[0] + mocks.log_level[0]), first, rtol=1e-3)
