"""Times of single nodes from ONNX Runtime's own trace (``SessionOptions.enable_profiling``)."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.backends.base import LayerTime
from graphprune.backends.layers import Layer, NodeTable
from graphprune.errors import GraphpruneError

if TYPE_CHECKING:
    import onnx

__all__ = ["OPTIMISED", "layer_times"]

#: What the optimised graph is called in the folder of the trace.
OPTIMISED = "optimised.onnx"

_SUFFIX = "_kernel_time"
# Nodes that only turn a tensor into another layout and back: what goes in is what comes out.
_LAYOUT = ("ReorderInput", "ReorderOutput")
_RESHAPED = "gemm_output_reshape"
_BLOCKED = "_nchwc"  # a node on the blocked layout is called after what it computed when it was put into it

_Key = tuple[str, str, str]  # name, node index, operator


def layer_times(trace: Path, model: Path, warm_ups: int) -> tuple[LayerTime, ...]:
    """Reads a trace of ``warm_ups`` and more whole runs, the optimised graph beside it, and the ONNX file.

    The runtime counts in whole microseconds. A node with a body (If, Loop, Scan) is given without its body's nodes,
    which are layers of their own.

    Raises:
        GraphpruneError: the trace holds no runs after the warm-up.
    """
    events = json.loads(trace.read_text(encoding="utf-8"))
    runs = [(event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == "model_run"]
    runs = sorted(runs)[warm_ups:]
    if not runs:
        raise GraphpruneError(f"{model}: onnxruntime wrote no times into its trace; profile with more runs.")
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX)]
    nodes.sort(key=lambda event: (event["ts"], -event["dur"]))
    times: dict[_Key, list[int]] = {}
    for index, (start, end) in enumerate(runs):
        within = (event for event in nodes if start <= event["ts"] <= end)
        for key, own in _own_times(within):
            times.setdefault(key, [0] * len(runs))[index] += own
    named = _attributed([name for name, _, _ in times], trace.parent / OPTIMISED, model)
    return tuple(
        LayerTime(name, kind, named.get(name, ()), statistics.median(each) * 1000.0)
        for (name, _, kind), each in times.items()
    )


def _own_times(events: Iterable[Mapping[str, Any]]) -> list[tuple[_Key, int]]:
    """Microseconds of each event without those of the events inside it; ``events`` in order of their beginning."""
    found: list[tuple[_Key, int]] = []
    open_: list[tuple[int, int]] = []  # end, index in found
    for event in events:
        arguments = event["args"]
        key = (event["name"].removesuffix(_SUFFIX), str(arguments.get("node_index")), str(arguments.get("op_name")))
        while open_ and event["ts"] + event["dur"] > open_[-1][0]:
            open_.pop()
        if open_:
            outer, total = found[open_[-1][1]]
            found[open_[-1][1]] = (outer, max(0, total - event["dur"]))
        open_.append((event["ts"] + event["dur"], len(found)))
        found.append((key, event["dur"]))
    return found


def _attributed(layers_named: list[str], optimised: Path, model: Path) -> dict[str, tuple[str, ...]]:
    """Nodes of ``model`` by the name of the layer that computes them, through the tensors that both graphs name."""
    import onnx

    table = NodeTable.read(model)
    if not optimised.is_file():  # a provider that compiles its part of the graph cannot be written as ONNX
        return dict(zip(layers_named, table.attribute([Layer(names=(name,)) for name in layers_named]), strict=True))
    every = onnx.load(optimised, load_external_data=False).graph.node
    # What a tensor in another layout is called in the file, where it is turned back under that name.
    alias = {node.input[0]: node.output[0] for node in every if _is_layout(node) and node.output[0] in table.producer}
    nodes = [node for node in every if not _is_layout(node)]
    layers = []
    for node in nodes:
        outputs = [alias.get(name, name) for name in node.output if alias.get(name, name) in table.producer]
        after = node.name.removesuffix(_BLOCKED)
        called = [after] if node.name.endswith(_BLOCKED) and after in table.producer and not outputs else []
        # A fusion is called after a node that it took in: "name/KindOfFusion".
        names = (node.name, node.name.rpartition("/")[0])
        layers.append(Layer(names, tuple(outputs or called), node.op_type, hidden=not outputs))
    found = dict(zip((node.name for node in nodes), table.attribute(layers), strict=True))
    return {name: found.get(name, ()) for name in layers_named}


def _is_layout(node: onnx.NodeProto) -> bool:
    return node.op_type in _LAYOUT or node.name.startswith(_RESHAPED)
