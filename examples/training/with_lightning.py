"""The same with Lightning: the optimiser is what configure_optimizers() returns, a callback cuts at the end.

python examples/training/with_lightning.py [STEPS]
"""

from __future__ import annotations

import sys
from typing import Any

import lightning
import torch
from plain_loop import network
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import graphprune


class Classifier(lightning.LightningModule):
    """A network and its loss."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.net, self.steps = network(), steps

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Cross entropy."""
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """HESSO on the inner network."""
        fade = self.steps // 6
        example = (torch.randn(2, 1, 8, 8),)
        return graphprune.optim.HESSO(self.net, example, lr=1e-3, target=0.5, start=fade, periods=3, fade=fade)


class Cut(lightning.Callback):
    """Keeps the cut network when training has ended."""

    network: graphprune.Network | None = None

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Cut."""
        self.network = trainer.optimizers[0].cut()


def main(steps: int = 30) -> graphprune.Network:
    """Train for so many steps and cut to half the multiply-accumulates."""
    lightning.seed_everything(0, verbose=False)
    images, labels = torch.randn(256, 1, 8, 8), torch.randint(0, 10, (256,))
    cut = Cut()
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=steps, callbacks=[cut], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(steps), DataLoader(TensorDataset(images, labels), batch_size=32, shuffle=True))
    assert cut.network is not None
    print(f"{cut.network.cost.macs({})} multiply-accumulates are left")
    return cut.network


if __name__ == "__main__":
    main(*(int(one) for one in sys.argv[1:]))
