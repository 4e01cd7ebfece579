"""Pools."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from graphprune.backends.torch_emit.dense import even, spatial_pads
from graphprune.backends.torch_emit.registry import Refuse, emits
from graphprune.backends.torch_emit.view import View
from graphprune.backends.torch_ops import windows

_MAX = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGE = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


class _Window:
    """A pool's window, and what PyTorch would make of it."""

    def __init__(self, v: View, value: float) -> None:
        self.v = v
        self.kernel = [int(n) for n in v.attr("kernel_shape")]
        rank = self.rank = len(self.kernel)
        if not 1 <= rank <= 3:
            raise Refuse(f"PyTorch pools over 1 to 3 axes, not {rank}")
        self.strides = [int(n) for n in v.attr("strides") or [1] * rank]
        self.dilations = [int(n) for n in v.attr("dilations") or [1] * rank]
        self.x, pads = spatial_pads(v, v.x(), self.kernel, self.strides, self.dilations, value)
        self.padded = pads is None
        self.pads = pads or [0] * 2 * rank
        self.ceil = bool(v.attr("ceil_mode", 0))
        # The last window of ceil_mode may begin beyond the input: the observed sizes tell what the runtime does there.
        self.more = [0] * rank
        still = not self.padded and not any(v.moves(0, k + 2) for k in range(rank))
        if self.ceil and still:
            for k in range(rank):
                have = v.shape(0)[k + 2] + self.pads[k] + self.pads[k + rank]
                need = (v.out_shape()[k + 2] - 1) * self.strides[k] + self.reach(k)
                self.more[k] = max(need - have, 0)
            self.ceil = False

    def reach(self, k: int) -> int:
        return (self.kernel[k] - 1) * self.dilations[k] + 1

    @property
    def plain(self) -> bool:
        """Whether PyTorch's own padding says it."""
        rank, pads = self.rank, self.pads
        same = pads[:rank] == pads[rank:] and all(2 * n <= k for n, k in zip(pads, self.kernel, strict=False))
        return same and not any(self.more)

    def sides(self, more: bool) -> tuple[int, ...]:
        """As ``F.pad`` takes them."""
        rank = self.rank
        return tuple(
            n
            for k in reversed(range(rank))
            for n in (self.pads[k], self.pads[k + rank] + (self.more[k] if more else 0))
        )


@emits("MaxPool")
def _max_pool(v: View) -> Any:
    w = _Window(v, float("-inf"))
    x, padding = w.x, w.pads[: w.rank]
    if not w.plain:
        if v.used(1):
            raise Refuse("its indices are read, and its padding is uneven")
        if not v.is_float():
            raise Refuse("it pools integers with uneven padding")
        x, padding = v.call(F.pad, x, w.sides(True), value=float("-inf")), [0] * w.rank
    if v.used(1):
        column = bool(v.attr("storage_order", 0))
        return v.outputs(v.call(windows.max_pool_places, x, w.kernel, w.strides, padding, w.dilations, w.ceil, column))
    given: dict[str, Any] = {"dilation": even(w.dilations)} if set(w.dilations) != {1} else {}
    given |= {"ceil_mode": True} if w.ceil else {}
    return v.call(_MAX[w.rank - 1], x, even(w.kernel), stride=even(w.strides), padding=even(padding), **given)


@emits("AveragePool")
def _average_pool(v: View) -> fx.Node:
    w = _Window(v, 0.0)
    whole = bool(v.attr("count_include_pad", 0))
    if set(w.dilations) != {1}:
        raise Refuse("PyTorch's average pools have no dilations")
    if w.padded and not whole:
        raise Refuse("it pads automatically an input whose size is not fixed, and does not count what it pads")
    if w.plain:
        given = {"ceil_mode": True} if w.ceil else {}
        return v.call(
            _AVERAGE[w.rank - 1],
            w.x,
            even(w.kernel),
            stride=even(w.strides),
            padding=even(w.pads[: w.rank]),
            count_include_pad=whole,
            **given,
        )
    if w.ceil:
        raise Refuse("it rounds sizes up with uneven padding, and its input's size is not fixed")
    return v.call(windows.average_pool, w.x, w.kernel, w.strides, w.pads, w.more, whole)


@emits("LpPool")
def _lp_pool(v: View) -> fx.Node:
    w = _Window(v, 0.0)
    if w.ceil or any(w.more) or set(w.dilations) != {1}:
        raise Refuse("it rounds sizes up, or has dilations")
    return v.call(windows.lp_pool, w.x, w.kernel, w.strides, w.pads, int(v.attr("p", 2)))


@emits("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global(v: View) -> fx.Node:
    axes = list(range(2, v.rank()))
    if v.op == "GlobalLpPool":
        return v.call(torch.linalg.vector_norm, v.x(), ord=int(v.attr("p", 2)), dim=axes, keepdim=True)
    function = torch.mean if v.op == "GlobalAveragePool" else torch.amax
    return v.call(function, v.x(), dim=axes, keepdim=True)
