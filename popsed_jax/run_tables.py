"""The tables of a run: samples, photometry of data and models, history of the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from astropy.table import Table

from popsed_jax.catalog import Catalog
from popsed_jax.parameters import ParameterSpace
from popsed_jax.population import summaries
from popsed_jax.population.schedules import Schedule
from popsed_jax.population.survey import Survey
from popsed_jax.population.train import EpochInfo
from popsed_jax.sps.config import DERIVED_META

_DETECTION = "probability that the survey keeps a galaxy like this"


def named_columns(galaxies: summaries.Galaxies, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Parameters and derived properties by name."""
    return {name: galaxies.theta[:, i] for i, name in enumerate(names)} | dict(galaxies.derived)


def describe_columns(table: Table, space: ParameterSpace) -> Table:
    """Units and descriptions of parameters and derived properties, where the table has them."""
    labels = {p.name: (p.unit, p.label, p.description) for p in space.parameters} | DERIVED_META
    for name in set(labels) & set(table.colnames):
        unit, _, description = labels[name]
        table[name].unit, table[name].description = unit or None, description
    if "detection" in table.colnames:
        table["detection"].description = _DETECTION
    return table


def galaxy_table(galaxies: summaries.Galaxies, space: ParameterSpace) -> Table:
    """Galaxies with their properties, how likely the survey keeps them, and the flow that each came from."""
    table = Table(named_columns(galaxies, space.names))
    table["detection"] = galaxies.detection
    table["member"] = galaxies.member
    table["member"].description = "flow of the ensemble that the galaxy was drawn from"
    return describe_columns(table, space)


def photometry_table(
    catalog: Catalog,
    survey: Survey,
    space: ParameterSpace,
    groups: Mapping[str, summaries.Galaxies],
    number: int,
) -> Table:
    """Magnitudes of the data and of each simulated population, of those that the survey keeps; NaN where a band is missing.

    Args:
        number: which of the run's surveys it is.
    """
    data = summaries.mags_of(survey.space, catalog.flux)
    spec = np.full(len(catalog), np.nan) if catalog.redshift is None else catalog.redshift
    index = space.index("redshift")
    sets = [("data", data, spec, np.full(len(catalog), -1))]
    sets += [(name, group.quoted(number), group.theta[:, index], group.member) for name, group in groups.items()]
    table = Table({"set": np.concatenate([np.full(len(mags), name, dtype="U9") for name, mags, _, _ in sets])})
    for i, band in enumerate(catalog.bands):
        table[f"mag_{band}"] = np.concatenate([mags[:, i] for _, mags, _, _ in sets])
        table[f"mag_{band}"].unit = "mag"
        table[f"mag_{band}"].description = f"asinh AB magnitude, {catalog.filters[i]}"
    table["redshift"] = np.concatenate([z for _, _, z, _ in sets])
    table["member"] = np.concatenate([member for _, _, _, member in sets])
    return table


def history_table(history: Sequence[EpochInfo], schedule: Schedule, num_members: int) -> Table:
    """Loss and schedules, a row for each epoch and member."""
    rows: dict[str, list[float]] = {"epoch": [], "member": []}
    for epoch, info in enumerate(history):
        row = schedule.row(epoch)
        for member in range(num_members):
            rows["epoch"].append(epoch)
            rows["member"].append(member)
            for name, value in info._asdict().items():
                rows.setdefault(name, []).append(float(value[member]))
            for name in ("blur", "noise_divisor", "learning_rate", "sliced", "sinkhorn"):
                rows.setdefault(name, []).append(float(getattr(row, name)))
    return Table(rows)
