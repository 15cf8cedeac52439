"""A population can be used without this package, from the page that documents its files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from tiny_prior import save_tiny

import popsed_jax as pj

SCRIPT = Path(__file__).with_name("numpy_prior.py")


def test_log_prob_in_numpy(tmp_path):
    folder = save_tiny(tmp_path)
    with jax.enable_x64(True):
        prior = pj.load_prior(folder)
        theta = np.asarray(prior.sample(jax.random.key(0), 200))
        expected = np.asarray(prior.log_prob(theta))
    command = [sys.executable, str(SCRIPT), str(folder), json.dumps(theta.tolist())]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    values, modules = json.loads(result.stdout)
    assert modules == []
    np.testing.assert_allclose(values, expected, atol=1e-8)


def test_it_is_short():
    lines = [line for line in SCRIPT.read_text().splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) < 100


def test_the_page_is_shipped():
    page = Path(pj.__file__).parent / "priors" / "FORMAT.md"
    assert "weights_sha256" in page.read_text()
