"""A network under construction: values with their shapes, constants in the forms that files hold them in."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dim = int | str  # a string names a symbolic dimension, or what was computed from one
Array = np.ndarray[Any, Any]
LIMIT = 2048  # elements of a value, at the sizes of the examples
OPSETS = (11, 13, 17, 18, 21, 23)


@dataclass(frozen=True)
class Value:
    """A tensor of the network; axis 0 is the batch."""

    name: str
    shape: tuple[Dim, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)

    def fixed(self, *axes: int) -> bool:
        """Whether the axes' sizes are numbers."""
        return all(isinstance(self.shape[axis], int) for axis in axes)

    def n(self, axis: int) -> int:
        """A size that is a number."""
        size = self.shape[axis]
        assert isinstance(size, int)
        return size


class Builder:
    """Collects inputs, nodes, constants, and the values that further steps may use."""

    def __init__(self, seed: int) -> None:
        r = random.Random(seed)
        self.rng = np.random.default_rng(seed)
        self.opset = r.choice(OPSETS)
        self.batch: Dim = r.choice(("N", "N", "N", 1, 2, 3))
        self.sizes = {"N": r.choice((1, 2, 3)), "T": r.choice((3, 4, 5)), "H": 4, "W": 4}
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[tuple[str, int, tuple[Dim, ...]]] = []
        self.held: dict[str, Array] = {}
        self.weights: list[tuple[str, tuple[int, ...]]] = []
        self.pool: list[Value] = []
        self.outputs: list[Value] = []
        self.used: set[str] = set()
        self.count = 0

    def fresh(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def input(self, shape: tuple[Dim, ...], elem: int = TensorProto.FLOAT) -> Value:
        value = Value(self.fresh("x"), shape)
        self.inputs.append((value.name, elem, shape))
        return value

    def size(self, dim: Dim) -> int:
        """The size of a dimension in the examples (an estimate where it was computed from a symbolic one)."""
        return dim if isinstance(dim, int) else int(np.prod([self.sizes.get(part[0], 4) for part in dim.split("*")]))

    def fits(self, shape: Sequence[Dim]) -> bool:
        return int(np.prod([self.size(dim) for dim in shape])) <= LIMIT

    # constants

    def hold(self, array: Array, name: str = "c") -> str:
        name = self.fresh(name)
        self.held[name] = array
        return name

    def ints(self, *values: int) -> str:
        return self.hold(np.array(values, dtype=np.int64), "i")

    def scalar(self, value: float) -> str:
        return self.hold(np.array(value, dtype=np.float32), "s")

    def weight(self, r: random.Random, *shape: int, scale: float = 1.0, positive: bool = False) -> str:
        """A constant: an initialiser, one that is used elsewhere already, a Constant's, or one computed from others."""
        same = [name for name, held in self.weights if held == shape]
        if same and not positive and r.random() < 0.15:
            return r.choice(same)
        array = self.rng.standard_normal(shape) * scale
        if positive:
            array = self.rng.uniform(0.5, 1.5, shape)
        array = array.astype(np.float32)
        form = r.choice(_FORMS) if r.random() < 0.3 else "initializer"
        name = self._stored(r, array, form)
        if not positive:
            self.weights.append((name, shape))
        return name

    def _stored(self, r: random.Random, array: Array, form: str) -> str:
        rank = array.ndim
        if form == "Constant":
            tensor = numpy_helper.from_array(array)
            return self.op("Constant", value=tensor)
        if form == "Transpose" and rank > 1:
            perm = r.sample(range(rank), rank)
            return self.op("Transpose", self.hold(array.transpose(perm).copy(), "w"), perm=np.argsort(perm).tolist())
        if form == "Reshape":
            return self.op("Reshape", self.hold(array.reshape(-1).copy(), "w"), self.ints(*array.shape))
        if form == "Mul" and rank:
            factor = self.rng.uniform(0.5, 1.5, array.shape[-1:]).astype(np.float32)
            return self.op("Mul", self.hold(array, "w"), self.hold(factor, "w"))
        if form == "Concat" and rank > 1 and array.shape[0] > 3 and array.shape[0] % 2 == 0:
            return self.op("Concat", *(self.hold(part.copy(), "w") for part in np.split(array, 2)), axis=0)
        if form == "Slice" and rank:
            more = np.concatenate([array, array[:1]])
            return self.op("Slice", self.hold(more, "w"), self.ints(0), self.ints(array.shape[0]), self.ints(0))
        if form == "Cast":
            return self.op("Cast", self.hold(array.astype(np.float64), "w"), to=TensorProto.FLOAT)
        if form == "Identity":
            return self.op("Identity", self.hold(array, "w"))
        return self.hold(array, "w")

    # nodes

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        return self.ops(kind, 1, *inputs, domain=domain, **attributes)[0]

    def ops(self, kind: str, results: int, *inputs: str, domain: str = "", **attributes: Any) -> list[str]:
        outs = [self.fresh("v") for _ in range(results)]
        node = helper.make_node(kind, inputs, outs, name=f"{kind}_{outs[0]}", domain=domain, **attributes)
        self.nodes.append(node)
        self.used.update(inputs)
        return outs

    def vector(self, kind: str, x: str, name: str, values: Sequence[int], since: int, **attributes: Any) -> str:
        """An operator with a vector that is an operand since some opset, an attribute before."""
        if self.opset < since:
            return self.op(kind, x, **{name: list(values)}, **attributes)
        return self.op(kind, x, self.ints(*values), **attributes)

    def push(self, name: str, shape: Sequence[Dim]) -> Value:
        """Offer a value to the following steps."""
        value = Value(name, tuple(shape))
        self.pool.append(value)
        return value

    def pick(self, r: random.Random, fits: Callable[[Value], bool] = lambda value: True) -> Value | None:
        """One of the values that fit, most often a recent one."""
        found = [value for value in self.pool if fits(value)]
        if not found:
            return None
        return r.choice(found[-3:]) if r.random() < 0.7 else r.choice(found)

    def reshape(self, r: random.Random, value: Value, *shape: Dim) -> Value:
        """Sizes written out, ``0``, ``-1`` or computed from the operand's own shape; ``a*b`` merges axes."""
        known = [i for i, dim in enumerate(shape) if isinstance(dim, int) or dim in value.shape]
        open_axes = [i for i in range(len(shape)) if i not in known]
        symbolic = [i for i, dim in enumerate(shape) if isinstance(dim, str)]
        target = [dim if isinstance(dim, int) else 0 for dim in shape]
        copied = all(i < value.rank and value.shape[i] == shape[i] for i in symbolic if i in known)
        if len(open_axes) < 2 and (copied or (len(symbolic) == 1 and not open_axes)) and r.random() < 0.7:
            for i in symbolic:
                if i in open_axes or i >= value.rank or value.shape[i] != shape[i]:
                    target[i] = -1
            if -1 not in target and r.random() < 0.4:
                target[r.randrange(len(target))] = -1
            return Value(self.op("Reshape", value.name, self.ints(*target)), tuple(shape))
        if not symbolic:
            return Value(self.op("Reshape", value.name, self.ints(*target)), tuple(shape))
        whole = self.op("Shape", value.name)
        parts = []
        for dim in shape:
            if isinstance(dim, int):
                parts.append(self.ints(dim))
                continue
            at = [value.shape.index(dim)] if dim in value.shape else self._merged(value, dim)
            read = []
            for axis in at:
                one = self.op("Gather", whole, self.hold(np.array(axis, dtype=np.int64), "i"), axis=0)
                read.append(self.vector("Unsqueeze", one, "axes", [0], 13))
            made = read[0]
            for other in read[1:]:
                made = self.op("Mul", made, other)
            parts.append(made)
        return Value(self.op("Reshape", value.name, self.op("Concat", *parts, axis=0)), tuple(shape))

    @staticmethod
    def _merged(value: Value, dim: str) -> list[int]:
        """The two neighbouring axes that a dimension is the product of."""
        return next([i, i + 1] for i in range(value.rank - 1) if times(*value.shape[i : i + 2]) == dim)

    def transpose(self, value: Value, *perm: int) -> Value:
        return Value(self.op("Transpose", value.name, perm=list(perm)), tuple(value.shape[p] for p in perm))

    # the whole

    def example(self, n: int = 0) -> dict[str, Array]:
        """Inputs at the examples' sizes, or with the symbolic dimensions larger by ``n``."""
        rng = np.random.default_rng(n)
        feeds: dict[str, Array] = {}
        for name, elem, shape in self.inputs:
            sizes = [dim if isinstance(dim, int) else self.sizes[dim] + n for dim in shape]
            if elem == TensorProto.INT64:
                feeds[name] = rng.integers(0, 6, sizes)
            else:
                feeds[name] = rng.standard_normal(sizes).astype(np.float32)
        return feeds

    def build(self, inferred: bool = False) -> onnx.ModelProto:
        """The network; ``inferred``: with the shapes of its inner values."""
        read = {name for node in self.nodes for name in node.input}
        given = [
            helper.make_tensor_value_info(name, elem, list(shape))
            for name, elem, shape in self.inputs
            if name in read or len(self.inputs) == 1
        ]
        made = [helper.make_tensor_value_info(one.name, TensorProto.FLOAT, list(one.shape)) for one in self.outputs]
        held = [numpy_helper.from_array(array, name) for name, array in self.held.items() if name in read]
        graph = helper.make_graph(self.nodes, "graph", given, made, held)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return onnx.shape_inference.infer_shapes(model) if inferred else model


_FORMS = ("Constant", "Transpose", "Reshape", "Mul", "Concat", "Slice", "Cast", "Identity")


def times(a: Dim, b: Dim) -> Dim:
    """The size of two axes in one."""
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    return b if a == 1 else a if b == 1 else f"{a}*{b}"
