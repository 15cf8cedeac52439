"""Mapping a function of many galaxies over an array of any length in pieces of one shape, so that it compiles once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

BATCH = 4096


def map_batches(function: Callable[[Any, Array], Any], model: Any, array: Array, batch: int = BATCH) -> Any:
    """`function(model, piece)` on consecutive pieces of `array`, joined; memory stays that of one piece.

    Args:
        function: an unbound method or a module's function (it is a static argument: a fresh lambda would compile anew).
        model: a pytree, its first argument.
        array: (num, ...), num of any size.
    """
    num = array.shape[0]
    pieces = []
    for start in range(0, num, batch):
        piece = array[start : start + batch]
        short = batch - piece.shape[0]
        if short:
            piece = jnp.concatenate([piece, jnp.broadcast_to(piece[-1:], (short, *piece.shape[1:]))])
        pieces.append(_call(function, model, piece))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[:num], *pieces)


@partial(jax.jit, static_argnums=0)
def _call(function: Callable[[Any, Array], Any], model: Any, piece: Array) -> Any:
    return function(model, piece)
