"""emcee: the prior in a vectorised log posterior."""

from __future__ import annotations

from functools import partial
from typing import Any

import emcee

from popsed_jax.priors.arrays import ArrayPrior, LogLikelihood
from popsed_jax.priors.density import Density


def build_sampler(
    prior: Density, log_likelihood: LogLikelihood, num_walkers: int, **options: Any
) -> emcee.EnsembleSampler:
    """An ensemble sampler of prior times likelihood. Start it from `ArrayPrior(prior).sample(seed, num_walkers)`.

    Args:
        log_likelihood: of an array (num, dim) in the order of `prior.names`, one value a row.
        options: emcee's.
    """
    arrays = ArrayPrior(prior)
    log_posterior = partial(arrays.log_posterior, log_likelihood)
    return emcee.EnsembleSampler(num_walkers, arrays.dim, log_posterior, vectorize=True, **options)
