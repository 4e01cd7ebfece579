"""``report.html``: an export on one page that fetches nothing, made from the manifest alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from graphprune.report import charts
from graphprune.report.card import (
    accuracy_rows,
    accuracy_sentences,
    check_command,
    command,
    corner_heads,
    corner_rows,
    headline,
    made,
    ratio_sentence,
    reached_rows,
    repair_sentence,
    target_rows,
    timed_figure,
    verification_sentence,
)
from graphprune.report.charts import Chart
from graphprune.report.latency import grain_lines
from graphprune.report.page import listing, page, say, section, table, tile
from graphprune.report.tables import count, text_of

__all__ = ["PLOTS", "plots", "report_html"]

PLOTS = tuple(f"report-{name}.svg" for name in ("latency", "candidates", "widths", "curves", "layers"))
_REFUSALS = 40  # rows; the manifest holds all


def report_html(manifest: Mapping[str, Any]) -> str:
    """The page. Parts that the manifest has nothing for are left out; the same manifest gives the same bytes."""
    drawn = {one.name: one for one in _charts(manifest)}
    target = manifest["latency_target"]
    parts = [_summary(manifest), _reached(manifest), _notes(manifest)]
    if manifest["latency"] is not None:
        parts.append(_latency(manifest["latency"], drawn["latency"]))
    if target is not None:
        parts.append(_candidates(target, drawn.get("candidates")))
    parts.append(_widths(manifest, drawn.get("widths")))
    if "layers" in drawn:
        parts.append(_layers(drawn["layers"], measured=manifest["latency"] is not None))
    if target is not None:
        parts.append(_curves(target, drawn.get("curves")))
    parts += [
        _verification(manifest),
        _accuracy(manifest),
        _refusals(manifest["refusals"]),
        _reproduce(manifest),
        _environment(manifest),
    ]
    when = str(manifest["created"]).replace("T", " ").replace("+00:00", " UTC")
    lead = f"Pruned by graphprune {manifest['versions']['graphprune']}, {when}"
    return page(str(manifest["source"]["name"]), lead, "".join(parts))


def plots(manifest: Mapping[str, Any]) -> dict[str, str]:
    """File name -> SVG document, of the charts that the manifest has data for."""
    subject = str(manifest["source"]["name"])
    return {f"report-{one.name}.svg": one.file(subject) for one in _charts(manifest)}


def _charts(manifest: Mapping[str, Any]) -> list[Chart]:
    found = []
    target = manifest["latency_target"]
    if manifest["latency"] is not None:
        found.append(charts.times(manifest["latency"]))
    if target is not None and target["rounds"]:
        found.append(charts.candidates(target))
    if manifest["groups_cut"]:
        found.append(charts.widths(manifest["groups_cut"]))
    if target is not None and target["curves"]:
        made_by = {one["id"]: str(one["producers"][0]) for one in manifest["groups_cut"] if one["producers"]}
        found.append(charts.step_curves(target, made_by))
    if target is not None and target["layers"]:
        found.append(charts.layers(target["layers"]))
    return found


def _figure(chart: Chart) -> str:
    return f"<figure>{chart.inline()}</figure>"


def _summary(manifest: Mapping[str, Any]) -> str:
    goals = {}
    for words, text, met in target_rows(manifest):
        goals[words] = (
            (f"target {text}: not measured", "bad")
            if met is None
            else (f"target {text}: {'met' if met else 'missed'}", "good" if met else "bad")
        )
    tiles = []
    figure, target, checked = timed_figure(manifest), manifest["latency_target"], manifest["verification"]
    if figure is not None:
        interval = f"{figure['ratio_low']:.3f} to {figure['ratio_high']:.3f}"
        title = "Latency" if figure["statistic"] == "median" else f"Latency, {figure['statistic']}"
        tiles.append(tile(title, f"{figure['ratio']:.3f}x", interval, *goals.get("latency", ())))
    elif target is not None:
        tiles.append(tile("Latency", f"{target['predicted']['ratio']:.3f}x", "predicted", *goals["latency"]))
    for key, title, words in (("params", "Parameters", "parameters"), ("macs", "MACs", "MACs")):
        was, now = manifest["original"][key], manifest["reached"][key]
        share = f"{now / was if was else 1.0:.3f}x"
        tiles.append(tile(title, share, f"{count(now)} of {count(was)}", *goals.get(words, ())))
    if target is not None:
        kept = target["kept"]
        tiles.append(tile("Importance kept", f"{kept:.1%}", f"by {manifest['options']['criterion']}"))
    if checked is None:
        tiles.append(tile("Cut", "not verified", "--no-verify"))
    else:
        said = f"within {checked['max_rel']:.1e} relative"
        tiles.append(tile("Cut", "verified" if checked["passed"] else "wrong", said))
    return f'<div class="tiles">{"".join(tiles)}</div>{say(" ".join(headline(manifest)), "lead")}'


def _reached(manifest: Mapping[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [*reached_rows(manifest)]
    heads = ["", "original", "artefact", "ratio", "target"]
    if not any(row[4] for row in rows):
        heads, rows = heads[:4], [row[:4] for row in rows]
    said = ""
    if manifest["options"]["plan"]:
        said += say(f"The plan {manifest['options']['plan']} was replayed; no target was asked for.", "small")
    if manifest["latency"] is not None:
        how = ratio_sentence(manifest)
        if "median" in how:
            how += "; the quotient of the two medians may differ from it a little"
        said += say(f"Both networks ran in turn, in blocks; {how}.", "small")
    return section("Asked and reached", table(heads, rows, (1, 2, 3, 4)), said)


def _notes(manifest: Mapping[str, Any]) -> str:
    notes = list(dict.fromkeys(manifest["notes"]))
    return section("Notes", listing(notes)) if notes else ""


def _latency(found: Mapping[str, Any], chart: Chart) -> str:
    levels = sorted({key for one in ("a", "b") for key in found[one]["percentiles_ms"]}, key=lambda key: float(key[1:]))
    rows = []
    for key, name in (("a", "original"), ("b", "artefact")):
        one = found[key]
        tail = [_fixed(one["percentiles_ms"][level]) if level in one["percentiles_ms"] else "" for level in levels]
        rows.append(
            [name, _fixed(one["median_ms"]), f"{_fixed(one['interval_ms'][0])} to {_fixed(one['interval_ms'][1])}",
             _fixed(one["mean_ms"]), _fixed(one["min_ms"]), *tail, _fixed(one["max_ms"]), f"{one['cov']:.1%}",
             str(one["iterations"]), f"{one['throughput_per_s']:.1f}"]
        )  # fmt: skip
    heads = ["ms", "median", f"{found['a']['confidence']:.0%} interval", "mean", "min", *levels, "max", "CoV",
             "samples", "per second"]  # fmt: skip
    of = found["fingerprint"]
    threads = f"{of['threads']} thread{'' if of['threads'] == 1 else 's'}"
    how = (
        f"Time of one inference on {of['backend']} {of['version']}, {of['device']}, {threads}. Both networks ran in "
        f"turn (original, artefact, artefact, original) in {found['blocks']} blocks over "
        f"{len(found['a']['round_sizes'])} fresh processes. Lines are medians, bands their intervals."
    )
    repeats = max(found[key]["repeats"] for key in ("a", "b"))
    if repeats > 1:
        how += f" Each sample is the mean of up to {repeats} runs, so there are no percentiles."
    doubts = _doubts(found)
    warned = f'<div class="warn"><b>Read these times with care</b>{listing(doubts)}</div>' if doubts else ""
    return section("Latency", say(how), _figure(chart), table(heads, rows, range(1, len(heads)), "small wide"), warned)


def _fixed(value: float) -> str:
    """Milliseconds for a column: the decimals are the same in all its rows."""
    return f"{value:.3f}"


def _doubts(found: Mapping[str, Any]) -> list[str]:
    """Why the times may not be trusted, by the rules of :mod:`graphprune.latency.results`."""
    from graphprune.latency.results import Measurement, Noise, WarmUp

    said = []
    for key, name in (("a", "original"), ("b", "artefact")):
        one = made(Measurement, {**found[key], "warm_up": made(WarmUp, found[key]["warm_up"])})
        said += [f"{name}: {text}" for text in one.warnings()]
    return [*said, *made(Noise, found["noise"]).warnings()]


def _candidates(target: Mapping[str, Any], chart: Chart | None) -> str:
    if chart is None:
        how = (
            f"The target was {target['asked']}. Widths were solved on the step curves of a latency table "
            f"({target['method']}); nothing was measured. Importance is the share of the scores that stays."
        )
        return section("Candidates", say(how))
    how = (
        f"The target was {target['asked']}. Widths were solved on measured step curves ({target['method']}); each "
        "candidate was then built and measured against the original, and the next one corrected by what was found. A "
        "candidate meets the target when its whole interval lies within it. Importance is the share of the scores "
        "that stays."
    )
    said = ""
    if target["prediction_errors"]:
        import numpy as np

        half, most = np.quantile(np.abs(target["prediction_errors"]), [0.5, 0.95])
        said = say(
            f"While the curves were made, {len(target['prediction_errors'])} networks were predicted before they were "
            f"measured: median error {half:.1%}, 95th percentile {most:.1%}; {target['profile_seconds']:.0f} s of "
            "profiling.",
            "small",
        )
    return section("Candidates", say(how), _figure(chart), said)


def _widths(manifest: Mapping[str, Any], chart: Chart | None) -> str:
    cut = manifest["groups_cut"]
    if chart is None:
        return section("Widths", say("Nothing was cut: the plan removes no unit."))
    inexact = sum(not one["exact"] for one in cut)
    said = (
        f"{len(cut)} group{'s' if len(cut) > 1 else ''} of units that go together lost some of them; groups that are "
        "not listed stayed whole. The bar is the width before, its coloured part what stays."
    )
    if inexact:
        said += f" {inexact} marked stat: a statistic is computed over them, so that cut is not exact."
    return section("Widths before and after", say(said), _figure(chart))


def _layers(chart: Chart, *, measured: bool) -> str:
    how = (
        "The time of each layer with what the runtime fuses into it, in the network's order, as the step curves "
        "explain it: grey before, coloured after. Their sum is a prediction"
    )
    how += "; what counts is the measurement above." if measured else "."
    return section("Time by layer", say(how), _figure(chart))


def _curves(target: Mapping[str, Any], chart: Chart | None) -> str:
    from graphprune.latency.curves import Grain

    lines = grain_lines([made(Grain, one) for one in target["grains"]])
    found = ""
    if lines:
        found = say("What was found about widths (axes by the letters of the operator's rule):") + listing(lines)
    if chart is None:
        return section("Step curves", found) if found else ""
    shown = len(charts.shown_curves(target))
    rest = len(target["curves"]) - shown
    how = (
        "Time in ms of all layers that a group is in against the units it keeps, with every other group whole. The "
        "ring is the original, the dot the width that was chosen. "
    )
    how += f"Shown are the {shown} groups whose cut saves most; " if rest else "All groups that were cut, "
    how += f"{rest} more are in manifest.json." if rest else "those first whose cut saves most."
    if any(len(one["widths"]) < one["widths"][-1] for one in target["curves"]):
        how += " Of wide groups not every width is drawn."
    return section("Step curves", say(how), _figure(chart), found)


def _verification(manifest: Mapping[str, Any]) -> str:
    parts = [say(verification_sentence(manifest))]
    checked = manifest["verification"]
    if checked is not None:
        parts.append(
            say(
                "The masked original is the original network in which the removed units are silenced where they are "
                "used. Both ran on the same inputs; where they agree, the cut has removed these units and changed "
                f"nothing else. The largest difference was in {checked['worst']}."
            )
        )
    return section("Verification", *parts)


def _accuracy(manifest: Mapping[str, Any]) -> str:
    rows = accuracy_rows(manifest)
    if not rows:
        return section("Accuracy", *(say(one) for one in accuracy_sentences(manifest)))
    parts = [say(one) for one in [repair_sentence(manifest)] if one]
    parts.append(table(("", "original", "cut only", "artefact"), rows, (1, 2, 3)))
    held = (manifest.get("calibration") or {}).get("held_out")
    if held:
        said = f"Agreement, cosine and divergence are to the original, on {held} samples that nothing was fitted to."
        parts.append(say(said, "small"))
    corners = corner_rows(manifest)
    if corners:
        heads = corner_heads(manifest)
        parts.append(
            say("Pruned and quantised to int8 (static, per channel, on the same samples); latency as measured:")
        )
        parts.append(table(heads, corners, range(1, len(heads)), "small wide"))
    return section("Accuracy", *parts, _exhibits(manifest["accuracy"]["exhibits"]))


def _exhibits(shown: Sequence[Mapping[str, Any]]) -> str:
    """A strip of samples with what each network makes of them."""
    if not shown:
        return ""
    names = [name for name in ("original", "cut", "artefact") if name in shown[0]["says"]]
    head = "".join(f"<th>{escape({'cut': 'cut only'}.get(name, name))}</th>" for name in ("sample", *names))
    lines = ""
    for one in shown:
        image = f'<img src="data:image/png;base64,{escape(one["png"])}" alt="">' if one["png"] else ""
        cells = "".join(f"<td>{escape(text_of(one['says'][name]))}</td>" for name in names)
        lines += f"<tr><td>{image}</td>{cells}</tr>\n"
    return f'<table class="small wide shown"><thead><tr>{head}</tr></thead><tbody>\n{lines}</tbody></table>'


def _refusals(refusals: Sequence[Mapping[str, Any]]) -> str:
    rows = list(dict.fromkeys((str(one["op"]) or "network", _where(one), str(one["reason"])) for one in refusals))
    if not rows:
        return ""
    rest = len(rows) - _REFUSALS
    said = say(f"{rest} more are in manifest.json.", "small") if rest > 0 else ""
    shown = table(("operator", "where", "reason"), rows[:_REFUSALS], (), "small")
    return section("Not cut through", say("Axes that stay whole, and why."), shown, said)


def _where(one: Mapping[str, Any]) -> str:
    axis = "" if one["axis"] is None else f", axis {one['axis']}"
    return "; ".join(filter(None, (str(one["node"]), f"{one['tensor']}{axis}" if one["tensor"] else "")))


def _reproduce(manifest: Mapping[str, Any]) -> str:
    line = " \\\n  ".join(command(manifest))
    hashes = [*manifest["source"]["sha256"].items(), *manifest["artefact"]["sha256"].items()]
    build = manifest.get("build")
    if build is not None:
        hashes += build["sha256"].items()
    return section(
        "How to reproduce",
        say("Every option as it was used, defaults included:"),
        f"<pre>{escape(line)}</pre>",
        say("To check files, proof and time again, with the original at hand:"),
        f"<pre>{escape(check_command(manifest))}</pre>",
        table(("file", "SHA-256"), hashes, (), "small hashes"),
    )


def _environment(manifest: Mapping[str, Any]) -> str:
    found, build = manifest["latency"], manifest.get("build")
    rows = list((manifest["machine"] if found is None else found["fingerprint"]).items())
    rows.append(("packages", [f"{name} {version}" for name, version in manifest["versions"].items()]))
    shapes = manifest["input_shapes"].items()
    rows.append(("input shapes", [f"{name} {'×'.join(map(str, shape)) or 'scalar'}" for name, shape in shapes]))
    if build is not None:
        rows.append(("built for", f"{build['backend']}, in {build['seconds']:g} s"))
    rows.append(("time spent", [f"{name} {value:.1f} s" for name, value in manifest["seconds"].items()]))
    listed = "".join(
        f"<dt>{escape(text_of(key.replace('_', ' ')))}</dt><dd>{escape(text_of(text))}</dd>"
        for key, value in rows
        if (text := _value(value))
    )
    return section(
        "Environment",
        f"<dl>{listed}</dl>",
        '<p class="small">All of this as data: <a href="manifest.json">manifest.json</a>; the units that stay: '
        '<a href="plan.json">plan.json</a>.</p>',
    )


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={one}" for key, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
