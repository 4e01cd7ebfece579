"""The accuracy benchmark: its cells, its intervals, its page; the text that the tiny language models learn."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import accuracy, accuracy_table
from benchmarks.accuracy_peers import CannotReach, searched
from benchmarks.accuracy_tasks import TASKS


def row(method: str, repair: str, seed: int, mean: float, samples: int = 256, **more: Any) -> dict[str, Any]:
    metric = {"mean": mean, "low": mean - 0.02, "high": mean + 0.02, "n": 100}
    cell = accuracy.Cell("digits_plain", "methods", method, repair, "macs 0.5x", samples, seed)
    return {**accuracy.asdict(cell), "macs": 0.5, "metrics": {"accuracy": metric}, **more}


def options(**given: Any) -> argparse.Namespace:
    names = ("suites", "methods", "repairs", "targets", "samples", "again", "failed")
    return argparse.Namespace(**{**dict.fromkeys(names), "seeds": 3, **given})


def test_every_cell_is_asked_for_once_and_drawn_cells_have_seeds() -> None:
    for task in TASKS.values():
        todo = accuracy.wanted(options(), task, {})
        assert len({cell.key for cell in todo}) == len(todo) > 50
        seeds: dict[str, set[int]] = {}
        for cell in todo:
            seeds.setdefault(cell.key.rpartition("|")[0], set()).add(cell.seed)
            assert cell.method in accuracy.CRITERIA or cell.method in accuracy.PEERS
        assert all(
            len(found) == (3 if "|0" not in key and "random" not in key else len(found)) for key, found in seeds.items()
        )
        assert any(cell.method == "obs" and cell.repair == "refit" for cell in todo)


def test_cells_that_have_a_row_are_not_run_again(tmp_path: Path) -> None:
    task, file = TASKS["digits_plain"], tmp_path / "rows.jsonl"
    asked = options(methods="obs", repairs="refit", targets="macs 0.5x", suites="methods")
    done, failed = row("obs", "refit", 0, 0.9), {**row("obs", "refit", 1, 0.9), "error": "E: no"}
    file.write_text("".join(json.dumps(one) + "\n" for one in (done, failed)) + '{"network": "cut off')
    rows = accuracy.read_rows(file)
    assert [cell.seed for cell in accuracy.wanted(asked, task, rows)] == [2]
    asked.failed = True
    assert [cell.seed for cell in accuracy.wanted(asked, task, rows)] == [1, 2]


def test_intervals_over_seeds_and_over_samples() -> None:
    one = accuracy_table.figure([row("obs", "refit", 0, 0.9)])
    assert one is not None and (one.mean, one.low, one.high) == (0.9, 0.88, 0.92)
    three = accuracy_table.figure([row("obs", "refit", seed, mean) for seed, mean in enumerate((0.8, 0.9, 1.0))])
    # Student's t with 2 degrees of freedom: 4.303 * 0.1 / sqrt(3)
    assert (
        three is not None
        and three.mean == pytest.approx(0.9)
        and three.high - three.mean == pytest.approx(0.2484, abs=1e-4)
    )
    failed = {key: value for key, value in row("obs", "refit", 1, 0.9).items() if key != "metrics"}
    assert accuracy_table.figure([row("obs", "refit", 0, 0.9), failed]) is None


def test_summary_is_the_mean_with_its_interval() -> None:
    values = np.repeat([0.0, 1.0], 200)
    found = accuracy.summary({"accuracy": values})["accuracy"]
    assert found["mean"] == 0.5 and found["n"] == 400
    assert 0.44 < found["low"] < 0.47 and 0.53 < found["high"] < 0.56  # 1.96 * 0.5 / sqrt(400) = 0.049


def test_the_page_holds_ours_against_the_best_peer() -> None:
    rows = [row("obs", "refit", seed, 0.95 + seed / 1000) for seed in range(3)]
    rows += [row("torch-pruning magnitude global", "none", 0, 0.6, 0), row("onnxsim magnitude", "none", 0, 0.7, 0)]
    text = accuracy_table.document(rows)
    assert "| digits_plain | macs 0.5x | 95.1 ± 0.2 | onnxsim magnitude | 70.0 ± 2.0 |" in text
    assert "in 1 of 1 cells" in text


def test_the_page_holds_allocators_against_each_other_at_equal_latency() -> None:
    timed = {"target": "latency 0.5x", "latency": {"ratio": 0.48, "low": 0.47, "high": 0.49}}
    rows = [row("obs", "refit", seed, 0.95 + seed / 1000, **timed) for seed in range(3)]
    rows += [row("obs uniform", "refit", seed, 0.8 + seed / 1000, **timed) for seed in range(3)]
    rows += [row("torch-pruning magnitude global, round_to 8", "none", 0, 0.97, 0, **timed)]
    text = accuracy_table.document(rows)
    assert "ahead with intervals apart in 1 of 2 cells, behind in 1." in text
    assert "| digits_plain | latency 0.5x | 0.480 | 95.1 ± 0.2 | obs uniform | 0.480 | 80.1 ± 0.2 |" in text


def test_a_peers_ratio_is_searched_from_below() -> None:
    # 1 - r, in steps of a tenth
    found = searched(lambda ratio: (1 - int(ratio * 10) / 10, ratio), 0.5)
    assert 0.5 <= found < 0.6
    with pytest.raises(CannotReach, match=r"leaves 0\.900 at least"):
        searched(lambda ratio: (0.9, ratio), 0.5)


# ------------------------------------------------------------------------------------------------------- tiny models


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_the_tiny_models_text_and_losses() -> None:
    from models_zoo import tiny_text

    ids = tiny_text.encode("ab\n~ü")
    assert ids.tolist() == [68, 69, 2, 97, tiny_text.encode("?")[0]]
    train, held_out = (tiny_text.sequences(split) for split in ("train", "held out"))
    assert train.shape[1] == held_out.shape[1] == 128 and len(train) > 5 * len(held_out) > 500
    assert not {one.tobytes() for one in train} & {one.tobytes() for one in held_out}

    def knows_nothing(feeds: dict[str, Any]) -> dict[str, Any]:
        return {"logits": np.zeros((*feeds["input_ids"].shape, tiny_text.VOCABULARY), np.float32)}

    for name in tiny_text.NETWORKS:
        assert tiny_text.losses(name, knows_nothing) == pytest.approx(np.log(tiny_text.VOCABULARY))

    def repeats(feeds: dict[str, Any]) -> dict[str, Any]:
        return {"logits": 50 * np.eye(tiny_text.VOCABULARY, dtype=np.float32)[feeds["input_ids"]]}

    masked = tiny_text.calibration("tiny_bert", 4)
    assert 0.05 < np.mean([(one["input_ids"] == 0).mean() for one in masked]) < 0.3
    # Neither network sees what it is asked for: to repeat a character is right where it is doubled alone.
    assert tiny_text.losses("tiny_bert", repeats).mean() > 30 and tiny_text.losses("tiny_gpt", repeats).mean() > 30
