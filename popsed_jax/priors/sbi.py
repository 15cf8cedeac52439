"""sbi: the prior as a PyTorch distribution, in single precision, with gradients."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import torch

from popsed_jax.priors.arrays import ArrayPrior
from popsed_jax.priors.density import Density


class _LogProb(torch.autograd.Function):
    """JAX's log density and its gradient to PyTorch."""

    @staticmethod
    def forward(ctx: Any, theta: torch.Tensor, arrays: ArrayPrior) -> torch.Tensor:
        ctx.arrays = arrays
        ctx.save_for_backward(theta)
        return _tensor(arrays.log_prob(theta.detach().cpu().numpy()), theta)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (theta,) = ctx.saved_tensors
        slope = _tensor(ctx.arrays.grad_log_prob(theta.detach().cpu().numpy()), theta)
        return grads[0][..., None] * slope, None


class PopulationDistribution(torch.distributions.Distribution):
    """A joint, conditional or marginal prior for sbi's `prior=`. Draws come from PyTorch's random state, as its others do."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (torch's)

    def __init__(self, prior: Density) -> None:
        self.arrays = ArrayPrior(prior)
        low, high = (torch.as_tensor(ends, dtype=torch.float32) for ends in (prior.low, prior.high))
        self._support = torch.distributions.constraints.independent(
            torch.distributions.constraints.interval(low, high), 1
        )
        super().__init__(event_shape=torch.Size((prior.dim,)), validate_args=False)

    @property
    def support(self) -> Any:
        """The bounds."""
        return self._support

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        """Draws, float32."""
        shape = tuple(sample_shape)
        key = jax.random.key(int(torch.randint(2**31 - 1, ())))
        draws = self.arrays.prior.sample(key, math.prod(shape))
        return torch.from_numpy(np.array(draws, np.float32)).reshape(*shape, self.arrays.dim)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log density, of the kind and on the device of `value`."""
        result = _LogProb.apply(value, self.arrays)
        assert isinstance(result, torch.Tensor)
        return result

    @property
    def mean(self) -> torch.Tensor:
        """Of 10,000 draws; there is no closed form."""
        return torch.from_numpy(self.arrays.sample(0, 10_000).mean(axis=0).astype(np.float32))

    @property
    def variance(self) -> torch.Tensor:
        """Of 10,000 draws; there is no closed form."""
        return torch.from_numpy(self.arrays.sample(0, 10_000).var(axis=0).astype(np.float32))


def _tensor(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(values, dtype=like.dtype, device=like.device)
