"""What `population.json` and the weights beside it must hold, checked before anything is built from them.

A population file is data that may come from anybody: each value is looked at before it sets the size of an array or the
length of a loop, and a wrong one ends in a `StorageError` that names it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from popsed_jax.flows.rational_quadratic import num_parameters
from popsed_jax.flows.spline import FlowConfig, SplineFlow, layer_orders, num_kept
from popsed_jax.parameters import Parameter, ParameterSpace
from popsed_jax.population.storage import StorageError, load_arrays

# Far beyond any population, and small enough to be built: the number of arrays grows with the blocks.
_LARGEST = {"num_members": 4096, "num_layers": 1024, "num_blocks": 64, "hidden": 65536, "num_bins": 4096}
_MAX_DIM = 1024
_WEIGHTS_SUM = 1e-3


class Description(NamedTuple):
    """A population without its arrays."""

    num_members: int
    config: FlowConfig
    space: ParameterSpace
    meta: dict[str, Any]


def describe(num_members: int, config: FlowConfig, space: ParameterSpace) -> dict[str, Any]:
    """The fields of `population.json` that are needed to evaluate the density."""
    orders = layer_orders(len(space), config.num_layers)
    return {
        "num_members": num_members,
        "flow": dataclasses.asdict(config),
        "orders": [" ".join(str(dim) for dim in order) for order in orders],
        "parameters": [dataclasses.asdict(p) for p in space.parameters],
    }


def read_description_fields(path: Path, fields: Mapping[str, Any]) -> Description:
    """The description, every value checked.

    Args:
        path: named in messages.
        fields: of the file, without those of `storage` but the version; version 1 does not have the layers' orders.

    Raises:
        StorageError: a field is missing, of the wrong type or impossible.
    """
    meta = dict(fields)
    try:
        version = meta.pop("format_version")
        num_members = _integer(meta.pop("num_members"), "num_members")
        config = _build(FlowConfig, meta.pop("flow"), "flow")
        entries = meta.pop("parameters")
        if not (isinstance(entries, list) and 2 <= len(entries) <= _MAX_DIM):
            raise ValueError(f"parameters must be a list of 2 to {_MAX_DIM}")
        space = ParameterSpace(tuple(_build(Parameter, entry, f"parameters[{i}]") for i, entry in enumerate(entries)))
        if version > 1 and meta.pop("orders") != describe(num_members, config, space)["orders"]:
            raise ValueError("orders are not those of this package's flows")
    except KeyError as error:
        raise StorageError(f"{path} lacks {error.args[0]!r}: it is damaged") from None
    except (ValueError, OverflowError) as error:
        raise StorageError(f"{path} is damaged: {error}") from None
    return Description(num_members, config, space, meta)


def arrays_of(description: Description) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays in `weights.safetensors`, by the names that they have there."""
    num, config, dim = description.num_members, description.config, len(description.space)
    kept, hidden = num_kept(dim), config.hidden
    sizes = [kept, *[hidden] * (config.num_blocks + 1), (dim - kept) * num_parameters(config.num_bins)]
    shapes: dict[str, tuple[int, ...]] = {"[0].mean": (num, dim), "[0].chol": (num, dim, dim), "[1]": (num,)}
    for i, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        shapes[_dense(i, "kernel")] = (num, config.num_layers, rows, columns)
        shapes[_dense(i, "bias")] = (num, config.num_layers, columns)
    return shapes


def load_flows(path: Path, description: Description) -> tuple[SplineFlow, Array]:
    """The members' flows and weights.

    Raises:
        StorageError: the file is missing, damaged, holds other arrays, or arrays that are no density.
    """
    stored = load_arrays(path, arrays_of(description))
    if not all(array.dtype.kind == "f" and np.isfinite(array).all() for array in stored.values()):
        raise StorageError(f"{path} holds values that are no finite numbers")
    weights, chol = stored["[1]"], stored["[0].chol"]
    if np.any(weights < 0.0) or abs(float(weights.sum()) - 1.0) > _WEIGHTS_SUM:
        raise StorageError(f"{path}: the members' weights are negative or do not sum to one")
    if np.any(np.triu(chol, 1)) or np.any(np.diagonal(chol, axis1=1, axis2=2) <= 0.0):
        raise StorageError(f"{path}: chol is not lower triangular with a positive diagonal")
    layers = {
        f"Dense_{i}": {part: jnp.asarray(stored[_dense(i, part)]) for part in ("kernel", "bias")}
        for i in range(description.config.num_blocks + 2)
    }
    flows = SplineFlow({"params": layers}, jnp.asarray(stored["[0].mean"]), jnp.asarray(chol), description.config)
    return flows, jnp.asarray(weights)


def _dense(index: int, part: str) -> str:
    return f"[0].layers['params']['Dense_{index}']['{part}']"


def _integer(value: Any, name: str) -> int:
    largest = _LARGEST[name.rpartition(".")[2]]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise ValueError(f"{name} = {value!r:.40} must be an integer from 1 to {largest}")
    return value


def _build(kind: type[Any], entry: Any, where: str) -> Any:
    """A settings class of strings, integers and numbers, from JSON."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if not isinstance(entry, dict) or set(entry) - set(fields):
        raise ValueError(f"{where} must hold {', '.join(fields)} and nothing else")
    values: dict[str, Any] = {}
    for name, value in entry.items():
        place = f"{where}.{name}"
        if fields[name].type == "int":
            values[name] = _integer(value, place)
        elif fields[name].type == "float":
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ValueError(f"{place} = {value!r:.40} must be a number")
            values[name] = float(value)
        elif not isinstance(value, str):
            raise ValueError(f"{place} = {value!r:.40} must be a string")
        else:
            values[name] = value
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in entry]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return kind(**values)
