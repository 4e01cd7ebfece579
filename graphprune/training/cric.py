"""CRIC: before HESSO fades anything, fading is tried and taken back, until no further units turn up as dispensable."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphprune.errors import UsageError
from graphprune.training.hesso import HESSO, Floats, hesso_scores
from graphprune.training.optimizer import _array, _tensor

__all__ = ["CRIC"]

_SHARES = (0.25, 0.5, 0.75)
_WEIGHT = 0.2  # that of each term of a score
_TINY = 1e-12


class CRIC(HESSO):
    """HESSO with a corrective cycle before it (Chen et al., "HESSO", 2024: HESSO-CRIC), against layers that collapse.

    At step ``start`` the loss is looked at with the lowest quarter, half and three quarters of each group's units
    zeroed, one group at a time. Then cycles of ``sampling`` steps: the units that would go are faded, the scores of all
    others are collected, and everything is put back; the next cycle fades those that would go only now. It ends when no
    more than the share ``tolerance`` of all units are new, or after ``cycles``. The units with the lowest sum of mean
    score and of their share in their group's loss go in HESSO's periods of fading.

    Args:
        loss: computes the loss of the module on some fixed samples; without it ``step`` needs a closure.
    """

    def __init__(
        self,
        *args: Any,
        loss: Callable[[], Any] | None = None,
        sampling: int = 10,
        cycles: int = 10,
        tolerance: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        if sampling < 2 or cycles < 1 or not 0 <= tolerance < 1:
            raise UsageError(
                f"sampling={sampling}, cycles={cycles}, tolerance={tolerance}: at least 2 steps, at least 1 cycle, and "
                "a share of the units from 0 to 1"
            )
        self.loss, self.sampling, self.cycles, self.tolerance = loss, sampling, cycles, tolerance
        self.begun = self.start  # of the cycles; `start` moves on to where the fading for good begins
        self.cycle = -1
        self.settled = False
        self.seen = np.zeros(self.groups.count, dtype=np.bool_)
        self.entrants = np.zeros(self.groups.count, dtype=np.bool_)
        self.sums: Floats = np.zeros(self.groups.count)
        self.counts: Floats = np.zeros(self.groups.count)
        self.losses: Floats = np.zeros(self.groups.count)
        self._cached: dict[str, Any] = {}

    @property
    def finished(self) -> bool:
        """Whether the cycles have come to an end and the last period is over."""
        return self.settled and super().finished

    def _before(self, step: int) -> None:
        if self.settled:
            super()._before(step)
            return
        if step < self.begun:
            return
        scores = hesso_scores(self.groups, self.gradients())
        if self.cycle < 0:
            self._cached = self._cache()
            self._look_at_losses(scores)
            self._collect(scores, np.ones(self.groups.count, dtype=np.bool_))
            self._start_cycle(self.budget.choose(self.groups, scores, self.gone))
            return
        self._collect(scores, ~self.fading)
        mean = self.sums / np.maximum(self.counts, 1)
        current = np.where(self.fading, mean, scores)
        self.entrants |= self.budget.choose(self.groups, current, self.gone) & ~self.seen

    def _after(self, step: int) -> None:
        if self.settled:
            super()._after(step)
            return
        if step < self.begun:
            return
        t = (step - self.begun) % self.sampling
        if t < self.sampling - 1:
            factors = np.where(self.fading, (self.sampling - t - 1) / (self.sampling - t), 1.0)
            self.groups.scale(torch.from_numpy(factors))
            return
        self._put_back()
        if self.entrants.sum() > self.tolerance * self.groups.count and self.cycle + 1 < self.cycles:
            self._start_cycle(self.entrants)
            return
        self.settled, self.start = True, step + 1
        self.fading = np.zeros_like(self.fading)

    def _begin(self, scores: Floats, done: float) -> None:
        """HESSO's choice, by what the cycles found out."""
        super()._begin(self.sums / np.maximum(self.counts, 1) + self.losses, done)

    def _start_cycle(self, units: np.ndarray[Any, Any]) -> None:
        self.cycle += 1
        self.fading = units.copy()
        self.seen = self.seen | units
        self.entrants = np.zeros_like(self.entrants)

    def _collect(self, scores: Floats, which: np.ndarray[Any, Any]) -> None:
        self.sums = self.sums + np.where(which, scores, 0.0)
        self.counts = self.counts + which

    def _look_at_losses(self, scores: Floats) -> None:
        """Per group the logarithm of the loss without its worst units over the loss with all, shared out to its units.

        The paper's term is the ratio itself, with five times the weight of a score's term: how large it is depends on
        how well the network was trained, and on a trained one it outweighs the scores.
        """
        whole = self._loss()
        for one in self.groups.groups:
            start = self.groups.offsets[one.id]
            order = start + np.argsort(scores[start : start + one.size], kind="stable")
            ratios = []
            for share in _SHARES:
                gone = np.zeros(self.groups.count, dtype=np.bool_)
                gone[order[: max(1, int(share * one.size))]] = True
                self.groups.zero(torch.from_numpy(gone))
                ratios.append(self._loss() / max(whole, _TINY))
                self._put_back(optimizer=False)
            self.losses[start : start + one.size] = _WEIGHT * math.log(max(1.0, float(np.mean(ratios)))) / one.size

    @torch.no_grad()
    def _loss(self) -> float:
        """The loss as it is now; gradients are left as they are."""
        if self.loss is not None:
            return _number(self.loss())
        if self.closure is None:
            raise UsageError("CRIC looks at the loss: give it loss=function, or optimizer.step(closure)")
        gradients = {name: value.grad for name, value in self.groups.module.named_parameters()}
        kept = {name: None if grad is None else grad.clone() for name, grad in gradients.items()}
        with torch.enable_grad():
            found = _number(self.closure())
        for name, value in self.groups.module.named_parameters():
            value.grad = kept[name]
        return found

    def _cache(self) -> dict[str, Any]:
        module = self.groups.module
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        return {
            "tensors": {name: value.detach().clone() for name, value in tensors.items()},
            "base": copy.deepcopy(self.base.state_dict()),
        }

    def _put_back(self, *, optimizer: bool = True) -> None:
        module = self.groups.module
        held: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for name, value in self._cached["tensors"].items():
            held[name].detach().copy_(value)
        if optimizer:
            rates = [group["lr"] for group in self.param_groups]  # the schedule goes on
            self.base.load_state_dict(copy.deepcopy(self._cached["base"]))
            self.param_groups, self.state = self.base.param_groups, self.base.state
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate

    def _state(self) -> dict[str, Any]:
        masks = {"seen": _tensor(self.seen), "entrants": _tensor(self.entrants)}
        sums = {"sums": _tensor(self.sums), "counts": _tensor(self.counts), "losses": _tensor(self.losses)}
        numbers = {"start": self.start, "cycle": self.cycle, "settled": self.settled}
        return {**super()._state(), **masks, **sums, **numbers, "cached": {} if self.settled else self._cached}

    def _restore(self, held: Mapping[str, Any]) -> None:
        super()._restore(held)
        self.seen, self.entrants = _array(held["seen"]), _array(held["entrants"])
        self.sums, self.counts, self.losses = (_array(held[name]) for name in ("sums", "counts", "losses"))
        self.start, self.cycle, self.settled = int(held["start"]), int(held["cycle"]), bool(held["settled"])
        self._cached = dict(held["cached"])


def _number(loss: Any) -> float:
    return float(loss.detach()) if isinstance(loss, Tensor) else float(loss)
