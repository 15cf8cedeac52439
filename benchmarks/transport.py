"""The distances between clouds beside those of other packages: time, accuracy and memory of value and gradient, in one run.

pip install torch geomloss          # beside the package with its test extra, which has POT; without them their rows say so
python benchmarks/transport.py
python benchmarks/transport.py --sizes 1000 --dims 5

N model points against N data points: correlated, two components, scaled to unit standard deviation. A gradient is that with
respect to the model's points. Everything is float32, except that POT's exact solver works in float64 whatever it is given.

Each case has a process of its own, with as many threads as there are cores. Its time is the shortest of `--repeats` runs, after
compiling and a first run; where six seconds are past after fewer runs, the first among them, of those. Its memory is how far
the process grew above what it held before (Linux only). A case is skipped where its times or its memory at the next smaller N,
grown by its power of N, exceed `--limit` seconds or 8 GB: the table then says so.

References, up to `REFERENCE_MAX` points: for Sinkhorn, this package's annealed solution taken to convergence. At the smallest N
POT's solver in float64, taken further than by default, is in the table as an independent check of it. For sliced distances (the
number in their names is that of directions), NumPy's sort in float64 on the same directions. The error of a gradient is
|g - g_ref| / |g_ref|. Exact transport is another distance: it has no error here, and its time is compared with the Sinkhorn
divergence's.

The blur, power 2 and the ground cost |x - y|^2 / 2 are the same for all. geomloss runs its "tensorized" backend: "online" and
"multiscale" need pykeops, which compiles for itself. Its time and error depend on `scaling`, 0.5 by default. POT's Sinkhorn
divergence is `ot.solve_sample` (log domain; gradient by the envelope theorem), to a total mass of 1e-2 in the wrong place: the
tolerance that this package calls converged.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import finish, machine

from popsed_jax.transport import (
    sample_directions,
    sinkhorn_divergence,
    sinkhorn_divergence_info,
    sinkhorn_energy,
    sliced_energy,
    sliced_wasserstein,
)

BLUR = 0.2
CONVERGED = {"num_scales": 16, "num_final": 20, "num_sweeps": 40}
REFERENCE_MAX = 5000
TOLERANCE = 1e-2
MAX_MEMORY = 8.0  # GB
ENOUGH = 6.0  # seconds of runs after which no more are made
KEY = jax.random.key(0)

# A function of (model, data) as NumPy arrays, which gives a function without arguments that does the work.
Prepare = Callable[[np.ndarray, np.ndarray], Callable[[], tuple[Any, Any]]]


def draw_clouds(num: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Model and data, (num, dim), float32."""
    rng = np.random.default_rng(seed)
    mixing = 0.6 * rng.normal(size=(dim, dim)) + 0.5 * np.eye(dim)

    def draw(shift: float) -> np.ndarray:
        normal = rng.normal(size=(num, dim))
        return np.where(rng.random((num, 1)) < 0.7, normal, 0.3 * normal + 1.5) @ mixing + shift

    data, model = draw(0.0), draw(0.15)
    scale = data.std(axis=0)
    return (model / scale).astype(np.float32), (data / scale).astype(np.float32)


# ---- the distances of this package ----


def in_jax(function: Callable) -> Prepare:
    """Compile ahead, so that no run contains it."""

    def prepare(x: np.ndarray, y: np.ndarray) -> Callable[[], tuple[Any, Any]]:
        clouds = jnp.asarray(x), jnp.asarray(y)
        compiled = jax.jit(jax.value_and_grad(function)).lower(*clouds).compile()
        return lambda: jax.block_until_ready(compiled(*clouds))

    return prepare


def divergence(**settings: Any) -> Prepare:
    return in_jax(lambda x, y: sinkhorn_divergence_info(x, y, BLUR, **settings)[0])


def sliced(function: Callable, num_projections: int = 100) -> Prepare:
    return in_jax(partial(function, KEY, num_projections=num_projections))


# ---- those of others ----


def in_torch(build: Callable[[Any, Any], Callable[[Any], Any]], dtype: str = "float32") -> Prepare:
    """`build(x, y)` of PyTorch tensors gives the function of x to differentiate."""

    def prepare(x: np.ndarray, y: np.ndarray) -> Callable[[], tuple[Any, Any]]:
        import torch

        torch.set_num_threads(machine()["cores"])
        model, data = (torch.tensor(cloud, dtype=getattr(torch, dtype)) for cloud in (x, y))
        model.requires_grad_()
        function = build(model, data)

        def run() -> tuple[Any, Any]:
            value = function(model)
            (gradient,) = torch.autograd.grad(value, model)
            return value.detach(), gradient

        return run

    return prepare


def geomloss_divergence(scaling: float) -> Prepare:
    def build(x: Any, y: Any) -> Callable[[Any], Any]:
        import geomloss

        loss = geomloss.SamplesLoss("sinkhorn", p=2, blur=BLUR, scaling=scaling, debias=True, backend="tensorized")
        return lambda x: loss(x, y)

    return in_torch(build)


def pot_divergence(tolerance: float, dtype: str = "float32") -> Prepare:
    """|x - y|^2 without the half is twice the cost, at twice the regularisation twice the divergence."""

    def build(x: Any, y: Any) -> Callable[[Any], Any]:
        import ot

        settings = {"reg": 2.0 * BLUR**2, "debias": True, "grad": "envelope", "max_iter": 10_000}
        # POT measures the root mean square of wrong mass, times the root of N.
        tol = tolerance / np.sqrt(len(x))
        return lambda x: 0.5 * ot.solve_sample(x, y, metric="sqeuclidean", tol=tol, **settings).value

    return in_torch(build, dtype)


def pot_exact(x: Any, y: Any) -> Callable[[Any], Any]:
    import ot
    import torch

    masses = torch.full((len(x),), 1.0 / len(x))
    return lambda x: ot.emd2(masses, masses, 0.5 * ot.dist(x, y), numItermax=10_000_000)


def pot_sliced(num_projections: int) -> Prepare:
    def build(x: Any, y: Any) -> Callable[[Any], Any]:
        import ot
        import torch

        directions = torch.tensor(np.asarray(sample_directions(KEY, x.shape[1], num_projections)).T)
        return lambda x: 0.5 * ot.sliced_wasserstein_distance(x, y, projections=directions) ** 2

    return in_torch(build)


# ---- references ----


def sort_and_compare(function: Callable, num_projections: int) -> Prepare:
    """Sliced distances by NumPy in float64; `function` tells of samples or of populations."""

    def one(directions: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
        along_x, along_y = directions @ x.T, directions @ y.T
        difference = np.empty_like(along_x)
        order = np.argsort(along_x, axis=1, kind="stable")
        np.put_along_axis(difference, order, np.take_along_axis(along_x, order, 1) - np.sort(along_y, axis=1), axis=1)
        return 0.5 * float(np.mean(difference**2)), difference.T @ directions / difference.size

    def prepare(x: np.ndarray, y: np.ndarray) -> Callable[[], tuple[Any, Any]]:
        directions = np.asarray(sample_directions(KEY, x.shape[1], num_projections), float)
        x, y = x.astype(float), y.astype(float)
        if function is sliced_wasserstein:
            return lambda: one(directions, x, y)
        half = len(x) // 2
        x1, x2, y1, y2 = x[:half], x[half : 2 * half], y[:half], y[half : 2 * half]

        def energy() -> tuple[float, np.ndarray]:
            terms = [one(directions, *pair) for pair in ((x1, y1), (x2, y2), (x1, x2), (x2, x1), (y1, y2))]
            (a, grad_a), (b, grad_b), (c, grad_c), (_, grad_d), (d, _) = terms
            gradient = np.zeros_like(x)
            gradient[: 2 * half] = np.concatenate([grad_a - grad_c, grad_b - grad_d])
            return 0.5 * (a + b - c - d), 0.5 * gradient

        return energy

    return prepare


REFERENCES: dict[str, Prepare] = {
    "converged divergence": divergence(**CONVERGED),
    "converged energy": in_jax(lambda x, y: sinkhorn_energy(x, y, BLUR, **CONVERGED)),
    "sorted, 100": sort_and_compare(sliced_wasserstein, 100),
    "sorted, 400": sort_and_compare(sliced_wasserstein, 400),
    "sorted energy": sort_and_compare(sliced_energy, 100),
}


# ---- cases ----


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        prepare: how it is run.
        reference: key of `REFERENCES`, or "" where none is defined.
        ours: name of the case that its time is divided by.
        growth: power of N with which its time grows, for the estimate at the next N.
        memory_growth: the same for its memory.
        needs: packages that it needs.
        smallest: only at the smallest N.
    """

    prepare: Prepare
    reference: str
    ours: str
    growth: float = 2.0
    memory_growth: float = 2.0
    needs: tuple[str, ...] = ()
    smallest: bool = False


SINKHORN, SLICED, SLICED_400 = "sinkhorn_divergence", "sliced_wasserstein, 100", "sliced_wasserstein, 400"
LINEAR = {"growth": 1.2, "memory_growth": 1.0}
CASES = {
    SINKHORN: Case(in_jax(lambda x, y: sinkhorn_divergence(x, y, BLUR)), "converged divergence", SINKHORN),
    "sinkhorn_divergence, 1 sweep": Case(divergence(num_sweeps=1), "converged divergence", SINKHORN),
    "sinkhorn_divergence by ott-jax": Case(
        divergence(method="ott", tolerance=TOLERANCE), "converged divergence", SINKHORN, needs=("ott",)
    ),
    "geomloss, scaling 0.5": Case(
        geomloss_divergence(0.5), "converged divergence", SINKHORN, needs=("torch", "geomloss")
    ),
    "geomloss, scaling 0.9": Case(
        geomloss_divergence(0.9), "converged divergence", SINKHORN, needs=("torch", "geomloss")
    ),
    "POT Sinkhorn divergence": Case(pot_divergence(TOLERANCE), "converged divergence", SINKHORN, needs=("torch", "ot")),
    "POT, float64, to 1e-3": Case(
        pot_divergence(1e-3, "float64"), "converged divergence", SINKHORN, needs=("torch", "ot"), smallest=True
    ),
    "POT exact (emd2)": Case(in_torch(pot_exact), "", SINKHORN, growth=3.0, needs=("torch", "ot")),
    "sinkhorn_energy": Case(in_jax(lambda x, y: sinkhorn_energy(x, y, BLUR)), "converged energy", SINKHORN),
    SLICED: Case(sliced(sliced_wasserstein), "sorted, 100", SLICED, **LINEAR),
    "POT sliced, 100": Case(pot_sliced(100), "sorted, 100", SLICED, needs=("torch", "ot"), **LINEAR),
    "sliced_energy, 100": Case(sliced(sliced_energy), "sorted energy", SLICED, **LINEAR),
    SLICED_400: Case(sliced(sliced_wasserstein, 400), "sorted, 400", SLICED_400, **LINEAR),
    "POT sliced, 400": Case(pot_sliced(400), "sorted, 400", SLICED_400, needs=("torch", "ot"), **LINEAR),
}


# ---- one case, in its own process ----


def memory_peak(reset: bool = False) -> float | None:
    """Most memory [GB] that this process held since the last reset; None where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    held = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(held[0]) / 1e6 if held else None


def measure(prepare: Prepare, clouds: tuple[np.ndarray, np.ndarray], repeats: int) -> dict[str, Any]:
    """Value, gradient, shortest time and memory."""
    run = prepare(*clouds)
    before = memory_peak(reset=True)
    walls: list[float] = []
    while len(walls) < repeats + 1 and sum(walls) < ENOUGH:
        start = time.perf_counter()
        value, gradient = run()
        walls.append(time.perf_counter() - start)
    peak = memory_peak()
    memory = None if before is None or peak is None else peak - before
    return {"value": float(value), "gradient": np.asarray(gradient), "wall": min(walls), "memory": memory}


def run_case(name: str, folder: Path, arguments: argparse.Namespace) -> None:
    """All sizes of a case; each result is a file as soon as it is there."""
    folder.mkdir()
    case = CASES[name]
    for dim in arguments.dims:
        before: tuple[int, dict[str, Any]] | None = None
        for num in sorted(arguments.sizes)[: 1 if case.smallest else None]:
            if before is not None and (skipped := foresee(case, num, *before, arguments.limit)):
                np.savez(folder / f"{num}_{dim}.npz", skipped=skipped)
                continue
            found = measure(case.prepare, draw_clouds(num, dim, arguments.seed), arguments.repeats)
            np.savez(folder / f"{num}_{dim}.npz", **{k: np.nan if v is None else v for k, v in found.items()})
            before = num, found


def run_references(root: Path, arguments: argparse.Namespace) -> None:
    """Value and gradient of every reference, once each."""
    for name, prepare in REFERENCES.items():
        (root / name).mkdir()
        for dim in arguments.dims:
            for num in (size for size in arguments.sizes if size <= REFERENCE_MAX):
                value, gradient = prepare(*draw_clouds(num, dim, arguments.seed))()
                np.savez(root / name / f"{num}_{dim}.npz", value=value, gradient=gradient)


def foresee(case: Case, num: int, smaller: int, found: dict[str, Any], limit: float) -> str:
    """Why a size is not run; empty where it is."""
    wall = found["wall"] * (num / smaller) ** case.growth
    memory = (found["memory"] or 0.0) * (num / smaller) ** case.memory_growth
    if wall > limit:
        return f"skipped: {wall:.0f} s expected from N = {smaller} by N^{case.growth:g}"
    if memory > MAX_MEMORY:
        return f"skipped: {memory:.0f} GB expected from N = {smaller} by N^{case.memory_growth:g}"
    return ""


# ---- the table ----


def start_case(name: str, root: Path, arguments: argparse.Namespace) -> str:
    """Run a case in a new process; why it failed, or empty."""
    needs = CASES[name].needs if name in CASES else ()
    missing = [package for package in needs if not find_spec(package)]
    if missing:
        return f"skipped: {' and '.join(missing)} not installed"
    again = [sys.executable, __file__, "--case", name, "--folder", str(root)]
    options = ["--repeats", arguments.repeats, "--limit", arguments.limit, "--seed", arguments.seed]
    options += ["--sizes", *arguments.sizes, "--dims", *arguments.dims]
    start = time.perf_counter()
    ended = subprocess.run([*again, *map(str, options)], stderr=subprocess.PIPE, text=True, check=False)
    failure = "" if ended.returncode == 0 else f"failed, status {ended.returncode}: {ended.stderr.strip()[-200:]}"
    print(f"{time.perf_counter() - start:6.1f} s  {name}  {failure}", flush=True)
    return failure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 5000, 10_000, 20_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[5, 9])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=60.0, help="longest run that is not skipped [s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/transport.json"))
    parser.add_argument("--case", choices=[*CASES, "references"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case == "references":
        run_references(arguments.folder, arguments)
        return
    if arguments.case:
        run_case(arguments.case, arguments.folder / arguments.case, arguments)
        return

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        failures = {name: start_case(name, root, arguments) for name in ("references", *CASES)}
        if failures["references"]:
            raise RuntimeError(f"the references {failures['references']}")

        def read(name: str, num: int, dim: int) -> dict[str, Any]:
            path = root / name / f"{num}_{dim}.npz"
            if not path.exists():
                return {}
            with np.load(path) as file:
                return {key: file[key] for key in file}

        rows = []
        for dim in arguments.dims:
            for num in sorted(arguments.sizes):
                for name, case in CASES.items():
                    found = read(name, num, dim)
                    if not found and case.smallest and num > min(arguments.sizes):
                        continue
                    ours, reference = (
                        read(case.ours, num, dim),
                        read(case.reference, num, dim) if case.reference else {},
                    )
                    rows.append([dim, num, name, *describe(found, ours, reference, failures[name])])
    columns = [
        "dim",
        "N",
        "distance",
        "value",
        "error",
        "gradient error",
        "seconds",
        "times ours",
        "memory [GB]",
        "note",
    ]
    extra = {"blur": BLUR, "repeats": arguments.repeats, "converged": CONVERGED, "versions": versions()}
    finish(f"Value and gradient, blur {BLUR}, float32", columns, rows, arguments.out, extra)


def describe(found: dict[str, Any], ours: dict[str, Any], reference: dict[str, Any], failure: str) -> list[Any]:
    """Value, errors, time, ratio, memory and note; empty where there is none."""
    if "value" not in found:
        return [""] * 6 + [str(found["skipped"]) if "skipped" in found else failure or "no result"]
    errors: list[Any] = ["", ""]
    if "value" in reference:
        gradient = np.asarray(reference["gradient"], float)
        distance = np.linalg.norm(found["gradient"] - gradient) / np.linalg.norm(gradient)
        errors = [float(found["value"] / reference["value"] - 1.0), float(distance)]
    ratio = float(found["wall"] / ours["wall"]) if "wall" in ours else ""
    memory = float(found["memory"]) if np.isfinite(found["memory"]) else ""
    return [float(found["value"]), *errors, float(found["wall"]), ratio, memory, ""]


def versions() -> dict[str, str]:
    """Of the packages compared, those that are here."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("jax", "ott-jax", "torch", "geomloss", "POT", "pykeops"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


if __name__ == "__main__":
    main()
