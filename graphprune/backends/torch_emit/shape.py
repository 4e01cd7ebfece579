"""Operators that only move elements, and those that make tensors of a given shape."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx

from graphprune.backends.torch_emit.registry import Refuse, Sizes, emits
from graphprune.backends.torch_emit.view import View
from graphprune.backends.torch_ops import index

_LARGE = 1 << 31  # ends of slices beyond this mean: to the end


@emits("Reshape")
def _reshape(v: View) -> fx.Node:
    target = list(v.items(1)) if v.has(1) else [int(n) for n in v.attr("shape")]
    if not v.attr("allowzero", 0):
        target = [v.size(0, k) if n == 0 and not isinstance(n, fx.Node) else n for k, n in enumerate(target)]
    if sum(isinstance(n, fx.Node) for n in target) == 1 and -1 not in target and 0 not in v.out_shape():
        target = [-1 if isinstance(n, fx.Node) else n for n in target]
    return v.call(torch.reshape, v.x(), tuple(target))


@emits("Flatten")
def _flatten(v: View) -> fx.Node:
    rank = v.rank()
    axis = int(v.attr("axis", 1))
    axis = axis + rank if axis < 0 else axis
    if axis == 0:
        return v.call(torch.reshape, v.x(), (1, -1))
    if axis == rank:
        return v.call(torch.reshape, v.x(), (-1, 1))
    if axis == 1:
        return v.call(torch.flatten, v.x(), 1)
    return v.call(torch.flatten, v.call(torch.flatten, v.x(), 0, axis - 1), 1)


@emits("Transpose")
def _transpose(v: View) -> fx.Node:
    order = [int(n) for n in v.attr("perm") or reversed(range(v.rank()))]
    if order == list(range(v.rank())):
        return v.x()
    moved = [k for k, n in enumerate(order) if k != n]
    if len(moved) == 2:
        return v.call(torch.transpose, v.x(), *moved)
    return v.call(torch.permute, v.x(), tuple(order))


@emits("Squeeze")
def _squeeze(v: View) -> fx.Node:
    axes = v.listed(1, "axes")
    if axes is None:
        axes = [k for k, n in enumerate(v.shape(0)) if n == 1]
    return v.call(torch.squeeze, v.x(), tuple(axis % max(v.rank(), 1) for axis in axes)) if axes else v.x()


@emits("Unsqueeze")
def _unsqueeze(v: View) -> fx.Node:
    axes = v.listed(1, "axes") or []
    made = v.x()
    for axis in sorted(axis % (v.rank() + len(axes)) for axis in axes):
        made = v.call(torch.unsqueeze, made, axis)
    return made


@emits("Concat")
def _concat(v: View) -> fx.Node:
    given = [v.x(k) for k in range(v.count)]
    return given[0] if len(given) == 1 else v.call(torch.cat, given, dim=v.axis(1))


@emits("Split")
def _split(v: View) -> Any:
    axis, parts = v.axis(0), len(v.node.outputs)
    given: Any = list(v.items(1)) if v.has(1) else v.attr("split")
    if not v.moves(0, axis):
        given = [v.out_shape(k)[axis] for k in range(parts)]
        if len(set(given)) == 1 and given[0]:
            given = given[0]
        made = v.call(torch.split, v.x(), given, dim=axis)
    elif given is not None:
        made = v.call(torch.split, v.x(), [n if isinstance(n, fx.Node) else int(n) for n in given], dim=axis)
    else:
        made = v.call(index.split_equally, v.x(), int(v.attr("num_outputs", parts)), axis)
    return v.outputs(made)


@emits("Slice")
def _slice(v: View) -> fx.Node:
    starts, ends = (_bounds(v, k, name) for k, name in ((1, "starts"), (2, "ends")))
    axes = v.listed(3, "axes") or list(range(len(starts)))
    steps = v.listed(4, "steps") or [1] * len(axes)
    x = v.x()
    parts: list[slice] = [slice(None)] * v.rank()
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis %= v.rank()
        if step < 0:
            x = _backwards(v, x, axis, start, end, step)
            continue
        first = None if not isinstance(start, fx.Node) and (start == 0 or start <= -_LARGE) else start
        last = None if not isinstance(end, fx.Node) and end >= _LARGE else end
        still = not isinstance(start, fx.Node) and not isinstance(end, fx.Node) and not v.moves(0, axis)
        if still and first is None and end >= v.shape(0)[axis]:
            last = None
        if not still and isinstance(last, int) and last <= -_LARGE:
            last = 0
        parts[axis] = slice(first, last, None if step == 1 else step)
    while parts and parts[-1] == slice(None):
        parts.pop()
    return v.call(operator.getitem, x, tuple(parts)) if parts else x


def _bounds(v: View, k: int, name: str) -> list[Any]:
    return list(v.items(k)) if v.has(k) else [int(n) for n in v.attr(name)]


def _backwards(v: View, x: fx.Node, axis: int, start: Any, end: Any, step: int) -> fx.Node:
    size = v.shape(0)[axis]
    plain = not isinstance(start, fx.Node) and not isinstance(end, fx.Node)
    from_end = plain and (start == -1 or start >= (_LARGE if v.moves(0, axis) else size - 1))
    if step == -1 and from_end and end < -(_LARGE if v.moves(0, axis) else size):
        return v.call(torch.flip, x, [axis])
    return v.call(index.slice_backwards, x, axis, start, end, step)


@emits("Expand")
def _expand(v: View) -> fx.Node:
    """Both shapes are broadcast against each other; an axis that stays is -1."""
    target, own = list(v.items(1)), v.shape(0)
    rank = max(len(target), len(own))
    sizes: list[Any] = []
    for k in range(rank):
        asked = target[k - rank + len(target)] if k >= rank - len(target) else 1
        at = k - rank + len(own)
        if at < 0:
            sizes.append(asked)
        elif own[at] != 1 or v.moves(0, at) or (not isinstance(asked, fx.Node) and asked == 1):
            sizes.append(-1)
        else:
            sizes.append(asked)
    if rank == len(own) and all(not isinstance(n, fx.Node) and n == -1 for n in sizes):
        return v.x()
    return v.method("expand", v.x(), *sizes)


@emits("Tile")
def _tile(v: View) -> fx.Node:
    if v.has(2):
        raise Refuse("this form of the operator was dropped in opset 6")
    return v.method("repeat", v.x(), *v.items(1))


@emits("Pad")
def _pad(v: View) -> fx.Node:
    pads: list[Any] = list(v.items(1)) if v.has(1) else [int(n) for n in v.attr("pads") or v.attr("paddings")]
    axes = [axis % v.rank() for axis in v.listed(3, "") or range(v.rank())] if v.has(3) else list(range(v.rank()))
    before: list[Any] = [0] * v.rank()
    after: list[Any] = [0] * v.rank()
    for k, axis in enumerate(axes):
        before[axis], after[axis] = pads[k], pads[k + len(axes)]
    mode = v.attr("mode", "constant")
    if mode != "constant":
        return v.call(index.pad, v.x(), before, after, mode)
    sides = [n for k in reversed(range(v.rank())) for n in (before[k], after[k])]
    while len(sides) > 2 and not isinstance(sides[-1], fx.Node) and not isinstance(sides[-2], fx.Node):
        if sides[-1] or sides[-2]:
            break
        del sides[-2:]
    if not any(isinstance(n, fx.Node) or n for n in sides):
        return v.x()
    value = v.arg(2) if v.has(2) else float(v.attr("value", 0.0))
    if isinstance(value, fx.Node):
        raise Refuse("what it pads with is computed")
    return v.call(F.pad, v.x(), tuple(sides), value=value)


@emits("DepthToSpace")
def _depth_to_space(v: View) -> fx.Node:
    block = int(v.attr("blocksize"))
    if v.attr("mode", "DCR") == "CRD":
        return v.call(F.pixel_shuffle, v.x(), block)
    return v.call(index.depth_to_space, v.x(), block, True)


@emits("SpaceToDepth")
def _space_to_depth(v: View) -> fx.Node:
    return v.call(index.space_to_depth, v.x(), int(v.attr("blocksize")))


@emits("Trilu")
def _trilu(v: View) -> fx.Node:
    k = v.items(1)[0] if v.has(1) else 0
    return v.call(torch.triu if v.attr("upper", 1) else torch.tril, v.x(), k)


@emits("Shape")
def _shape(v: View) -> Sizes:
    rank = v.rank()
    start, end = int(v.attr("start", 0)), v.attr("end")
    return Sizes.of([v.size(0, k) for k in range(rank)][start : None if end is None else int(end)])


@emits("Size")
def _size(v: View) -> Sizes:
    made: Any = 1
    for k in range(v.rank()):
        n = v.size(0, k)
        made = (
            made * n if not isinstance(made, fx.Node) and not isinstance(n, fx.Node) else v.call(operator.mul, made, n)
        )
    return Sizes.of([made], True)


@emits("ConstantOfShape")
def _constant_of_shape(v: View) -> fx.Node:
    held = v.attr("value")
    value = np.zeros(1, np.float32) if held is None else held.numpy()
    like = v.like()
    kind = {} if value.dtype.kind == "f" else {"dtype": v.dtype(held.dtype)}
    return v.method("new_full", like, tuple(v.items(0)), value.reshape(-1)[0].item(), **kind)


@emits("Range")
def _range(v: View) -> fx.Node:
    start, limit, step = (v.items(k)[0] for k in range(3))
    where = v.call(getattr, v.like(), "device")
    kind = v.type(0)
    given = {} if kind is None else {"dtype": v.dtype(kind)}
    return v.call(torch.arange, start, limit, step, **given, device=where)


@emits("EyeLike")
def _eye_like(v: View) -> fx.Node:
    k = int(v.attr("k", 0))
    dtype = v.dtype(int(v.attr("dtype") or v.type(0) or 1))
    rows = v.method("new_ones", v.like(), (v.size(0, 0), v.size(0, 1)), dtype=dtype)
    return v.call(torch.triu, v.call(torch.tril, rows, k), k)
