"""Figures of how a fit went: the history of its training, and what it learned of the templates' error."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from popsed_jax.plots_base import (
    DASHED,
    DATA_EDGE,
    DOTTED,
    FLAT,
    MODEL,
    REFERENCE,
    WIDTH,
    NothingToPlotError,
    RunTables,
    finite,
    shared_legend,
    tidy,
    values_of,
)

__all__ = ["plot_history", "plot_template_error"]


def plot_history(tables: RunTables) -> Figure:
    """Transport, relative entropy and validation of every member by epoch, above the schedules that drove them.

    Raises:
        NothingToPlotError: the fit stopped within its first epoch.
    """
    if len(tables.history) == 0:
        raise NothingToPlotError("the fit stopped within its first epoch")
    figure = Figure(figsize=(WIDTH, 8.6), layout="constrained")
    rows = ["transport", "kl", "ratio", "log_lambda", "blur", "noise_divisor"]
    rows = [name for name in rows if name in tables.history.colnames]
    heights = {"transport": 1.4, "kl": 1.4, "ratio": 1.6}
    axes = figure.subplots(len(rows), 1, sharex=True, height_ratios=[heights.get(name, 1.0) for name in rows])
    titles = {
        "transport": "transport cost\n" + r"[noise floor$^2$]",
        "kl": "KL to the\nreference [nat]",
        "ratio": "validation:\nmodel / floor",
        "log_lambda": r"$\lambda$, weight of" + "\nthe reference",
        "blur": "blur\n[data's width]",
        "noise_divisor": "noise\ndivided by",
    }
    for ax, name in zip(axes, rows, strict=True):
        _draw_history(ax, tables, name)
        ax.set_ylabel(titles[name])
        tidy(ax)
    _mark_sinkhorn(axes[0], tables)
    axes[-1].set_xlabel("epoch")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels(list(axes))
    shared_legend(figure, axes)
    return figure


def _draw_history(ax: Axes, tables: RunTables, name: str) -> None:
    """One quantity of the history over the epochs."""
    epoch, member = values_of(tables.history, "epoch"), values_of(tables.history, "member")
    values = values_of(tables.history, name)
    values = np.exp(values) if name == "log_lambda" else values
    if name in ("blur", "noise_divisor"):
        first = member == member.min()
        ax.step(epoch[first], values[first], where="mid", color="black", linewidth=1.3)
    else:
        for m in np.unique(member):
            control = int(m) in tables.control
            if control and name in ("kl", "log_lambda"):
                continue  # the control is not tied to any reference
            style = {"color": FLAT, "linestyle": DOTTED} if control else {"color": MODEL, "alpha": 0.75}
            label = "flat-reference control" if control else "members"
            ax.plot(epoch[member == m], values[member == m], linewidth=1.6 if control else 1.2, label=label, **style)
    if name == "ratio":
        ax.axhline(1.0, color=DATA_EDGE, linewidth=1.0, linestyle=DASHED, label="noise floor of the data")
    shown = finite(values)
    if name != "kl" and len(shown) and shown.min() > 0:
        ax.set_yscale("log")
        # The fewer decades, the more numbers between the powers of ten.
        decades = np.log10(shown.max() / shown.min())
        between = (1, 2, 3, 4, 5, 7) if decades < 1.0 else (1, 2, 5) if decades < 2.5 else (1,)
        ax.yaxis.set_major_locator(LogLocator(subs=between))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    elif name == "transport" and len(shown):
        ax.set_yscale("symlog", linthresh=0.1)  # costs between populations scatter about zero once these agree


def _mark_sinkhorn(ax: Axes, tables: RunTables) -> None:
    """Where the Sinkhorn divergence joins the sliced distance."""
    if "sinkhorn" not in tables.history.colnames:
        return
    epoch, weight = values_of(tables.history, "epoch"), values_of(tables.history, "sinkhorn")
    on = epoch[weight > 0]
    if len(on) and on.min() > epoch.min():
        ax.axvline(on.min(), color=DATA_EDGE, linewidth=0.8)
        ax.text(on.min(), 0.95, " + Sinkhorn", transform=ax.get_xaxis_transform(), va="top", fontsize=9)


def plot_template_error(tables: RunTables) -> Figure:
    """Learned error of the templates against rest-frame wavelength, with the members' spread and the prior's width.

    Raises:
        NothingToPlotError: the fit did not learn it.
    """
    found = tables.metrics.get("calibration", {}).get("template_error")
    if not found:
        raise NothingToPlotError("the error of the templates was not learned: calibration.template_sigma is 0")
    wave, mean, spread, width = (
        np.array([entry[name] for entry in found]) for name in ("wave", "mean", "spread", "prior_sigma")
    )
    middle = np.array([entry.get("prior_mean", 0.0) for entry in found])  # runs of before had none
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    ax = figure.subplots()
    ax.fill_between(wave, mean - spread, mean + spread, color=MODEL, alpha=0.3, linewidth=0, label="members")
    ax.plot(wave, mean, color=MODEL, linewidth=1.6, marker="o", markersize=3.5, label="learned")
    for sign in (1.0, -1.0):
        edge, label = middle + sign * width, "prior" if sign > 0 else None
        ax.plot(wave, edge, color=REFERENCE, linestyle=DASHED, linewidth=1.0, label=label)
    ax.axhline(0.0, color=DATA_EDGE, linewidth=0.8)
    ax.set(xscale="log", xlabel="rest-frame wavelength [Angstrom]", ylabel="model + it = data [mag]")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    tidy(ax)
    shared_legend(figure, [ax])
    return figure
