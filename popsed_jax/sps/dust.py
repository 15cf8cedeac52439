"""Dust attenuation: a birth cloud around young stars and a diffuse screen for all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax._dsps import RV_C00, noll09_k_lambda

AttenuationName = Literal["kriek_conroy", "calzetti", "power_law", "smc"]

WAVE_V = 5500.0  # [Angstrom]
WAVE_FAR_UV = 912.0  # [Angstrom]: no law is measured at shorter wavelengths
AGE_BIRTH_CLOUD = 0.01  # [Gyr]: stars younger than this see the birth cloud (Charlot & Fall 2000)
SLOPE_CF00 = -0.7  # of the power law (Charlot & Fall 2000)

# Amplitude, wavelength [micron], b and n of each term of the SMC's extinction. (Pei 1992, table 4)
_SMC_TERMS = (
    (185.0, 0.042, 90.0, 2),
    (27.0, 0.08, 5.50, 4),
    (0.005, 0.22, -1.95, 2),
    (0.010, 9.7, -1.95, 2),
    (0.012, 18.0, -1.80, 2),
    (0.030, 25.0, 0.00, 2),
)


@partial(jax.jit, static_argnames="law")
def diffuse_optical_depth(
    wave: Float[Array | np.ndarray, " wave"],
    tau_v: Float[Array, ""],
    dust_index: Float[Array, ""],
    law: str = "kriek_conroy",
) -> Float[Array, " wave"]:
    """Optical depth of the diffuse dust.

    Args:
        wave: rest wavelength [Angstrom], positive.
        tau_v: optical depth at 5500 Angstrom.
        dust_index: slope offset delta: the law times (wave / 5500)^delta; 0 is the law as published, negative is steeper.
        law: one of

            - "kriek_conroy": Calzetti's with a 2175 Angstrom bump tied to the slope (Kriek & Conroy 2013, eq. 1-3). Within
              1 % of tau_v at 5500 Angstrom, for k + bump is divided by 4.05; the others are exact there.
            - "calzetti": starbursts, without a bump (Calzetti+00, eq. 4; below 1500 Angstrom Leitherer+02, eq. 14).
            - "power_law": (wave / 5500)^(-0.7 + delta) (Charlot & Fall 2000).
            - "smc": extinction in the Small Magellanic Cloud (Pei 1992, eq. 20 and table 4).

    Raises:
        ValueError: a law of another name.

    Notes:
        Calzetti's curve falls to zero at 3.1 micron, and "kriek_conroy" and "calzetti" are zero beyond. Below 912 Angstrom
        every law goes on in proportion to Pei's fit, which is made to hold in X-rays, and is tilted no further:
        extrapolated polynomials are 850 tau_v at 91 Angstrom, where grains are nearly transparent.
    """
    if law not in get_args(AttenuationName):
        raise ValueError(f"no attenuation law {law!r}; choose one of {', '.join(get_args(AttenuationName))}")
    measured = jnp.maximum(wave, WAVE_FAR_UV)
    # The first two of Pei's terms: the others are 2e-4 there, and this is evaluated for every law.
    far_uv = _pei92_smc(wave * 1e-4, 2) / _pei92_smc(WAVE_FAR_UV * 1e-4, 2)
    fall = jnp.where(wave < WAVE_FAR_UV, far_uv, 1.0)
    return tau_v * _LAWS[law](measured, dust_index) * fall


def _kriek_conroy(wave: Float[Array, " wave"], dust_index: Float[Array, ""]) -> Float[Array, " wave"]:
    """Calzetti with free slope and a bump tied to it. (Kriek & Conroy 2013, eq. 1-3)"""
    bump = 0.85 - 1.9 * dust_index  # Kriek & Conroy 2013, eq. 3
    return noll09_k_lambda(wave * 1e-4, bump, dust_index) / RV_C00


def _calzetti(wave: Float[Array, " wave"], dust_index: Float[Array, ""]) -> Float[Array, " wave"]:
    """Calzetti+00, eq. 4, with free slope and no bump. (Noll+09)"""
    return noll09_k_lambda(wave * 1e-4, 0.0, dust_index) / noll09_k_lambda(WAVE_V * 1e-4, 0.0, 0.0)


def _power_law(wave: Float[Array, " wave"], dust_index: Float[Array, ""]) -> Float[Array, " wave"]:
    """A power law. (Charlot & Fall 2000)"""
    return (wave / WAVE_V) ** (SLOPE_CF00 + dust_index)


def _smc(wave: Float[Array, " wave"], dust_index: Float[Array, ""]) -> Float[Array, " wave"]:
    """The SMC's extinction curve with free slope."""
    return _pei92_smc(wave * 1e-4) / _pei92_smc(WAVE_V * 1e-4) * (wave / WAVE_V) ** dust_index


def _pei92_smc(micron: Any, num_terms: int = len(_SMC_TERMS)) -> Any:
    """A(lambda) / A(B) in the SMC. (Pei 1992, eq. 20)"""
    return sum(a / ((micron / at) ** n + (at / micron) ** n + b) for a, at, b, n in _SMC_TERMS[:num_terms])


_LAWS: dict[str, Callable[[Array, Array], Array]] = {
    "kriek_conroy": _kriek_conroy,
    "calzetti": _calzetti,
    "power_law": _power_law,
    "smc": _smc,
}


def birth_cloud_optical_depth(
    wave: Float[Array | np.ndarray, " wave"], tau_birth: Float[Array, ""]
) -> Float[Array, " wave"]:
    """Optical depth of the birth cloud, ``tau_birth * (wave / 5500)**-1``. (Conroy+09 and the FSPS manual, dust1)"""
    return tau_birth * (WAVE_V / wave)


@partial(jax.jit, static_argnames="law")
def transmission(
    wave: Float[Array | np.ndarray, " wave"],
    tau_v: Float[Array, ""],
    tau_birth: Float[Array, ""],
    dust_index: Float[Array, ""],
    law: str = "kriek_conroy",
) -> tuple[Float[Array, " wave"], Float[Array, " wave"]]:
    """Transmitted fractions for stars older and younger than 10 Myr; both see the diffuse dust, of that law."""
    old = jnp.exp(-diffuse_optical_depth(wave, tau_v, dust_index, law))
    return old, old * jnp.exp(-birth_cloud_optical_depth(wave, tau_birth))
