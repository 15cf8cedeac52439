"""What a catalogue's columns mean: the `[catalog]` table of a settings file."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from popsed_jax.settings import nearest

__all__ = ["BandConfig", "CatalogConfig", "CatalogError", "FluxUnit", "embedded_catalog_config"]

FluxUnit = Literal["maggies", "nanomaggies", "uJy", "mJy", "ABmag", "asinhmag"]
FLUX_UNITS: tuple[str, ...] = get_args(FluxUnit)
MAGNITUDE_UNITS = ("ABmag", "asinhmag")

_FLUX_SENTINELS = (-99.0, -999.0, -9999.0, -99999.0)
_MAGNITUDE_SENTINELS = (*_FLUX_SENTINELS, -99.9, 99.0, 99.9, 99.99, 999.0, 9999.0)


class CatalogError(ValueError):
    """A catalogue, or its description, that cannot be used; `problems` holds one sentence for each fault found."""

    def __init__(self, *problems: str) -> None:
        """Join the sentences, one a line."""
        super().__init__("\n".join(problems))
        self.problems: tuple[str, ...] = problems


@dataclass(frozen=True)
class BandConfig:
    """One band: where its flux and error stand, and how to bring them to AB outside the Galaxy.

    A column is named as in the file; `NAME[2]` picks a component, counted from 0, of a vector column.

    Attributes:
        filter: a filter of the library, such as `"sdss_g0"`, or the path of a two-column file (wavelength [Angstrom],
            transmission).
        flux: column of the flux or magnitude.
        name: what the band is called; the filter's name unless given.
        error: column of the one-sigma error, in the unit of `flux`. Either this or `inverse_variance`.
        inverse_variance: column of 1 / error^2.
        extinction: column of the Galactic extinction [mag] to correct for; empty if the fluxes are corrected.
        zero_point: added to the catalogue's magnitude to make it AB [mag].
        softening: b of an asinh magnitude (Lupton+99), in maggies; for `asinhmag` only.
        upper_limit: where the error (or inverse variance) is negative, the flux is an upper limit at so many sigma; 0: such
            an error is a fault. All fluxes below this significance are then quoted as limits too, as the survey did.
    """

    filter: str
    flux: str
    name: str = ""
    error: str = ""
    inverse_variance: str = ""
    extinction: str = ""
    zero_point: float = 0.0
    softening: float | None = None
    upper_limit: float = 0.0

    def __post_init__(self) -> None:
        """Refuse half a description."""
        if not self.name:
            object.__setattr__(self, "name", Path(self.filter).stem if "/" in self.filter else self.filter)
        problems = [f"a band needs a {what}" for what in ("filter", "flux") if not getattr(self, what)]
        if self.error and self.inverse_variance:
            problems.append(f"band {self.name!r}: give error or inverse_variance, not both")
        if not (self.error or self.inverse_variance):
            problems.append(f"band {self.name!r}: give the column of its error or of its inverse_variance")
        if not abs(self.zero_point) < 20.0:
            problems.append(f"band {self.name!r}: zero_point is a small shift in magnitudes, got {self.zero_point}")
        if not 0.0 <= self.upper_limit <= 10.0:
            problems.append(
                f"band {self.name!r}: upper_limit is a significance in sigma, 0 to 10, got {self.upper_limit}"
            )
        if self.softening is not None and not 0.0 < self.softening < 1.0:
            problems.append(f"band {self.name!r}: softening is a flux in maggies, such as 1e-10, got {self.softening}")
        if problems:
            raise CatalogError(*problems)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return tuple(c for c in (self.flux, self.error, self.inverse_variance, self.extinction) if c)


@dataclass(frozen=True)
class CatalogConfig:
    """A catalogue: its file, its unit, its bands. Without `path` and `bands` it is the embedded one.

    Attributes:
        path: the file (FITS, HDF5, Parquet, ECSV or CSV), or a folder with the parts of a table in Parquet files; relative to
            the settings file. Empty: the embedded galaxies.
        flux_unit: unit of every flux column and error column; required with `bands`.
        redshift: column of spectroscopic redshifts, or empty. A report compares with them; a fit never sees them.
        bands: the bands.
        sentinels: values that stand for "not measured" in flux, error and redshift columns. Unless given: -99, -999,
            -9999, -99999, and for magnitudes also -99.9, 99, 99.9, 99.99, 999 and 9999.
        name: what the catalogue is called; the file's name unless given.
        hdu: which table of a file with several: FITS extension name or number, HDF5 dataset or group.
        row: integer column that numbers the galaxies; the position in the file, from 0, unless given.
        min_bands: a row with so many usable bands stays, its other bands missing; 0: a row needs all.
        max_galaxies: of more usable rows than this, so many are drawn at random; 0: all are kept. A fit's member draws
            some 5e5 galaxies in all, so that more than a million teach it nothing.
    """

    path: str = ""
    flux_unit: FluxUnit | None = None
    redshift: str = ""
    bands: tuple[BandConfig, ...] = ()
    sentinels: tuple[float, ...] | None = None
    name: str = ""
    hdu: str = ""
    row: str = ""
    min_bands: int = 0
    max_galaxies: int = 1_000_000

    def __post_init__(self) -> None:
        """Refuse a description that contradicts itself."""
        problems = self._unit_problems()
        if not 0 <= self.min_bands <= max(len(self.bands), 1):
            problems.append(
                f"min_bands = {self.min_bands} must be between 0 and the number of bands, {len(self.bands)}"
            )
        if self.max_galaxies < 0:
            problems.append(f"max_galaxies is how many to draw at random, or 0 for all, got {self.max_galaxies}")
        if self.path and not self.bands:
            problems.append("the catalogue has no bands: describe each in a [[catalog.bands]] table")
        problems += [f"two bands have the name {name!r}" for name in _repeated(band.name for band in self.bands)]
        problems += [f"two bands read the column {name!r}" for name in _repeated(band.flux for band in self.bands)]
        if not self.bands and (self.redshift or self.row or self.hdu or self.flux_unit):
            problems.append(
                "redshift, row, hdu and flux_unit describe a catalogue's columns: give its path and bands too"
            )
        if problems:
            raise CatalogError(*problems)

    def _unit_problems(self) -> list[str]:
        """What is wrong with the unit and the softening it needs."""
        if self.flux_unit is None:
            return [f"flux_unit is required: one of {', '.join(FLUX_UNITS)}"] if self.bands else []
        if self.flux_unit not in FLUX_UNITS:
            near = nearest(str(self.flux_unit), FLUX_UNITS)
            hint = f"; did you mean {near!r}?" if near else ""
            return [f"flux_unit must be one of {', '.join(FLUX_UNITS)}, got {self.flux_unit!r}{hint}"]
        if self.flux_unit == "asinhmag":
            bare = [band.name for band in self.bands if band.softening is None]
            return [f"band {name!r}: an asinh magnitude needs its softening [maggies]" for name in bare]
        soft = [band.name for band in self.bands if band.softening is not None]
        return [f"band {name!r}: softening belongs to flux_unit = 'asinhmag' only" for name in soft]

    @property
    def is_magnitude(self) -> bool:
        """Whether the flux columns hold magnitudes."""
        return self.flux_unit in MAGNITUDE_UNITS

    @property
    def missing_values(self) -> tuple[float, ...]:
        """The sentinels in force."""
        if self.sentinels is not None:
            return self.sentinels
        return _MAGNITUDE_SENTINELS if self.is_magnitude else _FLUX_SENTINELS

    @property
    def is_embedded(self) -> bool:
        """Whether nothing but perhaps a name was given, which means the embedded galaxies."""
        return not self.path and not self.bands

    def resolved(self) -> CatalogConfig:
        """These settings, or those of the embedded galaxies where nothing was given."""
        if not self.is_embedded:
            return self
        embedded = embedded_catalog_config()
        return dataclasses.replace(embedded, name=self.name or embedded.name, max_galaxies=self.max_galaxies)


def embedded_catalog_config() -> CatalogConfig:
    """The 10,000 SDSS main-sample galaxies that come with the package, ugriz.

    Notes:
        The zero points bring SDSS magnitudes to AB in the convention of kcorrect (Blanton & Roweis 2007).
    """
    ab_minus_sdss = {"u": -0.036, "g": 0.012, "r": 0.010, "i": 0.028, "z": 0.040}
    bands = tuple(
        BandConfig(
            filter=f"sdss_{name}0",
            flux=f"MODELFLUX[{i}]",
            name=name,
            inverse_variance=f"MODELFLUX_IVAR[{i}]",
            extinction=f"EXTINCTION[{i}]",
            zero_point=zero_point,
        )
        for i, (name, zero_point) in enumerate(ab_minus_sdss.items())
    )
    return CatalogConfig(flux_unit="nanomaggies", redshift="Z", bands=bands, name="sdss_galaxies")


def _repeated(names: Iterable[str]) -> list[str]:
    """Names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]
