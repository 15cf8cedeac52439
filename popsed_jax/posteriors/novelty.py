"""How unlike the simulations that a network learned from a galaxy is: there the network's answer means nothing."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.posteriors.features import Features
from popsed_jax.posteriors.survey import Photometry

_NEIGHBOURS = 8
_NUM_KNOWN = 8192
# A galaxy as unlike as this share of the simulated ones is flagged.
FLAGGED = 1e-3


@flax.struct.dataclass
class Novelty:
    """Distance to the nearest simulated galaxies in magnitudes and colours, against that of simulated galaxies themselves.

    Attributes:
        known: simulated galaxies.
        distances: of other simulated galaxies from these, increasing.
    """

    known: Float[Array, "galaxy axis"]
    distances: Float[Array, " other"]

    def __call__(self, colors: Float[Array, "num axis"]) -> tuple[Float[Array, " num"], Float[Array, " num"]]:
        """Distance over the median simulated galaxy's, and the share of simulated galaxies that are at least as far."""
        distance = _distance(colors, self.known)
        rank = jnp.searchsorted(self.distances, distance)
        num = len(self.distances)
        # One more than are as far: the galaxy itself (a permutation test's p-value, which is never zero).
        return distance / self.distances[num // 2], (num - rank + 1) / (num + 1)


def build_novelty(features: Features, simulated: Photometry) -> Novelty:
    """Half of the simulated galaxies are known, the others are compared with them."""
    colors = np.asarray(features.colors(simulated))[: 2 * _NUM_KNOWN]
    known, others = (jnp.asarray(part) for part in np.array_split(colors, 2))
    return Novelty(known, jnp.sort(jax.lax.map(lambda one: _distance(one[None], known)[0], others, batch_size=512)))


def _distance(colors: Float[Array, "num axis"], known: Float[Array, "galaxy axis"]) -> Float[Array, " num"]:
    """Distance to one of the nearest: not the very nearest, which is one galaxy's chance."""
    squares = jnp.sum(colors**2, axis=1)[:, None] + jnp.sum(known**2, axis=1) - 2.0 * colors @ known.T
    return jnp.sqrt(jnp.maximum(-jax.lax.top_k(-squares, _NEIGHBOURS)[0][:, -1], 0.0))
