"""The conditional flow: both directions, densities that integrate to one, and a posterior known in closed form."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

from popsed_jax.flows.conditional import ConditionalConfig, ConditionalFlow, init_conditional
from tests.tiny_posterior import NETWORK

DIM, FEATURES, FIRST = 4, 3, 2


@pytest.fixture(scope="module")
def flow() -> ConditionalFlow:
    """A flow whose weights were shaken, so that nothing is the identity."""
    mean, scale = jnp.array([0.5, -1.0, 0.0, 2.0]), jnp.array([1.0, 0.5, 2.0, 1.5])
    blank = init_conditional(jax.random.key(0), FEATURES, FIRST, NETWORK, mean, scale)
    leaves, structure = jax.tree.flatten(blank.weights)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    shaken = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return blank.replace(weights=jax.tree.unflatten(structure, shaken))


@pytest.fixture(scope="module")
def features() -> jax.Array:
    return jax.random.normal(jax.random.key(2), (5, FEATURES))


def test_draws_carry_their_density(flow, features):
    u, log_prob = jax.jit(partial(flow.sample_and_log_prob, num=64))(jax.random.key(3), features)
    assert u.shape == (5, 64, DIM)
    np.testing.assert_allclose(jax.jit(flow.log_prob)(u, features), log_prob, atol=2e-3)


def test_the_log_determinant_is_the_jacobians(flow, features):
    with jax.enable_x64(True):
        precise = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), flow)
        embedded = precise.embed(jnp.asarray(features, jnp.float64)[:1])
        x = jax.random.normal(jax.random.key(4), (DIM,), jnp.float64)

        def forward(x):
            return precise.forward(x[None, None], embedded)[0][0, 0]

        _, log_det = precise.forward(x[None, None], embedded)
        wanted = jnp.linalg.slogdet(jax.jacfwd(forward)(x))[1]
        assert float(log_det[0, 0]) == pytest.approx(float(wanted), abs=1e-8)


def test_the_first_dimension_has_the_marginal_of_the_draws(flow, features):
    u, _ = jax.jit(partial(flow.sample_and_log_prob, num=4000))(jax.random.key(5), features)
    grid = jnp.linspace(-12.0, 12.0, 4001)
    density = np.exp(flow.log_prob_first(jnp.broadcast_to(grid, (5, 4001)), features))
    np.testing.assert_allclose(np.trapezoid(density, grid, axis=1), 1.0, atol=2e-3)
    for galaxy in range(5):
        below = np.concatenate([[0.0], np.cumsum(0.5 * (density[galaxy, 1:] + density[galaxy, :-1]) * np.diff(grid))])
        at = np.interp(np.sort(np.asarray(u[galaxy, :, FIRST])), grid, below)
        assert np.max(np.abs(at - (np.arange(4000) + 0.5) / 4000)) < 0.04


def test_with_the_first_given_the_rest_has_the_conditional_density(flow, features):
    x = jax.random.normal(jax.random.key(6), (5, 7, DIM - 1))
    given = jnp.linspace(-1.0, 1.5, 5)
    u, log_det = flow.forward_given_first(x, given, flow.embed(features))
    np.testing.assert_allclose(u[..., FIRST], np.broadcast_to(given[:, None], (5, 7)), atol=1e-5)
    conditional = flow.log_prob(u, features) - flow.log_prob_first(u[..., FIRST], features)
    np.testing.assert_allclose(norm.logpdf(x).sum(axis=-1) - log_det, conditional, atol=2e-3)


def test_the_density_integrates_to_one(flow, features):
    """By importance sampling from a wide normal distribution."""
    scale = 6.0
    u = scale * jax.random.normal(jax.random.key(7), (1, 200_000, DIM))
    log_from = norm.logpdf(u, 0.0, scale).sum(axis=-1)
    ratio = np.exp(jax.jit(flow.log_prob)(u, features[:1]) - log_from)
    assert ratio.mean() == pytest.approx(1.0, abs=5.0 * ratio.std() / np.sqrt(ratio.size))


def test_it_learns_a_posterior_known_in_closed_form():
    """u ~ N(0, 1), features = u A + noise: the posterior is normal, and its moments follow from linear algebra."""
    a, sigma = jnp.array([[1.0, 0.5], [0.0, 1.0], [0.7, -0.4]]), 0.5
    precision = jnp.eye(3) + a @ a.T / sigma**2
    covariance = jnp.linalg.inv(precision)
    flow = init_conditional(jax.random.key(8), 2, 0, NETWORK, jnp.zeros(3), jnp.ones(3))
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, 600))

    def step(carry, key):
        weights, state = carry
        keys = jax.random.split(key)
        u = jax.random.normal(keys[0], (256, 3))
        seen = u @ a + sigma * jax.random.normal(keys[1], (256, 2))
        grads = jax.grad(lambda w: -jnp.mean(flow.replace(weights=w).log_prob(u[:, None], seen)))(weights)
        updates, state = optimiser.update(grads, state)
        return (optax.apply_updates(weights, updates), state), None

    carry = (flow.weights, optimiser.init(flow.weights))
    weights = jax.jit(lambda carry: jax.lax.scan(step, carry, jax.random.split(jax.random.key(9), 600))[0])(carry)[0]
    seen = jnp.array([[0.5, -1.0], [1.5, 0.3]])
    u = np.asarray(flow.replace(weights=weights).sample_and_log_prob(jax.random.key(10), seen, 4000)[0])
    wanted = np.asarray(seen @ a.T / sigma**2 @ covariance)
    width = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(u.mean(axis=1), wanted, atol=0.2 * width.max())
    for each in u:
        np.testing.assert_allclose(np.cov(each, rowvar=False), covariance, atol=0.12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_layers": 3}, "num_layers = 3 must be even"),
        ({"hidden": 0}, "hidden = 0 must be at least 1"),
        ({"first_bins": 1}, "first_bins = 1 must be at least 2"),
        ({"tail_bound": 0.0}, "tail_bound = 0.0 must be positive"),
    ],
)
def test_impossible_sizes_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        ConditionalConfig(**change)


def test_two_dimensions_are_too_few():
    with pytest.raises(ValueError, match="at least three dimensions, got 2"):
        init_conditional(jax.random.key(0), 2, 0, NETWORK, jnp.zeros(2), jnp.ones(2))
