"""Zero points from galaxies of known redshift: recovered where they were put, and refused where there is nothing to go by."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import popsed_jax as pj
from popsed_jax import surveys
from popsed_jax.observe.calibration import CalibrationConfig, build_calibration
from popsed_jax.observe.forward import ForwardModel
from popsed_jax.observe.noise import fit_noise_model
from popsed_jax.observe.photometry import build_photometry_table
from popsed_jax.observe.selection import SelectionConfig
from popsed_jax.population.survey import SpectroscopyConfig
from popsed_jax.population.zero_points import ZeroPointConfig, ZeroPoints, _build_prior, fit_zero_points
from popsed_jax.settings import from_mapping, to_mapping

NAMES = ("u", "g", "r", "i", "z", "J", "H", "Ks")
FILTERS = (*(f"sdss_{name}0" for name in NAMES[:5]), *(f"twomass_{name}" for name in NAMES[5:]))
WRONG = np.array([0.0, 0.12, 0.0, -0.08, 0.0, 0.0, 0.1, 0.0])
QUICK = ZeroPointConfig(max_galaxies=120, num_starts=3, num_steps=120, num_rounds=6)


@pytest.fixture(scope="module")
def forward(galaxy):
    """Eight bands: five leave the fits so free that they explain most zero points."""
    flux = 10.0 ** np.random.default_rng(0).uniform(-10.0, -6.0, (1000, len(FILTERS)))
    noise = fit_noise_model(flux, 0.01 * flux)
    return ForwardModel(
        galaxy, build_photometry_table(galaxy, FILTERS), noise, selection=SelectionConfig(), num_bands=len(FILTERS)
    )


@pytest.fixture(scope="module")
def survey(forward):
    """Galaxies of the flat prior below redshift 0.5, 1 % errors, with wrong zero points; a few bands are missing."""
    space = forward.space
    theta = space.sample_flat(jax.random.key(3), 200)
    redshift = np.random.default_rng(0).uniform(0.05, 0.5, 200)
    theta = theta.at[:, space.index("redshift")].set(redshift)
    flux = np.asarray(jax.jit(ForwardModel.flux)(forward, theta), float)
    error = 0.01 * flux
    flux = (flux + error * np.random.default_rng(1).standard_normal(flux.shape)) * 10.0 ** (-0.4 * WRONG)
    flux[:10, 0] = np.nan
    return flux, error, redshift


def calibration(**changes):
    return build_calibration(CalibrationConfig(**changes), NAMES, FILTERS, "r")


def test_zero_points_are_found(forward, survey):
    found = fit_zero_points(forward, calibration(), *survey, QUICK)
    assert found.num_galaxies == QUICK.max_galaxies
    assert found.offset[2] == 0.0
    assert found.error[2] == 0.0
    np.testing.assert_allclose(found.offset, WRONG, atol=0.04)
    assert np.all(found.scatter < 0.05)


def test_template_errors_are_found_and_told_from_zero_points(forward, survey):
    """A narrow bump in the rest frame moves through the bands with redshift, which no zero point does."""
    flux, error, redshift = survey
    model = calibration(template_sigma=0.05, template_knots=24)
    bump = -0.12 * (np.arange(24) == np.argmin(np.abs(np.asarray(model.knots) - np.log(4400.0))))
    rest = jnp.asarray(np.asarray(model.wave) / (1.0 + redshift[:, None]))
    bent = flux * 10.0 ** (-0.4 * np.asarray(model.knot_shares(rest)) @ bump)
    found, unbent = (fit_zero_points(forward, model, each, error, redshift, QUICK) for each in (bent, flux))
    np.testing.assert_allclose(found.offset, WRONG, atol=0.04)
    wave = np.geomspace(2800.0, 7000.0, 200)
    shares = np.asarray(model.knot_shares(jnp.asarray(wave)))
    seen, true = shares @ (found.template - unbent.template), shares @ bump
    assert wave[np.argmin(seen)] == pytest.approx(wave[np.argmin(true)], rel=0.05)
    # Stellar populations with free dust and histories make up for a part of it.
    assert 0.5 * np.ptp(true) < np.ptp(seen) < 1.2 * np.ptp(true)
    assert np.std(seen - true) < 0.6 * np.std(true)
    assert np.max(np.abs(shares @ unbent.template)) < 0.02
    assert np.all(found.template_error < 0.03)


def test_they_start_from_what_is_known(forward, survey):
    known = calibration(offset_means={"g": 0.12, "i": -0.08, "H": 0.1})
    quick = dataclasses.replace(QUICK, num_rounds=1)
    told = []
    found = fit_zero_points(forward, known, *survey, quick, lambda *what: told.append(what))
    assert told == [(1, found.last_step)]
    np.testing.assert_allclose(found.offset, WRONG, atol=0.02)


def test_a_population_holds_the_fits(forward, survey):
    """Its own draws are as far from the prior as a normal distribution's; zero points come back under it."""
    space = forward.space
    population = space.sample_flat(jax.random.key(4), 4000)
    known = np.asarray(population[:, space.index("redshift")], float)
    held = np.array([name in ("redshift", "log_mass") for name in space.names])
    prior, spread = _build_prior(space, known, held, population)
    away = (np.asarray(space.to_u(population), float) - prior.mean) @ prior.root.T
    assert np.mean(np.sum(away**2, axis=1)) == pytest.approx(np.sum(~held), rel=0.05)
    free = np.ix_(~held, ~held)
    np.testing.assert_allclose((prior.root @ spread)[free], np.eye(np.sum(~held)), atol=1e-6)
    assert not prior.root[held].any()
    found, weak = (
        fit_zero_points(forward, calibration(), *survey, QUICK, population=draws) for draws in (population, None)
    )
    np.testing.assert_allclose(found.offset, WRONG, atol=0.04)
    assert np.mean(found.error) < 1.5 * np.mean(weak.error)
    assert not np.array_equal(found.offset, weak.offset)


def test_the_same_numbers_again(forward, survey):
    quick = dataclasses.replace(QUICK, num_rounds=1)
    first, second = (fit_zero_points(forward, calibration(), *survey, quick) for _ in range(2))
    np.testing.assert_array_equal(first.offset, second.offset)


def test_too_few_redshifts(forward, survey):
    flux, error, redshift = survey
    redshift = np.where(np.arange(len(redshift)) < 12, redshift, np.nan)
    with pytest.raises(ValueError, match=r"12 galaxies have a redshift .* 40 are needed"):
        fit_zero_points(forward, calibration(), flux, error, redshift, QUICK)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_rounds": 0}, "num_rounds = 0 must be at least 1"),
        ({"max_galaxies": 10}, "max_galaxies = 10 must be at least 40"),
        ({"floor": 0.0}, "floor = 0.0 must be positive"),
    ],
)
def test_impossible_settings(change, said):
    with pytest.raises(ValueError, match=said):
        ZeroPointConfig(**change)


def test_a_prior_mean_is_where_learning_starts():
    model = calibration(offset_means={"g": 0.1}, offset_sigma=0.02)
    start = model.start(2)
    np.testing.assert_allclose(model.offsets(start), np.tile(0.1 * (np.array(NAMES) == "g"), (2, 1)))
    one = jax.tree.map(lambda leaf: leaf[0], start)
    factors = model.factors(one, jnp.array([0.1]))
    np.testing.assert_allclose(-2.5 * np.log10(factors[0]), 0.1 * (np.array(NAMES) == "g"), atol=1e-6)
    assert float(model.penalty(one)) == 0.0


def test_settings_start_from_what_was_measured(monkeypatch):
    """The command's work, but for the fits: which galaxies, and where the numbers go."""
    seen = {}

    def measured(forward, model, flux, error, redshift, settings, callback, population):
        seen["num"], seen["bands"], seen["draws"] = len(redshift), flux.shape[1], population
        found = np.array([0.04, -0.01, 0.0, 0.01, 0.02])
        error, wave = np.where(found == 0.0, 0.0, 0.004), np.exp(np.asarray(model.knots))
        bent, scatter = np.where(wave > 5000.0, 0.02, 0.0), np.full(5, 0.03)
        return ZeroPoints(found, error, wave, bent, 0.5 * bent, scatter, len(redshift), 1e-3)

    monkeypatch.setattr(surveys, "fit_zero_points", measured)
    monkeypatch.setattr(surveys, "build_survey", lambda *_: None)
    monkeypatch.setattr(surveys, "sample_uncertain", lambda *_: "the reference's draws")
    config = pj.default_config()
    catalog = pj.read_catalog(config.catalog)
    with pytest.raises(ValueError, match="fraction = 0 lets the fit see no redshifts"):
        surveys.measure_zero_points(catalog, config)
    config = dataclasses.replace(config, spectroscopy=SpectroscopyConfig(0.05))
    settings, _ = surveys.measure_zero_points(catalog, config)
    assert seen == {"num": 500, "bands": 5, "draws": "the reference's draws"}
    assert settings.calibration.offset_means == {"u": 0.04, "g": -0.01, "r": 0.0, "i": 0.01, "z": 0.02}
    assert settings.calibration.offset_sigmas == pytest.approx(
        {"u": 0.0303, "g": 0.0303, "r": 0.0, "i": 0.0303, "z": 0.0303}
    )
    assert settings.calibration.pinned == "r"
    assert settings.calibration.template_means == ()  # templates are taken to be right
    doubted = dataclasses.replace(config.calibration, template_sigma=0.05, template_knots=3)
    settings, _ = surveys.measure_zero_points(catalog, dataclasses.replace(config, calibration=doubted))
    assert settings.calibration.template_means == (0.0, 0.02, 0.02)
    assert settings.calibration.template_sigma == pytest.approx(np.hypot(0.03, 0.01 * np.sqrt(2 / 3)), abs=1e-4)
    assert settings.calibration.offset_sigmas["u"] == pytest.approx(0.0303, abs=1e-4)
    flat = dataclasses.replace(config, reference=dataclasses.replace(config.reference, kind="flat"))
    surveys.measure_zero_points(catalog, flat)
    assert seen["draws"] is None
    again = from_mapping(pj.RunConfig, to_mapping(settings))
    assert again == settings
