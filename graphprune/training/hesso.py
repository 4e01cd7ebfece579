"""HESSO: units fade to zero, period after period, while the network is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.errors import UsageError
from graphprune.training.groups import ModuleGroups
from graphprune.training.optimizer import GroupOptimizer, _array, _tensor

__all__ = ["HESSO", "hesso_scores"]

Floats = NDArray[np.float64]
_TINY = 1e-12


@torch.no_grad()
def hesso_scores(groups: ModuleGroups, gradients: Mapping[str, Tensor]) -> Floats:
    """Importance of each unit, (count,): the mean of five terms, each of Euclidean norm 1 over all units.

    With the unit's vector x of n elements and its gradient g: the norm of x; that norm over n; the cosine between x and
    the descent direction -g, plus one (training drives a unit towards zero where x and g point the same way); |x.g|,
    the first-order change of the loss without the unit; and (x.g)^2 / 2 for the second order (Chen et al., "HESSO:
    Towards Automatic Efficient and User Friendly Any Neural Network Training and Pruning", 2024).
    """
    held = groups.parameters
    of_x = groups.sums({name: value**2 for name, value in held.items()}).double().sqrt()
    of_g = groups.sums({name: value**2 for name, value in gradients.items()}).double().to(of_x.device).sqrt()
    product = groups.sums({name: held[name] * value for name, value in gradients.items()}).double().to(of_x.device)
    sizes = groups.sizes().double().clamp_min(1)
    terms = (
        of_x,
        of_x / sizes,
        1 - product / (of_x * of_g).clamp_min(_TINY),
        product.abs(),
        product**2 / 2,
    )
    total = sum(0.2 * one / one.norm().clamp_min(_TINY) for one in terms)
    assert isinstance(total, Tensor)
    return np.asarray(total.cpu().numpy(), dtype=np.float64)


class HESSO(GroupOptimizer):
    """Trains, and takes units out on the way (Chen et al., "HESSO", 2024).

    After ``start`` steps come ``periods`` periods of ``fade`` steps each. At the beginning of a period the units with
    the lowest scores (:func:`hesso_scores`, averaged over the last ``window`` steps) are chosen; in its step t all
    their slices are multiplied by ``(fade - t - 1) / (fade - t)``, so that they go to zero evenly; there they are held.

    >>> optimizer = graphprune.optim.HESSO(module, inputs, lr=1e-3, target=0.5, start=100, periods=5, fade=50)
    >>> ...  # the usual loop: loss.backward(); optimizer.step(); optimizer.zero_grad()
    >>> network = optimizer.cut()
    """

    def __init__(self, *args: Any, periods: int = 5, fade: int = 50, window: int = 10, **options: Any) -> None:
        super().__init__(*args, **options)
        if periods < 1 or fade < 1 or window < 1:
            raise UsageError(f"periods={periods}, fade={fade}, window={window}: numbers of at least 1")
        self.periods, self.fade, self.window = periods, fade, window
        self.fading = np.zeros(self.groups.count, dtype=np.bool_)
        self.scores: Floats = np.zeros(self.groups.count)
        self.scored = 0

    @property
    def finished(self) -> bool:
        """Whether the last period is over."""
        return self.steps >= self.start + self.periods * self.fade

    def _before(self, step: int) -> None:
        at = step - self.start
        period = max(0, -(-at // self.fade))  # the next to begin, this one where it begins now
        if period < self.periods and self.start + period * self.fade - step < self.window:
            self.scores = self.scores + hesso_scores(self.groups, self.gradients())
            self.scored += 1
        if at >= 0 and at % self.fade == 0 and period < self.periods:
            self._begin(self.scores / max(self.scored, 1), (period + 1) / self.periods)
            self.scores, self.scored = np.zeros(self.groups.count), 0

    def _begin(self, scores: Floats, done: float) -> None:
        """Choose who fades from now on."""
        self.fading = self.budget.choose(self.groups, scores, self.gone, done) & ~self.gone

    def _after(self, step: int) -> None:
        at = step - self.start
        if at >= 0 and self.fading.any():
            self._fade(at % self.fade, self.fade)

    def _fade(self, t: int, steps: int) -> None:
        """Step t of a fading over so many steps; at its end they are gone."""
        if t == steps - 1:
            self.gone = self.gone | self.fading
            self.fading = np.zeros_like(self.fading)
        else:
            factors = np.where(self.fading, (steps - t - 1) / (steps - t), 1.0)
            self.groups.scale(torch.from_numpy(factors))

    def _state(self) -> dict[str, Any]:
        return {"fading": _tensor(self.fading), "scores": _tensor(self.scores), "scored": self.scored}

    def _restore(self, held: Mapping[str, Any]) -> None:
        self.fading, self.scores = _array(held["fading"]), _array(held["scores"])
        self.scored = int(held["scored"])
