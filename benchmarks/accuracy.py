"""Accuracy without retraining: every network, method, target, number of calibration samples and seed is a cell.

    python -m benchmarks.accuracy                                    # every cell without a row yet, then the tables
    python -m benchmarks.accuracy --networks glyph_vit --suites peers
    python -m benchmarks.accuracy --methods obs,magnitude --repairs refit --seeds 1 --again
    python -m benchmarks.accuracy --table                            # the tables alone
    python -m benchmarks.accuracy --list                             # the cells that have no row yet

Needs graphprune[zoo]; the peers ``pip install --no-deps torch-pruning==1.6.1 onnxsim==0.8.1``. The small networks are
trained on first use (minutes each): ``python -m models_zoo.small train all``, ``python -m models_zoo.tiny_text train``.

A cell exports the network at its target, then judges the artefact on the test data by ONNX Runtime (see
``benchmarks.accuracy_tasks``). The seed draws the calibration samples and the random criterion; where neither takes
part, seed 0 alone is run. Rows are lines of JSON in ``docs/accuracy.jsonl``, appended as cells end, so that a run that
was interrupted goes on where it stopped; of two rows of a cell the later one counts. ``docs/accuracy.md`` is made of
them. Every network is run in a process of its own. Latency targets need an idle machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.accuracy_peers import PEERS, cut
from benchmarks.accuracy_table import document
from benchmarks.accuracy_tasks import TASKS, Feeds, Metrics, Run, Task, batched, folded, open_run
from benchmarks.common import ROOT, machine_line, peak_rss
from graphprune.errors import GraphpruneError

if TYPE_CHECKING:
    from graphprune.latency.measure import MeasureOptions
    from graphprune.pipeline import Network

__all__ = ["CRITERIA", "Cell", "cells", "main", "run_cell"]

RESULTS = ROOT / "docs" / "accuracy.jsonl"
TABLE = ROOT / "docs" / "accuracy.md"
SEEDS = 3
#: kind of network -> calibration samples, and how many else are tried
SAMPLES: Mapping[str, tuple[int, tuple[int, ...]]] = {
    "small": (256, (0, 64, 1024)),
    "language": (256, (0, 64, 1024)),
    "ocr": (256, (64,)),
    "detector": (64, (16,)),
    "file": (256, ()),
}
REPAIRS = ("none", "bias", "refit")
THREADS = 1  # of what is measured
RESAMPLES = 1000  # of the bootstrap over test samples


@dataclass(frozen=True)
class Method:
    """A criterion with its options, whether it looks at activations, and how widths are allocated by its scores."""

    criterion: str
    data: bool = False
    allocation: str = "knapsack"
    align: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)


CRITERIA: Mapping[str, Method] = {
    "random": Method("random", allocation="uniform"),
    "magnitude": Method("magnitude"),
    "magnitude global": Method("magnitude", allocation="global"),
    "bn-scale": Method("bn-scale"),
    "taylor": Method("taylor", True),
    "lrp": Method("lrp", True),
    "wanda": Method("wanda", True),
    "fluctuation": Method("fluctuation", True),
    "fluctuation global": Method("fluctuation", True, "global"),
    "variance": Method("variance", True),
    "obs uncentred": Method("obs", True, options={"centred": False}),
    "obs": Method("obs", True),
    "obs uniform": Method("obs", True, "uniform"),
    "obs global": Method("obs", True, "global"),
    "obs global, align 8": Method("obs", True, "global", align=8),
}
#: held against the knapsack at equal measured latency, and nowhere else
ALLOCATORS = tuple(
    (name, "refit") for name, one in CRITERIA.items() if name.startswith("obs ") and one.allocation != "knapsack"
)
#: (method, repair) pairs of the suites that do not run all of them
FEW = (("magnitude", "none"), ("fluctuation", "bias"), ("obs", "refit"))
SOME = (
    ("magnitude", "none"),
    ("magnitude", "refit"),
    ("fluctuation", "bias"),
    ("variance", "bias"),
    ("obs uncentred", "refit"),
    ("obs", "refit"),
)
CALIBRATED = (("magnitude", "refit"), ("wanda", "none"), *SOME[2:])

#: kind of network -> targets by what is counted
TARGETS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "small": {"macs": ("0.75x", "0.5x", "0.35x"), "latency": ("0.7x", "0.5x")},
    "ocr": {"macs": ("0.75x", "0.5x"), "latency": ("0.9x", "0.8x", "0.7x", "0.65x", "0.5x")},
    "detector": {"macs": ("0.75x", "0.5x"), "latency": ("0.8x", "0.65x", "0.5x")},
    "file": {"macs": ("0.75x", "0.5x"), "latency": ("0.7x", "0.5x")},
    # of what the heads and the MLPs cost; the rest (embeddings, the residual stream's width) stays
    "language": {"governed macs": ("0.75x", "0.5x")},
}
SUITES = ("methods", "samples", "latency", "peers")


@dataclass(frozen=True)
class Cell:
    """What is asked for: ``target`` is ``macs 0.5x``, ``governed macs 0.5x`` or ``latency 0.7x``."""

    network: str
    suite: str
    method: str
    repair: str
    target: str
    samples: int
    seed: int

    @property
    def key(self) -> str:
        """What makes it the same cell; the suite does not."""
        return "|".join((self.network, self.method, self.repair, self.target, str(self.samples), str(self.seed)))


def cells(task: Task, seeds: int = SEEDS) -> Iterator[Cell]:
    """All cells of a network."""
    targets = [(kind, f"{kind} {text}") for kind, texts in TARGETS[task.suite].items() for text in texts]
    counted = [target for kind, target in targets if kind != "latency"]
    whole = task.suite in ("small", "language")
    usual, others = SAMPLES[task.suite]
    no_scales = task.suite != "small" or task.name.endswith("vit")

    def each(suite: str, method: str, repair: str, target: str, samples: int) -> Iterator[Cell]:
        drawn = samples > 0 or method == "random"
        for seed in range(seeds if drawn else 1):
            yield Cell(task.name, suite, method, repair, target, samples, seed)

    usually = [one for one in CRITERIA if (one, "refit") not in ALLOCATORS]
    pairs = [(one, repair) for one in usually for repair in REPAIRS] if whole else list(SOME)
    for method, repair in pairs:
        if method == "bn-scale" and no_scales:
            continue
        for target in counted:
            needed = CRITERIA[method].data or repair != "none"
            yield from each("methods", method, repair, target, usual if needed else 0)
    middle = next(one for one in counted if one.endswith("0.5x"))
    for method, repair in CALIBRATED:
        for samples in others:
            every = samples == 0 and method == "obs"  # of what nobody has data for, all targets
            for target in counted if every else (middle,):
                yield from each("samples", method, repair, target, samples)
    for kind, target in targets:
        for method, repair in (*FEW, *ALLOCATORS) if kind == "latency" else ():
            yield from each("latency", method, repair, target, usual if repair != "none" else 0)
    for name, peer in PEERS.items():
        if (name.startswith("torch-pruning") and task.module is None) or ("bn-scale" in name and no_scales):
            continue
        for kind, target in targets:
            if (kind == "latency") is peer.timed:
                yield from each("peers", name, "none", target, usual if peer.calibrated else 0)


# --------------------------------------------------------------------------------------------------------- one cell


@dataclass(frozen=True, eq=False)
class Loaded:
    """A network that cells are run on."""

    task: Task
    network: Network
    dense: Run

    @classmethod
    def of(cls, task: Task) -> Loaded:
        """Load it (and train and export it where that was not done before)."""
        from graphprune.pipeline import load

        path = task.path()
        return cls(task, load(path, input_shapes=task.shapes), open_run(path))

    @cached_property
    def timed(self) -> Network:
        """The network that times are held against; one that was exported here without what its exporter leaves."""
        from graphprune.pipeline import load

        if self.task.module is None:
            return self.network
        return load(folded(self.task.path(), self.task), input_shapes=batched(self.task.shapes))

    def share(self, target: str) -> float:
        """The share of the whole network's MACs or time that a target means."""
        kind, _, text = target.rpartition(" ")
        share = float(text.removesuffix("x"))
        return share if kind in ("macs", "latency") else 1 - (1 - share) * self.network.analyze().governed_macs


def run_cell(cell: Cell, loaded: Loaded) -> dict[str, Any]:
    """A cell's row: metrics with intervals, what was reached, seconds; or ``error`` where it cannot be done."""
    row: dict[str, Any] = asdict(cell)
    start = time.perf_counter()
    data = loaded.task.calibration(cell.samples, cell.seed) if cell.samples else None
    with tempfile.TemporaryDirectory(prefix="graphprune-accuracy-") as folder:
        try:
            if cell.method in PEERS:
                path = Path(folder) / "model.onnx"
                row |= cut(cell.method, loaded.task, path, loaded.share(cell.target), data, _timing())
            else:
                path, told = _ours(cell, loaded, data, Path(folder) / "out")
                row |= told
            run = open_run(path)
            row["metrics"] = summary(loaded.task.judge(run, loaded.dense))
        except Exception as error:  # a refusal of ours, or whatever a peer raises: it is this cell's answer
            if cell.method not in PEERS and not isinstance(error, GraphpruneError):
                raise
            said = str(error).strip().splitlines()
            row["error"] = f"{type(error).__name__}: {said[0][:300] if said else ''}"
    return row | {"total_seconds": time.perf_counter() - start, "peak_rss": peak_rss()}


def _ours(cell: Cell, loaded: Loaded, data: list[Feeds] | None, out: Path) -> tuple[Path, dict[str, Any]]:
    method = CRITERIA[cell.method]
    options: dict[str, Any] = {
        "criterion": method.criterion,
        "criterion_options": method.options,
        "allocation": method.allocation,
        "align": method.align,
        "seed": cell.seed,
    }
    if loaded.task.include or loaded.task.exclude:
        options |= {"include": loaded.task.include, "exclude": loaded.task.exclude}
    if method.data or cell.repair != "none":
        options |= {"calib": data if data is not None else "none", "repair": cell.repair}
        options |= {"calib_samples": cell.samples} if data is not None else {}
    kind, _, text = cell.target.rpartition(" ")
    if kind == "latency":
        timing = _timing()
        options |= {"target_latency": text, "measure": timing, "backend_options": timing.backend_options}
    else:
        options |= {"target_macs": f"{loaded.share(cell.target):.6f}x", "measure": None}
    network = loaded.timed if kind == "latency" else loaded.network
    result = network.export(out, **options)
    told: dict[str, Any] = {
        "macs": result.reached["macs"] / result.original["macs"],
        "params": result.reached["params"] / result.original["params"],
        "seconds": dict(result.manifest["seconds"]),
        "error_of_cut": None if result.verdict is None else result.verdict.max_rel,
    }
    if result.comparison is not None:
        ratio = result.comparison
        told["latency"] = {"ratio": ratio.ratio, "low": ratio.ratio_low, "high": ratio.ratio_high}
    if data is not None:
        told["pass_seconds"] = _plain_pass(loaded.dense, data)
    return result.model, told


def _timing() -> MeasureOptions:
    from graphprune.backends.base import BackendOptions
    from graphprune.latency.measure import MeasureOptions

    return MeasureOptions(backend_options=BackendOptions(threads=THREADS), max_width=0.03, max_duration=20.0)


def _plain_pass(run: Run, data: list[Feeds]) -> float:
    """Seconds of one plain run over the calibration samples: what statistics and repair are held against."""
    start = time.perf_counter()
    for feeds in data:
        run(feeds)
    return time.perf_counter() - start


def summary(metrics: Metrics) -> dict[str, dict[str, float]]:
    """Mean of each metric over the test samples with its 95 % interval (percentile bootstrap)."""
    rng = np.random.default_rng(0)
    found = {}
    for name, values in metrics.items():
        means = np.concatenate(
            [values[rng.integers(len(values), size=(50, len(values)))].mean(axis=1) for _ in range(RESAMPLES // 50)]
        )
        low, high = np.quantile(means, (0.025, 0.975))
        found[name] = {"mean": float(values.mean()), "low": float(low), "high": float(high), "n": len(values)}
    return found


def dense_row(loaded: Loaded) -> dict[str, Any]:
    """The whole network's row."""
    cell = Cell(loaded.task.name, "methods", "dense", "none", "macs 1x", 0, 0)
    metrics = summary(loaded.task.judge(loaded.dense, loaded.dense))
    analysis = loaded.network.analyze()
    return {
        **asdict(cell),
        "metrics": metrics,
        "macs": 1.0,
        "params": 1.0,
        "machine": machine_line(),
        "governed_macs": analysis.governed_macs,
    }


# ------------------------------------------------------------------------------------------------------------- rows


def key_of(row: Mapping[str, Any]) -> str:
    """The key of a row's cell."""
    return Cell(**{name: row[name] for name in Cell.__dataclass_fields__}).key


def read_rows(file: Path) -> dict[str, dict[str, Any]]:
    """Rows by key, the later one of two; a line that was cut off in the middle is left out."""
    rows = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[key_of(row)] = row
    return rows


def _append(file: Path, row: Mapping[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(row) + "\n")


def _told(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return str(row["error"])
    name, main = next(iter(row["metrics"].items()))
    return f"{name} {main['mean']:.4f} at {row['macs']:.3f} of the MACs, {row.get('total_seconds', 0):.1f} s"


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [one.strip() for one in text.split(",")]


def wanted(given: argparse.Namespace, task: Task, rows: Mapping[str, Any]) -> list[Cell]:
    """The cells that the options ask for and that have no row yet, each once."""
    found: dict[str, Cell] = {}
    suites = _listed(given.suites)
    for cell in cells(task, given.seeds):
        chosen = all(
            names is None or value in names
            for names, value in (
                (suites, cell.suite),
                (_listed(given.methods), cell.method),
                (_listed(given.repairs), cell.repair),
                (_listed(given.targets), cell.target),
                (_listed(given.samples), str(cell.samples)),
            )
        )
        done = cell.key in rows and not (given.failed and "error" in rows[cell.key])
        if chosen and (given.again or not done):
            found.setdefault(cell.key, cell)
    return list(found.values())


def _run_network(given: argparse.Namespace, task: Task) -> bool:
    """Whether all cells got a row: one that breaks graphprune gets none, and is run again the next time."""
    rows = read_rows(given.results)
    todo = wanted(given, task, rows)
    if not todo:
        return True
    loaded = Loaded.of(task)
    dense = dense_row(loaded)
    _append(given.results, dense)
    print(f"{task.name} dense: {_told(dense)}", file=sys.stderr, flush=True)
    whole = True
    for number, cell in enumerate(todo, 1):
        try:
            row = run_cell(cell, loaded)
        except Exception:
            print(f"{number}/{len(todo)} {cell.key}: broken\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            whole = False
            continue
        _append(given.results, row)
        print(f"{number}/{len(todo)} {cell.key}: {_told(row)}", file=sys.stderr, flush=True)
    return whole


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing or named, then write the tables. Returns 1 where a cell or a network's process broke."""
    parser = argparse.ArgumentParser(description="Accuracy of artefacts without retraining, side by side with peers.")
    parser.add_argument("--networks", help=f"names with commas between them, of {', '.join(TASKS)}")
    parser.add_argument("--suites", help=f"of {', '.join(SUITES)}")
    parser.add_argument("--methods", help=f"of {', '.join(CRITERIA)} and the peers (use --suites peers for all)")
    parser.add_argument("--repairs", help=f"of {', '.join(REPAIRS)}")
    parser.add_argument("--targets", help="such as 'macs 0.5x,latency 0.7x'")
    parser.add_argument("--samples", help="numbers of calibration samples, such as 0,256")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many (default: {SEEDS})")
    parser.add_argument("--again", action="store_true", help="also run cells that have a row")
    parser.add_argument("--failed", action="store_true", help="also run cells whose row is an error")
    parser.add_argument("--table", action="store_true", help="write the tables from the rows that are there")
    parser.add_argument("--list", action="store_true", help="print the cells that would be run, and stop")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the rows (default: docs/accuracy.jsonl)")
    parser.add_argument("--markdown", type=Path, default=TABLE, help="the tables (default: docs/accuracy.md)")
    parser.add_argument("--here", action="store_true", help="run in this process, write no tables")
    given = parser.parse_args(arguments)
    names = _listed(given.networks) or list(TASKS)
    if unknown := [name for name in names if name not in TASKS]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(TASKS)}")
    if given.here:
        broken = [name for name in names if not _run_network(given, TASKS[name])]
        return int(bool(broken))
    failed = False
    rows = read_rows(given.results)
    for name in () if given.table else names:
        todo = wanted(given, TASKS[name], rows)
        if given.list:
            print(*(cell.key for cell in todo), sep="\n", end="\n" if todo else "")
        elif todo:
            words = sys.argv[1:] if arguments is None else arguments
            command = [sys.executable, "-m", "benchmarks.accuracy", *words, "--networks", name, "--here"]
            failed |= subprocess.run(command, cwd=ROOT, check=False).returncode != 0
    if not given.list:
        given.markdown.write_text(document(list(read_rows(given.results).values())), encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
