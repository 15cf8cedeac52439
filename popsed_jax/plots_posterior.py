"""Figures that judge posteriors of single galaxies: ranks, coverage, redshifts, screening and stacked p(z)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from scipy.stats import kstest

from popsed_jax.diagnostics.calibration import Tarp, uniform_band
from popsed_jax.diagnostics.gridded import normalised
from popsed_jax.diagnostics.photoz import OUTLIERS, scaled_error
from popsed_jax.plots_base import (
    DASHED,
    DATA_EDGE,
    DATA_FILL,
    DOTTED,
    MODEL,
    REFERENCE,
    STYLES,
    WIDTH,
    NothingToPlotError,
    bin_edges,
    draw_data,
    panels,
    shared_legend,
    tidy,
)

__all__ = ["plot_ranks", "plot_redshifts", "plot_screening", "plot_stack", "plot_tarp"]

Curve = TypeVar("Curve")
_WHITE = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}


def plot_ranks(ranks: Mapping[str, Float[np.ndarray, " galaxy"]], num_bins: int = 20) -> Figure:
    """Histograms of ranks of the truth (SBC) or of PITs, over the band of a uniform distribution.

    Args:
        ranks: between 0 and 1, by axis label.

    Raises:
        NothingToPlotError: no ranks.

    Notes: too narrow posteriors pile up at both ends, too wide ones in the middle, biased ones at one end. One bin in twenty
        lies outside its 95 % band by chance.
    """
    if not ranks:
        raise NothingToPlotError("no ranks: give at least one parameter's")
    figure, axes = panels(len(ranks), columns=4, height=1.9)
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    for ax, (label, values) in zip(axes, ranks.items(), strict=True):
        expected = len(values) / num_bins
        low, high = (count / expected for count in uniform_band(len(values), num_bins))
        ax.axhspan(low, high, color=DATA_FILL, linewidth=0, label="uniform, 95 % of each bin")
        ax.axhline(1.0, color=DATA_EDGE, linewidth=0.8)
        counts = np.histogram(values, edges)[0] / expected
        ax.stairs(counts, edges, color=MODEL, linewidth=1.5, baseline=None, label="galaxies")
        text = f"KS: p = {kstest(values, 'uniform').pvalue:.2g}"
        ax.text(0.96, 0.95, text, transform=ax.transAxes, ha="right", va="top", fontsize=9, bbox=_WHITE)
        ax.set(xlim=(0, 1), ylim=(0, 1.3 * max(high, counts.max())), xlabel=label)
        tidy(ax)
    for ax in axes[:: min(4, len(axes))]:
        ax.set_ylabel("galaxies / uniform")
    shared_legend(figure, axes[:1])
    return figure


def plot_tarp(curves: Mapping[str, Tarp], tolerance: float = 0.03) -> Figure:
    """Expected coverage against credibility, and their difference with 95 % bands.

    Args:
        curves: by name.
        tolerance: marked in the difference.

    Raises:
        NothingToPlotError: no curves.

    Notes: too narrow posteriors cover too little, above all at high levels, too wide ones too much.
    """
    if not curves:
        raise NothingToPlotError("no coverage: give at least one curve")
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=DATA_EDGE, linewidth=0.9)
    right.axhspan(-tolerance, tolerance, color=DATA_FILL, linewidth=0, label=f"within {tolerance:g}")
    right.axhline(0.0, color=DATA_EDGE, linewidth=0.9)
    for (name, curve), (color, style) in _styled(curves):
        left.plot(curve.levels, curve.coverage, color=color, linestyle=style, linewidth=1.6, label=name)
        gap = curve.coverage - curve.levels
        right.fill_between(
            curve.levels, gap - 1.96 * curve.error, gap + 1.96 * curve.error, color=color, alpha=0.2, lw=0
        )
        right.plot(curve.levels, gap, color=color, linestyle=style, linewidth=1.6)
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="credibility level", ylabel="expected coverage", aspect="equal")
    right.set(xlim=(0, 1), xlabel="credibility level", ylabel="coverage - level")
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(2, len(names)), frameon=False, fontsize=9)
    right.legend(frameon=False, fontsize=9, loc="upper left")
    for ax in (left, right):
        tidy(ax)
    return figure


def plot_redshifts(
    redshift: Float[np.ndarray, " galaxy"],
    truth: Float[np.ndarray, " galaxy"],
    metrics: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """Photometric against spectroscopic redshifts, with the lines of outliers, and the scaled error below.

    Args:
        metrics: as `point_metrics` makes them, to be written beside.
    """
    figure = Figure(figsize=(0.62 * WIDTH, 7.0), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.0, 1.2])
    error = scaled_error(redshift, truth)
    limits = (0.0, 1.05 * float(np.percentile(np.concatenate([redshift, truth]), 99.7)))
    bins = int(np.clip(2.0 * len(truth) ** (1.0 / 3.0), 30, 120))
    largest = min(0.5, max(0.2, 1.1 * float(np.percentile(np.abs(error), 99.5))))
    meshes = [_count_plane(top, truth, redshift, (limits, limits), bins)]
    meshes.append(_count_plane(bottom, truth, error, (limits, (-largest, largest)), bins))
    for ax in (top, bottom):
        tidy(ax)
    grid = np.array(limits)
    top.plot(grid, grid, color="black", linewidth=0.9)
    bottom.axhline(0.0, color="black", linewidth=0.9)
    for limit, style in zip(OUTLIERS.values(), (DASHED, DOTTED), strict=True):
        for sign in (1.0, -1.0):
            label = rf"$\pm$ {limit:g} (1 + z)" if sign > 0 else None
            top.plot(grid, grid + sign * limit * (1.0 + grid), color=REFERENCE, linestyle=style, lw=1.3, label=label)
            bottom.axhline(sign * limit, color=REFERENCE, linestyle=style, linewidth=1.3)
    if metrics:
        top.text(0.97, 0.04, _point_text(metrics), transform=top.transAxes, ha="right", fontsize=9, bbox=_WHITE)
    top.set_ylabel("photometric redshift")
    bottom.set(xlabel="spectroscopic redshift", ylabel=r"$\Delta z\,/\,(1 + z)$")
    top.legend(framealpha=0.8, edgecolor="none", fontsize=9, loc="upper left")
    for ax, mesh in zip((top, bottom), meshes, strict=True):
        figure.colorbar(mesh, ax=ax, label="galaxies", pad=0.01)
    return figure


def _count_plane(
    ax: Axes,
    x: Float[np.ndarray, " galaxy"],
    y: Float[np.ndarray, " galaxy"],
    limits: tuple[tuple[float, float], tuple[float, float]],
    bins: int,
) -> QuadMesh:
    """Galaxies counted in cells of a plane."""
    counts, *edges = np.histogram2d(x, y, bins=bins, range=limits)
    norm = LogNorm(1, max(counts.max(), 2))
    ax.set(xlim=limits[0], ylim=limits[1])
    return ax.pcolormesh(*edges, np.ma.masked_equal(counts.T, 0), cmap="viridis", norm=norm, rasterized=True)


def _point_text(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """The metrics of points as lines of text."""
    names = {"bias": "bias", "sigma_nmad": r"$\sigma_{\rm NMAD}$"}
    lines = [rf"{names[k]} = {metrics[k]['value']:.4f} $\pm$ {metrics[k]['error']:.4f}" for k in names]
    for name, limit in OUTLIERS.items():
        value, error = (100.0 * metrics[name][key] for key in ("value", "error"))
        lines.append(rf"outliers > {limit:g}: {value:.1f} $\pm$ {error:.1f} %")
    return "\n".join(lines)


def plot_screening(curves: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Scatter and outliers of the galaxies kept against the fraction set aside, with bootstrap errors.

    Args:
        curves: as `screening_curve` makes them, by name.

    Raises:
        NothingToPlotError: no curves.
    """
    if not curves:
        raise NothingToPlotError("no screening: give at least one curve")
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    titles = {"sigma_nmad": r"$\sigma_{\rm NMAD}$ of those kept"}
    titles |= {name: f"outliers > {limit:g} [%]" for name, limit in OUTLIERS.items()}
    axes = figure.subplots(1, len(titles))
    for ax, (column, title) in zip(axes, titles.items(), strict=True):
        scale = 1.0 if column == "sigma_nmad" else 100.0
        for (name, curve), (color, style) in _styled(curves):
            aside = 100.0 * curve["fraction"]
            value, error = scale * curve[column], scale * curve[f"{column}_error"]
            ax.fill_between(aside, value - error, value + error, color=color, alpha=0.2, linewidth=0)
            ax.plot(aside, value, color=color, linestyle=style, linewidth=1.6, label=name)
        ax.set(xlabel="set aside [%]", ylabel=title, xlim=(aside[0], aside[-1]))
        ax.set_ylim(bottom=0.0)
        tidy(ax)
    shared_legend(figure, axes)
    return figure


def plot_stack(
    grid: Float[np.ndarray, " grid"],
    densities: Mapping[str, Float[np.ndarray, "galaxy grid"]],
    truth: Float[np.ndarray, " galaxy"] | None = None,
) -> Figure:
    """Mean p(z) of all galaxies, beside the histogram of their spectroscopic redshifts where these are known.

    Args:
        densities: by name; any positive multiple.
        truth: of the same galaxies.

    Raises:
        NothingToPlotError: no densities.

    Notes: a stack of posteriors is wider than n(z) unless their prior was n(z): it checks the prior, it is no estimate.
        (Malz & Hogg 2022, arXiv:2007.12178)
    """
    if not densities:
        raise NothingToPlotError("no densities: give at least one set")
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    ax: Axes = figure.subplots()
    tallest = np.inf
    if truth is not None:
        edges = bin_edges((grid[0], grid[-1]), len(truth))
        draw_data(ax, np.asarray(truth, float), edges, "spectroscopic")
        tallest = ax.dataLim.y1
    for (name, density), (color, style) in _styled(densities):
        mean = np.mean(normalised(grid, density)[1], axis=0)
        ax.plot(grid, mean, color=color, linestyle=style, linewidth=1.6, label=name)
    ax.set(xlim=(grid[0], grid[-1]), xlabel="redshift", ylabel="n(z), unit area")
    # A few samples with all the weight, under a prior that few reach, make spikes that would squash all else.
    ax.set_ylim(0.0, min(ax.get_ylim()[1], 2.0 * tallest))
    ax.legend(frameon=False, fontsize=9)
    tidy(ax)
    return figure


def _styled(curves: Mapping[str, Curve]) -> list[tuple[tuple[str, Curve], tuple[str, Any]]]:
    """Names and curves, each with a colour and a line style."""
    return [(item, STYLES[i % len(STYLES)]) for i, item in enumerate(curves.items())]
