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
from graphprune.coupling.widths import Size, Sizer, product, total
from graphprune.ir.nested import operands

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
        moved: elements of all results and operands of its nodes that are no constants.
        weights: elements of its constants.
        groups: ids of the groups that its sizes depend on, in order of appearance.
    """

    name: str
    nodes: tuple[str, ...]
    operators: tuple[str, ...]
    signature: str
    contractions: tuple[Contraction, ...] = field(repr=False)
    moved: Size = field(repr=False)
    weights: Size = field(repr=False)
    groups: tuple[str, ...]


def layers_of(grouping: Grouping) -> tuple[Layer, ...]:
    """The layers of a network, in the order in which they run."""
    coupling = grouping.coupling
    bindings = {binding.node: binding for binding in coupling.bindings if binding.live}
    member: dict[ir.Node, int] = {}
    parts: list[list[ir.Node]] = []
    for node in coupling.program.live:
        binding = bindings.get(node)
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
    for value in operands(node):
        made = value.producer() if value is not None else None
        if made is not None:
            yield made


def _layer(nodes: list[ir.Node], bindings: Mapping[ir.Node, Binding], sizer: Sizer) -> Layer:
    coupling = sizer.grouping.coupling
    program = coupling.program
    repeats: dict[ir.Graph | None, int] = {body.graph: body.repeats for body in program.bodies.values()}
    contractions: list[Contraction] = []
    moved: list[Size] = []
    weights: list[Size] = []
    words: list[tuple[str, Mapping[str, Size], list[tuple[str, tuple[Size, ...]]]]] = []
    for node in nodes:
        binding = bindings.get(node)
        written: dict[str, Size] = {}
        if binding is not None:
            sizes = {letter: sizer(space) for letter, space in binding.spaces.items()}
            for factors in binding.layout.macs:
                held = [
                    (str(one), Size(((one, ()),)) if isinstance(one, int) else sizes[one])
                    for one in factors
                    if isinstance(one, int) or one in sizes
                ]
                contractions.append(Contraction(node.op_type, tuple(held)))
            for letters, source in binding.layout.line.attributes:
                if all(letter in sizes for letter in letters):
                    written[source.name] = product(sizes[letter] for letter in letters)
        tensors: list[tuple[str, tuple[Size, ...]]] = []
        for k, value in enumerate(node.inputs):
            if value is not None and value.name in program.shapes:
                axes = tuple(sizer(space) for space in coupling.axes(node, k))
                fixed = value.name in program.fixed
                (weights if fixed else moved).append(product(axes))
                tensors.append((f"={_kind(value)}" if fixed else "", axes))
        for value in node.outputs:
            if value.name in program.shapes:
                axes = tuple(sizer(space) for space in coupling.of(value.name))
                moved.append(product(axes))
                tensors.append((f">{_kind(value)}", axes))
        often = repeats.get(node.graph, 1)
        words.append((f"{often}*" * (often > 1) + node.op_type + _attributes(node, written), written, tensors))
    seen = (
        size
        for _, written, tensors in words
        for sizes in (written.values(), *(axes for _, axes in tensors))
        for size in sizes
    )
    groups = tuple(dict.fromkeys(name for size in seen for name in size.groups))
    names = {name: f"w{index}" for index, name in enumerate(groups)}
    text = ";".join(
        word
        + "".join(f",{name}={size.text(names)}" for name, size in sorted(written.items()))
        + "".join(f",{kind}{'x'.join(size.text(names) for size in axes)}" for kind, axes in tensors)
        for word, written, tensors in words
    )
    return Layer(
        nodes[0].name or "",
        tuple(node.name or "" for node in nodes),
        tuple(node.op_type for node in nodes),
        f"{nodes[0].op_type}:{hashlib.sha256(text.encode()).hexdigest()[:16]}",
        tuple(contractions),
        total(moved),
        total(weights),
        groups,
    )


def _kind(value: ir.Value) -> str:
    return "" if value.dtype is None else value.dtype.name


def _attributes(node: ir.Node, written: Mapping[str, Size]) -> str:
    """Attributes that a kernel's time may depend on, without the sizes that a cut writes back."""
    plain = (ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.STRING, ir.AttributeType.FLOAT)
    return (
        "["
        + ",".join(
            f"{name}={one.value}"
            for name, one in sorted(node.attributes.items())
            if one.type in plain and name not in written
        )
        + "]"
    )
