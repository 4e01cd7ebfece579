"""Optimal Brain Surgeon for structures: what is lost when a unit goes and its readers are refitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphprune.passes.score.base import Floats, Tensors
from graphprune.passes.score.weights import Magnitude

if TYPE_CHECKING:
    from graphprune.calibration.observations import Observations
    from graphprune.coupling.groups import Group

__all__ = ["Curves", "Obs"]

_CHUNKS = 64  # removals of a group at most; where it has more units several go at a time


@dataclass(frozen=True)
class Obs:
    """The variance of its readers' results that removing a unit loses, after the readers were refitted to the rest.

    Units go one after another, always those that lose the least, ``tr(W_S [H^-1_SS]^-1 W_S^T)`` for the columns ``S``
    that read the unit; then the readers' weights and ``H^-1`` are updated (ZipLM: Kurtic et al. 2023; OBSPA and SPA:
    Wang et al. 2024). ``H`` is the covariance of what the readers read. The scores of a group add up to its whole
    loss, so that what an allocation keeps of them is what it keeps of the network's layers.

    Args:
        centred: ``H`` is the centred covariance: the mean is repaired in the bias. Otherwise the second moment.
        damp: what is added to the diagonal of ``H``, of its mean.
    """

    needs: ClassVar[str] = "calibration"
    name: ClassVar[str] = "obs"
    estimates_loss: ClassVar[bool] = True
    centred: bool = True
    damp: float = 0.01

    def on(self, observations: Observations) -> Curves:
        """The criterion with what it looks at."""
        return Curves(self, observations)


@dataclass
class _Map:
    """A linear map while its columns go: ``weights`` ``(B, out, n)``, ``inverse`` ``(B, n, n)``, units of columns."""

    weights: Floats
    inverse: Floats
    units: NDArray[np.int64]
    norm: float

    def losses(self, left: NDArray[np.int64]) -> Floats:
        """What removing each of the units ``left`` loses, shape ``(len(left),)``."""
        found = np.zeros(len(left))
        if not self.units.size:  # where channels are shuffled, a map reads some of a group's units only
            return found
        at = np.full(int(max(left.max(), self.units.max())) + 1, -1)
        at[left] = np.arange(len(left))
        inside = np.flatnonzero((self.units >= 0) & (at[self.units] >= 0))
        inside = inside[np.argsort(self.units[inside], kind="stable")]
        names, counts = np.unique(self.units[inside], return_counts=True)
        starts = np.cumsum(counts) - counts
        for count in np.unique(counts):
            chosen = np.flatnonzero(counts == count)
            index = inside[starts[chosen][:, None] + np.arange(count)]  # units, columns of each
            columns = self.weights[:, :, index]  # B, out, units, count
            if count == 1:
                scale = np.diagonal(self.inverse, axis1=1, axis2=2)[:, index[:, 0]]
                lost = ((columns[..., 0] ** 2).sum(axis=1) / scale).sum(axis=0)
            else:
                blocks = self.inverse[:, index[:, :, None], index[:, None, :]]
                gram = np.einsum("boux,bouy->buxy", columns, columns, optimize=True)
                lost = np.trace(np.linalg.solve(blocks, gram), axis1=2, axis2=3).sum(axis=0)
            found[at[names[chosen]]] = lost
        return found / self.norm

    def remove(self, gone: NDArray[np.int64]) -> float:
        """Take units out, refit, and give what that lost."""
        out = np.flatnonzero(np.isin(self.units, gone))
        if not out.size:
            return 0.0
        lost = 0.0
        rest = np.flatnonzero(~np.isin(self.units, gone))
        weights, inverse = [], []
        for one, own in zip(self.weights, self.inverse, strict=True):
            block, across = own[np.ix_(out, out)], own[np.ix_(out, rest)]
            solved = np.linalg.solve(block, np.concatenate([across, one[:, out].T], axis=1))
            change = solved[:, : len(rest)]
            lost += float((one[:, out].T * solved[:, len(rest) :]).sum())
            weights.append(one[:, rest] - one[:, out] @ change)
            inverse.append(own[np.ix_(rest, rest)] - across.T @ change)
        self.weights, self.inverse, self.units = np.stack(weights), np.stack(inverse), self.units[rest]
        return lost / self.norm


@dataclass
class Curves:
    """Losses of groups as their units go, computed for all groups at the first question."""

    estimates_loss: ClassVar[bool] = True
    criterion: Obs
    observations: Observations
    _found: dict[str, Floats] | None = None

    @property
    def name(self) -> str:
        """The criterion's."""
        return self.criterion.name

    def score(self, group: Group, tensors: Tensors, *, scales: frozenset[str] = frozenset()) -> Floats:
        """What each unit loses when it is its turn to go, shape ``(group.size,)``."""
        found = self._all().get(group.id)
        if found is None:
            rest = Magnitude().score(group, tensors)
            typical = [float(one.mean()) for one in self._all().values()]
            return rest / max(float(rest.mean()), 1e-30) * (float(np.median(typical)) if typical else 1.0)
        return found

    def remark(self, group: Group, *, scales: frozenset[str] = frozenset()) -> str | None:
        """One sentence where magnitude was used instead."""
        if group.id in self._all():
            return None
        if any(group.id in one.groups(self.observations.grouping) for one in self.observations.linears):
            return f"What reads group '{group.id}' does not vary on these samples; scored by magnitude instead."
        return f"Group '{group.id}' is read by no linear map of float weights; scored by magnitude instead."

    def _all(self) -> dict[str, Floats]:
        if self._found is None:
            self._found = self._computed()
        return self._found

    def _computed(self) -> dict[str, Floats]:
        seen = self.observations
        sizes = {one.id: one.size for one in seen.grouping.groups}
        found: dict[str, Floats] = {}
        waiting: dict[str, int] = {}
        reading = {one.name: one.groups(seen.grouping) for one in seen.linears}
        for names in reading.values():
            for name in names:
                waiting[name] = waiting.get(name, 0) + 1
        parts: dict[str, list[Floats]] = {}
        for portion in seen.portions():
            moments = seen.covariances(portion)
            together: dict[str, list[_Map]] = {}
            for linear in portion:
                weights = seen.weights(linear)
                if weights.shape[1] > weights.shape[2]:  # only W^T W counts
                    weights = np.stack([np.linalg.qr(one, mode="r") for one in weights])
                of = moments[linear.name]
                second = of.covariance
                if not self.criterion.centred:
                    second = second + of.mean[:, :, None] * of.mean[:, None, :]
                norm = float(np.einsum("boq,bqr,bor->", weights, second, weights, optimize=True))
                if norm <= 0:
                    continue
                n = second.shape[1]
                lift = self.criterion.damp * np.maximum(np.trace(second, axis1=1, axis2=2) / n, 1e-30)
                inverse = np.linalg.inv(second + lift[:, None, None] * np.eye(n))
                for name in reading[linear.name]:
                    units = linear.units(seen.offsets(name))
                    together.setdefault(name, []).append(_Map(weights, inverse, units, norm))
            for name, maps in together.items():
                parts.setdefault(name, []).append(_curve(maps, sizes[name]))
        for pairing in seen.pairings:
            one, other = seen.energies[pairing.binding.node.outputs[0].name or "", pairing.letter]
            share = one * other / max(float((one * other).sum()), 1e-30)
            for name in seen.pairing_groups(pairing):
                units = seen.pairing_units(pairing, name)
                inside = units >= 0
                of_units = np.bincount(units[inside], share[inside], sizes[name])
                parts.setdefault(name, []).append(of_units.astype(np.float64))
        for name, several in parts.items():
            found[name] = np.sum(several, axis=0)
        return found


def _curve(maps: Sequence[_Map], size: int) -> Floats:
    """Scores of a group's units: what each loses in its turn, never less than those before it."""
    from scipy.optimize import isotonic_regression

    maps = [_Map(one.weights, one.inverse, one.units, one.norm) for one in maps]
    left = np.arange(size)
    step = max(1, size // _CHUNKS)
    order: list[int] = []
    lost: list[float] = []
    while len(left):
        single = np.sum([one.losses(left) for one in maps], axis=0)
        chosen = np.argsort(single, kind="stable")[: min(step, len(left))]
        gone = left[chosen]
        if len(gone) == len(left):  # the last ones lose all that is left
            total = float(sum(one.norm and _rest(one) for one in maps))
        else:
            total = sum(one.remove(gone) for one in maps)
        share = single[chosen] / max(float(single[chosen].sum()), 1e-30)
        order += gone.tolist()
        lost += (share * total).tolist()
        left = np.delete(left, chosen)
    scores = np.empty(size)
    scores[order] = isotonic_regression(np.asarray(lost)).x
    return scores


def _rest(one: _Map) -> float:
    """What is lost with the last units."""
    inside = one.units >= 0
    if not inside.any():
        return 0.0
    copy = _Map(one.weights, one.inverse, one.units, one.norm)
    return copy.remove(np.unique(one.units[inside]))
