"""Settings files: TOML to nested frozen dataclasses and back, with every mistake named by its place.

The machinery knows nothing of any particular setting. A settings class is a frozen dataclass; its fields may be
`bool`, `int`, `float`, `str`, `pathlib.Path`, `Literal`, `tuple[X, ...]`, `tuple[X, Y]`, `dict[str, X]`, another
dataclass, or a union of these. A field that may be `None` must default to `None`, because TOML has no null: absent
means `None`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import tomli_w

__all__ = ["SettingsError", "dump_toml", "from_mapping", "load_toml", "nearest", "to_mapping"]

T = TypeVar("T")

_MISSING = object()
_KIND_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string", Path: "a path"}


class SettingsError(ValueError):
    """Settings that cannot be used; `problems` holds one sentence for each mistake found."""

    def __init__(self, *problems: str) -> None:
        """Join the sentences, one a line."""
        super().__init__("\n".join(problems))
        self.problems: tuple[str, ...] = problems


def nearest(word: str, choices: Sequence[str]) -> str | None:
    """The choice most like the word, capitals ignored; `None` when nothing is like it."""
    by_lower = {choice.lower(): choice for choice in choices}
    match = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.5)
    return by_lower[match[0]] if match else None


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """Build a (nested) settings dataclass from a decoded TOML mapping.

    An integer serves where a number is asked for, a list where a tuple is, a string where a path is. Nothing else is
    converted.

    Args:
        cls: the dataclass to build.
        mapping: as `load_toml` gives it.
        where: place of the mapping in the file, such as `"fit"`; it starts the names in messages.

    Raises:
        SettingsError: unknown, missing or mistyped settings, or values that the class itself refuses; all at once.
        TypeError: the class has a field of a type that is not handled (a mistake in the class, not in the file).
    """
    problems: list[str] = []
    built = _build(cls, mapping, where, problems)
    if problems:
        raise SettingsError(*problems)
    return typing.cast(T, built)


def to_mapping(settings: Any) -> dict[str, Any]:
    """The resolved settings as plain TOML values: the inverse of `from_mapping`; `None` is left out.

    Raises:
        TypeError: not a dataclass instance, or a value that TOML cannot hold; a `None` whose default is something else,
            which would come back changed.
    """
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        raise TypeError(f"settings must be an instance of a dataclass, got {settings!r}")
    mapping: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if not field.init:
            continue
        if value is not None:
            mapping[field.name] = _plain(value, f"{type(settings).__name__}.{field.name}")
        elif field.default is not None:
            raise TypeError(
                f"{type(settings).__name__}.{field.name} is None, which TOML cannot say: default it to None"
            )
    return mapping


def load_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Decode a TOML file.

    Raises:
        SettingsError: the file is missing, unreadable or not TOML; the message gives the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(f"settings file not found: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the settings file {path}: {error}") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not a TOML file: {error}") from error


def dump_toml(mapping: Mapping[str, Any]) -> str:
    """TOML text of a mapping made by `to_mapping`."""
    return tomli_w.dumps(mapping)


def _build(cls: Any, mapping: Any, where: str, problems: list[str]) -> Any:
    """One dataclass; appends to problems and returns a placeholder when it cannot be built."""
    if isinstance(mapping, cls):
        return mapping
    if not isinstance(mapping, Mapping):
        problems.append(f"{where or 'the settings'} must be a table of settings, got {mapping!r}")
        return _MISSING
    before = len(problems)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    problems += [_unknown(str(key), list(fields), where) for key in mapping if key not in fields]
    values = {}
    for name, field in fields.items():
        place = f"{where}.{name}" if where else name
        if name in mapping:
            values[name] = _convert(mapping[name], hints[name], place, problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{place} is required")
    if len(problems) > before:
        return _MISSING
    try:
        return cls(**values)
    except ValueError as error:
        problems += [f"[{where}] {line}" if where else line for line in str(error).splitlines()]
        return _MISSING


def _unknown(key: str, names: Sequence[str], where: str) -> str:
    """The sentence for a key that no field has."""
    owner = f"[{where}] has" if where else "the settings have"
    near = nearest(key, names)
    hint = f"did you mean {near!r}?" if near else f"it knows: {', '.join(names) or 'none'}"
    return f"{owner} no setting {key!r}; {hint}"


def _convert(value: Any, kind: Any, place: str, problems: list[str]) -> Any:
    """A TOML value as the annotated type; appends to problems when it is not of that type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, place, problems)
    if origin is Literal:
        return _convert_literal(value, arguments, place, problems)
    if origin is tuple:
        return _convert_tuple(value, arguments, place, problems)
    if origin in (dict, Mapping):
        return _convert_dict(value, arguments, place, problems)
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, place, problems)
    if kind not in _KIND_NAMES:
        raise TypeError(f"{place}: settings of type {kind} are not supported")
    if _is_scalar(value, kind):
        return kind(value) if kind in (float, Path) else value
    problems.append(f"{place} must be {_KIND_NAMES[kind]}, got {value!r}")
    return _MISSING


def _is_scalar(value: Any, kind: type) -> bool:
    """Whether a TOML scalar may stand for the type; true and false are never numbers."""
    if isinstance(value, bool):
        return kind is bool
    accepted: dict[type, tuple[type, ...]] = {float: (int, float), Path: (str, Path)}
    return isinstance(value, accepted.get(kind, (kind,)))


def _convert_literal(value: Any, choices: tuple[Any, ...], place: str, problems: list[str]) -> Any:
    """One of a few fixed values; `1` is not `True`."""
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    near = nearest(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else None
    hint = f"; did you mean {near!r}?" if near else ""
    problems.append(f"{place} must be one of {', '.join(map(repr, choices))}, got {value!r}{hint}")
    return _MISSING


def _convert_tuple(value: Any, kinds: tuple[Any, ...], place: str, problems: list[str]) -> Any:
    """A tuple from a list; items are named by their position, counted from 0."""
    if not isinstance(value, list | tuple):
        problems.append(f"{place} must be a list, got {value!r}")
        return _MISSING
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    elif len(kinds) != len(value):
        problems.append(f"{place} must be a list of {len(kinds)} values, got {value!r}")
        return _MISSING
    pairs = enumerate(zip(value, kinds, strict=True))
    return tuple(_convert(item, kind, f"{place}[{i}]", problems) for i, (item, kind) in pairs)


def _convert_dict(value: Any, kinds: tuple[Any, ...], place: str, problems: list[str]) -> Any:
    """A table with free names."""
    if not isinstance(value, Mapping):
        problems.append(f"{place} must be a table of named values, got {value!r}")
        return _MISSING
    if len(kinds) != 2 or kinds[0] is not str:
        raise TypeError(f"{place}: settings of type dict must be dict[str, ...]")
    return {str(key): _convert(item, kinds[1], f"{place}.{key}", problems) for key, item in value.items()}


def _convert_union(value: Any, kinds: tuple[Any, ...], place: str, problems: list[str]) -> Any:
    """The first member that takes the value as it is, else the first that takes it after conversion."""
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    exact = [kind for kind in kinds if kind is type(value)]
    failures: list[list[str]] = []
    for kind in (*exact, *kinds):
        found: list[str] = []
        converted = _convert(value, kind, place, found)
        if not found:
            return converted
        failures.append(found)
    if all(kind in _KIND_NAMES for kind in kinds):
        problems.append(f"{place} must be {' or '.join(_KIND_NAMES[kind] for kind in kinds)}, got {value!r}")
    else:
        # The member that came closest is the one the user most likely meant.
        closest: list[str] = min(failures, key=len)
        problems += closest
    return _MISSING


def _plain(value: Any, place: str) -> Any:
    """A settings value as TOML types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_mapping(value)
    if isinstance(value, tuple | list):
        return [_plain(item, f"{place}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{place}: TOML cannot hold {value!r}")
