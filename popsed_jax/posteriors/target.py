"""The posterior density that chains sample, for many galaxies side by side, in coordinates in which it is easy to sample."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple, cast

import flax.struct
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from popsed_jax.flows.conditional import ConditionalFlow
from popsed_jax.flows.spline import SplineFlow
from popsed_jax.parameters import ParameterSpace
from popsed_jax.posteriors.frame import from_frame
from popsed_jax.posteriors.survey import LEAST_KEPT, LearnedSurvey, Photometry, log_likelihood

_EXCLUDED = 1e6  # minus log of a density outside the bounds: no chain goes there, and none meets an infinity


class Lane(NamedTuple):
    """What a chain needs to know of its galaxy.

    Attributes:
        photometry: of the galaxy.
        u_redshift: unconstrained redshift, where it is given.
        embedded: what a network makes of the photometry, where there is one.
    """

    photometry: Photometry
    u_redshift: Float[Array, "*lane"]
    embedded: Float[Array, "*lane embedding"]


class Placed(NamedTuple):
    """Galaxies at chains' positions.

    Attributes:
        theta: parameters.
        flux: noise-free, in all filters [maggies].
        log_prior: log of the prior's density over x.
    """

    theta: Float[Array, "lane dim"]
    flux: Float[Array, "lane filter"]
    log_prior: Float[Array, " lane"]


@flax.struct.dataclass
class Target:
    """log p(theta | photometry) and the coordinates x that chains move in.

    Without a network x is the base space of the population's flow, where the prior is a standard normal; the likelihood is then
    a thin curved sheet in it. With one, x is the base space of the network's posterior of the same galaxy, where the exact
    posterior is about a standard normal too, if the network is any good (Hoffman+19, arXiv:1903.03704): a worse network costs
    steps, not correctness.

    Attributes:
        survey: how galaxies are recorded.
        member: of the population, whose calibration holds.
        flow: the prior; None: the analytic one (flat between the bounds, a flat Dirichlet over the history's weights), a standard
            normal of u.
        network: an amortised posterior's flow; None: none.
        fixed: whether each galaxy's redshift is given.
    """

    survey: LearnedSurvey
    member: Array
    flow: SplineFlow | None
    network: ConditionalFlow | None
    fixed: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def space(self) -> ParameterSpace:
        """The galaxies' parameters."""
        return self.survey.space

    @property
    def dim(self) -> int:
        """Dimensions that chains move in."""
        return len(self.space) - int(self.fixed)

    def place(self, x: Float[Array, "lane free"], lane: Lane) -> Placed:
        """Galaxies at the chains' positions, and log of the prior's density over x there."""
        if self.network is not None:
            return self._by_network(x, lane)
        if self.fixed:
            at = self.space.index("redshift")
            u = jnp.concatenate([x[:, :at], lane.u_redshift[:, None], x[:, at:]], axis=1)
            log_prior = self._log_prior(u)
        else:
            u = x if self.flow is None else self.flow.forward(x)[0]
            log_prior = norm.logpdf(x).sum(axis=1)
        theta = self.space.to_theta(u)
        return Placed(theta, self.survey.forward.flux(theta), log_prior)

    def _by_network(self, x: Float[Array, "lane free"], lane: Lane) -> Placed:
        assert self.network is not None
        if self.fixed:
            v, log_det = self.network.forward_given_first(x[:, None], lane.u_redshift, lane.embedded)
        else:
            v, log_det = self.network.forward(x[:, None], lane.embedded)
        framed = from_frame(self.survey, v[:, 0], lane.photometry)
        u = self.space.to_u(framed.theta)
        log_prior = self._log_prior(u) - self.space.log_det(u) + framed.log_det + log_det[:, 0]
        return Placed(framed.theta, framed.flux, jnp.where(framed.inside, log_prior, -_EXCLUDED))

    def _log_prior(self, u: Float[Array, "lane dim"]) -> Float[Array, " lane"]:
        return norm.logpdf(u).sum(axis=1) if self.flow is None else self.flow.log_prob(u)

    def potentials(self, x: Float[Array, "lane free"], lane: Lane) -> Float[Array, " lane"]:
        """Minus log of the posterior density over x, up to a constant for each galaxy."""
        placed = self.place(x, lane)
        power, selected = self.survey.selection_power, jnp.zeros(len(x), x.dtype)
        if power != 0.0 and self.flow is not None:
            selected = power * jnp.log(jnp.maximum(self.survey.forward.detection_of(placed.flux), LEAST_KEPT))
        flux = self.survey.calibrated(placed.theta, placed.flux, self.member)
        return -(placed.log_prior + selected + log_likelihood(lane.photometry, flux, self.survey.noise(self.member)))

    def metrics(self, x: Float[Array, "lane free"], lane: Lane) -> Float[Array, "lane free free"]:
        """Covariance of the posterior if the model were linear from x on: the inverse of the prior's plus the Fisher matrix."""
        noise = self.survey.noise(self.member)

        def deviates(x: Array, one: Lane) -> Array:
            alone = jax.tree.map(lambda leaf: leaf[None], one)
            placed = self.place(x[None], alone)
            flux = self.survey.calibrated(placed.theta, placed.flux, self.member)[0]
            error = jnp.where(one.photometry.there, one.photometry.error, noise.softening)
            width = jax.lax.stop_gradient(noise.width(flux, *noise.conditions(flux, error)))
            return jnp.where(one.photometry.there, flux / width, 0.0)

        slope = jax.vmap(jax.jacrev(deviates))(x, lane)
        return jnp.linalg.inv(jnp.eye(self.dim) + jnp.swapaxes(slope, 1, 2) @ slope)


def potential_of(target: Target, lane: Lane, x: Float[Array, " free"]) -> Float[Array, ""]:
    """One chain's potential. Under one `vmap` over chains, all are computed as one batch, values and gradients together.

    A plain `vmap` of the same function lays its arrays out galaxy by galaxy, which on a CPU takes several times as long.
    """
    leaves, structure = jax.tree.flatten(target)
    return _potential_function(structure)(x, tuple(leaves), lane)


@cache
def _potential_function(structure: Any) -> Callable[[Array, tuple[Array, ...], Lane], Array]:
    """The potential as a function of a target's arrays: JAX asks for each array whether it is batched, and a target of yes and
    no is none.
    """

    @custom_vmap
    def value_and_slope(x: Array, leaves: tuple[Array, ...], lane: Lane) -> tuple[Array, Array]:
        value, slope = _batch(
            x[None], jax.tree.unflatten(structure, leaves), jax.tree.map(lambda leaf: leaf[None], lane)
        )
        return value[0], slope[0]

    @value_and_slope.def_vmap
    def rule(size: int, batched: Any, x: Array, leaves: tuple[Array, ...], lane: Lane) -> Any:
        x, lane = _every(size, batched, x, lane)
        return _batch(x, jax.tree.unflatten(structure, leaves), lane), (True, True)

    @jax.custom_vjp
    def potential(x: Array, leaves: tuple[Array, ...], lane: Lane) -> Array:
        return value_and_slope(x, leaves, lane)[0]

    def backward(slope: Array, change: Array) -> tuple[Array, None, None]:
        return change * slope, None, None

    potential.defvjp(value_and_slope, backward)
    return potential


def energies_of(target: Target, lane: Lane, x: Float[Array, "num free"]) -> Float[Array, " num"]:
    """Potentials of one chain's many positions, without gradients; under one `vmap` over chains, one batch as well."""
    leaves, structure = jax.tree.flatten(target)
    return _energies_function(structure)(x, tuple(leaves), lane)


@cache
def _energies_function(structure: Any) -> Callable[[Array, tuple[Array, ...], Lane], Array]:
    """The potentials as a function of a target's arrays."""

    @custom_vmap
    def energies(x: Array, leaves: tuple[Array, ...], lane: Lane) -> Array:
        target = jax.tree.unflatten(structure, leaves)
        return target.potentials(x, jax.tree.map(lambda leaf: _repeat(leaf, len(x)), lane))

    @energies.def_vmap
    def rule(size: int, batched: Any, x: Array, leaves: tuple[Array, ...], lane: Lane) -> Any:
        x, lane = _every(size, batched, x, lane)
        every = jax.tree.map(lambda leaf: jnp.repeat(leaf, x.shape[1], axis=0), lane)
        flat = jax.tree.unflatten(structure, leaves).potentials(x.reshape(-1, x.shape[2]), every)
        return flat.reshape(x.shape[:2]), True

    return energies


def _every(size: int, batched: Any, x: Array, lane: Lane) -> tuple[Array, Lane]:
    """Positions and lanes of all chains, those that they share repeated."""
    over = (batched[0], batched[2])
    every = jax.tree.map(lambda leaf, is_batched: leaf if is_batched else _repeat(leaf, size), (x, lane), over)
    return cast(tuple[Array, Lane], every)


def _repeat(leaf: Array, size: int) -> Array:
    return jnp.broadcast_to(leaf, (size, *leaf.shape))


def _batch(x: Float[Array, "lane free"], target: Target, lane: Lane) -> tuple[Array, Array]:
    """Potentials and their gradients: a chain's own potential is all that depends on its position."""
    values, pull = jax.vjp(partial(target.potentials, lane=lane), x)
    return values, pull(jnp.ones_like(values))[0]
