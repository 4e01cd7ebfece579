"""Every PyTorch network of the zoo cut in place (``graphprune.prune_module``), held to the cut network, and trained on.

    python -m benchmarks.inplace                          # every network without a row yet, then the table
    python -m benchmarks.inplace --networks resnet18,swin_t # these again
    python -m benchmarks.inplace --suites torchvision,timm  # these suites' networks again
    python -m benchmarks.inplace --table                  # the table alone

Needs graphprune[zoo] for all rows; a network whose packages are missing is a row that says so. Nothing is downloaded
and nothing is trained before the cut: all weights are random (seed 0).

Every network runs in a process of its own, which is ended after 600 s or at 8 GB. A plan for half of the parameters
(criterion magnitude, allocation global; or just above the lowest share that exact groups reach) is applied to the
module. Its outputs on fresh random inputs are held to the cut ONNX file on ONNX Runtime, it is saved and loaded into a
fresh module of the same class with other values, and one step of training is taken (in eval mode where parts of the
module run in training mode alone, and so are not in the traced network and not cut). Where ``forward()`` holds sizes
that cannot be changed, the refusal must leave the module as it was; then ``partial=True`` must find the groups that are
held, and a plan for the same budget without these takes the way of all others.

Rows are lines of JSON in ``docs/inplace.jsonl``, one per network; the table is ``docs/inplace.md``.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import Half, Row, Sweep, build, export_half, markdown_table, suites

if TYPE_CHECKING:
    from torch import nn

    from graphprune.pipeline import Network
    from graphprune.training.inplace import ModuleCut

RTOL = 1e-4
REQUIRED = ("torchvision", "timm")


def examine(name: str, tell: Callable[[Row], None]) -> None:
    """One network, in this process: ``tell`` is given more figures after every stage.

    ``status`` is ``equal``, or what went wrong: ``not made`` (the zoo's or the exporter's fault), ``nothing prunable``,
    ``in part`` (equal, by a plan that leaves groups whole), ``refused``, ``not equal``, ``failed``; ``reason`` says
    more.
    """
    from graphprune.errors import GraphpruneError, NothingPrunableError, UnsupportedError
    from graphprune.pipeline import load
    from graphprune.training.inplace import prune_module

    start = time.perf_counter()
    try:
        module, inputs = build(name)
        network = load(module, inputs=inputs)
    except Exception as error:  # packages raise what they like: the row says it
        tell({"status": "not made", "reason": f"{type(error).__name__}: {error}"})
        return
    seconds = {"load": time.perf_counter() - start}
    before = _size(module)
    tell({"parameters": before, "seconds": seconds, "reason": "crashed while it was planned"})
    with tempfile.TemporaryDirectory(prefix="graphprune-inplace-") as folder:
        start = time.perf_counter()
        try:
            half = export_half(network, Path(folder), verify=False)
        except NothingPrunableError as error:
            tell({"status": "nothing prunable", "reason": str(error)})
            return
        seconds["plan"] = time.perf_counter() - start
        tell({"asked": half.asked, "seconds": seconds, "reason": "crashed while it was cut"})
        start, partial, held, whole = time.perf_counter(), False, "", 0
        kept, expected = _state(module), _outputs(module, inputs)
        try:
            cut = prune_module(module, half.result.plan_path, inputs, network=network)
        except UnsupportedError as error:
            held = str(error)
            tell({"status": "refused", "reason": held})
            if (changed := _changed(module, kept)) or _far(expected, _outputs(module, inputs)) != 0.0:
                tell({"status": "failed", "reason": f"a refused cut changed the module: {changed}"})
                return
            try:
                cut, partial = prune_module(module, half.result.plan_path, inputs, network=network, partial=True), True
                tell({"share_without": _size(module) / before})
                whole = len(cut.left)
                module, cut, half = _without(name, network, cut.left, Path(folder))
            except GraphpruneError as again:
                tell({"reason": f"{held}; {again}"})
                return
        seconds["prune"] = time.perf_counter() - start
        tell(
            {
                "status": "failed",
                "reason": "crashed while it was held to the cut network",
                "share": _size(module) / before,
                "attributes": len(cut.attributes),
                "scaled": len(cut.scaled),
                "whole": whole,
                "seconds": seconds,
            }
        )
        far = _against_file(module, network, half.result.model)
        tell({"max_rel": far, "reason": "crashed while it was saved and loaded"})
        again_far = _saved(name, module, inputs, cut, Path(folder) / "module.pt")
        tell({"saved_rel": again_far, "reason": "crashed while it was trained"})
        start = time.perf_counter()
        tell({"idle": list(cut.idle), **_trained(module, inputs, train=not cut.idle)})
        tell({"seconds": {**seconds, "train": time.perf_counter() - start}})
    row = {"status": "in part" if partial else "equal", "reason": held}
    if not far <= RTOL:
        row = {"status": "not equal", "reason": f"differs by {far:.1e} from the cut network"}
    elif again_far != 0.0:
        row = {"status": "not equal", "reason": f"saved and loaded it differs by {again_far:.1e}"}
    tell(row)


def _size(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


def _state(module: nn.Module) -> dict[str, Any]:
    """Copies of all parameters and buffers, and every plain attribute of every submodule."""
    tensors = {name: one.detach().clone() for name, one in (*module.named_parameters(), *module.named_buffers())}
    plain = {
        f"{path}:{name}": value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, (int, float, str, tuple)) and not name.startswith("_")
    }
    return {**tensors, **plain}


def _changed(module: nn.Module, kept: dict[str, Any]) -> list[str]:
    import torch

    now = _state(module)
    return [
        name
        for name in kept.keys() | now.keys()
        if name not in kept
        or name not in now
        or not (torch.equal(kept[name], now[name]) if isinstance(now[name], torch.Tensor) else kept[name] == now[name])
    ]


def _outputs(module: nn.Module, inputs: Any) -> list[Any]:
    from graphprune.training.groups import call

    return call(module, inputs)


def _far(expected: Sequence[Any], found: Sequence[Any]) -> float:
    from graphprune.training.groups import difference

    return difference(expected, found)


def _without(name: str, network: Network, left: Sequence[str], folder: Path) -> tuple[nn.Module, ModuleCut, Half]:
    """The same budget without some groups, applied to a fresh module."""
    from graphprune.pipeline import Network
    from graphprune.training.inplace import prune_module

    narrowed = Network(network.program, None, network.name, {})
    grouping = network.grouping
    narrowed.grouping = replace(grouping, groups=tuple(one for one in grouping.groups if one.id not in left))
    half = export_half(narrowed, folder / "without", verify=False)
    module, inputs = build(name)
    return module, prune_module(module, half.result.plan_path, inputs, network=narrowed), half


def _against_file(module: nn.Module, network: Network, file: Path) -> float:
    """Largest difference to the cut file on ONNX Runtime, on two fresh random inputs."""
    import torch

    from graphprune.backends.runner import OrtRunner
    from graphprune.frontends.onnx import read_onnx
    from graphprune.ir.observe import random_feeds

    model = read_onnx(file)
    names = [value.name or "" for value in model.graph.outputs]
    worst = 0.0
    for seed in (11, 12):
        feeds = random_feeds(network.program, seed)
        wanted = OrtRunner()(model, feeds, names)
        found = _outputs(module, tuple(torch.tensor(one) for one in feeds.values()))
        worst = max(worst, _far([wanted[one] for one in names], found))
    return worst


def _saved(name: str, module: nn.Module, inputs: Any, cut: ModuleCut, file: Path) -> float:
    """Difference of the module saved, and loaded into a fresh one that had other values."""
    import torch

    from graphprune.training.inplace import load_module, save_module

    save_module(module, cut, file)
    fresh = build(name)[0]
    with torch.no_grad():
        for one in fresh.parameters():
            one.add_(1.0)
    load_module(fresh, file)
    return _far(_outputs(module, inputs), _outputs(fresh, inputs))


def _trained(module: nn.Module, inputs: Any, *, train: bool) -> Row:
    """One step of plain gradient descent on two samples, in training mode or not: gradients and outputs after it."""
    import torch
    from torch.utils import _pytree as tree

    torch.manual_seed(0)
    module.train(train)
    twice = tuple(torch.cat([one, one.flip(-1)]) if one.ndim > 1 else one for one in inputs)
    outputs = [one for one in tree.tree_leaves(module(*twice)) if isinstance(one, torch.Tensor) and one.requires_grad]
    sum((one * torch.randn_like(one)).mean() for one in outputs).backward()
    grads = {name: one.grad for name, one in module.named_parameters() if one.grad is not None}
    finite = sum(bool(torch.isfinite(one).all()) for one in grads.values())
    torch.optim.SGD(module.parameters(), 1e-6).step()
    after = _outputs(module, inputs)
    if finite < len(grads) or any(bool((one != one).any()) for one in after):
        raise RuntimeError(f"{len(grads) - finite} of {len(grads)} gradients are not finite, or outputs after the step")
    return {"tensors": sum(1 for _ in module.parameters()), "finite": finite}


def document(rows: Sequence[Row]) -> str:
    """The page."""
    tried = [row for row in rows if row["status"] not in ("missing", "not made", "nothing prunable")]

    def counted(chosen: Sequence[Row]) -> str:
        count = Counter(row["status"] for row in chosen)
        names = ("equal", "in part", "refused", "not equal", "failed")
        done = count["equal"] + count["in part"]
        return (
            f"{len(chosen)} networks: {', '.join(f'{count[one]} {one}' for one in names)} "
            f"({done / max(len(chosen), 1):.0%} cut and equal, {count['equal'] / max(len(chosen), 1):.0%} as planned)"
        )

    required = [row for row in tried if row["suite"] in REQUIRED]
    parts = [
        "# Modules cut in place",
        "`graphprune.prune_module` cuts the user's own module. `python -m benchmarks.inplace` makes the rows that are "
        "missing and this page; the figures in full, with machine and versions of every row, are in "
        "[inplace.jsonl](inplace.jsonl).",
        f"torchvision and timm: {counted(required)}. All: {counted(tried)}.",
        "*equal*: all that the plan asked for is cut, outputs on fresh random inputs equal the cut ONNX file's on ONNX "
        "Runtime (1e-4 of the output's largest magnitude), saved and loaded it gives the same bits, and a step of "
        "training gives finite gradients. *in part*: the plan was refused, naming the line, and the module was left as "
        "it was; `partial=True` found the groups whose sizes `forward()` holds, and a plan for the same budget without "
        "these passes the same checks. *left*: parameters left. *whole*: groups that had to be left whole. "
        "*attributes*: sizes that were set. *gradients*: parameters with a finite gradient / parameters, in tensors.",
    ]
    for suite in dict.fromkeys(row["suite"] for row in rows):
        table = [
            (
                row["network"],
                row["status"],
                f"{row['parameters']:,}" if "parameters" in row else "",
                f"{row['share']:.2f}x" if "share" in row else "",
                f"{row['whole']}" if row.get("whole") else "",
                f"{row['attributes']}" if "attributes" in row else "",
                f"{row['max_rel']:.1e}" if "max_rel" in row else "",
                f"{row['finite']} / {row['tensors']}" if "tensors" in row else "",
            )
            for row in rows
            if row["suite"] == suite
        ]
        columns = ("network", "status", "parameters", "left", "whole", "attributes", "error", "gradients")
        parts += [f"## {suite}", markdown_table(columns, table)]
    if other := [row for row in rows if row["status"] != "equal"]:
        table = [(row["network"], row["status"], row["reason"].replace("|", "\\|")) for row in other]
        parts += ["## In part, or not cut", markdown_table(("network", "what", "why"), table)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


SWEEP = Sweep(
    "benchmarks.inplace",
    "Every PyTorch network of the zoo cut in place.",
    suites("torch"),
    examine,
    document,
    "inplace",
)


if __name__ == "__main__":
    sys.exit(SWEEP.main())
