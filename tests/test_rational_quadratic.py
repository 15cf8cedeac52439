"""The spline against distrax's, and the laws of a monotonic map."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popsed_jax.flows.rational_quadratic import RationalQuadratic, num_parameters

BOUND, NUM_BINS = 3.0, 6
SHAPE = (4, 50)
DIRECTIONS = ("forward_and_log_det", "inverse_and_log_det")


def draw(seed: int, scale: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Parameters, and points inside and outside the interval."""
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(num_parameters(NUM_BINS), *SHAPE)), rng.uniform(-4.0, 4.0, SHAPE)


def by_distrax(params: jax.Array) -> distrax.RationalQuadraticSpline:
    """Its parameters lie along the last axis, with slopes at both ends, which "identity" ignores."""
    slopes = jnp.pad(params[2 * NUM_BINS :], [(1, 1), (0, 0), (0, 0)])
    raw = jnp.moveaxis(jnp.concatenate([params[: 2 * NUM_BINS], slopes]), 0, -1)
    return distrax.RationalQuadraticSpline(raw, -BOUND, BOUND, boundary_slopes="identity")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_values_and_gradients_are_those_of_distrax(direction):
    params, points = draw(0)

    def both(build, params, points):
        moved, log_det = getattr(build(params), direction)(points)
        return jnp.sum(jnp.sin(moved) + 0.7 * log_det), (moved, log_det)

    with jax.enable_x64(True):
        ours, theirs = (
            jax.jit(jax.value_and_grad(lambda p, x, build=build: both(build, p, x), argnums=(0, 1), has_aux=True))(
                params, points
            )
            for build in (lambda p: RationalQuadratic(p, BOUND), by_distrax)
        )
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_forward_mode_agrees_with_finite_differences(direction):
    with jax.enable_x64(True):
        params, points = (jnp.asarray(v) for v in draw(1))
        steps = [jnp.asarray(v) for v in draw(2)]
        apply = jax.jit(lambda p, x: getattr(RationalQuadratic(p, BOUND), direction)(x))
        _, slopes = jax.jvp(apply, (params, points), tuple(steps))
        size = 1e-6
        up, down = (apply(params + s * steps[0], points + s * steps[1]) for s in (size, -size))
        for slope, high, low in zip(slopes, up, down, strict=True):
            np.testing.assert_allclose(slope, (high - low) / (2 * size), rtol=1e-4, atol=1e-6)


_apply = jax.jit(lambda params, points: RationalQuadratic(params, BOUND).forward_and_log_det(points))
_undo = jax.jit(lambda params, points: RationalQuadratic(params, BOUND).inverse_and_log_det(points))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.0, 4.0))
def test_a_monotonic_map_of_the_interval_onto_itself(seed, scale):
    params, points = (jnp.asarray(v, jnp.float32) for v in draw(seed, scale))
    points = jnp.sort(points, axis=1)
    params = jnp.broadcast_to(params[..., :1], params.shape)  # one spline a row
    # NumPy from here on: a mask of another number of points would compile anew in every example.
    points, moved, log_det = (np.asarray(v) for v in (points, *_apply(params, points)))
    assert np.all(np.diff(moved, axis=1) >= -1e-5)
    outside = np.abs(points) >= BOUND
    np.testing.assert_array_equal(moved[outside], points[outside])
    np.testing.assert_array_equal(log_det[outside], 0.0)
    assert np.all(np.abs(moved[~outside]) <= BOUND + 1e-5)
    back, log_det_back = (np.asarray(v) for v in _undo(params, moved))
    # Where the map is steep or flat, float32 keeps as many digits less as the slope has.
    slope = np.exp(np.abs(log_det))
    assert np.all(np.abs(back - points) < 1e-5 * slope + 1e-5)
    smooth = slope < 20.0
    np.testing.assert_allclose(log_det_back[smooth], -log_det[smooth], atol=2e-2)


def test_no_parameters_no_change():
    _, points = draw(3)
    moved, log_det = _apply(jnp.zeros((num_parameters(NUM_BINS), *SHAPE)), jnp.asarray(points, jnp.float32))
    np.testing.assert_allclose(moved, points, atol=2e-6)
    np.testing.assert_allclose(log_det, 0.0, atol=2e-6)


@pytest.mark.parametrize("num", [2, 4, 13])
def test_a_wrong_number_of_parameters_is_refused(num):
    with pytest.raises(ValueError, match=f"3 K - 1 parameters, not {num}"):
        RationalQuadratic(jnp.zeros((num, *SHAPE)), BOUND)
