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

from popsed_jax.observe.forward import ForwardModel, any_of
from popsed_jax.population.batching import BATCH

VISIBLE = 0.05  # least probability of detection at which a galaxy is taken for seen
_UNSEEN = 0.01  # of the galaxies at a mass and redshift; below, the survey does not see that mass there
_NUM_KINDS = 400


def intrinsic_weights(
    detection: Float[np.ndarray, " num"], tilt: float, visible: float = VISIBLE
) -> Float[np.ndarray, " num"]:
    """Masses that turn draws of a flow into the intrinsic population of visible galaxies; sum to one.

    Args:
        detection: p(kept | theta) of the draws.
        tilt: of the flow, see `FitConfig`.
        visible: galaxies with a smaller probability get no mass.

    Raises:
        ValueError: none of them is visible.
    """
    seen = detection >= visible
    if not seen.any():
        raise ValueError(
            f"none of {len(detection)} galaxies is kept with a probability of {visible}: nothing is visible"
        )
    weights = np.where(seen, np.maximum(detection, visible) ** -tilt, 0.0)
    return weights / weights.sum()


def detected_fraction(detection: Float[np.ndarray, " num"], tilt: float, visible: float = VISIBLE) -> dict[str, float]:
    """Share of the visible galaxies that the survey keeps, and the effective number of draws behind it (Kish 1965)."""
    weights = intrinsic_weights(detection, tilt, visible)
    return {
        "visible_above": visible,
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
        of the galaxies and below which less than one in a hundred; None beyond the bounds.
    """
    space = surveys[0].space
    bounds, mass = space["redshift"], space["log_mass"]
    kinds = theta[rng.choice(len(theta), _NUM_KINDS, p=weights)]
    redshifts = bounds.low + (bounds.high - bounds.low) * (np.arange(num_redshifts) + 0.5) / num_redshifts
    grid = np.repeat(kinds[None], num_redshifts, axis=0)
    grid[:, :, space.index("redshift")] = redshifts[:, None]
    grid[:, :, space.index("log_mass")] = mass.low
    masses = np.arange(mass.low, mass.high, 0.05)
    kept = _kept_at_masses(surveys, jnp.asarray(grid.reshape(-1, grid.shape[-1])), jnp.asarray(masses - mass.low))
    share = kept.reshape(num_redshifts, _NUM_KINDS, -1).mean(axis=1)

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


def _kept_at_masses(
    surveys: tuple[ForwardModel, ...], theta: Float[Array, "num dim"], more: Float[Array, " mass"]
) -> np.ndarray:
    pieces = [_kept_piece(surveys, theta[i : i + BATCH], more) for i in range(0, len(theta), BATCH)]
    return np.concatenate([np.asarray(piece) for piece in pieces])


@jax.jit
def _kept_piece(surveys: tuple[ForwardModel, ...], theta: Array, more: Array) -> Array:
    fluxes = [survey.flux(theta) for survey in surveys]  # proportional to mass

    def kept(dex: Array) -> Array:
        return any_of([one.detection_of(10.0**dex * flux) for one, flux in zip(surveys, fluxes, strict=True)])

    return jax.lax.map(kept, more).T
