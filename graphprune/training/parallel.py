"""Several processes that ``torchrun`` started, as one: sums of gradients, and waiting for each other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

__all__ = ["World"]


@dataclass(frozen=True)
class World:
    """Which of how many processes this one is."""

    rank: int = 0
    size: int = 1

    @classmethod
    @contextmanager
    def joined(cls) -> Iterator[World]:
        """The processes of ``torchrun``, for the length of a block; without it, this one alone."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not distributed.is_available():
            yield cls()
            return
        ours = not distributed.is_initialized()
        if ours:
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        try:
            yield cls(distributed.get_rank(), distributed.get_world_size())
        finally:
            if ours:
                distributed.destroy_process_group()

    def sum(self, tensors: Sequence[Tensor], number: float) -> float:
        """Add tensors up over all processes, in place, and a number, which is returned."""
        if self.size == 1:
            return number
        for one in tensors:
            distributed.all_reduce(one)
        place = tensors[0].device if tensors else torch.device("cpu")
        held = torch.tensor([number], dtype=torch.float64, device=place)
        distributed.all_reduce(held)
        return float(held)

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            distributed.barrier()
