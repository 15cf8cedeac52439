"""Galaxies drawn from a finished run: those that the survey keeps, or all that there are where it can see."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import jax
import numpy as np
from astropy.table import Table

from popsed_jax.catalog import read_catalog
from popsed_jax.config import load_config
from popsed_jax.observe.forward import ForwardModel
from popsed_jax.population.intrinsic import VISIBLE, detection_by_any, intrinsic_weights
from popsed_jax.population.model import load_population
from popsed_jax.run_tables import describe_columns
from popsed_jax.surveys import build_survey

Galaxies = Literal["as-detected", "intrinsic"]
_SPARE = 8  # draws for each galaxy wanted, where they are drawn again by weight


def sample_run(run: Path, num: int, seed: int = 0, galaxies: Galaxies = "as-detected") -> Table:
    """Named galaxies with units.

    Args:
        run: run directory, or its population folder (enough for as-detected galaxies of a run without `tilt`).
        galaxies: "as-detected" are those that the surveys keep; "intrinsic" all that there are, of the kinds that they keep
            with at least a twentieth of the largest probability, for which the run's catalogue and templates are read again.
            These are drawn by their weights: some come more than once.

    Raises:
        StorageError: no population there.
        ValueError: the run directory is needed, and this is the population alone.
    """
    folder = run / "population" if (run / "population").is_dir() else run
    population = load_population(folder)
    tilt = float(population.meta.get("tilt", 1.0))
    wanted = 1.0 if galaxies == "as-detected" else 0.0
    selected = population.meta.get("selection") != "intrinsic"
    as_learned = tilt == wanted or not selected
    theta, _ = population.sample_members(jax.random.key(seed), num if as_learned else max(_SPARE * num, 4096))
    table = Table({name: np.asarray(theta[:, i]) for i, name in enumerate(population.names)})
    if not as_learned:
        detection = detection_by_any(_surveys(run), theta)
        weights = detection ** (wanted - tilt) if wanted else intrinsic_weights(detection, tilt)
        table["detection"] = detection
        table = table[np.random.default_rng(seed).choice(len(table), num, p=weights / weights.sum())]
        if not wanted:
            table.meta["visible_above"] = VISIBLE * float(detection.max())
    table.meta["selection"] = galaxies if selected else "intrinsic"
    return describe_columns(table, population.space)


def _surveys(run: Path) -> tuple[ForwardModel, ...]:
    """How the run's surveys see galaxies."""
    path = run / "config.toml"
    if not path.is_file():
        raise ValueError(f"{run} has no config.toml: intrinsic galaxies need the whole run directory")
    config = load_config(path)
    return tuple(
        build_survey(read_catalog(survey.catalog), config, number) for number, survey in enumerate(config.all_surveys)
    )
