"""A uniform random sample of the distinct rows of a stream, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt64

__all__ = ["NUM_EXAMPLES", "DrawnRows", "UniformSample"]

NUM_EXAMPLES = 5
_LARGEST = np.uint64(2**64 - 1)
_COPY_COLUMNS = ("key", "position", "row")


@dataclass(frozen=True, eq=False)
class DrawnRows:
    """What a sample holds at the end.

    Attributes:
        columns: what was added, in the order of the file.
        num_copies: rows that repeat one of the sample.
        copies: the row numbers of the first few.
    """

    columns: dict[str, Shaped[np.ndarray, "galaxy ..."]]
    num_copies: int
    copies: tuple[int, ...]


class UniformSample:
    """The rows with the smallest keys (bottom-k; Cohen & Kaplan 2007), each once.

    Where keys are hashes of what rows hold, these are drawn uniformly from the distinct rows, and are the same in whatever
    pieces the rows come. All copies of a row that is kept in the end are seen; of copies of others nothing is known.

    Args:
        size: rows to keep; 0: all.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._limit = _LARGEST  # the largest key that can still be among the smallest
        self._parts: list[dict[str, np.ndarray]] = []
        self._waiting = 0
        self._copies: dict[str, np.ndarray] = {}

    def wanted(self, keys: UInt64[np.ndarray, " galaxy"]) -> Bool[np.ndarray, " galaxy"]:
        """Which rows of the next piece could be in the sample, or copies of such; the others need not be added."""
        small = keys <= self._limit
        if 0 < self._size < np.count_nonzero(small):
            distinct = np.unique(keys[small])
            if len(distinct) >= self._size:
                self._limit = distinct[self._size - 1]
                small = keys <= self._limit
        return small

    def add(self, **columns: Shaped[np.ndarray, "galaxy ..."]) -> None:
        """Rows in the order of the file: `key`, `position` and `row`, and whatever else is to be kept of them."""
        self._parts.append({**columns, "copies": np.zeros(len(columns["key"]), dtype=np.int64)})
        self._waiting += len(columns["key"])
        if self._size and self._waiting > self._size // 2:
            self._compact()

    def finish(self) -> DrawnRows:
        """The sample."""
        self._compact()
        columns = self._parts.pop()
        num_copies = int(columns.pop("copies").sum())
        first = np.argsort(self._copies["position"])[:NUM_EXAMPLES]
        return DrawnRows(columns, num_copies, tuple(int(row) for row in self._copies["row"][first]))

    def _compact(self) -> None:
        """Keep what can be in the sample of all that has come, in the order of the file."""
        keys = np.concatenate([part["key"] for part in self._parts])
        order = np.argsort(keys, kind="stable")  # the first of several copies stays the first
        is_first = np.ones(len(keys), dtype=bool)
        is_first[1:] = keys[order[1:]] != keys[order[:-1]]
        starts = np.flatnonzero(is_first)
        firsts, repeats = order[starts], order[~is_first]
        if 0 < self._size <= len(firsts):
            self._limit = keys[firsts[self._size - 1]]
        kept = np.sort(firsts[: self._size or None])
        whole = {}
        for name in tuple(self._parts[0]):  # one column at a time, for the memory's sake
            values = np.concatenate([part.pop(name) for part in self._parts])
            if name == "copies" and len(firsts):
                values[firsts] = np.add.reduceat(values[order] + 1, starts) - 1
            if name in _COPY_COLUMNS:
                self._copies[name] = np.concatenate([self._copies.get(name, values[:0]), values[repeats]])
            whole[name] = values[kept]
        self._parts, self._waiting = [whole], 0
        self._trim_copies()

    def _trim_copies(self) -> None:
        """Of copies, the first few of each row in the sample: which of them are the first few of all shows at the end."""
        order = np.lexsort((self._copies["position"], self._copies["key"]))
        keys = self._copies["key"][order]
        rank = np.arange(len(keys)) - np.searchsorted(keys, keys)
        index: Int[np.ndarray, " copy"] = order[(rank < NUM_EXAMPLES) & (keys <= self._limit)]
        self._copies = {name: values[index] for name, values in self._copies.items()}
