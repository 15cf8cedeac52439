"""Broad-band fluxes of one galaxy from small networks, in place of `popsed_jax.observe.photometry`'s tables.

A `PhotometryEmulator` gives ln(flux per Msun formed at 10 pc) of each population (`popsed_jax.sps.populations`): mass, distance
and the mixture of the populations stay exact, so an error is the same at any mass, and no larger for a mixture than for its
worst part. What the diffuse dust does at one wavelength of each filter is exact too, and the network learns the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.observe.filters import load_filter
from popsed_jax.observe.operators import LSUN_PER_HZ_AT_10PC, band_weights, check_reach
from popsed_jax.observe.photometry import PhotometryTable, dimming, light_per_mass
from popsed_jax.parameters import Parameter, ParameterSpace
from popsed_jax.sps.config import ModelConfig
from popsed_jax.sps.emulator import (
    EmulatorConfig,
    Feature,
    Network,
    default_features,
    draw_examples,
    draw_features,
    init_networks,
)
from popsed_jax.sps.galaxy import GalaxyModel, RedshiftGrid
from popsed_jax.sps.populations import (
    burst_not_before_the_universe,
    diffuse_screen,
    population_fractions,
    population_groups,
)
from popsed_jax.sps.spectra import SpectrumEmulator

_BATCH = 2048  # galaxies whose exact photometry is computed at once
# Behind 40 mag of dust a galaxy is as good as dark, and single precision has no smaller fluxes to tell apart.
FAINTEST = 1e-30


@flax.struct.dataclass
class PhotometryEmulator:
    """Networks for the light of each group of populations through filters.

    Attributes:
        networks: one for each group; outputs are (population, filter), flattened.
        pivots: effective wavelength of each filter, at which the diffuse dust is taken exactly [Angstrom].
        filters: the filters.
        space: the parameters, with the bounds inside which the networks were trained.
        config: what the galaxies are made of that they were trained on.
        ssp_sha256: checksum of their templates.
    """

    networks: tuple[Network, ...]
    pivots: Float[Array, " filter"]
    filters: tuple[str, ...] = flax.struct.field(pytree_node=False)
    space: ParameterSpace = flax.struct.field(pytree_node=False)
    config: ModelConfig = flax.struct.field(pytree_node=False)
    ssp_sha256: str = flax.struct.field(pytree_node=False)


def emulated_flux(
    emulator: PhotometryEmulator, model: GalaxyModel, theta: Float[Array, " dim"]
) -> Float[Array, " filter"]:
    """AB flux of one galaxy through each filter [maggies, AB].

    Notes:
        Differentiable in every parameter. Outside the bounds of `emulator.space` the networks extrapolate, without a sign of
        it. Against the tables: the report of `popsed-jax train-emulator`.
    """
    params = model.space.unpack(theta)
    values = burst_not_before_the_universe(model.cosmology, params)
    parts = [network(values).reshape(-1, len(emulator.filters)) for network in emulator.networks]
    light = population_fractions(model, params) @ jnp.exp(jnp.concatenate(parts))
    return light * jnp.exp(-_screen(emulator.pivots, model, params)) * dimming(model, params)


def _screen(pivots: Float[Array, " filter"], model: GalaxyModel, params: dict[str, Array]) -> Float[Array, " filter"]:
    """Optical depth of the diffuse dust at one wavelength of each filter."""
    return diffuse_screen(pivots / (1.0 + params["redshift"]), model.config, params)


def population_light(
    table: PhotometryTable, model: GalaxyModel, params: dict[str, Array]
) -> tuple[Float[Array, "population filter"], ...]:
    """What the networks learn, exact: ln(flux per Msun at 10 pc) of the populations of each group, without the screen."""
    screen = _screen(pivot_wavelengths(table.filters), model, params)
    groups = population_groups(model.config)
    rows = [dict(row) for group in groups for row in group.alone]
    if len(rows) == 1:
        # Not a vmap: over an axis of length one XLA's CPU compiler (jax 0.10.2) garbles the last galaxies of a batch.
        light = light_per_mass(table, model, params)[None]
    else:
        settings = {name: jnp.array([row[name] for row in rows]) for name in rows[0]}
        light = jax.vmap(lambda alone: light_per_mass(table, model, params | alone))(settings)
    log_light = jnp.log(jnp.maximum(light, FAINTEST)) + screen
    return tuple(jnp.split(log_light, np.cumsum([len(group.alone) for group in groups])[:-1]))


def pivot_wavelengths(filters: Sequence[str]) -> Float[Array, " filter"]:
    """Effective wavelength of each filter [Angstrom]."""
    return jnp.asarray([load_filter(name).effective_wave for name in filters], dtype=float)


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
    params = jax.vmap(lambda one: burst_not_before_the_universe(model.cosmology, one))(params)

    def exact(one: dict[str, Array]) -> tuple[Array, ...]:
        return tuple(part.ravel() for part in population_light(table, model, one))

    return params, jax.lax.map(exact, params, batch_size=min(num, _BATCH))


def init_photometry_emulator(
    key: Array, table: PhotometryTable, model: GalaxyModel, config: EmulatorConfig
) -> PhotometryEmulator:
    """An untrained emulator, its outputs scaled to draws of the prior."""
    key_draw, key_network = jax.random.split(key)
    truth = (table, model, jnp.asarray(config.prior_share))
    _, outputs = draw_examples(draw_photometry, truth, key_draw, config.chunk_size)
    return PhotometryEmulator(
        init_networks(key_network, group_features(model), outputs, config),
        pivot_wavelengths(table.filters),
        filters=table.filters,
        space=model.space,
        config=model.config,
        ssp_sha256=model.ssp.sha256,
    )


def select_filters(emulator: PhotometryEmulator, filters: Sequence[str]) -> PhotometryEmulator:
    """The emulator of some of its filters, in that order.

    Raises:
        ValueError: filters that it does not have, or that have changed since, named.
    """
    missing = [name for name in filters if name not in emulator.filters]
    if missing:
        raise ValueError(
            f"the emulator has no filter {', '.join(missing)}; it has {', '.join(emulator.filters)}. Train one with them."
        )
    chosen = [emulator.filters.index(name) for name in filters]
    pivots = emulator.pivots[jnp.array(chosen)]
    for name, pivot, now in zip(filters, pivots, pivot_wavelengths(filters), strict=True):
        if abs(float(pivot) / float(now) - 1.0) > 1e-5:
            raise ValueError(
                f"filter {name} is not the curve that the emulator was trained with: its effective wavelength is "
                f"{float(now):.2f} Angstrom, it was {float(pivot):.2f}"
            )

    def narrowed(network: Network) -> Network:
        num = network.num_outputs // len(emulator.filters)
        rows = jnp.array([k * len(emulator.filters) + i for k in range(num) for i in chosen])
        return network.select_outputs(rows)

    networks = tuple(narrowed(network) for network in emulator.networks)
    return dataclasses.replace(emulator, networks=networks, pivots=pivots, filters=tuple(filters))


def check_coverage(space: ParameterSpace, config: ModelConfig | None, ssp_sha256: str, model: GalaxyModel) -> None:
    """Refuse a galaxy model for which an emulator was not trained: outside its training it is wrong without a sign of it.

    Args:
        space: the emulator's parameters and bounds.
        config: what it was trained on; None for the spectra of another code, which only have parameters.
        ssp_sha256: the templates it was trained on.
        model: what it is to stand in for.

    Raises:
        ValueError: everything that the emulator does not cover, by name.
    """
    problems = []
    for parameter in emulated_parameters(model):
        if parameter.name not in space.names:
            problems.append(f"parameter {parameter.name} is not among its parameters ({', '.join(space.names)})")
            continue
        trained = space[parameter.name]
        slack = 1e-6 * (trained.high - trained.low)  # files may round
        if parameter.low < trained.low - slack or parameter.high > trained.high + slack:
            problems.append(
                f"{parameter.name} reaches from {parameter.low:g} to {parameter.high:g}, and it was trained within "
                f"{trained.low:g} to {trained.high:g}"
            )
    extra = set(space.names) - set(model.space.names) - {"log_mass"}
    problems += [f"its parameter {name} is not one of the model's" for name in sorted(extra)]
    if config is not None:
        for field in dataclasses.fields(config):
            trained_on, asked = getattr(config, field.name), getattr(model.config, field.name)
            if field.name != "ssp" and trained_on != asked:
                problems.append(f"model: {field.name} is {_words(asked)}, and it was trained on {_words(trained_on)}")
        if ssp_sha256 != model.ssp.sha256:
            problems.append(f"model: ssp = {model.config.ssp!r} holds other templates than it was trained on")
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ValueError(f"the emulator does not cover this run; train another, or run without it:\n{listed}")


def _words(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


@flax.struct.dataclass
class SpectrumPhotometry:
    """Filters over emulated spectra.

    Attributes:
        emulator: of the spectra.
        weights: of the spectrum's values in each filter's flux at 10 pc, on nodes in redshift.
        grid: those nodes.
        filters: the filters.
    """

    emulator: SpectrumEmulator
    weights: Float[Array, "redshift filter wave"]
    grid: RedshiftGrid
    filters: tuple[str, ...] = flax.struct.field(pytree_node=False)


def build_spectrum_photometry(
    emulator: SpectrumEmulator, model: GalaxyModel, filters: Sequence[str]
) -> SpectrumPhotometry:
    """Tabulate the integrals through filters on the galaxy model's redshift grid.

    Raises:
        ValueError: unknown filters; a filter beyond the emulator's wavelengths at some redshift of the grid.
    """
    curves = [load_filter(name) for name in filters]
    wave, redshift = np.asarray(emulator.wave, float), model.grid.redshift
    check_reach(curves, wave, redshift, "the emulator's")
    # Lagrange polynomials sum to one, whatever their nodes.
    pairs, igm = [(curve, curve.wave[[0, -1]]) for curve in curves], model.config.igm
    weights = np.stack([[band_weights(wave, *pair, z, igm).sum(axis=0) for pair in pairs] for z in redshift])
    return SpectrumPhotometry(emulator, jnp.asarray(weights * LSUN_PER_HZ_AT_10PC), model.grid, filters=tuple(filters))


def spectrum_flux(
    photometry: SpectrumPhotometry, model: GalaxyModel, theta: Float[Array, " dim"]
) -> Float[Array, " filter"]:
    """AB flux of one galaxy through each filter from its emulated spectrum [maggies, AB]."""
    params = model.space.unpack(theta)
    spectrum = photometry.emulator.of_params(params | {"log_mass": jnp.zeros(())})
    node, up = photometry.grid.locate(params["redshift"])
    light = photometry.weights[node] @ spectrum * (1.0 - up) + photometry.weights[node + 1] @ spectrum * up
    return light * dimming(model, params)
