"""A program with other contents of its constants."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir

from graphprune.ir.look import READS_SIZES
from graphprune.ir.nested import bodies, walk
from graphprune.ir.program import Array, Program, all_values, constant_tensor

__all__ = ["with_values"]


def with_values(program: Program, changed: Mapping[str, Array]) -> Program:
    """A copy of a program with other contents of some constants, by name; what was observed holds for it as well.

    Each array has the shape of what it replaces; constants that do not change are shared with the program.
    """
    model = program.model.clone()
    values = all_values(model.graph)
    nodes = {node.outputs[0].name: node for node in walk(model.graph) if node.outputs}
    graphs = {
        old: new
        for node in walk(program.model.graph)
        if bodies(node)
        for old, new in zip(bodies(node), bodies(nodes[node.outputs[0].name]), strict=True)
    }
    for name, array in changed.items():
        value = values[name]
        held = constant_tensor(value)
        assert held is not None
        tensor = ir.Tensor(array, dtype=held.dtype, name=name, doc_string=held.doc_string)
        producer = value.producer()
        if producer is None:
            value.const_value = tensor
        else:
            for attribute in list(producer.attributes):
                del producer.attributes[attribute]
            producer.attributes["value"] = ir.AttrTensor("value", tensor)
    stale = set(changed)  # what was observed of values that are computed from these holds no longer
    for node in walk(program.model.graph):
        if node.op_type not in READS_SIZES and any(value is not None and value.name in stale for value in node.inputs):
            stale |= {value.name for value in node.outputs if value.name in program.fixed}
    return dataclasses.replace(
        program,
        model=model,
        small={name: array for name, array in program.small.items() if name not in stale},
        live=tuple(nodes[node.outputs[0].name] for node in program.live),
        bodies={
            graphs[graph]: dataclasses.replace(body, graph=graphs[graph], node=nodes[body.node.outputs[0].name])
            for graph, body in program.bodies.items()
        },
        same={name: values[value.name or ""] for name, value in program.same.items()},
        _evaluated={},
        _parameters=dict(program._parameters),
    )
