"""Operators that move elements: Concat, Split, Slice, Gather, Pad, Reshape, Transpose and their like."""

from __future__ import annotations

import random

import numpy as np

from .graphs_builder import Builder, Value, times
from .graphs_steps import divisors, split, step


@step("concat", 5)
def _concat(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: v.rank > 1)
    if x is None:
        return
    axes = [a for a in range(1, x.rank) if x.fixed(a)]
    if not axes:
        return
    axis = r.choice([1, x.rank - 1, r.choice(axes)])
    if axis not in axes:
        return

    def fits(v: Value) -> bool:
        same = all(n == m or a == axis for a, (n, m) in enumerate(zip(x.shape, v.shape, strict=False)))
        return v.rank == x.rank and v.fixed(axis) and same

    parts = [x, *(r.choice([v for v in b.pool if fits(v)]) for _ in range(r.choice((1, 1, 2))))]
    r.shuffle(parts)
    if r.random() < 0.15:
        fill = [1 if isinstance(n, str) else n for n in x.shape]
        fill[axis] = 2
        if all(isinstance(n, int) for n in x.shape):
            parts.append(Value(b.weight(r, *fill), tuple(fill)))
    shape = [*x.shape]
    shape[axis] = sum(v.n(axis) for v in parts)
    if b.fits(shape):
        b.push(b.op("Concat", *(v.name for v in parts), axis=r.choice((axis, axis - x.rank))), shape)


@step("split", 4)
def _split(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: any(v.fixed(a) and v.n(a) > 3 for a in range(1, v.rank)))
    if x is None:
        return
    axis = r.choice([a for a in range(1, x.rank) if x.fixed(a) and x.n(a) > 3])
    n = x.n(axis)
    if n % 2 == 0 and r.random() < 0.6:
        sizes = [n // 2] * 2
    else:
        at = r.randrange(1, n - 1)
        sizes = [at, n - at] if r.random() < 0.7 else [at, 1, n - at - 1]
    sizes = [m for m in sizes if m]
    even = len(set(sizes)) == 1
    if not even or r.random() < 0.6:
        parts = split(b, x.name, sizes, axis)
    else:
        parts = b.ops("Split", len(sizes), x.name, axis=axis, **({"num_outputs": len(sizes)} if b.opset >= 18 else {}))
    values = [Value(p, (*x.shape[:axis], m, *x.shape[axis + 1 :])) for p, m in zip(parts, sizes, strict=True)]
    if even and r.random() < 0.4:  # a gated unit
        gate = b.op(r.choice(("Sigmoid", "Tanh", "Relu")), values[1].name)
        b.push(b.op("Mul", values[0].name, gate), values[0].shape)
    else:
        r.shuffle(values)
        for value in values:
            b.push(value.name, value.shape)


@step("slice", 4)
def _slice(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: any(v.fixed(a) and v.n(a) > 3 for a in range(1, v.rank)))
    if x is None:
        return
    axis = r.choice([a for a in range(1, x.rank) if x.fixed(a) and x.n(a) > 3])
    n, step_ = x.n(axis), r.choice((1, 1, 1, 1, 2, 3, -1, -2))
    low = r.randrange(0, n // 2)
    high = r.randrange(n // 2 + 1, n + 1)
    if r.random() < 0.3 and abs(step_) > 1:
        low, high = 0, n
    if step_ > 0:
        start, stop = (low if r.random() < 0.7 else low - n), (high if r.random() < 0.5 else high - n or 2**62)
    else:
        start, stop = high - 1, (low - 1 if low else -(2**62))
    kept = len(range(n)[slice(start, stop if abs(stop) < 2**61 else None, step_)])
    if not kept:
        return
    y = b.op("Slice", x.name, b.ints(start), b.ints(stop), b.ints(axis), b.ints(step_))
    b.push(y, (*x.shape[:axis], kept, *x.shape[axis + 1 :]))


@step("gather", 4)
def _gather(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: any(v.fixed(a) and v.n(a) > 1 for a in range(1, v.rank)))
    if x is None:
        return
    axis = r.choice([a for a in range(1, x.rank) if x.fixed(a) and x.n(a) > 1])
    n = x.n(axis)
    kind = r.choice(("permutation", "permutation", "some", "rotation", "any", "one"))
    chosen = {
        "permutation": lambda: r.sample(range(n), n),
        "some": lambda: sorted(r.sample(range(n), r.randrange(1, n + 1))),
        "rotation": lambda: [(i + n // 2) % n for i in range(n)],
        "any": lambda: [r.randrange(-n, n) for _ in range(r.randrange(1, n + 2))],
        "one": lambda: [r.randrange(n)],
    }[kind]()
    if kind == "one" and x.rank > 2 and r.random() < 0.6:
        y = b.op("Gather", x.name, b.hold(np.array(chosen[0], dtype=np.int64), "i"), axis=axis)
        b.push(y, (*x.shape[:axis], *x.shape[axis + 1 :]))
        return
    b.push(b.op("Gather", x.name, b.ints(*chosen), axis=axis), (*x.shape[:axis], len(chosen), *x.shape[axis + 1 :]))


@step("pad", 2)
def _pad(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: v.rank > 1 and v.fixed(*range(1, v.rank)))
    if x is None or not b.fits(tuple(times(2, n) for n in x.shape)):
        return
    mode = r.choice(("constant", "constant", "reflect", "edge"))
    begin, end = [0] * x.rank, [0] * x.rank
    for axis in range(1, x.rank):
        if r.random() < 0.5 and x.n(axis) > 2:
            begin[axis], end[axis] = r.randrange(3), r.randrange(2)
    words = [x.name, b.ints(*begin, *end)] + ([b.scalar(0.5)] if mode == "constant" and r.random() < 0.5 else [])
    shape = [n if isinstance(n, str) else n + p + q for n, p, q in zip(x.shape, begin, end, strict=True)]
    b.push(b.op("Pad", *words, mode=mode), shape)


@step("transpose", 3)
def _transpose(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: v.rank > 2)
    if x is not None:
        y = b.transpose(x, 0, *r.sample(range(1, x.rank), x.rank - 1))
        b.push(y.name, y.shape)


@step("factor", 3)
def _factor(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: v.rank < 5 and any(v.fixed(a) and divisors(v.n(a)) for a in range(1, v.rank)))
    if x is None:
        return
    axis = r.choice([a for a in range(1, x.rank) if x.fixed(a) and divisors(x.n(a))])
    outer = r.choice(divisors(x.n(axis)))
    y = b.reshape(r, x, *x.shape[:axis], outer, x.n(axis) // outer, *x.shape[axis + 1 :])
    b.push(y.name, y.shape)


@step("merge", 5)
def _merge(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: v.rank > 2)
    if x is None:
        return
    if x.rank > 2 and x.fixed(*range(1, x.rank)) and r.random() < 0.3:
        y = Value(b.op("Flatten", x.name, axis=1), (x.shape[0], int(np.prod([x.n(a) for a in range(1, x.rank)]))))
    else:
        axis = r.randrange(1, x.rank - 1)
        merged = times(x.shape[axis], x.shape[axis + 1])
        y = b.reshape(r, x, *x.shape[:axis], merged, *x.shape[axis + 2 :])
    b.push(y.name, y.shape)


@step("lift", 2)
def _lift(b: Builder, r: random.Random) -> None:
    """Unsqueeze, or Squeeze where there is an axis of one index."""
    x = b.pick(r)
    if x is None:
        return
    single = [a for a in range(1, x.rank) if x.shape[a] == 1]
    if single and x.rank > 2:
        axis = r.choice(single)
        b.push(b.vector("Squeeze", x.name, "axes", [axis], 13), (*x.shape[:axis], *x.shape[axis + 1 :]))
    elif x.rank < 4:
        axis = r.randrange(1, x.rank + 1)
        b.push(b.vector("Unsqueeze", x.name, "axes", [axis], 13), (*x.shape[:axis], 1, *x.shape[axis:]))


@step("tile", 2)
def _tile(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: v.rank > 1 and v.fixed(1))
    if x is None or not b.fits((*x.shape, 2)):
        return
    axis = r.randrange(1, x.rank)
    if x.shape[axis] == 1 and r.random() < 0.7:
        target = [1] * x.rank
        target[axis] = 3
        b.push(b.op("Expand", x.name, b.ints(*target)), (*x.shape[:axis], 3, *x.shape[axis + 1 :]))
        return
    repeats = [1] * x.rank
    repeats[axis] = 2
    b.push(b.op("Tile", x.name, b.ints(*repeats)), (*x.shape[:axis], times(2, x.shape[axis]), *x.shape[axis + 1 :]))


@step("scatter", 2)
def _scatter(b: Builder, r: random.Random) -> None:
    """Update some positions of axis 1 of a value whose batch is known, or of axis 0 turned to the front."""
    x = b.pick(r, lambda v: v.rank > 2 and v.fixed(1) and v.n(1) > 1)
    if x is None:
        return
    y = b.transpose(x, 1, 0, *range(2, x.rank))
    at = sorted(r.sample(range(x.n(1)), r.randrange(1, x.n(1))))
    update = b.op("Gather", b.op("Neg", y.name), b.ints(*at), axis=0)
    kind = r.choice(("ScatterND", "GatherND"))
    if kind == "ScatterND":
        where = b.hold(np.array(at, dtype=np.int64)[:, None], "i")
        y = Value(b.op("ScatterND", y.name, where, update), y.shape)
    else:
        y = Value(b.op("GatherND", y.name, b.hold(np.array(at, dtype=np.int64)[:, None], "i")), (len(at), *y.shape[1:]))
    back = b.transpose(y, 1, 0, *range(2, x.rank))
    b.push(back.name, back.shape)


@step("resize", 2)
def _resize(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: v.rank == 4 and v.fixed(1, 2, 3))
    if x is None or not b.fits(tuple(times(2, n) for n in x.shape)):
        return
    mode = r.choice(("nearest", "linear"))
    h, w = x.n(2), x.n(3)
    none = b.hold(np.zeros(0, dtype=np.float32)) if b.opset < 13 else ""
    roi = none
    if isinstance(x.shape[0], int) and r.random() < 0.5:
        y = b.op("Resize", x.name, roi, "" if b.opset >= 13 else none, b.ints(x.n(0), x.n(1), h * 2, w * 2), mode=mode)
    else:
        y = b.op("Resize", x.name, roi, b.hold(np.array([1, 1, 2, 2], dtype=np.float32)), mode=mode)
    b.push(y, (*x.shape[:2], h * 2, w * 2))


@step("depth", 2)
def _depth(b: Builder, r: random.Random) -> None:
    x = b.pick(r, lambda v: v.rank == 4 and v.fixed(1, 2, 3))
    if x is None:
        return
    if x.n(1) % 4 == 0 and r.random() < 0.6:
        y = b.op("DepthToSpace", x.name, blocksize=2, mode=r.choice(("DCR", "CRD")))
        b.push(y, (x.shape[0], x.n(1) // 4, x.n(2) * 2, x.n(3) * 2))
    elif x.n(2) % 2 == 0 and x.n(3) % 2 == 0:
        b.push(b.op("SpaceToDepth", x.name, blocksize=2), (x.shape[0], x.n(1) * 4, x.n(2) // 2, x.n(3) // 2))
