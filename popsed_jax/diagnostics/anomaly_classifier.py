"""Anomalies by example: support-vector classifiers that learn from a few labelled ones."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from popsed_jax.diagnostics._common import refuse
from popsed_jax.diagnostics._latents import NEEDS, checked_rows, fit_scaling


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """Settings of the support-vector classifier. Where several values are given, cross-validation chooses.

    Args:
        C: price of a training row on the wrong side of the margin; larger fits the training rows more closely.
        gamma: inverse square width of the kernel, exp(-gamma |x - y|^2 / dimensions), in standardised space; larger follows
            smaller structures.
        num_neighbours: of SMOTE: a synthetic anomaly lies between one and one of so many of its nearest.
        ratio: anomalies of each class, true and synthetic, to an ordinary row; less is faster.
        balanced: whether each class weighs as much as all ordinary rows together. Without it all rows weigh the same, which keeps
            the boundary closer to the anomalies: for searches that must be clean.
        num_folds: of the cross-validation.
    """

    C: tuple[float, ...] = (10.0,)
    gamma: tuple[float, ...] = (1.0,)
    num_neighbours: int = 5
    ratio: float = 1.0
    balanced: bool = True
    num_folds: int = 3

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for name in ("C", "gamma"):
            values = getattr(self, name)
            if not values or not all(value > 0.0 and np.isfinite(value) for value in values):
                raise ValueError(f"classifier: {name} = {values} must be one or several positive numbers")
        for name, least in (("num_neighbours", 1), ("num_folds", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"classifier: {name} = {getattr(self, name)} must be at least {least}")
        if not 0.0 < self.ratio <= 1.0:
            raise ValueError(f"classifier: ratio = {self.ratio} must be above 0 and at most 1")


class AnomalyScores(NamedTuple):
    """What a classifier says of rows.

    Attributes:
        score: signed distance from the class's boundary in the kernel's space, in margins; above zero: called that class.
        classes: the anomalous classes' labels, increasing.
        C, gamma: of the classifier; as chosen where there was a choice.
    """

    score: Float[np.ndarray, "row anomaly"]
    classes: tuple[int, ...]
    C: float
    gamma: float

    def of(self, label: int) -> Float[np.ndarray, " row"]:
        """Scores for one class.

        Raises:
            KeyError: a class that was not in training.
        """
        if label not in self.classes:
            raise KeyError(f"no class {label} was in training; classes: {', '.join(map(str, self.classes))}")
        return self.score[:, self.classes.index(label)]


def classify_anomalies(
    rng: np.random.Generator | int,
    train: Float[np.ndarray, "row dim"],
    labels: Int[np.ndarray, " row"],
    test: Float[np.ndarray, "other dim"],
    config: ClassifierConfig | None = None,
) -> AnomalyScores:
    """Scores of test rows by support-vector classifiers that learned from labelled rows. (Cortes & Vapnik 1995)

    Anomalies are rare: SMOTE fills each anomalous class with points between neighbours of that class until it is as numerous
    as the ordinary rows (Chawla+02). Then each class has a classifier of its own, with a Gaussian kernel, that tells it from
    all other rows.

    Args:
        rng: a generator, or a seed for one; only SMOTE and the folds are random.
        labels: 0 for ordinary (also: not known to be anomalous), a number above zero for each anomalous class.
        test: rows to score; nothing is learned from them, and a row's score does not depend on the others.

    Raises:
        ImportError: scikit-learn or imbalanced-learn is missing.
        ValueError: shapes that do not fit, values that are not numbers, labels that are not integers of 0 or more, no ordinary
            or no anomalous rows, or a class with too few for SMOTE (in every fold, where there is a choice).

    Notes: standardisation, SMOTE and the choice of C and gamma see training rows only; within the cross-validation, the rows of
        the other folds only. The choice is by average precision, the mean of classes and folds.

    References: doi:10.1007/BF00994018; arXiv:1106.1813.
    """
    config, rng = config or ClassifierConfig(), np.random.default_rng(rng)
    train = checked_rows(train, "training rows")
    test = checked_rows(test, "test rows", train.shape[1])
    labels = _checked_labels(labels, len(train))
    classes = tuple(int(label) for label in np.unique(labels) if label > 0)
    choices = [(C, gamma) for C in config.C for gamma in config.gamma]
    _check_enough(labels, classes, config, folded=len(choices) > 1)
    C, gamma = choices[0] if len(choices) == 1 else _choose(rng, train, labels, choices, config)
    score = _fit_and_score(rng, train, labels, test, config, [(C, gamma)])[0]
    return AnomalyScores(score, classes, C, gamma)


def _choose(
    rng: np.random.Generator,
    train: np.ndarray,
    labels: np.ndarray,
    choices: list[tuple[float, float]],
    config: ClassifierConfig,
) -> tuple[float, float]:
    """The first of the choices of C and gamma with the best average precision in rows that it did not learn from."""
    learn = _learners()
    folds = learn["StratifiedKFold"](config.num_folds, shuffle=True, random_state=_seed(rng))
    classes = np.unique(labels[labels > 0])
    precision = np.zeros(len(choices))
    for known, held in folds.split(train, labels):
        scores = _fit_and_score(rng, train[known], labels[known], train[held], config, choices)
        for i, score in enumerate(scores):
            each = [
                learn["average_precision_score"](labels[held] == c, s) for c, s in zip(classes, score.T, strict=True)
            ]
            precision[i] += np.mean(each)
    return choices[int(np.argmax(precision))]


def _fit_and_score(
    rng: np.random.Generator,
    train: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    config: ClassifierConfig,
    choices: list[tuple[float, float]],
) -> list[Float[np.ndarray, "row anomaly"]]:
    """Scores of test rows for every choice of C and gamma; the same synthetic anomalies for all."""
    learn = _learners()
    scaling = fit_scaling(train)
    counts = {int(label): int(count) for label, count in zip(*np.unique(labels, return_counts=True), strict=True)}
    wanted = {c: max(n, round(config.ratio * counts[0])) for c, n in counts.items() if c > 0}
    smote = learn["SMOTE"](sampling_strategy=wanted, k_neighbors=config.num_neighbours, random_state=_seed(rng))
    rows, filled = smote.fit_resample(scaling(train), labels)
    found = []
    for C, gamma in choices:
        weight = "balanced" if config.balanced else None
        machine = {"C": C, "gamma": gamma / train.shape[1], "class_weight": weight, "cache_size": 500}
        fits = [learn["SVC"](kernel="rbf", **machine).fit(rows, filled == label) for label in wanted]
        found.append(np.stack([fit.decision_function(scaling(test)) for fit in fits], axis=1))
    return found


def _learners() -> dict[str, Any]:
    """What is used of scikit-learn and imbalanced-learn, by name."""
    try:
        from imblearn.over_sampling import SMOTE
        from sklearn.metrics import average_precision_score
        from sklearn.model_selection import StratifiedKFold
        from sklearn.svm import SVC
    except ImportError as error:
        raise ImportError(f"the classifier of anomalies {NEEDS}") from error
    used = (SMOTE, SVC, StratifiedKFold, average_precision_score)
    return {each.__name__: each for each in used}


def _check_enough(labels: np.ndarray, classes: tuple[int, ...], config: ClassifierConfig, folded: bool) -> None:
    """Refuse labels from which there is nothing to learn."""
    if not classes:
        raise ValueError("no training row is labelled as an anomaly: label some with numbers above 0")
    if not np.any(labels == 0):
        raise ValueError("no training row is ordinary: label those as 0")
    for label in classes:
        num = int(np.sum(labels == label))
        # The fewest that a fold leaves for training.
        left = num - -(-num // config.num_folds) if folded else num
        if left <= config.num_neighbours or (folded and num < config.num_folds):
            where = f" ({left} of them in a fold's training)" if folded else ""
            raise ValueError(
                f"class {label} has {num} labelled rows{where}: SMOTE with {config.num_neighbours} neighbours needs at least "
                f"{config.num_neighbours + 1}; label more, or lower num_neighbours{' or give one C and gamma' * folded}"
            )


def _checked_labels(labels: Any, num: int) -> Int[np.ndarray, " row"]:
    """Labels as integers; true and false are 1 and 0."""
    labels = np.asarray(labels)
    if labels.shape != (num,):
        raise ValueError(f"labels of shape {labels.shape}: one for each of {num} training rows wanted")
    if labels.dtype.kind not in "biu":
        raise ValueError(f"labels of type {labels.dtype}: integers wanted, 0 for ordinary")
    refuse(labels < 0, "have a label below 0")
    return labels.astype(int)


def _seed(rng: np.random.Generator) -> int:
    """A seed for what takes no generator."""
    return int(rng.integers(2**31))
