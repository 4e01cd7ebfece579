"""The words for groups of units: each kind in a small network that shows it."""

from __future__ import annotations

from collections.abc import Callable

import models
import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from models import Net, Sample
from onnx import TensorProto

import graphprune
from graphprune.passes.shrink import Shrink

TOKENS, WIDTH, HIDDEN, EXPERTS = 6, 8, 5, 4


def _norm(net: Net, x: str, name: str, n: int) -> str:
    scale = net.hold(f"{name}.weight", net.rng.uniform(0.5, 1.5, n).astype(np.float32))
    return net.op("LayerNormalization", x, scale, net.weight(f"{name}.bias", n, scale=0.1))


def _tokens(net: Net) -> str:
    return net.input("x", [TOKENS, WIDTH])


def transformer_mlp() -> Sample:
    """A residual stream that an embedding and two blocks write to, normalised before each is read."""
    net = Net()
    ids = net.input("ids", ["batch", "time"], TensorProto.INT64)
    x = net.op("Gather", net.weight("table", 30, 12, scale=1.0), ids)
    for i in range(2):
        wide = net.op("Relu", net.linear(_norm(net, x, f"norm{i}", 12), f"up{i}", 12, 20))
        x = net.op("Add", x, net.linear(wide, f"down{i}", 20, 12))
    net.linear(_norm(net, x, "norm", 12), "head", 12, 7, out="y")
    return Sample(net.build({"y": None}), {"ids": (2, 3)}, {"ids": (1, 5)})


def group_norm() -> Sample:
    """Channels normalised in runs of three."""
    net = Net()
    x = net.conv(models.image(net), "a", 3, 12)
    parts = net.op("Reshape", x, net.ints("split", 0, 4, -1))
    one, zero = net.hold("one", np.ones(4, np.float32)), net.hold("zero", np.zeros(4, np.float32))
    flat = net.op("InstanceNormalization", parts, one, zero)
    y = net.op("Reshape", flat, net.ints("join", 0, 12, 8, 8))
    net.head(net.block(y, "b", 12, 8), 8)
    return models.picture(net)


def shuffle() -> Sample:
    """Ten channels shuffled as 5 x 2 and split at 5, which is inside a pair."""
    net = Net()
    x = net.block(models.image(net), "stem", 3, 10)
    x = net.op("Reshape", x, net.ints("apart", 0, 2, 5, 8, 8))
    x = net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1, 3, 4]), net.ints("together", 0, -1, 8, 8))
    left, right = net.ops("Split", x, net.ints("halves", 5, 5), outs=["left", "right"], axis=1)
    net.head(net.op("Concat", left, net.block(right, "a", 5, 7), axis=1), 12)
    return models.picture(net)


def single_head() -> Sample:
    """Attention without heads."""
    net = Net()
    x = _tokens(net)
    q, k, v = (net.linear(x, name, WIDTH, n) for name, n in (("q", 6), ("k", 6), ("v", 5)))
    scores = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[1, 0])), axis=-1)
    net.linear(net.op("MatMul", scores, v), "o", 5, 3, out="y")
    return Sample(net.build({"y": [TOKENS, 3]}), {"x": (TOKENS, WIDTH)})


def fused_experts(k: int = 2) -> Sample:
    """Experts as one operator of ONNX Runtime, with the router before it."""
    net = Net()
    x = net.linear(_tokens(net), "in", WIDTH, WIDTH)
    router = net.linear(x, "router", WIDTH, EXPERTS)
    up, down = net.weight("up", EXPERTS, HIDDEN, WIDTH), net.weight("down", EXPERTS, WIDTH, HIDDEN)
    bias, out = net.weight("up_bias", EXPERTS, HIDDEN), net.weight("down_bias", EXPERTS, WIDTH)
    y = net.op("MoE", x, router, up, bias, down, out, domain="com.microsoft", k=k, activation_type="gelu")
    net.linear(y, "out", WIDTH, 3, out="y")
    return Sample(net.build({"y": [TOKENS, 3]}), {"x": (TOKENS, WIDTH)})


def dense_experts() -> Sample:
    """Every expert runs for every token; a softmax over the router's scores weighs them."""
    net = Net()
    x = _tokens(net)
    scores = net.op("Softmax", net.linear(x, "router", WIDTH, EXPERTS), axis=-1)
    up, down = net.weight("up", EXPERTS, WIDTH, HIDDEN), net.weight("down", EXPERTS, HIDDEN, WIDTH)
    wide = net.op("Relu", net.op("Einsum", x, up, equation="ti,eif->etf"))
    each = net.op("MatMul", wide, down)
    y = net.op("Einsum", scores, each, equation="te,eto->to")
    net.linear(y, "out", WIDTH, 3, out="y")
    return Sample(net.build({"y": [TOKENS, 3]}), {"x": (TOKENS, WIDTH)})


def gathered_experts() -> Sample:
    """As transformers exports them: the experts that a TopK names are gathered for each token."""
    net = Net()
    x = _tokens(net)
    logits = net.linear(x, "router", WIDTH, EXPERTS)
    values, which = net.ops("TopK", logits, net.ints("k", 1), outs=["values", "which"])
    chosen = net.op("Reshape", which, net.ints("flat", TOKENS))
    up, down = net.weight("up", EXPERTS, WIDTH, HIDDEN), net.weight("down", EXPERTS, HIDDEN, WIDTH)
    row = net.op("Unsqueeze", x, net.ints("one", 1))
    wide = net.op("Relu", net.op("MatMul", row, net.op("Gather", up, chosen)))
    each = net.op("Squeeze", net.op("MatMul", wide, net.op("Gather", down, chosen)), net.ints("axis", 1))
    net.linear(net.op("Mul", each, values), "out", WIDTH, 3, out="y")
    return Sample(net.build({"y": [TOKENS, 3]}), {"x": (TOKENS, WIDTH)})


def blockwise() -> Sample:
    """A weight in quantised blocks is cut in whole blocks."""
    net = Net()
    wide = net.op("Relu", net.linear(_tokens(net), "in", WIDTH, 64))
    packed = net.hold("packed", net.rng.integers(0, 255, (10, 4, 8)).astype(np.uint8))
    scales = net.weight("scales", 10, 4, scale=0.1)
    y = net.op("MatMulNBits", wide, packed, scales, domain="com.microsoft", K=64, N=10, bits=4, block_size=16)
    net.linear(y, "out", 10, 3, out="y")
    return Sample(net.build({"y": [TOKENS, 3]}), {"x": (TOKENS, WIDTH)})


CASES: list[tuple[Callable[[], Sample], set[str]]] = [
    (models.attention, {"heads", "Q/K dimensions", "V/O dimensions", "neurons"}),
    (models.grouped_queries, {"kv heads", "query heads", "Q/K dimensions", "V/O dimensions", "neurons"}),
    (models.rotary, {"heads", "Q/K rotary pairs", "V/O dimensions", "neurons"}),
    (single_head, {"Q/K dimensions", "V/O dimensions"}),
    (models.lstm, {"recurrent hidden units", "neurons"}),
    (models.plain, {"channels"}),
    (models.depthwise, {"channels"}),
    (models.grouped, {"convolution groups", "channels per group"}),
    (shuffle, {"interleaved channels", "channels"}),
    (group_norm, {"channel groups", "channels per group", "channels"}),
    (models.stat_only, {"neurons"}),
    (transformer_mlp, {"embedding width", "neurons"}),
    (fused_experts, {"experts", "neurons"}),
    (dense_experts, {"experts", "neurons"}),
    (gathered_experts, {"neurons"}),
    (blockwise, {"neuron blocks", "neurons"}),
]


@pytest.mark.parametrize(("make", "kinds"), CASES, ids=lambda one: one.__name__ if callable(one) else "")
def test_kinds_are_named_in_the_words_of_the_field(make, kinds, tmp_path):
    sample = make()
    network = graphprune.load(sample.save(tmp_path / "net.onnx"), input_shapes=sample.shapes)
    assert {one.kind for one in network.grouping.groups} == kinds
    plain = {tensor.name: f"t{i}" for i, tensor in enumerate(sample.model.graph.initializer)}
    for node in sample.model.graph.node:  # names play no part
        node.name = ""
        node.input[:] = [plain.get(name, name) for name in node.input]
    for tensor in sample.model.graph.initializer:
        tensor.name = plain[tensor.name]
    again = graphprune.load(sample.save(tmp_path / "anonymous.onnx"), input_shapes=sample.shapes)
    assert [one.kind for one in again.grouping.groups] == [one.kind for one in network.grouping.groups]


def test_kv_heads_go_with_their_queries(tmp_path):
    sample = models.grouped_queries()
    groups = graphprune.load(sample.save(tmp_path / "net.onnx"), input_shapes=sample.shapes).grouping.groups
    shared = next(one for one in groups if one.kind == "kv heads")
    owned = {m.tensor: np.bincount(m.unit_of).tolist() for m in shared.members if m.role == "producer"}
    assert owned == {"q.weight": [18, 18], "k.weight": [6, 6], "v.weight": [6, 6]}


def test_the_embedding_width_and_experts_are_opt_in(tmp_path):
    for make, kind in ((transformer_mlp, "embedding width"), (fused_experts, "experts"), (dense_experts, "experts")):
        sample = make()
        groups = graphprune.load(sample.save(tmp_path / "net.onnx"), input_shapes=sample.shapes).grouping.groups
        assert [one.exact for one in groups if one.kind == kind] == [False]


def _run(model: bytes, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return onnxruntime.InferenceSession(model).run(None, feeds)[0]


@pytest.mark.parametrize("make", [fused_experts, dense_experts])
@pytest.mark.parametrize("kept", [[0, 2, 3], [1, 3], [2]])
def test_cut_experts_are_experts_that_the_router_never_chooses(make, kept, tmp_path):
    sample = make()
    grouping = graphprune.load(sample.save(tmp_path / "net.onnx"), input_shapes=sample.shapes).grouping
    (experts,) = (one for one in grouping.groups if one.kind == "experts")
    assert {m.tensor for m in experts.members} >= {"router.weight", "router.bias", "up", "down"}
    keep = np.isin(np.arange(experts.size), kept)
    pruned = onnx_ir.to_proto(Shrink({experts.id: keep})(grouping))
    bias = next(tensor for tensor in sample.model.graph.initializer if tensor.name == "router.bias")
    never = np.where(keep, onnx.numpy_helper.to_array(bias), -1e30).astype(np.float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(never, bias.name))
    feeds = sample.feeds(seed=3)
    expected = _run(sample.model.SerializeToString(), feeds)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(_run(pruned.SerializeToString(), feeds), expected, rtol=1e-5, atol=1e-6)


def test_experts_that_are_gathered_stay_and_it_is_said_why(tmp_path, run_cli):
    sample = gathered_experts()
    path = sample.save(tmp_path / "net.onnx")
    network = graphprune.load(path)
    report = network.explain("up", 0)
    assert report.parts[0].group is None and "Gather" in report.parts[0].reason
    result = network.export(tmp_path / "out", target_params="0.8x", measure=None)
    assert result.verdict is not None and result.verdict.passed
