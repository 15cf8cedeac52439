"""Shared set-up: shapes and types are checked at run time, and the expensive models are built once for all tests."""

import os
import warnings
from pathlib import Path

# Before XLA starts. The tests spend their time compiling, which takes half of the time by XLA's former way of writing loops, at a
# low level of optimisation; all but the shortest compilations are kept for the other worker and the next run. To test the code
# as users compile it: XLA_FLAGS= pytest.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=1 --xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false",
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "jax"))

from jaxtyping import install_import_hook

with warnings.catch_warnings():
    # tensorflow-probability, which distrax builds on, uses names of jax that are on their way out.
    warnings.simplefilter("ignore", DeprecationWarning)
    import distrax  # noqa: F401

# Before anything of the package is imported: every annotated function and dataclass below is checked in every test.
CHECKED = [f"popsed_jax.{name}" for name in ("parameters", "cosmology", "sps", "observe", "flows", "transport")]
# An int is a float to everybody but the type checker, unless it is told (PEP 484's numeric tower).
install_import_hook(CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from popsed_jax.observe.forward import ForwardModel  # noqa: E402
from popsed_jax.observe.noise import NoiseModel, fit_noise_model  # noqa: E402
from popsed_jax.observe.photometry import PhotometryTable, build_photometry_table  # noqa: E402
from popsed_jax.observe.selection import MagnitudeLimit, SelectionConfig  # noqa: E402
from popsed_jax.sps.galaxy import GalaxyModel, build_galaxy_model  # noqa: E402

BANDS = ("sdss_u0", "sdss_g0", "sdss_r0", "sdss_i0", "sdss_z0")

# The longest files; started first, the workers end together. test_cli comes later: it finds test_training's programs.
LONGEST = (
    "test_training",
    "test_transport",
    "test_components",
    "test_sfh",
    "test_flow",
    "test_emulator",
    "test_reference",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def bands() -> tuple[str, ...]:
    """The catalogue's filters of the shared models."""
    return BANDS


@pytest.fixture(scope="session")
def galaxy() -> GalaxyModel:
    """Bases and a burst, shipped templates, the default bounds and redshift step."""
    return build_galaxy_model()


@pytest.fixture(scope="session")
def table(galaxy: GalaxyModel) -> PhotometryTable:
    """SDSS ugriz at the default tolerance."""
    return build_photometry_table(galaxy, BANDS)


@pytest.fixture(scope="session")
def galaxy_x64() -> GalaxyModel:
    """The same galaxy in double precision; use it inside `jax.enable_x64(True)` only."""
    with jax.enable_x64(True):
        return build_galaxy_model()


@pytest.fixture(scope="session")
def table_x64(galaxy_x64: GalaxyModel) -> PhotometryTable:
    """SDSS ugriz in double precision; use it inside `jax.enable_x64(True)` only."""
    with jax.enable_x64(True):
        return build_photometry_table(galaxy_x64, BANDS)


@pytest.fixture(scope="session")
def noise() -> NoiseModel:
    """A survey's noise: 1e-10 maggies and 2 % of the flux, with 0.05 dex scatter between galaxies."""
    rng = np.random.default_rng(0)
    flux = 10.0 ** rng.uniform(-10.0, -6.0, (4000, len(BANDS)))
    error = np.hypot(1e-10, 0.02 * flux) * 10.0 ** rng.normal(0.0, 0.05, flux.shape)
    return fit_noise_model(flux, error)


@pytest.fixture(scope="session")
def forward(galaxy: GalaxyModel, table: PhotometryTable, noise: NoiseModel) -> ForwardModel:
    """A survey in ugriz, limited at r = 17.77."""
    selection = SelectionConfig((MagnitudeLimit("sdss_r0", 17.77),))
    return ForwardModel(galaxy, table, noise, selection=selection, num_bands=len(BANDS))


@pytest.fixture(scope="session")
def theta(galaxy: GalaxyModel) -> np.ndarray:
    """400 draws of the flat prior."""
    return np.asarray(galaxy.space.sample_flat(jax.random.key(11), 400))


@pytest.fixture(scope="session")
def flux(forward: ForwardModel, theta: np.ndarray) -> np.ndarray:
    """Fluxes of `theta` by the table route, in the default precision [maggies]."""
    return np.asarray(jax.jit(ForwardModel.flux)(forward, jnp.asarray(theta)))
