"""What fitted populations say of galaxies, against published tables: mass functions and the main sequence.

python benchmarks/science.py --literature DIR --sdss RUN --zcosmos RUN

RUN are run directories: `popsed-jax fit --out RUN`, and `python benchmarks/zcosmos.py --run RUN`. DIR holds the unpacked tables
of Moustakas+13 (mass functions from SDSS and PRIMUS), Driver+22 (GAMA), Bauer+13 (GAMA) and Leja+22 (COSMOS and 3D-HST), as
collected by shark and velociraptor; they are not shipped.

Mass functions are of the intrinsic population in slices of redshift, per comoving volume, above the mass at which half of the
galaxies are kept at the slice's far edge. The catalogues' areas and sampling are not used: heights are matched to the published
function, and what is compared is the shape. The main sequence is the median rate of star-forming galaxies, sSFR > 10^-10.8 / yr.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from common import finish
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import popsed_jax as pj
from popsed_jax.cosmology import Cosmology
from popsed_jax.population.intrinsic import intrinsic_weights

TO_CHABRIER = (
    -0.034
)  # log10 of a mass of Kroupa's to one of Chabrier's initial mass function (Madau & Dickinson 14, sec. 3.1)
SSFR_CUT = -10.8
WIDTH = 0.2  # of the bins in mass [dex]


class Run(NamedTuple):
    """A run's intrinsic galaxies."""

    z: np.ndarray
    mass: np.ndarray
    log_sfr: np.ndarray
    member: np.ndarray
    weights: np.ndarray
    limits: list[dict[str, Any]]


def load(folder: Path) -> Run:
    samples = pj.read_table(folder / "samples.parquet")
    metrics = json.loads((folder / "metrics.json").read_text())
    columns = [np.asarray(samples[name], float) for name in ("redshift", "log_mass_surviving", "log_sfr", "member")]
    columns[1] += TO_CHABRIER
    columns[2] += TO_CHABRIER
    weights = intrinsic_weights(np.asarray(samples["detection"], float), 1.0)
    return Run(*columns, weights, metrics["visibility"]["limits"])


def mass_function(run: Run, low: float, high: float, at: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """log10 of the number per volume and dex, up to a constant; NaN where fewer than 30 draws say so."""
    cosmology = Cosmology()
    grid = np.linspace(low, high, 200)
    volume = np.trapezoid(np.asarray(cosmology.differential_volume(jnp.asarray(grid))), grid)
    inside = chosen & (run.z >= low) & (run.z < high)
    found = []
    for mass in at:
        here = inside & (np.abs(run.mass - mass) < 0.5 * WIDTH)
        total = run.weights[here].sum() / volume / WIDTH
        found.append(np.log10(total) if here.sum() >= 30 and total > 0 else np.nan)
    return np.array(found)


def complete_above(run: Run, z: float) -> float:
    """Surviving mass above which half of the galaxies are kept at this redshift."""
    known = [(row["redshift"], row["complete_above"]) for row in run.limits if row["complete_above"] is not None]
    return float(np.interp(z, *zip(*known, strict=True))) - 0.2 + TO_CHABRIER  # a fifth of a dex of the mass has died


def compare(found: np.ndarray, published: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """The function moved to the published height, and how far the shapes are apart [dex]."""
    good = np.isfinite(found) & np.isfinite(published)
    if good.sum() < 4:
        return found, {"rms [dex]": float("nan"), "worst [dex]": float("nan"), "bins": int(good.sum())}
    moved = found + np.median((published - found)[good])
    gap = (moved - published)[good]
    return moved, {"rms [dex]": float(np.std(gap)), "worst [dex]": float(np.abs(gap).max()), "bins": int(good.sum())}


def draw(ax: Axes, run: Run, low: float, high: float, table: np.ndarray, title: str) -> dict[str, float]:
    at, published = table
    above = at >= complete_above(run, high)
    published = np.where(above, published, np.nan)
    everything = np.ones(len(run.z), bool)
    moved, numbers = compare(np.where(above, mass_function(run, low, high, at, everything), np.nan), published)
    shift = np.nanmedian(moved - mass_function(run, low, high, at, everything))
    for member in np.unique(run.member):
        each = mass_function(run, low, high, at, run.member == member)
        total = run.weights[run.member == member].sum()
        ax.plot(at, np.where(above, each - np.log10(total) + shift, np.nan), color="tab:blue", alpha=0.3, linewidth=0.8)
    ax.plot(at, table[1], color="0.5", linewidth=3.0, alpha=0.6, label="published")
    ax.plot(at, moved, color="tab:blue", linewidth=1.8, label="learned, height matched")
    ax.set(title=title, xlabel="log surviving mass [Msun]", ylim=(-6.0, -1.5), xlim=(8.4, 12.0))
    ax.text(0.05, 0.07, f"rms {numbers['rms [dex]']:.2f} dex", transform=ax.transAxes)
    return numbers


def sequence(run: Run, low: float, high: float, at: np.ndarray) -> np.ndarray:
    """Median log10 SFR [Msun/yr] of star-forming galaxies at these masses."""
    inside = (run.z >= low) & (run.z < high) & (run.log_sfr - run.mass > SSFR_CUT)
    medians = []
    for mass in at:
        here = inside & (np.abs(run.mass - mass) < 0.5 * WIDTH)
        order = np.argsort(run.log_sfr[here])
        share = np.cumsum(run.weights[here][order])
        enough = here.sum() >= 30
        medians.append(np.interp(0.5, share / share[-1], run.log_sfr[here][order]) if enough else np.nan)
    return np.array(medians)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--literature", type=Path, required=True)
    parser.add_argument("--sdss", type=Path, required=True)
    parser.add_argument("--zcosmos", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/science.json"))
    args = parser.parse_args()
    sdss, zcosmos = load(args.sdss), load(args.zcosmos)
    moustakas = np.loadtxt(args.literature / "data/mf/SMF/SMF_Moustakas2013.dat")
    driver = np.loadtxt(args.literature / "data/mf/SMF/GAMAIV_Driver22.dat")
    rates = args.literature / "data/GalaxyStellarMassSpecificStarFormationRate/raw"
    bauer = np.loadtxt(rates / "Bauer2013.txt")
    figure = Figure(figsize=(13.0, 9.0), layout="constrained")
    axes = figure.subplots(3, 4).ravel()
    rows: list[list[Any]] = []

    def add(name: str, numbers: dict[str, float]) -> None:
        rows.append([name, *numbers.values()])

    near = driver[np.argsort(driver[:, 0])]
    numbers = draw(axes[0], sdss, 0.02, 0.10, near[:, :2].T, "SDSS, 0.02 < z < 0.10, Driver+22")
    add("SDSS mass function, z < 0.10, Driver+22", numbers)
    slices = [(sdss, "SDSS", 0.02, 0.12, 0.01)]
    slices += [
        (zcosmos, "zCOSMOS", z, h, z)
        for z, h in ((0.2, 0.3), (0.3, 0.4), (0.4, 0.5), (0.5, 0.65), (0.65, 0.8), (0.8, 1.0))
    ]
    for ax, (run, name, low, high, key) in zip(axes[1:], slices, strict=False):
        table = moustakas[np.isclose(moustakas[:, 0], key) & (moustakas[:, 4] == 1)][:, [3, 5]].T
        add(
            f"{name} mass function, {low} < z < {high}, Moustakas+13",
            draw(ax, run, low, high, table, f"{name}, {low} < z < {high}"),
        )
    mains = [(sdss, "SDSS, Bauer+13", 0.02, 0.08, bauer[:, 0], bauer[:, 0] + bauer[:, 1])]
    for z, low, high in (("0p3", 0.2, 0.4), ("0p6", 0.5, 0.7), ("1p0", 0.8, 1.1)):
        leja = np.loadtxt(rates / f"Leja2022_z{z}.txt", delimiter=",")[::8]
        mains.append((zcosmos, f"zCOSMOS, Leja+22 z = {z.replace('p', '.')}", low, high, leja[:, 0], leja[:, 1]))
    for ax, (run, name, low, high, at, published) in zip(axes[8:], mains, strict=True):
        median = sequence(run, low, high, at)
        above = at >= complete_above(run, 0.5 * (low + high))
        gap = (median - published)[above & np.isfinite(median)]
        numbers = {
            "rms [dex]": float(np.sqrt(np.mean(gap**2))) if len(gap) else float("nan"),
            "worst [dex]": float(np.abs(gap).max()) if len(gap) else float("nan"),
            "bins": len(gap),
        }
        add(f"{name}: main sequence, median offset {np.median(gap):+.2f} dex", numbers)
        ax.plot(at, published, color="0.5", linewidth=3.0, alpha=0.6, label="published")
        ax.plot(at, np.where(above, median, np.nan), color="tab:blue", linewidth=1.8, label="learned")
        ax.set(title=f"{name}", xlabel="log surviving mass [Msun]", ylim=(-1.5, 2.2), xlim=(8.4, 11.8))
        ax.text(0.05, 0.88, f"rms {numbers['rms [dex]']:.2f} dex", transform=ax.transAxes)
    for i in (0, 4):
        axes[i].set_ylabel("log number [Mpc$^{-3}$ dex$^{-1}$]")
    axes[8].set_ylabel("log SFR [Msun/yr]")
    axes[0].legend(frameon=False, fontsize=9, loc="center left")
    path = args.out.with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    finish(
        "Against published tables", ["what", "rms [dex]", "worst [dex]", "bins"], rows, args.out, {"figure": path.name}
    )


if __name__ == "__main__":
    main()
