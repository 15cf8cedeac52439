"""`popsed-jax train-vae` and `popsed-jax encode`: files, resuming, stages, reports."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import same, tiny_config
from tiny_vae import MODEL, STAGES
from typer.testing import CliRunner

import popsed_jax as pj
from popsed_jax import cli, cli_vae
from popsed_jax import train_vae as module
from popsed_jax.population.checkpoint import CheckpointError
from popsed_jax.population.storage import StorageError
from popsed_jax.posterior_run import read_posterior
from popsed_jax.posteriors.mocks import MocksConfig
from popsed_jax.progress import Progress
from popsed_jax.settings import dump_toml, to_mapping
from popsed_jax.train_vae import VAETraining, build_vae_estimator, num_trained, train_vae
from popsed_jax.vae_report import build_vae_report

TRAINING = VAETraining(mocks=MocksConfig(num_galaxies=128, num_hyper=1, num_pixels=64), model=MODEL, stages=STAGES)


@pytest.fixture(scope="module")
def settings() -> pj.RunConfig:
    config = tiny_config()
    return dataclasses.replace(config, catalog=dataclasses.replace(config.catalog, max_galaxies=400))


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory) -> tuple[Path, module.TrainedVAE]:
    """A model that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "vae"
    return folder, train_vae(settings, folder, TRAINING, show_progress=False)


def with_mocks_of(whole: tuple[Path, module.TrainedVAE], folder: Path) -> Path:
    """A new folder that need not simulate them again."""
    (folder / "checkpoint").mkdir(parents=True)
    name = Path("checkpoint") / "mocks.safetensors"
    (folder / name).write_bytes((whole[0] / name).read_bytes())
    return folder


def test_what_a_training_leaves(whole):
    folder, result = whole
    assert result.finished
    assert list(result.history) == ["spectrum", "photometry", "parameters"]
    assert all(len(chunks) == 2 for chunks in result.history.values())
    vae, bands, meta = pj.load_vae(folder)
    assert bands == ("g", "r", "i")
    assert meta["finished"]
    assert meta["history"] == result.history
    assert same(vae.parts, result.vae.parts)
    assert len(result.held_out) == len(result.mocks) - num_trained(result.mocks) == 6
    assert pj.load_config(folder / "config.toml").parameters == {"redshift": (0.01, 0.3)}


def test_resumed_bit_for_bit(whole, settings, tmp_path, monkeypatch):
    folder, calls = with_mocks_of(whole, tmp_path / "vae"), []

    def interrupt(self, done, state, word="chunk"):
        calls.append(done)
        if done == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", interrupt)
        stopped = train_vae(settings, folder, TRAINING, show_progress=False)
    assert not stopped.finished
    assert calls == [1, 2, 3]
    with pytest.raises(ValueError, match="the training was stopped; finish it with popsed-jax train-vae"):
        build_vae_estimator(folder)
    result = train_vae(settings, folder, TRAINING, resume=True, show_progress=False)
    assert result.finished
    assert result.history == whole[1].history
    assert same(result.vae.parts, whole[1].vae.parts)
    assert "Simulating" not in (folder / "log.txt").read_text()


def test_a_finished_training_resumes_to_itself(whole, settings, tmp_path):
    folder = with_mocks_of(whole, tmp_path / "vae")
    for item in ("vae.json", "weights.safetensors", "checkpoint/state.safetensors"):
        (folder / item).write_bytes((whole[0] / item).read_bytes())
    again = train_vae(settings, folder, TRAINING, resume=True, show_progress=False)
    assert same(again.vae.parts, whole[1].vae.parts)


def test_other_settings_are_not_resumed(whole, settings, tmp_path):
    other = dataclasses.replace(TRAINING, model=dataclasses.replace(MODEL, beta=0.5))
    with pytest.raises(CheckpointError, match=r"beta is 1.0 there and 0.5 here"):
        train_vae(settings, whole[0], other, resume=True, show_progress=False)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train_vae(settings, tmp_path, TRAINING, resume=True, show_progress=False)


def test_one_stage_alone(whole, settings, tmp_path):
    with pytest.raises(StorageError, match="train a model first"):
        train_vae(settings, with_mocks_of(whole, tmp_path / "a"), TRAINING, stage="parameters", show_progress=False)
    folder = with_mocks_of(whole, tmp_path / "b")
    for item in ("vae.json", "weights.safetensors"):
        (folder / item).write_bytes((whole[0] / item).read_bytes())
    again = train_vae(settings, folder, TRAINING, stage="parameters", show_progress=False)
    assert {name: len(chunks) for name, chunks in again.history.items()} == dict.fromkeys(whole[1].history, 2)
    assert again.history["spectrum"] == whole[1].history["spectrum"]
    parts = again.vae.parts
    before = whole[1].vae.parts
    assert [name for name in parts if not same(parts[name], before[name])] == ["head"]
    wider = dataclasses.replace(TRAINING, model=dataclasses.replace(MODEL, latent=5))
    with pytest.raises(ValueError, match="holds a model with a latent of 4, not 5"):
        train_vae(settings, folder, wider, stage="photometry", show_progress=False)
    with pytest.raises(ValueError, match="no stage 'last'"):
        train_vae(settings, folder, TRAINING, stage="last", show_progress=False)


def test_the_report(whole):
    page = build_vae_report(whole[0]).read_text()
    assert "Autoencoder of spectra and photometry: sdss_galaxies" in page
    assert page.count("data:image/png;base64,") == 2
    assert {item.name for item in (whole[0] / "figures").iterdir()} == {"losses.png", "redshifts.png"}
    assert "sigma_nmad" in page


def typed(*words: object):
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def test_encode(whole, tmp_path):
    out = tmp_path / "out"
    words = ("encode", whole[0], "--out", out, "--draws", 6, "--samples", 2, "--piece-rows", 6000)
    result = typed(*words)
    assert result.exit_code == 0, result.output
    table = read_posterior(out)
    assert len(table) == 10_000  # all rows of the file
    assert table["latent"].shape == (10_000, 4)
    assert table["redshift_samples"].shape == (10_000, 2)
    usable = np.isfinite(table["redshift"])
    assert usable.mean() > 0.95
    assert np.all((table["redshift"][usable] > 0.01) & (table["redshift"][usable] < 0.3))
    asked = json.loads((out / "posterior.json").read_text())["asked"]["estimator"]
    assert (asked["method"], asked["draws"], asked["samples"]) == ("vae", 6, 2)
    before = (out / "part-00001.parquet").read_bytes()
    (out / "part-00001.parquet").unlink()
    again = typed(*words, "--resume")
    assert again.exit_code == 0, again.output
    assert (out / "part-00001.parquet").read_bytes() == before


def test_encoding_without_a_model(tmp_path):
    result = typed("encode", tmp_path, "--out", tmp_path / "out")
    assert "has no config.toml" in str(result.exception)


def test_options_reach_the_training(settings, tmp_path, monkeypatch):
    asked = {}

    def fake(config, out, training, stage=None, resume=False):
        asked.update(config=config, out=out, training=training, stage=stage, resume=resume)
        return SimpleNamespace(finished=False)

    monkeypatch.setattr(cli_vae, "train_vae", fake)
    monkeypatch.setattr(cli_vae, "build_vae_report", lambda folder: folder / "report.html")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(dump_toml(to_mapping(settings)))
    words = [
        "--latent",
        8,
        "--head",
        "mixture",
        "--condition",
        "latents",
        "--galaxies",
        500,
        "--steps",
        7,
        "--seed",
        3,
        "--stage",
        "joint",
    ]
    result = typed("train-vae", tmp_path / "run", "--out", tmp_path / "vae", *words, "--resume")
    assert result.exit_code == 3  # not finished
    training = asked["training"]
    assert (training.model.latent, training.model.head.kind, training.seed) == (8, "mixture", 3)
    assert training.model.condition == "latents"
    assert (training.mocks.num_galaxies, training.stages.photometry) == (500, 7)
    assert (asked["stage"], asked["resume"], asked["out"]) == ("joint", True, tmp_path / "vae")
    assert asked["config"].parameters == settings.parameters
    assert typed("train-vae", "--quick").exit_code == 3
    assert asked["training"].stages.spectrum == 60
    wrong = typed("train-vae", "--head", "forest")
    assert "head: kind = 'forest' must be one of flow, mixture, binned" in str(wrong.exception)
