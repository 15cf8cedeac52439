"""A learned survey small enough for tests: an untrained population of two members, seen in five bands."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from popsed_jax.flows.conditional import ConditionalConfig
from popsed_jax.flows.spline import FlowConfig, init_flow
from popsed_jax.observe.calibration import CalibrationConfig, build_calibration
from popsed_jax.observe.forward import ForwardModel
from popsed_jax.population.model import Population
from popsed_jax.posteriors.npe import NPEConfig
from popsed_jax.posteriors.simulate import SimulationConfig
from popsed_jax.posteriors.survey import LearnedSurvey, Photometry

BANDS = ("u", "g", "r", "i", "z")
NETWORK = ConditionalConfig(
    embedding=8,
    embedding_hidden=16,
    embedding_blocks=1,
    num_layers=2,
    hidden=16,
    num_blocks=1,
    num_bins=4,
    first_bins=6,
)
TRAINING = NPEConfig(
    num_steps=20,
    batch_size=64,
    steps_per_chunk=10,
    network=NETWORK,
    simulation=SimulationConfig(missing=0.3, noisy=0.2),
)


def tiny_survey(forward: ForwardModel) -> LearnedSurvey:
    """Galaxies near u = 0, but massive and not far away."""
    space = forward.space
    mean = np.zeros(len(space))
    mean[space.index("redshift")], mean[space.index("log_mass")] = -1.2, 0.5
    chol = jnp.asarray(np.diag(np.full(len(space), 0.4)))
    config = FlowConfig(num_layers=2, hidden=8, num_blocks=1, num_bins=4)
    keys = jax.random.split(jax.random.key(0), 2)
    flows = [
        init_flow(key, len(space), config, jnp.asarray(mean + shift), chol)
        for key, shift in zip(keys, (0.0, 0.1), strict=True)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *flows)
    population = Population(stacked, jnp.array([0.6, 0.4]), space)
    model = build_calibration(CalibrationConfig(), BANDS, forward.table.filters, "r")
    calibration = model.start(2)
    offset = calibration.offset.at[1].set(1.0)  # one standard deviation of the prior
    return LearnedSurvey(population, forward, model, calibration._replace(offset=offset))


def tiny_galaxies(survey: LearnedSurvey, num: int) -> tuple[np.ndarray, Photometry]:
    """theta of galaxies of the population, and what the survey quotes of them."""

    @jax.jit
    def draw(survey: LearnedSurvey) -> tuple[jax.Array, Photometry]:
        theta, member = survey.population.sample_members(jax.random.key(1), num)
        return theta, survey.observe(jax.random.key(2), theta, member)

    theta, seen = draw(survey)
    return np.asarray(theta), Photometry(*map(np.asarray, seen))


def without(photometry: Photometry, *bands: int) -> Photometry:
    """The same galaxies without some bands, in which no number is left."""
    there = photometry.there.copy()
    there[:, list(bands)] = False
    lost = {name: np.where(there, getattr(photometry, name), np.nan) for name in ("flux", "error")}
    return photometry._replace(**lost, there=there)


def wide(survey: LearnedSurvey) -> LearnedSurvey:
    """The same survey with noise so large that its posteriors are wide."""
    noise = dataclasses.replace(survey.forward.noise, floor=jnp.full(survey.num_bands, 0.3))
    return survey.replace(forward=survey.forward.replace(noise=noise))
