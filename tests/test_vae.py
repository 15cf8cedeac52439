"""The multi-modal autoencoder: mocks, losses and stages, posteriors through the latent, files."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from tiny import same
from tiny_vae import BANDS, HEAD, MOCKS, MODEL, STAGES, tiny_mocks

from popsed_jax.flags import ESTIMATOR_FLAGS
from popsed_jax.population.storage import StorageError
from popsed_jax.posteriors.columns import Summary
from popsed_jax.posteriors.estimator import Rows, blank_columns
from popsed_jax.posteriors.mocks import MocksConfig
from popsed_jax.posteriors.stages import run_stage, train_chunk
from popsed_jax.posteriors.survey import Photometry
from popsed_jax.posteriors.vae import PARTS, MultiModalVAE, VAEConfig, init_vae
from popsed_jax.posteriors.vae_columns import VAEEstimator
from popsed_jax.posteriors.vae_losses import LOSSES, STAGED, TRAINED, StagesConfig, VAEData
from popsed_jax.posteriors.vae_storage import load_vae, save_vae


@pytest.fixture(scope="module")
def mocks(forward):
    return tiny_mocks(forward)


@pytest.fixture(scope="module")
def vae(mocks, forward) -> MultiModalVAE:
    return init_vae(jax.random.key(0), mocks, forward.space, MODEL)


@pytest.fixture(scope="module")
def seen(mocks) -> Photometry:
    return jax.jit(lambda m: m.observe(jax.random.key(1), jnp.arange(20)))(mocks)


@pytest.fixture(scope="module")
def trained(vae) -> MultiModalVAE:
    """A model whose weights are far from where they start."""

    def moved(leaf):
        return leaf + 0.05 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)

    return vae.with_parts(jax.jit(lambda parts: jax.tree.map(moved, parts))(vae.parts))


# --- mocks


def test_photometry_is_the_survey_s_within_its_errors(mocks):
    config = dataclasses.replace(MOCKS, template_sigma=0.0, offset_sigma=0.0, missing=0.0, noisy=0.0)
    rows = jnp.repeat(jnp.arange(40), 50)
    quiet = jax.jit(type(mocks).observe)(dataclasses.replace(mocks, config=config), jax.random.key(0), rows)
    deviate = np.asarray((quiet.flux - mocks.flux[rows]) / quiet.error)
    assert quiet.there.all()
    assert np.abs(deviate.mean(axis=0)).max() < 0.1
    assert np.abs(deviate.std(axis=0) - 1.0).max() < 0.1


def test_template_errors_are_as_wide_as_they_say_and_smooth(mocks):
    faint = dataclasses.replace(MOCKS, template_sigma=0.2, offset_sigma=0.0, missing=0.0, noisy=0.0)
    noise = dataclasses.replace(mocks.noise, log_sigma=mocks.noise.log_sigma - 4.0)
    loud = dataclasses.replace(mocks, config=faint, noise=noise)
    rows = jnp.repeat(jnp.arange(20), 200)
    seen = jax.jit(type(mocks).observe)(loud, jax.random.key(0), rows)
    mags = -2.5 * np.log10(np.asarray(seen.flux / mocks.flux[rows])).reshape(20, 200, 5)
    width = mags.std(axis=1)
    assert np.all((width > 0.09) & (width < 0.21))
    # Bands that share knots share their errors.
    correlation = np.mean([np.corrcoef(each.T) for each in mags], axis=0)
    assert correlation[2, 3] > 0.5
    assert abs(correlation[0, 4]) < 0.25
    expected = np.hypot(np.asarray(noise.floor), 0.4 * np.log(10.0) * 0.2)
    assert np.allclose(loud.relative_floor(), expected, rtol=1e-5)


def test_bands_go_missing_but_never_all(mocks):
    config = dataclasses.replace(MOCKS, missing=0.95)
    seen = dataclasses.replace(mocks, config=config).observe(jax.random.key(2), jnp.arange(128))
    there = np.asarray(seen.there)
    assert there.any(axis=1).all()
    assert 0.2 < there.mean() < 0.8


def test_spectra_have_the_noise_that_they_quote(mocks):
    rows = jnp.repeat(jnp.arange(20), 60)
    seen = jax.jit(lambda m: m.observe_spectrum(jax.random.key(0), rows))(mocks)
    truth = 10.0 ** (mocks.log_shape[rows] + mocks.log_level[rows][:, None])
    deviate = np.asarray((seen.flux - truth) * jnp.sqrt(seen.ivar))
    assert abs(deviate.mean()) < 0.02
    assert abs(deviate.std() - 1.0) < 0.02
    ratio = np.asarray(10.0 ** mocks.log_level[rows][:, None] * jnp.sqrt(seen.ivar))
    assert ratio.min() > 1.0
    assert ratio.max() < 65.0
    assert 0.5 < np.asarray(seen.there).mean() < 0.9
    clean = mocks.observe_spectrum(jax.random.key(0), rows, clean=True)
    assert clean.there.all()
    assert np.allclose(
        10.0 ** mocks.log_level[rows][:, None] * jnp.sqrt(clean.ivar), MOCKS.signal_to_noise[1], rtol=1e-3
    )


# --- stages


# The commands' tests train all three stages.
@pytest.mark.parametrize(
    "name", ["parameters", *(pytest.param(name, marks=pytest.mark.slow) for name in (*STAGED[:2], "joint"))]
)
def test_each_stage_moves_its_parts_and_no_others(vae, mocks, name):
    before = train_chunk._cache_size()
    data, terms = VAEData(vae.with_parts({}), mocks), []
    parts = run_stage(
        jax.random.key(0), STAGES.stage(name), LOSSES[name], data, vae.parts, callback=lambda _, t: terms.append(t)
    )
    for part in PARTS:
        assert same(parts[part], vae.parts[part]) == (part not in TRAINED[name])
    assert len(terms) == 2
    assert all(np.isfinite(value) for each in terms for value in each.values())
    assert train_chunk._cache_size() <= before + 1


def test_the_head_s_loss_is_of_the_mixture_over_latents(vae, mocks, seen):
    """-log of the mean over latents of p(u | latent), not the mean of the logs."""
    u, key = mocks.u[:20, None], jax.random.key(7)
    found = jax.jit(lambda v: v.log_prob_u(key, u, seen, 3))(vae)
    latent = jax.jit(lambda v: v.encode_photometry(seen).sample(key, 3))(vae)
    log_prob = jax.jit(lambda v, one: v.trained_head().log_prob(u, one))
    each = [log_prob(vae, latent[:, k]) for k in range(3)]
    assert np.allclose(found, logsumexp(np.stack(each), axis=0) - np.log(3), rtol=1e-4, atol=1e-4)


# --- posteriors


def test_samples_and_densities_are_of_one_posterior(trained, seen):
    """The share of samples below a redshift is the integral of the density up to it."""
    drawn = trained.sample(jax.random.key(0), seen, 2000)
    assert drawn.theta.shape == (20, 2000, len(trained.space))
    assert drawn.latent.shape == (20, 1000, 4)
    assert bool(jnp.all(trained.space.inside(drawn.theta)))
    bounds = trained.space["redshift"]
    grid = np.linspace(bounds.low, bounds.high, 400)
    density = trained.redshift_density(jax.random.key(1), seen, grid, num_latents=200)
    total = np.trapezoid(density, grid, axis=1)
    assert np.allclose(total, 1.0, atol=0.02)
    redshift = np.asarray(drawn.theta)[:, :, trained.space.index("redshift")]
    for level in (0.05, 0.1, 0.2):
        below = np.trapezoid(np.where(grid <= level, density, 0.0), grid, axis=1)
        assert np.abs(below - (redshift <= level).mean(axis=1)).max() < 0.08


def test_what_stands_in_missing_bands_does_not_matter(trained, seen):
    there = seen.there.at[:, 0].set(False)
    one, other = (
        seen._replace(there=there, flux=seen.flux.at[:, 0].set(x), error=seen.error.at[:, 0].set(x))
        for x in (1.0, -3e-9)
    )
    assert same(trained.moments(one), trained.moments(other))
    assert np.array_equal(trained.chi2(one), trained.chi2(other))


def test_moments_as_the_condition(mocks, forward, seen):
    other = init_vae(jax.random.key(0), mocks, forward.space, dataclasses.replace(MODEL, condition="moments"))
    theta = other.sample(jax.random.key(0), seen, 8).theta
    assert theta.shape == (20, 8, len(forward.space))
    assert np.isfinite(other.log_prob(jax.random.key(1), theta, seen)).all()


def test_a_galaxy_s_samples_do_not_depend_on_the_galaxies_after_it(trained, seen):
    some = jax.tree.map(lambda leaf: leaf[:5], seen)
    whole, alone = (trained.sample(jax.random.key(3), which, 4).theta for which in (seen, some))
    assert np.allclose(whole[:5], alone, rtol=1e-4, atol=1e-5)


# --- columns and files


@pytest.fixture(scope="module")
def estimator(trained, forward) -> VAEEstimator:
    return VAEEstimator(BANDS, trained, Summary(trained, forward, num_samples=3, num_grid=20), num_draws=10)


def test_columns_keep_their_promises(estimator, seen):
    rows = Rows(np.asarray(seen.flux), np.asarray(seen.error), np.full(20, np.nan), np.arange(20))
    blank, found = blank_columns(estimator), estimator(0, rows)
    flags = found.pop("flags")
    assert not np.any(flags & ~int(ESTIMATOR_FLAGS))
    assert set(found) == set(blank) == set(estimator.describe())
    for name, column in found.items():
        assert column.dtype == blank[name].dtype, name
        assert column.shape == (20, *blank[name].shape[1:]), name
        assert np.isfinite(column).all(), name
    assert found["latent"].shape == (20, 4)
    assert np.all(found["latent_std"] > 0.0)
    assert np.all((found["age_mw_low"] <= found["age_mw"]) & (found["age_mw"] <= found["age_mw_high"]))
    assert same(found["redshift"], estimator(0, rows)["redshift"])


@pytest.mark.parametrize("kind", [pytest.param("flow", marks=pytest.mark.slow), "binned"])
def test_files_give_the_model_back(mocks, forward, seen, tmp_path, kind):
    config = dataclasses.replace(MODEL, head=dataclasses.replace(HEAD, kind=kind))
    vae = init_vae(jax.random.key(0), mocks, forward.space, config)
    save_vae(tmp_path, vae, BANDS, {"note": 1})
    found, bands, meta = load_vae(tmp_path)
    assert (bands, meta, found.space, found.config) == (BANDS, {"note": 1}, vae.space, vae.config)
    assert same(found.parts, vae.parts)
    assert same(vae.sample(jax.random.key(0), seen, 4), found.sample(jax.random.key(0), seen, 4))


def test_damaged_files(vae, tmp_path):
    with pytest.raises(StorageError, match="train a model first: popsed-jax train-vae"):
        load_vae(tmp_path)
    save_vae(tmp_path, vae, BANDS, {})
    text = (tmp_path / "vae.json").read_text()
    (tmp_path / "vae.json").write_text(text.replace('"latent": 4', '"latent": 5'))
    with pytest.raises(StorageError, match="not as it was written"):
        load_vae(tmp_path)


# --- settings


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: VAEConfig(latent=0), "vae: latent = 0 must be at least 1"),
        (lambda: VAEConfig(condition="both"), "vae: condition = 'both' must be one of latents, moments"),
        (lambda: VAEConfig(beta=-1.0), "vae: beta = -1.0 must not be negative"),
        (lambda: MocksConfig(num_galaxies=5), "mocks: num_galaxies = 5 must be at least 100"),
        (lambda: MocksConfig(template_sigma=-0.1), "mocks: template_sigma = -0.1"),
        (lambda: MocksConfig(missing=1.0), "mocks: missing = 1.0"),
        (lambda: MocksConfig(signal_to_noise=(5.0, 2.0)), "must be positive and increase"),
        (lambda: MocksConfig(least_coverage=0.0), "mocks: least_coverage = 0.0"),
        (lambda: StagesConfig(photometry=0), "stage 'photometry': num_steps = 0"),
        (lambda: StagesConfig().stage("last"), "no stage 'last': one of spectrum, photometry, parameters, joint"),
    ],
)
def test_impossible_settings(build, said):
    with pytest.raises(ValueError, match=said):
        build()
