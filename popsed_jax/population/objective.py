"""What the training minimises, and the fixed objective by which states are judged."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from popsed_jax.flows.spline import SplineFlow
from popsed_jax.observe.calibration import Calibration
from popsed_jax.observe.forward import ForwardModel, joint_detection, joint_flux
from popsed_jax.parameters import ParameterSpace
from popsed_jax.population.devices import spread
from popsed_jax.population.galaxies import Batch
from popsed_jax.population.schedules import Schedule
from popsed_jax.population.survey import MAX_WEIGHT, Recorded, Survey, observe, validation_distance, with_redshift
from popsed_jax.transport import TransportMix, transport_cost

PIECE = 16384  # galaxies simulated at a time


@flax.struct.dataclass
class Problem:
    """What all members share: the physics, and what the surveys do. An argument of the compiled epoch, never closed over.

    Attributes:
        surveys: one or several, of one population.
        tilt: the flow describes the intrinsic population times p(kept | theta)^tilt, kept by any of the surveys: 1 the
            galaxies that they keep, 0 all that there are.
    """

    surveys: tuple[Survey, ...]
    tilt: float = flax.struct.field(pytree_node=False, default=1.0)

    @property
    def forwards(self) -> tuple[ForwardModel, ...]:
        """How each survey sees galaxies."""
        return tuple(survey.forward for survey in self.surveys)

    @property
    def parameters(self) -> ParameterSpace:
        """The galaxies' parameters."""
        return self.surveys[0].forward.space

    @property
    def weighted(self) -> bool:
        """Whether simulated galaxies carry weights: not where the flow's own galaxies are those that the survey keeps."""
        cuts = [survey.forward.selection for survey in self.surveys if survey.forward.selection.cuts]
        return bool(cuts) and (self.tilt != 1.0 or len(self.surveys) > 1 or any(cut.observed for cut in cuts))


class Trained(NamedTuple):
    """What the optimiser moves in one member.

    Attributes:
        layers: the flow's coupling layers.
        calibration: of each survey: zero points, template error and floors of the noise.
        shift: of the whole reference along each parameter, over its literature uncertainty (see `Member.shift_scale`).
    """

    layers: Any
    calibration: tuple[Calibration, ...]
    shift: Float[Array, " dim"]


class Member(NamedTuple):
    """What is fixed in one member.

    Attributes:
        reference: its reference population as a flow; the start and the anchor of the trained one.
        shift_scale: one standard deviation of the reference's systematic shift, in u. The literature's relations share
            systematic errors over all galaxies; a pure KL(q || q0) would take these for as unlikely as scatter.
        controlled: 1 when its weight of the reference adapts, 0 when it stays zero (the flat-reference control).
        number: of the member, by which its random numbers differ from the others'.
    """

    reference: SplineFlow
    shift_scale: Float[Array, " dim"]
    controlled: Float[Array, ""]
    number: Int[Array, ""]


class LossTerms(NamedTuple):
    """Transport cost over the floor's, relative entropy to the reference [nat], prior of calibration and shifts."""

    transport: Float[Array, ""]
    kl: Float[Array, ""]
    penalty: Float[Array, ""]


class Simulated(NamedTuple):
    """Galaxies of a flow, as the surveys record them.

    Attributes:
        u: unconstrained parameters.
        redshift: their redshifts.
        recorded: by each survey.
        weights: for each survey, masses that turn the flow's galaxies into those that it keeps; None: all alike.
    """

    u: Float[Array, "num dim"]
    redshift: Float[Array, " num"]
    recorded: tuple[Recorded, ...]
    weights: tuple[Float[Array, " num"] | None, ...]


def simulate(
    key: Array,
    problem: Problem,
    flow: SplineFlow,
    calibration: tuple[Calibration, ...],
    num: int,
    noise_divisor: Array | float,
    mesh: Mesh | None = None,
) -> Simulated:
    """Draw galaxies, observe them with every survey, and weigh them.

    Many are made in pieces, each computed again for its gradient, so that memory holds what a piece needs and not what all do.

    Args:
        mesh: the devices over which the draws are spread.
    """

    def piece(key: Array, size: int) -> Simulated:
        key_flow, key_noise = jax.random.split(key)
        u = spread(flow.sample(key_flow, size), mesh)
        theta = problem.parameters.to_theta(u)
        redshift = theta[:, problem.parameters.index("redshift")]
        fluxes = joint_flux(problem.forwards, theta)
        recorded, weights = record(key_noise, problem, redshift, fluxes, calibration, noise_divisor)
        return Simulated(u, redshift, recorded, weights)

    if num <= PIECE:
        return piece(key, num)
    keys = jax.random.split(key, -(-num // PIECE))
    pieces = jax.lax.map(jax.checkpoint(lambda key: piece(key, PIECE)), keys)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:num], pieces)


def record(
    key: Array,
    problem: Problem,
    redshift: Float[Array, " num"],
    fluxes: tuple[Float[Array, "num _"], ...],
    calibration: tuple[Calibration, ...],
    noise_divisor: Array | float = 1.0,
) -> tuple[tuple[Recorded, ...], tuple[Float[Array, " num"] | None, ...]]:
    """Observe galaxies with every survey, from their noise-free fluxes; see `Simulated` for what it returns."""
    recorded = tuple(
        observe(jax.random.fold_in(key, i), survey, flux, redshift, part, noise_divisor)
        for i, (survey, flux, part) in enumerate(zip(problem.surveys, fluxes, calibration, strict=True))
    )
    if not problem.weighted:
        return recorded, (None,) * len(recorded)
    proposed = jnp.maximum(joint_detection(problem.forwards, fluxes), 1e-6) ** problem.tilt
    return recorded, tuple(jnp.minimum(part.kept / proposed, MAX_WEIGHT) for part in recorded)


def relative_entropy(
    u: Float[Array, "num dim"], flow: SplineFlow, shift: Float[Array, " dim"], reference: SplineFlow
) -> Float[Array, ""]:
    """KL(flow || reference moved by `shift`) [nat], estimated on the flow's own draws u.

    Its gradient flows through the draws alone (Roeder, Wu & Duvenaud 2017, eq. 8): the same expectation, and no noise at all
    where flow and reference agree, so that what the data do not ask for stays put.
    """
    log_q = jax.lax.stop_gradient(flow).log_prob(u)
    return jnp.mean(log_q - reference.log_prob(u - shift))


def member_loss(
    trained: Trained,
    key: Array,
    member: Member,
    problem: Problem,
    batch: Batch,
    row: Schedule,
    log_lambda: Array,
    settings: Any,
) -> tuple[Array, LossTerms]:
    """Transport between simulated and observed batches + lambda * KL(q || q0), both estimated on this batch.

    Args:
        settings: a `TrainSettings`.
    """
    key_draw, _, key_cost = jax.random.split(key, 3)  # by the second the batch was drawn
    flow = dataclasses.replace(member.reference, layers=trained.layers)
    num = settings.batch_size
    model = simulate(key_draw, problem, flow, trained.calibration, num, row.noise_divisor, settings.mesh)

    def distance(key: Array, x: Array, y: Array, weights: Array | None) -> Array:
        mix = TransportMix(row.sliced if settings.sliced else 0.0, row.sinkhorn if settings.sinkhorn else 0.0)
        return transport_cost(key, x, y, blur=row.blur, mix=mix, config=settings.transport, weights_x=weights)[0]

    cost, penalty = jnp.zeros(()), 0.5 * jnp.sum(trained.shift**2)
    for i, survey in enumerate(problem.surveys):
        recorded, weights = model.recorded[i], model.weights[i]
        features = survey.space.features(recorded.mags), survey.space.features(batch.mags[i])
        cost += distance(jax.random.fold_in(key_cost, i), *features, weights) / survey.floor**2
        penalty += survey.calibration.penalty(trained.calibration[i])
        spectra = batch.spectra[i]
        if survey.spectroscopy is not None and spectra is not None:
            pair = _redshifts_compared(survey, recorded, model.redshift, *spectra)
            known = _spectroscopic(recorded, weights)
            known_cost = distance(jax.random.fold_in(key_cost, 1000 + i), *pair, known) / survey.spectroscopy.floor**2
            cost += jnp.sqrt(survey.spectroscopy.share) * known_cost
    kl = relative_entropy(model.u[: settings.num_kl], flow, trained.shift * member.shift_scale, member.reference)
    weight = member.controlled * jnp.exp(log_lambda)
    # As in a Dirichlet-process prior: the reference counts as so many galaxies, the prior of calibration and shifts as one.
    loss = cost + weight * (kl + penalty / settings.reference_strength)
    return loss, LossTerms(cost, kl, penalty)


def validation_ratio(key: Array, trained: Trained, member: Member, problem: Problem, settings: Any) -> Array:
    """Distance of the model to the held-out data over the noise floor: full noise, final blur, fixed key and data.

    Of several surveys, and of redshifts beside photometry, the root of the mean square.
    """
    flow = dataclasses.replace(member.reference, layers=trained.layers)
    num = max(survey.held_out.shape[0] for survey in problem.surveys)
    model = simulate(key, problem, flow, trained.calibration, num, 1.0, settings.mesh)
    ratios = []
    for survey, recorded, weights in zip(problem.surveys, model.recorded, model.weights, strict=True):
        held = survey.held_out.shape[0]
        masses = None if weights is None else weights[:held]
        features = survey.space.features(recorded.mags[:held]), survey.space.features(survey.held_out)
        ratios.append(validation_distance(*features, settings.validation_blur, masses) / survey.floor)
        if survey.spectroscopy is not None:
            spectroscopy = survey.spectroscopy
            pair = _redshifts_compared(survey, recorded, model.redshift, spectroscopy.mags, spectroscopy.redshift)
            known = _spectroscopic(recorded, weights)
            ratios.append(validation_distance(*pair, settings.validation_blur, known) / spectroscopy.floor)
    return jnp.sqrt(jnp.mean(jnp.stack(ratios) ** 2))


def _redshifts_compared(
    survey: Survey, recorded: Recorded, redshift: Array, mags: Array, known: Array
) -> tuple[Array, Array]:
    """Photometry and redshift of the model, and of galaxies of the survey."""
    return with_redshift(survey, recorded.mags, redshift), with_redshift(survey, mags, known)


def _spectroscopic(recorded: Recorded, weights: Array | None) -> Array | None:
    """Masses of those whose redshifts the survey would know."""
    if recorded.redshift_known is None:
        return weights
    return recorded.redshift_known if weights is None else weights * recorded.redshift_known
