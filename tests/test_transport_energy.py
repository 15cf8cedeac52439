"""Distances between populations from halves of samples: no bias where they agree, closed forms where they do not."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config as jaxtyping_config

from popsed_jax.transport import (
    TransportConfig,
    TransportMix,
    entropic_cost,
    sinkhorn_divergence,
    sinkhorn_energy,
    sliced_energy,
    sliced_wasserstein,
    transport_cost,
)

NUM, DIM, BLUR = 64, 3, 0.3
SOLVER = {"num_scales": 4, "num_final": 1, "num_sweeps": 6}
KEY = jax.random.key(3)


def _sliced(function: Callable) -> Callable:
    return lambda x, y, a=None, b=None, power=2: function(
        KEY, x, y, num_projections=2 * DIM, weights_x=a, weights_y=b, power=power
    )


def _sinkhorn(function: Callable) -> Callable:
    return lambda x, y, a=None, b=None, power=2: function(x, y, BLUR, weights_x=a, weights_y=b, power=power, **SOLVER)


# name: the distance between populations, and that between samples
KINDS = {
    "sliced": (_sliced(sliced_energy), _sliced(sliced_wasserstein)),
    "sinkhorn": (_sinkhorn(sinkhorn_energy), _sinkhorn(sinkhorn_divergence)),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def draw_pairs(num_pairs: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(num_pairs, NUM, DIM)), jnp.float32) for _ in range(2))


def mean_and_error(values: jax.Array) -> tuple[float, float]:
    return float(jnp.mean(values)), float(jnp.std(values)) / np.sqrt(len(values))


@pytest.mark.parametrize(
    ("kind", "power", "weighted"),
    [("sliced", 1, False), ("sliced", 2, False), ("sliced", 2, True), ("sinkhorn", 1, False), ("sinkhorn", 2, True)],
)
def test_one_population_is_at_zero_on_average(kind, power, weighted):
    x, y = draw_pairs(400)
    rng = np.random.default_rng(1)
    masses = jnp.asarray(rng.uniform(0.5, 1.0, size=(2, 400, NUM)), jnp.float32) if weighted else (None, None)
    for function, biased in zip(KINDS[kind], (False, True), strict=True):
        mean, error = mean_and_error(jax.jit(jax.vmap(partial(function, power=power)))(x, y, *masses))
        assert (mean > 10.0 * error) if biased else (abs(mean) < 4.0 * error)


@each_kind
def test_the_best_width_is_the_true_one(kind):
    """The slope in the model's width at the truth, over the cost's curvature there: by how much the best model is off."""
    x, y = draw_pairs(400)

    def slope(function: Callable) -> tuple[float, float]:
        gradient = jax.grad(lambda width, x, y: function(width * x, y))
        at_truth = jax.jit(jax.vmap(gradient, in_axes=(None, 0, 0)))(jnp.ones(()), x, y)
        # One population scaled by s: (s - 1)^2 |x|^2 / 2, of which a direction sees a part in DIM.
        curvature = DIM / (DIM if kind == "sliced" else 1.0)
        mean, error = mean_and_error(at_truth)
        return mean / curvature, error / curvature

    (offset, error), (biased, _) = (slope(function) for function in KINDS[kind])
    assert error < 0.01
    assert abs(offset) < 4.0 * error
    assert biased > 0.03
    assert biased > 4.0 * error


@each_kind
def test_a_shift_costs_half_its_square(kind):
    x, y = draw_pairs(400)
    shift = jnp.array([0.8, -0.3, 0.1])
    values = jax.jit(jax.vmap(KINDS[kind][0]))(x + shift, y)
    mean, error = mean_and_error(values)
    expected = 0.5 * float(jnp.sum(shift**2)) / (DIM if kind == "sliced" else 1.0)
    assert abs(mean - expected) < 4.0 * error
    assert error < 0.1 * expected


@each_kind
def test_clouds_may_change_places_and_differ_in_size(kind):
    x, y = (pairs[0] for pairs in draw_pairs(1))
    distance = jax.jit(KINDS[kind][0])
    np.testing.assert_allclose(distance(x, y[:41]), distance(y[:41], x), rtol=1e-4, atol=1e-5)
    # The last of an odd number belongs to no half.
    np.testing.assert_array_equal(distance(x, y[:41]), distance(x, y[:40]))


@each_kind
def test_gradients_match_finite_differences(kind):
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        point = tuple(rng.normal(size=(10, DIM)) for _ in range(2)) + tuple(rng.uniform(0.5, 1.0, size=(2, 10)))
        if kind == "sliced":
            distance = jax.jit(KINDS[kind][0])
        else:
            converged = {"num_scales": 12, "num_final": 10, "num_sweeps": 30}
            distance = jax.jit(lambda x, y, a, b: sinkhorn_energy(x, y, 0.8, weights_x=a, weights_y=b, **converged))
        gradients = jax.jit(jax.grad(distance, argnums=(0, 1, 2, 3)))(*point)
        for i, gradient in enumerate(gradients):
            direction = rng.normal(size=point[i].shape)
            step = 1e-5
            up, down = (
                distance(*(v + s * step * direction if j == i else v for j, v in enumerate(point))) for s in (1, -1)
            )
            np.testing.assert_allclose(np.sum(gradient * direction), (up - down) / (2 * step), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("power", [1, 2])
def test_entropic_cost_against_pot(power):
    """The plan by POT's own iteration; the cost and the relative entropy from it by their definitions."""
    ot = pytest.importorskip("ot")
    x, y = (pairs[0][:40] for pairs in draw_pairs(1, seed=5))
    rng = np.random.default_rng(6)
    a, b = (w / w.sum() for w in rng.uniform(0.2, 1.0, size=(2, 40)))
    cost = np.linalg.norm(np.asarray(x, float)[:, None] - np.asarray(y, float)[None], axis=-1) ** power / power
    epsilon = 0.5**power
    plan = ot.sinkhorn(a, b, cost, epsilon, method="sinkhorn_log", stopThr=1e-10, numItermax=10_000)
    expected = np.sum(plan * cost) + epsilon * np.sum(plan * np.log(plan / (a[:, None] * b)))
    value = entropic_cost(
        x, y, 0.5, weights_x=jnp.asarray(a, jnp.float32), weights_y=jnp.asarray(b, jnp.float32), power=power
    )
    np.testing.assert_allclose(value, expected, rtol=1e-3)


def test_training_compares_populations_unless_told_otherwise():
    x, y = (pairs[0] for pairs in draw_pairs(1))
    for debias, which in ((True, 0), (False, 1)):
        config = TransportConfig(num_projections=2 * DIM, debias=debias, **SOLVER)
        cost = jax.jit(partial(transport_cost, blur=BLUR, mix=TransportMix(2.0, 1.0), config=config))
        sliced, sinkhorn = (jax.jit(KINDS[kind][which])(x, y) for kind in ("sliced", "sinkhorn"))
        value, terms = cost(KEY, x, y)
        np.testing.assert_allclose(terms, (sliced, sinkhorn), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(value, 2.0 * sliced + sinkhorn, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: sinkhorn_energy(x[:1], y, BLUR), "halves of x and y need a point each: got 1 and 64"),
        (lambda x, y: sliced_energy(KEY, x, y[:1]), "got 64 and 1 points"),
        (lambda x, y: sinkhorn_energy(x, y[:, :2], BLUR), "differ in dimension"),
        (lambda x, y: sinkhorn_energy(x, y, -1.0), "blur must be positive"),
        (lambda x, y: sinkhorn_energy(x, y, BLUR, weights_x=-jnp.ones(NUM)), "weights_x must be finite"),
        (lambda x, y: sinkhorn_energy(x, y, BLUR, num_sweeps=0), "must be >= 1"),
        (lambda x, y: sliced_energy(KEY, x, y, num_projections=0), "num_projections must be"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    x, y = (pairs[0] for pairs in draw_pairs(1))
    before = jaxtyping_config.jaxtyping_disable
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match=message):
            call(x, y)
    finally:
        jaxtyping_config.update("jaxtyping_disable", before)


@pytest.mark.parametrize("power", [1, 2])
def test_large_clouds_by_blocks_of_rows(power, monkeypatch):
    """What is done in turn where the matrices are large, here by 9, 9 and 7 rows, is what is done at once."""
    rng = np.random.default_rng(5)
    x, y = (jnp.asarray(rng.normal(size=(num, DIM)), jnp.float32) for num in (25, 40))

    def evaluate():
        distance = partial(sinkhorn_divergence, power=power, **SOLVER)
        value = jax.jit(lambda x: distance(x, y, BLUR))(x)
        return value, *jax.jit(jax.value_and_grad(lambda x: distance(x, y, BLUR)))(x)

    at_once = evaluate()
    monkeypatch.setattr("popsed_jax.transport.sinkhorn._MAX_BLOCK", 9 * 40)
    for block, whole in zip(evaluate(), at_once, strict=True):
        np.testing.assert_allclose(block, whole, rtol=1e-5, atol=1e-6)
