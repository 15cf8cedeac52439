"""Which module may import which: read from the source, nothing is imported."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "popsed_jax"
PHYSICS = {"sps", "observe"}
STATISTICS = {"flows", "transport", "diagnostics"}
BOTH = {"population", "posteriors", "priors"}
# What each layer may import from the package besides itself; layers that are not listed (the top level) may import all.
ALLOWED = {
    "_random": set(),
    "_soap": set(),
    "parameters": {"_random"},
    "cosmology": set(),
    "data": set(),
    "_dsps": set(),
    "tables": {"data"},
    "sps": {"_dsps", "_random", "_soap", "data", "parameters", "cosmology"},
    "observe": {"sps", "_random", "data", "parameters", "cosmology"},
    "flows": {"_random"},
    "transport": {"_random"},
    "diagnostics": {"flows", "transport"},
}
# Packages that an installation need not have; only these may be imported where they are used.
OPTIONAL = {"ot", "sklearn", "imblearn"}
# Slow to import, and used by one method of what must load at once: (module, package).
LATE = {("popsed_jax.priors.coordinates", "astropy")}
HIGHEST = {"cli", "report", "run", "config", "settings", "plots", "plots_base", "plots_photometry", "progress"}
HIGHEST |= {"distributed", "pages", "emulators", "train_emulator", "emulator_report"}
HIGHEST |= {"cli_posterior", "estimators", "posterior_run", "posterior_lsdb"}
HIGHEST |= {"cli_vae", "train_vae", "vae_report", "plots_vae"}
HIGHEST |= {"learned", "train_npe", "plots_fit", "plots_posterior", "plots_corner", "plots_anomaly"}
HIGHEST |= {"plots_images"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def targets(node: ast.AST, module: str, is_package: bool) -> list[str]:
    """Dotted names that an import statement takes in, absolute."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        parts = module.split(".")
        anchor = parts[: len(parts) - node.level + is_package]
        base = ".".join([*anchor, base] if base else anchor)
    return [base, *(f"{base}.{alias.name}" for alias in node.names)]


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in SOURCES.items()}


def imports(module: str) -> set[str]:
    is_package = SOURCES[module].name == "__init__.py"
    found = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {name for node in found for name in targets(node, module, is_package)}


def inner(module: str) -> set[str]:
    """Modules of the package that a module imports, without the packages they lie in."""
    return {name for name in imports(module) if name in SOURCES and name != "popsed_jax"}


def layer(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


LIBRARY = [module for module in SOURCES if module != "popsed_jax"]


def test_the_reader_sees_imports():
    assert "popsed_jax.cosmology" in inner("popsed_jax.sps.galaxy")
    assert layer("popsed_jax.sps.galaxy") == "sps"
    relative = ast.parse("from ..flows import spline").body[0]
    assert "popsed_jax.flows.spline" in targets(relative, "popsed_jax.sps.galaxy", False)


@pytest.mark.parametrize("module", LIBRARY)
def test_layers(module):
    own = layer(module)
    used = {layer(name) for name in inner(module)} - {own}
    if own in ALLOWED:
        assert used <= ALLOWED[own], f"{module} may not import {sorted(used - ALLOWED[own])}"
    elif own in BOTH:
        assert not used & HIGHEST, f"{module} may not import {sorted(used & HIGHEST)}"
    elif own.startswith("catalog"):
        deep = {name for name in inner(module) if layer(name) in PHYSICS | STATISTICS | BOTH}
        allowed = {"popsed_jax.observe", "popsed_jax.observe.filters", "popsed_jax.observe.magnitudes"}
        assert deep <= allowed, f"{module} may not import {sorted(deep - allowed)}"


@pytest.mark.parametrize("module", SOURCES)
def test_dsps_has_one_door(module):
    direct = {name for name in imports(module) if name.split(".")[0] == "dsps"}
    assert not direct or module == "popsed_jax._dsps"
    if "popsed_jax._dsps" in imports(module):
        assert layer(module) == "sps"


# The scripts that make the shipped data are run by hand, with packages of their own.
@pytest.mark.parametrize("module", [name for name in SOURCES if not name.startswith("popsed_jax.data.make_")])
def test_no_import_inside_a_function(module):
    functions = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {
        name.split(".")[0]
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in targets(node, module, False)
    }
    late -= OPTIONAL | {package for where, package in LATE if where == module}
    assert not late, f"{module}: imports {sorted(late)} inside a function"


def test_no_cycles():
    graph = {module: inner(module) - {module} for module in LIBRARY}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"imported in a circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module in done:
            return
        for name in sorted(graph[module]):
            visit(name, (*path, module))
        done.add(module)

    for module in LIBRARY:
        visit(module, ())
