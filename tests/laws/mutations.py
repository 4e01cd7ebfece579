"""Sabotaged lines, and whether the laws find them out.

A mutant is a line with one thing wrong. It is *caught* when it raises, refuses, or breaks a law on a sample. It is
*equivalent* when on every sample each cut that it allows does what some cut under the true line does (and claims no
more of it): where the true line allows no more than the mutant either, both say the same in other letters, otherwise
the mutant is merely *conservative*. What is none of these has *survived*.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import combinations, islice

import numpy as np

from graphprune.coupling.groups import Mask
from graphprune.coupling.laws import Case, Effect, Sample, Solution, hold
from graphprune.coupling.notation import Axis, Factor, Letter, Line, Product, Segments, parse, write_line
from graphprune.coupling.space import Form, Space, find, free_leaves
from graphprune.errors import GraphpruneError

from .bench import run, shrink

FRESH = "zz"  # a letter that no rule uses
UNCHECKED = {("com.microsoft", "DynamicQuantizeMatMul")}  # its kernel reads beyond a scale that is too short


# Mutants that no result can tell from the truth: a bias of the keys adds the same to all scores of a softmax.
UNSEEN = {
    ("com.microsoft", "Attention"): ("swap of operand 2", "((h d) + (d h) + (h v))"),
    ("com.microsoft", "MultiHeadAttention"): ("swap of operand 3", "((h d) + (d h) + (h v))"),
    ("com.microsoft", "QAttention"): ("swap of operand 2", "((h d) + (d h) + (h d))"),
}


@dataclass(frozen=True)
class Mutant:
    kind: str
    text: str


@dataclass(frozen=True)
class Finding:
    op: str
    line: str
    mutant: Mutant
    verdict: str  # caught, refused, equivalent, conservative, survived


def _terms(axis: Axis) -> tuple[Axis, ...]:
    return axis.terms if isinstance(axis, (Product, Segments)) else ()


def _places(axes: Sequence[Axis], path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Axis]]:
    """Every letter, factor and compound with the way to it."""
    for i, axis in enumerate(axes):
        yield (*path, i), axis
        yield from _places(_terms(axis), (*path, i))


def _put(axes: tuple[Axis, ...], path: tuple[int, ...], new: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """The axes with what stands at ``path`` replaced by any number of others."""
    first, rest = path[0], path[1:]
    if not rest:
        return axes[:first] + new + axes[first + 1 :]
    old = axes[first]
    terms = _put(_terms(old), rest, new)
    changed: Axis = terms[0] if len(terms) == 1 else Segments(terms) if isinstance(old, Segments) else Product(terms)
    return (*axes[:first], changed, *axes[first + 1 :])


def mutants(line: Line) -> Iterator[Mutant]:
    """Every line with one thing wrong."""
    names = {
        one.name
        for side in (*line.operands, *line.results)
        for _, one in _places(side.axes or ())
        if isinstance(one, Letter)
    }
    for side in ("operands", "results"):
        operands = getattr(line, side)
        for k, operand in enumerate(operands):

            def with_axes(axes: tuple[Axis, ...], k: int = k, side: str = side) -> str:
                held = list(getattr(line, side))
                held[k] = replace(held[k], axes=axes)
                return write_line(replace(line, **{side: tuple(held)}))

            where = f"of {side[:-1]} {k}"
            if operand.axes is None:
                if not operand.ignored:
                    held = list(operands)
                    held[k] = replace(operand, ignored=True)
                    yield Mutant(f"ignore sizes {where}", write_line(replace(line, **{side: tuple(held)})))
                continue
            places = list(_places(operand.axes))
            named = [(path, one) for path, one in places if isinstance(one, Letter)]
            for (a, one), (b, other) in combinations([p for p in places if not _terms(p[1])], 2):
                if one != other and (isinstance(one, Letter) or isinstance(other, Letter)):
                    if any(isinstance(each, Factor) for each in (one, other)) and a[:-1] != b[:-1]:
                        continue
                    yield Mutant(f"swap {where}", with_axes(_put(_put(operand.axes, a, (other,)), b, (one,))))
            for path, axis in places:
                if isinstance(axis, Product) and len(axis.terms) > 1:
                    yield Mutant(
                        f"sum for product {where}", with_axes(_put(operand.axes, path, (Segments(axis.terms),)))
                    )
                elif isinstance(axis, Segments):
                    turned = Segments(axis.terms[::-1])
                    if turned != axis:
                        yield Mutant(f"reverse segments {where}", with_axes(_put(operand.axes, path, (turned,))))
            for path, one in named:
                yield Mutant(f"drop {one.name} {where}", with_axes(_put(operand.axes, path, ())))
                yield Mutant(
                    f"untie {one.name} {where}", with_axes(_put(operand.axes, path, (replace(one, name=FRESH),)))
                )
                if one.fed_back:
                    yield Mutant(
                        f"forget ' {where}", with_axes(_put(operand.axes, path, (replace(one, fed_back=False),)))
                    )
                    for name in sorted(names - {one.name}):
                        yield Mutant(
                            f"feed back {name} {where}", with_axes(_put(operand.axes, path, (replace(one, name=name),)))
                        )
    for kind in ("whole", "stat", "zero"):
        for name in sorted(getattr(line, kind)):
            yield Mutant(f"drop {kind} {name}", write_line(replace(line, **{kind: getattr(line, kind) - {name}})))
    if line.silent is not None:
        yield Mutant("drop silent", write_line(replace(line, silent=None)))
    for i, (letters, _) in enumerate(line.attributes):
        rest = line.attributes[:i] + line.attributes[i + 1 :]
        yield Mutant(f"drop {' '.join(letters)}=@", write_line(replace(line, attributes=rest)))
    for i, (name, n) in enumerate(line.sizes):
        yield Mutant(f"drop {name}={n}", write_line(replace(line, sizes=line.sizes[:i] + line.sizes[i + 1 :])))
        wrong = (*line.sizes[:i], (name, n + 1), *line.sizes[i + 1 :])
        yield Mutant(f"{name}={n} off by one", write_line(replace(line, sizes=wrong)))


def lines(samples: Sequence[Sample]) -> dict[tuple[str, str], list[Case]]:
    """(operator, line) -> the samples that it describes."""
    found: dict[tuple[str, str], list[Case]] = {}
    for sample in samples:
        case = Case(sample, run, shrink)
        solved = case.solve()
        if solved.binding is not None:
            found.setdefault((sample.op, solved.binding.layout.line.text), []).append(case)
    return found


def judge(op: str, line: str, mutant: Mutant, cases: Sequence[Case], truths: Sequence[Solution]) -> Finding:
    """Whether the laws find a mutant out."""
    solved: list[Solution] = []
    refused = 0
    for case in cases:
        try:
            parse(mutant.text)
            one = case.solve(mutant.text)
        except (GraphpruneError, AssertionError):
            refused += 1
            continue
        if one.binding is None:
            refused += 1
        else:
            solved.append(one)
    pairs = [(one, truth) for one in solved for truth in truths if truth.case is one.case]
    if not solved:
        return Finding(op, line, mutant, "refused")
    unlike = False
    for one, truth in pairs:
        if not implies(one, truth):
            unlike = True
            if any(hold(one, seed, first=True)[0] for seed in range(3)):
                return Finding(op, line, mutant, "caught")
    if unlike:
        return Finding(op, line, mutant, "refused" if refused else "survived")
    same = not refused and all(implies(truth, one) for one, truth in pairs)
    return Finding(op, line, mutant, "equivalent" if same else "conservative")


def implies(one: Solution, other: Solution) -> bool:
    """Whether every cut under ``one`` does what some cut under ``other`` does, and claims no more of it."""
    for effect in _tried(one):
        found = explain(other, effect)
        if found is None or not _same(effect, other.effect(found)):
            return False
    return True


def _tried(solution: Solution) -> Iterator[Effect]:
    """What some choices do; kept, since the truth is asked for every mutant."""
    known: list[Effect] = solution.__dict__.setdefault("_tried", [])
    yield from known
    rest = islice(solution.choices(np.random.default_rng(5), 4), len(known), None)
    for choice in rest:
        known.append(solution.effect(choice))
        yield known[-1]


def explain(solution: Solution, effect: Effect) -> dict[Space, Mask] | None:
    """The choice of units that keeps the indices of an effect, if there is one."""
    chosen: dict[Space, Mask] = {}
    pairs = list(zip(solution.operand_axes, effect.operands, strict=True))
    pairs += [
        (axes, masks) for axes, masks in zip(solution.result_axes, effect.results, strict=True) if masks is not None
    ]
    for axes, masks in pairs:
        for space, mask in zip(axes, masks, strict=True):
            if not _solve(space, mask, chosen):
                return None
    return {one: mask for one, mask in chosen.items() if not mask.all()}


def _solve(space: Space, mask: Mask, chosen: dict[Space, Mask]) -> bool:
    space = find(space)
    if space.form is Form.LEAF:
        if space.refusal is not None:
            return bool(mask.all())
        return bool(np.array_equal(chosen.setdefault(space, mask), mask))
    if space.form is Form.SUM:
        ends = np.cumsum([kid.n for kid in space.kids])[:-1]
        return all(_solve(kid, part, chosen) for kid, part in zip(space.kids, np.split(mask, ends), strict=True))
    cube = mask.reshape([kid.n for kid in space.kids])
    axes = range(cube.ndim)
    parts = [cube.any(axis=tuple(a for a in axes if a != i)) for i in axes]
    if not any(True for _ in free_leaves(space)):
        return bool(mask.all())
    if not np.array_equal(reduce(np.logical_and.outer, parts), cube):
        return False
    return all(_solve(kid, part, chosen) for kid, part in zip(space.kids, parts, strict=True))


def _same(effect: Effect, other: Effect) -> bool:
    def equal(a: Sequence[Mask] | None, b: Sequence[Mask] | None) -> bool:
        return a is None or b is None or all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))

    def zeroed(ways: Sequence[Mapping[tuple[int, int], Mask]]) -> set[frozenset[tuple[tuple[int, int], bytes]]]:
        return {frozenset((at, mask.tobytes()) for at, mask in way.items() if not mask.all()) for way in ways} or {
            frozenset()
        }

    return (
        all(equal(a, b) for a, b in zip(effect.operands, other.operands, strict=True))
        and all(equal(a, b) for a, b in zip(effect.results, other.results, strict=True))
        and (other.exact or not effect.exact)
        and (not effect.exact or zeroed(effect.masked) == zeroed(other.masked))
        and effect.attributes == other.attributes
    )


def sweep(samples: Sequence[Sample]) -> Iterator[Finding]:
    """Judge every mutant of every line that describes a sample."""
    for (op, line), cases in lines(samples).items():
        truths = [case.solve() for case in cases]
        for mutant in mutants(parse(line)):
            call = partial(judge, op, line, mutant, cases, truths)
            key = (cases[0].sample.domain, op)
            finding = _apart(call) if key in UNCHECKED else call()
            kind, part = UNSEEN.get(key, ("", ""))
            if finding.verdict == "survived" and mutant.kind == kind and part in mutant.text:
                finding = replace(finding, verdict="equivalent")
            yield finding


def _apart(call: partial[Finding]) -> Finding:
    """Judge in a process of its own, which may die of operands that a kernel does not check."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            faulthandler.disable()
            os.write(writer, call().verdict.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        verdict = pipe.read()
    os.waitpid(child, 0)
    op, line, mutant = call.args[:3]
    return Finding(op, line, mutant, verdict or "caught")
