"""Nothing is lost: what a full disk, other settings, a cut file or other devices do to a run, and what it says."""

from __future__ import annotations

import errno
import os

import jax
import numpy as np
import pytest

from popsed_jax.population.checkpoint import Checkpoint, CheckpointError, checked_metadata, settings_text
from popsed_jax.population.storage import load_tree, save_tree
from popsed_jax.population.train import EpochInfo
from popsed_jax.progress import Progress

SETTINGS = {"fit": {"num_epochs": 4, "learning_rate": 1e-3}, "surveys": [{"bands": ["g", "r"]}]}


@pytest.fixture
def full_disk(monkeypatch):
    """A disk that has no room for the content of files."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def begin() -> None:
        monkeypatch.setattr(os, "fsync", refuse)

    return begin


def test_a_full_disk_leaves_the_file_of_before_and_says_so(tmp_path, full_disk) -> None:
    path = tmp_path / "state.safetensors"
    save_tree(path, {"a": np.arange(3.0, dtype=np.float32)})
    full_disk()
    message = (
        r"cannot write .*state\.safetensors \(No space left on device\); the file of before is whole: free some space"
    )
    with pytest.raises(OSError, match=message):
        save_tree(path, {"a": np.zeros(3, dtype=np.float32)})
    assert np.asarray(load_tree(path, {"a": np.zeros(3)})["a"]).tolist() == [0.0, 1.0, 2.0]
    assert [item.name for item in tmp_path.iterdir()] == ["state.safetensors"]
    with pytest.raises(OSError, match=r"cannot write .*new\.safetensors \(No space left on device\): free"):
        save_tree(tmp_path / "new.safetensors", {"a": np.zeros(3)})


def test_a_folder_that_is_a_file_is_named(tmp_path) -> None:
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(OSError, match=r"cannot write .*run/a\.safetensors \(.*\): see to that"):
        save_tree(tmp_path / "run" / "a.safetensors", {"a": np.zeros(3)})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full: Linux has one")
def test_a_log_that_cannot_be_written_stops_nothing(capsys) -> None:
    with Progress(show=True, log=None) as progress:
        progress._log = open("/dev/full", "w")  # noqa: SIM115 (progress closes it)
        progress.say("first")
        progress.say("second")
    shown = capsys.readouterr().err
    assert "No more lines into /dev/full: No space left on device" in shown
    assert "second" in shown


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fit": {"num_epochs": 8, "learning_rate": 1e-3}}, r"fit\.num_epochs is 4 there and 8 here\)"),
        ({"fit": {"learning_rate": 1e-3}}, r"fit\.num_epochs is 4 there and not set here"),
        ({"surveys": [{"bands": ["g", "i"]}]}, r"surveys\[0\]\.bands is \['g', 'r'\] there and \['g', 'i'\] here"),
        ({"fit": {"a": 1, "b": 2, "c": 3, "num_epochs": 4}}, r"fit\.c is not set there and 3 here, and 1 more\)"),
    ],
)
def test_other_settings_are_named(tmp_path, change, words) -> None:
    path = tmp_path / "members.safetensors"
    save_tree(path, {"a": np.zeros(1)}, {"settings": settings_text(SETTINGS)})
    assert checked_metadata(path, settings_text(SETTINGS))
    with pytest.raises(CheckpointError, match=f"belongs to other settings, bands or data .*{words}"):
        checked_metadata(path, settings_text(SETTINGS | change))


def test_a_checkpoint_of_an_older_version_is_refused_without_details(tmp_path) -> None:
    path = tmp_path / "members.safetensors"
    save_tree(path, {"a": np.zeros(1)}, {"settings": "5e5ca4"})
    with pytest.raises(CheckpointError, match=r"belongs to other settings, bands or data\. Resume with"):
        checked_metadata(path, settings_text(SETTINGS))


def test_another_number_of_devices_is_said(tmp_path, monkeypatch) -> None:
    checkpoint = Checkpoint(tmp_path, SETTINGS)
    assert checkpoint.other_devices() is None
    info = EpochInfo(*(np.zeros(1) for _ in EpochInfo._fields))
    checkpoint.save({"a": np.zeros(1)}, [info])
    assert checkpoint.other_devices() is None
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert "ran on 1 device(s), the rest on 4: the same fit" in checkpoint.other_devices()
