"""Models that are sound as files and harm when they are run or held: bounded time, bounded memory, one sentence."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from models import SAMPLES
from onnx import TensorProto, helper, numpy_helper
from onnx_files import X, dense_model, model_of, save, value, weights

from graphprune.backends import memory, onnxruntime, runner
from graphprune.errors import InputError
from graphprune.frontends import onnx as frontend
from graphprune.frontends.onnx import read_onnx
from graphprune.ir.mapped import MappedTensor
from graphprune.ir.program import release
from graphprune.ir.store import external_locations, write_onnx
from graphprune.pipeline import load

ROOT = Path(__file__).parent.parent


def ints(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.int64), name)


# ---------------------------------------------------------------------------------------------------------------------
# What a run would take


HUGE = 2**38  # elements: a tebibyte of floats

GREEDY = {
    "ConstantOfShape": ([helper.make_node("ConstantOfShape", ["n"], ["h"])], [ints("n", HUGE)]),
    "Expand": ([helper.make_node("Expand", ["one", "n"], ["h"])], [ints("n", HUGE)]),
    "Tile": ([helper.make_node("Tile", ["one", "n"], ["h"])], [ints("n", HUGE)]),
    "Range": (
        [helper.make_node("Range", ["zero", "n", "step"], ["h"])],
        [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in (("zero", 0), ("n", HUGE), ("step", 1))],
    ),
    "Pad": ([helper.make_node("Pad", ["one", "n"], ["h"])], [ints("n", 0, HUGE)]),
    "Resize": (
        [helper.make_node("Resize", ["four", "", "", "n"], ["h"])],
        [ints("n", 1, 1, 2**19, 2**19), numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "four")],
    ),
}


def greedy(nodes: list[onnx.NodeProto], held: list[TensorProto]) -> onnx.ModelProto:
    """``y = x + sum(h)``, ``h`` being what the nodes make."""
    nodes = [
        *nodes,
        helper.make_node("Cast", ["h"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["c"], ["s"], keepdims=0),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    return model_of(
        nodes, [*held, numpy_helper.from_array(np.ones(1, np.float32), "one")], outputs=[value("y", "batch", 32)]
    )


@pytest.mark.parametrize("name", GREEDY)
def test_a_tebibyte_is_refused(name, tmp_path):
    path = save(greedy(*GREEDY[name]), tmp_path)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"^'.*/m\.onnx': onnxruntime .*(alloc|memory|overflow|exceed)"):
        load(path)
    assert time.monotonic() - start < 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA bounds what is mapped on Linux alone")
def test_more_than_is_free_is_refused_although_the_system_would_grant_it(tmp_path, monkeypatch):
    path = save(greedy([helper.make_node("ConstantOfShape", ["n"], ["h"])], [ints("n", 2**28)]), tmp_path)  # a gibibyte
    before = resource.getrlimit(resource.RLIMIT_DATA)
    monkeypatch.setattr(memory, "available_memory", lambda: 2**29)
    with pytest.raises(InputError, match="alloc"):
        load(path)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_a_loop_without_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "RUN_SECONDS", 1.0)
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["go"]), helper.make_node("Relu", ["a"], ["b"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            value("a", "batch", 32),
        ],
        [helper.make_tensor_value_info("go", TensorProto.BOOL, []), value("b", "batch", 32)],
    )
    nodes = [helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)]
    held = [numpy_helper.from_array(np.array(2**63 - 1, np.int64), "n")]
    path = save(model_of(nodes, held, outputs=[value("y", "batch", 32)]), tmp_path)
    start = time.monotonic()
    with pytest.raises(
        InputError, match=r"^'.*/m\.onnx': one run did not end within 1 s; a loop in it may have no end"
    ):
        load(path)
    assert time.monotonic() - start < 20


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_an_interrupted_run_is_waited_for():
    """The interpreter must not go while the runtime computes: that aborts the process."""
    ended = []

    def run(_names, _feeds, options):
        while not options.terminate:
            time.sleep(0.01)
        time.sleep(0.3)  # the node that is being computed
        ended.append(True)

    def interrupt(_number, _frame):
        raise KeyboardInterrupt

    session = onnxruntime.OrtSession(SimpleNamespace(run=run, get_inputs=list, get_outputs=list), "m.onnx")
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            session.run({})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ended == [True]


def test_an_input_larger_than_any_is_refused(tmp_path):
    proto = dense_model()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**40
    with pytest.raises(InputError, match=r"an example of input 'x' of shape 1099511627776x32 would take \d+ bytes"):
        load(save(proto, tmp_path))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1e38])
def test_numbers_that_are_none_in_attributes_are_refused_or_run(number, tmp_path):
    sample = SAMPLES["plain"]()
    node = next(node for node in sample.model.graph.node if node.op_type == "BatchNormalization")
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("epsilon", number))
    network = load(save(sample.model, tmp_path))
    assert network.analyze().groups  # what it computes is for the verification to judge


# ---------------------------------------------------------------------------------------------------------------------
# Large files: the weights stay in them


@pytest.fixture
def all_mapped(monkeypatch):
    """Treat small files as large ones."""
    monkeypatch.setattr(frontend, "_MAPPED", 1)
    monkeypatch.setattr(runner, "_INLINE", 0)
    monkeypatch.setattr(runner, "_LARGE", 1000)


def large_model() -> onnx.ModelProto:
    proto = dense_model()
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights(32, 400), "w"))
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(weights(400), "b"))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 400
    return proto


def test_weights_of_a_large_file_stay_in_it(tmp_path, all_mapped):
    path = save(large_model(), tmp_path)
    model = read_onnx(path)
    w, b = (model.graph.initializers[name].const_value for name in "wb")
    assert isinstance(w, MappedTensor) and not isinstance(b, MappedTensor)
    np.testing.assert_array_equal(w.numpy(), weights(32, 400))
    assert external_locations(model) == ()
    release(model)
    path.unlink()  # what was mapped is held
    np.testing.assert_array_equal(w.numpy(), weights(32, 400))
    write_onnx(model, tmp_path / "again.onnx")
    assert onnx.load(tmp_path / "again.onnx").graph.initializer == large_model().graph.initializer
    write_onnx(model, path)
    assert path.read_bytes() == (tmp_path / "again.onnx").read_bytes()


def test_weights_of_a_large_file_are_handed_to_the_runtime_as_they_are(tmp_path, all_mapped):
    model = read_onnx(save(large_model(), tmp_path))
    run = runner.OrtRunner()
    expected = X @ weights(32, 400) + weights(400)
    for _ in range(2):
        np.testing.assert_allclose(run(model, {"x": X})["y"], expected, rtol=1e-4, atol=1e-5)
    assert isinstance(model.graph.initializers["w"].const_value, MappedTensor)


@pytest.mark.parametrize("name", ["plain", "attention", "lstm", "constant_nodes", "half", "double", "listed"])
def test_a_large_file_is_pruned_to_the_same_bytes(name, tmp_path, all_mapped, monkeypatch):
    path = save(SAMPLES[name]().model, tmp_path)
    mapped = load(path).export(tmp_path / "mapped", target_params="0.7x", measure=None)
    monkeypatch.undo()
    plain = load(path).export(tmp_path / "plain", target_params="0.7x", measure=None)
    assert mapped.model.read_bytes() == plain.model.read_bytes()


def test_narrow_and_foreign_tensors_of_a_large_file_are_read(tmp_path, all_mapped):
    proto = large_model()
    narrow = helper.make_tensor("i4", TensorProto.INT4, [20001], np.arange(20001) % 16 - 8)
    wide = helper.make_tensor("bf", TensorProto.BFLOAT16, [5000], np.arange(5000.0))
    proto.graph.initializer.extend([narrow, wide])
    proto.ir_version = 10
    model = read_onnx(save(proto, tmp_path))
    for tensor in (narrow, wide):
        got = model.graph.initializers[tensor.name].const_value.numpy()
        np.testing.assert_array_equal(got.astype(np.float32), numpy_helper.to_array(tensor).astype(np.float32))


def test_a_large_file_is_held_to_the_same_checks(tmp_path, all_mapped):
    proto = large_model()
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    path = save(proto, tmp_path)
    with pytest.raises(
        InputError, match=r"tensor 'w' of shape \[32, 400\] and type FLOAT needs 51200 bytes, but has 51196"
    ):
        read_onnx(path)
    os.truncate(path, 20_000)
    with pytest.raises(InputError, match=r"is cut short: its graph takes \d+ bytes, but only \d+ are there"):
        read_onnx(path)


# ---------------------------------------------------------------------------------------------------------------------


def test_a_short_fuzz_run_finds_nothing():
    words = [sys.executable, "-m", "tests.fuzz", "--executions", "20", "--seed", "11"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["no findings"]), done.stdout + done.stderr
