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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import GraphpruneError, InputError
from graphprune.frontends.functions import Body, bodies, check_functions, inline_functions, node_name
from graphprune.ir.files import ExternalFolder, tensor_nbytes

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["read_message", "read_onnx"]

_log = logging.getLogger(__name__)

_PROTOBUF_LIMIT = 2**31 - 1

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
    proto = _parse(source)
    try:
        return _to_ir(proto, ExternalFolder(source.parent))
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


def _parse(source: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    content = _read_bytes(source)
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
    return proto


def _read_bytes(source: Path) -> bytes:
    try:
        status = os.stat(source)
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
        return source.read_bytes()
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
    position = 0
    while position < len(content):
        tag, position = _varint(content, position)
        number, wire = tag >> 3, tag & 7
        value, position = _varint(content, position) if wire in (0, 2) else (0, -1)
        if not 1 <= number <= 26 or position < 0:
            return foreign
        if wire == 2:
            left = len(content) - position
            if value > left:
                part = "graph" if number == 7 else f"field {number}"
                return f"is cut short: its {part} takes {value} bytes, but only {left} are there"
            position += value
    return foreign


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """The number at a position and where it ends; -1 where none ends."""
    value = 0
    for index, byte in enumerate(content[position : position + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    return 0, -1


def _to_ir(proto: onnx.ModelProto, folder: ExternalFolder) -> ir.Model:
    import onnx_ir as ir

    if proto.training_info:
        _log.warning("training_info is left out: its references to weights would not survive a cut")
        proto.ClearField("training_info")
    for body in bodies(proto):
        _check_text(body, proto)
        for tensor, where in _tensors(body):
            _check_tensor(tensor, where, folder)
        _densify(body, folder)
    names: dict[Body, set[str]] = {}
    for body in bodies(proto):
        names[body] = _declared(body)
        _check_reads(body, [names[scope] for scope in (body, *body.outer)])
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
    return model


def _tensors(body: Body) -> Iterator[tuple[onnx.TensorProto, str]]:
    """The tensors of one body (not of its subgraphs), each with what messages call it."""
    if body.graph is not None:
        for tensor in body.graph.initializer:
            yield tensor, f"tensor {tensor.name!r}"
        for sparse in body.graph.sparse_initializer:
            yield sparse.values, f"values of sparse tensor {sparse.values.name!r}"
            yield sparse.indices, f"indices of sparse tensor {sparse.values.name!r}"
    for node in body.proto.node:
        for attribute in node.attribute:
            where = f"tensor attribute {attribute.name!r} of {node_name(node)}"
            inner = [attribute.t] if attribute.HasField("t") else []
            for tensor in (*inner, *attribute.tensors):
                yield tensor, where
            sparse_inner = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for sparse in (*sparse_inner, *attribute.sparse_tensors):
                yield sparse.values, f"values in {where}"
                yield sparse.indices, f"indices in {where}"


def _check_text(body: Body, proto: onnx.ModelProto) -> None:
    """Refuse text that is not UTF-8: protobuf hands it over as bytes, which then equal no name."""
    for text in _texts(body, proto):
        if isinstance(text, bytes):
            raise InputError(f"{body.where} holds text that is not UTF-8: {text!r}; the file is damaged")


def _texts(body: Body, proto: onnx.ModelProto) -> Iterator[object]:
    described: list[Any] = [body.proto, *body.proto.node, *body.proto.value_info]
    if body.graph is None:
        yield from (*body.proto.input, *body.proto.output)
    else:
        described += [*body.graph.input, *body.graph.output]
    if body.graph is proto.graph:
        yield from (proto.producer_name, proto.producer_version, proto.domain, proto.doc_string)
        yield from _properties(proto.metadata_props)
    for message in described:
        yield from (message.name, message.doc_string)
        yield from _properties(message.metadata_props)
    for node in body.proto.node:
        yield from (node.op_type, node.domain, node.overload, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    for tensor, _ in _tensors(body):
        yield tensor.name
        yield from _properties(tensor.external_data)


def _properties(entries: Iterable[onnx.StringStringEntryProto]) -> Iterator[object]:
    for entry in entries:
        yield from (entry.key, entry.value)


def _check_tensor(tensor: onnx.TensorProto, where: str, folder: ExternalFolder) -> None:
    """Refuse a tensor whose shape, type and data do not fit together."""
    if tensor.data_type not in tensor.DataType.values() or tensor.data_type == tensor.UNDEFINED:
        raise InputError(f"{where} has data type {tensor.data_type}, which ONNX does not define")
    if any(size < 0 for size in tensor.dims):
        raise InputError(f"{where} has a negative size in its shape {list(tensor.dims)}")
    if tensor.data_location == tensor.EXTERNAL:
        folder.check(tensor, where)
        return
    found, needed, unit = _inline_extent(tensor)
    if found != needed:
        kind = tensor.DataType.Name(tensor.data_type)
        raise InputError(f"{where} of shape {list(tensor.dims)} and type {kind} needs {needed} {unit}, but has {found}")


def _inline_extent(tensor: onnx.TensorProto) -> tuple[int, int, str]:
    """How much data a tensor holds in its message, how much it should, and in what unit."""
    import onnx

    size = math.prod(tensor.dims)
    if tensor.data_type != tensor.STRING and (stored := len(tensor.raw_data)):
        return stored, tensor_nbytes(tensor.data_type, tensor.dims), "bytes"
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    bits = 8 if tensor.data_type == tensor.STRING else tensor_nbytes(tensor.data_type, [8])
    if bits in (2, 4):  # packed, 8 // bits to an entry
        size = -(-size * bits // 8)
    elif tensor.data_type in (tensor.COMPLEX64, tensor.COMPLEX128):
        size *= 2
    return len(getattr(tensor, field)), size, "values"


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


def _declared(body: Body) -> set[str]:
    """The names that a body gives to values; a name given twice is refused."""
    names: set[str] = set()

    def declare(name: str, what: str) -> None:
        if name in names:
            raise InputError(f"two values of {body.where} are called {name!r}: the second is {what}")
        names.add(name)

    if body.graph is None:
        for parameter in body.proto.input:
            declare(str(parameter), "an input")
    else:
        for value in body.graph.input:
            declare(value.name, "an input")
        inputs = frozenset(names)
        stored: set[str] = set()
        for tensor in body.graph.initializer:
            if not tensor.name:
                raise InputError(f"a tensor of shape {list(tensor.dims)} in {body.where} has no name")
            if tensor.name in stored or tensor.name not in inputs:  # an initialiser may be an input's default
                declare(tensor.name, "an initialiser")
            stored.add(tensor.name)
    for node in body.proto.node:
        for output in node.output:
            if output:
                declare(output, f"an output of {node_name(node)}")
    return names


def _check_reads(body: Body, scopes: list[set[str]]) -> None:
    """Refuse a body that reads a value which nothing produces."""

    def known(name: str) -> bool:
        return any(name in scope for scope in scopes)

    for node in body.proto.node:
        for name in node.input:
            if name and not known(name):
                raise InputError(f"{node_name(node)} reads {name!r}, which nothing in {body.where} produces")
    for output in body.proto.output if body.graph is None else (value.name for value in body.graph.output):
        if not known(str(output)):
            raise InputError(f"output {output!r} of {body.where} is produced by nothing")
