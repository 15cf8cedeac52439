"""qp: p(z) of every galaxy as an ensemble of densities on a grid, with their summaries. Needs `popsed_jax[qp]`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import qp
from jaxtyping import Float

from popsed_jax.diagnostics.gridded import normalised
from popsed_jax.posteriors.photoz import summarise_pz


def pz_ensemble(
    grid: Float[np.ndarray, " grid"],
    density: Float[np.ndarray, "galaxy grid"],
    columns: Mapping[str, np.ndarray] | None = None,
) -> qp.Ensemble:
    """Densities that are linear between the grid's points; `.write_to("pz.hdf5")` makes a file of them.

    Args:
        density: any positive multiple.
        columns: for the ancillary table, one value a galaxy (identifiers, say), beside the summaries.

    Raises:
        ValueError: as `gridded.normalised`, or a column of another length.
    """
    grid, density = normalised(grid, density)
    columns = {name: np.asarray(column) for name, column in (columns or {}).items()}
    for name, column in columns.items():
        if column.shape != (len(density),):
            raise ValueError(
                f"column {name} of shape {column.shape}: one value for each of {len(density)} galaxies wanted"
            )
    return qp.Ensemble(qp.interp, data={"xvals": grid, "yvals": density}, ancil=columns | summarise_pz(grid, density))
