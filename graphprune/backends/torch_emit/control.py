"""If, Loop and Scan."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from graphprune.backends.torch_emit.parameters import legal
from graphprune.backends.torch_emit.registry import Refuse, emits
from graphprune.backends.torch_emit.view import View
from graphprune.backends.torch_ops import control
from graphprune.ir.nested import bodies, scan_axes


def _known(v: View, graph: ir.Graph) -> None:
    body = v.writer.program.bodies.get(graph)
    if body is None or not body.known:
        why = body.reason if body is not None and body.reason else "it is never run on the inputs observed"
        raise Refuse(f"nothing is known of one of its bodies: {why}")


def _call(v: View, module: Any, parts: dict[str, Any], *operands: Any) -> Any:
    """The module at a path of its own; ``parts`` are the writers of its bodies by their attribute."""
    path = v.writer.module(legal(v.node.name or v.op), module, {})
    for attribute, writer in parts.items():
        for inner, names in writer.parameters.items():
            v.writer.parameters[f"{path}.{attribute}.{inner}"] = names
    return v.outputs(v.writer.graph.call_module(path, operands))


@emits("If")
def _if(v: View) -> Any:
    """The branch that is always taken, where there is one; else both, or the only one that runs on such inputs."""
    program, (first, second) = v.writer.program, bodies(v.node)
    known = [program.bodies[one] for one in (first, second) if one in program.bodies]
    fixed = v.name(0) in program.fixed | program.sizes
    taken = [body for body in known if body.repeats]
    if fixed and len(known) == 2 and len(taken) == 1 and taken[0].known:
        return v.writer.inline(taken[0].graph)
    usable = [body for body in known if body.known]
    if len(usable) == 1:
        v.call(control.expect, v.x(0), usable[0].graph is first, v.node.name or v.op).meta["kept"] = True
        return v.writer.inline(usable[0].graph)
    for graph in (first, second):
        _known(v, graph)
    (then, then_module), (other, other_module) = v.writer.body(first), v.writer.body(second)
    captured = [v.writer.tensor(name) for name in (*then.captured, *other.captured)]
    module = control.If(then_module, other_module, len(then.captured))
    return _call(v, module, {"then_branch": then, "else_branch": other}, v.x(0), *captured)


@emits("Loop")
def _loop(v: View) -> Any:
    (graph,) = bodies(v.node)
    _known(v, graph)
    writer, body = v.writer.body(graph)
    carried = [v.x(k) for k in range(2, v.count)]
    first = [v.arg(k) if v.has(k) else None for k in (0, 1)]
    captured = [v.writer.tensor(name) for name in writer.captured]
    return _call(v, control.Loop(body, len(carried)), {"body": writer}, *first, *carried, *captured)


@emits("Scan")
def _scan(v: View) -> Any:
    (graph,) = bodies(v.node)
    _known(v, graph)
    if v.opset < 9:
        raise Refuse("before opset 9 it runs over a batch")
    states, axes, out_axes = scan_axes(v.node, graph)
    writer, body = v.writer.body(graph)
    backwards = [int(n) for n in v.attr("scan_input_directions") or [0] * len(axes)]
    out_backwards = [int(n) for n in v.attr("scan_output_directions") or [0] * len(out_axes)]
    captured = [v.writer.tensor(name) for name in writer.captured]
    module = control.Scan(body, states, axes, backwards, out_axes, out_backwards)
    return _call(v, module, {"body": writer}, *(v.x(k) for k in range(v.count)), *captured)
