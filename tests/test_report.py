from __future__ import annotations

import base64
import dataclasses
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from astropy.table import Table
from matplotlib._pylab_helpers import Gcf

from popsed_jax.plots import (
    at_ssfr_floor,
    load_run_tables,
    plot_colors,
    plot_history,
    plot_main_sequence,
    plot_photometry,
    plot_redshift,
)
from popsed_jax.plots_base import axis_label, contours_of, density, member_density, span, weighted_quantile
from popsed_jax.report import ReportError, build_report
from popsed_jax.tables import read_table, write_table

BANDS = ("u", "g", "r", "i", "z")
DEPTH = {"u": 2.0, "g": 0.75, "r": 0.0, "i": -0.38, "z": -0.66}  # typical magnitude less r
FIGURES = ("redshift", "photometry", "colors", "corner", "main_sequence", "information", "history")
NUM_MEMBERS = 3
LABELS = {
    "redshift": ("", r"$z$", "redshift"),
    "log_mass": ("dex(Msun)", r"$\log M_{\rm formed}$", "log10 stellar mass formed"),
    "kappa1": ("", r"$\kappa_1$", "first stick-breaking variable of the history"),
    "f_burst": ("", r"$f_{\rm burst}$", "mass fraction of the burst"),
    "logzsol": ("dex", r"$\log Z/Z_\odot$", "log10 stellar metallicity over 0.02"),
    "tau_v": ("", r"$\tau_V$", "diffuse dust: optical depth at 5500 Angstrom"),
    "dust_index": ("", r"$\delta_{\rm dust}$", "slope of the diffuse dust relative to Calzetti"),
    "log_mass_surviving": ("dex(Msun)", r"$\log M_\star$", "log10 stellar mass surviving, with remnants"),
    "log_sfr": ("dex(Msun / yr)", r"$\log\,{\rm SFR}$", "log10 star-formation rate, mean of the last 0.1 Gyr"),
    "log_ssfr": ("dex(1 / yr)", r"$\log\,{\rm sSFR}$", "log10 star-formation rate per mass surviving"),
    "age_mw": ("Gyr", r"$t_{\rm age}$", "mass-weighted mean stellar age"),
}


def population(rng: np.random.Generator, num: int, shift: float) -> dict[str, np.ndarray]:
    """Something like the SDSS main sample: quiescent and star-forming galaxies, some at the floor of sSFR."""
    z = np.clip(rng.gamma(4.0, 0.027 * (1.0 + shift), num), 0.011, 0.5)
    mass = np.clip(10.0 + 0.9 * np.log10(z / 0.05) + 0.35 * rng.normal(size=num) + shift, 7.8, 11.9)
    quiescent = rng.uniform(size=num) < 1.0 - np.exp(-(10.0 ** (0.8 * (mass - 10.56))))
    sequence = 0.76 * mass - 7.64 - mass + 0.3 * rng.normal(size=num)
    ssfr = np.maximum(np.where(quiescent, -12.3 + 0.6 * rng.normal(size=num), sequence), -13.0)
    dust = 0.4 * 10.0 ** (0.25 * rng.normal(size=num))
    return {
        "redshift": z,
        "log_mass": mass + 0.22,
        "kappa1": rng.beta(3, 1, num),
        "f_burst": np.minimum(rng.exponential(0.05, num), 0.9),
        "logzsol": 0.4 - np.abs(0.45 - 0.2 * (mass - 10.5) + 0.25 * rng.normal(size=num)),
        "tau_v": np.where(quiescent, rng.exponential(0.12, num), dust),
        "dust_index": -0.3 + 0.25 * rng.normal(size=num),
        "log_mass_surviving": mass,
        "log_sfr": ssfr + mass,
        "log_ssfr": ssfr,
        "age_mw": np.clip(np.where(quiescent, 9.0, 5.5) + 1.2 * rng.normal(size=num), 0.5, 13.0),
    }


def draws(rng: np.random.Generator, num: int, shift: float, weights: tuple[float, ...], spread: float = 0.03) -> Table:
    """Draws of an ensemble whose members differ."""
    parts = []
    for m, weight in enumerate(weights):
        part = Table(population(rng, int(weight * num), shift + spread * (m - 1)))
        part["member"] = np.full(len(part), m)
        parts.append(part)
    table = Table({name: np.concatenate([part[name] for part in parts]) for name in parts[0].colnames})
    for name, (unit, _, description) in LABELS.items():
        table[name].unit, table[name].description = unit or None, description
    return table


def observed(
    rng: np.random.Generator, theta: dict[str, np.ndarray] | Table, offset: float = 0.0
) -> dict[str, np.ndarray]:
    """Magnitudes that depend on the parameters roughly as real ones do."""
    z, ssfr, mass = (np.asarray(theta[name], float) for name in ("redshift", "log_ssfr", "log_mass_surviving"))
    red = np.clip(-10.0 - ssfr, -0.5, 1.8)
    r = 17.77 - rng.exponential(0.7, len(z)) - 0.2 * (mass - 10.3)
    mags = {}
    for band in BANDS:
        slope = 0.35 * DEPTH[band] * (red - 1.0) + 1.3 * DEPTH[band] * (z - 0.1) + offset * DEPTH[band]
        mags[band] = r + DEPTH[band] + slope + 0.03 * (1 + 2 * (band == "u")) * rng.normal(size=len(z))
    return mags


def photometry(rng: np.random.Generator, sets: dict[str, Table], num_data: int) -> Table:
    parts = []
    for name, theta in sets.items():
        part = Table({f"mag_{band}": mag for band, mag in observed(rng, theta, 0.03 * (name == "reference")).items()})
        part["set"] = np.full(len(part), name)
        part["redshift"] = np.asarray(theta["redshift"])
        part["member"] = np.asarray(theta["member"]) if name != "data" else np.full(len(part), -1)
        parts.append(part)
    table = Table({name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0].colnames})
    table["redshift"][: num_data // 10] = np.nan
    table["mag_u"][5] = np.nan
    return table


def history(rng: np.random.Generator, num_epochs: int = 40) -> Table:
    epoch, member = (a.ravel() for a in np.meshgrid(np.arange(num_epochs), np.arange(NUM_MEMBERS + 1), indexing="ij"))
    fraction = epoch / num_epochs
    wobble = np.exp(0.08 * rng.normal(size=len(epoch)))
    ratio = (1.1 + 9.0 * np.exp(-8.0 * fraction)) * wobble
    progress = np.clip((fraction - 0.6) / 0.3, 0.0, 1.0)
    columns = {
        "epoch": epoch,
        "member": member,
        "loss": 1.3 * ratio**2,
        "transport": ratio**2,
        "kl": 1.4 * (1.0 - np.exp(-5.0 * fraction)) * wobble * np.where(member == NUM_MEMBERS, 8.0, 1.0),
        "penalty": 0.3 * wobble,
        "ratio": ratio,
        "objective": np.maximum(ratio, 1.2),
        "log_lambda": np.log(1.0 + 3.0 * fraction) - 4.0 * np.maximum(fraction - 0.5, 0.0) + 0.1 * member,
        "blur": 0.5 * 0.4**progress,
        "noise_divisor": 1.0 + 20.0 * np.exp(-10.0 * fraction),
        "learning_rate": 1e-3 * np.sin(np.pi * (fraction + 0.01)),
        "sliced": np.ones(len(epoch)),
        "sinkhorn": np.where(fraction >= 0.6, 1.0, 0.0),
    }
    return Table(columns)


def metrics(samples: Table, reference: Table) -> dict:
    def member(number: int, weight: float, ratio: float, control: bool = False) -> dict:
        offsets = {band: 0.01 * (i - 2) + 0.002 * number for i, band in enumerate(BANDS)}
        shifts = {"redshift": 0.0, "logzsol": 0.31 - 0.2 * number, "tau_v": -0.12}
        entry = {"member": number, "control": control, "weight": weight, "ratio": ratio, "kl": 1.31 + 0.1 * number}
        return {**entry, "offsets": offsets, "shifts": shifts}

    parameters = {}
    for i, (name, (unit, label, description)) in enumerate(LABELS.items()):
        learned, before = (np.asarray(table[name], float) for table in (samples, reference))
        parameters[name] = {
            "unit": unit,
            "label": label,
            "description": description,
            "mean": learned.mean(),
            "std": learned.std(),
            "reference_mean": before.mean(),
            "reference_std": before.std(),
            "information_gain": 0.42 / (1 + i) ** 1.5,
        }
    pairs = list(pairwise(BANDS))
    drops = [
        {"reason": "r: flux error is not positive", "count": 12},
        {"reason": "u: flux is <not> a number", "count": 3},
    ]
    return {
        "converged": True,
        "reason": "The photometry is matched: the model is 1.11 times as far from the data as its halves are.",
        "wall_seconds": 1834.2,
        "device": "cpu",
        "peak_memory_gb": 3.42,
        "validation": {
            "model_to_data": 0.0713,
            "noise_floor": 0.0641,
            "noise_floor_std": 0.0022,
            "ratio": 1.113,
            "reference_ratio": 6.87,
            "flat_ratio": 1.094,
            "blur": 0.2,
            "num_galaxies": 2000,
        },
        "bands": {band: {"wasserstein": 0.018 + 0.003 * i, "noise_floor": 0.0155} for i, band in enumerate(BANDS)},
        "colors": {f"{a}-{b}": {"wasserstein": 0.0124, "noise_floor": 0.0071} for a, b in pairs},
        "redshift": {
            "wasserstein": 0.0057,
            "wasserstein_error": 0.0012,
            "mean_offset": -0.0031,
            "mean_offset_error": 0.0018,
            "reference_wasserstein": 0.0124,
            "flat_wasserstein": 0.0536,
        },
        "members": [
            member(0, 0.3, 1.12),
            member(1, 0.5, 1.09),
            member(2, 0.2, 1.19),
            member(3, 0.0, 1.094, control=True),
        ],
        "parameters": parameters,
        "catalog": {
            "name": "sdss_galaxies",
            "bands": list(BANDS),
            "num_rows_read": 3015,
            "num_galaxies": 3000,
            "drops": drops,
        },
        "versions": {"popsed_jax": "0.1.0", "jax": "0.10.2"},
        "created": "2026-11-21T08:00:00+00:00",
    }


def write_run(run: Path, num: int = 6000) -> Path:
    """A run directory as a finished fit leaves it."""
    rng = np.random.default_rng(4)
    num_data = num // 2
    weights = (0.3, 0.5, 0.2)
    samples, reference = draws(rng, num, 0.0, weights), draws(rng, num, 0.12, weights, 0.06)
    flat = draws(rng, num, 0.55, (1.0,))
    flat["member"] = NUM_MEMBERS
    truth = draws(rng, num_data, 0.005, (1.0,))
    half = slice(None, None, 2)
    sets = {"data": truth, "model": samples[half], "reference": reference[half], "flat": flat[half]}
    (run / "population").mkdir(parents=True)
    for name, table in (("samples", samples), ("reference", reference), ("flat", flat), ("history", history(rng))):
        write_table(table, run / f"{name}.parquet")
    write_table(photometry(rng, sets, num_data), run / "photometry.parquet")
    cosmology = {"hubble": 70.0, "omega_matter": 0.3}
    content = {"parameters": list(LABELS), "cosmology": cosmology, "selection": "as-detected", "ssp": "stellar <BC03>"}
    (run / "population" / "population.json").write_text(json.dumps(content))
    (run / "metrics.json").write_text(json.dumps(metrics(samples, reference)))
    (run / "config.toml").write_text('[fit]\nnum_members = 3 # <script>alert("no")</script>\n')
    (run / "log.txt").write_text("epoch 1\nepoch 2\n")
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "sdss")


@pytest.fixture(scope="module")
def page(finished):
    return build_report(finished)


@pytest.fixture(scope="module")
def tables(finished):
    return load_run_tables(finished)


@pytest.fixture
def copied(finished, tmp_path):
    """A run that a test may damage."""
    return shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("figures", "report.html"))


def edit_metrics(run: Path, change) -> None:
    path = run / "metrics.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_table(path: Path, change) -> None:
    table = read_table(path)
    change(table)
    write_table(table, path)


def test_the_report_is_one_self_contained_page(finished, page):
    assert page == finished / "report.html"
    html = page.read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|(src|href)\s*=(?!\"data:)|url\(|@import", html)
    embedded = [base64.b64decode(text) for text in re.findall(r'src="data:image/png;base64,([^"]+)"', html)]
    written = {path.stem: path.read_bytes() for path in (finished / "figures").iterdir()}
    assert set(written) == set(FIGURES)
    assert sorted(embedded) == sorted(written.values())
    assert all(content.startswith(b"\x89PNG") for content in embedded)
    assert not list(finished.glob("*.part"))


def test_the_report_holds_the_headline_and_the_tables(page):
    html = page.read_text(encoding="utf-8")
    assert "Converged." in html
    for text in (
        "The photometry is matched: the model is 1.11 times",
        "<b>1.11</b>",
        "0.0713 against 0.0641 ± 0.0022",
        "0.0057 ± 0.0012",
        "−0.0031 ± 0.0018",
        "reference 0.0124, flat control 0.0536",
        "0.030 mag",
        "<td>0.0210</td>",  # distance of g
        "u − g",
        "log_mass_surviving",
        "3 (flat-reference control)",
        "−0.120",  # a shift of the reference
        "3,015 rows read, 3,000 galaxies used",
        "r: flux error is not positive",
        "popsed_jax&nbsp;0.1.0",
        "30.6 min on cpu",
        "epoch 2",
    ):
        assert text in html
    # What comes from files is text, not markup.
    assert "u: flux is &lt;not&gt; a number" in html
    assert "&lt;script&gt;" in html
    assert "Figure left out" not in html


def test_the_report_is_rebuilt_from_the_files_alone_and_changes_nothing_global(page, copied):
    before = dict(matplotlib.rcParams)
    assert build_report(copied).read_bytes() == page.read_bytes()
    assert dict(matplotlib.rcParams) == before
    assert not Gcf.figs


def test_optional_pieces_are_left_out_and_said_to_be(copied):
    (copied / "figures").mkdir()
    (copied / "figures" / "history.png").write_bytes(b"of an earlier report")
    for name in ("flat.parquet", "log.txt"):
        (copied / name).unlink()

    def change(metrics):
        metrics["redshift"] = None
        metrics["validation"]["flat_ratio"] = None
        metrics["members"].pop()
        metrics["converged"] = False
        metrics["reason"] = "Stopped after epoch 3."
        metrics["catalog"]["drops"] = []
        for name in ("peak_memory_gb", "wall_seconds", "versions", "created"):
            del metrics[name]
        del metrics["parameters"]["log_sfr"]

    edit_metrics(copied, change)
    for name in ("samples", "reference"):
        edit_table(copied / f"{name}.parquet", lambda table: table.remove_column("log_sfr"))
    edit_table(copied / "history.parquet", lambda table: table.remove_rows(slice(None)))

    def without_redshifts(table):
        table["redshift"][table["set"] == "data"] = np.nan
        table.remove_rows(table["set"] == "flat")

    edit_table(copied / "photometry.parquet", without_redshifts)
    html = build_report(copied).read_text(encoding="utf-8")
    assert "Not converged." in html
    assert "Stopped after epoch 3." in html
    assert "n(z) is inferred, and not checked" in html
    assert "no control fit with a flat reference was run" in html
    assert "Nothing was left out." in html
    assert "Figure left out: the run has no star-formation rates and surviving masses." in html
    assert "Figure left out: the fit stopped within its first epoch." in html
    assert {path.stem for path in (copied / "figures").iterdir()} == set(FIGURES) - {"main_sequence", "history"}


def test_one_band_one_member_and_a_constant_parameter(copied):
    def change(metrics):
        metrics["catalog"]["bands"] = ["r"]
        metrics["catalog"]["num_not_drawn"] = 1_234_567
        metrics["bands"] = {"r": metrics["bands"]["r"]}
        metrics["colors"] = {}
        metrics["parameters"]["tau_v"].update(std=0.0, reference_std=0.0, information_gain=float("nan"))
        for entry in metrics["members"]:
            entry["offsets"] = {"r": 0.0}

    edit_metrics(copied, change)

    def flatten(table):
        table["tau_v"] = 0.3
        table["member"] = 0

    for name in ("samples", "reference"):
        edit_table(copied / f"{name}.parquet", flatten)
    html = build_report(copied).read_text(encoding="utf-8")
    assert "drawn at random (max_galaxies) and 1,234,567 usable ones were not." in html
    assert "Figure left out: a single band has no colours." in html
    assert "–" in html  # the gain that is not a number


@pytest.mark.parametrize(
    "name",
    ["config.toml", "metrics.json", "population/population.json"]
    + [f"{name}.parquet" for name in ("samples", "reference", "photometry", "history")],
)
def test_a_missing_file_is_named(copied, name):
    (copied / name).unlink()
    with pytest.raises(ReportError, match=rf"lacks {re.escape(name)}; .*run directory of a finished fit"):
        build_report(copied)


def test_no_run_directory(tmp_path):
    with pytest.raises(ReportError, match="is not a run directory"):
        build_report(tmp_path / "nowhere")
    with pytest.raises(ReportError, match=r"lacks samples\.parquet, reference\.parquet, .*metrics\.json"):
        build_report(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "metrics.json").write_text("{"), r"metrics\.json is not a JSON file"),
        (lambda run: (run / "metrics.json").write_text("[]"), r"metrics\.json must hold a JSON object"),
        (lambda run: (run / "config.toml").write_bytes(b"\xff"), r"cannot read .*config\.toml"),
        (lambda run: (run / "samples.parquet").write_bytes(b"PAR1"), r"cannot read .*samples\.parquet"),
        (lambda run: edit_metrics(run, lambda m: m.pop("bands")), r"metrics\.json lacks bands"),
        (lambda run: edit_metrics(run, lambda m: m["bands"].pop("g")), r"lacks bands\.g\.wasserstein, bands\.g\.noise"),
        (lambda run: edit_metrics(run, lambda m: m["validation"].pop("ratio")), r"lacks validation\.ratio"),
        (lambda run: edit_metrics(run, lambda m: m["members"][1].pop("kl")), r"lacks members\[1\]\.kl"),
        (lambda run: edit_metrics(run, lambda m: m["redshift"].pop("mean_offset")), r"lacks redshift\.mean_offset"),
        (
            lambda run: edit_table(run / "photometry.parquet", lambda t: t.remove_column("mag_i")),
            r"photometry\.parquet has no column mag_i",
        ),
        (
            lambda run: edit_table(run / "photometry.parquet", lambda t: t.remove_rows(t["set"] == "model")),
            r"photometry\.parquet has no rows of the set 'model'",
        ),
        (
            lambda run: edit_table(run / "samples.parquet", lambda t: t.remove_rows(slice(None))),
            r"samples\.parquet has no rows",
        ),
    ],
)
def test_damaged_files_are_named(copied, damage, message):
    damage(copied)
    with pytest.raises(ReportError, match=message):
        load_run_tables(copied)


def test_photometry_has_a_panel_with_its_distance_for_each_band_and_color(tables):
    axes = plot_photometry(tables).axes
    assert [ax.get_xlabel() for ax in axes] == [f"{b} [mag]" for b in BANDS] + [
        f"{a} − {b} [mag]" for a, b in pairwise(BANDS)
    ]
    assert [ax.texts[0].get_text() for ax in axes[:2]] == ["$W_1$ = 0.018 (0.015)", "$W_1$ = 0.021 (0.015)"]


@pytest.mark.parametrize(
    ("used", "label"), [(0, "learned, from photometry alone"), (1234, "learned, with 1,234 of them")]
)
def test_the_redshift_figure_says_whether_the_fit_saw_redshifts(copied, used, label):
    edit_metrics(copied, lambda metrics: metrics["catalog"].update(num_redshifts_used=used))
    legend = plot_redshift(load_run_tables(copied)).axes[0].get_legend()
    assert label in [text.get_text() for text in legend.get_texts()]


def test_history_keeps_controls_out_of_what_does_not_concern_them(tables):
    transport, kl, ratio, weight = plot_history(tables).axes[:4]
    assert len(transport.lines) == NUM_MEMBERS + 2  # the control, and where Sinkhorn joins
    assert len(kl.lines) == len(weight.lines) == NUM_MEMBERS
    assert len(ratio.lines) == NUM_MEMBERS + 2  # the control, and the noise floor
    assert ratio.get_yscale() == "log"


def test_costs_below_zero_are_drawn(tables):
    table = tables.history.copy()
    table["transport"][-1] = -0.02
    transport = plot_history(dataclasses.replace(tables, history=table)).axes[0]
    assert transport.get_yscale() == "symlog"
    assert transport.get_ylim()[0] < -0.02


def test_color_planes_are_limited(tables):
    assert len(plot_colors(tables).axes) == 4  # three colour-colour planes and a colour-magnitude plane
    assert len(plot_colors(tables, max_planes=1).axes) == 2


def test_galaxies_at_the_floor_are_counted_not_drawn(tables):
    share = 100.0 * np.mean(at_ssfr_floor(tables.samples))
    assert 1.0 < share < 20.0
    labels = plot_main_sequence(tables).axes[0].get_legend_handles_labels()[1]
    assert any(f"{share:.1f} %, not drawn" in label for label in labels)
    assert any(label.startswith("Speagle+14, z = 0.1") for label in labels)


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ("", "x"),
        ("dex(Msun)", r"x [$\mathrm{M_{\odot}}$]"),
        ("dex(Msun / yr)", r"x [$\mathrm{M_{\odot}\,yr^{-1}}$]"),
        ("dex", r"x [$\mathrm{dex}$]"),
        ("Gyr", r"x [$\mathrm{Gyr}$]"),
        ("furlong per week", "x [furlong per week]"),
    ],
)
def test_axis_labels(unit, text):
    assert axis_label("x", unit) == text


def test_densities_are_normalised_over_all_values_and_weighted_by_share():
    edges = np.linspace(0.0, 1.0, 11)
    values = np.concatenate([np.full(100, 0.05), np.full(300, 0.95), np.full(100, 7.0), [np.nan]])
    assert np.sum(density(values, edges)) * 0.1 == pytest.approx(0.8)
    member = np.concatenate([np.zeros(100, int), np.ones(300, int), np.full(101, 2)])
    curve = member_density(values, member, edges)
    assert curve.each.shape == (3, 10)
    np.testing.assert_allclose(curve.mean, density(values, edges))
    assert np.all(curve.low <= curve.high)
    assert curve.low[5] == curve.high[5] == 0.0


def test_weighted_quantile_of_equal_and_unequal_weights():
    values = np.array([[4.0], [1.0], [3.0], [2.0]])
    np.testing.assert_allclose(weighted_quantile(values, np.ones(4), 0.5), [2.5])
    # Nearly all the weight on the value 3.
    np.testing.assert_allclose(weighted_quantile(values, np.array([1e-6, 1e-6, 1.0, 1e-6]), 0.5), [3.0], atol=1e-4)


def test_spans_ignore_outliers_and_nothing():
    start, stop = span([np.append(np.linspace(0.0, 1.0, 1000), [1e6, np.nan])])
    assert -0.1 < start < 0.0 < 1.0 < stop < 1.1
    assert span([np.full(3, np.nan)]) == (0.0, 1.0)
    start, stop = span([np.full(9, 2.0)])
    assert start < 2.0 < stop


def test_contours_enclose_their_fractions():
    x, y = np.random.default_rng(1).normal(size=(2, 40_000))
    found = contours_of(x, y, [(-4.0, 4.0), (-4.0, 4.0)])
    # A level of a round Gaussian that encloses a fraction f lies at the radius sqrt(-2 ln(1 - f)).
    for level, fraction in zip(found.levels, (0.95, 0.68), strict=True):
        area = np.sum(found.height >= level) * (found.x[1] - found.x[0]) * (found.y[1] - found.y[0])
        assert area == pytest.approx(-2.0 * np.pi * np.log(1.0 - fraction), rel=0.08)
    assert contours_of(x[:5], y[:5], [(-4.0, 4.0), (-4.0, 4.0)]) is None
