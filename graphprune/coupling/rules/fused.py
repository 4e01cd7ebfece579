"""Products that runtimes fuse with what follows them."""

from __future__ import annotations

from graphprune.coupling.registry import NodeView, Refuse, declare, rule
from graphprune.coupling.rules.dense import gemm_operands

_MS = "com.microsoft"

declare(
    """
FusedConv  n (g i) x*, (g o) i k*, (g o)?, n (g o) y*? -> n (g o) y*  | g=@group:1 | whole: x y k | macs: n g o i k y
""",
    domain=_MS,
)


declare("CDist  m k, n k -> m n  | zero: k | macs: m k n", domain=_MS)  # of differences: both sides are silenced


@rule("FusedMatMul", "TransposeMatMul", domain=_MS)
def _fused_matmul(node: NodeView) -> str:
    """b* m k, b* k n -> b* m n with either operand transposed"""
    if node.attr("transBatchA", 0) or node.attr("transBatchB", 0):
        raise Refuse("it transposes batch axes")
    if len(node.shape(0)) < 2 or len(node.shape(1)) < 2:
        raise Refuse("an operand is a vector")
    a, b, _ = gemm_operands(node)
    return f"b* {a}, b* {b} -> b* m n | macs: b m k n"


@rule("FusedGemm", domain=_MS)
def _fused_gemm(node: NodeView) -> str:
    """m k, k n, c* -> m n with either operand transposed"""
    a, b, bias = gemm_operands(node, 2)
    return f"{a}, {b}, {bias} -> m n | macs: m k n"


@rule("MoE", domain=_MS)
def _experts(node: NodeView) -> str:
    """b* i, n e, e f i, e f, e o f, e o, e f i, e f -> b* o | whole: b n i o | stat: e: the router picks of them"""
    if str(node.attr("activation_type", "relu")) == "swiglu":
        raise Refuse("the two halves of its hidden units are interleaved or apart, by the provider")
    chosen = int(node.attr("k", 1))
    return (
        "b* i, n e, e f i, e f?, e o f, e o?, e f i?, e f? -> b* o | whole: b n i o | stat: e "
        f"| macs: {chosen} b i f + {chosen} b f o | silent: 4"
    )
