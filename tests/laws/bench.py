"""What the law tests run operators with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from graphprune.backends.onnxruntime import run_model
from graphprune.backends.reference import run_float64
from graphprune.coupling.groups import Grouping, Keep
from graphprune.ir.program import Array
from graphprune.passes.shrink import Shrink

NEWEST = 26  # opset that ONNX Runtime accepts; what came later is run by onnx's reference evaluator


def run(model: ir.Model, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
    if model.opset_imports.get("", 0) > NEWEST:
        return run_float64(model, feeds, outputs)
    return run_model(ir.serde.serialize_model(model).SerializeToString(), feeds, outputs, threads=1)


def shrink(grouping: Grouping, keep: Keep) -> ir.Model:
    return Shrink(keep)(grouping)
