"""The order in which the sliced distance takes its points: NumPy's, at every size and under every transformation of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from popsed_jax.transport import projected_wasserstein, sample_directions, sliced_energy
from popsed_jax.transport.sliced import _order

SMALL, LARGE = 2**14, 2**14 + 1  # the largest cloud packed into int32, the smallest packed into int64


each_size = pytest.mark.parametrize("num", [1, 2, 3, 500, 512, SMALL - 1, SMALL, LARGE, 40_000])


def resolution(num: int) -> float:
    """Of the fixed point, in units of a row's range: what the row number leaves of 31 bits, or float32's own."""
    return 2.0 ** (max(1, (num - 1).bit_length()) - 31) if num <= SMALL else 0.0


@each_size
def test_order_is_that_of_a_stable_sort(num):
    """Of the rounded values: multiples of 2^-20 from 0 to 1, on which no operation but the cut to fixed point rounds."""
    rng = np.random.default_rng(num)
    fine, coarse, two = (rng.integers(0, steps, size=num, endpoint=True) / steps for steps in (2**20, 2**4, 1))
    values = np.stack([fine, coarse, two, np.full(num, 0.3)]).astype(np.float32)
    values[:3, :1], values[:3, -1:] = 0.0, 1.0
    step = resolution(num)
    cut = np.minimum(np.floor(values / step), 1.0 / step - 1.0) if step else values
    order = jax.jit(_order)(jnp.asarray(values))
    assert order.dtype == jnp.int32
    np.testing.assert_array_equal(order, np.argsort(cut, axis=1, kind="stable"))


@each_size
def test_only_near_neighbours_change_places(num):
    normal = np.random.default_rng(num).normal(size=(2, num))
    values = np.stack([*normal, normal[0] ** 9]).astype(np.float32)  # the last with outliers
    order = np.asarray(jax.jit(_order)(jnp.asarray(values)))
    np.testing.assert_array_equal(np.sort(order, axis=1), np.broadcast_to(np.arange(num), values.shape))
    back = -np.diff(np.take_along_axis(values, order, axis=1), axis=1)
    assert np.all(back <= (resolution(num) + 2.0**-22) * np.ptp(values, axis=1, keepdims=True))


@pytest.mark.parametrize("num", [SMALL, LARGE])
def test_order_is_the_same_in_every_transformation(num):
    """The wide integers exist in the traced order alone: no batching, loop or branch meets them."""
    values = jnp.asarray(np.random.default_rng(1).normal(size=(3, num)), jnp.float32)
    expected = np.asarray(jax.jit(_order)(values))

    def in_loop(values):
        return lax.map(lambda row: _order(row[None])[0], values)

    def in_branch(values):
        return lax.cond(jnp.sum(values) < jnp.inf, _order, lambda v: jnp.zeros(v.shape, jnp.int32), values)

    for transformed in (_order, jax.vmap(lambda row: _order(row[None])[0]), in_loop, in_branch, jax.checkpoint(_order)):
        order = jax.jit(transformed)(values)
        assert order.dtype == jnp.int32
        np.testing.assert_array_equal(order, expected)
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize("num", [300, LARGE])
def test_gradient_is_the_plan_of_sorted_points(num):
    """Each point is drawn to the data's point of its rank."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, num, 1)).astype(np.float32)
    evaluate = jax.jit(jax.value_and_grad(lambda x, y: projected_wasserstein(jnp.ones((1, 1)), x, y)))
    value, gradient = evaluate(jnp.asarray(x), jnp.asarray(y))
    rank = np.argsort(np.argsort(x[:, 0], kind="stable"), kind="stable")
    distance = x[:, 0].astype(float) - np.sort(y[:, 0])[rank]
    assert gradient.dtype == value.dtype == jnp.float32
    np.testing.assert_allclose(value, 0.5 * np.mean(distance**2), rtol=1e-4)
    # Two neighbours that changed places changed their gradients too.
    assert np.mean(np.abs(gradient[:, 0] * num - distance) < 1e-5) > 0.99
    np.testing.assert_allclose(gradient[:, 0] * num, distance, atol=2e-2)


@pytest.mark.parametrize("weighted", [False, True])
def test_each_half_sorted_once_gives_the_four_terms(weighted):
    """`sliced_energy`, which shares its sorts, against the four distances that define it, each sorting for itself."""
    rng = np.random.default_rng(3)
    x, y = (jnp.asarray(rng.normal(size=(num, 3)), jnp.float32) for num in (200, 140))
    a, b = (jnp.asarray(rng.uniform(0.2, 1.0, size=len(c)), jnp.float32) if weighted else None for c in (x, y))

    key = jax.random.key(4)
    directions = sample_directions(key, 3, 10)

    def separate(x):
        def halves(rows):
            return (None, None) if rows is None else (rows[: len(rows) // 2], rows[len(rows) // 2 :])

        def cost(x, y, a, b):
            return projected_wasserstein(directions, x, y, weights_x=a, weights_y=b)

        (x1, x2), (y1, y2), (a1, a2), (b1, b2) = map(halves, (x, y, a, b))
        across = cost(x1, y1, a1, b1) + cost(x2, y2, a2, b2)
        return 0.5 * (across - cost(x1, x2, a1, a2) - cost(y1, y2, b1, b2))

    def shared(x):
        return sliced_energy(key, x, y, num_projections=10, weights_x=a, weights_y=b)

    (value, gradient), expected = (jax.jit(jax.value_and_grad(f))(x) for f in (shared, separate))
    np.testing.assert_allclose(value, expected[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, expected[1], atol=1e-7)
