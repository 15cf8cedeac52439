"""Photometric redshifts: metrics against closed forms, p(z) on a grid, and its summaries."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.signal import find_peaks
from scipy.stats import entropy as discrete_entropy
from scipy.stats import gaussian_kde, norm

from popsed_jax.diagnostics.calibration import pit_from_grid, uniformity
from popsed_jax.diagnostics.gridded import quantiles
from popsed_jax.diagnostics.photoz import (
    cde_loss,
    crps_from_grid,
    crps_from_samples,
    density_metrics,
    photoz_metrics,
    point_metrics,
    trainz,
)
from popsed_jax.posteriors.photoz import (
    COLUMNS,
    density_on_grid,
    pz_table,
    summarise_pz,
)
from popsed_jax.tables import read_table, write_table

GRID = np.linspace(0.0, 3.0, 301)


def gaussian_crps(mean, sigma, truth):
    """Gneiting & Raftery 2007, eq. 21."""
    z = (truth - mean) / sigma
    return sigma * (z * (2.0 * norm.cdf(z) - 1.0) + 2.0 * norm.pdf(z) - 1.0 / np.sqrt(np.pi))


class TestPoints:
    def test_by_hand(self):
        truth = np.array([0.0, 0.0, 0.0, 1.0, 1.0])
        error = np.array([0.01, -0.01, 0.02, 0.06, 0.2])
        found = point_metrics(truth + error * (1.0 + truth), truth, np.random.default_rng(0))
        expected = {"bias": 0.02, "sigma_nmad": 1.4826 * 0.03, "outliers_15": 0.2, "outliers_05": 0.4}
        assert {name: entry["value"] for name, entry in found.items()} == pytest.approx(expected)

    def test_errors_are_those_of_repeated_samples(self):
        rng = np.random.default_rng(1)
        found = point_metrics(rng.normal(0.0, 0.04, 4000), np.zeros(4000), rng)
        share = 2.0 * norm.sf(0.05 / 0.04)
        expected = {
            "bias": 0.04 * np.sqrt(np.pi / 2.0 / 4000),
            "sigma_nmad": 0.04 * 1.166 / np.sqrt(4000),  # the MAD's efficiency is 0.37
            "outliers_05": np.sqrt(share * (1.0 - share) / 4000),
        }
        for name, error in expected.items():
            assert found[name]["error"] == pytest.approx(error, rel=0.25), name
        assert found["sigma_nmad"]["value"] == pytest.approx(0.04, abs=4.0 * expected["sigma_nmad"])

    @settings(max_examples=30, deadline=None)
    @given(scale=st.floats(0.1, 10.0), shift=st.floats(-0.5, 0.5), seed=st.integers(0, 100))
    def test_shift_and_scale(self, scale, shift, seed):
        error = np.random.default_rng(seed).normal(0.0, 0.05, 40)
        base = point_metrics(error, np.zeros(40), np.random.default_rng(0), num_bootstrap=5)
        moved = point_metrics(scale * error + shift, np.zeros(40), np.random.default_rng(0), num_bootstrap=5)
        assert moved["bias"]["value"] == pytest.approx(scale * base["bias"]["value"] + shift, abs=1e-12)
        for kind in ("value", "error"):
            assert moved["sigma_nmad"][kind] == pytest.approx(scale * base["sigma_nmad"][kind])

    def test_bad_input(self):
        rng, good = np.random.default_rng(0), np.zeros(3)
        with pytest.raises(ValueError, match="1 of 3 galaxies have a redshift that is not a number"):
            point_metrics(np.array([0.0, np.nan, 0.0]), good, rng)
        with pytest.raises(ValueError, match="2 of 3 galaxies have true values that are not numbers"):
            point_metrics(good, np.array([0.0, np.nan, np.inf]), rng)
        with pytest.raises(ValueError, match="1 of 3 galaxies have a true redshift of -1 or less"):
            point_metrics(good, np.array([0.0, 0.0, -99.0]), rng)


class TestDensities:
    mean = np.array([0.8, 1.0, 1.5, 2.0])
    sigma = np.array([0.05, 0.2, 0.1, 0.15])
    truth = np.array([0.83, 0.7, 1.5, 1.6])

    def density(self):
        return norm.pdf(GRID, self.mean[:, None], self.sigma[:, None])

    def test_crps_of_a_gaussian(self):
        expected = gaussian_crps(self.mean, self.sigma, self.truth)
        np.testing.assert_allclose(crps_from_grid(GRID, 5.0 * self.density(), self.truth), expected, rtol=3e-3)
        draws = np.random.default_rng(0).normal(self.mean[:, None], self.sigma[:, None], (4, 40_000))
        np.testing.assert_allclose(crps_from_samples(draws, self.truth), expected, rtol=0.02)

    def test_crps_of_weighted_samples(self):
        draws = np.random.default_rng(0).uniform(0.0, 3.0, (4, 40_000))
        weights = 9.0 * norm.pdf(draws, self.mean[:, None], self.sigma[:, None])
        expected = gaussian_crps(self.mean, self.sigma, self.truth)
        np.testing.assert_allclose(crps_from_samples(draws, self.truth, weights), expected, rtol=0.05)

    def test_crps_beyond_the_grid(self):
        """The distance from all that is not there counts fully."""
        truth = np.array([-0.5, 3.5, 0.0, 3.0])
        expected = gaussian_crps(self.mean, self.sigma, truth)
        np.testing.assert_allclose(crps_from_grid(GRID, self.density(), truth), expected, rtol=1e-3)

    def test_few_samples_score_like_many(self):
        rng = np.random.default_rng(3)
        truth = rng.normal(size=20_000)
        few, more = (np.mean(crps_from_samples(rng.normal(size=(20_000, n)), truth)) for n in (3, 30))
        assert few == pytest.approx(1.0 / np.sqrt(np.pi), abs=0.01)
        assert more == pytest.approx(1.0 / np.sqrt(np.pi), abs=0.01)
        one = np.array([[1.0, 5.0]])
        assert crps_from_samples(one, np.array([0.0]), np.array([[1.0, 0.0]])) == pytest.approx(1.0)

    def test_cde_loss_of_a_gaussian(self):
        expected = 1.0 / (2.0 * np.sqrt(np.pi) * self.sigma) - 2.0 * norm.pdf(self.truth, self.mean, self.sigma)
        np.testing.assert_allclose(cde_loss(GRID, self.density(), self.truth), expected, atol=0.02)
        beyond = cde_loss(GRID, self.density(), np.full(4, 3.01))
        np.testing.assert_allclose(beyond, 1.0 / (2.0 * np.sqrt(np.pi) * self.sigma), rtol=5e-3)

    @pytest.mark.parametrize(("stretch", "shift"), [(0.6, 0.0), (1.6, 0.0), (1.0, 0.08)])
    def test_the_true_densities_score_best(self, stretch, shift):
        rng = np.random.default_rng(4)
        mean, sigma = rng.uniform(0.8, 2.2, 3000), rng.uniform(0.05, 0.15, 3000)
        truth = rng.normal(mean, sigma)
        right = norm.pdf(GRID, mean[:, None], sigma[:, None])
        wrong = norm.pdf(GRID, mean[:, None] + shift, stretch * sigma[:, None])
        for score in (crps_from_grid, cde_loss):
            loss = score(GRID, wrong, truth) - score(GRID, right, truth)
            assert np.mean(loss) > 4.0 * np.std(loss) / np.sqrt(len(loss)), score
        ks, worse = (density_metrics(GRID, each, truth, rng, 20)["pit_ks"] for each in (right, wrong))
        assert worse["value"] > ks["value"] + 4.0 * worse["error"]

    def test_trainz_games_the_pit_and_nothing_else(self):
        """Schmidt+20: n(z) for every galaxy has a perfect PIT and knows nothing of a galaxy."""
        rng = np.random.default_rng(5)
        redshifts = np.clip(rng.gamma(4.0, 0.2, 42_000), 0.0, 3.0)
        truth, sigma = redshifts[:2000], 0.05
        photometric = rng.normal(truth, sigma)  # an estimate of worth, if too confident
        honest = norm.pdf(GRID, photometric[:, None], 0.7 * sigma)
        control = trainz(redshifts[2000:], GRID, len(truth))
        assert uniformity(pit_from_grid(GRID, control, truth), rng).p_value > 0.02
        assert uniformity(pit_from_grid(GRID, honest, truth), rng).p_value < 1e-3
        table = photoz_metrics(GRID[np.argmax(control, axis=1)], GRID, control, truth, rng, 50)
        better = photoz_metrics(photometric, GRID, honest, truth, rng, 50)
        assert table["pit_ks"]["value"] < 0.5 * better["pit_ks"]["value"]
        # The best that one density for all can do: minus the integral of its square.
        bound = -np.mean(np.interp(truth, GRID, control[0]))
        assert table["cde_loss"]["value"] == pytest.approx(bound, abs=0.03)
        assert better["cde_loss"]["value"] < 4.0 * table["cde_loss"]["value"]
        assert better["crps"]["value"] < 0.25 * table["crps"]["value"]
        assert better["sigma_nmad"]["value"] < 0.25 * table["sigma_nmad"]["value"]
        assert set(table) == {
            *("bias", "sigma_nmad", "outliers_15", "outliers_05"),
            *("crps", "cde_loss", "pit_ks"),
        }

    def test_trainz_is_the_distribution_of_the_training_set(self):
        redshifts = np.random.default_rng(6).normal(1.0, 0.25, 5000)
        density = trainz(redshifts, GRID, 3)
        assert density.shape == (3, len(GRID))
        np.testing.assert_array_equal(density[0], density[2])
        np.testing.assert_allclose(density[0], norm.pdf(GRID, 1.0, 0.25), atol=0.12)  # of 1.6
        with pytest.raises(ValueError, match="1 samples of 1 of 1 galaxies lie outside the grid, 0 to 1"):
            trainz(np.array([1.25]), np.linspace(0.0, 1.0, 5), 3)
        with pytest.raises(ValueError, match="1 of 2 galaxies have a redshift that is not a number"):
            trainz(np.array([np.nan, 0.2]), GRID, 3)

    @settings(max_examples=30, deadline=None)
    @given(scale=st.floats(0.2, 5.0), shift=st.floats(-3.0, 3.0), seed=st.integers(0, 100))
    def test_shift_and_scale(self, scale, shift, seed):
        rng = np.random.default_rng(seed)
        grid = np.cumsum(rng.uniform(0.01, 1.0, 12))
        density, truth = rng.exponential(size=(6, 12)), rng.uniform(grid[0], grid[-1], 6)
        moved, target = scale * grid + shift, scale * truth + shift
        np.testing.assert_allclose(crps_from_grid(moved, density, target), scale * crps_from_grid(grid, density, truth))
        np.testing.assert_allclose(
            cde_loss(moved, density, target), cde_loss(grid, density, truth) / scale, atol=1e-8, rtol=1e-6
        )
        np.testing.assert_allclose(
            pit_from_grid(moved, density, target), pit_from_grid(grid, density, truth), atol=1e-9
        )
        base, other = summarise_pz(grid, density), summarise_pz(moved, density)
        for name in ("redshift_mean", "redshift_mode", "redshift_q2_5", "redshift_q50", "redshift_q97_5"):
            np.testing.assert_allclose(other[name], scale * base[name] + shift, atol=1e-8)
        np.testing.assert_allclose(other["redshift_std"], scale * base["redshift_std"])
        np.testing.assert_allclose(other["pz_entropy"], base["pz_entropy"] + np.log(scale), atol=1e-9)
        np.testing.assert_array_equal(other["pz_peaks"], base["pz_peaks"])


def mixture(rng, num, num_samples, parts):
    """Samples of a mixture: (share, mean, sigma) of each part."""
    share, mean, sigma = np.array(parts).T
    part = rng.choice(len(share), (num, num_samples), p=share)
    return rng.normal(mean[part], sigma[part])


def mixture_pdf(parts, z=GRID):
    return sum(share * norm.pdf(z, mean, sigma) for share, mean, sigma in parts)


class TestDensityOnGrid:
    def test_area_and_agreement_with_a_direct_sum(self):
        """Each density is the sum of Gaussians of one width about the samples and their images beyond the ends."""
        samples = np.abs(np.random.default_rng(0).normal(0.15, 0.15, (3, 80)))
        weights = np.random.default_rng(1).uniform(0.0, 2.0, samples.shape)
        fine = np.linspace(0.0, 3.0, 3001)
        density = density_on_grid(samples, fine, weights)
        np.testing.assert_allclose(np.trapezoid(density, fine, axis=1), 1.0)
        for row, sample, weight in zip(density, samples, weights, strict=True):

            def direct(bandwidth, sample=sample, weight=weight):
                kernels = norm.pdf(fine, sample[:, None], bandwidth) + norm.pdf(fine, -sample[:, None], bandwidth)
                return weight @ kernels / weight.sum()

            bandwidth = brentq(lambda b, row=row, direct=direct: direct(b).max() - row.max(), 0.005, 0.5)
            np.testing.assert_allclose(row, direct(bandwidth), atol=2e-3 * row.max())

    def test_bandwidth_follows_the_width_and_the_effective_size(self):
        """On one peak it is close to the rule of thumb, as SciPy has it."""
        rng = np.random.default_rng(1)
        for sigma, num in ((0.05, 4000), (0.3, 4000), (0.3, 500)):
            samples = rng.normal(1.5, sigma, (1, num)).clip(0.0, 3.0)
            expected = gaussian_kde(samples[0], lambda kde: kde.neff**-0.2)(GRID)
            np.testing.assert_allclose(density_on_grid(samples, GRID)[0], expected, atol=0.05 * expected.max())

    def test_samples_without_weight_are_none(self):
        samples = np.random.default_rng(2).normal(1.0, 0.1, (5, 60))
        weights = np.repeat([[0.0, 3.0]], 30, axis=1).reshape(1, -1) * np.ones((5, 1))
        found = density_on_grid(samples, GRID, weights)
        np.testing.assert_allclose(found, density_on_grid(samples[:, 30:], GRID), atol=1e-9)

    @pytest.mark.parametrize("size", [60, 200, 1000])
    @pytest.mark.parametrize(
        "parts", [[(0.5, 0.3, 0.03), (0.5, 2.5, 0.06)], [(0.35, 0.4, 0.05), (0.35, 1.2, 0.04), (0.3, 2.4, 0.1)]]
    )
    def test_peaks_are_kept(self, parts, size):
        samples = mixture(np.random.default_rng(3), 100, size, parts)
        density = density_on_grid(samples, GRID)
        truth = mixture_pdf(parts)
        miss = np.trapezoid((density - truth) ** 2, GRID, axis=1) / np.trapezoid(truth**2, GRID)
        assert np.mean(miss) < 3.3 / size**0.8  # 0.9 for a single Gaussian; above 15 by the rule of thumb
        assert np.mean(summarise_pz(GRID, density)["pz_peaks"] >= len(parts)) > 0.99

    def test_reflection_at_the_ends(self):
        """Half of the density of galaxies at redshift zero does not fall off the grid."""
        samples = np.abs(np.random.default_rng(4).normal(0.0, 0.2, (50, 2000)))
        density = density_on_grid(samples, GRID).mean(axis=0)
        np.testing.assert_allclose(density, 2.0 * norm.pdf(GRID, 0.0, 0.2), atol=0.1)  # of 4
        mirrored = density_on_grid(3.0 - samples, GRID).mean(axis=0)
        np.testing.assert_allclose(mirrored[::-1], density, atol=1e-6)

    def test_a_spike_stays_within_a_step(self):
        density = density_on_grid(np.full((2, 100), 1.503), GRID)
        summary = summarise_pz(GRID, density)
        np.testing.assert_allclose(summary["redshift_mean"], 1.503)
        assert np.all(summary["redshift_std"] < 0.01)
        np.testing.assert_array_equal(summary["pz_peaks"], 1)

    def test_bad_input(self):
        samples = np.full((3, 10), 0.5)
        for wrong, grid, message in [
            (np.where(np.arange(3)[:, None] == 1, np.nan, samples), GRID, "1 of 3 galaxies have samples that are not"),
            (
                samples + np.array([[0.0], [3.0], [9.0]]),
                GRID,
                "20 samples of 2 of 3 galaxies lie outside the grid, 0 to 3: widen it",
            ),
            (samples, np.geomspace(0.1, 3.0, 50), "equally spaced"),
            (samples[..., None], GRID, "of redshift alone"),
        ]:
            with pytest.raises(ValueError, match=message):
                density_on_grid(wrong, grid)


class TestSummary:
    def test_of_a_gaussian(self):
        density = norm.pdf(GRID, 1.234, 0.08)[None]
        found = {name: column[0] for name, column in summarise_pz(GRID, density).items()}
        assert list(found) == list(COLUMNS)
        expected = {
            "redshift_mean": 1.234,
            "redshift_std": 0.08,
            "redshift_mode": 1.234,
            "redshift_q2_5": norm.ppf(0.025, 1.234, 0.08),
            "redshift_q16": norm.ppf(0.16, 1.234, 0.08),
            "redshift_q50": 1.234,
            "redshift_q84": norm.ppf(0.84, 1.234, 0.08),
            "redshift_q97_5": norm.ppf(0.975, 1.234, 0.08),
            "z_conf": 2.0 * norm.cdf(0.03 * 2.234 / 0.08) - 1.0,
            "pz_peaks": 1,
            "pz_entropy": 0.5 * np.log(2.0 * np.pi * np.e * 0.08**2),
            "pz_width": norm.ppf(0.84) * 0.08 / 2.234,
        }
        assert found == pytest.approx(expected, abs=5e-4, rel=2e-3)

    def test_of_a_uniform(self):
        found = summarise_pz(np.array([0.0, 0.5, 2.0]), np.ones((1, 3)))
        for name, value in {"redshift_mean": 1.0, "redshift_std": 2.0 / np.sqrt(12.0), "redshift_q16": 0.32}.items():
            assert found[name][0] == pytest.approx(value)
        assert found["pz_entropy"][0] == pytest.approx(np.log(2.0))
        assert found["pz_peaks"][0] == 1

    def test_quantiles_of_a_mixture(self):
        parts = [(0.6, 0.5, 0.05), (0.4, 2.0, 0.2)]
        levels = np.array([0.025, 0.16, 0.5, 0.599, 0.84, 0.975])

        def below(z):
            return sum(share * norm.cdf(z, mean, sigma) for share, mean, sigma in parts)

        expected = [brentq(lambda z, level=level: below(z) - level, 0.0, 3.0) for level in levels]
        np.testing.assert_allclose(quantiles(GRID, mixture_pdf(parts)[None], levels)[0], expected, atol=2e-3)

    @settings(max_examples=100, deadline=None)
    @given(seed=st.integers(0, 10_000), num=st.integers(2, 40), prominence=st.floats(0.01, 0.6))
    def test_peaks_are_those_of_their_prominence(self, seed, num, prominence):
        density = np.random.default_rng(seed).exponential(size=(4, num))
        found = summarise_pz(np.arange(num, dtype=float), density, prominence)["pz_peaks"]
        padded = np.pad(density, ((0, 0), (1, 1)))
        expected = [len(find_peaks(row, prominence=prominence * row.max())[0]) for row in padded]
        np.testing.assert_array_equal(found, expected)

    def test_blocks_do_not_matter(self):
        density = np.random.default_rng(0).exponential(size=(2500, 10))
        whole, last = summarise_pz(np.arange(10.0), density), summarise_pz(np.arange(10.0), density[2400:])
        for name in COLUMNS:
            np.testing.assert_allclose(whole[name][2400:], last[name])

    def test_entropy_is_that_of_fine_bins(self):
        density = mixture_pdf([(0.7, 1.0, 0.1), (0.3, 2.0, 0.1)])
        expected = discrete_entropy(density) + np.log(GRID[1])
        assert summarise_pz(GRID, density[None])["pz_entropy"][0] == pytest.approx(expected, abs=1e-3)

    def test_table_goes_through_parquet(self, tmp_path):
        summary = summarise_pz(GRID, norm.pdf(GRID, [[0.5], [1.0]], 0.1))
        write_table(pz_table(summary), tmp_path / "pz.parquet")
        read = read_table(tmp_path / "pz.parquet")
        assert isinstance(read, Table)
        assert {name: read[name].description for name in read.colnames} == COLUMNS
        for name, column in summary.items():
            np.testing.assert_array_equal(read[name], column)


@pytest.mark.comparison
@pytest.mark.filterwarnings("ignore")
def test_qp_ensemble(tmp_path):
    qp = pytest.importorskip("qp")
    from popsed_jax.posteriors.qp import pz_ensemble

    density = norm.pdf(GRID, [[0.5], [1.0], [2.0]], 0.1)
    pz_ensemble(GRID, density, {"id": np.array([7, 8, 9])}).write_to(str(tmp_path / "pz.hdf5"))
    read = qp.read(str(tmp_path / "pz.hdf5"))
    np.testing.assert_allclose(read.pdf(GRID), density, atol=1e-6)
    np.testing.assert_array_equal(read.ancil["id"], [7, 8, 9])
    np.testing.assert_allclose(read.ancil["redshift_q50"], [0.5, 1.0, 2.0], atol=1e-6)
    assert set(COLUMNS) <= set(read.ancil)
    with pytest.raises(ValueError, match=r"column id of shape \(2,\): one value for each of 3 galaxies wanted"):
        pz_ensemble(GRID, density, {"id": np.array([7, 8])})
