"""Quantisation to integers and back."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from torch import fx

from graphprune.backends.torch_emit.parameters import held_by
from graphprune.backends.torch_emit.registry import Refuse, emits
from graphprune.backends.torch_emit.view import View
from graphprune.backends.torch_ops import elements
from graphprune.ir.program import attribute

_SETTINGS = (("axis", 1), ("block_size", 0))
_RANGES = {
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
}


@emits("QuantizeLinear")
@emits("QuantizeLinear", domain="com.microsoft")
def _quantize(v: View) -> fx.Node:
    kind = v.type(2) if v.has(2) else ir.DataType(int(v.attr("output_dtype") or ir.DataType.UINT8))
    if kind not in _RANGES:
        raise Refuse(f"it quantises to {kind.name if kind else 'an unknown type'}")
    low, high = _RANGES[kind]
    block = int(v.attr("block_size", 0))
    return v.call(
        elements.quantize, v.x(0), v.x(1), v.maybe(2), int(v.attr("axis", 1)), block, low, high, v.dtype(kind)
    )


@emits("DequantizeLinear")
@emits("DequantizeLinear", domain="com.microsoft")
def _dequantize(v: View) -> fx.Node:
    if v.type(0) is not None and v.type(0).is_floating_point():  # type: ignore[union-attr]
        raise Refuse("it holds floats of eight bits")
    axis, block = int(v.attr("axis", 1)), int(v.attr("block_size", 0))
    source = v.node.inputs[0].producer() if v.node.inputs[0] is not None else None
    if source is not None and source.op_type == "QuantizeLinear" and _same(v.node, source) and v.type(0) in _RANGES:
        low, high = _RANGES[v.type(0)]  # type: ignore[index]
        x = View(v.writer, source).x(0)
        return v.call(elements.fake_quantize, x, v.x(1), v.maybe(2), axis, block, low, high)
    return v.call(elements.dequantize, v.x(0), v.x(1), v.maybe(2), axis, block)


@emits("DynamicQuantizeLinear")
def _dynamic_quantize(v: View) -> Any:
    return v.outputs(v.call(elements.dynamic_quantize, v.x()))


def _same(one: ir.Node, two: ir.Node) -> bool:
    """Whether two nodes have the same scale and zero point along the same axis."""
    alike = all(attribute(one, name, default) == attribute(two, name, default) for name, default in _SETTINGS)
    return alike and [_name(value) for value in one.inputs[1:]] == [_name(value) for value in two.inputs[1:]]


def _name(value: ir.Value | None) -> str | None:
    return None if value is None else held_by(value).name
