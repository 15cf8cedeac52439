"""The report of a finished run: figures, and an HTML page that holds everything, rebuilt from its files alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from popsed_jax.pages import embed_figure, page_template
from popsed_jax.plots import (
    NothingToPlotError,
    ReportError,
    RunTables,
    at_ssfr_floor,
    load_run_tables,
    plot_colors,
    plot_corner,
    plot_history,
    plot_information,
    plot_main_sequence,
    plot_photometry,
    plot_redshift,
    plot_template_error,
)
from popsed_jax.population.storage import write_atomically

__all__ = ["ReportError", "build_report"]

_FIGURES: dict[str, Callable[[RunTables], Figure]] = {
    "redshift": plot_redshift,
    "photometry": plot_photometry,
    "colors": plot_colors,
    "corner": plot_corner,
    "main_sequence": plot_main_sequence,
    "information": plot_information,
    "history": plot_history,
    "template_error": plot_template_error,
}
# Below this many nat a parameter is marked as mostly the reference: a Gaussian moved by 0.2 of its width gains as much.
_LITTLE_GAIN = 0.02
_LOG_LINES = 300
_UNKNOWN = "–"


def build_report(run: Path) -> Path:
    """Draw the figures of a run and write its report.

    Figures go to `figures/*.png` in the run directory; `report.html` holds them too, and needs neither other files nor
    the net. What the run does not have (redshifts, a flat control, star-formation rates) is left out, and said to be.

    Args:
        run: the run directory of a finished fit.

    Returns:
        The path of the HTML page.

    Raises:
        ReportError: a required file is missing, unreadable or incomplete.
    """
    tables = load_run_tables(Path(run))
    images, absent = _draw_figures(tables)
    page = _render(tables, images, absent)
    path = tables.run / "report.html"
    # A reader who has the page open in a browser must not load half of it.
    write_atomically(path, page.encode())
    return path


def _draw_figures(tables: RunTables) -> tuple[dict[str, str], dict[str, str]]:
    """Write the figures; return them in base64, and for those that the run has nothing for, why."""
    folder = tables.run / "figures"
    images, absent = {}, {}
    for name, plot in _FIGURES.items():
        path = folder / f"{name}.png"
        try:
            figure = plot(tables)
        except NothingToPlotError as error:
            absent[name] = str(error)
            path.unlink(missing_ok=True)  # of an earlier report
            continue
        images[name] = embed_figure(figure, path)
    return images, absent


def _render(tables: RunTables, images: dict[str, str], absent: dict[str, str]) -> str:
    """The page, from the template."""
    template = page_template("report.html.j2", number=_number, signed=_signed, count=_count, duration=_duration)
    metrics = tables.metrics
    control = [entry for entry in metrics["members"] if entry.get("control", False)]
    return template.render(
        metrics=metrics,
        validation={"flat_ratio": None, "blur": None, "num_galaxies": None, **metrics["validation"]},
        catalog={"missing": {}, "num_redshifts_used": 0, **metrics["catalog"]},
        calibration=metrics.get("calibration"),
        visibility=metrics.get("visibility"),
        surveys=metrics.get("surveys", {}),
        nz=metrics.get("redshift"),
        bands=tables.bands,
        distances=_distances(tables),
        worst=max(_distances(tables), key=lambda row: row["wasserstein"]),
        members=[*(m for m in metrics["members"] if m not in control), *control],
        traits=[
            ("Hyper-parameters of each member's reference", *_by_member(metrics["members"], "hyper")),
            (
                "Shift of each member's reference along each parameter, in its literature uncertainty",
                *_by_member(metrics["members"], "shifts"),
            ),
        ],
        parameters=_parameters(tables),
        little_gain=_LITTLE_GAIN,
        floor_share=_floor_share(tables),
        num_samples=len(tables.samples),
        has_flat=tables.flat is not None,
        images=images,
        absent=absent,
        config=tables.config,
        population=json.dumps(tables.population, indent=2, ensure_ascii=False),
        selection=tables.population.get("selection", ""),
        log="\n".join(tables.log.splitlines()[-_LOG_LINES:]) if tables.log else None,
    )


def _distances(tables: RunTables) -> list[dict[str, Any]]:
    """One-dimensional distances by band, then by colour [mag]."""
    rows = [{"name": band, "kind": "band", **tables.metrics["bands"][band]} for band in tables.bands]
    colors = tables.metrics.get("colors", {})
    return rows + [{"name": name.replace("-", " − "), "kind": "color", **entry} for name, entry in colors.items()]


def _parameters(tables: RunTables) -> list[dict[str, Any]]:
    """What the data did to each parameter, the most informed first."""
    rows = []
    for name, entry in tables.metrics["parameters"].items():
        moved = None
        if entry["reference_std"]:
            moved = (entry["mean"] - entry["reference_mean"]) / entry["reference_std"]
        gain = entry["information_gain"]
        known = gain is not None and np.isfinite(gain)
        row = {"name": name, "unit": "", "description": "", **entry, "moved": moved}
        rows.append({**row, "sort": gain if known else 0.0, "little": known and gain < _LITTLE_GAIN})
    return sorted(rows, key=lambda row: -row["sort"])


def _by_member(members: list[dict[str, Any]], word: str) -> tuple[list[int], list[tuple[str, list[Any]]]]:
    """Members that have named values under a word, and the values by name, but for names with zeros only."""
    kept = [entry for entry in members if entry.get(word) and not entry.get("control", False)]
    names = dict.fromkeys(name for entry in kept for name in entry[word])
    rows = [(name, [entry[word].get(name) for entry in kept]) for name in names]
    return [entry["member"] for entry in kept], [(name, values) for name, values in rows if any(values)]


def _floor_share(tables: RunTables) -> float | None:
    """Percentage of the learned galaxies at the floor of the specific star-formation rate."""
    if not {"log_sfr", "log_mass_surviving"} <= set(tables.samples.colnames):
        return None
    return 100.0 * float(np.mean(at_ssfr_floor(tables.samples)))


def _number(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals; a dash when it is not known."""
    if value is None or not np.isfinite(value):
        return _UNKNOWN
    return f"{value:.{digits}f}".replace("-", "−")


def _signed(value: float | None, digits: int = 3) -> str:
    """The same, with its sign."""
    if value is None or not np.isfinite(value):
        return _UNKNOWN
    return f"{value:+.{digits}f}".replace("-", "−")


def _count(value: int | None) -> str:
    """A count with its thousands apart."""
    return _UNKNOWN if value is None else f"{value:,}"


def _duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
