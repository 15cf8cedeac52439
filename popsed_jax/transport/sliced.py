"""Sliced Wasserstein distance: the mean, over random directions, of one-dimensional optimal transport.

    SW(x, y) = mean_theta  integral_0^1 |F_x^-1(t) - F_y^-1(t)|^power dt / power

where F^-1 is the quantile function of the points projected on theta. The division by `power` is the convention of the
Sinkhorn divergence here, so that the two can be mixed. O(num_projections N log N).

Bias. Between N points of x and N of y the expected cost exceeds the populations' by a sampling term that grows with either
width: `sliced_energy` has none.

Sorting. XLA sorts floats on the CPU by calling a comparison for each pair, some ten times slower than NumPy; a host
callback to NumPy is fast but can wait for ever when the process has one core (measured with jax 0.10.2; its arguments
pass through the thread pool that the callback is blocking). Plain sorts of integers do not pay for the comparison. So a
projection is rounded to fixed point within its own range and packed with its row number into one int32, and the sorted
integers give the order; the distance itself uses the exact values. Points nearer than 2^-17 of the range, or less, may
change places, which changes the cost by the square of that. Larger clouds than 2^14 points are packed into int64, to
float32's rounding, which sorts several times faster than a float argsort.

References: Rabin et al. 2012 (doi:10.1007/978-3-642-24785-9_37); Bonneel et al. 2015 (doi:10.1007/s10851-014-0506-3).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from popsed_jax._random import normal
from popsed_jax.transport._clouds import as_clouds, check_power, normalise_weights

_MAX_PACKED_BITS = 14


def sliced_wasserstein(
    key: Key[Array, ""],
    x: Float[Array, "sample_x dim"],
    y: Float[Array, "sample_y dim"],
    *,
    num_projections: int = 100,
    weights_x: Float[Array, " sample_x"] | None = None,
    weights_y: Float[Array, " sample_y"] | None = None,
    power: int = 2,
    orthogonal: bool = True,
) -> Float[Array, ""]:
    """Sliced Wasserstein cost between two weighted clouds, on fresh random directions.

    Args:
        key: random key; a new one each step, or the same directions are seen for ever.
        x: model points [any unit, the same in all dimensions].
        y: data points.
        num_projections: number of directions, static.
        weights_x: masses of the x points, >= 0, scaled to sum to one; None for equal masses.
        weights_y: the same for y.
        power: 1 or 2.
        orthogonal: as in `sample_directions`.

    Returns:
        mean over directions of W_power^power / power [unit^power], >= 0.

    Raises:
        ValueError: shapes that do not match, power not 1 or 2, num_projections below 1, or (outside traced code)
            weights that are not masses.

    Notes:
        Exact in one dimension, up to the sort's rounding (module docstring). Differentiable in x, y and the weights
        (almost everywhere: the order is held fixed). Equal unweighted clouds need two sorts of (num_projections,
        sample), weighted ones a third of both together.
    """
    x, y = as_clouds(x, y)
    directions = sample_directions(key, x.shape[1], num_projections, orthogonal=orthogonal).astype(x.dtype)
    return projected_wasserstein(directions, x, y, weights_x=weights_x, weights_y=weights_y, power=power)


def sample_directions(
    key: Key[Array, ""], dim: int, num_projections: int, *, orthogonal: bool = True
) -> Float[Array, "projection dim"]:
    """Unit vectors uniform on the sphere.

    Args:
        key: random key.
        dim: number of dimensions.
        num_projections: number of vectors.
        orthogonal: draw them in orthonormal sets of `dim` (each uniform still; the mean over them varies less, and a
            shift is measured without noise when num_projections is a multiple of dim). False: independent.

    Raises:
        ValueError: num_projections is below 1.
    """
    if num_projections < 1:
        raise ValueError(f"num_projections must be >= 1, got {num_projections}")
    if not orthogonal:
        directions = normal(key, (num_projections, dim))
        return directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    num_sets = -(-num_projections // dim)
    # Signs of the columns are not made uniform: theta and -theta measure the same.
    frames, _ = jnp.linalg.qr(normal(key, (num_sets, dim, dim)))
    return jnp.swapaxes(frames, 1, 2).reshape(num_sets * dim, dim)[:num_projections]


def projected_wasserstein(
    directions: Float[Array, "projection dim"],
    x: Float[Array, "sample_x dim"],
    y: Float[Array, "sample_y dim"],
    *,
    weights_x: Float[Array, " sample_x"] | None = None,
    weights_y: Float[Array, " sample_y"] | None = None,
    power: int = 2,
) -> Float[Array, ""]:
    """`sliced_wasserstein` on given unit directions.

    Raises:
        ValueError: as `sliced_wasserstein`, or directions of another dimension.
    """
    x, y = as_clouds(x, y)
    check_power(power)
    if directions.ndim != 2 or directions.shape[1] != x.shape[1]:
        raise ValueError(f"directions must be (projection, {x.shape[1]}), got {directions.shape}")
    on_x, on_y = project(directions, x, weights_x, "weights_x"), project(directions, y, weights_y, "weights_y")
    return compare_projected(on_x, on_y, power)


class Projected(NamedTuple):
    """A cloud on each direction, in increasing order; its masses alike, or None where all are equal."""

    values: Float[Array, "projection sample"]
    masses: Float[Array, "projection sample"] | None


def project(
    directions: Float[Array, "projection dim"],
    cloud: Float[Array, "sample dim"],
    weights: Float[Array, " sample"] | None = None,
    name: str = "weights",
) -> Projected:
    """A cloud, ready to be compared with others on the same unit directions. Differentiable, the order held fixed.

    Raises:
        ValueError: as `sliced_wasserstein`; the weights are called `name`.
    """
    along = jnp.matmul(directions, cloud.T, precision=lax.Precision.HIGHEST)
    order = _order(along)
    masses = None if weights is None else normalise_weights(weights, cloud, name)[order]
    return Projected(jnp.take_along_axis(along, order, axis=1), masses)


def compare_projected(x: Projected, y: Projected, power: int) -> Float[Array, ""]:
    """`sliced_wasserstein` of clouds that `project` sorted."""
    if x.masses is None and y.masses is None:
        return _compare_uniform(x.values, y.values, power)
    a, b = (jnp.full_like(c.values, 1.0 / c.values.shape[1]) if c.masses is None else c.masses for c in (x, y))
    return _compare_weighted(x.values, y.values, a, b, power)


def _order(values: Float[Array, "projection sample"]) -> Int[Array, "projection sample"]:
    """Row numbers in increasing order of the values; see the module's docstring."""
    values = lax.stop_gradient(values)
    bits = max(1, (values.shape[1] - 1).bit_length())
    if bits <= _MAX_PACKED_BITS:
        return _sort_packed(values, bits, 31)
    with jax.enable_x64(True):  # for these integers alone: nothing that leaves here is of another type
        return _sort_packed(values, bits, 63)


def _sort_packed(values: Float[Array, "projection sample"], bits: int, width: int) -> Int[Array, "projection sample"]:
    """Row numbers, from sorted integers of `width` bits, the lowest `bits` of which are the row number."""
    low = jnp.min(values, axis=1, keepdims=True)
    span = jnp.max(values, axis=1, keepdims=True) - low
    levels = 2.0 ** (width - bits)
    # The largest float32 below `levels` keeps the top value inside; a span of zero leaves the rows' own order.
    fixed = jnp.clip((values - low) / jnp.where(span > 0, span, 1.0) * levels, 0.0, levels * (1 - 2.0**-23))
    integer = jnp.int32 if width == 31 else jnp.int64
    packed = (fixed.astype(integer) << bits) | jnp.arange(values.shape[1], dtype=integer)
    return (jnp.sort(packed, axis=1) & (2**bits - 1)).astype(jnp.int32)


def _ground_cost(difference: Array, power: int) -> Array:
    return 0.5 * jnp.square(difference) if power == 2 else jnp.abs(difference)


def _compare_uniform(
    sorted_x: Float[Array, "projection sample_x"], sorted_y: Float[Array, "projection sample_y"], power: int
) -> Float[Array, ""]:
    """Transport between sorted points of equal mass; the levels where either quantile steps are known in advance."""
    num_x, num_y = sorted_x.shape[1], sorted_y.shape[1]
    if num_x == num_y:
        return jnp.mean(_ground_cost(sorted_x - sorted_y, power))
    # Integer levels in units of 1 / (num_x num_y): exact.
    edges = np.union1d(np.arange(num_x + 1) * num_y, np.arange(num_y + 1) * num_x)
    mass = np.diff(edges) / (num_x * num_y)
    cost = _ground_cost(sorted_x[:, edges[:-1] // num_y] - sorted_y[:, edges[:-1] // num_x], power)
    return jnp.mean(jnp.sum(cost * jnp.asarray(mass, cost.dtype), axis=1))


def _compare_weighted(
    sorted_x: Float[Array, "projection sample_x"],
    sorted_y: Float[Array, "projection sample_y"],
    a: Float[Array, "projection sample_x"],
    b: Float[Array, "projection sample_y"],
    power: int,
) -> Float[Array, ""]:
    """Transport between sorted points of given masses, by merging the steps of both quantile functions."""
    num_x, num_y = sorted_x.shape[1], sorted_y.shape[1]
    levels = jnp.concatenate([jnp.cumsum(a, axis=1), jnp.cumsum(b, axis=1)], axis=1)
    order = _order(levels)
    edges = jnp.take_along_axis(levels, order, axis=1)
    mass = jnp.diff(edges, axis=1, prepend=0.0)
    # Below an edge, x stands at as many points as x has steps before it; likewise y.
    steps_x = jnp.cumsum(order < num_x, axis=1)
    before_x = steps_x - (order < num_x)
    before_y = jnp.arange(num_x + num_y) - before_x
    at_x = jnp.take_along_axis(sorted_x, jnp.minimum(before_x, num_x - 1), axis=1)
    at_y = jnp.take_along_axis(sorted_y, jnp.minimum(before_y, num_y - 1), axis=1)
    return jnp.mean(jnp.sum(_ground_cost(at_x - at_y, power) * mass, axis=1))
