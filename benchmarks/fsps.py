"""Colours against FSPS: an independent forward model at matched history, metallicity and dust.

python benchmarks/fsps.py --emulator popsed_provabgs_fsps_nmf_emulator.npz --out benchmarks/results/fsps.json

The other side is the emulator of PROVABGS (Hahn+23, arXiv:2202.01809), a neural network fitted to FSPS (Conroy+09; MIST
isochrones, MILES, Chabrier's initial mass function, no gas), evaluated here in NumPy. Its galaxies are sums of coeval populations
in 42 steps of lookback time; the same sums are made from this package's templates (BC03: Padova isochrones, MILES, Kroupa), with
this package's dust and photometry. What differs is the stars, and with experiments that change one thing at a time the
differences are traced to their causes. `numbers` of the JSON holds every quantile; the figure lies beside it.

PROVABGS hands FSPS log10(Z / 0.019) as the metallicity over solar, of which solar is 0.0142 in MIST: the stars have 0.747 times
the Z that it names. "Matched" is that Z.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from astropy.table import Table
from common import finish
from scipy.special import expit

from popsed_jax.cosmology import Cosmology
from popsed_jax.observe.filters import Filter, load_filter
from popsed_jax.observe.operators import integrate_spectrum
from popsed_jax.sps.dust import AGE_BIRTH_CLOUD, transmission
from popsed_jax.sps.metallicity import metallicity_weights
from popsed_jax.sps.ssp import SSPTemplates, load_ssp

LIGHT = 2.99792458e18  # [Angstrom/s]
BANDS = {
    "u": "sdss_u0", "g": "sdss_g0", "r": "sdss_r0", "i": "sdss_i0", "z": "sdss_z0",
    "Y": "vista_vircam_Y", "J": "vista_vircam_J", "H": "vista_vircam_H", "K": "vista_vircam_Ks",
}  # fmt: skip
COLOURS = tuple(f"{a}-{b}" for a, b in zip(list(BANDS)[:-1], list(BANDS)[1:], strict=True))
SOLAR_NAMED, SOLAR_MIST, SOLAR_BC03 = 0.019, 0.0142, 0.02
Z_LIMITS = 4.49043431e-05, 4.49043431e-02  # of MIST, to which PROVABGS clips
QUANTILES = (0.05, 0.16, 0.5, 0.84, 0.95)
MILES_ENDS = 3540.0, 7410.0  # of the library of spectra that both sides share [Angstrom]
TOLERANCE = 0.10  # [mag] beyond which a median difference needs a cause

# Colours whose medians leave the tolerance in some part of the sample, and why.
EXPLAINED = {
    "u-g": "spectra blueward of MILES: at 3540 Angstrom both sides leave the library that they share, for different ones, and "
    "their ratio steps by 0.06 mag there; more so for metal-rich stars, whose ultraviolet depends most on model atmospheres and "
    "isochrones. Dust, gas, stars below 10 Myr and the scale of metallicity move the median by 0.02 mag at most.",
}


class Emulator:
    """The PROVABGS network, in NumPy."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self.segments = [
                {name[5:]: file[name].astype(float) for name in file if name.startswith(f"seg{k}_")} for k in range(4)
            ]
        self.wave = np.concatenate([segment["wave"] for segment in self.segments])

    def lum_nu(self, galaxies: Galaxies) -> np.ndarray:
        """Attenuated luminosity per solar mass formed [Lsun/Hz], (galaxy, wave)."""
        first = 1.0 - galaxies.beta[:, 0]
        second = 1.0 - galaxies.beta[:, 1] / first
        sticks = np.stack([first, second, 1.0 - galaxies.beta[:, 2] / (first * second)], axis=1)
        inputs = np.column_stack([sticks, galaxies.gamma, galaxies.dust, galaxies.age])
        log_lum = np.concatenate([self._log_lum(segment, inputs) for segment in self.segments], axis=1)
        return np.exp(log_lum) * self.wave**2 / LIGHT

    @staticmethod
    def _log_lum(segment: dict[str, np.ndarray], inputs: np.ndarray) -> np.ndarray:
        hidden = (inputs - segment["param_shift"]) / segment["param_scale"]
        for k in range(8):
            linear = hidden @ segment[f"W{k}"] + segment[f"b{k}"]
            floor = segment[f"beta{k}"]
            hidden = (floor + (1.0 - floor) * expit(segment[f"alpha{k}"] * linear)) * linear
        components = (hidden @ segment["W8"] + segment["b8"]) * segment["pca_scale"] + segment["pca_shift"]
        return components @ segment["pca_matrix"] * segment["spec_scale"] + segment["spec_shift"]


@dataclasses.dataclass(frozen=True)
class Galaxies:
    """Parameters of PROVABGS: weights of the history's bases, of the metallicity's, dust, age [Gyr], and redshift."""

    beta: np.ndarray
    gamma: np.ndarray
    dust: np.ndarray
    redshift: np.ndarray
    age: np.ndarray

    def __getitem__(self, which: Any) -> Galaxies:
        """Some of them."""
        return Galaxies(*(getattr(self, field.name)[which] for field in dataclasses.fields(self)))

    def replace(self, **changes: np.ndarray) -> Galaxies:
        """The same galaxies but for some columns."""
        return dataclasses.replace(self, **changes)


def draw(num: int, seed: int) -> Galaxies:
    """The prior of PROVABGS within this package's: flat Dirichlet, log-uniform metallicity weights, moderate dust."""
    rng = np.random.default_rng(seed)
    redshift = rng.uniform(0.05, 0.5, num)
    with jax.ensure_compile_time_eval():
        age = np.asarray(Cosmology().age(jnp.asarray(redshift)), float)
    return Galaxies(
        beta=np.clip(rng.dirichlet(np.ones(4), num), 1e-4, 1.0 - 3e-4),
        gamma=10.0 ** rng.uniform(-3.3, np.log10(2e-2), (num, 2)),
        dust=rng.uniform([0.0, 0.0, -1.0], [2.0, 1.5, 0.4], (num, 3)),
        redshift=redshift,
        age=age,
    )


def histories(galaxies: Galaxies) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Ages [Gyr], mass fractions and metal mass fractions, as PROVABGS names them, of each galaxy's populations.

    Means of the bases over bins of 0.1 dex in lookback time; each bin is a population at its middle. (Hahn+23, sec. 3)
    """
    table = Table.read(Path(__file__).with_name("provabgs_bases.ecsv"))
    lookback = np.asarray(table["lookback"])
    fine = np.linspace(0.0, 13.8, 50_001)
    shapes = [_extended(fine, lookback, np.asarray(table[f"sfh{k}"])) for k in (1, 2, 3, 4)]
    formed = np.stack([np.concatenate([[0.0], np.cumsum(0.5 * (s[1:] + s[:-1])) * fine[1]]) for s in shapes])
    found = []
    for beta, gamma, age in zip(galaxies.beta, galaxies.gamma, galaxies.age, strict=True):
        edges = np.concatenate([[0.0], 10.0 ** (-2.95 + 0.1 * np.arange(41))])
        edges = np.append(edges[edges < age], age)
        middle = 0.5 * (edges[1:] + edges[:-1])
        mass = beta @ np.diff(np.stack([np.interp(edges, fine, row) for row in formed]))
        metals = sum(g * _extended(middle, lookback, np.asarray(table[f"zh{k}"])) for k, g in enumerate(gamma, 1))
        found.append((middle, mass / mass.sum(), np.clip(metals, *Z_LIMITS)))
    return found


def _extended(at: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Linear interpolation, and extrapolation below the first point, as PROVABGS does."""
    below = y[0] + (y[1] - y[0]) / (x[1] - x[0]) * (at - x[0])
    return np.where(at < x[0], below, np.interp(at, x, y))


@dataclasses.dataclass(frozen=True)
class Matching:
    """How this package's galaxies are made from the same populations; the defaults are the match."""

    metal_scale: float = SOLAR_MIST / SOLAR_NAMED
    scatter: float = 0.0  # of log Z at one age [dex]; 0 interpolates between templates

    def weights(self, ssp: SSPTemplates, history: tuple[np.ndarray, ...]) -> np.ndarray:
        """Mass fraction on each template outside and inside the birth cloud, (cloud, met, age)."""
        ages, masses, metals = history
        cell, part = _cell(np.log10(ages), np.asarray(ssp.log_age))
        log_met = np.log10(metals * self.metal_scale)
        by_met = np.zeros((len(ages), len(ssp.log_met)))
        if self.scatter:
            log_sun = np.log10(SOLAR_BC03)
            by_met += np.stack([metallicity_weights(one - log_sun, ssp.log_met, self.scatter) for one in log_met])
        else:
            low, up = _cell(log_met, np.asarray(ssp.log_met))
            by_met[np.arange(len(ages)), low] += 1.0 - up
            by_met[np.arange(len(ages)), low + 1] += up
        found = np.zeros((len(ssp.log_age), len(ssp.log_met)))
        np.add.at(found, cell, ((1.0 - part) * masses)[:, None] * by_met)
        np.add.at(found, cell + 1, (part * masses)[:, None] * by_met)
        # Both codes decide by the templates' age who is in the birth cloud.
        young = np.asarray(ssp.age)[:, None] <= AGE_BIRTH_CLOUD
        return np.swapaxes(np.stack([found * ~young, found * young]), 1, 2)


def _cell(at: np.ndarray, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    index = np.clip(np.searchsorted(nodes, at) - 1, 0, len(nodes) - 2)
    return index, np.clip((at - nodes[index]) / (nodes[index + 1] - nodes[index]), 0.0, 1.0)


def own_lum_nu(ssp: SSPTemplates, galaxies: Galaxies, matching: Matching) -> np.ndarray:
    """This package's attenuated luminosity per solar mass formed [Lsun/Hz], (galaxy, wave)."""
    wave, flat = jnp.asarray(ssp.wave), np.asarray(ssp.lum_nu).reshape(-1, len(ssp.wave))
    dim = jax.jit(jax.vmap(lambda d: jnp.stack(transmission(wave, d[1], d[0], d[2]))))
    trans = np.asarray(dim(jnp.asarray(galaxies.dust)), float)
    light = np.stack([matching.weights(ssp, one).reshape(2, -1) @ flat for one in histories(galaxies)])
    return np.sum(light * trans, axis=1)


def magnitudes(wave: np.ndarray, lum_nu: np.ndarray, redshift: np.ndarray, curves: Sequence[Filter]) -> np.ndarray:
    """AB magnitudes at 10 pc, (galaxy, band)."""
    pairs = zip(lum_nu, redshift, strict=True)
    return np.stack([-2.5 * np.log10(integrate_spectrum(wave, one, z, curves, 2000)) for one, z in pairs])


def colours(mags: np.ndarray) -> np.ndarray:
    """Neighbouring bands' differences."""
    return mags[:, :-1] - mags[:, 1:]


def mass_weighted(galaxies: Galaxies) -> tuple[np.ndarray, np.ndarray]:
    """Mean age [Gyr] and log10 of the mean Z, as FSPS has it."""
    age, metals = np.array([(m @ t, m @ z) for t, m, z in histories(galaxies)]).T
    return age, np.log10(metals * SOLAR_MIST / SOLAR_NAMED)


class Comparison:
    """Both sides' magnitudes for one set of galaxies, and what experiments do to them."""

    def __init__(self, emulator: Emulator, galaxies: Galaxies) -> None:
        self.curves = [load_filter(name) for name in BANDS.values()]
        self.stars, self.emulator, self.galaxies = load_ssp("stellar"), emulator, galaxies
        self.ours, self.theirs = self.our_mags(galaxies), self.their_mags(galaxies)
        self.difference = colours(self.ours) - colours(self.theirs)

    def their_mags(self, galaxies: Galaxies) -> np.ndarray:
        """FSPS."""
        return magnitudes(self.emulator.wave, self.emulator.lum_nu(galaxies), galaxies.redshift, self.curves)

    def our_mags(
        self, galaxies: Galaxies, matching: Matching | None = None, ssp: SSPTemplates | None = None
    ) -> np.ndarray:
        """This package."""
        ssp = ssp or self.stars
        lum_nu = own_lum_nu(ssp, galaxies, matching or Matching())
        return magnitudes(np.asarray(ssp.wave, float), lum_nu, galaxies.redshift, self.curves)

    def of(self, galaxies: Galaxies) -> np.ndarray:
        """Colour differences of other galaxies."""
        return colours(self.our_mags(galaxies)) - colours(self.their_mags(galaxies))

    def spectrum_ratio(self, edges: np.ndarray) -> np.ndarray:
        """Rest-frame magnitude difference without dust, (galaxy, bin); the means over bins of wavelength."""
        clear = undimmed(self.galaxies)
        sides = ((np.asarray(self.stars.wave, float), own_lum_nu(self.stars, clear, Matching())),)
        sides += ((self.emulator.wave, self.emulator.lum_nu(clear)),)
        fine = np.stack([np.linspace(low, high, 60) for low, high in itertools.pairwise(edges)])
        ours, theirs = (np.stack([np.interp(fine, wave, one).mean(axis=1) for one in lum]) for wave, lum in sides)
        return -2.5 * np.log10(ours / theirs)


def undimmed(galaxies: Galaxies) -> Galaxies:
    """The same galaxies without dust."""
    return galaxies.replace(dust=galaxies.dust * np.array([0.0, 0.0, 1.0]))


def experiments(match: Comparison) -> dict[str, np.ndarray]:
    """Colour differences, ours less theirs, for changes of one thing at a time and for parts of the sample."""
    galaxies, theirs = match.galaxies, colours(match.theirs)
    same_solar = Matching(SOLAR_BC03 / SOLAR_NAMED)
    hidden = galaxies.replace(dust=np.tile([3.0, 0.0, 0.0], (len(galaxies.age), 1)))
    found = {
        "all, matched": match.difference,
        "without dust": match.of(undimmed(galaxies)),
        "stars below 10 Myr hidden": match.of(hidden),
        "Z as PROVABGS names it": colours(match.our_mags(galaxies, Matching(1.0))) - theirs,
        "same Z over solar (0.02, 0.0142)": colours(match.our_mags(galaxies, same_solar)) - theirs,
        "our 0.2 dex spread of Z": colours(match.our_mags(galaxies, Matching(scatter=0.2))) - theirs,
        "our templates with gas": colours(match.our_mags(galaxies, ssp=load_ssp("nebular"))) - theirs,
    }
    age, log_met = mass_weighted(galaxies)
    for name, inside in {
        "age < 5 Gyr": age < 5.0,
        "age > 5 Gyr": age >= 5.0,
        "Z < 0.004": log_met < np.log10(0.004),
        "Z 0.004-0.0142": (log_met >= np.log10(0.004)) & (log_met < np.log10(SOLAR_MIST)),
        "Z > 0.0142": log_met >= np.log10(SOLAR_MIST),
        "Z > 0.0142, age < 5 Gyr": (log_met >= np.log10(SOLAR_MIST)) & (age < 5.0),
        "Z > 0.0142, age > 6 Gyr": (log_met >= np.log10(SOLAR_MIST)) & (age >= 6.0),
        "redshift < 0.2": galaxies.redshift < 0.2,
        "redshift > 0.35": galaxies.redshift > 0.35,
    }.items():
        found[name] = match.difference[inside]
    return found


def summary(values: np.ndarray) -> dict[str, dict[str, float]]:
    """Quantiles of each colour's difference."""
    return {
        colour: dict(zip(map(str, QUANTILES), np.quantile(values[:, k], QUANTILES), strict=True))
        for k, colour in enumerate(COLOURS)
    }


def draw_figure(match: Comparison, path: Path) -> None:
    """Distributions of the colour differences; the spectra's ratio; medians against age and metallicity."""
    age, log_met = mass_weighted(match.galaxies)
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    axes = axes.ravel()
    for k, values in enumerate(match.difference.T):
        parts = axes[0].violinplot(values, [k], widths=0.85, showextrema=False)
        parts["bodies"][0].set_alpha(0.35)
        axes[0].plot(k, np.median(values), "ko", ms=4)
        axes[0].vlines(k, *np.quantile(values, (QUANTILES[0], QUANTILES[-1])), color="k", lw=1)
    axes[0].set_xticks(range(len(COLOURS)), [f"${colour}$" for colour in COLOURS])
    axes[0].set_title("colours of all galaxies: median and 5-95 %", fontsize=10)
    edges = np.geomspace(2050.0, 25_000.0, 90)
    low, middle, high = np.quantile(match.spectrum_ratio(edges), (0.16, 0.5, 0.84), axis=0)
    axes[1].fill_between(edges[1:], low, high, step="pre", alpha=0.3, lw=0)
    axes[1].step(edges[1:], middle, color="C0")
    for end in MILES_ENDS:
        axes[1].axvline(end, color="C3", ls="--", lw=1)
    axes[1].text(
        5100.0, 0.95, "MILES in both", color="C3", ha="center", va="top", transform=axes[1].get_xaxis_transform()
    )
    axes[1].set_xscale("log")
    axes[1].set_xticks([2000, 3000, 5000, 10_000, 20_000], ["2000", "3000", "5000", "10000", "20000"])
    axes[1].minorticks_off()
    axes[1].set_xlabel("rest wavelength [Angstrom]")
    axes[1].set_ylabel("magnitude here less FSPS, without dust [mag]")
    axes[1].set_title("spectra at equal mass: median and 16-84 %", fontsize=10)
    for axis, x, label in (
        (axes[2], age, "mass-weighted age [Gyr]"),
        (axes[3], log_met, r"$\log\,\langle Z\rangle$"),
    ):
        bounds = np.quantile(x, np.linspace(0.0, 1.0, 9))
        groups = [(x >= a) & (x <= b) for a, b in itertools.pairwise(bounds)]
        centres = [np.median(x[group]) for group in groups]
        for k, name in enumerate(COLOURS):
            medians = [np.median(match.difference[group, k]) for group in groups]
            colour = plt.get_cmap("turbo")((k + 0.5) / len(COLOURS))
            axis.plot(centres, medians, "o-", ms=3, lw=1.2, color=colour, label=f"${name}$")
        axis.set_xlabel(label)
    for axis in axes:
        axis.axhline(0.0, color="0.5", lw=0.8)
        axis.axhspan(-TOLERANCE, TOLERANCE, color="0.5", alpha=0.12, lw=0)
    for k in (0, 2, 3):
        axes[k].set_ylabel("colour here less colour of FSPS [mag]")
    axes[3].legend(fontsize=8, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emulator", type=Path, required=True, help="the emulator's .npz file")
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fsps.json"))
    args = parser.parse_args()
    match = Comparison(Emulator(args.emulator), draw(args.num, args.seed))
    found = experiments(match)
    rows = [[name, len(values), *np.median(values, axis=0)] for name, values in found.items()]
    spread = 0.5 * np.diff(np.quantile(match.difference, (0.16, 0.84), axis=0), axis=0)[0]
    rows.insert(1, ["  half of the 16-84 % range", args.num, *spread])
    edges = np.array([2050.0, 2900.0, *MILES_ENDS, 9000.0, 12_000.0, 18_000.0, 25_000.0])
    ratio = np.median(match.spectrum_ratio(edges), axis=0)
    bins = [f"{low:.0f}-{high:.0f}" for low, high in itertools.pairwise(edges)]
    extra = {
        "numbers": {name: summary(values) for name, values in found.items()},
        "magnitudes": dict(zip(BANDS, np.median(match.ours - match.theirs, axis=0), strict=True)),
        "rest_frame_magnitudes": dict(zip(bins, ratio, strict=True)),
        "explained": EXPLAINED,
    }
    draw_figure(match, args.out.with_suffix(".png"))
    finish("Against FSPS", ("median of colour here less FSPS [mag]", "galaxies", *COLOURS), rows, args.out, extra)


if __name__ == "__main__":
    main()
