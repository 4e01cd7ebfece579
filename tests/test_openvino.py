"""OpenVINO: outputs, names, types, shapes, precision, the artefact, profiles, error texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.backends import BackendOptions, get_backend
from graphprune.backends.onnxruntime import run_model
from graphprune.backends.openvino import OpenVinoBackend, _plain
from graphprune.errors import InputError, UsageError
from graphprune.latency.measure import Measurement, MeasureOptions, measure
from tests import models

pytest.importorskip("openvino", reason="openvino is not installed")

ONE = BackendOptions(threads=1)


def save(path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, tuple[int, object]], outputs: list[str]) -> Path:
    weight = np.random.default_rng(0).standard_normal((8, 8, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A free batch, a scalar, int64 indices; several outputs, two of one value and one that is an input."""
    nodes = [
        helper.make_node("Mul", ["x", "s"], ["y"], name="mul"),
        helper.make_node("Identity", ["y"], ["z"], name="same"),
        helper.make_node("Gather", ["x", "i"], ["g"], name="gather", axis=0),
    ]
    inputs = {"x": (TensorProto.FLOAT, ["N", 4]), "s": (TensorProto.FLOAT, []), "i": (TensorProto.INT64, ["k"])}
    return save(tmp_path / "mixed.onnx", nodes, inputs, ["z", "y", "g", "x"])


@pytest.fixture
def convs(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu1"),
        helper.make_node("Conv", ["b", "w"], ["c"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Softmax", ["c"], ["d"], name="soft", axis=1),
    ]
    return save(tmp_path / "convs.onnx", nodes, {"x": (TensorProto.FLOAT, ["N", 8, "h", "h"])}, ["d"])


def feeds(rows: int = 2) -> dict[str, np.ndarray]:
    x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    return {"i": np.array([1, 0, 1]), "s": np.array(3, np.float32), "x": x}


def images(size: int = 12) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((2, 8, size, size)).astype(np.float32)}


def test_what_is_there() -> None:
    there = OpenVinoBackend().available()
    assert there.usable
    assert there.builds
    assert there.times
    assert "CPU" in there.devices
    assert isinstance(get_backend("openvino"), OpenVinoBackend)


def test_outputs_by_name_for_shapes_that_change(mixed: Path) -> None:
    session = OpenVinoBackend().load(mixed, ONE)
    assert session.inputs == ("x", "s", "i")
    assert session.outputs == ("z", "y", "g", "x")
    for rows in (2, 5, 2):
        given = feeds(rows)
        result = session.run(given)
        assert list(result) == ["z", "y", "g", "x"]
        x = given["x"]
        for name, wanted in {"z": x * 3, "y": x * 3, "g": x[[1, 0, 1]], "x": x}.items():
            np.testing.assert_array_equal(result[name], wanted)


def test_results_are_the_callers_own(mixed: Path) -> None:
    session = OpenVinoBackend().load(mixed, ONE)
    first = session.run(feeds())
    kept = first["y"].copy()
    session.run({**feeds(), "s": np.array(-1, np.float32)})
    np.testing.assert_array_equal(first["y"], kept)


def test_what_is_timed_computes_and_copies_nothing(convs: Path) -> None:
    session = OpenVinoBackend().load(convs, ONE)
    given = {"x": np.ascontiguousarray(images()["x"])}
    run = session.prepare(given)
    before = next(iter(run().values())).copy()  # type: ignore[attr-defined]
    given["x"] *= 2  # seen without being handed over again: the request shares the caller's memory
    after = next(iter(run().values()))  # type: ignore[attr-defined]
    assert not np.allclose(before, after)
    np.testing.assert_allclose(after, run_model(convs, given)["d"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [models.attention, models.residual])
def test_equal_to_onnxruntime_in_float32(make: Callable[[], models.Sample], tmp_path: Path) -> None:
    sample = make()
    path = sample.save(tmp_path / "m.onnx")
    given = sample.feeds()
    wanted = run_model(path, given)
    found = OpenVinoBackend().load(path, ONE).run(given)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert np.abs(found[name] - value).max() <= 1e-4 * np.abs(value).max()


def test_the_fingerprint_says_the_precision() -> None:
    backend = OpenVinoBackend()
    print_ = backend.fingerprint(ONE)
    assert (print_["precision"], print_["providers"], print_["threads"]) == ("f32", ["CPU"], 1)
    assert {"backend", "version", "device"} <= set(print_)
    assert json.loads(json.dumps(print_)) == print_
    half = backend.fingerprint(replace(ONE, settings=(("INFERENCE_PRECISION_HINT", "bf16"),)))
    assert half["precision"] == "bf16"
    assert half["settings"] == {"INFERENCE_PRECISION_HINT": "bf16"}


def test_options_reach_the_compiled_network(convs: Path) -> None:
    options = BackendOptions(threads=1, settings=(("EXECUTION_MODE_HINT", "ACCURACY"),))
    session = OpenVinoBackend().load(convs, options)
    compiled = session.request(images()).get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert "ACCURACY" in str(compiled.get_property("EXECUTION_MODE_HINT"))


def test_the_artefact_runs_as_the_file_does(convs: Path, mixed: Path, tmp_path: Path) -> None:
    backend = OpenVinoBackend()
    for path, given in ((convs, images()), (mixed, feeds())):
        out = tmp_path / path.stem
        built = backend.build(path, out, ONE)
        assert [file.relative_to(out).name for file in built.files] == ["model.xml", "model.bin"]
        assert sorted(out.iterdir()) == sorted(built.files)
        assert built.facts["bytes"]["model.bin"] == built.files[1].stat().st_size
        assert json.loads(json.dumps(dict(built.facts))) == built.facts
        wanted, found = (backend.load(one, ONE).run(given) for one in (path, built.files[0]))
        assert list(wanted) == list(found)
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value)
    weights = (tmp_path / "convs" / "model.bin").stat().st_size
    assert weights >= 8 * 8 * 9 * 4  # float32, not float16


def test_profile_names_the_nodes_of_the_file(convs: Path) -> None:
    layers = OpenVinoBackend().profile(convs, images(), ONE, runs=3)
    (first,) = [layer for layer in layers if "conv1" in layer.nodes]
    (second,) = [layer for layer in layers if "conv2" in layer.nodes]
    assert first is not second
    assert "relu1" in first.nodes
    assert "soft" in [name for layer in layers for name in layer.nodes]
    assert sum(layer.ns for layer in layers) > 0
    with pytest.raises(UsageError, match="runs=0"):
        OpenVinoBackend().profile(convs, images(), ONE, runs=0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"providers": ("GPU.7",)}, r"has no device 'GPU\.7' here; give one of: .*CPU"),
        ({"providers": ("CPU", "CPU")}, "has no device 'CPU,CPU' here"),
        ({"settings": (("NUM_STREAM", "2"),)}, r"no option 'NUM_STREAM' for CPU: did you mean NUM_STREAMS\?"),
        ({"settings": (("INFERENCE_NUM_THREADS", "2"),)}, "INFERENCE_NUM_THREADS is set by --threads"),
    ],
)
def test_devices_and_options_that_are_not_there(options: dict[str, object], text: str, convs: Path) -> None:
    for ask in (OpenVinoBackend().fingerprint, lambda given: OpenVinoBackend().load(convs, given)):
        with pytest.raises(UsageError, match=text):
            ask(BackendOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"s": None}, r"no value given for input 's' \(float32\[\]\)"),
        ({"x": np.zeros((2, 5), np.float32)}, r"input 'x' takes float32\[\?,4\], but float32\[2,5\] was given"),
        ({"x": np.zeros((2, 4))}, r"input 'x' takes float32\[\?,4\], but float64\[2,4\] was given"),
        ({"q": np.zeros(1)}, "there is no input 'q'; it has 'x', 's', 'i'"),
    ],
)
def test_wrong_feeds(wrong: dict[str, np.ndarray | None], text: str, mixed: Path) -> None:
    given = {name: value for name, value in {**feeds(), **wrong}.items() if value is not None}
    with pytest.raises(InputError, match=text):
        OpenVinoBackend().load(mixed, ONE).run(given)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    backend = OpenVinoBackend()
    with pytest.raises(InputError, match=r"none\.onnx: there is no such file"):
        backend.load(tmp_path / "none.onnx", ONE)
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    with pytest.raises(InputError, match=r"bad\.onnx: this is neither a whole ONNX file nor OpenVINO IR"):
        backend.load(tmp_path / "bad.onnx", ONE)
    odd = save(
        tmp_path / "odd.onnx", [helper.make_node("Det", ["x"], ["y"])], {"x": (TensorProto.FLOAT, [2, 2])}, ["y"]
    )
    with pytest.raises(InputError, match=r"cannot read it: No conversion rule .* operations: Det-\d+\.$") as caught:
        backend.build(odd, tmp_path / "out", ONE)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_messages_lose_where_they_came_from() -> None:
    raw = (
        "Exception from src/inference/src/cpp/core.cpp:132:\nCheck 'a == b(c)' failed at src/x/y.cpp:1:\n"
        "FrontEnd API failed with GeneralFailure:\nSizes differ:\n  2 and 3\n\n"
    )
    assert _plain(raw) == "Sizes differ: 2 and 3."


def test_measured_through_the_worker(convs: Path) -> None:
    options = MeasureOptions(
        duration=0.02,
        rounds=1,
        warm_up_ms=1,
        warm_up_cap_ms=50,
        resamples=200,
        backend="openvino",
        backend_options=BackendOptions(1, ("CPU",), settings=(("INFERENCE_PRECISION_HINT", "f32"),)),
    )
    result = measure(convs, None, images(), options)
    assert isinstance(result, Measurement)
    assert result.fingerprint["backend"] == "openvino"
    assert result.fingerprint["settings"] == {"INFERENCE_PRECISION_HINT": "f32"}
    assert result.median_ms > 0
