"""Emulators as folders: weights without pickle, and a description of what they stand in for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from popsed_jax.observe.emulated import PhotometryEmulator
from popsed_jax.observe.forward import Emulator
from popsed_jax.parameters import Parameter, ParameterSpace
from popsed_jax.population.storage import StorageError, load_tree, save_tree, write_atomically
from popsed_jax.settings import SettingsError, from_mapping, to_mapping
from popsed_jax.sps.config import ModelConfig
from popsed_jax.sps.emulator import Feature, Network
from popsed_jax.sps.spectra import SpectrumEmulator

FORMAT_VERSION = 1
WEIGHTS, DESCRIPTION = "weights.safetensors", "emulator.json"


def save_emulator(folder: Path | str, emulator: Emulator, meta: Mapping[str, Any]) -> None:
    """Write `weights.safetensors` and `emulator.json` into a folder.

    Args:
        meta: what else the description should hold: settings, errors, versions.
    """
    folder = Path(folder)
    save_tree(folder / WEIGHTS, emulator)
    shapes: dict[str, Any] = {"kind": "spectrum", "num_wave": [len(part) for part in emulator_means(emulator)]}
    if isinstance(emulator, PhotometryEmulator):
        shapes = {
            "kind": "photometry",
            "filters": list(emulator.filters),
            "flux": "ln(maggies per Msun formed at 10 pc)",
        }
    description = {
        "format": "popsed_jax emulator",
        "format_version": FORMAT_VERSION,
        "weights_sha256": _checksum(folder / WEIGHTS),
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
    write_atomically(folder / DESCRIPTION, (json.dumps(description, indent=2) + "\n").encode())


def load_emulator(folder: Path | str) -> Emulator:
    """Read an emulator written by `save_emulator`.

    Raises:
        StorageError: a missing, damaged, changed or newer file; the message says which and what to do.
    """
    folder = Path(folder)
    description = load_description(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise StorageError(f"{weights} does not exist")
    if _checksum(weights) != description["weights_sha256"]:
        raise StorageError(f"{weights} is not the file that {DESCRIPTION} describes (checksum): changed or truncated")
    try:
        return load_tree(weights, _empty(description))
    except (KeyError, TypeError, SettingsError) as error:
        raise StorageError(f"{folder / DESCRIPTION} does not describe its weights: {error}") from None


def load_description(folder: Path | str) -> dict[str, Any]:
    """What `emulator.json` says.

    Raises:
        StorageError: it is missing, damaged, of something else, or of a newer format.
    """
    path = Path(folder) / DESCRIPTION
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise StorageError(f"{path} does not exist: give the folder that `popsed-jax train-emulator` wrote") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StorageError(f"{path} is damaged: {error}") from None
    if not isinstance(description, dict) or description.get("format") != "popsed_jax emulator":
        raise StorageError(f"{path} does not describe a popsed_jax emulator")
    version = description.get("format_version", 0)
    if version > FORMAT_VERSION:
        raise StorageError(
            f"{path} has format version {version}, newer than this package reads ({FORMAT_VERSION}): update it"
        )
    return description


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


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
