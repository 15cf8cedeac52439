"""The learned population as a prior: a density with names, units and bounds, for everybody's fitter.

Reading and evaluating one needs JAX and flax, not the galaxy model nor the training. The modules named like a fitter
(`popsed_jax.priors.numpyro`, ...) each need that fitter.
"""

from popsed_jax.priors.density import Density
from popsed_jax.priors.partial import PartialPrior
from popsed_jax.priors.prior import Prior, load_prior

__all__ = ["Density", "PartialPrior", "Prior", "load_prior"]
