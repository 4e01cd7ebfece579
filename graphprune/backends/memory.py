"""A bound on the memory of a run: a network that asks for more than there is is told no, not ended with others."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path

__all__ = ["available_memory", "bounded_memory"]

_lock = threading.Lock()
_before: list[tuple[int, int]] = []  # the limits to go back to, one entry per run under way


def available_memory() -> int | None:
    """Bytes that can still be had on this machine, swap included, or in this control group; None if that is unknown."""
    try:
        text = Path("/proc/meminfo").read_text()
        free = sum(1024 * int(found) for found in re.findall(r"^(?:MemAvailable|SwapFree):\s+(\d+) kB", text, re.M))
        group = Path("/sys/fs/cgroup") / Path("/proc/self/cgroup").read_text().partition("0::/")[2].strip()
    except (OSError, ValueError):
        return None
    for folder in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError):  # without a limit the file says "max"
            free = min(free, int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text()))
    return max(free, 0)


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """While the block runs, an allocation that this process could not fill fails at once.

    Linux grants memory that is not there and ends some process when it is used. The limit is the process's own
    (``RLIMIT_DATA``) and holds for all its threads; what was allocated before counts as had.
    """
    limited = _enter()
    try:
        yield
    finally:
        if limited:
            _leave()


def _enter() -> bool:
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[5])
        free = available_memory()
    except (ImportError, OSError, ValueError, IndexError):
        return False
    if free is None:
        return False
    with _lock:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if not _before:
            wanted = pages * resource.getpagesize() + free
            bounds = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
            resource.setrlimit(resource.RLIMIT_DATA, (min(wanted, *bounds) if bounds else wanted, hard))
        _before.append((soft, hard) if not _before else _before[0])
    return True


def _leave() -> None:
    import resource

    with _lock:
        limits = _before.pop()
        if not _before:
            resource.setrlimit(resource.RLIMIT_DATA, limits)
