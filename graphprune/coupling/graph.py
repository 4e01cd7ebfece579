"""The graph of groups, the flow of a network through its weights and joins, and what of it is never cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import onnx_ir as ir

from graphprune.coupling.groups import Grouping, sources
from graphprune.coupling.notation import letters_of
from graphprune.coupling.solve import Binding
from graphprune.coupling.space import Refusal, Space, free_leaves, leaves
from graphprune.ir.nested import results
from graphprune.ir.program import inputs_of

if TYPE_CHECKING:
    import networkx

__all__ = ["Stop", "Uncut", "flow", "group_graph", "uncut"]


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
    for tensor, givers in consumed.items():
        for source in givers:
            for target in made.get(tensor, ()):
                between.setdefault((source, target), []).append(tensor)
    for (source, target), tensors in between.items():
        graph.add_edge(source, target, tensors=" ".join(tensors))
    return graph


@dataclass(frozen=True)
class Uncut:
    """An axis that weights make and that is never cut.

    Attributes:
        tensor, axis, size: the axis of the weight.
        reason: why.
    """

    tensor: str
    axis: int
    size: int
    reason: str


def uncut(grouping: Grouping) -> tuple[Uncut, ...]:
    """The axes of weights that make units of which none can go, with the reason, in the network's order."""
    found: dict[tuple[str, int], Uncut] = {}
    for binding in grouping.coupling.bindings:
        if not binding.live or not binding.layout.macs:
            continue
        made = _made(grouping, binding)
        for tensor, spaces in _weights(grouping, binding):
            for axis, space in enumerate(spaces):
                whole = [one for one in leaves(space) if one.refusal is not None and one.n > 1]
                kept = [one for one in whole if any(one is part for part in made)]
                if kept and len(whole) == sum(1 for _ in leaves(space)) and kept[0].refusal is not None:
                    why = kept[0].refusal
                    reason = str(Refusal(why.reason, why.op, why.node))
                    found.setdefault((tensor, axis), Uncut(tensor, axis, space.n, reason))
    return tuple(found.values())


def _weights(grouping: Grouping, binding: Binding) -> Iterable[tuple[str, list[Space]]]:
    """The file's constants that a node contracts with, and their spaces there."""
    coupling = grouping.coupling
    for k, (axes, value) in enumerate(zip(binding.layout.operands, binding.operands, strict=False)):
        if axes is None or value is None or value.name not in coupling.program.fixed:
            continue
        if any(one.name in binding.layout.contracted for one in letters_of(axes)):
            for name, spaces in sources(coupling, value):
                yield name, coupling.axes(binding.node, k) if name == value.name else spaces


def _made(grouping: Grouping, binding: Binding) -> list[Space]:
    """Leaves of what a node's weights make."""
    fixed = grouping.coupling.program.fixed
    held = {
        one.name
        for axes, value in zip(binding.layout.operands, binding.operands, strict=False)
        if value is not None and value.name in fixed
        for one in letters_of(axes)
    }
    letters = [one.name for axes in binding.layout.results for one in letters_of(axes)]
    return [
        one
        for name in dict.fromkeys(letters)
        if name in held and name in binding.spaces
        for one in leaves(binding.spaces[name])
    ]


@dataclass(frozen=True)
class Stop:
    """An operator that a picture of the network shows; all others only pass on what flows between these.

    Attributes:
        role: *input* and *output* of the network; *weights*: it computes with weights that make units; *product*: it
            contracts computed values; *join*: values of several stops meet; *barrier*: nothing is cut through it.
        op, name: the operator's type, and its name or the network's for an input or output.
        tensor: the weight, or empty.
        shape: of the weight, or of the result.
        groups: ids of the groups on what it makes.
        refusal: why what it makes is not cut, where there are none.
        sources: the stops that it reads from, with the groups on what flows.
    """

    role: Literal["input", "output", "weights", "product", "join", "barrier"]
    op: str
    name: str
    tensor: str
    shape: tuple[int, ...]
    groups: tuple[str, ...]
    refusal: Refusal | None
    sources: tuple[tuple[int, tuple[str, ...]], ...]


def flow(grouping: Grouping) -> tuple[Stop, ...]:
    """The network as a list of stops, each after those that it reads from."""
    return _Flow(grouping).stops()


class _Flow:
    def __init__(self, grouping: Grouping) -> None:
        self.grouping = grouping
        self.coupling = grouping.coupling
        self.program = grouping.coupling.program
        self.found: list[Stop] = []
        self.origin: dict[str, tuple[int, ...]] = {}
        self.bindings = {one.node: one for one in self.coupling.bindings if one.live}
        self.refused = {(one.op, one.node): one for one in self.coupling.refusals}
        self.holders = {  # the inputs of bodies are what the node that holds them hands in
            value.name: node for node in self.program.live for value in results(node)[len(node.outputs) :]
        }
        self.makers = {m.tensor for one in grouping.groups for m in one.members if m.role == "producer" and m.rank > 1}

    def stops(self) -> tuple[Stop, ...]:
        """Walk the live nodes once."""
        for value in inputs_of(self.program.model):
            name = value.name or ""
            self._add("input", "input", name, "", self.program.shapes.get(name, ()), (), None, [], [value])
        for node in self.program.live:
            self._pass(node)
        for value in self.program.model.graph.outputs:
            name = value.name or ""
            shape = self.program.shapes.get(name, ())
            self._add("output", "output", name, "", shape, self._groups([value]), None, [value], [])
        return self._used()

    def _pass(self, node: ir.Node) -> None:
        binding = self.bindings.get(node)
        name = node.name or node.outputs[0].name or ""
        read = node.inputs if binding is None else binding.operands
        for value in read:
            if value is not None and value.name in self.holders and value.name not in self.origin:
                given = [
                    self.origin.get(one.name or "", ()) for one in self.holders[value.name].inputs if one is not None
                ]
                self.origin[value.name or ""] = tuple(dict.fromkeys(at for known in given for at in known))
        flows = [value for value in read if value is not None and value.name in self.origin]
        refused = self.refused.get((node.op_type, name))
        shape = self.program.shapes.get(node.outputs[0].name or "", ())
        tensor = "" if binding is None else self._weight(binding)
        if binding is None or refused is not None:
            self._add("barrier", node.op_type, name, tensor, shape, (), refused, flows, node.outputs)
        elif tensor:
            made = _made(self.grouping, binding)
            groups = self._named(made) if binding.layout.macs else self._groups(node.outputs[:1])
            whole = [one for one in made if one.refusal is not None and one.n > 1]
            why = max(whole, key=lambda one: one.n).refusal if whole and not groups else None
            shape = self.program.shapes.get(tensor, ())
            self._add("weights", node.op_type, name, tensor, shape, groups, why, flows, node.outputs)
        elif binding.layout.macs and len(flows) > 1:
            self._add(
                "product", node.op_type, name, "", shape, self._groups(node.outputs[:1]), None, flows, node.outputs
            )
        elif len({one for value in flows for one in self.origin[value.name or ""]}) > 1:
            self._add("join", node.op_type, name, "", shape, self._groups(node.outputs[:1]), None, flows, node.outputs)
        elif flows:
            self.origin.update((value.name or "", self.origin[flows[0].name or ""]) for value in node.outputs)

    def _weight(self, binding: Binding) -> str:
        """The weight that a node computes with, the largest of several."""
        if binding.layout.macs:
            names = [name for name, _ in _weights(self.grouping, binding)]
        else:
            fixed = [value for value in binding.operands if value is not None and value.name in self.program.fixed]
            names = [name for value in fixed for name, _ in sources(self.coupling, value) if name in self.makers]
        sizes = self.program.shapes
        return max(names, key=lambda name: (_elements(sizes.get(name, ())), name)) if names else ""

    def _add(
        self,
        role: Literal["input", "output", "weights", "product", "join", "barrier"],
        op: str,
        name: str,
        tensor: str,
        shape: tuple[int, ...],
        groups: tuple[str, ...],
        refusal: Refusal | None,
        flows: Sequence[ir.Value],
        results: Sequence[ir.Value],
    ) -> None:
        read: dict[int, tuple[str, ...]] = {}
        for value in flows:
            for source in self.origin[value.name or ""] if value.name in self.origin else ():
                read[source] = read.get(source) or self._groups([value])
        self.origin.update((value.name or "", (len(self.found),)) for value in results)
        self.found.append(Stop(role, op, name, tensor, shape, groups, refusal, tuple(read.items())))

    def _used(self) -> tuple[Stop, ...]:
        """Without the inputs that nothing reads (they only say sizes)."""
        read = {source for one in self.found for source, _ in one.sources}
        kept = [i for i, one in enumerate(self.found) if i in read or one.role != "input"]
        at = {old: new for new, old in enumerate(kept)}
        return tuple(
            Stop(
                one.role, one.op, one.name, one.tensor, one.shape, one.groups, one.refusal,
                tuple((at[source], groups) for source, groups in one.sources),
            )
            for one in (self.found[i] for i in kept)
        )  # fmt: skip

    def _groups(self, values: Sequence[ir.Value]) -> tuple[str, ...]:
        spaces = [space for value in values for space in self.coupling.of(value.name or "")]
        return self._named([one for space in spaces for one in free_leaves(space)])

    def _named(self, parts: Sequence[Space]) -> tuple[str, ...]:
        place = self.grouping.place
        return tuple(dict.fromkeys(place[one][0] for one in parts if one in place))


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
