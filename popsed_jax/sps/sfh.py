"""Star-formation histories, each normalised to one solar mass formed by the age of the Universe at the redshift.

A history is given as a `Composition`: weights on tabulated basis histories (a function of t / t_universe, so that what
they emit can be tabulated in redshift), a burst of one age, and optionally free weights on every template age.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from astropy.table import Table
from jaxtyping import Array, Float

from popsed_jax.data import data_path
from popsed_jax.parameters import Parameter
from popsed_jax.sps import diffstar

SFHName = Literal["bases", "delayed_tau", "burst", "continuity", "diffstar"]
# Gauss rules for the star-formation rate within an age bin: bins of constant width in log age are narrow but for the oldest,
# in which a history can rise, fall and quench.
_RULE, _RULE_OLDEST = np.polynomial.legendre.leggauss(3), np.polynomial.legendre.leggauss(24)
_NUM_OLDEST = 24

_BURST_AGE = Parameter("t_burst", 0.01, 13.27, "Gyr", r"$t_{\rm burst}$", "lookback time of the burst")


class Composition(NamedTuple):
    """How one solar mass formed is spread over time; the three parts sum to one.

    Attributes:
        basis: mass fraction of each tabulated basis history.
        burst_fraction: mass fraction formed in the burst.
        burst_age: lookback time of the burst [Gyr].
        age_weights: mass fraction on each template age, None when the history has no such part.
    """

    basis: Float[Array, " basis"]
    burst_fraction: Float[Array, ""]
    burst_age: Float[Array, ""]
    age_weights: Float[Array, " age"] | None = None


@dataclasses.dataclass(frozen=True)
class BasisBurst:
    """Four non-negative basis histories and a burst. (Li+24, sec. 2.1; Hahn+23; Diffstar's bases: data/NOTICE.md)"""

    num_basis: ClassVar[int] = 4
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("kappa1", 0.0, 1.0, "", r"$\kappa_1$", "stick-breaking variable 1 of the weights", power=3.0),
        Parameter("kappa2", 0.0, 1.0, "", r"$\kappa_2$", "stick-breaking variable 2 of the weights", power=2.0),
        Parameter("kappa3", 0.0, 1.0, "", r"$\kappa_3$", "stick-breaking variable 3 of the weights"),
        Parameter("f_burst", 0.0, 1.0, "", r"$f_{\rm burst}$", "fraction of the mass formed in the burst"),
        _BURST_AGE,
    )

    def compose(self, params: Mapping[str, Array], age_universe: Array, age_edges: Array) -> Composition:
        """Weights of the bases from the stick-breaking variables, times what the burst leaves."""
        weights = stick_breaking(jnp.stack([params["kappa1"], params["kappa2"], params["kappa3"]]))
        burst_age = jnp.minimum(params["t_burst"], age_universe)
        return Composition(weights * (1.0 - params["f_burst"]), params["f_burst"], burst_age)

    def basis_age_weights(self, age_universe: np.ndarray, age_edges: np.ndarray) -> np.ndarray:
        """Mass fraction of each basis in each template age bin, (redshift, basis, age), in float64."""
        x, density = load_bases()
        cumulative = np.concatenate([np.zeros((len(density), 1)), _cumulative_trapezoid(density, x)], axis=1)
        lookback = np.clip(1.0 - age_edges / age_universe[:, None], 0.0, 1.0)  # fractional cosmic time of the bin edges
        pairs = zip(density, cumulative, strict=True)
        formed = np.stack([_interp_quadratic(lookback, x, *pair) for pair in pairs], axis=1)
        return formed[..., :-1] - formed[..., 1:]


@dataclasses.dataclass(frozen=True)
class DelayedTau:
    """SFR proportional to t exp(-t / tau) since the Universe was `t_start` old. (e.g. Simha+14, eq. 2)"""

    num_basis: ClassVar[int] = 0
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("log_tau", -1.0, 1.5, "", r"$\log \tau$", "log10 of the e-folding time in Gyr"),
        Parameter("start_fraction", 0.0, 0.9, "", r"$t_0/t_{\rm univ}$", "start of star formation over cosmic age"),
    )

    def compose(self, params: Mapping[str, Array], age_universe: Array, age_edges: Array) -> Composition:
        """The star-formation rate integrated in every age bin."""
        duration = age_universe * (1.0 - params["start_fraction"])
        tau = 10.0 ** params["log_tau"]

        def rate(age: Array) -> Array:
            since = jnp.maximum(duration - age, 0.0)
            return since * jnp.exp(-since / tau)

        return _of_ages(_integrate(rate, duration, age_edges))

    def basis_age_weights(self, age_universe: np.ndarray, age_edges: np.ndarray) -> np.ndarray:
        """No tabulated bases."""
        return np.zeros((len(age_universe), 0, len(age_edges) - 1))


@dataclasses.dataclass(frozen=True)
class SingleBurst:
    """All stars formed at one lookback time."""

    num_basis: ClassVar[int] = 0
    parameters: ClassVar[tuple[Parameter, ...]] = (_BURST_AGE,)

    def compose(self, params: Mapping[str, Array], age_universe: Array, age_edges: Array) -> Composition:
        """One burst, no older than the Universe."""
        return Composition(jnp.zeros(0), jnp.ones(()), jnp.minimum(params["t_burst"], age_universe))

    def basis_age_weights(self, age_universe: np.ndarray, age_edges: np.ndarray) -> np.ndarray:
        """No tabulated bases."""
        return np.zeros((len(age_universe), 0, len(age_edges) - 1))


@dataclasses.dataclass(frozen=True)
class Continuity:
    """A constant rate in each of seven bins of lookback time, neighbours tied by a prior on their ratio. (Leja+19, sec. 2.2)

    The bins end at 30 Myr, 100 Myr, four equal steps in log time up to 0.85 of the age of the Universe, and that age. The
    ratios log10(SFR_n / SFR_n+1), the youngest first, are Student-t variates of two degrees of freedom and scale 0.3
    (Leja+19, eq. 2-3), here within five dex.
    """

    num_basis: ClassVar[int] = 0
    num_bins: ClassVar[int] = 7
    parameters: ClassVar[tuple[Parameter, ...]] = tuple(
        Parameter(
            f"log_sfr_ratio{n}",
            -5.0,
            5.0,
            "dex",
            rf"$\log {{\rm SFR}}_{n}/{{\rm SFR}}_{n + 1}$",
            f"log10 star-formation rate of lookback bin {n} over that of the older bin {n + 1}",
            student_t=0.3,
        )
        for n in range(1, 7)
    )

    def edges(self, age_universe: Float[Array, ""]) -> Float[Array, " edge"]:
        """Edges of the bins in lookback time [Gyr]."""
        steps = jnp.linspace(0.0, 1.0, self.num_bins - 2)
        middle = 0.1 * (0.85 * age_universe / 0.1) ** steps
        return jnp.concatenate([jnp.array([0.0, 0.03]), middle, age_universe[None]])

    def compose(self, params: Mapping[str, Array], age_universe: Array, age_edges: Array) -> Composition:
        """Rates times the exact overlap of the bins with the template ages'."""
        ratios = jnp.stack([params[p.name] for p in self.parameters])
        log_rate = -jnp.concatenate([jnp.zeros(1, ratios.dtype), jnp.cumsum(ratios)])
        # The scale drops out below; the largest rate is 1, as the ratios span up to 30 dex.
        rate = 10.0 ** (log_rate - jax.lax.stop_gradient(log_rate.max()))
        edges = self.edges(age_universe)
        low = jnp.maximum(age_edges[:-1, None], edges[:-1])
        high = jnp.minimum(age_edges[1:, None], edges[1:])
        return _of_ages(jnp.maximum(high - low, 0.0) @ rate)

    def basis_age_weights(self, age_universe: np.ndarray, age_edges: np.ndarray) -> np.ndarray:
        """No tabulated bases."""
        return np.zeros((len(age_universe), 0, len(age_edges) - 1))


@dataclasses.dataclass(frozen=True)
class Diffstar:
    """Stars from the gas that a growing halo accretes, with a quenching event. (Alarcon+23; `popsed_jax.sps.diffstar`)"""

    num_basis: ClassVar[int] = 0
    parameters: ClassVar[tuple[Parameter, ...]] = diffstar.PARAMETERS

    def compose(self, params: Mapping[str, Array], age_universe: Array, age_edges: Array) -> Composition:
        """The star-formation rate integrated in every age bin."""

        def rate(age: Array) -> Array:
            return diffstar.star_formation_rate(params, age_universe - age)

        return _of_ages(_integrate(rate, age_universe, age_edges))

    def basis_age_weights(self, age_universe: np.ndarray, age_edges: np.ndarray) -> np.ndarray:
        """No tabulated bases."""
        return np.zeros((len(age_universe), 0, len(age_edges) - 1))


SFHModel = BasisBurst | DelayedTau | SingleBurst | Continuity | Diffstar
_MODELS: dict[str, SFHModel] = {
    "bases": BasisBurst(),
    "delayed_tau": DelayedTau(),
    "burst": SingleBurst(),
    "continuity": Continuity(),
    "diffstar": Diffstar(),
}


def build_sfh(name: str) -> SFHModel:
    """The history of that name. Raises ValueError with the names there are."""
    if name not in _MODELS:
        raise ValueError(f"no star-formation history {name!r}; choose one of {', '.join(get_args(SFHName))}")
    return _MODELS[name]


def _integrate(rate: Callable[[Array], Array], oldest: Array, age_edges: Array) -> Array:
    """Mass formed in each age bin, up to the age `oldest`, by Gauss rules.

    Differences of the cumulative mass would cancel in float32 in the youngest bins.
    """
    low, high = age_edges[:-1], jnp.minimum(age_edges[1:], oldest)  # nothing formed before
    width = jnp.maximum(high - low, 0.0)
    num = max(len(age_edges) - 1 - _NUM_OLDEST, 0)
    parts = ((slice(None, num), _RULE), (slice(num, None), _RULE_OLDEST))
    ages = [low[part, None] + width[part, None] * jnp.asarray(0.5 * (1.0 + x)) for part, (x, _) in parts]
    # One call: the rate is compiled once.
    rates = jnp.split(rate(jnp.concatenate([age.ravel() for age in ages])), [ages[0].size])
    means = [r.reshape(a.shape) @ jnp.asarray(0.5 * w) for r, a, (_, (_, w)) in zip(rates, ages, parts, strict=True)]
    return width * jnp.concatenate(means)


def _of_ages(mass: Array) -> Composition:
    """A history of free weights on the template ages alone."""
    return Composition(jnp.zeros(0), jnp.zeros(()), jnp.ones(()), mass / jnp.sum(mass))


def stick_breaking(kappa: Float[Array, " 3"]) -> Float[Array, " 4"]:
    """Weights of four parts: 1-k1, k1(1-k2), k1 k2 (1-k3), k1 k2 k3. (Betancourt 2013, eq. 3)"""
    left = jnp.cumprod(kappa)
    before = jnp.concatenate([jnp.ones(1, kappa.dtype), left[:-1]])
    return jnp.concatenate([before * (1.0 - kappa), left[-1:]])


def stick_breaking_inverse(weights: Float[Array, "*batch 4"]) -> Float[Array, "*batch 3"]:
    """The stick-breaking variables of given weights (weights sum to one)."""
    after = jnp.cumsum(weights[..., ::-1], axis=-1)[..., ::-1]
    # An empty stick has no defined break; any value gives the same weights.
    return jnp.where(after[..., :-1] > 0, after[..., 1:] / jnp.maximum(after[..., :-1], 1e-30), 0.5)


def load_bases() -> tuple[np.ndarray, np.ndarray]:
    """Nodes of t / t_universe and the bases' densities (basis, node), each with unit integral."""
    table = Table.read(data_path("sfh_bases"), format="ascii.ecsv")
    x = np.asarray(table["x"], dtype=float)
    density = np.stack([np.asarray(table[name], dtype=float) for name in table.colnames if name != "x"])
    return x, density / np.trapezoid(density, x, axis=1)[:, None]


def _cumulative_trapezoid(density: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.cumsum(0.5 * (density[:, 1:] + density[:, :-1]) * np.diff(x), axis=1)


def _interp_quadratic(at: np.ndarray, x: np.ndarray, density: np.ndarray, cumulative: np.ndarray) -> np.ndarray:
    """Exact integral from 0 to `at` of the piecewise-linear density."""
    i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    step = at - x[i]
    slope = (density[i + 1] - density[i]) / (x[i + 1] - x[i])
    return cumulative[i] + density[i] * step + 0.5 * slope * step**2
