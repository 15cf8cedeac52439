"""README's Python names what there is."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def names(block: str) -> list[tuple[str, str]]:
    """Modules of ours, and the names that a block takes from them."""
    nodes = list(ast.walk(ast.parse(block)))
    taken = [(n.module, a.name) for n in nodes if isinstance(n, ast.ImportFrom) and n.module for a in n.names]
    used = [
        ("popsed_jax", n.attr)
        for n in nodes
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "pj"
    ]
    return [pair for pair in taken + used if pair[0].split(".")[0] == "popsed_jax"]


# Fitters are shown with packages that need not be here; `test_readme_fitters` runs those blocks where they are.
FOUND = sorted({pair for block in BLOCKS for pair in names(block) if not pair[0].startswith("popsed_jax.priors")})


@pytest.mark.parametrize(("module", "name"), FOUND)
def test_name_is_there(module: str, name: str) -> None:
    if getattr(importlib.import_module(module), name, None) is None:
        importlib.import_module(f"{module}.{name}")


def test_blocks_are_found() -> None:
    assert ("popsed_jax", "build_estimator") in FOUND
    assert len(FOUND) > 10
