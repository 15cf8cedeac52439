"""Training in stages: what is frozen stays, what moves learns, and a stage goes on where it stopped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.posteriors.stages import Stage, finish_stage, run_stage, start_stage, train_chunk

PARTS = {
    "encoder": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)},
    "decoder": {"kernel": jnp.array([[1.0, -1.0, 0.0], [0.0, 1.0, 1.0]]), "bias": jnp.zeros(3)},
}
SLOPE = jnp.array([1.0, -2.0, 0.5])


def reconstruction(parts, key, slope):
    x = jax.random.normal(key, (64, 1)) * slope
    code = x @ parts["encoder"]["kernel"] + parts["encoder"]["bias"]
    error = jnp.mean((code @ parts["decoder"]["kernel"] + parts["decoder"]["bias"] - x) ** 2)
    return error, {"error": error, "size": jnp.mean(code**2)}


def not_a_number(parts, key, data):
    return jnp.sum(parts["encoder"]["bias"]) * jnp.nan, {}


STAGES = [
    Stage("both", ("encoder", "decoder"), num_steps=60, learning_rate=0.05, steps_per_chunk=20),
    Stage("encoder", ("encoder",), num_steps=60, learning_rate=0.05, steps_per_chunk=20),
    Stage("decoder", ("decoder",), num_steps=60, learning_rate=0.05, steps_per_chunk=20),
]


def same(first, second):
    return all(np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (first, second)), strict=True))


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_what_is_frozen_stays_and_what_moves_learns(stage):
    key, terms = jax.random.key(0), []
    parts = run_stage(key, stage, reconstruction, SLOPE, PARTS, callback=lambda _, means: terms.append(means))
    for name in PARTS:
        assert same(parts[name], PARTS[name]) == (name not in stage.trained)
    assert len(terms) == 3
    assert set(terms[0]) == {"loss", "error", "size"}
    # One half alone cannot describe the data, whatever the other is.
    assert terms[-1]["error"] < (0.2 if len(stage.trained) == 2 else 0.8) * terms[0]["error"]


def test_frozen_parts_have_no_moments():
    both, one = (sum(x.size for x in jax.tree.leaves(start_stage(s, PARTS).opt_state)) for s in STAGES[:2])
    assert one < 0.7 * both


def test_a_stage_goes_on_where_it_stopped():
    stage, key, states = STAGES[0], jax.random.key(1), []
    whole = run_stage(key, stage, reconstruction, SLOPE, PARTS, callback=lambda state, _: states.append(state))
    rest = run_stage(key, stage, reconstruction, SLOPE, PARTS, state=states[0])
    assert same(whole, rest)
    assert same(finish_stage(stage, states[-1]), whole)


def test_one_compilation_for_all_chunks_and_models_of_a_shape():
    stage, before = STAGES[0], train_chunk._cache_size()
    run_stage(jax.random.key(2), stage, reconstruction, SLOPE, PARTS)
    first = train_chunk._cache_size()
    other = jax.tree.map(lambda leaf: leaf + 1.0, PARTS)
    run_stage(jax.random.key(3), dataclasses.replace(stage), reconstruction, 2.0 * SLOPE, other)
    assert train_chunk._cache_size() == first <= before + 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trained": ()}, "trains no part"),
        ({"num_steps": 0}, "num_steps = 0"),
        ({"steps_per_chunk": 0}, "steps_per_chunk = 0"),
        ({"learning_rate": 0.0}, "must be positive"),
    ],
)
def test_impossible_stages(change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(STAGES[0], **change)


def test_a_part_that_is_not_there():
    with pytest.raises(ValueError, match="no part 'head'; it has encoder, decoder"):
        start_stage(dataclasses.replace(STAGES[0], trained=("head",)), PARTS)


def test_a_loss_that_breaks_down():
    with pytest.raises(ValueError, match="lower learning_rate"):
        run_stage(jax.random.key(4), STAGES[0], not_a_number, None, PARTS)
