"""A network run piece by piece over many samples.

Every piece starts from what the pieces before it left behind for all samples, so that the whole costs one pass over
the data however many stops are made, and weights that come later may be changed on the way. What is kept between two
stops are the values that later nodes read, in memory up to a limit and beyond it in a file that is mapped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.ir.nested import captures, graphs_of
from graphprune.ir.program import Array, Runner, inputs_of

__all__ = ["Stream"]

Feeds = Mapping[str, Array]
_HELD = 1 << 30  # bytes of values in memory before they go to files
_BLOCK = 1 << 27  # bytes of such a file, which is gone when nothing in it is needed


class Stream:
    """Runs ``model`` over ``samples``, up to one node after another.

    Use as a context manager: what it holds goes when it is left.
    """

    def __init__(self, model: ir.Model, samples: Sequence[Feeds], run: Runner) -> None:
        self._model = model
        self._run = run
        self._done = 0
        self._count = len(samples)
        self._held: dict[str, list[Array]] = {}
        self._bytes = 0
        self._block: np.memmap[Any, np.dtype[np.uint8]] | None = None
        self._used = 0
        self.refresh()
        for value in inputs_of(model):
            if value.name:
                self._held[value.name] = [np.asarray(one[value.name]) for one in samples]
                self._bytes += sum(one.nbytes for one in self._held[value.name])

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.clear()
        self._block = None

    def refresh(self) -> None:
        """Look at the model again, after nodes were added behind those that have been run."""
        self._nodes = list(self._model.graph)
        self._place = {node: i for i, node in enumerate(self._nodes)}
        self._by_name = {value.name: node for node in self._nodes for value in node.outputs}
        self._last: dict[str, int] = {}
        for i, node in enumerate(self._nodes):
            for value in _reads(node):
                if value.name and not value.is_initializer():
                    self._last[value.name] = i
        for value in self._model.graph.outputs:
            if value.name:
                self._last[value.name] = len(self._nodes)

    def node(self, name: str) -> ir.Node:
        """The node that makes a value."""
        return self._by_name[name]

    def reach(self, node: ir.Node | None) -> None:
        """Run everything before ``node`` (None: all) that has not been run."""
        self._advance(len(self._nodes) if node is None else self._place[node])

    def values(self, name: str) -> list[Array]:
        """A value for every sample; it is read by the next node or later."""
        return self._held[name]

    def _advance(self, stop: int) -> None:
        if stop <= self._done:
            return
        piece = self._nodes[self._done : stop]
        made = {value.name for node in piece for value in node.outputs if value.name}
        wanted = [name for name in made if self._last.get(name, -1) >= stop]
        if wanted:
            part, inputs = self._part(piece, wanted)
            found: dict[str, list[Array]] = {name: [] for name in wanted}
            for i in range(self._count):
                result = self._run(part, {name: self._held[name][i] for name in inputs}, wanted)
                for name, array in result.items():
                    found[name].append(self._stored(array))
            self._held.update(found)
        self._done = stop
        for name in [name for name in self._held if self._last.get(name, -1) < stop]:
            self._bytes -= sum(one.nbytes for one in self._held.pop(name) if not isinstance(one, np.memmap))

    def _stored(self, array: Array) -> Array:
        if self._bytes + array.nbytes <= _HELD or not array.size:
            self._bytes += array.nbytes
            return array
        if self._block is None or self._used + array.nbytes > self._block.size:
            with tempfile.TemporaryFile(prefix="graphprune-") as file:  # it goes with the last array in it
                self._block = np.memmap(file, dtype=np.uint8, mode="w+", shape=(max(_BLOCK, array.nbytes),))
            self._used = 0
        place = self._block[self._used : self._used + array.nbytes].view(array.dtype).reshape(array.shape)
        place[...] = array
        self._used += -(-array.nbytes // 64) * 64
        return place

    def _part(self, nodes: Sequence[ir.Node], outputs: Sequence[str]) -> tuple[ir.Model, list[str]]:
        """Some of the nodes as a model of their own: only those that its outputs need."""
        inside = set(nodes)
        needed: dict[ir.Node, None] = {}
        stack = [self._by_name[name] for name in outputs]
        while stack:
            node = stack.pop()
            if node in needed:
                continue
            needed[node] = None
            stack += [made for value in _reads(node) if (made := value.producer()) is not None and made in inside]
        new: dict[ir.Value, ir.Value] = {}
        inputs: list[ir.Value] = []
        constants: list[ir.Value] = []
        copies: list[ir.Node] = []
        cloner_nodes = [node for node in nodes if node in needed]
        for node in cloner_nodes:
            for value in _reads(node):
                if value in new or (value.producer() is not None and value.producer() in needed):
                    continue
                held = value.const_value if value.is_initializer() else None
                new[value] = ir.Value(name=value.name, type=value.type, const_value=held)
                if held is not None:
                    constants.append(new[value])
                else:
                    sample = self._held[value.name or ""][0]
                    new[value].type = ir.TensorType(ir.DataType.from_numpy(sample.dtype))
                    new[value].shape = ir.Shape([None] * sample.ndim)
                    inputs.append(new[value])
            copy = _copied(node, new)
            copies.append(copy)
            for old, fresh in zip(node.outputs, copy.outputs, strict=True):
                fresh.name, fresh.type, new[old] = old.name, old.type, fresh
        results = [new[value] for node in cloner_nodes for value in node.outputs if value.name in outputs]
        graph = ir.Graph(
            inputs,
            results,
            nodes=copies,
            initializers=constants,
            opset_imports=dict(self._model.graph.opset_imports),
            name="piece",
        )
        return ir.Model(graph, ir_version=self._model.ir_version, functions=list(self._model.functions.values())), [
            value.name or "" for value in inputs
        ]


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, what its bodies capture included."""
    yield from (value for value in node.inputs if value is not None)
    graphs = graphs_of(node)
    if graphs:
        inner = set(graphs)
        yield from (value for value in captures(*graphs) if value.graph not in inner)


def _copied(node: ir.Node, new: Mapping[ir.Value, ir.Value]) -> ir.Node:
    graphs = graphs_of(node)
    if graphs:
        cloned = []
        for attribute in node.attributes.values():
            if attribute.type is ir.AttributeType.GRAPH:
                body = attribute.as_graph().clone(allow_outer_scope_values=True)
                for inner in body.all_nodes():
                    for k, value in enumerate(inner.inputs):
                        if value is not None and value in new:
                            inner.replace_input_with(k, new[value])
                cloned.append(ir.AttrGraph(attribute.name, body))
            else:
                cloned.append(attribute)
    else:
        cloned = list(node.attributes.values())
    inputs = [None if value is None else new[value] for value in node.inputs]
    return ir.Node(node.domain, node.op_type, inputs, cloned, num_outputs=len(node.outputs), name=node.name)
