"""`popsed-jax train-vae` and `popsed-jax encode`: the multi-modal autoencoder of a survey's galaxies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from popsed_jax.cli_posterior import columns_of
from popsed_jax.config import anchored, default_config, load_config
from popsed_jax.posterior_run import DESCRIPTION, run_posterior
from popsed_jax.posteriors.heads import HeadConfig
from popsed_jax.posteriors.mocks import MocksConfig
from popsed_jax.posteriors.vae import VAEConfig
from popsed_jax.posteriors.vae_losses import TRAINED, StagesConfig
from popsed_jax.train_vae import VAETraining, build_vae_estimator, train_vae
from popsed_jax.vae_report import build_vae_report

out = Console()
err = Console(stderr=True)
_QUICK = 60  # steps of each stage


def train_vae_command(
    source: Annotated[
        Path | None, typer.Argument(help="Settings (TOML), or a run directory. Without it: the embedded galaxies.")
    ] = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder of the model.")] = Path("vae"),
    stage: Annotated[str | None, typer.Option("--stage", help=f"Train this stage alone: {', '.join(TRAINED)}.")] = None,
    latent: Annotated[int, typer.Option("--latent", min=1, help="Size of the latent.")] = VAEConfig.latent,
    head: Annotated[str, typer.Option("--head", help="flow, mixture or binned.")] = HeadConfig.kind,
    condition: Annotated[
        str, typer.Option("--condition", help="What the head is given: moments of the latent, or latents.")
    ] = VAEConfig.condition,
    galaxies: Annotated[
        int, typer.Option("--galaxies", min=100, help="Mock galaxies to learn from.")
    ] = MocksConfig.num_galaxies,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps of each stage.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps: to see that it works.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the folder's checkpoint.")] = False,
) -> None:
    """Train an autoencoder of spectra and photometry on mock galaxies of a survey, and keep it in a folder."""
    path = source / "config.toml" if source is not None and source.is_dir() else source
    settings = default_config() if path is None else load_config(path)
    settings = anchored(settings, Path.cwd() if path is None else path.resolve().parent)
    steps = _QUICK if quick and steps is None else steps
    lengths = {} if steps is None else dict.fromkeys(TRAINED, steps)
    training = VAETraining(
        seed=seed,
        mocks=MocksConfig(num_galaxies=min(galaxies, 2000) if quick else galaxies, num_hyper=1 if quick else 8),
        model=VAEConfig(latent=latent, condition=condition, head=HeadConfig(kind=head)),  # type: ignore[arg-type]  # checked there
        stages=StagesConfig(**lengths),
    )
    result = train_vae(settings, out_dir, training, stage=stage, resume=resume)
    report = build_vae_report(out_dir)
    out.print(f"Report: {report.resolve()}", soft_wrap=True, highlight=False, markup=False)
    if not result.finished:
        raise typer.Exit(code=3)


def encode_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a trained model.")],
    catalog: Annotated[Path | None, typer.Argument(help="Catalogue to read instead of the model's own.")] = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the Parquet parts.")] = Path("encoded"),
    config: Annotated[
        Path | None, typer.Option("--config", help="Settings (TOML) whose [catalog] replaces the model's.")
    ] = None,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Posterior samples behind the summaries.")] = 100,
    samples: Annotated[int, typer.Option("--samples", min=0, help="Samples to keep of each; 0: summaries.")] = 0,
    grid: Annotated[int, typer.Option("--grid", min=0, help="Points of p(redshift) to keep of each.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")] = 0,
    piece_rows: Annotated[int, typer.Option("--piece-rows", min=1, help="Rows of a part.")] = 10_000,
    resume: Annotated[bool, typer.Option("--resume", help="Make the parts that are missing in the folder.")] = False,
) -> None:
    """Latents and posteriors of every galaxy of a catalogue of any size, as Parquet parts in the catalogue's order."""
    columns, base = columns_of(folder, catalog, config)
    if (out_dir / DESCRIPTION).exists() and not resume:
        err.print(f"{out_dir} holds earlier posteriors, which these replace.", highlight=False, markup=False)
    estimator, identity = build_vae_estimator(folder, draws, samples, grid)
    result = run_posterior(
        estimator, columns, base, out=out_dir, identity=identity, seed=seed, piece_rows=piece_rows, resume=resume
    )
    if not result.finished:
        raise typer.Exit(code=3)
