"""``python -m graphprune.report.operators``: every operator that is known, as the page ``docs/operators.md``."""

from __future__ import annotations

import re
from collections.abc import Iterator

from graphprune.coupling.registry import Rule, all_rules

__all__ = ["operators_page"]

_DOMAINS = {"": "The default domain", "com.microsoft": "`com.microsoft`"}
_CLAUSES = ("whole", "stat", "zero")
_HEAD = """\
# Operators

Every operator of ONNX (up to opset {opset}) and of ONNX Runtime's domain `com.microsoft`: {ruled} have a rule,
{barred} are barriers. This page is made from the registry by `python -m graphprune.report.operators`; a test keeps it
current.

A rule is a line of the notation in `graphprune/coupling/notation.py`; where the line depends on the node's attributes
and shapes, a sentence says how it is made. Equal letters are equal indices: a letter in operands and results passes,
one in operands only is contracted. Letters that are *whole* are never cut; over a *stat* letter a statistic is
computed, so it is cut only where asked for; a *zero* letter is silenced in the operand itself. Every rule is held
against the operator's real execution (`tests/laws`). A barrier leaves everything that it touches as it is, and
`graphprune explain` gives its reason.

*Since* lists the opsets in which the operator's definition changed.
"""


def operators_page() -> str:
    """The page, in Markdown. Since-versions are those that the installed ``onnx`` knows."""
    import onnx

    since: dict[tuple[str, str], set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        since.setdefault((schema.domain, schema.name), set()).add(schema.since_version)
    rules = all_rules()
    barred = sum(one.reason is not None for one in rules.values())
    page = [_HEAD.format(opset=onnx.defs.onnx_opset_version(), ruled=len(rules) - barred, barred=barred)]
    for domain, title in _DOMAINS.items():
        chosen = [rules[key] for key in sorted(rules) if key[0] == domain]
        for what, rows in (
            ("rules", list(_ruled([one for one in chosen if one.reason is None], since))),
            ("barriers", list(_barred([one for one in chosen if one.reason is not None], since))),
        ):
            page += [f"## {title}: {len(rows) - 2} {what}\n", "\n".join(rows), ""]
    return "\n".join(page)


def _ruled(rules: list[Rule], since: dict[tuple[str, str], set[int]]) -> Iterator[str]:
    yield "| operator | since | line | whole | stat | zero |"
    yield "|---|---|---|---|---|---|"
    for one in rules:
        text = " ".join((one.line or one.source).split())
        marks = [""] * len(_CLAUSES)
        if one.line is None:
            text = re.sub(r"([*_<])", r"\\\1", text)
        else:
            marks = [" ".join(re.findall(rf"\| {kind}: ([\w ]*\w)", text)) for kind in _CLAUSES]
            text = f"`{' | '.join(part for part in text.split(' | ') if not part.startswith(_CLAUSES)).strip()}`"
        yield f"| {one.op} | {_since(one, since)} | {_cell(text)} | {' | '.join(marks)} |"


def _barred(rules: list[Rule], since: dict[tuple[str, str], set[int]]) -> Iterator[str]:
    yield "| operator | since | reason |"
    yield "|---|---|---|"
    for one in rules:
        yield f"| {one.op} | {_since(one, since)} | {_cell(one.reason or '')} |"


def _since(one: Rule, since: dict[tuple[str, str], set[int]]) -> str:
    return ", ".join(map(str, sorted(since.get((one.domain, one.op), {1}))))


def _cell(text: str) -> str:
    return re.sub(r"\s*\|\s*", r" \\| ", text)


if __name__ == "__main__":
    print(operators_page(), end="")
