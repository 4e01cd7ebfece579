"""Element types of every value: as declared, or as the operators say."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.ir.nested import bodies, walk
from graphprune.ir.program import Array, Program, attribute, constant_tensor

__all__ = ["element_types", "to_tensor", "torch_type"]

_BOOLEAN = frozenset(
    ("And", "Or", "Xor", "Not", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf")
)
_INDEX = frozenset(("Shape", "Size", "ArgMax", "ArgMin", "NonZero"))
#: Operators whose result has the type of a later operand.
_OPERAND = {"Where": 1, "OneHot": 2, "DequantizeLinear": 1}


def element_types(program: Program) -> dict[str, ir.DataType]:
    """Type of every value by name, those of bodies included."""
    types: dict[str, ir.DataType] = {}
    for name, value in program.values().items():
        held = constant_tensor(value)
        known = held.dtype if held is not None else value.dtype
        if known is not None:
            types[name] = known
    for node in walk(program.model.graph):
        for k, value in enumerate(node.outputs):
            if value.name and value.name not in types:
                found = _type(node, k, types)
                if found is not None:
                    types[value.name] = found
    return types


def _type(node: ir.Node, k: int, types: dict[str, ir.DataType]) -> ir.DataType | None:
    kind = node.op_type
    if kind == "Cast" or (kind in ("EyeLike", "DequantizeLinear") and attribute(node, "dtype")):
        return ir.DataType(int(attribute(node, "to") or attribute(node, "dtype")))
    if kind in _BOOLEAN or (kind == "Dropout" and k == 1):
        return ir.DataType.BOOL
    if kind in _INDEX or (kind in ("TopK", "MaxPool") and k == 1):
        return ir.DataType.INT64
    if kind == "ConstantOfShape":
        held = attribute(node, "value")
        return held.dtype if held is not None else ir.DataType.FLOAT
    if kind == "QuantizeLinear":
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        return types.get(zero.name or "") if zero is not None else ir.DataType(attribute(node, "output_dtype") or 2)
    if kind == "DynamicQuantizeLinear":
        return ir.DataType.FLOAT if k == 1 else ir.DataType.UINT8
    inner = bodies(node)
    if inner:
        at = k + (kind == "Loop")
        return next((types[one.outputs[at].name or ""] for one in inner if one.outputs[at].name in types), None)
    first = _OPERAND.get(kind, 0)
    operands = [*node.inputs[first:], *node.inputs]
    return next((types[one.name] for one in operands if one is not None and one.name in types), None)


def torch_type(kind: ir.DataType) -> Any:
    """The ``torch.dtype`` of an ONNX type, ``None`` where PyTorch has none."""
    import torch

    names = {
        ir.DataType.FLOAT: "float32",
        ir.DataType.DOUBLE: "float64",
        ir.DataType.FLOAT16: "float16",
        ir.DataType.BFLOAT16: "bfloat16",
        ir.DataType.BOOL: "bool",
        ir.DataType.COMPLEX64: "complex64",
        ir.DataType.COMPLEX128: "complex128",
        ir.DataType.INT4: "int8",
        ir.DataType.UINT4: "uint8",
    }
    whole = {f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)}
    name = names.get(kind, kind.name.lower() if kind.name in whole else "")
    return getattr(torch, name, None)


def to_tensor(array: Array) -> Any:
    """A ``torch.Tensor`` of its own with an array's contents; types of few bits become bytes."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(array, order="C").view(np.int16)).view(torch.bfloat16)
    if array.dtype.name in ("int4", "uint4", "int2", "uint2"):
        array = array.astype(np.int8 if array.dtype.name.startswith("i") else np.uint8)
    made = np.array(array, order="C")
    return torch.from_numpy(made if made.dtype.isnative else made.astype(made.dtype.newbyteorder("=")))
