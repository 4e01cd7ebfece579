"""The report, the model card and the Pareto page: made of the manifest alone, whole, and safe to open."""

from __future__ import annotations

import copy
import json
import re
import shlex
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import models
import pytest

import graphprune
from graphprune.cli.export import command as export_verb
from graphprune.errors import UsageError
from graphprune.latency.measure import MeasureOptions
from graphprune.options import ExportOptions
from graphprune.report.card import command, model_card
from graphprune.report.charts import CHAR, axis_ticks
from graphprune.report.files import write_family
from graphprune.report.html import plots, report_html
from graphprune.report.pareto import pareto_document, pareto_html

HOSTILE = "</title><script>alert(1)</script>\"' onload=x & `|\n\x1b[31m"
QUICK = MeasureOptions(duration=0.1, rounds=1, warm_up_ms=1.0, warm_up_cap_ms=5.0)


class Page(HTMLParser):
    """Reads a page, holds its tags to be balanced, and keeps its headings, links and text."""

    VOID = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.texts, self.headings, self.tags = [], [], [], [], set()
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)) and not any(name.startswith("on") for name in names)
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)
        if "h2" in self.open:
            self.headings.append(data)

    @property
    def text(self):
        return " ".join(self.texts)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The manifest of a measured export to a target of MACs."""
    folder = tmp_path_factory.mktemp("plain")
    sample = models.residual()
    network = graphprune.load(sample.save(folder / "net.onnx"), input_shapes=sample.shapes)
    options = ExportOptions(target_macs="0.6x", measure=QUICK, plots=True)
    network.export(folder / "out", options)
    return folder / "out", json.loads((folder / "out" / "manifest.json").read_bytes())


@pytest.fixture
def full(plain):
    """The same as if a latency target had been met."""
    manifest = copy.deepcopy(plain[1])
    cut = manifest["groups_cut"]
    manifest["latency"].update(ratio=0.58, ratio_low=0.57, ratio_high=0.59)
    rounds = [
        {"asked": 0.6, "predicted": 0.6, "ratio": 0.64, "low": 0.62, "high": 0.66, "kept": 0.9, "share": 0.6},
        {"asked": 0.56, "predicted": 0.56, "ratio": 0.58, "low": 0.57, "high": 0.59, "kept": 0.85, "share": 0.6},
    ]
    manifest["latency_target"] = {
        "statistic": "median", "figure": None, "kept": 0.85, "predicted": {"ratio": 0.56, "original_ms": 15.0},
        "fingerprint": {**manifest["latency"]["fingerprint"], "device": "A phone"},
        "asked": "0.6x", "share": 0.6, "method": "greedy", "chosen": 1, "rounds": rounds,
        "grains": [{"operator": "Conv", "letter": "o", "block": 16, "alignment": 4}],
        "prediction_errors": [0.01, 0.02], "profile_seconds": 3.0,
        "layers": [
            {"name": f"layer{i}", "operators": ["Conv", "Relu"], "groups": [], "ms_before": 1 + i, "ms_after": 0.5}
            for i in range(40)
        ],
        "curves": [
            {"group": one["id"], "kept": one["kept"], "widths": [float(w + 1) for w in range(one["size"])],
             "ms": [0.1 * (w + 1) for w in range(one["size"])]}
            for one in cut
        ],
    }  # fmt: skip
    return manifest


def test_an_export_writes_page_card_and_plots(plain):
    folder, manifest = plain
    assert (folder / "report.html").read_text(encoding="utf-8") == report_html(manifest)
    assert (folder / "README.md").read_text(encoding="utf-8") == model_card(manifest)
    assert {one.name for one in folder.glob("report-*.svg")} == {"report-latency.svg", "report-widths.svg"}


def test_the_page_is_whole_and_fetches_nothing(full):
    text = report_html(full)
    page = Page(text)
    assert page.links == ["manifest.json", "plan.json"]
    assert not re.search(r"(?i)https?:|url\(|@import|//", text)
    assert not page.tags & {"script", "img", "link", "iframe", "object"}
    for one in full["groups_cut"]:
        assert one["id"] in page.text
    for said in ("0.580x", "0.570 to 0.590", "target 0.6x: met", "blocks of 16", "85.0%", "PASSED", "8 shorter layers"):
        assert said in page.text, said
    assert report_html(json.loads(json.dumps(full))) == text


def test_sections_are_left_out_where_there_is_nothing_to_say(plain, full):
    timed = {"Latency"}
    aimed = {"Candidates", "Time by layer", "Step curves"}
    assert timed | aimed <= set(Page(report_html(full)).headings)
    measured = set(Page(report_html(plain[1])).headings)
    assert timed <= measured and not aimed & measured
    bare = {**plain[1], "latency": None, "verification": None, "groups_cut": [], "refusals": [], "notes": []}
    page = Page(report_html(bare))
    assert not (timed | aimed | {"Not cut through", "Notes"}) & set(page.headings)
    assert "Nothing was cut" in page.text and "Not verified" in page.text
    assert set(plots(bare)) == set() and "onnxruntime 1" not in page.text.split("packages")[0]


def test_a_target_that_is_missed_and_a_ratio_that_cannot_be_told_are_said(full):
    full["latency"].update(ratio=0.99, ratio_low=0.7, ratio_high=1.2)
    text = Page(report_html(full)).text
    assert "target 0.6x: missed" in text and "whether it is faster cannot be told" in text
    full["latency"].update(ratio=1.1, ratio_low=1.05, ratio_high=1.2)
    assert "it is slower" in Page(report_html(full)).text


def test_a_target_on_a_percentile_is_shown_as_one(full):
    full["latency_target"].update(
        statistic="p90",
        figure={"statistic": "p90", "a_ms": 9.0, "b_ms": 5.5, "ratio": 0.61, "ratio_low": 0.6, "ratio_high": 0.62},
    )
    page, card = Page(report_html(full)).text, model_card(full)
    for said in ("Latency, p90", "0.610x", "0.600 to 0.620", "target 0.6x: missed", "ratio is that of the 90th"):
        assert said in page, said
    assert "| p90 latency | 9.000 ms | 5.500 ms | 0.610x | 0.6x |" in card
    assert "The target of 0.6x for latency is missed." in card
    (row,) = pareto_document({"0.6x": full})["members"]
    assert (row["ratio"], row["ms"]) == (0.61, 5.5)
    assert "p90 ms" in Page(pareto_html(pareto_document({"0.6x": full}))).text


def test_a_prediction_is_never_called_a_measurement(full):
    full["latency"] = None
    full["latency_target"].update(rounds=[], chosen=None, asked="9 ms")
    text, card = Page(report_html(full)).text, model_card(full)
    for said in ("0.560x", "predicted", "target 9 ms: not measured", "nothing was measured"):
        assert said in text, said
    assert "0.560x of the original's time is what the latency table of A phone predicts" in text
    assert "for latency is met" not in card and "Measured" not in card
    assert "| latency, predicted | 15.000 ms | 8.400 ms | 0.560x | 9 ms (0.600x) |" in card
    assert "--max-latency 0.600x" in card, "so that the device can tell"
    document = pareto_document({"9ms": full})
    assert document["statistic"] == "predicted"
    text = Page(pareto_html(document)).text
    assert "that a latency table of" in text and "measured" not in text


def test_names_out_of_files_stay_text(full):
    full["source"] = {"name": HOSTILE, "sha256": {HOSTILE: "0"}}
    full["notes"] = [HOSTILE]
    full["refusals"] = [{"op": HOSTILE, "node": HOSTILE, "tensor": HOSTILE, "axis": 0, "reason": HOSTILE}]
    full["verification"]["worst"] = HOSTILE
    full["groups_cut"][0].update(producers=[HOSTILE, HOSTILE], kind=HOSTILE)
    full["latency_target"]["layers"][39].update(name=HOSTILE, operators=[HOSTILE])
    full["latency"]["fingerprint"]["device"] = HOSTILE
    text = report_html(full)
    page = Page(text)
    assert "script" not in page.tags and page.links == ["manifest.json", "plan.json"]
    assert "\x1b" not in text and "alert(1)" in page.text
    for drawn in plots(full).values():
        root = ElementTree.fromstring(drawn)
        assert not [one for one in root.iter() if one.tag.endswith("script")]
    card = model_card(full)
    assert "\x1b" not in card
    outside = re.sub(r"`[^`\n]*`", "", re.sub(r"(?s)(`{3,}).*?\n\1", "", card))  # code is shown as it is
    assert "<script" not in re.sub(r"\\.", "", outside)


def test_plots_are_documents_whose_texts_do_not_overlap(full):
    drawn = plots(full)
    assert len(drawn) == 5
    for name, text in drawn.items():
        root = ElementTree.fromstring(text)
        width, rows = float(root.attrib["width"]), {}

        def walk(one, dx, dy, rows=rows):
            found = re.match(r"translate\(([-\d.]+) ([-\d.]+)\)", one.attrib.get("transform", ""))
            dx, dy = (dx + float(found[1]), dy + float(found[2])) if found else (dx, dy)
            if one.tag.endswith("}text"):
                kinds = one.attrib.get("class", "").split()
                size = len("".join(one.itertext())) * CHAR
                x = dx + float(one.attrib["x"]) - size * ("e" in kinds) - size / 2 * ("m" in kinds)
                rows.setdefault(round(dy + float(one.attrib["y"]), 1), []).append((x, x + size))
            for child in one:
                walk(child, dx, dy)

        walk(root, 0.0, 0.0)
        assert rows
        for spans in rows.values():
            spans.sort()
            assert spans[0][0] >= 0 and spans[-1][1] <= width + 1, (name, spans)
            assert all(end <= begin + 0.5 for (_, end), (begin, _) in pairwise(spans)), (name, spans)


def test_the_command_gives_the_same_options(full):
    full["options"].update(
        include=["a b*"], criterion_options={"roles": ["producer", "consumer"]}, max_shard_size="2GB"
    )
    words = shlex.split(" ".join(command(full)))
    assert words[:3] == ["graphprune", "export", full["source"]["name"]]
    with export_verb.make_context("export", words[2:]) as context:
        given = context.params
    assert given["target_macs"] == "0.6x" and given["include"] == ("a b*",) and given["plots"] is True
    assert given["criterion_options"] == {"roles": "producer,consumer"} and given["duration"] == 0.1
    assert {key: list(shape) for key, shape in given["input_shapes"].items()} == full["input_shapes"]
    full["options"].update(measure=None, verify=False)
    assert {"--no-measure", "--no-verify"} <= set(command(full)) and not any(
        "--duration" in one for one in command(full)
    )


@pytest.mark.parametrize("name", ["README.md", "report.html"])
def test_a_file_of_somebody_else_is_not_overwritten(name, tmp_path):
    (tmp_path / name).write_text("mine")
    sample = models.residual()
    network = graphprune.load(sample.save(tmp_path / "net.onnx"), input_shapes=sample.shapes)
    with pytest.raises(UsageError, match=f"{name}' would be overwritten, and no export has written it"):
        network.export(tmp_path, ExportOptions(target_macs="0.6x", measure=None))
    assert (tmp_path / name).read_text() == "mine" and not (tmp_path / "model.onnx").exists()


def test_an_export_without_plots_removes_those_of_the_one_before(tmp_path):
    sample = models.residual()
    network = graphprune.load(sample.save(tmp_path / "net.onnx"), input_shapes=sample.shapes)
    options = ExportOptions(target_macs="0.6x", measure=None, plots=True)
    network.export(tmp_path / "out", options)
    assert (tmp_path / "out" / "report-widths.svg").exists()
    network.export(tmp_path / "out", ExportOptions(target_macs="0.6x", measure=None))
    assert not [*(tmp_path / "out").glob("report-*.svg")] and (tmp_path / "out" / "report.html").exists()


def test_a_family_has_a_pareto_table_with_links(full, tmp_path):
    members = {}
    for target, ratio, kept in (("0.5x", 0.48, 0.7), ("0.9x", 0.88, 0.97), ("0.6x", 0.52, 0.69)):
        one = copy.deepcopy(full)
        one["latency_target"]["asked"] = target
        one["notes"] = [f"of {target}"]
        one["latency_target"]["kept"] = kept
        one["latency"].update(ratio=ratio, ratio_low=ratio - 0.01, ratio_high=ratio + 0.01)
        members[target] = one
    document = pareto_document(members)
    assert [(one["folder"], one["dominated"]) for one in document["members"]] == [
        ("0.9x", False), ("0.6x", True), ("0.5x", False),
    ]  # fmt: skip
    page = Page(pareto_html(document))
    reports = {f"{name}/report.html" for name in members}
    assert set(page.links) == {*reports, "pareto.json"} and page.links.count("0.5x/report.html") == 2
    assert (
        "0.480x" in page.text
        and "0.470 to 0.490" in page.text
        and "70.0%" in page.text
        and "0.5x: of 0.5x" in page.text
    )
    write_family(tmp_path, members)
    assert json.loads((tmp_path / "pareto.json").read_bytes()) == document
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == pareto_html(document)


@pytest.mark.parametrize("span", [(0.0, 1.0), (18.4, 46.1), (0.0001, 0.00031), (900.0, 100000.0)])
def test_ticks_are_few_round_and_within(span):
    low, high = span
    found = axis_ticks(low, high, 6)
    assert 2 <= len(found) <= 6 and low <= found[0] and found[-1] <= high
    steps = {f"{b - a:.3e}" for a, b in pairwise(found)}
    assert len(steps) == 1 and steps.pop()[0] in "125"
