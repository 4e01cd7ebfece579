"""What verification silences, what it does where float32 or a random input says nothing, and what the verdict tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
import third_party
from onnx import TensorProto, helper, numpy_helper
from onnx_files import model_of, save, value, weights
from onnxruntime.transformers.float16 import convert_float_to_float16

import graphprune
from graphprune.backends import reference
from graphprune.backends.reference import run_float64
from graphprune.errors import RunTimeoutError, VerificationError
from graphprune.export import ExportResult
from graphprune.pipeline import verify_files

node = helper.make_node


def network(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    folder: Path,
    *outputs: onnx.ValueInfoProto,
    **more: Any,
) -> Path:
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    return save(model_of(nodes, held, outputs=[value("y", "batch", 16), *outputs], **more), folder, "source.onnx")


def halved(source: Path, out: Path, **inputs: Any) -> ExportResult:
    return graphprune.load(source, **inputs).export(out, target_params="0.6x", measure=None)


HIDDEN = [node("MatMul", ["x", "a"], ["h0"], "m0"), node("Add", ["h0", "bias"], ["h"], "add")]
CONSTANTS = {"a": weights(32, 24), "bias": weights(24, seed=1)}
DIRECT = [
    node("MatMul", ["h", "shared"], ["y1"], "m1"),
    node("Relu", ["bias"], ["r"], "relu"),
    node("MatMul", ["r", "shared"], ["fixed"], "m2"),
    node("Add", ["y1", "fixed"], ["y"], "sum"),
]
TURNED = [
    node("Transpose", ["shared"], ["t"], "turn", perm=[1, 0]),
    node("MatMul", ["h", "t"], ["y1"], "m1"),
    node("Abs", ["shared"], ["r"], "abs"),
    node("ReduceSum", ["r"], ["fixed"], "total", keepdims=0),
    node("Add", ["y1", "fixed"], ["y"], "sum"),
]


@pytest.mark.parametrize("given_out", [False, True])
@pytest.mark.parametrize(("nodes", "shape"), [(DIRECT, (24, 16)), (TURNED, (16, 24))])
def test_what_is_computed_from_a_constant_is_computed_from_the_uncut_one(nodes, shape, given_out, tmp_path):
    outputs = [value("fixed", *(() if nodes is TURNED else (16,)))] if given_out else []
    source = network(HIDDEN + nodes, CONSTANTS | {"shared": weights(*shape, seed=2)}, tmp_path, *outputs)
    result = halved(source, tmp_path / "out")
    assert result.reached["params"] <= 0.6 * result.original["params"]
    feeds = {"x": np.random.default_rng(5).standard_normal((4, 32)).astype(np.float32)}
    assert third_party.check(source, tmp_path / "out", feeds) <= 1e-6
    (group,) = json.loads(result.plan_path.read_text())["groups"]
    assert {(one["tensor"], one["role"]) for one in group["members"]} >= {("shared", "rider"), ("h", "contracted")}


def test_a_rearranged_constant_that_others_are_computed_from_stays_whole(tmp_path):
    nodes = [
        *TURNED[:2],
        node("Relu", ["bias"], ["r"], "relu"),
        node("MatMul", ["r", "t"], ["fixed"], "m2"),
        node("Add", ["y1", "fixed"], ["y"], "sum"),
    ]
    source = network(HIDDEN + nodes, CONSTANTS | {"shared": weights(16, 24)}, tmp_path, value("fixed", 16))
    loaded = graphprune.load(source)
    assert not loaded.grouping.groups
    assert "a constant is computed from it" in str(loaded.explain("shared", 1))


def test_a_vector_is_silenced_for_one_of_its_uses_alone(tmp_path):
    nodes = [
        node("MatMul", ["x", "a"], ["h"], "m0"),
        node("Transpose", ["h"], ["t"], "turn", perm=[1, 0]),
        node("MatMul", ["v", "t"], ["z"], "m1"),
        node("MatMul", ["x", "b"], ["g"], "m2"),
        node("Mul", ["g", "v"], ["scaled"], "scale"),
        node("MatMul", ["scaled", "c"], ["y"], "m3"),
    ]
    held = {"a": weights(32, 24), "v": weights(24, seed=1), "b": weights(32, 24, seed=2), "c": weights(24, 16, seed=3)}
    result = halved(network(nodes, held, tmp_path, value("z", "batch")), tmp_path / "out")
    assert len(json.loads(result.plan_path.read_text())["groups"]) == 2
    feeds = {"x": weights(4, 32, seed=4)}
    assert third_party.check(tmp_path / "source.onnx", tmp_path / "out", feeds) <= 1e-6


def cancelling(folder: Path, **held: np.ndarray) -> Path:
    """A difference of two nearly equal sums: float32 loses half of its digits."""
    nodes = [
        node("MatMul", ["x", "a"], ["h"], "m0"),
        node("Relu", ["h"], ["r"], "relu"),
        node("MatMul", ["r", "w"], ["z1"], "m1"),
        node("MatMul", ["r", "w2"], ["z2"], "m2"),
        node("Sub", ["z1", "z2"], ["y"], "sub"),
    ]
    w = weights(512, 16)
    constants = {"a": weights(32, 512), "w": w, "w2": (w * np.float32(1.0001)).astype(np.float32)}
    return network(nodes, constants | held, folder)


def test_noise_of_float32_is_decided_in_float64(tmp_path):
    source = cancelling(tmp_path)
    result = halved(source, tmp_path / "out")
    said = result.manifest["verification"]
    assert said["dtype"] == "float64"
    assert said["float32_rel"] > 1e-4 > 1e-7 > said["max_rel"]
    assert any("float32 differed by" in note for note in said["notes"])
    again = verify_files(source, result.model, result.plan_path)
    assert (again.passed, again.dtype) == (True, "float64")

    wrong = onnx.load(str(result.model))
    (held,) = [one for one in wrong.graph.initializer if one.name == "w"]
    held.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held) * np.float32(1 + 1e-6), "w"))
    verdict = verify_files(source, save(wrong, tmp_path, "wrong.onnx"), result.plan_path)
    assert verdict.max_rel < 1e-2  # near enough to be taken for noise
    assert not verdict.passed
    assert any("it differs by" in note for note in verdict.notes)


def test_where_float64_cannot_decide_float32_does(tmp_path, monkeypatch):
    source = cancelling(tmp_path)

    def slow(*args: Any, **options: Any) -> Any:
        raise RunTimeoutError("the float64 reference is too slow for this network")

    monkeypatch.setattr(reference, "run_float64", slow)
    with pytest.raises(VerificationError, match=r"float64 cannot decide: .*too slow.*\. Nothing was written"):
        halved(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_reference_stops_in_time(tmp_path):
    import onnx_ir as ir

    model = ir.load(models.plain().save(tmp_path / "m.onnx"))
    feeds = {v.name or "": np.zeros((1, 3, 32, 32), np.float32) for v in model.graph.inputs}
    with pytest.raises(RunTimeoutError, match="too slow"):
        run_float64(model, feeds, until=0.0)


def choosy(folder: Path, size: int) -> Path:
    """A network that fails on its inputs unless ``size`` conditions all hold."""
    branches = {}
    for name, made in (
        ("then_branch", node("Identity", ["z"], ["yes"])),
        ("else_branch", node("Gather", ["z", "far"], ["no"], axis=0)),
    ):
        branches[name] = helper.make_graph([made], name, [], [value(made.output[0], None, 16)])
    nodes = [
        *HIDDEN,
        node("MatMul", ["h", "w"], ["z"], "m1"),
        node("Cast", ["conditions"], ["numbers"], "cast", to=TensorProto.INT32),
        node("ReduceMin", ["numbers"], ["least"], "least", keepdims=0),
        node("Cast", ["least"], ["all"], "back", to=TensorProto.BOOL),
        node("If", ["all"], ["y"], "choose", **branches),
    ]
    inputs = [value("x", "batch", 32), helper.make_tensor_value_info("conditions", TensorProto.BOOL, [size])]
    held = CONSTANTS | {"w": weights(24, 16, seed=2), "far": np.array([999])}
    return network(nodes, held, folder, inputs=inputs)


@pytest.mark.parametrize(("size", "samples"), [(1, 5), (40, 2)])
def test_a_random_input_on_which_the_original_fails_is_replaced(size, samples, tmp_path):
    example = {"x": weights(4, 32), "conditions": np.ones(size, dtype=np.bool_)}
    result = halved(choosy(tmp_path, size), tmp_path / "out", inputs=example)
    assert result.verdict is not None
    assert result.verdict.passed
    assert result.verdict.samples == samples  # the example, three random ones, and one of another size
    (note,) = result.verdict.notes
    assert "the original itself does not run on" in note
    assert ("3 could not be replaced" in note) == (size == 40)


def test_a_network_that_gives_nothing_but_nan_is_not_called_equal(tmp_path):
    net = models.Net()
    hidden = net.op("Relu", net.linear(net.op("Log", net.input("x", ["batch", 8])), "a", 8, 8))
    net.linear(hidden, "b", 8, 3, out="y")
    path = save(net.build({"y": ["batch", 3]}), tmp_path)
    with pytest.raises(VerificationError, match="nothing could be compared"):
        graphprune.load(path).export(tmp_path / "out", target_params="0.6x", measure=None)


def test_outputs_whose_size_depends_on_the_contents(tmp_path):
    net = models.Net()
    hidden = net.op("Relu", net.linear(net.input("x", ["batch", 8]), "a", 8, 16))
    last = net.op("Relu", net.linear(hidden, "b", 16, 12))
    net.op("NonZero", last, out="y")
    path = save(net.build({"y": [2, None]}, elem=TensorProto.INT64), tmp_path)
    data = [{"x": np.random.default_rng(i).standard_normal((1, 8)).astype(np.float32)} for i in range(20)]
    result = graphprune.load(path, input_shapes={"x": (4, 8)}).export(
        tmp_path / "out", target_params="0.5x", measure=None, calib=data
    )
    assert result.verdict.passed and any("depends on the contents" in note for note in result.verdict.notes)
    json.loads(result.manifest_path.read_text())


@pytest.mark.parametrize("name", ["attention", "rotary", "branches"])
def test_masks_have_the_type_of_values_that_declare_none(name: str, tmp_path: Path) -> None:
    sample = models.SAMPLES[name]()
    model = convert_float_to_float16(sample.model, keep_io_types=False, disable_shape_infer=True)
    del model.graph.value_info[:]
    half = models.Sample(model, sample.shapes, sample.other)
    network = graphprune.load(half.save(tmp_path / "m.onnx"), inputs=half.feeds())
    for group in network.grouping.groups:
        if group.exact and group.size > 3:
            asked = {"include": [one.tensor for one in group.members if one.role == "producer"][:1] or [group.id]}
            result = network.export(
                tmp_path / "out", target_params="0.97x", allocation="uniform", measure=None, **asked
            )
            assert result.verdict is not None and result.verdict.passed
