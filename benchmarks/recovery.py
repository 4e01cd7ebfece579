"""A pruned ONNX file without its source recovers: PP-OCRv4's recogniser, distilled on unlabelled rendered lines.

    python -m benchmarks.recovery                                   # every row that is missing, then the table
    python -m benchmarks.recovery --targets 0.5x --stages cut,refit
    python -m benchmarks.recovery --table                           # the table alone
    python -m benchmarks.recovery --rates 3e-4,1e-3,3e-3            # short runs, to choose the rate

Needs graphprune[zoo] and ``pip install --no-deps rapidocr-onnxruntime``. The rows of a target, on the same 500 test
lines: ``cut`` (units taken out, nothing else), ``refit`` (the same units out, the weights after them refitted on 256
calibration lines), ``distilled`` (``graphprune.finetune`` from the refitted file, the whole network its teacher) and
``distilled from the cut`` (the same without the refit). Training sees images of lines only, no texts, and no token of
theirs stands in a test line; rates are tried in short runs, on the lines that finetune holds out (``--rates``).

Rows are appended to ``docs/recovery.jsonl`` one by one. The files lie in the cache, with a checkpoint while they are
trained, so that a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.accuracy import summary
from benchmarks.accuracy_tasks import TASKS, Feeds, open_run
from benchmarks.common import ROOT, machine_line, markdown_table
from models_zoo.cache import cache_folder, recipe_hash

if TYPE_CHECKING:
    from graphprune.training.finetune import FinetuneResult

__all__ = ["STAGES", "main", "table", "unlabelled"]

ROWS = ROOT / "docs" / "recovery.jsonl"
TABLE = ROOT / "docs" / "recovery.md"
TARGETS = ("0.5x", "0.35x")
CALIBRATION = 256  # lines for the criterion and the refit
# What is refitted is near the whole network already, and a hundred updates are few: a tenth of finetune's own rate,
# which is for five times as many, wastes none of them on finding that it is too high.
RATE = 5e-4
TRIAL = 128  # lines of a short run
SEED = 1  # of the lines that are trained on; the calibration lines are of seed 0
STAGES: Mapping[str, str | None] = {  # stage -> the one whose file it is trained from
    "dense": None,
    "cut": None,
    "refit": None,
    "distilled": "refit",
    "distilled from the cut": "cut",
}
_OF = {True: "", False: " absolute"}  # what a rate is a share of: a weight's usual size, or nothing
Row = dict[str, Any]


def unlabelled(count: int = 1024, seed: int = SEED) -> Iterable[Feeds]:
    """For ``graphprune finetune --data benchmarks.recovery:unlabelled``: rendered lines, none of them a test line."""
    from models_zoo import text_lines

    return text_lines.calibration(count, seed)


class Bench:
    """The whole network and where its pruned files lie."""

    def __init__(self, lines: int, updates: int, batch: int, rate: float) -> None:
        self.task = TASKS["ocr_recogniser"]
        self.original = self.task.path()
        self.lines = lines
        self.training: dict[str, Any] = {"updates": updates, "batch": batch, "lr": rate}

    def folder(self, target: str, stage: str, recipe: object = ()) -> Path:
        """Of one file; another recipe has another one."""
        name = f"{stage.replace(' ', '-')}-{recipe_hash([target, stage, CALIBRATION, SEED, recipe])}"
        return cache_folder() / "recovery" / name

    def export(self, target: str, stage: str) -> tuple[Path, Row]:
        """``refit``: cut by the criterion ``obs`` and refitted; ``cut``: the same units out, nothing else."""
        from graphprune.pipeline import load

        out = self.folder(target, stage)
        if not (out / "manifest.json").exists():
            network = load(self.original, input_shapes=self.task.shapes)
            if stage == "cut":
                plan = self.export(target, "refit")[0].with_name("plan.json")
                network.export(out, plan=plan, measure=None)
            else:
                lines = self.task.calibration(CALIBRATION, 0)
                network.export(out, target_macs=target, calib=lines, search_budget="0", measure=None)
        manifest = json.loads((out / "manifest.json").read_text())
        seconds = manifest["seconds"]
        took = sum(value for name, value in seconds.items() if name not in ("verify", "measure"))
        told = {"seconds": round(took, 1), "samples": 0 if stage == "cut" else CALIBRATION}
        shares = {name: manifest["reached"][name] / manifest["original"][name] for name in ("macs", "params")}
        return out / "model.onnx", told | shares

    def distil(self, target: str, stage: str) -> tuple[Path, Row]:
        """The file of an earlier stage, trained to give what the whole network gives."""
        first = STAGES[stage]
        assert first is not None
        start, shares = self.export(target, first)
        out = self.folder(target, stage, [self.lines, self.training])
        fresh, cpu = not (out / "checkpoint.pt").exists(), time.process_time()
        result = self.trained(start, self.lines, SEED, out=out, resume=True, checkpoint_every=8, **self.training)
        document = json.loads((out / "finetune.json").read_text())
        told = {
            "samples": self.lines,
            "updates": result.updates,
            "best": result.best,
            "batch": document["options"]["batch"],
            "lr": document["options"]["lr"],
            "distance": [round(one, 5) for one in (result.before, result.after)],
            "seconds": round(result.seconds, 1),
            "macs": shares["macs"],
            "params": shares["params"],
        }
        return out / "model.onnx", told | ({"cpu_seconds": round(time.process_time() - cpu, 1)} if fresh else {})

    def trained(self, start: Path, lines: int, seed: int, **options: Any) -> FinetuneResult:
        """A file distilled from the whole network on so many lines."""
        import graphprune
        from graphprune.pipeline import load

        student, teacher = (load(path, input_shapes=self.task.shapes) for path in (start, self.original))
        return graphprune.finetune(student, teacher, list(unlabelled(lines, seed)), **options)

    def trial(self, target: str, rate: float) -> Row:
        """A short run at a rate, once over the lines, judged on the lines that it holds out: no test line is read."""
        batch = self.training["batch"]
        updates = TRIAL * 7 // 8 // batch
        short: dict[str, Any] = {"updates": updates, "batch": batch, "evaluate_every": updates, "lr": rate}
        result = self.trained(self.export(target, "refit")[0], TRIAL, SEED + 1, **short)
        found = {"before": round(result.before, 5), "held_out": round(result.history[-1]["held_out"], 5)}
        told = {"target": target, "stage": "trial", "lr": rate, "relative": True, "updates": updates, "batch": batch}
        return told | found

    def row(self, target: str, stage: str) -> Row:
        """One row: what was done, and how the result reads the test lines."""
        if stage == "dense":
            path, told = self.original, {"macs": 1.0, "params": 1.0, "machine": machine_line()}
        else:
            path, told = (self.export if STAGES[stage] is None else self.distil)(target, stage)
        metrics = summary(self.task.judge(open_run(path), open_run(self.original)))
        return {"target": target, "stage": stage, **told, "metrics": metrics}


# ------------------------------------------------------------------------------------------------------------- rows


def read_rows(path: Path = ROWS) -> list[Row]:
    """The rows measured so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: list[Row]) -> str:
    """The rows as text; of two rows of the same stage the later one counts."""
    last = {(row["target"], row["stage"]): row for row in rows if row["stage"] in STAGES}
    ordered = sorted(last.values(), key=lambda row: (-float(row["target"][:-1]), list(STAGES).index(row["stage"])))
    lines = []
    for row in ordered:
        done = "" if "updates" not in row else _training(row)
        apart = " to ".join(f"{one:.3f}" for one in row.get("distance", ()))
        taken = f"{row['seconds']:.0f}" if "seconds" in row else ""
        taken += f" ({row['cpu_seconds']:.0f} of the processor)" if "cpu_seconds" in row else ""
        cells = [_percent(row["metrics"][name]) for name in ("characters", "lines", "agreement")]
        lines.append([f"{row['macs']:.2f}x", row["stage"], *cells, done, apart, taken])
    trials = [
        [
            row["target"],
            f"{row['lr']:g}{_OF[row['relative']]}",
            f"{row['updates']} of {row['batch']} lines",
            f"{row['before']:.4f}",
            f"{row['held_out']:.4f}",
        ]
        for row in rows
        if row["stage"] == "trial"
    ]
    heads = ["MACs", "network", "characters right", "lines right", "agreement with dense", "updates", "distance", "s"]
    machine = next((row["machine"] for row in ordered if "machine" in row), machine_line())
    return "\n".join([
        "# A pruned file recovers without its source\n",
        "Made by `python -m benchmarks.recovery`; see there what a row is. PP-OCRv4's recogniser, an ONNX file of a "
        "package, on 500 rendered test lines: characters and whole lines read right, and the characters that it reads "
        "as the whole network does, in percent with 95 % intervals (bootstrap over the lines). Distance: mean "
        "Kullback-Leibler divergence per step from the whole network, in nats, on lines held out of the training, "
        "before and after it.\n",
        f"{machine}\n",
        markdown_table(heads, lines),
        "",
        f"Short runs from the refitted file, to choose a rate: distance on what they held out of {TRIAL} other lines. "
        "Absolute: AdamW's plain rate; else the share of a weight's usual size, as finetune takes it.\n",
        markdown_table(["MACs", "rate", "updates", "before", "after"], trials),
        "",
    ])  # fmt: skip


def _training(row: Row) -> str:
    best = f", best after {row['best']}" if row["best"] < row["updates"] else ""
    return f"{row['updates']} of {row['batch']} lines out of {row['samples']}, rate {row['lr']:g}{best}"


def _percent(metric: Mapping[str, float]) -> str:
    mean, low, high = (100 * metric[name] for name in ("mean", "low", "high"))
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def run(bench: Bench, targets: list[str], stages: list[str]) -> None:
    """Measure what is missing."""
    known = {(row["target"], row["stage"]) for row in read_rows()}
    jobs = [("1x", "dense")] if "dense" in stages else []
    for target, stage in jobs + [(target, one) for target in targets for one in stages if one != "dense"]:
        if (target, stage) in known:
            continue
        _append(bench.row(target, stage))


def _append(row: Row) -> None:
    with ROWS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    TABLE.write_text(table(read_rows()))
    print(row, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recovery", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", default=",".join(TARGETS), help="shares of the MACs, separated by commas")
    parser.add_argument("--stages", default=",".join(STAGES), help="separated by commas")
    parser.add_argument("--lines", type=int, default=1024, help="that are trained on")
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=RATE)
    parser.add_argument("--rates", help="learning rates to try by short runs at the first target, separated by commas")
    parser.add_argument("--table", action="store_true", help="write the table alone")
    options = parser.parse_args(arguments)
    if unknown := set(options.stages.split(",")) - set(STAGES):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    if not options.table:
        bench = Bench(options.lines, options.updates, options.batch, options.lr)
        if options.rates:
            for rate in map(float, options.rates.split(",")):
                _append(bench.trial(options.targets.split(",")[0], rate))
        else:
            run(bench, options.targets.split(","), options.stages.split(","))
    TABLE.write_text(table(read_rows()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
