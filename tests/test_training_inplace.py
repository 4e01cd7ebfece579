"""Cutting the user's own module in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphprune
from graphprune.errors import InputError, UnsupportedError, UsageError
from graphprune.passes.plan import Plan

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from graphprune.training.groups import call, difference  # noqa: E402
from models_zoo.networks import ResidualNet, SeparableNet, SmallViT  # noqa: E402


class Grouped(nn.Module):
    """Grouped convolutions, a tied weight and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.second = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.lstm = nn.LSTM(12, 10, batch_first=True)
        self.one, self.other = nn.Linear(10, 10), nn.Linear(10, 10)
        self.other.weight = self.one.weight
        self.head = nn.Linear(10, 4)

    def forward(self, x: Any) -> Any:
        x = self.second(self.first(x)).flatten(2).transpose(1, 2)
        x, _ = self.lstm(x)
        return self.head(torch.relu(self.other(torch.relu(self.one(x.mean(1))))))


class Attention(nn.Module):
    """Heads as an attribute, and a scale that is computed once."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 6
        self.scale = self.head_dim**-0.5
        self.qkv, self.out = nn.Linear(16, 72), nn.Linear(24, 5)

    def forward(self, x: Any) -> Any:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, t, -1))


class Stubborn(nn.Module):
    """A size written into forward()."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.first(x))
        x = x.view(-1, 12)
        return self.second(x)


IMAGE = (torch.randn(2, 1, 8, 8),)
CASES: dict[str, tuple[Any, Any]] = {
    "residual": (lambda: ResidualNet(5, 8, 1, ((8, 1), (16, 2))), IMAGE),
    "depthwise": (lambda: SeparableNet(5, 8, 1, ((8, 1), (12, 2)), 16, expansion=2), IMAGE),
    "grouped": (Grouped, (torch.randn(2, 3, 8, 8),)),
    "attention": (Attention, (torch.randn(2, 7, 16),)),
    "functional": (
        lambda: nn.Sequential(nn.Conv1d(4, 8, 3), nn.PReLU(8), nn.ConvTranspose1d(8, 6, 3), nn.Conv1d(6, 3, 1)),
        (torch.randn(2, 4, 9),),
    ),
}


def half(network: Any, *kinds: str) -> Plan:
    """Every other unit of every exact group stays."""
    return Plan(
        {
            one.id: np.arange(0, one.size, 2)
            for one in network.grouping.groups
            if one.exact and one.size > 1 and (not kinds or one.kind in kinds)
        }
    )


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_module_cut_in_place_is_the_cut_network(name: str, tmp_path: Any) -> None:
    build, inputs = CASES[name]
    torch.manual_seed(0)
    module = build()
    network = graphprune.load(module, inputs=inputs)
    before = sum(one.numel() for one in module.parameters())
    cut = graphprune.prune_module(module, half(network), inputs)
    assert cut.difference < 1e-4
    assert sum(one.numel() for one in module.parameters()) < 0.75 * before
    assert str(module) != str(build()) or name == "attention"
    graphprune.save_module(module, cut, tmp_path / "pruned.pt")
    fresh = build()
    graphprune.load_module(fresh, tmp_path / "pruned.pt")
    assert difference(call(module, inputs), call(fresh, inputs)) == 0.0
    loss = sum(one.sum() for one in torch.utils._pytree.tree_leaves(module.train()(*inputs)))
    loss.backward()
    assert all(one.grad is not None and one.grad.shape == one.shape for one in module.parameters())


def test_a_size_in_forward_is_named_and_nothing_changes() -> None:
    module, inputs = Stubborn(), (torch.randn(3, 6),)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(UnsupportedError, match=r"x = x.view\(-1, 12\).*graphprune.to_torch"):
        graphprune.prune_module(module, half(graphprune.load(module, inputs=inputs)), inputs)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.first.out_features == 12
    assert len(call(module, inputs)) == 1


def test_a_scale_that_follows_the_cut_is_noticed() -> None:
    torch.manual_seed(0)
    module = SmallViT(5, 8, (8,), 16, heads=2, hidden=24, depth=1)
    network = graphprune.load(module, inputs=IMAGE)
    with pytest.raises(UnsupportedError, match="cannot be cut in place"):
        graphprune.prune_module(module, half(network, "head dimensions"), IMAGE)
    cut = graphprune.prune_module(module, half(network, "neurons"), IMAGE)
    assert cut.difference < 1e-4 and module.blocks[0].mlp[0].out_features == 12


def test_files_and_plans_of_other_modules(tmp_path: Any) -> None:
    module, inputs = CASES["functional"][0](), CASES["functional"][1]
    network = graphprune.load(module, inputs=inputs)
    with pytest.raises(UsageError, match="example inputs"):
        graphprune.prune_module(module, half(network))
    cut = graphprune.prune_module(module, half(network), inputs)
    graphprune.save_module(module, cut, tmp_path / "a.pt")
    with pytest.raises(InputError, match="another module"):
        graphprune.load_module(Stubborn(), tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match="save_module"):
        graphprune.load_module(module, tmp_path / "b.pt")


def test_a_saved_plan_is_replayed(tmp_path: Any) -> None:
    build, inputs = CASES["residual"]
    torch.manual_seed(0)
    module = build()
    result = graphprune.load(module, inputs=inputs).export(tmp_path, target_macs="0.5x", measure=None)
    graphprune.prune_module(module, result.plan_path, inputs)
    assert sum(one.numel() for one in module.parameters()) == pytest.approx(result.reached["params"], rel=0.05)
