"""The coordinates in which networks describe a galaxy: its mass as a deviation from the one that its brightness asks for.

All fluxes are proportional to the mass, so that what photometry fixes best, by far, is the mass that goes with the other
parameters: to the noise over the root of the number of bands. That direction is known without learning. With light l_b in the
bands for a mass of 1e10, and w_b = 1 / variance, the best factor and its error are

    A = sum w f l / sum w l^2,   sigma_A = (sum w l^2)^(-1/2),   v_mass = (log_mass - 10 - log10 A) / (sigma_A / (A ln 10)),

and v_mass is about a standard normal whatever the other parameters are; they stay as they are (u).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from popsed_jax.parameters import ParameterSpace
from popsed_jax.posteriors.survey import LearnedSurvey, Photometry

_REFERENCE = 10.0  # log_mass at which light is taken: near the galaxies', for float32's sake


class Framed(NamedTuple):
    """Galaxies back from a network's coordinates.

    Attributes:
        theta: parameters; a mass outside its bounds stays there.
        flux: noise-free, in all filters [maggies].
        log_det: log |d theta / d v|.
        inside: whether the mass is within its bounds; the others always are.
    """

    theta: Float[Array, "num dim"]
    flux: Float[Array, "num filter"]
    log_det: Float[Array, " num"]
    inside: Array


def to_frame(
    survey: LearnedSurvey, u: Float[Array, "num dim"], photometry: Photometry, flux: Float[Array, "num filter"]
) -> tuple[Float[Array, "num dim"], Float[Array, " num"]]:
    """v of galaxies, and log |d theta / d v|.

    Args:
        photometry: what was observed of each.
        flux: noise-free, of these u [maggies].
    """
    at = survey.space.index("log_mass")
    log_mass = survey.space.to_theta(u)[:, at]
    light = flux[:, : survey.num_bands] * (10.0 ** (_REFERENCE - log_mass))[:, None]
    best, scale = _best_mass(survey, photometry, light)
    others = _without_mass(survey.space)
    log_det = others.log_det(jnp.delete(u, at, axis=1)) + jnp.log(scale)
    return u.at[:, at].set((log_mass - best) / scale), log_det


def from_frame(survey: LearnedSurvey, v: Float[Array, "num dim"], photometry: Photometry) -> Framed:
    """Galaxies of given v.

    Args:
        photometry: what was observed of each.
    """
    space, at = survey.space, survey.space.index("log_mass")
    others = _without_mass(space)
    rest = jnp.delete(v, at, axis=1)
    theta = jnp.insert(others.to_theta(rest), at, _REFERENCE, axis=1)
    light = survey.forward.flux(theta)
    best, scale = _best_mass(survey, photometry, light[:, : survey.num_bands])
    log_mass = best + scale * v[:, at]
    bounds = space["log_mass"]
    return Framed(
        theta.at[:, at].set(log_mass),
        light * (10.0 ** (log_mass - _REFERENCE))[:, None],
        others.log_det(rest) + jnp.log(scale),
        (log_mass > bounds.low) & (log_mass < bounds.high),
    )


def _best_mass(survey: LearnedSurvey, photometry: Photometry, light: Float[Array, "num band"]) -> tuple[Array, Array]:
    """log_mass that the brightness asks for, and its error [dex]."""
    width = jnp.hypot(photometry.error, survey.forward.noise.floor * photometry.flux)
    weighted = jnp.where(photometry.there, light / width, 0.0)
    observed = jnp.where(photometry.there, photometry.flux / width, 0.0)
    power = jnp.maximum(jnp.sum(weighted**2, axis=1), 1e-12)
    error = 1.0 / jnp.sqrt(power)
    # A galaxy that is not seen at all gets the mass at which it would be, at one sigma.
    factor = jnp.maximum(jnp.sum(weighted * observed, axis=1) / power, error)
    return _REFERENCE + jnp.log10(factor), error / (factor * math.log(10.0))


def _without_mass(space: ParameterSpace) -> ParameterSpace:
    """The other parameters."""
    return ParameterSpace(tuple(p for p in space.parameters if p.name != "log_mass"))
