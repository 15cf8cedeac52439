"""The joint prior: exact density, exact draws, and an exact map from the unit cube."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float, Int

from popsed_jax.population.model import Population, load_population
from popsed_jax.priors.coordinates import Coordinates
from popsed_jax.priors.density import Density
from popsed_jax.priors.partial import NUM_DRAWS, PartialPrior, build_partial


@flax.struct.dataclass
class Prior(Density):
    """A learned population under names and units of one's choice. Immutable pytree; may enter compiled functions.

    **The unit cube.** A population is a weighted mixture of flows T_k of a standard normal. The first coordinate of the cube
    picks the flow, by the interval of the cumulative weights that it falls in, and its place in that interval is then as
    uniform as it was:

        c_0 in [W_{k-1}, W_k):   c_0' = (c_0 - W_{k-1}) / w_k,   theta = T_k(Phi^-1(c_0'), Phi^-1(c_1), ...)

    Uniform points become draws of the prior, exactly. The cube thus holds as many copies of theta as there are flows, one in
    each slab of c_0, each with its flow's share of the prior: a nested sampler's evidence and posterior are those of the
    mixture. Back from theta the copy must be named: `inverse_transform(theta, member)`, with `member_of(cube)`, is the exact
    inverse; without a member it takes the flow that theta most likely came from.

    Attributes:
        population: the mixture of flows.
        coordinates: names, units and order.
    """

    population: Population
    coordinates: Coordinates = flax.struct.field(pytree_node=False)

    @property
    def meta(self) -> Mapping[str, Any]:
        """What the population means: cosmology, IMF, whether mass is formed or surviving, selection, templates."""
        return self.population.meta

    @partial(jax.jit, static_argnames="num")
    def sample(self, key: Array, num: int) -> Float[Array, "num dim"]:
        """Draws, in the order of `names`."""
        theta, _ = self.population.sample_members(key, num)
        return self.coordinates.outward(theta)

    def _log_prob(self, theta: Float[Array, "num dim"]) -> Float[Array, " num"]:
        learned, inside = self.coordinates.inward(theta)
        log_prob = self.population.log_prob(self._ordered(learned)) - self.coordinates.log_slope(learned)
        return jnp.where(inside, log_prob, -jnp.inf)

    @jax.jit
    def transform(self, cube: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """theta of points of the unit cube; uniform points become draws of the prior. See the class for the map.

        Coordinates of 0 and 1 go to the nearest that the precision can tell from them.

        Raises:
            ValueError: the last axis is not one entry a parameter.
        """
        many, shape = self._flat(jnp.asarray(cube, float))
        member, first = self._pick(many[:, 0])
        limit = jnp.finfo(many.dtype)
        x = ndtri(jnp.clip(many.at[:, 0].set(first), limit.tiny, 1.0 - limit.epsneg))
        # Every flow transforms all points: the shapes stay fixed under jit.
        each = jax.vmap(lambda flow: flow.forward(x)[0])(self.population.flows)
        theta = self.population.space.to_theta(each[member, jnp.arange(len(many))])
        return self.coordinates.outward(theta).reshape(*shape, self.dim)

    @jax.jit
    def inverse_transform(
        self, theta: Float[Array, "*batch dim"], member: Int[Array, "*batch"] | None = None
    ) -> Float[Array, "*batch dim"]:
        """A point of the unit cube that `transform` takes to theta.

        Where a flow has next to no weight at theta, its point is beyond what the precision can tell from a face of the cube, and
        the nearest is returned. The default flow is not one of these.

        Args:
            theta: within the bounds.
            member: the flow in whose slab the point shall be; by default the one that theta most likely came from.
        """
        many, shape = self._flat(jnp.asarray(theta, float))
        learned, _ = self.coordinates.inward(many)
        u = self.population.space.to_u(self._ordered(learned))
        if member is None:
            each = jax.vmap(lambda flow: flow.log_prob(u))(self.population.flows)
            chosen = jnp.argmax(each + jnp.log(self.population.weights)[:, None], axis=0)
        else:
            chosen = jnp.broadcast_to(member, shape).reshape(-1)
        x = jax.vmap(lambda flow: flow.inverse(u)[0])(self.population.flows)[chosen, jnp.arange(len(many))]
        cube = ndtr(x)
        bottom, top = self._slabs()
        first = bottom[chosen] + (top - bottom)[chosen] * cube[:, 0]
        # Rounding must not carry a point into the slab above, which is another flow's.
        first = jnp.clip(first, bottom[chosen], jnp.nextafter(top[chosen], 0.0))
        return cube.at[:, 0].set(first).reshape(*shape, self.dim)

    @jax.jit
    def member_of(self, cube: Float[Array, "*batch dim"]) -> Int[Array, "*batch"]:
        """The flow that `transform` uses at points of the unit cube."""
        many, shape = self._flat(jnp.asarray(cube, float))
        return self._pick(many[:, 0])[0].reshape(shape)

    def condition(
        self, given: Mapping[str, float] | None = None, *, num_draws: int = NUM_DRAWS, seed: int = 0, **values: float
    ) -> PartialPrior:
        """The prior of the other parameters where these have the values given: `prior.condition(redshift=0.3)`.

        The density is the joint one over that of the values given, which is a Monte-Carlo estimate whose relative error is
        `PartialPrior.error`; see there.

        Args:
            given: values by name, beside those given as keywords.
            num_draws: of the joint prior behind the estimate.
            seed: of these draws.

        Raises:
            KeyError: an unknown name.
            ValueError: a value outside its bounds, nothing given or nothing left.
        """
        fixed = {**(given or {}), **values}
        kept = tuple(name for name in self.names if name not in fixed)
        return build_partial(self.population, self.coordinates, fixed, kept, num_draws, seed)

    def marginal(self, names: Sequence[str], *, num_draws: int = NUM_DRAWS, seed: int = 0) -> Prior | PartialPrior:
        """The prior of some parameters, in the order given. With all of them it is this prior in that order, and exact.

        Otherwise draws are exact, and the density is a Monte-Carlo estimate; see `PartialPrior`.

        Args:
            num_draws: of the joint prior behind the estimate.
            seed: of these draws.

        Raises:
            KeyError: an unknown name.
            ValueError: a repeated name, or none.
        """
        if len(names) == self.dim:
            return dataclasses.replace(self, coordinates=self.coordinates.select(tuple(names)))
        return build_partial(self.population, self.coordinates, {}, tuple(names), num_draws, seed)

    def rename(self, names: Mapping[str, str], units: Mapping[str, str] | None = None) -> Prior:
        """The same prior under other names, and in other units; the density includes the Jacobian.

        Args:
            names: new names by old.
            units: astropy's names of units by new name; `dex(X)` is the decimal logarithm of a number of X.

        Raises:
            KeyError: an unknown name.
            ValueError: two parameters of one name, units that do not convert, or a logarithm of what may be zero.
        """
        return dataclasses.replace(self, coordinates=self.coordinates.rename(names, units))

    def _ordered(self, learned: Float[Array, "num dim"]) -> Float[Array, "num dim"]:
        """Columns back in the population's order."""
        where = [self.coordinates.columns.index(i) for i in range(self.dim)]
        return learned[:, jnp.array(where)]

    def _slabs(self) -> tuple[Float[Array, " member"], Float[Array, " member"]]:
        """Lower and upper ends of the flows' intervals of the first coordinate of the cube."""
        top = jnp.cumsum(self.population.weights)
        return jnp.concatenate([jnp.zeros(1, top.dtype), top[:-1]]), top

    def _pick(self, first: Float[Array, " num"]) -> tuple[Int[Array, " num"], Float[Array, " num"]]:
        """The flow for each first coordinate of the cube, and the coordinate's place in that flow's interval."""
        bottom, top = self._slabs()
        # A flow of no weight is never picked, wherever rounding puts the ends.
        last = jnp.max(jnp.where(top > bottom, jnp.arange(len(top)), 0))
        member = jnp.minimum(jnp.sum(first[:, None] >= top, axis=1), last)
        return member, jnp.clip((first - bottom[member]) / (top - bottom)[member], 0.0, 1.0)


def load_prior(folder: Path | str) -> Prior:
    """Read a learned population as a prior: the folder `population` of a run, or the run.

    It computes in JAX's default precision at the time of loading: under `jax_enable_x64`, in double precision.

    Raises:
        StorageError: a missing, damaged, changed or newer file; the message says which and what to do.
    """
    folder = Path(folder)
    population = load_population(folder / "population" if (folder / "population").is_dir() else folder)
    precise = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), population)
    return Prior(precise, Coordinates.of(population.space))
