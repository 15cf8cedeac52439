"""What is wrong with a galaxy or with its posterior: the bits of a `flags` column."""

from __future__ import annotations

import enum

import numpy as np
from jaxtyping import Int

__all__ = ["DESCRIPTION", "ESTIMATOR_FLAGS", "UNUSABLE", "Flag", "count_flags"]


class Flag(enum.IntFlag):
    """Bits of a `flags` column; a galaxy without any fault has 0."""

    NO_BAND = 1
    FEW_BANDS = 2
    MISSING_BAND = 4
    BAD_ERROR = 8
    BAD_FLUX = 16
    BAD_REDSHIFT = 32
    NOT_CONVERGED = 256
    LOW_ESS = 512
    OUT_OF_DISTRIBUTION = 1024


# Galaxies with one of these have no posterior.
UNUSABLE = Flag.NO_BAND | Flag.FEW_BANDS
# Those that are an estimator's to set; the others follow from the catalogue.
ESTIMATOR_FLAGS = Flag.NOT_CONVERGED | Flag.LOW_ESS | Flag.OUT_OF_DISTRIBUTION

_WORDS = {
    Flag.NO_BAND: "no usable band",
    Flag.FEW_BANDS: "fewer bands than min_bands",
    Flag.MISSING_BAND: "a band is not measured",
    Flag.BAD_ERROR: "an error is zero or negative",
    Flag.BAD_FLUX: "a flux, magnitude or extinction is impossible",
    Flag.BAD_REDSHIFT: "the redshift is negative or impossible",
    Flag.NOT_CONVERGED: "the sampling did not converge",
    Flag.LOW_ESS: "the effective sample size is low",
    Flag.OUT_OF_DISTRIBUTION: "unlike the simulations of the training",
}
DESCRIPTION = "sum of: " + "; ".join(f"{flag.value}, {words}" for flag, words in _WORDS.items())


def count_flags(flags: Int[np.ndarray, " galaxy"]) -> dict[str, int]:
    """How many galaxies have each fault, in words; only those that occur."""
    counts = {words: int(np.count_nonzero(flags & flag.value)) for flag, words in _WORDS.items()}
    return {words: count for words, count in counts.items() if count}
