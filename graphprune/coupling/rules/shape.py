"""Operators that rearrange axes: lines computed from the observed shapes."""

from __future__ import annotations

from math import gcd

from graphprune.coupling.registry import NodeView, Refuse, declare, rule
from graphprune.coupling.rules.norm import clause, letters

declare("SpaceToDepth  n c (h p) (w q) -> n (p q c) h w | p=@blocksize | q=@blocksize | whole: p q", moves=True)
declare("""
Range            ., ., . -> x                         | whole: x
Shape            _ -> n                               | whole: n
Size             . ->
Trilu            b* r c, .? -> b* r c                 | whole: r c
""")
declare("Trilu  b* r c, .? -> b* r c  | whole: r c", domain="com.microsoft")


@rule("DepthToSpace", moves=True)
def _depth_to_space(node: NodeView) -> str:
    """n (p q c) h w -> n c (h p) (w q), or n (c p q) h w in mode CRD"""
    channels = "(c p q)" if node.attr("mode", "DCR") == "CRD" else "(p q c)"
    return f"n {channels} h w -> n c (h p) (w q) | p=@blocksize | q=@blocksize | whole: p q"


@rule("Expand", moves=True)
def _expand(node: NodeView) -> str:
    """x*, . -> x*"""
    node.constant(1, "sizes")
    return "x*, . -> x*"


@rule("Transpose", moves=True)
def _transpose(node: NodeView) -> str:
    """a0 a1 ... -> permuted"""
    names = letters(len(node.shape(0)))
    perm = node.attr("perm") or range(len(names))[::-1]
    return f"{' '.join(names)} -> {' '.join(names[int(p)] for p in perm)}"


def regroup(before: tuple[int, ...], after: tuple[int, ...], moving: frozenset[int] = frozenset()) -> str:
    """The line of a row-major reshape between two observed shapes.

    ``moving``: axes of the result whose size follows a symbolic dimension. With one of them the target can say ``-1``
    there; with several, a moving axis that also holds other factors cannot be written back, so these stay whole.
    """
    if 0 in before or 0 in after:
        raise Refuse("it has no elements")
    ins: list[list[str]] = [[] for _ in before]
    outs: list[list[str]] = [[] for _ in after]
    sizes: dict[str, int] = {}
    whole: list[str] = []
    left = [[i, n] for i, n in enumerate(before) if n > 1]
    right = [[j, n] for j, n in enumerate(after) if n > 1]

    def take(n: int, on_left: bool, on_right: bool, *, cut: bool = True) -> None:
        name = f"a{len(sizes)}"
        sizes[name] = n
        if not cut:
            whole.append(name)
        for side, terms, use in ((left, ins, on_left), (right, outs, on_right)):
            if use:
                terms[side[0][0]].append(name)
                side[0][1] //= n
                if side[0][1] == 1:
                    side.pop(0)

    while left and right:
        common = gcd(left[0][1], right[0][1])
        if common > 1:
            take(common, True, True)
            continue
        one, other = left[0][1], right[0][1]  # coprime: nothing can be cut until both sides have come equally far
        take(one, True, False, cut=False)
        take(other, False, True, cut=False)
        while one != other:
            if one < other:
                one *= left[0][1]
                take(left[0][1], True, False, cut=False)
            else:
                other *= right[0][1]
                take(right[0][1], False, True, cut=False)
    if len(moving) > 1:
        whole += [name for j in moving if len(outs[j]) > 1 for name in outs[j]]
    spell = [" ".join(_bracket(terms) for terms in side) for side in (ins, outs)]
    given = "".join(f" | {name}={n}" for name, n in sizes.items())
    return f"{spell[0]}, .? -> {spell[1]}{given}{clause('whole', whole)}"


def _bracket(terms: list[str]) -> str:
    return terms[0] if len(terms) == 1 else f"({' '.join(terms)})" if terms else "1"


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze", moves=True)
def _reshape(node: NodeView) -> str:
    """row-major regrouping, from the observed shapes"""
    node.constant(1, "sizes")
    return regroup(node.shape(0), node.out(), node.moving(node.node.outputs[0]))


rule("ExpandDims", domain="com.microsoft", moves=True)(_reshape)


@rule("Tile", moves=True)
def _tile(node: NodeView) -> str:
    """x -> (r x) on every axis"""
    node.constant(1, "repeats")
    before, after = node.shape(0), node.out()
    names = letters(len(before))
    tiled = [f"(r{i} {x})" if after[i] != before[i] else x for i, x in enumerate(names)]
    moving = [f"r{i}" for i in sorted(node.moving(node.node.outputs[0])) if after[i] != before[i]]
    return f"{' '.join(names)}, . -> {' '.join(tiled)}{clause('whole', moving)}"


@rule("ConstantOfShape")
def _constant_of_shape(node: NodeView) -> str:
    """sizes -> x*"""
    node.constant(0, "sizes")
    names = letters(len(node.out()))
    moving = [names[i] for i in sorted(node.moving(node.node.outputs[0]))]
    return f". -> {' '.join(names)}{clause('whole', moving)}"


@rule("Concat", moves=True)
def _concat(node: NodeView) -> str:
    """a* x b*, a* y b* -> a* (x + y) b*"""
    rank, axis = len(node.shape(0)), node.axis()
    names = letters(rank)
    parts = [f"c{i}" for i in range(len(node.node.inputs)) if node.shape(i)[axis]]
    operands = [
        " ".join([*names[:axis], f"c{i}" if node.shape(i)[axis] else f"z{i}", *names[axis + 1 :]])
        for i in range(len(node.node.inputs))
    ]
    joint = f"({' + '.join(parts)})" if len(parts) > 1 else parts[0] if parts else "z0"
    return f"{', '.join(operands)} -> {' '.join([*names[:axis], joint, *names[axis + 1 :]])}"


@rule("Split", moves=True)
def _split(node: NodeView) -> str:
    """a* (x + y) b* -> a* x b*, a* y b*"""
    node.constant(1, "sizes")
    rank, axis = len(node.shape(0)), node.axis()
    names = letters(rank)
    parts = [f"c{i}" for i in range(len(node.node.outputs))]
    if any(node.out(i)[axis] == 0 for i in range(len(parts))):
        raise Refuse("a part is empty")
    joint = f"({' + '.join(parts)})" if len(parts) > 1 else parts[0]
    results = [" ".join([*names[:axis], part, *names[axis + 1 :]]) for part in parts]
    sizes = "".join(f" | {part}={node.out(i)[axis]}" for i, part in enumerate(parts))
    return f"{' '.join([*names[:axis], joint, *names[axis + 1 :]])}, .? -> {', '.join(results)}{sizes}"


@rule("Pad", moves=True)
def _pad(node: NodeView) -> str:
    """x -> (p + x + q): padding with a constant makes new indices"""
    rank = len(node.shape(0))
    pads = node.attr("pads") if node.attr("pads") is not None else node.value(1)
    if pads is None:
        raise Refuse("its pads are computed")
    axes = [int(a) % rank for a in (node.value(3) if node.has(3) else range(rank))]  # type: ignore[union-attr]
    begin, end = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        begin[axis], end[axis] = int(pads[i]), int(pads[i + len(axes)])
    names = letters(rank)
    constant = node.attr("mode", "constant") in ("constant", b"constant")
    after: list[str] = []
    whole: list[str] = []
    sizes: list[str] = []
    for i, name in enumerate(names):
        if begin[i] == end[i] == 0:
            after.append(name)
        elif not constant or begin[i] < 0 or end[i] < 0 or i in node.moving(node.node.outputs[0]):
            after.append(f"y{i}")
            whole += [name, f"y{i}"]
        else:
            around = [(f"p{i}", begin[i]), (name, 0), (f"q{i}", end[i])]
            kept = [(part, n) for part, n in around if n or part == name]
            sizes += [f" | {part}={n}" for part, n in kept if part != name]
            after.append(f"({' + '.join(part for part, _ in kept)})")
    return f"{' '.join(names)}, .?, .?, .? -> {' '.join(after)}{''.join(sizes)}{clause('whole', whole)}"


@rule("Resize", "Upsample")
def _resize(node: NodeView) -> str:
    """axes that keep their size pass, the others are whole"""
    before, after = node.shape(0), node.out()
    moving = node.moving(node.node.outputs[0])
    names = letters(len(before))
    resized = [i for i, (n, m) in enumerate(zip(before, after, strict=True)) if n != m or i in moving]
    results = [f"y{i}" if i in resized else name for i, name in enumerate(names)]
    whole = [names[i] for i in resized] + [f"y{i}" for i in resized]
    return f"{' '.join(names)}, .?, .?, .? -> {' '.join(results)}{clause('whole', whole)}"
