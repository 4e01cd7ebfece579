"""TensorRT-RTX engines of originals and of networks pruned to 0.6x of their parameters: sizes and build times.

    python -m benchmarks.tensorrt_builds [--networks resnet18,swin_t] [--precision fp16] [--align 8] [--json FILE]
        [--markdown FILE]

Needs graphprune[zoo,tensorrt]; no GPU: engines are built ahead of time for every target, and not measured. Each network
runs in a process of its own. With --json a network that stands in the file with the same settings is not built again,
so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import (
    guarded,
    last_line,
    load_network,
    machine_line,
    markdown_table,
    peak_rss,
    run_child,
    write_tables,
)

NETWORKS = (
    *("resnet18", "mobilenet_v2", "efficientnet_b0", "bert", "gpt2", "llama", "ocr_detector", "ocr_recogniser"),
    *("densenet121", "resnet50", "swin_t", "vit_b_16"),
)
TARGETS = ("sm86", "sm89", "sm120")
SHARE = 0.6


def examine(name: str, precision: str, align: int) -> dict[str, Any]:
    """One network, in this process: bytes and seconds of original and pruned network for every target."""
    from graphprune.backends.base import BackendOptions
    from graphprune.backends.tensorrt import TensorRTBackend
    from graphprune.backends.tensorrt_options import TensorRTOptions
    from graphprune.ir.store import write_onnx

    network = load_network(name)
    options = TensorRTOptions(
        opt_shapes={key: value.shape for key, value in network.program.examples.items()},
        precision=precision,
        compute_capability=tuple((target,) for target in TARGETS),
    )
    backend = TensorRTBackend()
    with tempfile.TemporaryDirectory(prefix="graphprune-tensorrt-") as scratch:
        result = network.export(Path(scratch) / "pruned", target_params=f"{SHARE}x", align=align, measure=None)
        source = network.source or write_onnx(network.program.model, Path(scratch) / "source.onnx")[-1]
        assert result.verdict is not None
        figures: dict[str, Any] = {
            "precision": precision,
            "align": align,
            "reached": result.reached["params"] / result.original["params"],
            "reached_macs": result.reached["macs"] / result.original["macs"],
            "max_rel": result.verdict.max_rel,
        }
        for kind, model in (("original", source), ("pruned", result.model)):
            folder = Path(scratch) / kind
            folder.mkdir(exist_ok=True)
            built = backend.build(model, folder, BackendOptions(settings=options.settings()))
            figures[kind] = {
                "onnx": model.stat().st_size,
                "layers": built.facts["layers"],
                "kept": built.facts["precision"].get("kept", {}),
                "before": built.facts["seconds_before"],
                "engines": {
                    engine["compute_capability"][0]: {"bytes": engine["bytes"], "seconds": engine["seconds"]}
                    for engine in built.facts["engines"]
                },
            }
            figures["version"] = built.facts["version"]
    figures["peak_rss"] = peak_rss()
    return figures


def _in_child(name: str, precision: str, align: int, timeout: float) -> dict[str, Any]:
    print(f"{name} ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="graphprune-tensorrt-") as folder:
        file = Path(folder) / "figures.json"
        words = ["-m", "benchmarks.tensorrt_builds", "--one", name, "--precision", precision, "--align", str(align)]
        ended = run_child([*words, "--json", str(file)], timeout=timeout)
        if ended.code == 0:
            figures: dict[str, Any] = json.loads(file.read_text())
            return figures
    return {"error": ended.why or last_line(ended.err), "precision": precision, "align": align}


COLUMNS = (
    "network", "params", "MACs", "ONNX MB", *(f"{target} MB" for target in TARGETS), "ratio",
    *(f"{target} build s" for target in TARGETS), "ratio", "prepare + parse s", "layers",
)  # fmt: skip


def row(name: str, figures: dict[str, Any]) -> list[str]:
    """A row of the table: original → pruned."""
    if "error" in figures:
        return [name, figures["error"], *("" for _ in COLUMNS[2:])]
    both = figures["original"], figures["pruned"]

    def engines(key: str, scale: float, digits: int) -> tuple[list[str], str]:
        pairs = [tuple(one["engines"][target][key] for one in both) for target in TARGETS]
        cells = [f"{before / scale:.{digits}f} → {after / scale:.{digits}f}" for before, after in pairs]
        return cells, f"{sum(after for _, after in pairs) / sum(before for before, _ in pairs):.2f}x"

    sizes, size_ratio = engines("bytes", 1e6, 2)
    seconds, seconds_ratio = engines("seconds", 1.0, 1)
    return [
        name,
        f"{figures['reached']:.3f}x",
        f"{figures['reached_macs']:.3f}x",
        " → ".join(f"{one['onnx'] / 1e6:.2f}" for one in both),
        *sizes,
        size_ratio,
        *seconds,
        seconds_ratio,
        " → ".join(f"{one['before']:.1f}" for one in both),
        " → ".join(str(one["layers"]) for one in both),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if every engine was built, else 1."""
    parser = argparse.ArgumentParser(description="TensorRT-RTX engines of originals and pruned networks.")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names with commas between them")
    parser.add_argument("--precision", default="fp16", choices=("fp32", "fp16", "bf16"), help="default: fp16")
    parser.add_argument("--align", type=int, default=8, help="widths in multiples of it (default: 8)")
    parser.add_argument("--json", type=Path, help="keep all figures here, and take what it has")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for one network (default: 1800)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        given.json.write_text(json.dumps(guarded(lambda: examine(given.one, given.precision, given.align))))
        return 0
    rows: dict[str, dict[str, Any]] = {}
    if given.json is not None and given.json.exists():
        rows = json.loads(given.json.read_text(encoding="utf-8"))
    names = given.networks.split(",")
    for name in names:
        have = rows.get(name)
        if have is None or "error" in have or (have["precision"], have["align"]) != (given.precision, given.align):
            rows[name] = _in_child(name, given.precision, given.align, given.timeout)
            if given.json is not None:
                given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    line = machine_line(("onnx", "onnx-ir", "onnx-graphsurgeon", "onnxruntime", "tensorrt-rtx-cu13", "torch"))
    table = markdown_table(COLUMNS, [row(name, rows[name]) for name in names])
    write_tables(
        f"{line} Precision {given.precision}, widths in multiples of {given.align}.\n\n{table}",
        given.markdown,
        rows,
        given.json,
    )
    return int(any("error" in rows[name] for name in names))


if __name__ == "__main__":
    sys.exit(main())
