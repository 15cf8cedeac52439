"""qp: the population's n(z), and that of each of its flows, as an ensemble of histograms."""

from __future__ import annotations

import numpy as np
import qp
from jaxtyping import Array, Float

from popsed_jax.priors.prior import Prior


def redshift_ensemble(
    prior: Prior, key: Array, num: int, edges: Float[np.ndarray, " edge"], name: str = "redshift"
) -> qp.Ensemble:
    """Normalised histograms of draws: the first of the whole population, then one for each flow.

    The flows are the ensemble that the fit learned: their scatter says how well n(z) is known. The ancillary column `weight`
    is 1, then the flows' weights.

    Args:
        num: draws in all.
        edges: of the bins, increasing.
        name: of the redshift among the prior's names.

    Raises:
        KeyError: no parameter of that name.
        ValueError: a flow has no draw within the edges.
    """
    column = prior.coordinates.find(name)
    theta, member = prior.population.sample_members(key, num)
    redshift = np.asarray(prior.coordinates.outward(theta))[:, column]
    groups = [redshift, *(redshift[np.asarray(member) == k] for k in range(prior.population.num_members))]
    counts = np.array([np.histogram(group, edges)[0] for group in groups], float)
    if not counts.sum(axis=1).all():
        raise ValueError(
            f"a flow has no draw of {name} between {edges[0]} and {edges[-1]}: draw more, or widen the edges"
        )
    weights = np.concatenate([[1.0], np.asarray(prior.population.weights)])
    return qp.Ensemble(qp.hist, data={"bins": np.asarray(edges), "pdfs": counts}, ancil={"weight": weights})
