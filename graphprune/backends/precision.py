"""A float32 network cast to float16 or bfloat16 in the file, for runtimes that take the types as they are written.

The type constraints of the operators decide (ONNX specification), not a list of operators: an operand is narrowed where
the operator may have it in the narrow type, in its newest version, since runtimes that read bfloat16 at all do not mind
an older opset. (onnxruntime's converter knows float16 alone and clips what overflows; nvidia-modelopt's asks for older
versions of onnx and its own build of onnxruntime.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from graphprune.errors import UsageError
from graphprune.ir.clean import sweep
from graphprune.ir.program import constant_tensor

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["Narrowing", "narrow"]

_TYPES = {"fp16": ("FLOAT16", "tensor(float16)"), "bf16": ("BFLOAT16", "tensor(bfloat16)")}
_DOMAINS = ("", "ai.onnx")
_VALUE_FREE = ("Shape", "Size")  # their results do not depend on what is in the operand
_FEW = 64  # elements of a constant that may be part of a computation of sizes


@dataclass(frozen=True)
class Narrowing:
    """What a cast did.

    Attributes:
        precision: ``fp16`` or ``bf16``.
        narrowed: how many nodes compute in it.
        kept: node name -> why it stays in float32, of the nodes with float32 operands.
    """

    precision: str
    narrowed: int
    kept: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """All fields, in JSON types."""
        return {"precision": self.precision, "narrowed": self.narrowed, "kept": dict(self.kept)}


def narrow(model: ir.Model, precision: str, keep: Sequence[str] = ()) -> Narrowing:
    """Cast a network to float16 or bfloat16, in place; the types of its inputs and outputs stay.

    In float32 stay: nodes that ``keep`` names; nodes with a constant that the narrow type cannot hold (too large for
    it, or a single number that would become 0); nodes that compute sizes; operands that the operator has in float32
    only; operators of other domains; the bodies of control flow. Values that overflow for some input are not foreseen.

    Args:
        model: its nodes sorted and named.
        precision: ``fp16`` or ``bf16``.
        keep: patterns of node names, or operators.

    Raises:
        UsageError: another precision, or a pattern that fits no node.
    """
    if precision not in _TYPES:
        raise UsageError(f"precision {precision!r}: a network can be cast to {' or '.join(_TYPES)}.")
    return _Narrow(model, precision, tuple(keep)).run()


class _Narrow:
    def __init__(self, model: ir.Model, precision: str, keep: tuple[str, ...]) -> None:
        import ml_dtypes
        import numpy as np
        import onnx_ir as ir

        self.model, self.precision, self.keep = model, precision, keep
        name, self.thin_text = _TYPES[precision]
        self.wide, self.thin = ir.DataType.FLOAT, ir.DataType[name]
        self.array_type: Any = np.float16 if precision == "fp16" else ml_dtypes.bfloat16
        self.largest = float(ml_dtypes.finfo(self.array_type).max)  # type: ignore[no-untyped-call]
        self.opset = model.opset_imports.get("") or model.opset_imports.get("ai.onnx") or 1
        self.kept: dict[str, str] = {}
        self.narrowed: set[ir.Value] = set()  # by this cast, not by the file
        self.copies: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.sizes: set[ir.Value] = set()

    def run(self) -> Narrowing:
        from onnx_ir.passes.common import ShapeInferencePass

        ShapeInferencePass()(self.model)  # for the types of the values
        nodes = list(self.model.graph)
        for pattern in self.keep:
            if not any(_fits(node, pattern) for node in nodes):
                raise UsageError(f"keep-fp32: {pattern!r} fits no node and no operator of the network.")
        count = sum(self._node(node) for node in nodes)
        sweep(self.model)
        return Narrowing(self.precision, count, self.kept)

    def _node(self, node: ir.Node) -> bool:
        """Narrow a node's operands and results where that can be; True if one of them was."""
        values = [value for value in node.inputs if value is not None]
        from_sizes = any(value in self.sizes for value in values) and all(map(self._may_be_size, values))
        if node.op_type in _VALUE_FREE or (from_sizes and not _bodies(node)):  # bodies take more from outside
            self.sizes.update(node.outputs)
        ours = {
            k: value
            for k, value in enumerate(node.inputs)
            if value is not None and (value.dtype == self.wide or value in self.narrowed)
        }
        operands, results, reason = self._choice(node, ours)
        if reason:
            self.kept[node.name or ""] = reason
        for k, value in ours.items():
            node.replace_input_with(k, self._as(value, self.thin if k in operands else self.wide))
        for k in results:
            self._narrow_result(node.outputs[k])
        self._captures(node)
        return bool(operands)

    def _choice(self, node: ir.Node, ours: Mapping[int, ir.Value]) -> tuple[set[int], set[int], str]:
        """Positions of the operands and of the results that become narrow; why none does, where some might."""
        none: tuple[set[int], set[int]] = (set(), set())
        if not ours or node.op_type in _VALUE_FREE:
            return *none, ""
        if any(_fits(node, pattern) for pattern in self.keep):
            return *none, "asked for"
        if _bodies(node):
            return *none, "its bodies are left as they are"
        if any(value in self.sizes for value in node.outputs):
            return *none, "it computes sizes"
        schemas = self._schemas(node)
        if schemas is None:
            return *none, f"operator {node.op_type} of domain {node.domain!r} is not of the ONNX specification"
        own, newest = schemas
        variables = {k: _variable(own.inputs, k) for k in ours}
        admitted = {
            constraint.type_param_str
            for schema in (own, newest)
            for constraint in schema.type_constraints
            if self.thin_text in constraint.allowed_type_strs
        }
        operands = {k for k, variable in variables.items() if variable in admitted}
        if not operands:
            return *none, f"{node.op_type} has its operands in float32 only"
        if reason := next(filter(None, (self._lost(ours[k]) for k in operands)), ""):
            return *none, reason
        wide_results = {k: _variable(own.outputs, k) for k, v in enumerate(node.outputs) if v.dtype == self.wide}
        chosen = {variables[k] for k in operands}
        bound = {*variables.values(), "tensor(float)"}
        if any(variable not in bound for variable in wide_results.values()):
            return *none, "no operand decides the type of a result"
        return operands, {k for k, variable in wide_results.items() if variable in chosen}, ""

    def _schemas(self, node: ir.Node) -> tuple[onnx.defs.OpSchema, onnx.defs.OpSchema] | None:
        """The operator as the file's opset has it, and in its newest version."""
        import onnx

        if node.domain not in _DOMAINS or not onnx.defs.has(node.op_type):
            return None
        try:
            return onnx.defs.get_schema(node.op_type, self.opset, ""), onnx.defs.get_schema(node.op_type)
        except onnx.defs.SchemaError:  # not in this opset
            return None

    def _may_be_size(self, value: ir.Value) -> bool:
        tensor = constant_tensor(value)
        return value in self.sizes or (tensor is not None and tensor.size <= _FEW)

    def _lost(self, value: ir.Value) -> str:
        """Why a constant cannot be narrow; empty where it can, or where the value is no constant."""
        import numpy as np

        tensor = constant_tensor(value)
        if tensor is None or tensor.size == 0:
            return ""
        array = np.abs(tensor.numpy())
        largest = float(np.max(array, initial=0.0, where=np.isfinite(array)))
        if largest > self.largest:
            return f"constant {value.name!r} holds {largest:.4g}, and {self.precision} ends at {self.largest:.4g}"
        if array.size == 1 and largest > 0 and not array.astype(self.array_type).any():
            return f"constant {value.name!r}, {largest:.4g}, would become 0"
        return ""

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in one of the two types: itself, an initialiser of its own, or a cast."""
        import onnx_ir as ir

        if value.dtype == dtype:
            return value
        if (value, dtype) in self.copies:
            return self.copies[value, dtype]
        name = f"{value.name}/{self.precision if dtype == self.thin else 'fp32'}"
        graph = self.model.graph
        if dtype == self.thin and value.name in graph.initializers and not value.is_graph_input():
            copy = self._initialiser(value, name)
        else:
            cast = ir.node("Cast", [value], {"to": int(dtype)}, name=name)
            copy = cast.outputs[0]
            copy.name, copy.shape, copy.type = name, value.shape, ir.TensorType(dtype)
            producer = value.producer()
            if producer is not None:
                graph.insert_after(producer, cast)
            else:
                graph.insert_before(graph[0], cast)
        if dtype == self.thin:
            self.narrowed.add(copy)
        self.copies[value, dtype], self.copies[copy, value.dtype or self.wide] = copy, value
        return copy

    def _initialiser(self, value: ir.Value, name: str) -> ir.Value:
        import numpy as np
        import onnx_ir as ir

        tensor = constant_tensor(value)
        assert tensor is not None
        with np.errstate(over="ignore", under="ignore"):  # what overflows is not narrowed, see _lost
            array = tensor.numpy().astype(self.array_type)
        copy = ir.Value(name=name, shape=value.shape, type=ir.TensorType(self.thin))
        copy.const_value = ir.Tensor(array, dtype=self.thin, name=name)
        self.model.graph.register_initializer(copy)
        return copy

    def _narrow_result(self, value: ir.Value) -> None:
        """A node's result becomes narrow; where it is an output of the network, a cast gives the output."""
        import onnx_ir as ir

        value.type = ir.TensorType(self.thin)
        self.narrowed.add(value)
        outputs = self.model.graph.outputs
        for position, output in enumerate(outputs):
            if output is value:
                name, value.name = value.name, f"{value.name}/{self.precision}"
                outputs[position] = self._as(value, self.wide)
                outputs[position].name = name

    def _captures(self, node: ir.Node) -> None:
        """The bodies of control flow find the values that they take from outside as they were."""
        for graph in _bodies(node):
            for inner in graph.all_nodes():
                for k, value in enumerate(inner.inputs):
                    if value in self.narrowed:
                        inner.replace_input_with(k, self._as(value, self.wide))
            for k, value in enumerate(graph.outputs):
                if value in self.narrowed:
                    graph.outputs[k] = self._as(value, self.wide)


def _bodies(node: ir.Node) -> list[ir.Graph]:
    """Every graph among a node's attributes, whatever the operator."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type.name == "GRAPH":
            found.append(attribute.as_graph())
        elif attribute.type.name == "GRAPHS":
            found.extend(attribute.as_graphs())
    return found


def _fits(node: ir.Node, pattern: str) -> bool:
    return node.op_type == pattern or fnmatchcase(node.name or "", pattern)


def _variable(formals: Sequence[Any], position: int) -> str:
    """The type variable (or the one type) of an operand or result; the last formal may stand for several."""
    return str(formals[min(position, len(formals) - 1)].type_str)
