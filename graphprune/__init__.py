"""graphprune: a graph-based structured-pruning compiler over ONNX and FX.

>>> import graphprune
>>> network = graphprune.load("rec.onnx")
>>> print(network.analyze().governed_params)
>>> result = network.export("out", target_macs="0.7x")
>>> print(result.verdict, result.comparison.ratio)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from graphprune._version import __version__

if TYPE_CHECKING:
    from graphprune.backends.torch import load_state, save_torch, to_torch
    from graphprune.coupling.groups import Group
    from graphprune.export import ExportResult
    from graphprune.frontends.graphsurgeon import to_graphsurgeon
    from graphprune.ir.program import Program
    from graphprune.options import ExportOptions
    from graphprune.passes.plan import Plan
    from graphprune.pipeline import Analysis, Network, load, verify_files
    from graphprune.training.finetune import finetune
    from graphprune.training.inplace import load_module, prune_module, save_module

# Everything is imported when it is first used: `import graphprune` stays light.
_LAZY = {
    "Analysis": "graphprune.pipeline",
    "ExportOptions": "graphprune.options",
    "ExportResult": "graphprune.export",
    "Group": "graphprune.coupling.groups",
    "Network": "graphprune.pipeline",
    "Plan": "graphprune.passes.plan",
    "Program": "graphprune.ir.program",
    "finetune": "graphprune.training.finetune",
    "load": "graphprune.pipeline",
    "load_module": "graphprune.training.inplace",
    "load_state": "graphprune.backends.torch",
    "prune_module": "graphprune.training.inplace",
    "save_module": "graphprune.training.inplace",
    "save_torch": "graphprune.backends.torch",
    "to_graphsurgeon": "graphprune.frontends.graphsurgeon",
    "to_torch": "graphprune.backends.torch",
    "verify_files": "graphprune.pipeline",
}

__all__ = [
    "Analysis",
    "ExportOptions",
    "ExportResult",
    "Group",
    "Network",
    "Plan",
    "Program",
    "__version__",
    "finetune",
    "load",
    "load_module",
    "load_state",
    "optim",
    "prune_module",
    "save_module",
    "save_torch",
    "to_graphsurgeon",
    "to_torch",
    "verify_files",
]


def __getattr__(name: str) -> Any:
    if name == "optim":
        return importlib.import_module("graphprune.optim")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'graphprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
