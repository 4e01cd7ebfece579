"""What a network's time is made of: layers, whose work is a polynomial of the groups' kept units.

A *layer* is a contraction together with the elementwise, normalising and moving nodes that follow it, because these
are what runtimes fuse into it. Its *signature* says all that its time depends on but the widths: operators,
attributes, fixed sizes, element types, and how the widths enter. Layers of one signature share a step curve, within a
network and between networks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from graphprune.coupling.groups import Grouping
from graphprune.coupling.solve import Binding
from graphprune.coupling.widths import Size, Sizer

__all__ = ["Contraction", "Layer", "layers_of"]


@dataclass(frozen=True)
class Contraction:
    """Multiply-accumulates of one node: ``operator``, and the product of the sizes of its letters."""

    operator: str
    factors: tuple[tuple[str, Size], ...]


@dataclass(frozen=True)
class Layer:
    """A part of the network that is timed as one.

    Attributes:
        name: of its first node.
        nodes: names of all its nodes, in order; ``operators`` are what they are.
        signature: equal for layers that take equally long at equal widths.
        contractions: its multiply-accumulates.
        moved: per result and operand of its nodes that is no constant, the sizes of the axes.
        weights: the same of its constants.
        groups: ids of the groups that its sizes depend on, in order of appearance.
    """

    name: str
    nodes: tuple[str, ...]
    operators: tuple[str, ...]
    signature: str
    contractions: tuple[Contraction, ...] = field(repr=False)
    moved: tuple[tuple[Size, ...], ...] = field(repr=False)
    weights: tuple[tuple[Size, ...], ...] = field(repr=False)
    groups: tuple[str, ...]


def layers_of(grouping: Grouping) -> tuple[Layer, ...]:
    """The layers of a network, in the order in which they run."""
    coupling = grouping.coupling
    bindings = {binding.node.outputs[0].name: binding for binding in coupling.bindings if binding.live}
    member: dict[ir.Node, int] = {}
    parts: list[list[ir.Node]] = []
    for node in coupling.program.live:
        binding = bindings.get(node.outputs[0].name)
        before = [member[made] for made in _producers(node) if made in member]
        if before and not (binding is not None and binding.layout.macs):
            member[node] = max(before)
        else:
            member[node] = len(parts)
            parts.append([])
        parts[member[node]].append(node)
    sizer = Sizer(grouping)
    return tuple(_layer(nodes, bindings, sizer) for nodes in parts)


def _producers(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        made = value.producer() if value is not None else None
        if made is not None:
            yield made


def _layer(nodes: list[ir.Node], bindings: Mapping[str | None, Binding], sizer: Sizer) -> Layer:
    coupling = sizer.grouping.coupling
    program = coupling.program
    contractions: list[Contraction] = []
    moved: list[tuple[Size, ...]] = []
    weights: list[tuple[Size, ...]] = []
    words: list[tuple[str, list[tuple[Size, ...]]]] = []
    for node in nodes:
        binding = bindings.get(node.outputs[0].name)
        if binding is not None:
            for factors in binding.layout.macs:
                sizes = [
                    (str(one), Size(((one, ()),)) if isinstance(one, int) else sizer(binding.spaces[one]))
                    for one in factors
                    if isinstance(one, int) or one in binding.spaces
                ]
                contractions.append(Contraction(node.op_type, tuple(sizes)))
        operands: list[tuple[Size, ...]] = []
        for k, value in enumerate(node.inputs):
            if value is None or value.name is None or value.name not in program.shapes:
                continue
            axes = tuple(sizer(space) for space in coupling.axes(node, k))
            operands.append(axes)
            (weights if value.name in program.fixed else moved).append(axes)
        for value in node.outputs:
            if value.name in program.shapes:
                axes = tuple(sizer(space) for space in coupling.of(value.name))
                operands.append(axes)
                moved.append(axes)
        kind = next((value.dtype.name for value in node.outputs if value.dtype is not None), "")
        words.append((f"{node.op_type}{_attributes(node)}{kind}", operands))
    groups = tuple(dict.fromkeys(name for _, operands in words for axes in operands for s in axes for name in s.groups))
    names = {name: f"w{index}" for index, name in enumerate(groups)}
    text = ";".join(
        f"{word}({','.join('x'.join(size.text(names) for size in axes) for axes in operands)})"
        for word, operands in words
    )
    return Layer(
        nodes[0].name or "",
        tuple(node.name or "" for node in nodes),
        tuple(node.op_type for node in nodes),
        f"{words[0][0].split('[')[0]}:{hashlib.sha256(text.encode()).hexdigest()[:16]}",
        tuple(contractions),
        tuple(moved),
        tuple(weights),
        groups,
    )


def _attributes(node: ir.Node) -> str:
    """Attributes that a kernel's time may depend on; sizes that a cut writes back are said by the operands."""
    plain = (ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.STRING, ir.AttributeType.FLOAT)
    return (
        "["
        + ",".join(f"{name}={one.value}" for name, one in sorted(node.attributes.items()) if one.type in plain)
        + "]"
    )
