"""Models that are read: what is sound survives."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import (
    FLOATS,
    X,
    dense_model,
    external_model,
    function_model,
    make_external,
    model_of,
    run,
    save,
    sparse_model,
    value,
    weights,
    write_data,
)

from graphprune.frontends.onnx import read_onnx
from graphprune.ir.store import write_onnx


def test_what_the_container_holds_survives(tmp_path):
    proto = dense_model()
    proto.model_version, proto.domain, proto.doc_string = 7, "d", "text"
    proto.graph.quantization_annotation.add(tensor_name="h").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="b"
    )
    proto.graph.node[0].metadata_props.add(key="origin", value="layer0")
    write_onnx(read_onnx(save(proto, tmp_path)), tmp_path / "out.onnx")
    again = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(again, full_check=True)
    for field in ("ir_version", "producer_name", "model_version", "domain", "doc_string", "opset_import"):
        assert getattr(again, field) == getattr(proto, field)
    assert again.metadata_props == proto.metadata_props
    for field in ("name", "node", "input", "output", "initializer", "quantization_annotation"):
        assert getattr(again.graph, field) == getattr(proto.graph, field)


def test_opset_and_ir_version_are_not_raised(tmp_path):
    proto = dense_model()
    proto.ir_version, proto.opset_import[0].version = 4, 9
    write_onnx(read_onnx(save(proto, tmp_path)), tmp_path / "out.onnx")
    again = onnx.load(tmp_path / "out.onnx")
    assert (again.ir_version, again.opset_import[0].version) == (4, 9)


def test_a_link_within_the_folder_is_followed(tmp_path):
    write_data(tmp_path / "blob")
    (tmp_path / "w.bin").symlink_to("blob")
    model = read_onnx(external_model(tmp_path))
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), weights(512).reshape(32, 16))


def test_external_data_is_found_from_another_working_directory(tmp_path, monkeypatch):
    write_data(tmp_path / "w.bin")
    external_model(tmp_path)
    monkeypatch.chdir(tmp_path)
    model = read_onnx("m.onnx")
    monkeypatch.chdir("/")
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.base_dir == tmp_path
    np.testing.assert_array_equal(tensor.numpy(), weights(512).reshape(32, 16))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
def test_external_data_is_not_loaded(tmp_path):
    size = 200_000_000
    (tmp_path / "w.bin").touch()
    os.truncate(tmp_path / "w.bin", size)
    proto = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [TensorProto(name="w", data_type=FLOATS, dims=[32, size // 128])],
    )
    make_external(proto.graph.initializer[0], location="w.bin", offset=0, length=size)
    path = save(proto, tmp_path)
    read_onnx(external_model_small(tmp_path))  # imports
    before = resident_bytes()
    model = read_onnx(path)
    assert resident_bytes() - before < 10_000_000
    assert model.graph.initializers["w"].const_value.nbytes == size


def external_model_small(folder: Path) -> Path:
    return save(dense_model(), folder, "small.onnx")


def test_nodes_are_brought_into_order(tmp_path):
    proto = dense_model()
    nodes = [proto.graph.node[1], proto.graph.node[0]]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    assert [node.op_type for node in read_onnx(save(proto, tmp_path)).graph] == ["MatMul", "Add"]


def test_an_initialiser_may_be_the_default_of_an_input(tmp_path):
    proto = dense_model()
    proto.graph.input.append(value("w", 32, 16))
    model = read_onnx(save(proto, tmp_path))
    assert [entry.name for entry in model.graph.inputs] == ["x", "w"]
    assert model.graph.initializers["w"].const_value.shape == ir.Shape([32, 16])


@pytest.mark.parametrize("sizes", [None, (-7, 16), ("a", "b"), (4, 4, 4)])
def test_an_initialiser_has_the_shape_of_its_data_whatever_the_inputs_say(tmp_path, sizes):
    proto = dense_model()
    proto.graph.input.append(value("w", *(sizes or ())))
    if sizes is None:
        proto.graph.input[1].ClearField("type")
    listed = read_onnx(save(proto, tmp_path)).graph.inputs[1]
    assert (listed.shape, listed.dtype) == (ir.Shape([32, 16]), ir.DataType.FLOAT)


@pytest.mark.parametrize("flat", [True, False])
def test_sparse_initialisers_become_dense(tmp_path, flat):
    proto = sparse_model()
    if not flat:
        pairs = np.array([[0, 1], [2, 8], [31, 15]])
        proto.graph.sparse_initializer[0].indices.CopyFrom(numpy_helper.from_array(pairs, "w_idx"))
    path = save(proto, tmp_path)
    model = read_onnx(path)
    dense = np.zeros(512, np.float32)
    dense[[1, 40, 511]] = [1, 2, 3]
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), dense.reshape(32, 16))
    write_onnx(model, tmp_path / "out.onnx")
    np.testing.assert_array_equal(run(tmp_path / "out.onnx", x=X)[0], run(path, x=X)[0])


def test_a_sparse_constant_becomes_dense(tmp_path):
    proto = sparse_model()
    node = helper.make_node("Constant", [], ["w"], "c", sparse_value=proto.graph.sparse_initializer[0])
    proto.graph.ClearField("sparse_initializer")
    proto.graph.node.insert(0, node)
    model = read_onnx(save(proto, tmp_path))
    constant = model.graph[0].attributes["value"].as_tensor().numpy()
    assert (constant.shape, float(constant.sum())) == ((32, 16), 6.0)


def test_training_info_is_left_out_with_a_note(tmp_path, caplog):
    proto = dense_model()
    proto.training_info.add().algorithm.name = "sgd"
    with caplog.at_level(logging.WARNING, logger="graphprune"):
        model = read_onnx(save(proto, tmp_path))
    assert caplog.messages == ["training_info is left out: its references to weights would not survive a cut"]
    write_onnx(model, tmp_path / "out.onnx")
    assert not onnx.load(tmp_path / "out.onnx").training_info


def test_functions_are_inlined(tmp_path):
    proto = function_model()
    proto.graph.quantization_annotation.add(tensor_name="b").quant_parameter_tensor_names.add(key="K", value="x")
    path = save(proto, tmp_path)
    model = read_onnx(path)
    assert not model.functions
    assert {node.domain for node in model.graph} == {""}
    assert [entry.name for entry in model.graph.inputs] == ["x"]
    assert [entry.name for entry in model.graph.outputs] == ["y", "same"]
    names = [output.name for node in model.graph for output in node.outputs]
    assert len(names) == len(set(names)) and "" not in names
    write_onnx(model, tmp_path / "out.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)
    assert onnx.load(tmp_path / "out.onnx").graph.quantization_annotation == proto.graph.quantization_annotation
    y, same = run(tmp_path / "out.onnx", x=X)
    np.testing.assert_array_equal(y, 16 * np.maximum(X, 0))
    np.testing.assert_array_equal(same, X)


def test_names_of_inlined_values_do_not_hide_each_other_in_subgraphs(tmp_path):
    """The branches of the function have a tensor ``k`` of their own, and read what is called ``k`` in the caller."""
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]

    def branch(op: str) -> onnx.GraphProto:
        node = helper.make_node(op, ["p", "k"], [f"out_{op}"])
        return helper.make_graph([node], op, [], [value(f"out_{op}")], [numpy_helper.from_array(np.float32(3), "k")])

    function = helper.make_function(
        "local",
        "f",
        ["p", "flag"],
        ["q"],
        [helper.make_node("If", ["flag"], ["q"], then_branch=branch("Add"), else_branch=branch("Mul"))],
        opsets,
    )
    outer = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["k"]),
            helper.make_node("f", ["k", "flag"], ["r"], domain="local"),
        ],
        "then",
        [],
        [value("r")],
    )
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["s"])], "else", [], [value("s")])
    proto = model_of(
        [helper.make_node("If", ["flag"], ["y"], then_branch=outer, else_branch=other)],
        inputs=[value("x", "batch", 32), helper.make_tensor_value_info("flag", TensorProto.BOOL, [])],
        outputs=[value("y", "batch", 32)],
    )
    proto.opset_import.append(opsets[1])
    proto.functions.append(function)
    path = save(proto, tmp_path)
    write_onnx(read_onnx(path), tmp_path / "out.onnx")
    assert not onnx.load(tmp_path / "out.onnx").functions
    for flag in (True, False):
        feeds = {"x": X, "flag": np.array(flag)}
        expected = np.maximum(X, 0) + 3 if flag else X
        np.testing.assert_array_equal(run(tmp_path / "out.onnx", **feeds)[0], expected)
