"""Pruning and tuning in turn: a part of the cut, some training, the next part."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.errors import TargetError, UsageError
from graphprune.frontends.samples import is_noise, read_samples
from graphprune.ir.files import output_folder
from graphprune.ir.store import sha256_of
from graphprune.options import ExportOptions
from graphprune.passes.allocate import Target, allocator
from graphprune.passes.allocate.target import Quantity
from graphprune.passes.score import Scores
from graphprune.passes.selection import Selection
from graphprune.pipeline import Network, load
from graphprune.report.manifest import to_bytes
from graphprune.training.finetune import FinetuneResult, finetune
from graphprune.training.given import as_network, fingerprint, spare
from graphprune.training.options import FinetuneOptions
from graphprune.training.parallel import World

__all__ = ["prune_and_tune", "shares"]

_log = logging.getLogger(__name__)
_STEPS = "steps"
_ALLOCATION = ("include", "exclude", "stat", "floor", "align")


def prune_and_tune(
    original: Any,
    data: Any,
    out: str | os.PathLike[str],
    *,
    target: str,
    quantity: Quantity = "macs",
    steps: int = 5,
    options: FinetuneOptions | None = None,
    resume: bool = False,
    input_shapes: Mapping[str | None, tuple[int, ...]] | None = None,
    **export: Any,
) -> FinetuneResult:
    """Reach a target in several cuts, each followed by training towards the original.

    Args:
        original: a network, or the path of an ONNX file.
        data: samples, to rank, repair and train on.
        out: folder for the last ``model.onnx`` and ``finetune.json``, which says of the last training what that of
            :func:`finetune` says, and the target, the original's hash and what each step did.
        target, quantity: ``"0.5x"`` or a number, on ``macs`` or ``params``; every step cuts by the same factor.
        steps: cuts; ``options.updates`` are shared out among them, see :func:`shares`.
        resume: go on with what was cut and trained before, kept in the folder's ``steps`` until the end, and from the
            last checkpoint of the training that was broken off.
        input_shapes: where the file leaves sizes open, as :func:`graphprune.load` takes them.
        export: further options of :meth:`graphprune.Network.export`.

    Under ``torchrun`` the first process cuts, and all train.

    Raises:
        What :meth:`graphprune.Network.export` and :func:`finetune` raise. TargetError: before any training, where the
        target cannot be reached whatever stays.
    """
    if steps < 1:
        raise UsageError(f"steps={steps}: a number of at least 1")
    whole = as_network(original, input_shapes)
    tuning = options or FinetuneOptions()
    samples = read_samples(data, whole.program, limit=tuning.limit, images=tuning.images)
    amount = whole.cost.macs({}) if quantity == "macs" else whole.cost.params({})
    limit = Target.parse(target, quantity).limit(amount)
    _check_reachable(whole, Target(quantity, limit, relative=False), steps, export)
    folder = output_folder(out)
    spare(folder, [whole])
    words = f"{quantity} {limit} {steps} {json.dumps(export, sort_keys=True, default=_word)}"
    with World.joined() as world:
        if world.rank == 0:
            key = hashlib.sha256(f"{words} {fingerprint(tuning, samples, [whole])}".encode()).hexdigest()
            _prepare(folder / _STEPS, key, resume)
        world.wait()
        current, result = whole, None
        for step, updates in enumerate(shares(tuning.updates, steps), 1):
            cut, tuned = (folder / _STEPS / f"{step}-{name}" for name in ("cut", "tuned"))
            asked = limit if step == steps else round(amount * (limit / amount) ** (step / steps))
            now = current.cost.macs({}) if quantity == "macs" else current.cost.params({})
            asked = min(asked, now)  # an earlier cut may have gone further than was asked
            if world.rank == 0 and not (cut / "manifest.json").exists():
                changes: dict[str, Any] = {f"target_{quantity}": str(asked), "measure": None, **export}
                calib = data if is_noise(data) else samples.feeds
                current.export(cut, None, **{"calib": calib, **changes})
            world.wait()
            if step == steps or not (tuned / "finetune.json").exists():
                pruned = load(cut / "model.onnx", input_shapes=input_shapes)
                part = replace(tuning, updates=max(1, updates))
                goes_on = (tuned / "checkpoint.pt").exists()
                result = finetune(pruned, whole, samples.feeds, tuned, part, resume=goes_on)
            current = load(tuned / "model.onnx", input_shapes=input_shapes)
        assert result is not None
        if world.rank == 0:
            document = {
                **json.loads((tuned / "finetune.json").read_bytes()),
                "options": tuning.to_json(),
                "source_sha256": {} if whole.source is None else sha256_of(whole.source),
                "target": {"asked": target, "quantity": quantity, "limit": limit, "original": amount},
                "steps": [_step_document(folder / _STEPS, step) for step in range(1, steps + 1)],
            }
            (tuned / "finetune.json").write_bytes(to_bytes(document))
            for file in tuned.iterdir():
                os.replace(file, folder / file.name)
            shutil.rmtree(folder / _STEPS)
        world.wait()
    return replace(result, folder=folder)


def _check_reachable(network: Network, target: Target, steps: int, export: Mapping[str, Any]) -> None:
    """Raises TargetError where even the least that so many cuts can leave of every group is above the target."""
    options = ExportOptions(**{name: value for name, value in export.items() if name in _ALLOCATION})
    grouping, names = network.grouping, network.program.parameter_names
    chosen = Selection(options.include, options.exclude, options.stat)(grouping, names)
    method = allocator("global", floor=options.floor**steps, align=options.align)
    try:
        method.allocate(chosen, Scores({one.id: np.zeros(one.size) for one in chosen}), network.cost, [target])
    except TargetError as error:
        raise TargetError(f"even in {steps} cuts, with the floor {options.floor:g} of each: {error}") from error


def _step_document(folder: Path, step: int) -> dict[str, Any]:
    """What one cut and the training after it did."""
    cut, tuned = (
        json.loads((folder / f"{step}-{name}").read_bytes()) for name in ("cut/manifest.json", "tuned/finetune.json")
    )
    return {
        **{name: cut[name] for name in ("asked", "reached", "groups_cut")},
        **{name: tuned[name] for name in ("updates", "best_update", "distance", "seconds")},
    }


def _prepare(folder: Path, key: str, resume: bool) -> None:
    """A folder for what each step makes: an empty one, or that of the same job where it goes on."""
    mark = folder / "job.txt"
    if resume and mark.exists():
        if mark.read_text(encoding="utf-8") != key:
            raise UsageError(f"'{folder}' is of other options, samples or another network; start without resume")
        return
    if resume:
        _log.warning("there is nothing in '%s' to go on from: it starts from the beginning", folder)
    if folder.exists() and not mark.exists():
        raise UsageError(f"'{folder}' is in the way, and not of such a job: choose another output folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    mark.write_text(key, encoding="utf-8")


def shares(updates: int, steps: int) -> list[int]:
    """Updates after each of several cuts: half of them after the last one, whose network is the one that is kept."""
    early = updates // 2 if steps > 1 else 0
    ends = [early * step // max(steps - 1, 1) for step in range(steps)]
    return [end - start for start, end in itertools.pairwise([*ends, updates])]


def _word(value: Any) -> Any:
    """What stands for an option that is no plain data: the same in every process."""
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}:{value.__qualname__}"
    if isinstance(value, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return vars(value) if hasattr(value, "__dict__") else str(value)
