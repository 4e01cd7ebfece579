"""Widths that keep the most importance within limits on time (and parameters, and MACs).

A layer's time depends on two widths or more, so this is a knapsack with products. Two ways are tried and the better
kept:

* *greedy*: from the whole network, always the step that saves the most of what is still too much per importance lost
  (the marginal rule of HALP and ZipLM), with steps as long as they have to be to get over a plateau of the curve; then
  what room is left is filled up;
* *integer programme*: around the best widths known, every group's widths cost what they cost while the others stay;
  the multiple-choice knapsack of all of them is solved (HiGHS), and the next one is set up around its solution.

At last single groups are cut a little further where others gain more from the room.

A width that costs no less than a larger one (the plateau of a step curve, a misaligned kernel) is never chosen.
"""

from __future__ import annotations

import heapq
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import TargetError
from graphprune.passes.allocate.steps import Ints, Steps
from graphprune.passes.score.base import Floats, Scores

__all__ = ["Resource", "Solution", "WidthProblem"]

Counts = Mapping[str, float]
_Kind = TypeVar("_Kind", np.int64, np.float64)

_ROUNDS = 4  # integer programmes at most, each around the solution of the one before
_NEAR = 2.0  # a width more than this factor away is not among a programme's choices: products are not linear
_CHOICES = 32  # widths of a group in one programme
_STEPS = 128  # widths of a group on the way down; where no plateaus thin them out, single units would take long
_NODES = 32  # of the branch-and-bound tree: a limit on its time would give other widths on another machine
_DOWN = 4  # steps down that are tried in an exchange
_EXCHANGES = 1000  # groups looked at in exchanges: with many groups a single one matters little
_GAP = 1e-4  # of the importance: what is solved is linear only near its centre anyway


@dataclass(frozen=True)
class Resource:
    """What is limited.

    Attributes:
        name: For messages: ``latency``, ``params``, ``macs``.
        limit: The most allowed.
        total: Amount at the groups' kept counts.
        sweep: ``sweep(group, widths, counts)``: amount of all that depends on a group, at each of its widths with
            everything else at ``counts``.
        near: Per group those that share a term with it.
    """

    name: str
    limit: float
    total: Callable[[Counts], float] = field(repr=False)
    sweep: Callable[[str, Floats, Counts], Floats] = field(repr=False)
    near: Mapping[str, frozenset[str]] = field(repr=False)


@dataclass(frozen=True)
class Solution:
    """Kept counts of the groups that may be cut. ``value``: the importance kept; ``method``: who found it."""

    counts: Mapping[str, int]
    value: float
    method: str


@dataclass(frozen=True)
class WidthProblem:
    """``steps`` says which counts are allowed and in which order units go, ``scores`` what they are worth.

    ``fixed`` are the counts of groups that are not up for choice.
    """

    steps: Steps
    scores: Scores
    resources: tuple[Resource, ...]
    fixed: Mapping[str, float] = field(default_factory=dict)

    def solve(self) -> Solution:
        """The best widths found.

        Raises:
            TargetError: even the floors are above a limit; the message says by how much.
        """
        floors, whole = (
            {**self.fixed, **{name: float(counts[at]) for name, counts in self._counts.items()}} for at in (0, -1)
        )
        if over := [one for one in self.resources if one.total(floors) > one.limit]:
            raise TargetError(_cannot(over, floors, whole))
        best = self._fill(self._greedy(), "greedy")
        limits = [one.limit for one in self.resources]
        for _ in range(_ROUNDS):
            found = self._programme(best.counts, limits)
            if found is None:
                break
            totals = [one.total({**self.fixed, **found}) for one in self.resources]
            # Two widths of one layer that both grow cost more together than each by itself: ask for less next time.
            limits = [
                limit * min(1.0, one.limit / total) if total > one.limit else limit
                for one, limit, total in zip(self.resources, limits, totals, strict=True)
            ]
            if any(total > one.limit for one, total in zip(self.resources, totals, strict=True)):
                continue
            tried = self._fill(found, "integer programme")
            gained = (tried.value - best.value) / max(abs(best.value), 1e-30)
            best = max(best, tried, key=lambda one: one.value)
            if gained < _GAP / 10:
                break
        return self._exchanged(best)

    def _exchanged(self, best: Solution) -> Solution:
        """What a few steps down of one group make room for elsewhere, as long as that brings something."""
        looked = 0
        improved = True
        while improved:
            improved = False
            for name, allowed in self._levels.items():
                lower = allowed[allowed < best.counts[name]][-_DOWN:]
                for width in lower[::-1]:
                    looked += len(best.counts)
                    if looked > _EXCHANGES:
                        return best
                    tried = self._fill({**best.counts, name: float(width)}, "exchange")
                    if tried.value > best.value * (1 + 1e-9):
                        best, improved = tried, True
                        break
        return best

    @cached_property
    def _counts(self) -> dict[str, Ints]:
        """Per group the counts to choose from: those that cost less than every larger one, beside whole neighbours."""
        allowed = {group.id: counts for group, counts in zip(self.steps.groups, self.steps.counts, strict=True)}
        whole = {name: float(counts[-1]) for name, counts in allowed.items()}
        every = [1.0 / one.limit for one in self.resources]
        return {
            name: counts[_undominated(self._costs(name, counts.astype(np.float64), whole, every))]
            for name, counts in allowed.items()
        }

    @cached_property
    def _levels(self) -> dict[str, Ints]:
        """Per group the counts that the way down stops at."""
        return {name: _thinned(counts, _STEPS) for name, counts in self._counts.items()}

    @cached_property
    def _values(self) -> dict[str, Floats]:
        """Per group the importance kept at each allowed count: of those that go last."""
        found = {}
        for group, rank in zip(self.steps.groups, self.steps.rank, strict=True):
            order = np.argsort(-rank, kind="stable")
            kept = np.concatenate([[0.0], np.cumsum(self.scores.values[group.id][order])])
            found[group.id] = kept[self._counts[group.id]]
        return found

    def value(self, counts: Mapping[str, float]) -> float:
        """The importance kept at these counts."""
        return float(
            sum(values[np.searchsorted(self._counts[name], counts[name])] for name, values in self._values.items())
        )

    def _greedy(self) -> dict[str, float]:
        """Down from the whole network, by lazy updates.

        A group's best step is worth less when a neighbour has shrunk: it is looked at again only when its turn comes.
        """
        counts = {name: float(each[-1]) for name, each in self._counts.items()}
        totals = self._totals(counts)
        weights = self._weights(totals)
        version = dict.fromkeys(counts, 0)
        heap: list[tuple[float, str, int, float]] = []

        def push(name: str) -> None:
            step = self._best_step(name, counts, weights)
            if step is not None:
                heapq.heappush(heap, (-step[0], name, version[name], step[1]))

        for name in counts:
            push(name)
        while any(weights) and heap:
            _, name, seen, width = heapq.heappop(heap)
            if seen != version[name]:
                push(name)
                continue
            here = np.array([counts[name], width])
            full = {**self.fixed, **counts}
            for index, one in enumerate(self.resources):
                before, after = one.sweep(name, here, full)
                totals[index] += after - before
            counts[name] = width
            for other in {name, *self._near(name)} & counts.keys():
                version[other] += 1
            if self._weights(totals) == weights:
                push(name)
                continue
            totals = self._totals(counts)  # without what adding up rounded away
            weights = self._weights(totals)  # a limit is met: every step is worth something else now
            heap.clear()
            for other in counts:
                push(other)
        return counts

    def _near(self, name: str) -> frozenset[str]:
        return frozenset().union(*(one.near.get(name, frozenset()) for one in self.resources))

    def _totals(self, counts: Mapping[str, float]) -> list[float]:
        return [one.total({**self.fixed, **counts}) for one in self.resources]

    def _weights(self, totals: Sequence[float]) -> list[float]:
        """What a unit of each resource is worth: nothing once it is within its limit."""
        return [
            1.0 / one.limit if total > one.limit else 0.0 for one, total in zip(self.resources, totals, strict=True)
        ]

    def _best_step(
        self, name: str, counts: Mapping[str, float], weights: Sequence[float]
    ) -> tuple[float, float] | None:
        """The best step down of a group: what it saves per importance lost, and where it leads."""
        allowed = self._levels[name][self._levels[name] <= counts[name]]
        if len(allowed) < 2:
            return None
        values = self._values[name][np.searchsorted(self._counts[name], allowed)]
        cost = self._costs(name, allowed.astype(np.float64), counts, weights)
        saved = cost[-1] - cost[:-1]
        lost = np.maximum(values[-1] - values[:-1], 1e-30)
        rate = saved / lost
        step = int(np.argmax(rate))
        return (float(rate[step]), float(allowed[step])) if saved[step] > 0 else None

    def _costs(self, name: str, widths: Floats, counts: Mapping[str, float], weights: Sequence[float]) -> Floats:
        full = {**self.fixed, **counts}
        cost = np.zeros(len(widths))
        for one, weight in zip(self.resources, weights, strict=True):
            if weight:
                cost += weight * one.sweep(name, widths, full)
        return cost

    def _fill(self, counts: Mapping[str, float], method: str) -> Solution:
        """Use up what room is left: the step up that brings the most importance per cost, while any fits."""
        held = dict(counts)
        every = [1.0 / one.limit for one in self.resources]
        open_groups = set(held)
        while open_groups:
            room = [one.limit - total for one, total in zip(self.resources, self._totals(held), strict=True)]
            best: tuple[float, str, float] | None = None
            for name in sorted(open_groups):
                step = self._step_up(name, held, every, room)
                if step is None:
                    open_groups.discard(name)  # another group's growth never makes room
                elif best is None or step[0] > best[0]:
                    best = (step[0], name, step[1])
            if best is None:
                break
            held[best[1]] = best[2]
        return Solution({name: int(count) for name, count in held.items()}, self.value(held), method)

    def _step_up(
        self, name: str, counts: Mapping[str, float], weights: Sequence[float], room: Sequence[float]
    ) -> tuple[float, float] | None:
        allowed, values = self._counts[name], self._values[name]
        at = int(np.searchsorted(allowed, counts[name]))
        if at == len(allowed) - 1:
            return None
        widths = allowed[at:].astype(np.float64)
        fits = np.ones(len(widths) - 1, dtype=np.bool_)
        cost = np.zeros(len(widths) - 1)
        for one, weight, left in zip(self.resources, weights, room, strict=True):
            amounts = one.sweep(name, widths, {**self.fixed, **counts})
            fits &= amounts[1:] - amounts[0] <= left
            cost += weight * (amounts[1:] - amounts[0])
        gained = values[at + 1 :] - values[at]
        if not fits.any():
            return None
        rate = np.where(fits, gained / np.maximum(cost, 1e-12), -1.0)
        # Of equal rates (a plateau costs nothing) the widest.
        step = len(rate) - 1 - int(np.argmax(rate[::-1]))
        return (float(rate[step]), float(widths[step + 1])) if gained[step] > 0 else None

    def _programme(self, counts: Mapping[str, float], limits: Sequence[float]) -> dict[str, float] | None:
        """The multiple-choice knapsack around ``counts``; None where HiGHS finds nothing."""
        from scipy import optimize, sparse

        base = self._totals(counts)
        names, widths, values = [], [], []
        amounts: list[list[Floats]] = [[] for _ in self.resources]
        weights = [1.0 / one.limit for one in self.resources]
        for name in sorted(counts):
            choices = self._choices(name, counts, weights)
            names += [name] * len(choices)
            widths += choices.tolist()
            values += self._values[name][np.searchsorted(self._counts[name], choices)].tolist()
            here = np.append(choices, counts[name])
            for index, one in enumerate(self.resources):
                swept = one.sweep(name, here, {**self.fixed, **counts})
                amounts[index].append(swept[:-1] - swept[-1])
        row = {name: index for index, name in enumerate(sorted(counts))}
        columns = np.arange(len(names))
        one_each = sparse.csr_matrix((np.ones(len(names)), ([row[name] for name in names], columns)))
        budget = np.stack([np.concatenate(parts) for parts in amounts])
        scale = np.array(limits)
        constraints = [
            optimize.LinearConstraint(one_each, 1.0, 1.0),
            optimize.LinearConstraint(budget / scale[:, None], -np.inf, (scale - np.array(base)) / scale),
        ]
        top = max(max(values), 1e-30)
        with _silenced():
            result = optimize.milp(
                -np.array(values) / top,
                constraints=constraints,
                integrality=np.ones(len(names)),
                bounds=optimize.Bounds(0, 1),
                options={"mip_rel_gap": _GAP, "node_limit": _NODES},
            )
        if result.x is None:
            return None
        return {names[index]: float(widths[index]) for index in np.flatnonzero(result.x > 0.5)}

    def _choices(self, name: str, counts: Mapping[str, float], weights: Sequence[float]) -> Floats:
        """Widths near the present one that cost less than every larger one, at most a few."""
        allowed = self._counts[name].astype(np.float64)
        near = allowed[(allowed >= counts[name] / _NEAR) & (allowed <= counts[name] * _NEAR)]
        left = _thinned(near[_undominated(self._costs(name, near, counts, weights))], _CHOICES)
        return np.union1d(left, [counts[name]])


def _thinned(widths: NDArray[_Kind], most: int) -> NDArray[_Kind]:
    """At most so many of the widths (ascending), evenly among them, the first and the last included."""
    if len(widths) <= most:
        return widths
    return np.take(widths, np.linspace(0, len(widths) - 1, most).round().astype(int))


@contextmanager
def _silenced() -> Iterator[None]:
    """HiGHS prints a line of its own to the standard output now and then, which belongs to the user's JSON."""
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        held = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(held, 1)
        os.close(held)
        os.close(nowhere)


def _undominated(cost: Floats) -> NDArray[np.bool_]:
    """Which widths (ascending) cost less than every larger one; the largest always."""
    return np.append(cost[:-1] < np.minimum.accumulate(cost[::-1])[::-1][1:], True)


def _cannot(over: Sequence[Resource], floors: Counts, whole: Counts) -> str:
    taken = [(one.name, one.total(floors) / one.total(whole), one.total(floors) / one.limit) for one in over]
    said = ", ".join(f"{share:.3g}x of the {name}, {times:.3g} times what may be used" for name, share, times in taken)
    return f"with every group cut to its floor the network still takes {said}; lower --floor, or allow more"
