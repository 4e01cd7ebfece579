"""Random whole networks equal their masked originals, and the check sees what is wrong where something is."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.coupling.solve import couple, describe
from graphprune.ir.program import Array, Program
from graphprune.passes import shrink

from . import graphs
from .graphs import KINDS, Graph, Recipe, Tally, check, fails, make, reduced

#: Operators that the default run must meet; all of them are in many more graphs than one.
EXPECTED = """
    Add AveragePool BatchNormalization Concat Conv ConvTranspose Div Einsum Expand Flatten GRU Gather Gemm
    GlobalAveragePool GroupNormalization InstanceNormalization LSTM LayerNormalization MatMul MaxPool Mul Neg Pad PRelu
    ReduceMean ReduceSum Relu Reshape Resize ScatterND Sigmoid Slice Softmax Split Squeeze Sub Tanh Tile Transpose
    Unsqueeze Where
"""


def explain(tally: Tally) -> str:
    """The first failure, made small."""
    seed, text = tally.failures[0]
    small = reduced(Recipe.random(seed))
    return f"{len(tally.failures)} failures; seed {seed}: {text}\n{small}\n{onnx.printer.to_text(make(small).model)}"


def test_random_graphs() -> None:
    tally = graphs.run(0, 300, Tally())
    assert not tally.failures, explain(tally)
    assert tally.graphs == 300
    assert tally.prunable > 200 and tally.plans > 200 and tally.groups > 600, tally.line()
    assert tally.removed > 1500 and 0.25 < tally.removed / tally.units < 0.75, tally.line()
    assert tally.third > 10 and tally.again > 10 and tally.float64 < 10, tally.line()
    assert not set(EXPECTED.split()) - set(tally.operators)
    assert not tally.refusals, tally.refusals  # every operator of the generator has a rule that fits


@pytest.mark.sweep
def test_many_random_graphs() -> None:
    tally = graphs.run(1_000_000, 3000, Tally())
    assert not tally.failures, explain(tally)
    assert tally.prunable > 2000 and tally.removed > 15_000, tally.line()


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    steps = st.tuples(st.sampled_from(KINDS), st.integers(0, 1 << 16))
    return Recipe(draw(st.integers(0, 1 << 16)), tuple(draw(st.lists(steps, max_size=8))), draw(st.integers(0, 99)))


@given(recipes())
@settings(max_examples=25)
def test_drawn_graphs(recipe: Recipe) -> None:
    check(make(recipe), recipe.plan)


def test_a_filter_that_two_convolutions_share_is_cut_for_each() -> None:
    """Found as seed 9846: the check by plan alone knew of shared vectors only."""
    kinds = "attention;join;pool;group norm;depthwise;channel attention;stack;branches;instance norm;concat;activation"
    kinds += ";view as;conv;conv transpose;conv;gather"
    seeds = "15894 23694 54464 46710 565 37652 8583 40315 18417 63275 22397 26196 21725 21313 55726 10295"
    steps = zip(kinds.split(";"), map(int, seeds.split()), strict=True)
    tally = check(make(Recipe(9846, tuple(steps), 9846)), 9846)
    assert tally.third == 1


def test_a_recipe_says_all() -> None:
    recipe = Recipe.random(7)
    assert make(recipe).model == make(recipe).model
    assert {kind for seed in range(200) for kind, _ in Recipe.random(seed).steps} == set(KINDS)


# The oracle sees faults that are put in on purpose.


def seen(seeds: range) -> int:
    """How many of the graphs fail."""
    return sum(fails(Recipe.random(seed)) is not None for seed in seeds)


def test_a_wrong_kept_index_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real, cut = shrink._Shrinking._constant, 0

    def shifted(self: Any, name: str, masks: list[Array]) -> ir.Value:
        nonlocal cut
        masks = list(masks)
        axis = next((a for a, mask in enumerate(masks) if not mask.all()), None)
        if axis is not None and len(masks) > 1:
            masks[axis] = np.roll(masks[axis], 1)  # as many indices, other ones
            cut += 1
        return real(self, name, masks)

    monkeypatch.setattr(shrink._Shrinking, "_constant", shifted)
    concerned, found = 0, 0
    for seed in range(500, 510):
        cut = 0
        failed = fails(Recipe.random(seed)) is not None
        concerned, found = concerned + bool(cut), found + failed
    assert concerned >= 6 and found >= 0.9 * concerned


def test_a_forgotten_consumer_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = graphs.members_of

    def fewer(grouping: Any, keep: Any) -> list[Any]:
        members = real(grouping, keep)
        at = next((i for i, one in enumerate(members) if one.role in ("consumer", "contracted")), None)
        return [one for i, one in enumerate(members) if i != at]

    monkeypatch.setattr(graphs, "members_of", fewer)
    assert seen(range(500, 508)) >= 4


@pytest.mark.parametrize(
    ("pattern", "wrong", "least"),
    [
        (r"\| stat:[^|]*", "", 1),  # statistics are taken for elementwise
        (r"\((a\d+) (a\d+)\)", r"(\2 \1)", 2),  # heads are taken for head dimensions
    ],
)
def test_a_wrong_rule_is_seen(pattern: str, wrong: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def sabotaged(node: ir.Node, program: Program) -> str:
        return re.sub(pattern, wrong, describe(node, program))

    monkeypatch.setattr(graphs, "couple", partial(couple, describe=sabotaged))
    assert seen(range(500, 512)) >= least


# What random graphs have found, as it was when it was small.


def text(
    nodes: str, weights: dict[str, tuple[int, ...]], inputs: str, feeds: dict[str, tuple[int, ...]], opset: int = 17
) -> Graph:
    """A network from the text of its nodes, and example inputs of given shapes (the others have a larger batch)."""
    read = f'<ir_version: 8, opset_import: ["" : {opset}]> net ({inputs}) => (float y) {{ {nodes} }}'
    model = onnx.parser.parse_model(read)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        )
    model = onnx.shape_inference.infer_shapes(model)

    def draw(more: int) -> dict[str, Array]:
        return {k: rng.standard_normal((s[0] + more, *s[1:])).astype(np.float32) for k, s in feeds.items()}

    return Graph(model, draw(0), draw(3))


#: name -> network; what it showed stands beside it
FOUND: dict[str, tuple[Graph, int]] = {
    # the mask of the summed axis was as long as the example's (the units' places on it move with the batch)
    "contracted where the size is symbolic": (
        text(
            "h = MatMul(x, w) s = Constant<value_ints=[-1]>() f = Reshape(h, s) a = Constant<value_ints=[0]>() "
            "t = ReduceSum(f, a) i = Relu(t) g = MatMul(x, u) j = MatMul(g, v) y = Add(i, j)",
            {"w": (5, 6), "u": (5, 8), "v": (8, 3)},
            "float[N,5] x",
            {"x": (2, 5)},
        ),
        1,
    ),
    # pieces of a single index were taken for axes of one index, and nothing was pruned
    "a permutation of single units": (
        text(
            "h = MatMul(x, w) p = Constant<value_ints=[3,0,5,2,1,4]>() q = Constant<value_ints=[5,1,0,4,2,3]>() "
            "g = Gather<axis=1>(h, p) k = Gather<axis=1>(g, q) r = Add(g, k) y = MatMul(r, v)",
            {"w": (5, 6), "v": (6, 3)},
            "float[N,5] x",
            {"x": (2, 5)},
        ),
        1,
    ),
    "a subset of single units": (
        text(
            "h = MatMul(x, w) p = Constant<value_ints=[7,0,5,2]>() g = Gather<axis=1>(h, p) r = Relu(g) "
            "y = MatMul(r, v)",
            {"w": (5, 8), "v": (4, 3)},
            "float[N,5] x",
            {"x": (2, 5)},
        ),
        1,
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_found_by_random_graphs(name: str) -> None:
    graph, groups = FOUND[name]
    tally = Tally()
    for plan in range(4):
        check(graph, plan, tally)
    assert tally.groups == 4 * groups and tally.removed
