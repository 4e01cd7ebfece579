from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnx.parser import parse_model

from graphprune.backends.reference import run_float64
from graphprune.errors import InputError

Feeds = Mapping[str, np.ndarray]


def both(text_or_proto: str | onnx.ModelProto, feeds: Feeds) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Outputs in float64 by us and in the model's own precision by ONNX Runtime."""
    proto = parse_model(text_or_proto) if isinstance(text_or_proto, str) else text_or_proto
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    theirs = session.run(None, dict(feeds))
    model = ir.from_proto(proto)
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    ours = run_float64(model, feeds)
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before
    assert list(ours) == [value.name for value in proto.graph.output]
    return list(ours.values()), theirs


def agree(text_or_proto: str | onnx.ModelProto, feeds: Feeds, tolerance: float = 1e-5) -> list[np.ndarray]:
    ours, theirs = both(text_or_proto, feeds)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert mine.dtype == (np.float64 if np.issubdtype(other.dtype, np.floating) else other.dtype)
        scale = max(float(np.abs(other).max()), 1e-6) if other.size else 1.0
        np.testing.assert_allclose(mine / scale, other.astype(mine.dtype) / scale, atol=tolerance)
    return ours


def one_node(op: str, shapes: dict[str, tuple[int, ...]], opset: int = 17, outputs: int = 1, **attributes: Any) -> Any:
    """A model of one operator whose inputs are all fed, and random feeds."""
    rng = np.random.default_rng(0)
    node = helper.make_node(op, list(shapes), [f"y{i}" for i in range(outputs)], name="it", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None) for i in range(outputs)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return proto, {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((2, 3, 9, 8), (4, 3, 3, 2), {}),
        ((2, 6, 9, 8), (9, 2, 3, 3), {"group": 3, "pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
        ((1, 6, 7, 7), (6, 1, 3, 3), {"group": 6, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((1, 6, 8, 8), (12, 1, 4, 4), {"group": 6, "auto_pad": "SAME_LOWER", "strides": [3, 3]}),
        ((2, 4, 11), (5, 4, 4), {"strides": [3], "auto_pad": "VALID"}),
        ((1, 2, 5, 6, 7), (3, 2, 2, 3, 3), {"pads": [0, 1, 1, 0, 1, 1], "strides": [1, 2, 2]}),
    ],
)
def test_convolution_agrees(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    agree(*one_node("Conv", {"x": x, "w": w, "b": w[:1]}, **attributes))
    agree(*one_node("Conv", {"x": x, "w": w}, **attributes))


def test_a_large_convolution_is_unfolded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    proto, feeds = one_node("Conv", {"x": (2, 4, 33, 9), "w": (6, 2, 3, 3)}, group=2, strides=[2, 1])
    whole = run_float64(ir.from_proto(proto), feeds)["y0"]
    monkeypatch.setattr("graphprune.backends.reference_ops._CHUNK", 5000)
    np.testing.assert_allclose(run_float64(ir.from_proto(proto), feeds)["y0"], whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((2, 3, 4, 5), (3, 4, 3, 2), {}),
        ((1, 4, 4, 4), (4, 2, 2, 2), {"strides": [2, 2], "group": 2}),
        ((1, 4, 5, 4), (4, 3, 3, 3), {"strides": [2, 3], "pads": [1, 1, 0, 1], "output_padding": [1, 0]}),
        ((1, 2, 5, 4), (2, 3, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ((1, 2, 5, 4), (2, 3, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
        ((1, 2, 5, 4), (2, 3, 3, 3), {"strides": [2, 2], "output_shape": [10, 8]}),
        ((1, 2, 6), (2, 3, 3), {"strides": [2], "dilations": [2]}),
    ],
)
def test_transposed_convolution_agrees(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    bias = (w[1] * attributes.get("group", 1),)
    agree(*one_node("ConvTranspose", {"x": x, "w": w, "b": bias}, **attributes))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [2, 2]},
        {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
    ],
)
def test_pooling_agrees(op: str, attributes: dict[str, Any]) -> None:
    agree(*one_node(op, {"x": (2, 3, 10, 8)}, **attributes))
    agree(*one_node(op, {"x": (2, 3, 7, 9)}, **attributes))


def test_average_pooling_counts_padding_when_asked_to() -> None:
    options = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    agree(*one_node("AveragePool", {"x": (1, 2, 7, 7)}, **options))
    agree(*one_node("AveragePool", {"x": (1, 2, 8, 8)}, opset=19, ceil_mode=1, **options))


def test_dilated_max_pooling_and_its_indices() -> None:
    agree(*one_node("MaxPool", {"x": (1, 2, 9, 9)}, kernel_shape=[3, 3], dilations=[2, 2]))
    proto, feeds = one_node("MaxPool", {"x": (1, 2, 6, 6)}, outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    proto.graph.output[1].type.tensor_type.elem_type = TensorProto.INT64
    agree(proto, feeds)


@pytest.mark.parametrize("opset", [9, 13, 15])
def test_batch_normalization_uses_the_stored_statistics(opset: int) -> None:
    shapes = {"x": (2, 3, 4, 4), "scale": (3,), "bias": (3,), "mean": (3,), "var": (3,)}
    proto, feeds = one_node("BatchNormalization", shapes, opset=opset, momentum=0.8, epsilon=1e-3)
    agree(proto, feeds | {"var": np.abs(feeds["var"]) + 0.1})


def test_batch_normalization_in_training_mode_is_refused() -> None:
    shapes = {"x": (2, 3, 4), "scale": (3,), "bias": (3,), "mean": (3,), "var": (3,)}
    proto, feeds = one_node("BatchNormalization", shapes, opset=15, outputs=3, training_mode=1)
    with pytest.raises(InputError, match="BatchNormalization 'it' is in training mode"):
        run_float64(ir.from_proto(proto), feeds)


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_operators_agree(op: str, direction: str) -> None:
    d, g = (2 if direction == "bidirectional" else 1), (4 if op == "LSTM" else 3)
    shapes = {"x": (5, 2, 3), "w": (d, g * 4, 3), "r": (d, g * 4, 4), "b": (d, 2 * g * 4)}
    agree(*one_node(op, shapes, outputs=2, hidden_size=4, direction=direction))


@pytest.mark.parametrize(
    ("attributes", "what"),
    [({"activations": ["Relu", "Tanh", "Tanh"]}, "other activations"), ({"clip": 1.0}, "clip")],
)
def test_recurrent_attributes_that_would_be_ignored_are_refused(attributes: dict[str, Any], what: str) -> None:
    proto, feeds = one_node("LSTM", {"x": (5, 2, 3), "w": (1, 16, 3), "r": (1, 16, 4)}, hidden_size=4, **attributes)
    with pytest.raises(InputError, match=f"LSTM 'it' has no float64 reference for {what}"):
        run_float64(ir.from_proto(proto), feeds)


def test_weights_that_the_network_rounds_are_rounded() -> None:
    """As they are in a network in which the cast was folded away; what follows from an input is not."""
    model = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2] x) => (float16[1,2] y)
    <float[2] w = {0.1, 0.3}, int64[1] first = {0}>
    {
        wide = Unsqueeze (w, first)
        half = Cast <to = 10> (wide)
        small = Cast <to = 10> (x)
        y = Mul (small, half)
    }
    """
    x = np.array([0.7, 0.9], dtype=np.float32)
    found = run_float64(ir.from_proto(parse_model(model)), {"x": x})
    weights = np.array([0.1, 0.3], dtype=np.float32).astype(np.float16).astype(np.float64)
    np.testing.assert_array_equal(found["y"], (x.astype(np.float64) * weights)[None])


def test_every_float_is_widened() -> None:
    """1 + 2**-40 survives constants in all their forms, casts, fills, subgraphs and float16: nothing is rounded."""
    model = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2] x, bool c) => (float[2] y, float16[2] h, int64[1] n)
    <float[2] w = {1, 1}, float16[2] half = {0, 0}>
    {
        tiny = Constant <value_float = 9.094947017729282e-13> ()
        tinies = Constant <value_floats = [9.094947017729282e-13, 9.094947017729282e-13]> ()
        none = Constant <value = float[2] {0, 0}> ()
        shape = Shape (x)
        zeros = ConstantOfShape (shape)
        ones = ConstantOfShape <value = float[1] {1}> (shape)
        a = Add (w, tiny)
        b = Cast <to = 1> (a)
        like = CastLike (b, none)
        s = Add (like, zeros)
        chosen = If (c) <
            then_branch = yes () => (float[2] p) { k = Constant <value = float[2] {1, 1}> () p = Mul (s, k) },
            else_branch = no () => (float[2] q) { q = Add (s, tinies) }
        >
        m = Mul (chosen, ones)
        y = Mul (m, x)
        small = Cast <to = 10> (y)
        h = Add (small, half)
        n = Cast <to = 7> (shape)
    }
    """
    x = np.array([1.0, 2.0], dtype=np.float32)
    expected = np.array([1 + 2.0**-40, 2 + 2.0**-39])
    found = run_float64(ir.from_proto(parse_model(model)), {"x": x, "c": np.array(True)})
    np.testing.assert_array_equal(found["y"], expected)
    np.testing.assert_array_equal(found["h"], expected)
    assert found["y"].dtype == found["h"].dtype == np.float64
    assert found["n"].dtype == np.int64
    agree(model, {"x": x, "c": np.array(False)})


@pytest.mark.parametrize("op", ["Gelu", "HardSwish", "Mish", "Erf"])
def test_operators_computed_through_functions_keep_their_precision(op: str) -> None:
    proto, feeds = one_node(op, {"x": (3, 5)}, opset=20)
    found = agree(proto, feeds)[0]
    assert not np.array_equal(found, found.astype(np.float32))


def test_gelu_with_tanh() -> None:
    agree(*one_node("Gelu", {"x": (3, 5)}, opset=20, approximate="tanh"))


def test_gather_elements_with_fewer_indices_than_data() -> None:
    model = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[3, 40] x, int64[2, 5] i) => (float[2, 5] y) { y = GatherElements <axis = 1> (x, i) }
    """
    rng = np.random.default_rng(0)
    agree(model, {"x": rng.standard_normal((3, 40)).astype(np.float32), "i": rng.integers(-40, 40, (2, 5))})


def test_any_value_of_the_graph_can_be_asked_for() -> None:
    model = '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { h = Neg (x) y = Exp (h) }'
    found = run_float64(ir.from_proto(parse_model(model)), {"x": np.zeros(2, np.float32)}, ["h"])
    assert list(found) == ["h"]


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "input 'x' is not given; the model has 'x'"),
        ({"x": np.zeros(2, np.float32), "z": np.zeros(2)}, "there is no input 'z'; the model has 'x'"),
        ({"x": np.zeros(3, np.float32)}, "does not run in float64: .*(broadcast|shape)"),
    ],
)
def test_feeds_that_do_not_fit(feeds: Feeds, message: str) -> None:
    model = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add (x, w) }
    """
    with pytest.raises(InputError, match=message):
        run_float64(ir.from_proto(parse_model(model)), feeds)


@pytest.mark.parametrize(
    ("op", "domain", "shown"), [("Whirl", "acme", "acme::Whirl"), ("GlobalLpPool", "", "GlobalLpPool")]
)
def test_an_operator_without_a_reference_is_named(op: str, domain: str, shown: str) -> None:
    proto, feeds = one_node(op, {"x": (1, 2, 3, 3)}, domain=domain)
    proto.opset_import.append(helper.make_opsetid("acme", 1))
    with pytest.raises(InputError, match=rf"operator {shown} \(node 'it'\) has no float64 reference"):
        run_float64(ir.from_proto(proto), feeds)
