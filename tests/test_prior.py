"""The learned population as a prior: a density, its draws, its map from the unit cube, and what is derived from it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest
from tiny_prior import SPACE, save_tiny

import popsed_jax as pj
from popsed_jax.priors.prior import Prior

NAMES = ("redshift", "log_mass", "t_burst")
# Functions are compiled for each shape of their arguments: tests share these numbers of rows.
SOME, FEW = 1000, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def prior(folder) -> Prior:
    return pj.load_prior(folder)


@pytest.fixture(scope="module")
def draws(prior) -> np.ndarray:
    return np.asarray(prior.sample(jax.random.key(1), 200_000))


def test_it_says_what_it_means(prior, folder):
    assert prior.names == NAMES
    assert prior.units == {"redshift": "", "log_mass": "dex(Msun)", "t_burst": "Gyr"}
    assert prior.bounds["log_mass"] == (7.0, 13.0)
    assert prior.descriptions["t_burst"] == "lookback time of the burst"
    assert prior.meta["selection"] == "as-detected"
    assert pj.load_prior(folder.parent).names == NAMES  # the run serves as well


def test_shapes(prior, draws):
    one = jnp.asarray(draws[0])
    assert prior.log_prob(one).shape == ()
    assert prior.log_prob(jnp.tile(one, (4, 2, 1))).shape == (4, 2)
    assert prior.grad_log_prob(jnp.tile(one, (4, 1))).shape == (4, 3)
    assert prior.transform(jnp.full((2, 5, 3), 0.3)).shape == (2, 5, 3)
    assert prior.inverse_transform(one).shape == (3,)
    assert prior.member_of(jnp.full(3, 0.3)).shape == ()
    assert float(prior.log_prob(prior.unpack(one))) == pytest.approx(float(prior.log_prob(one)))
    for function in (prior.log_prob, prior.transform, prior.inverse_transform):
        with pytest.raises(ValueError, match=r"must be the 3 parameters"):
            function(jnp.zeros((5, 2)))
    with pytest.raises(KeyError, match="missing parameters: t_burst"):
        prior.log_prob({"redshift": 0.1, "log_mass": 10.0})


def test_draws_are_within_the_bounds_and_have_finite_gradients(prior, draws):
    assert np.all((draws >= np.float32(prior.low)) & (draws <= np.float32(prior.high)))
    outside = [[-0.1, 10.0, 1.0], [0.1, 14.0, 1.0]]
    theta = np.concatenate([draws[:20_000], np.array(outside, np.float32)])
    log_prob, slope = np.asarray(prior.log_prob(theta)), np.asarray(prior.grad_log_prob(theta))
    assert np.isfinite(log_prob[:-2]).all()
    assert np.isfinite(slope[:-2]).all()
    assert log_prob[-2:].tolist() == [-np.inf] * 2
    assert not np.any(slope[-2:])


def test_gradient_by_finite_differences(folder):
    with jax.enable_x64(True):
        prior = pj.load_prior(folder)
        theta = prior.sample(jax.random.key(4), 100)
        step = 1e-6
        for i in range(prior.dim):
            ahead, behind = (prior.log_prob(theta.at[:, i].add(sign * step)) for sign in (1.0, -1.0))
            np.testing.assert_allclose(prior.grad_log_prob(theta)[:, i], (ahead - behind) / (2 * step), rtol=2e-4)


@pytest.mark.parametrize(("x64", "tolerance"), [(False, 1e-5), (True, 1e-10)])
def test_unit_cube_round_trip(folder, x64, tolerance):
    with jax.enable_x64(x64):
        prior = pj.load_prior(folder)
        cube = jax.random.uniform(jax.random.key(2), (20_000, 3), float)
        theta = prior.transform(cube)
        assert theta.dtype == (jnp.float64 if x64 else jnp.float32)
        back = np.asarray(prior.inverse_transform(theta, prior.member_of(cube)))
        # Of the other hundredth, theta rounded to single precision does not say more.
        away = np.abs(back - cube).max(axis=1)
        assert (away.max() if x64 else np.quantile(away, 0.99)) < tolerance
        # Whatever the slab, the point leads back to theta, unless it is at a face of the slab.
        bottom, width = np.array([0.0, 0.65]), np.array([0.65, 0.35])
        for member in (None, jnp.zeros(len(theta), int), jnp.ones(len(theta), int)):
            point = np.array(prior.inverse_transform(theta, member))
            slab = np.asarray(prior.member_of(point))
            assert member is None or np.all(slab == member)
            place = np.column_stack([(point[:, 0] - bottom[slab]) / width[slab], point[:, 1:]])
            inside = np.all((place > 1e-3) & (place < 1.0 - 1e-3), axis=1)
            assert inside.mean() > (0.98 if member is None else 0.3)
            away = np.abs(np.asarray(prior.transform(point)) - theta)[inside] / (prior.high - prior.low)
            assert away.max() < (1e-9 if x64 else 1e-3)


def test_uniform_points_become_the_prior(prior, draws):
    cube = jax.random.uniform(jax.random.key(5), (50_000, 3))
    moved = np.asarray(prior.transform(cube))
    share = np.bincount(np.asarray(prior.member_of(cube)), minlength=2) / len(cube)
    np.testing.assert_allclose(share, [0.65, 0.35], atol=0.01)
    directions = np.vstack([np.eye(3), np.random.default_rng(0).normal(size=(5, 3))]) / (prior.high - prior.low)
    for direction in directions:
        # Two samples of 50,000 and 200,000: 1 in 10^4 of equal ones differ by more than 0.011.
        assert kstest(moved @ direction, draws @ direction).statistic < 0.011


def test_the_corners_of_the_cube_are_finite(prior):
    corners = jnp.stack(jnp.meshgrid(*[jnp.array([0.0, 1.0])] * 3), axis=-1).reshape(-1, 3)
    theta = prior.transform(corners)
    assert np.isfinite(theta).all()
    assert np.all((theta >= np.float32(prior.low)) & (theta <= np.float32(prior.high)))


def test_a_member_without_weight_is_never_picked(prior):
    only_first = dataclasses.replace(prior, population=prior.population.replace(weights=jnp.array([1.0, 0.0])))
    first = jnp.array([0.0, 0.1, 0.6499, 0.65, 0.6501, 0.9, 0.99999994, 1.0])
    cube = jnp.full((FEW, 3), 0.5).at[:, 0].set(first)
    assert not np.any(only_first.member_of(cube))
    assert np.isfinite(only_first.transform(cube)).all()


def test_other_names_and_units(prior, draws):
    renamed = prior.rename(
        {"redshift": "zred", "log_mass": "mass", "t_burst": "tage"}, {"mass": "Msun", "tage": "Myr", "zred": "dex"}
    )
    assert renamed.names == ("zred", "mass", "tage")
    assert renamed.units == {"zred": "dex", "mass": "Msun", "tage": "Myr"}
    assert renamed.bounds["mass"] == pytest.approx((1e7, 1e13))
    assert renamed.bounds["zred"] == pytest.approx((-3.0, np.log10(1.5)))
    theta = draws[:SOME]
    moved = np.stack([np.log10(theta[:, 0]), 10.0 ** theta[:, 1].astype(float), 1e3 * theta[:, 2]], axis=1)
    slopes = 1.0 / (theta[:, 0] * np.log(10.0)), np.log(10.0) * moved[:, 1], np.full(SOME, 1e3)
    expected = np.asarray(prior.log_prob(theta)) - np.sum(np.log(slopes), axis=0)
    np.testing.assert_allclose(renamed.log_prob(moved), expected, atol=2e-3)
    drawn = renamed.sample(jax.random.key(1), len(draws))
    np.testing.assert_allclose(drawn[:, 2], 1e3 * draws[:, 2], rtol=1e-5)
    back = renamed.inverse_transform(renamed.transform(jnp.full(3, 0.2)), 0)
    np.testing.assert_allclose(back, 0.2, atol=1e-4)


@pytest.mark.parametrize(
    ("names", "units", "error", "message"),
    [
        ({"mas": "m"}, {}, KeyError, "no parameter 'mas'"),
        ({"redshift": "t_burst"}, {}, ValueError, "two parameters would be called t_burst"),
        ({}, {"t_burst": "Msun"}, ValueError, "'Gyr' does not convert to 'Msun'"),
        ({}, {"t_burst": "furlong per"}, ValueError, "does not convert"),
        ({}, {"log_mass": "dex(kg)"}, ValueError, "to a unit that is no logarithm"),
    ],
)
def test_impossible_names_and_units_are_refused(prior, names, units, error, message):
    with pytest.raises(error, match=message):
        prior.rename(names, units)


def test_reordering_is_exact(prior, draws):
    other = prior.marginal(["t_burst", "redshift", "log_mass"])
    assert isinstance(other, Prior)
    assert other.names == ("t_burst", "redshift", "log_mass")
    order = [2, 0, 1]
    np.testing.assert_array_equal(other.log_prob(draws[:SOME][:, order]), prior.log_prob(draws[:SOME]))
    cube = jax.random.uniform(jax.random.key(0), (FEW, 3))
    np.testing.assert_array_equal(other.transform(cube), prior.transform(cube)[:, jnp.array(order)])


def test_precision_is_that_of_loading(folder):
    single = pj.load_prior(folder)
    with jax.enable_x64(True):
        double = pj.load_prior(folder)
        theta = np.asarray(double.sample(jax.random.key(0), 100))
        exact = np.asarray(double.log_prob(theta))
        assert exact.dtype == np.float64
    np.testing.assert_allclose(single.log_prob(theta), exact, atol=1e-3)


def test_the_space_is_the_populations(prior):
    assert prior.population.space == SPACE
