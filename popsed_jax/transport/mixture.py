"""One interface to the distances between clouds: a mixture whose parts can change while training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from popsed_jax.transport._clouds import as_clouds, check_blur, check_power
from popsed_jax.transport.energy import sinkhorn_energy, sliced_energy
from popsed_jax.transport.sinkhorn import sinkhorn_divergence
from popsed_jax.transport.sliced import sliced_wasserstein


@dataclass(frozen=True)
class TransportConfig:
    """Static settings of the distances: changing one compiles again.

    Attributes:
        power: ground cost |x - y|^power / power, 1 or 2, for both distances.
        num_projections: directions of the sliced distance.
        orthogonal: draw directions in orthonormal sets.
        debias: compare halves (`sliced_energy`, `sinkhorn_energy`), so that the expected minimum is not too narrow a model.
        sinkhorn_block: points of the Sinkhorn divergence; of larger clouds it is the mean over parts of so many, so that time
            grows in proportion to the points and memory not at all.
        num_scales: annealing steps of the Sinkhorn divergence.
        num_final: its steps at the target epsilon.
        num_sweeps: its sweeps in each step.

    Raises:
        ValueError: power not 1 or 2, or a count below 1.
    """

    power: int = 2
    num_projections: int = 100
    orthogonal: bool = True
    debias: bool = True
    sinkhorn_block: int = 4096
    num_scales: int = 8
    num_final: int = 2
    num_sweeps: int = 8

    def __post_init__(self) -> None:
        """Check every setting."""
        check_power(self.power)
        for name in ("num_projections", "num_scales", "num_final", "num_sweeps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.sinkhorn_block < 4:
            raise ValueError(f"sinkhorn_block must be >= 4, got {self.sinkhorn_block}")


class TransportMix(NamedTuple):
    """How much of each distance enters the cost; either may be a traced value.

    Attributes:
        sliced: factor of the sliced Wasserstein distance, >= 0.
        sinkhorn: factor of the Sinkhorn divergence, >= 0.
    """

    sliced: Float[Array, ""] | float = 1.0
    sinkhorn: Float[Array, ""] | float = 0.0


class TransportTerms(NamedTuple):
    """The distances themselves, before mixing; zero where a factor of zero skipped one."""

    sliced: Float[Array, ""]
    sinkhorn: Float[Array, ""]


class Clouds(NamedTuple):
    """Two clouds and the masses of their points."""

    x: Float[Array, "*part sample_x dim"]
    y: Float[Array, "*part sample_y dim"]
    weights_x: Float[Array, "*part sample_x"] | None
    weights_y: Float[Array, "*part sample_y"] | None

    def parts(self, block: int) -> "Clouds":
        """Consecutive parts of about `block` points, along a new leading axis; a smaller cloud is in each as a whole.

        A remainder of the larger ones is left out.
        """
        num = -(-max(len(self.x), len(self.y)) // block)

        def cut(array: Array) -> Array:
            if len(array) <= block:
                return jnp.broadcast_to(array, (num, *array.shape))
            size = len(array) // num
            return array[: num * size].reshape(num, size, *array.shape[1:])

        return jax.tree.map(cut, self)


def transport_cost(
    key: Key[Array, ""],
    x: Float[Array, "sample_x dim"],
    y: Float[Array, "sample_y dim"],
    *,
    blur: Float[Array, ""] | float,
    mix: TransportMix = TransportMix(),  # noqa: B008 (an immutable tuple)
    config: TransportConfig = TransportConfig(),
    weights_x: Float[Array, " sample_x"] | None = None,
    weights_y: Float[Array, " sample_y"] | None = None,
) -> tuple[Float[Array, ""], TransportTerms]:
    """The mixed distance between model and data clouds, the loss of population training.

    A factor of exactly zero skips that distance: at compile time if it is a Python number, at run time (`lax.cond`) if
    it is traced. Under `vmap` over ensemble members this still holds, provided the factors are not mapped over. So one
    compiled epoch serves a schedule that begins sliced and ends with Sinkhorn.

    Args:
        key: random key for the directions.
        x: model points, standardised.
        y: data points, standardised alike.
        blur: Sinkhorn's blur > 0, in the units of the points; may be traced; unused where its factor is zero.
        mix: factors of the two distances.
        config: static settings.
        weights_x: masses of the model points, such as detection probabilities; None for equal masses.
        weights_y: masses of the data points.

    Returns:
        mix.sliced * sliced + mix.sinkhorn * sinkhorn, and the two terms (`jax.value_and_grad(..., has_aux=True)`).

    Raises:
        ValueError: as the distances; or, outside traced code, a factor that is negative or both zero.
    """
    x, y = as_clouds(x, y)
    check_blur(blur)
    _check_mix(mix)

    def sliced() -> Float[Array, ""]:
        return (sliced_energy if config.debias else sliced_wasserstein)(
            key,
            x,
            y,
            num_projections=config.num_projections,
            weights_x=weights_x,
            weights_y=weights_y,
            power=config.power,
            orthogonal=config.orthogonal,
        )

    def sinkhorn() -> Float[Array, ""]:
        def between(part: Clouds) -> Float[Array, ""]:
            return (sinkhorn_energy if config.debias else sinkhorn_divergence)(
                part.x,
                part.y,
                blur,
                weights_x=part.weights_x,
                weights_y=part.weights_y,
                power=config.power,
                num_scales=config.num_scales,
                num_final=config.num_final,
                num_sweeps=config.num_sweeps,
            )

        clouds = Clouds(x, y, weights_x, weights_y)
        if max(len(x), len(y)) <= config.sinkhorn_block:
            return between(clouds)
        return jnp.mean(lax.map(jax.checkpoint(between), clouds.parts(config.sinkhorn_block)))

    zero = jnp.zeros((), x.dtype)
    terms = TransportTerms(_unless_zero(mix.sliced, sliced, zero), _unless_zero(mix.sinkhorn, sinkhorn, zero))
    factors = (jnp.asarray(factor, x.dtype) for factor in mix)
    return sum((factor * term for factor, term in zip(factors, terms, strict=True)), zero), terms


def _is_traced(value: object) -> bool:
    return isinstance(value, jax.core.Tracer)


def _check_mix(mix: TransportMix) -> None:
    if any(not _is_traced(factor) and not factor >= 0 for factor in mix):
        raise ValueError(f"factors of a mixture must not be negative, got {mix}")
    if all(not _is_traced(factor) and factor == 0 for factor in mix):
        raise ValueError("a mixture needs a factor above zero")


def _unless_zero(
    factor: Float[Array, ""] | float, term: Callable[[], Float[Array, ""]], zero: Float[Array, ""]
) -> Float[Array, ""]:
    if not _is_traced(factor):
        return term() if factor > 0 else zero
    return lax.cond(factor != 0, term, lambda: zero)
