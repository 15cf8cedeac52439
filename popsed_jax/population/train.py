"""The training loop's compiled parts: fit a flow to reference draws, and one epoch of all members."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from popsed_jax.flows.spline import FlowConfig, SplineFlow, init_flow, whiten
from popsed_jax.population.devices import MEMBER
from popsed_jax.population.galaxies import Batch
from popsed_jax.population.objective import LossTerms, Member, Problem, Trained, member_loss, validation_ratio
from popsed_jax.population.schedules import Schedule
from popsed_jax.transport import TransportConfig

# Shifts and calibration are in units of their uncertainty; at the networks' learning rate they would need thousands of
# steps for one. By these factors theirs is higher.
SHIFT_RATE = 10.0
CALIBRATION_RATE = 30.0


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Static settings of the compiled epoch (see `FitConfig` for their meaning).

    Attributes:
        sliced, sinkhorn: whether the schedule ever gives that distance a weight. One that is merely skipped still has its memory
            set aside, for Sinkhorn's matrices the square of the batch.
        mesh: the devices that run it; None: one.
    """

    batch_size: int
    num_kl: int
    steps_per_epoch: int
    reference_strength: float
    lambda_start: float
    lambda_rate: float
    target_ratio: float
    kl_tie_break: float
    validation_blur: float
    average_steps: int
    transport: TransportConfig
    sliced: bool = True
    sinkhorn: bool = True
    mesh: Mesh | None = None


class TrainState(NamedTuple):
    """Everything that changes, for all members (leading axis). A checkpoint is exactly this.

    Attributes:
        trained: current flow layers, calibration and shifts.
        average: their mean over the last steps, exponentially weighted (Polyak & Juditsky 1992): what is validated and kept.
            A single state carries the noise of the last few batches, some hundredths of a magnitude in brightness.
        opt_state: Adam's moments.
        log_lambda: log weight of the reference.
        best: the average with the best validation objective so far.
        best_objective, best_ratio, best_kl: at that state.
    """

    trained: Trained
    average: Trained
    opt_state: Any
    log_lambda: Float[Array, " member"]
    best: Trained
    best_objective: Float[Array, " member"]
    best_ratio: Float[Array, " member"]
    best_kl: Float[Array, " member"]


_Carry = tuple[Trained, Trained, Any]  # trained, average, opt_state


class EpochInfo(NamedTuple):
    """One epoch's record, for each member."""

    loss: Float[Array, " member"]
    transport: Float[Array, " member"]
    kl: Float[Array, " member"]
    penalty: Float[Array, " member"]
    ratio: Float[Array, " member"]
    objective: Float[Array, " member"]
    log_lambda: Float[Array, " member"]


def fit_flow(
    key: Array, u: Float[Array, "num dim"], config: FlowConfig, num_steps: int, batch_size: int, peak: float = 3e-3
) -> tuple[SplineFlow, Float[Array, " step"]]:
    """Maximum likelihood: a flow for given draws, and its loss at every step.

    Args:
        u: draws of the reference, unconstrained.
        peak: largest learning rate of the one-cycle schedule.
    """
    key_init, key_batch = jax.random.split(key)
    mean, chol = whiten(u)
    flow = init_flow(key_init, u.shape[1], config, mean, chol)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_onecycle_schedule(num_steps, peak, pct_start=0.2))
    )

    def step(carry: tuple[Any, Any], key: Array) -> tuple[tuple[Any, Any], Array]:
        layers, opt_state = carry
        batch = u[jax.random.randint(key, (batch_size,), 0, u.shape[0])]
        loss, grads = jax.value_and_grad(lambda p: -jnp.mean(dataclasses.replace(flow, layers=p).log_prob(batch)))(
            layers
        )
        updates, opt_state = optimiser.update(grads, opt_state, layers)
        return (optax.apply_updates(layers, updates), opt_state), loss

    carry = (flow.layers, optimiser.init(flow.layers))
    (layers, _), losses = jax.lax.scan(step, carry, jax.random.split(key_batch, num_steps))
    return dataclasses.replace(flow, layers=layers), losses


@partial(jax.jit, static_argnames=("config", "num_steps", "batch_size"))
def fit_flows(
    keys: Array, u: Float[Array, "member num dim"], config: FlowConfig, num_steps: int, batch_size: int
) -> tuple[SplineFlow, Float[Array, "member step"]]:
    """`fit_flow` for some members, in one program."""
    return jax.vmap(lambda key, draws: fit_flow(key, draws, config, num_steps, batch_size))(keys, u)


@partial(jax.jit, static_argnames="settings")
def init_state(members: Member, problem: Problem, settings: TrainSettings) -> TrainState:
    """Members at their references, with the calibration as quoted."""
    num = members.controlled.shape[0]
    shift = jnp.zeros_like(members.shift_scale)
    calibration = tuple(survey.calibration.start(num) for survey in problem.surveys)
    trained = Trained(members.reference.layers, calibration, shift)
    worst = jnp.full(num, jnp.inf)
    state = TrainState(
        trained=trained,
        average=trained,
        opt_state=jax.vmap(_optimiser().init)(trained),
        log_lambda=jnp.full(num, jnp.log(settings.lambda_start)),
        best=trained,
        best_objective=worst,
        best_ratio=worst,
        best_kl=worst,
    )
    # Copies, because the epoch reuses its argument's memory: no array twice, none shared with the members. The dtype is
    # named, because a weakly typed array (from a Python number) would make the second epoch compile again.
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=leaf.dtype, copy=True), state)


@partial(jax.jit, static_argnames="settings", donate_argnames="state")
def run_epoch(
    key: Array,
    validation_key: Array,
    state: TrainState,
    members: Member,
    problem: Problem,
    batches: Batch,
    row: Schedule,
    settings: TrainSettings,
) -> tuple[TrainState, EpochInfo]:
    """One epoch of some members: `settings.steps_per_epoch` steps in one scan, then validation and bookkeeping.

    Args:
        key: of this epoch.
        validation_key: the same in every epoch, so that epochs compare.
        batches: of this epoch, with leading axes (member, step).
        row: this epoch's values of the schedule.
        settings: static (a `TrainSettings`).
    """
    optimiser = _optimiser()
    axis = None if settings.mesh is None else MEMBER
    grad_loss = jax.value_and_grad(member_loss, has_aux=True)

    def each_member(key: Array) -> Array:
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, members.number)

    def step(carry: _Carry, drawn: tuple[Array, Batch]) -> tuple[_Carry, tuple[Array, LossTerms]]:
        trained, average, opt_state = carry
        key, batch = drawn
        (loss, terms), grads = jax.vmap(grad_loss, in_axes=(0, 0, 0, None, 0, None, 0, None), spmd_axis_name=axis)(
            trained, each_member(key), members, problem, batch, row, state.log_lambda, settings
        )
        updates, opt_state = jax.vmap(optimiser.update)(grads, opt_state, trained)
        updates = jax.tree.map(lambda update: -row.learning_rate * update, updates)
        updates = updates._replace(
            shift=SHIFT_RATE * updates.shift,
            calibration=jax.tree.map(lambda update: CALIBRATION_RATE * update, updates.calibration),
        )
        trained = optax.apply_updates(trained, updates)
        average = jax.tree.map(lambda mean, new: mean + (new - mean) / settings.average_steps, average, trained)
        return (trained, average, opt_state), (loss, terms)

    keys = jax.random.split(key, settings.steps_per_epoch)
    start = state.trained, state.average, state.opt_state
    by_step = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), batches)
    (trained, average, opt_state), (loss, terms) = jax.lax.scan(step, start, (keys, by_step))
    validate = jax.vmap(validation_ratio, in_axes=(0, 0, 0, None, None), spmd_axis_name=axis)
    ratio = validate(each_member(validation_key), average, members, problem, settings)
    kl = jnp.mean(terms.kl[-max(1, settings.steps_per_epoch // 2) :], axis=0)
    objective = validation_objective(ratio, kl, members.controlled, settings)
    # Discrepancy principle: hold the reference as firmly as leaves the model at the data's noise floor.
    change = settings.lambda_rate * jnp.clip(settings.target_ratio - ratio, -1.0, 1.0)
    log_lambda = state.log_lambda + row.adapt * change
    better = jnp.logical_and(objective < state.best_objective, jnp.isfinite(objective))

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    new_state = TrainState(
        trained=trained,
        average=average,
        opt_state=opt_state,
        log_lambda=log_lambda,
        best=jax.tree.map(keep, average, state.best),
        best_objective=keep(objective, state.best_objective),
        best_ratio=keep(ratio, state.best_ratio),
        best_kl=keep(kl, state.best_kl),
    )
    mean = LossTerms(*(jnp.mean(term, axis=0) for term in terms))
    return new_state, EpochInfo(jnp.mean(loss, axis=0), *mean, ratio, objective, state.log_lambda)


def validation_objective(ratio: Array, kl: Array, controlled: Array, settings: TrainSettings) -> Array:
    """By what states are judged: the distance over the noise floor, and among states within the target the least KL.

    Below the target a smaller distance says nothing, so only the relative entropy to the reference counts there; above,
    it breaks ties. Both are computed the same way in every epoch, whatever the schedules do.
    """
    return jnp.maximum(ratio, settings.target_ratio) + settings.kl_tie_break * kl * controlled


def _optimiser() -> optax.GradientTransformation:
    """Adam's direction; the learning rate comes from the schedule's row."""
    return optax.chain(optax.clip_by_global_norm(10.0), optax.scale_by_adam())
