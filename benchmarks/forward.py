"""The forward model: galaxies per second of four routes, side by side, and the errors of the fast ones.

python benchmarks/forward.py                    # benchmarks/results/forward.json
python benchmarks/forward.py --bands 9          # forward9.json
python benchmarks/forward.py --emulator DIR     # forward_emulator.json

(a) DSPS as its manual has it: a tabulated history, all templates summed for every galaxy, a diffuse screen, one integral and one
    distance for each filter. It has no burst and no birth cloud here, so it does a little less than the other two.
(b) This package without tables: `GalaxyModel.spectrum` and the full integral through every filter.
(c) This package's tables: `popsed_jax.observe.photometry.flux`, what the fit uses.
(d) With --emulator, a trained emulator (`popsed-jax train-emulator`) that has the filters.

The errors are those of (c) and (d) in single precision against the full integral in double precision, over draws of the flat
prior. Memory is what the compiled program with gradient allocates besides its arguments and results. Arithmetic is XLA's count of
the operations of one galaxy (a transcendental function counts as one) over the time, and the peak a product of two matrices.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import finish
from jaxtyping import Array
from rich.console import Console
from rich.table import Table

from popsed_jax.emulators import load_emulator
from popsed_jax.observe.emulated import PhotometryEmulator, check_coverage, emulated_flux, select_filters
from popsed_jax.observe.filters import Filter, load_filter
from popsed_jax.observe.operators import LSUN_PER_HZ_AT_10PC, integrate_spectrum
from popsed_jax.observe.photometry import build_photometry_table, dimming, flux
from popsed_jax.sps.galaxy import GalaxyModel, build_galaxy_model
from popsed_jax.sps.metallicity import LOG_Z_SUN
from popsed_jax.sps.sfh import load_bases, stick_breaking

# DSPS switches the 64-bit mode on when imported; every route below says in which precision it runs.
_X64 = jax.config.read("jax_enable_x64")
from dsps.dust.att_curves import RV_C00, noll09_k_lambda  # noqa: E402
from dsps.photometry import calc_obs_mag  # noqa: E402
from dsps.sed import calc_rest_sed_sfh_table_lognormal_mdf  # noqa: E402

jax.config.update("jax_enable_x64", _X64)

FILTERS = ("sdss_u0", "sdss_g0", "sdss_r0", "sdss_i0", "sdss_z0", "twomass_J", "twomass_H", "twomass_Ks", "wise_w1")
NUM_TIMES = 100  # nodes of the tabulated history
SLOW_BATCH = 20  # galaxies at once where all templates are summed for each: 5 to 11 MB a galaxy


def dsps_route(model: GalaxyModel, curves: list[Filter]) -> Callable[[Array], Array]:
    """Log fluxes of one galaxy with functions of DSPS only."""
    nodes, density = (jnp.asarray(part) for part in load_bases())
    filters = [(jnp.asarray(curve.wave), jnp.asarray(curve.trans)) for curve in curves]
    cosmology, ssp = model.cosmology, model.ssp

    def route(theta: Array) -> Array:
        params = model.space.unpack(theta)
        age = cosmology.age(params["redshift"])
        times = jnp.linspace(0.05, 14.0, NUM_TIMES)
        weights = stick_breaking(jnp.stack([params[f"kappa{k}"] for k in (1, 2, 3)]))
        history = weights @ jax.vmap(lambda one: jnp.interp(times / age, nodes, one))(density)
        sfr = 10.0 ** (params["log_mass"] - 9.0) * history / age
        sed = calc_rest_sed_sfh_table_lognormal_mdf(
            times,
            sfr,
            params["logzsol"] + LOG_Z_SUN,
            model.config.metallicity_scatter,
            ssp.log_met,
            ssp.log_age,
            ssp.lum_nu,
            age,
        )
        k = noll09_k_lambda(ssp.wave * 1e-4, 0.85 - 1.9 * params["dust_index"], params["dust_index"])
        lum_nu = sed.rest_sed * jnp.exp(-params["tau_v"] * k / RV_C00)
        universe = (cosmology.omega_matter, -1.0, 0.0, cosmology.hubble / 100.0)
        mags = [calc_obs_mag(ssp.wave, lum_nu, *pair, params["redshift"], *universe) for pair in filters]
        return -0.4 * np.log(10.0) * jnp.stack(mags)

    return route


def spectrum_route(model: GalaxyModel, curves: list[Filter]) -> Callable[[Array], Array]:
    """Log fluxes of one galaxy by the full integral on the filters' own wavelengths."""
    filters = [(curve.wave, curve.trans / curve.wave) for curve in curves]

    def route(theta: Array) -> Array:
        params = model.space.unpack(theta)
        lum_nu = model.spectrum(theta.at[model.space.index("log_mass")].set(0.0))

        def through(wave: np.ndarray, weight: np.ndarray) -> Array:
            seen = jnp.interp(wave / (1.0 + params["redshift"]), model.ssp.wave, lum_nu)
            return jnp.trapezoid(seen * weight, wave) / np.trapezoid(weight, wave)

        light = jnp.stack([through(*pair) for pair in filters]) * LSUN_PER_HZ_AT_10PC
        return jnp.log(light) + jnp.log(dimming(model, params))

    return route


class Speed(NamedTuple):
    """Galaxies per second of a route, its memory, and its arithmetic (not known of routes that loop over batches)."""

    forward: float
    gradient: float
    memory_mb: float
    forward_gflops: float | None
    gradient_gflops: float | None


def speed(route: Callable[[Array], Array], theta: Array, batch: int | None, repeats: int) -> Speed:
    """Value, and gradient of the summed log fluxes by every parameter. Best of some runs, warm."""

    def value_and_grad(one: Array) -> tuple[Array, Array]:
        return jax.value_and_grad(lambda t: jnp.sum(route(t)))(one)

    rates, gflops, memory = [], [], 0.0
    for function in (route, value_and_grad):
        run = (
            jax.jit(jax.vmap(function) if batch is None else lambda t, f=function: jax.lax.map(f, t, batch_size=batch))
            .lower(theta)
            .compile()
        )
        memory = run.memory_analysis().temp_size_in_bytes / 1e6
        seconds = fastest(run, theta, repeats)
        rates.append(len(theta) / seconds)
        gflops.append(run.cost_analysis()["flops"] / seconds / 1e9 if batch is None else None)
    return Speed(*rates, memory, *gflops)


def fastest(run: Callable[[Array], Any], argument: Array, repeats: int) -> float:
    """Seconds of the best of some runs, warm."""
    jax.block_until_ready(run(argument))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(argument))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def peak_gflops(repeats: int) -> float:
    """What a large single-precision matrix product reaches."""
    size = 2048
    return 2.0 * size**3 / fastest(jax.jit(lambda a: a @ a), jnp.ones((size, size)), repeats) / 1e9


def emulator_route(folder: Path, model: GalaxyModel, names: Sequence[str]) -> Callable[[Array], Array]:
    """Log fluxes of one galaxy from a trained emulator."""
    emulator = load_emulator(folder)
    if not isinstance(emulator, PhotometryEmulator):
        raise ValueError(f"{folder} holds an emulator of spectra; this benchmark needs one of photometry")
    check_coverage(emulator.space, emulator.config, emulator.ssp_sha256, model)
    narrow = select_filters(emulator, names)
    return lambda one: jnp.log(emulated_flux(narrow, model, one))


def route_error(
    model: GalaxyModel, curves: list[Filter], log_fluxes: list[np.ndarray], theta: np.ndarray
) -> list[np.ndarray]:
    """Magnitude errors of some routes' log fluxes, (galaxy, filter), against the full integral in double precision."""
    with jax.enable_x64(True):
        double = build_galaxy_model(model.config)
        spectrum = jax.jit(jax.vmap(double.spectrum))
        expected = []
        for start in range(0, len(theta), 200):
            part = jnp.asarray(theta[start : start + 200], jnp.float64)
            params = jax.vmap(double.space.unpack)(part)
            unit = params | {"log_mass": jnp.zeros(len(part))}  # the mass is in the spectrum
            factor = np.asarray(jax.vmap(lambda p: dimming(double, p))(unit))
            redshift = np.asarray(params["redshift"])
            wave = np.asarray(double.ssp.wave)
            pairs = zip(np.asarray(spectrum(part)), redshift, strict=True)
            light = np.stack([integrate_spectrum(wave, lum_nu, z, curves, 5000) for lum_nu, z in pairs])
            expected.append(light * factor[:, None])
    exact = 2.5 * np.log10(np.concatenate(expected))
    return [np.abs(2.5 / np.log(10.0) * log_flux - exact) for log_flux in log_fluxes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=4000, help="galaxies of the table route and of its error")
    parser.add_argument("--num-slow", type=int, default=100, help="galaxies of the routes that make a spectrum")
    parser.add_argument("--bands", type=int, default=5, choices=range(1, len(FILTERS) + 1), metavar="1-9")
    parser.add_argument("--emulator", type=Path, help="folder of a trained emulator, for route (d)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/, a file for each number of bands")
    args = parser.parse_args()
    stem = "forward" + (str(args.bands) if args.bands != 5 else "") + ("_emulator" if args.emulator else "")
    out = args.out or Path("benchmarks/results") / f"{stem}.json"
    names = FILTERS[: args.bands]
    curves = [load_filter(name) for name in names]

    start = time.perf_counter()
    model = build_galaxy_model()
    table = build_photometry_table(model, names)
    jax.block_until_ready(table.ssp)
    build_seconds = time.perf_counter() - start
    theta = model.space.sample_flat(jax.random.key(0), args.num)
    slow = theta[: args.num_slow]

    def table_route(one: Array) -> Array:
        return jnp.log(flux(table, model, one))

    fast = {"(c) own table, float32": table_route}
    if args.emulator is not None:
        fast["(d) own emulator, float32"] = emulator_route(args.emulator, model, names)

    measured = []
    with jax.enable_x64(True):
        double = build_galaxy_model(model.config)
        theirs = speed(dsps_route(double, curves), jnp.asarray(slow, jnp.float64), SLOW_BATCH, args.repeats)
    measured.append(("(a) DSPS, full spectrum, float64 (its default)", len(slow), theirs))
    single = speed(dsps_route(model, curves), slow, SLOW_BATCH, args.repeats)
    measured.append(("(a) DSPS, full spectrum, float32 (its ages cancel)", len(slow), single))
    ours = speed(spectrum_route(model, curves), slow, None, args.repeats)
    measured.append(("(b) own spectrum, full integral, float32", len(slow), ours))
    for name, route in fast.items():
        measured.append((name, len(theta), speed(route, theta, None, args.repeats)))
    rows = [
        [name, num, *one, one.forward / theirs.forward, one.gradient / theirs.gradient] for name, num, one in measured
    ]

    log_fluxes = [np.asarray(jax.jit(jax.vmap(route))(theta), float) for route in fast.values()]
    all_errors = route_error(model, curves, log_fluxes, np.asarray(theta))
    percentiles = {"50": 0.5, "99": 0.99, "99.9": 0.999, "max": 1.0}
    errors = {
        route: {
            name: {label: float(np.quantile(column, q)) for label, q in percentiles.items()}
            for name, column in zip(names, error.T, strict=True)
        }
        for route, error in zip(fast, all_errors, strict=True)
    }
    for route, by_filter in errors.items():
        shown = Table("filter", "nodes", *percentiles, title=f"{route}: error [mag], {args.num} draws")
        for name, nodes in zip(names, table.num_nodes, strict=True):
            shown.add_row(name, str(nodes), *(f"{value:.5f}" for value in by_filter[name].values()))
        Console(width=120).print(shown)
    extra = {
        "error_mag": errors,
        "table_build_seconds": build_seconds,
        "num_bands": args.bands,
        "peak_gflops": peak_gflops(args.repeats),
    }
    columns = (
        "route",
        "galaxies",
        "forward [1/s]",
        "with gradient [1/s]",
        "memory [MB]",
        "forward [GFlop/s]",
        "gradient [GFlop/s]",
        "forward over (a)",
        "gradient over (a)",
    )
    Console(width=120).print(f"A matrix product reaches {extra['peak_gflops']:.0f} GFlop/s")
    finish(f"Forward model, {args.bands} bands", columns, rows, out, extra)


if __name__ == "__main__":
    main()
