"""Networks inside networks: the bodies of ``If``, ``Loop`` and ``Scan``.

What the specification of these three operators says of their bodies stands here alone: which attribute holds them,
what their inputs are in an iteration, and which values of the bodies belong to which operand or result of the node. To
the coupling a body's *outputs* are further operands of its node (the node reads them) and a body's *inputs* are further
results (the node makes them); so the whole operator is one line like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphprune.ir.program import Array, attribute, constant_tensor

__all__ = [
    "Body",
    "alone",
    "bodies",
    "branches",
    "captures",
    "count_rounds",
    "first_inputs",
    "graphs_of",
    "next_inputs",
    "operands",
    "replace_operand",
    "results",
    "rounds",
    "scan_axes",
    "sources_of",
    "walk",
]

_BODIES = {"If": ("then_branch", "else_branch"), "Loop": ("body",), "Scan": ("body",)}
_ROUNDS = "/rounds"


@dataclass(frozen=True)
class Body:
    """One body and what running it on its own showed.

    Attributes:
        graph: the body; ``node`` holds it.
        reason: why nothing is known of it (it could not be run); empty where its nodes were observed.
        idle: its condition never changes and is the other one's: it is never run, so nothing is said of it.
        repeats: how often it runs in one run of the network on the example inputs (a branch of an If: once).
    """

    graph: ir.Graph
    node: ir.Node
    reason: str = ""
    idle: bool = False
    repeats: int = 1

    @property
    def known(self) -> bool:
        """Whether its nodes state their lines."""
        return not self.reason and not self.idle


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The bodies of a node, in the operator's own order (then before else); empty for any other operator."""
    names = _BODIES.get(node.op_type)
    if names is None or node.domain not in ("", "ai.onnx"):
        return []
    return [node.attributes[name].as_graph() for name in names if name in node.attributes]


def branches(node: ir.Node) -> bool:
    """Whether a node runs one of its bodies, by the condition that is its first operand."""
    return len(bodies(node)) == 2


def operands(node: ir.Node) -> Sequence[ir.Value | None]:
    """What a node reads: its inputs, then the outputs of its bodies."""
    if node.op_type not in _BODIES:
        return node.inputs
    return [*node.inputs, *(value for graph in bodies(node) for value in graph.outputs)]


def results(node: ir.Node) -> Sequence[ir.Value]:
    """What a node makes: its outputs, then the inputs of its bodies."""
    if node.op_type not in _BODIES:
        return node.outputs
    return [*node.outputs, *(value for graph in bodies(node) for value in graph.inputs)]


def replace_operand(node: ir.Node, k: int, value: ir.Value) -> None:
    """Let operand ``k`` of :func:`operands` be another value.

    A body's output must come from a node of that body, so one that only hands the value on is put there.
    """
    if k < len(node.inputs):
        node.replace_input_with(k, value)
        return
    k -= len(node.inputs)
    for graph in bodies(node):
        if k < len(graph.outputs):
            old = graph.outputs[k]
            handed = ir.node("Identity", inputs=[value])
            handed.outputs[0].name = handed.name = f"{old.name}/handed_on"
            handed.outputs[0].type, handed.outputs[0].shape = value.type, value.shape
            graph.append(handed)
            graph.outputs[k] = handed.outputs[0]
            return
        k -= len(graph.outputs)


def walk(graph: ir.Graph) -> Iterator[ir.Node]:
    """Every node in an order in which they can run; those of a body stand before the node that holds it."""
    for node in graph:
        if node.op_type in _BODIES:
            for inner in bodies(node):
                yield from walk(inner)
        yield node


def captures(*graphs: ir.Graph) -> list[ir.Value]:
    """Values of outer graphs that some graphs, or what is inside them, use."""
    found: dict[ir.Value, None] = {}
    for graph in graphs:
        inside = {graph, *graph.subgraphs()}
        for node in graph.all_nodes():
            found.update((value, None) for value in node.inputs if value is not None and value.graph not in inside)
        for inner in inside:
            found.update((value, None) for value in inner.outputs if value.graph not in inside)
    return list(found)


def alone(model: ir.Model, graph: ir.Graph) -> tuple[ir.Model, list[str]]:
    """A body as a model of its own: captured constants stay constants, other captured values become inputs.

    Returns:
        The model, whose inputs are the body's followed by the captured values, and the names of the captured values.
    """
    clone = graph.clone(allow_outer_scope_values=True)
    clone.opset_imports.update(model.graph.opset_imports)
    taken: dict[ir.Value, ir.Value] = {}
    given: list[str] = []
    for value in captures(graph):
        held = constant_tensor(value)
        new = ir.Value(name=value.name, type=value.type, const_value=held)
        taken[value] = new
        if held is not None:
            new.type, new.shape = ir.TensorType(held.dtype), ir.Shape(held.shape.numpy())
            clone.register_initializer(new)
        else:
            clone.inputs.append(new)
            given.append(value.name or "")
    for node in clone.all_nodes():
        for k, used in enumerate(node.inputs):
            if used is not None and used in taken:
                node.replace_input_with(k, taken[used])
    return ir.Model(clone, ir_version=model.ir_version), given


def graphs_of(node: ir.Node) -> list[ir.Graph]:
    """All graphs that the attributes of a node hold, whatever its operator: SequenceMap has one too."""
    found: list[ir.Graph] = []
    for held in node.attributes.values():
        if held.type is ir.AttributeType.GRAPH:
            found.append(held.as_graph())
        elif held.type is ir.AttributeType.GRAPHS:
            found += held.as_graphs()
    return found


def sources_of(value: ir.Value) -> list[ir.Value]:
    """The outputs of bodies that a result of their node comes from."""
    node = value.producer()
    assert node is not None
    at = value.index() or 0
    return [graph.outputs[at + (node.op_type == "Loop")] for graph in bodies(node)]


def count_rounds(node: ir.Node) -> ir.Value | None:
    """Let a Loop also collect the numbers of its iterations, in place; the value that holds them, or ``None``."""
    if node.op_type != "Loop" or not bodies(node):
        return None
    (graph,) = bodies(node)
    handed = ir.node("Identity", inputs=[graph.inputs[0]])
    handed.outputs[0].name = handed.name = f"{node.outputs[0].name}{_ROUNDS}_number"
    graph.append(handed)
    graph.outputs.append(handed.outputs[0])
    node.resize_outputs(len(node.outputs) + 1)
    node.outputs[-1].name = f"{node.outputs[0].name}{_ROUNDS}"
    return node.outputs[-1]


def rounds(node: ir.Node, given: Sequence[Array | None], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How often a Loop (whose rounds were counted) or a Scan ran its body.

    Args:
        node: of the original network.
        given: contents of its operands.
        shapes: of the values of the run.
    """
    if node.op_type == "Loop":
        return shapes[f"{node.outputs[0].name}{_ROUNDS}"][0]
    (graph,) = bodies(node)
    states, axes, _ = scan_axes(node, graph)
    first = given[states]
    assert first is not None
    return int(first.shape[axes[0]])


def scan_axes(node: ir.Node, graph: ir.Graph) -> tuple[int, list[int], list[int]]:
    """Of a Scan: the number of state values, and the scanned axis of every scanned operand and every stacked result."""
    scanned = int(attribute(node, "num_scan_inputs"))
    states = len(graph.inputs) - scanned
    ins = [int(axis) for axis in attribute(node, "scan_input_axes") or [0] * scanned]
    outs = [int(axis) for axis in attribute(node, "scan_output_axes") or [0] * (len(graph.outputs) - states)]
    return states, ins, outs


def first_inputs(node: ir.Node, graph: ir.Graph, given: Sequence[Array | None]) -> dict[str, Array]:
    """A body's own inputs in the first iteration.

    Args:
        node: holds the body ``graph``.
        given: contents of the node's operands, ``None`` where one is left out.
    """
    if branches(node):
        return {}
    names = [value.name or "" for value in graph.inputs]
    if node.op_type == "Loop":
        carried = [array for array in given[2:] if array is not None]
        return dict(zip(names, [np.array(0, dtype=np.int64), np.array(True), *carried], strict=True))
    states, axes, _ = scan_axes(node, graph)
    backwards = attribute(node, "scan_input_directions") or [0] * len(axes)
    feeds = {name: array for name, array in zip(names, given, strict=True) if array is not None}
    for name, axis, reverse in zip(names[states:], axes, backwards, strict=True):
        feeds[name] = np.asarray(np.take(feeds[name], -1 if reverse else 0, axis=axis))
    return feeds


def next_inputs(node: ir.Node, graph: ir.Graph, made: Mapping[str, Array]) -> dict[str, Array] | None:
    """A Loop's own inputs in the second iteration, from the outputs of the first; ``None`` where sizes stay anyway."""
    if node.op_type != "Loop":
        return None
    carried = [value.name or "" for value in graph.inputs[2:]]
    feeds = {name: made[value.name or ""] for name, value in zip(carried, graph.outputs[1:], strict=False)}
    names = [value.name or "" for value in graph.inputs[:2]]
    return dict(zip(names, [np.array(1, dtype=np.int64), np.array(True)], strict=True)) | feeds
