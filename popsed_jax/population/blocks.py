"""Members of an ensemble in blocks, each one call of a compiled program.

A CPU gains nothing from products of batched matrices, so there a block is one member: the program does not depend on how many
there are, and cores that one member leaves idle serve another. An accelerator, or several devices, take all members at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

Item = TypeVar("Item")
Result = TypeVar("Result")
Tree = TypeVar("Tree")


def member_blocks(num_members: int, mesh: Mesh | None = None) -> list[slice]:
    """Which members go together."""
    size = 1 if mesh is None and jax.default_backend() == "cpu" else num_members
    return [slice(start, start + size) for start in range(0, num_members, size)]


def cut(tree: Tree, block: slice) -> Tree:
    """A block of arrays whose leading axis is the member."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[block]), tree)


def join(trees: Sequence[Tree]) -> Tree:
    """The inverse of `cut` for all blocks in turn."""
    return jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate([np.asarray(leaf) for leaf in leaves])), *trees)


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], alone: bool = False) -> list[Result]:
    """`function` of each, as many at a time as there are cores.

    Args:
        alone: the first before the others, because it compiles what they share.
    """
    first = [function(item) for item in items[: int(alone)]]
    rest = items[len(first) :]
    workers = min(len(rest), _num_cores())
    if workers < 2:
        return first + [function(item) for item in rest]
    with ThreadPoolExecutor(workers) as pool:
        return first + list(pool.map(function, rest))


def _num_cores() -> int:
    """Cores that this process may use."""
    available: Any = getattr(os, "sched_getaffinity", None)
    return len(available(0)) if available else os.cpu_count() or 1
