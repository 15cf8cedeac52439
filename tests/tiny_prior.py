"""A learned population without the learning: two small bent flows over three parameters."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from popsed_jax.flows.spline import FlowConfig, init_flow
from popsed_jax.parameters import Parameter, ParameterSpace
from popsed_jax.population.model import Population

SPACE = ParameterSpace(
    (
        Parameter("redshift", 0.001, 1.5, "", "$z$", "redshift"),
        Parameter("log_mass", 7.0, 13.0, "dex(Msun)", "$M$", "log10 stellar mass formed", power=2.0),
        Parameter("t_burst", 0.01, 13.0, "Gyr", "$t$", "lookback time of the burst"),
    )
)
META = {"selection": "as-detected", "imf": "Kroupa (2001)", "cosmology": {"hubble": 70.0, "omega_matter": 0.3}}


def tiny_population() -> Population:
    """Correlated, skewed, and with weight at the bounds."""
    config = FlowConfig(num_layers=2, hidden=8, num_blocks=1, num_bins=4)
    means = jnp.array([[-0.5, 0.3, 0.2], [0.4, -0.3, 0.0]])
    chol = jnp.array([[0.7, 0.0, 0.0], [0.4, 0.6, 0.0], [-0.15, 0.2, 0.45]])
    flows = jax.vmap(lambda key, mean: init_flow(key, 3, config, mean, chol))(
        jax.random.split(jax.random.key(0), 2), means
    )
    leaves, structure = jax.tree.flatten(flows.layers)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    bent = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return Population(flows.replace(layers=structure.unflatten(bent)), jnp.array([0.65, 0.35]), SPACE, META)


def save_tiny(folder: Path) -> Path:
    """The population's folder, as a run has it."""
    tiny_population().save(folder / "population")
    return folder / "population"


class LinearGaussian:
    """Data y = A theta + noise, as every fitter wants its likelihood; the posterior's moments by weighing prior draws.

    Theta is taken in units of the bounds, so that the data say as much about each parameter.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self.low, self.width = low, high - low
        rng = np.random.default_rng(3)
        self.matrix = rng.normal(size=(2, len(low)))
        self.data, self.sigma = self.matrix @ np.full(len(low), 0.35), 0.15

    def __call__(self, theta):
        """Log likelihood, of NumPy's or JAX's arrays of shape (..., dim)."""
        away = (theta - self.low) / self.width @ self.matrix.T - self.data
        return -0.5 * ((away / self.sigma) ** 2).sum(axis=-1)

    def moments(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Mean and standard deviation of the posterior, and log of the evidence."""
        log_weight = self(draws)
        weight = np.exp(log_weight - log_weight.max())
        mean = np.average(draws, weights=weight, axis=0)
        std = np.sqrt(np.average((draws - mean) ** 2, weights=weight, axis=0))
        return mean, std, float(np.log(weight.mean()) + log_weight.max())
