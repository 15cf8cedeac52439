"""What a galaxy is made of: its settings, and the parameters and derived properties that follow from them."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

from popsed_jax.cosmology import Cosmology
from popsed_jax.parameters import Parameter, ParameterSpace
from popsed_jax.sps.agn import AGN_PARAMETERS, AGNConfig
from popsed_jax.sps.dust import AttenuationName
from popsed_jax.sps.dust_emission import DUST_EMISSION_PARAMETERS
from popsed_jax.sps.igm import IGMName
from popsed_jax.sps.metallicity import MetallicityName
from popsed_jax.sps.nebular import NEBULAR_PARAMETERS
from popsed_jax.sps.sfh import SFHName, build_sfh

DERIVED = ("log_mass_surviving", "log_sfr", "log_ssfr", "age_mw", "log_sfr10", "t50")
DERIVED_META: dict[str, tuple[str, str, str]] = {
    "log_mass_surviving": ("dex(Msun)", r"$\log M_\star$", "log10 mass in living stars"),
    "log_sfr": ("dex(Msun / yr)", r"$\log\,{\rm SFR}$", "log10 star-formation rate, mean of the last 0.1 Gyr"),
    "log_ssfr": ("dex(1 / yr)", r"$\log\,{\rm sSFR}$", "log10 star-formation rate per mass surviving"),
    "age_mw": ("Gyr", r"$t_{\rm age}$", "mass-weighted mean stellar age"),
    "log_sfr10": (
        "dex(Msun / yr)",
        r"$\log\,{\rm SFR}_{10}$",
        "log10 star-formation rate, mean of the last 10 Myr",
    ),
    "t50": ("Gyr", r"$t_{50}$", "lookback time by which half of the stellar mass formed had formed"),
}
# A galaxy that formed nothing lately has log SFR = -inf; no photometry tells specific rates below this from zero.
SSFR_FLOOR = 1e-13  # [1/yr]

COMMON = (
    Parameter("log_mass", 7.5, 13.0, "dex(Msun)", r"$\log M_{\rm formed}$", "log10 stellar mass formed"),
    Parameter("logzsol", -2.0, 0.4, "dex", r"$\log Z/Z_\odot$", "log10 stellar metallicity over 0.02"),
    Parameter("tau_v", 0.0, 3.0, "", r"$\tau_V$", "diffuse dust: optical depth at 5500 Angstrom"),
    Parameter("tau_birth", 0.0, 3.0, "", r"$\tau_{\rm birth}$", "birth-cloud dust: optical depth at 5500 Angstrom"),
    Parameter("dust_index", -1.0, 0.4, "", r"$\delta_{\rm dust}$", "slope of the diffuse dust relative to Calzetti"),
)
REDSHIFT = Parameter("redshift", 0.001, 0.8, "", r"$z$", "redshift")


@dataclasses.dataclass(frozen=True)
class LineCalibration:
    """What the nebular grid gets wrong about one emission line. (Leistedt+23, Alsing+24; `nebular.calibrated_lines`)

    Args:
        name: Cloudy's name of the line, e.g. "H  1  6562.80A" (`NebularGrid.line_name`).
        offset: fractional offset of its luminosity, the same for all galaxies; in photometry, spectra and `lines`.
        scatter: fractional scatter between galaxies, for `GalaxyModel.lines` with deviates; photometry has the mean.
    """

    name: str
    offset: float = 0.0
    scatter: float = 0.0

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not (math.isfinite(self.offset) and self.offset > -1.0):
            raise ValueError(f"line {self.name!r}: offset = {self.offset} must be above -1, where no light is left")
        if not (math.isfinite(self.scatter) and self.scatter >= 0.0):
            raise ValueError(f"line {self.name!r}: scatter = {self.scatter} must be finite and not negative")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a galaxy is made of.

    Args:
        ssp: "nebular" or "stellar" (shipped BC03-MILES templates, with and without the light of ionised gas), or the path of
            an HDF5 file in the layout of DSPS.
        sfh: star-formation history: four bases and a burst ("bases"), delayed tau, a single burst, seven bins of lookback
            time under a continuity prior, or Diffstar.
        metallicity: "constant" gives stars of all ages the same metallicity, logzsol; "evolving" lets it grow with the mass
            formed up to logzsol, for which the tabulated bases do not serve: their photometry then takes longer.
        metallicity_scatter: standard deviation of log10 Z among stars of one age [dex].
        attenuation: law of the diffuse dust.
        nebular: light of ionised gas from the Cloudy grid, with log_u as a parameter; for templates without it ("stellar").
        gas_metallicity: "stellar" gives the gas the stars' metallicity, "free" makes logz_gas a parameter.
        line_calibration: offset and scatter of single lines of that grid; the others are as computed.
        dust_emission: what dust absorbs comes back in the infrared (Draine & Li 2007), with qpah, umin and log_gamma.
        agn: an active nucleus (Temple+21), with f_agn and agn_ebv.
        agn_shape: its spectrum.
        igm: absorption by the intergalactic medium.
        cosmology: flat LCDM.
    """

    ssp: str = "nebular"
    sfh: SFHName = "bases"
    metallicity: MetallicityName = "constant"
    metallicity_scatter: float = 0.2
    attenuation: AttenuationName = "kriek_conroy"
    nebular: bool = False
    gas_metallicity: Literal["stellar", "free"] = "stellar"
    line_calibration: tuple[LineCalibration, ...] = ()
    dust_emission: bool = False
    agn: bool = False
    agn_shape: AGNConfig = dataclasses.field(default_factory=AGNConfig)
    igm: IGMName = "inoue14"
    cosmology: Cosmology = dataclasses.field(default_factory=Cosmology)

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        build_sfh(self.sfh)
        choices = {
            "metallicity": MetallicityName,
            "attenuation": AttenuationName,
            "gas_metallicity": Literal["stellar", "free"],
            "igm": IGMName,
        }
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"model: {name} = {getattr(self, name)!r} must be one of {', '.join(get_args(kind))}")
        if self.nebular and self.ssp == "nebular":
            raise ValueError('model: nebular = true adds light that ssp = "nebular" already has; set ssp = "stellar"')
        if self.gas_metallicity == "free" and not self.nebular:
            raise ValueError('model: gas_metallicity = "free" needs nebular = true')
        if self.line_calibration and not self.nebular:
            raise ValueError("model: line_calibration needs nebular = true")
        names = [line.name for line in self.line_calibration]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"model: line_calibration names {', '.join(map(repr, repeated))} more than once")
        if not 0.02 <= self.metallicity_scatter <= 1.0:
            raise ValueError(f"model: metallicity_scatter = {self.metallicity_scatter} dex is not between 0.02 and 1")

    @property
    def parameters(self) -> ParameterSpace:
        """The parameters that this model has."""
        log_u, logz_gas, _ = NEBULAR_PARAMETERS
        gas = (log_u, logz_gas) if self.gas_metallicity == "free" else (log_u,)
        return ParameterSpace(
            (
                REDSHIFT,
                COMMON[0],
                *build_sfh(self.sfh).parameters,
                *COMMON[1:],
                *(gas if self.nebular else ()),
                *(DUST_EMISSION_PARAMETERS if self.dust_emission else ()),
                *(AGN_PARAMETERS if self.agn else ()),
            )
        )
