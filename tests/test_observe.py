"""Sizes found for inputs whose shape a file leaves open."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import Net, Sample

import graphprune
from graphprune.errors import InputError


def streaming(path: Path, chunk: int) -> Path:
    """Frames of ``chunk`` values, and a state whose batch, which has to be 1, stands second."""
    net = Net()
    frames = net.op("Reshape", net.input("x", [None, None]), net.ints("frames", 1, -1, chunk))
    h = net.linear(net.op("ReduceMean", frames, axes=[1], keepdims=0), "a", chunk, 24)
    state = net.op("Reshape", net.input("state", [2, None, 24]), net.ints("flat", 2, 24))
    net.linear(net.op("Relu", net.op("Add", h, state)), "b", 24, 8, out="y")
    return Sample(net.build({"y": None}), {}).save(path)


def test_one_unknown_size_is_found_while_the_others_are_batches(tmp_path):
    analysis = graphprune.load(streaming(tmp_path / "m.onnx", 64)).analyze()
    assert analysis.input_shapes == {"x": (1, 64), "state": (2, 1, 24)}


def test_what_to_give_is_shown_where_no_size_is_found(tmp_path):
    source = streaming(tmp_path / "m.onnx", 601)
    said = (
        r"unknown dimensions of x:\?x\?, state:2x\?x24 run; .* --input-shapes x:1x\d+ --input-shapes state:2x\d+x24 \("
    )
    with pytest.raises(InputError, match=said):
        graphprune.load(source)
    shapes = {"x": (1, 601), "state": (2, 1, 24)}
    assert graphprune.load(source, input_shapes=shapes).analyze().input_shapes == shapes
