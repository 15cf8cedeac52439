"""The prior in each fitter, driven by the fitter itself: a posterior known from weighted draws of the prior is recovered.

Fitters that the test installation does not bring are skipped by name; `pytest -m comparison` runs those that are there.
"""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest
from tiny_prior import LinearGaussian, tiny_population

from popsed_jax.priors.arrays import ArrayPrior
from popsed_jax.priors.coordinates import Coordinates
from popsed_jax.priors.prior import Prior

# What other people's packages warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def prior() -> Prior:
    population = tiny_population()
    return Prior(population, Coordinates.of(population.space))


@pytest.fixture(scope="module")
def likelihood(prior) -> LinearGaussian:
    return LinearGaussian(prior.low, prior.high)


@pytest.fixture(scope="module")
def truth(prior, likelihood) -> tuple[np.ndarray, np.ndarray, float]:
    return likelihood.moments(ArrayPrior(prior).sample(11, 1_000_000))


def check(draws, truth, tolerance=0.08):
    """Draws of the posterior have its moments; the tolerance is four standard errors of some 2,500 independent ones."""
    mean, std, _ = truth
    assert np.abs((np.mean(draws, axis=0) - mean) / std).max() < tolerance
    np.testing.assert_allclose(np.std(draws, axis=0), std, rtol=tolerance)


def equal_weight(samples, log_weight, num=20_000):
    """Draws from weighted ones."""
    weight = np.exp(log_weight - np.max(log_weight))
    return samples[np.random.default_rng(0).choice(len(samples), num, p=weight / weight.sum())]


def test_numpy_arrays_of_any_size(prior):
    arrays = ArrayPrior(prior)
    draws = arrays.sample(0, 5000)
    assert draws.dtype == np.float64
    assert np.all((draws >= prior.low) & (draws <= prior.high))
    expected = np.asarray(prior.log_prob(draws[:37]))
    np.testing.assert_allclose(arrays.log_prob(draws)[:37], expected, atol=1e-5)
    np.testing.assert_allclose(arrays.log_prob(draws[:36].reshape(4, 9, 3)), expected[:36].reshape(4, 9), atol=1e-5)
    assert arrays.log_prob(draws[0]).shape == ()
    assert arrays.log_prob(draws[:0]).shape == (0,)
    assert np.isneginf(arrays.log_prob(np.array([np.nan, 10.0, 1.0])))
    with pytest.raises(ValueError, match="must be the 3 parameters"):
        arrays.log_prob(draws[:, :2])
    with pytest.raises(TypeError, match="no map from the unit cube"):
        ArrayPrior(prior.marginal(["redshift"], num_draws=4096)).transform(draws[:, :1])


@pytest.mark.slow
def test_numpyro_nuts(prior, likelihood, truth):
    numpyro = pytest.importorskip("numpyro")
    from popsed_jax.priors.numpyro import PopulationDistribution

    def model():
        theta = numpyro.sample("theta", PopulationDistribution(prior))
        numpyro.factor("data", likelihood(theta))

    kernel = numpyro.infer.NUTS(model, init_strategy=numpyro.infer.init_to_sample)
    mcmc = numpyro.infer.MCMC(
        kernel, num_warmup=400, num_samples=1500, num_chains=4, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(jax.random.key(0))
    check(mcmc.get_samples()["theta"], truth)


def test_numpyro_distribution(prior):
    numpyro = pytest.importorskip("numpyro")
    from popsed_jax.priors.numpyro import PopulationDistribution

    distribution = PopulationDistribution(prior, validate_args=True)
    draws = distribution.sample(jax.random.key(0), (5, 2))
    assert draws.shape == (5, 2, 3)
    expected = np.asarray(prior.log_prob(draws))
    np.testing.assert_array_equal(distribution.log_prob(draws), expected)
    assert distribution.event_shape == (3,)
    assert bool(jnp.all(distribution.support(draws)))
    with pytest.warns(UserWarning, match="Out-of-support"):
        distribution.log_prob(draws.at[0, 0, 0].set(-1.0))
    moved = jax.jit(lambda d, x: d.log_prob(x))(distribution, draws[0, 0])  # a pytree
    assert float(moved) == pytest.approx(float(expected[0, 0]), rel=1e-5)
    assert np.isfinite(distribution.mean).all()

    def model(num):
        with numpyro.plate("galaxy", num):
            theta = numpyro.sample("theta", PopulationDistribution(prior))
            numpyro.sample("flux", numpyro.distributions.Normal(theta[:, 0], 0.1), obs=jnp.full(num, 0.4))

    trace = numpyro.handlers.trace(numpyro.handlers.seed(model, jax.random.key(0))).get_trace(10)
    assert trace["theta"]["value"].shape == (10, 3)
    guide = numpyro.infer.autoguide.AutoNormal(model)
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(0.02), numpyro.infer.Trace_ELBO(num_particles=8))
    result = svi.run(jax.random.key(1), 300, 10, progress_bar=False)
    assert np.mean(result.losses[-30:]) < np.mean(result.losses[:30])
    fitted = guide.sample_posterior(jax.random.key(2), result.params, sample_shape=(200,))["theta"]
    assert float(jnp.mean(fitted[..., 0])) == pytest.approx(0.4, abs=0.1)


def test_emcee(prior, likelihood, truth):
    pytest.importorskip("emcee")
    from popsed_jax.priors.emcee import build_sampler

    sampler = build_sampler(prior, likelihood, 200)
    np.random.seed(0)  # noqa: NPY002 (emcee's)
    sampler.run_mcmc(ArrayPrior(prior).sample(0, 200), 600)
    check(sampler.get_chain(discard=200, flat=True), truth)


@pytest.mark.slow
def test_dynesty(prior, likelihood, truth):
    pytest.importorskip("dynesty")
    from popsed_jax.priors.dynesty import build_sampler

    sampler = build_sampler(prior, likelihood, nlive=300, rstate=np.random.default_rng(0))
    sampler.run_nested(print_progress=False, dlogz=0.2)
    results = sampler.results
    check(equal_weight(results.samples, results.logwt), truth, 0.12)
    assert results.logz[-1] == pytest.approx(truth[2], abs=4.0 * results.logzerr[-1])


@pytest.mark.comparison
def test_nautilus(prior, likelihood, truth):
    pytest.importorskip("nautilus")
    from popsed_jax.priors.nautilus import build_sampler

    sampler = build_sampler(prior, likelihood, n_live=600, seed=0, n_networks=1, pool=None)
    sampler.run(n_eff=4000)
    points, log_weight, _ = sampler.posterior()
    check(equal_weight(points, log_weight), truth)
    assert sampler.log_z == pytest.approx(truth[2], abs=0.05)


@pytest.mark.comparison
def test_ultranest(prior, likelihood, truth):
    pytest.importorskip("ultranest")
    from popsed_jax.priors.ultranest import build_sampler

    np.random.seed(0)  # noqa: NPY002 (UltraNest's)
    sampler = build_sampler(prior, likelihood)
    result = sampler.run(min_num_live_points=600, show_status=False, viz_callback=False)
    assert result["paramnames"] == list(prior.names)
    check(result["samples"], truth, 0.12)
    assert result["logz"] == pytest.approx(truth[2], abs=4.0 * result["logzerr"])


@pytest.mark.comparison
def test_blackjax_nuts(prior, likelihood, truth):
    blackjax = pytest.importorskip("blackjax")
    from popsed_jax.priors.blackjax import logdensity_fn, to_bounded, to_unbounded

    log_density = logdensity_fn(prior, likelihood)
    start = to_unbounded(prior, prior.sample(jax.random.key(3), 64))
    np.testing.assert_allclose(to_bounded(prior, start), prior.sample(jax.random.key(3), 64), rtol=1e-4)
    kernel = blackjax.nuts(log_density, step_size=0.35, inverse_mass_matrix=jnp.var(start, axis=0))

    def step(states, key):
        states, _ = jax.vmap(kernel.step)(jax.random.split(key, 64), states)
        return states, states.position

    _, chain = jax.lax.scan(step, jax.vmap(kernel.init)(start), jax.random.split(jax.random.key(4), 600))
    check(to_bounded(prior, chain[200:]).reshape(-1, 3), truth)


@pytest.mark.comparison
def test_blackjax_nested_sampling(prior, likelihood, truth):
    blackjax = pytest.importorskip("blackjax")
    from blackjax.ns.utils import finalise, log_weights

    from popsed_jax.priors.blackjax import nested_sampler

    algorithm = nested_sampler(prior, likelihood, num_inner_steps=12, num_delete=50)
    state = algorithm.init(prior.sample(jax.random.key(5), 1000))
    step = jax.jit(algorithm.step)
    dead, keys = [], iter(jax.random.split(jax.random.key(6), 400))
    while float(state.integrator.logZ_live - state.integrator.logZ) > -4.0:
        state, info = step(next(keys), state)
        dead.append(info)
    final = finalise(state, dead)
    log_weight = np.asarray(log_weights(jax.random.key(7), final)).mean(axis=1)
    check(equal_weight(np.asarray(final.particles.position), log_weight), truth, 0.15)
    log_evidence = float(jnp.logaddexp(state.integrator.logZ, state.integrator.logZ_live))
    assert log_evidence == pytest.approx(truth[2], abs=0.2)
    assert blackjax.__version__


@pytest.mark.comparison
def test_sbi(prior, likelihood, truth, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("sbi")
    from sbi.inference import NPE
    from sbi.utils.user_input_checks import process_prior

    from popsed_jax.priors.sbi import PopulationDistribution

    monkeypatch.chdir(tmp_path)  # where it keeps its logs
    torch.manual_seed(0)
    distribution = PopulationDistribution(prior)
    checked, num, as_numpy = process_prior(distribution)
    assert (num, as_numpy) == (3, False)
    theta = checked.sample((6, 2))
    assert theta.dtype == torch.float32
    assert theta.shape == (6, 2, 3)
    np.testing.assert_allclose(checked.log_prob(theta), prior.log_prob(theta.numpy()), atol=1e-4)
    assert bool(torch.isneginf(checked.log_prob(torch.tensor([[-1.0, 10.0, 1.0]]))))
    leaf = theta.clone().requires_grad_()
    checked.log_prob(leaf).sum().backward()
    np.testing.assert_allclose(leaf.grad, prior.grad_log_prob(theta.numpy()), rtol=1e-3, atol=1e-3)

    theta = checked.sample((20_000,))
    width = torch.as_tensor(likelihood.width, dtype=torch.float32)
    low, matrix = (torch.as_tensor(part, dtype=torch.float32) for part in (likelihood.low, likelihood.matrix))
    data = (theta - low) / width @ matrix.T + likelihood.sigma * torch.randn(len(theta), 2)
    inference = NPE(prior=checked)
    estimator = inference.append_simulations(theta, data).train(max_num_epochs=40)
    posterior = inference.build_posterior(estimator)
    observed = torch.as_tensor(likelihood.data, dtype=torch.float32)
    # An amortised posterior from 20,000 simulations is itself an approximation.
    check(posterior.sample((5000,), x=observed, show_progress_bars=False).numpy(), truth, 0.25)


@pytest.mark.comparison
def test_prospector(prior, likelihood, truth):
    pytest.importorskip("prospect")
    dynesty = pytest.importorskip("dynesty")
    from prospect.models.parameters import ProspectorParams

    from popsed_jax.priors.prospector import VECTOR, PopulationPrior, build_model_params

    renamed = prior.rename({"redshift": "zred", "log_mass": "mass"}, {"mass": "Msun"})
    params = build_model_params(
        renamed, {"dust2": {"N": 1, "isfree": False, "init": 0.3}}, {"tage": lambda t_burst, **_: 13.0 - t_burst}
    )
    model = ProspectorParams(params)
    assert model.ndim == 3
    cube = np.random.default_rng(0).uniform(size=(50, 3))
    theta = model.prior_transform(cube[0])
    np.testing.assert_allclose(theta, ArrayPrior(renamed).transform(cube[0]), rtol=1e-6)
    many = ArrayPrior(renamed).transform(cube)
    expected = ArrayPrior(renamed).log_prob(many)
    assert model.prior_product(theta) == pytest.approx(expected[0], abs=1e-3)
    np.testing.assert_allclose(model.prior_product(many), expected, atol=1e-3)  # batches, which it sums itself
    model.set_parameters(theta)
    assert float(model.params["zred"][0]) == pytest.approx(theta[0])
    assert float(model.params["mass"][0]) == pytest.approx(theta[1])
    assert float(model.params["tage"][0]) == pytest.approx(13.0 - theta[2])
    assert len(model.theta_bounds()) == 3
    np.testing.assert_allclose(model.theta_bounds()[1], (1e7, 1e13))

    one = PopulationPrior(prior)
    assert len(one) == 3
    assert one.sample().shape == (3,)
    assert one.sample(4).shape == (4, 3)
    np.testing.assert_allclose(
        one.unit_transform(one.inverse_unit_transform(many * 0 + prior.low + 0.4 * likelihood.width)),
        np.broadcast_to(prior.low + 0.4 * likelihood.width, many.shape),
        rtol=1e-3,
    )
    assert one.serialize()[1] == list(prior.names)
    np.testing.assert_array_equal(one.range[1], prior.high)

    plain = ProspectorParams(build_model_params(prior))

    def log_likelihood(theta):
        plain.set_parameters(theta)
        names = [plain.params[name][0] for name in prior.names]
        return float(likelihood(np.array(names)))

    sampler = dynesty.NestedSampler(
        log_likelihood, plain.prior_transform, 3, nlive=300, rstate=np.random.default_rng(1)
    )
    sampler.run_nested(print_progress=False, dlogz=0.2)
    check(equal_weight(sampler.results.samples, sampler.results.logwt), truth, 0.12)
    assert plain.params[VECTOR].shape == (3,)


@pytest.mark.comparison
def test_bagpipes(prior, likelihood, truth, tmp_path, monkeypatch):
    nautilus = pytest.importorskip("nautilus")
    monkeypatch.chdir(tmp_path)
    fitted = pytest.importorskip("bagpipes.fitting.fitted_model")
    from popsed_jax.priors.bagpipes import reweight, use_prior

    instructions = {
        "redshift": (0.0, 10.0),
        "delayed": {"massformed": (1.0, 15.0), "age": (0.01, 13.0), "tau": (0.3, 10.0), "metallicity": 1.0},
    }
    galaxy = types.SimpleNamespace(photometry_exists=False, line_labels=None, index_list=None, spectrum_exists=False)
    model = fitted.fitted_model(galaxy, instructions)
    assert model.params == ["delayed:age", "delayed:massformed", "delayed:tau", "redshift"]
    with pytest.raises(ValueError, match="the model does not fit log_mass, t_burst"):
        use_prior(model, prior)
    renamed = prior.rename({"log_mass": "delayed:massformed", "t_burst": "delayed:age"})
    use_prior(model, renamed)
    cube = np.full(4, 0.3)
    returned = model.prior.transform(cube)
    assert returned is cube
    assert cube[2] == pytest.approx(0.3 + 0.3 * 9.7)
    assert model.prior.sample().shape == (4,)
    order = [model.params.index(name) for name in renamed.names]

    def log_likelihood(theta):
        return float(likelihood(theta[order]))

    # As `bagpipes.fit.fit` calls it.
    sampler = nautilus.Sampler(
        model.prior.transform, log_likelihood, n_live=500, n_networks=1, n_dim=model.ndim, seed=0
    )
    sampler.run(n_eff=4000)
    points, log_weight, _ = sampler.posterior()
    check(equal_weight(points[:, order], log_weight), truth, 0.1)

    flat = np.random.default_rng(2).uniform(prior.low, prior.high, (200_000, 3))
    log_weight = likelihood(flat)
    posterior = equal_weight(flat, log_weight, 40_000)
    samples = dict(zip(renamed.names, posterior.T, strict=True))
    weight, num_effective = reweight(samples, renamed, -np.sum(np.log(prior.high - prior.low)))
    assert 200 < num_effective < 40_000
    check(equal_weight(posterior, np.log(np.maximum(weight, 1e-300))), truth, 0.15)
    with pytest.raises(KeyError, match="the samples lack redshift"):
        reweight({"delayed:age": posterior[:, 2]}, renamed, 0.0)
    with pytest.raises(ValueError, match="no sample"):
        reweight({name: column + 100.0 for name, column in samples.items()}, renamed, 0.0)


def test_every_map_gives_the_prior(prior):
    """Without data a fitter's answer is the prior: the map on NumPy's arrays against draws."""
    arrays = ArrayPrior(prior)
    moved = arrays.transform(np.random.default_rng(1).uniform(size=(20_000, 3)))
    draws = arrays.sample(4, 20_000)
    assert max(kstest(moved[:, i], draws[:, i]).statistic for i in range(3)) < 0.022
