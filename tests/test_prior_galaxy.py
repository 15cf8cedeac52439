"""One of the embedded galaxies, fitted by Bagpipes itself under a population.

Prospector's galaxies need python-fsps, which cannot be imported without the files of FSPS ("You need to have the SPS_HOME
environment variable"); its parameter model is driven in `test_prior_fitters.py`.
"""

from __future__ import annotations

import numpy as np
import pytest
from tiny_prior import tiny_population

import popsed_jax as pj
from popsed_jax.observe.filters import load_filter
from popsed_jax.priors.arrays import ArrayPrior
from popsed_jax.priors.coordinates import Coordinates
from popsed_jax.priors.prior import Prior

pytestmark = [pytest.mark.comparison, pytest.mark.filterwarnings("ignore")]
MICROJANSKY = 3.631e9  # a maggie


def moments(draws, log_weight):
    weight = np.exp(log_weight - log_weight.max())
    mean = np.average(draws, weights=weight, axis=0)
    num_effective = weight.sum() ** 2 / np.sum(weight**2)
    return mean, np.sqrt(np.average((draws - mean) ** 2, weights=weight, axis=0)), num_effective


def test_bagpipes(tmp_path, monkeypatch):
    pytest.importorskip("nautilus")
    monkeypatch.chdir(tmp_path)
    pipes = pytest.importorskip("bagpipes")
    from popsed_jax.priors.bagpipes import use_prior

    population = tiny_population()
    prior = Prior(population, Coordinates.of(population.space)).rename(
        {"log_mass": "delayed:massformed", "t_burst": "delayed:age"}
    )
    catalog = pj.read_catalog(pj.default_config().catalog)
    bands = [i for i, name in enumerate(catalog.filters) if name.startswith("sdss")]
    files = []
    for i in bands:
        curve = load_filter(catalog.filters[i])
        np.savetxt(f"{catalog.filters[i]}.txt", np.column_stack([curve.wave, curve.trans]))
        files.append(f"{catalog.filters[i]}.txt")
    flux = MICROJANSKY * np.asarray(catalog.flux[0, bands])
    # Wide errors, so that weighted draws of the prior are enough to know the posterior.
    photometry = np.column_stack([flux, 0.5 * flux])
    galaxy = pipes.galaxy("one", lambda _: photometry, spectrum_exists=False, filt_list=files)
    delayed = {"massformed": (1.0, 15.0), "age": (0.01, 13.0), "tau": 1.0, "metallicity": 1.0}
    fit = pipes.fit(galaxy, {"redshift": (0.0, 2.0), "delayed": delayed, "dust": {"type": "Calzetti", "Av": 0.3}})
    use_prior(fit.fitted_model, prior)
    fit.fit(verbose=False, sampler="nautilus", n_live=300, n_networks=1)
    found = np.stack([fit.posterior.samples[name] for name in prior.names], axis=1)

    draws = ArrayPrior(prior).sample(1, 6000)
    order = [prior.names.index(name) for name in fit.fitted_model.params]
    log_weight = np.array([fit.fitted_model.lnlike(row) for row in draws[:, order]])
    mean, std, num_effective = moments(draws, log_weight)
    assert num_effective > 50
    tolerance = 4.0 / np.sqrt(min(num_effective, len(found)))
    assert np.abs((found.mean(axis=0) - mean) / std).max() < tolerance
    np.testing.assert_allclose(found.std(axis=0), std, rtol=tolerance)
