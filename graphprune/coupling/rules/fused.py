"""Products that runtimes fuse with what follows them."""

from __future__ import annotations

from graphprune.coupling.registry import NodeView, Refuse, declare, rule

_MS = "com.microsoft"

declare(
    """
FusedConv  n (g i) x*, (g o) i k*, (g o)?, n (g o) y*? -> n (g o) y*  | g=@group:1 | whole: x y k | macs: n g o i k y
""",
    domain=_MS,
)


@rule("FusedMatMul", "TransposeMatMul", domain=_MS)
def _fused_matmul(node: NodeView) -> str:
    """b* m k, b* k n -> b* m n with either operand transposed"""
    if node.attr("transBatchA", 0) or node.attr("transBatchB", 0):
        raise Refuse("it transposes batch axes")
    if len(node.shape(0)) < 2 or len(node.shape(1)) < 2:
        raise Refuse("an operand is a vector")
    a = "k m" if node.attr("transA", 0) else "m k"
    b = "n k" if node.attr("transB", 0) else "k n"
    return f"b* {a}, b* {b} -> b* m n | macs: b m k n"


@rule("FusedGemm", domain=_MS)
def _fused_gemm(node: NodeView) -> str:
    """m k, k n, c* -> m n with either operand transposed"""
    a = "k m" if node.attr("transA", 0) else "m k"
    b = "n k" if node.attr("transB", 0) else "k n"
    bias = "" if not node.has(2) else ", " + ("", "n", "m n")[len(node.shape(2))]
    return f"{a}, {b}{bias} -> m n | macs: m k n"
