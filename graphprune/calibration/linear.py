"""Linear maps of a network: where a constant is contracted with a computed value, whatever the operator is called.

A node's line says it all. In ``Conv  n (g i) x*, (g o) i k*, (g o)? -> n (g o) y*`` the letter ``g`` stands in both
operands and in the result (the map falls into ``B`` independent ones), ``i`` in both operands only (it is summed),
``k`` in the constant only (a window that is moved over the value) and ``o`` in constant and result. So every such
node is ``y[r, b, :] = W[b] x[r, b, :]`` with *rows* ``r`` (samples and positions) and *columns* (``i`` and ``k``).

What stands in a row is read off the value itself; where the operator moves a window, the operator is asked: run on the
numbers 1, 2, 3, ... with a constant that picks one element each, it answers which elements it reads (0: padding).
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
from graphprune.errors import InputError
from graphprune.ir.program import Array, Program, Runner

__all__ = ["Linear", "Pairing", "Reader", "linears_of", "pairings_of"]

Sizes = Callable[[str], int]
_INDEX = np.float32  # it counts exactly up to 2**24
_LARGEST = 1 << 24


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
        results = set(_flat(self.binding.layout.results[0] if self.binding.layout.results else None))
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
        letters = _flat(self.binding.layout.operands[self.operand])
        apart = np.asarray(array, dtype=np.float64).reshape([size(one) for one in letters])
        order = [*self.batch, *self.out, *self.columns, *self.window]
        moved = apart.transpose([letters.index(one) for one in order])
        return moved.reshape(_count(self.batch, size), _count(self.out, size), -1)

    def array(self, matrix: NDArray[np.float64], size: Sizes) -> NDArray[np.float64]:
        """The constant that :meth:`matrix` was made of."""
        letters = _flat(self.binding.layout.operands[self.operand])
        order = [*self.batch, *self.out, *self.columns, *self.window]
        apart = matrix.reshape([size(one) for one in order])
        moved = apart.transpose([order.index(one) for one in letters])
        return np.ascontiguousarray(moved.reshape(self._shape(self.operand, size)))

    def vector(self, array: Array, size: Sizes) -> NDArray[np.float64]:
        """The bias as ``(B, out)``; of several that are added together the first one."""
        assert self.bias is not None
        letters = _flat(self.axes(self.bias))
        named = [*self.batch, *self.out]
        apart = np.asarray(array, dtype=np.float64).reshape([size(one) for one in letters])
        first = apart[tuple(slice(None) if one in named else 0 for one in letters)]
        kept = [one for one in letters if one in named]
        return first.transpose([kept.index(one) for one in named]).reshape(_count(self.batch, size), -1)

    def bias_array(self, vector: NDArray[np.float64], size: Sizes) -> NDArray[np.float64]:
        """The bias that :meth:`vector` was made of; of several that are added together the others are 0."""
        assert self.bias is not None
        letters = _flat(self.axes(self.bias))
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
        letters = [one for axis in axes for one in _flat((axis,))]
        apart = vector.reshape([size(one) for one in named])
        kept = [one for one in letters if one in named]
        apart = apart.transpose([named.index(one) for one in kept])
        shape = [
            multiply(size(one) for one in found) if (found := [o for o in _flat((axis,)) if o in named]) else 1
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
        return [multiply(size(one) for one in _flat((axis,))) for axis in self.axes(k)]


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
    results = set(_flat(layout.results[0] if layout.results else None))
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
    xs, ws = _flat(layout.operands[x]), _flat(layout.operands[w])
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
        letters = _flat((axis,))
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
    letters = _flat(axes)
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


class Reader:
    """Reads the rows of one linear map off the values that it is given, in the whole network or in a cut one.

    Args:
        linear: the map.
        node: its node in the network at hand.
        size: sizes of the letters there.
        run: executes a model.
        program: of the original, for opsets.
    """

    def __init__(self, linear: Linear, node: ir.Node, size: Sizes, run: Runner, model: ir.Model) -> None:
        self._linear = linear
        self._node = node
        self._size = size
        self._run = run
        self._model = model
        self._maps: dict[tuple[int, ...], NDArray[np.int64]] = {}

    def count(self, value: Array) -> int:
        """How many rows a value gives."""
        linear = self._linear
        if linear.window:
            samples, _, positions = self._apart(value)
            return len(samples) * len(self._map(value.shape, positions))
        columns = _count((*linear.columns, *linear.batch), self._size)
        rows: int = value.size // columns
        return rows

    def rows(
        self, value: Array, chosen: NDArray[np.int64] | None = None, kept: Mapping[str, Array] | None = None
    ) -> NDArray[np.float32]:
        """Rows of a value: float32, shape ``(rows, B, columns)``.

        Args:
            value: the operand.
            chosen: which rows, None for all.
            kept: indices to take of letters that count rows, where the other network has fewer of them.
        """
        linear = self._linear
        if linear.window:
            apart, _, positions = self._apart(value)
            index = self._map(value.shape, positions)
            n, b, i, _ = apart.shape
            every = np.arange(n * len(index)) if chosen is None else chosen
            sample, position = np.divmod(every, len(index))
            padded = np.concatenate([np.zeros((n, b, i, 1), np.float32), apart], axis=3)
            found = padded[sample[:, None], :, :, index[position]]  # rows, window, B, i
            return np.ascontiguousarray(found.transpose(0, 2, 3, 1)).reshape(len(every), b, -1)
        axes = linear.binding.layout.operands[linear.given] or ()
        letters, sizes = self._letters(axes, value.shape)
        apart = np.asarray(value, dtype=np.float32).reshape(sizes)
        for letter, mask in (kept or {}).items():
            apart = np.compress(mask, apart, axis=letters.index(letter))
        last = [*linear.batch, *linear.columns]
        order = [one for one in letters if one not in last] + last
        moved = apart.transpose([letters.index(one) for one in order])
        flat = moved.reshape(-1, _count(linear.batch, self._size), _count(linear.columns, self._size))
        return flat if chosen is None else flat[chosen]

    def row_letters(self) -> tuple[str, ...]:
        """Letters of the value that count rows."""
        linear = self._linear
        letters = _flat(linear.binding.layout.operands[linear.given])
        return () if linear.window else tuple(one for one in letters if one not in (*linear.batch, *linear.columns))

    def gains(self) -> tuple[float, float]:
        """What the node multiplies the map and the bias by (alpha and beta of a Gemm): asked on ones."""
        linear = self._linear
        if linear.window or not linear.direct:
            return 1.0, 1.0
        ones = {
            k: np.ones([1] * len(linear.binding.layout.operands[k] or ()), _INDEX)
            for k in (linear.given, linear.operand)
        }
        if linear.bias is None or linear.vacant:
            return float(self._alone(ones).reshape(-1)[0]), 1.0
        bias = np.ones([1] * len(linear.axes(linear.bias)), _INDEX)
        alpha, both = (float(self._alone({**ones, linear.bias: one}).reshape(-1)[0]) for one in (0 * bias, bias))
        return alpha, both - alpha

    def _letters(self, axes: Sequence[Axis], shape: tuple[int, ...]) -> tuple[list[str], list[int]]:
        letters: list[str] = []
        sizes: list[int] = []
        for axis, n in zip(axes, shape, strict=True):
            here = _flat((axis,))
            letters += here
            sizes += [n] if len(here) == 1 else [self._size(one) for one in here]
        return letters, sizes

    def _apart(self, value: Array) -> tuple[NDArray[np.float32], list[str], tuple[int, ...]]:
        """The value as ``(samples, B, columns, positions)``, and the sizes of its positions."""
        linear = self._linear
        letters, sizes = self._letters(linear.binding.layout.operands[linear.given] or (), value.shape)
        moving = [one for one in letters if one not in (*linear.batch, *linear.columns)]
        results = set(_flat(linear.binding.layout.results[0]))
        before = [one for one in moving if one in results]
        inside = [one for one in moving if one not in results]
        order = [*before, *linear.batch, *linear.columns, *inside]
        apart = np.asarray(value, dtype=np.float32).reshape(sizes).transpose([letters.index(one) for one in order])
        known = dict(zip(letters, sizes, strict=True))
        shape = [multiply(known[one] for one in part) for part in (before, linear.batch, linear.columns, inside)]
        return apart.reshape(shape), inside, tuple(known[one] for one in inside)

    def _map(self, shape: tuple[int, ...], positions: tuple[int, ...]) -> NDArray[np.int64]:
        """Which position each element of a window reads, shape ``(rows of a sample, window)``; 0 is padding."""
        if positions not in self._maps:
            self._maps[positions] = self._asked(positions)
        return self._maps[positions]

    def _asked(self, positions: tuple[int, ...]) -> NDArray[np.int64]:
        linear, layout = self._linear, self._linear.binding.layout
        count = multiply(positions)
        window = _count(linear.window, self._size)
        if count >= _LARGEST:
            raise InputError(f"node '{linear.name}': {count} positions are more than can be told apart; use fewer")
        spots = iter(positions)
        value_axes, weight_axes = (layout.operands[k] or () for k in (linear.given, linear.operand))
        results = set(_flat(layout.results[0]))
        value_shape = []
        for axis in value_axes:
            letters = _flat((axis,))
            inner = any(one not in (*linear.batch, *linear.columns) and one not in results for one in letters)
            value_shape.append(next(spots) if inner else 1)
        weight_shape = []
        first = linear.out[0] if linear.out else None
        for axis in weight_axes:
            here = 1
            for one in _flat((axis,)):
                here *= self._size(one) if one in linear.window else window if one == first else 1
            weight_shape.append(here)
        if first is None:
            raise InputError(f"node '{linear.name}': its constant has no axis of results")
        numbers = np.arange(1, count + 1, dtype=_INDEX).reshape(value_shape)
        letters = _flat(weight_axes)
        order = [first, *linear.window, *(one for one in letters if one != first and one not in linear.window)]
        sizes = [window, *(self._size(one) for one in linear.window)]
        eye = np.eye(window, dtype=_INDEX).reshape(sizes + [1] * (len(letters) - len(sizes)))
        picked = eye.transpose([order.index(one) for one in letters]).reshape(weight_shape)
        answer = self._alone({linear.given: numbers, linear.operand: picked})
        axes = layout.results[0] or ()
        # one axis of the result holds the picked elements, the others count rows
        at = next(i for i, axis in enumerate(axes) if first in _flat((axis,)))
        rows = np.moveaxis(answer, at, -1).reshape(-1, window)
        return np.asarray(np.rint(rows), dtype=np.int64)

    def _alone(self, given: Mapping[int, Array]) -> Array:
        """The node's first result on these operands and no others, with sizes in attributes to match."""
        layout = self._linear.binding.layout
        inputs: list[ir.Value | None] = []
        feeds: dict[str, Array] = {}
        for k in range(max(given) + 1):
            if k not in given:
                inputs.append(None)
                continue
            name = f"operand_{k}"
            value = ir.Value(name=name, shape=ir.Shape(given[k].shape), type=ir.TensorType(ir.DataType.FLOAT))
            inputs.append(value)
            feeds[name] = given[k]
        sizes = {source.name: 1 for _, source in layout.line.attributes}
        attributes = [
            ir.AttrInt64(name, sizes[name]) if name in sizes else one for name, one in self._node.attributes.items()
        ]
        node = ir.Node(self._node.domain, self._node.op_type, inputs, attributes, num_outputs=1, name="asked")
        node.outputs[0].name = "answer"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            [value for value in inputs if value is not None],
            node.outputs,
            nodes=[node],
            opset_imports=dict(self._model.graph.opset_imports),
            name="asked",
        )
        return self._run(ir.Model(graph, ir_version=self._model.ir_version), feeds)["answer"]


def _flat(axes: Sequence[Axis] | None) -> list[str]:
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


def _count(letters: Sequence[str], size: Sizes) -> int:
    return int(multiply(size(one) for one in letters))


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""
