"""Posteriors of single galaxies: coordinates, potentials, chains and networks, on a survey of two members."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.observe.forward import ForwardModel
from popsed_jax.observe.selection import MagnitudeLimit, SelectionConfig
from popsed_jax.population.batching import map_batches
from popsed_jax.population.storage import StorageError
from popsed_jax.posteriors.columns import NPEEstimator, Summary
from popsed_jax.posteriors.estimator import Rows, blank_columns
from popsed_jax.posteriors.frame import from_frame, to_frame
from popsed_jax.posteriors.hmc import HMCConfig, convergence, sample_hmc
from popsed_jax.posteriors.npe import NPE, NPEConfig, train_npe
from popsed_jax.posteriors.reweight import as_prior, log_flat
from popsed_jax.posteriors.simulate import SimulationConfig, apportioned
from popsed_jax.posteriors.storage import load_npe, save_npe
from popsed_jax.posteriors.survey import LEAST_KEPT, LearnedSurvey, Photometry, log_likelihood
from popsed_jax.posteriors.target import Lane, Target, energies_of, potential_of
from tests.tiny_posterior import BANDS, TRAINING, tiny_galaxies, tiny_survey, wide, without

SHORT = HMCConfig(num_warmup=20, num_samples=8, max_tree_depth=2, num_starts=256, galaxies_at_once=2)


@pytest.fixture(scope="module")
def survey(forward: ForwardModel) -> LearnedSurvey:
    return tiny_survey(forward)


@pytest.fixture(scope="module")
def galaxies(survey: LearnedSurvey) -> tuple[np.ndarray, Photometry]:
    return tiny_galaxies(survey, 16)


@pytest.fixture(scope="module")
def npe(survey: LearnedSurvey) -> NPE:
    losses: list[float] = []
    trained = train_npe(jax.random.key(3), survey, TRAINING, lambda _, loss: losses.append(loss))
    assert len(losses) == 2
    assert losses[1] < losses[0]
    return trained


def test_the_network_is_told_the_prior(galaxies, npe):
    """Three labels, three posteriors, each galaxy with its own."""
    labels = np.arange(16) % 3
    mixed = npe.embed(galaxies[1], labels)
    for label in range(3):
        alone = npe.embed(galaxies[1], label)
        np.testing.assert_allclose(mixed[labels == label], alone[labels == label], rtol=1e-4, atol=1e-5)
        assert np.all(np.abs(mixed - alone)[labels != label].max(axis=1) > 1e-3)


def test_the_frame_and_back(survey, galaxies):
    theta, seen = galaxies
    u = survey.space.to_u(jnp.asarray(theta))

    @jax.jit
    def there_and_back(survey, u, theta, seen):
        v, log_det = to_frame(survey, u, seen, survey.forward.flux(theta))
        return v, log_det, from_frame(survey, v, seen)

    v, log_det, back = there_and_back(survey, u, theta, seen)
    np.testing.assert_allclose(back.theta, theta, atol=2e-4)
    np.testing.assert_allclose(back.log_det, log_det, atol=1e-3)
    assert np.asarray(back.inside).all()
    # The mass that the brightness asks for is right to the noise, the calibration's offset included.
    assert np.median(np.abs(np.asarray(v)[:, survey.space.index("log_mass")])) < 4.0


def test_the_frames_determinant_is_the_jacobians(survey, galaxies):
    theta, seen = galaxies
    one = Photometry(*(part[:1] for part in seen))
    v = to_frame(survey, survey.space.to_u(jnp.asarray(theta[:1])), one, survey.forward.flux(jnp.asarray(theta[:1])))[
        0
    ][0]
    slope = jax.jit(jax.jacfwd(lambda v, survey: from_frame(survey, v[None], one).theta[0]))(v, survey)
    wanted = np.linalg.slogdet(np.asarray(slope, float))[1]
    assert float(from_frame(survey, v[None], one).log_det[0]) == pytest.approx(wanted, abs=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("networked", [False, True])
def test_potentials_of_a_batch_are_those_of_single_chains(survey, galaxies, npe, networked):
    seen = Photometry(*(jnp.asarray(part[:4]) for part in galaxies[1]))
    embedded = jnp.asarray(npe.embed(seen, 0)) if networked else jnp.zeros((4, 0))
    lane = Lane(seen, jnp.zeros(4), embedded)
    target = Target(survey, jnp.asarray(0), survey.population.member(0), npe.flow if networked else None)
    x = 0.3 * jax.random.normal(jax.random.key(4), (4, target.dim))

    # Not closed over: XLA would fold the tables of photometry as constants, which takes minutes.
    @jax.jit
    def singly(target, x, lane):
        return jax.vmap(lambda x, lane: jax.value_and_grad(partial(potential_of, target, lane))(x))(x, lane)

    @jax.jit
    def together(target, x, lane):
        return jax.value_and_grad(lambda x: target.potentials(x, lane).sum())(x)

    @jax.jit
    def many(target, x, lane):
        return jax.vmap(partial(energies_of, target))(lane, jnp.stack([x, x[::-1]], axis=1))

    (values, slopes), wanted = singly(target, x, lane), together(target, x, lane)
    np.testing.assert_allclose(many(target, x, lane)[:, 0], values, rtol=1e-4)
    np.testing.assert_allclose(np.sum(values), wanted[0], rtol=1e-4)
    np.testing.assert_allclose(slopes, wanted[1], rtol=1e-3, atol=1e-3 * np.abs(wanted[1]).max())


@pytest.mark.slow
def test_chains_come_back_for_every_galaxy(survey, galaxies, npe):
    seen = Photometry(*(part[:3] for part in galaxies[1]))
    found = sample_hmc(jax.random.key(5), survey, seen, SHORT, network=npe)
    assert found.theta.shape == (3, 2 * 2 * 8, len(survey.space))
    assert np.isfinite(found.theta).all()
    assert np.asarray(survey.space.inside(jnp.asarray(found.theta))).mean() > 0.99
    np.testing.assert_allclose(found.weights.sum(axis=1), 1.0, rtol=1e-5)
    assert not found.converged.any()  # eight samples are too few, and that is said


@pytest.mark.slow
def test_a_given_redshift_stays(survey, galaxies):
    theta, seen = galaxies
    at = survey.space.index("redshift")
    redshift = np.asarray(theta[:2, at], float)
    some = Photometry(*(part[:2] for part in seen))
    found = sample_hmc(jax.random.key(6), survey, some, SHORT, redshift=redshift, members=[0])
    np.testing.assert_allclose(
        found.theta[:, :, at], np.broadcast_to(redshift[:, None], found.theta.shape[:2]), rtol=1e-4
    )
    with pytest.raises(ValueError, match=r"redshift: 9\.0 of galaxy 1 is not between the bounds"):
        sample_hmc(jax.random.key(6), survey, some, SHORT, redshift=np.array([0.1, 9.0]))


@pytest.mark.slow
def test_chains_agree_with_importance_sampling(survey, galaxies, npe):
    """Wide posteriors, which draws of the prior reach: the same means, to their errors, by chains in either coordinates."""
    noisy = wide(survey)
    seen = Photometry(*(part[:4] for part in galaxies[1]))
    theta, _ = noisy.population.sample_members(jax.random.key(7), 100_000)
    flux = jax.jit(lambda survey, theta: survey.calibrated(theta, survey.forward.flux(theta), 0))(noisy, theta)
    first = noisy.population.member(0)
    u = noisy.space.to_u(theta)
    # The survey selects by observed fluxes: given the photometry, what it keeps is taken out of the learned population.
    assert noisy.selection_power == -1.0
    kept = jnp.maximum(jax.jit(ForwardModel.detection)(noisy.forward, theta), LEAST_KEPT)
    log_prior = first.log_prob(u) - noisy.space.log_det(u) - noisy.population.log_prob(theta) - jnp.log(kept)
    long = HMCConfig(num_warmup=200, num_samples=300, num_chains=4, max_tree_depth=5, galaxies_at_once=4)
    for network in (None, npe):
        found = sample_hmc(jax.random.key(8), noisy, seen, long, network=network, members=[0])
        assert found.converged.mean() >= 0.5
        for galaxy in range(4):
            one = Photometry(*(jnp.broadcast_to(part[galaxy], flux.shape) for part in seen))
            log_weight = np.asarray(log_likelihood(one, flux, noisy.noise(0)) + log_prior, float)
            weight = np.exp(log_weight - log_weight.max())
            weight /= weight.sum()
            mean = weight @ np.asarray(theta)
            std = np.sqrt(weight @ (np.asarray(theta) - mean) ** 2)
            error = std * np.sqrt(np.sum(weight**2) + 1.0 / found.ess[galaxy])
            assert np.all(np.abs(found.theta[galaxy].mean(axis=0) - mean) < 4.5 * error)


def test_chains_apart_have_not_converged():
    draws = np.random.default_rng(0).standard_normal((1, 2, 4, 100, 3))
    draws[:, 1, 0] += 5.0
    r_hat, ess = convergence(draws, np.ones(1))
    assert r_hat[0] < 1.05 < r_hat[1]
    assert ess[1] < 20.0 < ess[0]


def test_a_networks_samples_carry_their_density(galaxies, npe):
    theta, log_prob = npe.sample(jax.random.key(9), galaxies[1], 20, 1)
    assert theta.shape == (16, 20, len(npe.space))
    inside = np.asarray(npe.space.inside(jnp.asarray(theta)))
    np.testing.assert_allclose(npe.log_prob(theta, galaxies[1], 1)[inside], log_prob[inside], atol=5e-2)


def test_the_redshifts_density_is_that_of_its_samples(galaxies, npe):
    bounds = npe.space["redshift"]
    grid = np.linspace(bounds.low, bounds.high, 2001)
    density = npe.redshift_density(galaxies[1], grid, 2)
    np.testing.assert_allclose(np.trapezoid(density, grid, axis=1), 1.0, atol=0.02)
    samples = npe.sample(jax.random.key(10), galaxies[1], 2000, 2)[0][:, :, npe.space.index("redshift")]
    mean = np.trapezoid(density * grid, grid, axis=1)
    np.testing.assert_allclose(samples.mean(axis=1), mean, atol=5.0 * samples.std(axis=1).max() / np.sqrt(2000))


@pytest.mark.parametrize("lost", [(0,), (1, 3), (0, 1, 2, 3)])
def test_any_bands_may_be_missing(galaxies, npe, lost):
    seen = without(galaxies[1], *lost)
    theta, log_prob = npe.sample(jax.random.key(11), seen, 8, 0)
    assert np.isfinite(theta).all()
    assert np.isfinite(log_prob).all()
    other = seen._replace(flux=np.where(seen.there, seen.flux, 7.0), error=np.where(seen.there, seen.error, 3.0))
    np.testing.assert_allclose(npe.sample(jax.random.key(11), other, 8, 0)[0], theta, rtol=1e-5)


def test_galaxies_like_no_other_are_found(galaxies, npe):
    distance, share = npe.unlikeness(galaxies[1])
    assert np.median(share) > 0.05
    strange = galaxies[1]._replace(flux=galaxies[1].flux * np.array([100.0, 1.0, 0.01, 1.0, 100.0], np.float32))
    far, rare = npe.unlikeness(strange)
    assert np.all(far > 5.0 * np.median(distance))
    assert np.all(rare < 1e-3)


def test_a_network_is_read_back_as_it_was(tmp_path, survey, galaxies, npe):
    save_npe(tmp_path, npe, BANDS, {"note": "a test"})
    read, bands, meta = load_npe(tmp_path, survey)
    assert bands == BANDS
    assert meta == {"note": "a test"}
    labels = np.arange(16) % 3
    again, first = (each.sample(jax.random.key(12), galaxies[1], 4, labels)[0] for each in (read, npe))
    np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize("prior", ["learned", "flat", "broad"])
def test_columns_are_those_that_are_described(survey, galaxies, npe, prior):
    flux, error = np.where(galaxies[1].there, galaxies[1].flux, np.nan), np.array(galaxies[1].error)
    flux[3, 1] = np.nan
    rows = Rows(flux.astype(float), error.astype(float), np.full(16, np.nan), np.arange(16))
    summary = Summary(survey.population, survey.forward, num_samples=4, num_grid=64)
    estimator = NPEEstimator(BANDS, npe, survey.population, prior, summary, num_draws=50)
    blank, found = blank_columns(estimator), estimator(0, rows)
    found.pop("flags")
    assert list(blank) == list(estimator.describe())
    assert {name: (column.dtype, column.shape[1:]) for name, column in found.items()} == {
        name: (column.dtype, column.shape[1:]) for name, column in blank.items()
    }
    assert all(len(column) == 16 and np.isfinite(column).all() for column in found.values())
    assert np.all(found["redshift_low"] <= found["redshift"])


def test_a_selection_on_observed_fluxes_is_taken_out_of_the_learned_prior(survey, galaxies, npe):
    """p(theta | kept) is over p(kept | theta) where keeping depends on what was observed alone."""
    cut = SelectionConfig((MagnitudeLimit("sdss_r0", 17.0, 0.3),), observed=True)
    observed = survey.replace(forward=survey.forward.replace(selection=cut))
    summary = Summary(survey.population, survey.forward)
    # One member has all the weight: the average over members is not of this form.
    single = survey.population.replace(weights=jnp.array([1.0, 0.0]))
    one, other = (
        NPEEstimator(BANDS, npe.replace(survey=observed.replace(tilt=tilt)), single, "learned", summary, 20).posterior(
            0, galaxies[1]
        )
        for tilt in (0.0, 1.0)
    )
    kept = map_batches(ForwardModel.detection, observed.forward, one.theta.reshape(-1, one.theta.shape[-1]))
    wanted = one.weights / np.maximum(kept, LEAST_KEPT).reshape(one.weights.shape)
    np.testing.assert_allclose(other.weights, wanted / wanted.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-7)


def test_any_prior_is_reached_by_weights(survey, galaxies, npe):
    """A prior of one's own that happens to be the flat one gives the flat one's posterior; the broad one, no weights."""

    class Own:
        def log_prob(self, theta):
            return log_flat(survey.population, np.asarray(theta)[None])[0] + 3.0

    def posterior(prior):
        summary = Summary(survey.population, survey.forward)
        return NPEEstimator(BANDS, npe, survey.population, prior, summary, 20).posterior(0, galaxies[1])

    np.testing.assert_allclose(posterior(Own()).weights, posterior("flat").weights, rtol=1e-3, atol=1e-8)
    broad = posterior(as_prior(npe.proposal, npe.broad))
    np.testing.assert_allclose(broad.weights, posterior("broad").weights, rtol=1e-5)
    # Samples outside the bounds, which a network that has hardly learned makes, have no weight; all others the same.
    inside = np.asarray(npe.space.inside(jnp.asarray(broad.theta)))
    np.testing.assert_allclose(broad.weights, inside / inside.sum(axis=1, keepdims=True), rtol=1e-5)


def test_members_count_by_their_shares_alone(survey, galaxies, npe):
    """Whatever the selection says of one member's samples, the average is over posteriors."""
    cut = SelectionConfig((MagnitudeLimit("sdss_r0", 17.0, 0.3),), observed=True)
    observed = npe.replace(survey=survey.replace(forward=survey.forward.replace(selection=cut)))
    summary = Summary(survey.population, survey.forward)
    for network in (npe, observed):
        estimator = NPEEstimator(BANDS, network, survey.population, "learned", summary, 20)
        found = estimator.posterior(0, galaxies[1])
        np.testing.assert_allclose(found.weights.reshape(16, 2, 10).sum(axis=2), [[0.6, 0.4]] * 16, rtol=1e-5)


@pytest.mark.parametrize(
    ("shares", "num", "wanted"),
    [
        ([0.6, 0.4], 5, [3, 2]),
        ([0.5, 0.3, 0.2], 20, [10, 6, 4]),
        ([0.98, 0.02], 10, [9, 1]),
        ([0.34, 0.33, 0.33], 4, [2, 1, 1]),
    ],
)
def test_members_get_samples_by_their_shares(shares, num, wanted):
    assert apportioned(np.array(shares), num).tolist() == wanted


def test_damage_is_named(tmp_path, survey, npe):
    with pytest.raises(StorageError, match="train a network first"):
        load_npe(tmp_path, survey)
    save_npe(tmp_path, npe, BANDS, {})
    path = tmp_path / "npe.json"
    path.write_text(path.read_text().replace('"embedding": 8', '"embedding": 9'))
    with pytest.raises(StorageError, match=r"npe\.json is not as it was written"):
        load_npe(tmp_path, survey)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        (HMCConfig, {"num_chains": 1}, "num_chains = 1 must be at least 2"),
        (HMCConfig, {"target_accept": 1.0}, "target_accept = 1.0 must be between 0 and 1"),
        (NPEConfig, {"batch_size": 0}, "batch_size = 0 must be at least 1"),
        (NPEConfig, {"learning_rate": 0.0}, "learning_rate = 0.0 must be positive"),
        (SimulationConfig, {"broad": 0.0}, "broad = 0.0 must be between 0 and 1"),
        (SimulationConfig, {"missing": 1.0}, "missing = 1.0 must be at least 0 and below 1"),
    ],
)
def test_impossible_settings_are_refused(kind, change, words):
    with pytest.raises(ValueError, match=words):
        kind(**change)
