"""Sizes written back: operands that hold sizes, bounds or positions of axes that were cut.

Every writer sees masks of kept indices only. Entries that follow a symbolic dimension stay computed; all others become
constants. Readers of sizes that remain (``Shape`` of a cut value) are made to give the original sizes, so that
whatever is computed from them, a Reshape target or ``sqrt(d)``, means what it meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.errors import GraphpruneError
from graphprune.ir.program import Array, Program, all_values, attribute, constant_tensor

__all__ = ["Constants", "SizeWriter", "freeze_readers", "rewrite"]

Mask = NDArray[np.bool_]
_ENDLESS = np.iinfo(np.int64).max


@dataclass
class Constants:
    """Makes constants in a graph, one for each distinct content."""

    graph: ir.Graph
    made: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.taken |= set(all_values(self.graph))

    def get(self, array: Array, name: str) -> ir.Value:
        """An initialiser of this content, named ``name`` or like it where a new one is needed."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.made:
            self.made[key] = self.add(ir.tensor(np.asarray(array, order="C")), name)
        return self.made[key]

    def unique(self, name: str) -> str:
        """``name``, or like it where a value has that name, as in a network that was cut before."""
        unique, i = name, 1
        while unique in self.taken:
            unique, i = f"{name}.{i}", i + 1
        self.taken.add(unique)
        return unique

    def add(self, tensor: ir.TensorProtocol, name: str, graph: ir.Graph | None = None) -> ir.Value:
        """A new initialiser, of the body ``graph`` where one is named."""
        tensor.name = unique = self.unique(name)
        value = ir.Value(
            name=unique, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        (self.graph if graph is None else graph).register_initializer(value)
        return value

    def put(self, node: ir.Node, k: int, array: Array, name: str, dtype: ir.DataType | None = None) -> None:
        """A new constant in the place of operand ``k``; the old one's name where nothing else reads it.

        Of that operand's declared type, or that of the constant it is, where no ``dtype`` is given; float32 in doubt.
        """
        old = node.inputs[k]
        held = None if old is None else constant_tensor(old)
        dtype = dtype or (None if old is None else old.dtype) or (ir.DataType.FLOAT if held is None else held.dtype)
        fresh = self.add(ir.tensor(np.ascontiguousarray(array).astype(dtype.numpy()), dtype=dtype), name)
        node.replace_input_with(k, fresh)
        if old is not None and old.is_initializer() and not old.uses() and not old.is_graph_output():
            graph = old.graph
            if graph is not None and old.name is not None and old not in graph.inputs:
                del graph.initializers[old.name]
                fresh.name = old.name


class Masks(Protocol):
    """Kept indices of an axis of operand or result ``k`` of the node at hand."""

    def __call__(self, kind: str, k: int, axis: int) -> Mask: ...


@dataclass(frozen=True)
class SizeWriter:
    """What a writer may use: the node and its original, the observations, the masks of the operands and results."""

    node: ir.Node
    original: ir.Node
    program: Program
    masks: Masks
    constants: Constants

    def before(self, axis: int) -> Mask:
        """Kept indices of an axis of the first operand."""
        return self.masks("operand", 0, axis)

    def after(self, axis: int, k: int = 0) -> Mask:
        """Kept indices of an axis of result ``k``."""
        return self.masks("result", k, axis)

    @property
    def shape(self) -> tuple[int, ...]:
        """The observed original shape of the first operand."""
        value = self.original.inputs[0]
        return self.program.shapes[value.name or ""] if value is not None else ()

    @property
    def result_shape(self) -> tuple[int, ...]:
        """The observed original shape of the first result."""
        return self.program.shapes[self.original.outputs[0].name or ""]

    def held(self, k: int) -> Array | None:
        """The original contents of operand ``k``, ``None`` where it is absent or computed from data."""
        value = self.original.inputs[k] if k < len(self.original.inputs) else None
        if value is None or value.name is None:
            return None
        if value.name in self.program.small:
            return self.program.small[value.name]
        return self.program.tensor(value.name) if value.name in self.program.fixed else None

    def put(self, k: int, entries: Mapping[int, int]) -> None:
        """Change entries of the integer vector that operand ``k`` is."""
        held, value = self.held(k), self.node.inputs[k]
        assert value is not None
        if held is None:
            raise GraphpruneError(
                f"{self.node.op_type} {self.node.name!r}: operand {k} holds sizes that are computed from data"
            )
        changed = held.copy()
        flat = changed.reshape(-1)
        for i, n in entries.items():
            flat[i] = n
        if np.array_equal(changed, held):
            return
        name = self.original.inputs[k].name or ""  # type: ignore[union-attr]
        moving = self.program.moving_entries.get(name, frozenset()) - set(entries)
        name = f"{self.node.name}/sizes"
        if not moving:
            self.node.replace_input_with(k, self.constants.get(changed, name))
            return
        follows = np.isin(np.arange(flat.size), list(moving)).reshape(held.shape)
        pick = ir.node(
            "Where",
            inputs=[self.constants.get(follows, f"{name}_follow"), value, self.constants.get(changed, name)],
        )
        pick.outputs[0].name = pick.name = self.constants.unique(f"{name}_{k}")
        pick.outputs[0].dtype, pick.outputs[0].shape = ir.DataType(value.dtype or ir.DataType.INT64), value.shape
        assert self.node.graph is not None
        self.node.graph.insert_before(self.node, pick)
        self.node.replace_input_with(k, pick.outputs[0])


def rewrite(writer: SizeWriter) -> None:
    """Write the sizes of one node back, where its operator holds any."""
    domain = "" if writer.node.domain == "ai.onnx" else writer.node.domain
    if (write := _WRITERS.get((domain, writer.node.op_type))) is not None:
        write(writer)


def freeze_readers(program: Program, graph: ir.Graph, constants: Constants, mask: Callable[[str, int], Mask]) -> None:
    """Let every remaining ``Shape`` of a cut value give the sizes that the value had."""
    for node in list(graph.all_nodes()):
        if node.op_type != "Shape" or node.domain not in ("", "ai.onnx"):
            continue
        source, result = node.inputs[0], node.outputs[0]
        name = result.name or ""
        if source is None or name not in program.small:
            continue
        if all(mask(source.name or "", axis).all() for axis in range(len(program.shapes[source.name or ""]))):
            continue
        sizes = program.small[name]
        follows = np.isin(np.arange(len(sizes)), list(program.moving_entries.get(name, ())))
        held = constants.get(sizes, f"{node.name}/sizes")
        if not follows.any() and not result.is_graph_output():
            result.replace_all_uses_with(held)
            continue
        mixed = [constants.get(follows, f"{node.name}/follow"), result, held]
        pick = ir.node("Where", inputs=mixed) if follows.any() else ir.node("Identity", [held])
        original = pick.outputs[0]
        original.name = pick.name = constants.unique(f"{name}/original")
        original.dtype, original.shape = ir.DataType.INT64, result.shape
        output = result.is_graph_output()
        users = [(user, k) for user, k in result.uses() if user is not pick]
        home = node.graph
        assert home is not None
        home.insert_after(node, pick)
        for user, k in users:
            user.replace_input_with(k, original)
        if output:
            home.outputs[[value is result for value in home.outputs].index(True)] = original
            result.name, original.name = constants.unique(f"{name}/cut"), name


def _result_sizes(writer: SizeWriter) -> dict[int, int]:
    """New sizes of the result's axes that were cut."""
    shape = writer.result_shape
    masks = {axis: writer.after(axis) for axis in range(len(shape))}
    return {axis: int(mask.sum()) for axis, mask in masks.items() if not mask.all()}


def _reshape(writer: SizeWriter) -> None:
    target = writer.held(1)
    if target is None:
        return
    moving = writer.program.moving.get(writer.node.outputs[0].name or "", frozenset())
    inferred = -1 in target
    copies = not attribute(writer.node, "allowzero", 0)
    entries: dict[int, int] = {}
    for axis, n in _result_sizes(writer).items():
        if target[axis] == 0 and copies and int(writer.before(axis).sum()) == n:
            continue
        if target[axis] == -1 and len(moving - {axis}) == len(moving):
            entries[axis] = n if not moving else -1
        elif axis in moving:
            entries[axis] = -1
        else:
            entries[axis] = n
    if inferred and any(target[axis] != -1 and n == -1 for axis, n in entries.items()):
        entries.update(
            {axis: writer.result_shape[axis] for axis, n in enumerate(target) if n == -1 and axis not in entries}
        )
    writer.put(1, entries)


def _squeeze(writer: SizeWriter) -> None:
    """Without axes every axis of one index goes, and so would one that is cut down to one index."""
    if attribute(writer.node, "axes") is not None or writer.held(1) is not None:
        return
    sizes = [int(writer.before(axis).sum()) for axis in range(len(writer.shape))]
    single = [axis for axis, n in enumerate(writer.shape) if n == 1]
    if sizes.count(1) > len(single):
        _write_vector(writer, "axes", 1, single, since=13)


def _write_vector(writer: SizeWriter, name: str, k: int, values: list[int], since: int) -> None:
    """State a vector that a node left out: an operand ``since`` that opset, an attribute before."""
    node = writer.node
    opset = (node.graph.opset_imports if node.graph is not None else {}).get("", since)
    if opset < since:
        node.attributes[name] = ir.AttrInt64s(name, values)
        return
    if len(node.inputs) <= k:
        node.resize_inputs(k + 1)
    node.replace_input_with(k, writer.constants.get(np.array(values, dtype=np.int64), f"{node.name}/{name}"))


def _expand(writer: SizeWriter) -> None:
    held = writer.held(1)
    if held is None:
        return
    shift = len(writer.result_shape) - len(held)
    writer.put(1, {a - shift: n for a, n in _result_sizes(writer).items() if a >= shift and held[a - shift] != 1})


def _tile(writer: SizeWriter) -> None:
    sizes = _result_sizes(writer)
    writer.put(1, {axis: n // int(writer.before(axis).sum()) for axis, n in sizes.items()})


def _constant_of_shape(writer: SizeWriter) -> None:
    writer.put(0, _result_sizes(writer))


def _resize(writer: SizeWriter) -> None:
    sizes = writer.held(3)
    if sizes is not None and sizes.size:
        axes = attribute(writer.node, "axes") or range(len(sizes))
        new = _result_sizes(writer)
        writer.put(3, {i: new[int(a)] for i, a in enumerate(axes) if int(a) in new})


def _split(writer: SizeWriter) -> None:
    rank = len(writer.shape)
    axis = int(attribute(writer.node, "axis", 0)) % rank
    masks = [writer.after(axis, k) for k in range(len(writer.node.outputs))]
    if all(mask.all() for mask in masks):
        return
    sizes = [int(mask.sum()) for mask in masks]
    if attribute(writer.node, "split") is not None:
        writer.node.attributes["split"] = ir.AttrInt64s("split", sizes)
        return
    writer.node.attributes.pop("num_outputs", None)
    _write_vector(writer, "split", 1, sizes, since=13)


def _bounds(writer: SizeWriter, name: str, k: int) -> Array | None:
    held = attribute(writer.node, name)
    return np.array(held, dtype=np.int64) if held is not None else writer.held(k)


def _slice(writer: SizeWriter) -> None:
    shape = writer.shape
    starts, ends = _bounds(writer, "starts", 1), _bounds(writer, "ends", 2)
    axes, steps = _bounds(writer, "axes", 3), writer.held(4)
    if starts is None or ends is None:
        return
    new: tuple[dict[int, int], dict[int, int]] = ({}, {})
    for i in range(len(starts)):
        axis = int(axes[i]) % len(shape) if axes is not None else i
        kept = writer.before(axis)
        if kept.all():
            continue
        step = int(steps[i]) if steps is not None else 1
        chosen = np.arange(shape[axis])[
            int(starts[i]) if abs(int(starts[i])) <= shape[axis] else None : _stop(
                int(ends[i]), shape[axis], step
            ) : step
        ]
        place = np.cumsum(kept) - 1
        left = place[chosen[kept[chosen]]]
        if not len(left):
            new[0][i] = new[1][i] = 0
            continue
        begin = int(left[0])
        end = int(left[-1]) + (1 if step > 0 else -1)
        if len(left) > 1 and not np.array_equal(left, np.arange(begin, int(left[-1]) + np.sign(step), step)):
            raise GraphpruneError(f"Slice {writer.node.name!r}: the kept indices of axis {axis} are not evenly spaced")
        new[0][i] = begin
        new[1][i] = -_ENDLESS if end < 0 else end
    if not new[0]:
        return
    if attribute(writer.node, "starts") is not None:
        for name, held, entries in (("starts", starts, new[0]), ("ends", ends, new[1])):
            values = [entries.get(i, int(n)) for i, n in enumerate(held)]
            writer.node.attributes[name] = ir.AttrInt64s(name, values)
        return
    writer.put(1, new[0])
    writer.put(2, new[1])


def _stop(end: int, n: int, step: int) -> int | None:
    if step < 0:
        return None if end < -n else end
    return None if end > n else end


def _gather(writer: SizeWriter) -> None:
    shape = writer.shape
    axis = int(attribute(writer.node, "axis", 0)) % len(shape)
    kept = writer.before(axis)
    if kept.all():
        return
    held = writer.held(1)
    if held is None or held.ndim != 1:
        raise GraphpruneError(f"Gather {writer.node.name!r}: axis {axis} was cut under computed indices")
    chosen = held % shape[axis]
    left = (np.cumsum(kept) - 1)[chosen[kept[chosen]]].astype(held.dtype)
    writer.node.replace_input_with(1, writer.constants.get(left, f"{writer.node.name}/indices"))


def _pad(writer: SizeWriter) -> None:
    shape = writer.shape
    held = _bounds(writer, "pads", 1)
    if held is None:
        return
    axes = writer.held(3)
    chosen = [int(a) % len(shape) for a in (axes if axes is not None else range(len(shape)))]
    entries: dict[int, int] = {}
    for i, axis in enumerate(chosen):
        kept = writer.after(axis)
        if not kept.all():
            begin, end = int(held[i]), int(held[i + len(chosen)])
            entries[i] = int(kept[:begin].sum())
            entries[i + len(chosen)] = int(kept[len(kept) - end :].sum())
    if attribute(writer.node, "pads") is not None:
        values = [entries.get(i, int(n)) for i, n in enumerate(held)]
        writer.node.attributes["pads"] = ir.AttrInt64s("pads", values)
    elif entries:
        writer.put(1, entries)


def _keep_scale(writer: SizeWriter, before: int, after: int) -> None:
    """Attention divides by the square root of the head size unless told otherwise: tell it the original's."""
    if before != after and not attribute(writer.node, "scale", 0.0):
        writer.node.attributes["scale"] = ir.AttrFloat32("scale", float(1.0 / np.sqrt(before)))


def _attention(writer: SizeWriter) -> None:
    axis = len(writer.shape) - 1
    before, after = writer.shape[axis], int(writer.before(axis).sum())
    name = "q_num_heads" if writer.node.domain in ("", "ai.onnx") else "num_heads"
    if axis == 2:  # heads and their dimensions on one axis
        before //= int(attribute(writer.original, name))
        after //= int(attribute(writer.node, name))
    _keep_scale(writer, before, after)


def _packed_attention(writer: SizeWriter) -> None:
    kept = writer.masks("operand", 1, 1)
    sizes = attribute(writer.original, "qkv_hidden_sizes") or [len(kept) // 3] * 3
    parts = np.split(kept, np.cumsum(sizes)[:2])
    left = [int(part.sum()) for part in parts]
    if len(set(left)) > 1 or attribute(writer.original, "qkv_hidden_sizes"):
        writer.node.attributes["qkv_hidden_sizes"] = ir.AttrInt64s("qkv_hidden_sizes", left)
    heads, left_heads = (int(attribute(node, "num_heads")) for node in (writer.original, writer.node))
    _keep_scale(writer, len(parts[0]) // heads, left[0] // left_heads)


def _experts(writer: SizeWriter) -> None:
    """The kernels refuse to choose more experts than there are; all of them are what the best of so few are."""
    left = int(writer.masks("operand", 1, 1).sum())
    if left < int(attribute(writer.node, "k", 1)):
        writer.node.attributes["k"] = ir.AttrInt64("k", left)


_MS = "com.microsoft"
_WRITERS: dict[tuple[str, str], Callable[[SizeWriter], None]] = {
    ("", "Attention"): _attention,
    (_MS, "Attention"): _packed_attention,
    (_MS, "MoE"): _experts,
    (_MS, "MultiHeadAttention"): _attention,
    (_MS, "QAttention"): _packed_attention,
    ("", "ConstantOfShape"): _constant_of_shape,
    ("", "Expand"): _expand,
    ("", "Gather"): _gather,
    ("", "Pad"): _pad,
    ("", "Reshape"): _reshape,
    ("", "Resize"): _resize,
    ("", "Slice"): _slice,
    ("", "Split"): _split,
    ("", "Squeeze"): _squeeze,
    ("", "Tile"): _tile,
}
