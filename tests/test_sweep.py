"""Every network of the zoo is cut to half its parameters (or as far as its exact groups reach) and proved.

The networks that need no more than torch run by default; the others are marked ``sweep`` (``make sweep``). A part of
them is chosen with ``GRAPHPRUNE_SWEEP=resnet18,swin_t make sweep``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import export_half, load_network
from benchmarks.coverage import examine
from graphprune.errors import NothingPrunableError
from models_zoo import FILES, RECIPES, VARIANTS, WIDE, ZOO

SMALL = ("ocr_classifier", *(name for name in RECIPES if name.startswith(("glyph_", "digits_"))))
LANGUAGE = ("bert", "gpt2", "llama")
LARGE = tuple(name for name in RECIPES if name not in SMALL)
CHOSEN = tuple(name for name in os.environ.get("GRAPHPRUNE_SWEEP", "").split(",") if name)
#: Share of the parameters that exact groups must govern. In the language models' small configurations half of the
#: parameters are embeddings, which only the residual stream (a stat group) governs; ConvNeXt and Swin have layers
#: between two residual streams, both under a LayerNorm.
GOVERNED = {"bert": 0.49, "gpt2": 0.49, "llama": 0.51, "convnext_tiny": 0.90, "swin_t": 0.93}


def needed(name: str) -> None:
    if missing := ZOO[name].missing():
        pytest.skip(f"needs {', '.join(missing)}")


def cut_and_prove(name: str, folder: Path) -> None:
    network = load_network(name)
    analysis = network.analyze()
    assert analysis.governed_params >= GOVERNED.get(name, 0.95)
    assert not analysis.refusals
    half = export_half(network, folder)
    result = half.result
    reached = result.reached["params"] / result.original["params"]
    assert half.asked - 0.01 <= reached <= half.asked
    if name in LANGUAGE:
        assert half.lowest is not None and 0.5 < half.lowest < half.asked <= half.lowest + 0.06
    else:
        assert half.lowest is None and half.asked == 0.5
    assert result.verdict is not None and result.verdict.passed and result.verdict.max_rel <= 1e-4
    # The proof has something to prove: the cut is seen in the outputs.
    assert result.verdict.difference_to_original > 1e-3
    assert (folder / "manifest.json").is_file()


@pytest.mark.parametrize("name", SMALL)
def test_a_small_network_is_cut_to_half_and_proved(name: str, tmp_path: Path) -> None:
    needed(name)
    cut_and_prove(name, tmp_path)


@pytest.mark.sweep
@pytest.mark.parametrize("name", LARGE)
def test_a_network_is_cut_to_half_and_proved(name: str, tmp_path: Path) -> None:
    if CHOSEN and name not in CHOSEN:
        pytest.skip("not in GRAPHPRUNE_SWEEP")
    needed(name)
    cut_and_prove(name, tmp_path)


#: What cannot be cut exactly, since a statistic is computed over everything inside of it.
REFUSED = {"convnextv2_nano": (NothingPrunableError, "inexact")}


@pytest.mark.sweep
@pytest.mark.parametrize("name", WIDE)
def test_a_further_network_is_cut_and_proved(name: str, tmp_path: Path) -> None:
    if CHOSEN and name not in CHOSEN:
        pytest.skip("not in GRAPHPRUNE_SWEEP")
    needed(name)
    if name in REFUSED:
        kind, text = REFUSED[name]
        with pytest.raises(kind, match=text):
            export_half(load_network(name), tmp_path)
        return
    verdict = export_half(load_network(name), tmp_path).result.verdict
    assert verdict is not None and verdict.passed and verdict.max_rel <= 1e-4
    assert verdict.difference_to_original > 1e-3


@pytest.mark.sweep
@pytest.mark.parametrize("name", [*FILES, *VARIANTS])
def test_a_file_or_variant_is_cut_and_proved(name: str) -> None:
    if CHOSEN and name not in CHOSEN:
        pytest.skip("not in GRAPHPRUNE_SWEEP")
    told: dict[str, Any] = {}
    examine(name, told.update)
    if told["status"] == "missing":
        pytest.skip(told["reason"])
    assert told["status"] == "equal", told["reason"]


@pytest.mark.sweep
def test_the_choice_of_the_sweep_names_networks_that_are_there() -> None:
    assert set(CHOSEN) <= set(ZOO), f"GRAPHPRUNE_SWEEP: unknown {', '.join(set(CHOSEN) - set(ZOO))}"
