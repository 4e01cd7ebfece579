"""Fuzzing: damaged and hostile ONNX files through load, observe, couple, shrink with a random plan, write and verify.

    python -m tests.fuzz --minutes 10 --seed 0 [--keep FOLDER]
    python -m tests.fuzz --case FOLDER/traceback-0/model.onnx

Files are made from the networks of ``models.py`` and ``onnx_files.py`` by changing the protobuf message (any
field, found by reflection: numbers, names, types, attributes, whole nodes and tensors) or its bytes; a file that leads
to an outcome not seen before is changed further. Each is run in a worker process with limits of time and memory, so
that a crash of the native runtime is seen and named, not suffered. The outcomes:

* ``equal``: cut, and equal to its masked original; ``whole``: nothing in it can be cut;
* ``refused``: one sentence and an exit code of its own, as it should be;
* ``unproven``: cut, but not equal or not runnable, which an export refuses with exit code 4: numbers that are not
  finite, or a rule that a damaged file makes wrong. To be looked at;
* ``traceback``, ``hang``, ``crash`` (the process died), ``words`` (a message without end), ``litter`` (a file written
  where none belongs): findings. The file is kept; the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import random
import re
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tests.models import SAMPLES
from tests.onnx_files import constant_model, function_model, if_model, sparse_model

FINDINGS = ("traceback", "hang", "crash", "words", "litter")
KEPT = (*FINDINGS, "unproven")

_MEMORY = 6 << 30  # address space of a worker: more than any sample needs, less than the machine has
_SECONDS = 60.0  # for one file
_RUN_SECONDS = 5.0  # for one run of a network; graphprune's own limit is longer
_LONGEST_LINE = 20_000  # characters; the command line shows fewer
_LIFE = 400  # files after which a worker is replaced

_NUMBERS = (0, 1, -1, 2, 3, 7, 8, 100, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3e38, float("inf"), float("-inf"), float("nan"))
_NAMES = (
    "",
    "x",
    "y",
    "\x1b[2J",
    "a\nb",
    "é" * 40,
    "n" * 5000,
    "../d.bin",
    "/etc/passwd",
    "d.bin",
    "com.microsoft",
    "\0",
)

# ---------------------------------------------------------------------------------------------------------------------
# Making files


def messages_of(message: Message) -> Iterator[Message]:
    """A message and all within it."""
    stack = [message]
    while stack:
        one = stack.pop()
        yield one
        for field, value in one.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                stack += list(value) if field.is_repeated else [value]


def _is_repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


class Mutator:
    """Changes an ONNX file; the same generator state gives the same file."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.operators = sorted({(schema.name, schema.domain) for schema in onnx.defs.get_all_schemas()})

    def __call__(self, content: bytes, other: bytes) -> bytes:
        """A changed file; ``other`` is one to take parts from."""
        for _ in range(self.rng.choice((1, 1, 1, 2, 3, 5))):
            content = self._bytes(content) if self.rng.random() < 0.12 else self._message(content, other)
        return content

    def _bytes(self, content: bytes) -> bytes:
        rng, data = self.rng, bytearray(content)
        if not data:
            return content
        at = rng.randrange(len(data))
        end = min(len(data), at + rng.randrange(1, 64))
        match rng.randrange(5):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[end : end + rng.randrange(1, 64)]
            case 3:
                data[at:end] = rng.randbytes(end - at)
            case _:
                del data[at:]
        return bytes(data)

    def _message(self, content: bytes, other: bytes) -> bytes:
        proto = onnx.ModelProto()
        try:
            proto.ParseFromString(content)
        except Exception:
            return self._bytes(content)
        changes: tuple[Callable[[onnx.ModelProto], None], ...] = (
            *[self._field] * 4, self._operator, self._rename, self._external, self._sparse,
        )  # fmt: skip
        try:
            if self.rng.random() < 0.15:
                self._graft(proto, other)
            else:
                self.rng.choice(changes)(proto)
            return bytes(proto.SerializeToString())
        except (KeyError, TypeError, ValueError):  # a value that the field does not take
            return content

    def _field(self, proto: onnx.ModelProto) -> None:
        """Change one field of one message, wherever it is."""
        rng = self.rng
        message = rng.choice(list(messages_of(proto)))
        fields = message.DESCRIPTOR.fields
        present = [field for field, _ in message.ListFields()]
        field = rng.choice(present) if present and rng.random() < 0.8 else rng.choice(fields)
        if not _is_repeated(field):
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                if rng.random() < 0.5:
                    message.ClearField(field.name)
                else:
                    getattr(message, field.name).SetInParent()
            elif rng.random() < 0.15:
                message.ClearField(field.name)
            else:
                setattr(message, field.name, self._scalar(field, getattr(message, field.name), proto))
            return
        entries = getattr(message, field.name)
        at = rng.randrange(len(entries)) if len(entries) else 0
        choice = rng.randrange(5)
        if choice == 0 and len(entries):
            del entries[at]
        elif choice == 1 and len(entries):
            entries.append(entries[at])
        elif choice == 2 and len(entries) > 1:
            order = [copy.deepcopy(entry) for entry in entries]
            rng.shuffle(order)
            del entries[:]
            entries.extend(order)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            if not len(entries) or choice == 3:
                entries.add()
        elif len(entries) and choice < 4:
            entries[at] = self._scalar(field, entries[at], proto)
        else:
            entries.append(self._scalar(field, entries[at] if len(entries) else None, proto))

    def _scalar(self, field: FieldDescriptor, now: Any, proto: onnx.ModelProto) -> Any:
        rng = self.rng
        if field.type == FieldDescriptor.TYPE_ENUM:
            return rng.choice([value.number for value in field.enum_type.values])
        if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
            return rng.choice(_FLOATS)
        if field.type == FieldDescriptor.TYPE_STRING:
            known = [node.op_type for node in proto.graph.node] + self._names(proto)
            return rng.choice(known) if known and rng.random() < 0.7 else rng.choice(_NAMES)
        if field.type == FieldDescriptor.TYPE_BYTES:
            held = bytes(now or b"")
            return rng.choice((held[: len(held) // 2], held + b"\0" * 4, rng.randbytes(len(held)), b"", held[::-1]))
        if rng.random() < 0.5 and isinstance(now, int):
            return now + rng.choice((-1, 1, -2, 2))
        return rng.choice(_NUMBERS)

    def _names(self, proto: onnx.ModelProto) -> list[str]:
        names = [name for node in proto.graph.node for name in (*node.input, *node.output)]
        return names + [tensor.name for tensor in proto.graph.initializer]

    def _operator(self, proto: onnx.ModelProto) -> None:
        """Make a node another operator, or append one that reads what is there."""
        rng = self.rng
        names = self._names(proto) or ["x"]
        op, domain = rng.choice(self.operators)
        if proto.graph.node and rng.random() < 0.6:
            node = rng.choice(proto.graph.node)
            node.op_type, node.domain = op, domain
            return
        made = [f"made{rng.randrange(10**6)}" for _ in range(rng.choice((1, 1, 2)))]
        node = onnx.helper.make_node(op, rng.choices(names, k=rng.randrange(4)), made, domain=domain)
        if rng.random() < 0.4:
            inner = onnx.helper.make_graph([onnx.helper.make_node("Relu", [rng.choice(names)], ["inner"])], "b", [], [])
            inner.output.add().name = "inner"
            for name in ("body", "then_branch", "else_branch"):
                node.attribute.append(onnx.helper.make_attribute(name, inner))
        proto.graph.node.insert(rng.randrange(len(proto.graph.node) + 1), node)
        if rng.random() < 0.7:
            self._reroute(proto, made[0])

    def _reroute(self, proto: onnx.ModelProto, name: str) -> None:
        readers = [node for node in proto.graph.node if node.input]
        if readers:
            node = self.rng.choice(readers)
            node.input[self.rng.randrange(len(node.input))] = name

    def _rename(self, proto: onnx.ModelProto) -> None:
        """Give one value the name of another, everywhere or in one place."""
        names = self._names(proto)
        if not names:
            return
        self._reroute(proto, self.rng.choice(names))

    def _external(self, proto: onnx.ModelProto) -> None:
        """Move a tensor's data out of the file, soundly or not."""
        rng = self.rng
        tensors = [one for one in messages_of(proto) if isinstance(one, onnx.TensorProto)]
        if not tensors:
            return
        tensor = rng.choice(tensors)
        for field in ("raw_data", "float_data", "int64_data", "external_data"):
            tensor.ClearField(field)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        places = ("d.bin", "d.bin", "d.bin", "./d.bin", "../d.bin", "/etc/passwd", "", "d.bin/", "link", "model.onnx")
        tensor.external_data.add(key="location", value=rng.choice(places))
        for key in ("offset", "length"):
            if rng.random() < 0.5:
                tensor.external_data.add(key=key, value=str(rng.choice((*_NUMBERS, 4096, "0x10", "9" * 5000))))

    def _sparse(self, proto: onnx.ModelProto) -> None:
        """Store a tensor as a sparse one whose indices may be wrong."""
        if not proto.graph.initializer:
            return
        at = self.rng.randrange(len(proto.graph.initializer))
        tensor = copy.deepcopy(proto.graph.initializer[at])
        count = self.rng.choice((0, 1, 3))
        sparse = proto.graph.sparse_initializer.add(dims=tensor.dims)
        sparse.values.CopyFrom(onnx.helper.make_tensor(tensor.name, tensor.data_type, [count], [1] * count))
        where = [self.rng.choice((0, 1, 2, -1, 2**40)) for _ in range(count)]
        sparse.indices.CopyFrom(onnx.helper.make_tensor(f"{tensor.name}_at", onnx.TensorProto.INT64, [count], where))
        del proto.graph.initializer[at]

    def _graft(self, proto: onnx.ModelProto, other: bytes) -> None:
        """Put a part of another file in the place of one of the same type."""
        giver = onnx.ModelProto()
        with contextlib.suppress(Exception):
            giver.ParseFromString(other)
        takers = list(messages_of(proto))
        taker = self.rng.choice(takers)
        gifts = [one for one in messages_of(giver) if one.DESCRIPTOR is taker.DESCRIPTOR]
        if gifts:
            taker.CopyFrom(self.rng.choice(gifts))


# ---------------------------------------------------------------------------------------------------------------------
# Running one


def attempt(path: Path, out: Path, seed: int, stage: Callable[[str], None]) -> tuple[str, str]:
    """The outcome of one file and what was said about it; ``stage`` is told what begins."""
    from graphprune.errors import GraphpruneError

    try:
        return _whole_way(path, out, random.Random(seed), stage)
    except GraphpruneError as error:
        text = str(error)
        return ("words" if len(text) > _LONGEST_LINE else "refused"), f"{type(error).__name__}: {text}"
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "graphprune" in f.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].name}:{frames[-1].lineno}" if frames else "?"
        told = str(error).splitlines()[:1]
        return "traceback", f"{type(error).__name__} in {where}: {''.join(told)[:200]}\n{traceback.format_exc()}"


def _whole_way(path: Path, out: Path, rng: random.Random, stage: Callable[[str], None]) -> tuple[str, str]:
    import numpy as np

    from graphprune.errors import InputError, VerificationError
    from graphprune.frontends.onnx import read_onnx
    from graphprune.ir.store import write_onnx
    from graphprune.passes.files import members_of
    from graphprune.passes.shrink import Shrink
    from graphprune.passes.verify import Verify
    from graphprune.pipeline import load, verify_program

    stage("load")
    network = load(path)
    stage("couple")
    json.dumps(network.analyze().to_json())
    exact = [one for one in network.grouping.groups if one.exact and one.size > 1]
    if not exact:
        return "whole", "nothing to cut"
    keep = {}
    for one in rng.sample(exact, rng.randrange(1, len(exact) + 1)):
        mask = np.zeros(one.size, dtype=np.bool_)
        mask[rng.sample(range(one.size), rng.randrange(1, one.size))] = True
        keep[one.id] = mask
    stage("shrink")
    pruned = Shrink(keep)(network.grouping)
    stage("write")
    write_onnx(pruned, out / "model.onnx", external=rng.random() < 0.3)
    stage("verify")
    try:
        members = members_of(network.grouping, keep)
        verdict = verify_program(network.program, members, read_onnx(out / "model.onnx"), Verify(samples=1), "float32")
    except (InputError, VerificationError) as error:
        return "unproven", str(error)
    if not verdict.passed:
        return "unproven", f"differs by {verdict.max_rel:.1e}"
    return "equal", "proven"


def work() -> None:
    """A worker: reads ``path <tab> seed`` from its input, writes a line of JSON for every stage and outcome."""
    from graphprune.backends import onnxruntime as backend

    backend.RUN_SECONDS = _RUN_SECONDS
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def say(**words: str) -> None:
        print(json.dumps(words), flush=True)

    for line in sys.stdin:
        path, seed = line.rstrip("\n").split("\t")
        out = Path(path).parent / "out"
        out.mkdir()
        kind, text = attempt(Path(path), out, int(seed), lambda name: say(stage=name))
        say(kind=kind, text=text)


class Worker:
    """A worker process and what it said."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.process: subprocess.Popen[str] | None = None
        self.done = 0
        (scratch / "tmp").mkdir(parents=True, exist_ok=True)
        (scratch / "cwd").mkdir(exist_ok=True)

    def _start(self) -> subprocess.Popen[str]:
        root = str(Path(__file__).parent.parent)
        env = {**os.environ, "PYTHONPATH": root, "TMPDIR": str(self.scratch / "tmp"), "OMP_NUM_THREADS": "1"}
        self.done = 0
        return subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz", "--work"],
            cwd=self.scratch / "cwd", env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            self.process = None

    def __call__(self, content: bytes, seed: int) -> tuple[str, str, str]:
        """Outcome, the stage that it came in, and what was said."""
        if self.process is None or self.done >= _LIFE:
            self.stop()
            self.process = self._start()
        self.done += 1
        case = self.scratch / "case"
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        (case / "model.onnx").write_bytes(content)
        (case / "d.bin").write_bytes(bytes(range(256)) * 64)
        (case / "link").symlink_to("/etc/passwd")
        assert self.process.stdin is not None
        self.process.stdin.write(f"{case / 'model.onnx'}\t{seed}\n")
        self.process.stdin.flush()
        kind, stage, text = self._listen(self.process)
        if kind in ("hang", "crash"):
            self.stop()
        # (onnxruntime leaves an empty file ".ses" in the folder for temporary files when it is imported.)
        strewn = [*(self.scratch / "tmp").iterdir(), *(self.scratch / "cwd").iterdir()]
        strewn += [one for one in case.iterdir() if one.name not in ("model.onnx", "d.bin", "link", "out")]
        strewn = [one for one in strewn if one.name != ".ses"]
        for one in strewn:
            shutil.rmtree(one) if one.is_dir() else one.unlink()
        if strewn and kind not in ("hang", "crash"):
            return "litter", stage, f"left {strewn[0].name}"
        return kind, stage, text

    def _listen(self, process: subprocess.Popen[str]) -> tuple[str, str, str]:
        assert process.stdout is not None
        stage, until = "start", time.monotonic() + _SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            buffer = ""
            while True:
                if not selector.select(max(0.0, until - time.monotonic())):
                    return "hang", stage, f"no answer within {_SECONDS:g} s"
                read = os.read(process.stdout.fileno(), 1 << 16).decode(errors="replace")
                if not read:
                    code = process.wait()
                    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                    return "crash", stage, f"the process died: {name}"
                buffer += read
                *lines, buffer = buffer.split("\n")
                for line in lines:
                    said = json.loads(line)
                    if "kind" in said:
                        return said["kind"], stage, said["text"]
                    stage = said["stage"]


# ---------------------------------------------------------------------------------------------------------------------
# The run


def signature(kind: str, stage: str, text: str) -> str:
    """What makes an outcome another one: the words without names and numbers."""
    head = text.split("\n", 1)[0]
    for pattern in (r"'(?:[^'\\]|\\.)*'", r'"[^"]*"', r"\([^()]*\)", r"-?\d[\d.e+,x\-]*"):
        head = re.sub(pattern, "#", head)
    return f"{kind} in {stage}: {head[:160]}"


def fuzz(minutes: float, seed: int, keep: Path | None, executions: int | None = None) -> int:
    """Run; print the figures; 1 if there was a finding."""
    rng = random.Random(seed)
    mutator = Mutator(rng)
    seeds = [make().model.SerializeToString() for make in SAMPLES.values()]
    seeds += [make().SerializeToString() for make in (constant_model, function_model, if_model, sparse_model)]
    corpus = list(seeds)
    seen: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="graphprune-fuzz-") as place:
        worker = Worker(Path(place))
        try:
            done = 0
            while time.monotonic() < end and (executions is None or done < executions):
                base = rng.choice(seeds if rng.random() < 0.5 else corpus)
                content = mutator(base, rng.choice(seeds))
                kind, stage, text = worker(content, done)
                done += 1
                kinds[kind] += 1
                name = signature(kind, stage, text)
                seen[name] += 1
                if seen[name] == 1:
                    corpus.append(content)
                    if kind in KEPT:
                        print(f"{name}\n    {text[:400]}", flush=True)
                        if keep is not None:
                            folder = keep / f"{kind}-{len(seen)}"
                            folder.mkdir(parents=True, exist_ok=True)
                            (folder / "model.onnx").write_bytes(content)
                            (folder / "said.txt").write_text(f"seed {seed}, execution {done - 1}\n{name}\n{text}\n")
        finally:
            worker.stop()
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    print(f"{done} executions (seed {seed}): {shown}; {len(seen)} distinct outcomes")
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        rows = [f"{count}\t{name}" for name, count in seen.most_common()]
        (keep / f"outcomes-{seed}.txt").write_text("\n".join(rows) + "\n")
    found = {kind: kinds[kind] for kind in FINDINGS if kinds[kind]}
    print(f"findings: {', '.join(f'{count} {kind}' for kind, count in found.items())}" if found else "no findings")
    return int(bool(found))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Hostile ONNX files through the whole of graphprune.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--executions", type=int, help="stop after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files of findings")
    parser.add_argument("--case", type=Path, help="run one kept file again")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work()
        return 0
    if given.case is not None:
        with tempfile.TemporaryDirectory() as place:
            worker = Worker(Path(place))
            found = re.search(r"execution (\d+)", (given.case.parent / "said.txt").read_text())
            kind, stage, text = worker(given.case.read_bytes(), int(found[1]) if found else 0)
            worker.stop()
        print(f"{kind} in {stage}: {text}")
        return int(kind in FINDINGS)
    return fuzz(given.minutes, given.seed, given.keep, given.executions)


if __name__ == "__main__":
    sys.exit(main())
