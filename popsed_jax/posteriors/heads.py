"""Heads: densities of a galaxy's parameters, given its latent. A spline flow, a Gaussian mixture, and binned redshifts.

All are of one kind (`Head`): log density, samples, and the density of the redshift alone, exact.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Protocol, Self, cast, get_args

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp, ndtri
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Int

from popsed_jax._random import normal
from popsed_jax.flows.conditional import ConditionalConfig, ConditionalFlow, init_conditional
from popsed_jax.flows.networks import residual

HeadName = Literal["flow", "mixture", "binned"]
_LOG_SCALE = 5.0  # widths between e^-5 and e^5 of the mocks' spread


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Which head, and its size.

    Args:
        kind: "flow": conditional neural spline flow; "mixture": Gaussians with diagonal covariances; "binned": bins of redshift,
            and a Gaussian of the other parameters given it, on one trunk (multi-task).
        hidden, num_blocks: width and residual blocks of the trunk of "mixture" and "binned".
        num_components: Gaussians of "mixture".
        num_bins: bins of "binned", with as many mocks in each.
        flow: sizes of "flow".
    """

    kind: HeadName = "flow"
    hidden: int = 96
    num_blocks: int = 2
    num_components: int = 12
    num_bins: int = 64
    flow: ConditionalConfig = dataclasses.field(
        default_factory=lambda: ConditionalConfig(
            embedding=48, embedding_hidden=64, embedding_blocks=2, num_layers=4, hidden=48, num_blocks=2
        )
    )

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.kind not in get_args(HeadName):
            raise ValueError(f"head: kind = {self.kind!r} must be one of {', '.join(get_args(HeadName))}")
        for name, least in (("hidden", 1), ("num_blocks", 1), ("num_components", 1), ("num_bins", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"head: {name} = {getattr(self, name)} must be at least {least}")


class Head(Protocol):
    """Density of u given a context (a latent, or its moments). An immutable pytree.

    Attributes:
        weights: of the networks: the trained part.
    """

    weights: Any

    def with_weights(self, weights: Any) -> Self:
        """The same head with other weights."""
        ...

    def log_prob(
        self, u: Float[Array, "galaxy sample dim"], context: Float[Array, "galaxy context"]
    ) -> Float[Array, "galaxy sample"]:
        """Log density of each galaxy's samples."""
        ...

    def sample(
        self, key: Array, context: Float[Array, "galaxy context"], num: int
    ) -> Float[Array, "galaxy sample dim"]:
        """Draws for each galaxy."""
        ...

    def log_prob_redshift(
        self, u: Float[Array, "galaxy point"], context: Float[Array, "galaxy context"]
    ) -> Float[Array, "galaxy point"]:
        """Log of the marginal density of the redshift's u, exact."""
        ...


@flax.struct.dataclass
class FlowHead:
    """Conditional neural spline flow (`popsed_jax.flows.conditional`), whose first dimension is the redshift."""

    weights: Any
    flow: ConditionalFlow  # without weights

    def with_weights(self, weights: Any) -> FlowHead:  # noqa: D102 (see `Head`)
        return dataclasses.replace(self, weights=weights)

    @property
    def _whole(self) -> ConditionalFlow:
        return dataclasses.replace(self.flow, weights=self.weights)

    def log_prob(self, u: Array, context: Array) -> Array:  # noqa: D102
        return self._whole.log_prob(u, context)

    def sample(self, key: Array, context: Array, num: int) -> Array:  # noqa: D102
        return self._whole.sample_and_log_prob(key, context, num)[0]

    def log_prob_redshift(self, u: Array, context: Array) -> Array:  # noqa: D102
        return self._whole.log_prob_first(u, context)


class _Trunk(nn.Module):
    """Residual network; starts near zero."""

    hidden: int
    num_blocks: int
    num_outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch input"]) -> Float[Array, "*batch output"]:
        x = residual(x, self.hidden, self.num_blocks)
        return nn.Dense(self.num_outputs, kernel_init=nn.initializers.normal(1e-2))(nn.gelu(x))


@flax.struct.dataclass
class MixtureHead:
    """Mixture of Gaussians with diagonal covariances. (Bishop 1994, mixture density networks)

    Attributes:
        start: means of the components before training, spread over the mocks.
        mean, scale: of u over the mocks.
    """

    weights: Any
    start: Float[Array, "component dim"]
    mean: Float[Array, " dim"]
    scale: Float[Array, " dim"]
    first: int = flax.struct.field(pytree_node=False)
    config: HeadConfig = flax.struct.field(pytree_node=False)

    def with_weights(self, weights: Any) -> MixtureHead:  # noqa: D102
        return dataclasses.replace(self, weights=weights)

    def _components(self, context: Array) -> tuple[Array, Array, Array]:
        """Log weights, means and log widths."""
        num, dim = self.start.shape
        raw = cast(Array, _trunk(self.config, num * (1 + 2 * dim)).apply(self.weights, context))
        logits, mean, log_width = jnp.split(raw, [num, num * (1 + dim)], axis=-1)
        mean = self.start + mean.reshape(*mean.shape[:-1], num, dim)
        return jax.nn.log_softmax(logits), mean, _bounded(log_width.reshape(mean.shape))

    def log_prob(self, u: Array, context: Array) -> Array:  # noqa: D102
        log_weight, mean, log_width = self._components(context)
        scaled = ((u - self.mean) / self.scale)[:, :, None]
        each = norm.logpdf(scaled, mean[:, None], jnp.exp(log_width)[:, None]).sum(axis=-1)
        return logsumexp(each + log_weight[:, None], axis=-1) - jnp.log(self.scale).sum()

    def sample(self, key: Array, context: Array, num: int) -> Array:  # noqa: D102
        log_weight, mean, log_width = self._components(context)
        keys = jax.random.split(key)
        pick = jax.random.categorical(keys[0], log_weight[:, None], shape=(len(context), num))
        mean, log_width = (jnp.take_along_axis(part, pick[..., None], axis=1) for part in (mean, log_width))
        return self.mean + self.scale * (mean + jnp.exp(log_width) * normal(keys[1], mean.shape))

    def log_prob_redshift(self, u: Array, context: Array) -> Array:  # noqa: D102
        log_weight, mean, log_width = self._components(context)
        at, scale = self.first, self.scale[self.first]
        each = norm.logpdf(
            ((u - self.mean[at]) / scale)[..., None], mean[:, None, :, at], jnp.exp(log_width[:, None, :, at])
        )
        return logsumexp(each + log_weight[:, None], axis=-1) - jnp.log(scale)


@flax.struct.dataclass
class BinnedHead:
    """Bins of redshift on a trunk that also gives a Gaussian of the other parameters, given the redshift (multi-task).

    Within a bin the density of u is uniform; in the two outermost it falls off as a normal tail.

    Attributes:
        edges: inner edges of the bins, in u of the redshift over the mocks' spread.
        mean, scale: of u over the mocks.
    """

    weights: Any
    edges: Float[Array, " edge"]
    mean: Float[Array, " dim"]
    scale: Float[Array, " dim"]
    first: int = flax.struct.field(pytree_node=False)
    config: HeadConfig = flax.struct.field(pytree_node=False)

    def with_weights(self, weights: Any) -> BinnedHead:  # noqa: D102
        return dataclasses.replace(self, weights=weights)

    def _log_mass(self, context: Array) -> tuple[Array, Array]:
        """Log probability of each bin, and what the trunk says else."""
        raw = cast(
            Array, _trunk(self.config, self.config.num_bins + self.config.hidden).apply(self.weights["trunk"], context)
        )
        logits, shared = jnp.split(raw, [self.config.num_bins], axis=-1)
        return jax.nn.log_softmax(logits), shared

    def _log_density(self, x: Array) -> tuple[Int[Array, "galaxy point"], Array]:
        """Bin of standardised u, and the log density within it."""
        last = len(self.edges) - 1
        bin_ = jnp.searchsorted(self.edges, x)
        width = jnp.diff(self.edges)
        inner = -jnp.log(width[jnp.clip(bin_ - 1, 0, last - 1)])
        low = norm.logpdf(x - self.edges[0]) + jnp.log(2.0)
        high = norm.logpdf(x - self.edges[last]) + jnp.log(2.0)
        return bin_, jnp.where(bin_ == 0, low, jnp.where(bin_ > last, high, inner))

    def _others(self, x: Array, shared: Array) -> tuple[Array, Array]:
        """Means and log widths of the other parameters."""
        told = jnp.concatenate([x[..., None], jnp.broadcast_to(shared[:, None], (*x.shape, shared.shape[-1]))], axis=-1)
        raw = cast(Array, _trunk(self.config, 2 * (len(self.mean) - 1)).apply(self.weights["others"], told))
        mean, log_width = jnp.split(raw, 2, axis=-1)
        return mean, _bounded(log_width)

    def log_prob_redshift(self, u: Array, context: Array) -> Array:  # noqa: D102
        log_mass, _ = self._log_mass(context)
        bin_, log_density = self._log_density((u - self.mean[self.first]) / self.scale[self.first])
        return jnp.take_along_axis(log_mass, bin_, axis=1) + log_density - jnp.log(self.scale[self.first])

    def log_prob(self, u: Array, context: Array) -> Array:  # noqa: D102
        log_mass, shared = self._log_mass(context)
        scaled = (u - self.mean) / self.scale
        x, rest = scaled[..., self.first], jnp.delete(scaled, self.first, axis=-1)
        bin_, log_density = self._log_density(x)
        mean, log_width = self._others(x, shared)
        others = norm.logpdf(rest, mean, jnp.exp(log_width)).sum(axis=-1)
        return jnp.take_along_axis(log_mass, bin_, axis=1) + log_density + others - jnp.log(self.scale).sum()

    def sample(self, key: Array, context: Array, num: int) -> Array:  # noqa: D102
        log_mass, shared = self._log_mass(context)
        keys = jax.random.split(key, 3)
        shape, last = (len(context), num), len(self.edges) - 1
        bin_ = jax.random.categorical(keys[0], log_mass[:, None], shape=shape)
        place = jax.random.uniform(keys[1], shape, minval=1e-6, maxval=1.0)
        inner = jnp.clip(bin_ - 1, 0, last - 1)
        within = self.edges[inner] + place * jnp.diff(self.edges)[inner]
        low, high = self.edges[0] + ndtri(0.5 * place), self.edges[last] - ndtri(0.5 * place)
        x = jnp.where(bin_ == 0, low, jnp.where(bin_ > last, high, within))
        mean, log_width = self._others(x, shared)
        rest = mean + jnp.exp(log_width) * normal(keys[2], mean.shape)
        return self.mean + self.scale * jnp.insert(rest, self.first, x, axis=-1)


def _trunk(config: HeadConfig, num_outputs: int) -> _Trunk:
    return _Trunk(config.hidden, config.num_blocks, num_outputs)


def _bounded(log_scale: Array) -> Array:
    return _LOG_SCALE * jnp.tanh(log_scale / _LOG_SCALE)


def build_head(
    key: Array, config: HeadConfig, num_context: int, first: int, u: Float[Array, "galaxy dim"]
) -> FlowHead | MixtureHead | BinnedHead:
    """An untrained head.

    Args:
        num_context: numbers that the parameters are inferred from.
        first: the redshift's place in u.
        u: of mock galaxies, for the scales; at least as many as there are bins or components.

    Raises:
        ValueError: the redshifts of the mocks do not tell the bins apart.
    """
    mean = jnp.median(u, axis=0)
    # No narrower than float32 can work with: a parameter may be the same for all.
    scale = jnp.maximum(0.5 * jnp.subtract(*jnp.percentile(u, jnp.array([84.0, 16.0]), axis=0)), 1e-3)
    dim, context = u.shape[1], jnp.zeros((1, num_context))
    if config.kind == "flow":
        flow = init_conditional(key, num_context, first, config.flow, mean, scale)
        return FlowHead(flow.weights, dataclasses.replace(flow, weights=None))
    keys = jax.random.split(key)
    if config.kind == "mixture":
        num = config.num_components
        trunk = _trunk(config, num * (1 + 2 * dim)).init(keys[0], context)
        start = ((u - mean) / scale)[jnp.linspace(0, len(u) - 1, num).astype(int)]
        return MixtureHead(trunk, jnp.clip(start, -2.0, 2.0), mean, scale, first, config)
    edges = jnp.quantile((u[:, first] - mean[first]) / scale[first], jnp.linspace(0.0, 1.0, config.num_bins + 1)[1:-1])
    if not bool(jnp.all(jnp.diff(edges) > 0.0)):
        raise ValueError(
            f"head: {config.num_bins} bins of redshift need mocks that differ; fewer num_bins, or more mocks"
        )
    others = _trunk(config, 2 * (dim - 1)).init(keys[1], jnp.zeros((1, 1, config.hidden + 1)))
    trunk = _trunk(config, config.num_bins + config.hidden).init(keys[0], context)
    return BinnedHead({"trunk": trunk, "others": others}, edges, mean, scale, first, config)
