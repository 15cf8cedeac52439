"""From one prior to another by weights, against posteriors known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from popsed_jax.posteriors.reweight import Weighted, average, log_prob_of, reweight


def broad(num: int = 40_000) -> np.ndarray:
    """Samples of N(0, 1) posteriors of two galaxies, in two dimensions."""
    return np.random.default_rng(0).standard_normal((2, num, 2))


def log_normal(theta: np.ndarray, mean: float, std: float) -> np.ndarray:
    return norm.logpdf(theta, mean, std).sum(axis=-1)


def test_a_normal_prior_on_a_flat_one():
    """A flat prior times a normal one of the same width: half the variance, half the way."""
    theta = broad()
    found = reweight(theta, np.zeros(theta.shape[:2]), log_normal(theta, 1.0, 1.0))
    np.testing.assert_allclose(found.weights.sum(axis=1), 1.0)
    np.testing.assert_allclose(found.mean(), 0.5, atol=0.03)
    quantiles = found.quantiles(np.array([0.16, 0.5, 0.84]))
    wanted = norm.ppf([0.16, 0.5, 0.84], 0.5, np.sqrt(0.5))
    np.testing.assert_allclose(quantiles, np.broadcast_to(wanted[None, :, None], quantiles.shape), atol=0.05)
    assert not found.low.any()


def test_the_average_counts_each_prior_by_its_share():
    """However badly a prior suits the galaxy, its posterior has its share."""
    theta = broad(100_000)
    log_to = np.stack([log_normal(theta, 1.0, 1.0), log_normal(theta, -2.0, 1.0)])
    found = reweight(theta, np.zeros(theta.shape[:2]), log_to, np.array([0.25, 0.75]))
    np.testing.assert_allclose(found.mean(), 0.25 * 0.5 - 0.75 * 1.0, atol=0.05)


def test_quantiles_are_those_of_interpolation():
    rng = np.random.default_rng(2)
    theta, weights = rng.standard_normal((3, 40, 2)), rng.random((3, 40)) + 0.01
    weights /= weights.sum(axis=1, keepdims=True)
    levels = np.array([0.0, 0.001, 0.16, 0.5, 0.84, 0.999, 1.0])
    found = Weighted(theta, weights, np.ones(3)).quantiles(levels)
    for galaxy, dim in np.ndindex(3, 2):
        order = np.argsort(theta[galaxy, :, dim])
        share = weights[galaxy, order]
        wanted = np.interp(levels, np.cumsum(share) - 0.5 * share, theta[galaxy, order, dim])
        np.testing.assert_allclose(found[galaxy, :, dim], wanted, atol=1e-12)


def test_one_sample_is_every_quantile():
    found = Weighted(np.array([[[0.3], [7.0]]]), np.array([[1.0, 0.0]]), np.ones(1)).quantiles(np.array([0.16, 0.5]))
    np.testing.assert_allclose(found, 0.3)


def test_resampling_keeps_the_moments():
    theta = broad()
    found = reweight(theta, np.zeros(theta.shape[:2]), log_normal(theta, 1.0, 1.0))
    drawn = found.resample(np.random.default_rng(1), 5000)
    np.testing.assert_allclose(drawn.mean(axis=1), 0.5, atol=0.05)
    np.testing.assert_allclose(drawn.var(axis=1), 0.5, atol=0.05)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 50), st.floats(-50.0, 50.0), st.integers(0, 2**31))
def test_effective_sizes_are_between_one_and_all_and_constants_cancel(num, constant, seed):
    rng = np.random.default_rng(seed)
    theta, log_from, log_to = rng.standard_normal((3, num, 2)), rng.normal(size=(3, num)), rng.normal(size=(3, num))
    found = reweight(theta, log_from, log_to)
    assert np.all((found.ess >= 1.0 - 1e-9) & (found.ess <= num + 1e-6))
    shifted = reweight(theta, log_from + constant, log_to - constant)
    np.testing.assert_allclose(found.weights, shifted.weights, rtol=1e-6)


def test_the_same_prior_changes_nothing():
    theta = broad(100)
    log_prob = log_normal(theta, 0.0, 2.0)
    found = reweight(theta, log_prob, log_prob)
    np.testing.assert_allclose(found.weights, 0.01)
    np.testing.assert_allclose(found.ess, 100.0)


def test_a_prior_that_excludes_all_samples_says_so():
    theta = broad(50)
    found = reweight(theta, np.zeros((2, 50)), np.stack([np.full(50, -np.inf), np.zeros(50)]))
    assert found.ess[0] == 0.0
    assert found.low.tolist() == [True, False]
    assert np.isfinite(found.weights).all()


def test_few_samples_left_are_low():
    weights = np.full((1, 500), 1e-6)
    weights[0, :5] = 0.2
    assert Weighted(np.zeros((1, 500, 1)), weights / weights.sum(), np.array([5.0])).low.all()


def test_any_prior_with_a_log_prob():
    class Prior:
        def log_prob(self, theta):
            return -np.asarray(theta)[:, 0]

    theta = broad(10)
    np.testing.assert_allclose(log_prob_of(Prior(), theta), -theta[:, :, 0], rtol=1e-6)


def test_a_prior_without_one_is_refused():
    with pytest.raises(TypeError, match=r"needs a method log_prob\(theta\); dict has none"):
        log_prob_of({}, broad(5))


def test_an_average_counts_parts_by_their_shares_and_leaves_out_the_empty() -> None:
    rng = np.random.default_rng(6)
    theta = rng.normal(size=(2, 3, 4, 1))
    weights = np.full((2, 3, 4), 0.25)
    ess = np.array([[4.0, 0.0, 0.0], [4.0, 4.0, 0.0]])
    parts = [Weighted(*part) for part in zip(theta, weights, ess, strict=True)]
    found = average(parts, [0.7, 0.3])
    np.testing.assert_allclose(found.weights.sum(axis=1), 1.0)
    np.testing.assert_allclose(found.weights[0], np.repeat([0.7 / 4, 0.3 / 4], 4))
    np.testing.assert_allclose(found.weights[1], np.repeat([0.0, 0.25], 4))
    # Nothing is left of the last galaxy: that must be seen.
    np.testing.assert_allclose(found.ess, [1.0 / (0.49 / 4 + 0.09 / 4), 4.0, 0.0])
    assert found.low.tolist() == [False, False, True]
