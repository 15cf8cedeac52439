"""Where a training step's time goes, and how far each part is from what this machine could do.

python benchmarks/step.py
python benchmarks/step.py --batch 8192

One member, the embedded galaxies, default settings. Operations are counted in the traced program (a fused multiply-add is two,
a transcendental function one, sorting N numbers N log2 N), bytes are what must come in and go out of a part: its arguments and
results. The floor is the larger of two times: all operations, each kind at the rate that this machine reaches in a loop that
does nothing else, and all bytes at the rate of a copy. What a part takes beyond its floor is the gap.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import finish, with_fit
from jax.extend import core

import popsed_jax as pj
from popsed_jax.flows.spline import init_flow
from popsed_jax.population.fit import empty_members, train_settings
from popsed_jax.population.galaxies import TrainingGalaxies
from popsed_jax.population.objective import member_loss, relative_entropy, validation_ratio
from popsed_jax.population.schedules import build_schedule
from popsed_jax.population.survey import observe
from popsed_jax.population.train import init_state, run_epoch
from popsed_jax.surveys import prepare_problem
from popsed_jax.transport import sinkhorn_energy, sliced_energy


def words(text: str) -> frozenset[str]:
    """A set of words."""
    return frozenset(text.split())


TRANSCENDENTAL = words("exp exp2 expm1 log log1p tanh logistic erf erf_inv erfc sin cos tan pow sqrt rsqrt cbrt atan2")
FREE = words(
    "broadcast_in_dim reshape squeeze transpose convert_element_type slice concatenate iota copy stop_gradient pad rev "
    "random_wrap random_unwrap dynamic_slice dynamic_update_slice split bitcast_convert_type name optimization_barrier"
)
RANDOM = {"random_bits", "threefry2x32"}
GATHER = {"gather", "scatter", "scatter-add", "scatter_add", "take"}
KINDS = ("matmul", "elementwise", "transcendental", "sort", "gather", "random")


def count(jaxpr: core.Jaxpr) -> Counter[str]:
    """Operations of a traced program by kind."""
    found: Counter[str] = Counter()
    for eqn in jaxpr.eqns:
        name, size = eqn.primitive.name, sum(math.prod(v.aval.shape) for v in eqn.outvars if hasattr(v.aval, "shape"))
        inner = [p for p in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr) if _is_jaxpr(p)]
        if inner:
            times = eqn.params.get("length", 1) if name == "scan" else 1
            counts = [count(getattr(p, "jaxpr", p)) for p in inner]
            if name == "cond":
                counts = [max(counts, key=lambda c: sum(c.values()))]
            elif name.startswith("custom_"):
                counts = counts[:1]
            for each in counts:
                found.update({kind: times * number for kind, number in each.items()})
        elif name == "dot_general":
            ((contract, _), _) = eqn.params["dimension_numbers"]
            found["matmul"] += 2 * size * math.prod(eqn.invars[0].aval.shape[i] for i in contract)
        elif name in RANDOM:
            found["random"] += size
        elif name == "sort":
            length = eqn.invars[0].aval.shape[eqn.params["dimension"]]
            found["sort"] += int(math.prod(eqn.invars[0].aval.shape) * math.log2(max(length, 2)))
        elif name in GATHER:
            found["gather"] += size
        elif name in TRANSCENDENTAL:
            found["transcendental"] += size
        elif name.startswith("reduce_") or name.startswith("cum") or name in ("argmax", "argmin"):
            found["elementwise"] += math.prod(eqn.invars[0].aval.shape)
        elif name not in FREE:
            found["elementwise"] += size
    return found


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def shortest(function: Callable[[], Any], repeats: int = 7) -> float:
    """Shortest of several wall times [s], after one run that compiles."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - started)
    return min(times)


def machine_rates() -> dict[str, float]:
    """What this machine does of each kind in a second, in a loop that does nothing else."""
    square = jnp.ones((1024, 1024))
    values = jnp.linspace(0.1, 0.9, 1 << 18)
    rows = np.random.default_rng(0).integers(0, 2**31 - 1, (400, 512), dtype=np.int32)
    index = jax.random.randint(jax.random.key(0), (1 << 14,), 0, 1 << 14)

    def chain(step: Callable[[Any], Any], length: int) -> Callable[[Any], Any]:
        def run(x: Any) -> Any:
            for _ in range(length):
                x = step(x)
            return x

        return jax.jit(run)

    fma, exp = chain(lambda x: x * 0.999 + 1e-4, 64), chain(lambda x: jnp.exp(-x), 16)
    product, take = jax.jit(jnp.matmul), jax.jit(lambda v, i: v[i])
    bits = jax.jit(lambda key: jax.random.bits(key, (1 << 20,)))
    big = jnp.ones(1 << 26)
    copy = jax.jit(lambda x: x + 1.0)
    return {
        "matmul": 2 * 1024**3 / shortest(lambda: product(square, square)),
        "elementwise": 128 * values.size / shortest(lambda: fma(values)),
        "transcendental": 16 * values.size / shortest(lambda: exp(values)),
        "sort": rows.size * 9 / shortest(lambda: np.sort(rows, axis=1)),  # NumPy's vectorised sort: one core
        "gather": values.size
        / shortest(lambda: take(values.reshape(-1, 16), index)),  # in rows of 16, as tables are read
        "random": (1 << 20) / shortest(lambda: bits(jax.random.key(0))),
        "bytes": 8 * big.size / shortest(lambda: copy(big)),
    }


def build_parts(num: int) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Name -> function and arguments, of everything that one step does for one member."""
    config = with_fit(pj.default_config(), batch_size=num, num_members=1, flat_control=False)
    prepared = prepare_problem(jax.random.key(0), (pj.read_catalog(config.catalog),), config)
    problem, galaxies = prepared.problem, TrainingGalaxies(jax.random.key(1), prepared.galaxies, 1)
    survey, space, key = problem.surveys[0], problem.parameters, jax.random.key(0)
    settings = train_settings(config.fit, config.transport)
    row = build_schedule(config.anneal, config.fit.num_epochs, config.fit.learning_rate).row(config.fit.num_epochs - 1)
    members, _ = empty_members(problem, config.flow, config.fit)
    flows = jax.vmap(lambda k: init_flow(k, len(space), config.flow))(jax.random.split(key, 1))
    members = members._replace(reference=flows)
    state = init_state(members, problem, settings)
    member, trained = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (members, state.trained))
    flow, calibration = member.reference, trained.calibration
    u = flow.sample(key, num)
    theta = space.to_theta(u)
    flux = survey.forward.flux(theta)
    mags = observe(key, survey, flux, theta[:, 0], calibration[0]).mags
    steps = config.fit.steps_per_epoch
    batches = galaxies.batches(key, np.arange(1), steps, num)
    batch = jax.tree.map(lambda leaf: leaf[0, 0], batches)
    x, y = survey.space.features(mags), survey.space.features(batch.mags[0])
    blur = jnp.asarray(row.blur)

    def replaced(layers: Any) -> Any:
        return flow.replace(layers=layers)

    def total(tree: Any) -> Any:
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree))

    epoch_args = (key, key, state, members, problem, batches, row)
    return {
        "flow: draws": (jax.grad(lambda p, k: total(replaced(p).sample(k, num))), (flow.layers, key)),
        "bounds": (jax.grad(lambda u: total(space.to_theta(u))), (u,)),
        "photometry": (jax.grad(lambda t, p: total(p.flux(t)) * 1e8), (theta, survey.forward)),
        "noise": (
            jax.grad(lambda f, c, k, s: total(observe(k, s, f, theta[:, 0], c).mags), argnums=(0, 1)),
            (flux, calibration[0], key, survey),
        ),
        "features": (jax.grad(lambda m, s: total(s.space.features(m))), (mags, survey)),
        "sliced": (jax.value_and_grad(lambda x, y, k: sliced_energy(k, x, y)), (x, y, key)),
        "Sinkhorn": (jax.value_and_grad(lambda x, y, b: sinkhorn_energy(x, y, b)), (x, y, blur)),
        "KL to the reference": (
            jax.grad(lambda u, f: relative_entropy(u, f, jnp.zeros(len(space)), f)),
            (u[: settings.num_kl], flow),
        ),
        "one step, all parts": (
            lambda *a: jax.value_and_grad(member_loss, has_aux=True)(*a, settings),
            (trained, key, member, problem, batch, row, jnp.zeros(())),
        ),
        f"validation, once in {steps} steps": (
            lambda k, t, m, p: validation_ratio(k, t, m, p, settings),
            (key, trained, member, problem),
        ),
        f"epoch of {steps} steps": (lambda *a: run_epoch.__wrapped__(*a, settings), epoch_args),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step.json"))
    parser.add_argument("--batch", type=int, default=pj.default_config().fit.batch_size)
    args = parser.parse_args()
    rates = machine_rates()
    rows = []
    for name, (function, arguments) in build_parts(args.batch).items():
        traced, results = jax.make_jaxpr(function, return_shape=True)(*arguments)
        counts = count(traced.jaxpr)
        used = {v for eqn in traced.jaxpr.eqns for v in eqn.invars if not isinstance(v, core.Literal)}
        shapes = [v.aval.shape for v in traced.jaxpr.invars if v in used] + [a.shape for a in jax.tree.leaves(results)]
        moved = 4 * sum(math.prod(shape) for shape in shapes)
        by_kind = {kind: counts[kind] / rates[kind] for kind in KINDS}
        floor = max(sum(by_kind.values()), moved / rates["bytes"])
        compiled = jax.jit(function)
        wall = shortest(lambda compiled=compiled, arguments=arguments: compiled(*arguments))
        limit = (
            max(by_kind, key=lambda kind: by_kind[kind]) if sum(by_kind.values()) >= moved / rates["bytes"] else "bytes"
        )
        operations = sum(counts.values()) / 1e6
        rows.append([name, operations, moved / 1e6, 1e3 * floor, limit, 1e3 * wall, wall / floor])
        print(rows[-1], {kind: f"{counts[kind]:.3g}" for kind in KINDS})
    columns = ["part", "operations [1e6]", "bytes [1e6]", "floor [ms]", "limited by", "time [ms]", "time / floor"]
    finish(f"One training step of one member, {args.batch} draws", columns, rows, args.out, {"rates": rates})


if __name__ == "__main__":
    main()
