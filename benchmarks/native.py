"""Is anything left behind in a pruned graph? A pruned ResNet-50 against the same widths built natively in PyTorch.

    python -m benchmarks.native [--share 0.5] [--threads 1]

ResNet-50 is exported at a share of its parameters (widths in multiples of 8). A fresh ``torchvision`` ResNet-50 gets
layers of exactly the artefact's sizes, is traced by the same exporter, and both files are measured in turn. A ratio of
1.00 says that the cut left no operator, copy or layout behind that the native network does not have.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.common import machine_line


def main() -> None:
    """Build both, measure, print one line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--share", default="0.5")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    import onnx_ir as ir
    import torch
    import torchvision

    from graphprune.backends.base import BackendOptions
    from graphprune.ir.store import write_onnx
    from graphprune.latency.measure import Comparison, MeasureOptions, measure
    from graphprune.pipeline import load
    from models_zoo import RECIPES

    module, inputs = RECIPES["resnet50"].build()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pruned = load(module, inputs=inputs).export(folder, target_params=f"{options.share}x", align=8, measure=None)
        sizes = {key: tuple(value.shape) for key, value in ir.load(pruned.model).graph.initializers.items()}
        native = torchvision.models.resnet50(weights=None).eval()
        for key, layer in list(native.named_modules()):
            if f"{key}.weight" not in sizes:
                continue
            shape = [int(size) for size in sizes[f"{key}.weight"]]
            if isinstance(layer, torch.nn.Conv2d):
                made: torch.nn.Module = torch.nn.Conv2d(
                    shape[1], shape[0], layer.kernel_size, layer.stride, layer.padding, bias=False
                )
            elif isinstance(layer, torch.nn.BatchNorm2d):
                made = torch.nn.BatchNorm2d(shape[0])
            else:
                made = torch.nn.Linear(shape[1], shape[0])
            parent, _, leaf = key.rpartition(".")
            setattr(native.get_submodule(parent), leaf, made.eval())
        other = load(native, inputs=inputs)
        write_onnx(other.program.model, folder / "native.onnx")
        timing = MeasureOptions(
            duration=6.0, max_width=0.02, max_duration=60.0, backend_options=BackendOptions(threads=options.threads)
        )
        found = measure(folder / "native.onnx", pruned.model, other.program.examples, timing)
        assert isinstance(found, Comparison)
        print(machine_line())
        print(
            f"ResNet-50 at {options.share}x of its parameters: native {found.a.median_ms:.2f} ms, pruned "
            f"{found.b.median_ms:.2f} ms, ratio {found.ratio:.3f} [{found.ratio_low:.3f}, {found.ratio_high:.3f}] "
            f"({options.threads} thread(s); {found.noise})"
        )


if __name__ == "__main__":
    main()
