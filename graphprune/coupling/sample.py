"""Samples: one operator with operands of known sizes, for the laws to try rules on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.ir.program import Array

__all__ = ["Body", "Operand", "Sample", "model_of"]


class Body(str):
    """A graph attribute of a sample, in ONNX's text form: ``then () => (float[5] t) { ... }``."""

    def graph(self) -> ir.Graph:
        """The graph."""
        import onnx.parser

        return ir.serde.deserialize_graph(onnx.parser.parse_graph(str(self)))


@dataclass(frozen=True)
class Operand:
    """One operand of a sample: drawn at random, or with given contents.

    Args:
        shape: of the operand.
        kind: ``normal``, ``positive`` or ``negative`` (floats away from 0), ``unit`` (between -1 and 1), ``bool``, or
            ``int`` (from ``low`` up to ``high``).
        dtype: a numpy type name.
        content: given contents instead, flat.
        fixed: an initialiser instead of an input.
        moving: names of symbolic dimensions by axis.
        of_shape: the operand is ``Shape`` of an input like this one.
    """

    shape: tuple[int, ...]
    kind: str = "normal"
    dtype: str = "float32"
    low: int = 0
    high: int = 2
    content: tuple[float, ...] | None = None
    fixed: bool = False
    moving: tuple[tuple[int, str], ...] = ()
    of_shape: bool = False

    def __str__(self) -> str:
        names = dict(self.moving)
        dims = "x".join(f"{names.get(axis, '')}{n}" for axis, n in enumerate(self.shape)) or "scalar"
        if self.content is not None and len(self.shape) == 1:
            dims = f"[{' '.join(f'{n:g}' for n in self.content)}]"
        return (
            f"Shape({dims})" if self.of_shape else f"{dims}" if self.fixed or self.content is None else f"{dims} given"
        )

    def grown(self) -> Operand:
        """The same with its symbolic dimensions twice as large."""
        names = dict(self.moving)
        return replace(self, shape=tuple(2 * n if axis in names else n for axis, n in enumerate(self.shape)))

    def draw(self, rng: np.random.Generator) -> Array:
        """Contents of shape ``shape``."""
        if self.content is not None:
            return np.asarray(self.content).astype(self.dtype).reshape(self.shape)
        if self.kind == "int":
            return np.asarray(rng.integers(self.low, self.high, size=self.shape)).astype(self.dtype)
        if self.kind == "bool":
            return np.asarray(rng.integers(0, 2, size=self.shape)).astype(np.bool_)
        if self.kind == "normal":
            return np.asarray(rng.standard_normal(self.shape)).astype(self.dtype)
        away = np.asarray(rng.uniform(0.1, 0.95 if self.kind == "unit" else 2.0, size=self.shape))
        sign = {"positive": 1.0, "negative": -1.0}.get(self.kind)
        return np.asarray(away * (rng.choice((-1.0, 1.0), self.shape) if sign is None else sign)).astype(self.dtype)


@dataclass(frozen=True)
class Sample:
    """One operator with its operands.

    Args:
        op, domain, opset: which operator.
        operands: one per operand, ``None`` where it is left out.
        attributes: plain values by name.
        results: number of results.
        left_out: results that the node does not name.
        refused: part of the reason with which the rule must refuse this sample; empty where it must not.
    """

    op: str
    operands: tuple[Operand | None, ...]
    attributes: tuple[tuple[str, Any], ...] = ()
    opset: int = 18
    domain: str = ""
    results: int = 1
    refused: str = ""
    left_out: tuple[int, ...] = ()

    def __str__(self) -> str:
        shown = ["-" if one is None else str(one) for one in self.operands]
        given = [f"{name}={value}" for name, value in self.attributes]
        name = f"{self.domain}.{self.op}" if self.domain else f"{self.op}-{self.opset}"
        made = "" if self.results == 1 else f" -> {self.results}"
        without = f" without {' '.join(map(str, self.left_out))}" if self.left_out else ""
        return f"{name}({', '.join([*shown, *given])}){made}{without}"


def model_of(sample: Sample, arrays: Sequence[Array | None]) -> ir.Model:
    """The operator alone: operands ``x0 x1 ...`` as inputs or initialisers, results ``y0 y1 ...`` as outputs."""
    inputs: list[ir.Value] = []
    held: list[ir.Value] = []
    nodes: list[ir.Node] = []
    operands: list[ir.Value | None] = []
    for k, (one, array) in enumerate(zip(sample.operands, arrays, strict=True)):
        if one is None or array is None:
            operands.append(None)
            continue
        dims: list[int | str] = list(array.shape)
        for axis, name in one.moving:
            dims[axis] = name
        kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        value = ir.Value(name=f"like{k}" if one.of_shape else f"x{k}", shape=ir.Shape(dims), type=kind)
        if one.fixed:
            value.const_value = ir.tensor(array, name=value.name)
            held.append(value)
        else:
            inputs.append(value)
        if one.of_shape:
            reader = ir.node("Shape", inputs=[value], name=f"read{k}")
            nodes.append(reader)
            value = reader.outputs[0]
            value.name, value.dtype = f"x{k}", ir.DataType.INT64
        operands.append(value)
    attributes = {name: held.graph() if isinstance(held, Body) else held for name, held in sample.attributes}
    node = ir.node(sample.op, operands, attributes, domain=sample.domain, num_outputs=sample.results, name="op")
    for k, value in enumerate(node.outputs):
        value.name = "" if k in sample.left_out else f"y{k}"
    opsets = {"": sample.opset} | ({sample.domain: 1} if sample.domain else {})
    made = [value for value in node.outputs if value.name]
    graph = ir.Graph(inputs, made, nodes=[*nodes, node], initializers=held, opset_imports=opsets, name="sample")
    return ir.Model(graph, ir_version=10)
