"""Cleaning: bring what exporters leave behind into the form that the rest of the package reads.

Names of values never change, so that plans can speak of the source file's own tensors; but where several bodies give
the same name to different values, the later ones get a name of their own.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from graphprune.ir.nested import graphs_of
from graphprune.ir.program import attribute, constant_tensor, graph_values

__all__ = ["clean", "name_everything", "sweep"]


def clean(model: ir.Model) -> None:
    """Name every value and node, replace casts after a value's type and sequences of splits; in place."""
    for graph in model.graph.subgraphs():  # they are of the outer graph's opset; the container does not say so
        graph.opset_imports.update(model.graph.opset_imports)
    name_everything(model)
    for node in list(model.graph.all_nodes()):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "CastLike":
            _cast(node)
        elif node.op_type == "SplitToSequence":
            _split(model, node)


def name_everything(model: ir.Model) -> None:
    """Give nameless outputs and nodes a name that is not taken, and bodies' values one that no other value has."""
    taken = set(graph_values(model.graph))
    for graph in model.graph.subgraphs():
        for name, value in graph_values(graph).items():
            if name in taken:
                value.name = _free(f"{name}/{graph.name or 'body'}", taken)
            taken.add(value.name or "")
    nodes = {node.name for node in model.graph.all_nodes() if node.name}
    for i, node in enumerate(model.graph.all_nodes()):
        for k, value in enumerate(node.outputs):
            if not value.name and (value.uses() or (k == 0 and graphs_of(node))):
                value.name = _free(f"{node.op_type}_{i}_{k}", taken)
        if not node.name:
            name = next((value.name for value in node.outputs if value.name), f"{node.op_type}_{i}")
            node.name = _free(name, nodes)


def _free(name: str, taken: set[str]) -> str:
    """A name like this one that is not taken; it is from now on."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _cast(node: ir.Node) -> None:
    """CastLike reads a type alone; written as Cast it does not look as if it depended on the other operand."""
    like = node.inputs[1]
    if like is None or like.dtype is None:
        return
    cast = ir.node("Cast", inputs=[node.inputs[0]], attributes={"to": int(like.dtype)}, name=node.name)
    _replace(node, cast)


def _replace(old: ir.Node, new: ir.Node) -> None:
    graph = old.graph
    assert graph is not None
    new.metadata_props.update(old.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, old, [old], [new], old.outputs, new.outputs)


def _split(model: ir.Model, node: ir.Node) -> None:
    """SplitToSequence whose parts are all picked by constant positions is a Split."""
    data, picks = node.inputs[0], [user for user, _ in node.outputs[0].uses()]
    if data is None or data.shape is None or node.outputs[0].is_graph_output():
        return
    axis = int(attribute(node, "axis", 0)) % len(data.shape)
    n = data.shape[axis]
    parts = constant_tensor(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if not isinstance(n, int) or parts is None:
        return
    sizes = parts.numpy().reshape(-1).tolist()
    if parts.numpy().ndim == 0:
        sizes = [sizes[0]] * (n // sizes[0]) + ([n % sizes[0]] if n % sizes[0] else [])
    chosen: dict[int, ir.Node] = {}
    for pick in picks:
        at = constant_tensor(pick.inputs[1]) if pick.op_type == "SequenceAt" and pick.inputs[1] is not None else None
        index = int(at.numpy()) if at is not None else len(sizes)
        if not -len(sizes) <= index < len(sizes) or index % len(sizes) in chosen:
            return
        chosen[index % len(sizes)] = pick
    graph = node.graph
    assert graph is not None and node.name is not None
    given = ir.Value(
        name=f"{node.name}/sizes", const_value=ir.tensor(sizes, dtype=ir.DataType.INT64, name=f"{node.name}/sizes")
    )
    given.shape, given.dtype = ir.Shape([len(sizes)]), ir.DataType.INT64
    model.graph.register_initializer(given)
    split = ir.node("Split", inputs=[data, given], attributes={"axis": axis}, num_outputs=len(sizes), name=node.name)
    split.metadata_props.update(node.metadata_props)
    graph.insert_before(node, split)
    for i, value in enumerate(split.outputs):
        if i in chosen:
            old = chosen[i].outputs[0]
            value.shape, value.type, name = old.shape, old.type, old.name
            old.replace_all_uses_with(value, replace_graph_outputs=True)
            graph.remove(chosen[i], safe=True)
            value.name = name
        else:
            value.name = f"{node.name}/unused_{i}"
    graph.remove(node, safe=True)


def sweep(model: ir.Model) -> None:
    """Remove nodes and initialisers that nothing uses, in bodies as well; in place. Inputs stay."""
    holders = [node for node in model.graph.all_nodes() if graphs_of(node)]
    RemoveUnusedNodesPass()(model)
    for graph in model.graph.subgraphs():
        for name in [name for name, value in graph.initializers.items() if not value.uses()]:
            if not graph.initializers[name].is_graph_output():
                del graph.initializers[name]
    gone = [node for node in holders if node.graph is None]
    for inner in (inner for node in gone for graph in graphs_of(node) for inner in graph.all_nodes()):
        for k in range(len(inner.inputs)):  # the pass takes what the bodies of a removed node captured for used
            inner.replace_input_with(k, None)
    if gone:
        sweep(model)
