"""The density of a learned population against a diffusion density of the same population: quality, and evaluations a second.

    python benchmarks/diffusion.py --population runs/sdss_galaxies/population

The diffusion density is a probability-flow ODE (Song+21, arXiv:2011.13456; the kind of pop-cosmos's prior, Alsing+24) whose
velocity, a residual network of time and place, is learned by flow matching (Lipman+23, arXiv:2210.02747) from draws of the
population, in its whitened u. log_prob integrates the velocity and its exact divergence with an adaptive solver. Quality is the
mean difference of the two log densities on fresh draws of the population: the Kullback-Leibler divergence that is left.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import finish
from jax.experimental.ode import odeint
from jaxtyping import Array, Float

import popsed_jax as pj

CHUNK = 200


class Velocity(nn.Module):
    """Residual network from place and time to velocity."""

    width: int
    blocks: int = 3

    @nn.compact
    def __call__(self, x: Float[Array, "num dim"], t: Float[Array, ""]) -> Float[Array, "num dim"]:
        waves = 2.0 * jnp.pi * t * jnp.arange(1, 5)
        told = jnp.broadcast_to(jnp.concatenate([t[None], jnp.sin(waves), jnp.cos(waves)]), (len(x), 9))
        z = nn.Dense(self.width)(jnp.concatenate([x, told], axis=1))
        for _ in range(self.blocks):
            z = z + nn.Dense(self.width)(nn.silu(nn.Dense(self.width)(nn.silu(z))))
        return nn.Dense(x.shape[1])(nn.silu(z))


def train(
    key: Array, network: Velocity, population: pj.Population, steps: int, batch: int
) -> tuple[Any, Float[np.ndarray, " dim"], Float[np.ndarray, "dim dim"], float]:
    """Averaged weights, mean and root of the covariance of u, and the seconds that it took."""
    u = population.space.to_u(population.sample_members(jax.random.key(99), 20_000)[0])
    mean, chol = jnp.mean(u, axis=0), jnp.linalg.cholesky(jnp.cov(u, rowvar=False))
    rate = optax.cosine_onecycle_schedule(steps, 2e-3, pct_start=0.1)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    weights = network.init(key, u[:1], jnp.zeros(()))

    @jax.jit
    def chunk(state: Any, population: pj.Population) -> tuple[Any, Array]:
        def step(state: Any, _: None) -> tuple[Any, Array]:
            weights, average, opt_state, number = state
            keys = jax.random.split(jax.random.fold_in(key, number), 3)
            u = population.space.to_u(population.sample_members(keys[0], batch)[0])
            end = jax.scipy.linalg.solve_triangular(chol, (u - mean).T, lower=True).T
            start = jax.random.normal(keys[1], end.shape)
            # One time a galaxy, evenly spread over the batch.
            t = (jnp.arange(batch) + jax.random.uniform(keys[2])) / batch

            def loss(weights: Any) -> Array:
                at = start + t[:, None] * (end - start)
                found = jax.vmap(lambda x, t: network.apply(weights, x[None], t)[0])(at, t)
                return jnp.mean((found - (end - start)) ** 2)

            value, grads = jax.value_and_grad(loss)(weights)
            updates, opt_state = optimiser.update(grads, opt_state)
            weights = optax.apply_updates(weights, updates)
            average = jax.tree.map(lambda old, new: old + (new - old) / 500.0, average, weights)
            return (weights, average, opt_state, number + 1), value

        return jax.lax.scan(step, state, length=CHUNK)

    state = (weights, weights, optimiser.init(weights), jnp.zeros((), jnp.int32))
    start = time.perf_counter()
    for number in range(steps // CHUNK):
        state, losses = chunk(state, population)
        if number % 5 == 4:
            print((number + 1) * CHUNK, float(losses.mean()), f"{time.perf_counter() - start:.0f} s", flush=True)
    return state[1], np.asarray(mean), np.asarray(chol), time.perf_counter() - start


def log_prob(
    network: Velocity, weights: Any, mean: Array, chol: Array, tolerance: float, u: Float[Array, "num dim"]
) -> Float[Array, " num"]:
    """Log density over u: back along the flow to the normal distribution."""

    def slope(state: tuple[Array, Array], t: Array) -> tuple[Array, Array]:
        def velocity(x: Array) -> Array:
            return -network.apply(weights, x[None], 1.0 - t)[0]

        jacobian = jax.vmap(jax.jacfwd(velocity))(state[0])
        return jax.vmap(velocity)(state[0]), jnp.trace(jacobian, axis1=1, axis2=2)

    x = jax.scipy.linalg.solve_triangular(chol, (u - mean).T, lower=True).T
    ends, change = odeint(slope, (x, jnp.zeros(len(x))), jnp.array([0.0, 1.0]), rtol=tolerance, atol=tolerance)
    # Back along the flow: the density at the data is the base's times the volume's growth on the way.
    return jax.scipy.stats.norm.logpdf(ends[-1]).sum(axis=1) + change[-1] - jnp.log(jnp.diag(chol)).sum()


def rate(run: Callable[[Array], Any], u: Array) -> float:
    """Rows a second, the best of three."""
    jax.block_until_ready(run(u))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(run(u))
        times.append(time.perf_counter() - start)
    return len(u) / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--population", type=Path, required=True, help="folder of a learned population")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--num", type=int, default=1000, help="evaluated at a time")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of the solver")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/diffusion.json"))
    args = parser.parse_args()
    population = pj.load_population(args.population)
    space = population.space
    theta = population.sample_members(jax.random.key(5), args.num)[0]
    u = space.to_u(theta)
    truth = np.asarray(population.log_prob(theta) + space.log_det(u), float)

    @jax.jit
    def ours(u: Array, population: pj.Population) -> Array:
        return population.log_prob(space.to_theta(u)) + space.log_det(u)

    slopes = jax.jit(jax.value_and_grad(lambda u, population: ours(u, population).sum()))
    rows: list[list[Any]] = [
        [
            f"mixture of {population.num_members} spline flows",
            0.0,
            0.0,
            rate(lambda u: ours(u, population), u),
            rate(lambda u: slopes(u, population), u),
            0.0,
        ]
    ]
    for width in args.widths:
        network = Velocity(width)
        weights, mean, chol, seconds = train(jax.random.key(1), network, population, args.steps, args.batch)
        density = jax.jit(partial(log_prob, network, weights, jnp.asarray(mean), jnp.asarray(chol), args.tolerance))
        slope = jax.jit(jax.value_and_grad(lambda u, density=density: density(u).sum()))
        lost = truth - np.asarray(density(u), float)
        error = float(lost.std() / np.sqrt(len(lost)))
        few = u[: max(args.num // 5, 1)]
        rows.append(
            [f"diffusion, width {width}", float(lost.mean()), error, rate(density, u), rate(slope, few), seconds]
        )
        print(rows[-1], flush=True)
    columns = ["density", "KL [nat]", "+-", "log_prob / s", "with gradient / s", "training [s]"]
    extra = {"steps": args.steps, "batch": args.batch, "tolerance": args.tolerance, "dim": len(space)}
    finish(f"log_prob, {args.num} at a time", columns, rows, args.out, extra)


if __name__ == "__main__":
    main()
