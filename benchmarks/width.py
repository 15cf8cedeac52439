"""How narrow a model each distance prefers: the embedded galaxies against themselves.

python benchmarks/width.py

Two disjoint random samples of the catalogue play model and data, in the space where the training compares them. The
expected slope in a scaling of the model about the catalogue's mean, over the curvature there, says by how much the
best model is too narrow; its scatter, the noise that one step of training sees.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import finish

import popsed_jax as pj
from popsed_jax.surveys import prepare_problem
from popsed_jax.transport import sinkhorn_divergence, sinkhorn_energy, sliced_energy, sliced_wasserstein

STEP = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=1024, help="galaxies of either sample: a training batch")
    parser.add_argument("--repeats", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/width.json"))
    args = parser.parse_args()
    config = pj.default_config()
    catalog = pj.read_catalog(config.catalog)
    prepared = prepare_problem(jax.random.key(0), [catalog], config)
    features = prepared.problem.surveys[0].space.features(jnp.asarray(prepared.galaxies[0].mags))
    center = jnp.mean(features, axis=0)

    def slopes(distance: Callable, scale: float) -> np.ndarray:
        gradient = jax.jit(jax.grad(lambda s, key, x, y: distance(key, center + s * (x - center), y)))
        values = []
        for key in jax.random.split(jax.random.key(1), args.repeats):
            order = jax.random.permutation(key, len(features))
            values.append(gradient(scale, key, features[order[: args.num]], features[order[args.num : 2 * args.num]]))
        return np.array(values)

    cases: dict[str, Callable] = {
        "sliced Wasserstein": sliced_wasserstein,
        "sliced energy": sliced_energy,
    }
    for blur in (config.anneal.blur_start, config.anneal.blur_end):
        cases[f"Sinkhorn divergence, blur {blur}"] = partial(_without_key, sinkhorn_divergence, blur)
        cases[f"Sinkhorn energy, blur {blur}"] = partial(_without_key, sinkhorn_energy, blur)
    rows = []
    for name, distance in cases.items():
        at_truth = slopes(distance, 1.0)
        curvature = (slopes(distance, 1.0 + STEP).mean() - at_truth.mean()) / STEP
        offset = at_truth / curvature
        rows.append([name, 1.0 - offset.mean(), offset.std() / np.sqrt(args.repeats), offset.std()])
    columns = ["distance", "best width / true width", "its error", "scatter of one step"]
    finish(f"Widths at {args.num} galaxies, {features.shape[1]} features", columns, rows, args.out, {})


def _without_key(distance: Callable, blur: float, key: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    del key
    return distance(x, y, blur)


if __name__ == "__main__":
    main()
