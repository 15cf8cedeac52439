"""Two-sample tests on clouds whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from popsed_jax.diagnostics.twosample import classifier_accuracy, scaled_wasserstein


@pytest.mark.slow
def test_a_classifier_cannot_tell_a_cloud_from_itself() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 1500, 3))
    assert classifier_accuracy(x, y) == pytest.approx(
        0.5, abs=0.03
    )  # two standard errors of 3,000 guesses, with overfitting


def test_a_classifier_reaches_the_best_possible_accuracy() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(3000, 2)), rng.normal([1.5, 0.0], size=(3000, 2))
    assert classifier_accuracy(x, y) == pytest.approx(norm.cdf(0.75), abs=0.03)


def test_the_scaled_distance_of_a_shift_is_the_shift() -> None:
    x = np.random.default_rng(2).normal(10.0, 2.0, 1000)
    assert scaled_wasserstein(x + 1.0, x) == pytest.approx(1.0 / np.std(x))


def test_unlike_clouds_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2 dimensions"):
        classifier_accuracy(np.zeros((10, 3)), np.zeros((10, 2)))
    with pytest.raises(ValueError, match="too few"):
        classifier_accuracy(np.zeros((3, 2)), np.zeros((3, 2)))
