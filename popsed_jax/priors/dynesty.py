"""dynesty: the prior as its joint map from the unit cube."""

from __future__ import annotations

from typing import Any

import dynesty
import numpy as np

from popsed_jax.priors.arrays import ArrayPrior, LogLikelihood
from popsed_jax.priors.prior import Prior


def build_sampler(prior: Prior, log_likelihood: LogLikelihood, **options: Any) -> Any:
    """A nested sampler of prior times likelihood.

    The cube holds the posterior once for each flow of the population (see `Prior`); the default bounds of several ellipsoids
    suit that.

    Args:
        log_likelihood: of an array (num, dim) in the order of `prior.names`, one value a row.
        options: dynesty's.
    """

    def one(theta: np.ndarray) -> float:
        return float(log_likelihood(theta[None])[0])

    return dynesty.NestedSampler(one, ArrayPrior(prior).transform, prior.dim, **options)
