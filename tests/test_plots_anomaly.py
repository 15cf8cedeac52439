"""Figures of searches for anomalies: what they show is what they were given."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure

from popsed_jax.diagnostics.anomaly import anomaly_curve
from popsed_jax.plots_anomaly import plot_anomaly_curves, plot_latents
from popsed_jax.plots_base import NothingToPlotError


@pytest.fixture(scope="module")
def curves():
    rng = np.random.default_rng(0)
    is_anomaly = np.arange(2000) < 60
    noise = rng.normal(size=2000)
    return {f"shift {shift:g}": anomaly_curve(noise + shift * is_anomaly, is_anomaly, rng) for shift in (4.5, 2.5)}


@pytest.fixture(scope="module")
def space():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 3], [1500, 25, 25])
    centers = np.array([[0, 0, 0, 0], [4, 0, 0, 4], [0, 0, 0, 0], [0, -4, 3, 0]], float)
    return centers[labels] + rng.normal(size=(1550, 4)) * np.where(labels == 0, 1.0, 0.3)[:, None], labels


def drawn(figure: Figure, path) -> Figure:
    """The figure, once it has been drawn."""
    figure.savefig(path / "figure.png", dpi=50)
    return figure


def test_curves(curves, tmp_path):
    figure = drawn(plot_anomaly_curves(curves), tmp_path)
    for ax in figure.axes:
        for line, curve in zip(ax.lines, curves.values(), strict=True):
            np.testing.assert_allclose(line.get_xdata(), 100.0 * curve.completeness)
            np.testing.assert_allclose(line.get_ydata(), 100.0 * curve.contamination)
        (target,) = ax.patches
        np.testing.assert_allclose(target.get_bbox().extents, (98.0, 0.0, 100.0, 5.0))
    # The band is the error of the contamination at the same completeness.
    point = curves["shift 2.5"].at_completeness(0.5)
    band = figure.axes[0].collections[1].get_paths()[0].vertices
    edges = np.unique(band[np.isclose(band[:, 0], 50.0), 1])
    np.testing.assert_allclose(edges, 100.0 * (point.contamination + point.error * np.array([-1.0, 1.0])))
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert any(word.startswith(f"shift 2.5 (area {curves['shift 2.5'].area:.3f}") for word in words)
    left, right = figure.axes
    assert left.get_xlim()[0] == 0.0
    assert right.get_xlim()[0] == 80.0


def test_no_target(curves):
    figure = plot_anomaly_curves(curves, target=None, corner=0.5)
    assert not figure.axes[0].patches
    assert figure.axes[1].get_ylim()[1] == 50.0
    with pytest.raises(ValueError, match="corner = 1"):
        plot_anomaly_curves(curves, corner=1.0)


def test_latents(space, tmp_path):
    latents, labels = space
    names = ("orientation", "redshift", "log mass", "log SFR")
    figure = drawn(plot_latents(latents, labels, names, {1: "green peas"}), tmp_path)
    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in figure.axes] == list(itertools.pairwise(names))
    for i, ax in enumerate(figure.axes):
        for points, label in zip(ax.collections, (0, 1, 3), strict=True):
            np.testing.assert_array_equal(points.get_offsets(), latents[labels == label][:, i : i + 2])
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["ordinary (1500)", "green peas (25)", "class 3 (25)"]
    # The ordinary are all of one grey, and each class has another colour.
    colors = {tuple(points.get_facecolor()[0][:3]) for points in figure.axes[0].collections}
    assert len(colors) == 3
    grey = figure.axes[0].collections[0].get_facecolor()[0]
    assert grey[0] == grey[1] == grey[2]


def test_latents_of_chosen_pairs(space):
    latents, labels = space
    figure = plot_latents(latents, labels, list("abcd"), pairs=[(3, 0)])
    (ax,) = figure.axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("d", "a")
    # A far outlier does not squash the figure.
    far = np.where(np.arange(len(labels))[:, None] == 700, 1e4, latents)
    assert plot_latents(far, labels, list("abcd"), pairs=[(3, 0)]).axes[0].get_xlim()[1] < 10.0


def test_nothing_to_plot(space):
    latents, labels = space
    with pytest.raises(NothingToPlotError, match="at least one curve"):
        plot_anomaly_curves({})
    for bad in (latents[:0], latents[:, :1]):
        with pytest.raises(NothingToPlotError, match="at least two latents"):
            plot_latents(bad, labels, ("a",))
    with pytest.raises(ValueError, match=r"\(1550,\) labels and 3 names do not fit"):
        plot_latents(latents, labels, ("a", "b", "c"))
    with pytest.raises(ValueError, match=r"\(7,\) labels"):
        plot_latents(latents, labels[:7], list("abcd"))
