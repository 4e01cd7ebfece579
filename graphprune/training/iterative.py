"""Pruning and tuning in turn: a part of the cut, some training, the next part."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from graphprune.errors import UsageError
from graphprune.ir.files import output_folder
from graphprune.passes.allocate import Target
from graphprune.passes.allocate.target import Quantity
from graphprune.pipeline import load
from graphprune.training.finetune import FinetuneResult, _network, finetune
from graphprune.training.options import FinetuneOptions

__all__ = ["prune_and_tune", "shares"]


def prune_and_tune(
    original: Any,
    data: Any,
    out: str | os.PathLike[str],
    *,
    target: str,
    quantity: Quantity = "macs",
    steps: int = 5,
    options: FinetuneOptions | None = None,
    input_shapes: Mapping[str | None, tuple[int, ...]] | None = None,
    **export: Any,
) -> FinetuneResult:
    """Reach a target in several cuts, each followed by training towards the original.

    Args:
        original: a network, or the path of an ONNX file.
        data: samples, to rank, repair and train on.
        out: folder for the last ``model.onnx`` and ``finetune.json``.
        target, quantity: ``"0.5x"`` or a number, on ``macs`` or ``params``; every step cuts by the same factor.
        steps: cuts; ``options.updates`` are shared out among them, see :func:`shares`.
        input_shapes: where the file leaves sizes open, as :func:`graphprune.load` takes them.
        export: further options of :meth:`graphprune.Network.export`.

    Raises:
        What :meth:`graphprune.Network.export` and :func:`finetune` raise.
    """
    if steps < 1:
        raise UsageError(f"steps={steps}: a number of at least 1")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("cuts and training in turn run in one process; under torchrun train one network at a time")
    whole = _network(original, input_shapes)
    tuning = options or FinetuneOptions()
    amount = whole.cost.macs({}) if quantity == "macs" else whole.cost.params({})
    limit = Target.parse(target, quantity).limit(amount)
    current, folder = whole, output_folder(out)
    result: FinetuneResult | None = None
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for step, updates in enumerate(shares(tuning.updates, steps), 1):
            at = Path(scratch) / str(step)
            asked = limit if step == steps else round(amount * (limit / amount) ** (step / steps))
            now = current.cost.macs({}) if quantity == "macs" else current.cost.params({})
            asked = min(asked, now)  # an earlier cut may have gone further than was asked
            changes: dict[str, Any] = {f"target_{quantity}": str(asked), "calib": data, "measure": None, **export}
            cut = current.export(at, None, calib_images=tuning.images, calib_samples=tuning.limit, **changes)
            part = replace(tuning, updates=max(1, updates), checkpoint_every=0)
            last = step == steps
            pruned = load(cut.model, input_shapes=input_shapes)
            result = finetune(pruned, whole, data, folder if last else at / "tuned", part)
            current = load((folder if last else at / "tuned") / "model.onnx", input_shapes=input_shapes)
    assert result is not None
    return result


def shares(updates: int, steps: int) -> list[int]:
    """Updates after each of several cuts: half of them after the last one, whose network is the one that is kept."""
    early = updates // 2 if steps > 1 else 0
    ends = [early * step // max(steps - 1, 1) for step in range(steps)]
    return [end - start for start, end in itertools.pairwise([*ends, updates])]
