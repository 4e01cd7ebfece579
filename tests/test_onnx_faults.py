"""Files that are no sound ONNX model: each is refused with one sentence and exit code 2."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_files import (
    Fault,
    check_refused,
    dense_model,
    external_model,
    function_model,
    if_model,
    model_of,
    save,
    sparse_model,
    value,
    weights,
)

from graphprune.ir.wire import field_head

FAULTS: dict[str, Fault] = {}


def fault(make: Fault) -> Fault:
    FAULTS[make.__name__] = make
    return make


@fault
def missing(folder: Path):
    return folder / "none.onnx", "does not exist"


@fault
def a_folder(folder: Path):
    return folder, "is a folder, not an ONNX file"


@fault
def empty(folder: Path):
    path = folder / "m.onnx"
    path.touch()
    return path, "is empty"


@fault
def a_pipe(folder: Path):
    os.mkfifo(folder / "m.onnx")
    return folder / "m.onnx", "is not a regular file"


@fault
def a_name_with_a_null(folder: Path):
    return Path(f"{folder}/m\0.onnx"), "cannot be read: embedded null byte"


@fault
def not_onnx(folder: Path):
    path = folder / "m.onnx"
    path.write_bytes(bytes(range(255, 0, -1)) * 20)
    return path, "is not an ONNX model: protobuf cannot read it"


@fault
def a_web_page(folder: Path):
    path = folder / "m.onnx"
    path.write_text("<!DOCTYPE html><html><body>404 not found</body></html>")
    return path, "is a page of text (HTML or XML), not an ONNX model; was the download complete?"


@fault
def an_lfs_pointer(folder: Path):
    path = folder / "m.onnx"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")
    return path, "is a Git LFS pointer, not the model; fetch it with `git lfs pull`"


@fault
def too_large(folder: Path):
    path = folder / "m.onnx"
    path.touch()
    os.truncate(path, 2**31)
    return path, ("has 2147483648 bytes, more than an ONNX file can hold (2 GiB); store its weights as external data")


@fault
def cut_short(folder: Path):
    path = save(dense_model(), folder)
    graph = len(dense_model().graph.SerializeToString())
    os.truncate(path, 1000)
    # ir_version (2), producer (7), then the graph's tag and length (3)
    return path, f"is cut short: its graph takes {graph} bytes, but only {1000 - 12} are there"


@fault
def cut_after_the_graph(folder: Path):
    proto = dense_model()
    del proto.opset_import[:]
    return save(proto, folder), "is not a complete ONNX model: it has no opset import; it may be cut short"


@fault
def an_empty_message(folder: Path):
    return save(onnx.ModelProto(producer_name="p"), folder), (
        "is not a complete ONNX model: it has no IR version and no opset import and no graph; it may be cut short"
    )


@fault
def no_outputs(folder: Path):
    proto = dense_model()
    del proto.graph.output[:]
    return save(proto, folder), "is not a complete ONNX model: it has a graph without outputs; it may be cut short"


@fault
def a_name_that_is_not_text(folder: Path):
    path = folder / "m.onnx"
    path.write_bytes(dense_model().SerializeToString().replace(b"\x1a\x02mm", b"\x1a\x02\xff\xfe"))
    return path, "the graph holds text that is not UTF-8: b'\\xff\\xfe'; the file is damaged"


@fault
def metadata_that_is_not_text(folder: Path):
    path = folder / "m.onnx"
    path.write_bytes(dense_model().SerializeToString().replace(b"nobody", b"\xffobody"))
    return path, "the graph holds text that is not UTF-8: b'\\xffobody'; the file is damaged"


@fault
def a_location_that_is_not_text(folder: Path):
    path = external_model(folder)
    path.write_bytes(path.read_bytes().replace(b"w.bin", b"\xff.bin"))
    return path, "the graph holds text that is not UTF-8: b'\\xff.bin'; the file is damaged"


@fault
def too_little_data(folder: Path):
    proto = dense_model()
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    return save(proto, folder), "tensor 'w' of shape [32, 16] and type FLOAT needs 2048 bytes, but has 2044"


@fault
def no_data(folder: Path):
    proto = dense_model()
    proto.graph.initializer[1].ClearField("raw_data")
    return save(proto, folder), "tensor 'b' of shape [16] and type FLOAT needs 16 values, but has 0"


@fault
def negative_size(folder: Path):
    proto = dense_model()
    proto.graph.initializer[0].dims[0] = -32
    return save(proto, folder), "tensor 'w' has a negative size in its shape [-32, 16]"


@fault
def unknown_type(folder: Path):
    proto = dense_model()
    proto.graph.initializer[0].data_type = 99
    return save(proto, folder), "tensor 'w' has data type 99, which ONNX does not define"


@fault
def two_nodes_write_one_value(folder: Path):
    proto = dense_model()
    proto.graph.node.append(helper.make_node("Relu", ["x"], ["h"], "r"))
    return save(proto, folder), "two values of the graph are called 'h': the second is an output of Relu node 'r'"


@fault
def two_initialisers_of_one_name(folder: Path):
    proto = dense_model()
    proto.graph.initializer.append(numpy_helper.from_array(weights(3), "w"))
    return save(proto, folder), "two values of the graph are called 'w': the second is an initialiser"


@fault
def an_initialiser_that_is_also_computed(folder: Path):
    proto = dense_model()
    proto.graph.initializer.append(numpy_helper.from_array(weights(3), "h"))
    return save(proto, folder), "two values of the graph are called 'h': the second is an output of MatMul node 'mm'"


@fault
def two_inputs_of_one_name(folder: Path):
    proto = dense_model()
    proto.graph.input.append(value("x", 3))
    return save(proto, folder), "two values of the graph are called 'x': the second is an input"


@fault
def an_initialiser_without_a_name(folder: Path):
    proto = dense_model()
    proto.graph.initializer[1].name = ""
    return save(proto, folder), "a tensor of shape [16] in the graph has no name"


@fault
def a_value_from_nowhere(folder: Path):
    proto = dense_model()
    proto.graph.node[0].input[1] = "v"
    return save(proto, folder), "MatMul node 'mm' reads 'v', which nothing in the graph produces"


@fault
def a_value_from_nowhere_in_a_subgraph(folder: Path):
    proto = if_model()
    proto.graph.node[0].attribute[0].g.node[0].input[0] = "v"
    return save(proto, folder), (
        "Neg node 'n' reads 'v', which nothing in subgraph 'else_branch' of If node 'if' produces"
    )


@fault
def an_output_from_nowhere(folder: Path):
    proto = dense_model()
    proto.graph.output[0].name = "z"
    return save(proto, folder), "output 'z' of the graph is produced by nothing"


@fault
def nodes_in_a_circle(folder: Path):
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    return save(model_of(nodes, outputs=[value("b")]), folder), (
        "the model is not sound: Graph contains a cycle, topological sort is not possible."
    )


@fault
def functions_in_a_circle(folder: Path):
    proto = function_model()
    call = helper.make_node("outer", ["a"], ["circle"], domain="local")
    proto.functions[0].node.append(call)
    return save(proto, folder), (
        "functions of the model call each other in a circle: local::inner -> local::outer -> local::inner"
    )


@fault
def a_function_that_calls_itself_in_a_subgraph(folder: Path):
    proto = function_model()
    branch = helper.make_graph(
        [helper.make_node("inner", ["a"], ["deep"], domain="local")], "branch", [], [value("deep")]
    )
    proto.functions[0].node.append(helper.make_node("If", ["a"], ["either"], then_branch=branch, else_branch=branch))
    return save(proto, folder), "functions of the model call each other in a circle: local::inner -> local::inner"


@fault
def functions_that_unfold_without_end(folder: Path):
    opset = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]

    def double(index: int) -> onnx.FunctionProto:
        if index == 0:
            nodes = [helper.make_node("Relu", ["a"], ["c"])]
        else:
            callee = f"f{index - 1}"
            nodes = [
                helper.make_node(callee, ["a"], ["b"], domain="local"),
                helper.make_node(callee, ["b"], ["c"], domain="local"),
            ]
        return helper.make_function("local", f"f{index}", ["a"], ["c"], nodes, opset)

    proto = model_of([helper.make_node("f40", ["x"], ["y"], domain="local")])
    proto.opset_import.append(opset[1])
    proto.functions.extend(double(index) for index in range(41))
    total = 2**40 + 2 * (2**40 - 1)  # 2^40 Relus and the calls above them
    return save(proto, folder), f"the model's functions would unfold to {total} nodes, more than 2000000"


@fault
def a_function_of_another_opset(folder: Path):
    proto = function_model()
    proto.functions[0].opset_import[0].version = 11
    return save(proto, folder), (
        "the model is not sound: Opset mismatch when inlining function 'local::inner': domain '' has version 20 in "
        "the model but version 11 in the function"
    )


@fault
def a_sparse_index_outside(folder: Path):
    proto = sparse_model()
    proto.graph.sparse_initializer[0].indices.CopyFrom(numpy_helper.from_array(np.array([1, 40, 512]), "w_idx"))
    return save(proto, folder), "sparse tensor 'w': an index lies outside its shape [32, 16]"


@fault
def sparse_indices_of_another_shape(folder: Path):
    proto = sparse_model()
    proto.graph.sparse_initializer[0].indices.CopyFrom(numpy_helper.from_array(np.zeros((2, 2), np.int64), "w_idx"))
    return save(proto, folder), (
        "sparse tensor 'w': indices of shape [2, 2] and type int64 do not fit 3 values of a tensor of shape [32, 16]; "
        "expected int64 [3] or [3, 2]"
    )


@fault
def a_sparse_tensor_too_large(folder: Path):
    proto = sparse_model()
    proto.graph.sparse_initializer[0].dims[:] = [1 << 20, 1 << 20]
    return save(proto, folder), (
        "sparse tensor 'w' of shape [1048576, 1048576] would take 4398046511104 bytes when made dense, more than 2 GiB"
    )


@fault
def damaged_inside(folder: Path):
    content = bytearray(dense_model().SerializeToString())
    at = content.index(b"\x1a\x02mm")  # the length of a node's name
    content[at + 1] = 0x7F
    path = folder / "m.onnx"
    path.write_bytes(content)
    return path, "is damaged inside its graph, or nested deeper than protobuf reads (100 levels)"


@fault
def ten_thousand_subgraphs_in_each_other(folder: Path):
    graph = b""
    for _ in range(10_000):  # GraphProto.node (1) { attribute (5) { g (6) } }
        for number in (6, 5, 1):
            graph = field_head(number, len(graph)) + graph
    path = folder / "m.onnx"
    path.write_bytes(b"\x08\x09" + field_head(7, len(graph)) + graph)
    return path, "is damaged inside its graph, or nested deeper than protobuf reads (100 levels)"


@fault
def a_million_empty_nodes(folder: Path):
    proto = dense_model()
    graph = proto.graph.SerializeToString() + b"\x0a\x00" * 1_000_000
    proto.ClearField("graph")
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString() + field_head(7, len(graph)) + graph)
    return path, "a node of the graph that makes nothing has no operator"


@fault
def a_name_of_ten_million_characters(folder: Path):
    proto = dense_model()
    proto.graph.node[0].name = "n" * 10_000_000
    return save(proto, folder), (
        "the graph has a name of 10000000 characters, more than 8192: 'nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn...'"
    )


@fault
def sizes_whose_product_overflows(folder: Path):
    proto = dense_model()
    proto.graph.initializer[0].dims[:] = [2**32, 2**32]
    return save(proto, folder), "tensor 'w' of shape [4294967296, 4294967296] has more elements than can be counted"


@fault
def a_size_hidden_by_a_zero(folder: Path):
    proto = dense_model()
    proto.graph.initializer[0].dims[:] = [0, 2**62]
    proto.graph.initializer[0].raw_data = b""
    return save(proto, folder), "tensor 'w' of shape [0, 4611686018427387904] has more elements than can be counted"


@fault
def a_hundred_axes(folder: Path):
    proto = dense_model()
    proto.graph.initializer[0].dims.extend([1] * 98)
    return save(proto, folder), "tensor 'w' has 100 axes, more than 32"


@fault
def an_input_without_a_name(folder: Path):
    proto = dense_model()
    proto.graph.input.add()
    return save(proto, folder), "an input of the graph has no name"


@fault
def an_input_without_a_type(folder: Path):
    proto = dense_model()
    proto.graph.input[0].type.tensor_type.elem_type = 0
    return save(proto, folder), "input 'x' of the graph has no type that ONNX defines"


@fault
def an_input_of_a_hundred_axes(folder: Path):
    proto = dense_model()
    for _ in range(98):
        proto.graph.input[0].type.tensor_type.shape.dim.add(dim_value=1)
    return save(proto, folder), "input 'x' of the graph has 100 axes, more than 32"


@fault
def an_attribute_without_a_type(folder: Path):
    proto = dense_model()
    proto.graph.node[0].attribute.add(name="group")
    return save(proto, folder), "attribute 'group' of MatMul node 'mm' has no type"


@fault
def an_attribute_of_another_type(folder: Path):
    proto = if_model()
    branch = next(one for one in proto.graph.node[0].attribute if one.name == "then_branch")
    branch.CopyFrom(helper.make_attribute("then_branch", ["a", "b"]))
    return save(proto, folder), "attribute 'then_branch' of If node 'if' is of type STRINGS, not GRAPH"


@fault
def a_device_configuration_without_an_id(folder: Path):
    proto = dense_model()
    proto.graph.node[0].device_configurations.add()
    return save(proto, folder), "MatMul node 'mm' has a device configuration without an id"


@fault
def an_attribute_without_a_name(folder: Path):
    proto = dense_model()
    proto.graph.node[0].attribute.add(type=onnx.AttributeProto.INT)
    return save(proto, folder), "MatMul node 'mm' has an attribute without a name"


@fault
def an_attribute_given_twice(folder: Path):
    proto = dense_model()
    proto.graph.node[0].attribute.extend([helper.make_attribute("a", 1), helper.make_attribute("a", 2)])
    return save(proto, folder), "MatMul node 'mm' has two attributes called 'a'"


@fault
def an_operator_without_its_operands(folder: Path):
    proto = dense_model()
    del proto.graph.node[0].input[1:]
    return save(proto, folder), "MatMul node 'mm' has 1 inputs; MatMul takes 2"


@fault
def an_operator_with_an_empty_operand(folder: Path):
    proto = dense_model()
    proto.graph.node[0].input[1] = ""
    return save(proto, folder), "MatMul node 'mm' lacks its input 'B'"


@fault
def an_operator_with_too_many_results(folder: Path):
    proto = dense_model()
    proto.graph.node[0].output.append("more")
    return save(proto, folder), "MatMul node 'mm' has 2 outputs; MatMul takes 1"


@fault
def two_values_of_one_name_in_a_subgraph(folder: Path):
    proto = if_model()
    branch = proto.graph.node[0].attribute[1].g
    branch.node.append(branch.node[0])
    return save(proto, folder), (
        "two values of subgraph 'then_branch' of If node 'if' are called 't': the second is an output of Add node 'a'"
    )


@fault
def a_branch_that_gives_a_value_of_the_graph_around_it(folder: Path):
    proto = if_model()
    proto.graph.node[0].attribute[1].g.output[0].name = "x"
    return save(proto, folder), (
        "output 'x' of subgraph 'then_branch' of If node 'if' is of a graph around it; add an Identity node"
    )


@fault
def two_functions_of_one_name(folder: Path):
    proto = function_model()
    proto.functions.append(proto.functions[0])
    return save(proto, folder), "two functions of the model have the same domain, name and overload"


@fault
def a_sparse_attribute(folder: Path):
    proto = sparse_model()
    node = helper.make_node("Relu", ["x"], ["z"], "r", table=proto.graph.sparse_initializer[0])
    proto = dense_model()
    proto.graph.node.append(node)
    return save(proto, folder), "attribute 'table' of Relu node 'r' is a sparse tensor; store it dense"


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_file_is_one_sentence_and_exit_code_2(name, tmp_path, run_cli, add_verb):
    check_refused(*FAULTS[name](tmp_path), run_cli, add_verb)
