"""The graph of groups, and the border to onnx-graphsurgeon."""

from __future__ import annotations

import networkx
import onnx
import pytest
import third_party
from models import SAMPLES

import graphprune
from graphprune.errors import InputError


def test_the_graph_of_groups_follows_the_weights(tmp_path, run_cli):
    source = SAMPLES["plain"]().save(tmp_path / "source.onnx")
    graph = graphprune.load(source).group_graph()
    assert networkx.is_directed_acyclic_graph(graph)
    assert networkx.is_weakly_connected(graph)
    groups = {one.id: one for one in graphprune.load(source).grouping.groups}
    assert set(graph) == set(groups)
    for _, target, tensors in graph.edges(data="tensors"):
        assert {m.tensor for m in groups[target].members if m.role == "producer"} >= set(tensors.split())
    assert run_cli("analyze", source, "--graph", tmp_path / "groups.graphml").code == 0
    assert set(networkx.read_graphml(tmp_path / "groups.graphml").edges) == set(graph.edges)


def test_a_folder_is_no_place_for_a_graph(tmp_path, run_cli):
    result = run_cli("analyze", SAMPLES["plain"]().save(tmp_path / "source.onnx"), "--graph", tmp_path)
    assert result.code == 2
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("name", ["residual", "attention", "shuffle"])
def test_a_graphsurgeon_graph_is_cut_and_handed_back(name, tmp_path):
    surgeon = pytest.importorskip("onnx_graphsurgeon")
    sample = SAMPLES[name]()
    graph = surgeon.import_onnx(sample.model)
    network = graphprune.load(graph, input_shapes=sample.shapes)
    result = network.export(tmp_path / "out", target_params="0.6x", measure=None, keep_source=True)
    assert result.verdict is not None and result.verdict.passed
    assert third_party.check(tmp_path / "out" / "source.onnx", tmp_path / "out", sample.feeds()) <= 1e-4
    back = graphprune.to_graphsurgeon(result.model)
    assert [value.name for value in back.outputs] == [value.name for value in graph.outputs]
    again = surgeon.export_onnx(back)
    artefact = onnx.load(str(result.model))
    assert {t.name: tuple(t.dims) for t in again.graph.initializer} == {
        t.name: tuple(t.dims) for t in artefact.graph.initializer
    }


def test_what_graphsurgeon_cannot_export_is_said(tmp_path):
    surgeon = pytest.importorskip("onnx_graphsurgeon")
    graph = surgeon.import_onnx(SAMPLES["plain"]().model)
    graph.outputs = []
    with pytest.raises(InputError, match="it has a graph without outputs"):
        graphprune.load(graph)
