"""Gradients of every output by every parameter against finite differences in double precision, over draws of the flat prior.

The model is smooth but for known places: it is linear between nodes (of redshift, template ages, the nebular grid, dust spectra),
its age bins and lookback bins end somewhere, the attenuation laws are pieced together, specific rates have a floor. `cells`
says, for each draw, on which piece it lies. A difference whose points lie on one piece is compared as it is; one that straddles
two is taken to the side of the draw's own piece; how many those are is counted.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.observe.photometry import build_photometry_table, flux
from popsed_jax.sps import diffstar, sfh
from popsed_jax.sps.config import DERIVED, SSFR_FLOOR, ModelConfig
from popsed_jax.sps.galaxy import build_galaxy_model
from popsed_jax.sps.metallicity import LOG_Z_SUN

REDSHIFTS = {"redshift": (0.05, 0.35)}
BANDS = ("galex_FUV", "sdss_u0", "sdss_r0", "twomass_J")
# Every part: gas of free metallicity, dust emission, a nucleus.
PARTS = {"ssp": "stellar", "nebular": True, "gas_metallicity": "free", "dust_emission": True, "agn": True}
CASES = {
    "bases": (ModelConfig(), BANDS),
    "all parts": (ModelConfig(attenuation="calzetti", **PARTS), (*BANDS, "wise_w2", "wise_w4")),
    "delayed_tau": (ModelConfig(sfh="delayed_tau", attenuation="power_law"), BANDS),
    "burst": (ModelConfig(sfh="burst"), BANDS),
    "continuity": (ModelConfig(sfh="continuity", attenuation="smc"), BANDS),
    "diffstar": (ModelConfig(sfh="diffstar"), BANDS),
    "evolving": (ModelConfig(metallicity="evolving"), BANDS),
    "diffstar, all parts": (ModelConfig(sfh="diffstar", metallicity="evolving", **PARTS), (*BANDS, "wise_w4")),
}
WAVES = (950.0, 1400.0, 2175.0, 3700.0, 4861.0, 6563.0, 12_000.0, 40_000.0, 77_000.0)
STEP = 1e-6  # of a parameter's range, or of the burst's age, in whose logarithm the templates are spaced
LAW_EDGES = (912.0, 1200.0, 1500.0, 1950.0, 6300.0, 31_000.0)  # of the attenuation laws' pieces [Angstrom]


def built(name):
    """Model and table of a case, in double precision; to be used in `jax.enable_x64(True)`."""
    config, bands = CASES[name]
    model = build_galaxy_model(config, REDSHIFTS, redshift_step=0.02)
    return model, build_photometry_table(model, bands)


def outputs_of(model, table):
    """One galaxy's outputs: log fluxes, derived properties, log spectrum and each part's share of it."""
    pixel = np.searchsorted(np.asarray(model.ssp.wave), [w for w in WAVES if w < float(model.ssp.wave[-1])])

    def outputs(theta):
        spectrum = model.components(theta)
        total = spectrum.total[pixel]
        # Of light that dust dims below the least number there is no logarithm, and of shares in it no slope. Shares are taken
        # in units of the light: the square of 1e-20, which a quotient's slope has, is no number in single precision either.
        unit = jax.lax.stop_gradient(total)
        dark = unit < 1e4 * jnp.finfo(total.dtype).tiny
        unit = jnp.where(dark, 1.0, unit)
        total = jnp.where(dark, 1.0, total / unit)
        parts = (spectrum.stars, spectrum.gas, spectrum.dust, spectrum.agn)
        shares = [jnp.where(dark, 0.0, part[pixel] / unit) / total for part in parts]
        derived = model.derived(theta)
        return jnp.concatenate(
            [
                jnp.log(flux(table, model, theta)),
                jnp.stack([derived[name] for name in DERIVED]),
                jnp.log(total) + jnp.log(unit),
                jnp.log(spectrum.unattenuated[pixel]),
                *shares,
            ]
        )

    return outputs


def over(function):
    """Compiled over draws, some at a time."""
    return jax.jit(lambda theta: jax.lax.map(function, theta, batch_size=40))


def cells_of(model, table):
    """The pieces of the model on which each draw lies, as rows of integers."""
    edges, log_age = np.asarray(model.age_edges), np.asarray(model.ssp.log_age)
    nodes, seen = np.asarray(table.nodes), sum(table.num_nodes)

    @over
    def evaluate(theta):
        params = model.space.unpack(theta)
        derived = model.derived(theta)
        rates = jnp.stack([derived["log_sfr"], derived["log_sfr10"]]) - derived["log_mass_surviving"]
        return model.cosmology.age(params["redshift"]), jnp.cumsum(model.age_weights(params)), rates

    def cells(theta):
        p = {name: np.asarray(theta[:, i]) for i, name in enumerate(model.space.names)}
        age, formed, rates = map(np.asarray, evaluate(theta))
        position = (np.log1p(p["redshift"]) - model.grid.start) / model.grid.step
        rest = nodes[:seen] / (1.0 + p["redshift"][:, None])
        # A little above the floor: on the floor itself, rounding decides.
        columns = [np.floor(position), np.searchsorted(edges, age), rates > np.log10(SSFR_FLOOR) + 1e-9]
        columns += [rest > edge for edge in LAW_EDGES]
        columns.append([np.searchsorted(row, 0.5 * row[-1]) for row in formed])
        if "t_burst" in p:
            log_burst = np.log10(np.minimum(p["t_burst"], age))
            columns += [p["t_burst"] < age, np.searchsorted(log_age, log_burst)]
        if model.gas is not None:
            grid = model.gas.grid
            columns.append(np.searchsorted(np.asarray(grid.log_u), p["log_u"]))
            if "logz_gas" in p:
                columns.append(np.searchsorted(np.asarray(grid.log_met), p["logz_gas"] + LOG_Z_SUN))
        if model.dust is not None:
            columns.append(np.searchsorted(np.asarray(model.dust.qpah), p["qpah"]))
            columns.append(np.searchsorted(np.log(np.asarray(model.dust.umin)), np.log(p["umin"])))
        if model.config.sfh == "delayed_tau":
            columns.append(np.searchsorted(edges, age * (1.0 - p["start_fraction"])))
        if model.config.sfh == "continuity":
            bins = np.stack([np.asarray(model.sfh.edges(jnp.asarray(one))) for one in age])
            columns.append(np.searchsorted(edges, bins))
        if model.config.sfh == "diffstar":
            columns += diffstar_pieces(p, age, edges)
        return np.concatenate([np.asarray(c, float).reshape(len(theta), -1) for c in columns], axis=1)

    return cells


def diffstar_pieces(p, age, edges):
    """Where the history has corners: the halo stops growing, the consumption time passes the age of the Universe."""
    ages = []
    for one in age:
        sfh._integrate(
            lambda at: ages.append(np.asarray(at)) or jnp.zeros_like(at), jnp.asarray(one), jnp.asarray(edges)
        )
    t = np.maximum(age[:, None] - np.stack(ages), diffstar.EARLIEST)
    params = {name: jnp.asarray(value)[:, None] for name, value in p.items()}
    tau = 10.0 ** p["log_tau_gas"][:, None]
    lag = np.minimum(tau, t)[..., None] * 0.5 * (1.0 + diffstar._LAGS)
    log_t = np.log10(np.maximum(t[..., None] - lag, 1e-2 * diffstar.EARLIEST))
    index, change = diffstar._halo_index({k: v[..., None] for k, v in params.items()}, jnp.asarray(log_t))
    grows = np.asarray(index + change * (log_t - diffstar.LOG_T0)) > 0.0
    return [t > diffstar.EARLIEST, t < tau, grows]


def expected_zero(model, theta):
    """(draw, parameter) where physics says that nothing depends on the parameter."""
    p = {name: np.asarray(theta[:, i]) for i, name in enumerate(model.space.names)}
    age = np.asarray(over(lambda one: model.cosmology.age(model.space.unpack(one)["redshift"]))(theta))
    ages = np.asarray(over(lambda one: model.age_weights(model.space.unpack(one)))(theta))
    silent = {name: np.zeros(len(theta), bool) for name in model.space.names}
    silent["tau_birth"] |= ages @ np.asarray(model.young) == 0.0
    if "t_burst" in p:
        silent["t_burst"] |= p["t_burst"] >= age
    if model.gas is not None:
        silent["log_u"] |= ages @ np.asarray(model.gas.grid.has_nebula) == 0.0
    if model.config.sfh == "diffstar":
        half = 0.5 * 10.0 ** p["log_quench_span"]
        phase = (np.log10(age) - p["log_t_quench"]) / half
        for name in ("log_quench", "log_t_quench", "log_quench_span"):
            silent[name] |= phase <= -1.0
        silent["rejuvenation"] |= phase <= 0.0
    return np.stack([silent[name] for name in model.space.names], axis=1)


def check(name, num, seed):
    """Every slope of one case; returns how many (draw, parameter) pairs were one-sided, of how many."""
    model, table = built(name)
    outputs, space = outputs_of(model, table), model.space
    value, cells = over(outputs), cells_of(model, table)
    # Two steps to either side must stay within the bounds.
    low, high = (np.array([getattr(p, end) for p in space.parameters]) for end in ("low", "high"))
    theta = space.sample_flat(jax.random.key(seed), num)
    theta = jnp.clip(theta, low + 3.0 * STEP * (high - low), high - 3.0 * STEP * (high - low))
    unit = np.tile(high - low, (num, 1))
    if "t_burst" in space.names:
        unit[:, space.index("t_burst")] = theta[:, space.index("t_burst")]
    slope = np.asarray(over(jax.jacfwd(outputs))(theta)) * unit[:, None, :]
    assert np.all(np.isfinite(slope)), f"{name}: not finite"
    here, at = np.asarray(value(theta)), cells(theta)
    sided = 0
    for i, parameter in enumerate(space.parameters):
        h = np.eye(len(space))[i] * unit * STEP
        up, down = np.asarray(value(theta + h)), np.asarray(value(theta - h))
        numeric = (up - down) / (2.0 * STEP)
        same_up, same_down = (np.all(cells(theta + sign * h) == at, axis=1) for sign in (1.0, -1.0))
        for side in np.flatnonzero(~(same_up & same_down)):
            sided += 1
            assert same_up[side] or same_down[side], f"{name}: two kinks within {parameter.name} of draw {side}"
            sign = 1.0 if same_up[side] else -1.0
            two = np.asarray(value((theta + 2.0 * sign * h)[side : side + 1]))[0]
            near = (up if sign > 0 else down)[side]
            numeric[side] = sign * (4.0 * near - 3.0 * here[side] - two) / (2.0 * STEP)
        # Rounding of outputs of order 30 over a step of 2e-6 leaves 1e-8 to 1e-7 of absolute error.
        np.testing.assert_allclose(slope[:, :, i], numeric, rtol=1e-5, atol=2e-6, err_msg=f"{name}: {parameter.name}")
    dead = (np.abs(slope).max(axis=1) == 0.0) & ~expected_zero(model, theta)
    assert not dead.any(), f"{name}: no slope along {[space.names[i] for i in np.unique(np.nonzero(dead)[1])]}"
    alive = (np.abs(slope).max(axis=1) > 0.0) & expected_zero(model, theta)
    assert not alive.any(), f"{name}: slope along {[space.names[i] for i in np.unique(np.nonzero(alive)[1])]}"
    return sided, num * len(space)


@pytest.mark.parametrize("name", ["bases"])
def test_against_finite_differences(name):
    with jax.enable_x64(True):
        sided, of = check(name, 12, 1)
    assert sided <= 0.01 * of


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_against_finite_differences_over_the_prior(name):
    with jax.enable_x64(True):
        sided, of = check(name, 1000, 2)
    assert sided <= 0.005 * of


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_finite_on_every_bound(name):
    """Each parameter on its bounds, the others in the middle; and all corners of all-low, all-high; in single precision."""
    model, table = built(name)
    low, high = (jnp.array([getattr(p, end) for p in model.space.parameters]) for end in ("low", "high"))
    middle = jnp.tile(0.5 * (low + high), (len(low), 1))
    index = jnp.arange(len(low))
    points = jnp.concatenate(
        [middle.at[index, index].set(low), middle.at[index, index].set(high), low[None], high[None]]
    )
    outputs = outputs_of(model, table)
    both = over(lambda one: (outputs(one), jax.jacfwd(outputs)(one), jax.jacrev(outputs)(one)))(points)
    for values in both:
        assert np.all(np.isfinite(values))
