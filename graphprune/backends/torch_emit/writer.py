"""Builds the module: values in the program's order, constants and sizes where they are asked for."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx, nn

from graphprune.backends.torch_emit.parameters import Names, legal, trainable, trained
from graphprune.backends.torch_emit.registry import Refuse, Sizes, all_emitters
from graphprune.backends.torch_emit.types import element_types, to_tensor, torch_type
from graphprune.backends.torch_emit.view import View
from graphprune.backends.torch_ops.index import items_of, like_items
from graphprune.errors import UnsupportedError
from graphprune.ir.nested import bodies
from graphprune.ir.program import Array, Program, all_values, inputs_of

__all__ = ["Writer", "unsupported"]

_OPS = "graphprune.backends.torch_ops"


def unsupported(made: fx.Node) -> fx.Node:
    """Stands for the result of a node that was refused; no module is made with it."""
    return made


class Writer:
    """One translation. Values are asked for by name; what nobody asks for is not emitted."""

    def __init__(self, program: Program, outer: Writer | None = None, own: frozenset[str] = frozenset()) -> None:
        self.program = program
        self.graph = fx.Graph()
        self.outer, self.own = outer, own  # of a body: who writes the graph around it, and the names of its own values
        self.captured: dict[str, fx.Node] = {}
        self.types: dict[str, ir.DataType] = element_types(program) if outer is None else outer.types
        self.opsets: dict[str, int] = {
            "" if domain == "ai.onnx" else domain: version
            for domain, version in program.model.graph.opset_imports.items()
        }
        self.weights: set[str] = trainable(program, self.types) if outer is None else outer.weights
        self.trained: set[str] = trained(program, self.weights, self.types) if outer is None else outer.trained
        self.names = Names()
        self.held: dict[str, Any] = {}  # attributes of the module by path: parameters, tensors, modules
        self.parameters: dict[str, tuple[str, ...]] = {}  # path in the state dict -> initialisers
        self.nodes: dict[str, fx.Node] = {}
        self.vectors: dict[str, Sizes] = {}
        self.measured: dict[tuple[str, int], fx.Node] = {}
        self.refusals: list[tuple[str, str, str]] = []
        self.busy: set[str] = set()

    # --- The whole --------------------------------------------------------------------------------------------------

    def write(self) -> tuple[fx.Graph, tuple[str, ...], tuple[str, ...]]:
        """The graph, and the names of the network's inputs and outputs in its order.

        Raises:
            UnsupportedError: operators without a counterpart; all of them are listed.
        """
        graph = self.program.model.graph
        inputs = [value.name or "" for value in inputs_of(self.program.model)]
        outputs = [value.name or "" for value in graph.outputs]
        for value in inputs_of(self.program.model):
            if value.dtype is not None and torch_type(value.dtype) is None:
                self.refusals.append(("input", value.name or "", f"PyTorch has no type for {value.dtype.name}"))
        self._graph(graph, inputs, outputs)
        if self.refusals:
            raise UnsupportedError(self._said(), tuple(self.refusals))
        return self.graph, tuple(inputs), tuple(outputs)

    def _graph(self, graph: ir.Graph, inputs: list[str], outputs: list[str]) -> None:
        for name in inputs:
            self.nodes[name] = self.graph.placeholder(legal(name))
        wanted = self._needed(graph)
        self._evaluate(wanted)
        self._emit(graph, wanted)
        made = [self._output(name) for name in outputs]
        self.graph.output(made[0] if len(made) == 1 else tuple(made))
        for node in reversed(self.graph.nodes):  # fx's own removal wants the module first
            if not node.users and node.op not in ("placeholder", "output") and "kept" not in node.meta:
                self.graph.erase_node(node)

    def _output(self, name: str) -> fx.Node:
        try:
            return self.tensor(name)
        except Refuse as refusal:
            self.refusals.append(("output", name, str(refusal)))
            return self.call(unsupported, None)

    def module_of(self, name: str, kind: type[fx.GraphModule] = fx.GraphModule) -> fx.GraphModule:
        """The module of the graph that was written, with what it holds."""
        read = {node.target for node in self.graph.nodes if node.op in ("get_attr", "call_module")}
        held = {path: value for path, value in self.held.items() if path in read}
        self.parameters = {
            path: names
            for path, names in self.parameters.items()
            if path in held or any(path.startswith(f"{one}.") for one in held)
        }
        return kind(held, self.graph, name)

    def body(self, graph: ir.Graph) -> tuple[Writer, fx.GraphModule]:
        """A body as a module of its own, whose further inputs are what it captures, and the writer that says which."""
        own = frozenset(all_values(graph))
        inner = Writer(self.program, self, own)
        inner._graph(graph, [value.name or "" for value in graph.inputs], [value.name or "" for value in graph.outputs])
        self.refusals += inner.refusals
        return inner, inner.module_of(legal(graph.name or "body"))

    def inline(self, graph: ir.Graph) -> tuple[fx.Node, ...]:
        """The nodes of a body in the place of the node that holds it; its outputs."""
        self._emit(graph, self._needed(graph))
        return tuple(self.tensor(value.name or "") for value in graph.outputs)

    def _said(self) -> str:
        listed = "; ".join(f"{op} '{node}': {reason}" for op, node, reason in self.refusals)
        return f"the network cannot become a torch module: {listed}"

    def _needed(self, graph: ir.Graph) -> set[ir.Node]:
        """The nodes that the outputs of a graph depend on."""
        found: set[ir.Node] = set()
        stack = [value.producer() for value in graph.outputs]
        while stack:
            node = stack.pop()
            if node is None or node in found:
                continue
            found.add(node)
            stack += [value.producer() for value in node.inputs if value is not None]
            for inner in bodies(node):
                for one in inner.all_nodes():
                    stack += [value.producer() for value in one.inputs if value is not None]
                stack += [value.producer() for value in inner.outputs]
        return found

    def _evaluate(self, wanted: set[ir.Node]) -> None:
        """Compute all fixed values that will be asked for in one run."""
        names = {
            value.name
            for node in wanted
            if not self._is_fixed(node)
            for value in node.inputs
            if value is not None and value.name in self.program.fixed and value.name not in self.trained
        }
        self.program.evaluate(sorted(n for n in names if n and not self.program.is_parameter(n)))

    def _is_fixed(self, node: ir.Node) -> bool:
        names = [value.name for value in node.outputs if value.name]
        return all(name in self.program.fixed and name not in self.trained for name in names)

    def _emit(self, graph: ir.Graph, wanted: set[ir.Node]) -> None:
        """The live nodes of a graph in order; fixed values and sizes come when they are asked for."""
        known = self.program.fixed | self.program.sizes
        for node in graph:
            if node in wanted and not all(value.name in known for value in node.outputs if value.name):
                self._node(node)

    def _node(self, node: ir.Node) -> None:
        names = [value.name or "" for value in node.outputs]
        try:
            made = self._made(node)
        except Refuse as refusal:
            self.refusals.append((_called(node), node.name or names[0], str(refusal)))
            made = tuple(self.call(unsupported, None) for _ in names)
        results = made if isinstance(made, tuple) and not isinstance(made, Sizes) else (made,)
        for name, one in zip(names, results, strict=False):
            if name and isinstance(one, Sizes):
                self.vectors[name] = one
            elif name and one is not None:
                self.nodes[name] = one
                self._rename(one, name)

    def _made(self, node: ir.Node) -> Any:
        domain = "" if node.domain == "ai.onnx" else node.domain
        emitter = all_emitters().get((domain, node.op_type))
        if emitter is None:
            raise Refuse("graphprune has no PyTorch counterpart of this operator")
        return emitter(View(self, node))

    def _rename(self, node: fx.Node, name: str) -> None:
        if node.op in ("call_function", "call_method", "call_module") and not node.meta.get("named"):
            node.meta["named"] = True
            node._rename(legal(name))

    # --- Values -----------------------------------------------------------------------------------------------------

    def shape(self, name: str) -> tuple[int, ...]:
        """Observed shape of a value.

        Raises:
            Refuse: it is no tensor, or was never run.
        """
        try:
            return self.program.shapes[name]
        except KeyError:
            raise Refuse(f"'{name}' is not a tensor that was observed") from None

    def constant(self, name: str) -> Array | None:
        """Contents of a value that is fixed."""
        return self.program.tensor(name) if name in self.program.fixed else None

    def tensor(self, name: str) -> fx.Node:
        """A value as a tensor: computed, a parameter or a buffer."""
        if name in self.nodes:
            return self.nodes[name]
        if self.outer is not None and name not in self.own and not self._constant(name):
            return self._capture(name)
        if name in self.vectors or (name in self.program.sizes and name not in self.program.fixed):
            made = self._as_tensor(name)
        elif name in self.program.fixed:
            made = self._fixed(name)
        else:
            same = self.program.same.get(name)
            if same is None:
                raise Refuse(f"'{name}' is not computed by the part of the network that was run")
            made = self.tensor(same.name or "")
        self.nodes[name] = made
        return made

    def _constant(self, name: str) -> bool:
        return name in self.program.fixed and name not in self.trained

    def _capture(self, name: str) -> fx.Node:
        """A value of an outer graph becomes a further input of this body."""
        last = [node for node in self.graph.nodes if node.op == "placeholder"]
        with self.graph.inserting_after(last[-1]) if last else self.graph.inserting_before(_first(self.graph)):
            made = self.graph.placeholder(legal(name))
        self.nodes[name] = self.captured[name] = made
        return made

    def _fixed(self, name: str) -> fx.Node:
        node = self.program.values()[name].producer()
        if self.program.is_parameter(name):
            return self._attribute(name)
        if name in self.trained and node is not None and name not in self.program.same and name not in self.busy:
            self.busy.add(name)
            self._node(node)
            if name in self.nodes:
                return self.nodes[name]
        return self.buffer(name, self.program.tensor(name))

    def _attribute(self, name: str) -> fx.Node:
        """A constant that the file holds: a parameter, or a buffer."""
        array = self.program.tensor(name)
        path = self.names.take(self.program.parameter_names.get(name, name))
        self.held[path] = self._parameter(name, array)
        self.parameters[path] = (name,)
        return self.graph.get_attr(path)

    def _parameter(self, name: str, array: Array) -> torch.Tensor:
        if torch_type(self.types[name]) is None:
            raise Refuse(f"PyTorch has no type for '{name}', which holds {self.types[name].name}")
        tensor: torch.Tensor = to_tensor(array)
        return nn.Parameter(tensor) if name in self.weights else tensor

    def buffer(self, name: str, array: Array) -> fx.Node:
        """A constant that is computed from others."""
        path = self.names.take(legal(name))
        self.held[path] = to_tensor(array)
        return self.graph.get_attr(path)

    def module(self, path: str, module: nn.Module, tensors: Mapping[str, str]) -> str:
        """A submodule whose tensors (by their names in it) are these initialisers; its path."""
        path = self.names.take(path)
        self.held[path] = module
        self.parameters.update((f"{path}.{attribute}", (name,)) for attribute, name in tensors.items())
        return path

    def like(self) -> fx.Node:
        """An empty buffer that has the module's device and float type."""
        if "" not in self.nodes:
            path = self.names.take("like")
            self.held[path] = torch.empty(0, dtype=self.float_type())
            inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
            with self.graph.inserting_after(inputs[-1]) if inputs else self.graph.inserting_before(_first(self.graph)):
                self.nodes[""] = self.graph.get_attr(path)
        return self.nodes[""]

    def float_type(self) -> torch.dtype:
        """The one type of all weights (``float32`` where there are several, or none)."""
        kinds = {self.types[name] for name in self.weights}
        only = kinds.pop() if len(kinds) == 1 else ir.DataType.FLOAT
        return {ir.DataType.FLOAT16: torch.float16, ir.DataType.DOUBLE: torch.float64}.get(only, torch.float32)

    def number_or_tensor(self, name: str, rank: int) -> Any:
        """A fixed single number nobody trains as that, a computed size as such, else the tensor."""
        if name in self.program.sizes and name not in self.program.fixed and rank == 0 and name not in self.nodes:
            return self.sizes(name)[0]
        if name not in self.program.fixed or name in self.trained or int(np.prod(self.shape(name))) != 1:
            return self.tensor(name)
        array = self.program.tensor(name)
        if array.dtype.kind not in "biuf":
            return self.tensor(name)
        return array.reshape(-1)[0].item()

    def call(self, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call. The package's own functions are not traced into when the module is read back."""
        made = self.graph.call_function(function, args, kwargs)
        if getattr(function, "__module__", "").startswith(_OPS):
            made.meta["is_wrapped"] = True
        return made

    # --- Sizes ------------------------------------------------------------------------------------------------------

    def size(self, name: str, axis: int) -> Any:
        """Size of an axis: a number, or the node that asks the tensor where it follows the inputs' sizes."""
        if axis not in self.program.moving.get(name, ()):
            return self.shape(name)[axis]
        if (name, axis) not in self.measured:
            self.measured[name, axis] = self.graph.call_method("size", (self.tensor(name), axis))
        return self.measured[name, axis]

    def sizes(self, name: str) -> Sizes:
        """A vector of sizes as Python numbers; those that never move as they were observed."""
        if name in self.vectors:
            return self.vectors[name]
        array = self.constant(name)
        if array is not None:
            return Sizes.of(array.reshape(-1).tolist(), array.ndim == 0)
        scalar = self.shape(name) == ()
        if name in self.program.sizes:
            made = self._computed(name)
            observed = self.program.small.get(name)
            if observed is not None:
                moving = self.program.moving_entries.get(name, frozenset())
                flat = observed.reshape(-1).tolist()
                made = Sizes.of([one if k in moving else flat[k] for k, one in enumerate(made)], scalar)
        else:
            number = int(np.prod(self.shape(name)))
            held = self.call(items_of, self.tensor(name))
            made = Sizes.of([self.call(operator.getitem, held, k) for k in range(number)], scalar)
        self.vectors[name] = made
        return made

    def _computed(self, name: str) -> Sizes:
        from graphprune.backends.torch_emit.sizes import SIZES

        if not self.program.moving_entries.get(name) and name in self.program.small:
            observed = self.program.small[name]
            return Sizes.of(observed.reshape(-1).tolist(), observed.ndim == 0)
        same = self.program.same.get(name)
        if same is not None:
            return self.sizes(same.name or "")
        node = self.program.values()[name].producer()
        assert node is not None
        emitter = SIZES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if emitter is not None:
            view = View(self, node)
            at = next(k for k, value in enumerate(node.outputs) if value.name == name)
            found = emitter(view, at)
            if found is not None:
                return Sizes.of(found, self.shape(name) == ())
        self._node(node)
        number = int(np.prod(self.shape(name)))
        held = self.call(items_of, self.nodes[name])
        return Sizes.of([self.call(operator.getitem, held, k) for k in range(number)])

    def _as_tensor(self, name: str) -> fx.Node:
        items = self.sizes(name)
        if name in self.nodes:
            return self.nodes[name]
        kind = View(self, self.program.values()[name].producer()).dtype(self.types.get(name, ir.DataType.INT64))  # type: ignore[arg-type]
        return self.call(like_items, self.like(), tuple(items), kind, items.scalar)


def _first(graph: fx.Graph) -> fx.Node:
    return next(iter(graph.nodes), graph._root)


def _called(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
