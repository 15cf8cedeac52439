"""SIGKILL at random moments of a short fit: does every run end after --resume, with the same bits?

python benchmarks/kill.py

One fit runs to its end. Then, for each of `--kills` moments drawn uniformly over its duration: the same fit is started,
killed, and resumed (started anew where it was killed before it had a checkpoint). Every file of the resumed run is read, and
its samples, weights and last state compared bit for bit with the uninterrupted run's. Compiled programs are cached in a folder
of the benchmark's own, because compiling is most of a short fit's time.
"""

from __future__ import annotations

import argparse
import json
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
from common import finish, start_fit
from safetensors.numpy import load_file

import popsed_jax as pj

SETTINGS = """
[model]
ssp = "stellar"
[flow]
num_layers = 2
hidden = 16
num_blocks = 1
num_bins = 4
[reference]
num_histories = 1000
[fit]
num_members = 2
num_epochs = 12
steps_per_epoch = 24
batch_size = 256
max_validation = 500
reference_draws = 2000
reference_steps = 50
reference_batch = 128
flat_control = false
"""


def content(folder: Path) -> dict[str, np.ndarray]:
    """Everything of a run that its seed decides; reading it shows that the files are whole."""
    samples = pj.read_table(folder / "samples.parquet")
    arrays = {f"samples {name}": np.asarray(samples[name]) for name in samples.colnames}
    arrays |= {f"weights {name}": array for name, array in load_file(folder / "population/weights.safetensors").items()}
    arrays |= {f"state {name}": array for name, array in load_file(folder / "checkpoint/state.safetensors").items()}
    pj.load_population(folder / "population")
    json.loads((folder / "metrics.json").read_text())
    if not (folder / "report.html").read_text().rstrip().endswith("</html>"):
        raise ValueError(f"{folder}/report.html is cut short")
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kill.json"))
    parser.add_argument("--kills", type=int, default=20)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        settings, cache = base / "run.toml", base / "cache"
        settings.write_text(SETTINGS)
        cached = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

        def run(folder: Path, *options: str) -> int:
            process = start_fit(folder, settings, *options, **cached)
            said = process.communicate()[1]
            if process.returncode not in (0, 3):
                print(said)
            return process.returncode

        run(base / "warm")
        started = time.perf_counter()
        run(base / "whole")
        whole = time.perf_counter() - started
        expected = content(base / "whole")
        rows = []
        for number, moment in enumerate(np.sort(rng.uniform(0.0, whole, args.kills))):
            folder = base / f"killed{number}"
            process = start_fit(folder, settings, **cached)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            log = folder / "log.txt"
            epochs = log.read_text().count("epoch ") if log.exists() else 0
            left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.part"))
            resumable = (folder / "checkpoint/members.safetensors").exists()
            code = run(folder, *(["--resume"] if resumable else []))
            found = content(folder)
            same = found.keys() == expected.keys() and all(
                np.array_equal(found[name], expected[name], equal_nan=found[name].dtype.kind == "f") for name in found
            )
            rows.append([number, float(moment), epochs, resumable, code, same, len(left)])
            print(rows[-1], flush=True)
    columns = ["kill", "after [s]", "epochs done", "resumed", "exit code", "same bits", "temporary files left"]
    summary = {"whole run [s]": whole, "all ended": all(row[4] in (0, 3) for row in rows)}
    summary["all the same"] = all(row[5] for row in rows)
    print(summary)
    finish(f"{args.kills} kills of a fit of {whole:.0f} s", columns, rows, args.out, summary)


if __name__ == "__main__":
    main()
