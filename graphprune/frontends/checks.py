"""What is checked of an ONNX message before anything is built from it: text, nodes, tensors, names, who reads what."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from graphprune.errors import InputError
from graphprune.frontends.functions import Body, node_name
from graphprune.ir.files import ExternalFolder, tensor_nbytes

if TYPE_CHECKING:
    import onnx

__all__ = [
    "check_inputs",
    "check_nodes",
    "check_operands",
    "check_reads",
    "check_tensor",
    "check_text",
    "declared",
    "tensors",
]

_LONGEST_NAME = 8192  # characters; the longest that exporters write have some hundreds
_MOST_AXES = 32  # of an array in every numpy
_MOST_ELEMENTS = 2**58  # their bytes can still be counted in 63 bits


def tensors(body: Body) -> Iterator[tuple[onnx.TensorProto, str]]:
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


def check_text(body: Body, proto: onnx.ModelProto) -> None:
    """Refuse text that is not UTF-8 (protobuf hands it over as bytes, which then equal no name) and endless names."""
    for text in _texts(body, proto):
        if isinstance(text, bytes):
            raise InputError(f"{body.where} holds text that is not UTF-8: {text[:100]!r}; the file is damaged")
    for name in _names(body):
        if len(name) > _LONGEST_NAME:
            raise InputError(
                f"{body.where} has a name of {len(name)} characters, more than {_LONGEST_NAME}: '{name[:40]}...'"
            )


def _names(body: Body) -> Iterator[Any]:
    yield body.proto.name
    values = [*body.proto.value_info]
    for node in body.proto.node:
        yield from (node.name, node.op_type, node.domain, node.overload, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    if body.graph is None:
        yield from (*body.proto.input, *body.proto.output)
    else:
        values += [*body.graph.input, *body.graph.output]
    for value in values:
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
    yield from (tensor.name for tensor, _ in tensors(body))


def check_inputs(graph: onnx.GraphProto) -> None:
    """Refuse inputs of the main graph that nobody could feed: without a name, or without a type."""
    stored = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if not value.name:
            raise InputError("an input of the graph has no name")
        if value.name in stored:
            continue
        kind = value.type.WhichOneof("value")
        tensor = value.type.tensor_type
        if kind is None or (kind == "tensor_type" and not _defined(tensor.elem_type)):
            raise InputError(f"input {value.name!r} of the graph has no type that ONNX defines")
        if len(tensor.shape.dim) > _MOST_AXES:
            raise InputError(
                f"input {value.name!r} of the graph has {len(tensor.shape.dim)} axes, more than {_MOST_AXES}"
            )


def check_nodes(body: Body) -> None:
    """Refuse nodes without an operator, and attributes without a name or a type, or that are given twice."""
    for node in body.proto.node:
        if not node.op_type:
            first = next((repr(name) for name in node.output if name), "nothing")
            raise InputError(f"a node of {body.where} that makes {first} has no operator")
        if any(not one.configuration_id for one in getattr(node, "device_configurations", ())):  # onnx >= 1.18
            raise InputError(f"{node_name(node)} has a device configuration without an id")
        given: set[str] = set()
        for attribute in node.attribute:
            if not attribute.name:
                raise InputError(f"{node_name(node)} has an attribute without a name")
            if attribute.name in given:
                raise InputError(f"{node_name(node)} has two attributes called {attribute.name!r}")
            given.add(attribute.name)
            if attribute.type == attribute.UNDEFINED:
                raise InputError(f"attribute {attribute.name!r} of {node_name(node)} has no type")


def _texts(body: Body, proto: onnx.ModelProto) -> Iterator[object]:
    yield from _names(body)
    described: list[Any] = [body.proto, *body.proto.node, *body.proto.value_info]
    if body.graph is not None:
        described += [*body.graph.input, *body.graph.output]
    if body.graph is proto.graph:
        yield from (proto.producer_name, proto.producer_version, proto.domain, proto.doc_string)
        yield from _properties(proto.metadata_props)
        yield from (opset.domain for opset in proto.opset_import)
    for message in described:
        yield message.doc_string
        yield from _properties(message.metadata_props)
    for tensor, _ in tensors(body):
        yield from _properties(tensor.external_data)


def _properties(entries: Iterable[onnx.StringStringEntryProto]) -> Iterator[object]:
    for entry in entries:
        yield from (entry.key, entry.value)


def check_operands(body: Body, proto: onnx.ModelProto) -> None:
    """Refuse nodes of operators that ONNX defines with other numbers of inputs or outputs or types of attributes."""
    import onnx

    outermost = (body.outer or (body,))[0].proto
    imports = outermost.opset_import if isinstance(outermost, onnx.FunctionProto) else proto.opset_import
    versions = {entry.domain: entry.version for entry in imports}
    schemas: dict[tuple[str, str], onnx.defs.OpSchema | None] = {}
    for node in body.proto.node:
        key = (node.op_type, node.domain)
        if key not in schemas:
            try:
                schemas[key] = onnx.defs.get_schema(node.op_type, versions.get(node.domain, 0), node.domain)
            except (onnx.defs.SchemaError, OverflowError, TypeError):  # not ONNX's, or of no version: the runtime says
                schemas[key] = None
        schema = schemas[key]
        if schema is None:
            continue
        for what, given, least, most in (
            ("inputs", len(node.input), schema.min_input, schema.max_input),
            ("outputs", len(node.output), schema.min_output, schema.max_output),
        ):
            if not least <= given <= most:
                bounds = f"{least}" if least == most else f"at least {least}" if given < least else f"at most {most}"
                raise InputError(f"{node_name(node)} has {given} {what}; {node.op_type} takes {bounds}")
        for attribute in node.attribute:
            defined = schema.attributes.get(attribute.name)
            kind: Any = None if defined is None else defined.type  # its type stubs lack value and name
            if kind is not None and attribute.type != kind.value and not attribute.ref_attr_name:
                given, wanted = attribute.AttributeType.Name(attribute.type), kind.name
                raise InputError(f"attribute {attribute.name!r} of {node_name(node)} is of type {given}, not {wanted}")
        for formal, name in zip(schema.inputs, node.input, strict=False):
            if not name and formal.option == onnx.defs.OpSchema.FormalParameterOption.Single:
                raise InputError(f"{node_name(node)} lacks its input {formal.name!r}")


def _defined(data_type: int) -> bool:
    import onnx

    return data_type != onnx.TensorProto.UNDEFINED and data_type in onnx.TensorProto.DataType.values()


def check_tensor(tensor: onnx.TensorProto, where: str, folder: ExternalFolder, mapped: int | None = None) -> None:
    """Refuse a tensor whose shape, type and data do not fit together; ``mapped``: bytes of data left in the file."""
    if not _defined(tensor.data_type):
        raise InputError(f"{where} has data type {tensor.data_type}, which ONNX does not define")
    if len(tensor.dims) > _MOST_AXES:
        raise InputError(f"{where} has {len(tensor.dims)} axes, more than {_MOST_AXES}")
    if any(size < 0 for size in tensor.dims):
        raise InputError(f"{where} has a negative size in its shape {list(tensor.dims)}")
    if math.prod(size for size in tensor.dims if size) > _MOST_ELEMENTS:  # an axis of size 0 would hide the others
        raise InputError(f"{where} of shape {list(tensor.dims)} has more elements than can be counted")
    if tensor.data_location == tensor.EXTERNAL:
        folder.check(tensor, where)
        return
    found, needed, unit = _inline_extent(tensor, mapped)
    if found != needed:
        kind = tensor.DataType.Name(tensor.data_type)
        raise InputError(f"{where} of shape {list(tensor.dims)} and type {kind} needs {needed} {unit}, but has {found}")


def _inline_extent(tensor: onnx.TensorProto, mapped: int | None) -> tuple[int, int, str]:
    """How much data a tensor holds in its message, how much it should, and in what unit."""
    import onnx

    size = math.prod(tensor.dims)
    stored = len(tensor.raw_data) if mapped is None else mapped
    if tensor.data_type != tensor.STRING and stored:
        return stored, tensor_nbytes(tensor.data_type, tensor.dims), "bytes"
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    bits = 8 if tensor.data_type == tensor.STRING else tensor_nbytes(tensor.data_type, [8])
    if bits in (2, 4):  # packed, 8 // bits to an entry
        size = -(-size * bits // 8)
    elif tensor.data_type in (tensor.COMPLEX64, tensor.COMPLEX128):
        size *= 2
    return len(getattr(tensor, field)), size, "values"


def declared(body: Body) -> set[str]:
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


def check_reads(body: Body, scopes: list[set[str]]) -> None:
    """Refuse a body that reads a value which nothing produces."""

    def known(name: str) -> bool:
        return any(name in scope for scope in scopes)

    for node in body.proto.node:
        for name in node.input:
            if name and not known(name):
                raise InputError(f"{node_name(node)} reads {name!r}, which nothing in {body.where} produces")
    # What a graph gives must be its own: a branch that gives a value of the graph around it needs an Identity.
    for name in body.proto.output if body.graph is None else (value.name for value in body.graph.output):
        if name not in scopes[0]:
            why = "is of a graph around it; add an Identity node" if known(str(name)) else "is produced by nothing"
            raise InputError(f"output {name!r} of {body.where} {why}")
