"""What README's "Use it in your fitter" shows, run as it stands; fitters that are not installed are skipped by name."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest
from tiny_prior import save_tiny

README = Path(__file__).resolve().parents[1] / "README.md"
SECTION = README.read_text(encoding="utf-8").split("## Use it in your fitter\n")[1].split("\n## ")[0]
BEGIN, *BLOCKS = re.findall(r"```python\n(.*?)```", SECTION, flags=re.DOTALL)
IN_TEST_EXTRA = {"numpyro", "emcee", "dynesty", "export"}


def fitter(block: str) -> str:
    """The module of ours that a block shows."""
    found = re.search(r"from popsed_jax\.priors\.(\w+) import", block)
    assert found, f"a block that shows no adapter:\n{block}"
    return found[1]


def missing(block: str) -> list[str]:
    """Packages that a block needs, itself or through our module, and that are not installed."""
    source = block + (README.parent / "popsed_jax" / "priors" / f"{fitter(block)}.py").read_text()
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names} | {
        n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)
    }
    return sorted({name.split(".")[0] for name in names if importlib.util.find_spec(name.split(".")[0]) is None})


@pytest.fixture(scope="module")
def namespace(tmp_path_factory):
    """What the first block defines, for the population of the folder that it names."""
    folder = tmp_path_factory.mktemp("readme")
    save_tiny(folder / "runs" / "sdss")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        names: dict[str, object] = {}
        exec(compile(BEGIN, "README.md", "exec"), names)
        yield names


def marks(block: str) -> list[pytest.MarkDecorator]:
    return [] if fitter(block) in IN_TEST_EXTRA else [pytest.mark.comparison]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", [pytest.param(b, id=fitter(b), marks=marks(b)) for b in BLOCKS])
def test_block(block, namespace):
    if absent := missing(block):
        pytest.skip(f"not installed: {', '.join(absent)}")
    exec(compile(block, "README.md", "exec"), dict(namespace))


def test_every_adapter_is_shown():
    modules = {path.stem for path in (README.parent / "popsed_jax" / "priors").glob("*.py")}
    adapters = modules - {"__init__", "arrays", "check", "coordinates", "density", "partial", "prior"}
    assert adapters == {fitter(block) for block in BLOCKS}
