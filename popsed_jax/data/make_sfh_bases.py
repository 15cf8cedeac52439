"""Make `sfh_bases.ecsv`: four non-negative basis star-formation histories from a library of Diffstar histories.

    pip install diffstar==1.0.3 diffmah==0.7.3 scikit-learn
    python -m popsed_jax.data.make_sfh_bases --out DIR

A basis is a density B_k(x) in fractional cosmic time x = t / t_univ, from the big bang (0) to the epoch of
observation (1), with unit integral, so that a galaxy that formed a mass M has

    SFR(t) = M sum_k beta_k B_k(t / t_univ) / t_univ,     sum_k beta_k = 1.

Library: haloes with log-uniform masses at the epoch of observation and t_univ uniform between 6 and 13.8 Gyr, mass
accretion histories from Diffmah's population model, and for each halo one main-sequence and one quenched history from
Diffstar's population model as calibrated on each of five simulations. Every history is normalised to unit mass.

Factorisation: non-negative, by generalised Kullback-Leibler divergence (Lee & Seung 2001), with times weighted by 1 /
(1 - x + 0.1): young stars outshine old ones, and the last gigayears need the resolution. Three of the four bases that
result stop forming stars before x = 1 but for a small leak; the leak is removed by subtracting a small fraction of
its peak from every basis and cutting at zero (continuous, unlike a threshold), after which only the last basis forms
stars at x > 0.95: its weight alone sets the recent star formation, and a quiescent galaxy is one with little of it.

The idea of an NMF basis of simulated histories: PROVABGS, Hahn et al. 2023 (arXiv:2202.01809).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.table import Table
from jaxtyping import Float
from scipy.optimize import nnls

from popsed_jax.data import DATA_FILES, file_sha256

YEARS_PER_GYR = 1e9
RECENT_GYR = 0.1  # what "recent" means in a specific star-formation rate


@dataclass(frozen=True)
class BasesConfig:
    """How the library is drawn and factorised.

    Attributes:
        num_halo: haloes drawn for each calibration; each gives two histories.
        calibrations: simulations that Diffstar's population model was calibrated on.
        log_halo_mass: range of log10 halo mass at the epoch of observation [Msun].
        t_univ: range of the age of the Universe at the epoch of observation [Gyr].
        t_today: age of the Universe today in Diffstar [Gyr].
        baryon_fraction: cosmic baryon fraction in Diffstar.
        num_basis: number of bases.
        num_node: nodes of x, uniform in [0, 1].
        weight_softening: times weigh 1 / (1 - x + weight_softening) in the factorisation.
        leak: fraction of its own peak subtracted from each basis.
        max_iter: iterations of the factorisation.
        seed: of the library and of the factorisation.
    """

    num_halo: int = 1000
    calibrations: tuple[str, ...] = (
        "smdpl_dr1",
        "smdpl_dr1_nomerging",
        "tng",
        "galacticus_in_situ",
        "galacticus_in_plus_ex_situ",
    )
    log_halo_mass: tuple[float, float] = (11.0, 14.0)
    t_univ: tuple[float, float] = (6.0, 13.8)
    t_today: float = 13.8
    baryon_fraction: float = 0.156
    num_basis: int = 4
    num_node: int = 151
    weight_softening: float = 0.1
    leak: float = 0.002
    max_iter: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        for name in ("num_halo", "num_basis", "max_iter"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_node < 11:
            raise ValueError(f"num_node must be at least 11, got {self.num_node}")
        if not self.log_halo_mass[0] < self.log_halo_mass[1]:
            raise ValueError(f"log_halo_mass must be an increasing range, got {self.log_halo_mass}")
        if not 0 < self.t_univ[0] < self.t_univ[1] <= self.t_today:
            raise ValueError(f"t_univ must be an increasing range up to t_today = {self.t_today}, got {self.t_univ}")
        if not 0 <= self.leak < 0.1:
            raise ValueError(f"leak must be in [0, 0.1), got {self.leak}")
        if not self.weight_softening > 0:
            raise ValueError(f"weight_softening must be positive, got {self.weight_softening}")


class Library(NamedTuple):
    """Histories of unit mass: density in x, and the age of the Universe when the galaxy is seen [Gyr]."""

    x: Float[np.ndarray, " node"]
    density: Float[np.ndarray, "history node"]
    t_univ: Float[np.ndarray, " history"]


def draw_library(config: BasesConfig) -> Library:
    """Draw the histories.

    Raises:
        ImportError: diffstar and diffmah are not installed (they are needed only here).
        FloatingPointError: a history is not finite, or forms no stars.
    """
    import jax
    import jax.numpy as jnp
    from diffmah.diffmahpop_kernels import DEFAULT_DIFFMAHPOP_PARAMS
    from diffmah.diffmahpop_kernels.mc_bimod_cens import mc_diffmah_cenpop
    from diffstar import calc_sfh_singlegal
    from diffstar.diffstarpop import SIMULATION_FIT_PARAMS, mc_diffstar_params_galpop

    x = np.linspace(0.0, 1.0, config.num_node)
    log_today = np.log10(config.t_today)
    num = config.num_halo
    zero, central = jnp.zeros(num), -jnp.ones(num, dtype=int)

    def history(sfh_params, mah_params, t_univ):
        # Diffstar works in log time: the first node, where the rate is zero, is moved off the big bang.
        time = jnp.maximum(x * t_univ, 0.02)
        return calc_sfh_singlegal(sfh_params, mah_params, time, lgt0=log_today, fb=config.baryon_fraction)

    densities, ages = [], []
    for i, calibration in enumerate(config.calibrations):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), i), 4)
        low, high = config.log_halo_mass
        log_mass = jax.random.uniform(keys[0], (num,), minval=low, maxval=high)
        t_univ = jax.random.uniform(keys[1], (num,), minval=config.t_univ[0], maxval=config.t_univ[1])
        halo = mc_diffmah_cenpop(DEFAULT_DIFFMAHPOP_PARAMS, log_mass, t_univ, keys[2], log_today).mah_params
        params = SIMULATION_FIT_PARAMS[calibration]
        # Centrals: no infall, which Diffstar marks by a time since infall of -100 Gyr.
        drawn = mc_diffstar_params_galpop(params, halo.logm0, halo.t_peak, central, zero, zero, zero - 100.0, keys[3])
        for main_sequence_or_quenched in drawn[:2]:
            densities.append(np.asarray(jax.vmap(history)(main_sequence_or_quenched, halo, t_univ), dtype=float))
            ages.append(np.asarray(t_univ, dtype=float))
    density = np.concatenate(densities)
    density[:, 0] = 0.0
    mass = np.trapezoid(density, x, axis=1)
    if not (np.all(np.isfinite(density)) and np.all(mass > 0)):
        raise FloatingPointError("a drawn history is not finite or forms no stars; draw with another seed")
    return Library(x, density / mass[:, None], np.concatenate(ages))


def time_weight(x: Float[np.ndarray, " node"], softening: float) -> Float[np.ndarray, " node"]:
    """Weight of each time in the factorisation, of unit mean."""
    weight = 1.0 / (1.0 - x + softening)
    return weight / weight.mean()


def factorise(library: Library, config: BasesConfig) -> Float[np.ndarray, "basis node"]:
    """Bases of unit integral, ordered from the earliest to the latest mean time.

    Notes:
        The Kullback-Leibler divergence is homogeneous: scaling a column of the data by c weighs it by c. The start is
        deterministic (SVD), so the seed of the factorisation does not matter.

    Raises:
        ImportError: scikit-learn is not installed (it is needed only here).
    """
    from sklearn.decomposition import NMF

    weight = time_weight(library.x, config.weight_softening)
    model = NMF(
        config.num_basis,
        init="nndsvda",
        solver="mu",
        beta_loss="kullback-leibler",
        tol=1e-5,
        max_iter=config.max_iter,
        random_state=config.seed,
    )
    model.fit(library.density * weight)
    bases = model.components_ / weight
    bases = np.maximum(bases - config.leak * bases.max(axis=1, keepdims=True), 0.0)
    bases /= np.trapezoid(bases, library.x, axis=1)[:, None]
    return bases[np.argsort(np.trapezoid(bases * library.x, library.x, axis=1))]


def recent_ssfr(
    x: Float[np.ndarray, " node"], density: Float[np.ndarray, "history node"], t_univ: Float[np.ndarray, " history"]
) -> Float[np.ndarray, " history"]:
    """Mean star-formation rate of the last 0.1 Gyr per unit mass formed [1/yr]."""
    fractions = np.linspace(0.0, 1.0, 9)
    rates = [
        np.trapezoid(np.interp(1.0 - fractions * RECENT_GYR / age, x, row), fractions) / (age * YEARS_PER_GYR)
        for row, age in zip(density, t_univ, strict=True)
    ]
    return np.array(rates)


def reconstruct(library: Library, bases: np.ndarray, config: BasesConfig) -> Float[np.ndarray, "history basis"]:
    """Weights (non-negative, summing to one) that fit each history best, by least squares with the times weighted."""
    scale = np.sqrt(time_weight(library.x, config.weight_softening))
    # A heavy extra row holds the sum of the weights at one.
    heavy = 1e3
    design = np.vstack([(bases * scale).T, np.full(len(bases), heavy)])
    weights = np.stack([nnls(design, np.append(row * scale, heavy))[0] for row in library.density])
    return weights / weights.sum(axis=1, keepdims=True)


def measure(library: Library, bases: np.ndarray, config: BasesConfig) -> dict[str, float]:
    """How well the bases stand for the library: figures for the file's header.

    L1 is the integral of |history - reconstruction| over x (0 to 2). The error of log sSFR is that of galaxies with
    sSFR above 1e-11 / yr. The other figures say how often a quiescent history stays so, and how often sSFR * t_univ
    exceeds the largest rate of any basis at x = 1, which only a burst can then supply.
    """
    density = reconstruct(library, bases, config) @ bases
    l1 = np.trapezoid(np.abs(density - library.density), library.x, axis=1)
    true = recent_ssfr(library.x, library.density, library.t_univ)
    fitted = recent_ssfr(library.x, density, library.t_univ)
    active, quiescent = true > 1e-11, true < 1e-12
    # The floor only keeps the logarithm finite; it is far below what photometry can tell from zero.
    dex = np.abs(np.log10(fitted[active] + 1e-13) - np.log10(true[active] + 1e-13))
    figures = {
        "l1_median": np.median(l1),
        "l1_95": np.percentile(l1, 95),
        "active_fraction": active.mean(),
        "active_log_ssfr_error_median": np.median(dex),
        "active_log_ssfr_error_95": np.percentile(dex, 95),
        "active_fitted_below_1e-12": np.mean(fitted[active] < 1e-12),
        "above_largest_basis_rate": np.mean(true * library.t_univ * YEARS_PER_GYR > bases[:, -1].max()),
        "quiescent_fraction": quiescent.mean(),
        "quiescent_fitted_below_1e-12": np.mean(fitted[quiescent] < 1e-12),
        "quiescent_fitted_below_1e-11": np.mean(fitted[quiescent] < 1e-11),
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


def build_bases(out: Path, config: BasesConfig | None = None) -> Path:
    """Make the file in the folder `out`, and return its path."""
    config = config or BasesConfig()
    library = draw_library(config)
    # Five decimals of a density of order one: the file is text, and the trapezoid integrals stay at one to 1e-5.
    bases = np.round(factorise(library, config), 5)
    entry = DATA_FILES["sfh_bases"]
    table = Table({"x": np.round(library.x, 8), **{f"basis{k + 1}": row for k, row in enumerate(bases)}})
    table["x"].description = "t / t_univ"
    for k in range(len(bases)):
        table[f"basis{k + 1}"].description = "density in x, unit integral"
    packages = ("diffstar", "diffmah", "scikit-learn", "jax", "numpy")
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
    table.meta = {
        "what": entry.what,
        "definition": "SFR(t) = M_formed * sum_k beta_k B_k(t / t_univ) / t_univ, sum_k beta_k = 1",
        "made_by": entry.made_by,
        "licence": entry.licence,
        "citation": entry.citation,
        "made_with": {name: version(name) for name in packages},
        "settings": settings,
        "num_history": len(library.density),
        "measured": measure(library, bases, config),
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / entry.file
    table.write(path, format="ascii.ecsv", overwrite=True)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description="Make the basis star-formation histories.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args(argv)
    path = build_bases(args.out)
    print(f"{file_sha256(path)}  {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
