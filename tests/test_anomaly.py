"""Anomalies: scores against truths that are known and against other people's code, laws, and error texts."""

from __future__ import annotations

import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis as scipy_mahalanobis
from scipy.stats import chi2, kstest, multivariate_normal
from sklearn.covariance import MinCovDet
from sklearn.metrics import average_precision_score, precision_recall_curve

from popsed_jax.diagnostics import anomaly_classifier
from popsed_jax.diagnostics.anomaly import (
    ClassifierConfig,
    anomaly_curve,
    classify_anomalies,
    fit_latent_flow,
    flow_surprise,
    mahalanobis,
    neighbours_of,
    reconstruction_chi2,
)
from popsed_jax.flows.spline import FlowConfig

SCALE, SHIFT = np.array([1.0, 100.0, 1e-3, 5.0]), np.array([0.0, -3e3, 7.0, 1.0])
# A tight clump inside the ordinary's range that few ordinary rows share, and one outside of it.
CLUMPS = {1: ([2.2, -2.2, 2.2, 0.0], 0.15), 2: ([-4.0, 0.0, 4.0, 4.0], 0.5)}


def mixture(seed: int, num: int = 2000, planted: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Normal rows in units of their own, with planted clumps, and labels."""
    rng = np.random.default_rng(seed)
    rows = [rng.normal(size=(num, 4))] + [rng.normal(at, width, (planted, 4)) for at, width in CLUMPS.values()]
    labels = np.repeat([0, *CLUMPS], [num, planted, planted])
    order = rng.permutation(len(labels))
    return (SHIFT + SCALE * np.concatenate(rows))[order], labels[order]


@pytest.fixture(scope="module")
def searched():
    train, labels = mixture(0)
    test, truth = mixture(1)
    return train, labels, test, truth, classify_anomalies(0, train, labels, test)


def test_planted_anomalies_are_found(searched):
    *_, truth, scores = searched
    assert scores.classes == (1, 2)
    for label in scores.classes:
        point = anomaly_curve(scores.of(label), truth == label, 0, 20).at_completeness(0.98)
        assert point.contamination <= 0.05, label
        # The boundary itself is a good threshold: the classes are called by its sign.
        called = scores.of(label) > 0.0
        assert np.mean(called[truth == label]) >= 0.98
        assert np.mean(truth[called] != label) <= 0.1
    assert not np.any((scores.score > 0.0).all(axis=1))


def test_the_classifier_reaches_the_best_possible_score():
    """Of two overlapping normal clouds, no score beats the ratio of the true densities."""
    rng = np.random.default_rng(2)
    away = np.array([1.8, 0.0])

    def draw(num: int, planted: int) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate([rng.normal(size=(num, 2)), away + rng.normal(size=(planted, 2))]), np.repeat(
            [0, 1], [num, planted]
        )

    (train, labels), (test, truth) = draw(1500, 150), draw(4000, 400)
    config = ClassifierConfig(C=(0.1,), gamma=(0.1,), ratio=0.5)
    reached = anomaly_curve(classify_anomalies(0, train, labels, test, config).of(1), truth == 1, 0)
    best = anomaly_curve(test @ away, truth == 1, 0)
    assert reached.area == pytest.approx(best.area, abs=2.0 * best.area_error)
    assert best.area < 0.9


def test_without_balance_the_boundary_keeps_closer_to_the_anomalies():
    """Of two normal clouds, one a tenth of the other, equal densities are met at 1, ten times as many at 1 + ln(10) / 2."""
    rng = np.random.default_rng(3)
    rows, labels = rng.normal(size=(1650, 2)), np.repeat([0, 1], [1500, 150])
    rows[labels == 1, 0] += 2.0
    line = np.stack([np.linspace(0.0, 4.0, 161), np.zeros(161)], axis=1)
    boundary = []
    for balanced in (True, False):
        config = ClassifierConfig(C=(10.0,), gamma=(0.1,), ratio=0.1, balanced=balanced)
        boundary.append(line[np.argmax(classify_anomalies(0, rows, labels, line, config).of(1) > 0.0), 0])
    assert boundary == pytest.approx([1.0, 2.15], abs=0.4)


def test_a_score_depends_on_training_rows_and_its_own_only(searched):
    train, labels, test, _, scores = searched
    alone = classify_anomalies(0, train, labels, test[:7]).score
    wild = np.concatenate([test[:7], 1e6 * SCALE * np.ones((50, 4))])
    np.testing.assert_allclose(alone, scores.score[:7], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(classify_anomalies(0, train, labels, wild).score[:7], alone, rtol=1e-9, atol=1e-9)
    again = classify_anomalies(np.random.default_rng(0), train, labels, test[:7]).score
    np.testing.assert_array_equal(again, alone)


def test_units_do_not_matter(searched):
    train, labels, test, _, scores = searched
    changed = classify_anomalies(0, (train - SHIFT) / SCALE, labels, (test[:50] - SHIFT) / SCALE)
    np.testing.assert_allclose(changed.score, scores.score[:50], atol=1e-6)


def test_smote_and_the_scaling_see_training_rows_only(monkeypatch):
    """In a choice by cross-validation, what is standardised and filled up never includes the fold that judges."""
    train, labels = mixture(3, num=300, planted=20)
    seen: list[np.ndarray] = []
    original = anomaly_classifier.fit_scaling
    monkeypatch.setattr(anomaly_classifier, "fit_scaling", lambda rows: seen.append(rows) or original(rows))
    config = ClassifierConfig(C=(1.0,), gamma=(1e-4, 1.0))
    scores = classify_anomalies(4, train, labels, train[:3], config)
    assert (scores.C, scores.gamma) == (1.0, 1.0)
    # Each row is held out of one of three folds.
    assert sum(len(rows) for rows in seen[:3]) == 2 * 340
    held = [{tuple(row) for row in train} - {tuple(row) for row in rows} for rows in seen[:3]]
    assert sum(map(len, held)) == len(set.union(*held)) == 340
    np.testing.assert_array_equal(seen[3], train)


def test_neighbours():
    rng = np.random.default_rng(5)
    latents = SHIFT + SCALE * rng.normal(size=(400, 4))
    spread = 1.4826 * np.median(np.abs(latents - np.median(latents, axis=0)), axis=0)
    distance = np.linalg.norm((latents - latents[17]) / spread, axis=1)
    found = neighbours_of(latents[17], latents, 6)
    np.testing.assert_array_equal(found.row, np.argsort(distance)[:6])
    np.testing.assert_allclose(found.distance, np.sort(distance)[:6], atol=1e-12)
    assert found.row[0] == 17
    both = neighbours_of(latents[[3, 17]], latents, 1)
    assert both.row.tolist() == [[3], [17]]


def test_a_dimension_of_mostly_equal_values_does_not_count_for_everything():
    latents = np.random.default_rng(6).normal(size=(200, 3))
    latents[:, 1], latents[:, 2] = 0.3, np.where(np.arange(200) < 150, 0.1, 0.2)
    distance = neighbours_of(latents[0], latents, 200).distance
    assert np.isfinite(distance).all()
    assert distance.max() < 10.0


def test_mahalanobis_is_scipys():
    rng = np.random.default_rng(7)
    reference = SHIFT + SCALE * (rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4)))
    latents = SHIFT + SCALE * rng.normal(size=(20, 4))
    inverse = np.linalg.inv(np.cov(reference, rowvar=False))
    wanted = [scipy_mahalanobis(row, reference.mean(axis=0), inverse) for row in latents]
    np.testing.assert_allclose(mahalanobis(latents, reference, robust=False), wanted, rtol=1e-6)
    wanted = np.sqrt(MinCovDet(random_state=3).fit((reference - SHIFT) / SCALE).mahalanobis((latents - SHIFT) / SCALE))
    np.testing.assert_allclose(mahalanobis(latents, reference, seed=3), wanted, rtol=1e-6)


@pytest.mark.parametrize("robust", [True, False])
def test_squared_distances_of_normal_rows_have_a_chi2_distribution(robust):
    rng = np.random.default_rng(8)
    mix = rng.normal(size=(3, 3))
    latents, reference = rng.normal(size=(500, 3)) @ mix, rng.normal(size=(2000, 3)) @ mix
    assert kstest(mahalanobis(latents, reference, robust) ** 2, chi2(3).cdf).pvalue > 0.01


def test_a_robust_covariance_is_not_masked_by_the_anomalies():
    rng = np.random.default_rng(9)
    ordinary, odd = rng.normal(size=(300, 2)), rng.normal([6.0, 6.0], 0.3, (60, 2))
    both = np.concatenate([ordinary, odd])
    assert np.median(mahalanobis(odd, both)) > 7.0 > 3.0 > np.median(mahalanobis(odd, both, robust=False))


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), robust=st.booleans(), log_scale=st.floats(-6.0, 6.0))
def test_mahalanobis_is_the_same_in_any_linear_coordinates(seed, robust, log_scale):
    rng = np.random.default_rng(seed)
    reference, latents = rng.standard_t(5.0, (60, 2)), rng.normal(size=(5, 2))
    turn, _ = np.linalg.qr(rng.normal(size=(2, 2)))
    mix = turn * np.array([1.0, 0.1]) * 10.0**log_scale
    shift = 10.0**log_scale * rng.normal(size=2)
    changed = mahalanobis(latents @ mix + shift, reference @ mix + shift, robust)
    np.testing.assert_allclose(changed, mahalanobis(latents, reference, robust), rtol=1e-5)


def banana(rng: np.random.Generator, num: int) -> np.ndarray:
    x = rng.normal(size=(num, 2))
    return np.stack([10.0 * x[:, 0], 0.01 * (x[:, 0] ** 2 + 0.2 * x[:, 1])], axis=1)


def banana_log_prob(rows: np.ndarray) -> np.ndarray:
    x = rows / np.array([10.0, 0.01])
    away = np.stack([x[:, 0], (x[:, 1] - x[:, 0] ** 2) / 0.2], axis=1)
    return multivariate_normal(np.zeros(2)).logpdf(away) - np.log(10.0 * 0.01 * 0.2)


# One program for all: compiling takes longer than the training.
SMALL = FlowConfig(num_layers=4, hidden=24, num_blocks=1)
NUM_STEPS, NUM_ROWS = 600, 1000


@pytest.fixture(scope="module")
def latent_flow():
    return fit_latent_flow(jax.random.key(0), banana(np.random.default_rng(10), NUM_ROWS), SMALL, NUM_STEPS)


def test_a_flow_learns_the_density_in_its_own_units(latent_flow):
    fresh = banana(np.random.default_rng(11), 2000)
    wanted = banana_log_prob(fresh)
    normal = multivariate_normal(fresh.mean(axis=0), np.cov(fresh, rowvar=False)).logpdf(fresh)
    loss = np.mean(wanted - latent_flow.log_prob(fresh))  # the Kullback-Leibler divergence
    assert 0.0 < loss < 0.1 * np.mean(wanted - normal)
    # The mean of 100 rows, whose log-densities scatter by one.
    assert latent_flow.held_out == pytest.approx(np.mean(wanted), abs=0.4)


def test_a_flow_is_surprised_inside_the_bend_where_a_normal_is_not(latent_flow):
    rng = np.random.default_rng(12)
    odd = np.array([0.0, 0.01 * 1.5]) + np.array([1.0, 0.0005]) * rng.normal(size=(30, 2))
    fresh, is_anomaly = banana(rng, 1970), np.arange(2000) < 30
    rows = np.concatenate([odd, fresh])
    flow = anomaly_curve(-latent_flow.log_prob(rows), is_anomaly, 0)
    ellipse = anomaly_curve(mahalanobis(rows, fresh), is_anomaly, 0)
    assert flow.area > 0.6 > 0.1 > ellipse.area


def test_training_of_a_flow_stops_where_it_stops_to_generalise():
    rng = np.random.default_rng(13)
    train, fresh = rng.normal(size=(NUM_ROWS, 2)), rng.normal(size=(2000, 2))
    surprise = flow_surprise(jax.random.key(1), train, fresh, SMALL, NUM_STEPS)
    wanted = -multivariate_normal(np.zeros(2)).logpdf(fresh)
    # The best normal distribution for so few rows loses about (parameters) / (2 rows) = 0.003.
    assert np.mean(surprise - wanted) < 0.02


def test_chi2_of_a_right_model_is_one():
    rng = np.random.default_rng(14)
    model, error = rng.normal(size=(3000, 5, 4)), rng.uniform(0.1, 2.0, (5, 4))
    data = model + error * rng.normal(size=model.shape)
    found = reconstruction_chi2(data, model, error)
    assert kstest(20.0 * found, chi2(20).cdf).pvalue > 0.01
    np.testing.assert_allclose(reconstruction_chi2(data, model, 2.0 * error), found / 4.0)


def test_chi2_is_over_what_is_there():
    data = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan], [1.0, 2.0, 3.0]])
    model = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 2.0, np.nan]])
    error = np.array([1.0, 1.0, 2.0])
    np.testing.assert_array_equal(reconstruction_chi2(data[:2], model[:2], error), [1.0, np.nan])
    there = np.array([[True, False, False], [False, False, False], [True, True, False]])
    np.testing.assert_array_equal(reconstruction_chi2(data, model, error, there), [1.0, np.nan, 0.0])
    with pytest.raises(ValueError, match=r"1 of 3 galaxies have a model that is not a number .* row 2"):
        reconstruction_chi2(data, model, error)
    with pytest.raises(ValueError, match="1 of 2 galaxies have values that are there without a number"):
        reconstruction_chi2(data[:2], model[:2], error, np.array([[True, True, True], [False, False, False]]))
    with pytest.raises(ValueError, match="1 of 1 galaxies have values that are there"):
        reconstruction_chi2(data[2:], data[2:], np.array([1.0, 0.0, 1.0]), there=True)
    with pytest.raises(ValueError, match=r"error of shape \(2,\) does not fit"):
        reconstruction_chi2(data, model, error[:2])
    with pytest.raises(ValueError, match="the same wanted"):
        reconstruction_chi2(data, model[:, :2], error)


SCORES = st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=4, max_size=60)


def split_scores(rows: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and truth with some of each kind."""
    rows = [*rows, (0, True), (1, False)]
    return np.array([score for score, _ in rows], float), np.array([odd for _, odd in rows])


@settings(max_examples=60, deadline=None)
@given(rows=SCORES)
def test_the_curve_is_scikit_learns(rows):
    score, is_anomaly = split_scores(rows)
    curve = anomaly_curve(score, is_anomaly, 0, 3)
    precision, recall, threshold = precision_recall_curve(is_anomaly, score)
    at = np.searchsorted(threshold, curve.threshold)
    np.testing.assert_allclose(curve.completeness, recall[at])
    np.testing.assert_allclose(curve.contamination, 1.0 - precision[at], atol=1e-12)
    assert curve.area == pytest.approx(average_precision_score(is_anomaly, score))
    # No threshold of scikit-learn's is better than those looked up.
    for level in (0.3, 0.5, 0.98, 1.0):
        point = curve.at_completeness(level)
        assert point.completeness >= level
        assert point.contamination == pytest.approx(np.min(1.0 - precision[recall >= level]))
        point = curve.at_contamination(1.0 - level)
        assert point.contamination <= 1.0 - level
        assert point.completeness == pytest.approx(np.max(recall[1.0 - precision <= 1.0 - level + 1e-12]))


@settings(max_examples=30, deadline=None)
@given(rows=SCORES, seed=st.integers(0, 100))
def test_the_curve_depends_on_the_order_of_the_scores_only(rows, seed):
    score, is_anomaly = split_scores(rows)
    order = np.random.default_rng(seed).permutation(len(score))
    curve, other = anomaly_curve(score, is_anomaly, 1, 5), anomaly_curve(np.exp(score)[order], is_anomaly[order], 1, 5)
    np.testing.assert_allclose(np.exp(curve.threshold), other.threshold)
    for name in set(curve._fields) - {"threshold"}:
        np.testing.assert_array_equal(getattr(curve, name), getattr(other, name))


def test_ties_are_called_together():
    curve = anomaly_curve(np.array([2.0, 1.0, 1.0, 1.0, 0.0]), np.array([True, True, False, False, False]), 0)
    np.testing.assert_array_equal(curve.threshold, [2.0, 1.0])
    np.testing.assert_array_equal(curve.completeness, [0.5, 1.0])
    np.testing.assert_array_equal(curve.contamination, [0.0, 0.5])
    assert curve.area == 0.75
    assert curve.at_completeness(0.5)[:3] == (2.0, 0.5, 0.0)
    assert curve.at_completeness(0.51)[:3] == (1.0, 1.0, 0.5)
    assert curve.at_contamination(0.4)[:3] == (2.0, 0.5, 0.0)
    nothing = anomaly_curve(np.array([0.0, 1.0]), np.array([True, False]), 0).at_contamination(0.1)
    assert nothing == (np.inf, 0.0, 0.0, 0.0)


def test_bootstrap_errors_are_the_scatter_of_new_samples():
    rng = np.random.default_rng(15)

    is_anomaly = np.arange(2000) < 100
    many = [anomaly_curve(rng.normal(size=2000) + 2.5 * is_anomaly, is_anomaly, rng, 40) for _ in range(200)]
    found = [(c.at_completeness(0.5).contamination, c.at_contamination(0.2).completeness, c.area) for c in many]
    errors = [(c.at_completeness(0.5).error, c.at_contamination(0.2).error, c.area_error) for c in many]
    np.testing.assert_allclose(np.mean(errors, axis=0), np.std(found, axis=0), rtol=0.2)
    # At a fixed threshold, completeness is a binomial's share.
    share = many[0].completeness
    error = np.sqrt(np.mean([c.completeness_error**2 for c in many], axis=0))
    np.testing.assert_allclose(error, np.sqrt(share * (1.0 - share) / 100.0), rtol=0.05)


ROWS, LABELS = np.random.default_rng(16).normal(size=(60, 2)), np.repeat([0, 1], [50, 10])


def broken(row: int) -> np.ndarray:
    rows = ROWS.copy()
    rows[row, 0] = np.nan
    return rows


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": np.zeros(60, int)}, "no training row is labelled"),
        ({"labels": np.ones(60, int)}, "no training row is ordinary"),
        ({"labels": LABELS[:50]}, "one for each of 60 training rows"),
        ({"labels": LABELS.astype(float)}, "labels of type float64: integers wanted"),
        ({"labels": -LABELS}, "10 of 60 galaxies have a label below 0"),
        (
            {"labels": np.repeat([0, 3], [55, 5])},
            "class 3 has 5 labelled rows: SMOTE with 5 neighbours needs at least 6",
        ),
        (
            {"labels": np.repeat([0, 3], [52, 8]), "config": ClassifierConfig(C=(1.0, 10.0))},
            r"class 3 has 8 labelled rows \(5 of them in a fold's training\).*or give one C and gamma",
        ),
        ({"train": broken(7)}, "1 of 60 galaxies among the training rows .* row 7"),
        ({"test": broken(2)}, "1 of 60 galaxies among the test rows .* row 2"),
        ({"test": ROWS[:, :1]}, r"test rows of shape \(60, 1\): \(row, 2\) wanted"),
        ({"train": ROWS[:, 0]}, r"training rows of shape \(60,\): \(row, dimension\) wanted"),
    ],
)
def test_what_a_classifier_refuses(change, words):
    given_rows = {"train": ROWS, "labels": LABELS, "test": ROWS} | change
    with pytest.raises(ValueError, match=words):
        classify_anomalies(0, **given_rows)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"C": ()}, r"C = \(\) must be one or several positive"),
        ({"gamma": (1.0, 0.0)}, "gamma = .* positive"),
        ({"num_neighbours": 0}, "num_neighbours = 0 must be at least 1"),
        ({"num_folds": 1}, "num_folds = 1 must be at least 2"),
        ({"ratio": 1.5}, "ratio = 1.5"),
    ],
)
def test_impossible_settings(change, words):
    with pytest.raises(ValueError, match=words):
        ClassifierConfig(**change)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "imblearn.over_sampling", None)
    with pytest.raises(ImportError, match=r"imbalanced-learn: pip install \"popsed_jax\[anomaly\]\""):
        classify_anomalies(0, ROWS, LABELS, ROWS)
    monkeypatch.setitem(sys.modules, "sklearn.covariance", None)
    with pytest.raises(ImportError, match=r"popsed_jax\[anomaly\].*robust=False"):
        mahalanobis(ROWS, ROWS)
    assert mahalanobis(ROWS, ROWS, robust=False).shape == (60,)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: neighbours_of(ROWS[0], ROWS, 61), "num = 61 neighbours of 60 rows"),
        (lambda: neighbours_of(ROWS[0, :1], ROWS, 1), r"labelled objects of shape \(1, 1\): \(row, 2\) wanted"),
        (lambda: mahalanobis(ROWS, ROWS[:4]), "4 reference rows of 2 dimensions: more than 4 wanted"),
        (lambda: mahalanobis(ROWS, ROWS[:2], robust=False), "more than 2 wanted"),
        (lambda: mahalanobis(ROWS, ROWS * [1.0, 0.0]), "fills 1 of its 2 dimensions only"),
        (lambda: mahalanobis(ROWS, ROWS[:, [0, 0]], robust=False), "fills 1 of its 2 dimensions only"),
        (lambda: flow_surprise(jax.random.key(0), ROWS[:10], ROWS), "at least 20 rows of 2 dimensions"),
        (lambda: flow_surprise(jax.random.key(0), ROWS, ROWS, num_steps=0), "num_steps = 0"),
        (
            lambda: anomaly_curve(np.array([0.0, np.nan]), np.array([True, False]), 0),
            "1 of 2 .* score that is not a number",
        ),
        (lambda: anomaly_curve(np.zeros(2), np.array([0, 2]), 0), "truth of type int64: true or false wanted"),
        (lambda: anomaly_curve(np.zeros(2), np.zeros(3, bool), 0), "one of each a row"),
        (lambda: anomaly_curve(np.zeros(2), np.zeros(2, bool), 0), "0 anomalies and 2 ordinary rows"),
        (lambda: anomaly_curve(np.zeros(2), np.array([True, False]), 0, 0), "num_bootstrap = 0"),
        (lambda: anomaly_curve(np.zeros(2), np.array([True, False]), 0).at_completeness(0.0), "completeness = 0"),
        (lambda: anomaly_curve(np.zeros(2), np.array([True, False]), 0).at_contamination(5), "contamination = 5"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_class_that_was_not_in_training(searched):
    with pytest.raises(KeyError, match="no class 3 was in training; classes: 1, 2"):
        searched[-1].of(3)
