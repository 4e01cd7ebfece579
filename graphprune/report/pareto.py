"""A family of latency targets: the Pareto table as data, and the page that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import quote

from graphprune.report.card import timed_figure
from graphprune.report.charts import CHAR, WIDTH, Block, Chart, axis_ticks, label, number, scale
from graphprune.report.page import listing, page, say, section
from graphprune.report.tables import count, text_of

__all__ = ["pareto_chart", "pareto_document", "pareto_html"]


def pareto_document(members: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The family as data, the slowest first; ``members`` maps each folder to its manifest.

    A member is ``dominated`` where another is at least as fast and keeps at least as much, and more of one.
    """
    rows = []
    for folder, manifest in members.items():
        target, found = manifest["latency_target"], _timed(manifest)
        rows.append(
            {
                "folder": folder,
                "target": target["asked"],
                "share": target["share"],
                "ratio": found["ratio"],
                "ratio_low": found["ratio_low"],
                "ratio_high": found["ratio_high"],
                "ms": found["b_ms"],
                "importance_kept": target["kept"],
                "quality": _quality(manifest, "artefact"),
                "params": manifest["reached"]["params"],
                "macs": manifest["reached"]["macs"],
                "verification": manifest["verification"],
                "notes": list(manifest["notes"]),
            }
        )
    rated = all(one["quality"] is not None for one in rows)
    points = [(one["ratio"], one["quality"]["value"] if rated else one["importance_kept"]) for one in rows]
    for one, (ratio, good) in zip(rows, points, strict=True):
        one["dominated"] = any(
            other <= ratio and better >= good and (other, better) != (ratio, good) for other, better in points
        )
    rows.sort(key=lambda one: (-one["ratio"], one["folder"]))
    first = next(iter(members.values()))
    latency = first["latency"]
    return {
        "format": 1,
        "created": max(str(manifest["created"]) for manifest in members.values()),
        "graphprune": first["versions"]["graphprune"],
        "source": dict(first["source"]),
        "original": {
            **first["original"],
            "ms": _timed(first)["a_ms"],
            "quality": _quality(first, "original"),
        },
        "statistic": _timed(first)["statistic"],
        "confidence": None if latency is None else latency["confidence"],
        "fingerprint": dict((first["latency_target"] if latency is None else latency)["fingerprint"]),
        "members": rows,
    }


def _timed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The measured figure, or what a latency table predicts, as ``statistic`` says; it has no interval then."""
    figure = timed_figure(manifest)
    if figure is not None:
        return figure
    found = manifest["latency_target"]["predicted"]
    ratio, ms = found["ratio"], found["original_ms"]
    return {
        "statistic": "predicted",
        "a_ms": ms,
        "b_ms": ratio * ms,
        **dict.fromkeys(("ratio", "ratio_low", "ratio_high"), ratio),
    }


def _quality(manifest: Mapping[str, Any], which: str) -> dict[str, Any] | None:
    """The figure that says how good a network is: the user's metric, else its agreement with the original."""
    found = manifest.get("accuracy")
    if found is None:
        return None
    if found["metric"]:
        name, figure = next(iter(found["metric"][which].items()))
        return {"name": name, **figure}
    if which == "original":
        return {"name": "", "value": 1.0, "low": None, "high": None}
    near = found["fidelity"].get(which, {})
    for key, words in (("top1", "top-1 agreement"), ("cosine", "cosine of outputs")):
        if near.get(key) is not None:
            return {"name": words, **near[key]}
    return None


def _figures(document: Mapping[str, Any]) -> tuple[str, str, float, list[tuple[float, float, float]]]:
    """What stands on the second axis: its name, how a tick is written, the original's, each member's with interval."""
    rows, whole = document["members"], document["original"].get("quality")
    if whole is None or any(one.get("quality") is None for one in rows):
        return "importance kept", "%", 1.0, [(one["importance_kept"],) * 3 for one in rows]
    named = next((one["quality"]["name"] for one in rows), "")
    found = []
    for one in rows:
        of = one["quality"]
        found.append((of["value"], *((of["value"],) * 2 if of["low"] is None else (of["low"], of["high"]))))
    return named, "", whole["value"], found


def pareto_html(document: Mapping[str, Any]) -> str:
    """The page of a :func:`pareto_document`; the same document gives the same bytes."""
    of, rows, whole = document["fingerprint"], document["members"], document["original"]
    figure, _, _, figures = _figures(document)
    threads = f"{of['threads']} thread{'' if of['threads'] == 1 else 's'}"
    where = f"{of['backend']} {of['version']}, {of['device']}, {threads}"
    predicted = document["statistic"] == "predicted"
    if predicted:
        how = f"{len(rows)} artefacts of one network; times are those that a latency table of {where} predicts."
    else:
        how = (
            f"{len(rows)} artefacts of one network, each cut to a share of its measured time ({document['statistic']}) "
            f"and each measured in turn with the original on {where}; lines are {document['confidence']:.0%} intervals."
        )
    how += f" Further left is faster, further up is better ({figure}). A point leads to the report of its artefact."
    beaten = sum(one["dominated"] for one in rows)
    if beaten:
        how += f" Hollow points ({beaten}) are dominated: another artefact is as fast and keeps as much, or better."
    timed = ("predicted", "", "ms") if predicted else ("measured", "interval", f"{document['statistic']} ms")
    heads = ("target", *timed, figure, "parameters", "MACs", "verified")
    head = "".join(f'<th class="n">{text}</th>' if i else f"<th>{text}</th>" for i, text in enumerate(heads))
    lines = "".join(_row(one, whole, kept) for one, kept in zip(rows, figures, strict=True))
    table = f'<table class="small wide"><thead><tr>{head}</tr></thead><tbody>\n{lines}</tbody></table>'
    said = say(
        f"The original: {whole['ms']:.3f} ms, {count(whole['params'])} parameters, {count(whole['macs'])} MACs.",
        "small",
    )
    data = '<p class="small">As data: <a href="pareto.json">pareto.json</a>.</p>'
    when = str(document["created"]).replace("T", " ").replace("+00:00", " UTC")
    lead = f"A family of latency targets, pruned by graphprune {document['graphprune']}, {when}"
    notes = [f"{one['target']}: {note}" for one in rows for note in dict.fromkeys(one["notes"])]
    said += listing(notes) if notes else ""
    body = section(f"Time against {figure}", say(how), f"<figure>{pareto_chart(document).inline()}</figure>")
    return page(str(document["source"]["name"]), lead, body + section("Artefacts", table, said, data))


def _link(folder: str) -> str:
    return escape(f"{quote(folder)}/report.html")


def _row(one: Mapping[str, Any], whole: Mapping[str, Any], kept: tuple[float, float, float]) -> str:
    verdict = one["verification"]
    cells = (
        f"{one['ratio']:.3f}x",
        f"{one['ratio_low']:.3f} to {one['ratio_high']:.3f}" if one["ratio_low"] < one["ratio_high"] else "",
        f"{one['ms']:.3f}",
        f"{kept[0]:.1%}" if kept[0] == one["importance_kept"] else f"{kept[0]:.4f}",
        *(f"{one[key] / whole[key] if whole[key] else 1.0:.3f}x" for key in ("params", "macs")),
        "not asked for" if verdict is None else f"{verdict['max_rel']:.1e}",
    )
    name = f'<td><a href="{_link(one["folder"])}">{escape(text_of(one["target"]))}</a></td>'
    numbers = "".join(f'<td class="n">{cell}</td>' for cell in cells)
    return f"<tr>{name}{numbers}</tr>\n"


def pareto_chart(document: Mapping[str, Any]) -> Chart:
    """Measured ratio with its interval against how good it is (importance kept where that was not measured)."""
    rows = document["members"]
    name, unit, best, figures = _figures(document)
    left, right, top, base = 52.0, WIDTH - 20.0, 16.0, 316.0
    low, high = min(0.95, *(one["ratio_low"] for one in rows)), max(1.0, *(one["ratio_high"] for one in rows))
    pad = 0.06 * (high - low)
    low, high = max(low - pad, 0.0), high + pad
    values = [best, *(one for found in figures for one in found)]
    least, most = min(values), max(values)
    room = max(most - least, 0.01 * max(abs(most), 1e-9))
    least, most = least - 0.1 * room, most + 0.06 * room

    x_of, y_of = scale(low, high, left, right), scale(least, most, base, top)
    parts = []
    for value in axis_ticks(least, most, 6):
        text = f"{100 * value:g}%" if unit else f"{value:g}"
        parts.append(f'<path class="gl" d="M{number(left)} {number(y_of(value))}H{number(right)}"/>')
        parts.append(f'<text class="q e" x="{number(left - 8)}" y="{number(y_of(value) + 4)}">{text}</text>')
    for value in axis_ticks(low, high, 9):
        parts.append(f'<path class="al" d="M{number(x_of(value))} {number(base)}v4"/>')
        parts.append(f'<text class="q m" x="{number(x_of(value))}" y="{number(base + 18)}">{value:g}x</text>')
    parts.append(f'<path class="al" d="M{number(left)} {number(base)}H{number(right)}"/>')
    parts.append(f'<text class="q" x="{number(left)}" y="10">{label(name, 40)}</text>')
    timed = "predicted" if document["statistic"] == "predicted" else "measured"
    parts.append(f'<text class="q e" x="{number(right)}" y="{number(base + 36)}">{timed} time / original</text>')
    shown = list(zip(rows, figures, strict=True))
    front = [(1.0, best), *((one["ratio"], kept[0]) for one, kept in shown if not one["dominated"])]
    path = "L".join(f"{number(x_of(x))} {number(y_of(y))}" for x, y in front)
    parts.append(f'<path class="nl" d="M{path}"/>')
    points = [(1.0, best, "original"), *((one["ratio"], kept[0], str(one["target"])) for one, kept in shown)]
    dots = [(x_of(x), y_of(y)) for x, y, _ in points]
    parts.append(f'<circle class="was" cx="{number(dots[0][0])}" cy="{number(dots[0][1])}" r="5"/>')
    for (one, kept), (x, y) in zip(shown, dots[1:], strict=True):
        line = f'<path class="nl" d="M{number(x_of(one["ratio_low"]))} {number(y)}H{number(x_of(one["ratio_high"]))}"/>'
        said = f"{one['target']}: {one['ratio']:.3f}x, {one['ratio_low']:.3f} to {one['ratio_high']:.3f}, " + (
            f"{kept[0]:.1%} kept" if unit else f"{name} {kept[0]:.4f}"
        )
        if kept[2] > kept[1]:
            line += f'<path class="nl" d="M{number(x)} {number(y_of(kept[1]))}V{number(y_of(kept[2]))}"/>'
        kind = "hollow" if one["dominated"] else "now"
        dot = f'<circle class="{kind}" cx="{number(x)}" cy="{number(y)}" r="5.5"/>'
        parts.append(f'{line}<a href="{_link(one["folder"])}"><title>{escape(text_of(said))}</title>{dot}</a>')
    places = _places([name for *_, name in points], dots)
    for (_, _, name), (x, y) in zip(points, places, strict=True):
        parts.append(f'<text class="b" x="{number(x)}" y="{number(y)}">{label(name, 24)}</text>')
    return Chart("pareto", "measured time against importance kept", (Block(360, "".join(parts)),))


def _places(names: list[str], dots: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where each name is written: beside its point, and on no other point or name."""
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in dots]
    found = []
    for name, (x, y) in zip(names, dots, strict=True):
        size = min(len(text_of(name)), 24) * CHAR + 2
        spots = [
            (x + dx, y + dy)
            for far in range(6)
            for dx, dy in ((10, 16 + 14 * far), (-10 - size, -8 - 14 * far), (10, -8 - 14 * far),
                           (-10 - size, 16 + 14 * far))
        ]  # fmt: skip
        boxes = [(a, b - 10, a + size, b + 3) for a, b in spots]
        inside = [
            i for i, box in enumerate(boxes) if box[0] >= 52 and box[2] <= WIDTH and box[1] >= 12 and box[3] < 316
        ]
        free = [i for i in inside if not any(_meet(boxes[i], other) for other in taken)]
        best = (free or inside or [0])[0]
        taken.append(boxes[best])
        found.append(spots[best])
    return found


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
