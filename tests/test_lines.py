"""Emission lines as outputs of the model: case B, equivalent widths by integration, attenuation, calibration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.observe.filters import load_filter
from popsed_jax.observe.operators import LSUN_PER_HZ_AT_10PC
from popsed_jax.observe.photometry import build_photometry_table, dimming, flux
from popsed_jax.settings import SettingsError, from_mapping
from popsed_jax.sps.config import LineCalibration, ModelConfig
from popsed_jax.sps.dust import transmission
from popsed_jax.sps.galaxy import build_galaxy_model
from popsed_jax.sps.nebular import LYMAN_LIMIT, log_ionising_photons
from popsed_jax.sps.spectrum import LIGHT, luminosity
from popsed_jax.sps.ssp import load_ssp

H_ALPHA, H_BETA, O3 = "H  1  6562.80A", "H  1  4861.32A", "O  3  5006.84A"
GAS = {"ssp": "stellar", "nebular": True}
REDSHIFTS = {"redshift": (0.05, 0.15)}
NUM = 24


def build(**settings):
    return build_galaxy_model(ModelConfig(**GAS, **settings), REDSHIFTS, redshift_step=0.05)


def put(model, theta, **values):
    for name, value in values.items():
        theta = theta.at[..., model.space.index(name)].set(value)
    return theta


@pytest.fixture(scope="module")
def free():
    """Gas of its own metallicity, which is at most solar."""
    return build(gas_metallicity="free")


@pytest.fixture(scope="module")
def draws(free):
    """Galaxies with young stars in all of them."""
    return put(free, free.space.sample_flat(jax.random.key(4), NUM), f_burst=0.05, t_burst=0.01)


@pytest.fixture(scope="module")
def lines(free):
    return jax.jit(jax.vmap(free.lines))


def test_h_alpha_counts_the_ionising_photons(free, draws, lines):
    """1.37e-12 erg a photon (case B at 1e4 K; Kennicutt 1998) within 20 % through the whole model, for gas up to solar."""
    theta = put(free, draws, tau_v=0.0, tau_birth=0.0)
    lum = np.asarray(lines(theta).lum, float)[:, free.gas.grid.line(H_ALPHA)]
    stars = load_ssp("stellar")
    lum_nu = jnp.asarray(stars.lum_nu.reshape(-1, len(stars.wave)))
    # Per solar mass: the photons of a whole galaxy overflow single precision before the logarithm is taken.
    weights = jax.vmap(lambda one: free.joint_weights(free.space.unpack(one)))(theta) * free.gas.grid.has_nebula
    log_q = jax.vmap(lambda w: log_ionising_photons(stars.wave, w.ravel() @ lum_nu))(weights)
    log_mass = np.asarray(theta[:, free.space.index("log_mass")], float)
    energy = lum * 3.828e33 / 10.0 ** (log_mass + np.asarray(log_q, float))
    np.testing.assert_allclose(energy, 1.37e-12, rtol=0.2)


@pytest.mark.parametrize("name", [H_ALPHA, pytest.param(O3, marks=pytest.mark.slow)])
def test_equivalent_width_is_the_integral_of_the_spectrum(free, draws, lines, name):
    """The spectrum with the line over the spectrum without it, less one, integrated over wavelength; dust and all."""
    without = build(gas_metallicity="free", line_calibration=(LineCalibration(name, -1.0 + 1e-7),))
    index, wave = free.gas.grid.line(name), np.asarray(free.ssp.wave, float)
    full, bare = (np.asarray(jax.jit(jax.vmap(model.spectrum))(draws), float) for model in (free, without))
    near = np.abs(wave - float(free.gas.grid.line_wave[index])) < 60.0
    # Beyond the line the two spectra are the same to the rounding of single precision.
    np.testing.assert_allclose(full[:, ~near], bare[:, ~near], rtol=3e-6)
    excess = (full - bare)[:, near]
    width = np.trapezoid(excess / bare[:, near], wave[near], axis=1)
    found = lines(draws)
    # The continuum under a line of 10 Angstrom is not constant: stars absorb there, and [N II] stands beside H alpha.
    np.testing.assert_allclose(found.equivalent_width[:, index], width, rtol=0.06)
    power = np.trapezoid(excess * LIGHT / wave[near] ** 2, wave[near], axis=1)
    np.testing.assert_allclose(found.lum[:, index], power, rtol=2e-3)


@pytest.mark.slow
def test_energy(free, draws, lines):
    """All lines together are what the gas emits beyond its continuum."""
    theta = put(free, draws, tau_v=0.0, tau_birth=0.0)
    none = tuple(LineCalibration(name, -1.0 + 1e-7) for name in free.gas.grid.line_name)
    continuum = build(gas_metallicity="free", line_calibration=none)
    wave, grid = free.ssp.wave, free.gas.grid
    with_lines, without = (jax.jit(jax.vmap(model.components))(theta).gas for model in (free, continuum))
    inside = np.asarray((grid.line_wave > wave[0]) & (grid.line_wave < wave[-1]))
    expected = jax.vmap(lambda a, b: luminosity(wave, a - b))(with_lines, without)
    np.testing.assert_allclose(
        np.asarray(lines(theta).lum)[:, inside].sum(axis=1), expected, rtol=5e-3
    )  # pixels of 100 Angstrom in the infrared


@pytest.mark.slow
def test_gas_of_young_stars_is_behind_their_cloud():
    """A burst at 10 Myr is inside the cloud, one at 20 Myr is not: the lines are dimmed as the law says for either."""
    model = build(sfh="burst")
    theta = put(model, model.space.sample_flat(jax.random.key(0), 1)[0], log_u=-2.5, logzsol=-0.3, log_mass=10.0)
    wave, lines = model.gas.grid.line_wave, jax.jit(model.lines)
    for age, cloud in ((0.01, 1), (0.02, 0)):
        clear = lines(put(model, theta, t_burst=age, tau_v=0.0, tau_birth=0.0)).lum
        dusty = lines(put(model, theta, t_burst=age, tau_v=0.4, tau_birth=1.1, dust_index=-0.2)).lum
        through = transmission(wave, *map(jnp.asarray, (0.4, 1.1, -0.2)))[cloud]
        lit = np.asarray((clear > 0.0) & (wave > LYMAN_LIMIT))
        np.testing.assert_allclose(np.asarray(dusty / clear)[lit], np.asarray(through)[lit], rtol=1e-4)
    reddened = lines(put(model, theta, t_burst=0.01, tau_v=0.4, tau_birth=1.1)).lum
    assert float(reddened[model.gas.grid.line(H_ALPHA)] / reddened[model.gas.grid.line(H_BETA)]) > 3.3


def test_calibration_changes_its_line_and_no_other(free, draws, lines):
    changed = build(gas_metallicity="free", line_calibration=(LineCalibration(H_BETA, 0.25, 0.1),))
    index = free.gas.grid.line(H_BETA)
    before, after = np.asarray(lines(draws).lum), np.asarray(jax.jit(jax.vmap(changed.lines))(draws).lum)
    np.testing.assert_allclose(after[:, index], 1.25 * before[:, index], rtol=1e-5)
    np.testing.assert_array_equal(np.delete(after, index, axis=1), np.delete(before, index, axis=1))
    deviate = jnp.zeros(before.shape[1]).at[index].set(2.0)
    scattered = np.asarray(jax.jit(jax.vmap(lambda one: changed.lines(one, deviate)))(draws).lum)
    np.testing.assert_allclose(scattered[:, index], 1.45 * before[:, index], rtol=1e-5)
    np.testing.assert_allclose(np.delete(scattered, index, axis=1), np.delete(before, index, axis=1), rtol=3e-5)


@pytest.mark.slow
def test_calibration_reaches_the_photometry(free, draws, lines):
    """At z = 0.1 H alpha is in SDSS i and not in g; half of the line more adds half of its photons to i."""
    changed = build(gas_metallicity="free", line_calibration=(LineCalibration(H_ALPHA, 0.5),))
    redshift = float(free.grid.redshift[1])
    theta = put(free, draws, redshift=redshift, tau_v=0.3, tau_birth=0.3, f_burst=0.98)
    fluxes = []
    for model in (free, changed):
        table = build_photometry_table(model, ("sdss_g0", "sdss_i0"))
        fluxes.append(np.asarray(jax.jit(jax.vmap(lambda one, m=model, t=table: flux(t, m, one)))(theta), float))
    np.testing.assert_allclose(fluxes[1][:, 0], fluxes[0][:, 0], rtol=2e-6)
    index, curve = free.gas.grid.line(H_ALPHA), load_filter("sdss_i0")
    rest = float(free.gas.grid.line_wave[index])
    # A line in L_nu through a photon-counting filter: L lambda T / c over the integral of T / lambda.
    through = np.interp((1.0 + redshift) * rest, curve.wave, curve.trans) / np.trapezoid(
        curve.trans / curve.wave, curve.wave
    )
    lum = 0.5 * np.asarray(lines(theta).lum, float)[:, index]
    far = float(dimming(free, {"redshift": jnp.asarray(redshift), "log_mass": jnp.zeros(())}))
    expected = lum * rest / LIGHT * through * LSUN_PER_HZ_AT_10PC * far
    assert np.all(expected > 1e-3 * fluxes[0][:, 1])
    np.testing.assert_allclose(fluxes[1][:, 1] - fluxes[0][:, 1], expected, rtol=0.02)


@pytest.mark.slow
def test_gradients():
    with jax.enable_x64(True):
        model = build(attenuation="calzetti")
        theta = put(model, model.space.sample_flat(jax.random.key(9), 4), f_burst=0.05, t_burst=0.0123)

        def outputs(one):
            found = model.lines(one)
            names = [model.gas.grid.line(name) for name in (H_ALPHA, H_BETA, O3)]
            return jnp.log(jnp.concatenate([found.lum[jnp.array(names)], found.equivalent_width[jnp.array(names)]]))

        value, slope = jax.jit(jax.vmap(outputs)), jax.jit(jax.vmap(jax.jacfwd(outputs)))(theta)
        for i, parameter in enumerate(model.space.parameters):
            h = jnp.zeros(len(model.space)).at[i].set(1e-6 * (parameter.high - parameter.low))
            if parameter.name == "t_burst":
                h = h.at[i].set(1e-8)
            numeric = (value(theta + h) - value(theta - h)) / (2.0 * h[i])
            np.testing.assert_allclose(slope[:, :, i], numeric, rtol=1e-5, atol=1e-6, err_msg=parameter.name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"line_calibration": [{"name": H_ALPHA}]}, "line_calibration needs nebular = true"),
        (
            {**GAS, "line_calibration": [{"name": H_ALPHA}] * 2},
            "line_calibration names 'H  1  6562.80A' more than once",
        ),
        ({**GAS, "line_calibration": [{"name": H_ALPHA, "offset": -1.0}]}, "offset = -1.0 must be above -1"),
        ({**GAS, "line_calibration": [{"name": H_ALPHA, "scatter": -0.1}]}, "scatter = -0.1 must be finite"),
        ({**GAS, "line_calibration": [{"line": H_ALPHA}]}, "no setting 'line'"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(SettingsError, match=message):
        from_mapping(ModelConfig, settings, "model")


def test_unknown_line():
    with pytest.raises(ValueError, match=r"no nebular line 'H 1 6562\.8A'; the nearest are 'H  1  6562\.80A'"):
        build(line_calibration=(LineCalibration("H 1 6562.8A", 0.1),))


def test_no_gas(galaxy):
    with pytest.raises(ValueError, match="lines: the model follows no gas; set nebular = true"):
        galaxy.lines(galaxy.space.sample_flat(jax.random.key(0), 1)[0])
