"""Pytrees of arrays as safetensors files: no pickle, nothing executed on loading, written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

Tree = TypeVar("Tree")
WEIGHTS = "weights.safetensors"
_OWN_CHECKSUM = "description_sha256"


class StorageError(ValueError):
    """A file that does not hold the arrays asked for."""


def save_tree(path: Path, tree: object, metadata: Mapping[str, str] | None = None) -> None:
    """Write a pytree's arrays under the names of their places in it.

    Args:
        metadata: strings kept in the file's header.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    arrays = {jax.tree_util.keystr(where): np.asarray(leaf, order="C") for where, leaf in leaves}
    write_atomically(path, save(arrays, metadata=dict(metadata or {})))


def load_metadata(path: Path) -> dict[str, str]:
    """The strings in a file's header.

    Raises:
        StorageError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except FileNotFoundError:
        raise StorageError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{path} is damaged or truncated: {error}") from None


def load_tree(path: Path, like: Tree) -> Tree:
    """Read arrays into a pytree of the shape of `like`.

    Raises:
        StorageError: the file is missing, damaged, or holds other arrays (named).
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    shapes = {jax.tree_util.keystr(where): tuple(jnp.shape(leaf)) for where, leaf in leaves}
    stored = load_arrays(path, shapes)
    return jax.tree_util.tree_unflatten(structure, [jnp.asarray(stored[name]) for name in shapes])


def load_arrays(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Read arrays by the names under which `save_tree` wrote them.

    Raises:
        StorageError: as `load_tree`.
    """
    load_metadata(path)  # one place names a missing or damaged file
    try:
        with safe_open(path, framework="numpy") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (
        SafetensorError,
        TypeError,
        KeyError,
        AttributeError,
        ValueError,
    ) as error:  # kinds of numbers unknown to NumPy
        raise StorageError(f"{path} is damaged: {error}") from None
    if set(shapes) != set(stored):
        odd = sorted(set(shapes) ^ set(stored))[:3]
        raise StorageError(f"{path} holds other arrays than expected: {', '.join(odd)}")
    for name, shape in shapes.items():
        if stored[name].shape != shape:
            raise StorageError(f"{path}: {name} has shape {stored[name].shape}, expected {shape}")
    return stored


def save_described(folder: Path, tree: object, name: str, what: str, version: int, fields: Mapping[str, Any]) -> None:
    """Write `weights.safetensors` and a JSON file that describes it: format, version, checksum, and what else is given.

    From version 2 of a format on, the description carries a checksum of itself too.

    Args:
        name: of the JSON file.
        what: the format, for instance "population".
    """
    weights = folder / WEIGHTS
    save_tree(weights, tree)
    head = {"format": f"popsed_jax {what}", "format_version": version, "weights_sha256": _checksum(weights)}
    description = head | dict(fields)
    if version > 1:
        description |= {_OWN_CHECKSUM: _description_checksum(description)}
    write_atomically(folder / name, (json.dumps(description, indent=2) + "\n").encode())


def described_weights(path: Path) -> str:
    """The checksum of the weights that a JSON file of `save_described` describes.

    Raises:
        StorageError: the file is missing or damaged.
    """
    try:
        return str(json.loads(path.read_text())["weights_sha256"])
    except FileNotFoundError:
        raise StorageError(f"{path} does not exist") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} is damaged: {error}") from None


def load_described(path: Path, what: str, version: int, hint: str) -> dict[str, Any]:
    """The fields that `save_described` wrote, of its own only `format_version`.

    Args:
        path: of the JSON file.
        hint: what to do when it does not exist.

    Raises:
        StorageError: a file missing, damaged, of something else, changed or newer; the message says which and what to do.
    """
    description = read_description(path, what, version, hint)
    weights = path.parent / WEIGHTS
    if not weights.is_file():
        raise StorageError(f"{weights} does not exist")
    if _checksum(weights) != description.get("weights_sha256"):
        raise StorageError(
            f"{weights} is not the file that {path.name} describes (checksum): it was changed or truncated"
        )
    own = ("format", "weights_sha256", _OWN_CHECKSUM)
    return {key: value for key, value in description.items() if key not in own}


def read_description(path: Path, what: str, version: int, hint: str) -> dict[str, Any]:
    """The whole JSON file that `save_described` wrote. Raises StorageError as `load_described`; the weights are not looked at."""
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise StorageError(f"{path} does not exist: {hint}") from None
    except (ValueError, RecursionError) as error:  # no JSON, no text, numbers too long, brackets too deep
        raise StorageError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}") from None
    described = isinstance(description, dict) and description.get("format") == f"popsed_jax {what}"
    found = description.get("format_version") if described else None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise StorageError(f"{path} does not describe a popsed_jax {what}")
    if found > version:
        raise StorageError(f"{path} has format version {found}, newer than this package reads ({version}): update it")
    if found > 1 and description.get(_OWN_CHECKSUM) != _description_checksum(description):
        raise StorageError(f"{path} is not as it was written (checksum): it was changed")
    return description


def _description_checksum(description: Mapping[str, Any]) -> str:
    """SHA-256 of all fields but the checksum itself, as JSON with sorted keys and no spaces."""
    fields = {key: value for key, value in description.items() if key != _OWN_CHECKSUM}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the file and rename, so that a kill at any moment leaves the old file or the new one.

    Raises:
        OSError: the disk refuses; the message names the file and says what is left, and the file is as it was.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        before = "; the file of before is whole" if path.is_file() else ""
        advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "see to that"
        reason = error.strerror or str(error)
        raise OSError(
            f"cannot write {path} ({reason}){before}: {advice}, and go on with --resume where the command has it"
        ) from error
