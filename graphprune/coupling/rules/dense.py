"""Convolutions, matrix products and pooling."""

from __future__ import annotations

import re

from graphprune.coupling.registry import NodeView, Refuse, declare, rule

declare("""
Conv             n (g i) x*, (g o) i k*, (g o)? -> n (g o) y*  | g=@group:1 | whole: x y k | macs: n g o i k y
ConvTranspose    n (g i) x*, (g i) o k*, (g o)? -> n (g o) y*  | g=@group:1 | whole: x y k | macs: n g i o k x
AveragePool|LpPool|GlobalAveragePool|GlobalMaxPool  n c x* -> n c y*  | whole: x y
GlobalLpPool     n c x* -> n c y*                              | whole: y
""")


@rule("MaxPool")
def _max_pool(node: NodeView) -> str:
    """n c x* -> n c y* | whole: x y; its second result counts through all axes, which leaves none to cut"""
    indices = len(node.node.outputs) > 1
    return f"n c x* -> n c y*{', n c y*?' * indices} | whole: x y{' n c' * indices}"


@rule("MatMul")
def _matmul(node: NodeView) -> str:
    """b* m k, b* k n -> b* m n; a vector operand has k alone."""
    row, column = len(node.shape(0)) > 1, len(node.shape(1)) > 1
    left, right = ("b* m k" if row else "k"), ("b* k n" if column else "k")
    batch = "b* " if len(node.shape(0)) > 2 or len(node.shape(1)) > 2 else ""
    if not batch:
        left, right = left.replace("b* ", ""), right.replace("b* ", "")
    result = f"{batch}{'m ' * row}{'n' * column}"
    starred = "b " if batch else ""
    return f"{left}, {right} -> {result} | macs: {starred}{'m ' * row}k{' n' * column}"


@rule("Gemm")
def _gemm(node: NodeView) -> str:
    """m k, k n, c* -> m n with either operand transposed; the bias broadcasts."""
    a, b, bias = gemm_operands(node, 2)
    return f"{a}, {b}{f', {bias}' if node.has(2) else ''} -> m n | macs: m k n"


def gemm_operands(node: NodeView, bias: int | None = None) -> tuple[str, str, str]:
    """Both operands, and the bias that operand ``bias`` holds, of a product that may transpose them."""
    a = "k m" if node.attr("transA", 0) else "m k"
    b = "n k" if node.attr("transB", 0) else "k n"
    has = bias is not None and node.has(bias)
    return a, b, ("", "n", "m n")[len(node.shape(bias))] if has and bias is not None else ".?"


@rule("Einsum")
def _einsum(node: NodeView) -> str:
    """the equation is the line"""
    equation = str(node.attr("equation", "")).replace(" ", "")
    if not re.fullmatch(r"[A-Za-z.,]+(->[A-Za-z.]*)?", equation):
        raise Refuse(f"the equation {equation!r} cannot be read")
    left, arrow, right = equation.partition("->")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        right = "..." * ("..." in left) + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))

    def spell(term: str) -> str:
        return " ".join("e*" if part == "..." else part for part in re.findall(r"\.\.\.|[A-Za-z]", term))

    sides = [spell(term) for term in left.split(",")]
    every = sorted({name for side in sides for name in side.replace("*", "").split()})
    macs = f" | macs: {' '.join(every)}" if len(sides) > 1 else ""
    return f"{', '.join(sides)} -> {spell(right)}{macs}"
