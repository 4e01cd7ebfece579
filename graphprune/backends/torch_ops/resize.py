"""Resize as ONNX defines it, axis by axis, for what ``F.interpolate`` cannot say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["resize", "scaled"]


def scaled(size: int, scale: float) -> int:
    """A size that a scale gives: rounded down."""
    return int(size * scale)


def _coordinates(
    out: int, size: int, scale: float, how: str, region: tuple[float, float], device: torch.device
) -> Tensor:
    """Where the elements of the result lie in the input, in float64."""
    at = torch.arange(out, dtype=torch.float64, device=device)
    if how == "half_pixel":
        return (at + 0.5) / scale - 0.5
    if how == "pytorch_half_pixel":
        return (at + 0.5) / scale - 0.5 if out > 1 else torch.zeros_like(at)
    if how == "align_corners":
        return at * ((size - 1) / (out - 1)) if out > 1 else torch.zeros_like(at)
    if how == "asymmetric":
        return at / scale
    if how == "half_pixel_symmetric":
        adjustment = out / (scale * size)
        centre = size / 2
        return centre * (1 - adjustment) + (at + 0.5) / scale - 0.5
    if out > 1:  # tf_crop_and_resize
        return region[0] * (size - 1) + at * ((region[1] - region[0]) * (size - 1) / (out - 1))
    return torch.full_like(at, 0.5 * (region[0] + region[1]) * (size - 1))


def _nearest(at: Tensor, how: str) -> Tensor:
    if how == "floor":
        return torch.floor(at)
    if how == "ceil":
        return torch.ceil(at)
    if how == "round_prefer_ceil":
        return torch.floor(at + 0.5)
    return torch.ceil(at - 0.5)  # round_prefer_floor


def _linear(distance: Tensor, a: float) -> Tensor:
    return torch.clamp(1 - distance.abs(), min=0)


def _cubic(distance: Tensor, a: float) -> Tensor:
    x = distance.abs()
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _matrix(at: Tensor, size: int, scale: float, cubic: bool, a: float, antialias: bool, exclude: bool) -> Tensor:
    """How much each element of the input counts in each element of the result: ``(out, size)``."""
    stretch = min(scale, 1.0) if antialias else 1.0
    reach = int((2 if cubic else 1) / stretch) + 1
    base = torch.floor(at).to(torch.int64).reshape(-1, 1)
    places = base + torch.arange(-reach, reach + 1, device=at.device)
    weights = (_cubic if cubic else _linear)((places - at.reshape(-1, 1)) * stretch, a)
    if exclude:
        weights = weights * ((places >= 0) & (places < size))
    weights = weights / weights.sum(1, keepdim=True)
    matrix = torch.zeros(len(at), size, dtype=at.dtype, device=at.device)
    return matrix.scatter_add(1, torch.clamp(places, 0, size - 1), weights)


def resize(
    x: Tensor,
    axes: Sequence[int],
    sizes: Sequence[int],
    scales: Sequence[float | None],
    mode: str,
    coordinates: str,
    nearest: str,
    a: float,
    antialias: bool,
    exclude: bool,
    region: Sequence[tuple[float, float]],
    outside: float,
) -> Tensor:
    """Resize along axes.

    Args:
        x: any rank.
        axes: to be resized.
        sizes: of the results, per axis.
        scales: result over input per axis, where they were given as such (None: from the sizes).
        mode: nearest, linear or cubic.
        coordinates: ONNX's ``coordinate_transformation_mode``.
        nearest: ONNX's ``nearest_mode``.
        a: the cubic's coefficient.
        antialias: stretch the filter where it shrinks.
        exclude: elements outside count nothing, the others are weighted up.
        region: start and end per axis, for ``tf_crop_and_resize``.
        outside: the value outside the input, there.
    """
    beyond: list[tuple[int, Tensor]] = []
    for axis, out, given, crop in zip(axes, sizes, scales, region, strict=True):
        size = x.shape[axis]
        scale = out / size if given is None else given
        at = _coordinates(out, size, scale, coordinates, crop, x.device)
        if coordinates == "tf_crop_and_resize":
            beyond.append((axis, (at < 0) | (at > size - 1)))
        if mode == "nearest":
            places = torch.clamp(_nearest(at, nearest).to(torch.int64), 0, size - 1)
            x = torch.index_select(x, axis, places)
        else:
            matrix = _matrix(at, size, scale, mode == "cubic", a, antialias, exclude).to(x.dtype)
            x = torch.matmul(x.transpose(axis, -1), matrix.t()).transpose(axis, -1)
    for axis, mask in beyond:
        shape = [-1 if one == axis % x.dim() else 1 for one in range(x.dim())]
        x = torch.where(mask.reshape(shape), torch.full_like(x, outside), x)
    return x
