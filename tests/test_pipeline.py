"""The way of the data end to end, on small networks of every kind; each artefact is checked without graphprune too."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import third_party
from models import SAMPLES, Net, Sample
from onnx import helper, numpy_helper

import graphprune
from graphprune.errors import InputError, NothingPrunableError, TargetError, UsageError, VerificationError
from graphprune.export import ExportResult
from graphprune.options import ExportOptions
from graphprune.passes.shrink import Shrink

TARGETS = ({"target_params": "0.5x"}, {"target_macs": "0.7x"})


def export(source: Path, out: Path, **options: Any) -> ExportResult:
    shapes = options.pop("input_shapes", None)
    return graphprune.load(source, input_shapes=shapes).export(out, ExportOptions(measure=None, **options))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(path: Path, feeds: dict[str, Any]) -> list[Any]:
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    return list(ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"]).run(None, feeds))


def used_names(graph: onnx.GraphProto) -> set[str]:
    """Everything that nodes read, in subgraphs too, and the outputs."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                names |= used_names(inner)
    return names


def declared(values: Any, without: set[str]) -> list[tuple[Any, ...]]:
    return [(v.name, v.type.SerializeToString(), v.doc_string) for v in values if v.name not in without]


def check_kept(source: onnx.ModelProto, artefact: onnx.ModelProto) -> None:
    """Nothing lost, nothing left over."""
    held = [{t.name for t in one.graph.initializer} for one in (source, artefact)]
    assert declared(source.graph.input, held[0]) == declared(artefact.graph.input, held[1])
    assert declared(source.graph.output, set()) == declared(artefact.graph.output, set())
    for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(source, name) == getattr(artefact, name), name
    assert {(o.domain, o.version) for o in source.opset_import} == {
        (o.domain, o.version) for o in artefact.opset_import
    }
    assert {p.key: p.value for p in source.metadata_props} == {p.key: p.value for p in artefact.metadata_props}
    assert (source.graph.name, source.graph.doc_string) == (artefact.graph.name, artefact.graph.doc_string)
    used = used_names(artefact.graph)
    assert [node.name for node in artefact.graph.node if not used & set(node.output)] == []
    assert sorted(held[1] - used) == []
    if artefact.ir_version < 4:
        assert held[1] <= {value.name for value in artefact.graph.input}
    new = [tensor for tensor in artefact.graph.initializer if tensor.name not in held[0]]
    contents = Counter((t.data_type, tuple(t.dims), numpy_helper.to_array(t).tobytes()) for t in new)
    assert [key[:2] for key, times in contents.items() if times > 1] == []


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: next(iter(target)))
@pytest.mark.parametrize("name", SAMPLES)
def test_every_network_is_cut_proven_and_whole(name, target, tmp_path):
    sample = SAMPLES[name]()
    source = sample.save(tmp_path / "source.onnx")
    before = digest(source)
    result = export(source, tmp_path / "out", **target)
    assert digest(source) == before
    assert sorted(os.listdir(tmp_path / "out")) == [
        "README.md",
        "manifest.json",
        "model.onnx",
        "plan.json",
        "report.html",
    ]

    (quantity,) = result.asked
    asked, reached = result.asked[quantity], result.reached[quantity]
    assert reached <= asked
    assert reached >= 0.99 * asked or any("granularity" in note for note in result.notes)
    assert result.verdict is not None
    assert result.verdict.passed
    assert result.verdict.max_rel <= 1e-4
    assert result.verdict.difference_to_original > 1e-3  # else the check above would show nothing

    for feeds in (sample.feeds(), sample.feeds(other=True)):
        assert third_party.check(source, tmp_path / "out", feeds) <= 1e-4
        for want, have in zip(run(source, feeds), run(result.model, feeds), strict=True):
            assert (want.shape, want.dtype) == (have.shape, have.dtype)
    artefact = onnx.load(str(result.model))
    onnx.checker.check_model(artefact, full_check=True)
    check_kept(sample.model, artefact)
    assert result.model.stat().st_size < source.stat().st_size


@pytest.mark.parametrize("name", SAMPLES)
def test_what_is_said_to_be_reached_is_what_the_artefact_has(name, tmp_path):
    sample = SAMPLES[name]()
    source = sample.save(tmp_path / "source.onnx")
    network = graphprune.load(source, input_shapes=sample.shapes)
    result = network.export(tmp_path / "out", target_params="0.6x", measure=None, verify=False)
    again = graphprune.load(result.model, input_shapes=sample.shapes).analyze()
    assert (again.params, again.macs) == (result.reached["params"], result.reached["macs"])


@pytest.mark.parametrize("name", ["plain", "shuffle", "attention", "rotary", "lstm", "opset_9", "grouped_queries"])
def test_an_artefact_can_be_pruned_again(name, tmp_path):
    sample = SAMPLES[name]()
    source = sample.save(tmp_path / "0.onnx")
    for i in range(3):
        result = export(source, tmp_path / str(i), target_params="0.85x")
        assert third_party.check(source, tmp_path / str(i), sample.feeds(other=True)) <= 1e-4
        source = result.model


@pytest.mark.parametrize("name", ["residual", "attention", "shared_zeros"])
def test_same_options_give_the_same_bytes_in_any_process(name, tmp_path):
    source = SAMPLES[name]().save(tmp_path / "source.onnx")
    export(source, tmp_path / "here", target_params="0.5x", seed=3)
    for seed in ("1", "2"):
        words = [source, "-o", tmp_path / seed, "--target-params", "0.5x", "--seed", "3", "--no-measure"]
        command = [sys.executable, "-m", "graphprune", "export", *map(str, words)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed})
    for file in ("model.onnx", "plan.json"):
        assert len({(tmp_path / folder / file).read_bytes() for folder in ("here", "1", "2")}) == 1, file


def test_a_second_export_replaces_the_first(tmp_path):
    source = models.plain().save(tmp_path / "source.onnx")
    first = export(source, tmp_path / "out", target_params="0.7x")
    second = export(source, tmp_path / "out", target_params="0.4x")
    assert second.reached["params"] < first.reached["params"]
    assert digest(second.model) == json.loads(second.manifest_path.read_text())["artefact"]["sha256"]["model.onnx"]


def test_manifest_and_results_are_plain_data(tmp_path):
    source = models.residual().save(tmp_path / "source.onnx")
    network = graphprune.load(source)
    analysis = network.analyze()
    assert json.loads(json.dumps(analysis.to_json()))["params"] == analysis.params
    result = network.export(tmp_path / "out", target_macs="0.7x", align=4, exclude=("down*",), measure=None)
    manifest = json.loads(result.manifest_path.read_text())
    assert manifest == json.loads(json.dumps(result.to_json()))
    assert list(manifest) == [
        "format", "created", "versions", "machine", "source", "artefact", "plan", "options", "input_shapes", "original",
        "asked", "reached", "groups_cut", "refusals", "verification", "calibration", "repair", "accuracy", "search",
        "max_drop", "corners", "build", "latency",
        "latency_target", "parameter_names", "notes", "seconds",
    ]  # fmt: skip
    assert manifest["source"] == {"name": "source.onnx", "sha256": {"source.onnx": digest(source)}}
    assert manifest["artefact"]["sha256"] == {"model.onnx": digest(result.model)}
    assert manifest["options"]["align"] == 4
    assert manifest["options"]["exclude"] == ["down*"]
    assert (manifest["asked"], manifest["reached"]) == (dict(result.asked), dict(result.reached))
    assert set(manifest["seconds"]) == {"load", "observe", "couple", "score", "allocate", "shrink", "verify"}
    assert str(tmp_path) not in result.manifest_path.read_text()  # nothing of the machine's folders


def test_five_lines_of_python(tmp_path):
    path = models.squeeze_excite().save(tmp_path / "rec.onnx")
    network = graphprune.load(path, input_shapes={"x": (1, 3, 8, 8)})
    assert network.analyze().governed_params == pytest.approx(1.0, abs=0.01)
    result = network.export(tmp_path / "out", target_macs="0.7x", align=2, measure=None)
    assert result.verdict is not None
    assert result.verdict.passed
    assert result.reached["macs"] <= 0.7 * result.original["macs"]
    with pytest.raises(UsageError, match="either options or single options by name"):
        network.export(tmp_path / "out", ExportOptions(target_macs="0.7x"), align=8)


def test_external_data_stay_where_they_are_and_are_hashed(tmp_path):
    sample = models.residual()
    (tmp_path / "in").mkdir()
    model = copy.deepcopy(sample.model)  # onnx.save changes what it is given
    source = tmp_path / "in" / "source.onnx"
    onnx.save(model, str(source), save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = {path.name: digest(path) for path in source.parent.iterdir()}
    result = export(source, tmp_path / "out", target_params="0.5x")
    assert (
        {path.name: digest(path) for path in source.parent.iterdir()} == before == result.manifest["source"]["sha256"]
    )
    assert third_party.check(source, tmp_path / "out", sample.feeds()) <= 1e-4


# What may be cut


def test_excluded_tensors_stay_byte_for_byte(tmp_path):
    sample = models.residual()
    source = sample.save(tmp_path / "source.onnx")
    options = {"target_params": "0.85x", "exclude": ("stem.*", "b2.weight")}
    result = export(source, tmp_path / "out", **options)
    before, after = ({t.name: t for t in onnx.load(str(p)).graph.initializer} for p in (source, result.model))
    excluded = [name for name in before if name.startswith("stem.")]
    assert len(excluded) == 5
    for name in (*excluded, "b2.weight"):
        assert before[name].dims == after[name].dims
        assert numpy_helper.to_array(before[name]).tobytes() == numpy_helper.to_array(after[name]).tobytes()
    assert all(not one["tensor"].startswith("stem.") for g in plan_of(result)["groups"] for one in g["members"])


def test_include_cuts_nothing_else(tmp_path):
    source = models.residual().save(tmp_path / "source.onnx")
    result = export(source, tmp_path / "out", target_params="0.8x", include=("b1*",))
    assert {name for g in result.manifest["groups_cut"] for name in g["producers"]} <= {
        "b1.conv.weight", "stem.conv.weight", "a2.weight",
    }  # fmt: skip


def test_names_with_brackets_are_names_before_they_are_patterns(tmp_path):
    net = Net()
    x = net.linear(net.input("x", ["batch", 8]), "a[0]", 8, 16)
    net.linear(net.op("Relu", net.linear(x, "b[1]", 16, 24)), "c", 24, 5, out="y")
    path = Sample(net.build({"y": None}), {"x": (1, 8)}).save(tmp_path / "source.onnx")
    result = export(path, tmp_path / "out", target_params="0.8x", exclude=("a[0].weight",))
    assert {m["tensor"] for g in plan_of(result)["groups"] for m in g["members"]} == {
        "b[1].weight",
        "b[1].bias",
        "c.weight",
    }


def test_inexact_groups_need_stat_and_do_not_verify(tmp_path):
    source = models.stat_only().save(tmp_path / "source.onnx")
    with pytest.raises(NothingPrunableError, match=r"1 inexact group\(s\) alone .* --stat --no-verify"):
        export(source, tmp_path / "out", target_params="0.5x")
    with pytest.raises(VerificationError, match=r"g000: a statistic .* --no-verify writes the network as it is"):
        export(source, tmp_path / "out", target_params="0.5x", stat=True)
    assert not (tmp_path / "out").exists()
    result = export(source, tmp_path / "out", target_params="0.5x", stat=True, verify=False)
    assert result.reached["params"] <= 0.5 * result.original["params"]
    assert [group["exact"] for group in plan_of(result)["groups"]] == [False]


def test_every_axis_is_seen_from_outside(tmp_path):
    source = models.nothing().save(tmp_path / "source.onnx")
    with pytest.raises(NothingPrunableError, match="every axis of its weights reaches an input or an output"):
        export(source, tmp_path / "out", target_params="0.5x")
    assert graphprune.load(source).analyze().notes[-1].startswith("nothing can be pruned: every axis")


def test_all_excluded(tmp_path):
    source = models.plain().save(tmp_path / "source.onnx")
    with pytest.raises(NothingPrunableError, match="--include and --exclude leave none"):
        export(source, tmp_path / "out", target_params="0.5x", exclude=("*",))


# Targets


def test_both_targets_and_absolute_numbers(tmp_path):
    source = models.residual().save(tmp_path / "source.onnx")
    result = export(source, tmp_path / "out", target_params="8k", target_macs="0.5x")
    assert dict(result.asked) == {"params": 8000, "macs": result.original["macs"] // 2}
    assert all(result.reached[key] <= result.asked[key] for key in result.asked)


def test_a_target_below_the_floors(tmp_path):
    source = models.plain().save(tmp_path / "source.onnx")
    with pytest.raises(TargetError, match="the lowest reachable is"):
        export(source, tmp_path / "out", target_params="0.001x")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("align", [4, 8])
def test_align_leaves_multiples(align, tmp_path):
    source = models.residual().save(tmp_path / "source.onnx")
    result = export(source, tmp_path / "out", target_params="0.6x", align=align)
    for group in plan_of(result)["groups"]:
        assert len(group["kept"]) % align == 0


def test_the_floor_holds(tmp_path):
    source = models.residual().save(tmp_path / "source.onnx")
    result = export(source, tmp_path / "out", target_params="0.6x", floor=0.5)
    assert all(len(group["kept"]) >= 0.5 * group["size"] for group in plan_of(result)["groups"])


# Inputs


def one_layer_more(shape: Any) -> Sample:
    net = Net()
    x = net.input("x", shape)
    net.linear(net.op("Relu", net.linear(x, "a", 4, 24)), "head", 24, 3, out="y")
    return Sample(net.build({"y": None}), {"x": (1, 4)}, {"x": (5, 4)})


@pytest.mark.parametrize("dim", [-1, "", "?", None, "n"])
def test_unknown_dimensions_however_they_are_written(dim, tmp_path):
    sample = one_layer_more([1 if dim == -1 else dim, 4])
    if dim == -1:
        sample.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    source = sample.save(tmp_path / "source.onnx")
    result = export(source, tmp_path / "out", target_params="0.6x")
    assert third_party.check(source, tmp_path / "out", sample.feeds(other=dim != -1)) <= 1e-6
    check_kept(sample.model, onnx.load(str(result.model)))


def test_an_input_without_a_shape_needs_one(tmp_path):
    source = one_layer_more(None).save(tmp_path / "source.onnx")
    with pytest.raises(InputError, match=r"input 'x' declares no shape; give one with --input-shapes x:"):
        graphprune.load(source)


def test_an_input_without_a_shape_and_given_one(tmp_path):
    sample = one_layer_more(None)
    source = sample.save(tmp_path / "source.onnx")
    result = export(source, tmp_path / "out", target_params="0.6x", input_shapes={"x": (2, 4)})
    assert third_party.check(source, tmp_path / "out", sample.feeds()) <= 1e-6
    assert not onnx.load(str(result.model)).graph.input[0].type.tensor_type.HasField("shape")


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ({"x": (1, 3, 8)}, r"input 'x' is declared as \?x3x8x8, which 1x3x8 does not fit"),
        ({"x": (1, 4, 8, 8)}, r"declared as \?x3x8x8, which 1x4x8x8 does not fit"),
        ({"x": ()}, r"declared as \?x3x8x8, which a scalar does not fit"),
        ({"image": (1, 3, 8, 8)}, "the model has no input 'image'; it has 'x'"),
    ],
)
def test_shapes_that_do_not_fit(shapes, text, tmp_path):
    with pytest.raises(InputError, match=text):
        graphprune.load(models.plain().save(tmp_path / "source.onnx"), input_shapes=shapes)


def test_a_shape_without_a_name_for_several_inputs(tmp_path):
    with pytest.raises(InputError, match=r"the model has 5 inputs \(left, right, strength, row, mask\): write"):
        graphprune.load(models.many().save(tmp_path / "source.onnx"), input_shapes={None: (1, 3, 8, 8)})


def test_a_size_that_the_shape_does_not_tell_is_found_by_trying(tmp_path):
    source = models.forced_height().save(tmp_path / "source.onnx")
    assert graphprune.load(source).program.examples["x"].shape[2] in range(32, 64)
    with pytest.raises(InputError, match=r"source.onnx': onnxruntime cannot run it: .*Squeeze node") as caught:
        graphprune.load(source, input_shapes={"x": (1, 3, 224, 32)})
    assert "in memory" not in str(caught.value)


def test_no_size_is_blamed_where_the_network_cannot_be_loaded(tmp_path):
    net = Net()
    x = net.op("Mystery", net.input("x", ["batch", "length", 4]), domain="my.own")
    net.linear(x, "a", 4, 8, out="y")
    source = Sample(net.build({"y": None}), {}).save(tmp_path / "source.onnx")
    with pytest.raises(InputError, match=r"^'.*source.onnx': .*my.own:Mystery.* is not a registered function"):
        graphprune.load(source)


def test_no_size_runs(tmp_path):
    net = Net()
    x = net.op("Reshape", net.input("x", ["batch", "length", 4]), net.ints("target", 1, 601, 4))
    net.linear(net.linear(x, "a", 4, 8), "b", 8, 3, out="y")
    source = Sample(net.build({"y": None}), {}).save(tmp_path / "source.onnx")
    with pytest.raises(InputError, match=r"no sizes tried for the unknown dimensions of x:\?x\?x4 run; give --input-"):
        graphprune.load(source)
    assert graphprune.load(source, input_shapes={"x": (1, 601, 4)}).analyze().groups


def test_an_input_that_is_no_tensor(tmp_path):
    net = Net()
    net.inputs.append(helper.make_tensor_sequence_value_info("parts", onnx.TensorProto.FLOAT, ["batch", 4]))
    net.linear(net.op("ConcatFromSequence", "parts", axis=0), "a", 4, 8, out="y")
    with pytest.raises(InputError, match="input 'parts' is a sequence; only tensors can be fed"):
        graphprune.load(Sample(net.build({"y": None}), {}).save(tmp_path / "source.onnx"))


def test_given_examples_are_used(tmp_path):
    source = models.attention().save(tmp_path / "source.onnx")
    ids = np.full((2, 5), 29, dtype=np.int64)
    network = graphprune.load(source, inputs={"ids": ids})
    assert network.program.examples["ids"] is ids
    assert network.export(tmp_path / "out", target_params="0.7x", measure=None).verdict.passed
    with pytest.raises(InputError, match=r"source.onnx': input 'ids' takes int64\[.*\], but float64\[2,5\] was given"):
        graphprune.load(source, inputs={"ids": ids.astype(np.float64)})
    with pytest.raises(InputError, match="the model has no input 'tokens'; it has 'ids'"):
        graphprune.load(source, inputs={"tokens": ids})


def test_names_that_the_observer_would_choose_are_the_users(tmp_path):
    net = Net()
    x = net.op("Relu", net.linear(net.input("x", ["batch", 4]), "a", 4, 8, out="h"), out="h/observed_shape")
    net.linear(x, "b", 8, 3, out="y")
    source = Sample(net.build({"y": None}), {}).save(tmp_path / "source.onnx")
    assert len(graphprune.load(source).analyze().groups) == 1


# Failures leave nothing behind


def broken_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that is wrong: the wrong units of every group are cut."""
    real = Shrink.__call__

    def wrong(self: Shrink, grouping: Any) -> Any:
        return real(Shrink({name: mask[::-1] for name, mask in self.keep.items()}), grouping)

    monkeypatch.setattr(Shrink, "__call__", wrong)


def test_a_wrong_cut_is_not_written(tmp_path, monkeypatch):
    source = models.residual().save(tmp_path / "source.onnx")
    broken_shrink(monkeypatch)
    with pytest.raises(VerificationError, match=r"the cut network differs from its masked original by .* in 'gemm|'y'"):
        export(source, tmp_path / "new", target_params="0.5x")
    assert os.listdir(tmp_path) == ["source.onnx"]
    (tmp_path / "old").mkdir()
    with pytest.raises(VerificationError):
        export(source, tmp_path / "old", target_params="0.5x")
    assert os.listdir(tmp_path / "old") == []


def test_an_unsound_cut_is_a_failed_verification(tmp_path, monkeypatch):
    source = models.residual().save(tmp_path / "source.onnx")
    real = Shrink.__call__

    def unsound(self: Shrink, grouping: Any) -> Any:
        model = real(self, grouping)
        nodes = list(model.graph)
        nodes[0].outputs[0].name = nodes[1].outputs[0].name
        return model

    monkeypatch.setattr(Shrink, "__call__", unsound)
    for verify in (True, False):  # what cannot be read is never written
        with pytest.raises(VerificationError, match=r"'model.onnx': two values of the graph .* Nothing was written"):
            export(source, tmp_path / "out", target_params="0.5x", verify=verify)
        assert os.listdir(tmp_path) == ["source.onnx"]


@pytest.mark.parametrize("file", ["plan.json", "manifest.json", "model.onnx"])
def test_a_folder_that_has_a_files_name(file, tmp_path):
    source = models.plain().save(tmp_path / "source.onnx")
    (tmp_path / "out" / file).mkdir(parents=True)
    with pytest.raises(UsageError, match=rf"{file}': it is a folder; choose another output folder"):
        export(source, tmp_path / "out", target_params="0.5x")
    assert os.listdir(tmp_path / "out") == [file]


@pytest.mark.parametrize("link", [False, True])
def test_the_source_is_never_overwritten(link, tmp_path):
    source = models.plain().save(tmp_path / "model.onnx")
    if link:
        (tmp_path / "link.onnx").symlink_to("model.onnx")
    before = digest(source)
    with pytest.raises(UsageError, match=r"model.onnx' would overwrite the source; choose another output folder"):
        export(tmp_path / "link.onnx" if link else source, tmp_path, target_params="0.5x")
    assert digest(source) == before


def test_external_data_are_never_overwritten(tmp_path):
    model = copy.deepcopy(models.plain().model)
    source = tmp_path / "source.onnx"
    onnx.save(model, str(source), save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    with pytest.raises(UsageError, match=r"model.onnx.data' would overwrite the source"):
        export(source, tmp_path, target_params="0.5x")


@pytest.mark.parametrize("what", ["model.onnx", "plan.json"])
def test_no_space(what, tmp_path, monkeypatch):
    source = models.plain().save(tmp_path / "source.onnx")

    def full(*_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if what == "model.onnx":
        monkeypatch.setattr("graphprune.ir.store._write_proto", full)
    else:
        monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises((UsageError, OSError), match=r"(?i)no space left on"):
        export(source, tmp_path / "out", target_params="0.5x")
    assert os.listdir(tmp_path) == ["source.onnx"]


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    source = models.plain().save(tmp_path / "source.onnx")

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("graphprune.export.verify_program", stop)
    with pytest.raises(KeyboardInterrupt):
        export(source, tmp_path / "a" / "b", target_params="0.5x")
    assert os.listdir(tmp_path) == ["source.onnx"]


def plan_of(result: ExportResult) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(result.plan_path.read_text())
    return document


# A real network


def test_the_classifier_of_an_ocr_package(tmp_path):
    ocr = pytest.importorskip("models_zoo.ocr")
    try:
        source, shapes = ocr.classifier()
    except UsageError as missing:
        pytest.skip(str(missing))
    before = digest(source)
    for folder, target in zip(("params", "macs"), TARGETS, strict=True):
        result = export(source, tmp_path / folder, input_shapes=shapes, **target)
        (quantity,) = result.asked
        assert 0.99 * result.asked[quantity] <= result.reached[quantity] <= result.asked[quantity]
        for batch in (1, 3):
            feeds = {"x": np.random.default_rng(batch).standard_normal((batch, 3, 48, 192)).astype(np.float32)}
            assert third_party.check(source, tmp_path / folder, feeds) <= 1e-4
        check_kept(onnx.load(str(source)), onnx.load(str(result.model)))
    assert digest(source) == before
