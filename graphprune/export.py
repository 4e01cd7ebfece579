"""The export job: score, allocate, shrink, write, verify, measure; files appear only when everything held."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.accuracy import Drop, Fidelity, Figure, fastest_within, fidelity, outputs_of, parse_drop, read_metric
from graphprune.backends.base import BackendOptions, get_backend
from graphprune.backends.runner import OrtRunner
from graphprune.calibration.observations import Observations
from graphprune.coupling.groups import Group, Grouping, Keep
from graphprune.errors import InputError, NothingPrunableError, TargetError, UsageError, VerificationError
from graphprune.frontends.samples import NOISE, Preprocessing, Samples, read_samples
from graphprune.ir.files import byte_count, output_folder, staging_folder
from graphprune.ir.program import Array, release
from graphprune.ir.store import external_locations, sha256_of, write_onnx
from graphprune.latency.measure import Comparison, MeasureOptions, measure
from graphprune.latency.profile import ProfileOptions
from graphprune.latency.statistics import Estimate
from graphprune.latency.table import read_table
from graphprune.latency_target import LatencyModel, LatencyTarget, Met, Statistic, meet, ratio_of, solve
from graphprune.passes.allocate import Allocator, Target, allocator
from graphprune.passes.allocate.target import Quantity
from graphprune.passes.files import keep_of, members_of, plan_document, read_plan, replay, write_plan
from graphprune.passes.plan import Plan, PlanMember
from graphprune.passes.repair import METHODS, Method, Repair, Repaired
from graphprune.passes.score import Criterion, ScoreCache, Scores, criterion, score_groups
from graphprune.passes.selection import Selection
from graphprune.passes.shrink import Shrink
from graphprune.passes.verify import Verdict, Verify
from graphprune.pipeline import IN_MEMORY, no_groups, timed, verify_program
from graphprune.quantize import Corner, quantize_int8
from graphprune.report.files import REPORTS, check_reports, stale_plots, write_family, write_reports
from graphprune.report.manifest import manifest_document, to_bytes
from graphprune.search import Budget, Found, Search

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphprune.pipeline import Network

__all__ = ["Accuracy", "ExportOptions", "ExportResult", "check_targets", "export", "export_family"]


@dataclass(frozen=True)
class ExportOptions:
    """How to export; the command line's options one by one.

    Attributes:
        target_params, target_macs: ``"0.5x"`` of the original or an absolute number as text; None: no such target.
        target_latency: ``"0.6x"`` of the original's measured time, or a time as ``"8ms"``.
        statistic: the figure of the measured times that the target is on: ``median`` or ``p90``.
        latency_table: measured elsewhere, on the device, with ``graphprune profile``; None: this device's own.
        plan: a saved plan to replay instead of scoring and allocating.
        criterion, criterion_options: see :func:`graphprune.passes.score.criterion`; None: ``obs`` where there are
            calibration data, else ``magnitude``.
        allocation: ``global``, ``uniform`` or ``knapsack``; None: ``knapsack`` for a latency target or the criterion
            ``obs``, else ``global``.
        calib: calibration data, see :func:`graphprune.frontends.samples.read_samples`; None: none.
        calib_samples: at most so many runs of them; calib_images: how images are read.
        repair: ``refit``, ``bias`` or ``none``; None: ``refit`` where there are calibration data.
        search_budget: look for a factor per group before the plan is made: ``5min``, or ``20`` candidates.
        max_drop: instead of a target: the fastest network (the one of fewest MACs where nothing is measured) that loses
            no more of the metric, or of the agreement with the original: ``1%``.
        quantize: ``int8``: also write ``model.int8.onnx``, and compare dense and pruned, float and int8.
        metric: the user's own figure, ``module:function`` or a function, see :class:`graphprune.accuracy.Metric`.
        floor: least share of every group's units that stays.
        align: kept channels are multiples of it.
        include, exclude: name patterns, see :class:`graphprune.passes.selection.Selection`.
        stat: also cut groups over which a statistic is computed (inexact).
        verify: hold the artefact to the masked equivalence; ``verify_dtype`` is ``float32`` or ``float64``.
        measure: measure original and artefact in turn on this machine; None leaves it out.
        backend, backend_options: what the artefact is built for: OpenVINO's IR or a TensorRT engine beside the ONNX
            file.
        max_shard_size: weights that take more are written to several data files, none larger: ``"2GB"``, ``"500MB"`` or
            bytes.
        keep_source: for a module, leave the traced network beside the artefact as ``source.onnx``.
        plots: also write the report's plots as files, ``report-*.svg``.
        seed: of random inputs and the random criterion.
    """

    target_params: str | None = None
    target_macs: str | None = None
    target_latency: str | None = None
    statistic: Statistic = "median"
    latency_table: Path | None = None
    plan: Path | None = None
    criterion: str | None = None
    criterion_options: Mapping[str, Any] = field(default_factory=dict)
    allocation: str | None = None
    calib: Any = None
    calib_samples: int | None = None
    calib_images: Preprocessing | None = None
    repair: str | None = None
    metric: Any = None
    search_budget: str | None = None
    max_drop: str | None = None
    quantize: str | None = None
    floor: float = 0.1
    align: int = 1
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    stat: bool = False
    verify: bool = True
    verify_dtype: str = "float32"
    samples: int = 3
    atol: float = 1e-6
    rtol: float | None = None
    measure: MeasureOptions | None = field(default_factory=MeasureOptions)
    backend: str = "onnxruntime"
    backend_options: BackendOptions = field(default_factory=BackendOptions)
    max_shard_size: str | int | None = None
    keep_source: bool = False
    plots: bool = False
    seed: int = 0


@dataclass(frozen=True)
class ExportResult:
    """What an export did.

    Attributes:
        folder: where the artefacts are; ``model``, ``plan_path`` and ``manifest_path`` lie in it.
        plan: the units that stay.
        original, reached: parameters and MACs before and after.
        asked: the targets as limits; empty when a plan was replayed.
        verdict: of the masked equivalence; None if it was not asked for.
        comparison: measured latency of the artefact against the original; None if it was not asked for.
        manifest: everything above and more, as written.
        met: how a latency target was met; None where there was none.
        accuracy: the user's metric and the fidelity to the original; None without samples and metric.
        repaired: what repair did; None where nothing was repaired.
    """

    folder: Path
    model: Path
    plan_path: Path
    manifest_path: Path
    plan: Plan
    original: Mapping[str, int]
    reached: Mapping[str, int]
    asked: Mapping[str, int]
    verdict: Verdict | None
    comparison: Comparison | None
    notes: tuple[str, ...]
    manifest: Mapping[str, Any]
    met: Met | None = None
    accuracy: Accuracy | None = None
    repaired: Repaired | None = None

    def to_json(self) -> dict[str, Any]:
        """The manifest."""
        return dict(self.manifest)


def check_targets(options: ExportOptions, out: str | os.PathLike[str]) -> list[Target]:
    """The targets as data; what can be known to be wrong before a network is read is said here.

    Raises:
        UsageError: no target and no plan, or both; a target that makes no sense; a folder that cannot be written.
    """
    asked: tuple[tuple[str | None, Quantity], ...] = (
        (options.target_params, "params"),
        (options.target_macs, "macs"),
    )
    targets = [Target.parse(text, quantity) for text, quantity in asked if text is not None]
    latency = None if options.target_latency is None else LatencyTarget.parse(options.target_latency)
    if options.max_drop is not None and (targets or latency is not None or options.plan is not None):
        raise UsageError("--max-drop looks for the fastest network itself: leave the other targets out")
    if not targets and latency is None and options.plan is None and options.max_drop is None:
        raise UsageError(
            "say what to reach: --target-latency 0.6x, --target-params 0.5x, --target-macs 0.7x, --max-drop 1%, or "
            "--plan FILE to replay a plan"
        )
    if (targets or latency is not None) and options.plan is not None:
        raise UsageError("a plan that is replayed (--plan) takes no target; leave one of them out")
    if latency is not None and options.measure is None:
        raise UsageError("a latency target is met by measuring: leave out --no-measure, or ask for --target-macs")
    if latency is not None and options.measure is not None and (why := _untimed(options.measure.backend)):
        raise UsageError(
            f"a latency target is met by measuring, and {options.measure.backend} cannot be timed here: {why}"
        )
    if latency is None and options.latency_table is not None:
        raise UsageError("--latency-table serves a latency target; add --target-latency, or leave the table out")
    shard_size(options)
    _check_calibration(options)
    folder = Path(out)
    made = _missing(folder)
    output_folder(folder)
    _remove_empty(made)
    check_reports(folder)
    for name in (*_ARTEFACTS, *REPORTS):
        if (folder / name).is_dir():
            raise UsageError(f"cannot write '{folder / name}': it is a folder; choose another output folder")
    return targets


def _check_calibration(options: ExportOptions) -> None:
    named = None if options.criterion is None else criterion(options.criterion, **options.criterion_options)
    if options.calib is None:
        if named is not None and hasattr(named, "on"):
            raise UsageError(
                f"the criterion {options.criterion} needs calibration data: add --calib, or choose another"
            )
        if options.repair not in (None, "none"):
            raise UsageError(f"--repair {options.repair} fits to calibration data; add --calib")
        for value, name in ((options.calib_samples, "--calib-samples"), (options.calib_images, "--calib-images")):
            if value is not None:
                raise UsageError(f"{name} says how calibration data are read; add --calib")
        for asked, name in ((options.search_budget, "--search-budget"), (options.quantize, "--quantize")):
            if asked is not None:
                raise UsageError(f"{name} looks at calibration data; add --calib")
        if options.max_drop is not None and options.metric is None:
            raise UsageError("--max-drop needs something to measure: your own --eval, or --calib for the agreement")
    if options.max_drop is not None:
        parse_drop(options.max_drop)
    if options.search_budget is not None:
        Budget.parse(options.search_budget)
    if options.quantize not in (None, "int8"):
        raise UsageError(f"--quantize {options.quantize}: int8 is what there is")
    if options.repair not in (None, "none", *METHODS):
        raise UsageError(f"--repair {options.repair}: choose {', '.join(METHODS)} or none")


_INT8 = "model.int8.onnx"
_ATTEMPTS = 3  # at a latency target, where what is repaired takes longer than what was only cut
_TO_SPLIT = 16  # samples from which some are held out to look at afterwards
_DATA = re.compile(r"model(-\d{5}-of-\d{5})?\.onnx\.data", re.ASCII)
_ARTEFACTS = (
    "model.onnx",
    "model.int8.onnx",
    "model.onnx.data",
    "source.onnx",
    "source.onnx.data",
    "plan.json",
    "manifest.json",
)


def _missing(folder: Path) -> list[Path]:
    """The folder and those above it that are not there yet, the innermost first."""
    return [one for one in (folder, *folder.parents) if not one.exists()]


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):  # somebody else has put something there
        for one in folders:
            one.rmdir()


def export(network: Network, out: Path, options: ExportOptions) -> ExportResult:
    """Prune to the targets, prove the cut, measure it and write the artefacts; see :meth:`Network.export`."""
    return _Export(network, out, options).run()


def export_family(network: Network, out: Path, options: ExportOptions, targets: Sequence[str]) -> list[ExportResult]:
    """One artefact per latency target, in a folder named after it, from one set of step curves.

    Raises what :func:`export` raises; the artefacts of targets that were met before it stay.
    """
    results = []
    model: LatencyModel | None = None
    scores: Scores | None = None
    for text in targets:
        job = _Export(network, out / text.strip(), replace(options, target_latency=text), model)
        job.scores = scores
        results.append(job.run())
        write_family(out, {one.folder.name: one.manifest for one in results})
        model, scores = job.model, job.scores
    return results


@dataclass(frozen=True)
class Accuracy:
    """How good the networks are: ``original``, ``cut`` (before repair) and ``artefact``.

    Attributes:
        metric: the user's figures of each; empty without a metric.
        fidelity: of the cut network and of the artefact to the original, on samples that nothing was fitted to; empty
            without calibration data.
        exhibits: samples with what each network says of them, see :meth:`graphprune.accuracy.Metric.exhibits`.
    """

    metric: Mapping[str, Mapping[str, Figure]]
    fidelity: Mapping[str, Fidelity]
    exhibits: Sequence[Mapping[str, Any]] = ()

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        return {
            "metric": {
                which: {name: one.to_json() for name, one in figures.items()} for which, figures in self.metric.items()
            },
            "fidelity": {which: one.to_json() for which, one in self.fidelity.items()},
            "exhibits": [dict(one) for one in self.exhibits],
        }


@dataclass(frozen=True)
class _Choice:
    """What stays, the limits asked for, what the user should know, and how a latency target was met."""

    plan: Plan
    asked: Mapping[str, int]
    notes: tuple[str, ...]
    met: Met | None = None


@dataclass(frozen=True)
class _Made:
    """A cut network as written, before repair and after, with its proof and its measurement."""

    cut: ir.Model
    repaired: Repaired | None
    written: tuple[Path, ...]
    verdict: Verdict | None
    comparison: Comparison | None
    notes: tuple[str, ...]


def _whole(network: Network) -> dict[Quantity, int]:
    return {"params": network.cost.params({}), "macs": network.cost.macs({})}


def _settled(options: ExportOptions) -> ExportOptions:
    """With the choices that were left open."""
    data = options.calib is not None
    ranking = options.criterion or ("obs" if data else "magnitude")
    adds_up = options.target_latency is not None or ranking == "obs"
    return replace(
        options,
        criterion=ranking,
        allocation=options.allocation or ("knapsack" if adds_up else "global"),
        repair=options.repair or ("refit" if data else "none"),
    )


class _Export:
    def __init__(self, network: Network, out: Path, options: ExportOptions, model: LatencyModel | None = None) -> None:
        self.model = model
        self.scores: Scores | None = None
        self.found: Found | None = None
        self.drop: Drop | None = None
        self.expected: list[dict[str, Array]] = []
        self.sha256 = ""
        self.network = network
        self.options = _settled(options)
        self.targets = check_targets(options, out)
        self.out = Path(out)
        self.seconds: dict[str, float] = {}
        self.samples = self.held = Samples((), "")
        self.fitted = 0
        self.metric = None if options.metric is None else read_metric(options.metric)
        self._spare_the_source()

    def run(self) -> ExportResult:
        """All steps; files appear in the folder only when everything held."""
        made = _missing(self.out)
        try:
            with staging_folder(output_folder(self.out)) as staging:
                return self._run(staging)
        finally:
            _remove_empty(made)  # stays where something was written

    def _spare_the_source(self) -> None:
        source = self.network.source
        if source is None:
            return
        files = [source, *(source.parent / name for name in external_locations(self.network.program.model))]
        for target in [self.out / name for name in _ARTEFACTS] + [*self.out.glob("model-*.onnx.data")]:
            for one in files:
                if target.exists() and one.exists() and os.path.samefile(target, one):
                    raise UsageError(f"'{target}' would overwrite the source; choose another output folder")

    def _run(self, staging: Path) -> ExportResult:
        network, options = self.network, self.options
        source = self._source(staging)
        self.sha256 = source["sha256"]
        self._read_samples()
        tightened = 1.0
        for attempt in range(_ATTEMPTS):
            choice = self._choose(source["path"], staging, tightened)
            keep = keep_of(choice.plan, network.grouping)
            made = self._make(choice, keep, source["path"], staging)
            met, found = choice.met, made.comparison
            if met is None or found is None or made.repaired is None:
                break
            ratio = ratio_of(found, options.statistic)
            if ratio.high <= met.share:
                break
            if attempt == _ATTEMPTS - 1:
                raise TargetError(
                    f"the repaired network takes {ratio.value:.3f}x of the original's time [{ratio.low:.3f}, "
                    f"{ratio.high:.3f}], {met.share:.3g}x were asked for; ask for less, or repair the bias alone "
                    "(--repair bias)"
                )
            tightened *= met.share / ratio.high
        plan = choice.plan
        document = plan_document(plan, network.grouping, source["sha256"])
        (staging / "plan.json").write_bytes(write_plan(document))
        written, verdict, comparison, notes = made.written, made.verdict, made.comparison, list(made.notes)
        accuracy = self._accuracy(made)
        corners = self._corners(made, accuracy, source["path"], staging) if options.quantize is not None else []
        build = self._build(staging)
        original = {str(quantity): amount for quantity, amount in _whole(network).items()}
        reached = {"params": network.cost.params(keep), "macs": network.cost.macs(keep)}
        asked = dict(choice.asked)
        manifest = manifest_document(
            network=network,
            options=self.options,
            plan=document,
            source=source["files"],
            artefact=sha256_of(staging / "model.onnx", [p.name for p in written[:-1]]),
            original=original,
            asked=asked,
            reached=reached,
            verdict=verdict,
            comparison=comparison,
            met=choice.met,
            model=self.model,
            notes=notes,
            build=build,
            calibration=self._calibration_document(),
            repaired=made.repaired,
            accuracy=accuracy,
            found={
                "search": None if self.found is None else self.found.to_json(),
                "max_drop": None if self.drop is None else self.drop.to_json(),
                "corners": [one.to_json() for one in corners],
            },
            seconds={**network.seconds, **self.seconds},
        )
        (staging / "manifest.json").write_bytes(to_bytes(manifest))
        reports = write_reports(manifest, staging)
        built = [] if build is None else list(build["sha256"])
        quantized = [_INT8] if corners else []
        names = [*(path.name for path in written), *quantized, *built, "plan.json", *reports, "manifest.json"]
        if options.keep_source and network.source is None:
            names += [Path(name).name for name in source["files"]]
        earlier = _data_listed(self.out / "manifest.json") | stale_plots(self.out)
        for name in names:  # the manifest last: where it is, everything is
            os.replace(staging / name, self.out / name)
        for name in earlier - set(names):  # the data of the model that was there before
            with suppress(OSError):
                os.unlink(self.out / name)
        return ExportResult(
            self.out,
            self.out / "model.onnx",
            self.out / "plan.json",
            self.out / "manifest.json",
            plan,
            original,
            reached,
            asked,
            verdict,
            comparison,
            tuple(notes),
            manifest,
            choice.met,
            accuracy,
            made.repaired,
        )

    def _read_samples(self) -> None:
        options = self.options
        if options.calib is None:
            return
        with timed(self.seconds, "read samples"):
            samples = read_samples(
                options.calib, self.network.program, limit=options.calib_samples, images=options.calib_images
            )
            looked_at = samples.count >= _TO_SPLIT and options.calib != NOISE  # agreement on noise says nothing
            fitted, self.held = samples.split() if looked_at else (samples, Samples((), ""))
            self.samples, self.fitted = fitted.batched(self.network.program), fitted.count

    def _calibration_document(self) -> dict[str, Any] | None:
        if not self.samples.count:
            return None
        return {
            "source": Path(self.samples.source).name if Path(self.samples.source).exists() else self.samples.source,
            "fitted": self.fitted,
            "held_out": self.held.count,
            "sha256": self.samples.digest(),
        }

    def _make(self, choice: _Choice, keep: Keep, source: Path, staging: Path) -> _Made:
        """Cut, write and prove; repair and write again; measure."""
        network, options = self.network, self.options
        path = staging / "model.onnx"
        with timed(self.seconds, "shrink"):
            cut = Shrink(keep)(network.grouping)
            written = self._written(cut, path, shard_size(options))
            release(network.program.model)
        inexact = [one.id for one in network.grouping.groups if one.id in keep and not one.exact]
        verdict = self._verified(staging, members_of(network.grouping, keep), inexact)
        notes = list(choice.notes)
        repaired = None
        if self._repairs() and choice.plan.kept:
            with timed(self.seconds, "repair"):
                repair = Repair(self._method(), options.seed)
                repaired = repair(network.grouping, keep, cut, self.samples.feeds, OrtRunner())
                notes += repaired.notes
                for one in staging.glob("model*.onnx*"):
                    one.unlink()
                written = self._written(repaired.model, path, shard_size(options))
        comparison = choice.met.comparison if choice.met is not None and repaired is None else None
        if comparison is None and options.measure is not None and (why := _untimed(options.measure.backend)):
            notes.append(f"not measured: {why}")
        elif comparison is None and options.measure is not None:
            with timed(self.seconds, "measure"):
                result = measure(source, path, network.program.examples, options.measure)
            assert isinstance(result, Comparison)
            comparison = result
        return _Made(cut, repaired, written, verdict, comparison, tuple(notes))

    def _repairs(self) -> bool:
        return self.options.repair in METHODS

    def _method(self) -> Method:
        return "bias" if self.options.repair == "bias" else "refit"

    def _accuracy(self, made: _Made) -> Accuracy | None:
        """The user's metric, and the fidelity on samples that nothing was fitted to."""
        if self.metric is None and not self.held.count:
            return None
        models = {"original": self.network.program.model, "cut": made.cut}
        if made.repaired is not None:
            models["artefact"] = made.repaired.model
        figures, outputs = {}, {}
        with timed(self.seconds, "evaluate"):
            for which, model in models.items():
                runner = OrtRunner()
                run = partial(runner, model)
                if self.held.count:
                    outputs[which] = outputs_of(run, self.held.feeds)
                if self.metric is not None:
                    figures[which] = self.metric(run)
        shown = []
        if self.metric is not None:
            shown = self.metric.exhibits({which: partial(OrtRunner(), model) for which, model in models.items()})
        near = {which: fidelity(outputs["original"], one) for which, one in outputs.items() if which != "original"}
        if made.repaired is None:  # the cut network is the artefact
            figures = {("artefact" if which == "cut" else which): one for which, one in figures.items()}
            near = {"artefact": near["cut"]} if near else {}
            for one in shown:
                one["says"] = {("artefact" if which == "cut" else which): text for which, text in one["says"].items()}
        return Accuracy(figures, near, shown)

    def _corners(self, made: _Made, accuracy: Accuracy | None, source: Path, staging: Path) -> list[Corner]:
        """Dense and pruned, float and int8: sizes, measured times and how good they are."""
        options, path = self.options, staging / "model.onnx"
        paths = {"dense int8": staging / "dense.int8.onnx", "pruned int8": staging / _INT8}
        with timed(self.seconds, "quantize"):
            quantize_int8(source, self.samples.feeds, paths["dense int8"])
            quantize_int8(path, self.samples.feeds, paths["pruned int8"])
        corners = []
        expected = outputs_of(partial(OrtRunner(), self.network.program.model), self.held.feeds)
        for name, file in {"dense float": source, "pruned float": path, **paths}.items():
            from graphprune.frontends.onnx import read_onnx

            run = partial(OrtRunner(), read_onnx(file))
            figures: dict[str, Any] = {}
            if self.metric is not None:
                figures["metric"] = {key: one.to_json() for key, one in self.metric(run).items()}
            if self.held.count:
                figures["fidelity"] = fidelity(expected, outputs_of(run, self.held.feeds)).to_json()
            ratio = Estimate(1.0, 1.0, 1.0) if file == source else None
            if ratio is None and options.measure is not None and not _untimed(options.measure.backend):
                with timed(self.seconds, f"measure {name}"):
                    found = measure(source, file, self.network.program.examples, options.measure)
                assert isinstance(found, Comparison)
                ratio = Estimate(found.ratio, found.ratio_low, found.ratio_high)
            low, high, value = (None,) * 3 if ratio is None else (ratio.low, ratio.high, ratio.value)
            corners.append(Corner(name, file.stat().st_size, value, low, high, figures))
        return corners

    def _build(self, staging: Path) -> dict[str, Any] | None:
        """What the backend deploys beside the ONNX file, or None where it runs that file itself."""
        options = self.options
        if options.backend == "onnxruntime":
            return None
        with timed(self.seconds, "build"):
            try:
                made = get_backend(options.backend).build(staging / "model.onnx", staging, options.backend_options)
            except InputError as error:
                raise InputError(str(error).replace(f"{staging}{os.sep}", "the artefact, ")) from error
        if not made.files:
            return None
        hashes = {name: value for path in made.files for name, value in sha256_of(path).items()}
        return {"backend": options.backend, "sha256": hashes, "seconds": round(made.seconds, 3), "facts": made.facts}

    def _choose(self, source: Path, staging: Path, tightened: float) -> _Choice:
        """What stays: the plan that was given, or scores and an allocation to the targets."""
        network, options = self.network, self.options
        grouping = network.grouping
        if options.plan is not None:
            saved = replay(read_plan(options.plan), grouping)
            idle = "the plan removes nothing: the artefact computes what the source computes"
            return _Choice(saved, {}, () if saved.kept else (idle,))
        chosen = Selection(options.include, options.exclude, options.stat)(grouping, network.program.parameter_names)
        if not chosen:
            raise NothingPrunableError(_why_nothing(grouping, options.stat))
        scores = self._scored(chosen)
        assert options.allocation is not None
        method = allocator(options.allocation, floor=options.floor, align=options.align)
        if options.max_drop is not None and self.drop is None:
            with timed(self.seconds, "max drop"):
                self._bound(chosen, scores, method, source, staging)
            options = self.options
        if options.search_budget is not None:
            scores = self._searched(chosen, scores, method, source, staging)
        if options.target_latency is None:
            with timed(self.seconds, "allocate"):
                allocation = method.allocate(chosen, scores, network.cost, self.targets)
            asked = {str(quantity): limit for quantity, limit in allocation.asked.items()}
            return _Choice(allocation.plan, asked, (*scores.notes, *allocation.notes))
        met = self._meet(chosen, scores, method, source, staging, tightened)
        asked = {one.quantity: one.limit(_whole(network)[one.quantity]) for one in self.targets}
        return _Choice(met.plan, asked, (*scores.notes, *met.notes), met)

    def _plan_at(
        self, share: float, chosen: Sequence[Group], scores: Scores, method: Allocator, source: Path, staging: Path
    ) -> Plan:
        """Widths for a share of the original's predicted time, or of its MACs where nothing is measured."""
        if self.options.measure is None:
            return method.allocate(chosen, scores, self.network.cost, [Target.parse(f"{share:.4f}x", "macs")]).plan
        model = self._curves(chosen, source, staging)
        return solve(share, model, chosen, scores, self.network.cost, method, ())[0]

    def _searched(
        self, chosen: Sequence[Group], scores: Scores, method: Allocator, source: Path, staging: Path
    ) -> Scores:
        """Scores with a factor for each group, found by looking; once for a job."""
        options, network = self.options, self.network
        if self.found is None:
            assert options.search_budget is not None

            def allocate(weighed: Scores) -> Plan:
                if options.target_latency is None:
                    return method.allocate(chosen, weighed, network.cost, self.targets).plan
                model = self._curves(chosen, source, staging)
                share = LatencyTarget.parse(options.target_latency).share(model.original_ns / 1e6)
                return solve(share, model, chosen, weighed, network.cost, method, self.targets)[0]

            budget = Budget.parse(options.search_budget)
            with timed(self.seconds, "search"):
                samples = self.samples.feeds
                self.found = Search(network.grouping, chosen, scores, allocate, samples, budget, options.seed).run()
        return self.found.scores

    def _bound(self, chosen: Sequence[Group], scores: Scores, method: Allocator, source: Path, staging: Path) -> None:
        """Find the smallest share at which the figure drops no more than asked, and make it the target."""
        assert self.options.max_drop is not None

        def value(share: float | None) -> float:
            model = self.network.program.model
            if share is not None:
                keep = keep_of(self._plan_at(share, chosen, scores, method, source, staging), self.network.grouping)
                model = Shrink(keep)(self.network.grouping)
                if self._repairs():
                    repair = Repair(self._method(), self.options.seed)
                    model = repair(self.network.grouping, keep, model, self.samples.feeds, OrtRunner()).model
            run = partial(OrtRunner(), model)
            if self.metric is not None:
                return next(iter(self.metric(run).values())).value
            samples = self.held.feeds or self.samples.feeds
            if share is None:
                self.expected = outputs_of(run, samples)
                return 1.0
            near = fidelity(self.expected, outputs_of(run, samples))
            return near.top1.value if near.top1 is not None else near.cosine.value

        self.drop = fastest_within(parse_drop(self.options.max_drop), value)
        text = f"{self.drop.share:.4g}x"
        timed_target = self.options.measure is not None
        if timed_target:
            self.options = replace(self.options, target_latency=text)
        else:
            self.options = replace(self.options, target_macs=text)
            self.targets = [Target.parse(text, "macs")]

    def _scored(self, chosen: Sequence[Group]) -> Scores:
        """Scores of the groups that may be cut; computed once."""
        network, options = self.network, self.options
        if self.scores is not None:
            return self.scores
        assert options.criterion is not None
        extra = {"seed": options.seed} if options.criterion == "random" else {}
        ranking = criterion(options.criterion, **{**extra, **options.criterion_options})
        with timed(self.seconds, "score"):
            kept = None
            if not isinstance(ranking, Criterion):
                kept = ScoreCache(self.sha256, self.samples.digest(), repr(ranking), options.seed)
                self.scores = kept.read(chosen)
                ranking = ranking.on(Observations(network.grouping, self.samples.feeds, OrtRunner(), options.seed))
            if self.scores is None:
                self.scores = score_groups(ranking, chosen, network.program.tensor, scales=network.grouping.scales)
                if kept is not None:
                    kept.write(self.scores)
            release(network.program.model)
        return self.scores

    def _meet(
        self,
        chosen: Sequence[Group],
        scores: Scores,
        method: Allocator,
        source: Path,
        staging: Path,
        tightened: float,
    ) -> Met:
        """Step curves, and as many candidates as it takes."""
        network, options = self.network, self.options
        timing = options.measure
        assert timing is not None and options.target_latency is not None
        feeds = network.program.examples
        candidate = staging / "candidate" / "model.onnx"

        def build(plan: Plan) -> Path:
            shutil.rmtree(candidate.parent, ignore_errors=True)
            candidate.parent.mkdir(exist_ok=True)
            keep = keep_of(plan, network.grouping)
            model = Shrink(keep)(network.grouping)
            if self._repairs():  # with the biases that repair will add
                model = Repair(self._method()).dressed(network.grouping, keep, model)
            self._written(model, candidate, None)
            return candidate

        model = self._curves(chosen, source, staging)
        asked = LatencyTarget.parse(options.target_latency)
        target = replace(asked, value=asked.value * tightened)
        with timed(self.seconds, "meet"):
            met = meet(
                target,
                model,
                chosen,
                scores,
                network.cost,
                method,
                self.targets,
                source,
                build,
                feeds,
                timing,
                options.statistic,
            )
        return replace(met, target=asked, share=met.share / tightened)

    def _curves(self, chosen: Sequence[Group], source: Path, staging: Path) -> LatencyModel:
        """The step curves, measured when they are first needed."""
        options, network = self.options, self.network
        timing = options.measure
        assert timing is not None

        def write(keep: Keep, path: Path) -> None:
            path.parent.mkdir(exist_ok=True)
            self._written(Shrink(keep)(network.grouping), path, None)

        if self.model is None:
            profile = ProfileOptions(timing.backend, timing.backend_options, floor=options.floor, seed=options.seed)
            table = None if options.latency_table is None else read_table(options.latency_table)
            feeds = network.program.examples
            with timed(self.seconds, "profile"):
                self.model = LatencyModel.of(network.grouping, chosen, source, write, feeds, profile, table=table)
        return self.model

    def _written(self, model: ir.Model, path: Path, limit: int | None) -> tuple[Path, ...]:
        # A source that keeps its data beside it gets such an artefact: it can be run without being read as a whole.
        external = True if external_locations(self.network.program.model) else None
        return write_onnx(model, path, external=external, max_shard_size=limit)

    def _source(self, staging: Path) -> dict[str, Any]:
        """The file that the plan speaks of: the user's, or the traced network written out."""
        path = self.network.source
        if path is None:
            written = write_onnx(self.network.program.model, staging / "source.onnx")
            files = sha256_of(staging / "source.onnx", [p.name for p in written[:-1]])
            return {"path": staging / "source.onnx", "sha256": files["source.onnx"], "files": files}
        files = sha256_of(path, external_locations(self.network.program.model))
        return {"path": path, "sha256": files[path.name], "files": files}

    def _verified(self, staging: Path, members: Sequence[PlanMember], inexact: Sequence[str]) -> Verdict | None:
        from graphprune.frontends.onnx import read_onnx

        options = self.options
        check = Verify(options.samples, options.atol, options.rtol, options.seed)
        advice = "Nothing was written. Please report this network; --exclude can leave the part out"
        with timed(self.seconds, "verify"):
            try:
                pruned = read_onnx(staging / "model.onnx")
                if not options.verify:
                    return None
                verdict = verify_program(self.network.program, members, pruned, check, options.verify_dtype)
            except InputError as error:
                said = IN_MEMORY.sub("the cut or the masked network", str(error)).replace(f"{staging}{os.sep}", "")
                raise VerificationError(
                    f"the cut network cannot be held against its original: {said}. {advice}"
                ) from error
        if not verdict.passed:
            if inexact:
                advice = (
                    f"{len(inexact)} of the groups cut are inexact ({', '.join(inexact[:3])}: a statistic is computed "
                    "over them), so this was to be expected: --no-verify writes the network as it is. Nothing was "
                    "written"
                )
            more = "".join(f" ({IN_MEMORY.sub('the network', note)})" for note in verdict.notes)
            raise VerificationError(
                f"the cut network differs from its masked original by {verdict.max_rel:.2e} relative "
                f"({verdict.max_abs:.2e} absolute) in {verdict.worst!r}; accepted are {verdict.rtol:g} relative "
                f"and {verdict.atol:g} absolute{more}. {advice}"
            )
        return verdict


def shard_size(options: ExportOptions) -> int | None:
    """The largest data file to be written, in bytes. Raises UsageError."""
    text = options.max_shard_size
    return None if text is None else byte_count(str(text), "--max-shard-size")


def _untimed(backend: str) -> str:
    """Why nothing can be timed on a backend here; empty where it can."""
    found = get_backend(backend).available()
    return "" if found.times else found.reason or f"{backend} cannot run a network here"


def _data_listed(manifest: Path) -> set[str]:
    """Data files that an earlier export wrote beside its model, as its manifest says; other names are not believed."""
    try:
        names = set(json.loads(manifest.read_bytes())["artefact"]["sha256"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()
    return {name for name in names if isinstance(name, str) and _DATA.fullmatch(name)}


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
