"""The same with the Trainer of transformers: the optimiser is handed over, a callback cuts at the end.

python examples/training/with_transformers.py [STEPS]
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

import graphprune


class Words(Dataset[dict[str, Any]]):
    """Random token ids with a label that follows from the first one."""

    def __init__(self, count: int = 64) -> None:
        self.ids = torch.randint(0, 50, (count, 8), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: int) -> dict[str, Any]:
        return {"input_ids": self.ids[at], "labels": self.ids[at, 0] % 2}


class Cut(TrainerCallback):  # type: ignore[misc]
    """Keeps the cut network when training has ended."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.network: graphprune.Network | None = None

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Cut."""
        self.network = self.optimizer.cut()


def main(steps: int = 24) -> graphprune.Network:
    """Train for so many steps and cut to 0.7 of the parameters that can go."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    module: nn.Module = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes, attn_implementation="eager"))
    data = Words()
    fade = steps // 6
    optimizer = graphprune.optim.HESSO(
        module, {"input_ids": data.ids[:2]}, lr=1e-3, target=0.7, quantity="units", start=fade, periods=3, fade=fade
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / (2 * steps))
    cut = Cut(optimizer)
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=8, save_strategy="no", report_to=[],
            disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        Trainer(module, options, train_dataset=data, optimizers=(optimizer, schedule), callbacks=[cut]).train()
    assert cut.network is not None
    print(f"{cut.network.cost.params({})} parameters are left")
    return cut.network


if __name__ == "__main__":
    main(*(int(one) for one in sys.argv[1:]))
