"""Catalogues of galaxies: fluxes and errors in AB maggies, with an account of every row that was left out."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.table import Column, Table
from jaxtyping import Bool, Float, Int

from popsed_jax.catalog_config import BandConfig, CatalogConfig, CatalogError, FluxUnit, embedded_catalog_config
from popsed_jax.catalog_stream import Drop, read_galaxies
from popsed_jax.data import data_path
from popsed_jax.observe.filters import load_filter
from popsed_jax.tables import TableError, TableStream, open_table, write_table

__all__ = [
    "BandConfig",
    "Catalog",
    "CatalogConfig",
    "CatalogError",
    "Drop",
    "FluxUnit",
    "build_catalog",
    "embedded_catalog_config",
    "read_catalog",
]

_EMBEDDED = "sdss_galaxies"
# No galaxy is observed below the Lyman limit: a shorter mean wavelength was not given in Angstrom.
_SHORTEST_WAVE = 912.0


@dataclass(frozen=True, eq=False)
class Catalog:
    """Galaxies with a flux and an error in every band. The arrays cannot be written to.

    Attributes:
        name: what the catalogue is called.
        bands: names of the bands.
        filters: library name, or path, of each band's filter.
        flux: AB flux outside the Galaxy [maggies]; may be negative; NaN where the galaxy lacks the band.
        flux_error: its one-sigma error [maggies], positive; NaN likewise.
        row: number of each galaxy in the file it came from.
        redshift: spectroscopic redshift, NaN where unknown; `None` without such a column. For reports: a fit sees
            those that its settings let it (`SpectroscopyConfig.fraction`), none by default.
        num_rows_read: rows of the file.
        num_rows_dropped: rows of the file that were left out.
        drops: why they were left out.
        num_not_drawn: usable rows of the file that are not here because these were drawn at random (`max_galaxies`).
        upper_limits: for each band, the significance below which fluxes are upper limits at so many sigma; 0: none are. Where
            a band has them, fluxes below are set to the limit, so that all are quoted alike.

    Raises:
        CatalogError: shapes that disagree, infinite fluxes, errors that are not positive, or a galaxy without any band.
    """

    name: str
    bands: tuple[str, ...]
    filters: tuple[str, ...]
    flux: Float[np.ndarray, "galaxy band"]
    flux_error: Float[np.ndarray, "galaxy band"]
    row: Int[np.ndarray, " galaxy"]
    redshift: Float[np.ndarray, " galaxy"] | None = None
    num_rows_read: int = 0
    num_rows_dropped: int = 0
    drops: tuple[Drop, ...] = ()
    upper_limits: tuple[float, ...] = ()
    num_not_drawn: int = 0

    def __post_init__(self) -> None:
        """Check, then make the arrays read-only."""
        shape = (len(self.row), len(self.bands))
        if len(self.filters) != len(self.bands):
            raise CatalogError(f"{len(self.bands)} bands but {len(self.filters)} filters")
        for word in ("flux", "flux_error"):
            if getattr(self, word).shape != shape:
                raise CatalogError(
                    f"{word} must have the shape (galaxy, band) = {shape}, got {getattr(self, word).shape}"
                )
        if self.redshift is not None and self.redshift.shape != shape[:1]:
            raise CatalogError(f"redshift must have one value a galaxy, got the shape {self.redshift.shape}")
        object.__setattr__(self, "upper_limits", self.upper_limits or (0.0,) * len(self.bands))
        if len(self.upper_limits) != len(self.bands):
            raise CatalogError(f"{len(self.bands)} bands but {len(self.upper_limits)} upper_limits")
        missing = np.isnan(self.flux)
        if np.isinf(self.flux).any():
            raise CatalogError("flux must be finite, or NaN where a galaxy lacks the band")
        if missing.all(axis=1).any():
            raise CatalogError(f"galaxy {np.argmax(missing.all(axis=1))} has no flux in any band")
        error = self.flux_error[~missing]
        if not (np.isfinite(error).all() and (error > 0).all() and np.isnan(self.flux_error[missing]).all()):
            raise CatalogError(
                "flux_error must be finite and positive where there is a flux, and NaN where there is none"
            )
        for word, kind in (("flux", float), ("flux_error", float), ("row", np.int64), ("redshift", float)):
            if getattr(self, word) is not None:
                array = np.array(getattr(self, word), dtype=kind)
                array.flags.writeable = False
                object.__setattr__(self, word, array)

    def __len__(self) -> int:
        """Number of galaxies."""
        return len(self.row)

    def subset(
        self, index: Int[np.ndarray, " chosen"] | Bool[np.ndarray, " galaxy"] | Sequence[int] | slice
    ) -> Catalog:
        """Some of the galaxies: by number, by mask or by slice. The account of the reading stays as it was."""
        if not isinstance(index, slice):
            index = np.atleast_1d(index)
            index = index.astype(int) if index.size == 0 else index
        return Catalog(
            name=self.name,
            bands=self.bands,
            filters=self.filters,
            flux=self.flux[index],
            flux_error=self.flux_error[index],
            row=self.row[index],
            redshift=None if self.redshift is None else self.redshift[index],
            num_rows_read=self.num_rows_read,
            num_rows_dropped=self.num_rows_dropped,
            drops=self.drops,
            upper_limits=self.upper_limits,
            num_not_drawn=self.num_not_drawn,
        )

    def checksum(self) -> str:
        """By which catalogues of other galaxies, fluxes, errors or redshifts are told apart."""
        parts = [self.flux, self.flux_error, *([] if self.redshift is None else [self.redshift])]
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]

    def summary(self) -> tuple[str, ...]:
        """What the catalogue holds and what was left out, a line each."""
        lines = [f"{self.name}: {len(self):,} galaxies in {len(self.bands)} bands ({' '.join(self.bands)})"]
        lines.append(f"{self.num_rows_read:,} rows read, {self.num_rows_dropped:,} left out")
        if self.num_not_drawn:
            usable = self.num_rows_read - self.num_rows_dropped
            kept = f"kept {usable - self.num_not_drawn:,} of {usable:,} usable galaxies"
            lines.append(f"{kept}, drawn at random (max_galaxies)")
        lines += [
            f"  {drop.count:,} row{'s' * (drop.count > 1)}: {drop.reason} ({_row_list(drop)})" for drop in self.drops
        ]
        if sum(drop.count for drop in self.drops) > self.num_rows_dropped:
            lines.append("  (a row with several faults counts under each)")
        if len(self):
            lines += [self._band_line(i) for i in range(len(self.bands))]
        if self.redshift is not None:
            known = int(np.isfinite(self.redshift).sum())
            lines.append(
                f"redshift known for {known:,}; reports compare with it; fits see those that [spectroscopy] lets them"
            )
        return tuple(lines)

    def _band_line(self, i: int) -> str:
        """Depth and quality of one band."""
        there = np.isfinite(self.flux[:, i])
        flux, error = self.flux[there, i], self.flux_error[there, i]
        lacking = f", missing for {np.sum(~there):,}" if not there.all() else ""
        limited = ""
        if self.upper_limits[i]:
            num = int(np.sum(flux <= self.upper_limits[i] * error * (1.0 + 1e-9)))
            limited = f", upper limits ({self.upper_limits[i]:g} sigma) for {num:,}"
        bright = flux[flux > 0]
        mags = np.percentile(-2.5 * np.log10(bright), [5, 50, 95]) if len(bright) else np.full(3, np.nan)
        negative = f", {np.sum(flux <= 0):,} fluxes not positive" if np.any(flux <= 0) else ""
        return (
            f"band {self.bands[i]} ({self.filters[i]}): AB {mags[1]:.2f} (5-95 %: {mags[0]:.2f} to {mags[2]:.2f}), "
            f"median signal-to-noise {np.median(flux / error):.3g}{negative}{limited}{lacking}"
        )

    def to_table(self) -> Table:
        """The catalogue as a table with units and descriptions: `row`, `flux_NAME`, `flux_error_NAME`, `redshift`."""
        table = Table(meta={"name": self.name, "bands": list(self.bands), "filters": list(self.filters)})
        table["row"] = Column(self.row, description="number of the galaxy in the file it came from")
        for i, (band, filt) in enumerate(zip(self.bands, self.filters, strict=True)):
            text = f"AB flux through {filt}, outside the Galaxy"
            table[f"flux_{band}"] = Column(self.flux[:, i], unit="mgy", description=text)
            table[f"flux_error_{band}"] = Column(self.flux_error[:, i], unit="mgy", description=f"error of flux_{band}")
        if self.redshift is not None:
            table["redshift"] = Column(self.redshift, description="spectroscopic redshift")
        return table

    def write(self, path: str | os.PathLike[str]) -> CatalogConfig:
        """Write to FITS, HDF5, Parquet, ECSV or CSV, by suffix.

        Returns:
            The settings with which `read_catalog` reads it back as it is.

        Raises:
            CatalogError: the file cannot be written.
        """
        try:
            write_table(self.to_table(), path)
        except TableError as error:
            raise CatalogError(str(error)) from error
        bands = tuple(
            BandConfig(filter=filt, flux=f"flux_{band}", name=band, error=f"flux_error_{band}", upper_limit=limit)
            for band, filt, limit in zip(self.bands, self.filters, self.upper_limits, strict=True)
        )
        fewest = int(np.isfinite(self.flux).sum(axis=1).min()) if len(self) else len(self.bands)
        redshift = "" if self.redshift is None else "redshift"
        return CatalogConfig(
            path=str(Path(path).resolve()),
            flux_unit="maggies",
            redshift=redshift,
            bands=bands,
            sentinels=(),
            name=self.name,
            row="row",
            min_bands=0 if fewest == len(self.bands) else fewest,
            max_galaxies=0,
        )


def build_catalog(
    name: str,
    bands: Sequence[str],
    filters: Sequence[str],
    flux: Float[np.ndarray, "galaxy band"],
    flux_error: Float[np.ndarray, "galaxy band"],
    redshift: Float[np.ndarray, " galaxy"] | None = None,
    upper_limits: Sequence[float] = (),
) -> Catalog:
    """A catalogue from arrays, such as a simulated one; its rows are numbered from 0.

    Args:
        flux: AB flux [maggies]; NaN where a galaxy lacks the band.
        flux_error: one-sigma error [maggies]; NaN likewise.

    Raises:
        CatalogError: as for `Catalog`.
    """
    flux = np.asarray(flux, dtype=float)
    return Catalog(
        name=name,
        bands=tuple(bands),
        filters=tuple(filters),
        flux=flux,
        flux_error=np.asarray(flux_error, dtype=float),
        row=np.arange(len(flux)),
        redshift=None if redshift is None else np.asarray(redshift, dtype=float),
        num_rows_read=len(flux),
        upper_limits=tuple(upper_limits),
    )


def read_catalog(
    config: CatalogConfig,
    base: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Catalog:
    """Read a catalogue, correct it to AB outside the Galaxy, and leave out the rows that cannot be used.

    A row is left out when any band lacks a finite flux, a finite positive error or (where asked for) an extinction,
    when a magnitude is impossible, or when the row repeats an earlier one in every column; all are counted in `drops`.
    With `min_bands`, such a band is missing and the row stays as long as it has so many others. Negative fluxes are ordinary
    and stay. A redshift that is missing or impossible becomes NaN and its galaxy stays.

    Of more than `max_galaxies` usable rows, a uniform random sample is kept, in the order of the file; it is the same each
    time, and for any division into row groups or files. To the fit the sample is the catalogue: its ensemble has the
    bootstrap of so many galaxies, not of all, and its errors are on the safe side. Parquet is read piece by piece and may be
    larger than memory; other formats are read whole. Copies are compared by the columns that the settings name, where three
    bands or more tell copies from chance, else by all; of galaxies that are not kept, copies are not counted.

    Args:
        config: what the columns mean; an empty one means the embedded galaxies.
        base: folder to which relative paths in `config` refer; the working folder unless given.
        progress: is told the rows read and all rows after each piece.

    Raises:
        CatalogError: a file that cannot be read, parts with different columns, columns that are missing or are no numbers,
            unknown filters, values that cannot be of the unit given, or no row left. Faults of several columns are reported
            together.
    """
    config = config.resolved()
    folder = Path.cwd() if base is None else Path(base)
    path = catalog_path(config, folder)
    problems: list[str] = []
    with naming(path):
        stream = open_rows(path, config)
        filters = tuple(_checked_filter(band, folder, problems) for band in config.bands)
        read = read_galaxies(stream, config, problems, progress)
    return Catalog(
        name=config.name or path.name.split(".")[0],
        bands=tuple(band.name for band in config.bands),
        filters=filters,
        flux=read.flux,
        flux_error=read.flux_error,
        row=read.row,
        redshift=read.redshift if config.redshift else None,
        num_rows_read=stream.num_rows,
        num_rows_dropped=read.num_dropped,
        drops=read.drops,
        upper_limits=tuple(band.upper_limit for band in config.bands),
        num_not_drawn=read.num_not_drawn,
    )


def catalog_path(config: CatalogConfig, folder: Path) -> Path:
    """Where the file is that the settings name, or the embedded one."""
    return folder / Path(config.path).expanduser() if config.path else data_path(_EMBEDDED)


def open_rows(path: Path, config: CatalogConfig) -> TableStream:
    """The table with the rows of a catalogue.

    Raises:
        TableError: it cannot be read, or has no rows.
    """
    stream = open_table(path, config.hdu)
    if stream.num_rows == 0:
        raise TableError(f"{path}: the table has no rows")
    return stream


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets every failure be a `CatalogError` that names the file."""
    try:
        yield
    except TableError as error:
        raise CatalogError(str(error)) from error
    except CatalogError as error:
        raise CatalogError(*(f"{path}: {problem}" for problem in error.problems)) from error


def _checked_filter(band: BandConfig, folder: Path, problems: list[str]) -> str:
    """The filter's library name, or the full path of its curve."""
    path = folder / Path(band.filter).expanduser()
    name = str(path.resolve()) if path.is_file() else band.filter
    try:
        with warnings.catch_warnings():
            # numpy warns of an empty file before it fails on it.
            warnings.simplefilter("ignore", UserWarning)
            mean_wave = load_filter(name).effective_wave
    except (OSError, ValueError) as error:
        problems.append(f"band {band.name!r}: {error}")
        return name
    if not mean_wave > _SHORTEST_WAVE:
        problems.append(
            f"band {band.name!r}: the filter {name} has a mean wavelength of {mean_wave:.4g} Angstrom; "
            "are its wavelengths in nm or um? Write them in Angstrom"
        )
    return name


def _row_list(drop: Drop) -> str:
    """The first few rows, in words."""
    more = ", ..." if drop.count > len(drop.rows) else ""
    return f"row{'s' if drop.count > 1 else ''} {', '.join(map(str, drop.rows))}{more}"
