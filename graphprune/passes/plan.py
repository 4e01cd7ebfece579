"""The plan: which units of which group stay. Plain data; see ``docs/plan.md`` for the saved form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["CostModel", "Plan", "PlanMember"]


@dataclass(frozen=True)
class Plan:
    """``kept[group id]`` is the sorted array of kept units, shape ``(k,)``, int64. A group not named stays whole."""

    kept: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True)
class PlanMember:
    """What a plan removes from one axis of one tensor of the source file: ``removed`` are indices on that axis."""

    group: str
    tensor: str
    axis: int
    size: int
    rank: int
    role: str
    removed: NDArray[np.int64] = field(repr=False, compare=False)


class CostModel(Protocol):
    """What a plan costs. ``keep[group id]`` is a boolean mask of shape ``(group.size,)``; absent groups stay whole."""

    def params(self, keep: Mapping[str, NDArray[np.bool_]]) -> int:
        """Number of elements of all constants that are parameters."""
        ...

    def macs(self, keep: Mapping[str, NDArray[np.bool_]]) -> int:
        """Multiply-accumulates of one run on the example inputs."""
        ...
