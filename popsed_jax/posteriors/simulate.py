"""What an amortised posterior learns from: galaxies of the learned members and of a broad prior, as the survey records them."""

from __future__ import annotations

import dataclasses
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from popsed_jax._random import normal
from popsed_jax.flows.spline import SplineFlow
from popsed_jax.observe.forward import ForwardModel
from popsed_jax.population.batching import map_batches
from popsed_jax.population.model import Population
from popsed_jax.population.train import fit_flows
from popsed_jax.posteriors.survey import LearnedSurvey, Photometry

_POOL, _NUM_BROAD = 100_000, 20_000  # flat draws, and those kept as the survey would keep them
_STEPS, _BATCH = 400, 512


@dataclasses.dataclass(frozen=True)
class SimulationConfig:
    """The galaxies that a network learns from.

    Args:
        broad: share of galaxies of the analytic prior (flat between the bounds), as the survey would keep them; the others are
            the learned population's members'.
        missing: share of the galaxies that lose random bands beyond those that the survey lacks.
        noisy: share of the galaxies of which random bands are up to ten times as noisy as the survey's.
    """

    broad: float = 0.5
    missing: float = 0.3
    noisy: float = 0.2

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not 0.0 < self.broad < 1.0:
            raise ValueError(f"simulation: broad = {self.broad} must be between 0 and 1: a network learns both kinds")
        for name in ("missing", "noisy"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"simulation: {name} = {getattr(self, name)} must be at least 0 and below 1")


@flax.struct.dataclass
class Simulator:
    """Draws of all priors that a network learns, observed.

    Attributes:
        survey: the learned population, and how galaxies are recorded.
        proposal: the priors that galaxies are drawn from: the learned population's members, then the broad one.
        counts: galaxies of each of these in `batch`.
    """

    survey: LearnedSurvey
    proposal: Population
    counts: tuple[int, ...] = flax.struct.field(pytree_node=False)
    config: SimulationConfig = flax.struct.field(pytree_node=False)

    @property
    def batch(self) -> int:
        """Galaxies of a draw."""
        return sum(self.counts)

    @property
    def labels(self) -> Int[Array, " batch"]:
        """Which prior each galaxy of a batch is drawn from: the same number of each, each time."""
        return jnp.asarray(np.repeat(np.arange(len(self.counts)), self.counts))

    def draw(self, key: Array) -> tuple[Float[Array, "batch dim"], Int[Array, " batch"]]:
        """u of a batch of galaxies, and whose calibration each has: its member's, or any member's if it is a broad one."""
        key_flow, key_member = jax.random.split(key)
        parts, members, learned = [], [], self.survey.population.num_members
        for i, count in enumerate(self.counts):
            x = normal(jax.random.fold_in(key_flow, i), (count, len(self.survey.space)))
            parts.append(self.proposal.member(i).forward(x)[0])
            members.append(jnp.full(count, min(i, learned - 1)))
        any_member = jax.random.choice(key_member, learned, (self.counts[-1],), p=self.survey.population.weights)
        return jnp.concatenate(parts), jnp.concatenate([*members[:-1], any_member])

    def simulate(self, key: Array) -> tuple[Float[Array, "batch dim"], Float[Array, "batch filter"], Photometry]:
        """u of a batch of galaxies, their noise-free fluxes [maggies], and what the survey quotes of them."""
        keys = jax.random.split(key, 4)
        u, member = self.draw(keys[0])
        shape = (self.batch, self.survey.num_bands)
        excess = noisier_bands(keys[1], shape, self.config.noisy)
        theta = self.survey.space.to_theta(u)
        flux = self.survey.forward.flux(theta)
        seen = self.survey.observe(keys[2], theta, member, excess, flux)
        there = seen.there & fewer_bands(keys[3], shape, self.config.missing)
        # A galaxy of no band at all teaches nothing: it keeps what the survey left it.
        return u, flux, seen._replace(there=jnp.where(there.any(axis=1, keepdims=True), there, seen.there))


def noisier_bands(key: Array, shape: tuple[int, int], share: float) -> Float[Array, "batch band"]:
    """Random bands of some galaxies noisier by up to a factor of ten [dex]."""
    keys = jax.random.split(key, 3)
    chosen = (jax.random.uniform(keys[0], (shape[0], 1)) < share) & (jax.random.uniform(keys[1], shape) < 0.4)
    return jnp.where(chosen, jax.random.uniform(keys[2], shape), 0.0)


def fewer_bands(key: Array, shape: tuple[int, int], share: float) -> Array:
    """Random bands of some galaxies taken away; each galaxy has its own chance of losing a band."""
    keys = jax.random.split(key, 3)
    chance = jax.random.uniform(keys[1], (shape[0], 1)) * (jax.random.uniform(keys[0], (shape[0], 1)) < share)
    return jax.random.uniform(keys[2], shape) >= chance


def build_simulator(key: Array, survey: LearnedSurvey, config: SimulationConfig, batch: int) -> Simulator:
    """What to draw from: the learned members, and a flow fitted to the analytic prior's galaxies as the survey keeps them.

    The flow itself is the broad prior, so that its density is exact however well it fits.

    Args:
        batch: galaxies of a draw.

    Raises:
        ValueError: a batch too small for the members.
    """
    population = survey.population
    shares = np.append(np.asarray(population.weights, float) * (1.0 - config.broad), config.broad)
    counts = apportioned(shares, batch)
    if batch < 2 * len(counts):
        raise ValueError(f"training: batches of {batch} are too small for {len(counts)} members")
    flows = population.flows
    broad = _broad_flow(key, survey)
    joined = jax.tree.map(lambda many, one: jnp.concatenate([many, jnp.asarray(one, many.dtype)[None]]), flows, broad)
    weights = jnp.asarray(counts / counts.sum(), population.weights.dtype)
    proposal = Population(joined, weights, population.space, population.meta)
    return Simulator(survey, proposal, tuple(int(count) for count in counts), config)


def apportioned(shares: Float[np.ndarray, " part"], num: int) -> Int[np.ndarray, " part"]:
    """So many seats by shares, at least one for each. (The largest remainders get what rounding leaves.)"""
    counts = np.maximum(np.floor(shares * num).astype(int), 1)
    for part in np.argsort(counts - shares * num)[: max(num - int(counts.sum()), 0)]:
        counts[part] += 1
    return counts


def _broad_flow(key: Array, survey: LearnedSurvey) -> SplineFlow:
    """A flow of the analytic prior's galaxies as the survey keeps them."""
    key_draw, key_keep, key_fit = jax.random.split(key, 3)
    theta = np.asarray(survey.space.sample_flat(key_draw, _POOL))
    kept = map_batches(ForwardModel.detection, survey.forward, theta)
    if not kept.sum() > 0.0:
        raise ValueError("the survey keeps no galaxy of the analytic prior: check [selection] and the bounds")
    chosen = jax.random.choice(key_keep, len(theta), (_NUM_BROAD,), p=jnp.asarray(kept / kept.sum()))
    u = survey.space.to_u(jnp.asarray(theta)[chosen])
    flows = fit_flows(key_fit[None], u[None], survey.population.flows.config, _STEPS, _BATCH)[0]
    return jax.tree.map(lambda leaf: leaf[0], flows)


@partial(jax.jit, static_argnames="num")
def simulate_many(
    key: Array, simulator: Simulator, num: int
) -> tuple[Float[Array, "draw dim"], Float[Array, "draw filter"], Photometry]:
    """At least `num` galaxies, batch by batch."""
    keys = jax.random.split(key, -(-num // simulator.batch))
    many = jax.lax.map(simulator.simulate, keys)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), many)
