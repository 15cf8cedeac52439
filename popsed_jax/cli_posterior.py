"""`popsed-jax train-npe` and `popsed-jax posterior`: posteriors of every galaxy of a catalogue."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from popsed_jax.catalog import CatalogConfig
from popsed_jax.config import RunConfig, load_config
from popsed_jax.estimators import PIECE_ROWS, Method, build_estimator
from popsed_jax.posterior_run import DESCRIPTION, run_posterior
from popsed_jax.posteriors.npe import NPEConfig
from popsed_jax.train_npe import train_run

err = Console(stderr=True)


def posterior_command(
    run: Annotated[Path, typer.Argument(help="Run directory: its population is the prior.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the Parquet parts.")],
    catalog: Annotated[Path | None, typer.Argument(help="Catalogue to read instead of the run's own.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Settings (TOML) whose [catalog] replaces the run's.")
    ] = None,
    method: Annotated[Method, typer.Option("--method", help="A trained network, or sampling.")] = "npe",
    prior: Annotated[
        str, typer.Option("--prior", help="learned, flat, or broad: flat as the survey keeps galaxies.")
    ] = "learned",
    samples: Annotated[int, typer.Option("--samples", min=0, help="Samples to keep of each; 0: summaries.")] = 0,
    grid: Annotated[int, typer.Option("--grid", min=0, help="Points of p(redshift) to keep of each.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")] = 0,
    piece_rows: Annotated[
        int | None, typer.Option("--piece-rows", min=1, help="Rows of a part; default 10000 (npe), 200 (hmc).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Make the parts that are missing in the folder.")] = False,
) -> None:
    """Posteriors of every galaxy of a catalogue of any size, as Parquet parts in the catalogue's order."""
    columns, base = columns_of(run, catalog, config)
    if (out_dir / DESCRIPTION).exists() and not resume:
        err.print(f"{out_dir} holds earlier posteriors, which these replace.", highlight=False, markup=False)
    estimator, identity = build_estimator(run, method, prior, samples, grid)
    pieces = PIECE_ROWS[method] if piece_rows is None else piece_rows
    result = run_posterior(
        estimator, columns, base, out=out_dir, identity=identity, seed=seed, piece_rows=pieces, resume=resume
    )
    if not result.finished:
        raise typer.Exit(code=3)


def train_npe_command(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps of the training.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the network's checkpoint.")] = False,
) -> None:
    """Train the network that gives posteriors of a run's galaxies, and keep it in the run directory."""
    steps = NPEConfig.num_steps if steps is None else steps
    config = NPEConfig(num_steps=steps, steps_per_chunk=min(steps, NPEConfig.steps_per_chunk), seed=seed)
    _, finished = train_run(run, config, resume=resume)
    if not finished:
        raise typer.Exit(code=3)


def columns_of(run: Path, catalog: Path | None, config: Path | None) -> tuple[CatalogConfig, Path]:
    """What the catalogue's columns mean, and the folder to which its path refers."""
    path = run / "config.toml"
    if not path.is_file():
        raise ValueError(f"{run} has no config.toml: posteriors need the whole run directory")
    settings = load_config(path)
    given = settings if config is None else load_config(config)
    columns = given.catalog.resolved()
    base = (path if config is None else config).resolve().parent
    _same_filters(settings, columns)
    if catalog is not None:
        columns = dataclasses.replace(columns, path=str(catalog.resolve()), name="")
    return columns, base


def _same_filters(settings: RunConfig, columns: CatalogConfig) -> None:
    """Bands go by their names, so that a name must not mean two filters.

    Raises:
        ValueError: it does.
    """
    run_filters = {band.name: Path(band.filter).name for band in settings.catalog.resolved().bands}
    for band in columns.bands:
        if Path(band.filter).name != run_filters.get(band.name, Path(band.filter).name):
            raise ValueError(
                f"band {band.name!r} is the filter {band.filter} in the catalogue, but the population was learned with "
                f"{run_filters[band.name]} under that name; posteriors need the run's filters"
            )
