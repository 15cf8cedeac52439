"""Settings of the learning: the `[fit]` table of a settings file."""

from __future__ import annotations

import dataclasses

from popsed_jax.population.space import SpaceName


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
        reference_draws, reference_steps, reference_batch: of the flows fitted to the reference.
        reference_strength: how many galaxies the reference counts as, against one for the prior of calibration and shifts: how
            much dearer it is to bend the population than to move a zero point.
        tilt: what the flow describes: the intrinsic population times p(kept | theta)^tilt. 1: the galaxies that the survey
            keeps, from which all follow where it keeps some; 0: all that there are, most of which teach nothing.
        flat_control: also train one flow that starts flat and has no reference, to compare with.
    """

    num_members: int = 4
    num_epochs: int = 32
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
    reference_strength: float = 100.0
    tilt: float = 1.0
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
        if self.lambda_rate < 0 or self.kl_tie_break < 0:
            raise ValueError("fit: lambda_rate and kl_tie_break must not be negative")
        if not 0.0 <= self.tilt <= 1.0:
            raise ValueError(f"fit: tilt = {self.tilt} must be between 0 and 1")
