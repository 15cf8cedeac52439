"""Losses and stages of the multi-modal autoencoder: minus the evidence lower bound of each modality, and of the parameters.

All draw their own batches of mock galaxies, observed anew. (Kingma & Welling 2014, arXiv:1312.6114, eq. 3; Grishin+25)
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from popsed_jax.posteriors.decoders import Decoded
from popsed_jax.posteriors.mocks import Mocks, SpectrumData
from popsed_jax.posteriors.stages import Loss, Parts, Stage
from popsed_jax.posteriors.survey import Photometry
from popsed_jax.posteriors.vae import MultiModalVAE

Terms = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]


@flax.struct.dataclass
class VAEData:
    """What the losses draw from.

    Attributes:
        vae: the model, whose own weights do not count.
        mocks: galaxies to learn from.
    """

    vae: MultiModalVAE
    mocks: Mocks

    def batch(self, key: Array, size: int) -> Int[Array, " batch"]:
        """Numbers of so many galaxies, drawn with replacement."""
        return jax.random.randint(key, (size,), 0, len(self.mocks))


@dataclasses.dataclass(frozen=True)
class StagesConfig:
    """How long each stage is.

    Args:
        spectrum, photometry, parameters: steps of the three stages.
        joint: steps of the training of all parts at once, which is an alternative to the three.
        learning_rate: peak of each stage's one-cycle schedule.
        steps_per_chunk: steps between two checkpoints.
    """

    spectrum: int = 2000
    photometry: int = 2000
    parameters: int = 2000
    joint: int = 3000
    learning_rate: float = 2e-3
    steps_per_chunk: int = 100

    def __post_init__(self) -> None:
        """Refuse impossible values, as `Stage` does."""
        for name in ("spectrum", "photometry", "parameters", "joint"):
            self.stage(name)

    def stage(self, name: str) -> Stage:
        """A stage by its name.

        Raises:
            ValueError: no such stage, or impossible values.
        """
        if name not in TRAINED:
            raise ValueError(f"no stage {name!r}: one of {', '.join(TRAINED)} wanted")
        steps = getattr(self, name)
        return Stage(name, TRAINED[name], steps, self.learning_rate, min(self.steps_per_chunk, max(steps, 1)))


TRAINED = {
    "spectrum": ("spectrum_encoder", "spectrum_decoder"),
    "photometry": ("photometry_encoder",),
    "parameters": ("head",),
    "joint": ("spectrum_encoder", "spectrum_decoder", "photometry_encoder", "head"),
}
STAGED = ("spectrum", "photometry", "parameters")


def spectrum_log_prob(vae: MultiModalVAE, spectrum: SpectrumData, decoded: Decoded) -> Float[Array, " galaxy"]:
    """log p(spectrum | latent) up to a constant: -chi^2 / 2 over noise and floor."""
    flux = decoded.flux
    seen = jnp.where(spectrum.there, spectrum.flux, 0.0)
    floor = vae.config.spectrum_floor * _between(seen, flux)
    variance = 1.0 / jnp.where(spectrum.there, spectrum.ivar, 1.0) + floor**2
    squares = jnp.where(spectrum.there, (spectrum.flux - flux) ** 2 / variance, 0.0)
    return -0.5 * squares.sum(axis=-1)


def photometry_log_prob(
    vae: MultiModalVAE, mocks: Mocks, photometry: Photometry, decoded: Decoded
) -> Float[Array, " galaxy"]:
    """log p(photometry | latent) up to a constant, through the filters of the decoded spectrum."""
    flux = decoded.through(vae.grid)
    seen = jnp.where(photometry.there, photometry.flux, 0.0)
    floor = jnp.hypot(mocks.relative_floor(), vae.config.photometry_floor) * _between(seen, flux)
    width = jnp.hypot(jnp.where(photometry.there, photometry.error, 1.0), floor)
    squares = jnp.where(photometry.there, ((photometry.flux - flux) / width) ** 2, 0.0)
    return -0.5 * squares.sum(axis=-1)


def _between(seen: Array, decoded: Array) -> Array:
    """The flux that a relative error refers to: the same as either near the optimum.

    With the decoded one alone, models far too faint would have next to no error, and the first steps losses beyond all measure.
    """
    return jax.lax.stop_gradient(jnp.hypot(seen, decoded) / jnp.sqrt(2.0))


def spectrum_loss(parts: Parts, key: Array, data: VAEData) -> Terms:
    """Stage 1: chi^2 of the reconstruction and beta times the divergence, a pixel."""
    keys = jax.random.split(key, 3)
    vae, rows = data.vae.with_parts(parts), data.batch(keys[0], data.vae.config.spectra_batch)
    spectrum = data.mocks.observe_spectrum(keys[1], rows)
    moments = vae.encode_spectrum(spectrum)
    fit = spectrum_log_prob(vae, spectrum, vae.decode(moments.sample(keys[2], 1)[:, 0]))
    kl = moments.kl_to_prior()
    pixels = jnp.maximum(spectrum.there.sum(axis=-1), 1)
    terms = {"chi2": jnp.mean(-2.0 * fit / pixels), "kl": jnp.mean(kl)}
    return jnp.mean(-fit + vae.config.beta * kl) / vae.grid.num_pixels, terms


def photometry_loss(parts: Parts, key: Array, data: VAEData) -> Terms:
    """Stage 2: chi^2 through the filters, beta times the divergence, and latents of the same galaxies' spectra."""
    keys = jax.random.split(key, 5)
    vae, rows = data.vae.with_parts(parts), data.batch(keys[0], data.vae.config.batch_size)
    photometry = data.mocks.observe(keys[1], rows)
    seen = vae.encode_spectrum(data.mocks.observe_spectrum(keys[2], rows, clean=True))
    moments = vae.encode_photometry(photometry)
    fit = photometry_log_prob(vae, data.mocks, photometry, vae.decode(moments.sample(keys[3], 1)[:, 0]))
    kl = moments.kl_to_prior()
    # Photometry follows spectra, and not the other way round, also where all parts move.
    target = jax.lax.stop_gradient(seen.sample(keys[4], 1)[:, 0])
    match = -moments.log_prob(target)
    bands = jnp.maximum(photometry.there.sum(axis=-1), 1)
    terms = {"photometry_chi2": jnp.mean(-2.0 * fit / bands), "photometry_kl": jnp.mean(kl), "match": jnp.mean(match)}
    return jnp.mean(-fit + vae.config.beta * kl + vae.config.matching * match), terms


def parameters_loss(parts: Parts, key: Array, data: VAEData) -> Terms:
    """Stage 3: minus log density of the true u, under the very mixture that posteriors are sampled from."""
    keys = jax.random.split(key, 3)
    vae, rows = data.vae.with_parts(parts), data.batch(keys[0], data.vae.config.head_batch)
    photometry = data.mocks.observe(keys[1], rows)
    log_prob = vae.log_prob_u(keys[2], data.mocks.u[rows][:, None], photometry, vae.config.num_latents)
    nll = -jnp.mean(log_prob)
    return nll, {"nll": nll}


def joint_loss(parts: Parts, key: Array, data: VAEData) -> Terms:
    """All at once: the three losses of one batch, the spectra's a pixel as the others' a galaxy."""
    losses = (spectrum_loss, photometry_loss, parameters_loss)
    each = [loss(parts, k, data) for loss, k in zip(losses, jax.random.split(key, 3), strict=True)]
    total = each[0][0] * data.vae.grid.num_pixels + each[1][0] + each[2][0]
    return total, {name: value for _, terms in each for name, value in terms.items()}


LOSSES: dict[str, Loss] = {
    "spectrum": spectrum_loss,
    "photometry": photometry_loss,
    "parameters": parameters_loss,
    "joint": joint_loss,
}
