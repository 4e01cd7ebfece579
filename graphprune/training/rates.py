"""How far a step of the optimiser may move a weight: in proportion to the weights around it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["usual_sizes"]

_LEAST = 1e-3  # root mean square of a tensor that is taken for zero
_FLOOR = 0.01  # of a tensor's root mean square: what channels of zeros may still move by


@torch.no_grad()
def usual_sizes(weight: Tensor) -> Tensor:
    """The usual size of each entry, to be broadcast to the weight's shape (o, i, ...).

    With the root mean squares r of the rows, c of the columns and m of all: r c / m (a rank-one estimate, as Shazeer
    and Stern take one of the gradient's squares, and their step relative to the parameter: "Adafactor", 2018). So it
    matters little to the training whether a channel is scaled and what reads it by the inverse (Neyshabur et al.,
    "Path-SGD", 2015), and BatchNorms folded into the weights leave channels of very unlike scales behind. Of a vector's
    entry: the root of its own square and the mean square, averaged.
    """
    squares = weight.double() ** 2
    mean = squares.mean().sqrt().clamp_min(_LEAST)
    if weight.ndim < 2:
        return ((squares + mean**2) / 2).sqrt().to(weight.dtype)
    rows = squares.mean(dim=tuple(range(1, weight.ndim)), keepdim=True).sqrt()
    columns = squares.mean(dim=(0, *range(2, weight.ndim)), keepdim=True).sqrt()
    return (rows * columns / mean + _FLOOR * mean).to(weight.dtype)
