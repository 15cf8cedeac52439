"""The notebooks run as they stand. `pytest -m notebook` (needs nbclient and ipykernel; zCOSMOS its catalogue, see there)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.notebook
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch) -> None:
    if (
        path.stem == "zcosmos"
        and not (Path(os.environ.get("POPSED_JAX_DATA", "")) / "zcosmos_bright20k.csv.gz").is_file()
    ):
        pytest.skip("POPSED_JAX_DATA is not the folder of zcosmos_bright20k.csv.gz")
    monkeypatch.setenv("POPSED_JAX_REPOSITORY", str(path.parent.parent))
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert all(cell.get("execution_count") for cell in notebook.cells if cell.cell_type == "code")
