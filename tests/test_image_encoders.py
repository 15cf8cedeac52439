"""Networks of images: patches are convolutions, shapes fit, every pixel counts, speed allows a survey."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
        weights = init_image_networks(key, 5, config)
        moments = ImageEncoder(5, config).apply(weights["encoder"], image)
        return moments, ImageDecoder(config).apply(weights["decoder"], moments.mean)

    image = jax.ShapeDtypeStruct((3, config.size, config.size, config.num_bands), float)
    moments, again = jax.eval_shape(there_and_back, jax.random.key(0), image)
    assert moments.mean.shape == moments.log_var.shape == (3, 5)
    assert again.shape == image.shape


def test_every_pixel_counts_and_every_galaxy_is_by_itself():
    weights = init_image_networks(jax.random.key(0), 3, SMALL)
    image = jax.random.normal(jax.random.key(1), (4, 16, 16, 2))
    encode = jax.jit(lambda image: ImageEncoder(3, SMALL).apply(weights["encoder"], image).mean)
    slope = np.asarray(jax.jit(jax.grad(lambda image: jnp.sum(encode(image)[1] ** 2)))(image))
    assert np.all(slope[1] != 0.0)
    assert np.all(slope[[0, 2, 3]] == 0.0)
    # Brightness is information: no norm removes it.
    assert np.abs(encode(2.0 * image) - encode(image)).max() > 1e-4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"channels": ()}, "one or more"),
        ({"channels": (4, 0)}, "one or more"),
        ({"hidden": 0}, "hidden = 0"),
        ({"num_bands": 0}, "num_bands = 0"),
        ({"bottleneck": 0}, "bottleneck = 0"),
        ({"size": 18}, "take a multiple of 4"),
        ({"size": 2}, "cannot be halved 2 times"),
    ],
)
def test_impossible_networks(change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(SMALL, **change)
