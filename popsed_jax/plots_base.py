"""What the figures of a run share: its tables, axis labels, densities, contours and colours."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy import units
from astropy.table import Table
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter

from popsed_jax.tables import TableError, read_table

__all__ = ["NothingToPlotError", "ReportError", "RunTables", "load_run_tables"]

# Okabe & Ito's palette (https://jfly.uni-koeln.de/color/); the line styles differ too, for prints without colour.
DATA_FILL, DATA_EDGE = "#d9d9d9", "#7f7f7f"
MODEL, REFERENCE, FLAT = "#0072B2", "#D55E00", "#009E73"
DASHED, DOTTED = (0, (5, 2)), (0, (1, 1.2))
# Of any curves to be told apart.
STYLES: tuple[tuple[str, Any], ...] = (
    (MODEL, "-"),
    (REFERENCE, DASHED),
    (FLAT, DOTTED),
    ("#CC79A7", "-"),
    ("black", DASHED),
    ("#E69F00", DOTTED),
)
WIDTH = 9.6  # of every figure [inch]
FEWEST = 30  # draws below which a member has no density of its own
SSFR_FLOOR = -13.0  # log10 of the floor that the galaxy model puts under the specific star-formation rate [1/yr]

# What metrics.json must hold: keys of the whole, and of its parts.
_DISTANCES = ("wasserstein", "noise_floor")
_METRICS: dict[str, tuple[str, ...]] = {
    "converged": (),
    "reason": (),
    "validation": ("model_to_data", "noise_floor", "noise_floor_std", "ratio", "reference_ratio"),
    "bands": (),
    "members": (),
    "parameters": (),
    "catalog": ("name", "bands", "num_rows_read", "num_galaxies", "drops"),
}
_REDSHIFT = ("wasserstein", "wasserstein_error", "mean_offset", "mean_offset_error", "reference_wasserstein")
_MEMBER = ("member", "weight", "ratio", "kl", "offsets")
_PARAMETER = ("mean", "std", "reference_mean", "reference_std", "information_gain")
_ADVICE = "give the run directory of a finished fit, or run the fit again"


class ReportError(ValueError):
    """A run directory that cannot be reported; the message names the file and what to do."""


class NothingToPlotError(ValueError):
    """The run holds nothing of the kind that a figure shows; the message says what is missing."""


@dataclasses.dataclass(frozen=True, eq=False)
class RunTables:
    """Everything that a finished run wrote down; what every plotting function takes.

    Attributes:
        run: the run directory.
        samples: draws of the learned ensemble: a column for each parameter and derived property, and `member`.
        reference: the same for the reference population as the survey detects it.
        photometry: asinh AB magnitudes `mag_<band>` of the `set`s "data", "model", "reference" and "flat", with
            `redshift` and `member` (-1 for data).
        history: one row for each epoch and member.
        metrics: numbers of the run, as in `metrics.json`.
        population: description of the learned population, as in `population.json`.
        config: the resolved settings, TOML text.
        flat: draws of the control fit with a flat reference; `None` without one.
        log: the run's log; `None` without one.
    """

    run: Path
    samples: Table
    reference: Table
    photometry: Table
    history: Table
    metrics: dict[str, Any]
    population: dict[str, Any]
    config: str
    flat: Table | None = None
    log: str | None = None

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands, in the catalogue's order."""
        return tuple(self.metrics["catalog"]["bands"])

    @property
    def colors(self) -> tuple[tuple[str, str], ...]:
        """Pairs of neighbouring bands."""
        return tuple(zip(self.bands[:-1], self.bands[1:], strict=True))

    @property
    def control(self) -> tuple[int, ...]:
        """Numbers of the members that are controls, not part of the ensemble."""
        return tuple(m["member"] for m in self.metrics["members"] if m.get("control", False))

    def label(self, name: str) -> str:
        """Axis label of a parameter or derived property, with its unit."""
        entry = self.metrics["parameters"].get(name, {})
        return axis_label(entry.get("label") or name, entry.get("unit", ""))

    def simulated(self, kind: str) -> Table:
        """The photometry of one set: "data", "model", "reference" or "flat"; empty when the run has none."""
        return self.photometry[np.asarray(self.photometry["set"]).astype(str) == kind]


def load_run_tables(run: Path) -> RunTables:
    """Read the files of a run directory.

    Args:
        run: as a finished fit left it; `flat.parquet` and `log.txt` may be missing.

    Raises:
        ReportError: a required file is missing, unreadable or incomplete.
    """
    run = Path(run)
    if not run.is_dir():
        raise ReportError(f"{run} is not a run directory: {_ADVICE}")
    names = ("samples", "reference", "photometry", "history")
    missing = [f"{name}.parquet" for name in names if not (run / f"{name}.parquet").is_file()]
    missing += [
        name for name in ("metrics.json", "population/population.json", "config.toml") if not (run / name).is_file()
    ]
    if missing:
        raise ReportError(f"{run} lacks {', '.join(missing)}; the fit did not finish there: {_ADVICE}")
    metrics = _read_json(run / "metrics.json")
    absent = _missing_metrics(metrics)
    if absent:
        raise ReportError(f"{run / 'metrics.json'} lacks {', '.join(absent)}: {_ADVICE}")
    tables = RunTables(
        run=run,
        **{name: _read(run / f"{name}.parquet") for name in names},
        metrics=metrics,
        population=_read_json(run / "population" / "population.json"),
        config=_read_text(run / "config.toml"),
        flat=_read(run / "flat.parquet") if (run / "flat.parquet").is_file() else None,
        log=_read_text(run / "log.txt") if (run / "log.txt").is_file() else None,
    )
    _check_columns(tables)
    return tables


def _missing_metrics(metrics: dict[str, Any]) -> list[str]:
    """Places in metrics.json where something should stand."""
    absent = [key for key in _METRICS if key not in metrics]
    if absent:
        return absent
    parts: list[tuple[str, Any, tuple[str, ...]]] = [
        (key, metrics[key], keys) for key, keys in _METRICS.items() if keys
    ]
    parts += [
        (f"bands.{band}", metrics["bands"].get(band, {}), _DISTANCES) for band in metrics["catalog"].get("bands", ())
    ]
    parts += [(f"colors.{name}", entry, _DISTANCES) for name, entry in metrics.get("colors", {}).items()]
    parts += [(f"members[{i}]", entry, _MEMBER) for i, entry in enumerate(metrics["members"])]
    parts += [(f"parameters.{name}", entry, _PARAMETER) for name, entry in metrics["parameters"].items()]
    parts += [("redshift", metrics["redshift"], _REDSHIFT)] if metrics.get("redshift") else []
    return [f"{place}.{key}" for place, entry, keys in parts for key in keys if key not in entry]


def _check_columns(tables: RunTables) -> None:
    """Every table has the columns that the figures cannot do without."""
    need = {
        "samples": ("member",),
        "reference": (),
        "photometry": ("set", "member", *(f"mag_{band}" for band in tables.bands)),
    }
    for name, columns in need.items():
        table = getattr(tables, name)
        absent = [column for column in columns if column not in table.colnames]
        if absent:
            raise ReportError(f"{tables.run / name}.parquet has no column {', '.join(absent)}: {_ADVICE}")
        if len(table) == 0:
            raise ReportError(f"{tables.run / name}.parquet has no rows: {_ADVICE}")
    for kind in ("data", "model"):
        if len(tables.simulated(kind)) == 0:
            raise ReportError(f"{tables.run / 'photometry.parquet'} has no rows of the set {kind!r}: {_ADVICE}")


def _read(path: Path) -> Table:
    try:
        return read_table(path)
    except TableError as error:
        raise ReportError(f"{error}; {_ADVICE}") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"cannot read {path}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ReportError(f"{path} is not a JSON file ({error}); {_ADVICE}") from error
    if not isinstance(content, dict):
        raise ReportError(f"{path} must hold a JSON object; {_ADVICE}")
    return content


def axis_label(label: str, unit: str) -> str:
    """A label with its unit in LaTeX; of a logarithmic unit, dex(x), the x: "log M [Msun]"."""
    if not unit:
        return label
    try:
        parsed = units.Unit(unit)
    except (ValueError, TypeError):
        return f"{label} [{unit}]"
    parsed = getattr(parsed, "physical_unit", parsed)
    text = unit if parsed == units.dimensionless_unscaled else parsed.to_string("latex_inline")
    return f"{label} [{text}]"


def values_of(table: Table, name: str) -> Float[np.ndarray, " row"]:
    """A column as floats, NaN where it is masked."""
    column = table[name]
    if hasattr(column, "filled"):
        column = column.astype(float).filled(np.nan)
    return np.asarray(column, dtype=float)


def color_of(table: Table, color: tuple[str, str]) -> Float[np.ndarray, " row"]:
    """Difference of two bands' magnitudes [mag]."""
    return values_of(table, f"mag_{color[0]}") - values_of(table, f"mag_{color[1]}")


def finite(values: Float[np.ndarray, " row"]) -> Float[np.ndarray, " kept"]:
    """The values that are numbers."""
    return values[np.isfinite(values)]


def span(samples: Iterable[Float[np.ndarray, " _"]], low: float = 0.5, high: float = 99.5) -> tuple[float, float]:
    """Axis range that holds the bulk of every sample, a twentieth wider; outliers do not squash it.

    Args:
        samples: may hold NaN.
        low, high: percentiles, of each sample.
    """
    percentiles = [np.percentile(finite(sample), [low, high]) for sample in samples if len(finite(sample))]
    if not percentiles:
        return 0.0, 1.0
    start, stop = min(p[0] for p in percentiles), max(p[1] for p in percentiles)
    # A constant sample still needs an axis of some width.
    margin = max(0.05 * (stop - start), 1e-3 * max(abs(start), abs(stop), 1.0))
    return float(start - margin), float(stop + margin)


class Density(NamedTuple):
    """A histogram density of the ensemble and its spread over members, on common bins."""

    mean: Float[np.ndarray, " bin"]
    low: Float[np.ndarray, " bin"]
    high: Float[np.ndarray, " bin"]
    each: Float[np.ndarray, "member bin"]


def bin_edges(limits: tuple[float, float], smallest: int) -> Float[np.ndarray, " edge"]:
    """Equal bins, as many as the smallest sample bears. (Rice's rule)"""
    return np.linspace(*limits, int(np.clip(2.0 * smallest ** (1.0 / 3.0), 12, 42)) + 1)


def density(values: Float[np.ndarray, " row"], edges: Float[np.ndarray, " edge"]) -> Float[np.ndarray, " bin"]:
    """Histogram density; normalised over all values, those outside the bins too."""
    values = finite(values)
    return np.histogram(values, edges)[0] / (max(len(values), 1) * np.diff(edges))


def member_density(
    values: Float[np.ndarray, " row"], member: Int[np.ndarray, " row"], edges: Float[np.ndarray, " edge"]
) -> Density:
    """The pooled density and its 16th and 84th percentiles over members.

    Members count by their share of the draws, which is their weight in the ensemble; those with next to no draws are
    left out of the spread.
    """
    counts = {int(m): int(np.sum(member == m)) for m in np.unique(member)}
    kept = [m for m, count in counts.items() if count >= FEWEST] or list(counts)
    each = np.stack([density(values[member == m], edges) for m in kept])
    weights = np.array([counts[m] for m in kept], float)
    low, high = (weighted_quantile(each, weights, q) for q in (0.16, 0.84))
    return Density(density(values, edges), low, high, each)


def weighted_quantile(
    values: Float[np.ndarray, "member bin"], weights: Float[np.ndarray, " member"], level: float
) -> Float[np.ndarray, " bin"]:
    """Quantile over the first axis, linear between the weights' mid-points."""
    order = np.argsort(values, axis=0)
    ordered = np.take_along_axis(values, order, axis=0)
    weight = weights[order]
    position = (np.cumsum(weight, axis=0) - 0.5 * weight) / np.sum(weights)
    return np.array([np.interp(level, position[:, i], ordered[:, i]) for i in range(values.shape[1])])


class Contours(NamedTuple):
    """A smoothed density on a grid and the levels that enclose given fractions of it."""

    x: Float[np.ndarray, " column"]
    y: Float[np.ndarray, " row"]
    height: Float[np.ndarray, "row column"]
    levels: Float[np.ndarray, " level"]


def contours_of(
    x: Float[np.ndarray, " row"],
    y: Float[np.ndarray, " row"],
    limits: Sequence[tuple[float, float]],
    fractions: Sequence[float] = (0.95, 0.68),
) -> Contours | None:
    """Density of points in a plane, smoothed by about a bin; `None` for too few points to have one.

    Args:
        limits: of x and of y.
        fractions: enclosed by the contours, falling.
    """
    ok = np.isfinite(x) & np.isfinite(y)
    num = int(np.clip(1.6 * np.sum(ok) ** (1.0 / 3.0), 16, 50))
    edges = [np.linspace(*limit, num + 1) for limit in limits]
    counts = np.histogram2d(x[ok], y[ok], bins=edges)[0].T
    if counts.sum() < FEWEST:
        return None
    height = gaussian_filter(counts, 1.1, mode="constant")
    ranked = np.sort(height.ravel())[::-1]
    enclosed = np.cumsum(ranked) / ranked.sum()
    levels = np.array([ranked[np.searchsorted(enclosed, fraction)] for fraction in fractions])
    if np.any(np.diff(levels) <= 0) or levels[-1] >= ranked[0]:
        return None
    middle = [0.5 * (edge[1:] + edge[:-1]) for edge in edges]
    return Contours(middle[0], middle[1], height, levels)


def draw_band(ax: Axes, curve: Density, edges: Float[np.ndarray, " edge"], label: str = "learned ensemble") -> None:
    """The ensemble's density as a line over the 16-84 % band of its members."""
    ax.stairs(curve.high, edges, baseline=curve.low, fill=True, color=MODEL, alpha=0.28, linewidth=0)
    ax.stairs(curve.mean, edges, color=MODEL, linewidth=1.6, label=label, baseline=None)


def draw_data(ax: Axes, values: Float[np.ndarray, " row"], edges: Float[np.ndarray, " edge"], label: str) -> None:
    """Observed galaxies as a filled grey step histogram."""
    height = density(values, edges)
    ax.stairs(height, edges, fill=True, color=DATA_FILL, label=label)
    ax.stairs(height, edges, color=DATA_EDGE, linewidth=0.8)


def outline(ax: Axes, values: np.ndarray, edges: np.ndarray, kind: str, linewidth: float = 1.4) -> None:
    """A population to compare with, as an outline: the reference (dashed) or the flat control (dotted)."""
    color, style = (FLAT, DOTTED) if kind == "flat" else (REFERENCE, DASHED)
    label = "flat-reference control" if kind == "flat" else kind
    ax.stairs(
        density(values, edges), edges, color=color, linestyle=style, linewidth=linewidth, label=label, baseline=None
    )


def members_of(table: Table) -> np.ndarray:
    """The member that each row is from."""
    return np.asarray(table["member"]).astype(int)


def smallest_of(table: Table, other: int) -> int:
    """Size of the smallest sample to be drawn: a member's, or another one's when there is one."""
    counts = [count for count in np.unique(members_of(table), return_counts=True)[1] if count >= FEWEST] or [len(table)]
    return int(min([*counts, other] if other else counts))


def tidy(ax: Axes, size: float = 9.0) -> None:
    """Ticks inward, small print of one size."""
    ax.tick_params(direction="in", labelsize=size, top=True, right=True)
    ax.xaxis.label.set_fontsize(size + 1)
    ax.yaxis.label.set_fontsize(size + 1)


def panels(num: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels in rows; places without a panel stay empty.

    Args:
        height: of a row [inch].
    """
    columns = min(columns, num)
    rows = -(-num // columns)
    figure = Figure(figsize=(WIDTH, rows * height + 0.45), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    return figure, [figure.add_subplot(grid[divmod(i, columns)]) for i in range(num)]


def shared_legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend above all panels, each label once."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(
        found.values(), found.keys(), loc="outside upper center", ncols=len(found), frameon=False, fontsize=9.5
    )
