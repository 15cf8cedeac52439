"""Priors of some parameters, the others given or integrated over: exact densities where there are, else Monte Carlo.

A coupling flow mixes all dimensions, so that neither marginals nor the constants of conditional densities have a closed
form. Both are p_S(s), the density of some parameters S at s, with the rest R integrated over. For draws (s_i, r_i) of the
joint density p, any kernel k that integrates to one, and any linear map B,

    p_S(s) = E_i[ k(s_i - s) p(s, r_i + B (s - s_i)) / p(s_i, r_i) ]          (Chen 1994, JASA 89, 818, with r moved along)

without bias: it is a kernel density estimate in which the ratio undoes the smoothing. B is the regression of r on s, so that the
ratio stays near one. The kernel is Epanechnikov's, out to the distance of the (M + 1)-th nearest draw: given that distance the
nearer ones are draws of p within it, and M / N over the probability of that ball averages to one, so that this has no
bias either. Everything is done over the unconstrained u, whose density is smooth at the bounds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from popsed_jax.parameters import ParameterSpace
from popsed_jax.population.model import Population
from popsed_jax.priors.coordinates import Coordinates
from popsed_jax.priors.density import Density

NUM_DRAWS = 32_768
# Of these nearest to the point, for a constant and for each value of a marginal density.
_SHARE_OF_CONSTANT, _NUM_OF_MARGINAL = 4, 1024
_NUM_MOVES = 25


@flax.struct.dataclass
class PartialPrior(Density):
    """p(kept | given), the rest integrated over. Made by `Prior.condition` and `Prior.marginal`. Immutable pytree.

    With nothing integrated over, the density is exact but for one constant, known to a relative error of `error`; otherwise each
    value is an estimate of which `log_prob_error` says the standard error. Draws of a marginal are exact; those of a conditional
    are joint draws near the given values, moved there, drawn by weight, and moved on by Metropolis steps that leave the
    conditional density as it is. There is no map from the unit cube.

    Attributes:
        population: the joint density.
        given: values of `fixed`, in the units learned.
        draws: of the joint density, over u.
        log_density: of the draws.
        log_norm: log density of the given values; 0 when none are.
        error: its standard error, which is the relative one of every density; 0 when none are given.
        coordinates, fixed, joint: columns that remain, that are given, and all.
    """

    population: Population
    given: Float[Array, " fixed"]
    draws: Float[Array, "draw all"]
    log_density: Float[Array, " draw"]
    log_norm: Float[Array, ""]
    error: Float[Array, ""]
    coordinates: Coordinates = flax.struct.field(pytree_node=False)
    fixed: Coordinates = flax.struct.field(pytree_node=False)
    joint: Coordinates = flax.struct.field(pytree_node=False)

    @property
    def meta(self) -> Mapping[str, Any]:
        """What the population means, and what is given."""
        values = {
            name: float(self.given[i]) for i, name in enumerate(self.fixed.space.names[c] for c in self.fixed.columns)
        }
        return {**self.population.meta, "given": values}

    @property
    def exact(self) -> bool:
        """Whether nothing is integrated over, so that densities differ from the exact ones by one constant factor."""
        return len(self.coordinates) + len(self.fixed) == len(self.joint)

    @partial(jax.jit, static_argnames="num")
    def sample(self, key: Array, num: int) -> Float[Array, "num dim"]:
        """Draws, in the order of `names`."""
        if not len(self.fixed):
            theta, _ = self.population.sample_members(key, num)
            return self.coordinates.outward(theta)
        key_pick, key_move = jax.random.split(key)
        u_given = _to_u(self.fixed, self.given)
        near, log_weight = _near(
            self.population, self.draws, self.log_density, self.fixed.columns, u_given, self._num_near
        )
        u = near[jax.random.categorical(key_pick, log_weight, shape=(num,))]
        u = _move(key_move, self.population, u, near, log_weight, self.fixed.columns)
        return self.coordinates.outward(self.population.space.to_theta(u))

    @jax.jit
    def log_prob_error(self, theta: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
        """Standard error of `log_prob`: of the constant and, where parameters are integrated over, of each value."""
        many, shape = self._flat(jnp.asarray(theta, float))
        if self.exact:
            return jnp.full(shape, self.error)
        return jnp.hypot(self._estimate(many)[1], self.error).reshape(shape)

    def _log_prob(self, theta: Float[Array, "num dim"]) -> Float[Array, " num"]:
        learned, inside = self.coordinates.inward(theta)
        log_prob = self._estimate(theta)[0] - self.log_norm - self.coordinates.log_slope(learned)
        return jnp.where(inside, log_prob, -jnp.inf)

    def _estimate(self, theta: Float[Array, "num dim"]) -> tuple[Float[Array, " num"], Float[Array, " num"]]:
        """Log density of kept and given values in the units learned, and its standard error."""
        learned, _ = self.coordinates.inward(theta)
        values = jnp.concatenate([learned, jnp.broadcast_to(self.given, (len(theta), len(self.given)))], axis=1)
        columns = self.coordinates.columns + self.fixed.columns
        if self.exact:
            order = [columns.index(i) for i in range(len(columns))]
            return self.population.log_prob(values[:, jnp.array(order)]), jnp.zeros(len(theta))
        return _log_marginal(self.population, self.draws, self.log_density, columns, values, _NUM_OF_MARGINAL)

    @property
    def _num_near(self) -> int:
        return len(self.draws) // _SHARE_OF_CONSTANT

    def condition(
        self, given: Mapping[str, float] | None = None, *, num_draws: int = NUM_DRAWS, seed: int = 0, **values: float
    ) -> PartialPrior:
        """As `Prior.condition`, of what remains."""
        more = {**(given or {}), **values}
        kept = tuple(name for name in self.names if name not in more)
        for name in more:
            self.coordinates.find(name)
        return build_partial(self.population, self.joint, self._outer_given() | more, kept, num_draws, seed)

    def marginal(self, names: Sequence[str], *, num_draws: int = NUM_DRAWS, seed: int = 0) -> PartialPrior:
        """As `Prior.marginal`, of what remains."""
        self.coordinates.select(tuple(names))
        return build_partial(self.population, self.joint, self._outer_given(), tuple(names), num_draws, seed)

    def rename(self, names: Mapping[str, str], units: Mapping[str, str] | None = None) -> PartialPrior:
        """As `Prior.rename`, of what remains."""
        kept = self.coordinates.rename(names, units)
        joint = self.joint.rename(names, units)
        return dataclasses.replace(self, coordinates=kept, joint=joint)

    def _outer_given(self) -> dict[str, float]:
        """Given values by name, in the units of the columns."""
        pairs = zip(self.fixed.names, self.fixed.changes, self.given, strict=True)
        return {name: float(change.outward(value)) for name, change, value in pairs}


def build_partial(
    population: Population,
    joint: Coordinates,
    given: Mapping[str, float],
    names: tuple[str, ...],
    num_draws: int,
    seed: int,
) -> PartialPrior:
    """The prior of some columns where others have given values.

    Raises:
        KeyError: an unknown name.
        ValueError: a value outside its bounds, nothing to do, nothing left, or too few draws.
    """
    fixed, kept = joint.select(tuple(given)), joint.select(names)
    if not names or len(kept) == len(joint):
        raise ValueError(f"of {', '.join(joint.names)}, some must be given or left out, and some must remain")
    if num_draws < 4 * _NUM_OF_MARGINAL:
        raise ValueError(f"num_draws = {num_draws} must be at least {4 * _NUM_OF_MARGINAL}")
    for (name, value), (low, high) in zip(given.items(), fixed.bounds, strict=True):
        if not low <= value <= high:
            raise ValueError(f"{name} = {value} is outside its bounds, {low} to {high}")
    draws, log_density = _draw(population, jax.random.key(seed), num_draws)
    values = jnp.array(list(given.values()), float)
    log_norm, error = jnp.zeros(()), jnp.zeros(())
    if given:
        values, _ = fixed.inward(values)
        num_near = num_draws // _SHARE_OF_CONSTANT
        many = _log_marginal(population, draws, log_density, fixed.columns, values[None], num_near)
        log_norm, error = many[0][0], many[1][0]
    return PartialPrior(population, values, draws, log_density, log_norm, error, kept, fixed, joint)


def log_density_u(population: Population, u: Float[Array, "num all"]) -> Float[Array, " num"]:
    """Log density of the mixture over the unconstrained u."""
    each = jax.vmap(lambda flow: flow.log_prob(u))(population.flows)
    return logsumexp(each, axis=0, b=population.weights[:, None])


@partial(jax.jit, static_argnames="num")
def _draw(population: Population, key: Array, num: int) -> tuple[Float[Array, "num all"], Float[Array, " num"]]:
    """Joint draws over u, and their log density."""
    theta, _ = population.sample_members(key, num)
    u = population.space.to_u(theta)
    return u, log_density_u(population, u)


@partial(jax.jit, static_argnames=("columns", "num_near"))
def _log_marginal(
    population: Population,
    draws: Float[Array, "draw all"],
    log_density: Float[Array, " draw"],
    columns: tuple[int, ...],
    values: Float[Array, "num column"],
    num_near: int,
) -> tuple[Float[Array, " num"], Float[Array, " num"]]:
    """Log density of some learned parameters, and its standard error: the estimate of the module's docstring."""
    space = ParameterSpace(tuple(population.space.parameters[i] for i in columns))
    u = space.to_u(values)

    def one(point: Array) -> tuple[Array, Array]:
        _, log_terms = _near(population, draws, log_density, columns, point, num_near)
        log_mean = logsumexp(log_terms) - math.log(num_near)
        spread = jnp.mean(jnp.exp(2.0 * (log_terms - log_mean))) - 1.0
        return log_mean + math.log(num_near / len(draws)), jnp.sqrt((spread + 1.0 - num_near / len(draws)) / num_near)

    log_density_of_u, error = jax.lax.map(one, u)
    return log_density_of_u - space.log_det(u), error


def _near(
    population: Population,
    draws: Float[Array, "draw all"],
    log_density: Float[Array, " draw"],
    columns: tuple[int, ...],
    point: Float[Array, " column"],
    num: int,
) -> tuple[Float[Array, "num all"], Float[Array, " num"]]:
    """The draws nearest to given values of some columns, moved there, and the logarithms of the estimate's terms."""
    here = jnp.array(columns)
    rest = jnp.array([i for i in range(draws.shape[1]) if i not in columns])
    dim = len(columns)
    cov = jnp.cov(draws, rowvar=False)
    chol = jnp.linalg.cholesky(cov[here[:, None], here])
    regression = jax.scipy.linalg.cho_solve((chol, True), cov[here[:, None], rest])
    away = draws[:, here] - point
    scaled = jax.scipy.linalg.solve_triangular(chol, away.T, lower=True).T
    nearness, index = jax.lax.top_k(-jnp.sum(scaled**2, axis=1), num + 1)
    radius2, index = -nearness[num], index[:num]
    share = jnp.maximum(1.0 + nearness[:num] / radius2, jnp.finfo(draws.dtype).tiny)
    # The kernel's integral over a ball: its volume times 2 / (dim + 2).
    log_volume = 0.5 * dim * jnp.log(math.pi * radius2) - math.lgamma(0.5 * dim + 1.0) + math.log(2.0 / (dim + 2.0))
    log_kernel = jnp.log(share) - log_volume - jnp.sum(jnp.log(jnp.diagonal(chol)))
    near = draws[index]
    moved = near.at[:, here].set(point).at[:, rest].add(-away[index] @ regression)
    return moved, log_kernel + log_density_u(population, moved) - log_density[index]


def _move(
    key: Array,
    population: Population,
    u: Float[Array, "num all"],
    near: Float[Array, "near all"],
    log_weight: Float[Array, " near"],
    fixed: tuple[int, ...],
) -> Float[Array, "num all"]:
    """Random-walk Metropolis steps in all but the fixed columns, with the covariance of the weighted draws."""
    free = jnp.array([i for i in range(u.shape[1]) if i not in fixed])
    cov = jnp.atleast_2d(jnp.cov(near[:, free], rowvar=False, aweights=jnp.exp(log_weight - jnp.max(log_weight))))
    # 2.38 / sqrt(dim) is the best scale for a normal density (Roberts, Gelman & Gilks 1997).
    step = 2.38 / math.sqrt(len(free)) * jnp.linalg.cholesky(cov + 1e-6 * jnp.diag(jnp.diagonal(cov)))

    def move(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], None]:
        u, log_prob = carry
        key_step, key_accept = jax.random.split(key)
        proposed = u.at[:, free].add(jax.random.normal(key_step, (len(u), len(free))) @ step.T)
        new = log_density_u(population, proposed)
        accept = jnp.log(jax.random.uniform(key_accept, (len(u),))) < new - log_prob
        return (jnp.where(accept[:, None], proposed, u), jnp.where(accept, new, log_prob)), None

    (u, _), _ = jax.lax.scan(move, (u, log_density_u(population, u)), jax.random.split(key, _NUM_MOVES))
    return u


def _to_u(columns: Coordinates, values: Float[Array, " column"]) -> Float[Array, " column"]:
    """u of learned values of some columns."""
    return ParameterSpace(columns.parameters).to_u(values)
