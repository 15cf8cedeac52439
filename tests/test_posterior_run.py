"""Posteriors of whole catalogues: all rows, whatever kills the run; nothing of another catalogue, estimator or setting."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from galaxy_rows import FAULTS, FakeEstimator, config_for, good_table, spoiled_table

import popsed_jax as pj
from popsed_jax.flags import UNUSABLE, Flag
from popsed_jax.population.checkpoint import CheckpointError
from popsed_jax.population.storage import StorageError
from popsed_jax.posterior_run import PosteriorResult, read_posterior, run_posterior
from popsed_jax.posteriors.estimator import Columns, Rows, piece_seed
from popsed_jax.tables import TableError, write_table

KINDS = [*FAULTS, *["no bands"] * 10, *list(FAULTS)[::-1], "good"]
NUM_PARTS = 11
IDENTITY = {"method": "fake", "samples": 0}


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Path:
    """A folder with a catalogue in three formats; one of its pieces has no usable row."""
    folder = tmp_path_factory.mktemp("survey")
    for suffix in (".csv", ".fits", ".parquet"):
        write_table(spoiled_table(KINDS), folder / f"c{suffix}")
    return folder


def run(survey: Path, out: Path, estimator: object = None, name: str = "c.parquet", **changes) -> PosteriorResult:
    settings = {"piece_rows": 5, "identity": IDENTITY, "show_progress": False, **changes}
    config = settings.pop("config", config_for(name, row="id", min_bands=2))
    return run_posterior(FakeEstimator() if estimator is None else estimator, config, survey, out=out, **settings)


def content(folder: Path) -> dict[str, bytes]:
    """All files but the log, whose times differ."""
    return {item.name: item.read_bytes() for item in folder.iterdir() if item.name != "log.txt"}


@pytest.fixture(scope="module")
def whole(survey, tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert run(survey, folder).finished
    return folder


# --- the product


@pytest.mark.parametrize("suffix", [".csv", ".fits", ".parquet"])
def test_every_row_has_its_line(survey, tmp_path, suffix) -> None:
    estimator = FakeEstimator()
    result = run(survey, tmp_path / "out", estimator, f"c{suffix}")
    table = read_posterior(tmp_path / "out")
    source = pj.read_table(survey / f"c{suffix}")
    assert np.array_equal(table["row"], source["id"])
    expected = [FAULTS[kind][1] for kind in KINDS]
    usable = np.array([not flag & UNUSABLE for flag in expected])
    low = np.where(usable & (np.asarray(source["id"]) % 7 == 0), Flag.LOW_ESS, 0)
    assert table["flags"].tolist() == [int(flag) | int(extra) for flag, extra in zip(expected, low, strict=True)]
    for name in ("mean_flux", "noise", "pz"):
        there = np.isfinite(np.asarray(table[name])).reshape(len(KINDS), -1)
        assert np.array_equal(there.all(axis=1), usable)
        assert np.array_equal(there.any(axis=1), usable)
    assert all(np.isfinite(rows.flux).sum(axis=1).min(initial=9) >= 2 for _, rows in estimator.calls)
    assert (result.num_rows, result.num_done, result.num_estimated) == (len(KINDS), len(KINDS), usable.sum())
    assert result.flagged["no usable band"] == sum(bool(flag & Flag.NO_BAND) for flag in expected)
    assert re.match(rf"{len(KINDS)} galaxies in .* s, {usable.sum()} with a posterior; flagged: ", result.reason)


def test_the_three_formats_give_the_same_parts(survey, whole, tmp_path) -> None:
    for suffix in (".csv", ".fits"):
        run(survey, tmp_path / suffix, name=f"c{suffix}")
        parts = {name: part for name, part in content(tmp_path / suffix).items() if name.startswith("part")}
        assert parts == {name: part for name, part in content(whole).items() if name.startswith("part")}
        assert len(parts) == NUM_PARTS


def test_columns_have_units_kinds_and_vectors(whole) -> None:
    table = pj.read_table(whole)
    assert table.colnames == ["row", "flags", "mean_flux", "noise", "pz"]
    assert [table[name].dtype for name in table.colnames] == [np.int64, np.int32, np.float64, np.float64, np.float32]
    assert table["pz"].shape == (len(KINDS), 4)
    assert str(table["mean_flux"].unit) == "mgy"
    assert table["pz"].description == "a density on a grid"
    assert "1, no usable band" in table["flags"].description
    first = pj.read_table(whole / "part-00000.parquet")
    assert np.array_equal(first["pz"], table["pz"][:5], equal_nan=True)
    columns = {entry["name"]: entry for entry in read_posterior(whole).meta["columns"]}
    assert (columns["pz"]["kind"], columns["pz"]["length"]) == ("float32", [4])
    assert columns["mean_flux"]["unit"] == "mgy"


def test_pieces_have_seeds_of_their_own_and_any_run_the_same(survey, whole, tmp_path) -> None:
    estimator = FakeEstimator()
    run(survey, tmp_path / "out", estimator)
    seeds = [seed for seed, rows in estimator.calls if len(rows.row)]
    assert len(set(seeds)) == len(seeds) > 5
    assert set(seeds) <= {piece_seed(0, number) for number in range(NUM_PARTS)}
    assert content(tmp_path / "out") == content(whole)
    run(survey, tmp_path / "other", seed=1)
    assert content(tmp_path / "other")["part-00000.parquet"] != content(whole)["part-00000.parquet"]


def test_piece_seeds_differ() -> None:
    seeds = {piece_seed(seed, *numbers) for seed in (0, 1) for numbers in [(), (0,), (0, 0), (1,), (0, 1), (1, 0)]}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_names_of_many_parts_sort_as_their_numbers(survey, tmp_path, monkeypatch) -> None:
    run(survey, tmp_path / "out", piece_rows=1)
    names = sorted(item.name for item in (tmp_path / "out").glob("*.parquet"))
    assert names == [f"part-{number:05d}.parquet" for number in range(len(KINDS))]
    assert np.array_equal(pj.read_table(tmp_path / "out")["row"], pj.read_table(survey / "c.fits")["id"])


# --- kills


class Killed(BaseException):
    """What no handler of the program catches."""


@pytest.mark.parametrize("kill_at", [0, 1, 2, 3, 7, NUM_PARTS - 1, NUM_PARTS, NUM_PARTS + 1])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_kill_at_any_write_costs_nothing(survey, whole, tmp_path, monkeypatch, kill_at, step) -> None:
    """Between any two system calls: `posterior.json`, the parts, `posterior.json` again."""
    calls = iter(range(100))

    def dying(original):
        def call(*args):
            if next(calls) == kill_at:
                raise Killed
            return original(*args)

        return call

    with monkeypatch.context() as patch:
        owner = os if step == "fsync" else Path
        patch.setattr(owner, step, dying(getattr(owner, step)))
        with pytest.raises(Killed):
            run(survey, tmp_path / "out")
    resumable = (tmp_path / "out" / "posterior.json").is_file()
    assert resumable == (kill_at > 0)
    if resumable:
        with pytest.raises(StorageError, match=r"is not finished: go on with --resume"):
            read_posterior(tmp_path / "out")
    assert run(survey, tmp_path / "out", resume=resumable).finished
    assert content(tmp_path / "out") == content(whole)


PROGRAM = """
import sys, time
from galaxy_rows import FakeEstimator
import test_posterior_run as tests
class Slow(FakeEstimator):
    def __call__(self, seed, rows):
        time.sleep(0.05 * bool(len(rows.row)))
        return super().__call__(seed, rows)
tests.run(tests.Path(sys.argv[1]), tests.Path(sys.argv[2]), Slow())
"""


def test_a_killed_process_is_resumed_to_the_same_bits(survey, whole, tmp_path) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-c", PROGRAM, str(survey), str(out)]
    process = subprocess.Popen(words, cwd=Path(__file__).parent, stderr=subprocess.PIPE)
    while not (out / "part-00002.parquet").is_file() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    process.stderr.close()
    assert not (out / f"part-{NUM_PARTS - 1:05d}.parquet").is_file()
    estimator = FakeEstimator()
    result = run(survey, out, estimator, resume=True)
    assert result.finished
    assert len([rows for _, rows in estimator.calls if len(rows.row)]) <= NUM_PARTS - 3
    assert content(out) == content(whole)
    assert result.flagged == run(survey, tmp_path / "again").flagged


def test_interrupted_by_hand(survey, whole, tmp_path, capsys) -> None:
    class Interrupted(FakeEstimator):
        def __call__(self, seed: int, rows: Rows) -> Columns:
            if len(self.calls) == 4:
                raise KeyboardInterrupt
            return super().__call__(seed, rows)

    result = run(survey, tmp_path / "out", Interrupted())
    assert not result.finished
    assert result.num_done == 15
    assert f"15 of {len(KINDS)} galaxies (--resume goes on)" in result.reason
    assert "Interrupted: the parts so far are kept" in (tmp_path / "out" / "log.txt").read_text()
    assert run(survey, tmp_path / "out", resume=True).finished
    assert content(tmp_path / "out") == content(whole)


def test_lost_and_damaged_parts_are_made_again(survey, whole, tmp_path) -> None:
    run(survey, tmp_path / "out")
    (tmp_path / "out" / "part-00004.parquet").unlink()
    (tmp_path / "out" / "part-00002.parquet").write_bytes(b"PAR1 and so on")
    write_table(pj.read_table(whole / "part-00001.parquet")[:3], tmp_path / "out" / "part-00001.parquet")
    estimator = FakeEstimator()
    run(survey, tmp_path / "out", estimator, resume=True)
    expected = {piece_seed(0, number) for number in (1, 2, 4)}
    assert {seed for seed, rows in estimator.calls if len(rows.row)} <= expected
    assert content(tmp_path / "out") == content(whole)
    (tmp_path / "out" / "part-00004.parquet").unlink()
    with pytest.raises(StorageError, match=r"holds 50 of 55 rows: parts are missing; --resume makes them"):
        read_posterior(tmp_path / "out")


def test_resuming_what_is_finished_computes_nothing(survey, whole, tmp_path) -> None:
    run(survey, tmp_path / "out")
    estimator = FakeEstimator()
    assert run(survey, tmp_path / "out", estimator, resume=True).finished
    assert all(len(rows.row) == 0 for _, rows in estimator.calls)
    assert content(tmp_path / "out") == content(whole)


def test_a_full_disk_is_named(survey, tmp_path, monkeypatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run(survey, tmp_path / "out")
    (tmp_path / "out" / "part-00003.parquet").unlink()
    monkeypatch.setattr(os, "fsync", refuse)
    message = (
        r"cannot write .*part-00003\.parquet \(No space left on device\): free some space, and go on with --resume"
    )
    with pytest.raises(OSError, match=message):
        run(survey, tmp_path / "out", resume=True)


# --- refusals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, r"\(seed is 0 there and 1 here\)"),
        ({"piece_rows": 6}, r"\(piece_rows is 5 there and 6 here\)"),
        ({"identity": {"method": "hmc", "samples": 0}}, r"\(estimator\.method is fake there and hmc here\)"),
        (
            {"name": "c.fits"},
            r"\(catalog\.ends_sha256 is .* there and .* here; .*catalog\.path is .*c\.parquet there and",
        ),
        ({"config": config_for("c.parquet", row="id", min_bands=1)}, r"\(columns\.min_bands is 2 there and 1 here\)"),
        ({"config": config_for("c.parquet", min_bands=2)}, r"\(columns\.row is id there and  here\)"),
        ({"estimator": FakeEstimator(bands=("g", "r"))}, r"\(columns\.bands\[2\]\.error is e_i there and not set here"),
    ],
)
def test_resuming_anything_else_is_refused_by_name(survey, tmp_path, whole, changes, words) -> None:
    message = "are of another catalogue, estimator or settings .*" + words
    before = content(whole)
    with pytest.raises(CheckpointError, match=message):
        run(survey, whole, resume=True, **changes)
    assert content(whole) == before


def test_a_catalogue_that_changed_in_its_place_is_refused(tmp_path) -> None:
    table = good_table(12)
    write_table(table, tmp_path / "c.parquet")
    run(tmp_path, tmp_path / "out")
    table["f_r"][5] *= 1.01
    write_table(table, tmp_path / "c.parquet")
    with pytest.raises(CheckpointError, match=r"catalog\.ends_sha256 is"):
        run(tmp_path, tmp_path / "out", resume=True)


def test_an_estimator_of_other_columns_is_refused(survey, whole) -> None:
    message = r"are of an estimator of other columns \(\[4\]\.length is \[4\] there and \[5\] here\)"
    with pytest.raises(CheckpointError, match=message):
        run(survey, whole, FakeEstimator(length=5), resume=True)


def test_nothing_to_resume(survey, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing to resume: .*posterior\.json does not exist\. Start without"):
        run(survey, tmp_path / "out", resume=True)
    run(survey, tmp_path / "out")
    (tmp_path / "out" / "posterior.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"posterior\.json is damaged: .*\. Start anew without --resume"):
        run(survey, tmp_path / "out", resume=True)


def test_other_versions_are_said(survey, tmp_path) -> None:
    run(survey, tmp_path / "out")
    path = tmp_path / "out" / "posterior.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"versions": {"jax": "0.0.1"}}))
    run(survey, tmp_path / "out", resume=True)
    assert "by other versions of the software" in (tmp_path / "out" / "log.txt").read_text()
    assert json.loads(path.read_text())["versions"] == {"jax": "0.0.1"}


def test_earlier_posteriors_are_replaced_and_nothing_else(survey, whole, tmp_path) -> None:
    run(survey, tmp_path / "out", piece_rows=2)
    assert run(survey, tmp_path / "out").finished
    assert content(tmp_path / "out") == content(whole)
    write_table(good_table(3), tmp_path / "out" / "mine.parquet")
    before = content(tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds mine\.parquet, which is no part of posteriors: give a new or empty"):
        run(survey, tmp_path / "out")
    assert content(tmp_path / "out") == before
    (tmp_path / "theirs").mkdir()
    write_table(good_table(3), tmp_path / "theirs" / "part-00000.parquet")
    with pytest.raises(ValueError, match=r"Parquet files, such as part-00000\.parquet, and no posterior\.json"):
        run(survey, tmp_path / "theirs")
    (tmp_path / "theirs" / "posterior.json").write_text('{"format": "something else"}')
    with pytest.raises(StorageError, match="does not describe a popsed_jax posterior"):
        run(survey, tmp_path / "theirs")
    assert len(pj.read_table(tmp_path / "theirs")) == 3


def test_a_folder_inside_the_catalogue_is_refused(tmp_path) -> None:
    (tmp_path / "parts").mkdir()
    write_table(good_table(12), tmp_path / "parts" / "a.parquet")
    for inside in ("parts", "parts/out"):
        with pytest.raises(ValueError, match=r"lies in the catalogue's folder .*parts, and would become a part of it"):
            run(tmp_path, tmp_path / inside, name="parts")


def test_reading_what_is_not_there(tmp_path) -> None:
    with pytest.raises(StorageError, match="give the folder that `popsed-jax posterior` wrote"):
        read_posterior(tmp_path)
    with pytest.raises(TableError, match="no Parquet file lies in it"):
        pj.read_table(tmp_path)


def test_wrong_numbers(survey, tmp_path) -> None:
    for changes in ({"piece_rows": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="piece_rows must be positive and seed not negative"):
            run(survey, tmp_path / "out", **changes)
