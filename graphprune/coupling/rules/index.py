"""Operators that pick indices."""

from __future__ import annotations

import numpy as np

from graphprune.coupling.registry import NodeView, Refuse, rule
from graphprune.coupling.rules.norm import clause, letters
from graphprune.ir.program import Array

_RUNS = 4096  # segments of one axis, single units perhaps, beyond which an index list is not followed


def picked(n: int, indices: Array, name: str) -> tuple[str, str, str]:
    """Operand axis, result axis and size clauses for picking constant ``indices`` of an axis of ``n``."""
    chosen = np.asarray(indices, dtype=np.int64).reshape(-1) % n
    if not len(chosen):
        raise Refuse("it picks nothing")
    breaks = np.flatnonzero(np.diff(chosen) != 1) + 1
    runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(chosen, breaks)]
    edges = sorted({0, n, *(edge for run in runs for edge in run)})
    if len(edges) > _RUNS + 1:
        raise Refuse(f"it picks {len(runs)} separate runs of indices")
    pieces = [f"{name}_{start}" for start in edges[:-1]]
    at = {start: i for i, start in enumerate(edges)}
    taken = [piece for start, stop in runs for piece in pieces[at[start] : at[stop]]]
    sizes = "".join(f" | {p}={stop - start}" for p, start, stop in zip(pieces, edges[:-1], edges[1:], strict=True))
    return _joint(pieces), _joint(taken), sizes


def _joint(parts: list[str]) -> str:
    return f"({' + '.join(parts)})" if len(parts) > 1 else parts[0]


def slice_bounds(node: NodeView) -> dict[int, tuple[int, int, int]]:
    """Axis -> (start, stop, step) of a Slice as Python's ``range`` takes them; computed bounds give ``(0, 0, 0)``."""
    shape = node.shape(0)
    rank = len(shape)
    if node.attr("starts") is not None:
        starts, ends = node.attr("starts"), node.attr("ends")
        axes, steps = node.attr("axes"), None
    else:
        starts, ends, axes, steps = (node.value(k) for k in (1, 2, 3, 4))
        if node.has(3) and axes is None:
            raise Refuse("its axes are computed")
    count = len(axes) if axes is not None else len(starts) if starts is not None else rank
    chosen = [int(a) % rank for a in (axes if axes is not None else range(count))]
    if starts is None or ends is None or (node.has(4) and steps is None):
        return dict.fromkeys(chosen, (0, 0, 0))
    strides = [1] * count if steps is None else [int(s) for s in steps]
    return {
        axis: slice(int(a), int(b), step).indices(shape[axis])
        if step > 0
        else slice(int(a), None if int(b) < -shape[axis] else int(b), step).indices(shape[axis])
        for axis, a, b, step in zip(chosen, starts, ends, strides, strict=True)
    }


@rule("Slice", moves=True)
def _slice(node: NodeView) -> str:
    """(p + x + q) -> x on every sliced axis; every s-th of (x s)"""
    before, after = node.shape(0), node.out()
    names = letters(len(before))
    results = list(names)
    whole: list[str] = []
    sizes = ""
    moving = node.moving(node.node.inputs[0]) | node.moving(node.node.outputs[0])
    for axis, (start, stop, step) in slice_bounds(node).items():
        n = before[axis]
        if step == 1 and (start, stop) == (0, n) and after[axis] == n and axis not in moving:
            continue
        if step == 0 or axis in moving:
            results[axis] = f"y{axis}"
            whole += [names[axis], results[axis]]
        elif abs(step) == 1:
            names[axis], results[axis], given = picked(n, np.arange(start, stop, step), f"a{axis}")
            sizes += given
        elif step > 1 and n % step == 0 and len(range(start, stop, step)) == n // step:
            names[axis], results[axis] = f"(a{axis} s{axis})", f"a{axis}"
            whole.append(f"s{axis}")
            sizes += f" | s{axis}={step}"
        else:  # what is left of it would not be evenly spaced
            results[axis] = f"y{axis}"
            whole += [names[axis], results[axis]]
    return f"{' '.join(names)}, .?, .?, .?, .? -> {' '.join(results)}{sizes}{clause('whole', whole)}"


@rule("Gather", moves=True)
def _gather(node: NodeView) -> str:
    """constant indices pick segments; computed ones leave the axis whole and bring their own axes"""
    shape, axis = node.shape(0), node.axis()
    names = letters(len(shape))
    indices = node.value(1)
    if indices is not None and indices.ndim == 1 and node.name(1) in node.program.fixed:
        data, result, sizes = picked(shape[axis], indices, f"a{axis}")
        before, after = [*names], [*names]
        before[axis], after[axis] = data, result
        return f"{' '.join(before)}, . -> {' '.join(after)}{sizes}"
    after = [*names[:axis], "i*", *names[axis + 1 :]]
    return f"{' '.join(names)}, i* -> {' '.join(after)} | whole: {names[axis]}"


@rule("GatherElements", moves=True)
def _gather_elements(node: NodeView) -> str:
    """axes of equal size pass, the others are whole; on the indexed one the indices bring their own"""
    data, indices, axis = node.shape(0), node.shape(1), node.axis()
    passing = [n == m and i != axis for i, (n, m) in enumerate(zip(data, indices, strict=True))]
    names = [f"a{i}" if ok else f"d{i}" for i, ok in enumerate(passing)]
    chosen = [f"a{i}" if ok else f"i{i}" for i, ok in enumerate(passing)]
    whole = [name for name in (*names, *chosen) if name[0] != "a" and name != f"i{axis}"]
    return f"{' '.join(names)}, {' '.join(chosen)} -> {' '.join(chosen)}{clause('whole', whole)}"


@rule("ScatterND")
def _scatter_nd(node: NodeView) -> str:
    """d* r*, indices, u* r* -> d* r* | whole: d u: what is not indexed passes"""
    indexed, rank = node.shape(1)[-1], len(node.shape(0))
    names = [f"d{i}" if i < indexed else f"r{i}" for i in range(rank)]
    updates = [f"u{i}" for i in range(len(node.shape(1)) - 1)]
    data = " ".join(names)
    return (
        f"{data}, ., {' '.join([*updates, *names[indexed:]])} -> {data}{clause('whole', [*names[:indexed], *updates])}"
    )


def _gather_nd(node: NodeView) -> str:
    """b* d* r*, indices -> b* i* r* | whole: b d i: what is not indexed passes"""
    batch, indices, rank = int(node.attr("batch_dims", 0)), node.shape(1), len(node.shape(0))
    indexed = indices[-1]
    names = [f"b{i}" if i < batch else f"d{i}" if i < batch + indexed else f"r{i}" for i in range(rank)]
    made = [f"i{i}" for i in range(batch, len(indices) - 1)]
    whole = [*names[: batch + indexed], *made]
    after = [*names[:batch], *made, *names[batch + indexed :]]
    return f"{' '.join(names)}, . -> {' '.join(after)}{clause('whole', whole)}"


rule("GatherND", moves=True)(_gather_nd)
rule("GatherND", domain="com.microsoft", moves=True)(_gather_nd)


@rule("ScatterElements", "Scatter")
def _scatter_elements(node: NodeView) -> str:
    """axes of equal size pass, the others and the indexed one are whole"""
    data, updates, axis = node.shape(0), node.shape(2), node.axis()
    passing = [n == m and i != axis for i, (n, m) in enumerate(zip(data, updates, strict=True))]
    names = [f"a{i}" if ok else f"d{i}" for i, ok in enumerate(passing)]
    changed = [f"a{i}" if ok else f"u{i}" for i, ok in enumerate(passing)]
    whole = [name for name in (*names, *changed) if name[0] != "a"]
    spelled = " ".join(changed)
    return f"{' '.join(names)}, {spelled}, {spelled} -> {' '.join(names)}{clause('whole', whole)}"


@rule("ReverseSequence")
def _reverse_sequence(node: NodeView) -> str:
    """x*, . -> x* | whole: the time and batch axes"""
    names = letters(len(node.shape(0)))
    whole = [names[int(node.attr("batch_axis", 1))], names[int(node.attr("time_axis", 0))]]
    return f"{' '.join(names)}, . -> {' '.join(names)}{clause('whole', whole)}"


def _grid_sample(node: NodeView) -> str:
    """n c x*, n y* 2 -> n c y* | whole: x (with 3 axes of space: n y* 3)"""
    return f"n c x*, n y* {len(node.shape(0)) - 2} -> n c y* | whole: x"


rule("GridSample")(_grid_sample)
rule("GridSample", domain="com.microsoft")(_grid_sample)
