"""Zero points, template error and learned noise floors: what they do to fluxes, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.observe.calibration import Calibration, CalibrationConfig, build_calibration

BANDS, FILTERS = ("g", "r", "z"), ("sdss_g0", "sdss_r0", "sdss_z0")
NUM_KNOTS = 8


def build(**changes):
    config = CalibrationConfig(offset_sigma=0.05, template_sigma=0.1, template_knots=NUM_KNOTS, floor_sigma=0.3)
    return build_calibration(dataclasses.replace(config, **changes), BANDS, FILTERS, "r")


def one(model, **parts):
    start = jax.tree.map(lambda leaf: leaf[0], model.start(1))
    return start._replace(**{name: jnp.asarray(value) for name, value in parts.items()})


def test_no_change_at_the_start():
    model = build()
    factors = model.factors(one(model), jnp.array([0.0, 0.5, 2.0]))
    np.testing.assert_array_equal(factors, 1.0)
    assert float(model.penalty(one(model))) == 0.0


def test_a_zero_point_is_a_magnitude_and_the_best_band_is_pinned():
    model = build()
    factors = model.factors(one(model, offset=[1.0, 1.0, -2.0]), jnp.array([0.1]))
    np.testing.assert_allclose(-2.5 * np.log10(factors[0]), [0.05, 0.0, -0.1], atol=1e-6)
    named = build(pinned="z", offset_sigmas={"r": 0.01})
    np.testing.assert_allclose(named.offset_sigma, [0.05, 0.01, 0.0])


def test_template_error_belongs_to_the_rest_frame():
    """A bump at a rest-frame wavelength enters a band at the redshift at which the band sees it."""
    model = build()
    bump = np.zeros(NUM_KNOTS)
    bump[3] = 1.0
    knot = float(np.exp(model.knots[3]))
    redshift = jnp.linspace(0.0, 2.0, 41)
    error = -2.5 * np.log10(model.factors(one(model, template=bump), redshift))
    for band in range(3):
        seen = float(redshift[np.argmax(error[:, band])])
        expected = float(model.wave[band]) / knot - 1.0
        if 0.1 < expected < 1.9:
            assert seen == pytest.approx(expected, abs=0.06)
    # All knots alike: the same error everywhere.
    level = model.factors(one(model, template=np.ones(NUM_KNOTS)), redshift)
    np.testing.assert_allclose(-2.5 * np.log10(level), 0.1, atol=1e-5)


def test_a_prior_mean_of_the_template_error_is_where_learning_starts():
    means = np.linspace(-0.1, 0.1, NUM_KNOTS)
    model = build(template_means=tuple(means.tolist()))
    shares = model.knot_shares(model.wave / 1.3)
    np.testing.assert_allclose(jnp.sum(shares, axis=-1), 1.0, atol=1e-6)
    factors = model.factors(one(model), jnp.array([0.3]))
    np.testing.assert_allclose(-2.5 * np.log10(factors[0]), shares @ means, atol=1e-6)
    assert float(model.penalty(one(model))) == 0.0


def test_each_galaxy_may_have_its_members_calibration():
    model, redshift = build(), jnp.array([0.1, 0.4])
    rng = np.random.default_rng(0)
    many = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), model.start(2))
    together = model.factors(many, redshift)
    for i in range(2):
        alone = model.factors(jax.tree.map(lambda leaf, i=i: leaf[i], many), redshift[i : i + 1])
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-5)


def test_floors_are_learned_in_dex(noise):
    five = build_calibration(
        CalibrationConfig(floor_sigma=0.3),
        [f"{i}" for i in range(5)],
        [*FILTERS, *FILTERS[:2]],
        "4",
    )
    quiet = dataclasses.replace(noise, floor=jnp.full(5, 0.02))
    louder = five.noise(one(five, floor=[1.0, 0.0, -1.0, 0.0, 0.0]), quiet)
    np.testing.assert_allclose(louder.floor, 0.02 * 10.0 ** np.array([0.3, 0.0, -0.3, 0.0, 0.0]), rtol=1e-5)


def test_slopes_match_finite_differences():
    with jax.enable_x64(True):
        model, redshift = build(), jnp.array([0.1, 0.7])
        rng = np.random.default_rng(1)
        at = Calibration(*(jnp.asarray(rng.normal(size=shape)) for shape in (3, NUM_KNOTS, 3)))

        def total(calibration):
            weight = jnp.asarray(rng_weights)
            return jnp.sum(weight * model.factors(calibration, redshift)) + model.penalty(calibration)

        rng_weights = rng.normal(size=(2, 3))
        gradient = jax.jit(jax.grad(total))(at)
        for part, slope in zip(at._fields, gradient, strict=True):
            direction = rng.normal(size=slope.shape)
            up, down = (
                total(at._replace(**{part: getattr(at, part) + sign * 1e-6 * direction})) for sign in (1.0, -1.0)
            )
            np.testing.assert_allclose(jnp.sum(slope * direction), (up - down) / 2e-6, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"offset_sigma": -0.1}, "offset_sigma = -0.1 must not be negative"),
        ({"template_sigma": float("nan")}, "template_sigma = nan"),
        ({"offset_sigmas": {"u": -1.0}}, r"offset_sigmas\.u = -1.0"),
        ({"offset_means": {"u": float("nan")}}, r"offset_means\.u = nan"),
        ({"template_knots": 1}, "template_knots = 1"),
        ({"template_means": (0.1, 0.0)}, "template_means has 2 numbers for 12 template_knots"),
        ({"template_means": (float("inf"),) * 12}, "template_means must be finite"),
    ],
)
def test_settings_are_checked(settings, words):
    with pytest.raises(ValueError, match=f"calibration: {words}"):
        CalibrationConfig(**settings)


@pytest.mark.parametrize("settings", [{"pinned": "y"}, {"offset_sigmas": {"y": 0.1}}, {"offset_means": {"y": 0.1}}])
def test_bands_that_are_not_there(settings):
    with pytest.raises(ValueError, match="calibration: the catalogue has no band 'y'; it has g, r, z"):
        build(**settings)
