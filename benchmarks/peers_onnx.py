"""onnxsim on one ONNX file: cut it, and compare it with the original in which what it removed is zero."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.peers import ENOUGH, SMALL, Incomparable

__all__ = ["onnxsim"]


def onnxsim(name: str, tell: Callable[..., None]) -> None:
    """Tell how far it comes: cuts, runs; what is kept; whether it is equal; seconds of cutting."""
    import onnx
    import onnxsim as peer  # type: ignore[import-untyped]

    from models_zoo.variants import onnx_file

    path, inputs = onnx_file(name)
    model = onnx.load(path)
    before = _weights(model)
    start = time.process_time()
    stage = "cut"
    try:
        tell(builds=True)
        cut = peer.apply_structured_pruning(onnx.load(path), sparsity=0.5)
        after = _weights(cut)
        kept = _elements(after) / _elements(before)
        tell(steps=True, seconds=time.process_time() - start, kept=kept)
        stage = "run"
        found = _run(cut, inputs)
        tell(runs=True)
    except Exception as error:  # whatever it raises is its answer for this network
        said = str(error).strip().splitlines()
        tell(failed=f"{stage}: {type(error).__name__}: {said[0] if said else ''}")
        return
    try:
        wanted = _run(_silenced(model, before, after), inputs)
    except Incomparable as why:
        tell(not_compared=str(why))
        return
    pairs = zip(wanted, found, strict=True)
    error = max((_difference(one, other) for one, other in pairs), default=float("inf"))
    tell(error=min(error, 1e30), equal=error <= ENOUGH)


def _tensors(graph: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor that a file holds, by name: initialisers and constants, those of branches and bodies as well."""
    for one in graph.initializer:
        yield f"{place}{one.name}", one
    for i, node in enumerate(graph.node):
        for held in node.attribute:
            if held.HasField("g"):
                yield from _tensors(held.g, f"{place}{node.output[0] if node.output else i}/{held.name}/")
            elif node.op_type == "Constant" and held.name == "value":
                yield f"{place}{node.output[0]}", held.t


def _weights(model: Any) -> dict[str, Any]:
    from onnx import numpy_helper

    return {name: numpy_helper.to_array(one) for name, one in _tensors(model.graph)}


def _elements(weights: dict[str, Any]) -> int:
    return sum(one.size for one in weights.values() if one.dtype.kind == "f" and one.size > 1) or 1


def _run(model: Any, inputs: dict[str, Any]) -> list[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    outputs: list[Any] = session.run(None, inputs)
    return outputs


def _difference(wanted: Any, found: Any) -> float:
    if wanted.shape != found.shape:
        return float("inf")
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    gap = float(np.abs(a - b).max(initial=0)) / (float(np.abs(a).max(initial=0)) + SMALL)
    return gap if np.isfinite(gap) else float("inf")


def _silenced(model: Any, before: dict[str, Any], after: dict[str, Any]) -> Any:
    """The original with every element that was removed set to zero. Raises Incomparable where that is not known."""
    from onnx import numpy_helper

    for name, one in _tensors(model.graph):
        if before[name].dtype.kind != "f" or before[name].size == 1:
            continue
        if name not in after:
            raise Incomparable(f"{name} is gone or has another name")
        old, new = before[name], after[name]
        if old.shape == new.shape:
            if not np.array_equal(old, new):
                raise Incomparable(f"{name} has other values")
            continue
        kept = _kept(name, old, new)
        silent = np.zeros_like(old)
        place = np.ix_(*kept)
        silent[place] = old[place]
        one.CopyFrom(numpy_helper.from_array(silent, one.name))
    return model


def _kept(name: str, old: Any, new: Any) -> list[Any]:
    """The indices of each axis that were kept, told by the values that were: weights are all different."""
    if old.ndim != new.ndim or any(m > n for m, n in zip(new.shape, old.shape, strict=True)):
        raise Incomparable(f"{name} was rearranged")
    values, first, counts = np.unique(old, return_index=True, return_counts=True)
    place = np.searchsorted(values, new.ravel()).clip(0, len(values) - 1)
    known = (values[place] == new.ravel()) & (counts[place] == 1)
    origin = np.array(np.unravel_index(first[place], old.shape))
    target = np.array(np.unravel_index(np.arange(new.size), new.shape))
    kept = []
    for axis in range(old.ndim):
        votes: dict[int, Counter[int]] = {}
        if new.shape[axis] == old.shape[axis]:
            kept.append(np.arange(old.shape[axis]))
            continue
        for to, source in zip(target[axis][known], origin[axis][known], strict=True):
            votes.setdefault(int(to), Counter())[int(source)] += 1
        if len(votes) < new.shape[axis]:
            raise Incomparable(f"the values of {name} do not tell which of its channels were kept")
        kept.append(np.array([votes[i].most_common(1)[0][0] for i in range(new.shape[axis])]))
    if not np.array_equal(old[np.ix_(*kept)], new):
        raise Incomparable(f"{name} was changed beyond being cut")
    return kept
