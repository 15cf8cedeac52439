"""What a long run shows on the terminal and writes into its log."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

# Rows of a catalogue from which its reading shows a bar: below, it takes seconds.
_MANY_ROWS = 5_000_000


class Progress:
    """Sentences and a bar over epochs, or over the chunks of another training, with what was reached and the time left.

    Args:
        show: print on the terminal (standard error, so that output can be piped).
        log: file that gets every sentence and epoch with the time since the start; appended to.
    """

    def __init__(self, show: bool = True, log: Path | None = None) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not show,
        )
        self._show = show
        self._task: TaskID | None = None
        self._started = time.perf_counter()
        self._log = None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            self._log = log.open("a")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._bar.stop()
        if self._log is not None:
            self._log.close()

    def say(self, sentence: str) -> None:
        """One line for the terminal and the log."""
        if self._show:
            self._bar.console.print(sentence, highlight=False, markup=False)
        self._write(sentence)

    def start(self, description: str, total: int, done: int = 0, state: str = "compiling") -> None:
        """Begin a bar."""
        self._bar.start()
        self._task = self._bar.add_task(description, total=total, completed=done, state=state)

    def advance(self, done: int, state: str, word: str = "chunk") -> None:
        """Advance the bar, and say what was reached."""
        if self._task is not None:
            self._bar.update(self._task, completed=done, state=state)
        self._write(f"{word} {done}: {state}")

    def rows(self, done: int, total: int) -> None:
        """Advance a bar over the rows of a catalogue, if they are many."""
        if self._task is None and total >= _MANY_ROWS:
            self.start("reading rows", total, state="")
        if self._task is not None:
            self._bar.update(self._task, completed=done)

    def start_epochs(self, total: int, done: int = 0) -> None:
        """Begin the bar."""
        self.start("training", total, done)

    def epoch(self, done: int, loss: float, ratio: float) -> None:
        """Advance the bar."""
        self.advance(done, f"loss {loss:.3f}  distance/floor {ratio:.2f}", "epoch")

    def _write(self, line: str) -> None:
        if self._log is None:
            return
        try:
            self._log.write(f"{time.perf_counter() - self._started:8.1f} s  {line}\n")
            self._log.flush()
        except OSError as error:
            # No reason to stop: what must not be lost is written elsewhere, and complains for itself.
            log, self._log = self._log, None
            with suppress(OSError):
                log.close()
            self.say(f"No more lines into {log.name}: {error.strerror or error}")
