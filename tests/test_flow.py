"""The neural spline flow: one table of instances, every law of a density applied to each."""

from functools import cache
from typing import NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from popsed_jax.flows.bijector import as_distrax
from popsed_jax.flows.spline import FlowConfig, SplineFlow, init_flow, whiten
from popsed_jax.population.train import fit_flow

SMALL = FlowConfig(num_layers=4, hidden=16, num_blocks=1, num_bins=6, tail_bound=4.0)
NUM = 64


class Instance(NamedTuple):
    """A flow of some size, on an affine map or not."""

    dim: int
    affine: bool


INSTANCES = [Instance(2, False), pytest.param(Instance(3, True), marks=pytest.mark.slow), Instance(5, True)]
# One compilation for each size and precision, shared by all tests.
FORWARD, INVERSE, LOG_PROB = (
    jax.jit(method) for method in (SplineFlow.forward, SplineFlow.inverse, SplineFlow.log_prob)
)
each_instance = pytest.mark.parametrize("instance", INSTANCES, ids=lambda i: f"{i.dim}d{'-affine' * i.affine}")


def affine_map(dim: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(dim)
    chol = np.tril(0.4 * rng.normal(size=(dim, dim)), -1) + np.diag(rng.uniform(0.5, 1.5, dim))
    return rng.normal(size=dim), chol


@cache
def start(dim: int) -> SplineFlow:
    """A flow at its initialisation; compiling that takes longer than any test."""
    return init_flow(jax.random.key(dim), dim, SMALL)


def build(instance: Instance, perturbation: float = 0.05) -> SplineFlow:
    """A flow far from the identity, in the precision of the context: it moves points by up to 4, log densities by up to 10.

    Twice as much is no longer invertible in single precision: slopes of 1e-3 to 1e3 in every layer.
    """
    with jax.enable_x64(False):
        flow = start(instance.dim)
    rng = np.random.default_rng(instance.dim)
    layers = jax.tree.map(
        lambda leaf: jnp.asarray(leaf + perturbation * rng.normal(size=leaf.shape), float), flow.layers
    )
    mean, chol = affine_map(instance.dim) if instance.affine else (np.zeros(instance.dim), np.eye(instance.dim))
    return flow.replace(layers=layers, mean=jnp.asarray(mean), chol=jnp.asarray(chol))


def base_points(dim: int) -> jax.Array:
    """Some beyond the splines' bound, where the flow is the identity."""
    return 2.0 * jax.random.normal(jax.random.key(5), (NUM, dim))


@each_instance
class TestLaws:
    def test_round_trip(self, instance):
        flow, x = build(instance), base_points(instance.dim)
        u, forward = FORWARD(flow, x)
        back, inverse = INVERSE(flow, u)
        # The splines' slopes multiply the rounding of 6e-8 by up to some thousands: 2e-4 and 5e-5 measured.
        np.testing.assert_allclose(back, x, atol=1e-3)
        np.testing.assert_allclose(forward + inverse, 0.0, atol=1e-3)
        assert float(jnp.abs(forward - jnp.mean(forward)).max()) > 2.0  # not the identity

    def test_log_det_is_that_of_the_jacobian(self, instance):
        with jax.enable_x64(True):
            flow, x = build(instance), base_points(instance.dim)
            jacobian = jax.jit(jax.vmap(jax.jacfwd(lambda one: flow.forward(one[None])[0][0])))(x)
            np.testing.assert_allclose(FORWARD(flow, x)[1], jnp.linalg.slogdet(jacobian)[1], atol=1e-9)

    def test_starts_as_the_normal_distribution(self, instance):
        flow = build(instance, perturbation=0.0)
        mean, chol = affine_map(instance.dim) if instance.affine else (np.zeros(instance.dim), np.eye(instance.dim))
        x = jax.random.normal(jax.random.key(6), (NUM, instance.dim))
        u = mean + np.asarray(x) @ chol.T
        expected = scipy.stats.multivariate_normal(mean, chol @ chol.T).logpdf(u)
        # The last layer starts at a scale of 1e-3, not at zero: 0.02 on average in five dimensions.
        assert float(jnp.mean(jnp.abs(LOG_PROB(flow, jnp.asarray(u)) - expected))) < 0.04

    def test_sample_and_log_prob_agree(self, instance):
        flow = build(instance)
        u, log_prob = jax.jit(SplineFlow.sample_and_log_prob, static_argnums=2)(flow, jax.random.key(1), NUM)
        np.testing.assert_allclose(log_prob, LOG_PROB(flow, u), atol=2e-3)  # float32, through the inverse: 1e-4 to 1e-3
        x = jax.random.normal(jax.random.key(1), u.shape)
        np.testing.assert_allclose(u, FORWARD(flow, x)[0], atol=1e-5)

    def test_an_ensemble_is_a_vmap(self, instance):
        flows = [build(instance, 0.02), build(instance, 0.05)]
        stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *flows)
        u = base_points(instance.dim)
        together = jax.jit(jax.vmap(SplineFlow.log_prob, in_axes=(0, None)))(stacked, u)
        for flow, row in zip(flows, together, strict=True):
            np.testing.assert_allclose(row, LOG_PROB(flow, u), rtol=1e-4, atol=1e-3)


@pytest.fixture(scope="module")
def grid() -> tuple[np.ndarray, np.ndarray, float]:
    """Grid points, density there, and cell area, of a 2-D flow."""
    flow = build(Instance(2, True))
    axis = np.linspace(-12.0, 12.0, 481)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    density = np.exp(np.asarray(LOG_PROB(flow, jnp.asarray(points)), float))
    return points, density, (axis[1] - axis[0]) ** 2


class TestDensity:
    def test_integrates_to_one(self, grid):
        _, density, area = grid
        assert density.sum() * area == pytest.approx(1.0, abs=3e-3)  # kinks of the density on a grid of 0.05

    def test_samples_follow_it(self, grid):
        points, density, area = grid
        num = 20_000
        u = np.asarray(build(Instance(2, True)).sample(jax.random.key(7), num))
        center = np.median(u, axis=0)
        for low, high in [((-np.inf, -np.inf), center), ((center[0], -np.inf), (np.inf, center[1]))]:
            expected = density[np.all((points > low) & (points < high), axis=1)].sum() * area
            found = np.mean(np.all((u > low) & (u < high), axis=1))
            # Four binomial standard errors, and half a row of grid cells.
            assert found == pytest.approx(expected, abs=4.0 * np.sqrt(0.25 / num) + 0.01)


def test_double_precision_is_used():
    with jax.enable_x64(True):
        flow, x = build(Instance(5, True)), base_points(5)
        u, forward = FORWARD(flow, x)
        back, inverse = INVERSE(flow, u)
        assert u.dtype == jnp.float64
        np.testing.assert_allclose(back, x, atol=2e-11)  # as above, from 1e-16: 4e-13 and 2e-12 measured
        np.testing.assert_allclose(forward + inverse, 0.0, atol=2e-11)


class TestWhiten:
    def test_recovers_mean_and_covariance(self):
        mean, chol = affine_map(3)
        x = jax.random.normal(jax.random.key(0), (50_000, 3))
        found_mean, found_chol = whiten(jnp.asarray(mean) + x @ jnp.asarray(chol).T)
        np.testing.assert_allclose(found_mean, mean, atol=0.03)
        np.testing.assert_allclose(found_chol, chol, atol=0.03)

    def test_a_tied_parameter_keeps_width(self):
        x = jax.random.normal(jax.random.key(0), (1000, 1))
        _, chol = whiten(jnp.concatenate([x, 2.0 * x], axis=1))
        assert float(chol[1, 1]) == pytest.approx(2.0 * np.sqrt(2e-3), rel=0.1)  # ridge of 1e-3 on both variances


class TestFit:
    @pytest.mark.slow
    def test_learns_a_mixture(self):
        """Two components of unequal weight; the flow must come near the entropy of the truth."""
        rng = np.random.default_rng(1)
        centers = np.array([[-2.0, 0.0], [1.5, 1.0]])
        chols = np.array([[[0.5, 0.0], [0.3, 0.4]], [[0.7, 0.0], [-0.5, 0.3]]])
        weights = np.array([0.7, 0.3])

        def draw(num: int) -> np.ndarray:
            which = rng.choice(2, num, p=weights)
            return centers[which] + np.einsum("nij,nj->ni", chols[which], rng.normal(size=(num, 2)))

        def truth(u: np.ndarray) -> np.ndarray:
            parts = [
                np.log(w) + scipy.stats.multivariate_normal(c, L @ L.T).logpdf(u)
                for w, c, L in zip(weights, centers, chols, strict=True)
            ]
            return np.logaddexp(*parts)

        config = FlowConfig(num_layers=4, hidden=32, num_blocks=1, num_bins=8)
        flow, losses = fit_flow(jax.random.key(0), jnp.asarray(draw(8000), jnp.float32), config, 250, 256)
        held_out = draw(8000)
        missed = truth(held_out).mean() - float(LOG_PROB(flow, jnp.asarray(held_out, jnp.float32)).mean())
        gaussian = np.cov(held_out.T)
        normal = scipy.stats.multivariate_normal(held_out.mean(axis=0), gaussian)
        missed_by_gaussian = truth(held_out).mean() - normal.logpdf(held_out).mean()
        assert losses.shape == (250,)
        assert bool(jnp.all(jnp.isfinite(losses)))
        assert missed_by_gaussian > 0.3  # there is something to learn
        # 0.0 +- 0.01 would be the truth itself (the error of the mean difference); a small flow misses some hundredths.
        assert -0.02 < missed < 0.08


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num_layers": 3}, "num_layers = 3 must be even and at least 2"),
            ({"num_layers": 0}, "num_layers = 0 must be even"),
            ({"hidden": 0}, "hidden = 0 must be at least 1"),
            ({"num_blocks": 0}, "num_blocks = 0 must be at least 1"),
            ({"num_bins": 1}, "num_bins = 1 must be at least 2"),
            ({"tail_bound": 0.0}, "tail_bound = 0.0 must be positive"),
        ],
    )
    def test_config(self, settings, message):
        with pytest.raises(ValueError, match=f"flow: {message}"):
            FlowConfig(**settings)

    def test_one_dimension(self):
        with pytest.raises(ValueError, match="a coupling flow needs at least two dimensions, got 1"):
            init_flow(jax.random.key(0), 1)


def test_a_flow_is_a_distrax_distribution():
    flow = build(Instance(2, False))
    as_one = as_distrax(flow)
    u = as_one.sample(seed=jax.random.key(0), sample_shape=(3, NUM))
    assert u.shape == (3, NUM, 2)
    np.testing.assert_allclose(
        as_one.log_prob(u), LOG_PROB(flow, u.reshape(-1, 2)).reshape(3, NUM), rtol=1e-4, atol=1e-4
    )
    doubled = distrax.Transformed(as_one, distrax.Block(distrax.ScalarAffine(0.0, 2.0), 1))
    np.testing.assert_allclose(doubled.log_prob(2.0 * u[0, 0]), as_one.log_prob(u[0, 0]) - 2.0 * np.log(2.0), rtol=1e-4)
