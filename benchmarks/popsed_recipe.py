"""Time to the same quality: PopSED's recipe in PyTorch against this package, on one mock, in one run.

pip install torch geomloss zuko      # beside the package
python benchmarks/popsed_recipe.py

The forward model is a toy without an emulator, the same lines for both: five parameters, five bands, noise that grows with
the magnitude. Both learn p(theta) from the same 10,000 mock galaxies, start from the flat prior, and are judged by the same
number: the Sinkhorn divergence of 2,000 fresh noisy draws to 2,000 galaxies that neither trains on, over that of two such
samples of the truth.

PopSED's recipe (Li+24, arXiv:2309.16958, and its code): a neural spline flow of 20 coupling transforms, 60 bins, conditioners of
2 x 100; geomloss's Sinkhorn divergence with p = 1 on magnitudes scaled by the data's mean and standard deviation; 30 steps an
epoch; blur 0.3, 0.3, 0.2, 0.2, 0.1 x 3, 0.05 x 3, then 0.002; noise divided by 1 + 25 exp(-10 i / E); Adam, one cycle to
3e-4. It takes 10,000 draws a step; here `--batch` draws.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import geomloss
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import zuko
from common import finish

from popsed_jax.flows.spline import FlowConfig, init_flow
from popsed_jax.transport import TransportMix, sinkhorn_divergence, transport_cost

DIM, NUM, HELD = 5, 10_000, 2_000
BOUNDS = np.array([[0.01, 0.5], [8.0, 12.0], [0.0, 1.0], [-1.0, 0.3], [0.0, 2.0]], np.float32)
# By band: what age, metallicity and dust do to a magnitude, and the slope with redshift.
AGE = np.array([1.8, 1.1, 0.7, 0.5, 0.4], np.float32)
METAL = np.array([0.5, 0.3, 0.15, 0.1, 0.05], np.float32)
DUST = np.array([1.6, 1.2, 0.9, 0.7, 0.5], np.float32)
SLOPE = np.array([3.0, 2.6, 1.2, 0.7, 0.5], np.float32)
BLURS = [0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05]
EPOCHS, STEPS = 30, 30


def magnitudes(xp: Any, u: Any, constant: Callable[[np.ndarray], Any]) -> Any:
    """Noise-free magnitudes of unconstrained parameters, in NumPy, JAX or PyTorch alike."""
    cdf = 1.0 / (1.0 + xp.exp(-1.702 * u))  # a normal's, to 0.01: smooth and the same in all three
    low, high = constant(BOUNDS[:, 0]), constant(BOUNDS[:, 1])
    theta = low + (high - low) * cdf
    z, mass, age, metal, dust = (theta[:, i : i + 1] for i in range(DIM))
    distance = 5.0 * xp.log(z * (1.0 + 0.7 * z)) / np.log(10.0)
    mag = 46.0 - 2.5 * mass + distance + constant(SLOPE) * z
    return mag + constant(AGE) * age * (1.0 + 0.3 * age) + constant(METAL) * metal + constant(DUST) * dust


def noise_width(xp: Any, mag: Any) -> Any:
    """Errors [mag]: 0.02 for bright galaxies, more for faint ones."""
    return 0.02 + 0.03 * xp.exp(0.5 * (mag - 20.0))


def draw_truth(rng: np.random.Generator, num: int) -> np.ndarray:
    """Unconstrained parameters of the mock: two kinds of galaxies, with correlations."""
    quiescent = rng.random(num) < 0.4
    x = rng.normal(size=(num, DIM))
    red = np.stack(
        [x[:, 0] * 0.5, 0.8 + 0.4 * x[:, 1], 1.0 + 0.3 * x[:, 2], 0.9 + 0.3 * x[:, 3], -1.5 + 0.4 * x[:, 4]], 1
    )
    blue = np.stack([x[:, 0] * 0.5 + 0.2, 0.5 * x[:, 1], -0.6 + 0.5 * x[:, 2], 0.5 * x[:, 1], -0.3 + 0.5 * x[:, 4]], 1)
    return np.where(quiescent[:, None], red, blue).astype(np.float32)


def observe(rng: np.random.Generator, u: np.ndarray) -> np.ndarray:
    mag = magnitudes(np, u, np.asarray)
    return (mag + noise_width(np, mag) * rng.normal(size=mag.shape)).astype(np.float32)


class Judge:
    """The common validation: distance of fresh noisy draws to held-out galaxies over the truth's own."""

    def __init__(self, data: np.ndarray, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        self.mean, self.std = data.mean(0), data.std(0)
        self.distance = jax.jit(partial(sinkhorn_divergence, blur=0.1, num_scales=12, num_final=8))
        self.held = self._scaled(observe(rng, draw_truth(rng, HELD)))
        self.noise = rng.normal(size=(HELD, DIM)).astype(np.float32)
        values = [float(self.distance(self._scaled(observe(rng, draw_truth(rng, HELD))), self.held)) for _ in range(8)]
        self.floor = float(np.mean(values))

    def _scaled(self, mag: np.ndarray) -> jax.Array:
        return jnp.asarray((mag - self.mean) / self.std)

    def __call__(self, u: np.ndarray) -> float:
        """Divergence over the truth's own, from 2,000 draws of u."""
        mag = magnitudes(np, u, np.asarray)
        return float(self.distance(self._scaled(mag + noise_width(np, mag) * self.noise), self.held)) / self.floor


Trace = list[tuple[float, float, np.ndarray]]


def train_popsed(data: np.ndarray, judge: Judge, batch: int, limit: float, target: float, seed: int) -> Trace:
    """(seconds, distance over floor, draws) after every fifth step, without the judge's time."""
    torch.manual_seed(seed)
    flow = zuko.flows.NSF(DIM, transforms=20, bins=60, hidden_features=[100, 100], passes=2)
    optimiser = torch.optim.Adam(flow.parameters(), lr=3e-4)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-4, total_steps=EPOCHS * STEPS)
    mean, std = torch.tensor(data.mean(0)), torch.tensor(data.std(0))
    galaxies = (torch.tensor(data) - mean) / std
    trace, spent = [], 0.0
    for step in range(EPOCHS * STEPS):
        started = time.perf_counter()
        epoch = step // STEPS
        blur = BLURS[epoch] if epoch < len(BLURS) else 0.002
        divisor = 1.0 + 25.0 * np.exp(-10.0 * epoch / EPOCHS)
        mag = magnitudes(torch, flow().rsample((batch,)), torch.tensor)
        noisy = mag + noise_width(torch, mag) * torch.randn_like(mag) / divisor
        loss = geomloss.SamplesLoss("sinkhorn", p=1, blur=blur, scaling=0.5)
        cost = loss((noisy - mean) / std, galaxies[torch.randint(len(galaxies), (batch,))])
        optimiser.zero_grad()
        cost.backward()
        optimiser.step()
        cycle.step()
        spent += time.perf_counter() - started
        if step % 5 == 4:
            with torch.no_grad():
                draws = flow().sample((HELD,)).numpy()
            trace.append((spent, judge(draws), draws))
            print(f"PopSED's recipe: step {step + 1}, {spent:.0f} s, {trace[-1][1]:.2f}", flush=True)
            if spent > limit or trace[-1][1] <= target:
                break
    return trace


def train_ours(data: np.ndarray, judge: Judge, target: float, seed: int) -> tuple[Trace, float]:
    """The same from this package's flow and transport, and the seconds of compilation."""
    batch, peak, steps, epochs = 1024, 2e-3, 16, 40
    flow = init_flow(jax.random.key(seed), DIM, FlowConfig())
    optimiser = optax.chain(optax.clip_by_global_norm(10.0), optax.scale_by_adam())
    mean, std = jnp.asarray(data.mean(0)), jnp.asarray(data.std(0))

    @jax.jit
    def run(key: Any, layers: Any, state: Any, galaxies: Any, rate: Any, blur: Any, divisor: Any, mix: Any) -> Any:
        def loss(layers: Any, key: Any) -> Any:
            keys = jax.random.split(key, 4)
            mag = magnitudes(jnp, flow.replace(layers=layers).sample(keys[0], batch), jnp.asarray)
            noisy = mag + noise_width(jnp, mag) * jax.random.normal(keys[1], mag.shape) / divisor
            chosen = galaxies[jax.random.randint(keys[2], (batch,), 0, len(galaxies))]
            return transport_cost(keys[3], (noisy - mean) / std, (chosen - mean) / std, blur=blur, mix=mix)[0]

        def step(carry: Any, key: Any) -> Any:
            layers, state = carry
            grads = jax.grad(loss)(layers, key)
            updates, state = optimiser.update(grads, state, layers)
            return (jax.tree.map(lambda p, u: p - rate * u, layers, updates), state), None

        return jax.lax.scan(step, (layers, state), jax.random.split(key, steps))[0]

    sample = jax.jit(lambda layers, key: flow.replace(layers=layers).sample(key, HELD))
    layers, state, key = flow.layers, optimiser.init(flow.layers), jax.random.key(seed + 1)
    galaxies = jnp.asarray(data)

    def arguments(epoch: int) -> tuple[Any, ...]:
        share = (epoch + 0.5) / epochs
        rate = peak * (share / 0.2 if share < 0.2 else 0.5 * (1.0 + np.cos(np.pi * (share - 0.2) / 0.8)))
        late = float(epoch >= epochs // 2)
        mix = TransportMix(jnp.float32(1.0), jnp.float32(late))
        numbers = rate, 0.3 if epoch < 3 * epochs // 4 else 0.15, 1.0 + 25.0 * np.exp(-10.0 * share)
        return galaxies, *(jnp.float32(number) for number in numbers), mix

    started = time.perf_counter()
    program = run.lower(key, layers, state, *arguments(0)).compile()
    compiling = time.perf_counter() - started
    trace, spent = [], 0.0
    for epoch in range(epochs):
        started = time.perf_counter()
        layers, state = program(jax.random.fold_in(key, epoch), layers, state, *arguments(epoch))
        jax.block_until_ready(layers)
        spent += time.perf_counter() - started
        draws = np.asarray(sample(layers, jax.random.key(epoch)))
        trace.append((spent, judge(draws), draws))
        print(f"here: step {(epoch + 1) * steps}, {spent:.1f} s, {trace[-1][1]:.2f}", flush=True)
        if trace[-1][1] <= target:
            break
    return trace, compiling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/popsed_recipe.json"))
    parser.add_argument("--batch", type=int, default=2000, help="draws a step of PopSED's recipe")
    parser.add_argument("--limit", type=float, default=1200.0, help="seconds after which it is stopped")
    parser.add_argument("--target", type=float, default=2.0, help="distance over the truth's own that ends a training")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    data = observe(rng, draw_truth(rng, NUM))
    judge = Judge(data, args.seed)
    truth = draw_truth(np.random.default_rng([args.seed, 2]), HELD)
    print(
        f"the truth itself, from fresh draws: {judge(truth):.2f}; a flat prior: {judge(rng.normal(size=truth.shape)):.1f}"
    )
    ours, compiling = train_ours(data, judge, args.target, args.seed)
    theirs = train_popsed(data, judge, args.batch, args.limit, args.target, args.seed)
    rows = []
    for name, trace in (("popsed_jax", ours), (f"PopSED's recipe, {args.batch} draws", theirs)):
        seconds, value, draws = trace[-1]
        shift = np.abs(draws.mean(0) - truth.mean(0)) / truth.std(0)
        rows.append([name, value <= args.target, seconds, value, float(shift.mean())])
    extra = {
        "ratio of times": theirs[-1][0] / ours[-1][0],
        "ratio with compilation": theirs[-1][0] / (ours[-1][0] + compiling),
        "compilation [s]": compiling,
        "traces": {"popsed_jax": [t[:2] for t in ours], "recipe": [t[:2] for t in theirs]},
    }
    print({key: value for key, value in extra.items() if key != "traces"})
    columns = ["training", "reached", "seconds", "distance / truth's own", "mean shift of parameters / std"]
    finish(f"Time to {args.target} times the truth's own distance", columns, rows, args.out, extra)


if __name__ == "__main__":
    main()
