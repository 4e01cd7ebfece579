"""The export job: score, allocate, shrink, write, verify, measure; files appear only when everything held."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.coupling.groups import Grouping
from graphprune.errors import InputError, NothingPrunableError, UsageError, VerificationError
from graphprune.ir.files import output_folder
from graphprune.ir.program import release
from graphprune.ir.store import external_locations, sha256_of, write_onnx
from graphprune.latency.measure import Comparison, MeasureOptions, measure
from graphprune.passes.allocate import Allocation, Target, allocator
from graphprune.passes.allocate.target import Quantity
from graphprune.passes.files import keep_of, members_of, plan_document, read_plan, replay, write_plan
from graphprune.passes.plan import Plan, PlanMember
from graphprune.passes.score import criterion, score_groups
from graphprune.passes.selection import Selection
from graphprune.passes.shrink import Shrink
from graphprune.passes.verify import Verdict, Verify
from graphprune.pipeline import IN_MEMORY, no_groups, timed, verify_program
from graphprune.report.manifest import manifest_document, to_bytes

if TYPE_CHECKING:
    from graphprune.pipeline import Network

__all__ = ["ExportOptions", "ExportResult", "check_targets", "export"]


@dataclass(frozen=True)
class ExportOptions:
    """How to export; the command line's options one by one.

    Attributes:
        target_params, target_macs: ``"0.5x"`` of the original or an absolute number as text; None: no such target.
        plan: a saved plan to replay instead of scoring and allocating.
        criterion, criterion_options: see :func:`graphprune.passes.score.criterion`.
        allocation: ``global`` or ``uniform``.
        floor: least share of every group's units that stays.
        align: kept channels are multiples of it.
        include, exclude: name patterns, see :class:`graphprune.passes.selection.Selection`.
        stat: also cut groups over which a statistic is computed (inexact).
        verify: hold the artefact to the masked equivalence; ``verify_dtype`` is ``float32`` or ``float64``.
        measure: measure original and artefact in turn on this machine; None leaves it out.
        keep_source: for a module, leave the traced network beside the artefact as ``source.onnx``.
        seed: of random inputs and the random criterion.
    """

    target_params: str | None = None
    target_macs: str | None = None
    plan: Path | None = None
    criterion: str = "magnitude"
    criterion_options: Mapping[str, Any] = field(default_factory=dict)
    allocation: str = "global"
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
    keep_source: bool = False
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
    if not targets and options.plan is None:
        raise UsageError("say what to reach: --target-params 0.5x, --target-macs 0.7x, or --plan FILE to replay a plan")
    if targets and options.plan is not None:
        raise UsageError("a plan that is replayed (--plan) takes no target; leave one of them out")
    folder = Path(out)
    made = _missing(folder)
    output_folder(folder)
    _remove_empty(made)
    for name in _ARTEFACTS:
        if (folder / name).is_dir():
            raise UsageError(f"cannot write '{folder / name}': it is a folder; choose another output folder")
    return targets


_ARTEFACTS = ("model.onnx", "model.onnx.data", "source.onnx", "source.onnx.data", "plan.json", "manifest.json")


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


class _Export:
    def __init__(self, network: Network, out: Path, options: ExportOptions) -> None:
        self.network = network
        self.options = options
        self.targets = check_targets(options, out)
        self.out = Path(out)
        self.seconds: dict[str, float] = {}
        self._spare_the_source()

    def run(self) -> ExportResult:
        """All steps; files appear in the folder only when everything held."""
        made = _missing(self.out)
        staging = Path(tempfile.mkdtemp(prefix=".graphprune-", dir=output_folder(self.out)))
        try:
            return self._run(staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            _remove_empty(made)  # stays where something was written

    def _spare_the_source(self) -> None:
        source = self.network.source
        if source is None:
            return
        files = [source, *(source.parent / name for name in external_locations(self.network.program.model))]
        for name in _ARTEFACTS:
            for one in files:
                target = self.out / name
                if target.exists() and one.exists() and os.path.samefile(target, one):
                    raise UsageError(f"'{target}' would overwrite the source; choose another output folder")

    def _run(self, staging: Path) -> ExportResult:
        network, options = self.network, self.options
        allocation, plan, notes = self._plan()
        keep = keep_of(plan, network.grouping)
        source = self._source(staging)
        document = plan_document(plan, network.grouping, source["sha256"])
        with timed(self.seconds, "shrink"):
            # A source that keeps its data beside it gets such an artefact: it can be run without being read as a whole.
            external = True if external_locations(network.program.model) else None
            written = write_onnx(Shrink(keep)(network.grouping), staging / "model.onnx", external=external)
            release(network.program.model)
        (staging / "plan.json").write_bytes(write_plan(document))
        inexact = [one.id for one in network.grouping.groups if one.id in keep and not one.exact]
        verdict = self._verified(staging, members_of(network.grouping, keep), inexact)
        comparison = None
        if options.measure is not None:
            with timed(self.seconds, "measure"):
                result = measure(source["path"], staging / "model.onnx", network.program.examples, options.measure)
            assert isinstance(result, Comparison)
            comparison = result
        original = {"params": network.cost.params({}), "macs": network.cost.macs({})}
        reached = {"params": network.cost.params(keep), "macs": network.cost.macs(keep)}
        asked: dict[str, int] = dict(allocation.asked.items()) if allocation is not None else {}
        manifest = manifest_document(
            network=network,
            options=options,
            plan=document,
            source=source["files"],
            artefact=sha256_of(staging / "model.onnx", [p.name for p in written[:-1]]),
            original=original,
            asked=asked,
            reached=reached,
            verdict=verdict,
            comparison=comparison,
            notes=notes,
            seconds={**network.seconds, **self.seconds},
        )
        (staging / "manifest.json").write_bytes(to_bytes(manifest))
        names = [*(path.name for path in written), "plan.json", "manifest.json"]
        if options.keep_source and network.source is None:
            names += [Path(name).name for name in source["files"]]
        for name in names:  # the manifest last: where it is, everything is
            os.replace(staging / name, self.out / name)
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
            notes,
            manifest,
        )

    def _plan(self) -> tuple[Allocation | None, Plan, tuple[str, ...]]:
        network, options = self.network, self.options
        grouping = network.grouping
        if options.plan is not None:
            saved = replay(read_plan(options.plan), grouping)
            idle = "the plan removes nothing: the artefact computes what the source computes"
            return None, saved, () if saved.kept else (idle,)
        chosen = Selection(options.include, options.exclude, options.stat)(grouping, network.program.parameter_names)
        if not chosen:
            raise NothingPrunableError(_why_nothing(grouping, options.stat))
        extra = {"seed": options.seed} if options.criterion == "random" else {}
        ranking = criterion(options.criterion, **{**extra, **options.criterion_options})
        with timed(self.seconds, "score"):
            scores = score_groups(ranking, chosen, network.program.tensor, scales=grouping.scales)
            release(network.program.model)
        with timed(self.seconds, "allocate"):
            method = allocator(options.allocation, floor=options.floor, align=options.align)
            allocation = method.allocate(chosen, scores, network.cost, self.targets)
        return allocation, allocation.plan, (*scores.notes, *allocation.notes)

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
            raise VerificationError(
                f"the cut network differs from its masked original by {verdict.max_rel:.2e} relative "
                f"({verdict.max_abs:.2e} absolute) in {verdict.worst!r}; accepted are {verdict.rtol:g} relative "
                f"and {verdict.atol:g} absolute. {advice}"
            )
        return verdict


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
