"""UltraNest: the prior as its joint map from the unit cube, vectorised."""

from __future__ import annotations

from typing import Any

import ultranest

from popsed_jax.priors.arrays import ArrayPrior, LogLikelihood
from popsed_jax.priors.prior import Prior


def build_sampler(prior: Prior, log_likelihood: LogLikelihood, **options: Any) -> ultranest.ReactiveNestedSampler:
    """A nested sampler of prior times likelihood.

    Args:
        log_likelihood: of an array (num, dim) in the order of `prior.names`, one value a row.
        options: UltraNest's.
    """
    transform = ArrayPrior(prior).transform
    return ultranest.ReactiveNestedSampler(
        list(prior.names), log_likelihood, transform=transform, vectorized=True, **options
    )
