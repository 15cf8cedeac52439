"""A prior's draws as a table that explains itself."""

from __future__ import annotations

import json

import numpy as np
from astropy.table import Table
from jaxtyping import Array

from popsed_jax.priors.arrays import ArrayPrior
from popsed_jax.priors.density import Density


def sample_table(prior: Density, key: Array | int, num: int) -> Table:
    """Draws and their log density, with units, descriptions and a README of the columns in the metadata.

    `popsed_jax.write_table` writes it to FITS, HDF5, Parquet or ECSV.

    Args:
        key: or a seed.
    """
    arrays = ArrayPrior(prior)
    theta = arrays.sample(key, num)
    table = Table({name: theta[:, i] for i, name in enumerate(prior.names)})
    for name in prior.names:
        table[name].unit, table[name].description = prior.units[name] or None, prior.descriptions[name]
    table["log_prob"] = arrays.log_prob(theta)
    table["log_prob"].description = "natural logarithm of the prior's density, per the units of all parameters"
    table.meta["README"] = describe_columns(prior)
    table.meta["population"] = json.dumps(dict(prior.meta), sort_keys=True)
    return table


def describe_columns(prior: Density) -> list[str]:
    """A line for each parameter: name, unit, bounds and what it is."""
    rows = [("name", "unit", "from", "to", "description")]
    rows += [
        (name, prior.units[name] or "-", f"{low:.6g}", f"{high:.6g}", prior.descriptions[name])
        for name, (low, high) in prior.bounds.items()
    ]
    widths = np.max([[len(cell) for cell in row] for row in rows], axis=0)
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
