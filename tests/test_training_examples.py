"""The examples of training run, and cut what they say."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

FOLDER = Path(__file__).parents[1] / "examples" / "training"


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("plain_loop", "torch"),
        ("with_accelerate", "accelerate"),
        ("with_lightning", "lightning"),
        ("with_transformers", "accelerate"),
    ],
)
def test_an_example_cuts_what_it_says(name: str, needs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(needs)
    if name == "with_transformers":
        pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(FOLDER))
    example = importlib.import_module(name)
    network = example.main(24)
    sys.modules.pop(name, None)
    from plain_loop import network as build

    import graphprune

    if name == "with_transformers":
        assert network.cost.params({}) < 4100
    else:
        import torch

        whole = graphprune.load(build(), inputs=(torch.randn(2, 1, 8, 8),)).cost.macs({})
        assert 0.3 * whole < network.cost.macs({}) <= 0.5 * whole
