"""A run small enough for tests: three bands, near redshifts, a flow of two layers."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

import popsed_jax as pj
from popsed_jax.flows.spline import FlowConfig
from popsed_jax.observe.noise import NoiseModel
from popsed_jax.observe.selection import MagnitudeLimit, SelectionConfig
from popsed_jax.population.reference import ReferenceConfig


def tiny_config(**fit_changes: object) -> pj.RunConfig:
    """Settings of the tiny run."""
    config = pj.default_config()
    bands = config.catalog.resolved().bands[1:4]
    fit = dataclasses.replace(
        config.fit,
        num_members=2,
        num_epochs=3,
        steps_per_epoch=2,
        batch_size=64,
        num_kl=32,
        reference_draws=200,
        reference_steps=10,
        reference_batch=64,
        max_validation=100,
        **fit_changes,
    )
    return dataclasses.replace(
        config,
        catalog=dataclasses.replace(config.catalog.resolved(), bands=bands),
        selection=SelectionConfig((MagnitudeLimit("sdss_r0", 17.7, 0.1),)),
        parameters={"redshift": (0.01, 0.3)},
        reference=ReferenceConfig(num_histories=1000),
        flow=FlowConfig(num_layers=2, hidden=8, num_blocks=1, num_bins=4),
        fit=fit,
    )


def tiny_catalog(config: pj.RunConfig, num: int = 400) -> pj.Catalog:
    """Some of the embedded galaxies."""
    catalog = pj.read_catalog(config.catalog)
    return catalog.subset(np.arange(num))


def first_bands(noise: NoiseModel, num: int) -> NoiseModel:
    """The noise of the first bands."""
    parts = {field.name: getattr(noise, field.name) for field in dataclasses.fields(noise) if field.name != "shape"}
    return dataclasses.replace(
        noise, **{name: part[:, :num] if name == "depths" else part[:num] for name, part in parts.items()}
    )


def same(one: object, other: object) -> bool:
    """Whether two pytrees hold the same arrays, bit for bit."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True) for a, b in pairs)
