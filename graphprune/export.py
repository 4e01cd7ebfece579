"""The export job: score, allocate, shrink, write, verify, measure; files appear only when everything held."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.accuracy import Accuracy, assess, read_metric
from graphprune.artefacts import INT8, MANIFEST, MODEL, PLAN, SOURCE, ArtefactFolder
from graphprune.backends.base import get_backend
from graphprune.backends.runner import OrtRunner
from graphprune.choose import Choice, Chooser, whole
from graphprune.coupling.groups import Keep
from graphprune.errors import InputError, NoiseError, TargetError, UsageError, VerificationError
from graphprune.frontends.samples import Samples, is_noise, read_samples
from graphprune.ir.program import release
from graphprune.ir.store import external_locations, sha256_of, write_onnx
from graphprune.latency.figures import enough_for, figure_of
from graphprune.latency.measure import Comparison, measure
from graphprune.latency_target import Met
from graphprune.options import ExportOptions, check_options, settled, shard_size, untimed
from graphprune.passes.allocate import Target
from graphprune.passes.files import keep_of, members_of, plan_document, write_plan
from graphprune.passes.plan import Plan, PlanMember
from graphprune.passes.repair import Repaired
from graphprune.passes.shrink import Shrink
from graphprune.passes.verify import Verdict, Verify
from graphprune.pipeline import IN_MEMORY, timed, verify_program
from graphprune.quantize import DENSE_INT8, Corner, four_corners, quantize_int8
from graphprune.report.files import write_family, write_reports
from graphprune.report.manifest import manifest_document, to_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphprune.pipeline import Network

__all__ = ["ExportResult", "check_targets", "export", "export_family"]


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
    targets = check_options(options)
    ArtefactFolder(Path(out)).check()
    return targets


_PATIENCE = 2.0  # times as long as a candidate may be measured, with latency targets
_MARGIN = 0.98  # of a latency target: the repaired artefact is measured by itself, and no two intervals are the same
_LOOK_AGAIN = 2  # times as many rounds, where its interval alone lies above the target
_ATTEMPTS = 3  # at a latency target, where what is repaired takes longer than what was only cut
_TO_SPLIT = 16  # samples from which some are held out to look at afterwards


def export(network: Network, out: Path, options: ExportOptions) -> ExportResult:
    """Prune to the targets, prove the cut, measure it and write the artefacts; see :meth:`Network.export`."""
    return _Export(network, out, options).run()


def export_family(network: Network, out: Path, options: ExportOptions, targets: Sequence[str]) -> list[ExportResult]:
    """One artefact per latency target, in a folder named after it, from one set of scores and step curves.

    Raises what :func:`export` raises; the artefacts of targets that were met before it stay.
    """
    results = []
    earlier: Chooser | None = None
    for text in targets:
        job = _Export(network, out / text.strip(), replace(options, target_latency=text), earlier)
        results.append(job.run())
        write_family(out, {one.folder.name: one.manifest for one in results})
        earlier = job.chooser
    return results


@dataclass(frozen=True)
class _Made:
    """A cut network as written, before repair and after, with its proof and its measurement.

    ``tried``: it is the very candidate that a latency target was met with. What is repaired is not, nor is what repair
    was left out of: its candidates carried the biases that repair would add.
    """

    cut: ir.Model
    repaired: Repaired | None
    written: tuple[Path, ...]
    verdict: Verdict | None
    comparison: Comparison | None
    notes: tuple[str, ...]
    tried: bool


class _Export:
    def __init__(self, network: Network, out: Path, options: ExportOptions, earlier: Chooser | None = None) -> None:
        self.network = network
        self.options = settled(options)
        self.asked_to_search = options.search_budget is not None
        self.targets = check_targets(options, out)
        self.folder = ArtefactFolder(Path(out))
        self.seconds: dict[str, float] = {}
        self.samples = self.held = Samples((), "")
        self.fitted = 0
        self.metric = None if options.metric is None else read_metric(options.metric)
        self.earlier = earlier
        self.chooser: Chooser | None = None
        if self.options.keep_source and network.source is not None:
            raise UsageError("--keep-source writes the network that a module became; here the source is a file already")
        if network.source is not None:
            beside = external_locations(network.program.model)
            self.folder.spare([network.source, *(network.source.parent / name for name in beside)])

    def run(self) -> ExportResult:
        """All steps; files appear in the folder only when everything held."""
        try:
            with self.folder.staged() as staging:
                return self._run(staging)
        except InputError as error:
            self._blame_a_sample(error)
            raise

    def _blame_a_sample(self, error: InputError) -> None:
        """Say so where it is a sample that does not run, in the network as it came in."""
        if not IN_MEMORY.search(str(error)):
            return
        run = OrtRunner()
        for one in (*self.samples.feeds, *self.held.feeds):
            try:
                run(self.network.program.model, one)
            except InputError as found:
                said = IN_MEMORY.sub("the network", str(found))
                raise InputError(f"a sample of '{self.samples.source}' does not run: {said}") from error

    def _run(self, staging: Path) -> ExportResult:
        network = self.network
        source = self._source(staging)
        self._read_samples()
        if self.options.quantize is not None:  # before any other work: the tool refuses some networks
            with timed(self.seconds, "quantize"):
                quantize_int8(source["path"], self.samples.feeds, staging / DENSE_INT8)
        options = self.options
        chooser = self.chooser = Chooser(
            network, options, self.targets, self.samples, self.held, self.metric, source["path"], staging,
            hashlib.sha256(json.dumps(source["files"], sort_keys=True).encode()).hexdigest(), self.seconds,
        )  # fmt: skip
        if self.earlier is not None:
            chooser.follow(self.earlier)
        for attempt in range(1, _ATTEMPTS + 1):
            choice, document, made = self._met(chooser, staging, source["sha256"])
            accuracy = self._assessed(made)
            kept = chooser.kept(accuracy)
            if kept is None or kept.holds:
                break
            if attempt == _ATTEMPTS or not chooser.relax():
                raise TargetError(
                    f"the artefact keeps {kept.value:.4g} of {kept.original:.4g}, {kept.least:.4g} were asked for "
                    f"(--max-drop {options.max_drop}); allow more, or give more calibration data"
                )
        plan, keep = choice.plan, keep_of(choice.plan, network.grouping)
        written, verdict, comparison, notes = made.written, made.verdict, made.comparison, list(made.notes)
        corners = self._corners(source["path"], staging) if options.quantize is not None else []
        quantized = [INT8] if corners else []
        build = self._build(staging)
        original = {str(quantity): amount for quantity, amount in whole(network).items()}
        reached = {"params": network.cost.params(keep), "macs": network.cost.macs(keep)}
        asked = dict(choice.asked)
        manifest = manifest_document(
            network=network,
            options=chooser.options,
            plan=document,
            plan_sha256=sha256_of(staging / PLAN)[PLAN],
            source=source["files"],
            artefact=sha256_of(staging / MODEL, [*(p.name for p in written[:-1]), *quantized]),
            original=original,
            asked=asked,
            reached=reached,
            verdict=verdict,
            comparison=comparison,
            met=choice.met,
            model=chooser.model,
            notes=notes,
            build=build,
            calibration=self._calibration_document(),
            repaired=made.repaired,
            accuracy=accuracy,
            found={
                "search": None if chooser.found is None else chooser.found.to_json(),
                "max_drop": None if chooser.drop is None else chooser.drop.to_json(),
                "corners": [one.to_json() for one in corners],
            },
            seconds={**network.seconds, **self.seconds},
        )
        (staging / MANIFEST).write_bytes(to_bytes(manifest))
        reports = write_reports(manifest, staging)
        built = [] if build is None else list(build["sha256"])
        names = [*(path.name for path in written), *quantized, *built, PLAN, *reports, MANIFEST]
        if options.keep_source and network.source is None:
            names += [Path(name).name for name in source["files"]]
        self.folder.place(staging, names)
        return ExportResult(
            self.folder.path,
            self.folder.path / MODEL,
            self.folder.path / PLAN,
            self.folder.path / MANIFEST,
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

    def _met(self, chooser: Chooser, staging: Path, sha256: str) -> tuple[Choice, dict[str, Any], _Made]:
        """What stays, made and measured: again with a tighter target where what is repaired takes longer."""
        tightened = _MARGIN if chooser.repairs else 1.0
        for _ in range(_ATTEMPTS):
            choice = chooser.choose(tightened)
            document = plan_document(choice.plan, self.network.grouping, sha256)
            (staging / PLAN).write_bytes(write_plan(document))
            made = self._make(chooser, choice, keep_of(choice.plan, self.network.grouping), staging)
            met, found = choice.met, made.comparison
            if met is None or found is None or made.tried:
                return choice, document, made
            figure = figure_of(found, self.options.statistic)
            if figure.ratio.value <= met.target.within(figure.a_ms) < figure.ratio.high:  # noise: look again
                with timed(self.seconds, "measure"):
                    found = self._compared(chooser.source, staging / MODEL, _LOOK_AGAIN)
                assert found is not None
                figure, made = figure_of(found, self.options.statistic), replace(made, comparison=found)
            ratio, share = figure.ratio, met.target.within(figure.a_ms)
            if ratio.high <= share:
                return replace(choice, met=replace(met, share=share)), document, made
            tightened *= share / ratio.high
        seen = f"the artefact takes {ratio.value:.3f}x of the original's time [{ratio.low:.3f}, {ratio.high:.3f}]"
        if ratio.low <= share:
            raise NoiseError(
                f"the machine is too noisy to say whether {chooser.options.target_latency} is met: {seen}; measure "
                "longer (--duration) or on an idle machine"
            )
        raise TargetError(
            f"{seen}, {share:.3g}x were asked for; allow more time, or repair the bias alone (--repair bias)"
        )

    def _assessed(self, made: _Made) -> Accuracy | None:
        """How good the networks are, where there are samples or a metric to say so."""
        if self.metric is None and not self.held.count:
            return None
        models = {"original": self.network.program.model, "cut": made.cut}
        if made.repaired is not None:
            models["artefact"] = made.repaired.model
        with timed(self.seconds, "evaluate"):
            runs = {which: partial(OrtRunner(), model) for which, model in models.items()}
            return assess(runs, self.held.feeds, self.metric)

    def _read_samples(self) -> None:
        options = self.options
        if options.calib is None:
            return
        with timed(self.seconds, "read samples"):
            samples = read_samples(
                options.calib, self.network.program, limit=options.calib_samples, images=options.calib_images
            )
            looked_at = samples.count >= _TO_SPLIT and not is_noise(options.calib)  # agreement on noise says nothing
            fitted, self.held = samples.split() if looked_at else (samples, Samples((), ""))
            self.samples, self.fitted = fitted.batched(self.network.program), fitted.count
        if self.samples.count < 2 and not self.asked_to_search:  # part of it is looked at, the other fitted to
            self.options = replace(self.options, search_budget=None)

    def _calibration_document(self) -> dict[str, Any] | None:
        if not self.samples.count:
            return None
        assert self.chooser is not None
        where = Path(self.samples.source).name if Path(self.samples.source).exists() else self.samples.source
        return {
            "source": f"matched {where}" if self.chooser.was_matched else where,
            "fitted": self.fitted,
            "held_out": self.held.count,
            "sha256": self.samples.digest(),
        }

    def _make(self, chooser: Chooser, choice: Choice, keep: Keep, staging: Path) -> _Made:
        """Cut, write and prove; repair and write again; measure."""
        network, options = self.network, self.options
        path = staging / MODEL
        with timed(self.seconds, "shrink"):
            cut = Shrink(keep)(network.grouping)
            written = network.write(cut, path, shard_size(options))
            release(network.program.model)
        inexact = [one.id for one in network.grouping.groups if one.id in keep and not one.exact]
        verdict = self._verified(staging, members_of(network.grouping, keep), inexact)
        notes = list(choice.notes)
        repaired, tried = None, True
        if chooser.repairs and choice.plan.kept:
            with timed(self.seconds, "repair"):
                tried = False
                repaired, worse = chooser.repaired(keep, cut)
                notes += repaired.notes
                if worse:
                    notes.append("repair was left out: its outputs are further from the original's than without it")
                    repaired = None
                else:
                    for one in staging.glob("model*.onnx*"):
                        one.unlink()
                    written = network.write(repaired.model, path, shard_size(options))
        comparison = choice.met.comparison if choice.met is not None and tried else None
        if comparison is None and options.measure is not None:
            if why := untimed(options.measure.backend):
                notes.append(f"not measured: {why}")
            else:
                with timed(self.seconds, "measure"):
                    comparison = self._compared(chooser.source, path)
        return _Made(cut, repaired, written, verdict, comparison, tuple(notes), tried)

    def _compared(self, source: Path, path: Path, times: int = 1) -> Comparison | None:
        """A file measured against the source, in so many times the rounds; None where nothing is measured."""
        timing = self.options.measure
        if timing is None or untimed(timing.backend):
            return None
        feeds, timing = self.network.program.examples, enough_for(timing, self.options.statistic)
        if self.options.target_latency or self.options.max_drop:  # else noise would begin everything anew
            timing = replace(
                timing, rounds=times * timing.rounds, duration=times * timing.duration,
                max_duration=_PATIENCE * timing.max_duration,
            )  # fmt: skip
        found = measure(source, path, feeds, timing)
        assert isinstance(found, Comparison)
        return found

    def _corners(self, source: Path, staging: Path) -> list[Corner]:
        with timed(self.seconds, "quantize"):
            return four_corners(
                self.network.program.model, source, staging / MODEL, staging / DENSE_INT8, self.samples.feeds,
                self.held.feeds, self.metric, partial(self._compared, source),
            )  # fmt: skip

    def _build(self, staging: Path) -> dict[str, Any] | None:
        """What the backend deploys beside the ONNX file, or None where it runs that file itself."""
        options = self.options
        if options.backend == "onnxruntime":
            return None
        with timed(self.seconds, "build"):
            try:
                made = get_backend(options.backend).build(staging / MODEL, staging, options.backend_options)
            except (InputError, UsageError) as error:
                raise type(error)(str(error).replace(f"{staging}{os.sep}", "the artefact, ")) from error
        if not made.files:
            return None
        hashes = {name: value for path in made.files for name, value in sha256_of(path).items()}
        return {"backend": options.backend, "sha256": hashes, "seconds": round(made.seconds, 3), "facts": made.facts}

    def _source(self, staging: Path) -> dict[str, Any]:
        """The file that the plan speaks of: the user's, or the traced network written out."""
        path = self.network.source
        if path is None:
            written = write_onnx(self.network.program.model, staging / SOURCE)
            files = sha256_of(staging / SOURCE, [p.name for p in written[:-1]])
            return {"path": staging / SOURCE, "sha256": files[SOURCE], "files": files}
        files = sha256_of(path, external_locations(self.network.program.model))
        return {"path": path, "sha256": files[path.name], "files": files}

    def _verified(self, staging: Path, members: Sequence[PlanMember], inexact: Sequence[str]) -> Verdict | None:
        from graphprune.frontends.onnx import read_onnx

        options = self.options
        check = Verify(options.samples, options.atol, options.rtol, options.seed)
        advice = "Nothing was written. Please report this network; --exclude can leave the part out"
        with timed(self.seconds, "verify"):
            try:
                pruned = read_onnx(staging / MODEL)
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
