"""The learned population: an ensemble of flows over named, bounded parameters, with its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from popsed_jax._random import normal
from popsed_jax.flows.spline import SplineFlow
from popsed_jax.parameters import ParameterSpace
from popsed_jax.population.description import describe, load_flows, read_description_fields
from popsed_jax.population.storage import WEIGHTS, load_described, save_described

# 2: the layers' orders and a checksum of the description itself.
FORMAT_VERSION = 2
DESCRIPTION = "population.json"


class Meaning(dict[str, Any]):
    """What a population means, in JSON's types; not to be changed. Hashable: a population may enter compiled functions."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True))


@flax.struct.dataclass
class Population:
    """p(theta): a weighted mixture of flows. Immutable pytree.

    Attributes:
        flows: the members' flows over u, stacked.
        weights: of the members; sum to one.
        space: names, units and bounds of theta.
        meta: what the population means: cosmology, IMF, templates, selection, versions.
    """

    flows: SplineFlow
    weights: Float[Array, " member"]
    space: ParameterSpace = flax.struct.field(pytree_node=False)
    meta: Mapping[str, Any] = flax.struct.field(pytree_node=False, default_factory=Meaning)

    def __post_init__(self) -> None:
        object.__setattr__(self, "meta", Meaning(self.meta))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of theta's last axis."""
        return self.space.names

    @property
    def num_members(self) -> int:
        """How many flows."""
        return self.weights.shape[0]

    def sample(self, key: Array, num: int) -> dict[str, Float[Array, " num"]]:
        """Galaxies of the population, by parameter name."""
        theta, _ = self.sample_members(key, num)
        return {name: theta[:, i] for i, name in enumerate(self.names)}

    @partial(jax.jit, static_argnames="num")
    def sample_members(self, key: Array, num: int) -> tuple[Float[Array, "num dim"], Array]:
        """Galaxies as an array, and the member that each came from."""
        key_member, key_flow = jax.random.split(key)
        member = jax.random.choice(key_member, self.num_members, (num,), p=self.weights)
        x = normal(key_flow, (num, len(self.space)))
        # Every member transforms all draws: the shapes stay fixed under jit.
        each = jax.vmap(lambda flow: flow.forward(x)[0])(self.flows)
        return self.space.to_theta(each[member, jnp.arange(num)]), member

    @jax.jit
    def log_prob(self, theta: Float[Array, "*batch dim"] | Mapping[str, Array]) -> Float[Array, "*batch"]:
        """Exact log density of theta, -inf outside the bounds.

        Args:
            theta: galaxies as an array whose last axis is in the order of `names`, or as named arrays.

        Raises:
            ValueError: the last axis is not one entry a parameter.
        """
        theta = self.space.pack(theta) if isinstance(theta, Mapping) else jnp.asarray(theta)
        if theta.shape[-1:] != (len(self.space),):
            raise ValueError(
                f"theta: the last axis of {theta.shape} must be the {len(self.space)} parameters {self.names}"
            )
        each, inside = self._densities(theta.reshape(-1, len(self.space)))
        mixed = jax.scipy.special.logsumexp(each, axis=0, b=self.weights[:, None])
        return jnp.where(inside, mixed, -jnp.inf).reshape(theta.shape[:-1])

    def member_log_probs(self, theta: Float[Array, "num dim"]) -> Float[Array, "member num"]:
        """Log density of each member by itself, -inf outside the bounds."""
        each, inside = self._densities(theta)
        return jnp.where(inside, each, -jnp.inf)

    def _densities(self, many: Float[Array, "num dim"]) -> tuple[Float[Array, "member num"], Array]:
        """Log densities of the members, and which galaxies are within the bounds; outside, a number that means nothing."""
        inside = self.space.inside(many)
        low = jnp.array([p.low for p in self.space.parameters])
        high = jnp.array([p.high for p in self.space.parameters])
        # The middle of the bounds stands in for outsiders, so that gradients stay finite.
        u = self.space.to_u(jnp.where(inside[:, None], many, 0.5 * (low + high)))
        return jax.vmap(lambda flow: flow.log_prob(u))(self.flows) - self.space.log_det(u), inside

    def member(self, index: int) -> SplineFlow:
        """One flow of the ensemble, over u."""
        return jax.tree.map(lambda leaf: leaf[index], self.flows)

    def save(self, folder: Path | str) -> None:
        """Write `weights.safetensors` and `population.json` into a folder."""
        fields = {**describe(self.num_members, self.flows.config, self.space), **self.meta}
        save_described(Path(folder), (self.flows, self.weights), DESCRIPTION, "population", FORMAT_VERSION, fields)


def load_population(folder: Path | str) -> Population:
    """Read a population written by `Population.save`.

    Raises:
        StorageError: a missing, damaged, changed or newer file; the message says which and what to do.
    """
    path = Path(folder) / DESCRIPTION
    hint = "give the folder 'population' of a finished run"
    fields = load_described(path, "population", FORMAT_VERSION, hint)
    description = read_description_fields(path, fields)
    flows, weights = load_flows(path.parent / WEIGHTS, description)
    return Population(flows, weights, space=description.space, meta=description.meta)
