"""Reading and writing ONNX files: what is sound survives, what is not is refused with one sentence and exit code 2."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.errors import InputError, UsageError
from graphprune.frontends.onnx import read_onnx
from graphprune.ir import files
from graphprune.ir.files import atomic_files, output_folder, sha256_of
from graphprune.ir.store import external_locations, write_onnx

FLOATS = TensorProto.FLOAT


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOATS, shape or None)


def model_of(
    nodes: list[onnx.NodeProto],
    initialisers: list[TensorProto] | None = None,
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
    **graph: object,
) -> onnx.ModelProto:
    inputs = [value("x", "batch", 32)] if inputs is None else inputs
    outputs = [value("y", "batch", 16)] if outputs is None else outputs
    proto = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, initialisers or [], **graph),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
        producer_name="tests",
    )
    helper.set_model_props(proto, {"author": "nobody"})
    return proto


def dense_model() -> onnx.ModelProto:
    """x @ w + b, with w (2048 bytes) large enough to be stored externally."""
    return model_of(
        [helper.make_node("MatMul", ["x", "w"], ["h"], "mm"), helper.make_node("Add", ["h", "b"], ["y"], "add")],
        [numpy_helper.from_array(weights(32, 16), "w"), numpy_helper.from_array(weights(16), "b")],
    )


def save(proto: onnx.ModelProto, folder: Path, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def make_external(tensor: TensorProto, **entries: object) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in entries.items():
        tensor.external_data.add(key=key, value=str(entry))


def external_model(folder: Path, **entries: object) -> Path:
    """``dense_model`` whose w is said to lie in ``w.bin`` (which is not written)."""
    proto = dense_model()
    make_external(proto.graph.initializer[0], **{"location": "w.bin", **entries})
    return save(proto, folder)


def write_data(path: Path, count: int = 512) -> Path:
    path.write_bytes(weights(count).tobytes())
    return path


def run(path: Path, **feeds: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)


# ---------------------------------------------------------------------------------------------------------------------
# Files that are refused. Each function makes a file in a folder and returns it with the sentence that must come.

Fault = Callable[[Path], tuple[Path, str]]
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


def data(sentence: str) -> str:
    return f"tensor 'w': its external data {sentence}"


@fault
def external_missing(folder: Path):
    return external_model(folder), data("'w.bin' is missing; it must lie beside the model")


@fault
def external_without_location(folder: Path):
    return external_model(folder, location=""), "tensor 'w' is stored as external data, but no location is given"


@fault
def external_absolute(folder: Path):
    return external_model(folder, location="/etc/passwd"), data(
        "'/etc/passwd' is an absolute path; it must lie in the model's folder"
    )


@fault
def external_absolute_on_windows(folder: Path):
    return external_model(folder, location="C:\\w.bin"), data(
        "'C:\\\\w.bin' is an absolute path; it must lie in the model's folder"
    )


@fault
def external_above(folder: Path):
    write_data(folder / "w.bin")
    (folder / "sub").mkdir()
    return external_model(folder / "sub", location="../w.bin"), data(
        "'../w.bin' leaves the model's folder through '..'"
    )


@fault
def external_above_and_back(folder: Path):
    (folder / "sub").mkdir()
    write_data(folder / "sub" / "w.bin")
    return external_model(folder / "sub", location="../sub/w.bin"), data(
        "'../sub/w.bin' leaves the model's folder through '..'"
    )


@fault
def external_through_a_link(folder: Path):
    write_data(folder / "secret")
    (folder / "sub").mkdir()
    (folder / "sub" / "w.bin").symlink_to(folder / "secret")
    return external_model(folder / "sub"), data(
        "'w.bin' leaves the model's folder through a symbolic link; put the file itself there (cp -L)"
    )


@fault
def external_through_a_linked_folder(folder: Path):
    (folder / "elsewhere").mkdir()
    write_data(folder / "elsewhere" / "w.bin")
    (folder / "sub").mkdir()
    (folder / "sub" / "data").symlink_to("../elsewhere")
    return external_model(folder / "sub", location="data/w.bin"), data(
        "'data/w.bin' leaves the model's folder through a symbolic link; put the file itself there (cp -L)"
    )


@fault
def external_in_a_folder_with_the_same_beginning(folder: Path):
    (folder / "sub-secret").mkdir()
    write_data(folder / "sub-secret" / "w.bin")
    (folder / "sub").mkdir()
    (folder / "sub" / "w.bin").symlink_to("../sub-secret/w.bin")
    return external_model(folder / "sub"), data(
        "'w.bin' leaves the model's folder through a symbolic link; put the file itself there (cp -L)"
    )


@fault
def external_link_in_a_circle(folder: Path):
    (folder / "w.bin").symlink_to("w.bin")
    return external_model(folder), data("'w.bin' cannot be reached: too many levels of symbolic links")


@fault
def external_hard_link(folder: Path):
    (folder / "sub").mkdir()
    os.link(write_data(folder / "secret"), folder / "sub" / "w.bin")
    return external_model(folder / "sub"), data(
        "'w.bin' has 2 hard links, so it may be another file; put a copy in its place (cp)"
    )


@fault
def external_pipe(folder: Path):
    os.mkfifo(folder / "w.bin")
    return external_model(folder), data("'w.bin' is not a regular file")


@fault
def external_folder(folder: Path):
    return external_model(folder, location="."), data("'.' is not a regular file")


@fault
def external_with_a_null(folder: Path):
    return external_model(folder, location="w\0.bin"), data("'w\\x00.bin' holds a null character")


@fault
def external_too_short(folder: Path):
    write_data(folder / "w.bin", count=500)
    return external_model(folder), (
        "tensor 'w': its external data ends at byte 2048 of 'w.bin', which has only 2000 bytes; "
        "the file may be cut short"
    )


@fault
def external_offset_beyond(folder: Path):
    write_data(folder / "w.bin")
    return external_model(folder, offset=4096), (
        "tensor 'w': its external data ends at byte 6144 of 'w.bin', which has only 2048 bytes; "
        "the file may be cut short"
    )


@fault
def external_offset_negative(folder: Path):
    write_data(folder / "w.bin")
    return external_model(folder, offset=-8), (
        "tensor 'w': its external data in 'w.bin' has offset '-8', which is no number of bytes"
    )


@fault
def external_length_of_another_tensor(folder: Path):
    write_data(folder / "w.bin", count=4096)
    return external_model(folder, length=4096), (
        "tensor 'w': its external data in 'w.bin' has length 4096, but shape [32, 16] of type FLOAT takes 2048 bytes"
    )


@fault
def external_length_not_a_number(folder: Path):
    write_data(folder / "w.bin")
    return external_model(folder, length="1_000"), (
        "tensor 'w': its external data in 'w.bin' has length '1_000', which is no number of bytes"
    )


@fault
def external_strings(folder: Path):
    proto = dense_model()
    make_external(proto.graph.initializer[0], location="w.bin")
    proto.graph.initializer[0].data_type = TensorProto.STRING
    write_data(folder / "w.bin")
    return save(proto, folder), "tensor 'w' holds strings, which cannot be stored as external data"


@fault
def external_in_a_constant(folder: Path):
    node = helper.make_node("Constant", [], ["y"], "c", value=numpy_helper.from_array(weights(2, 16), "w"))
    make_external(node.attribute[0].t, location="../w.bin")
    return save(model_of([node]), folder), (
        "tensor attribute 'value' of Constant node 'c': its external data '../w.bin' leaves the model's folder "
        "through '..'"
    )


@fault
def external_in_a_subgraph(folder: Path):
    proto = if_model()
    make_external(proto.graph.node[0].attribute[1].g.initializer[0], location="/w.bin")
    return save(proto, folder), (
        "tensor 'inner': its external data '/w.bin' is an absolute path; it must lie in the model's folder"
    )


@fault
def external_in_a_function(folder: Path):
    proto = function_model()
    constant = helper.make_node("Constant", [], ["k"], "c", value=numpy_helper.from_array(weights(2), "w"))
    make_external(constant.attribute[0].t, location="../w.bin")
    proto.functions[0].node.append(constant)
    return save(proto, folder), (
        "tensor attribute 'value' of Constant node 'c': its external data '../w.bin' leaves the model's folder "
        "through '..'"
    )


@fault
def external_in_a_sparse_tensor(folder: Path):
    proto = sparse_model()
    make_external(proto.graph.sparse_initializer[0].values, location="../w.bin")
    return save(proto, folder), (
        "values of sparse tensor 'w': its external data '../w.bin' leaves the model's folder through '..'"
    )


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


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_file_is_one_sentence_and_exit_code_2(name, tmp_path, run_cli, add_verb):
    path, sentence = FAULTS[name](tmp_path)
    between = " " if sentence.startswith(("is ", "has ", "does ", "cannot ")) else ": "
    expected = f"'{path}'{between}{sentence}"
    with pytest.raises(InputError) as caught:
        read_onnx(path)
    assert str(caught.value) == expected

    add_verb(lambda: read_onnx(path))
    result = run_cli("try")
    assert (result.code, result.out) == (2, "")
    assert result.err == f"graphprune: error: {expected}\n".replace("\0", "\\x00")


# ---------------------------------------------------------------------------------------------------------------------
# Models that are read.


def if_model() -> onnx.ModelProto:
    then = helper.make_graph(
        [helper.make_node("Add", ["x", "inner"], ["t"], "a")],
        "then",
        [],
        [value("t")],
        [numpy_helper.from_array(weights(32), "inner")],
    )
    otherwise = helper.make_graph([helper.make_node("Neg", ["x"], ["e"], "n")], "else", [], [value("e")])
    return model_of(
        [helper.make_node("If", ["flag"], ["y"], "if", then_branch=then, else_branch=otherwise)],
        inputs=[value("x", "batch", 32), helper.make_tensor_value_info("flag", TensorProto.BOOL, [])],
        outputs=[value("y", "batch", 32)],
    )


def function_model() -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    inner = helper.make_function(
        "local",
        "inner",
        ["a", "scale"],
        ["c", "a2"],
        [
            helper.make_node("Neg", ["c"], ["a2"]),  # out of order
            helper.make_node("Mul", ["a", "scale"], ["b"]),
            helper.make_node("Relu", ["b"], ["c"]),
        ],
        opsets,
    )
    outer = helper.make_function(
        "local",
        "outer",
        ["a"],
        ["c", "a"],  # one output is a parameter
        [
            helper.make_node("Constant", [], ["scale"], value=numpy_helper.from_array(np.float32(2))),
            helper.make_node("inner", ["a", "scale"], ["b", ""], domain="local"),
            helper.make_node("inner", ["b", "scale"], ["c"], domain="local"),
        ],
        opsets,
    )
    proto = model_of(
        [
            helper.make_node("outer", ["x"], ["b", "same"], domain="local", name="call1"),
            helper.make_node("outer", ["b"], ["y", ""], domain="local", name="call2"),
        ],
        outputs=[value("y", "batch", 32), value("same", "batch", 32)],
    )
    proto.opset_import.append(opsets[1])
    proto.functions.extend([inner, outer])
    return proto


def sparse_model() -> onnx.ModelProto:
    proto = dense_model()
    del proto.graph.initializer[0]
    values = numpy_helper.from_array(np.array([1.0, 2.0, 3.0], np.float32), "w")
    indices = numpy_helper.from_array(np.array([1, 40, 511]), "w_idx")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [32, 16]))
    return proto


X = weights(2, 32, seed=9)


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


# ---------------------------------------------------------------------------------------------------------------------
# Models that are written.


def constant_model() -> onnx.ModelProto:
    """Weights in Constant nodes, as PaddlePaddle writes them."""
    proto = dense_model()
    for tensor in list(proto.graph.initializer):
        proto.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], f"c_{tensor.name}", value=tensor))
    del proto.graph.initializer[:]
    return proto


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("make", [dense_model, constant_model, if_model])
def test_a_round_trip_keeps_every_value(tmp_path, make, external):
    path = save(make(), tmp_path)
    (tmp_path / "out").mkdir()
    written = write_onnx(read_onnx(path), tmp_path / "out" / "m.onnx", external=external)
    has_large = make is not if_model  # its one tensor has 128 bytes and stays inside
    assert [file.name for file in written] == ["m.onnx.data", "m.onnx"][0 if external and has_large else 1 :]
    assert sorted(os.listdir(tmp_path / "out")) == sorted(file.name for file in written)
    assert len(onnx.load(written[-1]).graph.node) == len(onnx.load(path).graph.node)
    feeds = {"x": X} | ({"flag": np.array(True)} if make is if_model else {})
    np.testing.assert_array_equal(run(written[-1], **feeds)[0], run(path, **feeds)[0])
    # Written again from what was just written, in the other form: still the same values.
    back = write_onnx(read_onnx(written[-1]), tmp_path / "back.onnx", external=not external)
    np.testing.assert_array_equal(run(back[-1], **feeds)[0], run(path, **feeds)[0])


def test_a_file_is_what_protobuf_would_write(tmp_path):
    model = read_onnx(save(dense_model(), tmp_path))
    write_onnx(model, tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == ir.to_proto(model)


@pytest.mark.parametrize("external", [False, True])
def test_the_same_model_gives_the_same_bytes(tmp_path, external):
    path = save(dense_model(), tmp_path)
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written = write_onnx(read_onnx(path), tmp_path / name / "m.onnx", external=external)
        digests.append(sha256_of(written[-1], [file.name for file in written[:-1]]))
    assert digests[0] == digests[1]
    assert list(digests[0]) == (["m.onnx", "m.onnx.data"] if external else ["m.onnx"])


def test_the_threshold_decides_where_the_data_goes(tmp_path):
    model = read_onnx(save(dense_model(), tmp_path))
    nbytes = 32 * 16 * 4 + 16 * 4
    assert len(write_onnx(model, tmp_path / "a.onnx", threshold=nbytes)) == 1
    assert len(write_onnx(model, tmp_path / "b.onnx", threshold=nbytes - 1)) == 2
    assert external_locations(read_onnx(tmp_path / "b.onnx")) == ("b.onnx.data",)


@pytest.mark.parametrize("external", [False, True])
def test_writing_leaves_the_model_as_it_was(tmp_path, external):
    model = read_onnx(save(constant_model(), tmp_path))
    model.graph.initializers.add(ir.Value(name="extra", const_value=ir.tensor(weights(2048), name="extra")))
    before = [model.graph.initializers["extra"].const_value, *(node.attributes.get("value") for node in model.graph)]
    write_onnx(model, tmp_path / "out.onnx", external=external)
    after = [model.graph.initializers["extra"].const_value, *(node.attributes.get("value") for node in model.graph)]
    assert all(one is other for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("external", [False, True])
def test_lazy_tensors_are_made_one_at_a_time(tmp_path, external):
    made: list[str] = []

    def lazy(name: str) -> ir.Value:
        def make() -> ir.Tensor:
            made.append(name)
            return ir.Tensor(weights(32, 32, seed=ord(name)), name=name)

        tensor = ir.LazyTensor(make, dtype=ir.DataType.FLOAT, shape=ir.Shape([32, 32]), name=name)
        return ir.Value(name=name, const_value=tensor, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([32, 32]))

    proto = model_of([helper.make_node("Identity", ["x"], ["y"], "i")], outputs=[value("y", "batch", 32)])
    model = read_onnx(save(proto, tmp_path))
    for name in "pqr":
        model.graph.initializers.add(lazy(name))
    write_onnx(model, tmp_path / "out.onnx", external=external)
    assert made == ["p", "q", "r"]
    again = read_onnx(tmp_path / "out.onnx")
    for name in "pqr":
        np.testing.assert_array_equal(
            again.graph.initializers[name].const_value.numpy(), weights(32, 32, seed=ord(name))
        )


def test_a_tensor_used_twice_is_stored_once(tmp_path):
    proto = dense_model()
    model = read_onnx(save(proto, tmp_path))
    shared = ir.tensor(weights(1024), name="shared")
    for name in ("s1", "s2"):
        model.graph.initializers.add(ir.Value(name=name, const_value=shared))
    data, _ = write_onnx(model, tmp_path / "out.onnx", external=True)
    assert data.stat().st_size == 4096 + 4096  # w, aligned, and the shared one
    again = read_onnx(tmp_path / "out.onnx")
    for name in ("s1", "s2"):
        np.testing.assert_array_equal(again.graph.initializers[name].const_value.numpy(), weights(1024))


@pytest.mark.parametrize("external", [False, True])
def test_the_narrow_types_survive(tmp_path, external):
    tensors = [
        helper.make_tensor("i4", TensorProto.INT4, [5001], np.arange(5001) % 16 - 8),
        helper.make_tensor("bf", TensorProto.BFLOAT16, [2000], np.arange(2000.0)),
        helper.make_tensor("f8", TensorProto.FLOAT8E4M3FN, [3000], np.arange(3000) % 17),
        numpy_helper.from_array(np.arange(2000) % 3 == 0, "bool"),
        helper.make_tensor("c", TensorProto.COMPLEX64, [600], np.arange(600) * 1j),
        helper.make_tensor("s", TensorProto.STRING, [2], [b"one", b"two"]),
        numpy_helper.from_array(np.float32(3), "scalar"),
        numpy_helper.from_array(np.zeros((0, 4), np.float32), "none"),
    ]
    proto = model_of([helper.make_node("Identity", ["x"], ["y"])], tensors, outputs=[value("y", "batch", 32)])
    proto.ir_version = 10
    path = save(proto, tmp_path)
    write_onnx(read_onnx(path), tmp_path / "out.onnx", external=external)
    again = {tensor.name: tensor for tensor in onnx.load(tmp_path / "out.onnx").graph.initializer}
    for tensor in tensors:
        assert list(again[tensor.name].dims) == list(tensor.dims)
        expected, got = (numpy_helper.to_array(one) for one in (tensor, again[tensor.name]))
        assert expected.dtype == got.dtype
        np.testing.assert_array_equal(got, expected)


class Refuses(Exception):
    pass


@pytest.mark.parametrize("external", [False, True])
def test_a_failure_leaves_nothing_behind(tmp_path, external):
    def fail() -> ir.Tensor:
        raise Refuses

    model = read_onnx(save(dense_model(), tmp_path))
    lazy = ir.LazyTensor(fail, dtype=ir.DataType.FLOAT, shape=ir.Shape([999]), name="lazy")
    model.graph.initializers.add(ir.Value(name="lazy", const_value=lazy))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(Refuses):
        write_onnx(model, out / "m.onnx", external=external)
    assert os.listdir(out) == []


@pytest.mark.parametrize("external", [False, True])
def test_a_full_disk_is_one_sentence_and_keeps_the_old_file(tmp_path, external, monkeypatch, run_cli, add_verb):
    model = read_onnx(save(dense_model(), tmp_path))
    out = tmp_path / "out" / "m.onnx"
    out.parent.mkdir()
    out.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    add_verb(lambda: write_onnx(model, out, external=external))
    result = run_cli("try")
    name = f"{out}.data" if external else str(out)
    assert (result.code, result.err) == (2, f"graphprune: error: cannot write '{name}': no space left on the device\n")
    assert os.listdir(out.parent) == ["m.onnx"]
    assert out.read_text() == "old"


def test_a_failed_rename_takes_the_data_file_back(tmp_path, monkeypatch):
    model = read_onnx(save(dense_model(), tmp_path))
    out = tmp_path / "out"
    out.mkdir()
    replace = os.replace

    def refuse_model(source: Path, target: Path) -> None:
        if target.name == "m.onnx":
            raise PermissionError(errno.EACCES, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", refuse_model)
    with pytest.raises(UsageError, match=r"^cannot write '.*/out/m\.onnx': permission denied$"):
        write_onnx(model, out / "m.onnx", external=True)
    assert os.listdir(out) == []


@pytest.mark.parametrize(
    ("target", "reason"),
    [("none/m.onnx", "no such file or directory"), ("file/m.onnx", "not a directory"), ("folder", "is a directory")],
)
def test_a_target_that_cannot_be_written(tmp_path, target, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    model = read_onnx(save(dense_model(), tmp_path))
    with pytest.raises(UsageError) as caught:
        write_onnx(model, tmp_path / target)
    assert str(caught.value) == f"cannot write '{tmp_path / target}': {reason}"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "m.onnx"]


def test_the_source_of_the_data_is_not_overwritten(tmp_path):
    write_onnx(read_onnx(save(dense_model(), tmp_path, "in.onnx")), tmp_path / "m.onnx", external=True)
    model = read_onnx(tmp_path / "m.onnx")
    with pytest.raises(UsageError) as caught:
        write_onnx(model, tmp_path / "m.onnx", external=True)
    assert str(caught.value) == (
        f"cannot write '{tmp_path}/m.onnx': the model reads '{tmp_path}/m.onnx.data'; choose another folder"
    )


def test_more_than_protobuf_holds_is_refused_before_anything_is_computed(tmp_path):
    model = read_onnx(save(dense_model(), tmp_path))
    lazy = ir.LazyTensor(lambda: pytest.fail("made"), dtype=ir.DataType.FLOAT, shape=ir.Shape([2**29]), name="big")
    model.graph.initializers.add(ir.Value(name="big", const_value=lazy))
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="bytes are more than one ONNX file can hold"):
        write_onnx(model, tmp_path / "out" / "m.onnx", external=False)
    assert os.listdir(tmp_path / "out") == []


def test_new_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    write_onnx(read_onnx(save(dense_model(), tmp_path)), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_several_files_take_their_names_together(tmp_path):
    with pytest.raises(Refuses), atomic_files(tmp_path / "a", tmp_path / "b") as (a, _):
        a.write(b"1")
        raise Refuses
    assert os.listdir(tmp_path) == []
    with atomic_files(tmp_path / "a", tmp_path / "b") as (a, b):
        a.write(b"1")
        b.write(b"2")
        assert not (tmp_path / "a").exists()
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"1", b"2"]
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_output_folder(tmp_path):
    assert output_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "file").touch()
    for path, reason in ((tmp_path / "file", "it is not a folder"), (tmp_path / "file" / "sub", "not a directory")):
        with pytest.raises(UsageError) as caught:
            output_folder(path)
        assert str(caught.value) == f"cannot write into '{path}': {reason}"


def test_hashes_cover_the_data_files(tmp_path):
    write_data(tmp_path / "w.bin")
    path = external_model(tmp_path)
    digests = sha256_of(path, external_locations(read_onnx(path)))
    assert list(digests) == ["m.onnx", "w.bin"]
    write_data(tmp_path / "w.bin", count=513)
    changed = sha256_of(path, ["w.bin"])
    assert changed["m.onnx"] == digests["m.onnx"]
    assert changed["w.bin"] != digests["w.bin"]
    with pytest.raises(InputError, match=r"its external data '\.\./w\.bin' leaves the model's folder through '\.\.'"):
        sha256_of(path, ["../w.bin"])


def test_a_path_may_be_an_argument_of_a_verb(tmp_path, run_cli, add_verb):
    path = save(dense_model(), tmp_path)
    add_verb(lambda model: click.echo(len(read_onnx(model).graph)), click.Argument(["model"]))
    result = run_cli("try", path)
    assert (result.code, result.out, result.err) == (0, "2\n", "")
