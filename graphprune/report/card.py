"""The model card (README.md) beside an artefact, and the sentences it shares with the report."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from graphprune.latency.figures import WORDS
from graphprune.report.tables import count, text_of

__all__ = [
    "MARK",
    "accuracy_rows",
    "accuracy_sentences",
    "check_command",
    "command",
    "corner_heads",
    "corner_rows",
    "headline",
    "made",
    "model_card",
    "ratio_sentence",
    "reached_rows",
    "repair_sentence",
    "target_rows",
    "timed_figure",
    "verification_sentence",
]

_T = TypeVar("_T")
MARK = "<!-- written by graphprune export -->"  # tells a card that may be replaced from somebody's own file

# Options that are text or numbers, in the order of the command.
_VALUES = (
    *(
        "target_latency",
        "statistic",
        "target_params",
        "target_macs",
        "plan",
        "calib",
        "calib_samples",
        "criterion",
        "allocation",
    ),
    *(
        "max_drop",
        "search_budget",
        "search_by",
        "quantize",
        "latency_table",
        "profile_seconds",
        "floor",
        "repair",
        "metric",
    ),
    *("align", "verify_dtype", "samples", "atol", "rtol", "max_shard_size", "seed"),
)
_FOUND = ("target_latency", "target_macs")  # what --max-drop finds itself
_CHOICE = ("criterion", "allocation", "floor", "align")  # what a plan that is replayed leaves nothing to do


def made(kind: type[_T], values: Mapping[str, Any]) -> _T:
    """A result read back from the manifest: those of its fields that the manifest holds."""
    return kind(**{one.name: values[one.name] for one in fields(kind) if one.name in values})  # type: ignore[arg-type]


def command(manifest: Mapping[str, Any]) -> list[str]:
    """The command line that gives this artefact: every option as it was used, defaults included; a part a line."""
    options = manifest["options"]
    parts = [["graphprune", "export", str(manifest["source"]["name"]), "-o", "OUT"]]
    for name in _VALUES:
        value = options.get(name)
        found = name in _FOUND and options.get("max_drop") is not None
        if value is not None and not found and not (options["plan"] and name in _CHOICE):
            parts.append([_flag(name), f"{value:g}" if isinstance(value, float) else str(value)])
    if (images := options.get("calib_images")) is not None:
        numbers = [f"{key}={':'.join(f'{one:g}' for one in images[key])}" for key in ("mean", "std")]
        parts.append(["--calib-images", ",".join([*numbers, f"channels={images['channels']}"])])
    for key, value in options["criterion_options"].items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        parts.append(["--criterion-option", f"{key}={text}"])
    parts += [[_flag(name), str(pattern)] for name in ("include", "exclude") for pattern in options[name]]
    parts += [[_flag(name)] for name in ("stat", "keep_source", "plots") if options.get(name)]
    if not options["verify"]:
        parts.append(["--no-verify"])
    for name, shape in manifest["input_shapes"].items():
        if 0 not in shape:  # such a shape cannot be asked for
            parts.append(["--input-shapes", f"{name}:{'x'.join(map(str, shape)) if shape else '[]'}"])
    timing = options["measure"]
    if timing is None:
        parts.append(["--no-measure"])
    else:
        parts.append(["--duration", f"{timing['duration']:g}s"])
        parts.append(["--warm-up-ms", f"{timing['warm_up_ms']:g}"])
    runtime = timing or options
    if runtime.get("backend"):
        parts.append(["--backend", str(runtime["backend"])])
        of = runtime["backend_options"]
        if of["providers"]:
            parts.append(["--device", ",".join(of["providers"])])
        parts += [["--option", f"{key}={value}"] for key, value in of["settings"]]
        if of["threads"] is not None:
            parts.append(["--threads", str(of["threads"])])
        if of["affinity"]:
            parts.append(["--affinity", ",".join(map(str, of["affinity"]))])
    return [" ".join(shlex.quote(text_of(word)) for word in part) for part in parts]


def check_command(manifest: Mapping[str, Any]) -> str:
    """The command line that holds the artefact to its manifest again."""
    words = ["graphprune", "gate", "manifest.json"]
    name = next(iter(manifest["source"]["sha256"]))
    if name != "source.onnx":  # a module's traced network lies beside the artefact where it was kept
        words += ["--source", text_of(str(manifest["source"]["name"]))]
    if manifest["latency"] is not None:
        words += ["--max-latency", "+5%"]
    elif manifest["latency_target"] is not None:  # predicted for a device that was not there
        words += ["--max-latency", f"{manifest['latency_target']['share']:.3f}x"]
    return shlex.join(words)


def _flag(name: str) -> str:
    return "--eval" if name == "metric" else "--" + name.replace("_", "-")


def timed_figure(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """The measured figure that counts (see :class:`graphprune.latency.figures.Figure`): the one that a latency target
    was on, else the median; None where nothing was measured.
    """
    found = manifest["latency"]
    if found is None:
        return None
    figure = (manifest["latency_target"] or {}).get("figure")
    if figure is not None:
        return dict(figure)
    ms = {f"{key}_ms": found[key]["median_ms"] for key in ("a", "b")}
    return {"statistic": "median", **ms, **{key: found[key] for key in ("ratio", "ratio_low", "ratio_high")}}


def target_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str, bool | None]]:
    """What was asked for: quantity, target as it was written, and whether it is reached; None: predicted only."""
    rows: list[tuple[str, str, bool | None]] = []
    for key, words in (("params", "parameters"), ("macs", "MACs")):
        if key in manifest["asked"]:
            rows.append(
                (words, str(manifest["options"][f"target_{key}"]), manifest["reached"][key] <= manifest["asked"][key])
            )
    if manifest["latency_target"] is not None:
        target, figure = manifest["latency_target"], timed_figure(manifest)
        met = None if figure is None else figure["ratio_high"] <= target["share"]
        rows.append(("latency", str(target["asked"]), met))
    return rows


def reached_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Quantity, original, artefact, ratio, target; the last empty where there was none."""
    asked = {words: text for words, text, _ in target_rows(manifest)}
    rows = []
    for key, words in (("params", "parameters"), ("macs", "MACs")):
        was, now = manifest["original"][key], manifest["reached"][key]
        wanted = asked.get(words, "")
        if wanted and not wanted.endswith("x") and was:  # an absolute number: say what share it is
            wanted += f" ({manifest['asked'][key] / was:.3f}x)"
        rows.append((words, count(was), count(now), f"{now / was if was else 1.0:.3f}x", wanted))
    wanted = asked.get("latency", "")
    if wanted and not wanted.endswith("x"):
        wanted += f" ({manifest['latency_target']['share']:.3f}x)"
    figure = timed_figure(manifest)
    if figure is not None:
        was_ms, now_ms = (f"{figure[key]:.3f} ms" for key in ("a_ms", "b_ms"))
        rows.append((f"{figure['statistic']} latency", was_ms, now_ms, f"{figure['ratio']:.3f}x", wanted))
    elif manifest["latency_target"] is not None:
        predicted = manifest["latency_target"]["predicted"]
        was_ms, now_ms = (f"{predicted['original_ms'] * share:.3f} ms" for share in (1.0, predicted["ratio"]))
        rows.append(("latency, predicted", was_ms, now_ms, f"{predicted['ratio']:.3f}x", wanted))
    return rows


def ratio_sentence(manifest: Mapping[str, Any]) -> str:
    """What the measured ratio is of."""
    figure = timed_figure(manifest)
    if figure is None or figure["statistic"] == "median":
        return "the ratio is the median over these blocks"
    return f"the ratio is that of the {WORDS[figure['statistic']]}s of both networks' times"


def headline(manifest: Mapping[str, Any]) -> list[str]:
    """What happened, in sentences for somebody who was not there."""
    params, macs = ((manifest["reached"][key], manifest["original"][key]) for key in ("params", "macs"))
    shares = [
        f"{now / was:.1%} of the {words}" for (now, was), words in ((params, "parameters"), (macs, "MACs")) if was
    ]
    said = [f"The artefact has {' and '.join(shares)} of the original."] if shares else []
    figure = timed_figure(manifest)
    if figure is not None:
        low, high = figure["ratio_low"], figure["ratio_high"]
        timed = "in turn with it on the machine below"
        of = "" if figure["statistic"] == "median" else f" ({WORDS[figure['statistic']]})"
        if low <= 1.0 <= high:
            said.append(
                f"Measured {timed} its time{of} is {figure['ratio']:.3f}x the original's, and the interval from "
                f"{low:.3f}x to {high:.3f}x holds 1: whether it is faster cannot be told from this measurement."
            )
        else:
            said.append(
                f"Measured {timed} an inference takes {figure['ratio']:.3f}x the original's time{of} "
                f"({manifest['latency']['confidence']:.0%} interval {low:.3f}x to {high:.3f}x)"
                + (": it is slower." if low > 1.0 else ".")
            )
    for words, text, met in target_rows(manifest):
        if met is None:
            target = manifest["latency_target"]
            device = target["fingerprint"]["device"]
            said.append(
                f"The target of {text} for {words} was not measured: {target['predicted']['ratio']:.3f}x of the "
                f"original's time is what the latency table of {device} predicts."
            )
        else:
            said.append(f"The target of {text} for {words} is {'met' if met else 'missed'}.")
    return said


def verification_sentence(manifest: Mapping[str, Any]) -> str:
    """The verdict in words."""
    from graphprune.passes.verify import Verdict
    from graphprune.report.tables import verdict_line

    if manifest["verification"] is None:
        return "Not verified (--no-verify)."
    return verdict_line(made(Verdict, manifest["verification"])) + "."


def accuracy_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What was measured of the outputs: figure, original, cut only, artefact."""
    found = manifest.get("accuracy")
    if found is None:
        return []
    metric, near = found["metric"], found["fidelity"]

    def row(words: str, figures: Mapping[str, Any]) -> tuple[str, str, str, str]:
        original, cut, artefact = (_interval(figures.get(which)) for which in ("original", "cut", "artefact"))
        return words, original, cut, artefact

    names = dict.fromkeys(name for one in metric.values() for name in one)
    rows = [row(name, {which: one.get(name) for which, one in metric.items()}) for name in names]
    for key, words in (("top1", "top-1 agreement"), ("cosine", "cosine of outputs"), ("kl", "KL divergence, nats")):
        figures = {which: one[key] for which, one in near.items()}
        if any(figures.values()):
            rows.append(row(words, figures))
    return rows


def _interval(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return ""
    return f"{one['value']:.4f}" + ("" if one["low"] is None else f" ({one['low']:.4f} to {one['high']:.4f})")


def corner_rows(manifest: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Dense and pruned, float and int8: size, measured ratio, and the figure that says how good it is."""
    rows: list[tuple[str, ...]] = []
    for one in manifest.get("corners") or []:
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.3f}x"
        if one["ratio_low"] not in (None, one["ratio_high"]):
            ratio += f" ({one['ratio_low']:.3f} to {one['ratio_high']:.3f})"
        figures = [_interval(figure) for figure in (one.get("metric") or {}).values()]
        near = one.get("fidelity") or {}
        figures.append(_interval(near.get("top1") or near.get("cosine")))
        rows.append((str(one["name"]), f"{one['bytes'] / 1e6:.2f} MB", ratio, *figures))
    return rows


def corner_heads(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """The titles of :func:`corner_rows`."""
    first = (manifest.get("corners") or [{}])[0]
    near = first.get("fidelity") or {}
    last = "top-1 agreement" if near.get("top1") else "cosine of outputs"
    return ("", "file", "latency", *(first.get("metric") or {}), last)


def repair_sentence(manifest: Mapping[str, Any]) -> str:
    """What repair did; empty where nothing was repaired."""
    repaired, data = manifest.get("repair"), manifest.get("calibration")
    if repaired is None or data is None:
        return ""
    maps = repaired["maps"]
    if not maps:
        return "Repair changed nothing."
    before, after = (sum(one[key] for one in maps) / max(1, len(maps)) for key in ("before", "after"))
    how = "constants and biases refitted" if repaired["method"] == "refit" else "biases shifted"
    noise = {
        "noise": " of noise",
        "matched noise": " of noise, matched to the statistics that the network holds of its training data",
    }.get(data["source"], "")
    return (
        f"Repaired on {data['fitted']} samples{noise} ({how}): {len(maps)} linear maps missed {before:.1%} of the "
        f"original's variance on average before, {after:.1%} afterwards."
    )


def accuracy_sentences(manifest: Mapping[str, Any]) -> list[str]:
    """What repair did and how good the artefact is, or that this was not measured."""
    rows = accuracy_rows(manifest)
    figures = "; ".join(f"{row[0]}: {row[3]}" + (f" (original {row[1]})" if row[1] else "") for row in rows)
    unknown = (
        "Accuracy was not measured: removing units changes what the network says. Measure it on your own data, and "
        "fine-tune if too much was lost."
    )
    return [one for one in (repair_sentence(manifest), f"{figures}." if rows else unknown) if one]


def model_card(manifest: Mapping[str, Any]) -> str:
    """README.md in Markdown: what the artefact is, how to run it, how it was made, what was proved and measured."""
    name = str(manifest["source"]["name"])
    lines = [MARK, "", f"# {_plain(name)}, pruned", "", *headline(manifest), ""]
    lines += _table(("", "original", "artefact", "ratio", "target"), reached_rows(manifest), right=(1, 2, 3))
    found = manifest["latency"]
    if found is not None:
        of = found["fingerprint"]
        lines += [
            f"Times are those of {_plain(of['backend'])} {_plain(of['version'])} on {_plain(of['device'])}, "
            f"{of['threads']} thread(s), input shapes as below; both ran in turn in {found['blocks']} blocks, and "
            f"{ratio_sentence(manifest)}. Other devices, versions and thread counts give other times.",
            "",
        ]
    lines += ["## Use", "", "Inputs and outputs have the names and types of the original:", ""]
    shapes = [(f"`{_code(one)}`", "×".join(map(str, shape)) or "scalar") for one, shape in _shapes(manifest)]
    lines += _table(("input", "shape it was observed with"), shapes)
    lines += ["```python", "import onnxruntime", "", 'session = onnxruntime.InferenceSession("model.onnx")']
    lines += ["outputs = session.run(None, feeds)  # feeds: input name -> array", "```", ""]
    if manifest.get("build") is not None:
        files = ", ".join(f"`{_code(one)}`" for one in manifest["build"]["sha256"])
        lines += [f"For {_plain(manifest['build']['backend'])}: {files}.", ""]
    lines += ["## What was cut", ""]
    lines += [
        f"{len(manifest['groups_cut'])} groups of coupled units lost some; `plan.json` says which units stay.",
        "",
    ]
    cut = [
        (f"`{_code(one['id'])}`", ", ".join(f"`{_code(each)}`" for each in one["producers"]), _plain(one["kind"]),
         str(one["size"]), str(one["kept"]))
        for one in manifest["groups_cut"]
    ]  # fmt: skip
    lines += _table(("group", "made by", "kind", "before", "after"), cut, right=(3, 4))
    lines += ["## Proof and limits", "", _plain(verification_sentence(manifest)), ""]
    lines += [
        "The masked original is the original network with the removed units silenced: the check proves that nothing "
        "but them was changed."
        + (" Then what was left was repaired, which changes it on purpose." if manifest.get("repair") else ""),
        "",
        *(_plain(line) for line in accuracy_sentences(manifest)),
        "",
        "Licence and intended use are those of the original.",
        "",
    ]
    lines += [f"- {_plain(note)}" for note in dict.fromkeys(manifest["notes"])]
    lines += [""] if manifest["notes"] else []
    lines += ["## How it was made", "", f"With graphprune {_plain(manifest['versions']['graphprune'])}:", ""]
    text = " \\\n  ".join(command(manifest))
    fence = _fence(text)
    lines += [f"{fence}sh", text, fence, ""]
    lines += ["To check the files, the proof and the time again, with the original beside them:", ""]
    check = check_command(manifest)
    fence = _fence(check)
    lines += [f"{fence}sh", check, fence, "", "SHA-256:", ""]
    hashes = [*manifest["source"]["sha256"].items(), *manifest["artefact"]["sha256"].items()]
    lines += _table(("file", "SHA-256"), [(f"`{_code(one)}`", f"`{value}`") for one, value in hashes])
    lines += ["More is in `report.html` (open it in a browser) and, as data, in `manifest.json`.", ""]
    return "\n".join(lines)


def _shapes(manifest: Mapping[str, Any]) -> list[tuple[str, Sequence[int]]]:
    return list(manifest["input_shapes"].items())


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """A table, or nothing where there are no rows. Cells are escaped already."""
    if not rows:
        return []
    rule = ["--:" if i in right else "---" for i in range(len(heads))]
    return [f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows)] + [""]


_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$])")


def _plain(text: object) -> str:
    """Text out of a file, as text: no mark of Markdown or HTML in it means anything."""
    return _SPECIAL.sub(r"\\\1", text_of(str(text)))


def _code(text: object) -> str:
    """The same for between backquotes in a table."""
    return text_of(str(text)).replace("`", "'").replace("|", "\\|")


def _fence(text: str) -> str:
    """Backquotes around code that are more than any within it."""
    return "`" * max(3, 1 + max((len(one) for one in re.findall("`+", text)), default=0))
