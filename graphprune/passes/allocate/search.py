"""The search for the least removal that meets every target, with the cost model as a monotone black box."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from graphprune.errors import TargetError
from graphprune.passes.allocate.steps import Ints, Steps
from graphprune.passes.allocate.target import QUANTITIES, WORDS, Quantity, Target
from graphprune.passes.plan import CostModel, Plan
from graphprune.passes.score.base import Floats

# A reached amount within 1 % below its limit counts as met exactly; beyond that the granularity is named.
TOLERANCE = 0.01
# Trades between groups: tried per round, rounds, steps per group (fewer beyond so many groups, and no group pinned:
# with many groups some small step always fits, and each evaluation costs milliseconds).
SWAPS, SWAP_ROUNDS, SWAP_STEPS, SWAP_GROUPS = 16, 8, 3, 24
# Names written out in a note or an error before "and N more".
NAMES = 8


@dataclass(frozen=True)
class Allocation:
    """A plan, and what it costs beside what was asked for.

    ``original``, ``reached``: amounts of params and macs (elements; multiply-accumulates per run); ``asked``: the upper
    bounds, for the quantities that had a target. ``at_floor``: ids of the groups cut to the least they may keep.
    ``notes``: what kept the plan from coming within 1 % of its target, and which groups sit at their floor.
    """

    plan: Plan
    original: Mapping[Quantity, int]
    asked: Mapping[Quantity, int]
    reached: Mapping[Quantity, int]
    at_floor: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    evaluations: int = 0

    def ratio(self, quantity: Quantity) -> float:
        """Reached over original; 1 where the original is 0."""
        return self.reached[quantity] / self.original[quantity] if self.original[quantity] else 1.0


class _Meter:
    """The cost model on levels of the steps, for the quantities that have a target; counts its evaluations."""

    def __init__(self, steps: Steps, cost: CostModel, quantities: Sequence[Quantity]) -> None:
        self.steps, self.cost, self.quantities = steps, cost, tuple(quantities)
        self.evaluations = 0

    def measure(self, levels: Ints, quantities: Sequence[Quantity] | None = None) -> Ints:
        """Amounts at these levels, one per quantity."""
        keep = self.steps.keep(levels)
        self.evaluations += 1
        ask = {"params": self.cost.params, "macs": self.cost.macs}
        return np.array([ask[each](keep) for each in quantities or self.quantities], dtype=np.int64)


def allocate_steps(
    steps: Steps,
    cost: CostModel,
    targets: Sequence[Target],
    options: Mapping[str, str],
    left_out: Mapping[str, str],
    widths: Callable[[], Plan] | None = None,
) -> Allocation:
    """Restore units in the order of ``steps``, starting from every floor, as far as all targets allow.

    The longest prefix of the order that meets the targets is found by bisection. If it ends more than 1 % below, the
    group whose next step is too large is struck out and the others go on, down to single units; at last, steps of
    groups are traded for those of others. ``left_out`` (group id to reason) and ``options`` only serve the messages.
    With ``widths`` (a plan that meets the targets, of these steps) units are restored from there on.

    Raises ``TargetError`` if the floors are above a target, ``UsageError`` if a target is above the original.
    """
    whole = dict(zip(QUANTITIES, _Meter(steps, cost, QUANTITIES).measure(steps.top).tolist(), strict=True))
    asked: dict[Quantity, int] = {}
    for target in targets:
        limit = target.limit(whole[target.quantity])
        asked[target.quantity] = min(limit, asked.get(target.quantity, limit))
    meter = _Meter(steps, cost, tuple(asked))
    limits = np.array(list(asked.values()), dtype=np.int64)
    levels = steps.top
    prevented = None
    if not _fits(meter.measure(levels), limits):
        levels = np.zeros_like(levels)
        lowest = meter.measure(levels)
        if not _fits(lowest, limits):
            raise TargetError(_cannot(steps, meter, targets, limits, whole, lowest, options, left_out))
        if widths is not None:
            levels = steps.levels(widths())
        levels = _restore(steps, meter, limits, levels, steps.above(levels))
        if _closeness(meter.measure(levels), limits) < 1 - TOLERANCE:
            near = levels if widths is not None else _pin(steps, meter, limits, levels)
            levels, prevented = _swap(steps, meter, limits, near)
    keep = steps.keep(levels)
    reached = dict(zip(QUANTITIES, meter.measure(levels, QUANTITIES).tolist(), strict=True))
    floored = tuple(each.id for each, level in zip(steps.groups, levels, strict=True) if each.id in keep and level == 0)
    notes = []
    if prevented is not None:
        notes.append(prevented)
    if floored:
        names = [f"'{each}' ({np.count_nonzero(keep[each])} of {keep[each].size})" for each in floored]
        notes.append(f"{len(floored)} group(s) sit at their floor: {_listed(names)}.")
    plan = Plan({name: np.flatnonzero(mask).astype(np.int64) for name, mask in keep.items()})
    return Allocation(plan, whole, asked, reached, floored, tuple(notes), meter.evaluations + 1)


def _fits(amounts: Ints, limits: Ints) -> bool:
    return bool((amounts <= limits).all())


def _closeness(amounts: Ints, limits: Ints) -> float:
    """How much of the tightest limit is used up: 1 is exactly met, below is room left."""
    return float((amounts / np.maximum(limits, 1)).max())


def _longest(fits: Callable[[int], bool], size: int, gallop: bool) -> int:
    """The largest ``n <= size`` with ``fits(n)``; ``fits`` is true up to some ``n`` and known to be at 0."""
    low, high = 0, size + 1
    while gallop and low < size and high > size:
        probe = min(max(1, 2 * low), size)
        low, high = (probe, high) if fits(probe) else (low, probe)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _after(levels: Ints, rest: Ints, count: int) -> Ints:
    return levels + np.bincount(rest[:count], minlength=levels.size)


def _restore(steps: Steps, meter: _Meter, limits: Ints, levels: Ints, rest: Ints) -> Ints:
    """Bring units back in the order of ``rest``, until within the tolerance of a limit or no step fits any more."""
    gallop = False
    while rest.size:
        fits = partial(_fits_after, meter, limits, levels, rest)
        taken = _longest(fits, rest.size, gallop)
        levels = _after(levels, rest, taken)
        if taken == rest.size or (taken and _closeness(meter.measure(levels), limits) >= 1 - TOLERANCE):
            break
        rest = rest[taken:]
        rest = rest[rest != rest[0]]
        # What still fits is now less than the step that did not: look near by first.
        gallop = True
    return levels


def _fits_after(meter: _Meter, limits: Ints, levels: Ints, rest: Ints, count: int) -> bool:
    return _fits(meter.measure(_after(levels, rest, count)), limits)


def _pin(steps: Steps, meter: _Meter, limits: Ints, levels: Ints) -> Ints:
    """Hold one group a step higher or lower and share out what is left among the others; the nearest outcome.

    This is the way to a coarse group's next step: the others give way in their order of importance.
    """
    best, near = levels, _closeness(meter.measure(levels), limits)
    for index in np.flatnonzero(steps.top) if levels.size <= SWAP_GROUPS else ():
        for level in (levels[index] + 1, levels[index] - 1):
            start = np.zeros_like(levels)
            start[index] = level
            if not 0 <= level <= steps.top[index] or not _fits(meter.measure(start), limits):
                continue
            found = _restore(steps, meter, limits, start, steps.order[steps.order != index])
            share = _closeness(meter.measure(found), limits)
            if share > near:
                best, near = found, share
            if near >= 1 - TOLERANCE:
                return best
    return best


def _swap(steps: Steps, meter: _Meter, limits: Ints, levels: Ints) -> tuple[Ints, str | None]:
    """Move one or two groups by a few steps, up or down, where that comes nearer to a limit without passing any.

    Returns the levels and, if they are still more than the tolerance below, the sentence that names the granularity.
    """
    depth = max(1, min(SWAP_STEPS, 3 * SWAP_GROUPS // (2 * levels.size)))
    base = meter.measure(levels)
    for _ in range(SWAP_ROUNDS):
        if _closeness(base, limits) >= 1 - TOLERANCE:
            return levels, None
        moves = np.concatenate([n * np.eye(levels.size, dtype=np.int64) for n in range(-depth, depth + 1) if n])
        moves = moves[((levels + moves >= 0) & (levels + moves <= steps.top)).all(axis=1)]
        changes = np.stack([meter.measure(levels + each) - base for each in moves])
        # The last row and column stand for no second move.
        moves = np.vstack([moves, np.zeros_like(levels)])
        changes = np.vstack([changes, np.zeros_like(base)])
        shares: Floats = ((base + changes[None] + changes[:, None]) / np.maximum(limits, 1)).max(axis=2)
        same_group = (moves != 0).astype(np.int64) @ (moves != 0).astype(np.int64).T > 0
        shares[same_group | (shares > 1) | (np.tri(len(moves), dtype=np.bool_))] = -np.inf
        for flat in np.argsort(-shares, axis=None, kind="stable")[:SWAPS]:
            one, other = np.unravel_index(flat, shares.shape)
            if shares[one, other] <= _closeness(base, limits):
                continue
            # Predictions add up single changes; two groups that meet in a tensor cost a product, so measure.
            tried = levels + moves[one] + moves[other]
            amounts = meter.measure(tried)
            if _fits(amounts, limits) and _closeness(amounts, limits) > _closeness(base, limits):
                levels, base = tried, amounts
                break
        else:
            break
    if _closeness(base, limits) >= 1 - TOLERANCE:
        return levels, None
    return levels, _granularity(steps, meter, limits, levels, base)


def _never(amounts: Ints) -> Ints:
    """Amounts above any limit, with room to be added up."""
    return np.full_like(amounts, np.iinfo(np.int64).max // 4)


def _gains(steps: Steps, meter: _Meter, levels: Ints, base: Ints) -> Ints:
    """What one step up costs in each group, shape ``(groups, quantities)``; beyond any limit where a group is whole."""
    units = np.eye(levels.size, dtype=np.int64)
    whole = levels >= steps.top
    return np.stack(
        [_never(base) if full else meter.measure(levels + e) - base for full, e in zip(whole, units, strict=True)]
    )


def _granularity(steps: Steps, meter: _Meter, limits: Ints, levels: Ints, base: Ints) -> str:
    up = _gains(steps, meter, levels, base)
    tight = int(np.argmax(base / np.maximum(limits, 1)))
    word = WORDS[meter.quantities[tight]]
    smallest = int(np.argmin((up / np.maximum(limits, 1)).max(axis=1)))
    group, counts = steps.groups[smallest], steps.counts[smallest]
    units = int(counts[levels[smallest] + 1] - counts[levels[smallest]])
    because = (
        f" (its kept counts are multiples of {steps.multiples[smallest]})" if steps.multiples[smallest] > 1 else ""
    )
    return (
        f"{word}: {base[tight]:,} reached, {1 - base[tight] / limits[tight]:.1%} below the {limits[tight]:,} asked. "
        f"The granularity prevents more: the smallest step left, {units} of {group.size} units of group "
        f"'{group.id}'{because}, would add {up[smallest, tight]:,} and pass a target."
    )


def _cannot(
    steps: Steps,
    meter: _Meter,
    targets: Sequence[Target],
    limits: Ints,
    whole: Mapping[Quantity, int],
    lowest: Ints,
    options: Mapping[str, str],
    left_out: Mapping[str, str],
) -> str:
    """The sentence for a target below what the floors leave: the lowest reachable amount and what limits it."""
    # One unit per group, not none: a cost model need not know what a network of empty tensors costs.
    bare_keep = {each.id: rank == each.size - 1 for each, rank in zip(steps.groups, steps.rank, strict=True)}
    parts = []
    for index in np.flatnonzero(lowest > limits):
        quantity = meter.quantities[index]
        full, floor = whole[quantity], int(lowest[index])
        bare = meter.cost.params(bare_keep) if quantity == "params" else meter.cost.macs(bare_keep)
        said = min((each for each in targets if each.quantity == quantity), key=lambda each: each.limit(full))
        limits_of = [
            f"{bare:,} ({bare / full:.3g}x) stay even with one unit in each of the {len(steps.groups)} group(s) that "
            f"may be cut, so no such group governs them",
            f"the least counts allowed hold {floor - bare:,} more (floor={options['floor']} of each group, align="
            f"{options['align']})",
        ]
        held = [each.id for each, counts in zip(steps.groups, steps.counts, strict=True) if counts.size == 1]
        if held:
            limits_of.append(
                f"{len(held)} of these groups can only stay whole: {_listed([repr(each) for each in held])}"
            )
        if left_out:
            reasons = [f"{name!r} ({reason})" for name, reason in left_out.items()]
            limits_of.append(f"{len(left_out)} group(s) may not be cut: {_listed(reasons)}")
        parts.append(
            f"The target of {said} ({limits[index]:,} of {full:,} {WORDS[quantity]}) cannot be met: the lowest "
            f"reachable is {floor:,} ({floor / full:.3g}x). What limits it: {'; '.join(limits_of)}. "
            f"Ask for {floor:,} or more, lower the floor, or let more groups be cut."
        )
    return " ".join(parts)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return ", ".join(names[:NAMES]) + more
