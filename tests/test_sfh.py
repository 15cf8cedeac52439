"""Every star-formation history, with either metallicity: the same laws for all, and each against its definition."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import kstest
from scipy.stats import t as student_t

from popsed_jax.observe.filters import load_filter
from popsed_jax.observe.operators import integrate_spectrum
from popsed_jax.observe.photometry import build_photometry_table, dimming, flux
from popsed_jax.settings import SettingsError, from_mapping
from popsed_jax.sps import diffstar
from popsed_jax.sps.config import DERIVED, DERIVED_META, ModelConfig
from popsed_jax.sps.galaxy import build_galaxy_model, half_mass_time
from popsed_jax.sps.metallicity import LOG_Z_SUN, Z_START, evolving_metallicity
from popsed_jax.sps.sfh import Continuity

HISTORIES = ("bases", "delayed_tau", "burst", "continuity", "diffstar")
# Every history with a constant metallicity, and one with an evolving one; the others of these with the slow tests.
INSTANCES = [(history, "constant") for history in HISTORIES] + [("bases", "evolving")]
INSTANCES += [pytest.param(history, "evolving", marks=pytest.mark.slow) for history in HISTORIES[1:]]
NUM = 45  # everywhere, so that each model compiles once


@pytest.fixture(scope="module")
def models():
    """One galaxy model of each history, in single and double precision, by (history, metallicity, x64)."""
    found = {}
    for x64, history in itertools.product((False, True), HISTORIES):
        with jax.enable_x64(x64):
            model = build_galaxy_model(ModelConfig(sfh=history), redshift_step=0.01)
            for metallicity in ("constant", "evolving"):
                config = ModelConfig(sfh=history, metallicity=metallicity)
                found[history, metallicity, x64] = model.replace(config=config)
    return found


def draws(model, num: int = NUM) -> jax.Array:
    return model.space.sample_flat(jax.random.key(3), num)


def corners(model, num: int = NUM) -> np.ndarray:
    """Every parameter on one of its bounds: all low, all high, and random ones."""
    low, high = (np.array([getattr(p, end) for p in model.space.parameters]) for end in ("low", "high"))
    pick = np.random.default_rng(0).random((num, len(low))) < 0.5
    pick[0], pick[1] = False, True
    return np.where(pick, high, low)


def put(model, theta, **values):
    for name, value in values.items():
        theta = theta.at[..., model.space.index(name)].set(value)
    return theta


def summarise(model, one):
    """Joint weights, derived properties, and random sums of both: all that a gradient can pass through."""
    joint, derived = model.joint_weights(model.space.unpack(one)), model.derived(one)
    sums = jax.random.uniform(jax.random.key(0), (20, *joint.shape), dtype=jnp.float32)
    return joint, derived, jnp.concatenate([jnp.stack(list(derived.values())), jnp.einsum("fya,ya->f", sums, joint)])


evaluate = jax.jit(jax.vmap(summarise, in_axes=(None, 0)))


@jax.jit
def forward_slope(model, theta, direction):
    return jax.jvp(lambda theta: jax.vmap(lambda one: summarise(model, one)[2])(theta), (theta,), (direction,))[1]


@jax.jit
def reverse_slope(model, theta):
    return jax.grad(lambda theta: jax.vmap(lambda one: summarise(model, one)[2])(theta).sum())(theta)


@jax.jit
def joint_weights(model, theta):
    return jax.vmap(lambda one: model.joint_weights(model.space.unpack(one)))(theta)


def joint_of(model, theta):
    return np.asarray(joint_weights(model, theta), float)


@pytest.mark.parametrize(("history", "metallicity"), INSTANCES)
class TestLaws:
    def test_weights_are_a_distribution(self, models, history, metallicity):
        model = models[history, metallicity, False]
        for theta in (draws(model), jnp.asarray(corners(model), jnp.float32)):
            joint, derived, _ = evaluate(model, theta)
            assert float(joint.sum(axis=1).min()) >= 0.0
            assert float(joint.min()) >= -1e-7  # metallicity weights are differences of a cumulative distribution
            np.testing.assert_allclose(np.asarray(joint, float).sum(axis=(1, 2)), 1.0, atol=3e-6)  # 630 float32 terms
            assert set(derived) == set(DERIVED) == set(DERIVED_META)
            assert all(bool(jnp.all(jnp.isfinite(values))) for values in derived.values())

    def test_nothing_older_than_the_universe(self, models, history, metallicity):
        model = models[history, metallicity, False]
        for redshift in (0.001, 0.45, 0.8):
            theta = put(model, draws(model), redshift=redshift)
            if "t_burst" in model.space.names:
                theta = put(model, theta, t_burst=13.27)
            age = float(model.cosmology.age(jnp.asarray(redshift)))
            joint, derived, _ = evaluate(model, theta)
            # A bin, or the interval of a burst between two templates, may reach over the edge, but not begin beyond it.
            beyond = np.searchsorted(np.asarray(model.age_edges), age) + 1
            assert np.asarray(joint)[..., beyond:].max(initial=0.0) == 0.0
            assert float(derived["t50"].max()) <= age * (1.0 + 1e-6)

    def test_precisions_agree(self, models, history, metallicity):
        theta = draws(models[history, metallicity, False])
        single = joint_of(models[history, metallicity, False], theta)
        with jax.enable_x64(True):
            double = joint_of(models[history, metallicity, True], jnp.asarray(theta, jnp.float64))
        # A rounding of log Z is seen through a lognormal of 0.2 dex.
        np.testing.assert_allclose(single, double, atol=5e-6)

    @pytest.mark.slow
    def test_gradients(self, models, history, metallicity):
        """Against finite differences, one parameter at each draw; and finite on the bounds in single precision."""
        model = models[history, metallicity, True]
        theta, dim = draws(models[history, metallicity, False]), len(model.space)
        which = np.arange(NUM) % dim
        with jax.enable_x64(True):
            points = jnp.asarray(theta, jnp.float64)
            width = np.array([p.high - p.low for p in model.space.parameters])
            direction = jnp.asarray(np.eye(dim)[which] * width[which, None])
            exact = np.asarray(forward_slope(model, points, direction))
            ends = [evaluate(model, points + sign * 1e-6 * direction)[2] for sign in (1.0, -1.0)]
            numeric = np.asarray((ends[0] - ends[1]) / 2e-6)
        np.testing.assert_allclose(exact, numeric, rtol=1e-5, atol=1e-6)
        moved = {model.space.names[i] for i in range(dim) if np.abs(exact[which == i]).max() > 1e-4}
        assert set(model.space.names) - moved <= {"tau_v", "tau_birth", "dust_index"}
        single = models[history, metallicity, False]
        for edge in (theta, jnp.asarray(corners(single), jnp.float32)):
            assert bool(jnp.all(jnp.isfinite(reverse_slope(single, edge))))


class TestDerived:
    def test_half_of_a_constant_rate(self, models):
        model = models["continuity", "constant", True]
        with jax.enable_x64(True):
            theta = put(
                model, jnp.asarray(draws(model), jnp.float64), **{f"log_sfr_ratio{n}": 0.0 for n in range(1, 7)}
            )
            found = evaluate(model, theta)[1]
            age = model.cosmology.age(theta[:, model.space.index("redshift")])
            np.testing.assert_allclose(found["t50"], 0.5 * age, rtol=1e-12)
            log_mass = theta[:, model.space.index("log_mass")]
            for name in ("log_sfr", "log_sfr10"):
                np.testing.assert_allclose(found[name], log_mass - jnp.log10(age * 1e9), atol=1e-12)

    def test_delayed_tau(self, models):
        """Half-mass time and both rates from integrals of t exp(-t / tau)."""
        model = models["delayed_tau", "constant", True]
        with jax.enable_x64(True):
            theta = jnp.asarray(draws(models["delayed_tau", "constant", False]), jnp.float64)
            found = {name: np.asarray(value) for name, value in evaluate(model, theta)[1].items()}
            ages = np.asarray(model.cosmology.age(theta[:, model.space.index("redshift")]))
        edges = np.asarray(model.age_edges)
        for i, one in enumerate(np.asarray(theta)):
            params = dict(zip(model.space.names, one, strict=True))
            duration, tau = ages[i] * (1.0 - params["start_fraction"]), 10.0 ** params["log_tau"]

            def formed(low, high, duration=duration, tau=tau):
                return quad(lambda age: (duration - age) * np.exp(-(duration - age) / tau), low, high)[0]

            total = formed(0.0, duration)
            half = brentq(lambda age, half=0.5 * total, formed=formed: formed(0.0, age) - half, 0.0, duration)
            # The rate is constant within a bin: half of one for histories shorter than the old bins, else little.
            bin_width = np.diff(edges)[np.searchsorted(edges, half) - 1]
            assert abs(found["t50"][i] - half) < (0.5 if tau < 1.0 or duration < 3.0 else 0.05) * bin_width
            for name, span in (("log_sfr", 0.1), ("log_sfr10", 0.01)):
                rate = formed(0.0, span) / total / (span * 1e9)
                if rate > 1e-12:
                    assert found[name][i] == pytest.approx(params["log_mass"] + np.log10(rate), abs=0.01)

    def test_half_mass_between_two_bins(self):
        edges = jnp.array([0.0, 1.0, 3.0, 4.0, 8.0])
        for weights, expected in (
            ([0.5, 0.0, 0.0, 0.5], 4.0),  # anywhere between 1 and 4 would do
            ([0.25, 0.5, 0.25, 0.0], 2.0),
            ([0.0, 0.0, 0.0, 1.0], 6.0),
            ([2.0, 0.0, 0.0, 0.0], 0.5),
        ):
            assert float(half_mass_time(jnp.array(weights), edges)) == pytest.approx(expected, abs=1e-6)


class TestContinuity:
    def test_constant_rate(self, models):
        model = models["continuity", "constant", False]
        theta = put(model, draws(model), **{f"log_sfr_ratio{n}": 0.0 for n in range(1, 7)})
        weights = joint_of(model, theta).sum(axis=1)
        age = np.asarray(model.cosmology.age(theta[:, 0]), float)[:, None]
        edges = np.minimum(np.asarray(model.age_edges, float), age)
        np.testing.assert_allclose(weights, np.diff(edges, axis=1) / age, atol=1e-6)

    @pytest.mark.parametrize("redshift", [0.001, 0.8])
    def test_bins_and_rates(self, models, redshift):
        """Leja+19: 0-30 and 30-100 Myr, four bins equal in log time up to 0.85 of the age, and the rest."""
        model = models["continuity", "constant", False]
        ratios = np.array([0.4, -0.3, 1.2, 0.0, -2.0, 0.7])
        theta = put(model, draws(model, 1)[0], redshift=redshift)
        theta = put(model, theta, **{f"log_sfr_ratio{n}": r for n, r in enumerate(ratios, start=1)})
        age = float(model.cosmology.age(jnp.asarray(redshift)))
        bins = np.concatenate([[0.0, 0.03], np.geomspace(0.1, 0.85 * age, 5), [age]])
        np.testing.assert_allclose(Continuity().edges(jnp.asarray(age)), bins, rtol=2e-6)
        rates = 10.0 ** -np.concatenate([[0.0], np.cumsum(ratios)])
        formed = np.concatenate([[0.0], np.cumsum(rates * np.diff(bins))])
        expected = np.diff(np.interp(np.asarray(model.age_edges, float), bins, formed)) / formed[-1]
        np.testing.assert_allclose(joint_of(model, jnp.tile(theta, (NUM, 1)))[0].sum(axis=0), expected, atol=1e-6)

    def test_prior(self, models):
        """Student-t of two degrees of freedom and scale 0.3, within five dex. (Leja+19, eq. 2-3)"""
        space = models["continuity", "constant", False].space
        theta = np.asarray(space.sample_flat(jax.random.key(1), 20_000), float)
        whole = student_t(2.0, scale=0.3)
        beyond = whole.cdf(-5.0)
        for n in range(1, 7):
            column = theta[:, space.index(f"log_sfr_ratio{n}")]
            # 0.007 +- 0.002 expected of right draws.
            assert kstest(column, lambda x: (whole.cdf(x) - beyond) / (1.0 - 2.0 * beyond)).statistic < 0.02
            assert np.abs(column).max() <= 5.0


class TestDiffstar:
    PARAMS = {  # noqa: RUF012
        "log_mhalo": 12.6, "log_t_halo": 0.35, "mah_early": 2.4, "mah_late": 0.3, "log_tau_gas": 0.6,
        "log_t_quench": 0.85, "log_quench_span": -0.5, "log_quench": -1.5, "rejuvenation": 0.4,
    }  # fmt: skip

    def params(self, **values):
        return {name: jnp.asarray(value) for name, value in (self.PARAMS | values).items()}

    def test_growth_is_the_derivative_of_the_mass(self):
        with jax.enable_x64(True):
            params, t = self.params(), jnp.linspace(0.05, 13.5, 40)
            mass = jax.vmap(jax.grad(lambda t: 10.0 ** (diffstar.halo_log_mass(params, jnp.log10(t)) - 12.6)))(t)
            np.testing.assert_allclose(diffstar.halo_growth(params, t), mass, rtol=1e-10)
            np.testing.assert_allclose(diffstar.halo_log_mass(params, jnp.asarray(np.log10(13.8))), 12.6, rtol=1e-12)

    def test_quenching(self):
        params = self.params(log_t_quench=0.7, log_quench_span=np.log10(0.4), log_quench=-2.0, rejuvenation=0.25)
        log_t = jnp.array([-1.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1])
        # Full rate before, half-way down, the bottom, half-way up, and a quarter of the drop recovered ever after.
        expected = [0.0, 0.0, -1.0, -2.0, -1.75, -1.5, -1.5]
        np.testing.assert_allclose(diffstar.log_quenching(params, log_t), expected, atol=1e-5)

    def test_efficiency_peaks_at_the_critical_mass(self):
        log_mass = jnp.array([10.0, 11.0, 12.0, 13.0, 14.0])
        np.testing.assert_allclose(diffstar.log_efficiency(log_mass), [-2.0, -1.0, 0.0, -1.0, -2.0], atol=2e-3)

    @pytest.mark.parametrize("log_tau_gas", [-1.0, 0.3, 1.3])
    def test_against_the_convolution_integral(self, log_tau_gas):
        """The 8-point rule against adaptive quadrature over all that the halo accreted."""
        with jax.enable_x64(True):
            params = self.params(log_tau_gas=log_tau_gas)
            tau = 10.0**log_tau_gas
            times = np.array([0.3, 1.0, 3.0, 8.0, 13.0])
            found = np.asarray(diffstar.star_formation_rate(params, jnp.asarray(times)))
            log_t = jnp.asarray(np.log10(times))
            rest = diffstar.log_efficiency(diffstar.halo_log_mass(params, log_t)) + diffstar.log_quenching(
                params, log_t
            )
            early, late, speed = self.PARAMS["mah_early"], self.PARAMS["mah_late"], 3.5

            def track(t):
                index = early + (late - early) / (1.0 + np.exp(-speed * (np.log10(t) - self.PARAMS["log_t_halo"])))
                return (t / 13.8) ** index

            def gas(t):
                peak = tau**2 / 40.0

                def integrand(lag):
                    h = 1e-5 * (t - lag)
                    growth = (track(t - lag + h) - track(t - lag - h)) / (2.0 * h)
                    return growth * (1.0 - ((lag - peak) / (tau - peak)) ** 2) ** 3

                return quad(integrand, 0.0, min(tau, t) * (1.0 - 1e-9), limit=200)[0] / tau

            expected = np.array([gas(t) for t in times]) * 10.0 ** np.asarray(rest)
        np.testing.assert_allclose(found, expected, rtol=1e-3)

    @pytest.mark.parametrize(
        ("values", "critical", "slope", "expected"),
        [
            (
                (13.6727, 0.910049, 2.14072, 0.139107, np.log10(2.824064), 0.758878, -0.184997, -2.581602, 0.340291),
                12.292671,
                1.070647,
                (23.736523, 1.1321868, 0.2375460, 0.6561258, 0.4507112, 0.3633532),
            ),
            (
                (10.864, 0.330211, 0.9865, 0.0889898, np.log10(17.584093), 1.703842, -0.094245, -1.992260, 0.796172),
                13.380199,
                0.001,
                (0.006547989, 0.05034770, 0.1194383, 0.1642131, 0.1500167, 0.1297970),
            ),
        ],
    )
    def test_against_the_authors_own(self, monkeypatch, values, critical, slope, expected):
        """Shapes of two galaxies in the regression table of diffstar 0.1.0, at six cosmic times from 1.6 to 13.8 Gyr.

        That table sums over steps of 0.28 Gyr; its own later versions are held to 4 %.
        """
        monkeypatch.setattr(diffstar, "LOG_CRITICAL_MASS", critical)
        monkeypatch.setattr(diffstar, "SLOPE_LOW", slope)
        names = [p.name for p in diffstar.PARAMETERS]
        t = np.linspace(0.25, 13.8, 50)[[5, 15, 25, 35, 45, 49]]
        rate = np.asarray(
            diffstar.star_formation_rate(dict(zip(names, map(jnp.asarray, values), strict=True)), jnp.asarray(t))
        )
        ratio = rate / np.array(expected)
        np.testing.assert_allclose(ratio / ratio[3], 1.0, atol=0.04)

    def test_massive_haloes_form_early(self, models):
        """Downsizing, the point of tying the history to a halo."""
        model = models["diffstar", "constant", False]
        theta = put(model, draws(model), redshift=0.05, log_t_quench=2.0, mah_early=2.5, mah_late=0.3, log_tau_gas=0.3)
        old, young = (float(evaluate(model, put(model, theta, log_mhalo=m))[1]["t50"][0]) for m in (14.5, 11.5))
        assert old > young + 2.0


class TestEvolvingMetallicity:
    @pytest.mark.parametrize("history", HISTORIES)
    def test_constant_when_it_ends_where_it_starts(self, models, history):
        constant, evolving = (models[history, metallicity, False] for metallicity in ("constant", "evolving"))
        theta = put(constant, draws(constant), logzsol=np.log10(Z_START) - LOG_Z_SUN)
        np.testing.assert_allclose(joint_of(evolving, theta), joint_of(constant, theta), atol=2e-6)

    def test_mean_is_half_way(self, models):
        """Whatever the history: the integral of F over F is one half."""
        model = models["bases", "evolving", True]
        with jax.enable_x64(True):
            for one in np.asarray(draws(models["bases", "evolving", False]), float):
                params = model.space.unpack(jnp.asarray(one))
                ages = model.age_weights(params)
                z = 0.02 * 10.0 ** evolving_metallicity(params["logzsol"], ages)
                final = 0.02 * 10.0 ** params["logzsol"]
                assert float(ages @ z) == pytest.approx(float(0.5 * (Z_START + final)), rel=1e-9)
                assert bool(jnp.all(jnp.diff(z) <= 1e-12))  # older stars are poorer
                np.testing.assert_allclose(z[0], final, rtol=1e-2)  # nearly all has formed by the youngest bin

    def test_ages_are_those_of_the_history(self, models):
        constant, evolving = (models["bases", metallicity, False] for metallicity in ("constant", "evolving"))
        theta = draws(constant)
        np.testing.assert_allclose(
            joint_of(evolving, theta).sum(axis=1), joint_of(constant, theta).sum(axis=1), atol=1e-6
        )

    def test_unknown(self):
        with pytest.raises(SettingsError, match="metallicity must be one of 'constant', 'evolving', got 'closed_box'"):
            from_mapping(ModelConfig, {"metallicity": "closed_box"}, "model")


@pytest.mark.parametrize("history", ["bases", *(pytest.param(h, marks=pytest.mark.slow) for h in HISTORIES[1:])])
@pytest.mark.parametrize("metallicity", ["constant", pytest.param("evolving", marks=pytest.mark.slow)])
def test_photometry_against_the_full_integral(history, metallicity):
    """The table route between its redshift nodes, dust included, with either metallicity."""
    model = build_galaxy_model(ModelConfig(sfh=history), {"redshift": (0.1, 0.106)})
    table = build_photometry_table(model, ["sdss_u0", "sdss_r0"])
    filters = [load_filter(name) for name in table.filters]
    wave, theta = np.asarray(model.ssp.wave, float), draws(model, 12)
    z, log_mass = (np.asarray(theta[:, model.space.index(name)], float) for name in ("redshift", "log_mass"))
    one = model.replace(config=ModelConfig(sfh=history, metallicity=metallicity))
    both = jax.jit(jax.vmap(lambda t: (flux(table, one, t), one.spectrum(t), dimming(one, one.space.unpack(t)))))
    found, spectra, dim = (np.asarray(values, float) for values in both(theta))
    per_mass = spectra / 10.0 ** log_mass[:, None]
    whole = np.stack([integrate_spectrum(wave, s, r, filters, 5000) for s, r in zip(per_mass, z, strict=True)])
    assert np.abs(2.5 * np.log10(found / (whole * dim[:, None]))).max() < 0.01
