"""Missing and unusually noisy bands: the network that was trained with masks against SBI++ (Wang+23, arXiv:2304.05281).

popsed-jax fit && popsed-jax train-npe runs/sdss_galaxies
python benchmarks/sbipp.py --run runs/sdss_galaxies

SBI++ takes a network that knows complete, ordinary photometry only. What a galaxy lacks is drawn from simulated galaxies that
resemble it in the bands that it has; where a band is noisier than any of the training, its flux is drawn from its error
distribution and quoted with an ordinary error; posteriors of all these completed galaxies are averaged. Here such a network
is trained for as long as the run's own, on the same simulator without missing or noisy bands. Both are judged on simulated
galaxies of the learned population, told the member that each is drawn from: density and ranks of the truth, and time.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import finish
from jaxtyping import Array, Float, Int
from scipy.special import logsumexp

from popsed_jax.diagnostics.calibration import sbc_ranks, tarp, uniformity
from popsed_jax.diagnostics.photoz import crps_from_samples
from popsed_jax.learned import load_network, load_survey
from popsed_jax.posteriors.npe import NPE, NPEConfig, train_npe
from popsed_jax.posteriors.simulate import SimulationConfig
from popsed_jax.posteriors.survey import LearnedSurvey, Photometry

NUM_LIBRARY, NUM_NEIGHBOURS, NUM_COMPLETED, NUM_EACH = 50_000, 100, 50, 10
# A band whose error is so much over the usual one [dex] is beyond what the complete network was trained on.
UNUSUAL = 0.25


def observed(
    survey: LearnedSurvey, seed: int, num: int, excess: Float[np.ndarray, " band"] | float = 0.0
) -> tuple[np.ndarray, Photometry, np.ndarray]:
    """theta of galaxies of the learned population, their photometry, and each one's member."""
    theta, member = survey.population.sample_members(jax.random.key(seed), num)
    spread = jnp.broadcast_to(jnp.asarray(excess), (num, survey.num_bands))
    seen = jax.jit(LearnedSurvey.observe)(survey, jax.random.key(seed + 1), theta, member, spread)
    return np.asarray(theta, float), Photometry(*map(np.asarray, seen)), np.asarray(member)


def usual_error(survey: LearnedSurvey, flux: np.ndarray) -> np.ndarray:
    """Error that the survey usually quotes for a flux [maggies]."""
    return np.asarray(survey.forward.noise.sigma(jnp.asarray(flux), jnp.zeros(flux.shape)), float)


def completed(rng: np.random.Generator, survey: LearnedSurvey, library: Photometry, galaxy: Photometry) -> Photometry:
    """Photometry that a galaxy could have had, had all its bands been observed as usual; `NUM_COMPLETED` draws."""
    flux = np.tile(galaxy.flux.astype(float), (NUM_COMPLETED, 1))
    error = np.tile(galaxy.error.astype(float), (NUM_COMPLETED, 1))
    there = galaxy.there
    noisy = there & (np.log10(galaxy.error / usual_error(survey, galaxy.flux[None])[0]) > UNUSUAL)
    noise = np.hypot(galaxy.error, library.error)
    # By the shape of the spectrum: a library galaxy counts at the brightness that suits best.
    scale = np.sum((galaxy.flux * library.flux / noise**2)[:, there], axis=1) / np.sum(
        (library.flux**2 / noise**2)[:, there], axis=1
    )
    scaled = np.maximum(scale, 1e-3)[:, None] * library.flux
    chi2 = np.sum((((galaxy.flux - scaled) / noise) ** 2)[:, there], axis=1)
    near = np.argpartition(chi2, NUM_NEIGHBOURS)[:NUM_NEIGHBOURS]
    weight = np.exp(-0.5 * (chi2[near] - chi2[near].min()))
    pick = rng.choice(near, NUM_COMPLETED, p=weight / weight.sum())
    flux[:, noisy] = galaxy.flux[noisy] + galaxy.error[noisy] * rng.standard_normal((NUM_COMPLETED, noisy.sum()))
    flux[:, ~there] = scaled[pick][:, ~there]
    redone = noisy | ~there
    error[:, redone] = usual_error(survey, flux)[:, redone]
    return Photometry(flux.astype(np.float32), error.astype(np.float32), np.ones(flux.shape, bool))


def sbipp(
    npe: NPE, library: Photometry, theta: np.ndarray, seen: Photometry, label: Int[np.ndarray, " galaxy"]
) -> tuple[np.ndarray, np.ndarray]:
    """Samples of every galaxy, and log density of its true theta."""
    rng = np.random.default_rng(3)
    many = [completed(rng, npe.survey, library, Photometry(*parts)) for parts in zip(*seen, strict=True)]
    flat = Photometry(*(np.concatenate(parts) for parts in zip(*many, strict=True)))
    labels = np.repeat(label, NUM_COMPLETED)
    samples = npe.sample(jax.random.key(4), flat, NUM_EACH, labels)[0].reshape(len(theta), -1, theta.shape[1])
    truths = np.repeat(theta, NUM_COMPLETED, axis=0)[:, None].astype(np.float32)
    each = npe.log_prob(truths, flat, labels).reshape(len(theta), NUM_COMPLETED)
    return samples, logsumexp(each, axis=1) - np.log(NUM_COMPLETED)


def masked(npe: NPE, theta: np.ndarray, seen: Photometry, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same by the network that knows missing bands."""
    samples = npe.sample(jax.random.key(4), seen, NUM_COMPLETED * NUM_EACH, label)[0]
    return samples, npe.log_prob(theta[:, None].astype(np.float32), seen, label)[:, 0]


def judged(
    case: str, method: str, at: int, theta: np.ndarray, run: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> dict[str, Any]:
    run()  # compiled
    start = time.perf_counter()
    samples, log_prob = run()
    seconds = time.perf_counter() - start
    rng = np.random.default_rng(0)
    ranks = sbc_ranks(samples, theta, rng)
    p_values = [uniformity(ranks[:, i], rng).p_value for i in range(theta.shape[1])]
    row = {
        "case": case,
        "method": method,
        "log q(truth)": float(np.mean(log_prob)),
        "+-": float(np.std(log_prob) / np.sqrt(len(theta))),
        "KS p > 0.05": f"{sum(p > 0.05 for p in p_values)} of {len(p_values)}",
        "redshift KS p": p_values[at],
        "TARP gap": tarp(samples, theta, rng).largest_gap,
        "redshift CRPS": float(np.mean(crps_from_samples(samples[:, :, at], theta[:, at]))),
        "galaxies/s": len(theta) / seconds,
    }
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run directory with a trained network")
    parser.add_argument("--num", type=int, default=500, help="simulated galaxies of each case")
    parser.add_argument("--steps", type=int, default=NPEConfig.num_steps, help="of the complete network's training")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sbipp.json"))
    args = parser.parse_args()
    survey, bands = load_survey(args.run)
    npe = load_network(args.run, survey)
    if npe is None:
        parser.error(f"{args.run} has no network: popsed-jax train-npe {args.run}")
    config = NPEConfig(num_steps=args.steps, simulation=SimulationConfig(missing=0.0, noisy=0.0))
    full = dataclasses.replace(survey, forward=dataclasses.replace(survey.forward, missing=None))
    complete = train_npe(jax.random.key(1), full, config, lambda step, loss: print(step, round(loss, 3), flush=True))
    library = observed(full, 40, NUM_LIBRARY)[1]
    at, rows = survey.space.index("redshift"), []
    lost: dict[str, tuple[int, ...]] = {
        "complete": (),
        f"without {bands[0]}": (0,),
        f"without {bands[-1]}": (len(bands) - 1,),
        f"without {bands[1]} and {bands[-1]}": (1, len(bands) - 1),
    }
    cases: list[tuple[str, tuple[int, ...], Array | float]] = [(name, which, 0.0) for name, which in lost.items()]
    loud = np.where(np.arange(len(bands)) == 1, 0.7, 0.0)
    cases.append((f"{bands[1]} five times as noisy", (), loud))
    for name, which, excess in cases:
        theta, seen, label = observed(full, 50, args.num, excess)
        there = seen.there.copy()
        there[:, list(which)] = False
        seen = seen._replace(there=there)
        rows.append(judged(name, "trained with masks", at, theta, lambda a=(theta, seen, label): masked(npe, *a)))
        rows.append(judged(name, "SBI++", at, theta, lambda a=(theta, seen, label): sbipp(complete, library, *a)))
    table = [list(row.values()) for row in rows]
    finish("Missing and noisy bands", list(rows[0]), table, args.out, {"steps": args.steps})


if __name__ == "__main__":
    main()
