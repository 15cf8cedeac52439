"""Light of gas ionised by young stars: lines and continuum by ionisation parameter and metallicity.

Everything is linear in the templates of the grid: `node_weights` says how much of each a galaxy has, once, and lines,
continuum, or whatever else is tabulated for the templates (their fluxes through filters), follow by a product with it.
"""

from __future__ import annotations

import difflib

import flax.struct
import h5py
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from popsed_jax.data import data_path
from popsed_jax.parameters import Parameter
from popsed_jax.sps.metallicity import LOG_Z_SUN
from popsed_jax.sps.spectrum import LIGHT, interpolation_weights, pixel_edges

LYMAN_LIMIT = 912.0  # [Angstrom]
LSUN_OVER_PLANCK = 3.828e33 / 6.62607015e-27  # [1/s^2]
LIGHT_KMS = 299792.458  # speed of light [km/s]
# Narrower lines are drawn this wide [km/s]: gas at 1e4 K is wider, and a width of zero has no gradient.
MIN_SIGMA = 1.0

NEBULAR_PARAMETERS = (
    Parameter("log_u", -4.0, 0.0, "dex", r"$\log U$", "log10 ionisation parameter"),
    # Up to solar: the grid at 2.5 Zsun is too weak (data/NOTICE.md).
    Parameter("logz_gas", -2.0, 0.0, "dex", r"$\log Z_{\rm gas}/Z_\odot$", "log10 gas metallicity over 0.02"),
    Parameter("escape", 0.0, 1.0, "", r"$f_{\rm esc}$", "fraction of the ionising light that escapes"),
)


@flax.struct.dataclass
class NebularGrid:
    """Nebular emission per solar mass formed, of gas as metal-rich as the stars that ionise it.

    Attributes:
        line_lum: luminosities of the lines [Lsun/Msun].
        lum_nu: continuum [Lsun/Hz/Msun].
        log_photons: log10 of the ionising photons of the stars [1/s/Msun].
        wave: rest wavelength of the continuum [Angstrom]; straight lines between are within 0.2 %.
        line_wave: rest wavelength of the lines [Angstrom], vacuum in the ultraviolet and air in the optical.
        log_met: log10 metal mass fraction of the nodes.
        log_u: log10 ionisation parameter of the nodes.
        log_age: log10 age of the nodes [Gyr].
        to_met: weight of each node for the metallicities of the stellar templates.
        to_age: the same for their ages; a row of zeros is an age without nebula.
        line_name: Cloudy's names of the lines.
    """

    line_lum: Float[Array | np.ndarray, "met log_u node line"]
    lum_nu: Float[Array | np.ndarray, "met log_u node wave"]
    log_photons: Float[Array | np.ndarray, "met node"]
    wave: Float[Array | np.ndarray, " wave"]
    line_wave: Float[Array | np.ndarray, " line"]
    log_met: Float[Array | np.ndarray, " met"]
    log_u: Float[Array | np.ndarray, " log_u"]
    log_age: Float[Array | np.ndarray, " node"]
    to_met: Float[Array | np.ndarray, "ssp_met met"]
    to_age: Float[Array | np.ndarray, "ssp_age node"]
    line_name: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())

    @property
    def has_nebula(self) -> Float[Array, " ssp_age"]:
        """1 for the ages of the stellar templates that ionise gas, else 0."""
        return jnp.sum(self.to_age, axis=1)

    def line(self, name: str) -> int:
        """Position of a line by its name in Cloudy, e.g. ``"H  1  6562.80A"``.

        Raises:
            ValueError: there is no such line.
        """
        if name not in self.line_name:
            near = difflib.get_close_matches(name, self.line_name, n=3, cutoff=0.5)
            hint = f"; the nearest are {', '.join(map(repr, near))}" if near else ""
            raise ValueError(f"no nebular line {name!r}{hint}; there are {', '.join(self.line_name)}")
        return self.line_name.index(name)


def _linear(x: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Rows of weights on the nodes, constant beyond the ends."""
    return np.stack([np.interp(x, nodes, row) for row in np.eye(len(nodes))], axis=1)


def load_nebular(
    log_age: Float[Array | np.ndarray, " ssp_age"],
    log_met: Float[Array | np.ndarray, " ssp_met"],
    wave: Float[Array | np.ndarray, " wave"] | None = None,
) -> NebularGrid:
    """The shipped grid for stellar templates of these ages and metallicities, as JAX arrays in the default precision.

    Ages below 1 Myr have the nebula of 1 Myr; those beyond 25 Myr that of 25 Myr for half a step, then none: as in the
    shipped nebular templates.

    Args:
        log_age: of the stellar templates, log10 [Gyr].
        log_met: of the stellar templates, log10 of the metal mass fraction.
        wave: wavelengths for the continuum [Angstrom]; those of the file (100 Angstrom to 10.5 um) by default. There is
            no continuum beyond them.

    Raises:
        FileNotFoundError: the file is missing from the installation.
        ValueError: metallicities outside the grid, or ages all too old.
    """
    with h5py.File(data_path("nebular")) as file:
        data = {name: np.asarray(file[name]) for name in file if name != "line_name"}
        names = tuple(name.decode() for name in file["line_name"][()])
    data = {name: values.astype(float) for name, values in data.items()}
    nodes, mets = data["log_age"], data["log_met"]
    log_age, log_met = np.asarray(log_age, dtype=float), np.asarray(log_met, dtype=float)
    # Metallicities that went through float32 are still those of the grid.
    if log_met.min() < mets[0] - 1e-4 or log_met.max() > mets[-1] + 1e-4:
        raise ValueError(
            f"nebular: metallicities log Z = {log_met.min():.2f} to {log_met.max():.2f} reach outside the grid, "
            f"{mets[0]:.2f} to {mets[-1]:.2f}"
        )
    young = log_age <= nodes[-1] + 0.5 * (nodes[-1] - nodes[-2])
    if not young.any():
        raise ValueError(f"nebular: no template is younger than {10.0 ** nodes[-1] * 1e3:.0f} Myr")
    if wave is not None:
        wave, flat = np.asarray(wave, dtype=float), data["lum_nu"].reshape(-1, len(data["wave"]))
        rows = np.stack([np.interp(wave, data["wave"], row, left=0.0, right=0.0) for row in flat])
        data |= {"wave": wave, "lum_nu": rows.reshape(*data["lum_nu"].shape[:-1], -1)}
    to_age = np.where(young[:, None], _linear(log_age, nodes), 0.0)
    arrays = data | {"to_age": to_age, "to_met": _linear(log_met, mets)}
    return NebularGrid(**{name: jnp.asarray(values) for name, values in arrays.items()}, line_name=names)


def check_nebular(grid: NebularGrid, log_u: float, logz_gas: float | None = None, escape: float = 0.0) -> None:
    """Refuse what `node_weights` would silently take for the nearest value it knows; not for traced code.

    Raises:
        ValueError: a value outside the grid, or an escape fraction that is none.
    """
    ranges = [("log_u", log_u, grid.log_u[0], grid.log_u[-1])]
    if logz_gas is not None:
        ranges.append(("logz_gas", logz_gas, grid.log_met[0] - LOG_Z_SUN, grid.log_met[-1] - LOG_Z_SUN))
    for name, value, low, high in ranges:
        if not float(low) - 1e-5 <= value <= float(high) + 1e-5:
            raise ValueError(f"nebular: {name} = {value:g} is outside the grid, {float(low):.2f} to {float(high):.2f}")
    if not 0.0 <= escape <= 1.0:
        raise ValueError(f"nebular: escape = {escape:g} is not a fraction between 0 and 1")


def ionising_mass(
    grid: NebularGrid,
    weights: Float[Array, "ssp_met ssp_age"],
    logz_gas: Float[Array, ""] | None = None,
) -> Float[Array, "met node"]:
    """Mass on each metallicity and age of the grid; linear in log Z and log age, constant beyond the grid's ends.

    Args:
        grid: the templates.
        weights: mass formed on each stellar template, of any total.
        logz_gas: log10 gas metallicity over 0.02; None for gas as metal-rich as the stars. When given, the emission per
            ionising photon is that of the gas metallicity, and the photons remain those of the stars.

    Notes:
        The stars that ionise are those of the shipped templates. With gas as metal-rich as the stars, lines and continuum
        carry 1.01 to 1.04 times the power of the starlight removed below 912 Angstrom; with another gas metallicity 0.93
        to 1.19 times, as photons of other stars are harder or softer.
    """
    mass = grid.to_met.T @ weights @ grid.to_age
    if logz_gas is None:
        return jnp.asarray(mass)
    gas = interpolation_weights(logz_gas + LOG_Z_SUN, grid.log_met)
    # Photons of all stars, in units of those of a gas node's own stars: their ratio is near one, they overflow.
    ratio = 10.0 ** (grid.log_photons[:, None] - grid.log_photons[None, :])
    return gas[:, None] * jnp.einsum("sn,sgn->gn", mass, ratio)


@jax.jit
def node_weights(
    grid: NebularGrid,
    weights: Float[Array, "ssp_met ssp_age"],
    log_u: Float[Array, ""],
    logz_gas: Float[Array, ""] | None = None,
    escape: Float[Array, ""] | float = 0.0,
) -> Float[Array, "met log_u node"]:
    """Mass on each template of the grid: `ionising_mass`, spread linearly in log U.

    Args:
        grid, weights, logz_gas: as for `ionising_mass`.
        log_u: log10 ionisation parameter, -4 to 0.
        escape: fraction of the ionising light that escapes.
    """
    ionisation = interpolation_weights(log_u, grid.log_u)
    mass = ionising_mass(grid, weights, logz_gas)
    return jnp.asarray(1.0 - escape) * mass[:, None, :] * ionisation[:, None]


@jax.jit
def template_spectra(
    grid: NebularGrid, sigma_v: float = 100.0, offset: Float[Array | np.ndarray, " line"] | float = 0.0
) -> Float[Array, "met log_u node wave"]:
    """Continuum and lines of every template of the grid on `grid.wave` [Lsun/Hz/Msun].

    Args:
        grid: loaded for the wavelengths wanted.
        sigma_v: velocity dispersion of the gas [km/s].
        offset: fractional calibration of the lines (see `calibrated_lines`).
    """
    unit = jax.vmap(lambda lum: add_lines(grid.wave, lum, grid.line_wave, sigma_v))(jnp.eye(grid.line_wave.shape[0]))
    return jnp.asarray(grid.lum_nu) + (grid.line_lum * (1.0 + jnp.asarray(offset))) @ unit


@jax.jit
def line_luminosities(grid: NebularGrid, nodes: Float[Array, "met log_u node"]) -> Float[Array, " line"]:
    """Luminosities of the lines [Lsun for weights in Msun] from `node_weights`."""
    return nodes.ravel() @ grid.line_lum.reshape(-1, grid.line_wave.shape[0])


@jax.jit
def continuum(grid: NebularGrid, nodes: Float[Array, "met log_u node"]) -> Float[Array, " wave"]:
    """Nebular continuum on `grid.wave` [Lsun/Hz for weights in Msun] from `node_weights`."""
    return nodes.ravel() @ grid.lum_nu.reshape(-1, grid.wave.shape[0])


def ionising_transmission(
    grid: NebularGrid, wave: Float[Array | np.ndarray, " pixel"], escape: Float[Array, ""] | float = 0.0
) -> Float[Array, "ssp_age pixel"]:
    """Fraction of the starlight that gas lets through: `escape` below 912 Angstrom where there is a nebula, else one."""
    absorbed = grid.has_nebula[:, None] * (jnp.asarray(wave) < LYMAN_LIMIT)
    return 1.0 - (1.0 - escape) * absorbed


def calibrated_lines(
    line_lum: Float[Array, " line"],
    offset: Float[Array | np.ndarray, " line"],
    scatter: Float[Array | np.ndarray, " line"] | float = 0.0,
    deviate: Float[Array, " line"] | float = 0.0,
) -> Float[Array, " line"]:
    """Luminosities corrected for what the grid gets wrong about each line. (Leistedt+23, Alsing+24)

    Args:
        line_lum: of the grid.
        offset: fractional offset beta of each line, the same for all galaxies; 0 changes nothing.
        scatter: fractional scatter between galaxies.
        deviate: this galaxy's standard normal deviates. Zero gives the mean; where scatter * deviate < -1 - offset the
            luminosity is negative, as in the Gaussian that the scatter stands for.

    References:
        Leistedt et al. 2023, ApJS 264, 23; Alsing et al. 2024, arXiv:2402.00935.
    """
    return line_lum * (1.0 + jnp.asarray(offset) + jnp.asarray(scatter) * deviate)


@jax.jit
def log_ionising_photons(wave: Float[Array | np.ndarray, " pixel"], lum_nu: Float[Array, " pixel"]) -> Float[Array, ""]:
    """log10 Q(H), the photons below 912 Angstrom [1/s]; their number does not fit into a float32.

    Args:
        wave: rest wavelength [Angstrom].
        lum_nu: [Lsun/Hz], the mean over pixels with edges midway between the wavelengths.
    """
    wave = jnp.asarray(wave)
    width = jnp.diff(jnp.minimum(pixel_edges(wave), LYMAN_LIMIT))
    # Q is the integral of L_nu / (h nu) over nu, and dnu / nu = dlambda / lambda. Without any, the logarithm is finite.
    return jnp.log10(jnp.maximum(lum_nu @ (width / wave), 1e-37)) + np.log10(LSUN_OVER_PLANCK)


@jax.jit
def add_lines(
    wave: Float[Array | np.ndarray, " pixel"],
    lum: Float[Array, " line"],
    line_wave: Float[Array | np.ndarray, " line"],
    sigma_v: Float[Array, ""] | float,
) -> Float[Array, " pixel"]:
    """Spectrum of the lines, to be added to a continuum on the same wavelengths [Lsun/Hz].

    Gaussians in wavelength, averaged over pixels with edges midway between the wavelengths: lines narrower than a pixel
    keep their energy too. What falls beyond the ends is lost.

    Args:
        wave: rest wavelength [Angstrom], increasing.
        lum: line luminosities [Lsun].
        line_wave: their rest wavelengths [Angstrom].
        sigma_v: velocity dispersion [km/s]; below 1 it counts as 1.
    """
    wave, line_wave = jnp.asarray(wave), jnp.asarray(line_wave)
    edges = pixel_edges(wave)
    sigma = line_wave * (jnp.maximum(sigma_v, MIN_SIGMA) / LIGHT_KMS)
    below = ndtr((edges[:, None] - line_wave) / sigma)
    return jnp.diff(below, axis=0) @ lum / jnp.diff(edges) * (wave**2 / LIGHT)


@jax.jit
def equivalent_width(
    line_lum: Float[Array, " line"],
    line_wave: Float[Array | np.ndarray, " line"],
    wave: Float[Array | np.ndarray, " pixel"],
    continuum_lum_nu: Float[Array, " pixel"],
) -> Float[Array, " line"]:
    """Rest-frame equivalent widths [Angstrom], positive in emission; NaN for lines off the wavelength grid.

    Args:
        line_lum: line luminosities [Lsun].
        line_wave: their rest wavelengths [Angstrom].
        wave: rest wavelength of the continuum [Angstrom].
        continuum_lum_nu: stellar and nebular light without the lines [Lsun/Hz], positive; attenuated as the lines are.
    """
    line_wave, wave = jnp.asarray(line_wave), jnp.asarray(wave)
    lum_wave = jnp.interp(line_wave, wave, continuum_lum_nu) * (LIGHT / line_wave**2)
    inside = (line_wave >= wave[0]) & (line_wave <= wave[-1])
    return jnp.where(inside, line_lum / lum_wave, jnp.nan)
