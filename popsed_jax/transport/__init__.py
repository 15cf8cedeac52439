"""Distances between clouds of simulated and observed photometry: the loss of population training.

Pure functions of (sample, dim) clouds with optional weights. They know nothing of galaxies, bands or units: standardise
first. `transport_cost` is the interface the training uses; the distances can be called alone.
"""

from popsed_jax.transport.energy import sinkhorn_energy, sliced_energy
from popsed_jax.transport.mixture import TransportConfig, TransportMix, TransportTerms, transport_cost
from popsed_jax.transport.sinkhorn import SinkhornInfo, entropic_cost, sinkhorn_divergence, sinkhorn_divergence_info
from popsed_jax.transport.sliced import projected_wasserstein, sample_directions, sliced_wasserstein

__all__ = [
    "SinkhornInfo",
    "TransportConfig",
    "TransportMix",
    "TransportTerms",
    "entropic_cost",
    "projected_wasserstein",
    "sample_directions",
    "sinkhorn_divergence",
    "sinkhorn_divergence_info",
    "sinkhorn_energy",
    "sliced_energy",
    "sliced_wasserstein",
    "transport_cost",
]
