"""What the package's reports share: figures kept as files and in the page, pages from templates."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from matplotlib.figure import Figure

_DPI = 110


def embed_figure(figure: Figure, path: Path) -> str:
    """Write a figure as PNG, and return it in base64."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def page_template(name: str, **filters: object) -> Template:
    """A template that ships with the package; a name that it does not get is an error."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(filters)
    return environment.from_string(files("popsed_jax").joinpath(name).read_text(encoding="utf-8"))
