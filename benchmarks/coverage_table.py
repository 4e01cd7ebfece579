"""The coverage page: from the rows of a sweep (see ``benchmarks.coverage``) to ``docs/coverage.md``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.common import markdown_table

__all__ = ["document"]

Row = dict[str, Any]
ENOUGH = 0.95
#: Suites of networks as they are, and of what tools made of some of them.
NETWORKS = ("small", "torchvision", "timm", "transformers", "diffusers", "ONNX files")
HELD_OUT = "held out"
VARIANTS = {
    "qdq": "quantised to int8 (static, QDQ, per channel)",
    "dynamic": "quantised dynamically (uint8 weights with zero points)",
    "float16": "converted to float16",
    "batch": "with a dynamic batch",
}
HELD_OUT_TEXT = (
    "One network of each family of timm that the lists above lack, chosen by family and size before graphprune saw any "
    "of them: what a network that nobody thought of meets. They are not counted above."
)
COLUMNS = ("network", "groups", "params", "governed", "reached", "error", "seconds", "refused", "")


def document(rows: Sequence[Row]) -> str:
    """The whole page."""
    networks = [row for row in rows if row["suite"] in NETWORKS]
    variants = [row for row in rows if row["suite"] in VARIANTS]
    held = [row for row in rows if row["suite"] == HELD_OUT]
    parts = [
        "# Coverage",
        "Real architectures and files, each cut to half its parameters (criterion magnitude, allocation global), or to "
        "the lowest round share that exact groups reach, and held to the masked equivalence. "
        "`python -m benchmarks.coverage` makes the rows that are missing (all in about an hour) and this page; "
        "the figures in full, with machine and versions of every row, are in [coverage.jsonl](coverage.jsonl). "
        "Untrained networks have random weights, norms and biases (an all-zero bias hides errors); those of packages "
        "(OCR, Silero) are as they come.",
        _summary(networks, variants, held),
        "*groups*: exact + stat (those that a statistic is computed over; never cut here). *governed*: share of the "
        "parameters in whose tensors an exact group stands. *reached*: parameters left; where 0.5x is out of reach, "
        "a round share just above the lowest. *error*: largest difference of the cut network to its masked original, "
        "over the output's largest magnitude. *seconds*: load / observe / couple / score and allocate / shrink / "
        "verify, on a shared 2-core machine. *refused*: nodes that nothing is cut through.",
    ]
    for suite in NETWORKS:
        if chosen := [row for row in networks if row["suite"] == suite]:
            parts += [f"## {suite[0].upper()}{suite[1:]}" if suite == "small" else f"## {suite}", _table(chosen)]
    parts += ["## Variants", _variants_text()]
    for suite, title in VARIANTS.items():
        if chosen := [row for row in variants if row["suite"] == suite]:
            parts += [f"### {title[0].upper()}{title[1:]}", _table(chosen)]
    if held:
        parts += ["## Held out", HELD_OUT_TEXT, _table(held)]
    parts += _operators(next((row for row in rows if "tests" in row), None))
    parts += ["## Below 95 %, row by row", _below([row for row in rows if row.get("governed_params", 1) < ENOUGH])]
    if missing := [row for row in (*networks, *variants, *held) if row["status"] != "equal"]:
        table = markdown_table(
            ("network", "what", "why"), [(row["network"], row["status"], row["reason"]) for row in missing]
        )
        parts += ["## Not cut", table]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _summary(networks: Sequence[Row], variants: Sequence[Row], held: Sequence[Row]) -> str:
    table = []
    sets = (("networks", networks), ("variants", variants), ("all", [*networks, *variants]), (HELD_OUT, held))
    for title, rows in sets:
        read = [row for row in rows if "params" in row]
        governed = [row for row in read if row["governed_params"] >= ENOUGH]
        half = [row for row in rows if row["status"] == "equal" and row["lowest"] is None]
        table.append(
            (
                title,
                str(len(rows)),
                str(len(read)),
                str(sum(row["status"] == "equal" for row in rows)),
                str(len(half)),
                f"{len(governed)} ({len(governed) / max(1, len(rows)):.0%})",
                str(sum(row["status"] == "not equal" for row in rows)),
                str(sum(row["status"] not in ("equal", "not equal") for row in rows)),
            )
        )
    columns = ("", "rows", "exported, read", "cut and equal", "to 0.5x", "governed ≥ 95 %", "not equal", "not cut")
    return markdown_table(columns, table)


def _table(rows: Sequence[Row]) -> str:
    return markdown_table(COLUMNS, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    if "params" not in row:
        return [row["network"], *("" for _ in COLUMNS[2:]), f"{row['status']}: {_brief(row['reason'])}"]
    equal = row["status"] == "equal"
    remark = "" if equal else f"{row['status']}: {_brief(row['reason'])}"
    if equal and row["lowest"] is not None:
        remark = f"lowest {row['lowest']:.2f}x"
    return [
        row["network"],
        f"{row['exact']}+{row['stat']}",
        f"{row['params'] / 1e6:.2f} M",
        f"{row['governed_params']:.1%}",
        f"{row['reached']:.2f}x" if "reached" in row else "",
        _error(row),
        _seconds(row["seconds"]),
        str(row["refused"]),
        remark,
    ]


def _error(row: Row) -> str:
    if "max_rel_float64" in row:
        runtime = f", {row['max_rel_float32']:.0e} as run" if "max_rel_float32" in row else ""
        return f"{row['max_rel_float64']:.0e}{runtime}"
    return f"{row['max_rel']:.0e}" if "max_rel" in row else ""


def _seconds(seconds: dict[str, float]) -> str:
    steps = [seconds["load"], seconds["observe"], seconds.get("couple", 0.0)]
    if "verify" in seconds:
        steps += [seconds["score"] + seconds["allocate"], seconds["shrink"], seconds["verify"]]
    return " / ".join(f"{one:.2f}" if one < 1 else f"{one:.1f}" for one in steps)


def _brief(reason: str, length: int = 120) -> str:
    text = reason.replace("|", "\\|")
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _variants_text() -> str:
    return (
        "What ONNX Runtime's own tools make of some of these networks (PyTorch's as its exporter writes them by "
        "default). *error* of what is quantised or in float16: in float64 on the reference implementation, where "
        "1e-4 is accepted as everywhere; then as ONNX Runtime runs it, which rounds to the other side of a tie now "
        "and then when sums are taken in another order (a step of int8 is 4e-3 of the whole range, and counts for more "
        "where the outputs use a part of it)."
    )


def _operators(row: Row | None) -> list[str]:
    if row is None:
        return []
    found = Counter((one["status"], _brief(one["reason"])) for one in row["tests"].values() if one["status"] != "equal")
    equal = sum(one["status"] == "equal" for one in row["tests"].values())
    lines = [(status, reason, str(count)) for (status, reason), count in found.most_common()]
    return [
        "## Operator tests of the onnx package",
        f"{len(row['tests'])} models of one operator or a few that hold a weight (`simple`, `pytorch-converted`, "
        f"`pytorch-operator`; its `real` tests are the `light_*` networks above, its `node` tests hold no weights). "
        f"From inputs to outputs there is hardly anything inside to cut: {equal} are cut and equal; of the others:",
        markdown_table(("what", "why", "models"), lines),
    ]


def _below(rows: Sequence[Row]) -> str:
    if not rows:
        return "None."
    table = [
        (
            row["network"],
            f"{row['governed_params']:.1%}",
            f"{row['governed_params_with_stat'] - row['governed_params']:.1%}",
            "; ".join(f"{one['share']:.1%} {one['why']}" for one in row["ungoverned"][:2]).replace("|", "\\|"),
        )
        for row in rows
    ]
    text = (
        "What exact groups do not govern stands on *stat* groups (the residual stream of a transformer under its "
        "norms; `--stat` cuts them, inexactly) or on axes that reach an input or an output, or that an operator keeps "
        "whole. The small configurations of language models have half of their parameters in embeddings."
    )
    return f"{text}\n\n{markdown_table(('network', 'exact', 'stat only', 'the rest stands on'), table)}"
