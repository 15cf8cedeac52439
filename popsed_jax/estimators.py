"""From a run to what gives posteriors under its population: the one place that knows the methods."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any, Literal, get_args

from popsed_jax.posteriors.estimator import Estimator

__all__ = ["PIECE_ROWS", "Method", "build_estimator"]

Method = Literal["npe", "hmc"]
# Rows of a piece, by default: a minute's work or a few.
PIECE_ROWS: dict[Method, int] = {"npe": 10_000, "hmc": 200}


def build_estimator(
    run: Path | str, method: Method, prior: str = "learned", num_samples: int = 0
) -> tuple[Estimator, dict[str, Any]]:
    """What gives posteriors, and by what it is known.

    Args:
        run: run directory.
        method: its module in `popsed_jax.posteriors` has a `build_estimator` of the other arguments.
        prior: name of the prior.
        num_samples: of each posterior that become columns; 0: summaries only.

    Raises:
        ValueError: the method or the prior is not known.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    name = f"popsed_jax.posteriors.{method}"
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"posteriors by {method!r} need the module {name}, which this installation lacks")
    return importlib.import_module(name).build_estimator(Path(run), prior, num_samples)
