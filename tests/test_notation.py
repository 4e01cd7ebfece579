"""The notation: what every construct means, and the text of every error."""

from __future__ import annotations

import re

import numpy as np
import pytest
from laws.bench import run, shrink

from graphprune.coupling.laws import Case, Operand, Sample
from graphprune.coupling.notation import (
    Attribute,
    Factor,
    Letter,
    Product,
    Segments,
    lay_out,
    letters_of,
    parse,
    write,
    write_line,
)
from graphprune.coupling.notation import (
    Operand as Described,
)
from graphprune.coupling.registry import all_rules
from graphprune.errors import NotationError, RuleError

# --- What is read -----------------------------------------------------------------------------------------------------

CLAUSES = "whole, stat, zero, macs, scale, mean, variance, silent and letter=size"


def test_letters_and_results() -> None:
    line = parse("m k, k n -> m n")
    assert line.operands == (Described((Letter("m"), Letter("k"))), Described((Letter("k"), Letter("n"))))
    assert line.results == (Described((Letter("m"), Letter("n"))),)


def test_stars_products_segments_numbers_and_feedback() -> None:
    line = parse("x* (a b) (a + (b c) + 2), D (4 h) h' -> x*")
    assert line.operands[0].axes == (
        Letter("x", star=True),
        Product((Letter("a"), Letter("b"))),
        Segments((Letter("a"), Product((Letter("b"), Letter("c"))), Factor(2))),
    )
    assert line.operands[1].axes == (Letter("D"), Product((Factor(4), Letter("h"))), Letter("h", fed_back=True))


def test_a_product_inside_a_sum_needs_no_brackets() -> None:
    assert parse("(a b + c) -> a").operands[0].axes == (Segments((Product((Letter("a"), Letter("b"))), Letter("c"))),)


def test_optional_opaque_ignored_scalar_and_repeated_operands() -> None:
    line = parse("x*, ., .?, _, , x*? -> x*, x*?")
    assert [one.axes is None for one in line.operands] == [False, True, True, True, False, False]
    assert [one.optional for one in line.operands] == [False, False, True, False, False, True]
    assert [one.ignored for one in line.operands] == [False, False, False, True, False, False]
    assert line.operands[4].axes == ()
    assert line.results[1].optional
    assert parse("x*, ... -> x*").repeats and not line.repeats


def test_clauses() -> None:
    line = parse(
        "n (g i) x*, (g o) i -> n (g o) | g=@group:1 | o=@size | i=5 | whole: x n | stat: i | macs: n g + 4 o"
        " | scale: 1 | mean: 2 | variance: 3 | silent: 0"
    )
    assert line.attributes == ((("g",), Attribute("group", 1)), (("o",), Attribute("size", None)))
    assert line.sizes == (("i", 5),)
    assert line.whole == {"x", "n"} and line.stat == {"i"}
    assert line.macs == (("n", "g"), (4, "o"))
    assert (line.scale, line.mean, line.variance, line.silent) == (1, 2, 3, 0)


def test_several_sizes_in_one_clause() -> None:
    assert parse("a, b -> a b | a=3 b=4").sizes == (("a", 3), ("b", 4))
    assert parse("p, q -> p q | p=@blocksize | q=@blocksize").attributes == (
        (("p",), Attribute("blocksize")),
        (("q",), Attribute("blocksize")),
    )
    assert parse("(k r d) -> k r d | (k r)=@heads").attributes == ((("k", "r"), Attribute("heads")),)


def test_white_space_means_nothing() -> None:
    one, two = parse("n(g i)x*,i->n|whole:x"), parse("  n (g i) x* , i  ->  n  |  whole :  x  ")
    assert (one.operands, one.results, one.whole) == (two.operands, two.results, two.whole)


@pytest.mark.parametrize("axis", ["a", "x*", "h'", "4", "(a b)", "(a + b)", "((a b) + 3)", "(4 (a + b))"])
def test_axes_are_written_as_they_are_read(axis: str) -> None:
    (found,) = parse(f"{axis} -> a b h x").operands[0].axes or ()
    assert write(found) == axis


def test_lines_are_written_as_they_are_read() -> None:
    lines = {one.line for one in all_rules().values() if one.line is not None}
    for text in lines | {
        "D (4 h) h', .?, _, b? -> D h | h=@hidden_size | b=3 | macs: D 4 h + h",
        "a, ... -> a",
        ", a -> ",
    }:
        line = parse(text)
        again = parse(write_line(line))
        assert (again.operands, again.results, again.repeats) == (line.operands, line.results, line.repeats)
        assert (again.attributes, again.sizes, again.whole, again.stat) == (
            line.attributes,
            line.sizes,
            line.whole,
            line.stat,
        )
        assert (again.macs, again.scale, again.mean, again.variance, again.silent) == (
            line.macs,
            line.scale,
            line.mean,
            line.variance,
            line.silent,
        )


def test_a_line_is_parsed_once() -> None:
    assert parse("a -> a") is parse("a -> a")


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "text", "column"),
    [
        ("", "the line has no '->'", 0),
        ("a", "the line has no '->'", 1),
        ("a b", "the line has no '->'", 3),
        ("a -> b -> c", "expected an axis, found '->'", 7),
        ("a - b", "'-' means nothing here", 2),
        ("a -> $b", "'$' means nothing here", 5),
        ("(a b -> a b", "this bracket is never closed", 0),
        ("(a (b c) -> a", "this bracket is never closed", 0),
        ("() -> a", "these brackets hold nothing", 1),
        ("(a + ) -> a", "a segment is missing", 5),
        ("(+ a) -> a", "a segment is missing before '+'", 1),
        ("(a + + b) -> a", "a segment is missing before '+'", 5),
        ("a) -> a", "expected an axis, found ')'", 1),
        ("0 -> a", "a factor is at least 1", 0),
        ("(0 a) -> a", "a factor is at least 1", 1),
        ("x* y* -> x*", "an operand has one starred letter at the most", 3),
        ("... -> a", "'...' repeats the operand before it, and there is none", 0),
        ("a, ..., b -> a", "'...' stands last", 6),
        ("a -> b, ...", "'...' stands among the operands", 8),
        ("a | whole: a", "the line has no '->'", 2),
        ("a -> a | whole: b", "'b' stands on no axis of this line", 16),
        ("a -> a | stat: a c", "'c' stands on no axis of this line", 17),
        ("a -> a | foo: a", f"no clause is called 'foo'; there are {CLAUSES}", 9),
        ("a -> a | a", f"no clause is called 'a'; there are {CLAUSES}", 9),
        ("a -> a | a=", "expected a size or '@attribute', found the end of the line", 11),
        ("a -> a | a=@", "expected an attribute, found the end of the line", 12),
        ("a -> a | a=@n:", "expected a default, found the end of the line", 14),
        ("a -> a | a=x", "expected a size or '@attribute', found 'x'", 11),
        ("a -> a | b=3", "'b' stands on no axis of this line", 9),
        ("a -> a | whole a", "expected ':', found 'a'", 15),
        ("a -> a | macs: q", "'q' stands on no axis of this line", 15),
        ("a -> a | scale: a", "expected the index of an operand, found 'a'", 16),
        ("a -> a | scale:", "expected the index of an operand, found the end of the line", 15),
        ("a -> a whole: a", "expected an axis, found ':'", 12),
        ("a ->a |", "expected a clause, found the end of the line", 7),
        ("a'' -> a", 'expected an axis, found "\'"', 2),
        ("a** -> a", "expected an axis, found '*'", 2),
        ("_ b -> a", "expected ',' or '->', found 'b'", 2),
        (". . -> a", "expected ',' or '->', found '.'", 2),
        ("a? b -> a", "expected ',' or '->', found 'b'", 3),
        ("a?? -> a", "expected ',' or '->', found '?'", 2),
        ("a -> a | 3", "expected a clause, found '3'", 9),
        ("a -> a | a=3 b=4", "'b' stands on no axis of this line", 13),
        ("\u00e9 -> a", "'\u00e9' means nothing here", 0),
        ("(a*) b* -> a", "a starred letter stands outside of brackets", 1),
        ("a -> a | whole: x*", "'x' stands on no axis of this line", 16),
        ("whole: a -> a", "expected an axis, found ':'", 5),
        ("(a, b) -> a", "expected an axis, found ','", 2),
    ],
)
def test_errors_quote_the_line_and_point_at_the_column(line: str, text: str, column: int) -> None:
    with pytest.raises(NotationError) as caught:
        parse(line)
    assert str(caught.value) == f"{text}\n  {line}\n  {' ' * column}^"


# --- Lines fitted to ranks --------------------------------------------------------------------------------------------


def test_stars_are_spelled_from_the_right() -> None:
    layout = lay_out(parse("x*, x* c -> x* c | whole: x | macs: x c"), (3, 2), (4,))
    names = [[one.name for one in letters_of(axes)] for axes in (*layout.operands, *layout.results)]
    assert names == [["x.2", "x.1", "x.0"], ["x.0", "c"], ["x.2", "x.1", "x.0", "c"]]
    assert layout.whole == {"x.0", "x.1", "x.2"}
    assert layout.macs == (("x.0", "x.1", "x.2", "c"),)


def test_roles() -> None:
    layout = lay_out(parse("m k, k n -> m n r"), (2, 2), (3,))
    assert layout.passing == {"m", "n"} and layout.contracted == {"k"}


def test_repeated_and_absent_operands() -> None:
    layout = lay_out(parse("c x, ... -> c"), (2, 2, 2), (1,))
    assert len(layout.operands) == 3 and layout.operands[2] == layout.operands[0]
    layout = lay_out(parse("a, b?, _? -> a"), (1, None), (1,))
    assert layout.operands == ((Letter("a"),), None, None) and layout.ignored == {2}


@pytest.mark.parametrize(
    ("line", "operands", "results", "text"),
    [
        ("m k, k n -> m n", (2, 3), (2,), "operand 1 has 3 axes, the rule describes 'k n'"),
        ("n c x* -> n c", (1,), (2,), "operand 0 has 1 axes, the rule describes 'n c x*'"),
        ("a -> a", (1,), (2,), "result 0 has 2 axes, the rule describes 'a'"),
        ("a -> ", (1,), (1,), "result 0 has 1 axes, the rule describes 'a scalar'"),
        ("a, b -> a", (1,), (1,), "operand 1 is missing"),
        ("a, b -> a", (1, None), (1,), "operand 1 is missing"),
        ("a -> a", (1, 1), (1,), "2 operands are given, the rule describes 1"),
        ("a -> a", (1,), (1, 1), "2 results are given, the rule describes 1"),
    ],
)
def test_ranks_that_do_not_fit(line: str, operands: tuple[int, ...], results: tuple[int, ...], text: str) -> None:
    with pytest.raises(RuleError, match=f"^{re.escape(text)}$"):
        lay_out(parse(line), operands, results)


# --- Lines fitted to sizes: what `explain` says of a node whose line does not fit -------------------------------------


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("(5 h) a -> (5 h) a", "axis 0 of operand 0 is (5 h), 5=5 does not divide 12"),
        ("(g h) a -> (g h) a | g=7", "axis 0 of operand 0 is (g h), g=7 does not divide 12"),
        ("(g h) a -> (g h) a", "axis 0 of operand 0 is (g h) = 12, which leaves its sizes open"),
        ("(g h) a -> (g h) a | g=3 | h=5", "axis 0 of operand 0 is (g h), g=3, h=5 does not make 12"),
        ("(g + h) a -> (g + h) a | g=13", "axis 0 of operand 0 is (g + h), g=13 is more than 12"),
        ("a a -> a a", "axis 1 of operand 0 is a = 12, which 7 does not fit"),
        ("a b -> a b | a=5", "axis 0 of operand 0 is a = 5, which 12 does not fit"),
        ("(3 a) b -> (4 a) b", "axis 0 of result 0 is (4 a), 4=4, a=4 does not make 12"),
        ("a b -> a (1 + b)", "axis 1 of result 0 is (1 + b), 1=1, b=7 does not make 7"),
    ],
)
def test_sizes_that_do_not_fit(line: str, text: str) -> None:
    case = Case(Sample("Relu", (Operand((12, 7)),)), run, shrink)
    assert case.solve(line).refusal == text


def test_sizes_are_read_from_attributes() -> None:
    solved = Case(Sample("LRN", (Operand((3, 10, 5, 2)),), (("size", 5),)), run, shrink).solve(
        "n (g c) x* -> n (g c) x* | g=@size"
    )
    assert solved.binding is not None and solved.binding.spaces["c"].n == 2
    assert np.prod([solved.binding.spaces[name].n for name in ("g", "c")]) == 10
