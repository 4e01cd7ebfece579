"""The module around a written graph: it keeps its ``meta`` when it is pickled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from graphprune.backends.torch_emit.parameters import legal
from graphprune.backends.torch_emit.writer import Writer
from graphprune.ir.program import Program

__all__ = ["NetworkModule", "build"]


class NetworkModule(fx.GraphModule):
    """A ``torch.fx.GraphModule`` whose ``meta`` survives pickling."""

    def __reduce__(self) -> tuple[Any, ...]:
        """As the base class, with ``meta``."""
        function, arguments = super().__reduce__()
        return _restored, (function, arguments, dict(self.meta))


def _restored(function: Callable[..., Any], arguments: tuple[Any, ...], meta: dict[str, Any]) -> fx.GraphModule:
    made = function(*arguments)
    module = NetworkModule(made, made.graph, type(made).__name__)
    for name, value in meta.items():
        module.meta[name] = value
    return module.train(made.training)


def build(program: Program) -> fx.GraphModule:
    """The module of a program, see :func:`graphprune.to_torch`."""
    writer = Writer(program)
    _, inputs, outputs = writer.write()
    module = writer.module_of(legal(program.model.graph.name or "Network"), NetworkModule)
    module.meta["parameters"] = dict(writer.parameters)
    module.meta["inputs"], module.meta["outputs"] = inputs, outputs
    return module.eval()
