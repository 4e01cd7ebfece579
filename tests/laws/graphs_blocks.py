"""Blocks of several operators: residual branches, attention, recurrent layers, shuffles, gates."""

from __future__ import annotations

import random

import numpy as np

from .graphs_builder import Builder, Value, times
from .graphs_steps import activate, batch_norm, convolve, divisors, linear, reduce, spatial, split, step

_TOKENS = (8, 12, 16)


def _tokens(value: Value) -> bool:
    return value.rank == 3 and value.fixed(2) and value.n(2) > 1


@step("residual", 8)
def _residual(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: (spatial(v) and v.n(1) > 1) or (v.rank == 2 and v.fixed(1) and v.n(1) > 1))
    if x is None:
        return
    inner = r.choice((4, 6, 8, 12))
    if x.rank == 2:
        y = linear(b, r, activate(b, r, linear(b, r, x, inner)), x.n(1))
    else:
        y = convolve(b, r, x, inner)
        y = batch_norm(b, r, y) if r.random() < 0.5 else y
        y = convolve(b, r, activate(b, r, y), x.n(1), r.choice((1, 3)), bias=r.random() < 0.5)
    y = Value(b.op("Add", *r.sample((x.name, y.name), 2)), x.shape)
    y = activate(b, r, y) if r.random() < 0.5 else y
    b.push(y.name, y.shape)


@step("branches", 4)
def _branches(b: Builder, r: random.Random) -> None:
    """Inception: branches of different widths side by side."""
    x = b.pick(r, spatial)
    if x is None:
        return
    parts = [convolve(b, r, x, r.choice((2, 3, 4, 6)), r.choice((1, 3))) for _ in range(r.choice((2, 3)))]
    parts = [activate(b, r, part) if r.random() < 0.5 else part for part in parts]
    if len({part.shape[2:] for part in parts}) > 1:
        return
    joint = sum(part.n(1) for part in parts)
    b.push(b.op("Concat", *(part.name for part in parts), axis=1), (x.shape[0], joint, *parts[0].shape[2:]))


@step("shuffle", 4)
def _shuffle(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: spatial(v) and bool(divisors(v.n(1))))
    if x is None:
        return
    g = r.choice(divisors(x.n(1)))
    y = b.reshape(r, x, x.shape[0], g, x.n(1) // g, *x.shape[2:])
    y = b.reshape(r, b.transpose(y, 0, 2, 1, *range(3, y.rank)), *x.shape)
    b.push(y.name, y.shape)


@step("squeeze-excite", 4)
def _squeeze_excite(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: v.rank == 4 and v.fixed(1) and v.n(1) > 1)
    if x is None:
        return
    n, inner = x.n(1), r.choice((2, 3, 4))
    if r.random() < 0.5:
        pooled = Value(b.op("GlobalAveragePool", x.name), (*x.shape[:2], 1, 1))
        gate = convolve(b, r, activate(b, r, convolve(b, r, pooled, inner)), n)
    else:
        pooled = Value(reduce(b, "ReduceMean", x.name, [2, 3], 0), x.shape[:2])
        gate = linear(b, r, activate(b, r, linear(b, r, pooled, inner)), n)
        gate = b.reshape(r, gate, *x.shape[:2], 1, 1)
    gate = Value(b.op(r.choice(("Sigmoid", "HardSigmoid")), gate.name), gate.shape)
    b.push(b.op("Mul", *r.sample((x.name, gate.name), 2)), x.shape)


@step("efficient channel attention", 1)
def _eca(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: v.rank == 4 and v.fixed(1) and v.n(1) > 1)
    if x is None:
        return
    y = Value(b.op("GlobalAveragePool", x.name), (*x.shape[:2], 1, 1))
    y = b.transpose(Value(b.vector("Squeeze", y.name, "axes", [3], 13), y.shape[:3]), 0, 2, 1)
    y = b.transpose(convolve(b, r, y, 1, 3), 0, 2, 1)
    gate = b.op("Sigmoid", b.vector("Unsqueeze", y.name, "axes", [3], 13))
    b.push(b.op("Mul", x.name, gate), x.shape)


@step("patches", 3)
def _patches(b: Builder, r: random.Random) -> None:
    """Between images and tokens."""
    x = b.pick(r, lambda v: v.rank in (3, 4) and v.fixed(1))
    if x is None:
        return
    if x.rank == 4:
        y = b.reshape(r, x, *x.shape[:2], times(x.shape[2], x.shape[3]))
        y = b.transpose(y, 0, 2, 1)
    elif x.fixed(1, 2) and divisors(x.n(1)):
        h = r.choice(divisors(x.n(1)))
        y = b.reshape(r, b.transpose(x, 0, 2, 1), x.shape[0], x.shape[2], h, x.n(1) // h)
    else:
        return
    b.push(y.name, y.shape)


@step("class token", 1)
def _class_token(b: Builder, r: random.Random) -> None:
    """A learned token before the others, expanded to the batch, and perhaps picked afterwards."""
    x = b.pick(r, lambda v: _tokens(v) and v.fixed(1))
    if x is None:
        return
    token = b.weight(r, 1, 1, x.n(2))
    if isinstance(x.shape[0], int):
        token = b.op("Expand", token, b.ints(x.n(0), 1, 1))
    else:
        size = b.op("Gather", b.op("Shape", x.name), b.ints(0), axis=0)
        token = b.op("Expand", token, b.op("Concat", size, b.ints(1, 1), axis=0))
    y = Value(b.op("Concat", token, x.name, axis=1), (x.shape[0], x.n(1) + 1, x.n(2)))
    y = Value(b.op("Add", y.name, b.weight(r, 1, y.n(1), y.n(2))), y.shape)
    b.push(y.name, y.shape)


def _heads(b: Builder, r: random.Random, x: Value, heads: int) -> Value:
    """``b t (h d) -> b h t d``"""
    y = b.reshape(r, x, *x.shape[:2], heads, x.n(2) // heads)
    return b.transpose(y, 0, 2, 1, 3)


def _rotated(b: Builder, r: random.Random, x: Value) -> Value:
    """Rotary positions by halves, for a head size that is even."""
    half = x.n(3) // 2
    one, two = split(b, x.name, [half] * 2, 3)
    turned = b.op("Concat", b.op("Neg", two), one, axis=3)
    angles = b.rng.uniform(-1, 1, (half,)).astype(np.float32)
    table = np.concatenate([angles, angles])
    cos, sin = b.hold(np.cos(table)), b.hold(np.sin(table))
    return Value(b.op("Add", b.op("Mul", x.name, cos), b.op("Mul", turned, sin)), x.shape)


@step("attention", 8)
def _attention(b: Builder, r: random.Random) -> None:
    x = b.pick(r, _tokens)
    if x is None:
        return
    memory = b.pick(r, _tokens) if r.random() < 0.2 else x
    assert memory is not None
    if memory.shape[0] != x.shape[0]:
        return
    heads, d = r.choice((1, 2, 3, 4)), r.choice((2, 4))
    shared = r.choice((1, 1, 2)) if heads == 4 else 1  # queries per key
    wide = heads * d
    cut = wide // shared
    fused = memory is x and shared == 1 and r.random() < 0.5
    if fused:
        packed = linear(b, r, x, 3 * wide)
        if r.random() < 0.5:
            names = split(b, packed.name, [wide] * 3, 2)
            q, k, v = (_heads(b, r, Value(name, (*x.shape[:2], wide)), heads) for name in names)
        else:
            y = b.transpose(b.reshape(r, packed, *x.shape[:2], 3, heads, d), 2, 0, 3, 1, 4)
            at = (b.hold(np.array(i, dtype=np.int64), "i") for i in range(3))
            q, k, v = (Value(b.op("Gather", y.name, i, axis=0), y.shape[1:]) for i in at)
    else:
        q = _heads(b, r, linear(b, r, x, wide, r.random() < 0.7), heads)
        k = _heads(b, r, linear(b, r, memory, cut, r.random() < 0.7), heads // shared)
        v = _heads(b, r, linear(b, r, memory, cut, r.random() < 0.7), heads // shared)
    if r.random() < 0.25:
        q, k = _rotated(b, r, q), _rotated(b, r, k)
    if shared > 1:
        k, v = (_repeated(b, r, one, shared) for one in (k, v))
    if b.opset >= 23 and r.random() < 0.4:
        y = Value(b.op("Attention", q.name, k.name, v.name), q.shape)
    else:
        if r.random() < 0.5:
            q = Value(b.op("Mul", q.name, b.scalar(d**-0.5)), q.shape)
        product = b.op("MatMul", q.name, b.transpose(k, 0, 1, 3, 2).name)
        if r.random() < 0.3 and q.fixed(2) and k.fixed(2):
            mask = np.triu(np.full((q.n(2), k.n(2)), -1e4, dtype=np.float32), 1)
            product = b.op("Add", product, b.hold(mask))
        y = Value(b.op("MatMul", b.op("Softmax", product, axis=-1), v.name), q.shape)
    y = b.reshape(r, b.transpose(y, 0, 2, 1, 3), *x.shape[:2], wide)
    y = linear(b, r, y, x.n(2))
    if r.random() < 0.5:
        y = Value(b.op("Add", x.name, y.name), x.shape)
    b.push(y.name, y.shape)


def _repeated(b: Builder, r: random.Random, x: Value, times_: int) -> Value:
    """Every head of the keys ``times_`` times, one after another."""
    heads = x.n(1)
    lifted = b.vector("Unsqueeze", x.name, "axes", [2], 13)
    if r.random() < 0.5:
        lifted = b.op("Expand", lifted, b.ints(1, 1, times_, 1, 1))
    else:
        lifted = b.op("Tile", lifted, b.ints(1, 1, times_, 1, 1))
    return b.reshape(
        r, Value(lifted, (x.shape[0], heads, times_, *x.shape[2:])), x.shape[0], heads * times_, *x.shape[2:]
    )


@step("channel attention", 2)
def _channel_attention(b: Builder, r: random.Random) -> None:
    """Channels attend to channels: the scores have heads x d x d."""
    x = b.pick(r, _tokens)
    if x is None:
        return
    heads, d = r.choice((1, 2, 3)), r.choice((2, 4))
    q, k, v = (_heads(b, r, linear(b, r, x, heads * d), heads) for _ in range(3))
    scores = b.op("Softmax", b.op("MatMul", b.transpose(q, 0, 1, 3, 2).name, k.name), axis=-1)
    y = Value(b.op("MatMul", v.name, scores), v.shape)
    y = b.reshape(r, b.transpose(y, 0, 2, 1, 3), *x.shape[:2], heads * d)
    b.push(y.name, y.shape)


@step("linear attention", 2)
def _linear_attention(b: Builder, r: random.Random) -> None:
    x = b.pick(r, _tokens)
    if x is None:
        return
    q, k, v = (_heads(b, r, linear(b, r, x, 8), 2) for _ in range(3))
    q, k = (Value(b.op(r.choice(("Relu", "Elu", "Sigmoid")), one.name), one.shape) for one in (q, k))
    product = b.op("MatMul", b.transpose(k, 0, 1, 3, 2).name, v.name)
    y = b.reshape(r, b.transpose(Value(b.op("MatMul", q.name, product), v.shape), 0, 2, 1, 3), *x.shape[:2], 8)
    b.push(y.name, y.shape)


@step("recurrent", 4)
def _recurrent(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: _tokens(v) and v.n(2) < 24)
    if x is None:
        return
    kind, h, both = r.choice(("LSTM", "GRU", "RNN")), r.choice((3, 4, 6)), r.randrange(2)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    words = [b.transpose(x, 1, 0, 2).name]
    words += [b.weight(r, both + 1, gates * h, x.n(2), scale=0.5), b.weight(r, both + 1, gates * h, h, scale=0.5)]
    if r.random() < 0.7:
        words.append(b.weight(r, both + 1, 2 * gates * h))
    given = {"linear_before_reset": r.randrange(2)} if kind == "GRU" else {}
    direction = "bidirectional" if both else r.choice(("forward", "reverse"))
    results = b.ops(kind, 3 if kind == "LSTM" else 2, *words, hidden_size=h, direction=direction, **given)
    if r.random() < 0.3:
        last = Value(results[1], (both + 1, x.shape[0], h))
        y = b.reshape(r, b.transpose(last, 1, 0, 2), x.shape[0], (both + 1) * h)
    else:
        y = b.transpose(Value(results[0], (x.shape[1], both + 1, x.shape[0], h)), 2, 0, 1, 3)
        y = b.reshape(r, y, *x.shape[:2], (both + 1) * h)
    b.push(y.name, y.shape)


@step("input", 2)
def _input(b: Builder, r: random.Random) -> None:
    """Another input: of data, of the width that some value has, or of indices into a table."""
    kind = r.choice(("table", "same", "new"))
    if kind == "table":
        time = r.choice(("T", 3))
        words = b.input((b.batch, time), 7)
        wide = r.choice(_TOKENS)
        b.push(b.op("Gather", b.weight(r, 6, wide), words.name, axis=0), (b.batch, time, wide))
        return
    x = b.pick(r, lambda v: v.fixed(*range(1, v.rank)))
    if kind == "same" and x is not None:
        new = b.input(x.shape)
    else:
        new = b.input(r.choice(((b.batch, 3, 4, 4), (b.batch, "T", 4), (b.batch, 5))))
    b.push(new.name, new.shape)


@step("output", 1)
def _output(b: Builder, r: random.Random) -> None:
    """Some inner value is seen from outside as well."""
    x = b.pick(r)
    if x is not None and x.name not in {name for name, _, _ in b.inputs} and x not in b.outputs:
        b.outputs.append(x)
