"""Runtimes that can load, run and time a network. ``base`` has the interface and the look-up, a module per runtime."""

from __future__ import annotations

from graphprune.backends.base import (
    Availability,
    Backend,
    BackendOptions,
    Build,
    LayerTime,
    Session,
    backend_names,
    get_backend,
    survey,
)

__all__ = [
    "Availability",
    "Backend",
    "BackendOptions",
    "Build",
    "LayerTime",
    "Session",
    "backend_names",
    "get_backend",
    "survey",
]
