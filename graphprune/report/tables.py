"""Tables and sentences for people, drawn with rich; data go through the manifest instead."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from graphprune.coupling.explain import AxisReport
    from graphprune.coupling.groups import Group
    from graphprune.export import ExportResult
    from graphprune.latency.measure import Comparison, Measurement
    from graphprune.passes.verify import Verdict
    from graphprune.pipeline import Analysis

__all__ = [
    "analysis_report",
    "axis_report",
    "comparison_report",
    "console",
    "count",
    "export_report",
    "verdict_line",
    "verdict_report",
]


def console() -> Console:
    """Where results for people go: stdout, as wide as the terminal or ``COLUMNS`` (120 columns where it is piped)."""
    from rich.console import Console

    plain = Console(highlight=False)
    return plain if plain.is_terminal or "COLUMNS" in os.environ else Console(width=120, highlight=False)


def _say(out: Console, text: str) -> None:
    """A line of prose: on a terminal it is wrapped between words, in a pipe it stays one line, as ``grep`` likes it."""
    out.print(_plain(text), soft_wrap=not out.is_terminal)


def _plain(text: str) -> Text:
    """Names come out of files: they are no markup and must not steer a terminal."""
    from rich.text import Text

    return Text("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))


def count(n: int) -> str:
    """``11.69 M``."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return str(n)


def _table(*columns: tuple[str, bool]) -> Table:
    """A table of (title, is a number) columns; numbers are never broken, names fold where there is no room."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title, number in columns:
        table.add_column(title, justify="right" if number else "left", overflow="fold", no_wrap=number)
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*(_plain(cell) for cell in cells))


def _roles(one: Group, *roles: str) -> list[str]:
    return [f"{member.tensor}[{member.axis}]" for role in roles for member in one.members if member.role == role]


def _some(names: list[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "(a scalar)"


def analysis_report(analysis: Analysis, out: Console, *, every: bool = False) -> None:
    """Coverage, groups, refusals."""
    exact = sum(one.exact for one in analysis.groups)
    shapes = ", ".join(f"{name} {_size(shape)}" for name, shape in analysis.input_shapes.items())
    _say(out, f"inputs           {shapes or 'none'}")
    _say(out, f"parameters       {count(analysis.params)}, {analysis.governed_params:.1%} governed by exact groups")
    _say(out, f"MACs             {count(analysis.macs)}, {analysis.governed_macs:.1%} governed by exact groups")
    stat = len(analysis.groups) - exact
    _say(out, f"groups           {exact} exact, {stat} stat (inexact, opt-in with --stat)")
    if analysis.groups:
        out.print(_groups_table(analysis, every=every, narrow=out.width < _WIDE))
    if analysis.refusals:
        nodes = len(analysis.refusals)
        _say(out, "1 node is not cut through:" if nodes == 1 else f"{nodes} nodes are not cut through:")
        for text, times in Counter(analysis.refusals).most_common(None if every else 10):
            _say(out, f"  {text}" + (f" ({times} times)" if times > 1 else ""))
        if len(set(analysis.refusals)) > 10 and not every:
            _say(out, "  ... (--all shows every one)")
    for note in analysis.notes:
        _say(out, f"note: {note}")


_WIDE = 100  # columns from which a table has room for the names of both ends of a group


def _groups_table(analysis: Analysis, *, every: bool, narrow: bool) -> Table:
    numbers = [("units", True), ("params", True), ("MACs", True)]
    ends = [("made by", False)] if narrow else [("made by", False), ("consumed by", False)]
    table = _table(("group", False), ("kind", False), *numbers, *ends)
    most = len(analysis.parameter_names) + 10**6 if every else 1 if narrow else 2
    for one in analysis.groups:
        params, macs = analysis.shares[one.id]
        names = (
            [_roles(one, "producer")] if narrow else [_roles(one, "producer"), _roles(one, "consumer", "contracted")]
        )
        kind = one.kind if one.exact else f"{one.kind}, stat"
        shown = [_some(each, most) for each in names]
        _row(table, one.id, kind, str(one.size), count(params), count(macs), *shown)
    return table


def axis_report(report: AxisReport, out: Console) -> None:
    """An axis: its structure, its groups with all members, or the reason why it is never cut."""
    _say(out, f"{report.tensor} axis {report.axis}: {_many(report.size, 'index')}, structure {report.space}")
    for part in report.parts:
        if part.group is None:
            _say(out, f"  {_many(part.size, 'index')} never cut: {part.reason}")
            continue
        one = part.group
        kind = "exact" if one.exact else "stat"
        of = "all" if part.size == one.size else str(part.size)
        _say(out, f"  {of} of the {_many(one.size, 'unit')} of group {one.id} ({one.kind}, {kind})")
        if part.reason:
            _say(out, f"    {part.reason}")
        for role in ("producer", "consumer", "contracted", "rider"):
            for name in _roles(one, role):
                _say(out, f"    {role:<12}{name}")


def _many(n: int, what: str) -> str:
    plural = {"index": "indices", "unit": "units", "thread": "threads", "input": "inputs"}[what]
    return f"{n} {what if n == 1 else plural}"


def export_report(result: ExportResult, out: Console) -> None:
    """Asked, reached, proved, measured."""
    table = _table(("", False), ("original", True), ("artefact", True), ("reached", True), ("asked", True))
    for key, words in (("params", "parameters"), ("macs", "MACs")):
        was, now = result.original[key], result.reached[key]
        asked = str(result.manifest["options"][f"target_{key}"]) if key in result.asked else ""
        if asked and not asked.endswith("x"):  # an absolute number: say what share it is
            asked += f" ({result.asked[key] / was:.3f}x)"
        _row(table, words, count(was), count(now), f"{now / was if was else 1.0:.3f}x", asked)
    if result.comparison is not None:
        c = result.comparison
        ratio = f"{c.ratio:.3f}x [{c.ratio_low:.3f}, {c.ratio_high:.3f}]"
        _row(table, "median latency", f"{c.a.median_ms:.3f} ms", f"{c.b.median_ms:.3f} ms", ratio, "")
    out.print(table)
    if result.verdict is not None:
        _say(out, verdict_line(result.verdict))
    else:
        _say(out, "not verified (--no-verify)")
    if result.comparison is not None:
        _say(out, _conditions(result.comparison.fingerprint, result.comparison))
        if result.comparison.ratio_low > 1.0:
            _say(out, "warning: the artefact is slower than the original here; try --align 8 (widths the kernels like)")
    for note in result.notes:
        _say(out, f"note: {note}")
    out.print(
        _plain(f"written: {result.model}, {result.plan_path.name}, {result.manifest_path.name}"), soft_wrap=True
    )  # a path is never broken: it is copied from here


def verdict_line(verdict: Verdict) -> str:
    """One sentence."""
    said = "PASSED: equal to" if verdict.passed else "FAILED: differs from"
    by = "within" if verdict.passed else "by"
    return (
        f"{said} the masked original {by} {verdict.max_rel:.1e} relative, {verdict.max_abs:.1e} absolute "
        f"({_many(verdict.samples, 'input')}, {verdict.dtype}, accepted {verdict.rtol:g} relative + {verdict.atol:g} "
        "absolute)"
    )


def verdict_report(verdict: Verdict, out: Console) -> None:
    """The sentence, printed."""
    _say(out, verdict_line(verdict))


def _conditions(fingerprint: dict[str, object], result: Measurement | Comparison) -> str:
    providers = fingerprint.get("providers")
    named = "+".join(str(one) for one in providers) if isinstance(providers, list) else ""
    threads = fingerprint["threads"]
    counted = _many(threads, "thread") if isinstance(threads, int) else f"{threads} threads"
    return f"measured on {fingerprint['backend']} {fingerprint['version']}, {named}, {counted}; {result.noise}"


def comparison_report(names: Iterable[str], result: Measurement | Comparison, out: Console) -> None:
    """Times of one or two networks, in milliseconds."""
    from graphprune.latency.measure import Comparison

    both = [result.a, result.b] if isinstance(result, Comparison) else [result]
    shown = sorted({key for one in both for key in one.percentiles_ms})
    table = _table(
        ("model (times in ms)", False), ("median", True), (f"{both[0].confidence:.0%} interval", True),
        ("mean", True), ("min", True), *((key, True) for key in shown), ("CoV", True), ("samples", True),
    )  # fmt: skip
    for name, one in zip(names, both, strict=True):
        low, high = one.interval_ms
        tail = [f"{one.percentiles_ms[key]:.3f}" if key in one.percentiles_ms else "" for key in shown]
        _row(
            table, name, f"{one.median_ms:.3f}", f"[{low:.3f}, {high:.3f}]", f"{one.mean_ms:.3f}", f"{one.min_ms:.3f}",
            *tail, f"{one.cov:.1%}", str(one.iterations),
        )  # fmt: skip
    out.print(table)
    if isinstance(result, Comparison):
        interval = f"[{result.ratio_low:.3f}, {result.ratio_high:.3f}]"
        _say(out, f"ratio {result.ratio:.3f}x {interval} ({result.confidence:.0%}, {result.blocks} ABBA blocks)")
    _say(out, _conditions(result.fingerprint, result))
