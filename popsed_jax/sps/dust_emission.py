"""Infrared emission of dust, by energy balance: what attenuation takes, dust gives back."""

from __future__ import annotations

import flax.struct
import h5py
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.data import data_path
from popsed_jax.parameters import Parameter
from popsed_jax.sps.spectrum import interpolation_weights, luminosity

DUST_EMISSION_PARAMETERS = (
    Parameter("qpah", 0.47, 4.58, "percent", r"$q_{\rm PAH}$", "fraction of the dust mass in PAHs"),
    Parameter("umin", 0.1, 25.0, "", r"$U_{\rm min}$", "starlight that heats the diffuse dust; near the Sun it is 1"),
    Parameter("log_gamma", -4.0, 0.0, "dex", r"$\log\gamma$", "log10 dust-mass fraction in starlight above U_min"),
)


@flax.struct.dataclass
class DustEmission:
    """Spectra of Milky-Way dust (Draine & Li 2007), each with a power of one by the trapezoidal rule in wavelength.

    Attributes:
        wave: rest wavelength [Angstrom], 1 to 1000 um.
        qpah: mass fraction of PAHs [percent].
        umin: starlight intensity; near the Sun it is 1.
        single: emission in starlight of intensity umin [Lsun/Hz per Lsun emitted].
        power_law: the same for dM/dU ~ U^-2 from umin to 1e6.
        power_ratio: power per unit dust mass of the power law over that of the single intensity.
    """

    wave: Float[Array | np.ndarray, " wave"]
    qpah: Float[Array | np.ndarray, " qpah"]
    umin: Float[Array | np.ndarray, " umin"]
    single: Float[Array | np.ndarray, "qpah umin wave"]
    power_law: Float[Array | np.ndarray, "qpah umin wave"]
    power_ratio: Float[Array | np.ndarray, "qpah umin"]


def load_dust_emission() -> DustEmission:
    """The shipped grid, as JAX arrays in the default precision.

    Raises:
        FileNotFoundError: the file is missing from the installation.
    """
    with h5py.File(data_path("dust_emission")) as file:
        names = ("wave", "qpah", "umin", "single", "power_law", "power_ratio")
        return DustEmission(*(jnp.asarray(np.asarray(file[name], dtype=float)) for name in names))


def check_dust_emission(grid: DustEmission, qpah: float, umin: float, gamma: float) -> None:
    """Refuse what `emission` would silently take for the nearest value it knows; not for traced code.

    Raises:
        ValueError: a value outside the grid, or a gamma that is no fraction.
    """
    for name, value, nodes in (("qpah", qpah, grid.qpah), ("umin", umin, grid.umin)):
        low, high = float(nodes[0]), float(nodes[-1])
        # The grid's own ends, in either precision, are inside.
        if not low * (1 - 1e-6) <= value <= high * (1 + 1e-6):
            raise ValueError(f"dust emission: {name} = {value:g} is outside the grid, {low:g} to {high:g}")
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"dust emission: gamma = {gamma:g} is not a fraction between 0 and 1")


def absorbed_luminosity(
    wave: Float[Array | np.ndarray, " wave"],
    lum_nu_unattenuated: Float[Array, " wave"],
    lum_nu_attenuated: Float[Array, " wave"],
) -> Float[Array, ""]:
    """Power that dust took from a spectrum [Lsun], to be given back by `emission`.

    Args:
        wave: rest wavelength [Angstrom], increasing.
        lum_nu_unattenuated, lum_nu_attenuated: before and after the dust [Lsun/Hz]. Light that ionises gas belongs to
            neither, once its nebular emission is in both.
    """
    return luminosity(wave, lum_nu_unattenuated - lum_nu_attenuated)


def emission_weights(
    grid: DustEmission, qpah: Float[Array, ""], umin: Float[Array, ""], gamma: Float[Array, ""]
) -> Float[Array, "kind qpah umin"]:
    """How much of each spectrum of the grid, `single` then `power_law`, makes one solar luminosity.

    Linear in qpah and in log umin; values beyond the grid count as its ends. (Draine & Li 2007, eq. 23)

    Args:
        grid: the spectra.
        qpah: mass fraction of PAHs [percent], 0.47 to 4.58.
        umin: starlight intensity, 0.1 to 25.
        gamma: fraction of the dust mass in starlight of a power law from umin to 1e6 (slope -2), 0 to 1.
    """
    weights = jnp.outer(
        interpolation_weights(qpah, grid.qpah), interpolation_weights(jnp.log(umin), jnp.log(grid.umin))
    )
    # Eq. 23 mixes by mass, and a unit of mass in the power law is 10 to 16 times as luminous.
    kinds = jnp.stack([(1.0 - gamma) * weights, gamma * weights * grid.power_ratio])
    return kinds / jnp.sum(kinds)


def emission(
    grid: DustEmission, qpah: Float[Array, ""], umin: Float[Array, ""], gamma: Float[Array, ""]
) -> Float[Array, " wave"]:
    """Spectrum of dust that emits one solar luminosity [Lsun/Hz] on `grid.wave`; arguments of `emission_weights`.

    Notes:
        The power (`luminosity`) is one to the precision of the arithmetic.

    References:
        Draine & Li 2007, ApJ 657, 810.
    """
    num_wave = grid.wave.shape[0]
    spectra = jnp.stack([grid.single, grid.power_law]).reshape(-1, num_wave)
    return emission_weights(grid, qpah, umin, gamma).ravel() @ spectra
