"""Quantised operators: scales go along with what they scale.

A unit is silenced by zeros, and a zero is nothing where the zero point is zero. What is contracted needs one operand of
which that is known; where it is not known of all, the line names it: ``silent``.
"""

from __future__ import annotations

from graphprune.coupling.registry import NodeView, Refuse, declare, rule
from graphprune.coupling.rules.dense import gemm_operands
from graphprune.coupling.rules.norm import clause, letters

_MS = "com.microsoft"


def _linear(node: NodeView) -> str:
    """x*, s, s? -> x*: one scale for all, one per index of an axis, or one per block: it goes in whole blocks"""
    names = letters(len(node.shape(0)))
    rank = len(node.shape(1))
    if block := int(node.attr("block_size", 0)):
        axis = node.axis(1)
        if node.shape(1)[axis] * block != node.shape(0)[axis]:
            raise Refuse("its last block is not full")
        scales = ["j" if i == axis else one for i, one in enumerate(names)]
        data = " ".join(["(j s)" if i == axis else one for i, one in enumerate(names)])
        zero = f", {' '.join(scales)}" if node.has(2) else ""
        return f"{data}, {' '.join(scales)}{zero} -> {data} | s={block} | whole: s"
    if rank > 1:
        raise Refuse("it has scales of several axes without a block size")
    scale = "" if rank == 0 else "1" if node.shape(1)[0] == 1 else names[node.axis(1)]
    zero = f", {scale if len(node.shape(2)) == rank else '.'}" if node.has(2) else ""
    return f"{' '.join(names)}, {scale}{zero} -> {' '.join(names)}"


rule("QuantizeLinear", "DequantizeLinear", keep=True)(_linear)
rule("QuantizeLinear", "DequantizeLinear", domain=_MS, keep=True)(_linear)


def silent_in(node: NodeView, *zeros: tuple[int, int]) -> str:
    """The clause for operands of which each has its zero point: ``(operand, zero point)``.

    Where no zero point is known to be zero, an operand that DynamicQuantizeLinear makes is silent all the same: its
    units are silenced before that, and 0.0 is quantised to the zero point. Nothing is then to be silenced here, which
    naming the zero point says.
    """

    def known(k: int) -> bool:
        return not node.has(k) or (node.name(k) in node.program.fixed and not node.program.tensor(node.name(k)).any())

    silent = [operand for operand, zero in zeros if known(zero)]
    if not silent:
        silent = [zero for operand, zero in zeros if _quantised_here(node, operand, zero)]
        if not silent:
            raise Refuse("no operand is known to have zero as its zero point")
    return "" if len(silent) == len(zeros) else f" | silent: {silent[0]}"


def _quantised_here(node: NodeView, operand: int, zero: int) -> bool:
    """Whether an operand and its zero point are the results of one DynamicQuantizeLinear."""
    value, point = node.node.inputs[operand], node.node.inputs[zero]
    maker = value.producer() if value is not None else None
    return (
        maker is not None
        and maker.op_type == "DynamicQuantizeLinear"
        and value is maker.outputs[0]
        and point is maker.outputs[2]
    )


def scale_of(node: NodeView, k: int, letter: str = "") -> str:
    """A scale or zero point: one for all, or one per index of an axis."""
    shape = node.shape(k) if node.has(k) else ()
    if all(n == 1 for n in shape):
        return ".?"
    if len(shape) > 1 or not letter:
        raise Refuse(f"operand {k} holds scales or zero points of rows")
    return f"{letter}?"


@rule("ConvInteger")
def _conv_integer(node: NodeView) -> str:
    """Conv on integers"""
    zero, silent = scale_of(node, 3, "(g o)"), silent_in(node, (0, 2), (1, 3))
    return f"n (g i) x*, (g o) i k*, .?, {zero} -> n (g o) y* | g=@group:1 | whole: x y k | macs: n g o i k y{silent}"


def _qlinear_conv(node: NodeView) -> str:
    """Conv on quantised values, channels first or last"""
    scale, zero, silent = scale_of(node, 4, "(g o)"), scale_of(node, 5, "(g o)"), silent_in(node, (0, 2), (3, 5))
    last = node.attr("channels_last", 0)
    before, after = ("n x* (g i)", "n y* (g o)") if last else ("n (g i) x*", "n (g o) y*")
    return (
        f"{before}, ., ., (g o) i k*, {scale}, {zero}, ., ., (g o)? -> {after} "
        f"| g=@group:1 | whole: x y k | macs: n g o i k y{silent}"
    )


rule("QLinearConv")(_qlinear_conv)
rule("QLinearConv", domain=_MS)(_qlinear_conv)


@rule("MatMulInteger")
def _matmul_integer(node: NodeView) -> str:
    """b* m k, b* k n -> b* m n on integers"""
    zeros = f"{scale_of(node, 2)}, {scale_of(node, 3, 'n')}"
    return f"b* m k, b* k n, {zeros} -> b* m n | macs: b m k n{silent_in(node, (0, 2), (1, 3))}"


declare("MatMulInteger16  b* m k, b* k n -> b* m n  | macs: b m k n", domain=_MS)


@rule("QLinearMatMul")
def _qlinear_matmul(node: NodeView) -> str:
    """b* m k, b* k n -> b* m n on quantised values"""
    left = f"{scale_of(node, 1)}, {scale_of(node, 2)}"
    right = f"{scale_of(node, 4, 'n')}, {scale_of(node, 5, 'n')}"
    return f"b* m k, {left}, b* k n, {right}, ., . -> b* m n | macs: b m k n{silent_in(node, (0, 2), (3, 5))}"


@rule("MatMulIntegerToFloat", domain=_MS)
def _matmul_integer_to_float(node: NodeView) -> str:
    """b* m k, b* k n -> b* m n with scales and bias"""
    left, right = (scale_of(node, 2), scale_of(node, 4)), (scale_of(node, 3, "n"), scale_of(node, 5, "n"))
    operands = f"b* m k, b* k n, {left[0]}, {right[0]}, {left[1]}, {right[1]}, n?"
    return f"{operands} -> b* m n | macs: b m k n{silent_in(node, (0, 4), (1, 5))}"


@rule("QGemm", domain=_MS)
def _qgemm(node: NodeView) -> str:
    """m k, k n, c* -> m n on quantised values with either operand transposed"""
    a, b, bias = gemm_operands(node, 6)
    left = f"{scale_of(node, 1)}, {scale_of(node, 2)}"
    right = f"{scale_of(node, 4, 'n')}, {scale_of(node, 5, 'n')}"
    after = f"{scale_of(node, 7)}, {scale_of(node, 8)}"
    return f"{a}, {left}, {b}, {right}, {bias}, {after} -> m n | macs: m k n{silent_in(node, (0, 2), (3, 5))}"


@rule("DynamicQuantizeMatMul", domain=_MS)
def _dynamic_quantize_matmul(node: NodeView) -> str:
    """b* m k, k n -> b* m n, quantised on the way to a range that always holds zero"""
    scale, zero = scale_of(node, 2, "n"), scale_of(node, 3, "n")
    return f"b* m k, k n, {scale}, {zero}, n? -> b* m n | zero: b m k | macs: b m k n"


declare("DynamicQuantizeLinear  x* -> x*, ., .  | zero: x")  # its range always holds zero


@rule("MatMulNBits", domain=_MS)
def _matmul_nbits(node: NodeView) -> str:
    """b* (j s), n j u, (n j) -> b* n: the contracted axis goes in whole blocks, which their scales silence"""
    if node.has(4):
        raise Refuse("its blocks are reordered (g_idx)")
    columns, blocks = node.shape(1)[0], node.shape(1)[1]
    block = int(node.attr("block_size", 0))
    if blocks * block != node.shape(0)[-1]:
        raise Refuse("its last block is not full")
    zero, letter = ".?", "j"
    if node.has(3):
        packed = node.shape(3)[-1] not in (blocks, columns * blocks)  # zero points of several blocks share a byte
        letter = "z" if packed else "j"
        zero = f"(n {letter})" if len(node.shape(3)) == 1 else f"n {letter}"
    scales = "(n j)" if len(node.shape(2)) == 1 else "n j"
    whole = "s u j z" if letter == "z" else "s u"
    return (
        f"b* (j s), n j u, {scales}, {zero}, .?, n? -> b* n "
        f"| (j s)=@K | n=@N | s={block} | j={blocks} | whole: {whole} | macs: b n j s | silent: 2"
    )


declare(
    """
QLinearAdd|QLinearMul            x*, ., .?, x*, ., .?, ., .? -> x*
QLinearSigmoid|QLinearLeakyRelu  x*, ., .?, ., .? -> x*
QLinearWhere                     x*, x*, ., ., x*, ., ., ., . -> x*
NhwcMaxPool                      n x* c -> n y* c                    | whole: x y
""",
    domain=_MS,
)


@rule("QLinearSoftmax", domain=_MS)
def _qlinear_softmax(node: NodeView) -> str:
    """x* -> x* | stat over the axis (before opset 13: over it and all that follow)"""
    names, old = letters(len(node.shape(0))), int(node.attr("opset", 13)) < 13
    axis = node.axis(1 if old else -1)
    over = names[axis:] if old else names[axis : axis + 1]
    return f"{' '.join(names)}, ., .?, ., . -> {' '.join(names)}{clause('stat', over)}"


@rule("QLinearAveragePool", "QLinearGlobalAveragePool", domain=_MS)
def _qlinear_pool(node: NodeView) -> str:
    """n c x* -> n c y* | whole: x y"""
    if node.attr("channels_last", 0):
        return "n x* c, ., .?, ., .? -> n y* c | whole: x y"
    return "n c x*, ., .?, ., .? -> n c y* | whole: x y"


@rule("QLinearConcat", domain=_MS)
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
