"""How many units a training run is to take out, and which of them by their scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import NothingPrunableError, UsageError
from graphprune.passes.allocate import Target, allocator
from graphprune.passes.allocate.steps import indispensable
from graphprune.passes.score.base import Scores

if TYPE_CHECKING:
    from graphprune.passes.allocate import Quantity
    from graphprune.training.groups import ModuleGroups

__all__ = ["Budget", "Counted"]

Counted = Literal["macs", "params", "units"]


@dataclass(frozen=True)
class Budget:
    """What stays: ``target`` (0 to 1) of the MACs, of the parameters, or of the units of all groups.

    Every group keeps at least the share ``floor`` of its units, and kept counts are rounded up to multiples of
    ``align``. ``allocation`` shares a budget of MACs or parameters out: ``global``, ``uniform`` or ``knapsack``
    (:func:`graphprune.passes.allocate.allocator`).
    """

    target: float
    quantity: Counted = "macs"
    floor: float = 0.1
    align: int = 1
    allocation: str = "global"

    def __post_init__(self) -> None:
        if not 0.0 < self.target <= 1.0:
            raise UsageError(f"target={self.target}: write the share that stays, above 0 and at most 1")
        if self.quantity not in get_args(Counted):
            raise UsageError(f"quantity={self.quantity!r} is not one of {', '.join(get_args(Counted))}")
        if not 0.0 <= self.floor <= 1.0 or self.align < 1:
            raise UsageError(f"floor={self.floor}, align={self.align}: a share from 0 to 1, and a number of at least 1")

    def choose(
        self, groups: ModuleGroups, scores: NDArray[np.float64], gone: NDArray[np.bool_], done: float = 1.0
    ) -> NDArray[np.bool_]:
        """The units that go, a mask (count,), when the share ``done`` of what is to be taken out has been.

        Args:
            scores: (count,), higher stays longer.
            gone: units that are out already; they stay out.
        """
        if not groups.groups:
            raise NothingPrunableError("there is no group to take units out of")
        low = float(scores.min()) - 1e3 * (float(np.ptp(scores)) + 1.0)
        scores = np.where(gone, low, scores)
        share = 1.0 - done * (1.0 - self.target)
        if share >= 1.0:
            return gone.copy()
        chosen = self._units(groups, scores, share) if self.quantity == "units" else self._cost(groups, scores, share)
        return np.asarray(chosen | gone)

    def _cost(self, groups: ModuleGroups, scores: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
        values = {one.id: scores[groups.offsets[one.id] :][: one.size] for one in groups.groups}
        method = allocator(self.allocation, floor=self.floor, align=self.align)
        target = Target(cast("Quantity", self.quantity), share)
        plan = method.allocate(groups.groups, Scores(values), groups.network.cost, [target]).plan
        chosen = np.zeros(groups.count, dtype=np.bool_)
        for name, kept in plan.kept.items():
            start = groups.offsets[name]
            chosen[start : start + len(values[name])] = True
            chosen[start + kept] = False
        return chosen

    def _units(self, groups: ModuleGroups, scores: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
        """The lowest of all, as far as the groups' floors allow."""
        open_units = np.zeros(groups.count, dtype=np.bool_)
        for one in groups.groups:
            start = groups.offsets[one.id]
            floor = min(one.size, max(1, math.ceil(self.floor * one.size)))
            order = np.argsort(scores[start : start + one.size], kind="stable")
            last = indispensable(one, order)
            free = order[~np.isin(order, last)]
            open_units[start + free[: one.size - max(floor, len(last))]] = True
        number = round((1.0 - share) * groups.count)
        order = np.flatnonzero(open_units)[np.argsort(scores[open_units], kind="stable")]
        chosen = np.zeros(groups.count, dtype=np.bool_)
        chosen[order[:number]] = True
        for one in groups.groups:
            here = slice(groups.offsets[one.id], groups.offsets[one.id] + one.size)
            kept = one.size - int(chosen[here].sum())
            back = min(-(-kept // self.align) * self.align, one.size) - kept
            if back:
                lost = np.flatnonzero(chosen[here])
                best = lost[np.argsort(-scores[here][lost], kind="stable")][:back]
                chosen[groups.offsets[one.id] + best] = False
        return chosen
