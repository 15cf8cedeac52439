"""Checkpoints of a training run: written after every epoch, whole or not at all."""

from __future__ import annotations

import hashlib
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
        settings: of the run; resuming under others is refused.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self._digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def start(self, members: Member, reference: Float[Array, "member draw dim"]) -> None:
        """Keep what does not change."""
        (self.folder / "state.safetensors").unlink(missing_ok=True)
        save_tree(self.folder / "members.safetensors", (members, reference), {"settings": self._digest})

    def save(self, state: TrainState, history: list[EpochInfo]) -> None:
        """Keep the state after an epoch."""
        stacked = EpochInfo(*(jnp.stack(column) for column in zip(*history, strict=True)))
        metadata = {"settings": self._digest, "epochs": str(len(history))}
        save_tree(self.folder / "state.safetensors", (state, stacked), metadata)

    def check(self) -> None:
        """Refuse at once what `load` could not use.

        Raises:
            CheckpointError: nothing to resume, a damaged file, or other settings; says what to do.
        """
        paths = [self.folder / f"{name}.safetensors" for name in ("members", "state")]
        if not paths[0].is_file():
            raise CheckpointError(f"nothing to resume: {paths[0]} does not exist. Start the run without --resume.")
        for path in paths:
            if path.is_file() and _read(load_metadata, path).get("settings") != self._digest:
                raise CheckpointError(
                    f"the checkpoint in {self.folder} belongs to other settings: resume with the config.toml of that "
                    "run, or start anew without --resume"
                )

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
        members, reference = _read(load_tree, self.folder / "members.safetensors", like)
        state = begin(members)
        path = self.folder / "state.safetensors"
        if not path.is_file():
            return members, reference, state, []
        num = int(_read(load_metadata, path)["epochs"])
        empty = jnp.zeros((num, members.controlled.shape[0]))
        state, stacked = _read(load_tree, path, (state, EpochInfo(*[empty] * len(EpochInfo._fields))))
        history = [jax.tree.map(lambda column, i=i: np.asarray(column[i]), stacked) for i in range(num)]
        return members, reference, state, history


def _read(read: Callable[..., Content], *args: Any) -> Content:
    """What `read` finds in a file; damage becomes an error that says what to do."""
    try:
        return read(*args)
    except StorageError as error:
        raise CheckpointError(f"{error}. Start the run anew without --resume.") from None
