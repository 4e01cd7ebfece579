"""A network with what was observed when it ran."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = [
    "Array",
    "Program",
    "Runner",
    "attribute",
    "constant_tensor",
    "graph_values",
    "inputs_of",
    "release",
    "submodel",
]

Array = NDArray[Any]


class Runner(Protocol):
    """Runs a model once. Backends provide it; nothing in ``ir`` or ``passes`` imports a runtime."""

    def __call__(
        self, model: ir.Model, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Outputs by name for inputs by name."""
        ...


@dataclass
class Program:
    """A network and its observations. The model is never changed in place; passes work on clones.

    Attributes:
        model: the network as read, every value named, names unique per graph.
        examples: an array per graph input.
        other_examples: inputs of other sizes that ran as well, where dimensions are symbolic.
        shapes: the observed shape of every tensor of the outer graph, by name.
        moving: axes whose size follows a symbolic dimension of the inputs, by name.
        small: observed contents of small values that depend on sizes or constants only (Reshape targets, Slice
            bounds), by name.
        moving_entries: entries of ``small`` vectors that follow a symbolic dimension, by name.
        fixed: values that do not depend on the contents or the symbolic sizes of the inputs, by name.
        sizes: size vectors that follow symbolic dimensions, by name.
        live: the nodes that are neither, in order.
        source: the file the network came from, if any.
        parameter_names: for a module, the user's own name of each initialiser.
    """

    model: ir.Model
    examples: dict[str, Array] = field(default_factory=dict)
    other_examples: list[dict[str, Array]] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    moving: dict[str, frozenset[int]] = field(default_factory=dict)
    small: dict[str, Array] = field(default_factory=dict)
    moving_entries: dict[str, frozenset[int]] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()
    sizes: frozenset[str] = frozenset()
    live: tuple[ir.Node, ...] = ()
    source: Path | None = None
    parameter_names: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    run: Runner | None = field(default=None, repr=False)
    _evaluated: dict[str, Array] = field(default_factory=dict, repr=False)
    _parameters: dict[str, bool] = field(default_factory=dict, repr=False)

    def tensor(self, name: str) -> Array:
        """The contents of a fixed value: an initialiser, a Constant or what a fixed subgraph computes."""
        value = self.values()[name]
        held = constant_tensor(value)
        if held is not None:
            return np.asarray(held.numpy())
        if name in self.small:
            return self.small[name]
        if name not in self._evaluated:
            self.evaluate([name])
        return self._evaluated[name]

    def evaluate(self, names: Sequence[str]) -> None:
        """Compute fixed values by running just the nodes that make them."""
        wanted = [name for name in names if name not in self._evaluated and name not in self.small]
        if wanted:
            assert self.run is not None
            part = submodel(self.model, wanted, self.small)
            self._evaluated.update(self.run(part, {}, wanted))

    def values(self) -> dict[str, ir.Value]:
        """Every value of the outer graph by name."""
        cached: dict[str, ir.Value] | None = self.__dict__.get("_values")
        if cached is None:
            cached = graph_values(self.model.graph)
            self.__dict__["_values"] = cached
        return cached

    def is_parameter(self, name: str) -> bool:
        """Whether a value is a constant that the file holds (an initialiser or a Constant's output)."""
        known = self._parameters.get(name)
        if known is None:
            known = self._parameters[name] = constant_tensor(self.values()[name]) is not None
        return known


def inputs_of(model: ir.Model) -> list[ir.Value]:
    """The inputs that a caller must give (before IR version 4 every initialiser is listed as an input as well)."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def release(model: ir.Model) -> None:
    """Let go of the mapped pages of external data; they are mapped again when they are next looked at."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            with contextlib.suppress(BufferError):  # somebody still holds a view
                value.const_value.release()


def graph_values(graph: ir.Graph) -> dict[str, ir.Value]:
    """Inputs, initialisers and node outputs of a graph by name."""
    values = {value.name: value for value in graph.inputs if value.name}
    values.update(graph.initializers)
    for node in graph:
        values.update({value.name: value for value in node.outputs if value.name})
    return values


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's plain value, or ``default``."""
    held = node.attributes.get(name)
    return default if held is None else held.value


def constant_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor that a value simply is: an initialiser, or the output of a node that only holds one."""
    node = value.producer()
    if node is None:
        return value.const_value if value.is_initializer() else None
    if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
        held = next(iter(node.attributes.values()))
        if held.type is ir.AttributeType.TENSOR:
            return held.as_tensor()
        if held.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
            return ir.tensor(np.asarray(held.value, dtype=np.float32))
        if held.type in (ir.AttributeType.INT, ir.AttributeType.INTS):
            return ir.tensor(np.asarray(held.value, dtype=np.int64))
    return None


def submodel(model: ir.Model, outputs: Sequence[str], held: Mapping[str, Array]) -> ir.Model:
    """A model without inputs that computes some values, given the contents of others."""
    clone = model.clone()
    graph = clone.graph
    values = graph_values(graph)
    for name, array in held.items():
        old = values[name]
        if old.producer() is not None and name not in outputs:
            new = ir.Value(name=f"{name}/held", const_value=ir.tensor(array, name=f"{name}/held"))
            graph.register_initializer(new)
            old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.outputs.clear()
    graph.outputs.extend(values[name] for name in outputs)
    graph.inputs.clear()
    needed: set[ir.Node] = set()
    stack = [values[name] for name in outputs]
    while stack:  # not the library's pass: it takes what a removed node's subgraph captured for used
        node = stack.pop().producer()
        if node is not None and node not in needed:
            needed.add(node)
            stack += [value for value in node.inputs if value is not None]
    graph.remove([node for node in graph if node not in needed], safe=False)
    used = {value for node in needed for value in node.inputs} | set(graph.outputs)
    for name in [name for name, value in graph.initializers.items() if value not in used]:
        del graph.initializers[name]
    return clone
