"""zCOSMOS-bright, I < 22.5: photometry in eight bands, spectroscopic redshifts hidden or given to the fit.

python benchmarks/zcosmos.py --data PATH/zcosmos_bright20k.csv.gz                # photometry alone
python benchmarks/zcosmos.py --data PATH/zcosmos_bright20k.csv.gz --fraction 0.05

The file (Lilly+09 redshifts, Capak+07 photometry) is not shipped. Galaxies: confidence class 3 or 4, redshift above 0.01,
selection magnitude below 22.5, outside the masks; bands may be missing. Their magnitudes are in 3 arcsec apertures: each galaxy's
are brought to its total by the difference between the selection magnitude and the aperture's at the same wavelength. The share of
targets with a secure redshift, which falls with magnitude, is part of the selection.
"""

from __future__ import annotations

import argparse
import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
from astropy.table import Table
from common import finish

import popsed_jax as pj
from popsed_jax.observe.noise import NoiseConfig
from popsed_jax.observe.selection import Completeness, MagnitudeLimit, SelectionConfig
from popsed_jax.population.survey import SpectroscopyConfig
from popsed_jax.surveys import measure_zero_points

FILTERS = {
    "u": "cfht_megacam_us_9301",
    "B": "subaru_suprimecam_B",
    "V": "subaru_suprimecam_V",
    "r": "subaru_suprimecam_rp",
    "i": "subaru_suprimecam_ip",
    "z": "subaru_suprimecam_zp",
    "J": "ukirt_wfcam_J",
    "K": "cfht_wircam_Ks_8302",
}
SELECTED_IN, LIMIT = "acs_wfc_f814w", 22.5
# The selection's wavelength lies three tenths of the way from i to z.
SHARE_Z = 0.3


def read(path: Path) -> tuple[pj.Catalog, SelectionConfig]:
    """The secure galaxies, and how they were selected."""
    table = Table.read(path, format="ascii.csv")
    number = {name: np.asarray(table[name], float) for name in table.colnames}
    mags = np.stack([number[f"{band.lower()}_photzi25"] for band in FILTERS], axis=1)
    errors = np.stack([number[f"e{band.lower()}_photzi25"] for band in FILTERS], axis=1)
    there = (mags > 0) & (mags < 35) & (errors > 0)
    confidence, z, total = number["cc"], number["zpec"], number["mag_sel"]
    masked = np.any([number[name] != 0 for name in table.colnames if name.startswith("flag_mask")], axis=0)
    bands = list(FILTERS)
    seen = there[:, bands.index("i")] & there[:, bands.index("z")] & (there.sum(axis=1) >= 6)
    target = ~masked & seen & (total > 15.0) & (total < LIMIT) & ~((np.abs(z) < 0.01) & (confidence >= 3.0))
    secure = target & np.isin(np.floor(confidence), [3, 4]) & (z > 0.01)
    edges = np.array([17.0, 19.0, 20.0, 20.5, 21.0, 21.5, 22.0, 22.25, 22.5])
    rate = [float(secure[inside].sum() / target[inside].sum()) for inside in _bins(total, target, edges)]
    middle = 0.5 * (edges[1:] + edges[:-1])
    selection = SelectionConfig(
        (MagnitudeLimit(SELECTED_IN, LIMIT, 0.05),),
        completeness=(Completeness(SELECTED_IN, tuple(middle.tolist()), tuple(rate)),),
        observed=False,  # the cut was made in another aperture and image
    )
    at_selection = (1.0 - SHARE_Z) * mags[:, bands.index("i")] + SHARE_Z * mags[:, bands.index("z")]
    mags = mags + (total - at_selection)[:, None]
    flux = np.where(there, 10.0 ** (-0.4 * mags), np.nan)[secure]
    error = flux * (0.4 * np.log(10.0) * errors[secure])
    return pj.build_catalog("zcosmos", bands, list(FILTERS.values()), flux, error, z[secure]), selection


def _bins(total: np.ndarray, target: np.ndarray, edges: np.ndarray) -> list[np.ndarray]:
    return [target & (total >= low) & (total < high) for low, high in pairwise(edges)]


def settings(
    catalog: pj.Catalog,
    selection: SelectionConfig,
    fraction: float,
    seed: int = 0,
    epochs: int = 24,
    tie_break: float = 0.02,
) -> pj.RunConfig:
    config = pj.default_config()
    return dataclasses.replace(
        config,
        selection=selection,
        parameters={"redshift": (0.01, 1.6)},
        noise=NoiseConfig(floor=0.03),
        # The absolute photometry is good to 6 % (Capak+07); totals from one difference of magnitudes add to it.
        # Redshifts tell narrow errors of the templates, which photometry alone does not.
        calibration=pj.CalibrationConfig(
            offset_sigma=0.05, template_sigma=0.05, template_knots=24 if fraction else 12, floor_sigma=0.2, pinned="i"
        ),
        spectroscopy=SpectroscopyConfig(fraction),
        # Templates that are not these galaxies' leave the distance above its target all the time: the KL, which is there to
        # choose among states that match, must not outweigh a better match.
        fit=dataclasses.replace(config.fit, seed=seed, flat_control=False, num_epochs=epochs, kl_tie_break=tie_break),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fraction", type=float, default=0.0, help="of the redshifts that the fit sees")
    parser.add_argument("--run", type=Path, help="run directory to write, with its report")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--tie-break", type=float, default=0.02, help="see settings(); the default of fits is 0.05")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    catalog, selection = read(args.data)
    config = settings(catalog, selection, args.fraction, args.seed, args.epochs, args.tie_break)
    if args.fraction:
        # Redshifts tell zero points from populations, which photometry alone does not.
        config, found = measure_zero_points(catalog, config)
        print(dict(zip(catalog.bands, zip(found.offset.round(3), found.error.round(3), strict=True), strict=True)))
    if args.run is not None:
        # In the run directory, so that posteriors find the galaxies again.
        args.run.mkdir(parents=True, exist_ok=True)
        config = dataclasses.replace(config, catalog=catalog.write(args.run / "galaxies.parquet"))
    result = pj.fit(catalog, config, out=args.run)
    if args.run is not None:
        pj.build_report(args.run)
    metrics = result.metrics
    redshift = metrics["redshift"]
    row = {
        "epochs": args.epochs,
        "redshifts used": metrics["catalog"]["num_redshifts_used"],
        "n(z) W1": redshift["wasserstein"],
        "error": redshift["wasserstein_error"],
        "mean z offset": redshift["mean_offset"],
        "reference n(z) W1": redshift["reference_wasserstein"],
        "distance / floor": metrics["validation"]["ratio"],
        "reference / floor": metrics["validation"]["reference_ratio"],
        "worst band [mag]": max(band["wasserstein"] for band in metrics["bands"].values()),
        "wall [s]": metrics["wall_seconds"],
        "memory [GB]": metrics["peak_memory_gb"],
    }
    name = "zcosmos.json" if args.fraction == 0.0 else f"zcosmos_{100 * args.fraction:g}.json"
    extra = {
        "calibration": metrics["calibration"],
        "visibility": metrics["visibility"],
        "selection": dataclasses.asdict(selection),
        "num_galaxies": len(catalog),
        "members": metrics["members"],
    }
    print({band: round(entry["mean"], 3) for band, entry in metrics["calibration"]["zero_points"].items()})
    out = args.out or Path("benchmarks/results") / name
    finish(f"zCOSMOS-bright, {args.fraction:.0%} of the redshifts used", [*row], [[*row.values()]], out, extra)


if __name__ == "__main__":
    main()
