"""Which galaxies the survey keeps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from popsed_jax.observe.magnitudes import ab_mag

# A flux at or below zero is undetected; the magnitude of this flux is fainter than any survey's limit.
_FAINTEST = 1e-20  # [maggies], 50 mag


@dataclasses.dataclass(frozen=True)
class MagnitudeLimit:
    """A galaxy is kept with probability Phi((limit - mag) / width).

    Args:
        filter: name of the filter library; it need not be one of the catalogue's bands.
        limit: magnitude at which half are kept [AB mag].
        width: softness of the edge [mag].
    """

    filter: str
    limit: float
    width: float = 0.05

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not math.isfinite(self.limit) or not 0.0 < self.limit < 40.0:
            raise ValueError(f"selection: limit = {self.limit} in {self.filter} is no AB magnitude between 0 and 40")
        if not self.width > 0.0:
            raise ValueError(f"selection: width = {self.width} in {self.filter} must be positive")


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """The survey's cuts; a galaxy must pass all. None at all keeps everything.

    Args:
        limits: magnitude limits.
    """

    limits: tuple[MagnitudeLimit, ...] = ()

    @property
    def filters(self) -> tuple[str, ...]:
        """Filters that the limits look at."""
        return tuple(dict.fromkeys(limit.filter for limit in self.limits))


def detection_probability(
    flux: Float[Array, "*batch filter"], filters: Sequence[str], selection: SelectionConfig
) -> Float[Array, "*batch"]:
    """Probability that the survey keeps a galaxy.

    Args:
        flux: [maggies], in the order of `filters`.
        filters: must contain every filter of the selection.

    Raises:
        ValueError: a limit in a filter that is not there.
    """
    probability = jnp.ones(flux.shape[:-1])
    for limit in selection.limits:
        if limit.filter not in filters:
            raise ValueError(f"selection in {limit.filter}, which is not among the filters {', '.join(filters)}")
        mag = ab_mag(jnp.maximum(flux[..., list(filters).index(limit.filter)], _FAINTEST))
        probability = probability * norm.cdf((limit.limit - mag) / limit.width)
    return probability
