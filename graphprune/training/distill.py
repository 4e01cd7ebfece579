"""Distillation: how far a network is from the original one, on its outputs and on chosen inner values."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from graphprune.backends.runner import OrtRunner
from graphprune.backends.torch import to_torch
from graphprune.backends.torch_emit.parameters import legal
from graphprune.calibration.linear import linears_of
from graphprune.calibration.losses import distance, kind_of
from graphprune.errors import InputError, UsageError
from graphprune.ir.program import Array, Program, with_outputs

if TYPE_CHECKING:
    from graphprune.pipeline import Network

__all__ = ["AUTO", "Student", "Teacher", "consumers"]

Feeds = Mapping[str, Array]
AUTO = "auto"  # instead of the names of inner values
_MEMORY = 1 << 28  # bytes of the original's outputs that are kept instead of computed again


def consumers(network: Network, original: Network) -> tuple[str, ...]:
    """Values behind the linear maps that lost columns in the network, which it still has in the original's shape.

    There the signal of what was cut arrives again in what was not. Each is taken behind what follows with constants
    alone (a bias, a BatchNorm, an activation), since repair may have moved the map's mean into them.
    """
    here, there = network.program, original.program
    linears = linears_of(original.grouping)
    maps = {one.name for one in linears}
    emitted = {node.name for node in to_torch(here).graph.nodes}
    found: dict[str, None] = {}
    for one in linears:
        if one.weight in here.shapes and here.shapes[one.weight] != there.shapes[one.weight]:
            name = _behind(there, one.name, maps)
            if here.shapes.get(name) == there.shapes[name] and legal(name) in emitted:
                found[name] = None
    return tuple(found)


def _behind(program: Program, name: str, maps: Collection[str]) -> str:
    """The last of the values that are made of this one and constants, one after another, before the next map."""
    while True:
        uses = list(program.values()[name].uses())
        if len(uses) != 1 or len(uses[0].node.outputs) != 1:
            return name
        others = [one for one in uses[0].node.inputs if one is not None and one.name != name]
        (made,) = uses[0].node.outputs
        if made.name is None or made.name in maps or any(one.name not in program.fixed for one in others):
            return name
        if program.shapes.get(made.name) != program.shapes[name]:
            return name
        name = made.name


class Teacher:
    """The original network: its float outputs and some inner values, on ONNX Runtime."""

    def __init__(self, program: Program, features: Sequence[str] = ()) -> None:
        known = program.values()
        for name in features:
            if name not in known:
                raise UsageError(f"the original network has no value '{name}' to distil from")
        outputs = [value.name or "" for value in program.model.graph.outputs]
        self.program, self.features = program, tuple(features)
        self.names = (*outputs, *(name for name in features if name not in outputs))
        self.model = with_outputs(program.model, [name for name in self.names if name not in outputs])
        self.run = OrtRunner(optimize=True)
        self._held: dict[int, dict[str, Tensor]] = {}
        self._room = _MEMORY

    def __call__(self, feeds: Feeds, key: int | None = None) -> dict[str, Tensor]:
        """What it gives for a sample; ``key`` says which one it is, so that it need not be computed twice."""
        if key is not None and key in self._held:
            return self._held[key]
        made = self.run(self.model, dict(feeds), list(self.names))
        found = {name: torch.from_numpy(np.array(one)) for name, one in made.items() if one.dtype.kind == "f"}
        need = sum(one.nbytes for one in found.values())
        if key is not None and need <= self._room:
            self._held[key], self._room = found, self._room - need
        return found


class Student:
    """A module of ``to_torch`` that also gives some inner values, and its distance from the original."""

    def __init__(self, module: fx.GraphModule, teacher: Teacher, temperature: float, feature_weight: float) -> None:
        self.module, self.teacher = module, teacher
        self.temperature, self.feature_weight = temperature, feature_weight
        named: Any = module.meta
        self.inputs, self.outputs = tuple(named["inputs"]), tuple(named["outputs"])
        self.features = tuple(name for name in teacher.features if name not in self.outputs)
        kinds = {one.dtype for one in module.parameters()}
        self.floats = torch.float32 if kinds == {torch.float32} else None  # float16 networks may be trained in it
        self.wide = _with_values(module, self.features) if self.features else module

    def __call__(self, feeds: Feeds, overrides: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Outputs and inner values by name. ``overrides``: other tensors in the place of parameters."""
        place = next(self.module.parameters()).device
        tensors = (torch.as_tensor(np.asarray(feeds[name])) for name in self.inputs)
        given = tuple(one.to(place, self.floats if one.dtype == torch.float16 else None) for one in tensors)
        made = torch.func.functional_call(self.wide, dict(overrides or {}), given)
        return dict(zip((*self.outputs, *self.features), made if isinstance(made, tuple) else (made,), strict=True))

    def distance(self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
        """Of all float outputs, and of the inner values times ``feature_weight``."""
        parts = []
        moving = self.teacher.program.moving
        for name, one in wanted.items():
            have = found[name]
            if have.shape != one.shape:
                raise InputError(
                    f"'{name}' has the shape {list(have.shape)} here and {list(one.shape)} in the original; distil "
                    "from values that the cut leaves whole"
                )
            inner = name in self.features
            kind = "values" if inner else kind_of(one.numpy(), moving.get(name, frozenset()))
            apart = distance(kind, have, one.to(have.device), self.temperature)
            parts.append(self.feature_weight * apart if inner else apart)
        if not parts:
            raise InputError("the original has no float output to distil from")
        return torch.stack(parts).sum()


def _with_values(module: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """A module on the same parameters that gives some inner values as well."""
    graph = copy.deepcopy(module.graph)
    nodes = {node.name: node for node in graph.nodes}
    missing = [name for name in names if legal(name) not in nodes]
    if missing:
        raise UsageError(f"the network computes no '{missing[0]}' any more, or within another operation")
    output = next(node for node in graph.nodes if node.op == "output")
    made = output.args[0] if isinstance(output.args[0], (tuple, list)) else (output.args[0],)
    output.args = ((*made, *(nodes[legal(name)] for name in names)),)
    return fx.GraphModule(module, graph)
