"""The `popsed-jax` command."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import jax
import typer
from astropy.table import Table
from rich.console import Console
from rich.table import Table as RichTable

from popsed_jax.catalog import Catalog, CatalogConfig, read_catalog
from popsed_jax.cli_posterior import posterior_command, train_npe_command
from popsed_jax.cli_vae import encode_command, train_vae_command
from popsed_jax.config import RunConfig, anchored, default_config, load_config, quick_config
from popsed_jax.data import check_data
from popsed_jax.distributed import LostProcessError, join, named_losses
from popsed_jax.emulator_report import build_emulator_report
from popsed_jax.population.mock import simulate_mock
from popsed_jax.population.summaries import named_galaxies
from popsed_jax.population.zero_points import ZeroPointConfig
from popsed_jax.priors import load_prior
from popsed_jax.priors.check import check_prior
from popsed_jax.progress import Progress
from popsed_jax.report import build_report
from popsed_jax.run import fit, versions
from popsed_jax.run_tables import describe_columns
from popsed_jax.sampling import Galaxies, sample_run
from popsed_jax.settings import dump_toml, to_mapping
from popsed_jax.surveys import build_survey, measure_zero_points
from popsed_jax.tables import write_table
from popsed_jax.train_emulator import Kind, describe_errors, quick_training, train_emulator

app = typer.Typer(
    help="Learn the population of galaxies from a photometric catalogue.", no_args_is_help=True, add_completion=False
)
out = Console()
err = Console(stderr=True)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Settings (TOML). Without it: the embedded galaxies.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]


@app.command("fit")
def fit_command(
    catalog: Annotated[
        Path | None, typer.Argument(help="Catalogue to read instead of the one that the settings name.")
    ] = None,
    config: ConfigOption = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Run directory; default runs/NAME.")] = None,
    members: Annotated[int | None, typer.Option("--members", help="Flows of the ensemble.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Epochs of the training.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run directory's checkpoint.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the steps: to see that it works.")] = False,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="This is one of several processes of one fit; see README.")
    ] = False,
    coordinator: Annotated[str | None, typer.Option("--coordinator", help="HOST:PORT of process 0.")] = None,
    num_processes: Annotated[int | None, typer.Option("--num-processes", help="How many processes.")] = None,
    process_id: Annotated[int | None, typer.Option("--process-id", help="Number of this process, from 0.")] = None,
) -> None:
    """Learn the population of a catalogue and write a run directory with its report."""
    if distributed or any(value is not None for value in (coordinator, num_processes, process_id)):
        join(coordinator, num_processes, process_id)
    settings, base = _settings(config)
    if catalog is not None:
        settings = _with_path(settings, catalog.resolve(), config)
    settings = quick_config(settings) if quick else settings
    given = {"num_members": members, "num_epochs": epochs, "seed": seed}
    changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    settings = dataclasses.replace(settings, fit=dataclasses.replace(settings.fit, **changed))
    data = tuple(_read(survey.catalog, base) for survey in settings.all_surveys)
    folder = out_dir or Path("runs") / data[0].name
    if (folder / "metrics.json").exists() and not resume and jax.process_index() == 0:
        err.print(f"{folder} holds an earlier run, which this one replaces.", highlight=False, markup=False)
    settings = anchored(settings, base)
    with named_losses():
        result = fit(data, settings, out=folder, resume=resume)
    if jax.process_index() > 0:
        return  # process 0 writes
    report = build_report(folder)
    out.print(f"Report: {report.resolve()}", soft_wrap=True, highlight=False, markup=False)
    if not result.converged:
        raise typer.Exit(code=3)


@app.command("zero-points")
def zero_points_command(
    out_file: Annotated[Path, typer.Option("--out", help="Settings to write (TOML), for `popsed-jax fit --config`.")],
    config: ConfigOption = None,
) -> None:
    """Measure zero points, and the templates' error if it is to be learned (calibration.template_sigma): settings for a fit.

    From the galaxies whose redshifts the fit may see.
    """
    settings, base = _settings(config)
    settings = anchored(settings, base)
    columns = ("survey", "band", "zero point [mag]", "error", "scatter of galaxies")
    table = RichTable(*columns, title="model + zero point = data")
    templates = RichTable("survey", "rest-frame wavelength [Angstrom]", "error of the templates [mag]", "its error")
    for number, survey in enumerate(settings.all_surveys):
        if survey.spectroscopy.fraction == 0.0 and len(settings.all_surveys) > 1:
            continue
        catalog = _read(survey.catalog, base)
        with Progress(show=True) as progress:
            progress.say(f"{catalog.name}: fitting galaxies at their redshifts")
            progress.start("zero points", ZeroPointConfig.num_rounds)
            settings, found = measure_zero_points(catalog, settings, number, _rounds(progress))
        for band, *values in zip(catalog.bands, found.offset, found.error, found.scatter, strict=True):
            table.add_row(catalog.name, band, *(f"{value:.3f}" for value in values))
        if survey.calibration.template_sigma > 0.0:
            for wave, *values in zip(found.wave, found.template, found.template_error, strict=True):
                templates.add_row(catalog.name, f"{wave:.0f}", *(f"{value:.3f}" for value in values))
    out.print(table)
    if templates.row_count:
        out.print(templates)
    out_file.write_text(dump_toml(to_mapping(settings)))
    out.print(f"Settings: {out_file}", soft_wrap=True, highlight=False, markup=False)


@app.command("mock")
def mock_command(
    num_galaxies: Annotated[int, typer.Option("--num-galaxies", min=1, help="Galaxies to simulate.")],
    out_file: Annotated[Path, typer.Option("--out", help="Table to write (.parquet, .fits, .h5, .ecsv, .csv).")],
    config: ConfigOption = None,
    seed: SeedOption = 0,
) -> None:
    """Simulate a catalogue with known truth, with the noise and selection of the settings' catalogue."""
    settings, base = _settings(config)
    forward = build_survey(_read(settings.catalog, base), anchored(settings, base))
    bands = settings.catalog.resolved().bands
    names = tuple(band.name for band in bands)
    mock = simulate_mock(jax.random.key(seed), forward, settings.mock, settings.reference, num_galaxies, names)
    table = describe_columns(Table(named_galaxies(forward, mock.theta)), forward.space)
    for name in table.colnames:
        table[name].description = f"truth: {table[name].description}"
    for i, band in enumerate(bands):
        for word, values in (("flux", mock.flux), ("error", mock.error)):
            column = f"{word}_{band.name}"
            table[column] = values[:, i]
            table[column].unit, table[column].description = "mgy", f"{word} in maggies (AB), {band.filter}"
    write_table(table, out_file)
    out.print(f"{num_galaxies} galaxies: {out_file}", soft_wrap=True, highlight=False, markup=False)


@app.command("sample")
def sample_command(
    run: Annotated[Path, typer.Argument(help="Run directory, or its population folder.")],
    num: Annotated[int, typer.Option("--num", min=1, help="Galaxies to draw.")],
    out_file: Annotated[Path, typer.Option("--out", help="Table to write (.parquet, .fits, .h5, .ecsv, .csv).")],
    seed: SeedOption = 0,
    galaxies: Annotated[
        Galaxies, typer.Option("--galaxies", help="Those that the survey keeps, or all that it could see.")
    ] = "as-detected",
) -> None:
    """Draw galaxies from a learned population, with names and units."""
    write_table(sample_run(run, num, seed, galaxies), out_file)
    out.print(f"{num} galaxies: {out_file}", soft_wrap=True, highlight=False, markup=False)


app.command("train-npe")(train_npe_command)
app.command("posterior")(posterior_command)
app.command("train-vae")(train_vae_command)
app.command("encode")(encode_command)


@app.command("train-emulator")
def train_emulator_command(
    out_dir: Annotated[Path, typer.Option("--out", help="Folder of the emulator.")],
    config: ConfigOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the folder's checkpoint.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps: to see that it works.")] = False,
    kind: Annotated[Kind, typer.Option("--kind", help="Fluxes through filters, or rest-frame spectra.")] = "photometry",
    spectra: Annotated[
        Path | None, typer.Option("--spectra", help="HDF5 file of spectra to learn in place of the model's.")
    ] = None,
) -> None:
    """Train an emulator of the galaxy model, and report its errors over the prior."""
    settings, base = _settings(config)
    settings = anchored(settings, base)
    filters = list(dict.fromkeys([*(band.filter for band in settings.catalog.bands), *settings.selection.filters]))
    training = quick_training(settings.train_emulator) if quick else settings.train_emulator
    settings = dataclasses.replace(settings, train_emulator=training)
    kind = "spectrum" if spectra is not None else kind
    result = train_emulator(settings, out_dir, filters=filters, kind=kind, spectra=spectra, resume=resume)
    out.print(describe_errors(result.errors), highlight=False, markup=False, soft_wrap=True)
    report = build_emulator_report(out_dir)
    out.print(f"Report: {report.resolve()}", soft_wrap=True, highlight=False, markup=False)
    if not result.finished:
        raise typer.Exit(code=3)


@app.command("report")
def report_command(run: Annotated[Path, typer.Argument(help="Run directory.")]) -> None:
    """Rebuild a run's figures and report from its files."""
    out.print(f"Report: {build_report(run).resolve()}", soft_wrap=True, highlight=False, markup=False)


@app.command("check-prior")
def check_prior_command(
    folder: Annotated[Path, typer.Argument(help="Run directory, or its population folder.")],
    seed: SeedOption = 0,
    num: Annotated[int, typer.Option("--num", min=1000, help="Points of the integral.")] = 30_000,
) -> None:
    """Test that a learned population is a density, and that its samples and maps agree with it."""
    table = RichTable("check", "found", "wanted", "", box=None)
    checks = check_prior(load_prior(folder), seed, num)
    for check in checks:
        table.add_row(check.name, check.found, check.wanted, "ok" if check.ok else "FAILED")
    out.print(table)
    if not all(check.ok for check in checks):
        err.print("This is not a prior to be trusted: see the lines that failed.")
        raise typer.Exit(code=1)


@app.command("info")
def info_command() -> None:
    """Versions, devices and checksums of the embedded data: a self-check."""
    table = RichTable(show_header=False, box=None)
    for name, number in versions().items():
        table.add_row(name, number)
    for device in jax.devices():
        table.add_row("device", f"{device.platform}: {device.device_kind}")
    started = time.perf_counter()
    jax.block_until_ready(jax.jit(lambda x: x @ x)(jax.numpy.ones((512, 512))))
    table.add_row("device works", f"compiled and ran in {time.perf_counter() - started:.2f} s")
    checks = check_data()
    for check in checks:
        table.add_row(check.name, "as shipped (checksum)" if check.ok else check.message)
    out.print(table)
    if not all(check.ok for check in checks):
        err.print("Embedded data are damaged: install the package again.")
        raise typer.Exit(code=1)


def _settings(config: Path | None) -> tuple[RunConfig, Path]:
    """The settings, and the folder to which their paths refer."""
    if config is None:
        return default_config(), Path.cwd()
    return load_config(config), config.resolve().parent


def _rounds(progress: Progress) -> Callable[[int, float], None]:
    """What moves the bar of measuring zero points."""
    return lambda done, step: progress.advance(done, f"largest step {step:.3f} mag", "round")


def _read(catalog: CatalogConfig, base: Path) -> Catalog:
    """A catalogue, with a bar where there is much to read."""
    with Progress(show=jax.process_index() == 0) as progress:
        return read_catalog(catalog, base, progress.rows)


def _with_path(settings: RunConfig, catalog: Path, config: Path | None) -> RunConfig:
    """The settings with another catalogue of the same columns."""
    if config is None:
        raise ValueError(
            f"{catalog} needs a settings file that says what its columns mean (see README, 'Your own catalogue'): "
            f"popsed-jax fit {catalog.name} --config run.toml"
        )
    return dataclasses.replace(settings, catalog=dataclasses.replace(settings.catalog, path=str(catalog)))


def main() -> NoReturn:
    """Entry point: mistakes of the user end with a sentence, not a traceback."""
    try:
        app()
    except LostProcessError as error:
        err.print(f"popsed-jax: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.stderr.flush()
        # At once: an ordinary exit waits for the lost process for a minute, and then aborts with pages of C++ names.
        os._exit(4)
    except (ValueError, KeyError, FileNotFoundError, OSError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        err.print(f"popsed-jax: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(2)
