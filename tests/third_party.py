"""Checks a plan as somebody would who has the source file, the artefact and ``docs/plan.md``, but not graphprune."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

Feeds = dict[str, np.ndarray[Any, Any]]


def silence(source: onnx.ModelProto, plan: dict[str, Any]) -> onnx.ModelProto:
    """The source with consumers zeroed and contracted values masked at their removed indices."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    constants = {}
    for graph in graphs(model.graph):
        constants.update({tensor.name: tensor for tensor in graph.initializer})
        for node in graph.node:
            if node.op_type == "Constant":
                (held,) = node.attribute
                constants[node.output[0]] = held.t
    masks: dict[tuple[str, int], np.ndarray[Any, Any]] = {}
    for group in plan["groups"]:
        for member in group["members"]:
            removed = member["removed"]
            assert len(set(removed)) == len(removed) < member["size"]
            if member["role"] == "consumer":
                tensor = constants[member["tensor"]]  # its name must be one of the source's constants
                array = numpy_helper.to_array(tensor).copy()
                assert array.ndim == member["rank"] and array.shape[member["axis"]] == member["size"]
                array[(slice(None),) * member["axis"] + (removed,)] = 0
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            elif member["role"] == "contracted":
                mask = masks.setdefault((member["tensor"], member["axis"]), np.ones(member["size"], dtype=np.float32))
                mask.resize(member["size"])
                mask[removed] = 0
                masks[member["tensor"], member["axis"]] = mask
    ranks = {(m["tensor"], m["axis"]): m["rank"] for g in plan["groups"] for m in g["members"]}
    for (name, axis), mask in masks.items():
        shape = [1] * ranks[name, axis]
        shape[axis] = len(mask)
        model.graph.initializer.append(numpy_helper.from_array(mask.reshape(shape), f"{name}_mask{axis}"))
        for graph in graphs(model.graph):
            for node in graph.node:
                for k, used in enumerate(node.input):
                    if used == name:
                        node.input[k] = f"{name}_masked{axis}"
        graph = next(graph for graph in graphs(model.graph) if name in names(graph))
        at = next((i + 1 for i, node in enumerate(graph.node) if name in node.output), 0)
        graph.node.insert(at, helper.make_node("Mul", [name, f"{name}_mask{axis}"], [f"{name}_masked{axis}"]))
    return model


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def names(graph: onnx.GraphProto) -> set[str]:
    """What a graph itself defines."""
    return {one.name for one in (*graph.input, *graph.initializer)} | {o for node in graph.node for o in node.output}


def outputs(model: onnx.ModelProto, feeds: Feeds) -> list[np.ndarray[Any, Any]]:
    """The model's outputs on ONNX Runtime with its graph as it is."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def check(source: Path, folder: Path, feeds: Feeds) -> float:
    """Largest difference, relative to each output's largest value, of the artefact to the silenced source."""
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["format"] == 1
    original, artefact = onnx.load(str(source)), onnx.load(str(folder / "model.onnx"))
    kept = {tensor.name: tuple(tensor.dims) for graph in graphs(artefact.graph) for tensor in graph.initializer}
    lost: dict[tuple[str, int], list[set[int]]] = {}
    for group in plan["groups"]:
        assert sorted(set(group["kept"])) == group["kept"] and 0 < len(group["kept"]) < group["size"]
        for member in group["members"]:
            lost.setdefault((member["tensor"], member["axis"]), []).append(set(member["removed"]))
    members = [member for group in plan["groups"] for member in group["members"]]
    sizes = {(m["tensor"], m["axis"]): (m["size"], m["rank"]) for m in members}
    ridden = {(m["tensor"], m["axis"]) for m in members if m["role"] == "rider"}
    for (name, axis), removed in lost.items():
        if name in kept and len(kept[name]) > axis:
            size, rank = sizes[name, axis]
            left = {size - len(set().union(*removed))}
            # a constant that several layers share is cut for each of them, one that others are computed from for the
            # layers alone; one copy keeps the name
            least = 0 if rank == 1 or (name, axis) in ridden else 1
            some = chain.from_iterable(combinations(removed, k) for k in range(least, len(removed)))
            left |= {size - len(set().union(*one)) for one in some}
            assert kept[name][axis] in left, (name, axis)
    worst = 0.0
    for want, have in zip(outputs(silence(original, plan), feeds), outputs(artefact, feeds), strict=True):
        assert want.shape == have.shape
        worst = max(worst, float(np.abs(want - have).max() / max(np.abs(want).max(), 1e-30)))
    return worst
