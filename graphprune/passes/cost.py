"""What a plan costs: parameters and multiply-accumulates as polynomials of the groups' kept units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod as multiply

import onnx_ir as ir

from graphprune.coupling.groups import Group, Grouping, Keep, sources
from graphprune.coupling.solve import Binding
from graphprune.coupling.space import Space, find, free_leaves
from graphprune.ir.program import Program

__all__ = ["Cost"]

Term = tuple[int, tuple[Space, ...]]


@dataclass(frozen=True)
class Cost:
    """Costs of one network under any plan.

    ``weights`` has one term per constant that live nodes compute with, ``work`` one per contraction: a number times
    the sizes of the axes that may change. Scalars, sizes and indices do not count as parameters. A small vector that
    several layers share counts for each of them, because each is cut on its own. The body of a Loop or a Scan works as
    often as it was run on the example inputs; of an If both branches count, since the next input may take the other.
    """

    grouping: Grouping
    weights: tuple[tuple[str, Term], ...] = field(repr=False)
    work: tuple[tuple[str, Term], ...] = field(repr=False)

    @classmethod
    def of(cls, grouping: Grouping) -> Cost:
        """Read the terms off a grouping."""
        coupling = grouping.coupling
        weights: dict[tuple[str, object], tuple[str, Term]] = {}
        work: list[tuple[str, Term]] = []
        rounds: dict[ir.Graph | None, int] = {body.graph: body.repeats for body in coupling.program.bodies.values()}
        for binding in coupling.bindings:
            if not binding.live:
                continue
            for name, spaces in _constants(grouping, binding):
                key = (name, id(binding) if name in coupling.private else None)
                if key not in weights and multiply(space.n for space in spaces) > 1:
                    weights[key] = name, _term(1, spaces)
            for factors in binding.layout.macs:
                number = rounds.get(binding.node.graph, 1) * multiply(f for f in factors if isinstance(f, int))
                spaces = [binding.spaces[f] for f in factors if isinstance(f, str) and f in binding.spaces]
                work.append((binding.node.name or binding.node.outputs[0].name or "", _term(number, spaces)))
        return cls(grouping, tuple(weights.values()), tuple(work))

    def params(self, keep: Keep) -> int:
        """Elements of all weights that stay."""
        return self._total((term for _, term in self.weights), keep)

    def macs(self, keep: Keep) -> int:
        """Multiply-accumulates of one run on the example inputs."""
        return self._total((term for _, term in self.work), keep)

    def governed(self, groups: Iterable[Group]) -> tuple[float, float]:
        """Share of the parameters and of the multiply-accumulates that some of these groups' units stand in."""
        names = {one.id for one in groups}
        shares = []
        for terms in (self.weights, self.work):
            total = held = 0
            for _, (number, spaces) in terms:
                size = number * multiply(space.n for space in spaces)
                total += size
                placed = {self.grouping.place.get(part, ("", 0))[0] for space in spaces for part in free_leaves(space)}
                held += size if placed & names else 0
            shares.append(held / total if total else 0.0)
        return shares[0], shares[1]

    def shares(self) -> dict[str, tuple[int, int]]:
        """Per group id the parameters and the multiply-accumulates of all terms that the group stands in."""
        found: dict[str, list[int]] = {one.id: [0, 0] for one in self.grouping.groups}
        for at, terms in enumerate((self.weights, self.work)):
            for _, (number, spaces) in terms:
                size = number * multiply(space.n for space in spaces)
                for name in {
                    self.grouping.place[p][0] for s in spaces for p in free_leaves(s) if p in self.grouping.place
                }:
                    found[name][at] += size
        return {name: (params, macs) for name, (params, macs) in found.items()}

    def _total(self, terms: Iterable[Term], keep: Keep) -> int:
        sizes: dict[Space, int] = {}
        total = 0
        for number, spaces in terms:
            for space in spaces:
                if space not in sizes:
                    sizes[space] = self.grouping.size(space, keep)
                number *= sizes[space]
            total += number
        return total


def _term(number: int, spaces: Iterable[Space]) -> Term:
    variable = []
    for space in spaces:
        space = find(space)
        if any(free_leaves(space)):
            variable.append(space)
        else:
            number *= space.n
    return number, tuple(variable)


def _constants(grouping: Grouping, binding: Binding) -> Iterable[tuple[str, list[Space]]]:
    coupling = grouping.coupling
    for k, value in enumerate(binding.operands):
        if value is None or value.name not in coupling.program.fixed or k in binding.layout.ignored:
            continue
        if k < len(binding.layout.operands) and binding.layout.operands[k] is not None:
            for name, spaces in sources(coupling, value):
                if multiply(space.n for space in spaces) <= 2 * _made_of(coupling.program, name):
                    yield name, coupling.axes(binding.node, k) if name == value.name else spaces


def _made_of(program: Program, name: str) -> int:
    """Elements of the file's constants that a constant is computed from; masks and tables are made of next to none."""
    seen: set[str] = set()
    stack = [program.values()[name]]
    total = 0
    while stack:
        value = stack.pop()
        if value.name is None or value.name in seen:
            continue
        seen.add(value.name)
        node = value.producer()
        if program.is_parameter(value.name):
            total += multiply(program.shapes[value.name])
        elif node is not None:
            stack += [one for one in node.inputs if one is not None]
    return total
