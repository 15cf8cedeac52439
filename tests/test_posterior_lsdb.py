"""Posteriors of an LSDB catalogue on a Dask cluster: the same as those of the command, row by row."""

from __future__ import annotations

import dataclasses
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from galaxy_rows import FAULTS, FakeEstimator, config_for, spoiled_table

from popsed_jax.catalog_config import CatalogError
from popsed_jax.posterior_run import read_posterior, run_posterior
from popsed_jax.posteriors.estimator import Columns, Rows
from popsed_jax.tables import write_table

pytestmark = [pytest.mark.comparison, pytest.mark.filterwarnings("default")]
pd = pytest.importorskip("pandas")
lsdb = pytest.importorskip("lsdb")
distributed = pytest.importorskip("distributed")
from popsed_jax.posterior_lsdb import EstimatorRecipe, map_posterior  # noqa: E402

KINDS = list(FAULTS) * 14
CONFIG = config_for("c.parquet", row="id", min_bands=2)


@dataclass
class Quiet(FakeEstimator):
    """The fake estimator with random numbers that follow from the row alone, as a galaxy's pieces differ here."""

    def __call__(self, seed: int, rows: Rows) -> Columns:
        columns = super().__call__(seed, rows)
        self.calls.clear()
        return columns | {"noise": np.sin(rows.row.astype(float))}


def build(folder: str) -> tuple[Quiet, dict[str, str]]:
    """Leaves a file for each time that it is called, named by the process."""
    number = len(list(Path(folder).iterdir()))
    (Path(folder) / f"{os.getpid()}-{number}").touch()
    return Quiet(), {}


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """A catalogue with faults of every kind as a file and as HATS, in many partitions."""
    folder = tmp_path_factory.mktemp("survey")
    table = spoiled_table(KINDS)
    rng = np.random.default_rng(1)
    table["ra"] = rng.uniform(0.0, 360.0, len(table))
    table["dec"] = np.degrees(np.arcsin(rng.uniform(-1.0, 1.0, len(table))))
    write_table(table, folder / "c.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = table.to_pandas()
        pairs = pa.array([[flux, error] for flux, error in zip(table["f_g"], table["e_g"], strict=True)])
        frame["pair"] = pd.arrays.ArrowExtensionArray(pairs)
        catalog = lsdb.from_dataframe(frame, ra_column="ra", dec_column="dec", catalog_name="survey", lowest_order=1)
        catalog.write_catalog(folder / "hats", catalog_name="survey")
    return folder


@pytest.fixture(scope="module")
def plain(survey):
    """What the command gives, by the galaxies' numbers."""
    run_posterior(Quiet(), CONFIG, survey, out=survey / "out", identity={}, piece_rows=50, show_progress=False)
    table = read_posterior(survey / "out")
    table.sort("row")
    return table


@pytest.fixture(scope="module")
def cluster():
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as running,
        distributed.Client(running) as client,
    ):
        yield client


def test_two_workers_give_the_rows_of_the_command(survey, plain, cluster, tmp_path) -> None:
    (tmp_path / "built").mkdir()
    recipe = EstimatorRecipe(build, (str(tmp_path / "built"),))
    catalog = lsdb.open_catalog(survey / "hats")
    assert catalog.npartitions > 8
    posteriors = map_posterior(catalog, recipe, CONFIG, keep=("z",), piece_rows=7)
    assert list(posteriors.columns) == ["ra", "dec", "z", *plain.colnames]
    frame = posteriors.compute().sort_values("row")
    assert len(frame) == len(plain) == len(KINDS)
    for name in plain.colnames:
        values = np.stack(frame[name].to_list()) if name == "pz" else frame[name].to_numpy(plain[name].dtype)
        assert np.array_equal(values.astype(plain[name].dtype), np.asarray(plain[name]), equal_nan=True)
    builders = [item.name.split("-")[0] for item in (tmp_path / "built").iterdir()]
    assert sorted(set(builders)) == sorted(builders)  # once a process
    assert len(set(builders) - {str(os.getpid())}) == 2
    assert frame.dtypes.equals(posteriors.dtypes)
    kinds = {name: frame.dtypes[name].pyarrow_dtype for name in plain.colnames}
    assert (kinds["row"], kinds["flags"], kinds["mean_flux"]) == (pa.int64(), pa.int32(), pa.float64())
    assert kinds["pz"] == pa.list_(pa.float32(), 4)


def test_the_posteriors_are_a_hats_catalogue_again(survey, plain, cluster, tmp_path) -> None:
    (tmp_path / "built").mkdir()
    recipe = EstimatorRecipe(build, (str(tmp_path / "built"),))
    posteriors = map_posterior(lsdb.open_catalog(survey / "hats"), recipe, CONFIG)
    posteriors.write_catalog(tmp_path / "hats", catalog_name="posteriors")
    back = lsdb.open_catalog(tmp_path / "hats").compute().sort_values("row")
    assert np.array_equal(back["flags"].to_numpy(int), plain["flags"])
    assert np.array_equal(np.stack(back["pz"].to_list()), np.asarray(plain["pz"]), equal_nan=True)


def test_components_of_vector_columns(survey, plain, tmp_path) -> None:
    (tmp_path / "built").mkdir()
    recipe = EstimatorRecipe(build, (str(tmp_path / "built"),))
    pair = dataclasses.replace(CONFIG.bands[0], flux="pair[0]", error="pair[1]")
    config = dataclasses.replace(CONFIG, bands=(pair, *CONFIG.bands[1:]))
    catalog = lsdb.open_catalog(survey / "hats")
    frame = map_posterior(catalog, recipe, config, num_checked=0).compute().sort_values("row")
    assert np.array_equal(frame["mean_flux"].to_numpy(float), plain["mean_flux"], equal_nan=True)


def test_what_is_refused(survey, tmp_path) -> None:
    (tmp_path / "built").mkdir()
    recipe = EstimatorRecipe(build, (str(tmp_path / "built"),))
    catalog = lsdb.open_catalog(survey / "hats")
    with pytest.raises(
        CatalogError, match="partitions do not number their galaxies: name the column that does as `row`"
    ):
        map_posterior(catalog, recipe, config_for("", row=""))
    with pytest.raises(CatalogError, match="the posteriors have a column 'flags' of their own"):
        map_posterior(catalog.rename({"z": "flags"}), recipe, config_for("", row="id", redshift=""), keep=("flags",))
    with pytest.raises(CatalogError, match="which are no magnitudes"):
        map_posterior(catalog, recipe, config_for("", row="id", flux_unit="ABmag"))
    with pytest.raises(CatalogError, match="there is no column 'zz'; did you mean 'z'"):
        map_posterior(catalog, recipe, config_for("", row="id", redshift="zz"))
