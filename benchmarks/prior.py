"""What a prior costs: loading it, its memory, evaluations of its density. (`diffusion.py` compares with a diffusion density.)

    python benchmarks/prior.py [POPULATION_FOLDER]

Without a folder, four flows of the default size with random weights: the cost does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import finish

import popsed_jax as pj
from popsed_jax.flows.spline import FlowConfig, init_flow
from popsed_jax.population.model import Population
from popsed_jax.priors.arrays import ArrayPrior

LOAD = """
import json, sys, time
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
start = time.perf_counter()
import jax
jax.jit(lambda x: x + 1.0)(1.0)
middle, before = time.perf_counter(), resident()
import popsed_jax
prior = popsed_jax.load_prior(sys.argv[1])
print(json.dumps([time.perf_counter() - start, time.perf_counter() - middle, resident() - before]))
"""


def random_population(folder: Path) -> Path:
    """Four flows of the default size."""
    space = pj.ModelConfig().parameters
    flows = jax.vmap(lambda key: init_flow(key, len(space), FlowConfig()))(jax.random.split(jax.random.key(0), 4))
    Population(flows, jnp.full(4, 0.25), space, {}).save(folder)
    return folder


def rate(function, *args) -> float:
    """Rows a second, the best of five."""
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return len(args[-1]) / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("population", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "prior.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.population or random_population(Path(scratch))
        loads = [
            json.loads(
                subprocess.run(
                    [sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True, check=True
                ).stdout
            )
            for _ in range(5)
        ]
        prior = pj.load_prior(folder)
        whole, ours, memory = np.median(loads, axis=0)
        rows: list[list[object]] = [
            ["load, cold, with imports (s)", float(whole)],
            ["of that, beyond importing JAX (s)", float(ours)],
            ["memory beyond JAX (MB)", float(memory)],
        ]
        theta = prior.sample(jax.random.key(0), 20_000)
        for num in (1, 1000, 20_000):
            rows.append([f"log_prob / s, {num} at a time", rate(prior.log_prob, theta[:num])])
            rows.append([f"gradient of log_prob / s, {num} at a time", rate(prior.grad_log_prob, theta[:num])])
        arrays = ArrayPrior(prior)
        rows.append(["log_prob / s, 20000 NumPy rows in blocks", rate(arrays.log_prob, np.asarray(theta))])
        rows.append(["gradient / s, 20000 NumPy rows in blocks", rate(arrays.grad_log_prob, np.asarray(theta))])
        cube = jax.random.uniform(jax.random.key(1), (20_000, prior.dim))
        rows.append(["unit cube to theta / s, 20000 at a time", rate(prior.transform, cube)])
    extra = {"members": prior.population.num_members, "dim": prior.dim, "population": str(args.population or "random")}
    finish("A learned population as a prior", ["what", "value"], rows, args.out, extra)


if __name__ == "__main__":
    main()
