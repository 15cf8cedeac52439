"""The command, as a user types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_catalog, tiny_config
from typer.testing import CliRunner

import popsed_jax as pj
from popsed_jax import cli
from popsed_jax.settings import dump_toml, to_mapping

runner = CliRunner()


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Path:
    """A settings file beside the table that it describes."""
    folder = tmp_path_factory.mktemp("survey")
    config = tiny_config()
    described = tiny_catalog(config).write(folder / "galaxies.fits")
    content = to_mapping(config) | {"catalog": to_mapping(described) | {"path": "galaxies.fits"}}
    (folder / "run.toml").write_text(dump_toml(content))
    return folder / "run.toml"


@pytest.fixture(scope="module")
def run(settings) -> Path:
    """A finished tiny run."""
    folder = settings.parent / "run"
    result = runner.invoke(cli.app, ["fit", "--config", str(settings), "--out", str(folder), "--seed", "3"])
    assert result.exit_code in (0, 3), result.output  # 3: finished, but two steps an epoch match nothing
    assert "Report:" in result.stdout
    return folder


def test_fit_writes_a_report_and_a_config_that_repeats_the_run(run) -> None:
    assert (run / "report.html").is_file()
    repeated = pj.load_config(run / "config.toml")
    assert repeated.fit.seed == 3
    assert Path(repeated.catalog.path).is_file()


def test_report_is_rebuilt_from_the_files(run) -> None:
    (run / "report.html").unlink()
    assert runner.invoke(cli.app, ["report", str(run)]).exit_code == 0
    assert (run / "report.html").is_file()


@pytest.mark.parametrize("suffix", ["parquet", "fits", "h5", "csv"])
def test_sample_writes_named_columns_with_units(run, suffix, tmp_path) -> None:
    path = tmp_path / f"samples.{suffix}"
    assert runner.invoke(cli.app, ["sample", str(run), "--num", "50", "--out", str(path)]).exit_code == 0
    table = pj.read_table(path)
    assert len(table) == 50
    assert {"redshift", "log_mass", "logzsol"} <= set(table.colnames)
    assert str(table["t_burst"].unit) == "Gyr"


def test_mock_holds_truth_and_noisy_photometry(settings, tmp_path) -> None:
    path = tmp_path / "mock.parquet"
    command = ["mock", "--config", str(settings), "--num-galaxies", "60", "--seed", "1", "--out", str(path)]
    result = runner.invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    mock = pj.read_table(path)
    assert len(mock) == 60
    mag_r = -2.5 * np.log10(np.asarray(mock["flux_r"]))
    assert mag_r.max() < 18.1  # the selection of the settings: r < 17.7 with a width of 0.1
    assert np.all(np.asarray(mock["error_r"]) > 0)
    assert {"redshift", "log_sfr", "log_mass_surviving"} <= set(mock.colnames)


def test_info_checks_data_and_devices() -> None:
    result = runner.invoke(cli.app, ["info"])
    assert result.exit_code == 0
    for word in ("jax", "device works", "ssp_stellar", "sdss_galaxies"):
        assert word in result.stdout


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Types a command in an empty folder: exit status and what it says on standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["popsed-jax", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code, capsys.readouterr().err

    return run


def test_the_installed_command_ends_with_a_sentence(tmp_path) -> None:
    words = [sys.executable, "-m", "popsed_jax", "report", "nowhere"]
    result = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 2
    assert "nowhere" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[fit]\nepoch = 3\n", ["fit", "epoch"]),
        ("[fit]\nnum_epochs = 'ten'\n", ["num_epochs", "integer"]),
        ("[anneal]\nblur_end = -1.0\n", ["blur_end"]),
        ("[parameters]\nredshit = [0.0, 1.0]\n", ["redshit", "redshift"]),
        ("not toml", ["run.toml"]),
    ],
)
def test_wrong_settings_end_with_a_sentence(content, words, tmp_path, command) -> None:
    (tmp_path / "run.toml").write_text(content)
    status, message = command("fit", "--config", "run.toml")
    assert status == 2
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "--config", "nowhere.toml"],
        ["sample", "nowhere", "--num", "3", "--out", "x.csv"],
        ["report", "nowhere"],
    ],
)
def test_missing_files_end_with_a_sentence(words, command) -> None:
    status, message = command(*words)
    assert status == 2
    assert "nowhere" in message


def test_a_catalogue_without_settings_is_explained(tmp_path, command) -> None:
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    status, message = command("fit", "mine.csv")
    assert status == 2
    assert "needs a settings file" in message
