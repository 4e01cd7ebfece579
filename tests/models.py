"""Small networks with random weights, each with one thing that real files do; built with ``onnx.helper`` alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
Dims = Sequence[int | str | None]


@dataclass(frozen=True)
class Sample:
    """A network and shapes that it runs on; ``other`` are shapes at other sizes of its symbolic dimensions."""

    model: onnx.ModelProto
    shapes: dict[str, tuple[int, ...]]
    other: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tolerance: float = 1e-4

    def feeds(self, other: bool = False, seed: int = 0) -> dict[str, Array]:
        """Random inputs."""
        rng = np.random.default_rng(seed)
        held = {tensor.name for tensor in self.model.graph.initializer}
        feeds: dict[str, Array] = {}
        for value in self.model.graph.input:
            if value.name in held:
                continue
            shape = (self.other if other else self.shapes)[value.name]
            dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            if dtype == np.bool_:
                feeds[value.name] = rng.integers(0, 2, shape).astype(np.bool_)
            elif np.issubdtype(dtype, np.integer):
                feeds[value.name] = rng.integers(0, 8, shape).astype(dtype)
            else:
                feeds[value.name] = np.asarray(rng.standard_normal(shape)).astype(dtype)
        return feeds

    def save(self, path: Path, **options: Any) -> Path:
        """Write it."""
        onnx.save(self.model, str(path), **options)
        return path


class Net:
    """Collects nodes and weights. Every method returns the name of what it made."""

    def __init__(self, opset: int = 17, ir_version: int = 8, dtype: Any = np.float32, seed: int = 0) -> None:
        self.opset, self.ir_version, self.dtype = opset, ir_version, dtype
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.held: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.domains: dict[str, int] = {}
        self.count = 0

    @property
    def elem(self) -> int:
        return helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))

    def input(self, name: str, shape: Dims | None, elem: int | None = None) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, elem or self.elem, shape))
        return name

    def weight(self, name: str, *shape: int, scale: float | None = None) -> str:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        values = self.rng.standard_normal(shape) * (scale if scale is not None else fan_in**-0.5)
        return self.hold(name, values.astype(self.dtype))

    def hold(self, name: str, array: Any) -> str:
        self.held.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def ints(self, name: str, *values: int) -> str:
        return self.hold(name, np.array(values, dtype=np.int64))

    def op(self, kind: str, *inputs: str, out: str | None = None, domain: str = "", **attributes: Any) -> str:
        return self.ops(kind, *inputs, outs=[out or self._name(kind)], domain=domain, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outs: Sequence[str], domain: str = "", **attributes: Any) -> list[str]:
        if domain:
            self.domains[domain] = 1
        node = helper.make_node(kind, inputs, list(outs), name=f"n_{outs[0]}", domain=domain, **attributes)
        self.nodes.append(node)
        return list(outs)

    def _name(self, kind: str) -> str:
        self.count += 1
        return f"{kind.lower()}_{self.count}"

    def conv(
        self, x: str, name: str, i: int, o: int, k: int = 3, group: int = 1, bias: bool = False, stride: int = 1
    ) -> str:
        words = [x, self.weight(f"{name}.weight", o, i // group, k, k)]
        if bias:
            words.append(self.weight(f"{name}.bias", o, scale=0.1))
        return self.op("Conv", *words, group=group, pads=[k // 2] * 4, strides=[stride] * 2, kernel_shape=[k, k])

    def norm(self, x: str, name: str, n: int) -> str:
        scale = self.hold(f"{name}.weight", self.rng.uniform(0.5, 1.5, n).astype(self.dtype))
        bias, mean = self.weight(f"{name}.bias", n, scale=0.1), self.weight(f"{name}.mean", n, scale=0.1)
        var = self.hold(f"{name}.var", self.rng.uniform(0.5, 1.5, n).astype(self.dtype))
        return self.op("BatchNormalization", x, scale, bias, mean, var)

    def block(self, x: str, name: str, i: int, o: int, k: int = 3, group: int = 1, stride: int = 1) -> str:
        y = self.conv(x, f"{name}.conv", i, o, k, group, stride=stride)
        return self.op("Relu", self.norm(y, f"{name}.bn", o))

    def linear(self, x: str, name: str, i: int, o: int, out: str | None = None) -> str:
        """Weight ``(i, o)``, bias; on the last axis."""
        y = self.op("MatMul", x, self.hold(f"{name}.weight", self._matrix(i, o)))
        return self.op("Add", y, self.weight(f"{name}.bias", o, scale=0.1), out=out)

    def _matrix(self, i: int, o: int) -> Array:
        return (self.rng.standard_normal((i, o)) * i**-0.5).astype(self.dtype)

    def head(self, x: str, i: int, o: int = 5, out: str = "y") -> str:
        """Pooled, flattened, one Gemm."""
        flat = self.op("Flatten", self.op("GlobalAveragePool", x))
        weight, bias = self.weight("head.weight", o, i), self.weight("head.bias", o, scale=0.1)
        return self.op("Gemm", flat, weight, bias, out=out, transB=1)

    def build(self, outputs: dict[str, Dims | None], *, elem: int | None = None) -> onnx.ModelProto:
        results = [helper.make_tensor_value_info(name, elem or self.elem, shape) for name, shape in outputs.items()]
        graph = helper.make_graph(self.nodes, "network", self.inputs, results, self.held)
        graph.doc_string = "a graph of the tests"
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, v) for d, v in self.domains.items())]
        if self.ir_version < 4:  # initialisers had to be listed as inputs
            held = [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in self.held]
            graph.input.extend(held)
        model = helper.make_model(graph, opset_imports=opsets, producer_name="tests", ir_version=self.ir_version)
        helper.set_model_props(model, {"author": "tests", "labels": "a,b,c"})
        if all(value.type.tensor_type.HasField("shape") for value in [*self.inputs, *results]):
            onnx.checker.check_model(model)
        return model


def image(net: Net, size: int = 8) -> str:
    """An image input ``x`` with symbolic batch."""
    return net.input("x", ["batch", 3, size, size])


def picture(net: Net, outputs: dict[str, Dims | None] | None = None, size: int = 8) -> Sample:
    """The sample of a network that takes :func:`image`."""
    return Sample(net.build(outputs or {"y": ["batch", 5]}), {"x": (1, 3, size, size)}, {"x": (3, 3, size, size)})


def plain(opset: int = 17, ir_version: int = 8, seed: int = 0, dtype: Any = np.float32) -> Sample:
    """Three convolutions with BatchNorm."""
    net = Net(opset, ir_version, dtype, seed)
    x = net.block(image(net), "a", 3, 16)
    x = net.block(x, "b", 16, 24, stride=2)
    x = net.block(x, "c", 24, 32)
    net.head(x, 32)
    return picture(net)


def residual() -> Sample:
    """Two residual blocks, the second with a strided projection."""
    net = Net()
    x = net.block(image(net), "stem", 3, 16)
    y = net.norm(net.conv(net.block(x, "a1", 16, 12), "a2", 12, 16), "a2.bn", 16)
    x = net.op("Relu", net.op("Add", x, y))
    y = net.norm(net.conv(net.block(x, "b1", 16, 20, stride=2), "b2", 20, 24), "b2.bn", 24)
    x = net.op("Relu", net.op("Add", net.conv(x, "down", 16, 24, 1, stride=2), y))
    net.head(x, 24)
    return picture(net)


def depthwise() -> Sample:
    """Inverted residuals."""
    net = Net()
    x = net.block(image(net), "stem", 3, 8)
    for name in ("a", "b"):
        y = net.op("HardSwish", net.norm(net.conv(x, f"{name}.expand", 8, 32, 1), f"{name}.bn1", 32))
        y = net.block(y, f"{name}.depth", 32, 32, group=32)
        x = net.op("Add", x, net.norm(net.conv(y, f"{name}.project", 32, 8, 1), f"{name}.bn3", 8))
    net.head(x, 8)
    return picture(net)


def dense() -> Sample:
    """Dense concatenations."""
    net = Net()
    x, n = net.block(image(net), "stem", 3, 12), 12
    for name in ("a", "b", "c"):
        y = net.op("Relu", net.norm(x, f"{name}.bn", n))
        x, n = net.op("Concat", x, net.conv(y, f"{name}.conv", n, 8), axis=1), n + 8
    net.head(x, n)
    return picture(net)


def grouped() -> Sample:
    """Grouped convolutions, the second with another group count."""
    net = Net()
    x = net.block(image(net), "stem", 3, 24)
    x = net.block(x, "a", 24, 32, group=4)
    x = net.block(x, "b", 32, 16, group=2)
    net.head(x, 16)
    return picture(net)


def squeeze_excite() -> Sample:
    """Squeeze-and-excite."""
    net = Net()
    x = net.block(image(net), "stem", 3, 16)
    s = net.op("ReduceMean", x, axes=[2, 3], keepdims=1)
    s = net.op("Relu", net.conv(s, "se1", 16, 6, 1, bias=True))
    x = net.op("Mul", x, net.op("HardSigmoid", net.conv(s, "se2", 6, 16, 1, bias=True)))
    net.head(net.block(x, "last", 16, 20), 20)
    return picture(net)


def shuffle() -> Sample:
    """A channel shuffle whose halves do not align with its product: 20 channels as 10 x 2, then split at 10."""
    net = Net()
    x = net.block(image(net), "stem", 3, 20)
    for name in ("a", "b"):
        left, right = net.ops("Split", x, net.ints(f"{name}.halves", 10, 10), outs=[f"{name}.l", f"{name}.r"], axis=1)
        right = net.block(net.block(right, f"{name}1", 10, 14, 1), f"{name}2", 14, 10)
        x = net.op("Concat", left, right, axis=1)
        x = net.op("Reshape", x, net.ints(f"{name}.apart", 0, 2, 10, 8, 8))
        x = net.op("Transpose", x, perm=[0, 2, 1, 3, 4])
        x = net.op("Reshape", x, net.ints(f"{name}.together", 0, -1, 8, 8))
    net.head(x, 20)
    return picture(net)


def _tokens(net: Net, width: int, words: int = 30) -> str:
    ids = net.input("ids", ["batch", "sequence"], TensorProto.INT64)
    return net.op("Gather", net.weight("embedding", words, width, scale=0.5), ids)


def _sequence(net: Net, words: int = 30) -> Sample:
    model = net.build({"y": ["batch", "sequence", words]})
    return Sample(model, {"ids": (1, 6)}, {"ids": (2, 9)})


def _part_of_shape(net: Net, x: str, name: str, axis: int) -> str:
    shape = net.op("Shape", x)
    return net.op("Gather", shape, net.ints(f"{name}.at", axis), axis=0)


def attention(opset: int = 17) -> Sample:
    """Self-attention with heads, the Reshape targets computed from Shape as exporters write them."""
    width, heads, size = 24, 4, 6
    net = Net(opset)
    x = _tokens(net, width)
    parts = []
    for name in ("q", "k", "v"):
        y = net.linear(x, name, width, heads * size)
        b, s = _part_of_shape(net, y, f"{name}0", 0), _part_of_shape(net, y, f"{name}1", 1)
        target = net.op("Concat", b, s, net.ints(f"{name}.heads", heads, size), axis=0)
        parts.append(net.op("Reshape", y, target))
    q, k, v = (net.op("Transpose", part, perm=[0, 2, 3, 1] if part == parts[1] else [0, 2, 1, 3]) for part in parts)
    scores = net.op("Mul", net.op("MatMul", q, k), net.hold("scale", np.float32(size**-0.5)))
    y = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    b, s = _part_of_shape(net, y, "o0", 0), _part_of_shape(net, y, "o1", 1)
    y = net.op("Reshape", y, net.op("Concat", b, s, net.ints("o.width", heads * size), axis=0))
    x = net.op("Add", x, net.linear(y, "o", heads * size, width))
    y = net.op("Relu", net.linear(x, "up", width, 48))
    x = net.op("Add", x, net.linear(y, "down", 48, width))
    net.linear(x, "head", width, 30, out="y")
    return _sequence(net)


def grouped_queries() -> Sample:
    """Grouped-query attention: two key/value heads expanded to six query heads."""
    width, shared, repeat, size = 24, 2, 3, 6
    net = Net()
    x = _tokens(net, width)

    def heads(name: str, n: int) -> str:
        y = net.linear(x, name, width, n * size)
        return net.op("Transpose", net.op("Reshape", y, net.ints(f"{name}.s", 0, -1, n, size)), perm=[0, 2, 1, 3])

    def expand(part: str, name: str) -> str:
        b, s = _part_of_shape(net, part, f"{name}0", 0), _part_of_shape(net, part, f"{name}2", 2)
        part = net.op("Unsqueeze", part, net.ints(f"{name}.at", 2))
        wide = net.op("Concat", b, net.ints(f"{name}.g", shared, repeat), s, net.ints(f"{name}.d", size), axis=0)
        flat = net.op("Concat", b, net.ints(f"{name}.h", shared * repeat), s, net.ints(f"{name}.e", size), axis=0)
        return net.op("Reshape", net.op("Expand", part, wide), flat)

    q, k, v = heads("q", shared * repeat), expand(heads("k", shared), "ek"), expand(heads("v", shared), "ev")
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints("o.s", 0, 0, -1))
    x = net.op("Add", x, net.linear(y, "o", shared * repeat * size, width))
    net.linear(x, "head", width, 30, out="y")
    return _sequence(net)


def rotary() -> Sample:
    """Rotary embedding of queries and keys: dimension i is tied to i + d/2."""
    width, heads, size = 24, 3, 8
    net = Net()
    x = _tokens(net, width)
    ids = net.op("Shape", "ids")
    length = net.op("Squeeze", net.op("Gather", ids, net.ints("one", 1), axis=0))
    position = net.op("Range", net.hold("zero", np.int64(0)), length, net.hold("step", np.int64(1)))
    position = net.op("Unsqueeze", net.op("Cast", position, to=TensorProto.FLOAT), net.ints("last", 1))
    angle = net.op("Mul", position, net.hold("rates", (0.1 ** np.arange(size // 2)).astype(np.float32)))
    angle = net.op("Concat", angle, angle, axis=-1)
    cos, sin = net.op("Cos", angle), net.op("Sin", angle)

    def turned(name: str) -> str:
        y = net.op("Reshape", net.linear(x, name, width, heads * size), net.ints(f"{name}.s", 0, 0, heads, size))
        y = net.op("Transpose", y, perm=[0, 2, 1, 3])
        axes = net.ints(f"{name}.axes", -1)
        left = net.op("Slice", y, net.ints(f"{name}.b0", 0), net.ints(f"{name}.e0", size // 2), axes)
        right = net.op("Slice", y, net.ints(f"{name}.b1", size // 2), net.ints(f"{name}.e1", 2**62), axes)
        back = net.op("Concat", net.op("Neg", right), left, axis=-1)
        return net.op("Add", net.op("Mul", y, cos), net.op("Mul", back, sin))

    v = net.op("Reshape", net.linear(x, "v", width, heads * size), net.ints("v.s", 0, 0, heads, size))
    v = net.op("Transpose", v, perm=[0, 2, 1, 3])
    scores = net.op("MatMul", turned("q"), net.op("Transpose", turned("k"), perm=[0, 1, 3, 2]))
    y = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    y = net.linear(net.op("Reshape", y, net.ints("o.s", 0, 0, heads * size)), "o", heads * size, width)
    net.linear(net.op("Add", x, y), "head", width, 30, out="y")
    return _sequence(net)


def lstm() -> Sample:
    """A bidirectional LSTM between two linear layers; sequence and batch symbolic."""
    net = Net()
    x = net.input("x", ["sequence", "batch", 6])
    x = net.op("Relu", net.linear(x, "in", 6, 10))
    w, r = net.weight("lstm.w", 2, 4 * 12, 10, scale=0.3), net.weight("lstm.r", 2, 4 * 12, 12, scale=0.3)
    x = net.op("LSTM", x, w, r, net.weight("lstm.b", 2, 8 * 12, scale=0.1), hidden_size=12, direction="bidirectional")
    x = net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1, 3]), net.ints("flat", 0, 0, -1))
    net.linear(x, "head", 24, 5, out="y")
    model = net.build({"y": ["sequence", "batch", 5]})
    return Sample(model, {"x": (7, 1, 6)}, {"x": (4, 3, 6)})


def tied() -> Sample:
    """The embedding is the head's weight, transposed; and one matrix is used by two layers."""
    net = Net()
    x = _tokens(net, 16)
    for name in ("a", "b"):
        y = net.op("Relu", net.linear(x, f"{name}.up", 16, 32))
        x = net.op("Add", x, net.linear(y, f"{name}.down", 32, 16))
    shared = net.hold("shared", net._matrix(16, 16))
    x = net.op("Tanh", net.op("MatMul", net.op("Relu", net.op("MatMul", x, shared)), shared))
    net.op("MatMul", x, net.op("Transpose", "embedding", perm=[1, 0]), out="y")
    return _sequence(net)


def shared_zeros() -> Sample:
    """One zero bias for every layer of its size, as exporters that merge equal constants write it."""
    net = Net()
    x = image(net)
    zeros = net.hold("zeros", np.zeros(16, dtype=np.float32))
    for i, name in zip((3, 16, 16), ("a", "b", "c"), strict=True):
        x = net.op("Relu", net.op("Conv", x, net.weight(f"{name}.weight", 16, i, 3, 3), zeros, pads=[1] * 4))
    net.head(x, 16)
    return picture(net)


def constant_nodes() -> Sample:
    """Weights in Constant nodes and behind Identity, as PaddlePaddle's exporter writes them."""
    net = Net()
    x = net.block(image(net), "a", 3, 16)
    x = net.block(x, "b", 16, 24)
    net.head(x, 24)
    hidden, net.held = net.held, []
    nodes = []
    for tensor in hidden:
        nodes.append(helper.make_node("Constant", [], [tensor.name], value=tensor, name=f"n_{tensor.name}"))
        if tensor.name.startswith("b."):
            nodes[-1].output[0] = f"{tensor.name}.raw"
            nodes.append(helper.make_node("Identity", [f"{tensor.name}.raw"], [tensor.name]))
    net.nodes[:0] = nodes
    return picture(net)


def transposed() -> Sample:
    """Weights that are transposed, reshaped and split before use; Gemm in both orientations."""
    net = Net()
    x = net.input("x", ["batch", 12])
    x = net.op("Relu", net.op("MatMul", x, net.op("Transpose", net.weight("a.weight", 20, 12), perm=[1, 0])))
    x = net.op("Relu", net.op("Gemm", x, net.weight("b.weight", 24, 20), net.weight("b.bias", 24), transB=1))
    x = net.op("Relu", net.op("Gemm", x, net.hold("c.weight", net._matrix(24, 16)), alpha=0.5))
    packed = net.weight("packed", 2, 3, 16, 8)
    one, two = net.ops("Split", packed, net.ints("halves", 1, 1), outs=["packed.1", "packed.2"], axis=0)
    one = net.op("MatMul", x, net.op("Reshape", net.op("Transpose", one, perm=[0, 2, 1, 3]), net.ints("s1", 16, 24)))
    two = net.op("MatMul", x, net.op("Reshape", net.op("Transpose", two, perm=[0, 2, 1, 3]), net.ints("s2", 16, 24)))
    x = net.op("Mul", net.op("Sigmoid", one), two)
    net.op("Gemm", x, net.weight("head.weight", 5, 24), out="y", transB=1)
    return Sample(net.build({"y": ["batch", 5]}), {"x": (1, 12)}, {"x": (4, 12)})


def many() -> Sample:
    """Two images, a scalar, whole numbers and a mask in; three outputs, one of them an inner value."""
    net = Net()
    a = net.block(net.input("left", ["batch", 3, 8, 8]), "left", 3, 16)
    b = net.block(net.input("right", ["batch", 1, 8, 8]), "right", 1, 12)
    strength = net.input("strength", [])
    row = net.input("row", ["batch"], TensorProto.INT64)
    mask = net.input("mask", ["batch", 1, 1, 1], TensorProto.BOOL)
    x = net.op("Mul", net.op("Concat", a, b, axis=1), strength)
    x = net.op("Where", mask, x, net.hold("nothing", np.float32(0)))
    x = net.block(x, "mixed", 28, 20)
    seen = net.op("Gather", net.weight("table", 8, 20), row)
    x = net.op("Add", x, net.op("Unsqueeze", seen, net.ints("tail", 2, 3)))
    x = net.op("Relu", net.conv(x, "seen", 20, 6, bias=True), out="features")
    net.head(net.block(x, "last", 6, 16), 16)
    net.op("Sigmoid", "y", out="p")
    model = net.build({"y": ["batch", 5], "features": ["batch", 6, 8, 8], "p": ["batch", 5]})

    def shapes(n: int) -> dict[str, tuple[int, ...]]:
        images: dict[str, tuple[int, ...]] = {"left": (n, 3, 8, 8), "right": (n, 1, 8, 8)}
        return images | {"strength": (), "row": (n,), "mask": (n, 1, 1, 1)}

    return Sample(model, shapes(1), shapes(3))


def branches() -> Sample:
    """An If whose branches capture a value of the outer graph."""
    net = Net()
    x = net.block(image(net), "a", 3, 16)
    x = net.block(x, "b", 16, 20)
    inner = net.conv(x, "c", 20, 12)
    total = net.op("ReduceSum", inner, keepdims=0)
    on = net.op("Greater", total, net.hold("nothing", np.float32(0)))
    bodies = []
    for name, kind in (("then", "Relu"), ("else", "Neg")):
        result = helper.make_tensor_value_info(f"{name}.y", net.elem, None)
        bodies.append(helper.make_graph([helper.make_node(kind, [inner], [f"{name}.y"])], name, [], [result]))
    x = net.op("If", on, then_branch=bodies[0], else_branch=bodies[1])
    net.head(net.block(x, "d", 12, 16), 16)
    return picture(net)


def custom() -> Sample:
    """An operator of another domain, which the runtime knows and graphprune does not."""
    net = Net()
    x = net.block(image(net), "a", 3, 16)
    x = net.op("Binarizer", net.block(x, "b", 16, 20), domain="ai.onnx.ml", threshold=0.1)
    net.head(net.block(x, "c", 20, 24), 24)
    return picture(net)


def half() -> Sample:
    """Weights and activations in float16."""
    net = Net(dtype=np.float16)
    x = net.op("Relu", net.conv(image(net), "a", 3, 16, bias=True))
    x = net.op("Relu", net.conv(x, "b", 16, 24, bias=True))
    net.head(x, 24)
    return Sample(net.build({"y": ["batch", 5]}), {"x": (1, 3, 8, 8)}, {"x": (3, 3, 8, 8)}, tolerance=5e-3)


def double() -> Sample:
    """Weights and activations in float64."""
    net = Net(dtype=np.float64)
    x = net.op("Relu", net.linear(net.input("x", ["batch", 8]), "a", 8, 24))
    x = net.op("Relu", net.linear(x, "b", 24, 32))
    net.linear(x, "head", 32, 5, out="y")
    return Sample(net.build({"y": ["batch", 5]}), {"x": (1, 8)}, {"x": (3, 8)})


def listed() -> Sample:
    """IR version 3: initialisers are listed as inputs."""
    return plain(opset=8, ir_version=3)


def versions(opset: int) -> Sample:
    """What changed its form between operator sets: Split, Squeeze, Slice, Pad, Clip, ReduceMean, Dropout, Resize."""
    net = Net(opset, {9: 4, 11: 6, 13: 7, 17: 8, 18: 8, 21: 10, 23: 11}[opset])
    x = net.block(image(net), "a", 3, 20)

    def vector(kind: str, x: str, name: str, values: Sequence[int], since: int, **attributes: Any) -> str:
        if opset < since:
            return net.op(kind, x, **{name: list(values)}, **attributes)
        return net.op(kind, x, net.ints(f"{kind}.{name}", *values), **attributes)

    if opset < 13:
        one, two = net.ops("Split", x, outs=["one", "two"], axis=1, split=[8, 12])
    else:
        one, two = net.ops("Split", x, net.ints("parts", 8, 12), outs=["one", "two"], axis=1)
    even = {"num_outputs": 2} if opset >= 18 else {}
    left, right = net.ops("Split", one, outs=["left", "right"], axis=1, **even)
    if opset < 10:
        two = net.op("Slice", two, axes=[1], starts=[2], ends=[2**31 - 1])
    else:
        two = net.op("Slice", two, net.ints("from", 2), net.ints("to", 2**62), net.ints("axis", 1))
    if opset < 11:
        two = net.op("Pad", two, pads=[0, 0, 1, 1, 0, 0, 1, 1])
        two = net.op("Clip", two, min=0.0, max=6.0)
    else:
        two = net.op("Pad", two, net.ints("pads", 0, 0, 1, 1, 0, 0, 1, 1))
        two = net.op("Clip", two, net.hold("least", np.float32(0)), net.hold("most", np.float32(6)))
    two = net.op("MaxPool", two, kernel_shape=[3, 3])
    x = net.op("Concat", net.op("Mul", left, right), net.op("Dropout", two), axis=1)
    if opset >= 11:
        sizes = net.hold("scales", np.array([1, 1, 2, 2], dtype=np.float32))
        x = net.op("Resize", x, net.hold("roi", np.zeros(0, dtype=np.float32)), sizes, mode="nearest")
    x = net.block(x, "b", 14, 16)
    x = vector("ReduceMean", x, "axes", (2, 3), 18, keepdims=1)
    x = vector("Squeeze", x, "axes", (2, 3), 13)
    x = vector("Unsqueeze", x, "axes", (2,), 13)
    x = net.op("Flatten", x)
    net.op("Gemm", x, net.weight("head.weight", 5, 16), net.weight("head.bias", 5), out="y", transB=1)
    return picture(net)


def forced_height() -> Sample:
    """Only images of height 32 run, because an axis of one index is squeezed; the shape says nothing of it."""
    net = Net()
    x = net.input("x", ["batch", 3, "height", "width"])
    for name, i, o in (("a", 3, 16), ("b", 16, 24), ("c", 24, 16)):
        x = net.op("Relu", net.conv(x, name, i, o, bias=True))
        x = net.op("MaxPool", x, kernel_shape=[2, 1], strides=[2, 1])
    x = net.op("AveragePool", x, kernel_shape=[4, 1], strides=[4, 1])
    x = net.op("Transpose", net.op("Squeeze", x, net.ints("high", 2)), perm=[0, 2, 1])
    net.linear(x, "head", 16, 5, out="y")
    model = net.build({"y": ["batch", "width", 5]})
    return Sample(model, {"x": (1, 3, 32, 24)}, {"x": (2, 3, 32, 40)})


def stat_only() -> Sample:
    """A LayerNorm over every axis that could be cut: inexact groups alone."""
    net = Net()
    x = net.input("x", ["batch", 8])
    x = net.linear(x, "a", 8, 24)
    x = net.op("LayerNormalization", x, net.hold("ln.weight", np.ones(24, dtype=np.float32)))
    net.linear(x, "head", 24, 5, out="y")
    return Sample(net.build({"y": ["batch", 5]}), {"x": (1, 8)}, {"x": (3, 8)})


def nothing() -> Sample:
    """One layer from input to output: every axis is seen from outside."""
    net = Net()
    net.linear(net.input("x", ["batch", 8]), "only", 8, 5, out="y")
    return Sample(net.build({"y": ["batch", 5]}), {"x": (1, 8)}, {"x": (3, 8)})


#: name -> network; every one has a group that may be cut exactly
SAMPLES: dict[str, Callable[[], Sample]] = {
    one.__name__: one
    for one in (
        plain,
        residual,
        depthwise,
        dense,
        grouped,
        squeeze_excite,
        shuffle,
        attention,
        grouped_queries,
        rotary,
        lstm,
        tied,
        shared_zeros,
        constant_nodes,
        transposed,
        many,
        branches,
        custom,
        half,
        double,
        listed,
        forced_height,
    )
} | {f"opset_{n}": (lambda n=n: versions(n)) for n in (9, 11, 13, 17, 18, 21)}  # type: ignore[misc]
