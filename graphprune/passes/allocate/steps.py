"""The steps in which groups may shrink: floors, multiples and alignment, turned into one order of removal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import InputError, UsageError
from graphprune.passes.plan import Plan
from graphprune.passes.score.base import Floats, Scores

if TYPE_CHECKING:
    from graphprune.coupling.groups import Group

Ints = NDArray[np.int64]


def check_limits(owner: str, floor: float, align: int, max_ratio: float, multiples: Sequence[tuple[str, int]]) -> None:
    """Raise ``UsageError`` for options of an allocator that make no sense."""
    if not 0 <= floor <= 1:
        raise UsageError(f"{owner}: floor={floor!r} must be a fraction from 0 to 1 of each group's units.")
    if not 0 <= max_ratio <= 1:
        raise UsageError(f"{owner}: max_ratio={max_ratio!r} must be a fraction from 0 to 1 of each group's units.")
    for name, value in (("align", align), *((f"multiples['{each}']", n) for each, n in multiples)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{owner}: {name}={value!r} must be a whole number of 1 or more.")


def run_length(group: Group) -> int:
    """Neighbouring indices that a unit owns wherever it stands (greatest common divisor): a head's is its width.

    The axes' sizes are multiples of it whatever is kept.
    """
    lengths = []
    for member in group.members:
        edges = np.flatnonzero(np.diff(member.unit_of, prepend=-2, append=-2))
        inside = member.unit_of[edges[:-1]] >= 0
        lengths.append(np.diff(edges)[inside])
    return int(np.gcd.reduce(np.concatenate(lengths))) if any(each.size for each in lengths) else 1


def allowed_counts(size: int, multiple: int, floor: float, max_ratio: float) -> Ints:
    """Kept counts that a group of ``size`` units may have, ascending.

    They are the multiples of ``multiple`` from the floor on, and ``size`` itself, whatever it is: an uncut group is as
    it was, so a group smaller than the multiple stays whole. The floor is the larger of ``floor * size`` and
    ``(1 - max_ratio) * size``, both rounded up, and at least 1.
    """
    # 0.1 * 30 is 3.0000000000000004: a fraction of a unit that only rounding made must not cost a unit.
    lowest = max(1, math.ceil(floor * size - 1e-9), size - math.floor(max_ratio * size + 1e-9))
    counts = np.arange(math.ceil(lowest / multiple) * multiple, size, multiple, dtype=np.int64)
    return np.append(counts, np.int64(size))


def indispensable(group: Group, removal: Ints) -> Ints:
    """Units that have to stay so that no axis is emptied, the most important of those that serve.

    Where channels are shuffled, an axis may hold a few of a group's units only; on all others any unit serves.
    ``removal``: the units in order of removal, shape ``(size,)``.
    """
    chosen: list[int] = []
    for units in sorted(group.covers, key=lambda units: units.size):
        if not np.isin(units, chosen).any():
            chosen.append(int(removal[np.isin(removal, units)][-1]))
    return np.array(chosen, dtype=np.int64)


def removal_order(group: Group, values: Floats) -> tuple[Ints, int]:
    """The units in order of removal, lowest of ``values`` (size,) first; and how many at the end of it have to stay."""
    removal = np.argsort(values, kind="stable")
    always = indispensable(group, removal)
    return np.append(removal[~np.isin(removal, always)], always), always.size


@dataclass(frozen=True)
class Steps:
    """All steps of all groups in the order in which units come back, most important first.

    ``counts[i]``: allowed kept counts of ``groups[i]``, ascending; its *level* is the index of the present one.
    ``order``, shape ``(steps,)``: the group whose level goes up by one; any prefix of it, and any prefix from which
    whole groups are struck out after some point, is a valid state.
    ``rank[i]``, shape ``(size,)``: a unit's place in the order of removal from its group, 0 goes first.
    """

    groups: tuple[Group, ...]
    counts: tuple[Ints, ...] = field(repr=False)
    multiples: tuple[int, ...]
    order: Ints = field(repr=False)
    rank: tuple[Ints, ...] = field(repr=False)

    def keep(self, levels: Ints) -> dict[str, NDArray[np.bool_]]:
        """Boolean masks, shape ``(size,)`` each, of the groups that lose units at these levels."""
        masks = {}
        for group, counts, rank, level in zip(self.groups, self.counts, self.rank, levels, strict=True):
            if level < counts.size - 1:
                masks[group.id] = rank >= group.size - counts[level]
        return masks

    def plan(self, counts: Mapping[str, int]) -> Plan:
        """The plan that keeps so many units of each group, the last in the order of removal."""
        kept = {}
        for group, rank in zip(self.groups, self.rank, strict=True):
            if counts[group.id] < group.size:
                kept[group.id] = np.flatnonzero(rank >= group.size - counts[group.id]).astype(np.int64)
        return Plan(kept)

    def levels(self, plan: Plan) -> Ints:
        """The levels of a plan of these steps, shape ``(groups,)``."""
        kept = (len(plan.kept[each.id]) if each.id in plan.kept else each.size for each in self.groups)
        return np.array([np.searchsorted(counts, n) for counts, n in zip(self.counts, kept, strict=True)], np.int64)

    def above(self, levels: Ints) -> Ints:
        """What is left of the order from these levels on."""
        level = np.empty_like(self.order)
        for index in range(len(self.groups)):
            at = np.flatnonzero(self.order == index)
            level[at] = np.arange(at.size)
        return self.order[level >= levels[self.order]]

    @property
    def top(self) -> Ints:
        """The levels at which every group is whole, shape ``(groups,)``."""
        return np.array([each.size - 1 for each in self.counts], dtype=np.int64)


StepKeys = Callable[["Group", Ints, Floats], Floats]


def make_steps(
    groups: Sequence[Group],
    scores: Scores,
    keys: StepKeys,
    *,
    floor: float,
    max_ratio: float,
    multiple_of: Callable[[Group], int],
) -> Steps:
    """Lay out the steps. ``keys(group, counts, ascending)`` gives one number per step, from the floor up; high stays.

    ``ascending`` holds the group's scores in order of removal. Keys are made to fall from the floor up, so that the
    order over all groups agrees with the order in each; ties go by group id, then by unit, the lower ones
    removed first.
    """
    ordered = tuple(sorted(groups, key=lambda each: each.id))
    counts, rank, multiples, key, owner = [], [], [], [], []
    for index, group in enumerate(ordered):
        values = _scores_of(group, scores)
        removal, always = removal_order(group, values)
        place = np.empty(group.size, dtype=np.int64)
        place[removal] = np.arange(group.size)
        multiple = multiple_of(group)
        steps = allowed_counts(group.size, multiple, max(floor, always / group.size), max_ratio)
        counts.append(steps)
        rank.append(place)
        multiples.append(multiple)
        key.append(np.minimum.accumulate(keys(group, steps, values[removal])))
        owner.append(np.full(steps.size - 1, index, dtype=np.int64))
    group_of = np.concatenate(owner)
    # The order of removal reversed: lower group ids go first, so they come back last.
    order = group_of[np.lexsort((-group_of, -np.concatenate(key)))]
    return Steps(ordered, tuple(counts), tuple(multiples), order, tuple(rank))


def _scores_of(group: Group, scores: Scores) -> Floats:
    values = scores.values.get(group.id)
    if values is None:
        raise InputError(f"Group '{group.id}' has no scores; score the same groups that are to be allocated.")
    if values.shape != (group.size,) or not np.isfinite(values).all():
        raise InputError(
            f"The scores of group '{group.id}' have shape {values.shape} and "
            f"{np.count_nonzero(~np.isfinite(values))} values that are not finite; {group.size} finite ones are needed."
        )
    return values
