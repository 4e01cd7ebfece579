"""The demonstration of ``make demo``: a real OCR network is cut to 0.7x of its MACs, proved and measured on this CPU.

The network is PP-OCRv4's text recogniser, an ONNX file inside the PyPI package ``rapidocr-onnxruntime``; torch is not
needed. ``python benchmarks/demo.py`` leaves ``out/model.onnx``, ``out/plan.json`` and ``out/manifest.json`` behind.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from graphprune.export import ExportResult
    from graphprune.latency.measure import Comparison, MeasureOptions

__all__ = ["demo", "main", "speed_sentence"]

SHAPES: dict[str | None, tuple[int, ...]] = {"x": (1, 3, 48, 320)}
TARGET = "0.7x"
# Vector registers hold 8 floats, and the kernels' blocks are multiples of them: other widths cost time.
ALIGN = 8


def demo(out: Path, measure: MeasureOptions, console: Console) -> ExportResult:
    """Cut, prove, measure and tell. Raises what ``graphprune.pipeline.Network.export`` raises."""
    from graphprune.ir.files import output_folder
    from graphprune.pipeline import load
    from models_zoo import ocr

    output_folder(out)  # before any work
    path, _ = ocr.recogniser()
    shown = "x".join(map(str, SHAPES["x"]))
    console.print(f"PP-OCRv4 text recogniser ({path.name}), input x: {shown}")
    console.print(
        f"asked: at most {TARGET} of the MACs; widths in multiples of {ALIGN}, which this CPU's kernels like "
        f"(--target-macs {TARGET} --align {ALIGN})"
    )
    network = load(path, input_shapes=SHAPES)
    analysis = network.analyze()
    exact = sum(one.exact for one in analysis.groups)
    console.print(
        f"found: {exact} exact groups, {len(analysis.groups) - exact} inexact ones (left alone), "
        f"{analysis.governed_params:.1%} of the parameters and {analysis.governed_macs:.1%} of the MACs in exact groups"
    )
    console.print("cutting, proving, measuring (both networks in turn, in fresh processes) ...")
    result = network.export(out, target_macs=TARGET, align=ALIGN, measure=measure)
    _table(result, path, console)
    _words(result, console)
    for line in _next(result, path):
        console.print(line, markup=False, soft_wrap=True)
    return result


def _table(result: ExportResult, source: Path, console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from graphprune.report.tables import count

    table = Table(box=SIMPLE_HEAD)
    table.add_column("")
    for title in ("original", "artefact", "ratio", "asked"):
        table.add_column(title, justify="right")
    for key, words in (("params", "parameters"), ("macs", "MACs")):
        was, now = result.original[key], result.reached[key]
        asked = f"{result.asked[key] / was:.3f}x" if key in result.asked else ""
        table.add_row(words, count(was), count(now), f"{now / was:.3f}x", asked)
    was, now = source.stat().st_size, result.model.stat().st_size
    table.add_row("file size", f"{was / 1e6:.2f} MB", f"{now / 1e6:.2f} MB", f"{now / was:.3f}x", "")
    compared = result.comparison
    if compared is not None:
        ratio = f"{compared.ratio:.3f}x [{compared.ratio_low:.3f}, {compared.ratio_high:.3f}]"
        a, b = (f"{one.median_ms:.2f} ms" for one in (compared.a, compared.b))
        table.add_row("median latency", a, b, ratio, "")
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
            "not kept: the accuracy. The proof says that the cut is right: the artefact equals the original with the "
            "removed units silenced. From the whole original it differs, on random inputs, by up to "
            f"{verdict.difference_to_original:.2g} times the largest value. Nothing was repaired or trained after this "
            "cut: do not deploy it as it is.",
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
    model, plan = _near(result.model), _near(result.plan_path)
    return [
        f"{_near(result.folder)} holds model.onnx (the artefact), plan.json (what was cut) and manifest.json (what was "
        "asked, reached, proved and measured). To go on:",
        f"  {command} verify {original} {model} {plan} {shapes}",
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
    parser = argparse.ArgumentParser(description="Cut, prove and measure an OCR network.")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("out"), help="folder for the artefacts (default: out)"
    )
    parser.add_argument("--duration", type=float, default=9.0, help="seconds of timed work (default: 9)")
    given = parser.parse_args(arguments)
    try:
        from graphprune.errors import GraphpruneError
        from graphprune.latency.measure import MeasureOptions
        from graphprune.report.tables import console
    except ImportError as error:
        print(f"error: {error}; run `make demo`, which installs what is needed", file=sys.stderr)
        return 2
    try:
        demo(given.output, MeasureOptions(duration=given.duration), console())
    except GraphpruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
