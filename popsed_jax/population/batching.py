"""Mapping a function of many galaxies over an array of any length in pieces of one shape, so that it compiles once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from popsed_jax.population.blocks import in_threads

BATCH = 4096


def map_batches(function: Callable[[Any, Any], Any], model: Any, arrays: Any, batch: int = BATCH) -> Any:
    """`function(model, piece)` on consecutive pieces of arrays, joined on the host.

    An accelerator holds one piece at a time; a CPU works on as many as it has cores, because one leaves cores idle.

    Args:
        function: an unbound method or a module's function (it is a static argument: a fresh lambda would compile anew).
        model: a pytree, its first argument.
        arrays: one, or a pytree of several: each (num, ...), num of any size.
    """
    # Cut and joined by NumPy: in JAX each slice and each length would be a program of its own to compile.
    arrays = jax.tree.map(np.asarray, arrays)
    num = jax.tree.leaves(arrays)[0].shape[0]

    def cut(array: np.ndarray, start: int) -> np.ndarray:
        piece = array[start : start + batch]
        short = batch - piece.shape[0]
        return np.concatenate([piece, np.broadcast_to(piece[-1:], (short, *piece.shape[1:]))]) if short else piece

    def run(start: int) -> Any:
        return jax.tree.map(np.asarray, _call(function, model, jax.tree.map(lambda array: cut(array, start), arrays)))

    starts = range(0, num, batch)
    pieces = in_threads(run, starts, alone=True) if jax.default_backend() == "cpu" else [run(start) for start in starts]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:num], *pieces)


@partial(jax.jit, static_argnums=0)
def _call(function: Callable[[Any, Any], Any], model: Any, piece: Any) -> Any:
    return function(model, piece)
