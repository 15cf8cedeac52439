"""Emulated spectra: principal components of ln L_nu in ranges of wavelength, one network for each. (Alsing+20, sec. 2)

Spectra are per Msun formed, so the mass is exact, and the redshift enters through the age of the Universe alone. What is learned
may be this package's own `GalaxyModel.spectrum`, or a file of anybody's spectra. Where all light passes the diffuse dust (no
dust emission, no nucleus), that dust is exact too, and the networks learn the spectrum before it.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import h5py
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.parameters import Parameter, ParameterSpace
from popsed_jax.sps.config import ModelConfig
from popsed_jax.sps.emulator import EmulatorConfig, Feature, Network, default_features, draw_features, init_networks
from popsed_jax.sps.galaxy import GalaxyModel
from popsed_jax.sps.nebular import LYMAN_LIMIT
from popsed_jax.sps.populations import burst_not_before_the_universe, diffuse_screen

# A spectrum is followed down to this fraction of its largest value (32 mag): single precision tells no more.
DARKEST = 1e-13
_BATCH = 256


@flax.struct.dataclass
class SpectrumEmulator:
    """ln L_nu as a mean and principal components in consecutive ranges of wavelength.

    Attributes:
        networks: from parameters to the coefficients, one for each range.
        mean, components: of ln L_nu in each range.
        wave: rest wavelengths [Angstrom], of all ranges together.
        space: the parameters, with the bounds inside which the networks were trained.
        config: what the galaxies are made of; None for spectra from a file.
        ssp_sha256: checksum of their templates; empty for spectra from a file.
    """

    networks: tuple[Network, ...]
    mean: tuple[Float[Array, " wave"], ...]
    components: tuple[Float[Array, "component wave"], ...]
    wave: Float[Array, " all"]
    space: ParameterSpace = flax.struct.field(pytree_node=False)
    config: ModelConfig | None = flax.struct.field(pytree_node=False)
    ssp_sha256: str = flax.struct.field(pytree_node=False)

    def spectrum(self, theta: Float[Array, " dim"]) -> Float[Array, " all"]:
        """Attenuated rest-frame spectrum of one galaxy [Lsun/Hz]; per Msun formed when log_mass is not a parameter."""
        return self.of_params(self.space.unpack(theta))

    def of_params(self, params: dict[str, Array]) -> Float[Array, " all"]:
        """The same, from parameters by name."""
        mass = 10.0 ** params["log_mass"] if "log_mass" in self.space.names else 1.0
        return jnp.exp(self._log_lum(params)) * mass

    def log_spectrum(self, theta: Float[Array, " dim"]) -> Float[Array, " all"]:
        """ln(L_nu / (Lsun/Hz)) per Msun formed."""
        return self._log_lum(self.space.unpack(theta))

    def _log_lum(self, params: dict[str, Array]) -> Array:
        values = params if self.config is None else burst_not_before_the_universe(self.config.cosmology, params)
        parts = zip(self.networks, self.mean, self.components, strict=True)
        log_lum = jnp.concatenate([mean + network(values) @ rows for network, mean, rows in parts])
        if self.config is None or not passes_screen(self.config):
            return log_lum
        return log_lum - diffuse_screen(self.wave, self.config, params)


def passes_screen(config: ModelConfig) -> bool:
    """Whether all light of these galaxies passes the diffuse dust."""
    return not config.dust_emission and not config.agn


class SpectrumSet(NamedTuple):
    """Spectra to learn from.

    Attributes:
        theta: one row a spectrum.
        log_lum: ln(L_nu / (Lsun/Hz)) per Msun formed.
        wave: rest wavelength [Angstrom].
        space: what the columns of theta are.
    """

    theta: Float[np.ndarray, "num dim"]
    log_lum: Float[np.ndarray, "num wave"]
    wave: Float[np.ndarray, " wave"]
    space: ParameterSpace


def make_spectra(key: Array, model: GalaxyModel, num: int, prior_share: float) -> SpectrumSet:
    """Spectra of the galaxy model at wavelengths that stars are seen in, from the Lyman limit on.

    Args:
        prior_share: fraction drawn from the prior; the others are flat in the networks' features.
    """
    keys = jax.random.split(key, 3)
    flat = draw_features(keys[1], default_features(model.space.parameters), num)
    from_prior = jax.random.uniform(keys[2], (num, 1)) < prior_share
    theta = jnp.where(from_prior, model.space.sample_flat(keys[0], num), model.space.pack(flat))
    theta = theta.at[:, model.space.index("log_mass")].set(0.0)
    wave = np.asarray(model.ssp.wave)
    seen = np.flatnonzero(wave >= LYMAN_LIMIT)
    seen_wave = jnp.asarray(wave[seen], dtype=float)

    @jax.jit
    @jax.vmap
    def compute(one: Array) -> Array:
        if not passes_screen(model.config):
            return log_spectrum(model.spectrum(one)[seen])
        # The floor lies below the light before the dust, so that the dust does not push spectra under it.
        bare = model.spectrum(one.at[model.space.index("tau_v")].set(0.0))[seen]
        return log_spectrum(bare) - diffuse_screen(seen_wave, model.config, model.space.unpack(one))

    padded = jnp.concatenate([theta, theta[: -num % _BATCH]]) if num % _BATCH else theta
    spectra = [np.asarray(compute(padded[i : i + _BATCH])) for i in range(0, len(padded), _BATCH)]
    return SpectrumSet(np.asarray(theta), np.concatenate(spectra)[:num], wave[seen], model.space)


def log_spectrum(lum_nu: Float[Array, "*batch wave"]) -> Float[Array, "*batch wave"]:
    """ln L_nu, not below `DARKEST` of the spectrum's largest value."""
    return jnp.log(jnp.maximum(lum_nu, DARKEST * lum_nu.max(axis=-1, keepdims=True)))


def load_spectra(path: Path | str) -> SpectrumSet:
    """Spectra of any code, from an HDF5 file.

    Datasets: `theta` (num, dim), with the parameters' names in its attribute `names`; `wave` (wave), rest wavelengths
    [Angstrom], increasing; `lum_nu` (num, wave), L_nu [Lsun/Hz] per Msun formed, or of the whole galaxy when one of the
    parameters is log_mass. The bounds are those of the file's theta.

    Raises:
        ValueError: what is missing, of the wrong shape, not finite or not positive, by name.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with h5py.File(path) as file:
            missing = [name for name in ("theta", "wave", "lum_nu") if name not in file]
            if missing:
                raise ValueError(f"{path}: no dataset {', '.join(missing)}; it needs theta, wave and lum_nu")
            if "names" not in file["theta"].attrs:
                raise ValueError(f"{path}: theta needs an attribute 'names' with the name of each column")
            names = [
                n.decode() if isinstance(n, bytes) else str(n) for n in np.atleast_1d(file["theta"].attrs["names"])
            ]
            theta, wave, lum_nu = (np.asarray(file[name], float) for name in ("theta", "wave", "lum_nu"))
    except OSError as error:
        raise ValueError(f"{path} is not an HDF5 file, or is damaged: {error}") from None
    if theta.ndim != 2 or theta.shape[1] != len(names) or len(set(names)) != len(names):
        raise ValueError(f"{path}: theta has shape {theta.shape}, for {len(names)} names: {', '.join(names)}")
    if wave.ndim != 1 or np.any(np.diff(wave) <= 0) or wave[0] <= 0:
        raise ValueError(f"{path}: wave must be one row of positive, increasing wavelengths")
    if lum_nu.shape != (len(theta), len(wave)):
        raise ValueError(f"{path}: lum_nu has shape {lum_nu.shape}, expected {(len(theta), len(wave))}")
    for name, values in (("theta", theta), ("wave", wave), ("lum_nu", lum_nu)):
        if not np.all(np.isfinite(values)):
            row = np.argwhere(~np.isfinite(values))[0]
            raise ValueError(f"{path}: {name} is not finite at {tuple(int(i) for i in row)}")
    if np.any(lum_nu <= 0):
        row = np.argwhere(lum_nu <= 0)[0]
        raise ValueError(
            f"{path}: lum_nu is not positive at {tuple(int(i) for i in row)} (spectrum, wavelength); logarithms are learned: "
            "cut such wavelengths or set a floor"
        )
    constant = [name for name, column in zip(names, theta.T, strict=True) if column.min() == column.max()]
    if constant:
        raise ValueError(f"{path}: {', '.join(constant)} has one value only: leave it out")
    limits = zip(names, theta.min(axis=0), theta.max(axis=0), strict=True)
    space = ParameterSpace(tuple(Parameter(name, float(low), float(high)) for name, low, high in limits))
    if "log_mass" in names:
        lum_nu = lum_nu / 10.0 ** theta[:, space.index("log_mass"), None]
    return SpectrumSet(theta.astype(np.float32), np.log(lum_nu).astype(np.float32), wave, space)


class Segments(NamedTuple):
    """Principal components of spectra in each range of wavelength."""

    edges: tuple[int, ...]
    mean: tuple[np.ndarray, ...]
    components: tuple[np.ndarray, ...]
    coefficients: tuple[np.ndarray, ...]


def _before_screen(spectra: SpectrumSet, config: ModelConfig | None) -> SpectrumSet:
    """The spectra as the networks learn them."""
    if config is None or not passes_screen(config):
        return spectra
    wave, space = jnp.asarray(spectra.wave, dtype=float), spectra.space
    add = jax.jit(
        lambda theta, log_lum: log_lum + jax.vmap(lambda one: diffuse_screen(wave, config, space.unpack(one)))(theta)
    )
    pieces = range(0, len(spectra.theta), _BATCH)
    parts = [
        np.asarray(add(jnp.asarray(spectra.theta[i : i + _BATCH]), jnp.asarray(spectra.log_lum[i : i + _BATCH])))
        for i in pieces
    ]
    return spectra._replace(log_lum=np.concatenate(parts))


def decompose(spectra: SpectrumSet, config: EmulatorConfig) -> Segments:
    """Principal components of ln L_nu in ranges with the same number of wavelengths.

    Raises:
        ValueError: fewer spectra or wavelengths than components.
    """
    edges = np.linspace(0, len(spectra.wave), config.num_segments + 1).astype(int)
    if min(len(spectra.theta), int(np.diff(edges).min())) < config.num_pca:
        raise ValueError(
            f"train_emulator: num_pca = {config.num_pca} components need at least as many spectra and wavelengths in a "
            f"segment; there are {len(spectra.theta)} and {np.diff(edges).min()}"
        )
    mean, components, coefficients = [], [], []
    for low, high in pairwise(edges):
        part = spectra.log_lum[:, low:high].astype(np.float64)
        middle = part.mean(axis=0)
        # Eigenvectors of the covariance: cheaper than a decomposition of many spectra.
        _, vectors = np.linalg.eigh((part - middle).T @ (part - middle))
        rows = vectors[:, ::-1][:, : config.num_pca].T
        mean.append(middle.astype(np.float32))
        components.append(rows.astype(np.float32))
        coefficients.append(((part - middle) @ rows.T).astype(np.float32))
    return Segments(tuple(int(e) for e in edges), tuple(mean), tuple(components), tuple(coefficients))


def spectrum_features(space: ParameterSpace, config: ModelConfig | None) -> tuple[Feature, ...]:
    """Inputs of the networks: all parameters but the mass and what is exact; no table of the redshift, which spectra at rest do
    not need.
    """
    screened = config is not None and passes_screen(config)
    exact = {"log_mass", "tau_v", "dust_index"} if screened else {"log_mass"}
    features = default_features([p for p in space.parameters if p.name not in exact])
    keep = {"t_burst"}
    return tuple(f if f.name in keep else dataclasses.replace(f, num_nodes=0) for f in features)


def draw_spectra(
    truth: tuple[dict[str, Array], tuple[Array, ...]], key: Array, num: int
) -> tuple[dict[str, Array], tuple[Array, ...]]:
    """Some of the stored examples: parameters by name, and coefficients of each range."""
    values, coefficients = truth
    chosen = jax.random.randint(key, (num,), 0, coefficients[0].shape[0])
    return jax.tree.map(lambda column: column[chosen], (values, coefficients))


def init_spectrum_emulator(
    key: Array, spectra: SpectrumSet, config: EmulatorConfig, model: GalaxyModel | None
) -> tuple[SpectrumEmulator, tuple[dict[str, Array], tuple[Array, ...]]]:
    """An untrained emulator, and the examples for `draw_spectra`."""
    model_config = None if model is None else model.config
    segments = decompose(_before_screen(spectra, model_config), config)
    theta = jnp.asarray(spectra.theta)
    values: dict[str, Any] = {name: theta[:, i] for i, name in enumerate(spectra.space.names)}
    if model is not None:
        values = jax.vmap(lambda one: burst_not_before_the_universe(model.cosmology, one))(values)
    coefficients = tuple(jnp.asarray(part) for part in segments.coefficients)
    inputs = (spectrum_features(spectra.space, model_config),) * config.num_segments
    emulator = SpectrumEmulator(
        init_networks(key, inputs, coefficients, config),
        tuple(jnp.asarray(part) for part in segments.mean),
        tuple(jnp.asarray(part) for part in segments.components),
        jnp.asarray(spectra.wave, dtype=float),
        space=spectra.space,
        config=model_config,
        ssp_sha256="" if model is None else model.ssp.sha256,
    )
    return emulator, (values, coefficients)
