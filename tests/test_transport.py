"""The distances between clouds: against other packages, closed forms, and the laws that both must obey."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jaxtyping import config as jaxtyping_config

from popsed_jax.transport import (
    TransportConfig,
    TransportMix,
    projected_wasserstein,
    sample_directions,
    sinkhorn_divergence,
    sinkhorn_divergence_info,
    sliced_wasserstein,
    transport_cost,
)

ot = pytest.importorskip("ot")

CONVERGED = {"num_scales": 12, "num_final": 10, "num_sweeps": 30}
NUM, DIM = 60, 3


class Distance(NamedTuple):
    """A distance as a function of (key, x, y, weights_x, weights_y), and its ground cost."""

    name: str
    power: int
    evaluate: Callable


def _sliced(power):
    return jax.jit(
        lambda key, x, y, a=None, b=None: sliced_wasserstein(
            key, x, y, num_projections=30, weights_x=a, weights_y=b, power=power
        )
    )


def _sinkhorn(power):
    return jax.jit(
        lambda key, x, y, a=None, b=None: sinkhorn_divergence(x, y, 0.4, weights_x=a, weights_y=b, power=power)
    )


DISTANCES = [
    Distance(f"{name}-{power}", power, build(power))
    for name, build in (("sliced", _sliced), ("sinkhorn", _sinkhorn))
    for power in (1, 2)
]
each_distance = pytest.mark.parametrize("distance", DISTANCES, ids=lambda distance: distance.name)
# For what does not depend on the ground cost: compiling is most of the time here.
each_kind = pytest.mark.parametrize("distance", DISTANCES[1::2], ids=lambda distance: distance.name)


@pytest.fixture(scope="module")
def key():
    return jax.random.key(7)


@pytest.fixture(scope="module")
def clouds():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(NUM, DIM)) * [1.0, 0.5, 2.0] + 0.3
    y = rng.normal(size=(NUM, DIM))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


@pytest.fixture(scope="module")
def masses():
    rng = np.random.default_rng(4)
    a, b = rng.uniform(0.1, 1.0, size=(2, NUM))
    a[:5] = 0.0  # undetected
    return jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)


def ground_cost(x, y, power):
    distance = np.linalg.norm(np.asarray(x, float)[:, None] - np.asarray(y, float)[None], axis=-1)
    return distance**power / power


# ---- laws ----


@each_distance
def test_identical_clouds_are_at_zero(distance, key, clouds, masses):
    x, _ = clouds
    assert abs(distance.evaluate(key, x, x)) < 1e-6
    assert abs(distance.evaluate(key, x, x, masses[0], masses[0])) < 1e-6


@each_distance
def test_different_clouds_are_above_zero_and_symmetric(distance, key, clouds, masses):
    (x, y), (a, b) = clouds, masses
    there, back = distance.evaluate(key, x, y, a, b), distance.evaluate(key, y, x, b, a)
    assert there > 0.01
    assert there.dtype == jnp.float32
    np.testing.assert_allclose(there, back, rtol=2e-5)


@each_distance
def test_moving_both_clouds_changes_nothing(distance, key, clouds):
    x, y = clouds
    np.testing.assert_allclose(
        distance.evaluate(key, x + 2.0, y + 2.0), distance.evaluate(key, x, y), rtol=1e-4, atol=1e-6
    )


@each_distance
def test_a_shift_costs_its_length(distance, key, clouds):
    """|s|^p / p; for the sliced distance in the mean over directions."""
    x, _ = clouds
    shift = np.array([0.9, -0.4, 0.2], np.float32)
    along = shift[None]
    if distance.name.startswith("sliced"):
        along = np.asarray(sample_directions(key, DIM, 30)) * shift
        along = along.sum(axis=1, keepdims=True)
    expected = np.mean(np.linalg.norm(along, axis=1) ** distance.power) / distance.power
    value = distance.evaluate(key, x + shift, x)
    if distance.name == "sinkhorn-1":
        assert 0.5 * expected < value < expected
    else:
        np.testing.assert_allclose(value, expected, rtol=2e-3)


@each_distance
def test_order_of_rows_does_not_matter(distance, key, clouds, masses):
    (x, y), (a, b) = clouds, masses
    p, q = np.random.default_rng(0).permuted(np.tile(np.arange(NUM), (2, 1)), axis=1)
    np.testing.assert_allclose(
        distance.evaluate(key, x[p], y[q], a[p], b[q]), distance.evaluate(key, x, y, a, b), rtol=1e-4
    )


@each_distance
def test_integer_weights_are_repeated_points(distance, key, clouds):
    x, y = clouds
    counts = np.random.default_rng(1).multinomial(NUM, np.full(NUM, 1 / NUM))
    repeated = jnp.asarray(np.repeat(x, counts, axis=0))
    np.testing.assert_allclose(
        distance.evaluate(key, x, y, jnp.asarray(counts, jnp.float32), jnp.ones(NUM)),
        distance.evaluate(key, repeated, y),
        rtol=2e-4,
    )


@each_distance
def test_equal_weights_are_no_weights(distance, key, clouds):
    x, y = clouds
    a, b = np.full(NUM, 3.0, np.float32), np.full(NUM, 0.2, np.float32)
    np.testing.assert_allclose(distance.evaluate(key, x, y, a, b), distance.evaluate(key, x, y), rtol=1e-4)


@each_kind
def test_samples_of_one_population_approach(distance, key):
    rng = np.random.default_rng(5)
    draw = lambda num: jnp.asarray(rng.normal(size=(4, 2, num, DIM)), jnp.float32)  # noqa: E731
    few, many = (
        np.mean([distance.evaluate(key, *pair) for pair in draw(num)])  #
        for num in (NUM, 480)
    )
    assert many < 0.7 * few


@each_kind
def test_vmap_is_a_loop(distance, key, clouds):
    x, y = clouds
    members = jnp.stack([x, x + 0.5, 2.0 * x])
    keys = jax.random.split(key, 3)
    together = jax.vmap(distance.evaluate, in_axes=(0, 0, None))(keys, members, y)
    alone = [distance.evaluate(k, member, y) for k, member in zip(keys, members, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=2e-5)


@each_distance
def test_gradients_match_finite_differences(distance, clouds, masses):
    """In float64, in both clouds and both weights; Sinkhorn iterated to convergence, as the envelope theorem asks."""
    with jax.enable_x64(True):
        key = jax.random.key(0)
        x, y, a, b = (np.asarray(v, np.float64) for v in (*(cloud[:10] for cloud in clouds), *masses))
        y, a, b = y[:8], a[-10:], b[:8]
        if distance.name.startswith("sliced"):
            evaluate = lambda x, y, a, b: sliced_wasserstein(  # noqa: E731
                key, x, y, num_projections=4, weights_x=a, weights_y=b, power=distance.power
            )
        else:
            evaluate = lambda x, y, a, b: sinkhorn_divergence(  # noqa: E731
                x, y, 0.8, weights_x=a, weights_y=b, power=distance.power, **CONVERGED
            )
        evaluate = jax.jit(evaluate)
        point = (x, y, a, b)
        gradients = jax.jit(jax.grad(evaluate, argnums=(0, 1, 2, 3)))(*point)
        rng = np.random.default_rng(2)
        for index, gradient in enumerate(gradients):
            direction = rng.normal(size=gradient.shape)
            ends = [
                evaluate(*(v + sign * 1e-6 * direction if i == index else v for i, v in enumerate(point)))
                for sign in (1, -1)
            ]
            np.testing.assert_allclose(
                np.sum(np.asarray(gradient) * direction), (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-8
            )


@each_distance
def test_gradient_is_finite_where_points_coincide(distance, key, clouds):
    x, y = clouds
    touching = x.at[:20].set(y[:20]).at[30:40].set(x[30])
    differentiate = jax.jit(jax.value_and_grad(distance.evaluate, argnums=1))
    for other in (y, touching):
        value, gradient = differentiate(key, touching, other)
        assert jnp.isfinite(value)
        assert jnp.all(jnp.isfinite(gradient))


@each_distance
def test_not_a_number_is_not_hidden(distance, key, clouds):
    x, y = clouds
    assert jnp.isnan(distance.evaluate(key, x.at[3, 1].set(jnp.nan), y))


# ---- Sinkhorn: other packages, closed forms, robustness ----


@pytest.mark.parametrize("power", [1, 2])
def test_small_blur_is_exact_transport(clouds, power):
    x, y = clouds[0][:30], clouds[1][:24]
    exact = ot.emd2(np.full(30, 1 / 30), np.full(24, 1 / 24), ground_cost(x, y, power))
    blur = 0.05 if power == 2 else 0.004
    evaluate = partial(sinkhorn_divergence, power=power, num_scales=16, num_final=20, num_sweeps=60)
    value = jax.jit(evaluate)(x, y, blur)
    np.testing.assert_allclose(value, exact, rtol=0.01)


@pytest.mark.parametrize("power", [1, 2])
def test_sinkhorn_matches_pot_with_weights(clouds, masses, power):
    blur = 0.7
    weights = [np.asarray(w, float) / np.sum(np.asarray(w, float)) for w in masses]

    def regularised(i, j):
        a, b, cost = weights[i], weights[j], ground_cost(clouds[i], clouds[j], power)
        keep = np.ix_(a > 0, b > 0)
        a, b, cost = a[a > 0], b[b > 0], cost[keep]
        plan = ot.sinkhorn(a, b, cost, blur**power, method="sinkhorn_log", stopThr=1e-10, numItermax=20_000)
        return np.sum(plan * cost) + blur**power * np.sum(plan * np.log(np.maximum(plan, 1e-300) / np.outer(a, b)))

    expected = regularised(0, 1) - 0.5 * regularised(0, 0) - 0.5 * regularised(1, 1)
    evaluate = jax.jit(partial(sinkhorn_divergence, power=power, num_sweeps=20, num_final=5))
    value = evaluate(*clouds, blur, weights_x=masses[0], weights_y=masses[1])
    np.testing.assert_allclose(value, expected, rtol=1e-4)


@pytest.mark.parametrize("power", [1, 2])
def test_annealed_agrees_with_ott(clouds, masses, power):
    (x, y), blur = clouds, 0.4

    def run(x, a, method):
        return sinkhorn_divergence_info(
            x, y, blur, weights_x=a, power=power, method=method, tolerance=1e-4, num_sweeps=40, num_final=20
        )

    results = [
        jax.jit(jax.value_and_grad(partial(run, method=method), argnums=(0, 1), has_aux=True))(x, masses[1])
        for method in ("annealed", "ott")
    ]
    ((ours, info), ours_grad), ((theirs, their_info), their_grad) = results
    assert info.converged
    assert their_info.converged
    assert their_info.num_iterations >= 50
    assert their_info.marginal_error <= 1e-4
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    np.testing.assert_allclose(ours_grad[0], their_grad[0], atol=3e-4)
    np.testing.assert_allclose(ours_grad[1], their_grad[1], atol=3e-4)


def test_failure_to_converge_is_told(clouds):
    x, y = clouds
    solve = jax.jit(sinkhorn_divergence_info, static_argnames=("method", "max_iterations", "num_sweeps"))
    value, info = solve(x, y, 0.02, method="ott", max_iterations=60)
    assert not info.converged
    assert info.marginal_error > 0.01
    assert jnp.isfinite(value)
    _, rough = solve(x, y, 0.02, num_sweeps=1)
    _, good = solve(x, y, 3.0, num_sweeps=1)
    assert rough.marginal_error > 0.1
    assert not rough.converged
    assert good.converged


def gaussian_divergence(mean, cov_a, cov_b, blur):
    """Between Gaussians (Janati+20, arXiv:2006.02572, eq. 7, with sigma = blur and half its cost)."""

    def root(matrix):
        values, vectors = np.linalg.eigh(matrix)
        return vectors @ np.diag(np.sqrt(values)) @ vectors.T

    def bures(a, b):
        cross = root(4 * root(a) @ b @ root(a) + blur**4 * np.eye(len(a)))
        _, log_det = np.linalg.slogdet(cross + blur**2 * np.eye(len(a)))
        return np.trace(a + b - cross) + blur**2 * log_det

    return 0.5 * (mean @ mean + bures(cov_a, cov_b) - 0.5 * bures(cov_a, cov_a) - 0.5 * bures(cov_b, cov_b))


@pytest.mark.parametrize("blur", [0.5, 2.0])
def test_sinkhorn_between_gaussians(blur):
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(24)
    grid = np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2)
    weights = jnp.asarray(np.outer(node_weights, node_weights).ravel(), jnp.float32)
    mean, root_a, root_b = np.array([0.5, -0.3]), np.array([[1.0, 0.0], [0.6, 0.8]]), np.diag([0.7, 1.3])
    value = jax.jit(sinkhorn_divergence)(
        jnp.asarray(grid @ root_a.T + mean, jnp.float32),
        jnp.asarray(grid @ root_b.T, jnp.float32),
        blur,
        weights_x=weights,
        weights_y=weights,
    )
    np.testing.assert_allclose(value, gaussian_divergence(mean, root_a @ root_a.T, root_b @ root_b.T, blur), rtol=0.01)


def test_large_blur_sees_means_or_energy(clouds):
    """Feydy+19, theorem 1: an infinite blur leaves c(x, y) - c(x, x') / 2 - c(y, y') / 2 in the mean."""
    x, y = clouds
    for power, blur in ((2, 1e3), (1, 1e5)):
        between, within_x, within_y = (ground_cost(u, v, power).mean() for u, v in ((x, y), (x, x), (y, y)))
        with jax.enable_x64(True):  # the difference of terms as large as epsilon
            pair = (jnp.asarray(np.asarray(cloud, np.float64)) for cloud in clouds)
            value = jax.jit(partial(sinkhorn_divergence, power=power))(*pair, blur)
        np.testing.assert_allclose(value, between - 0.5 * within_x - 0.5 * within_y, rtol=1e-4)


@pytest.mark.parametrize("power", [1, 2])
def test_outliers_and_tiny_weights_stay_finite(clouds, power):
    x, y = clouds
    x = x.at[0].set(300.0)
    a = jnp.ones(NUM).at[1:].set(jnp.logspace(0, -12, NUM - 1))
    evaluate = jax.jit(jax.value_and_grad(partial(sinkhorn_divergence, blur=0.05, power=power)))
    value, gradient = evaluate(x, y, weights_x=a)
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(gradient))
    assert value > ground_cost(x[:1], y, power).min() * a[0] / a.sum() * 0.9


def test_new_blur_does_not_compile_again(clouds):
    traces = []

    @jax.jit
    def both(blur):
        traces.append(1)
        return sinkhorn_divergence(*clouds, blur), sinkhorn_divergence(*clouds, blur, method="ott")

    values = [both(blur)[0] for blur in (1.0, 0.5, 0.3)]
    assert len(traces) == 1
    assert values[0] < values[1] < values[2]


# ---- sliced ----


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_sliced_matches_pot(clouds, masses, power, weighted):
    x, y = clouds[0], clouds[1][:37]
    directions = sample_directions(jax.random.key(1), DIM, 12, orthogonal=False)
    a, b = (masses[0], masses[1][:37]) if weighted else (None, None)
    pot_weights = [None if w is None else np.asarray(w, float) / np.sum(np.asarray(w, float)) for w in (a, b)]
    expected = ot.sliced_wasserstein_distance(
        np.asarray(x, float), np.asarray(y, float), *pot_weights, projections=np.asarray(directions.T, float), p=power
    )
    value = jax.jit(partial(projected_wasserstein, power=power))(directions, x, y, weights_x=a, weights_y=b)
    np.testing.assert_allclose(value, expected**power / power, rtol=2e-4)


def test_sliced_is_exact_in_one_dimension():
    """Gaussian quantiles: W2^2 = (difference of means)^2 + (difference of widths)^2."""
    normal = np.sort(np.random.default_rng(0).normal(size=(4001, 1)), axis=0)
    normal = jnp.asarray((normal - normal.mean()) / normal.std(), jnp.float32)
    evaluate = jax.jit(partial(sliced_wasserstein, num_projections=1))
    value = evaluate(jax.random.key(0), 2.0 * normal + 1.0, 0.5 * normal)
    np.testing.assert_allclose(value, 0.5 * (1.0 + 1.5**2), rtol=1e-4)


def test_shift_is_measured_without_noise_by_orthonormal_sets(clouds):
    x, _ = clouds
    shift = jnp.array([1.0, 2.0, -0.5])
    evaluate = jax.jit(partial(sliced_wasserstein, num_projections=2 * DIM))
    np.testing.assert_allclose(
        evaluate(jax.random.key(5), x + shift, x), 0.5 * np.sum(np.square(shift)) / DIM, rtol=1e-4
    )


def test_directions_are_unit_and_new_for_each_key():
    for orthogonal in (True, False):
        draw = jax.jit(partial(sample_directions, dim=4, num_projections=10, orthogonal=orthogonal))
        first, again, other = draw(jax.random.key(0)), draw(jax.random.key(0)), draw(jax.random.key(1))
        assert first.shape == (10, 4)
        np.testing.assert_allclose(jnp.linalg.norm(first, axis=1), 1.0, rtol=1e-5)
        np.testing.assert_array_equal(first, again)
        assert jnp.max(jnp.abs(first - other)) > 0.1
    frame = sample_directions(jax.random.key(0), 4, 10)[:4]
    np.testing.assert_allclose(frame @ frame.T, np.eye(4), atol=1e-5)


@pytest.mark.parametrize("num", [1, 2, 1000, 20_000])
def test_sorting_is_fine_at_any_size(num):
    """1000 points are packed into int32, 20,000 into int64; outliers stretch the range."""
    rng = np.random.default_rng(num)
    x, y = (rng.standard_t(2, size=(num, 1)).astype(np.float32) for _ in range(2))
    value = jax.jit(projected_wasserstein)(jnp.ones((1, 1)), jnp.asarray(x), jnp.asarray(y))
    expected = 0.5 * np.mean(np.square(np.sort(x, axis=0).astype(float) - np.sort(y, axis=0)))
    np.testing.assert_allclose(value, expected, rtol=1e-4)


# ---- the mixture ----

CONFIG = TransportConfig(num_projections=9, num_scales=4, num_final=1, num_sweeps=3)


def test_mixture_is_the_sum_of_its_parts(key, clouds, masses):
    (x, y), (a, b) = clouds, masses

    @partial(jax.jit, static_argnames="mix")
    def evaluate(mix):
        return transport_cost(key, x, y, blur=0.4, mix=mix, config=CONFIG, weights_x=a, weights_y=b)

    cost, terms = evaluate(mix=TransportMix(2.0, 0.5))
    np.testing.assert_allclose(cost, 2.0 * terms.sliced + 0.5 * terms.sinkhorn, rtol=1e-6)
    sliced_only, sinkhorn_only = evaluate(mix=TransportMix(1.0, 0.0)), evaluate(mix=TransportMix(0.0, 1.0))
    assert sliced_only[1].sinkhorn == 0
    assert sinkhorn_only[1].sliced == 0
    np.testing.assert_allclose((sliced_only[0], sinkhorn_only[0]), terms, rtol=1e-5)


def test_one_compiled_epoch_serves_every_phase(clouds):
    """Sliced only, mixed, Sinkhorn only: the factors and the blur are data of a scan over vmapped members."""
    x, y = clouds
    members = jnp.stack([x, x + 0.4])
    traces = []

    @jax.jit
    def epoch(key, members, blurs, mixes):
        traces.append(1)

        def step(members, inputs):
            key, blur, mix = inputs
            loss = lambda key, x: transport_cost(key, x, y, blur=blur, mix=mix, config=CONFIG)  # noqa: E731
            keys = jax.random.split(key, len(members))
            (cost, terms), gradient = jax.vmap(jax.value_and_grad(loss, argnums=1, has_aux=True))(keys, members)
            return members - NUM * gradient, (cost, terms)

        return lax.scan(step, members, (jax.random.split(key, len(blurs)), blurs, mixes))

    one, zero, blank = np.ones(3, np.float32), np.zeros(3, np.float32), np.full(3, np.nan, np.float32)
    # blur = NaN would poison value and gradient if the skipped divergence were evaluated and multiplied by zero.
    moved, (cost, terms) = epoch(jax.random.key(0), members, blank, TransportMix(one, zero))
    assert jnp.all(jnp.isfinite(moved))
    assert jnp.all(terms.sinkhorn == 0)
    assert jnp.mean(cost[-1]) < jnp.mean(cost[0])
    for mix in (TransportMix(one, one), TransportMix(zero, one)):
        moved, (cost, terms) = epoch(jax.random.key(1), members, np.array([0.8, 0.6, 0.4], np.float32), mix)
        assert jnp.all(jnp.isfinite(moved))
        assert jnp.all(terms.sinkhorn != 0)
    assert jnp.all(terms.sliced == 0)
    assert len(traces) == 1


def test_skipped_part_is_a_branch_under_vmap(clouds):
    """A predicate that is not mapped over leaves a real conditional: nothing of the other part is computed."""
    x, y = clouds

    def loss(x, mix):
        return transport_cost(jax.random.key(0), x, y, blur=0.5, mix=mix, config=CONFIG)[0]

    program = jax.make_jaxpr(jax.vmap(jax.grad(loss), in_axes=(0, None)))(jnp.stack([x, x]), TransportMix(1.0, 0.0))
    assert not [equation for equation in program.eqns if equation.primitive.name in ("sort", "scan")]
    assert [equation for equation in program.eqns if equation.primitive.name == "cond"]


# ---- errors ----


@pytest.fixture
def unchecked():
    """As users run it: without the tests' checks of every annotation, which would speak first."""
    before = jaxtyping_config.jaxtyping_disable
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: sinkhorn_divergence(x, y[:, :2], 0.1), "differ in dimension"),
        (lambda x, y: sinkhorn_divergence(x[0], y, 0.1), "x must be a non-empty"),
        (lambda x, y: sinkhorn_divergence(x, y, -0.1), "blur must be positive"),
        (lambda x, y: sinkhorn_divergence(x, y, jnp.array([0.1, 0.2])), "blur must be a scalar"),
        (lambda x, y: sinkhorn_divergence(x, y, 0.1, power=3), "power must be 1 or 2"),
        (lambda x, y: sinkhorn_divergence(x, y, 0.1, method="exact"), "method must be"),
        (lambda x, y: sinkhorn_divergence(x, y, 0.1, num_final=0), "must be >= 1"),
        (lambda x, y: sinkhorn_divergence(x, y, 0.1, weights_x=-jnp.ones(NUM)), "weights_x must be finite"),
        (lambda x, y: sinkhorn_divergence(x, y, 0.1, weights_y=jnp.ones(2)), "weights_y must have shape"),
        (lambda x, y: sinkhorn_divergence_info(x, y, 0.1, method="ott", max_iterations=50), "max_iterations"),
        (lambda x, y: sliced_wasserstein(jax.random.key(0), x, y[:, :2]), "differ in dimension"),
        (lambda x, y: sliced_wasserstein(jax.random.key(0), x, y, power=0), "power must be 1 or 2"),
        (lambda x, y: sliced_wasserstein(jax.random.key(0), x, y, num_projections=0), "num_projections must be"),
        (lambda x, y: projected_wasserstein(jnp.ones((4, 2)), x, y), "directions must be"),
        (lambda x, y: transport_cost(jax.random.key(0), x, y, blur=0.0), "blur must be positive"),
        (lambda x, y: transport_cost(jax.random.key(0), x, y, blur=1.0, mix=TransportMix(-1.0, 1.0)), "negative"),
        (lambda x, y: transport_cost(jax.random.key(0), x, y, blur=1.0, mix=TransportMix(0.0, 0.0)), "above zero"),
        (lambda x, y: TransportConfig(power=3), "power must be 1 or 2"),
        (lambda x, y: TransportConfig(num_scales=0), "num_scales must be >= 1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_errors_name_what_is_wrong(clouds, call, message):
    with pytest.raises(ValueError, match=message):
        call(*clouds)
