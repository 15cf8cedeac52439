"""popsed_jax: learn the population of galaxies from a photometric catalogue, by optimal transport, in JAX.

    import jax, popsed_jax as pj
    config = pj.default_config()                      # the embedded SDSS galaxies, ugriz
    catalog = pj.read_catalog(config.catalog)
    result = pj.fit(catalog, config)
    galaxies = result.population.sample(jax.random.key(0), 1000)
    galaxies["redshift"], result.population.log_prob(galaxies)

Importing changes nothing global, and loads nothing: each public name brings its modules when it is first used, so that
`load_prior`, for other people's fitters, takes a second. DSPS, which this package builds on, switches JAX's 64-bit mode on
when it is imported; the flag is put back (`popsed_jax._dsps`), because everything here is written and tested for float32,
the faster. Switch `jax_enable_x64` on yourself to run in double precision.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from popsed_jax.catalog import (
        BandConfig,
        Catalog,
        CatalogConfig,
        build_catalog,
        embedded_catalog_config,
        read_catalog,
    )
    from popsed_jax.config import RunConfig, default_config, load_config, quick_config
    from popsed_jax.estimators import build_estimator
    from popsed_jax.learned import load_network, load_survey
    from popsed_jax.observe.calibration import CalibrationConfig
    from popsed_jax.population.mock import MockConfig, simulate_mock
    from popsed_jax.population.model import Population, load_population
    from popsed_jax.posterior_run import read_posterior, run_posterior
    from popsed_jax.posteriors.survey import Photometry
    from popsed_jax.posteriors.vae_storage import load_vae
    from popsed_jax.priors import Prior, load_prior
    from popsed_jax.report import build_report
    from popsed_jax.run import FitResult, fit
    from popsed_jax.sampling import sample_run
    from popsed_jax.sps.config import ModelConfig
    from popsed_jax.sps.galaxy import build_galaxy_model
    from popsed_jax.surveys import build_survey
    from popsed_jax.tables import read_table, write_table
    from popsed_jax.train_npe import train_run
    from popsed_jax.train_vae import VAETraining, build_vae_estimator, train_vae

__version__ = "0.1.0"
__all__ = [
    "BandConfig",
    "CalibrationConfig",
    "Catalog",
    "CatalogConfig",
    "FitResult",
    "MockConfig",
    "ModelConfig",
    "Photometry",
    "Population",
    "Prior",
    "RunConfig",
    "VAETraining",
    "build_catalog",
    "build_estimator",
    "build_galaxy_model",
    "build_report",
    "build_survey",
    "build_vae_estimator",
    "default_config",
    "embedded_catalog_config",
    "fit",
    "load_config",
    "load_network",
    "load_population",
    "load_prior",
    "load_survey",
    "load_vae",
    "quick_config",
    "read_catalog",
    "read_posterior",
    "read_table",
    "run_posterior",
    "sample_run",
    "simulate_mock",
    "train_run",
    "train_vae",
    "write_table",
]

# Which module each name lives in: what type checkers read above, for `__getattr__`.
_HOME = {
    "BandConfig": "popsed_jax.catalog",
    "CalibrationConfig": "popsed_jax.observe.calibration",
    "Catalog": "popsed_jax.catalog",
    "CatalogConfig": "popsed_jax.catalog",
    "FitResult": "popsed_jax.run",
    "MockConfig": "popsed_jax.population.mock",
    "ModelConfig": "popsed_jax.sps.config",
    "Photometry": "popsed_jax.posteriors.survey",
    "Population": "popsed_jax.population.model",
    "Prior": "popsed_jax.priors",
    "RunConfig": "popsed_jax.config",
    "VAETraining": "popsed_jax.train_vae",
    "build_catalog": "popsed_jax.catalog",
    "build_estimator": "popsed_jax.estimators",
    "build_galaxy_model": "popsed_jax.sps.galaxy",
    "build_report": "popsed_jax.report",
    "build_survey": "popsed_jax.surveys",
    "build_vae_estimator": "popsed_jax.train_vae",
    "default_config": "popsed_jax.config",
    "embedded_catalog_config": "popsed_jax.catalog",
    "fit": "popsed_jax.run",
    "load_config": "popsed_jax.config",
    "load_network": "popsed_jax.learned",
    "load_population": "popsed_jax.population.model",
    "load_prior": "popsed_jax.priors",
    "load_survey": "popsed_jax.learned",
    "load_vae": "popsed_jax.posteriors.vae_storage",
    "quick_config": "popsed_jax.config",
    "read_catalog": "popsed_jax.catalog",
    "read_posterior": "popsed_jax.posterior_run",
    "read_table": "popsed_jax.tables",
    "run_posterior": "popsed_jax.posterior_run",
    "sample_run": "popsed_jax.sampling",
    "simulate_mock": "popsed_jax.population.mock",
    "train_run": "popsed_jax.train_npe",
    "train_vae": "popsed_jax.train_vae",
    "write_table": "popsed_jax.tables",
}


def __getattr__(name: str) -> Any:
    """Public names on first use. (PEP 562)"""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, used or not."""
    return sorted({*globals(), *__all__})
