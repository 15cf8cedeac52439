"""What a survey keeps: each cut on observed fluxes, the same cut averaged over the noise, and products of cuts."""

import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.observe.forward import any_of
from popsed_jax.observe.selection import (
    ColorCut,
    Completeness,
    MagnitudeLimit,
    SelectionConfig,
    SignalToNoiseCut,
    detection_probability,
    kept_probability,
)
from popsed_jax.settings import dump_toml, from_mapping, to_mapping

FILTERS = ("sdss_g0", "sdss_r0")
SURVEYS = {
    "limit": SelectionConfig((MagnitudeLimit("sdss_r0", 19.0, 0.05),)),
    "faint side": SelectionConfig((MagnitudeLimit("sdss_r0", 19.0, 0.1, "fainter"),)),
    "signal-to-noise": SelectionConfig(signal_to_noise=(SignalToNoiseCut("sdss_g0", 5.0),)),
    "color": SelectionConfig(colors=(ColorCut("sdss_g0", "sdss_r0", low=0.4, high=1.2),)),
    "completeness": SelectionConfig(completeness=(Completeness("sdss_r0", (17.0, 18.5, 20.0), (1.0, 0.8, 0.1)),)),
}
each_survey = pytest.mark.parametrize("name", SURVEYS)


def flux_of(*mags):
    return jnp.asarray(10.0 ** (-0.4 * np.array(mags)))


def draws(num=300, seed=0):
    """Fluxes about the cuts, and errors of a tenth at r = 19."""
    rng = np.random.default_rng(seed)
    red = rng.uniform(17.5, 20.0, num)
    flux = 10.0 ** (-0.4 * np.stack([red + rng.uniform(0.2, 1.4, num), red], axis=1))
    return jnp.asarray(flux), jnp.full((num, 2), 0.1 * 10.0 ** (-0.4 * 19.0))


@each_survey
def test_averaged_over_the_noise_it_is_the_chance_of_being_kept(name):
    """The closed forms, against 4,000 noisy observations of each galaxy."""
    flux, error = draws()
    noisy = flux + error * jax.random.normal(jax.random.key(1), (4000, *flux.shape))
    counted = jnp.mean(kept_probability(noisy, jnp.broadcast_to(error, noisy.shape), FILTERS, SURVEYS[name]), axis=0)
    closed = detection_probability(flux, error, FILTERS, SURVEYS[name])
    # Counting is good to 0.008, 0.025 for the worst of 300. A colour's noise is expanded in the flux, at a signal-to-noise of 4.
    np.testing.assert_allclose(closed, counted, atol=0.08 if name == "color" else 0.025)
    assert float(jnp.mean(jnp.abs(closed - counted))) < (0.016 if name == "color" else 0.004)


@pytest.mark.parametrize("name", [name for name in SURVEYS if name != "signal-to-noise"])  # which there is none of
def test_without_noise_both_faces_agree(name):
    flux, _ = draws()
    still = jnp.full(flux.shape, 1e-20)
    one = detection_probability(flux, still, FILTERS, SURVEYS[name])
    np.testing.assert_allclose(one, kept_probability(flux, still, FILTERS, SURVEYS[name]), atol=1e-5)


@each_survey
@pytest.mark.parametrize("face", [kept_probability, detection_probability])
def test_a_probability_lies_between_zero_and_one(name, face):
    value = face(*draws(), FILTERS, SURVEYS[name])
    assert bool(jnp.all((value >= 0) & (value <= 1)))
    assert float(jnp.max(value) - jnp.min(value)) > 0.3


@each_survey
@pytest.mark.parametrize("face", [kept_probability, detection_probability])
def test_gradients_match_finite_differences(name, face):
    with jax.enable_x64(True):
        flux, error = (jnp.asarray(array, jnp.float64) for array in draws(40))
        total = jax.jit(lambda log_flux: jnp.sum(face(jnp.exp(log_flux), error, FILTERS, SURVEYS[name])))
        at = jnp.log(flux)
        gradient = jax.jit(jax.grad(total))(at)
        direction = jnp.asarray(np.random.default_rng(2).normal(size=at.shape))
        step = 1e-6
        numeric = (total(at + step * direction) - total(at - step * direction)) / (2.0 * step)
        np.testing.assert_allclose(jnp.sum(gradient * direction), numeric, rtol=1e-5)
        assert float(jnp.abs(gradient).max()) > 0.0


@each_survey
def test_undetected_galaxies_have_finite_probabilities_and_slopes(name):
    flux = jnp.array([[0.0, 0.0], [-1e-9, -1e-9], [1e-25, 1e-25], [1e-3, 1e-3]])
    error = jnp.full(flux.shape, 1e-9)
    for face in (kept_probability, detection_probability):
        value, slope = jax.jit(
            jax.value_and_grad(lambda f, face=face: jnp.sum(face(f, error, FILTERS, SURVEYS[name])))
        )(flux)
        assert np.isfinite(value)
        assert bool(jnp.all(jnp.isfinite(slope)))


@each_survey
def test_settings_go_through_toml(name):
    assert from_mapping(SelectionConfig, tomllib.loads(dump_toml(to_mapping(SURVEYS[name])))) == SURVEYS[name]


def test_half_at_the_limit():
    selection = SelectionConfig((MagnitudeLimit("sdss_r0", 17.77, 0.1),))
    flux = flux_of([20.0, 17.77], [20.0, 17.67], [0.0, 17.87])
    # Phi(0), Phi(1), Phi(-1); a float32 magnitude is good to 2e-6, a fiftieth thousandth of the width.
    found = kept_probability(flux, jnp.zeros(flux.shape), FILTERS, selection)
    np.testing.assert_allclose(found, [0.5, 0.841345, 0.158655], atol=2e-5)


def test_noise_widens_an_edge_only_where_the_cut_sees_it():
    flux, error = flux_of([20.0, 19.2]), flux_of([18.0, 21.5])
    cuts = (MagnitudeLimit("sdss_r0", 19.0, 0.05),)
    seen, blind = (
        float(detection_probability(flux, error, FILTERS, SelectionConfig(cuts, observed=observed))[0])
        for observed in (True, False)
    )
    assert seen > 10.0 * blind
    assert blind == pytest.approx(float(kept_probability(flux, error, FILTERS, SelectionConfig(cuts))[0]), rel=1e-5)


def test_cuts_multiply():
    one, two = MagnitudeLimit("sdss_r0", 18.0, 0.2), SignalToNoiseCut("sdss_g0", 8.0, 1.0)
    flux, error = draws()
    both = kept_probability(flux, error, FILTERS, SelectionConfig((one,), (two,)))
    alone = [SelectionConfig((one,)), SelectionConfig(signal_to_noise=(two,))]
    product = np.prod([kept_probability(flux, error, FILTERS, cut) for cut in alone], axis=0)
    np.testing.assert_allclose(both, product, rtol=1e-5)


def test_completeness_is_its_table():
    flux = flux_of([20.0, 16.0], [20.0, 17.75], [20.0, 20.0], [20.0, 25.0])
    found = kept_probability(flux, jnp.zeros(flux.shape), FILTERS, SURVEYS["completeness"])
    np.testing.assert_allclose(found, [1.0, 0.9, 0.1, 0.1], atol=1e-4)


def test_none_keeps_everything():
    flux = jnp.array([[-1.0, 0.0], [1e-30, 1.0]])
    np.testing.assert_array_equal(detection_probability(flux, flux, FILTERS, SelectionConfig()), 1.0)


def test_filters_in_order_and_once():
    limits = [MagnitudeLimit(name, 20.0) for name in ("sdss_r0", "sdss_g0", "sdss_r0")]
    assert SelectionConfig(tuple(limits)).filters == ("sdss_r0", "sdss_g0")


def test_a_deeper_survey_loses_its_other_cuts_and_nothing_that_it_kept():
    selection = SelectionConfig(
        (MagnitudeLimit("sdss_r0", 19.0), MagnitudeLimit("sdss_r0", 15.0, keep="fainter")),
        colors=(ColorCut("sdss_g0", "sdss_r0", low=0.4),),
    )
    deep = selection.deeper(1.0)
    assert [cut.limit for cut in deep.cuts] == [20.0]
    flux, error = draws()
    assert bool(
        jnp.all(
            detection_probability(flux, error, FILTERS, deep)
            >= 0.99 * detection_probability(flux, error, FILTERS, selection)
        )
    )


def test_any_of_several_surveys():
    one, two = jnp.array([0.0, 0.5, 1.0]), jnp.array([0.2, 0.5, 0.0])
    np.testing.assert_allclose(any_of([one, two]), [0.2, 0.75, 1.0], rtol=1e-6)
    assert any_of([one]) is one


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MagnitudeLimit("sdss_r0", 50.0), "limit = 50.0 in sdss_r0 is no AB magnitude between 0 and 40"),
        (lambda: MagnitudeLimit("sdss_r0", float("nan")), "limit = nan in sdss_r0"),
        (lambda: MagnitudeLimit("sdss_r0", 18.0, 0.0), "width = 0.0 in sdss_r0 must be positive"),
        (lambda: SignalToNoiseCut("sdss_r0", float("inf")), "minimum = inf in sdss_r0 must be finite"),
        (lambda: ColorCut("sdss_g0", "sdss_r0"), "a cut in sdss_g0 - sdss_r0 needs low, high or both"),
        (lambda: ColorCut("sdss_g0", "sdss_r0", 1.0, 0.5), "low = 1.0 must be below high = 0.5"),
        (lambda: Completeness("sdss_r0", (18.0,), (1.0,)), "has 1 mags and 1 fractions"),
        (
            lambda: Completeness("sdss_r0", (18.0, 17.0), (1.0, 0.5)),
            "mags of the completeness in sdss_r0 must increase",
        ),
        (lambda: Completeness("sdss_r0", (17.0, 18.0), (1.5, 0.5)), "lie between 0 and 1"),
        (
            lambda: SURVEYS["signal-to-noise"].check(["sdss_r0"]),
            "signal-to-noise in sdss_g0, which is not among the catalogue's sdss_r0",
        ),
        (
            lambda: SelectionConfig(signal_to_noise=(SignalToNoiseCut("sdss_g0", 5.0),), observed=False).check(FILTERS),
            "a cut in signal-to-noise needs observed = true",
        ),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=f"selection: .*{message}"):
        build()


def test_missing_filter():
    selection = SelectionConfig((MagnitudeLimit("sdss_i0", 20.0),))
    with pytest.raises(ValueError, match="selection in sdss_i0, which is not among the filters sdss_g0, sdss_r0"):
        detection_probability(flux_of([20.0, 20.0]), flux_of([25.0, 25.0]), FILTERS, selection)
