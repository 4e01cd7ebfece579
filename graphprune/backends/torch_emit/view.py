"""What an emitter sees of a node, and how it adds calls to the module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from graphprune.backends.torch_emit.registry import Refuse, Sizes
from graphprune.backends.torch_emit.types import torch_type
from graphprune.ir.program import Array, attribute

if TYPE_CHECKING:
    from torch import fx

    from graphprune.backends.torch_emit.writer import Writer

__all__ = ["View"]


class View:
    """One node: operands as tensors, numbers, sizes or constants, by their position; ``call`` adds to the module."""

    def __init__(self, writer: Writer, node: ir.Node) -> None:
        self.writer = writer
        self.node = node

    # --- The node ---------------------------------------------------------------------------------------------------

    @property
    def op(self) -> str:
        """The operator's name."""
        return self.node.op_type

    @property
    def opset(self) -> int:
        """The opset of the node's domain."""
        return self.writer.opsets.get(self.node.domain, self.writer.opsets.get("", 1))

    @property
    def count(self) -> int:
        """The number of operands."""
        return len(self.node.inputs)

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute's plain value, or ``default``."""
        return attribute(self.node, name, default)

    def has(self, k: int) -> bool:
        """Whether an operand is given."""
        return k < len(self.node.inputs) and self.node.inputs[k] is not None

    def name(self, k: int) -> str:
        """Name of an operand."""
        value = self.node.inputs[k]
        assert value is not None and value.name is not None
        return value.name

    def used(self, k: int) -> bool:
        """Whether an output is read by anybody."""
        if k >= len(self.node.outputs):
            return False
        value = self.node.outputs[k]
        return bool(value.name) and (bool(value.uses()) or value.is_graph_output())

    def shape(self, k: int) -> tuple[int, ...]:
        """Observed shape of an operand."""
        return self.writer.shape(self.name(k))

    def rank(self, k: int = 0) -> int:
        """Number of axes of an operand."""
        return len(self.shape(k))

    def out_shape(self, k: int = 0) -> tuple[int, ...]:
        """Observed shape of a result."""
        return self.writer.shape(self.node.outputs[k].name or "")

    def moves(self, k: int, axis: int) -> bool:
        """Whether the size of an operand's axis follows the inputs' sizes."""
        return axis % max(self.rank(k), 1) in self.writer.program.moving.get(self.name(k), ())

    def out_moves(self, axis: int, k: int = 0) -> bool:
        """Whether the size of a result's axis follows the inputs' sizes."""
        return axis in self.writer.program.moving.get(self.node.outputs[k].name or "", ())

    def type(self, k: int) -> ir.DataType | None:
        """Element type of an operand, where it is known."""
        return self.writer.types.get(self.name(k))

    def is_float(self, k: int = 0) -> bool:
        """Whether an operand holds floats (or nobody knows)."""
        kind = self.type(k)
        return kind is None or kind.is_floating_point()

    def axis(self, default: int = 0, name: str = "axis", rank: int | None = None) -> int:
        """An axis attribute, counted from the front."""
        return int(self.attr(name, default)) % max(self.rank(0) if rank is None else rank, 1)

    # --- Operands ---------------------------------------------------------------------------------------------------

    def x(self, k: int = 0) -> fx.Node:
        """An operand as a tensor."""
        return self.writer.tensor(self.name(k))

    def maybe(self, k: int) -> fx.Node | None:
        """An operand as a tensor, ``None`` where it is left out."""
        return self.x(k) if self.has(k) else None

    def arg(self, k: int) -> Any:
        """An operand as a Python number where it is one that nobody trains, else as a tensor."""
        return self.writer.number_or_tensor(self.name(k), self.rank(k))

    def const(self, k: int) -> Array | None:
        """Contents of an operand that is fixed; ``None`` where it is not, or is left out."""
        return self.writer.constant(self.name(k)) if self.has(k) else None

    def is_all(self, k: int, number: float) -> bool:
        """Whether an operand is one number throughout, perhaps a stretched one, that nobody trains."""
        value = self.node.inputs[k]
        node = None if value is None else value.producer()
        source = node.inputs[0] if node is not None and node.op_type == "Expand" else value
        name = "" if source is None else source.name or ""
        held = None if name in self.writer.trained else self.writer.constant(name)
        return held is not None and bool((held == number).all())

    def items(self, k: int) -> Sizes:
        """An operand that holds sizes, as Python numbers."""
        return self.writer.sizes(self.name(k))

    def fixed(self, k: int, what: str) -> Array:
        """Contents of an operand that must be fixed.

        Raises:
            Refuse: it is computed from the inputs.
        """
        found = self.const(k)
        if found is None:
            raise Refuse(f"{what} ('{self.name(k)}') is computed from the inputs")
        return found

    def size(self, k: int, axis: int) -> Any:
        """Size of an operand's axis: a number, or a node where it follows the inputs' sizes."""
        return self.writer.size(self.name(k), axis % max(self.rank(k), 1))

    def listed(self, k: int, name: str, default: Sequence[int] | None = None) -> list[int] | None:
        """Fixed integers that are operand ``k`` or, in older opsets, attribute ``name``."""
        if self.has(k):
            return [int(n) for n in self.fixed(k, name).reshape(-1)]
        held = self.attr(name, default)
        return None if held is None else [int(n) for n in held]

    # --- Calls ------------------------------------------------------------------------------------------------------

    def call(self, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call of a function."""
        return self.writer.call(function, *args, **kwargs)

    def method(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call of a tensor's method."""
        return self.writer.graph.call_method(name, args, kwargs)

    def item(self, made: fx.Node, k: int) -> fx.Node:
        """One of the results of a call."""
        import operator

        return self.writer.call(operator.getitem, made, k)

    def outputs(self, made: fx.Node) -> tuple[fx.Node | None, ...]:
        """The node's results out of a call that returns a tuple."""
        return tuple(self.item(made, k) if self.used(k) else None for k in range(len(self.node.outputs)))

    def like(self) -> fx.Node:
        """An empty buffer that has the module's device and float type."""
        return self.writer.like()

    def dtype(self, kind: ir.DataType | int) -> torch.dtype:
        """A type in PyTorch.

        Raises:
            Refuse: PyTorch has no such type.
        """
        found = torch_type(ir.DataType(int(kind)))
        if not isinstance(found, torch.dtype):
            raise Refuse(f"PyTorch has no type for {ir.DataType(int(kind)).name}")
        return found

    def buffer(self, name: str, array: Array) -> fx.Node:
        """A constant of the module that is no value of the network."""
        return self.writer.buffer(name, array)
