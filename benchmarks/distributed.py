"""Two processes of one fit under jax.distributed, on this machine: the same fit as one process? And when one is killed?

python benchmarks/distributed.py
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


def start_two(folder: Path, settings: Path) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = ("--distributed", "--coordinator", f"localhost:{port}", "--num-processes", "2")
    return [start_fit(folder, settings, *shared, "--process-id", str(number)) for number in range(2)]


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
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        settings, long = base / "run.toml", base / "long.toml"
        settings.write_text(SETTINGS)
        long.write_text(SETTINGS.replace("num_epochs = 12", "num_epochs = 2000"))
        one = start_fit(base / "one", settings)
        one.communicate()
        codes = [one.returncode]
        for process in start_two(base / "two", settings):
            process.communicate()
            codes.append(process.returncode)
        traces = [pj.read_table(base / name / "history.parquet") for name in ("one", "two")]
        columns = [name for name in traces[0].colnames if "loss" in name]
        loss = [np.array([trace[name] for name in columns], float) for trace in traces]
        difference = float(np.max(np.abs(loss[1] / loss[0] - 1.0)))
        rows: list[list[Any]] = [["largest relative difference of the loss trace", difference]]
        rows.append(["records compared (epochs x members)", float(loss[0].size)])
        extra = {"exit codes": codes, "columns": columns}
        for victim in (1, 0):
            seconds, code, words = lost(base / f"lost{victim}", long, victim)
            rows.append([f"seconds from killing process {victim} to the other's end", seconds])
            extra[f"process {victim} killed"] = {"exit code": code, "said": words}
            print(extra[f"process {victim} killed"])
    finish("One fit by two processes", ["quantity", "value"], rows, args.out, extra)


if __name__ == "__main__":
    main()
