"""Imperfect catalogues of one mock: wrong zero points and unquoted noise; missing bands. What do they cost?

python benchmarks/imperfect.py
python benchmarks/imperfect.py --fraction 0.05      # the redshifts of so many among the data

Mock: 20,000 galaxies with the embedded galaxies' noise and selection; truth and reference differ as in recovery.py. Variants:

- perfect: as it is;
- miscalibrated: zero points wrong by up to 0.1 mag in every band but the pinned one, and 10 % of scatter that no error quotes;
- patchy: 30 % of all values missing, fainter galaxies lacking more, the bands of a galaxy together.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, mock_catalog, with_fit

import popsed_jax as pj
from popsed_jax.diagnostics.twosample import scaled_wasserstein
from popsed_jax.observe.noise import NoiseConfig
from popsed_jax.population.survey import SpectroscopyConfig

ZERO_POINTS = {"u": 0.10, "g": -0.06, "r": 0.0, "i": 0.05, "z": -0.08}
FLOOR = 0.10
ALWAYS = "r"  # the band that no galaxy lacks


def with_gaps(catalog: pj.Catalog, rng: np.random.Generator) -> pj.Catalog:
    """The catalogue with 30 % of its values gone."""
    num, bands = catalog.flux.shape
    anchor = catalog.bands.index(ALWAYS)
    mag = -2.5 * np.log10(catalog.flux[:, anchor])
    rank = np.argsort(np.argsort(mag)) / num
    # A patch of sky that a survey has not covered lacks several bands at once: half of a galaxy's luck is shared.
    luck = np.where(rng.random((num, bands)) < 0.5, rng.random((num, 1)), rng.random((num, bands)))
    share = 0.30 * bands / (bands - 1)
    gone = luck < share * (0.5 + rank)[:, None]
    gone[:, anchor] = False
    flux, error = (np.where(gone, np.nan, array) for array in (catalog.flux, catalog.flux_error))
    return dataclasses.replace(catalog, flux=flux, flux_error=error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--num", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--fraction", type=float, default=0.0)
    parser.add_argument("--epochs", type=int, default=pj.default_config().fit.num_epochs)
    parser.add_argument("--offset-sigma", type=float, default=0.1, help="prior of the zero points [mag]")
    parser.add_argument("--only", nargs="*", default=[], help="some of the variants")
    args = parser.parse_args()
    config = with_fit(pj.default_config(), seed=args.seed, flat_control=False, num_epochs=args.epochs)
    config = dataclasses.replace(config, spectroscopy=SpectroscopyConfig(args.fraction))
    perfect, truth, _ = mock_catalog(args.seed, args.num, config.mock, config)
    wrong = dataclasses.replace(config.mock, zero_points=ZERO_POINTS, floor=FLOOR)
    calibration = pj.CalibrationConfig(offset_sigma=args.offset_sigma, pinned=ALWAYS, floor_sigma=0.5)
    miscalibrated = dataclasses.replace(config, noise=NoiseConfig(floor=0.03), calibration=calibration)
    variants = {
        "perfect": (config, perfect),
        "miscalibrated": (miscalibrated, mock_catalog(args.seed, args.num, wrong, config)[0]),
        "patchy": (config, with_gaps(perfect, np.random.default_rng(args.seed))),
    }
    rows: dict[str, dict[str, float]] = {}
    extra: dict[str, Any] = {}
    for name, (settings, catalog) in variants.items():
        if args.only and name not in args.only:
            continue
        result = pj.fit(catalog, settings)
        samples = result.tables["samples"]
        rows[name] = {key: scaled_wasserstein(np.asarray(samples[key]), values) for key, values in truth.items()}
        extra[name] = {key: result.metrics[key] for key in ("validation", "calibration", "redshift", "wall_seconds")}
        extra[name]["missing"] = result.metrics["catalog"]["missing"]
        print(name, rows[name])
    if "miscalibrated" in rows:
        learned = extra["miscalibrated"]["calibration"]
        # The survey's magnitudes are too faint by the mock's zero points: what is added to the model to meet them.
        extra["zero_points"] = [
            {
                "band": band,
                "true": value,
                "learned": learned["zero_points"][band]["mean"],
                "spread of members": learned["zero_points"][band]["spread"],
                "floor": learned["floors"][band]["mean"],
            }
            for band, value in ZERO_POINTS.items()
        ]
        for row in extra["zero_points"]:
            print({key: value if isinstance(value, str) else round(float(value), 3) for key, value in row.items()})
    if "perfect" in rows:
        mean = {name: float(np.mean(list(row.values()))) for name, row in rows.items()}
        extra["mean distance over perfect"] = {name: value / mean["perfect"] for name, value in mean.items()}
        print(extra["mean distance over perfect"])
    columns = ["parameter", *rows]
    table = [[key, *(rows[name][key] for name in rows)] for key in truth]
    title = f"W1 / std of a mock of {args.num}, {args.fraction:.0%} of the redshifts used (seed {args.seed})"
    default = "imperfect.json" if args.fraction == 0.0 else f"imperfect_{100 * args.fraction:g}.json"
    finish(title, columns, table, args.out or Path("benchmarks/results") / default, extra)


if __name__ == "__main__":
    main()
