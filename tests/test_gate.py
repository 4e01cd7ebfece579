"""``graphprune gate``: hashes, proof and time of an artefact against its manifest, and what each exit code means."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from models import SAMPLES, stat_only
from test_bench import measurement

import graphprune.gate as gating
from graphprune.errors import UsageError
from graphprune.gate import LatencyLimit
from graphprune.latency.measure import MeasureOptions
from graphprune.latency.results import Comparison
from graphprune.pipeline import load


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with its source beside it; its manifest records a ratio of 0.6."""
    folder = tmp_path_factory.mktemp("gate")
    source = SAMPLES["plain"]().save(folder / "net.onnx")
    load(source).export(folder, target_params="0.5x", measure=None)
    rewrite(folder / "manifest.json", latency=compared(0.6, 0.59, 0.61).to_json())
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "out"))


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite_plan(folder: Path, content: str) -> None:
    """Another plan, and a manifest that knows it."""
    (folder / "plan.json").write_text(content)
    digest = hashlib.sha256(content.encode()).hexdigest()
    rewrite(folder / "manifest.json", plan={"sha256": {"plan.json": digest}})


def compared(ratio: float, low: float, high: float) -> Comparison:
    one = measurement()
    return Comparison(one, one, ratio, low, high, 0.95, 10, one.noise, one.fingerprint)


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the measurement find this ratio and interval."""

    def put(*found: float) -> list[Any]:
        calls: list[Any] = []
        monkeypatch.setattr(gating, "measure", lambda *given: calls.append(given) or compared(*found))
        return calls

    return put


@pytest.mark.parametrize(
    ("found", "limit", "code", "words"),
    [
        ((0.62, 0.61, 0.63), "0.65x", 0, "allowed 0.650x; recorded 0.600x"),
        ((0.62, 0.61, 0.63), "+5%", 0, "allowed 0.630x"),
        ((0.62, 0.61, 0.63), "0.6x", 3, "0.620x of the original's time, within [0.610, 0.630], where at most 0.600x"),
        ((0.62, 0.61, 0.63), "+1%", 3, "at most 0.606x is allowed"),
        ((0.62, 0.58, 0.66), "+5%", 5, "cannot tell whether"),
        ((1.2, 1.1, 1.3), "1.5x", 0, "allowed 1.500x"),
    ],
)
def test_limits_on_the_time(folder, takes, run_cli, found, limit, code, words):
    calls = takes(*found)
    result = run_cli("gate", folder / "manifest.json", "--max-latency", limit, "--duration", "1s", "--threads", "1")
    assert (result.code, words in result.out + result.err) == (code, True), result
    ((original, artefact, feeds, options),) = calls
    assert (original, artefact) == (folder / "net.onnx", folder / "model.onnx")
    assert feeds["x"].shape == (1, 3, 8, 8)
    assert (options.duration, options.backend_options.threads) == (1.0, 1)


def test_an_artefact_for_the_90th_percentile_is_held_to_it(folder, run_cli, monkeypatch):
    """The medians are 0.6x, but every fifth inference of the artefact takes as long as the original's."""
    quick = measurement(samples_ns=(10_000_000,) * 250, round_sizes=(125, 125))
    slow_tail = replace(quick, samples_ns=(6_000_000, 6_000_000, 6_000_000, 6_000_000, 10_000_000) * 50)
    found = Comparison(quick, slow_tail, 0.6, 0.59, 0.61, 0.95, 125, quick.noise, quick.fingerprint)
    calls: list[Any] = []
    monkeypatch.setattr(gating, "measure", lambda *given: calls.append(given) or found)
    words = ("gate", folder / "manifest.json", "--max-latency", "0.7x")
    assert run_cli(*words).code == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    aimed = {"options": {**manifest["options"], "statistic": "p90"}, "latency_target": {"asked": "0.7x"}}
    rewrite(folder / "manifest.json", **aimed, latency=found.to_json())
    result = run_cli(*words)
    assert result.code == 3
    assert "takes 1.000x of the original's time (90th percentile), within [1.000, 1.000]" in result.err
    assert "90th percentile latency 1.000x [1.000, 1.000] of the original's, measured beside it now" in result.out
    assert "(10.000 to 10.000 ms); allowed 0.700x; recorded 1.000x" in result.out
    options = calls[-1][3]
    assert options.single_runs and options.min_iterations >= 200
    result = run_cli(*words[:-1], "+5%", "--json")
    document = json.loads(result.out)
    assert (result.code, document["recorded"], document["limit"]) == (0, 1.0, 1.05)
    assert document["figure"]["statistic"] == "p90"
    rewrite(folder / "manifest.json", options={**aimed["options"], "statistic": "p42"})
    result = run_cli(*words)
    assert (result.code, "the manifest's statistic is 'p42'" in result.err) == (2, True)


def test_without_a_limit_nothing_is_measured(folder, takes, run_cli):
    calls = takes(9.0, 9.0, 9.0)
    result = run_cli("gate", folder / "manifest.json", "--json")
    found = json.loads(result.out)
    assert (result.code, calls, found["latency"], found["verification"]["passed"]) == (0, [], None, True)


def test_the_original_may_lie_elsewhere(folder, tmp_path, run_cli):
    moved = (folder / "net.onnx").rename(tmp_path / "other.onnx")
    result = run_cli("gate", folder / "manifest.json")
    assert result.code == 2
    assert "the original, 'net.onnx', does not lie beside" in result.err
    assert "--source" in result.err
    assert run_cli("gate", folder / "manifest.json", "--source", moved).code == 0


@pytest.mark.parametrize(("name", "what"), [("model.onnx", "the artefact"), ("net.onnx", "the original")])
def test_another_file(folder, takes, run_cli, name, what):
    calls = takes(0.1, 0.1, 0.1)
    SAMPLES["residual"]().save(folder / name)
    result = run_cli("gate", folder / "manifest.json", "--max-latency", "1x")
    assert (result.code, calls) == (4, [])
    assert f"'{folder / name}' is not {what} that the manifest was written for: their SHA-256 differ" in result.err


def test_another_plan(folder, run_cli):
    rewrite(folder / "plan.json", source_sha256="0" * 64)
    result = run_cli("gate", folder / "manifest.json")
    assert result.code == 4
    assert "plan.json' is not the plan that the manifest was written for: their SHA-256 differ" in result.err
    rewrite_plan(folder, (folder / "plan.json").read_text())
    result = run_cli("gate", folder / "manifest.json")
    assert result.code == 4
    assert "was made for another original" in result.err


def test_an_artefact_that_is_not_its_masked_original(folder, takes, run_cli):
    """The hashes fit, but the plan says that other units went."""
    plan = json.loads((folder / "plan.json").read_text())
    for member in plan["groups"][0]["members"]:
        gone = set(member["removed"])
        member["removed"] = sorted({(i + 1) % member["size"] for i in gone})
    rewrite_plan(folder, json.dumps(plan))
    calls = takes(0.1, 0.1, 0.1)
    result = run_cli("gate", folder / "manifest.json", "--max-latency", "1x")
    assert (result.code, calls) == (4, [])
    assert "differs from its masked original by" in result.err


def test_what_was_not_verified_is_not_verified(tmp_path, run_cli):
    source = stat_only().save(tmp_path / "net.onnx")
    load(source).export(tmp_path, target_params="0.5x", measure=None, stat=True, verify=False)
    result = run_cli("gate", tmp_path / "manifest.json")
    assert result.code == 0
    assert "the export was not verified" in result.out
    result = run_cli("gate", tmp_path / "manifest.json", "--max-latency", "+5%")
    assert result.code == 2
    assert "holds no measured ratio" in result.err


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"format": 2}', "{", '{"format": 1, "source": 3}'])
def test_what_is_no_manifest(tmp_path, run_cli, text):
    (tmp_path / "manifest.json").write_text(text)
    result = run_cli("gate", tmp_path / "manifest.json")
    assert result.code == 2
    assert "is no manifest of an export" in result.err


def test_names_in_a_manifest_do_not_leave_its_folder(folder, run_cli):
    rewrite(folder / "manifest.json", artefact={"sha256": {"../model.onnx": "0" * 64}})
    result = run_cli("gate", folder / "manifest.json")
    assert (result.code, "'artefact' names no file" in result.err) == (2, True)


def test_spellings_of_a_limit():
    assert LatencyLimit.parse("0.65X") == LatencyLimit(0.65)
    assert LatencyLimit.parse("1.05x") == LatencyLimit(1.05)
    assert LatencyLimit.parse("+ 5 %") == LatencyLimit(1.05, recorded=True)
    for wrong in ("", "5%", "0x", "-5%", "8ms", "0.65", "x", "+x"):
        with pytest.raises(UsageError, match="write a share of the original's time as 0"):
            LatencyLimit.parse(wrong)


def test_measured_for_real(folder, run_cli):
    """Both processes and all options of a manifest; a limit that only a broken measurement misses."""
    options = json.loads((folder / "manifest.json").read_text())["options"]
    timing = MeasureOptions(rounds=4, warm_up_ms=1.0, max_duration=0.1)
    rewrite(folder / "manifest.json", options={**options, "measure": asdict(timing)})
    result = run_cli("gate", folder / "manifest.json", "--max-latency", "1000x", "--duration", "50ms", "--json")
    found = json.loads(result.out)
    assert result.code in (0, 5)  # so short a measurement may be too wide to tell on a busy machine
    assert found["limit"] == 1000.0
    assert found["latency"]["blocks"] > 0
    assert any("measured under other conditions than the export" in note for note in found["notes"])
