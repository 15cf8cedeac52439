"""Simple stellar populations: the templates that everything else adds up."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import flax.struct
import h5py
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax._dsps import load_ssp_templates
from popsed_jax.data import data_path, file_sha256

SHIPPED = {"stellar": "ssp_stellar", "nebular": "ssp_nebular"}


@flax.struct.dataclass
class SSPTemplates:
    """Spectra of coeval populations in the layout of DSPS.

    Attributes:
        lum_nu: luminosity per solar mass formed [Lsun/Hz/Msun].
        wave: rest wavelength [Angstrom]; of the shipped templates in air above 2000 Angstrom, as their source has it
            (0.03 %).
        log_met: log10 of the metal mass fraction Z.
        log_age: log10 age [Gyr].
        surviving: mass still in living stars per unit mass formed (no remnants), of the shipped templates.
    """

    lum_nu: Float[Array | np.ndarray, "met age wave"]
    wave: Float[Array | np.ndarray, " wave"]
    log_met: Float[Array | np.ndarray, " met"]
    log_age: Float[Array | np.ndarray, " age"]
    surviving: Float[Array | np.ndarray, "met age"]
    name: str = flax.struct.field(pytree_node=False, default="")
    sha256: str = flax.struct.field(pytree_node=False, default="")

    @property
    def age(self) -> Float[Array | np.ndarray, " age"]:
        """Ages [Gyr]."""
        return 10.0**self.log_age


def load_ssp(name: str = "stellar") -> SSPTemplates:
    """Load a template set: ``"stellar"`` or ``"nebular"`` (shipped), or the path of an HDF5 file in the layout of DSPS.

    Raises:
        FileNotFoundError: neither a shipped name nor a file.
        ValueError: a file without the arrays needed, or with values that cannot be spectra.
    """
    path = data_path(SHIPPED[name]) if name in SHIPPED else Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"no SSP templates {name!r}: use one of {', '.join(SHIPPED)}, or the path of an HDF5 file in the layout of "
            "DSPS"
        )
    with h5py.File(path) as file:
        missing = {"ssp_lgmet", "ssp_lg_age_gyr", "ssp_wave", "ssp_flux"} - set(file)
        if missing:
            raise ValueError(f"{path}: not in the layout of DSPS, without {', '.join(sorted(missing))}")
        surviving = np.asarray(file["surviving_mass_fraction"]) if "surviving_mass_fraction" in file else None
    ssp = load_ssp_templates(fn=str(path))
    lum_nu = np.asarray(ssp.ssp_flux, dtype=float)
    if not np.all(np.isfinite(lum_nu)) or lum_nu.min() < 0:
        raise ValueError(f"{path}: ssp_flux holds negative or non-finite values")
    if surviving is None:
        raise ValueError(f"{path}: without surviving_mass_fraction (met, age), which stellar masses need")
    return SSPTemplates(
        lum_nu=lum_nu,
        wave=np.asarray(ssp.ssp_wave, dtype=float),
        log_met=np.asarray(ssp.ssp_lgmet, dtype=float),
        log_age=np.asarray(ssp.ssp_lg_age_gyr, dtype=float),
        surviving=surviving.astype(float),
        name=name,
        sha256=file_sha256(path),
    )


def age_bin_edges(log_age: Float[Array | np.ndarray, " age"]) -> Float[np.ndarray, " edge"]:
    """Edges of the age bins that the templates stand for [Gyr]: midpoints in log age, from zero to beyond the oldest.

    `dsps.sed.stellar_age_weights` has the same bins where the ages are equally spaced, but for two things. Where the spacing
    changes its edges are up to 6 % off the midpoints, which moves spectra by 0.2 % (2 % for short episodes). And its first bin
    begins half a step below the youngest template, not at zero: without those stars the ultraviolet is 1 to 2 % fainter.
    """
    log_age = np.asarray(log_age, dtype=float)
    middle = 0.5 * (log_age[1:] + log_age[:-1])
    last = log_age[-1] + 0.5 * (log_age[-1] - log_age[-2])
    return np.concatenate([[0.0], 10.0**middle, [10.0**last]])


def as_device(ssp: SSPTemplates) -> SSPTemplates:
    """The templates as JAX arrays in the default precision."""
    return jax.tree.map(jnp.asarray, ssp)


def extend_infrared(ssp: SSPTemplates, wave: Float[np.ndarray, " more"]) -> SSPTemplates:
    """The templates on more wavelengths: linear between their own, beyond them the Rayleigh-Jeans tail of starlight.

    Args:
        wave: wavelengths to add [Angstrom], those of the dust that outshines the stars there.
    """
    own, lum_nu = np.asarray(ssp.wave, float), np.asarray(ssp.lum_nu, float)
    union = np.union1d(own, wave[wave > own[0]])
    # On the source's own points the interpolation is exact: an integral of the linear spectrum does not change.
    cell = np.clip(np.searchsorted(own, union, side="right") - 1, 0, len(own) - 2)
    step = np.minimum((union - own[cell]) / (own[cell + 1] - own[cell]), 1.0)
    tail = np.minimum(1.0, own[-1] / union) ** 2
    lum_nu = (lum_nu[..., cell] * (1.0 - step) + lum_nu[..., cell + 1] * step) * tail
    return dataclasses.replace(ssp, wave=union, lum_nu=lum_nu)
