"""A trained network as files: weights and a description, read back for the run's survey."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from popsed_jax.flows.conditional import ConditionalConfig, init_conditional
from popsed_jax.observe.noise import NUM_KNOTS, NoiseConfig, NoiseModel
from popsed_jax.population.model import Population, load_population
from popsed_jax.population.space import ComparisonSpace
from popsed_jax.population.storage import WEIGHTS, StorageError, load_described, load_tree, save_described
from popsed_jax.posteriors.features import Features
from popsed_jax.posteriors.novelty import Novelty
from popsed_jax.posteriors.npe import NPE
from popsed_jax.posteriors.survey import LearnedSurvey

FORMAT_VERSION = 3  # from 3 on, networks are told the prior
DESCRIPTION = "npe.json"
_PROPOSAL = "proposal"


def save_npe(folder: Path | str, npe: NPE, bands: tuple[str, ...], meta: dict[str, Any]) -> None:
    """Write `weights.safetensors`, `npe.json` and the priors that it was trained under into a folder.

    Args:
        bands: names of the survey's bands, in order.
        meta: what else to say of the network, in JSON's types.
    """
    folder = Path(folder)
    npe.proposal.save(folder / _PROPOSAL)
    sizes = sizes_of(npe.features, npe.novelty)
    fields = {"bands": list(bands), "network": dataclasses.asdict(npe.flow.config), "sizes": sizes, "meta": meta}
    save_described(folder, (npe.flow, npe.features, npe.novelty), DESCRIPTION, "npe", FORMAT_VERSION, fields)


def load_npe(folder: Path | str, survey: LearnedSurvey) -> tuple[NPE, tuple[str, ...], dict[str, Any]]:
    """A network written by `save_npe`, its bands, and what else was said of it.

    Args:
        survey: whose galaxies it was trained for.

    Raises:
        StorageError: a missing, damaged, changed or newer file; the message says which and what to do.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    fields = load_described(path, "npe", FORMAT_VERSION, "train a network first: popsed-jax train-npe RUN")
    proposal = load_population(folder / _PROPOSAL)
    try:
        bands = tuple(str(band) for band in fields["bands"])
        network = ConditionalConfig(**fields["network"])
        sizes = {name: int(value) for name, value in fields["sizes"].items()}
        like = _empty(len(bands), network, sizes, proposal)
        meta = dict(fields["meta"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(f"{path} is damaged: {error}") from None
    flow, features, novelty = load_tree(folder / WEIGHTS, like)
    return NPE(survey, flow, features, novelty, proposal), bands, meta


def _empty(num_bands: int, network: ConditionalConfig, sizes: dict[str, int], proposal: Population) -> tuple[Any, ...]:
    """Arrays of the shapes of a network's parts."""
    dim, first = len(proposal.space), proposal.space.index("redshift")
    features = empty_features(num_bands, sizes["num_axes"])
    inputs = features.num + proposal.num_members
    flow = init_conditional(jax.random.key(0), inputs, first, network, jnp.zeros(dim), jnp.ones(dim))
    return flow, features, empty_novelty(sizes)


def empty_features(num_bands: int, num_axes: int) -> Features:
    """Features of the shapes of `build_features`."""
    band = jnp.zeros(num_bands)
    square, knots = jnp.zeros((num_bands, num_bands)), jnp.zeros((num_bands, NUM_KNOTS))
    space = ComparisonSpace(
        band,
        jnp.zeros((num_axes, num_bands)),
        jnp.zeros(num_axes),
        band,
        jnp.zeros((1, num_bands)),
        jnp.zeros((1, num_bands, num_bands)),
    )
    noise = NoiseModel(band, band, knots, knots, knots, jnp.zeros((1, num_bands)), band, NoiseConfig())
    return Features(space, band, square, noise)


def sizes_of(features: Features, novelty: Novelty) -> dict[str, int]:
    """Sizes of arrays that no other setting tells."""
    return {
        "num_axes": features.space.matrix.shape[0],
        "num_known": novelty.known.shape[0],
        "num_compared": novelty.distances.shape[0],
    }


def empty_novelty(sizes: dict[str, int]) -> Novelty:
    """Novelty of the shapes that `sizes_of` says."""
    return Novelty(jnp.zeros((sizes["num_known"], sizes["num_axes"])), jnp.zeros(sizes["num_compared"]))
