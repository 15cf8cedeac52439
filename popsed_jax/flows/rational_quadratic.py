"""Monotonic rational-quadratic spline (Durkan+19, arXiv:1906.04032, sec. 3.1; Gregory & Delbourgo 1982), as array code.

The same function of the same parameters as `distrax.RationalQuadraticSpline`, against which it is tested, but the bins lie
along the leading axis and are walked through one by one, each step an operation over all points that fuses with the next.
distrax's works on one scalar at a time with its bins along the last axis, which does not vectorise on a CPU. Derivatives
go by a rule of their own: only the bin that a point lies in counts, and differentiating the walk costs ten times the walk.
It has the two methods of a distrax bijector that a flow needs without being one (`bijector.py` makes one of the whole flow):
importing distrax takes longer, and more memory, than all else that evaluating a learned population needs.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

MIN_BIN_SIZE = 1e-4
MIN_SLOPE = 1e-4
# What gradients keep of the walk, for `jax.checkpoint`: walking again would cost more than all else of a spline.
SAVED = "spline"
# Added before the softplus, so that a parameter of zero is a slope of one.
_SLOPE_OFFSET = math.log(math.expm1(1.0 - MIN_SLOPE))


class _Bin(NamedTuple):
    """The bin that each point lies in: its lower corner, its size, and the raw slopes at its ends (0: a slope of one)."""

    x: Array
    y: Array
    width: Array
    height: Array
    low: Array
    high: Array


class RationalQuadratic:
    """Elementwise spline on [-bound, bound]; outside, and with its slope at both ends, the identity.

    Args:
        params: (3 K - 1, *shape), unconstrained, along the leading axis: logits of K widths, logits of as many heights, and
            the slopes at the knots between them. All zero: the identity.
        bound: half the length of the interval, > 0.
    """

    def __init__(self, params: Array, bound: float) -> None:
        self._num_bins = (params.shape[0] + 1) // 3
        if params.shape[0] != num_parameters(self._num_bins) or self._num_bins < 2:
            raise ValueError(f"a spline of K >= 2 bins has 3 K - 1 parameters, not {params.shape[0]}")
        self._params, self._bound = params, bound

    def forward_and_log_det(self, x: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        """y(x) and log dy/dx."""
        return self._apply(x, inverse=False)

    def inverse_and_log_det(self, y: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        """x(y) and log dx/dy."""
        return self._apply(y, inverse=True)

    def _apply(self, at: Array, *, inverse: bool) -> tuple[Array, Array]:
        inside = jnp.abs(at) < self._bound
        # A point of the interval in the place of those outside: gradients of branches not taken must be finite.
        safe = jnp.where(inside, at, 0.0)
        found = _find_bin(self._bound, inverse, self._params, jax.lax.stop_gradient(safe))
        moved, log_det = (_inverse if inverse else _forward)(found, safe)
        return jnp.where(inside, moved, at), jnp.where(inside, log_det, 0.0)


def num_parameters(num_bins: int) -> int:
    """Parameters of one spline: widths, heights, and slopes at the knots between bins."""
    return 3 * num_bins - 1


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _find_bin(bound: float, by_height: bool, params: Array, at: Array) -> _Bin:
    """The bins of points inside (-bound, bound), by their x or their y. Differentiable in the parameters alone."""
    return _walk(bound, by_height, params, at)[0]


@_find_bin.defjvp
def _find_bin_jvp(
    bound: float, by_height: bool, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[_Bin, _Bin]:
    params, at = primals
    found, index = jax.tree.map(partial(checkpoint_name, name=SAVED), _walk(bound, by_height, params, at))
    num = (params.shape[0] + 1) // 3
    bins = jnp.arange(num).reshape(-1, *[1] * at.ndim)
    here, below = bins == index, bins < index

    def pick(values: Array, mask: Array) -> Array:
        return jnp.sum(jnp.where(mask, values, 0.0), axis=0)

    def corner_and_size(logits: Array, change: Array) -> tuple[Array, Array]:
        share = checkpoint_name(jax.nn.softmax(logits, axis=0), SAVED)
        change = _total(bound, num) * share * (change - jnp.sum(share * change, axis=0))
        return pick(change, below), pick(change, here)

    d_x, d_width = corner_and_size(params[:num], tangents[0][:num])
    d_y, d_height = corner_and_size(params[num : 2 * num], tangents[0][num : 2 * num])
    d_slopes = tangents[0][2 * num :]
    d_low, d_high = pick(d_slopes, here[1:]), pick(d_slopes, here[:-1])
    return found, _Bin(d_x, d_y, d_width, d_height, d_low, d_high)


def _walk(bound: float, by_height: bool, params: Array, at: Array) -> tuple[_Bin, Array]:
    """The bin of every point, and its number."""
    num = (params.shape[0] + 1) // 3
    widths, heights = (_sizes(logits, _total(bound, num)) for logits in (params[:num], params[num : 2 * num]))
    slopes = params[2 * num :]
    zero = jnp.zeros_like(at)
    x, y = zero - bound, zero - bound
    found, index = _Bin(x, y, widths[0], heights[0], zero, slopes[0]), jnp.zeros(at.shape, jnp.int32)
    for k in range(1, num):
        x, y = x + widths[k - 1], y + heights[k - 1]
        here = _Bin(x, y, widths[k], heights[k], slopes[k - 1], slopes[k] if k < num - 1 else zero)
        beyond = at >= (y if by_height else x)
        found = _Bin(*(jnp.where(beyond, new, old) for new, old in zip(here, found, strict=True)))
        index += beyond
    return found, index


def _total(bound: float, num_bins: int) -> float:
    """What the bins share beyond the least size of each."""
    return 2.0 * bound - num_bins * MIN_BIN_SIZE


def _sizes(logits: Array, total: float) -> list[Array]:
    """Sizes of the bins; a list, so that no array of all is written and read again."""
    powers = jnp.exp(logits - jnp.max(logits, axis=0))
    scale = total / jnp.sum(powers, axis=0)
    return [power * scale + MIN_BIN_SIZE for power in powers]


def _forward(b: _Bin, x: Array) -> tuple[Array, Array]:
    """(Durkan+19, eqs. 4 and 5)"""
    low, high, slope = _positive(b.low), _positive(b.high), b.height / b.width
    z = jnp.clip((x - b.x) / b.width, 0.0, 1.0)
    denominator = slope + (high + low - 2.0 * slope) * z * (1.0 - z)
    y = b.y + b.height * (slope * z**2 + low * z * (1.0 - z)) / denominator
    return y, _log_slope(low, high, slope, z, denominator)


def _inverse(b: _Bin, y: Array) -> tuple[Array, Array]:
    """The root in [0, 1] of a z^2 + b z - slope w = 0 (Durkan+19, eqs. 6 to 8), written so that nothing cancels."""
    low, high, slope = _positive(b.low), _positive(b.high), b.height / b.width
    w = jnp.clip((y - b.y) / b.height, 0.0, 1.0)
    excess = high + low - 2.0 * slope
    linear = low - excess * w
    quadratic = slope - linear
    root = jnp.sqrt(jnp.maximum(linear**2 + 4.0 * quadratic * slope * w, 1e-30))
    rising = linear >= 0.0
    top = jnp.where(rising, 2.0 * slope * w, root - linear)
    bottom = jnp.where(rising, linear + root, 2.0 * quadratic)
    z = jnp.clip(top / bottom, 0.0, 1.0)
    return b.x + b.width * z, -_log_slope(low, high, slope, z, slope + excess * z * (1.0 - z))


def _positive(raw: Array) -> Array:
    return jax.nn.softplus(raw + _SLOPE_OFFSET) + MIN_SLOPE


def _log_slope(low: Array, high: Array, slope: Array, z: Array, denominator: Array) -> Array:
    """log dy/dx (Durkan+19, eq. 5)."""
    rest = high * z**2 + 2.0 * slope * z * (1.0 - z) + low * (1.0 - z) ** 2
    return 2.0 * jnp.log(slope) + jnp.log(rest) - 2.0 * jnp.log(denominator)
