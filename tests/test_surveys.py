"""Several imperfect surveys of one population: weights, redshifts as data, missing bands, what can be seen, what is drawn."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_catalog, tiny_config

import popsed_jax as pj
from popsed_jax.config import SurveyConfig
from popsed_jax.observe.calibration import CalibrationConfig
from popsed_jax.observe.forward import ForwardModel, joint_detection, joint_flux
from popsed_jax.observe.selection import MagnitudeLimit, SelectionConfig
from popsed_jax.population.fit import empty_members, train_settings
from popsed_jax.population.galaxies import TrainingGalaxies
from popsed_jax.population.intrinsic import (
    detected_fraction,
    intrinsic_weights,
    visibility,
    visibility_warning,
)
from popsed_jax.population.objective import member_loss, record, validation_ratio
from popsed_jax.population.schedules import build_schedule
from popsed_jax.population.survey import SpectroscopyConfig
from popsed_jax.population.train import init_state
from popsed_jax.surveys import choose_spectra, prepare_problem

compute_flux = jax.jit(ForwardModel.flux)
NOISY = SelectionConfig((MagnitudeLimit("sdss_r0", 17.0, 0.02),))


def two_surveys(noisy_edge=NOISY):
    """One survey with gaps and some redshifts, and a shallower one of two bands."""
    config = tiny_config()
    catalog = tiny_catalog(config)
    rng = np.random.default_rng(0)
    gone = rng.random(catalog.flux.shape) < np.array([0.4, 0.0, 0.2])
    flux, error = (np.where(gone, np.nan, array) for array in (catalog.flux, catalog.flux_error))
    first = dataclasses.replace(catalog, flux=flux, flux_error=error)
    bright = np.flatnonzero(catalog.flux[:, 1] > 10.0 ** (-0.4 * 17.0))
    second = pj.build_catalog(
        "shallow", catalog.bands[:2], catalog.filters[:2], catalog.flux[bright, :2], catalog.flux_error[bright, :2]
    )
    bands = config.catalog.resolved().bands[:2]
    other = SurveyConfig(dataclasses.replace(config.catalog.resolved(), bands=bands), selection=noisy_edge)
    config = dataclasses.replace(
        config,
        surveys=(other,),
        spectroscopy=SpectroscopyConfig(0.5),
        calibration=CalibrationConfig(template_sigma=0.05, floor_sigma=0.3),
    )
    return config, (first, second)


@pytest.fixture(scope="module")
def prepared():
    config, catalogs = two_surveys()
    return config, prepare_problem(jax.random.key(0), catalogs, config)


def test_one_problem_of_two_surveys(prepared) -> None:
    config, (problem, galaxies, floors, used) = prepared
    first, second = problem.surveys
    assert [each.mags.shape[1] for each in galaxies] == [3, 2]
    assert first.forward.missing is not None
    assert second.forward.missing is None
    assert galaxies[0].spectra[1].shape == (200,)
    assert galaxies[1].spectra is None
    assert first.spectroscopy.redshift.shape == (config.fit.max_validation,)
    assert second.spectroscopy is None
    assert used[0].sum() == 200
    assert not used[1].any()
    assert all(0.0 < floor.mean < 1.0 for floor in floors)
    assert problem.weighted
    assert config.all_surveys[1].selection == NOISY


@pytest.fixture(scope="module")
def begun(prepared):
    """One member at its start, and the problem with other redshifts."""
    config, (problem, galaxies, _, _) = prepared
    members, _ = empty_members(problem, config.flow, config.fit)
    settings = train_settings(config.fit, config.transport)
    state = init_state(members, problem, settings)
    member, trained = (jax.tree.map(lambda leaf: leaf[0], part) for part in (members, state.trained))
    first = problem.surveys[0]
    other = dataclasses.replace(first.spectroscopy, redshift=first.spectroscopy.redshift + 0.2)
    surveys = (dataclasses.replace(first, spectroscopy=other), problem.surveys[1])
    drawn = TrainingGalaxies(jax.random.key(1), galaxies, 1)
    batches = drawn.batches(jax.random.key(0), np.arange(1), 1, settings.batch_size)
    batch = jax.tree.map(lambda leaf: leaf[0, 0], batches)
    return config, problem, dataclasses.replace(problem, surveys=surveys), batch, member, trained, settings


def test_validation_hears_every_survey_and_the_redshifts(begun) -> None:
    _, problem, problem_moved, _, member, trained, settings = begun
    validate = jax.jit(validation_ratio, static_argnames="settings")
    key = jax.random.key(1)
    base = float(validate(key, trained, member, problem, settings))
    assert np.isfinite(base)
    second = trained.calibration[1]
    moved = trained._replace(calibration=(trained.calibration[0], second._replace(offset=second.offset + 8.0)))
    assert float(validate(key, moved, member, problem, settings)) != pytest.approx(base, rel=1e-3)
    assert float(validate(key, trained, member, problem_moved, settings)) != pytest.approx(base, rel=1e-3)


@pytest.mark.slow
def test_the_loss_hears_the_redshifts(begun) -> None:
    config, problem, _, batch, member, trained, settings = begun
    key = jax.random.key(1)
    row = build_schedule(config.anneal, config.fit.num_epochs, 1e-3).row(0)
    row = row._replace(sinkhorn=jnp.zeros(()))
    loss = jax.jit(member_loss, static_argnames="settings")
    value, terms = loss(trained, key, member, problem, batch, row, jnp.zeros(()), settings)
    mags, redshift = batch.spectra[0]
    moved = batch._replace(spectra=((mags, redshift + 0.2), None))
    value_moved, _ = loss(trained, key, member, problem, moved, row, jnp.zeros(()), settings)
    assert np.isfinite(value)
    assert float(terms.penalty) == 0.0
    assert float(value_moved) != pytest.approx(float(value), rel=1e-3)


def test_weights_turn_proposals_into_what_the_survey_keeps(forward) -> None:
    """Draws of p(kept | true flux), weighed by their noisy fluxes, against noisy fluxes that were cut."""
    edge = dataclasses.replace(
        forward, selection=SelectionConfig((MagnitudeLimit("sdss_r0", 20.0, 0.02),)), noise=_loud(forward.noise)
    )
    flux = compute_flux(forward, _near(forward, 20.0))  # on which neither noise nor cuts have an influence

    @jax.jit
    def look(survey, key, flux):
        observed, error = survey.noise.observe(key, flux[:, :5])
        return observed[:, 2], survey.kept(flux, observed, error)

    observed, kept = (np.asarray(part) for part in look(edge, jax.random.key(2), flux))
    proposal = np.asarray(jax.jit(ForwardModel.detection_of)(edge, flux))
    rng = np.random.default_rng(0)
    truth = observed[rng.random(len(kept)) < kept]
    drawn = rng.random(len(kept)) < proposal
    again, kept_again = (np.asarray(part)[drawn] for part in look(edge, jax.random.key(3), flux))
    weights = kept_again / proposal[drawn]
    assert weights.mean() == pytest.approx(1.0, abs=0.03)
    mean = np.average(again, weights=weights) / truth.mean()
    unweighted = again.mean() / truth.mean()
    assert mean == pytest.approx(1.0, abs=0.015)
    assert abs(unweighted - 1.0) > 0.04  # the cut acts on noisy fluxes: Malmquist and Eddington


def _loud(noise):
    """Noise of two fifths of the flux at r = 20."""
    return dataclasses.replace(
        noise, log_sigma=jnp.full_like(noise.log_sigma, -8.4), scatter=jnp.zeros_like(noise.scatter)
    )


def _near(forward, mag):
    """20,000 galaxies of the flat prior with r within a magnitude of `mag`."""
    theta = forward.space.sample_flat(jax.random.key(5), 20_000)
    r = -2.5 * jnp.log10(compute_flux(forward, theta)[:, 2])
    index = forward.space.index("log_mass")
    wanted = mag + jax.random.uniform(jax.random.key(6), r.shape, minval=-1.0, maxval=1.0)
    return theta.at[:, index].add(0.4 * (r - wanted))


def test_redshifts_are_chosen_by_fraction_and_seed() -> None:
    config, (first, _) = two_surveys()
    catalog = dataclasses.replace(first, redshift=np.where(np.arange(400) < 100, np.nan, first.redshift))
    survey = dataclasses.replace(config.all_surveys[0], spectroscopy=SpectroscopyConfig(0.2))
    used = choose_spectra(catalog, survey, 1)
    assert used.sum() == 60
    assert not used[:100].any()
    np.testing.assert_array_equal(used, choose_spectra(catalog, survey, 1))
    assert not np.array_equal(used, choose_spectra(catalog, survey, 2))
    with pytest.raises(ValueError, match=r"fraction = 0\.2, but .* has no redshifts"):
        choose_spectra(dataclasses.replace(catalog, redshift=None), survey, 1)
    with pytest.raises(ValueError, match=r"fraction = 1\.5 must be between 0 and 1"):
        SpectroscopyConfig(1.5)


def test_wrong_numbers_of_surveys_and_redshifts_are_named() -> None:
    config, catalogs = two_surveys()
    with pytest.raises(ValueError, match="describe 2 surveys, but there are 1 catalogues"):
        prepare_problem(jax.random.key(0), catalogs[:1], config)
    twins = (catalogs[0], dataclasses.replace(catalogs[1], name=catalogs[0].name))
    with pytest.raises(ValueError, match="need different names"):
        prepare_problem(jax.random.key(0), twins, config)
    few = dataclasses.replace(config, spectroscopy=SpectroscopyConfig(0.05))
    with pytest.raises(ValueError, match="20 redshifts are too few"):
        prepare_problem(jax.random.key(0), catalogs, few)


def test_intrinsic_weights_undo_the_detection() -> None:
    """A population cut by p = x on (0, 1): divided by p it is even again where p is above the limit."""
    rng = np.random.default_rng(0)
    x = np.sqrt(rng.random(200_000))  # density 2 x
    weights = intrinsic_weights(x, tilt=1.0, visible=0.2)
    counts, _ = np.histogram(x, bins=8, range=(0.2, 1.0), weights=weights)
    np.testing.assert_allclose(counts, 1.0 / 8, rtol=0.04)  # 1 % by counting few draws with large weights
    assert weights[x < 0.2].sum() == 0.0
    found = detected_fraction(x, 1.0, 0.2)
    assert found["fraction"] == pytest.approx(0.6, abs=0.005)
    half = rng.random(200_000) ** (1.0 / 1.5)  # density proportional to x^0.5
    counts, _ = np.histogram(half, bins=8, range=(0.2, 1.0), weights=intrinsic_weights(half, tilt=0.5, visible=0.2))
    np.testing.assert_allclose(counts, 1.0 / 8, rtol=0.04)  # 1 % by counting few draws with large weights
    # A survey that samples one in a hundred of every kind sees every kind.
    np.testing.assert_allclose(intrinsic_weights(0.01 * x, 1.0, 0.2), weights, rtol=1e-9)


def test_visibility_follows_the_limit(forward) -> None:
    """Farther away a galaxy must be heavier, by the square of the distance and more; at the limit half are kept."""
    theta = np.asarray(forward.space.sample_flat(jax.random.key(7), 500))
    table = visibility((forward,), theta, np.full(500, 1.0 / 500), np.random.default_rng(0), 6)
    seen = [row for row in table if row["complete_above"] is not None]
    masses = [row["complete_above"] for row in seen]
    assert len(masses) >= 3
    assert np.all(np.diff(masses) > 0.2)
    assert all(row["unseen_below"] < row["complete_above"] for row in seen)
    sentence = visibility_warning(table)
    assert "known by the reference alone" in sentence
    assert f"at redshift {table[0]['redshift']:.2f}" in sentence


def test_several_surveys_detect_what_any_detects(forward) -> None:
    deeper = dataclasses.replace(forward, selection=forward.selection.deeper(1.0))
    theta = _near(forward, 18.0)[:300]

    @jax.jit
    def detect(surveys, theta):
        together = joint_detection(surveys, joint_flux(surveys, theta))
        return together, [survey.detection(theta) for survey in surveys]

    both, alone = jax.tree.map(np.asarray, detect((forward, deeper), theta))
    np.testing.assert_allclose(both, 1.0 - (1.0 - alone[0]) * (1.0 - alone[1]), atol=1e-5)


def test_without_noise_in_the_cuts_there_are_no_weights() -> None:
    config = tiny_config()
    quiet = dataclasses.replace(config, selection=dataclasses.replace(config.selection, observed=False))
    problem = prepare_problem(jax.random.key(0), [tiny_catalog(config)], quiet).problem
    assert not problem.weighted
    theta = problem.parameters.sample_flat(jax.random.key(2), 16)
    _, weights = jax.jit(record)(
        jax.random.key(1),
        problem,
        theta[:, problem.parameters.index("redshift")],
        jax.jit(joint_flux)(problem.forwards, theta),
        tuple(jax.tree.map(lambda leaf: leaf[0], survey.calibration.start(1)) for survey in problem.surveys),
    )
    assert weights == (None,)
    assert dataclasses.replace(problem, tilt=0.5).weighted


@pytest.mark.slow
def test_two_surveys_are_fitted_reported_and_drawn_from(tmp_path) -> None:
    config, catalogs = two_surveys()
    paths = [catalog.write(tmp_path / f"{i}.parquet") for i, catalog in enumerate(catalogs)]
    surveys = (dataclasses.replace(config.surveys[0], catalog=paths[1]),)
    config = dataclasses.replace(config, catalog=paths[0], surveys=surveys)
    run = tmp_path / "run"
    result = pj.fit(catalogs, config, out=run, show_progress=False)
    assert result.metrics["surveys"].keys() == {"shallow"}
    assert result.metrics["catalog"]["num_redshifts_used"] == 200
    assert result.metrics["redshift"]["num_spectroscopic"] == 200
    assert (run / "photometry_shallow.parquet").is_file()
    page = pj.build_report(run).read_text()
    for words in ("shallow", "fewer than 1 % below", "learned error of the templates"):
        assert words.lower() in page.lower()
    detected, intrinsic = (pj.sample_run(run, 300, 1, galaxies) for galaxies in ("as-detected", "intrinsic"))
    assert len(detected) == len(intrinsic) == 300
    assert intrinsic.meta["selection"] == "intrinsic"
    assert np.all(np.asarray(intrinsic["detection"]) >= 0.05)
    # Faint galaxies count for more: the intrinsic population has lower masses.
    assert np.mean(intrinsic["log_mass"]) < np.mean(detected["log_mass"])
