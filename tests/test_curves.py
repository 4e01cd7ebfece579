"""Layers, their polynomials and the step curves fitted to (synthetic) times."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from models import SAMPLES, Net, Sample, image, nothing, picture
from test_control_flow import proto

from graphprune.coupling.groups import Grouping, group
from graphprune.coupling.solve import couple
from graphprune.coupling.widths import Size, Sizer, product, total
from graphprune.errors import GraphpruneError
from graphprune.ir.clean import clean
from graphprune.ir.observe import observe
from graphprune.latency.curves import Grain, Points, StepCurves, fit_curves
from graphprune.latency.layers import Layer, layers_of
from graphprune.latency.profile import _shares, spread
from graphprune.pipeline import load

Floats = np.ndarray[Any, Any]


def grouping_of(sample: Sample, folder: Path) -> Grouping:
    return load(sample.save(folder / "net.onnx"), input_shapes=sample.shapes).grouping


# ---- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_polynomials_agree_with_the_grouping(name: str, tmp_path: Path) -> None:
    grouping = grouping_of(SAMPLES[name](), tmp_path)
    sizer = Sizer(grouping)
    rng = np.random.default_rng(0)
    spaces = [space for axes in grouping.coupling.values.values() for space in axes]
    assert any(sizer(space).groups for space in spaces)
    for _ in range(3):
        keep = {one.id: spread(one, int(rng.integers(1, one.size + 1))) for one in grouping.groups}
        counts = {name: float(mask.sum()) for name, mask in keep.items()}
        for space in spaces:
            assert sizer(space)(counts) == pytest.approx(grouping.size(space, keep)), sizer(space)


def test_units_in_several_places_are_shares() -> None:
    """A group of 20 units of which an axis holds 10 by 2."""
    half = Size(((1, (("g", 0.5),)),))
    assert product([half, Size(((2, ()),))])({"g": 7.0}) == 7.0
    assert total([half, half])({"g": 7.0}) == 7.0
    assert total([half, half]).terms == ((2, (("g", 0.5),)),)
    assert product([half, half])({"g": np.array([4.0, 8.0])}).tolist() == [4.0, 16.0]
    assert product([])({}) == 1.0
    assert total([half, Size(((3, ()),))]).text({"g": "w0"}) == "w0(0.5)+3"


# ---- layers --------------------------------------------------------------------------------------------------------


def blocks(**second: Any) -> Sample:
    """Three equal blocks, the last of them changed by ``second``."""
    net = Net()
    x = net.block(image(net), "stem", 3, 16)
    x = net.block(net.block(x, "a", 16, 24), "b", 24, 32)
    net.head(net.block(x, "c", 32, 20, **second), 20)
    return picture(net)


def signatures(sample: Sample, folder: Path) -> list[str]:
    return [one.signature for one in layers_of(grouping_of(sample, folder))]


def test_equal_blocks_have_equal_signatures_whatever_their_widths(tmp_path: Path) -> None:
    stem, a, b, c, head = signatures(blocks(), tmp_path)
    assert a == b != stem
    assert c != b, "it is followed by other operators"
    assert signatures(blocks(), tmp_path) == [stem, a, b, c, head]


@pytest.mark.parametrize("change", [{"k": 1}, {"stride": 2}, {"group": 2}])
def test_attributes_and_fixed_sizes_tell_layers_apart(change: dict[str, int], tmp_path: Path) -> None:
    before, after = signatures(blocks(), tmp_path), signatures(blocks(**change), tmp_path)
    assert before[:2] == after[:2]
    assert before[3] != after[3]


def test_types_of_weights_tell_layers_apart(tmp_path: Path) -> None:
    assert not set(signatures(SAMPLES["half"](), tmp_path)) & set(signatures(SAMPLES["double"](), tmp_path))


def test_sizes_that_a_cut_writes_back_do_not_tell_layers_apart(tmp_path: Path) -> None:
    """Depthwise convolutions of different widths: their ``group`` is a width like any other."""
    net = Net()
    x = net.block(image(net), "stem", 3, 8)
    for name, i, o in (("a", 8, 12), ("b", 12, 20), ("c", 20, 8)):
        x = net.block(net.block(x, f"{name}.depth", i, i, group=i), f"{name}.point", i, o, 1)
    net.head(x, 8)
    made = layers_of(grouping_of(picture(net), tmp_path))
    depth = [one.signature for one in made if one.name.startswith("n_conv") and len(one.groups) == 1]
    assert len(depth) == 4, "the stem and three depthwise"
    assert len(set(depth[1:])) == 1


def test_bodies_are_part_of_the_layers() -> None:
    text = """(float[3,2,5] x) => (float y) {
        h = MatMul(x, a)
        start = Constant <value: tensor = float[2,12] {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}> ()
        n = Constant <value: tensor = int64 {4}> ()
        go = Constant <value: tensor = bool {1}> ()
        z = Loop (n, go, start) <
            body = body (int64 i, bool c, float[2,12] s) => (bool c1, float[2,12] t) {
                c1 = Identity(c) m = MatMul(s, w) t = Relu(m) }
        >
        k = Add(h, z)
        y = MatMul(k, b)
    }"""
    model = ir.from_proto(proto(text, {"a": (5, 12), "w": (12, 12), "b": (12, 3)}))
    clean(model)
    from laws.bench import run

    grouping = group(couple(observe(model, run, given={"x": np.ones((3, 2, 5), np.float32)})))
    layers = layers_of(grouping)
    kinds = [kind for layer in layers for kind in layer.operators]
    assert len(kinds) == len(grouping.coupling.program.live)
    inner = next(one for one in layers if one.operators[:2] == ("MatMul", "Relu"))
    assert [one.operator for one in inner.contractions] == ["MatMul"]


# ---- fits ----------------------------------------------------------------------------------------------------------


def true_time(layer: Layer, counts: Mapping[str, Any], block: int = 16, alignment: int = 4) -> Any:
    """A kernel that works in blocks on both axes and falls back where its inputs are misaligned."""
    time: Any = 3000.0
    for one in layer.contractions:
        work: Any = 1.0
        slow: Any = 1.0
        for letter, size in one.factors:
            value = size(counts)
            if size.groups and one.operator == "Conv":
                if letter == "i":
                    slow = 1.0 + 0.4 * ((value % alignment != 0) & (value > 1))
                value = np.ceil(value / block) * block
            work = work * value
        time = time + work * slow / 20.0
    return time + 0.1 * layer.moved(counts)


def points(layers: tuple[Layer, ...], grouping: Grouping, count: int, noise: float, seed: int = 0) -> dict[str, Points]:
    rng = np.random.default_rng(seed)
    found: dict[str, Points] = {}
    for layer in layers:
        sizes = {one.id: one.size for one in grouping.groups}
        widths = np.array([[rng.integers(1, sizes[name] + 1) for name in layer.groups] for _ in range(count)], float)
        widths = widths.reshape(count, len(layer.groups))
        counts = {name: widths[:, index] for index, name in enumerate(layer.groups)}
        times = np.broadcast_to(true_time(layer, counts), (count,)) * rng.normal(1.0, noise, count)
        one = Points(widths, times)
        found[layer.signature] = found[layer.signature] + one if layer.signature in found else one
    return found


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Grouping:
    net = Net()
    x = net.block(image(net, 16), "stem", 3, 64)
    for name, i, o in (("a", 64, 128), ("b", 128, 96), ("c", 96, 160)):
        x = net.block(x, name, i, o)
    net.head(x, 160)
    return grouping_of(picture(net, size=16), tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def fitted(wide: Grouping) -> StepCurves:
    layers = layers_of(wide)
    return fit_curves(layers, points(layers, wide, 48, 0.03))


def test_grains_are_found(fitted: StepCurves) -> None:
    grains = {(one.operator, one.letter): one for one in fitted.grains}
    assert grains["Conv", "i"] == Grain("Conv", "i", 16, 4)
    assert grains["Conv", "o"] == Grain("Conv", "o", 16, 1)
    assert all(one.block == 1 and one.alignment == 1 for key, one in grains.items() if key[0] != "Conv")


def test_unseen_widths_are_predicted(fitted: StepCurves, wide: Grouping) -> None:
    rng = np.random.default_rng(9)
    errors = []
    for _ in range(100):
        counts = {one.id: float(rng.integers(one.size // 4, one.size + 1)) for one in wide.groups}
        truth = sum(float(true_time(layer, counts)) for layer in fitted.layers)
        errors.append(abs(float(fitted.time(counts)) / truth - 1))
    assert np.median(errors) < 0.02
    assert np.quantile(errors, 0.95) < 0.05


def test_a_sweep_is_what_single_widths_take(fitted: StepCurves, wide: Grouping) -> None:
    counts = {one.id: float(one.size) for one in wide.groups}
    name = wide.groups[1].id
    widths = np.array([1.0, 31.0, 32.0, 33.0, 64.0])
    singly = np.array([float(fitted.time({**counts, name: width})) for width in widths])
    swept = fitted.sweep(name, widths, counts)
    assert swept - swept[0] == pytest.approx(singly - singly[0])
    assert swept[2] < swept[1], "31 is misaligned for the next layer"
    assert fitted.sweep("no such group", widths, counts).tolist() == [0.0] * 5


def test_layers_of_one_signature_share_their_points(tmp_path: Path) -> None:
    grouping = grouping_of(blocks(), tmp_path)
    layers = layers_of(grouping)
    held = points(layers, grouping, 8, 0.0)
    assert len(held[layers[1].signature].ns) == 16
    curves = fit_curves(layers, held)
    assert np.array_equal(curves.coefficients[1], curves.coefficients[2])


def test_layers_without_groups_or_time(tmp_path: Path) -> None:
    """A network that nothing is cut from still has a time; a layer below the clock's grain has none."""
    layers = layers_of(grouping_of(nothing(), tmp_path))
    assert [one.groups for one in layers] == [()]
    none = np.zeros((12, 0))
    curves = fit_curves(layers, {layers[0].signature: Points(none, np.full(12, 500.0))})
    assert float(curves.time({})) == pytest.approx(500.0)
    assert float(fit_curves(layers, {layers[0].signature: Points(none, np.zeros(12))}).time({})) == 0.0


def test_a_layer_that_was_not_measured_is_named(fitted: StepCurves) -> None:
    with pytest.raises(GraphpruneError, match=f"no time was measured for layer '{fitted.layers[0].name}'"):
        fit_curves(fitted.layers, {})


# ---- how a run's time is shared ------------------------------------------------------------------------------------


def test_shares_of_layers(fitted: StepCurves) -> None:
    layers = fitted.layers
    told = [
        {"name": "reorder", "nodes": ["nobody"], "ns": 10.0},  # before any layer: the first one's
        {"name": "x", "nodes": [layers[1].nodes[0]], "ns": 60.0},
        {"name": "reorder", "nodes": [], "ns": 10.0},  # counts for what ran before it
        {"name": layers[3].nodes[1], "nodes": [], "ns": 20.0},  # a body's node, which the file's graph does not list
    ]
    assert _shares(layers, told).tolist() == pytest.approx([0.1, 0.7, 0.0, 0.2, 0.0])


def test_shares_where_the_clock_tells_nothing(fitted: StepCurves) -> None:
    assert _shares(fitted.layers, [{"name": "x", "nodes": [], "ns": 0.0}]).tolist() == pytest.approx([0.2] * 5)
