"""Two processes of one fit under jax.distributed, on this machine: the same fit as one process? And when one is killed?

python benchmarks/distributed.py

The loss traces are compared in double precision, where they show whether it is the same fit, and in JAX's default single
precision, where training makes the rounding of another order of sums grow.
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, start_fit
from kill import SETTINGS

import popsed_jax as pj


def start_two(folder: Path, settings: Path, **environment: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = ("--distributed", "--coordinator", f"localhost:{port}", "--num-processes", "2")
    return [start_fit(folder, settings, *shared, "--process-id", str(number), **environment) for number in range(2)]


def differences(base: Path, settings: Path, double: bool) -> tuple[np.ndarray, list[int]]:
    """Relative differences of the losses of one and of two processes (a row an epoch), and the exit codes."""
    precision = {"JAX_ENABLE_X64": str(int(double))}
    one = start_fit(base / f"one{double}", settings, **precision)
    one.communicate()
    two = start_two(base / f"two{double}", settings, **precision)
    for process in two:
        process.communicate()
    traces = [pj.read_table(base / f"{name}{double}" / "history.parquet") for name in ("one", "two")]
    epochs = np.asarray(traces[0]["epoch"])
    loss = [np.asarray(trace["loss"], float) for trace in traces]
    change = np.abs(loss[1] / loss[0] - 1.0)
    by_epoch = np.array([change[epochs == epoch].max() for epoch in np.unique(epochs)])
    return by_epoch, [one.returncode, *(process.returncode for process in two)]


def lost(folder: Path, settings: Path, victim: int) -> tuple[float, int, str]:
    """Seconds from the kill to the other's end, its exit code, and its last words."""
    both = start_two(folder, settings)
    log = folder / "log.txt"
    while not (log.exists() and "epoch 3" in log.read_text()):
        if any(process.poll() is not None for process in both):
            raise RuntimeError(both[0].communicate()[1])
        time.sleep(0.2)
    both[victim].send_signal(signal.SIGKILL)
    killed = time.perf_counter()
    said = both[1 - victim].communicate(timeout=600)[1]
    both[victim].communicate()
    words = [line for line in said.splitlines() if line.startswith("popsed-jax:")]
    return time.perf_counter() - killed, both[1 - victim].returncode, words[-1] if words else said[-300:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/distributed.json"))
    parser.add_argument(
        "--victims", type=int, nargs="*", default=[1, 0], help="processes to kill, each in a fit of its own"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        settings, long = base / "run.toml", base / "long.toml"
        settings.write_text(SETTINGS)
        long.write_text(SETTINGS.replace("num_epochs = 12", "num_epochs = 2000"))
        rows: list[list[Any]] = []
        extra: dict[str, Any] = {}
        for name, double in (("double", True), ("single", False)):
            change, codes = differences(base, settings, double)
            rows += [[f"{name} precision: relative difference of losses, first epoch", float(change[0])]]
            rows += [[f"{name} precision: the largest of {len(change)} epochs", float(change.max())]]
            extra[name] = {"by epoch": change.tolist(), "exit codes": codes}
            print(rows[-2:], flush=True)
        for victim in args.victims:
            seconds, code, words = lost(base / f"lost{victim}", long, victim)
            rows.append([f"seconds from killing process {victim} to the other's end", seconds])
            extra[f"process {victim} killed"] = {"exit code": code, "said": words}
            print(extra[f"process {victim} killed"])
    finish("One fit by two processes", ["quantity", "value"], rows, args.out, extra)


if __name__ == "__main__":
    main()
