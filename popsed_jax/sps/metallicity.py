"""The distribution of stellar metallicity within one galaxy."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax._dsps import calc_lgmet_weights_from_lognormal_mdf

MetallicityName = Literal["constant", "evolving"]
Z_START = 1e-4  # of the first stars when the metallicity evolves: ProSpect's default, and the poorest BC03 templates
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


def evolving_metallicity(logzsol: Float[Array, ""], age_weights: Float[Array, " age"]) -> Float[Array, " age"]:
    """Mean log10(Z / 0.02) of the stars of each template age: Z grows from `Z_START` in step with the mass formed.

    Z(t) = Z_start + (Z_final - Z_start) x (mass formed by t / mass formed): the linear mapping of ProSpect (Robotham+20;
    Bellstedt+20, arXiv:2005.11917), close to a closed box. The mass-weighted mean of Z is half-way for every history.

    Args:
        logzsol: log10(Z / 0.02) of the stars forming at the time of observation.
        age_weights: mass fraction on each template age, the youngest first.
    """
    total = jnp.cumsum(age_weights[::-1])[::-1]
    formed = total - 0.5 * age_weights  # by the middle of the bin, in mass
    final = 10.0 ** (logzsol + LOG_Z_SUN)
    return jnp.log10(Z_START + (final - Z_START) * formed) - LOG_Z_SUN


def evolving_weights(
    logzsol: Float[Array, ""],
    age_weights: Float[Array, " age"],
    log_met: Float[Array | np.ndarray, " met"],
    scatter: float,
) -> Float[Array, "met age"]:
    """Mass fraction on each template when Z follows the mass formed: a lognormal about the mean of each age."""
    mean = evolving_metallicity(logzsol, age_weights)
    return jax.vmap(lambda one: metallicity_weights(one, log_met, scatter), out_axes=1)(mean) * age_weights
