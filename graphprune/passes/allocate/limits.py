"""Parameters and multiply-accumulates as limited quantities of a width problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from graphprune.coupling.widths import Counts, Number, Size, Sizer
from graphprune.passes.allocate.knapsack import Resource
from graphprune.passes.allocate.target import Quantity, Target
from graphprune.passes.cost import Cost
from graphprune.passes.score.base import Floats

__all__ = ["cost_resources"]

_Terms = Sequence[tuple[int, tuple[Size, ...]]]


def cost_resources(cost: Cost, targets: Sequence[Target]) -> tuple[Resource, ...]:
    """One resource per target. Raises ``UsageError`` if a target is above the original."""
    sizer = Sizer(cost.grouping)
    whole: dict[Quantity, int] = {"params": cost.params({}), "macs": cost.macs({})}
    held = {"params": cost.weights, "macs": cost.work}
    found = []
    for target in targets:
        terms = [(number, tuple(sizer(space) for space in spaces)) for _, (number, spaces) in held[target.quantity]]
        found.append(_resource(target.quantity, float(target.limit(whole[target.quantity])), terms))
    return tuple(found)


def _resource(name: str, limit: float, terms: _Terms) -> Resource:
    touching: dict[str, list[tuple[int, tuple[Size, ...]]]] = {}
    near: dict[str, set[str]] = {}
    for number, sizes in terms:
        groups = {group for size in sizes for group in size.groups}
        for group in groups:
            touching.setdefault(group, []).append((number, sizes))
            near.setdefault(group, set()).update(groups)

    def total(counts: Mapping[str, float]) -> float:
        return float(_sum(terms, counts))

    def sweep(group: str, widths: Floats, counts: Mapping[str, float]) -> Floats:
        at: dict[str, Floats] = {key: np.full(len(widths), value) for key, value in counts.items()}
        at[group] = widths
        return np.zeros(len(widths)) + _sum(touching.get(group, ()), at)

    return Resource(name, limit, total, sweep, {group: frozenset(others - {group}) for group, others in near.items()})


def _sum(terms: _Terms, counts: Counts[Number]) -> Number | float:
    value: Number | float = 0.0
    for number, sizes in terms:
        value = value + prod((size(counts) for size in sizes), start=float(number))
    return value
