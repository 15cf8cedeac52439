"""Heads: every law holds for every kind."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vae import HEAD

from popsed_jax.posteriors.heads import HeadConfig, build_head

KINDS = (pytest.param("flow", marks=pytest.mark.slow), "mixture", "binned")  # flows: see test_conditional
FIRST = 1


@pytest.fixture(scope="module", params=KINDS)
def head(request):
    """A head whose weights are far from where they start."""
    u = jax.random.normal(jax.random.key(0), (512, 3)) * jnp.array([1.0, 0.5, 2.0]) + jnp.array([0.0, -1.0, 3.0])
    config = dataclasses.replace(HEAD, kind=request.param)
    head = build_head(jax.random.key(1), config, 2, FIRST, u)
    moved = jax.tree.map(
        lambda leaf: leaf + 0.07 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), head.weights
    )
    return head.with_weights(moved)


CONTEXT = jnp.array([[0.3, -1.0], [1.5, 0.4]])


@jax.jit
def log_prob(head, u, context):
    return head.log_prob(u, context)


@jax.jit
def log_prob_redshift(head, u, context):
    return head.log_prob_redshift(u, context)


@partial(jax.jit, static_argnames="num")
def sample(head, key, context, num):
    return head.sample(key, context, num)


def test_the_redshifts_density_integrates_to_one(head):
    u = jnp.broadcast_to(jnp.linspace(-15.0, 13.0, 20_001), (2, 20_001))
    density = jnp.exp(log_prob_redshift(head, u, CONTEXT))
    assert np.allclose(np.trapezoid(density, u, axis=1), 1.0, atol=3e-3)


def test_the_redshifts_density_is_the_joint_densitys_marginal(head):
    """Integrated over the two others on a grid."""
    grid = np.stack(np.meshgrid(np.linspace(-9.0, 9.0, 181), np.linspace(-15.0, 21.0, 181), indexing="ij"), axis=-1)
    for point in (-1.4, -1.0, -0.6):
        u = np.insert(grid.reshape(-1, 2), FIRST, point, axis=1).astype(np.float32)
        joint = np.exp(np.asarray(log_prob(head, jnp.asarray(np.stack([u, u])), CONTEXT)))
        total = joint.sum(axis=1) * 0.1 * 0.2
        marginal = np.exp(np.asarray(log_prob_redshift(head, jnp.full((2, 1), point, jnp.float32), CONTEXT)))[:, 0]
        assert np.allclose(total, marginal, rtol=0.02)


def test_samples_follow_the_redshifts_density(head):
    samples = np.sort(np.asarray(sample(head, jax.random.key(3), CONTEXT, 20_000))[:, :, FIRST], axis=1)
    u = np.broadcast_to(np.linspace(-15.0, 13.0, 20_001, dtype=np.float32), (2, 20_001))
    density = np.exp(np.asarray(log_prob_redshift(head, jnp.asarray(u), CONTEXT)))
    for i in range(2):
        cdf = np.interp(samples[i], u[i], np.cumsum(density[i]) * (u[i, 1] - u[i, 0]))
        assert np.abs(cdf - (np.arange(20_000) + 0.5) / 20_000).max() < 0.02


def test_samples_follow_the_joint_density(head):
    """The mean of q / p over samples of p is one for any density q: of a normal well inside."""
    samples = sample(head, jax.random.key(4), CONTEXT, 20_000)
    mean, std = jnp.median(samples, axis=1, keepdims=True), 0.5 * samples.std(axis=1, keepdims=True)
    log_q = jax.scipy.stats.norm.logpdf(samples, mean, std).sum(axis=2)
    here, swapped = log_prob(head, samples, CONTEXT), log_prob(head, samples, CONTEXT[::-1])
    assert np.allclose(jnp.exp(log_q - here).mean(axis=1), 1.0, atol=0.1)
    assert np.all(here.mean(axis=1) > swapped.mean(axis=1))


def test_contexts_matter_and_galaxies_do_not_mix(head):
    u = jnp.zeros((2, 4, 3)) - 0.5
    whole, alone = log_prob(head, u, CONTEXT), log_prob(head, u[1:], CONTEXT[1:])
    assert np.allclose(whole[1], alone[0], rtol=1e-4, atol=1e-4)
    assert not np.allclose(whole[0], whole[1], atol=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "forest"}, "head: kind = 'forest' must be one of flow, mixture, binned"),
        ({"hidden": 0}, "head: hidden = 0 must be at least 1"),
        ({"num_bins": 1}, "head: num_bins = 1 must be at least 2"),
        ({"num_components": 0}, "head: num_components = 0"),
    ],
)
def test_impossible_heads(change, said):
    with pytest.raises(ValueError, match=said):
        HeadConfig(**change)


def test_bins_need_redshifts_that_differ():
    with pytest.raises(ValueError, match="bins of redshift need mocks that differ"):
        build_head(jax.random.key(0), HeadConfig(kind="binned"), 2, 0, jnp.zeros((100, 3)))
