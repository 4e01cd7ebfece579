"""Which constants are trained, and what they are called in the module."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from graphprune.ir.nested import walk
from graphprune.ir.program import Program, constant_tensor, inputs_of

__all__ = ["Names", "held_by", "legal", "readers", "trainable", "trained"]

_KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
_ELEMENTWISE = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Clip", "Where", "Mod", "Sum", "Mean", "Less", "Greater"),
        *("LessOrEqual", "GreaterOrEqual", "Equal", "Range", "Expand", "ConstantOfShape", "Concat", "Cast"),
        *("Unsqueeze", "Squeeze", "Reshape", "Tile", "Resize", "Upsample", "Pad", "OneHot", "Dropout"),
    )
)
#: Operands that are statistics or settings, never trained.
_SETTINGS = {
    "BatchNormalization": (3, 4),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "Resize": (1, 2),
    "Upsample": (1,),
    "Pad": (2,),
    "OneHot": (2,),
    "Clip": (1, 2),
    "Dropout": (1, 2),
}


def trainable(program: Program, types: Mapping[str, ir.DataType]) -> set[str]:
    """Names of the constants that are weights.

    A module's own say so (``torch.export`` notes parameter or buffer). Of others, floats that are finite and hold more
    than one number, or one that is not stretched over several elements, and that no operator reads as a setting.
    """
    found = set()
    inputs = {value.name for value in inputs_of(program.model)}
    for name, value in program.values().items():
        held = constant_tensor(value)
        if held is None or not types[name].is_floating_point() or name in inputs:
            continue
        kind = value.metadata_props.get(_KIND)
        settings = [k in _SETTINGS.get(node.op_type, ()) for node, k in readers(value)]
        if any(settings) or (kind is not None and kind != "PARAMETER"):
            continue
        if kind is not None or (not _is_number(program, value) and bool(np.isfinite(held.numpy()).all())):
            found.add(name)
    return found


def readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Nodes that read a value and the operand that it is, where it goes through Identity those that read that."""
    for node, k in value.uses():
        if node.op_type == "Identity" and node.domain in ("", "ai.onnx"):
            yield from readers(node.outputs[0])
        else:
            yield node, k


def held_by(value: ir.Value) -> ir.Value:
    """The value that Identity nodes hand on."""
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _is_number(program: Program, value: ir.Value) -> bool:
    """Whether a constant is one number that stands for all elements of what it is combined with."""
    shape = program.shapes.get(value.name or "", ())
    if np.prod(shape) != 1:
        return False
    uses = list(readers(value))
    if not shape:
        return all(node.op_type in _ELEMENTWISE for node, _ in uses)
    results = [program.shapes.get(node.outputs[0].name or "", ()) for node, _ in uses if node.op_type in _ELEMENTWISE]
    if any(tuple(one[-len(shape) :]) != tuple(shape) for one in results):
        return True
    return any(node.op_type == "Cast" and _is_number(program, node.outputs[0]) for node, _ in uses)


def trained(program: Program, weights: Iterable[str], types: Mapping[str, ir.DataType]) -> set[str]:
    """Names of the floats that are computed from weights, the weights among them."""
    found = set(weights)
    for node in walk(program.model.graph):
        if any(value is not None and value.name in found for value in node.inputs):
            for value in node.outputs:
                kind = types.get(value.name or "")
                if value.name and (kind is None or kind.is_floating_point()):
                    found.add(value.name)
    return found


def legal(name: str) -> str:
    """A Python name like this one."""
    made = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "value"
    return f"_{made}" if made[0].isdigit() or keyword.iskeyword(made) else made


class Names:
    """Names of parameters, buffers and submodules: none taken twice, none that a module already has."""

    def __init__(self) -> None:
        self._leaves: set[str] = set()
        self._inner: set[str] = {""}

    def take(self, wanted: str) -> str:
        """A free dotted path like the one wanted; it is from now on taken."""
        parts = [self._part(part) for part in wanted.split(".")]
        path = ".".join(parts)
        while path in self._leaves | self._inner or any(
            ".".join(parts[:k]) in self._leaves for k in range(1, len(parts))
        ):
            clash = next((k for k in range(1, len(parts)) if ".".join(parts[:k]) in self._leaves), len(parts))
            parts[clash - 1] += "_"
            path = ".".join(parts)
        self._leaves.add(path)
        self._inner.update(".".join(parts[:k]) for k in range(1, len(parts)))
        return path

    def _part(self, part: str) -> str:
        from torch import nn

        made = re.sub(r"\W+", "_", part, flags=re.ASCII).strip("_") or "value"
        taken = hasattr(nn.Module(), made) or made in ("graph", "code", "meta") or keyword.iskeyword(made)
        return f"{made}_" if taken else made
