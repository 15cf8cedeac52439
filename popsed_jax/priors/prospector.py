"""Prospector: the joint prior of one vector parameter, and a model template that unpacks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from prospect.models import priors

from popsed_jax.priors.arrays import ArrayPrior
from popsed_jax.priors.prior import Prior

VECTOR = "population"


class PopulationPrior(priors.Prior):
    """A prior for a vector parameter of as many entries as the population has.

    Prospector sums what a prior returns over its last axis, so that a joint density must come as an array whose sum is its
    logarithm: all of it stands in the first entry, zeros in the others. `sample` draws from NumPy's random state, as all of
    Prospector's priors do.
    """

    prior_params: list[str] = []  # noqa: RUF012 (Prospector's)

    def __init__(self, prior: Prior) -> None:
        self.arrays = ArrayPrior(prior)
        super().__init__(name=VECTOR)

    def __len__(self) -> int:
        """Number of parameters."""
        return self.arrays.dim

    def __call__(self, x: Float[np.ndarray, "*batch dim"], **kwargs: Any) -> Float[np.ndarray, "*batch dim"]:
        """Entries that sum to the log density."""
        x = np.asarray(x, float)
        entries = np.zeros(x.shape)
        entries[..., 0] = self.arrays.log_prob(x)
        return entries

    def sample(self, nsample: int | None = None, **kwargs: Any) -> np.ndarray:
        """One draw, or `nsample`."""
        draws = self.arrays.sample(int(np.random.randint(2**31 - 1)), nsample or 1)  # noqa: NPY002 (Prospector's state)
        return draws if nsample else draws[0]

    def unit_transform(self, x: Float[np.ndarray, "*batch dim"], **kwargs: Any) -> Float[np.ndarray, "*batch dim"]:
        """theta of points of the unit cube."""
        return self.arrays.transform(x)

    def inverse_unit_transform(
        self, x: Float[np.ndarray, "*batch dim"], **kwargs: Any
    ) -> Float[np.ndarray, "*batch dim"]:
        """A point of the unit cube for each theta."""
        return self.arrays.inverse_transform(x)

    @property
    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """The bounds."""
        return self.bounds()

    def bounds(self, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds."""
        return self.arrays.prior.low, self.arrays.prior.high

    def gradient(self, theta: Float[np.ndarray, " dim"]) -> Float[np.ndarray, " dim"]:
        """Gradient of the log density."""
        return self.arrays.grad_log_prob(theta)

    def serialize(self) -> tuple[str, list[str], str]:
        """What identifies it, in JSON's types; the population itself is in its folder."""
        return type(self).__name__, list(self.arrays.names), VECTOR


def build_model_params(
    prior: Prior, template: Mapping[str, Any] | None = None, derived: Mapping[str, Callable[..., Any]] | None = None
) -> dict[str, Any]:
    """Prospector's `model_params`: the population's vector is free, and each of its parameters depends on it.

    Rename the prior's parameters to Prospector's first (`prior.rename({"redshift": "zred", "tau_v": "dust2"})`).

    Args:
        template: `model_params` to add to; parameters that the population has are no longer free there.
        derived: other parameters by name, as functions of the population's parameters by name.
    """
    init = prior.low + 0.5 * (prior.high - prior.low)
    params = {name: dict(entry) for name, entry in (template or {}).items()}
    params[VECTOR] = {"N": prior.dim, "isfree": True, "init": init, "prior": PopulationPrior(prior)}
    for index, name in enumerate(prior.names):
        units = prior.units[name]
        params[name] = {"N": 1, "isfree": False, "init": init[index], "depends_on": _entry(index), "units": units}
    for name, function in (derived or {}).items():
        depends_on = _derived(prior.names, function)
        params[name] = {**params.get(name, {}), "N": 1, "isfree": False, "init": 0.0, "depends_on": depends_on}
    return params


def _entry(index: int) -> Callable[..., Any]:
    def unpack(**params: Any) -> Any:
        return np.atleast_1d(np.asarray(params[VECTOR])[..., index])

    return unpack


def _derived(names: tuple[str, ...], function: Callable[..., Any]) -> Callable[..., Any]:
    def unpack(**params: Any) -> Any:
        vector = np.asarray(params[VECTOR])
        return np.atleast_1d(function(**{name: vector[..., i] for i, name in enumerate(names)}))

    return unpack
