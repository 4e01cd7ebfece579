"""Random whole networks: whatever is cut of them, they equal their masked originals.

A network is a recipe: a seed and a list of steps with a seed each, so that leaving steps out is all that it takes to
make a failure small. ``python -m tests.laws.graphs --count 20000 --seed 0`` runs many and says what was in them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from graphprune.backends.reference import run_float64
from graphprune.backends.runner import OrtRunner
from graphprune.coupling.groups import Grouping, group
from graphprune.coupling.registry import rule_for
from graphprune.coupling.solve import couple
from graphprune.coupling.space import free_leaves, leaves
from graphprune.frontends.onnx import read_onnx
from graphprune.ir.clean import clean
from graphprune.ir.observe import observe
from graphprune.ir.program import Program
from graphprune.ir.store import write_onnx
from graphprune.passes.files import members_of, plan_document
from graphprune.passes.plan import Plan
from graphprune.passes.shrink import Shrink
from graphprune.passes.verify import Verdict, Verify

from . import graphs_blocks, graphs_moves, graphs_patterns, graphs_sizes  # noqa: F401  (they register their steps)
from .graphs_builder import Array, Builder, Value
from .graphs_steps import STEPS, WEIGHTS, linear, reduce

KINDS = tuple(sorted(STEPS))
Masks = dict[str, np.ndarray[tuple[int], np.dtype[np.bool_]]]


@dataclass(frozen=True)
class Recipe:
    """``seed`` chooses inputs, opset and all weights; ``steps`` are (kind, seed); ``plan`` chooses what goes."""

    seed: int
    steps: tuple[tuple[str, int], ...]
    plan: int

    @staticmethod
    def random(seed: int) -> Recipe:
        r = random.Random(seed)
        kinds = r.choices(KINDS, [WEIGHTS[kind] for kind in KINDS], k=r.choice((3, 5, 6, 8, 10, 16)))
        return Recipe(seed, tuple((kind, r.randrange(1 << 16)) for kind in kinds), seed)

    def without(self, i: int) -> Recipe:
        return Recipe(self.seed, self.steps[:i] + self.steps[i + 1 :], self.plan)


@dataclass(frozen=True)
class Graph:
    """A network with examples for its inputs and others at a different batch."""

    model: onnx.ModelProto
    feeds: dict[str, Array]
    other: dict[str, Array]
    shapes: dict[str, tuple[int | str, ...]] = field(default_factory=dict)


def make(recipe: Recipe) -> Graph:
    """Build the network of a recipe."""
    r = random.Random(recipe.seed)
    b = Builder(recipe.seed)
    image, tokens, row = (
        (b.batch, r.choice((2, 3)), *r.choice(((4, 4), (4, 4), ("H", "W")))),
        (b.batch, "T", 5),
        (b.batch, 5),
    )
    tokens = (b.batch, r.choice(("T", 4)), 5)
    start = b.input(r.choice((image, image, tokens, tokens, row)))
    b.push(start.name, start.shape)
    first = ("conv", 1) if start.rank == 4 else ("linear", 1)
    for kind, seed in (first, *recipe.steps):
        STEPS[kind](b, random.Random(seed))
    _finish(b, r)
    model = b.build(inferred=r.random() < 0.3)
    given = {value.name for value in model.graph.input}
    feeds, other = ({k: v for k, v in b.example(n).items() if k in given} for n in (0, 3))
    return Graph(model, feeds, other, {value.name: value.shape for value in b.pool})


def _finish(b: Builder, r: random.Random) -> None:
    """What nothing uses yet is contracted to an output, seen as it is, or left unused."""
    given = {name for name, _, _ in b.inputs}
    for value in [one for one in b.pool if one.name not in b.used and one not in b.outputs]:
        fate = r.random()
        if fate < 0.1 and value.name not in given:
            b.outputs.append(value)
        elif fate < 0.9 or not b.outputs:
            b.outputs.append(_closed(b, r, value))
    names: dict[str, Value] = {one.name: one for one in b.outputs}
    b.outputs = list(names.values())


def _closed(b: Builder, r: random.Random, x: Value) -> Value:
    if x.rank > 2 and r.random() < 0.5:  # the first axis after the batch is contracted as well
        x = Value(reduce(b, r.choice(("ReduceSum", "ReduceMean")), x.name, [x.rank - 1], 0), x.shape[:-1])
    if x.fixed(-1):
        y = linear(b, r, x, r.choice((1, 2, 3)))
        return Value(b.op("Tanh", y.name), y.shape) if r.random() < 0.2 else y
    return Value(reduce(b, "ReduceSum", x.name, [x.rank - 1], 0), x.shape[:-1])


class Failure(AssertionError):
    """A cut network that is not what it should be."""


@dataclass
class Tally:
    """What a run of graphs was made of."""

    graphs: int = 0
    prunable: int = 0
    plans: int = 0
    groups: int = 0
    stat: int = 0
    units: int = 0
    removed: int = 0
    float64: int = 0
    again: int = 0
    third: int = 0
    seconds: float = 0.0
    operators: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    barren: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def line(self) -> str:
        return ", ".join(
            (
                f"{self.graphs} graphs",
                f"{self.prunable} with an exact group",
                f"{self.groups} exact and {self.stat} stat groups",
                f"{self.plans} plans",
                f"{self.removed} of {self.units} units removed",
                f"{self.float64} settled in float64",
                f"{self.again} cut twice",
                f"{self.third} checked by plan alone",
                f"{len(self.operators)} operators",
                f"{len(self.failures)} failures",
                f"{self.seconds:.0f} s",
            )
        )


def analyse(graph: Graph, run: OrtRunner) -> Grouping:
    """Observe and couple as ``graphprune.load`` does."""
    model = ir.from_proto(graph.model)
    clean(model)
    program = observe(model, run, keep=_kept, given=graph.feeds)
    for name, shape in graph.shapes.items():
        for axis, n in enumerate(shape):
            found = program.shapes.get(name)
            assert found is None or not isinstance(n, int) or found[axis] == n, (name, shape, found)
    return group(couple(program))


def _kept(node: ir.Node) -> bool:
    one = rule_for(node)
    return one is not None and one.keep


def choose(grouping: Grouping, r: random.Random, alone: bool) -> Masks:
    """Any units of any exact groups, or of one; every axis keeps an index."""
    exact = [one for one in grouping.groups if one.exact and one.size > 1]
    rng = np.random.default_rng(r.randrange(1 << 30))
    keep: Masks = {}
    for one in [r.choice(exact)] if alone else [one for one in exact if r.random() < 0.8] or exact[:1]:
        mask = rng.random(one.size) < r.choice((0.1, 0.4, 0.6, 0.8))
        mask[rng.integers(one.size)] = True
        for needed in one.covers:
            mask[rng.choice(needed)] = True
        if mask.all():
            mask[rng.integers(one.size)] = False
            for needed in one.covers:
                if not mask[needed].any():
                    mask[needed] = True
        keep[one.id] = mask
    for name, axis in grouping.emptied(keep):  # several groups on one axis
        for leaf in free_leaves(grouping.coupling.of(name)[axis]):
            if leaf in grouping.place and grouping.place[leaf][0] in keep:
                keep[grouping.place[leaf][0]][:] = True
    return {name: mask for name, mask in keep.items() if not mask.all()}


def verify(
    program: Program, grouping: Grouping, keep: Masks, pruned: ir.Model, graph: Graph, run: OrtRunner
) -> tuple[Verdict, bool]:
    """The masked equivalence; what rounding may explain is looked at again in float64."""
    members = members_of(grouping, keep)
    extra = [graph.other] if any(graph.other[k].shape != v.shape for k, v in graph.feeds.items()) else []
    verdict = Verify(samples=1)(program, members, pruned, run, extra)
    if verdict.passed:
        return verdict, False
    return Verify(samples=1, rtol=1e-7, atol=1e-9)(program, members, pruned, run_float64, extra, dtype="float64"), True


Hook = Callable[[ir.Model], None]


def check(graph: Graph, plan: int, tally: Tally | None = None, folder: Path | None = None) -> Tally:
    """Cut the network at random, write it, read it, and hold it to its masked original.

    Raises:
        Failure: it is not equal, or cannot be loaded.
    """
    tally = Tally() if tally is None else tally
    run, r = OrtRunner(threads=1), random.Random(plan)
    grouping = analyse(graph, run)
    program = grouping.coupling.program
    tally.graphs += 1
    tally.operators.update(node.op_type for node in program.live)
    exact = [one for one in grouping.groups if one.exact and one.size > 1]
    tally.groups += len(exact)
    tally.stat += sum(not one.exact for one in grouping.groups)
    tally.refusals.update(f"{one.op}: {one.reason}" for one in grouping.coupling.refusals)
    if not exact:
        tally.barren.update(barren(grouping))
        return tally
    tally.prunable += 1
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        for alone in (False, True)[: 1 + (r.random() < 0.25)]:
            keep = choose(grouping, r, alone)
            if keep:
                _cut(graph, grouping, keep, tally, run, place, r)
    return tally


def _cut(
    graph: Graph, grouping: Grouping, keep: Masks, tally: Tally, run: OrtRunner, place: Path, r: random.Random
) -> None:
    program = grouping.coupling.program
    tally.plans += 1
    tally.units += sum(one.size for one in grouping.groups if one.exact)
    tally.removed += sum(int((~mask).sum()) for mask in keep.values())
    shrunk = Shrink(keep)(grouping)
    write_onnx(shrunk, place / "model.onnx")
    pruned = read_onnx(place / "model.onnx")
    onnx.checker.check_model(onnx.load(place / "model.onnx"), full_check=True)
    verdict, settled = verify(program, grouping, keep, pruned, graph, run)
    tally.float64 += settled
    if not verdict.passed:
        raise Failure(f"not equal to its masked original: {verdict}")
    if r.random() < 0.1:
        tally.third += 1
        _third(graph, grouping, keep, place)
    if r.random() < 0.1:  # an artefact is a network like any other
        tally.again += 1
        second = Graph(onnx.load(place / "model.onnx"), graph.feeds, graph.other)
        again = analyse(second, run)
        if any(one.exact and one.size > 1 for one in again.groups):
            chosen = choose(again, r, False)
            verdict, _ = verify(again.coupling.program, again, chosen, Shrink(chosen)(again), second, run)
            if not verdict.passed:
                raise Failure(f"pruned again, not equal to its masked original: {verdict}")


def _third(graph: Graph, grouping: Grouping, keep: Masks, place: Path) -> None:
    """Hold the plan alone to the source, as somebody without graphprune would."""
    third = _third_party()
    plan = Plan({name: np.flatnonzero(mask) for name, mask in keep.items()})
    (place / "plan.json").write_text(json.dumps(plan_document(plan, grouping, "0")))
    onnx.save(graph.model, place / "source.onnx")
    for feeds in (graph.feeds, graph.other):
        worst = third(place / "source.onnx", place, feeds)
        if not worst < 1e-3:
            raise Failure(f"the plan says something else than the cut: {worst}")


def _third_party() -> Callable[[Path, Path, dict[str, Array]], float]:
    try:
        from third_party import check as third
    except ImportError:  # run as a module, not by pytest
        from tests.third_party import check as third  # type: ignore[no-redef]
    return third


def barren(grouping: Grouping) -> Iterator[str]:
    """Why the axes of the weights of a network without exact groups may not be cut."""
    program = grouping.coupling.program
    for name, spaces in grouping.coupling.values.items():
        if name in program.fixed and program.is_parameter(name) and len(spaces) > 1:
            for axis, space in enumerate(spaces):
                reasons = {
                    str(one.refusal.reason) if one.refusal else "stat" if one.stat else "free" for one in leaves(space)
                }
                if space.n > 1:
                    yield f"{len(spaces)}-d axis {axis}: {'; '.join(sorted(reasons))}"


def fails(recipe: Recipe) -> str | None:
    """What is wrong with a recipe's network, or ``None``."""
    try:
        check(make(recipe), recipe.plan)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def reduced(recipe: Recipe) -> Recipe:
    """Leave steps out as long as it still fails."""
    i = len(recipe.steps) - 1
    while i >= 0:
        if fails(recipe.without(i)) is not None:
            recipe = recipe.without(i)
        i -= 1
    return recipe


def run(first: int, count: int, tally: Tally, stop: float = float("inf"), log: Path | None = None) -> Tally:
    """Check the networks of seeds ``first`` to ``first + count``."""
    start = time.perf_counter()
    before = tally.seconds
    for seed in range(first, first + count):
        recipe = Recipe.random(seed)
        try:
            check(make(recipe), recipe.plan, tally)
        except Exception as error:
            tally.failures.append((seed, f"{type(error).__name__}: {str(error)[:300]}"))
            print(f"seed {seed}: {tally.failures[-1][1]}", file=sys.stderr, flush=True)
        tally.seconds = before + time.perf_counter() - start
        if log is not None and (seed + 1 - first) % 200 == 0:
            _save(log, seed + 1, tally)
    return tally


def _save(log: Path, following: int, tally: Tally) -> None:
    text = json.dumps({"next": following, "tally": vars(tally)})
    temporary = log.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, log)


def _load(log: Path) -> tuple[int, Tally]:
    state = json.loads(log.read_text())
    held = state["tally"]
    for key in ("operators", "refusals", "barren"):
        held[key] = Counter(held[key])
    held["failures"] = [(seed, text) for seed, text in held["failures"]]
    return state["next"], Tally(**held)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.laws.graphs", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--count", type=int, default=300, help="how many seeds (default 300)")
    parser.add_argument("--log", type=Path, help="JSON file that keeps the state; an interrupted run goes on from it")
    parser.add_argument("--reduce", action="store_true", help="make the first failing seed small and show it")
    given = parser.parse_args(words)
    tally, first = Tally(), given.seed
    if given.log is not None and given.log.exists():
        first, tally = _load(given.log)
    run(first, given.seed + given.count - first, tally, log=given.log)
    if given.log is not None:
        _save(given.log, given.seed + given.count, tally)
    print(f"seeds {given.seed} to {given.seed + given.count - 1}: {tally.line()}")
    print("operators: " + ", ".join(f"{op} {n}" for op, n in tally.operators.most_common()))
    print("barriers: " + (", ".join(f"{text} ({n})" for text, n in tally.refusals.most_common(8)) or "none"))
    if given.reduce and tally.failures:
        small = reduced(Recipe.random(tally.failures[0][0]))
        print(f"{small}\n{fails(small)}\n{onnx.printer.to_text(make(small).model)}")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
