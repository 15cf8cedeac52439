"""Diffstar: star formation fed by the accretion of a dark-matter halo, and quenched. (Alarcon+23, arXiv:2205.04273)

The halo grows along a Diffmah track (Hearin+21, arXiv:2105.05859). A fixed fraction of what it accretes is gas that turns
into stars over a consumption time; how much of it does depends on the halo's mass; a quenching event lowers the rate, and
part of it may return. A history is normalised to the mass formed, so the baryon fraction and the peak efficiency drop out.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.parameters import Parameter

LOG_T0 = float(np.log10(13.8))  # pivot of the halo tracks, log10 Gyr: the convention of both papers' code
MAH_SPEED = 3.5  # k of the roll from the early to the late index [1/dex] (Hearin+21)
# The efficiency: the critical mass at its customary value, as photometry sees only the halo's mass relative to it; slopes
# on both sides and the speed of the turn-over are the defaults of the authors' code (Alarcon+23).
LOG_CRITICAL_MASS = 12.0
SLOPE_LOW, SLOPE_HIGH, EFFICIENCY_SPEED = 1.0, -1.0, 9.0
CONSUMPTION_MAX = 20.0  # [Gyr], at which the consumption of gas is symmetric in time
EARLIEST = 1e-3  # [Gyr] of cosmic time; the tracks are powers of time, whose logarithm must stay finite
_LAGS, _LAG_WEIGHTS = np.polynomial.legendre.leggauss(8)

PARAMETERS = (
    Parameter("log_mhalo", 11.0, 15.0, "dex(Msun)", r"$\log M_{\rm h}$", "log10 halo mass at 13.8 Gyr of cosmic time"),
    Parameter("log_t_halo", -0.3, 0.9, "dex(Gyr)", r"$\log t_{\rm c}$", "log10 cosmic time at which the halo slows"),
    Parameter("mah_early", 1.0, 5.0, "", r"$\alpha_{\rm early}$", "index of the halo's early growth"),
    Parameter("mah_late", 0.0, 1.0, "", r"$\alpha_{\rm late}$", "index of the halo's late growth"),
    Parameter("log_tau_gas", -1.0, 1.3, "dex(Gyr)", r"$\log \tau_{\rm cons}$", "log10 time to consume accreted gas"),
    Parameter("log_t_quench", 0.1, 2.0, "dex(Gyr)", r"$\log t_{\rm q}$", "log10 cosmic time of the deepest quenching"),
    Parameter("log_quench_span", -1.5, -0.1, "", r"$\log \Delta_{\rm q}$", "log10 of the quenching's duration in dex"),
    Parameter("log_quench", -3.0, 0.0, "dex", r"$\log q$", "log10 of the deepest drop of the star-formation rate"),
    Parameter("rejuvenation", 0.0, 1.0, "", r"$f_{\rm rejuv}$", "fraction of the drop, in dex, that is recovered"),
)


def halo_log_mass(params: Mapping[str, Array], log_t: Float[Array, "*time"]) -> Float[Array, "*time"]:
    """log10 halo mass [Msun] at log10 cosmic time [Gyr]: a power of time with a rolling index. (Hearin+21, eq. 1)"""
    index, _ = _halo_index(params, log_t)
    return params["log_mhalo"] + index * (log_t - LOG_T0)


def halo_growth(params: Mapping[str, Array], t: Float[Array, "*time"]) -> Float[Array, "*time"]:
    """Halo accretion rate over the mass at 13.8 Gyr [1/Gyr]: the derivative of `halo_log_mass`."""
    log_t = jnp.log10(t)
    index, change = _halo_index(params, log_t)
    slope = index + change * (log_t - LOG_T0)  # d log M / d log t
    # Haloes do not shrink: after the pivot a falling index could make the track do so.
    return jnp.maximum(slope, 0.0) * 10.0 ** (index * (log_t - LOG_T0)) / t


def _halo_index(params: Mapping[str, Array], log_t: Array) -> tuple[Array, Array]:
    """The rolling index and its derivative in log time. (Hearin+21)"""
    step = params["mah_late"] - params["mah_early"]
    roll = jax.nn.sigmoid(MAH_SPEED * (log_t - params["log_t_halo"]))
    return params["mah_early"] + step * roll, MAH_SPEED * step * roll * (1.0 - roll)


def log_efficiency(log_mass: Float[Array, "*time"]) -> Float[Array, "*time"]:
    """log10 of the fraction of gas that turns into stars, over its value at the critical mass. (Alarcon+23)"""
    x = log_mass - LOG_CRITICAL_MASS
    return x * (SLOPE_LOW + (SLOPE_HIGH - SLOPE_LOW) * jax.nn.sigmoid(EFFICIENCY_SPEED * x))


def consumption(lag: Float[Array, "*time"], tau: Float[Array, ""]) -> Float[Array, "*time"]:
    """Relative rate at which gas turns into stars a time `lag` [Gyr] in [0, tau] after it came: a triweight that peaks at
    once for short consumption times and half-way for the longest. (Alarcon+23)
    """
    peak = 0.5 * tau**2 / CONSUMPTION_MAX
    return jnp.maximum(1.0 - ((lag - peak) / (tau - peak)) ** 2, 0.0) ** 3


def log_quenching(params: Mapping[str, Array], log_t: Float[Array, "*time"]) -> Float[Array, "*time"]:
    """log10 of the drop of the star-formation rate: down to `log_quench` at `log_t_quench`, then up again.

    (Alarcon+23)
    """
    half = 0.5 * 10.0 ** params["log_quench_span"]
    phase = (log_t - params["log_t_quench"]) / half  # -1 to 0 on the way down, 0 to 1 on the way up
    down, up = _smooth_step(phase), _smooth_step(phase - 1.0)
    return params["log_quench"] * (down - params["rejuvenation"] * up)


def _smooth_step(x: Array) -> Array:
    """From 0 at x = -1 to 1 at x = 0: the integral of a triweight, a polynomial with three smooth derivatives."""
    y = jnp.clip(2.0 * x + 1.0, -1.0, 1.0)
    return 0.5 + (35.0 * y - 35.0 * y**3 + 21.0 * y**5 - 5.0 * y**7) / 32.0


def star_formation_rate(params: Mapping[str, Array], t: Float[Array, "*time"]) -> Float[Array, "*time"]:
    """Star-formation rate at cosmic time t [Gyr], in units that do not depend on t. (Alarcon+23)

    The gas at hand is the accretion convolved with its consumption, by an 8-point Gauss rule over the lags from zero to the
    consumption time or the Big Bang.
    """
    t = jnp.maximum(t, EARLIEST)
    tau = 10.0 ** params["log_tau_gas"]
    longest = jnp.minimum(tau, t)
    lag = longest[..., None] * jnp.asarray(0.5 * (1.0 + _LAGS))
    accreted = halo_growth(params, jnp.maximum(t[..., None] - lag, 1e-2 * EARLIEST))
    gas = longest / tau * ((accreted * consumption(lag, tau)) @ jnp.asarray(0.5 * _LAG_WEIGHTS))
    log_t = jnp.log10(t)
    return gas * 10.0 ** (log_efficiency(halo_log_mass(params, log_t)) + log_quenching(params, log_t))
