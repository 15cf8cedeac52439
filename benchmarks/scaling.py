"""How time and memory grow with galaxies a step, members and devices.

python benchmarks/scaling.py
python benchmarks/scaling.py --galaxies 1000 10000 100000      # without the million

The embedded galaxies, default settings but for what is varied, with the sliced distance. Galaxies: one step of one member, its
gradient included. Members: an epoch of the default size, its validation included. Devices: the loss trace of a short fit on two
devices against one (virtual ones on a CPU, so that only their agreement says something). Each entry runs in a process of its own,
whose largest memory is taken before and after the steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import finish, with_fit

import popsed_jax as pj
from popsed_jax.flows.spline import init_flow
from popsed_jax.population.devices import device_mesh
from popsed_jax.population.fit import empty_members, train, train_settings
from popsed_jax.population.galaxies import TrainingGalaxies
from popsed_jax.population.objective import member_loss
from popsed_jax.population.schedules import build_schedule
from popsed_jax.population.train import init_state
from popsed_jax.surveys import prepare_problem


def memory() -> float:
    """Largest resident memory so far [GB]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def prepare(**changes: Any) -> dict[str, Any]:
    """What training needs, with flows at their start instead of references."""
    config = with_fit(pj.default_config(), flat_control=False, **changes)
    config = dataclasses.replace(config, anneal=dataclasses.replace(config.anneal, sinkhorn_start=1.0))
    schedule = build_schedule(config.anneal, config.fit.num_epochs, config.fit.learning_rate)
    prepared = prepare_problem(jax.random.key(0), (pj.read_catalog(config.catalog),), config)
    num = config.fit.num_members
    members, _ = empty_members(prepared.problem, config.flow, config.fit)
    dim = len(prepared.problem.parameters)
    flows = jax.vmap(lambda key: init_flow(key, dim, config.flow))(jax.random.split(jax.random.key(1), num))
    return {
        "problem": prepared.problem,
        "galaxies": TrainingGalaxies(jax.random.key(2), prepared.galaxies, num),
        "members": members._replace(reference=flows, controlled=jnp.ones(num)),
        "schedule": schedule,
        "settings": train_settings(config.fit, config.transport, device_mesh(num), schedule),
    }


def one_step(num: int, repeats: int) -> dict[str, float]:
    """Shortest time of a step with so many galaxies."""
    ready = prepare(num_members=1, batch_size=num)
    settings, problem = ready["settings"], ready["problem"]
    row = ready["schedule"].row(0)
    batches = ready["galaxies"].batches(jax.random.key(3), np.arange(1), 1, num)
    batch = jax.tree.map(lambda leaf: leaf[0, 0], batches)
    state = init_state(ready["members"], problem, settings)
    member, trained = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (ready["members"], state.trained))
    step = jax.jit(
        lambda trained, key, row: jax.value_and_grad(member_loss, has_aux=True)(
            trained, key, member, problem, batch, row, jnp.zeros(()), settings
        )
    )
    compiled = step.lower(trained, jax.random.key(4), row).compile()
    before, times = memory(), []
    for _ in range(repeats + 1 if num < 10**6 else 1):  # the first run is slower, which a minute's run does not notice
        started = time.perf_counter()
        jax.block_until_ready(compiled(trained, jax.random.key(4), row))
        times.append(time.perf_counter() - started)
    return {"time [s]": min(times), "memory of the steps [GB]": memory() - before, "memory [GB]": memory()}


def epochs(num_members: int, repeats: int) -> dict[str, float]:
    """Shortest time of an epoch of so many members."""
    ready = prepare(num_members=num_members, num_epochs=repeats + 1)
    ends = []
    train(jax.random.key(5), callback=lambda *_: ends.append(time.perf_counter()), **ready)
    return {"time [s]": float(np.diff(ends).min()), "memory [GB]": memory()}


def trace(num_devices: int, repeats: int) -> dict[str, Any]:
    """Losses of a short fit on so many devices, and the time of its last epoch."""
    if jax.device_count() != num_devices:
        raise RuntimeError(f"{jax.device_count()} devices where {num_devices} were asked for")
    ready = prepare(num_members=2, num_epochs=repeats + 1, steps_per_epoch=4)
    ends = []
    history = train(jax.random.key(5), callback=lambda *_: ends.append(time.perf_counter()), **ready)[1]
    return {
        "time [s]": float(np.diff(ends).min()),
        "memory [GB]": memory(),
        "loss": [i.loss.tolist() for i in history],
    }


MEASURES = {"galaxies a step": one_step, "members": epochs, "devices": trace}


def in_own_process(what: str, number: int, repeats: int) -> dict[str, Any]:
    flags = os.environ.get("XLA_FLAGS", "")
    if what == "devices" and jax.default_backend() == "cpu":
        flags += f" --xla_force_host_platform_device_count={number}"
    command = [sys.executable, __file__, "--one", what, str(number), "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"XLA_FLAGS": flags})
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling.json"))
    parser.add_argument("--galaxies", type=int, nargs="*", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--members", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    parser.add_argument("--devices", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(MEASURES[args.one[0]](int(args.one[1]), args.repeats)))
        return
    rows, summary = [], {}
    for what, numbers in (
        ("galaxies a step", args.galaxies),
        ("members", args.members),
        ("devices", args.devices),
    ):
        found = {number: in_own_process(what, number, args.repeats) for number in numbers}
        for number, each in found.items():
            rows.append([what, number, each["time [s]"], each.get("memory of the steps [GB]", ""), each["memory [GB]"]])
            print(rows[-1], flush=True)
        if what != "devices" and len(numbers) > 1:
            times = [each["time [s]"] for each in found.values()]
            summary[f"exponent of time with {what}"] = float(np.polyfit(np.log(numbers), np.log(times), 1)[0])
        if what == "devices" and len(numbers) > 1:
            one, *others = (np.array(each["loss"]) for each in found.values())
            summary["largest relative difference of losses"] = float(max(np.max(np.abs(o / one - 1)) for o in others))
    print(summary)
    columns = [
        "what",
        "number",
        "time of a step or epoch [s]",
        "memory of the steps [GB]",
        "memory of the process [GB]",
    ]
    finish("Scaling", columns, rows, args.out, summary)


if __name__ == "__main__":
    main()
