"""A survey with a hard cut on noisy magnitudes: does the intrinsic population come back?

python benchmarks/selection.py
python benchmarks/selection.py --seeds 5 6 7 --only "divided by p(kept)" "selection ignored"     # as quoted
python benchmarks/selection.py --seeds 5 6 7 --only perfect --out benchmarks/results/selection_perfect.json

Mock: 20,000 galaxies with r < 19 as observed on shallow plates, whose signal-to-noise is 4 there, with deeper photometry in the
other bands; truth and reference differ as in recovery.py. The intrinsic population is that of all galaxies down to 1.3 magnitudes
below the cut. Compared in the visible region, where a galaxy is
kept with a probability of at least 5 %: 1-D Wasserstein distance over the truth's standard deviation, and a classifier's accuracy
in the plane of mass and star-formation rate. "perfect": no fit, but the true parameters of the galaxies that were kept, as they
are and weighted by 1 / p(kept): what a fit without fault would find without and with the selection.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import finish, with_fit

import popsed_jax as pj
from popsed_jax.diagnostics.twosample import classifier_accuracy, scaled_wasserstein
from popsed_jax.observe.forward import ForwardModel, build_forward_model
from popsed_jax.observe.noise import fit_noise_model
from popsed_jax.observe.selection import MagnitudeLimit, SelectionConfig
from popsed_jax.population.batching import map_batches
from popsed_jax.population.intrinsic import VISIBLE, intrinsic_weights
from popsed_jax.population.summaries import named_galaxies

CUT = SelectionConfig((MagnitudeLimit("sdss_r0", 19.0, 0.01),))
# Magnitude at which each band's signal-to-noise is 5.
DEPTH = {"u": 22.0, "g": 21.5, "r": 18.75, "i": 20.5, "z": 20.0}
COMPARED = ("redshift", "log_mass", "log_sfr")


def survey(config: pj.RunConfig) -> ForwardModel:
    """The shallow survey."""
    rng = np.random.default_rng(0)
    sky = np.array([10.0 ** (-0.4 * depth) / 5.0 for depth in DEPTH.values()])
    flux = sky * 10.0 ** rng.uniform(-1.0, 4.0, (4000, len(sky)))
    error = np.hypot(sky, 0.02 * flux) * 10.0 ** rng.normal(0.0, 0.03, flux.shape)
    filters = [band.filter for band in config.catalog.resolved().bands]
    noise = fit_noise_model(flux, error, config.noise)
    return build_forward_model(filters, noise, selection=CUT, model=config.model, bounds=config.parameters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/selection.json"))
    parser.add_argument("--num", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[5], help="of the mocks and their fits")
    parser.add_argument("--epochs", type=int, default=pj.default_config().fit.num_epochs)
    parser.add_argument("--only", nargs="*", default=[], help="some of the variants")
    args = parser.parse_args()
    rows, numbers = [], []
    for seed in args.seeds:
        found, counted = compare(seed, args)
        rows += found
        numbers.append(counted)
    columns = ["seed", "population", *(f"{name} W1/std" for name in COMPARED), "C2ST mass-SFR", "detected fraction"]
    columns += ["effective share of draws", "distance / floor", "wall [s]"]
    means = {
        name: {key: float(np.mean([row[2 + i] for row in rows if row[1] == name])) for i, key in enumerate(COMPARED)}
        for name in dict.fromkeys(row[1] for row in rows)
    }
    extra = {"mocks": numbers, "mean over seeds": means}
    print(means)
    finish("Intrinsic population behind r < 19", columns, rows, args.out, extra)


def judged(
    rng: np.random.Generator,
    forward: ForwardModel,
    galaxies: dict[str, np.ndarray],
    truth: dict[str, np.ndarray],
    tilt: float,
) -> list[float]:
    """Distances of a population to the intrinsic one, from draws of intrinsic x p^tilt.

    Args:
        galaxies: parameters and derived properties of the draws, by name.
    """
    theta = np.stack([galaxies[name] for name in forward.space.names], axis=1)
    p = np.asarray(map_batches(ForwardModel.detection, forward, jnp.asarray(theta, jnp.float32)))
    weights = intrinsic_weights(p, tilt)
    index = rng.choice(len(p), len(p), p=weights)
    found = {n: galaxies[n][index] for n in COMPARED}
    plane = [np.column_stack([s["log_mass"], s["log_sfr"]]) for s in (found, truth)]
    distances = [scaled_wasserstein(found[n], truth[n]) for n in COMPARED]
    effective = float(1.0 / np.sum(weights**2) / np.sum(p >= VISIBLE))
    return [*distances, classifier_accuracy(*plane), float(np.sum(weights * p)), effective]


def compare(seed: int, args: argparse.Namespace) -> tuple[list[list[Any]], dict[str, Any]]:
    """One mock: a row for each way to learn its intrinsic population, and how many galaxies it has."""
    config = with_fit(pj.default_config(), seed=seed, flat_control=False, num_epochs=args.epochs)
    forward = survey(config)
    bands = tuple(band.name for band in config.catalog.resolved().bands)
    key = jax.random.key(20_000 + seed)
    mock = pj.simulate_mock(key, forward, config.mock, config.reference, args.num, bands, margin=1.3)
    detection = np.asarray(map_batches(ForwardModel.detection, forward, jnp.asarray(mock.intrinsic)))
    seen = detection >= VISIBLE
    truth = named_galaxies(forward, mock.intrinsic[seen])
    print(f"{len(mock.intrinsic)} intrinsic, {len(mock.theta)} kept, {int(seen.sum())} intrinsic and visible")
    catalog = pj.build_catalog("cut", bands, forward.table.filters[: len(bands)], mock.flux, mock.error)
    selected = dataclasses.replace(config, selection=CUT)
    variants = {
        "divided by p(kept)": (selected, 1.0, True),
        "the same, not divided": (selected, 1.0, False),
        "tilted, p^0.5": (with_fit(selected, tilt=0.5), 0.5, True),
        "selection ignored": (dataclasses.replace(config, selection=SelectionConfig()), 1.0, False),
    }
    rng, rows, fits = np.random.default_rng(0), [], {}
    kept = {name: np.asarray(values) for name, values in named_galaxies(forward, mock.theta).items()}
    for name in ("perfect, divided by p(kept)", "perfect, selection ignored"):
        if not args.only or "perfect" in args.only:
            rows.append([seed, name, *judged(rng, forward, kept, truth, 1.0 if "divided" in name else 0.0), 1.0, 0.0])
            print(rows[-1], flush=True)
    for name, (settings, tilt, divided) in variants.items():
        if args.only and name not in args.only:
            continue
        kind = (settings.fit.tilt, bool(settings.selection.cuts))
        fits[kind] = fits.get(kind) or pj.fit(catalog, settings)
        samples, metrics = fits[kind].tables["samples"], fits[kind].metrics
        found = {n: np.asarray(samples[n]) for n in samples.colnames}
        row = [seed, name, *judged(rng, forward, found, truth, tilt if divided else 0.0)]
        rows.append([*row, metrics["validation"]["ratio"], metrics["wall_seconds"]])
        print(rows[-1], flush=True)
    return rows, {
        "seed": seed,
        "num_intrinsic": len(mock.intrinsic),
        "num_kept": len(mock.theta),
        "num_visible": int(seen.sum()),
        "true_detected_fraction": float(np.mean(detection[seen])),
    }


if __name__ == "__main__":
    main()
