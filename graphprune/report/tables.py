"""Tables and sentences for people, drawn with rich; data go through the manifest instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from graphprune.coupling.explain import AxisReport
    from graphprune.coupling.groups import Group
    from graphprune.latency.measure import Comparison, Measurement
    from graphprune.passes.verify import Verdict
    from graphprune.pipeline import Analysis, ExportResult

__all__ = ["analysis_report", "axis_report", "comparison_report", "console", "count", "export_report", "verdict_line"]


def console() -> Console:
    """Where results for people go: stdout, as wide as it is (or 120 columns where it is piped)."""
    from rich.console import Console

    plain = Console(soft_wrap=False, highlight=False)
    return plain if plain.is_terminal else Console(width=120, highlight=False)


def count(n: int) -> str:
    """``11.69 M``."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return str(n)


def _table(*columns: tuple[str, bool]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title, right in columns:
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    return table


def _roles(one: Group, role: str) -> list[str]:
    return [f"{member.tensor}[{member.axis}]" for member in one.members if member.role == role]


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def analysis_report(analysis: Analysis, out: Console, *, every: bool = False) -> None:
    """Coverage, groups, refusals."""
    exact = [one for one in analysis.groups if one.exact]
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in analysis.input_shapes.items())
    out.print(f"inputs           {shapes}")
    out.print(f"parameters       {count(analysis.params)}, {analysis.governed_params:.1%} governed by exact groups")
    out.print(f"MACs             {count(analysis.macs)}, {analysis.governed_macs:.1%} governed by exact groups")
    out.print(f"groups           {len(exact)} exact, {len(analysis.groups) - len(exact)} stat (inexact, opt-in)")
    table = _table(
        ("group", False), ("kind", False), ("units", True), ("", False), ("params", True), ("MACs", True),
        ("made by", False), ("consumed by", False),
    )  # fmt: skip
    for one in analysis.groups:
        params, macs = analysis.shares[one.id]
        consumers = _roles(one, "consumer") + _roles(one, "contracted")
        most = 99 if every else 2
        table.add_row(
            one.id, one.kind, str(one.size), "exact" if one.exact else "stat", count(params), count(macs),
            _some(_roles(one, "producer"), most), _some(consumers, most),
        )  # fmt: skip
    out.print(table)
    if analysis.refusals:
        out.print(f"{len(analysis.refusals)} nodes are not cut through:")
        for text, times in Counter(analysis.refusals).most_common(None if every else 10):
            out.print(f"  {text}" + (f" ({times} times)" if times > 1 else ""), markup=False)
        if len(set(analysis.refusals)) > 10 and not every:
            out.print("  ... (--all shows every one)")
    for note in analysis.notes:
        out.print(f"note: {note}", markup=False)


def axis_report(report: AxisReport, out: Console) -> None:
    """An axis: its structure, its groups with all members, or the reason why it is never cut."""
    out.print(f"{report.tensor} axis {report.axis}: {report.size} indices, structure {report.space}", markup=False)
    for part in report.parts:
        if part.group is None:
            out.print(f"  {part.size} indices are never cut: {part.reason}", markup=False)
            continue
        one = part.group
        kind = "exact" if one.exact else "stat"
        out.print(f"  {part.size} units of group {one.id} ({one.kind}, {one.size} units, {kind})", markup=False)
        if part.reason:
            out.print(f"    {part.reason}", markup=False)
        for role in ("producer", "consumer", "contracted", "rider"):
            for name in _roles(one, role):
                out.print(f"    {role:<11}{name}", markup=False)


def export_report(result: ExportResult, out: Console) -> None:
    """Asked, reached, proved, measured."""
    table = _table(("", False), ("original", True), ("artefact", True), ("reached", True), ("asked", True))
    for key, words in (("params", "parameters"), ("macs", "MACs")):
        was, now = result.original[key], result.reached[key]
        asked = f"{result.asked[key] / was:.3f}x" if key in result.asked else ""
        table.add_row(words, count(was), count(now), f"{now / was:.3f}x", asked)
    if result.comparison is not None:
        c = result.comparison
        ratio = f"{c.ratio:.3f}x [{c.ratio_low:.3f}, {c.ratio_high:.3f}]"
        table.add_row("median latency", f"{c.a.median_ms:.3f} ms", f"{c.b.median_ms:.3f} ms", ratio, "")
    out.print(table)
    if result.verdict is not None:
        out.print(verdict_line(result.verdict))
    else:
        out.print("not verified (--no-verify)")
    if result.comparison is not None:
        out.print(_conditions(result.comparison.fingerprint, result.comparison))
        if result.comparison.ratio_low > 1.0:
            out.print("warning: the artefact is slower than the original here; try --align 8 (widths the kernels like)")
    for note in result.notes:
        out.print(f"note: {note}", markup=False)
    out.print(f"written: {result.model}, {result.plan_path.name}, {result.manifest_path.name}", markup=False)


def verdict_line(verdict: Verdict) -> str:
    """One sentence."""
    word = "PASSED" if verdict.passed else "FAILED"
    return (
        f"{word}: equal to the masked original within {verdict.max_rel:.1e} relative, {verdict.max_abs:.1e} absolute "
        f"({verdict.samples} inputs, {verdict.dtype}, accepted {verdict.rtol:g} relative + {verdict.atol:g} absolute)"
    )


def _conditions(fingerprint: dict[str, object], result: Measurement | Comparison) -> str:
    providers = fingerprint.get("providers")
    named = "+".join(str(one) for one in providers) if isinstance(providers, list) else ""
    head = f"{fingerprint['backend']} {fingerprint['version']}, {named}, {fingerprint['threads']} threads"
    return f"measured on {head}; {result.noise}"


def comparison_report(names: Iterable[str], result: Measurement | Comparison, out: Console) -> None:
    """Times of one or two networks."""
    from graphprune.latency.measure import Comparison

    both = [result.a, result.b] if isinstance(result, Comparison) else [result]
    shown = sorted({key for one in both for key in one.percentiles_ms})
    table = _table(
        ("model", False), ("median ms", True), ("interval", True), ("mean", True), ("min", True),
        *((key, True) for key in shown), ("CoV", True), ("samples", True),
    )  # fmt: skip
    for name, one in zip(names, both, strict=True):
        low, high = one.interval_ms
        tail = [f"{one.percentiles_ms[key]:.3f}" if key in one.percentiles_ms else "" for key in shown]
        table.add_row(
            name, f"{one.median_ms:.3f}", f"[{low:.3f}, {high:.3f}]", f"{one.mean_ms:.3f}", f"{one.min_ms:.3f}",
            *tail, f"{one.cov:.1%}", str(one.iterations),
        )  # fmt: skip
    out.print(table)
    if isinstance(result, Comparison):
        interval = f"[{result.ratio_low:.3f}, {result.ratio_high:.3f}]"
        out.print(
            f"ratio {result.ratio:.3f} {interval} ({result.confidence:.0%}, {result.blocks} ABBA blocks)", markup=False
        )
    out.print(_conditions(result.fingerprint, result), markup=False)
