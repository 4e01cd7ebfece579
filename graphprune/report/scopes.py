"""Where in the network a tensor is, as far as its name says: for showing only, nothing is decided by it."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["block_of", "common", "path_of", "shown"]

_SEPARATORS = re.compile(r"[./]")
_LEAVES = re.compile(r"(?i)weights?|bias|kernel|gamma|beta|[wb]_?\d*")
_NUMBERED = re.compile(r".*\d")

Path = tuple[str, ...]


def path_of(name: str) -> Path:
    """``layer1.0.conv1.weight`` and a node's ``/layer1/layer1.0/conv1/Conv`` as ``(layer1, 0, conv1)``."""
    path = [part for part in _SEPARATORS.split(name) if part]
    own = len(path) > 1 and _LEAVES.fullmatch(path[-1]) is not None
    if name.startswith("/"):  # node names repeat the module above, and end in the operator
        path, own = [part for i, part in enumerate(path) if i == 0 or part != path[i - 1]], len(path) > 1
    return tuple(path[:-1] if own else path)


def block_of(path: Path) -> Path:
    """The numbered part of the network that a layer is in: up to the first run of numbered names, its own left out."""
    above = path[:-1]
    for i, part in enumerate(above):
        if _NUMBERED.fullmatch(part):
            end = i + 1
            while end < len(above) and _NUMBERED.fullmatch(above[end]):
                end += 1
            return above[:end]
    return ()


def common(paths: Sequence[Path]) -> Path:
    """What all paths begin with."""
    if not paths:
        return ()
    low, high = min(paths), max(paths)
    for i, part in enumerate(low):
        if i >= len(high) or part != high[i]:
            return low[:i]
    return low


def shown(path: Path) -> str:
    """As it is printed."""
    return ".".join(path)
