"""Windows that PyTorch's own convolutions and pools cannot say: uneven and automatic padding, pooled indices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["average_pool", "lp_pool", "max_pool_places", "same_pad"]


def same_pad(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], upper: bool, value: float
) -> Tensor:
    """Pads the spatial axes so that a window gives ``ceil(size / stride)`` results (auto_pad SAME_UPPER or _LOWER)."""
    pads: list[int] = []
    for size, k, stride, dilation in reversed(list(zip(x.shape[2:], kernel, strides, dilations, strict=True))):
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        pads += [small, large] if upper else [large, small]
    return F.pad(x, pads, value=value)


def average_pool(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], more: Sequence[int], whole: bool
) -> Tensor:
    """Average over windows, of the elements inside the padded input (``whole``) or inside the input alone.

    Args:
        x: ``(n, c, *spatial)``.
        kernel: of the window, per spatial axis.
        strides: of the window.
        pads: before all spatial axes, then after them.
        more: further elements after each axis, which no average counts (``ceil_mode``).
        whole: ``count_include_pad``.
    """
    rank = len(kernel)
    pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    own = [side for k in reversed(range(rank)) for side in (pads[k], pads[k + rank])]
    beyond = [side for k in reversed(range(rank)) for side in (0, more[k])]
    ones = F.pad(torch.ones_like(x[:1, :1]), own, value=1.0 if whole else 0.0)
    total = pool(F.pad(F.pad(x, own), beyond), kernel, strides)
    made: Tensor = total / pool(F.pad(ones, beyond), kernel, strides)
    return made


def lp_pool(x: Tensor, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], p: int) -> Tensor:
    """The p-norm over windows."""
    rank = len(kernel)
    pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    own = [side for k in reversed(range(rank)) for side in (pads[k], pads[k + rank])]
    made: Tensor = (pool(F.pad(x.abs() ** p, own), kernel, strides) * math.prod(kernel)) ** (1 / p)
    return made


def max_pool_places(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: bool,
    column_major: bool,
) -> tuple[Tensor, Tensor]:
    """Largest elements of windows, and where they stand in the whole flattened input."""
    pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    made, places = pool(x, kernel, strides, padding, dilations, ceil_mode, return_indices=True)
    sizes = x.shape[2:]
    if column_major:
        digits, rest = [], places
        for size in reversed(sizes):
            digits.append(rest % size)
            rest = rest // size
        places, step = torch.zeros_like(places), 1
        for digit, size in zip(reversed(digits), sizes, strict=True):
            places, step = places + digit * step, step * size
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device) * math.prod(sizes)
    return made, places + planes.reshape(x.shape[0], x.shape[1], *(1 for _ in sizes))
