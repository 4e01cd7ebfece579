"""The peers' cut of a task's network at a share of its MACs, without training, as an ONNX file.

Torch-Pruning 1.6.1 takes the PyTorch module: ``BasePruner`` with the importances that need no gradient, one ratio for
all layers or a global ranking, its ratio searched until *its own* count of MACs is within the share. Attention is
rewritten as its examples do it (explicit matrix products, sizes taken from the layers, ``num_heads`` given).
onnxsim 0.8.1 takes an ONNX file with fixed shapes, a module as PyTorch's exporter writes it by default, simplified by
onnxsim itself first (with a dynamic batch it finds less to cut): ``apply_structured_pruning`` or the calibrated
``apply_structured_wanda_pruning``, then the same for attention heads, its sparsity searched until graphprune's count of
MACs is within the share (it has none of its own).

At a share of the measured time, Torch-Pruning's global ranking with widths in multiples of 8 (``round_to``): the
smallest ratio whose network, exported and measured in turn with the dense one, has its interval within the share.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.accuracy_tasks import BATCH, Feeds, Task, folded, onnx_bytes

if TYPE_CHECKING:
    from graphprune.latency.measure import MeasureOptions

__all__ = ["PEERS", "CannotReach", "cut", "searched"]

_STEPS = 9  # halvings of the interval in which the ratio lies
_CLOSE = 0.005  # of the dense network: near enough below the share


@dataclass(frozen=True, eq=False)
class Job:
    """A network to be cut to a share: of the MACs, or with ``timing`` of the measured time."""

    task: Task
    out: Path
    share: float
    data: Sequence[Feeds] | None
    timing: MeasureOptions | None


@dataclass(frozen=True)
class Peer:
    """How a peer cuts, whether it takes calibration samples, and whether its targets are of time."""

    how: Callable[[Job], dict[str, Any]]
    calibrated: bool = False
    timed: bool = False


class CannotReach(Exception):
    """A peer removes too little, whatever ratio it is asked for."""


def searched(make: Callable[[float], tuple[float, Any]], share: float) -> Any:
    """What ``make(ratio)`` gave at the smallest ratio whose share is within the one asked for.

    ``make`` returns the share (of MACs or of time) that is left, and what it made.
    """
    low, high, best, least, why = 0.0, 0.98, None, 1.0, ""
    for _ in range(_STEPS):
        ratio = (low + high) / 2
        try:
            left, made = make(ratio)
        except Exception as error:  # whatever a peer raises at a ratio, smaller ones may still go
            high, why = ratio, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        least = min(least, left)
        if left <= share:
            high, best = ratio, made
            if left > share - _CLOSE:
                break
        else:
            low = ratio
    if best is None:
        raise CannotReach(f"leaves {least:.3f} at least" + (f" ({why})" if why else ""))
    return best


def _torch_pruning(job: Job, importance: str, ranked: bool, round_to: int | None = None) -> dict[str, Any]:
    import torch
    import torch_pruning as tp  # type: ignore[import-untyped]

    from benchmarks.peers_torch import last_layer

    task = job.task
    assert task.module is not None
    torch.set_num_threads(1)
    module, example = task.module()
    module = _rewritten(copy.deepcopy(module))
    for parameter in module.parameters():
        parameter.requires_grad_(True)  # it traces by autograd
    dense, _ = tp.utils.count_ops_and_params(module, example)

    def make(ratio: float) -> tuple[float, tuple[Any, dict[str, Any]]]:
        smaller = copy.deepcopy(module)
        scores = {"magnitude": tp.importance.GroupMagnitudeImportance, "bn-scale": tp.importance.BNScaleImportance}
        heads = {one.qkv: one.heads for one in smaller.modules() if hasattr(one, "qkv")}
        tp.pruner.BasePruner(
            smaller,
            example,
            importance=scores[importance](),
            global_pruning=ranked,
            pruning_ratio=ratio,
            round_to=round_to,
            ignored_layers=[last_layer(smaller, example)],
            num_heads=heads,
        ).step()
        macs, _ = tp.utils.count_ops_and_params(smaller, example)
        told: dict[str, Any] = {"own_macs": macs / dense}
        if job.timing is None:
            return macs / dense, (smaller, told)
        write(smaller)
        told |= {"latency": _measured(job)}
        return told["latency"]["high"], (smaller, told)

    def write(smaller: Any) -> None:
        with torch.no_grad():
            job.out.write_bytes(onnx_bytes(smaller, example, [str(name) for name in task.shapes]))

    found: tuple[Any, dict[str, Any]] = searched(make, job.share)
    write(found[0])
    return found[1]


def _measured(job: Job) -> dict[str, float]:
    """Time of what was written as a share of the dense network's, measured in turn, with its interval."""
    from graphprune.latency.measure import Comparison, measure

    assert job.timing is not None
    dense, cut = (folded(path, job.task) for path in (job.task.path(), job.out))
    feeds = {name: np.repeat(value, BATCH, axis=0) for name, value in job.task.calibration(1, 0)[0].items()}
    found = measure(dense, cut, feeds, job.timing)
    assert isinstance(found, Comparison)
    return {"ratio": found.ratio, "low": found.ratio_low, "high": found.ratio_high}


def _rewritten(module: Any) -> Any:
    """Attention with one fused projection in terms that Torch-Pruning follows: what it keeps decides the sizes."""

    def forward(self: Any, x: Any) -> Any:
        b, t, _ = x.shape
        d = self.qkv.out_features // (3 * self.heads)
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, d).permute(2, 0, 3, 1, 4).unbind(0)
        y = ((q @ k.transpose(-2, -1)) * d**-0.5).softmax(dim=-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, t, self.heads * d))

    for one in module.modules():
        if hasattr(one, "qkv") and hasattr(one, "heads"):
            one.forward = types.MethodType(forward, one)
    return module


def _onnxsim(job: Job) -> dict[str, Any]:
    import onnx
    import onnxsim as peer  # type: ignore[import-untyped]

    from graphprune.pipeline import load

    task, data = job.task, job.data
    shapes = {str(name): list(shape) for name, shape in task.shapes.items()}
    model, _ = peer.simplify(_optimised(task), overwrite_input_shapes=shapes)
    dense = load(task.path(), input_shapes=task.shapes).cost.macs({})

    def make(ratio: float) -> tuple[float, Any]:
        held = copy.deepcopy(model)
        if data is None:
            cut = peer.apply_structured_pruning(held, sparsity=ratio)
            cut = peer.apply_attention_head_pruning(cut, sparsity=ratio)
        else:
            cut = peer.apply_structured_wanda_pruning(held, calibration_data=data, sparsity=ratio)
            cut = peer.apply_attention_head_wanda_pruning(cut, calibration_data=data, sparsity=ratio)
        onnx.save(cut, str(job.out))
        return load(job.out, input_shapes=task.shapes).cost.macs({}) / dense, cut

    onnx.save(searched(make, job.share), str(job.out))
    return {}


def _optimised(task: Task) -> Any:
    """The network as PyTorch's exporter writes it by default, for one sample; or its file, where there is no module."""
    import onnx
    import torch

    if task.module is None:
        return onnx.load(str(task.path()))
    module, example = task.module()
    names = [str(name) for name in task.shapes]
    program = torch.onnx.export(module.eval(), example, dynamo=True, verbose=False, input_names=names)
    assert program is not None
    return program.model_proto


#: name -> how it cuts
PEERS: Mapping[str, Peer] = {
    "torch-pruning magnitude global": Peer(partial(_torch_pruning, importance="magnitude", ranked=True)),
    "torch-pruning magnitude uniform": Peer(partial(_torch_pruning, importance="magnitude", ranked=False)),
    "torch-pruning bn-scale global": Peer(partial(_torch_pruning, importance="bn-scale", ranked=True)),
    "torch-pruning bn-scale uniform": Peer(partial(_torch_pruning, importance="bn-scale", ranked=False)),
    "torch-pruning magnitude global, round_to 8": Peer(
        partial(_torch_pruning, importance="magnitude", ranked=True, round_to=8), timed=True
    ),
    "onnxsim magnitude": Peer(_onnxsim),
    "onnxsim wanda": Peer(_onnxsim, calibrated=True),
}


def cut(
    name: str, task: Task, out: Path, share: float, data: Sequence[Feeds] | None, timing: MeasureOptions
) -> dict[str, Any]:
    """Write the peer's network to ``out``; returns ``{"macs": share left by graphprune's count, ...}``.

    Raises whatever the peer raises, ``CannotReach`` where it removes too little.
    """
    from graphprune.pipeline import load

    peer = PEERS[name]
    told = peer.how(Job(task, out, share, data if peer.calibrated else None, timing if peer.timed else None))
    found = load(out, input_shapes=task.shapes).cost
    dense = load(task.path(), input_shapes=task.shapes).cost
    return {"macs": found.macs({}) / dense.macs({}), "params": found.params({}) / dense.params({}), **told}
