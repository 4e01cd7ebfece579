"""Criteria that look at what the units carry on calibration data, and at the weights that read them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from graphprune.passes.score.base import NORMALIZERS, Floats, Normalizer, Tensors, normalize
from graphprune.passes.score.registry import one_of
from graphprune.passes.score.weights import Magnitude

if TYPE_CHECKING:
    from graphprune.calibration.linear import Linear
    from graphprune.calibration.observations import Observations
    from graphprune.coupling.groups import Group

__all__ = ["Activation", "Fluctuation", "Observed", "Variance", "Wanda"]


@dataclass(frozen=True)
class _OnActivations(ABC):
    """Sums a figure of each column over the columns that read a unit, over all maps that read the group."""

    needs: ClassVar[str] = "calibration"
    name: ClassVar[str] = ""
    normalize: Normalizer = "mean"

    def __post_init__(self) -> None:
        one_of(self.name, "normalize", self.normalize, NORMALIZERS)

    def on(self, observations: Observations) -> Observed:
        """The criterion with what it looks at."""
        return Observed(self, observations)

    def units(self, group: Group, observations: Observations) -> Floats | None:
        """Importance of each unit, shape ``(group.size,)``; None where nothing reads the group's units linearly."""
        offsets = observations.offsets(group.id)
        total = np.zeros(group.size)
        seen = False
        for linear in observations.linears:
            if group.id in linear.groups(observations.grouping):
                total += _summed(linear.units(offsets), self._columns(linear, observations), group.size)
                seen = True
        for pairing in observations.pairings:
            if group.id in observations.pairing_groups(pairing):
                key = (pairing.binding.node.outputs[0].name or "", pairing.letter)
                one, other = observations.energies[key]
                total += _summed(observations.pairing_units(pairing, group.id), self._pair(one, other), group.size)
                seen = True
        return normalize(self._joined(total), self.normalize) if seen else None

    @abstractmethod
    def _columns(self, linear: Linear, observations: Observations) -> Floats:
        """The figure of each column of a map, shape ``(columns,)``."""

    def _pair(self, one: Floats, other: Floats) -> Floats:
        """Of two computed values that are contracted with each other, from their mean squares."""
        return np.sqrt(one * other)

    def _joined(self, total: Floats) -> Floats:
        return total


@dataclass(frozen=True)
class Wanda(_OnActivations):
    """``sum |W_j| * ||x_j||_2`` over the columns that read unit j (Sun et al., "A Simple and Effective Pruning Approach
    for Large Language Models", 2024, summed to structures).
    """

    name: ClassVar[str] = "wanda"

    def _columns(self, linear: Linear, observations: Observations) -> Floats:
        moments = observations.diagonal[linear.name]
        weights = np.abs(observations.weights(linear)).sum(axis=1)
        return np.asarray((weights * np.sqrt(moments.second)).sum(axis=0))


@dataclass(frozen=True)
class Fluctuation(_OnActivations):
    """``Var(x_j) * ||W_j||^2``, standardised within each group (FLAP: An et al., "Fluctuation-based Adaptive Structured
    Pruning for Large Language Models", 2024). Meant with ``--repair bias``, which keeps the mean.
    """

    name: ClassVar[str] = "fluctuation"
    normalize: Normalizer = "gaussian"

    def _columns(self, linear: Linear, observations: Observations) -> Floats:
        moments = observations.diagonal[linear.name]
        weights = (observations.weights(linear) ** 2).sum(axis=1)
        return np.asarray((weights * moments.variance).sum(axis=0))

    def _pair(self, one: Floats, other: Floats) -> Floats:
        return one * other


@dataclass(frozen=True)
class Variance(_OnActivations):
    """``Var(x_j)`` (VBP: Hossain et al., "Variance-Based Pruning for Accelerating and Compressing Trained Networks",
    2025). Meant with ``--repair bias``.
    """

    name: ClassVar[str] = "variance"

    def _columns(self, linear: Linear, observations: Observations) -> Floats:
        return np.asarray(observations.diagonal[linear.name].variance.mean(axis=0))

    def _pair(self, one: Floats, other: Floats) -> Floats:
        return one + other


@dataclass(frozen=True)
class Activation(_OnActivations):
    """The root mean square of what a unit carries (2SSP: Sandri et al., 2025; Minitron: Muralidharan et al., 2024)."""

    name: ClassVar[str] = "activation"

    def _columns(self, linear: Linear, observations: Observations) -> Floats:
        return np.asarray(observations.diagonal[linear.name].second.mean(axis=0))

    def _pair(self, one: Floats, other: Floats) -> Floats:
        return one + other

    def _joined(self, total: Floats) -> Floats:
        return np.sqrt(total)


@dataclass(frozen=True)
class Observed:
    """A criterion together with its observations; groups that nothing reads linearly are scored by magnitude."""

    criterion: _OnActivations
    observations: Observations

    @property
    def name(self) -> str:
        """The criterion's."""
        return self.criterion.name

    def score(self, group: Group, tensors: Tensors, *, scales: frozenset[str] = frozenset()) -> Floats:
        """Importance of each unit, shape ``(group.size,)``."""
        found = self.criterion.units(group, self.observations)
        return Magnitude(normalize=self.criterion.normalize).score(group, tensors) if found is None else found

    def remark(self, group: Group, *, scales: frozenset[str] = frozenset()) -> str | None:
        """One sentence where magnitude was used instead."""
        if self.criterion.units(group, self.observations) is not None:
            return None
        return f"Group '{group.id}' is read by no linear map of float weights; scored by magnitude instead."


def _summed(units: np.ndarray, columns: Floats, size: int) -> Floats:
    inside = units >= 0
    return np.asarray(np.bincount(units[inside], columns[inside], size), dtype=np.float64)
