"""Amortised posteriors: one network for all galaxies of a survey, whatever bands they lack. (Neural posterior estimation.)

The network learns the posteriors under several priors at once, and is told which: each member of the learned population, with
that member's calibration, and a broad one (`popsed_jax.posteriors.simulate`). Samples under the broad one can be taken to the
analytic prior or to any other by weights, without training again.
(Papamakarios & Murray 2016, arXiv:1605.06376; Greenberg+19, arXiv:1905.07488)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from popsed_jax.flows.conditional import ConditionalConfig, ConditionalFlow, init_conditional
from popsed_jax.parameters import ParameterSpace
from popsed_jax.population.batching import map_batches
from popsed_jax.population.model import Population
from popsed_jax.posteriors.features import Features, build_features
from popsed_jax.posteriors.frame import from_frame, to_frame
from popsed_jax.posteriors.novelty import Novelty, build_novelty
from popsed_jax.posteriors.simulate import SimulationConfig, Simulator, build_simulator, simulate_many
from popsed_jax.posteriors.stages import Parts, Stage, StageState, run_stage
from popsed_jax.posteriors.survey import LearnedSurvey, Photometry

_NUM_SCALE = 16384  # simulated galaxies by which features and u are scaled
_SAMPLES = 2000  # at once: what stays in a processor's cache
_MANY = 1024  # of which little is asked
_PART = "flow"
Label = int | Int[np.ndarray, " galaxy"]


@dataclasses.dataclass(frozen=True)
class NPEConfig:
    """Size and training of the network.

    Args:
        num_steps: of training.
        batch_size: fresh galaxies of each step.
        learning_rate: peak of the one-cycle schedule.
        steps_per_chunk: between two reports.
        seed: of everything random.
    """

    num_steps: int = 6000
    batch_size: int = 512
    learning_rate: float = 2e-3
    steps_per_chunk: int = 200
    seed: int = 0
    network: ConditionalConfig = dataclasses.field(default_factory=ConditionalConfig)
    simulation: SimulationConfig = dataclasses.field(default_factory=SimulationConfig)

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for name in ("num_steps", "batch_size", "steps_per_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"training: {name} = {getattr(self, name)} must be at least 1")
        if not self.learning_rate > 0.0:
            raise ValueError(f"training: learning_rate = {self.learning_rate} must be positive")

    @property
    def stage(self) -> Stage:
        """The training."""
        return Stage("network", (_PART,), self.num_steps, self.learning_rate, self.steps_per_chunk)


@flax.struct.dataclass
class NPE:
    """A trained network. Immutable pytree.

    Attributes:
        survey: whose galaxies these are.
        flow: q(v | features, label), see `popsed_jax.posteriors.frame`.
        features: photometry to features.
        novelty: how unlike the training's galaxies a galaxy is.
        proposal: the priors that the network was trained under, by label: the learned members, then the broad one.
    """

    survey: LearnedSurvey
    flow: ConditionalFlow
    features: Features
    novelty: Novelty
    proposal: Population

    @property
    def space(self) -> ParameterSpace:
        """The galaxies' parameters."""
        return self.proposal.space

    @property
    def parts(self) -> Parts:
        """What training moves."""
        return {_PART: self.flow.weights}

    def with_parts(self, parts: Parts) -> NPE:
        """The same network with other weights."""
        return dataclasses.replace(self, flow=dataclasses.replace(self.flow, weights=parts[_PART]))

    @property
    def broad(self) -> int:
        """The broad prior's label."""
        return self.proposal.num_members - 1

    def inputs(self, photometry: Photometry, label: Int[Array, " galaxy"]) -> Float[Array, "galaxy input"]:
        """What the flow is given: the galaxy's features, and which prior is meant."""
        told = jax.nn.one_hot(label, self.proposal.num_members, dtype=photometry.flux.dtype)
        return jnp.concatenate([self.features(photometry), told], axis=1)

    def sample(
        self, key: Array, photometry: Photometry, num: int, label: Label
    ) -> tuple[Float[np.ndarray, "galaxy sample dim"], Float[np.ndarray, "galaxy sample"]]:
        """Samples of each galaxy's theta, and log of q(theta | photometry).

        Args:
            label: of the prior, for all galaxies or for each.
        """
        pieces = (np.arange(len(photometry.flux)), photometry, _each(label, photometry))
        return map_batches(_sampler(num), (key, self), pieces, max(1, _SAMPLES // num))

    def log_prob(
        self, theta: Float[np.ndarray, "galaxy sample dim"], photometry: Photometry, label: Label
    ) -> Float[np.ndarray, "galaxy sample"]:
        """log q(theta | photometry) under a prior."""
        return map_batches(
            _log_prob, self, (theta, photometry, _each(label, photometry)), max(1, _SAMPLES // theta.shape[1])
        )

    def redshift_density(
        self, photometry: Photometry, grid: Float[np.ndarray, " grid"], label: Label
    ) -> Float[np.ndarray, "galaxy grid"]:
        """p(redshift | photometry) under a prior on a grid within the bounds, exact."""
        pieces = (photometry, _each(label, photometry))
        return map_batches(_redshift_density, (self, jnp.asarray(grid)), pieces, _MANY)

    def embed(self, photometry: Photometry, label: Label) -> Float[np.ndarray, "galaxy embedding"]:
        """What the flow's densities under a prior depend on."""
        return map_batches(_embed, self, (photometry, _each(label, photometry)), _MANY)

    def unlikeness(self, photometry: Photometry) -> tuple[Float[np.ndarray, " galaxy"], Float[np.ndarray, " galaxy"]]:
        """How unlike the training's galaxies each is, and the share of those that are as unlike. See `Novelty`."""
        return map_batches(_unlikeness, self, photometry, _MANY)


def start_npe(key: Array, survey: LearnedSurvey, config: NPEConfig) -> tuple[Simulator, NPE]:
    """What to learn from, and the untrained network."""
    keys = jax.random.split(key, 4)
    simulator = build_simulator(keys[0], survey, config.simulation, config.batch_size)
    plain = dataclasses.replace(simulator, config=dataclasses.replace(config.simulation, missing=0.0, noisy=0.0))
    u, flux, seen = simulate_many(keys[1], plain, _NUM_SCALE)
    v = jax.jit(to_frame)(survey, u, seen, flux)[0]
    features = build_features(seen, survey.forward.noise)
    flow = init_conditional(
        keys[2],
        features.num + simulator.proposal.num_members,
        survey.space.index("redshift"),
        config.network,
        jnp.median(v, axis=0),
        0.5 * jnp.subtract(*jnp.percentile(v, jnp.array([84.0, 16.0]), axis=0)),
    )
    return simulator, NPE(survey, flow, features, build_novelty(features, seen), simulator.proposal)


def network_loss(parts: Parts, key: Array, data: tuple[Simulator, NPE]) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Minus log q of the truth of fresh galaxies [nat]."""
    simulator, npe = data
    u, flux, seen = simulator.simulate(key)
    inputs, v = npe.inputs(seen, simulator.labels), to_frame(npe.survey, u, seen, flux)[0]
    flow = dataclasses.replace(npe.flow, weights=parts[_PART])
    return -jnp.mean(flow.log_prob(v[:, None], inputs)), {}


def train_npe(
    key: Array,
    survey: LearnedSurvey,
    config: NPEConfig = NPEConfig(),
    callback: Callable[[int, float], None] | None = None,
) -> NPE:
    """Train a network for a survey's galaxies.

    Args:
        callback: is told the steps made and the loss after each chunk; may raise KeyboardInterrupt to stop.
    """
    key_start, key_train = jax.random.split(key)
    simulator, npe = start_npe(key_start, survey, config)

    def after_chunk(state: StageState, terms: dict[str, float]) -> None:
        if callback is not None:
            callback(int(state.step), terms["loss"])

    return npe.with_parts(
        run_stage(key_train, config.stage, network_loss, (simulator, npe), npe.parts, None, after_chunk)
    )


@cache
def _sampler(num: int) -> Callable[[tuple[Array, NPE], tuple[Array, Photometry, Array]], tuple[Array, Array]]:
    """Sampling of so many each, one function for each number: a fresh one would compile anew."""

    def sample(model: tuple[Array, NPE], piece: tuple[Array, Photometry, Array]) -> tuple[Array, Array]:
        (key, npe), (number, photometry, label) = model, piece
        v, log_prob = npe.flow.sample_and_log_prob(
            jax.random.fold_in(key, number[0]), npe.inputs(photometry, label), num
        )
        framed = from_frame(npe.survey, v.reshape(-1, v.shape[-1]), _repeated(photometry, num))
        return framed.theta.reshape(v.shape), log_prob - framed.log_det.reshape(log_prob.shape)

    return sample


def _log_prob(npe: NPE, piece: tuple[Array, Photometry, Array]) -> Array:
    theta, photometry, label = piece
    flat, every = theta.reshape(-1, theta.shape[-1]), _repeated(photometry, theta.shape[1])
    v, log_det = to_frame(npe.survey, npe.space.to_u(flat), every, npe.survey.forward.flux(flat))
    return npe.flow.log_prob(v.reshape(theta.shape), npe.inputs(photometry, label)) - log_det.reshape(theta.shape[:2])


def _repeated(photometry: Photometry, num: int) -> Photometry:
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, num, axis=0), photometry)


def _redshift_density(model: tuple[NPE, Array], piece: tuple[Photometry, Array]) -> Array:
    (npe, grid), (photometry, label) = model, piece
    alone = ParameterSpace((npe.space["redshift"],))
    u = alone.to_u(grid[:, None])
    every = jnp.broadcast_to(u[:, 0], (len(photometry.flux), len(grid)))
    return jnp.exp(npe.flow.log_prob_first(every, npe.inputs(photometry, label)) - alone.log_det(u))


def _embed(npe: NPE, piece: tuple[Photometry, Array]) -> Array:
    return npe.flow.embed(npe.inputs(*piece))


def _each(label: Label, photometry: Photometry) -> Int[np.ndarray, " galaxy"]:
    """A label for each galaxy."""
    return np.broadcast_to(np.asarray(label, np.int32), len(photometry.flux))


def _unlikeness(npe: NPE, photometry: Photometry) -> tuple[Array, Array]:
    return npe.novelty(npe.features.colors(photometry))
