"""Emulators: their laws, their training, their files, and where they are refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import same, tiny_catalog, tiny_config
from typer.testing import CliRunner

import popsed_jax as pj
from popsed_jax import cli
from popsed_jax.emulators import load_emulator, save_emulator
from popsed_jax.observe.emulated import (
    PhotometryEmulator,
    build_spectrum_photometry,
    check_coverage,
    draw_photometry,
    emulated_flux,
    group_features,
    pivot_wavelengths,
    select_filters,
    spectrum_flux,
)
from popsed_jax.observe.filters import load_filter
from popsed_jax.observe.forward import ForwardModel
from popsed_jax.observe.operators import integrate_spectrum
from popsed_jax.observe.photometry import build_photometry_table, dimming
from popsed_jax.observe.photometry import flux as table_flux
from popsed_jax.observe.selection import MagnitudeLimit, SelectionConfig
from popsed_jax.population.checkpoint import CheckpointError
from popsed_jax.population.storage import StorageError
from popsed_jax.settings import dump_toml, to_mapping
from popsed_jax.sps.config import ModelConfig
from popsed_jax.sps.dust import diffuse_optical_depth
from popsed_jax.sps.emulator import EmulatorConfig, Feature, default_features, draw_examples, init_networks
from popsed_jax.sps.galaxy import build_galaxy_model
from popsed_jax.sps.populations import population_fractions, population_groups
from popsed_jax.sps.spectra import decompose, init_spectrum_emulator, load_spectra, make_spectra
from popsed_jax.train_emulator import EmulatorCheckpoint, summarise_errors, train_emulator

# Few steps want longer ones than the default's 60,000.
SMALL = EmulatorConfig(
    hidden=16, num_layers=2, num_chunks=3, chunk_size=512, steps_per_chunk=40, batch_size=128, learning_rate=1e-2
)
FILTER = "sdss_r0"
NEAR = {"redshift": (0.01, 0.05)}


def small_run(**changes: object) -> pj.RunConfig:
    """Settings of a training that takes seconds."""
    training = dataclasses.replace(SMALL, **changes)
    return dataclasses.replace(pj.default_config(), parameters=NEAR, train_emulator=training)


@pytest.fixture(scope="module")
def near():
    """Galaxies nearby."""
    return build_galaxy_model(bounds=NEAR)


@pytest.fixture(scope="module")
def near_table(near):
    """One filter."""
    return build_photometry_table(near, [FILTER])


class TestFeature:
    @pytest.mark.parametrize("name", ["redshift", "f_burst", "t_burst", "tau_birth", "logzsol"])
    def test_round_trip_within_the_bounds(self, galaxy, name):
        parameter = galaxy.space[name]
        (feature,) = default_features([parameter])
        values = jnp.linspace(parameter.low, parameter.high, 50)
        scaled = feature.scaled(values)
        assert np.allclose([scaled[0], scaled[-1]], [-1.0, 1.0], atol=1e-5)
        assert np.all(np.diff(scaled) > 0)
        assert np.allclose(feature.unscaled(scaled), values, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"low": 1.0}, "below high"),
            ({"log": True}, "logarithm"),
            ({"num_nodes": 1}, "num_nodes"),
        ],
    )
    def test_refuses(self, changes, words):
        with pytest.raises(ValueError, match=words):
            Feature(**{"name": "tau_v", "low": 0.0, "high": 1.0, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"hidden": 0}, "hidden"), ({"learning_rate": 0.0}, "learning_rate"), ({"prior_share": 2.0}, "prior_share"),
     ({"batch_size": 1000}, "chunk_size")],
)  # fmt: skip
def test_settings_refuse(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SMALL, **changes)


class TestPopulations:
    def test_their_light_adds_up_to_the_galaxy(self, near, near_table):
        """An identity of the exact route, which the emulator relies on, for whole batches of examples to the last one."""
        values, log_light = draw_examples(draw_photometry, (near_table, near, jnp.asarray(0.5)), jax.random.key(3), 512)
        unit = values | {"log_mass": jnp.zeros(512)}

        def screened(one):
            return jnp.exp(
                -diffuse_optical_depth(
                    pivot_wavelengths([FILTER]) / (1 + one["redshift"]), one["tau_v"], one["dust_index"]
                )
            )

        light = jnp.exp(jnp.concatenate(log_light, axis=1)) * jax.jit(jax.vmap(screened))(values)
        mixed = jnp.sum(light * jax.jit(jax.vmap(lambda one: population_fractions(near, one)))(values), axis=1)
        factor = jax.jit(jax.vmap(lambda one: dimming(near, one)))(unit)
        exact = jax.jit(jax.vmap(lambda one: table_flux(near_table, near, one)))(near.space.pack(unit))
        assert np.allclose(mixed * factor, exact[:, 0], rtol=2e-5, atol=0.0)

    def test_fractions_sum_to_one(self, galaxy, theta):
        fractions = jax.vmap(lambda one: population_fractions(galaxy, galaxy.space.unpack(one)))(jnp.asarray(theta))
        assert np.allclose(fractions.sum(axis=1), 1.0, atol=1e-6)
        assert fractions.min() >= 0.0

    def test_nothing_separates_when_metals_follow_the_history(self):
        assert len(population_groups(ModelConfig(metallicity="evolving"))) == 1
        assert len(population_groups(ModelConfig(sfh="continuity"))) == 1


@pytest.fixture(scope="module")
def untrained(galaxy, bands):
    """Random weights, tables too."""
    rng, features = np.random.default_rng(0), group_features(galaxy)
    outputs = [jnp.asarray(rng.normal(-5.0, 1.0, (10, 5 * num)), dtype=float) for num in (4, 1)]
    networks = init_networks(jax.random.key(0), features, outputs, SMALL)
    moved = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.02 * rng.normal(size=leaf.shape), leaf.dtype), networks)
    return PhotometryEmulator(
        moved,
        pivot_wavelengths(bands),
        filters=bands,
        space=galaxy.space,
        config=galaxy.config,
        ssp_sha256=galaxy.ssp.sha256,
    )


class TestNetwork:
    def test_against_numpy(self, untrained, galaxy, theta):
        """Alsing+20's layers, written again in double precision."""
        network = untrained.networks[1]
        params = dict(zip(galaxy.space.names, theta[3].astype(float), strict=True))
        weights = jax.tree.map(lambda leaf: np.asarray(leaf, float), dict(network.weights))
        scaled = [float(f.scaled(jnp.asarray(params[f.name]))) for f in network.features]
        h = scaled @ weights["Dense_0"]["kernel"] + weights["Dense_0"]["bias"]
        for column, feature in enumerate(network.features):
            if feature.num_nodes:
                nodes = np.linspace(-1.0, 1.0, feature.num_nodes)
                h += [np.interp(scaled[column], nodes, unit) for unit in weights[f"table_{column}"].T]
        for layer in range(network.num_layers):
            if layer:
                h = h @ weights[f"Dense_{layer}"]["kernel"] + weights[f"Dense_{layer}"]["bias"]
            alpha, beta = weights[f"alpha_{layer}"], weights[f"beta_{layer}"]
            h = (beta + (1.0 - beta) / (1.0 + np.exp(-alpha * h))) * h
        last = weights[f"Dense_{network.num_layers}"]
        expected = np.asarray(network.shift) + np.asarray(network.scale) * (h @ last["kernel"] + last["bias"])
        assert np.allclose(network({k: jnp.asarray(v) for k, v in params.items()}), expected, rtol=1e-4, atol=1e-4)

    def test_flops_count_the_products(self, untrained):
        assert untrained.networks[1].num_flops == 2 * (6 * 16 + 16 * 16 + 16 * 5)

    def test_gradient(self, untrained, galaxy_x64, theta):
        with jax.enable_x64(True):
            emulator = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), untrained)
            log_flux = jax.jit(lambda one: jnp.log(emulated_flux(emulator, galaxy_x64, one)).sum())
            one = jnp.asarray(theta[5], jnp.float64)
            gradient = jax.jit(jax.grad(log_flux))(one)
            for i, value in enumerate(gradient):
                step = 1e-6
                numerical = (log_flux(one.at[i].add(step)) - log_flux(one.at[i].add(-step))) / (2 * step)
                assert np.isclose(value, numerical, rtol=1e-4, atol=1e-5), galaxy_x64.space.names[i]

    def test_mass_is_exact(self, untrained, galaxy, theta):
        index, one = galaxy.space.index("log_mass"), jnp.asarray(theta[0])
        flux = jax.jit(lambda mass: emulated_flux(untrained, galaxy, one.at[index].set(mass)))
        light, heavy = flux(9.0), flux(11.0)
        assert np.allclose(heavy / light, 100.0, rtol=1e-4)


class TestCoverage:
    def test_accepts_what_it_was_trained_for(self, untrained, galaxy):
        check_coverage(untrained.space, untrained.config, untrained.ssp_sha256, galaxy)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"space": "redshift"}, "redshift reaches from 0.001 to 0.8, and it was trained within 0.001 to 0.5"),
            ({"config": ModelConfig(metallicity_scatter=0.1)}, "metallicity_scatter is 0.2, and it was trained on 0.1"),
            ({"ssp_sha256": "0"}, "other templates"),
        ],
    )
    def test_names_what_is_not_covered(self, untrained, galaxy, changes, words):
        if "space" in changes:
            changes = {"space": galaxy.space.replace_bounds({"redshift": (0.001, 0.5)})}
        other = dataclasses.replace(untrained, **changes)
        with pytest.raises(ValueError, match=words):
            check_coverage(other.space, other.config, other.ssp_sha256, galaxy)

    def test_names_parameters_on_either_side(self, untrained):
        burst = build_galaxy_model(ModelConfig(sfh="delayed_tau"), NEAR)
        with pytest.raises(ValueError, match="log_tau is not among its parameters") as info:
            check_coverage(untrained.space, untrained.config, untrained.ssp_sha256, burst)
        assert "its parameter t_burst is not one of the model's" in str(info.value)

    def test_filters_by_name_in_any_order(self, untrained, galaxy, theta):
        one = jnp.asarray(theta[0])
        few = select_filters(untrained, ("sdss_z0", "sdss_g0"))
        flux = jax.jit(lambda emulator: emulated_flux(emulator, galaxy, one))
        assert np.allclose(flux(few), flux(untrained)[jnp.array([4, 1])], rtol=1e-5)
        with pytest.raises(ValueError, match="no filter twomass_J"):
            select_filters(untrained, ("sdss_g0", "twomass_J"))
        moved = dataclasses.replace(untrained, pivots=untrained.pivots * 1.001)
        with pytest.raises(ValueError, match="sdss_g0 is not the curve"):
            select_filters(moved, ("sdss_g0",))


def test_forward_model_with_an_emulator(untrained, galaxy, noise, theta):
    """One dispatch: fluxes and selection."""
    selection = SelectionConfig((MagnitudeLimit("sdss_r0", 17.77),))
    forward = ForwardModel(galaxy, untrained, noise, selection=selection, num_bands=len(untrained.filters))
    draws = jnp.asarray(theta[:8])
    found, detected = jax.jit(lambda f: (f.flux(draws), f.detection(draws)))(forward)
    expected = jax.jit(lambda one: emulated_flux(untrained, galaxy, one))(draws[3])
    assert np.allclose(found[3], expected, rtol=1e-5)
    assert np.all((detected >= 0) & (detected <= 1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder of an emulator that was trained without interruption."""
    folder = tmp_path_factory.mktemp("emulator") / "whole"
    result = train_emulator(small_run(), folder, filters=[FILTER], show_progress=False)
    assert result.finished
    return folder


class TestTraining:
    def test_learns(self, trained):
        """Against a galaxy of the mean light, seconds of training gain several times."""
        description = json.loads((trained / "emulator.json").read_text())
        history = description["rms_history"]
        assert len(history) == 3
        assert history[-1] < 0.5 * history[0]
        table = pj.read_table(trained / "errors.parquet")
        assert len(table) == description["num_test"] >= 20_000
        size = np.abs(np.asarray(table[f"error_{FILTER}"]))
        assert np.isclose(np.quantile(size, 0.999), description["errors"][FILTER]["99.9"], rtol=1e-4)
        assert description["errors"][FILTER]["50"] < 0.2
        assert np.isclose(abs(description["worst"][0]["error_mag"][FILTER]), size.max(), rtol=1e-5)

    def test_errors_are_those_of_its_fluxes(self, trained, near, near_table):
        """The table's errors again, from the files alone."""
        table = pj.read_table(trained / "errors.parquet")[:50]
        emulator = load_emulator(trained)
        draws = jnp.stack([jnp.asarray(np.asarray(table[name])) for name in near.space.names], axis=1)
        ratio = jax.jit(jax.vmap(lambda t: emulated_flux(emulator, near, t) / table_flux(near_table, near, t)))(draws)
        assert np.allclose(2.5 * np.log10(ratio[:, 0]), table[f"error_{FILTER}"], atol=2e-5)

    def test_resume_ends_at_the_same_bits(self, trained, tmp_path, monkeypatch):
        """Interrupted in the second chunk; what it leaves is usable, and the rest of the training ends the same."""
        save = EmulatorCheckpoint.save

        def stop(self, state, history, seconds):
            save(self, state, history, seconds)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(EmulatorCheckpoint, "save", stop)
            half = train_emulator(small_run(), tmp_path, filters=[FILTER], show_progress=False)
        assert not half.finished
        assert not same(load_emulator(tmp_path), load_emulator(trained))
        run = {"filters": [FILTER], "show_progress": False}
        with pytest.raises(CheckpointError, match="other settings"):
            train_emulator(small_run(seed=1), tmp_path, resume=True, **run)
        whole = train_emulator(small_run(), tmp_path, resume=True, **run)
        assert whole.finished
        assert same(load_emulator(tmp_path), load_emulator(trained))

    def test_nothing_to_resume(self, tmp_path):
        with pytest.raises(CheckpointError, match="nothing to resume"):
            train_emulator(small_run(), tmp_path, filters=[FILTER], resume=True, show_progress=False)

    def test_needs_filters(self, tmp_path):
        with pytest.raises(ValueError, match="needs filters"):
            train_emulator(small_run(), tmp_path, show_progress=False)


class TestFiles:
    def test_round_trip(self, untrained, tmp_path):
        save_emulator(tmp_path, untrained, {"note": 1})
        back = load_emulator(tmp_path)
        assert same(back, untrained)
        assert jax.tree.structure(back) == jax.tree.structure(untrained)

    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (lambda f: (f / "weights.safetensors").write_bytes(b"x"), "checksum"),
            (lambda f: (f / "weights.safetensors").unlink(), "does not exist"),
            (lambda f: (f / "emulator.json").unlink(), "train-emulator"),
            (lambda f: (f / "emulator.json").write_text("{"), "damaged"),
            (lambda f: (f / "emulator.json").write_text("{}"), "does not describe"),
            (lambda f: _edit(f / "emulator.json", format_version=99), "update it"),
            (lambda f: _edit(f / "emulator.json", networks=[]), "holds other arrays"),
        ],
    )
    def test_damage_is_named(self, untrained, tmp_path, damage, words):
        save_emulator(tmp_path, untrained, {})
        damage(tmp_path)
        with pytest.raises(StorageError, match=words):
            load_emulator(tmp_path)


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class TestCommand:
    def test_one_line_of_configuration(self, trained, tmp_path):
        """A survey in run.toml's words, its emulator beside it."""
        base = tiny_config(flat_control=False)
        config = dataclasses.replace(
            base,
            catalog=dataclasses.replace(base.catalog, bands=base.catalog.bands[1:2]),
            parameters=NEAR,
            emulator=str(trained),
        )
        forward = pj.build_survey(tiny_catalog(config), config)
        assert forward.table.filters == (FILTER,)
        draws = forward.space.sample_flat(jax.random.key(0), 8)
        assert np.all(np.isfinite(jax.jit(ForwardModel.flux)(forward, draws)))
        assert pj.load_config(_written(tmp_path, config)).emulator == str(trained)
        with pytest.raises(ValueError, match="redshift reaches"):
            pj.build_survey(tiny_catalog(config), dataclasses.replace(config, parameters={"redshift": (0.01, 0.06)}))

    def test_train_and_report(self, trained, tmp_path):
        """From a finished checkpoint: nothing to train, everything to write."""
        base = tiny_config()
        bands = base.catalog.bands[1:2]
        config = dataclasses.replace(
            small_run(), catalog=dataclasses.replace(base.catalog, bands=bands), selection=base.selection
        )
        arguments = ["train-emulator", "--config", str(_written(tmp_path, config)), "--out", str(trained), "--resume"]
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == 0, result.output
        assert "99.9 % within" in result.stdout
        page = (trained / "report.html").read_text()
        assert page.count("data:image/png;base64") == 3
        assert "http" not in page.replace("http-equiv", "")


def _written(folder: Path, config: pj.RunConfig) -> Path:
    path = folder / "run.toml"
    path.write_text(dump_toml(to_mapping(config)))
    return path


@pytest.fixture(scope="module")
def spectra(near):
    """A few hundred of its spectra."""
    return make_spectra(jax.random.key(2), near, 256, 0.5)


class TestSpectra:
    @pytest.mark.slow
    def test_made_by_the_model(self, spectra, near):
        lum_nu = jax.jit(near.spectrum)(jnp.asarray(spectra.theta[7]))
        expected = np.asarray(lum_nu)[np.searchsorted(near.ssp.wave, spectra.wave)]
        assert np.allclose(np.exp(spectra.log_lum[7]), expected, rtol=1e-4)
        assert spectra.wave[0] >= 911.0

    @pytest.mark.slow
    def test_components_rebuild_the_spectra(self, spectra):
        """As many components as there are directions: exact; and they are orthonormal."""
        few = spectra._replace(theta=spectra.theta[:20], log_lum=spectra.log_lum[:20])
        parts = decompose(few, dataclasses.replace(SMALL, num_pca=20, num_segments=3))
        rebuilt = [m + c @ rows for m, c, rows in zip(parts.mean, parts.coefficients, parts.components, strict=True)]
        assert np.allclose(np.concatenate(rebuilt, axis=1), few.log_lum, atol=2e-4)
        assert np.allclose(parts.components[0] @ parts.components[0].T, np.eye(20), atol=1e-5)
        with pytest.raises(ValueError, match="num_pca"):
            decompose(few, dataclasses.replace(SMALL, num_pca=21))

    @pytest.mark.slow
    def test_through_filters(self, spectra, near, tmp_path):
        """Against the full integral of the same emulated spectrum, on the table's nodes; and from its files."""
        config = dataclasses.replace(SMALL, num_pca=6, num_segments=2)
        emulator, _ = init_spectrum_emulator(jax.random.key(0), spectra, config, near)
        save_emulator(tmp_path, emulator, {})
        assert same(load_emulator(tmp_path), emulator)
        photometry = build_spectrum_photometry(emulator, near, ("sdss_g0", "sdss_z0"))
        redshift = near.grid.redshift[7]
        theta = jnp.asarray(spectra.theta[3]).at[near.space.index("redshift")].set(redshift)
        theta = theta.at[near.space.index("log_mass")].set(10.0)
        lum_nu = np.asarray(jax.jit(emulator.spectrum)(theta), float)
        curves = [load_filter(name) for name in photometry.filters]
        expected = integrate_spectrum(spectra.wave, lum_nu, redshift, curves)
        unit = near.space.unpack(theta.at[near.space.index("log_mass")].set(0.0))
        found, factor = jax.jit(lambda: (spectrum_flux(photometry, near, theta), dimming(near, unit)))()
        assert np.allclose(found, expected * factor, rtol=2e-3, atol=0.0)
        with pytest.raises(ValueError, match="leaves the emulator's range"):
            build_spectrum_photometry(emulator, near, ("wise_w4",))

    @pytest.mark.slow
    def test_learned_from_a_file(self, tmp_path):
        """Greybodies of anybody: a power law with a curvature, which six components hold."""
        path = tmp_path / "spectra.h5"
        _write_spectra(path)
        config = small_run(hidden=32, num_pca=4, num_segments=1, num_chunks=10)
        result = train_emulator(config, tmp_path / "out", kind="spectrum", spectra=path, show_progress=False)
        assert result.emulator.config is None
        assert result.emulator.space.names == ("slope", "log_mass")
        (errors,) = result.errors.values()
        assert errors["50"] < 0.1
        spectrum = jax.jit(result.emulator.spectrum)
        heavy, light = (spectrum(jnp.array([0.3, mass])) for mass in (10.0, 9.0))
        assert np.allclose(heavy / light, 10.0, rtol=1e-4)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"wave": None}, "no dataset wave"),
            ({"names": None}, "attribute 'names'"),
            ({"names": ["a"]}, "for 1 names"),
            ({"wave": np.linspace(9000.0, 3000.0, 50)}, "increasing"),
            ({"lum_nu": np.ones((3, 50))}, "lum_nu has shape"),
            ({"nan": (4, 2)}, r"lum_nu is not finite at \(4, 2\)"),
            ({"zero": (4, 2)}, r"lum_nu is not positive at \(4, 2\)"),
            ({"constant": True}, "slope has one value only"),
        ],
    )
    def test_bad_files_are_named(self, tmp_path, changes, words):
        path = tmp_path / "spectra.h5"
        _write_spectra(path, **changes)
        with pytest.raises(ValueError, match=words):
            load_spectra(path)

    def test_no_such_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            load_spectra(tmp_path / "none.h5")
        (tmp_path / "text.h5").write_text("not HDF5")
        with pytest.raises(ValueError, match="not an HDF5 file"):
            load_spectra(tmp_path / "text.h5")


def _write_spectra(path: Path, **changes: object) -> None:
    rng = np.random.default_rng(0)
    theta = np.stack([rng.uniform(-1.0, 1.0, 400), rng.uniform(9.0, 11.0, 400)], axis=1)
    if changes.get("constant"):
        theta[:, 0] = 0.5
    wave = np.linspace(3000.0, 9000.0, 50)
    x = np.log(wave / 5500.0)
    lum_nu = 10.0 ** theta[:, 1:] * np.exp(theta[:, :1] * x + 0.5 * theta[:, :1] ** 2 * x**2)
    for word, value in (("nan", np.nan), ("zero", 0.0)):
        if word in changes:
            lum_nu[changes[word]] = value
    content = {"theta": theta, "wave": wave, "lum_nu": lum_nu}
    content |= {name: changes[name] for name in ("wave", "lum_nu") if name in changes}
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            if values is not None:
                file[name] = values
        names = changes.get("names", ["slope", "log_mass"])
        if names is not None:
            file["theta"].attrs["names"] = names


def test_percentiles_of_known_errors():
    error = np.linspace(-1.0, 1.0, 2001)[:, None]
    table, summary = summarise_errors(np.arange(2001.0)[:, None], error, ["r"], ["x"])
    assert np.isclose(summary["errors"]["r"]["50"], 0.5, atol=1e-3)
    assert np.isclose(summary["errors"]["r"]["max"], 1.0)
    assert {case["parameters"]["x"] for case in summary["worst"][:2]} == {0.0, 2000.0}
    assert len(table) == 2001
