from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.demo import demo, main, speed_sentence
from graphprune.gate import gate
from graphprune.latency.measure import MeasureOptions

needs_models = pytest.mark.skipif(
    importlib.util.find_spec("rapidocr_onnxruntime") is None, reason="needs the OCR models of rapidocr-onnxruntime"
)
QUICK = MeasureOptions(duration=0.05, rounds=1, min_iterations=2, warm_up_ms=1.0, warm_up_cap_ms=50.0, resamples=100)


def widths(path: Path) -> dict[str, int]:
    """Output channels of every convolution, by the node's name."""
    import onnx

    graph = onnx.load(path).graph
    rows = {one.name: one.dims[0] for one in graph.initializer if one.dims}
    held = ((node.output[0], node.attribute[0].t) for node in graph.node if node.op_type == "Constant")
    rows |= {name: tensor.dims[0] for name, tensor in held if tensor.dims}
    return {node.name: rows[node.input[1]] for node in graph.node if node.op_type == "Conv"}


@needs_models
def test_the_demo_leaves_a_proven_smaller_network_and_says_how_to_go_on(tmp_path: Path) -> None:
    from rich.console import Console

    from models_zoo import ocr

    told = io.StringIO()
    result = demo(tmp_path / "out", QUICK, Console(file=told, width=120), {"target_macs": "0.7x"}, (24, 8))
    said = told.getvalue()

    assert sorted(path.name for path in result.folder.iterdir()) == [
        "README.md",
        "manifest.json",
        "model.onnx",
        "plan.json",
        "report.html",
    ]
    assert 0.69 < result.reached["macs"] / result.original["macs"] <= 0.7
    assert result.verdict is not None and result.verdict.passed
    assert result.comparison is not None and result.comparison.blocks > 0
    manifest = json.loads(result.manifest_path.read_text())
    assert manifest["latency"]["a"]["samples_ns"] and manifest["repair"]["maps"]
    figures = manifest["accuracy"]["metric"]
    read = {which: figures[which]["characters right"]["value"] for which in ("original", "cut", "artefact")}
    assert read["cut"] < 0.2 and read["artefact"] > 0.9 * read["original"] > 0.8  # repaired on 24 lines alone
    assert [len(one["says"]) for one in manifest["accuracy"]["exhibits"]] == [3] * 8

    before, after = widths(ocr.recogniser()[0]), widths(result.model)
    assert len(after) > 30 and sum(after.values()) < sum(before.values())

    for words in ("asked: target macs 0.7x", "parameters", "file size", "median latency", "PASSED", "threads"):
        assert words in said
    *_, held, gated, bench, analyze = said.rstrip().splitlines()
    assert "report.html" in held
    assert [line.split()[1] for line in (gated, bench, analyze)] == ["gate", "bench", "analyze"]
    # The files that the printed command names are those that it needs.
    found = gate(Path(gated.split()[2]), source=Path(gated.split()[4]))
    assert found.verdict is not None and found.verdict.passed and "repaired after the cut" in found.notes[0]
    page = (result.folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 8


@pytest.mark.parametrize(
    ("interval", "words"),
    [((0.6, 0.8), "faster: the artefact takes 70%"), ((1.1, 1.3), "slower: "), ((0.9, 1.1), "not shown to be faster")],
)
def test_only_what_the_interval_shows_is_said(interval: tuple[float, float], words: str) -> None:
    low, high = interval
    compared = SimpleNamespace(ratio=(low + high) / 2, ratio_low=low, ratio_high=high)
    assert speed_sentence(compared).startswith(words)  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    assert main(["--output", str(blocked / "out")]) == 2
    assert capsys.readouterr().err == f"error: cannot write into '{blocked / 'out'}': not a directory\n"
