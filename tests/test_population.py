"""The learned population as a density, and its files."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.flows.spline import FlowConfig, init_flow
from popsed_jax.parameters import Parameter, ParameterSpace
from popsed_jax.population.model import Population, load_population
from popsed_jax.population.storage import StorageError

SPACE = ParameterSpace((Parameter("redshift", 0.0, 0.8), Parameter("log_mass", 7.0, 13.0, power=2.0)))


@pytest.fixture(scope="module")
def population() -> Population:
    config = FlowConfig(num_layers=2, hidden=8, num_blocks=1, num_bins=4)
    flows = jax.vmap(lambda key: init_flow(key, 2, config))(jax.random.split(jax.random.key(0), 3))
    bend = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), flows.layers)
    return Population(
        flows.replace(layers=bend), jnp.array([0.5, 0.3, 0.2]), SPACE, {"selection": "as-detected", "bands": ["g"]}
    )


def test_the_density_integrates_to_one(population) -> None:
    # The density may rise without limit at a bound, so the cells are those of an even grid in u.
    edges = jnp.linspace(-7.0, 7.0, 301)
    theta, bounds = (SPACE.to_theta(jnp.stack([u, u], axis=-1)) for u in (0.5 * (edges[1:] + edges[:-1]), edges))
    cells = jnp.diff(bounds, axis=0)
    grid = jnp.stack(jnp.meshgrid(theta[:, 0], theta[:, 1], indexing="ij"), axis=-1)
    integral = jnp.einsum("ij,i,j->", jnp.exp(population.log_prob(grid)), cells[:, 0], cells[:, 1])
    assert float(integral) == pytest.approx(1.0, abs=2e-3)


def test_samples_follow_the_density(population) -> None:
    galaxies = population.sample(jax.random.key(2), 40_000)
    inside = (galaxies["redshift"] < 0.4) & (galaxies["log_mass"] < 11.0)
    z = 0.4 * (jnp.arange(200) + 0.5) / 200
    mass = 7.0 + 4.0 * (jnp.arange(200) + 0.5) / 200
    grid = jnp.stack(jnp.meshgrid(z, mass, indexing="ij"), axis=-1).reshape(-1, 2)
    expected = float(jnp.sum(jnp.exp(population.log_prob(grid))) * (0.4 / 200) * (4.0 / 200))
    assert float(inside.mean()) == pytest.approx(expected, abs=0.012)  # four standard errors of 40,000 draws


def test_samples_are_named_and_inside_the_bounds(population) -> None:
    galaxies = population.sample(jax.random.key(3), 500)
    assert tuple(galaxies) == ("redshift", "log_mass")
    assert bool(jnp.all(jnp.isfinite(population.log_prob(galaxies))))


def test_outside_the_bounds_the_density_is_zero_and_gradients_stay_finite(population) -> None:
    outside = jnp.array([[0.9, 10.0], [0.3, 6.0]])
    assert population.log_prob(outside).tolist() == [-jnp.inf, -jnp.inf]
    one = jnp.array([0.3, 10.0])
    assert population.log_prob(one).shape == ()
    assert population.log_prob(jnp.tile(one, (4, 3, 1))).shape == (4, 3)
    with pytest.raises(ValueError, match=r"last axis of \(2, 3\) must be the 2 parameters"):
        population.log_prob(jnp.zeros((2, 3)))
    slope = jax.grad(lambda t: population.log_prob(t).sum())(jnp.concatenate([one[None], outside[:1]]))
    assert bool(jnp.all(jnp.isfinite(slope)))


def test_it_may_be_an_argument_of_compiled_functions(population) -> None:
    point = jnp.array([0.3, 10.0])
    inner = jax.jit(lambda density, theta: density.log_prob(theta))(population, point)
    assert float(inner) == pytest.approx(float(population.log_prob(point)), rel=1e-6)


def test_weights_choose_the_members(population) -> None:
    _, member = population.sample_members(jax.random.key(4), 20_000)
    shares = np.bincount(np.asarray(member), minlength=3) / 20_000
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.015)  # four standard errors


def test_files_round_trip_bit_for_bit(population, tmp_path) -> None:
    population.save(tmp_path)
    back = load_population(tmp_path)
    theta = population.space.pack(population.sample(jax.random.key(5), 100))
    assert bool(jnp.all(back.log_prob(theta) == population.log_prob(theta)))
    assert back.space == population.space
    assert back.meta["selection"] == "as-detected"


def test_damaged_files_are_refused_by_name(population, tmp_path) -> None:
    with pytest.raises(StorageError, match=r"population\.json does not exist"):
        load_population(tmp_path)
    population.save(tmp_path)
    weights, description = tmp_path / "weights.safetensors", tmp_path / "population.json"
    good = weights.read_bytes()
    weights.write_bytes(good[:-8] + b"tampered")
    with pytest.raises(StorageError, match="checksum"):
        load_population(tmp_path)
    weights.unlink()
    with pytest.raises(StorageError, match=r"weights\.safetensors does not exist"):
        load_population(tmp_path)
    weights.write_bytes(good)
    content = json.loads(description.read_text())
    description.write_text(json.dumps(content | {"format_version": 99}))
    with pytest.raises(StorageError, match="newer than this package reads"):
        load_population(tmp_path)
    description.write_text("{")
    with pytest.raises(StorageError, match="is damaged"):
        load_population(tmp_path)
    description.write_text("{}")
    with pytest.raises(StorageError, match="does not describe"):
        load_population(tmp_path)
