"""Emulators as folders: weights without pickle, and a description of what they stand in for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from popsed_jax.observe.emulated import PhotometryEmulator
from popsed_jax.observe.forward import Emulator
from popsed_jax.parameters import Parameter, ParameterSpace
from popsed_jax.population.storage import (
    WEIGHTS,
    StorageError,
    load_described,
    load_tree,
    read_description,
    save_described,
)
from popsed_jax.settings import SettingsError, from_mapping, to_mapping
from popsed_jax.sps.config import ModelConfig
from popsed_jax.sps.emulator import Feature, Network
from popsed_jax.sps.spectra import SpectrumEmulator

FORMAT_VERSION = 1
DESCRIPTION = "emulator.json"
_WHAT, _HINT = "emulator", "give the folder that `popsed-jax train-emulator` wrote"


def save_emulator(folder: Path | str, emulator: Emulator, meta: Mapping[str, Any]) -> None:
    """Write `weights.safetensors` and `emulator.json` into a folder.

    Args:
        meta: what else the description should hold: settings, errors, versions.
    """
    shapes: dict[str, Any] = {"kind": "spectrum", "num_wave": [len(part) for part in emulator_means(emulator)]}
    if isinstance(emulator, PhotometryEmulator):
        shapes = {
            "kind": "photometry",
            "filters": list(emulator.filters),
            "flux": "ln(maggies per Msun formed at 10 pc)",
        }
    fields = {
        **shapes,
        "parameters": [dataclasses.asdict(p) for p in emulator.space.parameters],
        "model": None if emulator.config is None else to_mapping(emulator.config),
        "ssp_sha256": emulator.ssp_sha256,
        "networks": [
            {
                "hidden": network.hidden,
                "num_layers": network.num_layers,
                "num_outputs": network.num_outputs,
                "features": [dataclasses.asdict(feature) for feature in network.features],
            }
            for network in emulator.networks
        ],
        **meta,
    }
    save_described(Path(folder), emulator, DESCRIPTION, _WHAT, FORMAT_VERSION, fields)


def load_emulator(folder: Path | str) -> Emulator:
    """Read an emulator written by `save_emulator`.

    Raises:
        StorageError: a missing, damaged, changed or newer file; the message says which and what to do.
    """
    path = Path(folder) / DESCRIPTION
    description = load_described(path, _WHAT, FORMAT_VERSION, _HINT)
    try:
        return load_tree(path.parent / WEIGHTS, _empty(description))
    except (KeyError, TypeError, SettingsError) as error:
        raise StorageError(f"{path} does not describe its weights: {error}") from None


def load_description(folder: Path | str) -> dict[str, Any]:
    """What `emulator.json` says.

    Raises:
        StorageError: it is missing, damaged, of something else, or of a newer format.
    """
    return read_description(Path(folder) / DESCRIPTION, _WHAT, FORMAT_VERSION, _HINT)


def emulator_means(emulator: Emulator) -> tuple[Any, ...]:
    """Mean spectra of each range of wavelength; none of photometry."""
    return emulator.mean if isinstance(emulator, SpectrumEmulator) else ()


def _empty(description: Mapping[str, Any]) -> Emulator:
    """An emulator of the right shapes, with zeros."""
    space = ParameterSpace(tuple(Parameter(**entry) for entry in description["parameters"]))
    model = description["model"]
    config = None if model is None else from_mapping(ModelConfig, model, "model")
    networks = tuple(_empty_network(entry) for entry in description["networks"])
    common = {"space": space, "config": config, "ssp_sha256": description["ssp_sha256"]}
    if description["kind"] == "photometry":
        filters = tuple(description["filters"])
        return PhotometryEmulator(networks, jnp.zeros(len(filters)), filters=filters, **common)
    sizes = description["num_wave"]
    pairs = list(zip(networks, sizes, strict=True))
    mean = tuple(jnp.zeros(size) for size in sizes)
    components = tuple(jnp.zeros((network.num_outputs, size)) for network, size in pairs)
    return SpectrumEmulator(networks, mean, components, jnp.zeros(sum(sizes)), **common)


def _empty_network(entry: Mapping[str, Any]) -> Network:
    features = tuple(Feature(**feature) for feature in entry["features"])
    zeros = jnp.zeros(entry["num_outputs"])
    sizes = {"hidden": entry["hidden"], "num_layers": entry["num_layers"]}
    blank = Network({}, zeros, zeros, features=features, **sizes)
    shapes = jax.eval_shape(lambda: blank.layers.init(jax.random.key(0), jnp.zeros(len(features))))["params"]
    return dataclasses.replace(blank, weights=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))
