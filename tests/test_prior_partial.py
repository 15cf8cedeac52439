"""Conditional and marginal priors: what they claim, against the joint one's draws and integrals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_prior import tiny_population

from popsed_jax.priors.coordinates import Coordinates
from popsed_jax.priors.prior import Prior

NUM = 8192


@pytest.fixture(scope="module")
def prior() -> Prior:
    population = tiny_population()
    return Prior(population, Coordinates.of(population.space))


def grid(prior, name, num=400):
    """Midpoints of one parameter and their spacing; an even grid of a Beta variate, as the density may rise at bounds."""
    low, high = prior.bounds[name]
    edges = low + (high - low) * np.sin(0.5 * np.pi * np.linspace(0.0, 1.0, num + 1)) ** 2
    return 0.5 * (edges[1:] + edges[:-1]), np.diff(edges)


def integral(density, prior, names, **fixed):
    """Integral of a density over two named parameters."""
    (x, dx), (y, dy) = (grid(prior, name) for name in names)
    mesh = dict(zip(names, np.meshgrid(x, y, indexing="ij"), strict=True))
    values = np.exp(np.asarray(density.log_prob({**mesh, **fixed})))
    return float(dx @ values @ dy), values, mesh, dx, dy


def test_a_conditional_is_a_density_and_its_draws_follow_it(prior):
    given = prior.condition(redshift=0.4, num_draws=NUM)
    assert given.names == ("log_mass", "t_burst")
    assert given.exact
    assert given.meta["given"] == {"redshift": pytest.approx(0.4)}
    total, values, mesh, dx, dy = integral(given, prior, given.names)
    assert 0.0 < float(given.error) < 0.04
    assert total == pytest.approx(1.0, abs=4.0 * float(given.error))
    draws = np.asarray(given.sample(jax.random.key(0), 20_000))
    assert len(np.unique(draws[:, 0])) > 19_000
    weight = values * dx[:, None] * dy / total
    for i, name in enumerate(given.names):
        mean = np.sum(weight * mesh[name])
        std = np.sqrt(np.sum(weight * (mesh[name] - mean) ** 2))
        # Draws start from some thousand weighted ones, and move on from there.
        assert draws[:, i].mean() == pytest.approx(mean, abs=0.05 * std)
        assert draws[:, i].std() == pytest.approx(std, rel=0.05)


def test_the_constant_is_the_marginal_density(prior):
    total, *_ = integral(prior, prior, ("log_mass", "t_burst"), redshift=0.4)
    given = prior.condition({"redshift": 0.4}, num_draws=NUM)
    assert float(jnp.exp(given.log_norm)) == pytest.approx(total, rel=4.0 * float(given.error))
    marginal = prior.marginal(["redshift"], num_draws=NUM)
    assert not marginal.exact
    at = jnp.array([[0.4]])
    assert float(marginal.log_prob(at)[0]) == pytest.approx(
        np.log(total), abs=4.0 * float(marginal.log_prob_error(at)[0])
    )


def test_the_errors_are_as_stated(prior):
    total, *_ = integral(prior, prior, ("log_mass", "t_burst"), redshift=0.4)
    tries = [prior.condition(redshift=0.4, num_draws=NUM, seed=seed) for seed in range(12)]
    pulls = np.array([(float(t.log_norm) - np.log(total)) / float(t.error) for t in tries])
    # A chi-squared of 12: below 2.5 or above 32 in one of a thousand.
    assert 2.5 < np.sum(pulls**2) < 32.0


@pytest.mark.slow
def test_a_marginal_keeps_the_draws_and_has_their_density(prior):
    marginal = prior.marginal(["redshift", "log_mass"], num_draws=NUM)
    draws = prior.sample(jax.random.key(7), 1000)
    np.testing.assert_array_equal(marginal.sample(jax.random.key(7), 1000), draws[:, :2])
    t, dt = grid(prior, "t_burst")
    some = np.asarray(draws[:40])
    mesh = {"redshift": some[:, None, 0], "log_mass": some[:, None, 1], "t_burst": t[None]}
    truth = np.log(np.exp(np.asarray(prior.log_prob(mesh))) @ dt)
    pulls = (np.asarray(marginal.log_prob(some[:, :2])) - truth) / np.asarray(marginal.log_prob_error(some[:, :2]))
    assert np.sqrt(np.mean(pulls**2)) < 2.0
    assert np.abs(pulls).max() < 5.0
    assert np.isneginf(marginal.log_prob(jnp.array([-1.0, 10.0])))
    assert np.isfinite(marginal.grad_log_prob(some[0, :2])).all()


def test_a_marginal_of_a_conditional(prior):
    given = prior.condition(redshift=0.4, num_draws=NUM)
    both = given.marginal(["log_mass"], num_draws=NUM)
    assert both.names == ("log_mass",)
    x, dx = grid(prior, "log_mass", 60)
    assert float(np.exp(np.asarray(both.log_prob(x[:, None]))) @ dx) == pytest.approx(1.0, abs=0.1)
    again = given.condition(log_mass=10.0, num_draws=NUM)
    assert again.names == ("t_burst",)
    assert set(again.meta["given"]) == {"redshift", "log_mass"}


def test_units_of_a_conditional(prior):
    plain = prior.condition(redshift=0.4, num_draws=NUM)
    renamed = plain.rename({"t_burst": "tage"}, {"tage": "Myr"})
    theta = jnp.array([10.0, 5.0])
    expected = float(plain.log_prob(theta)) - np.log(1e3)
    assert float(renamed.log_prob(theta * jnp.array([1.0, 1e3]))) == pytest.approx(expected, abs=1e-4)
    assert renamed.bounds["tage"] == (10.0, 13000.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: p.condition(redshift=2.0), ValueError, "redshift = 2.0 is outside its bounds, 0.001 to 1.5"),
        (lambda p: p.condition(redshif=0.2), KeyError, "did you mean 'redshift'"),
        (lambda p: p.condition(), ValueError, "some must be given or left out"),
        (lambda p: p.condition(redshift=0.2, log_mass=10.0, t_burst=1.0), ValueError, "some must remain"),
        (lambda p: p.condition(redshift=0.2, num_draws=10), ValueError, "num_draws = 10 must be at least"),
        (lambda p: p.marginal(["redshift", "redshift"]), ValueError, "names given twice"),
        (lambda p: p.marginal([]), ValueError, "some must remain"),
    ],
)
def test_mistakes_are_named(prior, call, error, message):
    with pytest.raises(error, match=message):
        call(prior)
