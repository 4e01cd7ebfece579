"""How many units a training run is to take out, and which of them by their scores."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import InputError, NothingPrunableError, UsageError
from graphprune.passes.allocate import Target, allocator
from graphprune.passes.allocate.steps import removal_order
from graphprune.passes.files import read_plan, replay
from graphprune.passes.plan import Plan
from graphprune.passes.score.base import Scores

if TYPE_CHECKING:
    from graphprune.passes.allocate import Quantity
    from graphprune.training.groups import ModuleGroups

__all__ = ["Budget", "Counted", "widths_of"]

Counted = Literal["macs", "params", "units"]
_UNTOUCHED = ("macs", 0.1, 1, "uniform")  # what the fields after the target are unless they are given


@dataclass(frozen=True)
class Budget:
    """What stays: ``target`` (0 to 1) of the MACs, of the parameters, or of the units of all groups.

    Every group keeps at least the share ``floor`` of its units, and kept counts are rounded up to multiples of
    ``align``. ``allocation`` shares a budget of MACs or parameters out: ``global``, ``uniform`` or ``knapsack``
    (:func:`graphprune.passes.allocate.allocator`).

    Or ``target`` are the groups' widths themselves, how many units of each stay by its id; those not named stay whole,
    and the rest has no meaning.
    """

    target: float | Mapping[str, int]
    quantity: Counted = "macs"
    floor: float = 0.1
    align: int = 1
    allocation: str = "uniform"

    def __post_init__(self) -> None:
        if isinstance(self.target, Mapping):
            if (self.quantity, self.floor, self.align, self.allocation) != _UNTOUCHED:
                raise UsageError(
                    "quantity, floor, align and allocation have no meaning where target is a plan: it has the widths"
                )
            return
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
        if isinstance(self.target, Mapping):
            return np.asarray(self._widths(groups, scores, self.target, done) | gone)
        share = 1.0 - done * (1.0 - self.target)
        if share >= 1.0:
            return gone.copy()
        chosen = self._units(groups, scores, share) if self.quantity == "units" else self._cost(groups, scores, share)
        return np.asarray(chosen | gone)

    def _widths(
        self, groups: ModuleGroups, scores: NDArray[np.float64], widths: Mapping[str, int], done: float
    ) -> NDArray[np.bool_]:
        """The lowest of each group, down to its width."""
        chosen = np.zeros(groups.count, dtype=np.bool_)
        for one in groups.groups:
            start = groups.offsets[one.id]
            order, _ = removal_order(one, scores[start : start + one.size])
            chosen[start + order[: round(done * (one.size - widths.get(one.id, one.size)))]] = True
        return chosen

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
            order, always = removal_order(one, scores[start : start + one.size])
            open_units[start + order[: one.size - max(floor, always)]] = True
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


def widths_of(plan: Plan | str | os.PathLike[str], groups: ModuleGroups) -> dict[str, int]:
    """How many units of each group a plan keeps, by the groups' ids.

    Raises:
        UsageError: it cuts a group that is not among ``groups``. InputError: its file is of another network.
    """
    if not isinstance(plan, Plan):
        plan = replay(read_plan(plan), groups.network.grouping)
    members = {one.id: one.members for one in groups.network.grouping.groups}
    unknown = [name for name in plan.kept if name not in members]
    if unknown:
        raise InputError(
            f"the plan cuts the group {unknown[0]!r}, which this network does not have; was it made for another?"
        )
    left_out = [name for name in plan.kept if name not in groups.offsets]
    if left_out:
        tensor = members[left_out[0]][0].tensor
        raise UsageError(
            f"the plan cuts the group {left_out[0]}, which zeroed parameters do not take out here or which was left "
            f"out (module_groups(...).notes says why); make the plan without it: exclude=['{tensor}']"
        )
    return {name: len(kept) for name, kept in plan.kept.items()}
