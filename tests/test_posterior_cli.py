"""`popsed-jax posterior`, as a user types it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from galaxy_rows import FAULTS, FakeEstimator, config_for, good_table, spoiled_table
from typer.testing import CliRunner

import popsed_jax as pj
from popsed_jax import cli, cli_posterior
from popsed_jax.estimators import build_estimator
from popsed_jax.population.checkpoint import CheckpointError
from popsed_jax.posterior_run import read_posterior
from popsed_jax.settings import dump_toml, to_mapping
from popsed_jax.tables import write_table


def write_settings(file: Path, **changes: object) -> Path:
    config = config_for(**{"path": "c.parquet", "row": "id", **changes})
    file.parent.mkdir(exist_ok=True)
    file.write_text(dump_toml({"catalog": to_mapping(config)}))
    return file


@pytest.fixture
def survey(tmp_path, monkeypatch) -> Path:
    """A run's folder, its catalogue beside it, and an estimator that remembers how it was asked for."""

    def build(run: Path, method: str, prior: str, num_samples: int, num_grid: int):
        assert run == tmp_path / "run"
        return FakeEstimator(), {"method": method, "prior": prior, "samples": num_samples, "grid": num_grid}

    monkeypatch.setattr(cli_posterior, "build_estimator", build)
    write_table(spoiled_table(list(FAULTS)), tmp_path / "c.parquet")
    write_settings(tmp_path / "run" / "config.toml", path=str(tmp_path / "c.parquet"))
    return tmp_path


def typed(*words: object):
    return CliRunner().invoke(cli.app, ["posterior", *map(str, words)])


def test_the_runs_own_catalogue(survey) -> None:
    result = typed(survey / "run", "--out", survey / "out")
    assert result.exit_code == 0, result.output
    assert f"{len(FAULTS)} galaxies in " in result.stderr
    table = read_posterior(survey / "out")
    assert np.array_equal(table["row"], pj.read_table(survey / "c.parquet")["id"])
    asked = table.meta["asked"]
    assert asked["estimator"] == {"method": "npe", "prior": "learned", "samples": 0, "grid": 0}
    assert (asked["seed"], asked["piece_rows"]) == (0, 10_000)


def test_options_reach_the_estimator_and_the_driver(survey) -> None:
    words = ["--method", "hmc", "--prior", "broad", "--samples", "7", "--seed", "3"]
    assert typed(survey / "run", "--out", survey / "out", *words).exit_code == 0
    asked = read_posterior(survey / "out").meta["asked"]
    assert asked["estimator"] == {"method": "hmc", "prior": "broad", "samples": 7, "grid": 0}
    assert (asked["seed"], asked["piece_rows"]) == (3, 200)
    assert typed(survey / "run", "--out", survey / "out", "--piece-rows", "4", *words).exit_code == 0
    assert len(list((survey / "out").glob("*.parquet"))) == -(-len(FAULTS) // 4)


def test_another_catalogue_of_the_same_columns(survey) -> None:
    write_table(good_table(9), survey / "other.fits")
    result = typed(survey / "run", survey / "other.fits", "--out", survey / "out")
    assert result.exit_code == 0, result.output
    assert len(read_posterior(survey / "out")) == 9


def test_another_catalogue_of_other_columns(survey) -> None:
    table = good_table(9)
    table.rename_column("f_g", "g_flux")
    (survey / "mine").mkdir()
    write_table(table, survey / "mine" / "m.fits")
    bands = config_for("m.fits").bands
    bands = (dataclasses.replace(bands[0], flux="g_flux"), *bands[1:])
    settings = write_settings(survey / "mine" / "mine.toml", path="m.fits", bands=bands)
    result = typed(survey / "run", "--config", settings, "--out", survey / "out")
    assert result.exit_code == 0, result.output
    assert np.array_equal(read_posterior(survey / "out")["row"], table["id"])
    assert typed(survey / "run", survey / "mine" / "m.fits", "--config", settings, "--out", survey / "b").exit_code == 0


def test_resuming_and_replacing(survey) -> None:
    assert typed(survey / "run", "--out", survey / "out", "--piece-rows", 4).exit_code == 0
    before = (survey / "out" / "part-00001.parquet").read_bytes()
    (survey / "out" / "part-00001.parquet").unlink()
    result = typed(survey / "run", "--out", survey / "out", "--piece-rows", 4, "--resume")
    assert result.exit_code == 0
    assert "Resuming: 5 of 6 parts are there" in result.stderr
    assert (survey / "out" / "part-00001.parquet").read_bytes() == before
    result = typed(survey / "run", "--out", survey / "out", "--samples", 3, "--resume")
    assert isinstance(result.exception, CheckpointError)
    result = typed(survey / "run", "--out", survey / "out", "--samples", 3)
    assert f"{survey / 'out'} holds earlier posteriors, which these replace." in result.stderr.replace("\n", "")
    assert read_posterior(survey / "out").meta["asked"]["estimator"]["samples"] == 3


def test_an_interrupted_command_has_its_own_status(survey, monkeypatch) -> None:
    class Interrupted(FakeEstimator):
        def __call__(self, seed, rows):
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().__call__(seed, rows)

    monkeypatch.setattr(cli_posterior, "build_estimator", lambda *args: (Interrupted(), {}))
    result = typed(survey / "run", "--out", survey / "out", "--piece-rows", 4)
    assert result.exit_code == 3
    assert "--resume goes on" in result.stderr.replace("\n", " ")
    assert "num_rows" not in json.loads((survey / "out" / "posterior.json").read_text())


def test_a_name_must_not_mean_two_filters(survey) -> None:
    bands = tuple(
        dataclasses.replace(band, filter="des_g") if band.name == "g" else band for band in config_for("c").bands
    )
    settings = write_settings(survey / "other.toml", bands=bands)
    result = typed(survey / "run", "--config", settings, "--out", survey / "out")
    assert "band 'g' is the filter des_g in the catalogue, but the population was learned with sdss_g0" in str(
        result.exception
    )


def test_a_folder_that_is_no_run(tmp_path) -> None:
    result = typed(tmp_path, "--out", tmp_path / "out")
    assert str(result.exception) == f"{tmp_path} has no config.toml: posteriors need the whole run directory"


def test_unknown_methods_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="method must be one of npe, hmc, got 'vae'"):
        build_estimator(tmp_path, "vae")
