"""Learn the population of a catalogue: preparation, the loop over epochs, and the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.flows.spline import FlowConfig, init_flow
from popsed_jax.observe.forward import ForwardModel
from popsed_jax.parameters import ParameterSpace
from popsed_jax.population.objective import Member, Problem, validation_distance
from popsed_jax.population.reference import ReferenceConfig, build_library, draw_hyper, sample_reference
from popsed_jax.population.schedules import Schedule
from popsed_jax.population.space import SpaceName, build_space
from popsed_jax.population.train import EpochInfo, TrainSettings, TrainState, fit_flows, init_state, run_epoch
from popsed_jax.transport import TransportConfig


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How the population is learned.

    Args:
        num_members: flows of the ensemble.
        num_epochs, steps_per_epoch: length of the training.
        batch_size: model draws, and galaxies, a step.
        num_kl: draws of those in the estimate of KL(q || q0).
        learning_rate: peak of the one-cycle schedule.
        average_steps: memory of the running mean over steps that is validated and kept; 1: the last step alone.
        seed: of everything random.
        space: where photometry is compared (see `build_space`).
        held_out: fraction of the galaxies that only the validation sees, at most `max_validation` of them.
        validation_blur: of the validation's Sinkhorn divergence [robust widths of the data].
        target_ratio: distance over the noise floor at which the data no longer ask for a change.
        lambda_start: first weight of KL(q || q0), in units of the squared noise floor.
        lambda_rate: change of log lambda per epoch and unit of (target - ratio).
        kl_tie_break: weight of KL in the validation objective.
        offset_sigma: prior width of each band's photometric offset [mag], for errors of templates and zero points (0.02 to
            0.05 in photometric-redshift work: Ilbert+06, Brammer+08); 0: no offsets. The best-measured band is pinned.
        reference_draws, reference_steps, reference_batch: of the flows fitted to the reference.
        reference_strength: how many galaxies the reference counts as, against one for the prior of offsets and shifts: how
            much dearer it is to bend the population than to move a zero point.
        flat_control: also train one flow that starts flat and has no reference, to compare with.
    """

    num_members: int = 4
    num_epochs: int = 24
    steps_per_epoch: int = 16
    batch_size: int = 1024
    num_kl: int = 128
    learning_rate: float = 1e-3
    average_steps: int = 16
    seed: int = 0
    space: SpaceName = "balanced"
    held_out: float = 0.2
    max_validation: int = 2000
    validation_blur: float = 0.2
    target_ratio: float = 1.1
    lambda_start: float = 0.1
    lambda_rate: float = 0.8
    kl_tie_break: float = 0.05
    offset_sigma: float = 0.03
    reference_strength: float = 100.0
    reference_draws: int = 20_000
    reference_steps: int = 400
    reference_batch: int = 512
    flat_control: bool = True

    def __post_init__(self) -> None:
        for name in (
            "num_members",
            "num_epochs",
            "steps_per_epoch",
            "average_steps",
            "reference_draws",
            "reference_steps",
            "reference_batch",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"fit: {name} = {getattr(self, name)} must be at least 1")
        if self.batch_size < 2 or not 1 <= self.num_kl <= self.batch_size:
            raise ValueError(
                f"fit: batch_size = {self.batch_size} must be at least 2, num_kl = {self.num_kl} between 1 and batch_size"
            )
        if not 0.0 < self.held_out <= 0.5:
            raise ValueError(f"fit: held_out = {self.held_out} is a fraction of the galaxies, above 0 and at most 0.5")
        for name in ("learning_rate", "validation_blur", "target_ratio", "lambda_start", "reference_strength"):
            if not getattr(self, name) > 0:
                raise ValueError(f"fit: {name} = {getattr(self, name)} must be positive")
        if self.offset_sigma < 0 or self.lambda_rate < 0 or self.kl_tie_break < 0:
            raise ValueError("fit: offset_sigma, lambda_rate and kl_tie_break must not be negative")


VALIDATION = 2**31 - 1  # folded into the training key; no epoch has this number


class Floor(NamedTuple):
    """The data's own split-half distance at the validation's sizes: mean and standard deviation over splits."""

    mean: float
    std: float


def build_problem(
    key: Array,
    flux: Float[np.ndarray, "galaxy band"],
    error: Float[np.ndarray, "galaxy band"],
    forward: ForwardModel,
    config: FitConfig,
) -> tuple[Problem, Floor]:
    """Split the catalogue, build the comparison space and measure the noise floor."""
    key_split, key_floor = jax.random.split(key)
    space = build_space(config.space, flux, error, np.asarray(forward.noise.softening, float))
    mags = space.mags(jnp.asarray(flux))
    order = jax.random.permutation(key_split, len(flux))
    num_held = int(min(config.max_validation, config.held_out * len(flux)))
    problem = Problem(
        forward=forward,
        space=space,
        train=mags[order[num_held:]],
        held_out=mags[order[:num_held]],
        floor=jnp.ones(()),
        free_bands=_free_bands(flux.shape[1], int(np.argmax(np.median(flux / error, axis=0))), config),
    )
    floor = noise_floor(key_floor, space.features(mags), num_held, config.validation_blur)
    return dataclasses.replace(problem, floor=jnp.asarray(floor.mean)), floor


def noise_floor(key: Array, features: Float[Array, "galaxy feature"], num: int, blur: float, repeats: int = 8) -> Floor:
    """Distance between disjoint random parts of the data, as many galaxies each as the validation compares."""
    distance = jax.jit(validation_distance)
    num = min(num, features.shape[0] // 2)
    values = []
    for k in jax.random.split(key, repeats):
        order = jax.random.permutation(k, features.shape[0])
        values.append(float(distance(features[order[:num]], features[order[num : 2 * num]], blur)))
    return Floor(float(np.mean(values)), float(np.std(values)))


def build_members(
    key: Array, problem: Problem, reference: ReferenceConfig, flow: FlowConfig, config: FitConfig
) -> tuple[Member, Float[Array, "member draw dim"]]:
    """Members' references (each with its own hyper-parameters), fitted by maximum likelihood, and their bootstraps.

    Returns:
        The members, the flat control last when wanted, and the draws that their references were fitted to.
    """
    forward, num = problem.forward, config.num_members
    keys = jax.random.split(key, 6)
    library = build_library(keys[0], forward, reference)
    draws = []
    for i in range(num):
        hyper = draw_hyper(jax.random.fold_in(keys[1], i), reference)
        draws.append(sample_reference(jax.random.fold_in(keys[2], i), forward, hyper, library, config.reference_draws))
    theta = jnp.stack(draws)
    u = forward.space.to_u(theta)
    flows, _ = fit_flows(jax.random.split(keys[3], num), u, flow, config.reference_steps, config.reference_batch)
    controlled = jnp.ones(num)
    if config.flat_control:
        flat = init_flow(keys[4], len(forward.space), flow)
        flows = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), flows, flat)
        controlled = jnp.append(controlled, 0.0)
    scale = _shift_scale(forward.space, theta, reference)
    galaxies = problem.train.shape[0]
    bootstrap = jax.random.randint(keys[5], (len(controlled), galaxies), 0, galaxies)
    return Member(flows, jnp.broadcast_to(scale, (len(controlled), len(scale))), bootstrap, controlled), theta


def empty_members(
    problem: Problem, flow: FlowConfig, config: FitConfig
) -> tuple[Member, Float[Array, "member draw dim"]]:
    """Arrays of the shapes that `build_members` returns, for reading them back."""
    dim, total = len(problem.forward.space), config.num_members + int(config.flat_control)

    def build() -> tuple[Member, Array]:
        flows = jax.vmap(lambda key: init_flow(key, dim, flow))(jax.random.split(jax.random.key(0), total))
        bootstrap = jnp.zeros((total, problem.train.shape[0]), dtype=jnp.int32)
        members = Member(flows, jnp.zeros((total, dim)), bootstrap, jnp.zeros(total))
        return members, jnp.zeros((config.num_members, config.reference_draws, dim))

    return jax.jit(build)()


def train(
    key: Array,
    problem: Problem,
    members: Member,
    schedule: Schedule,
    settings: TrainSettings,
    callback: Callable[[int, TrainState, EpochInfo], None] | None = None,
    state: TrainState | None = None,
    start: int = 0,
) -> tuple[TrainState, list[EpochInfo]]:
    """Run the epochs from `start` on. The callback sees every epoch and may raise KeyboardInterrupt to stop."""
    state = init_state(members, settings) if state is None else state
    validation_key = jax.random.fold_in(key, VALIDATION)
    history = []
    for epoch in range(start, len(schedule.blur)):
        state, info = run_epoch(
            jax.random.fold_in(key, epoch), validation_key, state, members, problem, schedule.row(epoch), settings
        )
        history.append(jax.tree.map(np.asarray, info))
        if callback is not None:
            callback(epoch, state, history[-1])
    return state, history


def train_settings(config: FitConfig, transport: TransportConfig, num_bands: int) -> TrainSettings:
    """The static part of the settings."""
    names = {f.name for f in dataclasses.fields(TrainSettings)}
    shared = {name: value for name, value in dataclasses.asdict(config).items() if name in names}
    return TrainSettings(
        **shared | {"offset_sigma": config.offset_sigma or 1.0},
        num_bands=num_bands,
        transport=transport,
    )


def _shift_scale(space: ParameterSpace, theta: Float[Array, "member draw dim"], reference: ReferenceConfig) -> Array:
    """Literature uncertainties of the reference's relations, from the parameters' units to u at the median galaxy."""
    median = jnp.median(theta.reshape(-1, theta.shape[-1]), axis=0)
    sigma = jnp.array([reference.systematics.get(name, 0.0) for name in space.names])
    width = jnp.array([p.high - p.low for p in space.parameters])
    step = jnp.minimum(0.5 * sigma, 0.05 * width)
    slope = (space.to_u(median + step) - space.to_u(median - step)) / jnp.where(step > 0, 2.0 * step, 1.0)
    return slope * sigma


def _free_bands(num_bands: int, pinned: int, config: FitConfig) -> Array:
    free = jnp.ones(num_bands).at[pinned].set(0.0)
    return free if config.offset_sigma > 0 else jnp.zeros(num_bands)
