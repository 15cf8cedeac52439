"""Mock images with known truth: galaxies of the reference population as a survey detects them, and two rare kinds among them.

The rare kinds are what a search for anomalies is tried on. Compact starbursts are small galaxies of low mass that form a good
part of their stars now, whose strong lines colour them (green peas: Cardamone+09, arXiv:0907.4155). Red spirals have the discs
of spirals and the colours of old stars, seen not far from face-on: neither dust nor a bulge explains their colour, and they are
no recent post-starbursts (Masters+10, arXiv:0910.4113). Ordinary discs that dust makes as red are not of the class: they are what
a search for it must not take.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from popsed_jax.observe.filters import load_filter
from popsed_jax.observe.forward import ForwardModel, build_forward_model
from popsed_jax.observe.images import ImageConfig, ImageSimulator, Shape, build_image_simulator, split_flux
from popsed_jax.observe.noise import fit_noise_model
from popsed_jax.observe.operators import LSUN_PER_HZ_AT_10PC, band_weights
from popsed_jax.observe.selection import MagnitudeLimit, SelectionConfig
from popsed_jax.population.batching import map_batches
from popsed_jax.population.morphology import MorphologyConfig, Types, arcsec_per_kpc, sample_shapes, spheroid_ratio
from popsed_jax.population.reference import Library, ReferenceConfig, build_library, draw_hyper, sample_reference
from popsed_jax.sps.galaxy import GalaxyModel

KINDS = ("ordinary", "compact starburst", "red spiral")
_AT_ONCE = 256  # images
# Of red spirals: all quiescent, whatever their mass, and long so.
_RED = {"quiescent_mass": 6.0, "quiescent_ssfr": -12.3, "quiescent_scatter": 0.2}


@dataclasses.dataclass(frozen=True)
class ImageMockConfig:
    """The survey and its galaxies.

    Args:
        filters: of the images' bands.
        reference: number of the band in which the survey is limited, and bulges have their share.
        limit: faintest galaxies in that band [AB mag].
        redshift: range.
        anomalies: share of each rare kind among all galaxies.
        starburst_redshift: range of compact starbursts (Cardamone+09: those whose [OIII] lies in the r band).
        starburst_log_mass: range of the log10 of the mass they formed [Msun].
        starburst_burst: range of the share of it that formed in the last few Myr.
        starburst_radius: range of their half-light radius [kpc].
        spiral_log_mass: range of the log10 of red spirals' mass in living stars [Msun].
        spiral_color: red spirals are at least as red at rest: g - r in SDSS's bands at M_r = -20, and its slope in M_r, the blue
            edge of the red sequence (Masters+10, sec. 2). Of galaxies that merely form no stars now, one in twenty is bluer.
        spiral_bulge: largest share of a red spiral's light in its bulge.
        spiral_cos: least cosine of its inclination.
        images: how the survey takes images.
        morphology: shapes of the ordinary galaxies.
        galaxies: the reference population.
    """

    filters: tuple[str, ...] = ("decam_g", "decam_r", "decam_z")
    reference: int = 1
    limit: float = 19.0
    redshift: tuple[float, float] = (0.02, 0.4)
    anomalies: float = 0.01
    starburst_redshift: tuple[float, float] = (0.11, 0.36)
    starburst_log_mass: tuple[float, float] = (8.3, 9.6)
    starburst_burst: tuple[float, float] = (0.05, 0.2)
    starburst_radius: tuple[float, float] = (0.3, 1.2)
    spiral_log_mass: tuple[float, float] = (10.3, 11.3)
    spiral_color: tuple[float, float] = (0.63, -0.02)
    spiral_bulge: float = 0.12
    spiral_cos: float = 0.6
    images: ImageConfig = dataclasses.field(default_factory=ImageConfig)
    morphology: MorphologyConfig = dataclasses.field(default_factory=MorphologyConfig)
    galaxies: ReferenceConfig = dataclasses.field(default_factory=lambda: ReferenceConfig(num_histories=10_000))

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if len(self.filters) != self.images.num_bands:
            raise ValueError(
                f"images: {len(self.filters)} filters, but {self.images.num_bands} bands have a PSF and noise"
            )
        if not 0 <= self.reference < len(self.filters):
            raise ValueError(f"images: reference = {self.reference} is no band's number (0 to {len(self.filters) - 1})")
        if not 0.0 <= self.anomalies < 0.5:
            raise ValueError(f"images: anomalies = {self.anomalies} of each kind must be at least 0 and below 0.5")
        for name in ("redshift", "starburst_redshift", "starburst_log_mass", "starburst_burst", "starburst_radius"):
            low, high = getattr(self, name)
            if not low < high:
                raise ValueError(f"images: {name} = {(low, high)} must rise")
        if self.galaxies.kind != "physical":
            raise ValueError("images: a flat reference has no types; take kind = 'physical'")


class ImageMocks(NamedTuple):
    """Images and truth.

    Attributes:
        image: with noise [maggies per pixel].
        kind: number in `KINDS`.
        truth: by name: orientation [rad], redshift, log_mass (in living stars) [log10 Msun], log_sfr [log10 Msun/yr], bulge
            (share of the light in the reference band), radius (of the component with more light) [arcsec], axis_ratio (its).
        flux: in each band [maggies].
        shape: of each galaxy.
        theta: parameters of the forward model.
    """

    image: Float[np.ndarray, "galaxy row column band"]
    kind: Int[np.ndarray, " galaxy"]
    truth: dict[str, Float[np.ndarray, " galaxy"]]
    flux: Float[np.ndarray, "galaxy band"]
    shape: Shape
    theta: Float[np.ndarray, "galaxy dim"]


def build_image_survey(config: ImageMockConfig) -> ForwardModel:
    """The forward model of a survey's total fluxes: its bands, its limit, next to no noise."""
    flux = np.repeat(np.logspace(-11.0, -6.0, 400)[:, None], len(config.filters), axis=1)
    limit = MagnitudeLimit(config.filters[config.reference], config.limit)
    noise = fit_noise_model(flux, np.hypot(1e-11, 0.01 * flux))
    bounds = {"redshift": config.redshift}
    return build_forward_model(config.filters, noise, selection=SelectionConfig((limit,)), bounds=bounds)


def simulate_image_mocks(
    key: Array, forward: ForwardModel, num: int, config: ImageMockConfig, simulator: ImageSimulator | None = None
) -> ImageMocks:
    """Draw so many galaxies that the survey keeps, of all kinds in random order, and take their images.

    Args:
        forward: as `build_image_survey` makes it for this configuration.

    Raises:
        ValueError: the survey keeps next to none of some kind.
    """
    keys = jax.random.split(key, 6)
    rare = round(config.anomalies * num)
    library = build_library(keys[0], forward, config.galaxies)
    parts = [_ordinary(keys[1], forward, library, num - 2 * rare, config)]
    if rare:
        parts += [_starbursts(keys[2], forward, rare, config), _red_spirals(keys[3], forward, library, rare, config)]
    theta, shape, bulge = jax.tree.map(lambda *each: np.concatenate(each), *parts)
    kind = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    order = np.asarray(jax.random.permutation(keys[4], num))
    theta, shape, bulge, kind = jax.tree.map(lambda array: array[order], (theta, shape, bulge, kind))
    flux, old = (map_batches(ForwardModel.flux, forward, each) for each in (theta, old_population(forward, theta)))
    simulator = simulator or build_image_simulator(config.images)
    by_band = partial(split_flux, reference=config.reference)
    split = jax.vmap(by_band)(jnp.asarray(flux), jnp.asarray(old), jnp.asarray(bulge))
    seeds = np.asarray(jax.random.bits(keys[5], (num,)))
    image = map_batches(_take, simulator, (seeds, np.asarray(split), tuple(shape)), _AT_ONCE)
    return ImageMocks(image, kind, _truth(forward, theta, shape, bulge), flux, shape, theta)


def old_population(forward: ForwardModel, theta: Float[np.ndarray, "galaxy dim"]) -> Float[np.ndarray, "galaxy dim"]:
    """The same galaxies, had they formed all their stars first of all and lost their dust: what a bulge is made of.

    Raises:
        ValueError: another history than the bases.
    """
    if "kappa1" not in forward.space.names:
        raise ValueError(f'images: bulges need the history sfh = "bases", not {forward.galaxy.config.sfh!r}')
    old = np.array(theta)
    for name, value in {"kappa1": 1e-3, "f_burst": 0.0, "tau_v": 0.05, "tau_birth": 0.05}.items():
        old[:, forward.space.index(name)] = value
    return old


def types_of(forward: ForwardModel, theta: Float[np.ndarray, "galaxy dim"]) -> Types:
    """What the galaxies' shapes depend on."""
    derived = map_batches(ForwardModel.derived, forward, theta)
    columns = (derived["log_mass_surviving"], derived["log_ssfr"])
    columns += tuple(theta[:, forward.space.index(name)] for name in ("tau_v", "redshift"))
    return Types(*map(jnp.asarray, columns))


def rest_magnitudes(
    forward: ForwardModel, theta: Float[np.ndarray, "galaxy dim"], filters: tuple[str, ...] = ("sdss_g0", "sdss_r0")
) -> Float[np.ndarray, "galaxy filter"]:
    """Absolute AB magnitudes in the galaxies' rest frame."""
    wave = np.asarray(forward.galaxy.ssp.wave, float)
    # The polynomials through any nodes add up to one: the whole filter.
    weights = [band_weights(wave, each, each.wave[[0, -1]], 0.0).sum(axis=0) for each in map(load_filter, filters)]
    model = forward.galaxy, jnp.asarray(np.stack(weights) * LSUN_PER_HZ_AT_10PC)
    return -2.5 * np.log10(map_batches(_rest_flux, model, theta, _AT_ONCE))


def is_red(
    forward: ForwardModel, theta: Float[np.ndarray, "galaxy dim"], config: ImageMockConfig
) -> Bool[np.ndarray, " galaxy"]:
    """Whether galaxies are as red at rest as red spirals must be."""
    if len(theta) == 0:
        return np.zeros(0, bool)
    g, r = rest_magnitudes(forward, theta).T
    at, slope = config.spiral_color
    return g - r > at + slope * (r + 20.0)


def _rest_flux(model: tuple[GalaxyModel, Array], theta: Float[Array, "galaxy dim"]) -> Float[Array, "galaxy filter"]:
    galaxy, weights = model
    return jax.vmap(galaxy.spectrum)(theta) @ weights.T


_Part = tuple[np.ndarray, Shape, np.ndarray]  # theta, shapes, bulges' shares


def _ordinary(key: Array, forward: ForwardModel, library: Library, num: int, config: ImageMockConfig) -> _Part:
    keys = jax.random.split(key)
    theta = np.asarray(sample_reference(keys[0], (forward,), draw_hyper(None, config.galaxies), library, num))
    return theta, *_shaped(keys[1], forward, theta, config)


def _starbursts(key: Array, forward: ForwardModel, num: int, config: ImageMockConfig) -> _Part:
    """Drawn in bounds, in comoving volume, and kept with the survey's probability."""
    keys = jax.random.split(key, 3)
    space, cosmology, rng = forward.space, forward.galaxy.cosmology, _generator(keys[0])
    low, high = np.clip(config.starburst_redshift, space["redshift"].low, space["redshift"].high)
    grid = np.linspace(low, high, 200)
    volume = np.cumsum(np.asarray(cosmology.differential_volume(jnp.asarray(grid))))
    kept: list[np.ndarray] = []
    for attempt in range(20):
        batch = max(20 * num, 4000)
        theta = np.array(space.sample_flat(jax.random.fold_in(keys[1], attempt), batch))
        columns = {
            "redshift": np.interp(rng.uniform(volume[0], volume[-1], batch), volume, grid),
            "log_mass": rng.uniform(*config.starburst_log_mass, batch),
            "f_burst": rng.uniform(*config.starburst_burst, batch),
            # Young enough to light up lines: younger than the bounds, and than any burst of an ordinary galaxy.
            "t_burst": rng.uniform(0.003, 0.006, batch),
            # About a quarter of the Sun's, and E(B - V) up to 0.15 (Amorin+10, arXiv:1004.4910; Cardamone+09).
            "logzsol": rng.normal(-0.6, 0.15, batch),
            "tau_v": rng.uniform(0.0, 0.3, batch),
            "tau_birth": rng.uniform(0.0, 0.3, batch),
        }
        for name, values in columns.items():
            theta[:, space.index(name)] = values
        kept.append(theta[rng.random(batch) < map_batches(ForwardModel.detection, forward, theta)])
        if sum(map(len, kept)) >= num:
            break
    theta = _enough(kept, num, KINDS[1])
    shape, bulge = _shaped(keys[2], forward, theta, config)
    low, high = np.log(config.starburst_radius)
    kpc = np.exp(rng.uniform(low, high, num))
    arcsec = kpc * np.asarray(arcsec_per_kpc(jnp.asarray(theta[:, space.index("redshift")]), cosmology))
    return theta, shape._replace(radius=np.repeat(arcsec[:, None], 2, axis=1)), np.zeros_like(bulge)


def _red_spirals(key: Array, forward: ForwardModel, library: Library, num: int, config: ImageMockConfig) -> _Part:
    """Quiescent galaxies of the reference population, in the discs of late types."""
    keys = jax.random.split(key, 12)
    rng = _generator(keys[0])
    hyper, kept = draw_hyper(None, config.galaxies) | _RED, []
    for attempt in range(10):
        theta = np.asarray(sample_reference(keys[2 + attempt], (forward,), hyper, library, 3 * num))
        mass = np.asarray(types_of(forward, theta).log_mass)
        theta = theta[(mass > config.spiral_log_mass[0]) & (mass < config.spiral_log_mass[1])]
        kept.append(theta[is_red(forward, theta, config)])
        if sum(map(len, kept)) >= num:
            break
    theta = _enough(kept, num, KINDS[2])
    # Their shapes are those of star-forming galaxies of their mass.
    types = types_of(forward, theta)._replace(log_ssfr=jnp.full(num, config.morphology.active))
    shape, _ = sample_shapes(keys[1], types, config.morphology, forward.galaxy.cosmology)
    cos = rng.uniform(config.spiral_cos, 1.0, num)
    ratio = np.asarray(shape.axis_ratio).copy()
    ratio[:, 1] = np.asarray(spheroid_ratio(jnp.asarray(cos), config.morphology.thickness))
    shape = Shape(*map(np.asarray, shape))._replace(axis_ratio=np.maximum(ratio, ratio[:, 1:]))
    return theta, shape, rng.uniform(0.0, config.spiral_bulge, num)


def _shaped(key: Array, forward: ForwardModel, theta: np.ndarray, config: ImageMockConfig) -> tuple[Shape, np.ndarray]:
    types = types_of(forward, theta)
    shape, bulge = sample_shapes(key, types, config.morphology, forward.galaxy.cosmology)
    return Shape(*map(np.asarray, shape)), np.asarray(bulge)


def _generator(key: Array) -> np.random.Generator:
    return np.random.default_rng(int(jax.random.bits(key)))


def _enough(kept: list[np.ndarray], num: int, kind: str) -> np.ndarray:
    """The first of what was kept. Raises ValueError when that is too little."""
    theta = np.concatenate(kept)
    if len(theta) < num:
        raise ValueError(
            f"images: the survey keeps {len(theta)} of {num} galaxies of kind {kind!r}: a fainter limit would"
        )
    return theta[:num]


def _truth(forward: ForwardModel, theta: np.ndarray, shape: Shape, bulge: np.ndarray) -> dict[str, np.ndarray]:
    derived = map_batches(ForwardModel.derived, forward, theta)
    larger, row = (bulge < 0.5).astype(int), np.arange(len(theta))
    return {
        "orientation": np.asarray(shape.orientation),
        "redshift": theta[:, forward.space.index("redshift")],
        "log_mass": derived["log_mass_surviving"],
        "log_sfr": derived["log_sfr"],
        "bulge": bulge,
        "radius": np.asarray(shape.radius)[row, larger],
        "axis_ratio": np.asarray(shape.axis_ratio)[row, larger],
    }


def _take(simulator: ImageSimulator, galaxies: tuple[Array, Array, tuple[Array, ...]]) -> Float[Array, "galaxy _ _ _"]:
    """Images with noise."""

    def one(each: tuple[Array, Array, tuple[Array, ...]]) -> Array:
        seed, flux, shape = each
        return simulator.observe(jax.random.key(seed), simulator.image(flux, Shape(*shape)))

    return jax.lax.map(one, galaxies, batch_size=16)
