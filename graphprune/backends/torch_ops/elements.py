"""Elementwise functions and statistics with ONNX's meaning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "arg_extreme",
    "batch_norm",
    "bit_shift",
    "centred",
    "cumulative",
    "dequantize",
    "divide",
    "dynamic_quantize",
    "even_local_response_norm",
    "fake_quantize",
    "floats_to",
    "hardmax",
    "is_inf",
    "moments",
    "prelu",
    "quantize",
    "reduce_prod",
    "shrink",
]


def divide(a: Tensor, b: Tensor | float) -> Tensor:
    """Division that truncates toward zero where both are integers."""
    whole = not a.is_floating_point() and (not b.is_floating_point() if isinstance(b, Tensor) else isinstance(b, int))
    return torch.div(a, b, rounding_mode="trunc") if whole else torch.div(a, b)


def floats_to(x: Tensor, like: Tensor) -> Tensor:
    """``x`` in the module's own float type, which ``like`` has."""
    return x.to(like.dtype)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """``x`` where it is not negative, else ``slope * x``; the slope is broadcast."""
    return torch.where(x < 0, slope * x, x)


def shrink(x: Tensor, lambd: float, bias: float) -> Tensor:
    """``x + bias`` below ``-lambd``, ``x - bias`` above ``lambd``, else 0."""
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


def is_inf(x: Tensor, negative: bool, positive: bool) -> Tensor:
    """Infinities of the signs asked for."""
    return (torch.isneginf(x) & negative) | (torch.isposinf(x) & positive)


def bit_shift(x: Tensor, by: Tensor, left: bool) -> Tensor:
    """Bits shifted to the left or right."""
    return torch.bitwise_left_shift(x, by) if left else torch.bitwise_right_shift(x, by)


def hardmax(x: Tensor, axis: int) -> Tensor:
    """1 at the first largest element along an axis, else 0."""
    return torch.zeros_like(x).scatter(axis, torch.argmax(x, dim=axis, keepdim=True), 1)


def arg_extreme(x: Tensor, axis: int, keepdim: bool, largest: bool, last: bool) -> Tensor:
    """Position of the largest (smallest) element along an axis; of equal ones the first or the last."""
    find = torch.argmax if largest else torch.argmin
    if not last:
        return find(x, dim=axis, keepdim=keepdim)
    return x.shape[axis] - 1 - find(torch.flip(x, [axis]), dim=axis, keepdim=keepdim)


def reduce_prod(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """Product over axes."""
    for axis in sorted((one % x.dim() for one in axes), reverse=True):
        x = torch.prod(x, dim=axis, keepdim=keepdim)
    return x


def cumulative(x: Tensor, axis: int, exclusive: bool, reverse: bool, product: bool = False) -> Tensor:
    """Running sum (or product) along an axis, from the end with ``reverse``, without the element itself if so asked."""
    if reverse:
        x = torch.flip(x, [axis])
    if exclusive:
        first = torch.full_like(x.narrow(axis, 0, 1), 1 if product else 0)
        x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], dim=axis)
    kind = x.dtype
    x = (torch.cumprod if product else torch.cumsum)(x, dim=axis).to(kind)
    return torch.flip(x, [axis]) if reverse else x


def moments(x: Tensor, axis: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Mean, and one over the standard deviation, over the axes from ``axis`` on."""
    axes = list(range(axis % x.dim(), x.dim()))
    variance, mean = torch.var_mean(x, dim=axes, correction=0, keepdim=True)
    return mean, torch.rsqrt(variance + epsilon)


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon: float, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNormalization without state: the result and the statistics that it used."""
    if training:
        variance, mean = torch.var_mean(x, dim=[0, *range(2, x.dim())], correction=0)
    shape = [-1 if axis == 1 else 1 for axis in range(x.dim())]
    scale = weight * torch.rsqrt(variance + epsilon)  # F.batch_norm takes no statistics that are differentiated
    return x * scale.reshape(shape) + (bias - mean * scale).reshape(shape), mean, variance


def even_local_response_norm(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """LRN over an even number of channels: one more after the centre than before it (PyTorch has it before)."""
    before, after = (size - 1) // 2, size // 2
    squares = F.pad((x * x).flatten(2), (0, 0, before, after))
    total = squares.unfold(1, size, 1).sum(-1).reshape(x.shape)
    return x / (bias + alpha / size * total) ** beta


def _along(x: Tensor, scale: Tensor, axis: int, block: int) -> Tensor:
    """A scale for every element: one for all, one per index of ``axis``, or one per block along it."""
    if scale.dim() == 0 or scale.numel() == 1:
        return scale.reshape(())
    if block:
        return torch.repeat_interleave(scale, block, dim=axis).narrow(axis, 0, x.shape[axis])
    return scale.reshape([-1 if one == axis % x.dim() else 1 for one in range(x.dim())])


def quantize(
    x: Tensor, scale: Tensor, zero: Tensor | None, axis: int, block: int, low: int, high: int, dtype: torch.dtype
) -> Tensor:
    """QuantizeLinear: rounds half to even, saturates."""
    steps = torch.round(x / _along(x, scale, axis, block))
    if zero is not None:
        steps = steps + _along(x, zero, axis, block).to(steps.dtype)
    return torch.clamp(steps, low, high).to(dtype)


def fake_quantize(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int, block: int, low: int, high: int) -> Tensor:
    """QuantizeLinear and back. Gradients go straight through where nothing saturates (Bengio et al. 2013)."""
    step = _along(x, scale, axis, block)
    origin = torch.zeros_like(step) if zero is None else _along(x, zero, axis, block).to(step.dtype)
    inside = torch.minimum(torch.maximum(x, (low - origin) * step), (high - origin) * step)
    made = (torch.clamp(torch.round(x / step) + origin, low, high) - origin) * step
    return made.detach() + (inside - inside.detach())


def dequantize(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int, block: int) -> Tensor:
    """DequantizeLinear: ``(x - zero) * scale``, in the scale's type."""
    steps = x.to(torch.int32)
    if zero is not None:
        steps = steps - _along(x, zero, axis, block).to(torch.int32)
    return steps.to(scale.dtype) * _along(x, scale, axis, block)


def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """DynamicQuantizeLinear: steps in uint8 over the range of ``x`` and 0, their scale and zero point."""
    low, high = torch.clamp(x.min(), max=0), torch.clamp(x.max(), min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp(torch.round(-low / scale), 0, 255)
    return torch.clamp(torch.round(x / scale) + zero, 0, 255).to(torch.uint8), scale, zero.to(torch.uint8)


def centred(x: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """Integers less their zero point (one, or one per index of ``axis``), in float64, where their sums are exact."""
    wide = x.double()
    return wide if zero is None else wide - _along(x, zero, axis, 0).double()
