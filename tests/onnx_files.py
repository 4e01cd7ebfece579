"""Small ONNX files, sound and unsound, for the tests of reading and writing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.errors import InputError
from graphprune.frontends.onnx import read_onnx

FLOATS = TensorProto.FLOAT
#: Makes a file in a folder and returns it with the sentence that must come.
Fault = Callable[[Path], tuple[Path, str]]


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


def one_node(op: str = "MatMul", *, opset: int = 20, ir_version: int = 10, size: int = 8) -> onnx.ModelProto:
    """``y = w x`` with float32 ``x`` of shape (N, size), or a single other node on ``x``."""
    inputs = ["x", "w"] if op in ("MatMul", "Reshape") else ["x"]
    weight = np.array([3, 5]) if op == "Reshape" else np.eye(size, dtype=np.float32) * 2
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"], name="node0")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def rows_of(rows: int = 2, size: int = 8) -> dict[str, np.ndarray]:
    return {"x": np.arange(rows * size, dtype=np.float32).reshape(rows, size)}


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


def constant_model() -> onnx.ModelProto:
    """Weights in Constant nodes, as PaddlePaddle writes them."""
    proto = dense_model()
    for tensor in list(proto.graph.initializer):
        proto.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], f"c_{tensor.name}", value=tensor))
    del proto.graph.initializer[:]
    return proto


def check_refused(path: Path, sentence: str, run_cli, add_verb) -> None:
    """The file is refused with this sentence, by the reader and, with exit code 2, on the command line."""
    between = " " if sentence.startswith(("is ", "has ", "does ", "cannot ")) else ": "
    expected = f"'{path}'{between}{sentence}"
    with pytest.raises(InputError) as caught:
        read_onnx(path)
    assert str(caught.value) == expected

    add_verb(lambda: read_onnx(path))
    result = run_cli("try")
    assert (result.code, result.out) == (2, "")
    assert result.err == f"graphprune: error: {expected}\n".replace("\0", "\\x00")
