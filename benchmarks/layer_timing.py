"""How should a layer be timed so that the sum explains the whole? Three ways beside each other.

    python -m benchmarks.layer_timing [--networks resnet18,mobilenet_v2,ocr_recogniser] [--scenarios 40]
        [--markdown FILE]

The same scenarios (networks of many widths), the same form of curve, three kinds of layer times that it is fitted to:

- *alone*: every layer is cut out of the network and timed by itself, on the values that it gets there;
- *within*: the runtime's trace of the whole network, scaled to what it takes unwatched (what graphprune does);
- *whole*: whole networks' times only; which layer takes how much is left to the fit (one non-negative sum over all).

Every fifth scenario is held out; the figures are relative errors of the held-out networks' predicted times, each scaled
by one factor per network, so that a bias common to all does not count.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import load_network, machine_line, markdown_table, write_tables

RUNS = 12


def cut_out(path: Path, parts: Sequence[Sequence[str]], feeds: Mapping[str, np.ndarray]) -> list[float]:
    """Nanoseconds of every part of a network by itself (parts are lists of node names); 0 where nothing is computed."""
    import onnx
    import onnxruntime
    from onnx.utils import Extractor

    model = onnx.load(path)
    moving = {one.name for one in model.graph.input} - {one.name for one in model.graph.initializer}
    for node in model.graph.node:  # in order; the rest is constant and comes along
        if moving & set(node.input):
            moving |= set(node.output)
    place = {name: index for index, names in enumerate(parts) for name in names}
    edges: list[tuple[list[str], list[str]]] = []
    final = {one.name for one in model.graph.output}
    for index in range(len(parts)):
        own = [node for node in model.graph.node if place.get(node.name) == index]
        made = {out for node in own for out in node.output}
        fed = {one for node in own for one in node.input if one in moving and one not in made}
        used = {
            one for node in model.graph.node if place.get(node.name) != index for one in node.input if one in made
        } | (made & final)
        edges.append((sorted(fed), sorted(used)))
    wanted = sorted({name for fed, _ in edges for name in fed} - {one.name for one in model.graph.input})
    values = dict(feeds)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in final)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 4
    plain = onnxruntime.SessionOptions()  # a fused node's value cannot be watched
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(watched.SerializeToString(), plain)
    values.update(zip(wanted, session.run(wanted, dict(feeds)), strict=True))
    extractor = Extractor(onnx.shape_inference.infer_shapes(model))
    times = []
    for fed, used in edges:
        if not used or not fed:
            times.append(0.0)
            continue
        for name in {*fed, *used} - extractor.value_infos.keys():
            kind = onnx.helper.np_dtype_to_tensor_dtype(values[name].dtype) if name in values else 1
            extractor.value_infos[name] = onnx.helper.make_tensor_value_info(name, kind, None)
        part = extractor.extract_model(fed, used)
        alone = onnxruntime.InferenceSession(part.SerializeToString(), settings)
        given = {one.name: values[one.name] for one in alone.get_inputs()}
        took = []
        for _ in range(RUNS):
            start = time.perf_counter_ns()
            alone.run(None, given)
            took.append(time.perf_counter_ns() - start)
        times.append(float(np.median(took[2:])))
    return times


def compare(name: str, count: int) -> list[str]:
    """One row: median and 95th percentile of the error of each way."""
    from scipy.optimize import nnls

    from graphprune.backends.base import BackendOptions
    from graphprune.ir.store import write_onnx
    from graphprune.latency.curves import fit_curves
    from graphprune.latency.layers import layers_of
    from graphprune.latency.profile import ProfileOptions, Scenario, measure_scenarios, points_of, scenarios
    from graphprune.passes.selection import Selection
    from graphprune.passes.shrink import Shrink

    network = load_network(name)
    groups = Selection()(network.grouping, network.program.parameter_names)
    layers = layers_of(network.grouping)
    sizes = {one.id: one.size for one in network.grouping.groups}
    feeds = network.program.examples
    plans = list(itertools.islice(scenarios(groups, 0.1, 0), count))

    def write(keep: Any, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        write_onnx(Shrink(keep)(network.grouping), path, external=False)

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.onnx"
        write({}, source)
        options = ProfileOptions(backend_options=BackendOptions(threads=1))
        within = measure_scenarios(layers, sizes, source, write, feeds, options, plans)
        alone = []
        for plan in plans:
            path = Path(folder) / "part" / "model.onnx"
            write({key: mask for key, mask in plan.items() if not mask.all()}, path)
            alone.append(np.array(cut_out(path, [layer.nodes for layer in layers], feeds)))
    counts = [{**sizes, **one.counts} for one in within]
    ratios = np.array([one.ratio for one in within])
    held = np.arange(len(plans)) % 5 == 4
    rows = {}
    for words, layer_ns in (("alone", alone), ("within", [one.layer_ns for one in within])):
        measured = [Scenario(each, one.ratio, ns) for each, one, ns in zip(counts, within, layer_ns, strict=True)]
        kept = [one for one, out in zip(measured, held, strict=True) if not out]
        curves = fit_curves(layers, points_of(layers, kept, 1.0))
        rows[words] = np.array([float(curves.time({k: float(v) for k, v in each.items()})) for each in counts])
    everything = [Scenario(c, one.ratio, one.layer_ns) for c, one in zip(counts, within, strict=True)]
    curves = fit_curves(layers, points_of(layers, everything, 1.0))  # for the grains alone
    matrix = np.array(
        [
            [float(one) for index in range(len(layers)) for one in curves.features(index, each)]
            for each in ({key: float(count) for key, count in one.items()} for one in counts)
        ]
    )
    scale = matrix.max(axis=0)
    scale[scale == 0] = 1.0
    weight = 1.0 / ratios[~held]
    solution, _ = nnls(matrix[~held] / scale * weight[:, None], np.ones(int((~held).sum())))
    rows["whole"] = matrix / scale @ solution
    cells = [name, str(len(layers)), str(int(held.sum()))]
    for words in ("alone", "within", "whole"):
        factor = np.median(ratios[~held] / rows[words][~held])
        off = np.abs(rows[words][held] * factor / ratios[held] - 1)
        cells += [f"{np.median(off):.1%}", f"{np.quantile(off, 0.95):.1%}"]
    return cells


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--networks", default="resnet18,mobilenet_v2,ocr_recogniser,bert_mini")
    parser.add_argument("--scenarios", type=int, default=40)
    parser.add_argument("--markdown", type=Path, help="write the table here")
    options = parser.parse_args(arguments)
    columns = ["network", "layers", "held out"]
    columns += [f"{words}: {figure}" for words in ("alone", "within", "whole") for figure in ("median", "95th")]
    rows = []
    for name in options.networks.split(","):
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows.append(compare(name, options.scenarios))
        print(dict(zip(columns, rows[-1], strict=True)), file=sys.stderr, flush=True)
    write_tables(f"{machine_line()} One thread.\n\n{markdown_table(columns, rows)}", options.markdown, rows, None)


if __name__ == "__main__":
    main()
