"""Measuring: the statistics on simulated samples, and the round trip through the worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_files import one_node, rows_of

from graphprune.backends import BackendOptions
from graphprune.errors import GraphpruneError, InputError, NoiseError, UsageError
from graphprune.latency import measure as measuring
from graphprune.latency import statistics, worker
from graphprune.latency.measure import Comparison, Measurement, MeasureOptions, Noise, compare_if_worth, measure

QUICK = MeasureOptions(duration=0.05, rounds=2, warm_up_ms=1, warm_up_cap_ms=50, resamples=200)


# ---- statistics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rounds", "samples", "between", "within"),
    [(6, 20, 0.0, 0.05), (6, 20, 0.02, 0.05), (3, 10, 0.02, 0.02), (1, 40, 0.0, 0.05)],
)
def test_the_interval_covers_the_median(rounds: int, samples: int, between: float, within: float) -> None:
    generator = np.random.default_rng(7)
    trials, covered = 200, 0
    for trial in range(trials):
        levels = between * generator.standard_normal((rounds, 1))
        data = np.exp(levels + within * generator.standard_normal((rounds, samples)))
        found = statistics.median_estimate(list(data), resamples=300, seed=trial)
        assert found.low <= found.value <= found.high
        covered += found.low <= 1.0 <= found.high
    assert covered / trials >= 0.92  # nominal 0.95, with three standard errors of 200 trials below it
    assert found.high - found.low < 8 * max(between, within / np.sqrt(samples))


def test_the_interval_is_seeded_and_narrows_with_the_confidence() -> None:
    data = [np.random.default_rng(index).lognormal(size=30) for index in range(4)]
    estimate = statistics.median_estimate(data, seed=3)
    assert estimate == statistics.median_estimate(data, seed=3)
    narrow = statistics.median_estimate(data, seed=3, confidence=0.5)
    assert estimate.low < narrow.low < narrow.high < estimate.high


def test_too_few_samples_give_no_interval() -> None:
    assert [statistics.fewest(confidence) for confidence in (0.5, 0.9, 0.95, 0.99)] == [2, 5, 6, 8]
    with pytest.raises(ValueError, match="5 samples: a 95% interval of a median takes 6 or more"):
        statistics.median_estimate([np.ones(5)])
    six = statistics.median_estimate([np.arange(6.0)])
    assert (six.low, six.value, six.high) == (0.0, 2.5, 5.0)


def test_block_ratios_cancel_a_drift_and_a_load() -> None:
    clock = np.arange(400) * 0.01 + 1.0
    clock[100:200] *= 3.0
    blocks = clock.reshape(-1, 4)
    a, b = blocks[:, [0, 3]].ravel(), 0.6 * blocks[:, [1, 2]].ravel()
    np.testing.assert_allclose(statistics.block_ratios(a, b), 0.6)


def test_percentiles_need_samples_beyond_them() -> None:
    assert statistics.percentiles(np.arange(99)) == {}
    assert set(statistics.percentiles(np.arange(100))) == {"p90"}
    assert set(statistics.percentiles(np.arange(200))) == {"p90", "p95"}
    assert statistics.percentiles(np.arange(1001.0)) == {"p90": 900.0, "p95": 950.0, "p99": 990.0}


def test_coefficient_of_variation() -> None:
    assert statistics.coefficient_of_variation([5.0]) == 0.0
    assert statistics.coefficient_of_variation([1.0, 3.0]) == pytest.approx(np.sqrt(2) / 2)


# ---- the worker ----------------------------------------------------------------------------------------------------


def test_warm_up_goes_on_until_it_is_steady_and_batches_short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0
    costs: list[int] = []

    def run() -> None:
        nonlocal now
        now += costs.pop(0) if len(costs) > 1 else costs[0]

    monkeypatch.setattr(worker.time, "perf_counter_ns", lambda: now)
    costs[:] = [90_000_000] * 3 + [60_000_000] * 3 + [30_000_000]
    model = worker._warm_up(run, 0, 5000, None)
    assert (model.warm_up["runs"], model.warm_up["settled"], model.repeats) == (12, True, 1)
    assert not model.lead_in
    costs[:] = [30_000]
    model = worker._warm_up(run, 200, 5000, None)
    assert (model.repeats, model.lead_in) == (7, True)
    assert model.warm_up["ms"] >= 200
    assert worker._warm_up(run, 0, 500, 4).repeats == 4
    costs[:] = [10_000_000_000]
    model = worker._warm_up(run, 200, 5000, None)
    assert (model.warm_up["runs"], model.warm_up["settled"]) == (1, False)


def test_blocks_hold_two_samples_of_each_model_in_both_orders() -> None:
    order: list[str] = []
    models = [worker._Timed(lambda name=name: order.append(name), 1, False, {}) for name in "AB"]  # type: ignore[misc]
    a, b = worker._sample_in_turn(models, 0.0, 20, seed=1)
    assert len(a) == len(b) == 40
    assert {"".join(order[i : i + 4]) for i in range(0, 80, 4)} == {"ABBA", "BAAB"}


def test_one_network_round_trip(model: Path) -> None:
    result = measure(model, None, rows_of(), QUICK)
    assert isinstance(result, Measurement)
    assert result.iterations == len(result.samples_ns) == sum(result.round_sizes) >= 10
    assert len(result.round_sizes) == 2
    assert 0 < result.min_ms <= result.median_ms <= result.max_ms
    assert 0 < result.interval_ms[0] <= result.median_ms <= result.interval_ms[1]
    assert result.repeats > 1
    assert result.percentiles_ms == {}
    assert result.warm_up.runs > 0
    assert result.fingerprint["spinning"] is True
    written = json.loads(json.dumps(result.to_json()))
    assert written == result.to_json()
    assert written["samples_ns"] == list(result.samples_ns)


def test_comparison_round_trip(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bigger = tmp_path / "bigger.onnx"
    onnx.save(one_node("Softmax"), bigger)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit('the working folder is on the path')")
    options = replace(QUICK, backend_options=BackendOptions(threads=1))
    result = measure(Path("model.onnx"), Path("bigger.onnx"), rows_of(), options)
    assert isinstance(result, Comparison)
    assert 0 < result.ratio_low <= result.ratio <= result.ratio_high
    assert result.a.iterations == result.b.iterations == 2 * result.blocks >= 12
    assert (result.fingerprint["spinning"], result.fingerprint["threads"]) == (False, 1)
    assert json.loads(json.dumps(result.to_json()))["noise"].keys() == vars(result.noise).keys()
    assert result.too_noisy(result.width / 2)
    assert not result.too_noisy(result.width * 2)


@dataclass
class Simulated:
    """Stands for the measuring process: one second a round, times of 10 and 7.5 ms with 2 % between rounds."""

    jobs: list[dict[str, Any]] = field(default_factory=list)
    now: float = 0.0
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __call__(self, job: dict[str, Any], *_: object) -> tuple[dict[str, Any], list[np.ndarray]]:
        self.now += 1.0
        self.jobs.append(job)
        warm = {"ms": 1.0, "runs": 2, "settled": True}
        noise = {"steal_share": 0.0, "other_cores": None, "involuntary_switches": 3, "load_average": 1.0}
        result = {"warm_ups": [warm, warm], "repeats": [2, 4], "noise": noise, "fingerprint": {}}
        level = self.generator.normal(1.0, 0.02, 2)
        return result, [
            np.full(8, time * part * 1e6).astype(np.int64) for time, part in zip((20, 30), level, strict=True)
        ]


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Simulated:
    worker = Simulated()
    monkeypatch.setattr(measuring, "run_worker", worker)
    monkeypatch.setattr(measuring.time, "monotonic", lambda: worker.now)
    return worker


def test_rounds_are_added_until_the_interval_is_narrow(simulated: Simulated) -> None:
    jobs = simulated.jobs
    found = measure(Path("a"), Path("b"), None, MeasureOptions(max_width=0.02))
    assert isinstance(found, Comparison)
    assert len(jobs) > 6
    assert found.width <= 0.02
    assert found.ratio_low <= 0.75 <= found.ratio_high
    assert [job["load_order"] for job in jobs[:3]] == [[0, 1], [1, 0], [0, 1]]
    assert (jobs[0]["repeats"], jobs[1]["repeats"]) == ([None, None], [2, 4])
    assert (found.blocks, found.a.round_sizes) == (4 * len(jobs), (8,) * len(jobs))
    assert (found.noise.involuntary_switches, found.noise.other_cores) == (3 * len(jobs), None)
    assert found.a.samples_ns[0] == pytest.approx(10e6, rel=0.1)
    jobs.clear()
    measure(Path("a"), Path("b"), None, MeasureOptions(max_width=1e-6, max_duration=9.0))
    assert len(jobs) == 9


def test_a_comparison_that_is_not_worth_it_ends_half_way(simulated: Simulated) -> None:
    seen: list[int] = []

    def worth(answer: bool) -> Callable[[Comparison], bool]:
        return lambda comparison: seen.append(comparison.blocks) or answer

    options = MeasureOptions(duration=1.2, max_width=1e-6, max_duration=9.0)
    found = compare_if_worth(Path("a"), Path("b"), None, options, worth(False))
    assert (len(simulated.jobs), found.blocks, seen) == (3, 12, [12])
    simulated.jobs.clear()
    found = compare_if_worth(Path("a"), Path("b"), None, options, worth(True))
    assert (len(simulated.jobs), found.blocks, seen) == (9, 36, [12, 12]), "the first rounds count"
    lengths = [job["duration"] for job in simulated.jobs]
    assert lengths == pytest.approx([0.2] * 3 + [0.8] * 6), "from then on as long as getting ready takes"
    assert found.width > 0.01


def test_a_noisy_comparison_says_what_disturbed_it(model: Path) -> None:
    one = measure(model, None, rows_of(), replace(QUICK, rounds=1, duration=0.0))
    assert isinstance(one, Measurement)
    noise = Noise(steal_share=0.02, other_cores=1.5, involuntary_switches=7, load_average=2.0)
    noisy = Comparison(one, one, 0.5, 0.45, 0.55, 0.95, 12, noise, {})
    with pytest.raises(NoiseError, match=r"0\.500 has the interval \[0\.450, 0\.550\], 20\.0% .* kept 1\.5 cores busy"):
        noisy.require_quiet(0.05)
    noisy.require_quiet(0.21)


def test_errors_of_the_child_keep_their_class_and_text(model: Path) -> None:
    with pytest.raises(InputError, match=r"model\.onnx: input 'x' takes float32\[N,8\], but float32\[2,9\] was given"):
        measure(model, None, rows_of(size=9), QUICK)
    with pytest.raises(UsageError, match="no execution provider 'Foo'"):
        measure(model, None, rows_of(), replace(QUICK, backend_options=BackendOptions(providers=("Foo",))))


def test_a_crashing_or_hanging_child_is_reported(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "plugin"
    info = plugin / "plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[graphprune.backends]\n" + "".join(f"{n} = plug:{n}\n" for n in ("dies", "fails", "hangs"))
    )
    (plugin / "plug.py").write_text(
        textwrap.dedent("""
        import os, signal, sys, time
        def act(what):
            class Backend:
                name = "x"; available = fingerprint = None
                def load(self, path, options): what()
            return Backend
        def die():
            print("cannot map page", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        def fail(): raise KeyError("lost")
        dies, fails, hangs = act(die), act(fail), act(lambda: time.sleep(60))
        """)
    )
    monkeypatch.syspath_prepend(str(plugin))
    with pytest.raises(InputError, match=r"model\.onnx was ended by SIGKILL .*its last words: cannot map page"):
        measure(model, None, rows_of(), replace(QUICK, backend="dies"))
    with pytest.raises(GraphpruneError, match=r"failed with exit code 1; its last words: KeyError: 'lost'"):
        measure(model, None, rows_of(), replace(QUICK, backend="fails"))
    with pytest.raises(GraphpruneError, match=r"took longer than 0\.5 s and was ended"):
        measure(model, None, rows_of(), replace(QUICK, backend="hangs", timeout=0.5))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to look for children")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_the_child_ends_with_its_parent(model: Path, ending: signal.Signals) -> None:
    script = (
        "import signal, sys, numpy as np; from pathlib import Path; from graphprune.latency.measure import *\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "measure(Path(sys.argv[1]), None, {'x': np.zeros((2, 8), 'f')}, MeasureOptions(duration=60, rounds=1))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(model)], env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    child = _wait_for(lambda: children.read_text().split())[0]
    _wait_for(lambda: b"latency.worker" in Path(f"/proc/{child}/cmdline").read_bytes())
    time.sleep(0.5)  # the worker's watch on its standard input must have begun
    parent.send_signal(ending)
    assert parent.wait(10) != 0
    _wait_for(
        lambda: (
            not Path(f"/proc/{child}").exists() or b"latency.worker" not in Path(f"/proc/{child}/cmdline").read_bytes()
        )
    )


def _wait_for(condition):  # type: ignore[no-untyped-def]
    for _ in range(200):
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("waited 10 s in vain")


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"rounds": 0}, "rounds=0: give 1 or more"),
        ({"min_iterations": 0}, "min_iterations=0"),
        ({"resamples": 5}, "resamples=5: give 100 or more"),
        ({"max_width": 0.0}, "max_width=0.0"),
        ({"duration": -1.0}, "duration=-1.0 s"),
        ({"warm_up_ms": 9000.0}, "the cap not below the warm-up"),
        ({"confidence": 1.0}, "confidence=1.0"),
        ({"timeout": 0.0}, "timeout=0.0"),
    ],
)
def test_options_are_checked(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        MeasureOptions(**wrong)  # type: ignore[arg-type]
