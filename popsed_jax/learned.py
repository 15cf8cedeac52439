"""From a run directory to its learned survey, and to the network that was trained for it."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp

from popsed_jax.catalog import Catalog, read_catalog
from popsed_jax.config import RunConfig, load_config
from popsed_jax.observe.calibration import Calibration
from popsed_jax.population.model import Population, load_population
from popsed_jax.population.storage import StorageError, load_tree
from popsed_jax.posteriors.survey import LearnedSurvey
from popsed_jax.run import CALIBRATION
from popsed_jax.surveys import build_survey, calibration_of


def load_survey(run: Path | str, number: int = 0) -> tuple[LearnedSurvey, tuple[str, ...]]:
    """The learned population as one of a run's surveys sees it, and the names of that survey's bands.

    The run's catalogue is read again: its errors, and the bands that its galaxies lack, say how the survey records galaxies.

    Args:
        number: which of the run's surveys.

    Raises:
        StorageError: no population or no calibration there.
        ValueError: no settings there, or fewer surveys.
    """
    run = Path(run)
    path = run / "config.toml"
    if not path.is_file():
        raise ValueError(f"{run} has no config.toml: posteriors need the whole run directory")
    config = load_config(path)
    if not 0 <= number < len(config.all_surveys):
        raise ValueError(f"survey = {number}: {run} has {len(config.all_surveys)} surveys, counted from 0")
    catalogs = [read_catalog(survey.catalog, run) for survey in config.all_surveys[: number + 1]]
    population = load_population(run / "population")
    return build_learned(
        population, catalogs[number], config, load_calibration(run, population, config)[number], number
    )


def build_learned(
    population: Population, catalog: Catalog, config: RunConfig, calibration: Calibration, number: int = 0
) -> tuple[LearnedSurvey, tuple[str, ...]]:
    """As `load_survey`, from what is at hand already (a fit's result, for instance)."""
    survey = LearnedSurvey(
        population,
        build_survey(catalog, config, number),
        calibration_of(catalog, config.all_surveys[number]),
        calibration,
        tilt=config.fit.tilt,
    )
    return survey, catalog.bands


def load_calibration(run: Path, population: Population, config: RunConfig) -> tuple[Calibration, ...]:
    """What was learned of each survey's calibration, member by member.

    Raises:
        StorageError: the file is missing or damaged.
    """
    like = tuple(
        Calibration(*(jnp.zeros((population.num_members, size)) for size in sizes))
        for sizes in (
            (
                len(survey.catalog.resolved().bands),
                survey.calibration.template_knots,
                len(survey.catalog.resolved().bands),
            )
            for survey in config.all_surveys
        )
    )
    try:
        return load_tree(run / CALIBRATION, like)
    except StorageError as error:
        raise StorageError(
            f"{error}; a fit writes it, so that runs of earlier versions need to be fitted again"
        ) from None
