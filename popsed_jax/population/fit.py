"""Learn the population of a catalogue: preparation, the loop over epochs, and the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import Mesh
from jaxtyping import Array, Float

from popsed_jax.flows.spline import FlowConfig, SplineFlow, init_flow
from popsed_jax.parameters import ParameterSpace
from popsed_jax.population.blocks import cut, in_threads, join, member_blocks
from popsed_jax.population.devices import fetch, place
from popsed_jax.population.fit_config import FitConfig
from popsed_jax.population.galaxies import Batch, TrainingGalaxies
from popsed_jax.population.objective import Member, Problem
from popsed_jax.population.reference import ReferenceConfig, build_library, draw_hyper, sample_reference
from popsed_jax.population.schedules import Schedule
from popsed_jax.population.train import EpochInfo, TrainSettings, TrainState, fit_flows, init_state, run_epoch
from popsed_jax.transport import TransportConfig

VALIDATION = 2**31 - 1  # folded into the training key; no epoch has this number


def build_members(
    key: Array, problem: Problem, reference: ReferenceConfig, flow: FlowConfig, config: FitConfig
) -> tuple[Member, Float[Array, "member draw dim"]]:
    """Members' references (each with its own hyper-parameters), fitted by maximum likelihood.

    Returns:
        The members, the flat control last when wanted, and the draws that their references were fitted to.
    """
    space, num = problem.parameters, config.num_members
    keys = jax.random.split(key, 5)
    library = build_library(keys[0], problem.forwards[0], reference)
    fit_keys = jax.random.split(keys[3], num)

    def draw(i: int) -> Array:
        hyper, key_draw = draw_hyper(jax.random.fold_in(keys[1], i), reference), jax.random.fold_in(keys[2], i)
        return sample_reference(key_draw, problem.forwards, hyper, library, config.reference_draws, problem.tilt)

    def build(block: slice) -> tuple[SplineFlow, Array]:
        theta = jnp.stack([draw(i) for i in range(num)[block]])
        u = space.to_u(theta)
        return fit_flows(fit_keys[block], u, flow, config.reference_steps, config.reference_batch)[0], theta

    flows, theta = join(in_threads(build, member_blocks(num), alone=True))
    controlled = jnp.ones(num)
    if config.flat_control:
        flat = init_flow(keys[4], len(space), flow)
        flows = join([flows, jax.tree.map(lambda leaf: leaf[None], flat)])
        controlled = jnp.append(controlled, 0.0)
    total, scale = len(controlled), _shift_scale(space, theta, reference)
    return Member(flows, jnp.broadcast_to(scale, (total, len(scale))), controlled, jnp.arange(total)), theta


def empty_members(
    problem: Problem, flow: FlowConfig, config: FitConfig
) -> tuple[Member, Float[Array, "member draw dim"]]:
    """Arrays of the shapes that `build_members` returns, for reading them back."""
    dim, total = len(problem.parameters), config.num_members + int(config.flat_control)

    def build() -> tuple[Member, Array]:
        flows = jax.vmap(lambda key: init_flow(key, dim, flow))(jax.random.split(jax.random.key(0), total))
        members = Member(flows, jnp.zeros((total, dim)), jnp.zeros(total), jnp.arange(total))
        return members, jnp.zeros((config.num_members, config.reference_draws, dim))

    return jax.jit(build)()


def compile_epoch(
    problem: Problem,
    galaxies: TrainingGalaxies,
    schedule: Schedule,
    settings: TrainSettings,
    flow: FlowConfig,
    config: FitConfig,
) -> None:
    """Compile `run_epoch` for one device before there are members, so that a thread can do it while they are being built.

    Compiling takes as long as all else before the first epoch, and one core. `train` then finds the program in JAX's cache.
    Over several devices nothing is compiled ahead.
    """
    if settings.mesh is not None:
        return
    members, _ = empty_members(problem, flow, config)
    block = member_blocks(len(members.number))[0]
    members = cut(members, block)
    key, state = jax.random.key(0), init_state(members, problem, settings)
    batches = galaxies.batches(key, np.asarray(members.number), settings.steps_per_epoch, settings.batch_size)
    run_epoch.lower(key, key, state, members, problem, batches, schedule.row(0), settings).compile()


def train(
    key: Array,
    problem: Problem,
    galaxies: TrainingGalaxies,
    members: Member,
    schedule: Schedule,
    settings: TrainSettings,
    callback: Callable[[int, TrainState, EpochInfo], None] | None = None,
    state: TrainState | None = None,
    start: int = 0,
) -> tuple[TrainState, list[EpochInfo]]:
    """Run the epochs from `start` on. The callback sees every epoch and may raise KeyboardInterrupt to stop."""
    mesh = settings.mesh
    state = init_state(members, problem, settings) if state is None else state
    blocks = member_blocks(len(members.number), mesh)
    numbers = np.asarray(members.number)
    states = [place(cut(state, block), mesh, by_member=True) for block in blocks]
    parts = [place(cut(members, block), mesh, by_member=True) for block in blocks]
    problem, validation_key = place((problem, jax.random.fold_in(key, VALIDATION)), mesh)

    def inputs(epoch: int, number: int) -> tuple[Array, Batch, Schedule]:
        epoch_key = jax.random.fold_in(key, epoch)
        batches = galaxies.batches(epoch_key, numbers[blocks[number]], settings.steps_per_epoch, settings.batch_size)
        placed = place(batches, mesh, by_member=True)
        return place(epoch_key, mesh), placed, place(schedule.row(epoch), mesh)

    if jax.process_count() > 1 and start < len(schedule.blur):
        # An exchange between processes gives up after half a minute, and they may need that much more or less to compile.
        epoch_key, batches, row = inputs(start, 0)
        run_epoch.lower(epoch_key, validation_key, states[0], parts[0], problem, batches, row, settings).compile()
        sync_global_devices("compiled")
    history = []
    for epoch in range(start, len(schedule.blur)):

        def advance(number: int, epoch: int = epoch) -> EpochInfo:
            epoch_key, batches, row = inputs(epoch, number)
            states[number], info = run_epoch(
                epoch_key, validation_key, states[number], parts[number], problem, batches, row, settings
            )
            return jax.tree.map(np.asarray, fetch(info, mesh))

        infos = in_threads(advance, range(len(blocks)), alone=epoch == start)
        history.append(jax.tree.map(lambda *values: np.concatenate(values), *infos))
        state = join([fetch(each, mesh) for each in states])
        if callback is not None:
            callback(epoch, state, history[-1])
    return state, history


def train_settings(
    config: FitConfig, transport: TransportConfig, mesh: Mesh | None = None, schedule: Schedule | None = None
) -> TrainSettings:
    """The static part of the settings.

    Args:
        schedule: compiles only the distances that it uses; None: all.
    """
    names = {f.name for f in dataclasses.fields(TrainSettings)}
    shared = {name: value for name, value in dataclasses.asdict(config).items() if name in names}
    used = {} if schedule is None else {n: bool(np.any(getattr(schedule, n))) for n in ("sliced", "sinkhorn")}
    return TrainSettings(**shared, **used, transport=transport, mesh=mesh)


def _shift_scale(space: ParameterSpace, theta: Float[Array, "member draw dim"], reference: ReferenceConfig) -> Array:
    """Literature uncertainties of the reference's relations, from the parameters' units to u at the median galaxy."""
    median = np.median(theta.reshape(-1, theta.shape[-1]), axis=0)
    sigma = np.array([reference.systematics.get(name, 0.0) for name in space.names])
    width = np.array([p.high - p.low for p in space.parameters])
    step = np.minimum(0.5 * sigma, 0.05 * width)
    above, below = (np.asarray(space.to_u(jnp.asarray(median + move, theta.dtype))) for move in (step, -step))
    return jnp.asarray((above - below) / np.where(step > 0, 2.0 * step, 1.0) * sigma, theta.dtype)
