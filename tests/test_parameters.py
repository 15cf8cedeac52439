"""theta <-> u, its density, and what the power of the stick-breaking variables is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import beta, kstest, norm
from scipy.stats import t as student_t

from popsed_jax.parameters import Parameter, ParameterSpace
from popsed_jax.sps.sfh import stick_breaking, stick_breaking_inverse

SPACE = ParameterSpace(
    (
        Parameter("redshift", 0.001, 0.8),
        Parameter("log_mass", 7.5, 13.0),
        Parameter("kappa1", 0.0, 1.0, power=3.0),
        Parameter("kappa2", 0.0, 1.0, power=2.0),
        Parameter("dust_index", -1.0, 0.4),
        Parameter("log_sfr_ratio", -5.0, 5.0, student_t=0.3),
        Parameter("lopsided", -0.2, 7.0, student_t=0.5),
        Parameter("one_sided", 0.1, 2.0, student_t=0.3),
    )
)
DIM = len(SPACE)
PLAIN = ParameterSpace(SPACE.parameters[:5])


def vectors(limit: float) -> st.SearchStrategy:
    return arrays(np.float64, (DIM,), elements=st.floats(-limit, limit, allow_subnormal=False))


class TestMap:
    @settings(max_examples=60, deadline=None)
    @given(u=vectors(5.0))
    def test_round_trip_in_double_precision(self, u):
        with jax.enable_x64(True):
            back = SPACE.to_u(SPACE.to_theta(jnp.asarray(u)))
        # Rounding theta moves u by eps |theta| / (width x density): 1e-16 x 2.4 / 1.5e-6 at u = 5.
        np.testing.assert_allclose(back, u, atol=2e-9)

    @settings(max_examples=30, deadline=None)
    @given(u=vectors(3.0))
    def test_round_trip_in_single_precision(self, u):
        back = SPACE.to_u(SPACE.to_theta(jnp.asarray(u, jnp.float32)))
        # 6e-8 x 2.4 / 4.4e-3 at u = 3, a few roundings.
        np.testing.assert_allclose(back, u, atol=5e-4)

    @settings(max_examples=30, deadline=None)
    @given(u=vectors(6.0))
    def test_log_det_is_that_of_the_jacobian(self, u):
        with jax.enable_x64(True):
            point = jnp.asarray(u)
            jacobian = jax.jacfwd(SPACE.to_theta)(point)
            np.testing.assert_allclose(SPACE.log_det(point), jnp.linalg.slogdet(jacobian)[1], rtol=1e-9)

    def test_flat_in_u_means_a_beta_variate_in_theta(self):
        theta = np.asarray(SPACE.sample_flat(jax.random.key(0), 20_000), float)
        for i, parameter in enumerate(PLAIN.parameters):
            fraction = (theta[:, i] - parameter.low) / (parameter.high - parameter.low)
            # A wrong power (3 for 2, say) gives a distance of 0.15; 20,000 right draws give 0.007 +- 0.002.
            assert kstest(fraction, beta(parameter.power, 1.0).cdf).statistic < 0.02, parameter.name

    def test_extreme_u_stays_inside(self):
        u = jnp.stack([jnp.full(DIM, -40.0), jnp.full(DIM, 40.0), jnp.zeros(DIM)])
        theta = SPACE.to_theta(u)
        assert bool(jnp.all(SPACE.inside(theta)))
        assert bool(jnp.all(jnp.isfinite(SPACE.to_u(theta))))

    def test_gradients_are_finite_on_the_bounds(self):
        low = jnp.array([p.low for p in SPACE.parameters])
        high = jnp.array([p.high for p in SPACE.parameters])
        for theta in (low, high):
            assert bool(jnp.all(jnp.isfinite(jax.grad(lambda t: SPACE.to_u(t).sum())(theta))))

    def test_inside(self):
        middle = SPACE.to_theta(jnp.zeros(DIM))
        outside = middle.at[1].set(13.01)
        np.testing.assert_array_equal(SPACE.inside(jnp.stack([middle, outside])), [True, False])

    def test_batches_of_any_rank(self):
        u = jax.random.normal(jax.random.key(3), (2, 3, DIM))
        np.testing.assert_array_equal(SPACE.to_theta(u)[1, 2], SPACE.to_theta(u[1, 2]))
        assert SPACE.log_det(u).shape == (2, 3)


class TestStudentT:
    @staticmethod
    def cdf(parameter: Parameter):
        """Of the truncated distribution, from scipy."""
        whole = student_t(2.0, scale=parameter.student_t)
        low, high = whole.cdf(parameter.low), whole.cdf(parameter.high)
        return lambda x: (whole.cdf(x) - low) / (high - low)

    def test_draws(self):
        theta = np.asarray(SPACE.sample_flat(jax.random.key(5), 20_000), float)
        for i, parameter in enumerate(SPACE.parameters[5:], start=5):
            # 0.007 +- 0.002 expected of right draws; a normal of the same scale is 0.1 away.
            assert kstest(theta[:, i], self.cdf(parameter)).statistic < 0.02, parameter.name

    def test_quantiles(self):
        u = np.linspace(-6.0, 6.0, 25)
        with jax.enable_x64(True):
            theta = np.asarray(SPACE.to_theta(jnp.asarray(np.repeat(u[:, None], DIM, axis=1))))
        for i, parameter in enumerate(SPACE.parameters[5:], start=5):
            np.testing.assert_allclose(self.cdf(parameter)(theta[:, i]), norm.cdf(u), atol=1e-12)

    def test_single_precision(self):
        u = np.repeat(np.linspace(-5.0, 5.0, 201)[:, None], DIM, axis=1)
        with jax.enable_x64(True):
            double = SPACE.to_theta(jnp.asarray(u)), SPACE.log_det(jnp.asarray(u))
        single = jnp.asarray(u, jnp.float32)
        np.testing.assert_allclose(SPACE.to_theta(single), double[0], atol=2e-6)
        np.testing.assert_allclose(SPACE.log_det(single), double[1], rtol=2e-6, atol=2e-5)

    def test_without_one_nothing_is_added(self, monkeypatch):
        """Decided when the function is traced: a space without such a prior never reaches its code."""
        # Bounds that no other test has: neither space has been traced yet.
        without, within = (space.replace_bounds({space.names[0]: (0.125, 0.375)}) for space in (PLAIN, SPACE))
        monkeypatch.setattr("popsed_jax.parameters._StudentT", None)
        u = jnp.zeros(len(PLAIN))
        np.testing.assert_allclose(without.to_u(without.to_theta(u)), u, atol=1e-6)
        assert without.log_det(u).shape == ()
        with pytest.raises(TypeError):
            within.to_theta(jnp.zeros(DIM))

    def test_middle_and_settings(self):
        assert float(SPACE.to_theta(jnp.zeros(DIM))[5]) == pytest.approx(0.0, abs=1e-7)
        assert SPACE.replace_bounds({"log_sfr_ratio": (-3.0, 3.0)})["log_sfr_ratio"].student_t == 0.3
        with pytest.raises(ValueError, match="student_t must be finite and not negative, got -1"):
            Parameter("x", 0.0, 1.0, student_t=-1.0)
        with pytest.raises(ValueError, match=r"student_t and power = 2.0 exclude each other"):
            Parameter("x", 0.0, 1.0, power=2.0, student_t=0.3)


class TestFlatDirichlet:
    def test_moments_of_the_four_weights(self, galaxy):
        space = galaxy.space
        draws = space.sample_flat(jax.random.key(1), 40_000)
        kappa = jnp.stack([draws[:, space.index(f"kappa{k}")] for k in (1, 2, 3)], axis=1)
        weights = np.asarray(jax.vmap(stick_breaking)(kappa), float)
        np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=3e-7)
        # Dirichlet(1, 1, 1, 1): mean 1/4, variance 3/80, covariance -1/80; five standard errors of 0.001 and 0.0003.
        np.testing.assert_allclose(weights.mean(axis=0), 0.25, atol=0.005)
        expected = np.where(np.eye(4, dtype=bool), 3.0 / 80.0, -1.0 / 80.0)
        np.testing.assert_allclose(np.cov(weights.T), expected, atol=0.0015)
        for k in range(4):
            assert kstest(weights[:, k], beta(1.0, 3.0).cdf).statistic < 0.01  # 0.0043 expected of right draws

    def test_inverse(self):
        weights = np.random.default_rng(0).dirichlet(np.ones(4), 200)
        with jax.enable_x64(True):
            kappa = stick_breaking_inverse(jnp.asarray(weights))
            np.testing.assert_allclose(jax.vmap(stick_breaking)(kappa), weights, atol=1e-12)

    def test_inverse_of_empty_sticks(self):
        corners = jnp.eye(4)
        np.testing.assert_allclose(jax.vmap(stick_breaking)(stick_breaking_inverse(corners)), corners, atol=1e-7)


class TestNames:
    def test_pack_and_unpack(self):
        theta = SPACE.to_theta(jax.random.normal(jax.random.key(2), (DIM,)))
        np.testing.assert_array_equal(SPACE.pack(SPACE.unpack(theta)), theta)

    def test_lookup(self):
        assert SPACE["kappa1"].power == 3.0
        assert SPACE.index("kappa2") == 3
        with pytest.raises(KeyError, match=r"no parameter 'log_mas' among .*; did you mean 'log_mass'"):
            SPACE.index("log_mas")

    def test_pack_says_what_is_missing(self):
        with pytest.raises(KeyError, match="missing parameters: log_mass, kappa1, kappa2, dust_index"):
            SPACE.pack({"redshift": jnp.zeros(())})

    def test_replace_bounds(self):
        wider = SPACE.replace_bounds({"redshift": (0.01, 3)})
        assert (wider["redshift"].low, wider["redshift"].high) == (0.01, 3.0)
        assert wider["kappa1"] == SPACE["kappa1"]
        with pytest.raises(KeyError, match="did you mean 'redshift'"):
            SPACE.replace_bounds({"redshif": (0.0, 1.0)})
        with pytest.raises(ValueError, match=r"parameter 'redshift': low = 2.0 must be finite and below high = 1.0"):
            SPACE.replace_bounds({"redshift": (2.0, 1.0)})

    def test_is_a_static_argument(self):
        assert hash(SPACE) == hash(ParameterSpace(SPACE.parameters))

    @pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (0.0, np.inf), (np.nan, 1.0)])
    def test_bounds_must_be_an_interval(self, low, high):
        with pytest.raises(ValueError, match="must be finite and below"):
            Parameter("x", low, high)

    def test_power_must_be_positive(self):
        with pytest.raises(ValueError, match="parameter 'x': power must be positive, got 0"):
            Parameter("x", 0.0, 1.0, power=0.0)

    def test_repeated_names(self):
        with pytest.raises(ValueError, match="parameters given twice: x"):
            ParameterSpace((Parameter("x", 0.0, 1.0), Parameter("x", 0.0, 2.0)))
