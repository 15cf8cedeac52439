"""Checkpoints of a training run: written after every epoch, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popsed_jax.population.objective import Member
from popsed_jax.population.storage import StorageError, load_metadata, load_tree, save_tree
from popsed_jax.population.train import EpochInfo, TrainState

Content = TypeVar("Content")


class CheckpointError(ValueError):
    """A run that cannot be resumed."""


class Checkpoint:
    """The checkpoint folder of a run.

    Args:
        folder: holds `members.safetensors` (written once) and `state.safetensors` (replaced after every epoch).
        settings: of the run, and what its data are known by; resuming under others is refused.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self._settings = settings_text(settings)

    def start(self, members: Member, reference: Float[Array, "member draw dim"]) -> None:
        """Keep what does not change."""
        (self.folder / "state.safetensors").unlink(missing_ok=True)
        save_tree(self.folder / "members.safetensors", (members, reference), {"settings": self._settings})

    def save(self, state: TrainState, history: list[EpochInfo]) -> None:
        """Keep the state after an epoch."""
        stacked = jax.tree.map(lambda *column: np.stack(column), *history)
        devices = str(jax.device_count())
        metadata = {"settings": self._settings, "epochs": str(len(history)), "devices": devices}
        save_tree(self.folder / "state.safetensors", (state, stacked), metadata)

    def check(self) -> None:
        """Refuse at once what `load` could not use.

        Raises:
            CheckpointError: nothing to resume, a damaged file, or other settings; says what to do.
        """
        checked_metadata(self.folder / "members.safetensors", self._settings)
        if (self.folder / "state.safetensors").is_file():
            checked_metadata(self.folder / "state.safetensors", self._settings)

    def other_devices(self) -> str | None:
        """What to know where the run was begun on another number of devices; None: it was not."""
        path = self.folder / "state.safetensors"
        begun = checked_metadata(path, self._settings).get("devices") if path.is_file() else None
        here = str(jax.device_count())
        if begun in (None, here):
            return None
        return f"The epochs so far ran on {begun} device(s), the rest on {here}: the same fit, up to the order of sums"

    def load(
        self, like: tuple[Member, Array], begin: Callable[[Member], TrainState]
    ) -> tuple[Member, Array, TrainState, list[EpochInfo]]:
        """Members, reference draws, state and history; the members' beginning when killed in the first epoch.

        Args:
            like: arrays of the shapes of the members and the reference draws.
            begin: from members to their initial state.

        Raises:
            CheckpointError: as `check`.
        """
        self.check()
        members, reference = read_or_explain(load_tree, self.folder / "members.safetensors", like)
        state = begin(members)
        path = self.folder / "state.safetensors"
        if not path.is_file():
            return members, reference, state, []
        num = int(checked_metadata(path, self._settings)["epochs"])
        empty = jnp.zeros((num, members.controlled.shape[0]))
        state, stacked = read_or_explain(load_tree, path, (state, EpochInfo(*[empty] * len(EpochInfo._fields))))
        history = [jax.tree.map(lambda column, i=i: np.asarray(column[i]), stacked) for i in range(num)]
        return members, reference, state, history


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings as a checkpoint keeps them."""
    return json.dumps(settings, sort_keys=True)


def checked_metadata(path: Path, settings: str) -> dict[str, str]:
    """What a checkpoint's file says of itself.

    Raises:
        CheckpointError: nothing to resume, a damaged file, or one of other settings; says what to do.
    """
    if not path.is_file():
        raise CheckpointError(f"nothing to resume: {path} does not exist. Start without --resume.")
    metadata = read_or_explain(load_metadata, path)
    if metadata.get("settings") != settings:
        raise CheckpointError(
            f"the checkpoint in {path.parent} belongs to other settings, bands or data"
            f"{named_differences(metadata.get('settings', ''), settings)}. Resume with the config.toml of that run, or start "
            "anew without --resume"
        )
    return metadata


def named_differences(there: str, here: str) -> str:
    """The first few settings that differ, in words and brackets.

    Args:
        there, here: as `settings_text` gives them.
    """
    try:
        old, new = _flat(json.loads(there)), _flat(json.loads(here))
    except ValueError:
        return ""  # of a version that did not keep them
    odd = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    words = [f"{name} is {old.get(name, 'not set')} there and {new.get(name, 'not set')} here" for name in odd[:3]]
    more = f", and {len(odd) - 3} more" if len(odd) > 3 else ""
    return f" ({'; '.join(words)}{more})" if words else ""


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    if isinstance(settings, Mapping):
        parts = {f"{prefix}.{name}" if prefix else str(name): value for name, value in settings.items()}
    elif isinstance(settings, list) and any(isinstance(item, Mapping | list) for item in settings):
        parts = {f"{prefix}[{i}]": value for i, value in enumerate(settings)}
    else:
        return {prefix: settings}
    return {name: value for key, part in parts.items() for name, value in _flat(part, key).items()}


def read_or_explain(read: Callable[..., Content], *args: Any) -> Content:
    """What `read` finds in a file; damage becomes an error that says what to do."""
    try:
        return read(*args)
    except StorageError as error:
        raise CheckpointError(f"{error}. Start anew without --resume.") from None
