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

from graphprune.training.attention import CutAttention, adapt  # noqa: E402
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


class FusedAttention(nn.Module):
    """The scale follows from the queries' size; one size is called after nothing, and one equals it by accident."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.total, self.window_width = 4, 6, 24, 6
        self.qkv, self.out = nn.Linear(16, 72), nn.Linear(24, 5)

    def forward(self, x: Any) -> Any:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, self.total)
        return self.out(y) + x[:, :, : self.window_width].mean()


class Parts(nn.Module):
    """One size for all parts of a split, a list of them, and a bound of a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.sizes, self.out_chs = 8, [6, 10], 16
        self.norm = nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(4, 12), nn.Conv2d(12, 24, 1), nn.InstanceNorm2d(24))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.mixed = nn.Conv2d(24, 16, 1)
        self.left, self.right = nn.Conv2d(6, 6, 1), nn.Conv2d(10, 10, 1)
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, x: Any) -> Any:
        first, second, rest = torch.split(self.norm(x), self.width, 1)
        x = self.mixed(torch.cat([self.convs[0](first), self.convs[1](second).relu(), rest], 1))
        one, other = x.split(self.sizes, 1)
        x = torch.cat([self.left(one), self.right(other)], 1)
        return self.head(x[:, : self.out_chs].relu())


class OwnScale(nn.Module):
    """Attention that computes its scale from what it is given, without an attribute for it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Any) -> Any:
        q, k = self.q(x), self.k(x)
        return self.out((q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1) @ self.v(x))


class Mixed(nn.Module):
    """A part whose forward() holds a size beside one that can be cut; the first keeps what it computed in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Remembering(), nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 3))

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x))


class Remembering(nn.Module):
    """A size in forward(), and a cache for eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Any] = {}
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 4)
        self.gain = nn.Parameter(torch.rand(12))

    def train(self, mode: bool = True) -> Any:
        self.cache = {}
        return super().train(mode)

    def forward(self, x: Any) -> Any:
        if "gain" not in self.cache:
            self.cache["gain"] = self.gain[None]
        x = torch.relu(self.first(x)) * self.cache["gain"]
        return self.second(x.view(-1, 12))


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


class Both(nn.Module):
    """Two inputs of one shape that do not mean the same."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 5)

    def forward(self, a: Any, b: Any) -> Any:
        return self.c(torch.relu(self.a(a)) - torch.sigmoid(self.b(b)))


def test_inputs_of_equal_contents_are_told_apart() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 6), torch.randn(4, 6)
    for inputs in ({"a": x, "b": x}, {"b": x, "a": x.clone()}, (x, x), (x, {"b": x.numpy()})):
        module = Both()
        network = graphprune.load(module, inputs=inputs)
        assert graphprune.prune_module(module, half(network), inputs).difference < 1e-4
    module = Both()
    network = graphprune.load(module, inputs=(x, y))
    assert graphprune.prune_module(module, half(network), {"b": x, "a": y}, network=network).difference < 1e-4


def test_a_size_in_forward_is_named_and_nothing_changes() -> None:
    module, inputs = Stubborn(), (torch.randn(3, 6),)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(UnsupportedError, match=r"x = x.view\(-1, 12\).*graphprune.to_torch"):
        graphprune.prune_module(module, half(graphprune.load(module, inputs=inputs)), inputs)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.first.out_features == 12
    assert len(call(module, inputs)) == 1


def test_attributes_are_found_by_what_they_equal() -> None:
    torch.manual_seed(0)
    module, inputs = FusedAttention(), (torch.randn(2, 7, 16),)
    network = graphprune.load(module, inputs=inputs)
    weight = module.qkv.weight.detach().clone()
    cut = graphprune.prune_module(module, half(network), inputs)
    assert (module.num_heads, module.head_dim, module.total, module.window_width) == (2, 3, 6, 6)
    # the queries' rows alone took up the root of 3 / 6
    assert cut.scaled == ("qkv.weight", "qkv.bias")
    rows = weight.view(3, 4, 6, 16)[:, ::2, ::2].reshape(3, 6, 16)
    found = module.qkv.weight.detach().view(3, 6, 16)
    assert torch.allclose(found[0], rows[0] * 0.5**0.5) and torch.equal(found[1:], rows[1:])


def test_one_size_becomes_several(tmp_path: Any) -> None:
    torch.manual_seed(0)
    module, inputs = Parts(), (torch.randn(2, 3, 6, 6),)
    network = graphprune.load(module, inputs=inputs)
    plan = half(network)
    held = {one.id: one.size for one in network.grouping.groups}
    uneven = next(name for name in plan.kept if held[name] == 8)
    cut = graphprune.prune_module(module, Plan({**plan.kept, uneven: np.arange(7)}), inputs)
    graphprune.save_module(module, cut, tmp_path / "parts.pt")
    fresh = Parts()
    assert graphprune.load_module(fresh, tmp_path / "parts.pt") == cut
    assert difference(call(module, inputs), call(fresh, inputs)) == 0.0
    assert isinstance(module.width, tuple) and sorted(module.width) == [4, 4, 7]
    assert module.norm[3].num_features == module.norm[2].out_channels == 15
    assert isinstance(module.sizes, list) and sum(module.sizes) == module.mixed.out_channels < 16
    assert cut.difference < 1e-4


def test_a_scale_that_follows_the_cut_is_noticed() -> None:
    torch.manual_seed(0)
    module, inputs = OwnScale(), (torch.randn(2, 7, 8),)
    network = graphprune.load(module, inputs=inputs)
    with pytest.raises(UnsupportedError, match="it runs, but differs from the cut network"):
        graphprune.prune_module(module, half(network, "Q/K dimensions"), inputs)
    assert graphprune.prune_module(module, half(network, "V/O dimensions"), inputs).difference < 1e-4


def test_what_forward_holds_stays_whole_where_asked() -> None:
    torch.manual_seed(0)
    module, inputs = Mixed().eval(), (torch.randn(3, 6),)
    expected = call(module, inputs)
    network = graphprune.load(module, inputs=inputs)
    with pytest.raises(UnsupportedError, match=r"self.second\(x.view\(-1, 12\)\).*partial=True") as refused:
        graphprune.prune_module(module, half(network), inputs)
    assert [(path, module.get_submodule(path).__class__) for _, path, _ in refused.value.refusals] == [
        ("first", Remembering)
    ]
    assert module.first.cache["gain"].shape == (1, 12)
    assert difference(expected, call(module, inputs)) == 0.0
    cut = graphprune.prune_module(module, half(network), inputs, partial=True)
    assert cut.left == (refused.value.refusals[0][0],)
    assert module.first.first.out_features == 12 and module.second[0].out_features == 5
    assert cut.difference < 1e-4


def test_head_dimensions_divided_out_in_forward_stay_whole() -> None:
    torch.manual_seed(0)
    module = SmallViT(5, 8, (8,), 16, heads=2, hidden=24, depth=2)
    network = graphprune.load(module, inputs=IMAGE)
    cut = graphprune.prune_module(module, half(network), IMAGE, partial=True)
    kinds = {one.id: one.kind for one in network.grouping.groups}
    assert sorted({kinds[name] for name in cut.left}) == ["head dimensions", "heads"]
    assert [block.mlp[0].out_features for block in module.blocks] == [12, 12]
    assert [block.attention.heads for block in module.blocks] == [2, 2]


def test_torch_attention_loses_heads_and_dimensions(tmp_path: Any) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 7, 16),)

    def build() -> Any:
        return nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()

    module = build()
    network = graphprune.load(module, inputs=inputs)
    cut = graphprune.prune_module(module, half(network), inputs)
    assert module.self_attn.num_heads == 2 and module.self_attn.in_proj_weight.shape == (12, 16)
    assert cut.difference < 1e-4
    graphprune.save_module(module, cut, tmp_path / "layer.pt")
    fresh = build()
    graphprune.load_module(fresh, tmp_path / "layer.pt")
    assert difference(call(module, inputs), call(fresh, inputs)) == 0.0


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (lambda: nn.Sequential(nn.Conv1d(4, 8, 3), nn.PReLU(8), nn.Conv1d(8, 3, 1)), (torch.randn(2, 4, 9),)),
        (lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval(), (torch.randn(2, 7, 16),)),
    ],
    ids=["convolutions", "attention"],
)
def test_a_module_cut_twice_is_loaded_into_a_fresh_one(build: Any, inputs: Any, tmp_path: Any) -> None:
    torch.manual_seed(0)
    module = build()
    first, second = (
        graphprune.prune_module(module, half(graphprune.load(module, inputs=inputs)), inputs) for _ in range(2)
    )
    assert first.cuts and second.cuts and second.in_turn() == (first, second)
    with pytest.raises(UsageError, match="not the module's last one"):
        graphprune.save_module(module, first, tmp_path / "twice.pt")
    graphprune.save_module(module, second, tmp_path / "twice.pt")
    fresh = build()
    assert graphprune.load_module(fresh, tmp_path / "twice.pt") == second
    assert difference(call(module, inputs), call(fresh, inputs)) == 0.0
    with pytest.raises(InputError, match=r"another module: '.*' has to have"):
        graphprune.load_module(fresh, tmp_path / "twice.pt")


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"kdim": 5, "vdim": 3, "bias": False}], ids=str)
@pytest.mark.parametrize("need_weights", [True, False])
def test_what_stands_in_for_torch_attention_is_the_same(options: dict[str, Any], need_weights: bool) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, **options).eval()
    q, k, v = torch.randn(4, 4, 8), torch.randn(4, 4, options.get("kdim", 8)), torch.randn(4, 4, options.get("vdim", 8))
    padding = torch.tensor([[False, False, False, True]]).repeat(4, 1)
    causal = torch.ones(4, 4, dtype=torch.bool).triu(1)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((q, k, v), {}),
        ((q, k, v), {"key_padding_mask": padding, "attn_mask": causal}),
        ((q, k, v), {"attn_mask": torch.randn(8, 4, 4), "average_attn_weights": False}),
        ((q[0], k[0], v[0]), {"attn_mask": torch.randn(4, 4)}),
    ]
    expected = [module(*args, **named, need_weights=need_weights) for args, named in calls]
    undo = adapt(module)
    assert isinstance(module, CutAttention)
    for (args, named), (values, weights) in zip(calls, expected, strict=True):
        found = module(*args, **named, need_weights=need_weights)
        assert torch.allclose(found[0], values, atol=1e-6)
        assert found[1] is weights is None or torch.allclose(found[1], weights, atol=1e-6)
    undo()
    assert type(module) is nn.MultiheadAttention


def test_files_and_plans_of_other_modules(tmp_path: Any) -> None:
    module, inputs = CASES["functional"][0](), CASES["functional"][1]
    network = graphprune.load(module, inputs=inputs)
    with pytest.raises(UsageError, match="example inputs"):
        graphprune.prune_module(module, half(network))
    cut = graphprune.prune_module(module, half(network), inputs)
    graphprune.save_module(module, cut, tmp_path / "a.pt")
    with pytest.raises(InputError, match="another module"):
        graphprune.load_module(Stubborn(), tmp_path / "a.pt")
    wider = CASES["functional"][0]()
    wider.register_buffer("more", torch.zeros(2))
    held = {name: value.clone() for name, value in wider.state_dict().items()}
    with pytest.raises(InputError, match="'more' is in one of them only"):
        graphprune.load_module(wider, tmp_path / "a.pt")
    assert all(torch.equal(value, held[name]) for name, value in wider.state_dict().items())
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


class Assisted(nn.Module):
    """A second classifier that only training mode runs; tied weights and a container are no such thing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.helpers = nn.ModuleDict({"aux": nn.Sequential(nn.Linear(16, 5), nn.Linear(5, 3))})
        self.again = nn.Linear(8, 16)
        self.again.weight = self.first.weight

    def forward(self, x: Any) -> Any:
        hidden = torch.relu(self.first(x))
        return (self.head(hidden), self.helpers["aux"](hidden)) if self.training else self.head(hidden)


def test_what_runs_in_training_mode_alone_is_named(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    module, inputs = Assisted().eval(), (torch.randn(2, 8),)
    result = graphprune.load(module, inputs=inputs).export(tmp_path / "out", target_params="0.6x", measure=None)
    cut = graphprune.prune_module(module, result.plan_path, inputs)
    assert cut.idle == ("helpers",) and "helpers: not in the traced network" in caplog.text
    graphprune.save_module(module, cut, tmp_path / "m.pt")
    assert graphprune.load_module(Assisted().eval(), tmp_path / "m.pt").idle == ("helpers",)
    with pytest.raises(RuntimeError):
        module.train()(*inputs)
