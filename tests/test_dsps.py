"""Whole galaxies against DSPS's own functions: the same templates, history and metallicity, in double precision.

Two things about DSPS are met by the choice of templates and not by touching either side. Its age bins are those of this package
where log ages are equally spaced, so they are. And it counts no star younger than half a step below the youngest template (1 to
5 % of the ultraviolet light of the shipped ones, which begin at 0.1 Myr), so the youngest spectrum is repeated down to 10 years.
"""

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.data import data_path
from popsed_jax.observe.filters import load_filter
from popsed_jax.observe.photometry import build_photometry_table, flux
from popsed_jax.sps import diffstar
from popsed_jax.sps.config import ModelConfig
from popsed_jax.sps.galaxy import build_galaxy_model
from popsed_jax.sps.metallicity import LOG_Z_SUN
from popsed_jax.sps.sfh import build_sfh, load_bases, stick_breaking

# Importing these switches the 64-bit mode on, as `popsed_jax._dsps` explains.
_X64 = jax.config.read("jax_enable_x64")
from dsps.photometry import calc_obs_mag  # noqa: E402
from dsps.sed.stellar_age_weights import _get_lg_age_bin_edges  # noqa: E402
from dsps.sed.stellar_sed import calc_rest_sed_sfh_table_lognormal_mdf  # noqa: E402

jax.config.update("jax_enable_x64", _X64)

BANDS = ("sdss_u0", "twomass_J")
NUM = 6


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    """The shipped stars at ages equally spaced in the logarithm."""
    path = tmp_path_factory.mktemp("ssp") / "equal_steps.h5"
    with h5py.File(data_path("ssp_stellar")) as source, h5py.File(path, "w") as file:
        old = np.asarray(source["ssp_lg_age_gyr"], float)
        new = np.linspace(-8.0, old[-1], 164)
        cell = np.clip(np.searchsorted(old, new) - 1, 0, len(old) - 2)
        up = np.clip((new - old[cell]) / (old[cell + 1] - old[cell]), 0.0, 1.0)
        lum_nu, surviving = (np.asarray(source[n], float) for n in ("ssp_flux", "surviving_mass_fraction"))
        file["ssp_flux"] = lum_nu[:, cell] * (1.0 - up)[:, None] + lum_nu[:, cell + 1] * up[:, None]
        file["surviving_mass_fraction"] = surviving[:, cell] * (1.0 - up) + surviving[:, cell + 1] * up
        file["ssp_lgmet"], file["ssp_wave"], file["ssp_lg_age_gyr"] = (
            source["ssp_lgmet"][()],
            source["ssp_wave"][()],
            new,
        )
    return str(path)


def rate(history, params, age):
    """Star-formation rate at cosmic time t, in any unit, from the history's definition; and the times of its steps."""
    if history == "bases":
        x, density = load_bases()
        parts = np.asarray(stick_breaking(jnp.array([params[f"kappa{k}"] for k in (1, 2, 3)])), float)
        return lambda t: parts @ np.stack([np.interp(t / age, x, one) for one in density]), ()
    if history == "delayed_tau":
        start, tau = params["start_fraction"] * age, 10.0 ** params["log_tau"]
        return lambda t: np.maximum(t - start, 0.0) * np.exp(-np.maximum(t - start, 0.0) / tau), (start,)
    if history == "diffstar":
        arrays = {name: jnp.asarray(value) for name, value in params.items()}
        return lambda t: np.array(diffstar.star_formation_rate(arrays, jnp.asarray(t))), ()
    model = build_sfh("continuity")
    edges = age - np.asarray(model.edges(jnp.asarray(age)))
    log_rate = -np.cumsum([0.0, *(params[p.name] for p in model.parameters)])
    bins = 10.0 ** (log_rate - log_rate.max())
    return lambda t: bins[np.clip(np.searchsorted(-edges, -t, side="right") - 1, 0, 6)], tuple(edges[1:-1])


def table_of(history, params, age):
    """Times and rates [Gyr, Msun/yr] that tabulate one history finely: at the Big Bang, at now, and at steps."""
    clusters = [np.geomspace(1.001e-3, 0.3 * age, 4000), age - np.geomspace(1e-9, 0.7 * age, 12_000), [age]]
    function, steps = rate(history, params, age)
    near = np.geomspace(1e-10, 0.05 * age, 1500)
    clusters += [step + sign * near for step in steps for sign in (-1.0, 1.0)]
    t = np.unique(np.concatenate(clusters))
    t = t[(t >= 1.001e-3) & (t <= age)]
    # One length for all: it compiles once. Times stay dense where they were.
    t = np.interp(np.linspace(0.0, 1.0, 30_000), np.linspace(0.0, 1.0, len(t)), t)
    sfr = function(t)
    # It counts from 1 Myr after the Big Bang: what formed before goes into its first step.
    sfr[0] += function(np.array([0.5e-3]))[0] * 1e-3 / (0.5 * (t[1] - 1e-3))
    mass = np.trapezoid(np.concatenate([[0.0], sfr]), np.concatenate([[1e-3], t]))
    return t, sfr * 10.0 ** (params["log_mass"] - 9.0) / mass


@pytest.mark.parametrize(
    "history",
    [
        "continuity",
        pytest.param("diffstar", marks=pytest.mark.slow),
        # tests/test_sps.py has the spectra of these two in the default run.
        pytest.param("bases", marks=pytest.mark.slow),
        pytest.param("delayed_tau", marks=pytest.mark.slow),
    ],
)
def test_spectra_and_photometry(templates, history):
    """1e-4 in the spectrum from 912 Angstrom to 5 micron, 0.002 mag in photometry; both from the whole model."""
    bounds = {"redshift": (0.2, 0.21)}
    with jax.enable_x64(True):
        model = build_galaxy_model(ModelConfig(ssp=templates, sfh=history, igm="none"), bounds)
        edges = 10.0 ** np.asarray(_get_lg_age_bin_edges(model.ssp.log_age))
        np.testing.assert_allclose(model.age_edges[1:], edges[1:], rtol=1e-12)
        theta = model.space.sample_flat(jax.random.key(3), NUM)
        for name in {"tau_v", "tau_birth", "f_burst"} & set(model.space.names):
            theta = theta.at[:, model.space.index(name)].set(0.0)
        table = build_photometry_table(model, BANDS)
        ours, fluxes = jax.jit(jax.vmap(lambda one: (model.spectrum(one), flux(table, model, one))))(theta)
        wave = np.asarray(model.ssp.wave)
        inside = (wave > 912.0) & (wave < 5e4)
        cosmology = model.cosmology
        universe = (cosmology.omega_matter, -1.0, 0.0, cosmology.hubble / 100.0)
        for one, spectrum, seen in zip(np.asarray(theta), np.asarray(ours), np.asarray(fluxes), strict=True):
            params = dict(zip(model.space.names, one, strict=True))
            age = float(cosmology.age(jnp.asarray(params["redshift"])))
            mean = params["logzsol"] + LOG_Z_SUN
            grid = (model.ssp.log_met, model.ssp.log_age, model.ssp.lum_nu)
            theirs = calc_rest_sed_sfh_table_lognormal_mdf(
                *table_of(history, params, age), mean, model.config.metallicity_scatter, *grid, age
            ).rest_sed
            np.testing.assert_allclose(spectrum[inside], np.asarray(theirs)[inside], rtol=1e-4)
            for band, value in zip(BANDS, seen, strict=True):
                curve = load_filter(band)
                fine = np.linspace(curve.wave[0], curve.wave[-1], 2001)  # it integrates on the filter's own points
                trans = np.interp(fine, curve.wave, curve.trans)
                expected = calc_obs_mag(wave, theirs, fine, trans, params["redshift"], *universe)
                assert -2.5 * np.log10(value) == pytest.approx(float(expected), abs=0.002)
