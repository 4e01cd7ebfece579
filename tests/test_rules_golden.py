"""One golden text per operator: the node, and the line that its rule gives for it.

A node is written as a sample of the laws is: operator, opset, the operands' sizes (``[3 -1]``: an initialiser of that
content; ``given``: an input of it; ``N3``: a symbolic dimension; ``-``: left out), attributes, ``-> 3`` results.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from laws.bench import run, shrink
from laws.samples import samples

from graphprune.coupling.laws import Case, Sample
from graphprune.coupling.registry import all_rules

ELEMENTWISE = {
    "x* -> x*": """
        Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid
        HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin
        Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
    """,
    "x*, x* -> x*": """
        Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Mod Mul Or
        PRelu Pow Sub Xor
    """,
    "x*, ... -> x*": "Max Mean Min Sum",
}

GOLDEN = """
CastLike-18(3x5x7, 11)
    x*, _ -> x*
Clip-18(3x5x7, scalar, scalar)
    x*, .?, .? -> x*
Dropout-18(3x5x7)
    x*, .?, .? -> x*, x*?
Where-18(3x5x7, 3x5x7, 3x5x7)
    x*, x*, x* -> x*
Conv-18(2x5x7x11, 13x5x3x3, 13, pads=(1, 1, 1, 1))
    n (g i) x*, (g o) i k*, (g o)? -> n (g o) y* | g=@group:1 | whole: x y k | macs: n g o i k y
ConvTranspose-18(2x5x7x11, 5x13x3x3, 13, strides=(2, 2))
    n (g i) x*, (g i) o k*, (g o)? -> n (g o) y* | g=@group:1 | whole: x y k | macs: n g i o k x
AveragePool-18(2x5x7x11, kernel_shape=(3, 2), strides=(2, 2))
    n c x* -> n c y* | whole: x y
MaxPool-18(2x5x7x11, kernel_shape=(3, 2), strides=(2, 2))
    n c x* -> n c y* | whole: x y
LpPool-18(2x5x7x11, kernel_shape=(3, 2), strides=(2, 2))
    n c x* -> n c y* | whole: x y
MaxPool-18(2x5x7x11, kernel_shape=(3, 2)) -> 2
    n c x* -> n c y*, n c y*? | whole: x y n c
GlobalAveragePool-18(2x5x7x11)
    n c x* -> n c y* | whole: x y
GlobalMaxPool-18(2x5x7x11)
    n c x* -> n c y* | whole: x y
GlobalLpPool-18(2x5x7x11)
    n c x* -> n c y* | whole: y
MatMul-18(3x5, 5x7)
    m k, k n -> m n | macs: m k n
MatMul-18(2x3x5, 5x7)
    b* m k, b* k n -> b* m n | macs: b m k n
MatMul-18(5, 5x7)
    k, k n -> n | macs: k n
MatMul-18(3x5, 5)
    m k, k -> m | macs: m k
MatMul-18(5, 5)
    k, k -> | macs: k
MatMul-18(2x3x5, 5)
    b* m k, k -> b* m | macs: b m k
MatMul-18(5, 2x5x7)
    k, b* k n -> b* n | macs: b k n
Gemm-18(3x5, 5x7, 7)
    m k, k n, n -> m n | macs: m k n
Gemm-18(3x5, 7x5, 7, transB=1)
    m k, n k, n -> m n | macs: m k n
Gemm-18(5x3, 5x7, transA=1, alpha=0.5)
    k m, k n -> m n | macs: m k n
Gemm-18(5x3, 7x5, 3x7, transA=1, transB=1, beta=2.0)
    k m, n k, m n -> m n | macs: m k n
Gemm-18(3x5, 5x7, 1x7)
    m k, k n, m n -> m n | macs: m k n
Gemm-18(3x5, 5x7, scalar)
    m k, k n, -> m n | macs: m k n
Gemm-18(4x4, 4x4, 4x4, transB=1)
    m k, n k, m n -> m n | macs: m k n
Gemm-18(4x4, 4x4, 4, transA=1)
    k m, k n, n -> m n | macs: m k n
Einsum-18(3x5, 5x7, equation=ij,jk->ik)
    i j, j k -> i k | macs: i j k
Einsum-18(2x3x5x7, 2x11x5x7, equation=bqhd,bkhd->bhqk)
    b q h d, b k h d -> b h q k | macs: b d h k q
Einsum-18(2x3x5, 5x7, equation=...i,ij->...j)
    e* i, i j -> e* j | macs: e i j
Einsum-18(3x5x7, equation=ijk -> kji)
    i j k -> k j i
Einsum-18(3x5x7, equation=ijk->j)
    i j k -> j
Einsum-18(3, 5, equation=i,j->ij)
    i, j -> i j | macs: i j
Einsum-18(3x5, 5x7, 7x11, equation=ab,bc,cd->ad)
    a b, b c, c d -> a d | macs: a b c d
Einsum-18(4x4, 4x4, equation=ij,kj->ik)
    i j, k j -> i k | macs: i j k
BatchNormalization-18(2x5x7x3, 5, 5, 5, 5)
    n c x*, c, c, c, c -> n c x*, c?, c?, c?, c? | scale: 1 | mean: 3 | variance: 4
BatchNormalization-18(2x5x7, 5, 5, 5, 5, training_mode=1) -> 3
    refused: it is in training mode and computes statistics of the batch
InstanceNormalization-18(2x5x7x3, 5, 5)
    n c x*, c, c -> n c x* | stat: x | scale: 1
LRN-18(2x7x5x3, size=3, alpha=1.0)
    n c x* -> n c x* | stat: c
Softmax-18(3x5x7)
    a0 a1 a2 -> a0 a1 a2 | stat: a2
Softmax-18(3x5x7, axis=1)
    a0 a1 a2 -> a0 a1 a2 | stat: a1
Softmax-11(2x3x5x7)
    a0 a1 a2 a3 -> a0 a1 a2 a3 | stat: a1 a2 a3
Softmax-11(2x3x5x7, axis=-1)
    a0 a1 a2 a3 -> a0 a1 a2 a3 | stat: a3
LogSoftmax-18(3x5x7)
    a0 a1 a2 -> a0 a1 a2 | stat: a2
Hardmax-18(3x5x7)
    a0 a1 a2 -> a0 a1 a2 | stat: a2
LpNormalization-18(3x5x7, axis=1, p=2)
    a0 a1 a2 -> a0 a1 a2 | zero: a1
LpNormalization-18(3x5x7, p=1)
    a0 a1 a2 -> a0 a1 a2 | zero: a2
MeanVarianceNormalization-18(2x5x3x7)
    a0 a1 a2 a3 -> a0 a1 a2 a3 | stat: a0 a2 a3
MeanVarianceNormalization-18(2x5x7, axes=(2,))
    a0 a1 a2 -> a0 a1 a2 | stat: a2
LayerNormalization-18(2x3x5, 5, 5)
    a0 a1 a2, a2, a2 -> a0 a1 a2 | stat: a2 | scale: 1
LayerNormalization-18(2x3x5, 5)
    a0 a1 a2, a2 -> a0 a1 a2 | stat: a2 | scale: 1
LayerNormalization-18(2x3x5x7, 5x7, 5x7, axis=-2)
    a0 a1 a2 a3, a2 a3, a2 a3 -> a0 a1 a2 a3 | stat: a2 a3 | scale: 1
LayerNormalization-18(2x3x5x7, 7, 5x7, axis=2)
    a0 a1 a2 a3, a3, a2 a3 -> a0 a1 a2 a3 | stat: a2 a3 | scale: 1
LayerNormalization-18(2x3x5, 5, 5) -> 3
    a0 a1 a2, a2, a2 -> a0 a1 a2, a0 a1 1?, a0 a1 1? | stat: a2 | scale: 1
RMSNormalization-23(2x3x5, 5)
    a0 a1 a2, a2 -> a0 a1 a2 | stat: a2 | scale: 1
RMSNormalization-23(2x3x5x7, 5x7, axis=2)
    a0 a1 a2 a3, a2 a3 -> a0 a1 a2 a3 | stat: a2 a3 | scale: 1
GroupNormalization-21(2x15x7x3, 15, 15, num_groups=3)
    n (g c) x*, (g c), (g c) -> n (g c) x* | g=@num_groups | stat: c x | scale: 1
GroupNormalization-18(2x15x7, 3, 3, num_groups=3)
    n (g c) x*, g, g -> n (g c) x* | g=@num_groups | stat: c x | scale: 1
ReduceSum-18(3x5x7, [1])
    a0 a1 a2, .? -> a0 1 a2
ReduceSum-18(3x5x7, [0 -1], keepdims=0)
    a0 a1 a2, .? -> a1
ReduceSum-18(2x3x4)
    a0 a1 a2, .? -> 1 1 1
ReduceSum-11(3x5x7, axes=(-2,), keepdims=0)
    a0 a1 a2, .? -> a0 a2
ReduceSum-18(4x4x4, [2], keepdims=0)
    a0 a1 a2, .? -> a0 a1
ReduceSumSquare-18(3x5x7, [1])
    a0 a1 a2, .? -> a0 1 a2
ReduceL1-18(3x5x7, [1])
    a0 a1 a2, .? -> a0 1 a2
ReduceL2-18(3x5x7, [1])
    a0 a1 a2, .? -> a0 1 a2
ReduceMean-18(3x5x7, [1])
    a0 a1 a2, .? -> a0 1 a2 | stat: a1
ReduceMean-18(3x5x7, [0 -1], keepdims=0)
    a0 a1 a2, .? -> a1 | stat: a0 a2
ReduceMean-18(2x3x4)
    a0 a1 a2, .? -> 1 1 1 | stat: a0 a1 a2
ReduceMean-11(3x5x7, axes=(-2,), keepdims=0)
    a0 a1 a2, .? -> a0 a2 | stat: a1
ReduceMean-18(4x4x4, [2], keepdims=0)
    a0 a1 a2, .? -> a0 a1 | stat: a2
ReduceMax-18(3x5x7, [1])
    a0 a1 a2, .? -> a0 1 a2 | stat: a1
ReduceMin-18(3x5x7, [1])
    a0 a1 a2, .? -> a0 1 a2 | stat: a1
ReduceProd-18(3x5x7, [1])
    a0 a1 a2, .? -> a0 1 a2 | stat: a1
ReduceLogSum-18(3x5x7, [1])
    a0 a1 a2, .? -> a0 1 a2
ReduceLogSumExp-18(3x5x7, [1])
    a0 a1 a2, .? -> a0 1 a2 | stat: a1
ReduceSum-18(3x5x7, noop_with_empty_axes=1)
    a0 a1 a2, .? -> a0 a1 a2
ReduceSum-18(3x5x7, [1] given)
    refused: its axes are computed
ArgMax-18(3x5x7, axis=1)
    a0 a1 a2 -> a0 1 a2 | whole: a1
ArgMax-18(3x5x7, axis=-1, keepdims=0)
    a0 a1 a2 -> a0 a1 | whole: a2
ArgMax-18(4x4)
    a0 a1 -> 1 a1 | whole: a0
ArgMin-18(3x5x7, axis=1)
    a0 a1 a2 -> a0 1 a2 | whole: a1
CumSum-18(3x5x7, scalar)
    a0 a1 a2, . -> a0 a1 a2 | zero: a1
CumSum-18(3x5x7, scalar, reverse=1)
    a0 a1 a2, . -> a0 a1 a2 | zero: a2
CumSum-18(3x5x7, scalar given)
    refused: its axis is computed
Reshape-18(3x35, [3 5 7])
    a0 (a1 a2), .? -> a0 a1 a2 | a0=3 | a1=5 | a2=7
Reshape-18(3x5x7, [3 35])
    a0 a1 a2, .? -> a0 (a1 a2) | a0=3 | a1=5 | a2=7
Reshape-18(3x5x7, [0 0 7])
    a0 a1 a2, .? -> a0 a1 a2 | a0=3 | a1=5 | a2=7
Reshape-18(2x15x14, [2 5 3 2 7])
    a0 (a1 a2) (a3 a4), .? -> a0 a1 a2 a3 a4 | a0=2 | a1=5 | a2=3 | a3=2 | a4=7
Reshape-18(6x35, [2 3 -1 7])
    (a0 a1) (a2 a3), .? -> a0 a1 a2 a3 | a0=2 | a1=3 | a2=5 | a3=7
Reshape-18(4x6, [3 8])
    a0 a3, .? -> a1 a2 | a0=4 | a1=3 | a2=8 | a3=6 | whole: a0 a1 a2 a3
Reshape-18(4x9, [6 6])
    (a0 a1) a3, .? -> (a0 a2) a4 | a0=2 | a1=2 | a2=3 | a3=9 | a4=6 | whole: a1 a2 a3 a4
Reshape-18(3x5, [5 3])
    a0 a2, .? -> a1 a3 | a0=3 | a1=5 | a2=5 | a3=3 | whole: a0 a1 a2 a3
Reshape-18(15, [1 3 1 5])
    (a0 a1), .? -> 1 a0 1 a1 | a0=3 | a1=5
Reshape-18(N3xT5x14, [0 0 2 7])
    a0 a1 (a2 a3), .? -> a0 a1 a2 a3 | a0=3 | a1=5 | a2=2 | a3=7
Reshape-18(N3x5x14, [-1 7])
    a0 a1 (a2 a3), .? -> (a0 a1 a2) a3 | a0=3 | a1=5 | a2=2 | a3=7
Reshape-18(N3xT5x14, Shape(N3xT5x14))
    a0 a1 a2, .? -> a0 a1 a2 | a0=3 | a1=5 | a2=14
Reshape-18(3x5x14, [3 70] given)
    refused: its sizes are computed from data
Reshape-18(4x4x4, [4 16])
    a0 a1 a2, .? -> a0 (a1 a2) | a0=4 | a1=4 | a2=4
Flatten-18(3x5x7)
    a0 a1 a2, .? -> a0 (a1 a2) | a0=3 | a1=5 | a2=7
Flatten-18(2x3x5x7, axis=2)
    a0 a1 a2 a3, .? -> (a0 a1) (a2 a3) | a0=2 | a1=3 | a2=5 | a3=7
Flatten-11(3x5x7, axis=-1)
    a0 a1 a2, .? -> (a0 a1) a2 | a0=3 | a1=5 | a2=7
Flatten-18(3x5x7, axis=0)
    a0 a1 a2, .? -> 1 (a0 a1 a2) | a0=3 | a1=5 | a2=7
Squeeze-18(3x1x5x1, [1])
    a0 1 a1 1, .? -> a0 a1 1 | a0=3 | a1=5
Squeeze-18(3x1x5x1)
    a0 1 a1 1, .? -> a0 a1 | a0=3 | a1=5
Squeeze-11(3x1x5, axes=(-2,))
    a0 1 a1, .? -> a0 a1 | a0=3 | a1=5
Unsqueeze-18(3x5, [0 -1])
    a0 a1, .? -> 1 a0 a1 1 | a0=3 | a1=5
Unsqueeze-11(3x5, axes=(1,))
    a0 a1, .? -> a0 1 a1 | a0=3 | a1=5
Unsqueeze-18(4x4, [1])
    a0 a1, .? -> a0 1 a1 | a0=4 | a1=4
Transpose-18(3x5x7)
    a0 a1 a2 -> a2 a1 a0
Transpose-18(3x5x7x2, perm=(0, 2, 3, 1))
    a0 a1 a2 a3 -> a0 a2 a3 a1
Transpose-18(4x4x4, perm=(1, 2, 0))
    a0 a1 a2 -> a1 a2 a0
Expand-18(3x1x7, [3 5 7])
    x*, . -> x*
Expand-18(3x1x7, [3 5 7] given)
    refused: its sizes are computed from data
Tile-18(3x5, [2 1])
    a0 a1, . -> (r0 a0) a1
Tile-18(3x5x7, [1 3 2])
    a0 a1 a2, . -> a0 (r1 a1) (r2 a2)
Tile-18(N3x5, [2 3])
    a0 a1, . -> (r0 a0) (r1 a1) | whole: r0
Tile-18(3x5, [2 3] given)
    refused: its repeats are computed from data
Tile-18(3x3, [3 3])
    a0 a1, . -> (r0 a0) (r1 a1)
ConstantOfShape-18(Shape(N3x5))
    . -> a0 a1 | whole: a0
ConstantOfShape-18([3 5] given)
    refused: its sizes are computed from data
Shape-18(N3x5x7)
    _ -> n | whole: n
Size-18(N3x5x7)
    . ->
Range-18(scalar, scalar given, scalar)
    ., ., . -> x | whole: x
Trilu-18(3x5x7)
    b* r c, .? -> b* r c | whole: r c
DepthToSpace-18(2x20x3x5, blocksize=2)
    n (p q c) h w -> n c (h p) (w q) | p=@blocksize | q=@blocksize | whole: p q
DepthToSpace-18(2x20x3x5, blocksize=2, mode=CRD)
    n (c p q) h w -> n c (h p) (w q) | p=@blocksize | q=@blocksize | whole: p q
SpaceToDepth-18(2x5x6x14, blocksize=2)
    n c (h p) (w q) -> n (p q c) h w | p=@blocksize | q=@blocksize | whole: p q
Concat-18(3x5x7, 3x2x7, axis=1)
    a0 c0 a2, a0 c1 a2 -> a0 (c0 + c1) a2
Concat-18(3x5x7, 3x5x2, 3x5x11, axis=-1)
    a0 a1 c0, a0 a1 c1, a0 a1 c2 -> a0 a1 (c0 + c1 + c2)
Concat-18(3x5, axis=0)
    c0 a1 -> c0 a1
Concat-18(4x4, 4x4, axis=1)
    a0 c0, a0 c1 -> a0 (c0 + c1)
Concat-18(3x5, 0x5, 2x5, axis=0)
    c0 a1, z1 a1, c2 a1 -> (c0 + c2) a1
Split-18(3x10, [3 7], axis=1) -> 2
    a0 (c0 + c1), .? -> a0 c0, a0 c1 | c0=3 | c1=7
Split-18(12x5, num_outputs=3) -> 3
    (c0 + c1 + c2) a1, .? -> c0 a1, c1 a1, c2 a1 | c0=4 | c1=4 | c2=4
Split-13(3x12, axis=-1) -> 2
    a0 (c0 + c1), .? -> a0 c0, a0 c1 | c0=6 | c1=6
Split-11(3x10, axis=1, split=(3, 5, 2)) -> 3
    a0 (c0 + c1 + c2), .? -> a0 c0, a0 c1, a0 c2 | c0=3 | c1=5 | c2=2
Split-18(7x5, num_outputs=3) -> 3
    (c0 + c1 + c2) a1, .? -> c0 a1, c1 a1, c2 a1 | c0=3 | c1=3 | c2=1
Split-18(8x8, [4 4], axis=0) -> 2
    (c0 + c1) a1, .? -> c0 a1, c1 a1 | c0=4 | c1=4
Split-18(3x10, [3 7] given, axis=1) -> 2
    refused: its sizes are computed from data
Pad-18(3x5x7, [0 1 2 0 0 3])
    a0 a1 a2, .?, .?, .? -> a0 (p1 + a1) (p2 + a2 + q2) | p1=1 | p2=2 | q2=3
Pad-18(3x5, [0 2 0 1], scalar)
    a0 a1, .?, .?, .? -> a0 (p1 + a1 + q1) | p1=2 | q1=1
Pad-18(3x5x7, [2 1], -, [-1])
    a0 a1 a2, .?, .?, .? -> a0 a1 (p2 + a2 + q2) | p2=2 | q2=1
Pad-10(2x3x5x7, pads=(0, 0, 1, 1, 0, 2, 1, 1))
    a0 a1 a2 a3, .?, .?, .? -> a0 (a1 + q1) (p2 + a2 + q2) (p3 + a3 + q3) | q1=2 | p2=1 | q2=1 | p3=1 | q3=1
Pad-18(3x5x7, [0 0 2 0 0 2], mode=reflect)
    a0 a1 a2, .?, .?, .? -> a0 a1 y2 | whole: a2 y2
Pad-18(3x5, [0 2 0 1] given)
    refused: its pads are computed
Pad-18(4x4, [1 1 1 1])
    a0 a1, .?, .?, .? -> (p0 + a0 + q0) (p1 + a1 + q1) | p0=1 | q0=1 | p1=1 | q1=1
Resize-18(2x3x5x7, -, [1 1 2 2])
    a0 a1 a2 a3, .?, .?, .? -> a0 a1 y2 y3 | whole: a2 a3 y2 y3
Upsample-9(2x3x5x7, [1 1 2 2])
    a0 a1 a2 a3, .?, .?, .? -> a0 a1 y2 y3 | whole: a2 a3 y2 y3
Slice-18(3x11, [2], [7], [1])
    a0 (a1_0 + a1_2 + a1_7), .?, .?, .?, .? -> a0 a1_2 | a1_0=2 | a1_2=5 | a1_7=4
Slice-18(5x11, [0 -4], [3 9999])
    (a0_0 + a0_3) (a1_0 + a1_7), .?, .?, .?, .? -> a0_0 a1_7 | a0_0=3 | a0_3=2 | a1_0=7 | a1_7=4
Slice-18(3x11, [2], [-1], [-1], [1])
    a0 (a1_0 + a1_2 + a1_10), .?, .?, .?, .? -> a0 a1_2 | a1_0=2 | a1_2=8 | a1_10=1
Slice-18(3x12, [0], [12], [1], [2])
    a0 (a1 s1), .?, .?, .?, .? -> a0 a1 | s1=2 | whole: s1
Slice-18(3x12, [1], [12], [1], [3])
    a0 (a1 s1), .?, .?, .?, .? -> a0 a1 | s1=3 | whole: s1
Slice-18(3x12, [2], [12], [1], [5])
    a0 a1, .?, .?, .?, .? -> a0 y1 | whole: a1 y1
Slice-9(5x11, starts=(0, 4), ends=(-1, 99999))
    (a0_0 + a0_4) (a1_0 + a1_4), .?, .?, .?, .? -> a0_0 a1_4 | a0_0=4 | a0_4=1 | a1_0=4 | a1_4=7
Slice-18(N3x11, [0 2], [9999 7], [0 1])
    a0 (a1_0 + a1_2 + a1_7), .?, .?, .?, .? -> y0 a1_2 | a1_0=2 | a1_2=5 | a1_7=4 | whole: a0 y0
Slice-18(3x11, [2], [7], [1] given)
    refused: its axes are computed
Slice-18(4x4, [1], [3], [0])
    (a0_0 + a0_1 + a0_3) a1, .?, .?, .?, .? -> a0_1 a1 | a0_0=1 | a0_1=2 | a0_3=1
Gather-18(3x11, [0 1 5 6 7], axis=1)
    a0 (a1_0 + a1_2 + a1_5 + a1_8), . -> a0 (a1_0 + a1_5) | a1_0=2 | a1_2=3 | a1_5=3 | a1_8=3
Gather-18(3x11x5, scalar, axis=1)
    a0 a1 a2, i* -> a0 i* a2 | whole: a1
Gather-18(11x5, 2x3)
    a0 a1, i* -> i* a1 | whole: a0
Gather-18(3x11, 2x5, axis=1)
    a0 a1, i* -> a0 i* | whole: a1
Gather-18(4x4, [0 1 2 3])
    a0_0 a1, . -> a0_0 a1 | a0_0=4
GatherElements-18(3x11, 3x5, axis=1)
    a0 d1, a0 i1 -> a0 i1 | whole: d1
GatherElements-18(3x11x7, 2x5x7, axis=1)
    d0 d1 a2, i0 i1 a2 -> i0 i1 a2 | whole: d0 d1 i0
GatherElements-18(4x4, 4x4, axis=0)
    d0 a1, i0 a1 -> i0 a1 | whole: d0
LSTM-18(5x2x3, 1x28x3, 1x28x7, 1x56, -, 1x2x7, 1x2x7, hidden_size=7, direction=forward) -> 3
    t b i, D (4 h) i, D (4 h) h', D (2 4 h)?, b?, D b h?, D b h?, D (3 h)? -> t D b h?, D b h?, D b h? | h=@hidden_size
    | whole: t D | macs: t b D 4 h i + t b D 4 h h
GRU-18(5x2x3, 1x21x3, 1x21x7, 1x42, -, 1x2x7, hidden_size=7, direction=forward) -> 2
    t b i, D (3 h) i, D (3 h) h', D (2 3 h)?, b?, D b h? -> t D b h?, D b h? | h=@hidden_size | whole: t D | macs: t b D
    3 h i + t b D 3 h h
RNN-18(5x2x3, 1x7x3, 1x7x7, 1x14, -, 1x2x7, hidden_size=7, direction=forward) -> 2
    t b i, D h i, D h h', D (2 h)?, b?, D b h? -> t D b h?, D b h? | h=@hidden_size | whole: t D | macs: t b D 1 h i +
    t b D 1 h h
QuantizeLinear-18(3x5x7, 5, 5, axis=1)
    a0 a1 a2, a1, a1 -> a0 a1 a2
QuantizeLinear-18(3x5x7, scalar, scalar)
    a0 a1 a2, , -> a0 a1 a2
QuantizeLinear-18(3x5x7, scalar)
    a0 a1 a2, -> a0 a1 a2
QuantizeLinear-18(3x5x7, 1, axis=0)
    a0 a1 a2, 1 -> a0 a1 a2
QuantizeLinear-18(4x4, 4, axis=0)
    a0 a1, a0 -> a0 a1
QuantizeLinear-21(3x6x7, 3x2x7, axis=1, block_size=3)
    a0 (j s) a2, a0 j a2 -> a0 (j s) a2 | s=3 | whole: s
QuantizeLinear-21(3x5x7, 3x2x7, axis=1, block_size=3)
    refused: its last block is not full
DequantizeLinear-18(3x5x7, 5, 5, axis=1)
    a0 a1 a2, a1, a1 -> a0 a1 a2
DequantizeLinear-18(3x5x7, scalar, scalar)
    a0 a1 a2, , -> a0 a1 a2
DequantizeLinear-18(3x5x7, scalar)
    a0 a1 a2, -> a0 a1 a2
DequantizeLinear-18(3x5x7, 1, axis=0)
    a0 a1 a2, 1 -> a0 a1 a2
DequantizeLinear-18(4x4, 4, axis=0)
    a0 a1, a0 -> a0 a1
DequantizeLinear-21(3x6x7, 3x2x7, axis=1, block_size=3)
    a0 (j s) a2, a0 j a2 -> a0 (j s) a2 | s=3 | whole: s
DequantizeLinear-21(3x5x7, 3x2x7, axis=1, block_size=3)
    refused: its last block is not full
"""


def _entries() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    folder = Path(__file__).parent / "laws"
    files = [(folder / f"golden_{name}.txt").read_text(encoding="utf-8").strip() for name in ("fused", "control")]
    for row in "\n".join((GOLDEN.strip(), *files)).splitlines():
        if row.startswith(" "):
            node, line = found[-1]
            found[-1] = (node, f"{line} {row.strip()}".strip())
        else:
            found.append((row, ""))
    return found


SAMPLES: dict[str, Sample] = {str(one): one for one in samples()}


@pytest.mark.parametrize(("node", "line"), _entries(), ids=[node for node, _ in _entries()])
def test_line(node: str, line: str) -> None:
    solution = Case(SAMPLES[node], run, shrink).solve()
    found = solution.binding.layout.line.text if solution.binding is not None else f"refused: {solution.refusal}"
    assert " ".join(found.split()) == line


@pytest.mark.parametrize("line", ELEMENTWISE)
def test_elementwise(line: str) -> None:
    assert {all_rules()["", op].line for op in ELEMENTWISE[line].split()} == {line}


def test_every_rule_has_a_golden_line() -> None:
    golden = {(SAMPLES[node].domain, SAMPLES[node].op) for node, _ in _entries()}
    golden |= {("", op) for ops in ELEMENTWISE.values() for op in ops.split()}
    assert {key for key, one in all_rules().items() if one.reason is None} <= golden


@pytest.mark.parametrize("op", ["SequenceMap", "RandomNormal", "NonMaxSuppression", "TopK", "SequenceAt"])
def test_these_are_barriers(op: str) -> None:
    assert all_rules()["", op].reason


def test_barriers_have_a_reason() -> None:
    for one in all_rules().values():
        if one.reason is not None:
            assert one.line is one.make is None
            assert one.reason.startswith("ONNX") or one.reason[0].islower()
            assert not one.reason.endswith(".")
