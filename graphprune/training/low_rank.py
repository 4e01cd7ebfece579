"""Low-rank updates of weights, merged when training ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import UsageError

__all__ = ["LowRank"]


class LowRank:
    """For every weight W (o, ...) a product B A of rank r is trained beside it, W itself stays; vectors are trained.

    Hu et al., "LoRA", 2021; that this and the biases and norms suffice after pruning: Zimmer et al., "PERP", 2023.
    """

    def __init__(self, module: nn.Module, rank: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weights: dict[str, nn.Parameter] = {}
        self.pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        self.vectors: list[nn.Parameter] = []
        for name, value in module.named_parameters():
            flat = (value.shape[0], math.prod(value.shape[1:])) if value.ndim > 1 else (0, 0)
            if min(flat) > rank:
                first = torch.randn(rank, flat[1], generator=generator) / math.sqrt(flat[1])
                self.pairs[name] = (
                    nn.Parameter(torch.zeros(flat[0], rank).to(value)),
                    nn.Parameter(first.to(value)),
                )
                self.weights[name] = value
                value.requires_grad_(False)
            elif value.ndim <= 1:
                self.vectors.append(value)
            else:
                value.requires_grad_(False)
        if not self.pairs:
            raise UsageError(f"rank={rank}: no weight of the network has more rows and columns than that")

    def trained(self) -> list[nn.Parameter]:
        """What is trained."""
        return [*(one for pair in self.pairs.values() for one in pair), *self.vectors]

    def merged(self) -> dict[str, Tensor]:
        """The weights with their updates, by name."""
        return {
            name: self.weights[name] + (one @ other).reshape(self.weights[name].shape)
            for name, (one, other) in self.pairs.items()
        }

    def state(self) -> dict[str, Any]:
        """The updates alone."""
        return {name: [one.detach(), other.detach()] for name, (one, other) in self.pairs.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        for name, pair in self.pairs.items():
            for one, held in zip(pair, state[name], strict=True):
                one.copy_(held)
