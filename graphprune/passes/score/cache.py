"""Scores that took a pass over the data are kept, by the hashes of network and data."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune._version import __version__
from graphprune.ir.files import atomic_files, cache_folder
from graphprune.passes.score.base import Scores

if TYPE_CHECKING:
    from graphprune.coupling.groups import Group

__all__ = ["ScoreCache"]


@dataclass(frozen=True)
class ScoreCache:
    """Where the scores of one network, data, criterion with its options, and seed lie: an ``.npz`` in the cache."""

    network: str
    data: str
    criterion: str
    seed: int

    @property
    def path(self) -> Path:
        """The file."""
        words = f"{__version__} {self.network} {self.data} {self.criterion} {self.seed}"
        return cache_folder() / "scores" / f"{hashlib.sha256(words.encode()).hexdigest()[:24]}.npz"

    def read(self, groups: Sequence[Group]) -> Scores | None:
        """The scores of these groups, or None; what cannot be read is computed anew."""
        try:
            with np.load(self.path, allow_pickle=False) as held:
                values = {one.id: held[one.id] for one in groups}
                notes = tuple(str(note) for note in held["notes"])
                adds_up = bool(held["adds_up"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        fits = all(values[one.id].shape == (one.size,) and np.isfinite(values[one.id]).all() for one in groups)
        return Scores(values, notes, adds_up) if fits else None

    def write(self, scores: Scores) -> None:
        """Keep them; where the cache cannot be written they are computed again next time."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_files(self.path) as (file,):
                arrays: dict[str, Any] = {**scores.values, "notes": np.array(scores.notes, dtype=np.str_)}
                arrays["adds_up"] = np.array(scores.adds_up)
                np.savez(file, **arrays)
        except OSError:
            return
