"""Sabotaged rules must not pass the laws."""

from __future__ import annotations

from collections import Counter

import pytest

from graphprune.coupling.laws import Case
from graphprune.coupling.notation import parse

from .bench import run, shrink
from .mutations import Mutant, judge, mutants, sweep
from .samples import samples

SAMPLES = samples()
OPERATORS = sorted({(one.domain, one.op) for one in SAMPLES})


@pytest.mark.parametrize(("domain", "op"), OPERATORS)
def test_no_mutant_survives(domain: str, op: str, tally: Counter[str]) -> None:
    survived = []
    for finding in sweep([one for one in SAMPLES if (one.domain, one.op) == (domain, op)]):
        tally["mutants"] += 1
        tally[f"mutants {finding.verdict}"] += 1
        if finding.verdict == "survived":
            survived.append(f"{finding.mutant.kind}: {finding.mutant.text}")
    assert not survived, "\n".join(survived)


@pytest.mark.parametrize(
    ("op", "text", "verdict"),
    [
        ("Relu", "a* -> a*", "equivalent"),
        ("Relu", "x* -> x* | whole: x", "conservative"),
        ("Relu", "x* -> x* | stat: x", "conservative"),
        ("Relu", "x* -> y*", "caught"),
        ("Conv", "n (g i) x*, (g o) i k*, (g o)? -> n (g o) y* | g=@group:1 | whole: x y", "caught"),
        ("Softmax", "a b c -> a b c", "caught"),
        ("Softmax", "a b -> a b", "refused"),
    ],
)
def test_verdicts(op: str, text: str, verdict: str) -> None:
    case = Case(next(one for one in SAMPLES if one.op == op), run, shrink)
    truth = case.solve()
    assert truth.binding is not None
    line = truth.binding.layout.line.text
    assert judge(op, line, Mutant("by hand", text), [case], [truth]).verdict == verdict


def test_the_ways_to_go_wrong() -> None:
    found = [
        f"{one.kind}: {one.text}" for one in mutants(parse("(g i), h' -> (a + g) | a=@n | g=2 | whole: i | stat: h"))
    ]
    assert found == [
        "swap of operand 0: (i g), h' -> (a + g) | a=@n | g=2 | whole: i | stat: h",
        "sum for product of operand 0: (g + i), h' -> (a + g) | a=@n | g=2 | whole: i | stat: h",
        "drop g of operand 0: i, h' -> (a + g) | a=@n | g=2 | whole: i | stat: h",
        "untie g of operand 0: (zz i), h' -> (a + g) | a=@n | g=2 | whole: i | stat: h",
        "drop i of operand 0: g, h' -> (a + g) | a=@n | g=2 | whole: i | stat: h",
        "untie i of operand 0: (g zz), h' -> (a + g) | a=@n | g=2 | whole: i | stat: h",
        "drop h of operand 1: (g i),  -> (a + g) | a=@n | g=2 | whole: i | stat: h",
        "untie h of operand 1: (g i), zz' -> (a + g) | a=@n | g=2 | whole: i | stat: h",
        "forget ' of operand 1: (g i), h -> (a + g) | a=@n | g=2 | whole: i | stat: h",
        "feed back a of operand 1: (g i), a' -> (a + g) | a=@n | g=2 | whole: i | stat: h",
        "feed back g of operand 1: (g i), g' -> (a + g) | a=@n | g=2 | whole: i | stat: h",
        "feed back i of operand 1: (g i), i' -> (a + g) | a=@n | g=2 | whole: i | stat: h",
        "swap of result 0: (g i), h' -> (g + a) | a=@n | g=2 | whole: i | stat: h",
        "reverse segments of result 0: (g i), h' -> (g + a) | a=@n | g=2 | whole: i | stat: h",
        "drop a of result 0: (g i), h' -> g | a=@n | g=2 | whole: i | stat: h",
        "untie a of result 0: (g i), h' -> (zz + g) | a=@n | g=2 | whole: i | stat: h",
        "drop g of result 0: (g i), h' -> a | a=@n | g=2 | whole: i | stat: h",
        "untie g of result 0: (g i), h' -> (a + zz) | a=@n | g=2 | whole: i | stat: h",
        "drop whole i: (g i), h' -> (a + g) | a=@n | g=2 | stat: h",
        "drop stat h: (g i), h' -> (a + g) | a=@n | g=2 | whole: i",
        "drop a=@: (g i), h' -> (a + g) | g=2 | whole: i | stat: h",
        "drop g=2: (g i), h' -> (a + g) | a=@n | whole: i | stat: h",
        "g=2 off by one: (g i), h' -> (a + g) | a=@n | g=3 | whole: i | stat: h",
    ]
