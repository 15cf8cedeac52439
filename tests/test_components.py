"""Gas, dust emission, nucleus, laws and the intergalactic medium in whole galaxies: tables against full integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.observe.filters import load_filter
from popsed_jax.observe.forward import build_forward_model
from popsed_jax.observe.operators import integrate_spectrum
from popsed_jax.observe.photometry import build_photometry_table, dimming, flux
from popsed_jax.observe.selection import MagnitudeLimit, SelectionConfig
from popsed_jax.population.reference import ReferenceConfig, build_library, draw_hyper, sample_reference
from popsed_jax.settings import SettingsError, from_mapping
from popsed_jax.sps.config import ModelConfig
from popsed_jax.sps.galaxy import build_galaxy_model
from popsed_jax.sps.igm import igm_transmission
from popsed_jax.sps.nebular import LYMAN_LIMIT
from popsed_jax.sps.spectrum import luminosity

REDSHIFTS = {"redshift": (0.05, 0.35)}
STEP = 0.02  # coarse: draws are put on nodes, between which interpolation is another matter
CASES = {
    "gas": (ModelConfig(ssp="stellar", nebular=True), ("galex_FUV", "sdss_u0", "sdss_r0")),
    "free gas": (ModelConfig(ssp="stellar", nebular=True, gas_metallicity="free"), ("sdss_g0", "sdss_z0")),
    "dust": (ModelConfig(dust_emission=True), ("sdss_g0", "wise_w1", "wise_w3", "wise_w4")),
    "nucleus": (ModelConfig(agn=True), ("galex_NUV", "sdss_i0", "wise_w1")),
    "all": (
        ModelConfig(ssp="stellar", nebular=True, dust_emission=True, agn=True, attenuation="calzetti"),
        ("sdss_u0", "sdss_r0", "wise_w2", "wise_w4"),
    ),
    "power law": (ModelConfig(attenuation="power_law"), ("galex_FUV", "sdss_r0", "twomass_Ks")),
    "smc": (ModelConfig(attenuation="smc"), ("sdss_u0", "sdss_r0")),
}


# "all" has the parts of the others.
SLOW = {"gas", "free gas", "dust", "nucleus", "power law"}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES]
)
def case(request):
    """Name, model, table, and 24 flat draws on a node of redshift."""
    config, filters = CASES[request.param]
    model = build_galaxy_model(config, REDSHIFTS, redshift_step=STEP)
    table = build_photometry_table(model, filters)
    draws = model.space.sample_flat(jax.random.key(5), 24)
    draws = draws.at[:, model.space.index("redshift")].set(float(model.grid.redshift[5]))
    return request.param, model, table, draws


def test_tables_match_the_full_integral(case):
    _, model, table, draws = case
    found = np.asarray(jax.jit(jax.vmap(lambda one: flux(table, model, one)))(draws), float)
    parts = jax.jit(jax.vmap(model.components))(draws)
    wave, redshift = np.asarray(model.ssp.wave, float), float(model.grid.redshift[5])
    through = np.asarray(igm_transmission(wave * (1.0 + redshift), redshift), float)
    curves = [load_filter(name) for name in table.filters]
    expected, free = (
        np.stack([integrate_spectrum(wave, s * through, redshift, curves) for s in np.asarray(spectra, float)])
        for spectra in (parts.total, parts.unattenuated)
    )
    factor = float(dimming(model, {"redshift": jnp.asarray(redshift), "log_mass": jnp.zeros(())}))
    # Beyond 7.5 mag of attenuation, where the far ultraviolet is gone, the nodes are not asked for the relative error.
    error = np.abs(2.5 * np.log10(found / (expected * factor)))[expected > 1e-3 * free]
    # The dust's polynomial within a filter is the limit, as for stars alone; the worst of all draws measured is 0.0132.
    assert error.max() < 0.02
    assert np.quantile(error, 0.95) < 0.01
    assert np.median(error) < 1e-3


@pytest.mark.slow
def test_gradients_are_finite_and_none_is_dead(case):
    name, model, table, draws = case
    slopes = np.asarray(jax.jit(jax.vmap(jax.jacrev(lambda one: jnp.log(flux(table, model, one)))))(draws), float)
    assert np.all(np.isfinite(slopes))
    strongest = np.abs(slopes).max(axis=(0, 1))
    # A burst moves no flux where the model has none.
    dead = [p for p, value in zip(model.space.names, strongest, strict=True) if value == 0]
    assert not dead, f"{name}: no slope along {dead}"


@pytest.mark.slow
def test_gradients_are_finite_on_the_bounds(case):
    _, model, table, _ = case
    slope = jax.jit(jax.jacrev(lambda one: flux(table, model, one) / flux(table, model, one).sum()))
    for bound in ("low", "high"):
        corner = jnp.array([getattr(p, bound) for p in model.space.parameters])
        assert bool(jnp.all(jnp.isfinite(slope(corner))))


def test_absorbed_is_emitted():
    model = build_galaxy_model(CASES["all"][0], REDSHIFTS, redshift_step=STEP)
    draws = model.space.sample_flat(jax.random.key(6), 40)
    parts = jax.jit(jax.vmap(model.components))(draws)
    wave = model.ssp.wave
    power = jax.jit(jax.vmap(lambda lum_nu: luminosity(wave, lum_nu)))
    lost = jnp.where(wave >= LYMAN_LIMIT, parts.unattenuated - parts.stars - parts.gas, 0.0)
    ratio = np.asarray(power(parts.dust) / power(lost), float)
    np.testing.assert_allclose(ratio, 1.0, atol=0.01)
    assert np.ptp(np.asarray(parts.dust).argmax(axis=1)) > 0  # cooler dust peaks elsewhere


def test_no_nucleus_is_exactly_none_with_a_slope():
    config = ModelConfig(agn=True)
    with_agn, without = (build_galaxy_model(one, REDSHIFTS, redshift_step=STEP) for one in (config, ModelConfig()))
    filters = ("sdss_g0", "sdss_r0")
    tables = [build_photometry_table(model, filters) for model in (with_agn, without)]
    theta = without.space.sample_flat(jax.random.key(1), 1)[0]
    full = with_agn.space.pack(without.space.unpack(theta) | {"f_agn": jnp.zeros(()), "agn_ebv": jnp.asarray(0.2)})
    none = jax.jit(lambda one: flux(tables[1], without, one))(theta)
    direction = jnp.zeros_like(full).at[with_agn.space.index("f_agn")].set(1.0)
    found, slope = jax.jit(lambda one: jax.jvp(lambda t: flux(tables[0], with_agn, t), (one,), (direction,)))(full)
    np.testing.assert_allclose(found, none, rtol=2e-6)
    assert bool(jnp.all(slope > 0))


def test_ionisation_moves_lines_and_not_the_stars():
    model = build_galaxy_model(CASES["gas"][0], REDSHIFTS, redshift_step=STEP)
    theta = model.space.sample_flat(jax.random.key(2), 1)[0]
    components = jax.jit(model.components)
    low, high = (components(theta.at[model.space.index("log_u")].set(u)) for u in (-3.5, -2.0))
    np.testing.assert_array_equal(low.stars, high.stars)
    near = np.argmin(np.abs(np.asarray(model.ssp.wave) - 5007.0))
    assert float(high.gas[near]) > 1.5 * float(low.gas[near])


@pytest.mark.slow
def test_distant_galaxies_lose_their_ultraviolet():
    """At z = 3.5 the u band lies below the Lyman limit; the model without absorbers sees far more there."""
    fluxes = []
    for igm in ("none", "inoue14", "madau95"):
        model = build_galaxy_model(ModelConfig(igm=igm), {"redshift": (3.4, 3.6)}, redshift_step=0.05)
        table = build_photometry_table(model, ("sdss_u0", "sdss_g0", "sdss_i0"))
        theta = model.space.sample_flat(jax.random.key(3), 1)[0].at[model.space.index("redshift")].set(3.5)
        fluxes.append(np.asarray(jax.jit(lambda one, t=table, m=model: flux(t, m, one))(theta), float))
    none, inoue, madau = fluxes
    for absorbed in (inoue, madau):
        assert absorbed[0] < 0.3 * none[0]
        assert 0.3 * none[1] < absorbed[1] < 0.9 * none[1]
        np.testing.assert_allclose(absorbed[2], none[2], rtol=1e-6)


@pytest.mark.slow
def test_the_reference_dresses_every_part(noise, bands):
    config = ModelConfig(ssp="stellar", nebular=True, gas_metallicity="free", dust_emission=True, agn=True)
    selection = SelectionConfig((MagnitudeLimit("sdss_r0", 17.77),))
    forward = build_forward_model(bands, noise, selection=selection, model=config, bounds=REDSHIFTS)
    reference = ReferenceConfig(num_histories=4096)
    library = build_library(jax.random.key(0), forward, reference)
    theta = sample_reference(jax.random.key(1), (forward,), draw_hyper(None, reference), library, 200)
    assert bool(jnp.all(forward.space.inside(theta)))
    column = {name: np.asarray(theta[:, i]) for i, name in enumerate(forward.space.names)}
    assert column["log_u"].mean() == pytest.approx(-3.0, abs=0.1)
    assert np.median(column["f_agn"]) < 0.05
    assert 1.5 < column["qpah"].mean() < 4.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nebular": True}, 'nebular = true adds light that ssp = "nebular" already has'),
        ({"gas_metallicity": "free"}, 'gas_metallicity = "free" needs nebular = true'),
        ({"attenuation": "cardelli"}, "attenuation must be one of 'kriek_conroy'.*'cardelli'"),
        ({"igm": "meiksin06"}, "igm must be one of 'inoue14'.*'meiksin06'"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(SettingsError, match=message):
        from_mapping(ModelConfig, settings, "model")
