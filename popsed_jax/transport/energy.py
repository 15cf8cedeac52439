"""The Sinkhorn divergence of two populations, estimated without bias from samples.

    E(x, y) = [OT(x1, y1) + OT(x2, y2) - OT(x1, x2) - OT(y1, y2)] / 2

where x1, x2 are the halves of x, and y1, y2 of y. This is the minibatch energy distance of Salimans et al. (2018, eq. 7).

Why. The divergence S(x, y) of two samples takes off what each cloud costs against *itself*, which is less than what it
costs against another sample of the same population. The rest grows with the widths of both, so that S is least for a model
narrower than the data: by 6 % for 1024 galaxies in the ten features of ugriz (`benchmarks/transport.py --width`). Halves
are independent samples, so every term above has the same sampling cost, and where both populations agree the expected value
and the expected gradient are zero. Four problems of half the size also take half the time of S.

The price: a single value may be negative, and says little of a population known from one sample alone.

References: Salimans, Zhang, Radford & Metaxas 2018 (arXiv:1803.05573); Bellemare et al. 2017 (arXiv:1705.10743), the bias
of sample gradients.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from popsed_jax.transport._clouds import as_clouds, normalise_weights
from popsed_jax.transport.sinkhorn import entropic_cost


def sinkhorn_energy(
    x: Float[Array, "sample_x dim"],
    y: Float[Array, "sample_y dim"],
    blur: Float[Array, ""] | float,
    *,
    weights_x: Float[Array, " sample_x"] | None = None,
    weights_y: Float[Array, " sample_y"] | None = None,
    power: int = 2,
    num_scales: int = 8,
    num_final: int = 2,
    num_sweeps: int = 8,
) -> Float[Array, ""]:
    """Sinkhorn distance between the populations of x and y, unbiased where they agree (module docstring).

    Args:
        x: model points, at least two, in random order: the halves must be samples of one population.
        y: data points, likewise.
        (the others): as in `sinkhorn_divergence`, by its "annealed" method.

    Returns:
        E(x, y) [unit^power]; negative values are ordinary. Of an odd number of points the last is left out.

    Raises:
        ValueError: as `sinkhorn_divergence`; fewer than two points.
    """
    x, y = as_clouds(x, y)
    if min(x.shape[0], y.shape[0]) < 2:
        raise ValueError(f"halves of x and y need two points each, got {x.shape[0]} and {y.shape[0]}")
    a, b = normalise_weights(weights_x, x, "weights_x"), normalise_weights(weights_y, y, "weights_y")
    (x, a), (y, b) = (tuple(_halves(part) for part in cloud) for cloud in ((x, a), (y, b)))

    def cost(x: Array, y: Array, a: Array, b: Array) -> Array:
        settings = {"power": power, "num_scales": num_scales, "num_final": num_final, "num_sweeps": num_sweeps}
        return entropic_cost(x, y, blur, weights_x=a, weights_y=b, **settings)

    between = jnp.sum(jax.vmap(cost)(x, y, a, b))
    return 0.5 * (between - cost(*x, *a) - cost(*y, *b))


def _halves(rows: Array) -> Array:
    """(num, ...) to (2, num // 2, ...)."""
    half = rows.shape[0] // 2
    return rows[: 2 * half].reshape(2, half, *rows.shape[1:])
