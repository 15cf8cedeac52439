"""Multi-modal variational autoencoder: spectra and photometry in one latent space, and parameters from it. (Grishin+25)

    spectrum   --encoder--> q(latent | spectrum)    --decoder--> spectrum --filters--> photometry
    photometry --encoder--> q(latent | photometry)  --head-----> p(parameters | photometry)

It learns from mock galaxies alone (`popsed_jax.posteriors.mocks`), in three stages (`popsed_jax.posteriors.vae_losses`): the
spectra's encoder and decoder; the photometry's encoder with that decoder frozen; the head with that encoder frozen.

The head is given the moments of q(latent | photometry), or latents drawn from it (`VAEConfig.condition`). Under "latents" a
galaxy's posterior is sampled through the latent, and the head is trained as just that mixture: trained on single latents it
would learn p(parameters | latent), which the spread of the latent has already widened, and the mixture would widen it once more.
Both are calibrated; moments are the sharper (benchmarks/vae.py): a normal distribution with independent components is wider than
what photometry says of the latent, and its draws hide what its moments tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, NamedTuple, cast, get_args

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from popsed_jax.parameters import ParameterSpace
from popsed_jax.population.batching import map_batches
from popsed_jax.posteriors.decoders import Decoded, SpectrumDecoder, SpectrumScales, build_scales
from popsed_jax.posteriors.encoders import Moments, PhotometryEncoder, SpectrumEncoder
from popsed_jax.posteriors.features import Features, build_features
from popsed_jax.posteriors.heads import BinnedHead, FlowHead, HeadConfig, MixtureHead, build_head
from popsed_jax.posteriors.mocks import Mocks, SpectrumData
from popsed_jax.posteriors.novelty import Novelty, build_novelty
from popsed_jax.posteriors.pixels import SpectrumGrid
from popsed_jax.posteriors.survey import Photometry

Condition = Literal["latents", "moments"]
PARTS = ("spectrum_encoder", "spectrum_decoder", "photometry_encoder", "head")
_NUM_SCALE = 8192  # mocks by which features are scaled
_SAMPLES, _MANY = 2000, 1024  # at once: samples stay in a processor's cache


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes, and what the losses weigh.

    Args:
        latent: size of the latent.
        hidden: width of encoders and decoder.
        rank: of the decoded spectra.
        condition: what the head is given: "moments", mean and log-variance of q(latent | photometry); or "latents", draws of it,
            whose mixture is the posterior.
        num_latents: of each galaxy in the head's training under "latents".
        per_latent: samples of the parameters from each latent.
        beta: weight of the divergence from the prior. (Higgins+17)
        matching: weight of -log q(latent | photometry) at latents of the same galaxy's spectrum, in the photometry's stage.
        spectrum_floor, photometry_floor: how well decoded spectra are asked to fit, as a fraction of the flux, on top of noise.
        batch_size: galaxies of a step of photometry.
        spectra_batch, head_batch: galaxies of a step of spectra, and of the head.
    """

    latent: int = 16
    hidden: int = 128
    rank: int = 64
    condition: Condition = "moments"
    num_latents: int = 8
    per_latent: int = 5
    beta: float = 1.0
    matching: float = 1.0
    spectrum_floor: float = 0.05
    photometry_floor: float = 0.02
    batch_size: int = 256
    spectra_batch: int = 128
    head_batch: int = 128
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        sizes = ("latent", "hidden", "rank", "num_latents", "per_latent", "batch_size", "spectra_batch", "head_batch")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"vae: {name} = {getattr(self, name)} must be at least 1")
        if self.condition not in get_args(Condition):
            raise ValueError(f"vae: condition = {self.condition!r} must be one of {', '.join(get_args(Condition))}")
        for name in ("beta", "matching", "spectrum_floor", "photometry_floor"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) >= 0.0):
                raise ValueError(f"vae: {name} = {getattr(self, name)} must not be negative")

    @property
    def num_context(self) -> int:
        """How many numbers the head is given."""
        return self.latent if self.condition == "latents" else 2 * self.latent


class Drawn(NamedTuple):
    """Posterior samples.

    Attributes:
        theta: parameters.
        latent: that each sample came through; under "moments", a draw beside it.
    """

    theta: Float[Array | np.ndarray, "galaxy sample dim"]
    latent: Float[Array | np.ndarray, "galaxy latent_sample latent"]


@flax.struct.dataclass
class MultiModalVAE:
    """The model. Immutable pytree.

    Attributes:
        parts: weights by the part's name (`PARTS`): what stages move.
        head: density of u, whose weights are in `parts`.
        scales: of the decoded spectra.
        grid: pixels, and the survey's filters on them.
        features: photometry to the encoder's inputs.
        novelty: how unlike the mocks a galaxy is.
        space: the galaxies' parameters.
    """

    parts: dict[str, Any]
    head: FlowHead | MixtureHead | BinnedHead
    scales: SpectrumScales
    grid: SpectrumGrid
    features: Features
    novelty: Novelty
    space: ParameterSpace = flax.struct.field(pytree_node=False)
    config: VAEConfig = flax.struct.field(pytree_node=False)

    def with_parts(self, parts: dict[str, Any]) -> MultiModalVAE:
        """The same model with other weights."""
        return dataclasses.replace(self, parts=parts)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return self.space.names

    def encode_photometry(self, photometry: Photometry) -> Moments:
        """q(latent | photometry)."""
        encoder = PhotometryEncoder(self.config.latent, self.config.hidden)
        return cast(Moments, encoder.apply(self.parts["photometry_encoder"], self.features(photometry)))

    def encode_spectrum(self, spectrum: SpectrumData) -> Moments:
        """q(latent | spectrum)."""
        encoder, scales = SpectrumEncoder(self.config.latent, self.config.hidden), self.scales
        weights = self.parts["spectrum_encoder"]
        return cast(Moments, encoder.apply(weights, spectrum, scales.level_mean, scales.level_std))

    def decode(self, latent: Float[Array, "*galaxy latent"]) -> Decoded:
        """Noise-free spectra of latents."""
        decoder = SpectrumDecoder(self.grid.num_pixels, self.config.hidden, self.config.rank)
        return cast(Decoded, decoder.apply(self.parts["spectrum_decoder"], latent, self.scales))

    def trained_head(self) -> FlowHead | MixtureHead | BinnedHead:
        """The head with its weights."""
        return self.head.with_weights(self.parts["head"])

    def log_prob_u(
        self, key: Array, u: Float[Array, "galaxy sample dim"], photometry: Photometry, num_latents: int
    ) -> Float[Array, "galaxy sample"]:
        """Log density of u given photometry, under "latents" over so many of them."""
        moments, head = self.encode_photometry(photometry), self.trained_head()
        if self.config.condition == "moments":
            return head.log_prob(u, _told(moments))
        context = moments.sample(key, num_latents)
        every = jnp.repeat(u, num_latents, axis=0)
        each = head.log_prob(every, context.reshape(-1, context.shape[-1])).reshape(len(u), num_latents, -1)
        return logsumexp(each, axis=1) - jnp.log(num_latents)

    def log_prob(
        self, key: Array, theta: Float[np.ndarray, "galaxy sample dim"], photometry: Photometry, num_latents: int = 64
    ) -> Float[np.ndarray, "galaxy sample"]:
        """Log of the posterior density of parameters, over so many latents."""
        pieces = (np.arange(len(theta)), theta, photometry)
        return map_batches(_density(num_latents), (key, self), pieces, max(1, _SAMPLES // (2 * num_latents)))

    def sample(self, key: Array, photometry: Photometry, num: int) -> Drawn:
        """At least so many samples of each galaxy's parameters."""
        pieces = (np.arange(len(photometry.flux)), photometry)
        return map_batches(_sampler(num), (key, self), pieces, max(1, _SAMPLES // num))

    def redshift_density(
        self, key: Array, photometry: Photometry, grid: Float[np.ndarray, " grid"], num_latents: int = 20
    ) -> Float[np.ndarray, "galaxy grid"]:
        """p(redshift | photometry) on a grid within the bounds: exact given the latents, an average over so many of these."""
        pieces = (np.arange(len(photometry.flux)), photometry)
        batch = max(1, _MANY // num_latents)
        return map_batches(_redshift_density(num_latents), (key, self, jnp.asarray(grid)), pieces, batch)

    def moments(self, photometry: Photometry) -> Moments:
        """q(latent | photometry) of any number of galaxies."""
        return map_batches(MultiModalVAE.encode_photometry, self, photometry, _MANY)

    def chi2(self, photometry: Photometry) -> Float[np.ndarray, " galaxy"]:
        """Misfit of the photometry that the mean latent decodes to, over the number of bands."""
        return map_batches(_chi2, self, photometry, _MANY)

    def unlikeness(self, photometry: Photometry) -> tuple[Float[np.ndarray, " galaxy"], Float[np.ndarray, " galaxy"]]:
        """How unlike the mocks each is, and the share of those that are as unlike. See `Novelty`."""
        return map_batches(_unlikeness, self, photometry, _MANY)


def _told(moments: Moments) -> Float[Array, "galaxy context"]:
    return jnp.concatenate([moments.mean, 0.5 * moments.log_var], axis=-1)


@cache
def _sampler(num: int) -> Callable[[tuple[Array, MultiModalVAE], tuple[Array, Photometry]], Drawn]:
    """Sampling of so many each, one function for each number: a fresh one would compile anew."""

    def sample(model: tuple[Array, MultiModalVAE], piece: tuple[Array, Photometry]) -> Drawn:
        (key, vae), (number, photometry) = model, piece
        keys = jax.random.split(jax.random.fold_in(key, number[0]))
        moments, head = vae.encode_photometry(photometry), vae.trained_head()
        each = vae.config.per_latent
        latent = moments.sample(keys[0], -(-num // each))
        if vae.config.condition == "moments":
            u = head.sample(keys[1], _told(moments), latent.shape[1] * each)
        else:
            u = head.sample(keys[1], latent.reshape(-1, latent.shape[-1]), each)
        return Drawn(vae.space.to_theta(u.reshape(len(number), -1, len(vae.space))), latent)

    return sample


@cache
def _density(num_latents: int) -> Callable[[tuple[Array, MultiModalVAE], tuple[Array, Array, Photometry]], Array]:
    def density(model: tuple[Array, MultiModalVAE], piece: tuple[Array, Array, Photometry]) -> Array:
        (key, vae), (number, theta, photometry) = model, piece
        u = vae.space.to_u(theta)
        log_prob = vae.log_prob_u(jax.random.fold_in(key, number[0]), u, photometry, num_latents)
        return log_prob - vae.space.log_det(u)

    return density


@cache
def _redshift_density(
    num_latents: int,
) -> Callable[[tuple[Array, MultiModalVAE, Array], tuple[Array, Photometry]], Array]:
    def density(model: tuple[Array, MultiModalVAE, Array], piece: tuple[Array, Photometry]) -> Array:
        (key, vae, grid), (number, photometry) = model, piece
        alone = ParameterSpace((vae.space["redshift"],))
        u = alone.to_u(grid[:, None])
        moments, head = vae.encode_photometry(photometry), vae.trained_head()
        if vae.config.condition == "moments":
            context, each = _told(moments), 1
        else:
            latent = moments.sample(jax.random.fold_in(key, number[0]), num_latents)
            context, each = latent.reshape(-1, latent.shape[-1]), num_latents
        log_prob = head.log_prob_redshift(jnp.broadcast_to(u[:, 0], (len(context), len(grid))), context)
        mean = jnp.exp(log_prob).reshape(len(number), each, -1).mean(axis=1)
        return mean * jnp.exp(-alone.log_det(u))

    return density


def _chi2(vae: MultiModalVAE, photometry: Photometry) -> Array:
    decoded = vae.decode(vae.encode_photometry(photometry).mean).through(vae.grid)
    width = jnp.hypot(photometry.error, vae.config.photometry_floor * decoded)
    squares = jnp.where(photometry.there, ((photometry.flux - decoded) / width) ** 2, 0.0)
    return squares.sum(axis=1) / jnp.maximum(photometry.there.sum(axis=1), 1)


def _unlikeness(vae: MultiModalVAE, photometry: Photometry) -> tuple[Array, Array]:
    return vae.novelty(vae.features.colors(photometry))


def init_vae(key: Array, mocks: Mocks, space: ParameterSpace, config: VAEConfig = VAEConfig()) -> MultiModalVAE:
    """An untrained model whose scales are those of mock galaxies.

    Raises:
        ValueError: as `build_head`.
    """
    keys = jax.random.split(key, 3)
    rows = jnp.arange(min(len(mocks), _NUM_SCALE))
    # In all their bands, as `build_features` asks.
    settings = dataclasses.replace(mocks.config, missing=0.0, noisy=0.0)
    whole = dataclasses.replace(mocks, missing=None, config=settings)
    seen = jax.jit(Mocks.observe)(whole, keys[0], rows)
    features = build_features(seen, mocks.noise)
    head = build_head(keys[1], config.head, config.num_context, space.index("redshift"), mocks.u[:_NUM_SCALE])
    scales = build_scales(mocks)
    parts = init_parts(keys[2], config, features.num, scales) | {"head": head.weights}
    return MultiModalVAE(
        parts, head.with_weights(None), scales, mocks.grid, features, build_novelty(features, seen), space, config
    )


@partial(jax.jit, static_argnames=("config", "num_features"))
def init_parts(key: Array, config: VAEConfig, num_features: int, scales: SpectrumScales) -> dict[str, Any]:
    """Weights of encoders and decoder."""
    keys, num_pixels = jax.random.split(key, 3), len(scales.shape_mean)
    empty = jnp.zeros((1, num_pixels))
    spectrum = SpectrumData(empty, empty, empty > 0.0)
    latent = jnp.zeros((1, config.latent))
    return {
        "spectrum_encoder": SpectrumEncoder(config.latent, config.hidden).init(
            keys[0], spectrum, scales.level_mean, scales.level_std
        ),
        "spectrum_decoder": SpectrumDecoder(num_pixels, config.hidden, config.rank).init(keys[1], latent, scales),
        "photometry_encoder": PhotometryEncoder(config.latent, config.hidden).init(
            keys[2], jnp.zeros((1, num_features))
        ),
    }


def with_new_head(key: Array, vae: MultiModalVAE, mocks: Mocks, config: VAEConfig) -> MultiModalVAE:
    """The same encoders and decoder with an untrained head.

    Args:
        mocks: for its scales.
        config: of the same sizes, with any head and condition.

    Raises:
        ValueError: as `build_head`.
    """
    head = build_head(key, config.head, config.num_context, vae.space.index("redshift"), mocks.u[:_NUM_SCALE])
    parts = vae.parts | {"head": head.weights}
    return dataclasses.replace(vae, config=config, head=head.with_weights(None), parts=parts)
