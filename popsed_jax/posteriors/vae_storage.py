"""A trained autoencoder as files: weights and a description, without pickles."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from popsed_jax.flows.conditional import ConditionalConfig
from popsed_jax.parameters import Parameter, ParameterSpace
from popsed_jax.population.storage import WEIGHTS, StorageError, load_described, load_tree, save_described
from popsed_jax.posteriors.decoders import SpectrumScales
from popsed_jax.posteriors.heads import HeadConfig, build_head
from popsed_jax.posteriors.pixels import SpectrumGrid
from popsed_jax.posteriors.storage import empty_features, empty_novelty, sizes_of
from popsed_jax.posteriors.vae import MultiModalVAE, VAEConfig, init_parts

FORMAT_VERSION = 2
DESCRIPTION = "vae.json"


def save_vae(folder: Path | str, vae: MultiModalVAE, bands: tuple[str, ...], meta: dict[str, Any]) -> None:
    """Write `weights.safetensors` and `vae.json`.

    Args:
        bands: names of the survey's bands, in order.
        meta: what else to say of the model, in JSON's types.
    """
    fields = {
        "bands": list(bands),
        "model": dataclasses.asdict(vae.config),
        "parameters": [dataclasses.asdict(parameter) for parameter in vae.space.parameters],
        "sizes": sizes_of(vae.features, vae.novelty) | {"num_pixels": vae.grid.num_pixels},
        "meta": meta,
    }
    save_described(Path(folder), vae, DESCRIPTION, "vae", FORMAT_VERSION, fields)


def load_vae(folder: Path | str) -> tuple[MultiModalVAE, tuple[str, ...], dict[str, Any]]:
    """A model written by `save_vae`, its bands, and what else was said of it.

    Raises:
        StorageError: a missing, damaged, changed or newer file; the message says which and what to do.
    """
    path = Path(folder) / DESCRIPTION
    fields = load_described(path, "vae", FORMAT_VERSION, "train a model first: popsed-jax train-vae CONFIG --out DIR")
    try:
        bands = tuple(str(band) for band in fields["bands"])
        entry = dict(fields["model"])
        head = dict(entry.pop("head"))
        config = VAEConfig(head=HeadConfig(flow=ConditionalConfig(**head.pop("flow")), **head), **entry)
        space = ParameterSpace(tuple(Parameter(**each) for each in fields["parameters"]))
        sizes = {name: int(value) for name, value in fields["sizes"].items()}
        like = _empty(len(bands), space, config, sizes)
        meta = dict(fields["meta"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(f"{path} is damaged: {error}") from None
    return load_tree(path.parent / WEIGHTS, like), bands, meta


def _empty(num_bands: int, space: ParameterSpace, config: VAEConfig, sizes: dict[str, int]) -> MultiModalVAE:
    """A model of arrays of the right shapes."""
    features = empty_features(num_bands, sizes["num_axes"])
    pixels, zero = jnp.zeros(sizes["num_pixels"]), jnp.zeros(())
    scales = SpectrumScales(pixels, zero, zero, zero)
    # Of any galaxies: bins need such that differ.
    u = jax.random.normal(jax.random.key(0), (max(512, 4 * config.head.num_bins), len(space)))
    head = build_head(jax.random.key(0), config.head, config.num_context, space.index("redshift"), u)
    parts = init_parts(jax.random.key(0), config, features.num, scales) | {"head": head.weights}
    grid = SpectrumGrid(jnp.zeros(len(pixels) + 1), jnp.zeros((len(pixels), num_bands)))
    return MultiModalVAE(parts, head.with_weights(None), scales, grid, features, empty_novelty(sizes), space, config)
