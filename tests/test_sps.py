"""Stellar populations: histories, dust and spectra against DSPS's own route, direct integrals and published formulas."""

import itertools

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from popsed_jax.data import data_path
from popsed_jax.sps.config import ModelConfig
from popsed_jax.sps.dust import birth_cloud_optical_depth, diffuse_optical_depth, transmission
from popsed_jax.sps.galaxy import build_galaxy_model
from popsed_jax.sps.metallicity import LOG_Z_SUN, metallicity_weights
from popsed_jax.sps.sfh import build_sfh, load_bases, stick_breaking
from popsed_jax.sps.ssp import load_ssp

# Importing these switches the 64-bit mode on, as `popsed_jax._dsps` explains.
_X64 = jax.config.read("jax_enable_x64")
from dsps.sed.stellar_age_weights import _get_lg_age_bin_edges  # noqa: E402
from dsps.sed.stellar_sed import calc_rest_sed_sfh_table_lognormal_mdf  # noqa: E402

jax.config.update("jax_enable_x64", _X64)

HISTORIES = ("bases", "delayed_tau", "burst")
NUM = 12


@pytest.fixture(scope="module")
def models():
    """One galaxy model of each history, in single and double precision, by (history, x64)."""
    found = {}
    for x64 in (False, True):
        with jax.enable_x64(x64):
            for history in HISTORIES:
                found[history, x64] = build_galaxy_model(ModelConfig(sfh=history))
    return found


def draws(model, num: int = NUM) -> jax.Array:
    return model.space.sample_flat(jax.random.key(3), num)


def weights_of(model, theta):
    return jax.jit(jax.vmap(lambda one: model.age_weights(model.space.unpack(one))))(theta)


def put(model, theta, **values):
    for name, value in values.items():
        theta = theta.at[..., model.space.index(name)].set(value)
    return theta


def rate(history: str, params: dict[str, float], age_universe: float):
    """SFR of one solar mass formed at cosmic time t [1/Gyr], from its definition."""
    if history == "bases":
        x, density = load_bases()
        parts = np.asarray(stick_breaking(jnp.array([params[f"kappa{k}"] for k in (1, 2, 3)])), float)
        return lambda t: (
            sum(w * np.interp(t / age_universe, x, d) for w, d in zip(parts, density, strict=True)) / (age_universe)
        )
    duration, tau = age_universe * (1.0 - params["start_fraction"]), 10.0 ** params["log_tau"]
    a = duration / tau
    norm = tau**2 * (1.0 - (1.0 + a) * np.exp(-a))  # the integral of t exp(-t / tau)

    def delayed(t):
        since = np.maximum(t - (age_universe - duration), 0.0)
        return since * np.exp(-since / tau) / norm

    return delayed


def integrals(function, edges: np.ndarray) -> np.ndarray:
    """Mass formed between the falling cosmic times of the edges."""
    return np.array([quad(function, low, high)[0] for high, low in itertools.pairwise(edges)])


class TestHistories:
    def test_delayed_tau_in_single_precision(self, models):
        """Every bin, the youngest too, against the closed-form integral of t exp(-t / tau) in double precision."""
        model = models["delayed_tau", False]
        theta = draws(model, 40)
        found = np.asarray(weights_of(model, theta), float)
        edges = np.asarray(models["delayed_tau", True].age_edges, float)
        for one, weights in zip(np.asarray(theta, float), found, strict=True):
            params = dict(zip(model.space.names, one, strict=True))
            age = float(model.cosmology.age(jnp.asarray(params["redshift"])))
            start = params["start_fraction"] * age
            clipped = np.minimum(edges, age - start)
            expected = integrals(rate("delayed_tau", params, age), age - clipped)
            np.testing.assert_allclose(weights, expected, rtol=2e-3, atol=3e-4)
            young = (edges[1:] < 0.05) & (expected > 1e-12)
            np.testing.assert_allclose(weights[young], expected[young], rtol=2e-3)

    def test_bases_are_tabulated_integrals(self, models):
        model = models["bases", True]
        theta = np.asarray(put(models["bases", False], draws(models["bases", False]), f_burst=0.0), float)
        edges = np.asarray(model.age_edges)
        with jax.enable_x64(True):
            found = np.asarray(weights_of(model, jnp.asarray(theta)))
            ages = np.asarray(model.cosmology.age(jnp.asarray(theta[:, model.space.index("redshift")])))
        for one, weights, age in zip(theta, found, ages, strict=True):
            function = rate("bases", dict(zip(model.space.names, one, strict=True)), age)
            t = np.linspace(0.0, age, 400_001)
            cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (function(t[1:]) + function(t[:-1])) * np.diff(t))])
            formed = np.interp(np.clip(age - edges, 0.0, age), t, cumulative)
            # Linear in redshift between nodes 0.002 apart: 1e-5 but for the bin that holds the Big Bang.
            np.testing.assert_allclose(weights, -np.diff(formed), atol=3e-4)

    def test_bases_are_densities(self):
        x, density = load_bases()
        assert density.shape[0] == 4
        assert density.min() >= 0.0
        np.testing.assert_allclose(np.trapezoid(density, x, axis=1), 1.0, rtol=1e-12)

    def test_basis_and_burst(self, models):
        """The burst adds its fraction on two neighbouring ages, at their mean log age; the bases shrink by it."""
        model = models["bases", False]
        theta = put(model, draws(model), redshift=0.05)
        without = np.asarray(weights_of(model, put(model, theta, f_burst=0.0)), float)
        with_burst = np.asarray(weights_of(model, put(model, theta, f_burst=0.3, t_burst=0.123)), float)
        burst = (with_burst - 0.7 * without) / 0.3
        np.testing.assert_allclose(burst.sum(axis=1), 1.0, atol=1e-5)
        assert np.all((np.abs(burst) > 1e-5).sum(axis=1) == 2)
        np.testing.assert_allclose(burst @ np.asarray(model.ssp.log_age, float), np.log10(0.123), atol=1e-5)

    def test_a_burst_before_the_big_bang_is_at_it(self, models):
        model = models["burst", False]
        theta = put(model, draws(model), redshift=0.7)
        age = model.cosmology.age(jnp.asarray(0.7))
        late, early = (weights_of(model, put(model, theta, t_burst=t)) for t in (age, 13.0))
        np.testing.assert_allclose(early, late, atol=3e-6)  # a float32 rounding of the age over a bin of 0.03 dex

    def test_unknown_history(self):
        with pytest.raises(
            ValueError, match="no star-formation history 'tau'; choose one of bases, delayed_tau, burst"
        ):
            build_sfh("tau")


@pytest.mark.parametrize("history", ["bases", pytest.param("delayed_tau", marks=pytest.mark.slow)])
class TestAgainstDSPS:
    @staticmethod
    def compare(model, theta, history) -> np.ndarray:
        """Largest relative difference of the spectra of every galaxy, 912 Angstrom to 5 micron."""
        wave = np.asarray(model.ssp.wave)
        inside = (wave > 912.0) & (wave < 5e4)
        ours = np.asarray(jax.jit(jax.vmap(model.spectrum))(theta))
        worst = []
        for one, spectrum in zip(np.asarray(theta), ours, strict=True):
            params = dict(zip(model.space.names, one, strict=True))
            age = float(model.cosmology.age(jnp.asarray(params["redshift"])))
            # Dense after the Big Bang and before the observation; DSPS starts its histories at 1 Myr.
            lookback = np.geomspace(1e-6, 0.7 * age, 6000)
            t = np.unique(np.concatenate([np.geomspace(1.001e-3, 0.3 * age, 3000), age - lookback, [age]]))
            sfr = 10.0 ** params["log_mass"] * rate(history, params, age)(t) / 1e9
            theirs = calc_rest_sed_sfh_table_lognormal_mdf(
                t, sfr, params["logzsol"] + LOG_Z_SUN, 0.2, model.ssp.log_met, model.ssp.log_age, model.ssp.lum_nu, age
            )
            worst.append(np.abs(spectrum / np.asarray(theirs.rest_sed) - 1.0)[inside].max())
        return np.array(worst)

    @staticmethod
    def dustless(models, history):
        single = models[history, False]
        theta = put(single, draws(single, 6), tau_v=0.0, tau_birth=0.0)
        return put(single, theta, f_burst=0.0) if history == "bases" else theta

    def test_with_their_age_bins(self, models, history):
        model = models[history, True]
        theta = self.dustless(models, history)
        with jax.enable_x64(True):
            edges = 10.0 ** np.asarray(_get_lg_age_bin_edges(model.ssp.log_age))
            ages = np.asarray(model.cosmology.age(jnp.asarray(model.grid.redshift)))
            basis_ages = jnp.asarray(model.sfh.basis_age_weights(ages, edges))
            same = model.replace(age_edges=jnp.asarray(edges), basis_ages=basis_ages)
            # 1e-5 but for short tau, where their cumulative trapezoids are good to 6e-5.
            assert self.compare(same, jnp.asarray(theta, jnp.float64), history).max() < 1e-4

    def test_with_our_age_bins(self, models, history):
        """Their edges are not the midpoints where the templates' spacing changes, and their first bin leaves out the youngest
        stars (`age_bin_edges`): 1 to 3 % in the spectrum; tests/test_dsps.py has templates where neither is so."""
        theta = self.dustless(models, history)
        with jax.enable_x64(True):
            worst = self.compare(models[history, True], jnp.asarray(theta, jnp.float64), history)
        assert worst.max() < 0.04
        assert np.median(worst) > 1e-3


class TestDerived:
    @pytest.mark.parametrize("history", ["bases", "delayed_tau"])
    def test_against_direct_integrals(self, models, history):
        model = models[history, True]
        single = models[history, False]
        theta = draws(single)
        theta = np.asarray(put(single, theta, f_burst=0.0) if history == "bases" else theta, float)
        with jax.enable_x64(True):
            found = {k: np.asarray(v) for k, v in jax.vmap(model.derived)(jnp.asarray(theta)).items()}
            met = np.asarray(jax.vmap(lambda t: model.metallicity_weights(model.space.unpack(t)))(jnp.asarray(theta)))
            surviving_by_age = met @ np.asarray(model.ssp.surviving)
            ages = np.asarray(model.cosmology.age(jnp.asarray(theta[:, model.space.index("redshift")])))
            log_age = np.asarray(model.ssp.log_age)
        for i, one in enumerate(theta):
            params = dict(zip(model.space.names, one, strict=True))
            function = rate(history, params, ages[i])
            lookback = np.concatenate([[0.0], np.geomspace(1e-6, ages[i], 200_001)])
            formed = function(ages[i] - lookback)
            with np.errstate(divide="ignore"):
                left = np.interp(np.log10(lookback), log_age, surviving_by_age[i])
            surviving = np.trapezoid(formed * left, lookback)
            mean_age = np.trapezoid(formed * lookback, lookback)
            recent = lookback <= 0.1
            sfr = np.trapezoid(formed[recent], lookback[recent]) / 0.1  # per solar mass formed [1/Gyr]
            # Bins 0.03 to 0.15 dex wide stand for one age each: 0.5 % in mass, 2 % in age.
            assert found["log_mass_surviving"][i] == pytest.approx(params["log_mass"] + np.log10(surviving), abs=2e-3)
            assert found["age_mw"][i] == pytest.approx(mean_age, rel=0.02)
            younger = np.concatenate([[0.0], np.cumsum(0.5 * (formed[1:] + formed[:-1]) * np.diff(lookback))])
            assert found["t50"][i] == pytest.approx(np.interp(0.5 * younger[-1], younger, lookback), rel=0.01)
            if sfr / surviving > 1e-3:  # where the floor of 1e-13 / yr is far
                # The bin that holds 0.1 Gyr counts by its fraction.
                assert found["log_sfr"][i] == pytest.approx(params["log_mass"] + np.log10(sfr / 1e9), abs=0.01)
                difference = found["log_sfr"][i] - found["log_mass_surviving"][i]
                assert found["log_ssfr"][i] == pytest.approx(difference, abs=1e-9)

    def test_floor_of_the_specific_rate(self, models):
        model = models["burst", False]
        old = model.derived(put(model, draws(model)[0], t_burst=5.0, log_mass=11.0))
        assert float(old["log_ssfr"]) == pytest.approx(-13.0, abs=1e-5)
        assert float(old["log_sfr"] - old["log_mass_surviving"]) == pytest.approx(-13.0, abs=1e-5)
        young = model.derived(put(model, draws(model)[0], t_burst=0.02))
        # All of the mass within the last 0.1 Gyr.
        assert float(young["log_sfr"]) == pytest.approx(
            float(draws(model)[0, model.space.index("log_mass")]) - 8.0, abs=1e-3
        )


class TestMetallicity:
    def test_mean_and_normalisation(self, galaxy):
        log_met = np.asarray(galaxy.ssp.log_met)
        for logzsol in (-1.5, -0.5, 0.0):
            weights = np.asarray(metallicity_weights(jnp.asarray(logzsol), log_met, 0.2), float)
            assert weights.min() >= 0.0
            assert weights.sum() == pytest.approx(1.0, abs=1e-6)
            # Templates up to 1 dex apart stand for the distribution: the mean is good to a quarter of the gap.
            gap = np.diff(log_met)[np.searchsorted(log_met, logzsol + LOG_Z_SUN) - 1]
            assert weights @ log_met == pytest.approx(logzsol + LOG_Z_SUN, abs=0.25 * float(gap))

    def test_metal_rich_is_redder(self, galaxy):
        theta = put(galaxy, galaxy.space.sample_flat(jax.random.key(0), 1)[0], f_burst=0.0, tau_v=0.0, tau_birth=0.0)
        wave = np.asarray(galaxy.ssp.wave)
        ratios = []
        for logzsol in (-1.0, 0.2):
            spectrum = np.asarray(galaxy.spectrum(put(galaxy, theta, logzsol=logzsol)), float)
            ratios.append(np.interp(4200.0, wave, spectrum) / np.interp(8000.0, wave, spectrum))
        assert ratios[1] < 0.85 * ratios[0]


class TestDust:
    WAVE = np.array([1000.0, 1400.0, 1800.0, 2175.0, 3000.0, 4400.0, 5500.0, 6500.0, 9000.0, 15000.0])

    @staticmethod
    def calzetti(wave):
        """k(lambda) of Calzetti+00, eq. 4, in the optical; Leitherer+02, eq. 14, below 1500 Angstrom."""
        x = 1e4 / wave
        blue = 2.659 * (-2.156 + 1.509 * x - 0.198 * x**2 + 0.011 * x**3) + 4.05
        red = 2.659 * (-1.857 + 1.040 * x) + 4.05
        far = 5.472 + 0.671 * x - 9.218e-3 * x**2 + 2.620e-3 * x**3
        return np.where(wave <= 1500.0, far, np.where(wave < 6300.0, blue, red))

    @staticmethod
    def bump(wave, amplitude):
        """Drude profile at 2175 Angstrom, 350 wide. (Kriek & Conroy 2013, eq. 2)"""
        return amplitude * (wave * 350.0) ** 2 / ((wave**2 - 2175.0**2) ** 2 + (wave * 350.0) ** 2)

    @pytest.mark.parametrize("dust_index", [0.0, -0.7, 0.3])
    def test_diffuse_dust(self, dust_index):
        # Kriek & Conroy 2013, eq. 1-3: tau_v / 4.05 (k + bump) (lambda / 5500)^delta, bump 0.85 - 1.9 delta.
        k = self.calzetti(self.WAVE) + self.bump(self.WAVE, 0.85 - 1.9 * dust_index)
        expected = 0.8 / 4.05 * k * (self.WAVE / 5500.0) ** dust_index
        found = diffuse_optical_depth(jnp.asarray(self.WAVE), jnp.asarray(0.8), jnp.asarray(dust_index))
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_without_bump_it_is_calzetti(self):
        """The bump vanishes at delta = 0.85 / 1.9; taking the slope out again leaves Calzetti's curve."""
        delta = 0.85 / 1.9
        found = diffuse_optical_depth(jnp.asarray(self.WAVE), jnp.asarray(1.0), jnp.asarray(delta))
        np.testing.assert_allclose(found * (self.WAVE / 5500.0) ** -delta, self.calzetti(self.WAVE) / 4.05, rtol=1e-5)

    def test_tau_v_is_the_depth_at_5500(self):
        found = diffuse_optical_depth(jnp.array([5500.0]), jnp.asarray(1.3), jnp.asarray(-0.4))
        # Calzetti's k there is 4.03, not 4.05, and the foot of the bump adds 0.02.
        assert float(found[0]) == pytest.approx(1.3, rel=0.02)

    def test_birth_cloud(self):
        depth = birth_cloud_optical_depth(jnp.asarray(self.WAVE), jnp.asarray(0.6))
        np.testing.assert_allclose(depth, 0.6 * 5500.0 / self.WAVE, rtol=1e-6)

    def test_young_stars_see_both(self):
        values = [jnp.asarray(v) for v in (0.8, 0.6, -0.3)]
        old, young = transmission(jnp.asarray(self.WAVE), *values)
        diffuse = diffuse_optical_depth(jnp.asarray(self.WAVE), values[0], values[2])
        np.testing.assert_allclose(old, np.exp(-diffuse), rtol=1e-5)
        np.testing.assert_allclose(young, np.exp(-diffuse - 0.6 * 5500.0 / self.WAVE), rtol=1e-5)

    def test_no_dust_transmits_everything(self):
        zero = jnp.zeros(())
        for part in transmission(jnp.asarray(self.WAVE), zero, zero, jnp.asarray(-0.5)):
            np.testing.assert_array_equal(part, 1.0)

    def test_birth_cloud_dims_only_stars_younger_than_10_myr(self, models):
        model = models["burst", False]
        theta = put(model, draws(model)[0], tau_v=0.0, logzsol=0.0)
        for t_burst, dimmed in ((0.008, True), (0.02, False)):
            cloudy, clear = (model.spectrum(put(model, theta, t_burst=t_burst, tau_birth=tau)) for tau in (1.0, 0.0))
            assert bool(jnp.any(cloudy < 0.9 * clear)) is dimmed


class TestTemplates:
    def test_shipped(self):
        ssp = load_ssp("nebular")
        assert ssp.lum_nu.shape == (len(ssp.log_met), len(ssp.log_age), len(ssp.wave))
        assert ssp.sha256

    def test_unknown(self):
        with pytest.raises(FileNotFoundError, match="no SSP templates 'stelar': use one of stellar, nebular"):
            load_ssp("stelar")

    def test_a_file_without_the_arrays(self, tmp_path):
        path = tmp_path / "ssp.h5"
        with h5py.File(path, "w") as file:
            file["ssp_wave"] = np.arange(3.0)
        with pytest.raises(ValueError, match="not in the layout of DSPS, without ssp_flux, ssp_lg_age_gyr, ssp_lgmet"):
            load_ssp(str(path))

    @pytest.mark.parametrize(
        ("change", "message"),
        [("negative", "ssp_flux holds negative or non-finite values"), ("mass", "without surviving_mass_fraction")],
    )
    def test_files_that_cannot_be_templates(self, tmp_path, change, message):
        path = tmp_path / "ssp.h5"
        with h5py.File(data_path("ssp_stellar")) as source, h5py.File(path, "w") as file:
            for name in ("ssp_lgmet", "ssp_lg_age_gyr", "ssp_wave"):
                file[name] = source[name][()]
            flux = np.ones((len(source["ssp_lgmet"]), len(source["ssp_lg_age_gyr"]), len(source["ssp_wave"])), "f4")
            if change == "negative":
                flux[0, 0, 0] = -1.0
                file["surviving_mass_fraction"] = source["surviving_mass_fraction"][()]
            file["ssp_flux"] = flux
        with pytest.raises(ValueError, match=message):
            load_ssp(str(path))


class TestModelErrors:
    def test_settings(self):
        with pytest.raises(ValueError, match=r"model: metallicity_scatter = 0.0 dex is not between"):
            ModelConfig(metallicity_scatter=0.0)

    def test_bounds(self):
        with pytest.raises(ValueError, match=r"redshift starts at 0.0; distances need at least"):
            build_galaxy_model(bounds={"redshift": (0.0, 1.0)})
        with pytest.raises(KeyError, match="did you mean 'logzsol'"):
            build_galaxy_model(bounds={"logzsun": (0.0, 1.0)})
