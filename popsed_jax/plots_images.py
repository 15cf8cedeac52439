"""Figures of autoencoders of images: what comes back, what latents know, orientations around their period."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from popsed_jax.plots_base import (
    DATA_EDGE,
    DATA_FILL,
    MODEL,
    REFERENCE,
    WIDTH,
    NothingToPlotError,
    panels,
    shared_legend,
    tidy,
)

__all__ = ["plot_image_latents", "plot_orientation", "plot_reconstructions"]

_STYLES = ((REFERENCE, "D"), ("#CC79A7", "s"), ("black", "^"), (MODEL, "v"))  # of rare kinds: colour, marker
_BIN = 12  # bins of orientation
_COLLAPSED = 0.05  # scatter of a latent, in that of the widest


def plot_reconstructions(
    seen: Float[np.ndarray, "galaxy row column band"],
    again: Float[np.ndarray, "galaxy row column band"],
    titles: Sequence[str],
) -> Figure:
    """Images, what the latents give back, and the difference (scaled by itself, the same for all), one galaxy a column.

    Args:
        seen, again: as `GuidedVAE.reconstruct` makes them: stretched, mostly between 0 and 1.
        titles: of the galaxies.

    Raises:
        NothingToPlotError: no images.
        ValueError: shapes that do not fit.

    Notes: three bands are shown from the reddest (red) to the bluest (blue); of any other number, their mean in grey.
    """
    if len(seen) == 0:
        raise NothingToPlotError("no images: give at least one")
    if seen.shape != again.shape or len(titles) != len(seen):
        raise ValueError(
            f"images {seen.shape}, reconstructions {again.shape} and {len(titles)} titles do not fit together"
        )
    figure = Figure(figsize=(WIDTH, 3.0 * WIDTH / max(len(seen), 6) + 0.5), layout="constrained")
    axes = np.atleast_2d(figure.subplots(3, len(seen), squeeze=False))
    largest = max(float(np.percentile(np.abs(again - seen), 99.5)), 1e-6)
    rows = {
        "image": seen,
        "from latents": again,
        rf"difference, $\pm$ {largest:.2f}": 0.5 + 0.5 * (again - seen) / largest,
    }
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(line, images, strict=True):
            _show(ax, image)
        line[0].set_ylabel(name, fontsize=9)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title.replace(" ", "\n", 1), fontsize=9)
    return figure


def _show(ax: Axes, image: Float[np.ndarray, "row column band"]) -> None:
    """An image in colour; rows rise upwards."""
    picture = image[..., ::-1] if image.shape[-1] == 3 else np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1)
    ax.imshow(np.clip(picture, 0.0, 1.0), origin="lower", interpolation="nearest")
    ax.set(xticks=[], yticks=[])


def plot_image_latents(
    latents: Float[np.ndarray, "galaxy latent"],
    names: Sequence[str],
    redshift: Float[np.ndarray, " galaxy"],
    kind: Int[np.ndarray, " galaxy"],
    kinds: Sequence[str],
) -> Figure:
    """Neighbouring latents against each other: ordinary galaxies coloured by redshift, the rare kinds marked.

    Latents in which an autoencoder has put nothing, those that hardly vary, are left out while two others are there.

    Args:
        names: of the latents.
        kind: number in `kinds`, 0 for ordinary.

    Raises:
        NothingToPlotError: no galaxies, or fewer than two latents.
    """
    if len(latents) == 0 or latents.shape[1] < 2:
        raise NothingToPlotError(f"latents of shape {latents.shape}: rows of at least two latents wanted")
    spread = np.std(latents, axis=0)
    used = [i for i, each in enumerate(spread) if each > _COLLAPSED * spread.max()]
    used = used if len(used) > 1 else list(range(latents.shape[1]))
    pairs = list(pairwise(used))[-6:]
    figure, axes = panels(len(pairs), columns=3, height=3.0)
    ordinary = kind == 0
    limits = np.percentile(latents, [0.1, 99.9], axis=0)
    margin = 0.08 * (limits[1] - limits[0])
    for ax, (i, j) in zip(axes, pairs, strict=True):
        style: dict[str, Any] = {"s": 3, "cmap": "viridis", "linewidth": 0, "rasterized": True, "alpha": 0.7}
        shown = ax.scatter(latents[ordinary, i], latents[ordinary, j], c=redshift[ordinary], **style)
        for number, (color, marker) in zip(range(1, len(kinds)), _STYLES, strict=False):
            rare = kind == number
            mark: dict[str, Any] = {"s": 14, "color": color, "marker": marker, "edgecolor": "white", "linewidth": 0.3}
            ax.scatter(latents[rare, i], latents[rare, j], label=kinds[number], **mark)
        ax.set(xlabel=names[i], ylabel=names[j])
        ax.set_xlim(limits[0, i] - margin[i], limits[1, i] + margin[i])
        ax.set_ylim(limits[0, j] - margin[j], limits[1, j] + margin[j])
        tidy(ax)
    figure.colorbar(shown, ax=axes, label="redshift", pad=0.01, aspect=40)
    shared_legend(figure, axes[:1])
    return figure


def plot_orientation(
    truth: Float[np.ndarray, " galaxy"],
    found: Float[np.ndarray, " galaxy"],
    elongated: Bool[np.ndarray, " galaxy"],
) -> Figure:
    """Orientations against the truth, and their error, wrapped to the period, with its mean in bins of the truth.

    Args:
        truth, found: [rad], between -pi/2 and pi/2.
        elongated: which galaxies have an orientation to speak of; the others are left out.

    Raises:
        NothingToPlotError: no elongated galaxies.
    """
    if not np.any(elongated):
        raise NothingToPlotError("no elongated galaxies: orientations of round ones mean nothing")
    truth, found = truth[elongated], found[elongated]
    error = (found - truth + 0.5 * np.pi) % np.pi - 0.5 * np.pi
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = (-0.5 * np.pi, 0.5 * np.pi)
    style: dict[str, Any] = {"s": 3, "color": DATA_EDGE, "linewidth": 0, "alpha": 0.5, "rasterized": True}
    left.plot(ends, ends, color="black", linewidth=0.9)
    left.scatter(truth, found, **style)
    left.set(xlim=ends, ylim=(1.05 * ends[0], 1.05 * ends[1]), xlabel="orientation [rad]", ylabel="from latents [rad]")
    right.axhline(0.0, color="black", linewidth=0.9)
    right.scatter(truth, error, **style)
    edges = np.linspace(*ends, _BIN + 1)
    which = np.clip(np.digitize(truth, edges) - 1, 0, _BIN - 1)
    full = [i for i in range(_BIN) if np.sum(which == i) > 1]
    mean = np.array([np.mean(error[which == i]) for i in full])
    spread = np.array([np.std(error[which == i]) / np.sqrt(np.sum(which == i)) for i in full])
    middle = 0.5 * (edges[1:] + edges[:-1])[full]
    for ax in (left, right):
        ax.axvspan(ends[0], ends[0] + 0.1, color=DATA_FILL, linewidth=0, zorder=0)
        ax.axvspan(ends[1] - 0.1, ends[1], color=DATA_FILL, linewidth=0, zorder=0)
        tidy(ax)
    right.errorbar(
        middle, mean, yerr=spread, color=MODEL, marker="o", markersize=4, linewidth=1.2, label="mean in bins"
    )
    largest = float(np.clip(1.2 * np.percentile(np.abs(error), 97.0), 0.1, 0.5 * np.pi))
    right.set(xlim=ends, ylim=(-largest, largest), xlabel="orientation [rad]", ylabel="error, wrapped [rad]")
    right.legend(frameon=False, fontsize=9, loc="upper center")
    return figure
