"""NumPyro: the prior as a distribution of one vector, for plates, NUTS and SVI."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from popsed_jax.priors.density import Density


class PopulationDistribution(dist.Distribution):
    """A joint, conditional or marginal prior as `numpyro.sample("theta", PopulationDistribution(prior))`.

    Its value is a vector in the order of `prior.names`; `prior.unpack(theta)` gives the parameters by name.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (numpyro's)
    pytree_data_fields = ("prior",)

    def __init__(self, prior: Density, *, validate_args: bool | None = None) -> None:
        self.prior = prior
        super().__init__(batch_shape=(), event_shape=(prior.dim,), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Any:
        """The bounds."""
        return constraints.independent(constraints.interval(jnp.array(self.prior.low), jnp.array(self.prior.high)), 1)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample dim"]:
        """Draws."""
        return self.prior.sample(key, math.prod(sample_shape)).reshape(*sample_shape, self.prior.dim)

    @validate_sample
    def log_prob(self, value: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
        """Log density."""
        return self.prior.log_prob(value)

    @property
    def mean(self) -> Float[Array, " dim"]:
        """Of 10,000 draws; there is no closed form."""
        return self.prior.sample(jax.random.key(0), 10_000).mean(axis=0)
