"""Noise instead of data: what normalisations remember of the training data is met on noise.

A BatchNorm holds the mean and the variance that each channel of its input had in training. Noise has others, so what
comes out of the first one is of the wrong size and place already, and further on hardly anything is as it was. Methods
that make up data train their inputs until these statistics agree (ZeroQ, Cai et al. 2020; DeepInversion, Yin et al.
2020). Here the network is changed instead, which takes one pass: every such pair becomes what noise, passed through
the layers before it, really has. What comes out then has the mean and the deviation that it had in training, channel by
channel. Only what the layers read is looked at in such a network; the artefact has the original's statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphprune.calibration.moments import Moments
from graphprune.calibration.stream import Stream
from graphprune.coupling.groups import Grouping
from graphprune.coupling.notation import letters_of
from graphprune.ir.program import Array, Program, Runner, constant_tensor
from graphprune.ir.sizes import Constants
from graphprune.ir.values import with_values

__all__ = ["matched", "restore"]

Feeds = Mapping[str, Array]
_LEAST = 1e-2  # of the variance in training: a channel that noise leaves still must not be blown up


def matched(grouping: Grouping, samples: Sequence[Feeds], run: Runner) -> Program | None:
    """The grouping's network with the statistics that ``samples`` have in it; None where it remembers none.

    Statistics that several nodes share, and those inside bodies of If, Loop and Scan, stay as they are.
    """
    program = grouping.coupling.program
    model = program.model.clone()
    constants = Constants(model.graph)
    changed: dict[str, Array] = {}
    with Stream(model, samples, run) as stream:
        for name, axis, places in _remembered(grouping):
            node = stream.node(name)
            stream.reach(node)
            read, held = node.inputs[0], [node.inputs[k] for k in places]
            assert read is not None and read.name is not None
            found = Moments(full=False)
            for array in stream.values(read.name):
                found.add(np.moveaxis(array, axis, -1).reshape(-1, 1, array.shape[axis]).astype(np.float32))
            if not found.count:
                continue
            for k, value, fresh in zip(places, held, (found.mean[0], found.variance[0]), strict=True):
                assert value is not None and value.name is not None
                known = program.tensor(value.name)
                if k == places[1]:
                    fresh = np.maximum(fresh, _LEAST * known)
                largest = ir.DataType.from_numpy(known.dtype).max  # float16 ends early
                changed[value.name] = np.clip(fresh, -largest, largest).astype(known.dtype)
                constants.put(node, k, changed[value.name], value.name)
    return with_values(program, changed) if changed else None


def restore(grouping: Grouping, model: ir.Model, original: ir.Model) -> None:
    """Give ``model``, made of a matched network, the statistics of ``original``, the same cut of the network itself."""
    nodes, theirs = ({node.outputs[0].name: node for node in one.graph if node.outputs} for one in (model, original))
    constants = Constants(model.graph)
    for name, _, places in _remembered(grouping):
        if name in nodes and name in theirs:
            for k in places:
                value = theirs[name].inputs[k]
                held = None if value is None else constant_tensor(value)
                assert value is not None and value.name is not None and held is not None
                constants.put(nodes[name], k, held.numpy(), value.name)


def _remembered(grouping: Grouping) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """Nodes that hold mean and variance of what they read: first result, axis of the channels, places of the two."""
    program = grouping.coupling.program
    outer = set(program.model.graph)
    for binding in grouping.coupling.bindings:
        line, axes = binding.layout.line, binding.layout.operands
        if line.mean is None or line.variance is None or not binding.live or binding.node not in outer:
            continue
        held = [binding.node.inputs[k] for k in (line.mean, line.variance)]
        if any(one is None or constant_tensor(one) is None or len(list(one.uses())) != 1 for one in held):
            continue
        (channel,) = letters_of(axes[line.mean] or ())
        at = next(i for i, one in enumerate(axes[0] or ()) if channel in letters_of((one,)))
        yield binding.node.outputs[0].name or "", at, (line.mean, line.variance)
