"""Resize and Upsample: ``F.interpolate`` where it means the same."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import fx

from graphprune.backends.torch_emit.registry import Refuse, emits
from graphprune.backends.torch_emit.view import View
from graphprune.backends.torch_ops.resize import resize, scaled

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


@emits("Resize", "Upsample")
def _resize(v: View) -> fx.Node:
    axes, scales, sizes = _targets(v)
    mode = v.attr("mode", "nearest")
    old = v.op == "Upsample" or v.opset < 11
    how = "asymmetric" if old else v.attr("coordinate_transformation_mode", "half_pixel")
    nearest = "floor" if old else v.attr("nearest_mode", "round_prefer_floor")
    changed = [k for k, axis in enumerate(axes) if _changes(v, axis, scales, sizes, k, how)]
    if not changed:
        return v.x()
    antialias = bool(v.attr("antialias", 0))
    inner = {axes[k] for k in changed} <= set(range(2, v.rank())) and set(range(2, v.rank())) <= set(axes)
    named = _name(v, mode, how, nearest) if inner and not antialias else None
    if named is not None:
        order = [axes.index(axis) for axis in range(2, v.rank())]
        where: dict[str, Any] = (
            {"scale_factor": [scales[k] for k in order]} if scales is not None else {"size": [sizes[k] for k in order]}
        )
        corners = {"align_corners": how == "align_corners"} if mode != "nearest" else {}
        return v.call(F.interpolate, v.x(), **where, mode=named, **corners)
    if old and mode == "nearest" and scales is not None and any(scale < 1 for scale in scales):
        nearest = "ceil"  # before opset 11 the runtime rounds up where it shrinks
    region = [(0.0, 1.0)] * len(axes)
    if how == "tf_crop_and_resize":
        bounds = v.fixed(1, "its region").reshape(-1).tolist()
        region = list(zip(bounds[: len(axes)], bounds[len(axes) :], strict=True))
    return v.call(
        resize,
        v.x(),
        [axes[k] for k in changed],
        [sizes[k] for k in changed],
        [None if scales is None else scales[k] for k in changed],
        mode.replace("bilinear", "linear"),
        how,
        nearest,
        float(v.attr("cubic_coeff_a", -0.75)),
        antialias,
        bool(v.attr("exclude_outside", 0)),
        [region[k] for k in changed],
        float(v.attr("extrapolation_value", 0.0)),
    )


def _targets(v: View) -> tuple[list[int], list[float] | None, list[Any]]:
    """The axes resized, their scales where given, and their new sizes (as observed, or as computed)."""
    at = 1 if v.op == "Upsample" or v.opset < 11 else 2
    axes = [int(axis) % v.rank() for axis in v.attr("axes") or range(v.rank())]
    out = v.out_shape()
    given = v.const(at) if v.has(at) else v.attr("scales")
    if given is not None and len(given):
        scales = [float(n) for n in given]
        sizes: list[Any] = [out[axis] for axis in axes]
        if any(v.out_moves(axis) for axis in axes):
            sizes = [
                v.call(scaled, v.size(0, axis), scale) if v.out_moves(axis) else out[axis]
                for axis, scale in zip(axes, scales, strict=True)
            ]
        return axes, scales, sizes
    if v.has(at) and v.shape(at) != (0,):
        raise Refuse("its scales are computed")
    if v.attr("keep_aspect_ratio_policy", "stretch") != "stretch" and any(v.out_moves(axis) for axis in axes):
        raise Refuse("it keeps the aspect ratio of an input whose size is not fixed")
    if v.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        asked = [int(n) for n in v.items(3)]
        ratios = [n / v.shape(0)[axis] for n, axis in zip(asked, axes, strict=True)]
        one = (min if v.attr("keep_aspect_ratio_policy") == "not_larger" else max)(ratios)
        return axes, [one] * len(axes), [out[axis] for axis in axes]
    asked_items = list(v.items(3))
    return axes, None, [n if v.out_moves(axis) else out[axis] for n, axis in zip(asked_items, axes, strict=True)]


def _changes(v: View, axis: int, scales: list[float] | None, sizes: list[Any], k: int, how: str) -> bool:
    if how == "tf_crop_and_resize":
        return True
    if scales is not None:
        return scales[k] != 1.0
    return isinstance(sizes[k], fx.Node) or v.moves(0, axis) or bool(sizes[k] != v.shape(0)[axis])


def _name(v: View, mode: str, how: str, nearest: str) -> str | None:
    """What ``F.interpolate`` calls it, if it has it."""
    rank = v.rank()
    if rank not in _LINEAR:
        return None
    if mode == "nearest":
        return "nearest" if how == "asymmetric" and nearest == "floor" and _whole(v) else None
    if how not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return None
    if how == "pytorch_half_pixel" and 1 in v.out_shape()[2:]:
        return None
    if mode in ("linear", "bilinear"):
        return _LINEAR[rank]
    plain = float(v.attr("cubic_coeff_a", -0.75)) == -0.75 and not v.attr("exclude_outside", 0)
    return "bicubic" if mode == "cubic" and rank == 4 and plain else None


def _whole(v: View) -> bool:
    """Whether every size is a multiple of the old one: then rounding errors decide nothing."""
    return all(a % b == 0 for a, b in zip(v.out_shape()[2:], v.shape(0)[2:], strict=True))
