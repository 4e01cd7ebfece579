"""Convolutions and matrix products."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from graphprune.backends.torch_emit.registry import Refuse, emits
from graphprune.backends.torch_emit.view import View
from graphprune.backends.torch_ops.elements import centred
from graphprune.backends.torch_ops.windows import same_pad

__all__ = ["convolved", "even", "spatial_pads"]

_CONV = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def even(sizes: list[int]) -> Any:
    """One number where all are the same."""
    return sizes[0] if len(set(sizes)) == 1 else tuple(sizes)


def spatial_pads(
    v: View, x: fx.Node, kernel: list[int], strides: list[int], dilations: list[int], value: float
) -> tuple[fx.Node, list[int] | None]:
    """The input and the pads that are left to apply (before all axes, then after them).

    Where they are automatic and the sizes move, the input is padded when it comes: then ``None`` is left.
    """
    rank = len(kernel)
    auto = v.attr("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        return x, [int(n) for n in v.attr("pads") or [0] * 2 * rank]
    if auto == "VALID":
        return x, [0] * 2 * rank
    upper = auto == "SAME_UPPER"
    if any(v.moves(0, axis) for axis in range(2, rank + 2)):
        return v.call(same_pad, x, kernel, strides, dilations, upper, value), None
    before, after = [], []
    for size, k, stride, dilation in zip(v.shape(0)[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if upper else large)
        after.append(large if upper else small)
    return x, before + after


@emits("ConvInteger")
def _conv_integer(v: View) -> fx.Node:
    made = convolved(v, v.call(centred, v.x(0), v.maybe(2), 1), v.call(centred, v.x(1), v.maybe(3), 0), None)
    return v.method("to", made, torch.int32)


@emits("MatMulInteger")
def _matmul_integer(v: View) -> fx.Node:
    a, b = v.call(centred, v.x(0), v.maybe(2), -2), v.call(centred, v.x(1), v.maybe(3), -1)
    return v.method("to", v.call(torch.matmul, a, b), torch.int32)


@emits("Conv")
def _conv(v: View) -> fx.Node:
    bias = v.x(2) if v.has(2) and not v.is_all(2, 0) else None  # exporters make up biases of zeros
    return convolved(v, v.x(0), v.x(1), bias)


def convolved(v: View, x: fx.Node, weight: fx.Node, bias: fx.Node | None) -> fx.Node:
    """A convolution with the node's attributes."""
    kernel = [int(n) for n in v.shape(1)[2:]]
    rank = len(kernel)
    if not 1 <= rank <= 3:
        raise Refuse(f"PyTorch convolves over 1 to 3 axes, not {rank}")
    strides = [int(n) for n in v.attr("strides") or [1] * rank]
    dilations = [int(n) for n in v.attr("dilations") or [1] * rank]
    x, pads = spatial_pads(v, x, kernel, strides, dilations, 0.0)
    given: dict[str, Any] = {}
    if pads is not None and pads[:rank] != pads[rank:]:
        x = v.call(F.pad, x, tuple(n for k in reversed(range(rank)) for n in (pads[k], pads[k + rank])))
    elif pads is not None and any(pads):
        given["padding"] = even(pads[:rank])
    given |= {"stride": even(strides)} if set(strides) != {1} else {}
    given |= {"dilation": even(dilations)} if set(dilations) != {1} else {}
    groups = int(v.attr("group", 1))
    given |= {"groups": groups} if groups != 1 else {}
    return v.call(_CONV[rank - 1], x, weight, *(() if bias is None else (bias,)), **given)


@emits("ConvTranspose")
def _conv_transpose(v: View) -> fx.Node:
    kernel = [int(n) for n in v.shape(1)[2:]]
    rank = len(kernel)
    if not 1 <= rank <= 3:
        raise Refuse(f"PyTorch convolves over 1 to 3 axes, not {rank}")
    strides = [int(n) for n in v.attr("strides") or [1] * rank]
    dilations = [int(n) for n in v.attr("dilations") or [1] * rank]
    more = [int(n) for n in v.attr("output_padding") or [0] * rank]
    before, after = _transposed_pads(v, kernel, strides, dilations, more)
    # PyTorch takes the same number off both ends; what is left over is added (output padding) or cut at the end.
    left = [more[k] + before[k] - after[k] for k in range(rank)]
    for k in range(rank):
        if left[k] >= max(strides[k], dilations[k]):
            raise Refuse(f"its pads leave {left[k]} elements beyond the end, more than PyTorch can make")
    made = v.call(
        _TRANSPOSED[rank - 1],
        v.x(0),
        v.x(1),
        v.maybe(2),
        stride=even(strides),
        padding=even([max(n, 0) for n in before]),
        output_padding=even([max(n, 0) for n in left]),
        groups=int(v.attr("group", 1)),
        dilation=even(dilations),
    )
    cut = [n for k in reversed(range(rank)) for n in (min(0, before[k]) * -1, min(left[k], 0))]
    return v.call(F.pad, made, tuple(cut)) if any(cut) else made


def _transposed_pads(
    v: View, kernel: list[int], strides: list[int], dilations: list[int], more: list[int]
) -> tuple[list[int], list[int]]:
    rank = len(kernel)
    auto = v.attr("auto_pad", "NOTSET")
    wanted = v.attr("output_shape")
    if wanted is None and auto in ("NOTSET", "", "VALID"):
        pads = [int(n) for n in v.attr("pads") or [0] * 2 * rank] if auto != "VALID" else [0] * 2 * rank
        return pads[:rank], pads[rank:]
    before, after = [], []
    for k in range(rank):
        if v.moves(0, k + 2) and wanted is not None:
            raise Refuse("its output_shape is fixed but its input's size is not")
        size = v.shape(0)[k + 2]
        out = int(wanted[k - rank]) if wanted is not None else size * strides[k]
        total = strides[k] * (size - 1) + more[k] + (kernel[k] - 1) * dilations[k] + 1 - out
        small, large = total // 2, total - total // 2
        before.append(small if auto == "SAME_UPPER" else large)
        after.append(large if auto == "SAME_UPPER" else small)
    return before, after


@emits("MatMul")
def _matmul(v: View) -> fx.Node:
    return v.call(torch.matmul, v.x(0), v.x(1))


@emits("Gemm")
def _gemm(v: View) -> fx.Node:
    alpha, beta = float(v.attr("alpha", 1.0)), float(v.attr("beta", 1.0))
    a = v.call(torch.t, v.x(0)) if v.attr("transA", 0) else v.x(0)
    if v.attr("transB", 0) and alpha == beta == 1.0 and (not v.has(2) or v.rank(2) == 1):
        return v.call(F.linear, a, v.x(1), *((v.x(2),) if v.has(2) else ()))
    b = v.call(torch.t, v.x(1)) if v.attr("transB", 0) else v.x(1)
    if v.has(2):
        return v.call(torch.addmm, v.x(2), a, b, beta=beta, alpha=alpha)
    made = v.call(torch.matmul, a, b)
    return made if alpha == 1.0 else v.call(operator.mul, made, alpha)


@emits("Einsum")
def _einsum(v: View) -> fx.Node:
    return v.call(torch.einsum, v.attr("equation").replace(" ", ""), *(v.x(k) for k in range(v.count)))
