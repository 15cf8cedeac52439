"""Figures that judge posteriors: what they show is what they were given."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.stats import norm

from popsed_jax.diagnostics.calibration import tarp
from popsed_jax.diagnostics.photoz import point_metrics
from popsed_jax.parameters import Parameter, ParameterSpace
from popsed_jax.plots_base import NothingToPlotError
from popsed_jax.plots_corner import plot_galaxy
from popsed_jax.plots_posterior import plot_ranks, plot_redshifts, plot_screening, plot_stack, plot_tarp
from popsed_jax.posteriors.photoz import SCREENS, screening_curve, summarise_pz
from popsed_jax.posteriors.reweight import Weighted

GRID = np.linspace(0.0, 2.0, 101)


@pytest.fixture(scope="module")
def galaxies():
    rng = np.random.default_rng(0)
    truth, sigma = rng.uniform(0.1, 1.4, 800), rng.uniform(0.02, 0.1, 800)
    density = norm.pdf(GRID, rng.normal(truth, sigma)[:, None], sigma[:, None])
    return truth, density, summarise_pz(GRID, density)


def drawn(figure: Figure, path) -> Figure:
    """The figure, once it has been drawn."""
    figure.savefig(path / "figure.png", dpi=50)
    return figure


def test_ranks(tmp_path):
    rng = np.random.default_rng(1)
    ranks = {"redshift": rng.random(1000), "mass": rng.beta(0.5, 0.5, 1000)}
    figure = drawn(plot_ranks(ranks, num_bins=10), tmp_path)
    counts = np.histogram(ranks["mass"], np.linspace(0.0, 1.0, 11))[0]
    np.testing.assert_allclose(figure.axes[1].patches[-1].get_data().values, counts / 100.0)
    assert [ax.get_xlabel() for ax in figure.axes] == list(ranks)
    assert figure.axes[1].texts[0].get_text().startswith("KS: p = ")
    # A U leaves the band at its ends.
    band = figure.axes[1].patches[0].get_bbox()
    assert counts[0] / 100.0 > band.y1 > 1.0 > band.y0 > counts[5] / 100.0


def test_coverage(tmp_path):
    rng = np.random.default_rng(2)
    truth = rng.normal(size=(300, 2))
    curves = {name: tarp(rng.normal(scale=s, size=(300, 50, 2)), truth, rng) for name, s in (("a", 1.0), ("b", 0.5))}
    figure = drawn(plot_tarp(curves), tmp_path)
    left, right = figure.axes
    for line, curve in zip(left.lines[1:], curves.values(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), curve.coverage)
    np.testing.assert_allclose(right.lines[2].get_ydata(), curves["b"].coverage - curves["b"].levels)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_redshifts(galaxies, tmp_path):
    truth, _, summary = galaxies
    metrics = point_metrics(summary["redshift_mode"], truth, np.random.default_rng(0), 20)
    top, bottom, *_ = drawn(plot_redshifts(summary["redshift_mode"], truth, metrics), tmp_path).axes
    assert f"{metrics['sigma_nmad']['value']:.4f}" in top.texts[0].get_text()
    assert {float(line.get_ydata()[0]) for line in bottom.lines} == {0.0, 0.05, -0.05, 0.15, -0.15}
    # Nearly all galaxies are within both planes.
    for ax in (top, bottom):
        assert ax.collections[0].get_array().sum() > 0.98 * len(truth)


def test_screening(galaxies, tmp_path):
    truth, _, summary = galaxies
    curves = {by: screening_curve(summary, truth, by, np.random.default_rng(0), num_bootstrap=10) for by in SCREENS}
    scatter, outliers, _ = drawn(plot_screening(curves), tmp_path).axes
    np.testing.assert_array_equal(scatter.lines[0].get_ydata(), curves["pz_peaks"]["sigma_nmad"])
    np.testing.assert_allclose(outliers.lines[3].get_ydata(), 100.0 * curves["z_conf"]["outliers_15"])


def test_stack(galaxies, tmp_path):
    truth, density, _ = galaxies
    (ax,) = drawn(plot_stack(GRID, {"learned": 3.0 * density}, truth), tmp_path).axes
    assert np.trapezoid(ax.lines[0].get_ydata(), GRID) == pytest.approx(1.0)
    assert np.sum(ax.patches[0].get_data().values) * np.diff(ax.patches[0].get_data().edges)[0] == pytest.approx(1.0)


def test_a_spike_does_not_squash_the_stack(galaxies):
    truth, density, _ = galaxies
    spiky = np.zeros_like(density)
    spiky[:, 0] = 1.0
    (ax,) = plot_stack(GRID, {"learned": density, "lost": spiky}, truth).axes
    assert ax.get_ylim()[1] == pytest.approx(2.0 * ax.patches[0].get_data().values.max())
    assert ax.lines[1].get_ydata().max() > ax.get_ylim()[1]


@pytest.mark.parametrize("plot", [plot_ranks, plot_tarp, plot_screening, lambda nothing: plot_stack(GRID, nothing)])
def test_nothing_to_plot(plot):
    with pytest.raises(NothingToPlotError, match="at least one"):
        plot({})


def weighted(theta: np.ndarray, weights: np.ndarray | None = None) -> Weighted:
    weights = np.full(theta.shape[:2], 1.0 / theta.shape[1]) if weights is None else weights
    return Weighted(theta, weights, 1.0 / np.sum(weights**2, axis=1))


def test_posteriors_of_a_galaxy(tmp_path):
    space = ParameterSpace((Parameter("redshift", 0.0, 2.0, label="$z$"), Parameter("log_mass", 7.0, 13.0)))
    rng = np.random.default_rng(2)
    theta = rng.normal([0.5, 10.0], [0.05, 0.2], (2, 2000, 2))
    one = np.zeros((2, 2000))
    one[:, 0] = 1.0
    posteriors = {"network": weighted(theta), "chains": weighted(theta + 0.1), "lost": weighted(theta, one)}
    names = ("redshift", "log_mass")
    figure = drawn(plot_galaxy(posteriors, space, names, galaxy=1, truth={"redshift": 0.5}), tmp_path)
    heights = [patch.get_data() for patch in figure.axes[0].patches]
    assert len(heights) == 2
    for shown, each in zip(heights, (theta, theta + 0.1), strict=True):
        wanted = np.histogram(each[1, :, 0], shown.edges, density=True)[0]
        np.testing.assert_allclose(shown.values, wanted, rtol=1e-6)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["network", "chains", "known", "lost: too few samples (1)"]
    with pytest.raises(NothingToPlotError, match=r"50 effective samples of a posterior \(here lost: 1\)"):
        plot_galaxy({"lost": posteriors["lost"]}, space, names)
    with pytest.raises(KeyError):
        plot_galaxy(posteriors, space, ("redshift", "age"))
