"""Sinkhorn of large clouds: the mean over parts, with the same weights and gradients, and without the square of memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.transport import TransportConfig, TransportMix, transport_cost

DIM, BLOCK = 3, 32
CONFIG = TransportConfig(num_scales=3, num_final=1, num_sweeps=2, num_projections=6, sinkhorn_block=BLOCK)
WHOLE = TransportConfig(num_scales=3, num_final=1, num_sweeps=2, num_projections=6)
KEY = jax.random.key(0)


def cost(config, x, y, a=None, b=None):
    return transport_cost(KEY, x, y, blur=0.3, mix=TransportMix(0.0, 1.0), config=config, weights_x=a, weights_y=b)[0]


def clouds(num_x: int, num_y: int) -> list[jax.Array]:
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.normal(size=(num, DIM)), jnp.float32) for num in (num_x, num_y)]


@pytest.mark.parametrize(("num_x", "num_y", "weighted"), [(96, 96, False), (100, 70, True), (96, 20, True)])
def test_a_large_cloud_is_the_mean_over_its_parts(num_x, num_y, weighted) -> None:
    x, y = clouds(num_x, num_y)
    a = jnp.linspace(0.5, 1.5, num_x) if weighted else None
    num = 4 if num_x == 100 else 3

    def part(array: jax.Array | None, i: int) -> jax.Array | None:
        if array is None or len(array) <= BLOCK:
            return array
        size = len(array) // num
        return array[i * size : (i + 1) * size]

    value, slope = jax.jit(jax.value_and_grad(partial(cost, CONFIG)))(x, y, a)
    each = jax.jit(jax.value_and_grad(partial(cost, WHOLE)))
    values, slopes = zip(*(each(part(x, i), part(y, i), part(a, i)) for i in range(num)), strict=True)
    np.testing.assert_allclose(value, np.mean(values), rtol=1e-4)
    np.testing.assert_allclose(slope, np.concatenate(slopes) / num, rtol=1e-3, atol=1e-6)


def test_memory_does_not_grow_with_the_square() -> None:
    """Temporary memory that the compiled gradient asks for."""

    def needed(num: int) -> int:
        shape = jax.ShapeDtypeStruct((num, DIM), jnp.float32)
        config = TransportConfig(num_scales=3, num_final=1, num_sweeps=2, sinkhorn_block=128)
        compiled = jax.jit(jax.grad(partial(cost, config))).lower(shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert needed(2048) < 3 * needed(512)
    assert needed(2048) < 4 * 2048**2  # one matrix of all distances


def test_parts_need_points() -> None:
    with pytest.raises(ValueError, match="sinkhorn_block must be >= 4, got 3"):
        TransportConfig(sinkhorn_block=3)
