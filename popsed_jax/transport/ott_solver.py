"""The Sinkhorn divergence as solved by ott-jax: the one place that knows its ways.

What was found with ott-jax 0.6.0, and is kept out here:

- An epsilon schedule longer than the iteration limit returns a zero gradient without a word: the schedule's length is
  fixed here, below the limit, and convergence is tested only after it.
- The error is left infinite until `min_iterations` have passed. If the first test falls before that, the solver takes
  it for divergence, stops, and reports convergence: the limit here is one less than the iteration of the first test,
  and convergence is judged from the errors themselves.
- `PointCloud(batch_size=...)` fails with recent JAX (ott issue 700): the cost matrix is always dense.
- While it is differentiated, `costs.Euclidean` puts a point at the distance sqrt(dim) from itself (the custom rule of
  ott.math.utils.norm returns the substituted value, not the norm): the terms OT(x, x) come out wrong, with their
  gradient. `_Euclidean` replaces it.
- Its `Epsilon` keeps the annealing as static Python numbers, so a new blur would compile again: `_Annealing` traces it.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

with warnings.catch_warnings():
    # ott imports jaxopt, which announces on import that it is no longer maintained; only ott can act on that.
    warnings.filterwarnings("ignore", message="JAXopt is no longer maintained", category=DeprecationWarning)
    from ott.geometry import costs, epsilon_scheduler, pointcloud
    from ott.tools import sinkhorn_divergence as ott_divergence

_NUM_ANNEALING = 50
_INNER_ITERATIONS = 10


@jax.tree_util.register_pytree_node_class
class _Annealing(epsilon_scheduler.Epsilon):
    """A geometric schedule whose start and rate are traced values, not static ones."""

    def __init__(self, target, init, decay):
        # Not the parent's: it compares the rate as a Python number.
        self.target, self.init, self.decay = target, init, decay

    def tree_flatten(self):
        """The three numbers, all traced."""
        return (self.target, self.init, self.decay), None

    @classmethod
    def tree_unflatten(cls, aux_data, children):
        """Rebuild from the three numbers."""
        del aux_data
        return cls(*children)


@jax.tree_util.register_pytree_node_class
class _Euclidean(costs.CostFn):
    """|x - y|, with a zero gradient where the points coincide."""

    def __call__(self, x: Float[Array, " dim"], y: Float[Array, " dim"]) -> Any:
        """The distance of one pair."""
        squared = jnp.sum(jnp.square(x - y))
        apart = squared > 0
        return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)


def solve_divergence(
    x: Float[Array, "sample_x dim"],
    y: Float[Array, "sample_y dim"],
    blur: Float[Array, ""],
    a: Float[Array, " sample_x"],
    b: Float[Array, " sample_y"],
    power: int,
    *,
    tolerance: float,
    max_iterations: int,
) -> tuple[Float[Array, ""], Float[Array, ""], Bool[Array, ""], Int[Array, ""]]:
    """S(x, y) with cost |x - y|^power / power, iterated until the marginals are right to `tolerance`.

    Args:
        x, y: clouds. a, b: their masses, each summing to one.
        blur: epsilon^(1/power).
        power: 1 or 2.
        tolerance: largest L1 error of the marginals.
        max_iterations: limit on iterations, above 50.

    Returns:
        S, the marginal error of (x, y), whether all three problems converged, and the iterations (x, y) took.

    Raises:
        ValueError: max_iterations does not exceed the annealing's length.
    """
    if max_iterations <= _NUM_ANNEALING:
        raise ValueError(f"max_iterations must exceed the {_NUM_ANNEALING} annealing iterations, got {max_iterations}")
    # ott has |x - y|^2, twice ours: double epsilon too and halve the result.
    scale = float(power)
    epsilon = scale * blur**power
    cloud = lax.stop_gradient(jnp.concatenate([x, y]))
    diameter = jnp.linalg.norm(cloud.max(0) - cloud.min(0))
    start = jnp.maximum(scale * diameter**power / epsilon, 1.0)
    _, out = ott_divergence.sinkhorn_divergence(
        pointcloud.PointCloud,
        x,
        y,
        cost_fn=costs.SqEuclidean() if power == 2 else _Euclidean(),
        a=a,
        b=b,
        epsilon=_Annealing(epsilon, start, start ** (-1.0 / _NUM_ANNEALING)),
        solve_kwargs={
            "threshold": tolerance,
            "inner_iterations": _INNER_ITERATIONS,
            "min_iterations": _NUM_ANNEALING - 1,
            "max_iterations": max_iterations,
            "use_danskin": True,
        },
    )
    errors = jnp.stack([_last_error(jnp.asarray(history)) for history in out.errors])
    return (
        jnp.asarray(out.divergence) / scale,
        errors[0],
        jnp.all(errors <= tolerance),
        jnp.asarray(out.n_iters[0]),
    )


def _last_error(history: Float[Array, " test"]) -> Float[Array, ""]:
    """The error at the last test; -1 marks the tests that were never reached."""
    return lax.stop_gradient(history[jnp.sum(history != -1) - 1])
