"""Shrink: cut every constant to the kept indices and write every size back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod as multiply

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.coupling.groups import Grouping, Keep, sources
from graphprune.coupling.solve import Binding
from graphprune.coupling.space import Space, find
from graphprune.ir.clean import sweep
from graphprune.ir.nested import captures, operands, replace_operand, walk
from graphprune.ir.program import Array, all_values, constant_tensor
from graphprune.ir.sizes import Constants, SizeWriter, freeze_readers, rewrite

__all__ = ["Shrink"]

Mask = NDArray[np.bool_]
_FOLD = 1 << 16  # elements up to which a rearranged constant is stored as rearranged
_LAZY = 1 << 20  # bytes from which a cut is made only when it is written


@dataclass(frozen=True)
class Shrink:
    """Rewrites a network to the units that a plan keeps. Requires a grouping of the same program."""

    keep: Keep

    def __call__(self, grouping: Grouping) -> ir.Model:
        """The smaller model; the program's own model stays as it is.

        Names of inputs, outputs and kept values, opsets, IR version and metadata are those of the original.
        """
        return _Shrinking(grouping, self.keep).model()


class _Shrinking:
    def __init__(self, grouping: Grouping, keep: Keep) -> None:
        self.grouping = grouping
        self.coupling = grouping.coupling
        self.program = grouping.coupling.program
        self.keep = keep
        self.masks: dict[Space, Mask] = {}
        self.new = self.program.model.clone()
        self.values = all_values(self.new.graph)
        self.constants = Constants(self.new.graph)
        self.cut: dict[tuple[str, bytes], ir.Value] = {}

    def mask(self, space: Space) -> Mask:
        space = find(space)
        if space not in self.masks:
            self.masks[space] = self.grouping.mask(space, self.keep)
        return self.masks[space]

    def model(self) -> ir.Model:
        nodes = {node.outputs[0].name: node for node in walk(self.new.graph) if node.outputs}
        pairs = [
            (binding, node)
            for binding in self.coupling.bindings
            if (node := nodes.get(binding.node.outputs[0].name)) is not None and self._stays(binding)
        ]
        self._fold(pairs)
        freeze_readers(self.program, self.new.graph, self.constants, lambda n, a: self.mask(self.coupling.of(n)[a]))
        for binding, node in pairs:
            for k, value in enumerate(operands(node)):
                self._cut_operand(binding, node, k, value)
            for name, size in binding.attribute_sizes(lambda space: int(self.mask(space).sum())).items():
                if name in node.attributes:
                    node.attributes[name] = ir.AttrInt64(name, size)
            rewrite(
                SizeWriter(node, binding.node, self.program, partial(self._node_mask, binding.node), self.constants)
            )
        self._annotate()
        sweep(self.new)
        self._name()
        return self.new

    def _stays(self, binding: Binding) -> bool:
        """Live nodes stay, and rearrangements of constants too large, or in use elsewhere, to be stored twice."""
        if binding.live or any(self._shared(value) for value in binding.node.outputs):
            return True
        size = max((int(np.prod(self.program.shapes[value.name or ""])) for value in binding.node.outputs), default=0)
        return size > _FOLD

    def _shared(self, value: ir.Value) -> bool:
        """Whether a constant that this value rearranges is used elsewhere as well."""
        values = self.program.values()
        return any(
            name != value.name and name not in self.coupling.private and len(values[name].uses()) > 1
            for name, _ in sources(self.coupling, value)
        )

    def _fold(self, pairs: Sequence[tuple[Binding, ir.Node]]) -> None:
        """Compute the constants that stay but whose nodes do not, all in one run."""
        staying = {value.name for _, node in pairs for value in node.outputs}
        self.folded = {
            value.name
            for binding, node in pairs
            for k, value in enumerate(operands(node))
            if value is not None
            and k not in binding.layout.ignored
            and binding.layout.operands[k] is not None
            and value.name in self.program.fixed
            and value.name not in staying
            and not self.program.is_parameter(value.name)
        }
        self.program.evaluate(sorted(name for name in self.folded if name))

    def _node_mask(self, node: ir.Node, kind: str, k: int, axis: int) -> Mask:
        if kind == "operand":
            return self.mask(self.coupling.axes(node, k)[axis])
        return self.mask(self.coupling.of(node.outputs[k].name or "")[axis])

    def _cut_operand(self, binding: Binding, node: ir.Node, k: int, value: ir.Value | None) -> None:
        if value is None or value.name not in self.program.fixed or k in binding.layout.ignored:
            return
        if binding.layout.operands[k] is None:  # sizes and indices are rewritten, not cut
            return
        if not self.program.is_parameter(value.name) and value.name not in self.folded:
            return
        masks = [self.mask(space) for space in self.coupling.axes(binding.node, k)]
        if all(mask.all() for mask in masks) and value.name not in self.folded:
            return
        key = (value.name, b"|".join(np.packbits(mask).tobytes() for mask in masks))
        if key not in self.cut:
            self.cut[key] = self._constant(value.name, masks)
        replace_operand(node, k, self.cut[key])

    def _constant(self, name: str, masks: Sequence[Mask]) -> ir.Value:
        kept = [None if mask.all() else np.flatnonzero(mask) for mask in masks]
        source = self.program.values()[name]
        program = self.program

        def contents() -> Array:
            array = program.tensor(name)
            for axis, chosen in enumerate(kept):
                if chosen is not None:
                    if array.flags.aligned:
                        array = np.take(array, chosen, axis=axis)
                    else:  # within a mapped file; np.take would copy it as a whole first
                        array = array[(slice(None),) * axis + (chosen,)]
            return np.asarray(array, order="C")

        shape = [int(mask.sum()) for mask in masks]
        held = constant_tensor(source)
        dtype = held.dtype if held is not None else None
        if dtype is not None and multiply(shape) * dtype.itemsize > _LAZY:
            tensor: ir.TensorProtocol = ir.LazyTensor(
                lambda: ir.Tensor(contents(), dtype=dtype), dtype=dtype, shape=ir.Shape(shape)
            )
        else:
            tensor = ir.Tensor(contents(), dtype=dtype)
        return self.constants.add(tensor, name, self.values[name].graph)

    def _name(self) -> None:
        """Give cut constants the names of those that they replace, once these are gone."""
        inputs = {value.name: i for i, value in enumerate(self.new.graph.inputs)}
        for (name, _), value in self.cut.items():
            old = self.values[name]
            graph = value.graph
            if old.uses() or value.name == name or graph is None:
                continue
            if old.is_initializer():
                if name in inputs:  # before IR version 4 initialisers are listed as inputs
                    graph.inputs[inputs[name]] = value
                del graph.initializers[name]
            if name not in graph.initializers and (old.producer() is None or old.producer().graph is None):  # type: ignore[union-attr]
                value.name = name
        self._drop_listed()

    def _drop_listed(self) -> None:
        """Initialisers that are listed as inputs (before IR version 4) go where what was computed of them is stored."""
        graph, values = self.new.graph, self.program.values()
        for value in [one for one in graph.inputs if one.name in graph.initializers]:
            if values[value.name or ""].uses() and not value.uses() and not value.is_graph_output():
                graph.inputs.remove(value)
                del graph.initializers[value.name or ""]

    def _annotate(self) -> None:
        """Declared shapes of inner values follow the cut; where a branch never taken reads it, they are dropped."""
        for body in self.program.bodies.values():
            if body.idle and any(self._is_cut(value.name or "") for value in captures(body.graph)):
                for name, value in all_values(body.graph).items():
                    if not value.is_initializer():
                        self.values[name].shape = None
        for name, value in self.values.items():
            if value.shape is None or name not in self.coupling.values or value.is_initializer():
                continue
            spaces = self.coupling.values[name]
            if len(spaces) == len(value.shape):
                for axis, space in enumerate(spaces):
                    kept = int(self.mask(space).sum())
                    if isinstance(value.shape[axis], int) and value.shape[axis] != kept and kept != space.n:
                        value.shape[axis] = kept

    def _is_cut(self, name: str) -> bool:
        return any(not self.mask(space).all() for space in self.coupling.values.get(name, ()))
