"""From the galaxies that a survey keeps to all that there are, where it can see them.

A flow learns the intrinsic population times p(kept | theta)^tilt. Dividing by that power gives the intrinsic population; but only
where the probability is not small: a kind of galaxy of which the survey keeps one in a thousand is known by its prior alone.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.observe.forward import ForwardModel, joint_detection, joint_flux
from popsed_jax.population.batching import map_batches

# Both against the best-seen galaxies: a survey that samples one galaxy in a hundred of every kind sees all kinds.
VISIBLE = 0.05  # least probability of detection at which a galaxy is taken for seen
_UNSEEN = 0.01  # share of the galaxies at a mass and redshift below which the survey does not see that mass there
_NUM_KINDS = 400


def detection_by_any(
    surveys: tuple[ForwardModel, ...], theta: Float[Array | np.ndarray, "num dim"]
) -> Float[np.ndarray, " num"]:
    """Probability that any of the surveys keeps each galaxy, for any number of them."""
    return map_batches(joint_detection, surveys, map_batches(joint_flux, surveys, theta))


def intrinsic_weights(
    detection: Float[np.ndarray, " num"], tilt: float, visible: float = VISIBLE
) -> Float[np.ndarray, " num"]:
    """Masses that turn draws of a flow into the intrinsic population of visible galaxies; sum to one.

    Args:
        detection: p(kept | theta) of the draws.
        tilt: of the flow, see `FitConfig`.
        visible: galaxies with a smaller probability, as a share of the largest, get no mass.
    """
    least = max(visible * float(detection.max()), float(np.finfo(np.float32).tiny))
    weights = np.where(detection >= least, np.maximum(detection, least) ** -tilt, 0.0)
    return weights / weights.sum()


def detected_fraction(detection: Float[np.ndarray, " num"], tilt: float, visible: float = VISIBLE) -> dict[str, float]:
    """Share of the visible galaxies that the survey keeps, and the effective number of draws behind it (Kish 1965)."""
    weights = intrinsic_weights(detection, tilt, visible)
    return {
        "visible_above": visible * float(detection.max()),
        "fraction": float(weights @ detection),
        "effective_draws": float(1.0 / np.sum(weights**2)),
    }


def visibility(
    surveys: tuple[ForwardModel, ...],
    theta: Float[np.ndarray, "num dim"],
    weights: Float[np.ndarray, " num"],
    rng: np.random.Generator,
    num_redshifts: int = 12,
) -> list[dict[str, Any]]:
    """How massive a galaxy must be at each redshift to be seen: the learned kinds of galaxies, put everywhere.

    Args:
        theta, weights: the intrinsic population.

    Returns:
        For each redshift: `complete_above` and `unseen_below`, log10 of the mass formed [Msun] above which the surveys keep half
        of the galaxies and below which less than one in a hundred, of as many as they keep where they keep most; None beyond
        the bounds.
    """
    space = surveys[0].space
    bounds, mass = space["redshift"], space["log_mass"]
    kinds = theta[rng.choice(len(theta), _NUM_KINDS, p=weights)]
    redshifts = bounds.low + (bounds.high - bounds.low) * (np.arange(num_redshifts) + 0.5) / num_redshifts
    grid = np.repeat(kinds[None], num_redshifts, axis=0)
    grid[:, :, space.index("redshift")] = redshifts[:, None]
    grid[:, :, space.index("log_mass")] = mass.low
    masses = np.arange(mass.low, mass.high, 0.05)
    fluxes = map_batches(joint_flux, surveys, grid.reshape(-1, grid.shape[-1]))
    kept = map_batches(_kept_at_masses, (surveys, jnp.asarray(masses - mass.low)), fluxes)
    share = kept.reshape(num_redshifts, _NUM_KINDS, -1).mean(axis=1)
    share = share / max(float(share.max()), float(np.finfo(np.float32).tiny))

    def least(row: np.ndarray, above: float) -> float | None:
        return float(masses[np.argmax(row >= above)]) if np.any(row >= above) else None

    return [
        {"redshift": float(z), "complete_above": least(row, 0.5), "unseen_below": least(row, _UNSEEN)}
        for z, row in zip(redshifts, share, strict=True)
    ]


def visibility_warning(table: list[dict[str, Any]]) -> str:
    """What the survey cannot see, in a sentence."""
    seen = [row for row in table if row["unseen_below"] is not None]
    if not seen:
        return "The survey sees nothing: check [selection]."
    shown = [seen[i] for i in sorted({0, len(seen) // 2, len(seen) - 1})]
    masses = ", ".join(f"log_mass {row['unseen_below']:.1f} at redshift {row['redshift']:.2f}" for row in shown)
    beyond = (
        "" if len(seen) == len(table) else f", and nothing at redshift {table[len(seen)]['redshift']:.2f} and beyond"
    )
    return f"Not seen (fewer than 1 % kept), so known by the reference alone: galaxies below {masses}{beyond}."


def _kept_at_masses(model: tuple[tuple[ForwardModel, ...], Array], fluxes: tuple[Array, ...]) -> Array:
    """Probability that any survey keeps each galaxy, (galaxy, mass), if it had so many dex more mass: so much more flux."""
    surveys, more = model
    return jax.lax.map(lambda dex: joint_detection(surveys, tuple(10.0**dex * flux for flux in fluxes)), more).T
