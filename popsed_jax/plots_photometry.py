"""Figures of a finished run that compare photometry: magnitudes, colours and their planes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from astropy.table import Table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from popsed_jax.plots_base import (
    DASHED,
    DATA_EDGE,
    DATA_FILL,
    MODEL,
    REFERENCE,
    NothingToPlotError,
    RunTables,
    bin_edges,
    color_of,
    contours_of,
    density,
    draw_band,
    draw_data,
    member_density,
    members_of,
    outline,
    panels,
    shared_legend,
    smallest_of,
    span,
    tidy,
    values_of,
)

__all__ = ["plot_colors", "plot_photometry"]

_MAX_POINTS = 1500
_Quantity = Callable[[Table], np.ndarray]


def plot_photometry(tables: RunTables) -> Figure:
    """Simulated over observed magnitudes, then colours of neighbouring bands, with the 1-D Wasserstein distances."""
    num = len(tables.bands)
    # Magnitudes and colours each in rows of their own, as few as can be.
    columns = num if num <= 5 else min((5, 4), key=lambda c: -(-num // c) - (-(num - 1) // c))
    figure, axes = panels(-(-num // columns) * columns + len(tables.colors), columns, height=2.05)
    magnitudes, colors = axes[:num], axes[-len(tables.colors) :] if tables.colors else []
    for ax in axes[num : len(axes) - len(tables.colors)]:
        ax.remove()  # colours begin on a row of their own
    for ax, band in zip(magnitudes, tables.bands, strict=True):
        _one_dimensional(ax, tables, partial(values_of, name=f"mag_{band}"), f"{band} [mag]")
        _distance_note(ax, tables.metrics["bands"].get(band))
    for ax, color in zip(colors, tables.colors, strict=True):
        name = f"{color[0]}-{color[1]}"
        _one_dimensional(ax, tables, partial(color_of, color=color), f"{color[0]} − {color[1]} [mag]")
        _distance_note(ax, tables.metrics.get("colors", {}).get(name))
    shared_legend(figure, magnitudes[:1])
    return figure


def _one_dimensional(ax: Axes, tables: RunTables, value: _Quantity, label: str) -> None:
    """One quantity of the photometry: data, ensemble and reference."""
    data, model, before = (tables.simulated(kind) for kind in ("data", "model", "reference"))
    observed, learned = value(data), value(model)
    edges = bin_edges(span([observed, learned]), smallest_of(model, len(observed)))
    draw_data(ax, observed, edges, "data")
    curve = member_density(learned, members_of(model), edges)
    draw_band(ax, curve, edges)
    if len(before):
        outline(ax, value(before), edges, "reference", linewidth=1.0)
    # Room above for the note.
    top = max(density(observed, edges).max(), curve.high.max(), curve.mean.max())
    ax.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.42 * max(top, 1e-12)), xlabel=label, yticks=[])
    ax.xaxis.set_major_locator(MaxNLocator(5, prune="both"))
    tidy(ax)


def _distance_note(ax: Axes, entry: dict[str, float] | None) -> None:
    """Distance of the model to the data, with the data's own noise floor in brackets [mag]."""
    if entry:
        text = rf"$W_1$ = {entry['wasserstein']:.3f} ({entry['noise_floor']:.3f})"
        ax.text(0.04, 0.965, text, transform=ax.transAxes, va="top", fontsize=9)


def plot_colors(tables: RunTables, max_planes: int = 7) -> Figure:
    """Planes of neighbouring colours and of colour and magnitude; contours hold 68 and 95 % of the galaxies.

    Args:
        max_planes: most colour-colour planes to draw; of more, evenly spaced ones are taken.

    Raises:
        NothingToPlotError: a single band has no colours.
    """
    if not tables.colors:
        raise NothingToPlotError("a single band has no colours")
    pairs = list(zip(tables.colors[:-1], tables.colors[1:], strict=True))
    if len(pairs) > max_planes:
        pairs = [pairs[i] for i in np.linspace(0, len(pairs) - 1, max_planes).round().astype(int)]
    middle = len(tables.bands) // 2
    figure, axes = panels(len(pairs) + 1, columns=3 if len(pairs) not in (1, 3) else 2, height=3.1)
    color = tables.colors[middle - 1]
    for ax, (first, second) in zip(axes[:-1], pairs, strict=True):
        _plane(ax, tables, partial(color_of, color=first), partial(color_of, color=second))
        ax.set(xlabel=f"{first[0]} − {first[1]} [mag]", ylabel=f"{second[0]} − {second[1]} [mag]")
    _plane(axes[-1], tables, partial(values_of, name=f"mag_{tables.bands[middle]}"), partial(color_of, color=color))
    axes[-1].set(xlabel=f"{tables.bands[middle]} [mag]", ylabel=f"{color[0]} − {color[1]} [mag]")
    for ax in axes:
        tidy(ax)
    handles = [
        Line2D([], [], marker="s", markersize=9, color=DATA_FILL, markeredgecolor=DATA_EDGE, linewidth=0, label="data"),
        Line2D([], [], color=MODEL, linewidth=1.6, label="learned ensemble"),
        Line2D([], [], color=REFERENCE, linewidth=1.0, linestyle=DASHED, label="reference"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9.5)
    return figure


def _plane(ax: Axes, tables: RunTables, x_of: _Quantity, y_of: _Quantity) -> None:
    """Data as filled contours and outlying points under the ensemble's and the reference's contours."""
    data, model, before = (tables.simulated(kind) for kind in ("data", "model", "reference"))
    x, y = x_of(data), y_of(data)
    limits = [span([x, x_of(model)], 0.2, 99.8), span([y, y_of(model)], 0.2, 99.8)]
    shown = contours_of(x, y, limits)
    outside = np.isfinite(x) & np.isfinite(y)
    if shown is not None:
        column = np.clip(np.searchsorted(shown.x, x[outside]), 0, len(shown.x) - 1)
        row = np.clip(np.searchsorted(shown.y, y[outside]), 0, len(shown.y) - 1)
        outside[outside] = shown.height[row, column] < shown.levels[0]
        steps = [*shown.levels, 1.01 * shown.height.max()]
        ax.contourf(shown.x, shown.y, shown.height, steps, colors=[DATA_FILL, "#b3b3b3"], zorder=1)
    points = np.flatnonzero(outside)[:_MAX_POINTS]
    ax.plot(x[points], y[points], ".", color=DATA_EDGE, markersize=1.6, alpha=0.6, zorder=0, rasterized=True)
    for table, color, style, width in ((before, REFERENCE, DASHED, 0.9), (model, MODEL, "solid", 1.4)):
        found = contours_of(x_of(table), y_of(table), limits) if len(table) else None
        if found is not None:
            ax.contour(found.x, found.y, found.height, found.levels, colors=color, linestyles=[style], linewidths=width)
    ax.set(xlim=limits[0], ylim=limits[1])
