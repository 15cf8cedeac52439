"""The multi-modal autoencoder, trained on mocks alone: redshifts of real galaxies, calibration, sizes of the latent, speed.

python benchmarks/vae.py --folder runs/vae_sdss                                    # the embedded SDSS galaxies
python benchmarks/vae.py --folder runs/vae_zcosmos --data PATH/zcosmos_bright20k.csv.gz

real: spectroscopic redshifts against p(redshift), of staged and joint training, of quiescent and star-forming galaxies apart, and
    without errors of templates and apertures in the mocks.
heads: the same galaxies, by heads that are given the moments of q(latent | photometry), or latents.
calibration: mock galaxies that no training saw: coverage (TARP) and log density of the truth, of heads that are given the moments
    of q(latent | photometry), or latents (trained as a mixture, or on single ones), beside neural posterior estimation: the
    same flow on the photometry itself, on the same mocks, for as many steps.
latents: sizes of the latent.
speed: galaxies a second.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from common import finish
from jaxtyping import Array
from zcosmos import read, settings

import popsed_jax as pj
from popsed_jax.diagnostics.calibration import Tarp, pit_from_grid, sbc_ranks, tarp, uniformity
from popsed_jax.diagnostics.photoz import photoz_metrics
from popsed_jax.plots_posterior import plot_ranks, plot_redshifts, plot_tarp
from popsed_jax.population.batching import map_batches
from popsed_jax.posteriors.columns import Summary
from popsed_jax.posteriors.estimator import Rows
from popsed_jax.posteriors.features import Features
from popsed_jax.posteriors.heads import FlowHead, build_head
from popsed_jax.posteriors.mocks import Mocks, MocksConfig
from popsed_jax.posteriors.stages import run_stage
from popsed_jax.posteriors.survey import Photometry
from popsed_jax.posteriors.vae import MultiModalVAE, VAEConfig, init_vae, with_new_head
from popsed_jax.posteriors.vae_columns import VAEEstimator
from popsed_jax.posteriors.vae_losses import LOSSES, STAGED, StagesConfig, VAEData
from popsed_jax.surveys import build_survey
from popsed_jax.train_vae import TrainedVAE, VAETraining, num_trained, train_vae

PARTS = ("real", "heads", "calibration", "latents", "speed")
QUIESCENT = -11.0  # log10 of the specific star-formation rate [1/yr], as inferred


def trained(
    mocks: Mocks, start: MultiModalVAE, stages: StagesConfig, names: tuple[str, ...] = STAGED, seed: int = 0
) -> tuple[MultiModalVAE, float]:
    """A model after some stages on mocks, and the seconds that they took."""
    began, parts = time.perf_counter(), start.parts
    data = VAEData(start.with_parts({}), mocks)
    for number, name in enumerate(names):
        key = jax.random.fold_in(jax.random.key(seed), number)
        parts = run_stage(key, stages.stage(name), LOSSES[name], data, parts)
    return start.with_parts(parts), time.perf_counter() - began


def rehead(mocks: Mocks, vae: MultiModalVAE, stages: StagesConfig, **changes: Any) -> MultiModalVAE:
    """The same encoders with another head, trained anew."""
    config = dataclasses.replace(vae.config, **changes)
    start = with_new_head(jax.random.key(5), vae, mocks, config)
    return trained(mocks, start, stages, ("parameters",))[0]


# --- neural posterior estimation on the same mocks


@flax.struct.dataclass
class NPEData:
    """What it learns from."""

    mocks: Mocks
    features: Features
    head: FlowHead
    batch: int = flax.struct.field(pytree_node=False)


def npe_loss(parts: dict[str, Any], key: Array, data: NPEData) -> tuple[Array, dict[str, Array]]:
    keys = jax.random.split(key)
    rows = jax.random.randint(keys[0], (data.batch,), 0, len(data.mocks))
    context = data.features(data.mocks.observe(keys[1], rows))
    nll = -jnp.mean(data.head.with_weights(parts["head"]).log_prob(data.mocks.u[rows][:, None], context))
    return nll, {"nll": nll}


@flax.struct.dataclass
class PlainNPE:
    """The head's flow on the features themselves."""

    vae: MultiModalVAE
    head: FlowHead

    def sample(self, key: Array, seen: Photometry, num: int) -> np.ndarray:
        head_key = jax.random.split(key, 1)[0]
        return np.asarray(_npe_sample(self, head_key, seen, num))

    def log_prob(self, theta: np.ndarray, seen: Photometry) -> np.ndarray:
        return map_batches(_npe_log_prob, self, (theta, seen), 1024)


def _npe_sample(npe: PlainNPE, key: Array, seen: Photometry, num: int) -> Array:
    u = jax.jit(lambda n: n.head.sample(key, n.vae.features(seen), num))(npe)
    return npe.vae.space.to_theta(u)


def _npe_log_prob(npe: PlainNPE, piece: tuple[Array, Photometry]) -> Array:
    theta, seen = piece
    u = npe.vae.space.to_u(theta)
    return npe.head.log_prob(u, npe.vae.features(seen)) - npe.vae.space.log_det(u)


def plain_npe(mocks: Mocks, vae: MultiModalVAE, stages: StagesConfig) -> PlainNPE:
    at = vae.space.index("redshift")
    head = build_head(jax.random.key(6), vae.config.head, vae.features.num, at, mocks.u[:8192])
    data = NPEData(mocks, vae.features, head.with_weights(None), vae.config.head_batch)
    parts = run_stage(jax.random.key(7), stages.stage("parameters"), npe_loss, data, {"head": head.weights})
    return PlainNPE(vae, head.with_weights(parts["head"]))


# --- parts


def redshifts(
    name: str, vae: MultiModalVAE, estimator: VAEEstimator, rows: Rows, figures: Path
) -> list[dict[str, Any]]:
    """Metrics of all galaxies, and of the two kinds apart."""
    estimator = dataclasses.replace(estimator, vae=vae, summary=dataclasses.replace(estimator.summary, population=vae))
    columns = estimator(7, rows)
    grid, table = estimator.summary.grid, []
    quiescent = columns["log_ssfr"] < QUIESCENT
    kinds = {"all": quiescent | True, "quiescent": quiescent, "star-forming": ~quiescent}
    for kind, chosen in kinds.items():
        if chosen.sum() < 20:
            continue
        point, truth = columns["redshift"][chosen], rows.redshift[chosen]
        metrics = photoz_metrics(point, grid, columns["pz"][chosen], truth, np.random.default_rng(0))
        error = (point - truth) / (1.0 + truth)
        row = {"training": name, "galaxies": kind, "num": int(chosen.sum()), "std": float(np.std(error))}
        row |= {key: entry["value"] for key, entry in metrics.items()}
        table.append(row | {"sigma_nmad +-": metrics["sigma_nmad"]["error"]})
        print(table[-1], flush=True)
        if kind == "all" and name in ("staged", "head given moments"):
            plot_redshifts(point, truth, metrics).savefig(figures / "redshifts.png", dpi=110)
            ranks = {
                kind: pit_from_grid(grid, columns["pz"][some], rows.redshift[some]) for kind, some in kinds.items()
            }
            plot_ranks(ranks).savefig(figures / "pit.png", dpi=110)
    return table


def real(
    base: TrainedVAE, estimator: VAEEstimator, rows: Rows, stages: StagesConfig, figures: Path, alone: bool
) -> list[dict[str, Any]]:
    mocks = base.mocks.subset(slice(0, num_trained(base.mocks)))
    table = redshifts("staged", base.vae, estimator, rows, figures)
    if alone:
        return table
    start = init_vae(jax.random.key(1), mocks, base.vae.space, base.vae.config)
    table += redshifts("joint", trained(mocks, start, stages, ("joint",))[0], estimator, rows, figures)
    exact = dataclasses.replace(mocks.config, template_sigma=0.0, offset_sigma=0.0)
    perfect = dataclasses.replace(mocks, config=exact)
    again = base.vae.with_parts(base.vae.parts | {"photometry_encoder": start.parts["photometry_encoder"]})
    vae = trained(perfect, again, stages, ("photometry", "parameters"))[0]
    return table + redshifts("staged, perfect templates", vae, estimator, rows, figures)


def heads(
    base: TrainedVAE, estimator: VAEEstimator, rows: Rows, stages: StagesConfig, figures: Path
) -> list[dict[str, Any]]:
    mocks, table = base.mocks.subset(slice(0, num_trained(base.mocks))), []
    for condition in ("moments", "latents"):
        same = base.vae.config.condition == condition
        vae = base.vae if same else rehead(mocks, base.vae, stages, condition=condition)
        table += redshifts(f"head given {condition}", vae, estimator, rows, figures)
    return table


def calibration(base: TrainedVAE, stages: StagesConfig, num: int, figures: Path) -> list[dict[str, Any]]:
    mocks, test = base.mocks.subset(slice(0, num_trained(base.mocks))), base.held_out
    truth = np.asarray(test.theta, np.float32)[:num]
    observe = jax.jit(Mocks.observe)
    seen = Photometry(*map(np.asarray, observe(test, jax.random.key(11), jnp.arange(len(truth)))))
    npe = plain_npe(mocks, base.vae, stages)
    cases: dict[str, MultiModalVAE | PlainNPE] = {
        "moments": rehead(mocks, base.vae, stages, condition="moments"),
        "latents, mixture": rehead(mocks, base.vae, stages, condition="latents"),
        "latents, single": rehead(mocks, base.vae, stages, condition="latents", num_latents=1),
        "NPE on the photometry": npe,
    }
    rows, curves = [], {}
    for name, model in cases.items():
        rng = np.random.default_rng(0)
        if isinstance(model, PlainNPE):
            samples, log_prob = model.sample(jax.random.key(1), seen, 500), model.log_prob(truth[:, None], seen)
        else:
            one = dataclasses.replace(model, config=dataclasses.replace(model.config, per_latent=1))
            samples = np.asarray(one.sample(jax.random.key(1), seen, 500).theta)
            log_prob = model.log_prob(jax.random.key(2), truth[:, None], seen, 256)
        rows.append(judged(name, samples, truth, np.asarray(log_prob)[:, 0], base.vae, rng, curves))
        print(rows[-1], flush=True)
    plot_tarp(curves, tolerance=0.05).savefig(figures / "coverage.png", dpi=110)
    return rows


def judged(
    name: str,
    samples: np.ndarray,
    truth: np.ndarray,
    log_prob: np.ndarray,
    vae: MultiModalVAE,
    rng: np.random.Generator,
    curves: dict[str, Tarp],
) -> dict[str, Any]:
    curves[name] = tarp(samples, truth, rng)
    ranks = sbc_ranks(samples, truth, rng)
    tests = [uniformity(ranks[:, i], rng) for i in range(ranks.shape[1])]
    at = vae.space.index("redshift")
    alone = tarp(samples[:, :, [at]], truth[:, [at]], rng)
    error = (np.median(samples[:, :, at], axis=1) - truth[:, at]) / (1.0 + truth[:, at])
    return {
        "head": name,
        "galaxies": len(truth),
        "largest TARP gap": curves[name].largest_gap,
        "+-": float(curves[name].error.max()),
        "of redshift": alone.largest_gap,
        "KS p > 0.01": f"{sum(test.p_value > 0.01 for test in tests)} of {len(tests)}",
        "redshift KS": tests[at].statistic,
        "log q(truth)": float(np.mean(log_prob)),
        "log q +-": float(np.std(log_prob) / np.sqrt(len(log_prob))),
        "redshift std": float(np.std(error)),
        "redshift NMAD": float(1.4826 * np.median(np.abs(error - np.median(error)))),
    }


def latents(
    base: TrainedVAE, estimator: VAEEstimator, rows: Rows, stages: StagesConfig, sizes: list[int], figures: Path
) -> list[dict[str, Any]]:
    """All sizes trained alike, for fewer steps than the base."""
    mocks, test = base.mocks.subset(slice(0, num_trained(base.mocks))), base.held_out
    table = []
    for size in sizes:
        config = dataclasses.replace(base.vae.config, latent=size, condition="moments")
        vae, seconds = trained(mocks, init_vae(jax.random.key(2), mocks, base.vae.space, config), stages)
        truth = np.asarray(test.theta, np.float32)
        seen = jax.jit(Mocks.observe)(test, jax.random.key(12), jnp.arange(len(truth)))
        spectra = jax.jit(lambda m: m.observe_spectrum(jax.random.key(13), jnp.arange(len(m)), clean=True))(test)
        decoded = vae.decode(vae.encode_spectrum(spectra).mean)
        scatter = np.std(np.asarray(decoded.log_shape + decoded.log_level[:, None] - test.log_shape
                                    - test.log_level[:, None]), axis=0)  # fmt: skip
        bands = np.asarray(decoded.through(vae.grid) / test.flux)
        log_prob = vae.log_prob(jax.random.key(14), truth[:, None], seen, 64)
        metrics = redshifts(f"latent {size}", vae, estimator, rows, figures)[0]
        table.append(
            {
                "latent": size,
                "weights": sum(leaf.size for leaf in jax.tree.leaves(vae.parts)),
                "training [s]": seconds,
                "spectrum scatter [dex]": float(np.median(scatter)),
                "worst band scatter [mag]": float(np.max(2.5 * np.std(np.log10(bands), axis=0))),
                "log q(truth)": float(np.mean(log_prob)),
                "real std": metrics["std"],
                "real sigma_nmad": metrics["sigma_nmad"],
                "real pit_ks": metrics["pit_ks"],
                "galaxies/s": rate(vae, tiled(Photometry(*map(np.asarray, seen)), 2048)),
            }
        )
        print(table[-1], flush=True)
    return table


def tiled(seen: Photometry, num: int) -> Photometry:
    return Photometry(*(np.resize(part, (num, part.shape[1])) for part in seen))


def rate(vae: MultiModalVAE, seen: Photometry, num: int = 100) -> float:
    """Galaxies a second: encoded, with so many samples of their parameters."""
    return best_rate(lambda: (vae.moments(seen), vae.sample(jax.random.key(0), seen, num)), len(seen.flux))


def best_rate(run: Callable[[], Any], num: int) -> float:
    return rates(run, num)[0]


def rates(run: Callable[[], Any], num: int) -> tuple[float, float]:
    """Galaxies a second of the clock, and of the processor's time in all threads, which other processes hardly change."""
    run()  # compiled
    times, busy = [], []
    for _ in range(3):
        began, worked = time.perf_counter(), time.process_time()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
        busy.append(time.process_time() - worked)
    return num / min(times), num / min(busy)


def speed(base: TrainedVAE, estimator: VAEEstimator, catalog: pj.Catalog, num: int = 4096) -> list[dict[str, Any]]:
    some = np.resize(np.arange(len(catalog)), num)
    rows = Rows(catalog.flux[some], catalog.flux_error[some], np.full(num, np.nan), catalog.row[some])
    there = np.isfinite(rows.flux)
    seen = Photometry(
        *(np.where(there, part, 1.0).astype(np.float32) for part in (rows.flux, rows.error)),
        there,  # type: ignore[arg-type]
    )
    quick = dataclasses.replace(estimator, summary=dataclasses.replace(estimator.summary, num_grid=0))
    work: dict[str, Callable[[], Any]] = {"latent moments": lambda: base.vae.moments(seen)}
    for condition in ("moments", "latents"):
        config = dataclasses.replace(base.vae.config, condition=condition)
        # The weights of a head do not change how long it takes.
        vae = with_new_head(jax.random.key(0), base.vae, base.mocks, config)

        def sampled(vae: MultiModalVAE = vae) -> Any:
            return vae.moments(seen), vae.sample(jax.random.key(0), seen, 100)

        work[f"latent moments and 100 samples of all parameters, head given {condition}"] = sampled
    work |= {
        "p(redshift) on a grid of 200": lambda: base.vae.redshift_density(jax.random.key(0), seen, quick.summary.grid),
        "all columns of popsed-jax encode": lambda: quick(0, rows),
    }
    table = []
    for name, run in work.items():
        clock, busy = rates(run, num)
        table.append({"what": name, "galaxies/s": clock, "galaxies/s of one core's time": busy})
        print(table[-1], flush=True)
    return table


def survey_of(args: argparse.Namespace) -> tuple[pj.Catalog, pj.RunConfig, str]:
    if args.data is None:
        config = pj.default_config()
        return pj.read_catalog(config.catalog), config, "sdss"
    catalog, selection = read(args.data)
    config = settings(catalog, selection, 0.0)
    args.folder.mkdir(parents=True, exist_ok=True)
    return catalog, dataclasses.replace(config, catalog=catalog.write(args.folder / "galaxies.parquet")), "zcosmos"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, required=True, help="of the base model: trained there, or read from there"
    )
    parser.add_argument("--data", type=Path, help="zcosmos_bright20k.csv.gz; without it the embedded SDSS galaxies")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--galaxies", type=int, default=MocksConfig.num_galaxies, help="mocks")
    parser.add_argument("--steps", type=int, nargs=4, default=None, help="of the three stages, and of joint training")
    parser.add_argument("--condition", default=VAEConfig.condition, help="of the base model: moments or latents")
    parser.add_argument("--latent-steps", type=int, default=600, help="of each stage in the table of sizes")
    parser.add_argument("--staged-alone", action="store_true", help="real: without the comparisons' trainings")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 8, 16, 32], help="of the latent, in that table")
    parser.add_argument("--num-real", type=int, default=3000)
    parser.add_argument("--num-mocks", type=int, default=1000, help="of the calibration")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder")
    args = parser.parse_args()
    catalog, config, name = survey_of(args)
    names = ("spectrum", "photometry", "parameters", "joint")
    stages = StagesConfig(**dict(zip(names, args.steps, strict=True))) if args.steps else StagesConfig()
    training = VAETraining(
        mocks=MocksConfig(num_galaxies=args.galaxies), model=VAEConfig(condition=args.condition), stages=stages
    )
    there = (args.folder / "checkpoint" / "state.safetensors").is_file()
    base = train_vae(config, args.folder, training, catalog=catalog, resume=there)
    figures = args.out / f"vae_{name}"
    figures.mkdir(parents=True, exist_ok=True)
    assert catalog.redshift is not None
    known = np.flatnonzero(np.isfinite(catalog.redshift))
    some = np.sort(np.random.default_rng(5).permutation(known)[: args.num_real])
    rows = Rows(catalog.flux[some], catalog.flux_error[some], catalog.redshift[some], catalog.row[some])
    summary = Summary(base.vae, build_survey(catalog, config), num_grid=400)
    estimator = VAEEstimator(catalog.bands, base.vae, summary)
    few = StagesConfig(**dict.fromkeys(names, args.latent_steps))
    run = {
        "real": lambda: real(base, estimator, rows, stages, figures, args.staged_alone),
        "heads": lambda: heads(base, estimator, rows, stages, figures),
        "calibration": lambda: calibration(base, stages, args.num_mocks, figures),
        "latents": lambda: latents(base, estimator, rows, few, args.sizes, figures),
        "speed": lambda: speed(base, estimator, catalog),
    }
    sizes = {part: sum(leaf.size for leaf in jax.tree.leaves(weights)) for part, weights in base.vae.parts.items()}
    extra = {"weights": sizes, "training": dataclasses.asdict(training), "history": base.history}
    for part in args.parts:
        table = run[part]()
        out = args.out / f"vae_{name}_{part}.json"
        finish(f"{name}: {part}", list(table[0]), [list(row.values()) for row in table], out, extra)


if __name__ == "__main__":
    main()
