"""Anomalies in any latent or feature space: scores of how unlike the ordinary a row is, and what a search by a score finds.

Every score is higher for the more anomalous. Rows are objects, columns are dimensions.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from scipy.linalg import solve_triangular
from scipy.spatial import cKDTree

from popsed_jax.diagnostics._common import refuse
from popsed_jax.diagnostics._latents import NEEDS, Scaling, checked_rows, fit_scaling
from popsed_jax.diagnostics.anomaly_classifier import AnomalyScores, ClassifierConfig, classify_anomalies
from popsed_jax.diagnostics.anomaly_curve import AnomalyCurve, OperatingPoint, anomaly_curve
from popsed_jax.flows.spline import FlowConfig, SplineFlow, init_flow, whiten

__all__ = [
    "AnomalyCurve",
    "AnomalyScores",
    "ClassifierConfig",
    "LatentFlow",
    "Neighbours",
    "OperatingPoint",
    "anomaly_curve",
    "classify_anomalies",
    "fit_latent_flow",
    "flow_surprise",
    "mahalanobis",
    "neighbours_of",
    "reconstruction_chi2",
]

_STEPS_PER_CHECK = 25  # of a flow's training, between two looks at the rows held out
_AVERAGED = 50.0  # steps over which its weights are averaged: with few rows, that halves what is lost by over-fitting


class Neighbours(NamedTuple):
    """The nearest rows, nearest first.

    Attributes:
        row: which they are.
        distance: in standardised units.
    """

    row: Int[np.ndarray, "*query num"]
    distance: Float[np.ndarray, "*query num"]


def neighbours_of(
    labelled: Float[np.ndarray, "*query dim"], latents: Float[np.ndarray, "row dim"], num: int
) -> Neighbours:
    """The rows nearest to a labelled object, or to each of several: what else looks like it.

    Args:
        labelled: the object's place, or several.
        latents: rows to search; they also set the standardisation (robust, by dimension).
        num: how many; an object that is itself among the rows is its own first neighbour, at distance zero.

    Raises:
        ValueError: shapes that do not fit, values that are not numbers, or more neighbours wanted than there are rows.
    """
    latents = checked_rows(latents, "latents")
    labelled = np.asarray(labelled, float)
    queries = checked_rows(np.atleast_2d(labelled), "labelled objects", latents.shape[1])
    if not 1 <= num <= len(latents):
        raise ValueError(
            f"num = {num} neighbours of {len(latents)} rows: between 1 and as many as there are rows wanted"
        )
    scaling = fit_scaling(latents)
    distance, row = cKDTree(scaling(latents)).query(scaling(queries), k=np.arange(1, num + 1))
    shape = (*labelled.shape[:-1], num)
    return Neighbours(row.reshape(shape), distance.reshape(shape))


def mahalanobis(
    latents: Float[np.ndarray, "row dim"],
    reference: Float[np.ndarray, "other dim"],
    robust: bool = True,
    seed: int = 0,
) -> Float[np.ndarray, " row"]:
    """Distance from the reference's mean in units of its covariance; the same in any linear coordinates.

    Args:
        reference: ordinary rows.
        robust: mean and covariance of the most compact half (the minimum covariance determinant, Rousseeuw & Van Driessen
            1999), reweighted: anomalies among the reference do not hide themselves. False: of all rows.
        seed: of the search for that half.

    Returns: not squared; of normal latents, its square has the chi^2 distribution with as many degrees of freedom as dimensions.

    Raises:
        ImportError: scikit-learn is missing (robust only).
        ValueError: shapes that do not fit, values that are not numbers, or too few or dependent reference rows.

    References: doi:10.1080/00401706.1999.10485670.
    """
    reference = checked_rows(reference, "reference rows")
    latents = checked_rows(latents, "latents", reference.shape[1])
    num, dim = reference.shape
    if num <= (2 * dim if robust else dim):
        raise ValueError(
            f"{num} reference rows of {dim} dimensions: more than {2 * dim if robust else dim} wanted for a covariance"
        )
    # In units of the spread: the rank of a covariance should not depend on the dimensions' units.
    center, spread = np.mean(reference, axis=0), np.std(reference, axis=0)
    spread = np.where(np.ptp(reference, axis=0) == 0.0, 1.0, spread)
    scaled = (reference - center) / spread
    rank = np.linalg.matrix_rank(np.cov(scaled, rowvar=False).reshape(dim, dim), hermitian=True)
    if rank < dim:
        raise ValueError(
            f"the reference fills {rank} of its {dim} dimensions only: "
            "leave out constant dimensions, and such as follow from others"
        )
    mean, cov = _robust_moments(scaled, seed) if robust else (np.zeros(dim), np.cov(scaled, rowvar=False))
    away = (latents - center) / spread - mean
    chol = np.linalg.cholesky(np.reshape(cov, (dim, dim)))
    return np.linalg.norm(solve_triangular(chol, away.T, lower=True), axis=0)


def _robust_moments(rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance by the minimum covariance determinant."""
    try:
        from sklearn.covariance import MinCovDet
    except ImportError as error:
        raise ImportError(f"a robust covariance {NEEDS} (or give robust=False)") from error
    fit = MinCovDet(random_state=seed).fit(rows)
    return fit.location_, fit.covariance_


def reconstruction_chi2(
    data: Float[np.ndarray, "row ..."],
    model: Float[np.ndarray, "row ..."],
    error: Float[np.ndarray, ...],
    there: Bool[np.ndarray, ...] | None = None,
) -> Float[np.ndarray, " row"]:
    """Mean squared residual in units of the error: the chi^2 of a reconstruction over the number of values.

    Args:
        data, model: rows of fluxes, pixels or whatever was reconstructed.
        error: standard deviation of the data; one for all values, or any shape that fits.
        there: which values count; the others may be NaN. None: those whose data and error are numbers, with an error above zero.

    Returns: about one for a good reconstruction; NaN for a row with nothing there.

    Raises:
        ValueError: shapes that do not fit; or values that are there without a number for data and model and a positive error.

    Notes: parameters of the model are not subtracted from the number of values: a latent's worth of freedom is not known.
    """
    data, model = np.asarray(data), np.asarray(model)
    if data.ndim < 2 or model.shape != data.shape:
        raise ValueError(f"model of shape {model.shape} and data of shape {data.shape}: the same wanted, (row, ...)")
    error = _spread_over(error, data.shape, "error")
    measured = np.isfinite(data) & np.isfinite(error) & (error > 0.0)
    there = measured if there is None else _spread_over(there, data.shape, "there").astype(bool)
    axes = tuple(range(1, data.ndim))
    refuse((there & ~measured).any(axis=axes), "have values that are there without a number and a positive error")
    refuse((there & ~np.isfinite(model)).any(axis=axes), "have a model that is not a number where data are there")
    residual = np.where(there, data - model, 0.0) / np.where(there, error, 1.0)
    count = np.sum(there, axis=axes)
    # An empty row has no chi^2, which is no reason for a warning.
    return np.sum(residual**2, axis=axes, dtype=float) / np.where(count, count, np.nan)


def _spread_over(values: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """An array of the shape of the data."""
    values = np.asarray(values)
    try:
        return np.broadcast_to(values, shape)
    except ValueError:
        raise ValueError(f"{what} of shape {values.shape} does not fit data of shape {shape}") from None


class LatentFlow(NamedTuple):
    """Density of the ordinary in a latent space.

    Attributes:
        flow: of standardised latents.
        scaling: their standardisation.
        held_out: mean log-density of the rows held out of its training, in the latents' own units: compare flows by it.
    """

    flow: SplineFlow
    scaling: Scaling
    held_out: float

    def log_prob(self, latents: Float[np.ndarray, "row dim"]) -> Float[np.ndarray, " row"]:
        """Log-density of rows, in the latents' own units.

        Raises:
            ValueError: rows of another dimension, or values that are not numbers.
        """
        latents = checked_rows(latents, "latents", self.flow.dim)
        log_prob = self.flow.log_prob(jnp.asarray(self.scaling(latents)))
        return np.asarray(log_prob, float) - np.sum(np.log(self.scaling.scale))


def fit_latent_flow(
    key: Array,
    train: Float[np.ndarray, "row dim"],
    config: FlowConfig | None = None,
    num_steps: int = 1000,
    batch_size: int = 256,
    peak: float = 3e-3,
) -> LatentFlow:
    """A spline flow of the latents by maximum likelihood (Durkan+19), as far as it describes rows that it does not see.

    Args:
        train: ordinary rows; a few anomalies among them do little harm.
        config: size of the flow; a small one by default.
        num_steps: at most; a tenth of the rows is held out, and the (averaged) weights that describe it best are kept. Training
            starts at a normal distribution.
        peak: largest learning rate of the one-cycle schedule.

    Raises:
        ValueError: fewer than two dimensions or 20 rows, values that are not numbers, or no step.

    References: arXiv:1906.04032.
    """
    train = checked_rows(train, "training rows")
    if len(train) < 20 or train.shape[1] < 2:
        raise ValueError(f"training rows of shape {train.shape}: at least 20 rows of 2 dimensions wanted for a flow")
    if num_steps < 1 or batch_size < 1:
        raise ValueError(f"num_steps = {num_steps} and batch_size = {batch_size} must be at least 1")
    config = config or FlowConfig(num_layers=4, hidden=32)
    key_split, key_init, key_batch = jax.random.split(key, 3)
    order = np.asarray(jax.random.permutation(key_split, len(train)))
    held, known = np.split(train[order], [max(len(train) // 10, 2)])
    scaling = fit_scaling(known)
    rows, other = jnp.asarray(scaling(known)), jnp.asarray(scaling(held))
    start = init_flow(key_init, train.shape[1], config, *whiten(rows))
    # The last check only looks: nobody sees the steps after it.
    shape = (-(-num_steps // _STEPS_PER_CHECK) + 1, _STEPS_PER_CHECK, batch_size)
    flow, reached = _fit(start, rows, other, jax.random.randint(key_batch, shape, 0, len(known)), peak)
    return LatentFlow(flow, scaling, float(reached) - float(np.sum(np.log(scaling.scale))))


def flow_surprise(
    key: Array,
    train: Float[np.ndarray, "row dim"],
    latents: Float[np.ndarray, "other dim"],
    config: FlowConfig | None = None,
    num_steps: int = 1000,
) -> Float[np.ndarray, " other"]:
    """Minus the log-density of latents under a flow of the training latents.

    To score several sets under one flow, or with another number of rows in a step: `-fit_latent_flow(...).log_prob(latents)`.

    Args: and errors: as `fit_latent_flow`.
    """
    return -fit_latent_flow(key, train, config, num_steps).log_prob(latents)


@partial(jax.jit, static_argnames="peak")
def _fit(
    flow: SplineFlow,
    train: Float[Array, "row dim"],
    held: Float[Array, "other dim"],
    batches: Int[Array, "check step batch"],
    peak: float,
) -> tuple[SplineFlow, Float[Array, ""]]:
    """The flow with the best mean log-density of the rows held out, and that.

    Args:
        batches: rows of each step.
    """
    rate = optax.cosine_onecycle_schedule((batches.shape[0] - 1) * batches.shape[1], peak, pct_start=0.2)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    def mean_log_prob(layers: Any, rows: Array) -> Array:
        return jnp.mean(dataclasses.replace(flow, layers=layers).log_prob(rows))

    def step(carry: tuple[Any, Any, Any], batch: Array) -> tuple[tuple[Any, Any, Any], None]:
        layers, average, opt_state = carry
        grads = jax.grad(lambda layers: -mean_log_prob(layers, train[batch]))(layers)
        updates, opt_state = optimiser.update(grads, opt_state, layers)
        layers = optax.apply_updates(layers, updates)
        average = jax.tree.map(lambda old, new: old + (new - old) / _AVERAGED, average, layers)
        return (layers, average, opt_state), None

    # Looks before it moves: the normal distribution at the start is one of the candidates.
    def check(carry: tuple[Any, Any, Array], batches: Array) -> tuple[tuple[Any, Any, Array], None]:
        moving, best, reached = carry
        now = mean_log_prob(moving[1], held)
        better = now > reached  # false of what is not a number
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), moving[1], best)
        moving, _ = jax.lax.scan(step, moving, batches)
        return (moving, best, jnp.where(better, now, reached)), None

    moving = (flow.layers, flow.layers, optimiser.init(flow.layers))
    (_, best, reached), _ = jax.lax.scan(check, (moving, flow.layers, jnp.array(-jnp.inf)), batches)
    return dataclasses.replace(flow, layers=best), reached
