"""Guided variational autoencoder of images: some latents are tied to what is known of the training's galaxies.

    image --encoder--> guided latents, free latents --decoder--> image
    L = b0 |x - x'|^2 + KL(free latents) + b1 mean((p - mu)^2 / sigma_p^2)

with b0 = 10 and b1 = 50: a physics-informed autoencoder. The squared error is summed over an image's pixels and bands, so that b0
is half the inverse variance of a Gaussian likelihood. sigma_p is the scatter of a parameter p over the training's galaxies: a
guided latent is the standardised parameter. Guided latents have no KL, and a spread of theirs would cost the reconstruction and
gain nothing: they go to the decoder as they are.

The loss is of stretched images, in which bright pixels saturate, and all bands of a bright centre are alike. Colours and
concentrations are lost there, and with them most of what tells redshifts and types: the encoder alone is also shown the same
pixels without saturation, and the light within a few apertures. Neither touches the decoder or the loss.

Orientation has the period pi. Guiding one number to the angle, as in the original with its five latents, asks the network for a
jump between images that are alike, at +-pi/2. Here "orientation" takes two latents, (cos 2 phi, sin 2 phi): the default has six.
The original's way is there as "angle", to be compared. Without guided latents this is a plain variational autoencoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.population.batching import map_batches
from popsed_jax.population.storage import WEIGHTS, StorageError, load_described, load_tree, save_described
from popsed_jax.posteriors.apertures import Whitening, aperture_fluxes, fit_whitening
from popsed_jax.posteriors.encoders import Moments
from popsed_jax.posteriors.image_encoders import (
    ImageDecoder,
    ImageEncoder,
    ImageNetworkConfig,
    init_image_networks,
)
from popsed_jax.posteriors.orientation import ANGLE_SCALE, ANGLES, guided_targets, turned
from popsed_jax.posteriors.stages import Parts, Stage, StageState, run_stage

FORMAT_VERSION = (
    3  # from 2 on, a description carries its own checksum; from 3 on, encoders see more than stretched images
)
DESCRIPTION = "guided.json"
STAGE = Stage("image VAE", ("encoder", "decoder"), num_steps=4000, learning_rate=2e-3, steps_per_chunk=100)
# What files before version 3 do not say.
_BEFORE: dict[str, Any] = {"unsaturated": False, "apertures": ()}
_BEFORE_NETWORK: dict[str, Any] = {"num_blocks": 1}
_MANY = 256  # images at once
_FAINT = 1.0 / 3.0  # of unsaturated pixels, which are three times as bright at <max x> as saturated ones


@dataclasses.dataclass(frozen=True)
class GuidedConfig:
    """Latents, losses and networks.

    Args:
        guided: what latents are guided to, by name, in their order. "orientation" [rad] takes two, (cos 2 phi, sin 2 phi);
            "angle" is the same guided as a plain number between -pi/2 and pi/2; all others are any numbers.
        num_free: latents that are not guided; they come last.
        reconstruction: b0.
        guidance: b1.
        stretch: images enter as tanh(asinh(stretch x / <max x>)), <max x> the mean over the training's galaxies of the brightest
            pixel, in each band. The original has 10, for linear fluxes.
        unsaturated: the encoder also sees asinh(stretch x / <max x>).
        apertures: radii [pixel] of circles about the middle; the encoder also sees asinh(stretch x / <max x>) of the fluxes in
            them, in every band, without correlations over the training's galaxies (whitened). May be none.
        symmetric: every batch is flipped and transposed at random, with the orientation.
        batch_size: images of a step.
        network: size of the networks.
    """

    guided: tuple[str, ...] = ("orientation", "redshift", "log_mass", "log_sfr")
    num_free: int = 1
    reconstruction: float = 10.0
    guidance: float = 50.0
    stretch: float = 10.0
    unsaturated: bool = True
    apertures: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0, 8.0, 12.0)
    symmetric: bool = True
    batch_size: int = 64
    network: ImageNetworkConfig = dataclasses.field(default_factory=ImageNetworkConfig)

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if len(set(self.guided)) != len(self.guided) or set(ANGLES) <= set(self.guided):
            raise ValueError(f"guided VAE: guided = {', '.join(self.guided)} names something twice")
        if self.num_free < 0 or self.latent < 1:
            raise ValueError(
                f"guided VAE: {self.latent} latents, {self.num_free} of them free: at least 1 wanted, 0 free"
            )
        if self.batch_size < 1:
            raise ValueError(f"guided VAE: batch_size = {self.batch_size} must be at least 1")
        for name in ("reconstruction", "guidance"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"guided VAE: {name} = {getattr(self, name)} must not be negative")
        if not self.stretch > 0.0:
            raise ValueError(f"guided VAE: stretch = {self.stretch} must be positive")
        if self.apertures and min(self.apertures) < np.sqrt(0.5):
            raise ValueError(
                f"guided VAE: apertures = {self.apertures} pixels: at least 0.71, or there is no pixel within"
            )

    @property
    def num_guided(self) -> int:
        """Guided latents."""
        return len(self.guided) + ("orientation" in self.guided)

    @property
    def latent(self) -> int:
        """All latents."""
        return self.num_guided + self.num_free

    @property
    def channels(self) -> int:
        """Of the images that the encoder sees."""
        return (1 + self.unsaturated) * self.network.num_bands

    @property
    def num_features(self) -> int:
        """What the encoder sees besides images."""
        return len(self.apertures) * self.network.num_bands

    @property
    def names(self) -> tuple[str, ...]:
        """Of the latents."""
        split = {"orientation": ("cos 2 phi", "sin 2 phi")}
        guided = [each for name in self.guided for each in split.get(name, (name,))]
        return (*guided, *(f"free {i + 1}" for i in range(self.num_free)))

    def plain(self) -> GuidedConfig:
        """The same number of latents, none of them guided."""
        return dataclasses.replace(self, guided=(), num_free=self.latent, guidance=0.0)


@flax.struct.dataclass
class GuidedData:
    """What a training draws its batches from.

    Attributes:
        image: without saturation.
        features: of the apertures, which no flip or transposition changes.
        orientation: of the galaxies [rad]; zero where nothing is guided to it.
        others: what else latents are guided to, standardised, in the order of `GuidedConfig.guided`.
    """

    image: Float[Array, "galaxy row column band"]
    features: Float[Array, "galaxy feature"]
    orientation: Float[Array, " galaxy"]
    others: Float[Array, "galaxy other"]
    config: GuidedConfig = flax.struct.field(pytree_node=False)


class Standard(NamedTuple):
    """Standardisation of the guided parameters that are no angles.

    Attributes:
        center, scale: mean and standard deviation (sigma_p) over the training's galaxies.
    """

    center: Float[Array, " other"]
    scale: Float[Array, " other"]


@flax.struct.dataclass
class GuidedVAE:
    """A trained autoencoder. Immutable pytree.

    Attributes:
        parts: weights of "encoder" and "decoder".
        brightest: <max x> of each band, in the images' unit.
        standard: of the guided parameters.
        whitening: of the apertures' fluxes, where there are apertures.
    """

    parts: Parts
    brightest: Float[Array, " band"]
    standard: Standard
    whitening: Whitening | None
    config: GuidedConfig = flax.struct.field(pytree_node=False)

    def stretched(self, image: Float[Array, "*galaxy row column band"]) -> Float[Array, "*galaxy row column band"]:
        """Images as the decoder gives them back."""
        return jnp.tanh(self.unsaturated(image))

    def unsaturated(self, image: Float[Array, "*galaxy row column band"]) -> Float[Array, "*galaxy row column band"]:
        """The same before the tanh."""
        return jnp.arcsinh(self.config.stretch * image / self.brightest)

    def features(self, image: Float[Array, "galaxy row column band"]) -> Float[Array, "galaxy feature"]:
        """What the encoder sees besides images."""
        if self.whitening is None:
            return jnp.zeros((len(image), 0))
        return self.whitening(_aperture_logs(self, image))

    def moments(self, image: Float[Array, "galaxy row column band"]) -> Moments:
        """Latents of images; spreads are of the free latents alone."""
        return _encoded(self.config, self.parts, self.unsaturated(image), self.features(image))

    def decode(self, latent: Float[Array, "galaxy latent"]) -> Float[Array, "galaxy row column band"]:
        """Stretched images of latents."""
        return cast(Array, ImageDecoder(self.config.network).apply(self.parts["decoder"], latent))

    def encode(self, image: Float[np.ndarray, "galaxy row column band"]) -> Float[np.ndarray, "galaxy latent"]:
        """Mean latents of any number of images; names in `GuidedConfig.names`.

        Raises:
            ValueError: images of another shape, or with pixels that are not numbers.
        """
        return map_batches(_means, self, _checked_images(image, self.config), _MANY)

    def reconstruct(
        self, image: Float[np.ndarray, "galaxy row column band"]
    ) -> tuple[Float[np.ndarray, "galaxy row column band"], Float[np.ndarray, "galaxy row column band"]]:
        """Images as the networks see them, and as the latents' means give them back. Raises as `encode`."""
        return map_batches(_both, self, _checked_images(image, self.config), _MANY)

    def properties(self, latent: Float[np.ndarray, "galaxy latent"]) -> dict[str, Float[np.ndarray, " galaxy"]]:
        """What the guided latents say, by name, in the truth's units; orientations between -pi/2 and pi/2.

        Notes: a round galaxy has no orientation, and its two latents are near zero.
        """
        found: dict[str, np.ndarray] = {}
        column, other = 0, 0
        for name in self.config.guided:
            values = np.asarray(latent)[:, column]
            if name == "orientation":
                found[name] = 0.5 * np.arctan2(np.asarray(latent)[:, column + 1], values)
                column += 1
            elif name == "angle":
                found["orientation"] = values * ANGLE_SCALE
            else:
                found[name] = np.asarray(self.standard.center)[other] + np.asarray(self.standard.scale)[other] * values
                other += 1
            column += 1
        return found


def guided_loss(parts: Parts, key: Array, data: GuidedData) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The module's L on one batch, and its three terms without their weights."""
    config = data.config
    keys = jax.random.split(key, 3)
    pick = jax.random.randint(keys[0], (config.batch_size,), 0, len(data.image))
    logs, orientation = data.image[pick], data.orientation[pick]
    if config.symmetric:
        logs, orientation = turned(jax.random.randint(keys[1], (), 0, 8), logs, orientation)
    moments = _encoded(config, parts, logs, data.features[pick])
    guided, free = jnp.split(moments.mean, [config.num_guided], axis=1)
    spread = Moments(free, moments.log_var[:, config.num_guided :])
    latent = jnp.concatenate([guided, spread.sample(keys[2], 1)[:, 0]], axis=1)
    again = cast(Array, ImageDecoder(config.network).apply(parts["decoder"], latent))
    error = jnp.mean(jnp.sum((again - jnp.tanh(logs)) ** 2, axis=(1, 2, 3)))
    divergence = jnp.mean(spread.kl_to_prior())
    targets = guided_targets(config.guided, orientation, data.others[pick])
    guidance = jnp.mean((guided - targets) ** 2) if config.num_guided else jnp.zeros(())
    loss = config.reconstruction * error + divergence + config.guidance * guidance
    return loss, {"reconstruction": error, "divergence": divergence, "guidance": guidance}


def start_guided(
    key: Array,
    image: Float[np.ndarray, "galaxy row column band"],
    truth: Mapping[str, Float[np.ndarray, " galaxy"]],
    config: GuidedConfig,
) -> tuple[GuidedVAE, GuidedData]:
    """The untrained autoencoder, scaled for these galaxies, and what it learns from.

    Args:
        image: linear fluxes, in any unit.
        truth: by name; "orientation" [rad] for either kind of angle. What nothing is guided to is not looked at.

    Raises:
        ValueError: images of another shape or with pixels that are not numbers; truth that is missing, of another length, not a
            number, or the same for all galaxies.
    """
    image = _checked_images(image, config)
    brightest = image.max(axis=(1, 2)).mean(axis=0)
    if not np.all(brightest > 0.0):
        raise ValueError(f"images: the brightest pixels are {brightest} on average in each band; positive ones wanted")
    names = [name for name in config.guided if name not in ANGLES]
    others = np.stack([_column(truth, name, len(image)) for name in names] or [np.zeros((0,))], axis=-1)
    others = others.reshape(len(image), len(names))
    orientation = np.zeros(len(image))
    if set(ANGLES) & set(config.guided):
        orientation = _column(truth, "orientation", len(image))
    standard = Standard(jnp.asarray(others.mean(axis=0)), jnp.asarray(others.std(axis=0)))
    parts = init_image_networks(key, config.latent, config.network, config.channels, config.num_features)
    vae = GuidedVAE(parts, jnp.asarray(brightest), standard, None, config)
    if config.apertures:
        vae = dataclasses.replace(vae, whitening=fit_whitening(map_batches(_aperture_logs, vae, image, _MANY)))
    logs, features = (map_batches(each, vae, image, _MANY) for each in (GuidedVAE.unsaturated, GuidedVAE.features))
    scaled = (others - others.mean(axis=0)) / others.std(axis=0)
    named = {"image": logs, "features": features, "orientation": orientation, "others": scaled}
    arrays = {name: jnp.asarray(each, jnp.float32) for name, each in named.items()}
    return vae, GuidedData(**arrays, config=config)


def fit_guided(
    key: Array,
    image: Float[np.ndarray, "galaxy row column band"],
    truth: Mapping[str, Float[np.ndarray, " galaxy"]],
    config: GuidedConfig | None = None,
    stage: Stage = STAGE,
    callback: Callable[[StageState, dict[str, float]], None] | None = None,
) -> GuidedVAE:
    """Train on images with known truth. Args and errors as `start_guided`; the callback is `run_stage`'s."""
    keys = jax.random.split(key)
    vae, data = start_guided(keys[0], image, truth, config or GuidedConfig())
    parts = run_stage(keys[1], stage, guided_loss, data, vae.parts, callback=callback)
    return dataclasses.replace(vae, parts=parts)


def save_guided(folder: Path | str, vae: GuidedVAE, meta: Mapping[str, Any]) -> None:
    """Write `weights.safetensors` and `guided.json` into a folder.

    Args:
        meta: what else to say, in JSON's types.
    """
    fields = {"config": dataclasses.asdict(vae.config), "meta": dict(meta)}
    tree = (vae.parts, vae.brightest, vae.standard, vae.whitening)
    save_described(Path(folder), tree, DESCRIPTION, "guided VAE", FORMAT_VERSION, fields)


def load_guided(folder: Path | str) -> tuple[GuidedVAE, dict[str, Any]]:
    """An autoencoder written by `save_guided`, and what else was said of it.

    Raises:
        StorageError: a missing, damaged, changed or newer file; the message says which and what to do.
    """
    path = Path(folder) / DESCRIPTION
    fields = load_described(path, "guided VAE", FORMAT_VERSION, "train an autoencoder and save it there first")
    try:
        raw = _BEFORE | dict(fields["config"])
        network = _BEFORE_NETWORK | dict(raw["network"])
        network["channels"] = tuple(network["channels"])
        raw |= {"guided": tuple(raw["guided"]), "apertures": tuple(raw["apertures"])}
        config = GuidedConfig(**raw | {"network": ImageNetworkConfig(**network)})
        meta = dict(fields["meta"])
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{path} is damaged: {error}") from None
    num = len(set(config.guided) - set(ANGLES))
    parts = init_image_networks(jax.random.key(0), config.latent, config.network, config.channels, config.num_features)
    standard = Standard(jnp.zeros(num), jnp.zeros(num))
    num = config.num_features
    whitening = Whitening(jnp.zeros(num), jnp.zeros((num, num))) if num else None
    like = (parts, jnp.zeros(config.network.num_bands), standard, whitening)
    return GuidedVAE(*load_tree(path.parent / WEIGHTS, like), config), meta


def _encoded(config: GuidedConfig, parts: Parts, logs: Array, features: Array) -> Moments:
    """Latents of unsaturated images and features."""
    seen = [jnp.tanh(logs)] + [_FAINT * logs] * config.unsaturated
    network = ImageEncoder(config.latent, config.network)
    return cast(Moments, network.apply(parts["encoder"], jnp.concatenate(seen, axis=-1), features))


def _aperture_logs(vae: GuidedVAE, image: Array) -> Float[Array, "galaxy feature"]:
    fluxes = aperture_fluxes(image, vae.config.apertures)
    return jnp.arcsinh(vae.config.stretch * fluxes / vae.brightest).reshape(len(image), -1)


def _means(vae: GuidedVAE, image: Array) -> Array:
    return vae.moments(image).mean


def _both(vae: GuidedVAE, image: Array) -> tuple[Array, Array]:
    return vae.stretched(image), vae.decode(vae.moments(image).mean)


def _checked_images(image: Any, config: GuidedConfig) -> Float[np.ndarray, "galaxy row column band"]:
    image = np.asarray(image)
    wanted = (config.network.size, config.network.size, config.network.num_bands)
    if image.ndim != 4 or image.shape[1:] != wanted or len(image) == 0:
        raise ValueError(f"images of shape {image.shape}: (galaxy, {', '.join(map(str, wanted))}) wanted")
    odd = int(np.sum(~np.isfinite(image).all(axis=(1, 2, 3))))
    if odd:
        raise ValueError(f"images: {odd} of {len(image)} have pixels that are not numbers; fill or leave them out")
    return image


def _column(truth: Mapping[str, Any], name: str, num: int) -> Float[np.ndarray, " galaxy"]:
    """One of the truth's columns, checked."""
    if name not in truth:
        raise ValueError(f"truth: nothing named {name!r}, to which a latent is guided; there are {', '.join(truth)}")
    values = np.asarray(truth[name], float)
    if values.shape != (num,):
        raise ValueError(f"truth: {name} has shape {values.shape}; one number for each of {num} images wanted")
    if not np.isfinite(values).all():
        raise ValueError(f"truth: {int(np.sum(~np.isfinite(values)))} values of {name} are not numbers")
    if np.ptp(values) == 0.0:
        raise ValueError(f"truth: {name} is the same for all galaxies: there is nothing to learn")
    return values
