"""Where the zoo keeps what it has made (rendered data sets, trained networks), so that it is made once per machine.

The folder is ``$GRAPHPRUNE_CACHE`` or ``~/.cache/graphprune``. A file's name carries a hash of everything it was made
from, so a changed recipe never meets a stale file. Deleting the folder is always safe.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

from graphprune.errors import UsageError

__all__ = ["cache_folder", "recipe_hash", "write_atomically"]


def cache_folder() -> Path:
    """``$GRAPHPRUNE_CACHE`` or ``~/.cache/graphprune``, created if missing.

    Raises UsageError if it cannot be created.
    """
    folder = Path(os.environ.get("GRAPHPRUNE_CACHE") or "~/.cache/graphprune").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The cache folder '{folder}' cannot be created ({error.strerror}); "
            "set GRAPHPRUNE_CACHE to a writable folder."
        ) from error
    return folder


def recipe_hash(recipe: object) -> str:
    """The first 12 hex digits of the SHA-256 of ``recipe`` (any JSON data) in canonical JSON."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary file beside ``path``, then rename it: readers never see half a file.

    Raises UsageError if the folder cannot be written or the disk is full.
    """
    temporary: str | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            temporary = file.name
            file.write(content)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise UsageError(
            f"The cache file '{path}' cannot be written ({error.strerror}); set GRAPHPRUNE_CACHE to a writable folder."
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
