"""Importing the package changes nothing that belongs to the user."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, random, warnings
import jax, numpy
{before}
def state():
    return {{
        "x64": jax.config.read("jax_enable_x64"),
        "config": {{k: repr(v) for k, v in sorted(jax.config.values.items())}},
        "warnings": [repr(f) for f in warnings.filters if f[0] != "once"],
        "folder": os.getcwd(),
        "random": [hash(random.getstate()), hash(numpy.random.get_state()[1].tobytes())],
    }}
old = state()
{libraries}
libraries = state()
import popsed_jax
for name in popsed_jax.__all__:
    getattr(popsed_jax, name)
print(json.dumps([old, libraries, state(), popsed_jax.__version__]))
"""
# What other packages do when imported (warning filters, Python's random state) is theirs; ours must add nothing to it.
LIBRARIES = """
import astropy.io.fits, astropy.table, corner, distrax, flax.linen, h5py, jinja2, matplotlib.pyplot, optax, ott, pyarrow
import numpyro.infer, numpyro.diagnostics
import rich, scipy.stats, sedpy.observate, typer, jaxtyping, ott.geometry.pointcloud, ott.solvers.linear
"""


def run(tmp_path, before=""):
    program = PROGRAM.format(before=before, libraries=LIBRARIES)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("x64", [False, True])
def test_nothing_global_changes(tmp_path, x64):
    old, libraries, new, version = run(tmp_path, f"jax.config.update('jax_enable_x64', {x64})")
    assert new["x64"] is x64
    assert new["config"] == old["config"]
    assert new["folder"] == old["folder"] == str(tmp_path)
    assert new["random"] == libraries["random"]
    assert new["warnings"] == libraries["warnings"]
    assert version.count(".") == 2
