"""Figures of autoencoders: losses of the stages, decoded spectra, and two parameters of a galaxy together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from popsed_jax.plots_base import DATA_EDGE, MODEL, REFERENCE, WIDTH, NothingToPlotError, panels, tidy
from popsed_jax.posteriors.survey import Photometry
from popsed_jax.posteriors.vae import MultiModalVAE

__all__ = ["plot_decoded", "plot_joint", "plot_losses"]


def plot_losses(history: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Mean of the losses' terms in each chunk of each stage.

    Raises:
        NothingToPlotError: no chunk was finished.
    """
    history = {stage: chunks for stage, chunks in history.items() if chunks}
    if not history:
        raise NothingToPlotError("no chunk of the training was finished: train on with --resume")
    figure, axes = panels(len(history), columns=3, height=2.4)
    for ax, (stage, chunks) in zip(axes, history.items(), strict=True):
        names = [name for name in chunks[0] if name != "loss"]
        for i, name in enumerate(names):
            color = (MODEL, REFERENCE, DATA_EDGE)[i % 3]
            values = [chunk[name] for chunk in chunks]
            ax.plot(np.arange(1, len(chunks) + 1), values, color=color, label=name.removeprefix("photometry_"))
        if min(chunk[name] for name in names for chunk in chunks) > 0.0:
            ax.set_yscale("log")
        ax.set(xlabel="chunk", title=stage)
        ax.legend(frameon=False, fontsize=8)
        tidy(ax)
    return figure


def plot_decoded(
    vae: MultiModalVAE, photometry: Photometry, waves: Float[np.ndarray, " band"], num: int = 60
) -> Figure:
    """What latents of each galaxy's photometry decode to, over the photometry itself.

    Args:
        photometry: of a few galaxies.
        waves: effective wavelengths of the bands [Angstrom].
        num: latents of each.
    """
    latent = vae.moments(photometry).sample(jax.random.key(0), num)
    flux, wave = np.asarray(vae.decode(latent).flux), np.asarray(vae.grid.wave)
    figure, axes = panels(len(flux), columns=3, height=2.3)
    for i, ax in enumerate(axes):
        low, middle, high = 1e9 * np.percentile(flux[i], [16.0, 50.0, 84.0], axis=0)
        ax.fill_between(wave / 1e4, low, high, color=MODEL, alpha=0.3, linewidth=0, label="decoded, 68 %")
        ax.plot(wave / 1e4, middle, color=MODEL, linewidth=1.0)
        there = np.asarray(photometry.there[i])
        seen, error = (1e9 * np.asarray(part[i])[there] for part in (photometry.flux, photometry.error))
        ax.errorbar(waves[there] / 1e4, seen, error, fmt="o", color="black", markersize=4, label="photometry")
        ax.set(xlabel=r"observed wavelength [$\mu$m]", ylim=(0.0, 1.4 * max(seen.max(), np.median(high))))
        tidy(ax)
    axes[0].set_ylabel("flux [nanomaggies]")
    axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def plot_joint(
    first: Mapping[str, Float[np.ndarray, " sample"]],
    second: Mapping[str, Float[np.ndarray, " sample"]],
    labels: tuple[str, str],
    truth: Mapping[str, float] | None = None,
) -> Figure:
    """Samples of two parameters together, a panel for each galaxy.

    Args:
        first, second: samples, by the galaxy's title.
        labels: of the axes.
        truth: of the first parameter, where it is known.

    Raises:
        NothingToPlotError: no galaxy.
    """
    if not first:
        raise NothingToPlotError("no samples: give at least one galaxy's")
    figure = Figure(figsize=(WIDTH, 2.6 * -(-len(first) // 3)), layout="constrained")
    axes = figure.subplots(-(-len(first) // 3), 3, squeeze=False).ravel()
    for ax, (title, x) in zip(axes, first.items(), strict=False):
        ax.hexbin(x, second[title], gridsize=28, cmap="Blues", mincnt=1, linewidths=0)
        if truth and np.isfinite(truth.get(title, np.nan)):
            ax.axvline(truth[title], color="black", linewidth=1.0, linestyle="--")
        ax.set(xlabel=labels[0], title=title)
        tidy(ax)
    for ax in axes[len(first) :]:
        ax.set_visible(False)
    axes[0].set_ylabel(labels[1])
    return figure
