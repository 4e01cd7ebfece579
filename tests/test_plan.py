"""Saved plans: their text, what is refused of them, and replaying them on other weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import onnx
import pytest
import third_party
from models import Net, Sample

import graphprune
from graphprune.errors import InputError, UsageError
from graphprune.passes.files import read_plan, saved_members, write_plan

Change = Callable[[dict[str, Any]], Any]


def small(seed: int = 0, width: int = 4) -> Sample:
    net = Net(seed=seed)
    x = net.op("Relu", net.linear(net.input("x", ["batch", 2]), "a", 2, width))
    net.linear(x, "b", width, 2, out="y")
    return Sample(net.build({"y": ["batch", 2]}), {"x": (1, 2)}, {"x": (3, 2)})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source and the plan of an export of it."""
    folder = tmp_path_factory.mktemp("made")
    source = models.residual().save(folder / "source.onnx")
    graphprune.load(source).export(folder / "out", target_params="0.5x", measure=None)
    return source, folder / "out" / "plan.json"


def test_the_text_of_a_plan(tmp_path):
    source = small().save(tmp_path / "source.onnx")
    result = graphprune.load(source).export(tmp_path / "out", target_params="0.6x", measure=None)
    document = json.loads(result.plan_path.read_text())
    (removed,) = {tuple(member["removed"]) for member in document["groups"][0]["members"]}
    kept = [unit for unit in range(4) if unit not in removed]
    assert (document["groups"][0]["kept"], len(kept)) == (kept, 2)
    lost = list(removed)
    assert result.plan_path.read_text() == (
        "{\n"
        '  "format": 1,\n'
        f'  "source_sha256": "{document["source_sha256"]}",\n'
        '  "groups": [\n'
        f'    {{"id": "g000", "kind": "neurons", "size": 4, "kept": {kept}, "exact": true, "members": [\n'
        f'      {{"tensor": "a.weight", "axis": 1, "size": 4, "rank": 2, "role": "producer", "removed": {lost}}},\n'
        f'      {{"tensor": "a.bias", "axis": 0, "size": 4, "rank": 1, "role": "rider", "removed": {lost}}},\n'
        f'      {{"tensor": "b.weight", "axis": 0, "size": 4, "rank": 2, "role": "consumer", "removed": {lost}}}\n'
        "    ]}\n"
        "  ]\n"
        "}\n"
    )


def test_a_plan_survives_reading_and_writing(made):
    _, path = made
    assert write_plan(read_plan(path)) == path.read_bytes()
    assert write_plan({"format": 1, "source_sha256": "0", "groups": []}).count(b"\n") == 5


def test_names_are_the_source_files_own(tmp_path):
    sample = models.transposed()
    source = sample.save(tmp_path / "source.onnx")
    result = graphprune.load(source).export(tmp_path / "out", target_params="0.5x", measure=None)
    model = onnx.load(str(source))
    names = {tensor.name for tensor in model.graph.initializer} | {n for node in model.graph.node for n in node.output}
    members = saved_members(read_plan(result.plan_path))
    assert {member.tensor for member in members} <= names
    assert ("a.weight", 0) in {(member.tensor, member.axis) for member in members}  # as stored, not as transposed


@pytest.mark.parametrize(
    "name", ["residual", "shuffle", "attention", "rotary", "lstm", "shared_zeros", "constant_nodes"]
)
def test_replayed_on_other_weights(name, tmp_path):
    make: dict[str, Callable[[], Sample]] = models.SAMPLES
    source = make[name]().save(tmp_path / "source.onnx")
    first = graphprune.load(source).export(tmp_path / "first", target_params="0.6x", measure=None)
    other = reweighted(make[name](), seed=7)
    retrained = other.save(tmp_path / "retrained.onnx")
    second = graphprune.load(retrained).export(tmp_path / "second", plan=first.plan_path, measure=None)
    plans = [json.loads(result.plan_path.read_text()) for result in (first, second)]
    assert plans[0]["groups"] == plans[1]["groups"]
    assert plans[0]["source_sha256"] != plans[1]["source_sha256"]
    assert (dict(second.asked), dict(second.reached)) == ({}, dict(first.reached))
    assert third_party.check(retrained, tmp_path / "second", other.feeds(other=True)) <= 1e-4


def reweighted(sample: Sample, seed: int) -> Sample:
    """The same network with other random weights (vectors of sizes and rates stay)."""
    import numpy as np
    from onnx import numpy_helper

    rng = np.random.default_rng(seed)
    constants = [*sample.model.graph.initializer]
    constants += [a.t for node in sample.model.graph.node if node.op_type == "Constant" for a in node.attribute]
    for tensor in constants:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.size > 4 and tensor.name != "rates":
            new = rng.uniform(0.1, 0.3, array.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    return sample


def test_a_replay_takes_no_target(made, tmp_path):
    source, plan = made
    with pytest.raises(UsageError, match=r"--plan\) takes no target"):
        graphprune.load(source).export(tmp_path / "out", plan=plan, target_params="0.5x")
    with pytest.raises(UsageError, match="to choose: leave out --criterion, --criterion-option, --align, --include"):
        options = {"criterion": "magnitude", "criterion_options": {"p": 1}, "align": 8, "include": ("a",)}
        graphprune.load(source).export(tmp_path / "out", plan=plan, **options)


def test_a_plan_for_another_network(made, tmp_path):
    _, plan = made
    for name, text in (
        ("plain", r"group g000 .*'a1.bn.bias' axis 0|group g000 does not stand on the same tensors"),
        ("attention", "group g000 has 16 units, this network's has 24; was it made for another"),
        ("lstm", "group g000 has 16 units, this network's has 10"),
    ):
        source = models.SAMPLES[name]().save(tmp_path / f"{name}.onnx")
        with pytest.raises(InputError, match=text):
            graphprune.load(source).export(tmp_path / "out", plan=plan, measure=None)
    assert not (tmp_path / "out").exists()


def first(plan: dict[str, Any]) -> dict[str, Any]:
    group: dict[str, Any] = plan["groups"][0]
    return group


def member(plan: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = first(plan)["members"][-1]
    return found


BAD: list[tuple[str, Change, str]] = [
    ("no JSON", lambda d: "{", "it is not JSON"),
    ("nested", lambda d: "[" * 100_000, "it is not JSON"),
    ("not UTF-8", lambda d: b"\xff\xfe", "it is not JSON"),
    ("a list", lambda d: "[]", "it is not an object"),
    ("nothing", lambda d: "null", "it is not an object"),
    ("another format", lambda d: d.update(format=2), "is a plan of format 2; this version reads format 1"),
    ("no groups", lambda d: d.pop("groups") and None, "it has no 'groups'"),
    ("groups of another type", lambda d: d.update(groups="abc"), "'groups' of it is not of the type list"),
    ("a group that is none", lambda d: d.update(groups=[3]), "group 0 is not an object"),
    ("no hash", lambda d: d.pop("source_sha256") and None, "it has no 'source_sha256'"),
    ("a size in quotes", lambda d: first(d).update(size="16"), "'size' of group 0 is not of the type int"),
    ("kept is empty", lambda d: first(d).update(kept=[]), "group 'g000' of 16 units needs a list of units 0 to 15"),
    ("kept is nested", lambda d: first(d).update(kept=[[1]]), "needs a list of units 0 to 15 as 'kept'"),
    ("kept beyond", lambda d: first(d).update(kept=[16]), "needs a list of units 0 to 15 as 'kept'"),
    ("a group twice", lambda d: d["groups"].append(first(d)), "two groups are called 'g000'"),
    ("no such axis", lambda d: member(d).update(axis=4), "'down.weight' in the group 'g000' has no axis 4, it has 4"),
    ("axis from the end", lambda d: member(d).update(axis=-1), "has no axis -1"),
    ("removed text", lambda d: member(d).update(removed=["1"]), "'removed' of 'down.weight' .* needs indices 0 to 15"),
    ("removed half", lambda d: member(d).update(removed=[1.5]), "needs indices 0 to 15"),
    ("removed huge", lambda d: member(d).update(removed=[2**70]), "needs indices 0 to 15"),
    ("an unknown role", lambda d: member(d).update(role="king"), "has the role 'king', not one of producer, consumer"),
]


@pytest.mark.parametrize(("change", "text"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_is_no_plan_is_refused_in_one_line(change, text, made, tmp_path, run_cli):
    source, good = made
    plan = json.loads(good.read_text())
    changed = change(plan)
    path = tmp_path / "bad.json"
    path.write_bytes(changed if isinstance(changed, bytes) else (changed or json.dumps(plan)).encode())
    with pytest.raises(InputError, match=text):
        read_plan(path)
    for words in (("export", source, "-o", tmp_path / "out", "--plan", path), ("verify", source, source, path)):
        result = run_cli(*words)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
        assert result.err.startswith(f"graphprune: error: '{path}' is ")


def test_a_plan_that_contradicts_itself(made, tmp_path):
    source, good = made
    plan = json.loads(good.read_text())
    changed = copy.deepcopy(plan)
    first(changed)["kept"] = first(plan)["kept"][:-1]
    (tmp_path / "bad.json").write_text(json.dumps(changed))
    with pytest.raises(
        InputError, match=r"'kept' of the group g000 and 'removed' of 'stem\.conv\.weight' axis 0 do not name"
    ):
        graphprune.load(source).export(tmp_path / "out", plan=tmp_path / "bad.json", measure=None)


def test_a_plan_that_names_another_tensor(made, tmp_path):
    source, good = made
    plan = json.loads(good.read_text())
    member(plan)["tensor"] = "elsewhere"
    (tmp_path / "bad.json").write_text(json.dumps(plan))
    with pytest.raises(InputError, match=r"group g000 does not stand on the same tensors: 'down.weight' axis 1"):
        graphprune.load(source).export(tmp_path / "out", plan=tmp_path / "bad.json", measure=None)
    with pytest.raises(InputError, match="the plan names the tensor 'elsewhere', which the model does not have"):
        graphprune.verify_files(source, good.parent / "model.onnx", tmp_path / "bad.json")


def test_a_plan_that_removes_nothing(made, tmp_path):
    source, _ = made
    (tmp_path / "none.json").write_bytes(write_plan({"format": 1, "source_sha256": "0", "groups": []}))
    result = graphprune.load(source).export(tmp_path / "out", plan=tmp_path / "none.json", measure=None)
    assert dict(result.reached) == dict(result.original)
    assert result.notes == ("the plan removes nothing: the artefact computes what the source computes",)


def test_there_is_no_such_plan(tmp_path, made):
    source, _ = made
    with pytest.raises(InputError, match=r"cannot read the plan '.*none.json': no such file or directory"):
        graphprune.load(source).export(tmp_path / "out", plan=tmp_path / "none.json")
