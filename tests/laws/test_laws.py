"""Every rule of the registry is held against its operator's real execution."""

from __future__ import annotations

from collections import Counter

import pytest

from graphprune.coupling.laws import Case, LawReport, Sample, check, hold, missing
from graphprune.coupling.registry import all_rules

from .bench import run, shrink
from .samples import samples

SAMPLES = samples()
_reports: dict[int, LawReport] = {}

# Letters that a rule keeps whole (or calls a statistic) although the laws hold without, and why that is meant.
FORGONE: dict[str, dict[str, str]] = {}

# Samples of which nothing may be cut, and why.
NOTHING = {
    "MaxPool": "positions in the flat operand depend on all its sizes",
    "Reshape": "the factors of both sides are coprime",
    "Size": "it counts the elements",
    "Range": "its length is its contents",
}


def report(i: int) -> LawReport:
    if i not in _reports:
        _reports[i] = check(SAMPLES[i], run, shrink)
    return _reports[i]


@pytest.mark.parametrize("i", range(len(SAMPLES)), ids=[f"{i:03d}-{one}" for i, one in enumerate(SAMPLES)])
def test_the_laws_hold(i: int) -> None:
    found = report(i)
    assert not found.failures, "\n".join((found.line, *found.failures))
    assert bool(found.refusal) == bool(SAMPLES[i].refused), found.refusal or found.line
    assert SAMPLES[i].refused in found.refusal
    assert set(found.missing) <= set(FORGONE.get(SAMPLES[i].op, ())), f"{found.line}: {', '.join(found.missing)}"
    assert found.claims or found.refusal or SAMPLES[i].op in NOTHING, f"nothing can be cut under {found.line!r}"


def test_every_rule_has_a_sample(tally: Counter[str]) -> None:
    rules = {key for key, one in all_rules().items() if one.reason is None}
    claimed = {(one.domain, one.op) for i, one in enumerate(SAMPLES) if not report(i).refusal}
    assert not rules - claimed, "these rules have no sample that they describe"
    tally.update(
        {"rules": len(rules), "samples": len(SAMPLES), "cuts": sum(report(i).cuts for i in range(len(SAMPLES)))}
    )
    sampled = {(one.domain, one.op) for one in SAMPLES}
    assert not sampled - set(all_rules()), "these samples have no rule"


def test_a_wrong_rule_is_found() -> None:
    """The check itself: one sample under a line that forgets that kernel axes are whole."""
    conv = next(one for one in SAMPLES if one.op == "Conv")
    solved = Case(conv, run, shrink).solve("n i x*, o i k*, o? -> n o y* | whole: x y")
    assert any("of 3 on x1[2]: result 0 is" in text for text in hold(solved)[0])
    solved = Case(conv, run, shrink).solve("n i x*, o i k*, o? -> n o y*")
    assert any("of 7 on y0[2]: result 0 is 2x13x7x11, not 2x13x" in text for text in hold(solved)[0])


def test_a_forgone_axis_is_found() -> None:
    sample = Sample("Relu", next(one for one in SAMPLES if one.op == "Relu").operands)
    case = Case(sample, run, shrink)
    assert list(missing(case, "a b c -> a b c | whole: b | stat: c")) == ["b need not be whole", "c need not be stat"]
