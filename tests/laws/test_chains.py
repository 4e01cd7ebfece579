"""Random chains of operators that only move elements: whatever is cut, the network equals its masked original."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.coupling.groups import group
from graphprune.coupling.solve import couple
from graphprune.coupling.space import free_leaves
from graphprune.ir.clean import clean
from graphprune.ir.observe import observe
from graphprune.passes.files import members_of
from graphprune.passes.shrink import Shrink
from graphprune.passes.verify import Verify

from .bench import run

FACTORS = (2, 3, 4, 5, 6)


@dataclass
class Builder:
    """Appends operators to a graph, following one value and its shape."""

    rng: np.random.Generator
    nodes: list[ir.Node] = field(default_factory=list)
    held: list[ir.Value] = field(default_factory=list)

    def constant(self, array: np.ndarray) -> ir.Value:
        value = ir.Value(name=f"c{len(self.held)}", const_value=ir.tensor(array))
        value.shape, value.dtype = ir.Shape(array.shape), value.const_value.dtype  # type: ignore[union-attr]
        value.const_value.name = value.name  # type: ignore[union-attr]
        self.held.append(value)
        return value

    def weight(self, *shape: int) -> ir.Value:
        return self.constant(self.rng.standard_normal(shape).astype(np.float32))

    def vector(self, *content: int) -> ir.Value:
        return self.constant(np.array(content, dtype=np.int64))

    def node(self, op: str, *inputs: ir.Value, results: int = 1, **attributes: object) -> tuple[ir.Value, ...]:
        made = ir.node(op, inputs, attributes, num_outputs=results, name=f"{op}{len(self.nodes)}")
        for k, value in enumerate(made.outputs):
            value.name = f"v{len(self.nodes)}_{k}"
        self.nodes.append(made)
        return tuple(made.outputs)


def _divisors(n: int) -> list[int]:
    return [a for a in range(2, n) if n % a == 0]


def step(draw: st.DrawFn, b: Builder, value: ir.Value, shape: list[int], batch: int) -> tuple[ir.Value, list[int]]:
    """One more operator; the first ``batch`` axes stay as they are."""
    inner = list(range(batch, len(shape)))
    splits = [a for a in inner if _divisors(shape[a])]
    kinds = ["split-concat", "slice-concat", "gather"]
    kinds += ["factor"] * bool(splits) + ["merge", "transpose"] * (len(inner) > 1) + ["squeeze"]
    kind = draw(st.sampled_from(kinds))
    axis = draw(st.sampled_from(inner))
    n = shape[axis]
    if kind == "factor":
        axis = draw(st.sampled_from(splits))
        outer = draw(st.sampled_from(_divisors(shape[axis])))
        shape = [*shape[:axis], outer, shape[axis] // outer, *shape[axis + 1 :]]
        return b.node("Reshape", value, b.vector(*shape))[0], shape
    if kind == "merge":
        axis = draw(st.sampled_from(inner[:-1]))
        shape = [*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]]
        return b.node("Reshape", value, b.vector(*shape))[0], shape
    if kind == "transpose":
        perm = [*range(batch), *draw(st.permutations(inner))]
        return b.node("Transpose", value, perm=perm)[0], [shape[p] for p in perm]
    if kind == "squeeze":
        lifted = b.node("Unsqueeze", value, b.vector(axis))[0]
        return b.node("Squeeze", lifted, b.vector(axis))[0], shape
    at = draw(st.integers(1, n - 1)) if n > 1 else 0
    if not at:
        return value, shape
    if kind == "split-concat":
        parts = b.node("Split", value, b.vector(at, n - at), results=2, axis=axis)
        order = draw(st.sampled_from([parts, parts[::-1]]))
        return b.node("Concat", *order, axis=axis)[0], shape
    if kind == "slice-concat":
        head = b.node("Slice", value, b.vector(0), b.vector(at), b.vector(axis))[0]
        tail = b.node("Slice", value, b.vector(at), b.vector(n), b.vector(axis))[0]
        order = draw(st.sampled_from([(head, tail), (tail, head), (tail,)]))
        shape = [n - at if a == axis and len(order) == 1 else m for a, m in enumerate(shape)]
        return b.node("Concat", *order, axis=axis)[0], shape
    picked = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n))
    shape = [len(picked) if a == axis else m for a, m in enumerate(shape)]
    return b.node("Gather", value, b.vector(*picked), axis=axis)[0], shape


@st.composite
def networks(draw: st.DrawFn) -> ir.Model:
    """x -> product with a weight -> chain -> product with a weight (itself at the end of a chain) -> y."""
    b = Builder(np.random.default_rng(draw(st.integers(0, 2**16))))
    width = draw(st.sampled_from(FACTORS)) * draw(st.sampled_from(FACTORS))
    rows = draw(st.sampled_from((2, 3, -1)))  # -1: a symbolic batch
    x = ir.Value(name="x", shape=ir.Shape(["N" if rows < 0 else rows, 7]), type=ir.TensorType(ir.DataType.FLOAT))
    convolve = draw(st.booleans())
    value, shape = b.weight(7, width), [7, width]
    for _ in range(draw(st.integers(0, 3))):  # the constant's own chain; its first axis meets x
        value, shape = step(draw, b, value, shape, 1)
    flat = int(np.prod(shape[1:]))
    value = b.node("MatMul", x, b.node("Reshape", value, b.vector(7, flat))[0])[0]
    value = b.node("Relu", b.node("Add", value, b.weight(flat))[0])[0]
    shape = [rows, flat]
    for _ in range(draw(st.integers(1, 5))):
        value, shape = step(draw, b, value, shape, 1)
    flat = int(np.prod(shape[1:]))
    if convolve:
        value = b.node("Reshape", value, b.vector(rows, flat, 1))[0]
        value = b.node("Conv", value, b.weight(5, flat, 1))[0]
    else:
        value = b.node("Reshape", value, b.vector(rows, flat))[0]
        value = b.node("MatMul", value, b.weight(flat, 5))[0]
    graph = ir.Graph([x], [value], nodes=b.nodes, initializers=b.held, opset_imports={"": 18}, name="chain")
    return ir.Model(graph, ir_version=10)


def check(model: ir.Model, seed: int) -> bool:
    """Cut at random and verify; whether anything was cut."""
    clean(model)
    grouping = group(couple(observe(model, run)))
    rng = np.random.default_rng(seed)
    keep = {}
    for one in grouping.groups:
        assert one.exact
        mask = rng.random(one.size) < rng.uniform(0.3, 0.95)
        mask[rng.integers(one.size)] = True
        keep[one.id] = mask
    for name, axis in grouping.emptied(keep):
        for one in free_leaves(grouping.coupling.of(name)[axis]):
            keep[grouping.place[one][0]][:] = True
    pruned = Shrink(keep)(grouping)
    verdict = Verify(samples=1)(grouping.coupling.program, members_of(grouping, keep), pruned, run)
    assert verdict.passed, verdict
    assert {node.op_type for node in pruned.graph} <= {node.op_type for node in model.graph}
    return any(not mask.all() for mask in keep.values())


@given(networks(), st.integers(0, 2**16))
@settings(max_examples=100)
def test_chains_equal_their_masked_originals(model: ir.Model, seed: int) -> None:
    check(model, seed)


@pytest.mark.sweep
@given(networks(), st.integers(0, 2**16))
@settings(max_examples=3000)
def test_many_chains_equal_their_masked_originals(model: ir.Model, seed: int) -> None:
    check(model, seed)
