"""theta -> what the survey records: galaxy model, filters, noise and selection in one pytree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from popsed_jax.observe.emulated import (
    PhotometryEmulator,
    SpectrumPhotometry,
    build_spectrum_photometry,
    check_coverage,
    emulated_flux,
    select_filters,
    spectrum_flux,
)
from popsed_jax.observe.missing import MissingBands
from popsed_jax.observe.noise import NoiseModel
from popsed_jax.observe.photometry import PhotometryTable, build_photometry_table, flux
from popsed_jax.observe.selection import SelectionConfig, detection_probability, kept_probability
from popsed_jax.parameters import ParameterSpace
from popsed_jax.sps.config import ModelConfig
from popsed_jax.sps.galaxy import GalaxyModel, build_galaxy_model
from popsed_jax.sps.spectra import SpectrumEmulator

# Three routes from theta to fluxes; each knows its filters.
Photometry = PhotometryTable | PhotometryEmulator | SpectrumPhotometry
Emulator = PhotometryEmulator | SpectrumEmulator


def model_flux(photometry: Photometry, galaxy: GalaxyModel, theta: Float[Array, " dim"]) -> Float[Array, " filter"]:
    """AB flux of one galaxy through each filter [maggies, AB], by whichever route."""
    if isinstance(photometry, PhotometryTable):
        return flux(photometry, galaxy, theta)
    if isinstance(photometry, PhotometryEmulator):
        return emulated_flux(photometry, galaxy, theta)
    return spectrum_flux(photometry, galaxy, theta)


@flax.struct.dataclass
class ForwardModel:
    """Galaxies as the survey sees them.

    Attributes:
        galaxy: theta to stars.
        table: photometry, tabulated or emulated; the first `num_bands` filters are the catalogue's bands, the rest serve the
            selection.
        noise: the survey's noise, in the catalogue's bands.
        selection: the survey's cuts.
        missing: which bands galaxies lack; None: none.
    """

    galaxy: GalaxyModel
    table: Photometry
    noise: NoiseModel
    selection: SelectionConfig = flax.struct.field(pytree_node=False)
    num_bands: int = flax.struct.field(pytree_node=False)
    missing: MissingBands | None = None

    @property
    def space(self) -> ParameterSpace:
        """The galaxy's parameters."""
        return self.galaxy.space

    def flux(self, theta: Float[Array, "num dim"]) -> Float[Array, "num filter"]:
        """Noise-free fluxes in all filters, the selection's too [maggies]."""
        return jax.vmap(lambda one: model_flux(self.table, self.galaxy, one))(theta)

    def derived(self, theta: Float[Array, "num dim"]) -> dict[str, Float[Array, " num"]]:
        """Derived properties by name."""
        return jax.vmap(self.galaxy.derived)(theta)

    def detection(self, theta: Float[Array, "num dim"]) -> Float[Array, " num"]:
        """Probability that the survey keeps each galaxy, over its noise."""
        return self.detection_of(self.flux(theta))

    def detection_of(self, flux: Float[Array, "num filter"]) -> Float[Array, " num"]:
        """Probability that the survey keeps galaxies of these noise-free fluxes [maggies], over a median exposure's noise."""
        bands = flux[:, : self.num_bands]
        error = self._with_others(self.noise.width(bands, jnp.zeros_like(bands)), flux)
        return detection_probability(flux, error, self.table.filters, self.selection)

    def kept(
        self,
        flux: Float[Array, "num filter"],
        observed: Float[Array, "num band"],
        error: Float[Array, "num band"],
    ) -> Float[Array, " num"]:
        """Probability that the survey keeps galaxies that it observed like this.

        Args:
            flux: noise-free, in all filters [maggies].
            observed, error: in the catalogue's bands [maggies].
        """
        if not self.selection.observed:
            return self.detection_of(flux)
        seen = jnp.concatenate([observed, flux[:, self.num_bands :]], axis=1)
        return kept_probability(seen, self._with_others(error, flux), self.table.filters, self.selection)

    def _with_others(self, error: Array, flux: Array) -> Array:
        """Errors in all filters: none in those that are not among the bands."""
        return jnp.concatenate([error, jnp.zeros_like(flux[:, self.num_bands :])], axis=1)


def joint_flux(surveys: tuple[ForwardModel, ...], theta: Float[Array, "num dim"]) -> tuple[Float[Array, "num _"], ...]:
    """Noise-free fluxes in all filters of each survey [maggies]."""
    return tuple(survey.flux(theta) for survey in surveys)


def joint_detection(
    surveys: tuple[ForwardModel, ...], fluxes: tuple[Float[Array, "num _"], ...]
) -> Float[Array, " num"]:
    """Probability that at least one of several surveys keeps each galaxy, if each looked at it independently.

    Args:
        fluxes: see `joint_flux`.
    """
    return any_of([survey.detection_of(flux) for survey, flux in zip(surveys, fluxes, strict=True)])


def any_of(probabilities: Sequence[Float[Array, " num"]]) -> Float[Array, " num"]:
    """Probability that at least one of independent events happens."""
    if len(probabilities) == 1:
        return probabilities[0]
    missed = jnp.ones_like(probabilities[0])
    for probability in probabilities:
        missed = missed * (1.0 - probability)
    return 1.0 - missed


def build_forward_model(
    filters: Sequence[str],
    noise: NoiseModel,
    *,
    selection: SelectionConfig | None = None,
    model: ModelConfig | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    emulator: Emulator | None = None,
    missing: MissingBands | None = None,
) -> ForwardModel:
    """Load templates and filters and tabulate the photometry (a few seconds).

    Args:
        filters: of the catalogue's bands, in order.
        noise: the survey's noise in those bands.
        selection: the survey's cuts.
        model: what a galaxy is made of.
        bounds: parameter bounds that differ from the model's own.
        emulator: takes the place of the tables.
        missing: which bands galaxies lack.

    Raises:
        ValueError: an emulator that was not trained for this model, these bounds or these filters; a selection that asks
            for errors where there are none.
    """
    selection = selection or SelectionConfig()
    selection.check(filters)
    galaxy = build_galaxy_model(model, bounds)
    extra = [name for name in selection.filters if name not in filters]
    table = _photometry(galaxy, [*filters, *extra], emulator)
    return ForwardModel(galaxy, table, noise, selection=selection, num_bands=len(filters), missing=missing)


def _photometry(galaxy: GalaxyModel, filters: Sequence[str], emulator: Emulator | None) -> Photometry:
    if emulator is None:
        return build_photometry_table(galaxy, filters)
    check_coverage(emulator.space, emulator.config, emulator.ssp_sha256, galaxy)
    if isinstance(emulator, PhotometryEmulator):
        return select_filters(emulator, filters)
    return build_spectrum_photometry(emulator, galaxy, filters)
