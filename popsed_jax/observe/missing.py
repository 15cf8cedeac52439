"""Missing bands as part of the observing conditions: a simulated galaxy lacks the bands that a real one like it lacks.

Whether a galaxy lacks a band may depend on where it is and on how bright it is in the band that most galaxies have, the
anchor; not on what the missing band would have shown (missing at random given the anchor: Rubin 1976).
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from popsed_jax._random import evenly_spaced

# A pattern is that of one of so many neighbours in brightness to either side: enough to vary, few enough to follow the anchor.
_NEIGHBOURS = 25
_MAX_ANCHORED, _MAX_WITHOUT = 16384, 4096  # real galaxies whose patterns simulated ones may have


@flax.struct.dataclass
class MissingBands:
    """Patterns of the bands that galaxies have.

    Attributes:
        patterns: which bands each kind of galaxy has.
        anchor_flux: of the real galaxies that have the anchor, increasing [maggies].
        pattern: of those galaxies, in the same order, then of those without the anchor.
        without: share of the galaxies that lack the anchor.
        anchor: number of the anchor band.
    """

    patterns: Bool[Array, "pattern band"]
    anchor_flux: Float[Array, " anchored"]
    pattern: Int[Array, " galaxy"]
    without: Float[Array, ""]
    anchor: int = flax.struct.field(pytree_node=False)

    def draw(self, key: Array, observed: Float[Array, "num band"]) -> Int[Array, " num"]:
        """The pattern of galaxies with these observed fluxes: that of a real galaxy as bright in the anchor."""
        num, anchored, total = observed.shape[0], self.anchor_flux.shape[0], self.pattern.shape[0]
        keys = jax.random.split(key, 3)
        rank = jnp.searchsorted(self.anchor_flux, observed[:, self.anchor])
        near = rank + jax.random.randint(keys[0], (num,), -_NEIGHBOURS, _NEIGHBOURS + 1)
        row = jnp.clip(near, 0, anchored - 1)
        if anchored < total:
            without = jax.random.randint(keys[1], (num,), anchored, total)
            row = jnp.where(jax.random.uniform(keys[2], (num,)) < self.without, without, row)
        return self.pattern[row]


def band_patterns(
    flux: Float[np.ndarray, "galaxy band"],
) -> tuple[Bool[np.ndarray, "pattern band"], Int[np.ndarray, " galaxy"]]:
    """The patterns of bands that galaxies have, and the number of each galaxy's.

    Args:
        flux: NaN where a galaxy lacks the band; magnitudes serve too.
    """
    patterns, pattern = np.unique(np.isfinite(flux), axis=0, return_inverse=True)
    return patterns, pattern.reshape(-1).astype(np.int32)


def build_missing_bands(flux: Float[np.ndarray, "galaxy band"]) -> MissingBands | None:
    """Which bands galaxies of a catalogue lack; None: no galaxy lacks one.

    Args:
        flux: [maggies], NaN where a galaxy lacks the band.
    """
    present = np.isfinite(flux)
    if present.all():
        return None
    patterns, pattern = band_patterns(flux)
    anchor = int(np.argmax(present.sum(axis=0)))
    having = np.flatnonzero(present[:, anchor])
    having = having[np.argsort(flux[having, anchor], kind="stable")]
    without = np.flatnonzero(~present[:, anchor])
    having = having[evenly_spaced(len(having), _MAX_ANCHORED)]
    order = np.concatenate([having, without[evenly_spaced(len(without), _MAX_WITHOUT)]])
    return MissingBands(
        patterns=jnp.asarray(patterns),
        anchor_flux=jnp.asarray(flux[having, anchor]),
        pattern=jnp.asarray(pattern[order]),
        without=jnp.asarray(len(without) / len(flux)),
        anchor=anchor,
    )
