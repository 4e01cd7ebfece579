"""Noise in a network that remembers statistics of its training data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphprune
from graphprune.accuracy import distance, outputs_of
from graphprune.backends.runner import OrtRunner
from graphprune.calibration.matched import matched, restore
from graphprune.frontends.samples import read_samples
from graphprune.ir.program import with_outputs
from graphprune.ir.store import write_onnx
from graphprune.passes.shrink import Shrink
from graphprune.pipeline import Network
from tests.models import SAMPLES, Net, Sample, image, picture


def pictures(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Unlike noise: far from zero, and the same almost everywhere."""
    rng = np.random.default_rng(seed)
    flat = rng.normal(3.0, 2.0, (count, 1, 3, 1, 1)) + 0.1 * rng.standard_normal((count, 1, 3, 8, 8))
    return [{"x": one.astype(np.float32)} for one in flat]


def trained(folder: Path) -> Network:
    """Three convolutions whose BatchNorms remember pictures."""
    raw = graphprune.load(SAMPLES["plain"]().save(folder / "raw.onnx"))
    program = matched(raw.grouping, pictures(64), OrtRunner())
    assert program is not None
    write_onnx(program.model, folder / "m.onnx")
    return graphprune.load(folder / "m.onnx")


def norms(model: Any) -> dict[str, Any]:
    return {node.outputs[0].name: node for node in model.graph if node.op_type == "BatchNormalization"}


def test_what_comes_out_of_every_norm_is_as_in_training(tmp_path: Path) -> None:
    network = trained(tmp_path)
    noise = read_samples("none", network.program, limit=40).feeds
    program = matched(network.grouping, noise, OrtRunner())
    assert program is not None and program.model is not network.program.model
    names = list(norms(program.model))
    assert len(names) == 3
    model = with_outputs(program.model, names)
    for name in names:
        rows = np.concatenate([OrtRunner()(model, one, [name])[name] for one in noise]).swapaxes(1, 0)
        scale, shift = (network.program.tensor(norms(network.program.model)[name].inputs[k].name) for k in (1, 2))
        flat = rows.reshape(len(rows), -1).astype(np.float64)
        np.testing.assert_allclose(flat.mean(axis=1), shift, atol=1e-3)
        np.testing.assert_allclose(flat.std(axis=1), np.abs(scale), rtol=1e-3)


def test_a_cut_network_gets_its_own_statistics_back(tmp_path: Path) -> None:
    network = trained(tmp_path)
    program = matched(network.grouping, pictures(8, seed=5), OrtRunner())
    assert program is not None
    keep = {one.id: np.arange(one.size) % 2 == 0 for one in network.grouping.groups if one.exact}
    cut = Shrink(keep)(network.grouping)
    other = Shrink(keep)(Network(program, None, "matched", {}).grouping)
    means = [one.inputs[3].const_value.numpy() for one in norms(other).values()]
    restore(network.grouping, other, cut)
    for name, node in norms(other).items():
        for k in (1, 2, 3, 4):
            held, wanted = node.inputs[k], norms(cut)[name].inputs[k]
            assert held.name == wanted.name
            np.testing.assert_array_equal(held.const_value.numpy(), wanted.const_value.numpy())
    assert not any(
        np.array_equal(a, b.inputs[3].const_value.numpy()) for a, b in zip(means, norms(cut).values(), strict=True)
    )


def test_without_data_the_outputs_are_nearer_and_the_statistics_are_the_originals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = trained(tmp_path)
    real = pictures(32, seed=9)

    def lost(folder: str) -> float:
        made = network.export(tmp_path / folder, target_macs="0.6x", calib="none", calib_samples=64, measure=None)
        assert made.verdict is not None and made.verdict.passed and made.repaired is not None
        models = (network.program.model, graphprune.load(made.model).program.model)
        wanted, found = (outputs_of(lambda one, m=m: OrtRunner()(m, one), real) for m in models)
        return sum(distance([a], [b]) for a, b in zip(wanted, found, strict=True))  # each by its own length

    near = lost("matched")
    said = (tmp_path / "matched" / "README.md").read_text()
    assert "samples of noise, matched to the statistics that the network holds of its training data" in said
    artefact = graphprune.load(tmp_path / "matched" / "model.onnx").program
    for node in norms(artefact.model).values():
        mean = artefact.tensor(node.inputs[3].name)
        assert np.isin(mean, network.program.tensor(node.inputs[3].name)).all()
    idle = network.export(
        tmp_path / "idle", target_macs="0.6x", calib="none", calib_samples=4, criterion="magnitude", repair="none",
        measure=None,
    )  # fmt: skip
    assert idle.to_json()["calibration"]["source"] == "noise" and "match" not in idle.to_json()["seconds"]
    monkeypatch.setattr("graphprune.choose.matched", lambda *_: None)
    assert near < 0.5 * lost("plain")
    assert r"samples of noise \(" in (tmp_path / "plain" / "README.md").read_text()


@pytest.mark.filterwarnings("error")
def test_statistics_stay_within_what_their_type_can_hold(tmp_path: Path) -> None:
    net = Net(dtype=np.float16)
    y = net.op(
        "BatchNormalization", net.input("x", [1, 3, 8, 8]), *(net.hold(n, np.ones(3, np.float16)) for n in "abcd")
    )
    sample = Sample(net.build({y: [1, 3, 8, 8]}), {"x": (1, 3, 8, 8)})
    network = graphprune.load(sample.save(tmp_path / "m.onnx"))
    program = matched(
        network.grouping, [{"x": 1000 * one["x"]} for one in (sample.feeds(seed=i) for i in range(4))], OrtRunner()
    )
    assert program is not None and program.tensor("d").tolist() == [65504.0] * 3


def test_a_network_that_remembers_nothing(tmp_path: Path) -> None:
    network = graphprune.load(SAMPLES["attention"]().save(tmp_path / "m.onnx"))
    assert matched(network.grouping, read_samples("none", network.program, limit=2).feeds, OrtRunner()) is None


def test_statistics_that_two_norms_share_stay(tmp_path: Path) -> None:
    net = Net()
    x = net.conv(image(net), "a", 3, 4)
    words = [net.hold(name, np.full(4, value, np.float32)) for name, value in zip("gbmv", (1, 0, 0, 1), strict=True)]
    y = net.op("BatchNormalization", x, *words)
    y = net.op("BatchNormalization", net.conv(net.op("Relu", y), "c", 4, 4), *words)
    net.head(y, 4)
    network = graphprune.load(picture(net).save(tmp_path / "m.onnx"))
    assert matched(network.grouping, pictures(4), OrtRunner()) is None
