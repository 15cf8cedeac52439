"""One galaxy: parameters by name -> stellar populations, attenuated spectrum and derived properties."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import get_args

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.cosmology import Cosmology
from popsed_jax.parameters import Parameter, ParameterSpace
from popsed_jax.sps.dust import AGE_BIRTH_CLOUD, transmission
from popsed_jax.sps.metallicity import MetallicityName, evolving_weights, metallicity_weights
from popsed_jax.sps.sfh import Composition, SFHModel, SFHName, build_sfh
from popsed_jax.sps.ssp import SSPTemplates, age_bin_edges, as_device, load_ssp

RECENT, RECENT10 = 0.1, 0.01  # [Gyr] over which star-formation rates are averaged
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
        cosmology: flat LCDM.
    """

    ssp: str = "nebular"
    sfh: SFHName = "bases"
    metallicity: MetallicityName = "constant"
    metallicity_scatter: float = 0.2
    cosmology: Cosmology = dataclasses.field(default_factory=Cosmology)

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        build_sfh(self.sfh)
        if self.metallicity not in get_args(MetallicityName):
            names = ", ".join(get_args(MetallicityName))
            raise ValueError(f"model: metallicity = {self.metallicity!r} must be one of {names}")
        if not 0.02 <= self.metallicity_scatter <= 1.0:
            raise ValueError(f"model: metallicity_scatter = {self.metallicity_scatter} dex is not between 0.02 and 1")


class RedshiftGrid(flax.struct.PyTreeNode):
    """Nodes equally spaced in ln(1 + z), on which what is linear in the templates is tabulated."""

    start: float = flax.struct.field(pytree_node=False)
    step: float = flax.struct.field(pytree_node=False)
    num: int = flax.struct.field(pytree_node=False)

    @property
    def redshift(self) -> np.ndarray:
        """The nodes' redshifts."""
        return np.expm1(self.start + self.step * np.arange(self.num))

    def locate(self, redshift: Float[Array, ""]) -> tuple[Array, Array]:
        """Index of the node below and the fraction of the way to the next."""
        position = (jnp.log1p(redshift) - self.start) / self.step
        index = jnp.clip(jnp.floor(position), 0, self.num - 2).astype(jnp.int32)
        return index, position - index


@flax.struct.dataclass
class GalaxyModel:
    """Everything that turns one galaxy's parameters into its stars; arrays are in JAX's default precision.

    Attributes:
        ssp: the templates.
        basis_ages: mass fraction of each basis history in each age bin, tabulated in redshift.
        age_edges: edges of the age bins [Gyr].
        young: 1 for template ages inside the birth cloud, else 0.
        recent, recent10: fraction of each age bin that lies in the last 100 and 10 Myr.
    """

    ssp: SSPTemplates
    basis_ages: Float[Array, "redshift basis age"]
    age_edges: Float[Array, " edge"]
    young: Float[Array, " age"]
    recent: Float[Array, " age"]
    recent10: Float[Array, " age"]
    grid: RedshiftGrid
    space: ParameterSpace = flax.struct.field(pytree_node=False)
    config: ModelConfig = flax.struct.field(pytree_node=False)

    @property
    def sfh(self) -> SFHModel:
        """The star-formation history."""
        return build_sfh(self.config.sfh)

    @property
    def cosmology(self) -> Cosmology:
        """The cosmology."""
        return self.config.cosmology

    def composition(self, params: Mapping[str, Array]) -> Composition:
        """One galaxy's stars by history."""
        return self.sfh.compose(params, self.cosmology.age(params["redshift"]), self.age_edges)

    def metallicity_weights(self, params: Mapping[str, Array]) -> Float[Array, " met"]:
        """One galaxy's mass fraction on each template metallicity, when it is the same for stars of all ages."""
        return metallicity_weights(params["logzsol"], self.ssp.log_met, self.config.metallicity_scatter)

    def burst_nodes(self, burst_age: Float[Array, ""]) -> tuple[Array, Array]:
        """Template age below the burst's and the fraction of the way (in log age) to the next."""
        log_age = jnp.log10(burst_age)
        index = jnp.clip(jnp.searchsorted(self.ssp.log_age, log_age) - 1, 0, len(self.ssp.log_age) - 2)
        step = self.ssp.log_age[index + 1] - self.ssp.log_age[index]
        return index, jnp.clip((log_age - self.ssp.log_age[index]) / step, 0.0, 1.0)

    def age_weights(self, params: Mapping[str, Array]) -> Float[Array, " age"]:
        """One galaxy's mass fraction on each template age; sums to one."""
        parts = self.composition(params)
        node, fraction = self.grid.locate(params["redshift"])
        table = self.basis_ages[node] * (1.0 - fraction) + self.basis_ages[node + 1] * fraction
        weights = parts.basis @ table
        index, step = self.burst_nodes(parts.burst_age)
        weights = weights.at[index].add(parts.burst_fraction * (1.0 - step))
        weights = weights.at[index + 1].add(parts.burst_fraction * step)
        return weights if parts.age_weights is None else weights + parts.age_weights

    def joint_weights(self, params: Mapping[str, Array]) -> Float[Array, "met age"]:
        """One galaxy's mass fraction on each template metallicity and age; sums to one."""
        ages = self.age_weights(params)
        if self.config.metallicity == "constant":
            return jnp.outer(self.metallicity_weights(params), ages)
        return evolving_weights(params["logzsol"], ages, self.ssp.log_met, self.config.metallicity_scatter)

    def derived(self, theta: Float[Array, " dim"]) -> dict[str, Float[Array, ""]]:
        """Derived properties of one galaxy, by the names in `DERIVED` (units in `DERIVED_META`).

        The specific star-formation rates have a floor of 1e-13 / yr: no photometry tells smaller ones from zero.
        """
        params = self.space.unpack(theta)
        joint = self.joint_weights(params)
        ages = joint.sum(axis=0)
        surviving = jnp.sum(joint * self.ssp.surviving)
        log_mass = params["log_mass"] + jnp.log10(surviving)
        ssfr = jnp.maximum(ages @ self.recent / (RECENT * 1e9 * surviving), SSFR_FLOOR)
        ssfr10 = jnp.maximum(ages @ self.recent10 / (RECENT10 * 1e9 * surviving), SSFR_FLOOR)
        return {
            "log_mass_surviving": log_mass,
            "log_sfr": jnp.log10(ssfr) + log_mass,
            "log_ssfr": jnp.log10(ssfr),
            "age_mw": ages @ 10.0**self.ssp.log_age,
            "log_sfr10": jnp.log10(ssfr10) + log_mass,
            "t50": half_mass_time(ages, jnp.minimum(self.age_edges, self.cosmology.age(params["redshift"]))),
        }

    def spectrum(self, theta: Float[Array, " dim"]) -> Float[Array, " wave"]:
        """Attenuated rest-frame spectrum of one galaxy on the templates' wavelengths [Lsun/Hz].

        The route without tables: the reference for `popsed_jax.observe.photometry`, and what a spectrum plot wants.
        """
        params = self.space.unpack(theta)
        joint = self.joint_weights(params)
        old_trans, young_trans = transmission(self.ssp.wave, params["tau_v"], params["tau_birth"], params["dust_index"])
        num_wave = self.ssp.wave.shape[0]
        flat = self.ssp.lum_nu.reshape(-1, num_wave)
        old = (joint * (1.0 - self.young)).ravel() @ flat
        young = (joint * self.young).ravel() @ flat
        return 10.0 ** params["log_mass"] * (old * old_trans + young * young_trans)


def half_mass_time(age_weights: Float[Array, " age"], age_edges: Float[Array, " edge"]) -> Float[Array, ""]:
    """Lookback time by which half of the mass had formed [Gyr], the rate constant within each age bin."""
    younger = jnp.concatenate([jnp.zeros(1, age_weights.dtype), jnp.cumsum(age_weights)])
    return jnp.interp(0.5 * younger[-1], younger, age_edges)


def build_galaxy_model(
    config: ModelConfig | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    redshift_step: float = 0.002,
) -> GalaxyModel:
    """Load templates and tabulate the basis histories.

    Args:
        config: what a galaxy is made of.
        bounds: other bounds for some parameters, by name.
        redshift_step: spacing of the redshift nodes in ln(1 + z).

    Raises:
        KeyError: bounds for a parameter that the model does not have.
        ValueError: bounds that no galaxy can have.
    """
    config = config or ModelConfig()
    sfh = build_sfh(config.sfh)
    space = ParameterSpace((REDSHIFT, COMMON[0], *sfh.parameters, *COMMON[1:])).replace_bounds(bounds or {})
    if space["redshift"].low < 1e-4:
        raise ValueError(f"parameters: redshift starts at {space['redshift'].low}; distances need at least 1e-4")
    ssp = load_ssp(config.ssp)
    edges = age_bin_edges(ssp.log_age)
    low, high = np.log1p(space["redshift"].low), np.log1p(space["redshift"].high)
    num = int(np.ceil((high - low) / redshift_step)) + 1
    grid = RedshiftGrid(start=float(low), step=float((high - low) / (num - 1)), num=num)
    with jax.ensure_compile_time_eval():
        age_universe = np.asarray(config.cosmology.age(jnp.asarray(grid.redshift)), dtype=float)
    recent, recent10 = (np.clip((span - edges[:-1]) / np.diff(edges), 0.0, 1.0) for span in (RECENT, RECENT10))
    return GalaxyModel(
        ssp=as_device(ssp),
        basis_ages=jnp.asarray(sfh.basis_age_weights(age_universe, edges)),
        age_edges=jnp.asarray(edges),
        young=jnp.asarray(10.0**ssp.log_age <= AGE_BIRTH_CLOUD, dtype=float),
        recent=jnp.asarray(recent),
        recent10=jnp.asarray(recent10),
        grid=grid,
        space=space,
        config=config,
    )
