"""Picking and placing elements by index."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx

from graphprune.backends.torch_emit.registry import Refuse, emits
from graphprune.backends.torch_emit.view import View
from graphprune.backends.torch_ops import index


@emits("Gather")
def _gather(v: View) -> fx.Node:
    axis = v.axis(0)
    places = v.const(1)
    if places is None:
        return v.call(index.gather, v.x(0), v.x(1), axis)
    if not v.moves(0, axis):
        places = np.where(places < 0, places + v.shape(0)[axis], places)
    if places.ndim == 0:
        return v.call(torch.select, v.x(), axis, int(places))
    if (places < 0).any():
        return v.call(index.gather, v.x(0), v.x(1), axis)
    flat = places.astype(np.int64).reshape(-1)
    if places.ndim == 1 and flat.size and (np.diff(flat) == 1).all():
        return v.call(torch.narrow, v.x(), axis, int(flat[0]), len(flat))
    held = v.buffer(
        f"{v.name(1)}_places", flat if places.ndim == 1 or axis or v.rank() != 2 else places.astype(np.int64)
    )
    if places.ndim == 1:
        return v.call(torch.index_select, v.x(), axis, held)
    if axis == 0 and v.rank() == 2:
        return v.call(F.embedding, held, v.x())
    made = v.call(torch.index_select, v.x(), axis, held)
    return v.method("unflatten", made, axis, places.shape)


@emits("GatherElements")
def _gather_elements(v: View) -> fx.Node:
    return v.call(index.gather_elements, v.x(0), v.x(1), v.axis(0))


@emits("GatherND")
def _gather_nd(v: View) -> fx.Node:
    return v.call(index.gather_nd, v.x(0), v.x(1), int(v.attr("batch_dims", 0)))


@emits("ScatterElements", "Scatter")
def _scatter_elements(v: View) -> fx.Node:
    return v.call(index.scatter_elements, v.x(0), v.x(1), v.x(2), v.axis(0), v.attr("reduction", "none"))


@emits("ScatterND")
def _scatter_nd(v: View) -> fx.Node:
    return v.call(index.scatter_nd, v.x(0), v.x(1), v.x(2), v.attr("reduction", "none"))


@emits("NonZero")
def _non_zero(v: View) -> fx.Node:
    return v.call(torch.t, v.call(torch.nonzero, v.x()))


@emits("Compress")
def _compress(v: View) -> fx.Node:
    axis = v.attr("axis")
    return v.call(index.compress, v.x(0), v.x(1), None if axis is None else int(axis))


@emits("OneHot")
def _one_hot(v: View) -> fx.Node:
    depth = v.items(1)[0]
    return v.call(
        index.one_hot, v.x(0), depth if isinstance(depth, fx.Node) else int(depth), v.x(2), int(v.attr("axis", -1))
    )


@emits("ReverseSequence")
def _reverse_sequence(v: View) -> fx.Node:
    return v.call(index.reverse_sequence, v.x(0), v.x(1), int(v.attr("time_axis", 0)), int(v.attr("batch_axis", 1)))


@emits("GridSample")
def _grid_sample(v: View) -> fx.Node:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(v.attr("mode", "linear"), v.attr("mode", "linear"))
    return v.call(
        F.grid_sample,
        v.x(0),
        v.x(1),
        mode=mode,
        padding_mode=v.attr("padding_mode", "zeros"),
        align_corners=bool(v.attr("align_corners", 0)),
    )


@emits("AffineGrid")
def _affine_grid(v: View) -> fx.Node:
    return v.call(F.affine_grid, v.x(0), list(v.items(1)), align_corners=bool(v.attr("align_corners", 0)))


@emits("Unique")
def _unique(v: View) -> Any:
    if any(v.used(k) for k in range(1, 4)) or not v.attr("sorted", 1):
        raise Refuse("indices or counts are read, or the order of appearance is asked for")
    axis = v.attr("axis")
    return v.call(torch.unique, v.x(), dim=None if axis is None else int(axis))
