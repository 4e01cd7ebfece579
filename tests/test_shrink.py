"""Shrinking, before and after, as text: every size that a cut changes is written back."""

from __future__ import annotations

import textwrap

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from laws.bench import run

from graphprune.coupling.groups import Grouping, group
from graphprune.coupling.solve import couple
from graphprune.ir.clean import clean
from graphprune.ir.observe import observe
from graphprune.ir.program import Array, attribute, constant_tensor
from graphprune.passes.files import members_of
from graphprune.passes.shrink import Shrink
from graphprune.passes.verify import Verify

Removal = dict[tuple[str, int] | tuple[str, int, int], list[int]]


def network(body: str, weights: dict[str, tuple[int, ...]], opset: int = 18, inputs: str = "float[2,5] x") -> ir.Model:
    """A network from the text of its nodes; float weights of given shapes are drawn at random."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> net ({inputs}) => (y) {{ {body} }}'
    proto = onnx.parser.parse_model(text.replace("=> (y)", "=> (float y)"))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model: ir.Model = ir.from_proto(proto)
    clean(model)
    return model


def show(model: ir.Model) -> str:
    """A line per node: its attributes, and the shapes of its constants or, of small integers, their contents."""
    rows = []
    for node in model.graph:
        if node.op_type == "Constant":
            continue
        operands = []
        for value in node.inputs:
            held = None if value is None else constant_tensor(value)
            if value is None:
                operands.append("-")
            elif held is None:
                operands.append(f"{value.name}")
            elif held.dtype == ir.DataType.FLOAT and held.size > 1:
                operands.append("x".join(map(str, held.shape.numpy())))
            else:
                operands.append(str(held.numpy().tolist()))
        given = {name: attribute(node, name) for name in node.attributes}
        shown = [f"{name}={list(v) if isinstance(v, (list, tuple)) else v}" for name, v in sorted(given.items())]
        results = " ".join(value.name or "-" for value in node.outputs)
        rows.append(f"{results} = {node.op_type}({', '.join([*operands, *shown])})")
    return "\n".join(rows)


def prune(model: ir.Model, remove: Removal) -> tuple[Grouping, ir.Model]:
    """Remove indices of axes of weights, of the group of that size, verify, and return the cut network."""
    grouping = group(couple(observe(model, run)))
    keep = {}
    for (tensor, axis, *size), gone in remove.items():
        for one in grouping.groups:
            if size and one.size != size[0]:
                continue
            for member in one.members:
                if (member.tensor, member.axis) == (tensor, axis) and (member.unit_of[gone] >= 0).any():
                    mask = keep.setdefault(one.id, np.ones(one.size, dtype=np.bool_))
                    mask[[unit for unit in member.unit_of[gone] if unit >= 0]] = False
    assert keep, "nothing to remove there"
    before = show(model)
    pruned = Shrink(keep)(grouping)
    assert show(model) == before  # the source stays as it is
    verdict = Verify(samples=1)(grouping.coupling.program, members_of(grouping, keep), pruned, run)
    assert verdict.passed, verdict
    return grouping, pruned


def golden(text: str) -> str:
    return textwrap.dedent(text).strip()


CASES: dict[str, tuple[ir.Model, Removal, str, str]] = {
    "dense": (
        network("h = Gemm<transB=1>(x, w, b) r = Relu(h) y = MatMul(r, v)", {"w": (7, 5), "b": (7,), "v": (7, 3)}),
        {("w", 0): [1, 4]},
        """
        h = Gemm(x, 7x5, 7, transB=1)
        r = Relu(h)
        y = MatMul(r, 7x3)
        """,
        """
        h = Gemm(x, 5x5, 5, transB=1)
        r = Relu(h)
        y = MatMul(r, 5x3)
        """,
    ),
    "grouped convolution": (
        network(
            "h = Conv(x, a) g = Conv<group=3>(h, w, b) y = Conv(g, c)",
            {"a": (12, 5, 1, 1), "w": (6, 4, 3, 3), "b": (6,), "c": (2, 6, 1, 1)},
            inputs="float[1,5,8,8] x",
        ),
        {("a", 0, 3): [4]},
        """
        h = Conv(x, 12x5x1x1)
        g = Conv(h, 6x4x3x3, 6, group=3)
        y = Conv(g, 2x6x1x1)
        """,
        """
        h = Conv(x, 8x5x1x1)
        g = Conv(h, 4x4x3x3, 4, group=2)
        y = Conv(g, 2x4x1x1)
        """,
    ),
    "depthwise convolution": (
        network(
            "h = Conv(x, a) g = Conv<group=6>(h, w) y = Conv(g, c)",
            {"a": (6, 5, 1, 1), "w": (6, 1, 3, 3), "c": (2, 6, 1, 1)},
            inputs="float[1,5,8,8] x",
        ),
        {("w", 0): [0, 5]},
        """
        h = Conv(x, 6x5x1x1)
        g = Conv(h, 6x1x3x3, group=6)
        y = Conv(g, 2x6x1x1)
        """,
        """
        h = Conv(x, 4x5x1x1)
        g = Conv(h, 4x1x3x3, group=4)
        y = Conv(g, 2x4x1x1)
        """,
    ),
    "reshape with a symbolic batch": (
        network(
            """
            h = MatMul(x, w)
            s = Constant<value_ints=[0, 4, 6]>() r = Reshape(h, s)
            t = Transpose<perm=[0, 2, 1]>(r)
            f = Constant<value_ints=[-1, 24]>() m = Reshape(t, f)
            y = MatMul(m, v)
            """,
            {"w": (5, 24), "v": (24, 3)},
            inputs="float[N,5] x",
        ),
        {("w", 1, 6): [1]},
        """
        h = MatMul(x, 5x24)
        r = Reshape(h, [0, 4, 6])
        t = Transpose(r, perm=[0, 2, 1])
        m = Reshape(t, [-1, 24])
        y = MatMul(m, 24x3)
        """,
        """
        h = MatMul(x, 5x20)
        r = Reshape(h, [0, 4, 5])
        t = Transpose(r, perm=[0, 2, 1])
        m = Reshape(t, [-1, 20])
        y = MatMul(m, 20x3)
        """,
    ),
    "reshape to a size read from a symbolic shape": (
        network(
            """
            h = MatMul(x, w)
            z = Constant<value_ints=[0]>() n = Shape(x) b = Gather(n, z)
            i = Constant<value_ints=[4, 6]>() s = Concat<axis=0>(b, i) r = Reshape(h, s)
            y = MatMul(r, v)
            """,
            {"w": (5, 24), "v": (6, 3)},
            inputs="float[N,5] x",
        ),
        {("w", 1, 6): [0]},
        """
        h = MatMul(x, 5x24)
        n = Shape(x)
        b = Gather(n, [0])
        s = Concat(b, [4, 6], axis=0)
        r = Reshape(h, s)
        y = MatMul(r, 6x3)
        """,
        """
        h = MatMul(x, 5x20)
        n = Shape(x)
        b = Gather(n, [0])
        s = Concat(b, [4, 6], axis=0)
        r/sizes_1 = Where([True, False, False], s, [1, 4, 5])
        r = Reshape(h, r/sizes_1)
        y = MatMul(r, 5x3)
        """,
    ),
    "expand": (
        network(
            """
            h = MatMul(x, w)
            o = Constant<value_ints=[1]>() u = Unsqueeze(h, o)
            s = Constant<value_ints=[2, 3, 7]>() e = Expand(u, s)
            y = MatMul(e, v)
            """,
            {"w": (5, 7), "v": (7, 3)},
        ),
        {("w", 1): [2, 3]},
        """
        h = MatMul(x, 5x7)
        u = Unsqueeze(h, [1])
        e = Expand(u, [2, 3, 7])
        y = MatMul(e, 7x3)
        """,
        """
        h = MatMul(x, 5x5)
        u = Unsqueeze(h, [1])
        e = Expand(u, [2, 3, 5])
        y = MatMul(e, 5x3)
        """,
    ),
    "split": (
        network(
            "h = MatMul(x, w) s = Constant<value_ints=[4, 6]>() a, b = Split<axis=1>(h, s)"
            " p = MatMul(a, u) q = MatMul(b, v) y = Add(p, q)",
            {"w": (5, 10), "u": (4, 3), "v": (6, 3)},
        ),
        {("w", 1): [0, 5, 6]},
        """
        h = MatMul(x, 5x10)
        a b = Split(h, [4, 6], axis=1)
        p = MatMul(a, 4x3)
        q = MatMul(b, 6x3)
        y = Add(p, q)
        """,
        """
        h = MatMul(x, 5x7)
        a b = Split(h, [3, 4], axis=1)
        p = MatMul(a, 3x3)
        q = MatMul(b, 4x3)
        y = Add(p, q)
        """,
    ),
    "split into equal parts": (
        network(
            "h = MatMul(x, w) a, b = Split<axis=1>(h) p = MatMul(a, u) q = MatMul(b, v) y = Add(p, q)",
            {"w": (5, 8), "u": (4, 3), "v": (4, 3)},
            opset=13,
        ),
        {("w", 1): [0]},
        """
        h = MatMul(x, 5x8)
        a b = Split(h, axis=1)
        p = MatMul(a, 4x3)
        q = MatMul(b, 4x3)
        y = Add(p, q)
        """,
        """
        h = MatMul(x, 5x7)
        a b = Split(h, [3, 4], axis=1)
        p = MatMul(a, 3x3)
        q = MatMul(b, 4x3)
        y = Add(p, q)
        """,
    ),
    "split by an attribute": (
        network(
            "h = MatMul(x, w) a, b = Split<axis=1, split=[4, 6]>(h) p = MatMul(a, u) q = MatMul(b, v) y = Add(p, q)",
            {"w": (5, 10), "u": (4, 3), "v": (6, 3)},
            opset=11,
        ),
        {("v", 0): [0, 1, 2]},
        """
        h = MatMul(x, 5x10)
        a b = Split(h, axis=1, split=[4, 6])
        p = MatMul(a, 4x3)
        q = MatMul(b, 6x3)
        y = Add(p, q)
        """,
        """
        h = MatMul(x, 5x7)
        a b = Split(h, axis=1, split=[4, 3])
        p = MatMul(a, 4x3)
        q = MatMul(b, 3x3)
        y = Add(p, q)
        """,
    ),
    "slice": (
        network(
            "h = MatMul(x, w) b = Constant<value_ints=[3]>() e = Constant<value_ints=[-2]>()"
            " i = Constant<value_ints=[1]>() s = Slice(h, b, e, i) p = MatMul(s, u) q = MatMul(h, v) y = Add(p, q)",
            {"w": (5, 11), "u": (6, 3), "v": (11, 3)},
        ),
        {("w", 1): [0, 4, 10]},
        """
        h = MatMul(x, 5x11)
        s = Slice(h, [3], [-2], [1])
        p = MatMul(s, 6x3)
        q = MatMul(h, 11x3)
        y = Add(p, q)
        """,
        """
        h = MatMul(x, 5x8)
        s = Slice(h, [2], [7], [1])
        p = MatMul(s, 5x3)
        q = MatMul(h, 8x3)
        y = Add(p, q)
        """,
    ),
    "gather": (
        network(
            "h = MatMul(x, w) i = Constant<value_ints=[4, 5, 6, 0, 1]>() g = Gather<axis=1>(h, i) y = MatMul(g, u)",
            {"w": (5, 7), "u": (5, 3)},
        ),
        {("w", 1): [0, 2, 4]},
        """
        h = MatMul(x, 5x7)
        g = Gather(h, [4, 5, 6, 0, 1], axis=1)
        y = MatMul(g, 5x3)
        """,
        """
        h = MatMul(x, 5x4)
        g = Gather(h, [2, 3, 0], axis=1)
        y = MatMul(g, 3x3)
        """,
    ),
    "pad": (
        network(
            "h = MatMul(x, w) p = Constant<value_ints=[0, 2, 0, 2]>() g = Pad(h, p) y = MatMul(g, u)",
            {"w": (5, 7), "u": (11, 3)},
        ),
        {("u", 0): [0, 3, 9]},
        """
        h = MatMul(x, 5x7)
        g = Pad(h, [0, 2, 0, 2])
        y = MatMul(g, 11x3)
        """,
        """
        h = MatMul(x, 5x6)
        g = Pad(h, [0, 1, 0, 1])
        y = MatMul(g, 8x3)
        """,
    ),
    "tile": (
        network(
            "h = MatMul(x, w) p = Constant<value_ints=[1, 2]>() g = Tile(h, p) y = MatMul(g, u)",
            {"w": (5, 7), "u": (14, 3)},
        ),
        {("w", 1): [0, 3]},
        """
        h = MatMul(x, 5x7)
        g = Tile(h, [1, 2])
        y = MatMul(g, 14x3)
        """,
        """
        h = MatMul(x, 5x5)
        g = Tile(h, [1, 2])
        y = MatMul(g, 10x3)
        """,
    ),
    "squeeze without axes": (
        network(
            "h = MatMul(x, w) o = Constant<value_ints=[1]>() u = Unsqueeze(h, o) s = Squeeze(u) y = MatMul(s, v)",
            {"w": (5, 7), "v": (7, 3)},
        ),
        {("w", 1): [0, 1, 2, 3, 5, 6]},
        """
        h = MatMul(x, 5x7)
        u = Unsqueeze(h, [1])
        s = Squeeze(u)
        y = MatMul(s, 7x3)
        """,
        """
        h = MatMul(x, 5x1)
        u = Unsqueeze(h, [1])
        s = Squeeze(u, [1])
        y = MatMul(s, 1x3)
        """,
    ),
    "lstm": (
        network(
            "h, c = LSTM<hidden_size=6>(x, w, r, b) o = Constant<value_ints=[1]>() s = Squeeze(h, o) y = MatMul(s, v)",
            {"w": (1, 24, 5), "r": (1, 24, 6), "b": (1, 48), "v": (6, 3)},
            inputs="float[4,2,5] x",
        ),
        {("v", 0): [1, 5]},
        """
        h c = LSTM(x, 1x24x5, 1x24x6, 1x48, hidden_size=6)
        s = Squeeze(h, [1])
        y = MatMul(s, 6x3)
        """,
        """
        h = LSTM(x, 1x16x5, 1x16x4, 1x32, hidden_size=4)
        s = Squeeze(h, [1])
        y = MatMul(s, 4x3)
        """,
    ),
    "a scale computed from a shape keeps its value": (
        network(
            """
            q = MatMul(x, a) k = MatMul(x, b) t = Transpose<perm=[1, 0]>(k) z = MatMul(q, t)
            n = Shape(q) i = Constant<value_ints=[-1]>() d = Gather(n, i) f = Cast<to=1>(d) g = Sqrt(f) y = Div(z, g)
            """,
            {"a": (5, 16), "b": (5, 16)},
        ),
        {("a", 1): [0, 1, 2, 3, 4, 5, 6]},
        """
        q = MatMul(x, 5x16)
        k = MatMul(x, 5x16)
        t = Transpose(k, perm=[1, 0])
        z = MatMul(q, t)
        n = Shape(q)
        d = Gather(n, [-1])
        f = Cast(d, to=1)
        g = Sqrt(f)
        y = Div(z, g)
        """,
        """
        q = MatMul(x, 5x9)
        k = MatMul(x, 5x9)
        t = Transpose(k, perm=[1, 0])
        z = MatMul(q, t)
        y = Div(z, [4.0])
        """,
    ),
    "the same under a symbolic batch": (
        network(
            """
            q = MatMul(x, a) k = MatMul(x, b) t = Transpose<perm=[1, 0]>(k) z = MatMul(q, t)
            n = Shape(q) f = Cast<to=1>(n) g = ReduceProd<keepdims=0>(f) y = Div(z, g)
            """,
            {"a": (5, 16), "b": (5, 16)},
            inputs="float[N,5] x",
        ),
        {("a", 1): [0, 1, 2, 3, 4, 5, 6]},
        """
        q = MatMul(x, 5x16)
        k = MatMul(x, 5x16)
        t = Transpose(k, perm=[1, 0])
        z = MatMul(q, t)
        n = Shape(q)
        f = Cast(n, to=1)
        g = ReduceProd(f, keepdims=0)
        y = Div(z, g)
        """,
        """
        q = MatMul(x, 5x9)
        k = MatMul(x, 5x9)
        t = Transpose(k, perm=[1, 0])
        z = MatMul(q, t)
        n = Shape(q)
        n/original = Where([True, False], n, [1, 16])
        f = Cast(n/original, to=1)
        g = ReduceProd(f, keepdims=0)
        y = Div(z, g)
        """,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_before_and_after(name: str) -> None:
    model, remove, before, after = CASES[name]
    assert show(model) == golden(before)
    assert show(prune(model, remove)[1]) == golden(after)


def _outputs(model: ir.Model, feeds: dict[str, Array]) -> dict[str, Array]:
    return run(model, feeds, None)


def test_a_folded_scalar_stays_a_scalar() -> None:
    body = "h = MatMul(x, w) s = Sqrt(c) d = Div(h, s) y = MatMul(d, v)"
    model = network(body, {"w": (5, 7), "c": (), "v": (7, 3)})
    model.graph.initializers["c"].const_value = ir.tensor(np.array(4.0, dtype=np.float32), name="c")
    pruned = prune(model, {("w", 1): [0]})[1]
    divide = next(node for node in pruned.graph if node.op_type == "Div")
    assert divide.inputs[1] is not None and divide.inputs[1].const_value is not None
    assert divide.inputs[1].const_value.numpy().shape == ()


def test_a_shape_that_is_an_output_keeps_its_name_and_value() -> None:
    for dims in ("2", "N"):
        model = network(
            "h = MatMul(x, w) y = MatMul(h, v) n = Shape(h)", {"w": (5, 7), "v": (7, 3)}, inputs=f"float[{dims},5] x"
        )
        model.graph.outputs.append(next(node for node in model.graph if node.op_type == "Shape").outputs[0])
        pruned = prune(model, {("w", 1): [0, 1]})[1]
        feeds = {"x": np.ones((2 if dims == "2" else 3, 5), dtype=np.float32)}
        assert [value.name for value in pruned.graph.outputs] == ["y", "n"]
        assert _outputs(pruned, feeds)["n"].tolist() == [len(feeds["x"]), 7]


def test_names_opset_and_symbolic_dimensions_stay() -> None:
    model, remove, *_ = CASES["reshape with a symbolic batch"]
    model.metadata_props["author"] = "someone"
    pruned = prune(model, remove)[1]
    assert pruned.opset_imports == model.opset_imports and pruned.ir_version == model.ir_version
    assert pruned.metadata_props == {"author": "someone"}
    assert [str(value.shape) for value in pruned.graph.inputs] == ["[N,5]"]
    assert {"w", "v"} <= set(pruned.graph.initializers)
    for rows in (1, 4):
        assert _outputs(pruned, {"x": np.ones((rows, 5), dtype=np.float32)})["y"].shape == (rows, 3)


def test_sizes_computed_from_data_are_left_alone() -> None:
    """A Reshape whose target is an input of the network: what it touches stays whole, and why is kept."""
    body = "h = MatMul(x, w) r = Reshape(h, s) y = Relu(r)"
    model = network(body, {"w": (5, 12)}, inputs="float[2,5] x, int64[3] s")
    program = observe(model, run, given={"s": np.array([2, 3, 4]), "x": np.ones((2, 5), dtype=np.float32)})
    coupling = couple(program)
    assert [str(one) for one in coupling.refusals] == ["Reshape 'r': its sizes are computed from data"]
    assert not group(coupling).groups
