"""Posteriors of single galaxies by Hamiltonian Monte Carlo: NUTS on the fit's own likelihood, many galaxies at once.

Chains run in the base space of a network's posterior of the galaxy, where the exact one is about a standard normal too, and after
each trajectory may jump to a draw of the network (Gabrie+22, arXiv:2105.12603); without a network in the base space of the
population's flow, where the prior is, and NUTS gets the Fisher matrix at the starting point (Hoffman & Gelman 2014,
arXiv:1111.4246; numpyro's). They start from draws of the network, or of the prior, that fit the
galaxy. The posterior is the average of the members' posteriors by the members' weights, so that what is not known of the
population is not known of the galaxy either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Bool, Float
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer.hmc import hmc

from popsed_jax._random import normal
from popsed_jax.parameters import ParameterSpace
from popsed_jax.population.blocks import in_threads
from popsed_jax.posteriors.npe import NPE
from popsed_jax.posteriors.survey import LearnedSurvey, Photometry, check_likelihood, counted_members, log_likelihood
from popsed_jax.posteriors.target import Lane, Target, energies_of, potential_of

_CANDIDATES = 16  # for each chain's starting point, with a network
_TEMPER = 0.5  # of the likelihood by which starting points are drawn


@dataclasses.dataclass(frozen=True)
class HMCConfig:
    """How long and how carefully chains run.

    Args:
        num_chains: of each member of the population.
        num_warmup, num_samples: of each chain.
        max_tree_depth: a trajectory has at most 2^this - 1 steps.
        target_accept: acceptance that the step size is adapted to.
        num_jumps: independent draws of the network that are proposed after each trajectory, where there is one.
        num_starts: draws of the prior among which starting points are looked for, without a network.
        galaxies_at_once: whose chains run side by side.
        max_r_hat: a galaxy has converged below this split R-hat of every parameter (Vehtari+21, arXiv:1903.08008),
        min_ess: above this effective sample size of every parameter,
        max_divergent: and with at most this share of divergent transitions.
    """

    num_chains: int = 4
    num_warmup: int = 50
    num_samples: int = 60
    max_tree_depth: int = 3
    target_accept: float = 0.8
    num_jumps: int = 16
    num_starts: int = 8192
    galaxies_at_once: int = 32
    max_r_hat: float = 1.05
    min_ess: float = 100.0
    max_divergent: float = 0.02

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for name, least in (
            ("num_chains", 2),
            ("num_warmup", 20),
            ("num_samples", 8),
            ("max_tree_depth", 1),
            ("num_jumps", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"hmc: {name} = {getattr(self, name)} must be at least {least}")
        if not 0.0 < self.target_accept < 1.0:
            raise ValueError(f"hmc: target_accept = {self.target_accept} must be between 0 and 1")


# Without a network: longer, because chains move along a thin curved sheet.
PLAIN = HMCConfig(num_chains=2, num_warmup=300, num_samples=300, max_tree_depth=7)


class HMCPosterior(NamedTuple):
    """Draws and how far to trust them.

    Attributes:
        theta: draws.
        weights: of the draws; each galaxy's sum to one.
        r_hat: largest split R-hat of any parameter, among the chains of a member.
        ess: smallest effective sample size of any parameter.
        divergent: share of divergent transitions.
        converged: whether the three are within the limits asked for.
    """

    theta: Float[np.ndarray, "galaxy sample dim"]
    weights: Float[np.ndarray, "galaxy sample"]
    r_hat: Float[np.ndarray, " galaxy"]
    ess: Float[np.ndarray, " galaxy"]
    divergent: Float[np.ndarray, " galaxy"]
    converged: Bool[np.ndarray, " galaxy"]


def sample_hmc(
    key: Array,
    survey: LearnedSurvey,
    photometry: Photometry,
    config: HMCConfig | None = None,
    *,
    network: NPE | None = None,
    learned: bool = True,
    redshift: Float[np.ndarray, " galaxy"] | None = None,
    members: Sequence[int] | None = None,
) -> HMCPosterior:
    """Posteriors of galaxies.

    Args:
        photometry: of the galaxies.
        config: how chains run; None: `HMCConfig()` with a network, `PLAIN` without.
        network: trained for this survey, in whose coordinates chains run (see `Target`); None: in the population's.
        learned: under the learned population; else under the analytic prior (see `Target`), as if the survey kept all galaxies.
        redshift: fixed to these; None: free.
        members: of the population, those to average over; None: all whose weight is above one in a hundred.

    Raises:
        ValueError: a redshift outside the bounds, or noise without a likelihood in closed form.
    """
    space = survey.space
    config = config or (PLAIN if network is None else HMCConfig())
    weights = np.asarray(survey.population.weights, float)
    chosen = counted_members(survey.population)[0] if members is None else list(members)
    if not learned:
        chosen = [int(np.argmax(weights))]  # whose calibration holds
    share = weights[chosen] / weights[chosen].sum()
    check_likelihood(survey.forward.noise)
    num = len(photometry.flux)
    u_redshift = np.zeros(num) if redshift is None else _unconstrained(space, np.asarray(redshift, float))
    runs = []
    for number, member in enumerate(chosen):
        target = Target(
            survey,
            jnp.asarray(member),
            survey.population.member(member) if learned else None,
            None if network is None else network.flow,
            fixed=redshift is not None,
        )
        label = member if learned or network is None else network.broad
        embedded = np.zeros((num, 0)) if network is None else network.embed(photometry, label)
        runs.append(_run_member(jax.random.fold_in(key, number), target, photometry, u_redshift, embedded, config))
    draws = np.stack([run[0] for run in runs])  # (member, galaxy, chain, sample, dim)
    divergent = np.mean([run[1] for run in runs], axis=(0, 2, 3))
    r_hat, ess = convergence(draws, share)
    each = draws.shape[2] * draws.shape[3]
    theta = np.moveaxis(draws, 0, 1).reshape(num, -1, len(space))
    converged = (r_hat <= config.max_r_hat) & (ess >= config.min_ess) & (divergent <= config.max_divergent)
    sample_weights = np.broadcast_to(np.repeat(share / each, each), (num, each * len(chosen)))
    return HMCPosterior(theta, sample_weights, r_hat, ess, divergent, converged)


def _unconstrained(space: ParameterSpace, redshift: Float[np.ndarray, " galaxy"]) -> Float[np.ndarray, " galaxy"]:
    """u of given redshifts."""
    bounds = space["redshift"]
    outside = ~((redshift > bounds.low) & (redshift < bounds.high))
    if outside.any():
        where = int(np.argmax(outside))
        raise ValueError(
            f"redshift: {redshift[where]} of galaxy {where} is not between the bounds {bounds.low:g} and {bounds.high:g}"
        )
    return np.asarray(ParameterSpace((bounds,)).to_u(jnp.asarray(redshift)[:, None]))[:, 0]


def convergence(
    theta: Float[np.ndarray, "member galaxy chain sample dim"], share: Float[np.ndarray, " member"]
) -> tuple[Float[np.ndarray, " galaxy"], Float[np.ndarray, " galaxy"]]:
    """Largest split R-hat, and smallest effective sample size of the members' average, over the parameters."""
    r_hat, inverse_ess = [], np.zeros((theta.shape[1], theta.shape[4]))
    with np.errstate(divide="ignore", invalid="ignore"):
        for each, weight in zip(theta, share, strict=True):
            chains = np.moveaxis(each, 0, 2)  # (chain, sample, galaxy, dim)
            moving = np.ptp(chains, axis=(0, 1)) > 0.0  # a parameter that is fixed has nothing to converge
            r_hat.append(np.where(moving, split_gelman_rubin(chains), 1.0).max(axis=-1))
            size = np.where(
                moving, np.clip(effective_sample_size(chains), 1.0, chains.shape[0] * chains.shape[1]), np.inf
            )
            inverse_ess += weight**2 / size
    # A chain that never moved has an R-hat that is no number.
    return np.nan_to_num(np.max(r_hat, axis=0), nan=np.inf), 1.0 / np.max(inverse_ess, axis=-1)


def _run_member(
    key: Array, target: Target, photometry: Photometry, u_redshift: np.ndarray, embedded: np.ndarray, config: HMCConfig
) -> tuple[np.ndarray, np.ndarray]:
    """theta and whether each transition diverged, (galaxy, chain, sample[, dim]), under one member."""
    num, at_once = len(u_redshift), min(config.galaxies_at_once, len(u_redshift))
    key_library, key_chains = jax.random.split(key)
    library = None if target.network is not None else _library(key_library, target, config.num_starts)

    every = Lane(photometry, jnp.asarray(u_redshift, float), jnp.asarray(embedded))

    def run(start: int) -> tuple[np.ndarray, np.ndarray]:
        # The last piece is filled up with its last galaxy: one shape, one program.
        rows = np.minimum(np.arange(start, start + at_once), num - 1)
        lane = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[rows]), every)
        keys = jax.vmap(lambda row: jax.random.fold_in(key_chains, row))(jnp.asarray(start + np.arange(at_once)))
        theta, diverging = _chains(keys, target, lane, library, config)
        return np.asarray(theta), np.asarray(diverging)

    parts = in_threads(run, range(0, num, at_once), alone=True)
    joined = [np.concatenate(arrays)[:num] for arrays in zip(*parts, strict=True)]
    return joined[0], joined[1]


@partial(jax.jit, static_argnames="num")
def _library(key: Array, target: Target, num: int) -> tuple[Float[Array, "num free"], Float[Array, "num band"]]:
    """Draws of the prior and their noise-free fluxes, among which starting points are looked for."""
    x = normal(key, (num, len(target.space)))
    u = x if target.flow is None else target.flow.forward(x)[0]
    theta = target.space.to_theta(u)
    flux = target.survey.calibrated(theta, target.survey.forward.flux(theta), target.member)
    return (jnp.delete(u, target.space.index("redshift"), axis=1) if target.fixed else x), flux


def _starts(keys: Array, target: Target, lane: Lane, library: tuple[Array, Array] | None, num: int) -> Array:
    """Where a galaxy's chains start: different candidates, by how well they fit. (galaxy, chain, free)"""
    galaxies = len(lane.u_redshift)
    draw_keys, pick_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    if library is None:
        shape = (_CANDIDATES * num, target.dim)
        x = jax.vmap(lambda key: normal(key, shape))(draw_keys)
        every = jax.tree.map(lambda leaf: jnp.repeat(leaf, shape[0], axis=0), lane)
        flat = x.reshape(-1, target.dim)
        fit = -target.potentials(flat, every) - norm.logpdf(flat).sum(axis=1)
        fit = fit.reshape(galaxies, -1)
    else:
        x, fluxes = library
        noise = target.survey.noise(target.member)

        def fit_of(one: Photometry) -> Array:
            return log_likelihood(Photometry(*(jnp.broadcast_to(part, fluxes.shape) for part in one)), fluxes, noise)

        fit, x = jax.vmap(fit_of)(lane.photometry), jnp.broadcast_to(x, (galaxies, *x.shape))
    # Tempered, so that the chains do not all start from the one best candidate.
    luck = jax.vmap(lambda key: jax.random.gumbel(key, fit.shape[1:]))(pick_keys)
    fit = jnp.where(jnp.isfinite(fit), _TEMPER * fit, -jnp.inf) + luck
    return jnp.take_along_axis(x, jax.lax.top_k(fit, num)[1][..., None], axis=1)


@partial(jax.jit, static_argnames="config")
def _chains(
    keys: Array, target: Target, lane: Lane, library: tuple[Array, Array] | None, config: HMCConfig
) -> tuple[Float[Array, "galaxy chain sample dim"], Bool[Array, "galaxy chain sample"]]:
    """All chains of some galaxies under one member, side by side."""
    num, chains = len(keys), config.num_chains
    start_keys, keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    x = _starts(start_keys, target, lane, library, chains).reshape(num * chains, -1)
    lane = jax.tree.map(lambda leaf: jnp.repeat(leaf, chains, axis=0), lane)
    chain_keys = jax.vmap(partial(jax.random.split, num=chains))(keys).reshape(-1)
    round_ = jnp.broadcast_to(jnp.eye(target.dim), (len(x), target.dim, target.dim))
    metric = target.metrics(x, lane) if target.network is None else round_
    x, diverging = jax.vmap(partial(_chain, target, config))(chain_keys, x, lane, metric)
    every = jax.tree.map(lambda leaf: jnp.repeat(leaf, config.num_samples, axis=0), lane)
    theta = target.place(x.reshape(-1, target.dim), every).theta
    shape = (num, chains, config.num_samples)
    return theta.reshape(*shape, -1), diverging.reshape(shape)


def _chain(
    target: Target,
    config: HMCConfig,
    key: Array,
    x: Float[Array, " free"],
    lane: Lane,
    metric: Float[Array, "free free"],
) -> tuple[Float[Array, "sample free"], Bool[Array, " sample"]]:
    """One chain, warmed up."""
    init, sample = hmc(potential_fn_gen=lambda lane: partial(potential_of, target, lane), algo="NUTS")
    state = init(
        x,
        config.num_warmup,
        step_size=0.5,
        inverse_mass_matrix=metric,
        # In a network's coordinates the posterior is round already; a matrix from a short warm-up would be worse.
        adapt_mass_matrix=target.network is None,
        dense_mass=True,
        target_accept_prob=config.target_accept,
        max_tree_depth=config.max_tree_depth,
        model_args=(lane,),
        rng_key=key,
    )

    def step(state: Any, _: None) -> tuple[Any, tuple[Array, Array]]:
        state = sample(state, model_args=(lane,))
        diverging = state.diverging
        if target.network is not None and config.num_jumps:
            state = _jump(target, lane, state, config.num_jumps)
        return state, (state.z, diverging)

    # One loop for both: a second one would compile NUTS a second time, which takes minutes.
    x, diverging = jax.lax.scan(step, state, length=config.num_warmup + config.num_samples)[1]
    return x[config.num_warmup :], diverging[config.num_warmup :]


def _jump(target: Target, lane: Lane, state: Any, num: int) -> Any:
    """Metropolis-Hastings with independent draws of the network, in whose base space they are standard normal."""
    rng_key, key_place, key_luck = jax.random.split(state.rng_key, 3)
    places = normal(key_place, (num, target.dim))
    energies = energies_of(target, lane, places)
    luck = jnp.log(jax.random.uniform(key_luck, (num,)))

    def propose(here: tuple[Array, Array], there: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        (x, energy), (new, new_energy, luck) = here, there
        log_ratio = energy - new_energy + 0.5 * (jnp.sum(new**2) - jnp.sum(x**2))
        accepted = luck < log_ratio  # a ratio that is no number is not accepted
        return (jnp.where(accepted, new, x), jnp.where(accepted, new_energy, energy)), None

    (x, _), _ = jax.lax.scan(propose, (state.z, state.potential_energy), (places, energies, luck))
    energy, slope = jax.value_and_grad(partial(potential_of, target, lane))(x)
    return state._replace(z=x, potential_energy=energy, z_grad=slope, rng_key=rng_key)
