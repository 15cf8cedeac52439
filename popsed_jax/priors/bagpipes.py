"""Bagpipes: the joint prior in the place of its independent ones, and the reweighting of a finished posterior.

Bagpipes has no hook for a joint prior, but asks `fit.fitted_model.prior` for nothing else than `transform`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from bagpipes.fitting.prior import prior as BagpipesPrior  # noqa: N812
from jaxtyping import Float

from popsed_jax.priors.arrays import ArrayPrior
from popsed_jax.priors.density import Density
from popsed_jax.priors.prior import Prior


class FittedModel(Protocol):
    """What is used of `bagpipes.fitting.fitted_model`."""

    params: list[str]
    limits: list[tuple[float, float]]
    pdfs: list[str]
    hyper_params: list[dict[str, Any]]
    prior: Any


class PopulationPrior:
    """Some of a model's parameters from the population, the others as Bagpipes had them.

    Args:
        model: `fit.fitted_model`.
        prior: its parameters under Bagpipes's names, such as "redshift" or "dust:Av".

    Raises:
        ValueError: the model does not fit a parameter of the population.
    """

    def __init__(self, model: FittedModel, prior: Prior) -> None:
        if missing := [name for name in prior.names if name not in model.params]:
            raise ValueError(
                f"the model does not fit {', '.join(missing)}, but {', '.join(model.params)}. Rename the prior's parameters, or "
                "give the missing ones limits in fit_instructions"
            )
        self.arrays = ArrayPrior(prior)
        self.index = [model.params.index(name) for name in prior.names]
        self.other = [i for i in range(len(model.params)) if i not in self.index]
        parts = [[part[i] for i in self.other] for part in (model.limits, model.pdfs, model.hyper_params)]
        self.rest = BagpipesPrior(*parts)
        self.ndim = len(model.params)

    def transform(self, cube: Any, ndim: int = 0, nparam: int = 0) -> Any:
        """theta of a point of the unit cube, in place (as MultiNest needs it) and returned (as nautilus does)."""
        values = np.array([cube[i] for i in range(self.ndim)], float)
        theta = self.arrays.transform(values[self.index])
        rest = self.rest.transform(values[self.other])
        for i, value in (*zip(self.index, theta, strict=True), *zip(self.other, rest, strict=True)):
            cube[i] = value
        return cube

    def sample(self) -> np.ndarray:
        """One draw, from NumPy's random state as Bagpipes's own."""
        return np.asarray(self.transform(np.random.rand(self.ndim)))  # noqa: NPY002 (Bagpipes's state)


def use_prior(model: FittedModel, prior: Prior) -> None:
    """Put the population into `fit.fitted_model`, before `fit.fit(...)`. Raises ValueError as `PopulationPrior`."""
    model.prior = PopulationPrior(model, prior)


def reweight(
    samples: Mapping[str, np.ndarray],
    prior: Density,
    log_prior_used: Float[np.ndarray, " num"] | Sequence[float] | float,
) -> tuple[Float[np.ndarray, " num"], float]:
    """Weights that turn a finished posterior into the one under the population.

    Args:
        samples: `fit.posterior.samples`, with the population's parameters by name.
        log_prior_used: log density of the prior that the fit used, at the samples, over the same parameters; a number when it
            was uniform.

    Returns:
        Weights that sum to one, and how many samples they are worth, (sum w)^2 / sum w^2: with few left, fit again.

    Raises:
        KeyError: a parameter is missing from the samples.
        ValueError: no sample is within the population's bounds.
    """
    if missing := [name for name in prior.names if name not in samples]:
        raise KeyError(f"the samples lack {', '.join(missing)}")
    theta = np.stack([np.asarray(samples[name], float) for name in prior.names], axis=-1)
    log_weight = ArrayPrior(prior).log_prob(theta) - np.asarray(log_prior_used)
    if not np.isfinite(log_weight).any():
        raise ValueError("no sample of the posterior is within the population's bounds")
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    return weight, float(1.0 / np.sum(weight**2))
