"""Which galaxies to keep by their p(z), and what it gains, on galaxies whose worst are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from popsed_jax.diagnostics.photoz import point_metrics
from popsed_jax.posteriors.photoz import SCREENS, screen, screening_curve, summarise_pz

GRID = np.linspace(0.0, 3.0, 301)


@pytest.fixture(scope="module")
def galaxies():
    """Half of the galaxies have a second peak, and a fifth of those are at it; the rest differ in width."""
    rng = np.random.default_rng(0)
    redshift, sigma = rng.uniform(0.2, 0.8, 1500), rng.uniform(0.01, 0.08, 1500)
    second = np.where(rng.random(1500) < 0.5, 0.2, 0.0)
    density = (1.0 - second[:, None]) * norm.pdf(GRID, redshift[:, None], sigma[:, None])
    density += second[:, None] * norm.pdf(GRID, 1.5 + redshift[:, None], 0.1)
    truth = rng.normal(redshift, sigma)
    truth = np.where(rng.random(1500) < second, truth + 1.5, truth)
    return summarise_pz(GRID, density), truth, second > 0


class TestScreening:
    def test_the_worst_are_set_aside(self, galaxies):
        summary, _, double = galaxies
        keep = screen(summary, "pz_peaks", np.mean(double))
        np.testing.assert_array_equal(keep, ~double)
        for by, sign in SCREENS.items():
            keep = screen(summary, by, 0.3)
            assert np.sum(keep) == 1050
            assert np.max(sign * summary[by][keep]) <= np.min(sign * summary[by][~keep])
        # Alike in peaks: by width.
        keep = screen(summary, "pz_peaks", 0.75)
        assert np.max(summary["pz_width"][keep]) < np.min(summary["pz_width"][~keep & ~double])

    @pytest.mark.parametrize("by", SCREENS)
    def test_accuracy_grows(self, galaxies, by):
        summary, truth, _ = galaxies
        curve = screening_curve(summary, truth, by, np.random.default_rng(0), (0.0, 0.3, 0.6), num_bootstrap=20)
        np.testing.assert_array_equal(curve["num_kept"], [1500, 1050, 600])
        assert np.all(np.diff(curve["outliers_15"]) < 0)
        whole = point_metrics(summary["redshift_mode"], truth, np.random.default_rng(0), 20)
        assert curve["sigma_nmad"][0] == whole["sigma_nmad"]["value"]
        assert curve["sigma_nmad_error"][0] == whole["sigma_nmad"]["error"]
        assert curve["sigma_nmad"][2] < 0.9 * curve["sigma_nmad"][0]

    def test_bad_input(self, galaxies):
        with pytest.raises(ValueError, match="no screening by 'width': one of pz_peaks, pz_width, pz_entropy, z_conf"):
            screen(galaxies[0], "width", 0.1)
        for fraction in (1.0, -0.1, 0.9999):
            with pytest.raises(ValueError, match="of 1500 galaxies keeps none"):
                screen(galaxies[0], "z_conf", fraction)
