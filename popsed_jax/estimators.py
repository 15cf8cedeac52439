"""From a run to what gives posteriors under its population: the one place that knows the methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from popsed_jax.learned import load_network, load_survey, network_checksum, population_checksum
from popsed_jax.posteriors.columns import HMCEstimator, NPEEstimator, Summary
from popsed_jax.posteriors.estimator import Estimator

__all__ = ["PIECE_ROWS", "Method", "build_estimator"]

Method = Literal["npe", "hmc"]
# Rows of a piece, by default: a minute's work or a few.
PIECE_ROWS: dict[Method, int] = {"npe": 10_000, "hmc": 200}


def build_estimator(
    run: Path | str, method: Method, prior: str = "learned", num_samples: int = 0, num_grid: int = 0
) -> tuple[Estimator, dict[str, Any]]:
    """What gives posteriors, and by what it is known.

    Args:
        run: run directory.
        method: "npe", the run's network; "hmc", chains, in the network's coordinates where the run has one.
        prior: "learned", "flat" (the analytic prior), or with a network "broad" (the same as the survey keeps its galaxies).
        num_samples: of each posterior that become columns; 0: summaries only.
        num_grid: points of p(redshift) that become a column; 0: its summaries only.

    Raises:
        StorageError: no learned population or no network there, or damaged files.
        ValueError: the method or the prior is not known.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    run = Path(run)
    survey, bands = load_survey(run)
    npe = load_network(run, survey)
    summary = Summary(survey.population, survey.forward, num_samples, num_grid)
    # Another fit or another training is another estimator.
    identity = {"method": method, "prior": prior, "samples": num_samples, "grid": num_grid}
    identity["population"] = population_checksum(run)
    if npe is not None:
        identity["network"] = network_checksum(run)
    if method == "hmc":
        return HMCEstimator(bands, survey, npe, prior, summary), identity
    if npe is None:
        raise ValueError(f"{run} has no network yet: train it with popsed-jax train-npe {run}")
    return NPEEstimator(bands, npe, survey.population, prior, summary), identity
