"""One look at a network: it is run once, and every shape and every size that is read is noted, in its bodies too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx_ir as ir

from graphprune.errors import InputError
from graphprune.ir.nested import alone, bodies, branches, count_rounds, first_inputs, next_inputs, rounds, sources_of
from graphprune.ir.program import Array, Runner, constant_tensor, graph_values

__all__ = ["READS_SIZES", "Observer", "Seen"]

READS_SIZES = frozenset({"Shape", "Size"})  # they depend on their operand's shape alone
_SUFFIX = "/observed_shape"
_DEPTH = 6  # levels of bodies that are looked into: every Loop runs what is inside it twice
_WORDS = 200  # characters of the runtime's reason why a body does not run


@dataclass(frozen=True)
class Seen:
    """One run: the shape of every tensor and the contents of size readers, those of bodies included.

    Attributes:
        contents: of the values that were asked for.
        conditions: what an If decided, by the name of its first result.
        rounds: how often a Loop or a Scan ran its body, likewise.
        failed: why a body could not be run, by the name of its node's first result and its position.
        others: the same run with another iteration of a Loop.
    """

    shapes: dict[str, tuple[int, ...]]
    read: dict[str, Array]
    contents: dict[str, Array] = field(default_factory=dict)
    conditions: dict[str, bool] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    failed: dict[tuple[str, int], str] = field(default_factory=dict)
    others: list[Seen] = field(default_factory=list)

    def take(self, inner: Seen) -> None:
        """Add what a body's run showed."""
        self.shapes.update(inner.shapes)
        self.read.update(inner.read)
        self.conditions.update(inner.conditions)
        self.rounds.update(inner.rounds)
        self.failed.update(inner.failed)
        self.others.extend(inner.others)

    def variants(self) -> list[Seen]:
        """The run as it would have looked with other iterations of its loops."""
        return [
            Seen(
                self.shapes | one.shapes,
                self.read | one.read,
                conditions=self.conditions | one.conditions,
                failed=dict(one.failed),
            )
            for one in self.others
        ]


class Observer:
    """The network with the shapes of all its values as outputs; runs on any input sizes.

    The bodies of If, Loop and Scan are run after it, each on its own with what the network fed it: both branches of an
    If whichever was taken, the first iterations of the others.

    Args:
        model: every value named.
        run: executes a model.
        wanted: names of values whose contents are to be returned as well.
        depth: how many bodies the network itself lies in.
    """

    def __init__(self, model: ir.Model, run: Runner, wanted: Sequence[str] = (), depth: int = 0) -> None:
        self.run = run
        self.inner = [_Bodies(model, node, run, depth) for node in model.graph if bodies(node)]
        self.model = model.clone()
        graph = self.model.graph
        taken = {value.name or "" for node in graph for value in node.outputs}
        self.suffix = _SUFFIX
        while any(name.endswith(self.suffix) for name in taken):
            self.suffix += "_"
        read: list[ir.Value] = []
        shown: list[ir.Value] = []
        for node in list(graph):
            if node.op_type in READS_SIZES and node.domain == "":
                read.extend(node.outputs)
            shown += [value for value in node.outputs if value.name and not _is_container(value)]
            if (counter := count_rounds(node)) is not None:
                shown.append(counter)
        values = graph_values(graph)
        self.read = frozenset(value.name or "" for value in read)
        names = dict.fromkeys((*wanted, *(name for one in self.inner for name in one.wanted)))
        self.held = {name: values[name] for name in names if name in values and not _is_container(values[name])}
        graph.outputs.clear()
        for value in dict.fromkeys((*read, *self.held.values())):
            if value.producer() is not None:
                graph.outputs.append(value)
        for value in shown:
            reader = ir.node("Shape", inputs=[value])
            reader.outputs[0].name = f"{value.name}{self.suffix}"
            graph.append(reader)
            graph.outputs.append(reader.outputs[0])

    def __call__(self, feeds: Mapping[str, Array]) -> Seen:
        """Run on an array per input. Raises InputError where it does not run; a body that does not is only noted."""
        for value in self.model.graph.inputs:  # captured values have no declared type
            array = feeds.get(value.name or "")
            if value.type is None and array is not None:
                value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        seen = Seen({name: array.shape for name, array in feeds.items()}, {}, dict(feeds))
        for name, array in self.run(self.model, feeds, None).items():
            if name.endswith(self.suffix):
                seen.shapes[name.removesuffix(self.suffix)] = tuple(int(n) for n in array)
            else:
                seen.contents[name] = array
                if name in self.read:
                    seen.read[name] = array
        for name, value in self.held.items():
            if name not in seen.contents and (held := constant_tensor(value)) is not None:
                seen.contents[name] = np.asarray(held.numpy())
        for one in self.inner:
            one.look(seen)
        return seen


class _Bodies:
    """The bodies of one node, each as a model of its own."""

    def __init__(self, model: ir.Model, node: ir.Node, run: Runner, depth: int) -> None:
        self.node, self.name = node, node.outputs[0].name or ""
        self.parts: list[tuple[ir.Graph, Observer, list[str]]] = []
        self.wanted = [value.name or "" for value in node.inputs if value is not None]
        for graph in bodies(node) if depth < _DEPTH else ():
            body, given = alone(model, graph)
            carried = [value.name or "" for value in graph.outputs] if node.op_type == "Loop" else ()
            self.parts.append((graph, Observer(body, run, carried, depth + 1), given))
            self.wanted += given

    def look(self, seen: Seen) -> None:
        """Run the bodies on what a run of the network gave them, and add what they show to it."""
        node = self.node
        missing = next((name for name in self.wanted if name not in seen.contents), None)
        given = [None if value is None else seen.contents.get(value.name or "") for value in node.inputs]
        if missing is None and branches(node):
            seen.conditions[self.name] = bool(np.all(given[0]))
        elif missing is None:
            seen.rounds[self.name] = rounds(node, given, seen.shapes)
        if not self.parts:
            seen.failed.update({(self.name, i): f"it lies in {_DEPTH} others" for i in range(len(bodies(node)))})
        for i, (graph, observer, names) in enumerate(self.parts):
            if missing is not None:
                seen.failed[self.name, i] = f"{missing!r} is a sequence or an optional, which have no axes"
                continue
            captured = {name: seen.contents[name] for name in names}
            try:
                first = observer(first_inputs(node, graph, given) | captured)
                if (again := next_inputs(node, graph, first.contents)) is not None:
                    with suppress(InputError):  # a loop that ends after its first iteration
                        second = observer(again | captured)
                        if any(first.shapes[name] != second.shapes[name] for name in again):
                            first, second = second, first  # what grows may be empty or a single one at first
                        first.others.append(second)
            except InputError as error:
                seen.failed[self.name, i] = str(error).rpartition("cannot run it: ")[2][:_WORDS]
            else:
                seen.take(replace(first, others=first.variants()))


def _is_container(value: ir.Value) -> bool:
    """Whether a value is a sequence or an optional, which have no shape; the operator's schema says so."""
    node = value.producer()
    if value.type is not None or node is None:
        return isinstance(value.type, (ir.SequenceType, ir.OptionalType))
    if bodies(node):
        return any(_is_container(one) for one in sources_of(value))
    try:
        schema = onnx.defs.get_schema(node.op_type, node.graph.opset_imports[node.domain], node.domain)  # type: ignore[union-attr]
    except Exception:
        return False
    formal = schema.outputs[min(value.index() or 0, len(schema.outputs) - 1)]
    return bool(formal.types) and all(kind.startswith(("seq(", "optional(")) for kind in formal.types)
