"""What the work is doing, for whoever wants to show it; nothing happens where nobody listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

__all__ = ["Listener", "advance", "listening", "step"]


class Listener(Protocol):
    """Told of every step of the work; steps may lie within others."""

    def begin(self, step: str) -> None:
        """A step begins: ``load``, ``observe``, ``measure`` ..."""
        ...

    def advance(self, done: float) -> None:
        """This share of the innermost step is done, 0 to 1."""
        ...

    def end(self) -> None:
        """The innermost step is over, whether it held or not."""
        ...


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_steps: ContextVar[tuple[str, ...]] = ContextVar("steps", default=())


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell ``listener`` what happens while the block runs."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def step(name: str) -> Iterator[None]:
    """A step of the work; one within itself is told once."""
    listener, within = _listener.get(), _steps.get()
    if listener is None or within[-1:] == (name,):
        yield
        return
    token = _steps.set((*within, name))
    listener.begin(name)
    try:
        yield
    finally:
        _steps.reset(token)
        listener.end()


def advance(done: float) -> None:
    """This share of the innermost step is done, 0 to 1."""
    listener = _listener.get()
    if listener is not None and _steps.get():
        listener.advance(min(max(done, 0.0), 1.0))
