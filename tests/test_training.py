"""Optimisers that prune while they train: exact cuts, budgets, resuming; groups on a module's parameters."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphprune
from graphprune.errors import InputError, NothingPrunableError, TargetError, UsageError
from graphprune.passes.files import read_plan
from graphprune.passes.plan import Plan

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from graphprune.training.groups import ModuleGroups, call, difference, module_groups, outputs_of  # noqa: E402
from models_zoo.networks import ResidualNet, SeparableNet, SmallViT  # noqa: E402

BUILDS: dict[str, Callable[[], Any]] = {
    "residual": lambda: ResidualNet(5, 8, 1, ((8, 1), (16, 2))),
    "depthwise": lambda: SeparableNet(5, 8, 1, ((8, 1), (12, 2)), 16, expansion=2),
    "vit": lambda: SmallViT(5, 8, (8,), 16, heads=2, hidden=24, depth=1),
}


class Gated(nn.Module):
    """A sigmoid is not zero at zero, so zero weights before it do not silence what is read behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 5)

    def forward(self, x: Any) -> Any:
        return self.second(torch.sigmoid(self.first(x)))


def example() -> tuple[Any, ...]:
    return (torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)),)


@pytest.fixture(scope="module", params=sorted(BUILDS))
def made(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A module and its groups, traced once; tests load their own weights into it."""
    torch.manual_seed(0)
    module = BUILDS[request.param]()
    return module_groups(module, example()), {name: value.clone() for name, value in module.state_dict().items()}


@pytest.fixture
def groups(made: tuple[Any, Any]) -> ModuleGroups:
    found, state = made
    found.module.load_state_dict(state)
    found.module.train()
    return found


def train(module: Any, optimizer: Any, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 1, 8, 8, generator=generator), torch.randint(0, 5, (8,), generator=generator)

        def closure(x: Any = x, y: Any = y) -> Any:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(module(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)


def hesso(groups: ModuleGroups, **options: Any) -> Any:
    given = {"lr": 1e-2, "target": 0.5, "start": 2, "periods": 2, "fade": 3, "window": 2, **options}
    return graphprune.optim.HESSO(groups, **given)


OPTIMIZERS: dict[str, Callable[[ModuleGroups], Any]] = {
    "hesso": hesso,
    "hesso-sgd": lambda groups: hesso(groups, variant="sgd", base={"momentum": 0.9}, quantity="params"),
    "cric": lambda groups: graphprune.optim.CRIC(
        groups, lr=1e-2, target=0.5, start=1, periods=1, fade=3, sampling=2, cycles=2
    ),
    "dhspg": lambda groups: graphprune.optim.DHSPG(groups, lr=1e-2, target=0.5, start=2, length=6, strength=1.0),
}


def test_import_needs_no_torch() -> None:
    code = "import sys, graphprune; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_the_cut_network_equals_the_trained_one(groups: ModuleGroups, name: str) -> None:
    optimizer = OPTIMIZERS[name](groups)
    with pytest.raises(UsageError, match="more are to go"):
        optimizer.cut()
    train(groups.module, optimizer, 14)
    network = optimizer.cut()
    assert difference(call(groups.module, groups.inputs), outputs_of(network)) <= 1e-5
    cost = groups.network.cost
    reached = network.cost.params({}) if name == "hesso-sgd" else network.cost.macs({})
    whole = cost.params({}) if name == "hesso-sgd" else cost.macs({})
    assert reached <= 0.5 * whole
    assert reached < 0.5 * whole or optimizer.gone.any()


@pytest.mark.parametrize("name", ["hesso", "cric", "dhspg"])
def test_hooks_run_once_per_step(groups: ModuleGroups, name: str) -> None:
    for make in OPTIMIZERS.values():
        make(groups)  # PyTorch wraps a class's step when one is made
    optimizer, called = OPTIMIZERS[name](groups), []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    train(groups.module, optimizer, 2)
    assert called == ["before", "after"] * 2


def test_dhspg_takes_every_penalised_unit_to_zero_by_itself(groups: ModuleGroups) -> None:
    """Against AdamW's steps, whose size has nothing to do with the gradients', and no group nearly whole."""
    optimizer = graphprune.optim.DHSPG(groups, lr=1e-2, target=0.5, start=2, length=200, strength=10.0)
    for _ in range(60):
        train(groups.module, optimizer, 1)  # the same batch again: it pulls the other way all the time
    parts = [(groups.offsets[one.id], one.size) for one in groups.groups]
    gone = [int(optimizer.gone[start : start + size].sum()) / size for start, size in parts]
    assert optimizer.finished and optimizer.forced == 0
    assert max(gone) - min(gone) < 0.4


def test_training_does_not_change_the_network_it_started_from(groups: ModuleGroups) -> None:
    before = outputs_of(groups.network)
    train(groups.module, hesso(groups), 2)
    assert difference(before, outputs_of(groups.network)) == 0.0
    assert difference(before, outputs_of(groups.trained())) > 1e-3


@pytest.mark.parametrize("name", ["hesso", "cric", "dhspg"])
def test_resumed_training_ends_in_the_same_weights(groups: ModuleGroups, name: str, tmp_path: Any) -> None:
    start = {key: value.clone() for key, value in groups.module.state_dict().items()}
    optimizer = OPTIMIZERS[name](groups)
    train(groups.module, optimizer, 4)
    torch.save({"model": groups.module.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "at4.pt")
    train(groups.module, optimizer, 10, first=4)
    expected = {key: value.clone() for key, value in groups.module.state_dict().items()}

    groups.module.load_state_dict(start)
    held = torch.load(tmp_path / "at4.pt", weights_only=True)
    groups.module.load_state_dict(held["model"])
    again = OPTIMIZERS[name](groups)
    again.load_state_dict(held["optimizer"])
    train(groups.module, again, 10, first=4)
    assert all(torch.equal(value, expected[key]) for key, value in groups.module.state_dict().items())
    assert np.array_equal(again.gone, optimizer.gone)


def test_cric_shares_a_groups_loss_out_to_its_units(groups: ModuleGroups) -> None:
    """With a loss that counts what is zero, a group's ratio is known."""
    held = list(groups.module.parameters())
    before = [value.detach().clone() for value in held]

    def loss() -> float:
        return 1.0 + float(sum(int((value == 0).sum()) for value in held))

    optimizer = graphprune.optim.CRIC(groups, lr=0.0, target=0.5, start=0, sampling=2, loss=loss)
    whole = loss()
    train(groups.module, optimizer, 1)
    for one in groups.groups:
        losses = optimizer.losses[groups.offsets[one.id] :][: one.size]
        assert np.ptp(losses) == 0.0
        order = np.argsort(optimizer.sums[groups.offsets[one.id] :][: one.size], kind="stable")
        ratios = []
        for share in (0.25, 0.5, 0.75):
            gone = torch.zeros(groups.count, dtype=torch.bool)
            gone[groups.offsets[one.id] + order[: max(1, int(share * one.size))].copy()] = True
            for value, old in zip(held, before, strict=True):
                value.detach().copy_(old)
            groups.zero(gone)
            ratios.append(loss() / whole)
        assert losses[0] == pytest.approx(0.2 * np.log(np.mean(ratios)) / one.size)
        assert losses[0] > 0


def test_units_as_a_budget_are_aligned(groups: ModuleGroups) -> None:
    optimizer = hesso(groups, quantity="units", target=0.6, align=4, floor=0.25)
    train(groups.module, optimizer, 9)
    for name, kept in optimizer.plan().kept.items():
        size = groups.network.grouping.by_id(name).size
        assert len(kept) % 4 == 0 or len(kept) == size
        assert len(kept) >= 0.25 * size
    assert 0 < optimizer.gone.sum() <= 0.4 * groups.count + 1


def test_sums_and_vectors_agree_with_a_loop(groups: ModuleGroups) -> None:
    squares = groups.sums({name: value**2 for name, value in groups.parameters.items()})
    for group in groups.groups:
        start = groups.offsets[group.id]
        here = groups.vectors(group.id)
        assert torch.allclose((here**2).sum(1), squares[start : start + group.size], rtol=1e-5)
        expected = torch.zeros(group.size)
        for member in group.members:
            value = dict(groups.module.named_parameters()).get(groups.names.get(member.tensor, ""))
            if member.role in ("producer", "rider") and value is not None:
                for at, unit in enumerate(member.unit_of):
                    if unit >= 0:
                        expected[unit] += (value.detach().select(member.axis, at) ** 2).sum()
        assert torch.allclose(squares[start : start + group.size], expected, rtol=1e-5)


def test_regularisers_shrink_the_units_they_are_on(groups: ModuleGroups) -> None:
    units = np.zeros(groups.count, dtype=np.bool_)
    units[: groups.groups[0].size // 2] = True
    before = groups.norms().detach()
    optimizer = torch.optim.SGD(groups.module.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        loss = graphprune.optim.mask_sparsity(groups, units)
        loss.backward()
        optimizer.step()
    after = groups.norms().detach()
    mask = torch.from_numpy(units)
    assert bool((after[mask] < before[mask]).all())
    assert graphprune.optim.group_lasso(groups) > graphprune.optim.mask_sparsity(groups, units) > 0


def test_what_is_not_zero_at_zero_is_cut_exactly_all_the_same() -> None:
    torch.manual_seed(0)
    module = Gated()
    x = torch.randn(4, 6)
    optimizer = graphprune.optim.HESSO(
        module, (x,), lr=1e-2, target=0.5, quantity="params", periods=1, fade=2, window=1
    )
    for _ in range(2):
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()
    assert difference(call(module, (x,)), outputs_of(optimizer.cut())) <= 1e-5


def test_frozen_parameters_are_left_out() -> None:
    module = Gated()
    module.second.weight.requires_grad_(False)
    module.first.requires_grad_(False)
    with pytest.raises(NothingPrunableError, match="zeroing trained parameters"):
        module_groups(module, (torch.randn(2, 6),))


def test_a_module_of_to_torch_is_trained_and_exported(tmp_path: Any) -> None:
    torch.manual_seed(0)
    network = graphprune.load(BUILDS["residual"](), inputs=example())
    module = graphprune.to_torch(network)
    optimizer = graphprune.optim.HESSO(module, network=network, lr=1e-3, target=0.6, periods=1, fade=3, window=1)
    module.train()
    for step in range(3):
        optimizer.zero_grad()
        module(torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
    result = optimizer.export(tmp_path / "out", measure=None)
    assert result.verdict is not None and result.verdict.passed
    again = graphprune.load(result.model, inputs=network.program.examples)
    assert result.reached["macs"] <= 0.6 * result.original["macs"]
    assert difference(call(module, optimizer.groups.inputs), outputs_of(again)) <= 1e-5


@pytest.mark.parametrize("name", ["HESSO", "CRIC", "DHSPG"])
def test_training_ends_at_the_widths_of_a_plan(groups: ModuleGroups, name: str, tmp_path: Any) -> None:
    network = graphprune.load(groups.module, inputs=groups.inputs)
    plan = network.export(tmp_path / "out", target_macs="0.5x", measure=None, verify=False).plan_path
    options: dict[str, dict[str, Any]] = {
        "HESSO": {"periods": 2, "fade": 3},
        "CRIC": {"periods": 1, "fade": 3, "sampling": 2, "cycles": 2},
        "DHSPG": {"length": 6},
    }
    optimizer = getattr(graphprune.optim, name)(groups, lr=1e-2, target=plan, start=1, **options[name])
    train(groups.module, optimizer, 14)
    kept = {one["id"]: len(one["kept"]) for one in read_plan(plan)["groups"]}
    assert kept and {one: len(units) for one, units in optimizer.plan().kept.items()} == kept
    network = optimizer.cut()
    assert difference(call(groups.module, groups.inputs), outputs_of(network)) <= 1e-5
    assert network.cost.macs({}) <= 0.5 * groups.network.cost.macs({})


def test_a_plan_that_training_cannot_follow_is_refused(groups: ModuleGroups) -> None:
    size = groups.groups[0].size
    plan = Plan({groups.groups[0].id: np.arange(size - 1)})
    with pytest.raises(UsageError, match="have no meaning where target is a plan"):
        hesso(groups, target=plan, align=8)
    with pytest.raises(InputError, match="'g999', which this network does not have"):
        hesso(groups, target=Plan({"g999": np.arange(1)}))
    every = groups.groups
    groups.narrow(every[1:])
    try:
        with pytest.raises(UsageError, match="make the plan without it: exclude"):
            hesso(groups, target=plan)
    finally:
        groups.narrow(every)


def test_a_share_that_cannot_be_reached_is_said_at_once(groups: ModuleGroups) -> None:
    with pytest.raises(TargetError, match="cannot be met"):
        hesso(groups, target=0.01, floor=0.9)


def test_a_state_of_another_network_is_refused(groups: ModuleGroups) -> None:
    state = hesso(groups).state_dict()
    state["pruning"]["gone"] = state["pruning"]["gone"][:-1]
    with pytest.raises(InputError, match="not of this optimiser"):
        hesso(groups).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"target": 0.0}, "target=0.0"), ({"variant": "lion"}, "variant='lion'"), ({"fade": 0}, "fade=0")],
)
def test_options_that_make_no_sense(groups: ModuleGroups, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        hesso(groups, **options)
