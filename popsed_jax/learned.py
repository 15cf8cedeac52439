"""From a run directory to its learned survey, and to the network that was trained for it."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp

from popsed_jax.catalog import Catalog, read_catalog
from popsed_jax.config import RunConfig, load_config
from popsed_jax.observe.calibration import Calibration
from popsed_jax.population.model import DESCRIPTION, Population, load_population
from popsed_jax.population.storage import StorageError, described_weights, load_tree
from popsed_jax.posteriors.npe import NPE
from popsed_jax.posteriors.storage import DESCRIPTION as NPE_DESCRIPTION
from popsed_jax.posteriors.storage import load_npe
from popsed_jax.posteriors.survey import LearnedSurvey
from popsed_jax.run import CALIBRATION
from popsed_jax.surveys import build_survey, calibration_of

NPE_FOLDER = "npe"


def load_survey(run: Path | str, number: int = 0) -> tuple[LearnedSurvey, tuple[str, ...]]:
    """The learned population as one of a run's surveys sees it, and the names of that survey's bands.

    The run's catalogue is read again: its errors, and the bands that its galaxies lack, say how the survey records galaxies.

    Args:
        number: which of the run's surveys.

    Raises:
        StorageError: no population or no calibration there, or the catalogue is not the one that was fitted.
        ValueError: no settings there, or fewer surveys.
    """
    run = Path(run)
    path = run / "config.toml"
    if not path.is_file():
        raise ValueError(f"{run} has no config.toml: posteriors need the whole run directory")
    config = load_config(path)
    surveys = config.all_surveys
    if not 0 <= number < len(surveys):
        raise ValueError(f"survey = {number}: {run} has {len(surveys)} surveys, counted from 0")
    population = load_population(run / "population")
    calibration = load_calibration(run, population, config)[number]
    catalog = read_catalog(surveys[number].catalog, run)
    _check_catalog(run, catalog, number)
    survey = LearnedSurvey(
        population,
        build_survey(catalog, config, number),
        calibration_of(catalog, surveys[number]),
        calibration,
        tilt=config.fit.tilt,
    )
    return survey, catalog.bands


def _check_catalog(run: Path, catalog: Catalog, number: int) -> None:
    """Refuse another catalogue than the fit's: its noise and its missing bands would be another survey's."""
    try:
        metrics = json.loads((run / "metrics.json").read_text())
        fitted = (metrics if number == 0 else list(metrics["surveys"].values())[number - 1])["catalog"]["checksum"]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise StorageError(f"{run / 'metrics.json'} does not say which catalogue was fitted: fit again") from error
    if catalog.checksum() != fitted:
        raise StorageError(
            f"{run}: the catalogue that config.toml describes ({catalog.name}) is not the one that was fitted. If its file has "
            "changed, fit again; if the catalogue came from memory, write it with catalog.write(path) and put the settings "
            "that this returns into config.toml's [catalog]"
        )


def load_calibration(run: Path, population: Population, config: RunConfig) -> tuple[Calibration, ...]:
    """What was learned of each survey's calibration, member by member.

    Raises:
        StorageError: the file is missing or damaged.
    """

    def blank(num_bands: int, num_knots: int) -> Calibration:
        bands = jnp.zeros((population.num_members, num_bands))
        return Calibration(bands, jnp.zeros((population.num_members, num_knots)), bands)

    like = tuple(
        blank(len(survey.catalog.resolved().bands), survey.calibration.template_knots) for survey in config.all_surveys
    )
    try:
        return load_tree(run / CALIBRATION, like)
    except StorageError as error:
        raise StorageError(
            f"{error}; a fit writes it, so that runs of earlier versions need to be fitted again"
        ) from None


def population_checksum(run: Path) -> str:
    """By which one fit's population is told from another's."""
    return described_weights(run / "population" / DESCRIPTION)


def network_checksum(run: Path) -> str:
    """By which one training's network is told from another's."""
    return described_weights(run / NPE_FOLDER / NPE_DESCRIPTION)


def load_network(run: Path | str, survey: LearnedSurvey) -> NPE | None:
    """The network of a run; None: it has none yet.

    Raises:
        StorageError: a damaged, changed or newer file; a network of another fit, or one whose training was stopped.
    """
    run = Path(run)
    folder = run / NPE_FOLDER
    if not (folder / NPE_DESCRIPTION).is_file():
        return None
    npe, _, meta = load_npe(folder, survey)
    if not meta.get("finished", False):
        raise StorageError(f"{folder}: the training was stopped; finish it with popsed-jax train-npe {run} --resume")
    if meta.get("population") != population_checksum(run):
        raise StorageError(
            f"{folder}: trained for another fit's population; train anew with popsed-jax train-npe {run}"
        )
    return npe
