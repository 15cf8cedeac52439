"""BlackJAX: log densities for its samplers, over unbounded coordinates or over the bounded ones with nested sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from popsed_jax.priors.density import Density

LogDensity = Callable[[Float[Array, " dim"]], Float[Array, ""]]


def to_unbounded(prior: Density, theta: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """The logit of each parameter's place between its bounds."""
    fraction = (theta - prior.low) / (prior.high - prior.low)
    smallest = jnp.finfo(fraction.dtype).eps
    return jax.scipy.special.logit(jnp.clip(fraction, smallest, 1.0 - smallest))


def to_bounded(prior: Density, free: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """Inverse of `to_unbounded`."""
    low, high = jnp.array(prior.low), jnp.array(prior.high)
    return jnp.clip(low + (high - low) * jax.nn.sigmoid(free), low, high)


def logdensity_fn(prior: Density, log_likelihood: LogDensity) -> LogDensity:
    """Log of prior times likelihood over unbounded coordinates (see `to_unbounded`), with the Jacobian.

    Args:
        log_likelihood: of one theta, a JAX function.
    """
    width = jnp.array(prior.high - prior.low)

    def log_density(free: Float[Array, " dim"]) -> Float[Array, ""]:
        theta = to_bounded(prior, free)
        log_slope = jnp.sum(jnp.log(width) + jax.nn.log_sigmoid(free) + jax.nn.log_sigmoid(-free))
        return prior.log_prob(theta) + log_likelihood(theta) + log_slope

    return log_density


def nested_sampler(prior: Density, log_likelihood: LogDensity, num_inner_steps: int, **options: Any) -> Any:
    """Nested slice sampling of prior times likelihood over theta; start it from `prior.sample(key, num_live)`.

    Args:
        log_likelihood: of one theta, a JAX function.
        num_inner_steps: slice steps for each new point; some times the number of parameters.
        options: of `blackjax.nss`.
    """
    return blackjax.nss(
        logprior_fn=prior.log_prob, loglikelihood_fn=log_likelihood, num_inner_steps=num_inner_steps, **options
    )
