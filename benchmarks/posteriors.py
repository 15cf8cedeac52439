"""Posteriors of single galaxies: are they calibrated, do the two methods agree, what are they worth on real galaxies, how fast?

popsed-jax fit && popsed-jax train-npe runs/sdss_galaxies
python benchmarks/posteriors.py --run runs/sdss_galaxies [--parts calibration agreement real speed]

calibration: ranks (SBC) and coverage (TARP) of simulated galaxies under the proposal, and under the learned population after
    the change of prior.
agreement: the network against chains on the same simulated galaxies.
real: the run's own galaxies against their spectroscopic redshifts, under the learned population, the analytic prior, and with
    the control that knows n(z) alone; beside a random forest that was given the redshifts of the other half.
speed: galaxies per second.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import finish
from scipy.stats import wasserstein_distance
from sklearn.ensemble import RandomForestRegressor

import popsed_jax as pj
from popsed_jax.config import load_config
from popsed_jax.diagnostics.calibration import sbc_ranks, tarp, uniformity
from popsed_jax.diagnostics.photoz import photoz_metrics, point_metrics, trainz
from popsed_jax.diagnostics.twosample import classifier_accuracy
from popsed_jax.learned import load_network, load_survey
from popsed_jax.posteriors.columns import NPEEstimator, Summary
from popsed_jax.posteriors.estimator import Rows
from popsed_jax.posteriors.hmc import HMCConfig, sample_hmc
from popsed_jax.posteriors.npe import NPE
from popsed_jax.posteriors.survey import LearnedSurvey, Photometry

PARTS = ("calibration", "agreement", "real", "speed")


def simulated(survey: LearnedSurvey, population: Any, seed: int, num: int) -> tuple[np.ndarray, Photometry]:
    """Galaxies of a population as the survey quotes them."""
    theta, member = population.sample_members(jax.random.key(seed), num)
    member = np.minimum(np.asarray(member), survey.population.num_members - 1)
    seen = jax.jit(LearnedSurvey.observe)(survey, jax.random.key(seed + 1), theta, member)
    return np.asarray(theta, float), Photometry(*map(np.asarray, seen))


def calibration(survey: LearnedSurvey, npe: NPE, estimators: dict[str, NPEEstimator], num: int) -> list[dict[str, Any]]:
    rows = []
    for prior, population in (("proposal", npe.proposal), ("learned", survey.population)):
        theta, seen = simulated(survey, population, 100, num)
        posterior = estimators[prior].posterior(1, seen)
        rng = np.random.default_rng(0)
        ranks = sbc_ranks(np.asarray(posterior.theta), theta, rng, posterior.weights)
        tests = [uniformity(ranks[:, i], rng) for i in range(ranks.shape[1])]
        gap = tarp(np.asarray(posterior.theta), theta, rng, posterior.weights).largest_gap
        rows.append(
            {
                "prior": prior,
                "galaxies": num,
                "KS p > 0.05": f"{sum(test.p_value > 0.05 for test in tests)} of {len(tests)}",
                "smallest p": min(test.p_value for test in tests),
                "redshift PIT p": tests[survey.space.index("redshift")].p_value,
                "largest TARP gap": gap,
                "median ESS of 500": float(np.median(posterior.ess)),
            }
        )
    return rows


def agreement(survey: LearnedSurvey, npe: NPE, estimator: NPEEstimator, num: int) -> list[dict[str, Any]]:
    _, seen = simulated(survey, survey.population, 200, num)
    start = time.perf_counter()
    chains = sample_hmc(jax.random.key(2), survey, seen, HMCConfig(), network=npe)
    seconds = time.perf_counter() - start
    posterior = estimator.posterior(3, seen)
    rng = np.random.default_rng(1)
    drawn, exact = posterior.resample(rng, 400), chains.theta
    distance = np.zeros((num, drawn.shape[2]))
    accuracy = np.zeros(num)
    for galaxy in range(num):
        pick = exact[galaxy][rng.choice(exact.shape[1], 400, p=chains.weights[galaxy] / chains.weights[galaxy].sum())]
        width = np.maximum(pick.std(axis=0), 1e-6)
        distance[galaxy] = [
            wasserstein_distance(drawn[galaxy, :, i], pick[:, i]) / width[i] for i in range(drawn.shape[2])
        ]
        accuracy[galaxy] = classifier_accuracy(
            (drawn[galaxy] - pick.mean(axis=0)) / width, (pick - pick.mean(axis=0)) / width
        )
    done = chains.converged
    return [
        {
            "galaxies": num,
            "converged": float(done.mean()),
            "median R-hat": float(np.median(chains.r_hat)),
            "median ESS": float(np.median(chains.ess)),
            "worst median W1 [sigma]": float(np.median(distance[done], axis=0).max()) if done.any() else None,
            "median C2ST": float(np.median(accuracy[done])) if done.any() else None,
            "all: worst median W1 [sigma]": float(np.median(distance, axis=0).max()),
            "all: median C2ST": float(np.median(accuracy)),
            "seconds": seconds,
        }
    ]


def real(catalog: pj.Catalog, estimators: dict[str, NPEEstimator], num: int) -> list[dict[str, Any]]:
    assert catalog.redshift is not None
    known = np.flatnonzero(np.isfinite(catalog.redshift))
    order = np.random.default_rng(5).permutation(known)
    train, test = order[: len(order) // 2], order[len(order) // 2 :][:num]
    truth = catalog.redshift[test]
    rows = Rows(catalog.flux[test], catalog.flux_error[test], truth, catalog.row[test])
    table = []
    for prior in ("learned", "flat"):
        columns = estimators[prior](7, rows)
        grid = estimators[prior].summary.grid
        metrics = photoz_metrics(columns["redshift"], grid, columns["pz"], truth, np.random.default_rng(0))
        table.append({"prior": prior, "flagged": float(np.mean(columns["flags"] > 0)), **flat(metrics)})
    control = trainz(catalog.redshift[train], grid, len(test))
    middle = np.full(len(test), np.median(catalog.redshift[train]))
    alone = photoz_metrics(middle, grid, control, truth, np.random.default_rng(0))
    table.append({"prior": "n(z) alone", "flagged": 0.0, **flat(alone)})
    forest = RandomForestRegressor(200, min_samples_leaf=3, n_jobs=2, random_state=0)
    forest.fit(inputs(catalog, train), catalog.redshift[train])
    points = point_metrics(forest.predict(inputs(catalog, test)), truth, np.random.default_rng(0))
    table.append({"prior": "random forest, given redshifts", "flagged": 0.0, **flat(points)})
    names = list(table[0])
    return [{name: row.get(name) for name in names} for row in table]


def inputs(catalog: pj.Catalog, rows: np.ndarray) -> np.ndarray:
    """Magnitudes and colours; -1 where a band is missing."""
    scale = np.nanmedian(np.abs(catalog.flux_error), axis=0)
    mags = np.arcsinh(0.5 * catalog.flux[rows] / scale)
    return np.nan_to_num(np.concatenate([mags, np.diff(mags, axis=1)], axis=1), nan=-1.0)


def flat(metrics: dict[str, dict[str, float]]) -> dict[str, float]:
    """Values and errors under one name each."""
    return {
        f"{name}{end}": entry[key] for name, entry in metrics.items() for end, key in (("", "value"), (" +-", "error"))
    }


def speed(survey: LearnedSurvey, npe: NPE, estimators: dict[str, NPEEstimator], num: int) -> list[dict[str, Any]]:
    _, seen = simulated(survey, survey.population, 300, num)
    grid = estimators["proposal"].summary.grid
    chains = Photometry(*(part[:128] for part in seen))
    config = HMCConfig()
    work = {
        "500 samples, as trained": (lambda: npe.sample(jax.random.key(1), seen, 500), num),
        "500 samples and weights, learned prior": (lambda: estimators["learned"].posterior(1, seen), num),
        "p(redshift) on 200 points": (lambda: npe.redshift_density(seen, grid), num),
        "HMC": (lambda: sample_hmc(jax.random.key(1), survey, chains, config, network=npe), 128),
    }
    rows = []
    for name, (run, count) in work.items():
        found = run()
        times = []
        for _ in range(1 if name == "HMC" else 3):
            start = time.perf_counter()
            found = run()
            times.append(time.perf_counter() - start)
        ess = float(np.median(found.ess)) if name == "HMC" else None
        rows.append({"what": name, "galaxies/s": count / min(times), "median ESS": ess})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run directory with a trained network")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--num", type=int, default=1000, help="simulated galaxies of the calibration")
    parser.add_argument("--num-agreement", type=int, default=100)
    parser.add_argument("--num-real", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder")
    args = parser.parse_args()
    survey, bands = load_survey(args.run)
    npe = load_network(args.run, survey)
    if npe is None:
        parser.error(f"{args.run} has no network: popsed-jax train-npe {args.run}")
    catalog = pj.read_catalog(load_config(args.run / "config.toml").catalog, args.run)
    summary = Summary(survey.population, num_grid=400)
    estimators = {
        prior: NPEEstimator(bands, npe, survey.population, prior, summary) for prior in ("learned", "flat", "proposal")
    }
    run = {
        "calibration": lambda: calibration(survey, npe, estimators, args.num),
        "agreement": lambda: agreement(survey, npe, estimators["learned"], args.num_agreement),
        "real": lambda: real(catalog, estimators, args.num_real),
        "speed": lambda: speed(survey, npe, estimators, args.num),
    }
    for part in args.parts:
        rows = run[part]()
        out = args.out / f"posteriors_{catalog.name}_{part}.json"
        finish(
            f"{catalog.name}: {part}",
            list(rows[0]),
            [list(row.values()) for row in rows],
            out,
            {"run": str(args.run.name)},
        )


if __name__ == "__main__":
    main()
