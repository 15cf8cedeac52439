"""Make `sdss_galaxies.fits`: the test sample of kcorrect, copied byte for byte out of its wheel.

    pip download --no-deps kcorrect==5.1.9
    python -m popsed_jax.data.make_sdss --wheel kcorrect-5.1.9-py3-none-any.whl --out DIR

10,000 galaxies of the SDSS main sample with spectroscopic redshifts, SDSS ugriz model and Petrosian fluxes
[nanomaggies] with inverse variances, Galactic extinction [mag], 2MASS extended-source magnitudes (Vega) and GALEX
fluxes. SDSS magnitudes are not quite AB, and the fluxes are not corrected for extinction: see NOTICE.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from popsed_jax.data import DATA_FILES, file_sha256
from popsed_jax.data._wheel import PinnedWheel, read_member

WHEEL = PinnedWheel("kcorrect==5.1.9", "6234e449d3b3088e3132d1193f8c7e7a544b73e241c07fbfbda2c08da80622e2")
MEMBER = "kcorrect/data/test/gst_tests_small.fits"


def build_sdss(wheel: Path, out: Path) -> Path:
    """Copy the sample from the wheel into the folder `out`, and return the new file's path.

    Raises:
        FileNotFoundError: no such wheel.
        ValueError: not the pinned wheel.
    """
    WHEEL.check(wheel)
    out.mkdir(parents=True, exist_ok=True)
    path = out / DATA_FILES["sdss_galaxies"].file
    path.write_bytes(read_member(wheel, MEMBER))
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description="Make sdss_galaxies.fits from the kcorrect wheel.")
    parser.add_argument("--wheel", type=Path, required=True, help=f"the {WHEEL.requirement} wheel")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args(argv)
    path = build_sdss(args.wheel, args.out)
    print(f"{file_sha256(path)}  {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
