"""The criterion that reads the scales of BatchNorm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from graphprune.passes.score.base import (
    CONSTANT_ROLES,
    NORMALIZERS,
    REDUCTIONS,
    Floats,
    Normalizer,
    Reduction,
    Tensors,
    normalize,
    reduce_members,
    unit_sums,
)
from graphprune.passes.score.registry import one_of
from graphprune.passes.score.weights import Magnitude

if TYPE_CHECKING:
    from graphprune.coupling.groups import Group, Member


@dataclass(frozen=True)
class BnScale:
    """``abs(gamma)`` of the BatchNorms that a unit passes through (Liu et al., "Network Slimming", 2017).

    ``scales`` of ``score`` names the tensors that are such scales. A group without one is scored by ``magnitude`` with
    the same normaliser, and ``remark`` says so. ``normalize="none"`` is the paper's; the default, the group's mean,
    keeps groups with and without BatchNorm comparable.
    """

    name: ClassVar[str] = "bn-scale"
    reduce: Reduction = "mean"
    normalize: Normalizer = "mean"

    def __post_init__(self) -> None:
        one_of(self.name, "reduce", self.reduce, REDUCTIONS)
        one_of(self.name, "normalize", self.normalize, NORMALIZERS)

    def score(self, group: Group, tensors: Tensors, *, scales: frozenset[str] = frozenset()) -> Floats:
        """Shape ``(group.size,)``."""
        members = _scales_of(group, scales)
        if not members:
            return Magnitude(normalize=self.normalize).score(group, tensors)
        owned = [np.bincount(each.unit_of[each.unit_of >= 0], minlength=group.size) for each in members]
        # A unit of several channels (a head) has as many scales: their mean, so that it compares with a single one.
        parts = [
            unit_sums(group, each, tensors, 1) / np.maximum(count, 1)
            for each, count in zip(members, owned, strict=True)
        ]
        return normalize(reduce_members(parts, self.reduce), self.normalize)

    def remark(self, group: Group, *, scales: frozenset[str] = frozenset()) -> str | None:
        """One sentence if the group has no BatchNorm scale."""
        if _scales_of(group, scales):
            return None
        return f"Group '{group.id}' has no BatchNorm scale; scored by magnitude instead."


def _scales_of(group: Group, scales: frozenset[str]) -> list[Member]:
    return [each for each in group.members if each.role in CONSTANT_ROLES and each.tensor in scales]
