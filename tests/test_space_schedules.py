"""Where photometry is compared, what changes from epoch to epoch, and mapping in batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.observe.magnitudes import POGSON, asinh_mag
from popsed_jax.observe.noise import fit_softening
from popsed_jax.population.batching import map_batches
from popsed_jax.population.schedules import AnnealConfig, build_schedule
from popsed_jax.population.space import TAIL, build_space

NUM_BANDS = 4
KINDS = {
    "balanced": 2 * NUM_BANDS,
    "photometry": 2 * NUM_BANDS - 1,
    "color": NUM_BANDS,
    "magnitude": NUM_BANDS,
    "whitened": NUM_BANDS,
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def survey() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlated fluxes with noise, some of them negative; their errors; the softening."""
    rng = np.random.default_rng(2)
    log_flux = -8.5 + 0.5 * rng.normal(size=(3000, 1)) + 0.1 * rng.normal(size=(3000, NUM_BANDS)).cumsum(axis=1)
    error = np.full(log_flux.shape, 1e-9)
    flux = 10.0**log_flux + error * rng.normal(size=log_flux.shape)
    assert np.any(flux < 0)
    return flux, error, fit_softening(flux, error)


class TestSpace:
    @each_kind
    def test_finite_and_differentiable_for_any_flux(self, survey, kind):
        space = build_space(kind, *survey)
        flux = jnp.array([[-1e-6] * NUM_BANDS, [0.0] * NUM_BANDS, [1e-30] * NUM_BANDS, [1.0] * NUM_BANDS])
        features = space.features(space.mags(flux))
        assert features.shape == (4, KINDS[kind])
        assert bool(jnp.all(jnp.isfinite(features)))
        slope = jax.jacfwd(lambda f: space.features(space.mags(f)))(flux)
        assert bool(jnp.all(jnp.isfinite(slope)))

    @each_kind
    def test_centred(self, survey, kind):
        space = build_space(kind, *survey)
        features = np.asarray(space.features(space.mags(jnp.asarray(survey[0]))), float)
        np.testing.assert_allclose(np.median(features, axis=0), 0.0, atol=1e-4)  # float32 of magnitudes near 20: 2e-6

    @pytest.mark.parametrize("kind", ["photometry", "color", "magnitude"])
    def test_unit_robust_width(self, survey, kind):
        space = build_space(kind, *survey)
        features = np.asarray(space.features(space.mags(jnp.asarray(survey[0]))), float)
        linear = TAIL * np.sinh(features / TAIL)
        width = 1.4826 * np.median(np.abs(linear - np.median(linear, axis=0)), axis=0)
        np.testing.assert_allclose(width, 1.0, rtol=1e-3)

    def test_whitened_is_uncorrelated_with_at_most_unit_variance(self, survey):
        space = build_space("whitened", *survey)
        linear = TAIL * np.sinh(np.asarray(space.features(space.mags(jnp.asarray(survey[0]))), float) / TAIL)
        inside = np.all(np.abs(linear) < 5.0, axis=1)
        correlation = np.corrcoef(linear[inside], rowvar=False)
        np.testing.assert_allclose(correlation, np.eye(NUM_BANDS), atol=0.1)  # cut at 5 widths differs a little
        assert np.all(linear[inside].std(axis=0) < 1.05)

    def test_whitened_is_no_finer_than_the_noise(self, survey):
        flux, error, softening = survey
        quiet = build_space("whitened", flux, 1e-3 * error, softening)
        loud = build_space("whitened", flux, 30.0 * error, softening)
        assert np.abs(np.asarray(loud.matrix)).max() < 0.2 * np.abs(np.asarray(quiet.matrix)).max()

    def test_balanced_holds_both_the_axes_and_the_bands(self, survey):
        both, axes, bands = (build_space(kind, *survey) for kind in ("balanced", "whitened", "magnitude"))
        np.testing.assert_array_equal(both.matrix, np.concatenate([axes.matrix, bands.matrix]))

    def test_colours_do_not_see_brightness(self, survey):
        space = build_space("color", *survey)
        mags = jnp.full((1, NUM_BANDS), 20.0)
        difference = (space.features(mags + 0.5) - space.features(mags))[0]
        np.testing.assert_allclose(difference[1:], 0.0, atol=1e-4)
        assert abs(float(difference[0])) > 0.05

    def test_tails_grow_as_a_logarithm(self, survey):
        space = build_space("magnitude", *survey)
        mags = jnp.asarray(np.median(np.asarray(space.mags(jnp.asarray(survey[0]))), axis=0))
        far = space.features(mags[None] + 100.0)
        assert 4.0 < float(jnp.max(jnp.abs(far))) < 15.0

    def test_mags_are_ab_when_bright(self, survey):
        space = build_space("magnitude", *survey)
        flux = jnp.full((1, NUM_BANDS), 1e-4)
        np.testing.assert_allclose(space.mags(flux), 10.0, atol=1e-5)

    def test_unknown_kind(self, survey):
        message = "fit: space = 'colour' must be one of balanced, photometry, color, magnitude, whitened"
        with pytest.raises(ValueError, match=message):
            build_space("colour", *survey)


def test_asinh_slope_is_what_the_noise_needs():
    """d mag / d flux = -POGSON / hypot(flux, 2 softening): what `build_space` assumes. (Lupton+99, eq. 9)"""
    softening = jnp.array([1e-9])
    flux = jnp.array([[-3e-9], [0.0], [1e-9], [1e-7]])
    slope = jax.vmap(jax.grad(lambda f: asinh_mag(f, softening)[0]))(flux)
    np.testing.assert_allclose(slope, -POGSON / np.hypot(flux, 2e-9), rtol=1e-5)


class TestSchedule:
    def test_ends_and_shapes(self):
        config = AnnealConfig()
        schedule = build_schedule(config, 40, 3e-4)
        assert all(column.shape == (40,) for column in schedule)
        assert float(schedule.blur[0]) == pytest.approx(config.blur_start)
        assert float(schedule.blur[-1]) == pytest.approx(config.blur_end)
        assert np.all(np.diff(schedule.blur) <= 1e-7)
        assert float(schedule.noise_divisor[0]) == pytest.approx(21.0)
        assert float(schedule.noise_divisor[-1]) == pytest.approx(1.0, abs=0.002)
        np.testing.assert_array_equal(schedule.sinkhorn, config.sinkhorn * (np.arange(40) >= 24))
        np.testing.assert_array_equal(schedule.adapt, np.arange(40) >= 10)
        np.testing.assert_array_equal(schedule.sliced, config.sliced)

    def test_learning_rate_rises_and_falls_once(self):
        rate = np.asarray(build_schedule(AnnealConfig(), 60, 1e-3).learning_rate)
        peak = rate.argmax()
        assert rate[peak] == pytest.approx(1e-3, rel=0.02)
        assert np.all(np.diff(rate[: peak + 1]) > 0)
        assert np.all(np.diff(rate[peak:]) < 0)
        assert 0.1 < peak / 60 < 0.2
        assert np.all(rate > 0)

    def test_limits(self):
        constant = AnnealConfig(blur_start=0.3, blur_end=0.3, noise_factor=0.0, sinkhorn_start=1.0)
        steady = build_schedule(constant, 7, 1e-3)
        np.testing.assert_allclose(steady.blur, 0.3, rtol=1e-6)
        np.testing.assert_array_equal(steady.noise_divisor, 1.0)
        np.testing.assert_array_equal(steady.sinkhorn, 0.0)
        at_once = build_schedule(AnnealConfig(sinkhorn_start=0.0, sliced=0.0, adapt_start=0.0, warmup=0.0), 1, 1e-3)
        np.testing.assert_array_equal(at_once.sinkhorn, AnnealConfig().sinkhorn)
        np.testing.assert_array_equal(at_once.adapt, 1.0)

    def test_row(self):
        schedule = build_schedule(AnnealConfig(), 5, 1e-3)
        assert all(float(value) == float(column[3]) for value, column in zip(schedule.row(3), schedule, strict=True))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"blur_start": 0.1, "blur_end": 0.2}, r"need 0 < blur_end \(0.2\) <= blur_start \(0.1\)"),
            ({"blur_end": 0.0}, "need 0 < blur_end"),
            ({"noise_factor": -1.0}, "noise_factor and noise_rate must not be negative"),
            ({"warmup": 1.5}, "warmup = 1.5 is a fraction of the epochs"),
            ({"sinkhorn_start": -0.1}, "sinkhorn_start = -0.1 is a fraction"),
            ({"sliced": 0.0, "sinkhorn": 0.0}, "must not be negative, nor both zero"),
            ({"sliced": 0.0}, "with sliced = 0 there is no loss before sinkhorn_start"),
        ],
    )
    def test_errors(self, settings, message):
        with pytest.raises(ValueError, match=message):
            AnnealConfig(**settings)


def _scaled(factor, piece):
    return {"double": factor * piece, "sum": piece.sum(axis=1)}


class TestBatches:
    @pytest.mark.parametrize("num", [1, 7, 8, 9, 16, 30])
    def test_equals_the_direct_call(self, num):
        array = jnp.arange(num * 3.0).reshape(num, 3)
        mapped = map_batches(_scaled, jnp.asarray(2.0), array, batch=8)
        direct = _scaled(2.0, array)
        np.testing.assert_array_equal(mapped["double"], direct["double"])
        np.testing.assert_array_equal(mapped["sum"], direct["sum"])

    def test_compiles_once_for_all_lengths(self):
        traces = []

        def count(model, piece):
            traces.append(piece.shape)
            return model + piece

        for num in (3, 8, 21):
            map_batches(count, jnp.asarray(1.0), jnp.zeros((num, 2)), batch=8)
        assert traces == [(8, 2)]
