"""Meets a latency target on the measured artefact: profile, solve on the curves, build, measure, correct, again."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import NoiseError, TargetError, UsageError
from graphprune.latency.figures import Statistic, enough_for, figure_of
from graphprune.latency.measure import Comparison, MeasureOptions, compare_if_worth
from graphprune.latency_model import LatencyModel
from graphprune.passes.allocate import (
    Allocator,
    Target,
    WidthProblem,
    cost_resources,
    fitted_widths,
    widths_of,
)
from graphprune.passes.cost import Cost
from graphprune.passes.plan import Plan

if TYPE_CHECKING:
    from graphprune.coupling.groups import Group
    from graphprune.passes.score import Scores

__all__ = ["LatencyTarget", "Met", "Planned", "Planner", "Round", "meet", "predict"]

_log = logging.getLogger(__name__)

_ROUNDS = 8
_STRICT = 2  # rounds in which the whole interval has to lie near the target; after them the ratio itself
_NEAR = 0.06  # of the target: a candidate that half of the rounds found to be so near is measured further
_VAGUE = 0.2  # of the ratio: half of the rounds with a wider interval say too little to go on from
_STEP = 0.01  # least relative change of what is asked for
_FLATTEST, _STEEPEST = 0.3, 2.0  # change of the measured ratio per change of what is asked for
_SLACK = 0.05  # of the target: an artefact whose interval begins further below it is needlessly small
_SPELLINGS = "write a share of the original's time as 0.6x, or a time as 8ms, 800us or 0.5s"
_TEXT = re.compile(r"(\d+\.?\d*|\.\d+)\s*(x|us|ms|s)", re.ASCII)
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class LatencyTarget:
    """An upper bound on the time of an inference: ``value`` times the original's if ``relative``, else milliseconds."""

    value: float
    relative: bool = True

    @classmethod
    def parse(cls, text: str) -> LatencyTarget:
        """Read ``0.6x``, ``8ms``, ``800us`` or ``0.5s``. Raises ``UsageError`` that names these spellings."""
        found = _TEXT.fullmatch(text.strip().lower())
        if found is None:
            raise UsageError(f"The target '{text}' for latency is not a time; {_SPELLINGS}.")
        number = float(found[1])
        if number <= 0:
            raise UsageError(f"The target '{text}' for latency is 0: nothing is that fast; {_SPELLINGS}.")
        if found[2] == "x":
            if number > 1:
                raise UsageError(f"The target '{text}' for latency is above 1x, the original itself; {_SPELLINGS}.")
            return cls(number)
        return cls(number * _MS[found[2]], relative=False)

    def share(self, original_ms: float, by: str = "") -> float:
        """The target as a share of the original's time, known ``by`` something; ``UsageError`` if it is above 1."""
        if not self.relative and self.value > original_ms:
            raise UsageError(
                f"The target of {self} is above what the original takes{by}, {original_ms:.4g} ms; nothing needs to go."
            )
        return self.within(original_ms)

    def within(self, original_ms: float) -> float:
        """The target as a share of the original's time, at most 1."""
        return min(1.0, self.value if self.relative else self.value / original_ms)

    def __str__(self) -> str:
        return f"{self.value:g}x" if self.relative else f"{self.value:g} ms"


@dataclass(frozen=True)
class Round:
    """One candidate: the share of the original's time that the curves were asked for and predicted, the share measured
    with its interval, the importance kept, and the target as a share of the original's time in the same measurement.
    """

    asked: float
    predicted: float
    ratio: float
    low: float
    high: float
    kept: float
    share: float


@dataclass(frozen=True)
class Met:
    """How a target was met.

    Attributes:
        plan: what stays.
        comparison: the artefact's measured latency against the original's; None where it was only predicted.
        target: what was asked for; ``share`` is the same as a share of the original's time.
        rounds: every candidate that was built and measured, the chosen one marked by ``chosen`` (its index); none
            where nothing was measured.
        method: who found the widths.
        predicted: share of the original's time by the curves.
        kept: share of the importance.
        notes: what a reader should know.
    """

    plan: Plan
    comparison: Comparison | None
    target: LatencyTarget
    share: float
    rounds: tuple[Round, ...]
    chosen: int | None
    method: str
    predicted: float
    kept: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Planned:
    """Widths that the curves predict to take a share of the original's time.

    ``method``: who found them; ``kept``: share of the importance; ``predicted``: share of the original's time.
    """

    plan: Plan
    method: str
    kept: float
    predicted: float


@dataclass(frozen=True)
class Planner:
    """Finds widths on the curves.

    Attributes:
        model: the curves.
        groups: that may be cut.
        scores: of their units.
        cost: for further limits.
        allocator: ``knapsack`` solves on the curves; others are asked for MACs until the curves predict the time.
        limits: on parameters and MACs, which hold as well.
    """

    model: LatencyModel
    groups: Sequence[Group]
    scores: Scores
    cost: Cost
    allocator: Allocator
    limits: Sequence[Target] = ()

    def at(self, share: float) -> Planned:
        """What keeps the most within a share of the original's time. Raises TargetError: nothing is that fast."""
        steps = widths_of(self.groups, self.scores, self.allocator)
        fixed = {name: size for name, size in self.model.sizes.items() if name not in {one.id for one in steps.groups}}
        resources = (self.model.resource(share), *cost_resources(self.cost, self.limits))
        problem = WidthProblem(steps, self.scores.additive(steps.groups), resources, fixed)
        if self.allocator.name == "knapsack":
            plan, solution = fitted_widths(problem, self.cost)
            return Planned(plan, solution.method, self._kept(plan), self._predicted(plan))
        plan = self._by_macs(share)
        return Planned(plan, self.allocator.name, self._kept(plan), self._predicted(plan))

    def _kept(self, plan: Plan) -> float:
        """The share of the importance that stays."""
        values = self.scores.from_zero().values
        whole = sum(float(values[one.id].sum()) for one in self.groups)
        lost = sum(float(values[name].sum() - values[name][kept].sum()) for name, kept in plan.kept.items())
        return 1.0 - lost / whole if whole > 0 else 1.0

    def _by_macs(self, share: float) -> Plan:
        """The allocator's plan with the most MACs whose predicted time is within the share."""
        low, high = 0.0, 1.0
        best: Plan | None = None
        reason: TargetError | None = None
        while high - low > 0.002:
            middle = (low + high) / 2
            limits = (Target("macs", middle), *self.limits)
            try:
                found = self.allocator.allocate(self.groups, self.scores, self.cost, limits).plan
            except TargetError as error:
                low, reason = middle, error
                continue
            if self._predicted(found) <= share:
                best, low = found, middle
            else:
                high = middle
        if best is None:
            raise reason or TargetError(
                f"no plan of '{self.allocator.name}' is predicted to take {share:.2f}x of the time"
            )
        return best

    def _predicted(self, plan: Plan) -> float:
        return self.model.share({name: float(len(units)) for name, units in plan.kept.items()})


def meet(
    target: LatencyTarget,
    planner: Planner,
    source: Path,
    build: Callable[[Plan], Path],
    feeds: Mapping[str, Any],
    options: MeasureOptions,
    statistic: Statistic = "median",
    margin: float = 1.0,
) -> Met:
    """Solve, build, measure against the original, correct the curves by what was seen, and again, until it is met.

    Met means that the upper end of the measured ratio's interval is within the target, and that the artefact is not
    needlessly small: the lower end is at most 5 % of the target below it (after two rounds the ratio itself, since on
    a noisy machine the interval may be wider than that).

    Args:
        target: on latency.
        planner: finds widths on the curves.
        source: the original's file.
        build: writes the network of a plan to a file.
        feeds: of the measurement.
        options: of the measurement.
        statistic: which figure of the samples the target is on, ``median`` or ``p90``.
        margin: share of the target that candidates are held to, for an artefact that is measured by itself afterwards.

    Raises:
        TargetError: it cannot be reached; the fastest that was reached is named.
        NoiseError: the machine is too noisy to tell.
        UsageError: a time that is above what the original was measured to take.
    """
    timing = enough_for(options, statistic)

    def worth(seen: Comparison) -> bool:
        """Whether a candidate is near enough to decide, or what was seen too vague to go on from."""
        figure = figure_of(seen, statistic)
        ratio = figure.ratio
        near = abs(ratio.value / (margin * target.within(figure.a_ms)) - 1) <= _NEAR
        return near or ratio.high - ratio.low > _VAGUE * ratio.value

    # The curves may be of another device, or of a slower hour.
    share = margin * target.within(planner.model.original_ns / 1e6)
    rounds: list[Round] = []
    results: list[tuple[Planned, Comparison]] = []
    asked: float | None = min(1.0, share * (1 - _SLACK / 2))
    while asked is not None and len(rounds) < _ROUNDS:
        try:
            planned = planner.at(asked)
        except TargetError as error:
            if not rounds:
                raise
            raise TargetError(_missed(target, rounds, str(error))) from error
        candidate = build(planned.plan)
        found = compare_if_worth(source, candidate, feeds, timing, worth)
        figure = figure_of(found, statistic)
        ratio = figure.ratio
        share = margin * (target.within(figure.a_ms) if rounds else target.share(figure.a_ms))
        rounds.append(Round(asked, planned.predicted, ratio.value, ratio.low, ratio.high, planned.kept, share))
        results.append((planned, found))
        _log.info("round %d: asked %.3f, predicted %.3f, measured %.3f [%.3f, %.3f]", len(rounds), asked,
                  planned.predicted, ratio.value, ratio.low, ratio.high)  # fmt: skip
        asked = None if any(_holds(one, len(rounds)) for one in rounds) else _next(rounds, share)
    return _chosen(target, rounds, results, margin)


def predict(target: LatencyTarget, planner: Planner) -> Met:
    """Solve on the curves alone, for a device that is not here: nothing is built or measured.

    Raises:
        TargetError: no widths are predicted to reach it.
        UsageError: a time that is above what the original takes by the curves.
    """
    share = target.share(planner.model.original_ns / 1e6, by=" by the latency table")
    found = planner.at(share)
    return Met(found.plan, None, target, share, (), None, found.method, found.predicted, found.kept)


def _holds(one: Round, tried: int) -> bool:
    """Within the target and not needlessly small; where the interval alone stands in the way, after some rounds."""
    near = one.low if tried < _STRICT else one.ratio
    return one.high <= one.share and near >= one.share * (1 - _SLACK)


def _next(rounds: Sequence[Round], share: float) -> float | None:
    """What to ask the curves for next: where a line through the two nearest candidates meets the aim.

    A network has time that no width changes, so the measured ratio falls more slowly than what is asked for; one
    candidate alone is met by its own ratio. Once some are within the target and some are not, the next lies between;
    None: nothing lies between them that could be told apart, or nothing is cut.
    """
    # The interval's upper end has to lie below the target, and not far; disturbances may have left a long lower one.
    above = max(rounds[-1].high - rounds[-1].ratio, 0.005 * share)
    aim = share - min(above * 1.1, 0.7 * _SLACK * share)
    nearest, *others = sorted(rounds, key=lambda one: abs(one.ratio - aim))
    slope = nearest.ratio / nearest.asked
    apart = [one for one in others if abs(one.asked - nearest.asked) > 0.01]
    if apart:
        slope = (apart[0].ratio - nearest.ratio) / (apart[0].asked - nearest.asked)
        slope = min(max(slope, _FLATTEST), _STEEPEST)  # noise must not send it far away
    asked = max(nearest.asked + (aim - nearest.ratio) / slope, nearest.asked / 2)
    within = max((one.asked for one in rounds if one.high <= one.share), default=0.0)
    beyond = min((one.asked for one in rounds if one.asked > within), default=None)
    if within >= 1.0 or (within and beyond is not None and beyond / within - 1 < 2 * _STEP):
        return None
    if within and beyond is not None:
        margin = (beyond - within) / 4  # not so near to either end that it says nothing new
        return min(max(asked, within + margin), beyond - margin)
    step = 1 - _STEP if nearest.high > share else 1 + _STEP
    while any(abs(asked / one.asked - 1) < _STEP / 2 for one in rounds):  # seen already: on, in the same direction
        asked *= step
    return min(1.0, asked)


def _chosen(
    target: LatencyTarget, rounds: Sequence[Round], results: Sequence[tuple[Planned, Comparison]], margin: float
) -> Met:
    """The artefact that keeps the most within the target. Raises TargetError or NoiseError."""
    within = [index for index, one in enumerate(rounds) if one.high <= one.share]
    if not within:
        nearest = min(rounds, key=lambda one: one.high)
        if nearest.low <= nearest.share:
            raise NoiseError(
                f"the machine is too noisy to say whether {target} is met: after {len(rounds)} rounds the nearest "
                f"candidate takes {nearest.ratio:.3f}x within [{nearest.low:.3f}, {nearest.high:.3f}]; measure longer "
                "(--duration) or on an idle machine"
            )
        raise TargetError(_missed(target, rounds, "the curves do not predict this network well enough"))
    index = max(within, key=lambda one: (rounds[one].kept, -one))
    best = rounds[index]
    notes = []
    if best.low < best.share * (1 - _SLACK):
        if best.high - best.low > _SLACK * best.share:
            why = "the measured interval is wider than that"
        elif any(one.kept > best.kept for one in rounds):
            why = "candidates that keep more were measured above the target"
        else:
            why = f"no nearer one was found in {len(rounds)} rounds"
        below = f"{1 - best.low / best.share:.1%} below the target ({best.share:.3f}x)"
        notes.append(f"the chosen candidate's interval begins {below}: {why}")
    found, comparison = results[index]
    if not found.plan.kept:
        notes.append(
            "nothing had to be cut: the graph as it is written, with what is constant computed beforehand, is that "
            "much faster than the file that came in"
        )
    return Met(
        found.plan, comparison, target, best.share / margin, tuple(rounds), index, found.method, found.predicted,
        found.kept, tuple(notes),
    )  # fmt: skip


def _missed(target: LatencyTarget, rounds: Sequence[Round], why: str) -> str:
    fastest = min(rounds, key=lambda one: one.ratio)
    return (
        f"the latency target of {target} cannot be met: the fastest of {len(rounds)} candidates takes "
        f"{fastest.ratio:.3f}x of the original's time, within [{fastest.low:.3f}, {fastest.high:.3f}], where "
        f"{fastest.share:.3f}x was asked for; {why}"
    )
