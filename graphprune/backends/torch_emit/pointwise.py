"""Elementwise operators."""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import fx, nn

from graphprune.backends.torch_emit.registry import Refuse, emits, lines
from graphprune.backends.torch_emit.view import View
from graphprune.backends.torch_ops import elements

lines(
    {
        "Abs": torch.abs,
        "Acos": torch.acos,
        "Acosh": torch.acosh,
        "And": torch.logical_and,
        "Asin": torch.asin,
        "Asinh": torch.asinh,
        "Atan": torch.atan,
        "Atanh": torch.atanh,
        "BitwiseAnd": torch.bitwise_and,
        "BitwiseNot": torch.bitwise_not,
        "BitwiseOr": torch.bitwise_or,
        "BitwiseXor": torch.bitwise_xor,
        "Ceil": torch.ceil,
        "Celu": (F.celu, {"alpha": ("alpha", 1.0)}),
        "Cos": torch.cos,
        "Cosh": torch.cosh,
        "Det": torch.linalg.det,
        "Elu": (F.elu, {"alpha": ("alpha", 1.0)}),
        "Erf": torch.erf,
        "Exp": torch.exp,
        "Floor": torch.floor,
        "HardSwish": F.hardswish,
        "IsNaN": torch.isnan,
        "LeakyRelu": (F.leaky_relu, {"negative_slope": ("alpha", 0.01)}),
        "Log": torch.log,
        "Mish": F.mish,
        "Neg": torch.neg,
        "Not": torch.logical_not,
        "Or": torch.logical_or,
        "PRelu": elements.prelu,
        "Reciprocal": torch.reciprocal,
        "Relu": F.relu,
        "Round": torch.round,
        "Shrink": (elements.shrink, {"lambd": ("lambd", 0.5), "bias": ("bias", 0.0)}),
        "Sigmoid": torch.sigmoid,
        "Sign": torch.sign,
        "Sin": torch.sin,
        "Sinh": torch.sinh,
        "Softplus": F.softplus,
        "Softsign": F.softsign,
        "Sqrt": torch.sqrt,
        "Tan": torch.tan,
        "Tanh": torch.tanh,
        "Xor": torch.logical_xor,
    }
)

#: alpha and gamma of Klambauer et al. 2017, in ONNX's float32.
_SELU = (1.67326319217681884765625, 1.05070102214813232421875)
_UNSIGNED = frozenset((ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64))
_BINARY = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Pow": operator.pow,
    "Equal": operator.eq,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
}


def refuse_unsigned(v: View) -> None:
    """PyTorch stores unsigned integers of more than eight bits, but does not compute with them.

    Raises:
        Refuse: an operand is one.
    """
    for k in range(v.count):
        if v.has(k) and v.type(k) in _UNSIGNED:
            raise Refuse(f"PyTorch does not compute with {v.type(k).name}")  # type: ignore[union-attr]


def pair(v: View) -> tuple[Any, Any]:
    """Two operands, one of which may be a number where it adds no axis; at least one is a tensor."""
    refuse_unsigned(v)
    first, second = v.arg(0), v.arg(1)
    if not isinstance(first, fx.Node) and (v.rank(0) > v.rank(1) or not isinstance(second, fx.Node)):
        first = v.x(0)
    elif not isinstance(second, fx.Node) and v.rank(1) > v.rank(0):
        second = v.x(1)
    return first, second


@emits(*_BINARY)
def _binary(v: View) -> fx.Node:
    """A Python operator, which broadcasts as ONNX does."""
    made = v.call(_BINARY[v.op], *_old_broadcast(v, *pair(v)))
    kind = v.type(0)
    if v.op == "Pow" and kind is not None and not kind.is_floating_point() and v.is_float(1):
        return v.method("to", made, v.dtype(kind))  # the result has the base's type
    return made


def _old_broadcast(v: View, first: Any, second: Any) -> tuple[Any, Any]:
    """Before opset 7 the second operand is aligned with an axis of the first."""
    at = v.attr("axis")
    if v.opset >= 7 or at is None or not isinstance(second, fx.Node):
        return first, second
    behind = v.rank(0) - int(at) % v.rank(0) - v.rank(1)
    return first, v.method("reshape", second, (*v.shape(1), *([1] * behind))) if behind else second


@emits("Div")
def _div(v: View) -> fx.Node:
    first, second = _old_broadcast(v, *pair(v))
    kinds = [v.type(k) for k in (0, 1)]
    if any(kind is not None and kind.is_floating_point() for kind in kinds):
        return v.call(operator.truediv, first, second)
    if isinstance(first, fx.Node):
        return v.call(elements.divide, first, second)
    return v.call(elements.divide, v.x(0), second)


@emits("Mod")
def _mod(v: View) -> fx.Node:
    refuse_unsigned(v)
    return v.call(torch.fmod if v.attr("fmod", 0) else torch.remainder, v.x(0), v.arg(1))


@emits("Max", "Min", "Sum", "Mean")
def _variadic(v: View) -> fx.Node:
    refuse_unsigned(v)
    function: Any = {"Max": torch.maximum, "Min": torch.minimum}.get(v.op, operator.add)
    made = reduce(lambda a, b: v.call(function, a, b), (v.x(k) for k in range(v.count)))
    return v.call(operator.truediv, made, v.count) if v.op == "Mean" else made


@emits("Clip")
def _clip(v: View) -> fx.Node:
    low = v.arg(1) if v.has(1) else v.attr("min")
    high = v.arg(2) if v.has(2) else v.attr("max")
    if low is None and high is None:
        return v.x()
    if isinstance(low, fx.Node) != isinstance(high, fx.Node):  # torch.clamp takes both as tensors or both as numbers
        low = v.x(1) if v.has(1) and low is not None else low
        high = v.x(2) if v.has(2) and high is not None else high
    return v.call(torch.clamp, v.x(), min=low, max=high)


@emits("HardSigmoid")
def _hard_sigmoid(v: View) -> fx.Node:
    line = v.call(operator.add, v.call(operator.mul, v.x(), v.attr("alpha", 0.2)), v.attr("beta", 0.5))
    return v.call(torch.clamp, line, 0, 1)


@emits("Selu")
def _selu(v: View) -> fx.Node:
    alpha, gamma = float(v.attr("alpha", _SELU[0])), float(v.attr("gamma", _SELU[1]))
    if (alpha, gamma) == _SELU:
        return v.call(F.selu, v.x())
    return v.call(operator.mul, v.call(F.elu, v.x(), alpha=alpha), gamma)


@emits("ThresholdedRelu")
def _thresholded_relu(v: View) -> fx.Node:
    return v.call(F.threshold, v.x(), float(v.attr("alpha", 1.0)), 0.0)


@emits("Gelu")
def _gelu(v: View) -> fx.Node:
    return v.call(F.gelu, v.x(), approximate=v.attr("approximate", "none"))


@emits("Swish")
def _swish(v: View) -> fx.Node:
    alpha = v.attr("alpha", 1.0)
    if alpha == 1.0:
        return v.call(F.silu, v.x())
    return v.call(operator.mul, v.x(), v.call(torch.sigmoid, v.call(operator.mul, v.x(), alpha)))


@emits("IsInf")
def _is_inf(v: View) -> fx.Node:
    return v.call(elements.is_inf, v.x(), bool(v.attr("detect_negative", 1)), bool(v.attr("detect_positive", 1)))


@emits("BitShift")
def _bit_shift(v: View) -> fx.Node:
    refuse_unsigned(v)
    return v.call(elements.bit_shift, v.x(0), v.x(1), v.attr("direction") == "LEFT")


@emits("Hardmax")
def _hardmax(v: View) -> fx.Node:
    if v.opset < 13 and v.axis(1) != v.rank() - 1:
        raise Refuse("before opset 13 it flattens the axes after 'axis'")
    return v.call(elements.hardmax, v.x(), v.axis(-1 if v.opset >= 13 else 1))


@emits("Softmax", "LogSoftmax")
def _softmax(v: View) -> fx.Node:
    function = torch.softmax if v.op == "Softmax" else torch.log_softmax
    axis = v.axis(-1 if v.opset >= 13 else 1)
    if v.opset >= 13 or axis == v.rank() - 1:
        return v.call(function, v.x(), dim=axis)
    flat = v.call(torch.flatten, v.x(), axis)  # before opset 13 it is over all axes from this one on
    return v.method("view_as", v.call(function, flat, dim=axis), v.x())


@emits("Where")
def _where(v: View) -> fx.Node:
    first, second = v.arg(1), v.arg(2)
    if not isinstance(first, fx.Node) and (not isinstance(second, fx.Node) or v.rank(1) > max(v.rank(0), v.rank(2))):
        first = v.x(1)
    if not isinstance(second, fx.Node) and v.rank(2) > max(v.rank(0), v.rank(1)):
        second = v.x(2)
    return v.call(torch.where, v.x(0), first, second)


@emits("Cast")
def _cast(v: View) -> fx.Node:
    """What becomes the weights' own float type follows it when the module is moved to another."""
    to = ir.DataType(int(v.attr("to")))
    if v.type(0) == to:
        return v.x()
    dtype = v.dtype(to)
    if dtype == v.writer.float_type():
        return v.call(elements.floats_to, v.x(), v.like())
    return v.method("to", v.x(), dtype)


@emits("CastLike")
def _cast_like(v: View) -> fx.Node:
    return v.method("type_as", v.x(0), v.x(1))


@emits("Identity")
def _identity(v: View) -> fx.Node:
    return v.x()


@emits("Dropout")
def _dropout(v: View) -> fx.Node:
    """Active in training alone, as the node is at inference in ONNX."""
    if v.used(1):
        raise Refuse("its mask is read")
    mode = v.const(2)
    if v.has(2) and (mode is None or bool(mode)):
        raise Refuse("its training mode is on, so its result is random")
    ratio = float(v.fixed(1, "ratio")) if v.has(1) else float(v.attr("ratio", 0.5))
    path = v.writer.module(v.node.name or "dropout", nn.Dropout(ratio), {})
    return v.writer.graph.call_module(path, (v.x(),))
