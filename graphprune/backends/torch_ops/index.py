"""Picking and placing elements by index, with ONNX's meaning: negative indices count from the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "compress",
    "depth_to_space",
    "gather",
    "gather_elements",
    "gather_nd",
    "items_of",
    "like_items",
    "one_hot",
    "pad",
    "reverse_sequence",
    "scatter_elements",
    "scatter_nd",
    "slice_backwards",
    "space_to_depth",
    "split_equally",
    "top_k",
]

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _wrapped(indices: Tensor, size: int) -> Tensor:
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


def items_of(x: Tensor) -> tuple[int | float | bool, ...]:
    """The contents of a small tensor as Python numbers: a size that the network computes from its inputs' contents."""
    return tuple(x.reshape(-1).tolist())


def like_items(like: Tensor, items: Sequence[int | float], dtype: torch.dtype, scalar: bool) -> Tensor:
    """A vector (or scalar) of numbers, on the device of ``like``."""
    made = torch.tensor(list(items), dtype=dtype, device=like.device)
    return made.reshape(()) if scalar else made


def gather(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Slices of ``x`` along ``axis``; the indices' shape stands in the axis' place."""
    flat = torch.index_select(x, axis, _wrapped(indices, x.shape[axis]).reshape(-1))
    axis %= x.dim()
    return flat.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def gather_elements(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """One element of ``x`` per index."""
    return torch.gather(x, axis, _wrapped(indices, x.shape[axis]))


def gather_nd(x: Tensor, indices: Tensor, batch: int = 0) -> Tensor:
    """Slices of ``x`` at index vectors; the first ``batch`` axes are common to both."""
    depth = indices.shape[-1]
    held = [torch.arange(x.shape[axis], device=x.device) for axis in range(batch)]
    places = [one.reshape([-1 if axis == k else 1 for axis in range(indices.dim() - 1)]) for k, one in enumerate(held)]
    places += [_wrapped(indices[..., k], x.shape[batch + k]) for k in range(depth)]
    return x[tuple(places)]


def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, axis: int, reduction: str = "none") -> Tensor:
    """``x`` with one element replaced, or reduced with, per index."""
    indices = _wrapped(indices, x.shape[axis])
    if reduction == "none":
        return torch.scatter(x, axis, indices, updates)
    return torch.scatter_reduce(x, axis, indices, updates, _REDUCTIONS[reduction], include_self=True)


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, reduction: str = "none") -> Tensor:
    """``x`` with slices replaced, or reduced with, at index vectors."""
    depth = indices.shape[-1]
    lead, rest = x.shape[:depth], x.shape[depth:]
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for k, size in enumerate(lead):
        flat = flat * size + _wrapped(indices[..., k], size)
    size = math.prod(rest)
    rows, new = x.reshape(-1, size), updates.reshape(-1, size)
    places = flat.reshape(-1, 1).expand(-1, size)
    if reduction == "none":
        made = torch.scatter(rows, 0, places, new)
    else:
        made = torch.scatter_reduce(rows, 0, places, new, _REDUCTIONS[reduction], include_self=True)
    return made.reshape(x.shape)


def slice_backwards(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    """Every ``-step``-th element from ``start`` down to, without, ``end``; both are clamped as ONNX says."""
    size = x.shape[axis]
    first = min(start + size if start < 0 else start, size - 1)
    last = max(end + size if end < 0 else end, -1)
    return torch.index_select(x, axis, torch.arange(first, last, step, device=x.device))


def split_equally(x: Tensor, parts: int, axis: int) -> tuple[Tensor, ...]:
    """``parts`` pieces of equal size, the last one smaller where that does not divide."""
    return torch.split(x, -(-x.shape[axis] // parts), dim=axis)


def top_k(x: Tensor, k: int, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """The ``k`` largest (smallest) elements in order, and their positions; of equal ones the first comes first."""
    values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k), places.narrow(axis, 0, k)


def compress(x: Tensor, condition: Tensor, axis: int | None) -> Tensor:
    """What stands where the condition is true, along an axis or of the flattened tensor."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    chosen = torch.nonzero(condition.reshape(-1)).reshape(-1)
    return torch.index_select(x, axis, chosen)


def one_hot(indices: Tensor, depth: int, values: Tensor, axis: int) -> Tensor:
    """``values[1]`` at the index, else ``values[0]``, along a new axis; negative indices count from ``depth``."""
    steps = torch.arange(depth, device=indices.device)
    axis %= indices.dim() + 1
    shape = [depth if one == axis else 1 for one in range(indices.dim() + 1)]
    hit = _wrapped(indices, depth).unsqueeze(axis) == steps.reshape(shape)
    return torch.where(hit, values[1], values[0])


def reverse_sequence(x: Tensor, lengths: Tensor, time: int, batch: int) -> Tensor:
    """The first ``lengths[b]`` steps of every sequence, in reverse."""
    steps = torch.arange(x.shape[time], device=x.device)
    lengths = lengths.to(x.device).reshape(-1, 1)
    places = torch.where(steps < lengths, lengths - 1 - steps, steps)  # (batch, time)
    if time < batch:
        places = places.t()
    shape = [x.shape[axis] if axis in (time, batch) else 1 for axis in range(x.dim())]
    return torch.gather(x, time, places.reshape(shape).expand(x.shape))


def _sources(size: int, before: int, after: int, mode: str, device: torch.device) -> Tensor:
    at = torch.arange(-before, size + after, device=device)
    if mode == "edge":
        return torch.clamp(at, 0, size - 1)
    if mode == "wrap":
        return torch.remainder(at, size)
    period = max(2 * (size - 1), 1)
    at = torch.remainder(at, period)
    return torch.where(at >= size, period - at, at)


def pad(x: Tensor, before: Sequence[int], after: Sequence[int], mode: str) -> Tensor:
    """Pads (or, where negative, crops) every axis with the input's own elements: mode reflect, edge or wrap."""
    for axis, (first, last) in enumerate(zip(before, after, strict=True)):
        if first or last:
            x = torch.index_select(x, axis, _sources(x.shape[axis], first, last, mode, x.device))
    return x


def depth_to_space(x: Tensor, block: int, depth_first: bool) -> Tensor:
    """Channels to blocks of pixels; ``depth_first`` is ONNX's mode DCR."""
    n, c, h, w = x.shape
    if not depth_first:
        return F.pixel_shuffle(x, block)
    parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


def space_to_depth(x: Tensor, block: int) -> Tensor:
    """Blocks of pixels to channels."""
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block**2, h // block, w // block)
