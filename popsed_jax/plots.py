"""Figures of a finished run. Each function takes a `RunTables` and returns a matplotlib `Figure`.

    tables = load_run_tables("runs/sdss")
    plot_redshift(tables).savefig("redshift.png")

Figures are made without pyplot, so that nothing global changes. Grey is the data, blue the learned ensemble (line) and
the 16-84 % spread of its members (band), dashed vermilion the reference population before the data, dotted green the
control fit with a flat reference.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from astropy.table import Table
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from popsed_jax.cosmology import Cosmology
from popsed_jax.plots_base import (
    DASHED,
    DATA_EDGE,
    DOTTED,
    FEWEST,
    MODEL,
    REFERENCE,
    SSFR_FLOOR,
    WIDTH,
    NothingToPlotError,
    ReportError,
    RunTables,
    bin_edges,
    contours_of,
    density,
    draw_band,
    draw_data,
    finite,
    load_run_tables,
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
from popsed_jax.plots_corner import draw_corner
from popsed_jax.plots_fit import plot_history, plot_template_error
from popsed_jax.plots_photometry import plot_colors, plot_photometry
from popsed_jax.population.reference import main_sequence

__all__ = [
    "NothingToPlotError",
    "ReportError",
    "RunTables",
    "at_ssfr_floor",
    "load_run_tables",
    "plot_colors",
    "plot_corner",
    "plot_history",
    "plot_information",
    "plot_main_sequence",
    "plot_photometry",
    "plot_redshift",
    "plot_template_error",
]

CORNER_NAMES = ("redshift", "log_mass_surviving", "log_sfr", "age_mw", "logzsol", "tau_v")
_MAX_MEMBER_LINES = 12


def plot_redshift(tables: RunTables) -> Figure:
    """The inferred n(z) over the spectroscopic redshifts, and beside it where the fit started.

    Raises:
        NothingToPlotError: the model has no redshift.
    """
    if "redshift" not in tables.samples.colnames:
        raise NothingToPlotError("the model has no redshift")
    learned, before = values_of(tables.samples, "redshift"), values_of(tables.reference, "redshift")
    flat = None if tables.flat is None else values_of(tables.flat, "redshift")
    data = tables.simulated("data")
    known = finite(values_of(data, "redshift")) if "redshift" in data.colnames else np.zeros(0)
    low, high = span([learned, before, known])
    edges = bin_edges((max(low, 0.0), high), smallest_of(tables.samples, len(known)))
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    if len(known):
        for ax in axes:
            draw_data(ax, known, edges, f"spectroscopic ({len(known):,})")
    curve = member_density(learned, members_of(tables.samples), edges)
    used = tables.metrics.get("catalog", {}).get("num_redshifts_used", 0)
    draw_band(axes[0], curve, edges, f"learned, {f'with {used:,} of them' if used else 'from photometry alone'}")
    outline(axes[1], before, edges, "reference, before the data")
    if flat is not None:
        outline(axes[1], flat, edges, "flat")
    # The flat control may pile up at a bound and run off the top.
    ceiling = 1.15 * max(curve.high.max(), *(density(v, edges).max() for v in (learned, before, known)))
    axes[0].set(xlim=(edges[0], edges[-1]), ylim=(0, ceiling), ylabel=r"$n(z)$, unit area")
    for ax, title, note in zip(axes, ("learned population", "for comparison"), _redshift_notes(tables), strict=True):
        ax.set_xlabel("redshift")
        ax.set_title(title, fontsize=10.5)
        legend = ax.legend(frameon=False, fontsize=9, loc="upper right", title=note or None, alignment="left")
        legend.get_title().set_fontsize(9)
        tidy(ax)
    return figure


def _redshift_notes(tables: RunTables) -> tuple[str, str]:
    """Distances to the spectroscopic n(z), for the two panels."""
    found = tables.metrics.get("redshift")
    if not found:
        return "", ""
    left = rf"$W_1$ = {found['wasserstein']:.4f} ± {found['wasserstein_error']:.4f}" + "\n"
    left += rf"$\Delta\langle z\rangle$ = {found['mean_offset']:+.4f} ± {found['mean_offset_error']:.4f}"
    right = rf"reference: $W_1$ = {found['reference_wasserstein']:.4f}"
    if found.get("flat_wasserstein") is not None:
        right += "\n" + rf"flat control: $W_1$ = {found['flat_wasserstein']:.4f}"
    return left, right


def plot_corner(tables: RunTables, names: tuple[str, ...] = CORNER_NAMES) -> Figure:
    """Joint distributions of the learned population, over the reference's; thin lines on the diagonal are its members.

    Args:
        names: parameters or derived properties; those that the run does not have are left out.

    Raises:
        NothingToPlotError: fewer than two of the names exist and vary.
    """
    columns = tables.samples.colnames
    names = tuple(n for n in names if n in columns and n in tables.reference.colnames)
    learned = {name: values_of(tables.samples, name) for name in names}
    before = {name: values_of(tables.reference, name) for name in names}
    names = tuple(n for n in names if len(finite(learned[n])) > FEWEST and np.ptp(finite(learned[n])) > 0)
    if len(names) < 2:
        raise NothingToPlotError("a corner plot needs two parameters that vary")
    limits = [span([learned[n], before[n]], 1.0, 99.0) for n in names]
    figure = Figure(figsize=(WIDTH, WIDTH))
    labels = [tables.label(n) for n in names]
    for values, color, style, width in ((before, REFERENCE, "dashed", 0.9), (learned, MODEL, "solid", 1.3)):
        cloud = np.stack([values[n] for n in names], axis=1)
        cloud = cloud[np.all(np.isfinite(cloud), axis=1)]
        draw_corner(figure, cloud, limits, labels, color, style, width)
    grid = np.array(figure.axes[: len(names) ** 2]).reshape(len(names), len(names))
    for i, name in enumerate(names):
        _corner_diagonal(grid[i, i], learned[name], before[name], members_of(tables.samples), limits[i])
    for ax in (*grid[-1], *grid[1:, 0]):
        ax.tick_params(labelsize=8.5)
    _corner_legend(figure)
    figure.align_ylabels(list(grid[1:, 0]))
    return figure


def _corner_diagonal(
    ax: Axes,
    learned: Float[np.ndarray, " row"],
    before: Float[np.ndarray, " other"],
    member: Int[np.ndarray, " row"],
    limits: tuple[float, float],
) -> None:
    """Marginals: the ensemble, its members and the reference; median and 68 % of the ensemble above."""
    for patch in list(ax.patches):
        patch.remove()
    edges = np.linspace(*limits, 31)
    curve = member_density(learned, member, edges)
    for line in curve.each[:_MAX_MEMBER_LINES]:
        ax.stairs(line, edges, color=MODEL, linewidth=0.6, alpha=0.55, baseline=None)
    outline(ax, before, edges, "reference", linewidth=1.0)
    ax.stairs(curve.mean, edges, color=MODEL, linewidth=1.6, baseline=None)
    ax.set_ylim(0, 1.1 * max(curve.each.max(), density(before, edges).max()))
    low, mid, high = np.percentile(finite(learned), [16, 50, 84])
    ax.set_title(rf"${mid:.2f}_{{-{mid - low:.2f}}}^{{+{high - mid:.2f}}}$", fontsize=10)


def _corner_legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], color=MODEL, linewidth=1.6, label="learned ensemble (68, 95 %)"),
        Line2D([], [], color=MODEL, linewidth=0.6, alpha=0.7, label="its members"),
        Line2D([], [], color=REFERENCE, linewidth=1.0, linestyle=DASHED, label="reference, before the data"),
    ]
    figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(0.97, 0.96), frameon=False, fontsize=11)


def at_ssfr_floor(table: Table) -> Bool[np.ndarray, " row"]:
    """Galaxies whose specific star-formation rate is the model's floor, 1e-13 / yr: quiescent for all one can tell."""
    return values_of(table, "log_sfr") - values_of(table, "log_mass_surviving") < SSFR_FLOOR + 0.01


def plot_main_sequence(tables: RunTables) -> Figure:
    """Star formation against stellar mass with published main sequences, and the mass distribution of what is detected.

    Raises:
        NothingToPlotError: the run has no star-formation rates or surviving masses.

    References: Speagle+14 (arXiv:1405.2041), eq. 28; Renzini & Peng 15 (arXiv:1502.01027), eq. 1.
    """
    if not {"log_sfr", "log_mass_surviving"} <= set(tables.samples.colnames) & set(tables.reference.colnames):
        raise NothingToPlotError("the run has no star-formation rates and surviving masses")
    figure = Figure(figsize=(WIDTH, 4.3), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1.0])
    mass, before = (values_of(table, "log_mass_surviving") for table in (tables.samples, tables.reference))
    limits = span([mass, before])
    _draw_sequence(left, tables, limits)
    edges = bin_edges(limits, smallest_of(tables.samples, len(before)))
    draw_band(right, member_density(mass, members_of(tables.samples), edges), edges)
    outline(right, before, edges, "reference, as detected")
    right.set(
        xlim=limits, xlabel=tables.label("log_mass_surviving"), ylabel=r"detected galaxies [dex$^{-1}$, unit area]"
    )
    right.set_ylim(0, 1.2 * right.get_ylim()[1])
    right.legend(frameon=False, fontsize=9, loc="upper left")
    for ax in (left, right):
        tidy(ax)
    return figure


def _draw_sequence(ax: Axes, tables: RunTables, limits: tuple[float, float]) -> None:
    """The plane of mass and star-formation rate; galaxies at the floor are counted, not drawn."""
    mass, sfr = values_of(tables.samples, "log_mass_surviving"), values_of(tables.samples, "log_sfr")
    floor = at_ssfr_floor(tables.samples)
    sfr_limits = span([sfr[~floor] if np.any(~floor) else sfr], 0.5, 99.8)
    counts, *edges = np.histogram2d(mass[~floor], sfr[~floor], bins=70, range=[limits, sfr_limits])
    # The square root shows the quiescent cloud beside the crowded sequence.
    ax.pcolormesh(*edges, np.ma.masked_equal(np.sqrt(counts).T, 0), cmap="Blues", rasterized=True, vmin=0)
    ordinary = ~at_ssfr_floor(tables.reference)
    start = [values_of(tables.reference, name)[ordinary] for name in ("log_mass_surviving", "log_sfr")]
    found = contours_of(start[0], start[1], [limits, sfr_limits])
    if found is not None:
        ax.contour(found.x, found.y, found.height, found.levels, colors=REFERENCE, linestyles=[DASHED], linewidths=0.9)
        ax.plot([], [], color=REFERENCE, linestyle=DASHED, linewidth=0.9, label="reference (68, 95 %)")
    grid = np.linspace(*limits, 50)
    if "redshift" in tables.samples.colnames:
        redshift = float(np.nanmedian(values_of(tables.samples, "redshift")))
        age_universe = _cosmology(tables).age(jnp.asarray(redshift))
        relation = np.asarray(main_sequence(jnp.asarray(grid), age_universe))
        ax.plot(grid, relation, color="black", linewidth=1.6, label=f"Speagle+14, z = {redshift:.2f}")
    ax.plot(
        grid, 0.76 * grid - 7.64, color="black", linestyle=DOTTED, linewidth=1.8, label="Renzini & Peng 15, z ~ 0.05"
    )
    share = f"{100.0 * float(np.mean(floor)):.1f} %"
    label = rf"floor of the model, sSFR = $10^{{{SSFR_FLOOR:.0f}}}$ yr$^{{-1}}$: {share}, not drawn"
    ax.plot(grid, grid + SSFR_FLOOR, color=DATA_EDGE, linewidth=0.9, label=label)
    room = 0.42 * (sfr_limits[1] - sfr_limits[0])
    ax.set(xlim=limits, ylim=(sfr_limits[0], sfr_limits[1] + room))
    ax.set(xlabel=tables.label("log_mass_surviving"), ylabel=tables.label("log_sfr"))
    ax.legend(frameon=False, fontsize=9, loc="upper left")


def plot_information(tables: RunTables) -> Figure:
    """Marginals of all parameters and derived properties, learned over reference, by the information gained [nat].

    Raises:
        NothingToPlotError: no parameter has both.
    """
    entries = tables.metrics["parameters"]
    both = set(tables.samples.colnames) & set(tables.reference.colnames)
    names = sorted((n for n in entries if n in both), key=lambda n: -_number(entries[n].get("information_gain")))
    if not names:
        raise NothingToPlotError("no parameter is in both the samples and the reference")
    figure, axes = panels(len(names), columns=4, height=1.85)
    for ax, name in zip(axes, names, strict=True):
        learned, before = values_of(tables.samples, name), values_of(tables.reference, name)
        edges = bin_edges(span([learned, before]), smallest_of(tables.samples, len(before)))
        draw_band(ax, member_density(learned, members_of(tables.samples), edges), edges)
        outline(ax, before, edges, "reference")
        if tables.flat is not None and name in tables.flat.colnames:
            outline(ax, values_of(tables.flat, name), edges, "flat", linewidth=1.0)
        top = max(density(v, edges).max() for v in (learned, before))
        ax.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.3 * max(top, 1e-12)), xlabel=tables.label(name), yticks=[])
        white = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
        gain = f"{_number(entries[name].get('information_gain')):.2f} nat"
        ax.text(
            0.96, 0.95, gain, transform=ax.transAxes, ha="right", va="top", fontsize=9, fontweight="bold", bbox=white
        )
        ax.xaxis.set_major_locator(MaxNLocator(5, prune="both"))
        tidy(ax)
    shared_legend(figure, axes[:1])
    return figure


def _cosmology(tables: RunTables) -> Cosmology:
    """The run's cosmology; the package's default where the population does not say."""
    said = tables.population.get("cosmology")
    said = said if isinstance(said, dict) else {}
    return Cosmology(**{key: float(said[key]) for key in ("hubble", "omega_matter") if key in said})


def _number(value: float | None) -> float:
    """A number of the metrics; not known counts as none."""
    return 0.0 if value is None or not np.isfinite(value) else float(value)
