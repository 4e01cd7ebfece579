"""What an export leaves in its folder: shards of a bounded size, no data of earlier exports, no staging folders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from glob import glob
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import SAMPLES, Net
from onnx import helper, numpy_helper
from onnx_files import X, dense_model, model_of, run, save, value, weights

from graphprune.errors import UsageError
from graphprune.frontends.onnx import read_onnx
from graphprune.ir.files import byte_count, sha256_of, staging_folder
from graphprune.ir.store import external_locations, write_onnx
from graphprune.pipeline import load

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("text", "count"),
    [("500MB", 500_000_000), ("2GB", 2_000_000_000), ("2GiB", 2**31), ("1.5 kb", 1500), ("10", 10), ("1TiB", 2**40)],
)
def test_sizes(text, count):
    assert byte_count(text, "--max-shard-size") == count


@pytest.mark.parametrize("text", ["", "0", "-1GB", "0.0001KB", "GB", "2 G B", "2PB", "1e9", "nan", "9" * 400])
def test_what_is_no_size(text):
    with pytest.raises(UsageError) as caught:
        byte_count(text, "--max-shard-size")
    assert str(caught.value) == f"--max-shard-size {text!r}: write a size such as 500MB, 2GB or 2GiB"


def layers(*widths: int) -> onnx.ModelProto:
    """``x @ w0 @ w1 ...``."""
    sizes = (32, *widths)
    held = [numpy_helper.from_array(weights(a, b, seed=a) / a, f"w{i}") for i, (a, b) in enumerate(zip(sizes, widths))]  # noqa: B905
    names = ["x", *(f"h{i}" for i in range(1, len(widths))), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(len(widths))]
    return model_of(nodes, held, outputs=[value("y", "batch", widths[-1])])


def test_shards(tmp_path):
    path = save(layers(64, 64, 64, 512, 16), tmp_path)  # 8, 16, 16, 128 and 32 KiB
    (tmp_path / "out").mkdir()
    written = write_onnx(read_onnx(path), tmp_path / "out" / "m.onnx", max_shard_size=40_000)
    assert [(file.name, file.stat().st_size) for file in written[:-1]] == [
        ("m-00001-of-00004.onnx.data", 8192 + 16384),
        ("m-00002-of-00004.onnx.data", 16384),
        ("m-00003-of-00004.onnx.data", 131072),  # one tensor, larger than a shard
        ("m-00004-of-00004.onnx.data", 32768),
    ]
    assert written[-1].name == "m.onnx"
    onnx.checker.check_model(written[-1], full_check=True)
    np.testing.assert_allclose(run(written[-1], x=X)[0], run(path, x=X)[0], rtol=1e-6)
    back = read_onnx(written[-1])
    assert external_locations(back) == tuple(file.name for file in written[:-1])
    np.testing.assert_array_equal(back.graph.initializers["w3"].const_value.numpy(), weights(64, 512, seed=64) / 64)


def test_what_fits_into_one_shard_is_written_as_ever(tmp_path):
    model = read_onnx(save(layers(64, 16), tmp_path))
    assert [file.name for file in write_onnx(model, tmp_path / "a.onnx", max_shard_size=20_000)] == ["a.onnx"]
    both = write_onnx(model, tmp_path / "b.onnx", max_shard_size=20_000, external=True)
    assert [file.name for file in both] == ["b.onnx.data", "b.onnx"]


def listed(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_an_export_with_shards_and_then_without(tmp_path, run_cli):
    path = save(layers(64, 64, 64, 512, 16), tmp_path)
    out = tmp_path / "out"
    words = ("export", path, "-o", out, "--target-params", "0.8x", "--no-measure")
    assert run_cli(*words, "--max-shard-size", "30KB").code == 0
    manifest = json.loads((out / "manifest.json").read_text())
    data = [name for name in listed(out) if name.endswith(".data")]
    assert data == [f"model-{i:05}-of-{len(data):05}.onnx.data" for i in range(1, len(data) + 1)] and len(data) > 1
    assert manifest["artefact"]["sha256"] == sha256_of(out / "model.onnx", data)
    assert run_cli("verify", path, out / "model.onnx", out / "plan.json").code == 0

    (out / "model-00001-of-00009.onnx.data").write_text("somebody's own")
    assert run_cli(*words).code == 0
    assert listed(out) == [
        "README.md",
        "manifest.json",
        "model-00001-of-00009.onnx.data",
        "model.onnx",
        "plan.json",
        "report.html",
    ]


def test_a_manifest_that_lies_removes_nothing_else(tmp_path, run_cli):
    path = save(SAMPLES["plain"]().model, tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    for name in ("precious", "out/notes.txt", "out/model.onnx.data"):
        (tmp_path / name).write_text("kept?")
    named = ["../precious", "notes.txt", str(tmp_path / "precious"), "model.onnx.data", "model-1-of-2.onnx.data/..", 3]
    (out / "manifest.json").write_text(json.dumps({"artefact": {"sha256": named}}))
    assert run_cli("export", path, "-o", out, "--target-params", "0.8x", "--no-measure").code == 0
    assert listed(out) == ["README.md", "manifest.json", "model.onnx", "notes.txt", "plan.json", "report.html"]
    assert (tmp_path / "precious").exists()


def test_the_shards_that_the_source_reads_are_spared(tmp_path):
    write_onnx(read_onnx(save(layers(64, 64, 16), tmp_path, "in.onnx")), tmp_path / "model.onnx", max_shard_size=10_000)
    network = load(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=r"would overwrite the source; choose another output folder$"):
        network.export(tmp_path, target_params="0.8x", measure=None)
    other = tmp_path / "other.onnx"
    (tmp_path / "model.onnx").rename(other)
    with pytest.raises(UsageError, match=r"model-00001-of-0000\d\.onnx\.data' would overwrite the source"):
        load(other).export(tmp_path, target_params="0.8x", measure=None)


def test_a_shard_size_that_is_none_is_refused_before_anything_is_read(tmp_path, run_cli):
    result = run_cli(
        "export", tmp_path / "none.onnx", "-o", tmp_path / "out", "--target-params", "1x", "--max-shard-size", "big"
    )
    assert (result.code, result.err) == (
        2,
        "graphprune: error: --max-shard-size 'big': write a size such as 500MB, 2GB or 2GiB\n",
    )


def test_staging_folders_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path):
    hour_ago = time.time() - 3600

    def old(path: Path) -> Path:
        os.utime(path, (hour_ago, hour_ago))
        return path

    dead = tmp_path / ".graphprune-dead"
    dead.mkdir()
    (dead / "model.onnx").touch()
    old(dead)
    fresh = tmp_path / ".graphprune-fresh"
    fresh.mkdir()
    (tmp_path / ".graphprune-file").touch()
    old(tmp_path / ".graphprune-file")
    with staging_folder(tmp_path) as living:
        old(living)
        with staging_folder(tmp_path) as second:
            assert {living.name, second.name, fresh.name, ".graphprune-file"} == set(listed(tmp_path))
    assert listed(tmp_path) == [".graphprune-file", ".graphprune-fresh"]


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_an_export_in_order(tmp_path, number, code):
    path = save(SAMPLES["plain"]().model, tmp_path)
    out = tmp_path / "out"
    words = [sys.executable, "-m", "graphprune", "export", str(path), "-o", str(out), "--target-params", "0.8x"]
    before = signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored, and children inherit that
    try:
        process = subprocess.Popen(
            [*words, "--duration", "60s"], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
    finally:
        signal.signal(number, before)
    try:
        until = time.monotonic() + 120
        while not glob(f"{out}/.graphprune-*/plan.json"):  # written before the measurement begins
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err.splitlines()[-1:]) == (code, [f"graphprune: terminated by {number.name}"])
    assert not out.exists()


def test_dense_model_is_unchanged_by_a_large_shard_size(tmp_path):
    model = read_onnx(save(dense_model(), tmp_path))
    write_onnx(model, tmp_path / "a.onnx")
    write_onnx(model, tmp_path / "b.onnx", max_shard_size=10**9)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_weights_that_are_listed_as_inputs_and_cast_leave_nothing_behind(tmp_path):
    net = Net(opset=8, ir_version=3)
    x = net.op("Cast", net.input("x", [1, 3, 8, 8]), to=onnx.TensorProto.FLOAT16)
    for name, i, o in (("first", 3, 16), ("second", 16, 4)):
        weight = net.op("Cast", net.weight(name, o, i, 3, 3), to=onnx.TensorProto.FLOAT16)
        x = net.op("Relu", net.op("Conv", x, weight))
    net.op("Cast", x, to=onnx.TensorProto.FLOAT, out="y")
    onnx.save(net.build({"y": [1, 4, 4, 4]}), tmp_path / "old.onnx")
    result = load(tmp_path / "old.onnx").export(tmp_path / "out", target_params="0.5x", measure=None)
    made = onnx.load(result.model)
    onnx.checker.check_model(made)
    assert [one.name for one in made.graph.input] == ["x"]
    assert sum(int(np.prod(one.dims)) for one in made.graph.initializer) == result.reached["params"]
