"""Training in stages: a model of named parts, of which each stage moves some and leaves the others frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from popsed_jax._soap import matrices_by_soap

Parts = dict[str, Any]  # a part's weights by its name
# (parts, key, data) to the loss and its terms by name; a module-level function, because it is part of the compiled program.
Loss = Callable[[Parts, Array, Any], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]

_AVERAGED = 200.0  # steps over which weights are averaged in the end


@dataclasses.dataclass(frozen=True)
class Stage:
    """What moves, and for how long.

    Args:
        name: for progress and files.
        trained: the parts that move; all others are frozen.
        num_steps: how many steps.
        learning_rate: peak of the one-cycle schedule.
        steps_per_chunk: steps of one compiled program, between two checkpoints.
    """

    name: str
    trained: tuple[str, ...]
    num_steps: int = 2000
    learning_rate: float = 1e-3
    steps_per_chunk: int = 100

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not self.trained:
            raise ValueError(f"stage {self.name!r}: trains no part")
        for name in ("num_steps", "steps_per_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"stage {self.name!r}: {name} = {getattr(self, name)} must be at least 1")
        if not self.learning_rate > 0.0:
            raise ValueError(f"stage {self.name!r}: learning_rate = {self.learning_rate} must be positive")

    @property
    def num_chunks(self) -> int:
        """Chunks that make at least `num_steps` steps."""
        return -(-self.num_steps // self.steps_per_chunk)


class StageState(NamedTuple):
    """What training moves.

    Attributes:
        parts: weights.
        average: their running average, which is kept in the end: a single step carries the noise of its batch.
        opt_state: the optimiser's moments, of the parts that move.
        step: how many steps were made.
    """

    parts: Parts
    average: Parts
    opt_state: Any
    step: Array


def start_stage(stage: Stage, parts: Mapping[str, Any]) -> StageState:
    """A stage's state before its first step.

    Raises:
        ValueError: a part that the model does not have.
    """
    parts = dict(parts)
    for name in stage.trained:
        if name not in parts:
            raise ValueError(f"stage {stage.name!r}: the model has no part {name!r}; it has {', '.join(parts)}")
    return StageState(parts, parts, _optimiser(stage, parts).init(parts), jnp.zeros((), jnp.int32))


@partial(jax.jit, static_argnames=("stage", "loss"))
def train_chunk(
    key: Array, stage: Stage, loss: Loss, data: Any, state: StageState
) -> tuple[StageState, dict[str, Float[Array, ""]]]:
    """`steps_per_chunk` steps, and the mean of the loss and of its terms.

    Args:
        key: the same for all chunks of a stage; each step has its own by its number.
        data: whatever the loss draws its batches from; a pytree.
    """
    optimiser = _optimiser(stage, state.parts)

    def step(state: StageState, _: None) -> tuple[StageState, dict[str, Array]]:
        def value(parts: Parts) -> tuple[Array, dict[str, Array]]:
            return loss(parts, jax.random.fold_in(key, state.step), data)

        (total, terms), grads = jax.value_and_grad(value, has_aux=True)(state.parts)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.parts)
        parts = optax.apply_updates(state.parts, updates)
        pace = jnp.maximum(1.0 / (state.step + 1.0), 1.0 / _AVERAGED)
        average = jax.tree.map(lambda old, new: old + pace * (new - old), state.average, parts)
        return StageState(parts, average, opt_state, state.step + 1), {"loss": total, **terms}

    state, terms = jax.lax.scan(step, state, length=stage.steps_per_chunk)
    return state, jax.tree.map(jnp.mean, terms)


def finish_stage(stage: Stage, state: StageState) -> Parts:
    """The model after a stage: averaged weights of what moved, and what was frozen bit for bit as it was."""
    return {name: state.average[name] if name in stage.trained else state.parts[name] for name in state.parts}


def run_stage(
    key: Array,
    stage: Stage,
    loss: Loss,
    data: Any,
    parts: Mapping[str, Any],
    state: StageState | None = None,
    callback: Callable[[StageState, dict[str, float]], None] | None = None,
) -> Parts:
    """A whole stage, or what is left of it.

    Args:
        state: to continue from; None: from the first step.
        callback: is told the state and the mean terms after each chunk; may raise KeyboardInterrupt to stop.

    Raises:
        ValueError: the loss is no longer a number.
    """
    state = start_stage(stage, parts) if state is None else state
    for chunk in range(int(state.step) // stage.steps_per_chunk, stage.num_chunks):
        state, means = train_chunk(key, stage, loss, data, state)
        terms = {name: float(value) for name, value in means.items()}
        if not np.isfinite(terms["loss"]):
            raise ValueError(
                f"stage {stage.name!r} broke down in chunk {chunk + 1} (not a number): lower learning_rate"
            )
        if callback is not None:
            callback(state, terms)
    return finish_stage(stage, state)


def _optimiser(stage: Stage, parts: Parts) -> optax.GradientTransformation:
    """SOAP for the matrices and Adam for the rest at a one-cycle rate; frozen parts have no moments and no updates."""
    rate = optax.cosine_onecycle_schedule(stage.num_chunks * stage.steps_per_chunk, stage.learning_rate, pct_start=0.1)
    moving = optax.chain(optax.clip_by_global_norm(5.0), matrices_by_soap(), optax.scale_by_learning_rate(rate))
    labels = {name: "moving" if name in stage.trained else "frozen" for name in parts}
    return optax.multi_transform({"moving": moving, "frozen": optax.set_to_zero()}, labels)
