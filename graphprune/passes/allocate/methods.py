"""The ways to share a budget among groups: the same ratio everywhere, or one threshold over all units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from graphprune.errors import NothingPrunableError, UsageError
from graphprune.passes.allocate.knapsack import Solution, WidthProblem
from graphprune.passes.allocate.limits import cost_resources
from graphprune.passes.allocate.search import Allocation, allocate_steps
from graphprune.passes.allocate.steps import Ints, StepKeys, Steps, check_limits, make_steps, run_length
from graphprune.passes.allocate.target import Target
from graphprune.passes.cost import Cost
from graphprune.passes.files import keep_of
from graphprune.passes.plan import CostModel, Plan
from graphprune.passes.score.base import Floats, Scores

if TYPE_CHECKING:
    from graphprune.coupling.groups import Group


class Allocator(Protocol):
    """A way to choose what stays. Implementations are frozen dataclasses whose fields are their options."""

    @property
    def name(self) -> str:
        """The name in the registry."""
        ...

    def allocate(
        self, groups: Sequence[Group], scores: Scores, cost: CostModel, target: Target | Sequence[Target]
    ) -> Allocation:
        """The plan that meets every target from below."""
        ...


@dataclass(frozen=True)
class _Shared:
    """Options that every allocator has.

    ``floor``: fraction of each group that must stay (at least one unit). A group that lies wholly below the threshold
    is cut to its floor, never skipped.
    ``align``: sizes of cut axes are multiples of it. A kept count is a multiple of ``align`` over what a unit already
    brings along: 8 channels each for units that are channels, every count for heads of 64 neighbouring channels.
    Nothing is ever rounded past the group's size; a group smaller than the multiple stays whole. Which multiple is
    taken follows from the target: the largest counts with which it is met from below.
    ``multiples``: group id to a number of which the kept count must be a multiple (the whole group is always allowed).
    ``max_ratio``: the largest fraction of a group that may go.
    """

    name: ClassVar[str] = ""
    floor: float = 0.1
    align: int = 1
    multiples: Mapping[str, int] = field(default_factory=dict)
    max_ratio: float = 1.0

    def __post_init__(self) -> None:
        check_limits(self.name, self.floor, self.align, self.max_ratio, tuple(self.multiples.items()))

    def _multiple(self, group: Group) -> int:
        own = self.align // math.gcd(self.align, run_length(group)) if self.align > 1 else 1
        return math.lcm(own, self.multiples.get(group.id, 1))

    def _allocate(
        self,
        groups: Sequence[Group],
        scores: Scores,
        cost: CostModel,
        target: Target | Sequence[Target],
        keys: StepKeys,
        widths: Callable[[Steps, Sequence[Target]], Plan] | None = None,
    ) -> Allocation:
        targets = (target,) if isinstance(target, Target) else tuple(target)
        if not targets:
            raise UsageError("No target is given; give at least one, on params or macs.")
        steps = widths_of(groups, scores, self, keys)
        left_out = {each.id: each.refusal for each in groups if each.refusal is not None}
        options = {"floor": f"{self.floor:g}", "align": str(self.align), "max_ratio": f"{self.max_ratio:g}"}
        first = None if widths is None else partial(widths, steps, targets)
        return allocate_steps(steps, cost, targets, options, left_out, first)


@dataclass(frozen=True)
class Uniform(_Shared):
    """The same ratio in every group: kept counts are the allowed ones nearest to ``ratio * size``.

    Within a group the highest scores stay. The ratio is what the target leaves room for.
    """

    name: ClassVar[str] = "uniform"

    def allocate(
        self, groups: Sequence[Group], scores: Scores, cost: CostModel, target: Target | Sequence[Target]
    ) -> Allocation:
        """The plan that meets every target; raises ``TargetError``, ``NothingPrunableError`` or ``UsageError``."""
        return self._allocate(groups, scores, cost, target, _kept_fraction)


@dataclass(frozen=True)
class Global(_Shared):
    """One threshold over the units of all groups (with a floor per group against the collapse of a layer).

    Where several units must go together (``align``, ``multiples``), the mean of their scores is compared.
    """

    name: ClassVar[str] = "global"

    def allocate(
        self, groups: Sequence[Group], scores: Scores, cost: CostModel, target: Target | Sequence[Target]
    ) -> Allocation:
        """The plan that meets every target; raises ``TargetError``, ``NothingPrunableError`` or ``UsageError``."""
        return self._allocate(groups, scores, cost, target, _mean_score)


@dataclass(frozen=True)
class Knapsack(_Shared):
    """The widths that keep the most importance within the targets; see :mod:`graphprune.passes.allocate.knapsack`.

    What is added up is said by :meth:`~graphprune.passes.score.base.Scores.additive`.

    Unlike a threshold over all units, it sees that a unit of one group costs more than one of another. Alignment is
    found from the costs where these are measured times, so ``align`` need not be set.
    """

    name: ClassVar[str] = "knapsack"

    def allocate(
        self, groups: Sequence[Group], scores: Scores, cost: CostModel, target: Target | Sequence[Target]
    ) -> Allocation:
        """The plan that meets every target; raises ``TargetError``, ``NothingPrunableError`` or ``UsageError``."""
        assert isinstance(cost, Cost)
        return self._allocate(groups, scores, cost, target, _mean_score, partial(self._widths, scores, cost))

    def _widths(self, scores: Scores, cost: Cost, steps: Steps, targets: Sequence[Target]) -> Plan:
        chosen = {one.id for one in steps.groups}
        fixed = {one.id: float(one.size) for one in cost.grouping.groups if one.id not in chosen}
        resources = cost_resources(cost, targets)
        return fitted_widths(WidthProblem(steps, scores.additive(steps.groups), resources, fixed), cost)[0]


def fitted_widths(problem: WidthProblem, cost: Cost) -> tuple[Plan, Solution]:
    """The best widths whose plan keeps the limits on parameters and MACs exactly.

    Where channels are shuffled, an axis holds a part of a group's units, and how many of them stay depends on which
    ones go, while the problem counts with equal parts.

    Raises:
        TargetError: even the floors are above a limit.
    """
    tried = problem
    while True:
        solution = tried.solve()
        plan = problem.steps.plan(solution.counts)
        keep = keep_of(plan, cost.grouping)
        reached = {"params": float(cost.params(keep)), "macs": float(cost.macs(keep))}
        over = {one.name: reached[one.name] / one.limit for one in problem.resources if one.name in reached}
        if all(ratio <= 1 for ratio in over.values()):
            return plan, solution
        closer = {name: 0.999 / ratio for name, ratio in over.items() if ratio > 1}
        resources = (replace(one, limit=one.limit * closer.get(one.name, 1.0)) for one in tried.resources)
        tried = replace(tried, resources=tuple(resources))


def widths_of(
    groups: Sequence[Group], scores: Scores, allocator: Allocator | _Shared, keys: StepKeys | None = None
) -> Steps:
    """The counts that an allocator's options allow each group. Raises ``NothingPrunableError`` or ``UsageError``."""
    assert isinstance(allocator, _Shared)
    if len({each.id for each in groups}) != len(groups):
        raise UsageError("Two groups have the same id; every group may be given once.")
    prunable = [each for each in groups if each.refusal is None and each.size > 1]
    if not prunable:
        raise NothingPrunableError(_why_nothing(groups))
    return make_steps(
        prunable,
        scores,
        keys or _mean_score,
        floor=allocator.floor,
        max_ratio=allocator.max_ratio,
        multiple_of=allocator._multiple,
    )


def _kept_fraction(group: Group, counts: Ints, ascending: Floats) -> Floats:
    # Half-way between two counts, so that the nearest one is taken and not always the lower.
    return -(counts[:-1] + counts[1:]) / (2 * group.size)


def _mean_score(group: Group, counts: Ints, ascending: Floats) -> Floats:
    highest_first = ascending[::-1]
    if counts.size < 2:
        return np.zeros(0)
    return np.add.reduceat(highest_first, counts[:-1]) / np.diff(counts)


def _why_nothing(groups: Sequence[Group]) -> str:
    if not groups:
        return "Nothing can be pruned: no group is left after the choice of groups; see the refusals and --exclude."
    reasons = [each.refusal or "it has a single unit" for each in groups]
    most = sorted(set(reasons), key=lambda each: (-reasons.count(each), each))[:3]
    return f"Nothing can be pruned: none of {len(groups)} group(s) may be cut ({'; '.join(most)})."
