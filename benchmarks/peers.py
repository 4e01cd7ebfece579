"""Side by side with the peers, network by network, at the same ratio: cut, run again, and held to the same equivalence.

    pip install --no-deps torch-pruning==1.6.1 onnxsim==0.8.1      # besides graphprune[zoo]
    python -m benchmarks.peers torch-pruning [--networks resnet18,swin_t]
    python -m benchmarks.peers onnxsim [--networks ocr_detector,resnet18]
    python -m benchmarks.peers table                               # the table alone

Torch-Pruning as its README has it: ``BasePruner(model, example_inputs, GroupMagnitudeImportance(p=2),
global_pruning=True, pruning_ratio=0.5)``, the layer that makes the output ignored. onnxsim's
``apply_structured_pruning(model, sparsity=0.5)``, which takes ONNX files. graphprune is then asked for the share of the
parameters that the peer kept (0.5 where it kept all or failed), or just above the lowest that exact groups reach.

*equal*: the cut network computes what the original computes with everything removed set to zero (weights, biases,
scales and shifts of norms, of whoever makes or reads the removed channels), to 1e-4 of the outputs' largest magnitude
(plus 1e-2); Torch-Pruning's in float64. "not compared": it cut something that this cannot silence (recurrent cells), or
changed it otherwise. Every network has a process per tool, ended after 150 s of processor time or at 4.5 GB. *s* is
processor time too: building and cutting for Torch-Pruning, cutting for onnxsim, loading to verifying for graphprune.

Rows are lines of JSON in ``docs/peers.jsonl``; those that are there are not run again unless they are named.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, build, export_half, last_line, machine_line, markdown_table, run_child

RESULTS = ROOT / "docs" / "peers.jsonl"
TABLE = ROOT / "docs" / "peers.md"
CPU_S = 150
WALL_S = 600.0
MEMORY = 4_500_000_000
ENOUGH = 1e-4
SMALL = 1e-2  # added to the magnitude, as graphprune's own verification does: outputs close to zero have no accuracy
PEERS = ("torch-pruning", "onnxsim")
Tell = Callable[..., None]


class Incomparable(Exception):
    """Something was cut that cannot be silenced in the original."""


def examine(name: str, tool: str, share: float) -> None:
    """One network with one tool, in this process: an event (a line of JSON on stdout) after every stage."""
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 5))

    def tell(**event: Any) -> None:
        print(json.dumps(event), flush=True)

    if tool == "torch-pruning":
        from benchmarks.peers_torch import torch_pruning

        torch_pruning(*build(name), tell)
    elif tool == "onnxsim":
        from benchmarks.peers_onnx import onnxsim

        onnxsim(name, tell)
    else:
        _graphprune(name, tool, share, tell)


def _graphprune(name: str, tool: str, share: float, tell: Tell) -> None:
    """graphprune on the same network: a module for ``ours-torch-pruning``, the same file for ``ours-onnxsim``."""
    from graphprune.pipeline import load

    start = time.process_time()
    if tool == "ours-onnxsim":
        from models_zoo.variants import onnx_file

        path, inputs = onnx_file(name)
        start = time.process_time()
        network = load(path, inputs=inputs)
    else:
        module, example = build(name)
        start = time.process_time()
        network = load(module, inputs=example)
    tell(builds=True)
    with tempfile.TemporaryDirectory(prefix="graphprune-peers-") as folder:
        half = export_half(network, Path(folder), share)
    verdict, result = half.result.verdict, half.result
    assert verdict is not None
    kept = result.reached["params"] / result.original["params"]
    tell(
        steps=True,
        runs=True,
        kept=kept,
        error=verdict.max_rel,
        equal=verdict.passed,
        seconds=time.process_time() - start,
    )


def in_child(name: str, tool: str, share: float) -> dict[str, Any]:
    """What a tool did with a network, whatever became of its process."""
    words = ["-m", "benchmarks.peers", "one", "--networks", name, "--tool", tool, "--share", str(share)]
    ended = run_child(words, timeout=WALL_S, limit=MEMORY, environment={"OMP_NUM_THREADS": "1"})
    found: dict[str, Any] = {}
    for line in ended.out.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    if ended.code != 0 and "failed" not in found:
        by_signal = f"ended by signal {-ended.code}" if ended.code is not None and ended.code < 0 else ""
        if ended.code in (-24, -9) and not ended.why:
            by_signal = f"more than {CPU_S} s"
        found["failed"] = ended.why or by_signal or last_line(ended.err)
    found["failed"] = " ".join(found.get("failed", "").split())[:160]
    return found


def compare(name: str, peer: str) -> dict[str, Any]:
    """A row: the peer, then graphprune at the share of the parameters that the peer kept."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    theirs = in_child(name, peer, 0.5)
    kept = theirs.get("kept", 1.0)
    asked = round(kept, 3) if kept < 0.99 else 0.5
    ours = in_child(name, f"ours-{peer}", asked)
    return {"network": name, "peer": peer, "machine": machine_line(), "theirs": theirs, "asked": asked, "ours": ours}


def _names(peer: str) -> list[str]:
    from models_zoo import FILES, RECIPES, WIDE, names

    if peer == "torch-pruning":
        listed = {**RECIPES, **WIDE}
        return [name for name, one in listed.items() if one.suite in ("torchvision", "timm", "transformers")]
    return [*(name for name in RECIPES if name.startswith("ocr_")), *FILES, *dict.fromkeys(names.BASES)]


# ----------------------------------------------------------------------------------------------------------- tables


def _mark(found: dict[str, Any], key: str) -> str:
    return "yes" if found.get(key) else "no"


def _equal(found: dict[str, Any]) -> str:
    if not found.get("runs"):
        return ""
    if found.get("equal") is None:
        return "not compared"
    return "yes" if found["equal"] else f"no ({found['error']:.0e})"


def _cells(row: dict[str, Any]) -> list[str]:
    theirs, ours = row["theirs"], row["ours"]
    cells = [row["network"], *(_mark(theirs, key) for key in ("builds", "steps", "runs"))]
    for found in (theirs, ours):
        cells += [
            f"{found['kept']:.2f}x" if "kept" in found else "",
            _equal(found),
            f"{found['seconds']:.1f}" if "seconds" in found else "",
        ]
    remarks = [
        f"{who}: {found['failed']}" for who, found in (("peer", theirs), ("graphprune", ours)) if found["failed"]
    ]
    return [*cells, "; ".join(remarks).replace("|", "\\|")]


def summary(rows: list[dict[str, Any]], peer: str) -> str:
    """How many networks each of both cuts, and rightly."""
    table = []
    for title, key in ((peer, "theirs"), ("graphprune", "ours")):
        found = [row[key] for row in rows]
        cut = [one for one in found if one.get("equal") and one["kept"] <= 0.9]
        seconds = sorted(one["seconds"] for one in found if "seconds" in one)
        table.append(
            [
                title,
                *(str(sum(bool(one.get(stage)) for one in found)) for stage in ("builds", "steps", "runs", "equal")),
                str(len(cut)),
                str(sum(one.get("equal") is False for one in found)),
                str(sum(bool(one.get("runs")) and one.get("equal") is None for one in found)),
                f"{seconds[len(seconds) // 2]:.1f}" if seconds else "",
            ]
        )
    columns = (
        f"of {len(rows)}", "builds", "steps", "runs after", "equal", "equal, ≥ 10 % gone", "differs", "not compared",
        "median s",
    )  # fmt: skip
    return markdown_table(columns, table)


def document(rows: list[dict[str, Any]]) -> str:
    """The whole page."""
    parts = ["# Peers, network by network", "How and what: `benchmarks/peers.py`. Figures in full: peers.jsonl."]
    for peer in PEERS:
        chosen = [row for row in rows if row["peer"] == peer]
        if not chosen:
            continue
        columns = (
            "network", "builds", "steps", "runs after", "kept", "equal", "s",
            "graphprune: kept", "equal", "s", "",
        )  # fmt: skip
        parts += [
            f"## {peer}",
            f"`python -m benchmarks.peers {peer}`. {chosen[-1]['machine']}",
            summary(chosen, peer),
            markdown_table(columns, [_cells(row) for row in chosen]),
        ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if every network asked for has a row in which graphprune's cut is equal, else 1."""
    parser = argparse.ArgumentParser(description="graphprune beside Torch-Pruning and onnxsim.")
    parser.add_argument("what", choices=(*PEERS, "table", "one"), metavar="{torch-pruning,onnxsim,table}")
    parser.add_argument("--networks", help="names with commas between them (default: those without a row)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the rows (default: docs/peers.jsonl)")
    parser.add_argument("--markdown", type=Path, default=TABLE, help="the tables (default: docs/peers.md)")
    parser.add_argument("--tool", help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, default=0.5, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.what == "one":
        examine(given.networks, given.tool, given.share)
        return 0
    lines = given.results.read_text(encoding="utf-8").splitlines() if given.results.is_file() else []
    rows = {(row["peer"], row["network"]): row for row in map(json.loads, lines)}
    made = []
    if given.what != "table":
        every = _names(given.what)
        names = given.networks.split(",") if given.networks else [n for n in every if (given.what, n) not in rows]
        if unknown := [name for name in names if name not in every]:
            parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(every)}")
        for name in names:
            rows[given.what, name] = compare(name, given.what)
            made.append(rows[given.what, name])
            given.results.write_text("".join(json.dumps(row) + "\n" for row in rows.values()), encoding="utf-8")
    given.markdown.write_text(document(list(rows.values())), encoding="utf-8")
    return int(not all(row["ours"].get("equal") for row in made))


if __name__ == "__main__":
    sys.exit(main())
