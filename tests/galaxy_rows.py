"""A catalogue with a bad row of every kind, and an estimator that needs no time: for the tests of whole-catalogue products."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from astropy.table import Table

from popsed_jax.catalog import BandConfig, CatalogConfig
from popsed_jax.flags import Flag
from popsed_jax.posteriors.estimator import Columns, Rows

BANDS = ("g", "r", "i")
SENTINEL = -99.0


def config_for(path: object, **changes: object) -> CatalogConfig:
    bands = tuple(BandConfig(filter=f"sdss_{b}0", flux=f"f_{b}", error=f"e_{b}", name=b) for b in BANDS)
    given = {"path": str(path), "flux_unit": "nanomaggies", "bands": bands, "redshift": "z"}
    return CatalogConfig(**{**given, **changes})


def good_table(num: int, seed: int = 0) -> Table:
    """Galaxies of AB 17 to 21 [nanomaggies]."""
    rng = np.random.default_rng(seed)
    table = Table({"id": rng.permutation(10 * num)[:num] + 2**53})
    for b in BANDS:
        table[f"f_{b}"] = 10 ** (-0.4 * (rng.uniform(17.0, 21.0, num) - 22.5))
        table[f"e_{b}"] = rng.uniform(0.1, 0.2, num)
    table["z"] = rng.uniform(0.0, 0.4, num)
    return table


# Name of a fault -> columns that it changes, and the flags that follow with `min_bands = 2`.
FAULTS: dict[str, tuple[dict[str, float], Flag]] = {
    "good": ({}, Flag(0)),
    "negative flux": ({"f_g": -0.3}, Flag(0)),
    "nan flux": ({"f_g": np.nan}, Flag.MISSING_BAND),
    "infinite flux": ({"f_r": np.inf}, Flag.MISSING_BAND),
    "sentinel flux": ({"f_i": SENTINEL}, Flag.MISSING_BAND),
    "nan error": ({"e_g": np.nan}, Flag.MISSING_BAND),
    "sentinel error": ({"e_r": SENTINEL}, Flag.MISSING_BAND),
    "zero error": ({"e_i": 0.0}, Flag.BAD_ERROR),
    "negative error": ({"e_g": -0.1}, Flag.BAD_ERROR),
    "impossible flux": ({"f_r": 1e12}, Flag.BAD_FLUX),
    "overflowing flux": ({"f_r": -1e308}, Flag.BAD_FLUX),
    "impossible error": ({"e_r": 1e300}, Flag.BAD_FLUX),
    "error of nothing": ({"e_r": 1e-30}, Flag.BAD_FLUX),
    "two faults": ({"f_g": np.nan, "e_r": 0.0}, Flag.MISSING_BAND | Flag.BAD_ERROR | Flag.FEW_BANDS),
    "no bands": ({f"f_{b}": np.nan for b in BANDS}, Flag.MISSING_BAND | Flag.NO_BAND),
    "zero errors": ({f"e_{b}": 0.0 for b in BANDS}, Flag.BAD_ERROR | Flag.NO_BAND),
    "no redshift": ({"z": np.nan}, Flag(0)),
    "sentinel redshift": ({"z": SENTINEL}, Flag(0)),
    "negative redshift": ({"z": -0.02}, Flag.BAD_REDSHIFT),
    "infinite redshift": ({"z": np.inf}, Flag.BAD_REDSHIFT),
    "redshift of nothing": ({"z": 1e4}, Flag.BAD_REDSHIFT),
    "all at once": ({"f_g": SENTINEL, "f_r": 1e12, "e_i": 0.0, "z": -3.0}, Flag(4 | 8 | 16 | 32 | 1)),
}


def spoiled_table(kinds: list[str], seed: int = 0) -> Table:
    """A row of each kind, in this order."""
    table = good_table(len(kinds), seed)
    for i, kind in enumerate(kinds):
        for name, value in FAULTS[kind][0].items():
            table[name][i] = value
    return table


@dataclass
class FakeEstimator:
    """Mean magnitude, some of the seed's random numbers and a vector; `calls` remembers what it was given."""

    bands: tuple[str, ...] = BANDS
    length: int = 4
    calls: list[tuple[int, Rows]] = field(default_factory=list)

    def describe(self) -> dict[str, tuple[str, str]]:
        return {
            "mean_flux": ("mgy", "mean flux"),
            "noise": ("", "noise of the seed"),
            "pz": ("", "a density on a grid"),
        }

    def __call__(self, seed: int, rows: Rows) -> Columns:
        self.calls.append((seed, rows))
        num = len(rows.row)
        mean = np.nanmean(rows.flux, axis=1) if num else np.empty(0)
        grid = np.arange(self.length) + np.nan_to_num(rows.redshift)[:, None]
        return {
            "pz": grid.astype(np.float32),
            "mean_flux": mean,
            "noise": np.random.default_rng(seed).random(num),
            "flags": np.where(rows.row % 7 == 0, int(Flag.LOW_ESS), 0),
        }
