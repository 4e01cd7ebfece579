"""The manifest: what was asked, done, proved and measured, as data."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune._version import __version__
from graphprune.latency.figures import figure_of
from graphprune.latency.measure import Comparison
from graphprune.passes.verify import Verdict

if TYPE_CHECKING:
    from graphprune.accuracy import Accuracy
    from graphprune.coupling.groups import Group
    from graphprune.latency_model import LatencyModel
    from graphprune.latency_target import Met
    from graphprune.options import ExportOptions
    from graphprune.passes.repair import Repaired
    from graphprune.pipeline import Analysis, Network

__all__ = ["analysis_document", "manifest_document", "to_bytes"]

_PACKAGES = ("numpy", "scipy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "torch")


def versions() -> dict[str, str]:
    """Versions of graphprune, Python and the packages that the result depends on."""
    found = {"graphprune": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def group_document(one: Group, parameter_names: Mapping[str, str]) -> dict[str, Any]:
    """A group as plain data."""
    members = []
    for member in one.members:
        row: dict[str, Any] = {"tensor": member.tensor, "axis": member.axis, "size": member.size, "role": member.role}
        if member.tensor in parameter_names:
            row["parameter"] = parameter_names[member.tensor]
        members.append(row)
    return {"id": one.id, "kind": one.kind, "size": one.size, "exact": one.exact, "members": members}


def analysis_document(analysis: Analysis) -> dict[str, Any]:
    """An analysis as plain data."""
    groups = []
    for one in analysis.groups:
        params, macs = analysis.shares[one.id]
        groups.append({**group_document(one, analysis.parameter_names), "params": params, "macs": macs})
    return {
        "params": analysis.params,
        "macs": analysis.macs,
        "governed_params": analysis.governed_params,
        "governed_macs": analysis.governed_macs,
        "input_shapes": {name: list(shape) for name, shape in analysis.input_shapes.items()},
        "groups": groups,
        "uncut": [asdict(one) for one in analysis.uncut],
        "refusals": list(analysis.refusals),
        "notes": list(analysis.notes),
        "seconds": dict(analysis.seconds),
    }


def manifest_document(
    *,
    network: Network,
    options: ExportOptions,
    plan: Mapping[str, Any],
    plan_sha256: str,
    source: Mapping[str, str],
    artefact: Mapping[str, str],
    original: Mapping[str, int],
    asked: Mapping[str, int],
    reached: Mapping[str, int],
    verdict: Verdict | None,
    comparison: Comparison | None,
    met: Met | None,
    model: LatencyModel | None,
    notes: Sequence[str],
    build: Mapping[str, Any] | None,
    seconds: Mapping[str, float],
    calibration: Mapping[str, Any] | None = None,
    repaired: Repaired | None = None,
    accuracy: Accuracy | None = None,
    found: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything an export knows; see ``docs/manifest.md``."""
    names = network.program.parameter_names
    cut = []
    for one in plan["groups"]:
        tensors = sorted({member["tensor"] for member in one["members"] if member["role"] == "producer"})
        cut.append(
            {
                "id": one["id"],
                "kind": one["kind"],
                "size": one["size"],
                "kept": len(one["kept"]),
                "exact": one["exact"],
                "producers": [names.get(name, name) for name in tensors],
            }
        )
    latency_target = None
    if met is not None and model is not None:
        other = comparison is not None and options.statistic != "median"  # the median's stands in ``latency``
        latency_target = {
            "statistic": options.statistic,
            "figure": figure_of(comparison, options.statistic).to_json() if comparison is not None and other else None,
            **_latency_target(met, model, network),
        }
    return {
        "format": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": {"system": platform.system(), "processor": platform.machine()},
        "source": {"name": network.name, "sha256": dict(source)},
        "artefact": {"sha256": dict(artefact)},
        "plan": {"sha256": {"plan.json": plan_sha256}},
        "options": _options(options),
        "input_shapes": {name: list(array.shape) for name, array in network.program.examples.items()},
        "original": dict(original),
        "asked": dict(asked),
        "reached": dict(reached),
        "groups_cut": cut,
        "refusals": [asdict(refusal) for refusal in network.grouping.coupling.refusals],
        "verification": None if verdict is None else asdict(verdict),
        "calibration": None if calibration is None else dict(calibration),
        "repair": None if repaired is None else repaired.to_json(),
        "accuracy": None if accuracy is None else accuracy.to_json(),
        "search": None,
        "max_drop": None,
        "corners": [],
        **(found or {}),
        "build": None if build is None else dict(build),
        "latency": None if comparison is None else comparison.to_json(),
        "latency_target": latency_target,
        "parameter_names": dict(names),
        "notes": [*network.program.notes, *notes],
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }


def _latency_target(met: Met, model: LatencyModel, network: Network) -> dict[str, Any]:
    """How a latency target was met: the candidates, the grains found, and the time by layer before and after."""
    kept = {name: float(len(units)) for name, units in met.plan.kept.items()}
    before, after = dict(model.sizes), {**model.sizes, **kept}
    curves = model.curves
    return {
        "asked": str(met.target),
        "share": met.share,
        "method": met.method,
        "chosen": met.chosen,
        "kept": met.kept,
        "predicted": {"ratio": met.predicted, "original_ms": model.original_ns / 1e6},
        "fingerprint": dict(model.table.fingerprint),
        "rounds": [asdict(one) for one in met.rounds],
        "grains": [asdict(one) for one in curves.grains if one.block > 1 or one.alignment > 1],
        "prediction_errors": list(model.errors),
        "profile_seconds": model.seconds,
        "layers": [
            {
                "name": layer.name,
                "operators": list(dict.fromkeys(layer.operators)),
                "groups": list(layer.groups),
                "ms_before": float(curves.layer_time(index, before)) / 1e6,
                "ms_after": float(curves.layer_time(index, after)) / 1e6,
            }
            for index, layer in enumerate(model.layers)
        ],
        "curves": [
            {"group": one.id, **_curve(model, one.id, one.size, int(after[one.id]), before), "kept": int(after[one.id])}
            for one in network.grouping.groups
            if one.id in met.plan.kept
        ],
    }


def _curve(
    model: LatencyModel, group: str, size: int, kept: int, counts: Mapping[str, float]
) -> dict[str, list[float]]:
    """A group's step curve, everything else whole: every width of at most 256, else every n-th one and those around
    the width that is kept.
    """
    import numpy as np

    # whole steps down from the size: uneven ones beat with the grain and show steps that are not there
    stride = -(-size // 256)
    near = np.arange(max(kept - 2, 1), min(kept + 2, size) + 1)
    widths = np.union1d(np.arange(size, 0, -stride), near).astype(np.float64)
    ms = model.curves.sweep(group, widths, counts) / 1e6
    return {"widths": widths.tolist(), "ms": [round(one, 5) for one in ms.tolist()]}


def _options(options: ExportOptions) -> dict[str, Any]:
    """The options; what was handed over as an object is said to be one."""
    named = {
        name: held if held is None or isinstance(held, (str, Path)) else f"a {type(held).__name__}"
        for name in ("calib", "metric")
        for held in [getattr(options, name)]
    }
    found = _plain(asdict(replace(options, calib=None, metric=None)))
    return {**found, **_plain(named)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):  # a scalar of numpy
        return value.item()
    return value.name if isinstance(value, Path) else f"a {type(value).__name__}" if callable(value) else value


def to_bytes(document: Mapping[str, Any]) -> bytes:
    """Indented JSON."""
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()
