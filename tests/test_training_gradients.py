"""Gradient criteria on an ONNX file without source, against what they are defined by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import Net

import graphprune
from graphprune.backends.runner import OrtRunner
from graphprune.calibration.losses import kind_of
from graphprune.calibration.observations import Observations
from graphprune.errors import InputError, UsageError
from graphprune.passes.score import criterion, score_groups

torch = pytest.importorskip("torch")


def network(tmp_path: Path, softmax: bool = False) -> Any:
    net = Net()
    x = net.input("x", ("n", 6))
    y = net.op("Relu", net.linear(x, "first", 6, 8))
    z = net.linear(net.op("Relu", net.linear(y, "second", 8, 10)), "third", 10, 4)
    net.op("Softmax", z, out="p", axis=-1) if softmax else net.op("Identity", z, out="p")
    path = tmp_path / "mlp.onnx"
    onnx.save(net.build({"p": ["n", 4]}), path)
    return graphprune.load(path)


DATA = np.random.default_rng(3).standard_normal((12, 6)).astype(np.float32)
LABELS = torch.from_numpy(np.random.default_rng(4).integers(0, 4, 12))


def loss(run: Any) -> Any:
    for at in (0, 6):
        yield torch.nn.functional.cross_entropy(run({"x": DATA[at : at + 6]})["p"], LABELS[at : at + 6])


def scores(net: Any, name: str, **options: Any) -> dict[str, Any]:
    samples = [{"x": DATA[:6]}, {"x": DATA[6:]}]
    ranking: Any = criterion(name, **options)
    found = score_groups(
        ranking.on(Observations(net.grouping, samples, OrtRunner())), net.grouping.groups, net.program.tensor
    )
    assert not found.notes
    return dict(found.values)


def reference(net: Any) -> tuple[Any, dict[str, Any]]:
    """The network by hand, in float64, with a factor on each unit where it is read."""
    weights = {
        f"{layer}.{kind}": torch.from_numpy(net.program.tensor(f"{layer}.{kind}").astype(np.float64))
        for layer in ("first", "second", "third")
        for kind in ("weight", "bias")
    }

    def run(x: Any, factors: dict[int, Any]) -> Any:
        for k, layer in enumerate(("first", "second", "third")):
            x = x @ weights[f"{layer}.weight"] + weights[f"{layer}.bias"]
            if k < 2:
                x = torch.relu(x) * factors.get(x.shape[-1], 1.0)
        return x

    return run, weights


def derivative(net: Any, rows: slice) -> dict[int, Any]:
    """Of the loss by each unit's factor at 1: what removing it changes, to first order."""
    run, _ = reference(net)
    factors = {size: torch.ones(size, dtype=torch.float64, requires_grad=True) for size in (8, 10)}
    out = torch.nn.functional.cross_entropy(run(torch.from_numpy(DATA[rows]).double(), factors), LABELS[rows])
    return dict(zip(factors, torch.autograd.grad(out, list(factors.values())), strict=True))


def test_taylor_and_fisher_are_the_derivatives_by_the_units(tmp_path: Path) -> None:
    net = network(tmp_path)
    batches = [derivative(net, slice(0, 6)), derivative(net, slice(6, 12))]
    for name, options, power in (("taylor", {}, 2), ("taylor", {"squared": 0}, 1), ("fisher", {}, 2)):
        found = scores(net, name, loss=loss, **options)
        for values in found.values():
            expected = sum(one[len(values)].abs().numpy() ** power for one in batches) / 2
            np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-9)


def test_snip_sums_absolute_values(tmp_path: Path) -> None:
    net = network(tmp_path)
    found = scores(net, "snip", loss=loss)
    run, weights = reference(net)
    weights["third.weight"].requires_grad_()
    total = sum(
        torch.nn.functional.cross_entropy(run(torch.from_numpy(DATA[a : a + 6]).double(), {}), LABELS[a : a + 6])
        for a in (0, 6)
    )
    (gradient,) = torch.autograd.grad(total, [weights["third.weight"]])
    expected = (weights["third.weight"] * gradient).abs().sum(1).detach().numpy()
    np.testing.assert_allclose(next(v for v in found.values() if len(v) == 10), expected, rtol=1e-4)


def test_grasp_is_the_change_of_the_gradients_norm(tmp_path: Path) -> None:
    net = network(tmp_path)
    found = next(v for v in scores(net, "grasp", loss=loss).values() if len(v) == 10)
    run, weights = reference(net)
    original = weights["third.weight"].clone()
    for value in weights.values():
        value.requires_grad_()

    def flow(at: int, scaled: float) -> float:
        """Half the squared norm of the gradient, with the weights that read unit 3 scaled."""
        with torch.no_grad():
            weights["third.weight"].copy_(original)
            weights["third.weight"][3] *= scaled
        out = torch.nn.functional.cross_entropy(
            run(torch.from_numpy(DATA[at : at + 6]).double(), {}), LABELS[at : at + 6]
        )
        return float(sum((g**2).sum() for g in torch.autograd.grad(out, list(weights.values()))))

    expected = sum((flow(at, 1 + 1e-5) - flow(at, 1 - 1e-5)) / 2e-5 for at in (0, 6))
    # d/ds of the squared norm is 2 w.Hg; the criterion differentiates g.stop(g), which is half of it
    np.testing.assert_allclose(found[3], expected / 2, rtol=1e-3)


def test_synflow_weighs_all_paths(tmp_path: Path) -> None:
    net = network(tmp_path)
    found = next(v for v in scores(net, "synflow", rounds=1).values() if len(v) == 10)
    _, weights = reference(net)
    w = {name: value.abs().numpy() for name, value in weights.items()}
    inner = np.ones(6) @ w["first.weight"] + w["first.bias"]
    inner = inner @ w["second.weight"] + w["second.bias"]
    expected = inner * w["third.weight"].sum(1)
    order = np.argsort(found)
    assert (np.argsort(expected) == order).all()
    np.testing.assert_allclose(found / found.sum(), expected / expected.sum(), rtol=1e-4)
    several = scores(net, "synflow", rounds=4)
    assert all(np.isfinite(one).all() and (one > 0).all() for one in several.values())


def test_synflow_says_that_a_softmax_adds_up_to_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="softmax"):
        scores(network(tmp_path, softmax=True), "synflow")


def test_lrp_is_the_epsilon_rule(tmp_path: Path) -> None:
    net = network(tmp_path)
    _, held = reference(net)
    w = {name: value.numpy() for name, value in held.items()}
    found = {len(one): one for one in scores(net, "lrp", epsilon=0.5).values()}
    expected = {8: np.zeros(8), 10: np.zeros(10)}
    for x in DATA.astype(np.float64):
        first = np.maximum(x @ w["first.weight"] + w["first.bias"], 0)
        inner = first @ w["second.weight"]
        second = np.maximum(inner + w["second.bias"], 0)
        outer = second @ w["third.weight"]

        def damped(made: Any) -> Any:
            return np.abs(made) / (np.abs(made) + 0.5 * np.sqrt((made**2).mean()))

        best = (outer + w["third.bias"]).argmax()
        to_second = w["third.weight"][:, best] * damped(outer)[best]
        to_first = w["second.weight"] @ (damped(inner) * (second > 0) * to_second)
        expected[10] += np.abs(second * to_second) / len(DATA)
        expected[8] += np.abs(first * to_first) / len(DATA)
    for size, values in expected.items():
        np.testing.assert_allclose(found[size], values, rtol=1e-4, atol=1e-7)


def test_relevance_keeps_values_and_is_neither_made_nor_lost() -> None:
    from graphprune.backends.torch_relevance import Relevance

    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.gate = (torch.nn.Conv2d(3, 8, 3, bias=False) for _ in range(2))
            self.groups, self.layer = torch.nn.GroupNorm(2, 8), torch.nn.LayerNorm(36)
            self.query, self.key, self.out = (torch.nn.Linear(36, 6, bias=False) for _ in range(3))

        def forward(self, x: Any) -> Any:
            y = torch.nn.functional.silu(self.groups(self.into(x))) * torch.sigmoid(self.gate(x))
            y = self.layer(y.flatten(2))
            both = torch.nn.functional.gelu(self.query(y)) @ self.key(y).transpose(1, 2)
            return self.out(torch.nn.functional.relu(both) @ y / (1 + y.abs().mean()))

    torch.manual_seed(0)
    made, x = Mixed().eval(), torch.randn(2, 3, 8, 8)
    module: Any = graphprune.to_torch(graphprune.load(made, inputs=(x,)))
    for epsilon, kept in ((0.0, True), (1.0, False)):
        given = x.clone().requires_grad_()
        found = Relevance(module, epsilon).run(given)
        torch.testing.assert_close(found, made(x), rtol=1e-4, atol=1e-5)
        (gradient,) = torch.autograd.grad(found.sum(), [given])
        found = found.detach()
        lost = abs(float((gradient * x).sum() - found.sum()))
        assert (lost < 1e-3 * float(found.abs().sum())) is kept


@pytest.mark.parametrize("name", ["taylor", "fisher", "snip", "grasp", "lrp"])
def test_without_labels_the_outputs_serve(tmp_path: Path, name: str) -> None:
    net = network(tmp_path, softmax=True)
    found = scores(net, name)
    assert all(np.ptp(one) > 0 for one in found.values())
    assert all(np.array_equal(one, scores(net, name)[key]) for key, one in found.items())


@pytest.mark.parametrize("how", ["named", "handed over"])
def test_an_export_ranks_by_the_users_loss(how: str, tmp_path: Path) -> None:
    network(tmp_path)
    source = (
        "import numpy as np\nimport torch\n\n\ndef loss(run):\n    yield run({'x': np.ones((2, 6), 'f')})['p'].sum()\n"
    )
    (tmp_path / "own_loss.py").write_text(source)
    net = graphprune.load(tmp_path / "mlp.onnx")
    options: dict[str, Any] = {"loss": f"{tmp_path / 'own_loss.py'}:loss"}
    if how == "handed over":
        options = {"loss": lambda run: [run({"x": np.ones((2, 6), "f")})["p"].sum()]}
    result = net.export(
        tmp_path / "out", target_params="0.6x", criterion="taylor", criterion_options=options, measure=None,
        calib=[{"x": DATA[:6]}],
    )  # fmt: skip
    assert result.reached["params"] <= 0.6 * result.original["params"]
    said = result.to_json()["options"]["criterion_options"]["loss"]
    assert said == (options["loss"] if how == "named" else "a function")


def test_a_loss_that_does_not_depend_on_the_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no scalar tensor that depends"):
        scores(network(tmp_path), "taylor", loss=lambda run: torch.ones(()))
    with pytest.raises(UsageError, match="rounds=0"):
        criterion("synflow", rounds=0)
    with pytest.raises(UsageError, match="epsilon=-1 must not be negative"):
        criterion("lrp", epsilon=-1)
    with pytest.raises(UsageError, match="'lrp' has no option 'loss'"):
        criterion("lrp", loss="mine.py:loss")


def test_kinds_of_outputs() -> None:
    rows = np.full((3, 4), 0.25, dtype=np.float32)
    assert kind_of(rows) == "probabilities"
    assert kind_of(rows * 3) == "logits"
    assert kind_of(np.zeros((1, 1, 8, 8), dtype=np.float32)) == "values"
    assert kind_of(rows * 3, frozenset({1})) == "values"
