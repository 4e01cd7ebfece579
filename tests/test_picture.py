"""Pictures of the groups over the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import models
import numpy as np
import pytest
from test_control_flow import LOOP, grouped
from test_kinds import transformer_mlp

import graphprune
from graphprune.coupling.graph import flow
from graphprune.report.layout import lanes
from graphprune.report.picture import CHAR, html, svg

NETWORKS = [*models.SAMPLES.values(), transformer_mlp]


def _load(make, tmp_path):
    sample = make()
    return graphprune.load(sample.save(tmp_path / "net.onnx"), input_shapes=sample.shapes)


@pytest.mark.parametrize("make", NETWORKS, ids=lambda one: one.__name__)
def test_a_picture_shows_every_group_and_nothing_overlaps(make, tmp_path):
    network = _load(make, tmp_path)
    drawn = svg(network, network.analyze())
    root = ElementTree.fromstring(drawn)
    width, height = (float(root.attrib[key]) for key in ("width", "height"))
    shown = {name for one in root.iter() for name in one.attrib.get("data-g", "").split()}
    assert shown == {one.id for one in network.grouping.groups}
    rows: dict[float, list[tuple[float, float]]] = {}
    for one in root.iter("{http://www.w3.org/2000/svg}text"):
        x, size = float(one.attrib["x"]), len("".join(one.itertext())) * CHAR
        start = x - size if one.attrib.get("text-anchor") == "end" else x
        assert start >= 0 and (start + size <= width or one.attrib.get("class") == "title")
        assert float(one.attrib["y"]) <= height
        rows.setdefault(float(one.attrib["y"]), []).append((start, start + size))
    for spans in rows.values():
        spans.sort()
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans)), spans


def test_the_flow_has_the_residual_connection(tmp_path):
    network = _load(models.residual, tmp_path)
    stops = flow(network.grouping)
    joins = [one for one in stops if one.role == "join"]
    assert len(joins) == sum(node.op_type == "Add" for node in models.residual().model.graph.node) > 0
    for join in joins:
        assert len(join.sources) == 2
        assert {groups for _, groups in join.sources} == {join.groups}
    assert {one.role for one in stops} == {"input", "weights", "join", "output"}
    made = {m.tensor for one in network.grouping.groups for m in one.members if m.role == "producer" and m.rank > 1}
    assert made <= {one.tensor for one in stops}
    assert stops[-2].refusal is not None and stops[-2].refusal.reason == "it is an output of the network"


def test_what_is_not_cut_through_is_a_stop_with_its_reason(tmp_path):
    network = _load(models.custom, tmp_path)
    (barrier,) = (one for one in flow(network.grouping) if one.role == "barrier")
    assert barrier.refusal is not None and "no rule is known" in barrier.refusal.reason
    assert "no rule is known for the operator" in svg(network, network.analyze())


def test_what_a_loop_carries_flows_through_its_body():
    weights = {"a": (5, 12), "w": (12, 7), "u": (7, 12), "b": (12, 3), "d": (6, 2)}
    stops = flow(grouped(LOOP, weights, {"body": {"g": (12, 6)}}, m=np.array(4)))
    at = {one.tensor or one.op: i for i, one in enumerate(stops)}
    assert at["a"] in dict(stops[at["w"]].sources)
    assert at["g"] in dict(stops[at["Loop"]].sources)
    assert all(one.sources for one in stops if one.role != "input")


def test_lanes_keep_the_stream_straight_and_are_never_shared():
    placed = lanes([[], [0], [1], [2, 0], [3], [3], [4, 5, 3]])
    assert placed.lane == (0, 1, 1, 0, 1, 2, 0)
    assert placed.width == 3
    for edge in placed.edges:  # no row stands on the lane that an edge runs down
        assert edge.along not in placed.lane[edge.source + 1 : edge.target]


def test_the_same_network_gives_the_same_bytes(tmp_path):
    path = models.attention().save(tmp_path / "net.onnx")
    script = (
        "import sys, graphprune; from pathlib import Path; from graphprune.report.picture import write_picture; "
        "n = graphprune.load(sys.argv[1]); a = n.analyze(); "
        "[write_picture(n, a, Path(sys.argv[2] + end)) for end in ('.svg', '.html', '.graphml')]"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", script, path, tmp_path / seed], env=environment, check=True)
    for end in (".svg", ".html", ".graphml"):
        assert (tmp_path / f"1{end}").read_bytes() == (tmp_path / f"2{end}").read_bytes()


@pytest.mark.parametrize("suffix", [".svg", ".HTML", ".graphml"])
def test_analyze_writes_what_the_ending_says(suffix, tmp_path, run_cli):
    out = tmp_path / f"out{suffix}"
    result = run_cli("analyze", models.plain().save(tmp_path / "net.onnx"), "--graph", out)
    assert (result.code, result.err) == (0, "")
    first = out.read_text().splitlines()[0]
    assert first.startswith({".svg": "<svg", ".HTML": "<!DOCTYPE html>", ".graphml": "<?xml"}[suffix])


def test_another_ending_is_refused_before_any_work(tmp_path, run_cli):
    result = run_cli("analyze", tmp_path / "not there.onnx", "--graph", tmp_path / "out.png")
    assert result.code == 2
    assert "a picture is written as .svg, .html or .graphml, by the ending of the name" in result.err
    assert not (tmp_path / "out.png").exists()


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.links += [value for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "path", "circle", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "circle", "rect"):
            assert self.open.pop() == tag


def test_the_page_holds_everything_and_fetches_nothing(tmp_path):
    sample = models.residual()
    sample.model.graph.node[0].name = "<script>alert(1)</script>"
    network = graphprune.load(sample.save(tmp_path / "<b>&.onnx"), input_shapes=sample.shapes)
    page = html(network, network.analyze())
    parser = _Page()
    parser.feed(page)
    assert parser.open == [] and parser.links == []
    assert page.count("<script>") == 1 and "url(" not in page and "@import" not in page
    assert "prefers-color-scheme:dark" in page and "<title>&lt;b&gt;&amp;.onnx: groups</title>" in page
    rows = re.findall(r'<tr class="g" data-g="(\w+)">', page)
    assert rows == [one.id for one in network.grouping.groups]
