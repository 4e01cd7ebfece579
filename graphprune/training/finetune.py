"""Recovery: a pruned network is trained on samples to give what the original one gives, and written back as ONNX."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from graphprune import progress
from graphprune.backends.torch import load_state, to_torch
from graphprune.calibration.losses import Loss, read_loss
from graphprune.errors import InputError, UsageError
from graphprune.frontends.samples import read_samples
from graphprune.ir.files import output_folder
from graphprune.ir.program import Array
from graphprune.ir.store import sha256_of, write_onnx
from graphprune.pipeline import Network
from graphprune.report.manifest import to_bytes
from graphprune.training.distill import AUTO, Student, Teacher, consumers
from graphprune.training.given import as_network, check_alike, fingerprint, spare
from graphprune.training.low_rank import LowRank
from graphprune.training.options import FinetuneOptions
from graphprune.training.parallel import World
from graphprune.training.randomness import random_state, seed_all, set_random_state
from graphprune.training.rates import usual_sizes

if TYPE_CHECKING:
    from torch import fx

__all__ = ["FinetuneOptions", "FinetuneResult", "finetune"]

_log = logging.getLogger(__name__)
Feeds = Mapping[str, Array]
_TO_SPLIT = 16  # samples from which some are held out
_FORMAT = 2  # of a checkpoint
_HALF = (torch.float16, torch.bfloat16)
_LOST = 4.0  # times the best distance: the rate was too high
_SLOWER = 0.25  # of the rate, from then on


@dataclass(frozen=True)
class FinetuneResult:
    """What training did.

    Attributes:
        network: the trained network.
        folder: where ``model.onnx`` and ``finetune.json`` lie; None where none was given.
        updates: steps that were taken; ``best``: the one whose weights these are.
        before, after: distance from the original on what was held out (on all samples where nothing was).
        history: update, mean loss since the last entry, and distance on what was held out.
    """

    network: Network
    folder: Path | None
    updates: int
    best: int
    before: float
    after: float
    history: tuple[Mapping[str, float], ...] = field(repr=False)
    seconds: float = 0.0


def finetune(
    network: Any,
    original: Any,
    data: Any,
    out: str | os.PathLike[str] | None = None,
    options: FinetuneOptions | None = None,
    *,
    resume: bool = False,
    input_shapes: Mapping[str | None, tuple[int, ...]] | None = None,
    **changes: Any,
) -> FinetuneResult:
    """Train a pruned network to give what the original gives.

    Args:
        network, original: networks, programs, or paths of ONNX files.
        data: samples without labels, see :func:`graphprune.frontends.samples.read_samples`. Every eighth is held out
            where there are sixteen or more.
        out: folder for ``model.onnx``, ``finetune.json`` and the checkpoint.
        options: all options; ``changes`` are single ones by name.
        input_shapes: where the files leave sizes open, as :func:`graphprune.load` takes them.
        resume: go on from the checkpoint in the folder; the end is the same as without the break.

    A float16 network is trained in float32 and written in float16 again. Under ``torchrun`` the runs of a batch are
    shared out among the processes; the first one writes.

    Raises:
        UsageError, InputError: options, data or networks do not fit; UnsupportedError: no PyTorch counterpart.
    """
    if options is not None and changes:
        raise UsageError("finetune takes either options or single options by name, not both")
    chosen = options or FinetuneOptions(**changes)
    if out is None and (resume or chosen.checkpoint_every):
        raise UsageError("checkpoints need a folder: give out=... (-o DIR)")
    with World.joined() as world, progress.step("finetune"):
        networks = as_network(network, input_shapes), as_network(original, input_shapes)
        if out is not None:
            spare(Path(out), networks)
        return _Training(*networks, data, out, chosen, world).run(resume)


class _Training:
    def __init__(
        self, network: Network, original: Network, data: Any, out: Any, options: FinetuneOptions, world: World
    ) -> None:
        self.network, self.options, self.world = network, options, world
        self.out = None if out is None else output_folder(out)
        samples = read_samples(data, network.program, limit=options.limit, images=options.images)
        self.samples = samples
        rest, held = samples.split() if samples.count >= _TO_SPLIT else (samples, samples)
        self.train, self.held = rest.feeds, held.feeds
        seed_all(options.seed)
        self.device = _device(options.device)
        self.module: fx.GraphModule = _widened(to_torch(network.program)).to(self.device)
        self.module.train(options.statistics)
        if options.statistics and world.size > 1:
            raise UsageError("BatchNorm's statistics are updated in one process only; leave statistics out")
        check_alike(network, original)
        self.student = Student(
            self.module,
            Teacher(original.program, self._features(original)),
            options.temperature,
            options.feature_weight,
        )
        self.loss: Loss | None = None if options.loss is None else read_loss(options.loss)
        if self.loss is not None and world.size > 1:
            raise UsageError("a loss of your own reads its own batches; under torchrun train on samples alone")
        self.low_rank = None if options.rank is None else LowRank(self.module, options.rank, options.seed)
        self.weights = self.low_rank.trained() if self.low_rank is not None else list(self.module.parameters())
        if not self.weights:
            raise InputError("the network has no trained weights")
        made = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.SGD
        extra = {} if options.optimizer == "adamw" else {"momentum": options.momentum}
        decayed = [one for one in self.weights if one.ndim > 1]
        others = [one for one in self.weights if one.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = made([one for one in groups if one["params"]], lr=options.rate,
                              weight_decay=options.weight_decay, **extra)  # type: ignore[arg-type]  # fmt: skip
        self.sizes = [usual_sizes(one) for one in self.weights] if options.relative else []
        self.slowed = 0
        self.key = fingerprint(options, samples, [network, original])
        self.update = self.best_update = 0
        self.best = self.before = self.least = math.inf
        self.best_state: dict[str, Tensor] = {}
        self.worse = 0
        self.recent = [0.0, 0.0]
        self.history: list[dict[str, float]] = []

    def _features(self, original: Network) -> Sequence[str]:
        """The inner values to compare: those named, or those behind what lost columns."""
        if tuple(self.options.features) != (AUTO,):
            return self.options.features
        found = consumers(self.network, original)
        if not found:
            _log.warning("no inner value behind what was cut has the original's shape: the outputs alone are compared")
        return found

    # --- The loop ----------------------------------------------------------------------------------------------------

    def run(self, resume: bool) -> FinetuneResult:
        """Train, and write what came of it."""
        start = time.perf_counter()
        options = self.options
        self.before = self._evaluated()
        self.best, self.best_state = self.before, self._state()
        held = self._checkpoint_held() if resume else None
        batches = self._batches(0 if held is None else int(held["update"]))
        if held is not None:
            if self.loss is not None:
                next(batches)  # what was read before, with whatever weights
            self._restore(held)
        every = options.evaluate_every or max(1, options.updates // 10)
        stopped = options.patience > 0 and self.worse >= options.patience
        while self.update < options.updates and not stopped:
            self._step(next(batches))
            self.update += 1
            progress.advance(self.update / options.updates)
            if self.update % every == 0 or self.update == options.updates:
                self._look()
                stopped = 0 < options.patience <= self.worse
            if options.checkpoint_every and self.update % options.checkpoint_every == 0:
                self._write_checkpoint()
        self._load(self.best_state)
        program = load_state(self.network.program, self.module.cpu())
        found = Network(program, None, self.network.name, {})
        seconds = time.perf_counter() - start
        result = FinetuneResult(
            found, self.out, self.update, self.best_update, self.before, self.best, tuple(self.history), seconds
        )
        if self.out is not None and self.world.rank == 0:
            self._write(result)
        self.world.wait()
        return result

    def _step(self, batch: Callable[[], Iterator[Tensor]]) -> None:
        options = self.options
        for group in self.optimizer.param_groups:
            group["lr"] = options.rate * _SLOWER**self.slowed * _rate(self.update, options.updates, options.warm_up)
        for one in self.weights:  # of every process, also where it has no run of this batch
            one.grad = torch.zeros_like(one)
        total = 0.0
        for loss in batch():
            torch.autograd.backward(loss)
            total += float(loss.detach())
        total = self.world.sum([one.grad for one in self.weights if one.grad is not None], total)
        if not math.isfinite(total):
            if not all(
                np.isfinite(one).all() for feeds in self.train for one in feeds.values() if one.dtype.kind == "f"
            ):
                raise InputError(f"the loss is {total} at update {self.update}: the samples hold NaN or infinity")
            half = next((str(one.dtype)[6:] for one in self.weights if one.dtype in _HALF), None)
            advice = f"use a lower rate (lr={options.rate})"
            if half is not None:
                advice = (
                    f"weights in {half} among others do not train: train a float32 network and cast what comes of it"
                )
            raise InputError(f"the loss is {total} at update {self.update}; {advice}")
        if options.clip:
            torch.nn.utils.clip_grad_norm_(self.weights, options.clip)
        self._move()
        self.recent = [self.recent[0] + total, self.recent[1] + 1]

    @torch.no_grad()
    def _move(self) -> None:
        """The optimiser's step, in proportion to what each weight usually is."""
        before = [one.clone() for one in self.weights] if self.sizes else []
        self.optimizer.step()
        for one, earlier, size in zip(self.weights, before, self.sizes, strict=bool(self.sizes)):
            one.copy_(torch.addcmul(earlier, one - earlier, size))

    def _batches(self, skipped: int) -> Iterator[Callable[[], Iterator[Tensor]]]:
        """For each update what gives its losses, weighted so that they add up to the batch's mean."""
        if self.loss is not None:
            yield from self._own_batches(skipped)
            return
        at = skipped
        while True:
            yield lambda at=at: self._distances(at)  # type: ignore[misc]
            at += 1

    def _distances(self, at: int) -> Iterator[Tensor]:
        size = self.options.batch
        for k in range(at * size, (at + 1) * size):
            if k % self.world.size == self.world.rank:
                epoch, place = divmod(k, len(self.train))
                order = np.random.default_rng((self.options.seed, epoch)).permutation(len(self.train))
                chosen = int(order[place])
                yield self.options.distil * self._distance(self.train[chosen], chosen) / size

    def _distance(self, feeds: Feeds, key: int | None) -> Tensor:
        wanted = self.student.teacher(feeds, key)
        with _mixed(self.device):
            found = self.student(feeds, self._overrides())
        return self.student.distance(found, wanted)

    def _own_batches(self, skipped: int) -> Iterator[Callable[[], Iterator[Tensor]]]:
        """The user's loss, and how far the outputs it saw are from the original's."""
        assert self.loss is not None
        apart: list[Tensor] = []

        def run(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
            feeds = {name: np.asarray(inputs[name]) for name in self.student.inputs}
            with _mixed(self.device):
                found = self.student(feeds, self._overrides())
            if self.options.distil:
                apart.append(self.options.distil * self.student.distance(found, self.student.teacher(feeds)))
            return {name: found[name] for name in self.student.outputs}

        count = 0
        while True:
            before = count
            for loss in self.loss(run):
                total = loss + sum(apart)
                apart.clear()
                count += 1
                if count > skipped:
                    yield lambda total=total: iter([total])  # type: ignore[misc]
                elif count == skipped:
                    yield lambda: iter(())
            if count == before:
                raise InputError(f"'{self.loss.source}' yielded nothing to train on")

    def _overrides(self) -> dict[str, Tensor]:
        return {} if self.low_rank is None else self.low_rank.merged()

    def _look(self) -> None:
        found = self._evaluated()
        mean = self.recent[0] / max(self.recent[1], 1)
        self.recent = [0.0, 0.0]
        self.history.append({"update": self.update, "loss": round(mean, 9), "held_out": round(found, 9)})
        if self.world.rank == 0:
            _log.info("update %d: loss %.5g, from the original %.5g", self.update, mean, found)
        if self.loss is not None:  # labels are not held out, and nearest to the original is not what is trained for
            self.best, self.best_update, self.best_state = found, self.update, self._state()
            self.least, self.worse = min(self.least, mean), 0 if mean < self.least else self.worse + 1
        elif found < self.best:
            self.best, self.best_update, self.best_state, self.worse = found, self.update, self._state(), 0
        else:
            self.worse += 1
            if self.low_rank is None and found > _LOST * self.best:
                self._turn_back(found)

    def _turn_back(self, found: float) -> None:
        """From the best weights again, with fresh moments and a lower rate; what was tried is lost anyhow."""
        self.slowed += 1
        self._load(self.best_state)
        self.optimizer.state.clear()
        if self.world.rank == 0:
            _log.warning(
                "update %d: %.3g from the original, %.3g were reached before: the rate is too high. Going on from "
                "update %d with %g times the rate", self.update, found, self.best, self.best_update,
                _SLOWER**self.slowed,
            )  # fmt: skip

    @torch.no_grad()
    def _evaluated(self) -> float:
        """Mean distance from the original on what was held out."""
        self.module.eval()
        offset = len(self.train) if self.held is not self.train else 0
        total = sum(float(self._distance(one, offset + k)) for k, one in enumerate(self.held))
        self.module.train(self.options.statistics)
        return total / len(self.held)

    # --- What is kept ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _state(self) -> dict[str, Tensor]:
        held = {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()}
        return {**held, **{name: value.detach().cpu().clone() for name, value in self._overrides().items()}}

    @torch.no_grad()
    def _load(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.module.state_dict().items():
            value.copy_(state[name])

    def _write_checkpoint(self) -> None:
        if self.out is None or self.world.rank:
            return
        state = {
            "key": self.key,
            "update": self.update,
            "module": self.module.state_dict(),
            "low_rank": None if self.low_rank is None else self.low_rank.state(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_state(),
            "best": (self.best, self.best_update, self.worse, self.before, self.least),
            "best_state": self.best_state,
            "slowed": self.slowed,
            "recent": self.recent,
            "history": self.history,
        }
        temporary = self.out / ".checkpoint.pt.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.out / "checkpoint.pt")

    def _checkpoint_held(self) -> dict[str, Any] | None:
        assert self.out is not None
        path = self.out / "checkpoint.pt"
        if not path.exists():
            _log.warning("there is no checkpoint in '%s' to go on from: training starts from the beginning", self.out)
            return None
        try:
            held: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:
            raise InputError(f"the checkpoint '{path}' cannot be read ({error}); start without resume") from error
        if held.get("key") != self.key:
            raise UsageError(f"the checkpoint '{path}' is of other options, samples or another network")
        return held

    @torch.no_grad()
    def _restore(self, held: Mapping[str, Any]) -> None:
        self._load(held["module"])
        if self.low_rank is not None:
            self.low_rank.restore(held["low_rank"])
        self.optimizer.load_state_dict(held["optimizer"])
        set_random_state(held["random"])
        self.update = int(held["update"])
        self.best, self.best_update, self.worse, self.before, self.least = held["best"]
        self.best_state = {name: value.cpu() for name, value in held["best_state"].items()}
        self.slowed = int(held["slowed"])
        self.recent, self.history = list(held["recent"]), list(held["history"])

    def _write(self, result: FinetuneResult) -> None:
        assert self.out is not None
        path = self.out / "model.onnx"
        written = write_onnx(result.network.program.model, path)
        document = {
            "format": _FORMAT,
            "options": self.options.to_json(),
            "samples": {"count": self.samples.count, "sha256": self.samples.digest(),
                        "held_out": len(self.held) if self.held is not self.train else 0},
            "source_sha256": {} if self.network.source is None else sha256_of(self.network.source),
            "artefact_sha256": sha256_of(path, [one.name for one in written[:-1]]),
            "updates": result.updates,
            "best_update": result.best,
            "distance": {"before": result.before, "after": result.after},
            "history": list(result.history),
            "seconds": round(result.seconds, 3),
        }  # fmt: skip
        (self.out / "finetune.json").write_bytes(to_bytes(document))
        (self.out / "checkpoint.pt").unlink(missing_ok=True)


def _widened(module: fx.GraphModule) -> fx.GraphModule:
    """In float32 where all weights are half of that, in which AdamW's epsilon and small steps are zero."""
    kinds = {one.dtype for one in module.parameters()}
    return module.float() if len(kinds) == 1 and kinds <= set(_HALF) else module


def _rate(update: int, updates: int, warm_up: float) -> float:
    """The share of the learning rate at an update: linear warm-up, then a cosine to zero."""
    warm = max(1, round(warm_up * updates))
    return min((update + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * max(0, update - warm) / max(1, updates - warm)))


def _device(wanted: str | None) -> torch.device:
    """The device, or UsageError where PyTorch has none of that name here."""
    name = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: PyTorch {torch.__version__} has no such device here") from error


def _mixed(device: torch.device) -> Any:
    """Mixed precision where the device has a type for it."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()
