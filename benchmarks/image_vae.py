"""Guided autoencoder of images against a plain one: what latents know, which anomalies they find, how fast, and on real images.

python benchmarks/image_vae.py --folder runs/images [--parts mocks limit real] [--images FILE]

mocks: grz images of the reference population as a survey limited at r = 19 detects it, with compact starbursts and red spirals,
    in three parts: training (3 % of each rare kind: simulated galaxies to learn from are free), choice (18,000: of the
    classifier's threshold) and test (36,000), the latter two with 1 % of each kind.
    Guided and plain autoencoders of as many latents: redshift, mass, star-formation rate and orientation of the test's galaxies
    (where no latent is guided, by the nearest neighbours among the training's latents); the anomalies that a classifier finds in
    their latents, in latents and reconstruction errors, and in latents without the angle; milliseconds for each image.
limit: the same search, by boosted trees, in what the images are made from: the true magnitude, colours, size, axis ratio and
    bulge; and in the true redshift, mass, star-formation rate, bulge and size, which no image tells. With red spirals as they are
    defined, and without the limit on their colour.
real: 2,000 cut-outs of SDSS: reconstruction against principal components, and spiral or not by the latents.

Mocks and networks are kept in the folder; a second run reads them.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import finish
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from popsed_jax.diagnostics.anomaly import ClassifierConfig, anomaly_curve, classify_anomalies
from popsed_jax.observe.images import ImageConfig
from popsed_jax.plots_anomaly import plot_anomaly_curves
from popsed_jax.plots_images import plot_image_latents, plot_orientation, plot_reconstructions
from popsed_jax.population.batching import map_batches
from popsed_jax.population.image_mocks import (
    KINDS,
    ImageMockConfig,
    build_image_survey,
    rest_magnitudes,
    simulate_image_mocks,
)
from popsed_jax.population.morphology import spheroid_ratio
from popsed_jax.posteriors.guided import STAGE, GuidedConfig, GuidedVAE, fit_guided, load_guided, save_guided
from popsed_jax.posteriors.orientation import turned, without_angle, wrapped

PARTS = ("mocks", "limit", "real")
SETTINGS = tuple(
    ClassifierConfig(C=(C,), gamma=(gamma,), ratio=0.1, balanced=False)
    for C, gamma in ((10.0, 0.03), (100.0, 0.03), (100.0, 0.1))
)
SPLIT = {
    "train": (None, 0.03),
    "choice": (18_000, 0.01),
    "test": (36_000, 0.01),
}  # galaxies, the share of each rare kind
END = 0.1  # [rad] from +-pi/2
ELONGATED = 0.7  # axis ratio below which a galaxy has an orientation to speak of
MOST_CONTAMINATED, LEAST_COMPLETE = 0.05, 0.98


class Mocks(NamedTuple):
    """Mock images of one part, with truth by name."""

    image: np.ndarray
    kind: np.ndarray
    truth: dict[str, np.ndarray]

    def __getitem__(self, rows: Any) -> Mocks:
        return Mocks(self.image[rows], self.kind[rows], {name: each[rows] for name, each in self.truth.items()})


def mocks_of(
    folder: Path, num: int, config: ImageMockConfig, names: tuple[str, ...] = tuple(SPLIT)
) -> tuple[Mocks, ...]:
    """Training, choice and test."""
    forward = None
    parts = []
    for name in names:
        i, (size, rare) = list(SPLIT).index(name), SPLIT[name]
        path = folder / f"mocks_{size or num}_{name}.npz"
        if not path.exists():
            forward = forward or build_image_survey(config)
            key, each = jax.random.fold_in(jax.random.key(i), i), dataclasses.replace(config, anomalies=rare)
            made = simulate_image_mocks(key, forward, size or num, each)
            folder.mkdir(parents=True, exist_ok=True)
            rest, facing = rest_magnitudes(forward, made.theta), made.shape.axis_ratio[:, 1]
            image = made.image.astype(np.float32)
            np.savez(path, image=image, kind=made.kind, flux=made.flux, rest=rest, disc_ratio=facing, **made.truth)
        with np.load(path) as file:
            stored = {name: file[name] for name in file.files}
        image, kind, flux, rest = (stored.pop(name) for name in ("image", "kind", "flux", "rest"))
        mag = -2.5 * np.log10(flux)
        stored |= {"r": mag[:, 1], "g - r": mag[:, 0] - mag[:, 1], "r - z": mag[:, 1] - mag[:, 2]}
        stored |= {"M_r": rest[:, 1], "rest g - r": rest[:, 0] - rest[:, 1]}
        parts.append(Mocks(image, kind, stored))
    return tuple(parts)


def trained(folder: Path, name: str, train: Mocks, config: GuidedConfig, steps: int) -> tuple[GuidedVAE, float]:
    """An autoencoder, and the seconds that its training took."""
    if not (folder / name / "guided.json").exists():
        stage, start = dataclasses.replace(STAGE, num_steps=steps), time.perf_counter()
        vae = fit_guided(
            jax.random.key(1),
            train.image,
            train.truth,
            config,
            stage,
            lambda state, terms: print(name, int(state.step), {k: round(v, 3) for k, v in terms.items()}, flush=True),
        )
        save_guided(folder / name, vae, {"seconds": time.perf_counter() - start, "steps": steps})
    vae, meta = load_guided(folder / name)
    if vae.config != config or meta["steps"] != steps:
        raise SystemExit(f"{folder / name} was trained with other settings: take another --folder")
    return vae, float(meta["seconds"])


def properties(vae: GuidedVAE, train: Mocks, know: np.ndarray, judge: np.ndarray) -> dict[str, np.ndarray]:
    """What the latents say of the test's galaxies.

    Args:
        know, judge: latents of the training and the test.
    """
    if "redshift" in vae.config.guided:
        return vae.properties(judge)
    names = ("redshift", "log_mass", "log_sfr")
    angle = 2.0 * train.truth["orientation"]
    targets = np.stack([*(train.truth[name] for name in names), np.cos(angle), np.sin(angle)], axis=1)
    model = make_pipeline(StandardScaler(), KNeighborsRegressor(20, weights="distance"))
    *known, cos, sin = model.fit(know, targets).predict(judge).T
    return dict(zip(names, known, strict=True)) | {"orientation": 0.5 * np.arctan2(sin, cos)}


def recovery(name: str, found: dict[str, np.ndarray], test: Mocks) -> dict[str, Any]:
    """How well: redshifts both ways of counting, and orientations at the ends of their range beside elsewhere."""
    truth = test.truth["redshift"]
    error = found["redshift"] - truth
    row: dict[str, Any] = {
        "what": name,
        "MAD dz/(1+z)": float(np.median(np.abs(error) / (1.0 + truth))),
        "> 0.15 (1+z)": float(np.mean(np.abs(error) > 0.15 * (1.0 + truth))),
        "MAD dz": float(np.median(np.abs(error))),
        "MAD dz/z": float(np.median(np.abs(error) / truth)),
        "> 15 % of z": float(np.mean(np.abs(error) > 0.15 * truth)),
    }
    for other in ("log_mass", "log_sfr"):
        residual = found[other] - test.truth[other] if other in found else np.array([np.nan])
        row[f"{other} scatter"] = 1.4826 * float(np.median(np.abs(residual - np.median(residual))))
    return row | (orientation(found, test) if "orientation" in found else {})


def orientation(found: dict[str, np.ndarray], test: Mocks) -> dict[str, Any]:
    """Mean error with its own error [rad], of elongated galaxies, near +pi/2 and near -pi/2 and elsewhere."""
    true, elongated = test.truth["orientation"], test.truth["axis_ratio"] < ELONGATED
    error = np.asarray(wrapped(jnp.asarray(found["orientation"] - true)))
    regions = {
        "near +pi/2": true > 0.5 * np.pi - END,
        "near -pi/2": true < END - 0.5 * np.pi,
        "elsewhere": np.abs(true) <= 0.5 * np.pi - END,
    }
    row: dict[str, Any] = {}
    for where, inside in regions.items():
        chosen = error[inside & elongated]
        row[f"bias {where}"] = float(np.mean(chosen))
        row[f"+- {where}"] = float(np.std(chosen) / np.sqrt(len(chosen)))
        row[f"MAD {where}"] = float(np.median(np.abs(chosen)))
    # What an error at the ends is to be compared with: networks err a little at any angle.
    windows = np.arange(END - 0.5 * np.pi, 0.5 * np.pi - 2.0 * END, END)
    means = [np.mean(error[elongated & (true > low) & (true <= low + END)]) for low in windows]
    return row | {f"largest bias of {len(means)} windows elsewhere": float(np.max(np.abs(means)))}


def spaces(vae: GuidedVAE, mocks: Mocks) -> dict[str, np.ndarray]:
    """Latents; those with the log of each band's reconstruction error; and latents that do not say how a galaxy lies."""
    latents = vae.encode(mocks.image)
    seen, again = (
        map_batches(*each) for each in ((GuidedVAE.stretched, vae, mocks.image), (GuidedVAE.decode, vae, latents))
    )
    error = np.log(np.mean((again - seen) ** 2, axis=(1, 2)) + 1e-8)
    found = {"latents": latents, "latents, errors": np.concatenate([latents, error], axis=1)}
    if vae.config.guided:
        found["latents, no angle"] = without_angle(vae.config.guided, latents)
    return found


def anomalies(
    name: str, each: list[dict[str, np.ndarray]], parts: tuple[Mocks, ...]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the table, and curves by name.

    Args:
        each: `spaces` of each part.
    """
    train, choice, test = parts
    rows, curves = [], {}
    for space in each[0]:
        know, choose, judge = (part[space] for part in each)
        both = np.concatenate([choose, judge])
        scores = [classify_anomalies(0, know, train.kind, both, config) for config in SETTINGS]
        for kind in (1, 2):
            score = np.mean([each.of(kind) for each in scores], axis=0)
            other, score = np.split(score, [len(choose)])
            truth = test.kind == kind
            curve = anomaly_curve(score, truth, 0)
            called = score >= anomaly_curve(other, choice.kind == kind, 0).at_contamination(MOST_CONTAMINATED).threshold
            clean = curve.at_contamination(MOST_CONTAMINATED)
            rows.append(
                {
                    "autoencoder": name,
                    "space": space,
                    "kind": KINDS[kind],
                    "test anomalies": int(truth.sum()),
                    "test ordinary": int((~truth).sum()),
                    f"completeness at {MOST_CONTAMINATED:.0%}": clean.completeness,
                    "+-": clean.error,
                    f"contamination at {LEAST_COMPLETE:.0%}": curve.at_completeness(LEAST_COMPLETE).contamination,
                    "area": curve.area,
                    "threshold of others: completeness": float(np.mean(called[truth])),
                    "contamination": float(np.sum(called & ~truth) / max(np.sum(called), 1)),
                }
            )
            print(rows[-1], flush=True)
            curves[f"{KINDS[kind]}: {name}, {space}"] = curve
    return rows, curves


def speed(vae: GuidedVAE, image: np.ndarray) -> dict[str, Any]:
    """Milliseconds for each image, one by one and many at once, after compilation; with the transfer."""
    one, many = jax.jit(GuidedVAE.moments), image[:2048]
    jax.block_until_ready(one(vae, image[:1]))
    start = time.perf_counter()
    for i in range(200):
        jax.block_until_ready(one(vae, image[i : i + 1]))
    singly = (time.perf_counter() - start) / 200
    vae.encode(many)
    start = time.perf_counter()
    vae.encode(many)
    return {"one by one [ms]": 1e3 * singly, "many at once [ms]": 1e3 * (time.perf_counter() - start) / len(many)}


def on_mocks(args: argparse.Namespace, figures: Path) -> None:
    parts = mocks_of(args.folder, args.num, ImageMockConfig())
    train, _, test = parts
    guided = GuidedConfig(num_free=args.num_free)
    bulge = dataclasses.replace(guided, guided=(*guided.guided, "bulge"), num_free=args.num_free - 1)
    every = {
        "guided": guided,
        "plain": guided.plain(),
        "guided to the bulge too": bulge,
        "guided to the angle": dataclasses.replace(guided, guided=("angle", "redshift", "log_mass", "log_sfr")),
    }
    configs = {name: every[name] for name in args.autoencoders}
    knowing, finding, curves = [], [], {}
    middle = {
        name: np.full(len(test.kind), np.median(train.truth[name])) for name in ("redshift", "log_mass", "log_sfr")
    }
    knowing.append(recovery("the training's medians", middle, test))
    extra: dict[str, Any] = {"steps": args.steps, "train": len(train.kind), "test": len(test.kind)}
    for name, config in configs.items():
        short = name.replace(" ", "_")
        vae, seconds = trained(args.folder, f"{short}_{config.latent}_of_{args.num}", train, config, args.steps)
        each = [spaces(vae, part) for part in parts]
        latents = each[2]["latents"]
        found = properties(vae, train, each[0]["latents"], latents)
        knowing.append(recovery(name, found, test))
        print(knowing[-1], flush=True)
        rms = np.sqrt(np.mean(np.exp(each[2]["latents, errors"][:, config.latent :])))
        extra[name] = {"training [s]": seconds, "pixel RMS": float(rms)}
        extra[name] |= speed(vae, test.image) | {"latents": list(config.names)}
        if "orientation" in found:
            plot_orientation(
                test.truth["orientation"], found["orientation"], test.truth["axis_ratio"] < ELONGATED
            ).savefig(figures / f"orientation_{short}.png", dpi=110)
        rows, drawn = anomalies(name, each, parts)
        finding, curves = finding + rows, curves | drawn
        pick = [int(np.flatnonzero(test.kind == kind)[i]) for i in range(3) for kind in range(3)]
        titles = [KINDS[test.kind[i]] for i in pick]
        plot_reconstructions(*vae.reconstruct(test.image[pick]), titles).savefig(
            figures / f"reconstructions_{short}.png", dpi=110
        )
        plot_image_latents(latents, config.names, test.truth["redshift"], test.kind, KINDS).savefig(
            figures / f"latents_{short}.png", dpi=110
        )
    for kind in KINDS[1:]:
        # The figure has room for few: of guided ones, the latents without the angle.
        names = [name for name in curves if name.startswith(kind) and ("guided" not in name or "no angle" in name)]
        chosen = {name.split(": ")[1]: curves[name] for name in names}
        plot_anomaly_curves(chosen).savefig(figures / f"curves_{kind.replace(' ', '_')}.png", dpi=110)
    columns = list(dict.fromkeys(key for row in knowing for key in row))
    table = [[row.get(column, float("nan")) for column in columns] for row in knowing]
    finish("What the latents know", columns, table, args.out / f"image_vae{args.label}_properties.json", extra)
    columns = list(finding[0])
    finish(
        "Anomalies",
        columns,
        [list(row.values()) for row in finding],
        args.out / f"image_vae{args.label}_anomalies.json",
        extra,
    )


def on_truth(args: argparse.Namespace) -> None:
    """What a search could find that knew without error what images are made from."""
    spaces = {
        "magnitude, colours, size, axis ratio, bulge": ("r", "g - r", "r - z", "radius", "axis_ratio", "bulge"),
        "redshift, mass, SFR, bulge, size": ("redshift", "log_mass", "log_sfr", "bulge", "radius"),
    }
    config, wanted = ImageMockConfig(), ("train", "test")
    # Nobody looks at the images.
    of_any = dataclasses.replace(config, spiral_color=(-np.inf, 0.0), images=ImageConfig(size=4))
    definitions = {"as defined": (args.folder, config), "of any colour": (args.folder / "of_any_colour", of_any)}
    rows, extra = [], {}
    for defined, (folder, each) in definitions.items():
        train, test = mocks_of(folder, args.num, each, wanted)
        for name, columns in spaces.items():
            know, judge = (np.stack([part.truth[c] for c in columns], axis=1) for part in (train, test))
            for kind in (1, 2):
                model = HistGradientBoostingClassifier(
                    max_iter=300, learning_rate=0.06, l2_regularization=1.0, random_state=0
                )
                score = model.fit(know, train.kind == kind).decision_function(judge)
                curve = anomaly_curve(score, test.kind == kind, 0)
                clean = curve.at_contamination(MOST_CONTAMINATED)
                worst = curve.at_completeness(LEAST_COMPLETE).contamination
                rows.append([defined, name, KINDS[kind], clean.completeness, clean.error, worst, curve.area])
        extra[defined] = looks(test, config)
    completeness, contamination = f"completeness at {MOST_CONTAMINATED:.0%}", f"contamination at {LEAST_COMPLETE:.0%}"
    columns = ["red spirals", "true", "kind", completeness, "+-", contamination, "area"]
    extra |= {"test": len(test.kind), "train": len(train.kind)}
    finish("Anomalies by the truth itself", columns, rows, args.out / "image_vae_limit.json", extra)


def looks(mocks: Mocks, config: ImageMockConfig) -> dict[str, int]:
    """How many planted red spirals are red, and how many ordinary galaxies look like red spirals because of their dust."""
    truth, (at, slope) = mocks.truth, config.spiral_color
    red = truth["rest g - r"] > at + slope * (truth["M_r"] + 20.0)
    low, high = config.spiral_log_mass
    massive = (truth["log_mass"] > low) & (truth["log_mass"] < high)
    least = float(spheroid_ratio(jnp.asarray(config.spiral_cos), config.morphology.thickness))
    disc = massive & (truth["bulge"] <= config.spiral_bulge) & (truth["disc_ratio"] >= least)
    planted = mocks.kind == 2
    return {"planted": int(planted.sum()), "of them red": int((planted & red).sum())} | {
        "ordinary discs as red": int(((mocks.kind == 0) & disc & red).sum())
    }


def on_real(args: argparse.Namespace, figures: Path) -> None:
    """Cut-outs of SDSS, binned by two: reconstruction, and spiral or not."""
    with np.load(args.images) as file:
        image, spiral, split = (file[name] for name in ("images", "is_spiral", "split"))
    image = (image.reshape(-1, 32, 2, 32, 2, 3).mean(axis=(2, 4)) / 255.0).astype(np.float32)
    train, test = split == "train", split != "train"  # the file calls the others "validation"
    # The cut-outs are stretched already.
    config = GuidedConfig(guided=(), num_free=args.num_real, guidance=0.0, stretch=1.0, reconstruction=100.0)
    vae, seconds = trained(args.folder, "real", Mocks(image[train], spiral[train], {}), config, args.steps)
    seen, again = vae.reconstruct(image)
    flat = seen.reshape(len(seen), -1)
    pca = PCA(config.latent, random_state=0).fit(flat[train])
    by_pca = pca.inverse_transform(pca.transform(flat[test])).reshape(again[test].shape)
    encoders = {
        "autoencoder": vae.encode,
        "principal components": lambda image: pca.transform(np.asarray(vae.stretched(image)).reshape(len(image), -1)),
    }
    rms = {"autoencoder": again[test], "principal components": by_pca}
    majority = float(max(np.mean(spiral[test]), 1.0 - np.mean(spiral[test])))
    mean = float(np.sqrt(np.mean((seen[test] - seen[train].mean(axis=0)) ** 2)))
    rows: list[list[Any]] = [["always the same", mean, majority, 0.5, majority, 0.5]]
    for name, encode in encoders.items():
        # A spiral is one from all sides: mean and scatter of the latents of all eight flips and transpositions.
        turns = [np.asarray(turned(jnp.asarray(i), jnp.asarray(image), jnp.zeros(len(image)))[0]) for i in range(8)]
        sides = np.stack([encode(turn) for turn in turns])
        error = float(np.sqrt(np.mean((rms[name] - seen[test]) ** 2)))
        row: list[Any] = [name, error]
        for each in (sides[0], np.concatenate([sides.mean(axis=0), sides.std(axis=0)], axis=1)):
            model = make_pipeline(StandardScaler(), SVC(C=1.0)).fit(each[train], spiral[train])
            area = float(roc_auc_score(spiral[test], model.decision_function(each[test])))
            row += [float(model.score(each[test], spiral[test])), area]
        rows.append(row)
    pick = np.flatnonzero(test)[np.linspace(0, test.sum() - 1, 9).astype(int)]
    titles = ["spiral" if spiral[i] else "no spiral" for i in pick]
    plot_reconstructions(seen[pick], again[pick], titles).savefig(figures / "reconstructions_real.png", dpi=110)
    extra = {"train": int(train.sum()), "test": int(test.sum()), "spirals": float(np.mean(spiral[test]))}
    extra |= {"steps": args.steps, "training [s]": seconds, "latents": config.latent}
    columns = ["latents", "pixel RMS", "spiral or not: accuracy", "AUC", "from eight sides: accuracy", "its AUC"]
    finish("Real SDSS cut-outs", columns, rows, args.out / "image_vae_real.json", extra)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/images"), help="of mocks and networks")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["mocks"])
    parser.add_argument("--num", type=int, default=36_000, help="mock galaxies to learn from")
    parser.add_argument("--steps", type=int, default=STAGE.num_steps, help="of each training")
    parser.add_argument("--num-free", type=int, default=5, help="latents that are not guided")
    parser.add_argument("--num-real", type=int, default=16, help="latents of the real images")
    kinds = ("guided", "plain", "guided to the bulge too", "guided to the angle")
    parser.add_argument("--autoencoders", nargs="+", choices=kinds, default=list(kinds[:3]))
    parser.add_argument("--label", default="", help="of the results' files")
    parser.add_argument("--images", type=Path, help="real cut-outs, .npz")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    if "real" in args.parts and args.images is None:
        parser.error("--parts real needs --images")
    figures = args.out / f"image_vae{args.label}"
    figures.mkdir(parents=True, exist_ok=True)
    if "mocks" in args.parts:
        on_mocks(args, figures)
    if "limit" in args.parts:
        on_truth(args)
    if "real" in args.parts:
        on_real(args, figures)


if __name__ == "__main__":
    main()
