"""Neural spline flow: a density with exact log_prob and one-pass sampling. (Durkan+19, arXiv:1906.04032)

The splines are those of distrax as array code (`rational_quadratic.py`), the conditioners flax's. Half-split coupling,
so that no spline is computed for a dimension that only conditions, and layers stacked for one `lax.scan`.

    x ~ N(0, 1)  ->  coupling layers  ->  affine  ->  u

The affine map (mean and Cholesky factor of what the flow is to describe first) is fixed, so that the splines start
where the samples are.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from popsed_jax._random import normal
from popsed_jax.flows.rational_quadratic import SAVED, RationalQuadratic, num_parameters


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """Size of the flow.

    Args:
        num_layers: coupling layers, even: each pair transforms every dimension once.
        hidden: width of the conditioners.
        num_blocks: hidden layers of the conditioners.
        num_bins: spline bins.
        tail_bound: splines act on [-tail_bound, tail_bound] (in units of the affine map); beyond, the identity.
    """

    num_layers: int = 6
    hidden: int = 64
    num_blocks: int = 2
    num_bins: int = 8
    tail_bound: float = 5.0

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.num_layers < 2 or self.num_layers % 2:
            raise ValueError(f"flow: num_layers = {self.num_layers} must be even and at least 2")
        for name in ("hidden", "num_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"flow: {name} = {getattr(self, name)} must be at least 1")
        if self.num_bins < 2:
            raise ValueError(f"flow: num_bins = {self.num_bins} must be at least 2")
        if self.tail_bound <= 0:
            raise ValueError(f"flow: tail_bound = {self.tail_bound} must be positive")


class Conditioner(nn.Module):
    """Residual network from the conditioning half to spline parameters; starts near zero, the identity."""

    config: FlowConfig
    num_outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch half"]) -> Float[Array, "*batch output"]:
        """Spline parameters, one row a sample."""
        x = nn.Dense(self.config.hidden)(x)
        for _ in range(self.config.num_blocks):
            x = x + nn.Dense(self.config.hidden)(nn.gelu(x))
        # A default initialisation here costs ten float32 layers their invertibility (round trip off by several units).
        return nn.Dense(self.num_outputs, kernel_init=nn.initializers.normal(1e-3))(nn.gelu(x))


@flax.struct.dataclass
class SplineFlow:
    """A density over u. Immutable pytree; `jax.vmap` over a stacked one is an ensemble.

    Attributes:
        layers: conditioner weights, stacked along a leading layer axis. The trained part.
        mean, chol: the fixed affine map u = mean + chol @ y.
    """

    layers: Any
    mean: Float[Array, "*member dim"]
    chol: Float[Array, "*member dim dim"]
    config: FlowConfig = flax.struct.field(pytree_node=False)

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return self.mean.shape[-1]

    @jax.jit
    def forward(self, x: Float[Array, "num dim"]) -> tuple[Float[Array, "num dim"], Float[Array, " num"]]:
        """From the base to u, with log |du/dx|."""
        y, log_det = _scan_layers(self, x, inverse=False)
        return self.mean + y @ self.chol.T, log_det + self._log_det_affine()

    @jax.jit
    def inverse(self, u: Float[Array, "num dim"]) -> tuple[Float[Array, "num dim"], Float[Array, " num"]]:
        """From u to the base, with log |dx/du|."""
        # The inverse of a small matrix, then a product: a solve with as many columns as draws is slow on a CPU.
        unmix = solve_triangular(self.chol, jnp.eye(self.dim, dtype=self.chol.dtype), lower=True)
        y = jnp.matmul(u - self.mean, unmix.T, precision=jax.lax.Precision.HIGHEST)
        x, log_det = _scan_layers(self, y, inverse=True)
        return x, log_det - self._log_det_affine()

    @jax.jit
    def log_prob(self, u: Float[Array, "num dim"]) -> Float[Array, " num"]:
        """Exact log density of u."""
        x, log_det = self.inverse(u)
        return jnp.sum(norm.logpdf(x), axis=-1) + log_det

    @partial(jax.jit, static_argnames="num")
    def sample(self, key: Array, num: int) -> Float[Array, "num dim"]:
        """Draws of u."""
        return self.sample_and_log_prob(key, num)[0]

    @partial(jax.jit, static_argnames="num")
    def sample_and_log_prob(self, key: Array, num: int) -> tuple[Float[Array, "num dim"], Float[Array, " num"]]:
        """Draws of u and their log density, in one pass."""
        x = normal(key, (num, self.dim))
        u, log_det = self.forward(x)
        return u, jnp.sum(norm.logpdf(x), axis=-1) - log_det

    def _log_det_affine(self) -> Float[Array, ""]:
        return jnp.sum(jnp.log(jnp.diagonal(self.chol)))


def init_flow(
    key: Array,
    dim: int,
    config: FlowConfig | None = None,
    mean: Float[Array, " dim"] | None = None,
    chol: Float[Array, "dim dim"] | None = None,
) -> SplineFlow:
    """A flow that starts as the normal distribution with this mean and Cholesky factor (standard by default).

    Raises:
        ValueError: fewer than two dimensions.
    """
    if dim < 2:
        raise ValueError(f"a coupling flow needs at least two dimensions, got {dim}")
    config = config or FlowConfig()
    conditioner = _conditioner(dim, config)
    return SplineFlow(
        layers=_init_layers(jax.random.split(key, config.num_layers), conditioner, num_kept(dim)),
        mean=jnp.zeros(dim) if mean is None else jnp.asarray(mean),
        chol=jnp.eye(dim) if chol is None else jnp.asarray(chol),
        config=config,
    )


@partial(jax.jit, static_argnames=("conditioner", "num_kept"))
def _init_layers(keys: Array, conditioner: Conditioner, num_kept: int) -> Any:
    """Weights of all layers."""
    return jax.vmap(lambda key: conditioner.init(key, jnp.zeros((1, num_kept))))(keys)


def whiten(u: Float[Array, "num dim"], ridge: float = 1e-3) -> tuple[Float[Array, " dim"], Float[Array, "dim dim"]]:
    """Mean and Cholesky factor of a cloud, for `init_flow`.

    Args:
        u: samples.
        ridge: added to each variance, relative to it, so that a parameter tied to others still has width.
    """
    mean = jnp.mean(u, axis=0)
    cov = jnp.cov(u, rowvar=False)
    return mean, jnp.linalg.cholesky(cov + ridge * jnp.diag(jnp.diagonal(cov)))


def num_kept(dim: int) -> int:
    """Dimensions that a layer only conditions on; it moves the larger half, so that a pair of layers covers all."""
    return dim // 2


def _conditioner(dim: int, config: FlowConfig) -> Conditioner:
    return Conditioner(config, (dim - num_kept(dim)) * num_parameters(config.num_bins))


def layer_orders(dim: int, num_layers: int) -> np.ndarray:
    """Which dimensions each layer conditions on (first) and moves (last): random pairs of complementary halves."""
    rng = np.random.default_rng(dim)  # part of the architecture: the same for every flow of that size
    rows = []
    for _ in range(num_layers // 2):
        order = rng.permutation(dim)
        rows += [order, order[::-1]]
    return np.stack(rows)


def _scan_layers(flow: SplineFlow, x: Array, *, inverse: bool) -> tuple[Array, Array]:
    """Run all coupling layers; the order of dimensions is restored after each."""
    conditioner = _conditioner(flow.dim, flow.config)
    policies = jax.checkpoint_policies
    saved = policies.save_from_both_policies(policies.dots_saveable, policies.save_only_these_names(SAVED))
    kept = num_kept(flow.dim)
    bound, num_bins = flow.config.tail_bound, flow.config.num_bins

    # A scan writes all that its gradient needs into stacks, which takes longer than computing it. Kept are products of
    # matrices and the splines' bins; the rest is computed again.
    @partial(jax.checkpoint, prevent_cse=False, policy=saved)
    def step(carry: tuple[Array, Array], layer: tuple[Any, Array, Array]) -> tuple[tuple[Array, Array], None]:
        x, log_det = carry
        weights, order, restore = layer
        x = x[:, order]
        # Splines work on (parameter, dim, num): long contiguous rows of the same parameter.
        raw = cast(Array, conditioner.apply(weights, x[:, :kept])).T.reshape(num_parameters(num_bins), -1, len(x))
        spline = RationalQuadratic(raw, bound)
        moved, change = (spline.inverse_and_log_det if inverse else spline.forward_and_log_det)(x[:, kept:].T)
        x = jnp.concatenate([x[:, :kept], moved.T], axis=1)[:, restore]
        return (x, log_det + change.sum(axis=0)), None

    order = layer_orders(flow.dim, flow.config.num_layers)
    layers = (flow.layers, jnp.asarray(order), jnp.asarray(np.argsort(order, axis=1)))
    (x, log_det), _ = jax.lax.scan(step, (x, jnp.zeros(x.shape[0])), layers, reverse=inverse)
    return x, log_det
