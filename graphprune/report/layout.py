"""Lanes for a picture of a network: one row per stop from the top down, as logs of branching histories are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Edge", "Lanes", "lanes"]


@dataclass(frozen=True)
class Edge:
    """From row ``source`` to row ``target``: down the lane ``along``, and over to the target's at the end."""

    source: int
    target: int
    along: int


@dataclass(frozen=True)
class Lanes:
    """The lane of each row, all edges, and how many lanes there are."""

    lane: tuple[int, ...]
    edges: tuple[Edge, ...]
    width: int


def lanes(sources: Sequence[Sequence[int]]) -> Lanes:
    """Place rows, each of which reads from earlier ones.

    A row stands on the lane of one that it is the last to read from (the leftmost, so that a residual stream stays a
    straight line while its branches bend), or on the leftmost free one.

    Args:
        sources: per row the rows that it reads from.
    """
    last: dict[int, int] = {}
    for target, given in enumerate(sources):
        for source in given:
            last[source] = target
    held: list[int | None] = []  # the row whose result runs down each lane
    lane: list[int] = []
    edges: list[Edge] = []
    for target, given in enumerate(sources):
        edges += [Edge(source, target, lane[source]) for source in given]
        for at, row in enumerate(held):
            if row is not None and last.get(row, -1) <= target:
                held[at] = None
        ended = sorted(lane[source] for source in given if held[lane[source]] is None)
        free = ended[0] if ended else next((at for at, row in enumerate(held) if row is None), len(held))
        if free == len(held):
            held.append(None)
        if target in last:
            held[free] = target
        lane.append(free)
    return Lanes(tuple(lane), tuple(edges), len(held))
