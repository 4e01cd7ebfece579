"""Groups told as a tree of the network's parts, blocks alike folded."""

from __future__ import annotations

import json

import models
import pytest
from models import Net, Sample

import graphprune
from graphprune.report.scopes import block_of, path_of
from graphprune.report.tree import group_tree


def stages(widths: tuple[int, ...] = (6, 6, 6, 9)) -> Sample:
    """A residual stream with one hidden layer per block; the last is wider."""
    net = Net()
    x = net.conv(models.image(net), "stem", 3, 8)
    for i, width in enumerate(widths):
        y = net.op("Relu", net.conv(x, f"stage.{i}.conv1", 8, width))
        x = net.op("Add", x, net.conv(y, f"stage.{i}.conv2", width, 8))
    net.head(x, 8)
    return models.picture(net)


@pytest.mark.parametrize(
    ("name", "path", "block"),
    [
        ("layer1.0.conv1.weight", "layer1 0 conv1", "layer1 0"),
        ("features.3.conv.0.0.weight", "features 3 conv 0 0", "features 3"),
        ("features.denseblock1.denselayer2.conv1.weight", "features denseblock1 denselayer2 conv1",
         "features denseblock1 denselayer2"),
        ("encoder.layers.encoder_layer_0.self_attention.in_proj_weight",
         "encoder layers encoder_layer_0 self_attention in_proj_weight", "encoder layers encoder_layer_0"),
        ("/layer1/layer1.0/conv1/Conv", "layer1 0 conv1", "layer1 0"),
        ("conv2d_10.w_0", "conv2d_10", ""),
        ("onnx::Conv_497", "onnx::Conv_497", ""),
        ("w", "w", ""),
        ("", "", ""),
    ],
)  # fmt: skip
def test_names_are_read_as_paths(name, path, block):
    assert path_of(name) == tuple(path.split())
    assert block_of(path_of(name)) == tuple(block.split())


def test_blocks_that_are_alike_are_folded(tmp_path, run_cli):
    sample = stages()
    path = sample.save(tmp_path / "net.onnx")
    analysis = graphprune.load(path, input_shapes=sample.shapes).analyze()
    lines = group_tree(analysis)
    assert [("  " * line.depth + line.label, line.size, line.ids) for line in lines] == [
        ("stem +4", 8, ("g000",)),
        ("stage", 0, ()),
        ("  0..2 x3", 0, ()),
        ("    conv1", 6, ("g001", "g002", "g003")),
        ("  3", 0, ()),
        ("    conv1", 9, ("g004",)),
        ("head", 5, ()),
    ]
    assert sorted(name for line in lines for name in line.ids) == [one.id for one in analysis.groups]
    folded = lines[3]
    assert folded.params == sum(analysis.shares[name][0] for name in folded.ids) // 3
    out = run_cli("analyze", path).out
    rows = [row.split() for row in out.splitlines()]
    assert rows[rows.index(["0..2", "x3"]) + 1][:3] == ["conv1", "channels", "6"]
    assert "head not cut 5 it is an output of the network" in map(" ".join, rows)


def test_verbose_shows_every_group_with_its_weights(tmp_path, run_cli):
    path = stages().save(tmp_path / "net.onnx")
    for words in (("analyze", path, "-v"), ("analyze", path, "--all")):
        out = run_cli(*words).out
        assert "0..2 x3" not in out
        for i in range(4):
            assert f"stage.{i}.conv1.weight[0]" in out
            assert f"g{i + 1:03d}" in out


def test_what_is_not_cut_is_in_the_data(tmp_path, run_cli):
    result = run_cli("analyze", stages().save(tmp_path / "net.onnx"), "--json")
    (head,) = json.loads(result.out)["uncut"]
    assert head == {
        "tensor": "head.weight",
        "axis": 0,
        "size": 5,
        "reason": "it is an output of the network",
    }


def test_names_that_would_steer_a_terminal_are_spelled_out(tmp_path, run_cli):
    sample = models.plain()
    for tensor in sample.model.graph.initializer:
        for node in sample.model.graph.node:
            node.input[:] = [f"\x1b[31m{name}" if name == tensor.name else name for name in node.input]
        tensor.name = f"\x1b[31m{tensor.name}"
    out = run_cli("analyze", sample.save(tmp_path / "net.onnx")).out
    assert "\x1b" not in out and "\\x1b[31m" in out
