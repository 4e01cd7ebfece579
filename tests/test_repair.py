"""Repair and the criteria that foresee it, held to what least squares say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

import graphprune
from graphprune.backends.runner import OrtRunner
from graphprune.calibration.fit import largest, slopes, solved
from graphprune.calibration.moments import Moments
from graphprune.calibration.observations import Observations
from graphprune.errors import UsageError
from graphprune.passes.repair import Repair
from graphprune.passes.score import criterion, score_groups
from graphprune.passes.score.reconstruction import _curve, _Map
from graphprune.passes.shrink import Shrink
from graphprune.pipeline import Network
from tests.models import SAMPLES, Net, Sample, image, picture


def loaded(sample: Sample, folder: Path) -> Network:
    return graphprune.load(sample.save(folder / "m.onnx"), inputs=sample.feeds())


def feeds_of(sample: Sample, count: int = 24) -> list[dict[str, Any]]:
    return [sample.feeds(other=bool(sample.other), seed=100 + i) for i in range(count)]


def doubled() -> Sample:
    """A network whose second half of channels is a multiple of the first half: removing it loses nothing."""
    net = Net()
    x = net.input("x", ["batch", 3, 8, 8])
    rng = np.random.default_rng(0)
    half = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    bias = rng.standard_normal(4).astype(np.float32)
    weight = net.hold("a.weight", np.concatenate([half, 2 * half]))
    y = net.op("Relu", net.op("Conv", x, weight, net.hold("a.bias", np.concatenate([bias, 2 * bias])), pads=[1] * 4))
    y = net.op("Relu", net.conv(y, "b", 8, 6))
    net.head(y, 6)
    return picture(net)


def keep_first(network: Network, group: str, count: int) -> dict[str, np.ndarray]:
    size = network.grouping.by_id(group).size
    return {group: np.arange(size) < count}


def group_made_by(network: Network, tensor: str) -> str:
    return next(
        one.id for one in network.grouping.groups for m in one.members if m.tensor == tensor and m.role == "producer"
    )


def run_all(model: Any, feeds: Sequence[dict[str, Any]]) -> np.ndarray:
    runner = OrtRunner()
    return np.concatenate([next(iter(runner(model, one).values())).ravel() for one in feeds])


def mean_of(model: Any, feeds: Sequence[dict[str, Any]]) -> np.ndarray:
    """Mean of each column of the output over everything else."""
    found = np.concatenate([OrtRunner()(model, one)["y"] for one in feeds])
    return found.reshape(-1, found.shape[-1]).mean(axis=0)


def test_what_others_carry_as_well_is_lost_without_trace(tmp_path: Path) -> None:
    sample = doubled()
    network = loaded(sample, tmp_path)
    keep = keep_first(network, group_made_by(network, "a.weight"), 4)
    cut = Shrink(keep)(network.grouping)
    fresh = feeds_of(sample, 5)
    wanted = run_all(network.program.model, fresh)
    repaired = Repair()(network.grouping, keep, cut, feeds_of(sample)[5:], OrtRunner())
    assert np.abs(run_all(cut, fresh) - wanted).max() > 0.05
    assert np.allclose(run_all(repaired.model, fresh), wanted, atol=2e-3)
    assert repaired.steps and repaired.steps[0].after < 1e-4 < repaired.steps[0].before


def test_the_refit_is_the_least_squares_fit(tmp_path: Path) -> None:
    """One MatMul with its bias in an Add, against numpy's own solution; nothing is added to the graph."""
    net = Net()
    hidden = net.op("Tanh", net.linear(net.input("x", ["batch", 10]), "a", 10, 8))
    net.linear(hidden, "b", 8, 3, out="y")
    sample = Sample(net.build({"y": ["batch", 3]}), {"x": (1, 10)}, {"x": (40, 10)})
    network = loaded(sample, tmp_path)
    keep = keep_first(network, group_made_by(network, "a.weight"), 5)
    feeds = feeds_of(sample, 30)
    cut = Shrink(keep)(network.grouping)
    repaired = Repair()(network.grouping, keep, cut, feeds, OrtRunner())
    assert repaired.added == 0 and len(list(repaired.model.graph)) == len(list(cut.graph))
    values = {t.name: numpy_helper.to_array(t) for t in sample.model.graph.initializer}
    x = np.concatenate([one["x"] for one in feeds]).astype(np.float64)
    full = np.tanh(x @ values["a.weight"] + values["a.bias"])
    wanted = full @ values["b.weight"] + values["b.bias"]
    design = np.concatenate([full[:, :5], np.ones((len(full), 1))], axis=1)
    best = np.linalg.lstsq(design, wanted, rcond=None)[0]
    found = {name: value.const_value.numpy() for name, value in repaired.model.graph.initializers.items()}
    assert np.allclose(found["b.weight"], best[:5], atol=2e-2)
    residual = ((run_all(repaired.model, feeds) - wanted.ravel()) ** 2).mean()
    least = ((design @ best - wanted) ** 2).mean()
    assert residual <= least * 1.01


def test_the_bias_alone_keeps_the_mean(tmp_path: Path) -> None:
    sample = SAMPLES["plain"]()
    network = loaded(sample, tmp_path)
    group = group_made_by(network, "c.conv.weight")
    keep = keep_first(network, group, 16)
    feeds = feeds_of(sample)
    cut = Shrink(keep)(network.grouping)
    repaired = Repair("bias")(network.grouping, keep, cut, feeds, OrtRunner())
    wanted, before, after = (mean_of(model, feeds) for model in (network.program.model, cut, repaired.model))
    assert np.abs(after - wanted).max() < 1e-4 < np.abs(before - wanted).max()
    weights = [
        {n: v.const_value.numpy().shape for n, v in model.graph.initializers.items()} for model in (cut, repaired.model)
    ]
    assert weights[0]["head.weight"] == weights[1]["head.weight"]


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in ("custom", "forced_height")])
def test_repair_brings_every_network_nearer_and_keeps_its_shapes(name: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]()
    network = loaded(sample, tmp_path)
    groups = [one for one in network.grouping.groups if one.exact and one.size > 3]
    if not groups:
        pytest.skip("nothing large enough to cut")
    rng = np.random.default_rng(1)
    keep = {}
    for one in groups:
        mask = np.ones(one.size, dtype=np.bool_)
        mask[rng.choice(one.size, one.size // 4, replace=False)] = False
        keep[one.id] = mask
    if network.grouping.emptied(keep):
        pytest.skip("an axis would be left empty")
    cut = Shrink(keep)(network.grouping)
    feeds = feeds_of(sample, 40)
    repaired = Repair()(network.grouping, keep, cut, feeds, OrtRunner())
    wanted, before, after = (run_all(m, feeds) for m in (network.program.model, cut, repaired.model))
    assert np.isfinite(after).all()
    if repaired.steps:
        assert ((after - wanted) ** 2).mean() <= ((before - wanted) ** 2).mean() * 1.05
    shapes = [
        {name: tuple(value.const_value.shape.numpy()) for name, value in model.graph.initializers.items()}
        for model in (cut, repaired.model)
    ]
    changed = {name for name in shapes[0] if name in shapes[1] and shapes[0][name] != shapes[1][name]}
    assert not changed


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_a_map_right_behind_one_that_got_a_bias(dtype: Any, tmp_path: Path) -> None:
    """The node that adds the bias stands between the two, under another name than the value had."""
    net = Net(dtype=dtype)
    y = net.input("x", ["batch", 6])
    for name, (a, b) in {"a": (6, 16), "b": (16, 12), "c": (12, 5)}.items():
        y = net.op("MatMul", y, net.weight(f"{name}.weight", a, b))
        y = net.op("Relu", y) if name == "a" else y
    net.op("Identity", y, out="y")
    sample = Sample(net.build({"y": ["batch", 5]}), {"x": (8, 6)}, {"x": (9, 6)})
    network = loaded(sample, tmp_path)
    keep = {}
    for name in ("a.weight", "b.weight"):
        keep |= keep_first(network, group_made_by(network, name), 8)
    cut = Shrink(keep)(network.grouping)
    for value in (value for node in cut.graph for value in node.outputs):
        value.type = None  # files need not say of what type inner values are
    repaired = Repair()(network.grouping, keep, cut, feeds_of(sample), OrtRunner())
    assert repaired.added == len(repaired.steps) == 2
    wanted = run_all(network.program.model, feeds_of(sample))
    lost = [float(np.square(run_all(one, feeds_of(sample)) - wanted).sum()) for one in (cut, repaired.model)]
    assert lost[1] < 0.5 * lost[0]


@pytest.mark.parametrize("name", ["constant_nodes", "transposed", "tied", "attention"])
def test_repaired_constants_have_the_type_of_the_weights(name: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]()
    model = convert_float_to_float16(sample.model, keep_io_types=False, disable_shape_infer=True)
    del model.graph.value_info[:]
    half = Sample(model, sample.shapes, sample.other)
    options = {"calib": feeds_of(half), "search_budget": "0", "measure": None}
    result = loaded(half, tmp_path).export(tmp_path / "out", target_params="0.8x", **options)
    assert result.repaired is not None and len(result.repaired.steps) > 1
    held = onnx.load(str(result.model)).graph.initializer
    assert not any(one.data_type == onnx.TensorProto.FLOAT for one in held)


def test_a_network_without_float_weights_is_said_to_be_left_as_it_was_cut(tmp_path: Path) -> None:
    net = Net()
    y = net.input("x", ["batch", 6])
    for name, (i, o) in {"a": (6, 16), "b": (16, 5)}.items():
        whole = net.hold(f"{name}.weight", np.random.default_rng(i).integers(-99, 99, (i, o)).astype(np.int8))
        weight = net.op("DequantizeLinear", whole, net.hold(f"{name}.scale", np.float32(0.01)))
        y = net.op("Relu", net.op("MatMul", y, weight))
    net.op("Identity", y, out="y")
    sample = Sample(net.build({"y": ["batch", 5]}), {"x": (8, 6)}, {"x": (9, 6)})
    network = loaded(sample, tmp_path)
    result = network.export(
        tmp_path / "out", target_macs="0.7x", measure=None, calib=feeds_of(sample, 4), search_budget="0"
    )
    assert any(note.startswith("nothing was repaired: no linear map") for note in result.notes), result.notes
    assert "Repair changed nothing." in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 2.0), (1.0, 1.0)])
def test_what_a_gemm_multiplies_by_is_minded(alpha: float, beta: float, tmp_path: Path) -> None:
    net = Net()
    y = net.op("Relu", net.norm(net.conv(image(net), "a", 3, 12), "n", 12))
    flat = net.op("Flatten", net.op("GlobalAveragePool", y))
    net.op("Gemm", flat, net.weight("w", 12, 4), net.weight("bias", 4), out="y", alpha=alpha, beta=beta)
    sample = picture(net, {"y": ["batch", 4]})
    network = loaded(sample, tmp_path)
    keep = keep_first(network, group_made_by(network, "a.weight"), 6)
    feeds = feeds_of(sample)
    cut = Shrink(keep)(network.grouping)
    repaired = Repair("bias")(network.grouping, keep, cut, feeds, OrtRunner())
    wanted, after = (mean_of(m, feeds) for m in (network.program.model, repaired.model))
    assert np.allclose(wanted, after, atol=1e-4)


def test_a_dressed_network_computes_what_the_cut_one_does(tmp_path: Path) -> None:
    for name in ("plain", "attention", "lstm"):
        sample = SAMPLES[name]()
        network = loaded(sample, tmp_path)
        keep = {one.id: np.arange(one.size) < max(1, one.size // 2) for one in network.grouping.groups if one.exact}
        cut = Shrink(keep)(network.grouping)
        dressed = Repair().dressed(network.grouping, keep, cut)
        feeds = feeds_of(sample, 3)
        assert np.allclose(run_all(cut, feeds), run_all(dressed, feeds), atol=1e-6)


def test_the_curve_is_what_least_squares_lose(tmp_path: Path) -> None:
    """The first unit to go by ``obs``, and what it loses, against the refit without each unit in turn."""
    net = Net()
    hidden = net.op("Relu", net.linear(net.input("x", ["batch", 10]), "a", 10, 8))
    net.linear(hidden, "b", 8, 3, out="y")
    sample = Sample(net.build({"y": ["batch", 3]}), {"x": (1, 10)}, {"x": (40, 10)})
    network = loaded(sample, tmp_path)
    feeds = feeds_of(sample, 30)
    groups = [network.grouping.by_id(group_made_by(network, "a.weight"))]
    made = criterion("obs", damp=1e-9)
    assert not isinstance(made, graphprune.passes.score.Criterion)
    scores = score_groups(made.on(Observations(network.grouping, feeds, OrtRunner())), groups, network.program.tensor)
    found = scores.values[groups[0].id]
    values = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in sample.model.graph.initializer}
    x = np.concatenate([one["x"] for one in feeds])
    full = np.maximum(x @ values["a.weight"] + values["a.bias"], 0)
    wanted = full @ values["b.weight"]
    power = ((wanted - wanted.mean(axis=0)) ** 2).sum()

    def lost(without: list[int]) -> float:
        design = np.concatenate([np.delete(full, without, axis=1), np.ones((len(full), 1))], axis=1)
        best = np.linalg.lstsq(design, wanted, rcond=None)[0]
        return float(((design @ best - wanted) ** 2).sum() / power)

    singles = [lost([i]) for i in range(8)]
    assert int(found.argmin()) == int(np.argmin(singles))
    assert found.min() == pytest.approx(min(singles), rel=1e-3)
    assert found.sum() == pytest.approx(1.0, rel=1e-3)  # without any unit all the variance is lost
    order = np.argsort(found)
    assert lost(order[:4].tolist()) == pytest.approx(found[order[:4]].sum(), rel=2e-2)


def test_a_map_that_reads_some_of_a_groups_units_runs_out_of_them() -> None:
    """Two maps read two units of four each, as where channels are shuffled; the first map's weights are small."""
    maps = [_Map(scale * np.ones((1, 3, 2)), np.eye(2)[None], np.array(units), 1.0)
            for scale, units in ((0.1, [0, 1]), (1.0, [2, 3]))]  # fmt: skip
    assert np.allclose(_curve(maps, 4), [0.03, 0.03, 3.0, 3.0])


def test_activation_criteria_are_their_formulas(tmp_path: Path) -> None:
    net = Net()
    hidden = net.op("Relu", net.linear(net.input("x", ["batch", 10]), "a", 10, 6))
    net.linear(hidden, "b", 6, 3, out="y")
    sample = Sample(net.build({"y": ["batch", 3]}), {"x": (1, 10)}, {"x": (40, 10)})
    network = loaded(sample, tmp_path)
    feeds = feeds_of(sample, 10)
    group = network.grouping.by_id(group_made_by(network, "a.weight"))
    values = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in sample.model.graph.initializer}
    x = np.concatenate([one["x"] for one in feeds])
    full = np.maximum(x @ values["a.weight"] + values["a.bias"], 0)
    rows = values["b.weight"]
    wanted = {
        "wanda": np.abs(rows).sum(axis=1) * np.sqrt((full**2).mean(axis=0)),
        "fluctuation": (rows**2).sum(axis=1) * full.var(axis=0),
        "variance": full.var(axis=0),
        "activation": np.sqrt((full**2).mean(axis=0)),
    }
    seen = Observations(network.grouping, feeds, OrtRunner())
    for name, expected in wanted.items():
        made: Any = criterion(name, normalize="none")
        found = score_groups(made.on(seen), [group], network.program.tensor).values[group.id]
        assert np.allclose(found, expected, rtol=1e-4), name


def test_an_export_with_data_repairs_and_says_how_good_it_is(tmp_path: Path) -> None:
    sample = SAMPLES["plain"]()
    network = loaded(sample, tmp_path)
    feeds = [sample.feeds(seed=i) for i in range(32)]
    result = network.export(
        tmp_path / "out", target_macs="0.6x", calib=feeds, measure=None, metric=lambda run: run(feeds[0])["y"].sum()
    )
    assert result.repaired is not None and result.accuracy is not None
    assert result.verdict is not None and result.verdict.passed
    near = result.accuracy.fidelity
    assert near["artefact"].cosine.value > near["cut"].cosine.value
    manifest = result.to_json()
    assert manifest["calibration"]["fitted"] == 28 and manifest["calibration"]["held_out"] == 4
    assert manifest["repair"]["method"] == "refit" and set(manifest["accuracy"]["metric"]) == {
        "original", "cut", "artefact",
    }  # fmt: skip
    onnx.checker.check_model(onnx.load(str(result.model)))
    again = network.export(tmp_path / "again", target_macs="0.6x", calib=feeds, measure=None)
    assert again.model.read_bytes() == result.model.read_bytes()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"criterion": "obs"}, "needs calibration data: add --calib"),
        ({"repair": "refit"}, "fits to calibration data; add --calib"),
        ({"calib_samples": 3}, "--calib-samples says how calibration data are read"),
        ({"repair": "glue", "calib": []}, "choose bias, refit or none"),
    ],
)
def test_what_needs_data_says_so(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    network = loaded(SAMPLES["plain"](), tmp_path)
    with pytest.raises(UsageError, match=sentence):
        network.export(tmp_path / "out", target_macs="0.6x", measure=None, **options)


@pytest.mark.parametrize(("beta", "how"), [(0.0, "held"), (0.25, "constant"), (0.25, "absent"), (2.0, "held")])
def test_a_bias_that_is_scaled_held_by_a_node_or_absent(beta: float, how: str, tmp_path: Path) -> None:
    net = Net()
    hidden = net.op("Relu", net.linear(net.input("x", ["batch", 10]), "a", 10, 12))
    more = []
    if how == "constant":
        more = [net.op("Constant", value=numpy_helper.from_array(np.ones(4, np.float32)))]
    elif how == "held":
        more = [net.weight("bias", 4)]
    net.op("Gemm", hidden, net.weight("w", 12, 4), *more, out="y", beta=beta)
    sample = Sample(net.build({"y": ["batch", 4]}), {"x": (1, 10)}, {"x": (40, 10)})
    network = loaded(sample, tmp_path)
    keep = keep_first(network, group_made_by(network, "a.weight"), 6)
    feeds = feeds_of(sample)
    cut = Shrink(keep)(network.grouping)
    repaired = Repair("bias")(network.grouping, keep, cut, feeds, OrtRunner())
    wanted, after = (mean_of(m, feeds) for m in (network.program.model, repaired.model))
    assert np.allclose(wanted, after, atol=1e-4)


def test_a_constant_that_is_added_on_another_axis_is_no_bias(tmp_path: Path) -> None:
    """As many rows as columns: the shift of the columns does not go into the constant of the rows."""
    net = Net()
    hidden = net.op("Relu", net.op("MatMul", net.input("x", ["batch", 6, 10]), net.weight("a.weight", 10, 12)))
    out = net.op("MatMul", hidden, net.weight("b.weight", 12, 6))
    net.op("Add", out, net.hold("rows", np.arange(6, dtype=np.float32).reshape(1, 6, 1)), out="y")
    sample = Sample(net.build({"y": ["batch", 6, 6]}), {"x": (1, 6, 10)}, {"x": (8, 6, 10)})
    network = loaded(sample, tmp_path)
    keep = keep_first(network, group_made_by(network, "a.weight"), 6)
    feeds = feeds_of(sample)
    repaired = Repair("bias")(network.grouping, keep, Shrink(keep)(network.grouping), feeds, OrtRunner())
    wanted, after = (mean_of(m, feeds) for m in (network.program.model, repaired.model))
    assert repaired.added == 1 and np.allclose(wanted, after, atol=1e-4)


def test_a_sample_without_rows_is_passed_over(tmp_path: Path) -> None:
    net = Net()
    hidden = net.op("Relu", net.linear(net.input("x", ["batch", 10]), "a", 10, 8))
    net.linear(hidden, "b", 8, 3, out="y")
    sample = Sample(net.build({"y": ["batch", 3]}), {"x": (1, 10)}, {"x": (40, 10)})
    network = loaded(sample, tmp_path)
    keep = keep_first(network, group_made_by(network, "a.weight"), 5)
    feeds = [{"x": np.zeros((0, 10), np.float32)}, *feeds_of(sample, 10)]
    repaired = Repair()(network.grouping, keep, Shrink(keep)(network.grouping), feeds, OrtRunner())
    assert repaired.steps


def test_a_repair_that_makes_it_worse_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = SAMPLES["plain"]()
    network = loaded(sample, tmp_path)
    own = Repair.__call__

    def spoilt(self: Repair, grouping: Any, keep: Any, model: Any, samples: Any, run: Any) -> Any:
        found = own(self, grouping, keep, model, samples, run)
        held = found.model.graph.initializers["head.weight"]
        held.const_value = type(held.const_value)(np.full_like(held.const_value.numpy(), np.nan), name="head.weight")
        return found

    monkeypatch.setattr(Repair, "__call__", spoilt)
    result = network.export(
        tmp_path / "out", target_macs="0.6x", calib=feeds_of(sample, 20), measure=None, search_budget="0"
    )
    assert result.repaired is None and any(one.startswith("repair was left out") for one in result.notes)
    wanted = run_all(network.program.model, [sample.feeds()])
    found = OrtRunner()(graphprune.load(result.model).program.model, sample.feeds())["y"]
    assert np.isfinite(found).all() and found.shape == wanted.reshape(1, -1).shape


def test_rows_that_hardly_differ_are_fitted_all_the_same(tmp_path: Path) -> None:
    """Samples of one colour each, as large as bytes: the covariance is far smaller than its rounding."""
    net = Net()
    y = net.op("Relu", net.conv(image(net), "a", 3, 12, bias=True))
    net.head(net.op("Relu", net.conv(y, "b", 12, 8, bias=True)), 8)
    sample = picture(net)
    network = loaded(sample, tmp_path)
    keep = keep_first(network, group_made_by(network, "a.weight"), 6)
    shape = sample.feeds()["x"].shape
    feeds = [{"x": np.full(shape, 255.0 - 1e-4 * i, np.float32)} for i in range(12)]
    cut = Shrink(keep)(network.grouping)
    repaired = Repair()(network.grouping, keep, cut, feeds, OrtRunner())
    assert np.isfinite(run_all(repaired.model, feeds)).all()


def test_a_last_map_does_not_shrink_results_that_are_hard_to_tell() -> None:
    """Ten classes, the second seen through noise: the fit draws its score to the mean, and it would win too seldom."""
    rng = np.random.default_rng(0)
    y = 5 * np.eye(10, dtype=np.float32)[rng.integers(0, 10, 6000)][:, None]
    noise = np.ones(10)
    noise[1] = 1.5
    x = (y + rng.standard_normal(y.shape) * noise).astype(np.float32)
    every = Moments()
    every.add(x, y)
    fit = solved(np.zeros((1, 10, 10)), every, 1e-6)
    assert slopes(fit, every)[0, :3] == pytest.approx([0.72, 0.57, 0.70], abs=0.02)
    still = np.zeros((1, 10))
    found = largest(fit, every, [(x, y)], still)
    assert slopes(found, every) == pytest.approx(1.0)

    def right(weights: Any) -> Any:
        given = (x - every.mean)[:, 0] @ weights[0].T + every.mean_y[0]
        return given.argmax(axis=1) == y[:, 0].argmax(axis=1)

    rare = y[:, 0, 1] > 0
    assert right(found).mean() > right(fit).mean() and right(found)[rare].mean() > right(fit)[rare].mean() + 0.01
    as_fitted = (x - every.mean).astype(np.float32) @ fit[0].T + every.mean_y
    assert largest(fit, every, [(x, as_fitted.astype(np.float32))], still) is fit
