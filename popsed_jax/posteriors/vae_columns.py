"""Posteriors of an autoencoder as columns, with its latents: what `popsed-jax encode` writes for every galaxy."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from popsed_jax.flags import Flag
from popsed_jax.posteriors.columns import Summary, photometry_of
from popsed_jax.posteriors.estimator import Columns, Rows
from popsed_jax.posteriors.novelty import FLAGGED
from popsed_jax.posteriors.reweight import Weighted
from popsed_jax.posteriors.survey import Photometry
from popsed_jax.posteriors.vae import MultiModalVAE


@dataclasses.dataclass
class VAEEstimator:
    """Posteriors through the latent, under the population of the mocks that the model learned from.

    Args:
        bands: of the model.
        vae: the model.
        summary: which columns posteriors become.
        num_draws: samples behind the summaries, or a few more.
    """

    bands: tuple[str, ...]
    vae: MultiModalVAE
    summary: Summary
    num_draws: int = 100

    def describe(self) -> dict[str, tuple[str, str]]:
        """Unit and description of every column, in order."""
        num = self.vae.config.latent
        own = {
            "latent": ("", f"mean of q(latent | photometry), {num} components"),
            "latent_std": ("", "its standard deviations"),
            "chi2": ("", "misfit of the photometry that the mean latent decodes to, over the number of bands"),
            "novelty": (
                "",
                "distance to the nearest mock galaxies in magnitudes and colours, over that of a mock galaxy",
            ),
            "novelty_p": ("", "share of the mock galaxies that are as unlike the others"),
        }
        return self.summary.describe() | own

    def __call__(self, seed: int, rows: Rows) -> Columns:
        """Columns and flags of some galaxies."""
        if not len(rows.row):
            vectors = {name: np.empty((0, self.vae.config.latent), np.float32) for name in ("latent", "latent_std")}
            return self.summary.blank() | vectors | {name: np.empty(0) for name in ("chi2", "novelty", "novelty_p")}
        photometry = photometry_of(rows)
        keys = jax.random.split(jax.random.key(seed))
        density = self.vae.redshift_density(keys[0], photometry, self.summary.grid)
        moments = self.vae.moments(photometry)
        novelty, share = (np.asarray(part, float) for part in self.vae.unlikeness(photometry))
        own = {
            "latent": np.asarray(moments.mean, np.float32),
            "latent_std": np.exp(0.5 * np.asarray(moments.log_var, np.float32)),
            "chi2": np.asarray(self.vae.chi2(photometry), float),
            "novelty": novelty,
            "novelty_p": share,
            "flags": np.where(share < FLAGGED, Flag.OUT_OF_DISTRIBUTION.value, 0),
        }
        posterior = self.posterior(keys[1], photometry)
        return self.summary.columns(posterior, np.asarray(density, float), seed) | own

    def posterior(self, key: jax.Array, photometry: Photometry) -> Weighted:
        """Samples of each galaxy, all of the same weight."""
        theta = np.asarray(self.vae.sample(key, photometry, self.num_draws).theta)
        num = theta.shape[1]
        return Weighted(theta, np.full(theta.shape[:2], 1.0 / num), np.full(len(theta), float(num)))
