"""The self-test of a prior: it passes what is a density, and names what is not."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_prior import save_tiny, tiny_population
from typer.testing import CliRunner

from popsed_jax import cli
from popsed_jax.diagnostics.twosample import feature_accuracy
from popsed_jax.population.model import Population
from popsed_jax.priors.check import check_prior
from popsed_jax.priors.coordinates import Coordinates
from popsed_jax.priors.prior import Prior

NUM = 20_000


@flax.struct.dataclass
class Scaled(Prior):
    """Two per cent too much everywhere."""

    def _log_prob(self, theta):
        return Prior._log_prob(self, theta) + jnp.log(1.02)


@flax.struct.dataclass
class Leaking(Prior):
    """Draws leave the bounds."""

    def sample(self, key, num):
        return Prior.sample(self, key, num) * 1.2


@flax.struct.dataclass
class WrongWeights(Population):
    """Draws in other proportions than the density's."""

    def sample_members(self, key, num):
        return Population.sample_members(Population(self.flows, self.weights[::-1], self.space), key, num)


def build(kind: type[Prior] = Prior) -> Prior:
    population = tiny_population()
    return kind(population, Coordinates.of(population.space))


def failed(prior: Prior) -> set[str]:
    return {check.name for check in check_prior(prior, num=NUM) if not check.ok}


def test_the_command_passes_a_prior(tmp_path):
    result = CliRunner().invoke(cli.app, ["check-prior", str(save_tiny(tmp_path)), "--num", str(NUM)])
    assert result.exit_code == 0, result.output
    assert result.output.count("ok") == 9
    assert "integral" in result.output


def test_the_command_fails_with_a_broken_prior(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "load_prior", lambda folder: build(Scaled))
    result = CliRunner().invoke(cli.app, ["check-prior", str(tmp_path), "--num", str(NUM)])
    assert result.exit_code == 1
    assert "FAILED" in result.output


@pytest.mark.slow
def test_other_units_pass_too():
    renamed = build().rename({"log_mass": "mass"}, {"mass": "Msun", "t_burst": "Myr"})
    assert not failed(renamed)


@pytest.mark.slow
def test_what_is_broken_is_named():
    assert "integral" in failed(build(Scaled))
    assert "bounds" in failed(build(Leaking))
    good = build()
    population = good.population
    wrong = WrongWeights(population.flows, population.weights, population.space, population.meta)
    assert "samples agree with log_prob" in failed(dataclasses.replace(good, population=wrong))


@pytest.mark.slow
def test_a_wrong_jacobian_is_found(monkeypatch):
    monkeypatch.setattr(Coordinates, "log_slope", lambda self, theta: jnp.zeros(theta.shape[:-1]))
    jax.clear_caches()
    try:
        assert "integral" in failed(build().rename({}, {"t_burst": "Myr"}))
    finally:
        jax.clear_caches()


def test_feature_accuracy_tells_clouds_apart():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5000, 4))
    assert feature_accuracy(x, y) == pytest.approx(0.5, abs=0.015)
    assert feature_accuracy(x, y + 0.3) > 0.6
    tied = y.copy()
    tied[:, 1] = 0.8 * y[:, 0] + 0.6 * y[:, 1]  # the same in each dimension
    assert feature_accuracy(x, tied) > 0.6
    with pytest.raises(ValueError, match="cannot be compared"):
        feature_accuracy(x, y[:, :2])
    with pytest.raises(ValueError, match="too few"):
        feature_accuracy(x[:20], y)
