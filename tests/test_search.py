"""Search, bounds on what may be lost, int8 corners and calibration data, end to end on small networks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import graphprune.choose
import graphprune.export
from graphprune.accuracy import Accuracy, Figure, fastest_within, fidelity, parse_drop, read_metric
from graphprune.errors import InputError, TargetError, UsageError
from graphprune.frontends.samples import Preprocessing, read_samples
from graphprune.pipeline import Network
from graphprune.quantize import quantize_int8
from graphprune.search import Budget
from tests.models import SAMPLES, Net, Sample


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path / "cache"))


def loaded(sample: Sample, folder: Path) -> Network:
    return graphprune.load(sample.save(folder / "m.onnx"), inputs=sample.feeds())


def feeds(sample: Sample, count: int) -> list[dict[str, Any]]:
    return [sample.feeds(seed=50 + i) for i in range(count)]


def test_a_search_is_never_worse_than_where_it_began_and_resumes(tmp_path: Path) -> None:
    sample = SAMPLES["residual"]()
    network = loaded(sample, tmp_path)
    data = feeds(sample, 40)
    results = [
        network.export(tmp_path / name, target_macs="0.5x", calib=data, measure=None, search_budget="6")
        for name in ("one", "two")
    ]
    found = results[0].to_json()["search"]
    assert found["divergence"] <= found["divergence_before"] and found["candidates"] == 6
    assert results[0].model.read_bytes() == results[1].model.read_bytes()
    (kept,) = (tmp_path / "cache" / "search").iterdir()
    lines = kept.read_text().splitlines()
    assert len(lines) == len(set(lines))  # nothing was looked at twice


def near(data: list[dict[str, Any]], network: Network) -> Any:
    """A metric of the user's own: minus the mean distance of what a network says from what this one says."""
    wanted = [network.program.run(network.program.model, one)["y"] for one in data]

    def measured(run: Any) -> float:
        return -float(np.mean([np.abs(run(one)["y"] - y).mean() for one, y in zip(data, wanted, strict=True)]))

    return measured


@pytest.mark.parametrize("calib", ["samples", "none"])
def test_a_search_by_the_users_metric_looks_at_nothing_else(calib: str, tmp_path: Path) -> None:
    sample = SAMPLES["residual"]()
    network = loaded(sample, tmp_path)
    called: list[float] = []
    judge = near(feeds(sample, 8), network)

    def metric(run: Any) -> float:
        called.append(judge(run))
        return called[-1]

    result = network.export(
        tmp_path / "out", target_macs="0.5x", calib=feeds(sample, 24) if calib == "samples" else "none",
        calib_samples=24, measure=None, search_budget="8", search_by="eval", metric=metric,
    )  # fmt: skip
    found = result.to_json()["search"]
    looked_at = called[1:-3]  # the original before, then original, cut network and artefact
    assert called[0] == 0 and found["judge"] == "eval" and found["candidates"] == 8
    assert found["divergence"] == pytest.approx(min(-one for one in looked_at[found["groups_looked_at"] :]))
    assert found["divergence"] <= found["divergence_before"]


def test_a_search_by_squared_distance(tmp_path: Path) -> None:
    sample = SAMPLES["residual"]()
    network = loaded(sample, tmp_path)
    plans = {}
    for judge in ("mse", "outputs"):
        made = network.export(
            tmp_path / judge, target_macs="0.5x", calib=feeds(sample, 24), measure=None, search_by=judge
        )
        plans[judge] = made.to_json()["search"]
    assert plans["mse"]["judge"] == "mse" and plans["mse"]["divergence"] != plans["outputs"]["divergence"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"search_by": "eval"}, "--search-by eval judges by your own metric; add --eval"),
        ({"search_by": "kl"}, "--search-by kl: choose outputs, mse, eval"),
        ({"search_by": "mse", "criterion": "magnitude"}, "add --search-budget, such as 20"),
    ],
)
def test_what_a_search_cannot_judge_by(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    sample = SAMPLES["plain"]()
    with pytest.raises(UsageError, match=sentence):
        loaded(sample, tmp_path).export(tmp_path / "out", target_macs="0.5x", calib=feeds(sample, 8), **options)


def test_a_generator_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    sample = SAMPLES["plain"]()
    network = loaded(sample, tmp_path)
    monkeypatch.setattr("graphprune.frontends.samples._MOST", 5)
    endless = (sample.feeds(seed=i) for i in itertools.count())
    assert read_samples(endless, network.program).count == 5
    assert "the first 5 samples are used; --calib-samples says how many" in caplog.text
    assert read_samples(endless, network.program, limit=7).count == 7
    np.savez(tmp_path / "many.npz", x=np.zeros((9, 3, 8, 8), np.float32))
    assert read_samples(tmp_path / "many.npz", network.program).count == 9


def test_the_fastest_network_within_a_bound(tmp_path: Path) -> None:
    sample = SAMPLES["plain"]()
    network = loaded(sample, tmp_path)
    result = network.export(tmp_path / "out", max_drop="20%", calib=feeds(sample, 48), measure=None)
    found = result.to_json()["max_drop"]
    assert result.reached["macs"] / result.original["macs"] == pytest.approx(found["share"], abs=0.03)
    within = {one["share"] for one in found["rounds"] if one["within"]}
    beyond = [one["share"] for one in found["rounds"] if not one["within"]]
    assert "--max-drop 20%" in (page := (result.folder / "report.html").read_text()) and "--target-macs" not in page
    assert min(within) == pytest.approx(found["share"], abs=1e-3) and all(one < found["share"] for one in beyond)


def test_halving_finds_the_bound_and_says_when_there_is_none() -> None:
    found = fastest_within(0.1, lambda share: 1.0 if share is None else float(share > 0.42))
    assert 0.42 <= found.share <= 0.44
    with pytest.raises(TargetError, match=r"nothing faster keeps 0\.9 of 1"):
        fastest_within(0.1, lambda share: float(share is None))
    found = fastest_within(0.1, lambda share: 1.0 if share is None or share > 0.5 else float("-inf"))
    assert 0.5 <= found.share <= 0.52 and None in [one["value"] for one in found.to_json()["rounds"]]
    with pytest.raises(TargetError, match="nothing that can be cut makes the network faster"):
        fastest_within(0.1, lambda share: 1.0 if share is None else float("-inf"))
    assert parse_drop("1%") == pytest.approx(0.01) and parse_drop("0.02") == pytest.approx(0.02)
    for text in ("x", "-1%", "100%"):
        with pytest.raises(UsageError, match="--max-drop"):
            parse_drop(text)


def test_budgets_are_read() -> None:
    assert Budget.parse("5min").seconds == 300 and Budget.parse("90s").seconds == 90
    assert Budget.parse("20").candidates == 20
    for text in ("soon", "0", "2.5", "-3"):
        with pytest.raises(UsageError, match="--search-budget"):
            Budget.parse(text)


def test_int8_corners_run_and_are_told(tmp_path: Path) -> None:
    sample = SAMPLES["plain"]()
    network = loaded(sample, tmp_path)
    result = network.export(
        tmp_path / "out", target_macs="0.7x", calib=feeds(sample, 32), measure=None, quantize="int8"
    )
    corners = result.to_json()["corners"]
    assert [one["name"] for one in corners] == ["dense float", "pruned float", "dense int8", "pruned int8"]
    assert all(one["fidelity"]["cosine"]["value"] > 0.5 for one in corners)
    session = onnxruntime.InferenceSession(str(result.folder / "model.int8.onnx"))
    assert session.run(None, sample.feeds())[0].shape == (1, 5)
    assert "model.int8.onnx" in result.to_json()["artefact"]["sha256"]
    page = (result.folder / "report.html").read_text()
    assert "pruned int8" in page and "--quantize int8" in page and "--search-budget 3" in page
    kinds = {node.op_type for node in __import__("onnx").load(result.folder / "model.int8.onnx").graph.node}
    assert "QuantizeLinear" in kinds
    network.export(tmp_path / "out", target_macs="0.7x", measure=None)
    assert not (result.folder / "model.int8.onnx").exists()  # it is of another artefact


def test_what_cannot_be_quantised_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphprune.choose.Chooser, "choose", None)
    sample = SAMPLES["plain"]()
    quantize_int8(sample.save(tmp_path / "m.onnx"), feeds(sample, 4), tmp_path / "int8.onnx")
    for model, words in (
        (onnx.load(tmp_path / "int8.onnx"), "cannot take the network: it holds int8 weights already"),
        (SAMPLES["double"]().model, "found nothing to quantise"),
    ):
        again = Sample(model, SAMPLES["double"]().shapes if "nothing" in words else sample.shapes)
        with pytest.raises(InputError, match=words):
            loaded(again, tmp_path).export(
                tmp_path / "again", target_macs="0.7x", calib=feeds(again, 32), measure=None, quantize="int8"
            )


def test_a_network_in_half_precision_is_quantised(tmp_path: Path) -> None:
    sample = SAMPLES["half"]()
    quantize_int8(sample.save(tmp_path / "m.onnx"), feeds(sample, 4), tmp_path / "int8.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "int8.onnx"))
    assert session.run(None, sample.feeds())[0].dtype == np.float16


def yields() -> Iterator[Any]:
    rng = np.random.default_rng(0)
    for _ in range(5):
        yield rng.standard_normal((3, 8, 8)).astype(np.float32), 7  # with a label, without the batch


def fails() -> Iterator[Any]:
    yield {"x": np.zeros((1, 3, 8, 8), np.float32)}
    raise RuntimeError("the disk is gone")


def leaves() -> Iterator[Any]:
    yield {"x": np.zeros((1, 3, 8, 8), np.float32)}
    raise SystemExit(0)


@pytest.mark.parametrize("how", ["npz", "one array", "folder of npy", "images", "function", "list", "dictionary"])
def test_calibration_data_come_in_many_ways(how: str, tmp_path: Path) -> None:
    network = loaded(SAMPLES["plain"](), tmp_path)
    array = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    folder = tmp_path / "data"
    folder.mkdir()
    source: Any = folder
    if how == "npz":
        source = folder / "d.npz"
        np.savez(source, x=array)
    elif how == "one array":
        source = folder / "d.npz"
        np.savez(source, images=array)
    elif how == "folder of npy":
        for i, one in enumerate(array):
            np.save(folder / f"{i}.npy", one)
    elif how == "images":
        image = pytest.importorskip("PIL.Image")
        for i in range(5):
            image.fromarray(np.full((20, 30, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    elif how == "function":
        source = "tests.test_search:yields"
    elif how == "dictionary":
        source = {"x": array, "labels": np.arange(5)}
    else:
        source = [{"x": one[None]} for one in array]
    images = Preprocessing.parse("mean=0.5,std=0.5") if how == "images" else None
    samples = read_samples(source, network.program, images=images)
    assert sum(len(one["x"]) for one in samples.feeds) == 5
    assert all(one["x"].dtype == np.float32 and one["x"].shape[1:] == (3, 8, 8) for one in samples.feeds)
    joined = samples.batched(network.program)
    assert np.array_equal(np.concatenate([one["x"] for one in joined.feeds]),
                          np.concatenate([one["x"] for one in samples.feeds]))  # fmt: skip
    if how == "images":
        assert samples.feeds[0]["x"].min() == -1 and samples.feeds[4]["x"].max() == pytest.approx(160 / 127.5 - 1)
    assert read_samples(source, network.program, limit=2).count <= 2


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("nowhere.npz", "there is no 'nowhere.npz' to calibrate on"),
        ("tests.test_search:fails", "raised RuntimeError: the disk is gone"),
        ("tests.test_search:leaves", "raised SystemExit: 0"),
        ("", "--calib is empty"),
        ([{"x": [[1.0], [1.0, 2.0]]}], "input 'x' is no array"),
        ({"z": np.zeros((2, 3, 8, 8))}, "arrays in memory: z; the network takes x"),
        ([], "holds no samples"),
        ([{"y": np.zeros(3)}], "has y; the network takes x"),
        ([np.zeros((1, 4, 8, 8))], "has the shape 1x4x8x8, the network takes \\?x3x8x8"),
    ],
)
def test_data_that_do_not_fit_are_told(source: Any, sentence: str, tmp_path: Path) -> None:
    network = loaded(SAMPLES["plain"](), tmp_path)
    with pytest.raises(InputError, match=sentence):
        read_samples(source, network.program)


def test_images_fill_the_batch_that_a_network_takes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = pytest.importorskip("PIL.Image")
    net = Net(dtype=np.float16)
    net.op("Relu", net.input("x", [2, 3, 8, 8]), out="y")
    network = loaded(Sample(net.build({"y": [2, 3, 8, 8]}), {"x": (2, 3, 8, 8)}), tmp_path)
    for i in range(5):
        image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    read = read_samples(tmp_path, network.program, images=Preprocessing((0.0,), (1.0,)))
    seen = [one["x"][:, 0, 0, 0].tolist() for one in read.feeds]
    assert seen == [pytest.approx([0, 40 / 255], rel=1e-3), pytest.approx([80 / 255, 120 / 255], rel=1e-3)]
    assert "1 samples are left over" in caplog.text
    with pytest.raises(UsageError, match=r"says how the images in a folder are read; 'arrays in memory' is none"):
        read_samples({"x": np.zeros((2, 3, 8, 8))}, network.program, images=Preprocessing())


def numbers() -> Sample:
    """Takes whole numbers below 9."""
    net = Net()
    y = net.op("Gather", net.weight("table", 9, 16), net.input("ids", ["batch", 4], onnx.TensorProto.INT64))
    y = net.op("Relu", net.linear(y, "a", 16, 24))
    net.linear(y, "head", 24, 5, out="y")
    return Sample(net.build({"y": ["batch", 4, 5]}), {"ids": (1, 4)})


def test_samples_of_whole_numbers(tmp_path: Path) -> None:
    network = loaded(numbers(), tmp_path)
    good = np.random.default_rng(0).integers(0, 9, (30, 4))
    assert read_samples({"ids": good.astype(np.float32)}, network.program).feeds[0]["ids"].dtype == np.int64
    with pytest.raises(InputError, match=r"sample 0 of 'arrays in memory': input 'ids' .* holds fractions"):
        read_samples({"ids": good + 0.5}, network.program)
    good[20, 1] = 9
    with pytest.raises(InputError, match=r"a sample of 'arrays in memory' does not run: .*idx=9 must be within"):
        network.export(tmp_path / "out", target_macs="0.7x", calib={"ids": good}, measure=None)


def test_two_inputs_are_named(tmp_path: Path) -> None:
    net = Net()
    a, b = net.input("a", ["batch", 4]), net.input("b", ["batch", 4])
    net.linear(net.op("Relu", net.linear(net.op("Add", a, b), "one", 4, 8)), "two", 8, 3, out="y")
    sample = Sample(net.build({"y": ["batch", 3]}), {"a": (1, 4), "b": (1, 4)})
    network = loaded(sample, tmp_path)
    path = tmp_path / "d.npz"
    np.savez(path, a=np.zeros((50, 4), np.float32), b=np.ones((50, 4), np.float32))
    read = read_samples(path, network.program)
    assert read.count == 50 and [len(one["b"]) for one in read.batched(network.program).feeds] == [2] * 25
    np.savez(path, a=np.zeros((20, 4), np.float32))
    with pytest.raises(InputError, match="has the arrays a; the network takes a 1x4, b 1x4"):
        read_samples(path, network.program)


def test_figures_and_fidelity() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0.5, 0.1, 400)
    figure = Figure.of(values)
    assert figure.low is not None and figure.high is not None
    assert figure.low < values.mean() < figure.high and figure.high - figure.low < 0.03
    logits = [{"y": rng.standard_normal((4, 10)).astype(np.float32)} for _ in range(8)]
    same = fidelity(logits, logits)
    assert same.cosine.value == pytest.approx(1) and same.top1 is not None and same.top1.value == 1
    assert same.kl is not None and abs(same.kl.value) < 1e-9
    other = fidelity(logits, [{"y": -one["y"]} for one in logits])
    assert other.cosine.value == pytest.approx(-1) and other.kl is not None and other.kl.value > 0.1
    labels = [{"y": np.array([0, 1, 2, 3])}] * 3
    wrong = fidelity(labels, [{"y": np.array([0, 1, 3, 3])}] * 3)
    assert wrong.top1 is not None and wrong.top1.value == wrong.cosine.value == 0.75
    assert wrong.kl is not None and wrong.kl.value == 0.25 and fidelity(labels, labels).cosine.value == 1


def test_outputs_that_are_not_finite_never_look_good() -> None:
    good = [{"y": np.eye(3, dtype=np.float32)} for _ in range(4)]
    bad = [*good[:3], {"y": np.full((3, 3), np.nan, np.float32)}]
    worse = fidelity(good, bad)
    assert worse.cosine.value == pytest.approx(0.75) and worse.kl is not None and worse.kl.value == np.inf
    assert worse.to_json()["kl"] is None
    assert fidelity(bad, good).cosine.value == pytest.approx(1)  # the original's own are passed over
    with pytest.raises(InputError, match="on every sample that was to be compared"):
        fidelity(bad[3:], good[3:])


def test_metrics_that_fail_are_told() -> None:
    def broken(run: Any) -> float:
        raise ValueError("no labels")

    def leaving(run: Any) -> float:
        raise SystemExit(0)

    with pytest.raises(InputError, match="raised ValueError: no labels"):
        read_metric(broken)(lambda given: {})
    with pytest.raises(InputError, match="raised SystemExit: 0"):
        read_metric(leaving)(lambda given: {})
    with pytest.raises(InputError, match="no finite number"):
        read_metric(lambda run: float("nan"))(lambda given: {})
    with pytest.raises(UsageError, match="is a int, not a function"):
        read_metric("tests.test_search:NUMBER")
    assert set(read_metric(lambda run: {"a": [1.0, 2.0], "b": 3})(lambda given: {})) == {"a", "b"}


NUMBER = 3


def test_a_metric_is_known_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    words = []
    for seed in (6, 6, 8):
        path.write_text(f"def agree(run):\n    return {seed}\n")
        words.append(read_metric(f"{path}:agree").words())
    assert words[0] == words[1] != words[2]


def test_options_of_a_criterion_may_be_called_as_anything(tmp_path: Path) -> None:
    network = loaded(SAMPLES["plain"](), tmp_path)
    plans = [
        network.export(
            tmp_path / str(seed), target_macs="0.6x", criterion="random", criterion_options={"seed": seed}, measure=None
        ).plan_path.read_bytes()
        for seed in (3, 3, 4)
    ]
    assert plans[0] == plans[1] != plans[2]


def test_noise_and_samples_do_not_share_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []
    monkeypatch.setattr(graphprune.choose.ScoreCache, "read", lambda self, groups: keys.append(str(self.path)))
    network = loaded(SAMPLES["plain"](), tmp_path)
    options: dict[str, Any] = {"target_macs": "0.6x", "criterion": "wanda", "repair": "none", "measure": None}
    monkeypatch.setattr("graphprune.choose.matched", lambda grouping, *_: grouping.coupling.program)
    network.export(tmp_path / "a", calib="none", calib_samples=4, **options)
    monkeypatch.setattr("graphprune.choose.matched", lambda *_: None)
    network.export(tmp_path / "b", calib="none", calib_samples=4, **options)
    assert len(keys) == len(set(keys)) == 2


def test_ranges_of_int8_are_not_made_of_noise(tmp_path: Path) -> None:
    network = loaded(SAMPLES["plain"](), tmp_path)
    with pytest.raises(UsageError, match="--quantize: ranges that noise reaches say nothing"):
        network.export(tmp_path / "out", target_macs="0.6x", calib="none", quantize="int8", measure=None)


def test_a_bound_holds_for_the_artefact_or_is_aimed_at_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidates keep everything, the artefact does not: the share grows until the user is told."""
    sample = SAMPLES["plain"]()
    network = loaded(sample, tmp_path)
    asked: list[str] = []
    own = graphprune.choose.Chooser._aim

    def aim(chooser: Any, share: float) -> None:
        asked.append(f"{share:.3f}")
        own(chooser, share)

    monkeypatch.setattr(graphprune.choose.Chooser, "_aim", aim)
    monkeypatch.setattr(
        graphprune.export._Export, "_assessed", lambda job, made: Accuracy({"artefact": {"m": Figure(0.5)}}, {})
    )
    with pytest.raises(TargetError, match=r"the artefact keeps 0\.5 of 1, 0\.99 were asked for"):
        network.export(tmp_path / "out", max_drop="1%", measure=None, calib=feeds(sample, 20), metric=lambda run: 1.0)
    shares = [float(one) for one in asked]
    assert len(shares) == 3 and shares[0] < shares[1] < shares[2] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("count", [1, 8, 18, 64])
def test_few_samples_are_enough_and_some_runs_are_held_out(count: int, tmp_path: Path) -> None:
    sample = SAMPLES["residual"]()
    network = loaded(sample, tmp_path)
    result = network.export(tmp_path / "out", target_macs="0.7x", measure=None, calib=feeds(sample, count))
    ridges = {one.ridge for one in result.repaired.steps} if result.repaired is not None else set()
    assert (ridges == {0.1}) is (count == 1) or count == 8
    assert result.verdict is not None and result.verdict.passed


def test_samples_are_not_joined_along_time(tmp_path: Path) -> None:
    """Both first axes are symbolic, and only one of them is a batch."""
    joined = {}
    for name, operator in (("time", "CumSum"), ("batch", "Relu")):
        net = Net()
        hidden = net.op("Relu", net.linear(net.input("x", ["n", 4]), "a", 4, 8))
        hidden = net.op(operator, hidden, *([net.ints("axis", 0)] if operator == "CumSum" else []))
        net.linear(hidden, "b", 8, 3, out="y")
        sample = Sample(net.build({"y": ["n", 3]}), {"x": (3, 4)}, {"x": (5, 4)})
        (tmp_path / name).mkdir()
        network = loaded(sample, tmp_path / name)
        data = read_samples([sample.feeds(seed=i) for i in range(40)], network.program)
        joined[name] = data.batched(network.program).count
    assert joined == {"time": 40, "batch": 20}


def test_noise_differs_between_inputs(tmp_path: Path) -> None:
    net = Net()
    a, b = (net.input(name, ["batch", 3, 16, 16]) for name in ("left", "rght"))
    net.head(net.op("Relu", net.conv(net.op("Sub", a, b), "c", 3, 6)), 6)
    shapes = dict.fromkeys(("left", "rght"), (1, 3, 16, 16))
    network = loaded(Sample(net.build({"y": ["batch", 5]}), shapes, shapes), tmp_path)
    for one in read_samples("none", network.program, limit=3).feeds:
        assert not np.allclose(one["left"], one["rght"])


def test_the_search_does_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path / "file" / "cache"))
    sample = SAMPLES["plain"]()
    result = loaded(sample, tmp_path).export(tmp_path / "out", target_macs="0.7x", measure=None, calib=feeds(sample, 8))
    assert result.to_json()["search"]["candidates"] == 3


def test_scores_belong_to_the_weights_in_the_data_file(tmp_path: Path) -> None:
    """Two networks whose files are equal byte by byte, with other weights beside them."""
    sample = SAMPLES["plain"]()
    kept = []
    for seed in (0, 1):
        model = onnx.ModelProto.FromString(sample.model.SerializeToString())
        rng = np.random.default_rng(seed)
        for one in model.graph.initializer:
            if one.data_type == onnx.TensorProto.FLOAT:
                array = onnx.numpy_helper.to_array(one) * rng.uniform(0.1, 2.0, tuple(one.dims))
                one.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), one.name))
        path = tmp_path / str(seed) / "m.onnx"
        path.parent.mkdir()
        onnx.save_model(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
        network = graphprune.load(path, inputs=sample.feeds())
        result = network.export(
            path.parent / "out", target_macs="0.5x", measure=None, calib=feeds(sample, 8), criterion="activation",
            repair="none",
        )  # fmt: skip
        kept.append((path.read_bytes(), {name: one.tolist() for name, one in result.plan.kept.items()}))
    assert kept[0][0] == kept[1][0] and kept[0][1] != kept[1][1]
