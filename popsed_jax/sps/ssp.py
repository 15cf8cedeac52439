"""Simple stellar populations: the templates that everything else adds up."""

from __future__ import annotations

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

    `dsps.sed.stellar_age_weights` has the same bins where the ages are equally spaced; where the spacing changes its edges
    are up to 6 % off the midpoints, which moves spectra by 1-3 %.
    """
    log_age = np.asarray(log_age, dtype=float)
    middle = 0.5 * (log_age[1:] + log_age[:-1])
    last = log_age[-1] + 0.5 * (log_age[-1] - log_age[-2])
    return np.concatenate([[0.0], 10.0**middle, [10.0**last]])


def as_device(ssp: SSPTemplates) -> SSPTemplates:
    """The templates as JAX arrays in the default precision."""
    return jax.tree.map(jnp.asarray, ssp)


def extend_infrared(ssp: SSPTemplates, longest: float = 1e7, num: int = 60) -> SSPTemplates:
    """The templates continued as starlight's Rayleigh-Jeans tail, L_nu ~ wave^-2, where dust outshines them anyway.

    Args:
        longest: last wavelength [Angstrom].
        num: wavelengths added, equally spaced in their logarithm.
    """
    last = float(ssp.wave[-1])
    if last >= longest:
        return ssp
    more = np.geomspace(last, longest, num + 1)[1:]
    tail = np.asarray(ssp.lum_nu)[..., -1:] * (last / more) ** 2
    return ssp.replace(
        wave=np.concatenate([np.asarray(ssp.wave), more]), lum_nu=np.concatenate([np.asarray(ssp.lum_nu), tail], axis=-1)
    )
