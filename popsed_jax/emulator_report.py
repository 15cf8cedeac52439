"""The report of a trained emulator: figures, and an HTML page that holds everything, rebuilt from its files alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from matplotlib.figure import Figure

from popsed_jax.emulators import load_description
from popsed_jax.pages import embed_figure, page_template
from popsed_jax.population.storage import StorageError, write_atomically
from popsed_jax.tables import read_table

_NUM_BINS = 20
_GOAL_MAG, _GOAL_MEDIAN = 0.02, 0.003  # errors that do not matter beside the templates'
# Okabe & Ito's colours: told apart by colour-blind readers.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933")


def build_emulator_report(folder: Path | str) -> Path:
    """Draw the figures of an emulator and write `report.html`, which needs neither other files nor the net.

    Raises:
        StorageError: a required file is missing or damaged.
    """
    folder = Path(folder)
    description = load_description(folder)
    path = folder / "errors.parquet"
    if not path.is_file():
        raise StorageError(f"{path} does not exist: train the emulator again")
    table = read_table(path)
    figures = {
        "percentiles": plot_percentiles(table, list(description["errors"])),
        "parameters": plot_parameters(table, description),
        "history": plot_history(description),
    }
    images = {name: embed_figure(figure, folder / "figures" / f"{name}.png") for name, figure in figures.items()}
    shown = {key: value for key, value in description.items() if key not in ("networks", "rms_history", "worst")}
    page = page_template("emulator.html.j2").render(
        about=description,
        images=images,
        goal={"percentile": _GOAL_MAG, "median": _GOAL_MEDIAN},
        reached=_reached(description["errors"]),
        num_weights=sum(_num_weights(network) for network in description["networks"]),
        description=json.dumps(shown, indent=2, ensure_ascii=False),
    )
    report = folder / "report.html"
    # A reader who has the page open in a browser must not load half of it.
    write_atomically(report, page.encode())
    return report


def plot_percentiles(table: Table, bands: list[str]) -> Figure:
    """|error| that each fraction of the test galaxies exceeds, by band."""
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    beyond = 1.0 - (np.arange(len(table)) + 0.5) / len(table)
    for band, color in zip(bands, _colors(len(bands)), strict=True):
        axes.plot(beyond, np.sort(np.abs(np.asarray(table[f"error_{band}"], float))), color=color, label=band)
    axes.axhline(_GOAL_MAG, color="0.6", lw=0.8, ls="--")
    for fraction, label in ((0.5, "median"), (0.01, "99 %"), (0.001, "99.9 %")):
        axes.axvline(fraction, color="0.8", lw=0.8)
        axes.annotate(label, (fraction, 1.0), (2, -10), xycoords=("data", "axes fraction"), textcoords="offset points",
                      fontsize=8, color="0.4")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=(1.0, 0.5 / len(table)), ylim=(1e-4, None))
    axes.set(xlabel="fraction of galaxies with a larger error", ylabel="|error| [mag]")
    axes.legend(fontsize=8, frameon=False, ncols=1 + len(bands) // 6)
    return figure


def plot_parameters(table: Table, description: Mapping[str, Any]) -> Figure:
    """Median and 99 % of the largest error of all bands against each parameter, and the worst galaxies."""
    bands = list(description["errors"])
    largest = np.max([np.abs(np.asarray(table[f"error_{band}"], float)) for band in bands], axis=0)
    labels = {p["name"]: p["label"] or p["name"] for p in description["parameters"]}
    names = [name for name in labels if name in table.colnames and np.ptp(np.asarray(table[name], float)) > 0]
    columns = 4
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(11.0, 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, name in zip(grid.flat, names, strict=False):
        values = np.asarray(table[name], float)
        edges = np.quantile(values, np.linspace(0.0, 1.0, _NUM_BINS + 1))  # as many galaxies in every bin
        bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, _NUM_BINS - 1)
        middle = 0.5 * (edges[1:] + edges[:-1])
        for q, style, label in ((0.5, "-", "median"), (0.99, "--", "99 %")):
            curve = [np.quantile(largest[bins == i], q) if np.any(bins == i) else np.nan for i in range(_NUM_BINS)]
            axes.plot(middle, curve, style, color=_COLORS[0], label=label)
        worst = description["worst"]
        heights = [max(abs(error) for error in case["error_mag"].values()) for case in worst]
        axes.plot([case["parameters"][name] for case in worst], heights, "x", ms=4, color=_COLORS[1], label="worst")
        axes.axhline(_GOAL_MAG, color="0.7", lw=0.8, ls=":")
        axes.set(yscale="log", xlabel=labels[name])
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("largest |error|\nof all bands [mag]")
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9
    )
    return figure


def plot_history(description: Mapping[str, Any]) -> Figure:
    """Root mean square error on the training's examples against the chunk."""
    history = 2.5 / np.log(10.0) * np.asarray(description["rms_history"], float)
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(1, len(history) + 1), history, color=_COLORS[0])
    axes.set(yscale="log", xlabel="chunk", ylabel="rms error of a population [mag]"
             if description["kind"] == "photometry" else "rms error of a component [mag]")  # fmt: skip
    return figure


def _colors(num: int) -> list[str]:
    return [_COLORS[i % len(_COLORS)] for i in range(num)]


def _reached(errors: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether every band keeps the goal."""
    return all(entry["99.9"] <= _GOAL_MAG and entry["50"] <= _GOAL_MEDIAN for entry in errors.values())


def _num_weights(network: Mapping[str, Any]) -> int:
    """Numbers that one network learned."""
    hidden, num_layers, num_outputs = (network[name] for name in ("hidden", "num_layers", "num_outputs"))
    tables = sum(feature["num_nodes"] for feature in network["features"])
    first = (len(network["features"]) + 1 + tables) * hidden
    return first + (num_layers - 1) * (hidden + 1) * hidden + 2 * num_layers * hidden + (hidden + 1) * num_outputs
