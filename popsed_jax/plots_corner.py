"""Joint distributions of parameters: contours for any cloud, and the posteriors of one galaxy over each other."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import corner
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from popsed_jax.parameters import ParameterSpace
from popsed_jax.plots_base import STYLES, WIDTH, NothingToPlotError, span

__all__ = ["draw_corner", "plot_galaxy"]

_FEWEST = 50  # effective samples below which contours are noise


class Samples(Protocol):
    """Weighted samples, such as `Weighted` and `HMCPosterior`."""

    @property
    def theta(self) -> Float[np.ndarray, "galaxy sample dim"]:
        """Samples."""

    @property
    def weights(self) -> Float[np.ndarray, "galaxy sample"]:
        """Each galaxy's sum to one."""

    @property
    def ess(self) -> Float[np.ndarray, " galaxy"]:
        """Effective sample size."""


def plot_galaxy(
    posteriors: Mapping[str, Samples],
    space: ParameterSpace,
    names: Sequence[str] = ("redshift", "log_mass", "logzsol", "tau_v"),
    galaxy: int = 0,
    truth: Mapping[str, float] | None = None,
) -> Figure:
    """Posteriors of one galaxy over each other: contours (68 and 95 %) and marginals.

    Args:
        posteriors: by name.
        space: the galaxy's parameters.
        names: which of them to show.
        galaxy: which galaxy of the posteriors.
        truth: known values, such as a spectroscopic redshift.

    Raises:
        NothingToPlotError: fewer than two parameters, or no posterior with as many effective samples as contours need.
        KeyError: a name that the space does not have.
    """
    columns = [space.index(name) for name in names]
    clouds = {
        name: (np.asarray(each.theta[galaxy][:, columns], float), np.asarray(each.weights[galaxy], float))
        for name, each in posteriors.items()
    }
    size = {name: float(each.ess[galaxy]) for name, each in posteriors.items()}
    shown = {name: cloud for name, cloud in clouds.items() if size[name] >= _FEWEST}
    if len(names) < 2 or not shown:
        sizes = ", ".join(f"{name}: {value:.0f}" for name, value in size.items())
        raise NothingToPlotError(
            f"a corner plot needs two parameters and {_FEWEST} effective samples of a posterior (here {sizes or 'none'})"
        )
    truth = truth or {}
    limits = [
        span(
            [*(cloud[:, i] for cloud, _ in shown.values()), *([np.array([truth[n]])] if n in truth else [])], 0.5, 99.5
        )
        for i, n in enumerate(names)
    ]
    figure = Figure(figsize=(0.8 * WIDTH, 0.8 * WIDTH))
    labels = [space[name].label for name in names]
    styles = dict(zip(shown, (STYLES[i % len(STYLES)] for i in range(len(shown))), strict=True))
    for name, (cloud, weights) in shown.items():
        draw_corner(figure, cloud, limits, labels, *styles[name], 1.3, weights)
    grid = np.array(figure.axes[: len(names) ** 2]).reshape(len(names), len(names))
    for i, name in enumerate(names):
        _marginals(
            grid[i, i], {key: (cloud[:, i], weights) for key, (cloud, weights) in shown.items()}, limits[i], styles
        )
        if name in truth:
            for ax in grid[i:, i]:
                ax.axvline(truth[name], color="black", linewidth=0.9)
            for ax in grid[i, :i]:
                ax.axhline(truth[name], color="black", linewidth=0.9)
    for ax in (*grid[-1], *grid[1:, 0]):
        ax.tick_params(labelsize=8.5)
    handles = [Line2D([], [], color=color, linestyle=style, label=name) for name, (color, style) in styles.items()]
    if truth:
        handles.append(Line2D([], [], color="black", linewidth=0.9, label="known"))
    left_out = [f"{name}: too few samples ({size[name]:.0f})" for name in clouds if name not in shown]
    handles += [Line2D([], [], color="none", label=text) for text in left_out]
    figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(0.97, 0.96), frameon=False, fontsize=10)
    return figure


def _marginals(
    ax: Axes,
    samples: Mapping[str, tuple[Float[np.ndarray, " row"], Float[np.ndarray, " row"]]],
    limits: tuple[float, float],
    styles: Mapping[str, tuple[str, Any]],
) -> None:
    """Histograms of one parameter."""
    for patch in list(ax.patches):
        patch.remove()
    edges, top = np.linspace(*limits, 31), 0.0
    for name, (values, weights) in samples.items():
        height = np.histogram(values, edges, weights=weights, density=True)[0]
        color, style = styles[name]
        ax.stairs(height, edges, color=color, linestyle=style, linewidth=1.3, baseline=None)
        top = max(top, float(np.nanmax(height)))
    ax.set_ylim(0, 1.1 * top)


def draw_corner(
    figure: Figure,
    cloud: Float[np.ndarray, "row parameter"],
    limits: list[tuple[float, float]],
    labels: list[str],
    color: str,
    style: str,
    width: float,
    weights: Float[np.ndarray, " row"] | None = None,
) -> None:
    """Contours of one cloud (68 and 95 %); the diagonal is drawn over later."""
    with warnings.catch_warnings():
        # corner passes keywords that matplotlib comes to deprecate, and contours of sparse planes may be empty:
        # nothing that the reader of a report can act on.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="No contour levels", category=UserWarning)
        corner.corner(
            cloud,
            weights=weights,
            bins=30,
            range=limits,
            color=color,
            labels=labels,
            label_kwargs={"fontsize": 10},
            fig=figure,
            smooth=1.1,
            levels=(0.68, 0.95),
            plot_datapoints=False,
            plot_density=False,
            no_fill_contours=True,
            quiet=True,
            max_n_ticks=4,
            contour_kwargs={"linestyles": [style], "linewidths": [width]},
            hist_kwargs={"alpha": 0.0},
        )
