from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popsed_jax.config import RunConfig
from popsed_jax.settings import SettingsError, dump_toml, from_mapping, load_toml, nearest, to_mapping


@dataclass(frozen=True)
class Layer:
    width: int
    act: Literal["relu", "gelu"] = "relu"


@dataclass(frozen=True)
class Fit:
    epochs: int = 30
    rate: float = 3e-4
    shuffle: bool = True
    note: str = ""
    blur: tuple[float, ...] = (0.3, 0.1)
    span: tuple[int, float] = (0, 1.0)
    layers: tuple[Layer, ...] = ()
    limits: dict[str, float] = field(default_factory=dict)
    named: dict[str, Layer] = field(default_factory=dict)
    seed: int | None = None
    size: int | str = 3
    folder: Path = Path("out")
    inner: Layer = Layer(4)
    choice: Literal[1, "auto"] | None = None

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"epochs must not be negative, got {self.epochs}")


@dataclass(frozen=True)
class Run:
    fit: Fit = Fit()
    title: str = "run"


_text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
_number = st.floats(allow_nan=False)
_integer = st.integers(-(2**60), 2**60)
_layer = st.builds(Layer, width=_integer, act=st.sampled_from(["relu", "gelu"]))
_fit = st.builds(
    Fit,
    epochs=st.integers(0, 10**9),
    rate=_number,
    shuffle=st.booleans(),
    note=_text,
    blur=st.lists(_number, max_size=4).map(tuple),
    span=st.tuples(_integer, _number),
    layers=st.lists(_layer, max_size=3).map(tuple),
    limits=st.dictionaries(_text, _number, max_size=3),
    named=st.dictionaries(_text, _layer, max_size=3),
    seed=st.none() | _integer,
    size=_integer | _text,
    folder=st.sampled_from([Path("out"), Path("/a/b"), Path("x.toml")]),
    inner=_layer,
    choice=st.sampled_from([None, 1, "auto"]),
)


@settings(max_examples=60, deadline=None)
@given(run=st.builds(Run, fit=_fit, title=_text))
def test_round_trip_through_a_mapping_and_through_a_file(run, tmp_path_factory):
    assert from_mapping(Run, to_mapping(run)) == run
    path = tmp_path_factory.getbasetemp() / "run.toml"
    path.write_bytes(dump_toml(to_mapping(run)).encode())
    assert from_mapping(Run, load_toml(path)) == run


def test_defaults_and_coercions():
    assert from_mapping(Run, {}) == Run()
    fit = from_mapping(
        Fit, {"rate": 1, "blur": [1, 2.5], "layers": [{"width": 3}], "limits": {"u": 2}, "folder": "a/b"}
    )
    assert fit.rate == 1.0
    assert isinstance(fit.rate, float)
    assert fit.blur == (1.0, 2.5)
    assert fit.layers == (Layer(3),)
    assert isinstance(fit.limits["u"], float)
    assert fit.folder == Path("a/b")
    assert "seed" not in to_mapping(fit)
    assert from_mapping(Run, {"fit": fit}).fit is fit


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"fit": {"epoch": 3}}, "[fit] has no setting 'epoch'; did you mean 'epochs'?"),
        ({"fitt": {}}, "the settings have no setting 'fitt'; did you mean 'fit'?"),
        ({"qqqqqqqq": 1}, "the settings have no setting 'qqqqqqqq'; it knows: fit, title"),
        ({"fit": {"epochs": "ten"}}, "fit.epochs must be an integer, got 'ten'"),
        ({"fit": {"epochs": True}}, "fit.epochs must be an integer, got True"),
        ({"fit": {"epochs": 3.0}}, "fit.epochs must be an integer, got 3.0"),
        ({"fit": {"rate": "fast"}}, "fit.rate must be a number, got 'fast'"),
        ({"fit": {"rate": False}}, "fit.rate must be a number, got False"),
        ({"fit": {"shuffle": 1}}, "fit.shuffle must be true or false, got 1"),
        ({"fit": {"note": 1}}, "fit.note must be a string, got 1"),
        ({"fit": {"folder": 1}}, "fit.folder must be a path, got 1"),
        ({"fit": {"blur": 0.1}}, "fit.blur must be a list, got 0.1"),
        ({"fit": {"blur": [0.1, "x"]}}, "fit.blur[1] must be a number, got 'x'"),
        ({"fit": {"span": [1, 2.0, 3.0]}}, "fit.span must be a list of 2 values, got [1, 2.0, 3.0]"),
        ({"fit": {"layers": [{"width": 1}, {}]}}, "fit.layers[1].width is required"),
        (
            {"fit": {"layers": [{"wide": 1, "width": 1}]}},
            "[fit.layers[0]] has no setting 'wide'; did you mean 'width'?",
        ),
        ({"fit": {"layers": [3]}}, "fit.layers[0] must be a table of settings, got 3"),
        ({"fit": {"limits": [1]}}, "fit.limits must be a table of named values, got [1]"),
        ({"fit": {"limits": {"u": "a"}}}, "fit.limits.u must be a number, got 'a'"),
        ({"fit": {"seed": "a"}}, "fit.seed must be an integer, got 'a'"),
        ({"fit": {"size": 1.5}}, "fit.size must be an integer or a string, got 1.5"),
        (
            {"fit": {"inner": {"width": 1, "act": "gelo"}}},
            "fit.inner.act must be one of 'relu', 'gelu', got 'gelo'; did you mean 'gelu'?",
        ),
        ({"fit": {"choice": True}}, "fit.choice must be one of 1, 'auto', got True"),
        ({"fit": {"epochs": -1}}, "[fit] epochs must not be negative, got -1"),
    ],
)
def test_mistakes_are_named(mapping, message):
    with pytest.raises(SettingsError) as caught:
        from_mapping(Run, mapping)
    assert str(caught.value) == message


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(SettingsError) as caught:
        from_mapping(Run, {"fit": {"epoch": 1, "rate": "x", "layers": [{"width": "a"}]}, "title": 3})
    assert len(caught.value.problems) == 4
    assert str(caught.value).count("\n") == 3


def test_where_starts_the_names():
    with pytest.raises(SettingsError, match=r"^fit\.epochs must be"):
        from_mapping(Fit, {"epochs": "a"}, where="fit")


def test_files(tmp_path):
    with pytest.raises(SettingsError, match=r"settings file not found: .*none\.toml"):
        load_toml(tmp_path / "none.toml")
    with pytest.raises(SettingsError, match="cannot read the settings file"):
        load_toml(tmp_path)
    path = tmp_path / "bad.toml"
    path.write_text("[fit]\nepochs = = 3\n")
    with pytest.raises(SettingsError, match=r"is not a TOML file: .*line 2"):
        load_toml(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="cannot read the settings file"):
        load_toml(path)


def test_mistakes_in_a_settings_class_are_type_errors():
    @dataclass(frozen=True)
    class Odd:
        size: int | None = 3

    odd = dataclasses.make_dataclass("Raw", [("blob", bytes)], frozen=True)
    with pytest.raises(TypeError, match="default it to None"):
        to_mapping(Odd(size=None))
    with pytest.raises(TypeError, match="not supported"):
        from_mapping(odd, {"blob": "a"})
    with pytest.raises(TypeError, match="TOML cannot hold"):
        to_mapping(odd(b""))
    with pytest.raises(TypeError, match="an instance of a dataclass"):
        to_mapping({})


def test_nearest():
    assert nearest("Epoch", ["epochs", "rate"]) == "epochs"
    assert nearest("modelflux", ["MODELFLUX", "Z"]) == "MODELFLUX"
    assert nearest("xyz", ["epochs"]) is None


def test_the_readme_s_survey_settings_are_valid() -> None:
    """Its block on surveys, given a catalogue of eight bands, is understood to the last key."""
    text = (Path(__file__).parent.parent / "README.md").read_text()
    block = next(part.split("```")[0] for part in text.split("```toml\n")[1:] if "[[surveys]]" in part)
    mapping = tomllib.loads(block)
    bands = [{"filter": f"sdss_{b}0", "flux": b, "error": f"e_{b}"} for b in "ugriz"]
    bands += [{"filter": f"twomass_{b}", "flux": b, "error": f"e_{b}"} for b in ("J", "H", "Ks")]
    mapping["catalog"] |= {"path": "galaxies.fits", "flux_unit": "uJy", "bands": bands}
    config = from_mapping(RunConfig, mapping)
    assert len(config.all_surveys) == 2
    assert config.catalog.min_bands == 6
    assert len(config.selection.cuts) == 4
    assert config.spectroscopy.fraction == 0.05
    assert config.all_surveys[1].catalog.bands[0].filter == "hsc_g"
