"""popsed_jax: learn the population of galaxies from a photometric catalogue, by optimal transport, in JAX.

    import jax, popsed_jax as pj
    config = pj.default_config()                      # the embedded SDSS galaxies, ugriz
    catalog = pj.read_catalog(config.catalog)
    result = pj.fit(catalog, config)
    galaxies = result.population.sample(jax.random.key(0), 1000)
    galaxies["redshift"], result.population.log_prob(galaxies)

Importing changes nothing global. DSPS, which this package builds on, switches JAX's 64-bit mode on when it is imported;
the flag is put back (`popsed_jax._dsps`), because everything here is written and tested for float32, the
faster. Switch `jax_enable_x64` on yourself to run in double precision.
"""

from popsed_jax.catalog import BandConfig, Catalog, CatalogConfig, build_catalog, embedded_catalog_config, read_catalog
from popsed_jax.config import RunConfig, default_config, load_config, quick_config
from popsed_jax.observe.calibration import CalibrationConfig
from popsed_jax.population.mock import MockConfig, simulate_mock
from popsed_jax.population.model import Population, load_population
from popsed_jax.report import build_report
from popsed_jax.run import FitResult, fit
from popsed_jax.sampling import sample_run
from popsed_jax.sps.config import ModelConfig
from popsed_jax.sps.galaxy import build_galaxy_model
from popsed_jax.surveys import build_survey
from popsed_jax.tables import read_table, write_table

__version__ = "0.1.0"
__all__ = [
    "BandConfig",
    "CalibrationConfig",
    "Catalog",
    "CatalogConfig",
    "FitResult",
    "MockConfig",
    "ModelConfig",
    "Population",
    "RunConfig",
    "build_catalog",
    "build_galaxy_model",
    "build_report",
    "build_survey",
    "default_config",
    "embedded_catalog_config",
    "fit",
    "load_config",
    "load_population",
    "quick_config",
    "read_catalog",
    "read_table",
    "sample_run",
    "simulate_mock",
    "write_table",
]
