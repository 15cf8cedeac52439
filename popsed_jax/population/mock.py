"""Mock catalogues with known truth, drawn from a population that no flow or reference here describes exactly."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.observe.forward import ForwardModel
from popsed_jax.population.batching import map_batches
from popsed_jax.population.reference import HYPER_NAMES, ReferenceConfig, build_library, draw_hyper, sample_reference


@dataclasses.dataclass(frozen=True)
class MockConfig:
    """How the truth differs from the reference population at its central values.

    The defaults shift each relation by about what the literature's scatter allows, and add correlations that the
    reference does not have.

    Args:
        shifts: added to the reference's hyper-parameters, by name.
        age_mass: older histories in more massive galaxies: kappa1 falls by this per dex of mass.
        dust_inclination: strength of a long tail of dusty, edge-on discs among star-forming galaxies.
        index_dust: flatter attenuation curves in dustier galaxies (Salim+18, fig. 9): slope of dust_index in log tau_v.
        zero_points: of the bands, by name [mag]: the survey's magnitudes are too faint by so much.
        floor: fractional scatter of every flux that the quoted errors leave out, on top of the noise model's own.
    """

    shifts: dict[str, float] = dataclasses.field(
        default_factory=lambda: {
            "log_mstar": 0.08,
            "alpha1": -0.07,
            "density_evolution": 0.5,
            "quiescent_mass": 0.10,
            "main_sequence_offset": 0.12,
            "main_sequence_slope": 0.05,
            "metallicity_offset": -0.08,
            "dust_star_forming": 0.06,
        }
    )
    age_mass: float = 0.10
    dust_inclination: float = 0.5
    index_dust: float = 0.3
    zero_points: dict[str, float] = dataclasses.field(default_factory=dict)
    floor: float = 0.0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.shifts) - set(HYPER_NAMES))
        if unknown:
            raise ValueError(f"mock: shifts of {', '.join(unknown)}, which are not among {', '.join(HYPER_NAMES)}")
        if not 0.0 <= self.floor < 1.0:
            raise ValueError(f"mock: floor = {self.floor} is a fraction of the flux, between 0 and 1")


class MockSurvey(NamedTuple):
    """A survey of known truth.

    Attributes:
        theta: galaxies that the survey keeps.
        flux, error: what it records of them [maggies].
        intrinsic: all galaxies that were there to be kept, complete down to `margin` below the survey's limits.
    """

    theta: Float[np.ndarray, "num dim"]
    flux: Float[np.ndarray, "num band"]
    error: Float[np.ndarray, "num band"]
    intrinsic: Float[np.ndarray, "all dim"]


def simulate_mock(
    key: Array,
    forward: ForwardModel,
    config: MockConfig,
    reference: ReferenceConfig,
    num: int,
    bands: tuple[str, ...] = (),
    margin: float = 1.0,
) -> MockSurvey:
    """Draw galaxies of the mock's truth, observe them, and keep those that pass the survey's cuts.

    Args:
        num: how many galaxies the survey keeps.
        bands: names of the catalogue's bands, for the zero points.
        margin: how much fainter than the survey's limits the galaxies go that it may or may not keep [mag]. What the
            correlations and the noise move by more than this is missing.

    Raises:
        ValueError: the selection keeps next to nothing; zero points of bands that are not there.
    """
    unknown = sorted(set(config.zero_points) - set(bands))
    if unknown:
        raise ValueError(f"mock: zero points of {', '.join(unknown)}, which are not among the bands {', '.join(bands)}")
    keys = jax.random.split(key)
    hyper = draw_hyper(None, reference)
    hyper |= {name: hyper[name] + shift for name, shift in config.shifts.items()}
    library = build_library(keys[0], forward, reference)
    deep = dataclasses.replace(forward, selection=forward.selection.deeper(margin))
    scale = 10.0 ** (
        -0.4 * jnp.array([config.zero_points.get(name, 0.0) for name in bands] or [0.0] * forward.num_bands)
    )
    noise = dataclasses.replace(forward.noise, floor=jnp.hypot(forward.noise.floor, config.floor))
    survey = dataclasses.replace(forward, noise=noise)
    parts: list[tuple[np.ndarray, ...]] = []
    kept, batch = 0, max(2 * num, 2000)
    for attempt in range(40):
        each = jax.random.split(jax.random.fold_in(keys[1], attempt), 4)
        theta = _correlate(each[1], deep, config, sample_reference(each[0], (deep,), hyper, library, batch))
        flux = jnp.asarray(map_batches(ForwardModel.flux, survey, theta))
        observed, error = survey.noise.observe(each[2], flux[:, : survey.num_bands] * scale)
        keep = jax.random.uniform(each[3], (batch,)) < survey.kept(flux, observed, error)
        parts.append(tuple(np.asarray(array) for array in (theta, observed, error, keep)))
        kept += int(keep.sum())
        if kept >= num:
            break
    if kept < num:
        raise ValueError(f"the selection keeps only {kept} of {len(parts) * batch} galaxies of the mock's truth")
    everything, fluxes, errors, passed = (np.concatenate(part) for part in zip(*parts, strict=True))
    found = np.flatnonzero(passed)[:num]
    # Up to the last galaxy kept: as many as there are for `num` detections.
    return MockSurvey(everything[found], fluxes[found], errors[found], everything[: found[-1] + 1])


def _correlate(key: Array, forward: ForwardModel, config: MockConfig, theta: Float[Array, "num dim"]) -> Array:
    """Correlations between mass, age and dust that the reference draws independently."""
    space = forward.space

    def get(name: str) -> Array:
        return theta[:, space.index(name)]

    def put(theta: Array, name: str, value: Array) -> Array:
        width = space[name].high - space[name].low
        clipped = jnp.clip(value, space[name].low + 1e-3 * width, space[name].high - 1e-3 * width)
        return theta.at[:, space.index(name)].set(clipped)

    tau_v = get("tau_v")
    star_forming = jax.nn.sigmoid((jax.jit(ForwardModel.derived)(forward, theta)["log_ssfr"] + 11.0) / 0.2)
    edge_on = jax.random.exponential(key, tau_v.shape) - 1.0
    dusty = tau_v * (1.0 + config.dust_inclination * star_forming * jnp.maximum(edge_on, -0.6))
    new = put(theta, "tau_v", dusty)
    new = put(new, "dust_index", get("dust_index") + config.index_dust * jnp.log10(jnp.maximum(dusty, 0.02) / 0.3))
    if "kappa1" in space.names:
        new = put(new, "kappa1", get("kappa1") - config.age_mass * (get("log_mass") - 10.8))
    return new
