"""Small neural networks that stand in for a model of galaxies, and their training. (Speculator: Alsing+20, arXiv:1911.11778)

A `Network` maps parameters by name to a vector. How each parameter enters is data (`Feature`): a burst of a thousandth of the
mass can rule the u band, so its fraction enters by its logarithm, and what is jagged in one parameter alone (an emission line
that crosses a filter's edge with redshift) is left to a learned table of that parameter.

Training is a pair of functions, `init_training` and `train_chunk`. It draws its examples anew in every chunk, where the
model that is emulated is cheap: such a network cannot learn its examples by heart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from popsed_jax._soap import matrices_by_soap
from popsed_jax.parameters import Parameter

Values = Mapping[str, Array]
# From (what is emulated, key, number) to parameters by name and one array of outputs for each network.
Draw = Callable[[Any, Array, int], tuple[dict[str, Array], tuple[Array, ...]]]


@dataclasses.dataclass(frozen=True)
class Feature:
    """How one parameter enters a network.

    Args:
        name: the parameter.
        low, high: range that is mapped to [-1, 1], before the logarithm [unit].
        log: take ln(value + offset).
        offset: added before the logarithm [unit].
        num_nodes: nodes of a learned piecewise-linear function of this parameter, added to the first layer; 0 for none.
    """

    name: str
    low: float
    high: float
    log: bool = False
    offset: float = 0.0
    num_nodes: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not self.low < self.high:
            raise ValueError(f"feature {self.name!r}: low = {self.low} must be below high = {self.high}")
        if self.log and self.low + self.offset <= 0.0:
            raise ValueError(f"feature {self.name!r}: the logarithm of {self.low} + {self.offset} does not exist")
        if self.num_nodes < 0 or self.num_nodes == 1:
            raise ValueError(f"feature {self.name!r}: num_nodes = {self.num_nodes} must be 0, or 2 and more")

    def warp(self, value: Array | float) -> Array:
        """The value or its logarithm."""
        return jnp.log(value + self.offset) if self.log else jnp.asarray(value)

    def scaled(self, value: Array) -> Array:
        """In [-1, 1] within the range."""
        low, high = self.warp_number(self.low), self.warp_number(self.high)
        return (self.warp(value) - 0.5 * (low + high)) / (0.5 * (high - low))

    def unscaled(self, x: Array) -> Array:
        """Inverse of `scaled`."""
        low, high = self.warp_number(self.low), self.warp_number(self.high)
        warped = 0.5 * (low + high) + 0.5 * (high - low) * x
        # Rounding must not carry a value over its bound.
        return jnp.clip(jnp.exp(warped) - self.offset if self.log else warped, self.low, self.high)

    def warp_number(self, value: float) -> float:
        """`warp` of a plain number."""
        return float(np.log(value + self.offset)) if self.log else value


# By parameter: (logarithm, offset, nodes). Parameters that are absent enter as they are.
_SPECIAL: dict[str, tuple[bool, float, int]] = {
    "redshift": (True, 1.0, 200),
    "f_burst": (True, 1e-3, 0),
    "t_burst": (True, 0.0, 100),
    "tau_birth": (True, 1.0, 0),
    "umin": (True, 0.0, 0),
    "f_agn": (True, 1e-2, 0),
    "agn_ebv": (True, 0.3, 0),
}


def default_features(parameters: Sequence[Parameter]) -> tuple[Feature, ...]:
    """How these parameters enter a network unless it is said otherwise."""
    features = []
    for parameter in parameters:
        log, offset, num_nodes = _SPECIAL.get(parameter.name, (False, 0.0, 0))
        features.append(Feature(parameter.name, parameter.low, parameter.high, log, offset, num_nodes))
    return tuple(features)


class Layers(nn.Module):
    """Dense layers with the activation (beta + (1 - beta) sigmoid(alpha x)) x, alpha and beta learned. (Alsing+20, sec. 2)"""

    hidden: int
    num_layers: int
    num_outputs: int
    tables: tuple[tuple[int, int], ...]

    @nn.compact
    def __call__(self, x: Float[Array, " input"]) -> Float[Array, " output"]:
        """Outputs of one galaxy."""
        h = nn.Dense(self.hidden)(x)
        for column, num in self.tables:
            table = self.param(f"table_{column}", nn.initializers.zeros, (num, self.hidden))
            position = 0.5 * (x[column] + 1.0) * (num - 1)
            below = jnp.clip(jnp.floor(position), 0, num - 2).astype(jnp.int32)
            step = position - below
            h = h + table[below] * (1.0 - step) + table[below + 1] * step
        for layer in range(self.num_layers):
            h = nn.Dense(self.hidden)(h) if layer else h
            alpha = self.param(f"alpha_{layer}", nn.initializers.ones, (self.hidden,))
            beta = self.param(f"beta_{layer}", nn.initializers.constant(0.1), (self.hidden,))
            h = (beta + (1.0 - beta) * nn.sigmoid(alpha * h)) * h
        return nn.Dense(self.num_outputs)(h)


@flax.struct.dataclass
class Network:
    """One network with the scales of its inputs and outputs.

    Attributes:
        weights: the trained part.
        shift, scale: of the outputs, in their unit.
        features: its inputs.
        hidden, num_layers: width and number of hidden layers.
    """

    weights: Any
    shift: Float[Array, " output"]
    scale: Float[Array, " output"]
    features: tuple[Feature, ...] = flax.struct.field(pytree_node=False)
    hidden: int = flax.struct.field(pytree_node=False)
    num_layers: int = flax.struct.field(pytree_node=False)

    @property
    def num_outputs(self) -> int:
        """Length of the output."""
        return self.shift.shape[-1]

    @property
    def layers(self) -> Layers:
        """The network's structure."""
        tables = tuple((i, feature.num_nodes) for i, feature in enumerate(self.features) if feature.num_nodes)
        return Layers(self.hidden, self.num_layers, self.num_outputs, tables)

    @property
    def num_flops(self) -> int:
        """Floating-point operations of the matrix products for one galaxy."""
        kernels = [leaf for leaf in jax.tree.leaves(self.weights) if jnp.ndim(leaf) == 2]
        tables = sum(feature.num_nodes for feature in self.features) * self.hidden
        return 2 * (sum(int(np.prod(leaf.shape)) for leaf in kernels) - tables)

    def select_outputs(self, rows: Array) -> Network:
        """The network of some of its outputs."""
        last = f"Dense_{self.num_layers}"
        weights = {**self.weights, last: jax.tree.map(lambda leaf: leaf[..., rows], self.weights[last])}
        return dataclasses.replace(self, weights=weights, shift=self.shift[rows], scale=self.scale[rows])

    def __call__(self, values: Values) -> Float[Array, " output"]:
        """Outputs for one galaxy's parameters by name."""
        x = jnp.stack([feature.scaled(values[feature.name]) for feature in self.features])
        return self.shift + self.scale * jnp.asarray(self.layers.apply({"params": self.weights}, x))


@dataclasses.dataclass(frozen=True)
class EmulatorConfig:
    """Size and training of an emulator.

    Args:
        hidden, num_layers: width and number of hidden layers.
        num_chunks: chunks of fresh examples; progress is shown and kept after each.
        chunk_size: examples in a chunk.
        steps_per_chunk: gradient steps on a chunk.
        batch_size: examples in a step.
        learning_rate: at the start; it falls to zero along half a cosine.
        prior_share: fraction of the examples from the prior; the others are flat in the networks' features, which puts
            more of them where the light changes fast (small bursts, young ones).
        seed: of everything random.
        num_pca, num_segments: of spectra: principal components of ln L_nu in each of so many ranges of wavelength.
        num_spectra: spectra made for the training of a spectral emulator.
    """

    hidden: int = 104
    num_layers: int = 3
    num_chunks: int = 150
    chunk_size: int = 65_536
    steps_per_chunk: int = 400
    batch_size: int = 1024
    learning_rate: float = 4e-3
    prior_share: float = 0.5
    seed: int = 0
    num_pca: int = 24
    num_segments: int = 4
    num_spectra: int = 50_000

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, int) and name != "seed" and value < 1:
                raise ValueError(f"train_emulator: {name} = {value} must be at least 1")
        if not 0.0 < self.learning_rate < 1.0:
            raise ValueError(f"train_emulator: learning_rate = {self.learning_rate} must be between 0 and 1")
        if not 0.0 <= self.prior_share <= 1.0:
            raise ValueError(f"train_emulator: prior_share = {self.prior_share} is a fraction, between 0 and 1")
        if self.batch_size > self.chunk_size:
            raise ValueError(
                f"train_emulator: batch_size = {self.batch_size} must not exceed chunk_size = {self.chunk_size}"
            )

    @property
    def num_steps(self) -> int:
        """Gradient steps in all."""
        return self.num_chunks * self.steps_per_chunk


class TrainState(NamedTuple):
    """What changes in training. A checkpoint is exactly this."""

    weights: tuple[Any, ...]
    opt_state: Any


def init_networks(
    key: Array, features: Sequence[tuple[Feature, ...]], outputs: Sequence[Array], config: EmulatorConfig
) -> tuple[Network, ...]:
    """Untrained networks, the outputs scaled to these examples (example, output)."""
    networks = []
    for key_one, inputs, targets in zip(jax.random.split(key, len(features)), features, outputs, strict=True):
        shift, scale = targets.mean(axis=0), jnp.maximum(targets.std(axis=0), 1e-6)  # an output may be constant
        blank = Network({}, shift, scale, features=inputs, hidden=config.hidden, num_layers=config.num_layers)
        weights = blank.layers.init(key_one, jnp.zeros(len(inputs)))["params"]
        networks.append(dataclasses.replace(blank, weights=weights))
    return tuple(networks)


def init_training(networks: Sequence[Network], config: EmulatorConfig) -> TrainState:
    """The state before the first step."""
    weights = tuple(network.weights for network in networks)
    return TrainState(weights, _optimiser(config).init(weights))


@partial(jax.jit, static_argnums=(0, 3))
def draw_examples(draw: Draw, truth: Any, key: Array, num: int) -> tuple[dict[str, Array], tuple[Array, ...]]:
    """`draw(truth, key, num)`, compiled."""
    return draw(truth, key, num)


def train_chunk(
    key: Array, truth: Any, networks: tuple[Network, ...], state: TrainState, *, draw: Draw, config: EmulatorConfig
) -> tuple[TrainState, Float[Array, " step"]]:
    """Gradient steps on one chunk of examples.

    Args:
        truth: what is emulated, first argument of `draw`.
        networks: their scales and features; the weights are in the state.

    Returns:
        The state, and the root mean square error of the outputs at every step, in their unit.
    """
    key_draw, key_batch = jax.random.split(key)
    return _fit_examples(key_batch, draw_examples(draw, truth, key_draw, config.chunk_size), networks, state, config)


@partial(jax.jit, static_argnames="config")
def _fit_examples(
    key: Array,
    examples: tuple[dict[str, Array], tuple[Array, ...]],
    networks: tuple[Network, ...],
    state: TrainState,
    config: EmulatorConfig,
) -> tuple[TrainState, Float[Array, " step"]]:
    optimiser = _optimiser(config)

    def loss_of(weights: tuple[Any, ...], batch: dict[str, Array], wanted: tuple[Array, ...]) -> Array:
        used = trained_networks(networks, TrainState(weights, None))
        errors = [jax.vmap(network)(batch) - y for network, y in zip(used, wanted, strict=True)]
        return jnp.stack([jnp.mean(error**2) for error in errors]).mean()

    def step(state: TrainState, key: Array) -> tuple[TrainState, Array]:
        chosen = jax.random.randint(key, (config.batch_size,), 0, config.chunk_size)
        batch, wanted = jax.tree.map(lambda column: column[chosen], examples)
        loss, grads = jax.value_and_grad(loss_of)(state.weights, batch, wanted)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.weights)
        return TrainState(optax.apply_updates(state.weights, updates), opt_state), jnp.sqrt(loss)

    return jax.lax.scan(step, state, jax.random.split(key, config.steps_per_chunk))


def trained_networks(networks: Sequence[Network], state: TrainState) -> tuple[Network, ...]:
    """The networks with the state's weights."""
    return tuple(dataclasses.replace(n, weights=w) for n, w in zip(networks, state.weights, strict=True))


def _optimiser(config: EmulatorConfig) -> optax.GradientTransformation:
    """SOAP for the matrices and Adam for the rest, at a rate that falls to zero along half a cosine."""

    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(200, config.num_steps // 10 + 1), config.num_steps
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        matrices_by_soap(),
        optax.scale_by_learning_rate(schedule),
    )


def draw_features(key: Array, features: Sequence[Feature], num: int) -> dict[str, Float[Array, " num"]]:
    """Parameters flat in their features, by name."""
    x = jax.random.uniform(key, (len(features), num), minval=-1.0, maxval=1.0)
    return {feature.name: feature.unscaled(x[i]) for i, feature in enumerate(features)}
