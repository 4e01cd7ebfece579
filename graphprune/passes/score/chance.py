"""The baseline that every criterion must beat."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from graphprune.errors import UsageError
from graphprune.passes.score.base import Floats, Tensors

if TYPE_CHECKING:
    from graphprune.coupling.groups import Group


@dataclass(frozen=True)
class Random:
    """Uniform in 0..1, drawn from ``seed`` and the group's id, so that it depends on no order of the groups."""

    name: ClassVar[str] = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or self.seed < 0:
            raise UsageError(f"random: seed={self.seed!r} must be a whole number of 0 or more.")

    def score(self, group: Group, tensors: Tensors, *, scales: frozenset[str] = frozenset()) -> Floats:
        """Shape ``(group.size,)``."""
        own = int.from_bytes(hashlib.sha256(group.id.encode()).digest()[:8], "little")
        return np.random.default_rng([self.seed, own]).random(group.size)

    def remark(self, group: Group, *, scales: frozenset[str] = frozenset()) -> str | None:
        """``None``: every group can be scored by chance."""
        return None
