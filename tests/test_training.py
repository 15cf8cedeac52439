"""Training: one compilation, resuming, interrupting, and what the objective does."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from tiny import same, tiny_catalog, tiny_config

import popsed_jax as pj
from popsed_jax.flows.spline import FlowConfig, init_flow
from popsed_jax.learned import load_network, load_survey
from popsed_jax.population import blocks, objective
from popsed_jax.population import fit as fit_module
from popsed_jax.population.checkpoint import CheckpointError
from popsed_jax.population.fit import build_members, compile_epoch, empty_members, train, train_settings
from popsed_jax.population.fit_config import FitConfig
from popsed_jax.population.galaxies import TrainingGalaxies
from popsed_jax.population.objective import member_loss, relative_entropy
from popsed_jax.population.schedules import build_schedule
from popsed_jax.population.storage import StorageError
from popsed_jax.population.survey import noise_floor, validation_distance
from popsed_jax.population.train import init_state, run_epoch
from popsed_jax.settings import dump_toml, to_mapping
from popsed_jax.surveys import prepare_problem

value_and_grad = jax.jit(jax.value_and_grad(member_loss, has_aux=True), static_argnames="settings")


@pytest.fixture(scope="module")
def ready():
    config = tiny_config()
    catalog = tiny_catalog(config)
    prepared = prepare_problem(jax.random.key(0), [catalog], config)
    problem = prepared.problem
    galaxies = TrainingGalaxies(jax.random.key(1), prepared.galaxies, config.fit.num_members + 1)
    members, reference = build_members(jax.random.key(1), problem, config.reference, config.flow, config.fit)
    settings = train_settings(config.fit, config.transport)
    schedule = build_schedule(config.anneal, config.fit.num_epochs, 1e-3)
    return config, problem, galaxies, members, reference, settings, schedule


def one_batch(galaxies, settings):
    """The first batch of the first member."""
    batches = galaxies.batches(jax.random.key(0), np.arange(1), 1, settings.batch_size)
    return jax.tree.map(lambda leaf: leaf[0, 0], batches)


def test_one_compilation_serves_all_epochs_schedules_and_seeds(ready) -> None:
    _, problem, galaxies, members, _, settings, schedule = ready
    before = run_epoch._cache_size()
    train(jax.random.key(2), problem, galaxies, members, schedule, settings)
    after_first = run_epoch._cache_size()
    other = schedule._replace(blur=2.0 * schedule.blur, sinkhorn=1.0 - schedule.sinkhorn)
    train(jax.random.key(3), problem, galaxies, members, other, settings)
    assert after_first - before <= 1  # none when another test has compiled it already
    assert run_epoch._cache_size() == after_first


def test_another_catalogue_size_or_number_of_members_needs_no_other_program() -> None:
    """From the size on at which validation and observing conditions are full (4,096 galaxies with the tiny validation)."""
    found = []
    for num_galaxies, num_members in ((4200, 1), (4700, 3)):
        config = tiny_config(flat_control=False)
        config = dataclasses.replace(config, fit=dataclasses.replace(config.fit, num_members=num_members))
        prepared = prepare_problem(jax.random.key(0), [tiny_catalog(config, num_galaxies)], config)
        galaxies = TrainingGalaxies(jax.random.key(1), prepared.galaxies, num_members)
        members, _ = empty_members(prepared.problem, config.flow, config.fit)
        settings = train_settings(config.fit, config.transport)
        block = blocks.cut(members, blocks.member_blocks(num_members)[-1])
        batches = galaxies.batches(jax.random.key(2), np.asarray(block.number), 2, config.fit.batch_size)
        arguments = (init_state(block, prepared.problem, settings), block, prepared.problem, batches)
        # By these, and by the settings, jit tells programs apart.
        shapes = [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(arguments)]
        found.append((jax.tree.structure(arguments), shapes, settings))
    assert found[0] == found[1]


def test_only_the_distances_of_the_schedule_are_compiled() -> None:
    config = tiny_config()
    for anneal, used in (({}, (True, True)), ({"sinkhorn_start": 1.0}, (True, False))):
        schedule = build_schedule(dataclasses.replace(config.anneal, **anneal), 3, 1e-3)
        settings = train_settings(config.fit, config.transport, None, schedule)
        assert (settings.sliced, settings.sinkhorn) == used
    alone = dataclasses.replace(config.anneal, sliced=0.0, sinkhorn_start=0.0)
    settings = train_settings(config.fit, config.transport, None, build_schedule(alone, 3, 1e-3))
    assert (settings.sliced, settings.sinkhorn) == (False, True)


@pytest.fixture
def no_checks_of_types(monkeypatch):
    """`lower` fills the arguments' dataclasses with descriptions of arrays, which are no arrays to jaxtyping."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def one_core(monkeypatch):
    """JAX logs for the thread that asked for it."""
    monkeypatch.setattr(blocks, "_num_cores", lambda: 1)


@pytest.mark.usefixtures("no_checks_of_types", "one_core")
def test_a_program_compiled_ahead_is_the_one_that_trains(ready, caplog) -> None:
    config, problem, galaxies, members, _, settings, schedule = ready
    run_epoch.clear_cache()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        compile_epoch(problem, galaxies, schedule, settings, config.flow, config.fit)
        assert caplog.text.count("Compiling jit(run_epoch)") == 1
        train(jax.random.key(2), problem, galaxies, members, schedule, settings)
    assert caplog.text.count("Compiling jit(run_epoch)") == 1


def test_the_same_key_gives_the_same_states_and_another_does_not(ready) -> None:
    _, problem, galaxies, members, _, settings, schedule = ready
    one, _ = train(jax.random.key(2), problem, galaxies, members, schedule, settings)
    again, _ = train(jax.random.key(2), problem, galaxies, members, schedule, settings)
    other, _ = train(jax.random.key(4), problem, galaxies, members, schedule, settings)
    assert same(one, again)
    assert not same(one.trained, other.trained)


def test_continuing_half_way_equals_the_uninterrupted_run(ready) -> None:
    _, problem, galaxies, members, _, settings, schedule = ready
    whole, history = train(jax.random.key(2), problem, galaxies, members, schedule, settings)
    kept = []
    first = schedule._replace(**{name: column[:2] for name, column in schedule._asdict().items()})
    half, _ = train(jax.random.key(2), problem, galaxies, members, first, settings, lambda e, s, i: kept.append(i))
    rest, later = train(jax.random.key(2), problem, galaxies, members, schedule, settings, state=half, start=2)
    assert same(whole, rest)
    assert same(history, [*kept, *later])


@pytest.mark.slow  # a program of its own, with gradients
def test_members_in_blocks_are_the_members_together(ready, monkeypatch) -> None:
    _, problem, galaxies, members, _, settings, schedule = ready
    first = schedule._replace(**{name: column[:1] for name, column in schedule._asdict().items()})
    apart, info = train(jax.random.key(2), problem, galaxies, members, first, settings)
    monkeypatch.setattr(fit_module, "member_blocks", lambda num, mesh=None: [slice(0, num)])
    together, info_together = train(jax.random.key(2), problem, galaxies, members, first, settings)
    for one, other in zip(jax.tree.leaves(info), jax.tree.leaves(info_together), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)
    assert jax.tree.structure(apart) == jax.tree.structure(together)


def test_the_flat_control_has_no_reference_and_no_weight(ready) -> None:
    _, problem, galaxies, members, reference, settings, schedule = ready
    assert np.asarray(members.controlled).tolist() == [1.0, 1.0, 0.0]
    assert reference.shape[0] == 2
    first = schedule._replace(**{name: column[:1] for name, column in schedule._asdict().items()})
    states = []
    for log_lambda in (-5.0, 5.0):
        start = init_state(members, problem, settings)
        start = start._replace(log_lambda=jnp.full_like(start.log_lambda, log_lambda))
        states.append(train(jax.random.key(2), problem, galaxies, members, first, settings, state=start)[0].trained)
    near, far = (jax.tree.map(lambda leaf: leaf[-1], state) for state in states)
    assert same(near, far)  # lambda does not reach it
    assert not same(*(jax.tree.map(lambda leaf: leaf[0], state) for state in states))


def test_the_running_mean_forgets_its_start_and_is_what_is_validated_and_kept(ready) -> None:
    config, problem, galaxies, members, _, settings, schedule = ready
    first = schedule._replace(**{name: column[:1] for name, column in schedule._asdict().items()})
    start = init_state(members, problem, settings)
    moved = start._replace(average=jax.tree.map(lambda leaf: leaf + 0.3, start.average))
    (one, info), (other, info_other) = (
        train(jax.random.key(2), problem, galaxies, members, first, settings, state=jax.tree.map(jnp.copy, state))
        for state in (start, moved)
    )
    assert same(one.trained, other.trained)
    left = 0.3 * (1.0 - 1.0 / config.fit.average_steps) ** config.fit.steps_per_epoch
    for leaf, leaf_other in zip(jax.tree.leaves(one.average), jax.tree.leaves(other.average), strict=True):
        np.testing.assert_allclose(leaf_other - leaf, left, rtol=1e-3)
    assert same(one.best, one.average)
    assert not np.array_equal(info[0].ratio, info_other[0].ratio)


@pytest.mark.slow  # the gradient of one member compiles for half a minute
def test_kl_is_zero_at_the_reference_and_positive_away_from_it(ready) -> None:
    _, problem, galaxies, members, _, settings, schedule = ready
    member = jax.tree.map(lambda leaf: leaf[0], members)
    trained = jax.tree.map(lambda leaf: leaf[0], init_state(members, problem, settings).trained)
    batch = one_batch(galaxies, settings)
    args = (jax.random.key(0), member, problem, batch, schedule.row(0), jnp.asarray(0.0), settings)
    at_reference = value_and_grad(trained, *args)[0][1].kl
    assert abs(float(at_reference)) < 1e-4  # float32 round trip through the flow
    moved = trained._replace(layers=jax.tree.map(lambda leaf: leaf + 0.2, trained.layers))
    assert float(value_and_grad(moved, *args)[0][1].kl) > 0.05


@pytest.mark.slow  # two programs with gradients
def test_many_galaxies_are_simulated_in_pieces_with_the_same_gradient(ready, monkeypatch) -> None:
    _, problem, _, members, _, settings, _ = ready
    member = jax.tree.map(lambda leaf: leaf[0], members)
    calibration = jax.tree.map(lambda leaf: leaf[0], init_state(members, problem, settings).trained.calibration)
    monkeypatch.setattr(objective, "PIECE", 16)

    def total(layers, key, counted):
        flow = dataclasses.replace(member.reference, layers=layers)
        made = objective.simulate(key, problem, flow, calibration, len(counted), 1.0)
        return jnp.sum(counted[:, None] * made.recorded[0].mags ** 2), made.u

    compute = jax.jit(jax.value_and_grad(total, has_aux=True))
    key, layers = jax.random.key(7), member.reference.layers
    (value, u), slope = compute(layers, key, jnp.ones(40))
    counts = (jnp.ones(16), jnp.ones(16), (jnp.arange(16) < 8).astype(jnp.float32))
    parts = [compute(layers, *pair) for pair in zip(jax.random.split(key, 3), counts, strict=True)]
    np.testing.assert_allclose(u, np.concatenate([part[0][1] for part in parts])[:40], rtol=1e-3, atol=1e-4)
    assert float(value) == pytest.approx(sum(float(part[0][0]) for part in parts), rel=1e-5)
    slope_parts = jax.tree.map(lambda *leaves: sum(leaves), *(part[1] for part in parts))
    for one, other in zip(jax.tree.leaves(slope), jax.tree.leaves(slope_parts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * float(np.abs(other).max()) + 1e-9)


def test_relative_entropy_of_normals_and_its_gradient() -> None:
    """KL(N(m, 1) || N(s, 1)) = |m - s|^2 / 2, so its slope in m is m - s; at zero distance without any noise."""
    reference = init_flow(jax.random.key(0), 3, FlowConfig(num_layers=2, hidden=4, num_blocks=1, num_bins=4))
    # Without its tiny initial weights the flow is the standard normal itself.
    reference = dataclasses.replace(reference, layers=jax.tree.map(jnp.zeros_like, reference.layers))
    shift = jnp.array([0.3, 0.0, -0.2])

    @jax.jit
    @jax.value_and_grad
    def kl(mean):
        flow = dataclasses.replace(reference, mean=mean)
        return relative_entropy(flow.sample(jax.random.key(1), 256), flow, shift, reference)

    value, slope = kl(shift)
    assert abs(float(value)) < 1e-5
    np.testing.assert_allclose(slope, 0.0, atol=1e-5)
    moved = jnp.array([0.0, 0.5, 0.0])
    value, slope = kl(moved)
    assert float(value) == pytest.approx(0.5 * float(jnp.sum((moved - shift) ** 2)), abs=0.12)  # 256 draws: 0.04
    np.testing.assert_allclose(slope, moved - shift, atol=1e-4)


@pytest.mark.slow
def test_gradients_reach_layers_offsets_and_shifts(ready) -> None:
    _, problem, galaxies, members, _, settings, schedule = ready
    member = jax.tree.map(lambda leaf: leaf[0], members)
    trained = jax.tree.map(lambda leaf: leaf[0] + 0.01, init_state(members, problem, settings).trained)
    args = (member, problem, one_batch(galaxies, settings), schedule.row(2), jnp.asarray(0.0), settings)
    _, grads = value_and_grad(trained, jax.random.key(0), *args)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(grads))
    pinned = problem.surveys[0].calibration.offset_sigma == 0
    assert bool(jnp.all((grads.calibration[0].offset != 0) != pinned))
    assert int(pinned.sum()) == 1
    assert float(jnp.abs(grads.shift).max()) > 0


def test_the_noise_floor_shrinks_with_size_and_sees_a_shift() -> None:
    cloud = jax.random.normal(jax.random.key(0), (600, 3))
    small, large = (noise_floor(jax.random.key(1), cloud, num, 0.5).mean for num in (100, 300))
    assert large < small
    moved = float(jax.jit(validation_distance)(cloud[:300], cloud[300:] + 0.5, 0.5))
    assert moved > 2.0 * large


def test_settings_are_checked() -> None:
    for bad, words in [
        ({"num_members": 0}, "num_members = 0"),
        ({"num_kl": 5000}, "num_kl"),
        ({"held_out": 0.0}, "held_out = 0.0"),
        ({"target_ratio": -1.0}, "target_ratio = -1.0"),
        ({"kl_tie_break": -0.1}, "must not be negative"),
        ({"tilt": 1.5}, "tilt = 1.5"),
    ]:
        with pytest.raises(ValueError, match=words):
            FitConfig(**bad)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = tiny_config()
    folder = tmp_path_factory.mktemp("run")
    result = pj.fit(tiny_catalog(config), config, out=folder, show_progress=False)
    return config, folder, result


def test_a_run_writes_all_its_files(finished) -> None:
    _, folder, result = finished
    for name in (
        "config.toml",
        "population/population.json",
        "population/weights.safetensors",
        "metrics.json",
        "log.txt",
    ):
        assert (folder / name).is_file()
    for name in ("samples", "reference", "photometry", "history"):
        assert len(pj.read_table(folder / f"{name}.parquet")) > 0
    assert "epoch 3: loss" in (folder / "log.txt").read_text()
    assert result.metrics["redshift"]["num_spectroscopic"] == 400
    assert isinstance(result.reason, str)
    assert not list(folder.rglob("*.pkl"))
    assert not list(folder.rglob("*.part"))


def test_posteriors_need_the_catalogue_that_was_fitted(finished, tmp_path) -> None:
    config, folder, _ = finished
    run = shutil.copytree(folder, tmp_path / "run")
    # The fit's galaxies came from memory: config.toml describes more of them.
    with pytest.raises(StorageError, match=r"is not the one that was fitted.*catalog\.write\(path\)"):
        load_survey(run)
    described = dataclasses.replace(config, catalog=tiny_catalog(config).write(run / "galaxies.parquet"))
    (run / "config.toml").write_text(dump_toml(to_mapping(described)))
    survey, bands = load_survey(run)
    assert bands == tuple(b.name for b in config.catalog.bands)
    assert survey.population.num_members == 2
    assert load_network(run, survey) is None
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["catalog"]["checksum"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(StorageError, match=r"metrics\.json does not say which catalogue was fitted"):
        load_survey(run)


def test_redshifts_never_reach_the_fit(finished) -> None:
    config, _, result = finished
    catalog = tiny_catalog(config)
    blind = dataclasses.replace(catalog, redshift=None)
    other = pj.fit(blind, config, show_progress=False)
    assert other.metrics["redshift"] is None
    assert same(other.population, result.population)


def test_ctrl_c_leaves_a_usable_run_and_resume_ends_where_the_whole_run_would(finished, tmp_path, monkeypatch) -> None:
    config, _, whole = finished
    catalog = tiny_catalog(config)
    save = pj.run.Checkpoint.save

    def stop_after_two(self, state, history) -> None:
        save(self, state, history)
        if len(history) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(pj.run.Checkpoint, "save", stop_after_two)
    stopped = pj.fit(catalog, config, out=tmp_path, show_progress=False)
    assert not stopped.converged
    assert "Stopped after epoch 2 of 3" in stopped.reason
    assert pj.load_population(tmp_path / "population").num_members == 2
    monkeypatch.undo()
    resumed = pj.fit(catalog, config, out=tmp_path, resume=True, show_progress=False)
    assert same(resumed.population, whole.population)
    assert same(resumed.history, whole.history)


def test_resuming_names_what_is_wrong(finished, tmp_path) -> None:
    config, folder, _ = finished
    catalog = tiny_catalog(config)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        pj.fit(catalog, config, out=tmp_path, resume=True, show_progress=False)
    other = dataclasses.replace(config, fit=dataclasses.replace(config.fit, learning_rate=2e-3))
    with pytest.raises(CheckpointError, match="belongs to other settings"):
        pj.fit(catalog, other, out=folder, resume=True, show_progress=False)
    with pytest.raises(CheckpointError, match=r"data\.sdss_galaxies is \w+ there and \w+ here"):
        pj.fit(tiny_catalog(config, 401), config, out=folder, resume=True, show_progress=False)
    state = folder / "checkpoint" / "state.safetensors"
    content = state.read_bytes()
    state.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"state\.safetensors is damaged or truncated"):
        pj.fit(catalog, config, out=folder, resume=True, show_progress=False)
    state.write_bytes(content)
