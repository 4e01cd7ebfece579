"""Writing a model as an ONNX file: atomic, the same bytes for the same model, one tensor in memory at a time."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from graphprune.errors import InputError, UsageError
from graphprune.ir.files import atomic_files, sha256_of
from graphprune.ir.wire import field_head

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["EXTERNAL_THRESHOLD", "external_locations", "sha256_of", "write_onnx"]

#: Above this many bytes of tensors a model is written with its data beside it; protobuf itself ends at 2 GiB.
EXTERNAL_THRESHOLD = 1_500_000_000
_PROTOBUF_LIMIT = 2**31 - 1
_ALIGNMENT = 4096
# Tensors up to this size stay in the model file: shapes and scalars must be readable without the data file.
_SMALL = 1024


def write_onnx(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    external: bool | None = None,
    threshold: int = EXTERNAL_THRESHOLD,
    max_shard_size: int | None = None,
) -> tuple[Path, ...]:
    """Write a model atomically, as the same bytes for the same model, with one tensor in memory at a time.

    Args:
        model: lazy and external initialisers are read one by one while they are written; the model is left as it was.
        path: the ``.onnx`` file; its folder must exist.
        external: put the tensors into ``<path>.data``; by default only where they take more than ``threshold`` bytes.
        threshold: in bytes.
        max_shard_size: in bytes; tensors that take more are put into several files ``<stem>-00001-of-00003.onnx.data``,
            none of them larger, unless a single tensor is.

    Returns:
        The files written, the model last.

    Raises:
        UsageError: a file cannot be written, would overwrite data that the model still reads, or exceeds what one
            protobuf file can hold (2 GiB) with ``external=False``.
    """
    import onnx_ir as ir

    target = Path(path)
    tensors = [tensor for tensor, _, _ in _places(model)]
    total = sum(tensor.nbytes for tensor in tensors if tensor.dtype != ir.DataType.STRING)
    if external is None:
        external = total > min(threshold, max_shard_size or threshold)
    layout = _Layout.of(tensors, max_shard_size) if external else _Layout((), {})
    data = layout.files(target)
    for tensor in tensors:
        if isinstance(tensor, ir.ExternalTensor) and any(_same_file(tensor.path, out) for out in (target, *data)):
            raise UsageError(f"cannot write '{target}': the model reads '{tensor.path}'; choose another folder")

    spliced: dict[str, ir.TensorProtocol] = {}

    def stand_in(tensor: ir.TensorProtocol, initialiser: str | None) -> ir.TensorProtocol:
        if id(tensor) in layout.places:
            file, offset = layout.places[id(tensor)]
            return _reference(tensor, data[file].name, offset)
        if not external and initialiser is not None and _streamable(tensor):
            spliced[initialiser] = tensor
            return _reference(tensor, "", 0)
        if isinstance(tensor, ir.ExternalTensor):
            return ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)
        return tensor

    with _replaced(model, stand_in):
        proto = ir.to_proto(model)
    inputs = {one.name for one in proto.graph.input}
    if proto.ir_version < 4 and any(one.name not in inputs for one in proto.graph.initializer):
        proto.ir_version = 4  # the first one in which initialisers need not be listed as inputs
    with atomic_files(*data, target) as files:
        for tensor in layout.tensors:
            file, offset = layout.places[id(tensor)]
            files[file].seek(offset)
            _write_tensor(tensor, files[file])
        _write_proto(proto, spliced, files[-1], target)
    return (*data, target)


def _streamable(tensor: ir.TensorProtocol) -> bool:
    import onnx_ir as ir

    return tensor.dtype != ir.DataType.STRING and tensor.nbytes > _SMALL


@dataclass(frozen=True)
class _Layout:
    """Where each tensor goes in the data files. ``places``: identity of a tensor -> index of its file, offset there."""

    tensors: tuple[ir.TensorProtocol, ...]
    places: Mapping[int, tuple[int, int]]  # by identity: a tensor that is used twice is written once

    @classmethod
    def of(cls, tensors: Iterable[ir.TensorProtocol], limit: int | None) -> _Layout:
        """Fill one file after the other in the tensors' order."""
        queue: list[ir.TensorProtocol] = []
        places: dict[int, tuple[int, int]] = {}
        file = end = 0
        for tensor in tensors:
            if id(tensor) in places or not _streamable(tensor):
                continue
            offset = -(-end // _ALIGNMENT) * _ALIGNMENT
            if limit is not None and offset and offset + tensor.nbytes > limit:
                file, offset = file + 1, 0
            places[id(tensor)] = (file, offset)
            end = offset + tensor.nbytes
            queue.append(tensor)
        return cls(tuple(queue), places)

    def files(self, target: Path) -> tuple[Path, ...]:
        """The data files of a model file, in their order."""
        count = 1 + max((file for file, _ in self.places.values()), default=-1)
        if count == 1:
            return (target.with_name(f"{target.name}.data"),)
        names = (f"{target.stem}-{number:05}-of-{count:05}{target.suffix}.data" for number in range(1, count + 1))
        return tuple(target.with_name(name) for name in names)


def _same_file(first: str | os.PathLike[str], second: Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False


def _reference(tensor: ir.TensorProtocol, location: str, offset: int) -> ir.ExternalTensor:
    import onnx_ir as ir

    return ir.ExternalTensor(
        location,
        offset=offset,
        length=tensor.nbytes,
        dtype=tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


_Place = tuple["ir.TensorProtocol", "str | None", "Callable[[ir.TensorProtocol], Callable[[], None]]"]


def _places(model: ir.Model) -> Iterator[_Place]:
    """Every tensor of a model, its name if it is an initialiser of the main graph, and how to exchange it.

    Exchanging returns a function that puts the original back.
    """
    import onnx_ir as ir

    bodies = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in (inner for body in bodies for inner in (body, *body.subgraphs())):
        for value in graph.initializers.values():
            if value.const_value is None:
                raise InputError(f"initialiser {value.name!r} has no value, so the model cannot be written")
            name = value.name if graph is model.graph else None
            yield value.const_value, name, functools.partial(_exchange_initialiser, value)
        for node in graph:
            for attribute in tuple(node.attributes.values()):
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    yield (
                        attribute.as_tensor(),
                        None,
                        functools.partial(_exchange_attribute, node, attribute.name, None),
                    )
                elif attribute.type == ir.AttributeType.TENSORS:
                    for index, tensor in enumerate(attribute.as_tensors()):
                        yield tensor, None, functools.partial(_exchange_attribute, node, attribute.name, index)


def _exchange_initialiser(value: ir.Value, new: ir.TensorProtocol) -> Callable[[], None]:
    old = value.const_value
    value.const_value = new
    return functools.partial(setattr, value, "const_value", old)


def _exchange_attribute(node: ir.Node, name: str, index: int | None, new: ir.TensorProtocol) -> Callable[[], None]:
    import onnx_ir as ir

    old = node.attributes[name]
    if index is None:
        content: ir.TensorProtocol | list[ir.TensorProtocol] = new
    else:
        content = [*old.as_tensors()]
        content[index] = new
    node.attributes[name] = ir.Attr(name, old.type, content, doc_string=old.doc_string)
    return functools.partial(node.attributes.__setitem__, name, old)


@contextlib.contextmanager
def _replaced(
    model: ir.Model, stand_in: Callable[[ir.TensorProtocol, str | None], ir.TensorProtocol]
) -> Iterator[None]:
    """Exchange tensors of a model for the length of a block."""
    undo: list[Callable[[], None]] = []
    try:
        for tensor, initialiser, exchange in list(_places(model)):
            new = stand_in(tensor, initialiser)
            if new is not tensor:
                undo.append(exchange(new))
        yield
    finally:
        for put_back in reversed(undo):
            put_back()


def _write_tensor(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    start = file.tell()
    to_file = getattr(tensor, "tofile", None)  # not in the protocol; copies external data without mapping it
    if to_file is not None:
        try:
            to_file(file)
        except OSError as error:
            if error.errno is not None:
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error  # numpy says how much was written alone
    else:
        file.write(tensor.tobytes())
    written = file.tell() - start
    if written != tensor.nbytes:
        raise InputError(f"tensor {tensor.name!r} of shape {tensor.shape} gave {written} bytes, not {tensor.nbytes}")


def _write_proto(proto: onnx.ModelProto, spliced: dict[str, ir.TensorProtocol], file: BinaryIO, target: Path) -> None:
    """Write a ModelProto, streaming the named initialisers into it.

    protobuf can only serialise a whole message in memory. The graph and its initialisers are therefore framed here (a
    field is its tag, its length and its bytes; fields may come in any order), and everything else by protobuf.
    """
    pieces: list[tuple[bytes, ir.TensorProtocol | None]] = []
    graph_size = 0
    for initialiser in proto.graph.initializer:
        tensor = spliced.get(initialiser.name)
        if tensor is not None:
            initialiser.ClearField("external_data")
            initialiser.ClearField("data_location")
        body = initialiser.SerializeToString(deterministic=True)
        payload = 0
        if tensor is not None:
            payload = tensor.nbytes
            body += field_head(initialiser.RAW_DATA_FIELD_NUMBER, payload)
        piece = field_head(proto.graph.INITIALIZER_FIELD_NUMBER, len(body) + payload) + body
        pieces.append((piece, tensor))
        graph_size += len(piece) + payload
    proto.graph.ClearField("initializer")
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    head = proto.SerializeToString(deterministic=True)
    head += field_head(proto.GRAPH_FIELD_NUMBER, len(graph) + graph_size)
    if len(head) + len(graph) + graph_size > _PROTOBUF_LIMIT:
        raise UsageError(
            f"cannot write '{target}': its {len(head) + len(graph) + graph_size} bytes are more than one ONNX file can "
            "hold (2 GiB); write it with external data"
        )
    file.write(head)
    file.write(graph)
    for piece, tensor in pieces:
        file.write(piece)
        if tensor is not None:
            _write_tensor(tensor, file)


def external_locations(model: ir.Model) -> tuple[str, ...]:
    """The external data files that a model reads, as they are named in it, sorted."""
    import onnx_ir as ir

    tensors = (tensor for tensor, _, _ in _places(model))
    return tuple(sorted({os.fspath(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}))
