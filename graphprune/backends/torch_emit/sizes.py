"""Size arithmetic as Python numbers. An emitter gives the entries, or ``None`` where only tensors can say it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from graphprune.backends.torch_emit.view import View

__all__ = ["SIZES"]

Entries = list[Any]


def _same(v: View, at: int) -> Entries:
    return list(v.items(0))


def _cast(v: View, at: int) -> Entries:
    kind = ir.DataType(int(v.attr("to"))).numpy().kind
    to: Callable[[Any], Any] = {"f": float, "b": bool}.get(kind, int)
    return [one if isinstance(one, fx.Node) and kind != "b" else _apply(v, to, one) for one in _truncated(v, kind)]


def _truncated(v: View, kind: str) -> Entries:
    floats = v.is_float(0) if v.type(0) is not None else True
    return [_apply(v, int, one) if kind in "iu" and floats else one for one in v.items(0)]


def _apply(v: View, function: Any, *given: Any) -> Any:
    """The function's result: now where everything is known, else a call."""
    if any(isinstance(one, fx.Node) for one in given):
        return v.call(_TENSORLESS.get(function, function), *given)
    return function(*given)


def _pick(condition: Any, first: Any, second: Any) -> Any:
    return first if condition else second


#: What stands for Python's own functions in the module, so that ``torch.export`` can follow.
_TENSORLESS: dict[Any, Any] = {max: torch.sym_max, min: torch.sym_min, float: torch.sym_float, int: torch.sym_int}


def _binary(function: Any) -> Callable[[View, int], Entries]:
    def emit(v: View, at: int) -> Entries:
        first, second = list(v.items(0)), list(v.items(1))
        n = max(len(first), len(second))
        first, second = (one * n if len(one) == 1 else one for one in (first, second))
        return [_apply(v, function, a, b) for a, b in zip(first, second, strict=True)]

    return emit


def _unary(function: Any) -> Callable[[View, int], Entries]:
    return lambda v, at: [_apply(v, function, one) for one in v.items(0)]


def _div(v: View, at: int) -> Entries | None:
    kinds = [v.type(k) for k in (0, 1)]
    floats = any(kind is not None and kind.is_floating_point() for kind in kinds)
    if not floats:
        observed = [v.writer.program.small.get(v.name(k)) for k in (0, 1)]
        if any(one is not None and bool((one < 0).any()) for one in observed):
            return None  # Python's whole division rounds down, ONNX's toward zero
    return _binary(operator.truediv if floats else operator.floordiv)(v, at)


def _gather(v: View, at: int) -> Entries | None:
    places = v.const(1)
    if places is None:
        return None
    items = list(v.items(0))
    return [items[int(k)] for k in places.reshape(-1)]


def _slice(v: View, at: int) -> Entries | None:
    items = list(v.items(0))
    held = [v.const(k) if v.has(k) else None for k in (1, 2, 4)]
    starts = held[0] if held[0] is not None else v.attr("starts")
    ends = held[1] if held[1] is not None else v.attr("ends")
    if starts is None or ends is None or (v.has(4) and held[2] is None):
        return None
    step = 1 if held[2] is None else int(held[2].reshape(-1)[0])
    start, end = int(np.reshape(starts, -1)[0]), int(np.reshape(ends, -1)[0])
    end_here: int | None = end
    if step < 0 and end < -len(items):
        end_here = None
    return items[start:end_here:step]


def _concat(v: View, at: int) -> Entries:
    return [one for k in range(v.count) for one in v.items(k)]


def _split(v: View, at: int) -> Entries | None:
    start = sum(math.prod(v.out_shape(k)) for k in range(at))
    return list(v.items(0))[start : start + math.prod(v.out_shape(at))]


def _reduce(function: Any) -> Callable[[View, int], Entries]:
    def emit(v: View, at: int) -> Entries:
        items = list(v.items(0))
        made = items[0]
        for one in items[1:]:
            made = _apply(v, function, made, one)
        return [made]

    return emit


def _where(v: View, at: int) -> Entries | None:
    chosen = v.items(0)
    if any(isinstance(one, fx.Node) for one in chosen):
        return None
    rows = [list(chosen), list(v.items(1)), list(v.items(2))]
    n = max(len(row) for row in rows)
    rows = [row * n if len(row) == 1 else row for row in rows]
    return [_pick(*three) for three in zip(*rows, strict=True)]


def _variadic(function: Any) -> Callable[[View, int], Entries | None]:
    def emit(v: View, at: int) -> Entries | None:
        return _binary(function)(v, at) if v.count == 2 else None

    return emit


def _shape(v: View, at: int) -> Entries:
    rank, end = v.rank(), v.attr("end")
    return [v.size(0, k) for k in range(rank)][int(v.attr("start", 0)) : None if end is None else int(end)]


def _size(v: View, at: int) -> Entries:
    made: Any = 1
    for k in range(v.rank()):
        made = _apply(v, operator.mul, made, v.size(0, k))
    return [made]


def _expand(v: View, at: int) -> Entries | None:
    items, number = list(v.items(0)), math.prod(v.out_shape())
    return items * number if len(items) == 1 else items if len(items) == number else None


SIZES: dict[str, Callable[[View, int], Entries | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _same,
    "Squeeze": _same,
    "Unsqueeze": _same,
    "Reshape": _same,
    "Flatten": _same,
    "Cast": _cast,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Split": _split,
    "Expand": _expand,
    "Add": _binary(operator.add),
    "Sub": _binary(operator.sub),
    "Mul": _binary(operator.mul),
    "Div": _div,
    "Max": _variadic(max),
    "Min": _variadic(min),
    "Equal": _binary(operator.eq),
    "Greater": _binary(operator.gt),
    "GreaterOrEqual": _binary(operator.ge),
    "Less": _binary(operator.lt),
    "LessOrEqual": _binary(operator.le),
    "Neg": _unary(operator.neg),
    "Floor": _unary(math.floor),
    "Ceil": _unary(math.ceil),
    "ReduceProd": _reduce(operator.mul),
    "ReduceSum": _reduce(operator.add),
    "ReduceMax": _reduce(max),
    "ReduceMin": _reduce(min),
    "Where": _where,
}
