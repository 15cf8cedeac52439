"""Imperfect catalogues of one mock: wrong zero points and unquoted noise; missing bands. What do they cost?

python benchmarks/imperfect.py
python benchmarks/imperfect.py --fraction 0.05      # the redshifts of so many among the data
python benchmarks/imperfect.py --near-infrared --fraction 0.05 --measure    # eight bands, zero points measured before the fit

Mock: 20,000 galaxies with the embedded galaxies' noise and selection; truth and reference differ as in recovery.py. Variants:

- perfect: as it is;
- miscalibrated: zero points wrong by up to 0.1 mag in every band but the pinned one, and 10 % of scatter that no error quotes;
  with --measure they are measured first from the galaxies whose redshifts the fit may see;
- patchy: 30 % of all values missing, fainter galaxies lacking more, the bands of a galaxy together.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from astropy.table import Table
from common import finish, mock_catalog, with_fit

import popsed_jax as pj
from popsed_jax.data import data_path
from popsed_jax.diagnostics.twosample import scaled_wasserstein
from popsed_jax.observe.noise import NoiseConfig
from popsed_jax.population.survey import SpectroscopyConfig
from popsed_jax.surveys import measure_zero_points

ZERO_POINTS = {"u": 0.10, "g": -0.06, "r": 0.0, "i": 0.05, "z": -0.08, "J": 0.07, "H": -0.05, "Ks": 0.09}
VEGA = {"J": 0.91, "H": 1.39, "Ks": 1.85}  # to AB (Blanton & Roweis 2007, table 1)
FLOOR = 0.10
ALWAYS = "r"  # the band that no galaxy lacks


def with_near_infrared(config: pj.RunConfig, folder: Path) -> pj.RunConfig:
    """The embedded galaxies with their 2MASS photometry, whose errors the mock's are."""
    five = pj.read_catalog(config.catalog)
    table = Table.read(data_path("sdss_galaxies"))[five.row]
    mags, errors = (
        np.stack([np.asarray(table[f"{band[0]}_{kind}_EXT"], float) for band in VEGA], axis=1) for kind in ("M", "MSIG")
    )
    there = np.isfinite(mags) & (mags > 5.0) & (mags < 20.0) & (errors > 0.0) & (errors < 1.0)
    flux = np.where(there, 10.0 ** (-0.4 * (mags + np.array(list(VEGA.values())))), np.nan)
    catalog = pj.build_catalog(
        "eight_bands",
        (*five.bands, *VEGA),
        (*five.filters, *(f"twomass_{band}" for band in VEGA)),
        np.concatenate([five.flux, flux], axis=1),
        np.concatenate([five.flux_error, flux * 0.4 * np.log(10.0) * errors], axis=1),
        five.redshift,
    )
    return dataclasses.replace(config, catalog=catalog.write(folder / "eight_bands.parquet"))


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
    parser.add_argument("--near-infrared", action="store_true", help="JHKs beside ugriz")
    parser.add_argument(
        "--measure", action="store_true", help="zero points before the fit; needs a fraction of redshifts"
    )
    args = parser.parse_args()
    config = with_fit(pj.default_config(), seed=args.seed, flat_control=False, num_epochs=args.epochs)
    config = dataclasses.replace(config, spectroscopy=SpectroscopyConfig(args.fraction))
    with TemporaryDirectory() as folder:
        if args.near_infrared:
            config = with_near_infrared(config, Path(folder))
        perfect, truth, _ = mock_catalog(args.seed, args.num, config.mock, config)
        zero_points = {band: ZERO_POINTS[band] for band in perfect.bands}
        wrong = dataclasses.replace(config.mock, zero_points=zero_points, floor=FLOOR)
        off = mock_catalog(args.seed, args.num, wrong, config)[0]
    calibration = pj.CalibrationConfig(offset_sigma=args.offset_sigma, pinned=ALWAYS, floor_sigma=0.5)
    miscalibrated = dataclasses.replace(config, noise=NoiseConfig(floor=0.03), calibration=calibration)
    if args.measure:
        miscalibrated, found = measure_zero_points(off, miscalibrated)
        print("measured", dict(zip(off.bands, found.offset.round(3).tolist(), strict=True)), flush=True)
    variants = {
        "perfect": (config, perfect),
        "miscalibrated": (miscalibrated, off),
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
            for band, value in zero_points.items()
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
    kind = "_near_infrared" if args.near_infrared else ""
    kind += f"_{100 * args.fraction:g}" if args.fraction else ""
    finish(title, columns, table, args.out or Path(f"benchmarks/results/imperfect{kind}.json"), extra)


if __name__ == "__main__":
    main()
