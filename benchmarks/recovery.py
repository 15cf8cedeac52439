"""Bar 3: mocks with known truth, drawn from a population that is neither the flow's family nor the reference.

python benchmarks/recovery.py                       # one mock of 20,000 galaxies, every parameter
python benchmarks/recovery.py --coverage 10         # ten small mocks: is the truth inside the ensemble's band?
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import jax
import numpy as np
from astropy.table import Table
from common import finish, mock_catalog, with_fit
from scipy.stats import t as student_t

import popsed_jax as pj
from popsed_jax.diagnostics.twosample import classifier_accuracy, scaled_wasserstein
from popsed_jax.population.reference import draw_hyper

JOINT = ("redshift", "log_mass", "log_sfr")
LEVELS = np.linspace(0.1, 0.9, 9)


def one_mock(num: int, seed: int, out: Path) -> None:
    config = with_fit(pj.default_config(), seed=seed, flat_control=False)
    catalog, truth, _ = mock_catalog(seed, num, config.mock, config)
    result = pj.fit(catalog, config)
    samples, reference = result.tables["samples"], result.tables["reference"]
    weights = np.array([member["weight"] for member in result.metrics["members"]])
    rows, rng = [], np.random.default_rng(seed)
    for name, values in truth.items():
        sets = [np.asarray(table[name]) for table in (reference, samples)]
        before, after = (scaled_wasserstein(drawn, values) for drawn in sets)
        bar = {"redshift": 0.15, "log_mass": 0.15, "log_sfr": 0.25}.get(name, before)
        error = excess_error(by_member(reference, name), by_member(samples, name), weights, values, rng)
        met = "yes" if after <= bar else "within error" if after <= bar + error else "NO"
        each = [
            float(np.mean([scaled_wasserstein(drawn, values) for drawn in by_member(table, name)]))
            for table in (reference, samples)
        ]
        moments = [float(f(a)) for a in (values, *sets) for f in (np.mean, np.std)]
        rows.append([name, before, after, error, bar, met, *each, *moments])
    columns = ["parameter", "reference W1/std", "fit W1/std", "error of fit - reference", "bar", "met"]
    columns += ["reference, mean of members", "fit, mean of members"]
    columns += [f"{who} {what}" for who in ("truth", "reference", "fit") for what in ("mean", "std")]

    def joint(table) -> np.ndarray:
        return np.column_stack([np.asarray(table[name]) for name in JOINT])

    extra = {
        "c2st_fit": classifier_accuracy(joint(samples), joint(truth)),
        "c2st_reference": classifier_accuracy(joint(reference), joint(truth)),
        "ratio": result.metrics["validation"]["ratio"],
        "reference_ratio": result.metrics["validation"]["reference_ratio"],
        "wall_seconds": result.metrics["wall_seconds"],
        "offsets": [member["offsets"] for member in result.metrics["members"]],
    }
    print(extra)
    finish(f"Recovery of a mock of {num} galaxies (seed {seed})", columns, rows, out, extra)


def by_member(table: Table, name: str) -> list[np.ndarray]:
    return [np.asarray(table[name][table["member"] == i]) for i in np.unique(table["member"])]


def excess_error(
    reference: list[np.ndarray],
    fit: list[np.ndarray],
    weights: np.ndarray,
    truth: np.ndarray,
    rng: np.random.Generator,
    num: int = 40,
) -> float:
    """Bootstrap error of (fit W1/std - reference W1/std): other members, and other galaxies of each."""
    values = []
    for _ in range(num):
        chosen = rng.integers(0, len(fit), len(fit))
        probability = weights[chosen] / weights[chosen].sum()
        counts = rng.multinomial(sum(map(len, fit)), probability)
        drawn = [
            np.concatenate([rng.choice(reference[i], len(reference[i])) for i in chosen]),
            np.concatenate([rng.choice(fit[i], count) for i, count in zip(chosen, counts, strict=True)]),
        ]
        before, after = (scaled_wasserstein(sample, truth) for sample in drawn)
        values.append(after - before)
    return float(np.std(values))


def coverage(num_mocks: int, num: int, out: Path) -> None:
    """Truths drawn from the reference's own uncertainties plus correlations it does not have."""
    base = pj.default_config()
    inside: dict[str, list[np.ndarray]] = {}
    distance: dict[str, list[list[float]]] = {}
    for seed in range(num_mocks):
        config = with_fit(
            base,
            seed=seed,
            flat_control=False,
            num_epochs=6,
            batch_size=512,
            reference_draws=8000,
            reference_steps=200,
            max_validation=400,
        )
        center, drawn = draw_hyper(None, base.reference), draw_hyper(jax.random.key(500 + seed), base.reference)
        mock = dataclasses.replace(base.mock, shifts={name: drawn[name] - center[name] for name in center})
        catalog, truth, _ = mock_catalog(seed, num, mock, config)
        result = pj.fit(catalog, config)
        samples = result.tables["samples"]
        weights = np.array([member["weight"] for member in result.metrics["members"]])
        members = [i for i in range(len(weights)) if np.sum(samples["member"] == i) > 100]
        for name, values in truth.items():
            points = np.quantile(values, LEVELS)
            cdfs = np.stack(
                [np.mean(samples[name][samples["member"] == i][:, None] <= points, axis=0) for i in members]
            )
            sampling = np.sqrt(LEVELS * (1 - LEVELS) / num)
            spread = np.std(cdfs, axis=0, ddof=1) * np.sqrt(1.0 + 1.0 / len(members)) if len(members) > 1 else 0.0
            half = student_t.ppf(0.95, max(len(members) - 1, 1)) * np.hypot(spread, sampling)
            inside.setdefault(name, []).append(np.abs(cdfs.mean(axis=0) - LEVELS) <= half)
            pair = [scaled_wasserstein(result.tables[table][name], values) for table in ("reference", "samples")]
            distance.setdefault(name, []).append(pair)
        print(f"mock {seed + 1} of {num_mocks}: {result.reason}")
        rows: list[list] = [
            [name, float(np.mean(hits)), *np.mean(distance[name], axis=0).tolist(), error_of_change(distance[name])]
            for name, hits in inside.items()
        ]
        rows.append(["all", *np.mean([row[1:] for row in rows], axis=0).tolist()])
        # After every mock, so that a run cut short has its table.
        finish(
            f"Marginals of {seed + 1} mocks of {num} galaxies: how often the truth's deciles lie inside the ensemble's 90 % "
            "band, and the mean distance from the truth",
            ["parameter", "fraction inside", "reference W1/std", "fit W1/std", "error of fit - reference"],
            rows,
            out,
            {"mocks": seed + 1},
        )


def error_of_change(pairs: list[list[float]]) -> float:
    """Standard error of the mean of (fit - reference) over mocks; NaN for one."""
    change = np.diff(np.asarray(pairs), axis=1)
    return float(np.std(change, ddof=1) / np.sqrt(len(change))) if len(change) > 1 else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coverage", type=int, default=0, metavar="MOCKS")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.coverage:
        coverage(args.coverage, 2000, args.out or Path("benchmarks/results/coverage.json"))
    else:
        one_mock(args.num, args.seed, args.out or Path("benchmarks/results/recovery.json"))


if __name__ == "__main__":
    main()
