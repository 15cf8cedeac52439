"""SOAP: laws of its steps, and that it does what Adam cannot."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from popsed_jax._soap import matrices_by_soap, scale_by_soap

SHAPE = (6, 4)


def _steps(gradients: jax.Array) -> tuple[list[jax.Array], optax.OptState]:
    transform = scale_by_soap()
    state = transform.init(gradients[0])
    update = jax.jit(transform.update)
    found = []
    for gradient in gradients:
        step, state = update(gradient, state)
        found.append(step)
    return found, state


def _gradients(num: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (num, *SHAPE))


@pytest.mark.parametrize("scale", [2.0**-7, 2.0**13])  # powers of two: rounding is the same
def test_the_size_of_the_gradients_does_not_matter(scale) -> None:
    # Square matrices: along what no gradient has pointed to yet, steps are made of rounding errors.
    gradients = _gradients(12)[:, :4]
    for one, other in zip(_steps(gradients)[0], _steps(scale * gradients)[0], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_a_step_is_no_longer_than_the_root_of_the_number_of_weights() -> None:
    """As of Adam: each number is at most about one, in whatever basis."""
    for step in _steps(_gradients(40))[0]:
        assert float(jnp.linalg.norm(step)) < 1.5 * np.sqrt(np.prod(SHAPE))


def test_bases_stay_orthogonal_and_become_the_eigenvectors() -> None:
    """Gradients with covariances that are known: their axes are found."""
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(SHAPE[0], SHAPE[0])))[0]
    sizes = 3.0 ** -np.arange(SHAPE[0])
    gradients = jnp.asarray(axes * sizes @ rng.normal(size=(400, *SHAPE)), dtype=jnp.float32)
    _, state = _steps(gradients)
    basis = np.asarray(state.moments.left_basis)
    np.testing.assert_allclose(basis.T @ basis, np.eye(SHAPE[0]), atol=1e-5)
    assert np.all(np.abs(np.diag(axes.T @ basis)) > 0.9)


def test_weights_without_gradients_stay() -> None:
    for step in _steps(jnp.zeros((12, *SHAPE)))[0]:
        np.testing.assert_array_equal(step, 0.0)


def test_every_leaf_of_a_tree_is_treated_alone() -> None:
    gradients = _gradients(6)
    transform = scale_by_soap()
    state = transform.init({"a": gradients[0], "b": gradients[0].T})
    for gradient in gradients:
        step, state = transform.update({"a": gradient, "b": gradient.T}, state)
    np.testing.assert_allclose(step["a"], _steps(gradients)[0][-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(step["b"], step["a"].T, rtol=1e-3, atol=1e-3)


def test_it_solves_what_adam_does_not_in_as_many_steps() -> None:
    """Least squares whose flat directions are not the weights' axes: the condition number is 10^3 on either side."""
    rng = np.random.default_rng(2)
    left, right = (
        np.linalg.qr(rng.normal(size=(8, 8)))[0] * np.logspace(0, -1.5, 8) @ np.linalg.qr(rng.normal(size=(8, 8)))[0]
        for _ in range(2)
    )
    left, right, truth = (jnp.asarray(a, dtype=jnp.float32) for a in (left, right, rng.normal(size=(8, 8))))

    def loss(weights: jax.Array) -> jax.Array:
        return jnp.sum((left @ (weights - truth) @ right) ** 2)

    def reached(transform: optax.GradientTransformation, num: int = 600) -> float:
        optimiser = optax.chain(transform, optax.scale_by_learning_rate(optax.cosine_decay_schedule(3e-2, num)))
        start = jnp.zeros((8, 8))

        def step(carry, _):
            weights, state = carry
            updates, state = optimiser.update(jax.grad(loss)(weights), state)
            return (weights + updates, state), None

        (weights, _), _ = jax.lax.scan(step, (start, optimiser.init(start)), None, num)
        return float(loss(weights) / loss(start))

    soap, adam = reached(scale_by_soap()), reached(optax.scale_by_adam(0.95, 0.95))
    assert soap < 0.1 * adam
    assert soap < 1e-4


def test_leading_axes_count_matrices() -> None:
    """Steps of a stack of matrices are those of each alone."""
    gradients = jnp.stack([_gradients(7, seed) for seed in range(3)], axis=1)
    together = _steps(gradients)[0]
    for i in range(3):
        for one, many in zip(_steps(gradients[:, i])[0], together, strict=True):
            np.testing.assert_allclose(many[i], one, rtol=1e-4, atol=1e-5)


def test_huge_matrices_are_left_to_adam():
    """Their bases would cost the cube of their size."""
    weights = {"dense": {"kernel": jnp.zeros((2048, 4)), "bias": jnp.zeros(4)}, "small": {"kernel": jnp.zeros((8, 4))}}
    state = matrices_by_soap().init(weights)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 3 * (2048 * 4 + 4) + 500
