"""Latency targets: spelling, the loop over measured candidates, tables and caches, exit codes; on made-up times."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import SAMPLES, Net, image, nothing, picture
from test_bench import measurement
from test_curves import points

import graphprune.export as exporting
import graphprune.latency.figures as figures
import graphprune.latency.profile as profiling
import graphprune.latency_model as modelling
import graphprune.latency_target as targeting
from graphprune.backends.onnxruntime import OnnxRuntimeBackend
from graphprune.choose import Chooser
from graphprune.errors import InputError, NoiseError, TargetError, UsageError
from graphprune.latency.curves import Points
from graphprune.latency.figures import Statistic, figure_of
from graphprune.latency.layers import layers_of
from graphprune.latency.measure import MeasureOptions
from graphprune.latency.profile import ProfileOptions, scenarios
from graphprune.latency.results import Comparison
from graphprune.latency.statistics import percentile_ratio
from graphprune.latency.table import LatencyTable, cache_file, read_cached, read_table, write_cached, write_table
from graphprune.latency_model import LatencyModel
from graphprune.latency_target import LatencyTarget, Met, Planner, meet
from graphprune.options import ExportOptions, settled
from graphprune.passes.allocate import Target, allocator
from graphprune.passes.files import keep_of
from graphprune.passes.score import criterion, score_groups
from graphprune.pipeline import Network, load

PRINT = {"backend": "made up", "version": "1", "device": "made up", "threads": 1}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """Four convolutions, 32 to 64 channels wide."""
    net = Net()
    x = net.block(image(net, 16), "stem", 3, 32)
    for name, i, o in (("a", 32, 64), ("b", 64, 48)):
        x = net.block(x, name, i, o)
    net.head(x, 48)
    return load(picture(net, size=16).save(tmp_path_factory.mktemp("net") / "net.onnx"))


@pytest.fixture(scope="module")
def table(network: Network) -> LatencyTable:
    layers = layers_of(network.grouping)
    return LatencyTable.empty(PRINT).with_points(layers, points(layers, network.grouping, 40, 0.0))


@pytest.fixture
def model(network: Network, table: LatencyTable) -> LatencyModel:
    return made_model(network, table)


def made_model(network: Network, table: LatencyTable) -> LatencyModel:
    nowhere = Path("nowhere")
    return LatencyModel.of(
        network.grouping, network.grouping.groups, nowhere, lambda keep, path: None, {}, ProfileOptions(), table=table
    )


# ---- spelling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value", "relative", "said"),
    [
        ("0.6x", 0.6, True, "0.6x"),
        (" .5 X", 0.5, True, "0.5x"),
        ("8ms", 8.0, False, "8 ms"),
        ("800us", 0.8, False, "0.8 ms"),
        ("0.5s", 500.0, False, "500 ms"),
        ("1x", 1.0, True, "1x"),
    ],
)
def test_targets_are_read(text: str, value: float, relative: bool, said: str) -> None:
    target = LatencyTarget.parse(text)
    assert (target.value, target.relative, str(target)) == (pytest.approx(value), relative, said)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("8", "is not a time; write a share of the original's time as 0.6x, or a time as 8ms, 800us or 0.5s"),
        ("-1ms", "is not a time"),
        ("0.6 x y", "is not a time"),
        ("0x", "is 0: nothing is that fast"),
        ("0ms", "is 0: nothing is that fast"),
        ("1.2x", "is above 1x, the original itself"),
    ],
)
def test_bad_targets_are_told(text: str, words: str, tmp_path: Path, run_cli: Any) -> None:
    with pytest.raises(UsageError, match=words):
        LatencyTarget.parse(text)
    assert run_cli("export", tmp_path / "none.onnx", "-o", tmp_path / "out", "--target-latency", text).code == 2


def test_a_time_as_a_share() -> None:
    assert LatencyTarget.parse("8ms").share(16.0) == 0.5
    assert LatencyTarget.parse("0.6x").share(16.0) == 0.6
    with pytest.raises(UsageError, match=r"The target of 8 ms is above what the original takes, 4 ms"):
        LatencyTarget.parse("8ms").share(4.0)


# ---- the loop ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Bench:
    """Stands for the machine: what it measures of the plan that was built last."""

    network: Network
    model: LatencyModel
    monkeypatch: pytest.MonkeyPatch
    built: int = 0

    def meet(
        self,
        target: str,
        measured: Callable[[float], tuple[float, float]],
        method: str = "knapsack",
        limits: tuple[Target, ...] = (),
        statistic: Statistic = "median",
        margin: float = 1.0,
    ) -> Met:
        """``measured``: the ratio and half its interval, for the ratio that the curves predict."""
        share = 1.0

        def build(plan: Any) -> Path:
            nonlocal share
            share = self.model.share({name: float(len(units)) for name, units in plan.kept.items()})
            self.built += 1
            return Path("candidate")

        def measure(*given: Any) -> Comparison:
            if statistic != "median":
                assert given[3].single_runs and given[3].min_iterations >= 200
                return sampled(measured(share)[0])
            ratio, half = measured(share)
            one = measurement()
            return Comparison(one, one, ratio, ratio - half, ratio + half, 0.95, 10, one.noise, one.fingerprint)

        self.monkeypatch.setattr(targeting, "compare_if_worth", measure)
        groups, program = self.network.grouping.groups, self.network.program
        scores = score_groups(criterion("magnitude"), groups, program.tensor)
        planner = Planner(self.model, groups, scores, self.network.cost, allocator(method), limits)
        asked, options = LatencyTarget.parse(target), MeasureOptions()
        return meet(asked, planner, Path("original"), build, {}, options, statistic, margin)


def sampled(share: float) -> Comparison:
    """Times of which the median falls to ``share``, and the slowest fifth by 0.1 less."""
    whole = measurement(samples_ns=(10_000_000,) * 300, round_sizes=(150, 150), median_ms=10.0)
    short, long = (round(1e7 * one) for one in (share, min(1.0, share + 0.1)))
    cut = measurement(samples_ns=(short, short, short, short, long) * 60, round_sizes=(150, 150), median_ms=short / 1e6)
    return Comparison(whole, cut, share, share - 0.001, share + 0.001, 0.95, 150, whole.noise, whole.fingerprint)


@pytest.fixture
def bench(network: Network, model: LatencyModel, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(network, model, monkeypatch)


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
@pytest.mark.parametrize("method", ["knapsack", "uniform"])
def test_it_converges_where_the_curves_are_off_by_a_factor(bench: Bench, factor: float, method: str) -> None:
    met = bench.meet("0.6x", lambda share: (share * factor, 0.001), method)
    best = met.rounds[met.chosen]
    assert best.high <= 0.6
    assert best.kept == max(one.kept for one in met.rounds if one.high <= 0.6)
    assert met.comparison.ratio == best.ratio
    assert met.share == 0.6
    assert len(met.rounds) <= targeting._ROUNDS
    assert best.low >= 0.6 * 0.95 or met.notes, "needlessly small, and nothing is said"


def test_candidates_are_held_to_the_margin(bench: Bench) -> None:
    met = bench.meet("0.6x", lambda share: (share, 0.001), margin=0.95)
    assert met.rounds[met.chosen].high <= 0.57
    assert met.share == pytest.approx(0.6)
    with pytest.raises(TargetError, match=r"the latency target of 0\.5x cannot be met"):
        bench.meet("0.5x", lambda share: (max(share, 0.8), 0.01), margin=0.95)


def test_it_converges_where_some_time_never_goes(bench: Bench) -> None:
    met = bench.meet("0.7x", lambda share: (0.3 + 0.7 * share, 0.001))
    assert met.rounds[met.chosen].high <= 0.7
    assert len(met.rounds) > 1, "the first candidate cannot have met it"


def test_a_target_in_milliseconds(bench: Bench) -> None:
    """The original is measured to take 2 ms; the curves say 1.7."""
    curves = bench.model.curves
    scale = 1.7e6 / bench.model.original_ns
    bench.model.curves = dataclasses.replace(curves, coefficients=curves.coefficients * scale)
    met = bench.meet("1.2ms", lambda share: (share, 0.001))
    assert met.share == pytest.approx(0.6)
    assert met.rounds[met.chosen].high <= 0.6


def test_a_time_that_only_the_table_calls_needless_is_measured(bench: Bench) -> None:
    """The curves say that the original takes 1 ms; here it takes 2."""
    curves = bench.model.curves
    scale = 1e6 / bench.model.original_ns
    bench.model.curves = dataclasses.replace(curves, coefficients=curves.coefficients * scale)
    assert bench.meet("1.2ms", lambda share: (share, 0.001)).share == pytest.approx(0.6)
    with pytest.raises(UsageError, match=r"3 ms is above what the original takes, 2 ms; nothing needs to go"):
        bench.meet("3ms", lambda share: (share, 0.001))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interval out of few resamples: quick."""
    monkeypatch.setattr(figures, "percentile_ratio", partial(percentile_ratio, resamples=50))


def test_a_target_on_the_90th_percentile_is_met_there(bench: Bench, few: None) -> None:
    met = bench.meet("0.7x", lambda share: (share, 0.0), statistic="p90")
    assert met.comparison is not None and met.rounds[met.chosen or 0].high <= 0.7
    found = figure_of(met.comparison, "p90").ratio.value
    assert found == met.rounds[met.chosen or 0].ratio == pytest.approx(met.comparison.ratio + 0.1)


def test_further_limits_hold_as_well(bench: Bench) -> None:
    met = bench.meet("0.8x", lambda share: (share, 0.001), limits=(Target("params", 0.3),))
    keep = keep_of(met.plan, bench.network.grouping)
    assert bench.network.cost.params(keep) <= 0.3 * bench.network.cost.params({})


def test_what_no_width_reaches_names_the_fastest(bench: Bench) -> None:
    with pytest.raises(TargetError) as caught:
        bench.meet("0.5x", lambda share: (max(share, 0.8), 0.01))
    assert "the latency target of 0.5x cannot be met: the fastest of" in str(caught.value)
    assert "takes 0.800x of the original's time, within [0.790, 0.810], where 0.500x was asked for" in str(caught.value)
    assert bench.built <= targeting._ROUNDS


def test_floors_that_are_too_slow_are_told_without_measuring(bench: Bench) -> None:
    with pytest.raises(TargetError, match=r"cut to its floor the network still takes 0\.\d+x of the latency, "):
        bench.meet("0.001x", lambda share: (share, 0.001))
    assert bench.built == 0


def test_an_interval_that_holds_the_target_is_noise(bench: Bench) -> None:
    with pytest.raises(NoiseError, match=r"too noisy to say whether 0\.6x is met: after \d rounds"):
        bench.meet("0.6x", lambda share: (0.62, 0.2))


def test_a_wide_interval_is_met_and_noted(bench: Bench) -> None:
    met = bench.meet("0.6x", lambda share: (share * 0.8, 0.06))
    assert met.rounds[met.chosen].high <= 0.6
    assert "below the target" in met.notes[0]


def test_a_target_that_the_written_graph_meets_uncut_is_said(bench: Bench) -> None:
    met = bench.meet("0.6x", lambda share: (share * 0.57, 0.001))
    assert met.kept == 1 and not met.plan.kept
    assert any("nothing had to be cut" in note for note in met.notes)
    assert not any("nothing had to be cut" in note for note in bench.meet("0.6x", lambda share: (share, 0.001)).notes)


def test_the_same_table_gives_the_same_plans(network: Network, table: LatencyTable, monkeypatch: Any) -> None:
    plans = []
    for _ in range(2):
        met = Bench(network, made_model(network, table), monkeypatch).meet("0.6x", lambda share: (share, 0.001))
        plans.append({name: units.tolist() for name, units in met.plan.kept.items()})
    assert plans[0] == plans[1]


# ---- scenarios -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "shuffle", "opset_17"])
def test_scenarios(name: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]()
    grouping = load(sample.save(tmp_path / "net.onnx"), input_shapes=sample.shapes).grouping
    drawn = list(itertools.islice(scenarios(grouping.groups, 0.2, seed=1), 30))
    assert all(mask.all() for mask in drawn[0].values()), "the first is the original"
    for kept in drawn:
        assert set(kept) == {one.id for one in grouping.groups}
        assert not grouping.emptied(kept)
        for one in grouping.groups:
            assert kept[one.id].sum() >= 0.2 * one.size
            assert all(kept[one.id][units].any() for units in one.covers)
    again = list(itertools.islice(scenarios(grouping.groups, 0.2, seed=1), 30))
    assert all(np.array_equal(a[key], b[key]) for a, b in zip(drawn, again, strict=True) for key in a)
    for one in grouping.groups:
        assert len({int(kept[one.id].sum()) for kept in drawn}) >= min(3, one.size)


def test_batches_end_where_their_files_take_too_much(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the sizes of what is written: the weights of a large network lie beside its ONNX file."""
    sizes: list[int] = []

    def worker(job: dict[str, Any], feeds: Any, timeout: Any) -> Any:
        count = len(job["models"]) - 1
        sizes.append(count)
        told = [[{"name": node, "nodes": [node], "ns": 1.0} for one in layers for node in one.nodes]] * count
        return {"layers": told, "fingerprint": PRINT}, [np.full(4, 1000.0)] * (2 * count)

    def write(keep: Any, path: Path) -> None:
        path.write_bytes(b"")
        (path.parent / "model.onnx.data").write_bytes(bytes(100))

    layers = layers_of(network.grouping)
    monkeypatch.setattr(profiling, "run_worker", worker)
    monkeypatch.setattr(profiling, "_BATCH_BYTES", 250)
    groups, units = network.grouping.groups, {one.id: one.size for one in network.grouping.groups}
    options = ProfileOptions(fewest=4, most=9)
    found = profiling.profile_network(layers, groups, units, tmp_path / "source.onnx", write, {}, options)
    assert set(sizes) == {3}
    assert len(found.errors) == sum(sizes) - 3, "of all but the first batch"
    assert found.original_ns == 1000.0


# ---- tables --------------------------------------------------------------------------------------------------------


def test_tables_are_read_as_they_were_written(table: LatencyTable, network: Network, tmp_path: Path) -> None:
    alone = layers_of(load(nothing().save(tmp_path / "nothing.onnx")).grouping)
    both = table.with_points(alone, {alone[0].signature: Points(np.zeros((12, 0)), np.full(12, 5.0))})
    write_table(both, tmp_path / "t.json")
    back = read_table(tmp_path / "t.json")
    assert (back.fingerprint, set(back.points)) == (both.fingerprint, set(both.points))
    for key, held in both.points.items():
        assert np.array_equal(back.points[key].widths, held.widths)
        assert np.array_equal(back.points[key].ns, held.ns)
    assert back.covers(layers_of(network.grouping))
    assert back.covers(alone)
    assert back.layers[alone[0].signature] == "MatMul, Add"


def test_old_points_go_where_there_are_too_many(table: LatencyTable, network: Network) -> None:
    layers = layers_of(network.grouping)[:1]
    key = layers[0].signature
    more = Points(np.full((600, len(layers[0].groups)), 7.0), np.arange(600.0))
    left = table.with_points(layers, {key: more}).points[key]
    assert (len(left.ns), left.ns[-1], left.widths.min()) == (512, 599.0, 7.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": "other"}', "has the format 'other'; this version reads 'graphprune latency table 1'"),
        ("{}", "is no latency table"),
        ("nonsense", "is no latency table"),
        ("[1]", "is no latency table"),
        ('{"format": "graphprune latency table 1", "fingerprint": {}, "layers": {"a": 3}}', "is no latency table"),
        ('{"ns": [1, 1], "widths": [[1], [2]]}', "does not say its backend, version, device, threads"),
        ('{"ns": [1, -1], "widths": [[1], [2]]}', "the times of layer a are no list of numbers of at least 0"),
        ('{"ns": [1, NaN], "widths": [[1], [2]]}', "the times of layer a are no list"),
        ('{"ns": [1], "widths": [[1], [2]]}', "the times of layer a are no list"),
        ('{"ns": [1, 2], "widths": [[1], [2, 3]]}', "is no latency table"),
    ],
)
def test_what_is_no_table(text: str, words: str, tmp_path: Path) -> None:
    if '"ns"' in text:
        row = text[:-1] + ', "operators": ""}'
        text = f'{{"format": "graphprune latency table 1", "fingerprint": {{}}, "layers": {{"a": {row}}}}}'
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(InputError, match=words):
        read_table(tmp_path / "t.json")


def test_layers_that_a_table_does_not_know_are_named(table: LatencyTable, tmp_path: Path) -> None:
    other = load(SAMPLES["residual"]().save(tmp_path / "net.onnx"))
    with pytest.raises(UsageError, match=r"does not know 6 of 7 layers \('n_conv_1', .*graphprune profile"):
        table.require(layers_of(other.grouping))


def test_a_table_of_other_conditions_is_not_added_to(table: LatencyTable, tmp_path: Path, run_cli: Any) -> None:
    path = SAMPLES["plain"]().save(tmp_path / "net.onnx")
    write_table(table, tmp_path / "t.json")
    before = (tmp_path / "t.json").read_bytes()
    result = run_cli("profile", path, "-o", tmp_path / "t.json")
    assert result.code == 2
    assert "the table is of other conditions (affinity, architecture, backend" in result.err
    assert (tmp_path / "t.json").read_bytes() == before


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(OnnxRuntimeBackend, "fingerprint", lambda self, options: {**PRINT, "spin": options.spinning})
    return tmp_path / "cache"  # type: ignore[return-value]


def test_the_cache_is_used_the_second_time(
    cache: Path, network: Network, table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def profile(*_: Any) -> profiling.Profiled:
        measured.append(1)
        return profiling.Profiled(table.points, 1e6, (), 0.0, {**PRINT, "spin": False})

    monkeypatch.setattr(modelling, "profile_network", profile)
    groups = network.grouping.groups

    def made() -> LatencyModel:
        return LatencyModel.of(network.grouping, groups, Path(), lambda keep, path: None, {}, ProfileOptions())

    first, second = made(), made()
    assert len(measured) == 1
    assert np.array_equal(first.curves.coefficients, second.curves.coefficients)
    (file,) = cache.rglob("*.json")
    assert file == cache_file({**PRINT, "spin": False})
    file.write_text("broken")
    made()
    assert len(measured) == 2, "a cache that cannot be read is measured anew"
    assert read_cached(ProfileOptions()) is not None


def test_a_cache_that_cannot_be_written_is_no_error(cache: Path, table: LatencyTable) -> None:
    cache.write_text("a file where the folder should be")
    write_cached(table)
    assert cache.read_text() == "a file where the folder should be"


# ---- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "code", "words"),
    [((0.9, 0.01), 3, "the latency target of 0.7x cannot be met"), ((0.71, 0.05), 5, "too noisy to say whether 0.7x")],
)
def test_exit_codes(
    found: tuple[float, float], code: int, words: str, network: Network, table: LatencyTable, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, run_cli: Any,
) -> None:  # fmt: skip
    one = measurement()
    ratio, half = found
    comparison = Comparison(one, one, ratio, ratio - half, ratio + half, 0.95, 10, one.noise, one.fingerprint)
    monkeypatch.setattr(targeting, "compare_if_worth", lambda *_: comparison)
    write_table(table, tmp_path / "t.json")
    words_ = ("--target-latency", "0.7x", "--latency-table", tmp_path / "t.json", "--floor", "0.01")
    result = run_cli("export", network.source, "-o", tmp_path / "out", *words_)
    assert (result.code, words in result.err) == (code, True), result.err
    assert not (tmp_path / "out").exists(), "nothing is written"


PHONE = {**PRINT, "backend": "onnxruntime", "device": "A phone", "architecture": "aarch64"}


@pytest.fixture
def phone(table: LatencyTable, tmp_path: Path) -> Path:
    """The table, as if it came from another device."""
    write_table(dataclasses.replace(table, fingerprint=PHONE), tmp_path / "phone.json")
    return tmp_path / "phone.json"


def never(*_: Any) -> Any:
    raise AssertionError("nothing may be measured")


@pytest.mark.parametrize("text", ["0.7x", "ms"])
def test_a_table_of_another_device_alone(
    text: str, network: Network, model: LatencyModel, phone: Path, tmp_path: Path, monkeypatch: Any, run_cli: Any
) -> None:
    """With --no-measure: nothing is run for its time, and nothing is said to be met."""
    monkeypatch.setattr(targeting, "compare_if_worth", never)
    target = text if text == "0.7x" else f"{0.7 * model.original_ns / 1e3:.6g}us"
    words = ("export", network.source, "-o", tmp_path / "out", "--latency-table", phone, "--target-latency", target)
    result = run_cli(*words, "--no-measure", "--floor", "0.01")
    assert result.code == 0, result.err
    assert "latency, predicted" in result.out
    assert "predicted, not measured: 0." in result.out and "by the latency table of A phone" in result.out
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    found = manifest["latency_target"]
    assert (manifest["latency"], found["figure"], found["rounds"], found["chosen"]) == (None, None, [], None)
    assert found["fingerprint"] == PHONE
    assert 0.6 < found["predicted"]["ratio"] <= found["share"] == pytest.approx(0.7)
    assert manifest["verification"]["passed"]
    assert any("`graphprune gate --max-latency 0.700x` measures it there" in note for note in manifest["notes"])
    assert "The target of" in (tmp_path / "out" / "README.md").read_text()


def test_a_family_of_predictions(network: Network, phone: Path, tmp_path: Path, run_cli: Any) -> None:
    words = ("--target-latency", "0.8x,0.6x", "--latency-table", phone, "--no-measure", "--floor", "0.01")
    result = run_cli("export", network.source, "-o", tmp_path / "out", *words)
    assert result.code == 0, result.err
    assert "predicted" in result.out and "measured" not in result.out.split("note")[0].split("predicted, not")[0]
    members = json.loads((tmp_path / "out" / "pareto.json").read_text())["members"]
    assert [one["folder"] for one in members] == ["0.8x", "0.6x"]


def test_a_family_on_the_90th_percentile(
    network: Network, table: LatencyTable, tmp_path: Path, monkeypatch: Any, run_cli: Any, few: None
) -> None:
    """The table of targets and every manifest speak of the percentile, whatever the medians are."""
    write_table(table, tmp_path / "t.json")
    curves = made_model(network, table)

    def measure(source: Path, candidate: Path, *_: Any) -> Comparison:
        sizes = {}
        for one in load(candidate).grouping.groups:
            sizes[one.id] = float(one.size)
        return sampled(curves.share(sizes))

    monkeypatch.setattr(targeting, "compare_if_worth", measure)
    words = ("--target-latency", "0.9x,0.75x", "--statistic", "p90", "--floor", "0.01")
    result = run_cli("export", network.source, "-o", tmp_path / "out", "--latency-table", tmp_path / "t.json", *words)
    assert result.code == 0, result.err
    assert "p90 ms" in result.out and "median" not in result.out
    for name, most in (("0.9x", 0.9), ("0.75x", 0.75)):
        manifest = json.loads((tmp_path / "out" / name / "manifest.json").read_text())
        figure = manifest["latency_target"]["figure"]
        assert figure["statistic"] == "p90" and figure["ratio_high"] <= most
        assert figure["ratio"] == pytest.approx(manifest["latency"]["ratio"] + 0.1)
        assert "--statistic p90" in (tmp_path / "out" / name / "README.md").read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--target-latency", "3ms"], "3 ms is a time on A phone, where the latency table was made, and this machine "
         "cannot measure that: add --no-measure to go by the table alone, or ask for a share such as 0.6x"),
        (["--target-latency", "5s", "--no-measure"], "is above what the original takes by the latency table"),
        (["--target-latency", "0.7x", "--no-measure", "--statistic", "p90"], "step curves are of medians"),
        (["--target-macs", "0.7x"], "--latency-table serves a latency target"),
    ],
)  # fmt: skip
def test_what_a_table_of_another_device_cannot_do(
    more: list[str], said: str, network: Network, phone: Path, tmp_path: Path, monkeypatch: Any, run_cli: Any
) -> None:
    monkeypatch.setattr(targeting, "compare_if_worth", never)
    result = run_cli("export", network.source, "-o", tmp_path / "out", "--latency-table", phone, *more)
    assert (result.code, said in result.err) == (2, True), result.err
    assert not (tmp_path / "out").exists()


def test_a_share_is_measured_here_with_widths_for_another_device(
    network: Network, phone: Path, tmp_path: Path, monkeypatch: Any, run_cli: Any
) -> None:
    one = measurement()
    comparison = Comparison(one, one, 0.69, 0.685, 0.695, 0.95, 10, one.noise, one.fingerprint)
    monkeypatch.setattr(targeting, "compare_if_worth", lambda *_: comparison)
    words = ("--target-latency", "0.7x", "--latency-table", phone, "--floor", "0.01")
    result = run_cli("export", network.source, "-o", tmp_path / "out", *words)
    assert result.code == 0, result.err
    assert "note: the widths were chosen by a latency table of another device, A phone; the ratio was" in result.out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--target-latency", "0.7x", "--no-measure"], "give the step curves of the device with --latency-table"),
        (["--target-macs", "0.7x", "--statistic", "p90"], "--statistic p90 says what a latency target is on"),
        (
            ["--target-macs", "0.7x", "--profile-seconds", "9"],
            "--profile-seconds is for the step curves that a latency",
        ),
        (["--target-latency", "0.7x", "--latency-table", "t", "--profile-seconds", "9"], "(and no --latency-table)"),
        (["--max-drop", "1%", "--no-measure", "--latency-table", "t"], "(with --max-drop, leave out --no-measure)"),
        (["--max-drop", "1%", "--latency-table", "t", "--eval", "m:f"], "'t'"),
    ],
)
def test_what_makes_no_sense_without_a_table(more: list[str], said: str, tmp_path: Path, run_cli: Any) -> None:
    result = run_cli("export", tmp_path / "none.onnx", "-o", tmp_path / "out", *more)
    assert (result.code, said in result.err) == (2, True), result.err


def test_a_file_needs_no_source_kept(network: Network, tmp_path: Path, run_cli: Any) -> None:
    words = ("--target-macs", "0.7x", "--keep-source")
    result = run_cli("export", network.source, "-o", tmp_path / "out", *words)
    assert (result.code, "here the source is a file already" in result.err) == (2, True), result.err


def test_profile_and_export_for_real(tmp_path: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it on a small network; whether the target is met is up to the machine."""
    monkeypatch.setattr(ProfileOptions, "__init__", _short(ProfileOptions.__init__))
    path = SAMPLES["plain"]().save(tmp_path / "net.onnx")
    made = run_cli("profile", path, "-o", tmp_path / "t.json", "--threads", "1", "--duration", "1s", "--json")
    assert made.code == 0, made.err
    assert json.loads(made.out)["layers"] == 4
    assert len(read_table(tmp_path / "t.json").points) == 4
    words = ("--target-latency", "0.7x", "--latency-table", tmp_path / "t.json", "--threads", "1", "--floor", "0.01")
    result = run_cli("export", path, "-o", tmp_path / "out", *words, "--duration", "100ms", "--warm-up-ms", "1")
    assert result.code in (0, 3, 5), result.err
    if result.code == 0:
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        assert {"asked", "share", "rounds", "chosen", "layers", "curves"} <= set(manifest["latency_target"])
        assert manifest["verification"]["passed"]
    else:
        assert not (tmp_path / "out" / "manifest.json").exists()


def _short(init: Callable[..., None]) -> Callable[..., None]:
    def shorter(self: ProfileOptions, *given: Any, **named: Any) -> None:
        init(self, *given, **{**named, "fewest": 12, "most": 12})

    return shorter


@pytest.mark.parametrize("repaired", [True, False])
def test_a_candidate_is_timed_without_the_values_that_repair_will_replace(
    repaired: bool, network: Network, table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    one = measurement()
    comparison = Comparison(one, one, 0.68, 0.675, 0.685, 0.95, 10, one.noise, one.fingerprint)

    def noted(what: str) -> Callable[..., Comparison]:
        def stand_in(_source: Path, _candidate: Path, _feeds: Any, options: MeasureOptions, *_: Any) -> Comparison:
            seen[what] = options.backend_options.denormals
            return comparison

        return stand_in

    monkeypatch.setattr(targeting, "compare_if_worth", noted("candidate"))
    monkeypatch.setattr(exporting, "measure", noted("artefact"))
    write_table(table, tmp_path / "t.json")
    data = {"calib": [network.program.examples] * 4, "search_budget": "0"} if repaired else {}
    result = network.export(
        tmp_path / "out", target_latency="0.7x", latency_table=tmp_path / "t.json", measure=MeasureOptions(), **data
    )
    assert (result.repaired is not None) == repaired
    assert seen == ({"candidate": False, "artefact": True} if repaired else {"candidate": True})
    assert result.met is not None and result.met.share == pytest.approx(0.7)
    assert result.met.rounds[0].share == pytest.approx(0.7 * (0.98 if repaired else 1.0))


@pytest.mark.parametrize("last", [0.695, 0.71])
def test_an_artefact_that_only_noise_puts_above_the_target_is_measured_again(
    last: float, network: Network, table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = measurement()
    repairs, rounds, highs = [], [], [0.72, last] * 3

    def found(high: float, value: float = 0.68) -> Comparison:
        return Comparison(one, one, value, value - 0.005, high, 0.95, 10, one.noise, one.fingerprint)

    def repair(chooser: Chooser, *given: Any) -> Any:
        repairs.append(given)
        return whole(chooser, *given)

    whole = Chooser.repaired
    monkeypatch.setattr(Chooser, "repaired", repair)
    monkeypatch.setattr(targeting, "compare_if_worth", lambda *_: found(0.665, 0.66))
    monkeypatch.setattr(exporting, "measure", lambda *given: rounds.append(given[3].rounds) or found(highs.pop(0)))
    write_table(table, tmp_path / "t.json")
    export = partial(
        network.export, tmp_path / "out", target_latency="0.7x", latency_table=tmp_path / "t.json",
        calib=[network.program.examples] * 4, search_budget="0",
    )  # fmt: skip
    if last > 0.7:
        with pytest.raises(NoiseError, match=r"whether 0\.7x is met: the artefact takes 0\.680x .* \[0\.675, 0\.710\]"):
            export()
        return
    result = export()
    assert result.comparison is not None and result.comparison.ratio_high == last
    assert len(repairs) == 1 and rounds == [6, 12]


@pytest.mark.parametrize("asked", [{"target_latency": "0.7x"}, {"max_drop": "1%"}, {"target_macs": "0.7x"}])
def test_times_that_are_met_are_known_well(asked: dict[str, str]) -> None:
    for given, width in ((MeasureOptions(), 0.03), (MeasureOptions(max_width=0.1), 0.1)):
        measure = settled(ExportOptions(**asked, measure=given)).measure
        assert measure is not None
        assert measure.max_width == (None if width == 0.03 and "target_macs" in asked else width)
