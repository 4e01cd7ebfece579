"""Which nodes of an ONNX file a layer of a built network computes, told from names and from the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["Layer", "NodeTable"]


@dataclass(frozen=True)
class Layer:
    """What a runtime tells of a layer.

    Attributes:
        names: Names of nodes that the layer computes for certain.
        outputs: Tensors of the ONNX file that the layer computes: what it leaves behind, or is called after.
        kind: Its operator, where it is one of ONNX: it computes one node of that kind, and none before it.
        hidden: It leaves something behind that the file has no name for, so more nodes may follow within it.
    """

    names: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    kind: str = ""
    hidden: bool = False


@dataclass(frozen=True)
class NodeTable:
    """The nodes of an ONNX graph, without those that only compute constants.

    Attributes:
        names: Of each node, in the file's order; "" where it has none.
        kinds: Operator of each node.
        inputs, outputs: Of each node: tensors that are no constants.
        producer: Tensor to the node that makes it.
        users: Nodes that read what a node makes, by node.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    inputs: tuple[tuple[str, ...], ...]
    outputs: tuple[tuple[str, ...], ...]
    producer: dict[str, int] = field(repr=False)
    users: tuple[tuple[int, ...], ...] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> NodeTable:
        """The table of an ONNX file; its external data are not read."""
        import onnx

        return cls.of(onnx.load(path, load_external_data=False).graph)

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> NodeTable:
        """The table of a graph whose nodes stand in topological order, as the standard demands."""
        constant = {"", *(one.name for one in graph.initializer)}
        constant |= {one.values.name for one in graph.sparse_initializer}
        kept = []
        for node in graph.node:
            subgraph = any(attribute.HasField("g") for attribute in node.attribute)
            if not subgraph and all(name in constant for name in node.input) and _is_pure(node):
                constant.update(node.output)
            else:
                kept.append(node)
        producer = {name: index for index, node in enumerate(kept) for name in node.output if name}
        inputs = tuple(tuple(name for name in node.input if name not in constant) for node in kept)
        users: list[list[int]] = [[] for _ in kept]
        for index, names in enumerate(inputs):
            for maker in sorted({producer[name] for name in names if name in producer}):
                users[maker].append(index)
        return cls(
            names=tuple(node.name for node in kept),
            kinds=tuple(node.op_type for node in kept),
            inputs=inputs,
            outputs=tuple(tuple(name for name in node.output if name) for node in kept),
            producer=producer,
            users=tuple(map(tuple, users)),
        )

    def attribute(self, layers: Sequence[Layer]) -> tuple[tuple[str, ...], ...]:
        """Per layer the names of the nodes it computes, each node at most once, in the file's order.

        Nodes that a layer names are its own. So are those between what it computes and what others do, then what
        follows within a layer whose result has no name in the file (an activation after a convolution), then a node
        that only one layer uses, or that only one layer feeds.
        """
        owner: dict[int, int] = {}
        by_name = {name: index for index, name in enumerate(self.names) if name}
        known = {name for layer in layers for name in layer.outputs}
        for which, layer in enumerate(layers):
            sure = [by_name[name] for name in layer.names if name in by_name]
            for node in (*sure, *(self.producer[name] for name in layer.outputs if name in self.producer)):
                owner.setdefault(node, which)
        for which, layer in enumerate(layers):
            self._walk_back(which, layer, owner, known)
        for which in reversed(range(len(layers))):
            if layers[which].hidden:
                self._follow(which, owner)
        self._close(owner)
        found: list[list[str]] = [[] for _ in layers]
        for node in sorted(owner):
            if self.names[node]:
                found[owner[node]].append(self.names[node])
        return tuple(map(tuple, found))

    def _follow(self, which: int, owner: dict[int, int]) -> None:
        nodes = [node for node, one in owner.items() if one == which]
        while nodes:
            for user in self.users[nodes.pop()]:
                if user not in owner:
                    owner[user] = which
                    nodes.append(user)

    def _walk_back(self, which: int, layer: Layer, owner: dict[int, int], known: set[str]) -> None:
        nodes = [self.producer[name] for name in layer.outputs if name in self.producer]
        while nodes:
            node = nodes.pop()
            if owner.setdefault(node, which) == which and self.kinds[node] != layer.kind:
                within = [name for name in self.inputs[node] if name in self.producer and name not in known]
                nodes.extend({self.producer[name] for name in within} - owner.keys())

    def _close(self, owner: dict[int, int]) -> None:
        """Gives what is left to the only layer that uses it or, failing that, to the only one that feeds it."""
        for node in reversed(range(len(self.names))):
            around = {owner.get(user) for user in self.users[node]}
            if node not in owner and len(around) == 1 and None not in around:
                owner[node] = next(one for one in around if one is not None)
        for node in range(len(self.names)):
            before = {owner.get(self.producer[name]) for name in self.inputs[node] if name in self.producer}
            if node not in owner and len(before) == 1 and None not in before:
                owner[node] = next(one for one in before if one is not None)


def _is_pure(node: onnx.NodeProto) -> bool:
    """Without inputs only a node that holds its value in attributes makes a constant; others draw at random."""
    return bool(node.input) or all(attribute.name.startswith(("value", "sparse_value")) for attribute in node.attribute)
