"""What the benchmarks share: the zoo's networks without training, the half-size export, processes, sweeps, tables."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import GraphpruneError, TargetError

if TYPE_CHECKING:
    from graphprune.export import ExportResult
    from graphprune.pipeline import Network

__all__ = [
    "ROOT",
    "Ended",
    "Half",
    "Row",
    "Sample",
    "Sweep",
    "build",
    "export_half",
    "load_network",
    "machine_line",
    "markdown_table",
    "memory_of",
    "peak_rss",
    "plain",
    "read_rows",
    "run_child",
    "suites",
    "write_rows",
    "write_tables",
]

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20
_FOLDERS = re.compile(r"'/(?:[^'/]+/)+")
Row = dict[str, Any]


# --------------------------------------------------------------------------------------------------------- networks


def build(name: str) -> Any:
    """What a recipe's ``build`` gives, but the zoo's small trained networks with random weights: nothing is trained."""
    from models_zoo import recipe

    chosen = recipe(name)
    if chosen.kind == "onnx" or not chosen.trained:
        return chosen.build()
    import torch

    from models_zoo.randomise import randomise, seeded

    small = importlib.import_module("models_zoo.small").NETWORKS[name]
    side = {"glyphs": 32, "digits": 8}[small.data]
    image = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    return randomise(seeded(small.build, 0), 0, (image,)), (image,)


def load_network(name: str) -> Network:
    """A recipe's network, loaded and observed (seed 0)."""
    from graphprune.pipeline import load
    from models_zoo import recipe

    first, second = build(name)
    if recipe(name).kind == "onnx":
        shapes = {key: value for key, value in second.items() if isinstance(value, tuple)}
        return load(first, input_shapes=shapes, inputs={k: v for k, v in second.items() if k not in shapes})
    return load(first, inputs=second)


@dataclass(frozen=True)
class Half:
    """An export at half the parameters, or as near to it as exact groups reach.

    Attributes:
        result: of the export.
        asked: the share asked for: 0.5, or the least multiple of 0.05 that leaves the allocator a choice.
        lowest: the lowest reachable share where 0.5 cannot be reached, else None.
    """

    result: ExportResult
    asked: float
    lowest: float | None


def export_half(network: Network, out: Path, share: float = 0.5, *, verify: bool = True) -> Half:
    """Export at ``share`` of the parameters, or just above the lowest share that the error says can be reached."""
    try:
        return Half(network.export(out, target_params=f"{share}x", measure=None, verify=verify), share, None)
    except TargetError as error:
        found = re.search(r"lowest reachable is ([\d,]+)", str(error))
        if found is None:
            raise
        lowest = int(found[1].replace(",", "")) / network.cost.params({})
    # At the lowest share itself every group sits at its floor and nothing is chosen.
    nearest = math.ceil(lowest * 20 + 0.2) / 20
    result = network.export(out, target_params=f"{nearest:.2f}x", measure=None, verify=verify)
    return Half(result, nearest, lowest)


# -------------------------------------------------------------------------------------------------------- processes


@dataclass(frozen=True)
class Sample:
    """Memory of a process and its descendants at one moment, in bytes; ``at`` is ``time.monotonic()``."""

    at: float
    rss: int
    anonymous: int
    pss: int


@dataclass
class Ended:
    """How a child ended: its exit code (None: it was ended), why it was ended, its output and its memory over time."""

    code: int | None
    why: str
    out: str
    err: str
    samples: list[Sample] = field(default_factory=list)


def memory_of(pid: int, *, pss: bool = True) -> Sample:
    """Resident, anonymous and proportional memory of a process and its descendants (0 for one that is gone).

    Of ``/proc``. PSS counts a page that several processes share once; reading it costs milliseconds per GiB.
    """
    at, rss, anonymous, proportional = time.monotonic(), 0, 0, 0
    for one in _family(pid):
        try:
            status = Path(f"/proc/{one}/status").read_text()
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text() if pss else ""
        except OSError:
            continue
        rss += _kibibytes(status, "VmRSS")
        anonymous += _kibibytes(status, "RssAnon")
        proportional += _kibibytes(rollup, "Pss")
    return Sample(at, rss, anonymous, proportional)


def _family(pid: int) -> list[int]:
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _family(int(child))
    except OSError:
        pass
    return found


def _kibibytes(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def peak_rss() -> int:
    """The peak of this process's resident memory in bytes (VmHWM: unlike ``ru_maxrss`` it forgets what was forked)."""
    return _kibibytes(Path("/proc/self/status").read_text(), "VmHWM")


def run_child(
    command: Sequence[str],
    *,
    timeout: float | None = None,
    limit: int | None = None,
    every: float = 0.05,
    keep: bool = False,
    pss: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run ``python COMMAND`` from the repository's root and watch its memory.

    Args:
        command: the words after ``python``.
        timeout: seconds after which it is ended.
        limit: bytes of resident memory above which it is ended.
        every: seconds between two looks at its memory.
        keep: keep every sample.
        pss: read PSS as well.
        environment: variables besides this process's own.
    """
    paths = [str(ROOT), *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(environment or {})}
    ended = Ended(None, "", "", "")
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, stdout=out, stderr=err, text=True)
        over = threading.Event()

        def watch() -> None:
            while not over.wait(every):
                sample = memory_of(process.pid, pss=pss)
                if keep:
                    ended.samples.append(sample)
                if limit is not None and sample.rss > limit:
                    ended.why = f"ended at {sample.rss / 1e9:.1f} GB of memory"
                    process.kill()
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            ended.why = f"no result within {timeout:g} s"
        finally:
            over.set()
            process.kill()
            process.wait()
            watcher.join()
        ended.code = None if ended.why else process.returncode
        for file, name in ((out, "out"), (err, "err")):
            file.seek(0)
            setattr(ended, name, file.read())
    return ended


def last_line(text: str) -> str:
    """The last line that is not empty: of a traceback, the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


def guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """``work()``, or ``{"error": one line}`` where graphprune refuses on purpose."""
    try:
        return work()
    except GraphpruneError as error:
        return {"error": f"{type(error).__name__}: {error}"}


# ----------------------------------------------------------------------------------------------------------- sweeps


def plain(reason: str) -> str:
    """A reason in one line, files by their names alone."""
    return _FOLDERS.sub("'", " ".join(reason.split()))[:600]


def read_rows(file: Path) -> dict[str, Row]:
    """The rows by network; of two with one name the later one."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {row["network"]: row for row in map(json.loads, lines)}


def write_rows(file: Path, rows: Iterable[Row], names: Iterable[str]) -> None:
    """The rows of these networks in this order, in place of the file."""
    order = {name: i for i, name in enumerate(names)}
    known = sorted((row for row in rows if row["network"] in order), key=lambda row: order[row["network"]])
    temporary = file.with_suffix(".part")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in known), encoding="utf-8")
    os.replace(temporary, file)


def suites(kind: str = "") -> dict[str, str]:
    """The suite of every network of the zoo, or of those of one kind."""
    from models_zoo import ZOO

    return {name: recipe.suite for name, recipe in ZOO.items() if kind in ("", recipe.kind)}


@dataclass(frozen=True)
class Sweep:
    """One row per network, each made in a process of its own; lines of JSON, and a page of them all.

    Rows are replaced when a network is run again: a sweep that was interrupted goes on where it stopped.

    Attributes:
        module: that is run in the processes, ``benchmarks.coverage``.
        title: of its ``--help``.
        suites: the suite of every network that may have a row, in the page's order.
        examine: one network whose packages are there, in this process: its second argument is given more figures after
            every stage. Of these, ``status`` is ``equal`` or what went wrong, and ``reason`` says more.
        document: the page.
        page: name of the page and of its rows in ``docs``, without their endings.
        timeout, memory: seconds and bytes at which a process is ended.
    """

    module: str
    title: str
    suites: Mapping[str, str]
    examine: Callable[[str, Callable[[Row], None]], None]
    document: Callable[[Sequence[Row]], str]
    page: str
    timeout: float = 600.0
    memory: int = 8_000_000_000

    def row(self, name: str, timeout: float) -> Row:
        """A network's row, whatever becomes of its process."""
        print(f"{name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="graphprune-sweep-") as folder:
            file = Path(folder) / "figures.json"
            words = ["-m", self.module, "--one", name, "--into", str(file)]
            ended = run_child(words, timeout=timeout, limit=self.memory)
            figures = json.loads(file.read_text()) if file.is_file() else {}
            if ended.code != 0:
                why = ended.why or f"{figures.get('reason', '')}: {last_line(ended.err)}"
                figures |= {"status": "failed", "reason": why}
        figures["reason"] = plain(str(figures.get("reason", "")))
        return {"network": name, "suite": self.suites[name], "machine": machine_line(), **figures}

    def main(self, arguments: list[str] | None = None) -> int:
        """The command; returns 0 if every network asked for is ``equal``, else 1."""
        parser = argparse.ArgumentParser(description=self.title)
        parser.add_argument("--networks", help="names with commas between them (default: those without a row)")
        parser.add_argument("--suites", help="suites with commas between them: all of their networks")
        parser.add_argument("--table", action="store_true", help="write the table from the rows that are there")
        for option, ending, what in (("--results", "jsonl", "the rows"), ("--markdown", "md", "the table")):
            file = ROOT / "docs" / f"{self.page}.{ending}"
            parser.add_argument(option, type=Path, default=file, help=f"{what} (default: docs/{file.name})")
        parser.add_argument(
            "--timeout", type=float, default=self.timeout, help=f"seconds for one network (default: {self.timeout:g})"
        )
        parser.add_argument("--one", help=argparse.SUPPRESS)
        parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
        given = parser.parse_args(arguments)
        if given.one:
            from models_zoo import HELD_OUT, ZOO

            told: Row = {}

            def tell(more: Row) -> None:
                told.update(more)
                given.into.write_text(json.dumps(told), encoding="utf-8")

            known = ZOO | HELD_OUT
            missing = known[given.one].missing() if given.one in known else ()
            if missing:
                tell({"status": "missing", "reason": f"needs {', '.join(missing)}"})
            else:
                tell({"status": "failed", "reason": "crashed while it was loaded"})
                self.examine(given.one, tell)
            return 0
        rows = read_rows(given.results)
        if given.networks or given.suites:
            suites = (given.suites or "").split(",")
            names = (given.networks or "").split(",") if given.networks else []
            names += [name for name, suite in self.suites.items() if suite in suites]
        else:
            names = [] if given.table else [name for name in self.suites if name not in rows]
        if unknown := [name for name in names if name not in self.suites]:
            parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(self.suites)}")
        for name in names:
            rows[name] = self.row(name, given.timeout)
            write_rows(given.results, rows.values(), self.suites)
        given.markdown.write_text(self.document(list(read_rows(given.results).values())), encoding="utf-8")
        return int(any(rows[name]["status"] != "equal" for name in names))


# ----------------------------------------------------------------------------------------------------------- tables


def machine_line(packages: Sequence[str] = ("numpy", "onnx", "onnx-ir", "onnxruntime", "torch", "torchvision")) -> str:
    """One sentence: date, processor, cores, load average, versions."""
    cpu = platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        cpu = found[1].strip() if found else cpu
    except OSError:
        pass
    versions = [f"Python {platform.python_version()}"]
    for name in ("graphprune", *packages):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            if name == "graphprune":
                from graphprune import __version__

                versions.append(f"{name} {__version__}")
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    return f"{date.today().isoformat()}, {cpu}, {cores} cores, load average {load:.1f}; {', '.join(versions)}."


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns but the first are aligned to the right."""
    rule = ["---", *("---:" for _ in columns[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, rule, *rows)) + "\n"


def write_tables(text: str, markdown: Path | None, data: Any, file: Path | None) -> None:
    """Print a benchmark's text, and write it and its data to the files asked for."""
    print(text, flush=True)
    if markdown is not None:
        markdown.write_text(text, encoding="utf-8")
    if file is not None:
        file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
