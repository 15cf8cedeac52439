"""An active nucleus: disc, Balmer continuum, broad and narrow lines, hot dust. (Temple, Hewett & Banerji 2021)

The continuum is the published parametric form with its fitted numbers. What the paper carries as tabulated templates is
parametric here: lines are Gaussians with equivalent widths after the SDSS composite (Vanden Berk+01, table 2), iron and
other blends are broad Gaussians, the Balmer continuum is Grandi's (1982). A galaxy gets `f_agn` times its stars' nu L_nu
at 5100 Angstrom, so that 0 is exactly no nucleus and the flux is linear in it.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc
from jaxtyping import Array, Float

from popsed_jax.parameters import Parameter

WAVE_REF = 5100.0  # [Angstrom]: where the spectrum is normalised
_WAVE_DISC = 5500.0  # the paper's unit of the continuum: the disc's L_nu here
_WAVE_DUST = 20_000.0
_WAVE_BALMER = 3000.0  # Grandi 1982's form is scaled here, as in the paper's code
_BALMER_EDGE = 3646.0
_BALMER_TEMPERATURE = 15_000.0  # [K]; with an optical depth of 1 at the edge (Grandi 1982)
_LYMAN_EDGE = 912.0
_HC_OVER_K = 1.438776877e8  # [Angstrom K]
_LIGHT_KMS = 299_792.458
_FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))  # of a Gaussian, in its standard deviations
_LN_BREAK = 0.02  # width, in ln(wavelength), over which the slopes change: 1.4 % off the sharp break at most

AGN_PARAMETERS = (
    Parameter("f_agn", 0.0, 3.0, "", r"$f_{\rm AGN}$", "nucleus over stars in unattenuated nu L_nu at 5100 Angstrom"),
    Parameter("agn_ebv", 0.0, 1.0, "mag", r"$E(B-V)_{\rm AGN}$", "reddening of the nucleus by its own dust"),
)


class Line(NamedTuple):
    """An emission line or blend.

    Attributes:
        name: ion; brackets as in spectroscopy.
        wave: vacuum wavelength [Angstrom].
        broad, narrow: equivalent widths of the two components over the disc [Angstrom].
        width: the broad component's width over the configuration's.
    """

    name: str
    wave: float
    broad: float
    narrow: float = 0.0
    width: float = 1.0


# Sums of broad and narrow after Vanden Berk+01, table 2. It does not split them: narrow H beta is a tenth of [O III]
# 5008, as in Seyfert 2 nuclei (Veilleux & Osterbrock 1987), the other Balmer lines scale with it by about case B.
LINES: tuple[Line, ...] = (
    Line("O VI", 1033.83, 9.77, width=0.9),
    Line("Ly alpha", 1215.67, 92.91, width=1.9),
    Line("O I + Si II", 1305.42, 1.66, width=0.5),
    Line("C II", 1335.30, 0.60, width=0.4),
    Line("Si IV + O IV]", 1399.41, 8.13, width=1.2),
    Line("C IV", 1549.06, 23.78, width=1.1),
    Line("He II", 1640.42, 0.51, width=0.3),
    Line("C III]", 1908.73, 21.19, width=1.45),
    Line("Mg II", 2798.75, 32.28, width=1.4),
    Line("[Ne V]", 3426.84, 0.0, 1.22),
    Line("[O II]", 3728.48, 0.0, 1.56),
    Line("[Ne III]", 3869.85, 0.0, 1.38),
    Line("H delta", 4102.89, 4.85, 0.20),
    Line("H gamma", 4341.68, 12.12, 0.50),
    Line("H beta", 4862.68, 44.89, 1.32),
    Line("[O III]", 4960.30, 0.0, 3.50),
    Line("[O III]", 5008.24, 0.0, 13.23),
    Line("He I", 5877.29, 4.94),
    Line("H alpha", 6564.61, 185.52, 9.0, width=0.9),
    Line("[S II]", 6718.29, 0.0, 1.65),
    Line("[S II]", 6732.67, 0.0, 1.49),
)
# Iron and the unresolved rest, each many lines wide. Their strengths and `balmer_ratio` were fitted once, together, to the
# median SDSS quasar colours of Richards+01 (table 3; 0.4 <= z <= 2.4, without z = 0.5, 1, 1.5 and 2, which the tests keep) with
# the host galaxy of Temple+21 added; they stand for all that the paper's templates hold beyond `LINES`.
BLENDS: tuple[Line, ...] = (
    Line("He II + O III] + Al II + Fe II", 1650.0, 50.0, width=4.0),
    Line("Fe III + Fe II", 2080.0, 10.0, width=3.0),
    Line("Fe II", 2480.0, 60.0, width=6.0),
    Line("Fe II", 3000.0, 36.0, width=3.0),
    Line("Fe II", 4575.0, 36.0, width=3.0),
    Line("Fe II", 5290.0, 17.0, width=3.5),
)


@dataclasses.dataclass(frozen=True)
class AGNConfig:
    """Shape of the nucleus's spectrum; the defaults are those of Temple+21 where the paper has them.

    Args:
        slope_blue, slope_red: d ln L_nu / d ln nu of the disc on either side of `wave_break`.
        wave_break: where the two meet [Angstrom].
        slope_uv: below `wave_uv` (plslp1 + plstep of the paper).
        wave_uv: where the far-ultraviolet slope begins [Angstrom].
        slope_ionising: below 912 Angstrom (Lusso+15: -1.70). The paper sets the light there to zero; that is the gas
            in between, not the nucleus, and belongs to the intergalactic medium.
        dust_temperature: of the hot dust's blackbody [K].
        dust_ratio: its L_nu at 2 micron over the disc's at 5500 Angstrom (bbnorm, in the units of the paper's code).
        balmer_ratio: Balmer continuum's L_nu at 3000 Angstrom over the disc's.
        blend_scale: multiplies the equivalent widths of `BLENDS`.
        line_scale: multiplies the equivalent widths of `LINES`.
        broad_width, narrow_width: full widths at half maximum [km/s].
    """

    slope_blue: float = -0.349
    slope_red: float = 0.593
    wave_break: float = 3880.0
    slope_uv: float = -1.349
    wave_uv: float = 1200.0
    slope_ionising: float = -1.70
    dust_temperature: float = 1243.6
    dust_ratio: float = 3.961
    balmer_ratio: float = 0.19
    blend_scale: float = 1.0
    line_scale: float = 1.0
    broad_width: float = 6000.0
    narrow_width: float = 500.0

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        values = dataclasses.asdict(self)
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(f"agn: {name} = {value} must be finite")
            if name.startswith("slope") and abs(value) > 5.0:
                raise ValueError(f"agn: {name} = {value} is not between -5 and 5")
            if name.endswith(("ratio", "scale")) and value < 0.0:
                raise ValueError(f"agn: {name} = {value} is negative")
        if not _LYMAN_EDGE < self.wave_uv < self.wave_break:
            raise ValueError(
                f"agn: wave_uv = {self.wave_uv} Angstrom must lie between 912 and wave_break = {self.wave_break}"
            )
        if not 100.0 <= self.dust_temperature <= 3000.0:
            raise ValueError(f"agn: dust_temperature = {self.dust_temperature} K is not between 100 and 3000")
        if not 10.0 <= self.narrow_width < self.broad_width <= 30_000.0:
            raise ValueError(
                f"agn: narrow_width = {self.narrow_width} must be at least 10 km/s and below broad_width = "
                f"{self.broad_width}, which must be at most 30000"
            )


class AGNComponents(NamedTuple):
    """Parts of the spectrum; `disc` is 1 at 5500 Angstrom, the others are in its unit."""

    disc: Float[Array, " wave"]
    balmer: Float[Array, " wave"]
    blends: Float[Array, " wave"]
    lines: Float[Array, " wave"]
    hot_dust: Float[Array, " wave"]

    @property
    def total(self) -> Float[Array, " wave"]:
        """Their sum."""
        return self.disc + self.balmer + self.blends + self.lines + self.hot_dust


def disc(wave: Float[Array | np.ndarray, " wave"], config: AGNConfig) -> Float[Array, " wave"]:
    """L_nu of the accretion disc, 1 at 5500 Angstrom: power laws that join smoothly. (Temple+21)"""
    breaks = (config.wave_break, config.wave_uv, _LYMAN_EDGE)
    slopes = (config.slope_red, config.slope_blue, config.slope_uv, config.slope_ionising)

    def log_shape(ln_wave: Array) -> Array:
        # Each softplus is 0 redward of its break and the distance to it blueward.
        shape = -slopes[0] * ln_wave
        for place, redward, blueward in zip(breaks, slopes[:-1], slopes[1:], strict=True):
            bend = _LN_BREAK * jax.nn.softplus((math.log(place / _WAVE_DISC) - ln_wave) / _LN_BREAK)
            shape = shape + (blueward - redward) * bend
        return shape

    return jnp.exp(log_shape(jnp.log(jnp.asarray(wave) / _WAVE_DISC)) - log_shape(jnp.zeros(())))


def hot_dust(wave: Float[Array | np.ndarray, " wave"], config: AGNConfig) -> Float[Array, " wave"]:
    """L_nu of the hot dust's blackbody, in units of the disc at 5500 Angstrom. (Temple+21)"""
    return config.dust_ratio * _planck(jnp.asarray(wave), config.dust_temperature, _WAVE_DUST)


def balmer_continuum(wave: Float[Array | np.ndarray, " wave"], config: AGNConfig) -> Float[Array, " wave"]:
    """L_nu of partly opaque bound-free hydrogen, its edge broadened by the gas's motion. (Grandi 1982)"""
    wave = jnp.asarray(wave)

    def shape(at: Array) -> Array:
        # The depth matters blueward only; redward it is held at the edge, where the step below removes the light.
        return -jnp.expm1(-jnp.minimum((at / _BALMER_EDGE) ** 3, 2.0)) * _planck(at, _BALMER_TEMPERATURE, _WAVE_BALMER)

    sigma = config.broad_width / _FWHM / _LIGHT_KMS
    edge = 0.5 * erfc(jnp.log(wave / _BALMER_EDGE) / (math.sqrt(2.0) * sigma))
    here = jnp.full((1,), _WAVE_BALMER)
    return config.balmer_ratio * disc(here, config) * edge * shape(wave) / shape(here)


def lines(wave: Float[Array | np.ndarray, " wave"], config: AGNConfig) -> Float[Array, " wave"]:
    """L_nu of `LINES`, in units of the disc at 5500 Angstrom: Gaussians in ln(wavelength)."""
    return config.line_scale * _gaussians(jnp.asarray(wave), LINES, config)


def blends(wave: Float[Array | np.ndarray, " wave"], config: AGNConfig) -> Float[Array, " wave"]:
    """L_nu of `BLENDS`, in units of the disc at 5500 Angstrom."""
    return config.blend_scale * _gaussians(jnp.asarray(wave), BLENDS, config)


def agn_components(wave: Float[Array | np.ndarray, " wave"], config: AGNConfig) -> AGNComponents:
    """The parts of the unreddened spectrum, for plots and tests.

    Args:
        wave: rest wavelength [Angstrom], any grid within 91 Angstrom to 1 mm.
        config: the shape.
    """
    return AGNComponents(
        disc=disc(wave, config),
        balmer=balmer_continuum(wave, config),
        blends=blends(wave, config),
        lines=lines(wave, config),
        hot_dust=hot_dust(wave, config),
    )


@partial(jax.jit, static_argnames="config")
def agn_spectrum(wave: Float[Array | np.ndarray, " wave"], config: AGNConfig) -> Float[Array, " wave"]:
    """L_nu of an unreddened nucleus whose nu L_nu at 5100 Angstrom is 1 Lsun [Lsun/Hz].

    Args:
        wave: rest wavelength [Angstrom], 91 Angstrom to 1 mm.
        config: the shape.

    Notes:
        Below 912 Angstrom the slope steepens and nothing is absorbed: that is left to the gas on the way. The far
        infrared is the tails of disc and hot dust only: no cooler torus, no synchrotron.

    References:
        arXiv:2109.04472, arXiv:astro-ph/0105231.
    """
    frequency = _LIGHT_KMS * 1e13 / WAVE_REF  # [Hz]
    at_ref = agn_components(jnp.full((1,), WAVE_REF), config).total
    return agn_components(wave, config).total / (at_ref * frequency)


@jax.jit
def agn_transmission(wave: Float[Array | np.ndarray, " wave"], agn_ebv: Float[Array, ""]) -> Float[Array, " wave"]:
    """Transmitted fraction of the nucleus's own dust: no 2175 Angstrom bump, R_V = 3.1. (Temple+21)

    Two power laws that meet at 1950 Angstrom reproduce the curve tabulated with the paper to 1e-4 in A/E(B-V) between
    500 and 6000 Angstrom; in the infrared they go on falling where the table levels off (0.54 beyond 2.5 micron).

    Args:
        wave: rest wavelength [Angstrom].
        agn_ebv: E(B-V) of the nucleus [mag], >= 0.
    """
    wave = jnp.asarray(wave)
    optical = 3.1 * (wave / 5500.0) ** -1.15
    ultraviolet = 14.37748 * (wave / 1000.0) ** -0.9 + 2.33280
    return 10.0 ** (-0.4 * agn_ebv * jnp.where(wave > 1950.0, optical, ultraviolet))


def nu_lum_nu(
    wave: Float[Array | np.ndarray, " wave"], lum_nu: Float[Array, " wave"], at: float = WAVE_REF
) -> Float[Array, ""]:
    """nu L_nu of a spectrum at one wavelength, linear between its points [Lsun]."""
    return jnp.interp(jnp.asarray(at), jnp.asarray(wave), lum_nu) * (_LIGHT_KMS * 1e13 / at)


def agn_lum_nu(
    wave: Float[Array | np.ndarray, " wave"],
    f_agn: Float[Array, ""],
    agn_ebv: Float[Array, ""],
    stars_nu_lum: Float[Array, ""],
    config: AGNConfig,
) -> Float[Array, " wave"]:
    """L_nu that a galaxy's nucleus adds to its stars [Lsun/Hz].

    Args:
        wave: rest wavelength [Angstrom].
        f_agn: the nucleus's nu L_nu at 5100 Angstrom over the stars', both before attenuation; 0 is none.
        agn_ebv: reddening of the nucleus by its own dust [mag].
        stars_nu_lum: nu L_nu of the unattenuated stars at 5100 Angstrom [Lsun], see `nu_lum_nu`.
        config: the shape.

    Notes:
        Linear in `f_agn` and in `stars_nu_lum`: the gradient at 0 is the nucleus's spectrum itself. The gradient in `agn_ebv`
        vanishes with `f_agn`.
    """
    return f_agn * stars_nu_lum * agn_spectrum(wave, config) * agn_transmission(wave, agn_ebv)


def _planck(wave: Array, temperature: float, at: float) -> Array:
    """B_nu over its value at one wavelength. Only falling exponentials: B_nu overflows float32 below 200 Angstrom."""
    x, x_at = _HC_OVER_K / (temperature * wave), _HC_OVER_K / (temperature * at)
    return (at / wave) ** 3 * jnp.exp(x_at - x) * (-math.expm1(-x_at)) / (-jnp.expm1(-x))


def _gaussians(wave: Array, table: tuple[Line, ...], config: AGNConfig) -> Array:
    """Sum over a table: equivalent width x disc at the line, spread over ln(wavelength)."""
    centre = jnp.array([line.wave for line in table])
    continuum = disc(centre, config)
    total = jnp.zeros_like(wave)
    for width, equivalent in (
        ([config.broad_width * line.width for line in table], [line.broad for line in table]),
        ([config.narrow_width] * len(table), [line.narrow for line in table]),
    ):
        sigma = jnp.array(width) / _FWHM / _LIGHT_KMS
        offset = jnp.log(wave[:, None] / centre) / sigma
        peak = jnp.array(equivalent) / centre * continuum / (sigma * math.sqrt(2.0 * math.pi))
        total = total + jnp.exp(-0.5 * offset**2) @ peak
    return total
