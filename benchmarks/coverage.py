"""What graphprune finds, cuts and proves in every network of the zoo, and how long each step takes.

    python -m benchmarks.coverage [--networks resnet18,swin_t] [--json FILE] [--markdown FILE]

Needs graphprune[zoo] (torch, torchvision, transformers) for all rows; a network whose packages are missing is a row
that says so. Nothing is downloaded and nothing is trained: all weights but those of the OCR files are random (seed 0).
Each network runs in a process of its own: load, observe, couple, then an export at half the parameters (criterion
magnitude, allocation global, no measurement of latency), verified as always.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import (
    MIB,
    export_half,
    guarded,
    last_line,
    load_network,
    machine_line,
    markdown_table,
    peak_rss,
    run_child,
    write_tables,
)

REPEATS = 5


def examine(name: str) -> dict[str, Any]:
    """One network, in this process: figures by name (seconds, counts, shares, bytes)."""
    import onnx

    from graphprune.coupling.groups import group
    from graphprune.coupling.solve import couple

    network = load_network(name)
    analysis = network.analyze()
    couples = [network.seconds["couple"]]
    for _ in range(REPEATS):
        start = time.perf_counter()
        group(couple(network.program))
        couples.append(time.perf_counter() - start)
    figures: dict[str, Any] = {
        "exact": sum(one.exact for one in analysis.groups),
        "stat": sum(not one.exact for one in analysis.groups),
        "params": analysis.params,
        "macs": analysis.macs,
        "governed_params": analysis.governed_params,
        "governed_macs": analysis.governed_macs,
        "governed_params_with_stat": network.cost.governed(analysis.groups)[0],
        "refusals": sorted(set(analysis.refusals)),
        "refused_nodes": len(analysis.refusals),
        "nodes_before": sum(1 for _ in network.program.model.graph),
        "couple_first": couples[0],
        "couple": min(couples[1:]),
    }
    with tempfile.TemporaryDirectory(prefix="graphprune-coverage-") as folder:
        half = export_half(network, Path(folder))
        result, seconds = half.result, half.result.manifest["seconds"]
        assert result.verdict is not None
        model = onnx.load(result.model, load_external_data=False)
        figures |= {
            "asked": half.asked,
            "lowest": half.lowest,
            "reached": result.reached["params"] / result.original["params"],
            "reached_macs": result.reached["macs"] / result.original["macs"],
            "error": None,
            "max_rel": result.verdict.max_rel,
            "difference_to_original": result.verdict.difference_to_original,
            "nodes_after": len(model.graph.node),
            "seconds": {step: seconds[step] for step in ("load", "observe", "score", "allocate", "shrink", "verify")},
        }
    figures["peak_rss"] = peak_rss()
    return figures


def _in_child(name: str, timeout: float) -> dict[str, Any]:
    print(f"{name} ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="graphprune-coverage-") as folder:
        file = Path(folder) / "figures.json"
        ended = run_child(["-m", "benchmarks.coverage", "--one", name, "--json", str(file)], timeout=timeout)
        if ended.code == 0:
            figures: dict[str, Any] = json.loads(file.read_text())
            return figures
    return {"error": ended.why or last_line(ended.err)}


COLUMNS = (
    "network", "groups exact/stat", "params", "governed params", "governed MACs", "asked", "reached",
    "max. rel. error", "load s", "observe s", "couple ms (first)", "score + allocate s", "shrink s", "verify s",
    "nodes", "refused", "peak RSS",
)  # fmt: skip


def row(name: str, figures: dict[str, Any]) -> list[str]:
    """A row of the table."""
    if figures["error"] is not None:
        return [name, figures["error"], *("" for _ in COLUMNS[2:])]
    seconds = figures["seconds"]
    mark = f" (lowest {figures['lowest']:.3f}x)" if figures["lowest"] is not None else ""
    return [
        name,
        f"{figures['exact']}/{figures['stat']}",
        f"{figures['params'] / 1e6:.2f} M",
        f"{figures['governed_params']:.1%}",
        f"{figures['governed_macs']:.1%}",
        f"{figures['asked']:.2f}x{mark}",
        f"{figures['reached']:.3f}x",
        f"{figures['max_rel']:.1e}",
        f"{seconds['load']:.2f}",
        f"{seconds['observe']:.2f}",
        f"{figures['couple'] * 1e3:.1f} ({figures['couple_first'] * 1e3:.0f})",
        f"{seconds['score'] + seconds['allocate']:.2f}",
        f"{seconds['shrink']:.2f}",
        f"{seconds['verify']:.2f}",
        f"{figures['nodes_before']} → {figures['nodes_after']}",
        str(figures["refused_nodes"]),
        f"{figures['peak_rss'] / MIB:.0f} MiB",
    ]


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if every network was cut and proved, else 1."""
    from models_zoo import RECIPES, WIDE, ZOO

    parser = argparse.ArgumentParser(description="Coverage, correctness and time for every network of the zoo.")
    parser.add_argument("--wide", action="store_true", help="the networks of models_zoo.wide")
    parser.add_argument("--networks", help="names with commas between them (default: all)")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one network (default: 900)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        given.json.write_text(json.dumps(guarded(lambda: examine(given.one))), encoding="utf-8")
        return 0
    names = given.networks.split(",") if given.networks else list(WIDE if given.wide else RECIPES)
    if unknown := [name for name in names if name not in ZOO]:
        parser.error(f"unknown: {', '.join(unknown)}; the zoo has {', '.join(ZOO)}")
    machine = machine_line()
    found = {name: _in_child(name, given.timeout) for name in names}
    table = markdown_table(COLUMNS, [row(name, figures) for name, figures in found.items()])
    write_tables(f"{machine}\n\n{table}", given.markdown, {"machine": machine, "networks": found}, given.json)
    return int(any(figures["error"] is not None for figures in found.values()))


if __name__ == "__main__":
    sys.exit(main())
