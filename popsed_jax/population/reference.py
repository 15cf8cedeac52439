"""q0(theta), the reference population: what is known about galaxies before this catalogue.

Population inference is deconvolution, and many populations give the same photometry. The fit starts from this one, seen
through the survey's selection, and leaves it as far as the data demand. Every number is from the literature and carries an
uncertainty; ensemble members draw different numbers, so that what the data do not determine shows as spread.

A galaxy is drawn as: redshift and surviving mass from comoving volume times a double Schechter function; star-forming or
quiescent; a specific star-formation rate; a star-formation history with that rate (from a library of the model's own prior);
metallicity and dust given mass and type.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.cosmology import Cosmology
from popsed_jax.observe.forward import ForwardModel
from popsed_jax.parameters import ParameterSpace
from popsed_jax.population.batching import map_batches
from popsed_jax.population.intrinsic import detection_by_any

# Gallazzi+05, table 2: stellar metallicity log(Z/Zsun), median and 16th, 84th percentiles, against log stellar mass.
_MZR_MASS = np.array([8.91, 9.31, 9.72, 9.91, 10.11, 10.31, 10.51, 10.72, 10.91, 11.11, 11.31, 11.51, 11.91])
_MZR_MEDIAN = np.array([-0.60, -0.65, -0.52, -0.41, -0.23, -0.11, -0.01, 0.04, 0.07, 0.10, 0.12, 0.13, 0.15])
_MZR_SCATTER = np.array([0.55, 0.53, 0.51, 0.50, 0.47, 0.41, 0.31, 0.23, 0.19, 0.17, 0.16, 0.17, 0.16])
# Mean and scatter of the optional parts' parameters. Ionisation of star-forming galaxies (Kewley & Dopita 2002); PAHs, starlight
# and the share of bright starlight in SINGS galaxies (Draine+07, sec. 7-9; umin as log10).
_OPTIONAL = {"log_u": (-3.0, 0.3), "qpah": (3.4, 1.2), "umin": (0.1, 0.4), "log_gamma": (-2.0, 0.5)}
_AGN_MEAN = {"f_agn": 0.03, "agn_ebv": 0.1}  # exponential: most galaxies have next to no nucleus

# How far whole relations of the reference may be off, by parameter, in its unit: stellar metallicities by 0.15 dex (apertures
# and libraries: Gallazzi+05, sec. 5; Conroy 2013, sec. 5), mass-weighted ages by 0.2 dex with the assumed history (Leja+19),
# attenuation by about a quarter (Salim & Narayanan 2020). Redshift and mass have their own hyper-parameters.
SYSTEMATICS = {"logzsol": 0.15, "kappa1": 0.15, "kappa2": 0.15, "tau_v": 0.1, "tau_birth": 0.2, "dust_index": 0.15}


@dataclasses.dataclass(frozen=True)
class ReferenceConfig:
    """Hyper-parameters of the reference population, each (value, uncertainty). Members of an ensemble draw from these.

    Masses are surviving stellar masses for a Kroupa or Chabrier IMF and H0 = 70 km/s/Mpc.

    Args:
        kind: "physical", or "flat" in the parameters' bounds (PopSED's choice; no selection, no literature).
        log_mstar, log_phi1, alpha1, log_phi2, alpha2: double Schechter function at z = 0.06 (Driver+22, table 4: GAMA DR4). The
            uncertainty of log_mstar is the systematic one between stellar-mass methods (Mobasher+15), not the fit's.
        density_evolution: d log10(phi) / d log10(1 + z); between Driver+22 and the z < 0.6 bins of Leja+20.
        quiescent_mass, quiescent_slope: quiescent fraction 1 - exp(-(M / 10^quiescent_mass)^slope) (Peng+10, eq. 2 and table 2).
        quiescent_evolution: d quiescent_mass / d log10(1 + z): the mass at which half are quiescent rises with redshift
            (Haines+17, fig. 4, and the work collected there); value and wide uncertainty are read off such figures, not fitted.
        main_sequence_offset, main_sequence_slope: added to the main sequence of Speagle+14, eq. 28, and to its slope [dex].
        main_sequence_scatter: [dex] (Speagle+14, sec. 4.3).
        quiescent_ssfr, quiescent_scatter: log10 sSFR of quiescent galaxies [1/yr] and its scatter (Brinchmann+04, Leja+22).
        metallicity_offset: added to the relation of Gallazzi+05 [dex].
        metallicity_evolution: dex per log10(1 + z) (Gallazzi+14, abstract: 0.13 dex lower at z = 0.7 over all, next to
            none among quiescent galaxies; hence a little less, with a wide uncertainty).
        dust_star_forming: mean tau_v of star-forming galaxies at 10^10 Msun (Garn & Best 2010, times 0.44).
        dust_mass_slope: d log tau_v / d log mass for star-forming galaxies.
        dust_quiescent: mean tau_v of quiescent galaxies (exponential).
        dust_index: mean slope offset of the attenuation curve (Salim+18, sec. 5); its scatter is 0.25.
        dust_index_slope: of the mean dust_index in log10 tau_v about 0.3: dustier galaxies have flatter curves (Salim+18, fig. 9,
            and models in Chevallard+13), by how much depends on the sample.
        history_offset, history_slope: added to kappa1, the fraction of mass that does not form in the earliest base, and per
            dex of mass above 10^10.8 Msun: ages at a given sSFR are uncertain by 0.1 to 0.2 dex (Leja+19, sec. 5), and older
            in massive galaxies (Gallazzi+05, fig. 8).
        birth_cloud: ratio of tau_birth to tau_v (Price+14; the prior of Leja+19 is 1 +- 0.3).
        systematics: standard deviation, by parameter, of a shift of the whole reference along it; fitted with the population.
        burst_fraction: mean mass fraction of the burst (exponential; Kauffmann+03).
        num_histories: star-formation histories in the library from which galaxies get theirs, at each of its redshifts.
    """

    kind: str = "physical"
    log_mstar: tuple[float, float] = (10.745, 0.08)
    log_phi1: tuple[float, float] = (-2.437, 0.04)
    alpha1: tuple[float, float] = (-0.466, 0.07)
    log_phi2: tuple[float, float] = (-3.201, 0.08)
    alpha2: tuple[float, float] = (-1.53, 0.05)
    density_evolution: tuple[float, float] = (-0.5, 0.5)
    quiescent_mass: tuple[float, float] = (10.56, 0.10)
    quiescent_slope: tuple[float, float] = (0.80, 0.05)
    quiescent_evolution: tuple[float, float] = (1.5, 0.5)
    main_sequence_offset: tuple[float, float] = (0.0, 0.10)
    main_sequence_slope: tuple[float, float] = (0.0, 0.05)
    main_sequence_scatter: tuple[float, float] = (0.30, 0.03)
    quiescent_ssfr: tuple[float, float] = (-11.9, 0.10)
    quiescent_scatter: tuple[float, float] = (0.40, 0.05)
    metallicity_offset: tuple[float, float] = (0.0, 0.08)
    metallicity_evolution: tuple[float, float] = (-0.5, 0.3)
    dust_star_forming: tuple[float, float] = (0.40, 0.06)
    dust_mass_slope: tuple[float, float] = (0.20, 0.05)
    dust_quiescent: tuple[float, float] = (0.12, 0.03)
    dust_index: tuple[float, float] = (-0.30, 0.08)
    dust_index_slope: tuple[float, float] = (0.0, 0.20)
    history_offset: tuple[float, float] = (0.0, 0.05)
    history_slope: tuple[float, float] = (0.0, 0.08)
    birth_cloud: tuple[float, float] = (1.0, 0.15)
    burst_fraction: float = 0.05
    num_histories: int = 30_000
    systematics: dict[str, float] = dataclasses.field(default_factory=lambda: dict(SYSTEMATICS))

    def __post_init__(self) -> None:
        if self.kind not in ("physical", "flat"):
            raise ValueError(f"reference: kind = {self.kind!r} must be 'physical' or 'flat'")
        if not 0.0 < self.burst_fraction < 1.0:
            raise ValueError(f"reference: burst_fraction = {self.burst_fraction} must lie between 0 and 1")
        if self.num_histories < 100:
            raise ValueError(f"reference: num_histories = {self.num_histories} must be at least 100")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(field.default, tuple):
                continue
            if len(value) != 2 or not all(np.isfinite(value)) or value[1] < 0:
                raise ValueError(
                    f"reference: {field.name} = {value} must be [value, uncertainty], the uncertainty not negative"
                )


HYPER_NAMES = tuple(field.name for field in dataclasses.fields(ReferenceConfig) if isinstance(field.default, tuple))
_POSITIVE = ("main_sequence_scatter", "quiescent_scatter", "dust_star_forming", "dust_quiescent", "birth_cloud")
_SCHECHTER_REDSHIFT = 0.06


def draw_hyper(key: Array | None, config: ReferenceConfig) -> dict[str, float]:
    """One set of hyper-parameters: the central values without a key, else a draw within their uncertainties."""
    values = {name: getattr(config, name) for name in HYPER_NAMES}
    noise = np.zeros(len(HYPER_NAMES)) if key is None else np.asarray(jax.random.normal(key, (len(HYPER_NAMES),)))
    drawn = {name: float(value + sigma * n) for (name, (value, sigma)), n in zip(values.items(), noise, strict=True)}
    # Scales stay positive however wide the uncertainty that a user gives.
    return {name: max(value, 0.01) if name in _POSITIVE else value for name, value in drawn.items()}


def log_mass_function(log_mass: Array, redshift: Array, hyper: dict[str, float]) -> Array:
    """log10 of the double Schechter function [1/dex/Mpc^3]. (Baldry+08, eq. 6, times density evolution)"""
    x = 10.0 ** (log_mass - hyper["log_mstar"])
    one = 10.0 ** hyper["log_phi1"] * x ** (hyper["alpha1"] + 1.0)
    two = 10.0 ** hyper["log_phi2"] * x ** (hyper["alpha2"] + 1.0)
    shape = jnp.log10(np.log(10.0) * (one + two)) - x / np.log(10.0)
    return shape + hyper["density_evolution"] * _growth(redshift)


def quiescent_fraction(log_mass: Array, redshift: Array, hyper: dict[str, float]) -> Array:
    """Fraction of quiescent galaxies at a mass. (Peng+10, eq. 2, the mass evolving)"""
    mass = hyper["quiescent_mass"] + hyper["quiescent_evolution"] * _growth(redshift)
    return 1.0 - jnp.exp(-(10.0 ** (hyper["quiescent_slope"] * (log_mass - mass))))


def _growth(redshift: Array) -> Array:
    """log10(1 + z) since the redshift at which the relations are known."""
    return jnp.log10((1.0 + redshift) / (1.0 + _SCHECHTER_REDSHIFT))


def main_sequence(log_mass: Array, age_universe: Array, hyper: dict[str, float] | None = None) -> Array:
    """log10 SFR [Msun/yr] of the main sequence at a mass and an age of the Universe [Gyr]. (Speagle+14, eq. 28)"""
    offset, slope = (hyper["main_sequence_offset"], hyper["main_sequence_slope"]) if hyper else (0.0, 0.0)
    relation = (0.84 - 0.026 * age_universe) * log_mass - (6.51 - 0.11 * age_universe)
    return relation + offset + slope * (log_mass - 10.5)


def sample_reference(
    key: Array,
    surveys: tuple[ForwardModel, ...],
    hyper: dict[str, float],
    library: Library,
    num: int,
    tilt: float = 1.0,
) -> Float[Array, "num dim"]:
    """Draws of the reference as the surveys detect it.

    Galaxies too faint at their redshift for any mass-to-light ratio are not proposed; the others are drawn from the volume,
    sent through the forward model and kept with their detection probability.

    Args:
        surveys: whoever detects a galaxy.
        num: how many detected galaxies.
        tilt: they are kept with this power of the detection probability; 0: all within the bounds.

    Raises:
        ValueError: the selection keeps next to nothing of the reference.
    """
    key_light, key = jax.random.split(key)
    forward = surveys[0]
    proposal = _build_proposal(key_light, surveys, hyper, library, tilt)
    kept: list[np.ndarray] = []
    total, batch = 0, max(4 * num, 20_000)
    for attempt in range(60):
        keys = jax.random.split(jax.random.fold_in(key, attempt), 3)
        theta = _propose(keys[0], forward, hyper, library, proposal, batch)
        keep = np.asarray(jax.random.uniform(keys[1], (batch,))) < detection_by_any(surveys, theta) ** tilt
        kept.append(theta[keep])
        total += int(keep.sum())
        if total >= num:
            return jnp.asarray(np.concatenate(kept)[:num])
        if attempt >= 4 and total == 0:
            break  # not one of 100,000: the remaining batches would not help
    raise ValueError(
        f"the selection keeps only {total} of {(attempt + 1) * batch} galaxies of the reference population: check "
        "[selection] (AB magnitudes?) and the bounds of redshift and log_mass"
    )


class Library(NamedTuple):
    """Histories of the model's own prior, sorted by specific star-formation rate, at a few redshifts."""

    redshift: np.ndarray
    theta: Array  # (redshift, history, dim)
    log_ssfr: Array  # (redshift, history)


class _Proposal(NamedTuple):
    """Cells of redshift and mass, with the number density of those that could be detected."""

    redshift: np.ndarray
    log_mass: np.ndarray
    cumulative: np.ndarray


def sample_uncertain(
    key: Array, surveys: tuple[ForwardModel, ...], config: ReferenceConfig, num: int, num_hyper: int
) -> Float[Array, "num dim"]:
    """Draws in random order of so many references, each with hyper-parameters of its own. Args and errors: `sample_reference`."""
    key_library, key_hyper, key_draw, key_order = jax.random.split(key, 4)
    library, each = build_library(key_library, surveys[0], config), -(-num // num_hyper)
    draws = [
        sample_reference(
            jax.random.fold_in(key_draw, i),
            surveys,
            draw_hyper(jax.random.fold_in(key_hyper, i), config),
            library,
            each,
        )
        for i in range(num_hyper)
    ]
    return jax.random.permutation(key_order, jnp.concatenate(draws))[:num]


def build_library(key: Array, forward: ForwardModel, config: ReferenceConfig) -> Library:
    """Draw histories from the model's own prior, bursts as small as the literature has them, and sort them."""
    space = forward.space
    bounds = space["redshift"]
    redshift = np.expm1(np.linspace(np.log1p(bounds.low), np.log1p(bounds.high), 8))
    key_theta, key_burst = jax.random.split(key)
    size = config.num_histories
    flat = space.sample_flat(key_theta, size)
    if "f_burst" in space.names:
        burst = jnp.minimum(config.burst_fraction * jax.random.exponential(key_burst, (size,)), 0.95)
        flat = flat.at[:, space.index("f_burst")].set(burst)
    thetas, rates = [], []
    for z in redshift:
        theta = np.array(flat)
        theta[:, space.index("redshift")] = z
        rate = map_batches(ForwardModel.derived, forward, theta)["log_ssfr"]
        order = np.argsort(rate, kind="stable")
        thetas.append(theta[order])
        rates.append(rate[order])
    return Library(redshift, jnp.asarray(np.stack(thetas)), jnp.asarray(np.stack(rates)))


@partial(jax.jit, static_argnames="cosmology")
def _number_density(cosmology: Cosmology, log_mass: Array, redshift: Array, hyper: dict[str, float]) -> Array:
    """Galaxies in a unit of log mass and redshift, over the whole sky [1/dex]."""
    per_volume = 10.0 ** log_mass_function(log_mass[None, :], redshift[:, None], hyper)
    return per_volume * cosmology.differential_volume(redshift)[:, None]


def _build_proposal(
    key: Array,
    surveys: tuple[ForwardModel, ...],
    hyper: dict[str, float],
    library: Library,
    tilt: float,
    pilot: int = 20_000,
) -> _Proposal:
    """Number density on a grid, without the cells whose brightest galaxies stay undetected."""
    forward = surveys[0]
    space = forward.space
    bounds, mass = space["redshift"], space["log_mass"]
    redshift = np.expm1(np.linspace(np.log1p(bounds.low), np.log1p(bounds.high), 241))
    z = 0.5 * (redshift[1:] + redshift[:-1])
    log_mass = np.linspace(mass.low - 0.2, mass.high - 0.1, 251)
    m = 0.5 * (log_mass[1:] + log_mass[:-1])
    density = np.asarray(_number_density(forward.galaxy.cosmology, m, z, hyper)) * np.diff(redshift)[:, None]
    # The least mass that is ever detected at each redshift, from galaxies of all kinds placed there.
    keys = jax.random.split(key, 3)
    trial_z = jax.random.uniform(keys[0], (pilot,), minval=bounds.low, maxval=bounds.high)
    trial_mass = jax.random.uniform(keys[1], (pilot,), minval=mass.low, maxval=mass.high - 0.5)
    theta = _dress(keys[2], forward, hyper, library, trial_z, trial_mass)
    seen = detection_by_any(surveys, theta) ** tilt > 1e-3
    least = _lower_envelope(np.asarray(trial_z)[seen], np.asarray(trial_mass)[seen], z, margin=0.3)
    density = np.where(m[None, :] >= least[:, None], density, 0.0)
    if density.sum() == 0:
        raise ValueError("the selection keeps nothing of the reference population: check [selection] (AB magnitudes?)")
    return _Proposal(redshift, log_mass, np.cumsum(density.ravel()) / density.sum())


def _lower_envelope(z: np.ndarray, mass: np.ndarray, at: np.ndarray, margin: float) -> np.ndarray:
    """Smallest detected mass in bins of redshift, less a margin; infinite where nothing is detected."""
    edges = np.linspace(at[0], at[-1], 25)
    middle = 0.5 * (edges[1:] + edges[:-1])
    which = np.digitize(z, edges) - 1
    least = np.array([mass[which == i].min() if np.any(which == i) else np.inf for i in range(len(middle))])
    # Near zero redshift the envelope falls steeply inside a bin; the smaller neighbour is the safe choice.
    least = np.minimum(least, np.concatenate([[-np.inf], least[:-1]]))
    return (
        np.interp(at, middle, np.where(np.isfinite(least), least, np.where(middle < middle.mean(), -99.0, 99.0)))
        - margin
    )


def _propose(
    key: Array, forward: ForwardModel, hyper: dict[str, float], library: Library, proposal: _Proposal, num: int
) -> Float[np.ndarray, "num dim"]:
    keys = jax.random.split(key, 3)
    uniform = np.asarray(jax.random.uniform(keys[0], (num,)))
    cell = np.minimum(np.searchsorted(proposal.cumulative, uniform), proposal.cumulative.size - 1)
    i, j = np.divmod(cell, len(proposal.log_mass) - 1)
    jitter = np.asarray(jax.random.uniform(keys[1], (2, num)))
    z = proposal.redshift[i] + jitter[0] * np.diff(proposal.redshift)[i]
    mass = proposal.log_mass[j] + jitter[1] * np.diff(proposal.log_mass)[j]
    return _dress(keys[2], forward, hyper, library, jnp.asarray(z), jnp.asarray(mass))


def _dress(
    key: Array, forward: ForwardModel, hyper: dict[str, float], library: Library, redshift: Array, log_mass: Array
) -> Float[np.ndarray, "num dim"]:
    """Give galaxies of known redshift and surviving mass all their other parameters."""
    theta = np.array(_draw_unit_mass(key, forward, hyper, library, redshift, log_mass))
    lost = map_batches(ForwardModel.derived, forward, theta)["log_mass_surviving"]
    bounds = forward.space["log_mass"]
    theta[:, forward.space.index("log_mass")] = np.clip(log_mass - lost, bounds.low + 1e-3, bounds.high - 1e-3)
    return theta


@jax.jit
def _draw_unit_mass(
    key: Array, forward: ForwardModel, hyper: dict[str, float], library: Library, redshift: Array, log_mass: Array
) -> Float[Array, "num dim"]:
    """All parameters of galaxies of known redshift and surviving mass, but 1 Msun formed."""
    space, num = forward.space, len(redshift)
    keys = jax.random.split(key, 9)
    quiescent = jax.random.uniform(keys[0], (num,)) < quiescent_fraction(log_mass, redshift, hyper)
    age_universe = forward.galaxy.cosmology.age(redshift)
    noise = jax.random.normal(keys[1], (num,))
    star_forming = main_sequence(log_mass, age_universe, hyper) - log_mass + hyper["main_sequence_scatter"] * noise
    log_ssfr = jnp.where(quiescent, hyper["quiescent_ssfr"] + hyper["quiescent_scatter"] * noise, star_forming)
    theta = _match_histories(keys[2], library, redshift, log_ssfr)

    def put(theta: Array, name: str, value: Array) -> Array:
        return theta.at[:, space.index(name)].set(value) if name in space.names else theta

    def truncated(key: Array, name: str, mean: Array | float, scatter: Array | float) -> Array:
        low, high = (space[name].low - mean) / scatter, (space[name].high - mean) / scatter
        return _inside(space, name, mean + scatter * jax.random.truncated_normal(key, low, high, (num,)))

    if "kappa1" in space.names:
        kappa = theta[:, space.index("kappa1")] + hyper["history_offset"]
        theta = put(theta, "kappa1", _inside(space, "kappa1", kappa + hyper["history_slope"] * (log_mass - 10.8)))
    metallicity = jnp.interp(log_mass, _MZR_MASS, _MZR_MEDIAN) + hyper["metallicity_offset"]
    metallicity = metallicity + hyper["metallicity_evolution"] * _growth(redshift)
    theta = put(theta, "redshift", redshift)
    theta = put(
        theta, "logzsol", truncated(keys[3], "logzsol", metallicity, jnp.interp(log_mass, _MZR_MASS, _MZR_SCATTER))
    )
    dust_mean = hyper["dust_star_forming"] * 10.0 ** (hyper["dust_mass_slope"] * (log_mass - 10.0))
    lognormal = dust_mean * 10.0 ** (0.25 * jax.random.normal(keys[4], (num,)))
    exponential = hyper["dust_quiescent"] * jax.random.exponential(keys[5], (num,))
    tau_v = jnp.clip(jnp.where(quiescent, exponential, lognormal), 1e-3, space["tau_v"].high - 1e-3)
    theta = put(theta, "tau_v", tau_v)
    ratio = hyper["birth_cloud"] * (1.0 + 0.3 * jax.random.truncated_normal(keys[6], -3.0, 3.0, (num,)))
    theta = put(theta, "tau_birth", jnp.clip(tau_v * ratio, 1e-3, space["tau_birth"].high - 1e-3))
    index = hyper["dust_index"] + hyper["dust_index_slope"] * jnp.log10(jnp.maximum(tau_v, 0.02) / 0.3)
    theta = put(theta, "dust_index", truncated(keys[7], "dust_index", index, 0.25))
    theta = _dress_gas_and_dust(keys[8], forward, theta)
    return put(theta, "log_mass", jnp.zeros(num))


def _dress_gas_and_dust(key: Array, forward: ForwardModel, theta: Float[Array, "num dim"]) -> Float[Array, "num dim"]:
    """Draw the parameters of gas, dust emission and nucleus, where the model has them."""
    space, num = forward.space, len(theta)
    drawn: dict[str, Array] = {}
    for i, (name, (mean, scatter)) in enumerate(_OPTIONAL.items()):
        normal = mean + scatter * jax.random.normal(jax.random.fold_in(key, i), (num,))
        drawn[name] = 10.0**normal if name == "umin" else normal
    for i, (name, mean) in enumerate(_AGN_MEAN.items()):
        drawn[name] = mean * jax.random.exponential(jax.random.fold_in(key, 100 + i), (num,))
    drawn["logz_gas"] = theta[:, space.index("logzsol")]
    for name, values in drawn.items():
        if name in space.names:
            theta = theta.at[:, space.index(name)].set(_inside(space, name, values))
    return theta


def _inside(space: ParameterSpace, name: str, value: Array) -> Array:
    """Clipped to just within the bounds: on a bound itself u is not defined."""
    low, high = space[name].low, space[name].high
    margin = 1e-4 * (high - low)
    return jnp.clip(value, low + margin, high - margin)


def _match_histories(key: Array, library: Library, redshift: Array, log_ssfr: Array) -> Float[Array, "num dim"]:
    """A random history of the library with about the wanted specific star-formation rate."""
    edges = 0.5 * (library.redshift[1:] + library.redshift[:-1])
    which = jnp.searchsorted(jnp.asarray(edges), redshift)
    size = library.log_ssfr.shape[1]
    jitter = jax.random.randint(key, redshift.shape, -25, 26)
    rank = jnp.zeros(redshift.shape, jnp.int32)
    for i in range(len(library.redshift)):
        rank = jnp.where(which == i, jnp.searchsorted(library.log_ssfr[i], log_ssfr), rank)
    return library.theta[which, jnp.clip(rank + jitter, 0, size - 1)]
