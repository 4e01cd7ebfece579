"""SIGTERM and SIGHUP end a command in order: staging folders and child processes go first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from graphprune.errors import Terminated

__all__ = ["Terminated", "orderly_end"]

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """While the block runs, the two signals raise :class:`Terminated`, once; a signal that is ignored stays so."""
    changed = []
    if threading.current_thread() is threading.main_thread():
        changed = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, _frame: FrameType | None) -> None:
        for one in changed:  # not again while what was begun is taken back
            signal.signal(one, signal.SIG_IGN)
        raise Terminated(number)

    for number in changed:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)
