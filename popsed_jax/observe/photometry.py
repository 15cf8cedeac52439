"""Broad-band fluxes of one galaxy, from tables of what is linear in the templates.

The flux through a filter is a sum over templates of (mass fraction) x (template through the filter, dimmed by dust).
Dust is smooth in wavelength, so within a filter it is the polynomial through its values at a few Chebyshev nodes; the
integral of (template x filter x Lagrange polynomial) does not depend on the galaxy and is tabulated in redshift. What
is left for each galaxy is a small contraction. The full integral (`operators.integrate_spectrum`) is the reference; tests
hold the difference down. Gas, dust emission and a nucleus are tabulated alike, and exist only in models that have them; for
the power that dust absorbs, and the stars' light that scales the nucleus, a few nodes at fixed rest wavelengths are added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.observe.filters import load_filter
from popsed_jax.observe.operators import LSUN_PER_HZ_AT_10PC, band_weights, check_reach, enough_nodes, rest_weights
from popsed_jax.sps.agn import agn_transmission
from popsed_jax.sps.dust import transmission
from popsed_jax.sps.galaxy import GalaxyModel
from popsed_jax.sps.sfh import Composition
from popsed_jax.sps.spectrum import locate

MPC_IN_10PC = 1e5


@flax.struct.dataclass
class PhotometryTable:
    """Template fluxes at 10 pc per Msun formed, on (redshift, ..., filter x node).

    Attributes:
        basis: each basis history, split into stars outside (0) and inside (1) the birth cloud.
        ssp: each template age and metallicity.
        gas: each template of the nebular grid.
        dust: the dust's spectra through whole filters, per Lsun.
        agn: the nucleus, for nu L_nu = 1 Lsun at 5100 Angstrom.
        nodes: wavelengths at which attenuation is evaluated [Angstrom]: observed ones of the filters, `num_nodes` of them,
            then rest ones (`operators.rest_weights`), where light is in Lsun.
    """

    basis: Float[Array, "redshift met basis cloud node"]
    ssp: Float[Array, "redshift age met node"]
    gas: Float[Array, "redshift log_u met gas_age node"] | None
    dust: Float[Array, "redshift kind qpah umin filter"] | None
    agn: Float[Array, "redshift filter_node"] | None
    nodes: Float[Array, " node"]
    filters: tuple[str, ...] = flax.struct.field(pytree_node=False)
    num_nodes: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @property
    def num_filters(self) -> int:
        """How many filters."""
        return len(self.filters)


def build_photometry_table(model: GalaxyModel, filters: Sequence[str], tolerance: float = 0.005) -> PhotometryTable:
    """Tabulate templates through filters on the model's redshift grid.

    Args:
        model: the galaxy model.
        filters: names of the filter library or paths of two-column files.
        tolerance: largest error of the dust's interpolation within a filter [mag], over the corners of the model's dust
            bounds and its redshifts; sets how many nodes each filter gets (9 in u, where the bump passes; 3 in an infrared
            filter).

    Raises:
        ValueError: unknown filters; a filter beyond the templates' wavelengths at some redshift of the grid.
    """
    curves = [load_filter(name) for name in filters]
    wave = np.asarray(model.ssp.wave, float)
    redshift = model.grid.redshift
    check_reach(curves, wave, redshift, "the templates'")
    nodes = [enough_nodes(model, curve, tolerance) for curve in curves]
    pairs, igm = list(zip(curves, nodes, strict=True)), model.config.igm
    bands = np.stack([np.concatenate([band_weights(wave, *pair, z, igm) for pair in pairs]) for z in redshift])
    bands *= LSUN_PER_HZ_AT_10PC
    rest_nodes, rest = rest_weights(model)

    def tabulate(spectra: Array | np.ndarray) -> np.ndarray:
        """(redshift, node, template): through the filters, then at the rest wavelengths."""
        flat = np.asarray(spectra, float).reshape(-1, len(wave)).T
        fixed = np.broadcast_to(rest @ flat, (len(redshift), len(rest), flat.shape[1]))
        return np.concatenate([bands @ flat, fixed], axis=1)

    ssp = tabulate(model.ssp.lum_nu).reshape(len(redshift), -1, *model.ssp.lum_nu.shape[:2])
    ages, young = np.asarray(model.basis_ages, float), np.asarray(model.young, float)
    cloud = np.stack([1.0 - young, young])
    gas = dust = agn = None
    if model.gas is not None:
        met, log_u, age, _ = model.gas.lum_nu.shape
        by_node = tabulate(model.gas.lum_nu).reshape(len(redshift), -1, met, log_u, age)
        gas = jnp.asarray(np.transpose(by_node, (0, 3, 2, 4, 1)))
    if model.dust is not None:
        starts = np.cumsum([0, *(len(node) for node in nodes[:-1])])
        whole = np.add.reduceat(bands, starts, axis=1)  # Lagrange polynomials sum to one
        spectra = np.stack([model.dust.single, model.dust.power_law])
        through = whole @ np.asarray(spectra, float).reshape(-1, len(wave)).T
        dust = jnp.asarray(np.transpose(through, (0, 2, 1)).reshape(len(redshift), *spectra.shape[:3], -1))
    if model.agn_lum_nu is not None:
        agn = jnp.asarray(bands @ np.asarray(model.agn_lum_nu, float))
    return PhotometryTable(
        basis=jnp.asarray(np.einsum("zfya,zka,ca->zykcf", ssp, ages, cloud, optimize=True)),
        ssp=jnp.asarray(np.transpose(ssp, (0, 3, 2, 1))),
        gas=gas,
        dust=dust,
        agn=agn,
        nodes=jnp.asarray(np.concatenate([*nodes, rest_nodes])),
        filters=tuple(filters),
        num_nodes=tuple(len(node) for node in nodes),
    )


def flux(table: PhotometryTable, model: GalaxyModel, theta: Float[Array, " dim"]) -> Float[Array, " filter"]:
    """AB flux of one galaxy through each filter [maggies, AB].

    Notes:
        Differentiable in every parameter; piecewise linear in ln(1 + z) between nodes. Against the full integral: see
        `benchmarks/forward.py` and `tests/test_photometry.py`.
    """
    params = model.space.unpack(theta)
    return light_per_mass(table, model, params) * dimming(model, params)


def light_per_mass(table: PhotometryTable, model: GalaxyModel, params: Mapping[str, Array]) -> Float[Array, " filter"]:
    """Redshifted flux of one galaxy at 10 pc per Msun formed [maggies/Msun]: `flux` without `dimming`."""
    redshift = params["redshift"]
    z, up = model.grid.locate(redshift)
    parts, joint = model.composition(params), model.joint_weights(params)
    if model.config.metallicity == "constant" and parts.age_weights is None:
        stars = _separable_light(table, model, parts, model.metallicity_weights(params), z, up)
    else:
        stars = _joint_light(table, model, joint, z, up)
    light = stars if table.gas is None else stars + _gas_light(table, model, params, joint, z, up)
    seen = sum(table.num_nodes)
    rest = jnp.concatenate([table.nodes[:seen] / (1.0 + redshift), table.nodes[seen:]])
    law = model.config.attenuation
    trans = jnp.stack(transmission(rest, params["tau_v"], params["tau_birth"], params["dust_index"], law))
    dimmed = jnp.sum((light * trans)[:, :seen], axis=0)
    if table.agn is not None:
        tabulated = table.agn
        nucleus = _blend(lambda node: tabulated[node], z, up) * agn_transmission(rest[:seen], params["agn_ebv"])
        dimmed = dimmed + params["f_agn"] * stars[:, -1].sum() * nucleus
    per_mass = jnp.stack([part.sum() for part in jnp.split(dimmed, np.cumsum(table.num_nodes)[:-1])])
    if table.dust is not None:
        spectra, weights = table.dust, model.dust_weights(params)
        last = None if table.agn is None else -1
        absorbed = jnp.sum((light * (1.0 - trans))[:, seen:last])
        per_mass = per_mass + absorbed * _blend(lambda node: _weighted_rows(weights, spectra[node]), z, up)
    return per_mass


def _separable_light(
    table: PhotometryTable, model: GalaxyModel, parts: Composition, met: Array, z: Array, up: Array
) -> Float[Array, "cloud node"]:
    """Light outside and inside the birth cloud, the metallicity the same for all ages: bases are tabulated sums of ages."""
    light = _burst_light(table, model, parts.burst_age, met, z, up) * parts.burst_fraction
    num_redshift, num_met, num_basis, *left = table.basis.shape
    if num_basis == 0:
        return light
    rows = table.basis.reshape(num_redshift, num_met * num_basis, -1)
    weights = (met[:, None] * parts.basis).reshape(1, -1)
    return light + few_rows(weights, up, rows, z, jnp.zeros_like(z)).reshape(left)


def _joint_light(
    table: PhotometryTable, model: GalaxyModel, joint: Float[Array, "met age"], z: Array, up: Array
) -> Float[Array, "cloud node"]:
    """Light outside and inside the birth cloud for any weights of the templates."""
    cloud = model.split_by_cloud(joint)
    return _blend(lambda node: jnp.einsum("ayf,cya->cf", table.ssp[node], cloud), z, up)


def _gas_light(
    table: PhotometryTable,
    model: GalaxyModel,
    params: Mapping[str, Array],
    joint: Float[Array, "met age"],
    z: Array,
    up: Array,
) -> Float[Array, "cloud node"]:
    """Light of ionised gas outside and inside the birth cloud, linear in log U between two nodes of the grid."""
    assert model.gas is not None
    assert table.gas is not None
    tabulated = table.gas
    mass = model.gas_weights(params, joint).reshape(2, -1)
    below, part = locate(params["log_u"], model.gas.grid.log_u)

    def contract(node: Array) -> Array:
        rows = tabulated[node, below] * (1.0 - part) + tabulated[node, below + 1] * part
        return mass @ rows.reshape(mass.shape[1], -1)

    return _blend(contract, z, up)


def _burst_light(
    table: PhotometryTable, model: GalaxyModel, age: Array, met: Array, z: Array, up: Array
) -> Float[Array, "cloud node"]:
    """A single-age population, linear in redshift and log age between templates."""
    index, step = model.burst_nodes(age)
    young = model.young[jnp.stack([index, index + 1])]
    cloud = jnp.stack([1.0 - young, young]) * jnp.stack([1.0 - step, step])
    num_redshift, num_age, num_met, _ = table.ssp.shape
    rows = table.ssp.reshape(num_redshift, num_age * num_met, -1)
    return few_rows((cloud[:, :, None] * met).reshape(2, -1), up, rows, z, index * num_met)


def _blend(contract: Callable[[Array], Array], node: Array, fraction: Array) -> Array:
    """Linear interpolation between two redshift nodes of what is contracted there."""
    return contract(node) * (1.0 - fraction) + contract(node + 1) * fraction


@jax.custom_jvp
def few_rows(
    weights: Float[Array, "sum row"], up: Array, table: Float[Array, "redshift all left"], node: Array, start: Array
) -> Float[Array, "sum left"]:
    """Weighted sums of a few rows of a table from `start` on, linear between two redshift nodes.

    Row by row, XLA fuses all on a CPU into one loop that reads the table where it lies; gathering the block first takes
    several times as long. For derivatives the block is the faster one. Not differentiated by the table.
    """
    total = jnp.zeros((weights.shape[0], table.shape[-1]), weights.dtype)
    for k in range(weights.shape[1]):
        total += weights[:, k, None] * (table[node, start + k] * (1.0 - up) + table[node + 1, start + k] * up)
    return total


@few_rows.defjvp
def _few_rows_jvp(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    (weights, up, table, node, start), (d_weights, d_up, *_) = primals, tangents
    num = weights.shape[1]
    corner = (node, start.astype(node.dtype), jnp.zeros_like(node))
    block = jax.lax.dynamic_slice(table, corner, (2, num, table.shape[-1])).reshape(2 * num, -1)
    change = jnp.concatenate([d_weights * (1.0 - up) - weights * d_up, d_weights * up + weights * d_up], axis=1)
    return few_rows(weights, up, table, node, start), jnp.matmul(change, block, precision=jax.lax.Precision.HIGHEST)


def _weighted_rows(weights: Array, rows: Array) -> Array:
    """Sum of many table rows."""
    num, left = weights.size, rows.shape[weights.ndim :]
    return jnp.sum(weights.reshape(num, 1) * rows.reshape(num, math.prod(left)), axis=0).reshape(left)


def dimming(model: GalaxyModel, params: Mapping[str, Array]) -> Float[Array, ""]:
    """(1 + z) M / (d_L / 10 pc)^2, the factor from flux per Msun at 10 pc to observed flux. (Hogg+02, eq. 22)"""
    distance = model.cosmology.luminosity_distance(params["redshift"]) * MPC_IN_10PC
    # Mass and distance in one exponent: neither factor alone fits float32 comfortably.
    return (1.0 + params["redshift"]) * 10.0 ** (params["log_mass"] - 2.0 * jnp.log10(distance))
