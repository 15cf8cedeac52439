"""Figures of a search for anomalies: contamination against completeness, and where in a latent space they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from popsed_jax.diagnostics.anomaly_curve import AnomalyCurve
from popsed_jax.plots_base import (
    DATA_EDGE,
    DATA_FILL,
    STYLES,
    WIDTH,
    NothingToPlotError,
    panels,
    shared_legend,
    span,
    tidy,
)

__all__ = ["plot_anomaly_curves", "plot_latents"]

_MARKERS = ("o", "D", "^", "s", "v", "P")  # of classes, with the colours of `STYLES`
_ORDINARY = "#a6a6a6"
_MOST_PANELS = 3


def plot_anomaly_curves(
    curves: Mapping[str, AnomalyCurve], target: tuple[float, float] | None = (0.98, 0.05), corner: float = 0.2
) -> Figure:
    """Contamination against completeness, with bootstrap errors at the same completeness; right, the corner that matters.

    Args:
        curves: by name.
        target: at least this completeness with at most this contamination, marked; None for no mark.
        corner: width and height of the corner that is shown enlarged.

    Raises:
        NothingToPlotError: no curves.
        ValueError: a corner that is not above 0 and below 1.

    Notes: a random score lies on a level line at the ordinary rows' share. Steps are single anomalies. The band is around the
        cleanest threshold with at least that completeness (`at_completeness`), below the line where that rises and falls again.
    """
    if not curves:
        raise NothingToPlotError("no search: give at least one curve")
    if not 0.0 < corner < 1.0:
        raise ValueError(f"corner = {corner} must be above 0 and below 1")
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    left, right = axes = figure.subplots(1, 2)
    for ax in axes:
        if target is not None:
            _mark_target(ax, *target)
        for i, (name, curve) in enumerate(curves.items()):
            _draw_curve(ax, curve, i, f"{name} (area {_with_error(curve.area, curve.area_error)})")
        ax.set(xlabel="completeness [%]", ylabel="contamination [%]")
        tidy(ax)
    left.set(xlim=(0, 101), ylim=(-1, 101))
    # A curve along the axis is seen only where there is room below it.
    right.set(xlim=(100 - 100 * corner, 100 + 2 * corner), ylim=(-4 * corner, 100 * corner))
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def _draw_curve(ax: Axes, curve: AnomalyCurve, number: int, label: str) -> None:
    """The curve's line over its band."""
    color, style = STYLES[number % len(STYLES)]
    # Few levels make a band: its edges are smoother than the curve.
    levels = np.unique(np.linspace(0.0, 1.0, 101)[1:].round(2))
    points = [curve.at_completeness(float(level)) for level in levels]
    value, error = (100.0 * np.array([getattr(point, name) for point in points]) for name in ("contamination", "error"))
    band = np.clip(value - error, 0.0, 100.0), np.clip(value + error, 0.0, 100.0)
    ax.fill_between(100.0 * levels, *band, color=color, alpha=0.2, linewidth=0)
    ax.plot(100 * curve.completeness, 100 * curve.contamination, color=color, linestyle=style, lw=1.6, label=label)


def _mark_target(ax: Axes, completeness: float, contamination: float) -> None:
    """The corner that a search is to reach, in grey."""
    corner = (100.0 * completeness, 0.0)
    size = (100.0 * (1.0 - completeness), 100.0 * contamination)
    text = rf"wanted: $\geq$ {100 * completeness:g} %, at most {100 * contamination:g} % ordinary"
    ax.add_patch(Rectangle(corner, *size, facecolor=DATA_FILL, edgecolor=DATA_EDGE, linewidth=0.8, label=text))


def _with_error(value: float, error: float) -> str:
    return rf"{value:.3f} $\pm$ {error:.3f}"


def plot_latents(
    latents: Float[np.ndarray, "row latent"],
    labels: Int[np.ndarray, " row"],
    names: Sequence[str],
    classes: Mapping[int, str] | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> Figure:
    """Pairs of latents: the ordinary in grey, each class of anomalies in its own colour and marker, on top.

    Args:
        labels: 0 for ordinary, a number above zero for each anomalous class.
        names: the latents' axis labels, one for each.
        classes: what the labels are called, for the legend.
        pairs: latents of each panel, by column; the first against the second, the second against the third and so on, in up
            to three panels, by default.

    Raises:
        NothingToPlotError: no rows, or fewer than two latents.
        ValueError: shapes that do not fit.

    Notes: axes hold nearly all of the ordinary and of every class; a few of their rows may lie outside.
    """
    latents, labels = np.asarray(latents, float), np.asarray(labels)
    if latents.ndim != 2 or len(latents) == 0 or latents.shape[1] < 2:
        raise NothingToPlotError(f"latents of shape {latents.shape}: rows of at least two latents wanted")
    if labels.shape != latents.shape[:1] or len(names) != latents.shape[1]:
        raise ValueError(
            f"{labels.shape} labels and {len(names)} names do not fit latents of shape {latents.shape}: "
            "a label for each row and a name for each latent wanted"
        )
    pairs = pairs or [(i, i + 1) for i in range(min(latents.shape[1] - 1, _MOST_PANELS))]
    figure, axes = panels(len(pairs), columns=_MOST_PANELS, height=3.3)
    found = [int(label) for label in np.unique(labels)]
    for ax, pair in zip(axes, pairs, strict=True):
        x, y = latents[:, pair[0]], latents[:, pair[1]]
        _draw_classes(ax, x, y, labels, {0: "ordinary"} | dict(classes or {}))
        ax.set(xlabel=names[pair[0]], ylabel=names[pair[1]])
        ax.set_xlim(span([x[labels == label] for label in found]))
        ax.set_ylim(span([y[labels == label] for label in found]))
        tidy(ax)
    shared_legend(figure, axes[:1])
    return figure


def _draw_classes(ax: Axes, x: np.ndarray, y: np.ndarray, labels: np.ndarray, classes: Mapping[int, str]) -> None:
    """Points of every class; the ordinary first, so that they hide no anomaly."""
    style: dict[str, Any]
    ordinary = labels == 0
    if np.any(ordinary):
        size = float(np.clip(1e4 / np.sum(ordinary), 1.5, 12.0))
        style = {"s": size, "color": _ORDINARY, "linewidth": 0, "alpha": 0.7, "rasterized": True}
        ax.scatter(x[ordinary], y[ordinary], **style)
        # Of thousands of points, one is too small for a legend.
        ax.plot([], [], "o", color=_ORDINARY, markersize=4, label=_counted(classes[0], ordinary))
    for i, label in enumerate(label for label in np.unique(labels) if label != 0):
        color, marker = STYLES[i % len(STYLES)][0], _MARKERS[i % len(_MARKERS)]
        chosen = labels == label
        words = _counted(classes.get(int(label), f"class {label}"), chosen)
        size = float(np.clip(3000.0 / np.sum(chosen), 5.0, 16.0))
        style = {"s": size, "color": color, "marker": marker, "linewidth": 0.025 * size, "edgecolor": "white"}
        ax.scatter(x[chosen], y[chosen], label=words, **style)


def _counted(name: str, chosen: np.ndarray) -> str:
    return f"{name} ({np.sum(chosen)})"
