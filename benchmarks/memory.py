"""Peak memory of pruning an ONNX file of about 2 GiB with external data to half its parameters.

    python -m benchmarks.memory [--size-mib 2048] [--networks matmuls,llama] [--json FILE] [--markdown FILE]

Two networks are generated in a temporary folder (``--folder``; about 3.5 times ``--size-mib`` must be free), one tensor
in memory at a time: a stack of MatMuls with Relu, and a Llama-like stack of blocks (RMSNorm spelled out, grouped-query
attention by Reshape, Transpose and Expand, gated MLP). Each is loaded, pruned to 0.5x and verified in a fresh process
whose memory is read from ``/proc`` many times a second, its children's included. What an interpreter that has only
imported ``graphprune.pipeline`` takes is subtracted. Needs no torch.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from benchmarks.common import MIB, Sample, last_line, machine_line, markdown_table, run_child, write_tables

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

BAR = 1.5
TOKENS = 16
_ALIGNMENT = 4096


@dataclass
class Writer:
    """Builds a graph whose large weights go straight to the data file: random normal, variance 1 / rows, seed 0."""

    file: BinaryIO
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initialisers: list[onnx.TensorProto] = field(default_factory=list)
    location: str = "model.onnx.data"

    def node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Append a node with one output, which has the node's name."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """A small initialiser, inside the model file."""
        from onnx import numpy_helper

        self.initialisers.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str, rows: int, columns: int, gain: float = 1.0) -> str:
        """A large initialiser, in the data file."""
        import numpy as np
        from onnx import TensorProto

        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=(rows, columns))
        self.file.seek(-(-self.file.tell() // _ALIGNMENT) * _ALIGNMENT)
        tensor.data_location = TensorProto.EXTERNAL
        size = 4 * rows * columns
        for key, value in (("location", self.location), ("offset", self.file.tell()), ("length", size)):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        array = self.rng.standard_normal((rows, columns), dtype=np.float32)
        array *= np.float32(gain * rows**-0.5)
        array.tofile(self.file)
        self.initialisers.append(tensor)
        return name

    def matmul(self, x: str, name: str, rows: int, columns: int, gain: float = 1.0) -> str:
        """``x @ W``."""
        return self.node("MatMul", [x, self.weight(f"{name}.weight", rows, columns, gain)], name)


def matmuls(out: Writer, size: int) -> tuple[list[int], str]:
    """``size`` bytes of MatMul and Relu, 4096 wide: the input's shape and the output's name."""
    width = 4096
    x = "x"
    layers = max(2, round(size / (4 * width * width)))
    for i in range(layers):
        x = out.matmul(x, f"layer{i}", width, width, 2**0.5)
        if i + 1 < layers:
            x = out.node("Relu", [x], f"layer{i}.relu")
    return [TOKENS, width], x


def llama(out: Writer, size: int) -> tuple[list[int], str]:
    """``size`` bytes of blocks like Llama's: hidden 2048, 16 heads over 4 key/value heads, gated MLP of 5632."""
    import numpy as np

    width, heads, pairs, inner = 2048, 16, 4, 5632
    dim = width // heads
    per_block = 4 * width * (2 * width + 2 * pairs * dim + 3 * inner)
    sizes = {
        "to_heads": [1, TOKENS, heads, dim],
        "to_pairs": [1, TOKENS, pairs, dim],
        "repeated": [1, pairs, heads // pairs, TOKENS, dim],
        "merged": [1, heads, TOKENS, dim],
        "to_width": [1, TOKENS, width],
        "axis": [2],
    }
    for name, values in sizes.items():
        out.constant(name, np.array(values, dtype=np.int64))
    for name, value in (("two", 2.0), ("epsilon", 1e-6), ("scale", dim**-0.5)):
        out.constant(name, np.array(value, dtype=np.float32))

    def norm(x: str, name: str) -> str:
        square = out.node("Pow", [x, "two"], f"{name}.square")
        mean = out.node("ReduceMean", [square], f"{name}.mean", axes=[-1], keepdims=1)
        root = out.node("Sqrt", [out.node("Add", [mean, "epsilon"], f"{name}.shifted")], f"{name}.root")
        weight = out.constant(f"{name}.weight", out.rng.uniform(0.5, 1.5, width).astype(np.float32))
        return out.node("Mul", [out.node("Div", [x, root], f"{name}.divided"), weight], name)

    def heads_of(x: str, name: str, shape: str) -> str:
        parted = out.node("Reshape", [x, shape], f"{name}.parted")
        return out.node("Transpose", [parted], f"{name}.heads", perm=[0, 2, 1, 3])

    def repeat(x: str, name: str) -> str:
        wide = out.node("Unsqueeze", [x, "axis"], f"{name}.unsqueezed")
        wide = out.node("Expand", [wide, "repeated"], f"{name}.expanded")
        return out.node("Reshape", [wide, "merged"], f"{name}.repeated")

    x = "x"
    for i in range(max(1, round(size / per_block))):
        b = f"block{i}"
        y = norm(x, f"{b}.norm1")
        q = heads_of(out.matmul(y, f"{b}.q", width, width), f"{b}.q", "to_heads")
        k = repeat(heads_of(out.matmul(y, f"{b}.k", width, pairs * dim), f"{b}.k", "to_pairs"), f"{b}.k")
        v = repeat(heads_of(out.matmul(y, f"{b}.v", width, pairs * dim), f"{b}.v", "to_pairs"), f"{b}.v")
        k = out.node("Transpose", [k], f"{b}.k.turned", perm=[0, 1, 3, 2])
        scores = out.node("Mul", [out.node("MatMul", [q, k], f"{b}.qk"), "scale"], f"{b}.scores")
        mixed = out.node("MatMul", [out.node("Softmax", [scores], f"{b}.shares", axis=-1), v], f"{b}.mixed")
        mixed = out.node("Transpose", [mixed], f"{b}.mixed.turned", perm=[0, 2, 1, 3])
        mixed = out.node("Reshape", [mixed, "to_width"], f"{b}.merged")
        x = out.node("Add", [x, out.matmul(mixed, f"{b}.o", width, width)], f"{b}.attended")
        y = norm(x, f"{b}.norm2")
        gate = out.matmul(y, f"{b}.gate", width, inner)
        gate = out.node("Mul", [gate, out.node("Sigmoid", [gate], f"{b}.sigmoid")], f"{b}.silu")
        y = out.node("Mul", [gate, out.matmul(y, f"{b}.up", width, inner)], f"{b}.gated")
        x = out.node("Add", [x, out.matmul(y, f"{b}.down", inner, width)], f"{b}.out")
    return [1, TOKENS, width], norm(x, "norm")


NETWORKS = {"matmuls": matmuls, "llama": llama}


def generate(name: str, folder: Path, size: int) -> tuple[Path, int]:
    """Write ``model.onnx`` and its data; the path, and the bytes of both files together."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    path = folder / "model.onnx"
    with (folder / "model.onnx.data").open("wb") as file:
        out = Writer(file, np.random.default_rng(0))
        shape, end = NETWORKS[name](out, size)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info(end, TensorProto.FLOAT, shape)
    graph = helper.make_graph(out.nodes, name, [x], [y], out.initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))
    return path, sum(one.stat().st_size for one in folder.iterdir())


def prune(path: Path, out: Path) -> None:
    """Load, prune to 0.5x of the parameters and verify, in this process; prints when each step ended."""
    import logging

    class Clock(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg == "%s: %.3f s" and isinstance(record.args, tuple):
                step, seconds = record.args
                print(json.dumps({"step": step, "end": time.monotonic(), "seconds": seconds}), flush=True)

    from graphprune.pipeline import load

    log = logging.getLogger("graphprune.pipeline")
    log.setLevel(logging.DEBUG)
    log.addHandler(Clock())
    result = load(path).export(out, target_params="0.5x", measure=None)
    assert result.verdict is not None
    reached = result.reached["params"] / result.original["params"]
    print(json.dumps({"reached": reached, "max_rel": result.verdict.max_rel, "end": time.monotonic()}), flush=True)


_BASE = "import graphprune.pipeline, time; time.sleep(1)"


def idle() -> Sample:
    """The memory of an interpreter that has only imported ``graphprune.pipeline``."""
    ended = run_child(["-c", _BASE], keep=True, pss=True)
    if ended.code != 0:
        raise RuntimeError(last_line(ended.err))
    return ended.samples[-2]  # the last look may have met its end


def watch(path: Path, out: Path, every: float = 0.02) -> dict[str, Any]:
    """Prune in a fresh process; peaks in bytes for each kind of memory, over all and per step."""
    out.mkdir()
    ended = run_child(["-m", "benchmarks.memory", "--prune", str(path), str(out)], keep=True, pss=True, every=every)
    if ended.code != 0:
        return {"error": ended.why or last_line(ended.err)}
    events = [json.loads(line) for line in ended.out.splitlines() if line.startswith("{")]
    steps: dict[str, dict[str, int]] = {}
    for sample, step in _placed(ended.samples, events):
        held = steps.setdefault(step, {"rss": 0, "anonymous": 0, "pss": 0})
        for kind in held:
            held[kind] = max(held[kind], getattr(sample, kind))
    peaks = {kind: max(step[kind] for step in steps.values()) for kind in ("rss", "anonymous", "pss")}
    last = events[-1]
    seconds = {event["step"]: event["seconds"] for event in events if "step" in event}
    return {
        "error": None, "peaks": peaks, "steps": steps, "seconds": seconds, "samples": len(ended.samples),
        "reached": last["reached"], "max_rel": last["max_rel"],
    }  # fmt: skip


def _placed(samples: Sequence[Sample], events: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Sample, str]]:
    """Each look at the memory with the step during which it was taken."""
    for sample in samples:
        following = next((event for event in events if event["end"] >= sample.at), None)
        yield sample, "end" if following is None else str(following.get("step", "write"))


COLUMNS = (
    "network", "file", "memory", "interpreter", "peak", "above / file", "in step", "load", "observe", "score",
    "shrink", "verify",
)  # fmt: skip
KINDS = {"rss": "resident (RSS)", "anonymous": "anonymous (RssAnon)", "pss": "proportional (PSS)"}


def rows(name: str, size: int, base: Sample, figures: dict[str, Any]) -> list[list[str]]:
    """A row per kind of memory; the last columns are each step's own peak above the interpreter, over the file."""
    if figures["error"] is not None:
        return [[name, f"{size / MIB:.0f} MiB", figures["error"], *("" for _ in COLUMNS[3:])]]
    found = []
    for kind, words in KINDS.items():
        start, peak, steps = getattr(base, kind), figures["peaks"][kind], figures["steps"]
        at = max(steps, key=lambda step: steps[step][kind])
        shares = {step: (held[kind] - start) / size for step, held in steps.items()}
        found.append(
            [
                name, f"{size / MIB:.0f} MiB", words, f"{start / MIB:.0f} MiB", f"{peak / MIB:.0f} MiB",
                f"{(peak - start) / size:.2f}", at,
                *(f"{shares[step]:.2f}" if step in shares else "" for step in COLUMNS[7:]),
            ]
        )  # fmt: skip
    return found


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if every network's resident memory stays within the bar, else 1."""
    parser = argparse.ArgumentParser(description="Peak memory of pruning large ONNX files with external data.")
    parser.add_argument("--networks", default=",".join(NETWORKS), help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--size-mib", type=int, default=2048, help="MiB of weights (default: 2048)")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--prune", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.prune:
        prune(*given.prune)
        return 0
    names = given.networks.split(",")
    if unknown := [name for name in names if not re.fullmatch("|".join(NETWORKS), name)]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(NETWORKS)}")
    needed = 7 * given.size_mib * MIB // 2
    free = shutil.disk_usage(given.folder or tempfile.gettempdir()).free
    if free < needed:
        parser.error(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; choose another --folder")
    machine = machine_line(("numpy", "onnx", "onnx-ir", "onnxruntime"))
    base = idle()
    cells: list[list[str]] = []
    found: dict[str, Any] = {}
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="graphprune-memory-", dir=given.folder) as place:
            folder = Path(place) / "in"
            folder.mkdir()
            path, size = generate(name, folder, given.size_mib * MIB)
            found[name] = {"size": size, **watch(path, Path(place) / "out")}
        cells += rows(name, size, base, found[name])
    text = f"{machine}\n\n{markdown_table(COLUMNS, cells)}"
    data = {"machine": machine, "interpreter": vars(base) | {"at": None}, "networks": found}
    write_tables(text, given.markdown, data, given.json)
    held = [one["error"] is None and one["peaks"]["rss"] - base.rss <= BAR * one["size"] for one in found.values()]
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
