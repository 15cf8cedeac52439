"""SOAP: Adam in the eigenbasis of a matrix's gradients. (Vyas+24, arXiv:2409.11321, algorithm 3)

Fitting a smooth function to four digits is a badly conditioned problem: long after the large errors are gone Adam creeps along
the directions in which the loss is flat. Those are not the axes of the weights. Rotated into the eigenvectors of the gradients'
second moments they nearly are, and Adam's division by their size works as it is meant to.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

_FIRST = 5  # steps at each of which the bases are renewed: at the start they are the axes
_LARGEST = 1024  # rows or columns of a matrix whose bases are worth their cost, the cube of that every ten steps


class _Moments(NamedTuple):
    """What is remembered of one matrix: its gradient's mean, its square in the bases, and both sides' covariances and bases."""

    mean: Float[Array, "row column"]
    square: Float[Array, "row column"]
    left: Float[Array, "row row"]
    right: Float[Array, "column column"]
    left_basis: Float[Array, "row row"]
    right_basis: Float[Array, "column column"]


class SoapState(NamedTuple):
    """Steps done, and moments in the tree of the weights."""

    steps: Int[Array, ""]
    moments: Any


def matrices_by_soap() -> optax.GradientTransformation:
    """SOAP for the matrices of flax networks ("kernel") that are not huge, Adam with the same memory for all else."""

    def labels(weights: Any) -> Any:
        # The table of a parameter is a column of vectors, and not a map from vectors to vectors.
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: "matrix" if path[-1].key == "kernel" and max(leaf.shape) <= _LARGEST else "other",
            weights,
        )

    return optax.partition({"matrix": scale_by_soap(), "other": optax.scale_by_adam(b1=0.95, b2=0.95)}, labels)


def scale_by_soap(
    b1: float = 0.95, b2: float = 0.95, frequency: int = 10, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Rescale the gradients of matrices: the last two axes of every leaf; those before count matrices.

    Args:
        b1: memory of the gradients' mean.
        b2: memory of their squares and covariances.
        frequency: steps between two renewals of the bases, each by one step of orthogonal iteration.
        eps: added to the root of the squares.
    """

    def init(weights: optax.Params) -> SoapState:
        def start(leaf: Array) -> _Moments:
            *many, rows, columns = leaf.shape
            zero = jnp.zeros_like(leaf)
            left, right = (
                jnp.broadcast_to(jnp.eye(num, dtype=leaf.dtype), (*many, num, num)) for num in (rows, columns)
            )
            # No array twice: an epoch may reuse the memory of its state.
            return _Moments(zero, jnp.copy(zero), jnp.zeros_like(left), jnp.zeros_like(right), left, right)

        return SoapState(jnp.zeros((), jnp.int32), jax.tree.map(start, weights))

    def update(
        gradients: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, SoapState]:
        del params
        assert isinstance(state, SoapState)
        count = state.steps + 1
        renew = jnp.logical_or(count <= _FIRST, count % frequency == 0)

        def step(gradient: Array, moments: _Moments) -> tuple[Array, _Moments]:
            one = partial(_step, count=count, renew=renew, b1=b1, b2=b2, eps=eps)
            for _ in gradient.shape[:-2]:
                one = jax.vmap(one)
            return one(gradient, moments)

        pairs = jax.tree.map(step, gradients, state.moments)
        steps, moments = (jax.tree.map(lambda _, pair, i=i: pair[i], gradients, pairs) for i in range(2))
        return steps, SoapState(count, moments)

    return optax.GradientTransformation(init, update)


def _step(
    gradient: Array, old: _Moments, count: Array, renew: Array, b1: float, b2: float, eps: float
) -> tuple[Array, _Moments]:
    left = b2 * old.left + (1.0 - b2) * gradient @ gradient.T
    right = b2 * old.right + (1.0 - b2) * gradient.T @ gradient
    u, v = jax.lax.cond(
        renew,
        lambda: (_iterated(left, old.left_basis), _iterated(right, old.right_basis)),
        lambda: (old.left_basis, old.right_basis),
    )
    mean = b1 * old.mean + (1.0 - b1) * gradient
    square = b2 * old.square + (1.0 - b2) * (u.T @ gradient @ v) ** 2
    size = jnp.sqrt(square / (1.0 - b2**count)) + eps
    step = u @ (u.T @ mean @ v / (1.0 - b1**count) / size) @ v.T
    return step, _Moments(mean, square, left, right, u, v)


def _iterated(covariance: Array, basis: Array) -> Array:
    """One step of orthogonal iteration towards the eigenvectors; directions without gradients keep theirs."""
    least = 1e-6 * jnp.trace(covariance) / covariance.shape[0] + jnp.finfo(covariance.dtype).tiny
    return jnp.linalg.qr(covariance @ basis + least * basis)[0]
