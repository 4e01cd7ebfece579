"""Rows of a linear map, read off the values of a network.

What stands in a row is read off the value itself; where the operator moves a window, the operator is asked: run on the
numbers 1, 2, 3, ... with a constant that picks one element each, it answers which elements it reads (0: padding).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod as multiply

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.calibration.linear import Linear, Sizes, count_of, flat
from graphprune.coupling.notation import Axis
from graphprune.errors import InputError
from graphprune.ir.program import Array, Runner

__all__ = ["Reader"]

_INDEX = np.float32  # it counts exactly up to 2**24
_LARGEST = 1 << 24


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
        columns = count_of((*linear.columns, *linear.batch), self._size)
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
        flat = moved.reshape(-1, count_of(linear.batch, self._size), count_of(linear.columns, self._size))
        return flat if chosen is None else flat[chosen]

    def row_letters(self) -> tuple[str, ...]:
        """Letters of the value that count rows."""
        linear = self._linear
        letters = flat(linear.binding.layout.operands[linear.given])
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
        if linear.bias is None:
            return float(self._alone(ones).reshape(-1)[0]), 1.0
        bias = np.ones([1] * len(linear.axes(linear.bias)), _INDEX)
        alpha, both = (float(self._alone({**ones, linear.bias: one}).reshape(-1)[0]) for one in (0 * bias, bias))
        return alpha, both - alpha

    def _letters(self, axes: Sequence[Axis], shape: tuple[int, ...]) -> tuple[list[str], list[int]]:
        letters: list[str] = []
        sizes: list[int] = []
        for axis, n in zip(axes, shape, strict=True):
            here = flat((axis,))
            letters += here
            sizes += [n] if len(here) == 1 else [self._size(one) for one in here]
        return letters, sizes

    def _apart(self, value: Array) -> tuple[NDArray[np.float32], list[str], tuple[int, ...]]:
        """The value as ``(samples, B, columns, positions)``, and the sizes of its positions."""
        linear = self._linear
        letters, sizes = self._letters(linear.binding.layout.operands[linear.given] or (), value.shape)
        moving = [one for one in letters if one not in (*linear.batch, *linear.columns)]
        results = set(flat(linear.binding.layout.results[0]))
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
        window = count_of(linear.window, self._size)
        if count >= _LARGEST:
            raise InputError(f"node '{linear.name}': {count} positions are more than can be told apart; use fewer")
        spots = iter(positions)
        value_axes, weight_axes = (layout.operands[k] or () for k in (linear.given, linear.operand))
        results = set(flat(layout.results[0]))
        value_shape = []
        for axis in value_axes:
            letters = flat((axis,))
            inner = any(one not in (*linear.batch, *linear.columns) and one not in results for one in letters)
            value_shape.append(next(spots) if inner else 1)
        weight_shape = []
        first = linear.out[0] if linear.out else None
        for axis in weight_axes:
            here = 1
            for one in flat((axis,)):
                here *= self._size(one) if one in linear.window else window if one == first else 1
            weight_shape.append(here)
        if first is None:
            raise InputError(f"node '{linear.name}': its constant has no axis of results")
        numbers = np.arange(1, count + 1, dtype=_INDEX).reshape(value_shape)
        letters = flat(weight_axes)
        order = [first, *linear.window, *(one for one in letters if one != first and one not in linear.window)]
        sizes = [window, *(self._size(one) for one in linear.window)]
        eye = np.eye(window, dtype=_INDEX).reshape(sizes + [1] * (len(letters) - len(sizes)))
        picked = eye.transpose([order.index(one) for one in letters]).reshape(weight_shape)
        answer = self._alone({linear.given: numbers, linear.operand: picked})
        axes = layout.results[0] or ()
        # one axis of the result holds the picked elements, the others count rows
        at = next(i for i, axis in enumerate(axes) if first in flat((axis,)))
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
