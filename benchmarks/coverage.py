"""What graphprune finds, cuts and proves in every network of the zoo, and how long each step takes.

    python -m benchmarks.coverage                          # every network without a row yet, then the table
    python -m benchmarks.coverage --networks resnet18,unet # these again
    python -m benchmarks.coverage --suites timm,qdq        # these suites' networks again
    python -m benchmarks.coverage --table                  # the table alone

Needs graphprune[zoo] for all rows; a network whose packages are missing is a row that says so. Nothing is downloaded
and nothing is trained: all weights but those of the files of packages are random (seed 0).

Every network runs in a process of its own, which is ended after 600 s or at 8 GB: load, observe, couple, then an export
at half the parameters (criterion magnitude, allocation global, no measurement of latency), verified as always: on ONNX
Runtime, what is quantised or in float16 in float64 on the reference implementation as well, which decides there.

Rows are lines of JSON in ``docs/coverage.jsonl``, one per network, replaced when a network is run again: a sweep that
was interrupted goes on where it stopped, and sweeps of parts make one table, ``docs/coverage.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import ROOT, export_half, last_line, load_network, machine_line, peak_rss, run_child
from benchmarks.coverage_table import document

if TYPE_CHECKING:
    from graphprune.pipeline import Analysis, Network

RESULTS = ROOT / "docs" / "coverage.jsonl"
TABLE = ROOT / "docs" / "coverage.md"
TIMEOUT_S = 600.0
MEMORY = 8_000_000_000
OPERATORS = "onnx_operators"
ROUNDED = ("qdq", "dynamic", "float16")
EXACT_RTOL = 1e-4  # of what is compared in float64: no more than for float32 networks
_LETTER = re.compile(r"^\w+ is(?= never cut)")
#: Reasons that say little where there are others.
_IDLE = ("no weights make or consume it", "it is a fixed number of parts", "there is a single index")
_FOLDERS = re.compile(r"'/(?:[^'/]+/)+")
SEEN = 1e-6  # a cut that changes the outputs by no more than this proves nothing


def ungoverned(network: Network, analysis: Analysis) -> list[dict[str, Any]]:
    """Why parameters stand on no exact group: shares by reason, largest first; ``stat``: a stat group holds them."""
    from graphprune.coupling.space import find, free_leaves, leaves

    grouping = network.grouping
    exact = {one.id for one in analysis.groups if one.exact}
    found: Counter[tuple[bool, str]] = Counter()
    for name, (number, spaces) in network.cost.weights:
        placed = {
            grouping.place[part][0]: part for one in spaces for part in free_leaves(one) if part in grouping.place
        }
        if placed.keys() & exact:
            continue
        if placed:
            why = {_say(part.stat) for part in placed.values() if part.stat is not None}
        else:
            held = [part for one in grouping.coupling.of(name) for part in leaves(find(one)) if part.n > 1]
            why = {_say(part.refusal) for part in held}
            why = {one for one in why if one not in _IDLE} or why
        found[bool(placed), " / ".join(sorted(why))] += number * prod(one.n for one in spaces)
    return [
        {"share": size / analysis.params, "stat": stat, "why": why} for (stat, why), size in found.most_common() if size
    ]


def _say(refusal: Any) -> str:
    """A reason without the node's name: many nodes have the same."""
    if refusal is None:
        return "no weights make or consume it"
    reason = _LETTER.sub("the axis is", str(refusal.reason))
    return f"{refusal.op}: {reason}" if refusal.op else reason


def examine(name: str, tell: Callable[[dict[str, Any]], None]) -> None:
    """One network, in this process: ``tell`` is given more figures after every stage (seconds, counts, shares, bytes).

    ``status`` is ``equal``, or what went wrong: ``missing`` (packages), ``not made`` (the zoo's or a tool's fault),
    ``not exported``, ``nothing prunable``, ``not equal``, ``unproved``, ``failed``; ``reason`` says more.
    """
    from graphprune.errors import GraphpruneError, NothingPrunableError, VerificationError
    from models_zoo import ZOO

    recipe = ZOO[name]
    if missing := recipe.missing():
        tell({"status": "missing", "reason": f"needs {', '.join(missing)}"})
        return
    tell({"status": "failed", "reason": "crashed while it was loaded"})
    try:
        network = load_network(name)
    except GraphpruneError as error:
        tell({"status": "not exported" if recipe.kind == "torch" else "not read", "reason": str(error)})
        return
    except Exception as error:  # the tools that make variants raise what they like; it is this network's row
        tell({"status": "not made", "reason": f"{type(error).__name__}: {error}"})
        return
    analysis = network.analyze()
    seconds = dict(network.seconds)
    tell(
        {
            "reason": "crashed while it was cut",
            "exact": sum(one.exact for one in analysis.groups),
            "stat": sum(not one.exact for one in analysis.groups),
            "kinds": dict(Counter(one.kind for one in analysis.groups)),
            "params": analysis.params,
            "macs": analysis.macs,
            "governed_params": analysis.governed_params,
            "governed_macs": analysis.governed_macs,
            "governed_params_with_stat": network.cost.governed(analysis.groups)[0],
            "ungoverned": ungoverned(network, analysis)[:4],
            "refused": len(analysis.refusals),
            "refusals": [f"{text} ({count})" for text, count in Counter(map(_short, analysis.refusals)).most_common(3)],
            "nodes": sum(1 for _ in network.program.model.graph),
            "seconds": seconds,
            "peak_rss": peak_rss(),
        }
    )
    with tempfile.TemporaryDirectory(prefix="graphprune-coverage-") as folder:
        try:
            half = export_half(network, Path(folder), verify=recipe.suite not in ROUNDED)
        except NothingPrunableError as error:
            tell({"status": "nothing prunable", "reason": str(error)})
            return
        except VerificationError as error:
            tell({"status": "not equal", "reason": str(error)})
            return
        except GraphpruneError as error:
            tell({"status": "failed", "reason": f"{type(error).__name__}: {error}"})
            return
        result = half.result
        seconds |= {step: result.manifest["seconds"][step] for step in ("score", "allocate", "shrink", "verify")}
        tell(
            {
                "asked": half.asked,
                "lowest": half.lowest,
                "reached": result.reached["params"] / result.original["params"],
                "reached_macs": result.reached["macs"] / result.original["macs"],
                "seconds": seconds,
                "reason": "crashed while it was verified",
            }
        )
        verdict = result.verdict if recipe.suite not in ROUNDED else _in_float64(network, result, tell)
    if verdict is None:
        return
    proved = verdict.passed and verdict.difference_to_original > SEEN
    tell(
        {
            "max_rel": verdict.max_rel,
            "dtype": verdict.dtype,
            "difference_to_original": verdict.difference_to_original,
            "peak_rss": peak_rss(),
            "status": "equal" if proved else "not equal" if not verdict.passed else "unproved",
            "reason": ""
            if proved
            else f"differs by {verdict.max_rel:.1e} in {verdict.worst!r}"
            if not verdict.passed
            else "the cut does not show in the outputs: there is nothing to compare",
        }
    )


def _in_float64(network: Network, result: Any, tell: Callable[[dict[str, Any]], None]) -> Any:
    """The verdict of the reference implementation, or of the runtime where that one lacks an operator."""
    from graphprune.errors import GraphpruneError
    from graphprune.frontends.onnx import read_onnx
    from graphprune.passes.files import read_plan, saved_members
    from graphprune.passes.verify import Verify
    from graphprune.pipeline import verify_program

    members, pruned = saved_members(read_plan(result.plan_path)), read_onnx(result.model)
    found = None
    for dtype, check in (("float64", Verify(samples=1, rtol=EXACT_RTOL)), ("float32", Verify())):
        try:
            verdict = verify_program(network.program, members, pruned, check, dtype)
        except GraphpruneError as error:
            tell({f"no_{dtype}": str(error), "status": "failed", "reason": str(error)})
            continue
        tell({f"max_rel_{dtype}": verdict.max_rel})
        found = found or verdict
    return found


def _plain(reason: str) -> str:
    """A reason in one line, files by their names alone."""
    return _FOLDERS.sub("'", " ".join(reason.split()))[:300]


def _short(refusal: str) -> str:
    """A refusal without its node's name."""
    head, quote, rest = refusal.partition(" '")
    return f"{head}: {rest.partition(': ')[2]}" if quote and ": " in rest else refusal


def operators(tell: Callable[[dict[str, Any]], None]) -> None:
    """The onnx package's operator test models that hold a weight, all in this process, at half their parameters."""
    from graphprune.errors import GraphpruneError, InputError, NothingPrunableError
    from graphprune.pipeline import load
    from models_zoo.files import backend_tests, test_inputs

    rows: dict[str, dict[str, str]] = {}
    for name, path in backend_tests().items():
        try:
            network = load(path, inputs=test_inputs(path))
            with tempfile.TemporaryDirectory(prefix="graphprune-coverage-") as folder:
                verdict = export_half(network, Path(folder)).result.verdict
                assert verdict is not None
                rows[name] = {"status": "equal", "reason": f"{verdict.max_rel:.1e}"}
        except NothingPrunableError as error:
            rows[name] = {"status": "nothing prunable", "reason": _short(str(error))}
        except GraphpruneError as error:
            why = _plain(str(error)).replace(f"'{path.name}': ", "").partition(" node with name")[0]
            rows[name] = {"status": "not read" if isinstance(error, InputError) else "failed", "reason": why}
    failed = [name for name, row in rows.items() if row["status"] == "failed"]
    tell({"tests": rows, "status": "failed" if failed else "equal", "reason": ", ".join(failed)})


def in_child(name: str, timeout: float) -> dict[str, Any]:
    """A network's row, whatever becomes of its process."""
    from models_zoo import ZOO

    print(f"{name} ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="graphprune-coverage-") as folder:
        file = Path(folder) / "figures.json"
        words = ["-m", "benchmarks.coverage", "--one", name, "--into", str(file)]
        ended = run_child(words, timeout=timeout, limit=MEMORY)
        figures = json.loads(file.read_text()) if file.is_file() else {}
        if ended.code != 0:
            why = ended.why or f"{figures.get('reason', '')}: {last_line(ended.err)}"
            figures |= {"status": "failed", "reason": why}
    figures["reason"] = _plain(str(figures.get("reason", "")))
    suite = ZOO[name].suite if name in ZOO else OPERATORS
    return {"network": name, "suite": suite, "machine": machine_line(), **figures}


def read_rows(file: Path) -> dict[str, dict[str, Any]]:
    """The rows by network; of two with one name the later one."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {row["network"]: row for row in map(json.loads, lines)}


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """All rows in the zoo's order, in place of the file."""
    from models_zoo import ZOO

    order = {name: i for i, name in enumerate(ZOO)}
    known = [row for row in rows if row["network"] in order or row["network"] == OPERATORS]
    known.sort(key=lambda row: order.get(row["network"], len(order)))
    temporary = file.with_suffix(".part")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in known), encoding="utf-8")
    os.replace(temporary, file)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if every network asked for was cut and proved, else 1."""
    from models_zoo import ZOO

    parser = argparse.ArgumentParser(description="Coverage, correctness and time for every network of the zoo.")
    parser.add_argument("--networks", help="names with commas between them (default: those without a row)")
    parser.add_argument("--suites", help="suites with commas between them: all of their networks")
    parser.add_argument("--table", action="store_true", help="write the table from the rows that are there")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the rows (default: docs/coverage.jsonl)")
    parser.add_argument("--markdown", type=Path, default=TABLE, help="the table (default: docs/coverage.md)")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds for one network (default: 600)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        told: dict[str, Any] = {}

        def tell(more: dict[str, Any]) -> None:
            told.update(more)
            given.into.write_text(json.dumps(told), encoding="utf-8")

        operators(tell) if given.one == OPERATORS else examine(given.one, tell)
        return 0
    rows = read_rows(given.results)
    every = [*ZOO, OPERATORS]
    if given.networks or given.suites:
        suites = (given.suites or "").split(",")
        names = (given.networks or "").split(",") if given.networks else []
        names += [name for name, recipe in ZOO.items() if recipe.suite in suites]
    else:
        names = [] if given.table else [name for name in every if name not in rows]
    if unknown := [name for name in names if name not in every]:
        parser.error(f"unknown: {', '.join(unknown)}; the zoo has {', '.join(every)}")
    for name in names:
        rows[name] = in_child(name, given.timeout)
        write_rows(given.results, rows.values())
    given.markdown.write_text(document(list(read_rows(given.results).values())), encoding="utf-8")
    return int(any(rows[name]["status"] != "equal" for name in names))


if __name__ == "__main__":
    sys.exit(main())
