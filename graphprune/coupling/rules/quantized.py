"""Quantised operators: scales go along with what they scale."""

from __future__ import annotations

from graphprune.coupling.registry import NodeView, Refuse, declare, rule
from graphprune.coupling.rules.norm import letters


@rule("QuantizeLinear", "DequantizeLinear", keep=True)
def _linear(node: NodeView) -> str:
    """x*, s, s? -> x*: one scale for all, or one per index of an axis"""
    names = letters(len(node.shape(0)))
    rank = len(node.shape(1))
    if rank > 1 or node.attr("block_size", 0):
        raise Refuse("it is quantised in blocks")
    scale = "" if rank == 0 else "1" if node.shape(1)[0] == 1 else names[node.axis(1)]
    zero = f", {scale if len(node.shape(2)) == rank else '.'}" if node.has(2) else ""
    return f"{' '.join(names)}, {scale}{zero} -> {' '.join(names)}"


def _zero(node: NodeView, k: int, what: str) -> None:
    """Zeroing an integer silences it where its zero point is zero alone."""
    if node.has(k) and (node.name(k) not in node.program.fixed or node.program.tensor(node.name(k)).any()):
        raise Refuse(f"the zero point of its {what} is not known to be zero")


def _scale(node: NodeView, k: int, letter: str) -> str:
    """A scale or zero point: one for all, or one per index of an axis."""
    return f"{letter}?" if node.has(k) and len(node.shape(k)) == 1 and node.shape(k)[0] > 1 else ".?"


@rule("ConvInteger")
def _conv_integer(node: NodeView) -> str:
    """Conv on integers: the zero point of the weights is zero"""
    _zero(node, 3, "weights")
    zero = _scale(node, 3, "(g o)")
    return (
        f"n (g i) x*, (g o) i k*, .?, {zero} -> n (g o) y* | g=@group:1 | whole: x y k | macs: n g o i k y"
    )


@rule("QLinearConv")
def _qlinear_conv(node: NodeView) -> str:
    """Conv on quantised values: the zero point of the weights is zero"""
    _zero(node, 5, "weights")
    scale, zero = _scale(node, 4, "(g o)"), _scale(node, 5, "(g o)")
    return (
        f"n (g i) x*, ., ., (g o) i k*, {scale}, {zero}, ., ., (g o)? -> n (g o) y* "
        "| g=@group:1 | whole: x y k | macs: n g o i k y"
    )


@rule("MatMulInteger")
def _matmul_integer(node: NodeView) -> str:
    """b* m k, b* k n -> b* m n on integers: the zero point of the second operand is zero"""
    _zero(node, 3, "second operand")
    return f"b* m k, b* k n, .?, {_scale(node, 3, 'n')} -> b* m n | macs: b m k n"


@rule("QLinearMatMul")
def _qlinear_matmul(node: NodeView) -> str:
    """b* m k, b* k n -> b* m n on quantised values: the zero point of the second operand is zero"""
    _zero(node, 5, "second operand")
    return (
        f"b* m k, ., ., b* k n, {_scale(node, 4, 'n')}, {_scale(node, 5, 'n')}, ., . -> b* m n | macs: b m k n"
    )


@rule("MatMulIntegerToFloat", domain="com.microsoft")
def _matmul_integer_to_float(node: NodeView) -> str:
    """b* m k, b* k n -> b* m n with scales and bias: the zero point of the second operand is zero"""
    _zero(node, 5, "second operand")
    scale, zero = _scale(node, 3, "n"), _scale(node, 5, "n")
    return f"b* m k, b* k n, ., {scale}, .?, {zero}, n? -> b* m n | macs: b m k n"


@rule("MatMulNBits", domain="com.microsoft")
def _matmul_nbits(node: NodeView) -> str:
    """b* (j s), n j u, (n j) -> b* n: the contracted axis goes in whole blocks"""
    if node.has(4):
        raise Refuse("its blocks are reordered (g_idx)")
    columns, blocks = node.shape(1)[0], node.shape(1)[1]
    block = int(node.attr("block_size", 0))
    if blocks * block != node.shape(0)[-1]:
        raise Refuse("its last block is not full")
    flat = len(node.shape(2)) == 1
    zero, whole = ".?", "s u"
    if node.has(3):  # zero points of two blocks share a byte
        zero, whole = ("(n z)" if len(node.shape(3)) == 1 else "n z"), "s u j z"
    return (
        f"b* (j s), n j u, {'(n j)' if flat else 'n j'}, {zero}, .?, n? -> b* n "
        f"| (j s)=@K | n=@N | s={block} | j={blocks} | whole: {whole} | macs: b n j s"
    )


declare("DynamicQuantizeLinear  x* -> x*, ., .  | zero: x")  # its range always holds zero


@rule("DynamicQuantizeMatMul", domain="com.microsoft")
def _dynamic_quantize_matmul(node: NodeView) -> str:
    """b* m k, k n -> b* m n, quantised on the way: the zero point of the weights is zero"""
    _zero(node, 3, "weights")
    scale, zero = _scale(node, 2, "n"), _scale(node, 3, "n")
    return f"b* m k, k n, {scale}, {zero}, n? -> b* m n | zero: k | macs: b m k n"


declare(
    """
QLinearAdd|QLinearMul                           x*, ., .?, x*, ., .?, ., .? -> x*
QLinearSigmoid|QLinearLeakyRelu                 x*, ., .?, ., .? -> x*
""",
    domain="com.microsoft",
)


@rule("QLinearAveragePool", "QLinearGlobalAveragePool", domain="com.microsoft")
def _qlinear_pool(node: NodeView) -> str:
    """n c x* -> n c y* | whole: x y"""
    if node.attr("channels_last", 0):
        return "n x* c, ., .?, ., .? -> n y* c | whole: x y"
    return "n c x*, ., .?, ., .? -> n c y* | whole: x y"


@rule("QLinearConcat", domain="com.microsoft")
def _qlinear_concat(node: NodeView) -> str:
    """a* x b*, a* y b* -> a* (x + y) b*"""
    count = (len(node.node.inputs) - 2) // 3
    rank = len(node.out())
    axis = int(node.attr("axis", 0)) % rank
    names = letters(rank)
    operands = [".", "."]
    for i in range(count):
        operands += [" ".join([*names[:axis], f"c{i}", *names[axis + 1 :]]), ".", "."]
    joint = f"({' + '.join(f'c{i}' for i in range(count))})" if count > 1 else "c0"
    return f"{', '.join(operands)} -> {' '.join([*names[:axis], joint, *names[axis + 1 :]])}"
