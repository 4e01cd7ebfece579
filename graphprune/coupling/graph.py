"""The graph of groups: which groups' units are made from which others'."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphprune.coupling.groups import Grouping

if TYPE_CHECKING:
    import networkx

__all__ = ["group_graph"]


def group_graph(grouping: Grouping) -> networkx.DiGraph:
    """Groups as nodes, and an edge from a group to another where a weight consumes the one and makes the other.

    Nodes have the attributes ``kind``, ``size`` and ``exact``; edges ``tensors``, the weights in between, separated by
    blanks. All attributes are plain, so that every writer of networkx takes the graph.
    """
    import networkx

    graph = networkx.DiGraph()
    consumed: dict[str, list[str]] = {}
    made: dict[str, list[str]] = {}
    for one in grouping.groups:
        graph.add_node(one.id, kind=one.kind, size=one.size, exact=one.exact)
        for member in one.members:
            if member.role in ("consumer", "producer"):
                (consumed if member.role == "consumer" else made).setdefault(member.tensor, []).append(one.id)
    between: dict[tuple[str, str], list[str]] = {}
    for tensor, sources in consumed.items():
        for source in sources:
            for target in made.get(tensor, ()):
                between.setdefault((source, target), []).append(tensor)
    for (source, target), tensors in between.items():
        graph.add_edge(source, target, tensors=" ".join(tensors))
    return graph
