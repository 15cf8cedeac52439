"""The embedded galaxies, with the redshifts of some of them among the data; calibration against the published offsets.

python benchmarks/spectroscopy.py [--run RUN]

Two fits see the redshifts of a random 5 %: one of magnitudes on the AB scale (the catalogue's settings), one of SDSS magnitudes
as they come, whose learned zero points are those of SDSS. n(z) is compared with the other 95 %.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from common import finish, with_fit

import popsed_jax as pj
from popsed_jax.population.survey import SpectroscopyConfig

CALIBRATION = pj.CalibrationConfig(offset_sigma=0.05, template_sigma=0.05, floor_sigma=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/spectroscopy.json"))
    parser.add_argument("--fractions", type=float, nargs="*", default=[0.0, 0.05])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--run", type=Path, help="run directory to write of the fit to AB magnitudes that sees redshifts, alone"
    )
    args = parser.parse_args()
    config = with_fit(pj.default_config(), flat_control=False, seed=args.seed, num_epochs=24)
    config = dataclasses.replace(config, calibration=CALIBRATION)
    if args.run is not None:
        config = dataclasses.replace(config, spectroscopy=SpectroscopyConfig(args.fractions[-1]))
        print(pj.fit(pj.read_catalog(config.catalog), config, out=args.run).metrics["redshift"])
        pj.build_report(args.run)
        return
    bands = config.catalog.resolved().bands
    published = {band.name: band.zero_point for band in bands}
    raw = dataclasses.replace(
        config.catalog.resolved(), bands=tuple(dataclasses.replace(band, zero_point=0.0) for band in bands)
    )
    runs = [(f"AB, {fraction:.0%}", config, fraction) for fraction in args.fractions]
    runs.append(
        (f"as they come, {args.fractions[-1]:.0%}", dataclasses.replace(config, catalog=raw), args.fractions[-1])
    )
    rows, calibration = [], {}
    for name, settings, fraction in runs:
        settings = dataclasses.replace(settings, spectroscopy=SpectroscopyConfig(fraction))
        metrics = pj.fit(pj.read_catalog(settings.catalog), settings).metrics
        redshift, offsets = metrics["redshift"], metrics["calibration"]["zero_points"]
        rows.append(
            [
                name,
                metrics["catalog"]["num_redshifts_used"],
                redshift["wasserstein"],
                redshift["wasserstein_error"],
                redshift["mean_offset"],
                metrics["validation"]["ratio"],
                max(band["wasserstein"] for band in metrics["bands"].values()),
                metrics["wall_seconds"],
            ]
        )
        calibration[name] = metrics["calibration"]
        print({band: (round(entry["mean"], 3), round(entry["spread"], 3)) for band, entry in offsets.items()})
    # SDSS magnitudes + published = AB, so the model needs minus that to become SDSS. The pinned band has none by choice.
    before, after = (calibration[runs[i][0]]["zero_points"] for i in (len(runs) - 2, len(runs) - 1))
    pinned = next(band for band, entry in after.items() if entry["prior_sigma"] == 0.0)
    table = [
        {
            "band": band,
            "published, against " + pinned: -published[band] + published[pinned],
            "learned": after[band]["mean"],
            "spread of members": after[band]["spread"],
            "learned on the AB scale": before[band]["mean"],
            "change from AB to SDSS": after[band]["mean"] - before[band]["mean"],
        }
        for band in published
    ]
    for row in table:
        print({key: value if isinstance(value, str) else round(float(value), 3) for key, value in row.items()})
    columns = ["magnitudes, redshifts used", "redshifts", "n(z) W1", "error", "mean z offset", "distance / floor"]
    columns += ["worst band [mag]", "wall [s]"]
    error = [entry["mean"] for entry in calibration[runs[-2][0]]["template_error"]]
    finish(
        "Redshifts among the data",
        columns,
        rows,
        args.out,
        {"zero_points": table, "calibration": calibration, "template_error_rms": float(np.std(error))},
    )


if __name__ == "__main__":
    main()
