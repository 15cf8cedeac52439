"""A run's settings: what `run.toml` holds, with a default for everything but the catalogue's columns."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from popsed_jax.catalog import CatalogConfig, embedded_catalog_config
from popsed_jax.flows.spline import FlowConfig
from popsed_jax.observe.calibration import CalibrationConfig
from popsed_jax.observe.noise import NoiseConfig
from popsed_jax.observe.selection import MagnitudeLimit, SelectionConfig
from popsed_jax.population.fit_config import FitConfig
from popsed_jax.population.mock import MockConfig
from popsed_jax.population.reference import ReferenceConfig
from popsed_jax.population.schedules import AnnealConfig
from popsed_jax.population.survey import SpectroscopyConfig
from popsed_jax.settings import from_mapping, load_toml, to_mapping
from popsed_jax.sps.config import ModelConfig
from popsed_jax.sps.emulator import EmulatorConfig
from popsed_jax.transport import TransportConfig

Bounds = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class SurveyConfig:
    """One survey of several: see `RunConfig`, whose fields of these names are the first survey's."""

    catalog: CatalogConfig
    selection: SelectionConfig = dataclasses.field(default_factory=SelectionConfig)
    noise: NoiseConfig = dataclasses.field(default_factory=NoiseConfig)
    calibration: CalibrationConfig = dataclasses.field(default_factory=CalibrationConfig)
    spectroscopy: SpectroscopyConfig = dataclasses.field(default_factory=SpectroscopyConfig)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All settings of a run.

    Args:
        catalog: columns, units, filters; the embedded SDSS galaxies when absent.
        selection: the survey's cuts.
        noise: beyond the quoted errors.
        calibration: how far off zero points, templates and errors may be.
        spectroscopy: whether the fit may see redshifts, and of which galaxies.
        surveys: further catalogues of the same population, with bands, depths and cuts of their own.
        model: what a galaxy is made of.
        parameters: bounds by parameter name that differ from the model's.
        reference: the reference population.
        flow: size of the flows.
        fit: length and batch of the training, the ensemble, the objective.
        anneal: schedules.
        transport: distances.
        mock: the truth of `popsed-jax mock`.
        train_emulator: size and training of an emulator (`popsed-jax train-emulator`).
        emulator: folder of a trained emulator that takes the place of the exact photometry.
    """

    catalog: CatalogConfig
    selection: SelectionConfig = dataclasses.field(default_factory=SelectionConfig)
    noise: NoiseConfig = dataclasses.field(default_factory=NoiseConfig)
    calibration: CalibrationConfig = dataclasses.field(default_factory=CalibrationConfig)
    spectroscopy: SpectroscopyConfig = dataclasses.field(default_factory=SpectroscopyConfig)
    surveys: tuple[SurveyConfig, ...] = ()
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    parameters: dict[str, Bounds] = dataclasses.field(default_factory=dict)
    reference: ReferenceConfig = dataclasses.field(default_factory=ReferenceConfig)
    flow: FlowConfig = dataclasses.field(default_factory=FlowConfig)
    fit: FitConfig = dataclasses.field(default_factory=FitConfig)
    anneal: AnnealConfig = dataclasses.field(default_factory=AnnealConfig)
    transport: TransportConfig = dataclasses.field(default_factory=TransportConfig)
    mock: MockConfig = dataclasses.field(default_factory=MockConfig)
    train_emulator: EmulatorConfig = dataclasses.field(default_factory=EmulatorConfig)
    emulator: str | None = None

    @property
    def all_surveys(self) -> tuple[SurveyConfig, ...]:
        """The first survey and the further ones."""
        first = SurveyConfig(self.catalog, self.selection, self.noise, self.calibration, self.spectroscopy)
        return (first, *self.surveys)


def default_config() -> RunConfig:
    """The embedded catalogue: 10,000 SDSS galaxies with ugriz.

    The main sample was selected at r < 17.77 in Petrosian magnitudes (Strauss+02); in the model magnitudes used here,
    0.08 mag brighter in the median with a scatter of 0.1 mag, and on the AB scale, the edge is at 17.70. The sample is also
    detected by 2MASS, whose extended-source counts in this catalogue fall to half at Ks = 14.1 (Vega), 15.95 (AB). Both
    figures come from the catalogue's photometry. The cuts were made in other magnitudes, whose scatter is in the widths.
    """
    limits = (MagnitudeLimit("sdss_r0", 17.70, 0.10), MagnitudeLimit("twomass_Ks", 15.95, 0.20))
    selection = SelectionConfig(limits, observed=False)
    return RunConfig(catalog=embedded_catalog_config(), selection=selection)


def quick_config(config: RunConfig) -> RunConfig:
    """The same run in a tenth of the steps: to see that it works, not to be believed."""
    fit = dataclasses.replace(
        config.fit,
        num_members=min(2, config.fit.num_members),
        num_epochs=6,
        steps_per_epoch=min(8, config.fit.steps_per_epoch),
        reference_draws=3000,
        reference_steps=120,
        flat_control=False,
        max_validation=1000,
    )
    return dataclasses.replace(config, fit=fit)


def load_config(path: Path | str) -> RunConfig:
    """Read a TOML file; without a [catalog], the embedded catalogue and its selection.

    Raises:
        SettingsError: unknown, missing or wrong settings, each named with its place and the nearest valid one.
        FileNotFoundError: no such file.
    """
    mapping = load_toml(Path(path))
    default = to_mapping(default_config())
    if "catalog" not in mapping:
        mapping = {"catalog": default["catalog"], "selection": default["selection"], **mapping}
    return from_mapping(RunConfig, mapping)


def anchored(settings: RunConfig, base: Path) -> RunConfig:
    """The settings with paths that serve from anywhere, so that the config.toml of what is made repeats it.

    Args:
        base: folder to which relative paths refer.
    """
    emulator = None if settings.emulator is None else str((base / settings.emulator).resolve())
    surveys = tuple(
        dataclasses.replace(survey, catalog=_absolute(survey.catalog.resolved(), base)) for survey in settings.surveys
    )
    catalog = _absolute(settings.catalog.resolved(), base)
    return dataclasses.replace(settings, catalog=catalog, surveys=surveys, emulator=emulator)


def _absolute(catalog: CatalogConfig, base: Path) -> CatalogConfig:
    """The catalogue's paths as seen from anywhere."""
    bands = tuple(
        dataclasses.replace(band, filter=str((base / band.filter).resolve()))
        if (base / band.filter).is_file()
        else band
        for band in catalog.bands
    )
    path = str((base / catalog.path).resolve()) if catalog.path else ""
    return dataclasses.replace(catalog, path=path, bands=bands)
