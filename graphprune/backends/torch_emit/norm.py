"""Normalisations."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from graphprune.backends.torch_emit.parameters import held_by, legal, readers
from graphprune.backends.torch_emit.registry import Refuse, emits
from graphprune.backends.torch_emit.types import to_tensor
from graphprune.backends.torch_emit.view import View
from graphprune.backends.torch_ops import elements

_PARTS = ("weight", "bias", "running_mean", "running_var")
_MODULES: Mapping[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@emits("BatchNormalization")
def _batch_norm(v: View) -> Any:
    """A BatchNorm module where the statistics are this node's own, so that it trains and freezes like any other.

    Scale and bias that are not its own (made of constants, shared) are applied behind it.
    """
    epsilon = float(v.attr("epsilon", 1e-5))
    values = v.writer.program.values()
    parts = {part: held_by(values[v.name(k)]).name or "" for k, part in enumerate(_PARTS, 1)}
    if v.attr("training_mode", 0) or v.attr("is_test", 1) == 0:
        made = v.call(elements.batch_norm, *(v.x(k) for k in range(5)), epsilon, True)
        if v.used(1) or v.used(2):
            raise Refuse("it updates its statistics in the network itself (training_mode=1)")
        return v.item(made, 0)
    affine = _own(v, parts.values())
    if not affine:
        parts = {part: parts[part] for part in _PARTS[2:]}
    if v.rank() not in _MODULES or not _own(v, parts.values()):
        if v.used(1) and len(v.node.outputs) > 1:
            raise Refuse("its statistics are read by others")
        return v.item(v.call(elements.batch_norm, *(v.x(k) for k in range(5)), epsilon, False), 0)
    kept = float(v.attr("momentum", 0.9))  # 1 is how PyTorch's exporters write momentum=None, a plain average
    momentum = None if kept == 1 else 1 - kept
    module = _MODULES[v.rank()](v.shape(1)[0], eps=epsilon, momentum=momentum, affine=affine)
    for part, name in parts.items():
        tensor = to_tensor(v.writer.program.tensor(name))
        setattr(module, part, nn.Parameter(tensor) if part in ("weight", "bias") else tensor)
    path = v.writer.module(_path(v, parts), module, parts)
    made = v.writer.graph.call_module(path, (v.x(),))
    return made if affine else _scaled(v, made)


def _scaled(v: View, made: fx.Node) -> fx.Node:
    """Times operand 1 plus operand 2, both (channels,), unless they are ones and zeros that nobody trains."""
    for k, function, neutral in ((1, operator.mul, 1), (2, operator.add, 0)):
        if not v.is_all(k, neutral):
            made = v.call(function, made, v.call(torch.reshape, v.x(k), (-1, *[1] * (v.rank() - 2))))
    return made


def _own(v: View, names: Collection[str]) -> bool:
    """Whether these are constants in the file that nothing else reads, and all operands of one type."""
    program = v.writer.program
    values = program.values()
    return (
        all(program.is_parameter(name) for name in names)
        and all(len(list(readers(values[name]))) == 1 and not values[name].is_graph_output() for name in names)
        and len(set(names)) == len(names)
        and len({v.type(k) for k in range(5)} - {None}) == 1
    )


def _path(v: View, parts: Mapping[str, str]) -> str:
    """The module that the source's own names speak of, else the node's name."""
    known = [v.writer.program.parameter_names.get(name, name) for name in parts.values()]
    prefixes = {name.rpartition(".")[0] for name in known}
    if len(prefixes) == 1 and [name.rpartition(".")[2] for name in known] == list(parts) and "" not in prefixes:
        return prefixes.pop()
    common = known[0].rpartition(".")[0] if len(prefixes) == 1 else ""
    return common or legal(v.node.name or "batch_norm")


@emits("InstanceNormalization")
def _instance_norm(v: View) -> fx.Node:
    return v.call(F.instance_norm, v.x(), weight=v.x(1), bias=v.x(2), eps=float(v.attr("epsilon", 1e-5)))


@emits("LayerNormalization")
def _layer_norm(v: View) -> Any:
    axis, epsilon = v.axis(-1), float(v.attr("epsilon", 1e-5))
    made = normalised(v, F.layer_norm, axis, epsilon, bias=v.maybe(2))
    if not (v.used(1) or v.used(2)):
        return made
    moments = v.call(elements.moments, v.x(), axis, epsilon)
    return made, v.item(moments, 0), v.item(moments, 1)


@emits("RMSNormalization")
def _rms_norm(v: View) -> fx.Node:
    return normalised(v, F.rms_norm, v.axis(-1), float(v.attr("epsilon", 1e-5)))


def normalised(v: View, function: Any, axis: int, epsilon: float, bias: fx.Node | None = None) -> fx.Node:
    """LayerNorm or RMSNorm of operand 0 with weight 1; what is broadcast over the normalised axes is applied after."""
    sizes = [v.size(0, k) for k in range(axis, v.rank())]
    fits = v.shape(1) == v.shape(0)[axis:] and (bias is None or v.shape(2) == v.shape(1))
    scale = {"weight": v.x(1)} | ({} if bias is None else {"bias": bias}) if fits else {}
    made = v.call(function, v.x(), sizes, **scale, eps=epsilon)
    if fits:
        return made
    made = v.call(operator.mul, made, v.x(1))
    return made if bias is None else v.call(operator.add, made, bias)


@emits("GroupNormalization")
def _group_norm(v: View) -> fx.Node:
    groups, channels = int(v.attr("num_groups")), v.shape(0)[1]
    weight, bias = v.x(1), v.x(2)
    if v.shape(1)[0] != channels or (v.opset < 21 and groups != channels):  # one per group
        weight = v.call(torch.repeat_interleave, weight, channels // groups)
        bias = v.call(torch.repeat_interleave, bias, channels // groups)
    return v.call(F.group_norm, v.x(), groups, weight, bias, float(v.attr("epsilon", 1e-5)))


@emits("LRN")
def _lrn(v: View) -> fx.Node:
    size = int(v.attr("size"))
    alpha, beta, bias = float(v.attr("alpha", 1e-4)), float(v.attr("beta", 0.75)), float(v.attr("bias", 1.0))
    function: Any = F.local_response_norm if size % 2 else elements.even_local_response_norm
    return v.call(function, v.x(), size, alpha, beta, bias)


@emits("LpNormalization")
def _lp_normalization(v: View) -> fx.Node:
    return v.call(F.normalize, v.x(), p=float(v.attr("p", 2)), dim=v.axis(-1), eps=1e-38)  # of zeros: zeros


@emits("MeanVarianceNormalization")
def _mean_variance(v: View) -> fx.Node:
    axes = [int(n) for n in v.attr("axes") or (0, 2, 3)]
    mean = v.call(torch.mean, v.x(), dim=axes, keepdim=True)
    spread = v.call(torch.std, v.x(), dim=axes, keepdim=True, correction=0)
    return v.call(operator.truediv, v.call(operator.sub, v.x(), mean), v.call(operator.add, spread, 1e-9))
