"""An ONNX file prepared for TensorRT's parser; the file itself is only read.

Folding, pruning of dead nodes and sorting are onnx-graphsurgeon's work.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from graphprune.errors import InputError, UsageError
from graphprune.ir.clean import clean, sweep
from graphprune.ir.program import attribute, constant_tensor

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["prepare"]


def prepare(path: str | os.PathLike[str]) -> ir.Model:
    """The network of an ONNX file in the form that TensorRT's parser wants, in memory.

    What exporters write for other runtimes is rewritten (``SplitToSequence``, ``CastLike``), what does not depend on
    the inputs becomes an initialiser (the parser insists on it for axes, pads and repeats), nodes that nothing needs
    go, the others stand in order and have names of their own. Inputs and outputs stay, as do the metadata, which
    graphsurgeon has no place for.

    Raises:
        InputError: the file cannot be read, or graphsurgeon cannot take it.
        UsageError: onnx-graphsurgeon is not installed.
    """
    import onnx
    import onnx_ir as ir

    try:
        import onnx_graphsurgeon as gs
        from onnx_graphsurgeon.logger import G_LOGGER
    except ImportError as error:
        raise UsageError("the tensorrt backend needs onnx-graphsurgeon: pip install onnx-graphsurgeon") from error
    try:
        source = ir.from_proto(onnx.load(os.fspath(path)))
    except Exception as error:  # protobuf, the checks of external data and the system each raise their own
        raise InputError(f"{path}: it cannot be read: {error}") from error
    clean(source)
    severity = G_LOGGER.severity
    try:
        G_LOGGER.severity = G_LOGGER.CRITICAL
        with _quiet_runtime():
            graph = gs.import_onnx(ir.to_proto(source)).toposort()
            # fold_shapes=True would take the start and end of a Shape node for absent, and so fold it to a wrong value.
            graph.fold_constants(fold_shapes=False, error_ok=True)
            graph.cleanup(remove_unused_graph_inputs=False).toposort()
            prepared: ir.Model = ir.from_proto(gs.export_onnx(graph, do_type_check=False))
    except Exception as error:  # it raises whatever its own code meets
        raise InputError(f"{path}: onnx-graphsurgeon cannot prepare it for TensorRT: {error}") from error
    finally:
        G_LOGGER.severity = severity
    prepared.metadata_props.update(source.metadata_props)
    prepared.domain, prepared.model_version, prepared.doc_string = (
        source.domain,
        source.model_version,
        source.doc_string,
    )
    prepared.graph.name, prepared.graph.doc_string = source.graph.name, source.graph.doc_string
    _fold_biases(prepared)
    _unique_names(prepared)
    return prepared


@contextlib.contextmanager
def _quiet_runtime() -> Iterator[None]:
    """Folding runs pieces of the graph on ONNX Runtime, which tells of every node that its own optimiser leaves."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # its default; there is no way to ask for the value before


def _fold_biases(model: ir.Model) -> None:
    """Biases that a quantised network holds as int32 become float32: TensorRT dequantises up to 8 bits only.

    graphsurgeon folds nothing quantised, so that the patterns that TensorRT looks for stay.
    """
    import numpy as np
    import onnx_ir as ir

    for node in list(model.graph):
        if (
            node.op_type != "DequantizeLinear"
            or node.domain not in ("", "ai.onnx")
            or node.outputs[0].is_graph_output()
        ):
            continue
        tensors = [None if value is None else constant_tensor(value) for value in node.inputs]
        if (
            tensors[0] is None
            or tensors[0].dtype != ir.DataType.INT32
            or any(tensor is None for tensor, value in zip(tensors, node.inputs, strict=True) if value is not None)
        ):
            continue
        data, *others = (tensor.numpy() for tensor in tensors if tensor is not None)
        shape = [1] * data.ndim
        if others[0].ndim == 1 and others[0].size > 1:
            shape[int(attribute(node, "axis", 1)) if data.ndim > 1 else 0] = -1
        scale, *zero = (other.reshape(shape) for other in others)
        values = (data - zero[0] if zero else data).astype(np.float32) * scale.astype(np.float32)
        old, name = node.outputs[0], node.outputs[0].name
        new = ir.Value(name=f"{name}/folded", shape=ir.Shape(values.shape), type=ir.TensorType(ir.DataType.FLOAT))
        new.const_value = ir.Tensor(values.reshape(data.shape), name=new.name)
        model.graph.register_initializer(new)
        old.replace_all_uses_with(new)
    sweep(model)


def _unique_names(model: ir.Model) -> None:
    """TensorRT's layers, and with them its errors and profiles, are told apart by the names of nodes alone."""
    nodes = list(model.graph.all_nodes())
    count = Counter(node.name for node in nodes)
    taken = set(count)
    for node in nodes:
        if node.name and count[node.name] == 1:
            continue
        stem, number = node.name or node.op_type, 1
        while f"{stem}_{number}" in taken:
            number += 1
        node.name = f"{stem}_{number}"
        taken.add(node.name)
