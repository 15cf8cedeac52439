"""The reference population against published relations, and as the survey sees it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gamma

from popsed_jax.observe.forward import ForwardModel
from popsed_jax.observe.selection import MagnitudeLimit, SelectionConfig
from popsed_jax.population.mock import MockConfig, simulate_mock
from popsed_jax.population.reference import (
    HYPER_NAMES,
    ReferenceConfig,
    build_library,
    draw_hyper,
    log_mass_function,
    main_sequence,
    quiescent_fraction,
    sample_reference,
)

NUM = 500
CENTRAL = draw_hyper(None, ReferenceConfig())


class TestRelations:
    @pytest.mark.parametrize(
        ("log_mass", "age", "log_sfr"),
        # Speagle+14, eq. 28, by hand: (0.84 - 0.026 t) log M - (6.51 - 0.11 t).
        [(10.5, 13.47, 0.1144), (10.0, 6.0, 0.99), (11.0, 10.0, 0.97)],
    )
    def test_main_sequence(self, log_mass, age, log_sfr):
        found = main_sequence(jnp.asarray(log_mass), jnp.asarray(age), CENTRAL)
        assert float(found) == pytest.approx(log_sfr, abs=1e-4)

    def test_main_sequence_hyperparameters(self):
        moved = CENTRAL | {"main_sequence_offset": 0.2, "main_sequence_slope": 0.1}
        mass, age = jnp.array([9.5, 10.5, 11.5]), jnp.asarray(10.0)
        np.testing.assert_allclose(
            main_sequence(mass, age, moved) - main_sequence(mass, age, CENTRAL), [0.1, 0.2, 0.3], atol=1e-5
        )

    def test_quiescent_fraction(self):
        # Peng+10, eq. 2: 1 - 1/e at the characteristic mass; 1 - exp(-10^(0.8 x 0.44)) = 1 - exp(-2.2491) at 10^11.
        found = quiescent_fraction(jnp.array([10.56, 11.0]), 0.06, CENTRAL)
        np.testing.assert_allclose(found, [0.632121, 0.894505], atol=2e-5)

    def test_mass_function_at_mstar(self):
        # Driver+22, table 4, at z = 0.06: log10(ln 10 x (10^-2.437 + 10^-3.201) / e), by hand.
        found = log_mass_function(jnp.asarray(10.745), jnp.asarray(0.06), CENTRAL)
        assert float(found) == pytest.approx(-2.4401, abs=2e-4)

    def test_mass_density_is_that_of_the_gamma_functions(self):
        """The integral of M phi(M) of a Schechter function is M* phi* Gamma(alpha + 2)."""
        log_mass = np.linspace(3.0, 13.0, 20_001)
        with jax.enable_x64(True):
            phi = 10.0 ** np.asarray(log_mass_function(jnp.asarray(log_mass), jnp.asarray(0.06), CENTRAL))
        found = np.trapezoid(10.0**log_mass * phi, log_mass)
        parts = [10.0 ** CENTRAL[f"log_phi{k}"] * gamma(CENTRAL[f"alpha{k}"] + 2.0) for k in (1, 2)]
        assert found == pytest.approx(10.0 ** CENTRAL["log_mstar"] * sum(parts), rel=1e-3)  # 4e-4 lies below 10^3 Msun

    def test_density_evolution(self):
        mass = jnp.asarray(10.0)
        ratio = log_mass_function(mass, jnp.asarray(1.12), CENTRAL) - log_mass_function(
            mass, jnp.asarray(0.06), CENTRAL
        )
        assert float(ratio) == pytest.approx(-0.5 * np.log10(2.0), abs=1e-5)


class TestHyper:
    def test_central_values(self):
        config = ReferenceConfig()
        assert {name: getattr(config, name)[0] for name in HYPER_NAMES} == CENTRAL

    def test_draws_have_the_stated_uncertainties(self):
        config = ReferenceConfig()
        draws = [draw_hyper(key, config) for key in jax.random.split(jax.random.key(0), 400)]
        for name in HYPER_NAMES:
            value, sigma = getattr(config, name)
            values = np.array([draw[name] for draw in draws])
            # 400 draws: the mean to sigma / 20, the width to 3.5 %; four of each.
            assert values.mean() == pytest.approx(value, abs=0.2 * sigma), name
            assert values.std() == pytest.approx(sigma, rel=0.15), name

    def test_the_key_decides(self):
        keys = jax.random.split(jax.random.key(1))
        assert draw_hyper(keys[0], ReferenceConfig()) == draw_hyper(keys[0], ReferenceConfig())
        assert draw_hyper(keys[0], ReferenceConfig()) != draw_hyper(keys[1], ReferenceConfig())

    def test_scales_stay_positive(self):
        config = ReferenceConfig(dust_quiescent=(0.1, 10.0), main_sequence_scatter=(0.3, 10.0))
        for key in jax.random.split(jax.random.key(2), 20):
            hyper = draw_hyper(key, config)
            assert min(hyper["dust_quiescent"], hyper["main_sequence_scatter"]) >= 0.01


class TestConfig:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"kind": "round"}, "kind = 'round' must be 'physical' or 'flat'"),
            ({"burst_fraction": 0.0}, "burst_fraction = 0.0 must lie between 0 and 1"),
            ({"num_histories": 5}, "num_histories = 5 must be at least 100"),
            ({"log_mstar": (10.7, -0.1)}, r"log_mstar = \(10.7, -0.1\) must be \[value, uncertainty\]"),
            ({"alpha1": (float("nan"), 0.1)}, "alpha1 = "),
        ],
    )
    def test_errors(self, settings, message):
        with pytest.raises(ValueError, match=f"reference: {message}"):
            ReferenceConfig(**settings)


@pytest.fixture(scope="module")
def library(forward):
    """Histories of the prior; 4,096 is one batch of the forward model."""
    return build_library(jax.random.key(0), forward, ReferenceConfig(num_histories=4096))


@pytest.fixture(scope="module")
def detected(forward, library) -> np.ndarray:
    """The central reference as seen to r = 17.77."""
    return np.asarray(sample_reference(jax.random.key(1), (forward,), CENTRAL, library, NUM))


def column(forward, theta, name):
    return theta[:, forward.space.index(name)]


class TestLibrary:
    def test_sorted_at_every_redshift(self, forward, library):
        assert np.all(np.diff(np.asarray(library.log_ssfr), axis=1) >= 0)
        redshift = np.asarray(library.theta)[..., forward.space.index("redshift")]
        np.testing.assert_allclose(redshift, np.broadcast_to(library.redshift[:, None], redshift.shape), rtol=1e-6)

    def test_bursts_are_as_small_as_stated(self, forward, library):
        burst = np.asarray(library.theta)[0, :, forward.space.index("f_burst")]
        assert burst.mean() == pytest.approx(0.05, rel=0.08)  # 4,096 exponential draws: 1.6 %

    def test_rates_are_those_of_the_model(self, forward, library):
        row = forward.derived(library.theta[3, ::500])["log_ssfr"]
        np.testing.assert_allclose(row, library.log_ssfr[3, ::500], atol=1e-3)


class TestSample:
    def test_inside_the_bounds(self, forward, detected):
        assert detected.shape == (NUM, len(forward.space))
        assert bool(jnp.all(forward.space.inside(jnp.asarray(detected))))
        assert bool(jnp.all(jnp.isfinite(forward.space.to_u(jnp.asarray(detected)))))

    def test_passes_the_selection(self, forward, detected):
        mag = -2.5 * np.log10(np.asarray(forward.flux(jnp.asarray(detected)), float)[:, 2])
        assert mag.max() < 17.77 + 4 * 0.05
        # Euclidean counts rise as 10^(0.6 m): half of a survey lies within 0.5 mag of its limit; less with cosmology.
        assert np.median(mag) > 16.8

    def test_looks_like_the_survey_it_imitates(self, forward, detected):
        """SDSS main sample: median redshift 0.10, masses around 10^10.7 (Strauss+02; Brinchmann+04)."""
        assert 0.07 < np.median(column(forward, detected, "redshift")) < 0.13
        surviving = np.asarray(forward.derived(jnp.asarray(detected))["log_mass_surviving"])
        assert 10.4 < np.median(surviving) < 11.0

    def test_the_key_decides(self, forward, library, detected):
        again = np.asarray(sample_reference(jax.random.key(1), (forward,), CENTRAL, library, NUM))
        np.testing.assert_array_equal(again, detected)

    def test_a_brighter_limit_is_nearer(self, forward, library, detected):
        selection = SelectionConfig((MagnitudeLimit("sdss_r0", 16.27),))
        bright = np.asarray(
            sample_reference(jax.random.key(2), (forward.replace(selection=selection),), CENTRAL, library, NUM)
        )
        # Twice nearer in a Euclidean universe for 1.5 mag.
        ratio = column(forward, bright, "redshift").mean() / column(forward, detected, "redshift").mean()
        assert 0.4 < ratio < 0.75

    def test_hyperparameters_are_obeyed(self, forward, library, detected):
        moved = CENTRAL | {"metallicity_offset": -0.5, "dust_star_forming": 1.0, "dust_quiescent": 0.5}
        other = np.asarray(sample_reference(jax.random.key(1), (forward,), moved, library, NUM))
        metals = [column(forward, theta, "logzsol").mean() for theta in (other, detected)]
        dust = [column(forward, theta, "tau_v").mean() for theta in (other, detected)]
        assert metals[0] < metals[1] - 0.3
        assert dust[0] > 1.5 * dust[1]

    def test_histories_and_curves_follow_mass_and_dust(self, forward, library, detected):
        moved = CENTRAL | {"history_slope": -0.2, "dust_index_slope": 0.3}
        other = np.asarray(sample_reference(jax.random.key(1), (forward,), moved, library, 4 * NUM))

        def slope(theta, name, against):
            return np.polyfit(against, column(forward, theta, name), 1)[0]

        mass, dust = column(forward, other, "log_mass"), np.log10(column(forward, other, "tau_v"))
        assert slope(other, "kappa1", mass) < slope(detected, "kappa1", column(forward, detected, "log_mass")) - 0.08
        older = sample_reference(jax.random.key(1), (forward,), CENTRAL | {"history_offset": -0.15}, library, NUM)
        kappa = [column(forward, np.asarray(theta), "kappa1").mean() for theta in (older, detected)]
        assert kappa[0] == pytest.approx(
            kappa[1] - 0.15, abs=0.05
        )  # error of each mean 0.01; the selection adds its own
        assert slope(other, "dust_index", dust) == pytest.approx(0.3, abs=0.12)  # scatter 0.25, clipped at the bounds

    def test_impossible_selection(self, forward, library):
        selection = SelectionConfig((MagnitudeLimit("sdss_r0", 1.0),))
        with pytest.raises(
            ValueError, match=r"the selection keeps .* of the reference population: check \[selection\]"
        ):
            sample_reference(jax.random.key(3), (forward.replace(selection=selection),), CENTRAL, library, 10)


class TestMock:
    REFERENCE = ReferenceConfig(num_histories=300)

    def test_a_survey_keeps_some_of_what_there_is(self, forward):
        noisy = dataclasses.replace(forward, selection=SelectionConfig((MagnitudeLimit("sdss_r0", 17.0, 0.02),)))
        mock = simulate_mock(jax.random.key(0), noisy, MockConfig(), self.REFERENCE, 500, tuple("ugriz"))
        assert mock.theta.shape[0] == mock.flux.shape[0] == mock.error.shape[0] == 500
        assert len(mock.intrinsic) > 1000
        observed = -2.5 * np.log10(mock.flux[:, 2])
        assert observed.max() < 17.0 + 4 * 0.02  # the cut is on what was observed
        assert observed.max() > 16.9

    @pytest.mark.slow
    def test_zero_points_and_floors_reach_the_catalogue(self, forward):
        config = MockConfig(zero_points={"u": 0.3}, floor=0.2)
        truth = simulate_mock(jax.random.key(1), forward, config, self.REFERENCE, 400, tuple("ugriz"))
        model = np.asarray(jax.jit(ForwardModel.flux)(forward, jnp.asarray(truth.theta)))[:, :5]
        gap = -2.5 * np.log10(np.maximum(truth.flux, 1e-12) / model)
        others = [0, 1, 3, 4]  # in r, by which they were selected, galaxies are observed too bright
        np.testing.assert_allclose(np.median(gap, axis=0)[others], [0.3, 0.0, 0.0, 0.0], atol=0.05)
        # A fifth of the flux in magnitudes; the quoted errors, 2 %, leave it out.
        spread = 1.4826 * np.median(np.abs(gap - np.median(gap, axis=0)), axis=0)
        np.testing.assert_allclose(spread[others[1:]], 0.217, rtol=0.15)
        assert np.median(truth.error / truth.flux) < 0.05

    def test_errors(self, forward):
        with pytest.raises(ValueError, match="zero points of y, which are not among the bands u, g, r, i, z"):
            simulate_mock(
                jax.random.key(0), forward, MockConfig(zero_points={"y": 0.1}), self.REFERENCE, 10, tuple("ugriz")
            )
        with pytest.raises(ValueError, match=r"floor = 1\.5 is a fraction of the flux"):
            MockConfig(floor=1.5)
