"""Backends: error texts, the interface, plug-ins, options, profiles of single layers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import one_node, rows_of

from graphprune.backends import BackendOptions, LayerTime, backend_names, get_backend, survey
from graphprune.backends import base as backends_base
from graphprune.backends.layers import Layer, NodeTable
from graphprune.backends.onnxruntime import OnnxRuntimeBackend, run_model
from graphprune.backends.ort_messages import plain as plain_message
from graphprune.backends.ort_options import check_placement
from graphprune.backends.ort_profile import _own_times
from graphprune.errors import InputError, UsageError

BUILT_IN = ("onnxruntime", "openvino", "tensorrt")


def convolutions(folder: Path) -> Path:
    """Conv-Relu-Conv on 16 channels, enough for blocked layouts, and a Loop that adds 1 three times."""
    scalar = [helper.make_tensor_value_info(*one, []) for one in (("k", TensorProto.INT64), ("go", TensorProto.BOOL))]
    body = helper.make_graph(
        [
            helper.make_node("Add", ["v", "one"], ["w"], name="inside"),
            helper.make_node("Identity", ["go"], ["on"], name="go_on"),
        ],
        "body",
        [*scalar, helper.make_tensor_value_info("v", TensorProto.FLOAT, None)],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
        ],
    )
    generator = np.random.default_rng(0)
    weights = {
        "c1": generator.standard_normal((16, 16, 3, 3)).astype(np.float32),
        "c2": generator.standard_normal((16, 16, 3, 3)).astype(np.float32),
        "one": np.array(1, np.float32),
        "times": np.array(3, np.int64),
        "true": np.array(True),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "c1"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"], name="relu1"),
            helper.make_node("Conv", ["b", "c2"], ["c"], name="conv2", pads=[1, 1, 1, 1]),
            helper.make_node("Loop", ["times", "true", "c"], ["y"], name="loop", body=body),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = folder / "convolutions.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def layer_of(layers: tuple[LayerTime, ...], node: str) -> LayerTime:
    (found,) = [layer for layer in layers if node in layer.nodes]
    return found


# ---- the plain runner ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"optimize": True, "prepack": True, "threads": 1}])
def test_runner_gives_named_outputs(model: Path, options: dict[str, object]) -> None:
    for given in (model, model.read_bytes()):
        result = run_model(given, rows_of(), ["y"], **options)  # type: ignore[arg-type]
        np.testing.assert_allclose(result["y"], rows_of()["x"] * 2)


def test_runner_finds_external_data_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sub" / "external.onnx"
    path.parent.mkdir()
    onnx.save(one_node(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_allclose(run_model(Path("sub/external.onnx"), rows_of())["y"], rows_of()["x"] * 2)
    (path.parent / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"external\.onnx: .*External data path does not exist"):
        run_model(path, rows_of())


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (b"not a model at all", "this is not a whole ONNX file"),
        (b"", "this is not a whole ONNX file"),
        (
            one_node(opset=99).SerializeToString(),
            r"it uses opset 99 of ai\.onnx, .* does not accept \(up to \d+\); export",
        ),
        (one_node(ir_version=99).SerializeToString(), r"it has IR version 99, .* does not accept \(up to \d+\)"),
        (one_node("Foo").SerializeToString(), "No Op registered for Foo with domain_version of 20"),
        (one_node("Reshape").SerializeToString(), r"Name:'node0' .*Input shape:\{2,8\}, requested shape:\{3,5\}"),
    ],
)
def test_runner_failures_are_one_clear_line(given: bytes, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=text) as caught:
        run_model(given, rows_of())
    message = str(caught.value)
    assert message.startswith("model in memory (")
    assert "\n" not in message
    assert not any(noise in message for noise in ("onnxruntime::", ".cc:", ".h:", "ONNXRuntimeError"))
    assert caught.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({}, r"no value given for input 'x' \(float32\[N,8\]\)"),
        ({"x": np.zeros((2, 8))}, r"input 'x' takes float32\[N,8\], but float64\[2,8\] was given"),
        ({"x": np.zeros((2, 7), np.float32)}, r"input 'x' takes float32\[N,8\], but float32\[2,7\] was given"),
        ({"x": np.zeros(8, np.float32)}, r"input 'x' takes float32\[N,8\], but float32\[8\] was given"),
        ({**rows_of(), "z": np.zeros(1)}, "there is no input 'z'; it has 'x'"),
    ],
)
def test_wrong_feeds(model: Path, wrong: dict[str, np.ndarray], text: str) -> None:
    with pytest.raises(InputError, match=text):
        run_model(model, wrong)


def test_unknown_output_and_missing_file(model: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no output 'yy'; did you mean 'y'\?"):
        run_model(model, rows_of(), ["yy"])
    with pytest.raises(InputError, match=r"none\.onnx: there is no such file"):
        run_model(model.with_name("none.onnx"), rows_of())


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("[ONNXRuntimeError] : 1 : FAIL : /s/m.cc:25 ns::M::M(const a<b, c(d)>&, int) Bad size\n", "Bad size."),
        ("Status: /s/k.h:3 void ns::K::f(int) const [with T = float] 2 != 3", "Status: 2 != 3."),
        ("Error: tensorprotoutils.cc:461 CheckPath no file (yet)", "Error: no file (yet)."),
        ("Got 2\n Expected 1", "Got 2 Expected 1."),
    ],
)
def test_messages_lose_their_source_locations(raw: str, plain: str) -> None:
    assert plain_message(raw) == plain


# ---- backends ------------------------------------------------------------------------------------------------------


def test_onnxruntime_backend(model: Path) -> None:
    backend = get_backend("onnxruntime")
    there = backend.available()
    assert there.usable
    assert "CPUExecutionProvider" in there.devices
    assert there.builds
    assert there.times
    session = backend.load(model, BackendOptions(threads=1))
    assert (session.inputs, session.outputs) == (("x",), ("y",))
    np.testing.assert_allclose(session.run(rows_of())["y"], rows_of()["x"] * 2)
    session.prepare(rows_of())()
    print_ = backend.fingerprint(BackendOptions(threads=3, spinning=False))
    assert (print_["threads"], print_["spinning"], print_["version"]) == (3, False, there.version)
    assert {"backend", "device", "providers", "precision"} <= set(print_)
    assert json.loads(json.dumps(print_)) == print_


def test_unknown_provider_names_those_that_exist(model: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no execution provider 'FooProvider' here; available: .*CPUExecutionProvider"
    ):
        get_backend("onnxruntime").load(model, BackendOptions(providers=("FooProvider",)))


def test_a_provider_that_takes_no_node_is_refused(model: Path) -> None:
    backend = OnnxRuntimeBackend()
    if "AzureExecutionProvider" not in backend.available().devices:
        pytest.skip("this onnxruntime has no provider that takes no node")
    with pytest.raises(UsageError, match=r"does not run it on AzureExecutionProvider .*1 on CPUExecutionProvider"):
        backend.load(model, BackendOptions(providers=("AzureExecutionProvider",)))


def test_backends_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        def __init__(self, name: str, value: object) -> None:
            self.name, self.value, self._found = name, f"package:{name}", value

        def load(self) -> object:
            if isinstance(self._found, Exception):
                raise self._found
            return self._found

    own = OnnxRuntimeBackend()
    entries = [Entry("own", lambda: own), Entry("broken", ImportError("no libfoo.so")), Entry("odd", 3)]
    entries.append(Entry("onnxruntime", None))
    monkeypatch.setattr(backends_base, "entry_points", lambda group: entries if group == "graphprune.backends" else [])
    assert backend_names() == (*BUILT_IN, "broken", "odd", "own")
    assert get_backend("own") is own
    assert isinstance(get_backend("onnxruntime"), OnnxRuntimeBackend)
    with pytest.raises(UsageError, match=r"'broken' .* cannot be loaded: ImportError: no libfoo\.so"):
        get_backend("broken")
    with pytest.raises(UsageError, match=r"'odd' .* is no backend: it lacks name, available, load, fingerprint"):
        get_backend("odd")
    with pytest.raises(UsageError, match=r"unknown backend 'onnxruntim': did you mean 'onnxruntime'\?"):
        get_backend("onnxruntim")
    usable = {name: there.usable for name, there in survey()}
    assert usable.keys() == {*BUILT_IN, "broken", "odd", "own"}
    assert [usable[name] for name in ("onnxruntime", "broken", "odd", "own")] == [True, False, False, True]


def test_cores_respect_siblings_and_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"/sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": f"{i % 4},{i % 4 + 4}" for i in range(8)}
    monkeypatch.setattr(backends_base, "_allowed_cpus", lambda: set(range(8)))
    monkeypatch.setattr(backends_base, "_read", lambda path: files.get(path, ""))
    assert backends_base.physical_cores() == 4
    files["/sys/fs/cgroup/cpu.max"] = "max 100000"
    assert backends_base.physical_cores() == 4
    files["/sys/fs/cgroup/cpu.max"] = "150000 100000"
    assert backends_base.physical_cores() == 2
    del files["/sys/fs/cgroup/cpu.max"]
    files |= {"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}
    assert backends_base.physical_cores() == 4


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"threads": 0}, "threads=0: give 1 or more"),
        ({"settings": (("a", "1"), ("a", "2"))}, "'a' is given twice"),
        ({"affinity": (0, -1)}, "counted from 0"),
    ],
)
def test_backend_options_are_checked(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        BackendOptions(**wrong)  # type: ignore[arg-type]


def test_backend_options_survive_json() -> None:
    options = BackendOptions(3, ("A", "B"), False, (("k", "v"), ("l", "w=x")), (0, 2), denormals=False)
    assert BackendOptions.from_json(json.loads(json.dumps(options.to_json()))) == options
    assert options.to_json().keys() == vars(options).keys()


def test_a_plugin_without_build_and_profile_says_so_where_they_are_asked_for(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = OnnxRuntimeBackend()

    class Small:
        name, available, load, fingerprint = "small", whole.available, whole.load, whole.fingerprint

    class Entry:
        name, value = "small", "package:small"

        def load(self) -> type:
            return Small

    monkeypatch.setattr(backends_base, "entry_points", lambda group: [Entry()])
    backend = get_backend("small")
    assert backend.load(model, BackendOptions()).inputs == ("x",)
    with pytest.raises(UsageError, match=r"'small' \(package:small\) cannot build an artefact"):
        backend.build(model, model.parent, BackendOptions())
    with pytest.raises(UsageError, match=r"'small' \(package:small\) cannot time single layers"):
        backend.profile(model, rows_of(), BackendOptions(), 1)


# ---- options of onnxruntime ----------------------------------------------------------------------------------------


def test_settings_reach_the_session_and_unknown_ones_are_refused(model: Path) -> None:
    backend = OnnxRuntimeBackend()
    entry = ("session.set_denormal_as_zero", "1")
    settings = backend._session_options(BackendOptions(settings=(entry,)))
    assert settings.get_session_config_entry(entry[0]) == "1"
    assert backend.fingerprint(BackendOptions(settings=(entry,)))["settings"] == dict([entry])
    with pytest.raises(
        UsageError, match=r"no option 'session\.set_denormal_as_zer' .*did you mean 'session\.set_denorm"
    ):
        backend.load(model, BackendOptions(settings=(("session.set_denormal_as_zer", "1"),)))
    with pytest.raises(UsageError, match="no option 'device_id' for CPUExecutionProvider"):
        backend.load(model, BackendOptions(settings=(("device_id", "1"),)))


def test_denormal_numbers_count_or_are_zero(model: Path) -> None:
    """In processes of their own: onnxruntime sets the calling thread once, by its first session."""
    code = """
import sys
from pathlib import Path
import numpy as np
from graphprune.backends import BackendOptions, get_backend
backend = get_backend("onnxruntime")
options = BackendOptions(threads=1, denormals=sys.argv[2] == "yes")
run = backend.load(Path(sys.argv[1]), options).prepare({"x": np.full((2, 8), 1e-40, "f")})
print(backend.fingerprint(options)["denormals"], bool(run()[0].any()))
"""
    for word in ("yes", "no"):
        made = subprocess.run(
            [sys.executable, "-c", code, str(model), word], capture_output=True, text=True, check=True
        )
        assert made.stdout.split() == [str(word == "yes")] * 2


def test_threads_are_pinned_to_the_cpus_of_the_affinity() -> None:
    def pinned(threads: int, cpus: tuple[int, ...]) -> str | None:
        settings = OnnxRuntimeBackend()._session_options(BackendOptions(threads=threads, affinity=cpus))
        try:
            return str(settings.get_session_config_entry("session.intra_op_thread_affinities"))
        except RuntimeError:  # no such entry
            return None

    assert pinned(3, (0, 2, 5)) == "3;6"  # the first thread is the caller's; CPUs are counted from 1
    assert pinned(2, (0, 2, 5)) == "3"
    assert pinned(1, (0,)) is None
    assert pinned(4, (0, 1)) is None


def test_nodes_on_the_cpu_must_be_asked_for() -> None:
    class Node:
        op_type, name = "Shape", "s0"

    class Part:
        def __init__(self, name: str, count: int) -> None:
            self.ep_name, self._count = name, count

        def get_nodes(self) -> list[Node]:
            return [Node()] * self._count

    class Session:
        def get_providers(self) -> list[str]:
            return ["GPU", "CPUExecutionProvider"]

        def get_provider_graph_assignment_info(self) -> list[Part]:
            return [Part("GPU", 7), Part("CPUExecutionProvider", 4)]

    with pytest.raises(
        UsageError, match=r"4 of its nodes would run on the CPU \(Shape 's0', .* \.\.\.\); .*GPU,CPUExec"
    ):
        check_placement(Session(), "m", ("GPU",))
    check_placement(Session(), "m", ("GPU", "CPUExecutionProvider"))


def test_bound_inputs_and_outputs_give_the_same_run(model: Path) -> None:
    session = OnnxRuntimeBackend().load(model, BackendOptions(threads=1))
    ran: list[list[np.ndarray]] = []
    real = session._session.run_with_iobinding
    session._session.run_with_iobinding = lambda binding: (real(binding), ran.append(binding.copy_outputs_to_cpu()))
    session._bound(rows_of(), ("cpu", 0))()
    np.testing.assert_allclose(ran[0][0], rows_of()["x"] * 2)


def test_build_of_onnxruntime_writes_nothing(model: Path, tmp_path: Path) -> None:
    built = OnnxRuntimeBackend().build(model, tmp_path / "out", BackendOptions())
    assert built.files == ()
    assert not (tmp_path / "out").exists()
    assert built.facts["artefact"] == "the ONNX file itself"
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    with pytest.raises(InputError, match="not a whole ONNX file"):
        OnnxRuntimeBackend().build(tmp_path / "bad.onnx", tmp_path, BackendOptions())


def test_an_embedded_engine_is_loaded_on_the_users_word_only(tmp_path: Path) -> None:
    node = helper.make_node("EPContext", ["x"], ["y"], name="engine", domain="com.microsoft", embed_mode=1)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    path = tmp_path / "engine.onnx"
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=imports, ir_version=10), path)
    backend = OnnxRuntimeBackend()
    with pytest.raises(UsageError, match=r"node 'engine' holds an engine, which is executable code.*trust-engine=true"):
        backend.load(path, BackendOptions())
    with pytest.raises(InputError, match="EPContext"):  # past the gate: the CPU provider has nothing that runs it
        backend.load(path, BackendOptions(settings=(("trust-engine", "true"),)))
    with pytest.raises(UsageError, match=r"trust-engine='maybe': say true or false"):
        backend.load(path, BackendOptions(settings=(("trust-engine", "maybe"),)))


# ---- which nodes a layer computes ----------------------------------------------------------------------------------

A, B = (tuple(f"n{kind}_{block}" for kind in ("Conv", "BN", "Relu")) for block in "ab")


def chain() -> onnx.GraphProto:
    """Two blocks of Conv, BN and Relu in a row; ``t`` is computed from a constant only."""
    nodes = [helper.make_node("Transpose", ["w"], ["t"], name="t")]
    last = "x"
    for block in "ab":
        for kind in ("Conv", "BN", "Relu"):
            nodes.append(helper.make_node(kind, [last, "t"], [f"{kind}_{block}"], name=f"n{kind}_{block}"))
            last = f"{kind}_{block}"
    return helper.make_graph(nodes, "g", [], [], [numpy_helper.from_array(np.zeros(1), "w")])


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        # onnxruntime on blocked layouts: called after what the normalisation gives, the activation fused afterwards
        (
            [Layer(outputs=("BN_a",), kind="Conv", hidden=True), Layer(outputs=("BN_b",), kind="Conv", hidden=True)],
            [A, B],
        ),
        # a fusion that keeps the tensor it ends with
        ([Layer(outputs=("Relu_a",)), Layer(outputs=("Relu_b",))], [A, B]),
        # openvino: the names of what was fused, but for the first, which was replaced
        ([Layer(names=("other", "nBN_a", "nRelu_a")), Layer(names=("nBN_b", "nRelu_b"))], [A, B]),
        ([Layer(names=("reorder",)), Layer(outputs=("Relu_b",))], [(), A + B]),
    ],
)
def test_layers_are_traced_to_nodes(layers: list[Layer], expected: list[tuple[str, ...]]) -> None:
    assert list(NodeTable.of(chain()).attribute(layers)) == expected


# ---- profiles ------------------------------------------------------------------------------------------------------


def test_profile_of_onnxruntime_names_the_nodes_of_the_file(tmp_path: Path) -> None:
    path = convolutions(tmp_path)
    given = {"x": np.ones((1, 16, 12, 12), np.float32)}
    layers = OnnxRuntimeBackend().profile(path, given, BackendOptions(threads=1), runs=3)
    assert layer_of(layers, "conv1") is layer_of(layers, "relu1")  # fused
    assert layer_of(layers, "conv2") is not layer_of(layers, "conv1")
    assert layer_of(layers, "loop").kind == "Loop"
    assert all(layer.ns >= 0 for layer in layers)
    assert sum(layer.ns for layer in layers) > 0
    assert len({layer.name for layer in layers}) == len(layers)
    with pytest.raises(UsageError, match="runs=0"):
        OnnxRuntimeBackend().profile(path, given, BackendOptions(), runs=0)


def test_times_of_bodies_are_not_counted_twice() -> None:
    def event(name: str, start: int, length: int) -> dict[str, object]:
        return {"name": f"{name}_kernel_time", "ts": start, "dur": length, "args": {"node_index": "0", "op_name": "X"}}

    events = [event("loop", 0, 100), event("inside", 10, 30), event("inside", 50, 30), event("after", 100, 5)]
    assert [(key[0], own) for key, own in _own_times(events)] == [
        *(("loop", 40), ("inside", 30), ("inside", 30), ("after", 5))
    ]
