"""The line on a terminal that says what the work is doing; it is gone when the work is done."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from graphprune.progress import listening

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["status"]

_WORDS = {
    "load": "reading the network",
    "observe": "running it once",
    "couple": "finding groups",
    "score": "scoring units",
    "allocate": "choosing what stays",
    "shrink": "cutting",
    "verify": "proving the cut",
    "measure": "measuring",
}


@contextlib.contextmanager
def status(wanted: Callable[[], bool]) -> Iterator[None]:
    """Show steps on stderr while the block runs, where that is a terminal and ``wanted`` says so at the time."""
    if not sys.stderr.isatty():
        yield
        return
    shown = _Status(wanted)
    try:
        with listening(shown):
            yield
    finally:
        shown.close()


class _Status:
    """A listener that draws a bar for the innermost step; between steps nothing is on the screen."""

    def __init__(self, wanted: Callable[[], bool]) -> None:
        self._wanted = wanted
        self._bar: Progress | None = None
        self._tasks: list[TaskID] = []

    def begin(self, step: str) -> None:
        if not self._tasks and not self._wanted():
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            console = Console(file=sys.stderr)
            self._bar = Progress(*columns, console=console, transient=True, redirect_stdout=False)
            self._bar.start()
        for task in self._tasks:
            self._bar.update(task, visible=False)
        self._tasks.append(self._bar.add_task(_WORDS.get(step, step), total=None))

    def advance(self, done: float) -> None:
        if self._bar is not None and self._tasks:
            self._bar.update(self._tasks[-1], total=1.0, completed=done)

    def end(self) -> None:
        if self._bar is None or not self._tasks:
            return
        self._bar.remove_task(self._tasks.pop())
        if self._tasks:
            self._bar.update(self._tasks[-1], visible=True)
        else:
            self.close()

    def close(self) -> None:
        """Take it off the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar, self._tasks = None, []
