"""The same with Accelerate: the optimiser is prepared like any other.

accelerate launch examples/training/with_accelerate.py [STEPS]
"""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator
from plain_loop import network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import graphprune


def main(steps: int = 30) -> graphprune.Network:
    """Train for so many steps and cut to half the multiply-accumulates."""
    torch.manual_seed(0)
    accelerator = Accelerator()
    module = network()
    images, labels = torch.randn(256, 1, 8, 8), torch.randint(0, 10, (256,))
    fade = steps // 6
    pruner = graphprune.optim.HESSO(module, (images[:2],), lr=1e-3, target=0.5, start=fade, periods=3, fade=fade)
    prepared, optimizer, loader = accelerator.prepare(
        module, pruner, DataLoader(TensorDataset(images, labels), batch_size=32, shuffle=True)
    )
    prepared.train()
    done = 0
    while done < steps:
        for x, y in loader:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(prepared(x), y))
            optimizer.step()
            done += 1
            if done == steps:
                break
    smaller = pruner.cut()
    print(f"{pruner.groups.network.cost.macs({})} -> {smaller.cost.macs({})} multiply-accumulates")
    return smaller


if __name__ == "__main__":
    main(*(int(one) for one in sys.argv[1:]))
