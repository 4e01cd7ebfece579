"""An ONNX file becomes an ``onnx_ir.Model``: checked first, weights in external data left on disk.

The checks run on the protobuf message, before ``onnx_ir`` sees it, because the container takes what it can and warns:
here a file that is not sound is refused with one sentence. What the container cannot hold is converted (sparse tensors
become dense) or left out with a note (``training_info``). Local functions are inlined.
"""

from __future__ import annotations

import logging
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from graphprune.errors import GraphpruneError, InputError
from graphprune.frontends.checks import (
    check_inputs,
    check_nodes,
    check_operands,
    check_reads,
    check_tensor,
    check_text,
    declared,
    tensors,
)
from graphprune.frontends.functions import Body, bodies, check_functions, inline_functions, node_name
from graphprune.frontends.outline import Outline, outline
from graphprune.ir.files import ExternalFolder, tensor_nbytes
from graphprune.ir.wire import varint

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["read_message", "read_onnx"]

_log = logging.getLogger(__name__)

_PROTOBUF_LIMIT = 2**31 - 1
_KEYS = ("location", "offset", "length")
_MAPPED = 1 << 26  # bytes of a file from which its weights are left there and mapped

# How the files begin that are most often taken for a model.
_LOOKALIKES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the model; fetch it with `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint?), not an ONNX model"),
    (b"\x1f\x8b", "a gzip archive, not an ONNX model; unpack it"),
    (b"<", "a page of text (HTML or XML), not an ONNX model; was the download complete?"),
)


def read_onnx(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX file safely; external data stays on disk and is mapped when it is used.

    Every reference to external data is checked before a byte of it is touched (see ``ExternalFolder``). IR version,
    opsets, metadata and quantisation annotations are kept. Local functions are inlined, sparse tensors made dense,
    nodes brought into topological order; ``training_info`` is left out with a note, because its references to weights
    would not survive a cut.

    Args:
        path: a binary ``.onnx`` file.

    Returns:
        A model without functions, whose external tensors have the model's absolute folder as their base.

    Raises:
        InputError: the file is not a sound ONNX model; the sentence names the file and what is wrong with it.
    """
    source = Path(path)
    proto, held = _parse(source)
    try:
        return _to_ir(proto, ExternalFolder(source.parent), held)
    except InputError as error:
        raise InputError(f"'{source}': {error}") from error.__cause__


def read_message(message: onnx.ModelProto) -> ir.Model:
    """A model of a message in memory, held to the same checks; external data are looked for in the working folder.

    Raises:
        InputError: the message is not a sound model.
    """
    if lacking := _lacking(message):
        raise InputError(f"the graph is not a complete ONNX model: it has {' and '.join(lacking)}")
    return _to_ir(message, ExternalFolder(Path.cwd()))


def _lacking(message: onnx.ModelProto) -> list[str]:
    """What a complete model has and this one does not."""
    parts = (
        ("no IR version", not message.HasField("ir_version")),
        ("no opset import", not message.opset_import),
        ("no graph", not message.HasField("graph")),
        ("a graph without outputs", message.HasField("graph") and not message.graph.output),
    )
    return [text for text, lacks in parts if lacks]


def _parse(source: Path) -> tuple[onnx.ModelProto, Outline | None]:
    """The message, without the weights that are left in the file."""
    import onnx
    from google.protobuf.message import DecodeError

    size = _checked_size(source)
    held = _reading(source, outline) if size >= _MAPPED else None
    content = held.content if held is not None else _reading(source, Path.read_bytes)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise InputError(f"'{source}' {_why_unreadable(content)}") from error
    if lacking := _lacking(proto):
        look = next((what for start, what in _LOOKALIKES if content.startswith(start)), None)
        raise InputError(
            f"'{source}' is {look}"
            if look
            else f"'{source}' is not a complete ONNX model: it has {' and '.join(lacking)}; it may be cut short"
        )
    return proto, held


def _checked_size(source: Path) -> int:
    status = _reading(source, os.stat)
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"'{source}' is a folder, not an ONNX file")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise InputError(f"'{source}' is not a regular file")
    if status.st_size == 0:
        raise InputError(f"'{source}' is empty")
    if status.st_size > _PROTOBUF_LIMIT:
        raise InputError(
            f"'{source}' has {status.st_size} bytes, more than an ONNX file can hold (2 GiB); "
            "store its weights as external data"
        )
    return status.st_size


_T = TypeVar("_T")


def _reading(source: Path, read: Callable[[Path], _T]) -> _T:
    try:
        return read(source)
    except FileNotFoundError:
        raise InputError(f"'{source}' does not exist") from None
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise InputError(f"'{source}' cannot be read: {reason}") from None


def _why_unreadable(content: bytes) -> str:
    """Tell a model that was cut short from something else: walk the outermost protobuf fields."""
    for start, what in _LOOKALIKES:
        if content.startswith(start):
            return f"is {what}"
    foreign = "is not an ONNX model: protobuf cannot read it"
    position, numbers = 0, set[int]()
    while position < len(content):
        tag, position = varint(content, position)
        number, wire = tag >> 3, tag & 7
        value, position = varint(content, position) if wire in (0, 2) else (0, -1)
        if not 1 <= number <= 26 or position < 0:
            return foreign
        numbers.add(number)
        if wire == 2:
            left = len(content) - position
            if value > left:
                part = "graph" if number == 7 else f"field {number}"
                return f"is cut short: its {part} takes {value} bytes, but only {left} are there"
            position += value
    if 7 in numbers:
        return "is damaged inside its graph, or nested deeper than protobuf reads (100 levels)"
    return foreign


def _to_ir(proto: onnx.ModelProto, folder: ExternalFolder, held: Outline | None = None) -> ir.Model:
    import onnx_ir as ir

    from graphprune.ir.mapped import MappedTensor

    spans = _left_in_file(proto, held)
    if proto.training_info:
        _log.warning("training_info is left out: its references to weights would not survive a cut")
        proto.ClearField("training_info")
    for body in bodies(proto):
        check_nodes(body)
        check_text(body, proto)
        check_operands(body, proto)
        for index, (tensor, where) in enumerate(tensors(body)):  # initialisers first
            span = spans.get(index) if body.graph is proto.graph else None
            check_tensor(tensor, where, folder, None if span is None else span[1])
            _keep_known(tensor)
        _densify(body, folder)
    check_inputs(proto.graph)
    names: dict[Body, set[str]] = {}
    for body in bodies(proto):
        names[body] = declared(body)
        check_reads(body, [names[scope] for scope in (body, *body.outer)])
    functions = check_functions(proto)
    try:
        model = ir.from_proto(proto)
        if functions:
            inline_functions(model)
        model.graph.sort()
    except GraphpruneError:
        raise
    except Exception as error:  # whatever the container cannot take is the file's fault: everything else was checked
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        text = str(cause).strip().splitlines() or [type(cause).__name__]
        raise InputError(f"the model is not sound: {text[0]}") from error
    ir.external_data.set_base_dir(model.graph, folder.path)
    for index, (offset, _) in spans.items():
        assert held is not None
        stored = proto.graph.initializer[index]
        dtype, shape = ir.DataType(stored.data_type), ir.Shape(stored.dims)
        model.graph.initializers[stored.name].const_value = MappedTensor(
            held.mapping, offset, dtype, shape, name=stored.name, doc_string=stored.doc_string
        )
    _describe_initialisers(model)
    return model


def _keep_known(tensor: onnx.TensorProto) -> None:
    """Drop keys of an external reference that ``onnx_ir`` does not read: it would warn of each on many lines."""
    if any(entry.key not in _KEYS for entry in tensor.external_data):
        known = [entry for entry in tensor.external_data if entry.key in _KEYS]
        tensor.ClearField("external_data")
        tensor.external_data.extend(known)


def _left_in_file(proto: onnx.ModelProto, held: Outline | None) -> dict[int, tuple[int, int]]:
    """Where the initialisers' bytes are that stay in the file; what cannot be looked at there is read after all."""
    import onnx_ir as ir

    spans: dict[int, tuple[int, int]] = {}
    if held is None:
        return spans
    without_size = (ir.DataType.UNDEFINED, ir.DataType.STRING)
    whole_bytes = {int(one) for one in ir.DataType if one not in without_size and one.bitwidth % 8 == 0}
    for index, (offset, length) in held.spans.items():
        tensor = proto.graph.initializer[index]
        if tensor.data_type in whole_bytes and tensor.data_location != tensor.EXTERNAL:
            spans[index] = (offset, length)
        else:
            tensor.raw_data = held.mapping[offset : offset + length]
    return spans


def _describe_initialisers(model: ir.Model) -> None:
    """Give initialisers the shape and type of their data; where they are listed as inputs, the list may say others."""
    import onnx_ir as ir

    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if (held := value.const_value) is not None:
                value.shape, value.dtype = ir.Shape(held.shape.numpy()), held.dtype


def _densify(body: Body, folder: ExternalFolder) -> None:
    """Replace stored sparse tensors, which ``onnx_ir`` does not hold, by dense ones."""
    if body.graph is not None:
        for sparse in body.graph.sparse_initializer:
            body.graph.initializer.append(_dense(sparse, f"sparse tensor {sparse.values.name!r}", folder))
        body.graph.ClearField("sparse_initializer")
    for node in body.proto.node:
        for attribute in node.attribute:
            where = f"attribute {attribute.name!r} of {node_name(node)}"
            if attribute.sparse_tensors or (attribute.HasField("sparse_tensor") and node.op_type != "Constant"):
                raise InputError(f"{where} is a sparse tensor; store it dense")
            if attribute.HasField("sparse_tensor"):
                attribute.t.CopyFrom(_dense(attribute.sparse_tensor, where, folder))
                attribute.ClearField("sparse_tensor")
                attribute.name, attribute.type = "value", attribute.TENSOR


def _dense(sparse: onnx.SparseTensorProto, where: str, folder: ExternalFolder) -> onnx.TensorProto:
    import numpy as np
    import onnx_ir as ir

    dims = tuple(sparse.dims)
    if sparse.values.data_type == sparse.values.STRING or any(size < 0 for size in dims):
        raise InputError(f"{where} of shape {list(dims)} cannot be made dense")
    if (needed := tensor_nbytes(sparse.values.data_type, dims)) > _PROTOBUF_LIMIT:
        raise InputError(f"{where} of shape {list(dims)} would take {needed} bytes when made dense, more than 2 GiB")
    values, indices = (
        ir.serde.deserialize_tensor(part, base_path=folder.path).numpy() for part in (sparse.values, sparse.indices)
    )
    count, rank = values.size, len(dims)
    if indices.dtype != np.int64 or indices.shape not in ((count,), (count, rank)):
        raise InputError(
            f"{where}: indices of shape {list(indices.shape)} and type {indices.dtype} do not fit {count} values of a "
            f"tensor of shape {list(dims)}; expected int64 [{count}] or [{count}, {rank}]"
        )
    bounds = np.array(dims if indices.ndim == 2 else math.prod(dims), dtype=np.int64)
    if count and not ((indices >= 0) & (indices < bounds)).all():
        raise InputError(f"{where}: an index lies outside its shape {list(dims)}")
    dense = np.zeros(dims, dtype=values.dtype)
    if indices.ndim == 2:
        dense[tuple(indices.T)] = values.reshape(-1)
    else:
        dense.reshape(-1)[indices] = values.reshape(-1)
    _log.info("%s of shape %s is stored dense from here on", where, list(dims))
    kind = ir.DataType(sparse.values.data_type)
    return ir.serde.serialize_tensor(ir.Tensor(dense, dtype=kind, name=sparse.values.name))
