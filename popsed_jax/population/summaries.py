"""What a fit found, in numbers: distances to the data, to the reference and to the spectroscopic redshifts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.stats import wasserstein_distance

from popsed_jax.observe.calibration import Calibration
from popsed_jax.observe.forward import ForwardModel, joint_detection, joint_flux
from popsed_jax.population.batching import map_batches
from popsed_jax.population.objective import Problem, record
from popsed_jax.population.space import ComparisonSpace
from popsed_jax.population.survey import Survey, validation_distance


class Galaxies(NamedTuple):
    """Simulated galaxies of one population, as each survey sees them.

    Attributes:
        theta: parameters.
        derived: derived properties by name.
        detection: probability that any of the surveys keeps each.
        mags: by survey: noisy asinh magnitudes, missing ones filled in (see `ComparisonSpace`).
        present: by survey: which bands each has; None: all.
        weights: by survey: masses that turn these galaxies into those that it keeps; None: all alike.
        member: flow that each came from.
    """

    theta: Float[np.ndarray, "num dim"]
    derived: Mapping[str, Float[np.ndarray, " num"]]
    detection: Float[np.ndarray, " num"]
    mags: tuple[Float[np.ndarray, "num band"], ...]
    present: tuple[Bool[np.ndarray, "num band"] | None, ...]
    weights: tuple[Float[np.ndarray, " num"] | None, ...]
    member: np.ndarray

    def quoted(self, survey: int) -> Float[np.ndarray, "num band"]:
        """Magnitudes as the survey has them: NaN where a band is missing."""
        present = self.present[survey]
        return self.mags[survey] if present is None else np.where(present, self.mags[survey], np.nan)

    def kept(self, rng: np.random.Generator, survey: int = 0) -> Galaxies:
        """As many galaxies, drawn by their weights: those that the survey keeps."""
        weights = self.weights[survey]
        if weights is None:
            return self
        index = rng.choice(len(weights), len(weights), p=weights / weights.sum())
        return jax.tree.map(lambda array: array[index], self)


def observe_galaxies(
    key: Array,
    problem: Problem,
    theta: Float[Array | np.ndarray, "num dim"],
    member: Array | np.ndarray,
    calibration: tuple[Calibration, ...],
) -> Galaxies:
    """Derived properties and photometry of given galaxies, with the calibration of the member that each came from."""
    theta, member = np.asarray(theta), np.asarray(member)
    each = jax.tree.map(lambda leaf: np.asarray(leaf)[member], calibration)
    # In parts that other steps need too, so that each is compiled once.
    derived = map_batches(ForwardModel.derived, problem.forwards[0], theta)
    fluxes = map_batches(joint_flux, problem.forwards, theta)
    redshift = theta[:, problem.parameters.index("redshift")]
    pieces = (np.arange(len(theta)), redshift, fluxes, each)
    detection, recorded, weights = map_batches(_record, (key, problem), pieces)
    return Galaxies(
        theta,
        derived,
        detection,
        tuple(part.mags for part in recorded),
        tuple(
            None if forward.missing is None else np.asarray(forward.missing.patterns)[part.pattern]
            for part, forward in zip(recorded, problem.forwards, strict=True)
        ),
        weights,
        member,
    )


def _record(model: tuple[Array, Problem], piece: tuple[Any, ...]) -> tuple[Any, ...]:
    """Probability of detection, and what the surveys record of galaxies of known fluxes."""
    (key, problem), (number, redshift, fluxes, calibration) = model, piece
    recorded, weights = record(jax.random.fold_in(key, number[0]), problem, redshift, fluxes, calibration)
    return joint_detection(problem.forwards, fluxes), recorded, weights


def named_galaxies(forward: ForwardModel, theta: Float[np.ndarray, "num dim"]) -> dict[str, np.ndarray]:
    """Parameters and derived properties by name."""
    named = {name: np.asarray(theta[:, i]) for i, name in enumerate(forward.space.names)}
    return named | map_batches(ForwardModel.derived, forward, theta)


def distance_to_data(
    survey: Survey,
    mags: Float[np.ndarray, "num band"],
    weights: Float[np.ndarray, " num"] | None,
    blur: float,
    repeats: int = 5,
) -> float:
    """Validation distance of simulated galaxies to the held-out ones: mean over disjoint draws of the same size."""
    size = survey.held_out.shape[0]
    repeats = max(1, min(repeats, len(mags) // size))
    distance = jax.jit(validation_distance)
    data = survey.space.features(survey.held_out)
    values = []
    for i in range(repeats):
        part = slice(i * size, (i + 1) * size)
        masses = None if weights is None else jnp.asarray(weights[part])
        values.append(float(distance(survey.space.features(jnp.asarray(mags[part])), data, blur, masses)))
    return float(np.mean(values))


def marginal_distances(
    model: Float[np.ndarray, "num band"],
    data: Float[np.ndarray, "galaxy band"],
    bands: tuple[str, ...],
    rng: np.random.Generator,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """1-D Wasserstein distances [mag] of each band and each neighbouring colour, beside the data's split-half distance.

    Args:
        model, data: magnitudes; NaN where a galaxy lacks the band.
    """

    def compare(a: np.ndarray, b: np.ndarray) -> dict[str, float] | None:
        a, b = a[np.isfinite(a)], b[np.isfinite(b)]
        if min(len(a), len(b)) < 2:
            return None  # two bands that no galaxy has together
        half = rng.permutation(len(b))
        floor = wasserstein_distance(b[half[: len(b) // 2]], b[half[len(b) // 2 :]])
        return {"wasserstein": float(wasserstein_distance(a, b)), "noise_floor": float(floor)}

    by_band = {band: compare(model[:, i], data[:, i]) for i, band in enumerate(bands)}
    by_color = {
        f"{bands[i]}-{bands[i + 1]}": compare(model[:, i] - model[:, i + 1], data[:, i] - data[:, i + 1])
        for i in range(len(bands) - 1)
    }
    return _known(by_band), _known(by_color)


def _known(entries: dict[str, dict[str, float] | None]) -> dict[str, dict[str, float]]:
    return {name: entry for name, entry in entries.items() if entry is not None}


def calibration_metrics(
    survey: Survey, calibration: Calibration, bands: tuple[str, ...], weights: Float[np.ndarray, " member"]
) -> dict[str, Any]:
    """What was learned of the calibration: mean and spread over the members, and how wide the prior was.

    Args:
        calibration: of all members.
        weights: of the members; those without weight are left out.
    """
    model, chosen = survey.calibration, np.flatnonzero(weights > 0)
    share = weights[chosen] / weights[chosen].sum()

    def describe(values: Array | np.ndarray, sigma: Array | np.ndarray) -> list[dict[str, float]]:
        table = np.asarray(values)[chosen]
        mean = share @ table
        spread = np.sqrt(share @ (table - mean) ** 2)
        priors = np.broadcast_to(np.asarray(sigma), mean.shape)
        return [
            {"mean": float(m), "spread": float(s), "prior_sigma": float(p)}
            for m, s, p in zip(mean, spread, priors, strict=True)
        ]

    offsets = describe(model.offsets(calibration), model.offset_sigma)
    floors = describe(model.noise(calibration, survey.forward.noise).floor, model.floor_sigma)
    means = [{"prior_mean": float(mean)} for mean in model.offset_mean]
    found: dict[str, Any] = {
        "zero_points": {band: entry | mean for band, entry, mean in zip(bands, offsets, means, strict=True)},
        "floors": dict(zip(bands, floors, strict=True)),
    }
    if float(model.template_sigma) > 0.0 or np.any(model.template_mean):
        wave = jnp.exp(model.knots)
        errors = jax.vmap(lambda template: model.template_error(template, wave))(calibration.template)
        prior = model.template_error(jnp.zeros_like(wave), wave)
        entries = describe(errors, model.template_sigma)
        found["template_error"] = [
            {"wave": float(w), **entry, "prior_mean": float(mean)}
            for w, entry, mean in zip(wave, entries, prior, strict=True)
        ]
    return found


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
