"""If, Loop and Scan: bodies are cut with what they capture, carry and give, and equal their masked originals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import third_party
from laws.bench import run

from graphprune.backends.reference import run_float64
from graphprune.coupling.explain import explain
from graphprune.coupling.groups import Grouping, group
from graphprune.coupling.solve import couple
from graphprune.ir.clean import clean
from graphprune.ir.observe import observe
from graphprune.ir.program import Array, all_values, constant_tensor
from graphprune.passes.cost import Cost
from graphprune.passes.files import members_of
from graphprune.passes.shrink import Shrink
from graphprune.passes.verify import Verify, paths
from graphprune.pipeline import load

Shapes = dict[str, tuple[int, ...]]


def proto(text: str, weights: Shapes, inside: dict[str, Shapes] | None = None, opset: int = 18) -> onnx.ModelProto:
    """A network from its text; weights are drawn at random, those of ``inside`` are the named bodies' initialisers."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> net {text}')
    rng = np.random.default_rng(0)
    for graph in _graphs(model.graph):
        for value in graph.output:
            value.type.tensor_type.ClearField("shape")
        for name, shape in (weights if graph.name == "net" else (inside or {}).get(graph.name, {})).items():
            array = np.asarray(rng.standard_normal(shape) / 2).astype(np.float32)
            graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def grouped(text: str, weights: Shapes, inside: dict[str, Shapes] | None = None, **given: Array) -> Grouping:
    model = ir.from_proto(proto(text, weights, inside))
    clean(model)
    return group(couple(observe(model, run, given=given)))


def standing(grouping: Grouping) -> list[set[tuple[str, int]]]:
    """Per group the constants that it stands on."""
    found = [{(m.tensor, m.axis) for m in one.members if m.role != "contracted"} for one in grouping.groups]
    return sorted(found, key=sorted)


def hold(grouping: Grouping, plans: int = 2, ways: int = 1) -> ir.Model:
    """Cut by random plans, all groups at once and each alone, and verify; the last one all at once."""
    rng = np.random.default_rng(1)
    chosen = [{one.id} for one in grouping.groups] + [{one.id for one in grouping.groups}] * plans
    assert len(grouping.groups) and all(one.exact and one.refusal is None for one in grouping.groups)
    pruned = grouping.coupling.program.model
    for names in chosen:
        keep = {}
        for one in grouping.groups:
            if one.id in names:
                mask = keep[one.id] = rng.random(one.size) < 0.6
                mask[rng.integers(one.size)] = True
                mask[rng.integers(one.size)] = False if mask.sum() > 1 else mask[0]
        keep = {name: mask for name, mask in keep.items() if not mask.all() and mask.any()}
        if grouping.emptied(keep):
            continue
        pruned = Shrink(keep)(grouping)
        verdict = Verify(samples=2)(grouping.coupling.program, members_of(grouping, keep), pruned, run)
        assert verdict.passed, verdict
        assert verdict.ways == ways
        left = Cost.of(grouping).params(keep)
        assert elements(pruned) <= left + 64, "weights that were cut are still there"
    return pruned


def elements(model: ir.Model) -> int:
    """Elements of all float constants, those of bodies included."""
    held = [constant_tensor(value) for value in all_values(model.graph).values()]
    return sum(one.size for one in held if one is not None and one.dtype == ir.DataType.FLOAT)


BRANCHES = """(float[2,5] x, bool c) => (float y) {
    h = MatMul(x, a)
    z = If (c) <
        then_branch = then () => (float t) { t0 = MatMul(h, w) t1 = Relu(t0) t = Add(t1, h) },
        else_branch = else () => (float e) { e0 = Mul(h, s) e = Sub(e0, u) }
    >
    y = MatMul(z, b)
}"""


def test_both_branches_are_cut_together() -> None:
    """Captured weights, a body's own weights, and a weight that one body and the network share."""
    text = BRANCHES.replace("MatMul(x, a)", "MatMul(x, a) g = MatMul(h, w) ").replace("MatMul(z, b)", "MatMul(k, b)")
    text = text.replace("y = MatMul(k", "k = Add(z, g) y = MatMul(k")
    made = grouped(text, {"a": (5, 12), "w": (12, 12), "b": (12, 3)}, {"else": {"s": (12,), "u": (12,)}})
    assert standing(made) == [{("a", 1), ("w", 0), ("w", 1), ("b", 0), ("s", 0), ("u", 0)}]
    pruned = hold(made, ways=3)
    inner = next(node for node in pruned.graph if node.op_type == "If").attributes["else_branch"].as_graph()
    assert set(inner.initializers) == {"s", "u"}  # they stay where they were


def test_a_branch_of_constants() -> None:
    """A branch may give a constant as it is; the other one computes."""
    text = """(float[2,5] x, bool c) => (float y) {
        h = MatMul(x, a)
        z = If (c) <
            then_branch = then () => (float t) { t = Constant<value_floats=[1.0,2.0,3.0,4.0,5.0,6.0]>() },
            else_branch = else () => (float e) { e = ReduceSum<keepdims=0>(h, first) }
        >
        y = MatMul(z, b)
    }"""
    model = proto(text, {"a": (5, 6), "b": (6, 3)})
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "first"))
    made = ir.from_proto(model)
    clean(made)
    grouping = group(couple(observe(made, run)))
    assert standing(grouping) == [{("a", 1), ("t", 0), ("b", 0)}]
    hold(grouping, ways=3)


def test_nested_branches() -> None:
    text = """(float[2,5] x, bool c, bool d) => (float y) {
        h = MatMul(x, a)
        z = If (c) <
            then_branch = then () => (float t) {
                p = MatMul(h, w)
                t = If (d) <
                    then_branch = inner () => (float i) { i0 = MatMul(p, q) i = Add(i0, h) },
                    else_branch = other () => (float o) { o = Mul(h, h) }
                >
            },
            else_branch = else () => (float e) { e = Neg(h) }
        >
        y = MatMul(z, b)
    }"""
    made = grouped(text, {"a": (5, 12), "b": (12, 3), "w": (12, 7)}, {"inner": {"q": (7, 12)}})
    assert standing(made) == [{("a", 1), ("w", 0), ("q", 1), ("b", 0)}, {("w", 1), ("q", 0)}]
    ways = paths(made.coupling.program)
    assert ways == [{"z": True, "t": True}, {"z": True, "t": False}, {"z": False}]
    hold(made, ways=4)


def test_names_that_two_bodies_give_to_different_values() -> None:
    text = BRANCHES.replace("e0", "t0").replace("w)", "v)").replace("s)", "v)")
    made = grouped(text, {"a": (5, 12), "b": (12, 3)}, {"then": {"v": (12, 12)}, "else": {"v": (12,), "u": (12,)}})
    names = {name for group in standing(made) for name, _ in group}
    assert {"v", "v/else"} <= names
    hold(made, ways=3)


def test_branches_of_different_sizes_stay_whole() -> None:
    text = BRANCHES.replace("e = Sub(e0, u)", "e = ReduceSum(e0, first)")
    model = proto(text, {"a": (5, 12), "w": (12, 12), "b": (12, 3), "s": (12,)})
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "first"))
    made = ir.from_proto(model)
    clean(made)
    grouping = group(couple(observe(made, run, given={"c": np.array(True)})))
    assert explain(grouping, "z", 0).parts[0].reason == "If 'z': a0_0 is never cut"
    hold(grouping, ways=3)


def test_a_branch_that_cannot_run_is_a_barrier_with_its_reason() -> None:
    """It captures ``h``, which stays whole, and not ``k``."""
    text = """(float[2,5] x) => (float y) {
        h = MatMul(x, a)
        squares = Mul(x, x) sum = ReduceSum<keepdims=0>(squares) nan = IsNaN(sum) c = Not(nan)
        z = If (c) <
            then_branch = then () => (float t) { t = MatMul(h, w) },
            else_branch = else () => (float e) { e0 = Gather(h, far) e = MatMul(e0, w) }
        >
        k = MatMul(x, p) m = MatMul(k, q)
        y = Add(z, m)
    }"""
    model = proto(text, {"a": (5, 12), "w": (12, 3), "p": (5, 8), "q": (8, 3)})
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([7, 8]), "far"))
    made = ir.from_proto(model)
    clean(made)
    grouping = group(couple(observe(made, run)))
    assert standing(grouping) == [{("p", 1), ("q", 0)}]
    reason = explain(grouping, "h", 1).parts[0].reason
    assert reason.startswith("If 'z': its else branch cannot be run on its own: ") and "out of data bounds" in reason
    hold(grouping)


def test_bodies_that_lie_very_deep_are_left_alone() -> None:
    """Looking into them takes bounded time: loops would be run twice at every level."""
    deepest = 9
    inner = "o9 = MatMul(v9, w)"
    for i in range(deepest, 0, -1):
        kept = f"k{i} = Identity(c{i})"
        inner = (
            f"o{i - 1} = Loop (m, , v{i - 1}) <body = b{i} (int64 i{i}, bool c{i}, float[2,5] v{i}) => "
            f"(bool k{i}, float[2,5] o{i}) {{ {kept} {inner} }}>"
        )
    text = f"(float[2,5] v0, int64 m) => (float y) {{ {inner} h = MatMul(o0, p) z = MatMul(h, q) y = Add(z, o0) }}"
    made = grouped(text, {"w": (5, 5), "p": (5, 8), "q": (8, 5)}, m=np.array(1))
    assert standing(made) == [{("p", 1), ("q", 0)}]
    assert "it lies in 6 others" in explain(made, "w", 0).parts[0].reason


SQUEEZED = """(float[N,5] x) => (float y) {
    h0 = MatMul(x, a)
    h = Unsqueeze(h0, last)
    n = Shape(h) l = Gather(n, last) c = Equal(l, one)
    z = If (c) <
        then_branch = then () => (float t) { t = Squeeze(h, last) },
        else_branch = else () => (float e) { e = Identity(h) }
    >
    y = MatMul(z, b)
}"""


def test_a_branch_that_is_never_taken_does_not_matter() -> None:
    """What exporters write for ``x.squeeze(-1)``: the condition is a size that does not move."""
    model = proto(SQUEEZED, {"a": (5, 12), "b": (12, 3)})
    for name, held in (("last", [-1]), ("one", [1])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(held), name))
    made = ir.from_proto(model)
    clean(made)
    grouping = group(couple(observe(made, run)))
    assert not grouping.coupling.refusals
    assert standing(grouping) == [{("a", 1), ("b", 0)}]
    hold(grouping)


LOOP = """(float[2,5] x, int64 m) => (float y, float s) {
    h = MatMul(x, a)
    final, stacked = Loop (m, , h) <body = body (int64 i, bool c, float[2,12] v) => (bool k, float o, float r) {
        k = Identity(c)
        p = MatMul(v, w) q = Relu(p) o0 = MatMul(q, u) o = Add(o0, v)
        r0 = MatMul(o, g) r = Tanh(r0)
    }>
    y = MatMul(final, b)
    s = MatMul(stacked, d)
}"""


LOOP_WEIGHTS: Shapes = {"a": (5, 12), "w": (12, 7), "u": (7, 12), "b": (12, 3), "d": (6, 2)}
LOOP_INSIDE: dict[str, Shapes] = {"body": {"g": (12, 6)}}


def test_a_loop_with_captured_weights_and_stacked_results() -> None:
    made = grouped(LOOP, LOOP_WEIGHTS, LOOP_INSIDE, m=np.array(4))
    found = standing(made)
    assert {("w", 1), ("u", 0)} in found and {("g", 1), ("d", 0)} in found
    assert {("a", 1), ("w", 0), ("u", 1), ("g", 0), ("b", 0)} in found
    assert explain(made, "stacked", 0).parts[0].reason == "Loop 'final': bs_1 is never cut"
    hold(made)
    one = 2 * 12 * 7 + 2 * 7 * 12 + 2 * 12 * 6
    assert Cost.of(made).macs({}) == 2 * 5 * 12 + 4 * one + 2 * 12 * 3 + 4 * 2 * 6 * 2


def test_a_loop_whose_carried_value_grows() -> None:
    """The growing axis is whole and never taken for a size that stays; the other one is cut."""
    text = """(float[2,5] x, int64 m) => (float y) {
        h = MatMul(x, a)
        n, final = Loop (m, , h, h) <
            body = body (int64 i, bool c, float[2,12] v, float[P,12] past) => (bool k, float o, float more) {
                k = Identity(c)
                p = MatMul(v, w) o = Tanh(p)
                more = Concat<axis=0>(past, o)
                size = Shape(past) flat = Reshape(past, size)
            }>
        y = MatMul(final, b)
    }"""
    made = grouped(text, {"a": (5, 12), "w": (12, 12), "b": (12, 3)}, m=np.array(3))
    assert standing(made) == [{("a", 1), ("w", 0), ("w", 1), ("b", 0)}]
    assert made.coupling.program.moving["past"] == {0}
    assert explain(made, "more", 0).parts[0].group is None
    hold(made)


def test_a_loop_that_carries_a_sequence_is_a_barrier() -> None:
    text = """(float[2,5] x, int64 m) => (float y) {
        h = MatMul(x, a)
        none = SequenceEmpty()
        all = Loop (m, , none) <body = body (int64 i, bool c, seq(float[2,12]) v) => (bool k, seq(float[2,12]) o) {
            k = Identity(c)
            e = Mul(h, h)
            o = SequenceInsert(v, e)
        }>
        z = ConcatFromSequence<axis=0>(all)
        f = MatMul(h, p) g = MatMul(f, q)
        y = Add(z, g)
    }"""
    model = proto(text, {"a": (5, 12), "p": (12, 7), "q": (7, 12)})
    for graph in _graphs(model.graph):
        if graph.name == "body":
            graph.output[1].type.CopyFrom(graph.input[2].type)
    made = ir.from_proto(model)
    clean(made)
    grouping = group(couple(observe(made, run, given={"m": np.array(1)})))
    assert standing(grouping) == [{("p", 1), ("q", 0)}]
    assert "is a sequence or an optional" in explain(grouping, "h", 1).parts[0].reason
    hold(grouping)


CELL = """(float[7,2,5] x) => (float y, float last) {
    last, all = Scan <num_scan_inputs = 1, scan_input_axes = [AXIS], scan_output_axes = [AXIS],
        scan_input_directions = [REVERSE], scan_output_directions = [REVERSE],
        body = body (float[2,12] h, float[2,6] e) => (float n, float s) {
            p = MatMul(e, w) q = MatMul(h, u) r = Add(p, q) t = Add(r, k) n = Tanh(t)
            s = MatMul(n, v)
        }> (h0, z)
    z0 = MatMul(all, d) y = Relu(z0)
}"""


@pytest.mark.parametrize(("axis", "reverse"), [(0, 0), (1, 1), (-1, 0)])
def test_a_scan_of_a_recurrent_cell(axis: int, reverse: int) -> None:
    """Weights captured and inside, an initial state that is a constant, scanned along any axis, forwards and back."""
    text = CELL.replace("AXIS", str(axis)).replace("REVERSE", str(reverse))
    order = {0: "0, 1, 2", 1: "1, 0, 2", -1: "1, 2, 0"}[axis]
    text = text.replace("{\n    last, all", f"{{ z1 = MatMul(x, a) z = Transpose<perm=[{order}]>(z1)\n    last, all", 1)
    back = {0: "0, 1, 2", 1: "1, 0, 2", -1: "2, 0, 1"}[axis]
    text = text.replace("MatMul(all, d)", "MatMul(turned, d)").replace(
        "z0 =", f"turned = Transpose<perm=[{back}]>(all) z0 ="
    )
    text = text.replace("float last)", "float out)").replace("y = Relu", "out = MatMul(last, f) y = Relu")
    weights = {"a": (5, 6), "u": (12, 12), "h0": (2, 12), "d": (9, 4), "f": (12, 3)}
    made = grouped(text, weights, {"body": {"w": (6, 12), "k": (12,), "v": (12, 9)}})
    found = standing(made)
    assert {("a", 1), ("w", 0)} in found and {("v", 1), ("d", 0)} in found
    assert {("h0", 1), ("u", 0), ("u", 1), ("w", 1), ("k", 0), ("v", 0), ("f", 0)} in found
    hold(made)
    inside = 2 * 6 * 12 + 2 * 12 * 12 + 2 * 12 * 9
    assert Cost.of(made).macs({}) == 14 * 5 * 6 + 7 * inside + 14 * 9 * 4 + 2 * 12 * 3


def test_the_float64_reference_runs_loops_as_the_runtime_does() -> None:
    """What ``onnx`` itself does not: a condition that is left out, axes and directions of a Scan."""
    loop = grouped(LOOP, LOOP_WEIGHTS, LOOP_INSIDE, m=np.array(4))
    text = CELL.replace("AXIS", "1").replace("REVERSE", "1").replace("MatMul(all, d)", "Neg(all)")
    weights = {"u": (12, 12), "h0": (2, 12)}
    text = text.replace("float[7,2,5] x)", "float[2,7,6] x)").replace("(h0, z)", "(h0, x)")
    scan = grouped(text, weights, {"body": {"w": (6, 12), "k": (12,), "v": (12, 9)}})
    for program in (loop.coupling.program, scan.coupling.program):
        wide, plain = (one(program.model, program.examples, None) for one in (run_float64, run))
        for name, array in plain.items():
            np.testing.assert_allclose(wide[name], array, rtol=1e-3, atol=1e-4)


def test_branches_inside_a_loop() -> None:
    text = LOOP.replace(
        "q = Relu(p)",
        """q = If (flag) <then_branch = then () => (float t) { t = Relu(p) },
                          else_branch = else () => (float e) { e0 = Mul(p, g2) e = Neg(e0) }>""",
    ).replace("k = Identity(c)", "k = Identity(c) two = Constant<value_int=2>() flag = Less(i, two)")
    made = grouped(text, {**LOOP_WEIGHTS, "g2": (7,)}, LOOP_INSIDE, m=np.array(4))
    assert {("w", 1), ("g2", 0), ("u", 0)} in standing(made)
    hold(made, ways=3)


def test_a_plan_speaks_of_the_files_own_tensors(tmp_path: Path) -> None:
    """Exported, checked by somebody who has the files alone, and replayed."""
    source = tmp_path / "net.onnx"
    weights = {"a": (5, 12), "w": (12, 12), "b": (12, 3)}
    text = BRANCHES.replace("e0 = Mul(h, s)", "p = MatMul(h, v) n = ReduceSum(p) e0 = Mul(h, n)")
    onnx.save(proto(text, weights, {"else": {"v": (12, 7), "u": (12,)}}), source)
    network = load(source)
    members = {(m.tensor, m.axis, m.role) for one in network.grouping.groups for m in one.members}
    assert {("v", 0, "consumer"), ("p", 1, "contracted")} <= members
    result = network.export(tmp_path / "out", target_params="0.6x", measure=None)
    assert result.verdict is not None and result.verdict.passed and result.verdict.ways == 3
    x = np.random.default_rng(3).standard_normal((2, 5)).astype(np.float32)
    for taken in (True, False):
        assert third_party.check(source, tmp_path / "out", {"x": x, "c": np.array(taken)}) < 1e-5
    again = network.export(tmp_path / "again", plan=tmp_path / "out" / "plan.json", measure=None)
    assert again.model.read_bytes() == result.model.read_bytes()


def test_a_wrong_cut_inside_a_branch_not_taken_is_found() -> None:
    """Verification goes through both branches: a weight of the other branch that was cut elsewhere shows."""
    made = grouped(BRANCHES, {"a": (5, 12), "w": (12, 12), "b": (12, 3)}, {"else": {"s": (12,), "u": (12,)}})
    keep = {made.groups[0].id: np.arange(12) > 2}
    pruned = Shrink(keep)(made)
    program = made.coupling.program
    other = "else_branch" if program.examples["c"] else "then_branch"
    graph = next(node for node in pruned.graph if node.op_type == "If").attributes[other].as_graph()
    value = next(iter(graph)).inputs[1]
    assert value is not None and value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy()[..., ::-1].copy(), name=value.name)
    check = Verify(samples=1, seed=0)
    assert not check(program, members_of(made, keep), pruned, run).passed
