"""Networks of images: patches are convolutions, shapes fit, every pixel counts, speed allows a survey."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.posteriors.apertures import aperture_fluxes, fit_whitening
from popsed_jax.posteriors.image_encoders import (
    ImageDecoder,
    ImageEncoder,
    ImageNetworkConfig,
    double_resolution,
    init_image_networks,
    patches,
)

SMALL = ImageNetworkConfig(size=16, num_bands=2, channels=(4, 6), bottleneck=4, hidden=8)


@pytest.mark.parametrize(("width", "stride"), [(4, 2), (3, 1), (2, 2)])
def test_a_dense_layer_on_patches_is_a_convolution(width, stride):
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(2, 8, 8, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(width, width, 3, 5)), jnp.float32)
    before = (width - stride) // 2
    padding = [(before, width - stride - before)] * 2
    expected = jax.lax.conv_general_dilated(
        image, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    found = patches(image, width, stride) @ kernel.reshape(-1, 5)
    assert found.shape == (2, 8 // stride, 8 // stride, 5)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_doubling_keeps_every_number_at_its_place():
    x = jnp.arange(2 * 3 * 3 * 8).reshape(2, 3, 3, 8)
    doubled = double_resolution(x)
    assert doubled.shape == (2, 6, 6, 2)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        where = 2 * (2 * row + column)
        np.testing.assert_array_equal(doubled[:, row::2, column::2], x[..., where : where + 2])


@pytest.mark.parametrize("config", [SMALL, ImageNetworkConfig(), ImageNetworkConfig(size=48)], ids=lambda c: c.size)
def test_shapes(config):
    def there_and_back(key, image):
        weights = init_image_networks(key, 5, config, channels=7, features=2)
        moments = ImageEncoder(5, config).apply(weights["encoder"], image, jnp.zeros((3, 2)))
        return moments, ImageDecoder(config).apply(weights["decoder"], moments.mean)

    image = jax.ShapeDtypeStruct((3, config.size, config.size, 7), float)
    moments, again = jax.eval_shape(there_and_back, jax.random.key(0), image)
    assert moments.mean.shape == moments.log_var.shape == (3, 5)
    assert again.shape == (3, config.size, config.size, config.num_bands)


def test_every_pixel_counts_and_every_galaxy_is_by_itself():
    weights = init_image_networks(jax.random.key(0), 3, SMALL, channels=2, features=5)
    image, features = jax.random.normal(jax.random.key(1), (4, 16, 16, 2)), jax.random.normal(jax.random.key(2), (4, 5))
    encode = jax.jit(lambda *seen: ImageEncoder(3, SMALL).apply(weights["encoder"], *seen).mean)
    for slope in jax.jit(jax.grad(lambda *seen: jnp.sum(encode(*seen)[1] ** 2), argnums=(0, 1)))(image, features):
        assert np.all(slope[1] != 0.0)
        assert np.all(slope[jnp.array([0, 2, 3])] == 0.0)
    # Brightness is information: no norm removes it.
    assert np.abs(encode(2.0 * image, features) - encode(image, features)).max() > 1e-4


@pytest.mark.parametrize("size", [15, 16])
def test_apertures_are_sums_over_circles(size):
    image = np.random.default_rng(0).normal(size=(3, size, size, 2)).astype(np.float32)
    radii = (1.0, 3.5, 40.0)
    found = np.asarray(aperture_fluxes(jnp.asarray(image), radii))
    middle = 0.5 * (size - 1)
    for i, radius in enumerate(radii):
        inside = [(y, x) for y in range(size) for x in range(size) if np.hypot(y - middle, x - middle) <= radius]
        expected = sum(image[:, y, x].astype(float) for y, x in inside)
        np.testing.assert_allclose(found[:, i], expected, rtol=1e-4, atol=1e-4)
    turned_over = np.asarray(aperture_fluxes(jnp.asarray(image[:, ::-1].swapaxes(1, 2).copy()), radii))
    np.testing.assert_allclose(turned_over, found, rtol=1e-4, atol=1e-4)


def test_whitened_fluxes_are_standard_and_uncorrelated():
    rng = np.random.default_rng(0)
    together = rng.normal(size=(5000, 1))
    fluxes = 3.0 + together + rng.normal(size=(5000, 4)) * [0.3, 0.1, 0.03, 0.01]
    white = np.asarray(fit_whitening(fluxes)(jnp.asarray(fluxes, jnp.float32)), float)
    np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(4), atol=0.01)
    np.testing.assert_allclose(white.mean(axis=0), 0.0, atol=1e-3)
    # A flux that is always the same says nothing, and is no reason for numbers without bounds.
    constant = np.concatenate([fluxes, np.full((5000, 1), 2.0)], axis=1)
    assert np.all(np.isfinite(fit_whitening(constant)(jnp.asarray(constant, jnp.float32))))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"channels": ()}, "one or more"),
        ({"channels": (4, 0)}, "one or more"),
        ({"hidden": 0}, "hidden = 0"),
        ({"num_blocks": 0}, "num_blocks = 0"),
        ({"num_bands": 0}, "num_bands = 0"),
        ({"bottleneck": 0}, "bottleneck = 0"),
        ({"size": 18}, "take a multiple of 4"),
        ({"size": 2}, "cannot be halved 2 times"),
    ],
)
def test_impossible_networks(change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(SMALL, **change)
