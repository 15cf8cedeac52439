"""What the training minimises, and the fixed objective by which states are judged."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from popsed_jax.flows.spline import SplineFlow
from popsed_jax.observe.forward import ForwardModel
from popsed_jax.population.schedules import Schedule
from popsed_jax.population.space import ComparisonSpace
from popsed_jax.transport import TransportMix, sinkhorn_divergence, transport_cost


@flax.struct.dataclass
class Problem:
    """What all members share: the physics, the space, the data. An argument of the compiled epoch, never closed over.

    Attributes:
        train, held_out: the catalogue's asinh magnitudes; the second part is only for the validation objective.
        floor: noise floor, the distance of the data's split halves at the validation's sizes.
        free_bands: 1 for bands whose photometric offset may move, 0 for the pinned one.
    """

    forward: ForwardModel
    space: ComparisonSpace
    train: Float[Array, "galaxy band"]
    held_out: Float[Array, "held band"]
    floor: Float[Array, ""]
    free_bands: Float[Array, " band"]


class Trained(NamedTuple):
    """What the optimiser moves in one member.

    Attributes:
        layers: the flow's coupling layers.
        offset: photometric offset of each band [mag], model plus offset = data: the error of templates and zero points.
        shift: of the whole reference along each parameter, over its literature uncertainty (see `Member.shift_scale`).
    """

    layers: Any
    offset: Float[Array, " band"]
    shift: Float[Array, " dim"]


class Member(NamedTuple):
    """What is fixed in one member.

    Attributes:
        reference: its reference population as a flow; the start and the anchor of the trained one.
        shift_scale: one standard deviation of the reference's systematic shift, in u. The literature's relations share
            systematic errors over all galaxies; a pure KL(q || q0) would take these for as unlikely as scatter.
        bootstrap: its galaxies, drawn with replacement from the training part.
        controlled: 1 when its weight of the reference adapts, 0 when it stays zero (the flat-reference control).
    """

    reference: SplineFlow
    shift_scale: Float[Array, " dim"]
    bootstrap: Array
    controlled: Float[Array, ""]


class LossTerms(NamedTuple):
    """Transport cost over the floor's, relative entropy to the reference [nat], prior of offsets and shifts."""

    transport: Float[Array, ""]
    kl: Float[Array, ""]
    penalty: Float[Array, ""]


def simulate_mags(
    key: Array, problem: Problem, flow: SplineFlow, offset: Array, num: int, noise_divisor: Array | float
) -> tuple[Array, Array]:
    """Draw galaxies and observe them: u and asinh magnitudes."""
    key_flow, key_noise = jax.random.split(key)
    u = flow.sample(key_flow, num)
    theta = problem.forward.space.to_theta(u)
    scale = 10.0 ** (-0.4 * offset)
    flux = problem.forward.flux(theta)[:, : problem.forward.num_bands] * scale
    observed, _ = problem.forward.noise.observe(key_noise, flux, noise_divisor)
    return u, problem.space.mags(observed)


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
    row: Schedule,
    log_lambda: Array,
    settings: Any,
) -> tuple[Array, LossTerms]:
    """Transport between a simulated and an observed batch + lambda * KL(q || q0), both estimated on this batch.

    Args:
        settings: a `FitConfig`.
    """
    key_draw, key_data, key_cost = jax.random.split(key, 3)
    flow = dataclasses.replace(member.reference, layers=trained.layers)
    num = settings.batch_size
    u, mags = simulate_mags(key_draw, problem, flow, trained.offset, num, row.noise_divisor)
    index = member.bootstrap[jax.random.randint(key_data, (num,), 0, member.bootstrap.shape[0])]
    cost, _ = transport_cost(
        key_cost,
        problem.space.features(mags),
        problem.space.features(problem.train[index]),
        blur=row.blur,
        mix=TransportMix(row.sliced, row.sinkhorn),
        config=settings.transport,
    )
    kl = relative_entropy(u[: settings.num_kl], flow, trained.shift * member.shift_scale, member.reference)
    penalty = 0.5 * (jnp.sum((trained.offset / settings.offset_sigma) ** 2) + jnp.sum(trained.shift**2))
    weight = member.controlled * jnp.exp(log_lambda)
    # As in a Dirichlet-process prior: the reference counts as so many galaxies, the prior of offsets and shifts as one.
    loss = cost / problem.floor**2 + weight * (kl + penalty / settings.reference_strength)
    return loss, LossTerms(cost / problem.floor**2, kl, penalty)


def validation_ratio(key: Array, trained: Trained, member: Member, problem: Problem, settings: Any) -> Array:
    """Distance of the model to the held-out data over the noise floor: full noise, final blur, fixed key and data."""
    flow = dataclasses.replace(member.reference, layers=trained.layers)
    num = problem.held_out.shape[0]
    _, mags = simulate_mags(key, problem, flow, trained.offset, num, 1.0)
    features = problem.space.features(mags), problem.space.features(problem.held_out)
    return validation_distance(*features, settings.validation_blur) / problem.floor


def validation_distance(x: Float[Array, "num feature"], y: Float[Array, "num feature"], blur: float) -> Array:
    """Square root of the Sinkhorn divergence with a quadratic cost: a distance in units of the data's robust width."""
    # Debiased divergences of finite samples can fall below zero by rounding when the clouds agree.
    return jnp.sqrt(jnp.maximum(sinkhorn_divergence(x, y, blur), 1e-12))
