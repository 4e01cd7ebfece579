"""A network with what was observed when it ran."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.ir.mapped import MappedTensor

if TYPE_CHECKING:
    from graphprune.ir.nested import Body

__all__ = [
    "Array",
    "Program",
    "Runner",
    "all_values",
    "attribute",
    "constant_tensor",
    "graph_values",
    "inputs_of",
    "release",
    "submodel",
    "with_outputs",
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
        model: the network as read, every value named, names unique over it and its bodies.
        examples: an array per graph input.
        other_examples: inputs of other sizes that ran as well, where dimensions are symbolic.
        shapes: the observed shape of every tensor, those of bodies included, by name.
        moving: axes whose size follows a symbolic dimension of the inputs, by name.
        small: observed contents of small values that depend on sizes or constants only (Reshape targets, Slice
            bounds), by name.
        moving_entries: entries of ``small`` vectors that follow a symbolic dimension, by name.
        fixed: values that do not depend on the contents or the symbolic sizes of the inputs, by name.
        sizes: size vectors that follow symbolic dimensions, by name.
        live: the nodes that are neither, in order; those of bodies before the node that holds them.
        bodies: the bodies of If, Loop and Scan, and what running them showed.
        same: results of an If that always takes the same branch, and the value of that branch which they are, where
            that value is fixed or a size vector.
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
    bodies: dict[ir.Graph, Body] = field(default_factory=dict)
    same: dict[str, ir.Value] = field(default_factory=dict)
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
            part = submodel(self, wanted, self.small)
            self._evaluated.update(self.run(part, {}, wanted))

    def values(self) -> dict[str, ir.Value]:
        """Every value by name, those of bodies included."""
        cached: dict[str, ir.Value] | None = self.__dict__.get("_values")
        if cached is None:
            cached = all_values(self.model.graph)
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
    """Let go of the mapped pages of weights on disk; they are mapped again when they are next looked at."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, (ir.ExternalTensor, MappedTensor)):
            with contextlib.suppress(BufferError):  # somebody still holds a view
                value.const_value.release()


def graph_values(graph: ir.Graph) -> dict[str, ir.Value]:
    """Inputs, initialisers and node outputs of a graph by name."""
    values = {value.name: value for value in graph.inputs if value.name}
    values.update(graph.initializers)
    for node in graph:
        values.update({value.name: value for value in node.outputs if value.name})
    return values


def with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A clone that also gives some inner values, as far as it has them."""
    clone = model.clone()
    values = graph_values(clone.graph)
    clone.graph.outputs.extend(values[name] for name in names if name in values)
    return clone


def all_values(graph: ir.Graph) -> dict[str, ir.Value]:
    """The values of a graph and of all graphs inside it by name."""
    values: dict[str, ir.Value] = {}
    for inner in graph.subgraphs():
        values.update(graph_values(inner))
    return values | graph_values(graph)


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


def submodel(program: Program, outputs: Sequence[str], held: Mapping[str, Array]) -> ir.Model:
    """A model without inputs that computes some values, given the contents of others.

    What bodies compute from constants alone is computed here without them.
    """
    values = program.values()
    made: dict[ir.Value, ir.Value] = {}
    constants: list[ir.Value] = []
    nodes: list[ir.Node] = []
    stack = [values[name] for name in reversed(outputs)]
    while stack:
        value = stack[-1]
        name, node = value.name or "", value.producer()
        if value in made:
            stack.pop()
        elif name in held and node is not None and name not in outputs:
            made[value] = ir.Value(name=f"{name}/held", const_value=ir.tensor(held[name], name=f"{name}/held"))
            constants.append(made[value])
        elif node is None:
            made[value] = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
            constants.append(made[value])
        else:
            same = program.same.get(name)
            needed = [one for one in (node.inputs if same is None else [same]) if one is not None and one not in made]
            if needed:
                stack += reversed(needed)
                continue
            nodes.append(_copied(node, made) if same is None else ir.node("Identity", [made[same]]))
            ours = node.outputs if same is None else [value]
            for old, new in zip(ours, nodes[-1].outputs, strict=True):
                new.name, new.type, new.shape, made[old] = old.name, old.type, old.shape, new
    graph = ir.Graph(
        [],
        [made[values[name]] for name in outputs],
        nodes=nodes,
        initializers=constants,
        opset_imports=dict(program.model.graph.opset_imports),
        name=program.model.graph.name,
    )
    return ir.Model(graph, ir_version=program.model.ir_version)


def _copied(node: ir.Node, made: Mapping[ir.Value, ir.Value]) -> ir.Node:
    inputs = [None if value is None else made[value] for value in node.inputs]
    attributes = list(node.attributes.values())
    return ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=len(node.outputs), name=node.name)
