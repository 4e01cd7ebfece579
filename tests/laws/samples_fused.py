"""Samples of fused, quantised and scattering operators: those of runtimes and of the newer opsets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from graphprune.coupling.laws import Operand, Sample

from .make import ints, one, scalar, sizes, w, x

_ms = partial(one, domain="com.microsoft")


def samples() -> Iterator[Sample]:
    """All of them."""
    yield from _norms()
    yield from _attention()
    yield from _contrib_attention()
    yield from _rotary()
    yield from _products()
    yield from _scatter()
    yield from _integers()
    yield from _qlinear()
    yield from _nbits()


def i8(*shape: int, fixed: bool = False, dtype: str = "int8") -> Operand:
    """Integers of both signs, or around 128."""
    low, high = (60, 200) if dtype == "uint8" else (-60, 60)
    return ints(*shape, low=low, high=high, dtype=dtype, fixed=fixed)


def _norms() -> Iterator[Sample]:
    norm = x(2, 3, 5), x(2, 3, 5), w(5)
    yield _ms("SkipLayerNormalization", *norm, w(5), w(5))
    yield _ms("SkipLayerNormalization", *norm, w(5), w(5), results=4, left_out=(1, 2))
    yield _ms("SkipLayerNormalization", *norm)
    yield _ms("SkipLayerNormalization", x(4, 4, 4), x(4, 4, 4), x(4), x(4))
    yield _ms("SkipSimplifiedLayerNormalization", *norm, w(5))
    yield _ms("SkipSimplifiedLayerNormalization", *norm, results=4, left_out=(1, 2))
    yield one("SimplifiedLayerNormalization", x(2, 3, 5), w(5))
    yield one("SimplifiedLayerNormalization", x(4, 4), x(4))
    embed = ints(2, 3, high=11, dtype="int32"), ints(2, 3, high=4, dtype="int32"), w(11, 5), w(7, 5), w(4, 5)
    yield _ms("EmbedLayerNormalization", *embed, w(5), w(5), results=2)
    mask = ints(2, 3, low=1, high=2, dtype="int32")
    yield _ms("EmbedLayerNormalization", *embed, w(5), w(5), mask, results=3)
    yield _ms("EmbedLayerNormalization", embed[0], None, embed[2], embed[3], None, w(5), w(5), results=2)
    for op in ("BiasGelu", "FastGelu"):
        yield _ms(op, x(2, 3, 5), w(5))
        yield _ms(op, x(4, 4), x(4))
    yield _ms("FastGelu", x(2, 3, 5))
    yield _ms("Gelu", x(3, 5, 7))
    yield _ms("QuickGelu", x(3, 5, 7))
    yield one("SwiGLU", x(3, 5, 7), x(3, 5, 7), opset=28)
    yield one("CumProd", x(3, 5, 7), scalar(1, "int64"), opset=26)
    yield one("CumProd", x(3, 5, 7), scalar(-1, "int64"), opset=26, exclusive=1)


def _attention() -> Iterator[Sample]:
    attend = partial(one, "Attention", opset=23)
    b, s, t, k, r, d, v = 2, 3, 5, 2, 3, 4, 7
    split = x(b, k * r, s, d), x(b, k, t, d), x(b, k, t, v)
    flat = x(b, s, k * r * d), x(b, t, k * d), x(b, t, k * v)
    heads = {"q_num_heads": k * r, "kv_num_heads": k}
    yield attend(*split)
    yield attend(*split, scale=0.3, softcap=2.0)
    yield attend(x(b, k * r, 6, d), *split[1:], is_causal=1)
    yield attend(*split, opset=24)
    yield attend(*flat, **heads)
    yield attend(x(b, s, 3 * d), x(b, t, 3 * d), x(b, t, 3 * v), q_num_heads=3, kv_num_heads=3)
    for mask in ((s, t), (b, 1, s, t), (1, k * r, s, t), (b, k * r, s, t)):
        yield attend(*split, x(*mask))
    yield attend(*flat, x(b, k * r, s, t, kind="bool"), **heads)
    yield attend(*split, results=4)
    past = x(b, k, 6, d), x(b, k, 6, v)
    yield attend(*split, None, *past, results=3)
    yield attend(*split, x(b, k * r, s, 6 + t), *past, results=4)
    yield attend(*flat, None, *past, results=3, **heads)
    yield attend(x(4, 4, 4, 4), x(4, 4, 4, 4), x(4, 4, 4, 4))


def _contrib_attention() -> Iterator[Sample]:
    b, s, t, h, d, v = 2, 3, 5, 3, 4, 7
    multi = partial(_ms, "MultiHeadAttention", num_heads=h)
    operands = x(b, s, h * d), x(b, t, h * d), x(b, t, h * v)
    yield multi(*operands)
    yield multi(*operands, w(2 * h * d + h * v))
    yield multi(*operands, scale=0.3)
    yield multi(*operands, None, ints(b, t, high=2, dtype="int32"))
    yield multi(*operands, None, None, x(b, h, s, t))
    yield multi(*operands, None, None, x(1, 1, s, t))
    yield multi(x(b, s, h * d), x(b, s, h * d), x(b, s, h * d), unidirectional=1)
    yield multi(x(b, s, h * d), x(b, h, t, d), x(b, h, t, d), refused="split into heads")
    group = partial(_ms, "GroupQueryAttention", num_heads=6, kv_num_heads=2)
    d, n = 16, 3
    plain = x(b, n, 6 * d), x(b, n, 2 * d), x(b, n, 2 * d)
    lengths = sizes(n - 1, n - 1, dtype="int32"), scalar(n, "int32")
    yield group(*plain, None, None, *lengths, results=3)
    tables = w(16, d // 2), w(16, d // 2)
    yield group(*plain, None, None, *lengths, *tables, do_rotary=1, results=3)
    later = x(1, n, 6 * d), x(1, n, 2 * d), x(1, n, 2 * d), x(1, 2, 5, d), x(1, 2, 5, d)
    yield group(*later, sizes(n + 4, dtype="int32"), scalar(n + 5, "int32"), results=3)
    bias = x(b, 6, n, n)
    yield group(*plain, None, None, *lengths, None, None, None, bias, results=3)
    yield group(x(b, n, 10 * d), None, None, None, None, *lengths, results=3, refused="packed")
    packed = partial(_ms, "Attention", num_heads=h)
    i, d = 7, 4
    yield packed(x(b, s, i), w(i, 3 * h * d), w(3 * h * d))
    yield packed(x(b, s, i), w(i, 3 * h * d), w(3 * h * d), ints(b, low=2, high=4, dtype="int32"), scale=0.3)
    yield packed(x(b, s, i), w(i, 2 * h * d + h * v), w(2 * h * d + h * v), qkv_hidden_sizes=(h * d, h * d, h * v))
    yield packed(x(b, s, i), w(i, 3 * h * d), w(3 * h * d), None, None, x(b, h, s, s), unidirectional=1)
    qpacked = partial(_ms, "QAttention", num_heads=h)
    data = i8(b, s, i, dtype="uint8"), i8(i, 3 * h * d, fixed=True), w(3 * h * d), scalar(0.01)
    zeros = scalar(128, "uint8"), scalar(0, "int8")
    yield qpacked(*data, scalar(0.02), None, *zeros)
    yield qpacked(*data, w(3 * h * d, kind="positive"), None, *zeros)


def _rotary() -> Iterator[Sample]:
    b, h, s, e, m = 2, 3, 5, 4, 11
    for pairs in (0, 1):  # halves, or every second
        new = partial(one, "RotaryEmbedding", opset=23, interleaved=pairs)
        places = ints(b, s, high=m)
        yield new(x(b, h, s, 2 * e), w(m, e), w(m, e), places)
        yield new(x(b, h, s, 2 * e), x(b, s, e), x(b, s, e))
        yield new(x(b, s, h * 2 * e), w(m, e), w(m, e), places, num_heads=h)
        old = partial(_ms, "RotaryEmbedding", interleaved=pairs)
        yield old(x(b, h, s, 2 * e), places, w(m, e), w(m, e))
        yield old(x(b, s, h * 2 * e), places, w(m, e), w(m, e), num_heads=h)
        if pairs:
            continue
        yield new(
            x(b, s, h * (2 * e + 2)), w(m, e), w(m, e), places, num_heads=h, interleaved=1, rotary_embedding_dim=8
        )
        yield new(x(b, h, s, 2 * e + 2), w(m, e), w(m, e), places, rotary_embedding_dim=2 * e)
        yield new(x(b, s, h * (2 * e + 2)), w(m, e), w(m, e), places, num_heads=h, rotary_embedding_dim=2 * e)
        yield old(x(b, s, h * 2 * e), sizes(2), w(m, e), w(m, e), num_heads=h)
        yield old(x(b, h, s, 2 * e + 2), places, w(m, e), w(m, e), rotary_embedding_dim=2 * e, num_heads=h)


def _products() -> Iterator[Sample]:
    conv = partial(_ms, "FusedConv", activation="Relu")
    yield conv(x(2, 5, 7, 11), w(13, 5, 3, 3), w(13))
    yield conv(x(2, 15, 7, 11), w(12, 5, 3, 3), w(12), group=3)
    yield conv(x(2, 5, 7, 11), w(13, 5, 1, 1), w(13), x(2, 13, 7, 11))
    yield conv(x(4, 4, 4, 4), w(4, 4, 1, 1))
    for op in ("FusedMatMul", "TransposeMatMul"):
        yield _ms(op, x(3, 5), w(5, 7), alpha=0.5)
        yield _ms(op, x(2, 5, 3), w(2, 7, 5), transA=1, transB=1)
        yield _ms(op, x(4, 4), x(4, 4), transB=1)
        yield _ms(op, x(2, 3, 5), w(5, 7))
    yield _ms("FusedMatMul", x(3, 2, 5), w(2, 5, 7), transBatchA=1, refused="batch")
    gemm = partial(_ms, "FusedGemm", activation="Relu")
    yield gemm(x(3, 5), w(5, 7), w(7))
    yield gemm(x(5, 3), w(7, 5), x(3, 7), transA=1, transB=1)
    yield gemm(x(4, 4), w(4, 4))
    experts = x(11, 8), x(11, 3), w(3, 5, 8), w(3, 5), w(3, 8, 5), w(3, 8)
    yield _ms("MoE", *experts, k=2, activation_type="relu")
    yield _ms("MoE", *experts, k=1, activation_type="gelu")
    grid = x(2, 5, 6, 7), x(2, 3, 4, 2, kind="unit")
    yield one("GridSample", *grid, opset=22)
    yield one("GridSample", *grid, opset=16, mode="nearest", padding_mode="border")
    yield one("GridSample", x(2, 5, 6, 7, 4), x(2, 3, 4, 5, 3, kind="unit"), opset=22)
    yield one("GridSample", x(4, 4, 4, 4), x(4, 4, 4, 2, kind="unit"), opset=22)
    yield _ms("GridSample", *grid)
    yield _ms("Trilu", x(3, 5, 7))
    for metric in ("euclidean", "sqeuclidean"):
        yield _ms("CDist", x(3, 5), x(7, 5), metric=metric)
    yield _ms("CDist", x(4, 4), w(4, 4))
    yield _ms("ExpandDims", x(3, 5), scalar(1, "int32"))
    yield _ms("SampleOp", x(3, 5, 7))
    yield _ms("MatMulInteger16", i8(3, 5, dtype="int16"), i8(5, 7, dtype="int16", fixed=True))
    yield _ms("MatMulInteger16", i8(4, 4, dtype="int16"), i8(4, 4, dtype="int16"))


def _scatter() -> Iterator[Sample]:
    place = ints(2, 3, 1, high=11)
    yield one("ScatterND", x(11, 5), Operand((3, 1), dtype="int64", content=(7, 0, 4)), x(3, 5))
    yield one("ScatterND", x(11, 5, 7), Operand((2, 2), dtype="int64", content=(7, 0, 4, 2)), x(2, 7), reduction="add")
    yield one("ScatterND", x(4, 4), Operand((4, 1), dtype="int64", content=(3, 0, 1, 2)), x(4, 4))
    yield one("GatherND", x(11, 5), place)
    yield one("GatherND", x(11, 5, 7), Operand((2, 2), dtype="int64", content=(7, 0, 4, 2)))
    yield one("GatherND", x(2, 11, 5), place, batch_dims=1)
    yield one("GatherND", x(4, 4), ints(4, 1, high=4))
    yield _ms("GatherND", x(11, 5), place)
    for op, opset in (("ScatterElements", 18), ("Scatter", 9)):
        yield one(
            op, x(3, 11), Operand((3, 2), dtype="int64", content=(1, 5, 0, 10, 3, 7)), x(3, 2), axis=1, opset=opset
        )
        yield one(op, x(3, 11, 5), ints(3, 1, 5, high=11), x(3, 1, 5), axis=1, opset=opset)
        yield one(op, x(3, 11, 5), ints(2, 1, 5, high=11), x(2, 1, 5), axis=1, opset=opset)
        yield one(op, x(4, 4), Operand((4, 4), dtype="int64", content=(0, 1, 2, 3) * 4), x(4, 4), axis=1, opset=opset)
    lengths = sizes(2, 5, 3)
    yield one("ReverseSequence", x(5, 3, 7), lengths)
    yield one("ReverseSequence", x(3, 5, 7), lengths, batch_axis=0, time_axis=1)
    yield one("ReverseSequence", x(4, 4, 4), sizes(2, 4, 3, 1))


def _integers() -> Iterator[Sample]:
    image, kernel = i8(2, 5, 7, 6, dtype="uint8"), i8(4, 5, 3, 3, fixed=True)
    off, none = scalar(128, "uint8"), scalar(0, "int8")
    yield one("ConvInteger", image, kernel)
    yield one("ConvInteger", i8(2, 6, 7, 6, dtype="uint8"), i8(4, 3, 3, 3, fixed=True), group=2)
    yield one("ConvInteger", image, kernel, off, none, pads=(1, 1, 1, 1))
    yield one("ConvInteger", i8(2, 6, 7, 6, dtype="uint8"), i8(4, 3, 3, 3, fixed=True), off, group=2)
    yield one("ConvInteger", replace(image, shape=(1, 5, 7, 6)), kernel, off, scalar(3, "int8"), refused="zero point")
    left, right = i8(3, 5, dtype="uint8"), i8(5, 7, fixed=True)
    column = Operand((7,), "int", "int8", 0, 1, fixed=True)
    yield one("MatMulInteger", left, right)
    yield one("MatMulInteger", left, right, off, none)
    yield one("MatMulInteger", left, right, off, column)
    yield one("MatMulInteger", i8(2, 3, 5, dtype="uint8"), i8(2, 5, 7), off)
    yield one("MatMulInteger", left, right, None, scalar(3, "int8"))
    yield one("MatMulInteger", i8(4, 4, dtype="uint8"), i8(4, 4))
    yield one("MatMulInteger", i8(2, 5, dtype="uint8"), right, off, scalar(3, "int8"), refused="zero point")
    scales = scalar(0.1), scalar(0.2)
    floats = partial(_ms, "MatMulIntegerToFloat")
    yield floats(left, right, *scales, off, none, w(7))
    yield floats(left, right, scales[0], w(7, kind="positive"), off, column)
    yield floats(i8(4, 4), i8(4, 4, fixed=True), *scales)
    yield one("DynamicQuantizeLinear", x(3, 5, 7), results=3)
    yield one("DynamicQuantizeLinear", x(4, 4, kind="positive"), results=3)
    dynamic = partial(_ms, "DynamicQuantizeMatMul")
    yield dynamic(x(3, 5), right, scalar(0.1), none)
    yield dynamic(x(2, 3, 5), right, w(7, kind="positive"), column, w(7))
    yield dynamic(x(3, 5), right, scalar(0.1), scalar(3, "int8"))
    yield dynamic(x(4, 4), i8(4, 4, fixed=True), scalar(0.1))
    gemm = scalar(0.1), off
    yield _ms("QGemm", left, *gemm, right, scalar(0.1), none, ints(7, low=-99, high=99, dtype="int32", fixed=True))
    yield _ms(
        "QGemm", i8(5, 3, dtype="uint8"), *gemm, i8(7, 5, fixed=True), w(7, kind="positive"), column, transA=1, transB=1
    )
    after = scalar(0.3), scalar(100, "uint8")
    yield _ms("QGemm", left, *gemm, right, scalar(0.1), none, None, *after)


def _qlinear() -> Iterator[Sample]:
    a, b, y = ((scalar(scale), scalar(zero, "uint8")) for scale, zero in ((0.05, 120), (0.07, 110), (0.2, 100)))
    weight = scalar(0.02), scalar(0, "int8")
    per_channel = w(4, kind="positive"), Operand((4,), "int", "int8", 0, 1, fixed=True)
    image, kernel = i8(2, 5, 7, 6, dtype="uint8"), i8(4, 5, 3, 3, fixed=True)
    bias = ints(4, low=-99, high=99, dtype="int32", fixed=True)
    for domain in ("", "com.microsoft"):
        conv = partial(one, "QLinearConv", domain=domain)
        yield conv(image, *a, kernel, *weight, *y, bias, pads=(1, 1, 1, 1))
        yield conv(i8(2, 6, 7, 6, dtype="uint8"), *a, i8(4, 3, 3, 3, fixed=True), *weight, *y, bias, group=2)
        yield conv(
            i8(2, 6, 7, 6, dtype="uint8"), *a, i8(4, 3, 3, 3, fixed=True), per_channel[0], weight[1], *y, group=2
        )
        yield conv(image, *a, kernel, *per_channel, *y)
        yield conv(
            replace(image, shape=(1, 5, 7, 6)), *a, kernel, scalar(0.02), scalar(3, "int8"), *y, refused="zero point"
        )
    yield conv(i8(2, 7, 6, 5, dtype="uint8"), *a, kernel, *weight, *y, bias, channels_last=1)
    left, right = i8(3, 5, dtype="uint8"), i8(5, 7, fixed=True)
    product = partial(one, "QLinearMatMul", opset=21)
    yield product(left, *a, right, *weight, *y)
    yield product(i8(2, 3, 5, dtype="uint8"), *a, i8(2, 5, 7), *weight, *y)
    columns = w(7, kind="positive"), Operand((7,), "int", "int8", 0, 1, fixed=True)
    yield product(left, *a, right, *columns, *y)
    yield product(replace(left, shape=(4, 5)), a[0], scalar(0, "uint8"), i8(5, 7, dtype="uint8"), *b, *y)
    yield product(i8(4, 4), *weight, i8(4, 4), *weight, *weight)
    yield product(replace(left, shape=(2, 5)), *a, right, scalar(0.02), scalar(3, "int8"), *y, refused="zero point")
    plain = i8(3, 5, 7, dtype="uint8")
    for op in ("QLinearAdd", "QLinearMul"):
        yield _ms(op, plain, *a, i8(3, 5, 7, dtype="uint8"), *b, *y)
        yield _ms(op, plain, *a, i8(5, 1, dtype="uint8", fixed=True), *b, *y)
        yield _ms(op, i8(4, 4, dtype="uint8"), *a, i8(4, 4, dtype="uint8"), *b, *y)
    for op in ("QLinearSigmoid", "QLinearLeakyRelu"):
        yield _ms(op, plain, *a, *y)
    yield _ms("QLinearWhere", x(5, 1, kind="bool"), plain, *a, i8(3, 5, 7, dtype="uint8"), *b, *y)
    for axis, opset in ((-1, 13), (1, 13), (1, 12)):
        softmax = _ms("QLinearSoftmax", plain, *a, *y)
        yield replace(softmax, attributes=(("axis", axis), ("opset", opset)))
    yield _ms("QLinearConcat", *y, i8(3, 5, dtype="uint8"), *a, i8(3, 7, dtype="uint8"), *b, axis=1)
    yield _ms("QLinearConcat", *y, i8(4, 4, dtype="uint8"), *a, i8(4, 4, dtype="uint8"), *b, axis=0)
    for last in (0, 1):
        pool = i8(2, 5, 7, 6, dtype="uint8")
        yield _ms("QLinearAveragePool", pool, *a, *y, kernel_shape=(3, 2), channels_last=last)
        yield _ms("QLinearGlobalAveragePool", pool, *a, *y, channels_last=last)
    yield _ms("NhwcMaxPool", i8(2, 7, 6, 5, dtype="uint8"), kernel_shape=(3, 2))
    for op, data in (("QuantizeLinear", x(3, 5, 7)), ("DequantizeLinear", i8(3, 5, 7))):
        zero = ints(5, low=-3, high=3, dtype="int8", fixed=True)
        yield _ms(op, data, w(5, kind="positive"), zero, axis=1)
        yield _ms(op, data, scalar(0.1), scalar(3, "int8"))


def _nbits() -> Iterator[Sample]:
    k, n, block = 64, 5, 16
    blocks = k // block
    packed = partial(_ms, "MatMulNBits", K=k, N=n)
    data, weight = x(2, 3, k), ints(n, blocks, block // 2, high=256, dtype="uint8", fixed=True)
    scales = w(n, blocks, kind="positive")
    yield packed(data, weight, scales, bits=4, block_size=block)
    yield packed(data, weight, w(n * blocks, kind="positive"), bits=4, block_size=block)
    zeros = ints(n, blocks // 2, high=256, dtype="uint8", fixed=True)
    yield packed(data, weight, scales, zeros, bits=4, block_size=block)
    flat = replace(zeros, shape=(n * blocks // 2,))
    yield packed(data, weight, w(n * blocks, kind="positive"), flat, None, w(n), bits=4, block_size=block)
    yield packed(
        x(3, k), ints(n, 2, 16, high=256, dtype="uint8", fixed=True), w(n, 2, kind="positive"), bits=4, block_size=32
    )
    wide = ints(n, blocks, block, high=256, dtype="uint8", fixed=True)
    yield packed(x(3, k), wide, scales, bits=8, block_size=block)
    yield packed(x(3, k), wide, scales, ints(n, blocks, high=256, dtype="uint8", fixed=True), bits=8, block_size=block)
    short = partial(_ms, "MatMulNBits", K=60, N=n, bits=4, block_size=block)
    yield short(x(3, 60), weight, scales, refused="not full")
