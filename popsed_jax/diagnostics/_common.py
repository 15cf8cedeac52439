"""What the diagnostics share: checks of what they are given, and bootstrap errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float


def refuse(bad: Bool[np.ndarray, " galaxy"], what: str) -> None:
    """Raise when any galaxy is bad: a diagnostic of those that happen to be numbers would flatter.

    Raises:
        ValueError: says of how many galaxies `what` holds.
    """
    if np.any(bad):
        raise ValueError(
            f"{np.sum(bad)} of {len(bad)} galaxies {what} (the first is row {np.argmax(bad)}): "
            "leave them out, and say how many"
        )


def checked_samples(
    samples: Float[np.ndarray, "galaxy sample ..."], weights: Float[np.ndarray, "galaxy sample"] | None
) -> tuple[Float[np.ndarray, "galaxy sample ..."], Float[np.ndarray, "galaxy sample"]]:
    """Samples as floats, and their weights with the sum of one for every galaxy.

    Args:
        weights: any positive multiple of the samples' weights; None: all alike.

    Raises:
        ValueError: no samples, a shape that does not fit, a value that is not a number, or weights of no or negative mass.
    """
    samples = np.asarray(samples, float)
    if samples.ndim < 2 or 0 in samples.shape:
        raise ValueError(f"samples of shape {samples.shape}: (galaxy, sample) or (galaxy, sample, parameter) wanted")
    refuse(~np.isfinite(samples).all(axis=tuple(range(1, samples.ndim))), "have samples that are not numbers")
    if weights is None:
        return samples, np.broadcast_to(1.0 / samples.shape[1], samples.shape[:2])
    weights = np.asarray(weights, float)
    if weights.shape != samples.shape[:2]:
        raise ValueError(f"weights of shape {weights.shape} do not fit samples of shape {samples.shape}")
    refuse(~np.isfinite(weights).all(axis=1), "have weights that are not numbers")
    total = np.sum(weights, axis=1)
    refuse((weights < 0.0).any(axis=1) | (total <= 0.0), "have negative weights, or none above zero")
    return samples, weights / total[:, None]


def checked_truth(truth: Float[np.ndarray, "galaxy ..."], shape: tuple[int, ...]) -> Float[np.ndarray, "galaxy ..."]:
    """True values as floats, one for each galaxy (and parameter).

    Raises:
        ValueError: another shape, or a value that is not a number.
    """
    truth = np.asarray(truth, float)
    if truth.shape != shape:
        raise ValueError(f"true values of shape {truth.shape}: {shape} wanted, as the posteriors have")
    refuse(~np.isfinite(truth.reshape(len(truth), -1)).all(axis=1), "have true values that are not numbers")
    return truth


def effective_size(shares: Float[np.ndarray, "galaxy sample"]) -> Float[np.ndarray, " galaxy"]:
    """Equal samples that weighted ones are worth. (Kish 1965)"""
    return 1.0 / np.sum(shares**2, axis=1)


def bootstrap(
    statistics: Callable[[np.ndarray], Mapping[str, float]],
    rows: Float[np.ndarray, "galaxy ..."],
    rng: np.random.Generator,
    num_bootstrap: int,
) -> dict[str, dict[str, float]]:
    """Statistics of rows, each as its `value` and its `error`: the scatter over galaxies drawn with replacement."""
    values = statistics(rows)
    drawn = [statistics(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(num_bootstrap)]
    return {
        name: {"value": float(value), "error": float(np.std([each[name] for each in drawn]))}
        for name, value in values.items()
    }
