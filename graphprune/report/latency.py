"""What people read of step curves and latency targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graphprune.report.tables import add_row, say, table_of, verdict_report

if TYPE_CHECKING:
    from rich.console import Console

    from graphprune.export import ExportResult
    from graphprune.gate import GateResult
    from graphprune.latency.curves import Grain
    from graphprune.latency_model import LatencyModel
    from graphprune.latency_target import Met

__all__ = ["family_report", "gate_report", "met_report", "profile_report"]


def met_report(met: Met, out: Console) -> None:
    """The candidates of a latency target, the chosen one marked; nothing where none was measured."""
    if not met.rounds:
        return
    rows = table_of(("round", True), ("asked of the curves", True), ("predicted", True), ("measured", True),
                 ("interval", True), ("importance kept", True), ("", False))  # fmt: skip
    for index, one in enumerate(met.rounds):
        add_row(
            rows,
            str(index + 1),
            f"{one.asked:.3f}x",
            f"{one.predicted:.3f}x",
            f"{one.ratio:.3f}x",
            f"[{one.low:.3f}, {one.high:.3f}]",
            f"{one.kept:.1%}",
            "chosen" if index == met.chosen else "",
        )
    out.print(rows)


def family_report(results: Sequence[ExportResult], out: Console) -> None:
    """The Pareto table of several latency targets."""
    from graphprune.report.card import reached_rows, timed_figure

    figure = timed_figure(results[0].manifest)
    heads = ("predicted", "predicted ms") if figure is None else ("measured", f"{figure['statistic']} ms")
    rows = table_of(("target", False), (heads[0], True), ("interval", True), (heads[1], True),
                 ("importance kept", True), ("params", True), ("MACs", True), ("verified", True),
                 ("folder", False))  # fmt: skip
    for result in results:
        met, found = result.met, timed_figure(result.manifest)
        assert met is not None
        timed = reached_rows(result.manifest)[-1]
        add_row(
            rows,
            str(met.target),
            timed[3],
            "" if found is None else f"[{found['ratio_low']:.3f}, {found['ratio_high']:.3f}]",
            timed[2].removesuffix(" ms"),
            f"{met.kept:.1%}",
            f"{result.reached['params'] / result.original['params']:.3f}x",
            f"{result.reached['macs'] / result.original['macs']:.3f}x",
            "not asked for" if result.verdict is None else f"{result.verdict.max_rel:.1e}",
            str(result.folder),
        )
    out.print(rows)
    for result in results:
        for note in result.notes:
            say(out, f"{result.met.target if result.met is not None else result.folder}: {note}")


def profile_report(model: LatencyModel, path: Path, out: Console) -> None:
    """What a profile found, in a few lines."""
    import numpy as np

    kinds = len({layer.signature for layer in model.layers})
    say(out, f"{path}: {len(model.layers)} layers, {kinds} different ones, measured in {model.seconds:.0f} s")
    say(out, f"original: {model.original_ns / 1e6:.3f} ms")
    if model.errors:
        median, tail = np.quantile(model.errors, [0.5, 0.95])
        say(out, f"predicted before it was measured: median error {median:.1%}, 95th percentile {tail:.1%}")
    for text in grain_lines(model.curves.grains):
        say(out, text)


def gate_report(result: GateResult, out: Console) -> None:
    """What the gate found, a line each."""
    say(out, f"{result.artefact}: the files are those that the manifest was written for")
    if result.verdict is not None:
        verdict_report(result.verdict, out)
    if result.figure is not None and result.limit is not None:
        found, ratio = result.figure, result.figure.ratio
        recorded = "" if result.recorded is None else f"; recorded {result.recorded:.3f}x"
        said = f"{found.words} latency {ratio.value:.3f}x [{ratio.low:.3f}, {ratio.high:.3f}] of the original's"
        ms = f"{found.a_ms:.3f} to {found.b_ms:.3f} ms"
        say(out, f"{said}, measured beside it now ({ms}); allowed {result.limit:.3f}x{recorded}")
    for note in result.notes:
        say(out, f"note: {note}")


def grain_lines(grains: Sequence[Grain]) -> list[str]:
    """What was found about widths, in words."""
    lines = []
    for one in grains:
        parts = []
        if one.block > 1:
            parts.append(f"works in blocks of {one.block}")
        if one.alignment > 1:
            parts.append(f"takes a slower kernel where the size is no multiple of {one.alignment}")
        if parts:
            lines.append(f"{one.operator}, axis {one.letter}: {' and '.join(parts)}")
    return lines
