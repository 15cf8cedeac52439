"""A fit spread over devices, and over processes, is the fit on one device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from popsed_jax import distributed
from popsed_jax.population.devices import device_mesh, fetch, place, spread

SPREAD = """
import json, sys
sys.path.insert(0, {tests!r})
import jax, numpy as np
from tiny import tiny_catalog, tiny_config
from popsed_jax.population.devices import device_mesh
from popsed_jax.population.fit import build_members, train, train_settings
from popsed_jax.population.galaxies import TrainingGalaxies
from popsed_jax.population.schedules import build_schedule
from popsed_jax.surveys import prepare_problem

config = tiny_config(flat_control=False)
prepared = prepare_problem(jax.random.key(0), (tiny_catalog(config),), config)
problem, galaxies = prepared.problem, TrainingGalaxies(jax.random.key(1), prepared.galaxies, 2)
members, _ = build_members(jax.random.key(1), problem, config.reference, config.flow, config.fit)
schedule = build_schedule(config.anneal, 2, 1e-3)
meshes = {{"one": None, "four": device_mesh(2)}}
found = {{}}
for name, mesh in meshes.items():
    settings = train_settings(config.fit, config.transport, mesh)
    _, history = train(jax.random.key(2), problem, galaxies, members, schedule, settings)
    found[name] = [np.asarray(info.loss).tolist() for info in history]
print(json.dumps({{"mesh": list(meshes["four"].devices.shape), "loss": found}}))
"""


def run(source: str, *arguments: str, **environment: str) -> subprocess.Popen:
    flags = f"{os.environ['XLA_FLAGS']} {environment.pop('XLA_FLAGS', '')}"
    return subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        env=os.environ | environment | {"XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow  # compiles for several devices: three minutes on one core
def test_four_devices_train_as_one() -> None:
    source = SPREAD.format(tests=str(Path(__file__).parent))
    process = run(source, XLA_FLAGS="--xla_force_host_platform_device_count=4", JAX_ENABLE_X64="1")
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["mesh"] == [2, 2]  # members, and the draws of each
    np.testing.assert_allclose(found["loss"]["four"], found["loss"]["one"], rtol=1e-9)


def test_one_device_needs_no_mesh() -> None:
    assert device_mesh(4) is None
    tree = {"a": np.ones(3)}
    assert place(tree, None) is tree
    assert fetch(tree, None) is tree
    assert spread(tree["a"], None) is tree["a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1234", None, None), "give all of --coordinator"),
        ((None, 2, None), "give all of --coordinator"),
        (("localhost:1234", 2, 2), "--process-id 2 must be from 0 to 1"),
    ],
)
def test_half_a_description_of_the_processes_is_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        distributed.join(*arguments)


def test_a_lost_process_is_named(monkeypatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    lost = pytest.raises(distributed.LostProcessError, match=r"another of the 2 processes ended.*--resume")
    with lost, distributed.named_losses():
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: connection closed by peer")


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_one_process_is_its_own(monkeypatch, processes) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory"), distributed.named_losses():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")


TWO = """
import sys
import numpy as np
from popsed_jax import distributed
distributed.join(sys.argv[1], 2, int(sys.argv[2]))
import jax
from popsed_jax.population.devices import device_mesh, fetch, place, spread
for num in (4, 5):  # 5 draws are not to be had on two devices
    uneven = device_mesh(1)
    draws = place(np.arange(2.0 * num, dtype=np.float32).reshape(num, 2), uneven)
    assert np.array_equal(fetch(jax.jit(lambda u: spread(u, uneven))(draws), uneven)[-1], [2.0 * num - 2.0, 2.0 * num - 1.0])
mesh = device_mesh(4)
tree = {"a": np.arange(8.0, dtype=np.float32).reshape(4, 2), "key": jax.random.key(3)}
placed = {"a": place(tree["a"], mesh, by_member=True), "key": place(tree["key"], mesh)}
whole = fetch(jax.jit(lambda t: {"sum": t["a"].sum(), "a": 2.0 * t["a"]})(placed), mesh)
print(dict(mesh.shape), placed["a"].addressable_shards[0].data.shape, float(whole["sum"]), np.asarray(whole["a"])[3].tolist())
"""


def test_two_processes_share_one_array() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [run(TWO, f"localhost:{port}", str(number)) for number in range(2)]
    for process in both:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert out.splitlines()[-1] == "{'member': 2, 'draw': 1} (2, 2) 28.0 [12.0, 14.0]"
