"""Mock galaxies and a model small enough for tests."""

from __future__ import annotations

import jax
import numpy as np
from tiny_posterior import BANDS, NETWORK

from popsed_jax.observe.filters import load_filter
from popsed_jax.observe.forward import ForwardModel
from popsed_jax.posteriors.heads import HeadConfig
from popsed_jax.posteriors.mocks import Mocks, MocksConfig, mocks_of
from popsed_jax.posteriors.pixels import build_grid
from popsed_jax.posteriors.vae import VAEConfig
from popsed_jax.posteriors.vae_losses import StagesConfig

MOCKS = MocksConfig(num_galaxies=128, num_hyper=1, num_pixels=64)
HEAD = HeadConfig(
    kind="mixture",  # which compiles fastest
    hidden=16,
    num_blocks=1,
    num_components=3,
    num_bins=8,
    flow=NETWORK,
)
MODEL = VAEConfig(
    condition="latents",
    latent=4,
    hidden=16,
    rank=8,
    num_latents=3,
    per_latent=2,
    batch_size=32,
    spectra_batch=16,
    head_batch=32,
    head=HEAD,
)
STAGES = StagesConfig(spectrum=4, photometry=4, parameters=4, joint=4, steps_per_chunk=2)


def tiny_theta(forward: ForwardModel, num: int) -> np.ndarray:
    """Parameters of galaxies bright enough to be seen."""
    space = forward.space
    u = 0.5 * np.asarray(jax.random.normal(jax.random.key(3), (num, len(space))))
    u[:, space.index("redshift")] -= 1.0
    u[:, space.index("log_mass")] += 0.5
    return np.asarray(space.to_theta(u))


def tiny_mocks(forward: ForwardModel, config: MocksConfig = MOCKS) -> Mocks:
    """Mocks of these."""
    filters = [load_filter(name) for name in forward.table.filters[: forward.num_bands]]
    theta = tiny_theta(forward, config.num_galaxies)
    return mocks_of(forward, BANDS, theta, build_grid(filters, config.num_pixels), config)
