"""Reductions."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from graphprune.backends.torch_emit.registry import emits
from graphprune.backends.torch_emit.view import View
from graphprune.backends.torch_ops import elements, index

_REDUCTIONS: dict[str, Any] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceProd": elements.reduce_prod,
    "ReduceL1": torch.sum,
    "ReduceL2": torch.linalg.vector_norm,
    "ReduceSumSquare": torch.sum,
    "ReduceLogSum": torch.sum,
}


@emits(*_REDUCTIONS)
def _reduce(v: View) -> fx.Node:
    axes = v.listed(1, "axes")
    if not axes:
        if v.attr("noop_with_empty_axes", 0):
            return v.x()
        axes = list(range(v.rank()))
    keep = bool(v.attr("keepdims", 1))
    x = v.x()
    if v.op == "ReduceL1":
        x = v.call(torch.abs, x)
    elif v.op == "ReduceSumSquare":
        x = v.call(operator.mul, x, x)
    if v.rank() == 0:
        return v.call(torch.log, x) if v.op == "ReduceLogSum" else x
    function = _REDUCTIONS[v.op]
    axes = [axis % v.rank() for axis in axes]
    if function is elements.reduce_prod:
        return v.call(function, x, axes, keep)
    more = {} if v.is_float() or function is not torch.sum else {"dtype": v.dtype(v.type(0) or 7)}
    made = v.call(function, x, dim=axes, keepdim=keep, **more)
    return v.call(torch.log, made) if v.op == "ReduceLogSum" else made


@emits("ArgMax", "ArgMin")
def _arg(v: View) -> fx.Node:
    keep, last = bool(v.attr("keepdims", 1)), bool(v.attr("select_last_index", 0))
    if last:
        return v.call(elements.arg_extreme, v.x(), v.axis(0), keep, v.op == "ArgMax", True)
    return v.call(torch.argmax if v.op == "ArgMax" else torch.argmin, v.x(), dim=v.axis(0), keepdim=keep)


@emits("CumSum", "CumProd")
def _cumulative(v: View) -> fx.Node:
    axis = int(v.fixed(1, "axis").reshape(-1)[0])
    exclusive, reverse = bool(v.attr("exclusive", 0)), bool(v.attr("reverse", 0))
    if v.op == "CumSum" and not exclusive and not reverse and v.is_float():
        return v.call(torch.cumsum, v.x(), dim=axis)
    return v.call(elements.cumulative, v.x(), axis, exclusive, reverse, v.op == "CumProd")


@emits("TopK")
def _top_k(v: View) -> Any:
    k = v.items(1)[0] if v.has(1) else int(v.attr("k"))
    return v.outputs(v.call(index.top_k, v.x(), k, v.axis(-1), bool(v.attr("largest", 1))))
