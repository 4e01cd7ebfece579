"""Parameters and multiply-accumulates as limited quantities of a width problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from graphprune.coupling.widths import Size, Sizer, product, total
from graphprune.passes.allocate.knapsack import Resource
from graphprune.passes.allocate.target import Quantity, Target
from graphprune.passes.cost import Cost
from graphprune.passes.score.base import Floats

__all__ = ["cost_resources"]


def cost_resources(cost: Cost, targets: Sequence[Target]) -> tuple[Resource, ...]:
    """One resource per target. Raises ``UsageError`` if a target is above the original."""
    sizer = Sizer(cost.grouping)
    whole: dict[Quantity, int] = {"params": cost.params({}), "macs": cost.macs({})}
    held = {"params": cost.weights, "macs": cost.work}
    found = []
    for target in targets:
        terms = [
            product([Size(((number, ()),)), *(sizer(space) for space in spaces)])
            for _, (number, spaces) in held[target.quantity]
        ]
        # A limit of nothing is one of less than a unit: what is over it can then be said as a ratio.
        found.append(_resource(target.quantity, max(1.0, float(target.limit(whole[target.quantity]))), terms))
    return tuple(found)


def _resource(name: str, limit: float, terms: Sequence[Size]) -> Resource:
    every = total(terms)
    parts: dict[str, list[Size]] = {}
    near: dict[str, set[str]] = {}
    for term in every.apart():
        for group in term.groups:
            parts.setdefault(group, []).append(term)
            near.setdefault(group, set()).update(term.groups)
    touching = {group: total(held) for group, held in parts.items()}

    def sweep(group: str, widths: Floats, counts: Mapping[str, float]) -> Floats:
        found = np.zeros(len(widths))
        return found + touching[group]({**counts, group: widths}) if group in touching else found

    return Resource(
        name,
        limit,
        lambda counts: float(every(counts)),
        sweep,
        {group: frozenset(others - {group}) for group, others in near.items()},
    )
