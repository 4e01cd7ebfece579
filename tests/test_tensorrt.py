"""The tensorrt backend: settings, preparation, casting, engines of TensorRT-RTX, and what is refused.

There is no GPU where these tests run: sessions are run against a stand-in for the engine and for CUDA's memory.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.backends.base import Availability, BackendOptions, get_backend
from graphprune.backends.onnxruntime import run_model
from graphprune.backends.precision import narrow
from graphprune.backends.tensorrt import TensorRTBackend, check_engine
from graphprune.backends.tensorrt_graph import prepare
from graphprune.backends.tensorrt_network import parser_message, plain
from graphprune.backends.tensorrt_options import Profile, TensorRTOptions
from graphprune.backends.tensorrt_session import TensorRTSession, cuda_devices, layer_times
from graphprune.errors import InputError, UsageError
from graphprune.ir.store import write_onnx

pytest.importorskip("onnx_graphsurgeon", reason="onnx-graphsurgeon is not installed")


def _rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed", exc_type=ImportError)


def _save(path: Path, nodes: list[Any], constants: dict[str, np.ndarray], shape: Any, result: Any, **more: Any) -> Path:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", more.pop("kind", TensorProto.FLOAT), result)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"author": "somebody"})
    onnx.save(model, path, **more)
    return path


def _net(path: Path, batch: Any = 1, **more: Any) -> Path:
    """Conv, Relu, mean over computed axes, Gemm: 3 channels to 4 numbers."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Add", ["two", "zero_one"], ["axes"], "axes"),
        helper.make_node("ReduceMean", ["r", "axes"], ["m"], "mean", keepdims=0),
        helper.make_node("Gemm", ["m", "v", "u"], ["y"], "gemm", transB=1),
    ]
    constants = {
        "w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(8).astype(np.float32),
        "two": np.array([2]),
        "zero_one": np.array([0, 1]),
        "v": rng.standard_normal((4, 8)).astype(np.float32),
        "u": rng.standard_normal(4).astype(np.float32),
    }
    return _save(path, nodes, constants, [batch, 3, 8, 8], [batch, 4], **more)


# ------------------------------------------------------------------------------------------------------------ settings


def test_settings_are_read_typed_and_written_back() -> None:
    given = (
        ("min-shapes", "a:b:1x3,y:4,z:scalar"),
        ("opt_shapes", "2x3"),
        ("precision", "fp16"),
        ("keep-fp32", "*norm*,Softmax"),
        ("compute-capability", "sm86,SM89+sm120"),
        ("workspace", "512m"),
        ("optimization-level", "4"),
        ("trust-engine", "true"),
    )
    options = TensorRTOptions.parse(given)
    assert options.min_shapes == {"a:b": (1, 3), "y": (4,), "z": ()}
    assert options.opt_shapes == {"": (2, 3)}
    assert options.keep_fp32 == ("*norm*", "Softmax")
    assert options.compute_capability == (("sm86",), ("sm89", "sm120"))
    assert (options.workspace, options.optimization_level, options.trust_engine) == (512 << 20, 4, True)
    assert TensorRTOptions.parse(options.settings()) == options
    assert TensorRTOptions().settings() == ()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("precison", "fp16", "has no option 'precison': did you mean 'precision'"),
        ("precision", "int8", "precision=int8"),
        ("opt-shapes", "x:1x-3", "cannot read 'x:1x-3'"),
        ("opt-shapes", "x:1,x:2", "x is given twice"),
        ("compute-capability", "ampere", "'ampere' is none"),
        ("compute-capability", "sm86,sm86", "given twice"),
        ("workspace", "lots", "write a number of bytes"),
        ("optimization-level", "6", "levels 0 to 5"),
        ("trust-engine", "perhaps", "write true or false"),
        ("runtime", "cuda", "runtime=cuda"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, value: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        TensorRTOptions.parse(((name, value),))
    assert said in str(caught.value)


def test_profiles_follow_what_is_given() -> None:
    options = TensorRTOptions(opt_shapes={"x": (2, 3)})
    assert options.profile_of("x", (-1, 3), "m") == Profile((2, 3), (2, 3), (2, 3))
    assert replace(options, max_shapes={"x": (8, 3)}).profile_of("x", (-1, 3), "m") == Profile((2, 3), (2, 3), (8, 3))
    only = TensorRTOptions(min_shapes={"x": (1, 3)}, max_shapes={"": (8, 3)})
    assert only.profile_of("x", (-1, 3), "m", alone=True) == Profile((1, 3), (8, 3), (8, 3))
    assert options.profile_of("x", (2, 3), "m") is None  # nothing dynamic
    for shapes, said in (
        (options, "does not fit"),
        (TensorRTOptions(), "give --opt-shapes x:1x4"),
        (TensorRTOptions(min_shapes={"x": (3, 4)}, opt_shapes={"x": (2, 4)}), "not in order"),
    ):
        with pytest.raises(UsageError, match=said):
            shapes.profile_of("x", (-1, 4), "m")
    with pytest.raises(UsageError, match="there is no input 'x'; the inputs are 'z'"):
        options.check_names(["z"], "m")


# --------------------------------------------------------------------------------------------------------- preparation


def test_preparation_folds_keeps_names_metadata_and_the_source(tmp_path: Path) -> None:
    source = _net(tmp_path / "net.onnx", save_as_external_data=True, size_threshold=16, location="net.data")
    before = {path.name: hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.iterdir()}
    prepared = prepare(source)
    assert {path.name: hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.iterdir()} == before
    assert [node.name for node in prepared.graph] == ["conv", "relu", "mean", "gemm"]
    assert prepared.graph.initializers["axes"].const_value.numpy().tolist() == [2, 3]
    assert prepared.metadata_props == {"author": "somebody"}
    assert prepared.graph.name == "net"
    write_onnx(prepared, tmp_path / "prepared.onnx")
    x = {"x": np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)}
    np.testing.assert_allclose(
        run_model(tmp_path / "prepared.onnx", x)["y"], run_model(source, x)["y"], rtol=1e-5, atol=1e-6
    )


def test_a_part_of_a_shape_is_not_folded_to_the_whole_shape(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], "same", start=1, end=2),
        helper.make_node("Expand", ["one", "s"], ["e"], "same"),
        helper.make_node("Add", ["x", "e"], ["y"], "same"),
    ]
    source = _save(tmp_path / "m.onnx", nodes, {"one": np.ones(1, np.float32)}, [2, 3], [2, 3])
    prepared = prepare(source)
    assert len({node.name for node in prepared.graph}) == len(list(prepared.graph)) == 3
    write_onnx(prepared, tmp_path / "p.onnx")
    x = np.zeros((2, 3), np.float32)
    assert run_model(tmp_path / "p.onnx", {"x": x})["y"].tolist() == [[1.0] * 3] * 2


def test_int32_biases_of_quantised_networks_become_float32(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs"], ["xq"], "q"),
        helper.make_node("DequantizeLinear", ["xq", "xs"], ["xd"], "dq"),
        helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], "bias", axis=0),
        helper.make_node("Add", ["xd", "bd"], ["y"], "add"),
    ]
    constants = {
        "xs": np.array(0.5, np.float32),
        "b": np.array([[3, 4], [-100000, 7]], np.int32),
        "bs": np.array([0.25, 2.0], np.float32),
        "bz": np.zeros(2, np.int32),
    }
    source = _save(tmp_path / "m.onnx", nodes, constants, [2, 2], [2, 2])
    prepared = prepare(source)
    assert [node.name for node in prepared.graph] == ["q", "dq", "add"]
    write_onnx(prepared, tmp_path / "p.onnx")
    x = {"x": np.array([[1, 2], [3, 4]], np.float32)}
    np.testing.assert_array_equal(run_model(tmp_path / "p.onnx", x)["y"], run_model(source, x)["y"])


# ------------------------------------------------------------------------------------------------------------- casting


def _types(model: ir.Model) -> dict[str, str]:
    return {node.name or "": node.outputs[0].dtype.name for node in model.graph if node.outputs[0].dtype is not None}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_casting_narrows_weights_and_values_but_not_inputs_and_outputs(tmp_path: Path, precision: str) -> None:
    source = _net(tmp_path / "net.onnx")
    model = prepare(source)
    done = narrow(model, precision)
    thin = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}[precision]
    assert (done.narrowed, dict(done.kept)) == (4, {})
    assert [value.dtype for value in (*model.graph.inputs, *model.graph.outputs)] == [ir.DataType.FLOAT] * 2
    assert [value.name for value in model.graph.outputs] == ["y"]
    floats = {value.dtype for value in model.graph.initializers.values()} - {ir.DataType.INT64}
    assert floats == {thin}
    assert _types(model)["conv"] == thin.name
    write_onnx(model, tmp_path / "thin.onnx")
    if precision == "fp16":  # onnxruntime has no bfloat16 convolution on the CPU
        x = {"x": np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)}
        wide, narrowed = run_model(source, x)["y"], run_model(tmp_path / "thin.onnx", x)["y"]
        assert 0 < np.abs(wide - narrowed).max() < 0.02 * np.abs(wide).max()


def test_what_the_narrow_type_cannot_hold_stays(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "big"], ["a"], "overflow"),
        helper.make_node("Add", ["a", "tiny"], ["b"], "vanish"),
        helper.make_node("Add", ["b", "plain"], ["c"], "plain"),
        helper.make_node("Softmax", ["c"], ["y"], "softmax"),
    ]
    constants = {
        "big": np.array([1.0, 7e4], np.float32),
        "tiny": np.array(1e-12, np.float32),
        "plain": np.ones(2, np.float32),
    }
    model = prepare(_save(tmp_path / "m.onnx", nodes, constants, [1, 2], [1, 2]))
    done = narrow(model, "fp16", ["soft*"])
    assert done.narrowed == 1
    assert dict(done.kept) == {
        "overflow": "constant 'big' holds 7e+04, and fp16 ends at 6.55e+04",
        "vanish": "constant 'tiny', 1e-12, would become 0",
        "softmax": "asked for",
    }
    assert {name: kind for name, kind in _types(model).items() if "/" not in name} == {
        "overflow": "FLOAT", "vanish": "FLOAT", "plain": "FLOAT16", "softmax": "FLOAT",
    }  # fmt: skip
    write_onnx(model, tmp_path / "n.onnx")
    run_model(tmp_path / "n.onnx", {"x": np.ones((1, 2), np.float32)})  # every operand has the type of its operator
    model = prepare(_save(tmp_path / "m.onnx", nodes, constants, [1, 2], [1, 2]))
    assert narrow(model, "bf16").narrowed == 4  # as wide a range as float32
    with pytest.raises(UsageError, match="'nothing' fits no node"):
        narrow(model, "fp16", ["nothing"])


def test_sizes_and_bodies_are_not_narrowed(tmp_path: Path) -> None:
    """2049 is no float16; a body takes a narrowed value from outside."""
    then = helper.make_graph(
        [helper.make_node("Neg", ["r"], ["t"], "neg")], "t", [], [helper.make_tensor_value_info("t", 1, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Abs", ["r"], ["o"], "abs")], "o", [], [helper.make_tensor_value_info("o", 1, None)]
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("Shape", ["x"], ["s"], "shape"),
        helper.make_node("Cast", ["s"], ["f"], "to_float", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "half"], ["h"], "halve"),
        helper.make_node("Cast", ["h"], ["n"], "to_int", to=TensorProto.INT64),
        helper.make_node("Greater", ["n", "limit"], ["big"], "big"),
        helper.make_node("Squeeze", ["big"], ["flag"], "flag"),
        helper.make_node("If", ["flag"], ["i"], "if", then_branch=then, else_branch=other),
        helper.make_node("Add", ["i", "half"], ["y"], "add"),
    ]
    constants = {"half": np.array([0.5], np.float32), "limit": np.array([2048])}
    source = _save(tmp_path / "m.onnx", nodes, constants, ["n"], ["n"])
    model = prepare(source)
    done = narrow(model, "fp16")
    assert dict(done.kept) == {"to_int": "it computes sizes", "halve": "it computes sizes"}
    assert _types(model)["relu"] == _types(model)["add"] == "FLOAT16"
    write_onnx(model, tmp_path / "n.onnx")
    for size in (4098, 4096):
        x = {"x": np.ones(size, np.float32)}
        np.testing.assert_array_equal(run_model(tmp_path / "n.onnx", x)["y"], run_model(source, x)["y"])


# ------------------------------------------------------------------------------------------------------------- engines


def _build(model: Path, folder: Path, **settings: str) -> Any:
    return get_backend("tensorrt").build(model, folder, BackendOptions(settings=tuple(settings.items())))


def test_engines_are_built_for_every_target_and_described(tmp_path: Path) -> None:
    _rtx()
    source = _net(tmp_path / "net.onnx", batch="batch")
    settings = {"precision": "fp16", "compute_capability": "sm86,sm89+sm120", "opt_shapes": "x:2x3x8x8"}
    built = _build(source, tmp_path / "out", max_shapes="4x3x8x8", **settings)
    assert [path.name for path in built.files] == ["model.sm86.engine", "model.sm89+sm120.engine", "engine.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in built.files)
    document = json.loads(built.files[-1].read_text())
    for entry, path in zip(document["engines"], built.files, strict=False):
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert entry["bytes"] == path.stat().st_size
    assert document["engines"][1]["compute_capability"] == ["sm89", "sm120"]
    assert document["source"] == {"net.onnx": hashlib.sha256(source.read_bytes()).hexdigest()}
    assert document["bindings"] == [
        {"name": "x", "mode": "input", "dtype": "float32", "shape": ["batch", 3, 8, 8]},
        {"name": "y", "mode": "output", "dtype": "float32", "shape": [-1, 4]},
    ]
    assert document["profiles"] == [{"x": {"min": [2, 3, 8, 8], "opt": [2, 3, 8, 8], "max": [4, 3, 8, 8]}}]
    layers = {layer["name"]: layer for layer in document["layers"]["list"]}
    assert layers["conv"] == {"name": "conv", "kind": "convolution", "outputs": ["float16[?,8,8,8]"]}
    assert document["metadata"] == {"author": "somebody"}
    assert built.facts["precision"]["narrowed"] == 4
    again = _build(source, tmp_path / "again", max_shapes="4x3x8x8", **settings)
    assert [path.read_bytes() for path in again.files] == [path.read_bytes() for path in built.files]
    plain_one = _build(_net(tmp_path / "fixed.onnx"), tmp_path / "fixed")
    assert [path.name for path in plain_one.files] == ["model.engine", "engine.json"]


@pytest.mark.parametrize("unknown", [None, -1])
def test_sizes_without_a_name(unknown: int | None, tmp_path: Path) -> None:
    """Written as nothing or as -1."""
    _rtx()
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    source = _save(tmp_path / "m.onnx", nodes, {}, [unknown, 3, unknown], None)
    with pytest.raises(UsageError, match=r"input 'x' has dynamic axes \?x3x\? .* give --opt-shapes x:1x3x1 with your"):
        _build(source, tmp_path / "out")
    with pytest.raises(UsageError, match=r"input 'x' is \?x3x\? \(\?: dynamic\), which 1x4x8 does not fit"):
        _build(source, tmp_path / "out", opt_shapes="x:1x4x8")
    built = _build(source, tmp_path / "out", opt_shapes="x:1x3x8", max_shapes="4x3x9")
    assert built.facts["profiles"] == [{"x": {"min": [1, 3, 8], "opt": [1, 3, 8], "max": [4, 3, 9]}}]
    bindings = json.loads(built.files[-1].read_text())["bindings"]
    assert [one["shape"] for one in bindings] == [[-1, 3, -1]] * 2


def test_an_input_without_a_rank_is_refused(tmp_path: Path) -> None:
    _rtx()
    source = _save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"], "relu")], {}, None, None)
    with pytest.raises(InputError, match="input 'x' is declared without its number of axes, which TensorRT has to"):
        _build(source, tmp_path / "out", opt_shapes="x:1x3x8")
    assert not list((tmp_path / "out").iterdir())


def test_sizes_that_are_an_input_take_values(tmp_path: Path) -> None:
    _rtx()
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "n"], ["y"], "reshape")],
        "g",
        [helper.make_tensor_value_info("x", 1, [2, 6]), helper.make_tensor_value_info("n", TensorProto.INT64, [2])],
        [helper.make_tensor_value_info("y", 1, ["a", "b"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="input 'n' holds 2 sizes"):
        _build(tmp_path / "m.onnx", tmp_path / "out")
    built = _build(tmp_path / "m.onnx", tmp_path / "out", min_shapes="n:1x1", opt_shapes="n:3x4", max_shapes="n:12x12")
    assert built.facts["profiles"] == [{"n": {"min": [1, 1], "opt": [3, 4], "max": [12, 12]}}]


def test_an_unsupported_operator_is_named_in_one_sentence(tmp_path: Path) -> None:
    _rtx()
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("Det", ["r"], ["y"], "the_determinant"),
    ]
    source = _save(tmp_path / "m.onnx", nodes, {}, [2, 3, 3], [2])
    with pytest.raises(InputError) as caught:
        _build(source, tmp_path / "out")
    said = str(caught.value)
    assert "cannot take node 'the_determinant' (Det)" in said
    assert "\n" not in said
    assert list((tmp_path / "out").iterdir()) == []


def test_what_tensorrt_rtx_has_no_use_for_is_refused(tmp_path: Path) -> None:
    _rtx()
    source = _net(tmp_path / "net.onnx")
    for name, value in (
        ("timing_cache", str(tmp_path / "cache")), ("version_compatible", "true"), ("hardware_compatible", "true"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="does not have it"):
            _build(source, tmp_path / "out", runtime="tensorrt_rtx", **{name: value})
    with pytest.raises(UsageError, match="takes no GPU; choose the device with"):
        get_backend("tensorrt").build(source, tmp_path / "out", BackendOptions(providers=("GPU",)))
    with pytest.raises(UsageError, match="does not build for sm90"):
        _build(source, tmp_path / "out", compute_capability="sm90")
    with pytest.raises(InputError, match=r"cannot build it for sm75: .*FP32 .* not supported"):
        _build(source, tmp_path / "out", compute_capability="sm75")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--precision", "fp12"), "precision=fp12: TensorRT networks are cast to fp32, fp16, bf16"),
        (("--timing-cache", "c"), "timing-cache: TensorRT-RTX .* does not have it: it times nothing while it builds"),
        (("--version-compatible", "--hardware-compatible"), "version-compatible: TensorRT-RTX .* does not have it"),
        (("--option", "trust-engin=1"), "has no option 'trust-engin': did you mean 'trust-engine'"),
    ],
)
def test_an_export_refuses_settings_before_any_work(words: Any, said: str, tmp_path: Path, run_cli: Any) -> None:
    """The network is not even looked for."""
    _rtx()
    more = ("--target-params", "0.5x", "--no-measure", "--backend", "tensorrt", "--option", "runtime=tensorrt-rtx")
    result = run_cli("export", tmp_path / "none.onnx", "-o", tmp_path / "out", *more, *words)
    assert result.code == 2
    assert re.search(said, result.err), result.err


def test_an_export_for_what_is_not_here_ends_before_any_work(
    tmp_path: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TensorRTBackend, "available", lambda self: Availability(False, reason="it is not installed"))
    words = ("--target-params", "0.5x", "--no-measure", "--backend", "tensorrt")
    result = run_cli("export", tmp_path / "none.onnx", "-o", tmp_path / "out", *words)
    assert (result.code, "--backend tensorrt cannot be used here: it is not installed" in result.err) == (2, True)


def test_messages_lose_source_files_and_repetition() -> None:
    errors = [
        ("n", "ReduceMean", "Assertion failed: resolve(axes): Axis input must resolve to a constant!"),
        ("a", "Loop", "false"),
        ("b", "Loop", "false"),
    ]
    assert parser_message(errors, "TensorRT 10") == (
        "TensorRT 10 cannot take node 'n' (ReduceMean): Axis input must resolve to a constant; and 2 more (2x Loop)."
    )
    text = "Invalid Node - q\nITensor::getDimensions: Error Code 4: API Usage Error (q: has type Int32. In a at /b:4)"
    assert parser_message([("q", "Quantize", text + "\n[c.cpp::d::250] Error Code 1: (e)")], "T") == (
        "T cannot take node 'q' (Quantize): q: has type Int32."
    )
    assert parser_message(errors[1:2], "T") == "T cannot take node 'a' (Loop): the operator is not supported."
    text = "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check] FP32 GEMM is not supported. "
    internal = "[graphScope.cpp::analyze::463] Error Code 2: Internal Error (Assertion a.b(c) failed)"
    assert plain(["first", internal]) == "Assertion a.b(c) failed."
    assert plain([text + "In compileGraph at /_src/optimizer/codeGenerator.cpp:2012)"]) == "FP32 GEMM is not supported."


def test_engines_are_loaded_on_the_users_word_alone(tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"code")
    with pytest.raises(UsageError, match="trust-engine=true"):
        check_engine(engine, TensorRTOptions())
    backend = get_backend("tensorrt")
    with pytest.raises(UsageError, match="trust-engine=true"):
        backend.load(engine, BackendOptions())
    trusting = TensorRTOptions(trust_engine=True)
    check_engine(engine, trusting)
    known = {"engines": [{"file": "model.engine", "sha256": hashlib.sha256(b"other").hexdigest()}]}
    (tmp_path / "engine.json").write_text(json.dumps(known))
    with pytest.raises(InputError, match="was changed since it was built"):
        check_engine(engine, trusting)
    known["engines"][0]["sha256"] = hashlib.sha256(b"code").hexdigest()
    (tmp_path / "engine.json").write_text(json.dumps(known))
    check_engine(engine, trusting)


def test_without_a_gpu_engines_are_built_but_never_timed(tmp_path: Path) -> None:
    _rtx()
    if cuda_devices().names:
        pytest.skip("there is a CUDA device")
    backend = get_backend("tensorrt")
    there = backend.available()
    assert (there.usable, there.builds, there.times, there.devices) == (True, True, False, ())
    assert "built, not measured" in there.reason
    with pytest.raises(UsageError, match="neither run nor measured"):
        backend.load(_net(tmp_path / "net.onnx"), BackendOptions())
    assert "built, not measured" in _build(_net(tmp_path / "net.onnx"), tmp_path / "out").facts["measured"]


# ------------------------------------------------------------------------------------------------------------ sessions


class _Cuda:
    """CUDA's runtime over the host's memory; counts what is not given back."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}
        self.full = False

    def cudaStreamCreate(self) -> tuple[int, int]:
        return 0, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        assert stream == 7
        return (0,)

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        if self.full:
            return 2, 0
        block = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[int]:
        del self.blocks[address]
        return (0,)

    def cudaMemcpy(self, to: int, source: int, size: int, kind: int) -> tuple[int]:
        ctypes.memmove(to, source, size)
        return (0,)

    def cudaGetErrorString(self, code: int) -> tuple[int, bytes]:
        return 0, b"out of memory"


class _Engine:
    """y = 2 x for x of 1 to 4 rows of 3."""

    num_io_tensors = 2

    def __init__(self) -> None:
        self.address: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.ran = 0

    def create_execution_context(self) -> _Engine:
        return self

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> str:
        return {"x": "in", "y": "out"}[name]

    def get_tensor_dtype(self, name: str) -> str:
        return "float32"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape or (-1, 3)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape[0] <= 4

    def infer_shapes(self) -> list[str]:
        return []

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.address[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        self.ran += 1
        count = int(np.prod(self.shape))
        x, y = ((ctypes.c_float * count).from_address(self.address[name]) for name in "xy")
        np.frombuffer(y, np.float32)[:] = 2 * np.frombuffer(x, np.float32)
        return True


def test_a_session_copies_runs_and_gives_its_memory_back() -> None:
    module = SimpleNamespace(nptype=np.dtype, TensorIOMode=SimpleNamespace(INPUT="in"))
    cuda, engine = _Cuda(), _Engine()
    session = TensorRTSession(module, engine, "net", cuda)
    assert (session.inputs, session.outputs) == (("x",), ("y",))
    for rows in (1, 4, 2):  # grows, then keeps what it has
        x = np.arange(3.0 * rows, dtype=np.float32).reshape(3, rows).T
        np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
    assert len(cuda.blocks) == 2
    once = session.prepare({"x": np.ones((2, 3), np.float32)})
    before = engine.ran
    once()
    assert engine.ran == before + 1
    for feeds, said in (
        ({"x": np.ones((1, 4), np.float32)}, r"takes float32\[\?,3\], but float32\[1,4\] was given"),
        ({"x": np.ones((1, 3))}, r"float64\[1,3\] was given"),
        ({"x": np.ones((5, 3), np.float32)}, "outside the engine's profile"),
        ({}, "no value given for input 'x'"),
        ({"z": np.ones(1)}, "there is no input 'z'"),
    ):
        engine.shape = ()
        with pytest.raises(InputError, match=said):
            session.run(feeds)
    session.close()
    assert cuda.blocks == {}
    cuda.full = True
    with pytest.raises(InputError, match="CUDA: out of memory"):
        session.run({"x": np.ones((1, 3), np.float32)})


def test_layer_times_name_the_nodes_that_a_layer_computes() -> None:
    told = {
        "Layers": [
            {
                "Name": "conv + relu",
                "LayerType": "CaskConvolution",
                "Metadata": "[ONNX Layer: /a/Conv]\x1e[ONNX Layer: relu[1]]",
            },
            "a layer of which only the name is told",
        ]
    }
    conv, copy = layer_times({"conv + relu": [0.5, 0.3, 0.4], "copy": [0.1]}, json.dumps(told))
    assert (conv.kind, conv.nodes, conv.ns) == ("CaskConvolution", ("/a/Conv", "relu[1]"), 4e5)
    assert (copy.kind, copy.nodes, copy.ns) == ("layer", (), 1e5)
