"""What stands between a model's fluxes and a survey's: zero points, the error of templates, noise that is not quoted.

All are learned with the population, each under a prior that says how far off it may be. One band is pinned: of the zero
point that all share, and of every galaxy's mass, the data see the sum alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.observe.filters import load_filter
from popsed_jax.observe.noise import NoiseModel

# Rest-frame wavelengths between which templates are allowed to be wrong [Angstrom]; knots evenly in their logarithm.
_TEMPLATE_RANGE = (1000.0, 30_000.0)


@dataclasses.dataclass(frozen=True)
class CalibrationConfig:
    """How far off calibration and templates may be: prior widths, 0 where nothing is learned.

    Args:
        offset_sigma: of each band's zero point [mag] (0.02 to 0.05 in photometric-redshift work: Ilbert+06, Brammer+08).
        offset_sigmas: by band, where it differs from that.
        offset_means: by band, what the zero point is thought to be off by, model plus offset = data [mag]: published, or
            measured from galaxies of known redshift (`popsed_jax.population.zero_points`); 0 where not given.
        pinned: the band whose zero point stays; the best-measured one unless given.
        template_sigma: of the templates' error at each knot of a smooth function of rest-frame wavelength [mag] (a template
            error function as in EAZY: Brammer+08).
        template_knots: knots of that function between 1,000 and 30,000 Angstrom.
        template_means: what it is thought to be at each knot [mag], model plus error = data; 0 where none are given.
        floor_sigma: of the fractional noise that quoted errors leave out [dex about `noise.floor`].
    """

    offset_sigma: float = 0.03
    offset_sigmas: dict[str, float] = dataclasses.field(default_factory=dict)
    offset_means: dict[str, float] = dataclasses.field(default_factory=dict)
    pinned: str | None = None
    template_sigma: float = 0.0
    template_knots: int = 12
    template_means: tuple[float, ...] = ()
    floor_sigma: float = 0.0

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        widths = {name: getattr(self, name) for name in ("offset_sigma", "template_sigma", "floor_sigma")}
        widths |= {f"offset_sigmas.{band}": sigma for band, sigma in self.offset_sigmas.items()}
        for name, value in widths.items():
            if not (np.isfinite(value) and value >= 0.0):
                raise ValueError(f"calibration: {name} = {value} must not be negative")
        for band, mean in self.offset_means.items():
            if not np.isfinite(mean):
                raise ValueError(f"calibration: offset_means.{band} = {mean} must be a finite number of magnitudes")
        if self.template_knots < 2:
            raise ValueError(f"calibration: template_knots = {self.template_knots} must be at least 2")
        if self.template_means and len(self.template_means) != self.template_knots:
            raise ValueError(
                f"calibration: template_means has {len(self.template_means)} numbers for {self.template_knots} template_knots"
            )
        if not np.isfinite(self.template_means).all():
            raise ValueError("calibration: template_means must be finite numbers of magnitudes")


class Calibration(NamedTuple):
    """What is learned, each from its prior mean on and over its prior width."""

    offset: Float[Array, "*member band"]
    template: Float[Array, "*member knot"]
    floor: Float[Array, "*member band"]


@flax.struct.dataclass
class CalibrationModel:
    """From calibration to fluxes.

    Attributes:
        wave: effective wavelengths of the bands [Angstrom].
        knots: ln of the rest-frame wavelengths of the template error's knots.
        offset_mean: prior mean of each band's zero point [mag].
        offset_sigma: its prior width [mag]; 0 for the pinned one.
        template_mean: prior mean of the template error at each knot [mag].
        template_sigma: its prior width [mag].
        floor_sigma: prior width of log10 of the noise that is not quoted [dex].
    """

    wave: Float[Array, " band"]
    knots: Float[Array, " knot"]
    offset_mean: Float[Array, " band"]
    offset_sigma: Float[Array, " band"]
    template_mean: Float[Array, " knot"]
    template_sigma: Float[Array, ""]
    floor_sigma: Float[Array, ""]

    def start(self, num_members: int) -> Calibration:
        """The prior's mean, for each member."""
        bands, knots = jnp.zeros((num_members, len(self.wave))), jnp.zeros((num_members, len(self.knots)))
        return Calibration(bands, knots, bands)

    def offsets(self, calibration: Calibration) -> Float[Array, "*member band"]:
        """Zero points: model plus offset = data [mag]."""
        return self.offset_mean + self.offset_sigma * calibration.offset

    def template_error(
        self, template: Float[Array, "*galaxy knot"], wave: Float[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """Error of the templates at rest-frame wavelengths [Angstrom]: model plus error = data [mag]."""
        at_knots = self.template_mean + self.template_sigma * template
        return jnp.sum(self.knot_shares(wave) * at_knots[..., None, :], axis=-1)

    def knot_shares(self, wave: Float[Array, "*batch"]) -> Float[Array, "*batch knot"]:
        """Shares of the knots in the template error at rest-frame wavelengths [Angstrom].

        Gaussians at the knots, as wide as the knots are apart, over their sum: smooth, and constant where the knots are.
        """
        share = jnp.exp(-0.5 * ((jnp.log(wave)[..., None] - self.knots) / (self.knots[1] - self.knots[0])) ** 2)
        return share / jnp.sum(share, axis=-1, keepdims=True)

    def factors(self, calibration: Calibration, redshift: Float[Array, " num"]) -> Float[Array, "num band"]:
        """Factors from the model's fluxes in the bands to the survey's."""
        mags = self.offsets(calibration) + self.template_error(
            calibration.template, self.wave / (1.0 + redshift[:, None])
        )
        return 10.0 ** (-0.4 * mags)

    def noise(self, calibration: Calibration, noise: NoiseModel) -> NoiseModel:
        """The noise with its learned floors."""
        return dataclasses.replace(noise, floor=noise.floor * 10.0 ** (self.floor_sigma * calibration.floor))

    def penalty(self, calibration: Calibration) -> Float[Array, ""]:
        """Minus log of the prior, up to a constant."""
        return 0.5 * sum((jnp.sum(part**2) for part in calibration), jnp.zeros(()))


def build_calibration(
    config: CalibrationConfig, bands: Sequence[str], filters: Sequence[str], best: str
) -> CalibrationModel:
    """Widths by band, with one pinned.

    Args:
        bands, filters: of the catalogue.
        best: the best-measured band, pinned unless `config` says which.

    Raises:
        ValueError: a band that the catalogue does not have.
    """
    pinned = config.pinned or best
    for name in (pinned, *config.offset_sigmas, *config.offset_means):
        if name not in bands:
            raise ValueError(f"calibration: the catalogue has no band {name!r}; it has {', '.join(bands)}")
    sigma = [0.0 if band == pinned else config.offset_sigmas.get(band, config.offset_sigma) for band in bands]
    return CalibrationModel(
        wave=jnp.array([load_filter(name).effective_wave for name in filters]),
        knots=jnp.asarray(np.log(np.geomspace(*_TEMPLATE_RANGE, config.template_knots))),
        offset_mean=jnp.array([config.offset_means.get(band, 0.0) for band in bands]),
        offset_sigma=jnp.array(sigma),
        template_mean=jnp.array(config.template_means or (0.0,) * config.template_knots),
        template_sigma=jnp.asarray(config.template_sigma),
        floor_sigma=jnp.asarray(config.floor_sigma),
    )
