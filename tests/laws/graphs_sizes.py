"""Arithmetic with sizes: what exporters write where a network asks a tensor for its shape."""

from __future__ import annotations

import random

import numpy as np
from onnx import TensorProto, numpy_helper

from .graphs_builder import Builder, Value, times
from .graphs_steps import linear, step


def _size(b: Builder, x: Value, axis: int) -> str:
    """A size as a scalar."""
    return b.op("Gather", b.op("Shape", x.name), b.hold(np.array(axis, dtype=np.int64), "i"), axis=0)


def _vector(b: Builder, scalar: str) -> str:
    return b.vector("Unsqueeze", scalar, "axes", [0], 13)


def _number(b: Builder, n: int) -> str:
    return b.hold(np.array(n, dtype=np.int64), "i")


@step("as large as", 3)
def _as_large_as(b: Builder, r: random.Random) -> None:
    """Constants that are expanded, filled or tiled to the shape of a value."""
    x = b.pick(r, lambda v: v.rank > 1 and v.fixed(-1))
    if x is None:
        return
    kind = r.choice(("Expand", "ConstantOfShape", "compare"))
    whole = b.op("Shape", x.name)
    if kind == "Expand":
        other = b.op("Expand", b.weight(r, *[1] * r.randrange(x.rank), r.choice((1, x.n(-1)))), whole)
    elif kind == "ConstantOfShape":
        value = numpy_helper.from_array(np.array([0.5], dtype=np.float32))
        other = b.op("ConstantOfShape", whole, value=value)
    else:
        ones = b.op("ConstantOfShape", whole, value=numpy_helper.from_array(np.array([1], dtype=np.int64)))
        other = b.op("Cast", b.op("Equal", ones, b.ints(1)), to=TensorProto.FLOAT)
    b.push(b.op(r.choice(("Add", "Mul")), x.name, other), x.shape)


@step("chunk", 3)
def _chunk(b: Builder, r: random.Random) -> None:
    """Two halves by Slice, whose bounds are computed from the size of the axis."""
    x = b.pick(r, lambda v: any(v.fixed(a) and v.n(a) % 2 == 0 for a in range(1, v.rank)))
    if x is None:
        return
    axis = r.choice([a for a in range(1, x.rank) if x.fixed(a) and x.n(a) % 2 == 0])
    half = b.op("Div", b.op("Add", _size(b, x, axis), _number(b, 1)), _number(b, 2))
    middle, at = _vector(b, half), b.ints(axis)
    end = _vector(b, b.op("Mul", half, _number(b, 2))) if r.random() < 0.5 else b.ints(2**63 - 1)
    parts = [b.op("Slice", x.name, b.ints(0), middle, at), b.op("Slice", x.name, middle, end, at)]
    shape = (*x.shape[:axis], x.n(axis) // 2, *x.shape[axis + 1 :])
    if r.random() < 0.5:
        b.push(b.op("Mul", parts[0], b.op("Sigmoid", parts[1])), shape)
    elif r.random() < 0.5:  # turned around, as rotary embeddings do
        b.push(b.op("Concat", b.op("Neg", parts[1]), parts[0], axis=axis), x.shape)
    else:
        b.push(parts[0], shape)
        b.push(parts[1], shape)


@step("positions", 2)
def _positions(b: Builder, r: random.Random) -> None:
    """A table of positions, of which as many are read as there are tokens."""
    x = b.pick(r, lambda v: v.rank == 3 and v.fixed(2) and v.n(2) > 1 and b.size(v.shape[1]) < 8)
    if x is None:
        return
    table, time = b.weight(r, 12, x.n(2)), _size(b, x, 1)
    if r.random() < 0.5:
        rows = b.op("Gather", table, b.op("Range", _number(b, 0), time, _number(b, 1)), axis=0)
    else:
        rows = b.op("Slice", table, b.ints(0), _vector(b, time), b.ints(0))
    b.push(b.op("Add", x.name, rows), x.shape)


@step("scaled by size", 2)
def _scaled(b: Builder, r: random.Random) -> None:
    """Divided by the root of a size, or by the number of elements that were summed."""
    x = b.pick(r, lambda v: v.rank > 1)
    if x is None:
        return
    axis = r.randrange(1, x.rank)
    if r.random() < 0.5:
        size = b.op("Cast", _size(b, x, axis), to=TensorProto.FLOAT)
        b.push(b.op("Div", x.name, b.op("Sqrt", size)), x.shape)
    else:
        total = b.vector("ReduceSum", x.name, "axes", [axis], 13, keepdims=1)
        count = b.op("Cast", b.op("Size", x.name), to=TensorProto.FLOAT)
        b.push(b.op("Div", total, count), (*x.shape[:axis], 1, *x.shape[axis + 1 :]))


@step("view as", 3)
def _view_as(b: Builder, r: random.Random) -> None:
    """Reshape to heads or to rows with every size read, divided and multiplied; and the way back."""
    x = b.pick(r, lambda v: v.rank == 3 and v.fixed(2) and v.n(2) % 2 == 0)
    if x is None:
        return
    n, t, c = (_size(b, x, axis) for axis in range(3))
    heads = r.choice([h for h in (1, 2, 3, 4) if x.n(2) % h == 0])
    if r.random() < 0.5:
        depth = _vector(b, b.op("Div", c, _number(b, heads)))
        target = b.op("Concat", _vector(b, n), _vector(b, t), b.ints(heads), depth, axis=0)
    else:
        target = b.op("Concat", _vector(b, n), _vector(b, t), b.ints(heads), b.ints(-1), axis=0)
    y = Value(b.op("Reshape", x.name, target), (*x.shape[:2], heads, x.n(2) // heads))
    y = Value(b.op(r.choice(("Softmax", "Relu", "Tanh")), y.name), y.shape)
    y = linear(b, r, y, r.choice((2, 3, 4))) if r.random() < 0.5 else y
    if r.random() < 0.5:
        y = b.transpose(b.transpose(y, 0, 2, 1, 3), 0, 2, 1, 3)
    wide = y.n(2) * y.n(3)
    last = b.ints(-1) if r.random() < 0.5 else b.ints(wide)
    back = b.op("Reshape", y.name, b.op("Concat", _vector(b, n), _vector(b, t), last, axis=0))
    b.push(back, (*x.shape[:2], wide))


@step("resize to", 1)
def _resize_to(b: Builder, r: random.Random) -> None:
    """Resize to twice the size, which is computed; batch and channels are read as well."""
    x = b.pick(r, lambda v: v.rank == 4 and v.fixed(1) and b.fits((*v.shape, 4)))
    if x is None or b.opset < 13:
        return
    whole = b.op("Shape", x.name)
    front = b.op("Slice", whole, b.ints(0), b.ints(2), b.ints(0))
    back = b.op("Mul", b.op("Slice", whole, b.ints(2), b.ints(4), b.ints(0)), b.ints(2))
    y = b.op("Resize", x.name, "", "", b.op("Concat", front, back, axis=0), mode="nearest")
    b.push(y, (*x.shape[:2], times(2, x.shape[2]), times(2, x.shape[3])))


@step("flat", 2)
def _flat(b: Builder, r: random.Random) -> None:
    """Flattened with the batch read off, as ``x.view(x.size(0), -1)`` is exported."""
    x = b.pick(r, lambda v: v.rank > 2 and v.fixed(*range(1, v.rank)))
    if x is None:
        return
    target = b.op("Concat", _vector(b, _size(b, x, 0)), b.ints(-1), axis=0)
    wide = int(np.prod([x.n(axis) for axis in range(1, x.rank)]))
    b.push(b.op("Reshape", x.name, target), (x.shape[0], wide))
