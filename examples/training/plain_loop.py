"""Prune while training, in a loop of one's own: three lines more than without.

python examples/training/plain_loop.py [STEPS]
"""

from __future__ import annotations

import sys

import torch
from torch import nn

import graphprune


def network() -> nn.Module:
    """A small convolutional network for images of 8 x 8."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


def main(steps: int = 60) -> graphprune.Network:
    """Train for so many steps and cut to half the multiply-accumulates."""
    torch.manual_seed(0)
    module = network()
    images, labels = torch.randn(256, 1, 8, 8), torch.randint(0, 10, (256,))
    fade = steps // 6
    optimizer = graphprune.optim.HESSO(  # 1: instead of torch.optim.AdamW
        module, (images[:2],), lr=1e-3, variant="adamw", target=0.5, start=fade, periods=3, fade=fade
    )
    module.train()
    for step in range(steps):
        chosen = torch.arange(step * 32, (step + 1) * 32) % 256
        loss = nn.functional.cross_entropy(module(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()  # 2: as ever
    smaller = optimizer.cut()  # 3: the cut network; it computes what the trained one computes
    print(f"{optimizer.groups.network.cost.macs({})} -> {smaller.cost.macs({})} multiply-accumulates")
    return smaller


if __name__ == "__main__":
    main(*(int(one) for one in sys.argv[1:]))
