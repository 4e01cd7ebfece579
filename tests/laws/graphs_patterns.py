"""What exporters write where an operator is missing: merged batches, norms and attention spelled out, tied tables."""

from __future__ import annotations

import random

import numpy as np

from .graphs_builder import Builder, Value, times
from .graphs_steps import activate, divisors, linear, step


def _tokens(value: Value) -> bool:
    return value.rank == 3 and value.fixed(2) and value.n(2) > 1


def _as(b: Builder, x: str, like: Value, shape: tuple[int | str, ...]) -> Value:
    """Reshape to sizes that are read off another value where they are symbolic."""
    whole = b.op("Shape", like.name)
    parts = []
    for dim in shape:
        if isinstance(dim, int):
            parts.append(b.ints(dim))
        else:
            at = b.hold(np.array([like.shape.index(dim)], dtype=np.int64), "i")
            parts.append(b.op("Gather", whole, at, axis=0))
    return Value(b.op("Reshape", x, b.op("Concat", *parts, axis=0)), shape)


@step("rows", 3)
def _rows(b: Builder, r: random.Random) -> None:
    """Batch and time in one axis, a layer, and back."""
    x = b.pick(r, _tokens)
    if x is None:
        return
    flat = Value(b.op("Reshape", x.name, b.ints(-1, x.n(2))), (times(x.shape[0], x.shape[1]), x.n(2)))
    y = activate(b, r, linear(b, r, flat, r.choice((4, 6, 8, 12))))
    y = _as(b, y.name, x, (*x.shape[:2], y.n(1)))
    b.push(y.name, y.shape)


@step("windows", 2)
def _windows(b: Builder, r: random.Random) -> None:
    """Windows of an image become batches of tokens, as in Swin, and go back."""
    x = b.pick(r, lambda v: v.rank == 4 and v.fixed(1, 2, 3) and v.n(2) % 2 == 0 and v.n(3) % 2 == 0)
    if x is None:
        return
    n, c, h, w = x.shape[0], x.n(1), x.n(2), x.n(3)
    y = b.transpose(x, 0, 2, 3, 1)
    six = (n, h // 2, 2, w // 2, 2, c)
    y = b.transpose(b.reshape(r, y, *six), 0, 1, 3, 2, 4, 5)
    y = Value(b.op("Reshape", y.name, b.ints(-1, 4, c)), (times(n, h * w // 4), 4, c))
    out = r.choice((4, 6, 8))
    y = linear(b, r, activate(b, r, linear(b, r, y, r.choice((4, 8)))), out)
    target = b.ints(-1, h // 2, w // 2, 2, 2, out)
    y = Value(b.op("Reshape", y.name, target), (n, h // 2, w // 2, 2, 2, out))
    y = b.transpose(y, 0, 5, 1, 3, 2, 4)
    y = b.reshape(r, y, n, out, h, w)
    b.push(y.name, y.shape)


def _heads_in_batch(b: Builder, r: random.Random, x: Value, heads: int) -> Value:
    """``n t (h d) -> (n h) t d``, by way of time first"""
    d = x.n(2) // heads
    y = b.transpose(x, 1, 0, 2)
    y = _as_merged(b, y, (y.shape[0], times(x.shape[0], heads), d))
    return b.transpose(y, 1, 0, 2)


def _as_merged(b: Builder, x: Value, shape: tuple[int | str, ...]) -> Value:
    """Reshape with the first axis kept and the second inferred."""
    return Value(b.op("Reshape", x.name, b.ints(0, -1, shape[2])), shape)  # type: ignore[arg-type]


@step("attention in the batch", 3)
def _attention(b: Builder, r: random.Random) -> None:
    """Heads beside the batch, as ``torch.nn.MultiheadAttention`` has them."""
    x = b.pick(r, _tokens)
    if x is None:
        return
    heads, d = r.choice((1, 2, 3)), r.choice((2, 4))
    q, k, v = (_heads_in_batch(b, r, linear(b, r, x, heads * d), heads) for _ in range(3))
    scores = b.op("Softmax", b.op("MatMul", q.name, b.transpose(k, 0, 2, 1).name), axis=-1 if b.opset >= 13 else 2)
    y = b.transpose(Value(b.op("MatMul", scores, v.name), q.shape), 1, 0, 2)
    y = _as(b, y.name, x, (x.shape[1], x.shape[0], heads * d)) if x.shape[0] != x.shape[1] else None
    if y is not None:
        y = b.transpose(linear(b, r, y, x.n(2)), 1, 0, 2)
        b.push(b.op("Add", x.name, y.name), x.shape)


@step("attention by equations", 2)
def _equations(b: Builder, r: random.Random) -> None:
    x = b.pick(r, _tokens)
    if x is None or b.opset < 12:
        return
    heads, d = r.choice((1, 2, 3)), r.choice((2, 3, 4))
    if r.random() < 0.5:
        weights = [b.weight(r, x.n(2), heads, d, scale=x.n(2) ** -0.5) for _ in range(3)]
        q, k, v = (b.op("Einsum", x.name, w, equation="btc,chd->bthd") for w in weights)
    else:
        made = (linear(b, r, x, heads * d) for _ in range(3))
        q, k, v = (b.reshape(r, y, *x.shape[:2], heads, d).name for y in made)
    scores = b.op("Softmax", b.op("Einsum", q, k, equation="bqhd,bkhd->bhqk"), axis=-1)
    y = b.op("Einsum", scores, v, equation="bhqk,bkhd->bqhd")
    if r.random() < 0.5:
        out = r.choice((4, 6))
        b.push(b.op("Einsum", y, b.weight(r, heads, d, out, scale=0.3), equation="bqhd,hde->bqe"), (*x.shape[:2], out))
    else:
        made_ = b.reshape(r, Value(y, (*x.shape[:2], heads, d)), *x.shape[:2], heads * d)
        b.push(made_.name, made_.shape)


@step("group norm spelled out", 2)
def _group_norm(b: Builder, r: random.Random) -> None:
    """Reshape to groups, InstanceNormalization, and back, as older exporters write it."""
    x = b.pick(r, lambda v: v.rank == 4 and v.fixed(1) and v.n(1) > 1)
    if x is None:
        return
    g = r.choice([1, *divisors(x.n(1))])
    rest = times(times(x.n(1) // g, x.shape[2]), x.shape[3])
    if b.size(rest) < 2:
        return
    y = b.op("Reshape", x.name, b.ints(0, g, -1))
    y = b.op("InstanceNormalization", y, b.weight(r, g, positive=True), b.weight(r, g))
    y = b.op("Reshape", y, b.op("Shape", x.name))
    y = b.op("Add", b.op("Mul", y, b.weight(r, x.n(1), 1, 1)), b.weight(r, x.n(1), 1, 1))
    b.push(y, x.shape)


@step("tied table", 1)
def _tied_table(b: Builder, r: random.Random) -> None:
    """One table that looks words up and is the weight of the last layer as well."""
    words, inner = b.input((b.batch, 3), 7), r.choice((6, 8))
    table = b.weight(r, 6, inner)
    x = Value(b.op("Gather", table, words.name, axis=0), (b.batch, 3, inner))
    x = Value(b.op("Add", x.name, linear(b, r, activate(b, r, linear(b, r, x, 8)), inner).name), x.shape)
    y = b.op("MatMul", x.name, b.op("Transpose", table, perm=[1, 0]))
    b.push(y, (b.batch, 3, 6))


@step("spread", 2)
def _spread(b: Builder, r: random.Random) -> None:
    """An axis of one index meets a constant of several."""
    x = b.pick(r, lambda v: 1 in v.shape[1:] and v.rank > 1)
    if x is None:
        return
    axis = r.choice([a for a in range(1, x.rank) if x.shape[a] == 1])
    n = r.choice((3, 4, 6))
    shape = [n if a == axis else 1 for a in range(axis, x.rank)]
    y = b.op(r.choice(("Mul", "Add")), x.name, b.weight(r, *shape))
    b.push(y, (*x.shape[:axis], n, *x.shape[axis + 1 :]))


@step("stack", 2)
def _stack(b: Builder, r: random.Random) -> None:
    """Values side by side on a new axis, which is summed, mixed or looked into afterwards."""
    x = b.pick(r, lambda v: 1 < v.rank < 4)
    if x is None:
        return
    y = r.choice([v for v in b.pool if v.shape == x.shape])
    axis = r.randrange(1, x.rank + 1)
    parts = [b.vector("Unsqueeze", one.name, "axes", [axis], 13) for one in (x, y)]
    b.push(b.op("Concat", *parts, axis=axis), (*x.shape[:axis], 2, *x.shape[axis:]))


@step("cells", 2)
def _cells(b: Builder, r: random.Random) -> None:
    """A recurrent layer that begins with a state that is computed."""
    x = b.pick(r, lambda v: _tokens(v) and v.n(2) < 24)
    row = b.pick(r, lambda v: v.rank == 2 and v.fixed(1) and x is not None and v.shape[0] == x.shape[0])
    if x is None or row is None:
        return
    kind, h = r.choice(("LSTM", "GRU", "RNN")), r.choice((4, 5, 6))
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    state = b.vector("Unsqueeze", linear(b, r, row, h).name, "axes", [0], 13)
    words = [b.transpose(x, 1, 0, 2).name]
    words += [b.weight(r, 1, gates * h, x.n(2), scale=0.5), b.weight(r, 1, gates * h, h, scale=0.5)]
    words += [b.weight(r, 1, 2 * gates * h), "", state]
    if kind == "LSTM" and r.random() < 0.6:
        words.append(state)
        if r.random() < 0.5:
            words.append(b.weight(r, 1, 3 * h))
    results = b.ops(kind, 3 if kind == "LSTM" else 2, *words, hidden_size=h)
    b.push(b.vector("Squeeze", results[1], "axes", [0], 13), (x.shape[0], h))
    y = b.vector("Squeeze", results[0], "axes", [1], 13)
    y_ = b.transpose(Value(y, (x.shape[1], x.shape[0], h)), 1, 0, 2)
    b.push(y_.name, y_.shape)
