"""Broad-band fluxes of one galaxy, from tables of what is linear in the templates.

The flux through a filter is a sum over templates of (mass fraction) x (template through the filter, dimmed by dust).
Dust is smooth in wavelength, so within a filter it is the polynomial through its values at a few Chebyshev nodes; the
integral of (template x filter x Lagrange polynomial) does not depend on the galaxy and is tabulated in redshift. What
is left for each galaxy is a small contraction. The full integral (`integrate_spectrum`) is the reference; tests hold
the difference down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.observe.filters import Filter, load_filter
from popsed_jax.sps.dust import transmission
from popsed_jax.sps.galaxy import GalaxyModel

# One Lsun/Hz at 10 pc, in units of the AB zero flux (3631 Jy); Lsun = 3.828e33 erg/s (IAU 2015 B3), 10 pc in cm.
LSUN_PER_HZ_AT_10PC = 3.828e33 / (4.0 * np.pi * (3.0856775814913674e19) ** 2) / 3.631e-20
MPC_IN_10PC = 1e5


@flax.struct.dataclass
class PhotometryTable:
    """Template fluxes at 10 pc per Msun formed, on (redshift, ..., filter x node).

    Attributes:
        basis: each basis history, split into stars outside (0) and inside (1) the birth cloud.
        ssp: each template age and metallicity.
        nodes: observed wavelengths at which the dust is evaluated [Angstrom].
    """

    basis: Float[Array, "redshift met basis cloud node"]
    ssp: Float[Array, "redshift age met node"]
    nodes: Float[Array, " node"]
    filters: tuple[str, ...] = flax.struct.field(pytree_node=False)
    num_nodes: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @property
    def num_filters(self) -> int:
        """How many filters."""
        return len(self.filters)


def build_photometry_table(model: GalaxyModel, filters: Sequence[str], tolerance: float = 0.006) -> PhotometryTable:
    """Tabulate templates through filters on the model's redshift grid.

    Args:
        model: the galaxy model.
        filters: names of the filter library or paths of two-column files.
        tolerance: largest error of the dust's interpolation within a filter [mag], over the corners of the model's dust
            bounds and its redshifts; sets how many nodes each filter gets (a bump in the filter needs 8, an infrared
            filter 2).

    Raises:
        ValueError: unknown filters; a filter beyond the templates' wavelengths at some redshift of the grid.
    """
    curves = [load_filter(name) for name in filters]
    wave = np.asarray(model.ssp.wave, float)
    redshift = model.grid.redshift
    for curve in curves:
        if curve.wave[0] / (1 + redshift[-1]) < wave[0] or curve.wave[-1] / (1 + redshift[0]) > wave[-1]:
            raise ValueError(
                f"filter {curve.name} ({curve.wave[0]:.0f}-{curve.wave[-1]:.0f} Angstrom) leaves the templates' range "
                f"({wave[0]:.0f}-{wave[-1]:.0f} Angstrom) within redshift {redshift[0]:.3f}-{redshift[-1]:.3f}"
            )
    nodes = [_enough_nodes(model, curve, tolerance) for curve in curves]
    pairs = list(zip(curves, nodes, strict=True))
    operator = np.concatenate([_band_weights(wave, curve, node, z) for z in redshift for curve, node in pairs])
    num_met, num_age, num_wave = model.ssp.lum_nu.shape
    flat = np.asarray(model.ssp.lum_nu, float).reshape(-1, num_wave)
    table = (operator @ flat.T * LSUN_PER_HZ_AT_10PC).reshape(len(redshift), -1, num_met, num_age)
    ages, young = np.asarray(model.basis_ages, float), np.asarray(model.young, float)
    cloud = np.stack([1.0 - young, young])
    basis = np.einsum("zfya,zka,ca->zykcf", table, ages, cloud, optimize=True)
    return PhotometryTable(
        basis=jnp.asarray(basis),
        ssp=jnp.asarray(np.transpose(table, (0, 3, 2, 1))),
        nodes=jnp.asarray(np.concatenate(nodes)),
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
    redshift = params["redshift"]
    z, up = model.grid.locate(redshift)
    if model.config.metallicity == "constant":
        light = _separable_light(table, model, params, z, up)
    else:
        light = _joint_light(table, model, model.joint_weights(params), z, up)
    dust = transmission(table.nodes / (1.0 + redshift), params["tau_v"], params["tau_birth"], params["dust_index"])
    dimmed = jnp.sum(light * jnp.stack(dust), axis=0)
    per_mass = jnp.stack([part.sum() for part in jnp.split(dimmed, np.cumsum(table.num_nodes)[:-1])])
    return per_mass * dimming(model, params)


def _separable_light(
    table: PhotometryTable, model: GalaxyModel, params: Mapping[str, Array], z: Array, up: Array
) -> Float[Array, "cloud node"]:
    """Light outside and inside the birth cloud, the metallicity the same for all ages: bases are tabulated sums of ages."""
    parts = model.composition(params)
    met = model.metallicity_weights(params)
    weights = met[:, None] * parts.basis
    light = _blend(lambda node: _weighted_rows(weights, table.basis[node]), z, up)
    light = light + _burst_light(table, model, parts.burst_age, met, z, up) * parts.burst_fraction
    if parts.age_weights is not None:
        cloud = jnp.stack([parts.age_weights * (1.0 - model.young), parts.age_weights * model.young])
        light = light + _blend(lambda node: jnp.einsum("ayf,ca,y->cf", table.ssp[node], cloud, met), z, up)
    return light


def _joint_light(
    table: PhotometryTable, model: GalaxyModel, joint: Float[Array, "met age"], z: Array, up: Array
) -> Float[Array, "cloud node"]:
    """Light outside and inside the birth cloud for any weights of the templates."""
    cloud = jnp.stack([joint * (1.0 - model.young), joint * model.young])
    return _blend(lambda node: jnp.einsum("ayf,cya->cf", table.ssp[node], cloud), z, up)


def _burst_light(
    table: PhotometryTable, model: GalaxyModel, age: Array, met: Array, z: Array, up: Array
) -> Float[Array, "cloud node"]:
    """A single-age population, linear in redshift and log age between templates."""
    index, step = model.burst_nodes(age)
    light = jnp.zeros((2, table.nodes.shape[0]))

    def contract(age_node: Array, node: Array) -> Array:
        return _weighted_rows(met, table.ssp[node, age_node])

    for age_node, weight in ((index, 1.0 - step), (index + 1, step)):
        row = _blend(partial(contract, age_node), z, up)
        young = model.young[age_node]
        light = light + weight * jnp.stack([(1.0 - young) * row, young * row])
    return light


def _blend(contract: Callable[[Array], Array], node: Array, fraction: Array) -> Array:
    """Linear interpolation between two redshift nodes of what is contracted there."""
    return contract(node) * (1.0 - fraction) + contract(node + 1) * fraction


def _weighted_rows(weights: Array, rows: Array) -> Array:
    """Sum of table rows. Contracted before the redshifts are blended, and as a sum of products rather than a batched
    matrix product: XLA fuses these on a CPU, which `benchmarks/forward.py` times."""
    num, left = weights.size, rows.shape[weights.ndim :]  # num is 0 for histories without bases
    return jnp.sum(weights.reshape(num, 1) * rows.reshape(num, math.prod(left)), axis=0).reshape(left)


def dimming(model: GalaxyModel, params: Mapping[str, Array]) -> Float[Array, ""]:
    """(1 + z) M / (d_L / 10 pc)^2, the factor from flux per Msun at 10 pc to observed flux. (Hogg+02, eq. 22)"""
    distance = model.cosmology.luminosity_distance(params["redshift"]) * MPC_IN_10PC
    # Mass and distance in one exponent: neither factor alone fits float32 comfortably.
    return (1.0 + params["redshift"]) * 10.0 ** (params["log_mass"] - 2.0 * jnp.log10(distance))


def integrate_spectrum(
    wave: np.ndarray, lum_nu: np.ndarray, redshift: float, filters: Sequence[Filter], num_fine: int = 20_000
) -> np.ndarray:
    """The full integral: AB flux at 10 pc [maggies] of a rest-frame spectrum in float64. (Hogg+02, eq. 5)

    Args:
        wave: rest wavelength [Angstrom].
        lum_nu: luminosity [Lsun/Hz], linear between wavelengths.
        redshift: shifts the spectrum; no dimming is applied (see `dimming`).
    """
    fluxes = []
    for curve in filters:
        observed = np.linspace(curve.wave[0], curve.wave[-1], num_fine)
        trans = np.interp(observed, curve.wave, curve.trans) / observed
        spectrum = np.interp(observed / (1.0 + redshift), wave, lum_nu)
        fluxes.append(np.trapezoid(spectrum * trans, observed) / np.trapezoid(trans, observed))
    return np.asarray(fluxes) * LSUN_PER_HZ_AT_10PC


def _chebyshev_nodes(curve: Filter, num: int) -> np.ndarray:
    """Chebyshev nodes of the first kind in ln(wavelength) over the filter."""
    low, high = np.log(curve.wave[0]), np.log(curve.wave[-1])
    angle = np.pi * (np.arange(num) + 0.5) / num
    return np.exp(0.5 * (low + high) + 0.5 * (high - low) * np.cos(angle))


def _band_weights(
    wave: np.ndarray, curve: Filter, nodes: np.ndarray, redshift: float, num_fine: int = 1500
) -> np.ndarray:
    """Weights (node, wave) that integrate spectrum x filter x Lagrange polynomial, the spectrum linear in between."""
    observed, trans, lagrange = _fine_curve(curve, nodes, num_fine)
    rest = observed / (1.0 + redshift)
    cell = np.clip(np.searchsorted(wave, rest) - 1, 0, len(wave) - 2)
    right = (rest - wave[cell]) / (wave[cell + 1] - wave[cell])
    weights = np.zeros((len(nodes), len(wave)))
    for i, values in enumerate(lagrange * trans):
        weights[i] = np.bincount(cell, values * (1.0 - right), len(wave))
        weights[i] += np.bincount(cell + 1, values * right, len(wave))
    return weights


def _fine_curve(curve: Filter, nodes: np.ndarray, num_fine: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observed wavelengths uniform in ln(wavelength), normalised transmission, Lagrange polynomials (node, wave)."""
    edges = np.linspace(np.log(curve.wave[0]), np.log(curve.wave[-1]), num_fine + 1)
    middle = 0.5 * (edges[1:] + edges[:-1])
    # Uniform in ln(wavelength): photon counting needs no further weight.
    trans = np.interp(np.exp(middle), curve.wave, curve.trans)
    log_nodes = np.log(nodes)
    lagrange = np.stack(
        [np.prod([(middle - b) / (a - b) for b in np.delete(log_nodes, i)], axis=0) for i, a in enumerate(log_nodes)]
    )
    return np.exp(middle), trans / trans.sum(), lagrange


def _enough_nodes(model: GalaxyModel, curve: Filter, tolerance: float, most: int = 14) -> np.ndarray:
    """The fewest nodes for which the dustiest galaxies of the model keep the tolerance, for a flat spectrum."""
    dust = [model.space[name] for name in ("tau_v", "tau_birth", "dust_index")]
    births, indices = (0.0, dust[1].high), (dust[2].low, dust[2].high)
    corners = jnp.array([(dust[0].high, birth, index) for birth in births for index in indices])
    redshift = jnp.asarray(model.grid.redshift[:: max(1, model.grid.num // 40)])
    nodes = _chebyshev_nodes(curve, most)
    for num in range(2, most):
        nodes = _chebyshev_nodes(curve, num)
        observed, trans, lagrange = _fine_curve(curve, nodes, 400)
        # One array, padded to one length for all numbers of nodes: the dust law compiles once.
        wave = np.concatenate([observed, nodes, np.full(most - num, nodes[-1])])
        young = np.asarray(_birth_cloud_transmission(jnp.asarray(wave), redshift, corners), float)
        exact, approximate = young[..., :400] @ trans, young[..., 400 : 400 + num] @ (lagrange @ trans)
        if np.all(np.abs(approximate / exact - 1.0) < tolerance / 1.0857):
            break
    return nodes


@jax.jit
def _birth_cloud_transmission(
    observed: Float[Array, " wave"], redshift: Float[Array, " node"], corners: Float[Array, "corner 3"]
) -> Float[Array, "corner node wave"]:
    """Transmitted fractions for young stars, for each (tau_v, tau_birth, dust_index)."""
    rest = observed[None, :] / (1.0 + redshift[:, None])
    return jax.vmap(lambda corner: jax.vmap(lambda wave: transmission(wave, *corner)[1])(rest))(corners)
