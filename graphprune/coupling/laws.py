"""The laws: what a rule claims of an operator, held against the operator's real execution.

A sample is one operator with operands of known sizes. It is coupled with every axis open; then every leaf that the rule
leaves free is cut, alone and with others, and the cut operator's results are compared with the original's:

- a letter that *passes*: ``op(select(x)) == select(op(x))``;
- a letter marked ``zero``: ``op(select(x)) == select(op(mask(x)))``;
- a letter that is *contracted* or *fed back*: ``op(select(x)) == op(mask(x))``, whichever bearing operand is masked
  (the ``silent`` one where the rule names it);
- a letter under a *statistic*: no equality is claimed, but the cut operator must run and give the selected shapes.

Cutting goes through the same code as any network's (the caller hands it in), so that sizes written back are held to the
same laws. Beyond what a rule claims, :func:`check` asks what it forgoes: a ``whole`` or ``stat`` letter without which
the laws still hold is *missing* (Brute-forced like the strategy validation of PyTorch's DTensor).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from graphprune.coupling.groups import Grouping, Keep, Mask, repeated
from graphprune.coupling.notation import Axis, Product, Segments, letters_of, parse, write_line
from graphprune.coupling.registry import rule_for
from graphprune.coupling.sample import Operand, Sample, model_of
from graphprune.coupling.solve import Binding, Coupling, couple, describe
from graphprune.coupling.space import Refusal, Space, find, free_leaves, leaves, make_whole
from graphprune.errors import GraphpruneError
from graphprune.ir.observe import observe
from graphprune.ir.program import Array, Program, Runner

__all__ = ["Case", "Effect", "LawReport", "Operand", "Sample", "Shrinker", "Solution", "check", "hold", "missing"]

Shrinker = Callable[[Grouping, Keep], ir.Model]
_RTOL, _ATOL = 2e-4, 1e-12


@dataclass(frozen=True)
class LawReport:
    """What the check of one sample showed.

    Attributes:
        line: the rule's line, or empty where it refused.
        refusal: the reason where the rule refused.
        claims: free leaves that were held to the laws.
        cuts: cut operators that were run.
        failures: broken laws, one sentence each.
        missing: letters that are ``whole`` or ``stat`` although the laws hold without.
    """

    sample: Sample
    line: str = ""
    refusal: str = ""
    claims: int = 0
    cuts: int = 0
    failures: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Effect:
    """What a choice of units does to an operator.

    Attributes:
        operands, results: kept indices of every axis; results without axes are empty.
        masked: per way of masking, the operand's axes that are zeroed and where: ``(operand, axis) -> kept``.
        attributes: sizes written back, where they change.
        exact: whether equality is claimed.
    """

    operands: tuple[tuple[Mask, ...], ...]
    results: tuple[tuple[Mask, ...] | None, ...]
    masked: tuple[Mapping[tuple[int, int], Mask], ...]
    attributes: Mapping[str, int]
    exact: bool


class Case:
    """A sample's one-node model and its observations, shared by all lines that are tried on it."""

    def __init__(self, sample: Sample, run: Runner, shrink: Shrinker, seed: int = 0) -> None:
        self.sample, self.run, self.shrink = sample, run, shrink
        rng = np.random.default_rng([seed, *sample.op.encode()])
        self.arrays = [None if one is None else one.draw(rng) for one in sample.operands]
        self.draws = [self.arrays]
        if any(one is not None and one.moving for one in sample.operands):  # what was cut must serve all their sizes
            other = [one if one is None else one.grown() for one in sample.operands]
            pairs = zip(other, self.arrays, strict=True)
            self.draws.append([a if one is None or not one.moving else one.draw(rng) for one, a in pairs])
        self.model = model_of(sample, self.arrays)
        self.node = next(node for node in self.model.graph if node.name == "op")

    @cached_property
    def program(self) -> Program:
        """The observed model."""

        def keep(node: ir.Node) -> bool:
            one = rule_for(node)
            return one is not None and one.keep

        return observe(self.model, self.run, given=self.feeds(self.arrays), keep=keep)

    def feeds(self, arrays: Sequence[Array | None]) -> dict[str, Array]:
        """Arrays of the operands that are inputs, by name."""
        chosen = zip(self.sample.operands, arrays, strict=True)
        pairs = [
            (k, one, a) for k, (one, a) in enumerate(chosen) if one is not None and a is not None and not one.fixed
        ]
        return {f"like{k}" if one.of_shape else f"x{k}": a for k, one, a in pairs}

    def results(self, arrays: Sequence[Array | None]) -> list[Array]:
        """Run the original operator on other contents."""
        model = self.model if arrays is self.arrays else model_of(self.sample, arrays)
        return list(self.run(model, self.feeds(arrays), None).values())

    @cached_property
    def uncut(self) -> list[list[Array]]:
        """The original operator's results for each draw."""
        return [self.results(arrays) for arrays in self.draws]

    def solve(self, line: str | None = None) -> Solution:
        """Couple the operator with all axes open, with its own line or another."""

        def given(node: ir.Node, program: Program) -> str:
            return line if line is not None and node is self.node else describe(node, program)

        coupling = couple(self.program, closed=False, describe=given)
        binding = next((one for one in coupling.bindings if one.node is self.node), None)
        for value in (*self.node.inputs, *self.node.outputs):
            for space in coupling.of(value.name or "") if value is not None else ():
                for twice in repeated(space):
                    make_whole(twice, Refusal("it stands twice in one product"))
        return Solution(self, coupling, binding)


@dataclass
class Solution:
    """A solved sample. ``binding`` is ``None`` where the rule refused."""

    case: Case
    coupling: Coupling
    binding: Binding | None
    place: dict[Space, tuple[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for axes in (*self.operand_axes, *self.result_axes):
            for space in axes:
                for one in free_leaves(space):
                    self.place.setdefault(one, (f"u{len(self.place)}", 0))
        self.grouping = Grouping(self.coupling, (), self.place)

    @cached_property
    def operand_axes(self) -> list[list[Space]]:
        """Spaces of every operand."""
        node = self.case.node
        return [[] if value is None else self.coupling.axes(node, k) for k, value in enumerate(node.inputs)]

    @cached_property
    def result_axes(self) -> list[list[Space]]:
        """Spaces of every result."""
        return [self.coupling.of(value.name or "") for value in self.case.node.outputs]

    @property
    def refusal(self) -> str:
        """Why the rule refused; empty where it did not."""
        if self.binding is not None:
            return ""
        return self.coupling.refusals[0].reason if self.coupling.refusals else "it is folded"

    def keep(self, chosen: Mapping[Space, Mask]) -> dict[str, Mask]:
        """The plan of a choice."""
        return {self.place[one][0]: mask for one, mask in chosen.items()}

    def effect(self, chosen: Mapping[Space, Mask]) -> Effect:
        """What a choice does."""
        assert self.binding is not None
        keep, layout = self.keep(chosen), self.binding.layout

        def masks(axes: list[Space]) -> tuple[Mask, ...]:
            return tuple(self.grouping.mask(space, keep) for space in axes)

        bearers: dict[str, list[tuple[int, int]]] = {}
        for k, axes in enumerate(layout.operands[: len(self.operand_axes)]):  # what bodies give is not masked
            for at, axis in enumerate(axes or ()):
                for one in letters_of((axis,)):
                    space = self.binding.spaces.get(one.name)
                    if space is None or not (one.fed_back or one.name in layout.contracted | layout.zero):
                        continue
                    if set(leaves(space)) & set(leaves(self.operand_axes[k][at])):
                        bearers.setdefault(one.name, []).append((k, at))
        ways = max((len({k for k, _ in places}) for places in bearers.values()), default=0)
        masked: list[dict[tuple[int, int], Mask]] = []
        for way in range(ways):
            silenced: dict[tuple[int, int], Mask] = {}
            for name, places in bearers.items():
                ours = set(leaves(self.binding.spaces[name]))
                part = self.keep({one: mask for one, mask in chosen.items() if one in ours})
                operands = sorted({k for k, _ in places})
                if layout.line.silent in operands and name in layout.contracted:
                    operands = [layout.line.silent]
                for k, at in places:
                    if k == operands[way % len(operands)] or name in layout.zero:
                        mask = self.grouping.mask(self.operand_axes[k][at], part)
                        silenced[k, at] = silenced.get((k, at), np.ones_like(mask)) & mask
            masked.append(silenced)
        given = self.case.node.attributes
        sizes = self.binding.attribute_sizes(lambda space: self.grouping.size(space, keep))
        written = {name: n for name, n in sizes.items() if name in given and given[name].value != n}
        return Effect(
            tuple(masks(axes) for axes in self.operand_axes),
            tuple(
                masks(axes) if k < len(layout.results) and layout.results[k] is not None else None
                for k, axes in enumerate(self.result_axes)
            ),
            tuple(masked),
            written,
            all(one.stat is None for one in chosen),
        )

    def choices(self, rng: np.random.Generator, combinations: int = 2) -> Iterator[dict[Space, Mask]]:
        """Units to keep: of every leaf alone, then of several; no axis is ever emptied."""
        every = list(self.place)
        for one in every:
            if one.n > 1 and self._leaves_something(choice := {one: _subset(one.n, rng)}):
                yield choice
            if self._leaves_something(gone := {one: np.zeros(one.n, dtype=np.bool_)}):
                yield gone
        exact = [one for one in every if one.stat is None and one.n > 1]
        for several in (exact, [one for one in every if one.n > 1]) if len(exact) < len(every) else (exact,):
            for _ in range(combinations if len(several) > 1 else 0):
                choice = {one: _subset(one.n, rng) for one in several}
                if self._leaves_something(choice):
                    yield choice

    def _leaves_something(self, choice: Mapping[Space, Mask]) -> bool:
        keep = self.keep(choice)
        axes = [space for axes in (*self.operand_axes, *self.result_axes) for space in axes if space.n]
        return all(self.grouping.size(space, keep) > 0 for space in (*axes, *self._factors))

    @cached_property
    def _factors(self) -> list[Space]:
        """What stands in products: the heads of one segment of a packed projection keep a dimension."""
        assert self.binding is not None
        layout = self.binding.layout
        axes = [axis for axes in (*layout.operands, *layout.results) for axis in axes or ()]
        names = {one.name for axis in axes for term in _products(axis) for one in letters_of((term,))}
        return [self.binding.spaces[name] for name in sorted(names) if name in self.binding.spaces]


def check(sample: Sample, run: Runner, shrink: Shrinker, *, seed: int = 0) -> LawReport:
    """Hold one sample's rule to the laws, and say what it forgoes.

    Args:
        sample: the operator and its operands.
        run: executes a model.
        shrink: cuts a network to a plan: :class:`graphprune.passes.shrink.Shrink`.
        seed: of the operands' contents and the kept units.
    """
    case = Case(sample, run, shrink, seed)
    solution = case.solve()
    if solution.binding is None:
        return LawReport(sample, refusal=solution.refusal)
    failures, cuts = hold(solution, seed)
    line = solution.binding.layout.line.text
    forgone = () if failures else tuple(missing(case, line, seed))
    return LawReport(sample, line, "", len(solution.place), cuts, tuple(failures), forgone)


def hold(solution: Solution, seed: int = 0, *, first: bool = False) -> tuple[list[str], int]:
    """The broken laws of a solved sample (only the ``first`` one), and how many cut operators were run."""
    failures: list[str] = []
    cuts = 0
    whole = solution.case.uncut
    for choice in solution.choices(np.random.default_rng(seed)):
        cuts += 1
        failures += _compare(solution, choice, whole)
        if failures and first:
            break
    return failures, cuts


def missing(case: Case, line: str, seed: int = 0) -> Iterator[str]:
    """Letters of a line that need not be ``whole`` or ``stat``: the laws hold without, whatever the operands hold."""
    parsed = parse(line)
    own = case.solve(line)
    marks = [("whole", name) for name in sorted(parsed.whole)] + [("stat", name) for name in sorted(parsed.stat)]
    for kind, name in marks:
        rest = write_line(replace(parsed, **{kind: getattr(parsed, kind) - {name}}))
        relaxed = case.solve(rest)
        more = relaxed.binding is not None and (
            len(relaxed.place) > len(own.place) or _exact(relaxed.place) > _exact(own.place)
        )
        if not more:
            continue
        cases = [case, *(Case(_of_kind(case.sample, sign), case.run, case.shrink, seed + 1) for sign in _SIGNS)]
        if all(not hold(each.solve(rest), seed, first=True)[0] for each in cases):
            yield f"{name} need not be {kind}"


_SIGNS = ("positive", "negative")


def _of_kind(sample: Sample, sign: str) -> Sample:
    """The sample with its standard normal operands drawn on one side of 0."""
    operands = tuple(
        replace(one, kind=sign) if one is not None and one.kind == "normal" and one.content is None else one
        for one in sample.operands
    )
    return replace(sample, operands=operands)


def _exact(place: Mapping[Space, object]) -> int:
    return sum(one.stat is None for one in place)


def _products(axis: Axis) -> Iterator[Product]:
    if isinstance(axis, (Product, Segments)):
        if isinstance(axis, Product):
            yield axis
        for term in axis.terms:
            yield from _products(term)


def _subset(n: int, rng: np.random.Generator) -> Mask:
    """A random proper, non-empty subset of ``n > 1`` units."""
    mask = np.zeros(n, dtype=np.bool_)
    mask[rng.choice(n, int(rng.integers(1, n)), replace=False)] = True
    return mask


def _take(array: Array, masks: Sequence[Mask]) -> Array:
    for axis, mask in enumerate(masks):
        if not mask.all():
            mask = np.resize(mask, array.shape[axis])  # a symbolic size is the outermost factor
            array = np.compress(mask, array, axis=axis)
    return np.asarray(array, order="C")


def _compare(solution: Solution, choice: Mapping[Space, Mask], whole: Sequence[list[Array]]) -> list[str]:
    """Cut, run, and compare with every way of masking, at every size of the symbolic dimensions."""
    case = solution.case
    effect = solution.effect(choice)
    what = f"{case.sample}: keeping {_shown(solution, choice)}: "
    try:
        small = case.shrink(solution.grouping, solution.keep(choice))
        _cut_ignored(small, solution, effect)
        for arrays, uncut in zip(case.draws, whole, strict=True):
            selected = [
                array if array is None or one is None or one.of_shape else _take(array, masks)
                for one, array, masks in zip(case.sample.operands, arrays, effect.operands, strict=True)
            ]
            found = list(case.run(small, case.feeds(selected), None).values())
            for silenced in effect.masked or ({},):
                masks = [mask for mask in silenced.values() if not mask.all()]
                expected = case.results(_masked(arrays, silenced)) if masks else uncut
                differs = _differs(expected, found, effect, case.sample.left_out)
                if differs:
                    return [f"{what}{differs}"]
    except (GraphpruneError, ArithmeticError, LookupError, ValueError) as error:
        return [f"{what}the cut operator does not run: {error}"]
    return []


def _cut_ignored(small: ir.Model, solution: Solution, effect: Effect) -> None:
    """An ignored operand may be cut or not; shrinking leaves constants there alone, so the law cuts them."""
    assert solution.binding is not None
    node = next(node for node in small.graph if node.name == solution.case.node.name)
    for k in solution.binding.layout.ignored:
        value = node.inputs[k] if k < len(node.inputs) else None
        if value is not None and value.const_value is not None:
            held = _take(value.const_value.numpy(), effect.operands[k])
            value.const_value, value.shape = ir.tensor(held, name=value.name), ir.Shape(held.shape)


def _masked(arrays: Sequence[Array | None], silenced: Mapping[tuple[int, int], Mask]) -> list[Array | None]:
    masked = list(arrays)
    for (k, axis), mask in silenced.items():
        array = masked[k]
        assert array is not None
        mask = np.resize(mask, array.shape[axis])
        masked[k] = array * mask.reshape([-1 if a == axis else 1 for a in range(array.ndim)]).astype(array.dtype)
    return masked


def _differs(expected: Sequence[Array], found: Sequence[Array], effect: Effect, left_out: Sequence[int]) -> str:
    kept = [masks for k, masks in enumerate(effect.results) if k not in left_out]
    for i, (want, masks, have) in enumerate(zip(expected, kept, found, strict=True)):
        want = want if masks is None else _take(want, masks)
        if want.shape != have.shape:
            return f"result {i} is {_dims(have)}, not {_dims(want)}"
        if effect.exact and not _equal(want, have):
            return f"result {i} differs"
    return ""


def _dims(array: Array) -> str:
    return "x".join(map(str, array.shape)) or "a scalar"


def _shown(solution: Solution, choice: Mapping[Space, Mask]) -> str:
    where = []
    for one, mask in choice.items():
        places = [
            f"{side}{k}[{at}]"
            for side, values in (("x", solution.operand_axes), ("y", solution.result_axes))
            for k, axes in enumerate(values)
            for at, space in enumerate(axes)
            if any(part is one for part in leaves(find(space)))
        ]
        where.append(f"{int(mask.sum())} of {one.n} on {' '.join(places)}")
    return ", ".join(where)


def _equal(want: Array, have: Array) -> bool:
    if want.dtype != have.dtype:
        return False
    if want.size == 0 or not np.issubdtype(want.dtype, np.floating):
        return bool(np.array_equal(want, have))
    finite = np.abs(want[np.isfinite(want)])
    scale = float(finite.max()) if finite.size else 0.0
    return bool(np.allclose(have, want, rtol=0.0, atol=_ATOL + _RTOL * scale, equal_nan=True))
