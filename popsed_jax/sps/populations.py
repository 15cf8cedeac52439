"""A galaxy as a sum of populations whose light does not depend on how much there is of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from popsed_jax.cosmology import Cosmology
from popsed_jax.sps.config import ModelConfig
from popsed_jax.sps.dust import diffuse_optical_depth
from popsed_jax.sps.galaxy import GalaxyModel
from popsed_jax.sps.sfh import BasisBurst, build_sfh


@dataclasses.dataclass(frozen=True)
class PopulationGroup:
    """Populations that depend on the same parameters.

    Attributes:
        alone: for each population, values of the parameters that say how much there is of each, such that a galaxy is that
            population alone.
        unused: parameters on which none of them depends.
    """

    alone: tuple[tuple[tuple[str, float], ...], ...]
    unused: tuple[str, ...]


_WHOLE = (PopulationGroup(alone=((),), unused=()),)
_KAPPAS = ("kappa1", "kappa2", "kappa3")
_BASES_AND_BURST = (
    PopulationGroup(
        alone=tuple(
            (*((name, 1.0 if i < k else 0.0) for i, name in enumerate(_KAPPAS)), ("f_burst", 0.0))
            for k in range(BasisBurst.num_basis)
        ),
        unused=(*_KAPPAS, "f_burst", "t_burst"),
    ),
    PopulationGroup(alone=((*((name, 0.0) for name in _KAPPAS), ("f_burst", 1.0)),), unused=(*_KAPPAS, "f_burst")),
)


def population_groups(config: ModelConfig) -> tuple[PopulationGroup, ...]:
    """Into what a galaxy's light separates: the bases and the burst, or nothing but the whole galaxy.

    With stars of all ages at the same metallicities everything that shines (gas, warm dust and a nucleus are proportional
    to the stars' light) is linear in the mass of each basis history and of the burst.
    """
    separable = isinstance(build_sfh(config.sfh), BasisBurst) and config.metallicity == "constant"
    return _BASES_AND_BURST if separable else _WHOLE


def population_fractions(model: GalaxyModel, params: Mapping[str, Array]) -> Float[Array, " population"]:
    """Mass fraction of each population, in the order of the groups; sums to one."""
    if population_groups(model.config) is _WHOLE:
        return jnp.ones(1)
    parts = model.composition(params)
    return jnp.append(parts.basis, parts.burst_fraction)


def burst_not_before_the_universe(cosmology: Cosmology, params: Mapping[str, Array]) -> dict[str, Array]:
    """The parameters with the burst no older than the Universe, as the model takes them."""
    values = dict(params)
    if "t_burst" in values:
        values["t_burst"] = jnp.minimum(values["t_burst"], cosmology.age(values["redshift"]))
    return values


def diffuse_screen(
    wave: Float[Array, " wave"], config: ModelConfig, params: Mapping[str, Array]
) -> Float[Array, " wave"]:
    """Optical depth of the diffuse dust, the same for all populations, at rest wavelengths [Angstrom]."""
    return diffuse_optical_depth(wave, params["tau_v"], params["dust_index"], config.attenuation)
