"""The distribution of stellar metallicity within one galaxy."""

from __future__ import annotations

import numpy as np
from jaxtyping import Array, Float

from popsed_jax._dsps import calc_lgmet_weights_from_lognormal_mdf

LOG_Z_SUN = -1.6989700043360187  # log10(0.02), the scale of the BC03 templates


def metallicity_weights(
    logzsol: Float[Array, ""], log_met: Float[Array | np.ndarray, " met"], scatter: float
) -> Float[Array, " met"]:
    """Mass fraction on each template metallicity: the same lognormal for all ages. (DSPS, Hearin+23, sec. 2.2)

    Args:
        logzsol: log10(Z / 0.02).
        log_met: log10(Z) of the templates.
        scatter: standard deviation of log10(Z) [dex].
    """
    return calc_lgmet_weights_from_lognormal_mdf(logzsol + LOG_Z_SUN, scatter, log_met)
