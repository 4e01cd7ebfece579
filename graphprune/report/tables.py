"""Tables and sentences for people, drawn with rich; data go through the manifest instead."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from graphprune.backends import Availability
    from graphprune.coupling.explain import AxisReport
    from graphprune.coupling.groups import Group
    from graphprune.export import ExportResult
    from graphprune.latency.measure import Comparison, Measurement
    from graphprune.passes.verify import Verdict
    from graphprune.pipeline import Analysis
    from graphprune.report.bench import Bench

__all__ = [
    "add_row",
    "analysis_report",
    "axis_report",
    "backends_report",
    "bench_report",
    "console",
    "count",
    "export_report",
    "say",
    "table_of",
    "text_of",
    "verdict_line",
    "verdict_report",
]


def console() -> Console:
    """Where results for people go: stdout, as wide as the terminal or ``COLUMNS`` (120 columns where it is piped)."""
    from rich.console import Console

    plain = Console(highlight=False)
    return plain if plain.is_terminal or "COLUMNS" in os.environ else Console(width=120, highlight=False)


def say(out: Console, text: str) -> None:
    """A line of prose: on a terminal it is wrapped between words, in a pipe it stays one line, as ``grep`` likes it."""
    out.print(_plain(text), soft_wrap=not out.is_terminal)


def _plain(text: str) -> Text:
    """Names come out of files: they are no markup and must not steer a terminal."""
    from rich.text import Text

    return Text(text_of(text))


def text_of(name: str) -> str:
    """The text with what is not printable spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def count(n: int) -> str:
    """``11.69 M``."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return str(n)


def table_of(*columns: tuple[str, bool]) -> Table:
    """A table of (title, is a number) columns; numbers are never broken, names fold where there is no room."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title, number in columns:
        table.add_column(title, justify="right" if number else "left", overflow="fold", no_wrap=number)
    return table


def add_row(rows: Table, *cells: str) -> None:
    """A row of plain text."""
    rows.add_row(*(_plain(cell) for cell in cells))


def _roles(one: Group, *roles: str) -> list[str]:
    return [f"{member.tensor}[{member.axis}]" for role in roles for member in one.members if member.role == role]


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "(a scalar)"


def analysis_report(analysis: Analysis, out: Console, *, every: bool = False) -> None:
    """Coverage, groups, refusals."""
    exact = sum(one.exact for one in analysis.groups)
    shapes = ", ".join(f"{name} {_size(shape)}" for name, shape in analysis.input_shapes.items())
    say(out, f"inputs           {shapes or 'none'}")
    say(out, f"parameters       {count(analysis.params)}, {analysis.governed_params:.1%} governed by exact groups")
    say(out, f"MACs             {count(analysis.macs)}, {analysis.governed_macs:.1%} governed by exact groups")
    stat = len(analysis.groups) - exact
    say(out, f"groups           {exact} exact, {stat} stat (inexact, opt-in with --stat)")
    if analysis.groups and every:
        out.print(_groups_table(analysis, narrow=out.width < _WIDE))
    elif analysis.groups:
        _tree(analysis, out)
    if analysis.refusals:
        nodes = len(analysis.refusals)
        say(out, "1 node is not cut through:" if nodes == 1 else f"{nodes} nodes are not cut through:")
        for text, times in Counter(analysis.refusals).most_common(None if every else 10):
            say(out, f"  {text}" + (f" ({times} times)" if times > 1 else ""))
        if len(set(analysis.refusals)) > 10 and not every:
            say(out, "  ... (--all shows every one)")
    for note in analysis.notes:
        say(out, f"note: {note}")


_WIDE = 100  # columns from which a table has room for the names of both ends of a group


_LABEL = 16  # columns that the tree's labels get at least


def _tree(analysis: Analysis, out: Console) -> None:
    """Groups by the part of the network that they are in; blocks that are alike are told once."""
    from graphprune.report.tree import group_tree

    lines = group_tree(analysis)
    labels = ["  " * line.depth + text_of(line.label) for line in lines]
    kinds = max(len(line.kind) for line in lines)
    ids = [_some_ids(line.ids) for line in lines]
    rest = kinds + 7 + 2 * 8 + 2 + max(map(len, ids))
    room = max(min(max(map(len, labels)), out.width - rest - 2), _LABEL)
    head = f"{'group':<{room}}  {'kind':<{kinds}}{'units':>7}{'params':>8}{'MACs':>8}"
    out.print()
    out.print(_plain(head), style="bold", soft_wrap=True)
    for line, label, names in zip(lines, labels, ids, strict=True):
        text = f"{_middle(label, room):<{room}}  {line.kind:<{kinds}}"
        if line.ids:
            text += f"{line.size:>7}{_percent(line.params, analysis.params):>8}{_percent(line.macs, analysis.macs):>8}"
            text += f"  {names}"
        elif line.kind:
            text += f"{line.size:>7}  {text_of(line.reason)}"
        text = text.rstrip()
        text = text if len(text) <= out.width else f"{text[: out.width - 3]}..."
        out.print(_plain(text), style="" if line.ids else "dim" if line.kind else "bold", soft_wrap=True)
    if any(len(line.ids) > 1 for line in lines):
        say(out, "(xN: N blocks alike, with the shares of one on average; -v shows every group with its weights)")
    out.print()


def _some_ids(ids: tuple[str, ...]) -> str:
    return f"{ids[0]} +{len(ids) - 1}" if len(ids) > 1 else "".join(ids)


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _middle(text: str, most: int) -> str:
    """The text with its middle left out where it is too long: both ends tell names apart."""
    tail = (most - 2) * 2 // 3
    return text if len(text) <= most else f"{text[: most - 2 - tail]}..{text[-tail:]}"


def _groups_table(analysis: Analysis, *, narrow: bool) -> Table:
    numbers = [("units", True), ("params", True), ("MACs", True)]
    ends = [("made by", False)] if narrow else [("made by", False), ("consumed by", False)]
    table = table_of(("group", False), ("kind", False), *numbers, *ends)
    for one in analysis.groups:
        params, macs = analysis.shares[one.id]
        names = (
            [_roles(one, "producer")] if narrow else [_roles(one, "producer"), _roles(one, "consumer", "contracted")]
        )
        kind = one.kind if one.exact else f"{one.kind}, stat"
        add_row(table, one.id, kind, str(one.size), count(params), count(macs), *(", ".join(each) for each in names))
    return table


def axis_report(report: AxisReport, out: Console) -> None:
    """An axis: its structure, its groups with all members, or the reason why it is never cut."""
    say(out, f"{report.tensor} axis {report.axis}: {_many(report.size, 'index')}, structure {report.space}")
    for part in report.parts:
        if part.group is None:
            say(out, f"  {_many(part.size, 'index')} never cut: {part.reason}")
            continue
        one = part.group
        kind = "exact" if one.exact else "stat"
        of = "all" if part.size == one.size else str(part.size)
        say(out, f"  {of} of the {_many(one.size, 'unit')} of group {one.id} ({one.kind}, {kind})")
        if part.reason:
            say(out, f"    {part.reason}")
        for role in ("producer", "consumer", "contracted", "rider"):
            for name in _roles(one, role):
                say(out, f"    {role:<12}{name}")


_IRREGULAR = {"index": "indices"}


def _many(n: int, what: str) -> str:
    return f"{n} {what if n == 1 else _IRREGULAR.get(what, what + 's')}"


def export_report(result: ExportResult, out: Console) -> None:
    """Asked, reached, proved, measured."""
    table = table_of(("", False), ("original", True), ("artefact", True), ("reached", True), ("asked", True))
    for key, words in (("params", "parameters"), ("macs", "MACs")):
        was, now = result.original[key], result.reached[key]
        asked = str(result.manifest["options"][f"target_{key}"]) if key in result.asked else ""
        if asked and not asked.endswith("x"):  # an absolute number: say what share it is
            asked += f" ({result.asked[key] / was:.3f}x)"
        add_row(table, words, count(was), count(now), f"{now / was if was else 1.0:.3f}x", asked)
    from graphprune.report.card import reached_rows, timed_figure

    figure = timed_figure(result.manifest)
    if figure is not None or result.met is not None:
        words, was_ms, now_ms, ratio, asked = reached_rows(result.manifest)[-1]
        interval = "" if figure is None else f" [{figure['ratio_low']:.3f}, {figure['ratio_high']:.3f}]"
        add_row(table, words, was_ms, now_ms, ratio + interval, asked)
    out.print(table)
    if result.met is not None:
        from graphprune.report.latency import met_report

        met_report(result.met, out)
    if result.verdict is not None:
        say(out, verdict_line(result.verdict))
    else:
        say(out, "not verified (--no-verify)")
    if result.comparison is not None:
        say(out, _conditions(result.comparison.fingerprint, result.comparison))
        if result.comparison.ratio_low > 1.0:
            say(out, "warning: the artefact is slower than the original here; try --align 8 (widths the kernels like)")
    if result.repaired is not None or result.accuracy is not None:
        _accuracy(result, out)
    if result.manifest.get("corners"):
        _corners(result, out)
    for note in result.notes:
        say(out, f"note: {note}")
    build = result.manifest["build"]
    names = [*(build["sha256"] if build is not None else ()), result.plan_path.name, result.manifest_path.name]
    # A path is never broken: it is copied from here.
    out.print(_plain(f"written: {result.model}, {', '.join(names)}"), soft_wrap=True)


def _accuracy(result: ExportResult, out: Console) -> None:
    """What repair did, and how good the networks are."""
    from graphprune.report.card import accuracy_rows, repair_sentence

    if said := repair_sentence(result.manifest):
        say(out, said)
    if rows := accuracy_rows(result.manifest):
        table = table_of(("", False), ("original", True), ("cut only", True), ("artefact", True))
        for row in rows:
            add_row(table, *row)
        out.print(table)


def _corners(result: ExportResult, out: Console) -> None:
    """Dense and pruned, float and int8."""
    from graphprune.report.card import corner_heads, corner_rows

    heads = corner_heads(result.manifest)
    table = table_of(*((head, i > 0) for i, head in enumerate(heads)))
    for row in corner_rows(result.manifest):
        add_row(table, *row)
    out.print(table)


def verdict_line(verdict: Verdict) -> str:
    """One sentence."""
    said = "PASSED: equal to" if verdict.passed else "FAILED: differs from"
    by = "within" if verdict.passed else "by"
    ways = f" and {verdict.ways} ways through its branches" if verdict.ways > 1 else ""
    return (
        f"{said} the masked original {by} {verdict.max_rel:.1e} relative, {verdict.max_abs:.1e} absolute "
        f"({_many(verdict.samples, 'input')}{ways}, {verdict.dtype}, accepted {verdict.rtol:g} relative + "
        f"{verdict.atol:g} absolute)" + "".join(f"; {note}" for note in verdict.notes)
    )


def verdict_report(verdict: Verdict, out: Console) -> None:
    """The sentence, printed."""
    say(out, verdict_line(verdict))


def _conditions(fingerprint: dict[str, object], result: Measurement | Comparison) -> str:
    providers = fingerprint.get("providers")
    named = "+".join(str(one) for one in providers) if isinstance(providers, list) else ""
    threads = fingerprint["threads"]
    counted = _many(threads, "thread") if isinstance(threads, int) else f"{threads} threads"
    return f"measured on {fingerprint['backend']} {fingerprint['version']}, {named}, {counted}; {result.noise}"


def bench_report(found: Sequence[Bench], out: Console) -> None:
    """Times of the networks on each backend, their ratios, and why not to trust them."""
    for one in found:
        if len(found) > 1:
            say(out, f"{one.backend}:")
        _bench_table(one, out)
        for model, ratio in zip(one.models[1:], one.ratios, strict=True):
            of = "" if len(one.models) == 2 else f" of {model} to {one.models[0]}"
            kind = "ABBA blocks" if len(one.models) == 2 else "blocks"
            interval = f"[{ratio.ratio_low:.3f}, {ratio.ratio_high:.3f}]"
            say(out, f"ratio {ratio.ratio:.3f}x {interval}{of} ({ratio.confidence:.0%}, {ratio.blocks} {kind})")
        batch = "" if one.batch is None else f"batch {one.batch}, "
        say(out, batch + _conditions(one.measured[0].fingerprint, one.measured[0]))
        for text in _bench_warnings(one):
            say(out, f"warning: {text}")
        for text in _missing_percentiles(one):
            say(out, f"note: {text}")
        if one is not found[-1]:
            out.print()
    _across_backends(found, out)


_LONG = 32  # characters of a name from which the table has no room for it beside the figures


def _bench_table(one: Bench, out: Console) -> None:
    levels = sorted({key for each in one.measured for key in each.percentiles_ms}, key=lambda key: float(key[1:]))
    table = table_of(
        ("model (times in ms)", False), ("median", True), (f"{one.measured[0].confidence:.0%} interval", True),
        ("mean", True), ("min", True), *((key, True) for key in levels), ("CoV", True), ("inferences/s", True),
        ("samples", True),
    )  # fmt: skip
    for name, each in zip(_short(one.models), one.measured, strict=True):
        low, high = each.interval_ms
        tail = [f"{each.percentiles_ms[key]:.3f}" if key in each.percentiles_ms else "" for key in levels]
        add_row(
            table, name, f"{each.median_ms:.3f}", f"[{low:.3f}, {high:.3f}]", f"{each.mean_ms:.3f}",
            f"{each.min_ms:.3f}", *tail, f"{each.cov:.1%}", f"{each.throughput:.1f}", str(each.iterations),
        )  # fmt: skip
    out.print(table)


def _short(names: Sequence[str]) -> list[str]:
    """The names without their folders, where they would be broken and still tell the networks apart without."""
    last = [name.rpartition(os.sep)[2] for name in names]
    tells = len(set(last)) == len(set(names))
    return last if tells and max(map(len, names)) > _LONG else list(names)


def _bench_warnings(one: Bench) -> list[str]:
    many = len(one.models) > 1
    own = [
        f"{name}: {text}" if many else text
        for name, each in zip(one.models, one.measured, strict=True)
        for text in each.warnings()
    ]
    return [*own, *one.measured[0].noise.warnings()]


def _missing_percentiles(one: Bench) -> list[str]:
    """Percentiles that were asked for and for which there are too few samples."""
    from graphprune.latency.statistics import samples_for

    fewest = min(each.iterations for each in one.measured)
    missing = [level for level in one.percentiles if samples_for(level) > fewest]
    return [
        f"p{level:g} takes {samples_for(level)} samples of each model: --iterations {samples_for(level)}"
        for level in missing
    ]


def _across_backends(found: Sequence[Bench], out: Console) -> None:
    from graphprune.latency.statistics import Estimate, ratio_of_medians

    if len(found) > 1:
        out.print()
    for one in found[1:]:
        for name, base, each in zip(one.models, found[0].measured, one.measured, strict=True):
            a, b = (Estimate(each.median_ms, *each.interval_ms) for each in (base, each))
            ratio = ratio_of_medians(b, a)
            say(
                out,
                f"ratio {ratio.value:.3f}x [{ratio.low:.3f}, {ratio.high:.3f}] of {one.backend} to "
                f"{found[0].backend}, {name} (measured one after the other)",
            )


def backends_report(found: Sequence[tuple[str, Availability]], out: Console) -> None:
    """A line per backend, and why the others cannot be used."""
    table = table_of(("backend", False), ("version", False), ("devices", False), ("builds", False), ("times", False))
    for name, there in found:
        said = ["yes" if yes else "no" for yes in (there.builds, there.times)]
        add_row(table, name, there.version or "", ", ".join(there.devices), *said)
    out.print(table)
    for name, there in found:
        if there.reason:
            say(out, f"{name}: {there.reason}")
