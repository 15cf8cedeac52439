"""Star-formation histories, each normalised to one solar mass formed by the age of the Universe at the redshift.

A history is given as a `Composition`: weights on tabulated basis histories (a function of t / t_universe, so that what
they emit can be tabulated in redshift), a burst of one age, and optionally free weights on every template age.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from astropy.table import Table
from jaxtyping import Array, Float

from popsed_jax.data import data_path
from popsed_jax.parameters import Parameter

SFHName = Literal["bases", "delayed_tau", "burst"]
_GAUSS_NODES, _GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(4)

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
        """The star-formation rate integrated in every age bin by a 4-point Gauss rule.

        Differences of the cumulative mass would cancel in float32 in the youngest bins.
        """
        duration = age_universe * (1.0 - params["start_fraction"])
        tau = 10.0 ** params["log_tau"]
        low, high = age_edges[:-1], age_edges[1:]
        high = jnp.minimum(high, duration)  # nothing formed before the start
        width = jnp.maximum(high - low, 0.0)
        age = low[:, None] + width[:, None] * jnp.asarray(0.5 * (1.0 + _GAUSS_NODES))
        since = jnp.maximum(duration - age, 0.0)
        rate = since * jnp.exp(-since / tau)
        mass = width * (rate @ jnp.asarray(0.5 * _GAUSS_WEIGHTS))
        zero = jnp.zeros(())
        return Composition(jnp.zeros(0), zero, jnp.ones(()), mass / jnp.sum(mass))

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


SFHModel = BasisBurst | DelayedTau | SingleBurst
_MODELS: dict[str, SFHModel] = {"bases": BasisBurst(), "delayed_tau": DelayedTau(), "burst": SingleBurst()}


def build_sfh(name: str) -> SFHModel:
    """The history of that name. Raises ValueError with the names there are."""
    if name not in _MODELS:
        raise ValueError(f"no star-formation history {name!r}; choose one of {', '.join(get_args(SFHName))}")
    return _MODELS[name]


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
