"""Filter transmission curves: sedpy's library by name, or a two-column file."""

from __future__ import annotations

import dataclasses
import difflib
from functools import lru_cache
from pathlib import Path

import numpy as np
from sedpy.observate import Filter as SedpyFilter
from sedpy.observate import list_available_filters


@dataclasses.dataclass(frozen=True, eq=False)
class Filter:
    """A photon-counting transmission curve.

    Attributes:
        name: the library's name, or the file's.
        wave: observed wavelength [Angstrom], increasing.
        trans: transmission, any scale.
    """

    name: str
    wave: np.ndarray
    trans: np.ndarray

    @property
    def effective_wave(self) -> float:
        """Photon-weighted mean wavelength [Angstrom]."""
        return float(np.trapezoid(self.trans * self.wave, self.wave) / np.trapezoid(self.trans, self.wave))


@lru_cache(maxsize=1)
def filter_names() -> tuple[str, ...]:
    """Names of the filter library."""
    return tuple(sorted(list_available_filters()))


@lru_cache(maxsize=256)
def load_filter(name: str) -> Filter:
    """A filter by library name, or from a two-column file (wavelength [Angstrom], transmission).

    Raises:
        ValueError: an unknown name (with the nearest), or a file that is no transmission curve.
    """
    if name in filter_names():
        curve = SedpyFilter(name)
        return _trimmed(name, np.asarray(curve.wavelength, float), np.asarray(curve.transmission, float))
    path = Path(name)
    if path.is_file():
        try:
            wave, trans = np.loadtxt(path, usecols=(0, 1), unpack=True, ndmin=2)
        except (ValueError, IndexError) as error:
            message = f"filter file {name}: not two columns of numbers (wavelength, transmission): {error}"
            raise ValueError(message) from None
        return _trimmed(path.stem, wave, trans)
    near = difflib.get_close_matches(name, filter_names(), n=3, cutoff=0.5)
    hint = f"; the nearest are {', '.join(near)}" if near else ""
    raise ValueError(f"no filter {name!r} in the filter library, nor a file of that path{hint}")


def _trimmed(name: str, wave: np.ndarray, trans: np.ndarray) -> Filter:
    """Checks the curve and cuts its zero wings."""
    if len(wave) < 3 or np.any(np.diff(wave) <= 0) or wave[0] <= 0:
        raise ValueError(f"filter {name}: wavelengths must be positive and increase")
    if not np.all(np.isfinite(trans)) or trans.max() <= 0:
        raise ValueError(f"filter {name}: transmission must be finite and positive somewhere")
    trans = np.maximum(trans, 0.0)
    inside = np.flatnonzero(trans > 1e-4 * trans.max())
    low, high = max(inside[0] - 1, 0), min(inside[-1] + 2, len(wave))
    return Filter(name, wave[low:high], trans[low:high])
