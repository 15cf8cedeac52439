"""What each part of the training buys, by recovered truth: the same mock, one setting changed at a time.

python benchmarks/ablation.py --out benchmarks/results/ablation.json
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from common import finish, mock_catalog, with_fit

import popsed_jax as pj
from popsed_jax.diagnostics.twosample import classifier_accuracy, scaled_wasserstein

SHOWN = ("redshift", "log_mass", "log_sfr", "logzsol", "tau_v")


def variants(base: pj.RunConfig) -> dict[str, pj.RunConfig]:
    def anneal(**changes: object) -> pj.RunConfig:
        return dataclasses.replace(base, anneal=dataclasses.replace(base.anneal, **changes))

    end = base.anneal.blur_end
    return {
        "default (sliced, then both)": base,
        "sliced only": anneal(sinkhorn_start=1.0),
        "Sinkhorn only": anneal(sinkhorn_start=0.0, sliced=0.0),
        "no noise anti-annealing": anneal(noise_factor=0.0),
        "batches as samples (not halves)": dataclasses.replace(
            base, transport=dataclasses.replace(base.transport, debias=False)
        ),
        "no blur annealing": anneal(blur_start=end),
        "one flow": with_fit(base, num_members=1),
        "no band offsets": dataclasses.replace(base, calibration=pj.CalibrationConfig(offset_sigma=0.0)),
        "space: magnitude (PopSED's)": with_fit(base, space="magnitude"),
        "space: color": with_fit(base, space="color"),
        "space: photometry (bands and colors)": with_fit(base, space="photometry"),
        "space: whitened": with_fit(base, space="whitened"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=6000)
    parser.add_argument("--members", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ablation.json"))
    args = parser.parse_args()
    base = with_fit(
        pj.default_config(),
        num_members=args.members,
        num_epochs=args.epochs,
        flat_control=False,
        reference_draws=10_000,
        reference_steps=200,
        max_validation=1000,
    )
    catalog, truth, _ = mock_catalog(1, args.num, base.mock, base)
    data = np.column_stack([truth[name] for name in SHOWN[:3]])
    rows = []
    for name, config in variants(base).items():
        result = pj.fit(catalog, config)
        samples, reference = result.tables["samples"], result.tables["reference"]
        if not rows:
            joint = np.column_stack([np.asarray(reference[p]) for p in SHOWN[:3]])
            distances = [scaled_wasserstein(reference[p], truth[p]) for p in SHOWN]
            rows.append(
                ["the reference itself", *distances, classifier_accuracy(joint, data), float("nan"), float("nan"), 0.0]
            )
        joint = np.column_stack([np.asarray(samples[p]) for p in SHOWN[:3]])
        worst = max(band["wasserstein"] for band in result.metrics["bands"].values())
        distances = [scaled_wasserstein(samples[p], truth[p]) for p in SHOWN]
        ratio, wall = result.metrics["validation"]["ratio"], result.metrics["wall_seconds"]
        rows.append([name, *distances, classifier_accuracy(joint, data), ratio, worst, wall])
    columns = [
        "variant",
        *(f"{name} W1/std" for name in SHOWN),
        "C2ST",
        "distance/floor",
        "worst band [mag]",
        "wall [s]",
    ]
    finish(f"Ablation on a mock of {args.num} galaxies, {args.members} members", columns, rows, args.out, {})


if __name__ == "__main__":
    main()
