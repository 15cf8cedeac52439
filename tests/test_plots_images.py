"""Figures of autoencoders of images: what they show is what they were given."""

import numpy as np
import pytest

from popsed_jax.plots_base import NothingToPlotError
from popsed_jax.plots_images import plot_image_latents, plot_orientation, plot_reconstructions


def drawn(figure, path):
    figure.savefig(path / "figure.png", dpi=40)
    return figure


@pytest.mark.parametrize("bands", [3, 2])
def test_reconstructions(bands, tmp_path):
    rng = np.random.default_rng(0)
    seen = rng.random((4, 8, 8, bands))
    again = seen + 0.1 * rng.normal(size=seen.shape)
    figure = drawn(plot_reconstructions(seen, again, ["one", "two", "three", "rare kind"]), tmp_path)
    assert len(figure.axes) == 12
    shown = figure.axes[1].images[0].get_array()
    expected = seen[1][..., ::-1] if bands == 3 else np.repeat(seen[1].mean(axis=-1, keepdims=True), 3, axis=-1)
    np.testing.assert_allclose(shown, expected)
    assert figure.axes[3].get_title() == "rare\nkind"


def test_latents(tmp_path):
    rng = np.random.default_rng(1)
    latents, kind = rng.normal(size=(300, 4)), np.arange(300) % 3
    figure = drawn(plot_image_latents(latents, list("abcd"), rng.random(300), kind, ("ordinary", "x", "y")), tmp_path)
    panel = figure.axes[1]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("b", "c")
    for number, points in enumerate(panel.collections):
        np.testing.assert_allclose(points.get_offsets(), latents[kind == number, 1:3])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y"]
    # Latents in which nothing is are left out.
    latents[:, 2] *= 1e-3
    panels = plot_image_latents(latents, list("abcd"), rng.random(300), kind, ("ordinary", "x", "y")).axes[:2]
    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in panels] == [("a", "b"), ("b", "d")]


def test_orientations_are_compared_around_the_period(tmp_path):
    truth = np.linspace(-1.57, 1.57, 400)
    found = (truth + 0.05 + 0.5 * np.pi) % np.pi - 0.5 * np.pi
    figure = drawn(plot_orientation(truth, found, np.abs(truth) > 0.1), tmp_path)
    _, right = figure.axes
    offsets = right.collections[0].get_offsets()
    assert len(offsets) == np.sum(np.abs(truth) > 0.1)
    np.testing.assert_allclose(offsets[:, 1], 0.05, atol=1e-6)


def test_nothing_to_plot():
    with pytest.raises(NothingToPlotError, match="no images"):
        plot_reconstructions(np.zeros((0, 8, 8, 3)), np.zeros((0, 8, 8, 3)), [])
    with pytest.raises(ValueError, match="do not fit together"):
        plot_reconstructions(np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8, 3)), ["one"])
    with pytest.raises(NothingToPlotError, match="at least two"):
        plot_image_latents(np.zeros((5, 1)), ["a"], np.zeros(5), np.zeros(5, int), ("ordinary",))
    with pytest.raises(NothingToPlotError, match="no elongated"):
        plot_orientation(np.zeros(3), np.zeros(3), np.zeros(3, bool))
