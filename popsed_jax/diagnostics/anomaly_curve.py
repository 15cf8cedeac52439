"""What a search for anomalies by a score finds: how complete, and how contaminated."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from popsed_jax.diagnostics._common import refuse


class OperatingPoint(NamedTuple):
    """One threshold of a search: rows with at least this score are called anomalous.

    Attributes:
        threshold: infinite where nothing is called.
        completeness: share of the anomalies that are called.
        contamination: share of the called that are ordinary.
        error: of the contamination at a completeness, or of the completeness at a contamination: its scatter over bootstrap
            samples, in each of which the level asked for is met anew.
    """

    threshold: float
    completeness: float
    contamination: float
    error: float


class AnomalyCurve(NamedTuple):
    """Completeness and contamination at every threshold that matters, with bootstrap errors.

    Attributes:
        threshold: the anomalies' scores, decreasing, each once; rows with at least that score are called. A threshold between
            two of them calls no more anomalies than the higher one.
        completeness, contamination: as in `OperatingPoint`.
        completeness_error, contamination_error: at fixed threshold.
        area: mean purity (1 - contamination) over completeness (the average precision); 1 for a perfect score, the anomalies'
            share of all rows for a random one.
        area_error: its bootstrap error.
        num_anomalies, num_ordinary: rows that the curve is of.
        drawn_completeness, drawn_contamination: of the bootstrap samples.
    """

    threshold: Float[np.ndarray, " threshold"]
    completeness: Float[np.ndarray, " threshold"]
    contamination: Float[np.ndarray, " threshold"]
    completeness_error: Float[np.ndarray, " threshold"]
    contamination_error: Float[np.ndarray, " threshold"]
    area: float
    area_error: float
    num_anomalies: int
    num_ordinary: int
    drawn_completeness: Float[np.ndarray, "bootstrap threshold"]
    drawn_contamination: Float[np.ndarray, "bootstrap threshold"]

    def at_completeness(self, level: float) -> OperatingPoint:
        """The cleanest threshold that finds at least this share of the anomalies.

        Raises:
            ValueError: a level that is not above 0 and at most 1.

        Notes: chosen with the truth at hand, as is `at_contamination`'s: on other rows expect a little less.
        """
        if not 0.0 < level <= 1.0:
            raise ValueError(f"completeness = {level} must be above 0 and at most 1")
        # The last threshold finds all, in every bootstrap sample.
        drawn = np.min(np.where(self.drawn_completeness >= level, self.drawn_contamination, 1.0), axis=1)
        enough = np.where(self.completeness >= level, self.contamination, np.inf)
        return self._point(int(np.argmin(enough)), float(np.std(drawn)))

    def at_contamination(self, level: float) -> OperatingPoint:
        """The threshold that finds most anomalies with at most this share of ordinary rows among the called.

        Nothing is called where no threshold is as clean.

        Raises:
            ValueError: a level that is not between 0 and 1.
        """
        if not 0.0 <= level <= 1.0:
            raise ValueError(f"contamination = {level} must be between 0 and 1")
        drawn = np.max(np.where(self.drawn_contamination <= level, self.drawn_completeness, 0.0), axis=1)
        clean = np.flatnonzero(self.contamination <= level)
        return self._point(int(clean[-1]) if len(clean) else None, float(np.std(drawn)))

    def _point(self, i: int | None, error: float) -> OperatingPoint:
        if i is None:
            return OperatingPoint(np.inf, 0.0, 0.0, error)
        return OperatingPoint(
            float(self.threshold[i]), float(self.completeness[i]), float(self.contamination[i]), error
        )


def anomaly_curve(
    score: Float[np.ndarray, " row"],
    is_anomaly: Bool[np.ndarray, " row"],
    rng: np.random.Generator | int,
    num_bootstrap: int = 200,
) -> AnomalyCurve:
    """What a search by this score finds among rows whose nature is known.

    Args:
        score: higher for the more anomalous; ties are called together.
        is_anomaly: which are what is searched for (`labels == 2`, say); all others are contamination.
        rng: a generator, or a seed for one.
        num_bootstrap: bootstrap samples. Anomalies and ordinary rows are drawn with replacement each among themselves: their
            numbers are part of the test, not of its outcome.

    Raises:
        ValueError: shapes that do not fit, scores that are not numbers, truth that is not boolean, or none of a kind.
    """
    score, is_anomaly = np.asarray(score, float), np.asarray(is_anomaly)
    if score.ndim != 1 or is_anomaly.shape != score.shape:
        raise ValueError(
            f"scores of shape {score.shape} and truth of shape {is_anomaly.shape}: one of each a row wanted"
        )
    if is_anomaly.dtype != bool:
        raise ValueError(f"truth of type {is_anomaly.dtype}: true or false wanted, as from labels == 1")
    refuse(np.isnan(score), "have a score that is not a number")
    num_anomalies, num_ordinary = int(np.sum(is_anomaly)), int(np.sum(~is_anomaly))
    if not num_anomalies or not num_ordinary:
        raise ValueError(f"{num_anomalies} anomalies and {num_ordinary} ordinary rows: some of each wanted for a curve")
    if num_bootstrap < 1:
        raise ValueError(f"num_bootstrap = {num_bootstrap} must be at least 1")
    threshold = np.unique(score[is_anomaly])[::-1]
    # Rows that each threshold calls and the one before does not; the last bin of the ordinary is never called.
    num = len(threshold)
    bins = np.searchsorted(-threshold, -score, side="left")
    anomalies = np.bincount(bins[is_anomaly], minlength=num)
    ordinary = np.bincount(bins[~is_anomaly], minlength=num + 1)
    completeness, contamination, area = _shares(anomalies, ordinary)
    # Counts of rows drawn with replacement are multinomial: no need to draw the rows.
    rng = np.random.default_rng(rng)
    drawn, drawn_contamination, drawn_area = _shares(
        *(rng.multinomial(np.sum(each), each / np.sum(each), size=num_bootstrap) for each in (anomalies, ordinary))
    )
    return AnomalyCurve(
        threshold=threshold,
        completeness=completeness,
        contamination=contamination,
        completeness_error=np.std(drawn, axis=0),
        contamination_error=np.std(drawn_contamination, axis=0),
        area=float(area),
        area_error=float(np.std(drawn_area)),
        num_anomalies=num_anomalies,
        num_ordinary=num_ordinary,
        drawn_completeness=drawn,
        drawn_contamination=drawn_contamination,
    )


def _shares(
    anomalies: Float[np.ndarray, "*draw threshold"], ordinary: Float[np.ndarray, "*draw bin"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Completeness, contamination and average precision by the counts that each threshold adds."""
    found, wrong = np.cumsum(anomalies, axis=-1), np.cumsum(ordinary[..., :-1], axis=-1)
    called = np.maximum(found + wrong, 1)  # where nothing is called, nothing is contaminated
    total = found[..., -1:]
    return found / total, wrong / called, np.sum(anomalies / total * (found / called), axis=-1)
