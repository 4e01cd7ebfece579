"""The demonstration of ``make demo``: a real OCR network is made faster on this CPU and stays good, without training.

The network is PP-OCRv4's text recogniser, an ONNX file inside the PyPI package ``rapidocr-onnxruntime``; torch is not
needed. Text lines are rendered here: some to rank and repair on, without their texts, others to read. Its measured time
is the target; ``python benchmarks/demo.py`` leaves the artefact, its plan, manifest and report in ``out/``.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from graphprune.export import ExportResult
    from graphprune.latency.measure import Comparison, MeasureOptions

__all__ = ["demo", "main", "speed_sentence"]

SHAPES: dict[str | None, tuple[int, ...]] = {"x": (1, 3, 48, 320)}
GOAL = {"target_latency": "0.7x"}
CALIBRATION, TEST = 48, 100  # lines
PROFILE = {"profile_seconds": 30.0}  # export itself takes up to 240
ROUNDS = 4  # processes that a measurement is spread over; export itself takes 6


def demo(
    out: Path,
    measure: MeasureOptions,
    console: Console,
    goal: Mapping[str, str] = GOAL,
    count: tuple[int, int] = (CALIBRATION, TEST),
) -> ExportResult:
    """Rank, cut, prove, repair, measure, read and tell. Raises what ``graphprune.pipeline.Network.export`` raises.

    ``goal`` are options of the export, ``count`` the lines to calibrate on and to read.
    """
    from graphprune.accuracy import Run
    from graphprune.ir.files import output_folder
    from graphprune.pipeline import load
    from models_zoo import ocr, text_lines

    output_folder(out)  # before any work
    path, _ = ocr.recogniser()
    began = time.monotonic()
    shown = "x".join(map(str, SHAPES["x"]))
    console.print(f"PP-OCRv4 text recogniser ({path.name}), input x: {shown}")
    network = load(path, input_shapes=SHAPES)
    analysis = network.analyze()
    exact = sum(one.exact for one in analysis.groups)
    console.print(
        f"found: {exact} exact groups, {len(analysis.groups) - exact} inexact ones (left alone), "
        f"{analysis.governed_params:.1%} of the parameters and {analysis.governed_macs:.1%} of the MACs in exact groups"
    )
    console.print(
        f"asked: {', '.join(f'{key} {value}' for key, value in goal.items()).replace('_', ' ')}; {count[0]} rendered "
        f"lines to rank and repair on, {count[1]} others to read"
    )
    console.print("ranking, timing layers, cutting, proving, repairing, measuring (three to four minutes) ...")
    read: dict[int, tuple[str, ...]] = {}
    lines = text_lines.test_lines(count[1])

    def evaluate(run: Run) -> dict[str, object]:
        """Characters and lines right, and characters as the original reads them."""
        texts = text_lines.read(run, lines)
        first = read.setdefault(0, texts)
        found = text_lines.score(texts, [line.text for line in lines])
        return {
            "characters right": found.characters,
            "lines right": found.right,
            "as the original reads": text_lines.score(texts, first).characters,
        }

    evaluate.show = text_lines.show  # type: ignore[attr-defined]
    result = network.export(
        out,
        calib=list(text_lines.calibration(count[0])),
        metric=evaluate,
        measure=measure,
        search_budget="0",  # looking at every group would take a minute more
        **goal,
        **(PROFILE if "target_latency" in goal else {}),
    )
    _table(result, path, console)
    _words(result, console)
    console.print(f"all of it took {time.monotonic() - began:.0f} s")
    for line in _next(result, path):
        console.print(line, markup=False, soft_wrap=True)
    return result


def _table(result: ExportResult, source: Path, console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from graphprune.report.tables import count

    table = Table(box=SIMPLE_HEAD)
    table.add_column("")
    for title in ("original", "cut only", "cut and repaired", "ratio"):
        table.add_column(title, justify="right")
    compared = result.comparison
    if compared is not None:
        ratio = f"{compared.ratio:.3f}x [{compared.ratio_low:.3f}, {compared.ratio_high:.3f}]"
        a, b = (f"{one.median_ms:.2f} ms" for one in (compared.a, compared.b))
        table.add_row("median latency", a, "", b, ratio)
    was, now = source.stat().st_size, result.model.stat().st_size
    table.add_row("file size", f"{was / 1e6:.2f} MB", "", f"{now / 1e6:.2f} MB", f"{now / was:.3f}x")
    for key, words in (("params", "parameters"), ("macs", "MACs")):
        was, now = result.original[key], result.reached[key]
        table.add_row(words, count(was), "", count(now), f"{now / was:.3f}x")
    assert result.accuracy is not None
    figures = result.accuracy.metric
    for name in figures["original"]:
        cells = (figures[which][name] for which in ("original", "cut", "artefact") if which in figures)
        table.add_row(name, *(f"{one.value:.1%}" for one in cells), "")
    console.print(table)


def _words(result: ExportResult, console: Console) -> None:
    from graphprune.report.tables import verdict_line

    compared, verdict = result.comparison, result.verdict
    if compared is not None:
        mark = compared.fingerprint
        console.print(
            f"measured: {mark['backend']} {mark['version']} on the CPU, {mark['threads']} threads, {compared.blocks} "
            f"ABBA blocks; the ratio's interval is of {compared.confidence:.0%}; {compared.noise}.",
            markup=False,
        )
        console.print(speed_sentence(compared), markup=False)
    if verdict is not None:
        console.print(f"proof: {verdict_line(verdict)}.", markup=False)
        console.print(
            "The proof is of the cut: it equals the original with the removed units silenced. The repair then changes "
            "what is left on purpose, so that it says what the original says.",
            markup=False,
        )
    for note in result.notes:
        console.print(f"note: {note}", markup=False)
    console.print()


def speed_sentence(compared: Comparison) -> str:
    """What the measured interval allows to say: faster, slower, or neither."""
    if compared.ratio_high < 1:
        return f"faster: the artefact takes {compared.ratio:.0%} of the original's time here."
    if compared.ratio_low > 1:
        return (
            f"slower: the artefact takes {compared.ratio:.0%} of the original's time here, although it computes less."
        )
    return (
        "not shown to be faster: the interval of the ratio reaches 1, so that on this machine, under its present load, "
        "no difference can be told from noise."
    )


def _next(result: ExportResult, source: Path) -> list[str]:
    """What lies in the folder, and the commands to go on with."""
    command, original, shapes = _near(_tool()), _near(source), "--input-shapes x:" + "x".join(map(str, SHAPES["x"]))
    model = _near(result.model)
    return [
        f"{_near(result.folder)} holds model.onnx (the artefact), report.html (open it: lines, and what each network "
        "reads), plan.json and manifest.json. To go on:",
        f"  {command} gate {_near(result.manifest_path)} --source {original}",
        f"  {command} bench {original} {model} {shapes}",
        f"  {command} analyze {original} {shapes}",
    ]


def _tool() -> Path:
    beside = Path(sys.executable).with_name("graphprune")
    return beside if beside.exists() else Path("graphprune")


def _near(path: Path) -> str:
    """A path as one would type it here: relative where it lies below the current folder."""
    if not path.is_absolute():
        return shlex.quote(str(path))
    below = path.is_relative_to(Path.cwd())
    return shlex.quote(os.path.relpath(path) if below else str(path))


def main(arguments: list[str] | None = None) -> int:
    """``python benchmarks/demo.py``; returns the exit code, graphprune's own for its errors."""
    parser = argparse.ArgumentParser(description="Make an OCR network faster, prove the cut, and show what it reads.")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("out"), help="folder for the artefacts (default: out)"
    )
    parser.add_argument("--target-latency", default=GOAL["target_latency"], help="share of the time (default: 0.7x)")
    parser.add_argument("--duration", type=float, default=5.0, help="seconds of timed work (default: 5)")
    given = parser.parse_args(arguments)
    try:
        from graphprune.errors import GraphpruneError
        from graphprune.latency.measure import MeasureOptions
        from graphprune.report.tables import console
    except ImportError as error:
        print(f"error: {error}; run `make demo`, which installs what is needed", file=sys.stderr)
        return 2
    try:
        measure = MeasureOptions(
            duration=given.duration, rounds=ROUNDS, warm_up_cap_ms=1000.0, max_width=0.04, max_duration=15.0
        )
        demo(given.output, measure, console(), {"target_latency": given.target_latency})
    except GraphpruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
