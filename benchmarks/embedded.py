"""Bars 1 and 2: the first command on the embedded galaxies, as a user runs it: time, memory, photometry and redshifts.

python benchmarks/embedded.py
python benchmarks/embedded.py --nebular    # the same galaxies with and without the light of ionised gas
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import finish


def run(folder: Path, *options: str) -> dict[str, float]:
    started = time.perf_counter()
    command = [sys.executable, "-m", "popsed_jax", "fit", "--out", str(folder), *options]
    code = subprocess.run(command, check=False).returncode
    wall = time.perf_counter() - started
    metrics = json.loads((folder / "metrics.json").read_text())
    return {
        "exit code": code,
        "wall [s]": wall,
        "peak memory [GB]": metrics["peak_memory_gb"],
        "members": sum(not member["control"] for member in metrics["members"]),
        "distance / floor": metrics["validation"]["ratio"],
        "reference / floor": metrics["validation"]["reference_ratio"],
        "worst band [mag]": max(band["wasserstein"] for band in metrics["bands"].values()),
        "worst color [mag]": max(color["wasserstein"] for color in metrics["colors"].values()),
        "n(z) W1": metrics["redshift"]["wasserstein"],
        "n(z) W1 error": metrics["redshift"]["wasserstein_error"],
        "mean z offset": metrics["redshift"]["mean_offset"],
        "reference n(z) W1": metrics["redshift"]["reference_wasserstein"],
        "flat n(z) W1": metrics["redshift"]["flat_wasserstein"],
    }


GAS = {
    "no gas": 'ssp = "stellar"',
    "in the templates (default)": 'ssp = "nebular"',
    "Cloudy grid, log U free": 'ssp = "stellar"\nnebular = true',
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="seeds of the default run")
    parser.add_argument("--nebular", action="store_true", help="compare the models of ionised gas instead")
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.nebular:
            for i, (gas, model) in enumerate(GAS.items()):
                settings = folder / f"gas{i}.toml"
                settings.write_text(f"[model]\n{model}\n")
                results[gas] = run(folder / f"run{i}", "--config", str(settings))
        else:
            results["--quick"] = run(folder / "quick", "--quick")
            for seed in args.seeds:
                results[f"default, seed {seed}"] = run(folder / f"full{seed}", "--seed", str(seed))
    title, file = (
        ("Light of ionised gas", "nebular.json") if args.nebular else ("Embedded SDSS galaxies", "embedded.json")
    )
    columns = [title, *next(iter(results.values()))]
    rows = [[name, *row.values()] for name, row in results.items()]
    finish(title, columns, rows, args.out or Path("benchmarks/results") / file, {})


if __name__ == "__main__":
    main()
