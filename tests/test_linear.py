"""Linear maps found from the lines, their rows, and a network run piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

import graphprune
from graphprune.backends.runner import OrtRunner
from graphprune.calibration.linear import Linear, linears_of, pairings_of
from graphprune.calibration.moments import Moments
from graphprune.calibration.rows import Reader
from graphprune.calibration.stream import Stream
from graphprune.ir.program import with_outputs
from graphprune.pipeline import Network
from tests.models import SAMPLES, Net, Sample

RNG = np.random.default_rng(3)


def loaded(sample: Sample, folder: Path) -> Network:
    return graphprune.load(sample.save(folder / "m.onnx"), inputs=sample.feeds())


def computed(network: Network, linear: Linear, feeds: dict[str, Any], held: dict[str, Any]) -> tuple[Any, Any]:
    """What the map gives by its rows and matrix, and what the node gave; both flat and sorted by value."""
    program, size = network.program, linear.sizes(network.grouping)
    node = next(node for node in program.model.graph if node.outputs[0].name == linear.name)
    reader = Reader(linear, node, size, OrtRunner(), program.model)
    value = held[linear.value] if linear.value in held else feeds[linear.value]
    rows = reader.rows(value)
    assert len(rows) == reader.count(value)
    alpha, beta = reader.gains()
    found = alpha * np.einsum("rbq,boq->rbo", rows, linear.matrix(program.tensor(linear.weight), size))
    if linear.bias is not None and not linear.vacant:
        found = found + beta * linear.vector(program.tensor(node.inputs[linear.bias].name), size)
    return np.sort(found, axis=None), np.sort(held[linear.name].astype(np.float64), axis=None)


@pytest.mark.parametrize("name", SAMPLES)
def test_rows_times_matrix_is_what_the_node_computes(name: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]()
    network = loaded(sample, tmp_path)
    feeds = sample.feeds(seed=1)
    linears = [one for one in linears_of(network.grouping) if one.binding.node.op_type != "LSTM"]
    inner = [*(one.name for one in linears), *(one.value for one in linears)]
    outputs = {value.name for value in network.program.model.graph.outputs}
    model = with_outputs(network.program.model, [one for one in dict.fromkeys(inner) if one not in {*feeds, *outputs}])
    held = OrtRunner()(model, feeds)
    if name not in ("branches", "custom"):
        assert linears
    for linear in linears:
        found, expected = computed(network, linear, feeds, held)
        assert np.allclose(found, expected, atol=4e-3 if name == "half" else 1e-4), linear.name
        array = network.program.tensor(linear.weight)
        size = linear.sizes(network.grouping)
        assert np.array_equal(linear.array(linear.matrix(array, size), size), array)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("case", range(12))
def test_windows_of_any_convolution_are_read_as_it_reads_them(case: int, transposed: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng([case, transposed])
    axes, group = int(rng.integers(1, 3)), int(rng.integers(1, 4))
    i, o = group * int(rng.integers(1, 4)), group * int(rng.integers(1, 4))
    kernel, strides, dilations = (rng.integers(1, n, axes) for n in (4, 3, 3))
    pads = rng.integers(0, 2, 2 * axes)
    pads = np.minimum(pads, np.tile((kernel - 1) * dilations, 2))
    net = Net()
    x = net.input("x", ["batch", i, *([9] * axes)])
    shape = (i, o // group, *kernel) if transposed else (o, i // group, *kernel)
    weight = net.hold("w", rng.standard_normal(shape).astype(np.float32))
    y = net.op(
        "ConvTranspose" if transposed else "Conv", x, weight, net.weight("b", o), group=group,
        kernel_shape=kernel.tolist(), strides=strides.tolist(), dilations=dilations.tolist(), pads=pads.tolist(),
    )  # fmt: skip
    net.op("Relu", y, out="y")
    sample = Sample(net.build({"y": None}), {"x": (2, i, *([9] * axes))})
    network = loaded(sample, tmp_path)
    feeds = sample.feeds(seed=5)
    (linear,) = linears_of(network.grouping)
    held = OrtRunner()(with_outputs(network.program.model, [linear.name]), feeds)
    found, expected = computed(network, linear, feeds, held)
    assert np.allclose(found, expected, atol=1e-4)


def test_a_constant_that_two_nodes_read_is_no_map_of_its_own(tmp_path: Path) -> None:
    network = loaded(SAMPLES["tied"](), tmp_path)
    live = [value.name for node in network.program.live for value in node.inputs if value is not None]
    assert all(live.count(one.weight) == 1 for one in linears_of(network.grouping))


def test_queries_with_keys_are_a_pairing(tmp_path: Path) -> None:
    network = loaded(SAMPLES["attention"](), tmp_path)
    found = {one.letter for one in pairings_of(network.grouping)}
    assert found  # the head dimension


@pytest.mark.parametrize("full", [True, False])
def test_moments_are_numpys_whatever_the_blocks(full: bool) -> None:
    x = (RNG.normal(size=(300, 2, 5)) * 3 + 100).astype(np.float32)
    y = RNG.normal(size=(300, 2, 4)).astype(np.float32)
    found = Moments(full)
    found.add(x[:100], y[:100])
    more = found.like()
    more.add(x[100:107], y[100:107])
    found.add(x[107:], y[107:])
    joined = found + more
    order = np.concatenate([x[:100], x[107:], x[100:107]]).astype(np.float64)
    assert joined.count == 300
    assert np.allclose(joined.mean, order.mean(axis=0), rtol=1e-6)
    assert np.allclose(joined.variance, order.var(axis=0), rtol=1e-4)
    assert np.allclose(joined.second, (order**2).mean(axis=0), rtol=1e-5)
    if full:
        for b in range(2):
            both = np.cov(x[:, b].T, y[:, b].T, bias=True)
            assert np.allclose(joined.covariance[b], both[:5, :5], atol=1e-3)
            assert np.allclose(joined.cross[b], both[:5, 5:], atol=1e-3)


@pytest.mark.parametrize("name", ["plain", "attention", "many", "branches", "shuffle"])
def test_a_network_run_in_pieces_gives_what_it_gives(name: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]()
    network = loaded(sample, tmp_path)
    model = network.program.model
    feeds = [sample.feeds(seed=i) for i in range(3)]
    runner = OrtRunner()
    with Stream(model, feeds, OrtRunner()) as stream:
        for node in list(model.graph)[:: max(1, len(list(model.graph)) // 5)]:
            stream.reach(node)
        stream.reach(None)
        for output in model.graph.outputs:
            for one, found in zip(feeds, stream.values(output.name), strict=True):
                assert np.allclose(runner(model, one)[output.name], found, atol=1e-6)


def test_large_values_go_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphprune.calibration.stream._HELD", 100)
    sample = SAMPLES["plain"]()
    network = loaded(sample, tmp_path)
    model, feeds = network.program.model, [sample.feeds(seed=i) for i in range(2)]
    with Stream(model, feeds, OrtRunner()) as stream:
        middle = list(model.graph)[5]
        stream.reach(middle)
        assert any(isinstance(one, np.memmap) for one in stream.values(middle.inputs[0].name))
        stream.reach(None)
        assert np.allclose(stream.values("y")[1], OrtRunner()(model, feeds[1])["y"], atol=1e-6)


def test_a_node_without_a_constant_is_no_map(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", ["batch", 4, 4])
    net.nodes.append(helper.make_node("MatMul", [x, x], ["y"]))
    sample = Sample(net.build({"y": None}), {"x": (1, 4, 4)})
    assert linears_of(loaded(sample, tmp_path).grouping) == ()
