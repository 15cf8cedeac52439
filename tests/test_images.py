"""Images of galaxies: light is conserved, rotation rotates, gradients are right, and two other renderers agree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.special import gammaincinv

from popsed_jax.observe.images import (
    ImageConfig,
    Shape,
    build_image_simulator,
    pixel_noise,
    psf_transform,
    sersic_transform,
    split_flux,
)

ONE_BAND = {"fwhm": (1.2,), "sigma": (1e-12,)}
CONFIGS = {
    "default": ImageConfig(),
    "Gaussian": ImageConfig(beta=None),
    "steep bulge": ImageConfig(size=16, bulge_index=6.0, padding=3, **ONE_BAND),
    "flat bulge": ImageConfig(size=24, bulge_index=0.5, beta=2.5, fold=3, **ONE_BAND),
}
FLUX = np.array([[1.0, 2.0, 3.0], [5.0, 4.0, 3.0]])


def shape_of(radius=(0.8, 2.0), axis_ratio=(0.7, 0.4), orientation=0.5, centre=(0.0, 0.0)):
    return Shape(*(jnp.asarray(each, dtype=float) for each in (radius, axis_ratio, orientation, centre)))


@pytest.fixture(scope="module")
def simulator():
    return build_image_simulator()


@pytest.fixture(scope="module")
def draw(simulator):
    compiled = jax.jit(lambda flux, shape: simulator.image(flux, shape))
    return lambda **shape: np.asarray(compiled(jnp.asarray(FLUX), shape_of(**shape)), float)


@pytest.mark.parametrize("name", CONFIGS)
def test_light_is_conserved(name):
    simulator = build_image_simulator(CONFIGS[name])
    flux = jnp.asarray(FLUX[:, : simulator.config.num_bands])
    for radius in ((0.01, 0.01), (1.0, 2.0), (6.0, 5.0)):
        field = jax.jit(simulator.field)(flux, shape_of(radius, centre=(0.2, -0.4)))
        np.testing.assert_allclose(np.asarray(field, float).sum(axis=(0, 1)), flux.sum(axis=0), rtol=1e-5)


def test_nearly_all_light_of_a_small_galaxy_is_in_the_image(draw):
    image = draw(radius=(0.2, 0.3))
    np.testing.assert_allclose(image.sum(axis=(0, 1)), FLUX.sum(axis=0), rtol=0.01)
    assert image.min() > -1e-4 * image.max()


def test_light_is_linear_in_flux(simulator):
    one, other = jnp.asarray(FLUX), jnp.asarray(FLUX[::-1].copy())
    image = jax.jit(lambda flux: simulator.image(flux, shape_of()))
    np.testing.assert_allclose(image(one + 2.0 * other), image(one) + 2.0 * image(other), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("angle", [-1.5, -0.7, 0.0, 0.3, 1.2])
def test_rotation_and_reflection(draw, angle):
    image, largest = draw(orientation=angle), FLUX.max()
    # Columns run along the second axis: a quarter turn takes column to row and row to minus column.
    turned = np.transpose(image, (1, 0, 2))[:, ::-1]
    for other, expected in ((angle + np.pi / 2, turned), (angle + np.pi, image), (-angle, image[::-1])):
        np.testing.assert_allclose(draw(orientation=other), expected, atol=2e-6 * largest)


@pytest.mark.parametrize("angle", [-1.4, -0.4, 0.25, 1.0])
def test_the_longest_axis_lies_at_the_orientation(draw, angle):
    image = draw(orientation=angle)[..., 0]
    y, x = np.mgrid[: len(image), : len(image)] - 0.5 * (len(image) - 1)
    weight = image * np.exp(-0.5 * (x**2 + y**2) / 3.0**2)
    xx, yy, xy = (np.sum(weight * product) for product in (x * x, y * y, x * y))
    assert 0.5 * np.arctan2(2.0 * xy, xx - yy) == pytest.approx(angle, abs=0.01)


def test_a_shifted_galaxy_is_the_same_galaxy_elsewhere(draw, simulator):
    image, pixel = draw(), simulator.config.pixel_scale
    moved = draw(centre=(2.0 * pixel, -3.0 * pixel))
    np.testing.assert_allclose(moved[2:, :-3], image[:-2, 3:], atol=1e-5)


def test_a_vanishing_galaxy_is_the_psf(draw):
    for radius in (1e-3, 1e-6, 0.0):
        np.testing.assert_allclose(draw(radius=(radius, radius)), draw(radius=(1e-4, 1e-4)), atol=2e-5)


@pytest.mark.parametrize(("index", "radius"), [(1.0, 2.0), (2.0, 2.5)])
def test_against_a_grid_of_small_squares(index, radius):
    """Independent: the profile on squares a fifteenth of a pixel wide, blurred by SciPy and summed up."""
    config = ImageConfig(size=24, pixel_scale=0.5, beta=None, bulge_index=index, padding=4, **ONE_BAND)
    fine, num, angle, ratio = 15, 3 * 24, 0.4, 0.6
    x = (np.arange(num * fine) + 0.5 - 0.5 * num * fine) * config.pixel_scale / fine
    major, minor = x * np.cos(angle) + x[:, None] * np.sin(angle), x[:, None] * np.cos(angle) - x * np.sin(angle)
    profile = np.exp(-gammaincinv(2.0 * index, 0.5) * (np.hypot(major, minor / ratio) / radius) ** (1.0 / index))
    profile /= profile.sum()
    width = config.fwhm[0] / np.sqrt(8.0 * np.log(2.0)) / config.pixel_scale * fine
    blurred = gaussian_filter(profile, width, mode="constant").reshape(num, fine, num, fine).sum(axis=(1, 3))
    expected = blurred[24:48, 24:48]
    shape = shape_of((radius, 1.0), (ratio, 1.0), angle)
    draw = jax.jit(build_image_simulator(config).image)
    image = np.asarray(draw(jnp.array([[1.0], [0.0]]), shape))[..., 0]
    assert np.abs(image - expected).max() < 6e-3 * expected.max()  # the cusp on the squares
    if index == 1.0:  # an exponential bulge is a disc
        disc = draw(jnp.array([[0.0], [1.0]]), shape_of((1.0, radius), (1.0, ratio), angle))
        np.testing.assert_allclose(disc[..., 0], image, atol=1e-4 * image.max())


CASES = {
    "ordinary": {},
    "round, at the middle": {"axis_ratio": (1.0, 1.0), "orientation": 0.0},
    "edge-on": {"axis_ratio": (0.3, 0.1), "radius": (0.5, 4.0), "orientation": 1.5, "centre": (0.3, -0.2)},
    "a point": {"radius": (0.02, 0.03)},
}


@pytest.fixture(scope="module")
def slopes():
    """Gradient and differences of a weighted sum of pixels by fluxes and shape, compiled once in double precision."""
    with jax.enable_x64(True):
        simulator = build_image_simulator(ImageConfig(size=12, beta=3.0))
        weights = jnp.asarray(np.random.default_rng(0).normal(size=(12, 12, 3)))

    def value(flat):
        parts = (flat[6:8], flat[8:10], flat[10], flat[11:13])
        return jnp.sum(weights * simulator.image(flat[:6].reshape(2, 3), Shape(*parts)))

    @jax.jit
    def both(flat):
        points = flat + 1e-5 * jnp.concatenate([jnp.eye(len(flat)), -jnp.eye(len(flat))])
        up, down = jnp.split(jax.lax.map(value, points), 2)
        return jax.grad(value)(flat), (up - down) / 2e-5

    return both


@pytest.mark.parametrize("case", CASES)
def test_gradients_against_finite_differences(case, slopes):
    with jax.enable_x64(True):
        shape = shape_of(**CASES[case])
        flat = jnp.concatenate([jnp.asarray(FLUX).ravel(), *(jnp.ravel(each) for each in shape)])
        gradient, difference = map(np.asarray, slopes(flat))
    assert gradient.dtype == np.float64
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(gradient, difference, rtol=1e-4, atol=1e-6)
    assert np.all(gradient[:6] != 0.0)


def test_gradients_are_finite_at_the_edge_of_the_parameters():
    simulator = build_image_simulator(ImageConfig(size=8))
    shape = shape_of((0.0, 0.0), (1.0, 1.0), 0.0)
    slope = jax.jit(jax.grad(lambda shape: simulator.image(jnp.asarray(FLUX), shape)[4, 4, 0]))
    assert all(np.all(np.isfinite(leaf)) for leaf in slope(shape))


def test_one_compilation_for_all_galaxies(simulator):
    traced = []

    @jax.jit
    def many(simulator, flux, shape):
        traced.append(1)
        return jax.vmap(simulator.image)(flux, shape)

    for seed in range(2):
        rng = np.random.default_rng(seed)
        shape = Shape(*(jnp.asarray(rng.uniform(0.2, 1.0, size)) for size in ((4, 2), (4, 2), (4,), (4, 2))))
        assert many(simulator, jnp.asarray(rng.random((4, 2, 3))), shape).shape == (4, 32, 32, 3)
    assert len(traced) == 1


def test_noise_has_each_bands_width(simulator):
    image = jnp.ones((32, 32, 3))
    seen = jax.vmap(lambda key: simulator.observe(key, jnp.zeros((32, 32, 3))))(jax.random.split(jax.random.key(0), 30))
    np.testing.assert_allclose(np.std(seen, axis=(0, 1, 2)), simulator.config.sigma, rtol=0.03)
    assert np.abs(np.mean(simulator.observe(jax.random.key(1), image) - image)) < 1e-6


def test_noise_from_a_depth():
    """In an aperture of the quoted diameter the noise is the depth's flux over its significance."""
    sigma = pixel_noise(np.array([24.7, 24.4, 23.1]), 1.95, 0.526)
    np.testing.assert_allclose(sigma, ImageConfig().sigma, rtol=0.02)
    pixels = np.pi * (0.5 * 1.95) ** 2 / 0.526**2
    np.testing.assert_allclose(-2.5 * np.log10(10.0 * sigma * np.sqrt(pixels)), [24.7, 24.4, 23.1], rtol=1e-6)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.6, 1.0])
def test_bulge_and_disc_share_the_galaxys_light(fraction):
    total, old = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.02, 0.08, 0.16])
    bulge, disc = split_flux(total, old, jnp.asarray(fraction), 1)
    np.testing.assert_allclose(bulge + disc, total, rtol=1e-6)
    assert bulge[1] == pytest.approx(2.0 * fraction)
    assert np.all(np.asarray(bulge) >= 0.0)
    assert np.all(np.asarray(disc) >= 0.0)
    if 0.0 < fraction < 1.0:  # the bulge is redder than the galaxy, the disc bluer
        assert bulge[0] / bulge[2] < total[0] / total[2] < disc[0] / disc[2]


def test_a_small_bulge_has_the_old_colours():
    total, old = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.02, 0.08, 0.16])
    bulge = split_flux(total, old, jnp.asarray(1e-4), 1)[0]
    np.testing.assert_allclose(bulge / bulge[1], old / old[1], rtol=1e-3)


def test_transforms_start_at_one_and_fall():
    for index in (0.5, 1.0, 4.0):
        value, slope = sersic_transform(index)
        assert value[0] == pytest.approx(1.0, abs=1e-4)
        assert np.all(slope < 1e-6)
    k = np.array([0.0, 1.0, 2.0])
    np.testing.assert_allclose(psf_transform(k, 1.0, 40.0), psf_transform(k, 1.0, None), atol=0.01)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 2}, "size = 2 must be at least 4"),
        ({"padding": 0}, "padding = 0"),
        ({"fold": 0}, "fold = 0"),
        ({"pixel_scale": 0.0}, "must be positive"),
        ({"fwhm": (1.0,)}, "1 bands have a PSF"),
        ({"fwhm": (0.4, 1.0, 1.0)}, "below a pixel"),
        ({"sigma": (-1.0, 1.0, 1.0)}, "must not be negative"),
        ({"beta": 1.0}, "beta = 1.0"),
        ({"bulge_index": 8.0}, "bulge_index = 8.0"),
    ],
)
def test_impossible_images(change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(ImageConfig(), **change)


@pytest.mark.comparison
@pytest.mark.parametrize("beta", [3.0, None])
@pytest.mark.parametrize("index", [2.5, 4.0])
def test_against_galsim(beta, index):
    """Within 0.2 % of the peak for galaxies that fit into the field, of any shape and place."""
    galsim = pytest.importorskip("galsim")
    config = ImageConfig(beta=beta, bulge_index=index)
    draw, rng = jax.jit(build_image_simulator(config).image), np.random.default_rng(1)
    for _ in range(12):
        radius, ratio = np.exp(rng.uniform(np.log(0.05), np.log(4.0), 2)), rng.uniform(0.2, 1.0, 2)
        angle, centre, flux = rng.uniform(-1.5, 1.5), rng.uniform(-0.3, 0.3, 2), rng.uniform(0.1, 1.0, (2, 3))
        image = np.asarray(draw(jnp.asarray(flux), shape_of(radius, ratio, angle, centre)))
        for band, fwhm in enumerate(config.fwhm):
            kinds = (galsim.Sersic(index, half_light_radius=1.0), galsim.Exponential(half_light_radius=1.0))
            parts = [
                kind.dilate(r * np.sqrt(q)).shear(q=q, beta=angle * galsim.radians).withFlux(f)
                for kind, r, q, f in zip(kinds, radius, ratio, flux[:, band], strict=True)
            ]
            psf = galsim.Gaussian(fwhm=fwhm) if beta is None else galsim.Moffat(beta, fwhm=fwhm)
            galaxy = galsim.Convolve(galsim.Sum(parts), psf).shift(centre[1], centre[0])
            expected = galaxy.drawImage(nx=32, ny=32, scale=config.pixel_scale).array
            assert np.abs(image[..., band] - expected).max() < 2e-3 * expected.max()
