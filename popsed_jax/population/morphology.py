"""How galaxies of a mass, a star-formation rate and a redshift look: sizes, bulges and inclinations, from the literature."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.cosmology import Cosmology
from popsed_jax.observe.images import Shape

_ARCSEC = 180.0 / np.pi * 3600.0
# Sizes of dwarfs without gas do not follow the steep relation of early types down: they are not smaller than this part of a late
# type's (as in Lange+15, arXiv:1411.6355; the number is a simplification).
_EARLY_LEAST = 0.5


@dataclasses.dataclass(frozen=True)
class MorphologyConfig:
    """Relations between a galaxy's type and its shape.

    Args:
        quenched, active: log10 sSFR [1/yr] up to which a galaxy looks quiescent, and from which it looks star-forming; between
            the two, the bulge's mean share of the light is linear in log10 sSFR, on the logit's scale.
        bulge_quiescent, bulge_star_forming: logit of the bulge's share of the light in the reference band: mean at 10^10.5 Msun,
            and scatter. Of quiescent galaxies 95 % have shares between 0.55 and 0.9. (types and bulges: e.g. Bluck+14,
            arXiv:1403.5269; the numbers are a simplification)
        bulge_mass_slope: of the star-forming mean per dex of mass.
        size_scatter: of both components' radii, one number a galaxy [ln].
        thickness: minor over major axis of a disc seen edge-on (Unterborn & Ryden 2008, arXiv:0801.2400: 0.2).
        flattening: range of the same for bulges.
        dust_inclination: correlation of the rank of a star-forming galaxy's dust with that of its inclination: discs seen
            edge-on are dustier (Maller+09, arXiv:0801.3286).
    """

    quenched: float = -11.0
    active: float = -10.4
    bulge_quiescent: tuple[float, float] = (1.2, 0.5)
    bulge_star_forming: tuple[float, float] = (-1.6, 0.7)
    bulge_mass_slope: float = 0.5
    size_scatter: float = 0.3
    thickness: float = 0.2
    flattening: tuple[float, float] = (0.5, 0.9)
    dust_inclination: float = 0.8

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not self.quenched < self.active:
            raise ValueError(f"morphology: quenched = {self.quenched} must be below active = {self.active}")
        if self.size_scatter < 0.0 or self.bulge_quiescent[1] < 0.0 or self.bulge_star_forming[1] < 0.0:
            raise ValueError("morphology: a scatter must not be negative")
        if not 0.0 < self.thickness <= 1.0:
            raise ValueError(f"morphology: thickness = {self.thickness} must be above 0 and at most 1")
        if not 0.0 < self.flattening[0] < self.flattening[1] <= 1.0:
            raise ValueError(f"morphology: flattening = {self.flattening} must rise within 0 and 1")
        if not 0.0 <= self.dust_inclination < 1.0:
            raise ValueError(f"morphology: dust_inclination = {self.dust_inclination} must be at least 0 and below 1")


class Types(NamedTuple):
    """What a galaxy's shape depends on.

    Attributes:
        log_mass: log10 of the mass in living stars [Msun].
        log_ssfr: log10 of the specific star-formation rate [1/yr].
        tau_v: optical depth of the diffuse dust.
        redshift: of the galaxy.
    """

    log_mass: Float[Array, " galaxy"]
    log_ssfr: Float[Array, " galaxy"]
    tau_v: Float[Array, " galaxy"]
    redshift: Float[Array, " galaxy"]


def late_radius(log_mass: Float[Array, "*galaxy"]) -> Float[Array, "*galaxy"]:
    """Median half-light radius of late types [kpc]. (Shen+03, arXiv:astro-ph/0301527, eq. 18 and table 1)"""
    mass = 10.0**log_mass
    return 0.10 * mass**0.14 * (1.0 + mass / 3.98e10) ** 0.25


def early_radius(log_mass: Float[Array, "*galaxy"]) -> Float[Array, "*galaxy"]:
    """Median half-light radius of early types [kpc]. (Shen+03, eq. 17, with the erratum's 2.88e-6)"""
    return jnp.maximum(2.88e-6 * 10.0 ** (0.56 * log_mass), _EARLY_LEAST * late_radius(log_mass))


def arcsec_per_kpc(redshift: Float[Array, "*galaxy"], cosmology: Cosmology) -> Float[Array, "*galaxy"]:
    """Angle of a proper length. (Hogg 1999, eq. 18)"""
    return _ARCSEC / 1e3 * (1.0 + redshift) / cosmology.comoving_distance(redshift)


def sample_bulge_fraction(key: Array, types: Types, config: MorphologyConfig) -> Float[Array, " galaxy"]:
    """The bulge's share of the light in the reference band."""
    part = jnp.clip((types.log_ssfr - config.quenched) / (config.active - config.quenched), 0.0, 1.0)
    mean = config.bulge_star_forming[0] + config.bulge_mass_slope * (types.log_mass - 10.5)
    mean = part * mean + (1.0 - part) * config.bulge_quiescent[0]
    scatter = part * config.bulge_star_forming[1] + (1.0 - part) * config.bulge_quiescent[1]
    return jax.nn.sigmoid(mean + scatter * jax.random.normal(key, mean.shape))


def sample_inclination(key: Array, types: Types, config: MorphologyConfig) -> Float[Array, " galaxy"]:
    """Cosine of the inclination: uniform over all galaxies of a type, smaller for dustier star-forming ones."""
    num = len(types.tau_v)
    noise = jax.random.normal(key, (num,))
    forming = types.log_ssfr > 0.5 * (config.quenched + config.active)

    def normal_rank(which: Array) -> Array:
        """Normal scores of the dust among some of the galaxies; those left out come after them."""
        order = jnp.argsort(jnp.argsort(jnp.where(which, types.tau_v, jnp.inf)))
        return jax.scipy.special.ndtri((order + 0.5) / jnp.maximum(jnp.sum(which), 1))

    rho = config.dust_inclination
    dusty = rho * jnp.where(forming, normal_rank(forming), 0.0) + np.sqrt(1.0 - rho**2) * noise
    return 1.0 - jax.scipy.special.ndtr(jnp.where(forming, dusty, noise))


def sample_shapes(
    key: Array, types: Types, config: MorphologyConfig, cosmology: Cosmology
) -> tuple[Shape, Float[Array, " galaxy"]]:
    """Shapes of galaxies, oriented at random, and the bulges' shares of their light in the reference band."""
    keys = jax.random.split(key, 5)
    fraction = sample_bulge_fraction(keys[0], types, config)
    cos = sample_inclination(keys[1], types, config)
    flattening = jax.random.uniform(keys[2], cos.shape, minval=config.flattening[0], maxval=config.flattening[1])
    # Each component on the relation of its kind, at its own mass (Lange+16, arXiv:1607.01096).
    share = jnp.clip(jnp.stack([fraction, 1.0 - fraction], axis=1), 0.02, 1.0)
    mass = types.log_mass[:, None] + jnp.log10(share)
    kpc = jnp.stack([early_radius(mass[:, 0]), late_radius(mass[:, 1])], axis=1)
    kpc = kpc * jnp.exp(config.size_scatter * jax.random.normal(keys[3], cos.shape))[:, None]
    shape = Shape(
        radius=kpc * arcsec_per_kpc(types.redshift, cosmology)[:, None],
        axis_ratio=jnp.stack([spheroid_ratio(cos, flattening), spheroid_ratio(cos, config.thickness)], axis=1),
        orientation=jax.random.uniform(keys[4], cos.shape, minval=-0.5 * np.pi, maxval=0.5 * np.pi),
        centre=jnp.zeros((*cos.shape, 2)),
    )
    return shape, fraction


def spheroid_ratio(
    cos: Float[Array, "*galaxy"], flattening: Float[Array, "*galaxy"] | float
) -> Float[Array, "*galaxy"]:
    """Apparent axis ratio of an oblate spheroid. (Hubble 1926)"""
    return jnp.sqrt(flattening**2 + (1.0 - flattening**2) * cos**2)
