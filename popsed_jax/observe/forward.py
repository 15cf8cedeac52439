"""theta -> what the survey records: galaxy model, filters, noise and selection in one pytree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import flax.struct
import jax
from jaxtyping import Array, Float

from popsed_jax.observe.noise import NoiseModel
from popsed_jax.observe.photometry import PhotometryTable, build_photometry_table, flux
from popsed_jax.observe.selection import SelectionConfig, detection_probability
from popsed_jax.parameters import ParameterSpace
from popsed_jax.sps.config import ModelConfig
from popsed_jax.sps.galaxy import GalaxyModel, build_galaxy_model


@flax.struct.dataclass
class ForwardModel:
    """Galaxies as the survey sees them.

    Attributes:
        galaxy: theta to stars.
        table: photometry; the first `num_bands` filters are the catalogue's bands, the rest serve the selection.
        noise: the survey's noise, in the catalogue's bands.
    """

    galaxy: GalaxyModel
    table: PhotometryTable
    noise: NoiseModel
    selection: SelectionConfig = flax.struct.field(pytree_node=False)
    num_bands: int = flax.struct.field(pytree_node=False)

    @property
    def space(self) -> ParameterSpace:
        """The galaxy's parameters."""
        return self.galaxy.space

    def flux(self, theta: Float[Array, "num dim"]) -> Float[Array, "num filter"]:
        """Noise-free fluxes in all filters, the selection's too [maggies]."""
        return jax.vmap(lambda one: flux(self.table, self.galaxy, one))(theta)

    def derived(self, theta: Float[Array, "num dim"]) -> dict[str, Float[Array, " num"]]:
        """Derived properties by name."""
        return jax.vmap(self.galaxy.derived)(theta)

    def observe(
        self, key: Array, theta: Float[Array, "num dim"], noise_divisor: Float[Array, ""] | float = 1.0
    ) -> tuple[Float[Array, "num band"], Float[Array, "num band"]]:
        """Noisy fluxes and quoted errors in the catalogue's bands [maggies]."""
        return self.noise.observe(key, self.flux(theta)[:, : self.num_bands], noise_divisor)

    def detection(self, theta: Float[Array, "num dim"]) -> Float[Array, " num"]:
        """Probability that the survey keeps each galaxy."""
        return detection_probability(self.flux(theta), self.table.filters, self.selection)


def build_forward_model(
    filters: Sequence[str],
    noise: NoiseModel,
    *,
    selection: SelectionConfig | None = None,
    model: ModelConfig | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> ForwardModel:
    """Load templates and filters and tabulate the photometry (a few seconds).

    Args:
        filters: of the catalogue's bands, in order.
        noise: the survey's noise in those bands.
        selection: the survey's cuts.
        model: what a galaxy is made of.
        bounds: parameter bounds that differ from the model's own.
    """
    selection = selection or SelectionConfig()
    galaxy = build_galaxy_model(model, bounds)
    extra = [name for name in selection.filters if name not in filters]
    table = build_photometry_table(galaxy, [*filters, *extra])
    return ForwardModel(galaxy, table, noise, selection=selection, num_bands=len(filters))
