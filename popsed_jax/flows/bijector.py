"""A flow in distrax's terms, for code that composes distributions and bijectors.

Apart from `spline.py`, because importing distrax takes longer, and more memory, than evaluating a learned population.
"""

from __future__ import annotations

import distrax
import jax.numpy as jnp
from jaxtyping import Array, Float

from popsed_jax.flows.spline import SplineFlow


class FlowBijector(distrax.Bijector):
    """The map of a flow from its normal base to u.

    Args:
        flow: one, not an ensemble.
    """

    def __init__(self, flow: SplineFlow) -> None:
        super().__init__(event_ndims_in=1)
        self.flow = flow

    def forward_and_log_det(self, x: Float[Array, "*batch dim"]) -> tuple[Array, Array]:
        """u, and log |du/dx|."""
        u, log_det = self.flow.forward(x.reshape(-1, self.flow.dim))
        return u.reshape(x.shape), log_det.reshape(x.shape[:-1])

    def inverse_and_log_det(self, y: Float[Array, "*batch dim"]) -> tuple[Array, Array]:
        """The base's x for u, and log |dx/du|."""
        x, log_det = self.flow.inverse(y.reshape(-1, self.flow.dim))
        return x.reshape(y.shape), log_det.reshape(y.shape[:-1])


def as_distrax(flow: SplineFlow) -> distrax.Transformed:
    """The flow as a distrax distribution over u: `log_prob`, `sample`, and all that distrax composes."""
    base = distrax.MultivariateNormalDiag(jnp.zeros(flow.dim), jnp.ones(flow.dim))
    return distrax.Transformed(base, FlowBijector(flow))
