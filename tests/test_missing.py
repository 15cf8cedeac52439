"""Missing bands: the patterns of simulated galaxies, and the space in which galaxies of all patterns are compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.observe.missing import band_patterns, build_missing_bands
from popsed_jax.population.space import build_space
from popsed_jax.transport import sinkhorn_divergence

SIGMA = 1e-10


def survey(num, seed, patchy=True):
    """Three bands of one population; the second is mostly missing for faint galaxies, the third for a fifth of all."""
    rng = np.random.default_rng(seed)
    mag = rng.normal(20.0, 1.0, num)
    color = 0.3 * (mag - 20.0) + rng.normal(0.8, 0.2, num)
    flux = 10.0 ** (-0.4 * np.stack([mag, mag - color, mag - 1.6 * color + rng.normal(0.0, 0.05, num)], axis=1))
    flux = flux + SIGMA * rng.normal(size=flux.shape)
    if patchy:
        flux[rng.random(num) < 1.0 / (1.0 + np.exp(-3.0 * (mag - 20.3))), 1] = np.nan
        flux[rng.random(num) < 0.2, 2] = np.nan
    return flux


def test_no_gaps_no_patterns():
    flux = survey(100, 0, patchy=False)
    assert build_missing_bands(flux) is None
    patterns, pattern = band_patterns(flux)
    assert patterns.tolist() == [[True] * 3]
    np.testing.assert_array_equal(pattern, 0)


def test_patterns_are_those_of_galaxies_as_bright():
    missing = build_missing_bands(survey(4000, 1))
    assert missing.anchor == 0
    whole = survey(4000, 2, patchy=False)
    present = np.asarray(missing.patterns)[np.asarray(missing.draw(jax.random.key(0), jnp.asarray(whole)))]
    truth = np.isfinite(survey(4000, 2))
    bright = whole[:, 0] > 10.0 ** (-0.4 * 20.0)
    for chosen in (bright, ~bright):
        # 2,000 galaxies each: a standard deviation of the difference is 0.014.
        np.testing.assert_allclose(present[chosen].mean(axis=0), truth[chosen].mean(axis=0), atol=0.05)
    assert present[bright, 1].mean() > present[~bright, 1].mean() + 0.4


def test_galaxies_without_the_anchor_are_as_many():
    flux = survey(2000, 3)
    flux[:150, 0] = np.nan
    flux[:150, 1] = 1e-8
    missing = build_missing_bands(flux)
    drawn = missing.draw(jax.random.key(1), jnp.asarray(survey(20_000, 4, patchy=False)))
    without = ~np.asarray(missing.patterns)[np.asarray(drawn), missing.anchor]
    assert without.mean() == pytest.approx(150 / 2000, abs=0.01)


def test_what_is_there_is_kept_and_what_is_not_does_not_matter():
    flux = survey(500, 5)
    missing, (_, pattern) = build_missing_bands(flux), band_patterns(flux)
    space = build_space("balanced", flux, np.full(flux.shape, SIGMA), np.full(3, SIGMA))
    mags = space.mags(jnp.asarray(flux), jnp.asarray(pattern))
    assert bool(jnp.all(jnp.isfinite(space.features(mags))))
    there = np.isfinite(flux)
    whole = np.asarray(space.mags(jnp.asarray(np.nan_to_num(flux, nan=1.0))))
    np.testing.assert_allclose(np.asarray(mags)[there], whole[there], rtol=1e-5)
    np.testing.assert_allclose(mags, space.mags(jnp.asarray(np.nan_to_num(flux, nan=7e-9)), jnp.asarray(pattern)))
    np.testing.assert_array_equal(space.patterns, missing.patterns)
    broken = np.where(there, np.nan, 0.0)  # a flux that is no number, in a band that is there, is not hidden
    assert bool(jnp.all(jnp.any(jnp.isnan(space.mags(jnp.asarray(broken), jnp.asarray(pattern))), axis=1)))


def test_missing_magnitudes_are_predicted_from_the_others():
    """The third band follows from the first two to 0.05 mag; with gaps all over, the regression still finds that."""
    flux, whole = survey(4000, 6), survey(4000, 6, patchy=False)
    _, pattern = band_patterns(flux)
    space = build_space("balanced", flux, np.full(flux.shape, SIGMA), np.full(3, SIGMA))
    filled = np.asarray(space.mags(jnp.asarray(flux), jnp.asarray(pattern)))
    true = np.asarray(space.mags(jnp.asarray(whole)))
    lost = ~np.isfinite(flux[:, 2]) & np.isfinite(flux[:, 1])
    assert np.std((filled - true)[lost, 2]) < 0.1
    assert abs(np.mean((filled - true)[lost, 2])) < 0.02


def test_the_distance_vanishes_for_the_same_population_and_sees_a_shift_behind_the_gaps():
    """Unbiased: with patterns drawn for complete simulations, the observed survey is at the noise floor, others are not."""
    observed = survey(1500, 7)
    missing, (_, pattern) = build_missing_bands(observed), band_patterns(observed)
    space = build_space("balanced", observed, np.full(observed.shape, SIGMA), np.full(3, SIGMA))
    data = space.features(space.mags(jnp.asarray(observed), jnp.asarray(pattern)))

    def distance(flux, key):
        drawn = missing.draw(jax.random.key(key), jnp.asarray(flux))
        return float(sinkhorn_divergence(space.features(space.mags(jnp.asarray(flux), drawn)), data, 0.3))

    other = survey(1500, 8)
    _, pattern_other = band_patterns(other)
    floor = float(
        sinkhorn_divergence(space.features(space.mags(jnp.asarray(other), jnp.asarray(pattern_other))), data, 0.3)
    )
    same = distance(survey(1500, 9, patchy=False), 1)
    redder = survey(1500, 9, patchy=False) * np.array([1.0, 10.0**0.06, 1.0])
    assert same < 1.5 * floor
    assert distance(redder, 1) > 3.0 * same


def test_slopes_do_not_reach_missing_bands():
    flux = survey(200, 10)
    _, pattern = band_patterns(flux)
    space = build_space("balanced", flux, np.full(flux.shape, SIGMA), np.full(3, SIGMA))
    whole = jnp.asarray(survey(200, 10, patchy=False))
    slope = jax.jit(jax.grad(lambda f: jnp.sum(space.features(space.mags(f, jnp.asarray(pattern))))))(whole)
    assert bool(jnp.all(jnp.isfinite(slope)))
    np.testing.assert_array_equal(np.asarray(slope)[~np.isfinite(flux)], 0.0)
