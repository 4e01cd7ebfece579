"""Linear maps of a network: where a constant is contracted with a computed value, whatever the operator is called.

A node's line says it all. In ``Conv  n (g i) x*, (g o) i k*, (g o)? -> n (g o) y*`` the letter ``g`` stands in both
operands and in the result (the map falls into ``B`` independent ones), ``i`` in both operands only (it is summed),
``k`` in the constant only (a window that is moved over the value) and ``o`` in constant and result. So every such
node is ``y[r, b, :] = W[b] x[r, b, :]`` with *rows* ``r`` (samples and positions) and *columns* (``i`` and ``k``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod as multiply

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.coupling.groups import Grouping, units
from graphprune.coupling.notation import Axis, Factor, Letter, Product, letters_of
from graphprune.coupling.solve import Binding
from graphprune.coupling.space import Space, find, free_leaves
from graphprune.ir.program import Array, Program

__all__ = ["Linear", "Pairing", "Sizes", "count_of", "flat", "linears_of", "pairings_of"]

Sizes = Callable[[str], int]


@dataclass(frozen=True)
class Linear:
    """A constant contracted with a computed value.

    Attributes:
        name: of the node's first result, the same in the original and in the cut network.
        value, weight: names of both operands; ``operand`` is the constant's place among the node's inputs, ``given``
            the value's.
        bias: the place of a constant that is added to every row, or None; ``vacant`` whether it may be added there.
        batch, out, columns, window: the letters of ``B``, of the results, of the columns shared with the value, and of
            the window.
    """

    name: str
    binding: Binding = field(repr=False)
    given: int
    operand: int
    value: str
    weight: str
    bias: int | None
    vacant: bool
    batch: tuple[str, ...]
    out: tuple[str, ...]
    columns: tuple[str, ...]
    window: tuple[str, ...]

    @property
    def direct(self) -> bool:
        """Whether the node's first result is the map's, so that what is added to it is added to the map."""
        results = set(flat(self.binding.layout.results[0] if self.binding.layout.results else None))
        return {*self.batch, *self.out} <= results

    def sizes(self, grouping: Grouping, keep: Mapping[str, NDArray[np.bool_]] | None = None) -> Sizes:
        """The size of a letter (or number) in the whole network, or in the one that a plan keeps."""
        spaces = self.binding.spaces

        def size(letter: str) -> int:
            if letter.startswith("#"):
                return _number(letter)
            return grouping.size(spaces[letter], keep) if keep else find(spaces[letter]).n

        return size

    def masks(self, grouping: Grouping, letters: Sequence[str], keep: Mapping[str, NDArray[np.bool_]]) -> Array:
        """Kept indices of the product of some letters, shape ``(n,)``, bool."""
        whole = np.ones(1, dtype=np.bool_)
        for letter in letters:
            space = self.binding.spaces.get(letter)
            one = np.ones(_number(letter), dtype=np.bool_) if space is None else grouping.mask(space, keep)
            whole = np.logical_and.outer(whole, one).reshape(-1)
        return whole

    def matrix(self, array: Array, size: Sizes) -> NDArray[np.float64]:
        """The constant as ``(B, out, columns)``, in float64."""
        letters = flat(self.binding.layout.operands[self.operand])
        apart = np.asarray(array, dtype=np.float64).reshape([size(one) for one in letters])
        order = [*self.batch, *self.out, *self.columns, *self.window]
        moved = apart.transpose([letters.index(one) for one in order])
        return moved.reshape(count_of(self.batch, size), count_of(self.out, size), -1)

    def array(self, matrix: NDArray[np.float64], size: Sizes) -> NDArray[np.float64]:
        """The constant that :meth:`matrix` was made of."""
        letters = flat(self.binding.layout.operands[self.operand])
        order = [*self.batch, *self.out, *self.columns, *self.window]
        apart = matrix.reshape([size(one) for one in order])
        moved = apart.transpose([order.index(one) for one in letters])
        return np.ascontiguousarray(moved.reshape(self._shape(self.operand, size)))

    def vector(self, array: Array, size: Sizes) -> NDArray[np.float64]:
        """The bias as ``(B, out)``; of several that are added together the first one."""
        assert self.bias is not None
        letters = flat(self.axes(self.bias))
        named = [*self.batch, *self.out]
        apart = np.asarray(array, dtype=np.float64).reshape([size(one) for one in letters])
        first = apart[tuple(slice(None) if one in named else 0 for one in letters)]
        kept = [one for one in letters if one in named]
        return first.transpose([kept.index(one) for one in named]).reshape(count_of(self.batch, size), -1)

    def bias_array(self, vector: NDArray[np.float64], size: Sizes) -> NDArray[np.float64]:
        """The bias that :meth:`vector` was made of; of several that are added together the others are 0."""
        assert self.bias is not None
        letters = flat(self.axes(self.bias))
        named = [*self.batch, *self.out]
        kept = [one for one in letters if one in named]
        whole = np.zeros([size(one) for one in letters])
        first = vector.reshape([size(one) for one in named]).transpose([named.index(one) for one in kept])
        whole[tuple(slice(None) if one in named else 0 for one in letters)] = first
        return whole.reshape(self._shape(self.bias, size))

    def added(self, vector: NDArray[np.float64], size: Sizes) -> NDArray[np.float64]:
        """``(B, out)`` in a shape that is added to the node's result by broadcasting."""
        axes = self.binding.layout.results[0] or ()
        named = [*self.batch, *self.out]
        letters = [one for axis in axes for one in flat((axis,))]
        apart = vector.reshape([size(one) for one in named])
        kept = [one for one in letters if one in named]
        apart = apart.transpose([named.index(one) for one in kept])
        shape = [
            multiply(size(one) for one in found) if (found := [o for o in flat((axis,)) if o in named]) else 1
            for axis in axes
        ]
        return np.ascontiguousarray(apart.reshape(shape))

    def units(self, offsets: Mapping[Space, int]) -> NDArray[np.int64]:
        """The unit that each column belongs to, ``-1`` for none, shape ``(columns,)``."""
        whole = np.full(1, -1, dtype=np.int64)
        for letter in (*self.columns, *self.window):
            whole = np.maximum.outer(whole, units(self.binding.spaces[letter], offsets)).reshape(-1)
        return whole

    def groups(self, grouping: Grouping) -> frozenset[str]:
        """Ids of the groups whose units are contracted here."""
        spaces = [self.binding.spaces[letter] for letter in self.columns]
        return frozenset(
            grouping.place[one][0] for space in spaces for one in free_leaves(space) if one in grouping.place
        )

    def axes(self, k: int) -> Sequence[Axis]:
        """The axes of an operand, there or left out."""
        laid = self.binding.layout.operands[k] if k < len(self.binding.layout.operands) else None
        return laid or self.binding.layout.line.operands[k].axes or ()  # one that is left out is not laid out

    def _shape(self, k: int, size: Sizes) -> list[int]:
        return [multiply(size(one) for one in flat((axis,))) for axis in self.axes(k)]


@dataclass(frozen=True)
class Pairing:
    """Two computed values contracted with each other on ``letter``; ``axes`` are the letters of both."""

    binding: Binding = field(repr=False)
    letter: str
    values: tuple[str, str]
    places: tuple[int, int]


def linears_of(grouping: Grouping) -> tuple[Linear, ...]:
    """Every linear map of the main graph whose constant is a float tensor that no other node reads, in order."""
    coupling = grouping.coupling
    bindings = {binding.node: binding for binding in coupling.bindings if binding.live}
    graph = coupling.program.model.graph
    readers = Counter(value.name for node in coupling.program.live for value in node.inputs if value is not None)
    found = (_linear(bindings[node], coupling.program) for node in graph if node in bindings)
    return tuple(one for one in found if one is not None and readers[one.weight] == 1)


def _linear(binding: Binding, program: Program) -> Linear | None:
    layout = binding.layout
    if not layout.macs:
        return None
    results = set(flat(layout.results[0] if layout.results else None))
    shared: list[tuple[int, int]] = []
    operands = list(binding.node.inputs)
    held = [
        k
        for k, (axes, value) in enumerate(zip(layout.operands, operands, strict=False))
        if axes is not None and value is not None and k not in layout.ignored
        if any(one.name in layout.contracted and not one.fed_back for one in letters_of(axes))
    ]
    for w in held:
        for x in held:
            if _name(operands[w]) in program.fixed and _name(operands[x]) not in program.fixed:
                shared.append((x, w))
    if len(shared) != 1:
        return None
    x, w = shared[0]
    value, weight = _name(operands[x]), _name(operands[w])
    xs, ws = flat(layout.operands[x]), flat(layout.operands[w])
    array = program.tensor(weight)
    if array.dtype not in (np.float32, np.float16, np.float64) or len(set(ws)) < len(ws) or len(set(xs)) < len(xs):
        return None
    if "" in ws or "" in xs or value not in program.shapes:
        return None
    columns = tuple(one for one in ws if one in layout.contracted and one in xs)
    window = tuple(one for one in ws if one not in columns and one not in results and not one.startswith("#"))
    batch = tuple(one for one in ws if one in xs and one not in columns)
    out = tuple(one for one in ws if one not in (*columns, *window, *batch))
    spaces = binding.spaces
    if not columns or any(one not in spaces for one in (*columns, *window, *batch)):
        return None
    sizes = [_number(one) if one.startswith("#") else find(spaces[one]).n for one in ws]
    if multiply(sizes) != array.size:  # an axis of one that broadcasts
        return None
    known = dict(zip(ws, sizes, strict=True))
    shape = program.shapes[value]
    for axis, n in zip(layout.operands[x] or (), shape, strict=True):
        letters = flat((axis,))
        if all(one in known for one in letters) and multiply(known[one] for one in letters) != n:
            return None
    bias, vacant = _bias(binding, program, {*batch, *out}, (x, w))
    name = _name(binding.node.outputs[0])
    return Linear(name, binding, x, w, value, weight, bias, vacant, batch, out, columns, window)


def _bias(binding: Binding, program: Program, wanted: set[str], taken: tuple[int, int]) -> tuple[int | None, bool]:
    """The place of an operand that has just the letters of a row of results, and whether it is left out."""
    operands = list(binding.node.inputs)
    for k, axes in enumerate(binding.layout.operands):
        if k in taken or axes is None or not _adds(axes, wanted):
            continue
        value = operands[k] if k < len(operands) else None
        if value is None:
            return k, True
        if value.name in program.fixed:
            return k, False
    for k, operand in enumerate(binding.layout.line.operands[len(operands) :], len(operands)):
        if operand.optional and operand.axes is not None and _adds(operand.axes, wanted):
            return k, True
    return None, False


def _adds(axes: Sequence[Axis], wanted: set[str]) -> bool:
    """Whether a constant of these axes is a row of results, or several of them (a recurrent layer has two)."""
    letters = flat(axes)
    once = len(set(letters)) == len(letters)
    return once and wanted <= set(letters) and all(one in wanted or one.startswith("#") for one in letters)


def pairings_of(grouping: Grouping) -> tuple[Pairing, ...]:
    """Contractions of two computed values over units that may be cut: queries with keys."""
    program = grouping.coupling.program
    found = []
    for binding in grouping.coupling.bindings:
        layout = binding.layout
        if not binding.live or not layout.macs or binding.node.graph is not program.model.graph:
            continue
        for letter in sorted(layout.contracted):
            space = binding.spaces.get(letter)
            if space is None or not any(one in grouping.place for one in free_leaves(space)):
                continue
            places = [
                k
                for k, (axes, value) in enumerate(zip(layout.operands, binding.node.inputs, strict=False))
                if axes is not None and value is not None and value.name not in program.fixed
                if any(axis == Letter(letter) for axis in axes)
            ]
            if len(places) == 2:
                values = tuple(_name(binding.node.inputs[k]) for k in places)
                found.append(Pairing(binding, letter, (values[0], values[1]), (places[0], places[1])))
    return tuple(found)


def flat(axes: Sequence[Axis] | None) -> list[str]:
    """Letters of axes, products spelled out; numbers as ``#4``, and ``""`` for what is no product."""
    found: list[str] = []
    stack = list(reversed(axes or ()))
    while stack:
        axis = stack.pop()
        if isinstance(axis, Letter):
            found.append(axis.name)
        elif isinstance(axis, Factor):
            name = f"#{axis.n}"
            while name in found:
                name += "'"
            found.append(name)
        elif isinstance(axis, Product):
            stack.extend(reversed(axis.terms))
        else:
            found.append("")
    return found


def _number(factor: str) -> int:
    return int(factor[1:].rstrip("'"))


def count_of(letters: Sequence[str], size: Sizes) -> int:
    """Product of the letters' sizes."""
    return int(multiply(size(one) for one in letters))


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""
