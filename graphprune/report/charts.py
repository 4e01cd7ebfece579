"""Charts of an export, drawn by hand as plain SVG from the manifest's data; nothing is fetched.

Times are in milliseconds. A chart is made of blocks: a page sets them one below the other and may break between them, a
file holds them in one drawing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from graphprune.report.tables import text_of

__all__ = [
    "CHAR",
    "STYLE",
    "WIDTH",
    "Block",
    "Chart",
    "axis_ticks",
    "candidates",
    "label",
    "layers",
    "ms",
    "number",
    "scale",
    "shown_curves",
    "step_curves",
    "times",
    "widths",
]

WIDTH = 840  # pixels, of every chart
ROW = 20
CHAR = 6.65  # width of a character of the 11 px monospaced font, at the most
_PER_BLOCK = 24  # rows that stay on one page
_LAYERS = 32  # layers that are shown by themselves
_PANELS = 12  # step curves that are shown
_BINS = 70

# Explicit colours rather than variables: programs that draw SVG files do not know those.
STYLE = """
.chart text{font:11px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#1f2328;white-space:pre}
.chart text.q{fill:#59636e}
.chart .b{font-weight:600}
.chart .e{text-anchor:end}.chart .m{text-anchor:middle}
.chart .page{fill:#fff}
.chart .track{fill:#d8dee4}
.chart .was{fill:#8c959f}.chart .now{fill:#2f6fdb}
.chart .wl{stroke:#59636e}.chart .nl{stroke:#2f6fdb}.chart .gl{stroke:#d8dee4}.chart .al{stroke:#8c959f}
.chart .tl{stroke:#b35900;stroke-dasharray:4 3}.chart text.t{fill:#b35900}
.chart .wl,.chart .nl,.chart .tl{stroke-width:1.5;fill:none}
.chart .thick{stroke-width:2.5}
.chart .wb{fill:#8c959f;opacity:.22}.chart .nb{fill:#2f6fdb;opacity:.18}
.chart .hollow{fill:#fff;stroke:#59636e;stroke-width:1.5}
.chart .hi{fill:#eef3fc}
@media screen and (prefers-color-scheme:dark){
.chart text{fill:#e6edf3}.chart text.q{fill:#9da7b3}
.chart .page{fill:#0d1117}.chart .track{fill:#3a434e}
.chart .was{fill:#7d8792}.chart .now{fill:#5b9bff}
.chart .wl{stroke:#9da7b3}.chart .nl{stroke:#5b9bff}.chart .gl{stroke:#2b323b}.chart .al{stroke:#7d8792}
.chart .tl{stroke:#f0883e}.chart text.t{fill:#f0883e}
.chart .wb{fill:#7d8792;opacity:.28}.chart .nb{fill:#5b9bff;opacity:.24}
.chart .hollow{fill:#0d1117;stroke:#9da7b3}.chart .hi{fill:#16202f}
}
"""


@dataclass(frozen=True)
class Block:
    """A piece of a chart that is not broken: its height in pixels and its elements."""

    height: int
    body: str


@dataclass(frozen=True)
class Chart:
    """``name`` is that of its file without ``report-`` and ``.svg``; ``title`` says what it shows."""

    name: str
    title: str
    blocks: tuple[Block, ...]

    def inline(self) -> str:
        """SVG elements for a page that has :data:`STYLE`."""
        return "".join(
            f'<svg class="chart" viewBox="0 0 {WIDTH} {one.height}" width="{WIDTH}" height="{one.height}" role="group" '
            f'aria-label="{escape(self.title)}">{one.body}</svg>'
            for one in self.blocks
        )

    def file(self, subject: str) -> str:
        """A document of its own, with ``subject`` (the network's name) in its heading."""
        pad = 16
        parts, y = [], 44
        for one in self.blocks:
            parts.append(f'<g transform="translate({pad} {y})">{one.body}</g>')
            y += one.height
        width, height = WIDTH + 2 * pad, y + pad
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}"><title>{escape(self.title)}</title><style>{STYLE}</style>'
            f'<rect class="page" width="{width}" height="{height}"/>'
            f'<text class="b" x="{pad}" y="26">{label(f"{subject}: {self.title}", 110)}</text>'
            f"{''.join(parts)}</svg>\n"
        )


def number(value: float) -> str:
    """At most two decimals of a pixel, as short as it goes."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def ms(value: float) -> str:
    """Milliseconds to four significant digits, never in exponents: ``38.25``, ``0.0724``."""
    if not value:
        return "0"
    digits = 3 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(digits, 0), 6)}f}"


def label(text: str, most: int) -> str:
    """At most ``most`` printable characters, escaped; the middle is left out, for both ends tell names apart."""
    text = text_of(text)
    if len(text) > most:
        tail = (most - 1) * 3 // 5
        text = f"{text[: most - 1 - tail]}…{text[-tail:]}"
    return escape(text)


def axis_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers within ``[low, high]``, at most ``most`` of them."""
    span = max(high - low, 1e-12)
    unit = 10.0 ** math.floor(math.log10(span / most))
    step = next(unit * k for k in (1, 2, 5, 10, 20) if span / (unit * k) <= most - 1)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    """Text that is escaped already."""
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{number(x)}" y="{number(y)}">{text}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<path class="{kind}" d="M{number(x1)} {number(y1)}L{number(x2)} {number(y2)}"/>'


def _rect(x: float, y: float, width: float, height: float, kind: str, said: str = "") -> str:
    at = f'x="{number(x)}" y="{number(y)}" width="{number(max(width, 0.0))}" height="{number(height)}"'
    return f'<rect class="{kind}" {at}>{f"<title>{escape(said)}</title>" if said else ""}</rect>'


def scale(low: float, high: float, left: float, right: float) -> Callable[[float], float]:
    """From values within ``[low, high]`` to pixels within ``[left, right]``."""
    return lambda value: left + (value - low) / (high - low) * (right - left)


def times(latency: Mapping[str, Any]) -> Chart:
    """Histograms of the raw samples of both networks over one axis, with medians and their intervals.

    ``latency`` is the manifest's. The slowest samples that would stretch the axis are counted at its end instead.
    """
    import numpy as np

    both = {key: np.asarray(latency[key]["samples_ns"], dtype=float) / 1e6 for key in ("a", "b")}
    low = min(min(float(one.min()) for one in both.values()), *(latency[key]["interval_ms"][0] for key in both))
    high = max(max(_reach(one) for one in both.values()), *(latency[key]["interval_ms"][1] for key in both))
    pad = 0.02 * (high - low) or 0.05 * high
    low, high = max(low - pad, 0.0), high + pad
    left, right, tall = 8.0, WIDTH - 8.0, 84
    edges = np.linspace(low, high, _BINS + 1)
    x_of = scale(low, high, left, right)
    parts: list[str] = []
    y = 0.0
    for key, name, bar, band, line in (("a", "original", "was", "wb", "wl"), ("b", "artefact", "now", "nb", "nl")):
        one, base = latency[key], y + 30 + tall
        found, (start, end) = np.histogram(both[key], edges)[0], one["interval_ms"]
        said = (
            f'<tspan class="b">{name}</tspan>  median {ms(one["median_ms"])} ms, {one["confidence"]:.0%} interval '
            f"{ms(start)} to {ms(end)} ms, {one['iterations']} samples"
        )
        parts.append(_text(left, y + 18, said))
        parts.append(_rect(x_of(start), y + 28, x_of(end) - x_of(start), tall + 2, band, "interval of the median"))
        top = max(int(found.max()), 1)
        for i, many in enumerate(found.tolist()):
            if many:
                size = max(many / top * (tall - 6), 1.5)
                tip = f"{ms(float(edges[i]))} to {ms(float(edges[i + 1]))} ms: {many}"
                parts.append(
                    _rect(x_of(float(edges[i])) + 0.5, base - size, (right - left) / _BINS - 1, size, bar, tip)
                )
        at = x_of(one["median_ms"])
        parts.append(_line(at, y + 26, at, base, f"{line} thick"))
        beyond = int((both[key] > high).sum())
        if beyond:
            parts.append(_text(right, y + 18, f"{beyond} more up to {ms(float(both[key].max()))} ms →", "q e"))
        parts.append(_line(left, base + 0.5, right, base + 0.5, "al"))
        y = base + 12
    for value in axis_ticks(low, high, 10):
        x, text = x_of(value), f"{value:g}"
        parts.append(_line(x, y - 12, x, y - 8, "al"))
        if left <= x - len(text) / 2 * CHAR and x + (len(text) / 2 + 3) * CHAR < right:  # the unit stands at the end
            parts.append(_text(x, y + 4, text, "q m"))
    parts.append(_text(right, y + 4, "ms", "q e"))
    return Chart("latency", "time of one inference, original and artefact", (Block(round(y + 12), "".join(parts)),))


def _reach(samples: Any) -> float:
    """Up to where samples are shown: the largest that is no outlier (three times the middle spread above it)."""
    import numpy as np

    first, last = np.quantile(samples, [0.25, 0.75])
    return float(samples[samples <= last + 3.0 * (last - first)].max())


def candidates(target: Mapping[str, Any]) -> Chart:
    """A row per candidate of a latency target: what the curves predicted and what was measured, with its interval."""
    rounds, share = target["rounds"], target["share"]
    low = min(share, *(min(one["low"], one["predicted"]) for one in rounds))
    high = max(share, *(max(one["high"], one["predicted"]) for one in rounds))
    pad = 0.06 * (high - low) or 0.05
    low, high = low - pad, high + pad
    left, right, top = 430.0, WIDTH - 16.0, 40
    x_of = scale(low, high, left, right)
    columns = ((4, "round", ""), (136, "predicted", "q e"), (208, "measured", "e"), (322, "interval", "q e"),
               (404, "importance", "e"))  # fmt: skip
    end = top + ROW * len(rounds)
    parts = [_text(x, top - 12, title, "q e" if "e" in kind else "q") for x, title, kind in columns]
    for value in axis_ticks(low, high, 6):
        parts.append(_line(x_of(value), top - 2, x_of(value), end, "gl"))
        parts.append(_text(x_of(value), end + 16, f"{value:g}x", "q m"))
    goal, said = x_of(share), f"target {target['asked']}"
    half = len(said) * CHAR / 2
    parts.append(_text(min(max(goal, left + half), WIDTH - half), top - 12, escape(said), "t m"))
    for i, one in enumerate(rounds):
        y, chosen = top + ROW * i, i == target["chosen"]
        if chosen:
            parts.insert(0, _rect(0, y, WIDTH, ROW, "hi"))
        texts = (
            f"{i + 1}{' chosen' if chosen else ''}",
            f"{one['predicted']:.3f}x",
            f"{one['ratio']:.3f}x",
            f"{one['low']:.3f} to {one['high']:.3f}",
            f"{one['kept']:.1%}",
        )
        for (x, _, kind), text in zip(columns, texts, strict=True):
            parts.append(_text(x, y + 14, text, f"{kind}{' b' if chosen else ''}".strip()))
        line, mark = ("nl", "now") if chosen else ("wl", "was")
        parts.append(_line(x_of(one["low"]), y + 10, x_of(one["high"]), y + 10, f"{line} thick"))
        parts.append(f'<circle class="{mark}" cx="{number(x_of(one["ratio"]))}" cy="{y + 10}" r="4.5"/>')
        parts.append(_diamond(x_of(one["predicted"]), y + 10))
    parts.append(_line(goal, top - 6, goal, end, "tl"))
    key = end + 38
    parts.append(_diamond(left + 4, key - 4))
    parts.append(_text(left + 14, key, "predicted by the step curves", "q"))
    parts.append(f'<circle class="was" cx="{number(left + 220)}" cy="{key - 4}" r="4.5"/>')
    parts.append(_text(left + 230, key, "measured", "q"))
    title = "candidates: time as a share of the original's"
    return Chart("candidates", title, (Block(key + 8, "".join(parts)),))


def _diamond(x: float, y: float) -> str:
    return f'<path class="hollow" d="M{number(x)} {number(y - 5)}l4 5l-4 5l-4 -5z"/>'


def _rows(head: str, rows: Sequence[str], tail: str = "") -> tuple[Block, ...]:
    """Rows of :data:`ROW` pixels drawn at 0, under a heading of the same height, in pieces that fit on a page."""
    blocks = []
    for start in range(0, len(rows), _PER_BLOCK):
        lines = [*([head] if start == 0 else []), *rows[start : start + _PER_BLOCK]]
        if tail and start + _PER_BLOCK >= len(rows):
            lines.append(tail)
        body = "".join(f'<g transform="translate(0 {i * ROW})">{line}</g>' for i, line in enumerate(lines))
        blocks.append(Block(ROW * len(lines), body))
    return tuple(blocks)


def widths(groups: Sequence[Mapping[str, Any]]) -> Chart:
    """A bar per group that was cut: the units that stay, of all it had."""
    left, right = 450.0, 664.0
    head = "".join(
        _text(x, 14, title, kind)
        for x, title, kind in ((0, "group", "q"), (52, "made by", "q"), (326, "kind", "q"),
                               (736, "before", "q e"), (790, "after", "q e"), (WIDTH, "kept", "q e"))
    )  # fmt: skip
    rows = []
    for one in groups:
        made = [str(name) for name in one["producers"]]
        more = f" +{len(made) - 1}" if len(made) > 1 else ""
        share = one["kept"] / one["size"]
        kind = one["kind"] if one["exact"] else f"{one['kind']}, stat"
        said = text_of(f"{one['id']} ({kind}): {one['kept']} of {one['size']} units kept; {', '.join(made)}")
        rows.append(
            f"<title>{escape(said)}</title>"
            + _text(0, 14, label(str(one["id"]), 7))
            + _text(52, 14, label(made[0] if made else "", 39 - len(more)) + more)
            + _text(326, 14, label(kind, 18), "q")
            + _rect(left, 5, right - left, 10, "track")
            + _rect(left, 5, share * (right - left), 10, "now")
            + _text(736, 14, str(one["size"]), "q e")
            + _text(790, 14, str(one["kept"]), "e")
            + _text(WIDTH, 14, f"{share:.0%}", "q e")
        )
    return Chart("widths", "units of each group, before and after", _rows(head, rows))


def layers(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """A bar per layer: its time before and after as the step curves explain it, in the network's order.

    Of many layers those that took longest are shown by themselves and the others in one row.
    """
    shown = sorted(sorted(range(len(rows)), key=lambda i: (-rows[i]["ms_before"], i))[:_LAYERS])
    rest = [one for i, one in enumerate(rows) if i not in set(shown)]
    most = max((max(one["ms_before"], one["ms_after"]) for one in rows), default=0.0) or 1.0
    left, right = 400.0, 648.0
    per_ms = (right - left) / most
    head = "".join(
        _text(x, 14, title, kind)
        for x, title, kind in ((0, "layer", "q"), (196, "operators", "q"), (722, "before ms", "q e"),
                               (790, "after ms", "q e"), (WIDTH, "ratio", "q e"))
    )  # fmt: skip
    drawn = []
    for i in shown:
        name, operators = str(rows[i]["name"]), text_of(" ".join(rows[i]["operators"]))
        before, after = _sum([rows[i]])
        said = text_of(f"{name}: {ms(before)} ms before, {ms(after)} ms after; {operators}")
        operators = operators if len(operators) <= 29 else f"{operators[:28]}…"
        drawn.append(
            f"<title>{escape(said)}</title>"
            + _text(0, 14, label(name, 28))
            + _text(196, 14, escape(operators), "q")
            + _rect(left, 4, before * per_ms, 12, "track")
            + _rect(left, 6, after * per_ms, 8, "now")
            + _times_text(before, after)
        )
    if rest:
        words = f"{len(rest)} shorter layer{'s' if len(rest) > 1 else ''}"
        drawn.append(_text(0, 14, words, "q") + _times_text(*_sum(rest)))
    tail = _text(0, 14, f"all {len(rows)} layers", "b") + _times_text(*_sum(rows), " b")
    return Chart("layers", "time by layer, before and after", _rows(head, drawn, tail))


def _sum(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    return sum(one["ms_before"] for one in rows), sum(one["ms_after"] for one in rows)


def _times_text(before: float, after: float, bold: str = "") -> str:
    ratio = f"{after / before:.2f}x" if before > 0 else ""
    return (
        _text(722, 14, f"{before:.3f}", f"q e{bold}")
        + _text(790, 14, f"{after:.3f}", f"e{bold}")
        + _text(WIDTH, 14, ratio, f"q e{bold}")
    )


def shown_curves(target: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The step curves worth showing, those first whose cut saves most time, each with ``saved`` and ``chosen_ms``."""
    import numpy as np

    found = []
    for one in target["curves"]:
        chosen = float(np.interp(one["kept"], one["widths"], one["ms"]))
        found.append({**one, "chosen_ms": chosen, "saved": one["ms"][-1] - chosen})
    found.sort(key=lambda one: (-one["saved"], one["group"]))
    return found[:_PANELS]


def step_curves(target: Mapping[str, Any], made_by: Mapping[str, str]) -> Chart:
    """Small multiples: the time of the layers that a group is in against its width, with the width that was chosen.

    ``made_by`` holds a name for each group; ``target`` is the manifest's ``latency_target``.
    """
    curves = shown_curves(target)
    wide, gap, tall = 264.0, 24.0, 92.0
    blocks = []
    for start in range(0, len(curves), 3):
        parts = []
        for column, one in enumerate(curves[start : start + 3]):
            panel = _panel(one, made_by.get(one["group"], ""), wide, tall)
            parts.append(f'<g transform="translate({number(column * (wide + gap))} 0)">{panel}</g>')
        blocks.append(Block(round(tall + 80), "".join(parts)))
    return Chart("curves", "step curves: time against width, and the width chosen", tuple(blocks))


def _panel(one: Mapping[str, Any], made_by: str, wide: float, tall: float) -> str:
    size, ticks = one["widths"][-1], axis_ticks(0.0, max(one["ms"]) or 1.0, 4)
    most = max(max(one["ms"]), ticks[-1]) or 1.0
    left, top = 40.0, 46.0
    base = top + tall
    x_of, y_of = scale(0.0, size, left, wide - 6), scale(0.0, most, base, top)
    x, y = x_of(one["kept"]), y_of(one["chosen_ms"])
    said = f"{size:g} → {one['kept']:g} units, {ms(one['ms'][-1])} → {ms(one['chosen_ms'])} ms"
    path = "L".join(f"{number(x_of(w))} {number(y_of(t))}" for w, t in zip(one["widths"], one["ms"], strict=True))
    parts = [
        _text(0, 14, f'<tspan class="b">{label(str(one["group"]), 8)}</tspan> {label(made_by, 28)}'),
        _text(0, 30, said, "q"),
    ]
    for value in ticks:
        parts.append(_line(left, y_of(value), wide - 6, y_of(value), "gl" if value else "al"))
        parts.append(_text(left - 6, y_of(value) + 4, f"{value:.3g}", "q e"))
    parts += [
        _line(x, y, x, base, "tl"),
        f'<path class="wl" d="M{path}"/>',
        f'<circle class="hollow" cx="{number(x_of(size))}" cy="{number(y_of(one["ms"][-1]))}" r="4"/>',
        f'<circle class="now" cx="{number(x)}" cy="{number(y)}" r="4.5"/>',
        _text(left, base + 16, "0", "q m"),
        _text(wide - 6, base + 16, f"{size:g} units", "q e"),
    ]
    return "".join(parts)
