"""Allocation: how many units of which group stay, so that a target is met. The only place that knows budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from graphprune.passes.allocate.knapsack import Resource, WidthProblem
from graphprune.passes.allocate.limits import cost_resources
from graphprune.passes.allocate.methods import Allocator, Global, Knapsack, Uniform, fitted_widths, widths_of
from graphprune.passes.allocate.search import Allocation
from graphprune.passes.allocate.target import Quantity, Target
from graphprune.passes.score.registry import create

__all__ = [
    "ALLOCATORS",
    "Allocation",
    "Allocator",
    "Global",
    "Knapsack",
    "Quantity",
    "Resource",
    "Target",
    "Uniform",
    "WidthProblem",
    "allocator",
    "cost_resources",
    "fitted_widths",
    "widths_of",
]

ALLOCATORS: Mapping[str, Callable[..., Allocator]] = {"global": Global, "uniform": Uniform, "knapsack": Knapsack}


def allocator(name: str, **options: object) -> Allocator:
    """The allocator of that name with those options, for example ``allocator("global", align=8)``.

    Raises ``UsageError`` for an unknown name or option (with the nearest ones) or a value that makes no sense.
    """
    return create(ALLOCATORS, "allocator", name, options)
