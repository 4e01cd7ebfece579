"""Solving: every live node states its line, unification does the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod as multiply

import onnx_ir as ir

from graphprune.coupling.notation import Axis, Factor, Layout, Letter, Product, lay_out, parse, write
from graphprune.coupling.registry import NodeView, Refuse, rule_for
from graphprune.coupling.space import (
    ONE,
    Refusal,
    Space,
    leaf,
    make_stat,
    make_whole,
    prod,
    relate,
    sum_of,
    unify,
    unit,
    whole,
)
from graphprune.errors import RuleError
from graphprune.ir.nested import captures, graphs_of, operands, results, walk
from graphprune.ir.program import Program, inputs_of

__all__ = ["Binding", "Coupling", "couple", "describe"]

_PRIVATE = 1 << 16  # elements up to which a shared vector of constants is copied for each of its uses


def describe(node: ir.Node, program: Program) -> str:
    """The line that a node's rule gives.

    Raises:
        Refuse: there is no rule, or it cannot describe this node.
    """
    one = rule_for(node)
    if one is None:
        domain = f" of domain {node.domain!r}" if node.domain not in ("", "ai.onnx") else ""
        raise Refuse(f"no rule is known for the operator{domain}")
    return one.for_node(NodeView(node, program))


@dataclass(frozen=True)
class Binding:
    """A node with its line fitted: ``spaces[letter]`` is what each letter stands for."""

    node: ir.Node
    layout: Layout
    spaces: Mapping[str, Space]
    live: bool

    @property
    def operands(self) -> Sequence[ir.Value | None]:
        """What the layout's operands are: the node's inputs, and the outputs of its bodies."""
        return operands(self.node)

    def attribute_sizes(self, size: Callable[[Space], int]) -> dict[str, int]:
        """What the attributes that hold sizes have to say, given the sizes of the spaces."""
        return {
            source.name: multiply(size(self.spaces[letter]) for letter in letters)
            for letters, source in self.layout.line.attributes
            if all(letter in self.spaces for letter in letters)
        }


@dataclass
class Coupling:
    """The solved spaces of a program.

    ``axes(node, k)`` are the spaces of a node's operand. Small constant vectors that several nodes share only because
    their values are equal have spaces of their own at each use.
    """

    program: Program
    values: dict[str, list[Space]] = field(default_factory=dict)
    uses: dict[tuple[str, int], list[Space]] = field(default_factory=dict)
    bindings: list[Binding] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    private: frozenset[str] = frozenset()
    moves: dict[str, Binding] = field(default_factory=dict)
    describe: Callable[[ir.Node, Program], str] = field(default=describe, repr=False)

    def axes(self, node: ir.Node, k: int) -> list[Space]:
        """Spaces of operand ``k``, one per axis."""
        given = node.inputs
        value = given[k] if k < len(given) else operands(node)[k]
        assert value is not None and value.name is not None
        if value.name in self.private:
            key = (node.outputs[0].name or "", k)
            if key not in self.uses:
                self.uses[key] = self._fresh(value.name)
            return self.uses[key]
        return self.of(value.name)

    def of(self, name: str) -> list[Space]:
        """Spaces of a value, one per axis."""
        if name not in self.values:
            self.values[name] = self._fresh(name)
        return self.values[name]

    def _fresh(self, name: str) -> list[Space]:
        return [leaf(n) if n else whole(0, Refusal("the axis is empty")) for n in self.program.shapes.get(name, ())]


def couple(
    program: Program, *, closed: bool = True, describe: Callable[[ir.Node, Program], str] = describe
) -> Coupling:
    """Solve the statements of every node.

    Never fails on a network: what has no rule, or does not fit its rule, becomes whole with the reason kept.

    Args:
        program: the observed network.
        closed: the network's inputs and outputs are never cut. The laws look at a single operator with all axes open
            but symbolic ones.
        describe: the line of a node; the laws put sabotaged lines here.
    """
    coupling = Coupling(program, private=_private(program), describe=describe)
    for value in inputs_of(program.model):
        if closed:
            _close(coupling, value, Refusal("it is an input of the network"))
        for axis in program.moving.get(value.name or "", ()):
            why = Refusal("its size is symbolic", tensor=value.name or "", axis=axis)
            make_whole(coupling.of(value.name or "")[axis], why)
    for node in _rearrangements(program, coupling.private):
        _state(coupling, node, live=False)
    for node in _size_readers(program):  # what they make of their operand's axes is their rule's to say
        _state(coupling, node, live=True)
    for name in program.sizes:
        for axis, space in enumerate(coupling.of(name)):
            make_whole(space, Refusal("it holds sizes", tensor=name, axis=axis))
    for node in program.live:
        _state(coupling, node, live=True)
    for value in program.model.graph.outputs if closed else ():
        _close(coupling, value, Refusal("it is an output of the network"))
    return coupling


def _rearrangements(program: Program, private: frozenset[str]) -> list[ir.Node]:
    """Nodes that only move the elements of constants on their way to live nodes, in order."""
    wanted: set[ir.Node] = set()
    stack = [value for node in program.live for value in operands(node)]
    stack.extend(program.model.graph.outputs)
    while stack:
        value = stack.pop()
        node = value.producer() if value is not None and value.name in program.fixed else None
        if value is None or node is None or node in wanted or value.name in private:
            continue
        one = rule_for(node)
        if one is not None and one.moves:
            wanted.add(node)
            stack += node.inputs
    return [node for node in walk(program.model.graph) if node in wanted] if wanted else []


def _size_readers(program: Program) -> list[ir.Node]:
    """Nodes that read sizes, which move, off a computed value."""
    if not program.sizes:
        return []
    known = program.fixed | program.sizes
    return [
        node
        for node in walk(program.model.graph)
        if node.outputs[0].name in program.sizes and any(v is not None and v.name not in known for v in node.inputs)
    ]


def _private(program: Program) -> frozenset[str]:
    """Shared constants that may become one copy per use: vectors, and small results of fixed subgraphs."""
    private = set()
    for name in program.fixed:
        value = program.values()[name]
        shape = program.shapes[name]
        if len(value.uses()) < 2 or multiply(shape) > _PRIVATE or value.is_graph_output():
            continue
        node = value.producer()
        one = rule_for(node) if node is not None else None
        vector = sum(n > 1 for n in shape) <= 1
        if vector or (node is not None and not program.is_parameter(name) and not (one is not None and one.moves)):
            private.add(name)
    return frozenset(private)


def _close(coupling: Coupling, value: ir.Value, why: Refusal) -> None:
    name = value.name or ""
    for axis, space in enumerate(coupling.of(name)):
        make_whole(space, Refusal(why.reason, why.op, why.node, name, axis))


def _barrier(coupling: Coupling, node: ir.Node, reason: str) -> None:
    """Everything a node touches, the values that its subgraphs capture included, stays whole."""
    why = Refusal(reason, node.op_type, node.name or node.outputs[0].name or "")
    coupling.refusals.append(why)
    for k, value in enumerate(operands(node)):
        if value is not None:
            for axis, space in enumerate(coupling.axes(node, k)):
                make_whole(space, Refusal(reason, why.op, why.node, value.name or "", axis))
    known = coupling.program.bodies
    unknown = [graph for graph in graphs_of(node) if graph not in known or known[graph].reason]
    for value in (*results(node), *captures(*unknown)):
        _close(coupling, value, why)


def _state(coupling: Coupling, node: ir.Node, *, live: bool) -> None:
    try:
        _bind(coupling, node, coupling.describe(node, coupling.program), live)
    except (Refuse, RuleError) as refused:
        if live:
            _barrier(coupling, node, str(refused))


def _bind(coupling: Coupling, node: ir.Node, text: str, live: bool) -> None:
    shapes = coupling.program.shapes
    read, written = operands(node), results(node)
    given = [None if value is None else shapes.get(value.name or "") for value in read]
    made = [shapes.get(value.name) if value.name else None for value in written]
    line = parse(text)
    layout = lay_out(
        line,
        tuple(None if shape is None else len(shape) for shape in given),
        tuple(None if shape is None else len(shape) for shape in made),
    )
    sizes = _sizes(node, layout, given, made)
    spaces: dict[str, Space] = {}
    compound: list[tuple[Axis, list[Space], int]] = []
    opaque: list[Space] = []
    for k, axes in enumerate(layout.operands):
        if k >= len(given) or given[k] is None or k in layout.ignored:
            continue
        held = coupling.axes(node, k)
        if axes is None:
            opaque += held
        else:
            _read(axes, held, sizes, spaces, compound)
    for k, axes in enumerate(layout.results):
        if k >= len(made) or made[k] is None:
            continue
        held = coupling.of(written[k].name or "")
        if axes is None:
            opaque += held
        else:
            _read(axes, held, sizes, spaces, compound)
    for axis, held, at in compound:
        unify(_space(axis, sizes, spaces, layout.passing), held[at])
    name = node.name or node.outputs[0].name or ""
    if live:
        for letter in layout.whole:
            if letter in spaces:
                make_whole(spaces[letter], Refusal(f"{letter.split('.')[0]} is never cut", node.op_type, name))
        for letter in layout.stat:
            if letter in spaces:
                make_stat(spaces[letter], Refusal("a statistic is computed over it", node.op_type, name))
        for space in opaque:
            make_whole(space, Refusal("it holds sizes or indices", node.op_type, name))
    binding = Binding(node, layout, spaces, live)
    coupling.bindings.append(binding)
    if not live:
        coupling.moves.update((value.name or "", binding) for value in node.outputs)


def _read(
    axes: tuple[Axis, ...],
    held: list[Space],
    sizes: Mapping[str, int],
    spaces: dict[str, Space],
    compound: list[tuple[Axis, list[Space], int]],
) -> None:
    for at, axis in enumerate(axes):
        space = held[at]
        if isinstance(axis, Letter):
            if space is ONE or sizes[axis.name] != space.n:
                spaces.setdefault(axis.name, ONE) if sizes[axis.name] == 1 else None
            elif axis.name in spaces:
                unify(spaces[axis.name], space)
            else:
                spaces[axis.name] = space
        elif isinstance(axis, Factor):
            make_whole(space, Refusal("it is a fixed number of parts"))
        else:
            compound.append((axis, held, at))


def _space(axis: Axis, sizes: Mapping[str, int], spaces: dict[str, Space], passing: frozenset[str]) -> Space:
    if isinstance(axis, Letter):
        space = spaces.get(axis.name)
        if space is None:
            space = spaces[axis.name] = leaf(sizes[axis.name])
        return space
    if isinstance(axis, Factor):
        return whole(axis.n, Refusal("it is a fixed number of parts"))
    if isinstance(axis, Product):
        return prod([_space(term, sizes, spaces, passing) for term in axis.terms])
    single = [
        term.name
        for term in axis.terms
        if isinstance(term, Letter) and sizes[term.name] == 1 and term.name not in spaces
    ]
    apart = any(name in passing for name in single)  # picked one by one: each can go, and they belong together
    spaces.update((name, unit()) for name in single if apart)
    kids = [_space(term, sizes, spaces, passing) for term in axis.terms]
    if apart:
        relate(kids)
    return sum_of(kids)


def _sizes(
    node: ir.Node,
    layout: Layout,
    given: Sequence[tuple[int, ...] | None],
    made: Sequence[tuple[int, ...] | None],
) -> dict[str, int]:
    sizes: dict[str, int] = dict(layout.line.sizes)
    pending: list[tuple[Axis, int, str]] = []
    for letters, source in layout.line.attributes:
        held = node.attributes.get(source.name)
        stated_size = int(held.value) if held is not None else source.default
        if stated_size is None:
            continue
        if len(letters) == 1:
            sizes[letters[0]] = stated_size
        else:
            pending.append((Product(tuple(map(Letter, letters))), stated_size, f"attribute {source.name}"))
    stated = set(sizes)
    for kind, sides, shapes in (("operand", layout.operands, given), ("result", layout.results, made)):
        for k, (axes, shape) in enumerate(zip(sides, shapes, strict=False)):
            if axes is None or shape is None:
                continue
            for at, (axis, n) in enumerate(zip(axes, shape, strict=True)):
                if not isinstance(axis, Letter):
                    pending.append((axis, n, f"axis {at} of {kind} {k}"))
                elif sizes.get(axis.name, 1) == 1 and axis.name not in stated:
                    sizes[axis.name] = n
                elif n not in (1, sizes[axis.name]):
                    raise RuleError(
                        f"axis {at} of {kind} {k} is {axis.name} = {sizes[axis.name]}, which {n} does not fit"
                    )
    while pending:
        rest = [one for one in pending if not _deduce(*one, sizes)]
        if len(rest) == len(pending):
            axis, n, where = rest[0]
            raise RuleError(f"{where} is {write(axis)} = {n}, which leaves its sizes open")
        pending = rest
    return sizes


def _deduce(axis: Axis, n: int, where: str, sizes: dict[str, int]) -> bool:
    """Find the one unknown size of a compound axis; False while there are several."""
    if isinstance(axis, Letter):
        if axis.name in sizes:
            if sizes[axis.name] != n:
                raise RuleError(f"{where}: {axis.name} = {sizes[axis.name]} is not {n}")
        else:
            sizes[axis.name] = n
        return True
    if isinstance(axis, Factor):
        if axis.n != n:
            raise RuleError(f"{where}: {axis.n} is not {n}")
        return True
    known = [_known(term, sizes) for term in axis.terms]
    unknown = [term for term, size in zip(axis.terms, known, strict=True) if size is None]
    if len(unknown) > 1:
        return False
    product = isinstance(axis, Product)
    rest = multiply(k for k in known if k is not None) if product else sum(k for k in known if k is not None)
    shown = ", ".join(f"{write(t)}={k}" for t, k in zip(axis.terms, known, strict=True) if k is not None)
    if not unknown:
        if rest != n:
            raise RuleError(f"{where} is {write(axis)}, {shown} does not make {n}")
        return True
    if product and n % rest:
        raise RuleError(f"{where} is {write(axis)}, {shown} does not divide {n}")
    left = n // rest if product else n - rest
    if left < 0:
        raise RuleError(f"{where} is {write(axis)}, {shown} is more than {n}")
    return _deduce(unknown[0], left, where, sizes)


def _known(axis: Axis, sizes: Mapping[str, int]) -> int | None:
    if isinstance(axis, Letter):
        return sizes.get(axis.name)
    if isinstance(axis, Factor):
        return axis.n
    known = [_known(term, sizes) for term in axis.terms]
    if None in known:
        return None
    values = [k for k in known if k is not None]
    return multiply(values) if isinstance(axis, Product) else sum(values)
