"""Conditional neural spline flow: q(u | features), one density for each galaxy. (Durkan+19; Papamakarios+19, arXiv:1912.02762)

    q(u | c) = q(u_0 | h) q(u_1 ... u_D | u_0, h),    h = embedding(c)

The first dimension has a spline of its own that depends on the features alone: its density is exact on any grid at the cost of
one evaluation of a small network, whatever the others do. The others follow by coupling layers, given it. Both have an affine
map of their own for each galaxy, because what photometry fixes is far narrower than what it leaves open. What depends on the
galaxy alone is computed once for all its samples.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from popsed_jax._random import normal
from popsed_jax.flows.networks import residual
from popsed_jax.flows.rational_quadratic import RationalQuadratic, num_parameters
from popsed_jax.flows.spline import layer_orders, num_kept

_MAX_LOG_SCALE = 7.0  # of the affine maps: narrower than e^-7 of the prior's width means that training went astray


@dataclasses.dataclass(frozen=True)
class ConditionalConfig:
    """Size of the networks.

    Args:
        embedding: numbers that the features are summed up in.
        embedding_hidden, embedding_blocks: width and residual blocks of the network that does it.
        num_layers: coupling layers, even.
        hidden, num_blocks: width and residual blocks of their conditioners.
        num_bins: spline bins of the coupling layers.
        first_bins: spline bins of the first dimension.
        tail_bound: splines act on [-tail_bound, tail_bound]; beyond, the identity.
    """

    embedding: int = 64
    embedding_hidden: int = 128
    embedding_blocks: int = 3
    num_layers: int = 6
    hidden: int = 64
    num_blocks: int = 2
    num_bins: int = 8
    first_bins: int = 24
    tail_bound: float = 5.0

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.num_layers < 2 or self.num_layers % 2:
            raise ValueError(f"network: num_layers = {self.num_layers} must be even and at least 2")
        for name in ("embedding", "embedding_hidden", "embedding_blocks", "hidden", "num_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"network: {name} = {getattr(self, name)} must be at least 1")
        for name in ("num_bins", "first_bins"):
            if getattr(self, name) < 2:
                raise ValueError(f"network: {name} = {getattr(self, name)} must be at least 2")
        if self.tail_bound <= 0:
            raise ValueError(f"network: tail_bound = {self.tail_bound} must be positive")


class Embedding(nn.Module):
    """Residual network from features to what the densities depend on."""

    config: ConditionalConfig

    @nn.compact
    def __call__(self, features: Float[Array, "galaxy feature"]) -> Float[Array, "galaxy embedding"]:
        """One row a galaxy."""
        x = residual(features, self.config.embedding_hidden, self.config.embedding_blocks)
        return nn.Dense(self.config.embedding)(nn.gelu(x))


class Conditioner(nn.Module):
    """Residual network from what differs from sample to sample, and the galaxy's embedding; starts near zero."""

    hidden: int
    num_blocks: int
    num_outputs: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "galaxy sample some"], embedded: Float[Array, "galaxy embedding"]
    ) -> Float[Array, "galaxy sample output"]:
        """One row a sample."""
        z = nn.Dense(self.hidden)(x) + nn.Dense(self.hidden, use_bias=False)(embedded)[:, None]
        for _ in range(self.num_blocks):
            z = z + nn.Dense(self.hidden)(nn.gelu(z)) + nn.Dense(self.hidden, use_bias=False)(embedded)[:, None]
        # As in `popsed_jax.flows.spline`: a default initialisation costs float32 layers their invertibility.
        return nn.Dense(self.num_outputs, kernel_init=nn.initializers.normal(1e-3))(nn.gelu(z))


class First(nn.Module):
    """Affine map and spline of the first dimension."""

    config: ConditionalConfig

    @nn.compact
    def __call__(self, embedded: Float[Array, "galaxy embedding"]) -> Float[Array, "galaxy output"]:
        """Location, log of the scale, parameters of the spline; starts near zero."""
        z = nn.Dense(2 * self.config.hidden)(nn.gelu(embedded))
        outputs = 2 + num_parameters(self.config.first_bins)
        return nn.Dense(outputs, kernel_init=nn.initializers.normal(1e-3))(nn.gelu(z))


@flax.struct.dataclass
class ConditionalFlow:
    """q(u | features). Immutable pytree.

    Attributes:
        weights: of all networks, by name: the trained part.
        mean, scale: of u over the training's draws: networks work on (u - mean) / scale.
        first: which dimension stands first.
    """

    weights: Any
    mean: Float[Array, " dim"]
    scale: Float[Array, " dim"]
    config: ConditionalConfig = flax.struct.field(pytree_node=False)
    first: int = flax.struct.field(pytree_node=False)

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return self.mean.shape[-1]

    def embed(self, features: Float[Array, "galaxy feature"]) -> Float[Array, "galaxy embedding"]:
        """What all densities of a galaxy depend on."""
        return cast(Array, Embedding(self.config).apply(self.weights["embedding"], features))

    def log_prob(
        self, u: Float[Array, "galaxy sample dim"], features: Float[Array, "galaxy feature"]
    ) -> Float[Array, "galaxy sample"]:
        """Log density of each galaxy's samples."""
        embedded = self.embed(features)
        scaled = self._order((u - self.mean) / self.scale)
        location, log_scale, spline = self._first(embedded)
        first = (scaled[..., 0] - location[:, None]) * jnp.exp(-log_scale)[:, None]
        x_0, slope_0 = spline.inverse_and_log_det(first)
        rest_location, rest_log_scale = self._affine(first, embedded)
        y = (scaled[..., 1:] - rest_location) * jnp.exp(-rest_log_scale)
        x, slope = self._couple(y, first, embedded, inverse=True)
        total = norm.logpdf(x_0) + slope_0 - log_scale[:, None]
        total = total + norm.logpdf(x).sum(axis=-1) + slope - rest_log_scale.sum(axis=-1)
        return total - jnp.log(self.scale).sum()

    def log_prob_first(
        self, u: Float[Array, "galaxy point"], features: Float[Array, "galaxy feature"]
    ) -> Float[Array, "galaxy point"]:
        """Log of the marginal density of the first dimension, exact."""
        location, log_scale, spline = self._first(self.embed(features))
        scaled = (u - self.mean[self.first]) / self.scale[self.first]
        x, slope = spline.inverse_and_log_det((scaled - location[:, None]) * jnp.exp(-log_scale)[:, None])
        return norm.logpdf(x) + slope - log_scale[:, None] - jnp.log(self.scale[self.first])

    def sample_and_log_prob(
        self, key: Array, features: Float[Array, "galaxy feature"], num: int
    ) -> tuple[Float[Array, "galaxy sample dim"], Float[Array, "galaxy sample"]]:
        """Draws for each galaxy, and their log density."""
        x = normal(key, (len(features), num, self.dim))
        u, log_det = self.forward(x, self.embed(features))
        return u, norm.logpdf(x).sum(axis=-1) - log_det

    def forward(
        self, x: Float[Array, "galaxy sample dim"], embedded: Float[Array, "galaxy embedding"]
    ) -> tuple[Float[Array, "galaxy sample dim"], Float[Array, "galaxy sample"]]:
        """From the base to u, with log |du/dx|; the first column of x is the first dimension's.

        Args:
            embedded: of `embed`.
        """
        location, log_scale, spline = self._first(embedded)
        first, slope = spline.forward_and_log_det(x[..., 0])
        scaled = location[:, None] + jnp.exp(log_scale)[:, None] * first
        rest, log_det = self._rest(x[..., 1:], first, embedded)
        u = self.mean + self.scale * self._order(jnp.concatenate([scaled[..., None], rest], axis=-1), back=True)
        return u, log_det + slope + log_scale[:, None] + jnp.log(self.scale).sum()

    def forward_given_first(
        self,
        x: Float[Array, "galaxy sample rest"],
        u_first: Float[Array, " galaxy"],
        embedded: Float[Array, "galaxy embedding"],
    ) -> tuple[Float[Array, "galaxy sample dim"], Float[Array, "galaxy sample"]]:
        """From the base of the other dimensions to u where the first is known, with the log of the Jacobian."""
        location, log_scale, _ = self._first(embedded)
        scaled = (u_first - self.mean[self.first]) / self.scale[self.first]
        first = jnp.broadcast_to(((scaled - location) * jnp.exp(-log_scale))[:, None], x.shape[:2])
        rest, log_det = self._rest(x, first, embedded)
        every = jnp.concatenate([jnp.broadcast_to(scaled[:, None, None], (*x.shape[:2], 1)), rest], axis=-1)
        u = self.mean + self.scale * self._order(every, back=True)
        return u, log_det + jnp.log(self.scale).sum() - jnp.log(self.scale[self.first])

    def _rest(self, x: Array, first: Array, embedded: Array) -> tuple[Array, Array]:
        """The other dimensions from their base, with the log of the Jacobian."""
        location, log_scale = self._affine(first, embedded)
        y, slope = self._couple(x, first, embedded, inverse=False)
        return location + jnp.exp(log_scale) * y, slope + log_scale.sum(axis=-1)

    def _order(self, u: Array, back: bool = False) -> Array:
        """The first dimension first; or back to where it was."""
        order = np.array([self.first, *(i for i in range(self.dim) if i != self.first)])
        return u[..., np.argsort(order) if back else order]

    def _first(self, embedded: Array) -> tuple[Array, Array, RationalQuadratic]:
        """Location, log of the scale, and spline of the first dimension, for each galaxy."""
        raw = cast(Array, First(self.config).apply(self.weights["first"], embedded))
        # One spline a galaxy, spread over its points by NumPy's rules.
        return raw[:, 0], _bounded(raw[:, 1]), RationalQuadratic(raw[:, 2:].T[:, :, None], self.config.tail_bound)

    def _affine(self, first: Array, embedded: Array) -> tuple[Array, Array]:
        """Locations and logs of the scales of the other dimensions."""
        raw = cast(
            Array, _affine_network(self.config, self.dim).apply(self.weights["affine"], first[..., None], embedded)
        )
        location, log_scale = jnp.split(raw, 2, axis=-1)
        return location, _bounded(log_scale)

    def _couple(self, x: Array, first: Array, embedded: Array, *, inverse: bool) -> tuple[Array, Array]:
        """All coupling layers; the order of dimensions is restored after each."""
        conditioner = _conditioner(self.config, self.dim)
        kept, bound = num_kept(self.dim - 1), self.config.tail_bound

        def step(carry: tuple[Array, Array], layer: tuple[Any, Array, Array]) -> tuple[tuple[Array, Array], None]:
            x, log_det = carry
            weights, order, restore = layer
            x = x[..., order]
            given = jnp.concatenate([x[..., :kept], first[..., None]], axis=-1)
            raw = cast(Array, conditioner.apply(weights, given, embedded))
            # Splines work on (parameter, dim, num): long contiguous rows of the same parameter.
            raw = raw.reshape(-1, raw.shape[-1]).T.reshape(num_parameters(self.config.num_bins), -1, x[..., 0].size)
            spline = RationalQuadratic(raw, bound)
            moving = x[..., kept:].reshape(-1, x.shape[-1] - kept).T
            moved, change = (spline.inverse_and_log_det if inverse else spline.forward_and_log_det)(moving)
            y = jnp.concatenate([x[..., :kept], moved.T.reshape(*x.shape[:2], -1)], axis=-1)[..., restore]
            return (y, log_det + change.sum(axis=0).reshape(x.shape[:2])), None

        order = layer_orders(self.dim - 1, self.config.num_layers)
        layers = (self.weights["layers"], jnp.asarray(order), jnp.asarray(np.argsort(order, axis=1)))
        (x, log_det), _ = jax.lax.scan(step, (x, jnp.zeros(x.shape[:2], x.dtype)), layers, reverse=inverse)
        return x, log_det


def init_conditional(
    key: Array,
    num_features: int,
    first: int,
    config: ConditionalConfig,
    mean: Float[Array, " dim"],
    scale: Float[Array, " dim"],
) -> ConditionalFlow:
    """A flow that starts as the normal distribution with this mean and these standard deviations, whatever the features.

    Args:
        first: the dimension that stands first.

    Raises:
        ValueError: fewer than three dimensions.
    """
    dim = len(mean)
    if dim < 3:
        raise ValueError(f"a conditional flow needs at least three dimensions, got {dim}")
    return _init(key, num_features, first, config, jnp.asarray(mean), jnp.asarray(scale))


def _init(
    key: Array, num_features: int, first: int, config: ConditionalConfig, mean: Array, scale: Array
) -> ConditionalFlow:
    dim, keys = len(mean), jax.random.split(key, 4)
    embedded, one = jnp.zeros((1, config.embedding)), jnp.zeros((1, 1, 1))
    given = jnp.zeros((1, 1, num_kept(dim - 1) + 1))
    conditioner = _conditioner(config, dim)
    weights = {
        "embedding": Embedding(config).init(keys[0], jnp.zeros((1, num_features))),
        "first": First(config).init(keys[1], embedded),
        "affine": _affine_network(config, dim).init(keys[2], one, embedded),
        "layers": jax.vmap(lambda key: conditioner.init(key, given, embedded))(
            jax.random.split(keys[3], config.num_layers)
        ),
    }
    return ConditionalFlow(weights, mean, scale, config, first)


def _affine_network(config: ConditionalConfig, dim: int) -> Conditioner:
    return Conditioner(config.hidden, config.num_blocks, 2 * (dim - 1))


def _conditioner(config: ConditionalConfig, dim: int) -> Conditioner:
    moved = dim - 1 - num_kept(dim - 1)
    return Conditioner(config.hidden, config.num_blocks, moved * num_parameters(config.num_bins))


def _bounded(log_scale: Array) -> Array:
    """The log of a scale, kept from running away; near zero the identity."""
    return _MAX_LOG_SCALE * jnp.tanh(log_scale / _MAX_LOG_SCALE)
