"""Mock images: relations of the literature, types and shapes that go together, planted kinds that are what they claim to be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.cosmology import Cosmology
from popsed_jax.observe.filters import load_filter
from popsed_jax.observe.images import ImageConfig
from popsed_jax.observe.operators import integrate_spectrum
from popsed_jax.population.image_mocks import (
    KINDS,
    ImageMockConfig,
    build_image_survey,
    is_red,
    old_population,
    rest_magnitudes,
    simulate_image_mocks,
)
from popsed_jax.population.morphology import (
    MorphologyConfig,
    Types,
    arcsec_per_kpc,
    early_radius,
    late_radius,
    sample_inclination,
    sample_shapes,
    spheroid_ratio,
)

CONFIG = MorphologyConfig()
NUM = 4000


def types_of(log_ssfr, log_mass=10.5, seed=0):
    tau = np.random.default_rng(seed).exponential(0.4, NUM)
    return Types(jnp.full(NUM, log_mass), jnp.full(NUM, log_ssfr), jnp.asarray(tau, float), jnp.full(NUM, 0.1))


def test_sizes_are_those_of_the_literature():
    """The fits of Shen+03: late types of 10^10 Msun 2.7 kpc, early ones of 10^11 Msun 4.2 kpc."""
    assert late_radius(10.0) == pytest.approx(2.66, abs=0.05)
    assert early_radius(11.0) == pytest.approx(4.16, abs=0.05)
    mass = np.linspace(8.0, 12.0, 50)
    assert np.all(np.diff(late_radius(mass)) > 0.0)
    assert np.all(np.diff(np.asarray(early_radius(mass))) > 0.0)
    assert early_radius(9.0) == pytest.approx(0.5 * late_radius(9.0))


def test_angles_against_astropy():
    from astropy.cosmology import FlatLambdaCDM

    expected = FlatLambdaCDM(70.0, 0.3).arcsec_per_kpc_proper([0.05, 0.3]).value
    np.testing.assert_allclose(arcsec_per_kpc(jnp.array([0.05, 0.3]), Cosmology()), expected, rtol=1e-4)


def test_quiescent_galaxies_have_bulges_and_star_forming_ones_discs():
    fractions = {}
    draw = jax.jit(lambda key, types: sample_shapes(key, types, CONFIG, Cosmology()))
    for log_ssfr in (-12.0, -10.7, -10.0):
        shape, fraction = draw(jax.random.key(0), types_of(log_ssfr))
        fractions[log_ssfr] = np.asarray(fraction)
        assert np.all((fraction > 0.0) & (fraction < 1.0))
        assert np.all((shape.axis_ratio > 0.19) & (shape.axis_ratio <= 1.0))
        assert np.abs(shape.orientation).max() <= 0.5 * np.pi
        # Discs are flatter than bulges seen from the same side.
        assert np.all(shape.axis_ratio[:, 1] <= shape.axis_ratio[:, 0])
    assert np.percentile(fractions[-12.0], 2.5) > 0.5 > np.percentile(fractions[-10.0], 97.5)
    assert np.median(fractions[-12.0]) > np.median(fractions[-10.7]) > np.median(fractions[-10.0])


def test_inclinations_are_isotropic_and_dusty_discs_edge_on():
    for log_ssfr, dusty in ((-10.0, True), (-12.0, False)):
        types = types_of(log_ssfr)
        cos = np.asarray(sample_inclination(jax.random.key(1), types, CONFIG), float)
        np.testing.assert_allclose(np.percentile(cos, [10, 50, 90]), [0.1, 0.5, 0.9], atol=0.03)
        rank = np.argsort(np.argsort(np.asarray(types.tau_v)))
        correlation = np.corrcoef(rank, cos)[0, 1]
        assert correlation < -0.7 if dusty else abs(correlation) < 0.05


def test_spheroids():
    assert spheroid_ratio(jnp.array(1.0), 0.2) == pytest.approx(1.0)
    assert spheroid_ratio(jnp.array(0.0), 0.2) == pytest.approx(0.2)


def test_an_old_population_is_red(forward, theta):
    old = old_population(forward, theta)
    kept = [
        i for i, name in enumerate(forward.space.names) if name in ("redshift", "log_mass", "logzsol", "dust_index")
    ]
    np.testing.assert_array_equal(old[:, kept], theta[:, kept])
    clear = np.array(theta)
    for name in ("tau_v", "tau_birth"):
        clear[:, forward.space.index(name)] = 0.05
    flux, of_old = (np.asarray(jax.jit(type(forward).flux)(forward, jnp.asarray(each))) for each in (clear, old))
    # All but the youngest of bases' mixtures; bursts may be as old as the Universe.
    assert np.mean(of_old[:, 1] / of_old[:, 3] < 1.02 * flux[:, 1] / flux[:, 3]) > 0.95


def test_rest_frame_magnitudes_are_the_full_integral(forward, theta):
    few = theta[:20]
    found = rest_magnitudes(forward, few)
    wave, curves = np.asarray(forward.galaxy.ssp.wave), [load_filter(name) for name in ("sdss_g0", "sdss_r0")]
    spectra = [np.asarray(forward.galaxy.spectrum(jnp.asarray(one)), float) for one in few]
    expected = -2.5 * np.log10([integrate_spectrum(wave, spectrum, 0.0, curves) for spectrum in spectra])
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_red_is_redder_than_the_blue_edge_of_the_red_sequence(forward, theta):
    config = ImageMockConfig()
    red = is_red(forward, theta, config)
    g, r = rest_magnitudes(forward, theta).T
    np.testing.assert_array_equal(red, g - r > 0.63 - 0.02 * (r + 20.0))
    assert 0.05 < red.mean() < 0.95
    # By dust or by age.
    clear = np.array(theta)
    for name in ("tau_v", "tau_birth"):
        clear[:, forward.space.index(name)] = 0.05
    without = is_red(forward, clear, config).mean()
    assert without < red.mean() - 0.1
    assert without < is_red(forward, old_population(forward, theta), config).mean()
    assert is_red(forward, theta, dataclasses.replace(config, spiral_color=(-np.inf, 0.0))).all()
    assert is_red(forward, theta[:0], config).shape == (0,)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"filters": ("decam_g",)}, "1 filters, but 3 bands"),
        ({"reference": 3}, "0 to 2"),
        ({"anomalies": 0.5}, "below 0.5"),
        ({"redshift": (0.4, 0.1)}, "must rise"),
    ],
)
def test_impossible_mocks(change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(ImageMockConfig(), **change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quenched": -10.0}, "must be below"),
        ({"size_scatter": -0.1}, "must not be negative"),
        ({"thickness": 0.0}, "thickness = 0.0"),
        ({"flattening": (0.9, 0.5)}, "must rise"),
        ({"dust_inclination": 1.0}, "below 1"),
    ],
)
def test_impossible_shapes(change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.slow
def test_mocks_are_what_the_survey_sees():
    config = ImageMockConfig(anomalies=0.1, images=ImageConfig(size=16))
    forward = build_image_survey(config)
    mocks = simulate_image_mocks(jax.random.key(0), forward, 400, config)
    assert mocks.image.shape == (400, 16, 16, 3)
    assert np.bincount(mocks.kind).tolist() == [320, 40, 40]
    again = simulate_image_mocks(jax.random.key(0), forward, 400, config)
    np.testing.assert_array_equal(mocks.image, again.image)
    mag = -2.5 * np.log10(mocks.flux)
    assert mag[:, config.reference].max() < config.limit + 0.3
    # Small galaxies' light is all in their images.
    small = mocks.truth["radius"] < 1.0
    ratio = mocks.image.sum(axis=(1, 2))[small] / mocks.flux[small]
    assert np.median(np.abs(ratio - 1.0)) < 0.05
    ordinary, starburst, spiral = (
        {name: each[mocks.kind == k] for name, each in mocks.truth.items()} for k in range(3)
    )
    ssfr = [each["log_sfr"] - each["log_mass"] for each in (ordinary, starburst, spiral)]
    assert np.median(ssfr[1]) > np.percentile(ssfr[0], 90)
    assert ssfr[2].max() < -11.0
    assert np.median(starburst["radius"]) < 0.4 * np.median(ordinary["radius"])
    assert spiral["bulge"].max() <= config.spiral_bulge
    assert is_red(forward, mocks.theta[mocks.kind == 2], config).all()
    assert np.median(ordinary["bulge"][ssfr[0] < -11.5]) > 0.6
    color = mag[:, 0] - mag[:, 1]
    assert np.median(color[mocks.kind == 2]) > np.median(color[mocks.kind == 0])
    assert len(KINDS) == 3
