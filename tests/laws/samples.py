"""Samples for the laws: every operator that has a rule, with operands whose axes all differ in size.

Equal sizes appear on purpose in a few samples: there a swapped letter cannot be seen from the sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from graphprune.coupling.laws import Operand, Sample

from . import samples_control, samples_fused
from .make import given, ints, one, scalar, shape_of, sizes, w, x


def samples() -> list[Sample]:
    """All of them."""
    return [
        *_pointwise(),
        *_dense(),
        *_norm(),
        *_reductions(),
        *_shape(),
        *_index(),
        *_recurrent(),
        *_quantized(),
        *samples_fused.samples(),
        *samples_control.samples(),
    ]


_UNARY = {
    "normal": "Abs Ceil Celu Cos Cosh Elu Erf Exp Floor HardSigmoid HardSwish LeakyRelu Mish Neg Relu Round Selu "
    "Shrink Sigmoid Sign Sin Sinh Softplus Softsign Tan Tanh ThresholdedRelu Asinh Atan IsInf IsNaN Identity "
    "Reciprocal",
    "unit": "Acos Asin Atanh",
    "positive": "Log Sqrt",
}


def _pointwise() -> Iterator[Sample]:
    for kind, names in _UNARY.items():
        for op in names.split():
            yield one(op, x(3, 5, 7, kind=kind))
    yield one("Relu", x(7))
    yield one("Relu", x(2, 3, 5, 7), opset=9)
    yield one("Relu", x(4, 4))
    yield one("Relu", x(3, 7, moving={0: "N"}))
    yield one("Acosh", replace(x(3, 5), kind="int", low=2, high=9))
    yield one("Gelu", x(3, 5, 7), opset=20, approximate="tanh")
    yield one("Swish", x(3, 5, 7), opset=24)
    yield one("Not", x(3, 5, kind="bool"))
    yield one("BitwiseNot", ints(3, 5, high=99))
    yield one("Cast", x(3, 5, 7), to=7)
    yield one("Cast", ints(3, 5, high=9), to=1)
    yield one("CastLike", x(3, 5, 7), ints(11, high=3))
    yield one("CastLike", x(4, 4), ints(4, 4, high=3))
    yield one("Clip", x(3, 5, 7), scalar(-0.5), scalar(0.5))
    yield one("Clip", x(3, 5, 7), None, scalar(0.5))
    yield one("Clip", x(3, 5, 7), opset=6, min=-0.5, max=0.5)
    yield one("Dropout", x(3, 5, 7))
    yield one("Dropout", x(3, 5, 7), scalar(0.4), results=2)
    yield one("Dropout", x(3, 5), opset=7, ratio=0.4)
    for op in ("Add", "Sub", "Mul", "Div", "PRelu", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"):
        yield one(op, x(3, 5, 7), x(3, 5, 7, kind="positive"))
        yield one(op, x(3, 5, 7), w(5, 1, kind="positive"))
    yield one("Equal", ints(3, 5, 7, high=3), ints(5, 1, high=3, fixed=True))
    for op in ("Add", "Mul"):
        yield one(op, x(2, 3, 5, 7), x(1, 3, 1, 1))
        yield one(op, w(7), x(3, 5, 7))
        yield one(op, x(3, 1, 7), x(1, 5, 7))
        yield one(op, x(3, 1), x(1, 5))
        yield one(op, x(3, 5), scalar(2.0))
        yield one(op, x(4, 4), x(4, 4))
        yield one(op, x(1, 1), x(3, 5))
    yield one("Add", x(3, 7, moving={0: "N"}), x(3, 7, moving={0: "N"}))
    yield one("Pow", x(3, 5, 7, kind="positive"), x(3, 5, 7))
    yield one("Pow", x(3, 5, 7), scalar(2.0))
    yield one("Mod", ints(3, 5, 7, high=50), ints(7, low=2, high=9, fixed=True))
    yield one("BitShift", ints(3, 5, high=50, dtype="uint32"), ints(3, 5, high=4, dtype="uint32"), direction="LEFT")
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        yield one(op, ints(3, 5, high=50), ints(3, 5, high=50))
        yield one(op, ints(3, 5, high=50), ints(5, high=50, fixed=True))
    for op in ("And", "Or", "Xor"):
        yield one(op, x(3, 5, kind="bool"), x(3, 5, kind="bool"))
        yield one(op, x(3, 5, kind="bool"), x(3, 1, kind="bool"))
    for op in ("Max", "Min", "Mean", "Sum"):
        yield one(op, x(3, 5, 7), x(3, 5, 7))
        yield one(op, x(3, 5, 7), w(7), x(3, 1, 1))
        yield one(op, x(3, 5))
    yield one("Where", x(3, 5, 7, kind="bool"), x(3, 5, 7), x(3, 5, 7))
    yield one("Where", x(5, 1, kind="bool"), x(3, 5, 7), scalar(-9.0))
    yield one("Where", x(3, 1, 7, kind="bool"), x(5, 1), w(7))
    yield one("Where", x(4, 4, kind="bool"), x(4, 4), x(4, 4))


def _dense() -> Iterator[Sample]:
    yield one("Conv", x(2, 5, 7, 11), w(13, 5, 3, 3), w(13), pads=(1, 1, 1, 1))
    yield one("Conv", x(2, 5, 7, 11), w(13, 5, 3, 2))
    yield one("Conv", x(2, 15, 7, 11), w(12, 5, 3, 3), w(12), group=3)
    yield one("Conv", x(2, 5, 7, 11), w(5, 1, 3, 3), w(5), group=5)
    yield one("Conv", x(2, 5, 7, 11), w(10, 1, 3, 3), group=5, strides=(2, 2))
    yield one("Conv", x(2, 5, 13), w(7, 5, 3), dilations=(2,))
    yield one("Conv", x(2, 3, 5, 7, 6), w(11, 3, 2, 2, 2))
    yield one("Conv", x(2, 5, 7, 11), x(13, 5, 3, 3), x(13))
    yield one("Conv", x(4, 4, 4, 4), w(4, 4, 1, 1), w(4))
    yield one("Conv", x(4, 4, 4, 4), x(4, 4, 3, 3), pads=(1, 1, 1, 1))
    yield one("Conv", x(3, 9, 3, 3), w(9, 3, 1, 1), w(9), group=3)
    yield one("ConvTranspose", x(2, 5, 7, 11), w(5, 13, 3, 3), w(13), strides=(2, 2))
    yield one("ConvTranspose", x(2, 15, 7, 11), w(15, 4, 3, 2), w(12), group=3)
    yield one("ConvTranspose", x(2, 5, 7), w(5, 1, 3), group=5)
    yield one("ConvTranspose", x(2, 5, 7, 11), x(5, 13, 2, 3))
    yield one("ConvTranspose", x(4, 4, 4, 4), w(4, 4, 1, 1), w(4))
    for op in ("AveragePool", "MaxPool", "LpPool"):
        yield one(op, x(2, 5, 7, 11), kernel_shape=(3, 2), strides=(2, 2))
        yield one(op, x(2, 5, 13), kernel_shape=(3,))
        yield one(op, x(4, 4, 4, 4), kernel_shape=(2, 2), strides=(2, 2))
        yield one(op, x(3, 3, 3, 3), kernel_shape=(3, 3), strides=(1, 1), pads=(1, 1, 1, 1))
    yield one("MaxPool", x(2, 5, 7, 11), kernel_shape=(3, 2), results=2)
    for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
        yield one(op, x(2, 5, 7, 11))
        yield one(op, x(4, 4, 4))
    yield one("MatMul", x(3, 5), w(5, 7))
    yield one("MatMul", x(3, 5), x(5, 7))
    yield one("MatMul", x(2, 3, 5), w(5, 7))
    yield one("MatMul", x(2, 3, 5, 7), x(2, 3, 7, 11))
    yield one("MatMul", x(3, 1, 5, 7), x(2, 7, 11))
    yield one("MatMul", x(5), w(5, 7))
    yield one("MatMul", x(3, 5), x(5))
    yield one("MatMul", x(5), x(5))
    yield one("MatMul", x(2, 3, 5), x(5))
    yield one("MatMul", x(5), x(2, 5, 7))
    yield one("MatMul", x(4, 4), x(4, 4))
    yield one("MatMul", x(4, 4, 4), x(4, 4, 4))
    yield one("MatMul", x(3, 5, 7, moving={0: "N", 1: "T"}), w(7, 11))
    yield one("Gemm", x(3, 5), w(5, 7), w(7))
    yield one("Gemm", x(3, 5), w(7, 5), w(7), transB=1)
    yield one("Gemm", x(5, 3), w(5, 7), transA=1, alpha=0.5)
    yield one("Gemm", x(5, 3), x(7, 5), x(3, 7), transA=1, transB=1, beta=2.0)
    yield one("Gemm", x(3, 5), w(5, 7), w(1, 7))
    yield one("Gemm", x(3, 5), w(5, 7), w(3, 1))
    yield one("Gemm", x(3, 5), w(5, 7), scalar(3.0))
    yield one("Gemm", x(3, 5), w(5, 7), w(1))
    yield one("Gemm", x(4, 4), x(4, 4), x(4, 4))
    yield one("Gemm", x(4, 4), x(4, 4), x(4, 4), transB=1)
    yield one("Gemm", x(4, 4), x(4, 4), x(4), transA=1)
    yield one("Einsum", x(3, 5), x(5, 7), equation="ij,jk->ik")
    yield one("Einsum", x(2, 3, 5, 7), x(2, 11, 5, 7), equation="bqhd,bkhd->bhqk")
    yield one("Einsum", x(2, 3, 5), w(5, 7), equation="...i,ij->...j")
    yield one("Einsum", x(3, 5, 7), equation="ijk -> kji")
    yield one("Einsum", x(3, 5, 7), equation="ijk->j")
    yield one("Einsum", x(3, 5), x(5, 7), equation="ij,jk")
    yield one("Einsum", x(3), x(5), equation="i,j->ij")
    yield one("Einsum", x(3, 5), x(5, 7), x(7, 11), equation="ab,bc,cd->ad")
    yield one("Einsum", x(4, 4), x(4, 4), equation="ij,kj->ik")


def _norm() -> Iterator[Sample]:
    yield one("BatchNormalization", x(2, 5, 7, 3), *[w(5, kind="positive") for _ in range(4)])
    yield one("BatchNormalization", x(3, 5), *[w(5, kind="positive") for _ in range(4)])
    yield one("BatchNormalization", x(4, 4, 4), *[x(4, kind="positive") for _ in range(4)], opset=9)
    training = [w(5, kind="positive") for _ in range(4)]
    yield one("BatchNormalization", x(2, 5, 7), *training, results=3, training_mode=1, refused="training")
    yield one("InstanceNormalization", x(2, 5, 7, 3), w(5), w(5))
    yield one("InstanceNormalization", x(4, 4, 4), x(4), x(4))
    yield one("LRN", x(2, 7, 5, 3), size=3, alpha=1.0)
    yield one("LRN", x(4, 4, 4, 4), size=3, alpha=1.0)
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        yield one(op, x(3, 5, 7))
        yield one(op, x(3, 5, 7), axis=1)
        yield one(op, x(2, 3, 5, 7), opset=11)
        yield one(op, x(2, 3, 5, 7), opset=11, axis=-1)
        yield one(op, x(4, 4, 4), axis=-2)
    yield one("LpNormalization", x(3, 5, 7), axis=1, p=2)
    yield one("LpNormalization", x(3, 5, 7), p=1)
    yield one("MeanVarianceNormalization", x(2, 5, 3, 7))
    yield one("MeanVarianceNormalization", x(2, 5, 7), axes=(2,))
    yield one("LayerNormalization", x(2, 3, 5), w(5), w(5))
    yield one("LayerNormalization", x(2, 3, 5), w(5))
    yield one("LayerNormalization", x(2, 3, 5, 7), w(5, 7), w(5, 7), axis=-2)
    yield one("LayerNormalization", x(2, 3, 5, 7), w(7), w(5, 7), axis=2)
    yield one("LayerNormalization", x(2, 3, 5), w(5), w(5), results=3)
    yield one("LayerNormalization", x(4, 4, 4), x(4), x(4))
    yield one("RMSNormalization", x(2, 3, 5), w(5), opset=23)
    yield one("RMSNormalization", x(2, 3, 5, 7), w(5, 7), opset=23, axis=2)
    yield one("GroupNormalization", x(2, 15, 7, 3), w(15), w(15), opset=21, num_groups=3)
    yield one("GroupNormalization", x(2, 15, 7), w(3), w(3), opset=18, num_groups=3)
    yield one("GroupNormalization", x(3, 9, 3), w(9), w(9), opset=21, num_groups=3)


def _reductions() -> Iterator[Sample]:
    for name in ("Sum", "SumSquare", "L1", "L2", "Mean", "Max", "Min", "Prod", "LogSum", "LogSumExp"):
        # a zero must never happen to be the extreme, or silencing could not be told from removing
        op, kind = f"Reduce{name}", {"LogSum": "positive", "Min": "positive", "Max": "negative"}.get(name, "normal")
        yield one(op, x(3, 5, 7, kind=kind), sizes(1))
        yield one(op, x(3, 5, 7, kind=kind), sizes(0, -1), keepdims=0)
        yield one(op, x(2, 3, 4, kind=kind))
        yield one(op, x(3, 5, 7, kind=kind), opset=11, axes=(-2,), keepdims=0)
        yield one(op, x(4, 4, 4, kind=kind), sizes(2), keepdims=0)
    yield one("ReduceSum", x(3, 5, 7), noop_with_empty_axes=1)
    yield one("ReduceSum", x(3, 5, 7), sizes(), noop_with_empty_axes=1)
    yield one("ReduceSum", x(3, 5, 7), given(1), refused="axes are computed")
    for op in ("ArgMax", "ArgMin"):
        yield one(op, x(3, 5, 7), axis=1)
        yield one(op, x(3, 5, 7), axis=-1, keepdims=0)
        yield one(op, x(4, 4))
    yield one("CumSum", x(3, 5, 7), scalar(1, "int64"))
    yield one("CumSum", x(3, 5, 7), scalar(-1, "int64"), reverse=1)
    yield one("CumSum", x(3, 5, 7), Operand((), dtype="int64", content=(1,)), refused="axis is computed")


def _shape() -> Iterator[Sample]:
    yield one("Reshape", x(3, 35), sizes(3, 5, 7))
    yield one("Reshape", x(3, 5, 7), sizes(3, 35))
    yield one("Reshape", x(3, 5, 7), sizes(3, -1))
    yield one("Reshape", x(3, 5, 7), sizes(0, 0, 7))
    yield one("Reshape", x(2, 15, 14), sizes(2, 5, 3, 2, 7))
    yield one("Reshape", x(6, 35), sizes(2, 3, -1, 7))
    yield one("Reshape", x(4, 6), sizes(3, 8))
    yield one("Reshape", x(4, 9), sizes(6, 6))
    yield one("Reshape", x(3, 5), sizes(5, 3))
    yield one("Reshape", x(15), sizes(1, 3, 1, 5))
    yield one("Reshape", x(3, 35, moving={0: "N"}), sizes(-1, 5, 7))
    yield one("Reshape", x(3, 35, moving={0: "N"}), sizes(0, 5, 7))
    yield one("Reshape", x(3, 5, 14, moving={0: "N", 1: "T"}), sizes(0, 0, 2, 7))
    yield one("Reshape", x(3, 5, 14, moving={0: "N"}), sizes(-1, 7))
    yield one("Reshape", x(3, 5, 14, moving={0: "N", 1: "T"}), shape_of(3, 5, 14, moving={0: "N", 1: "T"}))
    yield one("Reshape", x(3, 5, 14), given(3, 70), refused="computed")
    yield one("Reshape", x(4, 4, 4), sizes(4, 16))
    yield one("Flatten", x(3, 5, 7))
    yield one("Flatten", x(2, 3, 5, 7), axis=2)
    yield one("Flatten", x(3, 5, 7), axis=-1, opset=11)
    yield one("Flatten", x(3, 5, 7), axis=0)
    yield one("Squeeze", x(3, 1, 5, 1), sizes(1))
    yield one("Squeeze", x(3, 1, 5, 1))
    yield one("Squeeze", x(3, 1, 5), opset=11, axes=(-2,))
    yield one("Unsqueeze", x(3, 5), sizes(0, -1))
    yield one("Unsqueeze", x(3, 5), opset=11, axes=(1,))
    yield one("Unsqueeze", x(4, 4), sizes(1))
    yield one("Transpose", x(3, 5, 7))
    yield one("Transpose", x(3, 5, 7, 2), perm=(0, 2, 3, 1))
    yield one("Transpose", x(4, 4, 4), perm=(1, 2, 0))
    yield one("Expand", x(3, 1, 7), sizes(3, 5, 7))
    yield one("Expand", x(7), sizes(3, 5, 7))
    yield one("Expand", x(3, 1, 7), sizes(5, 1))
    yield one("Expand", x(3, 1, 7, moving={0: "N"}), shape_of(3, 5, 7, moving={0: "N"}))
    yield one("Expand", x(3, 1, 7), given(3, 5, 7), refused="computed")
    yield one("Tile", x(3, 5), sizes(2, 1))
    yield one("Tile", x(3, 5, 7), sizes(1, 3, 2))
    yield one("Tile", x(3, 5, moving={0: "N"}), sizes(2, 3))
    yield one("Tile", x(3, 5), given(2, 3), refused="computed")
    yield one("Tile", x(3, 3), sizes(3, 3))
    yield one("ConstantOfShape", shape_of(3, 5, moving={0: "N"}))
    yield one("ConstantOfShape", given(3, 5), refused="computed")
    yield one("Shape", x(3, 5, 7, moving={0: "N"}))
    yield one("Shape", x(3, 5, 7, moving={1: "N"}), start=1)
    yield one("Size", x(3, 5, 7, moving={0: "N"}))
    yield one("Range", scalar(0, "int64"), Operand((), dtype="int64", content=(7,)), scalar(1, "int64"))
    yield one("Trilu", x(3, 5, 7))
    yield one("Trilu", x(3, 4, 4), scalar(1, "int64"), upper=0)
    yield one("DepthToSpace", x(2, 20, 3, 5), blocksize=2)
    yield one("DepthToSpace", x(2, 20, 3, 5), blocksize=2, mode="CRD")
    yield one("DepthToSpace", x(2, 8, 2, 2), blocksize=2)
    yield one("DepthToSpace", x(2, 8, 2, 2), blocksize=2, mode="CRD")
    yield one("SpaceToDepth", x(2, 5, 6, 14), blocksize=2)
    yield one("SpaceToDepth", x(2, 2, 4, 4), blocksize=2)
    yield one("Concat", x(3, 5, 7), x(3, 2, 7), axis=1)
    yield one("Concat", x(3, 5, 7), w(3, 5, 2), x(3, 5, 11), axis=-1)
    yield one("Concat", x(3, 5), axis=0)
    yield one("Concat", x(4, 4), x(4, 4), axis=1)
    yield one("Concat", x(3, 5), x(0, 5), x(2, 5), axis=0)
    yield one("Split", x(3, 10), sizes(3, 7), axis=1, results=2)
    yield one("Split", x(12, 5), num_outputs=3, results=3)
    yield one("Split", x(3, 12), opset=13, axis=-1, results=2)
    yield one("Split", x(3, 10), opset=11, axis=1, split=(3, 5, 2), results=3)
    yield one("Split", x(3, 12), opset=11, axis=1, results=2)
    yield one("Split", x(7, 5), num_outputs=3, results=3)
    yield one("Split", x(8, 8), sizes(4, 4), axis=0, results=2)
    yield one("Split", x(3, 10), given(3, 7), axis=1, results=2, refused="computed")
    yield one("Pad", x(3, 5, 7), sizes(0, 1, 2, 0, 0, 3))
    yield one("Pad", x(3, 5), sizes(0, 2, 0, 1), scalar(1.5))
    yield one("Pad", x(3, 5, 7), sizes(2, 1), None, sizes(-1))
    yield one("Pad", x(2, 3, 5, 7), opset=10, pads=(0, 0, 1, 1, 0, 2, 1, 1))
    yield one("Pad", x(3, 5, 7), sizes(0, 0, 2, 0, 0, 2), mode="reflect")
    yield one("Pad", x(3, 5, 7), sizes(0, 0, -1, 0, 0, -2))
    yield one("Pad", x(3, 5), given(0, 2, 0, 1), refused="computed")
    yield one("Pad", x(4, 4), sizes(1, 1, 1, 1))
    yield one("Resize", x(2, 3, 5, 7), None, Operand((4,), content=(1, 1, 2, 2), fixed=True))
    yield one("Resize", x(2, 3, 5, 7), None, None, sizes(2, 3, 10, 11), mode="linear")
    yield one("Resize", x(2, 3, 5, 7), None, None, sizes(10, 11), axes=(2, 3))
    yield one("Resize", x(4, 4, 4, 4), None, None, sizes(4, 4, 8, 8))
    yield one("Resize", x(2, 3, 5, 7), Operand((4,), content=(1, 1, 2, 2), fixed=True), opset=10)
    yield one("Upsample", x(2, 3, 5, 7), Operand((4,), content=(1, 1, 2, 2), fixed=True), opset=9)


def _index() -> Iterator[Sample]:
    yield one("Slice", x(3, 11), sizes(2), sizes(7), sizes(1))
    yield one("Slice", x(3, 11, 7), sizes(1, 2), sizes(3, 9), sizes(0, 1))
    yield one("Slice", x(5, 11), sizes(0, -4), sizes(3, 9999))
    yield one("Slice", x(3, 11), sizes(2), sizes(-1), sizes(-1), sizes(1))
    yield one("Slice", x(3, 12), sizes(0), sizes(12), sizes(1), sizes(2))
    yield one("Slice", x(3, 12), sizes(1), sizes(12), sizes(1), sizes(3))
    yield one("Slice", x(3, 12), sizes(2), sizes(12), sizes(1), sizes(5))
    yield one("Slice", x(3, 11), sizes(-1), sizes(-99), sizes(1), sizes(-1))
    yield one("Slice", x(3, 11), sizes(8), sizes(3), sizes(1), sizes(-1))
    yield one("Slice", x(3, 11), sizes(9), sizes(1), sizes(1), sizes(-2))
    yield one("Slice", x(3, 11), opset=9, starts=(2,), ends=(7,), axes=(1,))
    yield one("Slice", x(5, 11), opset=9, starts=(0, 4), ends=(-1, 99999))
    yield one("Slice", x(3, 11, moving={0: "N"}), sizes(0, 2), sizes(9999, 7), sizes(0, 1))
    yield one("Slice", x(3, 11), given(2), given(7), sizes(1))
    yield one("Slice", x(3, 11), sizes(2), sizes(7), given(1), refused="axes are computed")
    yield one("Slice", x(4, 4), sizes(1), sizes(3), sizes(0))
    yield one("Gather", x(3, 11), sizes(0, 1, 5, 6, 7), axis=1)
    yield one("Gather", x(3, 11), sizes(7, 3, 3, -1), axis=1)
    yield one("Gather", x(3, 11, 5), sizes(10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), axis=-2)
    yield one("Gather", x(3, 11, 5), scalar(4, "int64"), axis=1)
    yield one("Gather", w(11, 5), ints(2, 3, high=11))
    yield one("Gather", x(3, 11), ints(2, 5, high=11, fixed=True), axis=1)
    yield one("Gather", x(3, 11), ints(7, high=11), axis=1)
    yield one("Gather", x(4, 4), sizes(0, 1, 2, 3))
    yield one("GatherElements", x(3, 11), ints(3, 5, high=11), axis=1)
    yield one("GatherElements", x(3, 11, 7), ints(2, 5, 7, high=11), axis=1)
    yield one("GatherElements", x(4, 4), ints(4, 4, high=4), axis=0)


def _recurrent() -> Iterator[Sample]:
    t, b, i, h = 5, 2, 3, 7
    for op, gates, states in (("LSTM", 4, 2), ("GRU", 3, 1), ("RNN", 1, 1)):
        full = 1 + states
        for d, direction in ((1, "forward"), (2, "bidirectional"), (1, "reverse")):
            weights = w(d, gates * h, i), w(d, gates * h, h), w(d, 2 * gates * h)
            start = [x(d, b, h)] * states
            yield one(op, x(t, b, i), *weights, None, *start, results=full, hidden_size=h, direction=direction)
        yield one(op, x(t, b, i), *weights[:2], results=1, hidden_size=h)
        yield one(op, x(t, b, i), *weights, ints(b, low=1, high=5, dtype="int32"), results=full, hidden_size=h)
        yield one(op, x(4, 4, 4), x(1, gates * 4, 4), x(1, gates * 4, 4), results=full, hidden_size=4)
    yield one("GRU", x(t, b, i), w(1, 21, i), w(1, 21, h), w(1, 42), results=2, hidden_size=h, linear_before_reset=1)
    peepholes = w(1, 28, i), w(1, 28, h), w(1, 56), None, x(1, b, h), x(1, b, h), w(1, 21)
    yield one("LSTM", x(t, b, i), *peepholes, results=3, hidden_size=h)


def _quantized() -> Iterator[Sample]:
    for op, data in (("QuantizeLinear", x(3, 5, 7)), ("DequantizeLinear", ints(3, 5, 7, low=-9, high=9, dtype="int8"))):
        zero = ints(5, low=-3, high=3, dtype="int8", fixed=True)
        single = scalar(0.1), scalar(3, "int8")
        yield one(op, data, w(5, kind="positive"), zero, axis=1)
        yield one(op, data, w(5, kind="positive"), zero, axis=-2)
        yield one(op, data, *single)
        yield one(op, data, single[0])
        yield one(op, data, w(1, kind="positive"), axis=0)
        yield one(op, replace(data, shape=(4, 4)), w(4, kind="positive"), axis=0)
        blocks = w(3, 2, 7, kind="positive")
        yield one(op, replace(data, shape=(3, 6, 7)), blocks, axis=1, block_size=3, opset=21)
        yield one(op, replace(data, shape=(3, 5, 7)), blocks, axis=1, block_size=3, opset=21, refused="not full")
