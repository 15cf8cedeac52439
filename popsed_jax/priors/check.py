"""Is a prior a density, and are its draws, its map and its conditionals those of that density?

The integral is by weighted points, drawn by the flows from a wider normal distribution, whose density is found by
differentiating the maps to theta: none of the formulas that make up log_prob is taken on trust.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm
from jaxtyping import Float

from popsed_jax.diagnostics.twosample import feature_accuracy
from popsed_jax.flows.spline import SplineFlow
from popsed_jax.priors.arrays import ArrayPrior
from popsed_jax.priors.prior import Prior

# Of the normal distributions behind the points of the integral: wider than the flows', so that no tail is missed. In eleven
# dimensions the weights then scatter by 0.2.
_WIDTH = 1.05
_BLOCK = 1000
_NUM_CLASSIFIED = 10_000
_ACCURACY = 0.52
_INTEGRAL = 0.005
_ROUND_TRIP = {"float32": 1e-5, "float64": 1e-10}
# Of points whose theta, rounded to single precision, still says where in the cube they were.
_SHARE_SINGLE = 0.99
_PULL = 4.0
_NUM_WINDOW = 5000


class Check(NamedTuple):
    """One line of the self-test."""

    name: str
    found: str
    wanted: str
    ok: bool


def check_prior(prior: Prior, seed: int = 0, num: int = 30_000) -> list[Check]:
    """Put a joint prior to the test; takes three minutes for four flows in eleven dimensions on one core.

    Args:
        prior: joint, under any names and units.
        seed: of everything random.
        num: points of the integral.
    """
    keys = jax.random.split(jax.random.key(seed), 6)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), prior)
        points, weight = _weighted_points(double, seed, num)
        trip = _round_trip(double, keys[0], 1.0)
    draws = ArrayPrior(prior).sample(keys[1], 4 * _NUM_CLASSIFIED)
    return [
        *_integral(weight),
        _agreement(
            "samples agree with log_prob", draws[:_NUM_CLASSIFIED], _drawn_by_weight(points, weight, seed), seed
        ),
        _round_trip(prior, keys[0], _SHARE_SINGLE if not jax.config.read("jax_enable_x64") else 1.0),
        trip,
        _agreement("uniform cube gives samples", draws[-_NUM_CLASSIFIED:], _transformed(prior, keys[2]), seed),
        _bounds(prior, draws, keys[3]),
        _gradient(prior, draws[:_NUM_CLASSIFIED]),
        *_conditional(prior, draws, keys[4], seed),
    ]


def _weighted_points(prior: Prior, seed: int, num: int) -> tuple[np.ndarray, np.ndarray]:
    """theta of wider draws than the prior's, and the prior's density over theirs: its mean is the integral."""
    arrays, population = ArrayPrior(prior), prior.population
    points, weights = [], []
    for key in jax.random.split(jax.random.key(seed), -(-num // _BLOCK)):
        theta, log_density = (np.asarray(part) for part in _wide_draws(prior, population.weights, key))
        points.append(theta)
        weights.append(np.exp(arrays.log_prob(theta) - log_density))
    return np.concatenate(points), np.concatenate(weights)


@jax.jit
def _wide_draws(prior: Prior, weights: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws of the flows from wider normal distributions, as theta, and their log density by Jacobians of the maps."""
    flows, space = prior.population.flows, prior.population.space
    key_member, key_x = jax.random.split(key)
    member = jax.random.choice(key_member, len(weights), (_BLOCK,), p=weights / jnp.sum(weights))
    x = _WIDTH * jax.random.normal(key_x, (_BLOCK, prior.dim))
    u = jax.vmap(lambda flow: flow.forward(x)[0])(flows)[member, jnp.arange(_BLOCK)]

    def log_wide(flow: SplineFlow) -> jax.Array:
        x, _ = flow.inverse(u)
        jacobian = jax.vmap(jax.jacfwd(lambda x: flow.forward(x[None])[0][0]))(x)
        return jnp.sum(norm.logpdf(x, scale=_WIDTH), axis=-1) - jnp.linalg.slogdet(jacobian)[1]

    log_density = logsumexp(jax.vmap(log_wide)(flows), axis=0, b=weights[:, None] / jnp.sum(weights))
    # Each column of theta depends on one dimension of u, so that one tangent holds the slopes of all.
    outward = lambda u: prior.coordinates.outward(space.to_theta(u))  # noqa: E731
    theta, slope = jax.jvp(outward, (u,), (jnp.ones_like(u),))
    return theta, log_density - jnp.sum(jnp.log(jnp.abs(slope)), axis=-1)


def _integral(weight: np.ndarray) -> list[Check]:
    error = float(np.std(weight) / np.sqrt(len(weight)))
    total = float(np.mean(weight))
    ok = abs(total - 1.0) <= _INTEGRAL and 3.0 * error <= _INTEGRAL
    return [Check("integral", f"{total:.4f} ± {error:.4f}", f"1 within {_INTEGRAL:.1%}, known to a third of that", ok)]


def _drawn_by_weight(points: np.ndarray, weight: np.ndarray, seed: int) -> np.ndarray:
    """Evenly spaced in the cumulative weight, so that none is drawn oftener than it must be."""
    where = (np.arange(_NUM_CLASSIFIED) + np.random.default_rng(seed).uniform()) / _NUM_CLASSIFIED
    return points[np.minimum(np.searchsorted(np.cumsum(weight) / np.sum(weight), where), len(points) - 1)]


def _agreement(name: str, x: np.ndarray, y: np.ndarray, seed: int) -> Check:
    accuracy = feature_accuracy(x, y, seed)
    return Check(name, f"told apart with accuracy {accuracy:.3f}", f"at most {_ACCURACY}", accuracy <= _ACCURACY)


def _transformed(prior: Prior, key: jax.Array) -> np.ndarray:
    return ArrayPrior(prior).transform(np.asarray(jax.random.uniform(key, (_NUM_CLASSIFIED, prior.dim), float)))


def _round_trip(prior: Prior, key: jax.Array, share: float) -> Check:
    """From the cube to theta and back, in the present precision."""
    cube = jax.random.uniform(key, (_NUM_CLASSIFIED, prior.dim), float)
    back = prior.inverse_transform(prior.transform(cube), prior.member_of(cube))
    away = float(np.quantile(np.max(np.abs(np.asarray(back - cube)), axis=1), share))
    bar = _ROUND_TRIP[str(cube.dtype)]
    of = "" if share == 1.0 else f", {share:.0%} of points"
    return Check(f"unit cube and back, {cube.dtype}", f"{away:.1e}", f"at most {bar:.0e}{of}", away <= bar)


def _bounds(prior: Prior, draws: Float[np.ndarray, "num dim"], key: jax.Array) -> Check:
    arrays = ArrayPrior(prior)
    raw = np.asarray(prior.sample(key, len(draws)))  # as they come; `ArrayPrior` keeps them within the bounds
    low, high = prior.low.astype(raw.dtype), prior.high.astype(raw.dtype)
    outside = int(np.sum(np.any((raw < low) | (raw > high), axis=1)))
    infinite = int(np.sum(~np.isfinite(arrays.log_prob(draws))))
    # Points with one parameter moved out by up to the width of its bounds.
    rng = np.random.default_rng(int(jax.random.randint(key, (), 0, 2**31 - 1)))
    moved, row = draws[:1000].copy(), np.arange(1000)
    column, width = rng.integers(prior.dim, size=1000), prior.high - prior.low
    beyond = rng.uniform(1e-3, 1.0, 1000) * width[column]
    moved[row, column] = np.where(rng.uniform(size=1000) < 0.5, prior.low[column] - beyond, prior.high[column] + beyond)
    leaked = int(np.sum(~np.isneginf(arrays.log_prob(moved))))
    found = f"{outside} of {len(raw)} draws outside, {infinite} of no density, {leaked} outsiders with one"
    return Check("bounds", found, "none", outside == infinite == leaked == 0)


def _gradient(prior: Prior, draws: Float[np.ndarray, "num dim"]) -> Check:
    odd = int(np.sum(~np.isfinite(ArrayPrior(prior).grad_log_prob(draws)).all(axis=1)))
    return Check("gradient at samples", f"not finite at {odd} of {len(draws)}", "none", odd == 0)


def _conditional(prior: Prior, draws: Float[np.ndarray, "num dim"], key: jax.Array, seed: int) -> list[Check]:
    """The first parameter given at its median: against joint draws in a narrow window."""
    key_more, key_given = jax.random.split(key)
    # In pieces as large as `draws`, for which the program is there.
    more = np.concatenate([ArrayPrior(prior).sample(piece, len(draws)) for piece in jax.random.split(key_more, 5)])
    name, middle = prior.names[0], float(np.median(draws[:, 0]))
    nearest = np.argsort(np.abs(more[:, 0] - middle))[:_NUM_WINDOW]
    window = 2.0 * np.abs(more[nearest[-1], 0] - middle)
    given = prior.condition({name: middle}, seed=seed)
    counted = np.log(_NUM_WINDOW / len(more) / window)
    pull = (float(given.log_norm) - counted) / np.hypot(float(given.error), _NUM_WINDOW**-0.5)
    drawn = np.asarray(given.sample(key_given, _NUM_WINDOW), float)
    return [
        Check(
            f"density of {name} = {middle:.3g}",
            f"{np.exp(float(given.log_norm)):.4g} ± {float(given.error):.1%}, {pull:+.1f} sigma from counted draws",
            f"at most {_PULL:g} sigma",
            abs(pull) <= _PULL,
        ),
        _agreement(f"conditional given {name}", more[nearest][:, 1:], drawn, seed),
    ]
