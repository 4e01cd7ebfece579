"""Is anything left behind in a pruned graph? A pruned ResNet against the same widths built natively in PyTorch.

    python -m benchmarks.native [--network resnet50] [--share 0.5] [--threads 1] [--duration 6] [--markdown FILE]

The network is exported at a share of its parameters (widths in multiples of 8). A fresh ``torchvision`` network of the
same kind gets layers of exactly the artefact's sizes, is traced by the same exporter, and both files are measured in
turn. A ratio of 1.00, and no operator more than the native network has, say that the cut left nothing behind.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import machine_line, markdown_table, write_tables

if TYPE_CHECKING:
    import torch

COLUMNS = ("network", "params", "threads", "native ms", "pruned ms", "ratio", "interval", "nodes: native", "pruned")


def natively(name: str, sizes: Mapping[str, tuple[int, ...]]) -> torch.nn.Module:
    """A torchvision network whose layers have the sizes of the initialisers of an artefact.

    Raises:
        KeyError: a layer's weight is not among them, so the artefact is not of this network.
    """
    import torch
    import torchvision

    native: torch.nn.Module = torchvision.models.get_model(name, weights=None).eval()
    for key, layer in list(native.named_modules()):
        if isinstance(layer, torch.nn.Conv2d):
            if layer.groups != 1 or layer.dilation != (1, 1) or layer.bias is not None:
                raise ValueError(f"{name}: '{key}' is a convolution of another kind than a ResNet's")
            out, within, *_ = sizes[f"{key}.weight"]
            made: torch.nn.Module = torch.nn.Conv2d(
                within, out, layer.kernel_size, layer.stride, layer.padding, bias=False
            )
        elif isinstance(layer, torch.nn.BatchNorm2d):
            made = torch.nn.BatchNorm2d(sizes[f"{key}.weight"][0])
        elif isinstance(layer, torch.nn.Linear):
            out, within = sizes[f"{key}.weight"]
            made = torch.nn.Linear(within, out)
        else:
            continue
        parent, _, leaf = key.rpartition(".")
        setattr(native.get_submodule(parent), leaf, made.eval())
    return native


def compare(name: str, share: str, threads: int, duration: float) -> dict[str, Any]:
    """Build both, measure them in turn."""
    import onnx_ir as ir

    from graphprune.backends.base import BackendOptions
    from graphprune.ir.store import write_onnx
    from graphprune.latency.measure import Comparison, MeasureOptions, measure
    from graphprune.pipeline import load
    from models_zoo import RECIPES

    module, inputs = RECIPES[name].build()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pruned = load(module, inputs=inputs).export(folder, target_params=f"{share}x", align=8, measure=None)
        artefact = ir.load(pruned.model)
        sizes = {key: tuple(map(int, value.shape or ())) for key, value in artefact.graph.initializers.items()}
        other = load(natively(name, sizes), inputs=inputs)
        write_onnx(other.program.model, folder / "native.onnx")
        timing = MeasureOptions(
            duration=duration, max_width=0.02, max_duration=60.0, backend_options=BackendOptions(threads=threads)
        )
        found = measure(folder / "native.onnx", pruned.model, other.program.examples, timing)
        assert isinstance(found, Comparison)
        operators = [
            Counter(node.op_type for node in ir.load(path).graph) for path in (folder / "native.onnx", pruned.model)
        ]
        return {
            "network": name,
            "params": pruned.reached["params"] / pruned.original["params"],
            "threads": threads,
            "ms": [found.a.median_ms, found.b.median_ms],
            "ratio": [found.ratio, found.ratio_low, found.ratio_high],
            "nodes": [one.total() for one in operators],
            "only_native": dict(operators[0] - operators[1]),
            "only_pruned": dict(operators[1] - operators[0]),
            "noise": str(found.noise),
        }


def row(figures: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    ratio, low, high = figures["ratio"]
    return [
        figures["network"],
        f"{figures['params']:.3f}x",
        str(figures["threads"]),
        *(f"{one:.2f}" for one in figures["ms"]),
        f"{ratio:.3f}",
        f"[{low:.3f}, {high:.3f}]",
        *map(str, figures["nodes"]),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Build both, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--network", default="resnet50", help="a ResNet of torchvision (default: resnet50)")
    parser.add_argument("--share", default="0.5", help="of the parameters (default: 0.5)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--duration", type=float, default=6.0, help="least seconds of timed work (default: 6)")
    parser.add_argument("--json", type=Path, help="keep the figures here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    given = parser.parse_args(arguments)
    figures = compare(given.network, given.share, given.threads, given.duration)
    only = {words: figures[f"only_{words}"] for words in ("native", "pruned")}
    said = "; ".join(f"only in the {words} one: {kinds}" for words, kinds in only.items() if kinds)
    text = f"{machine_line()}\n\n{markdown_table(COLUMNS, [row(figures)])}\n"
    text += f"Operators: {said or 'the same number of each kind'}. While it was measured {figures['noise']}.\n"
    write_tables(text, given.markdown, figures, given.json)


if __name__ == "__main__":
    main()
