"""Energy balance through the photometry tables: what dust absorbs, by every law, against the full integral."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.observe.filters import load_filter
from popsed_jax.observe.operators import ABSORPTION_WINDOWS, integrate_spectrum, rest_weights
from popsed_jax.observe.photometry import build_photometry_table, dimming, flux
from popsed_jax.sps.config import ModelConfig
from popsed_jax.sps.galaxy import build_galaxy_model
from popsed_jax.sps.nebular import LYMAN_LIMIT
from popsed_jax.sps.spectrum import luminosity

LAWS = ("kriek_conroy", "calzetti", "power_law", "smc")
FILTER = "wise_w3"
CASES = {"stars": {}, "gas": {"ssp": "stellar", "nebular": True}}
SLOW = pytest.mark.slow


@pytest.fixture(scope="module", params=["stars", pytest.param("gas", marks=SLOW)])
def built(request):
    """A model with dust emission and its table, in double precision, at three nodes of redshift."""
    with jax.enable_x64(True):
        model = build_galaxy_model(
            ModelConfig(dust_emission=True, **CASES[request.param]), {"redshift": (0.05, 0.15)}, redshift_step=0.05
        )
        return model, build_photometry_table(model, [FILTER])


def largest_error(model, table, law, num) -> float:
    """Largest relative error of the dust's light in the table's photometry, over draws of the flat prior."""
    # What the law changes in the table are nodes within the filter, which whole spectra of dust do not see.
    model = model.replace(config=dataclasses.replace(model.config, attenuation=law))
    redshift, without = float(model.grid.redshift[1]), table.replace(dust=None)

    def both(one):
        params = model.space.unpack(one)
        light = flux(table, model, one) - flux(without, model, one)
        return light, model.components(one).dust / 10.0 ** params["log_mass"], dimming(model, params)

    with jax.enable_x64(True):
        theta = model.space.sample_flat(jax.random.key(0), num)
        theta = theta.at[:, model.space.index("redshift")].set(redshift)
        found, spectra, factor = map(np.asarray, jax.jit(lambda t: jax.lax.map(both, t, batch_size=50))(theta))
    wave, curves = np.asarray(model.ssp.wave), [load_filter(FILTER)]
    expected = np.stack([integrate_spectrum(wave, one, redshift, curves, 5000) for one in spectra]) * factor[:, None]
    return float(np.abs(found / expected - 1.0).max())


@SLOW  # in the default run, tests/test_components.py has the photometry of warm dust to 2 %
@pytest.mark.parametrize("law", ["kriek_conroy", "smc"])
def test_absorbed_power_of_the_table(built, law):
    """1 %; measured over 1,000 draws: at most 0.05 % (kriek_conroy, calzetti), 0.3 % (power_law), 0.4 % (smc)."""
    assert largest_error(*built, law, 60) < 5e-3


@SLOW
@pytest.mark.parametrize("law", LAWS)
def test_absorbed_power_of_the_table_over_the_prior(built, law):
    assert largest_error(*built, law, 1000) < 5e-3


def test_windows_leave_nothing_out(built):
    """An opaque screen takes all light between the Lyman limit and the last window's end."""
    model, _ = built
    with jax.enable_x64(True):
        _, weights = rest_weights(model)
        wave = np.asarray(model.ssp.wave)
        for met, age in ((0, 5), (4, 60), (4, 100)):
            lum_nu = np.asarray(model.ssp.lum_nu[met, age])
            inside = (wave >= LYMAN_LIMIT) & (wave < ABSORPTION_WINDOWS[-1][1])
            whole = float(luminosity(wave, jnp.asarray(np.where(inside, lum_nu, 0.0))))
            assert (weights @ lum_nu).sum() == pytest.approx(whole, rel=1e-9)
            seen = float(luminosity(wave, jnp.asarray(np.where(wave >= LYMAN_LIMIT, lum_nu, 0.0))))
            # Beyond 30 micron there is no starlight, and 1.2e-4 of the youngest templates' light is free-free emission.
            assert whole == pytest.approx(seen, rel=3e-4)
