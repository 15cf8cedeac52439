"""Two-sample tests: can two clouds be told apart, by a classifier or one dimension at a time?"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.stats import norm, rankdata, wasserstein_distance


def classifier_accuracy(
    x: Float[np.ndarray, "num dim"], y: Float[np.ndarray, "other dim"], seed: int = 0, num_folds: int = 5
) -> float:
    """Cross-validated accuracy of a gradient-boosted classifier that tells x from y; 0.5 when it cannot.

    (Lopez-Paz & Oquab 2017, arXiv:1610.06545.) Needs scikit-learn (`pip install "popsed_jax[test]"`).

    Args:
        x, y: clouds; the larger is cut to the size of the smaller, so that guessing scores 0.5.

    Raises:
        ValueError: clouds of different dimension, or with fewer than `num_folds` points.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    if x.shape[1] != y.shape[1]:
        raise ValueError(f"clouds of {x.shape[1]} and {y.shape[1]} dimensions cannot be compared")
    num = min(len(x), len(y))
    if num < num_folds:
        raise ValueError(f"{num} points are too few for {num_folds} folds")
    rng = np.random.default_rng(seed)
    both = np.concatenate([rng.permutation(x)[:num], rng.permutation(y)[:num]])
    label = np.repeat([0, 1], num)
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    classifier = HistGradientBoostingClassifier(random_state=seed)
    return float(np.mean(cross_val_score(classifier, both, label, cv=folds)))


def scaled_wasserstein(sample: Float[np.ndarray, " num"], truth: Float[np.ndarray, " other"]) -> float:
    """1-D Wasserstein distance over the truth's standard deviation."""
    return float(wasserstein_distance(sample, truth) / np.std(truth))


def feature_accuracy(
    x: Float[np.ndarray, "num dim"], y: Float[np.ndarray, "other dim"], seed: int = 0, num_waves: int = 300
) -> float:
    """Cross-validated accuracy of a linear classifier of fixed features that tells x from y; 0.5 when it cannot.

    As `classifier_accuracy`, without scikit-learn: ridge regression of the label on normal scores of each dimension, their
    products, and random waves of them (Rahimi & Recht 2007).

    Args:
        x, y: clouds; the larger is cut to the size of the smaller, so that guessing scores 0.5.
        num_waves: random features.

    Raises:
        ValueError: clouds of different dimension, or of fewer points than there are features.
    """
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"clouds of {x.shape[1]} and {y.shape[1]} dimensions cannot be compared")
    num, dim = min(len(x), len(y)), x.shape[1]
    if num < num_waves:
        raise ValueError(f"{num} points are too few for {num_waves} features")
    rng = np.random.default_rng(seed)
    both = np.concatenate([rng.permutation(x)[:num], rng.permutation(y)[:num]])
    label = np.repeat([-1.0, 1.0], num)
    scores = norm.ppf((rankdata(both, axis=0) - 0.5) / len(both))
    pairs = np.triu_indices(dim)
    waves = rng.normal(size=(dim, num_waves)) * rng.choice([0.3, 1.0, 2.0], num_waves) / np.sqrt(dim)
    parts = [np.ones((len(both), 1)), scores, scores[:, pairs[0]] * scores[:, pairs[1]]]
    features = np.concatenate([*parts, np.cos(scores @ waves + rng.uniform(0.0, 2.0 * np.pi, num_waves))], axis=1)
    first = rng.permutation(len(both)) < num
    right = 0
    for train in (first, ~first):
        square = features[train].T @ features[train] + np.eye(features.shape[1])
        weight = np.linalg.solve(square, features[train].T @ label[train])
        right += np.sum(np.sign(features[~train] @ weight) == label[~train])
    return float(right / len(both))
