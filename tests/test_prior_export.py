"""Draws and n(z) for other programs."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from tiny_prior import tiny_population

import popsed_jax as pj
from popsed_jax.priors.coordinates import Coordinates
from popsed_jax.priors.export import sample_table
from popsed_jax.priors.prior import Prior


@pytest.fixture(scope="module")
def prior() -> Prior:
    population = tiny_population()
    return Prior(population, Coordinates.of(population.space)).rename({"t_burst": "tage"}, {"tage": "Myr"})


@pytest.mark.parametrize("suffix", ["fits", "h5", "parquet", "ecsv"])
def test_a_table_explains_itself(prior, suffix, tmp_path):
    path = tmp_path / f"prior.{suffix}"
    pj.write_table(sample_table(prior, 3, 50), path)
    table = pj.read_table(path)
    assert table.colnames == ["redshift", "log_mass", "tage", "log_prob"]
    assert str(table["tage"].unit) == "Myr"
    assert table["tage"].description == "lookback time of the burst"
    readme = table.meta["README"]
    assert readme[0].split() == ["name", "unit", "from", "to", "description"]
    assert readme[3].split() == ["tage", "Myr", "10", "13000", "lookback", "time", "of", "the", "burst"]
    assert json.loads(table.meta["population"])["selection"] == "as-detected"
    theta = np.stack([table[name] for name in prior.names], axis=1)
    np.testing.assert_allclose(table["log_prob"], prior.log_prob(theta), atol=1e-3)


@pytest.mark.comparison
@pytest.mark.filterwarnings("ignore")
def test_qp_ensemble(prior):
    pytest.importorskip("qp")
    from popsed_jax.priors.qp import redshift_ensemble

    edges = np.linspace(0.0, 1.5, 31)
    ensemble = redshift_ensemble(prior, jax.random.key(0), 50_000, edges)
    assert ensemble.npdf == 3
    np.testing.assert_allclose(ensemble.ancil["weight"], [1.0, 0.65, 0.35], rtol=1e-6)
    draws = np.asarray(prior.sample(jax.random.key(1), 50_000))[:, 0]
    np.testing.assert_allclose(
        ensemble.cdf(np.array([0.3, 0.6, 0.9]))[0], [np.mean(draws < z) for z in (0.3, 0.6, 0.9)], atol=0.01
    )
    assert np.mean(draws) == pytest.approx(float(np.ravel(ensemble.mean())[0]), abs=0.01)
    with pytest.raises(ValueError, match="has no draw of redshift"):
        redshift_ensemble(prior, jax.random.key(0), 1000, np.array([2.0, 3.0]))
