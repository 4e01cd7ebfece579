"""The frame and the parts of a report's page; whatever they are given is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from graphprune.report import charts
from graphprune.report.tables import text_of

__all__ = ["GENERATOR", "listing", "page", "say", "section", "table", "tile"]

GENERATOR = '<meta name="generator" content="graphprune export">'  # tells a page that may be replaced
# a browser would fetch nothing even if it were asked to
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, lead: str, body: str) -> str:
    """A whole document around a body that is escaped already."""
    name = escape(text_of(title))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{GENERATOR}'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{name}: pruned</title><style>{_STYLE}{charts.STYLE}</style></head>\n<body><header>"
        f"<h1>{name}</h1>{say(lead)}</header>\n<main>{body}</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A titled part of the page; ``parts`` are escaped already."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>\n"


def say(text: str, kind: str = "") -> str:
    """A paragraph."""
    named = f' class="{kind}"' if kind else ""
    return f"<p{named}>{escape(text_of(text))}</p>"


def listing(lines: Sequence[str]) -> str:
    """Lines with marks before them."""
    return f"<ul>{''.join(f'<li>{escape(text_of(line))}</li>' for line in lines)}</ul>"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = (), kind: str = "") -> str:
    """A table of plain cells; those in the columns ``numbers`` stand to the right."""

    def cell(tag: str, i: int, text: str) -> str:
        named = ' class="n"' if i in numbers else ""
        return f"<{tag}{named}>{escape(text_of(text))}</{tag}>"

    head = "".join(cell("th", i, text) for i, text in enumerate(heads))
    lines = "".join(f"<tr>{''.join(cell('td', i, text) for i, text in enumerate(row))}</tr>\n" for row in rows)
    named = f' class="{kind}"' if kind else ""
    return f"<table{named}><thead><tr>{head}</tr></thead><tbody>\n{lines}</tbody></table>"


def tile(title: str, value: str, said: str, goal: str = "", kind: str = "") -> str:
    """A figure that is seen first: what it is, its value, a line on it, and whether a target is met (``kind`` good or
    bad).
    """
    last = f'<span class="{kind}">{escape(text_of(goal))}</span>' if goal else ""
    said = f"<span>{escape(text_of(said))}</span>"
    return f'<div><span class="what">{escape(title)}</span><b>{escape(text_of(value))}</b>{said}{last}</div>'


_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--ink:#1f2328;--quiet:#59636e;--line:#d8dee4;--soft:#f5f7f9;--link:#2f6fdb;
--good:#1a7f37;--bad:#b35900}
@media screen and (prefers-color-scheme:dark){:root{--bg:#0d1117;--ink:#e6edf3;--quiet:#9da7b3;--line:#2b323b;
--soft:#151b23;--link:#5b9bff;--good:#3fb950;--bad:#f0883e}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif}
header,main{max-width:888px;margin:0 auto;padding:0 24px}
header{padding-top:36px}main{padding-bottom:56px}
h1{font-size:26px;line-height:1.25;margin:0;overflow-wrap:anywhere}
header p{margin:4px 0 0;color:var(--quiet)}
h2{font-size:18px;margin:40px 0 8px;padding-top:14px;border-top:1px solid var(--line)}
p{margin:8px 0;overflow-wrap:anywhere}.lead{font-size:16px}
.small,dl{font-size:13px}p.small{color:var(--quiet)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:12px;margin:24px 0 16px}
.tiles div{border:1px solid var(--line);border-radius:6px;padding:10px 12px;background:var(--soft);font-size:12px}
.tiles span,.tiles b{display:block}.tiles b{font-size:23px;line-height:1.3;font-variant-numeric:tabular-nums}
.tiles .what{color:var(--quiet)}.good{color:var(--good)}.bad{color:var(--bad)}
table{border-collapse:collapse;margin:12px 0;font-variant-numeric:tabular-nums}
th,td{padding:4px 24px 4px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--quiet);white-space:nowrap}
th:last-child,td:last-child{padding-right:0}
th.n,td.n{text-align:right;white-space:nowrap}td{overflow-wrap:anywhere}
.shown img{max-width:260px;max-height:40px;display:block}
.wide{width:100%}.wide th,.wide td{padding-right:8px}
.hashes td{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:12px}
figure{margin:16px 0}.chart{display:block;max-width:100%;height:auto}
ul{margin:8px 0;padding-left:20px}li{overflow-wrap:anywhere}
.warn{border-left:3px solid var(--bad);padding:2px 0 2px 12px;margin:16px 0;font-size:13px}
pre{background:var(--soft);border:1px solid var(--line);border-radius:6px;padding:12px 14px;margin:8px 0;
font:12px/1.5 ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre-wrap;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 20px;margin:8px 0}
dt{color:var(--quiet)}dd{margin:0;overflow-wrap:anywhere}
a{color:var(--link)}
@media print{
@page{margin:14mm}
:root{color-scheme:light}body{font-size:10pt}header,main{max-width:none;padding:0}header{padding-top:0}
h2,p:has(+figure),p:has(+ul),p:has(+pre){break-after:avoid}h2{margin-top:20px}p,.wide{break-inside:avoid}
svg,tr,pre,.tiles,.warn{break-inside:avoid}
.tiles{grid-template-columns:repeat(5,1fr);gap:8px}.tiles div{padding:6px 7px;font-size:7.5pt}.tiles b{font-size:15pt}
.wide{font-size:8pt}.hashes td{font-size:7.5pt}
}
"""
