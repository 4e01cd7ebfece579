"""Pictures of the groups over the network: plain SVG, or a page that holds it with a table; nothing is fetched."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from graphprune.coupling.graph import flow
from graphprune.errors import UsageError
from graphprune.report.layout import Lanes, lanes
from graphprune.report.scopes import block_of, path_of, shown
from graphprune.report.tables import count, text_of

if TYPE_CHECKING:
    from graphprune.coupling.graph import Stop
    from graphprune.pipeline import Analysis, Network

__all__ = ["FORMATS", "check_format", "html", "svg", "write_picture"]

FORMATS = (".svg", ".html", ".graphml")

ROW, LANE, LEFT, TOP = 20, 16, 20, 64  # pixels
CHAR = 6.65  # width of a character of the 11 px monospaced font, at the most
_NAME, _OP, _MADE, _KEY = 40, 24, 40, 48  # characters of the columns
_MOST = 24  # lanes from which they stand closer


def check_format(path: Path) -> None:
    """Refuse a file name of an unknown ending before any work is done."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"'{path}': a picture is written as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, by the ending of the name"
        )


def write_picture(network: Network, analysis: Analysis, path: Path) -> None:
    """Write the graph of groups (.graphml) or the groups over the network (.svg, .html).

    Raises:
        UsageError: another ending.
    """
    check_format(path)
    if path.suffix.lower() == ".graphml":
        import networkx

        networkx.write_graphml(network.group_graph(), path)
        return
    draw = svg if path.suffix.lower() == ".svg" else html
    path.write_text(draw(network, analysis), encoding="utf-8", newline="\n")


@dataclass(frozen=True)
class _Row:
    stop: Stop
    name: str
    full: str
    block: tuple[str, ...]


def svg(network: Network, analysis: Analysis) -> str:
    """One row per operator that weighs, multiplies or joins, from the top down; lines are what flows between them.

    A line, and the mark it comes to, has the colour of the group that the value bears; grey is never cut.
    """
    return _Drawing(network, analysis, key=True).text(alone=True)


def html(network: Network, analysis: Analysis) -> str:
    """The same with a table of groups; pointing at a group anywhere shows it everywhere."""
    drawing = _Drawing(network, analysis, key=False)
    rows = []
    for one in analysis.groups:
        params, macs = analysis.shares[one.id]
        cells = (one.id, one.kind, str(one.size), "exact" if one.exact else "stat")
        shares = (_share(params, analysis.params), _share(macs, analysis.macs))
        rows.append(
            f'<tr class="g" data-g="{one.id}"><td><i style="background:{drawing.colour[one.id]}"></i>{cells[0]}</td>'
            f"<td>{escape(cells[1])}</td><td class=n>{cells[2]}</td><td>{cells[3]}</td>"
            f"<td class=n>{shares[0]}</td><td class=n>{shares[1]}</td></tr>"
        )
    notes = "".join(f"<li>{escape(text_of(one))}</li>" for one in dict.fromkeys(analysis.refusals))
    refused = f"<h2>Not cut through</h2><ul>{notes}</ul>" if notes else ""
    return _PAGE.format(
        title=escape(text_of(network.name)),
        summary=escape(_summary(analysis)),
        rows="\n".join(rows),
        refused=refused,
        picture=drawing.text(alone=False),
        style=_STYLE + _PAGE_STYLE,
        script=_SCRIPT,
    )


def _summary(analysis: Analysis) -> str:
    exact = sum(one.exact for one in analysis.groups)
    return (
        f"{count(analysis.params)} parameters, {analysis.governed_params:.1%} governed by {exact} exact groups "
        f"({len(analysis.groups) - exact} stat)"
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _cut(text: str, most: int) -> str:
    """The text with its middle left out where it is too long: both ends tell names apart."""
    if len(text) <= most:
        return text
    tail = (most - 1) * 3 // 5
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"


def _colours(ids: Iterable[str]) -> dict[str, str]:
    """A colour per group, neighbours far apart, readable on white and on black."""
    made = {}
    for i, name in enumerate(ids):
        hue = (0.58 + i * 0.61803398875) % 1.0
        red, green, blue = colorsys.hls_to_rgb(hue, (0.50, 0.44, 0.57)[i % 3], (0.62, 0.78, 0.55)[i % 3])
        made[name] = f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
    return made


class _Drawing:
    def __init__(self, network: Network, analysis: Analysis, *, key: bool) -> None:
        self.analysis, self.key = analysis, key
        self.title = text_of(network.name)
        self.groups = {one.id: one for one in analysis.groups}
        self.colour = _colours(self.groups)
        self.rows = _rows(flow(network.grouping), analysis.parameter_names)
        self.lanes: Lanes = lanes([[source for source, _ in row.stop.sources] for row in self.rows])
        self.step = LANE if self.lanes.width <= _MOST else LANE * _MOST / self.lanes.width
        self.y: list[int] = []
        self.heads: list[tuple[int, str]] = []  # a line above the first row of each block
        self.top = TOP if key else ROW
        at, block = self.top, tuple[str, ...]()
        for row in self.rows:
            if row.block and row.block != block:
                self.heads.append((at, shown(row.block)))
                at += ROW
            block = row.block or block
            self.y.append(at)
            at += ROW
        self.text_x = LEFT + self.lanes.width * self.step + 8
        names = max((len(text_of(row.name)) for row in self.rows), default=0)
        self.op_x = self.text_x + (min(max(names, 12), _NAME) + 2) * CHAR
        self.made_x = self.op_x + (_OP + 2) * CHAR
        self.key_x = self.made_x + (_MADE + 2) * CHAR
        self.width = round(self.key_x + (_KEY * CHAR if key else 0) + 8)
        self.height = max(at, self.top + ROW * (len(self.groups) + 3) if key else 0) + ROW // 2

    def text(self, *, alone: bool) -> str:
        """The document; ``alone`` with its own style, else as a part of a page."""
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" class="picture">']
        lines.append(f"<title>{escape(self.title)}: groups over the network</title>")
        if alone:
            lines.append(f"<style>{_STYLE}</style>")
        lines.append(f'<rect class="page" width="{self.width}" height="{self.height}"/>')
        if alone:
            lines.append(f'<text class="title" x="{LEFT - 8}" y="24">{escape(_cut(self.title, 90))}</text>')
            lines.append(f'<text class="quiet" x="{LEFT - 8}" y="42">{escape(_summary(self.analysis))}</text>')
        for y, name in self.heads:
            width = self.key_x - 16
            lines.append(f'<rect class="head" x="0" y="{y - ROW // 2}" width="{_n(width)}" height="{ROW - 3}"/>')
            lines.append(f'<text class="block" x="{_n(self.text_x)}" y="{y + 3}">{escape(_cut(name, 100))}</text>')
        lines += self._lines()
        for i in range(len(self.rows)):
            lines += self._row(i)
        if self.key:
            lines += self._key()
        lines.append("</svg>\n")
        return "\n".join(lines)

    def _x(self, lane: int) -> float:
        return LEFT + lane * self.step

    def _main(self, groups: Sequence[str]) -> str:
        """The group that a value is coloured by: the one with most units."""
        return max(groups, key=lambda name: (self.groups[name].size, name)) if groups else ""

    def _mark(self, groups: Sequence[str]) -> tuple[str, str]:
        """Attributes that tie an element to its groups, and its colour class."""
        names = f' data-g="{" ".join(groups)}"' if groups else ""
        return names, self.colour[self._main(groups)] if groups else "#8b949e"

    def _lines(self) -> list[str]:
        found = []
        for edge in sorted(self.lanes.edges, key=lambda one: (one.source - one.target, one.source, one.target)):
            groups = dict(self.rows[edge.target].stop.sources)[edge.source]
            x, y = self._x(edge.along), self.y[edge.source]
            to_x, to_y = self._x(self.lanes.lane[edge.target]), self.y[edge.target]
            if x == to_x:
                path = f"M{_n(x)} {y}V{to_y}"
            else:
                turn = to_y - ROW
                path = f"M{_n(x)} {y}V{turn}C{_n(x)} {turn + 12} {_n(to_x)} {to_y - 12} {_n(to_x)} {to_y}"
            names, colour = self._mark(groups)
            stat = any(not self.groups[name].exact for name in groups)
            kind = "e" + (" stat" if stat else "") + ("" if groups else " grey")
            said = ", ".join(self._said(name) for name in groups) or "never cut"
            found.append(
                f'<path class="{kind}"{names} stroke="{colour}" d="{path}"><title>{escape(said)}</title></path>'
            )
        return found

    def _said(self, name: str) -> str:
        one = self.groups[name]
        return f"{name}: {one.size} {one.kind}" + ("" if one.exact else ", stat")

    def _row(self, i: int) -> list[str]:
        row = self.rows[i]
        stop, x, y = row.stop, self._x(self.lanes.lane[i]), self.y[i]
        names, colour = self._mark(stop.groups)
        shape = "×".join(map(str, stop.shape))
        said = [f"{stop.op} {row.full}", shape, *map(self._said, stop.groups)]
        if stop.refusal is not None:
            said.append(f"not cut: {stop.refusal}")
        lines = [f'<g class="r"{names}><title>{escape(text_of(" | ".join(filter(None, said))))}</title>']
        lines.append(f'<rect class="hit" x="{_n(x - 8)}" y="{y - 9}" width="{_n(self.key_x - 16 - x)}" height="18"/>')
        if stop.role == "weights":
            fill = colour if stop.groups else "none"
            lines.append(f'<circle class="m" cx="{_n(x)}" cy="{y}" r="5" fill="{fill}" stroke="{colour}"/>')
        elif stop.role in ("join", "product"):
            d = f"M{_n(x)} {y - 5}l5 5l-5 5l-5 -5z"
            lines.append(f'<path class="m open" d="{d}" stroke="{colour}"/>')
        else:
            lines.append(f'<rect class="m open" x="{_n(x - 4)}" y="{y - 4}" width="8" height="8" stroke="{colour}"/>')
        quiet = "" if stop.role == "weights" else " quiet"
        lines.append(f'<text class="name{quiet}" x="{_n(self.text_x)}" y="{y + 4}">{_show(row.name, _NAME)}</text>')
        lines.append(f'<text class="quiet" x="{_n(self.op_x)}" y="{y + 4}">{_show(f"{stop.op} {shape}", _OP)}</text>')
        if stop.role in ("weights", "barrier"):
            lines += self._chips(stop, y)
        lines.append("</g>")
        return lines

    def _chips(self, stop: Stop, y: int) -> list[str]:
        x, lines = self.made_x, []
        if not stop.groups:
            said = "not cut" if stop.refusal is None else f"not cut: {stop.refusal.reason}"
            said = said if len(said) <= _MADE else f"{said[: _MADE - 1]}…"
            return [f'<text class="grey" x="{_n(x)}" y="{y + 4}">{_show(said, _MADE)}</text>']
        room = _MADE
        for k, name in enumerate(stop.groups):
            one = self.groups[name]
            text = f"{name} {one.size} {one.kind}" if len(stop.groups) < 2 else name
            if len(text) + 3 > room:
                lines.append(f'<text class="grey" x="{_n(x)}" y="{y + 4}">+{len(stop.groups) - k}</text>')
                break
            lines.append(
                f'<rect x="{_n(x)}" y="{y - 4}" width="9" height="9" rx="2" fill="{self.colour[name]}"/>'
                f'<text x="{_n(x + 13)}" y="{y + 4}">{_show(text, room - 2)}</text>'
            )
            x += (len(text) + 3) * CHAR
            room -= len(text) + 3
        return lines

    def _key(self) -> list[str]:
        y = TOP
        lines = self._key_line("", "block", TOP - 18, "group", "units", "kind", "params")
        for name, one in self.groups.items():
            kind = one.kind if one.exact else f"{one.kind} *"
            share = _share(self.analysis.shares[name][0], self.analysis.params)
            lines.append(f'<g class="r" data-g="{name}">')
            lines += self._key_line(self.colour[name], "", y, name, str(one.size), kind, share)
            lines.append("</g>")
            y += ROW
        said = ["grey: never cut (point at it for the reason)"]
        if any(not one.exact for one in self.groups.values()):
            said.append("* stat: inexact, opt-in; dashed lines")
        for text in said:
            lines.append(f'<text class="grey" x="{_n(self.key_x)}" y="{y + 4}">{escape(text)}</text>')
            y += ROW
        return lines

    def _key_line(self, colour: str, kind: str, y: int, *cells: str) -> list[str]:
        mark = f'<rect x="{_n(self.key_x)}" y="{y - 4}" width="9" height="9" rx="2" fill="{colour}"/>' if colour else ""
        lines = [mark] if mark else []
        ends = ((14, "start"), (14 + 13 * CHAR, "end"), (14 + 14 * CHAR, "start"), (14 + 44 * CHAR, "end"))
        for cell, (x, anchor) in zip(cells, ends, strict=True):
            at = f'x="{_n(self.key_x + x)}" y="{y + 4}"' + (' text-anchor="end"' if anchor == "end" else "")
            lines.append(f"<text {f'class={chr(34)}{kind}{chr(34)} ' if kind else ''}{at}>{_show(cell, 24)}</text>")
        return lines


def _n(number: float) -> str:
    """At most one decimal, as short as it goes."""
    return f"{number:.1f}".removesuffix(".0")


def _show(text: str, most: int) -> str:
    return escape(_cut(text_of(text), most))


def _rows(stops: Sequence[Stop], parameter_names: Mapping[str, str]) -> list[_Row]:
    rows: list[_Row] = []
    block: tuple[str, ...] = ()
    for stop in stops:
        full = parameter_names.get(stop.tensor, stop.tensor)
        if len(path_of(full)) < 2 < len(path_of(stop.name)):  # an exporter that names nodes by their module alone
            full = stop.name
        path = path_of(full or stop.name)
        if stop.role == "weights":
            block = block_of(path)
        elif stop.role in ("input", "output"):
            block = ()
        own = path[len(block) :] if path[: len(block)] == block and len(path) > len(block) else path
        name = shown(own) if stop.role in ("weights", "barrier") else "" if stop.role != "input" else stop.name
        rows.append(_Row(stop, stop.name if stop.role in ("input", "output") else name, full or stop.name, block))
    return rows


_STYLE = """
.picture text{font:11px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#1f2328}
.picture .title{font-size:15px;font-weight:600}
.picture .block{font-weight:600;fill:#57606a}
.picture .quiet{fill:#57606a}
.picture .grey{fill:#8b949e}
.picture .page{fill:#fff}
.picture .head{fill:#eef1f4}
.picture .hit{fill:transparent}
.picture .open{fill:#fff;stroke-width:2}
.picture .m{stroke-width:2}
.picture .e{fill:none;stroke-width:2.5}
.picture .e.grey{stroke-width:1.5}
.picture .stat{stroke-dasharray:5 2}
@media (prefers-color-scheme:dark){
.picture text{fill:#e6edf3}
.picture .block,.picture .quiet{fill:#9da7b3}
.picture .grey{fill:#7d8590}
.picture .page,.picture .open{fill:#0d1117}
.picture .head{fill:#1c2128}
}
"""

_PAGE_STYLE = """
:root{color-scheme:light dark}
body{margin:0;background:#fff;color:#1f2328;font:14px system-ui,sans-serif}
header{padding:12px 20px}h1{font-size:18px;margin:0 0 4px}h2{font-size:14px;margin:16px 0 4px}
main{display:flex;gap:16px;align-items:flex-start;flex-wrap:wrap}
aside{position:sticky;top:0;max-height:100vh;overflow:auto;padding:0 12px 12px 20px;box-sizing:border-box}
figure{margin:0;overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:12px}td,th{padding:1px 8px;text-align:left;white-space:nowrap}
@media(max-width:1100px){aside{position:static;max-height:none}}
.n{text-align:right;font-variant-numeric:tabular-nums}
td i{display:inline-block;width:9px;height:9px;border-radius:2px;margin-right:6px}
ul{padding-left:18px;margin:0;max-width:34em;font-size:12px}
.dim [data-g]:not(.on),.dim .grey,.dim .m:not(.on .m){opacity:.18}
tr.on{background:#eef1f4}
@media (prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}tr.on{background:#1c2128}}
"""

_SCRIPT = """
const all=[...document.querySelectorAll('[data-g]')];let kept=null;
function show(names){document.body.classList.toggle('dim',!!names);
for(const one of all)one.classList.toggle('on',!!names&&one.dataset.g.split(' ').some(g=>names.includes(g)))}
for(const one of all){const names=one.dataset.g.split(' ');
one.addEventListener('mouseenter',()=>show(names));
one.addEventListener('mouseleave',()=>show(kept));
one.addEventListener('click',()=>{kept=kept&&kept.join()===names.join()?null:names;show(kept)})}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}: groups</title><style>{style}</style></head>
<body><header><h1>{title}</h1>{summary}. Point at a group to see where it is; click to keep it.</header>
<main><figure>{picture}</figure>
<aside><table><thead><tr><th>group</th><th>kind</th><th class=n>units</th><th></th><th class=n>params</th>\
<th class=n>MACs</th></tr></thead><tbody>
{rows}
</tbody></table>{refused}</aside></main>
<script>{script}</script></body></html>
"""
