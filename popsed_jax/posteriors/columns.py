"""Posteriors as columns: what `popsed_jax.posterior_run` writes for every galaxy of a catalogue."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from popsed_jax.flags import Flag
from popsed_jax.observe.forward import ForwardModel
from popsed_jax.parameters import ParameterSpace
from popsed_jax.population.batching import map_batches
from popsed_jax.population.model import Population
from popsed_jax.posteriors.estimator import Columns, Rows
from popsed_jax.posteriors.hmc import HMCConfig, HMCPosterior, sample_hmc
from popsed_jax.posteriors.novelty import FLAGGED
from popsed_jax.posteriors.npe import NPE
from popsed_jax.posteriors.photoz import COLUMNS, density_on_grid, summarise_pz
from popsed_jax.posteriors.reweight import Weighted, as_prior, average, log_flat, log_prob_of, reweight
from popsed_jax.posteriors.simulate import apportioned
from popsed_jax.posteriors.survey import LEAST_KEPT, LearnedSurvey, Photometry, counted_members
from popsed_jax.sps.config import DERIVED_META

PriorName = Literal["learned", "flat", "broad"]
NUM_GRID = 200
_LEVELS = np.array([0.16, 0.5, 0.84])
_GROUP = 25  # samples of a galaxy under one prior at a time: members get whole groups


class HasLogProb(Protocol):
    """A prior of the user's."""

    def log_prob(self, theta: Any) -> Any:
        """Log density, up to a constant, of galaxies (num, dim)."""


class HasSpace(Protocol):
    """A population, or a model of one: what parameters there are."""

    @property
    def space(self) -> ParameterSpace:
        """Names, units and bounds."""

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, in order."""


def photometry_of(rows: Rows) -> Photometry:
    """A catalogue's galaxies, with finite numbers where a band is missing."""
    there = np.isfinite(rows.flux) & np.isfinite(rows.error)
    flux, error = np.where(there, rows.flux, 0.0), np.where(there, rows.error, 1.0)
    return Photometry(*(jnp.asarray(part) for part in (flux, error, there)))


@dataclasses.dataclass(frozen=True)
class Summary:
    """Which columns a posterior becomes.

    Args:
        population: whose parameters they are: a population, or a model of one.
        forward: of the survey: for what follows from the parameters (masses in living stars, star-formation rates, ages).
        num_samples: unweighted samples of each galaxy to keep, as vectors.
        num_grid: points of p(redshift) to keep, evenly spaced between the bounds; 0: its summaries alone.
    """

    population: HasSpace
    forward: ForwardModel
    num_samples: int = 0
    num_grid: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters, and what follows from them."""
        return (*self.population.names, *DERIVED_META)

    @property
    def grid(self) -> Float[np.ndarray, " grid"]:
        """Redshifts of p(redshift)."""
        bounds = self.population.space["redshift"]
        num = self.num_grid or NUM_GRID
        return np.linspace(bounds.low, bounds.high, num)

    def describe(self) -> dict[str, tuple[str, str]]:
        """Unit and description of every column, in order."""
        columns: dict[str, tuple[str, str]] = {}
        known = {p.name: (p.unit, p.description) for p in self.population.space.parameters}
        known |= {name: (unit, text) for name, (unit, _, text) in DERIVED_META.items()}
        for name, (unit, text) in known.items():
            columns[name] = (unit, f"{text}: median")
            columns[f"{name}_low"] = (unit, f"{name}: 16 % quantile")
            columns[f"{name}_high"] = (unit, f"{name}: 84 % quantile")
        columns |= {name: ("", text) for name, text in COLUMNS.items()}
        if self.num_grid:
            low, high = self.grid[[0, -1]]
            columns["pz"] = ("", f"p(redshift) at {self.num_grid} redshifts evenly spaced from {low:g} to {high:g}")
        if self.num_samples:
            for name, (unit, _) in known.items():
                columns[f"{name}_samples"] = (unit, f"{name}: samples of the posterior")
        return columns

    def columns(self, posterior: Weighted, density: Float[np.ndarray, "galaxy grid"], seed: int) -> Columns:
        """The columns of some galaxies."""
        theta = posterior.theta
        derived = map_batches(ForwardModel.derived, self.forward, theta.reshape(-1, theta.shape[-1]))
        following = [derived[name].reshape(*theta.shape[:2], 1) for name in DERIVED_META]
        posterior = posterior._replace(theta=np.concatenate([theta, *following], axis=2))
        quantiles = posterior.quantiles(_LEVELS)
        found: Columns = {}
        for i, name in enumerate(self.names):
            for column, level in ((f"{name}_low", 0), (name, 1), (f"{name}_high", 2)):
                found[column] = quantiles[:, level, i]
        found |= {name: np.asarray(values, float) for name, values in summarise_pz(self.grid, density).items()}
        if self.num_grid:
            found["pz"] = density.astype(np.float32)
        if self.num_samples:
            drawn = posterior.resample(np.random.default_rng(seed), self.num_samples).astype(np.float32)
            for i, name in enumerate(self.names):
                found[f"{name}_samples"] = drawn[:, :, i]
        return found

    def blank(self) -> Columns:
        """The columns of no galaxy."""
        found: Columns = {name: np.empty(0) for name in self.describe()}
        if self.num_grid:
            found["pz"] = np.empty((0, self.num_grid), np.float32)
        if self.num_samples:
            for name in self.names:
                found[f"{name}_samples"] = np.empty((0, self.num_samples), np.float32)
        return found


@dataclasses.dataclass
class NPEEstimator:
    """Posteriors by a trained network, under the learned population, the analytic prior, or a broad one.

    Args:
        bands: of the network.
        npe: the network.
        population: the learned one.
        prior: "learned": the average over the population's members; "broad": the analytic prior as the survey keeps its
            galaxies; "flat": the analytic prior, by weights from the broad one, as any other with a `log_prob(theta)`.
        num_draws: samples behind the summaries, or a few more; of each member by its share.
    """

    bands: tuple[str, ...]
    npe: NPE
    population: Population
    prior: str | HasLogProb
    summary: Summary
    num_draws: int = 500

    def __post_init__(self) -> None:
        """Refuse an unknown prior."""
        if isinstance(self.prior, str) and self.prior not in get_args(PriorName):
            raise ValueError(f"prior must be one of {', '.join(get_args(PriorName))}, got {self.prior!r}")

    @property
    def shares(self) -> dict[int, float]:
        """The priors that samples are drawn under, by the network's label, and the share of each."""
        if self.prior != "learned":
            return {self.npe.broad: 1.0}
        return dict(zip(*counted_members(self.population), strict=True))

    def describe(self) -> dict[str, tuple[str, str]]:
        """Unit and description of every column, in order."""
        own = {
            "ess": ("", f"effective sample size of {self.num_draws} weighted samples"),
            "novelty": (
                "",
                "distance to the nearest simulated galaxies in magnitudes and colours, over that of a simulated one",
            ),
            "novelty_p": ("", "share of the simulated galaxies that are as unlike the others"),
        }
        return self.summary.describe() | own

    def __call__(self, seed: int, rows: Rows) -> Columns:
        """Columns and flags of some galaxies."""
        if not len(rows.row):
            return self.summary.blank() | {name: np.empty(0) for name in ("ess", "novelty", "novelty_p")}
        photometry = photometry_of(rows)
        posterior = self.posterior(seed, photometry)
        novelty, share = (np.asarray(part, float) for part in self.npe.unlikeness(photometry))
        flags = np.where(share < FLAGGED, Flag.OUT_OF_DISTRIBUTION.value, 0)
        flags |= np.where(posterior.low, Flag.LOW_ESS.value, 0)
        own = {"ess": posterior.ess, "novelty": novelty, "novelty_p": share, "flags": flags}
        return self.summary.columns(posterior, self._density(photometry, posterior), seed) | own

    def posterior(self, seed: int, photometry: Photometry) -> Weighted:
        """Weighted samples of each galaxy."""
        labels, shares = list(self.shares), np.array(list(self.shares.values()))
        groups = apportioned(shares, max(len(shares), self.num_draws // _GROUP))
        each = -(-self.num_draws // int(groups.sum()))
        rows = jax.tree.map(lambda part: np.repeat(np.asarray(part), groups.sum(), axis=0), photometry)
        told = np.tile(np.repeat(labels, groups), len(photometry.flux))
        theta = self.npe.sample(jax.random.key(seed), rows, each, told)[0]
        theta = theta.reshape(len(photometry.flux), -1, theta.shape[2])
        if self._by_weights:
            log_from = log_prob_of(as_prior(self.npe.proposal, self.npe.broad), theta)
            flat = isinstance(self.prior, str)
            log_to = log_flat(self.population, theta) if flat else log_prob_of(self.prior, theta)
            return reweight(theta, log_from, log_to)
        ends = np.cumsum(groups)[:-1] * each
        told_apart = zip(*(np.split(part, ends, axis=1) for part in (theta, self._log_selected(theta))), strict=True)
        return average([reweight(some, np.zeros(log.shape), log) for some, log in told_apart], shares)

    @property
    def _by_weights(self) -> bool:
        """Whether the prior is reached from the broad one."""
        return self.prior not in ("learned", "broad")

    @property
    def _selected(self) -> bool:
        """Whether the selection tells more of a galaxy than its photometry does."""
        return self.prior == "learned" and self.npe.survey.selection_power != 0.0

    def _density(self, photometry: Photometry, posterior: Weighted) -> Float[np.ndarray, "galaxy grid"]:
        """p(redshift) on the grid: exact where samples need no weights, else from these."""
        grid = self.summary.grid
        if self._by_weights or self._selected:
            at = self.population.space.index("redshift")
            return density_on_grid(posterior.theta[:, :, at], grid, posterior.weights)
        each = [share * self.npe.redshift_density(photometry, grid, label) for label, share in self.shares.items()]
        return np.sum(each, axis=0)

    def _log_selected(self, theta: Float[np.ndarray, "galaxy sample dim"]) -> Float[np.ndarray, "galaxy sample"]:
        """Log of what the selection does to the prior, once the photometry is given; -inf outside the bounds."""
        survey = self.npe.survey
        inside = np.asarray(self.population.space.inside(jnp.asarray(theta)))
        if not self._selected:
            return np.where(inside, 0.0, -np.inf)
        kept = map_batches(ForwardModel.detection, survey.forward, theta.reshape(-1, theta.shape[-1]))
        power = survey.selection_power
        return np.where(inside, power * np.log(np.maximum(kept, LEAST_KEPT)).reshape(inside.shape), -np.inf)


@dataclasses.dataclass
class HMCEstimator:
    """Posteriors by Hamiltonian Monte Carlo.

    Args:
        bands: of the survey.
        survey: the learned population, and how galaxies are recorded.
        network: in whose coordinates chains run; None: in the population's.
        prior: "learned", or "flat": the analytic prior.
        config: how chains run; None: as `sample_hmc` does unless told.
    """

    bands: tuple[str, ...]
    survey: LearnedSurvey
    network: NPE | None
    prior: str
    summary: Summary
    config: HMCConfig | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown prior."""
        if self.prior not in ("learned", "flat"):
            raise ValueError(f"prior must be 'learned' or 'flat' with HMC, got {self.prior!r}")

    def describe(self) -> dict[str, tuple[str, str]]:
        """Unit and description of every column, in order."""
        own = {
            "ess": ("", "smallest effective sample size of any parameter"),
            "r_hat": ("", "largest split R-hat of any parameter"),
            "divergent": ("", "share of divergent transitions"),
        }
        return self.summary.describe() | own

    def __call__(self, seed: int, rows: Rows) -> Columns:
        """Columns and flags of some galaxies."""
        if not len(rows.row):
            return self.summary.blank() | {name: np.empty(0) for name in ("ess", "r_hat", "divergent")}
        found = self.posterior(seed, photometry_of(rows))
        posterior = Weighted(found.theta, found.weights, found.ess)
        at = self.survey.space.index("redshift")
        density = density_on_grid(posterior.theta[:, :, at], self.summary.grid, posterior.weights)
        flags: Int[np.ndarray, " galaxy"] = np.where(found.converged, 0, Flag.NOT_CONVERGED.value)
        own = {"ess": found.ess, "r_hat": found.r_hat, "divergent": found.divergent, "flags": flags}
        return self.summary.columns(posterior, density, seed) | own

    def posterior(self, seed: int, photometry: Photometry) -> HMCPosterior:
        """Weighted samples of each galaxy, and how far to trust them."""
        learned = self.prior == "learned"
        return sample_hmc(
            jax.random.key(seed), self.survey, photometry, self.config, network=self.network, learned=learned
        )
