"""How to export: the options, the choices that they leave open, and what can be known to be wrong before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from graphprune.accuracy import parse_drop
from graphprune.backends.base import BackendOptions, get_backend
from graphprune.errors import UsageError
from graphprune.frontends.samples import Preprocessing, is_noise
from graphprune.ir.files import byte_count
from graphprune.latency.figures import Statistic
from graphprune.latency.measure import MeasureOptions
from graphprune.latency.table import elsewhere, read_table
from graphprune.latency_target import LatencyTarget
from graphprune.passes.allocate import Target
from graphprune.passes.allocate.target import Quantity
from graphprune.passes.repair import METHODS
from graphprune.passes.score import criteria, estimates_loss
from graphprune.search import JUDGES, Budget, Judge

__all__ = ["ExportOptions", "check_options", "settled", "shard_size", "untimed"]


@dataclass(frozen=True)
class ExportOptions:
    """How to export; the command line's options one by one.

    Attributes:
        target_params, target_macs: ``"0.5x"`` of the original or an absolute number as text; None: no such target.
        target_latency: ``"0.6x"`` of the original's measured time, or a time as ``"8ms"``.
        statistic: the figure of the measured times that the target is on: ``median`` or ``p90``.
        latency_table: measured elsewhere, on the device, with ``graphprune profile``; None: this device's own. With
            it and without ``measure`` a latency target is met by what the table predicts.
        profile_seconds: after so long no more networks are timed for the step curves of this device.
        plan: a saved plan to replay instead of scoring and allocating.
        criterion, criterion_options: see :func:`graphprune.passes.score.criteria`, a name or a sum such as
            ``wanda+0.5*magnitude``; None: ``obs`` where there are calibration data, else ``magnitude``.
        allocation: ``global``, ``uniform`` or ``knapsack``; None: ``knapsack`` for a latency target and for criteria
            that estimate a loss (``obs``, ``taylor``, ``fisher``), else ``global``.
        calib: calibration data, see :func:`graphprune.frontends.samples.read_samples`; None: none.
        calib_samples: at most so many runs of them; calib_images: how images are read.
        repair: ``refit``, ``bias`` or ``none``; None: ``refit`` where there are calibration data.
        search_budget: look for a factor per group before the plan is made: ``5min``, ``20`` candidates, or ``0``: do
            not; None: three candidates for the criterion ``obs``.
        search_by: what judges a candidate: ``outputs`` (their divergence from the original's), ``mse``, or ``eval``:
            ``metric``, which then takes part in the choice, so judge the artefact on other data.
        max_drop: instead of a target: the fastest network (the one of fewest MACs where nothing is measured) that loses
            no more of the metric, or of the agreement with the original: ``1%``.
        quantize: ``int8``: also write ``model.int8.onnx``, and compare dense and pruned, float and int8.
        metric: the user's own figure, ``module:function`` or a function, see :class:`graphprune.accuracy.Metric`.
        floor: least share of every group's units that stays.
        align: kept channels are multiples of it.
        include, exclude: name patterns, see :class:`graphprune.passes.selection.Selection`.
        stat: also cut groups over which a statistic is computed (inexact).
        verify: hold the artefact to the masked equivalence; ``verify_dtype`` is ``float32`` or ``float64``.
        measure: measure original and artefact in turn on this machine; None leaves it out. Where a time is met and
            no ``max_width`` says otherwise, rounds are added until the interval is within 3 % of the ratio.
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
    profile_seconds: float = 240.0
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
    search_by: Judge = "outputs"
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


_WIDTH = 0.03  # of the ratio: how well a time is known that a target is on


def settled(options: ExportOptions) -> ExportOptions:
    """With the choices that were left open."""
    data = options.calib is not None
    ranking = options.criterion or ("obs" if data else "magnitude")
    found = criteria(ranking, options.criterion_options)
    measure = options.measure
    if measure is not None and measure.max_width is None and (options.target_latency or options.max_drop):
        measure = replace(measure, max_width=_WIDTH)
    adds_up = options.target_latency is not None or all(estimates_loss(one) for _, one in found)
    return replace(
        options,
        criterion=ranking,
        allocation=options.allocation or ("knapsack" if adds_up else "global"),
        measure=measure,
        repair=options.repair or ("refit" if data else "none"),
        search_budget=options.search_budget or ("3" if ranking == "obs" and options.plan is None else None),
    )


#: what a plan that is replayed has chosen already
_CHOOSING = (
    *("criterion", "criterion_options", "allocation", "floor", "align", "include", "exclude", "stat"),
    *("search_budget", "search_by", "latency_table"),
)


def check_options(options: ExportOptions) -> list[Target]:
    """The targets on parameters and MACs as data.

    Raises:
        UsageError: no target and no plan, or both; a target or an option that makes no sense.
    """
    for name in ("target_latency", "target_params", "target_macs", "max_drop", "search_budget"):
        value: Any = getattr(options, name)
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{name}={value!r} is a {type(value).__name__}; write it as text, such as '0.7x'")
    if options.verify_dtype not in ("float32", "float64"):
        raise UsageError(f"verify_dtype={options.verify_dtype!r}: float32 or float64")
    if options.samples < 0:
        raise UsageError(f"--samples {options.samples}: how many random inputs are compared, at least 0")
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
    usual = ExportOptions()
    idle = [name for name in _CHOOSING if getattr(options, name) not in (getattr(usual, name), [])]
    if options.plan is not None and idle:
        flags = ", ".join("--" + name.replace("_", "-").removesuffix("s") for name in idle)
        raise UsageError(f"a plan that is replayed (--plan) leaves nothing to choose: leave out {flags}")
    _check_backend(options)
    _check_latency(options, latency)
    shard_size(options)
    _check_calibration(options)
    return targets


def _check_backend(options: ExportOptions) -> None:
    backend = get_backend(options.backend)
    found = backend.available()
    if not found.usable:
        raise UsageError(f"--backend {options.backend} cannot be used here: {found.reason}")
    backend.fingerprint(options.backend_options)  # it reads its settings, and refuses what it does not have


def _check_latency(options: ExportOptions, latency: LatencyTarget | None) -> None:
    timed = latency is not None or (options.max_drop is not None and options.measure is not None)
    if options.latency_table is not None and not timed:
        raise UsageError(
            "--latency-table serves a latency target: add --target-latency (with --max-drop, leave out --no-measure), "
            "or leave the table out"
        )
    if options.profile_seconds != ExportOptions.profile_seconds and (not timed or options.latency_table is not None):
        raise UsageError(
            "--profile-seconds is for the step curves that a latency target measures here: add --target-latency (and "
            "no --latency-table), or leave it out"
        )
    table = None if options.latency_table is None else read_table(options.latency_table)
    if latency is None:
        if options.statistic != "median" and options.max_drop is None:
            raise UsageError(f"--statistic {options.statistic} says what a latency target is on; add --target-latency")
        return
    if options.measure is None:
        if table is None:
            raise UsageError(
                "a latency target is met by measuring: leave out --no-measure, give the step curves of the device "
                "with --latency-table, or ask for --target-macs"
            )
        if options.statistic != "median":
            raise UsageError(
                f"step curves are of medians, so without measuring nothing is known of --statistic {options.statistic}"
            )
        return
    timed_on = options.measure.backend
    if why := untimed(timed_on):
        raise UsageError(
            f"a latency target is met by measuring, and {timed_on} cannot be timed here: {why}; --no-measure goes by "
            "a --latency-table of the device alone"
        )
    if table is None or latency.relative:
        return
    if there := elsewhere(table, timed_on, options.measure.backend_options):
        raise UsageError(
            f"{latency} is a time on {there}, where the latency table was made, and this machine cannot measure that: "
            "add --no-measure to go by the table alone, or ask for a share such as 0.6x, which is measured here"
        )


def _check_calibration(options: ExportOptions) -> None:
    chosen = [] if options.criterion is None else criteria(options.criterion, options.criterion_options)
    if options.calib is None:
        if needs := [one.name for _, one in chosen if hasattr(one, "on")]:
            raise UsageError(f"the criterion {needs[0]} needs calibration data: add --calib, or choose another")
        if options.repair not in (None, "none"):
            raise UsageError(f"--repair {options.repair} fits to calibration data; add --calib")
        for value, name in ((options.calib_samples, "--calib-samples"), (options.calib_images, "--calib-images")):
            if value is not None:
                raise UsageError(f"{name} says how calibration data are read; add --calib")
        for asked, name in ((options.search_budget, "--search-budget"), (options.quantize, "--quantize")):
            if asked not in (None, "0"):
                raise UsageError(f"{name} looks at calibration data; add --calib")
        if options.max_drop is not None and options.metric is None:
            raise UsageError("--max-drop needs something to measure: your own --eval, or --calib for the agreement")
    if options.max_drop is not None and options.metric is None and is_noise(options.calib):
        raise UsageError("--max-drop: agreement on noise says nothing; give samples (--calib), or your own --eval")
    if options.max_drop is not None:
        parse_drop(options.max_drop)
    if options.search_budget not in (None, "0"):
        Budget.parse(options.search_budget)
    if options.search_by not in JUDGES:
        raise UsageError(f"--search-by {options.search_by}: choose {', '.join(JUDGES)}")
    if options.search_by == "eval" and options.metric is None:
        raise UsageError("--search-by eval judges by your own metric; add --eval")
    if options.search_by != "outputs" and settled(options).search_budget in (None, "0"):
        raise UsageError(f"--search-by {options.search_by} says how a search judges; add --search-budget, such as 20")
    if options.quantize is not None and is_noise(options.calib):
        raise UsageError("--quantize: ranges that noise reaches say nothing of real inputs; give samples (--calib)")
    if options.quantize not in (None, "int8"):
        raise UsageError(f"--quantize {options.quantize}: int8 is what there is")
    if options.repair not in (None, "none", *METHODS):
        raise UsageError(f"--repair {options.repair}: choose {', '.join(METHODS)} or none")


def shard_size(options: ExportOptions) -> int | None:
    """The largest data file to be written, in bytes. Raises UsageError."""
    text = options.max_shard_size
    return None if text is None else byte_count(str(text), "--max-shard-size")


def untimed(backend: str) -> str:
    """Why nothing can be timed on a backend here; empty where it can."""
    found = get_backend(backend).available()
    return "" if found.times else found.reason or f"{backend} cannot run a network here"
