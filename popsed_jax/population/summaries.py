"""What a fit found, in numbers: distances to the data, to the reference and to the spectroscopic redshifts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.stats import wasserstein_distance

from popsed_jax.observe.forward import ForwardModel
from popsed_jax.population.batching import map_batches
from popsed_jax.population.objective import Problem, validation_distance
from popsed_jax.population.space import ComparisonSpace


class Galaxies(NamedTuple):
    """Simulated galaxies of one population.

    Attributes:
        theta: parameters.
        derived: derived properties by name.
        mags: noisy asinh magnitudes.
        member: flow that each came from.
    """

    theta: Float[np.ndarray, "num dim"]
    derived: Mapping[str, Float[np.ndarray, " num"]]
    mags: Float[np.ndarray, "num band"]
    member: np.ndarray


def observe_galaxies(
    key: Array, problem: Problem, theta: Float[Array, "num dim"], member: Array, offset: Float[Array, "member band"]
) -> Galaxies:
    """Derived properties and photometry of given galaxies, with the offsets of the member that each came from."""
    forward = problem.forward
    flux = map_batches(ForwardModel.flux, forward, theta)[:, : forward.num_bands] * 10.0 ** (-0.4 * offset[member])
    observed, _ = forward.noise.observe(key, flux)
    derived = map_batches(ForwardModel.derived, forward, theta)
    return Galaxies(
        np.asarray(theta),
        {name: np.asarray(value) for name, value in derived.items()},
        np.asarray(problem.space.mags(observed)),
        np.asarray(member),
    )


def distance_to_data(problem: Problem, mags: Float[np.ndarray, "num band"], blur: float, repeats: int = 5) -> float:
    """Validation distance of simulated galaxies to the held-out ones: mean over disjoint draws of the same size."""
    size = problem.held_out.shape[0]
    repeats = max(1, min(repeats, len(mags) // size))
    distance = jax.jit(validation_distance)
    data = problem.space.features(problem.held_out)
    parts = [problem.space.features(jnp.asarray(mags[i * size : (i + 1) * size])) for i in range(repeats)]
    return float(np.mean([float(distance(part, data, blur)) for part in parts]))


def marginal_distances(
    model: Float[np.ndarray, "num band"],
    data: Float[np.ndarray, "galaxy band"],
    bands: tuple[str, ...],
    rng: np.random.Generator,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """1-D Wasserstein distances [mag] of each band and each neighbouring colour, beside the data's split-half distance."""

    def compare(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
        half = rng.permutation(len(b))
        floor = wasserstein_distance(b[half[: len(b) // 2]], b[half[len(b) // 2 :]])
        return {"wasserstein": float(wasserstein_distance(a, b)), "noise_floor": float(floor)}

    by_band = {band: compare(model[:, i], data[:, i]) for i, band in enumerate(bands)}
    by_color = {
        f"{bands[i]}-{bands[i + 1]}": compare(model[:, i] - model[:, i + 1], data[:, i] - data[:, i + 1])
        for i in range(len(bands) - 1)
    }
    return by_band, by_color


def redshift_metrics(
    inferred: Float[np.ndarray, " num"],
    spec: Float[np.ndarray, " galaxy"],
    rng: np.random.Generator,
    num_bootstrap: int = 200,
) -> dict[str, float]:
    """1-D Wasserstein distance and mean offset of inferred redshifts from spectroscopic ones, with bootstrap errors."""
    spec = spec[np.isfinite(spec)]
    resampled = [(rng.choice(inferred, len(inferred)), rng.choice(spec, len(spec))) for _ in range(num_bootstrap)]
    distances = [wasserstein_distance(a, b) for a, b in resampled]
    offsets = [a.mean() - b.mean() for a, b in resampled]
    return {
        "wasserstein": float(wasserstein_distance(inferred, spec)),
        "wasserstein_error": float(np.std(distances)),
        "mean_offset": float(inferred.mean() - spec.mean()),
        "mean_offset_error": float(np.std(offsets)),
        "num_spectroscopic": len(spec),
    }


def information_gain(
    learned: Float[np.ndarray, " num"], reference: Float[np.ndarray, " other"], num_bins: int = 40
) -> float:
    """KL(learned || reference) of one marginal [nat], by counting in bins of equal reference mass."""
    edges = np.unique(np.quantile(reference, np.linspace(0.0, 1.0, num_bins + 1)))
    edges[0], edges[-1] = -np.inf, np.inf
    p = (np.histogram(learned, edges)[0] + 0.5) / (len(learned) + 0.5 * (len(edges) - 1))
    q = (np.histogram(reference, edges)[0] + 0.5) / (len(reference) + 0.5 * (len(edges) - 1))
    return float(np.sum(p * np.log(p / q)))


def member_weights(objective: Float[np.ndarray, " member"], controlled: np.ndarray, floor_scatter: float) -> np.ndarray:
    """Weights of the ensemble's members from the validation objective.

    Objectives closer than the noise floor's own scatter cannot be told apart, so that scatter is the scale.

    Args:
        objective: the best validation objective of each member, lower is better.
        controlled: 0 for the flat control, which gets no weight.
        floor_scatter: standard deviation of the noise floor over the floor.
    """
    finite = np.isfinite(objective) & (np.asarray(controlled) > 0)
    if not finite.any():
        # Nothing was validated (stopped in the first epoch): all members count alike.
        finite = np.asarray(controlled) > 0
        return finite / finite.sum()
    relative = np.where(finite, objective - np.min(objective[finite]), np.inf)
    weights = np.exp(-relative / max(floor_scatter, 0.01))
    return weights / weights.sum()


def parameter_metrics(
    labels: Mapping[str, tuple[str, str, str]], learned: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """By parameter: unit, label, description, moments of learned and reference marginals and how far the data moved them.

    Args:
        labels: unit, LaTeX label and description by name.
    """
    return {
        name: {
            "unit": unit,
            "label": label,
            "description": description,
            "mean": float(np.mean(learned[name])),
            "std": float(np.std(learned[name])),
            "reference_mean": float(np.mean(reference[name])),
            "reference_std": float(np.std(reference[name])),
            "information_gain": information_gain(learned[name], reference[name]),
        }
        for name, (unit, label, description) in labels.items()
    }


def verdict(ratio: float, interrupted_at: int | None, num_epochs: int, limit: float = 1.5) -> tuple[bool, str]:
    """Whether the fit can be used, and why, in a sentence."""
    if not np.isfinite(ratio):
        return False, "The model's distance to the data is not a number: look for impossible fluxes or bounds."
    where = f"the model is {ratio:.2f} times as far from the held-out galaxies as they are from each other"
    if interrupted_at is not None:
        return False, f"Stopped after epoch {interrupted_at} of {num_epochs}: {where}. Resume to finish it."
    if ratio > limit:
        return False, (
            f"The photometry is not matched: {where} (at most {limit} wanted). Train longer, or look for bands whose "
            "distances stand out: a wrong zero point, filter or unit, or a model that lacks something."
        )
    return True, f"The photometry is matched: {where} (at most {limit} wanted)."


def mags_of(space: ComparisonSpace, flux: Float[np.ndarray, "galaxy band"]) -> np.ndarray:
    """The catalogue's asinh magnitudes as a NumPy array."""
    return np.asarray(space.mags(jnp.asarray(flux)))
