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

import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import Sweep, export_half, load_network, peak_rss, plain, suites
from benchmarks.coverage_table import document
from models_zoo import HELD_OUT

if TYPE_CHECKING:
    from graphprune.pipeline import Analysis, Network

OPERATORS = "onnx_operators"
ROUNDED = ("qdq", "dynamic", "float16")
EXACT_RTOL = 1e-4  # of what is compared in float64: no more than for float32 networks
_LETTER = re.compile(r"^\w+ is(?= never cut)")
#: Reasons that say little where there are others.
_IDLE = ("no weights make or consume it", "it is a fixed number of parts", "there is a single index")
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

    ``status`` is ``equal``, or what went wrong: ``not made`` (the zoo's or a tool's fault), ``not exported``,
    ``nothing prunable``, ``not equal``, ``unproved``, ``failed``; ``reason`` says more.
    """
    from graphprune.errors import GraphpruneError, NothingPrunableError, VerificationError
    from models_zoo import recipe

    if name == OPERATORS:
        operators(tell)
        return
    chosen = recipe(name)
    try:
        network = load_network(name)
    except GraphpruneError as error:
        tell({"status": "not exported" if chosen.kind == "torch" else "not read", "reason": str(error)})
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
            half = export_half(network, Path(folder), verify=chosen.suite not in ROUNDED)
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
        verdict = result.verdict if chosen.suite not in ROUNDED else _in_float64(network, result, tell)
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
            why = plain(str(error)).replace(f"'{path.name}': ", "").partition(" node with name")[0]
            rows[name] = {"status": "not read" if isinstance(error, InputError) else "failed", "reason": why}
    failed = [name for name, row in rows.items() if row["status"] == "failed"]
    tell({"tests": rows, "status": "failed" if failed else "equal", "reason": ", ".join(failed)})


SWEEP = Sweep(
    "benchmarks.coverage",
    "Coverage, correctness and time for every network of the zoo.",
    {**suites(), **{name: one.suite for name, one in HELD_OUT.items()}, OPERATORS: OPERATORS},
    examine,
    document,
    "coverage",
)

if __name__ == "__main__":
    sys.exit(SWEEP.main())
