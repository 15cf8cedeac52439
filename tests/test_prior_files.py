"""A population's files are data from anybody: each is read as it was written, or refused by name."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_prior import save_tiny

import popsed_jax as pj
from popsed_jax.population.storage import StorageError, load_arrays, write_atomically

DESCRIPTION, WEIGHTS = "population.json", "weights.safetensors"


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path)


def seal(fields: object) -> bytes:
    """A description with the right checksum of itself."""
    if not isinstance(fields, dict):
        return json.dumps(fields).encode()
    own = {key: value for key, value in fields.items() if key != "description_sha256"}
    packed = json.dumps(own, sort_keys=True, separators=(",", ":"))
    return json.dumps(own | {"description_sha256": hashlib.sha256(packed.encode()).hexdigest()}).encode()


def edit(folder, **changes) -> None:
    """Change fields as somebody would who knows the checksum."""
    path = folder / DESCRIPTION
    fields = json.loads(path.read_text()) | changes
    fields["weights_sha256"] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    path.write_bytes(seal({key: value for key, value in fields.items() if value is not None}))


FLOW = {"num_layers": 2, "hidden": 8, "num_blocks": 1, "num_bins": 4, "tail_bound": 5.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 3}, r"population\.json has format version 3, newer than this package reads"),
        ({"format_version": True}, "does not describe"),
        ({"format": "popsed_jax emulator"}, "does not describe"),
        ({"flow": None}, r"population\.json lacks 'flow'"),
        ({"orders": None}, "lacks 'orders'"),
        ({"orders": ["0 1 2", "0 1 2"]}, "orders are not those"),
        ({"num_members": 3}, r"weights\.safetensors: .* expected"),
        ({"num_members": 10**12}, "num_members = 1000000000000 must be an integer from 1 to"),
        ({"num_members": "2"}, "num_members = '2' must be an integer"),
        ({"flow": FLOW | {"num_blocks": 10**9}}, "flow.num_blocks = 1000000000 must be"),
        ({"flow": FLOW | {"num_layers": 3}}, "num_layers = 3 must be even"),
        ({"flow": FLOW | {"tail_bound": "5"}}, "flow.tail_bound = '5' must be a number"),
        ({"flow": FLOW | {"exec": "x"}}, "flow must hold num_layers, .* and nothing else"),
        ({"parameters": []}, "parameters must be a list of 2 to"),
        ({"parameters": [{"name": "a"}] * 3}, r"parameters\[0\] lacks low, high"),
        ({"parameters": [{"name": "a", "low": 0, "high": 10**400}] * 3}, "is damaged"),
        ({"parameters": [{"name": "a", "low": 1, "high": 0}] * 3}, "must be finite and below"),
    ],
)
def test_impossible_descriptions_are_refused(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(StorageError, match=message):
        pj.load_prior(folder)


def test_a_changed_description_is_refused(folder):
    path = folder / DESCRIPTION
    path.write_text(path.read_text().replace("13.0", "12.0"))
    with pytest.raises(StorageError, match=r"population\.json is not as it was written \(checksum\)"):
        pj.load_prior(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("[1]", lambda a: a * 1.5, "weights are negative or do not sum to one"),
        ("[1]", lambda a: np.array([1.5, -0.5], np.float32), "weights are negative"),
        ("[0].mean", lambda a: a * np.nan, "no finite numbers"),
        ("[0].mean", lambda a: a.astype(np.int32), "no finite numbers"),
        ("[0].mean", lambda a: a[:, :2], "has shape"),
        ("[0].chol", lambda a: -a, "chol is not lower triangular with a positive diagonal"),
        ("[0].chol", lambda a: np.swapaxes(a, 1, 2), "chol is not lower triangular"),
    ],
)
def test_arrays_that_are_no_density_are_refused(folder, name, change, message):
    from safetensors.numpy import load_file, save

    arrays = load_file(folder / WEIGHTS)
    arrays[name] = np.ascontiguousarray(change(arrays[name]))
    write_atomically(folder / WEIGHTS, save(arrays))
    edit(folder)
    with pytest.raises(StorageError, match=message):
        pj.load_prior(folder)


def test_other_arrays_are_refused(folder):
    with pytest.raises(StorageError, match="holds other arrays than expected"):
        load_arrays(folder / WEIGHTS, {"other": (3,)})


def test_folders_of_version_1_are_read(folder):
    path = folder / DESCRIPTION
    expected = pj.load_prior(folder)
    fields = json.loads(path.read_text())
    for key in ("orders", "description_sha256"):
        del fields[key]
    path.write_text(json.dumps(fields | {"format_version": 1}))
    prior = pj.load_prior(folder)
    theta = prior.sample(jax.random.key(0), 10)
    np.testing.assert_array_equal(prior.log_prob(theta), expected.log_prob(theta))
    assert prior.meta == expected.meta


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """One of the things that happen to files, or are done to them."""
    at = int(rng.integers(len(content)))
    kind = rng.integers(6)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + bytes([content[at] ^ (1 << int(rng.integers(8)))]) + content[at + 1 :]
    if kind == 2:
        return content[:at] + rng.bytes(int(rng.integers(1, 40))) + content[at:]
    if kind == 3:
        return content[:at] + content[at + int(rng.integers(1, 40)) :]
    if kind == 4:
        words = [b"NaN", b"1e999", b"-1", b"[" * 5000, b"null", b"\"__import__('os')\"", b"9" * 5000, b"{}"]
        return content[:at] + words[int(rng.integers(len(words)))] + content[at + 1 :]
    return content[:at] + bytes(len(content) - at)


def mutate_value(value, rng: np.random.Generator):
    """Another value somewhere in a description."""
    if isinstance(value, dict) and value and rng.uniform() < 0.9:
        key = sorted(value)[int(rng.integers(len(value)))]
        return {**value, key: mutate_value(value[key], rng)}
    if isinstance(value, list) and value and rng.uniform() < 0.9:
        index = int(rng.integers(len(value)))
        return [*value[:index], mutate_value(value[index], rng), *value[index + 1 :]]
    odd = [None, True, -1, 0, 1, 3, 2**63, 1e300, -1e-300, "", "x", [], {}, [[1]], {"name": 1}, "eval('1')"]
    return odd[int(rng.integers(len(odd)))]


def test_mutated_files_are_read_as_written_or_refused(folder, monkeypatch):
    good = {name: (folder / name).read_bytes() for name in (DESCRIPTION, WEIGHTS)}
    fields = json.loads(good[DESCRIPTION])
    expected = pj.load_prior(folder)
    rng = np.random.default_rng(0)

    def forbidden(*args, **kwargs):
        raise AssertionError("loading must not run code")

    messages = []
    for trial in range(500):
        changed = dict(good)
        if trial % 5 < 2:
            changed[DESCRIPTION] = mutate(good[DESCRIPTION], rng)
        elif trial % 5 == 2:
            changed[WEIGHTS] = mutate(good[WEIGHTS], rng)
        elif trial % 5 == 3:  # by somebody who knows the checksums
            changed[DESCRIPTION] = seal(mutate_value(fields, rng))
        else:
            changed[WEIGHTS] = mutate(good[WEIGHTS], rng)
            changed[DESCRIPTION] = seal(fields | {"weights_sha256": hashlib.sha256(changed[WEIGHTS]).hexdigest()})
        for name, content in changed.items():
            (folder / name).write_bytes(content)
        try:
            with monkeypatch.context() as patch:
                for name in ("builtins.eval", "builtins.exec", "os.system", "subprocess.Popen", "pickle.loads"):
                    patch.setattr(name, forbidden)
                prior = pj.load_prior(folder)
        except StorageError as error:
            messages.append(str(error))
        else:
            assert isinstance(prior, pj.Prior)
            assert prior.dim == 3
            if changed == good:
                assert prior.population.space == expected.population.space
    assert len(messages) > 400
    assert all(DESCRIPTION in message or WEIGHTS in message for message in messages)


PROGRAM = """
import json, sys, time
start = time.perf_counter()
import jax
jax.jit(lambda x: x + 1.0)(1.0)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
before = resident()
import popsed_jax
prior = popsed_jax.load_prior(sys.argv[1])
print(time.perf_counter() - start, resident() - before)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory from /proc")
def test_loading_is_quick_and_brings_no_training(folder):
    result = subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    measured, modules = result.stdout.splitlines()
    seconds, megabytes = map(float, measured.split())
    assert not set(json.loads(modules)) & {
        "dsps",
        "ott",
        "optax",
        "distrax",
        "tensorflow_probability",
        "astropy",
        "h5py",
    }
    assert megabytes < 50.0
    # 1.6 s when nothing else runs; the tests share their cores.
    assert seconds < 10.0
