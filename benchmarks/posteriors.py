"""Posteriors of single galaxies: are they calibrated, do the two methods agree, what are they worth on real galaxies, how fast?

popsed-jax fit && popsed-jax train-npe runs/sdss_galaxies
python benchmarks/posteriors.py --run runs/sdss_galaxies [--parts calibration agreement real speed]

calibration: ranks (SBC) and coverage (TARP) of simulated galaxies: the network's under the broad prior and the learned
    population, those of the one taken to the other by weights, and chains.
agreement: the network against chains on the same simulated galaxies.
real: the run's own galaxies against their spectroscopic redshifts, by network and chains, under the learned population and
    under the broad and flat priors, and the control that knows n(z) alone; beside a random forest that was given the redshifts
    of the other half.
speed: galaxies per second.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
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
from popsed_jax.flags import Flag
from popsed_jax.learned import load_network, load_survey
from popsed_jax.plots_posterior import plot_ranks, plot_redshifts, plot_screening, plot_stack, plot_tarp
from popsed_jax.population.model import Population
from popsed_jax.posteriors.columns import HMCEstimator, NPEEstimator, Summary
from popsed_jax.posteriors.estimator import Rows
from popsed_jax.posteriors.hmc import HMCConfig, sample_hmc
from popsed_jax.posteriors.npe import NPE
from popsed_jax.posteriors.photoz import screening_curve, summarise_pz
from popsed_jax.posteriors.reweight import Weighted, as_prior, log_prob_of, member_log_probs, reweight
from popsed_jax.posteriors.survey import LearnedSurvey, Photometry

PARTS = ("calibration", "agreement", "real", "speed")


def simulated(
    survey: LearnedSurvey, population: Population, seed: int, num: int, label: int | None = None
) -> tuple[np.ndarray, Photometry]:
    """Galaxies of a population, or of one of its members alone, as the survey quotes them."""
    alone = population if label is None else as_prior(population, label)
    theta, member = alone.sample_members(jax.random.key(seed), num)
    if label is not None:
        # The broad prior's galaxies have any member's calibration, as in the training.
        any_member = jax.random.choice(
            jax.random.key(seed + 2), survey.population.num_members, (num,), p=survey.population.weights
        )
        member = np.full(num, label) if label < survey.population.num_members else any_member
    seen = jax.jit(LearnedSurvey.observe)(survey, jax.random.key(seed + 1), theta, member)
    return np.asarray(theta, float), Photometry(*map(np.asarray, seen))


def by_member(
    survey: LearnedSurvey,
    num: int,
    posterior_of: Callable[[int, Photometry], Weighted],
    galaxies_of: Callable[[int, int], tuple[np.ndarray, Photometry]] | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, Weighted]:
    """Galaxies of each member, and their posteriors under the same member: these are exact, the average over members is not.

    Args:
        seed: of the galaxies.
        galaxies_of: draws so many of a member; None: those of the population.
    """
    galaxies_of = galaxies_of or (
        lambda member, size: simulated(survey, survey.population, seed + 400 + member, size, member)
    )
    members = range(survey.population.num_members)
    truths, each = [], []
    for member in members:
        theta, seen = galaxies_of(member, num // len(members))
        truths.append(theta)
        each.append(posterior_of(member, seen))
    return np.concatenate(truths), Weighted(*(np.concatenate(parts) for parts in zip(*each, strict=True)))


def alike(samples: np.ndarray) -> Weighted:
    """Samples that all count the same."""
    num = samples.shape[1]
    return Weighted(samples, np.full(samples.shape[:2], 1.0 / num), np.full(len(samples), float(num)))


def chained(survey: LearnedSurvey, npe: NPE, member: int, seen: Photometry) -> Weighted:
    """Chains under a member, every other draw."""
    chains = sample_hmc(jax.random.key(500 + member), survey, seen, HMCConfig(), network=npe, members=[member])
    print(f"member {member}: converged {chains.converged.mean():.2f}, ESS {np.median(chains.ess):.0f}", flush=True)
    return alike(chains.theta[:, ::2])


def calibration(
    survey: LearnedSurvey, npe: NPE, num: int, num_hmc: int, repeats: int, figures: Path
) -> list[dict[str, Any]]:
    """Ranks and coverage of each method under each prior, of one or several sets of galaxies."""
    # These galaxies are the population's, whatever the survey keeps of them: no change of prior by the selection.
    survey = survey.replace(tilt=0.0 if survey.forward.selection.observed else 1.0)
    npe = npe.replace(survey=survey)
    summary = Summary(survey.population, survey.forward)
    broad, learned = (NPEEstimator((), npe, survey.population, prior, summary) for prior in ("broad", "learned"))
    many = dataclasses.replace(broad, num_draws=2000)

    def under_broad(seed: int) -> tuple[np.ndarray, Weighted]:
        theta, seen = simulated(survey, npe.proposal, seed + 100, num, npe.broad)
        return theta, broad.posterior(1, seen)

    def under_members(seed: int) -> tuple[np.ndarray, Weighted]:
        def posterior_of(member: int, seen: Photometry) -> Weighted:
            return alike(npe.sample(jax.random.key(seed + 600 + member), seen, 500, member)[0])

        return by_member(survey, num, posterior_of, seed=seed)

    def under_average(seed: int) -> tuple[np.ndarray, Weighted]:
        theta, seen = simulated(survey, survey.population, seed + 100, num)
        return theta, learned.posterior(1, seen)

    def by_weights(seed: int) -> tuple[np.ndarray, Weighted]:
        theta, seen = simulated(survey, survey.population, seed + 100, num)
        return theta, changed(many, seen)

    cases: dict[str, Callable[[int], tuple[np.ndarray, Weighted]]] = {
        "network, broad prior": under_broad,
        "network, members of the learned population": under_members,
        "network, average over the members": under_average,
        "network, members, taken to another n(z) by weights": lambda seed: tilted(survey, npe, num, seed),
    }
    if repeats == 1:  # the slowest by far, and what it says is not subtle
        cases["network, broad prior taken to the average by weights"] = by_weights
    if num_hmc:
        cases["chains, members of the learned population"] = lambda seed: by_member(
            survey, num_hmc, lambda member, seen: chained(survey, npe, member, seen), seed=seed
        )
    rows, ranks, curves = [], {}, {}
    labels = [p.label for p in survey.space.parameters]
    for name, case in cases.items():
        sets = [case(10_000 * repeat) for repeat in range(repeats)]
        rng = np.random.default_rng(0)
        each = [sbc_ranks(np.asarray(drawn.theta), theta, rng, drawn.weights) for theta, drawn in sets]
        tests = [[uniformity(rank[:, i], rng) for i in range(rank.shape[1])] for rank in each]
        p_values = np.array([[test.p_value for test in row] for row in tests])
        theta = np.concatenate([theta for theta, _ in sets])
        posterior = Weighted(*(np.concatenate(part) for part in zip(*(drawn for _, drawn in sets), strict=True)))
        curves[name] = tarp(np.asarray(posterior.theta), theta, rng, posterior.weights)
        rank = np.concatenate(each)
        ranks[name] = dict(zip(labels, rank.T, strict=True))
        pooled = [uniformity(rank[:, i], rng).p_value for i in range(rank.shape[1])]
        rows.append(
            {
                "posteriors": name,
                "galaxies": len(theta),
                "KS p > 0.05": f"{int((p_values > 0.05).sum())} of {p_values.size}",
                "smallest p": float(p_values.min()),
                "all sets together": f"{sum(p > 0.05 for p in pooled)} of {len(pooled)}",
                "their smallest p": min(pooled),
                "worst parameter": survey.space.names[int(np.argmin(pooled))],
                "redshift PIT p": pooled[survey.space.index("redshift")],
                "largest TARP gap": curves[name].largest_gap,
                "samples": posterior.theta.shape[1],
                "median ESS": float(np.median(posterior.ess)),
                "flagged": float(np.mean(posterior.low)),
            }
        )
        print(rows[-1], flush=True)
    plot_tarp(curves).savefig(figures / "coverage.png", dpi=110)
    for name, rank in zip(("broad", "members", "average", "tilted", "changed", "chains"), ranks.values(), strict=False):
        plot_ranks(rank).savefig(figures / f"ranks_{name}.png", dpi=110)
    return rows


def tilted(survey: LearnedSurvey, npe: NPE, num: int, seed: int) -> tuple[np.ndarray, Weighted]:
    """Galaxies of each member whose density has a factor exp(-z / <z>), and the member's posteriors with that as a weight."""
    at, rng = survey.space.index("redshift"), np.random.default_rng(8 + seed)
    mean = float(simulated(survey, survey.population, 700, 1000)[0][:, at].mean())

    def galaxies_of(member: int, size: int) -> tuple[np.ndarray, Photometry]:
        theta, seen = simulated(survey, survey.population, seed + 700 + member, 20 * size, member)
        factor = np.exp(-theta[:, at] / mean)
        pick = rng.choice(len(theta), size, replace=False, p=factor / factor.sum())
        return theta[pick], Photometry(*(part[pick] for part in seen))

    def posterior_of(member: int, seen: Photometry) -> Weighted:
        drawn = npe.sample(jax.random.key(seed + 800 + member), seen, 500, member)[0]
        return reweight(drawn, np.zeros(drawn.shape[:2]), -drawn[:, :, at] / mean)

    return by_member(survey, num, posterior_of, galaxies_of)


def changed(estimator: NPEEstimator, seen: Photometry) -> Weighted:
    """Samples under the broad prior, with the weights of the learned population's members."""
    npe, population = estimator.npe, estimator.population
    drawn = estimator.posterior(3, seen).theta
    log_from = log_prob_of(as_prior(npe.proposal, npe.broad), drawn)
    return reweight(drawn, log_from, member_log_probs(population, drawn), np.asarray(population.weights))


def agreement(survey: LearnedSurvey, npe: NPE, estimator: NPEEstimator, num: int) -> list[dict[str, Any]]:
    """Networks against chains on the same galaxies.

    Chains are four times as long as by default, and every fourth draw is kept: neighbours in a chain resemble each other, by
    which a classifier would know them.
    """
    _, seen = simulated(survey, survey.population, 200, num)
    start = time.perf_counter()
    config = dataclasses.replace(HMCConfig(), num_samples=4 * HMCConfig.num_samples)
    chains = sample_hmc(jax.random.key(2), survey, seen, config, network=npe)
    seconds = time.perf_counter() - start
    exact, weights = chains.theta[:, ::4], chains.weights[:, ::4]
    size = int(0.5 * exact.shape[1])
    posterior = dataclasses.replace(estimator, num_draws=exact.shape[1]).posterior(3, seen)
    rng = np.random.default_rng(1)
    distance, accuracy = np.zeros((num, exact.shape[2])), np.zeros(num)
    for galaxy in range(num):
        # Each once: a classifier would know again what it has seen before.
        pick, other = (
            theta[galaxy][rng.choice(theta.shape[1], size, replace=False, p=shares[galaxy] / shares[galaxy].sum())]
            for theta, shares in ((exact, weights), (posterior.theta, posterior.weights))
        )
        mean, width = pick.mean(axis=0), np.maximum(pick.std(axis=0), 1e-6)
        accuracy[galaxy] = classifier_accuracy((other - mean) / width, (pick - mean) / width)
        distance[galaxy] = [
            wasserstein_distance(
                posterior.theta[galaxy, :, i], exact[galaxy, :, i], posterior.weights[galaxy], weights[galaxy]
            )
            / width[i]
            for i in range(exact.shape[2])
        ]
    done = chains.converged
    medians = np.median(distance[done], axis=0) if done.any() else np.full(distance.shape[1], np.nan)
    return [
        {
            "galaxies": num,
            "converged": float(done.mean()),
            "median R-hat": float(np.median(chains.r_hat)),
            "median ESS": float(np.median(chains.ess)),
            "worst parameter": survey.space.names[int(np.argmax(medians))],
            "its median W1 [sigma]": float(medians.max()),
            "median of the medians": float(np.median(medians)),
            "median C2ST": float(np.median(accuracy[done])) if done.any() else None,
            "all: worst median W1 [sigma]": float(np.median(distance, axis=0).max()),
            "all: median C2ST": float(np.median(accuracy)),
            "seconds": seconds,
        }
    ]


def real(
    catalog: pj.Catalog,
    estimators: dict[str, NPEEstimator | HMCEstimator],
    num: int,
    num_hmc: int,
    figures: Path,
) -> list[dict[str, Any]]:
    """Redshifts of the run's own galaxies."""
    assert catalog.redshift is not None
    known = np.flatnonzero(np.isfinite(catalog.redshift))
    order = np.random.default_rng(5).permutation(known)
    train, test = order[: len(order) // 2], order[len(order) // 2 :][:num]
    table, stacks, screens = [], {}, {}
    for name, estimator in estimators.items():
        some = test if isinstance(estimator, NPEEstimator) else test[:num_hmc]
        if not len(some):
            continue
        truth = catalog.redshift[some]
        columns = estimator(7, Rows(catalog.flux[some], catalog.flux_error[some], truth, catalog.row[some]))
        grid = estimator.summary.grid
        metrics = photoz_metrics(columns["redshift"], grid, columns["pz"], truth, np.random.default_rng(0))
        table.append({"posteriors": name, "galaxies": len(some), **flagged(columns["flags"]), **flat(metrics)})
        print(table[-1], flush=True)
        if len(some) == len(test):
            stacks[name] = columns["pz"]
        if name == "network, learned population":
            plot_redshifts(columns["redshift"], truth, metrics).savefig(figures / "redshifts.png", dpi=110)
            for by in ("pz_width", "pz_entropy", "z_conf", "pz_peaks"):
                screens[f"by {by}"] = screening_curve(columns, truth, by, np.random.default_rng(0), point="redshift")
    truth = catalog.redshift[test]
    plot_stack(grid, stacks, truth).savefig(figures / "stack.png", dpi=110)
    plot_screening(screens).savefig(figures / "screening.png", dpi=110)
    seen = catalog.redshift[train]
    control = trainz(seen[(seen > grid[0]) & (seen < grid[-1])], grid, len(test))
    middle = np.full(len(test), np.median(catalog.redshift[train]))
    alone = photoz_metrics(middle, grid, control, truth, np.random.default_rng(0))
    table.append({"posteriors": "n(z) of the others", "galaxies": len(test), **flat(alone)})
    forest = RandomForestRegressor(200, min_samples_leaf=3, n_jobs=2, random_state=0)
    forest.fit(inputs(catalog, train), catalog.redshift[train])
    points = point_metrics(forest.predict(inputs(catalog, test)), truth, np.random.default_rng(0))
    table.append({"posteriors": "random forest, given redshifts", "galaxies": len(test), **flat(points)})
    names = list(table[0])
    return [{name: row.get(name) for name in names} for row in table]


def flagged(flags: np.ndarray) -> dict[str, float]:
    """Shares of the galaxies that are not to be trusted, and why."""
    return {
        "low ESS or not converged": float(np.mean(flags & (Flag.LOW_ESS | Flag.NOT_CONVERGED) != 0)),
        "unlike the simulated": float(np.mean(flags & Flag.OUT_OF_DISTRIBUTION != 0)),
    }


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
    """Galaxies a second, compilation apart."""
    _, seen = simulated(survey, survey.population, 300, num)
    grid = estimators["learned"].summary.grid
    chains = Photometry(*(part[:96] for part in seen))
    few = Photometry(*(part[: HMCConfig.galaxies_at_once] for part in seen))
    work: dict[str, tuple[Callable[[], Any], Callable[[], Any], int]] = {}
    for prior, words in (
        ("broad", "broad prior"),
        ("learned", "learned population"),
        ("flat", "flat prior, by weights"),
    ):

        def sampled(prior: str = prior) -> Weighted:
            return estimators[prior].posterior(1, seen)

        work[f"network: 500 samples, {words}"] = (sampled, sampled, num)

    def summarised() -> Any:
        return summarise_pz(grid, npe.redshift_density(seen, grid, npe.broad))

    work["network: p(redshift) and its summary"] = (summarised, summarised, num)
    work["chains, learned population"] = (
        lambda: sample_hmc(jax.random.key(1), survey, few, network=npe, members=[0]),
        lambda: sample_hmc(jax.random.key(1), survey, chains, network=npe),
        len(chains.flux),
    )
    rows = []
    for name, (warm_up, run, count) in work.items():
        warm_up()
        times = []
        for _ in range(1 if name.startswith("chains") else 3):
            start = time.perf_counter()
            found = run()
            times.append(time.perf_counter() - start)
        ess = float(np.median(found.ess)) if hasattr(found, "ess") else None
        rows.append({"what": name, "galaxies/s": count / min(times), "median ESS": ess})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run directory with a trained network")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--num", type=int, default=1000, help="simulated galaxies of the calibration")
    parser.add_argument("--repeats", type=int, default=1, help="sets of so many galaxies of the calibration")
    parser.add_argument("--num-agreement", type=int, default=100)
    parser.add_argument("--num-real", type=int, default=5000)
    parser.add_argument("--num-hmc", type=int, default=1000, help="of all these, those that get chains")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder")
    args = parser.parse_args()
    survey, bands = load_survey(args.run)
    npe = load_network(args.run, survey)
    if npe is None:
        parser.error(f"{args.run} has no network: popsed-jax train-npe {args.run}")
    catalog = pj.read_catalog(load_config(args.run / "config.toml").catalog, args.run)
    figures = args.out / f"posteriors_{catalog.name}"
    figures.mkdir(parents=True, exist_ok=True)
    population, summary = survey.population, Summary(survey.population, survey.forward, num_grid=400)
    networks = {prior: NPEEstimator(bands, npe, population, prior, summary) for prior in ("learned", "broad", "flat")}
    words = {"learned": "learned population", "broad": "broad prior", "flat": "flat prior"}
    estimators = {f"network, {words[prior]}": networks[prior] for prior in ("learned", "broad", "flat")}
    for prior in ("learned", "flat"):
        estimators[f"chains, {words[prior]}"] = HMCEstimator(bands, survey, npe, prior, summary)
    run = {
        "calibration": lambda: calibration(survey, npe, args.num, args.num_hmc, args.repeats, figures),
        "agreement": lambda: agreement(survey, npe, networks["learned"], args.num_agreement),
        "real": lambda: real(catalog, estimators, args.num_real, args.num_hmc, figures),
        "speed": lambda: speed(survey, npe, networks, args.num),
    }
    for part in args.parts:
        rows = run[part]()
        out = args.out / f"posteriors_{catalog.name}_{part}.json"
        table = [list(row.values()) for row in rows]
        finish(f"{catalog.name}: {part}", list(rows[0]), table, out, {"run": str(args.run.name)})


if __name__ == "__main__":
    main()
