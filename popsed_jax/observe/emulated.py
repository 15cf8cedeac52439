"""Broad-band fluxes of one galaxy from small networks, in place of `popsed_jax.observe.photometry`'s tables.

A network gives ln(flux per Msun formed at 10 pc) of each population (`popsed_jax.sps.populations`): mass, distance and the
mixture of the populations stay exact, so an error is the same at any mass, and no larger for a mixture than for its worst part.
What the diffuse dust does at one wavelength of each filter is exact too, and the network learns the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.observe.filters import load_filter
from popsed_jax.observe.photometry import PhotometryTable, dimming, light_per_mass
from popsed_jax.parameters import Parameter, ParameterSpace
from popsed_jax.sps.dust import diffuse_optical_depth
from popsed_jax.sps.emulator import EmulatorConfig, Feature, Network, default_features, draw_features, init_networks
from popsed_jax.sps.galaxy import GalaxyModel
from popsed_jax.sps.populations import burst_not_before_the_universe, population_fractions, population_groups

_BATCH = 2048  # galaxies whose exact photometry is computed at once
# Behind 40 mag of dust a galaxy is as good as dark, and single precision has no smaller fluxes to tell apart.
FAINTEST = 1e-30


@flax.struct.dataclass
class PhotometryEmulator:
    """Networks for the light of each group of populations through filters.

    Attributes:
        networks: one for each group; outputs are (population, filter), flattened.
        pivots: wavelength of each filter at which the diffuse dust is taken exactly [Angstrom].
        filters: the filters.
        space: the parameters, with the bounds inside which the networks were trained.
    """

    networks: tuple[Network, ...]
    pivots: Float[Array, " filter"]
    filters: tuple[str, ...] = flax.struct.field(pytree_node=False)
    space: ParameterSpace = flax.struct.field(pytree_node=False)


def emulated_flux(
    emulator: PhotometryEmulator, model: GalaxyModel, theta: Float[Array, " dim"]
) -> Float[Array, " filter"]:
    """AB flux of one galaxy through each filter [maggies, AB].

    Notes:
        Differentiable in every parameter. Outside the bounds of `emulator.space` the networks extrapolate, without a sign of
        it. Against the tables: the report of `popsed-jax train-emulator`.
    """
    params = model.space.unpack(theta)
    values = burst_not_before_the_universe(model, params)
    parts = [network(values).reshape(-1, len(emulator.filters)) for network in emulator.networks]
    light = population_fractions(model, params) @ jnp.exp(jnp.concatenate(parts))
    return light * jnp.exp(-_screen(emulator.pivots, model, params)) * dimming(model, params)


def _screen(pivots: Float[Array, " filter"], model: GalaxyModel, params: dict[str, Array]) -> Float[Array, " filter"]:
    """Optical depth of the diffuse dust at one wavelength of each filter."""
    rest = pivots / (1.0 + params["redshift"])
    return diffuse_optical_depth(rest, params["tau_v"], params["dust_index"], model.config.attenuation)


def population_light(
    table: PhotometryTable, model: GalaxyModel, params: dict[str, Array]
) -> tuple[Float[Array, "population filter"], ...]:
    """What the networks learn, exact: ln(flux per Msun at 10 pc) of the populations of each group, without the screen."""
    screen = _screen(pivot_wavelengths(table.filters), model, params)

    def as_arrays(row: tuple[tuple[str, float], ...]) -> dict[str, Array]:
        return {name: jnp.asarray(value) for name, value in row}

    groups = []
    for group in population_groups(model.config):
        # Not a vmap: over an axis of length one XLA's CPU compiler (jax 0.10.2) garbles the last galaxies of a batch.
        alone = [light_per_mass(table, model, params | as_arrays(row)) for row in group.alone]
        groups.append(jnp.log(jnp.maximum(jnp.stack(alone), FAINTEST)) + screen)
    return tuple(groups)


def pivot_wavelengths(filters: Sequence[str]) -> Float[Array, " filter"]:
    """Mean wavelength of each filter, photons counted in ln(wavelength) [Angstrom]."""
    pivots = []
    for name in filters:
        curve = load_filter(name)
        log_wave = np.log(curve.wave)
        pivots.append(np.exp(np.trapezoid(curve.trans * log_wave, log_wave) / np.trapezoid(curve.trans, log_wave)))
    return jnp.asarray(np.array(pivots))


def emulated_parameters(model: GalaxyModel) -> tuple[Parameter, ...]:
    """The parameters that networks need to know: all but the mass."""
    return tuple(p for p in model.space.parameters if p.name != "log_mass")


def group_features(model: GalaxyModel) -> tuple[tuple[Feature, ...], ...]:
    """Inputs of each network."""
    parameters = emulated_parameters(model)
    return tuple(
        default_features([p for p in parameters if p.name not in group.unused])
        for group in population_groups(model.config)
    )


def draw_photometry(
    truth: tuple[PhotometryTable, GalaxyModel, Array], key: Array, num: int
) -> tuple[dict[str, Array], tuple[Array, ...]]:
    """Fresh galaxies and the light of their populations: examples for `popsed_jax.sps.emulator.train_chunk`.

    Args:
        truth: tables, galaxy model, and the fraction of draws from the prior; the others are flat in the features.
    """
    table, model, prior_share = truth
    keys = jax.random.split(key, 3)
    prior = jax.vmap(model.space.unpack)(model.space.sample_flat(keys[0], num))
    flat = draw_features(keys[1], default_features(model.space.parameters), num)
    from_prior = jax.random.uniform(keys[2], (num,)) < prior_share
    params = {name: jnp.where(from_prior, prior[name], flat[name]) for name in model.space.names}
    params = jax.vmap(lambda one: burst_not_before_the_universe(model, one))(params)

    def exact(one: dict[str, Array]) -> tuple[Array, ...]:
        return tuple(part.ravel() for part in population_light(table, model, one))

    return params, jax.lax.map(exact, params, batch_size=min(num, _BATCH))


def init_photometry_emulator(
    key: Array, table: PhotometryTable, model: GalaxyModel, config: EmulatorConfig
) -> PhotometryEmulator:
    """An untrained emulator, its outputs scaled to draws of the prior."""
    key_draw, key_network = jax.random.split(key)
    truth = (table, model, jnp.asarray(config.prior_share))
    _, outputs = jax.jit(draw_photometry, static_argnums=2)(truth, key_draw, min(_BATCH, config.chunk_size))
    return PhotometryEmulator(
        init_networks(key_network, group_features(model), outputs, config),
        pivot_wavelengths(table.filters),
        filters=table.filters,
        space=model.space,
    )
