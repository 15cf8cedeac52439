"""Weights that turn a spectrum into fluxes through filters: the linear half of the photometry."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.observe.filters import Filter
from popsed_jax.sps.agn import WAVE_REF, agn_transmission
from popsed_jax.sps.dust import transmission
from popsed_jax.sps.galaxy import GalaxyModel
from popsed_jax.sps.igm import LYMAN_ALPHA, igm_transmission
from popsed_jax.sps.nebular import LYMAN_LIMIT
from popsed_jax.sps.spectrum import LIGHT

# One Lsun/Hz at 10 pc, in units of the AB zero flux (3631 Jy); Lsun = 3.828e33 erg/s (IAU 2015 B3), 10 pc in cm.
LSUN_PER_HZ_AT_10PC = 3.828e33 / (4.0 * np.pi * (3.0856775814913674e19) ** 2) / 3.631e-20
# Windows of the light that dust absorbs [Angstrom] and the nodes at which its transmission is taken in each. They end where
# the laws have edges: Leitherer's ultraviolet, Calzetti's red and the end of his curve; the bump has a window to itself, and
# beyond 30 micron there is no starlight. The absorbed power is within 0.5 % of the full integral for every law
# (tests/test_energy.py).
ABSORPTION_WINDOWS = (
    (LYMAN_LIMIT, 1500.0, 5),
    (1500.0, 2900.0, 8),
    (2900.0, 6300.0, 4),
    (6300.0, 31_000.0, 5),
    (31_000.0, 300_000.0, 5),
)


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


def check_reach(filters: Sequence[Filter], wave: np.ndarray, redshift: np.ndarray, whose: str) -> None:
    """Refuse a filter that leaves some wavelengths within some redshifts.

    Args:
        wave, redshift: increasing.
        whose: the wavelengths, for the message.

    Raises:
        ValueError: the first such filter.
    """
    for curve in filters:
        if curve.wave[0] / (1 + redshift[-1]) < wave[0] or curve.wave[-1] / (1 + redshift[0]) > wave[-1]:
            raise ValueError(
                f"filter {curve.name} ({curve.wave[0]:.0f}-{curve.wave[-1]:.0f} Angstrom) leaves {whose} range "
                f"({wave[0]:.0f}-{wave[-1]:.0f} Angstrom) within redshift {redshift[0]:.3f}-{redshift[-1]:.3f}"
            )


def _chebyshev_nodes(first: float, last: float, num: int) -> np.ndarray:
    """Chebyshev nodes of the first kind in ln(wavelength)."""
    low, high = np.log(first), np.log(last)
    angle = np.pi * (np.arange(num) + 0.5) / num
    return np.exp(0.5 * (low + high) + 0.5 * (high - low) * np.cos(angle))


def band_weights(
    wave: np.ndarray, curve: Filter, nodes: np.ndarray, redshift: float, igm: str = "none", num_fine: int = 1500
) -> np.ndarray:
    """Weights (node, wave) that integrate spectrum x filter x Lagrange polynomial, the spectrum linear in between.

    Args:
        wave: rest wavelengths of the spectra [Angstrom].
        nodes: observed wavelengths of the polynomials' nodes [Angstrom].
        igm: absorption on the way.
    """
    observed, trans, lagrange = _fine_curve(curve, nodes, num_fine)
    if igm != "none" and observed[0] < LYMAN_ALPHA * (1.0 + redshift):
        trans = trans * np.asarray(_igm(jnp.asarray(observed), jnp.asarray(redshift), igm), float)
    return _spread(wave, observed / (1.0 + redshift), lagrange * trans)


def window_weights(wave: np.ndarray, first: float, last: float, nodes: np.ndarray) -> np.ndarray:
    """Weights (node, wave) for the power from `first` to below `last`, times Lagrange polynomials [Lsun per Lsun/Hz].

    The trapezoidal rule of `spectrum.luminosity`, pixel by pixel, so that windows side by side leave nothing out and add
    up to it.
    """
    edges = np.concatenate([wave[:1], 0.5 * (wave[1:] + wave[:-1]), wave[-1:]])
    power = np.where((wave >= first) & (wave < last), np.diff(edges) * LIGHT / wave**2, 0.0)
    inside = np.clip(wave, first, last)  # polynomials of high degree overflow far outside, where nothing is counted
    return _lagrange(np.log(inside), np.log(nodes)) * power


def rest_weights(model: GalaxyModel) -> tuple[np.ndarray, np.ndarray]:
    """Rest wavelengths and weights (node, wave) for what the optional parts need to know of the stars.

    For dust emission the light in `ABSORPTION_WINDOWS`; last, for a nucleus, nu L_nu at 5100 Angstrom.
    """
    wave = np.asarray(model.ssp.wave, float)
    nodes, weights = [np.zeros(0)], [np.zeros((0, len(wave)))]
    if model.dust is not None:
        for first, last, num in ABSORPTION_WINDOWS:
            nodes.append(_chebyshev_nodes(first, last, num))
            weights.append(window_weights(wave, first, last, nodes[-1]))
    if model.agn_lum_nu is not None:
        nodes.append(np.array([WAVE_REF]))
        weights.append(_spread(wave, nodes[-1], np.array([[LIGHT / WAVE_REF]])))
    return np.concatenate(nodes), np.concatenate(weights)


def _spread(wave: np.ndarray, rest: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values at rest wavelengths as weights on the spectra's wavelengths, linear in between."""
    cell = np.clip(np.searchsorted(wave, rest) - 1, 0, len(wave) - 2)
    right = (rest - wave[cell]) / (wave[cell + 1] - wave[cell])
    weights = np.zeros((len(values), len(wave)))
    for i, row in enumerate(values):
        weights[i] = np.bincount(cell, row * (1.0 - right), len(wave))
        weights[i] += np.bincount(cell + 1, row * right, len(wave))
    return weights


def _fine_curve(curve: Filter, nodes: np.ndarray, num_fine: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observed wavelengths uniform in ln(wavelength), normalised transmission, Lagrange polynomials (node, wave)."""
    edges = np.linspace(np.log(curve.wave[0]), np.log(curve.wave[-1]), num_fine + 1)
    middle = 0.5 * (edges[1:] + edges[:-1])
    # Uniform in ln(wavelength): photon counting needs no further weight.
    trans = np.interp(np.exp(middle), curve.wave, curve.trans)
    return np.exp(middle), trans / trans.sum(), _lagrange(middle, np.log(nodes))


def _lagrange(at: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Lagrange polynomials of the nodes (node, at)."""
    return np.stack([np.prod([(at - b) / (a - b) for b in np.delete(nodes, i)], axis=0) for i, a in enumerate(nodes)])


_igm = jax.jit(igm_transmission, static_argnames="model")


def enough_nodes(model: GalaxyModel, curve: Filter, tolerance: float, most: int = 14) -> np.ndarray:
    """The fewest nodes for which dusty galaxies and reddened nuclei keep the tolerance, for a flat spectrum."""
    dust = [model.space[name] for name in ("tau_v", "tau_birth", "dust_index")]
    # The dustiest galaxies, and less dusty ones that can still be seen where those cannot.
    depths, births, indices = np.array([0.2, 0.5, 1.0]) * dust[0].high, (0.0, dust[1].high), (dust[2].low, dust[2].high)
    corners = jnp.array([(depth, birth, index) for depth in depths for birth in births for index in indices])
    reddening = jnp.asarray([0.3, 1.0]) * (model.space["agn_ebv"].high if model.agn_lum_nu is not None else 0.0)
    redshift = jnp.asarray(model.grid.redshift[:: max(1, model.grid.num // 40)])
    nodes = _chebyshev_nodes(curve.wave[0], curve.wave[-1], most)
    for num in range(2, most):
        nodes = _chebyshev_nodes(curve.wave[0], curve.wave[-1], num)
        observed, trans, lagrange = _fine_curve(curve, nodes, 400)
        # One array, padded to one length for all numbers of nodes: the dust law compiles once.
        wave = np.concatenate([observed, nodes, np.full(most - num, nodes[-1])])
        law = model.config.attenuation
        cases = np.asarray(_steepest_transmissions(jnp.asarray(wave), redshift, corners, reddening, law), float)
        exact, approximate = cases[..., :400] @ trans, cases[..., 400 : 400 + num] @ (lagrange @ trans)
        # Behind 20 mag of dust nobody sees the galaxy, and float32 sees nothing.
        if np.all(np.abs(approximate - exact) < tolerance / 1.0857 * np.maximum(exact, 1e-8)):
            break
    return nodes


@partial(jax.jit, static_argnames="law")
def _steepest_transmissions(
    observed: Float[Array, " wave"],
    redshift: Float[Array, " node"],
    corners: Float[Array, "corner 3"],
    reddening: Float[Array, " nucleus"],
    law: str,
) -> Float[Array, "case node wave"]:
    """Transmitted fractions for young stars, for each (tau_v, tau_birth, dust_index), and for reddened nuclei."""
    rest = observed[None, :] / (1.0 + redshift[:, None])

    def young(wave: Array, corner: Array) -> Array:
        tau_v, tau_birth, dust_index = corner
        return transmission(wave, tau_v, tau_birth, dust_index, law)[1]

    stars = jax.vmap(lambda corner: jax.vmap(lambda wave: young(wave, corner))(rest))(corners)
    nuclei = jax.vmap(lambda ebv: jax.vmap(lambda wave: agn_transmission(wave, ebv))(rest))(reddening)
    return jnp.concatenate([stars, nuclei])
