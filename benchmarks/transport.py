"""Time and accuracy of the distances between clouds: python benchmarks/transport.py [--large] [--output FILE].

Value and gradient for N model points against N data points in 5 dimensions, float32: correlated, with two components,
scaled to unit standard deviation. Every function is compiled and run once before it is timed; the time is the shortest
of several runs. The error is against the annealed solution iterated to convergence, and only where that is defined.
"""

import argparse
import datetime
import json
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import ot
from rich.console import Console
from rich.table import Table

from popsed_jax.transport import sinkhorn_divergence_info, sliced_wasserstein

DIM = 5
BLUR = 0.2
CONVERGED = {"num_scales": 16, "num_final": 20, "num_sweeps": 40}
MAX_OTT = 2000  # above, ott's tens of seconds a call say nothing new


def draw_clouds(num: int, seed: int) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    mixing = 0.6 * rng.normal(size=(DIM, DIM)) + 0.5 * np.eye(DIM)

    def draw(shift: float) -> np.ndarray:
        normal = rng.normal(size=(num, DIM))
        return np.where(rng.random((num, 1)) < 0.7, normal, 0.3 * normal + 1.5) @ mixing + shift

    data, model = draw(0.0), draw(0.15)
    scale = data.std(axis=0)
    return jnp.asarray(model / scale, jnp.float32), jnp.asarray(data / scale, jnp.float32)


def solve_exact(x: jax.Array, y: jax.Array) -> tuple[float, np.ndarray]:
    """Exact transport with POT; its gradient from the plan."""
    x64, y64 = np.asarray(x, float), np.asarray(y, float)
    masses = np.full(len(x64), 1 / len(x64))
    plan = ot.emd(masses, masses, 0.5 * ot.dist(x64, y64), numItermax=10_000_000)
    value = 0.5 * np.sum(plan * ot.dist(x64, y64))
    return value, x64 * masses[:, None] - plan @ y64


def build_cases(num: int) -> dict[str, Callable]:
    """Name -> function of (x, y) giving (value, gradient)."""
    key = jax.random.key(0)

    def differentiate(function: Callable) -> Callable:
        return jax.jit(jax.value_and_grad(function))

    def sinkhorn(**settings) -> Callable:
        return differentiate(lambda x, y: sinkhorn_divergence_info(x, y, BLUR, **settings)[0])

    cases = {
        "sliced, 100 projections": differentiate(partial(sliced_wasserstein, key)),
        "sliced, 400 projections": differentiate(partial(sliced_wasserstein, key, num_projections=400)),
        "annealed Sinkhorn, 1 sweep": sinkhorn(num_sweeps=1),
        "annealed Sinkhorn (default)": sinkhorn(),
        "annealed Sinkhorn, power 1": sinkhorn(power=1),
    }
    if num <= MAX_OTT:
        cases["ott Sinkhorn, tolerance 1e-2"] = sinkhorn(method="ott")
    cases["POT, exact"] = solve_exact
    return cases


def time_case(function: Callable, x: jax.Array, y: jax.Array, repeats: int) -> tuple[float, float]:
    """Value, and the shortest wall time [s]."""
    value, _ = jax.block_until_ready(function(x, y))
    walls = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(x, y))
        walls.append(time.perf_counter() - start)
    return float(value), min(walls)


def describe_machine() -> dict[str, str | int | None]:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "device": str(jax.devices()[0]),
        "jax": jax.__version__,
        "pot": ot.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="also N = 5000")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    arguments = parser.parse_args()

    machine, rows = describe_machine(), []
    for num in (1000, 2000, *((5000,) if arguments.large else ())):
        x, y = draw_clouds(num, arguments.seed)
        reference, info = jax.jit(partial(sinkhorn_divergence_info, **CONVERGED))(x, y, BLUR)
        for name, function in build_cases(num).items():
            value, wall = time_case(function, x, y, arguments.repeats)
            comparable = "Sinkhorn" in name and "power 1" not in name and bool(info.converged)
            error = value / float(reference) - 1 if comparable else None
            rows.append({"num": num, "case": name, "wall_s": wall, "value": value, "relative_error": error})

    table = Table(
        "N", "distance", "wall [s]", "value", "error", title=", ".join(f"{k} {v}" for k, v in machine.items())
    )
    for row in rows:
        error = "" if row["relative_error"] is None else f"{100 * row['relative_error']:+.2f} %"
        table.add_row(str(row["num"]), row["case"], f"{row['wall_s']:.4f}", f"{row['value']:.5f}", error)
    Console().print(table)
    if arguments.output:
        arguments.output.write_text(json.dumps({"machine": machine, "blur": BLUR, "dim": DIM, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
