"""The algebra of index spaces: what unification must always give, on random systems of statements."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.coupling.space import (
    ONE,
    Form,
    Refusal,
    Space,
    find,
    free_leaves,
    leaf,
    leaves,
    make_stat,
    make_whole,
    prod,
    show,
    split,
    sum_of,
    unify,
    whole,
)
from graphprune.errors import RuleError

WHY = Refusal("a test says so")


# --- An independent evaluator: expressions over named leaves, masks by numpy alone ------------------------------------


@dataclass(frozen=True)
class Expr:
    """``name`` of a leaf, or ``+`` / ``*`` over ``kids``."""

    op: str
    n: int
    kids: tuple[Expr, ...] = ()

    def __repr__(self) -> str:
        if not self.kids:
            return f"{self.op}:{self.n}"
        return "(" + (" + " if self.op == "+" else " ").join(map(repr, self.kids)) + ")"


Statements = list[tuple[Expr, Expr]]


def build(expr: Expr, held: dict[str, Space]) -> Space:
    if not expr.kids:
        return held.setdefault(expr.op, leaf(expr.n))
    kids = [build(kid, held) for kid in expr.kids]
    return sum_of(kids) if expr.op == "+" else prod(kids)


def evaluate(expr: Expr, masks: dict[str, np.ndarray]) -> np.ndarray:
    if not expr.kids:
        return masks[expr.op]
    parts = [evaluate(kid, masks) for kid in expr.kids]
    if expr.op == "+":
        return np.concatenate(parts)
    out = parts[0]
    for part in parts[1:]:
        out = (out[:, None] & part[None, :]).reshape(-1)
    return out


def refined(space: Space, chosen: dict[int, np.ndarray], rng: random.Random) -> np.ndarray:
    """A random mask of a solved space: free leaves at random, whole ones complete."""
    space = find(space)
    if space.form is Form.LEAF:
        if space.refusal is not None:
            return np.ones(space.n, dtype=bool)
        if id(space) not in chosen:
            chosen[id(space)] = np.array([rng.random() < 0.6 for _ in range(space.n)], dtype=bool)
        return chosen[id(space)]
    parts = [refined(kid, chosen, rng) for kid in space.kids]
    if space.form is Form.SUM:
        return np.concatenate(parts)
    out = parts[0]
    for part in parts[1:]:
        out = (out[:, None] & part[None, :]).reshape(-1)
    return out


def solve(statements: Statements) -> dict[str, Space]:
    held: dict[str, Space] = {}
    pairs = [(build(a, held), build(b, held)) for a, b in statements]
    for a, b in pairs:
        unify(a, b)
    return held


def masks_of(held: dict[str, Space], seed: int) -> dict[str, np.ndarray]:
    rng, chosen = random.Random(seed), {}
    return {name: refined(space, chosen, rng) for name, space in held.items()}


def snapshot(held: dict[str, Space]) -> list[Any]:
    """The solved spaces with their leaves numbered by first occurrence."""
    number: dict[int, int] = {}

    def read(space: Space) -> Any:
        space = find(space)
        if space.form is Form.LEAF:
            return (
                (space.n, "whole")
                if space.refusal is not None
                else (space.n, number.setdefault(id(space), len(number)))
            )
        return (space.form.name, *[read(kid) for kid in space.kids])

    return [(name, read(held[name])) for name in sorted(held)]


def aligned(held: dict[str, Space]) -> bool:
    return not any(one.refusal is not None for space in held.values() for one in leaves(space))


def allows(held: dict[str, Space], masks: dict[str, np.ndarray]) -> bool:
    """Whether a solution can keep exactly these indices of every leaf that was named."""
    chosen: dict[int, np.ndarray] = {}

    def fits(space: Space, mask: np.ndarray) -> bool:
        space = find(space)
        if space.form is Form.LEAF:
            if space.refusal is not None:
                return bool(mask.all())
            return bool(np.array_equal(chosen.setdefault(id(space), mask), mask))
        if space.form is Form.SUM:
            ends = np.cumsum([kid.n for kid in space.kids])[:-1]
            return all(fits(kid, part) for kid, part in zip(space.kids, np.split(mask, ends), strict=True))
        if not mask.any():
            return True  # which factor is empty cannot be told
        cube = mask.reshape([kid.n for kid in space.kids])
        parts = [cube.any(axis=tuple(a for a in range(cube.ndim) if a != i)) for i in range(cube.ndim)]
        joint = parts[0]
        for part in parts[1:]:
            joint = np.logical_and.outer(joint, part)
        return bool(np.array_equal(joint, cube)) and all(map(fits, space.kids, parts))

    return all(fits(held[name], mask) for name, mask in masks.items())


# --- Random systems ---------------------------------------------------------------------------------------------------


@st.composite
def expressions(draw: st.DrawFn, n: int, pool: dict[int, list[str]], depth: int, products: bool = True) -> Expr:
    """An expression of ``n`` indices over leaves of at least two, old and new."""
    factors = [a for a in range(2, n // 2 + 1) if n % a == 0] if products else []
    kinds = ["leaf"] + ["sum"] * (depth > 0 and n >= 4) + ["product"] * (depth > 0 and bool(factors))
    kind = draw(st.sampled_from(kinds))
    if kind == "leaf":
        known = pool.setdefault(n, [])
        if known and draw(st.booleans()):
            return Expr(draw(st.sampled_from(known)), n)
        known.append(f"l{sum(map(len, pool.values()))}")
        return Expr(known[-1], n)
    if kind == "sum":
        first = draw(st.integers(2, n - 2))
        sizes = (first, n - first)
    else:
        first = draw(st.sampled_from(factors))
        sizes = (first, n // first)
    kids = tuple(draw(expressions(size, pool, depth - 1, products)) for size in sizes)
    return Expr("+" if kind == "sum" else "*", n, kids)


@st.composite
def systems(draw: st.DrawFn, products: bool = True) -> Statements:
    pool: dict[int, list[str]] = {}
    statements = []
    sizes = st.sampled_from((4, 6, 8, 12, 16, 18, 24)) if products else st.integers(4, 16)
    for _ in range(draw(st.integers(1, 5))):
        n = draw(sizes)
        sides = [draw(expressions(n, pool, draw(st.integers(0, 3)), products)) for _ in range(2)]
        statements.append((sides[0], sides[1]))
    return statements


@given(systems(), st.integers(0, 2**16))
@settings(max_examples=400)
def test_sound(statements: Statements, seed: int) -> None:
    masks = masks_of(solve(statements), seed)
    for a, b in statements:
        assert np.array_equal(evaluate(a, masks), evaluate(b, masks)), (a, b)


@given(systems(), st.integers(0, 2**16))
@settings(max_examples=200)
def test_idempotent(statements: Statements, seed: int) -> None:
    """Stating everything again changes nothing; after a fallback it may make more whole, never less."""
    held = solve(statements)
    before = snapshot(held) if aligned(held) else None
    for a, b in statements:
        unify(build(a, held), build(b, held))
    if before is not None:
        assert snapshot(held) == before
    assert allows(solve(statements), masks_of(held, seed))


@given(systems(), st.randoms(use_true_random=False))
@settings(max_examples=300)
def test_order_does_not_matter_where_systems_align(statements: Statements, rng: random.Random) -> None:
    """Of aligned systems, every choice that one order allows the other allows too.

    Where a fallback makes something whole, which of two equal descriptions gives way depends on the order; such systems
    are only sound.
    """
    other = [(b, a) if rng.random() < 0.5 else (a, b) for a, b in statements]
    rng.shuffle(other)
    one, two = solve(statements), solve(other)
    assert aligned(one) == aligned(two)
    if aligned(one):
        for seed in range(4):
            assert allows(two, masks_of(one, seed))
            assert allows(one, masks_of(two, seed))


def _exact_partition(statements: Statements) -> dict[tuple[str, int], tuple[str, int]]:
    """Union-find over single indices: right by definition where there are only segments."""
    up: dict[tuple[str, int], tuple[str, int]] = {}

    def top(i: tuple[str, int]) -> tuple[str, int]:
        while up.setdefault(i, i) != i:
            i = up[i]
        return i

    def indices(expr: Expr) -> list[tuple[str, int]]:
        if not expr.kids:
            return [(expr.op, i) for i in range(expr.n)]
        return [i for kid in expr.kids for i in indices(kid)]

    for a, b in statements:
        for i, j in zip(indices(a), indices(b), strict=True):
            up[top(i)] = top(j)
    return {i: top(i) for i in list(up)}


@given(systems(products=False))
@settings(max_examples=300)
def test_segments_are_solved_exactly(statements: Statements) -> None:
    """Concats and splits, in whatever order: the units are the classes of equal indices, none lost, none whole."""
    held = solve(statements)
    exact = _exact_partition(statements)
    found: dict[tuple[str, int], tuple[int, int]] = {}
    for name, space in held.items():
        i = 0
        for one in leaves(space):
            assert one.refusal is None
            for offset in range(one.n):
                found[name, i] = (id(one), offset)
                i += 1
    assert set(found) == set(exact)
    pairs = {(found[i], exact[i]) for i in exact}
    assert len(pairs) == len(set(found.values())) == len(set(exact.values()))


@given(systems(), st.data())
@settings(max_examples=150)
def test_marks_reach_everything_equal(statements: Statements, data: st.DataObject) -> None:
    """What is whole or a statistic before or after unification is so wherever it stands."""
    held: dict[str, Space] = {}
    pairs = [(build(a, held), build(b, held)) for a, b in statements]
    marked = data.draw(st.sampled_from(sorted(held)))
    mark = data.draw(st.sampled_from((make_whole, make_stat)))
    at = data.draw(st.integers(0, len(pairs)))
    for i, (a, b) in enumerate(pairs):
        if i == at:
            mark(held[marked], WHY)
        unify(a, b)
    if at == len(pairs):
        mark(held[marked], WHY)
    for one in free_leaves(held[marked]):
        assert mark is make_stat and one.stat is not None
    masks = masks_of(held, 1)
    for a, b in statements:
        assert np.array_equal(evaluate(a, masks), evaluate(b, masks))


# --- Adversaries ------------------------------------------------------------------------------------------------------


def _halves(n: int) -> Statements:
    """Shifts of one axis against itself by every size: all indices become one unit."""
    statements: Statements = []
    for i in range(2, n - 1):
        statements.append((Expr("+", n, (Expr(f"a{i}", i), Expr(f"b{i}", n - i))), Expr("x", n)))
        statements.append((Expr("+", n, (Expr(f"b{i}", n - i), Expr(f"a{i}", i))), Expr("x", n)))
    return statements


@pytest.mark.parametrize("n", [8, 40, 120])
def test_shifts_of_an_axis_against_itself_end(n: int) -> None:
    held = solve(_halves(n))
    assert len({id(one) for one in leaves(held["x"])}) == 1


def test_nested_products_of_one_axis_end() -> None:
    n = 720
    statements: Statements = [
        (Expr("*", n, (Expr(f"p{a}", a), Expr(f"q{a}", n // a))), Expr("x", n)) for a in range(2, n // 2) if n % a == 0
    ]
    masks = masks_of(solve(statements), 3)
    for a, b in statements:
        assert np.array_equal(evaluate(a, masks), evaluate(b, masks))


def test_an_axis_equal_to_a_part_of_itself_ends() -> None:
    x = leaf(6)
    tail = split(x, 5)[1]  # one unit that could go
    assert tail.n == 1 and tail.refusal is None
    y = leaf(6)
    unify(y, Space(Form.PROD, 6, (y, tail)))
    assert find(tail).refusal is not None
    assert find(y).refusal is None


# --- Small things that are worth a name -------------------------------------------------------------------------------


def test_shapes_of_the_algebra() -> None:
    a, b = leaf(3), leaf(4)
    assert leaf(1) is ONE and whole(1, WHY) is ONE
    assert prod([a]) is a and prod([a, ONE]) is a and prod([]) is ONE
    assert sum_of([a]) is a and sum_of([a, whole(0, WHY)]) is a
    assert sum_of([]).n == 0
    assert show(prod([a, b])) == "3·4" and show(sum_of([a, b])) == "(3+4)"
    make_whole(a, WHY)
    assert show(prod([a, b])) == "3!·4"
    assert [one.n for one in leaves(sum_of([a, b, a]))] == [3, 4, 3]


def test_a_leaf_is_refined_everywhere_at_once() -> None:
    channels = leaf(768)
    residual = sum_of([channels, leaf(2)])
    unify(channels, prod([leaf(12), leaf(64)]))
    assert show(channels) == "12·64" and show(residual) == "(12·64+2)"


def test_sizes_that_differ_are_an_error() -> None:
    with pytest.raises(RuleError, match=r"^an axis of 12 \(3·4\) cannot equal one of 13 \(13\)$"):
        unify(prod([leaf(3), leaf(4)]), leaf(13))


def test_coprime_products_are_whole_and_say_why() -> None:
    a, b = prod([leaf(3), leaf(4)]), prod([leaf(4), leaf(3)])
    unify(a, b)
    assert [str(one.refusal) for one in leaves(a)] == ["two products of coprime factors meet"] * 2


def test_a_shuffle_that_does_not_align_is_cut_in_units() -> None:
    """ShuffleNetV2: 116 channels, shuffled as 2 x 58, then split at 58."""
    halves = leaf(58), leaf(58)
    rows = leaf(2)
    columns = leaf(58)
    unify(sum_of(halves), prod([rows, columns]))
    shuffled = prod([columns, rows])
    parts = leaf(58), leaf(58)
    unify(sum_of(parts), shuffled)
    held: dict[str, Space] = {"a": halves[0], "b": halves[1], "c": parts[0], "d": parts[1]}
    assert sum(1 for space in held.values() for _ in free_leaves(space)) > 0
    masks = masks_of(held, 7)
    joint = np.concatenate([masks["a"], masks["b"]]).reshape(2, 58).T.reshape(-1)
    assert np.array_equal(joint, np.concatenate([masks["c"], masks["d"]]))


def test_reasons_read_well() -> None:
    why = Refusal("x is never cut", "Conv", "stem", "w", 2)
    assert str(why) == "Conv 'stem': x is never cut ('w' axis 2)"
    assert str(Refusal("x is never cut")) == "x is never cut"
