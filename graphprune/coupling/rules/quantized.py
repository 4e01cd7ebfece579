"""Quantised operators: scales go along with what they scale."""

from __future__ import annotations

from graphprune.coupling.registry import NodeView, Refuse, rule
from graphprune.coupling.rules.norm import letters


@rule("QuantizeLinear", "DequantizeLinear", keep=True)
def _linear(node: NodeView) -> str:
    """x*, s, s? -> x*: one scale for all, or one per index of an axis"""
    names = letters(len(node.shape(0)))
    rank = len(node.shape(1))
    if rank > 1 or node.attr("block_size", 0):
        raise Refuse("it is quantised in blocks")
    scale = "" if rank == 0 else "1" if node.shape(1)[0] == 1 else names[node.axis(1)]
    zero = f", {scale}" if node.has(2) else ""
    return f"{' '.join(names)}, {scale}{zero} -> {' '.join(names)}"
