"""Guided autoencoder: its loss term by term, angles that turn with the images, recovery of a known truth, files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popsed_jax.population.storage import StorageError, save_described
from popsed_jax.posteriors.guided import (
    GuidedConfig,
    GuidedData,
    GuidedVAE,
    fit_guided,
    guided_loss,
    load_guided,
    save_guided,
    start_guided,
)
from popsed_jax.posteriors.image_encoders import ImageDecoder, ImageNetworkConfig
from popsed_jax.posteriors.orientation import guided_targets, turned, without_angle, wrapped
from popsed_jax.posteriors.stages import Stage

NETWORK = ImageNetworkConfig(size=16, num_bands=2, channels=(8, 12), bottleneck=8, hidden=32)
CONFIG = GuidedConfig(guided=("orientation", "size"), num_free=1, batch_size=32, network=NETWORK)
STAGE = Stage("short", ("encoder", "decoder"), num_steps=600, learning_rate=5e-3, steps_per_chunk=100)


def ellipses(num, seed):
    """Elongated Gaussians: the truth is in every image, brightness varies besides."""
    rng = np.random.default_rng(seed)
    angle, size = rng.uniform(-0.5 * np.pi, 0.5 * np.pi, num), rng.uniform(1.5, 3.0, num)
    y, x = np.mgrid[:16, :16] - 7.5
    along = x * np.cos(angle)[:, None, None] + y * np.sin(angle)[:, None, None]
    across = y * np.cos(angle)[:, None, None] - x * np.sin(angle)[:, None, None]
    light = np.exp(-0.5 * ((along / size[:, None, None]) ** 2 + (across / 1.0) ** 2))
    bright = rng.uniform(0.5, 1.5, (num, 1, 1, 2))
    image = light[..., None] * bright + 0.005 * rng.normal(size=(num, 16, 16, 2))
    return image.astype(np.float32), {"orientation": angle, "size": size}


def lost(vae, seed, data):
    """The loss and its terms as numbers."""
    loss, terms = jax.jit(guided_loss)(vae.parts, jax.random.key(seed), data)
    return float(loss), {name: float(term) for name, term in terms.items()}


@pytest.fixture(scope="module")
def trained():
    terms = []
    image, truth = ellipses(3000, 0)
    vae = fit_guided(jax.random.key(0), image, truth, CONFIG, STAGE, lambda _, means: terms.append(means))
    return vae, terms


def test_every_term_falls_and_the_loss_is_their_sum(trained):
    terms = trained[1]
    assert len(terms) == STAGE.num_chunks
    for name in ("reconstruction", "guidance"):
        assert terms[-1][name] < 0.5 * terms[0][name]
    for each in terms:
        total = 10.0 * each["reconstruction"] + each["divergence"] + 50.0 * each["guidance"]
        assert each["loss"] == pytest.approx(total, rel=1e-4)


def test_a_known_truth_is_recovered_also_at_the_ends(trained):
    vae = trained[0]
    image, truth = ellipses(800, 1)
    found = vae.properties(vae.encode(image))
    error = np.asarray(wrapped(jnp.asarray(found["orientation"] - truth["orientation"])))
    assert np.median(np.abs(error)) < 0.06
    ends = np.abs(truth["orientation"]) > 0.5 * np.pi - 0.15
    assert ends.sum() > 40
    assert np.abs(np.mean(error[ends])) < 0.04
    assert np.std(found["size"] - truth["size"]) < 0.5 * np.std(truth["size"])
    seen, again = vae.reconstruct(image)
    assert np.mean((again - seen) ** 2) < 0.2 * np.mean((seen - seen.mean(axis=0)) ** 2)


def test_the_loss_is_the_papers():
    """Each term by NumPy from the networks' outputs; of one image, without symmetry, little is left to chance."""
    image, truth = ellipses(50, 2)
    config = dataclasses.replace(CONFIG, symmetric=False, num_free=2, reconstruction=7.0, guidance=3.0)
    vae, data = start_guided(jax.random.key(3), image, truth, config)
    one = GuidedData(data.image[:1], data.features[:1], data.orientation[:1], data.others[:1], config)
    loss, terms = lost(vae, 4, one)
    moments = jax.jit(GuidedVAE.moments)(vae, image[:1])
    mean, log_var = (np.asarray(each, float)[0] for each in moments)
    sizes = truth["size"]
    target = [np.cos(2 * truth["orientation"][0]) * np.sqrt(2), np.sin(2 * truth["orientation"][0]) * np.sqrt(2)]
    target.append((sizes[0] - sizes.mean()) / sizes.std())
    assert terms["guidance"] == pytest.approx(np.mean((mean[:3] - target) ** 2), rel=1e-3)
    free, spread = mean[3:], log_var[3:]
    assert terms["divergence"] == pytest.approx(0.5 * np.sum(free**2 + np.exp(spread) - 1.0 - spread), rel=1e-3)
    assert loss == pytest.approx(
        7.0 * terms["reconstruction"] + terms["divergence"] + 3.0 * terms["guidance"], rel=1e-5
    )
    # At the start free latents hardly matter: the decoder of the mean gives nearly the same error.
    again = np.asarray(jax.jit(ImageDecoder(NETWORK).apply)(vae.parts["decoder"], moments.mean))[0]
    assert terms["reconstruction"] == pytest.approx(np.sum((again - np.asarray(vae.stretched(image[0]))) ** 2), rel=0.5)


def test_images_are_stretched_as_in_the_paper():
    image, truth = ellipses(40, 5)
    vae, data = start_guided(jax.random.key(0), image, truth, CONFIG)
    brightest = image.max(axis=(1, 2)).mean(axis=0)
    np.testing.assert_allclose(data.image, np.arcsinh(10.0 * image / brightest), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(vae.stretched(image), np.tanh(np.arcsinh(10.0 * image / brightest)), atol=1e-5)
    np.testing.assert_allclose(vae.brightest, brightest, rtol=1e-6)


def test_the_encoder_sees_what_the_stretch_hides():
    """Two centres ten times as bright as the mean: alike to the decoder, not to the encoder; and apertures of the same light."""
    image, truth = ellipses(40, 11)
    vae, data = start_guided(jax.random.key(0), image, truth, CONFIG)
    bright = np.stack([10.0 * image[0], 12.0 * image[0]])
    (one, two), (near, far) = np.asarray(vae.stretched(bright)), np.asarray(vae.unsaturated(bright))
    assert np.abs(one - two)[7:9, 7:9].max() < 0.001 < 0.15 < np.abs(near - far)[7:9, 7:9].min()
    fluxes = np.stack(
        [image[..., np.hypot(*(np.mgrid[:16, :16] - 7.5)) <= 3.0, i].sum(axis=-1) for i in range(2)], axis=1
    )
    assert data.features.shape == (40, 2 * len(CONFIG.apertures))
    np.testing.assert_allclose(data.features, vae.features(image), atol=2e-3)
    # The whitened numbers are a linear map of the fluxes' logarithms.
    logs = np.arcsinh(10.0 * fluxes / np.asarray(vae.brightest))
    design = np.concatenate([data.features, np.ones((40, 1))], axis=1)
    left = logs - design @ np.linalg.lstsq(design, logs, rcond=None)[0]
    assert np.abs(left).max() < 0.01 * np.ptp(logs)


@pytest.mark.parametrize("unsaturated", [False, True])
@pytest.mark.parametrize("apertures", [(), (1.0, 4.0)])
def test_what_the_encoder_sees_is_a_choice(unsaturated, apertures, tmp_path):
    config = dataclasses.replace(CONFIG, unsaturated=unsaturated, apertures=apertures)
    image, truth = ellipses(40, 12)
    vae, data = start_guided(jax.random.key(0), image, truth, config)
    shapes = {
        name: np.shape(each["kernel"]) for name, each in vae.parts["encoder"]["params"].items() if "kernel" in each
    }
    assert shapes["Dense_0"][0] == 16 * 2 * (1 + unsaturated)
    assert data.features.shape == (40, 2 * len(apertures))
    assert np.isfinite(lost(vae, 1, data)[0])
    save_guided(tmp_path, vae, {})
    np.testing.assert_array_equal(load_guided(tmp_path)[0].encode(image), vae.encode(image))


def test_files_from_before_version_3_are_read(tmp_path, monkeypatch):
    """They say nothing of what later encoders see besides stretched images, nor how many blocks."""
    network = dataclasses.replace(NETWORK, num_blocks=1)
    config = dataclasses.replace(CONFIG, unsaturated=False, apertures=(), network=network)
    vae, _ = start_guided(jax.random.key(0), *ellipses(40, 13), config)
    fields = dataclasses.asdict(config)
    for name in ("unsaturated", "apertures"):
        del fields[name]
    del fields["network"]["num_blocks"]
    tree = (vae.parts, vae.brightest, vae.standard)
    save_described(tmp_path, tree, "guided.json", "guided VAE", 2, {"config": fields, "meta": {}})
    again, _ = load_guided(tmp_path)
    assert again.config == config
    image = ellipses(5, 14)[0]
    np.testing.assert_array_equal(again.encode(image), vae.encode(image))


@pytest.mark.parametrize("which", range(8))
def test_orientations_turn_with_their_images(which):
    image, truth = ellipses(30, 6)
    moved, angle = turned(jnp.asarray(which), jnp.asarray(image), jnp.asarray(truth["orientation"]))
    moved = np.asarray(moved, float)[..., 0]
    y, x = np.mgrid[:16, :16] - 7.5
    xx, yy, xy = (np.sum(moved * product, axis=(1, 2)) for product in (x * x, y * y, x * y))
    difference = wrapped(jnp.asarray(0.5 * np.arctan2(2.0 * xy, xx - yy)) - angle)
    assert np.median(np.abs(difference)) < 0.1
    if which == 0:
        np.testing.assert_array_equal(moved, image[..., 0].astype(float))


def test_eight_different_ways_to_turn():
    image = jnp.asarray(ellipses(1, 7)[0])
    each = {np.asarray(turned(jnp.asarray(i), image, jnp.zeros(1))[0]).tobytes() for i in range(8)}
    assert len(each) == 8


@pytest.mark.parametrize("angle", [-1.57, -0.3, 0.0, 1.2, 1.57])
def test_properties_undo_targets(trained, angle):
    vae = trained[0]
    others = jnp.array([[0.7]])
    targets = guided_targets(vae.config.guided, jnp.array([angle]), others)
    found = vae.properties(np.concatenate([targets, np.zeros((1, 1))], axis=1))
    assert found["orientation"][0] == pytest.approx(angle, abs=1e-5)
    assert found["size"][0] == pytest.approx(float(vae.standard.center[0] + 0.7 * vae.standard.scale[0]), rel=1e-5)


def test_orientation_is_seamless_and_the_plain_angle_is_not():
    ends = jnp.array([0.5 * np.pi - 1e-3, -0.5 * np.pi + 1e-3])
    none = jnp.zeros((2, 0))
    seamless = guided_targets(("orientation",), ends, none)
    plain = guided_targets(("angle",), ends, none)
    assert np.abs(seamless[0] - seamless[1]).max() < 0.01
    assert np.abs(plain[0] - plain[1]).max() > 3.0
    np.testing.assert_allclose(wrapped(jnp.array([0.6, 0.6 + np.pi, 0.6 - 3 * np.pi])), 0.6, rtol=1e-5)


def test_latents_without_angle_do_not_turn():
    others, free = jnp.array([[0.7], [-0.2]]), np.array([[0.1, 0.2], [0.3, 0.4]])
    for guided, expected in ((("size", "orientation"), [0.7, 1.0]), (("angle", "size"), [0.7]), (("size",), [0.7])):
        kept = []
        for angle in (0.3, -1.2):
            targets = np.asarray(guided_targets(guided, jnp.full(2, angle), others))
            kept.append(without_angle(guided, np.concatenate([targets, free], axis=1)))
        np.testing.assert_allclose(*kept, atol=1e-5)
        np.testing.assert_allclose(kept[0][0], [*expected, 0.1, 0.2], atol=1e-5)


def test_the_plain_autoencoder_is_told_nothing():
    config = CONFIG.plain()
    assert (config.latent, config.num_guided, config.guidance) == (CONFIG.latent, 0, 0.0)
    assert config.names == ("free 1", "free 2", "free 3", "free 4")
    vae, data = start_guided(jax.random.key(0), ellipses(40, 8)[0], {}, config)
    loss, terms = lost(vae, 1, data)
    assert terms["guidance"] == 0.0
    assert loss == pytest.approx(10.0 * terms["reconstruction"] + terms["divergence"], rel=1e-5)
    assert vae.properties(np.zeros((3, 4))) == {}


def test_names_and_sizes():
    config = GuidedConfig()
    assert config.latent == 6
    assert config.names == ("cos 2 phi", "sin 2 phi", "redshift", "log_mass", "log_sfr", "free 1")
    assert dataclasses.replace(config, guided=("angle", "redshift")).latent == 3


def test_files(trained, tmp_path):
    vae = trained[0]
    save_guided(tmp_path, vae, {"why": "test"})
    again, meta = load_guided(tmp_path)
    image = ellipses(20, 9)[0]
    assert (again.config, meta) == (vae.config, {"why": "test"})
    np.testing.assert_array_equal(again.encode(image), vae.encode(image))
    description = tmp_path / "guided.json"
    changed = json.loads(description.read_text())
    changed["config"]["guided"] = ["angle"]
    description.write_text(json.dumps(changed))
    with pytest.raises(StorageError, match="it was changed"):
        load_guided(tmp_path)
    with pytest.raises(StorageError, match="train an autoencoder"):
        load_guided(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"guided": ("size", "size")}, "twice"),
        ({"guided": ("angle", "orientation")}, "twice"),
        ({"guided": (), "num_free": 0}, "at least 1 wanted"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"guidance": -1.0}, "guidance = -1.0"),
        ({"stretch": 0.0}, "stretch = 0.0"),
        ({"apertures": (0.5, 2.0)}, "no pixel within"),
    ],
)
def test_impossible_settings(change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(CONFIG, **change)


def broken(image, truth, what):
    if what == "shape":
        return image[:, :8], truth
    if what == "pixels":
        image = image.copy()
        image[3] = np.nan
    if what == "dark":
        return -np.abs(image), truth
    if what == "missing":
        return image, {"orientation": truth["orientation"]}
    if what == "length":
        return image, truth | {"size": truth["size"][:5]}
    if what == "numbers":
        return image, truth | {"size": np.full(len(image), np.inf)}
    if what == "constant":
        return image, truth | {"size": np.ones(len(image))}
    return image, truth


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("shape", r"\(galaxy, 16, 16, 2\) wanted"),
        ("pixels", "1 of 20 have pixels"),
        ("dark", "positive ones wanted"),
        ("missing", "nothing named 'size'"),
        ("length", "one number for each of 20"),
        ("numbers", "20 values of size"),
        ("constant", "nothing to learn"),
    ],
)
def test_impossible_galaxies(what, said):
    with pytest.raises(ValueError, match=said):
        start_guided(jax.random.key(0), *broken(*ellipses(20, 10), what), CONFIG)
