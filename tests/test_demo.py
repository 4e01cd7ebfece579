from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from benchmarks.demo import ALIGN, demo, main, speed_sentence
from graphprune.latency.measure import MeasureOptions
from graphprune.pipeline import verify_files

needs_models = pytest.mark.skipif(
    importlib.util.find_spec("rapidocr_onnxruntime") is None, reason="needs the OCR models of rapidocr-onnxruntime"
)
QUICK = MeasureOptions(duration=0.05, rounds=1, min_iterations=2, warm_up_ms=1.0, warm_up_cap_ms=50.0, resamples=100)


@needs_models
def test_the_demo_leaves_a_proven_smaller_network_and_says_how_to_go_on(tmp_path: Path) -> None:
    told = io.StringIO()
    result = demo(tmp_path / "out", QUICK, Console(file=told, width=120))
    said = told.getvalue()

    assert sorted(path.name for path in result.folder.iterdir()) == ["manifest.json", "model.onnx", "plan.json"]
    assert 0.69 < result.reached["macs"] / result.original["macs"] <= 0.7
    assert result.verdict is not None and result.verdict.passed
    assert result.comparison is not None and result.comparison.blocks > 0
    manifest = json.loads(result.manifest_path.read_text())
    assert manifest["options"]["align"] == ALIGN and manifest["latency"]["a"]["samples_ns"]

    for words in ("asked: at most 0.7x of the MACs", "parameters", "file size", "median latency", "PASSED", "threads"):
        assert words in said
    assert "not kept: the accuracy" in said  # nothing is claimed about what was not repaired
    *_, held, verify, bench, analyze = said.rstrip().splitlines()
    assert "holds model.onnx" in held
    words = verify.split()
    assert words[1] == "verify" and bench.split()[1] == "bench" and analyze.split()[1] == "analyze"
    # The command that is printed does what it says.
    verdict = verify_files(*words[2:5], input_shapes={"x": (1, 3, 48, 320)})
    assert verdict.passed


@needs_models
def test_the_demo_cuts_to_multiples_of_its_alignment(tmp_path: Path) -> None:
    import onnx

    from graphprune.pipeline import load
    from models_zoo import ocr

    path, shapes = ocr.recogniser()
    result = load(path, input_shapes=shapes).export(tmp_path, target_macs="0.7x", align=ALIGN, measure=None)
    before = {one.name: one for one in onnx.load(path).graph.node if one.op_type == "Conv"}
    model = onnx.load(result.model)
    widths = {init.name: init.dims for init in model.graph.initializer}
    widths |= {
        n.output[0]: n.attribute[0].t.dims
        for n in model.graph.node
        if n.op_type == "Constant" and n.attribute[0].HasField("t")
    }
    cut = [widths[node.input[1]][0] for node in model.graph.node if node.op_type == "Conv" and node.name in before]
    assert len(cut) > 30
    odd = [width for width in cut if width % ALIGN]
    assert len(odd) <= 1, odd  # the input of the last dense layers may be of any size


@pytest.mark.parametrize(
    ("interval", "words"),
    [((0.6, 0.8), "faster: the artefact takes 70%"), ((1.1, 1.3), "slower: "), ((0.9, 1.1), "not shown to be faster")],
)
def test_only_what_the_interval_shows_is_said(interval: tuple[float, float], words: str) -> None:
    low, high = interval
    compared = SimpleNamespace(ratio=(low + high) / 2, ratio_low=low, ratio_high=high)
    assert speed_sentence(compared).startswith(words)  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("rapidocr_onnxruntime") is None:
        pytest.skip("needs the OCR models of rapidocr-onnxruntime")
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    assert main(["--output", str(blocked / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
