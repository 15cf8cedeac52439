"""Where a fit's arrays lie: members and draws spread over the devices of one process, or of several.

The program of an epoch is the same everywhere. Members share nothing, so they go to different devices as far as their number and
the devices' have a common divisor; the draws of each member are spread over the devices that remain, and XLA moves what the
transport needs between them. Random numbers do not depend on the layout: the same fit, up to the order of sums.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

Tree = TypeVar("Tree")
MEMBER, DRAW = "member", "draw"


def device_mesh(num_members: int) -> Mesh | None:
    """All devices of all processes, as (member, draw); None where there is but one."""
    devices = jax.devices()
    if len(devices) == 1:
        return None
    return Mesh(np.array(devices).reshape(math.gcd(num_members, len(devices)), -1), (MEMBER, DRAW))


def place(tree: Tree, mesh: Mesh | None, by_member: bool = False) -> Tree:
    """Put arrays onto the mesh: every device has them, or (`by_member`) its members' part of the leading axis.

    Every process gives the same values.
    """
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec(MEMBER) if by_member else PartitionSpec())

    def put(leaf: Any) -> Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree)


def fetch(tree: Tree, mesh: Mesh | None) -> Tree:
    """The whole arrays, on this process's first device."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), _everywhere(tree, mesh))


@partial(jax.jit, static_argnames="mesh")
def _everywhere(tree: Tree, mesh: Mesh) -> Tree:
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def spread(u: Float[Array, "num dim"], mesh: Mesh | None) -> Float[Array, "num dim"]:
    """Draws of one member, spread over its devices (in traced code, under a `vmap` over members).

    A number of draws that the devices do not divide stays whole.
    """
    if mesh is None or len(u) % mesh.shape[DRAW]:
        return u
    return jax.lax.with_sharding_constraint(u, NamedSharding(mesh, PartitionSpec(DRAW)))
