"""What stays: scores of the units, and an allocation of them to the targets."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from graphprune.accuracy import Accuracy, Drop, Metric, distance, fastest_within, fidelity, outputs_of, parse_drop
from graphprune.backends.runner import OrtRunner
from graphprune.calibration.matched import matched, restore
from graphprune.calibration.observations import Observations
from graphprune.coupling.groups import Group, Grouping, Keep, group
from graphprune.coupling.solve import couple
from graphprune.errors import NothingPrunableError, TargetError
from graphprune.frontends.samples import Samples, is_noise
from graphprune.ir.program import Array, release
from graphprune.latency.profile import ProfileOptions
from graphprune.latency.table import elsewhere, read_table
from graphprune.latency_model import LatencyModel
from graphprune.latency_target import LatencyTarget, Met, Planner, meet, predict
from graphprune.options import ExportOptions
from graphprune.passes.allocate import Allocator, Target, allocator
from graphprune.passes.allocate.target import Quantity
from graphprune.passes.files import keep_of, read_plan, replay
from graphprune.passes.plan import Plan
from graphprune.passes.repair import METHODS, Repair, Repaired
from graphprune.passes.score import Calibrated, Criterion, ScoreCache, Scores, blended, criteria, score_groups
from graphprune.passes.selection import Selection
from graphprune.passes.shrink import Shrink
from graphprune.pipeline import no_groups, timed
from graphprune.search import Budget, Found, Search

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphprune.pipeline import Network

__all__ = ["Choice", "Chooser", "whole"]


_LOOKED = 32  # runs on which a repaired network is held against the cut one
_RELAXED = 1.05  # times the share, where the artefact loses more than is allowed
_TYPICAL = 0.6  # of the original's time: where a search looks while the target is still to be found


@dataclass(frozen=True)
class Choice:
    """What stays, the limits asked for, what the user should know, and how a latency target was met."""

    plan: Plan
    asked: Mapping[str, int]
    notes: tuple[str, ...]
    met: Met | None = None


@dataclass(frozen=True)
class Kept:
    """The artefact's figure, the original's, and the least that a bound on what may be lost allows."""

    value: float
    original: float
    least: float

    @property
    def holds(self) -> bool:
        """Whether it is within the bound."""
        return self.value >= self.least


@dataclass
class Chooser:
    """Chooses for one export; what was computed once is kept.

    Attributes:
        options: with nothing left open; a bound on what may be lost becomes a target here.
        targets: on parameters and MACs.
        samples, held: calibration data, and those that nothing is fitted to.
        metric: the user's own, if any.
        source, staging: the original's file, and a folder to build candidates in; ``sha256``: of it and its data.
        seconds: of the steps.
        model, scores: step curves and scores of an earlier export of the same network.
        found, drop: what a search, and the bound on what may be lost, have found.
    """

    network: Network
    options: ExportOptions
    targets: list[Target]
    samples: Samples
    held: Samples
    metric: Metric | None
    source: Path
    staging: Path
    sha256: str
    seconds: dict[str, float]
    model: LatencyModel | None = None
    scores: Scores | None = None
    found: Found | None = None
    drop: Drop | None = None

    @cached_property
    def matched(self) -> Grouping | None:
        """Noise instead of data, and statistics that the network remembers: a network that has them on noise."""
        if not is_noise(self.options.calib):
            return None
        with timed(self.seconds, "match"):
            found = matched(self.network.grouping, self.samples.feeds, OrtRunner())
        return None if found is None else group(couple(found))

    @property
    def was_matched(self) -> bool:
        """Whether anything was looked at in a matched network."""
        return vars(self).get("matched") is not None

    def follow(self, earlier: Chooser) -> None:
        """Take over what an earlier export of the same network, on the same samples, has computed."""
        self.model, self.scores, self.found = earlier.model, earlier.scores, earlier.found
        if "matched" in vars(earlier):
            vars(self)["matched"] = earlier.matched

    @property
    def looked_at(self) -> Grouping:
        """The network that scores, search and repair look at."""
        return self.matched or self.network.grouping

    def repaired(self, keep: Keep, cut: ir.Model) -> tuple[Repaired, bool]:
        """The cut network repaired, and whether that took its outputs away from the original's on some samples."""
        seen = cut if self.matched is None else Shrink(keep)(self.matched)
        found = self.repair(self.looked_at, keep, seen, self.samples.feeds, OrtRunner())
        models = (self.looked_at.coupling.program.model, seen, found.model)
        wanted, *given = (
            outputs_of(partial(OrtRunner(optimize=True), one), self.samples.feeds[:_LOOKED]) for one in models
        )
        before, after = (distance(wanted, one) for one in given)
        if self.matched is not None:
            restore(self.matched, found.model, cut)
        return found, not (after <= before or (math.isnan(before) and math.isfinite(after)))

    @property
    def repairs(self) -> bool:
        """Whether what is cut is repaired."""
        return self.options.repair in METHODS

    @property
    def repair(self) -> Repair:
        """The way it is."""
        return Repair("bias" if self.options.repair == "bias" else "refit", self.options.seed)

    def choose(self, tightened: float = 1.0) -> Choice:
        """What stays: the plan that was given, or scores and an allocation to the targets.

        ``tightened``: the share of a latency target that candidates are held to, below 1 where the artefact is repaired
        and measured by itself, and the more so after it took longer.
        """
        network, options = self.network, self.options
        grouping = network.grouping
        if options.plan is not None:
            saved = replay(read_plan(options.plan), grouping)
            idle = "the plan removes nothing: the artefact computes what the source computes"
            return Choice(saved, {}, () if saved.kept else (idle,))
        chosen = Selection(options.include, options.exclude, options.stat)(grouping, network.program.parameter_names)
        if not chosen:
            raise NothingPrunableError(_why_nothing(grouping, options.stat))
        scores = self._scored(chosen)
        assert options.allocation is not None
        method = allocator(options.allocation, floor=options.floor, align=options.align)
        if options.search_budget not in (None, "0"):
            scores = self._searched(chosen, scores, method)
        if options.max_drop is not None and self.drop is None:
            with timed(self.seconds, "max drop"):
                self._bound(chosen, scores, method)
            options = self.options
        if self.drop is not None:
            scores = replace(scores, notes=(*scores.notes, *self._bound_notes()))
        if options.target_latency is None:
            with timed(self.seconds, "allocate"):
                allocation = method.allocate(chosen, scores, network.cost, self.targets)
            asked = {str(quantity): limit for quantity, limit in allocation.asked.items()}
            return Choice(allocation.plan, asked, (*scores.notes, *allocation.notes))
        met = self._meet(chosen, scores, method, tightened)
        asked = {one.quantity: one.limit(whole(network)[one.quantity]) for one in self.targets}
        return Choice(met.plan, asked, (*scores.notes, *met.notes), met)

    def _plan_at(self, share: float, chosen: Sequence[Group], scores: Scores, method: Allocator) -> Plan:
        """Widths for a share of the original's predicted time, or of its MACs where nothing is measured."""
        if self.options.measure is None:
            return method.allocate(chosen, scores, self.network.cost, [Target.parse(f"{share:.4f}x", "macs")]).plan
        return Planner(self._curves(chosen), chosen, scores, self.network.cost, method).at(share).plan

    def _searched(self, chosen: Sequence[Group], scores: Scores, method: Allocator) -> Scores:
        """Scores with a factor for each group, found by looking; once for a job."""
        options, network = self.options, self.network
        if self.found is None:
            assert options.search_budget is not None

            def allocate(weighed: Scores) -> Plan:
                if options.max_drop is not None:  # the share is not known yet, and the factors hardly depend on it
                    return self._plan_at(_TYPICAL, chosen, weighed, method)
                if options.target_latency is None:
                    return method.allocate(chosen, weighed, network.cost, self.targets).plan
                model = self._curves(chosen)
                share = LatencyTarget.parse(options.target_latency).within(model.original_ns / 1e6)
                return Planner(model, chosen, weighed, network.cost, method, self.targets).at(share).plan

            budget = Budget.parse(options.search_budget)
            if method.name == "knapsack":  # else a factor would change no group's share
                scores = scores.additive(chosen)
            with timed(self.seconds, "search"):
                samples = self.samples.feeds
                own = None if self.matched is None else network.grouping
                self.found = Search(
                    self.looked_at, chosen, scores, allocate, samples, budget, options.search_by, self.metric, own,
                    options.seed,
                ).run()  # fmt: skip
        return self.found.scores

    def _bound(self, chosen: Sequence[Group], scores: Scores, method: Allocator) -> None:
        """Find the smallest share at which the figure drops no more than asked, and make it the target."""
        assert self.options.max_drop is not None
        expected: list[dict[str, Array]] = []

        def value(share: float | None) -> float:
            model = self.network.program.model
            if share is not None:
                try:
                    keep = keep_of(self._plan_at(share, chosen, scores, method), self.network.grouping)
                except TargetError:  # floors, or what cannot be cut, lie above that share
                    return float("-inf")
                model = Shrink(keep)(self.network.grouping)
                if self.repairs:
                    model = self.repaired(keep, model)[0].model
            run = partial(OrtRunner(), model)
            if self.metric is not None:
                return next(iter(self.metric(run).values())).value
            samples = self.held.feeds or self.samples.feeds
            if share is None:
                expected.extend(outputs_of(run, samples))
                return 1.0
            near = fidelity(expected, outputs_of(run, samples))
            return near.top1.value if near.top1 is not None else near.cosine.value

        self.drop = fastest_within(parse_drop(self.options.max_drop), value)
        self._aim(self.drop.share)

    def _bound_notes(self) -> list[str]:
        """What the bound found, and what is to be known of its figure."""
        assert self.drop is not None
        drop, what = self.drop, "MACs" if self.options.measure is None else "time"
        nearest = min(drop.rounds, key=lambda one: (abs(one[0] - drop.share), not one[2]), default=None)
        found = drop.value if nearest is None else nearest[1]
        notes = [
            f"--max-drop {drop.bound:.4g}: at {drop.share:.4g}x of the {what} a candidate kept {found:.4g} of "
            f"{drop.value:.4g} (at least {drop.least:.4g} were asked for)"
        ]
        if self.metric is None and not self.held.count:
            notes.append("the bound was judged on the samples that were fitted to: of 16 or more some are held out")
        if all(within for *_, within in drop.rounds):
            notes.append(
                "nothing that was tried lost too much, and nothing smaller was tried: does the figure mind the cut?"
            )
        return notes

    def _aim(self, share: float) -> None:
        """Make a share of the time, or of the MACs where nothing is measured, the target."""
        text = f"{share:.4g}x"
        if self.options.measure is not None:
            self.options = replace(self.options, target_latency=text)
        else:
            self.options = replace(self.options, target_macs=text)
            self.targets = [Target.parse(text, "macs")]

    def kept(self, accuracy: Accuracy | None) -> Kept | None:
        """The artefact's figure held against the bound; None where there is no bound, or no figure."""
        if self.drop is None or accuracy is None:
            return None
        if accuracy.metric:
            value = next(iter(accuracy.metric["artefact"].values())).value
        else:
            near = accuracy.fidelity["artefact"]
            value = near.top1.value if near.top1 is not None else near.cosine.value
        return Kept(value, self.drop.value, self.drop.least)

    def relax(self) -> bool:
        """Aim at a little less, after the artefact lost more than the candidate looked at; False: nothing is left."""
        assert self.drop is not None
        self.drop = replace(self.drop, share=self.drop.share * _RELAXED)
        self._aim(min(1.0, self.drop.share))
        return self.drop.share < 1.0

    def _scored(self, chosen: Sequence[Group]) -> Scores:
        """Scores of the groups that may be cut; computed once."""
        network, options = self.network, self.options
        if self.scores is not None:
            return self.scores
        assert options.criterion is not None
        ranked = criteria(options.criterion, options.criterion_options, options.seed)
        with timed(self.seconds, "score"):
            self.scores = blended([weight for weight, _ in ranked], [self._ranked(one, chosen) for _, one in ranked])
            release(network.program.model)
        return self.scores

    def _ranked(self, ranking: Criterion | Calibrated, chosen: Sequence[Group]) -> Scores:
        """Scores by one criterion, from the cache where they took a pass over the data."""
        network, options = self.network, self.options
        kept = None
        if isinstance(ranking, Calibrated):
            if not getattr(ranking, "loss", ""):  # what a loss of the user's own computes may change unseen
                seen = self.samples.digest() + (" matched" if self.matched is not None else "")
                kept = ScoreCache(self.sha256, seen, repr(ranking), options.seed)
                if (known := kept.read(chosen)) is not None:
                    return known
            ranking = ranking.on(Observations(self.looked_at, self.samples.feeds, OrtRunner(), options.seed))
        scores = score_groups(ranking, chosen, network.program.tensor, scales=network.grouping.scales)
        if kept is not None:
            kept.write(scores)
        return scores

    def _meet(self, chosen: Sequence[Group], scores: Scores, method: Allocator, tightened: float) -> Met:
        """Step curves, and as many candidates as it takes; without measuring the curves alone."""
        network, options = self.network, self.options
        timing = options.measure
        assert options.target_latency is not None
        model = self._curves(chosen)
        planner = Planner(model, chosen, scores, network.cost, method, self.targets)
        asked = LatencyTarget.parse(options.target_latency)
        if timing is None:
            with timed(self.seconds, "meet"):
                met = predict(asked, planner)
            return replace(met, notes=(*met.notes, _predicted(met, model)))
        feeds = network.program.examples
        candidate = self.staging / "candidate" / "model.onnx"

        def build(plan: Plan) -> Path:
            shutil.rmtree(candidate.parent, ignore_errors=True)
            candidate.parent.mkdir(exist_ok=True)
            keep = keep_of(plan, network.grouping)
            model = Shrink(keep)(network.grouping)
            if self.repairs:  # with the biases that repair will add
                model = self.repair.dressed(network.grouping, keep, model)
            network.write(model, candidate)
            return candidate

        if self.repairs:  # a candidate has the artefact's sizes, not yet its values
            timing = replace(timing, backend_options=replace(timing.backend_options, denormals=False))
        with timed(self.seconds, "meet"):
            met = meet(asked, planner, self.source, build, feeds, timing, options.statistic, tightened)
        notes = met.notes
        if options.latency_table is not None and (
            there := elsewhere(model.table, timing.backend, timing.backend_options)
        ):
            notes += (
                f"the widths were chosen by a latency table of another device, {there}; the ratio was measured on this "
                "machine: `graphprune gate` measures it on the device",
            )
        return replace(met, notes=notes)

    def _curves(self, chosen: Sequence[Group]) -> LatencyModel:
        """The step curves, measured when they are first needed."""
        options, network = self.options, self.network
        timing = options.measure
        backend, runtime = (
            (options.backend, options.backend_options) if timing is None else (timing.backend, timing.backend_options)
        )

        def write(keep: Keep, path: Path) -> None:
            path.parent.mkdir(exist_ok=True)
            network.write(Shrink(keep)(network.grouping), path)

        if self.model is None:
            profile = ProfileOptions(
                backend, runtime, seconds=options.profile_seconds, floor=options.floor, seed=options.seed
            )
            table = None if options.latency_table is None else read_table(options.latency_table)
            feeds = network.program.examples
            with timed(self.seconds, "profile"):
                self.model = LatencyModel.of(network.grouping, chosen, self.source, write, feeds, profile, table=table)
        return self.model


def _predicted(met: Met, model: LatencyModel) -> str:
    ms = model.original_ns / 1e6
    return (
        f"predicted, not measured: {met.predicted:.3f}x of the original's time ({ms:.4g} to {met.predicted * ms:.4g} "
        f"ms) by the latency table of {model.table.fingerprint['device']}; "
        f"`graphprune gate --max-latency {met.share:.3f}x` measures it there"
    )


def whole(network: Network) -> dict[Quantity, int]:
    """Parameters and MACs of the whole network."""
    return {"params": network.cost.params({}), "macs": network.cost.macs({})}


def _why_nothing(grouping: Grouping, stat: bool) -> str:
    if not grouping.groups:
        return f"nothing can be pruned: {no_groups(grouping)}"
    inexact = sum(not one.exact for one in grouping.groups)
    if inexact == len(grouping.groups) and not stat:
        return (
            f"nothing can be pruned exactly: the network has {inexact} inexact group(s) alone (a statistic, such as a "
            "LayerNorm's, is computed over them); --stat --no-verify cuts them all the same"
        )
    more = f", and {inexact} inexact group(s) are left out without --stat" if inexact and not stat else ""
    return f"no group is left to prune: --include and --exclude leave none{more}"
