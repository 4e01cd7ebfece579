"""How long it takes to find what must be cut together: graphprune beside Torch-Pruning, in one run.

    pip install --no-deps torch-pruning==1.6.1          # besides graphprune[zoo]
    python -m benchmarks.compile_speed [--networks resnet18,swin_t] [--json FILE] [--markdown FILE]

Per network one process, in which both take turns (graphprune, Torch-Pruning, graphprune, ...) on the same module:

- graphprune: ``group(couple(program))`` on the observed program; loading (tracing by torch.export, conversion) and
  observing (one run) are done once and timed apart;
- Torch-Pruning: ``DependencyGraph().build_dependency(model, example_inputs)``, which traces by a run with autograd, and
  then ``list(get_all_groups())`` with its defaults.

Both have one thread. The sum of a row's graphprune times stands beside the sum of its Torch-Pruning times. A process
that takes more than 150 s or 4.5 GB is ended, and the row says so; where turns are slow there are fewer of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import build, last_line, machine_line, markdown_table, run_child, write_tables

REPEATS = 7
ENOUGH_S = 60.0  # after so many seconds no more turns are taken
TIMEOUT_S = 150.0
MEMORY = 4_500_000_000


def _say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def race(name: str, repeats: int, *, peer: bool) -> None:
    """One network, in this process: an event (a line of JSON on stdout) for every time taken."""
    import torch

    from graphprune.coupling.groups import group
    from graphprune.coupling.solve import couple
    from graphprune.pipeline import load

    torch.set_num_threads(1)  # what other processes do matters less so, and graphprune's coupling has one thread
    module, example_inputs = build(name)
    network = load(module, inputs=example_inputs)
    _say(load=network.seconds["load"], observe=network.seconds["observe"])
    for parameter in module.parameters():
        parameter.requires_grad_(True)  # the peer traces by autograd
    begin = time.perf_counter()
    for turn in range(repeats + 1):  # the first one warms both up
        if turn > 1 and time.perf_counter() - begin > ENOUGH_S:
            break
        start = time.perf_counter()
        groups = group(couple(network.program)).groups
        _say(turn=turn, couple=time.perf_counter() - start, groups=len(groups))
        if peer:
            try:
                _peer_turn(module, example_inputs, turn)
            except Exception as error:  # whatever it raises is its answer for this network
                _say(peer_error=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
                peer = False


def _peer_turn(module: Any, example_inputs: Any, turn: int) -> None:
    import torch_pruning  # type: ignore[import-untyped]

    graph = torch_pruning.DependencyGraph()
    start = time.perf_counter()
    graph.build_dependency(module, example_inputs=example_inputs)
    built = time.perf_counter()
    _say(turn=turn, peer_build=built - start)
    groups = list(graph.get_all_groups())
    _say(turn=turn, peer_collect=time.perf_counter() - built, peer_groups=len(groups))


def _events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def compare(name: str, repeats: int) -> dict[str, Any]:
    """A network's times (seconds, lists without the warm-up) and the peer's error, if any."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    words = ["-m", "benchmarks.compile_speed", "--one", name, "--repeats", str(repeats)]
    ended = run_child(words, timeout=TIMEOUT_S, limit=MEMORY)
    events = _events(ended.out)
    error = next((event["peer_error"] for event in events if "peer_error" in event), "")
    if ended.code is None or ended.code < 0:  # ended for its time or memory, or crashed
        # The peer's doing if graphprune goes through all its turns alone.
        error = error or ended.why or f"ended by signal {-(ended.code or 0)}"
        ended = run_child([*words, "--without-peer"], timeout=TIMEOUT_S, limit=MEMORY)
        events = [event for event in events if "peer_build" in event or "peer_collect" in event] + _events(ended.out)
    if ended.code != 0:
        return {"error": ended.why or last_line(ended.err), "peer_error": error}

    def times(key: str) -> list[float]:
        found = [event for event in events if key in event]
        # Where the peer came no further than the first turn, that one is all there is.
        return [event[key] for event in found if event["turn"] > 0 or len(found) == 1]

    loads = next(event for event in events if "load" in event)
    return {
        "error": None,
        "load": loads["load"],
        "observe": loads["observe"],
        "couple": times("couple"),
        "groups": next(event["groups"] for event in events if "groups" in event),
        "peer_error": error,
        "peer_build": times("peer_build"),
        "peer_collect": times("peer_collect"),
        "peer_groups": next((event["peer_groups"] for event in events if "peer_groups" in event), None),
    }


COLUMNS = (
    "network", "graphprune: load s", "observe s", "couple + group ms", "groups",
    "Torch-Pruning: build ms", "get_all_groups ms", "groups", "turns",
)  # fmt: skip


def _spread(seconds: list[float]) -> str:
    if not seconds:
        return ""
    median, low, high = statistics.median(seconds), min(seconds), max(seconds)
    return f"{median * 1e3:.1f} [{low * 1e3:.1f}, {high * 1e3:.1f}]"


def row(name: str, figures: dict[str, Any]) -> list[str]:
    """A row of the table: medians with minimum and maximum."""
    if figures["error"] is not None:
        return [name, figures["error"], *("" for _ in COLUMNS[2:])]
    built, collected = figures["peer_build"], figures["peer_collect"]
    return [
        name,
        f"{figures['load']:.2f}",
        f"{figures['observe']:.2f}",
        _spread(figures["couple"]),
        str(figures["groups"]),
        _spread(built) or figures["peer_error"],
        _spread(collected) or (figures["peer_error"] if built else ""),
        str(figures["peer_groups"]) if collected else "",
        str(len(figures["couple"])),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if graphprune handled every network, else 1."""
    from models_zoo import RECIPES

    vision = [name for name, recipe in RECIPES.items() if "torchvision" in recipe.needs]
    parser = argparse.ArgumentParser(description="graphprune's coupling beside Torch-Pruning's graph building.")
    parser.add_argument("--networks", help="names with commas between them (default: torchvision's)")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"turns of each (default: {REPEATS})")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--without-peer", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        race(given.one, given.repeats, peer=not given.without_peer)
        return 0
    names = given.networks.split(",") if given.networks else vision
    if unknown := [name for name in names if name not in RECIPES]:
        parser.error(f"unknown: {', '.join(unknown)}; the zoo has {', '.join(RECIPES)}")
    machine = machine_line(("numpy", "onnx-ir", "onnxruntime", "torch", "torchvision", "torch-pruning"))
    found = {name: compare(name, given.repeats) for name in names}
    table = markdown_table(COLUMNS, [row(name, figures) for name, figures in found.items()])
    write_tables(f"{machine}\n\n{table}", given.markdown, {"machine": machine, "networks": found}, given.json)
    return int(any(figures["error"] is not None for figures in found.values()))


if __name__ == "__main__":
    sys.exit(main())
