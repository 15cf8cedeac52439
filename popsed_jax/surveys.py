"""From catalogues and settings to what a fit compares: forward models, the data's share that the fit may see, noise floors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool

from popsed_jax.catalog import Catalog
from popsed_jax.config import RunConfig, SurveyConfig
from popsed_jax.emulators import load_emulator
from popsed_jax.observe.calibration import CalibrationModel, build_calibration
from popsed_jax.observe.forward import ForwardModel, build_forward_model
from popsed_jax.observe.missing import build_missing_bands
from popsed_jax.observe.noise import fit_noise_model
from popsed_jax.population.galaxies import SurveyGalaxies
from popsed_jax.population.objective import Problem
from popsed_jax.population.reference import sample_uncertain
from popsed_jax.population.survey import Floor, Observations, prepare_survey
from popsed_jax.population.zero_points import ZeroPointConfig, ZeroPoints, fit_zero_points

# What no measurement from best fits tells: templates' faults of single bands, a slope that dust and age would make as well [mag].
_LEFT = 0.03
# Draws of the reference, and sets of its hyper-parameters, that hold the fits from which zero points are measured.
_NUM_POPULATION, _NUM_HYPER = 4000, 4


class Prepared(NamedTuple):
    """What a fit compares.

    Attributes:
        galaxies: of each survey, those that the training sees.
        floors: of each survey.
        used: of each survey: galaxies whose redshifts the fit sees.
    """

    problem: Problem
    galaxies: tuple[SurveyGalaxies, ...]
    floors: tuple[Floor, ...]
    used: tuple[Bool[np.ndarray, " galaxy"], ...]


def build_survey(catalog: Catalog, config: RunConfig, number: int = 0) -> ForwardModel:
    """The forward model of a catalogue: its filters, its noise learned from its errors, its selection, its missing bands.

    Args:
        number: which of the settings' surveys it is.

    Raises:
        StorageError: the settings name an emulator that cannot be read.
        ValueError: one that does not cover this run; cuts that the catalogue cannot have made.
    """
    survey = config.all_surveys[number]
    emulator = None if config.emulator is None else load_emulator(config.emulator)
    return build_forward_model(
        catalog.filters,
        fit_noise_model(catalog.flux, catalog.flux_error, survey.noise, np.array(catalog.upper_limits)),
        selection=survey.selection,
        model=config.model,
        bounds=config.parameters,
        emulator=emulator,
        missing=build_missing_bands(catalog.flux),
    )


def prepare_problem(key: Array, catalogs: Sequence[Catalog], config: RunConfig) -> Prepared:
    """Everything that stays fixed in a fit.

    Raises:
        ValueError: as `build_survey`; as many catalogues as the settings have surveys are needed, of different names;
            redshifts are asked for that a catalogue does not have.
    """
    settings = config.all_surveys
    if len(catalogs) != len(settings):
        raise ValueError(f"the settings describe {len(settings)} surveys, but there are {len(catalogs)} catalogues")
    names = [catalog.name for catalog in catalogs]
    if len(set(names)) < len(names):
        raise ValueError(
            f"surveys: the catalogues {', '.join(names)} need different names; give each a name in [catalog]"
        )
    surveys, galaxies, floors, all_used = [], [], [], []
    for number, (catalog, survey) in enumerate(zip(catalogs, settings, strict=True)):
        forward = build_survey(catalog, config, number)
        used = choose_spectra(catalog, survey, config.fit.seed)
        redshift = np.where(used, catalog.redshift, np.nan) if used.any() and catalog.redshift is not None else None
        prepared, learned, floor = prepare_survey(
            jax.random.fold_in(key, number),
            Observations(catalog.flux, catalog.flux_error, redshift),
            forward,
            calibration_of(catalog, survey),
            config.fit,
            survey.spectroscopy.success,
        )
        surveys.append(prepared)
        galaxies.append(learned)
        floors.append(floor)
        all_used.append(used)
    problem = Problem(tuple(surveys), tilt=config.fit.tilt)
    return Prepared(problem, tuple(galaxies), tuple(floors), tuple(all_used))


def calibration_of(catalog: Catalog, survey: SurveyConfig) -> CalibrationModel:
    """What may be wrong with a catalogue's calibration; the best-measured band is pinned unless the settings say which."""
    best = catalog.bands[int(np.argmax(np.nanmedian(catalog.flux / catalog.flux_error, axis=0)))]
    return build_calibration(survey.calibration, catalog.bands, catalog.filters, best)


def measure_zero_points(
    catalog: Catalog, config: RunConfig, number: int = 0, callback: Callable[[int, float], None] | None = None
) -> tuple[RunConfig, ZeroPoints]:
    """Zero points, and template errors if they are to be learned, from the galaxies whose redshifts the fit may see.

    Args:
        number: which of the settings' surveys the catalogue is.
        callback: see `fit_zero_points`.

    Returns:
        The settings with `calibration.offset_means`, `offset_sigmas` and, unless `template_sigma` is 0, `template_means` and
        `template_sigma`, and what was measured.

    Raises:
        ValueError: the settings let the fit see no redshifts, or too few galaxies have one.
    """
    survey = config.all_surveys[number]
    if survey.spectroscopy.fraction == 0.0:
        raise ValueError(
            "zero points: [spectroscopy] fraction = 0 lets the fit see no redshifts; set the share that it may use"
        )
    used, model = choose_spectra(catalog, survey, config.fit.seed), calibration_of(catalog, survey)
    assert catalog.redshift is not None  # choose_spectra found some
    forward = build_survey(catalog, config, number)
    population = None
    if config.reference.kind == "physical":
        key = jax.random.key(config.fit.seed)
        population = sample_uncertain(key, (forward,), config.reference, _NUM_POPULATION, _NUM_HYPER)
    found = fit_zero_points(
        forward,
        model,
        catalog.flux[used],
        catalog.flux_error[used],
        catalog.redshift[used],
        ZeroPointConfig(seed=config.fit.seed),
        callback,
        population,
    )
    measured = survey.calibration.template_sigma > 0.0
    sigma = np.where(np.asarray(model.offset_sigma) > 0.0, np.hypot(found.error, _LEFT), 0.0)
    bands, calibration = catalog.bands, survey.calibration
    if measured:
        width = np.hypot(np.sqrt(np.mean(found.template_error**2)), _LEFT)
        calibration = dataclasses.replace(
            calibration,
            template_means=tuple(round(float(value), 4) for value in found.template),
            template_sigma=round(float(min(width, calibration.template_sigma)), 4),
        )
    calibration = dataclasses.replace(
        calibration,
        offset_means={band: round(float(value), 4) for band, value in zip(bands, found.offset, strict=True)},
        offset_sigmas={band: round(float(value), 4) for band, value in zip(bands, sigma, strict=True)},
        pinned=bands[int(np.argmin(np.asarray(model.offset_sigma)))],
    )
    if number == 0:
        return dataclasses.replace(config, calibration=calibration), found
    others = list(config.surveys)
    others[number - 1] = dataclasses.replace(survey, calibration=calibration)
    return dataclasses.replace(config, surveys=tuple(others)), found


def choose_spectra(catalog: Catalog, survey: SurveyConfig, seed: int) -> Bool[np.ndarray, " galaxy"]:
    """Galaxies whose redshifts the fit may see.

    Raises:
        ValueError: the settings ask for redshifts, and the catalogue has none.
    """
    used = np.zeros(len(catalog), dtype=bool)
    fraction = survey.spectroscopy.fraction
    if fraction == 0.0:
        return used
    if catalog.redshift is None or not np.isfinite(catalog.redshift).any():
        raise ValueError(
            f"spectroscopy: fraction = {fraction}, but {catalog.name} has no redshifts; name their column in [catalog] redshift"
        )
    known = np.flatnonzero(np.isfinite(catalog.redshift))
    chosen = np.random.default_rng([seed, 17]).choice(known, max(1, round(fraction * len(known))), replace=False)
    used[chosen] = True
    return used
