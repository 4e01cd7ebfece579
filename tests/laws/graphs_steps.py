"""Single operators that a random network is made of. Each takes some value that fits it, or does nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import numpy as np
from onnx import TensorProto

from .graphs_builder import Builder, Dim, Value, times

Step = Callable[[Builder, random.Random], None]
STEPS: dict[str, Step] = {}
WEIGHTS: dict[str, int] = {}
WIDTHS = (4, 6, 8, 8, 9, 12, 12, 16)
_UNARY = ("Relu", "Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "Softplus", "Cos", "Elu", "Abs", "Neg", "Erf")


def step(name: str, weight: int = 2) -> Callable[[Step], Step]:
    def register(one: Step) -> Step:
        STEPS[name], WEIGHTS[name] = one, weight
        return one

    return register


def divisors(n: int) -> list[int]:
    return [a for a in range(2, n) if n % a == 0]


# what steps share


def linear(b: Builder, r: random.Random, x: Value, out: int, bias: bool = True) -> Value:
    """A product with a weight on the last axis, in one of its spellings."""
    n = x.n(-1)
    shape = (*x.shape[:-1], out)
    kind = r.choice(("MatMul", "MatMul", "Gemm", "Gemm", "Einsum"))
    if kind == "Gemm" and x.rank == 2:
        turned = r.randrange(2)
        words = [x.name, b.weight(r, *((out, n) if turned else (n, out)), scale=n**-0.5)]
        if bias:
            words.append(b.weight(r, *r.choice(((out,), (1, out)))))
        return Value(b.op("Gemm", *words, transB=turned, alpha=r.choice((1.0, 0.5)), beta=r.choice((1.0, 2.0))), shape)
    if kind == "Einsum" and b.opset >= 12:
        y = b.op("Einsum", x.name, b.weight(r, n, out, scale=n**-0.5), equation="...i,io->...o")
    else:
        y = b.op("MatMul", x.name, b.weight(r, n, out, scale=n**-0.5))
    if bias:
        operands = [y, b.weight(r, out)]
        y = b.op("Add", *(operands if r.random() < 0.8 else operands[::-1]))
    return Value(y, shape)


def moved(dim: Dim, k: int, stride: int, pad: int, dilation: int = 1) -> Dim:
    """Size of an axis after a window has moved over it."""
    if isinstance(dim, int):
        return (dim + 2 * pad - dilation * (k - 1) - 1) // stride + 1
    return dim if stride == 1 and 2 * pad == dilation * (k - 1) else f"{dim}{k}{stride}{pad}{dilation}"


def convolve(
    b: Builder, r: random.Random, x: Value, out: int, k: int = 1, group: int = 1, stride: int = 1, bias: bool = True
) -> Value:
    n, space = x.n(1), x.rank - 2
    dilation = r.choice((1, 1, 2)) if k > 1 else 1
    pad = dilation * (k // 2)
    words = [x.name, b.weight(r, out, n // group, *[k] * space, scale=(n // group * k**space) ** -0.5)]
    if bias:
        words.append(b.weight(r, out))
    given = {"auto_pad": "SAME_UPPER"} if stride == dilation == 1 and r.random() < 0.2 else {"pads": [pad] * 2 * space}
    y = b.op("Conv", *words, group=group, strides=[stride] * space, dilations=[dilation] * space, **given)
    return Value(y, (x.shape[0], out, *(moved(dim, k, stride, pad, dilation) for dim in x.shape[2:])))


def activate(b: Builder, r: random.Random, x: Value) -> Value:
    kind = r.choice(_UNARY)
    return Value(b.op("Relu" if kind == "HardSwish" and b.opset < 14 else kind, x.name), x.shape)


def spatial(value: Value) -> bool:
    return value.rank in (3, 4) and value.fixed(1)


def batch_norm(b: Builder, r: random.Random, x: Value) -> Value:
    n = x.n(1)
    scale, bias, mean = b.weight(r, n, positive=True), b.weight(r, n), b.weight(r, n)
    return Value(b.op("BatchNormalization", x.name, scale, bias, mean, b.weight(r, n, positive=True)), x.shape)


def reduce(b: Builder, kind: str, x: str, axes: list[int], keep: int) -> str:
    """A reduction: its axes are an attribute before opset 18 (13 for ReduceSum)."""
    return b.vector(kind, x, "axes", axes, 13 if kind == "ReduceSum" else 18, keepdims=keep)


def split(b: Builder, x: str, sizes: list[int], axis: int) -> list[str]:
    """A Split with sizes: an attribute before opset 13."""
    if b.opset < 13:
        return b.ops("Split", len(sizes), x, axis=axis, split=sizes)
    return b.ops("Split", len(sizes), x, b.ints(*sizes), axis=axis)


# steps


@step("linear", 10)
def _linear(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: v.fixed(-1) and v.n(-1) > 1)
    if x is not None and b.fits((*x.shape[:-1], 16)):
        y = linear(b, r, x, r.choice(WIDTHS), r.random() < 0.7)
        y = activate(b, r, y) if r.random() < 0.5 else y
        b.push(y.name, y.shape)


@step("conv", 10)
def _conv(b: Builder, r: random.Random) -> None:
    x = b.pick(r, spatial)
    if x is None:
        return
    groups = [g for g in (1, 1, 1, 2, 3, 4, x.n(1)) if x.n(1) % g == 0]
    group = r.choice(groups)
    outs = [n for n in WIDTHS if n % group == 0] or [group]
    stride = r.choice((1, 1, 1, 2))
    y = convolve(b, r, x, r.choice(outs), r.choice((1, 1, 3)), group, stride, r.random() < 0.7)
    if b.fits(y.shape):
        y = batch_norm(b, r, y) if r.random() < 0.4 else y
        y = activate(b, r, y) if r.random() < 0.5 else y
        b.push(y.name, y.shape)


@step("depthwise", 4)
def _depthwise(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: spatial(v) and v.n(1) <= 24)
    if x is not None:
        y = convolve(b, r, x, x.n(1) * r.choice((1, 1, 2)), 3, x.n(1), bias=r.random() < 0.5)
        b.push(y.name, y.shape)


@step("conv transpose", 3)
def _conv_transpose(b: Builder, r: random.Random) -> None:
    x = b.pick(r, spatial)
    if x is None or not b.fits((x.shape[0], 16, *(times(2, dim) for dim in x.shape[2:]))):
        return
    n, space = x.n(1), x.rank - 2
    group = r.choice([g for g in (1, 1, 2, 3, n) if n % g == 0])
    out, stride = r.choice((1, 2, 3, 4)) * (1 if group > 4 else group), r.choice((1, 2))
    group = group if out % group == 0 else 1
    words = [x.name, b.weight(r, n, out // group, *[stride] * space, scale=(n // group) ** -0.5)]
    if r.random() < 0.6:
        words.append(b.weight(r, out))
    y = b.op("ConvTranspose", *words, group=group, strides=[stride] * space)
    b.push(y, (x.shape[0], out, *(dim if stride == 1 else times(2, dim) for dim in x.shape[2:])))


@step("mix", 2)
def _mix(b: Builder, r: random.Random) -> None:
    """A weight on the left, or one of its own for each of an axis (experts)."""
    x = b.pick(r, lambda v: v.rank > 2 and v.fixed(-1, -2))
    if x is None:
        return
    out = r.choice(WIDTHS)
    if r.random() < 0.5:
        y = b.op("MatMul", b.weight(r, out, x.n(-2), scale=x.n(-2) ** -0.5), x.name)
        b.push(y, (*x.shape[:-2], out, x.shape[-1]))
    elif x.rank == 4 and x.fixed(1) and b.fits((*x.shape[:-1], out)):
        y = b.op("MatMul", x.name, b.weight(r, x.n(1), x.n(-1), out, scale=x.n(-1) ** -0.5))
        b.push(b.op("Add", y, b.weight(r, x.n(1), 1, out)), (*x.shape[:-1], out))


@step("activation", 5)
def _activation(b: Builder, r: random.Random) -> None:
    x = b.pick(r)
    if x is None:
        return
    kind = r.choice(("unary", "unary", "unary", "Clip", "PRelu", "Dropout", "Cast", "Identity"))
    if kind == "Clip":
        y = b.op("Clip", x.name, b.scalar(-0.5), b.scalar(3.0))
    elif kind == "PRelu" and x.rank > 1 and x.fixed(1):
        y = b.op("PRelu", x.name, b.weight(r, x.n(1), *[1] * (x.rank - 2)))
    elif kind == "Cast":
        y = b.op("Cast", b.op("Cast", x.name, to=TensorProto.DOUBLE), to=TensorProto.FLOAT)
    else:
        y = b.op(kind, x.name) if kind in ("Dropout", "Identity") else activate(b, r, x).name
    b.push(y, x.shape)


@step("constant", 4)
def _constant(b: Builder, r: random.Random) -> None:
    """Arithmetic with a constant of any shape that broadcasts."""
    x = b.pick(r)
    if x is None:
        return
    rank = r.randrange(x.rank)
    axes = range(x.rank - rank, x.rank)
    shape = [x.n(a) if x.fixed(a) and r.random() < 0.7 else 1 for a in axes]
    kind = r.choice(("Add", "Mul", "Sub", "Div", "Max", "Min", "Where"))
    other = b.weight(r, *shape, positive=kind == "Div")
    if kind == "Where":
        chosen = b.hold(b.rng.integers(0, 2, shape).astype(np.bool_), "m")
        b.push(b.op("Where", chosen, x.name, other), x.shape)
        return
    turned = kind in ("Add", "Mul", "Sub", "Max") and r.random() < 0.3
    b.push(b.op(kind, *((other, x.name) if turned else (x.name, other))), x.shape)


@step("join", 6)
def _join(b: Builder, r: random.Random) -> None:
    """Two or three values of the same shape, or of shapes that broadcast."""
    x = b.pick(r)
    if x is None:
        return

    def fits(v: Value) -> bool:
        return v.rank == x.rank and all(m in (n, 1) for n, m in zip(x.shape, v.shape, strict=True))

    others = [v for v in b.pool if fits(v)]
    y, z = r.choice(others), r.choice(others)
    kind = r.choice(("Add", "Add", "Add", "Mul", "Sub", "Max", "Sum", "Mean", "Where"))
    if kind == "Where":
        made = b.op("Where", b.op("Greater", x.name, y.name), x.name, z.name)
    else:
        made = b.op(kind, x.name, y.name, *([z.name] if kind in ("Sum", "Mean", "Max") else []))
    b.push(made, x.shape)


@step("pool", 3)
def _pool(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: spatial(v) and v.fixed(*range(2, v.rank)) and min(v.shape[2:]) > 1)  # type: ignore[type-var]
    if x is None:
        return
    kind = r.choice(("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"))
    if kind.startswith("Global"):
        b.push(b.op(kind, x.name), (*x.shape[:2], *[1] * (x.rank - 2)))
        return
    stride = r.choice((1, 2))
    y = b.op(kind, x.name, kernel_shape=[2] * (x.rank - 2), strides=[stride] * (x.rank - 2))
    b.push(y, (*x.shape[:2], *(moved(dim, 2, stride, 0) for dim in x.shape[2:])))


@step("reduce", 3)
def _reduce(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: v.rank > 2)
    if x is None:
        return
    axis, keep = r.randrange(1, x.rank), r.randrange(2)
    kind = r.choice(("ReduceMean", "ReduceSum", "ReduceSum", "ReduceMax", "ReduceL2", "ReduceSumSquare"))
    shape = [*x.shape]
    shape[axis : axis + 1] = [1] * keep
    b.push(reduce(b, kind, x.name, [axis], keep), shape)


@step("softmax", 2)
def _softmax(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: v.rank > 1)
    if x is not None:
        b.push(b.op(r.choice(("Softmax", "LogSoftmax")), x.name, axis=r.randrange(1, x.rank)), x.shape)


@step("cumulate", 1)
def _cumulate(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: v.rank > 1)
    if x is None:
        return
    axis = r.randrange(1, x.rank)
    if r.random() < 0.5:
        b.push(b.op("CumSum", x.name, b.hold(np.array(axis, dtype=np.int64), "i")), x.shape)
    else:
        b.push(b.op("LpNormalization", x.name, axis=axis, p=2), x.shape)


def _normalised(b: Builder, r: random.Random, kind: str) -> None:
    x = b.pick(r, lambda v: v.rank > 2 and v.fixed(1))
    if x is None:
        return
    n = x.n(1)
    if kind == "batch":
        y = batch_norm(b, r, x)
    elif kind == "instance":
        if b.size(times(x.shape[2], x.shape[-1])) < 2:
            return
        y = Value(b.op("InstanceNormalization", x.name, b.weight(r, n, positive=True), b.weight(r, n)), x.shape)
    else:
        g = r.choice([1, *divisors(n)])
        if b.opset < 21:
            return
        scales = b.weight(r, n, positive=True), b.weight(r, n)
        y = Value(b.op("GroupNormalization", x.name, *scales, num_groups=g), x.shape)
    b.push(y.name, y.shape)


for _kind, _weight in (("batch", 3), ("instance", 2), ("group", 2)):
    step(f"{_kind} norm", _weight)(partial(_normalised, kind=_kind))


@step("layer norm", 3)
def _layer_norm(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: v.rank > 1 and v.fixed(-1) and v.n(-1) > 1)
    if x is None:
        return
    n = x.n(-1)
    scale, bias = b.weight(r, n, positive=True), b.weight(r, n)
    kind = r.choice(("layer", "rms", "spelled out"))
    if kind == "layer" and b.opset >= 17:
        y = b.op("LayerNormalization", x.name, scale, bias, axis=-1)
    elif kind == "rms" and b.opset >= 23:
        y = b.op("RMSNormalization", x.name, scale, axis=-1)
    else:
        apart = b.op("Sub", x.name, reduce(b, "ReduceMean", x.name, [-1], 1))
        spread = reduce(b, "ReduceMean", b.op("Mul", apart, apart), [-1], 1)
        y = b.op("Div", apart, b.op("Sqrt", b.op("Add", spread, b.scalar(1e-3))))
        y = b.op("Add", b.op("Mul", y, scale), bias)
    b.push(y, x.shape)
