"""The command line as a newcomer meets it: every verb, every exit code, what is printed and where."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import models
import onnx
import pytest
from models import Net, Sample
from onnx import TensorProto, numpy_helper
from test_pipeline import broken_shrink, digest

import graphprune.latency.measure as measuring
from graphprune.errors import UsageError

Cli = Callable[..., Any]
FAST = ("--target-params", "0.5x", "--no-measure")


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.residual().save(tmp_path_factory.mktemp("residual") / "rec.onnx")


@pytest.fixture(scope="module")
def exported(residual: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with artefacts of ``residual``."""
    from graphprune.cli.main import main

    out = tmp_path_factory.mktemp("exported")
    assert main(["export", str(residual), "-o", str(out), *FAST]) == 0
    return out


def process(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "graphprune", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def one_line(result: Any, code: int) -> str:
    """The only line of a failure: on stderr, without a traceback."""
    assert (result.code, result.out) == (code, ""), result
    assert result.err.startswith("graphprune: error: ")
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    text: str = result.err.removeprefix("graphprune: error: ").rstrip("\n")
    return text


# Light to start


def imported(program: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program], capture_output=True, text=True, check=True
    )
    return {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if line.count("|") == 2}


@pytest.mark.parametrize(
    "program",
    [
        "import graphprune",
        "import graphprune.cli.main",
        *(
            f"from graphprune.cli.main import main; main(['{verb}', '--help'])"
            for verb in ("analyze", "explain", "export", "bench", "verify", "backends")
        ),
    ],
)
def test_what_starting_does_not_import(program):
    heavy = {
        "numpy",
        "scipy",
        "onnx",
        "onnx_ir",
        "onnxscript",
        "onnxruntime",
        "torch",
        "rich",
        "networkx",
        "matplotlib",
    }
    assert imported(program) & heavy == set()


def test_the_core_imports_no_torch(residual, tmp_path):
    program = (
        f"import sys, graphprune; n = graphprune.load({str(residual)!r}); n.analyze(); "
        f"n.export({str(tmp_path / 'out')!r}, target_params='0.5x', measure=None); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# What is printed


def test_export_says_what_was_asked_reached_and_proved(residual, tmp_path, run_cli):
    result = run_cli("export", residual, "-o", tmp_path / "out", "--target-params", "0.5x", "--no-measure")
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert (result.code, result.err) == (0, "")
    assert "original artefact reached asked" in lines
    assert "parameters 11.95 k 5.92 k 0.495x 0.5x" in lines
    assert any(line.startswith("PASSED: equal to the masked original within ") for line in lines)
    assert lines[-1] == f"written: {tmp_path}/out/model.onnx, plan.json, manifest.json"


def test_an_absolute_target_is_shown_with_its_share(residual, tmp_path, run_cli):
    result = run_cli("export", residual, "-o", tmp_path / "out", "--target-params", "6k", "--no-measure")
    assert "  6k (0.502x)" in result.out


def test_export_measures_in_turn(residual, tmp_path, run_cli):
    words = ("--duration", "50ms", "--warm-up-ms", "5", "--threads", "1")
    result = run_cli("export", residual, "-o", tmp_path / "out", "--target-params", "0.5x", *words)
    assert result.code == 0
    assert "median latency" in result.out
    assert "CPUExecutionProvider, 1 thread;" in result.out
    latency = json.loads((tmp_path / "out" / "manifest.json").read_text())["latency"]
    assert len(latency["a"]["samples_ns"]) == len(latency["b"]["samples_ns"]) > 0


@pytest.mark.parametrize("width", [80, 120, None])
def test_tables_fit_and_numbers_stay_whole(width, run_cli, monkeypatch, tmp_path):
    if width is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(width))
    sample = models.attention()
    for tensor in sample.model.graph.initializer:  # names as exporters write them
        for node in sample.model.graph.node:
            for k, name in enumerate(node.input):
                if name == tensor.name:
                    node.input[k] = f"backbone.blocks.3.attention.{name}"
        tensor.name = f"backbone.blocks.3.attention.{tensor.name}"
    path = sample.save(tmp_path / "long.onnx")
    full = ("g000 neurons 24 6.10 k 85.25 k", "g003 V/O dimensions 6 1.18 k")
    tree = ("neurons 24 97.6% 87.4% g000", "V/O dimensions 6 18.8%")
    for words, groups in ((("analyze", path), tree), (("analyze", path, "--all"), full)):
        result = run_cli(*words)
        assert result.code == 0
        assert max(map(len, result.out.splitlines())) <= (width or 120)
        rows = [" ".join(line.split()) for line in result.out.splitlines()]
        assert all(any(group in row for row in rows) for group in groups), result.out


def test_sentences_stay_on_one_line_in_a_pipe(exported, residual, monkeypatch):
    done = process("verify", residual, exported / "model.onnx", exported / "plan.json", COLUMNS="40")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)


def test_analyze_says_what_refuses(tmp_path, run_cli):
    result = run_cli("analyze", models.custom().save(tmp_path / "m.onnx"))
    assert "1 node is not cut through:\n  Binarizer 'n_binarizer_7': no rule is known for the" in result.out
    assert "parameters       8.00 k, 98.9% governed by exact groups" in result.out
    result = run_cli("analyze", models.nothing().save(tmp_path / "m.onnx"))
    assert "groups           0 exact, 0 stat" in result.out
    assert "note: nothing can be pruned: every axis of its weights reaches an input or an output" in result.out
    result = run_cli("analyze", models.stat_only().save(tmp_path / "m.onnx"))
    assert "neurons, stat" in result.out
    result = run_cli("analyze", models.many().save(tmp_path / "m.onnx"))
    assert result.out.startswith(
        "inputs           left 1x3x8x8, right 1x1x8x8, strength (a scalar), row 1, mask 1x1x1x1\n"
    )


def test_explain_says_what_an_axis_is_tied_to(tmp_path, run_cli):
    path = models.attention().save(tmp_path / "m.onnx")
    result = run_cli("explain", path, "v.weight", 1)
    assert result.out.startswith(
        "v.weight axis 1: 24 indices, structure 4·6\n"
        "  all of the 4 units of group g001 (heads, exact)\n"
        "    producer    q.weight[1]\n"
    )
    assert run_cli("explain", path, "v.weight", -1).out == result.out
    assert run_cli("explain", path, "y", 2).out == (
        "y axis 2: 30 indices, structure 30!\n  30 indices never cut: it is an output of the network ('y' axis 2)\n"
    )


def test_explain_names_the_operator_that_refuses(tmp_path, run_cli):
    result = run_cli("explain", models.custom().save(tmp_path / "m.onnx"), "b.conv.weight", 0)
    assert "20 indices never cut: Binarizer 'n_binarizer_7': no rule is known for the operator of domain" in result.out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("stem.conv.wieght", 0), "the network has no tensor 'stem.conv.wieght'; did you mean stem.conv.weight, "),
        (("stem.conv.weight", 4), "'stem.conv.weight' has 4 axes (16x3x3x3), not axis 4"),
        (("stem.conv.weight", "zero"), "Invalid value for 'AXIS': 'zero' is not a valid integer"),
        (("stem.conv.weight",), "Missing argument 'AXIS' (see graphprune explain --help)"),
    ],
)
def test_explain_refuses(words, text, residual, run_cli):
    assert one_line(run_cli("explain", residual, *words), 2).startswith(text)


def test_names_out_of_a_file_are_no_markup_and_steer_no_terminal(tmp_path, run_cli):
    content = models.plain().model.SerializeToString()
    content = content.replace(b"a.conv.weight", b"a[/b]v.weight").replace(b"b.conv.weight", b"b\x1b[31mv.weigh")
    (tmp_path / "m.onnx").write_bytes(content)
    for words in (("analyze", "--all"), ("explain", "a[/b]v.weight", 0)):
        result = run_cli(words[0], tmp_path / "m.onnx", *words[1:])
        assert result.code == 0
        assert "a[/b]v.weight[0]" in result.out
        assert "b\\x1b[31mv.weigh[" in result.out
        assert "\x1b" not in result.out


# JSON


def test_json_is_all_that_stdout_gets(residual, exported, tmp_path, run_cli):
    for words, key in (
        (("analyze", residual), "groups"),
        (("explain", residual, "stem.conv.weight", "0"), "parts"),
        (("export", residual, "-o", tmp_path / "out", *FAST), "verification"),
        (("verify", residual, exported / "model.onnx", exported / "plan.json"), "passed"),
        (("bench", residual, "--duration", "30ms", "--warm-up-ms", "1"), "results"),
    ):
        result = run_cli(*words, "--json", "-v")
        assert result.code == 0, result.err
        assert key in json.loads(result.out)
        assert "graphprune: debug: observe: " in result.err
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["verification"]["passed"] is True


# Exit codes, by the real command


def test_exit_codes(residual, exported, tmp_path):
    nothing = models.nothing().save(tmp_path / "nothing.onnx")
    damaged = tamper(exported, tmp_path / "damaged.onnx")
    plan = exported / "plan.json"
    for code, words in (
        (0, ("verify", residual, exported / "model.onnx", plan)),
        (2, ("export", tmp_path / "none.onnx", "-o", tmp_path / "out", *FAST)),
        (3, ("export", residual, "-o", tmp_path / "out", "--target-params", "0.001x", "--no-measure")),
        (4, ("verify", residual, damaged, plan)),
        (6, ("export", nothing, "-o", tmp_path / "out", *FAST)),
    ):
        done = process(*words)
        assert done.returncode == code, done
        lines = done.stderr.splitlines()
        assert len(lines) == (code != 0)
        assert all(line.startswith("graphprune: error: ") for line in lines)
    assert not (tmp_path / "out").exists()
    done = process("export", tmp_path / "none.onnx", "-o", tmp_path / "out", *FAST, "-v")
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.rstrip().endswith("none.onnx' does not exist")


def tamper(exported: Path, path: Path) -> Path:
    model = onnx.load(str(exported / "model.onnx"))
    tensor = model.graph.initializer[0]
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] += 0.5
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, str(path))
    return path


def test_a_damaged_artefact_fails_verification(residual, exported, tmp_path, run_cli):
    damaged = tamper(exported, tmp_path / "damaged.onnx")
    result = run_cli("verify", residual, damaged, exported / "plan.json")
    assert result.code == 4
    assert result.out.startswith("FAILED: differs from the masked original by ")
    assert result.err == f"graphprune: error: '{damaged}' is not '{residual}' with the plan's units removed\n"
    result = run_cli("verify", residual, residual, exported / "plan.json", "--json")
    assert (result.code, json.loads(result.out)["passed"]) == (4, False)


def test_another_interface_fails_verification(residual, exported, tmp_path, run_cli):
    model = onnx.load(str(exported / "model.onnx"))
    model.graph.node[-1].output[0] = model.graph.output[0].name = "z"
    onnx.save(model, str(tmp_path / "renamed.onnx"))
    line = one_line(run_cli("verify", residual, tmp_path / "renamed.onnx", exported / "plan.json"), 4)
    assert line == "the cut network has the outputs z, the original has y; they are to be the same"


def test_verify_with_another_source_warns(exported, tmp_path, run_cli):
    sample = models.residual()
    sample.model.doc_string = "another file"
    path = sample.save(tmp_path / "other.onnx")
    result = run_cli("verify", path, exported / "model.onnx", exported / "plan.json")
    assert result.code == 0
    assert result.err == (
        f"graphprune: warning: the plan was made from another file than '{path}' (their SHA-256 differ)\n"
    )
    assert run_cli("verify", path, exported / "model.onnx", exported / "plan.json", "-q").err == ""


def test_verify_in_float64(residual, exported, run_cli):
    words = ("verify", residual, exported / "model.onnx", exported / "plan.json", "--json", "--samples", "1")
    result = json.loads(run_cli(*words, "--dtype", "float64").out)
    assert (result["passed"], result["dtype"]) == (True, "float64")
    assert result["max_rel"] < 1e-13


def test_export_verified_in_float64(residual, tmp_path, run_cli):
    result = run_cli("export", residual, "-o", tmp_path / "out", *FAST, "--verify-dtype", "float64", "--samples", "1")
    assert result.code == 0
    assert "(3 inputs, float64, " in result.out


def test_a_wrong_cut_is_exit_code_4_and_nothing_is_there(residual, tmp_path, run_cli, monkeypatch):
    broken_shrink(monkeypatch)
    line = one_line(run_cli("export", residual, "-o", tmp_path / "out", *FAST), 4)
    assert line.startswith("the cut network differs from its masked original by ")
    assert line.endswith("Nothing was written. Please report this network; --exclude can leave the part out")
    assert os.listdir(tmp_path) == []


# Options of export


@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("criterion", ["magnitude", "lamp", "fpgm", "bn-scale", "random"])
def test_every_criterion_and_allocation(criterion, allocation, residual, tmp_path, run_cli):
    words = ("--criterion", criterion, "--allocation", allocation, "--json")
    result = run_cli("export", residual, "-o", tmp_path / "out", *FAST, *words)
    assert result.code == 0, result.err
    manifest = json.loads(result.out)
    assert (manifest["options"]["criterion"], manifest["options"]["allocation"]) == (criterion, allocation)
    assert 0.98 * manifest["asked"]["params"] <= manifest["reached"]["params"] <= manifest["asked"]["params"]
    shares = [group["kept"] / group["size"] for group in manifest["groups_cut"]]
    assert len(shares) == 4 or allocation == "global"
    if allocation == "uniform":
        assert max(shares) - min(shares) < 0.2


@pytest.mark.parametrize("option", ["p=1", "reduce=max", "normalize=none", "roles=producer", "roles=producer,consumer"])
def test_options_of_a_criterion(option, residual, tmp_path, run_cli):
    assert run_cli("export", residual, "-o", tmp_path / "out", *FAST, "--criterion-option", option).code == 0


def test_the_seed_is_that_of_the_random_criterion(residual, tmp_path, run_cli):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        words = ("--criterion", "random", "--seed", seed)
        assert run_cli("export", residual, "-o", tmp_path / folder, *FAST, *words).code == 0
    a, b, c = ((tmp_path / folder / "plan.json").read_bytes() for folder in "abc")
    assert a == b != c


def test_exclude_include_align_and_floor(residual, tmp_path, run_cli):
    words = ("--exclude", "stem*", "--exclude", "down*", "--align", "2", "--floor", "0.25", "--target-macs", "0.8x")
    result = run_cli("export", residual, "-o", tmp_path / "out", "--no-measure", *words)
    assert result.code == 0, result.err
    groups = json.loads((tmp_path / "out" / "plan.json").read_text())["groups"]
    assert all(len(group["kept"]) % 2 == 0 and len(group["kept"]) >= group["size"] / 4 for group in groups)
    assert {group["id"] for group in groups} <= {"g001", "g002"}


def test_replaying_a_plan(residual, exported, tmp_path, run_cli):
    result = run_cli("export", residual, "-o", tmp_path / "out", "--plan", exported / "plan.json", "--no-measure")
    assert result.code == 0
    for file in ("model.onnx", "plan.json"):
        assert (tmp_path / "out" / file).read_bytes() == (exported / file).read_bytes()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "say what to reach: --target-latency 0.6x, --target-params 0.5x, --target-macs 0.7x, --max-drop 1%, or "),
        (("--target-params", "0"), "The target '0' for params is 0: nothing would be left; write a fraction"),
        (("--target-params", "0x"), "The target '0x' for params is 0: nothing would be left"),
        (("--target-params", "-1"), "The target '-1' for params is negative"),
        (("--target-params", "1.5x"), "The target '1.5x' for params is above 1x, the original itself"),
        (
            ("--target-params", "0.5"),
            "The target '0.5' for params is not a whole number of parameters (did you mean",
        ),
        (("--target-params", "half"), "The target 'half' for params is not a number; write a fraction"),
        (("--target-macs", "nan"), "The target 'nan' for macs is not a number"),
        (("--target-macs", "1.2q"), "The target '1.2q' for macs is not a number"),
        (("--target-macs", "99G"), "The target of 99,000,000,000 MACs is above 1x: the network has only 370,296;"),
        (
            (*FAST, "--exclude", "stem.conv.wieght"),
            "--exclude 'stem.conv.wieght' matches no tensor, node or",
        ),
        ((*FAST, "--include", "zzz*"), "--include 'zzz*' matches no tensor, node or parameter; `graphprune analyze`"),
        ((*FAST, "--criterion", "magnitud"), "There is no criterion 'magnitud'; did you mean 'magnitude'?"),
        ((*FAST, "--allocation", "best"), "There is no allocator 'best'; known are 'global', 'knapsack', 'uniform'."),
        ((*FAST, "--criterion-option", "q=1"), "The criterion 'magnitude' has no option 'q'; known are 'p', 'reduce'"),
        ((*FAST, "--criterion-option", "p"), "--criterion-option 'p': write KEY=VALUE, for example p=1"),
        ((*FAST, "--floor", "2"), "Invalid value for '--floor': 2.0 is not in the range"),
        ((*FAST, "--align", "0"), "Invalid value for '--align': 0 is not in the range"),
        ((*FAST, "--input-shapes", "x:1x3x8"), "input 'x' is declared as ?x3x8x8, which 1x3x8 does not fit"),
        ((*FAST, "--input-shapes", "image:1x3x8x8"), "the model has no input 'image'; it has 'x'"),
        ((*FAST, "--input-shapes", "x:1x3x0x8"), "--input-shapes 'x:1x3x0x8': '0' is not a whole number of at least 1"),
        ((*FAST, "--atol", "-1"), "--atol -1.0: not a tolerance"),
        ((*FAST, "--output-folder", "x"), "No such option '--output-folder'"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_writes_nothing(words, text, residual, tmp_path, run_cli):
    line = one_line(run_cli("export", residual, "-o", tmp_path / "deep" / "out", *words), 2)
    assert line.startswith(text)
    assert os.listdir(tmp_path) == []


def test_the_nearest_names_are_given(residual, tmp_path, run_cli):
    line = one_line(run_cli("export", residual, "-o", tmp_path, *FAST, "--exclude", "stem.conv.wieght"), 2)
    assert line.split("did you mean ")[1].startswith("stem.conv.weight, ")


# Bad input


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def external(folder: Path, location: str) -> Path:
    model = copy.deepcopy(models.plain().model)
    tensor = model.graph.initializer[0]
    raw = numpy_helper.to_array(tensor).tobytes()
    for name in ("raw_data", "float_data"):
        tensor.ClearField(name)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(raw)))):
        tensor.external_data.add(key=key, value=value)
    (folder.parent / "secret.bin").write_bytes(raw)
    return write(folder / "m.onnx", model.SerializeToString())


def linked(folder: Path, hard: bool) -> Path:
    path = external(folder, "weights.bin")
    if hard:
        os.link(folder.parent / "secret.bin", folder / "weights.bin")
    else:
        (folder / "weights.bin").symlink_to("../secret.bin")
    return path


def with_opset(folder: Path, opset: int) -> Path:
    model = copy.deepcopy(models.plain().model)
    model.opset_import[0].version = opset
    return write(folder / "m.onnx", model.SerializeToString())


BAD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda d: d / "m.onnx", "does not exist"),
    "a folder": (lambda d: d, "is a folder, not an ONNX file"),
    "empty": (lambda d: write(d / "m.onnx", b""), "is empty"),
    "text": (lambda d: write(d / "m.onnx", b"hello, world\n" * 50), "is not an ONNX model"),
    "a checkpoint": (lambda d: write(d / "m.onnx", b"PK\x03\x04" + bytes(100)), "is a zip archive"),
    "cut short": (
        lambda d: write(d / "m.onnx", models.plain().model.SerializeToString()[:-999]),
        "is cut short: its graph takes",
    ),
    "no external data": (lambda d: external(d, "weights.bin"), "its external data 'weights.bin' is missing"),
    "external data above": (lambda d: external(d, "../secret.bin"), "leaves the model's folder through '..'"),
    "external data elsewhere": (lambda d: external(d, "/etc/passwd"), "is an absolute path"),
    "external data linked": (lambda d: linked(d, hard=False), "leaves the model's folder through a symbolic link"),
    "external data shared": (lambda d: linked(d, hard=True), "has 2 hard links"),
    "opset 27": (lambda d: with_opset(d, 27), "it uses opset 27 of ai.onnx, which onnxruntime "),
    "opset 99": (lambda d: with_opset(d, 99), "it uses opset 99 of ai.onnx, which onnxruntime "),
}


@pytest.mark.parametrize(("make", "text"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_files_are_one_line_for_every_verb(make, text, tmp_path, run_cli):
    (tmp_path / "in").mkdir()
    path = make(tmp_path / "in")
    before = sorted(os.listdir(tmp_path))
    line = one_line(run_cli("export", path, "-o", tmp_path / "out", *FAST), 2)
    assert text in line
    assert line.startswith(f"'{path}'")
    assert sorted(os.listdir(tmp_path)) == before
    for verb, more in (("analyze", ()), ("explain", ("x", 0)), ("bench", ())):
        assert one_line(run_cli(verb, path, *more), 2) == line


def test_an_output_folder_that_cannot_be(residual, tmp_path, run_cli):
    before = digest(residual)
    for out in (residual, residual / "out"):
        line = one_line(run_cli("export", residual, "-o", out, *FAST), 2)
        assert line.startswith(f"cannot write into '{out}': ")
    assert digest(residual) == before


@pytest.mark.skipif(not Path("/dev/full").exists() or os.geteuid() != 0, reason="needs to mount a file system")
def test_a_full_disk(tmp_path, run_cli):
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting is not possible here")
    try:
        net = Net()
        x = net.op("Relu", net.linear(net.input("x", ["batch", 64]), "a", 64, 512))
        net.linear(x, "b", 512, 64, out="y")
        path = Sample(net.build({"y": None}), {}).save(tmp_path / "m.onnx")
        assert "no space left on the device" in one_line(run_cli("export", path, "-o", small, *FAST), 2)
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_read_only_folder(residual, tmp_path, run_cli):
    if os.geteuid() == 0:
        if not Path("/proc/self").is_dir():
            pytest.skip("root may write anywhere")
        out = Path("/proc/self/graphprune")  # where even root makes no folder
    else:
        tmp_path.chmod(0o555)
        out = tmp_path / "out"
    assert one_line(run_cli("export", residual, "-o", out, *FAST), 2).startswith(f"cannot write into '{out}': ")


def test_modules_that_are_not_there(run_cli):
    assert one_line(run_cli("analyze", "nowhere.py:net"), 2) == "'nowhere.py' does not exist"
    assert one_line(run_cli("analyze", "nowhere:net"), 2).startswith("there is no module 'nowhere' to import")


# bench


def test_bench_of_two(residual, exported, run_cli):
    result = run_cli("bench", residual, exported / "model.onnx", "--duration", "50ms", "--warm-up-ms", "1")
    assert result.code == 0
    assert "model (times in ms)" in result.out
    assert "\nratio " in result.out
    assert "ABBA blocks)" in result.out


def test_bench_refuses(residual, tmp_path, run_cli):
    other = models.attention().save(tmp_path / "other.onnx")
    for words, text in (
        ((residual, tmp_path / "none.onnx"), "none.onnx: there is no such file."),
        ((residual, other, "--duration", "20ms"), "other.onnx: there is no input 'x'; it has 'ids'."),
        ((residual, "--providers", "GPU"), "has no execution provider 'GPU' here; available: "),
        ((residual, "--duration", "0"), "--duration '0': not a length of time above 0"),
    ):
        assert text in one_line(run_cli("bench", *words), 2)


def test_too_noisy_is_exit_code_5(residual, run_cli, monkeypatch):
    monkeypatch.setattr(measuring, "MeasureOptions", partial(measuring.MeasureOptions, max_duration=0.1))
    result = run_cli("bench", residual, "--duration", "30ms", "--warm-up-ms", "1", "--max-width", "1e-9")
    assert result.code == 5
    assert "samples" in result.out
    assert result.err.startswith("graphprune: error: cannot tell: the machine is too noisy. The median ")


def test_a_long_warm_up_is_allowed(residual, run_cli, monkeypatch):
    def instead(_models: tuple[Path, ...], _feeds: Any, options: measuring.MeasureOptions) -> None:
        raise UsageError(f"{options.warm_up_ms:g} of {options.warm_up_cap_ms:g}")

    monkeypatch.setattr(measuring, "measure_in_turn", instead)
    assert one_line(run_cli("bench", residual, "--warm-up-ms", "3000"), 2) == "3000 of 6000"
