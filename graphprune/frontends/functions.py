"""Local functions of an ONNX model: refused where they cannot be inlined, inlined otherwise.

Everything after the front end sees one graph with subgraphs. The inlining itself is ``onnx_ir``'s; this adds what it
does not look at (cycles through subgraphs, functions that unfold without end, names within subgraphs, annotations).
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphprune.errors import InputError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["Body", "bodies", "check_functions", "inline_functions", "node_name"]

# Functions that call functions can double at every step; this is far above any real network.
_MOST_INLINED_NODES = 2_000_000
_QUANTISATION = "quant_parameter_tensor_names"  # where onnx_ir keeps a value's quantization_annotation


@dataclass(frozen=True, eq=False)
class Body:
    """A graph, a subgraph or a function's body, and the bodies around it from the outside in."""

    proto: onnx.GraphProto | onnx.FunctionProto
    where: str
    outer: tuple[Body, ...] = ()

    @property
    def graph(self) -> onnx.GraphProto | None:
        """The graph, unless this is a function: functions have no initialisers and no types."""
        import onnx

        return self.proto if isinstance(self.proto, onnx.GraphProto) else None


def bodies(proto: onnx.ModelProto) -> Iterator[Body]:
    """Every body, an outer one before its inner ones. A stack, no recursion; protobuf bounds the depth at 100."""
    stack = [Body(function, f"function {_function_name(function)!r}") for function in reversed(proto.functions)]
    stack.append(Body(proto.graph, "the graph"))
    while stack:
        body = stack.pop()
        yield body
        for node in body.proto.node:
            for attribute in node.attribute:
                inner = [attribute.g] if attribute.HasField("g") else []
                for graph in (*inner, *attribute.graphs):
                    where = f"subgraph {attribute.name!r} of {node_name(node)}"
                    stack.append(Body(graph, where, (*body.outer, body)))


def node_name(node: onnx.NodeProto) -> str:
    """What messages call a node: its operator, and its name or that of its first output."""
    called = node.name or (node.output[0] if node.output else "")
    return f"{node.op_type} node {called!r}"


def _function_name(function: onnx.FunctionProto) -> str:
    return f"{function.domain}::{function.name}" + (f":{function.overload}" if function.overload else "")


_FunctionId = tuple[str, str, str]


def check_functions(proto: onnx.ModelProto) -> bool:
    """Refuse functions that cannot be inlined, and mend what the inliner trips over. True if there are functions."""
    if not proto.functions:
        return False
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    if len(functions) < len(proto.functions):
        raise InputError("two functions of the model have the same domain, name and overload")
    calls: dict[_FunctionId, list[_FunctionId]] = {key: [] for key in functions}
    sizes: dict[_FunctionId, int] = dict.fromkeys(functions, 0)
    top_calls: list[_FunctionId] = []
    fresh = 0
    for body in bodies(proto):
        owner = _function_id((body.outer or (body,))[0])
        for node in body.proto.node:
            called = (node.domain, node.op_type, node.overload)
            if owner is not None:
                sizes[owner] += 1
            if called in functions:
                (top_calls if owner is None else calls[owner]).append(called)
                fresh += _name_all_outputs(node, len(functions[called].output), fresh)
    try:
        order = list(graphlib.TopologicalSorter(calls).static_order())
    except graphlib.CycleError as error:
        cycle = " -> ".join(_function_name(functions[key]) for key in error.args[1])
        raise InputError(f"functions of the model call each other in a circle: {cycle}") from None
    for key in order:  # callees first
        sizes[key] += sum(sizes[callee] for callee in calls[key])
    if (total := sum(sizes[key] for key in top_calls)) > _MOST_INLINED_NODES:
        raise InputError(f"the model's functions would unfold to {total} nodes, more than {_MOST_INLINED_NODES}")
    for function in functions.values():
        _separate_outputs(function)
    return True


def _function_id(body: Body) -> _FunctionId | None:
    import onnx

    function = body.proto
    return (function.domain, function.name, function.overload) if isinstance(function, onnx.FunctionProto) else None


def _name_all_outputs(node: onnx.NodeProto, count: int, fresh: int) -> int:
    """Give a call the outputs that it does not want, too: the inliner needs all and takes over their names.

    Returns how many were named, from ``fresh`` on.
    """
    if len(node.output) > count:
        raise InputError(f"{node_name(node)} has {len(node.output)} outputs, but the function it calls has {count}")
    node.output.extend([""] * (count - len(node.output)))
    unwanted = [index for index, output in enumerate(node.output) if not output]
    for number, index in enumerate(unwanted):
        node.output[index] = f"graphprune.unused.{fresh + number}"
    return len(unwanted)


def _separate_outputs(function: onnx.FunctionProto) -> None:
    """Give every output a value of its own: the inliner renames it, which must not rename a parameter."""
    import onnx

    seen = set(function.input)
    for index, output in enumerate(function.output):
        if output in seen:
            function.output[index] = f"graphprune.output.{index}.{output}"
            function.node.append(onnx.helper.make_node("Identity", [output], [function.output[index]]))
        seen.add(output)


def inline_functions(model: ir.Model) -> None:
    """Inline all functions of a model that ``check_functions`` passed, and drop those that nothing calls.

    Names of values of the model, and their quantisation annotations, stay; values that come out of a function get a
    free name. Raises what ``onnx_ir`` raises (for example for a function of another opset).
    """
    from onnx_ir.passes import common

    before = list(_values(model.graph))
    annotations = {value.name: value.meta[_QUANTISATION] for value in before if _QUANTISATION in value.meta}
    for function in model.functions.values():
        function.sort()
    common.InlinePass()(model)
    model.functions.clear()  # those that nothing called
    for value in _values(model.graph):
        if value.name in annotations:
            value.meta.setdefault(_QUANTISATION, annotations[value.name])
    _settle_names(model.graph, before)


def _settle_names(graph: ir.Graph, before: Iterable[ir.Value]) -> None:
    """Rename inlined values whose names are taken: the inliner does not look into subgraphs."""
    original = set(before)
    values = dict.fromkeys((*graph.outputs, *_values(graph)))  # outputs first: they keep their names
    taken = {value.name for value in values if value in original}
    for value in values:
        if value in original or not value.name:
            continue
        name, count = value.name, 1
        while name in taken:
            count += 1
            name = f"{value.name}_{count}"
        if name != value.name:
            value.name = name
        taken.add(name)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every value that a graph and its subgraphs define."""
    for inner in (graph, *graph.subgraphs()):
        yield from inner.inputs
        yield from inner.initializers.values()
        for node in inner:
            yield from node.outputs
