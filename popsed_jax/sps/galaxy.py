"""One galaxy: parameters by name -> stellar populations, attenuated spectrum and derived properties."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.cosmology import Cosmology
from popsed_jax.parameters import ParameterSpace
from popsed_jax.sps.agn import agn_spectrum, agn_transmission, nu_lum_nu
from popsed_jax.sps.config import SSFR_FLOOR, LineCalibration, ModelConfig
from popsed_jax.sps.dust import AGE_BIRTH_CLOUD, transmission
from popsed_jax.sps.dust_emission import DustEmission, emission_weights, load_dust_emission
from popsed_jax.sps.metallicity import evolving_weights, metallicity_weights
from popsed_jax.sps.nebular import (
    LYMAN_LIMIT,
    NebularGrid,
    calibrated_lines,
    equivalent_width,
    ionising_mass,
    ionising_transmission,
    load_nebular,
    template_spectra,
)
from popsed_jax.sps.sfh import Composition, SFHModel, build_sfh
from popsed_jax.sps.spectrum import interpolation_weights, luminosity
from popsed_jax.sps.ssp import SSPTemplates, age_bin_edges, as_device, extend_infrared, load_ssp

RECENT, RECENT10 = 0.1, 0.01  # [Gyr] over which star-formation rates are averaged


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


class Gas(NamedTuple):
    """Ionised gas: the grid, and the spectrum of each of its templates on the stars' wavelengths [Lsun/Hz/Msun].

    Attributes:
        offset, scatter: fractional calibration of each line; the offset is in `lum_nu`, not in the grid.
    """

    grid: NebularGrid
    lum_nu: Float[Array, "met log_u node wave"]
    offset: Float[Array, " line"]
    scatter: Float[Array, " line"]


class Lines(NamedTuple):
    """Emission lines of a galaxy's ionised gas as they leave it, in the order of `NebularGrid.line_name`.

    Attributes:
        lum: luminosities [Lsun], attenuated.
        equivalent_width: in the rest frame [Angstrom], positive in emission.
    """

    lum: Float[Array, "*batch line"]
    equivalent_width: Float[Array, "*batch line"]


class Spectrum(NamedTuple):
    """Parts of a galaxy's rest-frame spectrum as they leave it [Lsun/Hz]; zero where the model has no such part.

    Attributes:
        stars, gas: attenuated light of stars and of ionised gas.
        dust: emission of the dust that attenuates them.
        agn: the nucleus, attenuated by its own dust.
        unattenuated: stars and gas before any dust.
    """

    stars: Float[Array, "*batch wave"]
    gas: Float[Array, "*batch wave"]
    dust: Float[Array, "*batch wave"]
    agn: Float[Array, "*batch wave"]
    unattenuated: Float[Array, "*batch wave"]

    @property
    def total(self) -> Float[Array, "*batch wave"]:
        """All that leaves the galaxy."""
        return self.stars + self.gas + self.dust + self.agn


@flax.struct.dataclass
class GalaxyModel:
    """Everything that turns one galaxy's parameters into its stars; arrays are in JAX's default precision.

    Attributes:
        ssp: the templates.
        basis_ages: mass fraction of each basis history in each age bin, tabulated in redshift.
        age_edges: edges of the age bins [Gyr].
        young: 1 for template ages inside the birth cloud, else 0.
        recent, recent10: fraction of each age bin that lies in the last 100 and 10 Myr.
        gas: the nebular grid and the spectra of its templates, None when the templates hold all nebular light.
        dust: spectra of warm dust on the templates' wavelengths, None without dust emission.
        agn_lum_nu: nucleus whose nu L_nu at 5100 Angstrom is 1 Lsun [Lsun/Hz], None without one.
    """

    ssp: SSPTemplates
    basis_ages: Float[Array, "redshift basis age"]
    age_edges: Float[Array, " edge"]
    young: Float[Array, " age"]
    recent: Float[Array, " age"]
    recent10: Float[Array, " age"]
    grid: RedshiftGrid
    gas: Gas | None
    dust: DustEmission | None
    agn_lum_nu: Float[Array, " wave"] | None
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

    @jax.jit
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

    @jax.jit
    def joint_weights(self, params: Mapping[str, Array]) -> Float[Array, "met age"]:
        """One galaxy's mass fraction on each template metallicity and age; sums to one."""
        ages = self.age_weights(params)
        if self.config.metallicity == "constant":
            return jnp.outer(self.metallicity_weights(params), ages)
        return evolving_weights(params["logzsol"], ages, self.ssp.log_met, self.config.metallicity_scatter)

    @jax.jit
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

    def split_by_cloud(self, joint: Float[Array, "met age"]) -> Float[Array, "cloud met age"]:
        """Weights of stars outside and inside the birth cloud."""
        return jnp.stack([joint * (1.0 - self.young), joint * self.young])

    def gas_weights(
        self, params: Mapping[str, Array], joint: Float[Array, "met age"]
    ) -> Float[Array, "cloud met node"]:
        """Mass on the nebular grid's metallicities and ages, of stars outside and inside the birth cloud."""
        assert self.gas is not None
        grid, logz_gas = self.gas.grid, params.get("logz_gas")
        return jax.vmap(lambda part: ionising_mass(grid, part, logz_gas))(self.split_by_cloud(joint))

    def dust_weights(self, params: Mapping[str, Array]) -> Float[Array, "kind qpah umin"]:
        """How much of each dust spectrum makes one solar luminosity."""
        assert self.dust is not None
        return emission_weights(self.dust, params["qpah"], params["umin"], 10.0 ** params["log_gamma"])

    @jax.jit
    def components(self, theta: Float[Array, " dim"]) -> Spectrum:
        """Rest-frame spectrum of one galaxy by its parts, on the templates' wavelengths.

        The route without tables: the reference for `popsed_jax.observe.photometry`, and what a spectrum plot wants.
        """
        params = self.space.unpack(theta)
        joint, wave = self.joint_weights(params), self.ssp.wave
        stars = self.split_by_cloud(joint).reshape(2, -1) @ self.ssp.lum_nu.reshape(-1, len(wave))
        gas = jnp.zeros_like(stars)
        if self.gas is not None:
            gas = self._gas_nodes(params, joint) @ self.gas.lum_nu.reshape(-1, len(wave))
        law = self.config.attenuation
        trans = jnp.stack(transmission(wave, params["tau_v"], params["tau_birth"], params["dust_index"], law))
        dust = agn = jnp.zeros_like(wave)
        if self.dust is not None:
            # Light below the Lyman limit is the gas's, whether or not the model follows it.
            lost = jnp.where(wave >= LYMAN_LIMIT, jnp.sum((stars + gas) * (1.0 - trans), axis=0), 0.0)
            spectra = jnp.stack([self.dust.single, self.dust.power_law]).reshape(-1, len(wave))
            dust = luminosity(wave, lost) * (self.dust_weights(params).ravel() @ spectra)
        if self.agn_lum_nu is not None:
            strength = params["f_agn"] * nu_lum_nu(wave, stars.sum(axis=0))
            agn = strength * self.agn_lum_nu * agn_transmission(wave, params["agn_ebv"])
        parts = (jnp.sum(stars * trans, axis=0), jnp.sum(gas * trans, axis=0), dust, agn, jnp.sum(stars + gas, axis=0))
        return Spectrum(*(10.0 ** params["log_mass"] * part for part in parts))

    @jax.jit
    def lines(self, theta: Float[Array, " dim"], deviate: Float[Array, " line"] | float = 0.0) -> Lines:
        """Emission lines of one galaxy's ionised gas, attenuated as its continuum is: by the birth cloud around young stars.

        Args:
            theta: parameters.
            deviate: this galaxy's standard normal deviates of the lines' scatter; zero gives the mean.

        Raises:
            ValueError: the model has no gas of its own (``nebular = false``).

        Notes:
            The continuum of an equivalent width is what leaves stars, gas and dust at the line's wavelength, without any
            line, stellar absorption included; a nucleus is not counted. A single line is calibrated by
            `ModelConfig.line_calibration`.
        """
        if self.gas is None:
            raise ValueError('lines: the model follows no gas; set nebular = true and ssp = "stellar" in [model]')
        params, grid, law = self.space.unpack(theta), self.gas.grid, self.config.attenuation
        depths = (params["tau_v"], params["tau_birth"], params["dust_index"])
        nodes = self._gas_nodes(params, self.joint_weights(params)) * 10.0 ** params["log_mass"]
        emitted = nodes @ grid.line_lum.reshape(-1, grid.line_wave.shape[0])
        escaped = jnp.sum(emitted * jnp.stack(transmission(grid.line_wave, *depths, law)), axis=0)
        lum = calibrated_lines(escaped, self.gas.offset, self.gas.scatter, deviate)
        wave, spectrum = self.ssp.wave, self.components(theta)
        gas = nodes @ grid.lum_nu.reshape(-1, len(wave)) * jnp.stack(transmission(wave, *depths, law))
        continuum = spectrum.stars + spectrum.dust + jnp.sum(gas, axis=0)
        return Lines(lum, equivalent_width(lum, grid.line_wave, wave, continuum))

    def _gas_nodes(self, params: Mapping[str, Array], joint: Float[Array, "met age"]) -> Float[Array, "cloud template"]:
        """Mass on each template of the nebular grid, of stars outside and inside the birth cloud."""
        assert self.gas is not None
        ionisation = interpolation_weights(params["log_u"], self.gas.grid.log_u)
        return (self.gas_weights(params, joint)[:, :, None, :] * ionisation[:, None]).reshape(2, -1)

    @jax.jit
    def spectrum(self, theta: Float[Array, " dim"]) -> Float[Array, " wave"]:
        """Attenuated rest-frame spectrum of one galaxy on the templates' wavelengths [Lsun/Hz]."""
        return self.components(theta).total


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
    space = config.parameters.replace_bounds(bounds or {})
    if space["redshift"].low < 1e-4:
        raise ValueError(f"parameters: redshift starts at {space['redshift'].low}; distances need at least 1e-4")
    ssp, gas, dust = _load_light(config)
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
        gas=gas,
        dust=dust,
        agn_lum_nu=agn_spectrum(jnp.asarray(ssp.wave, dtype=float), config.agn_shape) if config.agn else None,
        space=space,
        config=config,
    )


def _load_light(config: ModelConfig) -> tuple[SSPTemplates, Gas | None, DustEmission | None]:
    """Templates of stars, gas and dust on one set of wavelengths."""
    ssp, gas, dust = load_ssp(config.ssp), None, None
    if config.dust_emission:
        dust = load_dust_emission()
        ssp = extend_infrared(ssp, np.asarray(dust.wave, float))
        dust = _on_wavelengths(dust, jnp.asarray(ssp.wave, dtype=float))
    if config.nebular:
        grid = load_nebular(ssp.log_age, ssp.log_met, ssp.wave)
        offset, scatter = _line_calibration(grid, config.line_calibration)
        gas = Gas(grid, template_spectra(grid, offset=offset), jnp.asarray(offset), jnp.asarray(scatter))
        let_through = np.asarray(ionising_transmission(grid, ssp.wave), float)
        ssp = dataclasses.replace(ssp, lum_nu=np.asarray(ssp.lum_nu) * let_through)
    return ssp, gas, dust


def _line_calibration(grid: NebularGrid, lines: tuple[LineCalibration, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Offset and scatter of every line of the grid; zero for those that are not named."""
    offset, scatter = np.zeros((2, len(grid.line_name)))
    for line in lines:
        index = grid.line(line.name)
        offset[index], scatter[index] = line.offset, line.scatter
    return offset, scatter


def _on_wavelengths(dust: DustEmission, wave: Float[Array, " wave"]) -> DustEmission:
    """The dust's spectra on other wavelengths, of unit power there."""

    def moved(lum_nu: Float[Array, " own"]) -> Float[Array, " wave"]:
        spectrum = jnp.interp(wave, dust.wave, lum_nu, left=0.0, right=0.0)
        return spectrum / luminosity(wave, spectrum)

    each = jax.vmap(jax.vmap(moved))
    return dataclasses.replace(
        dust, wave=wave, single=each(jnp.asarray(dust.single)), power_law=each(jnp.asarray(dust.power_law))
    )
