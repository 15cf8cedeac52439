"""Mock catalogues with known truth, drawn from a population that no flow or reference here describes exactly."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from popsed_jax.observe.forward import ForwardModel
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

    def __post_init__(self) -> None:
        unknown = sorted(set(self.shifts) - set(HYPER_NAMES))
        if unknown:
            raise ValueError(f"mock: shifts of {', '.join(unknown)}, which are not among {', '.join(HYPER_NAMES)}")


def sample_truth(
    key: Array, forward: ForwardModel, config: MockConfig, reference: ReferenceConfig, num: int
) -> Float[Array, "num dim"]:
    """Galaxies of the mock's truth that the survey detects.

    Raises:
        ValueError: the selection keeps next to nothing.
    """
    keys = jax.random.split(key, 5)
    hyper = draw_hyper(None, reference)
    hyper |= {name: hyper[name] + shift for name, shift in config.shifts.items()}
    library = build_library(keys[0], forward, reference)
    # More than wanted: the correlations below change fluxes, so the survey looks again.
    theta = sample_reference(keys[1], forward, hyper, library, 2 * num)
    theta = _correlate(keys[2], forward, config, theta)
    probability = jnp.minimum(jax.jit(ForwardModel.detection)(forward, theta), 1.0)
    keep = jax.random.uniform(keys[3], (len(theta),)) < probability
    if int(keep.sum()) < num:
        raise ValueError(f"the selection keeps only {int(keep.sum())} of {len(theta)} galaxies of the mock's truth")
    return theta[jnp.flatnonzero(keep)[:num]]


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
