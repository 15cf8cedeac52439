"""nautilus: the prior as its joint map from the unit cube, vectorised."""

from __future__ import annotations

from typing import Any

import nautilus

from popsed_jax.priors.arrays import ArrayPrior, LogLikelihood
from popsed_jax.priors.prior import Prior


def build_sampler(prior: Prior, log_likelihood: LogLikelihood, **options: Any) -> nautilus.Sampler:
    """An importance nested sampler of prior times likelihood.

    Args:
        log_likelihood: of an array (num, dim) in the order of `prior.names`, one value a row.
        options: nautilus's.
    """
    transform = ArrayPrior(prior).transform
    return nautilus.Sampler(transform, log_likelihood, n_dim=prior.dim, vectorized=True, pass_dict=False, **options)
