"""Latency targets: are they met on the measured artefact, and how well do the step curves predict?

    python -m benchmarks.latency                                       # every cell without a row yet, then the tables
    python -m benchmarks.latency --networks resnet50 --threads 1       # these cells again
    python -m benchmarks.latency --table                               # the tables alone

Per network, backend and number of threads one process: step curves are measured from nothing (the cache is a folder of
its own), then one artefact is made per target from the same curves, as ``export --target-latency 0.8x,0.6x,0.4x`` does.
The same process then predicts random plans that the curves have not seen (widths of any kind, and multiples of 8) and
measures them in turn with the original, and makes an artefact at the middle target with the allocators that others use
(uniform, global by MACs, global with widths in multiples of 8): at equal measured latency, what importance is kept?
Denormal numbers are taken for zero throughout: networks with random weights have more of them the more is cut.

Rows are lines of JSON in ``docs/latency.jsonl``, replaced when a cell is measured again; ``docs/latency.md`` is made of
them. Measure on an idle machine: what else it did stands in every row.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import ROOT, last_line, load_network, machine_line, markdown_table, run_child

if TYPE_CHECKING:
    from graphprune.export import ExportResult
    from graphprune.pipeline import Network

RESULTS = ROOT / "docs" / "latency.jsonl"
TABLE = ROOT / "docs" / "latency.md"
NETWORKS = ("resnet50", "mobilenet_v2", "densenet121", "deit_tiny", "bert_mini", "ocr_recogniser")
OPENVINO = ("resnet50", "mobilenet_v2", "ocr_recogniser")
COMPARED = ("resnet50", "mobilenet_v2", "ocr_recogniser")  # with other allocators
TARGETS = ("0.8x", "0.6x", "0.4x")
MIDDLE = "0.6x"
PLANS = 36  # random plans per cell
TIMEOUT_S = 3600.0
OTHERS = {"uniform": {}, "global": {}, "global, align 8": {"align": 8}}


def cell(name: str, backend: str, threads: int) -> dict[str, Any]:
    """All of one cell, in this process."""
    from graphprune.backends.base import BackendOptions
    from graphprune.errors import GraphpruneError
    from graphprune.export import export_family
    from graphprune.latency.measure import MeasureOptions
    from graphprune.options import ExportOptions

    network = load_network(name)
    timing = MeasureOptions(
        backend=backend,
        backend_options=BackendOptions(threads=threads, denormals=False),
        max_width=0.03,
        max_duration=20.0,
    )
    row: dict[str, Any] = {"network": name, "backend": backend, "threads": threads, "targets": {}, "others": {}}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRAPHPRUNE_CACHE"] = str(Path(folder) / "cache")
        options = ExportOptions(measure=timing, backend=backend, backend_options=timing.backend_options)
        for text in TARGETS:
            start = time.perf_counter()
            try:
                (result,) = export_family(network, Path(folder) / "out", options, [text])
                row["targets"][text] = _reached(result) | {"seconds": time.perf_counter() - start}
            except GraphpruneError as error:
                row["targets"][text] = {"error": f"{type(error).__name__}: {error}"}
        row |= _predictions(network, timing, Path(folder))
        compared = name in COMPARED and backend == "onnxruntime" and threads == 1
        for words, extra in OTHERS.items() if compared else ():
            changed = ExportOptions(
                measure=timing, backend=backend, backend_options=timing.backend_options,
                allocation=words.split(",")[0], **extra,
            )  # fmt: skip
            try:
                (result,) = export_family(network, Path(folder) / "others", changed, [MIDDLE])
                row["others"][words] = _reached(result)
            except GraphpruneError as error:
                row["others"][words] = {"error": f"{type(error).__name__}: {error}"}
    return row


def _reached(result: ExportResult) -> dict[str, Any]:
    met, found = result.met, result.comparison
    assert met is not None and found is not None and result.verdict is not None
    return {
        "share": met.share,
        "ratio": found.ratio,
        "low": found.ratio_low,
        "high": found.ratio_high,
        "ms": [found.a.median_ms, found.b.median_ms],
        "rounds": len(met.rounds),
        "first": {"predicted": met.rounds[0].predicted, "ratio": met.rounds[0].ratio},
        "kept": met.kept,
        "method": met.method,
        "params": result.reached["params"] / result.original["params"],
        "macs": result.reached["macs"] / result.original["macs"],
        "error": result.verdict.max_rel,
        "noise": str(found.noise),
    } | {"profile_seconds": result.manifest["latency_target"]["profile_seconds"]}


def _predictions(network: Network, timing: Any, folder: Path) -> dict[str, Any]:
    """Random plans: predicted and measured share of the original's time."""
    from graphprune.ir.store import write_onnx
    from graphprune.latency.profile import ProfileOptions, measure_scenarios, random_plans
    from graphprune.latency_model import LatencyModel
    from graphprune.passes.selection import Selection
    from graphprune.passes.shrink import Shrink

    groups = Selection()(network.grouping, network.program.parameter_names)
    source = network.source
    if source is None:
        source = folder / "source.onnx"
        write_onnx(network.program.model, source)

    def write(keep: Any, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        write_onnx(Shrink(keep)(network.grouping), path)

    options = ProfileOptions(timing.backend, timing.backend_options, seed=1)
    sizes = {one.id: one.size for one in network.grouping.groups}
    feeds = network.program.examples
    model = LatencyModel.of(network.grouping, groups, source, write, feeds, options)  # from the cache
    found = []
    for kind, plans in random_plans(groups, PLANS, seed=1).items():
        for scenario in measure_scenarios(model.layers, sizes, source, write, feeds, options, plans):
            counts = {key: float(count) for key, count in scenario.counts.items()}
            found.append({"kind": kind, "predicted": model.share(counts), "ratio": scenario.ratio})
    grains = [f"{one.operator} {one.letter}: {one.block}/{one.alignment}" for one in model.curves.grains
              if one.block > 1 or one.alignment > 1]  # fmt: skip
    return {"plans": found, "grains": grains, "layers": len(model.layers), "groups": len(groups)}


def document(rows: list[dict[str, Any]]) -> str:
    """``docs/latency.md``."""
    rows = sorted(rows, key=lambda row: (row["backend"], row["threads"], row["network"]))
    met, cells, small, wide = 0, 0, 0, 0
    targets, others, errors = [], [], []
    for row in rows:
        for text, one in row["targets"].items():
            cells += 1
            where = [row["network"], row["backend"], str(row["threads"]), text]
            if "ratio" not in one:
                targets.append([*where, "-", "-", "-", "-", "-", "-", "-", one["error"].replace("|", "/")])
                continue
            held = one["high"] <= one["share"]
            met += held
            below = one["ratio"] < one["share"] * 0.95
            small += held and below
            wide += held and one["low"] < one["share"] * 0.95
            targets.append(
                [*where, f"{one['ratio']:.3f}", f"[{one['low']:.3f}, {one['high']:.3f}]",
                 f"{one['ms'][0]:.2f} → {one['ms'][1]:.2f}", f"{one['kept']:.1%}", f"{one['macs']:.2f}",
                 f"{one['error']:.0e}", str(one["rounds"]),
                 "missed" if not held else "met, > 5 % below" if below else "met"]
            )  # fmt: skip
        ours = row["targets"].get(MIDDLE, {})
        for words, one in row["others"].items():
            if "ratio" in one and "ratio" in ours:
                others.append([row["network"], words, f"{one['ratio']:.3f}", f"{one['kept']:.1%}", f"{one['macs']:.2f}",
                               f"{ours['ratio']:.3f}", f"{ours['kept']:.1%}", f"{ours['macs']:.2f}"])  # fmt: skip
            else:
                others.append([row["network"], words, one.get("error", "-").replace("|", "/"), *["-"] * 5])
        for kind in dict.fromkeys(one["kind"] for one in row["plans"]):
            off = [abs(one["predicted"] / one["ratio"] - 1) for one in row["plans"] if one["kind"] == kind]
            errors.append([row["network"], row["backend"], str(row["threads"]), kind, str(len(off)),
                           f"{np.median(off):.1%}", f"{np.quantile(off, 0.95):.1%}"])  # fmt: skip
    off = [abs(one["predicted"] / one["ratio"] - 1) for row in rows for one in row["plans"]]
    grains = [[row["network"], row["backend"], str(row["threads"]), ", ".join(row["grains"]) or "none"] for row in rows]
    parts = [
        "# Latency targets\n",
        "Made by `python -m benchmarks.latency`; see there what is measured and how.\n",
        f"{machine_line()}\n",
        f"**Targets**: {met} of {cells} cells met (the upper end of the ratio's interval within the target), {small} "
        f"of them more than 5 % below it, {wide} with the lower end of the interval.\n",
        markdown_table(["network", "backend", "threads", "target", "ratio", "interval", "ms", "importance kept", "MACs",
                        "proof", "rounds", ""], targets),
        f"\n**Predictions**: {len(off)} random plans, median error {np.median(off):.1%}, 95th percentile "
        f"{np.quantile(off, 0.95):.1%}.\n" if off else "",
        markdown_table(["network", "backend", "threads", "widths", "plans", "median error", "95th percentile"], errors),
        "\n**What was found about widths**: operator, axis, block/alignment.\n",
        markdown_table(["network", "backend", "threads", "grains"], grains),
        f"\n**Other allocators at the same target** ({MIDDLE} measured, one thread, ONNX Runtime): importance kept.\n",
        markdown_table(["network", "allocation", "ratio", "kept", "MACs", "knapsack: ratio", "kept", "MACs"], others),
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _read() -> dict[str, dict[str, Any]]:
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    rows = [json.loads(line) for line in lines]
    return {_key(row["network"], row["backend"], row["threads"]): row for row in rows}


def _key(name: str, backend: str, threads: int) -> str:
    return f"{name}/{backend}/{threads}"


def main() -> None:
    """Measure what is missing or named, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--networks", help="names, separated by commas")
    parser.add_argument("--backends", default="onnxruntime,openvino")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--table", action="store_true", help="only write the tables")
    parser.add_argument("--cell", nargs=3, metavar=("NETWORK", "BACKEND", "THREADS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(cell(options.cell[0], options.cell[1], int(options.cell[2]))))
        return
    rows = _read()
    names = options.networks.split(",") if options.networks else NETWORKS
    for backend in () if options.table else options.backends.split(","):
        for threads in map(int, options.threads.split(",")):
            for name in names:
                key = _key(name, backend, threads)
                left_out = backend == "openvino" and (name not in OPENVINO or threads != 1)
                if (key in rows or left_out) and not options.networks:
                    continue
                print(f"{key} ...", file=sys.stderr, flush=True)
                ended = run_child(
                    ["-m", "benchmarks.latency", "--cell", name, backend, str(threads)], timeout=TIMEOUT_S
                )
                if ended.code != 0:
                    print(f"{key}: {ended.why or last_line(ended.err)}", file=sys.stderr, flush=True)
                    continue
                rows[key] = json.loads(ended.out.strip().splitlines()[-1])
                RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows.values()), encoding="utf-8")
                TABLE.write_text(document(list(rows.values())), encoding="utf-8")
    TABLE.write_text(document(list(rows.values())), encoding="utf-8")


if __name__ == "__main__":
    main()
