"""In place: layers follow wherever their parameters are used, and what is not cut stays as it was."""

from __future__ import annotations

from typing import Any

import pytest

import graphprune

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tests.test_training_inplace import half  # noqa: E402


class _Twice(nn.Module):
    """A layer that is applied twice, as in a weight-shared block."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Any) -> Any:
        return self.last(torch.relu(self.again(torch.relu(self.again(torch.relu(self.first(x)))))))


class _Tied(nn.Module):
    """Words in and words out through one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, 16), nn.Linear(16, 20, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Any) -> Any:
        return self.head(torch.relu(self.words(x)))


class _Attends(nn.Module):
    """Attention in a residual stream without a norm, whose width can go by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attend = nn.Linear(8, 16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        return self.last(x + self.attend(x, x, x)[0])


class _Counts(nn.Module):
    """A buffer that forward() writes to, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Any) -> Any:
        self.seen += 1
        return self.last(torch.relu(self.first(x)))


@pytest.mark.parametrize(
    ("build", "inputs", "kinds"),
    [
        (_Twice, torch.randn(2, 8), ()),
        (_Tied, torch.arange(6).reshape(1, 6), ()),
        (_Attends, torch.randn(2, 5, 8), ("neurons",)),
        (_Counts, torch.randn(2, 8), ()),
        (lambda: nn.Sequential(nn.Conv2d(3, 32, 3), nn.GroupNorm(8, 32), nn.ReLU(), nn.Conv2d(32, 4, 1)),
         torch.randn(1, 3, 8, 8), ()),
    ],
    ids=["twice", "tied", "attention", "counts", "group norm"],
)  # fmt: skip
def test_layers_follow_in_every_place(build: Any, inputs: Any, kinds: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    module = build().eval()
    for one in module.parameters():
        one.marked = True
    network = graphprune.load(module, inputs=(inputs,))
    plan = half(network, *kinds)
    assert plan.kept
    before = {name: value.clone() for name, value in module.named_buffers()}
    cut = graphprune.prune_module(module, plan, (inputs,))
    assert cut.difference <= 1e-5
    assert all(getattr(one, "marked", False) for one in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.named_buffers())
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            assert (layer.out_features, layer.in_features) == tuple(layer.weight.shape)
        if isinstance(layer, nn.MultiheadAttention):
            assert layer.embed_dim == layer.out_proj.weight.shape[0]
        if isinstance(layer, nn.GroupNorm):
            assert (layer.num_groups, layer.num_channels) == (4, 16)
