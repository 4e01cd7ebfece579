"""Widths chosen by the knapsack: against brute force, within every limit, without dominated widths."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import SAMPLES

from graphprune.coupling.groups import Group, Member
from graphprune.errors import TargetError
from graphprune.passes.allocate import (
    Knapsack,
    Resource,
    Target,
    WidthProblem,
    cost_resources,
    fitted_widths,
    widths_of,
)
from graphprune.passes.allocate.knapsack import _thinned, _undominated
from graphprune.passes.score import Scores, criterion, score_groups
from graphprune.pipeline import load


def chain(name: str, widths: Mapping[str, int], block: int, alignment: int, limit: float) -> Resource:
    """A chain of layers, each costing the product of its two widths in blocks, more where the first is misaligned."""
    names = list(widths)

    def layer(index: int, counts: Mapping[str, Any]) -> Any:
        a, b = counts[names[index]], counts[names[index + 1]]
        slow = 1.0 + 0.5 * (np.asarray(a) % alignment != 0)
        return (np.ceil(np.asarray(a) / block) * block) * (np.ceil(np.asarray(b) / block) * block) * slow + 3.0

    def total(counts: Mapping[str, float]) -> float:
        return float(sum(layer(index, counts) for index in range(len(names) - 1)))

    def sweep(group: str, at: Any, counts: Mapping[str, float]) -> Any:
        here = names.index(group)
        changed = {**counts, group: at}
        return np.zeros(len(at)) + sum(
            layer(index, changed) for index in (here - 1, here) if 0 <= index < len(names) - 1
        )

    near = {
        one: frozenset(names[index] for index in (at - 1, at + 1) if 0 <= index < len(names))
        for at, one in enumerate(names)
    }
    return Resource(name, limit, total, sweep, near)


def problem(widths: Mapping[str, int], resources: list[Resource], seed: int, floor: float = 0.0) -> WidthProblem:
    rng = np.random.default_rng(seed)
    groups = [Group(name, "channels", size, True, ()) for name, size in widths.items()]
    scores = Scores({name: rng.gamma(1.0, size=size) + 0.01 for name, size in widths.items()})
    return WidthProblem(widths_of(groups, scores, Knapsack(floor=floor)), scores, tuple(resources))


def best(tried: WidthProblem) -> float:
    """The importance of the best of all combinations of widths."""
    values = {}
    for group in tried.steps.groups:
        ordered = np.sort(tried.scores.values[group.id])[::-1]
        values[group.id] = np.concatenate([[0.0], np.cumsum(ordered)])
    names = list(values)
    found = 0.0
    for counts in itertools.product(*(map(int, one) for one in tried.steps.counts)):
        state = dict(zip(names, map(float, counts), strict=True))
        if all(one.total(state) <= one.limit for one in tried.resources):
            found = max(found, sum(values[name][count] for name, count in zip(names, counts, strict=True)))
    return found


@settings(max_examples=40)
@given(
    st.lists(st.integers(4, 12), min_size=2, max_size=3),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4]),
    st.floats(0.25, 0.95),
    st.integers(0, 99),
)
def test_within_one_percent_of_the_optimum(
    sizes: list[int], block: int, alignment: int, share: float, seed: int
) -> None:
    widths = {f"g{index}": size for index, size in enumerate(sizes)}
    whole = chain("latency", widths, block, alignment, 1.0).total({name: float(n) for name, n in widths.items()})
    resource = chain("latency", widths, block, alignment, share * whole)
    tried = problem(widths, [resource], seed)
    optimum = best(tried)
    if not optimum:
        with pytest.raises(TargetError):
            tried.solve()
        return
    found = tried.solve()
    assert resource.total(found.counts) <= resource.limit
    assert tried.value(found.counts) == pytest.approx(found.value)
    assert found.value >= 0.99 * optimum


@pytest.mark.parametrize("seed", range(4))
def test_several_limits_hold_at_once(seed: int) -> None:
    widths = {"g0": 12, "g1": 10, "g2": 12}
    whole = {name: float(n) for name, n in widths.items()}
    loose = [chain("latency", widths, 4, 1, 1.0), chain("params", widths, 1, 1, 1.0)]
    resources = [
        chain("latency", widths, 4, 1, 0.6 * loose[0].total(whole)),
        chain("params", widths, 1, 1, 0.45 * loose[1].total(whole)),
    ]
    tried = problem(widths, resources, seed)
    found = tried.solve()
    assert all(one.total(found.counts) <= one.limit for one in resources)
    assert found.value >= 0.99 * best(tried)


def test_a_width_that_costs_as_much_as_a_larger_one_is_never_chosen() -> None:
    widths = {"g0": 64, "g1": 64, "g2": 48}
    whole = {name: float(n) for name, n in widths.items()}
    for share in (0.9, 0.7, 0.5, 0.3):
        resource = chain("latency", widths, 16, 4, share * chain("", widths, 16, 4, 1.0).total(whole))
        found = problem(widths, [resource], 0).solve()
        assert all(count % 16 == 0 for count in found.counts.values()), found.counts
    assert _undominated(np.array([1.0, 3.0, 2.0, 2.0, 5.0])).tolist() == [True, False, False, True, True]


def test_thinning_keeps_the_ends() -> None:
    assert _thinned(np.arange(5), 9).tolist() == [0, 1, 2, 3, 4]
    left = _thinned(np.arange(1000), 128)
    assert (left[0], left[-1], len(left), len(np.unique(left))) == (0, 999, 128, 128)


def test_floors_above_the_limit() -> None:
    widths = {"g0": 10, "g1": 10}
    resource = chain("latency", widths, 1, 1, 12.0)  # at 5 x 5 units it takes 28
    with pytest.raises(TargetError, match=r"cut to its floor .* of the latency, 2\.33 times what may be"):
        problem(widths, [resource], 0, floor=0.5).solve()


def test_the_same_every_time() -> None:
    widths = {f"g{index}": 40 for index in range(5)}
    resource = chain("latency", widths, 8, 1, 2500.0)
    found = [problem(widths, [resource], 3).solve() for _ in range(2)]
    assert found[0] == found[1]


# ---- through the pipeline ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "residual", "shuffle", "attention", "lstm"])
def test_a_target_on_macs_is_met_and_verifies(name: str, tmp_path: Any, run_cli: Any) -> None:
    path = SAMPLES[name]().save(tmp_path / "net.onnx")
    words = ("--target-macs", "0.6x", "--allocation", "knapsack", "--no-measure", "--json")
    result = run_cli("export", path, "-o", tmp_path / "out", *words)
    assert result.code == 0, result.err
    manifest = json.loads(result.out)
    assert 0.5 * manifest["original"]["macs"] < manifest["reached"]["macs"] <= manifest["asked"]["macs"]
    assert manifest["verification"]["passed"]


def test_costs_as_resources_are_those_of_the_network(tmp_path: Any) -> None:
    """Totals and sweeps of the polynomials against the costs of plans."""
    network = load(SAMPLES["grouped_queries"]().save(tmp_path / "net.onnx"), input_shapes={"ids": (1, 6)})
    groups = network.grouping.groups
    sizes = {one.id: float(one.size) for one in groups}
    for resource in cost_resources(network.cost, (Target("params", 0.5), Target("macs", 0.5))):
        whole = getattr(network.cost, resource.name)
        assert resource.total(sizes) == whole({})
        for one in groups:
            keep = {one.id: np.arange(one.size) < (one.size + 1) // 2}
            half = float(keep[one.id].sum())
            now = whole(keep)
            swept = resource.sweep(one.id, np.array([half, sizes[one.id]]), sizes)
            assert resource.total({**sizes, one.id: half}) == now
            assert swept[1] - swept[0] == whole({}) - now


def test_a_limit_of_nothing_is_told(tmp_path: Any, run_cli: Any) -> None:
    path = SAMPLES["plain"]().save(tmp_path / "net.onnx")
    words = ("--target-params", "0.00001x", "--allocation", "knapsack", "--no-measure")
    result = run_cli("export", path, "-o", tmp_path / "out", *words)
    assert (result.code, "cannot be met: the lowest reachable is" in result.err) == (3, True), result


def test_plans_whose_parts_are_unequal_are_tightened(tmp_path: Any) -> None:
    """The polynomials count with equal parts; what a plan really costs must be within the limit all the same."""
    network = load(SAMPLES["plain"]().save(tmp_path / "net.onnx"))
    groups = network.grouping.groups
    scores = score_groups(criterion("magnitude"), groups, network.program.tensor)
    (exact,) = cost_resources(network.cost, (Target("macs", 0.6),))
    hopeful = Resource(
        "macs",
        exact.limit,
        lambda counts: 0.9 * exact.total(counts),
        lambda group, widths, counts: 0.9 * exact.sweep(group, widths, counts),
        exact.near,
    )
    tried = WidthProblem(widths_of(groups, scores, Knapsack()), scores, (hopeful,))
    plan, _ = fitted_widths(tried, network.cost)
    keep = {one.id: np.isin(np.arange(one.size), plan.kept.get(one.id, np.arange(one.size))) for one in groups}
    assert 0.9 * exact.limit < network.cost.macs(keep) <= exact.limit


def test_what_is_not_an_estimate_of_the_loss_adds_up_as_logarithms() -> None:
    """What all layers together let through is the product of the shares that each of them keeps of its input."""

    def member(name: str, role: Any, size: int) -> Member:
        return Member(name, 1, size, 2, role, np.arange(size))

    sizes, readers = {"a": 12, "b": 7, "none": 5, "zero": 4}, {"a": 3, "b": 1, "none": 0, "zero": 1}
    groups = [
        Group(name, "channels", size, True, tuple(member(f"{name}{k}", "consumer", size) for k in range(readers[name])))
        for name, size in sizes.items()
    ]
    rng = np.random.default_rng(0)
    values = {name: rng.gamma(1.0, size=size) for name, size in sizes.items()} | {"zero": np.zeros(4)}
    found = Scores(values).additive(groups)
    assert found.adds_up and found.additive(groups) is found
    for name in ("a", "b", "none"):
        order = np.argsort(values[name])
        assert (np.argsort(found.values[name]) == order).all()
        for gone in range(1, sizes[name] - 1):
            share = values[name][order[gone:]].sum() / values[name].sum()
            np.testing.assert_allclose(
                found.values[name][order[:gone]].sum(), -max(1, readers[name]) * np.log(share), rtol=1e-9
            )
    assert (found.values["zero"] == 0).all()
    assert Scores(values, adds_up=True).additive(groups).values is values
