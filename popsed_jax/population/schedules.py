"""What changes from epoch to epoch, as plain arrays that a user may replace."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float


class Schedule(NamedTuple):
    """One row an epoch; the compiled epoch takes a row as an argument, so other values cost no compilation.

    Attributes:
        blur: of the Sinkhorn divergence, in units of the data's robust width.
        noise_divisor: the injected noise is divided by this.
        learning_rate: of Adam.
        sliced, sinkhorn: weights of the two distances; a zero weight is not computed.
        adapt: 1 where the weight of the reference is adapted to the discrepancy.
    """

    blur: Float[Array, " epoch"]
    noise_divisor: Float[Array, " epoch"]
    learning_rate: Float[Array, " epoch"]
    sliced: Float[Array, " epoch"]
    sinkhorn: Float[Array, " epoch"]
    adapt: Float[Array, " epoch"]

    def row(self, epoch: int) -> Schedule:
        """One epoch's values."""
        return Schedule(*(column[epoch] for column in self))


@dataclasses.dataclass(frozen=True)
class AnnealConfig:
    """Shapes of the schedules.

    Args:
        blur_start, blur_end: of the Sinkhorn divergence; falls geometrically over the epochs that use it. Equal: no annealing.
        noise_factor, noise_rate: noise divisor 1 + noise_factor * exp(-noise_rate * i / E) (Li+24, sec. 3.3). Factor 0: the
            full noise at once.
        sinkhorn_start: fraction of the epochs after which the Sinkhorn divergence joins the sliced distance; 0: from the
            first epoch, 1: never.
        sliced, sinkhorn: weights of the distances. A sliced distance over the squared noise floor is far smaller than a
            Sinkhorn divergence over it, hence its larger weight.
        warmup: fraction of the epochs over which the learning rate rises.
        adapt_start: fraction of the epochs after which the weight of the reference is adapted.
    """

    blur_start: float = 0.5
    blur_end: float = 0.2
    noise_factor: float = 20.0
    noise_rate: float = 10.0
    sinkhorn_start: float = 0.6
    sliced: float = 10.0
    sinkhorn: float = 1.0
    warmup: float = 0.15
    adapt_start: float = 0.25

    def __post_init__(self) -> None:
        if not 0.0 < self.blur_end <= self.blur_start:
            raise ValueError(f"anneal: need 0 < blur_end ({self.blur_end}) <= blur_start ({self.blur_start})")
        if self.noise_factor < 0 or self.noise_rate < 0:
            raise ValueError("anneal: noise_factor and noise_rate must not be negative")
        for name in ("sinkhorn_start", "warmup", "adapt_start"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"anneal: {name} = {getattr(self, name)} is a fraction of the epochs, between 0 and 1")
        if min(self.sliced, self.sinkhorn) < 0 or self.sliced + self.sinkhorn == 0:
            raise ValueError("anneal: the weights sliced and sinkhorn must not be negative, nor both zero")
        if self.sliced == 0 and self.sinkhorn_start > 0:
            raise ValueError("anneal: with sliced = 0 there is no loss before sinkhorn_start; set sinkhorn_start = 0")


def build_schedule(config: AnnealConfig, num_epochs: int, peak_learning_rate: float) -> Schedule:
    """The schedules as arrays, one value an epoch. The learning rate rises and falls once (cosine one-cycle, Smith 2018)."""
    fraction = np.arange(num_epochs) / num_epochs
    with_sinkhorn = fraction >= config.sinkhorn_start
    progress = np.clip((fraction - config.sinkhorn_start) / max(0.75 * (1.0 - config.sinkhorn_start), 1e-9), 0.0, 1.0)
    rate = optax.cosine_onecycle_schedule(num_epochs + 1, peak_learning_rate, pct_start=max(config.warmup, 1e-3))
    columns = {
        "blur": config.blur_start * (config.blur_end / config.blur_start) ** progress,
        "noise_divisor": 1.0 + config.noise_factor * np.exp(-config.noise_rate * fraction),
        "learning_rate": jax.jit(jax.vmap(rate))(jnp.arange(1, num_epochs + 1)),
        "sliced": np.full(num_epochs, config.sliced),
        "sinkhorn": np.where(with_sinkhorn, config.sinkhorn, 0.0),
        "adapt": fraction >= config.adapt_start,
    }
    return Schedule(**{name: jnp.asarray(column, dtype=float) for name, column in columns.items()})
