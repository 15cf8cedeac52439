"""Is a prior a density, and are its draws, its map and its conditionals those of that density?

Nothing of this is taken from the flows' own account of themselves: the integral is over points drawn from kernels about
some draws, and slopes are differentiated anew.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from popsed_jax.diagnostics.twosample import feature_accuracy
from popsed_jax.priors.arrays import ArrayPrior
from popsed_jax.priors.prior import Prior

_NUM_CENTERS = 2000
_WIDTHS = (0.2, 0.3, 0.45, 0.65)
_NUM_PILOT = 4000
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


def check_prior(prior: Prior, seed: int = 0, num: int = 100_000) -> list[Check]:
    """Put a joint prior to the test; takes a minute for four flows.

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
    """theta from kernels about draws, over u, and the density over that of the points: its mean is the integral."""
    arrays, rng = ArrayPrior(prior), np.random.default_rng(seed)
    space, order = prior.population.space, np.array(prior.coordinates.columns)
    theta, _ = prior.population.sample_members(jax.random.key(seed), _NUM_CENTERS)
    centers = np.asarray(space.to_u(theta))
    chol = np.linalg.cholesky(np.cov(centers, rowvar=False))

    def outward(u: jax.Array) -> jax.Array:
        return prior.coordinates.outward(space.to_theta(u))

    @jax.jit
    def with_slope(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Each column depends on one dimension of u, so that one tangent holds the slopes of all.
        theta, slope = jax.jvp(outward, (u,), (jnp.ones_like(u),))
        return theta, jnp.sum(jnp.log(jnp.abs(slope)), axis=-1)

    def draw(width: float, num: int) -> tuple[np.ndarray, np.ndarray]:
        # A tenth of the kernels is twice as wide: no point of the density is far from all.
        widths = np.where(rng.uniform(size=num) < 0.1, 2.0 * width, width)
        u = (
            centers[rng.integers(len(centers), size=num)]
            + widths[:, None] * rng.normal(size=(num, len(order))) @ chol.T
        )
        theta, log_slope = (np.asarray(part) for part in with_slope(jnp.asarray(u)))
        return theta, np.exp(arrays.log_prob(theta) + log_slope - _log_kernels(u, centers, chol, width))

    worth = [_num_effective(draw(width, _NUM_PILOT)[1]) for width in _WIDTHS]
    return draw(_WIDTHS[int(np.argmax(worth))], num)


def _log_kernels(u: np.ndarray, centers: np.ndarray, chol: np.ndarray, width: float) -> np.ndarray:
    """Log density of the mixture of kernels."""
    unmix = np.linalg.inv(chol).T
    scaled, about = u @ unmix, centers @ unmix
    dim = u.shape[1]
    result = np.empty(len(u))
    for start in range(0, len(u), 4096):
        part = scaled[start : start + 4096]
        square = np.sum(part**2, axis=1)[:, None] + np.sum(about**2, axis=1) - 2.0 * part @ about.T
        parts = [
            np.log(share / len(centers)) - dim * np.log(s) + logsumexp(-0.5 * square / s**2, axis=1)
            for share, s in ((0.9, width), (0.1, 2.0 * width))
        ]
        result[start : start + 4096] = np.logaddexp(*parts)
    return result - 0.5 * dim * np.log(2.0 * np.pi) - np.sum(np.log(np.diagonal(chol)))


def _integral(weight: np.ndarray) -> list[Check]:
    error = float(np.std(weight) / np.sqrt(len(weight)))
    total = float(np.mean(weight))
    ok = abs(total - 1.0) <= max(_INTEGRAL, 3.0 * error) and error <= _INTEGRAL
    return [Check("integral", f"{total:.4f} ± {error:.4f}", f"1 within {_INTEGRAL:.1%}", ok)]


def _num_effective(weight: np.ndarray) -> float:
    return float(np.sum(weight) ** 2 / np.maximum(np.sum(weight**2), 1e-300))


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
    more = ArrayPrior(prior).sample(key_more, 20 * _NUM_CLASSIFIED)
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
