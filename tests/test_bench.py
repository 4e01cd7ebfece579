"""``graphprune bench`` and ``graphprune backends``: options, tables, JSON, CSV, warnings."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import graphprune.latency.measure as measuring
from graphprune.backends import Availability, BackendOptions
from graphprune.backends import base as backends_base
from graphprune.backends.openvino import OpenVinoBackend
from graphprune.cli.runtimes import _TENSORRT, _cpus, runtimes
from graphprune.errors import NoiseError, UsageError
from graphprune.latency import disturbance
from graphprune.latency.results import Comparison, Measurement, Noise, WarmUp
from graphprune.latency.statistics import Estimate, ratio_of_medians
from graphprune.report.tables import _short

FAST = ("--iterations", "12", "--warm-up-ms", "1", "--threads", "1")


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    return network(tmp_path / "relu.onnx", ["N", 4])


def network(path: Path, shape: list[Any], kind: str = "Relu") -> Path:
    graph = helper.make_graph(
        [helper.make_node(kind, ["x"], ["y"], name="n")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def measurement(**changes: Any) -> Measurement:
    noise = Noise(steal_share=0.0, other_cores=0.0, involuntary_switches=0, load_average=0.1)
    print_ = {"backend": "b", "version": "1", "device": "d", "threads": 1, "providers": ["P"], "precision": "f32"}
    fields: dict[str, Any] = {
        "samples_ns": (2_000_000, 2_000_000),
        "round_sizes": (2,),
        "repeats": 1,
        "median_ms": 2.0,
        "mean_ms": 2.5,
        "min_ms": 1.9,
        "max_ms": 9.0,
        "cov": 0.01,
        "percentiles_ms": {},
        "interval_ms": (1.9, 2.2),
        "confidence": 0.95,
        "iterations": 2,
        "warm_up": WarmUp(1.0, 2, True),
        "noise": noise,
        "fingerprint": print_,
    }
    return Measurement(**{**fields, **changes})


# ---- the words of the command --------------------------------------------------------------------------------------


def test_words_find_their_backend() -> None:
    one = runtimes(["onnxruntime"], ["A,B"], ["k=v=w"], threads=3, affinity=(1,))
    assert one == {"onnxruntime": BackendOptions(3, ("A", "B"), settings=(("k", "v=w"),), affinity=(1,))}
    two = runtimes(["onnxruntime", "openvino"], ["openvino:GPU"], ["onnxruntime:a=x:1x3", "openvino:b=2"])
    assert list(two) == ["onnxruntime", "openvino"]
    assert (two["onnxruntime"].providers, two["openvino"].providers) == ((), ("GPU",))
    assert (two["onnxruntime"].settings, two["openvino"].settings) == ((("a", "x:1x3"),), (("b", "2"),))


@pytest.mark.parametrize(
    ("backends", "devices", "settings", "text"),
    [
        (["openvino", "onnxruntime"], ["GPU"], [], "say which backend it is for: --device openvino:GPU"),
        (["onnxruntime"], ["openvino:GPU"], [], r"openvino is not among the backends asked for \(onnxruntime\)"),
        (["onnxruntime", "onnxruntime"], [], [], "onnxruntime is given twice"),
        (["onnxruntime"], ["A", "B"], [], "onnxruntime has two lists of devices"),
        (["onnxruntime"], [], ["novalue"], "write KEY=VALUE"),
        (["onnxruntime"], [], ["a=1", "a=2"], "'a' is given twice"),
        (["onnxrutime"], [], [], r"did you mean 'onnxruntime'\?"),
    ],
)
def test_words_that_make_no_sense(backends: list[str], devices: list[str], settings: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        runtimes(backends, devices, settings)


def test_lists_of_cpus() -> None:
    assert _cpus("") == ()
    assert _cpus("3, 0-2,1") == (3, 0, 1, 2)
    for wrong in ("a", "2-1", "1-", "-1", "0-99999"):
        with pytest.raises(UsageError, match=f"--affinity '{wrong}'"):
            _cpus(wrong)


# ---- measured for real ---------------------------------------------------------------------------------------------


def test_three_networks_in_turn(relu: Path, tmp_path: Path, run_cli: Any) -> None:
    others = [network(tmp_path / f"{kind}.onnx", ["N", 4], kind) for kind in ("Abs", "Neg")]
    table = tmp_path / "t.csv"
    result = run_cli(
        "bench", relu, *others, *FAST, "--percentile", "50", "--percentile", "99", "--csv", table, "--json"
    )
    assert result.code == 0, result.err
    rows = json.loads(result.out)["results"]
    assert [Path(row["model"]).stem for row in rows] == ["relu", "Abs", "Neg"]
    assert [row["ratio"] and row["ratio"]["to"] for row in rows] == [None, str(relu), str(relu)]
    for row in rows:
        assert row["repeats"] == 1  # percentiles are of single runs
        assert row["percentiles_ms"].keys() == ({"p50"} if row["iterations"] >= 20 else set())
        assert row["throughput_per_s"] == pytest.approx(1000 / row["mean_ms"])
        assert row["iterations"] == len(row["samples_ns"]) >= 12
    with table.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [(row["model"], row["backend"], row["threads"]) for row in written] == [
        (row["model"], "onnxruntime", "1") for row in rows
    ]
    assert float(written[2]["ratio"]) == rows[2]["ratio"]["value"]
    assert written[0]["ratio"] == ""


def test_what_cannot_be_done_is_said_before_anything_is_measured(
    relu: Path, tmp_path: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Any] = []
    monkeypatch.setattr(measuring, "measure_in_turn", lambda *given: measured.append(given) or ((measurement(),), ()))
    result = run_cli("bench", relu, "--csv", tmp_path / "none" / "t.csv")
    assert (result.code, "is no folder that can be written" in result.err) == (2, True), result.err
    monkeypatch.setattr(OpenVinoBackend, "available", lambda self: Availability(True, reason="it is asleep"))
    result = run_cli("bench", relu, "--backend", "onnxruntime", "--backend", "openvino")
    assert (result.code, "nothing can be timed on openvino here: it is asleep" in result.err) == (2, True), result.err
    assert not measured
    assert run_cli("bench", relu, "--csv", tmp_path / "t.csv").code == 0


def test_the_batch_is_the_free_first_dimension(
    relu: Path, tmp_path: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, np.ndarray]] = []

    def instead(models: Any, feeds: Any, options: Any) -> Any:
        seen.append(feeds)
        return (measurement(),), ()

    monkeypatch.setattr(measuring, "measure_in_turn", instead)
    result = run_cli("bench", relu, "--batch", "5")
    assert result.code == 0, result.err
    assert seen[0]["x"].shape == (5, 4)
    assert "\nbatch 5, measured on b 1, P, 1 thread; " in result.out
    fixed = network(tmp_path / "fixed.onnx", [2, 4])
    result = run_cli("bench", fixed, "--batch", "5")
    assert result.code == 2
    assert "--batch 5: the first dimension of every input" in result.err
    assert "is fixed (x 2x4); export it with a dynamic batch" in result.err


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot bind a process to CPUs")
def test_the_affinity_holds_in_the_measuring_process(relu: Path, run_cli: Any) -> None:
    cpu = max(os.sched_getaffinity(0))
    result = run_cli("bench", relu, "--iterations", "6", "--warm-up-ms", "1", "--affinity", str(cpu), "--json")
    assert result.code == 0, result.err
    (row,) = json.loads(result.out)["results"]
    assert row["fingerprint"]["affinity"] == [cpu]
    assert row["fingerprint"]["cores"] == row["fingerprint"]["threads"] == 1
    assert cpu in os.sched_getaffinity(0)
    result = run_cli("bench", relu, "--affinity", "60000")
    assert result.code == 2
    assert "affinity: CPU 60000 may not be used by this process; it may use " in result.err


# ---- what is said --------------------------------------------------------------------------------------------------


def test_the_tables_of_two_backends(relu: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = measurement(median_ms=1.0, interval_ms=(0.9, 1.1), mean_ms=1.0)
    slow = measurement(cov=0.2, percentiles_ms={"p99": 8.5}, iterations=1000)

    def instead(models: Any, feeds: Any, options: Any) -> Any:
        a, b = (slow, quick) if options.backend == "onnxruntime" else (quick, slow)
        return (a, b), (Comparison(a, b, 0.5, 0.45, 0.55, 0.95, 12, a.noise, a.fingerprint),)

    monkeypatch.setattr(measuring, "measure_in_turn", instead)
    monkeypatch.setattr(OpenVinoBackend, "available", lambda self: Availability(True, times=True))
    words = ("--backend", "onnxruntime", "--backend", "openvino", "--percentile", "99")
    monkeypatch.chdir(relu.parent)
    result = run_cli("bench", relu.name, relu.name, *words)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    heads = [line for line in lines if "median" in line]
    assert len(heads) == 2
    for words_of_head in ("95% interval", "p99", "CoV", "inferences/s", "samples"):
        assert words_of_head in heads[0]
    rows = [line for line in lines if "relu.onnx" in line and " 400.0 " in line]
    assert len(rows) == 2
    assert all("8.500" in row and "20.0%" in row and "[1.900, 2.200]" in row for row in rows)
    right = {len(line.rstrip()) for line in lines if "400.0" in line or "1000.0" in line or line in heads}
    assert len(right) == 1  # aligned
    assert "ratio 0.500x [0.450, 0.550] (95%, 12 ABBA blocks)" in lines
    assert sum(line.startswith("warning: relu.onnx: the times vary by 20.0%") for line in lines) == 2
    assert "note: p99 takes 1000 samples of each model: --iterations 1000" in lines
    across = [line for line in lines if line.endswith("(measured one after the other)")]
    assert [line.split()[1] for line in across] == ["0.500x", "2.000x"]


def test_long_names_lose_their_folders_where_they_stay_apart() -> None:
    long = "/a/folder/that/has/a/rather/long/name/"
    assert _short([f"{long}a.onnx", "out/b.onnx"]) == ["a.onnx", "b.onnx"]
    assert _short([f"{long}a.onnx", f"{long}a.onnx"]) == ["a.onnx", "a.onnx"]
    assert _short([f"{long}a.onnx", "out/a.onnx"]) == [f"{long}a.onnx", "out/a.onnx"]
    assert _short(["in/a.onnx", "out/b.onnx"]) == ["in/a.onnx", "out/b.onnx"]


@pytest.mark.parametrize(
    ("disturbed", "text"),
    [
        ({"other_cores": 1.3}, "other processes kept 1.3 cores busy"),
        ({"steal_share": 0.05}, "the hypervisor took 5.0% of the processor time"),
        ({"megahertz": (3000.0, 2400.0)}, "the clock went from 3000 to 2400 MHz"),
        ({"heat_throttles": 2}, "slowed down 2 times because they were too hot"),
        ({"quota_share": 0.1}, "limit of processor time stopped the process for 10.0% of it"),
    ],
)
def test_disturbances_are_warned_about(disturbed: dict[str, Any], text: str) -> None:
    quiet = {
        "steal_share": 0.001,
        "other_cores": 0.1,
        "involuntary_switches": 9,
        "load_average": 5.0,
        "megahertz": (3000.0, 3010.0),
        "heat_throttles": 0,
        "quota_share": 0.0,
    }
    assert Noise(**quiet).warnings() == ()
    (said,) = Noise(**{**quiet, **disturbed}).warnings()
    assert text in said


def test_times_that_vary_are_warned_about() -> None:
    assert measurement(cov=0.025).warnings() == ()
    (said,) = measurement(cov=0.026).warnings()
    assert said.startswith("the times vary by 2.6% (coefficient of variation; at most 2.5% is quiet)")
    (said,) = measurement(warm_up=WarmUp(1.0, 2, False)).warnings()
    assert "--warm-up-ms" in said


def test_one_network_that_cannot_be_told() -> None:
    noisy = measurement()
    with pytest.raises(NoiseError, match=r"cannot tell: .* 2\.000 ms .*\[1\.900, 2\.200\], 15\.0% of it wide"):
        noisy.require_quiet(0.1)
    noisy.require_quiet(0.16)


def test_what_the_system_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpus = tmp_path / "cpu"
    for cpu, (kilohertz, heat) in enumerate(((2_000_000, 3), (3_000_000, 4))):
        (cpus / f"cpu{cpu}" / "cpufreq").mkdir(parents=True)
        (cpus / f"cpu{cpu}" / "thermal_throttle").mkdir()
        (cpus / f"cpu{cpu}" / "cpufreq" / "scaling_cur_freq").write_text(f"{kilohertz}\n")
        (cpus / f"cpu{cpu}" / "thermal_throttle" / "core_throttle_count").write_text(f"{heat}\n")
    monkeypatch.setattr(disturbance, "_CPUS", cpus)
    monkeypatch.setattr(disturbance.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    before = disturbance.snapshot()
    (cpus / "cpu0" / "cpufreq" / "scaling_cur_freq").write_text("1000000\n")
    (cpus / "cpu1" / "thermal_throttle" / "core_throttle_count").write_text("9\n")
    found = disturbance.disturbance(before, disturbance.snapshot())
    assert found["megahertz"] == (2500.0, 2000.0)
    assert found["heat_throttles"] == 5
    assert {*found, "load_average"} == set(Noise.__dataclass_fields__)
    files = {
        "/proc/cpuinfo": "processor\t: 0\ncpu MHz\t\t: 2400.0\n\nprocessor\t: 5\ncpu MHz\t\t: 1.0\n",
        "/sys/fs/cgroup/cpu/cpu.stat": "nr_throttled 3\nthrottled_time 5000000\n",
    }
    monkeypatch.setattr(disturbance, "_text", lambda path: files.get(str(path), ""))
    told = disturbance.snapshot()
    assert (told["megahertz"], told["quota_us"], told["heat"]) == (2400.0, 5000, None)
    files["/sys/fs/cgroup/cpu.stat"] = "usage_usec 7\nthrottled_usec 8\n"
    assert disturbance.snapshot()["quota_us"] == 8


def test_a_ratio_of_separate_measurements_covers_the_truth() -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        a, b = np.exp(generator.normal(np.log([3.0, 2.0]), 0.05))
        each = [Estimate(value, value * np.exp(-0.098), value * np.exp(0.098)) for value in (a, b)]
        found = ratio_of_medians(*each)
        assert found.low < found.value < found.high
        covered += found.low <= 1.5 <= found.high
    assert 0.92 <= covered / 400 <= 0.98


# ---- backends ------------------------------------------------------------------------------------------------------


def test_backends_says_what_is_there_and_what_to_install(run_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Backend:
        name = "own"
        load = fingerprint = None

        def available(self) -> backends_base.Availability:
            return backends_base.Availability(True, "7.1", "no device; engines are only built", builds=True)

    class Entry:
        def __init__(self, name: str) -> None:
            self.name, self.value = name, f"package:{name}"

        def load(self) -> object:
            if self.name == "gone":
                raise ImportError("no libgone.so")
            return Backend

    monkeypatch.setattr(backends_base, "entry_points", lambda group: [Entry("own"), Entry("gone")])
    result = run_cli("backends")
    assert result.code == 0, result.err
    lines = {line.split()[0]: line.split() for line in result.out.splitlines() if line.strip()}
    assert lines["backend"] == ["backend", "version", "devices", "builds", "times"]
    assert "CPUExecutionProvider" in lines["onnxruntime"]
    assert lines["onnxruntime"][-2:] == ["yes", "yes"] or lines["onnxruntime"][0] == "onnxruntime:"
    assert lines["own"] == ["own", "7.1", "yes", "no"]
    assert "own: no device; engines are only built" in result.out.splitlines()
    assert "'gone' (package:gone) cannot be loaded: ImportError: no libgone.so" in result.out
    told = {row["backend"]: row for row in json.loads(run_cli("backends", "--json").out)}
    assert told["own"] == {
        "backend": "own",
        "usable": True,
        "version": "7.1",
        "reason": "no device; engines are only built",
        "devices": [],
        "builds": True,
        "times": False,
    }
    assert not told["gone"]["usable"]


def test_the_words_of_tensorrt_become_its_settings(relu: Path, run_cli: Any) -> None:
    given = {flag.strip("-").replace("-", "_"): None for flag, _, _ in _TENSORRT}
    given |= {"opt_shapes": "x:1x4", "version_compatible": True}
    expected = (("opt-shapes", "x:1x4"), ("version-compatible", "true"))
    assert runtimes(["tensorrt"], [], [], **given)["tensorrt"].settings == expected
    two = runtimes(["tensorrt", "openvino"], [], [], **given)
    assert (two["tensorrt"].settings, two["openvino"].settings) == (expected, ())
    for verb, more in (
        ("bench", ()),
        ("profile", ("-o", "t.json")),
        ("export", ("-o", "out", "--target-macs", "0.5x")),
    ):
        result = run_cli(verb, relu, *more, "--hardware-compatible")
        assert result.code == 2
        assert "--hardware-compatible is an option of TensorRT; add --backend tensorrt, or leave it out" in result.err
