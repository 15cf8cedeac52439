"""The report of a trained autoencoder: losses of the stages, sizes, and redshifts where the catalogue has them."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from popsed_jax.catalog import read_catalog
from popsed_jax.config import load_config
from popsed_jax.diagnostics.photoz import photoz_metrics
from popsed_jax.pages import embed_figure, page_template
from popsed_jax.plots_posterior import plot_redshifts
from popsed_jax.plots_vae import plot_losses
from popsed_jax.population.storage import write_atomically
from popsed_jax.posteriors.columns import photometry_of
from popsed_jax.posteriors.estimator import Rows
from popsed_jax.posteriors.photoz import summarise_pz
from popsed_jax.posteriors.vae import MultiModalVAE
from popsed_jax.posteriors.vae_storage import load_vae

_MOST = 2000  # galaxies whose redshifts are compared
_NUM_GRID = 400


def build_vae_report(folder: Path | str) -> Path:
    """Draw the figures of a model and write `report.html`, which needs neither other files nor the net.

    Raises:
        StorageError: a file is missing or damaged.
        CatalogError: the catalogue of its settings can no longer be read.
    """
    folder = Path(folder)
    vae, bands, meta = load_vae(folder)
    figures = {"losses": plot_losses(meta["history"])}
    catalog = read_catalog(load_config(folder / "config.toml").catalog, folder)
    metrics: dict[str, dict[str, float]] = {}
    if catalog.redshift is not None and np.isfinite(catalog.redshift).sum() > 10:
        known = np.flatnonzero(np.isfinite(catalog.redshift))
        some = np.sort(np.random.default_rng(0).permutation(known)[:_MOST])
        rows = Rows(catalog.flux[some], catalog.flux_error[some], catalog.redshift[some], catalog.row[some])
        redshift, grid, density = redshifts_of(vae, rows)
        metrics = photoz_metrics(redshift, grid, density, rows.redshift, np.random.default_rng(0))
        figures["redshifts"] = plot_redshifts(redshift, rows.redshift, metrics)
    images = {name: embed_figure(figure, folder / "figures" / f"{name}.png") for name, figure in figures.items()}
    page = page_template("vae.html.j2").render(
        name=catalog.name,
        bands=bands,
        about=meta,
        model=vae.config,
        sizes={name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in vae.parts.items()},
        last={stage: chunks[-1] for stage, chunks in meta["history"].items() if chunks},
        metrics=metrics,
        images=images,
    )
    report = folder / "report.html"
    write_atomically(report, page.encode())
    return report


def redshifts_of(vae: MultiModalVAE, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median redshifts, the grid, and p(redshift) on it."""
    bounds = vae.space["redshift"]
    grid = np.linspace(bounds.low, bounds.high, _NUM_GRID)
    density = np.asarray(vae.redshift_density(jax.random.key(0), photometry_of(rows), grid), float)
    return summarise_pz(grid, density)["redshift_q50"], grid, density
