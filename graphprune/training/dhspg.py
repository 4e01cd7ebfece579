"""DHSPG: a chosen part of the units is penalised until a step crosses the half-space, and then set to zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphprune.errors import UsageError
from graphprune.training.optimizer import GroupOptimizer, _array, _tensor

__all__ = ["DHSPG"]

_TINY = 1e-12


class DHSPG(GroupOptimizer):
    """Dual half-space projected gradient (Chen et al., "OTOv2: Automatic, Generic, User-Friendly", 2023).

    After ``start`` steps the units are parted once: the most redundant, by the cosine of a unit's vector x with g and
    by its size over its norm, are penalised from then on (with ``allocation="global"`` groups whose vectors are long
    lose nearly all of their units). As in the authors' code g is the gradient as the base optimiser follows it: its
    step is ``-lr * g``. Each step moves them by ``-lr * strength * x / |x|`` beside it; where x and g point apart the
    strength is raised until x shrinks all the same (``amplify`` times what is needed, at most ``strongest`` times
    ``strength``). The authors' upper bound, below which the two together still go downhill, is left
    out: where they point straight apart it leaves nothing to shrink by. A unit whose new vector y has
    ``x.y < epsilon * |x|^2`` is set to zero and stays there. What is left of them after ``length`` steps is set to zero
    (``forced`` counts them).
    """

    def __init__(
        self,
        *args: Any,
        length: int,
        strength: float = 1e-3,
        amplify: float = 1.1,
        strongest: float = 1e3,
        epsilon: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        if length < 1 or strength <= 0 or amplify < 1 or strongest < 1 or not 0 <= epsilon < 1:
            raise UsageError(
                f"length={length}, strength={strength}, amplify={amplify}, strongest={strongest}, epsilon={epsilon}: "
                "at least 1 step, a strength above 0, factors of at least 1, and an epsilon from 0 to 1"
            )
        self.length, self.strength, self.amplify = length, strength, amplify
        self.strongest, self.epsilon = strongest, epsilon
        self.penalised = np.zeros(self.groups.count, dtype=np.bool_)
        self.forced = 0
        self._earlier: dict[str, Tensor] = {}

    @property
    def finished(self) -> bool:
        """Whether everything penalised is zero."""
        return self.steps > self.start and not bool((self.penalised & ~self.gone).any())

    def _before(self, step: int) -> None:
        if step >= self.start and not self.finished:
            self._earlier = {name: value.detach().clone() for name, value in self.groups.parameters.items()}

    def _after(self, step: int) -> None:
        if not self._earlier:
            return
        groups, earlier, rate = self.groups, self._earlier, float(self.param_groups[0]["lr"])
        held = groups.parameters
        steps = {name: (value - held[name].detach()) / max(rate, _TINY) for name, value in earlier.items()}
        of_x = groups.sums({name: value**2 for name, value in earlier.items()}).double().sqrt()
        product = groups.sums({name: earlier[name] * value for name, value in steps.items()}).double()
        if step == self.start:
            of_g = groups.sums({name: value**2 for name, value in steps.items()}).double().sqrt()
            cosine = product / (of_x * of_g).clamp_min(_TINY)
            thin = groups.sizes().double().to(of_x.device) / of_x.clamp_min(_TINY)
            redundant = _unit(cosine) / 2 + _unit(thin) / 2
            self.penalised = self.budget.choose(groups, -redundant.cpu().numpy(), self.gone)
        least = -product / of_x.clamp_min(_TINY)  # what only holds x; the authors' upper bound would hold it as well
        strength = (self.amplify * least).clamp(self.strength, self.strength * self.strongest)
        active = torch.from_numpy(self.penalised & ~self.gone).to(of_x.device)
        groups.add(-rate * torch.where(active, strength / of_x.clamp_min(_TINY), 0.0), earlier)
        along = groups.sums({name: value * earlier[name] for name, value in held.items()})
        crossed = (along < self.epsilon * of_x**2).cpu().numpy() | (of_x == 0).cpu().numpy()
        self.gone = self.gone | (crossed & self.penalised)
        if step + 1 >= self.start + self.length:
            left = self.penalised & ~self.gone
            self.forced += int(left.sum())
            self.gone = self.gone | left
        self._earlier = {}

    def _state(self) -> dict[str, Any]:
        return {"penalised": _tensor(self.penalised), "forced": self.forced}

    def _restore(self, held: Mapping[str, Any]) -> None:
        self.penalised, self.forced = _array(held["penalised"]), int(held["forced"])


def _unit(values: Tensor) -> Tensor:
    found: Tensor = values / values.norm().clamp_min(_TINY)
    return found
