"""Calibration tests on posteriors whose answer is known: exact, too narrow, too wide, biased, reweighted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm

from popsed_jax.diagnostics.calibration import (
    ks_statistic,
    pit,
    pit_from_grid,
    sbc_ranks,
    tarp,
    uniform_band,
    uniformity,
)

NUM, DIM = 1000, 5


class Conjugate(NamedTuple):
    """Galaxies with a Gaussian prior and likelihood: their posteriors are Gaussian too, and all of the same covariance."""

    truth: np.ndarray
    mean: np.ndarray
    factor: np.ndarray  # of the covariance

    def samples(self, seed: int, num: int = 200, stretch: float = 1.0) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(size=(NUM, num, DIM))
        return self.mean[:, None] + stretch * noise @ self.factor.T


@pytest.fixture(scope="module")
def galaxies() -> Conjugate:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(NUM, DIM))
    response, sigma = rng.normal(size=(DIM + 1, DIM)), 0.7
    data = truth @ response.T + sigma * rng.normal(size=(NUM, DIM + 1))
    covariance = np.linalg.inv(np.eye(DIM) + response.T @ response / sigma**2)
    return Conjugate(truth, data @ response @ covariance / sigma**2, np.linalg.cholesky(covariance))


def p_values(ranks: np.ndarray) -> np.ndarray:
    return np.array([kstest(column, "uniform").pvalue for column in ranks.T])


def test_exact_posteriors_have_uniform_ranks(galaxies):
    ranks = sbc_ranks(galaxies.samples(1), galaxies.truth, np.random.default_rng(2))
    assert ranks.shape == (NUM, DIM)
    assert p_values(ranks).min() > 0.02


def test_ranks_of_few_samples_are_uniform_too(galaxies):
    ranks = sbc_ranks(galaxies.samples(1, num=4), galaxies.truth, np.random.default_rng(2))
    assert p_values(ranks).min() > 0.02


def test_a_rank_counts_the_samples_below(galaxies):
    samples = galaxies.samples(3, num=50)
    ranks = sbc_ranks(samples, galaxies.truth, np.random.default_rng(2))
    below = np.sum(samples < galaxies.truth[:, None], axis=1)
    # The truth is one of 51, its place within its own share is random.
    np.testing.assert_array_equal(np.floor(ranks * 51), below)


def test_ties_are_split_at_random():
    ranks = sbc_ranks(np.zeros((4000, 30, 1)), np.zeros((4000, 1)), np.random.default_rng(0))
    assert kstest(ranks[:, 0], "uniform").pvalue > 0.02


@pytest.mark.parametrize(("stretch", "more_outside"), [(0.8, True), (1.25, False)])
def test_a_wrong_width_is_detected(galaxies, stretch, more_outside):
    ranks = sbc_ranks(galaxies.samples(1, stretch=stretch), galaxies.truth, np.random.default_rng(2))
    outside = np.mean((ranks < 0.1) | (ranks > 0.9), axis=0)
    assert np.all((outside > 0.2) == more_outside)
    assert p_values(ranks).max() < 0.02


def test_a_bias_is_detected_where_it_is(galaxies):
    shift = np.array([0.0, 0.0, 0.3, 0.0, 0.0]) * np.linalg.norm(galaxies.factor[2])
    ranks = sbc_ranks(galaxies.samples(1) + shift, galaxies.truth, np.random.default_rng(2))
    p = p_values(ranks)
    assert p[2] < 1e-6
    assert np.delete(p, 2).min() > 0.02
    assert ranks[:, 2].mean() < 0.45


def reweighted(galaxies: Conjugate, seed: int, num: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Samples of a proposal 1.5 times as wide and off by half a sigma, with the weights that make them exact."""
    noise = np.random.default_rng(seed).normal(size=(NUM, num, DIM))
    standard = 1.5 * noise + 0.5
    log_weight = 0.5 * np.sum(noise**2 - standard**2, axis=2)
    return galaxies.mean[:, None] + standard @ galaxies.factor.T, 7.0 * np.exp(log_weight)


def test_weights_turn_a_broad_proposal_into_the_posterior(galaxies):
    samples, weights = reweighted(galaxies, 4)
    rng = np.random.default_rng(5)
    assert p_values(sbc_ranks(samples, galaxies.truth, rng)).max() < 1e-6
    assert p_values(sbc_ranks(samples, galaxies.truth, rng, weights)).min() > 0.02
    assert tarp(samples, galaxies.truth, rng).largest_gap > 0.1
    found = tarp(samples, galaxies.truth, rng, weights)
    assert found.largest_gap < 3.5 * found.error.max()


def test_pit_is_the_rank_of_one_parameter(galaxies):
    samples, weights = reweighted(galaxies, 4)
    one = pit(samples[:, :, 1], galaxies.truth[:, 1], np.random.default_rng(1), weights)
    many = sbc_ranks(samples[:, :, 1:2], galaxies.truth[:, 1:2], np.random.default_rng(1), weights)
    np.testing.assert_array_equal(one, many[:, 0])
    exact = norm.cdf(galaxies.truth[:, 1], galaxies.mean[:, 1], np.linalg.norm(galaxies.factor[1]))
    assert np.std(one - exact) < 0.08  # 0.5 / sqrt(ESS) at most; the ESS is about 70 of 400


def test_pit_from_a_grid_is_the_distribution_function():
    grid = np.linspace(-5.0, 5.0, 201)
    mean, truth = np.random.default_rng(0).normal(size=(2, 50))
    found = pit_from_grid(grid, 3.0 * norm.pdf(grid, mean[:, None], 0.7), truth)
    np.testing.assert_allclose(found, norm.cdf(truth, mean, 0.7), atol=2e-4)
    # Of a triangle on an uneven grid, exactly; 0 and 1 beyond its ends.
    uneven = np.array([0.0, 0.3, 1.0])
    density = np.tile(uneven, (4, 1))
    np.testing.assert_allclose(pit_from_grid(uneven, density, np.array([-1.0, 0.2, 0.6, 2.0])), [0.0, 0.04, 0.36, 1.0])


def test_tarp_of_exact_posteriors_is_on_the_diagonal(galaxies):
    found = tarp(galaxies.samples(1), galaxies.truth, np.random.default_rng(2))
    inner = slice(1, -1)
    assert np.all(np.abs(found.coverage - found.levels)[inner] < 3.0 * found.error[inner])
    assert found.largest_gap < 0.03
    assert (found.coverage[0], found.coverage[-1]) == (0.0, 1.0)
    # More reference points of a galaxy tell the same with less noise, if not with independent noise.
    single = tarp(galaxies.samples(1), galaxies.truth, np.random.default_rng(2), num_references=1)
    assert single.error[10] == pytest.approx(np.sqrt(0.25 / NUM), rel=0.2)
    assert found.error[10] < 0.75 * single.error[10]


@pytest.mark.parametrize(("stretch", "sign"), [(0.8, -1.0), (1.25, 1.0)])
def test_tarp_detects_a_wrong_width(galaxies, stretch, sign):
    found = tarp(galaxies.samples(1, stretch=stretch), galaxies.truth, np.random.default_rng(2))
    high = slice(12, 19)
    assert np.all(sign * (found.coverage - found.levels)[high] > 3.0 * found.error[high])


def test_tarp_sees_what_ranks_do_not(galaxies):
    """Posteriors with the right marginals and no correlations."""
    sigma = np.linalg.norm(galaxies.factor, axis=1)
    samples = galaxies.mean[:, None] + sigma * np.random.default_rng(6).normal(size=(NUM, 200, DIM))
    assert p_values(sbc_ranks(samples, galaxies.truth, np.random.default_rng(7))).min() > 0.02
    found = tarp(samples, galaxies.truth, np.random.default_rng(7))
    assert found.largest_gap > 4.0 * found.error.max()


def test_tarp_sees_a_well_known_parameter_among_vague_ones(galaxies):
    """A parameter known to a hundredth of its spread, too confidently, beside vague ones that are right."""
    rng = np.random.default_rng(8)
    truth = galaxies.truth.copy()
    samples = np.random.default_rng(9).normal(size=(NUM, 200, DIM))  # the prior
    samples[:, :, 0] = (truth[:, :1] + 0.01 * rng.normal(size=(NUM, 1))) + 0.004 * samples[:, :, 0]
    found = tarp(samples, truth, rng)
    assert found.largest_gap > 4.0 * found.error.max()


def test_tarp_leaves_fixed_parameters_out(galaxies):
    fixed = galaxies.samples(1)
    fixed[:, :, 3] = galaxies.truth[:, None, 3]
    others = [0, 1, 2, 4]
    found = tarp(fixed, galaxies.truth, np.random.default_rng(2))
    expected = tarp(fixed[:, :, others], galaxies.truth[:, others], np.random.default_rng(2))
    np.testing.assert_array_equal(found.coverage, expected.coverage)
    with pytest.raises(ValueError, match="all parameters are fixed"):
        tarp(fixed[:, :, 3:4], galaxies.truth[:, 3:4], np.random.default_rng(2))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shift=st.floats(-50.0, 50.0),
    scale=st.floats(0.01, 100.0),
    weight_scale=st.floats(0.01, 100.0),
)
def test_ranks_and_coverage_do_not_know_units(seed, shift, scale, weight_scale):
    rng = np.random.default_rng(seed)
    samples, truth = rng.normal(size=(20, 15, 2)), rng.normal(size=(20, 2))
    weights = rng.uniform(0.1, 1.0, (20, 15))
    moved = (samples * [scale, 1.0] + [shift, 0.0], truth * [scale, 1.0] + [shift, 0.0])
    ranks = sbc_ranks(samples, truth, np.random.default_rng(0), weights)
    np.testing.assert_allclose(sbc_ranks(*moved, np.random.default_rng(0), weight_scale * weights), ranks, atol=1e-9)
    order = rng.permutation(15)
    shuffled = sbc_ranks(samples[:, order], truth, np.random.default_rng(0), weights[:, order])
    np.testing.assert_allclose(shuffled, ranks, atol=1e-9)
    coverage = tarp(samples, truth, np.random.default_rng(0), weights, num_bootstrap=2).coverage
    found = tarp(*moved, np.random.default_rng(0), weight_scale * weights, num_bootstrap=2).coverage
    np.testing.assert_allclose(found, coverage, atol=1e-6)


def test_the_test_of_uniformity_and_its_error():
    rng = np.random.default_rng(0)
    draws = [rng.beta(1.4, 1.0, 500) for _ in range(60)]
    found = uniformity(draws[0], rng)
    expected = kstest(draws[0], "uniform")
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.error == pytest.approx(np.std([ks_statistic(values) for values in draws]), rel=0.35)


def test_the_band_of_a_uniform_histogram():
    low, high = uniform_band(1000, 20)
    counts = np.random.default_rng(0).multinomial(1000, np.full(20, 0.05), size=2000)
    assert 0.95 <= np.mean((counts >= low) & (counts <= high)) < 0.97


SAMPLES, TRUTH = np.zeros((3, 4, 2)), np.zeros((3, 2))


def with_nan(array: np.ndarray, *row: int) -> np.ndarray:
    array = array.copy()
    array[list(row)] = np.nan
    return array


@pytest.mark.parametrize("judge", [sbc_ranks, tarp])
@pytest.mark.parametrize(
    ("samples", "truth", "weights", "message"),
    [
        (
            with_nan(SAMPLES, 1, 2),
            TRUTH,
            None,
            r"2 of 3 galaxies have samples that are not numbers \(the first is row 1\)",
        ),
        (SAMPLES, with_nan(TRUTH, 2), None, "1 of 3 galaxies have true values that are not numbers"),
        (SAMPLES, TRUTH[:2], None, r"true values of shape \(2, 2\): \(3, 2\) wanted"),
        (SAMPLES[:, 0], TRUTH, None, r"samples of shape \(3, 2\): \(galaxy, sample, parameter\) wanted"),
        (SAMPLES[:, :0], TRUTH, None, r"samples of shape \(3, 0, 2\)"),
        (SAMPLES, TRUTH, np.ones((3, 2)), r"weights of shape \(3, 2\) do not fit samples of shape \(3, 4, 2\)"),
        (SAMPLES, TRUTH, with_nan(np.ones((3, 4)), 0), "1 of 3 galaxies have weights that are not numbers"),
        (SAMPLES, TRUTH, np.zeros((3, 4)), "3 of 3 galaxies have negative weights, or none above zero"),
        (SAMPLES, TRUTH, -np.eye(3, 4), "3 of 3 galaxies have negative weights"),
    ],
)
def test_bad_input_is_refused_with_a_count(judge, samples, truth, weights, message):
    with pytest.raises(ValueError, match=message):
        judge(samples, truth, np.random.default_rng(0), weights)


def test_other_bad_input():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="at least two galaxies"):
        tarp(SAMPLES[:1], TRUTH[:1], rng)
    with pytest.raises(ValueError, match="of one parameter"):
        pit(SAMPLES, TRUTH[:, 0], rng)
    with pytest.raises(ValueError, match="between 0 and 1"):
        uniformity(np.array([0.5, 1.2]), rng)
    with pytest.raises(ValueError, match="1 of 2 galaxies have true values that are not numbers"):
        uniformity(np.array([0.5, np.nan]), rng)
    grid, density = np.array([0.0, 1.0]), np.ones((2, 2))
    for wrong, message in [
        ((grid[::-1], density), "increasing numbers wanted"),
        ((grid, density[:, :1]), r"densities of shape \(2, 1\): \(galaxy, 2\) wanted"),
        ((grid, with_nan(density, 0)), "1 of 2 galaxies have a density that is not a number"),
        ((grid, -density), "2 of 2 galaxies have a negative density"),
        ((grid, 0.0 * density), "2 of 2 galaxies have a density that is zero everywhere"),
    ]:
        with pytest.raises(ValueError, match=message):
            pit_from_grid(*wrong, np.zeros(2))
