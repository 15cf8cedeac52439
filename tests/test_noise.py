"""The survey's noise learned from its quoted errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.observe.magnitudes import ab_mag, asinh_mag, asinh_mag_inverse
from popsed_jax.observe.noise import NoiseConfig, fit_noise_model, fit_softening

SKY, FRACTION, SCATTER = 1e-10, 0.02, 0.05  # of the `noise` fixture


def sigma_true(flux):
    return np.hypot(SKY, FRACTION * flux)


class TestFit:
    def test_recovers_sigma(self, noise):
        flux = np.repeat(np.geomspace(3e-10, 5e-7, 30)[:, None], 5, axis=1)
        found = noise.sigma(jnp.asarray(flux), jnp.zeros(flux.shape))
        # The medians of some 700 galaxies with 12 % scatter are good to 1 %; straight lines between knots leave 4 %.
        np.testing.assert_allclose(found, sigma_true(flux), rtol=0.06)

    def test_recovers_scatter(self, noise):
        inner = np.asarray(noise.scatter)[:, 2:-2]
        # sigma rises by 0.3 dex across a knot's kernel, six times the scatter: that slope must not count as scatter.
        assert np.mean(inner) == pytest.approx(SCATTER, rel=0.08)
        np.testing.assert_allclose(inner, SCATTER, rtol=0.2)  # 3 % by counting, the rest is curvature

    def test_depth_is_in_standard_deviations(self, noise):
        flux = jnp.full((1, 5), 1e-8)
        shallow, median = (np.asarray(noise.sigma(flux, jnp.full((1, 5), depth))) for depth in (1.0, 0.0))
        np.testing.assert_allclose(np.log10(shallow / median), SCATTER, rtol=0.2)

    def test_beyond_the_knots_it_is_constant(self, noise):
        flux = jnp.array([[-1e-3] * 5, [1e-3] * 5])
        sigma = np.asarray(noise.sigma(flux, jnp.zeros(flux.shape)))
        np.testing.assert_allclose(sigma[0], 10.0 ** np.asarray(noise.log_sigma)[:, 0], rtol=1e-5)
        np.testing.assert_allclose(sigma[1], 10.0 ** np.asarray(noise.log_sigma)[:, -1], rtol=1e-5)

    def test_softening_is_the_error_of_the_faint(self):
        rng = np.random.default_rng(0)
        flux = 10.0 ** rng.uniform(-10.0, -6.0, (2000, 2))
        error = np.where(flux < np.quantile(flux, 0.1, axis=0), [1e-10, 3e-10], 1.0)
        np.testing.assert_allclose(fit_softening(flux, error), [1e-10, 3e-10])

    def test_tied_fluxes(self):
        error = np.full((50, 1), 1e-9)
        model = fit_noise_model(np.full((50, 1), 1e-8), error)
        sigma = model.sigma(jnp.array([[1e-8], [0.0], [-1e-8]]), jnp.zeros((3, 1)))
        np.testing.assert_allclose(sigma, 1e-9, rtol=1e-4)

    def test_negative_fluxes_are_ordinary(self):
        rng = np.random.default_rng(4)
        flux = 1e-9 * rng.normal(size=(500, 2))
        model = fit_noise_model(flux, np.full(flux.shape, 1e-9))
        observed, quoted = model.observe(jax.random.key(0), jnp.asarray(flux, jnp.float32))
        assert bool(jnp.all(jnp.isfinite(observed)))
        np.testing.assert_allclose(quoted, 1e-9, rtol=1e-4)

    def test_errors(self):
        with pytest.raises(ValueError, match="at least 20 galaxies in every band, and one has 19"):
            fit_noise_model(np.ones((19, 2)), np.ones((19, 2)))
        with pytest.raises(ValueError, match="positive errors in every band"):
            fit_noise_model(np.ones((30, 2)), np.zeros((30, 2)))


@pytest.fixture(scope="module")
def cloud(noise) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """20,000 copies of one galaxy whose error rises with flux: its flux, the observed fluxes and the quoted errors."""
    flux = np.full((20_000, 5), 1e-8)
    observed, quoted = noise.observe(jax.random.key(1), jnp.asarray(flux, jnp.float32))
    return flux, np.asarray(observed, float), np.asarray(quoted, float)


class TestObserve:
    def test_unbiased_and_as_wide_as_sigma(self, cloud):
        flux, observed, _ = cloud
        pull = (observed - flux) / sigma_true(flux)
        assert abs(pull.mean()) < 5.0 / np.sqrt(pull.size)
        # Scatter in sigma (0.05 dex) widens the mixture by 1.3 %; sigma itself is known to 4 %.
        assert pull.std() == pytest.approx(1.013, abs=0.05)

    def test_the_quoted_error_is_that_of_the_observed_flux(self, noise, cloud):
        """If it were that of the true flux, equal truths would be given away by equal errors."""
        rng = np.random.default_rng(3)
        flux = 10.0 ** rng.uniform(-9.5, -7.0, (5000, 5))
        model = noise.replace(scatter=jnp.zeros_like(noise.scatter))
        observed, quoted = model.observe(jax.random.key(2), jnp.asarray(flux, jnp.float32))
        np.testing.assert_allclose(quoted, model.sigma(observed, jnp.zeros(observed.shape)), rtol=1e-6)
        from_truth = model.sigma(jnp.asarray(flux, jnp.float32), jnp.zeros(flux.shape))
        assert float(jnp.mean(jnp.abs(quoted / from_truth - 1.0) > 1e-3)) > 0.5
        # At one truth, the errors vary with what was observed (by 5 % from the faintest to the brightest tenth here).
        _, observed, quoted = cloud
        bright, faint = observed > np.quantile(observed, 0.9), observed < np.quantile(observed, 0.1)
        assert np.median(quoted[bright]) > 1.02 * np.median(quoted[faint])

    def test_divisor_quiets_the_noise_but_not_the_quoted_error(self, noise):
        flux = jnp.full((4000, 5), 1e-8)
        full, error_full = noise.observe(jax.random.key(3), flux)
        quiet, error_quiet = noise.observe(jax.random.key(3), flux, 20.0)
        np.testing.assert_allclose((quiet - flux) * 20.0, full - flux, atol=3e-14)  # 20 roundings of 1e-8 in float32
        assert float(jnp.median(error_quiet / error_full)) == pytest.approx(1.0, abs=0.01)

    def test_floor_is_in_the_noise_only(self, noise):
        flux = jnp.full((20_000, 5), 1e-7)
        loud = noise.replace(floor=jnp.full(5, 0.1))
        observed, quoted = loud.observe(jax.random.key(4), flux)
        width = np.asarray(observed, float).std() / 1e-7
        assert width == pytest.approx(np.hypot(0.1, FRACTION), rel=0.02)
        assert float(jnp.median(quoted)) == pytest.approx(FRACTION * 1e-7, rel=0.06)

    def test_fit_carries_the_floor(self):
        model = fit_noise_model(np.geomspace(1e-9, 1e-7, 40)[:, None], np.full((40, 1), 1e-9), NoiseConfig(floor=0.03))
        np.testing.assert_allclose(model.floor, 0.03)

    def test_deep_fields_stay_deep_in_all_bands(self):
        """A catalogue of two depths, a factor of three apart in every band: so are the simulated errors."""
        rng = np.random.default_rng(7)
        flux = 10.0 ** rng.uniform(-9.0, -8.0, (4000, 2))
        deep = rng.random(4000) < 0.65
        error = np.where(deep, 1e-10, 3e-10)[:, None] * np.ones(2)
        model = fit_noise_model(flux, error)
        _, quoted = model.observe(jax.random.key(0), jnp.asarray(flux, jnp.float32))
        shallow = np.asarray(quoted) > 1.7e-10
        np.testing.assert_array_equal(shallow[:, 0], shallow[:, 1])
        assert np.mean(shallow) == pytest.approx(0.35, abs=0.03)

    def test_galaxies_without_a_band_do_not_count_in_it(self):
        rng = np.random.default_rng(8)
        flux = 10.0 ** rng.uniform(-9.0, -8.0, (500, 2))
        error = np.full(flux.shape, 1e-10)
        lacking = rng.random(500) < 0.4
        whole = fit_noise_model(flux[~lacking], error[~lacking])
        flux[lacking, 1], error[lacking, 1] = np.nan, np.nan
        gaps = fit_noise_model(flux, error)
        np.testing.assert_allclose(gaps.knots[1], whole.knots[1])
        assert bool(jnp.all(jnp.isfinite(gaps.depths)))
        with pytest.raises(ValueError, match="in every band, and one has 10"):
            fit_noise_model(flux, np.where(np.cumsum(~lacking)[:, None] > 10, [1e-10, np.nan], error))

    @pytest.mark.parametrize(
        ("config", "kurtosis", "correlation"),
        [
            (NoiseConfig(floor=0.0), 3.0, 0.0),
            (NoiseConfig(floor=0.0, correlation=0.4), 3.0, 0.4),
            # 3 (nu - 2) / (nu - 4), and 3 (1 - f + f s^4) / (1 - f + f s^2)^2.
            (NoiseConfig(floor=0.0, degrees_of_freedom=12.0), 3.75, 0.0),
            (NoiseConfig(floor=0.0, outlier_fraction=0.05, outlier_scale=3.0), 7.653, 0.0),
        ],
    )
    def test_tails_and_correlation_have_their_closed_forms(self, config, kurtosis, correlation):
        rng = np.random.default_rng(9)
        flux = 10.0 ** rng.uniform(-9.0, -8.0, (100, 2))
        model = fit_noise_model(flux, np.full(flux.shape, 1e-10), config)
        at = jnp.full((100_000, 2), 5e-9)
        noise = np.asarray(model.observe(jax.random.key(2), at)[0] - at, float) / 1e-10
        excess = np.mean(noise**4) / np.mean(noise**2) ** 2
        assert excess == pytest.approx(kurtosis, rel=0.06)
        assert np.corrcoef(noise.T)[0, 1] == pytest.approx(correlation, abs=0.015)

    def test_upper_limits_are_quoted_as_the_survey_does(self):
        rng = np.random.default_rng(10)
        flux = 10.0 ** rng.uniform(-10.0, -8.0, (100, 2))
        model = fit_noise_model(flux, np.full(flux.shape, 1e-10), limits=np.array([3.0, 0.0]))
        observed, error = model.observe(jax.random.key(3), jnp.zeros((2000, 2)))
        assert float(jnp.min(observed[:, 0] / error[:, 0])) == pytest.approx(3.0, rel=1e-5)
        assert np.mean(np.isclose(observed[:, 0] / error[:, 0], 3.0, rtol=1e-5)) > 0.99
        assert float(jnp.min(observed[:, 1])) < -2e-10  # a band without limits keeps its negative fluxes

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"floor": -0.1}, "floor = -0.1"),
            ({"correlation": 1.0}, "correlation = 1.0"),
            ({"degrees_of_freedom": 2.0}, "degrees_of_freedom = 2.0"),
            ({"outlier_fraction": 0.7}, "outlier_fraction = 0.7"),
            ({"outlier_scale": 0.5}, "outlier_scale = 0.5"),
        ],
    )
    def test_settings_are_checked(self, settings, words):
        with pytest.raises(ValueError, match=f"noise: {words}"):
            NoiseConfig(**settings)

    def test_gradient_through_the_noise_is_finite(self, noise):
        def total(flux):
            return jnp.sum(noise.observe(jax.random.key(5), flux)[0])

        flux = jnp.array([[-1e-9] * 5, [0.0] * 5, [1e-7] * 5])
        assert bool(jnp.all(jnp.isfinite(jax.jit(jax.grad(total))(flux))))


class TestMagnitudes:
    def test_zero_point(self):
        np.testing.assert_allclose(ab_mag(jnp.array([1.0, 1e-8])), [0.0, 20.0], atol=1e-5)

    def test_asinh_inverse(self):
        with jax.enable_x64(True):
            softening = jnp.array([1e-10, 1e-9])
            flux = jnp.array([[-3e-9, -3e-9], [0.0, 0.0], [1e-10, 1e-10], [1e-6, 1e-6]])
            back = asinh_mag_inverse(asinh_mag(flux, softening), softening)
            # A magnitude near 24 in double precision, 1e-15 x 24 in the exponent, on the scale of the softening.
            np.testing.assert_allclose(back, flux, rtol=1e-12, atol=1e-22)

    def test_asinh_is_ab_when_bright(self):
        # 2 (softening / flux)^2: 1e-6 relative at a thousand softenings.
        flux = jnp.array([[1e-6]])
        np.testing.assert_allclose(asinh_mag(flux, jnp.array([1e-9])), ab_mag(flux), atol=1e-5)
