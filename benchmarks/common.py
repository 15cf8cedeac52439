"""What every benchmark needs: the machine, the date, a table and a JSON file."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import popsed_jax as pj
from popsed_jax.observe.forward import ForwardModel
from popsed_jax.population.summaries import named_galaxies


def machine() -> dict[str, Any]:
    """Processor, cores, device and date."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
    }


def finish(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], out: Path, extra: Mapping[str, Any]
) -> None:
    """Print the table and write everything as JSON."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    console = Console(width=160)
    console.print(table)
    console.print(machine())
    out.parent.mkdir(parents=True, exist_ok=True)
    named = [dict(zip(columns, row, strict=True)) for row in rows]
    out.write_text(
        json.dumps({"title": title, "machine": machine(), "rows": named, **extra}, indent=2, default=float) + "\n"
    )
    console.print(f"written: {out}")


def start_fit(folder: Path, settings: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """The command in a process of its own; what it says comes from `communicate()`."""
    command = [sys.executable, "-m", "popsed_jax", "fit", "--config", str(settings), "--out", str(folder), *options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=os.environ | environment, text=True, **quiet)


def mock_catalog(
    seed: int, num: int, mock: pj.MockConfig, config: pj.RunConfig
) -> tuple[pj.Catalog, dict[str, np.ndarray], ForwardModel]:
    """A mock with the embedded galaxies' noise and selection: catalogue, truth by name, and the forward model."""
    forward = pj.build_survey(pj.read_catalog(config.catalog), config)
    bands = config.catalog.resolved().bands
    names = tuple(b.name for b in bands)
    survey = pj.simulate_mock(jax.random.key(10_000 + seed), forward, mock, config.reference, num, names)
    truth = named_galaxies(forward, survey.theta)
    catalog = pj.build_catalog(
        f"mock{seed}", names, [b.filter for b in bands], survey.flux, survey.error, truth["redshift"]
    )
    return catalog, truth, forward


def with_fit(config: pj.RunConfig, **changes: Any) -> pj.RunConfig:
    """The same settings with other values in [fit]."""
    return dataclasses.replace(config, fit=dataclasses.replace(config.fit, **changes))
